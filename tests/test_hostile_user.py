"""What somebody tried in order to lose, damage or falsify an image."""

import errno
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from fakes import FakeGenerator, paint
from faults import contents, job_of, paint_sources, problems
from torch.utils.data import Dataset, StackDataset
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic, shards
from torch_augcond.dataset import _samples
from torch_augcond.store import Store, disk, scan, turns
from torch_augcond.store.disk import TEMP_PREFIX, seal_with
from torch_augcond.store.imagefile import encode


@pytest.fixture
def real(tmp_path):
    paint_sources(tmp_path / "real")
    return tmp_path / "real"


class Labelled(Dataset):
    def __init__(self, pairs):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        return self.pairs[i][0]


@pytest.mark.parametrize("augmentation", ["real", "embed-cutmix", "cutmix"])
def test_sources_edited_during_a_run_make_no_wrong_image(real, tmp_path, augmentation):
    """Their contents were hashed when the run began; what is read later must still be that."""
    job = job_of(real, tmp_path / "set", augmentation=augmentation)
    for i in range(3):
        paint(real / "cat" / f"{i}.png", f"another {i}")
    report = job.make()
    assert (report.made, report.failed) == (6, 6)
    assert all("has changed since this run began" in record["reason"] for record in job.store.failures().values())
    paint_sources(real)
    job_of(real, tmp_path / "set", augmentation=augmentation).make()
    job_of(real, tmp_path / "undisturbed", augmentation=augmentation).make()
    assert contents(tmp_path / "set") == contents(tmp_path / "undisturbed")


def test_a_class_folder_that_becomes_a_link_takes_nothing_outside(real, tmp_path):
    (tmp_path / "outside").mkdir()
    job = job_of(real, tmp_path / "set")
    job.make(batch_size=4)
    folder = job.store.path("cat", "").parent
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="a class folder must not be a link"):
        job.make(batch_size=4)
    assert not os.listdir(tmp_path / "outside")


def test_a_root_among_the_real_images_is_refused(real, tmp_path):
    """It would be a class of the next run, and its images the sources of others."""
    (tmp_path / "link").symlink_to(real)
    (tmp_path / "subset").mkdir()
    (tmp_path / "subset" / "cat").symlink_to(real / "cat")
    for data, root in [
        (real, real),
        (real, real / "synthetic"),
        (real, real / "cat" / "synthetic"),
        (real, tmp_path / "link" / "synthetic"),
        (tmp_path / "subset", real / "cat" / "synthetic"),
    ]:
        with pytest.raises(ValueError, match="`root` must lie outside of the real images"):
            job_of(data, root)
    with pytest.raises(ValueError, match="`root` must not keep things aside among the real images"):
        job_of(real.rename(tmp_path / "set.aside"), tmp_path / "set")


def test_real_images_within_a_root_or_a_wrapper_are_found(real, tmp_path):
    """`verify` would take them away; and a wrapper reads the same folder."""
    job_of(real, tmp_path / "set").make()
    real.rename(tmp_path / "set" / "real")
    with pytest.raises(ValueError, match="`root` must not hold the real images"):
        job_of(tmp_path / "set" / "real", tmp_path / "set")
    (tmp_path / "set" / "real").rename(real)
    wrapped = StackDataset(ImageFolder(real), [0] * 6)
    with pytest.raises(ValueError, match="`root` must lie outside of the real images"):
        AugConditionedSynthetic(Labelled(wrapped), root=real / "synthetic", generator=FakeGenerator())


