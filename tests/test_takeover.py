"""Transforms that synthetic images take over from a dataset, and what they make of its images and of synthetic ones."""

import cmath
import math
import pickle
import random
import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, paint_folder
from homemade import Files, Holding, made
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.io import decode_image
from torchvision.transforms import v2

from torch_augcond import AugConditionedSynthetic, MixedRealSyntheticSampler

TENSORS = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Resize((8, 8)), v2.Normalize([0.5], [0.5])])
PICTURES = v2.Compose([v2.ToImage(), TENSORS])


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


def square(transform=None):
    return v2.Compose([v2.Resize(16), v2.RandomCrop(12, padding=1), *([transform] if transform else [])])


class Noise:
    def __init__(self, draw):
        self.draw = draw

    def __call__(self, image):
        return image


def test_transforms_made_by_the_same_call_are_one(folder, tmp_path):
    both = ImageFolder(folder, square(), target_transform=Noise(3)) + ImageFolder(folder, square(), Noise(3))
    synthetic = made(both, tmp_path / "set")
    assert synthetic[0][0].size == (12, 12)
    both.datasets[1].transform = square()
    assert synthetic[0][0].size == (12, 12)


def test_transforms_of_one_state_are_one_whatever_holds_it(folder, tmp_path):
    held = [(Slots(3), Size(4), Steps([1, {2: None}], True), Flip(3, True), np.zeros(2), 0.5, (1, "a"))] * 2
    both = [ImageFolder(folder, square(Noise(pickle.loads(pickle.dumps(one))))) for one in held]
    assert made(both[0] + both[1], tmp_path / "set")[0][0].size == (12, 12)


class Wrapped(Holding):
    """Two transforms, one behind the other."""

    def __getitem__(self, i):
        image, label = self.inner[i]
        return self.transform(image), label


def test_but_not_if_images_go_through_both(folder, tmp_path):
    inside = ImageFolder(folder, square())
    twice = Wrapped(inside)
    twice.transform, twice.classes = square(), inside.classes
    with pytest.raises(ValueError, match="2 different ones in its parts"):
        made(twice, tmp_path / "set")


class Size(int):
    pass


class Slotted:
    __slots__ = ("size",)


class Slots(Slotted):
    def __init__(self, size):
        self.size = size

    def __call__(self, image):
        return image.resize((self.size, self.size))


class Steps(list):
    """As imgaug's are."""

    def __init__(self, steps, grey):
        super().__init__(steps)
        self.grey = grey


@dataclass
class Flip:
    size: int
    flip: bool = field(compare=False)

    def __call__(self, image):
        return image


class LeftOut(Noise):
    """As one has it for workers that a lambda can't be sent to."""

    def __getstate__(self):
        return {}


OTHERS = {
    "functions of C": (square(Noise(math.sqrt)), square(Noise(cmath.sqrt))),
    "what isn't pickled": (square(LeftOut(3)), square(LeftOut(4))),
    "attributes of a list": (square(Noise(Steps([], False))), square(Noise(Steps([], True)))),
    "items of a list": (square(Noise(Steps([1], True))), square(Noise(Steps([2], True)))),
    "fields that don't count": (Flip(3, False), Flip(3, True)),
    "dtypes": (square(Noise(torch.zeros(2))), square(Noise(torch.zeros(2, dtype=torch.int64)))),
    "drawing": (square(Noise(torch.Generator())), square(Noise(torch.Generator().manual_seed(1)))),
    "ints": (square(Noise(Size(3))), square(Noise(Size(4)))),
    "slots": (Slots(3), Slots(4)),
    "sizes": (square(), v2.Compose([v2.Resize(16), v2.RandomCrop(13, padding=1)])),
    "lambdas": (square(lambda image: image), square(lambda image: image)),
    "generators": (square(Noise(random.Random(0))), square(Noise(random.Random(1)))),
    "kinds": (square(), v2.CenterCrop(12)),
    "tensors": (square(Noise(torch.zeros(2))), square(Noise(torch.ones(2)))),
}


@pytest.mark.parametrize("one, other", OTHERS.values(), ids=OTHERS)
def test_others_are_not(folder, tmp_path, one, other):
    with pytest.raises(ValueError, match="2 different ones in its parts"):
        made(ImageFolder(folder, one) + ImageFolder(folder, other), tmp_path / "set")


def grey(path):
    return Image.open(path).convert("L")


class Triples(ImageFolder):
    def __getitem__(self, i):
        return *super().__getitem__(i), self.samples[i][0]


class Counted(ImageFolder):
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image, torch.tensor(label)


class Soft(Files):
    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return image, torch.eye(2)[label]


UNLIKE = {
    "tensors": (lambda folder: ImageFolder(folder, loader=decode_image), "of 3 channels, a number.*an image of PIL, a"),
    "grey": (lambda folder: ImageFolder(folder, PICTURES, loader=grey), "of 1 channels, .* of 3 channels"),
    "triples": (lambda folder: Triples(folder, PICTURES), "a number, str.*Let items be"),
    "labels": (lambda folder: Counted(folder, PICTURES), "Let `target_transform` make labels alike: torch.tensor, say"),
    "soft labels": (lambda folder: Soft(folder, PICTURES, targets=[0] * 5 + [1] * 5), "tensor of 1 dimensions"),
}


