"""The readers under a dataset: what lies beneath Subsets, ConcatDatasets and transforms, and its labels and names."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..checks import as_indices, brief, listed
from .images import DigestCache, as_pil, check_header, check_regular, file_digest, hash_bytes, open_image, to_rgb
from .layers import DEFAULT_LOADERS, image_transforms_off, transforms_off
from .loaders import loader_name

__all__ = ["Progress", "class_names", "flatten", "int_labels", "unique"]

_PLAIN = (str, bool, float, os.PathLike)  # no ints: they may count items
_TARGETS = ("targets", "labels", "_labels")
Progress = Callable[[Iterable[int]], Iterable[int]]


class _Folder:
    """An ImageFolder or DatasetFolder: files, labels without decoding, and the user's own loader."""

    contradicted: Mapping[int, str] = MappingProxyType({})  # its labels are those of its items
    raw: Any = None  # it is read without a copy

    def __init__(self, dataset: DatasetFolder) -> None:
        self.dataset = dataset
        self._named: tuple[Any, str] = None, ""

    def path(self, index: int) -> str | None:
        return os.fspath(self.dataset.samples[index][0])

    def read(self, index: int) -> tuple[Any, str | None]:
        """The image and its `digest`: of the very bytes that were decoded if that is up to us, else looked at after."""
        path = self.dataset.samples[index][0]
        if self.dataset.loader in DEFAULT_LOADERS:
            return open_image(path)  # as torchvision's, but without its clipping of 16-bit images
        check_regular(path)
        check_header(path)
        return self.dataset.loader(path), self.digest(index)

    def digest(self, index: int, cache: DigestCache | None = None) -> str | None:
        """Of a file's bytes, and of a user's own loader by `loader_name`: another one may see another image in them."""
        path, loader = self.dataset.samples[index][0], self.dataset.loader
        if not os.path.isfile(path):
            return None
        digest = file_digest(path, cache)
        if loader in DEFAULT_LOADERS:
            return digest
        return hash_bytes(f"{digest} {self._loader_name()}".encode("utf-8", "surrogatepass"))

    def _loader_name(self) -> str:
        """The loader's, as it was when first asked for: it may count or open things."""
        loader = self.dataset.loader
        if self._named[0] is not loader:
            self._named = loader, loader_name(loader)
        return self._named[1]

    def another_label(self, indices: np.ndarray, change: Callable[[int], Any]) -> None:
        return None  # torchvision's own `__getitem__`

    def labels(self, indices: np.ndarray, progress: Progress) -> list[Any]:
        return [self.dataset.samples[i][1] for i in indices.tolist()]

    def identity(self) -> str:
        """Where it lies; besides, what chose and reads its files if that is no plain scan."""
        dataset, root = self.dataset, os.path.abspath(self.dataset.root)
        text = f"{type(dataset).__qualname__}:{root}"
        if dataset.loader not in DEFAULT_LOADERS:
            text += f" {self._loader_name()}"
        if dataset.extensions is not None and tuple(dataset.extensions) != IMG_EXTENSIONS:
            text += f" {sorted(dataset.extensions)}"
        if self._is_scan():
            return text
        above = os.fspath(dataset.root)
        chosen = sorted((os.fspath(path).removeprefix(above), int(label)) for path, label in dataset.samples)
        return f"{text} {hash_bytes(repr(chosen).encode('utf-8', 'surrogatepass'))}"

    def _is_scan(self) -> bool:
        """Whether its samples are those found in its folder by extension, as far as can be told."""
        dataset, samples = self.dataset, self.dataset.samples
        lists = [getattr(dataset, name, samples) for name in ("imgs", "targets")]
        return dataset.extensions is not None and lists[0] is samples and len(lists[1]) == len(samples)


class NotAPair(TypeError):
    """An item of a dataset is something else than an image and its label."""


