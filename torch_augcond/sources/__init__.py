"""Raw images, labels and content digests out of any map-style dataset."""

import os
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset

from ..checks import listed
from .folders import Progress
from .images import (
    DigestCache,
    UnreadableImage,
    as_pil,
    check_real,
    check_size,
    hash_bytes,
    readable,
    to_rgb,
)
from .labels import (
    check_same_names,
    int_labels,
    is_int,
    unique,
    warn_of_inner,
    warn_of_nameless,
    warn_of_unused,
)
from .layers import layers
from .readers import flatten, is_pure

__all__ = ["Sources", "UnreadableImage", "to_rgb"]

_CHANGED = "it has changed since this run began; run it again"
_RANDOM = (
    "it is another image than when this run began. If it wasn't edited: draw nothing at random inside `__getitem__` or "
    "a loader, but give such steps as the dataset's `transform` attribute"
)


@dataclass(repr=False)
class Sources:
    """The real images behind a dataset: raw, before any transform of the user's, with labels and content digests.

    What is read depends on the dataset's contents only: not on its transforms, nor on how it is nested.

    Args:
        dataset: the dataset as the user gave it.
        labels: int64 (N,), as the dataset holds them (before `target_transform`); they need not be contiguous.
        class_of: {label: class name}, by label; classes without an image are in it too.
        leaves, part, index: for each image the reader and the index there; `from_dataset` finds them.

    Example::

        >>> sources = Sources.from_dataset(Subset(ImageFolder("flowers/train"), range(100)))
        >>> sources.image(0), sources.class_of[int(sources.labels[0])], sources.digest(0)
    """

    dataset: Any
    labels: np.ndarray
    class_of: dict[int, str]
    leaves: list[Any]
    part: np.ndarray
    index: np.ndarray

    @classmethod
    def from_dataset(cls, dataset: Any, progress: Progress = iter, is_named: bool = False) -> Self:
        """Finds images, labels and class names; reads images only where labels can't be had otherwise.

        Args:
            dataset: ImageFolder, DatasetFolder, any map-style dataset of (image, int label), Subsets and
                ConcatDatasets of them. Class names: `class_to_idx`, else `classes`, else the labels as text.
            progress: wraps the indices while images are read for their labels (``tqdm``, for example).
            is_named: whether the user gives names for the classes, so that none need be looked for.

        Raises:
            TypeError: not map-style, or labels that are not ints (all offenders are listed).
            ValueError: no image, negative labels, labels without a name, parts that name a label differently.
        """
        _check_dataset(dataset)
        leaves, part, index = flatten(dataset)
        sources = cls(dataset, np.zeros(len(index), np.int64), {}, leaves, part, index)
        values: list[Any] = [None] * len(index)
        for leaf, rows in sources.by_leaf():
            for row, value in zip(rows.tolist(), leaf.labels(index[rows], progress), strict=True):
                values[row] = value
        sources.labels = int_labels(values, sources.name)
        sources.class_of = sources._merged_names(progress, is_named)
        return sources

    def _merged_names(self, progress: Progress, is_named: bool) -> dict[int, str]:
        merged: dict[int, str] = {}
        found: list[tuple[dict[int, str], set[int]]] = []  # of parts where only a number tells which name is meant
        for leaf, rows in self.by_leaf():
            labels = np.unique(self.labels[rows]).tolist()
            is_whole = len(np.unique(self.index[rows])) == len(leaf.dataset)
            # Labels or their names may count from 1, which a Subset that lacks some doesn't show.
            known = labels if is_whole else leaf.known_labels(progress, must_read=0 not in labels)
            known = {int(label) for label in known if is_int(label)}
            absent = [0] if 0 in known else [label for label in known if label > 0]
            names = leaf.class_names(labels, absent)
            if leaf.by_place:
                if not is_named:
                    warn_of_inner(names, layers(leaf.dataset))
                found.append((names, known))
                warn_of_nameless(names, set(labels), known)
            for label, name in names.items():
                if merged.setdefault(label, name) != name:
                    raise ValueError(
                        f"the parts of a ConcatDataset must agree on label {label}, but got "
                        f"{merged[label]!r} and {name!r}. Give all of them the same `class_to_idx`."
                    )
        for names in {str(names): names for names, _ in found}.values():  # parts may share a list
            warn_of_unused(names, set().union(*(known for others, known in found if others == names)))
        for holder in filter(is_pure, layers(self.dataset)):
            check_same_names(holder, merged)
        return dict(sorted(unique(merged).items()))

    def by_leaf(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Each reader with the places of its images."""
        for k, leaf in enumerate(self.leaves):
            yield leaf, np.flatnonzero(self.part == k)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> list[str]:
        """Class names in the order of their labels (``classes[label]`` only if labels are contiguous from 0)."""
        return list(map(str, self.class_of.values()))

    @property
    def class_to_idx(self) -> dict[str, int]:
        """{class name: label}."""
        return {str(name): label for label, name in self.class_of.items()}

    @property
    def identity(self) -> str:
        """Tells datasets apart: where a folder lies (its files may change), else what in it stays the same."""
        texts = []
        for leaf, rows in self.by_leaf():
            index = self.index[rows]
            whole = len(index) == len(leaf.dataset) and (np.sort(index) == np.arange(len(index))).all()
            chosen = "" if whole else f"[{hash_bytes(np.sort(index).tobytes())}]"
            texts.append(leaf.identity(self.class_of) + chosen)
        return " + ".join(texts)

    def _leaf(self, i: int) -> tuple[Any, int]:
        i = range(len(self))[i]  # negative indices, and IndexError past the end
        return self.leaves[self.part[i]], int(self.index[i])

    def name(self, i: int) -> str:
        """The path of image i, or ``dataset[i]``: for messages and provenance, never part of a recipe."""
        leaf, index = self._leaf(i)
        return leaf.path(index) or f"dataset[{range(len(self))[i]}]"

    def place(self, i: int) -> str:
        """As `name`, but from its dataset's folder on: what is kept of it tells nobody where that lies."""
        leaf, index = self._leaf(i)
        return leaf.place(index) or self.name(i)

    def release(self) -> None:
        """Lets go of what reading needs (a copy of a dataset may have filled a cache); names can still be asked for."""
        for leaf in self.leaves:
            leaf.raw = None

    def image(self, i: int, digest: str | None = None) -> Image.Image:
        """Image i in RGB as the user's own loader reads it, before any transform.

        Args:
            digest: what `digest` gave, to be sure that it is still that image.

        Raises:
            UnreadableImage: with its name and the reason; the other images are not affected.
            TypeError: the dataset returns something else than PIL images or uint8 (float tensors, say).
        """
        (leaf, index), name = self._leaf(i), self.name(i)
        with readable(name):
            value, found = leaf.read(index)
            if value is None:  # what OpenCV returns
                raise ValueError("its loader returned None")
        value = as_pil(value, name)
        with readable(name):
            check_size(value)
            check_real(value)
            image = to_rgb(value)
            if digest is not None and digest != (found or _pixel_digest(image)):
                raise ValueError(_CHANGED if found else _RANDOM)
            return image

    def digest(self, i: int, cache: DigestCache | None = None) -> str:
        """32 hex characters, a function of the image's content: its file's bytes if it is one, else its RGB pixels.

        With a loader of the user's own the pixels that it makes count. If that is a function with a name, they are
        taken from the cache as long as the file and the name are the same.

        Args:
            cache: {(absolute path, size, times and inode): digest}; files found there are not read, others are entered.

        Raises:
            UnreadableImage: with its name and the reason.
        """
        leaf, index = self._leaf(i)
        with readable(self.name(i)):
            found = leaf.digest(index, cache)
        entry = None if found or cache is None else leaf.entry(index)
        if entry and entry in cache:
            return cache[entry]
        digest = found or _pixel_digest(self.image(i))
        if entry and entry == leaf.entry(index):
            cache[entry] = digest
        return digest

    def digests(
        self,
        progress: Progress = iter,
        cache: DigestCache | None = None,
        failed: MutableMapping[int, UnreadableImage] | None = None,
    ) -> list[str]:
        """The digest of every image.

        Args:
            progress: wraps the indices (``tqdm``, for example).
            cache: as for `digest`.
            failed: where given, an image that can't be read is entered here and its digest is "", which `make_plan`
                leaves out; otherwise it raises.

        Raises:
            ValueError: a list of labels that items contradict (all are read here, unless they are files).
        """
        digests = [self._digest_or_note(i, cache, failed) for i in progress(range(len(self)))]
        self._check_labels()
        for leaf in self.leaves:
            leaf.check_folders(self.class_of)
        return digests

    def _check_labels(self) -> None:
        """Labels that were not read from the items are the items', as far as these have been read since."""
        if not any(leaf.contradicted for leaf in self.leaves):
            return
        places = [(i, *self._leaf(i)) for i in range(len(self))]
        wrong = [f"{leaf.contradicted[k]} at dataset[{i}]" for i, leaf, k in places if k in leaf.contradicted]
        raise ValueError(
            f"labels must be those of the items, but {listed(wrong, str)}. Correct the list, or set it to None: labels "
            "are then read from the items, and must be the same each time."
        )

    def _digest_or_note(self, i: int, cache: DigestCache | None, failed: MutableMapping | None) -> str:
        try:
            return self.digest(i, cache)
        except UnreadableImage as error:
            if failed is None:
                raise
            failed[i] = error
            return ""


def _pixel_digest(image: Image.Image) -> str:
    return hash_bytes(f"{image.mode} {image.width}x{image.height} ".encode() + image.tobytes())


def _check_dataset(dataset: Any) -> None:
    if isinstance(dataset, str | os.PathLike):
        raise TypeError(
            f"`dataset` must be a dataset, but got {dataset!r}. Did you mean ImageFolder({str(dataset)!r})?"
        )
    if isinstance(dataset, type):
        raise TypeError(f"`dataset` must be a dataset, but got the class {dataset.__name__}. Make one of it first.")
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f"`dataset` must be map-style, but got {type(dataset).__name__}, an IterableDataset. "
            "Images are chosen by index: collect it into a list or a folder first."
        )
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(f"`dataset` must have `__getitem__` and `__len__`, but got {type(dataset).__name__}.")
    if len(dataset) == 0:
        raise ValueError("`dataset` must hold at least one image, but got an empty one.")
