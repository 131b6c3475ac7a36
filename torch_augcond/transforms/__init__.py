"""The augmentations as modules in the shape of torchvision's v2 transforms, and the eleven named variants.

`make_params` draws everything, and `transform` is deterministic given what it drew.

Example:
    >>> import torch
    >>> from torch_augcond import VARIANTS, EmbedCutMix
    >>> EmbedCutMix(alpha=0.5)
    EmbedCutMix(alpha=0.5, span='leading')
    >>> embeds, labels = torch.randn(4, 1024), torch.tensor([0, 1, 0, 1])
    >>> mixed, same_labels = EmbedCutMix()(embeds, labels)
    >>> mixed, same_labels = VARIANTS["embed-cutmix-dropout"](embeds, labels)
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature

from torch import Tensor, nn

from .. import functional as F
from ..checks import as_float, brief, did_you_mean, listed, one_of
from .augmentation import Augmentation, Params, positive
from .compose import Compose, check_transforms, instance_of

__all__ = [
    "VARIANTS",
    "Compose",
    "EmbedCutMix",
    "EmbedDropout",
    "EmbedMixup",
    "PixelCutMix",
    "PixelMixup",
    "resolve",
]


class _Embed(Augmentation):
    stage, kind, mixes = "embed", "mixing", True


class _Pixel(Augmentation):
    stage, kind, mixes = "pixel", "mixing", True

    def __init__(self, alpha: float = 1.0, *, crop: str | None = None) -> None:
        super().__init__()
        self.alpha = positive("alpha", alpha)
        self.crop = one_of("crop", crop, (None, "random-resized"))

    def _draw(self, x: Tensor, keys: Tensor) -> Params:
        params = {"lam": F.beta(keys, self.alpha)}
        if self.crop:
            size = x.shape[-2:]
            params["crops"] = F.random_crops(keys, *size)
            params["partner_crops"] = F.random_crops(F.fold(keys, -1), *size)
        return params

    def _cropped(self, x: Tensor, partners: Tensor, params: Params) -> tuple[Tensor, Tensor]:
        if not self.crop:
            return x, partners
        return F.resized_crop(x, params["crops"]), F.resized_crop(partners, params["partner_crops"])


class EmbedCutMix(_Embed):
    """Replaces a contiguous span of each embedding by the partner's; λ ~ Beta(alpha, alpha) is drawn per sample.

    torchvision's CutMix draws one λ a batch and mixes labels; this one mixes within a label.

    Args:
        alpha: Of Beta(alpha, alpha). ⌊(1 − λ)·D⌉ entries come from the partner.
        span: ``"leading"``: from entry 0; ``"random"``: anywhere; ``"batch"``: what the public code of 2024 really
            does, which is to slice the batch axis, so that no embedding is ever mixed.

    Shape:
        (N, D) → (N, D), dtype and device kept.

    Raises:
        TypeError, ValueError: An argument isn't as above.

    Example:
        >>> import torch
        >>> EmbedCutMix()(torch.randn(2, 1024), partners=torch.randn(2, 1024)).shape
        torch.Size([2, 1024])

    Source:
        arXiv 2502.04475, Embed-CutMix.
    """

    def __init__(self, alpha: float = 1.0, span: str = "leading") -> None:
        super().__init__()
        self.alpha = positive("alpha", alpha)
        self.span = one_of("span", span, ("leading", "random", "batch"))

    @property
    def mixes(self) -> bool:
        return self.span != "batch"

    def _draw(self, x: Tensor, keys: Tensor) -> Params:
        lam = F.beta(keys, self.alpha)
        random = self.span == "random"
        return {"lam": lam, "start": F.random_start(keys, lam, x.shape[1]) if random else keys * 0}

    def transform(self, x: Tensor, partners: Tensor | None, params: Params) -> Tensor:
        return F.embed_cutmix(x, partners, params["lam"], params["start"]) if self.mixes else x.clone()

    def _op(self, n: int) -> tuple:
        return "cutmix", self.alpha, self.span, n


class EmbedMixup(_Embed):
    """λ·embedding + (1 − λ)·partner; λ ~ Beta(alpha, alpha) is drawn per sample.

    Args:
        alpha: Of Beta(alpha, alpha).

    Shape:
        (N, D) → (N, D), dtype and device kept.

    Raises:
        TypeError, ValueError: ``alpha`` isn't a positive float.

    Source:
        arXiv 2502.04475, Embed-Mixup.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = positive("alpha", alpha)

    def _draw(self, x: Tensor, keys: Tensor) -> Params:
        return {"lam": F.beta(keys, self.alpha)}

    def transform(self, x: Tensor, partners: Tensor | None, params: Params) -> Tensor:
        return F.embed_mixup(x, partners, params["lam"])

    def _op(self, n: int) -> tuple:
        return "mixup", self.alpha, n


