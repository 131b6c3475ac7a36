"""What a dataset calls in the place of its transforms while its raw items are read."""

from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from PIL import Image

from .images import check_size

__all__ = ["Untouched", "has_values_of", "only_moved"]


class Untouched:
    """Stands in for `transform(image)`, `transform(image, flag)`, `transforms(image, target)`, `transform(image=…)`.

    It keeps what it was given: where a transform is set and isn't called, what comes may be transformed already. And it
    notes whether there was a label with it, which such a transform may change.
    """

    def __init__(self, is_of: str = "an image") -> None:
        self.is_of, self.is_joint = is_of, False
        self.given: list[Any] = []

    def __call__(self, *args: Any, **fields: Any) -> Any:
        if args and self.is_of == "an image" and isinstance(args[0], str | Number):
            raise TypeError(f"its dataset calls a `transform` on {args[0]!r}, which is no image: name it otherwise")
        self.given += [*args[:1], *fields.values()]
        is_several = len(args) > 1 and not isinstance(args[1], bool)
        beside = [*args[1:], *fields.values(), *(_parts(args[0]) if args else [])]
        self.is_joint |= is_several or any(map(_is_label, beside))
        if not args:
            return {name: _fresh(value) for name, value in fields.items()}
        return tuple(map(_fresh, args)) if is_several else _fresh(args[0])


def _parts(sample: Any) -> list[Any]:
    """What a sample is made of."""
    if isinstance(sample, Mapping):
        return list(sample.values())
    return list(sample) if isinstance(sample, tuple | list) else []


def _is_label(value: Any) -> bool:
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim == 0
    return isinstance(value, Number) and not isinstance(value, bool)


def _fresh(value: Any) -> Any:
    """A copy, as a transform returns: its dataset may go on to change it in place."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, Image.Image):
        check_size(value)  # it may be a file that isn't decoded yet
    return value.copy() if hasattr(value, "copy") else value


def only_moved(image: Any, given: list[Any]) -> bool:
    """Whether the values of an array are some of those that stand-ins were given, as far as that can be told.

    What `__getitem__` does behind a transform is meant for what that makes, floats perhaps: bytes wrap around.
    """
    if isinstance(image, Image.Image) or not given:
        return True
    ours, *counts = map(_counts, [image, *given])
    if ours is None or any(count is None for count in counts):
        return True
    theirs = np.sum(counts, axis=0)
    times = -(-ours.sum() // max(theirs.sum(), 1))  # of a grey image, three channels perhaps
    return bool((ours <= theirs * times).all())


def has_values_of(image: Any, given: list[Any]) -> bool:
    """Whether an image has just the bytes of one that stand-ins were given, in any order, as far as can be told.

    Of a grey one, three channels perhaps.
    """
    ours, counts = _counts(image), [_counts(part) for one in given for part in (one, *_parts(one))]
    counts = [count for count in counts if count is not None]
    return ours is None or not counts or any((ours * count.sum() == count * ours.sum()).all() for count in counts)


def _counts(image: Any) -> np.ndarray | None:
    """How often an array or image of bytes holds each."""
    if isinstance(image, torch.Tensor):
        image = image.cpu().numpy() if image.dtype == torch.uint8 else None
    elif isinstance(image, Image.Image):
        image = np.asarray(image) if image.mode in ("L", "RGB") else None
    is_bytes = isinstance(image, np.ndarray) and image.dtype == np.uint8
    return np.bincount(image.ravel(), minlength=256) if is_bytes else None
