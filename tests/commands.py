"""Runs commands of the command line: in this process, or as a program with a generator that needs no weights.

As a program: ``python commands.py PAUSE SECONDS KILL ARGUMENTS...``, where each batch takes SECONDS, either in Python
(PAUSE is "python") or in C code that no signal interrupts ("native"); the KILL-th batch kills the process.
"""

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

COUNTS = re.compile(r"(\d+) images made, (\d+) already there, (\d+) failed")


def run(capsys, *argv):
    """(exit code, stdout, stderr) of a command in this process."""
    from torch_augcond.cli import main

    try:
        code = main([str(word) for word in argv])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def start(*argv, pause="python", seconds=0.0, kill=0, **environ):
    """A command as a process of its own; prints "batch" as each batch begins."""
    words = [pause, seconds, kill, *argv]
    return python(__file__, *words, **environ)


def python(*argv, **environ):
    """A process of Python with the packages of this one."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    environ = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environ}
    return subprocess.Popen(
        [sys.executable, *map(str, argv)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ
    )


def batches(process, count):
    """Returns when the process has begun its ``count``-th batch."""
    for _ in range(count):
        line = process.stdout.readline()
        assert line == "batch\n", line + process.stderr.read()


def linger(pause, seconds):
    if pause == "python":
        time.sleep(seconds)
        return
    started = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 20_000)
    rounds = 20_000 * seconds / (time.monotonic() - started)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(rounds))  # as a call that waits for a GPU: one long step of Python's


def main(pause, seconds, kill, *argv):
    from fakes import FakeGenerator

    from torch_augcond import cli, generators, job

    class Slow(FakeGenerator):
        def generate(self, *args, **options):
            sys.stdout.write("batch\n")
            sys.stdout.flush()
            if len(self.batches) + 1 == int(kill):
                os.kill(os.getpid(), signal.SIGKILL)
            linger(pause, float(seconds))
            return super().generate(*args, **options)

    generators.load_generator = lambda name, **options: Slow()
    job._made_by = lambda fingerprint, name: True
    sys.argv = ["torch-augcond", *argv]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
