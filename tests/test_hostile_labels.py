"""Labels that somebody has changed by hand, or by a subclass, and the names that prompts are made of."""

import os

import numpy as np
import pytest
from fakes import paint_folder
from homemade import Files, made, plus10
from torchvision.datasets import ImageFolder

from torch_augcond.sources import Sources


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 3, "dog": 3})


@pytest.mark.parametrize("name", ["targets", "_labels", "labels"])
def test_a_subclass_that_relabels_is_warned_of_whatever_its_list_is_called(folder, name):
    class IsCat(Files):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image, int(label == 0)

    labels = [label for _, label in ImageFolder(folder).samples]
    with pytest.warns(UserWarning, match=f"`{name}` says 0 and the item 1 at index 0: labels are read from the items"):
        sources = Sources.from_dataset(IsCat(folder, **{name: labels}))
    assert sources.labels.tolist() == [1, 1, 1, 0, 0, 0]


def test_a_target_transform_of_labels_that_are_no_ints(folder, tmp_path):
    class OneHot(Files):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image, self.target_transform(np.eye(2)[label]) if self.target_transform else np.eye(2)[label]

    class Rows(OneHot):
        def __getitem__(self, i):
            change, self.target_transform = self.target_transform, None
            try:
                image, label = super().__getitem__(i)
            finally:
                self.target_transform = change
            return image, change(label) if change else label

    targets = [label for _, label in ImageFolder(folder).samples]
    real = Rows(folder, target_transform=np.argmax, targets=targets)
    assert [label for _, label in real] == targets
    with pytest.raises(ValueError, match=r"item 3 has the label .*1.*, of which it would make .*0"):
        made(real, tmp_path / "set")
    assert made(Files(folder, target_transform=plus10, targets=targets), tmp_path / "set").provenance(0)["label"] in (
        0,
        1,
    )


@pytest.mark.parametrize("form", ["slashes", "link"])
def test_labels_set_by_hand_with_other_forms_of_the_paths(folder, tmp_path, form):
    os.symlink(folder, tmp_path / "link")
    real = ImageFolder(f"{folder}/" if form == "slashes" else str(tmp_path / "link"))
    path_of = (lambda path: path.replace("real/", "real//")) if form == "slashes" else os.path.realpath
    real.samples = [(path_of(path), 1 - label) for path, label in real.samples]
    with pytest.raises(
        ValueError, match="`samples` must label images as `class_to_idx` does, but gives 0 to images of"
    ):
        Sources.from_dataset(real)
