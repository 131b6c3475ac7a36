"""What a set remembers of its images, by somebody who takes some away at the wrong moment."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from fakes import FakeGenerator, paint
from faults import contents, job_of, paint_sources, problems

from torch_augcond import AugConditionedSynthetic
from torch_augcond.cli import main
from torch_augcond.sources import Sources, UnreadableImage
from torch_augcond.store import Store, disk, records
from torch_augcond.store.names import aside_of
from torch_augcond.store.records import Stock


@pytest.fixture
def real(tmp_path):
    paint_sources(tmp_path / "real")
    return tmp_path / "real"


def hiccup(sources, i, digest=None):
    raise UnreadableImage(sources.name(i), "OSError: the disk is away for a moment")


class Thief(FakeGenerator):
    """Takes three finished images away while the second batch is made."""

    root: Path

    def generate(self, image_embeds, *rest, **options):
        if len(self.batches) == 2:
            for path in sorted(self.root.glob("*/*.png"))[:3]:
                path.unlink()
        return super().generate(image_embeds, *rest, **options)


def test_images_that_failed_before_and_go_during_a_run_are_missed(real, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Sources, "image", hiccup)
        assert job_of(real, tmp_path / "set", augmentation="real").make().failed == 12
    thief = Thief()
    thief.root = tmp_path / "set"
    with pytest.warns(UserWarning, match="3 finished images have gone"):
        report = job_of(real, tmp_path / "set", thief, augmentation="real").make(batch_size=4)
    assert (report.made, report.gone) == (12, 3) and list(problems(tmp_path / "set").values()) == ["it is gone"] * 3


def test_a_failure_that_has_passed_doesnt_outlive_the_image(real, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Sources, "image", hiccup)
        job_of(real, tmp_path / "set", augmentation="real").make()
    job = job_of(real, tmp_path / "set", augmentation="real")
    assert job.make().made == 12 and not job.store.failures()
    path = min((tmp_path / "set" / "cat").iterdir())
    path.unlink()
    assert not job.store.failures() and not job.given_up().any() and job.owed(1).sum() == 1
    job.store.record_failure(next(recipe for recipe in job.plan if recipe.key == path.stem), "another reason")
    assert job.store.failures()[path.stem]["reason"] == "another reason"
    assert job.make(retry=False).made == 0 and job.make().made == 1


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_no_clock_tells_whether_a_failure_has_passed(real, tmp_path, ahead):
    """The file system's, which may be another machine's, is an hour ahead or behind."""
    job = job_of(real, tmp_path / "set")
    job.make()
    (path,) = (tmp_path / "set").glob(f"{Stock.prefix}*")
    os.utime(path, (path.stat().st_mtime + ahead,) * 2)
    gone = min((tmp_path / "set").glob("*/*.png"))
    gone.unlink()
    recipe = next(recipe for recipe in job.plan if recipe.key == gone.stem)
    job.store.record_failure(recipe, "it fails, and then the run is killed")
    assert list(job.store.failures()) == [recipe.key]
    assert job.make().made == 1
    gone.unlink()
    assert not job.store.failures(), "it has been made since"


def test_a_failure_has_passed_once_its_image_is_written_though_that_run_is_killed(real, tmp_path):
    job = job_of(real, tmp_path / "set")
    job.store.record_failure(job.plan[0], "it fails, and then the run is killed")
    job.store.record_failure(job.plan[1], "it fails, too")
    path = job.store.write(job.plan[0], torch.zeros(3, 16, 16, dtype=torch.uint8), {})
    path.unlink()
    assert list(job_of(real, tmp_path / "set").store.failures()) == [job.plan[1].key]


def test_failures_that_are_known_are_not_read_for_each_batch(real, tmp_path):
    """There may be hundreds of files of them; what others add meanwhile is seen."""
    store, other = (job_of(real, tmp_path / "set").store for _ in range(2))
    plan = job_of(real, tmp_path / "set").plan
    store.record_failure(plan[0], "one")
    assert list(store.failures()) == [plan[0].key]
    (path,) = (tmp_path / "set").glob(".augcond-failures-*")
    status, data = path.stat(), path.read_bytes()
    path.write_bytes(data.replace(b'"one"', b'"ONE"'))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.failures()[plan[0].key]["reason"] == "one" and not other.failures(), "only the other one reads it"
    path.write_bytes(data)
    other.record_failure(plan[1], "another")
    assert list(store.failures()) == [plan[0].key, plan[1].key]
    store.write(plan[1], torch.zeros(3, 16, 16, dtype=torch.uint8), {}).unlink()
    assert list(store.failures()) == list(other.failures()) == [plan[0].key]
    path.unlink()
    assert not store.failures()


def test_what_fails_again_is_found_though_the_clock_was_set_back(real, tmp_path, monkeypatch):
    now = records.time.time()
    monkeypatch.setattr(Sources, "image", hiccup)
    for hours in (1, 0):
        monkeypatch.setattr(records.time, "time", lambda hours=hours: now + 3600 * hours)
        report = job_of(real, tmp_path / "set", augmentation="real").make()
        assert (report.failed, report.gone) == (12, 0)


def test_of_two_lists_written_at_once_none_is_lost(real, tmp_path, monkeypatch):
    job = job_of(real, tmp_path / "set", num_per_class={"cat": 4})
    other = job_of(real, tmp_path / "set", num_per_class={"dog": 4})
    really = records.publish

    def late(*inputs, **options):
        """Between reading the old list and writing the new one, another process ends."""
        monkeypatch.setattr(records, "publish", really)
        other.make()
        really(*inputs, **options)

    job_of(real, tmp_path / "set", num_per_class={"cat": 2}).make()
    monkeypatch.setattr(records, "publish", late)
    job.make()
    paths = list((tmp_path / "set").glob("*/*.png"))
    for path in paths:
        path.unlink()
    assert len(paths) == 8 and list(problems(tmp_path / "set").values()) == ["it is gone"] * 8


def test_lists_become_one_again(real, tmp_path):
    job = job_of(real, tmp_path / "set")
    job.make()
    whole, (path,) = contents(tmp_path / "set"), (tmp_path / "set").glob(f"{Stock.prefix}*")
    job_of(real, tmp_path / "few", num_per_class=3).make()
    shutil.copy(*(tmp_path / "few").glob(f"{Stock.prefix}*"), tmp_path / "set")
    path.with_name(f"{Stock.prefix}0").write_bytes(b"damaged")
    assert len(list((tmp_path / "set").glob(f"{Stock.prefix}*"))) == 3
    job.make()
    assert contents(tmp_path / "set") == whole | {f"{Stock.prefix}0": b"damaged"}
    assert problems(tmp_path / "set") == {f"{Stock.prefix}0": "its digest does not match its content"}
    assert contents(tmp_path / "set") == whole


@pytest.mark.parametrize("stop", [False, True])
def test_what_is_set_aside_on_another_disk_is_there_before_it_is_not_here(real, tmp_path, monkeypatch, stop):
    """The root is a mount of its own, and the place beside it isn't."""
    job_of(real, tmp_path / "set").make()
    whole, done = contents(tmp_path / "set"), []
    really = {name: getattr(os, name) for name in ("replace", "fsync", "unlink")}

    def replace(source, target):
        if (".aside" in os.fspath(target)) != (".aside" in os.fspath(source)):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        really["replace"](source, target)

    def noted(name):
        def call(*inputs, **options):
            done.append(name)
            if stop and name == "unlink":
                raise KeyboardInterrupt
            return really[name](*inputs, **options)

        return call

    def unlink(path, missing_ok=False):
        if missing_ok or ".aside" in str(path):
            return really["unlink"](path) if path.exists() else None
        return noted("unlink")(path)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(disk, "is_regular", lambda path: done.append("begin") or True)
    monkeypatch.setattr(os, "fsync", noted("fsync"))
    monkeypatch.setattr(Path, "unlink", lambda path, **options: unlink(path, **options))
    path = min((tmp_path / "set" / "cat").iterdir())
    paint(real / "cat" / "0.png", "another cat")
    try:
        with pytest.warns(UserWarning, match="were set aside"):
            job_of(real, tmp_path / "set")
    except KeyboardInterrupt:
        assert stop
    start = done.index("begin")
    assert "".join(name[0] for name in done[start:]).startswith("bffu")  # file, folder, and only then
    monkeypatch.undo()
    for i in range(3):
        paint(real / "cat" / f"{i}.png", f"cat {i}")
    job_of(real, tmp_path / "set").make()
    assert contents(tmp_path / "set") == whole and path.exists()


