"""What all transforms have in common: checks of arguments, partners of the same label, keys."""

import json
import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors

from .. import functional as F
from ..checks import as_float, brief

__all__ = ["Augmentation", "Params", "check_work", "op_of", "positive"]

Params = dict[str, Tensor]


class Augmentation(nn.Module, ABC):
    """What all have in common: the checks, and where partners and random numbers come from."""

    def make_params(self, x: Tensor, *, keys: Tensor | None = None) -> Params:
        """Draws what `transform` needs, row by row: from ``keys``, else from torch's global generator."""
        _check_input(self, x)
        return self._draw(x, _keys(x, keys))

    @abstractmethod
    def transform(self, x: Tensor, partners: Tensor | None, params: Params) -> Tensor:
        """The augmentation itself: nothing in it is random."""

    @property
    def ops(self) -> tuple:
        """Itself as a constant of a compiled graph, which a generator takes (see `torch_augcond.fused`)."""
        if self.stage != "embed":
            raise ValueError(f"`ops` must be made of transforms of embeddings, but got {self}. Take `.embed`.")
        return (op_of(self, 0),)

    def forward(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        partners: Tensor | None = None,
        keys: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Augments rows, with other rows of their label or with ``partners``; a row alone in its label stays unmixed.

        Args:
            x: Embeddings or images.
            labels: Class of each row, any integers; handed back as they are.
            partners: What to mix with, one for each row, instead of rows of ``x``.
            keys: int64, one a row: makes every random number a function of (key, purpose, position). Default: keys
                drawn from torch's global generator.

        Shape:
            (N, D) or (N, C, H, W), (N,) → the same; ``x`` alone if no labels are given.

        Raises:
            TypeError: ``x`` isn't a tensor of this stage, or ``labels`` or ``keys`` aren't integers.
            ValueError: Shapes don't fit, or there is nothing to mix with.
        """
        _check_input(self, x)
        keys = _keys(x, keys)
        if labels is not None:
            _check_labels(labels, len(x))
        if self.mixes and partners is None:
            partners = self._pair(x, labels, keys)
        out = self.transform(x, partners, self.make_params(x, keys=keys))
        out = tv_tensors.wrap(out, like=x) if isinstance(x, tv_tensors.Image) else out
        return out if labels is None else (out, labels)

    def _pair(self, x: Tensor, labels: Tensor | None, keys: Tensor) -> Tensor:
        if labels is None:
            name = type(self).__name__
            raise ValueError(f"`labels` or `partners` must be given to {name}, which mixes rows, but got neither.")
        return x[F.same_label_partners(labels.to(x.device), keys)]

    def describe(self) -> Any:
        """Plain JSON: the class's name and the constructor's arguments.

        Raises:
            TypeError: An attribute that was added can't be said in JSON.
        """
        name, arguments = type(self).__name__, self._arguments()
        for argument, value in arguments.items():
            _check_plain(f"{name}.{argument}", value)
        return {"name": name, **arguments}

    def _arguments(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "training"}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())


def _check_plain(name: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        raise TypeError(
            f"`{name}` must be plain JSON, since attributes are part of the recipe, but got {brief(repr(value))} "
            f"({type(value).__name__}). What isn't may have a name that begins with an underscore."
        ) from None


_WORK = ("forward", "make_params", "transform", "_draw")


def check_work(name: str, transform: Augmentation, known: type) -> None:
    """That it works as ``known`` does: what reads its numbers only, and does the work itself, would be wrong else.

    Raises:
        TypeError: It has a method of its own for that.
    """
    kind = type(transform)
    theirs = {work: getattr(known, work, None) for work in _WORK}
    own = [work for work in _WORK if work in vars(transform) or getattr(kind, work, None) is not theirs[work]]
    if own:
        raise TypeError(
            f"`{name}` must be of transforms that work as the package's own, but got {kind.__name__}, which has a "
            f"`{own[0]}` of its own. A graph and a Compose can't take it over: call it yourself."
        )


def op_of(transform: Augmentation, n: int) -> tuple:
    """A transform, the n-th of its kind, as a constant of a compiled graph, which does what its class does."""
    check_work("ops", transform, next((base for base in type(transform).__mro__ if "_op" in vars(base)), Augmentation))
    return transform._op(n)


def positive(name: str, value: Any) -> float:
    return as_float(name, value, "a positive float", lambda v: 0 < v < math.inf)


def _check_input(transform: Any, x: Any) -> None:
    name, stage = type(transform).__name__, transform.stage
    if stage == "both":
        raise ValueError(f"`x` must meet one stage at a time, but {name} has two: call `.pixel`, encode, `.embed`.")
    kinds = {"embed": ("embeddings (N, D)", (2,)), "pixel": ("images (N, C, H, W)", (4,))}
    kind, ndims = kinds.get(stage, ("embeddings (N, D) or images (N, C, H, W)", (2, 4)))
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` must be a tensor of {kind}, but {name} got {type(x).__name__}.")
    if x.ndim not in ndims:
        raise ValueError(f"`x` must be a tensor of {kind}, but {name} got the shape {tuple(x.shape)}.")
    if stage == "embed" and not x.dtype.is_floating_point:
        raise TypeError(f"`x` must be a floating-point tensor of {kind}, but {name} got {x.dtype}.")


def _check_labels(labels: Any, n: int) -> None:
    if not isinstance(labels, Tensor) or labels.dtype.is_floating_point or labels.dtype.is_complex:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(f"`labels` must be an integer tensor, but got {got}.")
    if labels.shape != (n,):
        raise ValueError(f"`labels` must be one a row, shape ({n},), but got the shape {tuple(labels.shape)}.")


def _keys(x: Tensor, keys: Tensor | None) -> Tensor:
    """The keys, checked; drawn from torch's global generator if there are none."""
    if keys is None:
        return torch.randint(-(2**63), 2**63 - 1, (len(x),)).to(x.device)
    if not isinstance(keys, Tensor) or keys.dtype != torch.int64:
        raise TypeError(f"`keys` must be an int64 tensor, but got {getattr(keys, 'dtype', type(keys).__name__)}.")
    if keys.shape != (len(x),):
        raise ValueError(f"`keys` must be one a row, shape ({len(x)},), but got the shape {tuple(keys.shape)}.")
    return keys.to(x.device)
