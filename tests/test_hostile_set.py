"""What somebody tried in order to make a set fall apart: other data, other sets and other folders in its root."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from fakes import FakeGenerator, paint
from faults import contents, job_of, paint_sources, problems
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic
from torch_augcond.cli import main
from torch_augcond.cli.export import export_metadata
from torch_augcond.progress import silent
from torch_augcond.store import Corrupt, Store, escape_class, unescape_class
from torch_augcond.store.scan import OTHER_SET


@pytest.fixture
def real(tmp_path):
    paint_sources(tmp_path / "real")
    return tmp_path / "real"


@pytest.fixture
def other(tmp_path):
    """Other images of the same classes."""
    for name in ("cat", "dog"):
        for i in range(2):
            paint(tmp_path / "val" / name / f"{i}.png", f"val {name} {i}")
    return tmp_path / "val"


def names(root):
    return {path.stem for path in root.glob("*/*.png")}


# --- Another set in the root


def test_verify_takes_out_the_images_of_another_set(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    whole = contents(tmp_path / "set")
    job_of(real, tmp_path / "other", seed=7, num_per_class=4).make()
    shutil.copytree(tmp_path / "other" / "cat", tmp_path / "set" / "cat", dirs_exist_ok=True)
    found = problems(tmp_path / "set")
    assert found.keys() == {path.name for path in (tmp_path / "other" / "cat").iterdir()}
    assert set(found.values()) == {OTHER_SET}
    assert contents(tmp_path / "set") == whole
    assert len(os.listdir(tmp_path / "set.aside" / "foreign" / "cat")) == 4


def test_without_its_record_a_set_is_what_most_images_say(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    whole = contents(tmp_path / "set")
    job_of(real, tmp_path / "other", seed=7).make()
    for image in list((tmp_path / "other" / "cat").iterdir())[:4]:
        shutil.copy(image, tmp_path / "set" / "cat")
    (tmp_path / "set" / ".augcond.json").unlink()
    with pytest.raises(ValueError, match="`seed` is 0 there, but 7 here"):
        job_of(real, tmp_path / "set", seed=7)
    assert set(problems(tmp_path / "set").values()) == {OTHER_SET}
    job_of(real, tmp_path / "set").make()
    assert contents(tmp_path / "set") == whole


def test_verify_keeps_what_is_above_the_count_or_of_a_former_source(real, tmp_path):
    job_of(real, tmp_path / "set", num_per_class=9).make()
    paint(real / "cat" / "0.png", "another cat")
    assert not problems(tmp_path / "set")


# --- Other data in the root


def test_images_of_other_data_are_set_aside_with_a_word(real, other, tmp_path):
    job_of(real, tmp_path / "set").make()
    with pytest.warns(
        UserWarning, match="12 images of .*set were set aside in .*set.aside/stale, .* a `root` of its own"
    ):
        job_of(other, tmp_path / "set").make()
    with pytest.warns(UserWarning, match="12 images .* were set aside"):
        job_of(real, tmp_path / "set")
    assert len(names(tmp_path / "set")) == 12  # and came back


def test_an_image_that_has_gone_says_where_to(real, other, tmp_path):
    options = {"generator": FakeGenerator(), "root": tmp_path / "set", "num_per_class": 2}
    synthetic = AugConditionedSynthetic(ImageFolder(real), **options)
    path = Path(synthetic.samples[0][0])
    path.rename(tmp_path / path.name)
    with pytest.raises(FileNotFoundError, match="this image has gone from its set. Run again what made it") as gone:
        synthetic[0]
    assert gone.value.errno == errno.ENOENT and gone.value.filename == str(path)
    (tmp_path / path.name).rename(path)
    with pytest.warns(UserWarning, match="were set aside"):
        AugConditionedSynthetic(ImageFolder(other), **options)
    for look in (synthetic.__getitem__, synthetic.provenance):
        with pytest.raises(FileNotFoundError, match="set aside since the real images have changed or another dataset"):
            look(0)


@pytest.mark.parametrize("augmentation", ["real", "embed-cutmix", "cutmix"])
def test_a_source_that_cannot_be_read_just_now_takes_no_image_away(real, tmp_path, augmentation, recwarn):
    job_of(real, tmp_path / "set", augmentation=augmentation).make()
    before, source = names(tmp_path / "set"), real / "cat" / "1.png"
    source.rename(tmp_path / "away.png")
    source.symlink_to(tmp_path / "nowhere.png")
    paint(real / "dog" / "0.png", "another dog")  # this one is known to have changed
    job = job_of(real, tmp_path / "set", augmentation=augmentation)
    assert job.unreadable and not job.stale()
    gone = before - names(tmp_path / "set")
    assert gone == {path.stem for path in (tmp_path / "set.aside" / "stale" / "dog").iterdir()} and gone
    assert not (tmp_path / "set.aside" / "stale" / "cat").exists()


def test_images_that_go_during_a_run_are_missed(real, tmp_path, fake, capsys):
    def clear(*inputs, **options):
        if len(fake.batches) == 5:  # all cats are written
            shutil.rmtree(tmp_path / "set" / "cat")
        return FakeGenerator.generate(fake, *inputs, **options)

    fake.generate = clear
    argv = ["generate", str(real), "--num-per-class", "6", "--root", str(tmp_path / "set"), "--batch-size", "2"]
    assert main(argv) == 1
    assert "6 finished images have gone from" in capsys.readouterr().err
    assert sum(reason == "it is gone" for reason in problems(tmp_path / "set").values()) == 6
    assert main(argv) == 0 and not problems(tmp_path / "set")


# --- Other folders in the root, and no folder beside it


def test_a_disks_own_folder_is_no_class_and_stays(real, tmp_path):
    (tmp_path / "set" / "lost+found").mkdir(parents=True)
    job_of(real, tmp_path / "set").make()
    assert not problems(tmp_path / "set")
    assert (tmp_path / "set" / "lost+found").is_dir()
    assert unescape_class(escape_class("lost+found")) == "lost+found" != escape_class("lost+found")


def test_a_parent_that_cannot_be_written_is_named(real, tmp_path, monkeypatch):
    job_of(real, tmp_path / "set").make()
    paint(real / "cat" / "0.png", "another cat")
    mkdir = Path.mkdir

    def refuse(path, *args, **options):
        if ".aside" in str(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(
        OSError, match="`root` must lie in a folder that can be written, .*set.aside can't be made: Perm"
    ):
        job_of(real, tmp_path / "set")


# --- Dot-files lost


def test_without_its_dot_files_a_set_is_still_known(real, tmp_path, capsys):
    options = {"generator": FakeGenerator(), "root": tmp_path / "set", "num_per_class": 2}
    AugConditionedSynthetic(ImageFolder(real), **options)
    for path in (tmp_path / "set").glob(".augcond*"):
        path.unlink()
    assert main(["verify", str(tmp_path / "set")]) == 0
    assert main(["export", str(tmp_path / "set")]) == 0
    assert len(AugConditionedSynthetic(ImageFolder(real), generate=False, **options)) == 4
    with pytest.raises(ValueError, match="`seed` is 0 there, but 5 here"):
        AugConditionedSynthetic(ImageFolder(real), generate=False, seed=5, **options)
    assert not (tmp_path / "set" / ".augcond.json").exists()
    for name in ("cat", "dog"):
        for i in range(40):  # out of the few-shot regime
            paint(real / name / f"more {i}.png", f"more {name} {i}")
    with pytest.warns(UserWarning, match="were set aside"):
        grown = AugConditionedSynthetic(ImageFolder(real), **options)
    assert grown.settings.guidance_scale == 10.0


# --- Images that leave while a command reads


def test_export_leaves_out_what_has_gone_and_names_what_cannot_be_read(real, tmp_path, monkeypatch):
    job_of(real, tmp_path / "set").make()
    from torch_augcond.cli import export

    read, first = export.own_record, sorted((tmp_path / "set" / "cat").iterdir())[0]

    def gone(path, own):
        first.unlink(missing_ok=True)
        return read(path, own)

    monkeypatch.setattr(export, "own_record", gone)
    target, count = export_metadata(Store(tmp_path / "set"), silent)
    assert count == len(target.read_text("utf-8").splitlines()) == 11

    def refused(path, own):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(export, "own_record", refused)
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] Permission denied: '.*png'$"):
        export_metadata(Store(tmp_path / "set"), silent)
    assert target.read_text("utf-8").count("\n") == 11 and not list((tmp_path / "set").glob(".augcond-tmp*"))


def test_a_set_of_links_is_left_as_it_is(real, tmp_path, capsys):
    """As `snapshot_download` makes in the Hub's cache: elsewhere its links would lead nowhere."""
    job_of(real, tmp_path / "set").make()
    (tmp_path / "set").rename(tmp_path / "blobs")
    for path in (tmp_path / "blobs").rglob("*"):
        if path.is_file():
            link = tmp_path / "set" / path.relative_to(tmp_path / "blobs")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(path, link.parent))
    before = contents(tmp_path / "set")
    with pytest.raises(ValueError, match=r"json is a link, as in the Hub's cache or in git-annex. Fetch the set with"):
        job_of(real, tmp_path / "set")
    for argv in (["verify"], ["verify", "--dry-run"], ["export"]):
        assert main([*argv, str(tmp_path / "set")]) == 1
        assert "is a link, as in the Hub's cache" in capsys.readouterr().err
    config = tmp_path / "set" / ".augcond.json"
    (config.unlink(), shutil.copy(tmp_path / "blobs" / config.name, config))  # git-annex keeps dot-files as they are
    assert main(["verify", str(tmp_path / "set")]) == 1 and "png is a link, as in" in capsys.readouterr().err
    assert contents(tmp_path / "set") == before and not (tmp_path / "set.aside").exists()


