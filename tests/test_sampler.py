"""The sampler's promises as properties: composition, ranks, epochs, bad input (resuming: test_sampler_resume.py)."""

import json
import os
import subprocess
import sys
import time
from collections import Counter, deque
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, RandomSampler, Subset

from torch_augcond.sampler import MixedRealSyntheticSampler


class Part(Dataset):
    def __init__(self, size, synthetic=False, targets=None):
        self.size = size
        if synthetic:
            self.is_synthetic = True
        if targets is not None:
            self.targets = targets

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return int(hasattr(self, "is_synthetic"))


def mix(real=10, synthetic=10):
    return Part(real) + Part(synthetic, synthetic=True)


def kinds(dataset, indices):
    return [dataset[i] for i in indices]


def every_rank(dataset, world, **kwargs):
    return [MixedRealSyntheticSampler(dataset, world, rank, **kwargs) for rank in range(world)]


sizes = st.integers(1, 40)
worlds = st.integers(1, 8)
epochs = st.integers(0, 9)
fractions = st.fractions(0, 1, max_denominator=12)
lengths = st.sampled_from(["real", "synthetic", "all"]) | st.integers(1, 90)
options = st.fixed_dictionaries(
    {"synthetic_fraction": fractions, "epoch_length": lengths, "shuffle": st.booleans(), "seed": st.integers(-5, 2**70)}
)


@st.composite
def trees(draw):
    """`real + synthetic` in any order, number and nesting, with Subsets and empty parts; both kinds present."""
    leaves = draw(st.lists(st.builds(Part, st.integers(0, 9), st.booleans()), max_size=5))
    leaves += [Part(draw(sizes)), Part(draw(sizes), True)]
    parts = draw(st.permutations(leaves))
    while len(parts) > 1:
        at, kind = draw(st.integers(0, len(parts) - 2)), draw(st.sampled_from(["concat", "subset"]))
        joined = ConcatDataset(parts[at : at + 2])
        if kind == "subset":
            joined = Subset(joined, draw(st.permutations(range(len(joined)))))
        parts = [*parts[:at], joined, *parts[at + 2 :]]
    return parts[0]


# --- Composition


@given(dataset=trees(), world=worlds, kwargs=options, run=st.integers(1, 30), epoch=epochs)
def test_every_run_of_consecutive_indices_holds_its_share(dataset, world, kwargs, run, epoch):
    share = kwargs["synthetic_fraction"] * run
    for sampler in every_rank(dataset, world, **kwargs):
        sampler.set_epoch(epoch)
        counts = np.cumsum([0, *kinds(dataset, sampler)])
        found = set((counts[run:] - counts[:-run]).tolist())
        assert found <= {share.__floor__(), share.__ceil__()}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [2, 6, 10])
