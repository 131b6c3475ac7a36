"""The conditioning vector in one pass: gather → noise → mix → level embedding → dropout, as one compiled graph.

The graph is built from the functions of `torch_augcond.functional`, run eagerly where there is no compiler. The random
numbers are hashed inside it, so a row's result depends neither on its batch nor on anything drawn before.
"""

import types
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import takewhile
from numbers import Number
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as shape_config

from . import functional as F
from .checks import warn

__all__ = ["condition"]

# ("cutmix", alpha, span, n), ("mixup", alpha, n) or ("dropout", p, rescale, n): the n-th of its kind.
Op = tuple[Any, ...]

# Inductor repeats an expression wherever it is used, up to this many operations (30 by default). A hash uses each of
# its terms twice, so compiling is faster with fewer. On a CPU that would split the graph into loops which hand each
# other whole batches of numbers through memory.
_GPU_OPTIONS = {"realize_opcount_threshold": 8}

_graphs: dict[Any, Callable[..., None]] = {}
_state = {"works": True}


@torch.no_grad()
def condition(
    embeds: Tensor,
    keys: Tensor,
    *,
    partners: Tensor | None = None,
    index: Tensor | None = None,
    partner_index: Tensor | None = None,
    ops: Any = (),
    noise_level: int | Tensor = 0,
    signal: float | Tensor,
    sigma: float | Tensor,
    mean: Tensor,
    std: Tensor,
    noise: Tensor | None = None,
    compile: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Noised, mixed and dropped-out conditioning vectors, whose rows are bitwise the same in any batch.

    One image has one noise: both of its sources get the same. Mixing acts on the image half, dropout on the whole
    vector, in the order of ``ops``. The unconditional half of guidance is zeros: the generator makes it.

    Args:
        embeds: Image embeddings, a row for each image; with ``index``, a table of any length.
        keys: int64, one a row of the result.
        partners: Second embeddings; default: ``embeds``, if ``partner_index`` is given.
        index: Which rows of ``embeds`` to take.
        partner_index: Which rows of ``partners`` to take.
        ops: A `Compose` of Embed transforms.
        noise_level: Timestep of the noise schedule; an int, or one a row.
        signal: √ᾱ of the noise level; a number, or one a row.
        sigma: √(1 − ᾱ), likewise.
        mean: Of the embeddings, as in the checkpoint's normaliser.
        std: Likewise.
        noise: Instead of normal numbers drawn by key.
        compile: False runs the same functions eagerly.
        out: Written to and returned.

    Shape:
        (N, D), (N,), (D,) → (N, 2D), dtype of ``embeds``.

    Raises:
        TypeError: ``keys`` aren't int64.
        ValueError: Shapes don't fit, or something mixes and there are no partners.

    Warns:
        Once, if the compiler doesn't work here. Everything runs eagerly from then on, with the same numbers (see
        docs/variants.md for how far they agree).

    Source:
        diffusers, ``StableUnCLIPImg2ImgPipeline.noise_image_embeddings``; arXiv 2502.04475.
    """
    ops = tuple(getattr(ops, "ops", ops) or ())
    if partners is None and partner_index is not None:
        partners = embeds
    _check(embeds, keys, partners, index, partner_index, ops, mean, noise, out)
    out = embeds.new_empty(len(keys), 2 * mean.numel()) if out is None else out
    if not len(keys):
        return out
    columns = [_column(x, embeds) for x in (noise_level, signal, sigma)]
    columns += [x.reshape(1, -1) for x in (_frequencies(mean.numel(), embeds.device), mean, std)]
    rows = [embeds, partners, index, partner_index, keys, noise]
    if not compile or not _state["works"]:
        _chain(ops, *rows, *columns, *out.chunk(2, 1))
    elif min(len(x) for x in rows if x is not None) > 1:
        _fast(ops, *rows, *columns, *out.chunk(2, 1))
    else:  # torch.compile makes a graph of its own for length 1; two equal rows spare it
        twice = [x if x is None or len(x) > 1 else torch.cat([x, x]) for x in (*rows, out)]
        _fast(ops, *twice[:-1], *columns, *twice[-1].chunk(2, 1))
        out.copy_(twice[-1][: len(keys)])
    return out


def _column(x: float | Tensor, like: Tensor) -> Tensor:
    if isinstance(x, Number):
        return _number(float(x), like.device)
    return torch.as_tensor(x, dtype=torch.float32, device=like.device).reshape(-1, 1)


@lru_cache(maxsize=64)
def _number(x: float, device: torch.device) -> Tensor:
    """Kept, since to bring a number to a GPU waits for what runs there."""
    with torch.inference_mode(False):
        return torch.full((1, 1), x, dtype=torch.float32, device=device)


@lru_cache(maxsize=16)
def _frequencies(dim: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        # Not in the graph: compiled, exp may differ in its last bit, which the level then magnifies.
        return F.level_frequencies(dim, device)


def _chain(
    ops, embeds, partners, index, partner_index, keys, noise, level, signal, sigma, frequencies, mean, std, *out
):
    """Writes both halves of the condition: two tensors, since to a part of one the compiled graph would copy it."""
    dim = mean.numel()
    noise = F.normal(keys, F.Purpose.NOISE, dim) if noise is None else noise
    image, partners = _gathered(embeds, index), _gathered(partners, partner_index)

    def noised(x: Tensor) -> Tensor:
        return F.add_noise(x, noise, mean, std, signal, sigma)

    # Both sources have the same noise: what is mixed before anything is dropped needs it only once, afterwards.
    mixing = list(takewhile(lambda op: op[0] != "dropout", ops))
    for op in mixing:
        image = _mixed(op, image, partners, keys)
    image = noised(image)
    levels = F.level_embedding(level[:, 0], dim, frequencies).to(image.dtype).expand_as(image)
    for op in ops[len(mixing) :]:
        if op[0] == "dropout":
            image, levels = _dropped(op, image, levels, keys)
        else:
            image = _mixed(op, image, noised(partners), keys)
    for half, x in zip(out, (image, levels)):
        half.copy_(x)


def _gathered(x: Tensor | None, index: Tensor | None) -> Tensor | None:
    x = x if index is None else x[index]
    return None if x is None else x.to(torch.promote_types(x.dtype, torch.float32))


def _mixed(op: Op, image: Tensor, partners: Tensor, keys: Tensor) -> Tensor:
    kind, alpha, *options, n = op
    if options == ["batch"]:
        return image
    keys, dim = F.fold(keys, n), image.shape[1]
    lam = F.beta(keys, alpha)
    if kind == "mixup":
        return F.embed_mixup(image, partners, lam)
    start = F.random_start(keys, lam, dim) if options == ["random"] else None
    return F.embed_cutmix(image, partners, lam, start)


def _dropped(op: Op, image: Tensor, levels: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    _, p, rescale, n = op
    keys, dim = F.fold(keys, n), image.shape[1]
    masks = [F.uniform(keys, F.Purpose.DROPOUT, dim, first) < p for first in (0, dim)]
    return tuple(F.embed_dropout(x, mask, p=p, rescale=rescale) for x, mask in zip((image, levels), masks))


def _fast(ops: tuple[Op, ...], *tensors: Tensor | None) -> None:
    """The compiled graph for these ops and this kind of tensors; the eager chain if it can't be had."""
    tensors = [x if x is None else _plain(x) for x in tensors]
    kind = (ops, *(None if x is None else _kind(x) for x in tensors))
    if kind in _graphs:
        _graphs[kind](*tensors)
        return
    try:
        _graphs[kind] = _compile(ops, tensors)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the compiler raises, the eager chain is the judge of the arguments
        _chain(ops, *tensors)
        _state["works"] = False
        _warn(error)


