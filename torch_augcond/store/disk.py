"""What every file of a set rests on: records that notice any change, and files that are whole or absent."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from ..shards import BEAT_PREFIX, BEAT_SECONDS

TEMP_PREFIX = ".augcond-tmp-"
MAX_METADATA = 1 << 30  # bytes in a file that is no image
_ATTEMPTS = 8
_DAY = 24 * 60 * 60


def seal(record: dict, payload: bytes = b"", indent: int | None = None) -> bytes:
    """``record`` as JSON that begins with a digest of itself and of ``payload``."""
    body = json.dumps(record, allow_nan=False).encode()
    digest = hashlib.blake2b(len(body).to_bytes(8, "big") + body + payload, digest_size=16).hexdigest()
    return json.dumps({"digest": digest, **record}, indent=indent).encode()


def unseal(text: bytes, payload: bytes = b"", indent: int | None = None) -> dict:
    """The record that was sealed; any other byte in ``text`` or ``payload`` is a ``ValueError``."""
    try:
        record = json.loads(text)
        del record["digest"]
        whole = seal(record, payload, indent) == text
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise ValueError("its digest does not match its content")
    return record


def seal_with(payload: bytes, record: dict) -> bytes:
    """``record`` in a line of its own, sealed together with the ``payload`` that follows it."""
    return seal(record, payload) + b"\n" + payload


def unseal_with(data: bytes) -> tuple[dict, bytes]:
    """The record and the payload of `seal_with`; any other byte is a ``ValueError``."""
    line, newline, payload = data.partition(b"\n")
    return unseal(line if newline else b"", payload), payload


def is_regular(path: str | os.PathLike) -> bool:
    """Whether there is a file, not a link to one."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_regular(path: str | os.PathLike, limit: int) -> bytes:
    """The bytes of a regular file, never through a link, never more than ``limit`` (a ``ValueError``)."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise ValueError("it is not a regular file") from error
        raise
    try:
        check_regular(os.fstat(descriptor), limit)
    except ValueError:
        os.close(descriptor)
        raise
    with open(descriptor, "rb") as file:
        return file.read()


def check_regular(status: os.stat_result, limit: int) -> None:
    """Raises a ValueError if what has this status is no regular file, or has more than ``limit`` bytes."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > limit:
        raise ValueError(f"it has {status.st_size:,} bytes, more than the {limit:,} such a file may have")


@contextmanager
def explained(path: str | os.PathLike, needed: int = 0) -> Iterator[None]:
    """Turns what the disk refuses into one ``OSError`` with the path and, if it is full, the bytes needed and free."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if not error.errno:
            raise
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise OSError(
                error.errno,
                f"{os.strerror(error.errno)}. Raise the limit (ulimit -n), then run the same command again: what was "
                "written stays",
                os.fspath(path),
            ) from error
        full = error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", None))  # Windows has no quota
        room = (
            f": {needed:,} bytes needed, {_free(path)}. Make room" if full else ". Allow writing, or choose another one"
        )
        raise OSError(
            error.errno,
            f"`root` must be a folder that can be written, but {os.strerror(error.errno)}{room}, then run the same "
            "command again: what was written stays",
            os.fspath(path),
        ) from error


def _free(path: str | os.PathLike) -> str:
    path = Path(path)
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        files = f" and {os.statvfs(path).f_favail:,} files" if hasattr(os, "statvfs") else ""
        return f"{shutil.disk_usage(path).free:,} bytes{files} free"
    except OSError:
        return "free space unknown"


def make_folder(folder: Path) -> None:
    """Makes a class folder, or finds it.

    Raises:
        ValueError: If what is there is a link or a file, or has another name on a file system that ignores case.
    """
    try:
        folder.mkdir()
    except FileExistsError:
        with suppress(FileNotFoundError):  # emptied and removed elsewhere: whoever writes into it makes it again
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise ValueError(f"a class folder must not be a link or a file, but {folder} is. Remove it.") from None
            for name in os.listdir(folder.parent):  # that it lacks ours proves nothing: it may lag behind other writers
                if _differ_in_case(name, folder.name) and _is_one(folder, folder.parent / name):
                    raise ValueError(
                        f"`root` must tell class names apart, but its file system takes {folder.name!r} for {name!r}. "
                        "Choose a `root` on another file system, or rename the class."
                    ) from None
    else:
        sync_folder(folder.parent)


def make_aside(folder: Path, aside: Path, root: Path) -> None:
    """Makes a folder in ``aside``, the place beside a set; not on another disk, unless somebody made that place."""
    if not aside.exists() and _is_mounted(root.resolve()):
        raise OSError(
            f"`root` must be a folder on its disk, but {root} is where that is mounted: what leaves the set would be "
            f"moved to {aside}, on another disk, which a container loses when it ends. Choose a folder in it as "
            "`root`, or make that place yourself if it lasts, then run the same command again."
        )
    with explained(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS) or aside.exists():
                raise
            raise OSError(  # without a number, so that nothing is said about writing in `root`
                f"`root` must lie in a folder that can be written, since what leaves the set is kept beside it, "
                f"but {aside} can't be made: {error.strerror}. Have that folder made for you, or choose "
                "another `root`, then run the same command again."
            ) from error


def _is_mounted(root: Path) -> bool:
    """Whether a disk is mounted there, or a folder of the same one, as a container's volume may be."""
    if os.path.ismount(root):
        return True
    with suppress(OSError):
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        places = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), line.split()[4]) for line in lines)
        return str(root) in places
    return False


