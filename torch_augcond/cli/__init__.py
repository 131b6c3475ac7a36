"""The command line: ``torch-augcond``, also ``python -m torch_augcond``."""

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from .. import __version__

__all__ = ["main"]

DONE, ERROR, USAGE, OVER_BUDGET = 0, 1, 2, 3
_EXITS = "exit codes: 0 done, 1 error, 2 wrong usage, 3 finished but over the failure budget, 128 + n stopped by signal"


class Stopped(KeyboardInterrupt):
    """A signal asked the program to stop."""

    def __init__(self, number: int) -> None:
        self.number = number


class UsageError(Exception):
    """The arguments are no possible set."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage."""
        self.exit(USAGE, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows every default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    Example:
        >>> main(["generate", "flowers/train", "--generator", "tiny", "--num-per-class", "4"])
        0
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser(next((word for word in argv if not word.startswith("-")), None)).parse_args(argv)
    name = f"torch-augcond {args.command}"
    with _plain_warnings(name), _signals():
        try:
            return args.run(args) or DONE
        except UsageError as error:
            return _say(f"{name}: error: {error} (see {name} --help)", USAGE)
        except KeyboardInterrupt as stop:
            number = getattr(stop, "number", signal.SIGINT)
            return _say(f"{name}: stopped; nothing finished is lost, run the same command again to go on", 128 + number)
        except BrokenPipeError:  # as in `torch-augcond status ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ERROR
        except (OSError, ValueError, TypeError, RuntimeError, MemoryError, ImportError) as error:
            if args.debug:
                raise
            return _say(f"{name}: error: {error or type(error).__name__}", ERROR)


def _say(text: str, code: int) -> int:
    print(" ".join(text.split()), file=sys.stderr)
    return code


@contextmanager
def _plain_warnings(name: str) -> Iterator[None]:
    def show(message: Warning | str, *where: Any, **options: Any) -> None:
        _say(f"{name}: warning: {message}", DONE)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _signals() -> Iterator[None]:
    """Polite requests to stop end the program as Ctrl-C does; Slurm can be told to send SIGUSR1 before time is up."""

    def stop(number: int, frame: Any) -> NoReturn:
        raise Stopped(number)

    names = ("SIGINT", "SIGTERM", "SIGUSR1") if threading.current_thread() is threading.main_thread() else ()
    former = {number: signal.signal(number, stop) for n in names if (number := getattr(signal, n, None))}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Only the command that is asked for gets its arguments: some of them need slow imports."""
    parser = _Parser(
        "torch-augcond",
        description="Labelled synthetic training images from a frozen image-conditioned diffusion model.",
        epilog=_EXITS,
    )
    parser.add_argument("--version", action="version", version=f"torch-augcond {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, (summary, fill) in _COMMANDS.items():
        texts = {"help": summary, "description": f"{summary[0].upper()}{summary[1:]}.", "epilog": _EXITS}
        sub = commands.add_parser(name, **texts, formatter_class=_Formatter)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == command:
            fill(sub)
    return parser


def _fill(name: str) -> Callable[[argparse.ArgumentParser], None]:
    def fill(parser: argparse.ArgumentParser) -> None:
        from . import commands

        getattr(commands, f"add_{name}")(parser)
        parser.set_defaults(run=getattr(commands, name))

    return fill


def _fill_demo(parser: argparse.ArgumentParser) -> None:
    from . import demo

    demo.add_arguments(parser)
    parser.set_defaults(run=demo.run)


_COMMANDS = {
    "generate": ("make the images that are missing from a set", _fill("generate")),
    "status": ("say how many images of a set are made, missing and failed", _fill("status")),
    "verify": ("read every file of a set and set aside what is damaged", _fill("verify")),
    "preview": ("draw a sheet of real images and what each variant makes of them", _fill("preview")),
    "export": ("write the Hugging Face metadata.jsonl of a set", _fill("export")),
    "demo": ("train a classifier on real digits, without and with synthetic ones", _fill_demo),
}
