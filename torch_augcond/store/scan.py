"""What lies in the directory of a set, looked at without following a link."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from .disk import TEMP_PREFIX, read_regular, unseal
from .embedding_cache import damage
from .imagefile import Corrupt, check
from .names import escape_class

CONFIG = ".augcond.json"
IMAGE = re.compile(r"[0-9a-f]{32}\.(png|jpg)")
MAX_METADATA = 1 << 30


def entries(folder: str | os.PathLike) -> list[os.DirEntry]:
    """What lies in ``folder`` apart from dot-files, by name; nothing if it is not there (any more)."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def folders(root: str | os.PathLike) -> list[os.DirEntry]:
    """The class folders."""
    return [entry for entry in entries(root) if entry.is_dir(follow_symlinks=False)]


def images(folder: str | os.PathLike) -> list[str]:
    """Names of the images in a class folder; none of them is opened."""
    try:
        with os.scandir(folder) as found:
            return [e.name for e in found if IMAGE.fullmatch(e.name) and e.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def metadata(root: Path, prefix: str) -> list[Path]:
    """The dot-files in ``root`` that begin with ``prefix``."""
    try:
        return [root / name for name in sorted(os.listdir(root)) if name.startswith(prefix)]
    except FileNotFoundError:
        return []


def foreign(root: Path) -> str | None:
    """A name in ``root`` that no set has."""
    for entry in entries(root):
        inside = entries(entry.path) if entry.is_dir(follow_symlinks=False) else [entry]
        for other in inside[:1]:
            if not IMAGE.fullmatch(other.name):
                return os.path.relpath(other.path, root)
    return None


def inspect(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Every file of the set, with what is wrong with it."""
    for path in metadata(root, ".augcond"):
        if not path.name.startswith(TEMP_PREFIX):
            yield path, _metadata_problem(path)
    for entry in entries(root):
        if entry.is_symlink():
            yield Path(entry.path), "it is a link, which an ImageFolder would follow"
        elif entry.is_dir():
            for inside in entries(entry.path):
                yield Path(inside.path), _image_problem(inside, entry.name)


def _image_problem(entry: os.DirEntry, folder: str) -> str | None:
    if not IMAGE.fullmatch(entry.name):
        return "it is no image of this set"
    try:
        name = check(entry.path, entry.name[:32])["class_name"]
    except FileNotFoundError:  # set aside meanwhile
        return None
    except Corrupt as error:
        return error.reason
    return None if escape_class(name) == folder else f"it belongs to class {name!r}"


def _metadata_problem(path: Path) -> str | None:
    if path.suffix == ".safetensors":
        return damage(path)
    try:
        data = read_regular(path, MAX_METADATA)
        for line in [data] if path.name == CONFIG else data.splitlines():
            unseal(line, indent=2 if path.name == CONFIG else None)
    except ValueError as error:
        return str(error)
    except FileNotFoundError:
        return None
    return None
