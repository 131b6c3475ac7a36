"""How many images, from which sources, with which seeds: every image of a set as a frozen recipe with a key."""

import copy
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checks import as_int, brief, check_names, listed, warn
from .prompts import build_prompts
from .recipe import Recipe, Settings, canonical, canonical_end, canonical_start, hash64

__all__ = ["Plan", "Recipe", "Settings", "build_prompts", "canonical", "counts_per_class", "make_plan"]

_MANY = 10**8  # images of a set, at most; a plan takes 45 bytes for each
_BLOCK = 1 << 18  # scores held at once: 2 MiB stay in the cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def counts_per_class(
    labels: np.ndarray,
    class_of: Mapping[int, str],
    *,
    num_per_image: int | None = None,
    num_per_class: int | Mapping[str, int] | None = None,
    fill_to: int | None = None,
) -> dict[str, int]:
    """{class: images to make}, for every class with a real image; the others have nothing to be made from.

    Args:
        labels: int64 (N,), one for each real image.
        num_per_image: this many for each real image.
        num_per_class: this many for each class, or {class: how many}; a class that isn't named gets none.
        fill_to: real and synthetic together make at least this many: ``max(0, fill_to - real)``.

    Raises:
        TypeError, ValueError: not exactly one of the three, negative or no int, a class without a real image; a
            `fill_to` of 0, which nothing could be filled to.
    """
    given = {"num_per_image": num_per_image, "num_per_class": num_per_class, "fill_to": fill_to}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        got = " and ".join(f"`{name}`" for name in given) or "none"
        raise ValueError(f"exactly one of `num_per_image`, `num_per_class` and `fill_to` must be given, but got {got}.")
    [(name, value)] = given.items()
    found, numbers = (column.tolist() for column in np.unique(np.asarray(labels), return_counts=True))
    if nameless := [label for label in found if label not in class_of]:
        raise ValueError(f"`class_of` must name every label, but lacks {listed(nameless)}.")
    real = {class_of[label]: number for label, number in zip(found, numbers, strict=True)}
    if isinstance(num_per_class, Mapping):
        check_names(name, num_per_class, list(real))
        num_per_class = copy.copy(num_per_class)  # a default that is asked for stays in it
        given = {
            c: num_per_class[c] if c in num_per_class or hasattr(num_per_class, "__missing__") else 0 for c in real
        }
        return _checked_total(name, {c: _count(f"{name}[{c!r}]", number, 0) for c, number in given.items()})
    if name == "num_per_class" and isinstance(value, Collection):
        raise TypeError(f"`num_per_class` must be an int or {{class: int}}, but got {brief(repr(value))}.")
    value = _count(name, value, int(name == "fill_to"))
    rules = {"num_per_image": lambda n: value * n, "num_per_class": lambda n: value, "fill_to": lambda n: value - n}
    return _checked_total(name, {c: max(0, rules[name](n)) for c, n in real.items()})


def _count(name: str, value: Any, low: int) -> int:
    value = as_int(name, value, low)
    if value > _MANY:
        raise ValueError(f"`{name}` must be at most {_MANY:,}, but got {value}.")
    return value


def _checked_total(name: str, counts: dict[str, int]) -> dict[str, int]:
    if (total := sum(counts.values())) > _MANY:
        raise ValueError(f"`{name}` must come to at most {_MANY:,} images, but asks for {total:,}.")
    return counts


