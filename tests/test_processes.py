"""Several real processes at one set: torchrun, a Slurm array, and ranks of a process group; some of them are killed."""

import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from commands import COUNTS, batches, python, run, start
from fakes import FakeGenerator, paint_folder
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic, shards
from torch_augcond.progress import silent
from torch_augcond.store.imagefile import check, load_image

FORK = multiprocessing.get_context("fork")  # what the parent has imported, the ranks needn't


def contents(root):
    """{file: (pixels, what was drawn for it)} of a whole set."""
    return {
        path.relative_to(root).as_posix(): (load_image(str(path)).tobytes(), check(path, path.stem)["seed"])
        for path in Path(root).glob("*/*.*")
    }


# --- torchrun and Slurm -----------------------------------------------------------------------------------------------


def rank_process(rank, root):
    """The process of a rank that works on a set, by what the kernel says."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ, words = (folder / "environ").read_bytes(), (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"\0RANK=%d\0" % rank in environ and os.fsencode(root) in words and b"torch_augcond" in words:
            return int(folder.name)
    return None


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds the ranks in /proc")
def test_torchrun_loses_a_rank_and_a_second_call_completes(data, tmp_path, capsys):
    root = tmp_path / "set"
    options = ["--generator", "tiny", "--num-per-class", 20, "--num-inference-steps", 30, "--batch-size", 4]
    command = ["torch_augcond", "generate", data, "--root", root, *options]
    process = python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", *command)
    try:
        while len(list(root.glob("*/*.png"))) < 4:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.kill(rank_process(1, root), signal.SIGKILL)
        killed = time.monotonic()
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert time.monotonic() - killed < 60 and process.returncode, out + err
    made = len(ImageFolder(root))
    assert 4 <= made < 40
    code, out, err = run(capsys, *command[1:])
    assert code == 0 and COUNTS.search(out).groups() == (str(40 - made), str(made), "0"), err
    assert len(contents(root)) == 40 and not list(root.glob(".augcond-tmp-*"))


def test_two_tasks_of_a_slurm_array_and_one_is_killed(fake, data, tmp_path, capsys):
    root = tmp_path / "set"
    argv = ["generate", data, "--root", root, "--num-per-class", 30, "--batch-size", 4]
    tasks = [
        {"SLURM_ARRAY_TASK_ID": str(i), "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "2"} for i in (5, 6)
    ]
    first, second = (start(*argv, kill=3 * i, seconds=0.1, **task) for i, task in enumerate(tasks))
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    second.communicate(timeout=120)
    assert second.returncode == -signal.SIGKILL
    share = int(COUNTS.search(out)[1])
    made = len(ImageFolder(root)) - share
    assert 4 <= made <= 8  # it died while it made its fourth batch and stored its third
    again = start(*argv, **tasks[1])
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0 and COUNTS.search(out).groups() == (str(60 - share - made), str(made), "0"), err
    assert run(capsys, *argv, "--root", tmp_path / "alone")[0] == 0
    assert contents(root) == contents(tmp_path / "alone")
    assert run(capsys, "verify", root, "--full")[0] == 0 and not list(root.glob(".augcond-tmp-*"))


# --- a process group --------------------------------------------------------------------------------------------------


def training(results, rank, world, folder, real, root, fault):
    """A rank of a user's training script: puts (rank, files, seeds it made) or (rank, its error)."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    generator = FakeGenerator()
    fault(rank, generator)
    try:
        synthetic = AugConditionedSynthetic(
            ImageFolder(real), root=root, num_per_class=20, generator=generator, batch_size=4
        )
        results.put((rank, [path for path, _ in synthetic.samples], sorted(set(generator.keys))))
    except RuntimeError as error:
        results.put((rank, str(error)))
    results.close()
    results.join_thread()
    os._exit(0)  # a gloo group whose rank has died can't be taken down


