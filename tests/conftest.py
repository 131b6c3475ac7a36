"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

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
