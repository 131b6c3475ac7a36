"""What tells one loader of images from another."""

import hashlib
import os
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

__all__ = ["loader_name"]

_PLAIN = (str, bytes, bool, int, float, complex, os.PathLike)


def loader_name(loader: Any, depth: int = 4) -> str:
    """The name of a function; also the arguments of a partial, what a closure or an object holds, a lambda's code.

    The same in every process, so no module (it is another one where a script is imported and not run), no address.

    Example:
        >>> loader_name(partial(open, mode="rb"))
        "partial(open, [], {'mode': 'rb'})"
    """
    name = getattr(loader, "__qualname__", type(loader).__qualname__)
    if depth <= 0:  # what holds itself ends here
        return name
    if isinstance(loader, partial):
        keywords = {key: _shown(value, depth) for key, value in sorted(loader.keywords.items())}
        return f"partial({_shown(loader.func, depth)}, {_listed(loader.args, depth)}, {_dict(keywords)})"
    if isinstance(loader, MethodType):
        state = "" if isinstance(loader.__self__, type) else _state(loader.__self__, depth)
        return name + state
    if isinstance(loader, FunctionType):
        return name + _closure(loader, depth)
    return name if hasattr(loader, "__qualname__") else name + _state(loader, depth)


def _closure(function: FunctionType, depth: int) -> str:
    """Nothing for a function of a module, which its name stands for."""
    held = []
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not yet assigned
            continue
    held = [value for value in held if _tells(value)]
    if function.__name__ != "<lambda>":
        return _listed(held, depth) if held else ""
    given = [*held, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return hashlib.blake2b(_code(function.__code__).encode(), digest_size=8).hexdigest() + _listed(given, depth)


def _code(code: CodeType) -> str:
    constants = [_code(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _constant(value: Any) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)  # a set has no order


def _state(holder: Any, depth: int) -> str:
    given = getattr(holder, "__dict__", {})
    held = [(name, given[name]) for name in sorted(given) if _tells(given[name])]
    return _dict({name: _shown(value, depth) for name, value in held}) if held else ""


def _tells(value: Any) -> bool:
    """Not a file opened later, nor a cache: those change as images are read."""
    return isinstance(value, (*_PLAIN, tuple)) or callable(value)


def _shown(value: Any, depth: int) -> str:
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if value is None or isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, dict) and depth > 0:
        return _dict({str(key): _shown(inner, depth - 1) for key, inner in value.items()})
    if isinstance(value, (list, tuple)) and depth > 0:
        return _listed(value, depth - 1)
    return loader_name(value, depth - 1)


def _listed(values: Any, depth: int) -> str:
    return f"[{', '.join(_shown(value, depth) for value in values)}]"


def _dict(shown: dict[str, str]) -> str:
    return "{" + ", ".join(f"{name!r}: {text}" for name, text in shown.items()) + "}"
