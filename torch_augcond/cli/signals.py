"""Polite requests to stop: within seconds, whatever the program is doing, and without damage."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress

__all__ = ["STOPPED", "Stopped", "stoppable"]

STOPPED = "stopped; nothing finished is lost, run the same command again to go on"
_GRACE_SECONDS = 3.0
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # Slurm can be told to send SIGUSR1 before time is up


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def stoppable(name: str) -> Iterator[None]:
    """A polite signal raises `Stopped` here; where that takes longer than three seconds, it ends the process.

    Python runs a signal's handler only between two of its own instructions, and a batch on a GPU may keep it waiting
    for minutes. So a thread looks on, which hears of the signal at once. It may end the process at any moment because
    a set is never damaged by that.

    Args:
        name: Of the program, for its last line.
    """
    if threading.current_thread() is not threading.main_thread():  # elsewhere no handler can be set
        yield
        return
    stop = _raise_once()
    former = {number: signal.signal(number, stop) for number in _numbers()}
    try:
        with _watched(name) if hasattr(os, "register_at_fork") else nullcontext():
            yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _numbers() -> set[int]:
    return {number for name in _NAMES if (number := getattr(signal, name, None))}


def _raise_once() -> Callable[[int, object], None]:
    """The first signal raises; the next ones must not interrupt its cleaning up."""
    owner, heard = os.getpid(), []

    def stop(number: int, frame: object) -> None:
        if os.getpid() != owner:  # a process forked from here, which has nothing to clean up
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if not heard:
            heard.append(number)
            raise Stopped(number)

    return stop


@contextmanager
def _watched(name: str) -> Iterator[None]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _writers.append(writer)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    done = threading.Event()
    watchdog = threading.Thread(target=_watch, args=(reader, done, name), name="signals", daemon=True)
    watchdog.start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(former)
        _writers.remove(writer)
        os.close(writer)
        watchdog.join()
        os.close(reader)


def _watch(reader: int, done: threading.Event, name: str) -> None:
    """Reads the numbers of the signals that arrive, as Python's own handler in C writes them, until the pipe ends."""
    while data := os.read(reader, 1):
        if data[0] in _numbers() and not done.wait(_GRACE_SECONDS):
            with suppress(OSError):  # nobody reads it any more
                os.write(2, f"\n{name}: {STOPPED}\n".encode())
            os._exit(128 + data[0])


def _hold() -> None:
    """Signals wait while a process is forked: until it has forgotten the pipe, it would answer into its parent's."""
    _masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, _numbers() if _writers else ()))


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.pop())


def _forget() -> None:
    """A forked process must not tell its parent of the signals that it gets itself."""
    if _writers and threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(-1)
    _release()


_writers: list[int] = []
_masks: list[set[int]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)
