"""The loaders of image folders: torchvision's, and what stands for one of a user's own."""

from collections.abc import Iterator
from threading import local
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, NoneType
from typing import Any

from PIL import Image
from torchvision import get_image_backend
from torchvision.datasets import folder

from .images import hash_bytes, open_image, to_rgb

__all__ = ["careful_loader", "is_default", "is_named", "take_opened", "what_loads"]


def is_default(loader: Any) -> bool:
    """Whether it opens a file by Pillow as torchvision does, unless somebody has put another function in its place."""
    return _is_torchvisions(loader) and _is_torchvisions(folder.pil_loader) and get_image_backend() == "PIL"


def _is_torchvisions(loader: Any) -> bool:
    code = getattr(loader, "__code__", None)
    return code is not None and code.co_filename == folder.__file__ and code.co_name in ("default_loader", "pil_loader")


class _Opened(local):
    """The files that `careful_loader` was given by this thread."""

    def __init__(self) -> None:
        self.paths: list[str] = []


_opened = _Opened()


def careful_loader(path: str) -> Image.Image:
    """As torchvision's loaders, of the files that `open_image` takes, but without clipping 16-bit images."""
    _opened.paths.append(path)
    return to_rgb(open_image(path)[0])


def take_opened() -> list[str]:
    """The files that `careful_loader` was given by this thread since this was last asked."""
    paths, _opened.paths = _opened.paths, []
    return paths


def is_named(loader: Any) -> bool:
    """Whether its name stands for it: a function that neither holds nor is given anything."""
    if not isinstance(loader, FunctionType | BuiltinFunctionType) or "<" in loader.__qualname__:
        return False
    held = [getattr(loader, name, None) for name in ("__closure__", "__defaults__", "__kwdefaults__")]
    return not any(held) and isinstance(getattr(loader, "__self__", None), ModuleType | None)


def what_loads(loader: Any) -> str | None:
    """Its name and all that it does, by functions and numbers of its own module; None if that can't be told for sure.

    Its module isn't told, which is another one where a script is imported and not run. What does anything but ordinary
    steps, or holds a text, may read other files besides (a mask, the next frame), which aren't told either.
    """
    if not is_named(loader) or _is_torchvisions(loader):  # which calls another one, as `is_default` found
        return None
    try:
        code = b"\n".join(_code(loader, set())) if isinstance(loader, FunctionType) else b""
    except _Unknown:
        return None
    return f"{loader.__qualname__} {hash_bytes(code)}"


# What loaders ordinarily do. Other steps may lead to other files: `replace`, `parent`, `environ`.
_IMAGES = (
    "Image ImageOps PIL Resampling BICUBIC BILINEAR LANCZOS convert crop eval exif_transpose open rotate transpose"
)
_ARRAYS = "COLOR_BGR2RGB IMREAD_COLOR array asarray copy cv2 cvtColor fromarray imread load np numpy read resize"
_STEPS = frozenset(f"{_IMAGES} {_ARRAYS} int max min round".split())
_MODES = {*Image.MODES, "r", "rb"}
_PLAIN = (NoneType, bool, int, float)


class _Unknown(Exception):
    """A value of which nobody knows what it does."""


def _code(function: FunctionType, seen: set[int]) -> Iterator[bytes]:
    """What a function does: also by other functions of its module, and by what that has set."""
    if id(function) in seen:
        return
    seen.add(id(function))
    if function.__closure__ or vars(function):  # a decorator's, say
        raise _Unknown
    yield from map(_text, (function.__defaults__, function.__kwdefaults__))
    codes = [function.__code__, *_inner(function.__code__)]
    for code in codes:
        constants = [x for x in code.co_consts if not isinstance(x, CodeType) and x != function.__doc__]
        yield from (repr(x).encode() if _are_keywords(x) else _text(x) for x in constants)
        yield code.co_code + f"{code.co_names} {code.co_varnames}".encode("utf-8", "surrogatepass")
    for name in sorted({name for code in codes for name in code.co_names}):
        value = function.__globals__.get(name, Image)  # else it is an attribute or a builtin
        if isinstance(value, FunctionType) and value.__module__ == function.__module__:
            yield from _code(value, seen)
        elif name in _STEPS and _is_of_library(value):
            yield f"{name} {getattr(value, '__module__', None)} {getattr(value, '__name__', None)}".encode()
        else:
            yield name.encode() + _text(value)


def _is_of_library(value: Any) -> bool:
    if not isinstance(value, ModuleType | type | FunctionType | BuiltinFunctionType):
        return False
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__ or ""
    return name.partition(".")[0] in ("PIL", "numpy", "cv2", "io", "_io", "builtins")


def _are_keywords(constant: Any) -> bool:
    """Names of arguments in a call."""
    return isinstance(constant, tuple) and all(isinstance(x, str) and x.isidentifier() for x in constant)


def _text(value: Any) -> bytes:
    """Of a plain value, or a container of such."""
    if type(value) in (tuple, list):
        return repr(type(value)).encode() + b",".join(map(_text, value))
    if type(value) is dict:
        return b"{" + _text(list(value.items()))
    if type(value) not in _PLAIN and not (type(value) is str and value in _MODES):
        raise _Unknown
    return repr(value).encode()


def _inner(code: CodeType) -> Iterator[CodeType]:
    """Of the functions and comprehensions inside."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield part
            yield from _inner(part)
