"""Batches: everything exactly once, whatever the memory holds."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torch_augcond.generate.batches import Batches, behind, windows


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


def test_an_item_is_worked_on_while_the_next_is_made():
    made = [threading.Event() for _ in range(4)]

    def items():
        for i in range(3):
            made[i].set()
            yield i
        made[3].set()

    def work(i):
        return made[i + 1].wait(30)  # never, if the next one were made only afterwards

    assert list(behind(work, items())) == [(0, True), (1, True), (2, True)]


def test_whoever_stops_early_loses_nothing_that_was_begun():
    begun, done = [], []

    def work(i):
        begun.append(i)
        done.append(i)
        return i

    for item, _ in behind(work, range(9)):
        if item == 2:
            break
    assert begun == done == [0, 1, 2]
    assert list(behind(work, [])) == []


def test_what_goes_wrong_in_the_thread_comes_up():
    results = behind(lambda i: 1 // (2 - i), range(5))
    assert [next(results), next(results)] == [(0, 0), (1, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)
