"""Labels, and what the classes that they stand for are called."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ..checks import brief, listed, warn

__all__ = [
    "as_label",
    "check_same_names",
    "class_names",
    "int_labels",
    "is_int",
    "names_binary",
    "timms_names",
    "unique",
    "warn_if_exchanged",
    "warn_of_inner",
    "warn_of_nameless",
    "warn_of_unused",
]

# What stands at 0 where labels begin at 1.
_NO_CLASS = {"n/a", "none", "background", "unlabeled", "unlabelled", "unknown"}


def is_int(value: Any) -> bool:
    """An int of Python, numpy or torch (0-d), but no bool."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def as_label(value: Any) -> int | None:
    """The class that a label stands for: a number, alone or in an array of one, or one-hot; None if that can't be told.

    Example:
        >>> as_label(np.array([3])), as_label(torch.tensor(3.0)), as_label([0, 0, 0, 1]), as_label("cat")
        (3, 3, 3, None)
    """
    try:
        numbers = np.asarray(value, dtype=np.float64).ravel()
    except (TypeError, ValueError, RuntimeError):
        return None
    if numbers.size == 1:
        return int(numbers[0]) if float(numbers[0]).is_integer() else None
    return int(numbers.argmax()) if numbers.size and sorted(numbers)[-2:] == [0, 1] and numbers.min() == 0 else None


def int_labels(values: list[Any], names: Callable[[int], str]) -> np.ndarray:
    """`values` (an error stands for an item that raised it) as int64, or one error that lists the offenders."""
    raised: dict[str, list[str]] = {}
    for i, value in enumerate(values):
        if isinstance(value, Exception):
            raised.setdefault(f"{type(value).__name__}: {value}", []).append(names(i))
    if raised:
        each = [f"{listed(failed, str)} ({why})" for why, failed in raised.items()]
        raise ValueError(
            f"every item must be readable for its label, but reading failed for {listed(each, str)}. Mend these, "
            "leave them out with torch.utils.data.Subset, or give the dataset a `targets` list."
        )
    wrong = [f"{value!r} ({type(value).__name__}) at {names(i)}" for i, value in enumerate(values) if not is_int(value)]
    if wrong:
        raise TypeError(
            f"labels must be ints, but got {listed(wrong, str)}. Map them to ints inside the dataset "
            "(its `target_transform` is applied later), or give it a `targets` list."
        )
    labels = [int(value) for value in values]
    wrong = [f"{label} at {names(i)}" for i, label in enumerate(labels) if not 0 <= label < 2**63]
    if wrong:
        raise ValueError(
            f"labels must be 0 or more and fit int64, but got {listed(wrong, str)}. "
            "Leave unlabelled images out with torch.utils.data.Subset."
        )
    return np.array(labels, dtype=np.int64)


def class_names(dataset: Any, present: Sequence[int], absent: Sequence[int] = ()) -> dict[int, str]:
    """{label: name} from `class_to_idx` if it is one-to-one, else from `classes`, else the labels themselves.

    Warns if both are there and call a label that is `present` otherwise. Those that are `absent` must have a name, too.
    """
    to_idx, classes = _plain(getattr(dataset, "class_to_idx", None)), _plain(getattr(dataset, "classes", None))
    if to_idx is None and classes is None and type(dataset).__module__.startswith("torchvision."):
        classes = getattr(dataset, "categories", None)  # that of Caltech101 and Caltech256
    if to_idx is None and classes is None:
        to_idx = _plain(timms_names(dataset))
    if names_binary(dataset):
        to_idx, classes = None, ["Cat", "Dog"]
    options = [_by_label(to_idx)] if isinstance(to_idx, dict) else []
    if options and len(options[0]) < len(to_idx):  # ImageNet's has every synonym
        options = [] if classes and _agree(classes, to_idx) else [_joined(to_idx)]
    if isinstance(classes, (list, tuple)):
        options.append({label: name for label, name in enumerate(classes) if name is not None and name != ""})
    elif isinstance(classes, dict) and all(map(is_int, classes)):
        options.append({int(label): name for label, name in classes.items()})
    for names in options:
        if names.keys() >= {*present, *absent}:
            if len(options) == 2:
                _compare(*options, present, "class_to_idx" if names is options[0] else "classes")
            return unique({label: ", ".join(_words(name)) for label, name in sorted(names.items())})
    if options:
        missing = listed(sorted({*present, *absent} - options[0].keys()))
        raise ValueError(f"`classes` must name every label, but has no name for {missing}. Correct it or remove it.")
    return {label: str(label) for label in present}


