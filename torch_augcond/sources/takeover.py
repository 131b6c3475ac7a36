"""The transforms of a dataset, which its synthetic images take over: found, and compared with what its items show."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from numbers import Number
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..checks import brief, warn
from . import Sources
from .folders import Progress
from .labels import warn_if_exchanged
from .layers import attributes, joint_transforms, layers, own_copy, transforms_off
from .readers import is_pure
from .trials import drawn_alike

__all__ = ["Takeover", "transform_of"]

_SCRAP = 0.3  # of the width that is seen of a real image
_JOINT = "a joint `transforms`"


def transform_of(dataset: Any, name: str) -> Any:
    """Its own `transform` or `target_transform`; some call that of images `transforms`."""
    own = getattr(dataset, name, None)
    own = None if own is False else own
    return joint_transforms(dataset) if own is None and name == "transform" else own


class Takeover:
    """What is taken over of the transforms of a dataset and of those that it wraps.

    Args:
        sources: its raw images and labels.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    @property
    def transform(self) -> Callable | None:
        """That of images, as it is now: some libraries set it late."""
        return self._transform("transform")

    @property
    def target_transform(self) -> Callable | None:
        """That of labels, as it is now."""
        return self._transform("target_transform")

    def _transform(self, name: str) -> Callable | None:
        found = _transforms(self._sources.dataset, name)
        in_each = [_transforms(leaf.dataset, name) for leaf, _ in self._sources.by_leaf()]
        if all(len(own) < 2 for own in in_each) and all(_is_alike(t, found[0]) for t in found):
            found = found[:1]  # which no image goes through twice
        if why := self._why_not(name, found):
            both = "transform=` and `target_transform" if why == _JOINT else name
            raise ValueError(f"`{name}` can't be taken over from a dataset with {why}. Pass `{both}=` explicitly.")
        return found[0] if found else None

    def _why_not(self, name: str, found: list[Any]) -> str | None:
        """What makes it ambiguous which of these transforms goes on all images."""
        held = list(layers(self._sources.dataset))
        if any(map(joint_transforms, held)) and self._takes_labels():
            return _JOINT
        if len(found) > 1:
            return f"{len(found)} different ones in its parts"
        if found and not callable(found[0]):
            return f"a {type(found[0]).__name__} in its place"
        if any(getattr(layer, name, None) is not None and is_pure(layer) for layer in held):
            return "one on a Subset or ConcatDataset, which never applies it"
        if found:
            parts = [leaf.dataset for leaf, rows in self._sources.by_leaf() if len(rows)]
            if not all(any(transform_of(x, name) is not None for x in layers(part)) for part in parts):
                return "one in only some of its parts"
        return None

    def _takes_labels(self) -> bool:
        """Whether a `transforms` may be given labels, too: not, if it is called with an image alone."""
        for leaf, rows in self._sources.by_leaf():
            if len(rows) and any(map(joint_transforms, layers(leaf.dataset))):
                whole, stands = transforms_off(leaf.dataset)
                with suppress(Exception):  # no image, say
                    whole[int(self._sources.index[rows[0]])]
                if stands["transforms"].is_joint or not stands["transforms"].given:
                    return True
        return any(joint_transforms(layer) for layer in layers(self._sources.dataset) if is_pure(layer))

    def check_transform(self) -> None:
        """That `transform` can be taken over; warns if items show that it isn't all that changes an image.

        Raises:
            ValueError: It is ambiguous, or was set so late that the dataset has kept images without it.
        """
        change = self.transform or (lambda image: image)
        for leaf, rows in self._sources.by_leaf():
            if (i := leaf.changed_otherwise(self._sources.index[rows], change)) is not None:
                warn(
                    f"item {i} of the dataset has another image than its `transform` makes of the raw one: synthetic "
                    "images won't be changed as the real ones are. Pass all that changes them as `transform=`."
                )

    def warn_if_unlike(self, size: int, transform: Callable | None, target_transform: Callable | None) -> None:
        """Warns where one batch can't hold items of the dataset and synthetic ones, or shows scraps of these.

        As far as two items show; synthetic images have ``size`` pixels a side.
        """
        label, whole = int(self._sources.labels[0]), own_copy(self._sources.dataset)
        try:
            real, other = (drawn_alike(lambda i=i: whole[i]) for i in (0, len(self._sources) - 1))
            image = self._sources.image(0)
        except Exception:  # which is told when its turn comes
            return
        pairs = (transform, image.resize((size, size))), (target_transform, label)
        try:
            made = drawn_alike(lambda: [change(x) if change else x for change, x in pairs])
            seen = _share_seen(transform, image.size, size) if transform else 1.0
        except Exception as error:
            warn(
                f"`transform` or `target_transform` fails for a synthetic image, PIL's of {size} pixels, and its int "
                f"label ({type(error).__name__}: {brief(str(error))}). Pass ones that take these."
            )
            return
        kinds = [list(map(_kind_of, item)) for item in (real, made)]
        shapes = [tuple(getattr(item[0], "shape", ())) for item in (real, other, made)]
        if kinds[0] != kinds[1]:
            if len(kinds[0]) != 2:
                remedy = "items be (image, label)"
            elif kinds[0][0] != kinds[1][0]:
                remedy = "`transform` make them alike: v2.ToImage() for tensors, v2.Grayscale(3), say"
            else:
                remedy = "`target_transform` make labels alike: torch.tensor, say"
            both = "items of the dataset ({}) and synthetic ones ({})".format(*map(", ".join, kinds))
            warn(f"a batch can't hold both {both}. Let {remedy}.")
        elif len(self._sources) > 1 and shapes[0] == shapes[1] != shapes[2]:
            warn(
                f"a batch can't hold both items of the dataset, of shape {shapes[0]}, and synthetic ones, of "
                f"{shapes[2]}. Let `transform` bring them to one size: v2.Resize or v2.RandomResizedCrop, say."
            )
        elif seen < _SCRAP:
            warn(
                f"`transform` shows {seen:.0%} as much of a synthetic image, of {size} pixels, as of a real one, of "
                f"{image.width}: it cuts without resizing. Let it begin with v2.Resize, say."
            )

    @property
    def is_joint(self) -> bool:
        """Whether a `transform` is given labels, too, which it may change; a few items are read."""
        return any(leaf.is_joint(self._sources.index[rows]) for leaf, rows in self._sources.by_leaf())

    def check_target_transform(self, progress: Progress = iter) -> None:
        """That `target_transform` makes of the labels here what `dataset` itself returns, item by item.

        Raises:
            ValueError: It doesn't: a wrapper has labels of its own, say.
        """
        change = self.target_transform
        joint = [getattr(layer, "transforms", None) for layer in layers(self._sources.dataset)]
        is_kept = any(getattr(both, "target_transform", None) for both in joint)  # by torchvision's, once it is None
        for leaf, rows in self._sources.by_leaf():
            if not (change or is_kept or leaf.is_joint(self._sources.index[rows])):
                continue
            labels = dict(zip(self._sources.index[rows].tolist(), self._sources.labels[rows].tolist(), strict=True))
            if label := leaf.another_label(labels, change or (lambda label: label), progress):
                raise ValueError(
                    f"`target_transform` can't be taken over from a dataset whose {label}. "
                    "Pass `target_transform=` explicitly: it is given the label as read without any."
                )
            if change and leaf.by_place:
                warn_if_exchanged(change, self._sources.class_of, labels.values())


