"""The items of a dataset as it reads them, before any transform."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any

import numpy as np

from .layers import TRANSFORMS, layers, transforms_all, transforms_off
from .standins import Untouched, has_values_of, only_moved

__all__ = ["NotRaw", "RawItems"]

_CACHED = (
    "its dataset returned it without calling its transform, from a cache perhaps, so that the raw image can't be had. "
    "Wrap a dataset without the transform, and pass that as `transform=` (or `target_transform=`)"
)
_SHARED = (
    "its dataset keeps what it has read where its copies find it, so reading raw images would leave them there, as it "
    "did with those that were tried: make that cache anew. Wrap a dataset without the transform, and pass that as "
    "`transform=` (or `target_transform=`)"
)
_WRAPPED = (
    "its dataset changes the values of an image behind its `transform`, which is not called here, and those of bytes "
    "wrap around. Make such steps part of the `transform`"
)
_FAILS = (
    "its dataset fails behind its `transform`, which is not called here and returns what it is given ({}: {}). Make "
    "such steps part of the `transform`"
)
_DECIDES = (
    "its dataset decides what it holds when it is first read, and two copies of it decided otherwise. Read an item "
    "before you wrap it, or let it decide in `__init__`"
)
_HIDDEN = (
    "its dataset reads another one, of class {}, that isn't found among what it holds, so that the transforms of that "
    "can't be switched off. Let it hold that one in an attribute, or without transforms"
)
_KINDS = ("transform", "target_transform")


class NotRaw(ValueError):
    """An item can't be had before its transforms."""


class RawItems:
    """Reads `dataset` through a copy whose transforms are switched off; `is_same` if there is nothing to switch off.

    What may be transformed already is refused: an item that comes without a call of transforms which all go through.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._copy, self._stands = transforms_off(dataset)
        self.is_same = self._copy is dataset
        self._always = [name for name in _KINDS if transforms_all(dataset, name)]
        self._seen = bytearray(len(dataset))
        self._reads = 0
        self._why_not: str | None = None

    @property
    def is_joint(self) -> bool:
        """Whether a `transform` was given labels, too, which it may change."""
        return self._stands["transform"].is_joint

    def __getitem__(self, index: int) -> Any:
        """(image, label), or whatever it is.

        Raises:
            NotRaw: Why, and what to do.
        """
        if self._why_not:
            raise NotRaw(self._why_not)
        self._reads += 1
        is_probe = self._reads.bit_count() == 1  # the 1st, 2nd, 4th, 8th … time
        with _watched(layers(self._copy)) if is_probe else nullcontext() as hidden:
            item = _read(self._copy, self._stands, index)
        if self._was_missed(self._stands) and not self._seen[index]:
            raise NotRaw(_CACHED)
        self._seen[index] = True  # what the copy keeps of it is untransformed
        if is_probe and (why_not := _HIDDEN.format(hidden[0]) if hidden else self._compared(index, item)):
            self._why_not = why_not
            raise NotRaw(why_not)
        return item

    def _compared(self, index: int, item: Any) -> str | None:
        """Why this copy isn't to be believed, if a fresh one shows it."""
        if self.is_same:
            return None
        twin, stands = transforms_off(self._dataset)
        try:
            other = _read(twin, stands, index)
        except Exception:  # a database that is opened at the first read, say, and only once in a process
            return None
        if self._was_missed(stands):
            return _SHARED
        if _is_alike(item, other):
            return None
        again = [(item, self._copy), (other, twin)] * 15  # it may draw at random for each item, which is told otherwise
        return _DECIDES if all(_is_alike(one, copy[index]) for one, copy in again) else None

    def check(self, image: Any) -> None:
        """Refuses what was made of the image that was read last, by steps that are meant for a transformed one.

        Raises:
            NotRaw: What to do.
        """
        if not only_moved(image, self._stands["transform"].given + self._stands["transforms"].given):
            raise NotRaw(_WRAPPED)

    def is_changed_behind(self, image: Any) -> bool:
        """Whether the image that was read last isn't what stood in for its `transform` returned."""
        return not has_values_of(image, self._stands["transform"].given + self._stands["transforms"].given)

    def _was_missed(self, stands: Mapping[str, Untouched]) -> bool:
        """Whether a transform was not called that always is."""
        return not all(stands[name].given or stands["transforms"].given for name in self._always)


def _read(dataset: Any, stands: Mapping[str, Untouched], index: int) -> Any:
    """An item; the stand-ins then hold what they were given for it."""
    for stand in stands.values():
        stand.given = []
    try:
        return dataset[index]
    except (AttributeError, KeyError, TypeError) as error:
        if stands["transform"].given:
            raise TypeError(_FAILS.format(type(error).__name__, error)) from error
        raise


@contextmanager
def _watched(known: Iterable[Any]) -> Iterator[list[str]]:
    """Names the classes of datasets with transforms, not among the ``known``, whose items are read by this thread."""
    ids, found = set(map(id, known)), []

    def look(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_name == "__getitem__" and code.co_argcount:
            own = frame.f_locals.get(code.co_varnames[0])
            held = getattr(own, "__dict__", {})
            if id(own) not in ids and any(held.get(name) is not None for name in TRANSFORMS):
                found.append(type(own).__name__)

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield found
    finally:
        sys.setprofile(before)


def _is_alike(item: Any, other: Any) -> bool:
    """Whether two items have the same image, as far as that can be told."""
    try:
        return np.array_equal(np.asarray(item[0]), np.asarray(other[0]))
    except Exception:  # no images
        return True
