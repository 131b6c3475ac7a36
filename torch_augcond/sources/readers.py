"""The readers under a dataset: what lies beneath Subsets, ConcatDatasets and transforms, and its labels and names."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from ..checks import as_indices, listed, warn
from .folders import (
    Folder,
    Progress,
    class_folder,
    first_content,
    has_class_folders,
    is_plain,
    label_of_folder,
    labelled_folders,
)
from .images import DigestCache, hash_bytes
from .labels import as_label, class_names, is_int, names_binary, timms_names
from .layers import image_transforms_off, layers, own_copy
from .loaders import take_opened
from .raw import NotRaw, RawItems
from .trials import check_takes_images, drawn_alike, random_kept

__all__ = ["flatten", "is_pure"]

_PLAIN = (str, bool, float, os.PathLike)  # no ints: they may count items
_TRIALS = 7  # after which a transform that draws numbers of its own is hardly taken for one that doesn't
_SAMPLE = 64
_TARGETS = ("targets", "labels", "_labels")


class NotAPair(TypeError):
    """An item of a dataset is something else than an image and its label."""


class _Items:
    """Any other dataset, read item by item through a copy whose transforms are switched off."""

    by_place = True  # names are given to labels by numbers alone, unless it is a folder with a `__getitem__` of its own

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.raw = RawItems(dataset)
        self._named_by = dataset  # what holds the names of the labels
        self._present: set[int | None] = set()  # where that is an image folder inside: labels that are known to occur
        self.believed: tuple[str, Sequence[Any]] | None = None  # `targets`, say, and what it holds
        self._said: dict[int, int | None] = {}  # the labels that were read
        self.contradicted: dict[int, str] = {}
        self._folders = [layer for layer in layers(dataset) if has_class_folders(layer)]
        self._lie_in: dict[int, set[str | None]] = {}  # of each label, the class folders that its images were read from

    def path(self, index: int) -> None:
        return None

    place = path

    def _item(self, index: int) -> tuple[Any, Any]:
        take_opened()
        item = self.raw[index]
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            raise NotAPair(
                f"`dataset[{index}]` must be (image, label), but got {type(item).__name__}. Wrap it in a dataset of "
                "your own that returns the two."
            )
        self._note_folder(as_label(item[1]))
        return item[0], item[1]

    def read(self, index: int) -> tuple[Any, None]:
        """The image. Its label is compared with the one that was taken for it, and noted if it is another."""
        image, label = self._item(index)
        self.raw.check(image)
        if self.believed:
            where, said = f"`{self.believed[0]}` says", int(self.believed[1][index])
        else:
            where, said = "it said", self._said.get(index)
        if (number := as_label(label)) not in (None, said) and said is not None:
            self.contradicted[index] = f"{where} {said} and the item {number}"
        return image, None

    def _note_folder(self, label: int | None) -> None:
        """That of the file that was read for an item: of several, one may be another's, for a contrastive loss."""
        paths = set(take_opened())
        names = [name for folder in self._folders for path in paths if (name := class_folder(folder, path))]
        if label is not None and self._folders and paths:
            self._lie_in.setdefault(label, set()).add(names[0] if len(names) == 1 else None)

    def check_folders(self, class_of: Mapping[int, str]) -> None:
        """Warns of a label that is called after one class folder, where all of its images lie in others."""
        known = {name for folder in self._folders for name in label_of_folder(folder)}
        for label, folders in sorted(self._lie_in.items()):
            name = class_of.get(label)
            if name in known and not folders & {name, None}:
                warn(
                    f"label {label} is called {name!r}, but all of its images lie in the folder {listed(folders)}: "
                    "prompts are made of names. Give `classes` (and `class_to_idx`) in the order of the labels."
                )
                return

    def digest(self, index: int, cache: DigestCache | None = None) -> None:
        return None

    def entry(self, index: int) -> None:
        return None

    def _label(self, index: int) -> Any:
        try:
            label = self._item(index)[1]
            return label.item() if getattr(label, "ndim", None) == 0 else label  # it may be used again for the next
        except NotAPair:
            raise
        except Exception as error:
            return error

    def labels(self, indices: np.ndarray, progress: Progress) -> list[Any]:
        """From `.targets` and its like where they agree with the first, middle and last item; else by reading all."""
        for folder in filter(has_class_folders, layers(self.dataset)):
            Folder(folder).check_names(folder.samples)
        labels = self._listed(indices)
        if labels is None:
            labels = [self._label(i) for i in progress(indices.tolist())]
            self._said = dict(zip(indices.tolist(), map(as_label, labels), strict=True))
        if not self._named():
            self._take_names_of_folder(indices, labels, progress)
        self.by_place = self._named_by is self.dataset and not self._are_of_folders(indices, labels)
        return labels

    def _listed(self, indices: np.ndarray) -> list[Any] | None:
        """Labels from `.targets` and its like, where that agrees with a few items."""
        seen = {i: label for i in _probes(indices) if (label := as_label(self._label(i))) is not None}
        for name in _TARGETS:
            values = getattr(self.dataset, name, None)
            values = values.tolist() if hasattr(values, "tolist") else values
            if not isinstance(values, (list, tuple)) or len(values) != len(self.dataset):
                continue
            if all(is_int(values[i]) and int(values[i]) == label for i, label in seen.items()):
                self.believed = name, values
                return [values[i] for i in indices.tolist()]
            self._warn_of_names(name, values, seen)
        return None

    def class_names(self, labels: Sequence[int], absent: Sequence[int]) -> dict[int, str]:
        names = class_names(self._named_by, labels, absent)
        is_own = self._named_by is self.dataset
        return {label: name for label, name in names.items() if is_own or label in self._present}

    def _take_names_of_folder(self, indices: np.ndarray, labels: Sequence[Any], progress: Progress) -> None:
        """Of the image folder it reads, if all files of each label lie in the class folder of that label there.

        Some items that a Subset leaves out are looked at, too: labels may be others' for several class folders each.
        """
        known = set(map(as_label, labels))
        for folder in self._folders:
            label_of = label_of_folder(folder)
            if not self._lie_as(label_of, self._lie_in):
                continue
            for i in progress(sorted({*_spread(len(self.dataset)), *(indices.tolist() if self.believed else [])})):
                self._label(i)
            if self._lie_as(label_of, known | self._lie_in.keys()):
                self._named_by = folder
                self._present = known | self._lie_in.keys()
                self._present |= set(map(as_label, self.believed[1] if self.believed else ()))
                return

    def _lie_as(self, label_of: Mapping[str, int], labels: Iterable[Any]) -> bool:
        """Whether the folders that files of each label were seen in are that of this label alone."""
        return all({label_of.get(name) for name in self._lie_in.get(label, [None])} == {label} for label in labels)

    def _are_of_folders(self, indices: np.ndarray, labels: Sequence[Any]) -> bool:
        """Whether each label is that of the folder which the file lies in."""
        if not has_class_folders(self.dataset):
            return False
        samples, label_of = self.dataset.samples, label_of_folder(self.dataset)
        try:
            items = [(samples[i][0], label) for i, label in zip(indices.tolist(), labels, strict=True)]
            return all(label_of.get(name) == label for name, label in labelled_folders(self.dataset, items))
        except (IndexError, TypeError):  # it has more items than files, or labels of other kinds
            return False

    def known_labels(self, progress: Progress, must_read: bool) -> Sequence[Any]:
        """Those of all items, also of the ones that a Subset leaves out: from a list of them, else some or all read."""
        if self.believed or not self._named():
            return self.believed[1] if self.believed else ()
        is_torchvisions = getattr(type(self.dataset).__getitem__, "__module__", "").startswith("torchvision.")
        everywhere = must_read and not is_torchvisions  # torchvision's labels count from 0
        places = range(len(self.dataset)) if everywhere else _spread(len(self.dataset))
        return [as_label(self._label(i)) for i in progress(places)]

    def is_joint(self, indices: np.ndarray) -> bool:
        """Whether a `transform` is given labels, too, which it may change."""
        if self.raw is not None:
            return self.raw.is_joint
        whole, stand = image_transforms_off(self.dataset)
        for i in _probes(indices):
            with suppress(Exception):  # no image, say
                whole[i]
        return stand.is_joint

    def _named(self) -> dict[str, Any]:
        """Its attributes that hold names, as `class_names` finds them."""
        found = {name: getattr(self.dataset, name, None) for name in ("class_to_idx", "classes")}
        found["reader.class_to_idx"] = timms_names(self.dataset)
        return {name: names for name, names in found.items() if hasattr(names, "__len__")}

    def _warn_of_names(self, where: str, targets: Sequence[Any], seen: Mapping[int, int]) -> None:
        """Items that contradict labels with a name may mean something else by theirs: prompts are made of names."""
        named = self._named()
        if not named or names_binary(self.dataset):
            return
        where_named, names = next(iter(named.items()))
        if all(is_int(targets[i]) and targets[i] < len(names) for i in seen):
            first = next(i for i, label in seen.items() if int(targets[i]) != label)
            warn(
                f"`{where}` says {targets[first]} and the item {seen[first]} at index {first}: labels are read from "
                f"the items. Names are still those of `{where_named}`: give others if the labels mean something else."
            )

    def another_label(self, labels: Mapping[int, int], change: Callable[[int], Any], progress: Progress) -> str | None:
        """Where an item's label isn't what `change` makes of that in `labels`; all of these are read."""
        (whole, stand), joint = image_transforms_off(self.dataset), own_copy(self.dataset)
        for i in progress(labels):
            try:
                label, changed = whole[i][1], change(labels[i])
                if stand.is_joint:
                    with random_kept():
                        label = joint[i][1]
                same = bool(np.all(np.asarray(label) == np.asarray(changed)))
            except Exception:  # no image, say: nothing is known of it
                continue
            if not same:
                return f"item {i} has the label {label!r}, of which it would make {changed!r}"
        return None

    def changed_otherwise(self, indices: np.ndarray, change: Callable[[Any], Any]) -> int | None:
        """The first of a few items whose image isn't what `change` makes of the raw one, as far as that can be told."""
        before = self.raw
        self.raw = RawItems(self.dataset) if before is None else before  # it may have been let go
        try:
            if self.raw.is_same:
                return None
            whole = own_copy(self.dataset)
            return next((i for i in _probes(indices) if self._is_changed_otherwise(i, whole, change)), None)
        finally:
            self.raw = before

    def _is_changed_otherwise(self, i: int, whole: Any, change: Callable[[Any], Any]) -> bool:
        try:
            image = drawn_alike(lambda: whole[i][0], i)
            is_drawn_alike = all(_is_same(image, drawn_alike(lambda: whole[i][0], i)) for _ in range(_TRIALS))
        except Exception:  # no image, say: nothing is known of it
            return False
        try:
            raw = drawn_alike(lambda: self._item(i)[0], i)
        except NotRaw:
            raise
        except Exception:  # a step behind the transform that can't do without it
            return True
        if self.raw.is_changed_behind(raw):
            return True
        if not is_drawn_alike:
            return False
        check_takes_images(change, raw)
        with suppress(Exception):  # it is given something else by the dataset
            # The dataset may draw numbers of its own before its transform does.
            made = (drawn_alike(make, i) for make in (lambda: change(raw), lambda: change(self._item(i)[0])))
            return not any(_is_same(image, one) for one in made)
        return False

    def identity(self, class_of: Mapping[int, str]) -> str:
        """What stays when items are added: the type, plain attributes (a root, a split), names and the first item.

        Classes in another order are the same: some count them as a set gives them, another way in each process.
        """
        root = getattr(self.dataset, "root", None)
        place = os.path.abspath(root) if isinstance(root, (str, os.PathLike)) else ""
        given = getattr(self.dataset, "__dict__", {}) | {"root": place}
        plain = {name: str(given[name]) for name in sorted(given) if isinstance(given[name], _PLAIN)}
        label, named = self._label(0), bool(self._named())
        names = [class_of.get(as_label(label)), *sorted(class_of.values())] if named else [label]
        first = f"{first_content(self)} {names!r}"
        return f"{type(self.dataset).__qualname__}:{plain}:{hash_bytes(first.encode('utf-8', 'surrogatepass'))}"


