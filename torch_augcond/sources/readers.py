"""The readers under a dataset: what lies beneath Subsets, ConcatDatasets and transforms, and its labels and names."""

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import default_loader, pil_loader

from ..checks import as_indices, listed
from .images import DigestCache, as_pil, check_header, check_regular, file_digest, hash_bytes, open_image, to_rgb

__all__ = ["Progress", "class_names", "flatten", "int_labels", "layers", "unique"]

_DEFAULT_LOADERS = (default_loader, pil_loader)
_PLAIN = (str, bool, float, os.PathLike)  # no ints: they may count items
Progress = Callable[[Iterable[int]], Iterable[int]]


def _untouched(*args: Any, **fields: Any) -> Any:
    """Stands in for a user's `transform(image)`, `transforms(image, target)` or `transform(image=image)`."""
    return fields or (args[0] if len(args) == 1 else args)


def _careful_loader(path: str) -> Image.Image:
    """What torchvision's loaders return, of the files that `open_image` takes."""
    return open_image(path)[0].convert("RGB")


def _without_transforms(dataset: Any) -> Any:
    """A shallow copy of `dataset` (and of the datasets it holds) that returns what it reads."""
    raw = copy.copy(dataset)
    if any(getattr(raw, "loader", None) is loader for loader in _DEFAULT_LOADERS):
        raw.loader = _careful_loader
    for name in ("transform", "target_transform", "transforms"):
        if getattr(raw, name, None) is not None:
            setattr(raw, name, _untouched)
    for name, value in list(getattr(raw, "__dict__", {}).items()):
        if isinstance(value, Dataset):
            setattr(raw, name, _without_transforms(value))
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Dataset):
            setattr(raw, name, [_without_transforms(inner) for inner in value])
    return raw


class _Folder:
    """An ImageFolder or DatasetFolder: files, labels without decoding, and the user's own loader."""

    def __init__(self, dataset: DatasetFolder) -> None:
        self.dataset = dataset

    def path(self, index: int) -> str | None:
        return os.fspath(self.dataset.samples[index][0])

    def read(self, index: int) -> tuple[Any, str | None]:
        """The image and its `digest`: of the very bytes that were decoded if that is up to us, else looked at after."""
        path = self.dataset.samples[index][0]
        if self.dataset.loader in _DEFAULT_LOADERS:
            return open_image(path)  # as torchvision's, but without its clipping of 16-bit images
        check_regular(path)
        check_header(path)
        return self.dataset.loader(path), self.digest(index)

    def digest(self, index: int, cache: DigestCache | None = None) -> str | None:
        """Of a file's bytes, and of a user's own loader by its name: another one may see another image in them."""
        path, loader = self.dataset.samples[index][0], self.dataset.loader
        if not os.path.isfile(path):
            return None
        digest = file_digest(path, cache)
        if loader in _DEFAULT_LOADERS:
            return digest
        # Without its module, which is another one where a script is imported and not run.
        return hash_bytes(f"{digest} {getattr(loader, '__qualname__', type(loader).__qualname__)}".encode())

    def labels(self, indices: np.ndarray, progress: Progress) -> list[Any]:
        return [self.dataset.samples[i][1] for i in indices.tolist()]

    def identity(self) -> str:
        return f"{type(self.dataset).__qualname__}:{os.path.abspath(self.dataset.root)}"


class NotAPair(TypeError):
    """An item of a dataset is something else than an image and its label."""


