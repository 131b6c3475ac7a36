"""The command line: ``torch-augcond``, also ``python -m torch_augcond``."""

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from .. import __version__
from .signals import STOPPED, stoppable

__all__ = ["main"]

DONE, ERROR, USAGE, OVER_BUDGET = 0, 1, 2, 3
_EXITS = "exit codes: 0 done, 1 error, 2 wrong usage, 3 over the failure budget, 128 + n stopped by signal"


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
    is_program, argv = argv is None, sys.argv[1:] if argv is None else list(argv)
    command = next((word for word in argv if not word.startswith("-")), None)
    name = f"torch-augcond {command}" if command in _COMMANDS else "torch-augcond"
    try:
        with stoppable(name), _plain_messages(name):
            args, unknown = _parser(command).parse_known_args(argv)
            if unknown:
                raise UsageError(f"unrecognized arguments: {' '.join(unknown)}")
            return args.run(args) or DONE
    except UsageError as error:
        return _say(f"{name}: error: {error} (see {name} --help)", USAGE)
    except KeyboardInterrupt as stop:
        code = _say(f"{name}: {STOPPED}", 128 + getattr(stop, "number", signal.SIGINT))
        if is_program:
            os._exit(code)  # who stops a program has no time for the libraries' own tidying up
        return code
    except BrokenPipeError:  # as in `torch-augcond status ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except (OSError, ValueError, TypeError, RuntimeError, MemoryError, ImportError, Warning) as error:
        if "--debug" in argv:
            raise
        return _say(f"{name}: error: {error or type(error).__name__}", ERROR)


def tell(text: str, stream: TextIO | None = None) -> None:
    """Prints a line in which nothing can move the cursor or fail to be encoded: it may hold names of files."""
    stream = stream or sys.stdout
    if stream is None:  # closed by who started us: >&-
        return
    encoding = stream.encoding or "utf-8"
    plain = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    print(plain.encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _say(text: str, code: int) -> int:
    tell(" ".join(text.split()), sys.stderr)
    return code


@contextmanager
def shown_while(text: str) -> Iterator[None]:
    """Shows `text` on a terminal for as long as something silent takes."""
    from ..progress import is_watched

    watched = is_watched()
    if watched:
        print(text, end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if watched:
            print(f"\r{' ' * len(text)}\r", end="", file=sys.stderr, flush=True)


@contextmanager
def _plain_messages(name: str) -> Iterator[None]:
    """Warnings and the log as lines of this program."""

    def show(message: Warning | str, *where: Any, **options: Any) -> None:
        _say(f"{name}: warning: {message}", DONE)

    log, lines = logging.getLogger("torch_augcond"), logging.Handler()
    lines.emit = lambda record: _say(f"{name}: {record.getMessage()}", DONE)
    level = log.level
    log.addHandler(lines)
    if name.endswith("generate"):  # a long job: how it is done is worth a line
        log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        log.removeHandler(lines)
        log.setLevel(level)


def _parser(command: str | None) -> argparse.ArgumentParser:
    """Only the command that is asked for gets its arguments."""
    parser = _Parser(
        "torch-augcond",
        description="Labelled synthetic training images from a frozen image-conditioned diffusion model.",
        epilog=_EXITS,
    )
    parser.add_argument("--version", action="version", version=f"torch-augcond {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, summary in _COMMANDS.items():
        texts = {"help": summary, "description": f"{summary[0].upper()}{summary[1:]}.", "epilog": _EXITS}
        sub = commands.add_parser(name, **texts, formatter_class=_Formatter)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        if name == command:
            _fill(sub, name)
    return parser


def _fill(parser: argparse.ArgumentParser, name: str) -> None:
    from . import arguments

    def run(args: argparse.Namespace) -> int:
        with shown_while("loading torch ..."):
            from . import commands

        return getattr(commands, name)(args)

    getattr(arguments, f"add_{name}")(parser)
    parser.set_defaults(run=run)


_COMMANDS = {
    "generate": "make the images that are missing from a set",
    "status": "say how many images of a set are made, missing and failed",
    "verify": "read every file of a set and set aside what is damaged",
    "preview": "draw a sheet of real images and what each variant makes of them",
    "export": "write the Hugging Face metadata.jsonl of a set",
    "demo": "train a classifier on real digits, without and with synthetic ones",
}