def _plain(x: Tensor) -> Tensor:
    # A graph is specialised to where in its storage x begins. So let all begin at 0, without a copy.
    return torch.from_dlpack(x.detach()) if x.storage_offset() else x.detach()


def _kind(x: Tensor) -> tuple:
    return x.dtype, x.device, x.stride(), x.shape[1:], len(x) == 1, x.is_inference()


def _compile(ops: tuple[Op, ...], tensors: list[Tensor | None]) -> Callable[..., None]:
    """The graph, which has run once."""
    # torch counts recompilations for each code object; a copy of it gives every graph a count of its own.
    code = _chain.__code__.replace(co_name=f"condition_{len(_graphs)}")
    chain = types.FunctionType(code, globals(), code.co_name)
    options = None if tensors[0].device.type == "cpu" else _GPU_OPTIONS
    graph = partial(torch.compile(chain, fullgraph=True, options=options), ops)
    for x in tensors:
        if x is not None and len(x) > 1:
            torch._dynamo.mark_dynamic(x, 0)
    # Lengths that are equal by chance needn't be so in the next batch.
    with shape_config.patch(use_duck_shape=False):
        graph(*tensors)
    return graph


def _warn(error: Exception) -> None:
    reason = str(error).strip().partition("\n")[0]
    warn(
        f"torch.compile doesn't work here ({type(error).__name__}: {reason}), so conditioning vectors are computed "
        "eagerly: the same numbers, more slowly. Pass compile=False to choose that.",
    )


def _check(embeds, keys, partners, index, partner_index, ops, mean, noise, out) -> None:
    n, dim = len(keys), mean.numel()
    if keys.dtype != torch.int64 or keys.ndim != 1:
        raise TypeError(f"`keys` must be int64 of shape (N,), but got {keys.dtype} of shape {tuple(keys.shape)}.")
    if any(op[0] != "dropout" for op in ops) and partners is None:
        raise ValueError("`partners` must be given for transforms that mix, but got None.")
    wanted = {
        "embeds": (embeds, index, (n, dim)),
        "partners": (partners, partner_index, (n, dim)),
        "noise": (noise, None, (n, dim)),
        "out": (out, None, (n, 2 * dim)),
    }
    for name, (x, rows, shape) in wanted.items():
        got = None if x is None else (*(x if rows is None else rows).shape[:1], *x.shape[1:])
        if got not in (None, shape):
            raise ValueError(f"`{name}` must come to {shape} for {n} keys and {dim} means, but got {got}.")