def make_plan(
    settings: Settings,
    labels: Sequence[int] | np.ndarray,
    digests: Sequence[str],
    class_of: Mapping[int, str],
    prompts: Mapping[str, str],
    *,
    num_per_image: int | None = None,
    num_per_class: int | Mapping[str, int] | None = None,
    fill_to: int | None = None,
) -> "Plan":
    """Decides every image of the set. A function of contents only: the order and names of the real images don't enter.

    A larger count only adds recipes. A further real image changes only the recipes that now use it: sources are the
    contents with the highest hash of (seed, class, ordinal, content), partners the next highest ("rendezvous hashing").

    Args:
        settings: what all images share.
        labels: (N,), one for each real image.
        digests: N content digests of 32 hex characters; an image with "" (unreadable) is no source.
        class_of: {label: class name}, one-to-one.
        prompts: {class name: finished prompt}.
        num_per_image, num_per_class, fill_to: exactly one, see `counts_per_class`.

    Raises:
        TypeError, ValueError: naming the argument and the offenders.

    Warns:
        UserWarning: once, if images are to be mixed and a class has only one content: it goes without a partner.
    """
    labels = np.asarray(labels, dtype=np.int64)
    contents = _as_bytes(digests)
    if len(labels) != len(contents):
        raise ValueError(f"`labels` and `digests` must be equally long, but got {len(labels)} and {len(contents)}.")
    if len(set(class_of.values())) < len(class_of):
        raise ValueError("`class_of` must be one-to-one, but two labels share a name. Rename one of the classes.")
    if split := [name for name in class_of.values() if json.loads(json.dumps(name)) != name]:
        raise ValueError(f"`class_of` must not split letters into surrogates, but got {listed(split, ascii)}.")
    counts = counts_per_class(
        labels, class_of, num_per_image=num_per_image, num_per_class=num_per_class, fill_to=fill_to
    )
    if lacking := [name for name in counts if name not in prompts]:
        raise ValueError(f"`prompts` must have an entry for every class, but lacks {listed(lacking)}.")
    if (settings.scheme == "per-image") != (num_per_image is not None):
        raise ValueError(
            f"`settings.scheme` must fit the count, but got {settings.scheme!r}. 'per-image' goes with "
            "`num_per_image`, 'per-class' with the others."
        )
    inputs = _Inputs(settings, labels, contents, dict(class_of), dict(prompts), counts, num_per_image)
    plan = Plan(inputs)
    if settings.num_sources == 2 and (alone := np.unique(plan.labels[plan.sources[:, 1] < 0])).size:
        warn(
            f"classes with one real image only have nothing to mix it with: {listed([class_of[k] for k in alone])}. "
            "Their images are conditioned on that one.",
        )
    return plan


def _as_bytes(digests: Sequence[str]) -> np.ndarray:
    """(N, 16) uint8; zeros for ""."""
    if wrong := [d for d in digests if not re.fullmatch(r"(?:[0-9a-f]{32})?", d)]:
        raise ValueError(f"`digests` must be 32 hex characters each, or '', but got {listed(wrong)}.")
    joined = bytes.fromhex("".join(digest or "0" * 32 for digest in digests))
    return np.frombuffer(joined, np.uint8).reshape(-1, 16)


@dataclass(frozen=True)
class _Class:
    """The distinct contents of one class, in the order of their digests, and how many images to draw from them."""

    label: int
    name: str
    images: np.ndarray  # (n,) the first real image with each content
    hashes: np.ndarray  # (n,) uint64
    digests: list[str]
    streams: np.ndarray  # images to make: of each content ("per-image"), or of the class


@dataclass(frozen=True)
class _Inputs:
    """All that a plan is a function of."""

    settings: Settings
    labels: np.ndarray
    contents: np.ndarray
    class_of: dict[int, str]
    prompts: dict[str, str]
    counts: dict[str, int]
    num_per_image: int | None

    def classes(self, at_least: Mapping[str, int]) -> list[_Class]:
        order = np.argsort(self.labels, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(self.labels[order])) + 1)
        return [self._class(rows, at_least) for rows in parts if len(rows)]

    def _class(self, rows: np.ndarray, at_least: Mapping[str, int]) -> _Class:
        label = int(self.labels[rows[0]])
        name = self.class_of[label]
        rows = rows[self.contents[rows].any(axis=1)]  # without the unreadable
        _, first, copies = np.unique(self.contents[rows].view("S16")[:, 0], return_index=True, return_counts=True)
        halves = self.contents[rows[first]].view("<u8")
        streams = np.array([self.counts[name]])
        if self.settings.num_sources:
            streams = copies * self.num_per_image if self.num_per_image is not None else streams * bool(len(first))
        streams = np.maximum(streams, at_least.get(name, 0) * bool(len(first) or not self.settings.num_sources))
        digests = [content.tobytes().hex() for content in self.contents[rows[first]]]
        return _Class(label, name, rows[first], _mix(halves[:, 0]) ^ halves[:, 1], digests, streams)


