"""A dataset and the datasets it holds: walked through, and copied without their transforms."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets.vision import StandardTransform

from .folders import is_plain
from .loaders import careful_loader, is_default
from .standins import Untouched

__all__ = [
    "TRANSFORMS",
    "attributes",
    "image_transforms_off",
    "joint_transforms",
    "layers",
    "own_copy",
    "transforms_all",
    "transforms_off",
]

_DICTS = (dict, OrderedDict, defaultdict)
TRANSFORMS = frozenset(["transform", "target_transform", "transforms"])
_MANY = 1000  # a longer list is one of samples: what its items hold is looked into if the first holds a dataset


def layers(dataset: Any) -> Iterator[Any]:
    """`dataset` and every dataset it wraps, outermost first, each once: also those in lists, dicts and namespaces."""
    yield from _layers(dataset, set())


def _layers(dataset: Any, seen: set[int]) -> Iterator[Any]:
    if id(dataset) in seen:
        return
    seen.add(id(dataset))
    yield dataset
    for inner in _inner(dataset):
        yield from _layers(inner, seen)


def _inner(dataset: Any) -> list[Any]:
    """The datasets that it holds itself."""
    if is_plain(dataset):
        return []  # it reads files only, and its lists may be long
    parts = []
    if isinstance(dataset, Subset | ConcatDataset):  # they hold anything that has items
        parts = [dataset.dataset] if isinstance(dataset, Subset) else dataset.datasets
    return [*parts, *filter(_is_dataset, _values(attributes(dataset)))]


def attributes(holder: Any) -> dict[str, Any]:
    """What an object holds itself, in its `__dict__` or in slots."""
    slots = [name for kind in type(holder).__mro__ for name in _slots(kind)]
    return {name: getattr(holder, name) for name in slots if hasattr(holder, name)} | getattr(holder, "__dict__", {})


def _slots(kind: type) -> list[str]:
    names = vars(kind).get("__slots__", ())
    names = {names} if isinstance(names, str) else {*names} - {"__dict__", "__weakref__"}
    return [f"_{kind.__name__.lstrip('_')}{n}" if n.startswith("__") and not n.endswith("__") else n for n in names]


def _values(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """What `value` holds if it is a container, in containers that it holds as well; else itself."""
    seen = set() if seen is None else seen
    if (inner := _held(value)) is None:
        yield value
    elif id(value) not in seen:
        seen.add(id(value))
        is_deep = _is_deep(inner)
        for x in inner:
            yield from _values(x, seen) if is_deep else (x,)


def _is_deep(inner: list[Any]) -> bool:
    """Whether the items of a container may hold datasets: of many, (dataset, index) perhaps."""
    if len(inner) <= _MANY:
        return True
    return any(isinstance(x, Dataset) or not TRANSFORMS.isdisjoint(attributes(x)) for x in _held(inner[0]) or ())


def _held(value: Any) -> list[Any] | None:
    """The items of a container of a kind that is known to be no more than one, and can be copied with others."""
    if type(value) in (list, tuple) or _is_named_tuple(value):
        return list(value)
    if type(value) in _DICTS:
        return list(value.values())
    return list(vars(value).values()) if type(value) is SimpleNamespace else None


def _is_named_tuple(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(type(value), "_make")


def _is_dataset(value: Any, above: frozenset[int] = frozenset()) -> bool:
    """Whether it is torch's, or of a plain class with items, and transforms or datasets: not a transform of several."""
    if isinstance(value, Dataset):
        return True
    if not _has_items(type(value)) or callable(value) or _held(value) is not None or id(value) in above:
        return False
    own, above = attributes(value), above | {id(value)}
    return not TRANSFORMS.isdisjoint(own) or any(_is_dataset(inner, above) for inner in _values(own))


@cache
def _has_items(kind: type) -> bool:
    return kind.__module__ != "builtins" and hasattr(kind, "__getitem__") and hasattr(kind, "__len__")


def transforms_off(dataset: Any) -> tuple[Any, dict[str, Untouched]]:
    """A copy of `dataset` (and of the datasets that `layers` finds in it) that returns what it reads.

    It shares what is large. Lists and dicts are its own, so that a cache which reading fills is not the user's. The
    second is what it calls in the place of transforms. Where nothing is to be switched off, it is `dataset` itself: a
    copy would share its open files, but not what it knows of them.
    """
    stands = {name: Untouched("a label" if name == "target_transform" else "an image") for name in sorted(TRANSFORMS)}
    is_changed = any(map(_is_changed, layers(dataset)))
    return _copied(dataset, stands, {}) if is_changed else dataset, stands


