"""One image and the record of what made it, as one file that notices any change."""

import errno
import hashlib
import io
import os
import warnings
import zlib
from pathlib import Path
from typing import NoReturn

import torch
from PIL import Image

from ..marks import DIGEST, ITXT, JPEG_HEAD, PNG_HEAD
from .disk import read_regular, seal, unseal
from .names import aside_of

MAX_BYTES = 64 << 20
_MAX_RECORD = 65_533  # what a JPEG comment holds
_HEADS = {"png": PNG_HEAD, "jpg": JPEG_HEAD}
_FORMATS = {"png": ("PNG",), "jpg": ("JPEG",)}


class Corrupt(ValueError):
    """An image file that is not, byte for byte, what was written under its name; ``reason`` says what is wrong."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(path, reason)  # both, so that it survives pickling on its way out of a worker
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{os.fspath(self.path)} is damaged: {self.reason}. `torch-augcond verify` sets it aside."


def extension(image_size: int) -> str:
    """``"png"`` below 256 pixels, where JPEG would show, else ``"jpg"``."""
    return "png" if image_size < 256 else "jpg"


def encode(image: torch.Tensor, provenance: dict, ext: str) -> bytes:
    """The bytes of an image file that carries ``provenance`` and a digest of everything in it.

    Args:
        image: uint8.
        provenance: What ``json`` can write; at most 64 KiB. It has a ``"key"`` (the file's name), a ``"class_name"``
            and an ``"ordinal"``.
        ext: ``"png"`` (lossless) or ``"jpg"`` (quality 95).

    Shape:
        image: ``(3, H, W)``.

    Raises:
        TypeError: If ``image`` is no uint8 tensor.
        ValueError: If its shape or ``ext`` is another, or the record is too long.

    Example:
        >>> image = torch.zeros(3, 8, 8, dtype=torch.uint8)
        >>> data = encode(image, {"key": "00", "class_name": "cat", "ordinal": 0}, "png")
    """
    if not isinstance(image, torch.Tensor) or image.dtype != torch.uint8:
        raise TypeError(f"`image` must be a uint8 tensor, but got {getattr(image, 'dtype', type(image).__name__)}.")
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"`image` must have shape (3, H, W), but got {tuple(image.shape)}.")
    if ext not in ("png", "jpg"):
        raise ValueError(f"`ext` must be 'png' or 'jpg', but got {ext!r}.")
    buffer = io.BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    if ext == "png":
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=95)
    plain = buffer.getvalue()
    record = seal(provenance, plain)
    if len(record) > _MAX_RECORD:
        raise ValueError(f"`provenance` must fit in {_MAX_RECORD:,} bytes as JSON, but has {len(record):,}.")
    return _insert(plain, record, ext)


def _insert(plain: bytes, record: bytes, ext: str) -> bytes:
    head = _HEADS[ext]
    return plain[:head] + _framed(record, ext) + plain[head:]


def _framed(record: bytes, ext: str) -> bytes:
    """The chunk or segment that holds the record."""
    if ext == "jpg":
        return b"\xff\xfe" + (len(record) + 2).to_bytes(2, "big") + record
    chunk = ITXT + record
    return (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")


def _extract(data: bytes, ext: str) -> tuple[bytes, bytes]:
    """The file without its record, and the record; nonsense in, nonsense out: putting them together again tells."""
    if ext == "png":
        start, end = PNG_HEAD + 4 + len(ITXT), PNG_HEAD + 8 + int.from_bytes(data[PNG_HEAD : PNG_HEAD + 4], "big")
        return data[:PNG_HEAD] + data[end + 4 :], data[start:end]
    end = JPEG_HEAD + 2 + int.from_bytes(data[JPEG_HEAD + 2 : JPEG_HEAD + 4], "big")
    return data[:JPEG_HEAD] + data[end:], data[JPEG_HEAD + 4 : end]


def _load(path: str | os.PathLike, key: str | None) -> tuple[bytes, dict]:
    ext = os.fspath(path).rpartition(".")[2]
    try:
        data = read_regular(path, MAX_BYTES)
        plain, text = _extract(data, ext)
        record = unseal(text, plain)
    except FileNotFoundError as error:
        _say_where(path, error)
    except ValueError as error:
        raise Corrupt(path, str(error)) from error
    if _insert(plain, text, ext) != data:  # what the digest can't cover: the frame around the record
        raise Corrupt(path, "the frame of its record is broken")
    if not plain.startswith(b"\x89PNG" if ext == "png" else b"\xff\xd8"):
        raise Corrupt(path, f"it is no {ext.upper()} file")
    if not isinstance(record.get("class_name"), str) or not isinstance(record.get("ordinal"), int):
        raise Corrupt(path, "its record names no class or no ordinal")
    if key is not None and record.get("key") != key:
        raise Corrupt(path, f"it holds image {record.get('key')}, not {key}")
    return data, record


def _say_where(path: str | os.PathLike, error: FileNotFoundError) -> NoReturn:
    """Raises the error of an image that has gone from its set, with what may have become of it."""
    file = Path(path).absolute()
    aside = aside_of(file.parent.parent)
    places = [aside / why / file.parent.name / file.name for why in ("stale", "corrupt", "foreign")]
    found = next((place for place in places if os.path.lexists(place)), None)
    reason = {
        None: "this image has gone from its set. Run again what made it",
        places[0]: "this image was set aside since the real images have changed or another dataset uses this `root`. "
        f"It lies in {places[0].parent}: give each dataset a `root` of its own, and run again what made it",
    }.get(found, f"this image was set aside by `torch-augcond verify`, into {aside}. Run again what made it")
    raise FileNotFoundError(errno.ENOENT, reason, os.fspath(path)) from error


def read_provenance(path: str | os.PathLike) -> dict:
    """The record inside an image file that is whole.

    Raises:
        Corrupt: If any byte of the file is not what was written.
    """
    return _load(path, None)[1]


def check(path: str | os.PathLike, key: str) -> dict:
    """The record of the file at ``path``, after making sure that it is whole and is image ``key``.

    Every bit counts: pixels, record, digest, the frames around them. A swapped file is found by its key.

    Raises:
        Corrupt: With the reason.
        FileNotFoundError: If there is no such file.
    """
    return _load(path, key)[1]


def read_image(path: str | os.PathLike, key: str) -> Image.Image:
    """The image ``key`` as an RGB picture; a damaged or swapped file is never returned.

    Raises:
        Corrupt: With the reason.
        FileNotFoundError: If there is no such file.
    """
    data, _ = _load(path, key)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=("PNG", "JPEG")).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Corrupt(path, f"it can't be decoded ({error})") from error


def load_image(path: str) -> Image.Image:
    """`read_image` for training loops, by the file's name alone: as fast as ``ImageFolder``'s loader.

    Digest and frame are compared without parsing the record; where it doesn't fit, `read_image` says why.

    Raises:
        Corrupt: With the reason.
        FileNotFoundError: If there is no such file.
    """
    name = os.path.basename(path)
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError as error:
        _say_where(path, error)
    except ValueError as error:
        raise Corrupt(path, str(error)) from error
    plain, text = _extract(data, name[33:])
    body = b"{" + text[len(DIGEST) + 35 :]  # the record without its digest, which comes first
    digest = hashlib.blake2b(len(body).to_bytes(8, "big") + body, digest_size=16)
    digest.update(plain)
    whole = text.startswith(DIGEST + digest.hexdigest().encode() + b'", ') and f'"key": "{name[:32]}"'.encode() in body
    if not whole or not data.startswith(_framed(text, name[33:]), _HEADS[name[33:]]):
        return read_image(path, name[:32])
    image = Image.open(io.BytesIO(plain), formats=_FORMATS[name[33:]])
    image.load()  # it is RGB already, as `encode` wrote it: `convert` would copy it
    return image
