"""Progress bars, and lines now and then where nobody watches."""

import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from typing import Any, Protocol, TypeVar

from tqdm import tqdm as _tqdm

__all__ = ["Bar", "Progress", "bar", "is_watched", "silent", "track"]

Item = TypeVar("Item")


class tqdm(_tqdm):
    """With a lock of this process's own: a forked process that is killed while it holds tqdm's shared one would leave
    all others waiting for ever."""


tqdm.set_lock(threading.RLock())


_FIRST_SECONDS, _LINE_SECONDS = 10.0, 300.0


class _Lines:
    """A bar for a log: a line after ten seconds, then one every five minutes."""

    def __init__(self, **meter: Any) -> None:
        self._meter, self._done, self._begun = meter, meter["initial"], time.monotonic()
        self._next = self._begun + _FIRST_SECONDS

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        self._done += n
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _LINE_SECONDS
            with suppress(OSError, ValueError):  # a full disk, a reader that is gone: no reason to stop
                tqdm.write(tqdm.format_meter(self._done, elapsed=now - self._begun, ncols=0, **self._meter), sys.stderr)


class Bar(Protocol):
    """What the package needs of a progress bar; tqdm's have it."""

    def update(self, n: int) -> object: ...


class Progress(Protocol):
    """Makes progress bars, as `bar` does."""

    def __call__(
        self, total: int | None, desc: str, *, initial: int = 0, unit: str = "image"
    ) -> AbstractContextManager[Bar]: ...


def bar(total: int | None, desc: str, *, initial: int = 0, unit: str = "image") -> AbstractContextManager[Bar]:
    """A tqdm bar on stderr; a line after ten seconds and then every five minutes if stderr is no terminal.

    Example:
        >>> with bar(3, "generating") as progress:
        ...     _ = progress.update(3)
    """
    if sys.stderr is None or is_watched():
        return tqdm(total=total, desc=desc, initial=initial, unit=unit, dynamic_ncols=True, disable=sys.stderr is None)
    return _Lines(total=total, prefix=desc, initial=initial, unit=unit)


def is_watched() -> bool:
    """Whether stderr is a terminal; it may be an object of a script's own, or closed."""
    try:
        return bool(sys.stderr.isatty())
    except (AttributeError, ValueError):
        return False


def silent(total: int | None, desc: str, *, initial: int = 0, unit: str = "image") -> AbstractContextManager[Bar]:
    """A bar that is never shown."""
    return tqdm(disable=True)


def track(desc: str, progress: Progress = bar) -> Callable[[Iterable[Item]], Iterable[Item]]:
    """Wraps an iterable so that a bar follows it."""

    def wrapped(items: Iterable[Item]) -> Iterable[Item]:
        with progress(len(items) if hasattr(items, "__len__") else None, desc) as shown:
            for item in items:
                yield item
                shown.update(1)

    return wrapped
