"""Which share of a set this process makes, and how it waits for the processes that make the rest.

Shares are decided by key, so they need no communication, and the store shows how far everybody has come. No barrier
of a process group is used: such a barrier times out while others are still generating.
"""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np

from .checks import warn

__all__ = ["Heartbeat", "Shard", "agree", "from_environment", "from_slurm", "local_rank", "owners", "parse", "wait_for"]

Shard = tuple[int, int]

BEAT_PREFIX = ".augcond-tmp-beat-"
BEAT_SECONDS = 5.0
STALLED_SECONDS = 50.0  # a process that was at work and is silent for so long has died
ABSENT_SECONDS = 600.0  # a process that hasn't shown up yet may still be loading its libraries or data
UNUSUAL_SECONDS = 20.0  # after so long, who waits for one that hasn't shown up yet says so
_STORE_TIMEOUT = timedelta(seconds=10)
_started = time.monotonic()


def _start() -> None:
    global _started
    _started = time.monotonic()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start)


def parse(text: str) -> Shard:
    """The shard ``"i/N"``, counted from 0: ``"0/4"`` to ``"3/4"``.

    Raises:
        ValueError: If the text is anything else.

    Example:
        >>> parse("0/4")
        (0, 4)
    """
    first, slash, second = text.partition("/")
    if slash and first.isascii() and first.isdigit() and second.isascii() and second.isdigit():
        index, count = int(first), int(second)
        if index < count < 2**31:
            return index, count
    raise ValueError(f"`shard` must be i/N with 0 <= i < N, such as 0/4, but got {text!r}. Shards are counted from 0.")


def from_environment(environ: Mapping[str, str] = os.environ) -> Shard:
    """This process's rank and world size: of the process group if there is one, else as torchrun says, else (0, 1)."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if "RANK" in environ and "WORLD_SIZE" in environ:
        index, count = _number(environ, "RANK"), _number(environ, "WORLD_SIZE", low=1)
        if index >= count:
            raise ValueError(f"`RANK` must be below WORLD_SIZE, {count}, but got {index}.")
        return index, count
    return 0, 1


def _number(environ: Mapping[str, str], name: str, default: int = 0, low: int = 0) -> int:
    text = environ.get(name, str(default))
    if not text.isdecimal() or not low <= int(text):
        raise ValueError(f"the environment variable `{name}` must be an int of {low} or more, but got {text!r}.")
    return int(text)


def from_slurm(environ: Mapping[str, str] = os.environ) -> Shard:
    """The shard of this task in a Slurm job step, in a job array, or in both; (0, 1) outside Slurm.

    The step's own count is read, not ``SLURM_NTASKS``, which is also set where a batch script runs as a single task.

    Raises:
        ValueError: If a variable holds no count, or the array has gaps (``--array=3,17``), so that its tasks would make
            other shares than those that are missing.
    """
    index, count = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_STEP_NUM_TASKS", 1, low=1)
    if "SLURM_ARRAY_TASK_ID" not in environ:
        return (index, count) if index < count else (0, 1)
    task, first = _number(environ, "SLURM_ARRAY_TASK_ID"), _number(environ, "SLURM_ARRAY_TASK_MIN")
    step = _number(environ, "SLURM_ARRAY_TASK_STEP", 1, low=1)
    position, apart = divmod(task - first, step)
    tasks = _number(environ, "SLURM_ARRAY_TASK_COUNT", position + 1, low=1)
    last = _number(environ, "SLURM_ARRAY_TASK_MAX", first + (tasks - 1) * step)
    if apart or not 0 <= position < tasks or last != first + (tasks - 1) * step:
        raise ValueError(
            f"which share of the set task {task} of the Slurm array is can't be told, since its {tasks} tasks are not "
            "evenly spaced. Say it: --shard i/N, with the N of the array that is to be completed."
        )
    return position * count + index, tasks * count


def local_rank(environ: Mapping[str, str] = os.environ) -> int:
    """Which of the processes on this machine this one is; it takes the accelerator of that number."""
    return int(environ.get("LOCAL_RANK", environ.get("SLURM_LOCALID", 0)))


def owners(keys: np.ndarray, count: int) -> np.ndarray:
    """Which of ``count`` shards makes each key: (N, 16) uint8 → int64 (N,).

    Keys are hashes, so their first bytes spread the work evenly.
    """
    return (np.ascontiguousarray(keys[:, :8]).view("<u8")[:, 0] % np.uint64(count)).astype(np.int64)


class Pulse:
    """While its ``with`` block runs, calls a function every five seconds, from a thread."""

    def __init__(self, beat: Callable[[], object]) -> None:
        self._beat, self._stop = beat, threading.Event()
        self._thread = threading.Thread(target=self._run, name="torch_augcond heartbeat", daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            self._beat()

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


class Heartbeat:
    """While its ``with`` block runs, shows the other processes that this one is alive.

    Touches a file in the root every five seconds; `since` is when this process started, by the clock of the file
    system: the others of its run show themselves later than that, though perhaps before it does. The file's name tells
    the others what this process makes; after an error it stays, for those who haven't seen it yet.

    Args:
        root: The store's directory.
        shard: Whose process this is.
        plan: A short name for what all shards together make; `wait_for` compares it.
    """

    def __init__(self, root: str | os.PathLike, shard: Shard, plan: str = "") -> None:
        self.path = beat_path(root, shard, plan)
        self.since: int | None = None
        self._pulse = Pulse(self._touch)

    def _touch(self) -> None:
        with suppress(OSError):  # a set that can only be read is complete, or else an error says so
            self.path.touch()
            os.utime(self.path)

    def __enter__(self) -> "Heartbeat":
        self._touch()
        if (now := _changed(self.path)) is not None:
            self.since = now - int(1e9 * (time.monotonic() - _started))
        self._pulse.__enter__()
        return self

    def rest(self) -> None:
        """From here on it isn't at work any more: should it still owe an image, that is no reason to wait."""
        self._pulse.__exit__()

    def __exit__(self, *exc: object) -> None:
        self.rest()
        if any(exc):
            return self._touch()
        with suppress(OSError):
            self.path.unlink()


