"""The keys of images as numpy takes them: sixteen bytes each, S16."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..plan import Plan

NO_KEYS = np.empty(0, "S16")


def keys_of(plan: "Plan") -> np.ndarray:
    """Of all its images, in its order."""
    return np.ascontiguousarray(plan.keys).view("S16").reshape(-1)


def as_keys(names: Iterable[str]) -> np.ndarray:
    """Of files that are named after their images."""
    return np.frombuffer(bytes.fromhex("".join(name[:32] for name in names)), dtype="S16")


def as_bytes(keys: np.ndarray) -> Iterator[bytes]:
    """Each key whole: numpy's own scalars of bytes lose zeros at their end."""
    data = keys.tobytes()
    return (data[i : i + 16] for i in range(0, len(data), 16))


def among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of ``keys`` are in ``known`` (sorted)."""
    if not len(known):
        return np.zeros(len(keys), dtype=bool)
    return known[np.searchsorted(known, keys).clip(max=len(known) - 1)] == keys
