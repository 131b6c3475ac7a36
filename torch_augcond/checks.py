"""Checks of arguments that several rooms share; every error names the argument, the rule and the value."""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any

__all__ = ["as_float", "as_int", "check_names", "did_you_mean", "listed", "one_of"]


def as_int(name: str, value: Any, low: int | None = None) -> int:
    """Any kind of int but bool, as an int of at least `low`."""
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise TypeError(f"`{name}` must be an int, but got {value!r} ({type(value).__name__}).") from None
    if low is not None and number < low:
        raise ValueError(f"`{name}` must be an int of {low} or more, but got {number}.")
    return number


def as_float(name: str, value: Any, rule: str, holds: Callable[[float], bool]) -> float:
    """Any real number but bool for which the rule holds, as a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be {rule}, but got {value!r} ({type(value).__name__}).")
    if not holds(value):
        raise ValueError(f"`{name}` must be {rule}, but got {value}.")
    return float(value)


def one_of(name: str, value: Any, known: Sequence[Any]) -> Any:
    """`value`, if it is one of `known`."""
    rule = f"`{name}` must be one of {', '.join(map(repr, known))}, but got {value!r}"
    if not isinstance(value, tuple({type(choice) for choice in known})):
        raise TypeError(f"{rule} ({type(value).__name__}).")
    if value not in known:
        raise ValueError(f"{rule}.{did_you_mean(value, [choice for choice in known if isinstance(choice, str)])}")
    return value


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that names the one of `known` that is most like `name`, whatever its case and signs; or nothing."""
    plain = {_plain(choice): choice for choice in known}
    close = get_close_matches(_plain(name), plain, 1, 0.75)
    return f" Did you mean {plain[close[0]]!r}?" if close else ""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "-", name).casefold()


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
