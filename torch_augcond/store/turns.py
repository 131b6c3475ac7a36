"""How processes that fill one set share the work: by notes of what each is at, which are no locks."""

import os
import random
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from ..checks import warn
from ..shards import Pulse
from .disk import MAX_METADATA, TEMP_PREFIX, publish, read_regular, temp_path, writer_is_dead
from .scan import metadata

if TYPE_CHECKING:
    from ..plan import Plan, Recipe
    from . import Store

_MARK = "-turn-"
LEASE_SECONDS = 60.0  # a note that hasn't been renewed for so long binds nobody
POLL_SECONDS = 0.5
_PATIENCE = 40  # polls before it says what it is waiting for


class Turns:
    """Deals out the images that are to be made, so that processes at work on one set hardly make one twice.

    Each notes in a file of its own what it is at, and leaves to the others what they have noted. Nothing rests on it:
    where a note is lost or seen late, an image is made twice, and the one written last is as good as the first. The
    notes of dead processes bind nobody. In its ``with`` block a process renews its own every few seconds, so one that
    has stopped, or has died where others can't see it, is waited for no longer than a minute.

    Args:
        store: The set.
        plan: Its images.
        rows: Those that are to be made.
        size: How many to note at once.

    Example:
        >>> with Turns(store, plan, missing, 64) as turns:
        ...     for recipes in turns:  # once, unless others are at work on some of them
        ...         for recipe in recipes:
        ...             store.write(recipe, make(recipe), {})
        ...             turns.done([recipe])
    """

    def __init__(self, store: "Store", plan: "Plan", rows: Sequence[int], size: int):
        self._store, self._plan, self._rows, self._size = store, plan, list(rows), size
        self._path = temp_path(store.root, _MARK)
        self._noted: set[bytes] = set()
        self._left: list[int] = []
        self._waits = 0
        self._random = random.Random(secrets.randbits(64))
        self._pulse = Pulse(self._now)

    def __enter__(self) -> "Turns":
        self._pulse.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._pulse.__exit__()
        with suppress(OSError):
            self._path.unlink()

    def __iter__(self) -> Iterator[Iterator["Recipe"]]:
        """Each item is a pass over what is still to be made; it never waits, but between two passes this does."""
        if self._rows and self._others():
            start = self._random.randrange(len(self._rows))  # elsewhere than they began
            self._rows = self._rows[start:] + self._rows[:start]
        while self._rows:
            self._left = []
            yield self._pass()
            if len(self._left) == len(self._rows):
                self._say_once(f"{len(self._left)} images are being made by other processes: waiting for them.")
                time.sleep(POLL_SECONDS * self._random.random())
            self._rows = self._left

    def _say_once(self, text: str) -> None:
        self._waits += 1
        if self._waits == _PATIENCE:
            warn(text)

    def _pass(self) -> Iterator["Recipe"]:
        for start in range(0, len(self._rows), self._size):
            rows = self._rows[start : start + self._size]
            recipes = [self._plan[row] for row in rows]
            mine = self._take({_key(recipe) for recipe in recipes})
            self._left += [row for row, recipe in zip(rows, recipes, strict=True) if _key(recipe) not in mine]
            todo = [recipe for recipe in recipes if _key(recipe) in mine]
            # Only now: whoever made one of them in the meantime took it off its note afterwards.
            there = [recipe for recipe in todo if self._store.has(recipe.class_name, recipe.key)]
            self.done(there)
            yield from (recipe for recipe in todo if recipe not in there)

    def _take(self, keys: set[bytes]) -> set[bytes]:
        """Those of ``keys`` that only this process has noted; of two that note one at once, neither takes it."""
        free = keys - self._others()
        if free:
            self._note(self._noted | free)
            if taken := free & self._others():
                self._note(self._noted - taken)
        return free & self._noted

    def done(self, recipes: Iterable["Recipe"]) -> None:
        """Takes what is made, or has failed, off the note; others who miss it may try it."""
        self._note(self._noted - {_key(recipe) for recipe in recipes})

    def _note(self, keys: set[bytes]) -> None:
        self._noted = keys
        publish(b"".join(keys), self._path, self._store.root, sync=False)

    def _now(self) -> float:
        """The time by the clock of the file system, which may not be this machine's: renews the note."""
        try:
            os.utime(self._path)
            return self._path.stat().st_mtime
        except OSError:
            return time.time()

    def _others(self) -> set[bytes]:
        """What other processes are at, as far as they are alive."""
        noted: set[bytes] = set()
        notes = [path for path in metadata(self._store.root, TEMP_PREFIX) if _MARK in path.name and path != self._path]
        now = self._now() if notes else 0.0
        for path in notes:
            with suppress(OSError, ValueError):
                # Nor may the clock of whoever wrote it be this machine's.
                old = abs(now - path.lstat().st_mtime) > LEASE_SECONDS
                if not old and not writer_is_dead(path.name):
                    data = read_regular(path, MAX_METADATA)
                    noted.update(data[i : i + 16] for i in range(0, len(data), 16))
        return noted


def _key(recipe: "Recipe") -> bytes:
    return bytes.fromhex(recipe.key)
