"""An exact share of synthetic images in every batch, on every rank."""

import hashlib
import math
import operator
import os
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import Dataset, DistributedSampler

from .checks import as_int, listed, warn
from .parts import are_synthetic, by_label, labels_of, per_item

__all__ = ["MixedRealSyntheticSampler"]

_LENGTHS = ("real", "synthetic", "all")
_MOST = 10**9  # indices of an epoch; the arithmetic in _indices is exact up to here, and memory is used up before
_FIXED = {"num_replicas", "rank", "drop_last", "synthetic_fraction", "class_balanced", "epoch_length"}


class MixedRealSyntheticSampler(DistributedSampler[int]):
    """Yields indices of ``real + synthetic`` so that every batch holds the same share of synthetic images.

    Any run of ``b`` consecutive indices holds exactly ``b * synthetic_fraction`` synthetic ones where that is an
    integer, else that rounded up or down. So each batch is exact whatever the batch size, on each rank, and the
    training loop stays as it is. Ranks never share an image within an epoch until a stream (the real or the synthetic
    images; with ``class_balanced``, one class of a stream) is used up; it's then shuffled again and reused. A stream
    that is longer than an epoch goes on in the next one where the last one stopped, so all of it gets used.

    The order is a function of the arguments, the epoch, and the sizes (and labels) of the parts; no global random
    numbers are drawn or heeded.

    Args:
        dataset: ``real + synthetic``: a ``ConcatDataset`` of any number of parts in any order, nested or not, with
            ``Subset`` anywhere. A part is synthetic if it has a true attribute ``is_synthetic``, or is an
            ``ImageFolder`` of a set.
        num_replicas: Number of ranks. Default: the size of the process group if there is one, else 1.
        rank: This process, from 0 to ``num_replicas - 1``. Default: its rank in the process group, else 0.
        shuffle: Shuffle both streams. ``False`` keeps the order of the dataset in each.
        seed: An int, the same on all ranks.
        drop_last: Where the epoch isn't divisible by the ranks, leave out the tail instead of reusing images.
        synthetic_fraction: Share of synthetic images, from 0 (real only) to 1 (synthetic only). A float stands for the
            simplest fraction that prints like it (``1 / 3`` for a third).
        class_balanced: Draw the classes of each stream equally often (to within one in an epoch, over all ranks)
            instead of each image equally often; warns of a class that has images in one stream only, as frequent ones
            have after ``fill_to``. Needs a list of labels, ``targets``, on each part; those of a
            ``Subset`` or ``ConcatDataset`` that has none are those of what it holds.
        epoch_length: ``"real"``: each real image once an epoch, beside as many synthetic ones as the fraction asks for
            (with ``synthetic_fraction=1``, as ``"synthetic"``). ``"synthetic"``: each synthetic image once (with
            ``synthetic_fraction=0``, as ``"real"``). ``"all"``: the longer of the two, so that no image is left out.
            An int: that many indices, summed over the ranks. With ``class_balanced`` these set the length only.

    Raises:
        TypeError: If an argument has the wrong type or a part has no length.
        ValueError: If a stream that is asked for is empty, or an argument is out of range.

    Note:
        Each pass over the sampler advances the epoch by itself; calling ``set_epoch`` as usual works too, and is needed
        if the ranks don't start equally many passes.

        With torchdata's ``StatefulDataLoader`` call ``set_epoch`` before each epoch.

        Lightning leaves a ``DistributedSampler``, as this one is, as it is, and calls ``set_epoch``. Hugging Face
        accelerate splits the batches of any loader between its processes by itself: give it
        ``num_replicas=1, rank=0``; each process then gets whole batches, exact as well.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> real, synthetic = TensorDataset(torch.arange(6)), TensorDataset(torch.arange(100, 160))
        >>> synthetic.is_synthetic = True
        >>> train = real + synthetic
        >>> loader = DataLoader(train, batch_size=4, sampler=MixedRealSyntheticSampler(train))
        >>> [int((batch >= 100).sum()) for (batch,) in loader]
        [2, 2, 2]

    Source: Half real, half synthetic batches: arXiv 2502.04475.
    """

    def __init__(
        self,
        dataset: Dataset,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        drop_last: bool = False,
        *,
        synthetic_fraction: float | Fraction = 0.5,
        class_balanced: bool = False,
        epoch_length: int | str = "real",
    ) -> None:
        for name, value in {"shuffle": shuffle, "drop_last": drop_last, "class_balanced": class_balanced}.items():
            if not isinstance(value, bool):
                raise TypeError(f"`{name}` must be True or False, but got {value!r}.")
        num_replicas, rank = _check_ranks(num_replicas, rank)
        fraction = _check_fraction(synthetic_fraction)
        epoch_length = _check_length(epoch_length)
        is_synthetic = per_item(dataset, are_synthetic)
        # The parent keeps dataset, num_replicas, rank, shuffle, seed, drop_last, and epoch = 0.
        super().__init__(dataset, num_replicas, rank, shuffle, as_int("seed", seed), drop_last)
        self.synthetic_fraction = fraction
        self.class_balanced = class_balanced
        self.epoch_length = epoch_length
        self._streams = self._split(is_synthetic)
        self.num_samples = self._rank_length()
        self.total_size = self.num_samples * num_replicas
        self._circles: dict[tuple[str, int], tuple[tuple[Any, ...], np.ndarray]] = {}
        self._begun = False  # whether a pass over the current epoch has begun, so that the next one is a new epoch
        self._start = 0  # where the next pass starts: above 0 once after load_state_dict
        self._drawing: Iterator[int] = iter(())

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and hasattr(self, "_drawing"):
            raise AttributeError(f"`{name}` must stay as it was given, but got {value!r}. Make another sampler.")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        names = ("num_replicas", "rank", "shuffle", "seed", "drop_last")
        given = [f"{name}={getattr(self, name)!r}" for name in (*names, "class_balanced", "epoch_length")]
        sizes = ", ".join(f"{sum(map(len, groups))} {name}" for name, groups in self._streams.items())
        return f"{type(self).__name__}({sizes}, synthetic_fraction={self.synthetic_fraction}, {', '.join(given)})"

    def __iter__(self) -> Iterator[int]:
        # A pass begins when its first index is drawn: a DataLoader may call iter() more than once for one pass.
        return chain.from_iterable(self._pass())

    def _pass(self) -> Iterator[Iterator[int]]:
        if self._begun:
            self._seek(self.epoch + 1)
        indices = self._indices()[self._start :].tolist()
        self._begun, self._start, self._drawing = True, 0, iter(indices)
        yield self._drawing

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next pass; a position restored by ``load_state_dict`` in that epoch stays.

        Args:
            epoch: 0 or more, the same on all ranks.

        Raises:
            ValueError: If ``epoch`` is negative; a TypeError if it isn't an int.
        """
        epoch = as_int("epoch", epoch, 0)
        self._seek(epoch, self._start if epoch == self.epoch else 0)

    def _seek(self, epoch: int, start: int = 0) -> None:
        self.epoch, self._start, self._begun = epoch, start, False

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Returns the place to resume at, as plain values that are the same on every rank.

        Args:
            consumed: How many indices of the epoch begun last the training loop has used on this rank,
                ``min(steps * batch_size, len(sampler))``, since the last batch may be smaller: once it has ended, all
                of them, not 0, which would begin it again.
                Default: as many as were drawn, which is right without workers; a ``DataLoader`` with workers draws
                ahead of the loop.

        Raises:
            ValueError: If ``consumed`` is negative or above ``len(self)``; a TypeError if it isn't an int.
        """
        if consumed is None:
            consumed = self.num_samples - operator.length_hint(self._drawing) if self._begun else self._start
        index = as_int("consumed", consumed, 0)
        if index > self.num_samples:
            raise ValueError(
                f"`consumed` must be at most the {self.num_samples} indices of an epoch, but got {index}. The last "
                "batch may be smaller: give min(steps * batch_size, len(sampler))."
            )
        ended = index == self.num_samples
        return {"epoch": self.epoch + ended, "index": 0 if ended else index, "config": self._config()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next pass go on where ``state`` was taken; that one pass yields the rest of its epoch only.

        Args:
            state: What ``state_dict`` returned, on any rank of a sampler with the same arguments, the same order of
                parts, and (with ``class_balanced``) the same labels.

        Raises:
            TypeError: If ``state`` isn't such a dict.
            ValueError: If it came from a sampler that draws another order; the message names what differs. Or if there
                is no such place in an epoch.
        """
        is_state = isinstance(state, dict) and {"epoch", "index", "config"} <= state.keys()
        if not is_state or not isinstance(state["config"], dict):
            raise TypeError(f"`state` must be what `state_dict` returned, but got {state!r}.")
        now = self._config()
        saved = {name: state["config"].get(name) for name in now}
        differing = [f"{name} (saved {saved[name]!r}, now {now[name]!r})" for name in now if saved[name] != now[name]]
        if differing:
            raise ValueError(
                f"`state` must come from a sampler of the same order, but differs in {', '.join(differing)}. "
                "Make this sampler alike, or start an epoch with `set_epoch`."
            )
        epoch, index = as_int("epoch", state["epoch"], 0), as_int("index", state["index"], 0)
        if index >= self.num_samples:
            raise ValueError(f"`index` must be below the {self.num_samples} indices of an epoch, but got {index}.")
        self._seek(epoch, index)

    def _config(self) -> dict[str, Any]:
        names = ("num_replicas", "shuffle", "seed", "class_balanced", "num_samples")
        sizes = {name: sum(map(len, groups)) for name, groups in self._streams.items()}
        own = {name: getattr(self, name) for name in names}
        return own | sizes | {"fraction": str(self.synthetic_fraction), "streams": self._digest, "order": 2}

    @cached_property
    def _digest(self) -> str:
        """Which indices are real and which synthetic, and with ``class_balanced`` which of them are of one class."""
        digest = hashlib.blake2b(digest_size=8)
        for groups in self._streams.values():
            digest.update(np.array([len(groups), *map(len, groups)], "<i8"))
            for indices in groups:
                digest.update(indices.astype("<i8", copy=False))
        return digest.hexdigest()

    def _split(self, is_synthetic: np.ndarray) -> dict[str, list[np.ndarray]]:
        """The indices of both streams, each a list of groups that take turns: its classes, or all of it as one."""
        members = {"real": np.flatnonzero(~is_synthetic), "synthetic": np.flatnonzero(is_synthetic)}
        found = " and ".join(f"{len(indices)} {name}" for name, indices in members.items())
        for name, share in ("real", 1 - self.synthetic_fraction), ("synthetic", self.synthetic_fraction):
            if share and not len(members[name]):
                raise ValueError(
                    f"`dataset` must hold {name} images for synthetic_fraction={self.synthetic_fraction}, but got "
                    f"{found} ones. Join both (`real + synthetic`; synthetic parts have `is_synthetic = True`, which "
                    f"a wrapper of your own hides), or pass synthetic_fraction={int(name == 'real')}."
                )
        if not self.class_balanced:
            return {name: [indices] for name, indices in members.items()}
        labels = per_item(self.dataset, labels_of)
        held = [set(labels[indices].tolist()) for indices in members.values()]
        if 0 < self.synthetic_fraction < 1 and (rare := held[0] ^ held[1]):
            warn(
                f"labels {listed(sorted(rare))} have images in one stream only, so that `class_balanced`, which "
                "balances each stream, draws them less often than the others. Give each class real and synthetic "
                "images (`num_per_class`), or leave `class_balanced` out."
            )
        return {name: by_label(indices, labels[indices]) for name, indices in members.items()}

    def _rank_length(self) -> int:
        """The number of indices of one rank in an epoch, so that the stream it's measured by comes out exactly."""
        length, (share, whole) = self.epoch_length, self.synthetic_fraction.as_integer_ratio()
        sizes = {name: self._share(sum(map(len, groups))) for name, groups in self._streams.items()}
        # The inverses of the counts in _indices: at these lengths exactly sizes[...] of that stream are drawn.
        real = -(-sizes["real"] * whole // max(1, whole - share))
        synthetic = sizes["synthetic"] * whole // max(1, share)
        lengths = {"real": real, "synthetic": synthetic, "all": max(real, synthetic)}
        only = {0: "real", 1: "synthetic"}.get(self.synthetic_fraction, length)
        result = lengths[only] if isinstance(length, str) else self._share(length)
        if result > _MOST:
            raise ValueError(
                f"`epoch_length` must come to at most {_MOST:,} indices a rank, but got {result:,} of {length!r} with "
                f"synthetic_fraction={self.synthetic_fraction}. Make either smaller."
            )
        if not result:
            raise ValueError(
                f"`drop_last` must leave each rank something to draw, but got {self.num_replicas} ranks for "
                f"epoch_length={length!r} of {len(self.dataset)} images. Use drop_last=False or fewer ranks."
            )
        return result

    def _share(self, count: int) -> int:
        return count // self.num_replicas if self.drop_last else -(-count // self.num_replicas)

    def _indices(self) -> np.ndarray:
        """This rank's indices of the current epoch."""
        indices = np.empty(self.num_samples, np.int64)
        share, whole = self.synthetic_fraction.as_integer_ratio()
        # Of the first n indices, floor(n * (whole - share) / whole) are real: a run of b then holds that of b or one
        # more. These are the places where the count goes up, and the places between.
        num_real = self.num_samples * (whole - share) // whole
        real = (np.arange(1, num_real + 1) * whole - 1) // max(1, whole - share)
        synthetic = np.arange(self.num_samples - num_real) * whole // max(1, share)
        for stream, places in ("real", real), ("synthetic", synthetic):
            indices[places] = self._stride(stream, len(places))
        return indices

    def _stride(self, stream: str, count: int) -> np.ndarray:
        """This rank's ``count`` images of a stream: every ``num_replicas``-th of what all ranks draw together."""
        groups, total = self._streams[stream], count * self.num_replicas
        if not total:
            return np.empty(0, np.int64)
        rounds = -(-total // len(groups))
        # Without shuffle classes take turns through all epochs; these are how many each has had before this one.
        drawn, first = self.epoch * total, self.epoch * total % len(groups)
        begins = [-(-(drawn - i) // len(groups)) for i in range(len(groups))]
        draws = [self._draw(members, rounds, begins[i], stream, i) for i, members in enumerate(groups)]
        table = np.stack(draws[first:] + draws[:first], axis=1)
        if self.shuffle and len(groups) > 1:  # in each round every class takes one turn, in random order
            table = self._rng(stream, "turns").permuted(table, axis=1)
        return table.ravel()[self.rank : total : self.num_replicas]

    def _draw(self, members: np.ndarray, count: int, begin: int, stream: str, group: int) -> np.ndarray:
        """``count`` of ``members`` for this epoch, none of them twice before all of them once.

        Fewer than all are an arc of a circle, on which the next epoch goes on where this one ends; once the circle ends
        with an epoch, the next one is in another order.
        """
        size = len(members)
        if count >= size:
            passes = np.tile(members, (-(-count // size), 1))
            return (self._rng(stream, group).permuted(passes, axis=1) if self.shuffle else passes).ravel()[:count]
        places = (begin % size + np.arange(count)) % size
        if not self.shuffle:
            return members[places]
        key = self.seed, stream, group, begin // math.lcm(size, count)
        if self._circles.get((stream, group), (None,))[0] != key:  # kept for the next epoch: most draw the same one
            self._circles[stream, group] = key, _rng(*key).permutation(members)
        return self._rng(stream, group).permutation(self._circles[stream, group][1][places])

    def _rng(self, *key: Any) -> np.random.Generator:
        return _rng(self.seed, *key, self.epoch)


def _rng(*key: Any) -> np.random.Generator:
    # Hashed, because sums collide: seed 1 of epoch 0 would be seed 0 of epoch 1.
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest()))


def _check_length(value: Any) -> int | str:
    if isinstance(value, str) and value not in _LENGTHS:
        raise ValueError(f"`epoch_length` must be one of {_LENGTHS} or a positive int, but got {value!r}.")
    return value if isinstance(value, str) else as_int("epoch_length", value, 1)


def _check_fraction(value: Any) -> Fraction:
    message = f"`synthetic_fraction` must be a number from 0 to 1, but got {value!r}."
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(message)
    if not 0 <= value <= 1:
        raise ValueError(message)
    exact = value if isinstance(value, Fraction) else Fraction(float(value))
    # A denominator above 10^9 couldn't change any count within 10^9 indices, and would overflow int64.
    candidates = [exact.limit_denominator(10**digits) for digits in range(1, 10)]
    return next((c for c in candidates if type(value)(c) == value), candidates[-1])


def _check_ranks(num_replicas: Any, rank: Any) -> tuple[int, int]:
    group = dist.is_available() and dist.is_initialized()
    if num_replicas is None:
        num_replicas = dist.get_world_size() if group else 1
        if rank is None and not group and os.environ.get("WORLD_SIZE", "1") != "1":
            warn(
                "WORLD_SIZE is not 1 but there is no process group, so every rank will draw the same indices. Make "
                "the sampler after `init_process_group`, or pass `num_replicas` and `rank`.",
            )
    num_replicas = as_int("num_replicas", num_replicas, 1)
    if rank is None:
        if num_replicas > 1 and not group:
            raise ValueError(f"`rank` must be given with num_replicas={num_replicas}, as there is no process group.")
        rank = dist.get_rank() if num_replicas > 1 else 0
    if as_int("rank", rank, 0) >= num_replicas:
        raise ValueError(f"`rank` must be below num_replicas={num_replicas}, but got {rank}.")
    return num_replicas, operator.index(rank)
