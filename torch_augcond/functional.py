"""The augmentations as pure functions, and random numbers that are functions of a key (see `torch_augcond.keyed`).

Nothing here changes its inputs or keeps a state; each row of a result depends on that row of the arguments alone.
Types, shapes and plain numbers are checked (``TypeError``, ``ValueError``). Values inside tensors are not, since that
would mean to wait for a GPU: λ outside [0, 1], and a span that doesn't fit, give something without a meaning.

Example:
    >>> import torch
    >>> from torch_augcond import functional as F
    >>> keys = torch.tensor([7, 8])
    >>> embeds, partners = torch.zeros(2, 4), torch.ones(2, 4)
    >>> F.embed_cutmix(embeds, partners, lam=torch.tensor([0.75, 0.5]))
    tensor([[1., 0., 0., 0.],
            [1., 1., 0., 0.]])
    >>> F.uniform(keys, F.Purpose.LAM, 3).shape
    torch.Size([2, 3])
"""

import math
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvF

from .checks import as_float, listed, one_of
from .keyed import Purpose, beta, fold, normal, uniform
from .operands import check_keys, check_size, check_tensor

__all__ = [
    "Purpose",
    "add_noise",
    "beta",
    "cutmix_boxes",
    "embed_cutmix",
    "embed_dropout",
    "embed_mixup",
    "fold",
    "level_embedding",
    "level_frequencies",
    "normal",
    "pixel_cutmix",
    "pixel_mixup",
    "random_crops",
    "random_start",
    "resized_crop",
    "same_label_partners",
    "span_length",
    "uniform",
]


def random_start(keys: Tensor, lam: Tensor, dim: int) -> Tensor:
    """Where a span of ``span_length(lam, dim)`` entries begins, uniform over all places where it fits: (N,) int64."""
    check_tensor("lam", lam, (len(keys),))
    return (uniform(keys, Purpose.SPAN, 1)[:, 0] * (dim - span_length(lam, dim) + 1)).long()


def same_label_partners(labels: Tensor, keys: Tensor) -> Tensor:
    """For each row the index of *another* row of its label, uniformly; of itself if it is the only one.

    Which row that is depends on the batch, as it must.

    Shape:
        (N,), (N,) → (N,), int64.
    """
    check_keys(keys)
    check_tensor("labels", labels, (len(keys),), "integer")
    order = torch.argsort(labels, stable=True)
    _, group, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    first, count = (counts.cumsum(0) - counts)[group], counts[group]
    rank = torch.argsort(order) - first
    step = (uniform(keys, Purpose.PARTNER, 1)[:, 0].double() * (count - 1)).long() + 1
    return order[first + (rank + step) % count]


def _check_pair(name: str, x: Tensor, partners: Tensor, letters: str) -> None:
    kind = "floating" if name == "embeds" else "real"
    check_tensor(name, x, tuple(letters), kind)
    check_tensor("partners", partners, tuple(x.shape), kind, f" Give one partner for each row of `{name}`.")


def _wide(x: Tensor) -> Tensor:
    """Half precision and less is computed in float32 and rounded once, at the end."""
    return x if x.dtype.itemsize >= 4 else x.float()


def _column(x: Tensor | float, like: Tensor) -> Tensor | float:
    """(N,) as a factor for whatever has N rows; a number of any kind as a float."""
    if not isinstance(x, Tensor):
        return float(x)
    return x.view(-1, *[1] * (like.ndim - 1)) if x.ndim else x


def span_length(lam: Tensor, dim: int) -> Tensor:
    """⌊(1 − λ)·dim⌉, the number of entries that come from the partner: (N,) int64, halves rounded up."""
    check_tensor("lam", lam, ("N",))
    check_size("dim", dim)
    return torch.floor((1 - _wide(lam)) * dim + 0.5).long()


