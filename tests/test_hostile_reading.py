"""What datasets of one's own do while they are read, and what is changed after the set was made."""

import os
import shutil
import sys
from collections import deque
from types import FunctionType, SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, ToFloat, paint_folder
from homemade import Files, Holding, made
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import Grayscale

from torch_augcond import AugConditionedSynthetic, EmbedMixup, job
from torch_augcond.cli import main, preview
from torch_augcond.request import Request
from torch_augcond.sources import Sources, loaders


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


class Falling(Files):
    """Gives the next item where one can't be read for a moment."""

    away = 1

    def __getitem__(self, i):
        if i == 4 and self.away:
            self.away -= 1
            return self[i + 1]
        return super().__getitem__(i)


def test_an_item_whose_label_is_another_when_its_image_is_read(folder, tmp_path):
    with pytest.raises(ValueError, match=r"it said 1 and the item 0 at dataset\[4\].* and must be the same each time"):
        made(Falling(folder), tmp_path / "set")
    assert len(made(Falling(folder, away=0), tmp_path / "set")) == 10


class Reader(Dataset):
    """Reads items of another dataset by a function that holds it."""

    def __init__(self, read):
        self.read, self.classes = read, ["cat", "dog"]

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return self.read(i)


class Module:
    """Of the form of a LightningDataModule."""

    def __init__(self, train):
        self.train = train


class ByModule(Reader):
    def __init__(self, module):
        self.module, self.classes = module, ["cat", "dog"]

    def __getitem__(self, i):
        return self.module.train[i]


