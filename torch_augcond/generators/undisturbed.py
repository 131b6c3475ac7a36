"""Work that other threads and torch's ambient modes don't reach: what a script has set up must not change images."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from threading import RLock
from typing import Any

import torch

__all__ = ["undisturbed"]


def undisturbed(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of something with a ``device``: without gradients, and heedless of autocast and the default device.

    Of one object, one such method runs at a time: it may keep what it knows of a batch. The lock is its ``_lock``.

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
        with vars(self).setdefault("_lock", RLock()), ExitStack() as modes:
            modes.enter_context(torch.no_grad())
            for kind in {"cpu", self.device.type}:
                if torch.is_autocast_enabled(kind):
                    modes.enter_context(torch.autocast(kind, enabled=False))
            if torch.get_default_device().type != "cpu":  # only then: it slows every call of torch down
                modes.enter_context(torch.device("cpu"))
            return method(self, *args, **kwargs)

    return run
