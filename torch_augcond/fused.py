"""The conditioning vector in one pass: gather → noise → mix → level embedding → dropout, as one compiled graph.

The graph is built from the functions of `torch_augcond.functional`, run eagerly where there is no compiler. The random
numbers are hashed inside it, so a row's result depends neither on its batch nor on anything drawn before.
"""

import types
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as shape_config

from . import functional as F

__all__ = ["condition"]

# ("cutmix", alpha, span, n), ("mixup", alpha, n) or ("dropout", p, rescale, n): the n-th of its kind.
Op = tuple[Any, ...]

# Inductor repeats an expression wherever it is used, up to this many operations. A hash uses each of its terms twice:
# at the default of 30, compiling takes four times as long, and the result is no faster.
_OPTIONS = {"realize_opcount_threshold": 8}

_graphs: dict[Any, Callable[..., Tensor]] = {}
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
    if not len(keys):
        return embeds.new_empty(0, 2 * mean.numel()) if out is None else out
    columns = [_column(x, embeds) for x in (noise_level, signal, sigma)]
    columns += [x.reshape(1, -1) for x in (_frequencies(mean.numel(), embeds.device), mean, std)]
    rows = [embeds, partners, index, partner_index, keys, noise]
    if not compile or not _state["works"]:
        return _chain(ops, *rows, *columns, out)
    if min(len(x) for x in rows if x is not None) > 1:
        result = _fast(ops, *rows, *columns, out)
        return result if out is None else out
    # torch.compile makes a graph of its own for length 1; two equal rows spare it.
    rows = [x if x is None or len(x) > 1 else torch.cat([x, x]) for x in rows]
    result = _fast(ops, *rows, *columns, None)[: len(keys)]
    return result if out is None else out.copy_(result)


def _column(x: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float32, device=like.device).reshape(-1, 1)


@lru_cache(maxsize=16)
def _frequencies(dim: int, device: torch.device) -> Tensor:
    return F.level_frequencies(dim, device)  # compiled, exp may differ in its last bit, which the level then magnifies


def _chain(ops, embeds, partners, index, partner_index, keys, noise, level, signal, sigma, frequencies, mean, std, out):
    dtype, dim = embeds.dtype, mean.numel()
    noise = F.normal(keys, F.Purpose.NOISE, dim) if noise is None else noise

    def noised(x: Tensor, rows: Tensor | None) -> Tensor:
        x = x if rows is None else x[rows]
        return F.add_noise(x.to(torch.promote_types(dtype, torch.float32)), noise, mean, std, signal, sigma)

    image = noised(embeds, index)
    partners = None if partners is None else noised(partners, partner_index)
    levels = F.level_embedding(level[:, 0], dim, frequencies).to(image.dtype).expand_as(image)
    for op in ops:
        image, levels = _apply(op, image, levels, partners, keys)
    result = torch.cat([image, levels], 1).to(dtype)
    return result if out is None else out.copy_(result)


def _apply(op: Op, image: Tensor, levels: Tensor, partners: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    kind, number, *options, n = op
    keys, dim = F.fold(keys, n), image.shape[1]
    if kind == "dropout":
        masks = [F.uniform(keys, F.Purpose.DROPOUT, dim, first) < number for first in (0, dim)]
        return tuple(F.embed_dropout(x, mask, p=number, rescale=options[0]) for x, mask in zip((image, levels), masks))
    if options == ["batch"]:
        return image, levels
    lam = F.beta(keys, number)
    if kind == "mixup":
        return F.embed_mixup(image, partners, lam), levels
    start = F.random_start(keys, lam, dim) if options == ["random"] else None
    return F.embed_cutmix(image, partners, lam, start), levels


def _fast(ops: tuple[Op, ...], *tensors: Tensor | None) -> Tensor:
    """The compiled graph for these ops and this kind of tensors; the eager chain if it can't be had."""
    tensors = [x if x is None else _plain(x) for x in tensors]
    kind = (ops, *(None if x is None else _kind(x) for x in tensors))
    if kind in _graphs:
        return _graphs[kind](*tensors)
    try:
        graph, result = _compile(ops, tensors)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the compiler raises, the eager chain is the judge of the arguments
        result = _chain(ops, *tensors)
        _state["works"] = False
        _warn(error)
        return result
    _graphs[kind] = graph
    return result


def _plain(x: Tensor) -> Tensor:
    # A graph is specialised to where in its storage x begins. So let all begin at 0, without a copy.
    return torch.from_dlpack(x.detach()) if x.storage_offset() else x.detach()


def _kind(x: Tensor) -> tuple:
    return x.dtype, x.device, x.stride(), x.shape[1:], len(x) == 1, x.is_inference()


def _compile(ops: tuple[Op, ...], tensors: list[Tensor | None]) -> tuple[Callable[..., Tensor], Tensor]:
    # torch counts recompilations for each code object; a copy of it gives every graph a count of its own.
    code = _chain.__code__.replace(co_name=f"condition_{len(_graphs)}")
    chain = types.FunctionType(code, globals(), code.co_name)
    graph = partial(torch.compile(chain, fullgraph=True, options=_OPTIONS), ops)
    for x in tensors:
        if x is not None and len(x) > 1:
            torch._dynamo.mark_dynamic(x, 0)
    # Lengths that are equal by chance needn't be so in the next batch.
    with shape_config.patch(use_duck_shape=False):
        return graph, graph(*tensors)


def _warn(error: Exception) -> None:
    reason = str(error).strip().partition("\n")[0]
    warnings.warn(
        f"torch.compile doesn't work here ({type(error).__name__}: {reason}), so conditioning vectors are computed "
        "eagerly: the same numbers, more slowly. Pass compile=False to choose that.",
        stacklevel=5,
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
