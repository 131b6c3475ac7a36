"""Class names of any kind as names of folders."""

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from unicodedata import ucd_3_2_0 as unicode  # a frozen table: a folder's name depends on no version of Python

MAX_NAME_BYTES = 255
ASIDE = ".aside"  # after a set's own name: the folder of what has left it
LOST_FOUND = "lost+found"  # a file system's own folder in the root of a disk: never a class
_RESERVED = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?|lost\+found|metadata\.jsonl",
    re.IGNORECASE | re.DOTALL,
)


def _escape_char(char: str) -> str:
    return "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))


def _is_plain(char: str) -> bool:
    return char == " " or (char not in '<>:"/\\|?*%\xad' and unicode.category(char)[0] not in "CZ")


@lru_cache(maxsize=65536)
def escape_class(name: str) -> str:
    """The folder of class ``name``: one path component of at most 255 bytes, another one for every other name.

    An ordinary name stays as it is. What a file system, a shell or ``ImageFolder`` might take for something else
    (separators, control characters, a leading dot, trailing dots and spaces, ``CON``, ``lost+found``, what `export`
    writes, letters that are not in Unicode's composed form) is percent-encoded. A name that gets too long keeps its
    beginning and ends in ``%~`` and its hash.

    Example:
        >>> escape_class("../a cat")
        '%2E.%2Fa cat'
    """
    chars = [char if _is_plain(char) else _escape_char(char) for char in name]
    if name.startswith("."):
        chars[0] = "%2E"
    if name.endswith((".", " ")):
        chars[-1] = _escape_char(name[-1])
    if _RESERVED.fullmatch(name):
        chars[0] = _escape_char(name[0])
    if not unicode.is_normalized("NFC", "".join(chars)):  # a file system may compose it into another name
        chars = [char if char.isascii() else _escape_char(char) for char in chars]
    folder = "".join(chars) or "%"
    return folder if len(folder.encode()) <= MAX_NAME_BYTES else _shorten(chars, name)


def _shorten(chars: list[str], name: str) -> str:
    ending = "%~" + hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    room, kept = MAX_NAME_BYTES - len(ending), ""
    for char in chars:
        if len(kept.encode()) + len(char.encode()) > room:
            break
        kept += char
    return kept + ending


def place_of(path: str | os.PathLike) -> Path:
    """Absolute, and without ``..``: a root's name is that of a folder, and what is set aside lies beside it."""
    path = Path(path).expanduser().absolute()
    return path.resolve() if ".." in path.parts else path


def aside_of(root: Path) -> Path:
    """The folder beside a set that keeps what has left it: one, by whatever links the set is reached."""
    root = root.resolve()
    return root.with_name(root.name + ASIDE)


def unescape_class(folder: str) -> str:
    """The class whose folder this is; the inverse of `escape_class`.

    Raises:
        ValueError: If ``folder`` is no such folder, or holds a shortened name (every image's record has the full one).
    """
    if folder == "%":
        return ""
    raw = folder.encode("utf-8", "surrogatepass")
    name = re.sub(rb"%([0-9A-F]{2})", lambda hit: bytes([int(hit[1], 16)]), raw).decode("utf-8", "surrogatepass")
    if escape_class(name) != folder:
        raise ValueError(f"`folder` must be an escaped class name in full, but got {folder!r}.")
    return name
