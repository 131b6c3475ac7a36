"""AugConditionedSynthetic in several processes at once: as torchrun starts them, and in a process group."""

import functools
import multiprocessing
import os
import sys
import time
import warnings

import pytest
from fakes import FakeGenerator, paint_folder
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic, dataset, shards
from torch_augcond.job import Job
from torch_augcond.store import Store

FORK = multiprocessing.get_context("fork")  # what the parent has imported, the ranks needn't


def rank_main(results, rank, world, real, root, options, fault):
    """One rank: puts (rank, the files it sees, the seeds it made) or (rank, its error)."""
    fault(rank)
    generator = FakeGenerator(**options)
    try:
        synthetic = AugConditionedSynthetic(ImageFolder(real), root=root, num_per_class=20, generator=generator)
        results.put((rank, [path for path, _ in synthetic.samples], sorted(set(generator.keys))))
    except RuntimeError as error:
        results.put((rank, str(error)))


def nothing(rank):
    pass


def run(world, real, root, fault=nothing, **options):
    """The results of all ranks that gave one, by rank."""
    results = FORK.Queue()
    ranks = []
    for rank in range(world):
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
        ranks.append(FORK.Process(target=rank_main, args=(results, rank, world, real, root, options, fault)))
        ranks[-1].start()
    dead = [rank for rank, process in enumerate(ranks) if process.exitcode]
    found = []
    deadline = time.monotonic() + 60
    while len(found) + len(dead) < world and time.monotonic() < deadline:
        if not results.empty():
            found.append(results.get())
        dead = [rank for rank, process in enumerate(ranks) if process.exitcode]
        time.sleep(0.01)
    for process in ranks:
        process.join(10)
    return {rank: rest for rank, *rest in found}


@pytest.fixture
def real(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 3, "dog": 2})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short silences, and an environment that is put back."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(shards, "BEAT_SECONDS", 0.1)
    wait = functools.partial(shards.wait_for, poll_seconds=0.02, stalled_seconds=3, absent_seconds=20)
    monkeypatch.setattr(shards, "wait_for", wait)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_make_a_set_between_them_and_see_all_of_it(real, tmp_path, world):
    found = run(world, real, tmp_path / "set")
    assert sorted(found) == list(range(world))
    seen, made = zip(*found.values(), strict=True)
    assert all(paths == seen[0] for paths in seen) and len(seen[0]) == 40
    assert sum(map(len, made)) == len(set().union(*made)) == 40, "no image is made twice"
    assert len(ImageFolder(tmp_path / "set")) == 40
    assert not list((tmp_path / "set").glob(".augcond-tmp-*"))


def test_ranks_agree_on_what_failed(real, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "FAILURE_BUDGET", 0.5)
    os.environ.update(RANK="0", WORLD_SIZE="1")
    alone = AugConditionedSynthetic(
        ImageFolder(real), root=tmp_path / "alone", num_per_class=20, generator=FakeGenerator()
    )
    seeds = [alone.provenance(i)["seed"] for i in range(3)]
    found = run(2, real, tmp_path / "set", bad=seeds)
    assert [len(paths) for paths, _ in found.values()] == [37, 37]


def test_a_killed_rank_stops_the_rest_and_a_rerun_completes(real, tmp_path):
    def killed(rank):
        if rank == 1:

            def die(self, *args, **options):
                time.sleep(0.5)  # long enough to have been seen alive
                os._exit(9)

            FakeGenerator.generate = die

    started = time.monotonic()
    found = run(2, real, tmp_path / "set", fault=killed)
    assert time.monotonic() - started < 40
    assert list(found) == [0] and "Rank 1 of 2 has been silent for 3 s while" in found[0][0]
    before = len(ImageFolder(tmp_path / "set"))
    assert 0 < before < 40
    found = run(2, real, tmp_path / "set")
    assert [len(paths) for paths, _ in found.values()] == [40, 40]
    assert sum(len(made) for _, made in found.values()) == 40 - before


