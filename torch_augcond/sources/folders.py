"""Image folders: which datasets are such, and how they are read."""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image
from torchvision.datasets import DatasetFolder, folder
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..checks import listed
from .images import (
    DigestCache,
    as_pil,
    check_header,
    check_regular,
    entry_through,
    file_digest,
    hash_bytes,
    open_image,
    to_rgb,
)
from .labels import class_names
from .loaders import is_default, is_named, what_loads
from .trials import check_takes_images

__all__ = [
    "Folder",
    "Progress",
    "class_folder",
    "first_content",
    "has_class_folders",
    "is_parent",
    "is_plain",
    "label_of_folder",
    "labelled_folders",
    "root_of",
]

Progress = Callable[[Iterable[int]], Iterable[int]]


def root_of(dataset: Any) -> str | os.PathLike | None:
    """Where the files of an image folder lie: a subclass that doesn't call `super().__init__` may have a list only."""
    return getattr(dataset, "root", None) if isinstance(dataset, DatasetFolder) else None


def is_plain(dataset: Any) -> bool:
    """Whether its items are the files of a DatasetFolder, read by torchvision's own code: not by what replaces that."""
    code = getattr(getattr(type(dataset), "__getitem__", None), "__code__", None)
    is_own = getattr(code, "co_filename", None) == folder.__file__
    return is_own and root_of(dataset) is not None and hasattr(dataset, "extensions")


def has_class_folders(dataset: Any) -> bool:
    """Whether it lists files in folders that its classes are called after."""
    if root_of(dataset) is None or not isinstance(getattr(dataset, "class_to_idx", None), Mapping):
        return False
    samples = getattr(dataset, "samples", None)
    first = samples[0] if samples is not None and len(samples) else ("", 0)
    return (
        samples is not None and isinstance(first, tuple | list | np.ndarray) and isinstance(first[0], str | os.PathLike)
    )


def label_of_folder(dataset: DatasetFolder) -> Mapping[str, int]:
    """{class folder: label}: those of ImageNet have names of their own."""
    return getattr(dataset, "wnid_to_idx", None) or dataset.class_to_idx


def labelled_folders(dataset: DatasetFolder, samples: Iterable[Sequence[Any]]) -> set[tuple[str, int]]:
    """The class folders that files lie in, each with the labels that these have."""
    above = {(os.path.dirname(os.fspath(path)), label) for path, label, *_ in samples}
    known, roots = label_of_folder(dataset), _roots(dataset)
    return {(_class_of(os.path.join(folder, "file"), known, roots), label) for folder, label in above}


def class_folder(dataset: DatasetFolder, path: str) -> str | None:
    """The class that a file of it lies in the folder of."""
    name = _class_of(path, known := label_of_folder(dataset), _roots(dataset))
    return name if name in known else None


def _class_of(path: str, known: Mapping[str, int], roots: Sequence[str]) -> str:
    """The one folder of the path that is called like a class (of a file from elsewhere its own); of several, none."""
    below = _below(path, *roots)
    above = below.split(os.sep)[:-1]
    found = {name for name in (above[-1:] if below == path else above) if name in known}
    return found.pop() if len(found) == 1 else ""


def is_parent(dataset: Any) -> bool:
    """Whether its classes look like folders of classes (train and test): no image in them, but the same folders."""
    if not has_class_folders(dataset) or not len(dataset.samples):
        return False
    root, classes, below = Path(dataset.root), label_of_folder(dataset), defaultdict(set)
    if Path(dataset.samples[0][0]).parent.parent == root:
        return False
    for above in {Path(os.path.dirname(path)) for path, *_ in dataset.samples}:
        top, *names = above.relative_to(root).parts if root in above.parents else ("",)
        if top not in classes or not names:
            return False
        below[top].add(names[0])
    return len(set.intersection(*below.values())) > 1


