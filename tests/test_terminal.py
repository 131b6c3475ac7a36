"""What a person sees: progress bars on a real terminal, and one clear line where a folder may not be used."""

import os
import re
import signal
import struct
import sys
import tempfile
from pathlib import Path

import pytest
from commands import run
from fakes import FakeGenerator, paint_folder
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic

pty, fcntl, termios = (pytest.importorskip(name, reason="needs a Unix") for name in ("pty", "fcntl", "termios"))
NOBODY = 65534


def in_child(work, *, uid=None, terminal=False):
    """(exit code, what it says) of a function, run in a forked process on a terminal or as another user."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    child = os.fork()
    if not child:
        code = 70
        try:
            for number in (1, 2):
                os.dup2(writer, number)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
            if uid is not None:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            code = work()
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code or 0)
    os.close(writer)
    said = b""
    while True:
        try:
            data = os.read(reader, 4096)
        except OSError:  # a terminal whose last writer is gone
            data = b""
        if not data:
            break
        said += data
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said.decode()


def command(*argv):
    from torch_augcond.cli import main

    return lambda: main([str(word) for word in argv])


# --- a terminal -------------------------------------------------------------------------------------------------------


def test_bars_count_and_leave_the_last_words_readable(fake, data, tmp_path):
    argv = ["generate", data, "--root", tmp_path / "set", "--num-per-class", 20, "--batch-size", 4]
    code, said = in_child(command(*argv), terminal=True)
    assert code == 0 and re.search(r"generating: +100%\|.*40/40", said) and "hashing sources" in said
    last = said.replace("\r\n", "\n").rstrip("\n").split("\n")[-1]
    assert last == f"40 images made, 0 already there, 0 failed: {tmp_path / 'set'}"


def test_a_warning_and_a_stop_have_lines_of_their_own(fake, data, tmp_path):
    (data / "cat" / "9.png").symlink_to("nowhere")
    paint = fake.generate

    def interrupted(*args, **options):
        if len(fake.batches) == 2:
            signal.raise_signal(signal.SIGINT)
        return paint(*args, **options)

    fake.generate = interrupted
    argv = ["generate", data, "--root", tmp_path / "set", "--num-per-class", 20, "--batch-size", 4]
    code, said = in_child(command(*argv), terminal=True)
    lines = re.split(r"[\r\n]+", said)
    assert code == 128 + signal.SIGINT
    assert [line for line in lines if line.startswith("torch-augcond generate: stopped; nothing finished is lost")]
    assert [line for line in lines if line.startswith("torch-augcond generate: warning: 1 of 6 real images")]


def test_nobody_watches_no_bar(fake, data, tmp_path):
    code, said = in_child(command("generate", data, "--root", tmp_path / "set"))
    assert code == 0 and "\r" not in said and said.count("\n") == 1


# --- permissions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared():
    """A place that another user may see (pytest's own are closed); only root can become another user."""
    if not hasattr(os, "geteuid") or os.geteuid():
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def open_data(shared):
    return paint_folder(shared / "real", {"cat": 3, "dog": 2})


@pytest.mark.parametrize("where", ["set", "parent/set", "closed/set", "file/set"])
def test_a_root_that_may_not_be_written_is_one_line(fake, open_data, shared, where):
    (shared / "set").mkdir(mode=0o755)
    (shared / "parent").mkdir(mode=0o755)
    (shared / "closed").mkdir(mode=0o700)
    (shared / "file").touch()
    code, said = in_child(command("generate", open_data, "--root", shared / where), uid=NOBODY)
    assert code == 1 and said.count("\n") == 1 and str(shared / where.partition("/")[0]) in said
    assert said.startswith("torch-augcond generate: error: ")
    assert "Permission denied" in said or "`root` must be a folder" in said


def test_a_set_that_may_only_be_read_is_read(open_data, shared):
    real, options = ImageFolder(open_data), {"root": shared / "set", "generator": FakeGenerator()}
    made = AugConditionedSynthetic(real, num_per_class=3, **options)

    def read():
        again = AugConditionedSynthetic(real, num_per_class=3, generate=False, **options)
        same = [again[i][0].tobytes() == made[i][0].tobytes() for i in range(6)]
        complete = AugConditionedSynthetic(real, num_per_class=3, **options)  # nothing is missing
        return 0 if all(same) and len(complete) == 6 else 71

    assert in_child(read, uid=NOBODY) == (0, "")

    def grow():
        AugConditionedSynthetic(real, num_per_class=4, **options)

    code, said = in_child(grow, uid=NOBODY)
    assert code == 70 and re.match(r"PermissionError: .*`root` must be a folder that can be written", said)


def test_sources_without_permission_are_recorded(fake, open_data, shared, capsys):
    (open_data / "cat" / "1.png").chmod(0o600)
    (shared / "open").mkdir()
    (shared / "open").chmod(0o777)
    argv = ["generate", open_data, "--root", shared / "open" / "set", "--augmentation", "real"]
    code, said = in_child(command(*argv), uid=NOBODY)
    assert code == 3 and "cat/1.png could not be read: PermissionError" in said and "4 images made" in said
    assert run(capsys, *argv)[0] == 0 and len(ImageFolder(shared / "open" / "set")) == 5
