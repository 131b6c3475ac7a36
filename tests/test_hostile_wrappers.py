"""Wrappers of one's own: where they keep what they wrap, and what they do to labels besides."""

import copy
import random
import warnings
from collections import namedtuple
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import ToFloat, paint_folder
from homemade import Duck, Files, Holding, SharedDict, labels_of, made, plus10
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import RandomCrop

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


class Stamped(Dataset):
    """Images in memory, and a step in place behind the transform."""

    classes = ("cat", "dog")

    def __init__(self, images, transform):
        self.images, self.transform = images, transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = self.transform(self.images[i])
        if isinstance(image, Image.Image):
            image.paste(0, (0, 0, 4, 4))
        else:
            image[:4] = 0
        return image, i % 2


def to_pil(array):
    return [Image.fromarray(x) for x in array]


@pytest.mark.parametrize("form", [torch.from_numpy, np.copy, to_pil])
def test_what_is_done_in_place_behind_a_transform(tmp_path, form):
    images = form(np.random.default_rng(0).integers(1, 256, (4, 8, 8, 3), np.uint8))
    if isinstance(images, torch.Tensor):
        images = images.movedim(-1, 1).contiguous()
    before = [np.asarray(image).copy() for image in images]
    with (
        nullcontext() if form is to_pil else pytest.raises(RuntimeError, match="changes the values of an image behind")
    ):
        made(Stamped(images, copy.deepcopy), tmp_path / "set")
    assert all(np.array_equal(np.asarray(image), x) for image, x in zip(images, before, strict=True))


class Arrays(Stamped):
    """Steps behind the transform that are meant for floats."""

    def __init__(self, step, form=np.asarray):
        numbers = np.random.default_rng(0)
        super().__init__([form(numbers.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(4)], None)
        self.step, self.transform = step, lambda image: np.asarray(image) / 255

    def __getitem__(self, i):
        return self.step(self.transform(self.images[i])), i % 2


@pytest.mark.parametrize("form", [np.asarray, Image.fromarray])
def test_steps_for_floats_behind_a_transform(tmp_path, form):
    for step in (lambda x: np.asarray(x) * 2 - 1, lambda x: 1 - np.asarray(x), lambda x: np.multiply(x, 2, dtype="u1")):
        with pytest.raises(RuntimeError, match="those of bytes wrap around. Make such steps part of the `transform`"):
            made(Arrays(step, form), tmp_path / "set")
    for step in (lambda x: torch.tensor(np.asarray(x)).permute(2, 0, 1), lambda x: np.asarray(x)[2:, ::-1]):
        assert len(made(Arrays(step, form), tmp_path / step.__qualname__, transform=str)) == 4


@pytest.mark.parametrize("given", [{}, {"target_transform": plus10}])
def test_a_shared_cache_of_labels(folder, tmp_path, given):
    class Cached(Files):
        def __getitem__(self, i):
            if i not in self.cache:
                self.cache[i] = self.target_transform(self.files[i][1])
            return Image.open(self.files[i][0]), self.cache[i]

    real = Cached(folder, None, plus10, cache=SharedDict())
    with pytest.raises((ValueError, RuntimeError), match="keeps what it has read where its copies find it"):
        made(real, tmp_path / "set", **given)
    assert len(real.cache) == 1


def test_a_shared_cache_of_some_items(folder, tmp_path):
    class Cached(Files):
        def __getitem__(self, i):
            if i < 3:
                return super().__getitem__(i)
            if i not in self.cache:
                self.cache[i] = super().__getitem__(i)
            return self.cache[i]

    real = Cached(folder, ToFloat(), cache=SharedDict())
    with pytest.raises((ValueError, RuntimeError), match="keeps what it has read where its copies find it"):
        made(real, tmp_path / "set")
    assert len(real.cache) < 4


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


class Twice(Files):
    """Goes on to change an image that its transform has changed."""

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return (image * 2 if torch.is_tensor(image) else image), label


class Cropped(Holding):
    """What a wrapper does to images besides is no transform of theirs."""

    def __getitem__(self, i):
        image, label = self.inner[i]
        return image[:, :10, :10] if torch.is_tensor(image) else image, label


def test_images_that_more_than_the_transform_changes(folder, tmp_path):
    told = "item 0 of the dataset has another image than its `transform` makes of the raw one: synthetic images won't"
    for real in (Twice(folder, ToFloat()), Cropped(Files(folder, ToFloat())), Subset(Twice(folder, ToFloat()), [0, 9])):
        with pytest.warns(UserWarning, match=told):
            made(real, tmp_path / str(len(real)) / type(real).__name__)
    with warnings.catch_warnings(action="error"):
        made(Twice(folder, ToFloat()), tmp_path / "own", transform=ToFloat())
        made(Twice(folder), tmp_path / "none")
        made(Files(folder, RandomCrop(9)), tmp_path / "random")
        made(Files(folder, Own()), tmp_path / "unknown")


class Own:
    """Draws numbers of its own, so that nobody can tell what else happens."""

    def __init__(self):
        self.draws = random.Random(0)

    def __call__(self, image):
        return image.rotate(self.draws.random())


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
