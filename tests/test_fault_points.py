"""Killed, or refused by the disk, at any step of its life: run again, a set ends as if nothing had happened."""

import errno
import os
import random
import signal

import pytest
from faults import FORK, Fault, Life, contents, in_child, kill_myself, patched, problems

from torch_augcond.store.disk import TEMP_PREFIX

REFUSALS = (errno.ENOSPC, errno.EIO, errno.EROFS)


def live(life: Life, fault: Fault) -> None:
    with patched(fault):
        life.run(fault.at_step)


def refused(life: Life, fault: Fault, queue) -> None:
    """Says what error the life ends with, if any."""
    try:
        live(life, fault)
        queue.put(None)
    except OSError as error:
        queue.put((error.errno, str(error)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The sources, what a set made of them holds when nothing goes wrong, and how often each point was passed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    fault = Fault()
    live(Life(folder / "real", folder / "set"), fault)
    seen = {point: times for point, times in fault.seen.items() if point[0] in Life.STEPS}
    assert len(seen) >= 50 and {point[0] for point in seen} == set(Life.STEPS)
    return folder / "real", contents(folder / "set"), seen


def assert_whole_again(life: Life, whole: dict[str, bytes], step: str) -> None:
    """Verified, run again, and then the same as if nothing had happened."""
    if life.root.exists():
        damaged = [why for why in problems(life.root).values() if why != "it is gone"]
        assert len(damaged) <= (step == "quarantine")  # where the test itself damages an image
        assert not [name for name in os.listdir(life.root) if name.startswith(TEMP_PREFIX)]
    life.run()
    assert contents(life.root) == whole
    assert not problems(life.root)


def sample(seen, count, seed):
    """``count`` passages of points, so that every point has its turn before one has its second."""
    draw, points = random.Random(seed), sorted(seen)
    draw.shuffle(points)
    return [(point, draw.randint(1, seen[point])) for point in (points * -(-count // len(points)))[:count]]


@pytest.mark.parametrize("count", [65, pytest.param(20 * 65, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_killed_at_any_step(undisturbed, tmp_path, count):
    real, whole, seen = undisturbed
    for turn, (point, number) in enumerate(sample(seen, count, seed=count)):
        life = Life(real, tmp_path / str(turn))
        ended = in_child(live, life, Fault(point, number, kill_myself))
        if ended == 0:  # passed less often than before: threads that make one folder at once try it once each
            life = Life(real, tmp_path / f"{turn} again")
            ended = in_child(live, life, Fault(point, 1, kill_myself))
        assert ended == -signal.SIGKILL, (point, number)
        assert_whole_again(life, whole, point[0])


@pytest.mark.parametrize("count", [9, pytest.param(300, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_refused_by_the_disk_at_any_step(undisturbed, tmp_path, count):
    real, whole, seen = undisturbed
    seen = {point: times for point, times in seen.items() if point[2] != "after"}
    errors = 0
    for turn, (point, number) in enumerate(sample(seen, count, seed=count)):
        code = REFUSALS[turn % 3]

        def refuse(code=code):
            raise OSError(code, os.strerror(code))

        life, fault = Life(real, tmp_path / str(turn)), Fault(point, number, refuse)
        in_child(refused, life, fault, queue := FORK.SimpleQueue())
        if error := queue.get():
            number, text, errors = *error, errors + 1
            is_told = number == code or (number is None and "must lie in a folder that can be written" in text)
            assert is_told and str(tmp_path) in text and "\n" not in text, (point, text)
            room = "bytes needed" in text and "bytes and" in text and "files free" in text
            assert room == (code == errno.ENOSPC), (point, text)
        assert_whole_again(life, whole, point[0])
    assert errors > count / 4  # the rest is tidying, which may fail
