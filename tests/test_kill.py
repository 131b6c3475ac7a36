"""Writers that are killed at random: nothing that was written is lost, nothing is half there."""

import logging
import os
import random
import select
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from faults import FORK, contents, job_of, paint_sources, problems

from torch_augcond.store.disk import TEMP_PREFIX
from torch_augcond.store.imagefile import check

BATCH, GROWTH = 4, 200
LOG = logging.getLogger(__name__)


def write(real: Path, root: Path, log: int, count: int) -> None:
    """Fills a set; says before and after each batch which keys are in it."""
    torch.set_num_threads(1)
    os.write(log, b"opening\n" * 5)
    job = job_of(real, root, num_per_class=count)
    publish = job.store.write_many

    def logged(recipes, *rest):
        keys = " ".join(recipe.key for recipe in recipes)
        os.write(log, f"begun {keys}\n".encode())
        paths = publish(recipes, *rest)
        os.write(log, f"written {keys}\n".encode())
        return paths

    job.store.write_many = logged
    os.write(log, b"writing\n" * 5)
    job.make(batch_size=BATCH)
    os.write(log, b"finished\n")


@dataclass
class Witness:
    """Reads what a writer says of itself; remembers what it must find again."""

    written: set[str] = field(default_factory=set)
    lost: int = 0  # batches that were begun and never finished

    def read(self, pipe: int, until: bytes, times: int = 1) -> bytes:
        """Waits until the writer has said this so many times, or is dead."""
        text = b""
        while text.count(until) < times and select.select([pipe], [], [], 60)[0] and (more := os.read(pipe, 1 << 16)):
            text += more
        return text

    def note(self, text: bytes) -> None:
        begun, written = (
            [line.split()[1:] for line in text.decode().splitlines() if line.startswith(f"{word} ")]
            for word in ("begun", "written")
        )
        assert len(begun) - len(written) <= 1, "more than one batch was lost"
        self.lost += len(begun) - len(written)
        self.written.update(key for keys in written for key in keys)


def killed_writer(real: Path, root: Path, count: int, draw: random.Random, witness: Witness) -> bool:
    """Starts a writer and kills it; whether it had finished before."""
    pipe, log = os.pipe()
    writer = FORK.Process(target=write, args=(real, root, log, count))
    writer.start()
    os.close(log)
    text = witness.read(pipe, draw.choice([b"opening", b"writing", b"begun", b"begun"]), draw.randint(1, 5))
    time.sleep(draw.uniform(0, 0.03))
    os.kill(writer.pid, signal.SIGKILL)
    writer.join(60)
    witness.note(text + witness.read(pipe, b"\0"))
    os.close(pipe)
    return writer.exitcode == 0


def assert_nothing_lost(root: Path, witness: Witness) -> None:
    files = {path.stem: path for path in root.glob("*/*.png")}
    assert witness.written <= files.keys()
    for key, path in files.items():
        assert check(path, key)["key"] == key  # also of what no writer lived to tell of


@pytest.mark.parametrize("kills", [500, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(7200)])])
def test_killed_at_random(tmp_path, kills):
    paint_sources(tmp_path / "real")
    real, root, draw, witness, count = tmp_path / "real", tmp_path / "set", random.Random(kills), Witness(), GROWTH
    for kill in range(1, kills + 1):
        if killed_writer(real, root, count, draw, witness):
            count += GROWTH
        if kill % 100 == 0 or kill == kills:
            assert_nothing_lost(root, witness)
            seen = kill, len(witness.written), witness.lost
            LOG.info("%d kills, %d images written, %d batches cut off: no image lost or damaged", *seen)
    assert witness.lost > kills / 20 and len(witness.written) > kills  # they were hit at work
    assert not problems(root) and not [name for name in os.listdir(root) if name.startswith(TEMP_PREFIX)]
    job_of(real, root, num_per_class=count).make()
    job_of(real, tmp_path / "undisturbed", num_per_class=count).make()
    assert contents(root) == contents(tmp_path / "undisturbed")
