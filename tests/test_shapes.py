"""Data of every shape, and data that changes: what is defined, and that nothing divides by zero."""

import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, paint, paint_folder
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic, MixedRealSyntheticSampler
from torch_augcond.sources import images
from torch_augcond.sources.images import hash_bytes


def make(dataset, root, **options):
    options = {"generator": FakeGenerator(), "prompt": lambda name: f"class {name}", **options}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "classes with one real image only")
        return AugConditionedSynthetic(dataset, root=root, **options)


class Pictures(list):
    """Images and labels, which a sampler that balances classes can see."""

    def __init__(self, labels):
        super().__init__((Image.new("RGB", (8, 8), (i, 255 - i, 7)), label) for i, label in enumerate(labels))
        self.targets = list(labels)


def loaded(real, synthetic, **options):
    """The labels of an epoch of mixed batches."""
    train = ConcatDataset([real, synthetic])
    loader = DataLoader(train, 4, sampler=MixedRealSyntheticSampler(train, **options), collate_fn=list)
    return [label for batch in loader for _, label in batch]


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        [0],
        [0, 1],
        [7, 7, 1000],
        [np.int64(3), np.uint8(3), np.int32(5)],
        [torch.tensor(1), torch.tensor(0)],
        [2**40, 0],
    ],
)
def test_labels_that_are_taken(tmp_path, labels):
    """One image in a class, not contiguous, ints of numpy and torch: kept as they are."""
    real = Pictures(labels)
    synthetic = make(real, tmp_path / "set", num_per_class=3)
    wanted = sorted({int(label) for label in labels})
    assert synthetic.targets == [label for label in wanted for _ in range(3)]
    assert [synthetic[i][1] for i in range(len(synthetic))] == synthetic.targets
    assert {type(label) for label in synthetic.targets} == {int}
    assert len(ImageFolder(tmp_path / "set")) == 3 * len(wanted)


@pytest.mark.parametrize(
    "labels, error, message",
    [
        (["cat", 0], TypeError, r"labels must be ints, but got 'cat' \(str\) at dataset\[0\].*Map them to ints"),
        ([0, 2**63], ValueError, "labels must be 0 or more and fit int64, but got 9223372036854775808 at"),
        ([2**70, 0], ValueError, r"labels must be .* fit int64, but got 1180591620717411303424 at dataset\[0\]"),
        ([0, -1], ValueError, r"labels must be 0 or more .* got -1 at dataset\[1\].*Leave unlabelled images out"),
        ([0, 1.0], TypeError, "labels must be ints, but got 1.0"),
        ([True, False], TypeError, r"labels must be ints, but got True \(bool\)"),
        ([None], TypeError, "labels must be ints, but got None"),
        ([], ValueError, "`dataset` must hold at least one image, but got an empty one"),
    ],
)
def test_labels_that_are_refused(tmp_path, labels, error, message):
    with pytest.raises(error, match=message):
        make(Pictures(labels), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_an_empty_class_stays_a_class_without_images(tmp_path):
    folder = paint_folder(tmp_path / "real", {"cat": 2, "eel": 1})
    (folder / "dog").mkdir()
    real = ImageFolder(folder, allow_empty=True)
    synthetic = make(real, tmp_path / "set", num_per_class=2)
    assert synthetic.classes == ["cat", "dog", "eel"] and synthetic.targets == [0, 0, 2, 2]
    assert loaded(real, synthetic, class_balanced=True)
    with pytest.raises(ValueError, match="`num_per_class` must be keyed by class names.*'dog'"):
        make(real, tmp_path / "other", num_per_class={"dog": 1})


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3, 5])
@pytest.mark.parametrize("size", [1, 4, 64])
def test_any_size_and_batch(tmp_path, count, size):
    """0 images, 1, fewer than the batch, and more."""
    generator = FakeGenerator()
    synthetic = make(Pictures([0]), tmp_path / "set", num_per_class=count, batch_size=size, generator=generator)
    assert len(synthetic) == len(list(synthetic)) == len(synthetic.targets) == count
    assert set(generator.batches) <= {size}, "every batch has one shape"
    again = make(Pictures([0]), tmp_path / "set", num_per_class=count, generate=False)
    assert [path for path, _ in again.samples] == [path for path, _ in synthetic.samples]


