"""Wrappers of one's own: where they keep what they wrap, and what they do to labels besides."""

import random
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from fakes import ToFloat, paint_folder
from homemade import Duck, Files, Holding, labels_of, made, plus10
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import ImageFolder, VisionDataset
from torchvision.datasets.vision import StandardTransform

from torch_augcond.sources import Sources
from torch_augcond.sources.layers import layers, transforms_off

Named = namedtuple("Named", ["part", "weight"])


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


class Plain:
    """A wrapper that is no torch dataset and has no transform of its own."""

    __init__, __len__, __getitem__ = Holding.__init__, Holding.__len__, Holding.__getitem__


@dataclass(slots=True)
class Slotted:
    inner: Dataset
    classes: list[str]

    __len__, __getitem__ = Holding.__len__, Holding.__getitem__


class Deep(Dataset):
    """A wrapper whose dataset lies in something else."""

    def __init__(self, held, find):
        self.held, self.find, self.classes = held, find, ["cat", "dog"]

    def __len__(self):
        return len(self.find(self.held))

    def __getitem__(self, i):
        return self.find(self.held)[i]


def first(held):
    return held[0]


HOLDERS = {
    "list of pairs": lambda d: Deep([(d, 0.5)], lambda held: held[0][0]),
    "nested lists": lambda d: Deep([[[d]]], lambda held: held[0][0][0]),
    "named tuple": lambda d: Deep(Named(d, 1), first),
    "namespace": lambda d: Deep(SimpleNamespace(part=d), lambda held: held.part),
    "dict of namespaces": lambda d: Deep({"a": SimpleNamespace(part=d)}, lambda held: held["a"].part),
    "long list": lambda d: Deep([d, *range(2000)], first),
    "long list of pairs": lambda d: Deep([(d, k % len(d)) for k in range(2000)], lambda held: held[0][0]),
    "long dict": lambda d: Deep({0: d} | dict.fromkeys(range(1, 2000)), first),
    "plain": Plain,
    "plain in plain": lambda d: Plain(Plain(d)),
    "plain in a wrapper": lambda d: Holding(Plain(d)),
    "slots": lambda d: Slotted(d, d.classes),
    "slots in a wrapper": lambda d: Holding(Slotted(d, d.classes)),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("kind", [Files, Duck])
def test_what_is_held_anywhere_is_found(folder, tmp_path, hold, kind):
    inner = kind(folder, ToFloat(), plus10)
    real = hold(inner)
    assert torch.is_tensor(real[0][0])
    synthetic = made(real, tmp_path / "set")
    assert torch.is_tensor(synthetic[0][0])
    assert labels_of(synthetic) == labels_of(real) == [10, 11]
    assert torch.is_tensor(real[0][0]) and isinstance(inner.transform, ToFloat)


def test_a_container_that_holds_itself(folder):
    cycle = [Files(folder, ToFloat())]
    cycle.append(cycle)
    real = Deep(SimpleNamespace(all=(cycle, [cycle])), lambda held: held.all[0][0])
    assert len(list(layers(real))) == 2
    copied = transforms_off(real)[0].held.all
    assert copied[0] is copied[0][1] is copied[1][0] is not cycle


class Joint(Files):
    """Its transform is given the label as well, and may change it."""

    def __getitem__(self, i):
        image, label = Files.__getitem__(SimpleNamespace(files=self.files, transform=None, target_transform=None), i)
        return self.transform(image, label) if self.transform else (image, label)


def mirrored(image, label=None):
    return image if label is None else (image, 1 - label)


def turned(image, label=None):
    random.random(), torch.rand(1)
    return image if label is None else (image, label)


def test_a_joint_transform_that_changes_labels(folder, tmp_path):
    told = "item 0 has the label 1, of which it would make 0. Pass `target_transform=` explicitly"
    with pytest.raises(ValueError, match=told):
        made(Joint(folder, mirrored), tmp_path / "set")
    with pytest.raises(ValueError, match=told):
        made(Joint(folder, mirrored), tmp_path / "set", transform=ToFloat())
    assert labels_of(made(Joint(folder, mirrored), tmp_path / "set", target_transform=lambda label: 1 - label)) == [
        0,
        1,
    ]


@pytest.mark.parametrize("call", ["keywords", "dict", "tuple"])
def test_a_joint_transform_that_is_called_in_another_way(folder, tmp_path, call):
    class Called(Files):
        def __getitem__(self, i):
            path, label = self.files[i]
            item = {"image": Image.open(path), "label": label}
            if call == "keywords":
                item = self.transform(**item)
            elif call == "dict":
                item = self.transform(item)
            else:
                item = dict(zip(item, self.transform(tuple(item.values())), strict=True))
            return item["image"], item["label"]

    def exchanged(held=None, **fields):
        if held is None:
            return fields | {"label": 1 - fields["label"]}
        return held | {"label": 1 - held["label"]} if isinstance(held, dict) else (held[0], 1 - held[1])

    with pytest.raises(ValueError, match="item 0 has the label 1, of which it would make 0"):
        made(Called(folder, exchanged), tmp_path / "set", transform=ToFloat())


def test_comparing_labels_draws_nothing_of_the_users(folder, tmp_path):
    made(Joint(folder, turned), tmp_path / "set")  # for what making draws itself
    then = torch.get_rng_state(), random.getstate()
    made(Joint(folder, turned), tmp_path / "set")
    assert torch.equal(torch.get_rng_state(), then[0]) and random.getstate() == then[1]


class Corrected(Holding):
    """Its first label was wrong."""

    def __getitem__(self, i):
        image, label = self.inner[i]
        return image, 1 if i == 0 else label


def test_a_target_transform_that_is_set_late_under_a_wrapper(folder, tmp_path):
    real = Corrected(Files(folder))
    synthetic = made(real, tmp_path / "set")
    assert labels_of(synthetic) == [0, 1]
    real.inner.target_transform = plus10
    for _ in range(2):
        with pytest.raises(ValueError, match="item 0 has the label 1, of which it would make 11"):
            synthetic[0]
    real.inner.target_transform = None
    assert labels_of(synthetic) == [0, 1]


class HalfOf(Subset):
    def __len__(self):
        return len(self.indices) // 2


class HalfOfAll(ConcatDataset):
    def __len__(self):
        return super().__len__() // 2


@pytest.mark.parametrize("kind", [lambda real: HalfOf(real, range(10)), lambda real: HalfOfAll([real])])
def test_no_image_beyond_a_length_of_ones_own(folder, tmp_path, kind):
    real = kind(ImageFolder(folder))
    sources = Sources.from_dataset(real)
    assert len(sources) == len(real) == 5 and sources.labels.tolist() == [0] * 5
    assert len(made(real, tmp_path / "set")) == 5


def test_a_file_that_is_closed_behind_its_transform(folder, tmp_path):
    class Closing(Files):
        def __getitem__(self, i):
            with open(self.files[i][0], "rb") as file:
                return self.transform(Image.open(file)), self.files[i][1]

    assert len(made(Closing(folder, ToFloat()), tmp_path / "set")) == 10


def test_parts_that_were_added_to_a_concatenation(folder):
    real = ConcatDataset([Files(folder)])
    real.datasets.append(Files(folder))
    with pytest.raises(
        ValueError, match="must have the length of its parts, but has 10 items and they 20: `datasets` was"
    ):
        Sources.from_dataset(real)


def test_what_is_decided_at_the_first_read(folder, tmp_path):
    class Shots(Files):
        chosen = None

        def __len__(self):
            return 4

        def __getitem__(self, i):
            self.chosen = self.chosen or random.sample(range(10), 4)
            return super().__getitem__(self.chosen[i])

    random.seed(0)
    with pytest.raises(
        (ValueError, RuntimeError), match="decides what it holds when it is first read, .* Read an item"
    ):
        made(Shots(folder, ToFloat()), tmp_path / "set")
    real = Shots(folder, ToFloat())
    real[0]
    synthetic = made(real, tmp_path / "set")
    assert labels_of(synthetic) == labels_of(real)


def test_samples_of_a_folder_below_that_were_relabelled(folder, tmp_path):
    class WithPaths(ImageFolder):
        def __getitem__(self, i):
            return *super().__getitem__(i), self.samples[i][0]

    for wrap in (lambda real: real, Holding):
        real = WithPaths(folder)
        real.samples = [(path, 1 - label) for path, label in real.samples]
        real.targets = [label for _, label in real.samples]
        with pytest.raises(ValueError, match="`samples` must label images as `class_to_idx` does"):
            made(wrap(real), tmp_path / "set")


class Single(Files):
    """There is one of it, however often it is made or copied."""

    one = None

    def __new__(cls, *args):
        cls.one = cls.one or super().__new__(cls)
        return cls.one

    def __copy__(self):
        return self


def test_a_dataset_of_which_there_is_one(folder, tmp_path):
    real = Single(folder, ToFloat(), plus10)
    assert labels_of(made(real, tmp_path / "set")) == labels_of(real) == [10, 11]
    assert isinstance(real.transform, ToFloat) and torch.is_tensor(real[0][0])


def test_joint_transforms_that_are_set_late(folder, tmp_path):
    class OfTwo(Files):
        transforms = None

        def __getitem__(self, i):
            item = super().__getitem__(i)
            return self.transforms(*item) if self.transforms else item

    real = OfTwo(folder)
    synthetic = made(real, tmp_path / "set")
    real.transforms = mirrored
    with pytest.raises(ValueError, match="can't be taken over from a dataset with a joint `transforms`"):
        synthetic[0]


def test_the_two_in_torchvisions_own_joint_transform_that_are_set_late(folder, tmp_path):
    class Pets(VisionDataset):
        def __getitem__(self, i):
            return self.transforms(Image.open(self.files[i][0]), self.files[i][1])

        __len__ = Files.__len__

    real = Pets(folder, transform=ToFloat())
    real.files, real.classes = ImageFolder(folder).samples, ["cat", "dog"]
    synthetic = made(real, tmp_path / "set")
    assert synthetic[0][1] == 0
    real.transforms = StandardTransform(real.transform, lambda label: 1 - label)
    with pytest.raises(ValueError, match="item 0 has the label 1, of which it would make 0"):
        synthetic[0]
    synthetic.target_transform = int
    real.transforms = StandardTransform(lambda image: image.rotate(90), None)
    with pytest.warns(UserWarning, match="item 0 of the dataset has another image than its `transform` makes"):
        synthetic[0]


@pytest.mark.parametrize("name", ["transform", "target_transform"])
def test_a_transform_of_a_subset_that_nothing_applies(folder, tmp_path, name):
    real = Subset(ImageFolder(folder), range(10))
    synthetic = made(real, tmp_path / "set")
    setattr(real, name, plus10)
    told = f"`{name}` can't be taken over from a dataset with one on a Subset or ConcatDataset, which never applies it"
    with pytest.raises(ValueError, match=told):
        synthetic[0]
    with pytest.raises(ValueError, match=told):
        made(real, tmp_path / "set")
    assert len(made(real, tmp_path / "set", **{name: lambda x: x})) == 10
