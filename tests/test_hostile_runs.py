"""What somebody tried on runs under way: other folders, machines, containers and ranks."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import FakeGenerator
from faults import FORK, job_of, paint_sources, problems

from torch_augcond import shards
from torch_augcond.cli.export import export_metadata
from torch_augcond.progress import silent
from torch_augcond.store import disk, turns


@pytest.fixture
def real(tmp_path):
    paint_sources(tmp_path / "real")
    return tmp_path / "real"


def images(root):
    return list(root.glob("*/*.png"))


def at_third_batch(folder, act):
    """A generator that does something before its third batch of two, once the first two are in the folder."""
    generator = FakeGenerator()

    def generate(*inputs, **options):
        if len(generator.batches) == 2:
            deadline = time.monotonic() + 60
            while len(images(folder)) < 4 and time.monotonic() < deadline:
                time.sleep(0.01)
            act()
        return FakeGenerator.generate(generator, *inputs, **options)

    generator.generate = generate
    return generator


# --- A root that becomes another folder


def test_a_root_that_comes_to_lead_to_another_set_is_left_alone(real, tmp_path):
    job_of(real, tmp_path / "two", seed=5, num_per_class=2).make()
    before, root = set(images(tmp_path / "two")), tmp_path / "now"
    (tmp_path / "one").mkdir()
    root.symlink_to(tmp_path / "one")

    def turn():
        root.unlink()
        root.symlink_to(tmp_path / "two")

    job = job_of(real, root, at_third_batch(tmp_path / "one", turn))
    with pytest.raises(RuntimeError, match="another one now: `root` must hold one set, but .* `seed` is 5 there"):
        job.make(batch_size=2)
    assert set(images(tmp_path / "two")) == before and not problems(tmp_path / "two")
    assert len(images(tmp_path / "one")) == 4


def test_a_root_that_is_put_elsewhere_ends_the_run(real, tmp_path):
    def move():
        (tmp_path / "set").rename(tmp_path / "kept")
        (tmp_path / "set").mkdir()

    job = job_of(real, tmp_path / "set", at_third_batch(tmp_path / "set", move))
    with pytest.raises(RuntimeError, match="another one now: .* holds no set of images"):
        job.make(batch_size=2)
    assert not images(tmp_path / "set") and len(images(tmp_path / "kept")) == 4


@pytest.mark.parametrize("how", ["emptied", "made anew"])
def test_a_root_that_becomes_another_set_in_its_place_is_left_alone(real, tmp_path, how):
    root = tmp_path / "set"

    def start_again():
        if how == "made anew":
            shutil.rmtree(root)
        for path in root.iterdir() if root.exists() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        job_of(real, root, seed=5, num_per_class=2).make()

    job = job_of(real, root, at_third_batch(root, start_again))
    with pytest.raises(RuntimeError, match="another one now: `root` must hold one set, but .* `seed` is 5 there"):
        job.make(batch_size=2)
    assert not problems(root) and len(images(root)) == 4


def test_a_root_that_is_replaced_by_its_copy_is_filled(real, tmp_path):
    """Some network file systems number their folders anew."""

    def copy():
        (tmp_path / "set").rename(tmp_path / "kept")
        shutil.copytree(tmp_path / "kept", tmp_path / "set")

    job = job_of(real, tmp_path / "set", at_third_batch(tmp_path / "set", copy))
    assert job.make(batch_size=2).made == 12 and len(images(tmp_path / "set")) == 12


# --- Processes of other machines and containers, and stopped ones


def stop_at_third(real, root):
    job_of(real, root, at_third_batch(root, lambda: os.kill(os.getpid(), signal.SIGSTOP))).make(batch_size=2)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be stopped")
def test_a_stopped_process_keeps_nobody_waiting_for_long(real, tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "LEASE_SECONDS", 1.0)
    process = FORK.Process(target=stop_at_third, args=(real, tmp_path / "set"))
    process.start()
    try:
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        assert job_of(real, tmp_path / "set").make(batch_size=2).made == 12 - 4
    finally:
        process.kill()


def test_who_is_at_work_renews_its_note(real, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BEAT_SECONDS", 0.02)
    job = job_of(real, tmp_path / "set")
    with job.store.turns(job.plan, [0, 1], 2) as mine:
        assert len(list(next(iter(mine)))) == 2
        [note] = (path for path in (tmp_path / "set").iterdir() if turns._MARK in path.name)
        os.utime(note, (0, 0))
        deadline = time.monotonic() + 60
        while note.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert note.stat().st_mtime > 0
        assert job_of(real, tmp_path / "set").store.turns(job.plan, [0], 1)._others() == {
            key.tobytes() for key in job.plan.keys[:2]
        }
    assert not note.exists()


def test_containers_of_one_host_name_are_told_apart(tmp_path):
    """Each counts its processes anew: the number of one that lives outside says nothing inside."""
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
    program = "import sys; from torch_augcond.store import disk; print(disk.host(), disk.writer_is_dead(sys.argv[1]))"
    mine = disk.temp_path(tmp_path).name
    try:
        run = subprocess.run(
            [*inside, program, mine], capture_output=True, text=True, cwd=Path(disk.__file__).parents[2]
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if "unshare" in run.stderr:
        pytest.skip("this user may make no container")
    host, dead = run.stdout.split()
    assert host != disk.host() == disk.host() and dead == "False"


# --- Names of folders


def test_one_set_keeps_things_aside_in_one_place_by_whatever_link_it_is_reached(real, tmp_path):
    (tmp_path / "big" / "set").mkdir(parents=True)
    link, kept = tmp_path / "link", real / "cat" / "0.png"
    link.symlink_to(tmp_path / "big" / "set")
    job_of(real, link).make()
    before, pixels = {path.name for path in images(link)}, kept.read_bytes()
    shutil.copy(real / "dog" / "0.png", kept)
    with pytest.warns(UserWarning, match="link were set aside in .*/big/set.aside/stale"):
        job_of(real, link).make()
    assert os.path.isdir(tmp_path / "big" / "set.aside" / "stale") and not os.path.exists(f"{link}.aside")
    kept.write_bytes(pixels)
    with pytest.warns(UserWarning, match="were set aside"):
        assert job_of(real, tmp_path / "big" / "set").make().made == 0
    assert {path.name for path in images(link)} == before


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="every name of a folder is Unicode there")
def test_a_root_whose_name_is_not_unicode_keeps_its_caches(real, tmp_path, recwarn):
    root = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    job_of(real, root, num_per_class=9).make()
    again = FakeGenerator()
    assert job_of(real, root, again, num_per_class=12).make().made == 6 and again.encoded == 0
    assert not problems(root) and not recwarn.list


def test_a_class_called_as_the_exported_file_is_another_folder(real, tmp_path):
    (real / "cat").rename(real / "metadata.jsonl")
    job = job_of(real, tmp_path / "set")
    job.make()
    export_metadata(job.store, progress=silent)
    assert not problems(tmp_path / "set") and len(images(tmp_path / "set")) == 12
