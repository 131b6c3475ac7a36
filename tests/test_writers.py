"""Several processes fill one set at once, without shards and without locks."""

import fcntl
import logging
import os
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from fakes import FakeGenerator
from faults import FORK, job_of, paint_sources, problems

from torch_augcond.store import turns
from torch_augcond.store.disk import TEMP_PREFIX

LOG = logging.getLogger(__name__)
FULL = [pytest.mark.slow, pytest.mark.timeout(7200)]


class Unlike(FakeGenerator):
    """Never makes an image twice with the same bytes, and takes its time."""

    def generate(self, *args, **options):
        time.sleep(0.01)
        images = super().generate(*args, **options)
        noise = torch.frombuffer(bytearray(os.urandom(images.numel())), dtype=torch.uint8)
        return images ^ noise.view(images.shape)


def without_locks() -> None:
    for name in ("flock", "lockf"):
        setattr(fcntl, name, lambda *args: None)
    os.lockf = lambda *args: None


def fill(real: Path, root: Path, count: int, locks: bool, results) -> None:
    """One writer; says which keys it made, or what went wrong."""
    torch.set_num_threads(1)
    if not locks:
        without_locks()
    made = []
    try:
        job = job_of(real, root, Unlike(), num_per_class=count)
        write = job.store.write_many
        job.store.write_many = lambda recipes, *rest: made.extend(r.key for r in recipes) or write(recipes, *rest)
        report = job.make(batch_size=4)
        complete = report.made == len(made) and report.made + report.present == len(job.plan) and not report.failed
        results.put(made if complete else f"{report}")
    except BaseException as error:
        results.put(repr(error))
        raise


def run(writers: int, real: Path, root: Path, count: int, locks: bool) -> Counter[str]:
    """How often each image was made; the set is looked at all the while."""
    results = FORK.SimpleQueue()
    processes = [FORK.Process(target=fill, args=(real, root, count, locks, results)) for _ in range(writers)]
    [process.start() for process in processes]
    found = []
    while len(found) < writers:
        if root.exists():
            assert not problems(root)  # nobody ever sees half an image, and looking disturbs nobody
        while not results.empty():
            found.append(results.get())
    [process.join(60) for process in processes]
    assert [process.exitcode for process in processes] == [0] * writers
    assert all(isinstance(made, list) for made in found), found
    return Counter(key for made in found for key in made)


@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no-locks"])
@pytest.mark.parametrize(
    "writers, count, rounds",
    [(2, 60, 1), (8, 60, 1), *(pytest.param(writers, 400, 20, marks=FULL) for writers in (2, 4, 8))],
)
def test_writers_share_the_work(tmp_path, writers, count, rounds, locks):
    paint_sources(tmp_path / "real")
    times: Counter[int] = Counter()
    for turn in range(rounds):
        root = tmp_path / str(turn)
        made = run(writers, tmp_path / "real", root, count // 2, locks)
        assert len(made) == len(list(root.glob("*/*.png"))) == count
        assert not problems(root) and not [name for name in os.listdir(root) if name.startswith(TEMP_PREFIX)]
        times.update(made.values())
        LOG.info("%d writers, round %d: %d images made again so far", writers, turn + 1, _again(times))
    assert _again(times) <= 0.05 * count * rounds


def _again(times: Counter[int]) -> int:
    return sum(number * (often - 1) for often, number in times.items())


def test_the_notes_of_a_dead_writer_bind_nobody(tmp_path, monkeypatch):
    """Killed in the middle of a batch, it leaves a note; on another machine that holds until it is old."""
    paint_sources(tmp_path / "real")
    job = job_of(tmp_path / "real", tmp_path / "set")
    held = job.store.turns(job.plan, [0, 1, 2], 3)
    assert len(list(next(iter(held)))) == 3
    [note] = (path for path in job.store.root.iterdir() if turns._MARK in path.name)
    pid = FORK.Process(target=int)
    pid.start(), pid.join()
    dead = note.rename(str(note).replace(f"-{os.getpid()}-", f"-{pid.pid}-"))
    assert job_of(tmp_path / "real", tmp_path / "set").make(batch_size=3).made == 12
    assert not dead.exists()  # opening the set removed it


def test_the_notes_of_a_writer_elsewhere_bind_until_they_are_old(tmp_path, monkeypatch):
    paint_sources(tmp_path / "real")
    job = job_of(tmp_path / "real", tmp_path / "set")
    note = job.store.root / f"{TEMP_PREFIX}elsewhere-1{turns._MARK}0"
    note.write_bytes(job.plan.keys[:3].tobytes())
    dealt = job.store.turns(job.plan, range(len(job.plan)), 4)
    passes = iter(dealt)
    first = {recipe.key for recipe in next(passes)}
    assert first == {key.tobytes().hex() for key in job.plan.keys[3:]}
    os.utime(note, (time.time() - turns.LEASE_SECONDS - 60,) * 2)
    assert len(list(next(passes))) == 3


def test_two_who_note_the_same_at_once_both_leave_it(tmp_path, monkeypatch):
    paint_sources(tmp_path / "real")
    job = job_of(tmp_path / "real", tmp_path / "set")
    one, other = (job.store.turns(job.plan, [0, 1], 2) for _ in range(2))
    key = job.plan.keys[0].tobytes()
    first_look = iter([set()])
    monkeypatch.setattr(one, "_others", lambda look=one._others: next(first_look, None) or look())
    other._note({key})
    assert one._take({key}) == set() and key not in one._noted
    other.done([job.plan[0]])
    assert one._take({key}) == {key} and other._take({key}) == set()


def test_nobody_waits_for_what_is_finished(tmp_path, monkeypatch):
    """Else two writers would wait for each other: while one waits, all that it has made is off its note."""
    paint_sources(tmp_path / "real")
    job = job_of(tmp_path / "real", tmp_path / "set")
    elsewhere = tmp_path / "set" / f"{TEMP_PREFIX}elsewhere-1{turns._MARK}0"
    elsewhere.write_bytes(job.plan.keys[5:7].tobytes())
    noted = []

    def sleep(seconds):
        noted.extend(p.read_bytes() for p in job.store.root.iterdir() if turns._MARK in p.name and p != elsewhere)
        elsewhere.unlink()

    monkeypatch.setattr(turns.time, "sleep", sleep)
    assert job.make(batch_size=4).made == 12 and noted == [b""]