HIDDEN = {
    "closure": lambda d: Reader(lambda i: d[i]),
    "attribute of an attribute": lambda d: ByModule(Module(d)),
    "deque": lambda d: Reader(SimpleNamespace(all=deque([d])).all[0].__getitem__),
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_a_dataset_that_is_held_where_nobody_looks(folder, tmp_path, hide):
    told = "reads another one, of class ImageFolder, that isn't found among what it holds"
    with pytest.raises((ValueError, RuntimeError), match=told):
        made(hide(ImageFolder(folder, Grayscale(3))), tmp_path / "set")
    assert len(made(hide(ImageFolder(folder)), tmp_path / "set")) == 10


def test_watching_leaves_a_profiler_alone(folder):
    calls = []
    sys.setprofile(lambda *event: calls.append(event))
    try:
        Sources.from_dataset(Files(folder, ToFloat())).digests()
        assert sys.getprofile() is not None
    finally:
        sys.setprofile(None)
    assert calls


def test_a_database_that_is_opened_once_in_a_process(folder, tmp_path):
    opened = []

    class Database(Files):
        env = None

        def __getitem__(self, i):
            if self.env is None:
                if opened:
                    raise RuntimeError("it is already open in this process")
                self.env = opened.append(self) or True
            return super().__getitem__(i)

    assert len(made(Database(folder, ToFloat()), tmp_path / "set")) == 10


class Series:
    """As that of pandas: `[]` goes by an index, iteration by order."""

    def __init__(self, values, index):
        self.values, self.index = values, list(index)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        return self.values[self.index.index(key)]

    def keys(self):
        return self.index

    def tolist(self):
        return self.values


def test_a_series_is_taken_as_torch_takes_it(folder):
    real = Subset(ImageFolder(folder), Series([0, 1, 9], [2, 0, 1]))
    sources = Sources.from_dataset(real)
    assert sources.labels.tolist() == [real[i][1] for i in range(3)] == [0, 1, 0]
    assert Sources.from_dataset(Files(folder, classes=Series(["a", "b"], [0, 1]))).classes == ["a", "b"]
    with pytest.raises(ValueError, match="with the index 1, 0: is its order meant, or its index"):
        Sources.from_dataset(Files(folder, classes=Series(["a", "b"], [1, 0])))


def test_what_an_earlier_set_has_left_is_said(folder, tmp_path):
    content = (folder / "cat" / "0.png").read_bytes()
    made(ImageFolder(folder), tmp_path / "set")
    (folder / "cat" / "0.png").unlink()
    with pytest.warns(UserWarning, match="were set aside"):
        made(ImageFolder(folder), tmp_path / "set")
    shutil.rmtree(tmp_path / "set")
    (folder / "cat" / "0.png").write_bytes(content)
    with pytest.warns(
        UserWarning, match="1 images were taken back from .*stale, where an earlier set of this name has"
    ):
        made(ImageFolder(folder), tmp_path / "set")


def test_a_folder_that_is_called_like_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sd21-unclip").mkdir()
    hub = "sd2-community/stable-diffusion-2-1-unclip@0123"
    assert job._made_by(hub, "sd21-unclip") and job._doubt("my model: v2@1", "my model: v2") is None


def test_what_stands_for_nothing(folder, tmp_path):
    real = Files(folder, classes=2, targets=[1] * 10)  # a number of classes, say
    assert Sources.from_dataset(real).labels.tolist() == [0] * 5 + [1] * 5
    assert isinstance(made(Files(folder, False), tmp_path / "set")[0][0], Image.Image)


def test_names_of_a_subset(folder):
    part = Subset(ImageFolder(folder), range(10))
    part.classes, part.class_to_idx = ["cat", "dog"], None
    assert Sources.from_dataset(part).classes == ["cat", "dog"]
    for fewer in (["cat"], 2, {"cat": 0}):  # what is no list of names names nothing
        part.classes = fewer
        assert Sources.from_dataset(part).classes == ["cat", "dog"]
    part.classes = ["tabby", "dog"]
    with pytest.raises(
        ValueError, match="of a Subset must agree with the dataset in it, but label 0 is 'tabby' and 'cat'"
    ):
        Sources.from_dataset(ConcatDataset([part]))


@pytest.mark.parametrize("early", [None, int])
def test_a_target_transform_that_another_takes_the_place_of(folder, tmp_path, early):
    class Corrected(Holding):
        def __getitem__(self, i):
            image, label = self.inner[i]
            return image, 1 if i == 0 else label

    real = Corrected(Files(folder, None, early))
    synthetic = made(real, tmp_path / "set")
    real.inner.target_transform = lambda label: (label + 1) % 3
    with pytest.raises(ValueError, match="`target_transform` can't be taken over from a dataset whose item 0 has"):
        synthetic[0]


def test_a_joint_transform_that_is_set_late(folder, tmp_path):
    class Joint(Files):
        def __getitem__(self, i):
            path, label = self.files[i]
            return self.transform(Image.open(path), label) if self.transform else (Image.open(path), label)

    real = Joint(folder)
    synthetic = made(real, tmp_path / "set")
    real.transform = lambda image, label=None: image if label is None else (image, 1 - label)
    with pytest.raises(ValueError, match="item 0 has the label 1, of which it would make 0"):
        synthetic[0]
    synthetic.target_transform = int
    assert synthetic[0][1] == 0


def test_a_target_transform_that_exchanges_labels(folder, tmp_path):
    told = "makes label 0 to 1, and names are given to the labels before it: prompts of these images say 'cat'"
    with pytest.warns(UserWarning, match=told):
        made(Files(folder, None, lambda label: 1 - label), tmp_path / "set")


def twins(tmp_path):
    """One picture in two classes."""
    paint_folder(tmp_path / "real", {"cat": 2, "dog": 2})
    picture = (tmp_path / "real" / "cat" / "0.png").read_bytes()
    (tmp_path / "real" / "dog" / "0.png").write_bytes(picture)
    return tmp_path / "real"


def test_provenance_of_a_picture_in_two_classes(tmp_path):
    pictures = [(Image.open(path), label) for path, label in ImageFolder(twins(tmp_path)).samples]
    real = list(pictures)
    synthetic = made(real, tmp_path / "set")
    real.reverse()
    again = made(real, tmp_path / "set")
    for dataset, order in ((synthetic, pictures), (again, real)):
        for i in range(4):
            record = dataset.provenance(i)
            assert order[int(record["sources"][0][8:-1])][1] == record["label"]


def test_preview_of_a_picture_in_two_classes(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(preview, "synthesise", lambda recipes, *rest, **options: shown.extend(recipes) or ())
    request = Request(dataset=ImageFolder(twins(tmp_path)), generator=FakeGenerator(), augmentation="real")
    preview.contact_sheet({"real": request}, 4)
    assert sorted(recipe.prompt for recipe in shown) == ["a photo of a cat"] * 2 + ["a photo of a dog"] * 2


def test_a_batch_size_keeps_its_shape_for_few_images(folder, tmp_path):
    generator = FakeGenerator()
    AugConditionedSynthetic(ImageFolder(folder), "real", generator=generator, root=tmp_path / "set", batch_size=16)
    assert set(generator.batches) == {16}


def test_a_transform_that_is_changed_while_a_set_is_made(folder, tmp_path):
    mixup = EmbedMixup(alpha=0.2)

    class Changing(FakeGenerator):
        def generate(self, *given, augmentation, **options):
            mixup.alpha = 2.0
            return super().generate(*given, augmentation=augmentation, **options)

    synthetic = AugConditionedSynthetic(
        ImageFolder(folder), mixup, generator=Changing(), root=tmp_path / "set", batch_size=2
    )
    mixup.alpha = 0.2
    other = AugConditionedSynthetic(ImageFolder(folder), mixup, generator=FakeGenerator(), root=tmp_path / "other")
    for i in range(10):
        assert synthetic.provenance(i) == other.provenance(i) | {"sources": synthetic.provenance(i)["sources"]}
        assert np.array_equal(np.asarray(synthetic[i][0]), np.asarray(other[i][0]))


@pytest.mark.parametrize("kind", ["unused", "steps", "cached"])
def test_a_transform_that_is_set_late(folder, tmp_path, kind):
    class Late(Files):
        def __getitem__(self, i):
            image, label = Image.open(self.files[i][0]), self.files[i][1]
            if kind == "cached":
                self.cache[i] = self.cache.get(i) or (self.transform or Image.Image.copy)(image)
                return self.cache[i], label
            if self.transform and kind == "steps":
                return self.transform(image).mul(2), label
            return image, label

    real = Late(folder, cache={})
    synthetic = made(real, tmp_path / "set")
    assert len(real.cache) == (10 if kind == "cached" else 0)
    real.transform = ToFloat()
    if kind == "steps":
        with pytest.warns(UserWarning, match="item 0 of the dataset has another image than its `transform` makes"):
            synthetic[0]
    else:
        with pytest.raises(ValueError, match="returned it without calling its transform"):
            synthetic[0]


def test_labels_in_a_buffer_that_is_used_again(folder):
    class Buffered(Files):
        def __getitem__(self, i):
            path, label = self.files[i]
            return Image.open(path), self.buffer.fill_(label)

    assert Sources.from_dataset(Buffered(folder, buffer=torch.tensor(0))).labels.tolist() == [0] * 5 + [1] * 5


@pytest.mark.parametrize("form", [lambda pairs: np.array(pairs, object), lambda pairs: list(map(list, pairs))])
def test_samples_of_another_form_that_are_changed_in_place(folder, tmp_path, form):
    real = ImageFolder(folder)
    real.samples = form(real.samples)
    synthetic = made(real, tmp_path / "set")
    expected = [synthetic.provenance(i)["sources"] for i in range(10)]
    for i in range(10):
        real.samples[i][0] = "elsewhere"
    assert [synthetic.provenance(i)["sources"] for i in range(10)] == expected


def test_a_transform_of_one_part(folder, tmp_path):
    both = ConcatDataset([ImageFolder(folder), ImageFolder(folder, Grayscale(3))])
    for real in (both, Subset(both, range(10))):
        with pytest.raises(ValueError, match="`transform` can't be taken over .* one in only some of its parts"):
            made(real, tmp_path / "set")


def test_a_function_in_the_place_of_torchvisions_loader(folder, monkeypatch):
    plain = Sources.from_dataset(ImageFolder(folder)).digest(0)
    monkeypatch.setattr("torchvision.datasets.folder.pil_loader", lambda path: Image.open(path).convert("L"))
    other = Sources.from_dataset(ImageFolder(folder))
    assert other.digest(0) != plain
    assert np.asarray(other.image(0)).std(axis=-1).max() == 0
    monkeypatch.undo()
    grey = FunctionType(Reader.__getitem__.__code__.replace(co_name="default_loader"), {})  # named so, and not there
    assert not loaders.is_default(grey) and loaders.is_default(ImageFolder(folder).loader)


def test_a_cut_off_image_is_none_whatever_a_script_has_told_pillow(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    path = folder / "cat" / "0.jpg"
    Image.effect_noise((64, 64), 90).save(path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(RuntimeError, match="image file is truncated"):
        made(ImageFolder(folder), tmp_path / "set")


def test_names_of_a_subset_of_a_wrapper(folder):
    class Few(Holding):
        """Two of four classes, numbered anew; the names are those of all."""

    real = Few(Files(folder, classes=["ant", "bee", "cat", "dog"]))
    for part in (real, Subset(real, range(5, 10))):
        with pytest.warns(UserWarning, match="4 classes have names, but no image has the label 2, 3"):
            Sources.from_dataset(part)
    real = Few(Files(folder, None, None, classes=None))
    real.classes = ["ant", "bee"]
    real.inner.files = [(path, label + 1) for path, label in real.inner.files]
    with pytest.raises(ValueError, match="has no name for 2"):  # a bootstrap isn't the whole
        Sources.from_dataset(Subset(real, [0] * 10))


def test_a_root_above_a_link(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    monkeypatch.chdir(tmp_path)
    synthetic = made(ImageFolder(folder), "link/../set")
    assert len(list((tmp_path / "a" / "set").glob("*/*.png"))) == 10 and not (tmp_path / "set").exists()
    assert main(["verify", "link/../set"]) == 0
    assert "0 damaged or gone" in capsys.readouterr().out and synthetic.root == str(tmp_path / "a" / "set")


def test_a_class_folder_with_a_link_in_its_place(folder, tmp_path):
    made(ImageFolder(folder), tmp_path / "set")
    (tmp_path / "set" / "cat").rename(tmp_path / "elsewhere")
    (tmp_path / "set" / "cat").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="a class folder must not be a link or a file, but .*cat is"):
        made(ImageFolder(folder), tmp_path / "set")


def test_one_image_for_which_the_memory_suffices_alone(folder, tmp_path):
    options = {"root": tmp_path / "set", "augmentation": "real"}
    synthetic = AugConditionedSynthetic(ImageFolder(folder), generator=FakeGenerator(), **options)
    os.unlink(synthetic.samples[0][0])
    assert len(AugConditionedSynthetic(ImageFolder(folder), generator=FakeGenerator(limit=2), **options)) == 10