class Plan(Sequence[Recipe]):
    """The recipes of a set, in columns; an item is made when it is asked for. Made by `make_plan`.

    Ordered by label, then by content (where each real image is used in turn), then by ordinal.

    Shape:
        - keys: uint8 (N, 16); labels: int64 (N,); ordinals: int32 (N,); sources: int32 (N, 2), -1 for none.
    """

    def __init__(self, inputs: _Inputs, at_least: Mapping[str, int] | None = None) -> None:
        self._inputs = inputs
        self.settings, self.prompts = inputs.settings, inputs.prompts
        classes = inputs.classes(at_least or {})
        size = sum(int(c.streams.sum()) for c in classes)
        self.keys = np.empty((size, 16), np.uint8)
        self.labels = np.empty(size, np.int64)
        self.ordinals = np.empty(size, np.int32)
        self.sources = np.full((size, 2), -1, np.int32)
        start = 0
        for c in classes:
            start = self._fill(c, start)

    def _fill(self, c: _Class, start: int) -> int:
        """Plans one class into the columns from row `start` on; returns the row after it."""
        ends = np.cumsum(c.streams)
        size = int(ends[-1]) if len(ends) else 0
        encoded = canonical_start(self.settings, c.name, self._inputs.prompts[c.name])
        step = min(1 << 14, max(1, _BLOCK // max(1, len(c.images))))
        for low in range(0, size, step):
            rows = np.arange(low, min(low + step, size))
            stream = np.searchsorted(ends, rows, side="right")
            ordinals = rows - (ends - c.streams)[stream]
            chosen = _choose(self.settings, c, stream, ordinals)
            block = slice(start + low, start + low + len(rows))
            self.labels[block], self.ordinals[block] = c.label, ordinals
            self.sources[block] = np.where(chosen < 0, -1, c.images[chosen]) if len(c.images) else -1
            self.keys[block] = _keys(encoded, c.digests, chosen, ordinals)
        return start + size

    @property
    def contents(self) -> np.ndarray:
        """uint8 (R, 16): the digest of each real image, zeros where it has none."""
        return self._inputs.contents

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(len(self))[i]]
        i = range(len(self))[i]
        label, ordinal = int(self.labels[i]), int(self.ordinals[i])
        name = self._inputs.class_of[label]
        sources = tuple(k for k in self.sources[i].tolist() if k >= 0)
        digests = tuple(self._inputs.contents[k].tobytes().hex() for k in sources)
        seed = hash64(self.settings.seed, name, digests[0] if digests else "", ordinal)
        key = self.keys[i].tobytes().hex()
        return Recipe(key, seed, label, name, self._inputs.prompts[name], ordinal, sources, digests)

    def __repr__(self) -> str:
        return f"Plan({len(self)} images of {len(np.unique(self.labels))} classes)"

    def by_class(self) -> Iterator[tuple[str, slice]]:
        """Each class that has images, with their rows."""
        labels, starts, sizes = np.unique(self.labels, return_index=True, return_counts=True)
        for label, start, size in zip(labels.tolist(), starts.tolist(), sizes.tolist(), strict=True):
            yield self._inputs.class_of[label], slice(start, start + size)

    def extended(self, max_ordinals: Mapping[str, int]) -> "Plan":
        """This plan with every ordinal up to the given one: an image whose key isn't among them is stale, not surplus.

        Args:
            max_ordinals: {class: largest ordinal found}; unknown classes are left out.
        """
        return Plan(self._inputs, {name: ordinal + 1 for name, ordinal in max_ordinals.items()})


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser: a bijection of 64-bit numbers in which every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _choose(settings: Settings, c: _Class, stream: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
    """(N, 2) positions among the contents of `c`: the source and its partner, -1 for none."""
    chosen = np.full((len(ordinals), 2), -1)
    if not settings.num_sources:
        return chosen
    seeds = np.array([hash64(settings.seed, c.name)]).view(np.uint64)
    if settings.scheme == "per-image":
        chosen[:, 0] = stream
        seeds = _mix(seeds ^ c.hashes[stream])
        if settings.num_sources == 1:
            return chosen
    rows = _mix(seeds + (ordinals + 1).astype(np.uint64) * _GOLDEN)
    scores = _mix(rows[:, None] ^ c.hashes)
    if settings.scheme == "per-class":
        chosen[:, 0] = scores.argmax(axis=1)
    if settings.num_sources == 2 and len(c.hashes) > 1:
        scores[np.arange(len(rows)), chosen[:, 0]] = 0
        chosen[:, 1] = scores.argmax(axis=1)
    return chosen


def _keys(encoded: bytes, digests: list[str], chosen: np.ndarray, ordinals: np.ndarray) -> np.ndarray:
    start = hashlib.blake2b(encoded, digest_size=16)
    keys = []
    for positions, ordinal in zip(chosen.tolist(), ordinals.tolist(), strict=True):
        key = start.copy()
        key.update(canonical_end([digests[k] for k in positions if k >= 0], ordinal))
        keys.append(key.digest())
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 16)
