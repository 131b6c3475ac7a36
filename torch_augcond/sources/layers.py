"""A dataset and the datasets it holds: walked through, and copied without their transforms."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from numbers import Number
from typing import Any

from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import default_loader, pil_loader
from torchvision.datasets.vision import StandardTransform

from .images import open_image

__all__ = [
    "DEFAULT_LOADERS",
    "image_transforms_off",
    "joint_transforms",
    "layers",
    "transforms_all",
    "transforms_off",
]

DEFAULT_LOADERS = (default_loader, pil_loader)
_DICTS = (dict, OrderedDict, defaultdict)
_CONTAINERS = (list, tuple, *_DICTS)
_TRANSFORMS = frozenset(["transform", "target_transform", "transforms"])


def layers(dataset: Any) -> Iterator[Any]:
    """`dataset` and every dataset it wraps, outermost first, each once: also those in lists, tuples and dicts."""
    yield from _layers(dataset, set())


def _layers(dataset: Any, seen: set[int]) -> Iterator[Any]:
    if id(dataset) in seen:
        return
    seen.add(id(dataset))
    yield dataset
    if getattr(type(dataset), "__getitem__", None) is DatasetFolder.__getitem__:
        return  # it reads files only, and its lists may be long
    if isinstance(dataset, Subset | ConcatDataset):  # they hold anything that has items
        for inner in [dataset.dataset] if isinstance(dataset, Subset) else dataset.datasets:
            yield from _layers(inner, seen)
    for value in list(getattr(dataset, "__dict__", {}).values()):
        for inner in _datasets_in(value, seen):
            yield from _layers(inner, seen)


def _datasets_in(value: Any, seen: set[int]) -> Iterator[Any]:
    if _is_dataset(value):
        yield value
    elif type(value) in (list, tuple):
        yield from filter(_is_dataset, value)
    elif type(value) in _DICTS and id(value) not in seen:
        seen.add(id(value))
        for inner in list(value.values()):
            yield from _datasets_in(inner, seen)


def _is_dataset(value: Any) -> bool:
    """Whether it is torch's, or of a plain class with items and transforms: not a transform that holds several."""
    if isinstance(value, Dataset):
        return True
    own = getattr(value, "__dict__", None)
    if not own or _TRANSFORMS.isdisjoint(own) or callable(value):
        return False
    return hasattr(type(value), "__getitem__") and hasattr(type(value), "__len__")


class Untouched:
    """Stands in for `transform(image)`, `transform(image, flag)`, `transforms(image, target)`, `transform(image=…)`.

    It counts its calls: where a transform is set and isn't called, what comes may be transformed already.
    """

    def __init__(self, is_of: str = "an image") -> None:
        self.calls, self.is_of = 0, is_of

    def __call__(self, *args: Any, **fields: Any) -> Any:
        self.calls += 1
        if not args:
            return fields
        if self.is_of == "an image" and isinstance(args[0], str | Number):
            raise TypeError(f"its dataset calls a `transform` on {args[0]!r}, which is no image: name it otherwise")
        return args[0] if len(args) == 1 or isinstance(args[1], bool) else args


def transforms_off(dataset: Any) -> tuple[Any, Untouched]:
    """A copy of `dataset` (and of the datasets that `layers` finds in it) that returns what it reads.

    It shares what is large. Lists and dicts are its own, so that a cache which reading fills is not the user's. The
    second is what it calls in the place of transforms of images. Where nothing is to be switched off, it is `dataset`
    itself: a copy would share its open files, but not what it knows of them.
    """
    stand = Untouched()
    if not any(map(_is_changed, layers(dataset))):
        return dataset, stand
    return _copied(
        dataset, {"transform": stand, "target_transform": Untouched("a label"), "transforms": stand}, {}
    ), stand


def _is_changed(dataset: Any) -> bool:
    is_set = any(getattr(dataset, name, None) is not None for name in _TRANSFORMS)
    return is_set or any(getattr(dataset, "loader", None) is loader for loader in DEFAULT_LOADERS)


def image_transforms_off(dataset: Any) -> Any:
    """Such a copy that still transforms labels."""
    return _copied(dataset, {"transform": Untouched()}, {})


def transforms_all(dataset: Any) -> bool:
    """Whether every image of `dataset` goes through a transform: its own, or that of each dataset it holds."""
    own, *inner = (bool(getattr(x, "transform", None) or joint_transforms(x)) for x in layers(dataset))
    return own or (len(inner) > 0 and all(inner))


def joint_transforms(dataset: Any) -> Any:
    """Its `transforms` of image and label, unless that is only how torchvision holds the two that it was given."""
    joint = getattr(dataset, "transforms", None)
    return None if isinstance(joint, StandardTransform) else joint


def _copied(dataset: Any, stands: Mapping[str, Untouched], made: dict[int, Any]) -> Any:
    if id(dataset) in made:
        return made[id(dataset)]
    made[id(dataset)] = raw = _twin(dataset)
    if any(getattr(raw, "__dict__", {}).get("loader") is loader for loader in DEFAULT_LOADERS):
        raw.__dict__["loader"] = _careful_loader
    for name, value in list(getattr(raw, "__dict__", {}).items()):
        if _is_dataset(value) or type(value) in _CONTAINERS:
            raw.__dict__[name] = _own(value, stands, made)
    for name, stand in stands.items():
        if isinstance(getattr(type(dataset), name, None), property):  # what it sets may be the user's: it stays, and
            continue  # unless it is that of a dataset which is copied as well, it will be noticed that it isn't called
        if (value := getattr(raw, name, None)) is not None and not isinstance(value, Untouched):
            object.__setattr__(raw, name, _stand_in(value, stand))  # a frozen dataclass allows no other way
    joint = getattr(raw, "transforms", None)
    if "transforms" not in stands and isinstance(joint, StandardTransform):
        object.__setattr__(raw, "transforms", StandardTransform(None, joint.target_transform))
    return raw


def _twin(dataset: Any) -> Any:
    """A shallow copy. No code of the user's runs when it comes or goes: `__del__` would close what both hold."""
    kind = type(dataset)
    slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    if kind.__new__ is not object.__new__ or slots:
        return copy.copy(dataset)
    if hasattr(kind, "__del__"):
        kind = type(kind.__name__, (kind,), {"__del__": lambda self: None})
    twin = object.__new__(kind)
    twin.__dict__.update(dataset.__dict__)
    return twin


def _own(value: Any, stands: Mapping[str, Untouched], made: dict[int, Any]) -> Any:
    """`value` for a copy: containers are copied as far as `layers` looks into them."""
    if _is_dataset(value):
        return _copied(value, stands, made)
    if type(value) in (list, tuple):
        return type(value)(_copied(x, stands, made) if _is_dataset(x) else x for x in value)
    if type(value) not in _DICTS:
        return value
    if id(value) not in made:
        made[id(value)] = own = value.copy()
        for key, inner in value.items():
            own[key] = _own(inner, stands, made)
    return made[id(value)]


def _stand_in(value: Any, stand: Untouched) -> Any:
    """Of one transform, or of a list or dict of them."""
    if callable(value):
        return stand
    if isinstance(value, dict):
        return {key: _stand_in(inner, stand) for key, inner in value.items()}
    return [_stand_in(inner, stand) for inner in value] if isinstance(value, (list, tuple)) else value


def _careful_loader(path: str) -> Image.Image:
    """What torchvision's loaders return, of the files that `open_image` takes."""
    return open_image(path)[0].convert("RGB")
