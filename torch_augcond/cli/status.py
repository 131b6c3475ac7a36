"""How far a set is, without changing it or loading a generator."""

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..job import Job, NothingMade, duration
from ..request import Request
from ..store import Store
from ..store.scan import folders, images

if TYPE_CHECKING:
    from ..generators import Generator

__all__ = ["describe", "rate"]

_RECENT = 2000  # images that the rate is taken from
_SHORTEST_SECONDS = 1  # a single batch is written in less, and says nothing
_PAUSE_SECONDS = 600  # after so long without a new image, the next one belongs to another run
_COLUMNS = ("wanted", "made", "failed", "corrupt", "missing")


def describe(request: Request) -> Iterator[str]:
    """The lines that ``torch-augcond status`` prints."""
    yield f"set       {request.folder()}"
    try:
        job = Job(request, write=False, load=_refuse)
    except NothingMade:
        job, table = None, {name: (count, 0, 0, 0, count) for name, count in request.per_class().items()}
        yield "made with nothing yet"
    else:
        table = _count(job)
        yield from _about(job)
    total = dict(zip(_COLUMNS, np.sum(list(table.values()) or [[0] * 5], axis=0).tolist(), strict=True))
    yield (
        f"images    {total['wanted']} wanted, {total['made']} complete, {total['failed']} failed, "
        f"{total['corrupt']} set aside as corrupt, {total['missing']} missing"
    )
    yield from _lines(table)
    if job and total["missing"] + total["corrupt"]:
        yield from _time_left(job.store, total["missing"] + total["corrupt"])
    if total["made"] < total["wanted"]:
        # Options of loading, such as a scheduler, are in the checkpoint's name, after a "+".
        command = None if job and "+" in job.settings.checkpoint else request.command()
        yield f"to make   {command or 'run `torch-augcond generate` with the options that the set was made with'}"


def _refuse(name: str) -> "Generator":
    raise RuntimeError(f"{name!r} must not be loaded to look at a set")


def _about(job: Job) -> Iterator[str]:
    settings = job.settings
    steps = " + ".join(step["name"] for step in settings.augmentation) or "no augmentation"
    yield (
        f"made with {steps}, {settings.checkpoint}, guidance scale {settings.guidance_scale:g}, "
        f"{settings.num_inference_steps} steps, seed {settings.seed}"
    )
    if job.given_up().any():
        yield f"failed    {job.failure_text()}"
    if stale := job.stale():
        yield f"stale     {len(stale)} images, whose source has changed, will be set aside by the next run"


def _count(job: Job) -> dict[str, tuple[int, ...]]:
    """{class: how many are wanted, made, failed, set aside as corrupt, and missing otherwise}."""
    made, failed = job.present(), job.given_up()
    corrupt = _set_aside(job) & ~made & ~failed
    states = [np.ones_like(made), made, failed, corrupt, ~made & ~failed & ~corrupt]
    return {
        name: tuple(int(state[job.plan.labels == label].sum()) for state in states)
        for label, name in job.sources.class_of.items()
    }


def _set_aside(job: Job) -> np.ndarray:
    """Which images of the plan `verify` has found damaged, bool (N,)."""
    names = {name[:32] for folder in folders(job.store.aside / "corrupt") for name in images(folder)}
    return np.isin(job.plan.keys.view("V16")[:, 0], np.array([bytes.fromhex(name) for name in names], "V16"))


def _lines(table: dict[str, tuple[int, ...]]) -> Iterator[str]:
    width = max([len("class"), *map(len, table)])
    for name, cells in {"class": _COLUMNS, **table}.items():
        yield f"  {name:{width}}" + "".join(f"  {cell:>8}" for cell in cells)


def _time_left(store: Store, missing: int) -> Iterator[str]:
    times = write_times(store)
    if speed := rate(times):
        ago = time.time() - times[-1]
        when = "counted since the last pause of ten minutes"
        when = when if ago < _PAUSE_SECONDS else f"as before it stopped {duration(ago)} ago"
        yield f"time left about {duration(missing / speed)} at {speed:.2g} images a second, {when}"


def write_times(store: Store) -> np.ndarray:
    """When each image was written, in seconds, sorted."""
    times = []
    for folder in folders(store.root):
        with os.scandir(folder.path) as found:
            times += [entry.stat(follow_symlinks=False).st_mtime for entry in found if entry.name[0] != "."]
    return np.sort(np.array(times))


def rate(times: np.ndarray) -> float | None:
    """Images a second of the last run, all its processes together; None where too few were written to tell.

    Images come in batches: the first one of those looked at only marks the start, since nobody knows how long it took.
    """
    recent = times[-_RECENT:]
    pauses = np.flatnonzero(np.diff(recent) > _PAUSE_SECONDS)
    recent = recent[pauses[-1] + 1 :] if len(pauses) else recent
    gaps = np.diff(recent)
    if not len(gaps) or recent[-1] - recent[0] < _SHORTEST_SECONDS:
        return None
    first = int(np.argmax(gaps >= gaps.max() / 2))  # the last image of the first batch
    return (len(recent) - 1 - first) / float(recent[-1] - recent[first])
