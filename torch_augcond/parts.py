"""The parts of ``real + synthetic``: which of its items are synthetic, and their labels."""

from collections.abc import Callable, Sized

import numpy as np
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision.datasets import DatasetFolder

from .checks import as_indices, brief
from .marks import reads_set

__all__ = ["are_synthetic", "by_label", "labels_of", "per_item"]

_LABEL_ATTRIBUTES = ("targets", "labels", "_labels", "y")  # the names that torchvision's own datasets use


def per_item(dataset: Dataset, of_part: Callable[[Dataset], np.ndarray | None]) -> np.ndarray:
    """One entry for each item: ``of_part`` of the outermost parts for which it isn't None."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(f"`dataset` must be of parts with a length and indices, but got {type(dataset).__name__}.")
    if (found := of_part(dataset)) is not None:
        return found
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([per_item(part, of_part) for part in dataset.datasets])
    found = per_item(dataset.dataset, of_part)
    return found[np.array(as_indices(dataset.indices, len(found)), np.int64)]


def are_synthetic(part: Dataset) -> np.ndarray | None:
    """Whether each item is, where that is one answer for all; None of what only its parts can tell."""
    marked = bool(getattr(part, "is_synthetic", False)) or reads_set(part)
    return np.full(len(part), marked) if marked or not _is_as_its_parts(part) else None


def _is_as_its_parts(dataset: Dataset) -> bool:
    """Whether each item is one of what it holds, changed perhaps: a subclass may have more or fewer."""
    if isinstance(dataset, Subset):
        return len(dataset) == len(dataset.indices)
    return isinstance(dataset, ConcatDataset) and len(dataset) == sum(map(len, dataset.datasets))


def labels_of(part: Dataset) -> np.ndarray | None:
    """The label of each item, from a list; None of what only its parts can tell.

    Raises:
        ValueError: There is no such list.
    """
    # Not what a `__getattr__` finds, which is the list of what it holds.
    own = part.targets if "targets" in {*getattr(part, "__dict__", {}), *dir(type(part))} else None
    if _is_as_its_parts(part) and not (isinstance(own, Sized) and len(own) == len(part)):
        return None
    given = next((getattr(part, name) for name in _LABEL_ATTRIBUTES if hasattr(part, name)), ())
    if getattr(part, "_target_types", None) == ["binary-category"]:  # an OxfordIIITPet of cats and dogs
        given = part._bin_labels
    if getattr(type(part), "__getitem__", None) is DatasetFolder.__getitem__ and "targets" in vars(part):
        given = [sample[1] for sample in part.samples]  # which are read, and may have been shuffled since
    try:
        labels = np.asarray(given)
        labels = np.asarray(labels.tolist()) if labels.dtype.kind == "O" else labels  # a column of names
    except ValueError:  # lists of several lengths
        labels = np.array(None)
    if labels.dtype.kind not in "biufUS" or (labels != labels).any():  # NaN, which equals nothing, is no class
        raise ValueError(
            f"`class_balanced` must find a list of numbers or of names as the labels of {type(part).__name__}, but got "
            f"{brief(repr(given))}."
        )
    if labels.shape != (len(part),):
        raise ValueError(
            f"`class_balanced` must find one label for each of the {len(part)} items of {type(part).__name__}, but got "
            f"{f'shape {labels.shape}' if labels.size else 'none'}. Give it a list `targets`."
        )
    return labels


def by_label(indices: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    """The indices of each label, by label."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(labels[order][1:] != labels[order][:-1]) + 1
    return np.split(indices[order], starts)
