"""One raw image: opened with care, brought to RGB, hashed."""

import hashlib
import io
import os
import stat
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError

from ..marks import is_synthetic

__all__ = [
    "DigestCache",
    "UnreadableImage",
    "as_pil",
    "check_header",
    "check_real",
    "check_regular",
    "check_size",
    "entry_through",
    "file_digest",
    "hash_bytes",
    "open_image",
    "readable",
    "to_rgb",
]

# What ImageFolder's extensions stand for, and GIF and AVIF. Of Pillow's others, EPS runs a program on what it is given,
# and ICO decodes what it holds before its size can be looked at.
FORMATS = ("JPEG", "PNG", "WEBP", "PPM", "BMP", "TIFF", "GIF", "AVIF")
_MAX_BYTES = 1 << 30  # more than the largest image that `check_size` lets pass has, uncompressed

_LOADING = Lock()

DigestCache = MutableMapping[tuple[str, int, str], str]  # by path, size, and times and inode

# A file younger than this may change again without its times changing (FAT counts in steps of two seconds).
_SETTLED_NS = 2_000_000_000


class UnreadableImage(ValueError):
    """One image that can't be used: its `name` (a path, or ``dataset[i]``) and the `reason`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"{self.name} could not be read: {self.reason}"


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns whatever a decoder or a user's loader raises into the one error type."""
    try:
        yield
    except Exception as error:
        raise UnreadableImage(name, f"{type(error).__name__}: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts a PIL image of any mode to RGB; nothing is clipped and no transparent pixel shows what lies under it.

    16-bit images are scaled from their full range. Modes ``I`` and ``F`` declare no range: values within 0..1,
    0..255 or 0..65535 (the first that fits) are scaled from it, others from their own minimum and maximum; values
    that are not finite count as 0. Transparency is laid on white. EXIF rotation is left alone, as torchvision does.

    Example::

        >>> to_rgb(Image.new("I;16", (1, 1), 65535)).getpixel((0, 0))
        (255, 255, 255)
    """
    if image.mode.startswith(("I", "F")):
        image = _greys(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _greys(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    greys = _scaled(values)
    if isinstance(clear := image.info.get("transparency"), int):  # the one grey that a 16-bit PNG may call transparent
        greys[values == clear] = 255
    return Image.fromarray(greys)


def _scaled(values: np.ndarray) -> np.ndarray:
    tops = (65535,) if values.dtype.kind == "u" else (1, 255, 65535)
    values = np.nan_to_num(values.astype(np.float64), nan=0, posinf=0, neginf=0)
    low, high = values.min(), values.max()
    low, high = next(((0, top) for top in tops if low >= 0 and high <= top), (low, high))
    return np.rint((values - low) * 255 / ((high - low) or 1)).astype(np.uint8)


def check_size(image: Image.Image) -> None:
    """Refuses a decompression bomb by its header, before a pixel is decoded (Pillow itself refuses only twice that)."""
    if not image.width * image.height:
        raise ValueError(f"an image of {image.width}x{image.height} pixels")
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise Image.DecompressionBombError(
            f"{image.width}x{image.height} pixels are more than PIL.Image.MAX_IMAGE_PIXELS = {limit}. "
            "Make the image smaller, or raise that limit if you trust it."
        )


def check_real(image: Image.Image | bytes) -> None:
    """Refuses, opened or as the beginning of a file, an image of a set of ours.

    One that was decoded to an array, or written anew, can't be told.
    """
    if is_synthetic(image):
        raise ValueError("it is a synthetic image that torch_augcond made. Keep those apart from the real ones")


def check_regular(path: str) -> None:
    """Refuses what is there but no file: reading a pipe would wait for ever. (What isn't there, a loader may know.)"""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is not a regular file")


def _open_regular(path: str) -> BinaryIO:
    """A file, open for reading; a pipe that came in its place is refused and not waited for."""
    wait_not = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | wait_not))  # noqa: SIM115
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise ValueError("it is not a regular file")