@pytest.mark.parametrize("world", [1, 2, 8])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("balanced", [False, True])
def test_the_sampler_of_fewer_images_than_ranks(tmp_path, world, count, balanced):
    real = Pictures([0, 1])
    both = ConcatDataset([real, make(real, tmp_path / "set", num_per_class=count)])
    for options in ({}, {"epoch_length": "all"}, {"epoch_length": 1}, {"synthetic_fraction": 1}):
        options |= {"class_balanced": balanced}
        samplers = [MixedRealSyntheticSampler(both, world, rank, **options) for rank in range(world)]
        drawn = [list(sampler) for sampler in samplers]
        assert {len(indices) for indices in drawn} == {len(samplers[0])}
        assert all(0 <= index < len(both) for indices in drawn for index in indices)
    if world == 8:
        with pytest.raises(ValueError, match="`drop_last` must leave each rank something to draw"):
            MixedRealSyntheticSampler(both, world, 0, drop_last=True, epoch_length=4)


def test_the_sampler_of_no_synthetic_images_says_so(tmp_path):
    real = Pictures([0, 1])
    both = ConcatDataset([real, make(real, tmp_path / "set", num_per_class=0)])
    with pytest.raises(ValueError, match="synthetic"):
        MixedRealSyntheticSampler(both)
    assert sorted(MixedRealSyntheticSampler(both, synthetic_fraction=0)) == [0, 1]


# --- stale input ------------------------------------------------------------------------------------------------------


def keys(synthetic):
    return {os.path.basename(path) for path, _ in synthetic.samples}


@pytest.mark.parametrize("augmentation", ["real", "embed-cutmix", "cutmix-dropout"])
def test_stale_input(tmp_path, monkeypatch, augmentation):
    """Renamed, moved or touched: all is reused. Edited, replaced or removed: what depended on it is made again."""
    folder = paint_folder(tmp_path / "real", {"cat": 4, "dog": 3})
    made = []
    monkeypatch.setattr(images, "_SETTLED_NS", -1)  # every digest is kept for the next run

    def synthetic():
        generator = FakeGenerator()
        result = make(ImageFolder(folder), tmp_path / "set", augmentation=augmentation, generator=generator)
        made.append(len(set(generator.keys)))
        assert len(ImageFolder(tmp_path / "set")) == len(result)
        return result

    first = synthetic()
    for path in folder.glob("*/*"):
        os.utime(path, (1, 1))
        path.rename(path.with_name(f"renamed {path.name}"))
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    assert keys(synthetic()) == keys(first) and made == [7, 0]

    victim = next((folder / "cat").iterdir())
    original, stat = victim.read_bytes(), victim.stat()
    was = hash_bytes(original)
    for change in ("edited", "replaced"):
        paint(victim, f"cat {change}")
        if change == "replaced":  # a file of the same name and time as the first one
            os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        edited = synthetic()
        assert 1 <= made[-1] <= 4 and len(edited) == 7
        used = {source for i in range(7) for source in edited.provenance(i)["digests"]}
        assert was not in used and hash_bytes(victim.read_bytes()) in used
        assert {p for p, label in edited.samples if label} == {p for p, label in first.samples if label}
    victim.write_bytes(original)
    assert keys(synthetic()) == keys(first) and made[-1] == 0, "what was set aside is taken back"
    victim.unlink()
    removed = synthetic()
    assert len(removed) == 6 and keys(removed) != keys(first)


def test_a_subset_that_grows_makes_only_what_is_new(tmp_path):
    real = ImageFolder(paint_folder(tmp_path / "real", {"cat": 9, "dog": 9}))
    options = {"augmentation": "real", "root": tmp_path / "set"}
    first = make(Subset(real, [0, 1, 9, 10]), **options)
    generator = FakeGenerator()
    grown = make(Subset(real, [0, 1, 2, 9, 10, 11]), generator=generator, **options)
    assert keys(first) < keys(grown) and len(set(generator.keys)) == 2