def test_photographs_that_are_named_after_digests_are_no_set(real, tmp_path):
    for i in range(3):
        paint(tmp_path / "photographs" / "cat" / f"{i:032x}.png", f"cat {i}")
    before = contents(tmp_path / "photographs")
    with pytest.raises(ValueError, match="or a set made by this package, but .*photographs holds 'cat/0{32}.png'"):
        job_of(real, tmp_path / "photographs")
    assert contents(tmp_path / "photographs") == before and not (tmp_path / "photographs.aside").exists()


def test_one_process_tries_again_what_was_made_and_damaged(real, tmp_path, monkeypatch):
    from torchvision.datasets import ImageFolder

    options = {"generator": FakeGenerator(), "root": tmp_path / "set", "num_per_image": 1}
    with monkeypatch.context() as patch:
        patch.setattr(Sources, "image", hiccup)
        job_of(real, tmp_path / "set", num_per_class=None, num_per_image=1).make()
    synthetic = AugConditionedSynthetic(ImageFolder(real), **options)
    assert len(synthetic) == 6
    Path(synthetic.samples[0][0]).unlink()
    assert len(AugConditionedSynthetic(ImageFolder(real), **options)) == 6


def test_nothing_is_set_aside_on_the_disk_of_a_container(real, tmp_path, monkeypatch):
    """The root is a volume that is mounted, and the place beside it goes with the container."""
    root = tmp_path / "set"
    job_of(real, root).make()
    whole = contents(root)
    monkeypatch.setattr(os.path, "ismount", lambda path: os.fspath(path) == os.fspath(root))
    paint(real / "cat" / "0.png", "another cat")
    told = f"`root` must be a folder on its disk, but {root} is where that is mounted: .* or make that place yourself"
    with pytest.raises(OSError, match=told):
        job_of(real, root)
    assert contents(root) == whole and not aside_of(root).exists()
    aside_of(root).mkdir()
    with pytest.warns(UserWarning, match="were set aside"):
        job_of(real, root)