def _is_same(image: Any, other: Any) -> bool:
    one, two = np.asarray(image), np.asarray(other)
    return one.shape == two.shape and bool(np.all(one == two))


def _spread(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, _SAMPLE).astype(int)).tolist()


def _probes(indices: np.ndarray) -> set[int]:
    return {int(indices[k]) for k in (0, len(indices) // 2, -1)} if len(indices) else set()


def flatten(dataset: Any) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """The leaves of Subsets and ConcatDatasets, and for each item its leaf and its index there.

    A subclass with its own `__getitem__` (one that transforms, say) or length is a leaf: only it knows what it returns.
    """
    if _is_as(dataset, Subset):
        leaves, part, index = flatten(dataset.dataset)
        chosen = np.array(as_indices(dataset.indices, len(part)), dtype=np.int64)
        return leaves, part[chosen], index[chosen]
    if _is_as(dataset, ConcatDataset):
        parts = [flatten(d) for d in dataset.datasets]
        if (total := sum(len(index) for _, _, index in parts)) != len(dataset):
            raise ValueError(
                f"a ConcatDataset must have the length of its parts, but has {len(dataset)} items and they {total}: "
                "`datasets` was changed. Make it anew."
            )
        starts = np.cumsum([0] + [len(leaves) for leaves, _, _ in parts])
        shifted = [part + start for (_, part, _), start in zip(parts, starts, strict=False)]
        leaves = list(chain.from_iterable(leaves for leaves, _, _ in parts))
        return leaves, np.concatenate(shifted), np.concatenate([index for _, _, index in parts])
    leaf = Folder(dataset) if is_plain(dataset) else _Items(dataset)
    return [leaf], np.zeros(len(dataset), np.int64), np.arange(len(dataset))


def is_pure(dataset: Any) -> bool:
    """Whether it is a Subset or ConcatDataset as torch's own are, whatever else it has been given."""
    return _is_as(dataset, Subset) or _is_as(dataset, ConcatDataset)


def _is_as(dataset: Any, kind: type) -> bool:
    """Whether it has the items of this class, and as many."""
    return all(getattr(type(dataset), name, None) is getattr(kind, name) for name in ("__getitem__", "__len__"))
