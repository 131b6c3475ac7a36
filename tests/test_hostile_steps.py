"""What a dataset does to images behind its transform, and where it keeps them."""

import copy
import random
import sys
import warnings
from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import ToFloat, paint_folder
from homemade import Files, Holding, SharedDict, made, plus10
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import Compose, RandomCrop

from torch_augcond.sources import Sources


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


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


def test_a_grey_image_that_is_given_three_channels(tmp_path):
    real = Arrays(lambda x: np.stack([np.asarray(x)] * 3, -1), lambda array: np.asarray(array)[..., 0])
    assert len(made(real, tmp_path / "set", transform=str)) == 4


def test_the_loader_of_opencv(folder, monkeypatch):
    loader = np.fromfile  # a builtin, as that one is, whose `__module__` is None
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(imread=loader))
    with pytest.raises(
        TypeError, match="`loader` must give red, green and blue in this order, but OpenCV's gives blue"
    ):
        Sources.from_dataset(ImageFolder(folder, loader=loader))


def test_images_that_more_than_the_transform_changes(folder, tmp_path):
    told = "item 0 of the dataset has another image than its `transform` makes of the raw one: synthetic images won't"
    for real in (Twice(folder, ToFloat()), Cropped(Files(folder, ToFloat())), Subset(Twice(folder, ToFloat()), [0, 9])):
        with pytest.warns(UserWarning, match=told):
            made(real, tmp_path / str(len(real)) / type(real).__name__)
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", "a batch can't hold both items of the dataset, of shape")
        made(Twice(folder, ToFloat()), tmp_path / "own", transform=ToFloat())
        made(Twice(folder), tmp_path / "none")
        made(Files(folder, RandomCrop(9)), tmp_path / "random")
        made(Files(folder, Own()), tmp_path / "unknown")


class Greyed(Holding):
    """A step behind a transform that would come to the same before it."""

    def __getitem__(self, i):
        image, label = self.inner[i]
        return image.convert("L").convert("RGB"), label


def test_a_step_that_commutes_with_the_transform(folder, tmp_path):
    with pytest.warns(UserWarning, match="has another image than its `transform` makes of the raw one"):
        made(Greyed(Files(folder, RandomCrop(9))), tmp_path / "set")


class Noise:
    """Of a generator of its own."""

    def __init__(self):
        self.generator = np.random.default_rng()

    def __call__(self, image):
        image = np.asarray(image.resize((8, 8)))
        return Image.fromarray(image // 2 + self.generator.integers(9, size=image.shape, dtype=np.uint8))


def test_a_step_behind_numbers_that_cannot_be_drawn_again(folder, tmp_path):
    with warnings.catch_warnings(action="error"):
        made(Files(folder, Compose([Noise(), ToFloat()])), tmp_path / "fine")
    with pytest.warns(UserWarning, match="has another image than its `transform` makes of the raw one"):
        made(Greyed(Files(folder, Noise())), tmp_path / "set")


class Drawing(Twice):
    """Draws another item, for a contrastive loss, before it reads one."""

    def __getitem__(self, i):
        other = int(torch.randint(len(self), ()))
        return *super().__getitem__(i), other


def test_numbers_that_are_drawn_before_those_of_the_transform(folder, tmp_path):
    class Fine(Drawing):
        def __getitem__(self, i):
            return (int(torch.randint(9, ())), Files.__getitem__(self, i))[1]

    with warnings.catch_warnings(action="error"):
        made(Fine(folder, RandomCrop(9)), tmp_path / "random")
    for kind, steps in product((Drawing, Twice), ([ToFloat()], [RandomCrop(9), ToFloat()])):
        with pytest.warns(UserWarning, match="has another image than its `transform` makes of the raw one"):
            made(kind(folder, Compose(steps)), tmp_path / kind.__name__ / str(len(steps)))


def test_steps_that_need_what_the_transform_makes(folder, tmp_path):
    class Processed(Files):
        def __getitem__(self, i):
            image = self.transform(images=Image.open(self.files[i][0]), return_tensors="pt")["pixel_values"][0]
            return image, self.files[i][1]

    real = Processed(folder, lambda images, return_tensors: {"pixel_values": [ToFloat()(images)]})
    told = (
        r"fails behind its `transform`, which is not called here and returns what it is given \(KeyError: 'pixel_values"
    )
    with pytest.raises(ValueError, match=told):
        made(real, tmp_path / "set")


class Own:
    """Draws numbers of its own, so that nobody can tell what else happens."""

    def __init__(self):
        self.draws = random.Random(0)

    def __call__(self, image):
        return image.rotate(self.draws.random())


def albumentations(*, image):
    return {"image": torch.from_numpy(image.astype(np.float32))}


class Named(Files):
    def __getitem__(self, i):
        path, label = self.files[i]
        return self.transform(image=np.array(Image.open(path)))["image"], label


def test_a_transform_that_is_called_otherwise_is_told_before_anything_is_made(folder, tmp_path):
    arrays = ImageFolder(
        folder, lambda array: array.shape, loader=lambda path: np.array(Image.open(path).convert("RGB"))
    )
    for real in (Named(folder, albumentations), arrays):
        with pytest.raises(
            ValueError, match="`transform` can't be taken over .* an RGB image of PIL alone, which raised"
        ):
            made(real, tmp_path / "set")
        assert real[0] and not (tmp_path / "set").exists()
    given = {"transform": lambda image: albumentations(image=np.array(image))["image"]}
    assert made(Named(folder, albumentations), tmp_path / "set", **given)[0][0].shape == (16, 16, 3)
