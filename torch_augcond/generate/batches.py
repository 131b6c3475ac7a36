"""Work in batches that shrink when the memory doesn't suffice."""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from numbers import Integral
from typing import TypeVar

import torch

__all__ = ["Batches", "behind", "windows"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """``items`` in lists of ``size``, the last one perhaps shorter."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


def behind(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result]]:
    """``items`` with the function's results, in order; it runs in a thread while the next item is made.

    One item at most is being worked on or waits to be; whoever stops, waits for it. What the function raises comes up
    after the next item.

    Example:
        >>> list(behind(abs, [1, -2]))
        [(1, 1), (-2, 2)]
    """
    with ThreadPoolExecutor(1) as thread:
        item = running = None
        for following in items:
            if running:
                yield item, running.result()
            item, running = following, thread.submit(function, following)
        if running:
            yield item, running.result()


class Batches:
    """Calls a function on batch after batch; out of memory, it halves the batch for good and goes on.

    Every item is in exactly one batch that succeeded, or alone in one that failed. With batches of b items, memory
    can run out log2(b) times before single items fail.

    Args:
        size: Items in a batch.

    Raises:
        ValueError: If ``size`` isn't a positive int.

    Example:
        >>> list(Batches(2)(sum, [1, 2, 3]))
        [([1, 2], 3), ([3], 3)]
    """

    def __init__(self, size: int) -> None:
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(f"`batch_size` must be a positive int, but got {size!r}.")
        self.size = int(size)

    def __call__(
        self, function: Callable[[Sequence[Item]], Result], items: Sequence[Item]
    ) -> Iterator[tuple[Sequence[Item], Result | None]]:
        """Yields batches with their results; None for an item that even alone is too large for the memory."""
        while items:
            batch = items[: self.size]
            fits, result = _attempt(function, batch)
            if not fits:
                # Only here is the exception gone, and with it the tensors that its traceback held.
                _release_memory()
                if self.size > 1:  # to which the last batch may have been padded
                    self.size //= 2
                    continue
            yield batch, result
            items = items[len(batch) :]


def _attempt(function: Callable[[Sequence[Item]], Result], batch: Sequence[Item]) -> tuple[bool, Result | None]:
    try:
        return True, function(batch)
    except (torch.OutOfMemoryError, MemoryError):
        return False, None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # the CPU's allocator has no error type of its own
            raise
        return False, None


def _release_memory() -> None:
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