class _Items:
    """Any other dataset, read item by item through a copy whose transforms are switched off."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.raw = transforms_off(dataset)
        self.believed: tuple[str, Sequence[Any]] | None = None  # `targets`, say, and what it holds
        self.contradicted: dict[int, str] = {}

    def path(self, index: int) -> str | None:
        return None

    def _item(self, index: int) -> tuple[Any, Any]:
        item = self.raw[index]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise NotAPair(f"`dataset[{index}]` must be (image, label), but got {type(item).__name__}.")
        return item[0], item[1]

    def read(self, index: int) -> tuple[Any, None]:
        """The image. Its label is compared with the one that was taken for it, and noted if it is another."""
        image, label = self._item(index)
        if self.believed and is_int(label) and int(label) != int(self.believed[1][index]):
            self.contradicted[index] = f"`{self.believed[0]}` says {self.believed[1][index]} and the item {int(label)}"
        return image, None

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
        seen = {i: int(label) for i in _probes(indices) if is_int(label := self._label(i))}
        for name in _TARGETS:
            values = getattr(self.dataset, name, None)
            values = values.tolist() if hasattr(values, "tolist") else values
            if not isinstance(values, (list, tuple)) or len(values) != len(self.dataset):
                continue
            if all(is_int(values[i]) and int(values[i]) == label for i, label in seen.items()):
                self.believed = name, values
                return [values[i] for i in indices.tolist()]
        return [self._label(i) for i in progress(indices.tolist())]

    def another_label(self, indices: np.ndarray, change: Callable[[int], Any]) -> str | None:
        """Where an item's label isn't what `change` makes of the one that is read without transforms."""
        whole = image_transforms_off(self.dataset)
        for i in _probes(indices):
            try:
                label, changed = whole[i][1], change(self._item(i)[1])
                same = bool(np.all(np.asarray(label) == np.asarray(changed)))
            except Exception:  # no image, say: nothing is known of it
                continue
            if not same:
                return f"item {i} has the label {label!r}, of which it would make {changed!r}"
        return None

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


def _probes(indices: np.ndarray) -> set[int]:
    return {int(indices[k]) for k in (0, len(indices) // 2, -1)} if len(indices) else set()


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


def is_int(value: Any) -> bool:
    """An int of Python, numpy or torch (0-d), but no bool."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def int_labels(values: list[Any], names: Callable[[int], str]) -> np.ndarray:
    """`values` (an error stands for an item that raised it) as int64, or one error that lists the offenders."""
    if raised := [f"{names(i)} ({type(v).__name__}: {v})" for i, v in enumerate(values) if isinstance(v, Exception)]:
        raise ValueError(
            f"every item must be readable for its label, but reading failed for {listed(raised, str)}. Mend these, "
            "leave them out with torch.utils.data.Subset, or give the dataset a `targets` list."
        )
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
    options = [_by_label(to_idx)] if isinstance(to_idx, dict) else []
    if options and len(options[0]) < len(to_idx):  # ImageNet's has every synonym
        options = []
    classes = classes.tolist() if isinstance(classes, np.ndarray) else classes
    if isinstance(classes, (list, tuple)):
        options.append(dict(enumerate(classes)))
    elif isinstance(classes, dict) and all(map(is_int, classes)):
        options.append({int(label): name for label, name in classes.items()})
    for names in options:
        if names.keys() >= set(present):
            return unique({k: ", ".join(v) if isinstance(v, tuple) else str(v) for k, v in sorted(names.items())})
    if options:
        missing = listed(sorted(set(present) - options[0].keys()))
        raise ValueError(f"`classes` must name every label, but has no name for {missing}. Correct it or remove it.")
    return {label: str(label) for label in present}


def _by_label(class_to_idx: dict[str, int]) -> dict[int, str]:
    try:
        return {int(label): name for name, label in class_to_idx.items()}
    except (TypeError, ValueError):
        raise TypeError(
            f"`class_to_idx` must be {{name: label}} with ints for labels, but got {brief(repr(class_to_idx))}."
        ) from None


def unique(names: dict[int, str]) -> dict[int, str]:
    """ImageNet has two cranes: names that occur twice get their label behind them."""
    count = Counter(names.values())
    return {k: name if count[name] == 1 else f"{name} ({k})" for k, name in names.items()}
