"""The list of a set's images: small in memory, smaller still on its way to another process."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from .store.disk import publish, read_regular
from .store.scan import INDEX

__all__ = ["Samples"]

_INLINE = 10_000  # samples that are pickled as they are: 240 kB


class Samples(Sequence[tuple[str, int]]):
    """(path, label) of every image, made when asked for: 24 bytes of memory each.

    Pickled, a long list is no more than the name of a file in the set's root that holds it, named by its own digest.
    Processes that read it share one copy in memory. Where the root can't be written, the list itself is pickled.

    Args:
        keys: uint8 (N, 16), the file names.
        labels: int64 (N,).
        folders: {label: folder, with a trailing separator}.
        extension: of the files, with its dot.
    """

    def __init__(self, keys: np.ndarray, labels: np.ndarray, folders: Mapping[int, str], extension: str) -> None:
        self.keys, self.labels, self.folders, self.extension = keys, labels, dict(folders), extension
        self._index: str | None = None
        self._stamp: tuple[int, int] | None = None  # of the index as it was when it was last found whole

    def __getstate__(self) -> tuple[Any, ...]:
        if len(self) <= _INLINE:
            return (self.keys, self.labels), self.folders, self.extension
        if self._index is None or self._stamp is None or self._stamp != _stamp(self._index):
            self._index = _write_index(self._root(), self.keys, self.labels)
            self._stamp = self._index and _stamp(self._index)
        return self._index or self._tensors, self.folders, self.extension

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        columns, folders, extension = state
        mapped = isinstance(columns, str)
        keys, labels = _read_index(columns) if mapped else map(np.asarray, columns)
        self.__init__(keys, labels, folders, extension)
        self._index = columns if mapped else None

    @cached_property
    def _tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What torch hands to worker processes without a copy, as long as this process keeps it."""
        return torch.from_numpy(self.keys), torch.from_numpy(self.labels)

    def _root(self) -> Path:
        return Path(next(iter(self.folders.values()))).parent

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, int]]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        try:
            label = self.labels.item(index)
        except IndexError:
            raise IndexError(f"index {index} is out of range for {len(self)} images") from None
        return self.folders[label] + self.keys[index].tobytes().hex() + self.extension, label

    def __repr__(self) -> str:
        return f"<{len(self)} samples>"


def _digest(data: bytes | memoryview) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _stamp(path: str) -> tuple[int, int] | None:
    """What changes with a file; None if it is gone."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _write_index(root: Path, keys: np.ndarray, labels: np.ndarray) -> str | None:
    """The file with these columns, written if it isn't there and whole; None where it can't be."""
    data = keys.tobytes() + labels.astype("<i8").tobytes()
    path = root / (INDEX + _digest(data))
    try:
        if not _holds(path, data):
            publish(data, path, root)
    except OSError:
        return None
    return os.fspath(path)


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read_regular(path, len(data)) == data
    except (OSError, ValueError):  # it isn't there, can't be read, is longer or no file
        return False


def _read_index(path: str) -> tuple[np.ndarray, np.ndarray]:
    """The columns of a file that is what its name says.

    Raises:
        ValueError: If it isn't.
        FileNotFoundError: If it is gone.
    """
    data = np.memmap(path, np.uint8, mode="r")
    if os.path.basename(path) != INDEX + _digest(data.data):
        raise ValueError(f"{path} must hold what its name says, but is damaged. Delete it and pickle the set again.")
    size = len(data) // 24
    return np.asarray(data[: 16 * size]).reshape(size, 16), np.asarray(data[16 * size :]).view("<i8")
