"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
import torch
from fakes import FakeGenerator, paint_folder
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, each on one core; what they start inherits it
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))

# Time limits belong to pytest-timeout: hypothesis' own fail at random on a busy machine.
settings.register_profile("torch_augcond", deadline=None, print_blob=True)
settings.load_profile("torch_augcond")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real images that some tests read; they are skipped where there is none."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("TORCH_AUGCOND_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"needs real images: set TORCH_AUGCOND_TEST_DATA to their folder (there is none at {folder})")
    return folder


@pytest.fixture
def fake(monkeypatch):
    """Whatever the name, this generator is loaded; `fake.loaded` keeps how."""
    generator = FakeGenerator()
    generator.loaded = []
    load = lambda name, **options: generator.loaded.append((name, options)) or generator  # noqa: E731
    monkeypatch.setattr("torch_augcond.generators.load_generator", load)
    monkeypatch.setattr("torch_augcond.job._made_by", lambda fingerprint, name: True)
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    return generator


@pytest.fixture
def data(tmp_path):
    """Five real images."""
    return paint_folder(tmp_path / "real", {"cat": 3, "dog": 2})