def test_batches_of_a_dataloader_are_half_and_half(workers, batch_size):
    dataset = mix(30, 100)
    sampler = MixedRealSyntheticSampler(dataset)
    loader = DataLoader(dataset, batch_size, sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    for _ in range(2):
        assert [int(batch.sum()) for batch in loader] == [batch_size // 2] * (60 // batch_size)


@pytest.mark.parametrize(
    ("value", "kept"),
    [(0.1, "1/10"), (1 / 3, "1/3"), (2 / 7, "2/7"), (np.float32(0.3), "3/10"), (Fraction(5, 8), "5/8"), (1e-30, "0")],
)
def test_a_float_stands_for_the_simplest_fraction(value, kept):
    assert MixedRealSyntheticSampler(mix(), synthetic_fraction=value).synthetic_fraction == Fraction(kept)


@given(value=st.floats(0, 1))
def test_any_float_is_met_to_within_one_index(value):
    dataset = mix(50, 50)
    found = sum(kinds(dataset, MixedRealSyntheticSampler(dataset, synthetic_fraction=value, epoch_length=100)))
    assert abs(found - 100 * value) < 1 + 1e-6


def test_a_marked_wrapper_is_synthetic_as_a_whole():
    subset = Subset(Part(20), range(5, 15))
    subset.is_synthetic = True
    dataset = Part(4) + subset
    assert Counter(i >= 4 for i in MixedRealSyntheticSampler(dataset)) == {False: 4, True: 4}


# --- Length


@given(dataset=trees(), world=worlds, kwargs=options, drop_last=st.booleans())
def test_len_is_exact_constant_and_equal_on_all_ranks(dataset, world, kwargs, drop_last):
    try:
        samplers = every_rank(dataset, world, drop_last=drop_last, **kwargs)
    except ValueError:  # its message is tested below
        assert drop_last
        return
    expected = len(samplers[0])
    assert expected > 0
    assert [len(list(s)) for s in samplers for _ in range(3)] == [expected] * world * 3
    assert {len(s) for s in samplers} == {expected}
    assert samplers[0].total_size == expected * world


@given(real=sizes, synthetic=sizes, fraction=st.fractions(0, 1, max_denominator=12), epoch=epochs)
def test_epoch_length_counts_the_stream_it_names_once(real, synthetic, fraction, epoch):
    dataset = mix(real, synthetic)
    drawn = {}
    for length in ("real", "synthetic", "all"):
        sampler = MixedRealSyntheticSampler(dataset, synthetic_fraction=fraction, epoch_length=length)
        sampler.set_epoch(epoch)
        drawn[length] = Counter(sampler)
    if fraction < 1:
        assert all(drawn["real"][i] == 1 for i in range(real))
        assert all(drawn["all"][i] >= 1 for i in range(real))
    if fraction > 0:
        assert all(drawn["synthetic"][i] == 1 for i in range(real, real + synthetic))
        assert all(drawn["all"][i] >= 1 for i in range(real, real + synthetic))
    assert drawn["all"].total() == max(drawn["real"].total(), drawn["synthetic"].total())


def test_an_int_epoch_length_is_summed_over_the_ranks():
    assert [len(s) for s in every_rank(mix(), 3, epoch_length=100)] == [34, 34, 34]
    assert [len(s) for s in every_rank(mix(), 3, epoch_length=100, drop_last=True)] == [33, 33, 33]


@pytest.mark.parametrize("world", [1, 2, 8])
def test_one_image_of_each_kind_feeds_any_number_of_ranks(world):
    for sampler in every_rank(mix(1, 1), world):
        assert list(sampler) == [1, 0]


# --- Ranks


@given(real=sizes, synthetic=sizes, world=worlds, kwargs=options, epoch=epochs)
def test_ranks_are_disjoint_until_a_stream_is_used_up(real, synthetic, world, kwargs, epoch):
    dataset = mix(real, synthetic)
    samplers = every_rank(dataset, world, **kwargs)
    for sampler in samplers:
        sampler.set_epoch(epoch)
    together = Counter(i for sampler in samplers for i in sampler)
    for stream in range(real), range(real, real + synthetic):
        uses = [together[i] for i in stream]
        assert max(uses) - min(uses) <= 1  # none twice before all once


@given(real=sizes, synthetic=sizes, world=worlds, kwargs=options)
def test_ranks_hold_the_same_kinds_at_the_same_places(real, synthetic, world, kwargs):
    dataset = mix(real, synthetic)
    assert len({tuple(kinds(dataset, s)) for s in every_rank(dataset, world, **kwargs)}) == 1


@given(synthetic=st.integers(20, 60), world=st.integers(1, 4), shuffle=st.booleans(), epochs=st.integers(1, 12))
def test_a_long_stream_goes_on_where_the_last_epoch_stopped(synthetic, world, shuffle, epochs):
    samplers = every_rank(mix(8, synthetic), world, shuffle=shuffle)
    seen = Counter(i for _ in range(epochs) for sampler in samplers for i in sampler if i >= 8)
    drawn = len(samplers[0]) // 2 * world * epochs
    assert {seen[8 + i] for i in range(synthetic)} <= {drawn // synthetic, -(-drawn // synthetic)}


# --- Epochs


@given(seed=st.integers(0, 9), epochs=st.lists(st.integers(0, 50), min_size=2, max_size=4, unique=True))
def test_order_differs_by_epoch_and_by_seed(seed, epochs):
    def order(seed, epoch):
        sampler = MixedRealSyntheticSampler(mix(40, 60), seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    orders = {order(s, e) for e in epochs for s in (seed, seed + 1)}
    assert len(orders) == 2 * len(epochs)  # seed + 1 at one epoch isn't seed at the next one either
    assert order(seed, epochs[0]) in orders


def test_passes_advance_by_themselves_and_equal_those_after_set_epoch():
    alone, told = MixedRealSyntheticSampler(mix()), MixedRealSyntheticSampler(mix())
    for epoch in range(5):
        told.set_epoch(epoch)
        assert list(alone) == list(told)
        assert alone.epoch == epoch
    told.set_epoch(2)
    assert list(told) != list(told)


def test_a_pass_begins_with_its_first_index_however_often_iter_is_called():
    sampler, other = MixedRealSyntheticSampler(mix()), MixedRealSyntheticSampler(mix())
    iter(sampler), iter(sampler)
    assert list(sampler) == list(other)


def test_a_loop_that_stops_early_still_advances():
    sampler = MixedRealSyntheticSampler(mix(100, 100))
    heads = [tuple(i for i, _ in zip(sampler, range(10), strict=False)) for _ in range(3)]
    assert len(set(heads)) == 3


def test_without_shuffle_both_streams_keep_their_order():
    sampler = MixedRealSyntheticSampler(mix(3, 7), shuffle=False)
    assert [list(sampler) for _ in range(2)] == [[3, 0, 4, 1, 5, 2], [6, 0, 7, 1, 8, 2]]


def test_no_global_random_numbers_are_drawn_or_heeded():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    first = list(MixedRealSyntheticSampler(mix()))
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # noqa: NPY002
    torch.manual_seed(2)
    assert list(MixedRealSyntheticSampler(mix())) == first


def test_order_doesnt_depend_on_the_process():
    code = "from test_sampler import *; print(list(MixedRealSyntheticSampler(mix(50, 70), 2, 1, seed=7)))"
    run = [sys.executable, "-c", code]
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "PYTHONHASHSEED": "5"}
    printed = subprocess.run(run, capture_output=True, text=True, check=True, env=env)
    assert json.loads(printed.stdout) == list(MixedRealSyntheticSampler(mix(50, 70), 2, 1, seed=7))


# --- Balanced classes


def labels(sizes):
    return [label for label, size in enumerate(sizes) for _ in range(size)]


@given(
    real=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    synthetic=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    world=worlds,
    epoch=epochs,
    kwargs=options,
)
def test_class_balanced_draws_classes_equally_often_and_each_image_in_turn(real, synthetic, world, epoch, kwargs):
    dataset = Part(sum(real), False, labels(real)) + Part(sum(synthetic), True, torch.tensor(labels(synthetic)))
    samplers = every_rank(dataset, world, class_balanced=True, **kwargs)
    for sampler in samplers:
        sampler.set_epoch(epoch)
    together = Counter(i for sampler in samplers for i in sampler)
    for offset, sizes in (0, real), (sum(real), synthetic):
        ends = offset + np.cumsum(sizes)
        uses = [[together[i] for i in range(end - size, end)] for end, size in zip(ends, sizes, strict=True)]
        totals = [sum(u) for u in uses]
        assert max(totals) - min(totals) <= 1
        assert all(max(u) - min(u) <= 1 for u in uses)


@pytest.mark.parametrize("attribute", ["targets", "labels", "_labels", "y"])
def test_class_balanced_finds_labels_through_subsets(attribute):
    real = Part(100)
    setattr(real, attribute, np.array([5] * 90 + [7] * 10))
    dataset = Subset(Subset(real, range(50, 100)), range(-45, 0)) + Part(0, True)
    drawn = list(MixedRealSyntheticSampler(dataset, synthetic_fraction=0, class_balanced=True, epoch_length=40))
    assert Counter(i >= 35 for i in drawn) == {False: 20, True: 20}


@pytest.mark.parametrize("targets", [None, [1, 2], [[1, 2]] * 10])
def test_class_balanced_needs_one_label_an_item(targets):
    with pytest.raises(ValueError, match=r"`class_balanced` must find one label for each of the 10 items of Part"):
        MixedRealSyntheticSampler(Part(10, False, targets) + Part(5, True, [0] * 5), class_balanced=True)


# --- Bad input


class Stream(IterableDataset):
    def __iter__(self):
        yield 0


FRACTION = "`synthetic_fraction` must be a number from 0 to 1, but got "
PARTS = "`dataset` must be of parts with a length and indices, but got "


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"synthetic_fraction": 1.5}, ValueError, FRACTION + "1.5"),
        ({"synthetic_fraction": float("nan")}, ValueError, FRACTION + "nan"),
        ({"synthetic_fraction": "1/2"}, TypeError, FRACTION + "'1/2'"),
        ({"synthetic_fraction": True}, TypeError, FRACTION + "True"),
        ({"shuffle": 1}, TypeError, "`shuffle` must be True or False, but got 1"),
        ({"drop_last": None}, TypeError, "`drop_last` must be True or False, but got None"),
        ({"class_balanced": "yes"}, TypeError, "`class_balanced` must be True or False, but got 'yes'"),
        ({"seed": 1.0}, TypeError, "`seed` must be an int, but got 1.0"),
        ({"epoch_length": "longest"}, ValueError, r"`epoch_length` must be one of \('real', 'synthetic', 'all'\) or a"),
        ({"epoch_length": 0}, ValueError, "`epoch_length` must be an int of 1 or more, but got 0"),
        ({"epoch_length": None}, TypeError, "`epoch_length` must be an int, but got None"),
        ({"num_replicas": 0}, ValueError, "`num_replicas` must be an int of 1 or more, but got 0"),
        ({"num_replicas": 2, "rank": 2}, ValueError, "`rank` must be below num_replicas=2, but got 2"),
        ({"num_replicas": 2, "rank": "0"}, TypeError, "`rank` must be an int, but got '0'"),
        ({"num_replicas": 2}, ValueError, "`rank` must be given with num_replicas=2"),
        ({"num_replicas": 64, "rank": 0, "drop_last": True}, ValueError, "`drop_last` must leave each rank something"),
        ({"dataset": Part(5)}, ValueError, "must hold synthetic images .* got 5 real and 0 synthetic .*_fraction=0"),
        ({"dataset": Part(5, True)}, ValueError, "must hold real images .* got 0 real and 5 synthetic .*_fraction=1"),
        ({"dataset": mix(0, 0)}, ValueError, "`dataset` must hold real images .* got 0 real and 0 synthetic"),
        ({"dataset": Stream()}, TypeError, PARTS + "Stream"),
        ({"dataset": 5}, TypeError, PARTS + "int"),
        ({"dataset": mix() + Subset(Part(3), [3])}, ValueError, "`Subset.indices` must lie in .* 3 items, but got 3"),
        ({"dataset": Subset(mix(), [0.7])}, TypeError, r"`Subset.indices` must be an int, but got 0\.7 \(float\)"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        MixedRealSyntheticSampler(kwargs.pop("dataset", mix()), **kwargs)
    assert "\n" not in str(caught.value)


def test_bad_epochs_and_places_are_refused():
    sampler = MixedRealSyntheticSampler(mix())
    with pytest.raises(ValueError, match="`epoch` must be an int of 0 or more, but got -1"):
        sampler.set_epoch(-1)
    with pytest.raises(TypeError, match=r"`epoch` must be an int, but got 0\.5"):
        sampler.set_epoch(0.5)
    with pytest.raises(ValueError, match="`consumed` must be at most the 20 indices of an epoch, but got 21"):
        sampler.state_dict(consumed=21)


def test_ranks_started_without_a_process_group_draw_a_warning(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.warns(UserWarning, match="WORLD_SIZE is not 1 but there is no process group"):
        MixedRealSyntheticSampler(mix())


# --- What frameworks look at


def test_it_is_a_distributed_sampler_without_a_process_group_or_a_generator():
    sampler = MixedRealSyntheticSampler(mix())
    assert isinstance(sampler, torch.utils.data.DistributedSampler)
    assert (sampler.num_replicas, sampler.rank, sampler.epoch) == (1, 0, 0)
    assert not hasattr(sampler, "generator")  # accelerate would broadcast its state between processes


def test_ranks_come_from_the_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        sampler = MixedRealSyntheticSampler(mix())
        assert (sampler.num_replicas, sampler.rank) == (1, 0)
        assert MixedRealSyntheticSampler(mix(), num_replicas=1).rank == 0
    finally:
        torch.distributed.destroy_process_group()


def test_it_is_about_as_fast_as_random_sampler():
    dataset = mix(100_000, 100_000)

    def seconds(sampler):
        start = time.process_time()
        deque(sampler, maxlen=0)
        return time.process_time() - start

    ours, theirs = MixedRealSyntheticSampler(dataset), RandomSampler(dataset)
    assert min(seconds(ours) for _ in range(7)) < 1.5 * min(seconds(theirs) for _ in range(7))  # measured: 0.5