class _Items:
    """Any other dataset, read item by item through a copy whose transforms are switched off."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.raw = _without_transforms(dataset)

    def path(self, index: int) -> str | None:
        return None

    def _item(self, index: int) -> tuple[Any, Any]:
        item = self.raw[index]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise NotAPair(f"`dataset[{index}]` must be (image, label), but got {type(item).__name__}.")
        return item[0], item[1]

    def read(self, index: int) -> tuple[Any, None]:
        return self._item(index)[0], None

    def digest(self, index: int, cache: DigestCache | None = None) -> None:
        return None

    def _label(self, index: int) -> Any:
        try:
            return self._item(index)[1]
        except NotAPair:
            raise
        except Exception as error:
            return error

    def labels(self, indices: np.ndarray, progress: Progress) -> list[Any] | np.ndarray:
        """From `.targets` and its like where they agree with the first, middle and last item; else by reading all."""
        probes = {int(indices[k]) for k in (0, len(indices) // 2, -1)} if len(indices) else set()
        seen = {i: int(label) for i in probes if is_int(label := self._label(i))}
        for name in ("targets", "labels", "_labels"):
            values = getattr(self.dataset, name, None)
            values = values.tolist() if hasattr(values, "tolist") else values
            if not isinstance(values, (list, tuple)) or len(values) != len(self.dataset):
                continue
            if all(is_int(values[i]) and int(values[i]) == label for i, label in seen.items()):
                return [values[i] for i in indices.tolist()]
        return [self._label(i) for i in progress(indices.tolist())]

    def identity(self) -> str:
        """What stays when items are added: the type, plain attributes (a root, a split), names and the first item."""
        root = getattr(self.dataset, "root", None)
        place = os.path.abspath(root) if isinstance(root, (str, os.PathLike)) else ""
        given = getattr(self.dataset, "__dict__", {}) | {"root": place}
        plain = {name: str(given[name]) for name in sorted(given) if isinstance(given[name], _PLAIN)}
        first = f"{self._first()} {self._label(0)!r} {getattr(self.dataset, 'classes', None)!r}"
        return f"{type(self.dataset).__qualname__}:{plain}:{hash_bytes(first.encode('utf-8', 'surrogatepass'))}"

    def _first(self) -> str:
        try:
            image = to_rgb(as_pil(self.read(0)[0], "dataset[0]"))
        except Exception:  # it's reported when its turn comes
            return ""
        return f"{image.size} {hash_bytes(image.tobytes())}"


def flatten(dataset: Any) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """The leaves of Subsets and ConcatDatasets, and for each item its leaf and its index there.

    A subclass with its own `__getitem__` (one that transforms, say) is a leaf: only it knows what it returns.
    """
    method = getattr(type(dataset), "__getitem__", None)
    if method is Subset.__getitem__:
        leaves, part, index = flatten(dataset.dataset)
        chosen = np.array(as_indices(dataset.indices, len(part)), dtype=np.int64)
        return leaves, part[chosen], index[chosen]
    if method is ConcatDataset.__getitem__:
        parts = [flatten(d) for d in dataset.datasets]
        starts = np.cumsum([0] + [len(leaves) for leaves, _, _ in parts])
        shifted = [part + start for (_, part, _), start in zip(parts, starts, strict=False)]
        leaves = list(chain.from_iterable(leaves for leaves, _, _ in parts))
        return leaves, np.concatenate(shifted), np.concatenate([index for _, _, index in parts])
    leaf = _Folder(dataset) if method is DatasetFolder.__getitem__ else _Items(dataset)
    return [leaf], np.zeros(len(dataset), np.int64), np.arange(len(dataset))


def layers(dataset: Any) -> Iterator[Any]:
    """`dataset` and every dataset it wraps, outermost first."""
    yield dataset
    held = getattr(dataset, "__dict__", {}).values()
    for inner in dataset.datasets if isinstance(dataset, ConcatDataset) else held:
        if isinstance(inner, Dataset):
            yield from layers(inner)


def is_int(value: Any) -> bool:
    """An int of Python, numpy or torch (0-d), but no bool."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def int_labels(values: list[Any], names: Callable[[int], str]) -> np.ndarray:
    """`values` as int64, or one error that lists the offenders."""
    wrong = [f"{value!r} ({type(value).__name__}) at {names(i)}" for i, value in enumerate(values) if not is_int(value)]
    if wrong:
        raise TypeError(
            f"labels must be ints, but got {listed(wrong, str)}. Map them to ints inside the dataset "
            "(its `target_transform` is applied later), or give it a `targets` list."
        )
    labels = [int(value) for value in values]
    wrong = [f"{label} at {names(i)}" for i, label in enumerate(labels) if not 0 <= label < 2**63]
    if wrong:
        raise ValueError(
            f"labels must be 0 or more and fit int64, but got {listed(wrong, str)}. "
            "Leave unlabelled images out with torch.utils.data.Subset."
        )
    return np.array(labels, dtype=np.int64)


def class_names(dataset: Any, present: Sequence[int]) -> dict[int, str]:
    """{label: name} from `class_to_idx` if it is one-to-one, else from `classes`, else the labels themselves."""
    to_idx, classes = getattr(dataset, "class_to_idx", None), getattr(dataset, "classes", None)
    options = [{int(label): name for name, label in to_idx.items()}] if isinstance(to_idx, dict) else []
    if options and len(options[0]) < len(to_idx):  # ImageNet's has every synonym
        options = []
    if isinstance(classes, (list, tuple)):
        options.append(dict(enumerate(classes)))
    for names in options:
        if names.keys() >= set(present):
            return unique({k: ", ".join(v) if isinstance(v, tuple) else str(v) for k, v in sorted(names.items())})
    if options:
        missing = listed(sorted(set(present) - options[0].keys()))
        raise ValueError(f"`classes` must name every label, but has no name for {missing}. Correct it or remove it.")
    return {label: str(label) for label in present}


def unique(names: dict[int, str]) -> dict[int, str]:
    """ImageNet has two cranes: names that occur twice get their label behind them."""
    count = Counter(names.values())
    return {k: name if count[name] == 1 else f"{name} ({k})" for k, name in names.items()}
