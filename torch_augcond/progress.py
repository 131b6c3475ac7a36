"""Progress bars that keep quiet where nobody watches."""

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from tqdm import tqdm as _tqdm

__all__ = ["Bar", "Progress", "bar", "silent", "track"]

Item = TypeVar("Item")


class tqdm(_tqdm):
    """With a lock of this process's own: a forked process that is killed while it holds tqdm's shared one would leave
    all others waiting for ever."""


tqdm.set_lock(threading.RLock())


class Bar(Protocol):
    """What the package needs of a progress bar; tqdm's have it."""

    def update(self, n: int) -> object: ...


class Progress(Protocol):
    """Makes progress bars, as `bar` does."""

    def __call__(
        self, total: int | None, desc: str, *, initial: int = 0, unit: str = "image"
    ) -> AbstractContextManager[Bar]: ...


def bar(total: int | None, desc: str, *, initial: int = 0, unit: str = "image") -> AbstractContextManager[Bar]:
    """A tqdm bar on stderr; silent if stderr is no terminal.

    Example:
        >>> with bar(3, "generating") as progress:
        ...     _ = progress.update(3)
    """
    return tqdm(total=total, desc=desc, initial=initial, unit=unit, dynamic_ncols=True, disable=None)  # None: if no tty


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