def _differ_in_case(one: str, other: str) -> bool:
    return one != other and one.casefold() == other.casefold()


def _is_one(folder: Path, other: Path) -> bool:
    """Whether two names that differ in case lead to one folder; exFAT by FUSE has a number for each of them."""
    return folder.samefile(other) or (folder.name.lower() == other.name.lower() and _ignores_case(folder.parent))


def _ignores_case(root: Path) -> bool:
    probe = temp_path(root)
    try:
        probe.touch(exist_ok=False)
        return os.path.lexists(root / probe.name.upper())
    finally:
        with suppress(OSError):
            probe.unlink()


def publish(data: bytes, path: Path, root: Path, *, replace: bool = True, sync: bool = True) -> None:
    """Puts ``data`` at ``path``, whole or not at all, whatever happens meanwhile and whoever does the same.

    The temporary file lies in ``root`` (the same file system, and never inside a class folder). With ``replace=False``
    the first to publish wins and the others get a ``FileExistsError``. The name outlives a power cut only after
    `sync_folder`, the content not even then with ``sync=False``.
    """
    with explained(path, len(data)):
        for attempt in range(_ATTEMPTS):
            try:
                return _publish(data, path, root, replace, sync)
            except FileNotFoundError:  # a clean-up elsewhere took the temporary file or the emptied folder: once more
                if attempt == _ATTEMPTS - 1 or not root.is_dir():
                    raise
                if path.parent != root:
                    make_folder(path.parent)


def _publish(data: bytes, path: Path, root: Path, replace: bool, sync: bool) -> None:
    with written(path, root, put=None if replace else _link, sync=sync) as file:
        file.write(data)


@contextmanager
def written(
    path: Path, root: Path, *, put: Callable[[Path, Path], None] | None = None, sync: bool = True
) -> Iterator[BinaryIO]:
    """A temporary file to write to, which gets its name at the end of the block, or leaves nothing."""
    temp = temp_path(root)
    try:
        with open(temp, "xb") as file:  # "x" follows no link; its mode is what the umask says
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        (put or os.replace)(temp, path)
    finally:
        with suppress(OSError):
            temp.unlink()


class Immovable(OSError):
    """It can't be copied to another disk, and stays where it is."""


