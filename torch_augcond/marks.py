"""What tells a set and its image files from photographs."""

import os
from contextlib import suppress
from typing import Any

from PIL import Image
from torchvision.datasets import DatasetFolder

__all__ = ["CONFIG", "DIGEST", "ITXT", "JPEG_HEAD", "PNG_HEAD", "is_synthetic", "reads_set"]

CONFIG = ".augcond.json"  # the record of what a set is made with
PNG_HEAD, JPEG_HEAD = 33, 20  # signature and IHDR; SOI and APP0: the record follows them
ITXT = b"iTXtaugcond\0\0\0\0\0"  # keyword, not compressed, no language, no translated keyword
DIGEST = b'{"digest": "'
_ASKED = 32


def is_synthetic(image: Image.Image | bytes) -> bool:
    """Whether an image, as Pillow opened it, or the beginning of a file carries the record of one of ours."""
    if isinstance(image, bytes):
        return image[PNG_HEAD + 4 :].startswith(ITXT) or image[JPEG_HEAD + 4 :].startswith(DIGEST)
    comment = image.info.get("comment")
    return "augcond" in image.info or (isinstance(comment, bytes) and comment.startswith(DIGEST))


def reads_set(dataset: Any) -> bool:
    """Whether it reads the images of a set as a plain folder, perhaps a copy without the dot-files: most of a few."""
    if not isinstance(dataset, DatasetFolder):
        return False
    root = getattr(dataset, "root", None)  # one of real images may have none
    if root is not None and os.path.exists(os.path.join(root, CONFIG)):
        return True
    samples = getattr(dataset, "samples", None)  # of whatever kind
    if not isinstance(samples, list | tuple):
        return False
    some = samples[:: max(1, len(samples) // _ASKED)]
    return 2 * sum(map(_carries_record, some)) > len(some)


def _carries_record(sample: Any) -> bool:
    with suppress(OSError, LookupError, TypeError, ValueError):  # which is told by whoever reads it
        path = sample[0]
        if os.path.isfile(path):
            with open(path, "rb") as file:
                return is_synthetic(file.read(64))
    return False