def group(world, folder, real, root, fault=lambda rank, generator: None):
    """What the ranks of a process group that live give, by rank."""
    folder.mkdir()
    results = FORK.Queue()
    ranks = [
        FORK.Process(target=training, args=(results, rank, world, folder, real, root, fault)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    found = {}
    deadline = time.monotonic() + 100
    while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
        while not results.empty():
            rank, *rest = results.get()
            found[rank] = rest
        time.sleep(0.01)
    while not results.empty():
        rank, *rest = results.get()
        found[rank] = rest
    for process in ranks:
        process.kill()
    return found


def kill_itself(rank, generator):
    if rank == 1:
        paint = generator.generate

        def generate(*args, **options):
            if len(generator.batches) == 2:
                time.sleep(0.3)  # long enough to have been seen alive
                os.kill(os.getpid(), signal.SIGKILL)
            return paint(*args, **options)

        generator.generate = generate


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(shards, "BEAT_SECONDS", 0.1)
    wait = partial(shards.wait_for, poll_seconds=0.05, stalled_seconds=4, absent_seconds=30)
    monkeypatch.setattr(shards, "wait_for", wait)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The real images, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    real = ImageFolder(paint_folder(folder / "real", {"cat": 3, "dog": 2}))
    AugConditionedSynthetic(real, root=folder / "set", num_per_class=20, generator=FakeGenerator())
    return real.root, contents(folder / "set")


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_every_rank_of_a_process_group_sees_the_same_set(alone, tmp_path, quick, world):
    real, expected = alone
    found = group(world, tmp_path / "group", real, tmp_path / "set")
    assert sorted(found) == list(range(world))
    paths, seeds = zip(*found.values(), strict=True)
    assert all(files == paths[0] for files in paths) and len(paths[0]) == 40
    assert sorted(seed for made in seeds for seed in made) == sorted(seed for _, seed in expected.values())
    assert contents(tmp_path / "set") == expected


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_ranks_of_a_group_that_lost_one_stop_and_a_rerun_completes(alone, tmp_path, quick, world):
    real, expected = alone
    started = time.monotonic()
    found = group(world, tmp_path / "group", real, tmp_path / "set", kill_itself)
    assert time.monotonic() - started < 60
    assert sorted(found) == [rank for rank in range(world) if rank != 1]
    for (message,) in found.values():
        assert f"Rank 1 of {world} has been silent for 4 s" in message and "start the program again" in message
    assert 8 <= len(contents(tmp_path / "set")) < 40
    found = group(world, tmp_path / "again", real, tmp_path / "set")
    assert sorted(found) == list(range(world)) and contents(tmp_path / "set") == expected


@pytest.mark.slow
def test_with_the_patience_that_users_get(alone, tmp_path):
    """The rest stops within 60 s of the death, not only with the short silences of the other tests."""
    real, expected = alone
    started = time.monotonic()
    found = group(2, tmp_path / "group", real, tmp_path / "set", kill_itself)
    assert sorted(found) == [0] and 45 < time.monotonic() - started < 70
    group(2, tmp_path / "again", real, tmp_path / "set")
    assert contents(tmp_path / "set") == expected


def test_shards_and_batches_change_nothing(alone, tmp_path):
    """1 to 8 shards × batches of 1, 3 and 8: the same keys, seeds and pixels, which show the embeddings."""
    from torch_augcond.job import Job
    from torch_augcond.request import Request

    real, expected = ImageFolder(alone[0]), {}
    for count in range(1, 9):
        for size in (1, 3, 8):
            root = tmp_path / f"{count}-{size}"
            request = Request(dataset=real, generator=FakeGenerator(), root=root, num_per_class=5)
            job = Job(request, write=True, load=None, progress=silent)
            for index in range(count):
                job.make(shard=(index, count), batch_size=size)
            expected = expected or contents(root)
            assert len(expected) == 10 and contents(root) == expected, (count, size)


def test_a_task_whose_signal_comes_first_leaves_its_share(fake, data, tmp_path, capsys):
    """Pre-emption of one of two tasks: the other isn't disturbed."""
    root = tmp_path / "set"
    argv = ["generate", data, "--root", root, "--num-per-class", 30, "--batch-size", 4]
    tasks = [start(*argv, "--shard", f"{i}/2", seconds=0.2) for i in range(2)]
    batches(tasks[0], 2)
    tasks[0].send_signal(signal.SIGUSR1)
    codes = [task.communicate(timeout=120) and task.returncode for task in tasks]
    assert codes == [128 + signal.SIGUSR1, 0]
    assert run(capsys, *argv)[0] == 0 and len(contents(root)) == 60


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="only Linux tells zombies from the living")
def test_a_killed_process_that_nobody_has_reaped_keeps_nobody_waiting(fake, data, tmp_path, capsys):
    """As in a container without an init: the notes of what it was at bind nobody."""
    root = tmp_path / "set"
    argv = ["generate", data, "--root", root, "--num-per-class", 10, "--batch-size", 4]
    child = os.fork()
    if not child:
        fake.generate = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
        run(capsys, *argv)
        os._exit(1)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it is dead, and stays a zombie
    started = time.monotonic()
    code, out, _ = run(capsys, *argv)
    assert code == 0 and COUNTS.search(out).groups() == ("20", "0", "0") and time.monotonic() - started < 30
    assert not list(root.glob(".augcond-tmp-*"))
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