def beat_path(root: str | os.PathLike, shard: Shard, plan: str = "") -> Path:
    """The file whose time of change is the heartbeat of a shard's process that makes this plan."""
    return Path(root) / f"{BEAT_PREFIX}{shard[0]}-of-{shard[1]}{plan and '-' + plan}"


def agree(root: str | os.PathLike, shard: Shard, plan: str, environ: Mapping[str, str] = os.environ) -> None:
    """Asks the store that torchrun has for its ranks whether all of them want the same images of this set.

    Nobody waits: a rank's first time is compared with the first one of whoever was first, its second with the second
    one. Without torchrun only `wait_for` tells, where images are to be made.

    Raises:
        RuntimeError: If another rank wants others.
    """
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    import torch.distributed as dist

    place = hashlib.blake2b(os.fsencode(root), digest_size=8).hexdigest()
    try:
        address = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=_STORE_TIMEOUT)
        name = f"torch_augcond/{environ.get('TORCHELASTIC_RESTART_COUNT')}/{shard[1]}/{place}"
        turn = store.add(f"{name}/{shard[0]}", 1)
        first = store.compare_set(f"{name}/turn {turn}", "", f"{shard[0]} {plan}").decode()
    except (KeyError, ValueError, RuntimeError):  # the program has another store, or none any more
        return
    rank, _, wanted = first.partition(" ")
    if wanted != plan:
        raise _disagreement([rank], shard[1])


def _disagreement(ranks: Sequence[object], count: int) -> RuntimeError:
    return RuntimeError(
        f"Rank {', '.join(map(str, ranks))} of {count} makes other images of this set than this rank: all ranks must "
        "be given the same real images, in one order, and the same arguments, and be able to read all of them. Seed "
        "what splits or shuffles them, then start the program again."
    )


def _stopped(ranks: Sequence[int], owed: np.ndarray, seconds: float) -> RuntimeError:
    return RuntimeError(
        f"Rank {', '.join(map(str, ranks))} of {len(owed)} has been silent for {seconds:g} s while "
        f"{int(owed[ranks].sum())} of its images are missing, so it seems to have stopped, or to have done without "
        "them, since it was given other real images or couldn't read one: see what it says itself. What is finished "
        "is kept: start the program again for the rest."
    )


