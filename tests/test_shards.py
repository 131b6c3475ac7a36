"""Shares and waiting: every image is somebody's, and a dead rank is noticed."""

import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_augcond import shards


def test_parse_reads_what_it_documents():
    assert [shards.parse(f"{i}/4") for i in range(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize("text", ["", "4/4", "-1/4", "1", "1/0", "a/b", "1/2/3", "1.0/2", "²/3"])
def test_parse_refuses_the_rest(text):
    with pytest.raises(ValueError, match=r"`shard` must be i/N with 0 <= i < N.*counted from 0"):
        shards.parse(text)


def test_environment_of_torchrun_and_of_nothing():
    assert shards.from_environment({}) == (0, 1)
    assert shards.from_environment({"RANK": "2", "WORLD_SIZE": "3"}) == (2, 3)
    assert shards.local_rank({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}) == 1
    assert shards.local_rank({"SLURM_LOCALID": "3"}) == 3


@pytest.mark.parametrize(
    "environ, shard",
    [
        ({}, (0, 1)),
        # a batch script: the job has four tasks, but this is not one of them
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, (3, 4)),
    ],
)
def test_slurm_steps(environ, shard):
    assert shards.from_slurm(environ) == shard


@pytest.mark.parametrize("first, step, tasks", [(0, 1, 1), (1, 1, 1), (3, 2, 1), (0, 1, 4), (5, 3, 2)])
def test_slurm_arrays_cover_every_shard_once(first, step, tasks):
    count = 3
    found = []
    for position in range(count):
        array = {"SLURM_ARRAY_TASK_ID": first + position * step, "SLURM_ARRAY_TASK_MIN": first}
        array |= {"SLURM_ARRAY_TASK_STEP": step, "SLURM_ARRAY_TASK_COUNT": count}
        for task in range(tasks):
            environ = array | {"SLURM_PROCID": task, "SLURM_STEP_NUM_TASKS": tasks}
            found.append(shards.from_slurm({name: str(value) for name, value in environ.items()}))
    assert found == [(i, count * tasks) for i in range(count * tasks)]


@pytest.mark.parametrize(
    "environ, message",
    [
        ({"RANK": "5", "WORLD_SIZE": "4"}, "`RANK` must be below WORLD_SIZE, 4, but got 5"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "`RANK` must be an int of 0 or more, but got 'x'"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "`WORLD_SIZE` must be an int of 1 or more, but got '0'"),
    ],
)
def test_a_broken_environment_of_torchrun_is_named(environ, message):
    with pytest.raises(ValueError, match=message):
        shards.from_environment(environ)


@pytest.mark.parametrize(
    "first, last, count, step, task, message",
    [
        (3, 17, 2, 1, 3, "which share of the set task 3"),
        (3, 17, 2, 1, 17, "which share of the set task 17 of the Slurm array is can't be told.*--shard i/N"),
        (0, 9, 4, 3, 4, "which share of the set task 4"),
        (0, 9, 4, 0, 3, "`SLURM_ARRAY_TASK_STEP` must be an int of 1 or more, but got '0'"),
        (0, 9, "", 3, 3, "`SLURM_ARRAY_TASK_COUNT` must be an int of 1 or more, but got ''"),
    ],
)
def test_slurm_arrays_with_gaps_are_refused(first, last, count, step, task, message):
    array = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    with pytest.raises(ValueError, match=message):
        shards.from_slurm({f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()})


@given(st.integers(1, 9), st.integers(0, 40))
def test_every_key_has_one_owner(count, n):
    keys = np.random.default_rng(n).integers(0, 256, (n, 16), np.uint8)
    owners = shards.owners(keys, count)
    assert owners.shape == (n,) and ((owners >= 0) & (owners < count)).all()
    assert (shards.owners(keys[::-1], count) == owners[::-1]).all()


def test_shares_are_even():
    keys = np.random.default_rng(0).integers(0, 256, (40_000, 16), np.uint8)
    assert abs(np.bincount(shards.owners(keys, 4)) - 10_000).max() < 500  # five standard deviations


def test_heartbeat_shows_and_then_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BEAT_SECONDS", 0.01)
    path = shards.beat_path(tmp_path, (1, 3))
    with shards.Heartbeat(tmp_path, (1, 3)):
        deadline = time.monotonic() + 5
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.utime(path, ns=(0, 0))
        while path.stat().st_mtime_ns == 0 and time.monotonic() < deadline:
            time.sleep(0.005)
        assert path.stat().st_mtime_ns > 0
    assert not path.exists()


def test_wait_ends_when_nothing_is_owed(tmp_path):
    left = [np.array([0, 3]), np.array([0, 1]), np.array([0, 0])]
    shards.wait_for(tmp_path, lambda: left.pop(0), 2, poll_seconds=0)
    assert not left


def test_wait_ends_when_a_rank_that_worked_falls_silent(tmp_path):
    looks = iter([5, 4] + [4] * 10_000)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=r"Rank 1 of 2 has been silent for 0.1 s while 4 of its images are missing"):
        shards.wait_for(tmp_path, lambda: np.array([0, next(looks)]), 2, poll_seconds=0.01, stalled_seconds=0.1)
    assert time.monotonic() - started < 5