def _opened(file: BinaryIO) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"it is no image in one of the formats {', '.join(FORMATS)}") from None
    check_size(image)
    return image


@contextmanager
def _whole_only() -> Iterator[None]:
    """What is cut off is no image, though a script may have told Pillow to make the rest grey."""
    with _LOADING:
        told, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = told


def open_image(path: str) -> tuple[Image.Image, str]:
    """The image in a file, and the digest of the bytes it was decoded from: the file may be another a moment later."""
    with _open_regular(path) as file:
        _opened(file)  # so that what is no image is not read as a whole
        if (size := os.fstat(file.fileno()).st_size) > _MAX_BYTES:
            raise ValueError(f"it has {size:,} bytes, more than the {_MAX_BYTES:,} such a file may have")
        file.seek(0)
        data = file.read()
    image = _opened(io.BytesIO(data))
    with _whole_only():
        image.load()
    return image, hash_bytes(data)


def check_header(path: str) -> None:
    """For a user's own loader: `path` may be no image file at all, and then the loader alone knows."""
    try:
        with _open_regular(path) as file:
            _opened(file)
    except Image.DecompressionBombError:
        raise
    except Exception:  # whatever else is wrong, the loader says it better
        return


def as_pil(value: Any, name: str) -> Image.Image:
    """PIL images and uint8 arrays (H, W[, C]) or tensors ([C,] H, W); anything else is a mistake in the dataset.

    Arrays have one channel or three: a fourth may be transparency or anything else.
    """
    if isinstance(value, Image.Image):
        return value
    shape = tuple(getattr(value, "shape", ()))
    channels = shape[0 if isinstance(value, torch.Tensor) else -1] if len(shape) == 3 else 1
    is_array = isinstance(value, (np.ndarray, torch.Tensor)) and str(value.dtype).endswith("uint8")
    if not is_array or len(shape) not in (2, 3) or channels not in (1, 3):
        got = f"{value.dtype} {type(value).__name__} {shape}" if hasattr(value, "dtype") else type(value).__name__
        raise TypeError(
            f"the image of {name} must be a PIL image, a uint8 array (H, W, 1|3) or a uint8 tensor (1|3, H, W), "
            f"but got {got}. Images are read before the dataset's `transform`: give steps such as ToTensor or "
            "Normalize as its `transform` attribute, not inside `__getitem__`; of floats from 0 to 1 in memory, make "
            "(images * 255).round() in uint8."
        )
    if isinstance(value, torch.Tensor):
        value = (value.movedim(0, -1) if len(shape) == 3 else value).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(value[..., 0] if len(shape) == 3 and channels == 1 else value))


def hash_bytes(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _entry(path: str, status: os.stat_result) -> tuple[str, int, str]:
    # Copying and unpacking set back mtime, so that a replaced file may look like the old one; ctime can't be set. Two
    # files that change places keep both, but not their inodes.
    return os.path.abspath(path), status.st_size, f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _is_settled(status: os.stat_result) -> bool:
    """Before it is read. A disk that counts whole seconds, or makes up inodes and times, can't tell files apart."""
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS and status.st_ctime_ns % 10**9 > 0


def entry_through(path: str, loader: str) -> tuple[str, int, str] | None:
    """By what a cache knows the image that a loader of that name makes of a file; None while it may change unseen."""
    with suppress(OSError):
        if _is_settled(status := os.stat(path)):
            path, size, state = _entry(path, status)
            return path, size, f"{state} {loader}"
    return None


def file_digest(path: str, cache: DigestCache | None) -> str:
    if cache is not None and (entry := _entry(path, os.stat(path))) in cache:
        return cache[entry]
    with _open_regular(path) as file:
        status = os.fstat(file.fileno())  # of what is read: the path may lead elsewhere by now
        settled = _is_settled(status)
        check_real(file.read(64))
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if cache is not None and settled:
        cache[_entry(path, status)] = digest
    return digest