def timms_names(dataset: Any) -> Any:
    """The `class_to_idx` that a dataset of timm's has in its reader, if its labels are those."""
    is_timms = str(getattr(getattr(type(dataset), "__getitem__", None), "__module__", "")).startswith("timm.")
    return getattr(getattr(dataset, "reader", None), "class_to_idx", None) if is_timms else None


def _plain(names: Any) -> Any:
    """As a dict or list, of whatever kind of mapping or sequence it is (a Series, a configuration)."""
    if hasattr(names, "keys"):
        keys = list(names.keys())
        if not isinstance(names, Mapping) and all(map(is_int, keys)) and keys != list(range(len(keys))):
            raise ValueError(
                f"`classes` must be a list in the order of the labels or a dict, but got a {type(names).__name__} with "
                f"the index {listed(keys)}: is its order meant, or its index? Take `.tolist()` or `.to_dict()`."
            )
        return {key: names[key] for key in keys}  # a Series iterates over its values
    is_many = isinstance(names, Collection) and not isinstance(names, str | tuple | set | frozenset)
    return list(names) if is_many else names


def warn_of_inner(names: dict[int, str], datasets: Iterable[Any]) -> None:
    """Where a dataset has no names for its labels, and one that it holds has: whether they are meant isn't known."""
    if any(name != str(label) for label, name in names.items()):
        return
    for dataset in datasets:
        try:
            found = class_names(dataset, list(names))
        except (TypeError, ValueError):  # they aren't for these labels
            continue
        if found != names:
            warn(
                f"the dataset has no `classes`, but the {type(dataset).__name__} in it calls them "
                f"{listed(found.values())}. If they are meant, set `classes` to these, or pass `class_names`."
            )
            return


def warn_of_unused(names: dict[int, str], known: Collection[int]) -> None:
    """Where all labels are fewer than their names, and count from 0 or 1, they may be others than the names are for."""
    low, unused = min(known, default=0), sorted(names.keys() - known)
    if unused == [0] and names[0].strip("_").casefold() in _NO_CLASS:
        return
    if known and unused and low <= 1 and set(known) == set(range(low, low + len(known))):
        warn(
            f"{len(names)} classes have names, but no image has the label {listed(unused)}. Names are given by label: "
            f"check that {low} means {names[low]!r}, or correct `classes` and `class_to_idx`."
        )


def warn_of_nameless(names: dict[int, str], labels: Collection[int], known: Collection[int]) -> None:
    """Where labels that a Subset leaves out have no name, the names may be those of labels from 1."""
    if all(name == str(label) for label, name in names.items()):
        return  # there are none
    if missing := sorted(label for label in known - names.keys() if label >= 0):
        first = min(labels)
        warn(
            f"images that aren't in the Subset have the label {listed(missing)}, which has no name: check that {first} "
            f"means {names[first]!r}, or correct `classes`."
        )


def warn_if_exchanged(change: Callable[[Any], Any], names: dict[int, str], labels: Iterable[int]) -> None:
    """Where a `target_transform` gives classes each other's labels, their names may be those of the labels after it."""
    known = sorted(set(labels))
    try:
        changed = [as_label(change(label)) for label in known]
    except Exception:  # it is made for something else than one label
        return
    if changed != known and set(changed) == set(known):
        first, other = next((label, new) for label, new in zip(known, changed, strict=True) if label != new)
        warn(
            f"`target_transform` makes label {first} to {other}, and names are given to the labels before it: prompts "
            f"of these images say {names[first]!r}. If that is what {other} is called, correct `classes`."
        )


