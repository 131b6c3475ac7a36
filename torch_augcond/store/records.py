"""What a set remembers beside its images: why some could not be made, and which there were when it was last filled."""

import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .disk import MAX_METADATA, explained, publish, read_regular, seal_with, sync_folder, unseal_with
from .imagefile import extension
from .keys import NO_KEYS, as_bytes, as_keys, keys_of
from .names import aside_of, escape_class
from .scan import images, metadata

if TYPE_CHECKING:
    from ..plan import Plan, Recipe

_LINES = 100  # in one file of failures: it is written anew for each of them
_TICK = 1e-6  # seconds between two failures of one process, at least
_KEY = re.compile("[0-9a-f]{32}")
_FAILURE = {"time": float, "key": str, "class_name": str, "prompt": str, "reason": str}
_PASSED = {"time": float, "key": str, "passed": bool}


class Failures:
    """Why images could not be made, in files that are whole or absent; each process writes files of its own.

    A failure is believed until its image is made: then it is noted that this very failure has passed. No clock tells
    which was first, for those of other machines and of the file system may differ.
    """

    prefix = ".augcond-failures-"

    def __init__(self, root: Path):
        self._root, self._lines, self._writer, self._last = root, [], "", 0.0
        self._seen: dict[Path, tuple[tuple[int, ...], list[Any]]] = {}

    def add(self, recipe: "Recipe", reason: str) -> None:
        """Notes one failure."""
        if not self._lines or not self._writer.startswith(f"{os.getpid()}-") or len(self._lines) == _LINES:
            self._lines, self._writer = [], f"{os.getpid()}-{secrets.token_hex(4)}"
            self._last = self._last or max((record["time"] for record in self._read()[0]), default=0.0)
        self._last = max(time.time(), self._last + _TICK)  # after those that are there, whatever the clock says
        fields = {"key": recipe.key, "class_name": recipe.class_name, "prompt": recipe.prompt, "reason": reason}
        self._lines.append(json.dumps({"time": self._last, **fields}))
        self._write(self._lines, self._writer)

    def _write(self, lines: Sequence[str], name: str) -> None:
        data = seal_with("\n".join(lines).encode(), {"failures": len(lines)})
        publish(data, self._root / f"{self.prefix}{name}.jsonl", self._root)

    def latest(self) -> dict[str, dict[str, Any]]:
        """The last failure of each image that hasn't passed; files that are damaged are left out: what they held is
        tried again."""
        records, passed = self._read()
        left = [record for record in records if _name(record) not in passed]
        left.sort(key=lambda record: record["time"])
        return {record["key"]: {name: record[name] for name in record if name != "key"} for record in left}

    def settle(self, made: np.ndarray) -> None:
        """Notes that the failures of images that have been made (their keys, S16) have passed."""
        records, passed = self._read()
        left = sorted({_name(record) for record in records} - passed)
        if left:
            hit = np.isin(as_keys(key for key, _ in left), made)
            lines = [json.dumps({"key": key, "time": when, "passed": True}) for (key, when) in compress(left, hit)]
            if lines:
                self._write(lines, f"passed-{secrets.token_hex(8)}")

    def _read(self) -> tuple[list[dict[str, Any]], set[tuple[str, float]]]:
        """All failures, and which of them have passed; only files that are new since the last time are opened."""
        self._seen = {path: seen for path in metadata(self._root, self.prefix) if (seen := self._look(path))}
        records = [record for _, found in self._seen.values() for record in found]
        passed = {_name(record) for record in records if "passed" in record}
        return [record for record in records if "passed" not in record], passed

    def _look(self, path: Path) -> tuple[tuple[int, ...], list[Any]] | None:
        """What a file holds, and what tells it from a later one of that name; None if it is gone or damaged."""
        with suppress(ValueError, FileNotFoundError):
            status = path.lstat()
            mark = status.st_ino, status.st_mtime_ns, status.st_size
            if path in self._seen and self._seen[path][0] == mark:
                return self._seen[path]
            records = [json.loads(line) for line in unseal_with(read_regular(path, MAX_METADATA))[1].splitlines()]
            return mark, [record for record in records if _is_like(record, _FAILURE) or _is_like(record, _PASSED)]
        return None


def _name(record: dict[str, Any]) -> tuple[str, float]:
    return record["key"], record["time"]