def test_a_set_cloned_without_its_images_is_left_as_it_is(real, tmp_path, capsys):
    """As by git, where git-lfs isn't installed."""
    job_of(real, tmp_path / "set").make()
    for path in (tmp_path / "set").rglob("*.png"):
        path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 999\n")
    before = contents(tmp_path / "set")
    with pytest.raises(ValueError, match=r"png is a pointer of git-lfs. Run `git lfs pull` there"):
        job_of(real, tmp_path / "set")
    assert main(["verify", str(tmp_path / "set")]) == 1 and "git lfs pull" in capsys.readouterr().err
    assert contents(tmp_path / "set") == before and not (tmp_path / "set.aside").exists()


def test_images_of_another_size_are_refused(real, tmp_path):
    class Shrinking(FakeGenerator):
        """Makes smaller images once memory is short, and says so."""

        def generate(self, *inputs, **options):
            made = super().generate(*inputs, **options)
            self.image_size = 8
            return made

    job = job_of(real, tmp_path / "set", Shrinking())
    with pytest.raises(ValueError, match=r"must return a uint8 tensor of shape \(4, 3, 16, 16\), but got"):
        job.make(batch_size=4)
    assert not problems(tmp_path / "set")


def test_embeddings_of_another_dtype_are_others(real, tmp_path):
    generator = FakeGenerator()
    job_of(real, tmp_path / "set", generator).make()
    shutil.rmtree(tmp_path / "set" / "cat")
    generator.dtype, generator.encoded = torch.bfloat16, 0
    job_of(real, tmp_path / "set", generator).make()
    assert generator.encoded