def check_same_names(holder: Any, names: dict[int, str]) -> None:
    """Names that somebody has given to a Subset or ConcatDataset are looked for below it, and must be those there.

    Raises:
        ValueError: They aren't.
    """
    given = {name: getattr(holder, name) for name in ("class_to_idx", "classes") if hasattr(holder, name)}
    found = class_names(SimpleNamespace(**given), [])  # those of its own images only, perhaps
    if wrong := [label for label in names.keys() & found.keys() if found[label] != names[label]]:
        raise ValueError(
            f"`{'` and `'.join(given)}` of a {type(holder).__name__} must agree with the dataset in it, but label "
            f"{wrong[0]} is {found[wrong[0]]!r} and {names[wrong[0]]!r}. Set them on that dataset, or pass "
            "`class_names`."
        )


def names_binary(dataset: Any) -> bool:
    """Whether it is an OxfordIIITPet of cats and dogs: its `classes` are the breeds."""
    return getattr(dataset, "_target_types", None) == ["binary-category"]


def _by_label(class_to_idx: dict[str, int]) -> dict[int, str]:
    try:
        return {int(label): name for name, label in class_to_idx.items()}
    except (TypeError, ValueError):
        raise TypeError(
            f"`class_to_idx` must be {{name: label}} with ints for labels, but got {brief(repr(class_to_idx))}."
        ) from None


def _agree(classes: Any, class_to_idx: dict[str, int]) -> bool:
    """Whether the names that `classes` has for each label, one or a tuple of synonyms, are names of that label."""
    names = [entry if isinstance(entry, tuple) else (entry,) for entry in classes]
    return all(class_to_idx.get(name, label) == label for label, all_ in enumerate(names) for name in all_)


def _compare(by_idx: dict[int, Any], by_place: dict[int, Any], present: Sequence[int], used: str) -> None:
    """Warns where the names of `class_to_idx` and those of `classes` are others for a label."""
    ours, theirs = ({label: set(_words(name)) for label, name in names.items()} for names in (by_idx, by_place))
    if len(ours) < len(theirs) and set().union(*ours.values()) == set().union(*theirs.values()):
        return  # `classes` are folders here, of which several have one label
    wrong = [label for label in present if label in ours and ours[label].isdisjoint(theirs.get(label, ours[label]))]
    if wrong:
        names = [f"{', '.join(sorted(names[wrong[0]]))!r}" for names in (ours, theirs)]
        more = f", and {len(wrong)} labels in all differ" if wrong[1:] else ""
        warn(
            f"`class_to_idx` calls label {wrong[0]} {names[0]} and `classes` calls it {names[1]}{more}. The names of "
            f"`{used}` are used: correct one of them."
        )


def _words(name: Any) -> list[str]:
    """A name, or all of several."""
    if not isinstance(name, list | tuple):
        return [_word(name)]
    if any(isinstance(part, int | float | np.number) for part in name):  # a name with its number, say
        raise TypeError(f"`classes` and `class_to_idx` must name classes by str, but got {name}. Correct them.")
    return list(map(_word, name))


def _word(name: Any) -> str:
    """One name, of the kinds that files hold.

    Raises:
        TypeError: It is something else, of which `str` would make a text that means nothing in a prompt.
    """
    if isinstance(name, str | bytes):
        text = name.decode("utf-8", "replace") if isinstance(name, bytes) else str.__str__(name)  # an Enum's value
        if text.strip():
            return text
    if is_int(name):
        return str(name)
    if isinstance(name, os.PathLike):
        return os.path.basename(name)
    raise TypeError(
        f"`classes` and `class_to_idx` must name classes by str, but got {brief(repr(name))}. Correct them."
    )


def _joined(class_to_idx: dict[str, int]) -> dict[int, tuple[str, ...]]:
    """Of a label that several classes have, all their names."""
    names: dict[int, list[str]] = {}
    for name, label in class_to_idx.items():
        names.setdefault(int(label), []).append(name)
    return {label: tuple(several) for label, several in names.items()}


class Numbered(str):
    """A name that several classes have, with its label behind it; `spoken` is the name alone."""

    spoken: str


def unique(names: dict[int, str]) -> dict[int, str]:
    """ImageNet has two cranes: names that occur twice get their label behind them."""
    count = Counter(names.values())
    return {label: name if count[name] == 1 else _numbered(name, label) for label, name in names.items()}


def _numbered(name: str, label: int) -> Numbered:
    numbered = Numbered(f"{name} ({label})")
    numbered.spoken = getattr(name, "spoken", name)
    return numbered
