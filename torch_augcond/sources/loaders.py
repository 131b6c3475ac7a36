"""The loaders of image folders: torchvision's, and what stands for one of a user's own."""

from collections.abc import Iterator
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from PIL import Image
from torchvision.datasets.folder import default_loader, pil_loader

from .images import hash_bytes, open_image

__all__ = ["DEFAULT_LOADERS", "careful_loader", "is_named", "what_loads"]

DEFAULT_LOADERS = (default_loader, pil_loader)


def careful_loader(path: str) -> Image.Image:
    """What torchvision's loaders return, of the files that `open_image` takes."""
    return open_image(path)[0].convert("RGB")


def is_named(loader: Any) -> bool:
    """Whether its name stands for it: a function that neither holds nor is given anything."""
    if not isinstance(loader, FunctionType | BuiltinFunctionType) or "<" in loader.__qualname__:
        return False
    held = [getattr(loader, name, None) for name in ("__closure__", "__defaults__", "__kwdefaults__")]
    return not any(held) and isinstance(getattr(loader, "__self__", None), ModuleType | None)


def what_loads(loader: Any) -> str:
    """Its name, without its module, which is another one where a script is imported and not run; and its code."""
    code = b"".join(_code(loader, set())) if isinstance(loader, FunctionType) else b""
    return f"{loader.__qualname__} {hash_bytes(code)}"


def _code(function: FunctionType, seen: set[int]) -> Iterator[bytes]:
    """What a function does: also by other functions of its module, and by what that has set."""
    if id(function) in seen:
        return
    seen.add(id(function))
    codes = [function.__code__, *_inner(function.__code__)]
    for code in codes:
        constants = [value for value in code.co_consts if not isinstance(value, CodeType)]
        yield code.co_code + f"{constants} {code.co_names} {code.co_varnames}".encode("utf-8", "surrogatepass")
    for name in sorted({name for code in codes for name in code.co_names}):
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) and value.__module__ == function.__module__:
            yield from _code(value, seen)
        elif isinstance(value, type | FunctionType | BuiltinFunctionType):
            yield f"{name} {value.__module__}.{value.__qualname__}".encode()
        elif not isinstance(value, ModuleType):
            yield f"{name} {value!r}".encode("utf-8", "surrogatepass")


def _inner(code: CodeType) -> Iterator[CodeType]:
    """Of the functions and comprehensions inside."""
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield part
            yield from _inner(part)