def _is_changed(dataset: Any) -> bool:
    is_set = any(getattr(dataset, name, None) is not None for name in TRANSFORMS)
    return is_set or is_default(getattr(dataset, "loader", None))


def own_copy(dataset: Any) -> Any:
    """Such a copy with all transforms."""
    return _copied(dataset, {}, {})


def image_transforms_off(dataset: Any) -> tuple[Any, Untouched]:
    """Such a copy that still transforms labels."""
    stand = Untouched()
    return _copied(dataset, {"transform": stand}, {}), stand


def transforms_all(dataset: Any, name: str, above: frozenset[int] = frozenset()) -> bool:
    """Whether every item of `dataset` goes through a transform of a name: its own, or that of each dataset it holds."""
    if getattr(dataset, name, None) or joint_transforms(dataset):
        return True
    above |= {id(dataset)}
    inner = [x for x in _inner(dataset) if id(x) not in above]
    return len(inner) > 0 and all(transforms_all(x, name, above) for x in inner)


def joint_transforms(dataset: Any) -> Any:
    """Its `transforms` of image and label, unless that is only how torchvision holds the two that it was given."""
    joint = getattr(dataset, "transforms", None)
    return None if isinstance(joint, StandardTransform) else joint


def _copied(dataset: Any, stands: Mapping[str, Untouched], made: dict[int, Any]) -> Any:
    if id(dataset) in made:
        return made[id(dataset)]
    made[id(dataset)] = raw = _twin(dataset)
    for name, value in attributes(raw).items():
        own = careful_loader if name == "loader" and is_default(value) else _own(value, stands, made)
        if own is not value:
            _put(raw, name, own)
    for name, stand in stands.items():
        if isinstance(getattr(type(dataset), name, None), property):
            # Setting it could change the user's own. Mostly it is that of a dataset in this one, which is copied as
            # well; else it will be noticed that its stand-in isn't called.
            continue
        if (value := getattr(raw, name, None)) is not None and not isinstance(value, Untouched):
            object.__setattr__(raw, name, _stand_in(value, stand))  # a frozen dataclass allows no other way
    joint = getattr(raw, "transforms", None)
    if stands and "transforms" not in stands and isinstance(joint, StandardTransform):
        object.__setattr__(raw, "transforms", StandardTransform(None, joint.target_transform))
    return raw


def _put(raw: Any, name: str, value: Any) -> None:
    """Where `attributes` finds it, whatever its class does when it is set."""
    if name in getattr(raw, "__dict__", {}):
        raw.__dict__[name] = value
    else:
        object.__setattr__(raw, name, value)


def _twin(dataset: Any) -> Any:
    """A shallow copy. No code of the user's runs when it comes or goes: `__del__` would close what both hold."""
    kind = type(dataset)
    if hasattr(kind, "__del__"):
        kind = type(kind.__name__, (kind,), {"__del__": lambda self: None})
    try:
        twin = object.__new__(kind)
    except TypeError:  # a list or tuple, say
        return copy.copy(dataset)
    if own := getattr(dataset, "__dict__", {}):
        twin.__dict__.update(own)
    for name in attributes(dataset).keys() - own.keys():
        _put(twin, name, getattr(dataset, name))
    return twin


def _own(value: Any, stands: Mapping[str, Untouched], made: dict[int, Any]) -> Any:
    """`value` for a copy: containers are copied as far as `layers` looks into them."""
    if _is_dataset(value):
        return _copied(value, stands, made)
    if id(value) in made or (inner := _held(value)) is None:
        return made.get(id(value), value)
    if not isinstance(value, tuple):
        made[id(value)] = copy.copy(value)  # before it is filled: it may hold itself
    is_deep = _is_deep(inner)
    copies = [_own(x, stands, made) if is_deep or _is_dataset(x) else x for x in inner]
    if isinstance(value, tuple):
        return getattr(type(value), "_make", tuple)(copies)
    own = made[id(value)]
    if isinstance(value, list):
        own[:] = copies
    else:
        fields = vars(own) if isinstance(value, SimpleNamespace) else own
        fields.update(zip(value if fields is own else vars(value), copies, strict=True))
    return own


def _stand_in(value: Any, stand: Untouched) -> Any:
    """Of one transform, or of a list or dict of them."""
    if callable(value):
        return stand
    if isinstance(value, dict):
        return {key: _stand_in(inner, stand) for key, inner in value.items()}
    return [_stand_in(inner, stand) for inner in value] if isinstance(value, (list, tuple)) else value