def test_a_set_as_data_is_a_warning(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    with pytest.warns(UserWarning, match="`dataset` holds synthetic images"):
        job_of(tmp_path / "set", tmp_path / "of images")


def test_what_a_set_keeps_aside_is_no_place_for_another(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    for root in ("set.aside", "set.aside/stale"):
        with pytest.raises(ValueError, match="`root` must not be where another set keeps things aside"):
            job_of(real, tmp_path / root)
    job_of(real, tmp_path / "other.aside").make()
    with pytest.raises(ValueError, match="`root` must have room beside it for what is set aside"):
        job_of(real, tmp_path / "other")


def test_a_root_is_the_folder_that_its_dots_lead_to(real, tmp_path):
    job = job_of(real, f"{tmp_path}/set/inner/..")
    assert job.store.root == tmp_path / "set" and job.make().made == 12


def test_images_that_went_without_a_failure_are_not_called_failed(real, tmp_path):
    job = job_of(real, tmp_path / "set")
    job.make()
    os.remove(next((tmp_path / "set").glob("cat/*.png")))
    with pytest.raises(
        RuntimeError, match="1 of 12 synthetic images have gone from .*: another run with other sources"
    ):
        _samples(job)


def test_the_cache_among_the_real_images_is_refused(real, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(real / "cache"))
    with pytest.raises(ValueError, match="`root` must lie outside of the real images"):
        job_of(real, None)


def test_a_set_is_no_class_and_no_place_for_another(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    with pytest.raises(ValueError, match="`root` must lie outside of other sets, but .* is inside"):
        job_of(real, tmp_path / "set" / "seed1")
    before = contents(tmp_path / "set")
    with pytest.raises(ValueError, match="`root` must lie outside of the real images"):
        job_of(tmp_path / "set", tmp_path / "set")
    with pytest.raises(ValueError, match="`dataset` must hold real images, but 'set' in .* is a set of synthetic ones"):
        job_of(tmp_path, tmp_path.parent / "other")
    assert contents(tmp_path / "set") == before


def test_a_class_called_otherwise_is_another_set(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    before = contents(tmp_path / "set")
    with pytest.raises(ValueError, match="the prompt of class 'cat' is 'a photo of a cat', not 'a photo of a tabby'"):
        job_of(real, tmp_path / "set", class_names={"cat": "tabby"})
    assert contents(tmp_path / "set") == before


def test_a_note_of_an_earlier_process_of_this_number_binds_nobody(real, tmp_path):
    """In a container, each run may be process 1."""
    job = job_of(real, tmp_path / "set")
    mine = disk.temp_path(tmp_path / "set", turns._MARK)
    assert not disk.writer_is_dead(mine.name)
    start, mark, _ = mine.name.partition(turns._MARK)
    Path(mine.parent, start + mark + "0" * 16).write_bytes(job.plan.keys.tobytes())
    assert job.make().made == 12


def test_verify_removes_the_heartbeats_of_who_is_gone(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    beat = shards.beat_path(tmp_path / "set", (0, 2))
    beat.touch()
    list(Store(tmp_path / "set").verify())
    assert beat.exists()
    os.utime(beat, (time.time() - 60,) * 2)
    list(Store(tmp_path / "set").verify())
    assert not beat.exists()


def test_a_class_without_a_readable_image_is_missed(real, tmp_path):
    from torch_augcond import AugConditionedSynthetic

    for path in (real / "cat").iterdir():
        path.unlink()
        os.mkfifo(path)
    with (
        pytest.warns(UserWarning, match="can't be read"),
        pytest.raises(RuntimeError, match="none of the real images of class 'cat' can be read"),
    ):
        AugConditionedSynthetic(ImageFolder(real), generator=FakeGenerator(), root=tmp_path / "set", num_per_class=2)


@pytest.mark.parametrize(
    "lines", [b"5", b"[]", b'{"key": 3}', b'{"time": 1.0, "key": "..", "class_name": 5, "prompt": "", "reason": ""}']
)
def test_failures_that_nobody_wrote_are_left_out(real, tmp_path, lines):
    job = job_of(real, tmp_path / "set")
    (tmp_path / "set" / ".augcond-failures-0.jsonl").write_bytes(seal_with(lines, {"failures": 1}))
    assert job.store.failures() == {} and job.make().made == 12


@pytest.mark.parametrize("record", [{}, {"folders": 5, "extension": "png"}, {"folders": [[1]], "extension": "png"}])
def test_a_stock_that_nobody_took_misses_nothing(real, tmp_path, record):
    job_of(real, tmp_path / "set")
    (tmp_path / "set" / ".augcond-stock-0").write_bytes(seal_with(bytes(80), record))
    assert not problems(tmp_path / "set")


@pytest.mark.parametrize("ordinal", [-5, 2**40])
def test_a_record_with_an_impossible_number_costs_neither_memory_nor_the_run(real, tmp_path, ordinal):
    job_of(real, tmp_path / "set")
    (tmp_path / "set" / "cat").mkdir()
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    record = {"key": "0" * 32, "class_name": "cat", "ordinal": ordinal}
    (tmp_path / "set" / "cat" / ("0" * 32 + ".png")).write_bytes(encode(image, record, "png"))
    assert job_of(real, tmp_path / "set").make().made == 12
    assert len(list((tmp_path / "set" / "cat").iterdir())) == 6


def test_a_note_from_the_future_binds_nobody(real, tmp_path):
    job = job_of(real, tmp_path / "set")
    note = tmp_path / "set" / f"{TEMP_PREFIX}elsewhere-1{turns._MARK}0"
    note.write_bytes(job.plan.keys.tobytes())
    os.utime(note, (time.time() + 10**8,) * 2)
    assert job.make().made == 12


def test_waiting_for_others_is_said_once(real, tmp_path, monkeypatch):
    job = job_of(real, tmp_path / "set")
    monkeypatch.setattr(turns, "POLL_SECONDS", 0)
    note = tmp_path / "set" / f"{TEMP_PREFIX}elsewhere-1{turns._MARK}0"
    note.write_bytes(job.plan.keys[:5].tobytes())
    passes = iter(job.store.turns(job.plan, range(12), 4))
    assert len(list(next(passes))) == 7
    with pytest.warns(UserWarning, match="5 images are being made by other processes: waiting for them") as caught:
        left = [list(next(passes)) for _ in range(100)]
    assert len(caught) == 1 and not any(left)


@pytest.mark.parametrize("code, found", [(errno.EIO, True), (errno.EACCES, False), (errno.ESTALE, False)])
def test_what_may_not_be_read_is_not_taken_for_damaged(real, tmp_path, monkeypatch, code, found):
    """A bad sector is damage; another user's file or a network that is down is an error, and nothing is moved."""
    job_of(real, tmp_path / "set").make()
    whole = contents(tmp_path / "set")

    def refuse(path, key):
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(scan, "check", refuse)
    if found:
        assert set(problems(tmp_path / "set", repair=False).values()) == {"it can't be read (Input/output error)"}
    else:
        with pytest.raises(OSError, match=os.strerror(code)):
            problems(tmp_path / "set")
    assert contents(tmp_path / "set") == whole


def test_swapped_moved_and_copied_images_are_all_found(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    whole, cats = contents(tmp_path / "set"), sorted((tmp_path / "set" / "cat").iterdir())
    one, other = cats[0].read_bytes(), cats[1].read_bytes()
    cats[0].write_bytes(other), cats[1].write_bytes(one)
    shutil.copy(cats[2], tmp_path / "set" / "dog")
    cats[3].rename(cats[3].with_suffix(".jpg"))
    cats[4].rename(cats[4].with_stem("f" * 32))
    found = [path for path, reason in Store(tmp_path / "set").verify() if reason]
    assert len(found) == 7  # two of them are gone under their own names
    job_of(real, tmp_path / "set").make()
    assert contents(tmp_path / "set") == whole


def test_what_only_an_image_folder_sees_is_set_aside(real, tmp_path):
    """torchvision lists hidden folders as classes, and hidden files as images."""
    job_of(real, tmp_path / "set").make()
    whole = contents(tmp_path / "set")
    (tmp_path / "set" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "set" / "cat" / "._0.png").write_bytes(b"")
    (tmp_path / "set" / "cat" / ".DS_Store").write_bytes(b"")  # seen by nobody
    assert sorted(problems(tmp_path / "set")) == ["._0.png", ".ipynb_checkpoints"]
    assert contents(tmp_path / "set") == whole | {"cat/.DS_Store": b""}
    assert ImageFolder(tmp_path / "set").classes == ["cat", "dog"]