def _is_like(record: Any, form: dict[str, type]) -> bool:
    """Whether it is what `Failures` writes."""
    filled = isinstance(record, dict) and all(isinstance(record.get(name), kind) for name, kind in form.items())
    return filled and _KEY.fullmatch(record["key"]) is not None


class Stock:
    """Which images there were when the set was last filled: what is gone since then is missed.

    Whoever asks for fewer takes none off the list; only what was set aside as stale, or has failed since, leaves it. A
    list is a file that is named after its content and takes the place of those it was made from, so of two processes
    that end together neither loses the other's.
    """

    prefix = ".augcond-stock-"

    def __init__(self, root: Path):
        self._root = root

    def take(self, plan: "Plan", present: np.ndarray, failed: np.ndarray) -> None:
        """Writes down the images of ``plan`` that are there, and the others on the list, less the failed ones."""
        ending, keys = extension(plan.settings.image_size), keys_of(plan)
        there = {escape_class(name): np.sort(keys[rows][present[rows]]) for name, rows in plan.by_class()}
        old, failures = metadata(self._root, self.prefix), keys[failed]
        if not self._is(old, _sealed(ending, there)):
            whole, _, listed = self._listed(old)
            surplus = {folder: self._surplus(folder, known, failures) for folder, known in listed.items()}
            joined = {folder: np.union1d(there.get(folder, NO_KEYS), more) for folder, more in surplus.items()}
            self._replace(whole, _sealed(ending, there | joined))

    def _is(self, files: list[Path], data: bytes) -> bool:
        """Whether this is all that the files hold."""
        with suppress(OSError, ValueError):
            return files == [self._path(data)] and read_regular(files[0], MAX_METADATA) == data
        return False

    def _path(self, data: bytes) -> Path:
        return self._root / f"{self.prefix}{hashlib.blake2b(data, digest_size=8).hexdigest()}"

    def _replace(self, old: list[Path], data: bytes) -> None:
        if not self._is(old, data):
            publish(data, path := self._path(data), self._root)
            sync_folder(self._root)
            for file in old:
                if file != path:
                    with explained(file):
                        file.unlink(missing_ok=True)

    def _surplus(self, folder: str, listed: np.ndarray, failures: np.ndarray) -> np.ndarray:
        """Those on the list that neither failed nor were set aside as stale."""
        stale = as_keys(images(aside_of(self._root) / "stale" / folder))
        return np.setdiff1d(listed, np.concatenate([failures, stale]))

    def missing(self) -> Iterator[Path]:
        """The images on the list that are gone, but for stale ones; none where there is no list, or it is damaged."""
        ending, listed = self._all_listed()
        for folder, keys in listed.items():
            there = set(images(self._root / folder)) if (self._root / folder).is_dir() else set()
            names = [f"{key.hex()}.{ending}" for key in as_bytes(keys)]
            if not there.issuperset(names):
                there |= set(images(aside_of(self._root) / "stale" / folder))
            yield from (self._root / folder / name for name in names if name not in there)

    def _all_listed(self) -> tuple[str, dict[str, np.ndarray]]:
        while True:
            files = metadata(self._root, self.prefix)
            _, ending, listed = self._listed(files)
            if all(map(os.path.lexists, files)):  # else a run that has just ended has joined them
                return ending, listed

    def _listed(self, files: Sequence[Path]) -> tuple[list[Path], str, dict[str, np.ndarray]]:
        """The lists that are whole, the ending of the images on them, and {folder: keys}; `verify` finds the others."""
        whole, ending, listed = [], "", {}
        for file in files:
            with suppress(ValueError, TypeError, KeyError, FileNotFoundError):
                record, data = unseal_with(read_regular(file, MAX_METADATA))
                keys, ending = np.frombuffer(data, "S16"), str(record["extension"])
                for name, count in record["folders"]:
                    here, keys = keys[: int(count)], keys[int(count) :]
                    listed[str(name)] = np.union1d(listed[str(name)], here) if str(name) in listed else here
                whole.append(file)
        return whole, ending, listed


def _sealed(ending: str, listed: dict[str, np.ndarray]) -> bytes:
    folders = [(folder, len(keys)) for folder, keys in listed.items()]
    return seal_with(b"".join(keys.tobytes() for keys in listed.values()), {"extension": ending, "folders": folders})
