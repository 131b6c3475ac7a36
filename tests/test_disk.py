"""Records that notice any change, and files that are whole or absent."""

import errno
import os
import re
import stat
from pathlib import Path

import pytest

from torch_augcond.store import disk
from torch_augcond.store.disk import TEMP_PREFIX, publish, read_regular, seal, unseal


@pytest.mark.parametrize("indent", [None, 2])
def test_seal_notices_every_bit(indent):
    record = {"a": [1, 0.1, None, True, "ü\udc80"], "b": {"c": -(2**63)}}
    text = seal(record, b"payload", indent)
    assert unseal(text, b"payload", indent) == record
    for bit in range(8 * len(text)):
        damaged = bytearray(text)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="digest does not match"):
            unseal(bytes(damaged), b"payload", indent)
    for damaged in (text[:-1], b"", text + b" ", b"[" * 100_000, b"3", b"[]"):
        with pytest.raises(ValueError, match="digest does not match"):
            unseal(damaged, b"payload", indent)
    with pytest.raises(ValueError, match="digest does not match"):
        unseal(text, b"Payload", indent)


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_mode_respects_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        publish(b"x", tmp_path / "file", tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_first_publisher_wins_where_asked(tmp_path, monkeypatch):
    for link in (os.link, lambda *paths: (_ for _ in ()).throw(PermissionError(errno.EPERM, "no hard links"))):
        monkeypatch.setattr(os, "link", link)
        path = tmp_path / f"file{len(os.listdir(tmp_path))}"
        publish(b"first", path, tmp_path, replace=False)
        with pytest.raises(FileExistsError):
            publish(b"second", path, tmp_path, replace=False)
        assert path.read_bytes() == b"first"
    publish(b"second", path, tmp_path)
    assert path.read_bytes() == b"second"
    assert not [name for name in os.listdir(tmp_path) if name.startswith(TEMP_PREFIX)]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EACCES])
def test_what_the_disk_refuses_is_one_clear_error(tmp_path, monkeypatch, step, code):
    monkeypatch.setattr(os, step, lambda *args: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    room = (
        r"1,234 bytes needed, [\d,]+ bytes and [\d,]+ files free\. Make room"
        if full
        else r"\. Allow writing, or choose"
    )
    with pytest.raises(OSError, match=f"{re.escape(os.strerror(code))}(: )?{room}.*run") as caught:
        publish(bytes(1234), tmp_path / "file", tmp_path)
    assert caught.value.errno == code
    assert caught.value.filename == str(tmp_path / "file")
    assert os.listdir(tmp_path) == []


def test_a_clean_up_in_between_costs_a_retry_only(tmp_path, monkeypatch):
    (tmp_path / "class").mkdir()
    replace, calls = os.replace, []

    def swept(temp, path):
        calls.append(temp)
        if len(calls) == 1:
            os.unlink(temp)
        if len(calls) == 2:
            path.parent.rmdir()
        replace(temp, path)

    monkeypatch.setattr(os, "replace", swept)
    publish(b"x", tmp_path / "class" / "file", tmp_path)
    assert (tmp_path / "class" / "file").read_bytes() == b"x"
    assert len(calls) == 3


def test_a_root_that_vanished_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="`root` must be a folder that can be written"):
        publish(b"x", tmp_path / "gone" / "class" / "file", tmp_path / "gone")


def test_class_folder_must_be_a_folder(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "cat").symlink_to(tmp_path / "outside")
    (tmp_path / "dog").write_bytes(b"")
    for name in ("cat", "dog"):
        with pytest.raises(ValueError, match=f"must not be a link or a file, but .*{name} is"):
            disk.make_folder(tmp_path / name)


def test_a_file_system_that_ignores_case_is_found_out(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    (tmp_path / "CAT").mkdir()
    monkeypatch.setattr(os, "listdir", lambda folder, names=os.listdir: set(names(folder)) - {"cat"})
    disk.make_folder(tmp_path / "cat")  # two folders, and a listing that is behind
    (tmp_path / "Cat").symlink_to("cat")
    with pytest.raises(ValueError, match="`root` must tell class names apart, but .* takes 'cat' for 'Cat'"):
        disk.make_folder(tmp_path / "cat")


def test_a_file_system_that_ignores_case_is_found_out_by_other_numbers_too(tmp_path, monkeypatch):
    """As exFAT by FUSE: "cat" and "Cat" are one folder, and have an inode number each."""
    (tmp_path / "Cat").mkdir()
    disk.make_folder(tmp_path / "cat")
    disk.make_folder(tmp_path / "cat")  # another folder
    (tmp_path / "cat").rmdir()
    found = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: found(path) or found(str(path).lower()))
    monkeypatch.setattr(Path, "mkdir", lambda folder: (_ for _ in ()).throw(FileExistsError()))
    monkeypatch.setattr(Path, "lstat", lambda folder, lstat=Path.lstat: lstat(folder.with_name("Cat")))
    monkeypatch.setattr(Path, "samefile", lambda folder, other: False)
    with pytest.raises(ValueError, match="`root` must tell class names apart, but .* takes 'cat' for 'Cat'"):
        disk.make_folder(tmp_path / "cat")
    assert os.listdir(tmp_path) == ["Cat"]


def test_reads_regular_files_only(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("pipe", "loop", "."):
        with pytest.raises(ValueError, match="not a regular file"):
            read_regular(tmp_path / name, 10)