def _waits_for(ranks: Sequence[int]) -> str:
    return (
        f"This rank has made its share of the images and waits for rank{'s' * (len(ranks) > 1)} "
        f"{', '.join(map(str, ranks))}, of which nothing has been heard: every rank must construct this dataset, of "
        "the same real images (seed what splits them), not one of them before a barrier (docs/scaling-out.md)."
    )


def _of_other_plans(root: str | os.PathLike, absent: Sequence[int], count: int, since: int) -> list[int]:
    """Which of the shards that are absent from this plan have been heard of since then as those of another one."""
    found = {index: Path(root).glob(f"{beat_path(root, (index, count)).name}-*") for index in absent}
    return [index for index, paths in found.items() if any((_changed(path) or 0) >= since for path in paths)]


class Watch:
    """Which of the shards that owe images have gone silent.

    A sign of life is another number of missing images or a heartbeat. A heartbeat that the first look finds may be left
    over from an earlier run, unless it is younger than this run (``since``); else only a *change* shows that a process
    is there.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        count: int,
        stalled_seconds: float,
        absent_seconds: float,
        since: int | None = None,
        plan: str = "",
    ) -> None:
        self.paths = [beat_path(root, (index, count), plan) for index in range(count)]
        self.limits = [absent_seconds] * count
        self.stalled_seconds, self.since = stalled_seconds, since
        self._seen: dict[int, tuple[object, float]] = {}

    def absent(self, owed: np.ndarray) -> list[int]:
        """The shards that owe images and haven't been heard of at all, since this run began."""
        since = 0 if self.since is None else self.since
        return [index for index in np.flatnonzero(owed).tolist() if (_changed(self.paths[index]) or -1) < since]

    def silent(self, owed: np.ndarray, now: float) -> list[int]:
        """The shards unheard of for longer than their limit, given what each owes and the time in seconds."""
        return [index for index in np.flatnonzero(owed).tolist() if self._silence(index, int(owed[index]), now)]

    def _silence(self, index: int, owed: int, now: float) -> bool:
        sign = owed, _changed(self.paths[index])
        if index not in self._seen or self._seen[index][0] != sign:
            if index in self._seen or (self.since is not None and (sign[1] or 0) >= self.since):
                self.limits[index] = self.stalled_seconds
            self._seen[index] = sign, now
        return now - self._seen[index][1] > self.limits[index]


def wait_for(
    root: str | os.PathLike,
    missing: Callable[[], np.ndarray],
    count: int,
    *,
    since: int | None = None,
    plan: str = "",
    poll_seconds: float = 1.0,
    stalled_seconds: float = STALLED_SECONDS,
    absent_seconds: float = ABSENT_SECONDS,
    unusual_seconds: float = UNUSUAL_SECONDS,
) -> None:
    """Returns when no shard owes an image any more; raises once one that does has gone silent.

    Another run, which makes more images of the same set, may have a shard of the same number: that it is heard of means
    nothing until this run's own has had time to show up.

    Args:
        root: The store's directory, in which the processes leave their heartbeats.
        missing: Gives the number of images that each of the ``count`` shards still owes.
        count: How many shards there are.
        since: When this process began (`Heartbeat.since`): who has been heard of since then isn't absent.
        plan: What all of them are to make (`Heartbeat`).
        poll_seconds: Pause between two looks; longer where a look itself takes long.
        stalled_seconds: How long a process that was at work may be silent.
        absent_seconds: How long one may take to show up at all.
        unusual_seconds: When to warn that one hasn't.

    Raises:
        RuntimeError: If a shard owes images and hasn't been heard of for so long, or is at work on another plan.
    """
    watch, begun = Watch(root, count, stalled_seconds, absent_seconds, since, plan), time.monotonic()
    while (owed := missing()).any():
        started = time.monotonic()
        waited, absent = started - begun, watch.absent(owed)
        is_late = plan and since is not None and waited > stalled_seconds
        if is_late and (others := _of_other_plans(root, absent, count, since)):
            raise _disagreement(others, count)
        if absent and waited > unusual_seconds:
            warn(_waits_for(absent))
            unusual_seconds = float("inf")  # once
        if silent := watch.silent(owed, started):
            raise _stopped(silent, owed, max(watch.limits[index] for index in silent))
        time.sleep(max(poll_seconds, 5 * (time.monotonic() - started)))


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
