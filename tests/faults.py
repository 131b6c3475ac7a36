"""What the fault tests share: the life of a small set, and ways to cut it off at any step."""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fakes import FakeGenerator, paint
from torchvision.datasets import ImageFolder

from torch_augcond.cli.export import export_metadata
from torch_augcond.job import Job
from torch_augcond.progress import silent
from torch_augcond.request import Request
from torch_augcond.store import Store, disk

FORK = multiprocessing.get_context("fork")  # what the parent has imported, a child needn't
CALLS = ("fsync", "replace", "link", "unlink", "mkdir", "rename", "rmdir")


class Touchy(FakeGenerator):
    """Spoils one image of each batch while ``spoil`` is true."""

    spoil = False

    def generate(self, image_embeds, prompt_embeds, keys, **options):
        self.bad = frozenset(keys[:1].tolist()) if self.spoil else frozenset()
        return super().generate(image_embeds, prompt_embeds, keys, **options)


def job_of(real: Path, root: Path, generator: FakeGenerator | None = None, **options) -> Job:
    options = {"num_per_class": 6, **options}
    request = Request(dataset=ImageFolder(real), generator=generator or FakeGenerator(), root=root, **options)
    return Job(request, write=True, load=None, progress=silent)


def paint_sources(real: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(3):
            paint(real / name / f"{i}.png", f"{name} {i}")


def note_digest(store: Store) -> None:
    """A file of the digest cache: files that are new are not in it."""
    with store.digest_cache() as cache:
        cache["old.png", 1, 2] = "0" * 32


class Life:
    """All that can happen to a set, in steps that can each be begun again: run once more, it ends the same."""

    STEPS = ("claim", "fail", "generate", "export", "set aside", "restore", "quarantine", "finish")

    def __init__(self, real: Path, root: Path):
        self.real, self.root, self.generator = real, root, Touchy()

    def run(self, at_step: Callable[[str], None] = lambda step: None) -> None:
        paint_sources(self.real)
        for step in self.STEPS:
            at_step(step)
            getattr(self, "_" + step.replace(" ", "_"))()
        at_step("end")

    def _job(self) -> Job:
        return job_of(self.real, self.root, self.generator)

    def _claim(self):
        note_digest(self._job().store)

    def _fail(self):
        self.generator.spoil = True
        self._job().make(batch_size=4)
        self.generator.spoil = False

    def _generate(self):
        self._job().make(batch_size=4)

    def _export(self):
        export_metadata(Store(self.root), silent)

    def _set_aside(self):
        paint(self.real / "cat" / "0.png", "another cat")
        self._generate()

    def _restore(self):
        paint_sources(self.real)
        self._generate()

    def _quarantine(self):
        victim = min((self.root / "dog").iterdir())
        victim.write_bytes(victim.read_bytes()[:-20])
        assert any(reason for _, reason in Store(self.root).verify())

    def _finish(self):
        self._generate()
        self._export()


def contents(root: Path) -> dict[str, bytes]:
    """What must not depend on the way a set was made: all but the caches, whose files have random names."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    caches = (".augcond-embeds", ".augcond-digests", ".augcond-failures")
    return {str(path.relative_to(root)): path.read_bytes() for path in files if not path.name.startswith(caches)}


def problems(root: Path, **options) -> dict[str, str]:
    return {path.name: reason for path, reason in Store(root).verify(**options) if reason}


@contextmanager
def patched(act: Callable[[str, str], None]) -> Iterator[None]:
    """``act(call, moment)`` is called before and after every system call that changes a directory; "write" is the
    moment at which half of a file is written."""

    def wrapped(name: str, call: Callable) -> Callable:
        def around(*args, **options):
            act(name, "before")
            result = call(*args, **options)
            act(name, "after")
            return result

        return around

    def half_written(path, mode="r", *args, **options):
        file = open(path, mode, *args, **options)  # noqa: SIM115 - whoever asked for it closes it
        if "x" not in mode:
            return file
        write = file.write

        class Half:
            def __getattr__(self, name):
                return getattr(file, name)

            def __enter__(self):
                return self

            def __exit__(self, *error):
                file.close()

            def write(self, data):
                write(data[: len(data) // 2])
                file.flush()
                act("write", "half")
                return write(data[len(data) // 2 :])

        return Half()

    originals = {name: getattr(os, name) for name in CALLS}
    try:
        for name, call in originals.items():
            setattr(os, name, wrapped(name, call))
        disk.open = half_written
        yield
    finally:
        for name, call in originals.items():
            setattr(os, name, call)
        del disk.open


class Fault:
    """Does something at the ``number``-th time that ``point`` is passed; counts all points otherwise.

    A point is (step of the life, call, moment).
    """

    def __init__(
        self, point: tuple[str, str, str] | None = None, number: int = 0, do: Callable[[], None] = lambda: None
    ):
        self.point, self.number, self.do = point, number, do
        self.step, self.seen = "", Counter()

    def at_step(self, step: str) -> None:
        self.step = step

    def __call__(self, call: str, moment: str) -> None:
        point = self.step, call, moment
        self.seen[point] += 1
        if point == self.point and self.seen[point] == self.number:
            self.do()


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(function: Callable, *args) -> int:
    """Runs it in another process; returns the exit code, negative for a signal."""
    process = FORK.Process(target=_quietly, args=(function, *args))
    process.start()
    process.join(120)
    return process.exitcode


def _quietly(function: Callable, *args) -> None:
    torch.set_num_threads(1)
    function(*args)