def test_nor_beside_a_folder_of_the_same_disk_that_is_mounted(real, tmp_path):
    root, volume = tmp_path / "a set", tmp_path / "volume"
    (root.mkdir(), volume.mkdir())
    mount = subprocess.run(["mount", "--bind", volume, root], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"needs the right to mount: {mount.stderr.strip()}")
    try:
        job_of(real, root).make()
        paint(real / "cat" / "0.png", "another cat")
        with pytest.raises(OSError, match="`root` must be a folder on its disk"):
            job_of(real, root)
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def test_only_what_was_copied_to_another_disk_goes(tmp_path, monkeypatch):
    """While one process sets a damaged image aside, another has done so already, and a third has made it again."""
    path, aside = tmp_path / "image", tmp_path / "aside"
    path.write_bytes(b"damaged")
    aside.mkdir()
    really = os.replace

    def replace(source, target):
        if source == path:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        (tmp_path / "new").write_bytes(b"whole")
        really(tmp_path / "new", path)
        really(source, target)

    monkeypatch.setattr(os, "replace", replace)
    disk.move(path, aside / "image", aside)
    assert path.read_bytes() == b"whole" and (aside / "image").read_bytes() == b"damaged"


def test_an_image_that_is_taken_back_and_set_aside_again_at_once_is_somewhere(real, tmp_path, monkeypatch):
    """One process, whose edit was taken back, is about to remove it from the shelf; for another one it's edited."""
    job_of(real, tmp_path / "set").make()
    job = job_of(real, tmp_path / "set")
    path = min((tmp_path / "set" / "cat").iterdir())
    job.store.set_aside(path, "stale")
    really = {name: getattr(os, name) for name in ("unlink", "replace")}

    def interrupted(name):
        def call(*inputs, **options):
            if ".aside" in os.fspath(inputs[0]) and path.exists():
                monkeypatch.undo()
                job.store.set_aside(path, "stale")
            return really[name](*inputs, **options)

        return call

    for name in really:
        monkeypatch.setattr(os, name, interrupted(name))
    job.store.restore(job.plan)
    monkeypatch.undo()
    assert path.exists() or (job.store.aside / "stale" / "cat" / path.name).exists()