def test_a_rank_that_constructs_it_alone_says_what_it_waits_for(real, tmp_path, monkeypatch, capfd):
    """As where rank 0 alone makes it, and the others wait at a barrier until it is there."""
    monkeypatch.setattr(shards, "wait_for", functools.partial(shards.wait_for, unusual_seconds=0.5))

    def barrier(rank):
        warnings.showwarning = lambda message, *where: sys.stderr.write(f"{message}\n")
        if rank == 1:
            time.sleep(3)

    found = run(2, real, tmp_path / "set", fault=barrier)
    assert [len(paths) for paths, _ in found.values()] == [40, 40]
    told = capfd.readouterr().err
    assert told.count("waits for rank 1, of which nothing has been heard: every rank must construct this dataset") == 1
    assert "waits for rank 0" not in told


def test_ranks_with_other_real_images_are_told_so(real, tmp_path):
    """As after a random_split without a seed: neither waits for images that nobody will make."""

    def split(rank):
        whole, first = ImageFolder(real), 1 - rank
        globals()["ImageFolder"] = lambda root: Subset(whole, [first, first + 1, 3 + rank])

    found = run(2, real, tmp_path / "set", fault=split)
    assert sorted(found) == [0, 1]
    for rank, (message,) in found.items():
        told = f"Rank {1 - rank} of 2 makes other images of this set than this rank"
        gone = "synthetic images have gone from"  # where the other has already set its images aside
        assert message.startswith(told) or (gone in message and "another run with other sources" in message), message


@pytest.mark.parametrize("noticed", [True, False])
def test_ranks_whose_images_have_gone_are_not_waited_for(real, tmp_path, noticed):
    """Not even where the rank that made them is alive: it has done its share."""

    def lose(rank):
        if rank == 1:
            write = Store.write_many
            Store.write_many = lambda store, *rows: write(store, *(row[1:] for row in rows))
            if not noticed:
                Job._gone = lambda job, missing, failures: missing & False

    found = run(2, real, tmp_path / "set", fault=lose)
    assert sorted(found) == [0, 1] and all(len(rest) == 1 for rest in found.values()), found
    assert ("synthetic images have gone from" in found[1][0]) == noticed, found
    assert "Rank 1 of 2 has been silent for" in found[0][0] + found[1][0] * (not noticed)


def test_ranks_that_want_other_images_of_a_finished_set_are_told_so(real, tmp_path, monkeypatch):
    """By the store that torchrun has for its ranks: nothing is to be made, so nobody waits for anybody."""
    import torch.distributed as dist

    os.environ.update(RANK="0", WORLD_SIZE="1")
    options = {"generator": FakeGenerator(), "root": tmp_path / "set"}
    AugConditionedSynthetic(ImageFolder(real), **options, num_per_class=6)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    torchrun = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}

    def seen_by(rank, num_per_class, **how):
        for name, value in ({"RANK": str(rank), "WORLD_SIZE": "3"} | torchrun).items():
            monkeypatch.setenv(name, value)
        return len(AugConditionedSynthetic(ImageFolder(real), num_per_class=num_per_class, **options, **how))

    assert [seen_by(rank, 6) for rank in (1, 0)] == [12, 12]
    assert seen_by(0, 2, generate=False) == 4, "a rank alone may look at a part of it"
    with pytest.raises(RuntimeError, match="Rank 1 of 3 makes other images of this set than this rank: all ranks must"):
        seen_by(2, 5)
    assert [seen_by(0, num) for num in (2, 3, 4)] == [4, 6, 8], "a rank that is ahead of the others"
    assert [seen_by(1, num) for num in (2, 3)] == [4, 6]
    with pytest.raises(RuntimeError, match="Rank 0 of 3"):
        seen_by(1, 6)
    del store
    monkeypatch.setattr(shards, "_STORE_TIMEOUT", shards._STORE_TIMEOUT / 10)
    assert seen_by(1, 5) == 10, "torchrun's store has gone"


def test_a_process_group_counts_before_the_environment(tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1)
    try:
        assert shards.from_environment({"RANK": "5", "WORLD_SIZE": "9"}) == (0, 1)
    finally:
        dist.destroy_process_group()


def test_every_rank_takes_its_own_device(monkeypatch):
    loaded = []
    monkeypatch.setattr("torch_augcond.generators.load_generator", lambda name, device: loaded.append((name, device)))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        dataset._load("tiny")
    monkeypatch.setenv("RANK", "0"), monkeypatch.setenv("WORLD_SIZE", "1")
    dataset._load("tiny")
    assert loaded == [("tiny", "cuda:0"), ("tiny", "cuda:1"), ("tiny", "cuda:0"), ("tiny", None)]