def test_export_names_what_is_none_of_the_set(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    job_of(real, tmp_path / "other", seed=7).make()
    image = next((tmp_path / "other" / "cat").iterdir())
    for folder, reason in (("cat", OTHER_SET), ("dog", "it belongs to class 'cat'")):
        shutil.copy(image, tmp_path / "set" / folder)
        with pytest.raises(Corrupt, match=f"is damaged: {reason}"):
            export_metadata(Store(tmp_path / "set"), silent)
        (tmp_path / "set" / folder / image.name).unlink()


def test_a_damaged_image_never_replaces_a_whole_one_that_was_set_aside(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    store, image = Store(tmp_path / "set"), next((tmp_path / "set" / "cat").iterdir())
    data = image.read_bytes()
    store.set_aside(image, "stale")
    image.parent.mkdir(exist_ok=True)
    image.write_bytes(data[:-1])
    store.set_aside(image, "stale")
    aside = tmp_path / "set.aside" / "stale" / "cat"
    assert (aside / image.name).read_bytes() == data and len(list(aside.iterdir())) == 2


def test_verify_full_goes_on_where_an_image_has_gone(real, tmp_path, monkeypatch, capsys):
    job_of(real, tmp_path / "set").make()
    from torch_augcond.cli import commands

    read = commands.read_image

    def gone(path, key):
        path.unlink()
        return read(path, key)

    monkeypatch.setattr(commands, "read_image", gone)
    main(["verify", "--full", str(tmp_path / "set")])
    assert "other files read" in capsys.readouterr().out


# --- Generators of one's own


@pytest.mark.parametrize(
    "name, error",
    [(None, TypeError), (5, TypeError), ("", ValueError), ("\ud800", ValueError), ("x" * 9999, ValueError)],
)
def test_an_odd_fingerprint_claims_nothing(real, tmp_path, name, error):
    generator = FakeGenerator()
    generator.fingerprint = name
    with pytest.raises(error, match="`generator.fingerprint` must be a"):
        job_of(real, tmp_path / "set", generator)
    assert not (tmp_path / "set").exists()


def test_a_call_for_fewer_images_forgets_none(real, tmp_path):
    job_of(real, tmp_path / "set", num_per_class=9).make()
    stock = list((tmp_path / "set").glob(".augcond-stock-*"))
    job_of(real, tmp_path / "set", num_per_class=2).make()
    assert list((tmp_path / "set").glob(".augcond-stock-*")) == stock and len(stock) == 1
    for path in sorted((tmp_path / "set").glob("dog/*.png"))[:5]:
        path.unlink()
    assert list(problems(tmp_path / "set").values()) == ["it is gone"] * 5
    job_of(real, tmp_path / "set", num_per_class={"cat": 3}).make()
    job_of(real, tmp_path / "set", num_per_class=10).make(shard=(0, 8))
    assert list(problems(tmp_path / "set").values()) in (["it is gone"] * 5, ["it is gone"] * 4)
    job_of(real, tmp_path / "set", num_per_class=10).make()
    assert not problems(tmp_path / "set")


def test_what_was_set_aside_as_stale_is_not_gone(real, tmp_path):
    job_of(real, tmp_path / "set").make()
    paint(real / "cat" / "0.png", "another cat")
    with pytest.warns(UserWarning, match="were set aside"):
        job = job_of(real, tmp_path / "set")
    assert not problems(tmp_path / "set")
    job.make()
    shutil.rmtree(tmp_path / "set.aside")
    assert not problems(tmp_path / "set")


def test_verify_moves_no_photographs(real, tmp_path, capsys):
    """Synthetic images are merged with real ones by hand."""
    job_of(real, tmp_path / "set").make()
    merged = tmp_path / "merged"
    shutil.copytree(real, merged)
    for path in sorted((tmp_path / "set" / "cat").iterdir())[:3]:
        shutil.copy(path, merged / "cat")
    before = sorted(path for path in merged.rglob("*"))
    assert main(["verify", str(merged)]) == 1
    assert "must be an empty folder or a set made by this package, but" in capsys.readouterr().err
    assert sorted(path for path in merged.rglob("*")) == before and not (tmp_path / "merged.aside").exists()