def embed_cutmix(embeds: Tensor, partners: Tensor, lam: Tensor, start: Tensor | None = None) -> Tensor:
    """Replaces a contiguous span of ⌊(1 − λ)·D⌉ entries of each row by the same entries of its partner.

    Args:
        lam: λ of each row, in [0, 1] (not checked); 1 leaves the row as it is.
        start: First entry of each row's span, int64, such that it fits (not checked); None for a leading span.

    Shape:
        (N, D), (N, D), (N,), (N,) → (N, D), dtype of ``embeds``.

    Raises:
        TypeError, ValueError: Types or shapes aren't as above.

    Source:
        CutMix (arXiv 1905.04899) along the feature axis; arXiv 2502.04475, Embed-CutMix.
    """
    _check_pair("embeds", embeds, partners, "ND")
    check_tensor("lam", lam, (len(embeds),))
    if start is not None:
        check_tensor("start", start, (len(embeds),), "integer")
    place = torch.arange(embeds.shape[1], dtype=torch.int32, device=embeds.device)
    if start is not None:
        place = place - start.int()[:, None]
    inside = (place >= 0) & (place < span_length(lam, embeds.shape[1]).int()[:, None])
    return torch.where(inside, partners.to(embeds.dtype), embeds)


def embed_mixup(embeds: Tensor, partners: Tensor, lam: Tensor) -> Tensor:
    """λ·embeds + (1 − λ)·partners, row by row; exactly the row itself where both are equal or λ is 1.

    Args:
        lam: λ of each row, in [0, 1] (not checked).

    Shape:
        (N, D), (N, D), (N,) → (N, D), dtype of ``embeds``.

    Raises:
        TypeError, ValueError: Types or shapes aren't as above.

    Source:
        mixup (arXiv 1710.09412); arXiv 2502.04475, Embed-Mixup.
    """
    _check_pair("embeds", embeds, partners, "ND")
    check_tensor("lam", lam, (len(embeds),))
    return _mixup(embeds, partners, lam)


def _mixup(embeds: Tensor, partners: Tensor, lam: Tensor) -> Tensor:
    a, b, weight = _wide(embeds), _wide(partners), _column(lam, embeds)
    # The two forms of a linear interpolation, each exact at its end (torch.lerp's own definition, spelt out so that
    # eager and compiled code round alike).
    mixed = torch.where(weight < 0.5, b + weight * (a - b), a - (a - b) * (1 - weight))
    # What is not finite has no part in a row that is left alone, nor is it changed by itself.
    return torch.where((weight == 1) | (a == b), a, mixed).to(embeds.dtype)


def embed_dropout(
    embeds: Tensor,
    mask: Tensor | None = None,
    *,
    keys: Tensor | None = None,
    p: float = 0.4,
    rescale: bool = False,
) -> Tensor:
    """Sets entries to zero; the others stay as they are, or are multiplied by 1/(1 − p) if ``rescale``.

    Args:
        mask: True where an entry becomes zero. Or give:
        keys: int64, one a row; each entry becomes zero with probability ``p``.
        p: Probability that an entry becomes zero, in [0, 1].
        rescale: torch's dropout rescales; the paper's code doesn't.

    Shape:
        (N, D), (N, D) or (N,) → (N, D), dtype of ``embeds``.

    Raises:
        TypeError, ValueError: An argument isn't as above, or not exactly one of ``mask`` and ``keys`` is given.

    Source:
        arXiv 2502.04475, Dropout of the conditioning vector.
    """
    if (mask is None) == (keys is None):
        raise ValueError("`mask` or `keys` must be given, but got " + ("neither." if mask is None else "both."))
    if not torch.compiler.is_compiling():
        p = _check_dropout(embeds, mask, keys, p, rescale)
    mask = uniform(keys, Purpose.DROPOUT, embeds.shape[1]) < p if mask is None else mask
    kept = embeds * (1 / (1 - p)) if rescale and p < 1 else embeds
    return torch.where(mask, 0.0, kept).to(embeds.dtype)


def _check_dropout(embeds: Tensor, mask: Tensor | None, keys: Tensor | None, p: float, rescale: bool) -> float:
    check_tensor("embeds", embeds, ("N", "D"))
    if mask is None:
        check_keys(keys, len(embeds))
    else:
        check_tensor("mask", mask, tuple(embeds.shape), "bool")
    one_of("rescale", rescale, (False, True))
    return as_float("p", p, "a float from 0 to 1", lambda p: 0 <= p <= 1)