class Folder:
    """An ImageFolder or DatasetFolder: files, labels without decoding, and the user's own loader.

    Its list of files is that of now: the user's may be shuffled or cut later.
    """

    contradicted: Mapping[int, str] = MappingProxyType({})  # its labels are those of its items
    raw: Any = None  # it is read without a copy
    by_place = False  # a label is that of its folder, unless no folder is known to `class_to_idx`

    def __init__(self, dataset: DatasetFolder) -> None:
        opencvs = getattr(sys.modules.get("cv2"), "imread", None)
        if opencvs is not None and getattr(dataset, "loader", None) is opencvs:
            raise TypeError(
                "`loader` must give red, green and blue in this order, but OpenCV's gives blue first. Use one such as "
                "lambda path: cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)."
            )
        self.dataset = dataset
        self.samples = [pair if type(pair) is tuple else tuple(pair) for pair in dataset.samples]

    def class_names(self, labels: Sequence[int], absent: Sequence[int]) -> dict[int, str]:
        return class_names(self.dataset, labels, absent)

    def path(self, index: int) -> str | None:
        return os.fspath(self.samples[index][0])

    def place(self, index: int) -> str:
        """Where it lies in the dataset's folder; of a file from elsewhere its name."""
        path = self.path(index)
        below = _below(path, *_roots(self.dataset))
        return os.path.basename(path) if below == path else below

    def read(self, index: int) -> tuple[Any, str | None]:
        """The image and its `digest`, if it has one: of the very bytes that were decoded."""
        path = self.samples[index][0]
        if is_default(self.dataset.loader):
            return open_image(path)  # as torchvision's, but without its clipping of 16-bit images
        check_regular(path)
        check_header(path)
        return self.dataset.loader(path), None

    def digest(self, index: int, cache: DigestCache | None = None) -> str | None:
        """Of a file's bytes. None with a user's own loader: what it makes of them may depend on the path, too."""
        path = self.samples[index][0]
        is_read = is_default(self.dataset.loader) and os.path.isfile(path)
        return file_digest(path, cache) if is_read else None

    def entry(self, index: int) -> tuple[str, int, str] | None:
        """By what a cache knows the image, where all that a loader of the user's own does is known."""
        return entry_through(self.path(index), self._loads) if self._loads else None

    @cached_property
    def _loads(self) -> str | None:
        return what_loads(self.dataset.loader)

    def another_label(self, labels: Mapping[int, int], change: Callable[[int], Any], progress: Progress) -> None:
        return None  # torchvision's own `__getitem__`

    def labels(self, indices: np.ndarray, progress: Progress) -> list[Any]:
        samples = [self.samples[i] for i in indices.tolist()]
        self.check_names(samples)
        if has_class_folders(self.dataset):
            known = label_of_folder(self.dataset)
            self.by_place = not any(name in known for name, _ in labelled_folders(self.dataset, samples))
        return [label for _, label in samples]

    def check_folders(self, class_of: Mapping[int, str]) -> None:
        return None  # which `check_names` does

    def is_joint(self, indices: np.ndarray) -> bool:
        return False  # torchvision's own `__getitem__` transforms a label by itself

    def changed_otherwise(self, indices: np.ndarray, change: Callable[[Any], Any]) -> None:
        """It gives `change` the image as a loader of the user's own returns that: an array, perhaps."""
        if is_default(self.dataset.loader) or not len(indices):
            return
        try:
            raw, _ = self.read(int(indices[0]))
        except Exception:  # which is told when its turn comes
            return
        if not isinstance(raw, Image.Image):
            check_takes_images(change, raw)

    def known_labels(self, progress: Progress, must_read: bool) -> list[Any]:
        return [label for _, label in self.samples]

    def check_names(self, samples: Sequence[tuple[Any, int]]) -> None:
        """Whoever relabels a folder's images must say what the labels are called now: prompts are made of that."""
        if not has_class_folders(self.dataset):
            return
        label_of, folders = label_of_folder(self.dataset), labelled_folders(self.dataset, samples)
        wrong = [f"{label} to images of {name!r}" for name, label in folders if label_of.get(name, label) != label]
        if wrong:
            raise ValueError(
                f"`samples` must label images as `class_to_idx` does, but gives {listed(sorted(wrong), str)}. Set "
                "`class_to_idx` and `classes` to what the labels mean now, or use a `target_transform`."
            )

    def identity(self, class_of: Mapping[int, str]) -> str:
        """Where it lies; besides, what chose and reads its files if that is no plain scan."""
        dataset = self.dataset
        text = f"{type(dataset).__qualname__}:{self._scanned()}"
        if not is_default(dataset.loader):
            text += f" {dataset.loader.__qualname__ if is_named(dataset.loader) else first_content(self)}"
        if dataset.extensions is not None and tuple(dataset.extensions) != IMG_EXTENSIONS:
            text += f" {sorted(dataset.extensions)}"
        if self._is_scan():
            return text
        above = os.fspath(dataset.root)
        chosen = sorted((os.fspath(path).removeprefix(above), int(label)) for path, label in self.samples)
        return f"{text} {hash_bytes(repr(chosen).encode('utf-8', 'surrogatepass'))}"

    def _scanned(self) -> str:
        """The folder in which the class folders lie: of some datasets that of a split, below `root`."""
        root = os.path.abspath(self.dataset.root)
        first = os.path.abspath(self.path(0)) if has_class_folders(self.dataset) and self.samples else ""
        name = class_folder(self.dataset, first) if first.startswith(os.path.join(root, "")) else None
        return first[: first.rindex(f"{os.sep}{name}{os.sep}")] if name else root

    def _is_scan(self) -> bool:
        """Whether its samples are those found in its folder by extension, as far as can be told."""
        dataset, samples = self.dataset, self.dataset.samples
        lists = [getattr(dataset, name, samples) for name in ("imgs", "targets")]
        return dataset.extensions is not None and lists[0] is samples and len(lists[1]) == len(self.samples)


def _roots(dataset: DatasetFolder) -> list[str]:
    """Its folder, in all forms in which a path may begin with it."""
    root = os.fspath(dataset.root)
    return [os.path.join(form, "") for form in (root, os.path.abspath(root), os.path.realpath(root))]


def _below(path: str, above: str, *others: str) -> str:
    """What follows a folder in a path, though that may be written otherwise: from the root of the system, say."""
    if path.startswith(above):
        return path[len(above) :].lstrip(os.sep)
    whole = os.path.abspath(path)
    return next((whole[len(other) :] for other in others if whole.startswith(other)), path)


def first_content(leaf: Any) -> str:
    """What tells the first image of a reader from others."""
    try:
        image = to_rgb(as_pil(leaf.read(0)[0], "dataset[0]"))
    except Exception:  # it's reported when its turn comes
        return ""
    return f"{image.size} {hash_bytes(image.tobytes())}"