def _transforms(dataset: Any, name: str) -> list[Any]:
    """Those of it and of what it wraps, each once."""
    held = [transform_of(layer, name) for layer in layers(dataset)]
    held += [joint_transforms(layer) for layer in layers(dataset) if name == "transform"]  # one may have both
    return list({id(t): t for t in held if t is not None}.values())


def _is_alike(one: Any, other: Any) -> bool:
    """Whether two transforms are one, or of one class and hold the same, as pickle sees it: made by the same call."""
    if one is other or type(one) is not type(other) or isinstance(one, FunctionType | BuiltinFunctionType | type):
        return one is other
    if isinstance(one, torch.Tensor | np.ndarray):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and bool((one == other).all())
    if type(one) in (int, float, complex, str, bytes):
        return one == other
    try:
        ours, theirs = map(_held, (one, other))
        return len(ours) == len(theirs) and all(map(_is_alike, ours, theirs))
    except Exception:  # it can't be pickled, or holds itself
        return False


def _held(thing: Any) -> list[Any]:
    """What makes it again: its class, attributes, slots, items and, of a subclass of int, say, its value."""
    if type(thing) is tuple:
        return list(thing)
    parts = [tuple(part) if isinstance(part, Iterator) else part for part in thing.__reduce_ex__(2)]
    leaves_out = getattr(type(thing), "__getstate__", None) is not getattr(object, "__getstate__", None)
    return [*parts, attributes(thing)] if leaves_out else parts


def _kind_of(value: Any) -> str:
    """What must be alike in a batch, but for the size of an image."""
    if isinstance(value, torch.Tensor):
        what = f"{min(value.shape[0], value.shape[-1])} channels" if value.ndim == 3 else f"{value.ndim} dimensions"
        return f"a {value.dtype} tensor of {what}"
    if isinstance(value, Image.Image):
        return "an image of PIL"
    return "a number" if isinstance(value, Number) else type(value).__name__


def _share_seen(change: Callable[[Any], Any], real: tuple[int, int], size: int) -> float:
    """How much of the width of a square image a transform shows, beside what it shows of a real one: the most of three.

    Both are pictures that get brighter from left to right.
    """

    def shown(width: int, height: int, seed: int) -> float:
        ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
        return float(np.ptp(np.asarray(drawn_alike(lambda: change(Image.fromarray(ramp).convert("RGB")), seed))))

    return max(shown(size, size, seed) / max(shown(*real, seed), 1e-9) for seed in range(3))