def add_noise(
    embeds: Tensor, noise: Tensor, mean: Tensor, std: Tensor, signal: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """Noises normalised embeddings: signal·(embeds − mean)/std + sigma·noise, and back.

    Args:
        mean: Of the embeddings (the checkpoint's normaliser).
        std: Likewise.
        signal: √ᾱ of the noise level; a number, or one a row.
        sigma: √(1 − ᾱ), likewise.

    Shape:
        (N, D), (N, D), (D,), (D,) → (N, D), dtype of ``embeds``.

    Raises:
        TypeError, ValueError: Types or shapes aren't as above.

    Source:
        diffusers, ``StableUnCLIPImg2ImgPipeline.noise_image_embeddings``.
    """
    if not torch.compiler.is_compiling():
        _check_noising(embeds, noise, {"mean": mean, "std": std}, {"signal": signal, "sigma": sigma})
    x = (_wide(embeds) - mean) / std
    return ((_column(signal, x) * x + _column(sigma, x) * noise) * std + mean).to(embeds.dtype)


def _check_noising(embeds: Tensor, noise: Tensor, normaliser: dict[str, Any], numbers: dict[str, Any]) -> None:
    check_tensor("embeds", embeds, ("N", "D"))
    check_tensor("noise", noise, tuple(embeds.shape))
    n, dim = embeds.shape
    for name, x in normaliser.items():
        fused = isinstance(x, Tensor) and x.shape == (1, dim)  # the one row that `fused` gives
        check_tensor(name, x, (1, dim) if fused else (dim,))
    for name, x in numbers.items():
        if not isinstance(x, Tensor):
            as_float(name, x, "a number, or a tensor of one a row", lambda x: -math.inf < x < math.inf)
        elif x.numel() != 1 and x.shape != (n, 1):
            check_tensor(name, x, (n,), "real")


def level_frequencies(dim: int, device: torch.device | None = None) -> Tensor:
    """The dim/2 frequencies of `level_embedding`; an odd dim is rounded down."""
    check_size("dim", dim, 2)
    half = dim // 2
    return torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=device) / half)


def level_embedding(noise_level: Tensor, dim: int, frequencies: Tensor | None = None) -> Tensor:
    """Sinusoidal embedding of the noise level: dim/2 cosines, then as many sines, then 0 if dim is odd.

    Args:
        noise_level: Timesteps of the image noising schedule.
        frequencies: What `level_frequencies` gives, for callers that keep them.

    Shape:
        (N,) → (N, dim), float32.

    Source:
        diffusers, ``get_timestep_embedding(flip_sin_to_cos=True, downscale_freq_shift=0)``.
    """
    check_tensor("noise_level", noise_level, ("N",), "real")
    frequencies = level_frequencies(dim, noise_level.device) if frequencies is None else frequencies
    angle = noise_level.float()[:, None] * frequencies
    return torch.nn.functional.pad(torch.cat([angle.cos(), angle.sin()], 1), (0, dim % 2))


def cutmix_boxes(lam: Tensor, centres: Tensor, height: int, width: int) -> Tensor:
    """Boxes (x1, y1, x2, y2) of about (1 − λ) of the area around random centres, cut off at the edges.

    Args:
        centres: (x, y) of each box, as fractions in (0, 1).

    Shape:
        (N,), (N, 2) → (N, 4), int64.

    Source:
        torchvision, ``transforms.v2.CutMix.make_params``.
    """
    check_tensor("lam", lam, ("N",))
    check_tensor("centres", centres, (len(lam), 2))
    _check_image_size(height, width)
    size = torch.tensor([width, height], device=lam.device)
    half = (0.5 * torch.sqrt(1 - _wide(lam))[:, None] * size).long()
    centre = (_wide(centres) * size).long()
    return torch.cat([(centre - half).clamp(min=0), torch.minimum(centre + half, size)], 1)


def _check_image_size(height: int, width: int) -> None:
    check_size("height", height, 1)
    check_size("width", width, 1)