def move(path: Path, target: Path, root: Path) -> None:
    """Gives a file another name, in the place of what had it; a link or a folder too.

    To another file system it is copied, by way of a temporary one in ``root``, and goes once the copy is on the disk.

    Raises:
        Immovable: If that can't be done: it is a pipe or the like, or has a bad sector.
    """
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        (_move_file if is_regular(path) else _move_other)(path, target, root)
        return
    with suppress(FileNotFoundError):  # two names of one file, as tools that save space make, both stay
        if os.path.samestat(path.lstat(), target.lstat()):
            path.unlink()


def _move_file(path: Path, target: Path, root: Path) -> None:
    with open(path, "rb") as source:
        with written(target, root) as file:
            try:
                shutil.copyfileobj(source, file)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                raise _immovable(target, error.strerror) from error
        sync_folder(target.parent)
        if os.path.samestat(os.fstat(source.fileno()), path.lstat()):  # another one may have been made meanwhile
            path.unlink()


def _move_other(path: Path, target: Path, root: Path) -> None:
    mode = path.lstat().st_mode
    if not (stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):  # reading it may never end
        raise _immovable(target, "it is no file, folder or link")
    own = target.with_name(f"{target.name}.{secrets.token_hex(4)}")  # nobody else's, should half of it be removed
    try:
        shutil.move(path, own)
    except shutil.Error as error:  # of what lies in a folder
        shutil.rmtree(own, ignore_errors=True)
        raise _immovable(target, error.args[0][0][-1]) from error


def _immovable(target: Path, why: object) -> Immovable:
    return Immovable(f"it can't be moved to {target.parent}, which is on another disk ({why}), so remove it yourself")


def temp_path(root: Path, mark: str = "-") -> Path:
    """A name for a temporary file, which `sweep` removes once this process is dead."""
    return root / f"{TEMP_PREFIX}{host()}-{os.getpid()}{mark}{_life(os.getpid())}{secrets.token_hex(4)}"


@cache
def _life(pid: int) -> str:
    """Tells this process from an earlier one of the same number: in a container, each run may be process 1."""
    return secrets.token_hex(4)


def host() -> str:
    """This machine's name, in eight characters: also its boot's, and that of the container, if processes count anew."""
    name = "\0".join([socket.gethostname(), *_kernel(os.getpid())])
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


@cache
def _kernel(pid: int) -> tuple[str, ...]:
    """What Linux knows of where this process's number counts: nothing elsewhere."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="latin-1")
        return os.readlink("/proc/self/ns/pid"), boot.strip()
    return ()


def sweep(root: Path) -> None:
    """Removes the temporary files of processes that are dead, or, where that can't be told, those a day old.

    Where it errs (one host name for two machines), the writer finds its file gone and writes it again.
    """
    for path in [Path(root, name) for name in os.listdir(root) if name.startswith(TEMP_PREFIX)]:
        with suppress(OSError):
            lifetime = 6 * BEAT_SECONDS if path.name.startswith(BEAT_PREFIX) else _DAY
            if writer_is_dead(path.name) or time.time() - path.lstat().st_mtime > lifetime:
                path.unlink()


def writer_is_dead(name: str) -> bool:
    """Whether the process that made a temporary file of this name is known to be gone."""
    machine, _, rest = name.removeprefix(TEMP_PREFIX).partition("-")
    pid = rest.partition("-")[0]
    if machine != host() or not pid.isdecimal() or os.name == "nt":  # there, asking a process would end it
        return False
    if int(pid) == os.getpid():
        return not rest.rpartition("-")[2].startswith(_life(os.getpid()))
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return _is_zombie(pid)


def _is_zombie(pid: str) -> bool:
    """Killed, but its parent hasn't asked for its end yet (in a container nobody may ever do): Linux tells."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()[0] == "Z"
    return False


def _link(temp: Path, path: Path) -> None:
    try:
        os.link(temp, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temp, path)


def sync_folder(folder: Path) -> None:
    """Writes a folder's list of names to the disk."""
    if os.name == "nt":  # there folders can't be opened, and needn't be
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with explained(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such call
            raise
    finally:
        os.close(descriptor)
