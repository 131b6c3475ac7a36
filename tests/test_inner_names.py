"""Names that a dataset has none of itself: those of an image folder inside, or of what it reads with."""

from types import SimpleNamespace

import pytest
import torch
from fakes import paint_folder
from homemade import Holding, made
from PIL import Image
from torch.utils.data import Dataset, Subset, random_split
from torchvision.datasets import ImageFolder


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


def grey(path):
    return Image.open(path).convert("L")


class Transformed(Holding):
    """What one writes to give the parts of a split transforms of their own."""

    def __init__(self, inner, exchanged=False):
        self.inner, self.exchanged = inner, exchanged

    def __getitem__(self, i):
        image, label = self.inner[i]
        return image, 1 - label if self.exchanged else label


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.filterwarnings("error")
def test_names_of_a_folder_inside_are_taken_where_its_files_show_them(folder, tmp_path, listed):
    real = Transformed(Subset(ImageFolder(folder), range(1, 10)))
    if listed:
        real.targets = [0] * 4 + [1] * 5
    synthetic = made(real, tmp_path / "set")
    assert synthetic.classes == ["cat", "dog"]
    assert [synthetic.provenance(i)["prompt"][-3:] for i in (0, -1)] == ["cat", "dog"]


@pytest.mark.parametrize("loader", [None, grey])
def test_names_of_a_dataset_inside_are_else_mentioned(folder, tmp_path, loader):
    real = ImageFolder(folder, loader=loader) if loader else ImageFolder(folder)
    told = r"no `classes`, but the ImageFolder in it calls them 'cat', 'dog'. If they are meant, set `classes`"
    with pytest.warns(UserWarning, match=told):
        made(Transformed(real, exchanged=not loader), tmp_path / "set")


class Merged(Holding):
    """Classes of a folder, of which all but the first are one."""

    def __init__(self, inner):
        self.inner, self.targets = inner, [min(label, 1) for label in inner.targets]

    def __getitem__(self, i):
        image, label = self.inner[i]
        return image, min(label, 1)


@pytest.mark.parametrize("seed", range(6))
def test_classes_that_are_merged_do_not_get_the_name_of_one(tmp_path, seed):
    folder = paint_folder(tmp_path / "real", {"healthy": 9, "mild": 4, "severe": 4})
    part, _ = random_split(Merged(ImageFolder(folder)), [14, 3], torch.Generator().manual_seed(seed))
    with pytest.warns(UserWarning, match="class names such as '0', '1' hold numbers"):
        assert made(part, tmp_path / "set").classes == ["0", "1"]


@pytest.mark.filterwarnings("error")
def test_some_classes_of_a_folder_keep_their_names(tmp_path):
    folder = paint_folder(tmp_path / "real", {"cat": 3, "dog": 3, "eel": 3})
    real = Transformed(Subset(ImageFolder(folder), range(6)))
    real.targets = [0] * 3 + [1] * 3
    assert made(real, tmp_path / "set", class_names=["tabby", "poodle"]).classes == ["cat", "dog"]


def test_merged_classes_outside_of_a_subset_are_seen(tmp_path):
    folder = paint_folder(tmp_path / "real", {"healthy": 4, "mild": 4, "severe": 4})
    real = Merged(ImageFolder(folder))
    del real.targets[:]
    with pytest.warns(UserWarning, match="class names such as '0', '1' hold numbers"):
        assert made(Subset(real, range(8)), tmp_path / "set").classes == ["0", "1"]


class Sites(Holding):
    """Folders of hospitals, and labels of a table."""

    def __init__(self, inner, said):
        self.inner, self.targets = inner, said

    def __getitem__(self, i):
        return self.inner[i][0], self.targets[i]


@pytest.mark.parametrize("seed", range(8))
def test_labels_of_a_table_do_not_get_the_names_of_as_many_folders(tmp_path, seed):
    real = Sites(ImageFolder(paint_folder(tmp_path / "real", {"a": 6, "b": 6})), [0, 1, 1, 0, 0, 0, 1, 1, 1, 1, 1, 0])
    part, _ = random_split(real, [9, 3], torch.Generator().manual_seed(seed))
    with pytest.warns(UserWarning, match="class names such as '0', '1' hold numbers"):
        assert made(part, tmp_path / "set").classes == ["0", "1"]


class Reading(Dataset):
    """As timm's `ImageDataset`: what it reads with knows the names."""

    def __init__(self, folder):
        self.inner = ImageFolder(folder)
        self.reader = SimpleNamespace(class_to_idx=self.inner.class_to_idx)

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        return self.inner[i]


Reading.__getitem__.__module__ = "timm.data.dataset"


class ReadingTwo(Reading):
    def __getitem__(self, i):
        image, label = self.inner[i]
        return image, min(label, 1)


@pytest.mark.filterwarnings("error")
def test_names_that_a_reader_has(folder, tmp_path):
    assert made(Reading(folder), tmp_path / "set").classes == ["cat", "dog"]


@pytest.mark.parametrize("indices", [range(12), range(8)])
def test_names_that_a_reader_has_of_classes_that_are_merged(tmp_path, indices):
    folder = paint_folder(tmp_path / "real", {"healthy": 4, "mild": 4, "severe": 4})
    with pytest.warns(UserWarning, match="class names such as '0', '1' hold numbers"):
        assert made(Subset(ReadingTwo(folder), indices), tmp_path / "set").classes == ["0", "1"]