def pixel_cutmix(images: Tensor, partners: Tensor, boxes: Tensor) -> Tensor:
    """Replaces a box of each image by the same box of its partner.

    Args:
        boxes: (x1, y1, x2, y2) in pixels; x2 and y2 are the first ones outside.

    Shape:
        (N, C, H, W), (N, C, H, W), (N, 4) → (N, C, H, W), dtype of ``images``.

    Raises:
        TypeError, ValueError: Types or shapes aren't as above.
    """
    _check_pair("images", images, partners, "NCHW")
    check_tensor("boxes", boxes, (len(images), 4), "integer")
    x1, y1, x2, y2 = boxes[:, :, None].unbind(1)
    x = torch.arange(images.shape[-1], device=images.device)
    y = torch.arange(images.shape[-2], device=images.device)
    inside = ((y >= y1) & (y < y2))[:, None, :, None] & ((x >= x1) & (x < x2))[:, None, None, :]
    return torch.where(inside, partners.to(images.dtype), images)


def pixel_mixup(images: Tensor, partners: Tensor, lam: Tensor) -> Tensor:
    """λ·images + (1 − λ)·partners, image by image; integers are rounded (and those beyond 2⁵³ imprecise).

    Shape:
        (N, C, H, W), (N, C, H, W), (N,) → (N, C, H, W), dtype of ``images``.

    Raises:
        TypeError, ValueError: Types or shapes aren't as above.
    """
    _check_pair("images", images, partners, "NCHW")
    check_tensor("lam", lam, (len(images),))
    if images.dtype.is_floating_point:
        return _mixup(images, partners, lam)
    dtype = torch.float32 if images.dtype.itemsize <= 2 else torch.float64  # which holds them all, up to 32 bits
    return _mixup(images.to(dtype), partners.to(dtype), lam).round().to(images.dtype)


def random_crops(keys: Tensor, height: int, width: int) -> Tensor:
    """Random crops of 8 to 100 % of the area and of aspect 3:4 to 4:3; the first of ten tries that fits, else all.

    Shape:
        (N,) → (N, 4), int64: (x1, y1, x2, y2).

    Source:
        torchvision, ``transforms.v2.RandomResizedCrop.make_params``.
    """
    _check_image_size(height, width)
    area, aspect, x, y = uniform(keys, Purpose.CROP, 40).view(-1, 10, 4).unbind(2)
    area = (0.08 + 0.92 * area) * (height * width)
    aspect = torch.exp(math.log(4 / 3) * (2 * aspect - 1))
    w, h = torch.sqrt(area * aspect).round(), torch.sqrt(area / aspect).round()
    x1, y1 = (x * (width - w + 1)).floor(), (y * (height - h + 1)).floor()
    tries = torch.stack([x1, y1, x1 + w, y1 + h], 2).long()
    whole = torch.tensor([0, 0, width, height], device=keys.device).expand(len(keys), 1, 4)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = torch.where(fits.any(1), fits.int().argmax(1), 10)
    return torch.cat([tries, whole], 1)[torch.arange(len(keys), device=keys.device), first]


def resized_crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Each image's box, scaled to the whole image's size (bilinear, antialiased).

    Shape:
        (N, C, H, W), (N, 4) → (N, C, H, W), dtype of ``images``.

    Raises:
        TypeError, ValueError: Types or shapes aren't as above, or a box is empty.
    """
    check_tensor("images", images, tuple("NCHW"), "real")
    check_tensor("boxes", boxes, (len(images), 4), "integer")
    if empty := [tuple(box) for box in boxes.tolist() if box[0] >= box[2] or box[1] >= box[3]]:
        raise ValueError(f"`boxes` must be (x1, y1, x2, y2) with x1 < x2 and y1 < y2, but got {listed(empty)}.")
    size = list(images.shape[-2:])
    rows = [
        tvF.resized_crop(image, y1, x1, y2 - y1, x2 - x1, size, antialias=True)
        for image, (x1, y1, x2, y2) in zip(images, boxes.tolist())
    ]
    return torch.stack(rows) if rows else images.clone()
