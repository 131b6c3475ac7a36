"""Signals end a run within seconds, and the same command resumes."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from commands import COUNTS, batches, run, start
from torchvision.datasets import ImageFolder

from torch_augcond.cli import signals

NAMES = ["SIGINT", "SIGTERM", "SIGUSR1"]


def arguments(data, root):
    return ["generate", data, "--root", root, "--num-per-class", "20", "--batch-size", "4"]


@pytest.fixture
def begin(data, tmp_path):
    """Starts ``torch-augcond generate`` into a folder; what is still running at the end is killed."""
    processes = []

    def begin(root, **options):
        processes.append(start(*arguments(data, root), **options))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def stop(process, number):
    """Sends a signal and returns what the process says, which must be over within five seconds."""
    process.send_signal(number)
    sent = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 5
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == f"torch-augcond generate: {signals.STOPPED}"
    return err


def whole_and_resumed(capsys, data, root, made):
    """The images are undamaged, and the same command makes those that are missing."""
    assert len(list(root.glob("*/*.png"))) == made
    assert run(capsys, "verify", root, "--full")[0] == 0
    code, out, _ = run(capsys, *arguments(data, root))
    assert code == 0 and COUNTS.search(out).groups() == (str(40 - made), str(made), "0")
    assert not list(root.glob(".augcond-tmp-*"))


def test_a_signal_in_a_batch_that_lasts_minutes(begin, fake, data, tmp_path, capsys):
    """Also where the batch is one long call of C code, as when waiting for a GPU."""
    cases = [*((name, "python") for name in NAMES), ("SIGTERM", "native")]
    roots = [tmp_path / f"{name} {pause}" for name, pause in cases]
    processes = [begin(root, pause=pause, seconds=300) for root, (_, pause) in zip(roots, cases, strict=True)]
    for (name, _), root, process in zip(cases, roots, processes, strict=True):
        batches(process, 1)
        time.sleep(0.3)  # well into the batch
        assert "Traceback" not in stop(process, getattr(signal, name))
        whole_and_resumed(capsys, data, root, made=0)


def test_a_signal_between_two_batches_keeps_what_is_made(begin, fake, data, tmp_path, capsys):
    process = begin(tmp_path / "set", seconds=0.5)
    batches(process, 4)
    stop(process, signal.SIGTERM)
    made = len(ImageFolder(tmp_path / "set"))
    assert made in (12, 16)
    whole_and_resumed(capsys, data, tmp_path / "set", made)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_signals_at_any_moment(begin, fake, data, tmp_path, capsys):
    """From its first batch to its end: it ends in time, and never with damage."""
    root, codes = tmp_path / "set", set()
    for delay in range(40):
        shutil.rmtree(root, ignore_errors=True)
        process = begin(root, seconds=0.05)
        batches(process, 1)
        time.sleep(0.05 * delay)
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        process.communicate(timeout=60)
        assert time.monotonic() - sent < 5
        codes.add(process.returncode)
        if process.returncode == -signal.SIGTERM:  # it was done, and the interpreter on its way out
            assert len(ImageFolder(root)) == 40
        code, out, err = run(capsys, "verify", root)
        assert code == 0, out + err
    assert codes <= {128 + signal.SIGTERM, 0, -signal.SIGTERM} and 128 + signal.SIGTERM in codes
    assert run(capsys, *arguments(data, root))[0] == 0 and len(ImageFolder(root)) == 40


@pytest.mark.parametrize("name", NAMES)
def test_every_polite_signal_stops_a_batch(fake, data, tmp_path, capsys, name):
    number, paint = getattr(signal, name), fake.generate
    before = signal.getsignal(number), threading.active_count()

    def interrupted(*args, **options):
        if len(fake.batches) == 2:
            signal.raise_signal(number)
        return paint(*args, **options)

    fake.generate = interrupted
    code, _, err = run(capsys, *arguments(data, tmp_path / "set"))
    assert (code, err) == (128 + number, f"torch-augcond generate: {signals.STOPPED}\n")
    assert len(ImageFolder(tmp_path / "set")) == 8
    assert not list((tmp_path / "set").glob(".augcond-tmp-*"))
    assert (signal.getsignal(number), threading.active_count()) == before, "all is as it was"


def test_the_second_signal_does_not_interrupt_the_cleaning_up():
    cleaned = []

    @signals.stoppable("test")
    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(signals.Stopped):
        work()
    assert cleaned


def test_a_process_forked_meanwhile_is_stopped_alone():
    """A worker's signal neither raises in it nor counts as the parent's."""
    with signals.stoppable("test"):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        assert os.waitpid(child, 0)[1] == signal.SIGTERM
        time.sleep(signals._GRACE_SECONDS + 0.5)


def test_other_threads_and_programs_are_left_alone():
    results = []

    def elsewhere():
        with signals.stoppable("test"):
            results.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert results == [signal.getsignal(signal.SIGTERM)]
    with signals.stoppable("test"):
        done = subprocess.run([sys.executable, "-c", "import signal; print(int(signal.getsignal(15)))"],
                              capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == "0\n", "the default"
