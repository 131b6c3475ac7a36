"""Checks of arguments that several rooms share: every error names the argument, the rule and the value. Warnings."""

import math
import operator
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any

__all__ = ["as_float", "as_indices", "as_int", "brief", "check_names", "did_you_mean", "listed", "one_of", "warn"]

_INSIDE = ("torch_augcond", "torch", "functools", "contextlib", "concurrent", "threading")


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
    try:
        number = float(value)
    except OverflowError:
        number = value = math.inf if value > 0 else -math.inf
    if not holds(number):
        raise ValueError(f"`{name}` must be {rule}, but got {value}.")
    return number


def as_indices(indices: Iterable[Any], length: int) -> list[int]:
    """A Subset's indices as ints that its dataset of this length has; as there, -1 is the last one."""
    if hasattr(indices, "keys"):  # of a Series torch takes what has the label 0, 1, 2 …
        indices = [indices[k] for k in range(len(indices))]
    indices = [as_int("Subset.indices", i) for i in (indices.tolist() if hasattr(indices, "tolist") else indices)]
    if wrong := [i for i in indices if not -length <= i < length]:
        raise ValueError(f"`Subset.indices` must lie in its dataset of {length} items, but got {listed(wrong)}.")
    return indices


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


def brief(text: str, width: int = 60) -> str:
    """`text` in one line, of which the end is left out if it is long."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def check_names(what: str, given: Mapping[str, Any], known: Sequence[str], complete: bool = False) -> None:
    """That `given` is keyed by names that are `known`, and (`complete`) by all of them."""
    if unknown := [name for name in given if name not in set(known)]:
        why = " (where a dataset has no `classes`, its labels as text)" if all(map(str.isdecimal, known)) else ""
        raise ValueError(
            f"`{what}` must be keyed by class names, but got {listed(unknown)}. Known: {listed(known)}{why}."
        )
    if missing := [name for name in known if complete and name not in given]:
        raise ValueError(f"`{what}` must have an entry for every class, but lacks {listed(missing)}.")


def warn(text: str) -> None:
    """Warns at the line outside of this package and torch that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)
