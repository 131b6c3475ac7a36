"""The program ``torch-augcond``, also ``python -m torch_augcond``."""

import sys

__all__ = ["main"]


def main() -> int:
    """Runs the command that the program's arguments name; returns the exit code."""
    try:
        from .cli import main

        return main()
    except KeyboardInterrupt:  # while that was being imported; afterwards it is dealt with there
        sys.stderr.write("torch-augcond: stopped\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
