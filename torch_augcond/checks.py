"""Checks of arguments that several rooms share; every error names the argument, the rule and the value."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["as_int", "check_names", "listed"]


def as_int(name: str, value: Any, low: int | None = None) -> int:
    """Any kind of int but bool, as an int of at least `low`."""
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise TypeError(f"`{name}` must be an int, but got {value!r} ({type(value).__name__}).") from None
    if low is not None and number < low:
        raise ValueError(f"`{name}` must be an int of {low} or more, but got {number}.")
    return number


def listed(items: Iterable[Any], show: Callable[[Any], str] = repr) -> str:
    """The first five of `items`, and how many more there are."""
    texts = [show(item) for item in items]
    return ", ".join(texts[:5]) + (f" and {len(texts) - 5} more" if len(texts) > 5 else "")


def check_names(what: str, given: Mapping[str, Any], known: Sequence[str], complete: bool = False) -> None:
    """That `given` is keyed by names that are `known`, and (`complete`) by all of them."""
    if unknown := [name for name in given if name not in set(known)]:
        raise ValueError(f"`{what}` must be keyed by class names, but got {listed(unknown)}. Known: {listed(known)}.")
    if missing := [name for name in known if complete and name not in given]:
        raise ValueError(f"`{what}` must have an entry for every class, but lacks {listed(missing)}.")