@pytest.mark.parametrize("kind", ["pipe", "bad sector", "folder with a pipe"])
def test_verify_goes_on_where_something_cannot_be_moved_to_another_disk(real, tmp_path, monkeypatch, capsys, kind):
    job_of(real, tmp_path / "set").make()
    first, *_, last = sorted((tmp_path / "set").glob("*/*.png"))
    last.write_bytes(b"damaged")
    first.unlink()
    pipe = first / "pipe" if kind.startswith("folder") else first
    pipe.parent.mkdir(exist_ok=True)
    first.write_bytes(b"half") if kind == "bad sector" else os.mkfifo(pipe)
    really = os.replace, os.rename, shutil.copyfileobj

    def across(move):
        def call(source, target):
            if str(tmp_path / "set") + os.sep in os.fspath(source):
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            move(source, target)

        return call

    def copy(source, file):
        if source.name == str(first):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        really[2](source, file)

    monkeypatch.setattr(os, "replace", across(really[0]))
    monkeypatch.setattr(os, "rename", across(really[1]))
    monkeypatch.setattr(shutil, "copyfileobj", copy)
    assert main(["verify", str(tmp_path / "set")]) == 1
    told = capsys.readouterr().out
    assert f"{first}: " in told and "is on another disk" in told and "remove it yourself" in told
    assert os.path.lexists(first) and not last.exists() and "2 damaged or gone" in told
    assert [path.name for path in (tmp_path / "set.aside" / "corrupt").rglob("*") if not path.is_dir()] == [last.name]


def test_of_two_names_of_one_file_the_one_that_is_set_aside_goes(real, tmp_path):
    """As tools that save space make of two equal files."""
    job_of(real, tmp_path / "set").make()
    path = min((tmp_path / "set" / "cat").iterdir())
    shelf = tmp_path / "set.aside" / "stale" / "cat" / path.name
    shelf.parent.mkdir(parents=True)
    os.link(path, shelf)
    assert Store(tmp_path / "set").set_aside(path, "stale")
    assert shelf.exists() and not path.exists()


def test_lists_that_are_joined_while_verify_looks_are_read_all_the_same(real, tmp_path, monkeypatch):
    job_of(real, tmp_path / "set").make()
    min((tmp_path / "set").glob("*/*.png")).unlink()
    really = records.read_regular

    def late(path, limit):
        monkeypatch.undo()
        path.rename(path.with_name(f"{Stock.prefix}joined"))
        return really(path, limit)

    monkeypatch.setattr(records, "read_regular", late)
    assert list(problems(tmp_path / "set").values()) == ["it is gone"]


@pytest.mark.parametrize("state", ["whole", "damaged"])
def test_what_lies_on_the_shelf_as_well_is_missed(real, tmp_path, capsys, state):
    root, source = tmp_path / "set", real / "cat" / "0.png"
    job_of(real, root).make()
    content = source.read_bytes()
    paint(source, "edited")
    job_of(real, root).make()
    source.write_bytes(content)
    shelf = sorted((tmp_path / "set.aside" / "stale" / "cat").glob("*.png"))
    assert shelf
    for path in shelf:
        if state == "whole":
            shutil.copy(path, root / "cat" / path.name)
        else:
            path.write_bytes(path.read_bytes()[:-9])
    job_of(real, root).make()
    kept = "surplus" if state == "whole" else "corrupt"
    assert {path.name[:36] for path in (tmp_path / "set.aside" / kept / "cat").iterdir()} == {p.name for p in shelf}
    for path in shelf:
        (root / "cat" / path.name).unlink()
    assert main(["verify", str(root)]) == 1
    assert f"{len(shelf)} damaged or gone" in capsys.readouterr().out
