"""What the command lines of the benchmarks share: a device, a file of rows, numbers that are checked, how they end."""

import argparse
import sys
from pathlib import Path

import torch

__all__ = ["at_least", "make_parser", "parse", "run_main"]


def make_parser(doc, name, devices=("cpu", "cuda")):
    """A parser with ``--device``, ``--quick`` and ``--csv``, by default the file that docs/performance.md shows."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", choices=devices, default="cpu", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it runs")
    path = f"benchmarks/results/{name}-{{device}}.csv"
    parser.add_argument("--csv", metavar="PATH", default=path, help="of the rows (default: %(default)s)")
    return parser


def parse(parser):
    """The arguments; whatever would end a run after it has measured is refused before."""
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use here: leave out --device, or run it on a machine with one")
    args.csv = args.csv.format(device=args.device)
    path = Path(args.csv)
    if path.is_dir() or not path.parent.is_dir():
        parser.error(f"--csv must be a file in a folder that is there, but got {args.csv}")
    return args


def at_least(least):
    """A type for whole numbers from ``least`` on."""

    def number(text):
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, but got {text!r}")
        return int(text)

    return number


def run_main(main):
    """Ends the program with what `main` returns; on Ctrl-C, with one line and the shell's own code for it."""
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: stopped", file=sys.stderr)
        sys.exit(130)
