"""A disk that is full: one clear error, nothing half there, and on it goes once there is room."""

import errno
import os
import re
import resource
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from commands import start
from faults import FORK, contents, job_of, paint_sources, problems

from torch_augcond.store.disk import TEMP_PREFIX

COUNT = 40  # images of each of two classes; all in all some 130 KiB
CLEAR = re.compile(
    r"`root` must be a folder .* but .*: [\d,]+ bytes needed, [\d,]+ bytes and [\d,]+ files free\..*: '/"
)


@contextmanager
def small_disk(folder: Path, options: str):
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    paint_sources(folder / "real")
    make(folder / "real", folder / "set")
    return folder / "real", contents(folder / "set")


def make(real: Path, root: Path) -> None:
    job_of(real, root, num_per_class=COUNT).make(batch_size=8)


def assert_clear(error: OSError, root: Path) -> None:
    assert error.errno in (errno.ENOSPC, errno.EFBIG)
    assert CLEAR.search(str(error)) and str(root) in str(error) and "\n" not in str(error)


def assert_nothing_half(root: Path) -> None:
    assert not problems(root, repair=False)
    assert not [name for name in os.listdir(root) if name.startswith(TEMP_PREFIX)]


# 20 disks, of bytes and of files.
SIZES = [f"size={4 * pages}k" for pages in (2, 4, 5, 6, 7, 9, 11, 14, 18, 23, 29, 36, 45, 56, 70)]
SIZES += [f"nr_inodes={number}" for number in (4, 6, 9, 17, 40)]


def test_every_size_of_disk(undisturbed, tmp_path):
    real, whole = undisturbed
    for size in SIZES:
        with small_disk(tmp_path / size, size) as disk:
            root = disk / "set"
            with pytest.raises(OSError, match="bytes needed") as error:
                make(real, root)
            assert_clear(error.value, disk)
            if root.exists():
                assert_nothing_half(root)
            before = contents(root)
            subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10k", disk], check=True)
            make(real, root)
            after = contents(root)
            assert after == whole and before.items() <= after.items()
            assert not problems(root)


def limited(real: Path, root: Path, limit: int, queue) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        make(real, root)
    except OSError as error:
        queue.put((error.errno, str(error)))
    queue.put(None)


@pytest.mark.parametrize("limit", [1, 100, 500, 1000])
def test_files_that_may_not_be_long(undisturbed, tmp_path, limit):
    real, whole = undisturbed
    root, queue = tmp_path / "set", FORK.SimpleQueue()
    process = FORK.Process(target=limited, args=(real, root, limit, queue))
    process.start()
    error = queue.get()
    process.join(60)
    assert error[0] == errno.EFBIG and CLEAR.search(error[1])
    assert_nothing_half(root)
    make(real, root)
    assert contents(root) == whole


def test_the_command_says_it_in_one_line(undisturbed, tmp_path):
    """The real command in a real process; then with room."""
    real, _ = undisturbed
    with small_disk(tmp_path / "disk", "size=32k") as disk:
        argv = ["generate", real, "--root", disk / "set", "--num-per-class", COUNT, "--generator", "fake-16-12"]
        process = start(*argv)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1 and CLEAR.search(err) and "Traceback" not in err, err
        assert err.count("\n") == 1 and err.startswith("torch-augcond generate: error: ")
        assert_nothing_half(disk / "set")
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        make(real, disk / "set")
        assert len(list((disk / "set").glob("*/*.png"))) == 2 * COUNT and not problems(disk / "set")
