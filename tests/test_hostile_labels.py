"""Labels that somebody has changed by hand, or by a subclass, and the names that prompts are made of."""

import math
import os
import warnings
from collections import UserDict, UserList
from enum import Enum
from types import MappingProxyType

import numpy as np
import pytest
from fakes import paint_folder
from homemade import Files, made, plus10
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from torch_augcond.sources import Sources


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


@pytest.mark.parametrize("name", ["targets", "_labels", "labels"])
def test_a_subclass_that_relabels_is_warned_of_whatever_its_list_is_called(folder, name):
    class IsCat(Files):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image, int(label == 0)

    labels = [label for _, label in ImageFolder(folder).samples]
    with pytest.warns(UserWarning, match=f"`{name}` says 0 and the item 1 at index 0: labels are read from the items"):
        sources = Sources.from_dataset(IsCat(folder, **{name: labels}))
    assert sources.labels.tolist() == [1] * 5 + [0] * 5


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
    with pytest.raises(ValueError, match=r"item 5 has the label .*1.*, of which it would make .*0"):
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


class FromOne(Files):
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image, label + 1


def test_labels_from_one_where_only_items_tell(folder):
    real = FromOne(folder)
    with pytest.raises(ValueError, match="`classes` must name every label, but has no name for 2"):
        Sources.from_dataset(Subset(real, range(5)))
    real.classes = None
    assert Sources.from_dataset(Subset(real, range(5))).class_of == {1: "1"}


def test_names_of_the_labels_that_there_were_before(folder):
    real = Files(folder, classes=["ant", "bee", "cat", "dog"], targets=[0] * 5 + [1] * 5)
    told = "4 classes have names, but no image has the label 2, 3. .* check that 0 means 'ant'"
    for dataset in (real, Subset(real, range(4))):
        with pytest.warns(UserWarning, match=told):
            Sources.from_dataset(dataset)
    with pytest.warns(UserWarning, match="3 classes have names, but no image has the label 0. .* that 1 means 'bee'"):
        Sources.from_dataset(FromOne(folder, classes=["ant", "bee", "cat"]))


class Series:
    """As that of pandas, which is no Mapping."""

    def __init__(self, values):
        self.values, self.keys = values, values.keys

    def __getitem__(self, key):
        return self.values[key]


@pytest.mark.parametrize("kind", [MappingProxyType, UserDict, Series])
def test_names_in_a_mapping_of_any_kind(folder, kind):
    to_idx = {"dog": 0, "cat": 1}
    assert Sources.from_dataset(Files(folder, classes=None, class_to_idx=kind(to_idx))).class_of == {0: "dog", 1: "cat"}


def test_names_in_a_sequence_of_any_kind(folder):
    named = {0: "a", 1: "b"}
    for classes in (UserList("ab"), np.array(["a", "b"]), ("a", "b"), MappingProxyType(named), named.values()):
        assert Sources.from_dataset(Files(folder, classes=classes)).classes == ["a", "b"]


class Animal(str, Enum):  # noqa: UP042 - as people write it
    CAT = "cat"
    DOG = "dog"


def test_names_that_are_no_str(folder):
    for classes in ([b"cat", b"dog"], list(Animal), np.array(["cat", "dog"], "S3"), [["cat"], ("dog",)]):
        assert Sources.from_dataset(Files(folder, classes=classes)).classes == ["cat", "dog"]
    assert Sources.from_dataset(FromOne(folder, classes=[None, "dog", "cat"])).classes == ["dog", "cat"]
    for first in ("", None, "N/A", "__background__"):
        with warnings.catch_warnings(action="error"):
            named = Sources.from_dataset(FromOne(folder, classes=[first, "cat", "dog"])).class_of
        assert (named[1], named[2]) == ("cat", "dog")
    with pytest.raises(ValueError, match="has no name for 0"):
        Sources.from_dataset(Files(folder, classes=["", "b"]))
    for wrong in ([{"name": "cat"}, "dog"], [(1, "cat"), (0, "dog")], ["cat", math.nan], ["cat", " "], [0.0, 1.0]):
        with pytest.raises(TypeError, match="`classes` and `class_to_idx` must name classes by str, but got"):
            Sources.from_dataset(Files(folder, classes=wrong))


@pytest.mark.parametrize("names", [{"class_to_idx": {"albatross": 1, "booby": 2}}, {"classes": {1: "a", 2: "b"}}])
@pytest.mark.parametrize("targets", [None, [0] * 5 + [1] * 5])
def test_names_from_one_for_labels_from_zero(folder, names, targets):
    real = Files(folder, **{"classes": None, "targets": targets} | names)
    for dataset in (real, Subset(real, range(5, 10))):
        with pytest.raises(ValueError, match="has no name for 0"):
            Sources.from_dataset(dataset)


def test_synonyms_without_a_list_of_classes(folder):
    real = Files(folder, classes=None, class_to_idx={"cat": 0, "kitten": 0, "dog": 1})
    assert Sources.from_dataset(real).classes == ["cat, kitten", "dog"]


def test_targets_of_a_list_that_is_shuffled_in_place(folder, tmp_path):
    synthetic = made(ImageFolder(folder), tmp_path / "set")
    synthetic.samples = list(synthetic.samples)
    assert synthetic.targets == [0] * 5 + [1] * 5
    synthetic.samples.reverse()
    assert synthetic.targets == [1] * 5 + [0] * 5 == [label for _, label in synthetic]
    synthetic.targets = list(range(10))
    assert synthetic.targets == list(range(10))