def test_wait_gives_a_rank_time_to_show_up(tmp_path):
    """What an earlier run left behind is no sign of life, and a late rank isn't taken for a dead one."""
    shards.beat_path(tmp_path, (1, 2)).touch()
    with pytest.raises(RuntimeError, match=r"Rank 1 of 2 has been silent for 0.3 s"):
        shards.wait_for(
            tmp_path, lambda: np.array([0, 7]), 2, poll_seconds=0.01, stalled_seconds=0.01, absent_seconds=0.3
        )


def test_a_rank_that_died_while_others_worked_is_not_waited_for_as_absent(tmp_path, monkeypatch):
    """It was heard of since this process began, and never again: nobody has to see it change first."""
    with shards.Heartbeat(tmp_path, (0, 2)) as beat:
        shards.beat_path(tmp_path, (1, 2)).touch()
    with pytest.raises(RuntimeError, match=r"Rank 1 of 2 has been silent for 0.1 s"):
        shards.wait_for(
            tmp_path,
            lambda: np.array([0, 7]),
            2,
            since=beat.since,
            poll_seconds=0.01,
            stalled_seconds=0.1,
            absent_seconds=60,
        )


def test_heartbeats_keep_a_slow_rank_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BEAT_SECONDS", 0.02)
    owed = np.array([0, 1])
    timer = threading.Timer(1.0, lambda: owed.fill(0))
    timer.start()
    with shards.Heartbeat(tmp_path, (1, 2)):
        shards.wait_for(tmp_path, lambda: owed, 2, poll_seconds=0.01, stalled_seconds=0.5, absent_seconds=0.5)
    timer.join()


def test_who_hasnt_been_heard_of_is_named_once_in_a_warning(tmp_path):
    left = [np.array([0, 1, 1, 1])] * 9 + [np.zeros(4)]
    times = {"poll_seconds": 0.01, "unusual_seconds": 0.02}
    text = "waits for ranks 1, 3, of which nothing has been heard: every rank must"
    with (
        shards.Heartbeat(tmp_path, (0, 4)) as beat,
        shards.Heartbeat(tmp_path, (2, 4)),
        pytest.warns(match=text) as told,
    ):
        shards.wait_for(tmp_path, lambda: left.pop(0), 4, since=beat.since, **times)
    assert len(told) == 1 and told[0].filename == __file__


def test_two_runs_of_other_plans_disturb_each_other_no_more_than_an_earlier_one(tmp_path):
    """Another plan's rank of the same number is only told where none of this plan comes up, and it was heard of now."""
    times = {"poll_seconds": 0.01, "stalled_seconds": 0.1}
    owed = [np.array([0, 1]), np.array([0, 0])] * 2
    with (
        shards.Heartbeat(tmp_path, (0, 2), "mine") as beat,
        shards.Heartbeat(tmp_path, (1, 2), "mine"),
        shards.Heartbeat(tmp_path, (1, 2), "other"),
    ):
        shards.wait_for(tmp_path, lambda: owed.pop(0), 2, since=beat.since, plan="mine", poll_seconds=0)
    other = shards.beat_path(tmp_path, (1, 2), "other")
    other.touch()
    os.utime(other, ns=(0, beat.since - 1))
    shards.wait_for(tmp_path, lambda: owed.pop(0), 2, since=beat.since, plan="mine", poll_seconds=0)
    other.touch()
    owed = [np.array([0, 1])] * 2 + [np.array([0, 0])]
    shards.wait_for(tmp_path, lambda: owed.pop(0), 2, since=beat.since, plan="mine", poll_seconds=0)
    with pytest.raises(RuntimeError, match="Rank 1 of 2 makes other images of this set"):
        shards.wait_for(tmp_path, lambda: np.array([0, 1]), 2, since=beat.since, plan="mine", **times)
