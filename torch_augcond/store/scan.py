"""What lies in the directory of a set, looked at without following a link."""

import errno
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..marks import CONFIG, is_synthetic
from ..plan import Settings, canonical
from .disk import MAX_METADATA, TEMP_PREFIX, read_regular, unseal, unseal_with
from .embedding_cache import damage
from .imagefile import Corrupt, check, read_provenance
from .names import LOST_FOUND, escape_class

EXPORTED = "metadata.jsonl"
INDEX = ".augcond-index-"  # and the digest of what is in it
_SEEN = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's list
NO_IMAGE = "it is no image of this set"
NO_CLASS = "an ImageFolder would take it for a class"
LINK = "it is a link, which an ImageFolder would follow"
OTHER_SET = "it is an image of another set"
FOREIGN = (NO_IMAGE, NO_CLASS, LINK, OTHER_SET)  # what somebody else has put there
_ASKED = 1000
TRIED = 8  # images of a folder, the first of which may be damaged
IMAGE = re.compile(r"[0-9a-f]{32}\.(png|jpg)")


def entries(folder: str | os.PathLike, *, hidden: bool = False) -> list[os.DirEntry]:
    """What lies in ``folder``, by name; of hidden entries at most what an ImageFolder would see.

    A disk's own ``lost+found`` is nobody's, and often can't be opened.
    """
    try:
        with os.scandir(folder) as found:
            seen = (e for e in found if e.name[0] != "." or (hidden and _is_seen(e)))
            return sorted((e for e in seen if e.name != LOST_FOUND), key=lambda e: e.name)
    except FileNotFoundError:
        return []


def _is_seen(entry: os.DirEntry) -> bool:
    """As macOS' ``._*.png`` and Jupyter's ``.ipynb_checkpoints``."""
    return entry.is_symlink() or entry.is_dir() or entry.name.lower().endswith(_SEEN)


def is_image(entry: os.DirEntry) -> bool:
    """Whether it is called as an image of a set."""
    return IMAGE.fullmatch(entry.name) is not None


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
    """A name in ``root`` that no set has, or the first image of a folder where none of ours is among the first ones."""
    for entry in entries(root):
        is_class = entry.is_dir(follow_symlinks=False)
        inside = entries(entry.path) if is_class else [entry]
        for other in inside:
            if not IMAGE.fullmatch(other.name) and other.path != os.path.join(root, EXPORTED):
                return os.path.relpath(other.path, root)
        if is_class and inside and not any(map(_is_ours, inside[:TRIED])):
            return os.path.relpath(inside[0].path, root)
    return None


def _is_ours(entry: os.DirEntry) -> bool:
    """Whether it begins as our images do: photographs may be named after digests, too."""
    with suppress(OSError):
        if entry.is_file(follow_symlinks=False):
            with open(entry.path, "rb") as file:
                return is_synthetic(file.read(64))
    return False


def settings(root: Path) -> dict | None:
    """What most whole images of the set say that they were made with; of a large set, a thousand are asked."""
    paths = [Path(folder.path, name) for folder in folders(root) for name in images(folder)]
    found: Counter[str] = Counter()
    for path in paths[:: max(1, len(paths) // _ASKED)]:
        with suppress(Corrupt, OSError):
            found[json.dumps(read_provenance(path).get("settings"), sort_keys=True)] += 1
    return json.loads(found.most_common(1)[0][0]) if found else None


def key_of(record: dict[str, Any], settings: Settings) -> str | None:
    """The key of what a record says it is of, made with these settings."""
    try:
        fields = [record[name] for name in ("class_name", "prompt", "digests", "ordinal")]
        return hashlib.blake2b(canonical(settings, *fields), digest_size=16).hexdigest()
    except (KeyError, TypeError):
        return None


def inspect(root: Path, own: Settings | None) -> Iterator[tuple[Path, str | None]]:
    """Every file of the set, with what is wrong with it.

    Args:
        own: The settings of the set: an image that was made with others is none of it. None where nobody knows them.
    """
    for path in metadata(root, ".augcond"):
        if not path.name.startswith(TEMP_PREFIX):
            yield path, _metadata_problem(path)
    for entry in entries(root, hidden=True):
        if entry.name.startswith(".augcond"):
            continue
        if entry.is_symlink():
            yield Path(entry.path), LINK
        elif entry.is_dir() and entry.name.startswith("."):
            yield Path(entry.path), NO_CLASS
        elif entry.is_dir():
            for inside in entries(entry.path, hidden=True):
                yield Path(inside.path), _image_problem(inside.path, own)


def own_record(path: str | os.PathLike, own: Settings | None) -> dict:
    """The record of an image of the set with these settings (None: not known), where it belongs.

    Raises:
        Corrupt: It is none, or not whole.
        FileNotFoundError: There is none.
    """
    folder, name = os.path.split(path)
    if not IMAGE.fullmatch(name):
        raise Corrupt(path, NO_IMAGE)
    record = check(path, name[:32])
    if escape_class(record["class_name"]) != os.path.basename(folder):
        raise Corrupt(path, f"it belongs to class {record['class_name']!r}")
    if own and key_of(record, own) != name[:32]:
        raise Corrupt(path, OTHER_SET)
    return record


def _image_problem(path: str, own: Settings | None) -> str | None:
    try:
        own_record(path, own)
    except FileNotFoundError:  # set aside meanwhile
        return None
    except Corrupt as error:
        return error.reason
    except OSError as error:
        return _unreadable(error)
    return None


def _metadata_problem(path: Path) -> str | None:
    try:
        if path.suffix == ".safetensors":
            return damage(path)
        data = read_regular(path, MAX_METADATA)
        if path.name.startswith(INDEX):
            whole = path.name == INDEX + hashlib.blake2b(data, digest_size=16).hexdigest()
            return None if whole else "its content does not match its name"
        unseal(data, indent=2) if path.name == CONFIG else unseal_with(data)
    except ValueError as error:
        return str(error)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _unreadable(error)
    return None


def _unreadable(error: OSError) -> str:
    """A bad sector is damage; what this user may not read, or a network that is down, is none."""
    if error.errno != errno.EIO:
        raise error
    return f"it can't be read ({error.strerror})"
