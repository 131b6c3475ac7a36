"""Image folders that somebody has derived from, or whose code is another one."""

import warnings

import numpy as np
import pytest
from fakes import ToFloat, paint_folder
from homemade import Files, labels_of, made
from PIL import Image
from torchvision.datasets import DatasetFolder, ImageFolder
from torchvision.datasets.folder import default_loader

from torch_augcond.sources import Sources


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


class WithPaths(ImageFolder):
    def __getitem__(self, i):
        return *super().__getitem__(i), self.samples[i][0]


class Listed(ImageFolder):
    """A list of files of one's own, in no folder."""

    def __init__(self, samples, transform=None, **attributes):
        self.samples, self.loader, self.classes = samples, default_loader, ["cat", "dog"]
        self.transform, self.target_transform = transform, None
        self.__dict__.update(attributes)


def test_a_subclass_that_has_no_folder(folder, tmp_path):
    samples = ImageFolder(folder).samples[::-1]
    for k, attributes in enumerate([{}, {"class_to_idx": {"cat": 0, "dog": 1}, "root": None}]):
        real = Listed(samples, ToFloat(), **attributes)
        synthetic = made(real, tmp_path / f"set {k}")
        assert labels_of(synthetic) == [0, 1] and {*synthetic.provenance(0)} > {"sources"}
        sources, whole = Sources.from_dataset(real), Sources.from_dataset(Files(folder))
        assert sources.classes == ["cat", "dog"] and sources.labels.tolist() == [1] * 5 + [0] * 5
        assert np.array_equal(np.asarray(sources.image(0)), np.asarray(whole.image(9)))


def test_samples_of_more_than_path_and_label(folder):
    class Boxed(ImageFolder):
        def __init__(self, root):
            super().__init__(root)
            del self.loader
            self.samples = [(*sample, (0, 0, 8, 8)) for sample in self.samples]

        def __getitem__(self, i):
            path, label, box = self.samples[i]
            return Image.open(path).crop(box), label

    assert Sources.from_dataset(Boxed(folder)).image(0).size == (8, 8)


@pytest.mark.parametrize("kind", [ImageFolder, WithPaths])
def test_names_of_the_folders_need_no_warning(folder, tmp_path, kind):
    (folder / "bee").mkdir()
    (folder / "eel").mkdir()
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", "a batch can't hold both items")  # of three
        real = kind(folder, target_transform=[3, 2, 1, 0].__getitem__, allow_empty=True)
        assert labels_of(made(real, tmp_path / "set")) == labels_of(real) == [1, 2]


def test_labels_that_are_no_longer_those_of_the_folders(folder):
    class Joined(WithPaths):
        def __getitem__(self, i):
            return self.loader(self.samples[i][0]), 0

    real = Joined(folder)
    real.targets = [0] * 10
    with pytest.warns(UserWarning, match="2 classes have names, but no image has the label 1"):
        Sources.from_dataset(real)


def test_other_code_in_the_place_of_torchvisions(folder, monkeypatch):
    def grey(self, i):
        path, label = self.samples[i]
        return Image.open(path).convert("L"), label

    before = Sources.from_dataset(ImageFolder(folder)).image(0)
    monkeypatch.setattr(DatasetFolder, "__getitem__", grey)
    image = Sources.from_dataset(ImageFolder(folder)).image(0)
    assert np.array_equal(np.asarray(image.convert("L")), np.asarray(before.convert("L"))) and image != before
