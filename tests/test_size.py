"""A set as large as ImageNet opens quickly and stays small in memory."""

import gc
import logging
import os
import time
import tracemalloc

import pytest
from fakes import FakeGenerator, paint
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic
from torch_augcond.job import Job
from torch_augcond.progress import silent
from torch_augcond.request import Request

LOG = logging.getLogger(__name__)
CLASSES = 20
FULL = 1_280_000


@pytest.mark.parametrize("size", [20_000, pytest.param(FULL, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_opens_quickly_and_stays_small(tmp_path, size):
    """Opening looks at names only, so empty files will do."""
    for label in range(CLASSES):
        paint(tmp_path / "real" / f"class {label}" / "0.png", str(label))
    real, generator = ImageFolder(tmp_path / "real"), FakeGenerator()
    options = {"num_per_class": size // CLASSES, "augmentation": "real", "generator": generator}
    options["root"] = tmp_path / "set"
    job = Job(Request(dataset=real, **options), write=True, load=None, progress=silent)
    for name, rows in job.plan.by_class():
        folder = job.store.path(name, "").parent
        folder.mkdir()
        for key in job.plan.keys[rows]:
            os.close(os.open(folder / f"{key.tobytes().hex()}.png", os.O_CREAT))
    del job
    started, seconds = time.process_time(), time.monotonic()
    synthetic = AugConditionedSynthetic(real, **options, generate=False)
    cpu, seconds = time.process_time() - started, time.monotonic() - seconds
    assert len(synthetic) == size and cpu < 1 + 20 * size / FULL
    gc.collect()
    del synthetic
    tracemalloc.start()
    synthetic = AugConditionedSynthetic(real, **options, generate=False)
    gc.collect()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(synthetic.samples) == size and kept <= 64 * size + (1 << 20)
    assert peak <= 400 * size + (16 << 20)
    LOG.info("%d images: %.1f s (%.1f s of CPU), %.1f bytes an image", size, seconds, cpu, kept / size)
