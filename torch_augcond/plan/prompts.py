"""The text of each class."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import copy
from typing import Any

from ..checks import brief, check_names, listed, warn

__all__ = ["build_prompts"]

_LONGEST = 2000  # characters: some 77 words are read, and a record has room for 65 kB, 12 for an emoji
_OPAQUE = re.compile(r"n\d{8}\b.*|\d+((\.| - ).+)?|(c|class|category|id|label)?[ -]?\d+").fullmatch


def build_prompts(
    classes: Sequence[str],
    prompt: str | Mapping[str, str] | Callable[[str], str] = "a photo of a {}",
    class_names: Sequence[str] | Mapping[str, str] | None = None,
) -> dict[str, str]:
    """{class: prompt}, warning where a name is put into one that says nothing to a text encoder.

    Args:
        classes: the dataset's own names, which stay the names of the folders.
        prompt: a template in which ``{}`` stands for the name (of `classes`, with spaces for underscores), {class:
            prompt}, or a function of the name.
        class_names: names to use in prompts instead: one for each of `classes`, or {class: name} for some of them.

    Raises:
        TypeError, ValueError: naming the argument and all classes concerned.

    Example::

        >>> build_prompts(["n02123045"], class_names={"n02123045": "tabby cat"})
        {'n02123045': 'a photo of a tabby cat'}
    """
    given = _given_names(classes, class_names)
    names = {name: given.get(name, name) for name in classes}
    # Of two classes of one name, ImageNet's "crane (134)" and "crane (517)", the label isn't spoken.
    spoken = {name: given.get(name, getattr(name, "spoken", name).replace("_", " ")) for name in classes}
    if isinstance(prompt, Mapping):
        if class_names is not None:
            raise ValueError(
                "`class_names` must be None where `prompt` is a dict of whole prompts. Leave one of them out."
            )
        check_names("prompt", prompt, classes, complete=True)
        prompts = {name: prompt[name] for name in classes}
    elif callable(prompt):
        prompts = {name: prompt(shown) for name, shown in names.items()}
    elif isinstance(prompt, str) and "{}" in prompt:
        prompts = {name: prompt.replace("{}", shown) for name, shown in spoken.items()}
    else:
        raise (ValueError if isinstance(prompt, str) else TypeError)(
            f"`prompt` must be a template with {{}} for the class name, a dict or a function, but got {prompt!r}."
        )
    if wrong := [value for value in prompts.values() if not isinstance(value, str)]:
        raise TypeError(f"`prompt` must give a str for each class, but gave {listed(wrong)}.")
    opaque = [names[name] for name, text in prompts.items() if _is_opaque(spoken[name], text)]
    if opaque and not isinstance(prompt, Mapping):
        warn(
            f"class names such as {listed(opaque)} hold numbers that mean nothing in a prompt. Give real ones as "
            "`class_names`."
        )
    if unfilled := [name for name, text in prompts.items() if "{}" in text.replace(spoken[name], "").replace(name, "")]:
        raise ValueError(
            f"`prompt` must give whole prompts, but {prompts[unfilled[0]]!r} for {unfilled[0]!r} has {{}} in it. Give "
            "one template for all, or fill in the names."
        )
    if long := [name for name, text in prompts.items() if len(text) > _LONGEST]:
        raise ValueError(f"`prompt` must give {_LONGEST} characters or fewer, but gave more for {listed(long, brief)}.")
    # A folder's name may hold bytes that are no text, which no tokenizer takes: they become question marks.
    return {name: text.encode("utf-8", "replace").decode() for name, text in prompts.items()}


def _check_order(classes: Sequence[str], names: Sequence[str]) -> None:
    """A list is in the order of the labels: torchvision sorts "10" before "2", and "Zebra" before "ant".

    Raises:
        ValueError: It is in another one, or that can't be told of numbers.
    """
    ours, theirs = ([re.sub(r"[\s_-]+", " ", str(name)).casefold() for name in some] for some in (classes, names))
    known = set(ours)
    if any(name != own and name in known for own, name in zip(ours, theirs, strict=True)):
        raise ValueError(
            f"`class_names` must be in the order of the classes, which is {brief(', '.join(classes))}, but got "
            f"{brief(', '.join(map(str, names)))}. Give a dict."
        )
    in_order = sorted(classes, key=_by_number)
    if list(classes) != in_order and list(classes) == sorted(classes):
        place = next(i for i, name in enumerate(in_order) if name != classes[i])
        raise ValueError(
            f"`class_names` must be a dict for classes whose numbers are sorted as text: of a list, {classes[place]!r} "
            f"would be {names[place]!r}. Give {{{classes[0]!r}: …, {classes[1]!r}: …}}."
        )


def _by_number(name: str) -> list[Any]:
    """A key that puts class_2 before class_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _is_opaque(name: str, prompt: str) -> bool:
    """Whether it is an identifier, or begins with one: n01440764, 001.ak47, class 3."""
    return _OPAQUE(name) is not None and re.search(rf"\b{re.escape(name)}\b", prompt) is not None


def _given_names(classes: Sequence[str], class_names: Sequence[str] | Mapping[str, str] | None) -> dict[str, str]:
    if hasattr(class_names, "keys"):  # a Series, too
        check_names("class_names", dict.fromkeys(class_names.keys()), classes)
        mapping, class_names = copy(class_names), {}  # looking a default up may add it
        for name in classes:
            with suppress(KeyError):  # else it may have a default
                class_names[name] = mapping[name]
    elif class_names is not None:
        rule = f"`class_names` must be a list of {len(classes)} names or a dict, but got"
        if isinstance(class_names, (str, set, frozenset)) or not isinstance(class_names, Iterable):
            raise TypeError(f"{rule} {class_names!r} ({type(class_names).__name__}).")
        class_names = list(class_names)
        if len(class_names) != len(classes):
            raise ValueError(f"{rule} {len(class_names)} names.")
        _check_order(classes, class_names)
        class_names = dict(zip(classes, class_names, strict=True))
    given = class_names or {}
    if wrong := [name for name in given.values() if not isinstance(name, str) or not name.strip()]:
        raise TypeError(f"`class_names` must be str, but got {listed(wrong)}.")
    return given