class EmbedDropout(_Embed):
    """Sets each entry to zero with probability p; the mask is drawn per sample, and kept entries are not rescaled.

    ``eval()`` doesn't switch it off, as it does `torch.nn.Dropout`. A generator applies it to its whole conditioning
    vector, the noise-level half included.

    Args:
        p: Probability of zero, in [0, 1]. 1 is text-only: generation then needs no real image.
        rescale: Divide kept entries by 1 − p, as `torch.nn.Dropout` does and the paper's code doesn't.

    Shape:
        (N, D) → (N, D), dtype and device kept.

    Raises:
        TypeError, ValueError: An argument isn't as above.

    Source:
        arXiv 2502.04475, Dropout of the conditioning vector.
    """

    kind, mixes = "dropping", False

    def __init__(self, p: float = 0.4, rescale: bool = False) -> None:
        super().__init__()
        self.p = as_float("p", p, "a float from 0 to 1", lambda p: 0 <= p <= 1)
        self.rescale = one_of("rescale", rescale, (False, True))

    def _draw(self, x: Tensor, keys: Tensor) -> Params:
        return {"mask": F.uniform(keys, F.Purpose.DROPOUT, x.shape[1]) < self.p}

    def transform(self, x: Tensor, partners: Tensor | None, params: Params) -> Tensor:
        return F.embed_dropout(x, params["mask"], p=self.p, rescale=self.rescale)

    def _op(self, n: int) -> tuple:
        return "dropout", self.p, self.rescale, n


class PixelCutMix(_Pixel):
    """Replaces a box of each image by the partner's; λ ~ Beta(alpha, alpha) and the box are drawn per sample.

    Args:
        alpha: Of Beta(alpha, alpha). The box has (1 − λ) of the area, less what the edges cut off.
        crop: ``"random-resized"`` crops both images at random first, as the public code of 2024 does for its pixel
            variants only; default: no crop.

    Shape:
        (N, C, H, W) → (N, C, H, W), dtype and device kept.

    Raises:
        TypeError, ValueError: An argument isn't as above.

    Source:
        CutMix (arXiv 1905.04899), with torchvision's box.
    """

    def _draw(self, x: Tensor, keys: Tensor) -> Params:
        params = super()._draw(x, keys)
        centres = F.uniform(keys, F.Purpose.BOX, 2)
        return {**params, "boxes": F.cutmix_boxes(params["lam"], centres, *x.shape[-2:])}

    def transform(self, x: Tensor, partners: Tensor | None, params: Params) -> Tensor:
        return F.pixel_cutmix(*self._cropped(x, partners, params), params["boxes"])


class PixelMixup(_Pixel):
    """λ·image + (1 − λ)·partner; λ ~ Beta(alpha, alpha) is drawn per sample.

    Args:
        alpha: Of Beta(alpha, alpha).
        crop: As in `PixelCutMix`.

    Shape:
        (N, C, H, W) → (N, C, H, W), dtype and device kept.

    Raises:
        TypeError, ValueError: An argument isn't as above.

    Source:
        mixup (arXiv 1710.09412).
    """

    def transform(self, x: Tensor, partners: Tensor | None, params: Params) -> Tensor:
        return F.pixel_mixup(*self._cropped(x, partners, params), params["lam"])


def resolve(augmentation: str | nn.Module | Sequence[nn.Module]) -> Compose:
    """A variant's name, a transform, or a sequence of them, as one flat Compose.

    Raises:
        TypeError: It is none of these.
        ValueError: No variant has that name; the message lists those there are.
    """
    if isinstance(augmentation, str):
        if augmentation not in VARIANTS:
            rule = f"`augmentation` must be one of {', '.join(VARIANTS)}, but got {augmentation!r}."
            raise ValueError(rule + did_you_mean(augmentation, VARIANTS))
        augmentation = VARIANTS[augmentation]
    if isinstance(augmentation, Augmentation):
        augmentation = [augmentation]
    if not isinstance(augmentation, Sequence):
        kinds = "a variant's name, a transform or a sequence of transforms"
        got = f"{brief(repr(augmentation))} ({type(augmentation).__name__})"
        raise TypeError(f"`augmentation` must be {kinds}, but got {got}.{instance_of(augmentation)}")
    chain = Compose(copy.deepcopy(check_transforms("augmentation", augmentation)))  # the user's may be changed later
    if strange := [type(t).__name__ for t in chain if type(t) not in _OWN]:
        raise TypeError(
            f"`augmentation` must be made of the package's own transforms, but got {listed(strange)}: what a subclass "
            "does can't be told from the recipe of its images."
        )
    for transform in chain:  # its attributes may have been set since it was made
        names = signature(type(transform)).parameters
        checked = type(transform)(**{name: getattr(transform, name) for name in names})
        for name in names:
            setattr(transform, name, getattr(checked, name))  # 2 and 2.0 are one
    return chain


_OWN = {PixelCutMix, PixelMixup, EmbedCutMix, EmbedMixup, EmbedDropout}


def _builders() -> dict[str, Callable[[], nn.Module]]:
    mixing = {"cutmix": PixelCutMix, "mixup": PixelMixup, "embed-cutmix": EmbedCutMix, "embed-mixup": EmbedMixup}
    builders = {"text-only": partial(EmbedDropout, p=1.0), "real": partial(Compose, []), "dropout": EmbedDropout}
    for name, kind in mixing.items():
        builders |= {name: kind, f"{name}-dropout": partial(_with_dropout, kind)}
    return builders


def _with_dropout(mixing: type[nn.Module]) -> Compose:
    return Compose([mixing(), EmbedDropout()])


class _Variants(Mapping[str, nn.Module]):
    """The eleven variants by name, a new transform at each look-up: who changes one changes that one alone."""

    _builders = _builders()

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._builders:
            raise KeyError(f"no variant is called {name!r}; there are {', '.join(self)}")
        return self._builders[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)

    def __repr__(self) -> str:
        return f"VARIANTS({dict(self)})"


VARIANTS = _Variants()
