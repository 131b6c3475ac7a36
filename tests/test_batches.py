"""Batches: everything exactly once, whatever the memory holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_augcond.generate.batches import Batches, windows


@settings(max_examples=25)
@given(
    st.integers(0, 40),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from([torch.OutOfMemoryError, MemoryError]),
)
def test_every_item_once_with_few_failures(n, size, limit, kind):
    seen, failures = [], 0

    def work(batch):
        nonlocal failures
        if len(batch) > limit:
            failures += 1
            raise kind("no memory")
        seen.extend(batch)
        return sum(batch)

    results = list(Batches(size)(work, list(range(n))))
    assert seen == list(range(n)) == [item for batch, _ in results for item in batch]
    assert all(result == sum(batch) for batch, result in results)
    assert failures <= size.bit_length()


def test_an_item_too_large_for_the_memory_fails_alone():
    def work(batch):
        if 3 in batch:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")
        return "done"

    results = {item: result for batch, result in Batches(4)(work, range(6)) for item in batch}
    assert results == {i: "done" if i != 3 else None for i in range(6)}


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="some other trouble"):
        list(Batches(2)(lambda batch: (_ for _ in ()).throw(RuntimeError("some other trouble")), [1]))


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "4", None])
def test_size_is_checked(size):
    with pytest.raises(ValueError, match="`batch_size` must be a positive int, but got"):
        Batches(size)


def test_windows():
    assert list(windows(iter(range(5)), 2)) == [[0, 1], [2, 3], [4]]
    assert list(windows([], 2)) == []
