"""What a set remembers beside its images: why some could not be made, and which there were when it was last filled."""

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .disk import MAX_METADATA, publish, read_regular, seal_with, unseal_with
from .imagefile import extension
from .names import escape_class
from .scan import images, metadata

if TYPE_CHECKING:
    from ..plan import Plan, Recipe

_LINES = 100  # in one file of failures: it is written anew for each of them


class Failures:
    """Why images could not be made, in files that are whole or absent; each process writes files of its own."""

    prefix = ".augcond-failures-"

    def __init__(self, root: Path):
        self._root, self._lines, self._writer = root, [], ""

    def add(self, recipe: "Recipe", reason: str) -> None:
        """Notes one failure."""
        if not self._lines or not self._writer.startswith(f"{os.getpid()}-") or len(self._lines) == _LINES:
            self._lines, self._writer = [], f"{os.getpid()}-{secrets.token_hex(4)}"
        fields = {"key": recipe.key, "class_name": recipe.class_name, "prompt": recipe.prompt, "reason": reason}
        self._lines.append(json.dumps({"time": time.time(), **fields}))
        data = seal_with("\n".join(self._lines).encode(), {"failures": len(self._lines)})
        publish(data, self._root / f"{self.prefix}{self._writer}.jsonl", self._root)

    def latest(self) -> dict[str, dict[str, Any]]:
        """The last failure of each image; files that are damaged are left out: what they held is tried again."""
        records = []
        for path in metadata(self._root, self.prefix):
            with suppress(ValueError, FileNotFoundError):
                _, lines = unseal_with(read_regular(path, MAX_METADATA))
                records += [record for record in map(json.loads, lines.splitlines()) if _is_failure(record)]
        return {record.pop("key"): record for record in sorted(records, key=lambda record: record["time"])}


def _is_failure(record: Any) -> bool:
    """Whether it is what `Failures` writes."""
    forms = {"time": float, "key": str, "class_name": str, "prompt": str, "reason": str}
    return isinstance(record, dict) and all(isinstance(record.get(name), form) for name, form in forms.items())


class Stock:
    """Which images there were when the set was last filled: what is gone since then is missed."""

    name = ".augcond-stock"

    def __init__(self, root: Path):
        self._root, self._path = root, root / self.name

    def take(self, plan: "Plan", present: np.ndarray) -> None:
        """Writes down the images of ``plan`` that are there, unless that is written down already."""
        folders = [(escape_class(name), int(present[rows].sum())) for name, rows in plan.by_class()]
        record = {"extension": extension(plan.settings.image_size), "folders": folders}
        data = seal_with(plan.keys[present].tobytes(), record)
        with suppress(OSError, ValueError):
            if read_regular(self._path, MAX_METADATA) == data:
                return
        publish(data, self._path, self._root)

    def missing(self) -> Iterator[Path]:
        """The images that were written down and are gone; none where nothing was, or the list is damaged."""
        try:
            record, keys = unseal_with(read_regular(self._path, MAX_METADATA))
            ending, folders = f".{record['extension']}", [(str(name), int(count)) for name, count in record["folders"]]
        except (ValueError, TypeError, KeyError, FileNotFoundError):
            return
        for folder, count in folders:
            block, keys = keys[: 16 * count].hex(), keys[16 * count :]
            there = set(images(self._root / folder)) if (self._root / folder).is_dir() else ()
            names = (block[i : i + 32] + ending for i in range(0, len(block), 32))
            yield from (self._root / folder / name for name in names if name not in there)
