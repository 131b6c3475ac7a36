"""The libraries' own bars and messages, silenced where this package has something better to say."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

__all__ = ["without_bars", "without_messages"]


def _switches() -> tuple[ModuleType, ...]:
    import diffusers.utils.logging
    import transformers.utils.logging

    return diffusers.utils.logging, transformers.utils.logging


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of diffusers and transformers; afterwards those that there were."""
    silenced = [switch for switch in _switches() if switch.is_progress_bar_enabled()]
    for switch in silenced:
        switch.disable_progress_bar()
    try:
        yield
    finally:
        for switch in silenced:
            switch.enable_progress_bar()


@contextmanager
def without_messages() -> Iterator[None]:
    """No log messages of diffusers and transformers below errors; afterwards as before."""
    former = [(switch, switch.get_verbosity()) for switch in _switches()]
    for switch, _ in former:
        switch.set_verbosity_error()
    try:
        yield
    finally:
        for switch, verbosity in former:
            switch.set_verbosity(verbosity)
