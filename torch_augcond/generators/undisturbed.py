"""Work that other threads and torch's ambient modes don't reach: what a script has set up must not change images."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch

__all__ = ["undisturbed"]

# How many bits of a float32 count; "none" stands for "ieee".
_PRECISIONS = (
    (torch.backends.cuda.matmul, "ieee"),
    (torch.backends.mkldnn.matmul, "ieee"),
    (torch.backends.mkldnn.conv, "ieee"),
    (torch.backends.cudnn.conv, "tf32"),  # torch's own default
)
_LOCKS: WeakKeyDictionary[Any, RLock] = WeakKeyDictionary()
_LOOKING = Lock()
_INSIDE: list[None] = []
_CHANGED: list[tuple[Any, str, str]] = []


def undisturbed(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of something with a ``device``: without gradients, and heedless of autocast, the default device and how
    exact a script wants matrix products to be.

    Of one object, or one ``pipe`` that several have, one such method runs at a time: it may keep what it knows of a
    batch.

    Example:
        >>> class Model:
        ...     device = torch.device("cpu")
        ...
        ...     @undisturbed
        ...     def run(self, x):
        ...         return x @ x
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     Model().run(torch.ones(1, 1)).dtype
        torch.float32
    """

    @wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _lock_of(getattr(self, "pipe", self)), ExitStack() as modes:
            modes.enter_context(torch.no_grad())
            modes.enter_context(_as_exact_as_ever())
            for kind in {"cpu", self.device.type}:
                if torch.is_autocast_enabled(kind):
                    modes.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device().type != "cpu":  # only then: it slows every call of torch down
                modes.enter_context(torch.device("cpu"))
            return method(self, *args, **kwargs)

    return run


def _lock_of(thing: Any) -> RLock:
    with _LOOKING:
        return _LOCKS.setdefault(thing, RLock())


@contextmanager
def _as_exact_as_ever() -> Iterator[None]:
    """Float32 is computed as torch does if nobody asks for anything else, as long as one thread is in here."""
    with _LOOKING:
        if not _INSIDE:
            found = [(part, part.fp32_precision, usual) for part, usual in _PRECISIONS]
            _CHANGED[:] = [setting for setting in found if setting[1].replace("none", "ieee") != setting[2]]
            for part, _, usual in _CHANGED:
                part.fp32_precision = usual
        _INSIDE.append(None)
    try:
        yield
    finally:
        with _LOOKING:
            _INSIDE.pop()
            if not _INSIDE:
                for part, precision, _ in _CHANGED:
                    part.fp32_precision = precision
