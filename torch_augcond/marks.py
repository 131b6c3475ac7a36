"""What image files of a set begin with, which tells them from photographs."""

from PIL import Image

__all__ = ["DIGEST", "ITXT", "JPEG_HEAD", "PNG_HEAD", "is_synthetic"]

PNG_HEAD, JPEG_HEAD = 33, 20  # signature and IHDR; SOI and APP0: the record follows them
ITXT = b"iTXtaugcond\0\0\0\0\0"  # keyword, not compressed, no language, no translated keyword
DIGEST = b'{"digest": "'


def is_synthetic(image: Image.Image | bytes) -> bool:
    """Whether an image, as Pillow opened it, or the beginning of a file carries the record of one of ours."""
    if isinstance(image, bytes):
        return image[PNG_HEAD + 4 :].startswith(ITXT) or image[JPEG_HEAD + 4 :].startswith(DIGEST)
    comment = image.info.get("comment")
    return "augcond" in image.info or (isinstance(comment, bytes) and comment.startswith(DIGEST))