@pytest.mark.parametrize("dataset, told", UNLIKE.values(), ids=UNLIKE)
def test_what_one_batch_cannot_hold_is_told(folder, tmp_path, dataset, told):
    with pytest.warns(UserWarning, match=f"a batch can't hold both items of the dataset .*{told}"):
        synthetic = made(dataset(folder), tmp_path / "set")
    real = dataset(folder)
    batch = DataLoader(real + synthetic, batch_size=len(real) + len(synthetic))
    with pytest.raises((RuntimeError, TypeError)):
        next(iter(batch))


ALIKE = [
    lambda folder: ImageFolder(folder),
    lambda folder: ImageFolder(folder, PICTURES),
    lambda folder: ImageFolder(folder, v2.Compose([v2.Grayscale(), PICTURES]), loader=grey),
    lambda folder: Subset(Files(folder, PICTURES), [1, 6]),
    lambda folder: FakeData(6, (3, 8, 8), 2, PICTURES),
]


@pytest.mark.parametrize("dataset", ALIKE)
def test_what_one_batch_can_hold_is_not_warned_of(folder, tmp_path, dataset):
    real = dataset(folder)
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", "class names such as '0'")
        synthetic = made(real, tmp_path / "set")
    if torch.is_tensor(real[0][0]):
        loader = DataLoader(real + synthetic, batch_size=4, sampler=MixedRealSyntheticSampler(real + synthetic))
        assert all(images.dtype == torch.float32 for images, _ in loader)


CROP = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToImage()])


def test_sizes_that_a_transform_does_not_bring_together(tmp_path):
    folder, large = paint_folder(tmp_path / "real", {"cat": 2, "dog": 2}, size=32), FakeGenerator(image_size=256)
    for transform, told in (
        (v2.ToImage(), r"items of the dataset, of shape \(3, 32, 32\), and synthetic ones, of \(3, 256, 256\)"),
        (CROP, "`transform` shows 1.% as much of a synthetic image, of 256 pixels, as of a real one, of 32: it cuts"),
    ):
        with pytest.warns(UserWarning, match=told):
            AugConditionedSynthetic(ImageFolder(folder, transform), "real", generator=large, root=tmp_path / "set")
    with warnings.catch_warnings(action="error"):
        for change in (v2.Resize((32, 32)), v2.RandomResizedCrop(32), v2.Resize(40)):
            real = ImageFolder(folder, v2.Compose([change, CROP]))
            AugConditionedSynthetic(real, "real", generator=large, root=tmp_path / "set")


def test_a_transform_that_fails_for_a_synthetic_image(tmp_path):
    real = ImageFolder(paint_folder(tmp_path / "real", {"cat": 2, "dog": 2}, size=32), v2.RandomCrop(24))
    with pytest.warns(
        UserWarning, match="fails for a synthetic image, PIL's of 16 pixels, and its int label .ValueError"
    ):
        made(real, tmp_path / "set")


def test_tensors_need_a_transform_that_makes_them(folder, tmp_path):
    real = ImageFolder(folder, TENSORS, loader=decode_image)
    with pytest.raises(ValueError, match=r"`transform` can't be taken over .* v2.Compose\(\[v2.ToImage\(\), t\]\)"):
        made(real, tmp_path / "set")
    assert made(real, tmp_path / "set", transform=PICTURES)[0][0].shape == real[0][0].shape


class Called(Files):
    """Calls its transform by the name of those of image and label, as many do."""

    def __getitem__(self, i):
        image, label = super().__getitem__(i)
        return self.transforms(image), label


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("wrap", [lambda real: real, lambda real: Subset(real, range(10))])
def test_a_transform_of_images_that_is_called_transforms(folder, tmp_path, wrap):
    real = Called(folder, classes=["cat", "dog"])
    real.transforms = PICTURES
    synthetic = made(wrap(real), tmp_path / "set")
    assert (synthetic[0][0].shape, synthetic[9][1]) == ((3, 8, 8), 1)
    real.transforms = v2.Compose([v2.Resize(4), v2.ToImage()])
    assert synthetic[0][0].shape == (3, 4, 4)
    assert made(real, tmp_path / "set", transform=v2.Compose([v2.Resize(4), v2.ToImage()]))[0][0].shape == (3, 4, 4)


def test_a_dataset_that_calls_both_is_told(folder, tmp_path):
    class Both(Called):
        def __getitem__(self, i):
            image, label = Files.__getitem__(self, i)
            return self.transforms(image), label

    real = Both(folder, v2.Resize(8), classes=["cat", "dog"])
    real.transforms = PICTURES
    with pytest.raises(ValueError, match="`transform` can't be taken over .* 2 different ones"):
        made(real, tmp_path / "set")


def test_a_list_that_is_called_transforms_is_told(folder, tmp_path):
    class Listed(Called):
        def __getitem__(self, i):
            image, label = Files.__getitem__(self, i)
            for step in self.transforms:
                image = step(image)
            return image, label

    real = Listed(folder, classes=["cat", "dog"])
    real.transforms = [v2.Resize(8), PICTURES]
    with pytest.raises(ValueError, match="`transform` can't be taken over .* with a list in its place. Pass"):
        made(real, tmp_path / "set")
    assert made(real, tmp_path / "set", transform=PICTURES)[0][0].shape == (3, 8, 8)
