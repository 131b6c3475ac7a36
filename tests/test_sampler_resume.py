"""The sampler resumes at every index, and refuses a place in another order."""

import json
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler import Part, epochs, mix, options
from torch.utils.data import DataLoader, TensorDataset

from torch_augcond.sampler import MixedRealSyntheticSampler


@settings(max_examples=25)
@given(real=st.integers(1, 9), synthetic=st.integers(1, 20), world=st.integers(1, 8), kwargs=options, epoch=epochs)
def test_resume_at_every_index_of_an_epoch(real, synthetic, world, kwargs, epoch):
    def make():
        return MixedRealSyntheticSampler(mix(real, synthetic), world, world - 1, **kwargs)

    whole = make()
    whole.set_epoch(epoch)
    expected = list(whole) + list(whole)
    for stop in range(len(whole) + 1):
        running, resumed = make(), make()
        running.set_epoch(epoch)
        head = [i for _, i in zip(range(stop), running, strict=False)]
        state = json.loads(json.dumps(running.state_dict()))
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        rest = list(resumed) if stop < len(whole) else []
        assert head + rest + list(resumed) == expected
        assert len(resumed) == len(whole)


def test_a_loader_with_workers_resumes_from_the_batches_its_loop_used():
    dataset = TensorDataset(torch.arange(20)) + Part(0)
    dataset.datasets[1].is_synthetic = True

    def make():
        sampler = MixedRealSyntheticSampler(dataset, synthetic_fraction=0)
        return sampler, DataLoader(dataset, 2, sampler=sampler, num_workers=2)

    sampler, loader = make()
    batches = [batch[0].tolist() for batch in loader]
    sampler.set_epoch(0)
    used = [batch[0].tolist() for batch, _ in zip(loader, range(3), strict=False)]
    state = sampler.state_dict(consumed=3 * 2)
    resumed, loader = make()
    resumed.load_state_dict(state)
    assert used + [batch[0].tolist() for batch in loader] == batches


def test_set_epoch_keeps_a_restored_place_in_that_epoch_only():
    sampler = MixedRealSyntheticSampler(mix())
    state = sampler.state_dict(consumed=6)
    for epoch, drawn in (0, 14), (1, 20):
        sampler.load_state_dict(state)
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == drawn


def test_a_pickled_sampler_goes_on_where_it_was():
    sampler = MixedRealSyntheticSampler(mix())
    head = [i for _, i in zip(range(7), sampler, strict=False)]
    copy = pickle.loads(pickle.dumps(sampler))
    assert copy.state_dict() == sampler.state_dict()
    assert len(head) == copy.state_dict()["index"] == 7


def test_a_state_of_another_order_is_refused_by_name():
    state = MixedRealSyntheticSampler(mix(), seed=1).state_dict()
    with pytest.raises(
        ValueError, match=r"differs in seed \(saved 1, now 2\), real \(saved 10, now 12\), streams \(.*\)\. Make this"
    ):
        MixedRealSyntheticSampler(mix(12), seed=2, epoch_length=20).load_state_dict(state)
    for other in (Part(10, True) + Part(10), Part(5) + Part(10, True) + Part(5)):
        with pytest.raises(ValueError, match=r"but differs in streams \(saved '\w{16}', now '\w{16}'\)\. Make this"):
            MixedRealSyntheticSampler(other, seed=1).load_state_dict(state)
    for wrong in {}, {**state, "config": "abc"}, {**state, "config": None}:
        with pytest.raises(
            TypeError, match=f"`state` must be what `state_dict` returned, but got {re.escape(str(wrong))}"
        ):
            MixedRealSyntheticSampler(mix()).load_state_dict(wrong)
    sampler = MixedRealSyntheticSampler(mix())
    for index in 20, 10**6:
        with pytest.raises(ValueError, match=f"`index` must be below the 20 indices of an epoch, but got {index}"):
            sampler.load_state_dict({**sampler.state_dict(), "index": index})
    assert len(list(sampler)) == 20


def test_labels_are_part_of_the_order_where_classes_take_turns():
    def state_dict(balanced, *labels):
        parts = Part(4, False, list(labels)) + Part(4, True, [0, 0, 1, 1])
        return MixedRealSyntheticSampler(parts, class_balanced=balanced).state_dict()

    assert state_dict(True, 0, 0, 1, 1) == state_dict(True, 5, 5, 7, 7) != state_dict(True, 0, 1, 1, 1)
    assert state_dict(True, 0, 0, 1, 1) != state_dict(True, 0, 1, 0, 1)
    assert state_dict(False, 0, 0, 1, 1) == state_dict(False, 0, 1, 1, 1)
