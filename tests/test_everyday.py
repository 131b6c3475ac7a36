"""What people have in their training scripts every day, and what they are told about it."""

import shutil
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, ToFloat, paint_folder
from homemade import Files, Holding, made
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import Caltech256, ImageFolder, ImageNet
from torchvision.transforms import v2

from torch_augcond import AugConditionedSynthetic, MixedRealSyntheticSampler
from torch_augcond.progress import bar
from torch_augcond.sources import Sources

TENSORS = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Resize((8, 8)), v2.Normalize([0.5], [0.5])])
PICTURES = v2.Compose([v2.ToImage(), TENSORS])


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


def test_a_folder_that_is_gone_through_several_times_an_epoch(folder, tmp_path):
    class Repeated(ImageFolder):
        def __len__(self):
            return 3 * len(self.samples)

        def __getitem__(self, i):
            return super().__getitem__(i % len(self.samples))

    assert len(made(Repeated(folder), tmp_path / "set")) == 30


def test_one_default_root_for_a_number_however_it_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path))
    scales = (3, 3.0, np.float32(3), np.int64(3))
    assert len({made(ImageFolder(folder), None, guidance_scale=scale).root for scale in scales}) == 1
    assert made(ImageFolder(folder), None, guidance_scale=2).root != made(ImageFolder(folder), None).root


class Few(Holding):
    """Some classes of a folder, numbered anew."""

    def __init__(self, inner, keep, classes):
        self.inner, self.classes, self.keep = inner, classes, keep
        self.items = [i for i, label in enumerate(inner.targets) if label in keep]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        image, label = self.inner[self.items[i]]
        return image, self.keep.index(label)


class Pairs(Holding):
    """Reads one of the next class, too."""

    def __getitem__(self, i):
        return (*self.inner[i], self.inner[i - 3][0])[:2]


class Keeping(Holding):
    """Keeps what it has read."""

    def __init__(self, inner, classes):
        self.inner, self.classes, self.cache = inner, classes, {}

    def __getitem__(self, i):
        if i not in self.cache:
            self.cache[i] = self.inner[i]
        return self.cache[i]


class Renumbered(ImageFolder):
    def __init__(self, root):
        super().__init__(root)
        self.targets = [(label + 1) % 3 for label in self.targets]

    def __getitem__(self, i):
        return super().__getitem__(i)[0], self.targets[i]


def test_names_that_are_those_of_other_folders(folder, tmp_path):
    three = ImageFolder(paint_folder(folder.parent / "three", {"ant": 3, "bee": 3, "cat": 3}))
    told = "label 0 is called 'ant', but all of its images lie in the folder '{}': prompts are made of names"
    for real, name in (Subset(Few(three, [1, 2], three.classes), range(5)), "bee"), (Renumbered(three.root), "cat"):
        with pytest.warns(UserWarning, match=told.format(name)):
            made(real, tmp_path / name)
    with pytest.warns(UserWarning, match="label 0 is called 'bee', but all of its images lie in the folder 'ant'"):
        made(Keeping(three, ["bee", "ant", "cat"]), tmp_path / "kept")
    with warnings.catch_warnings(action="error"):
        made(Subset(Few(three, [1, 2], three.classes[1:]), range(5)), tmp_path / "right")
        made(Few(three, [0, 2, 1], ["ant", "cat", "bee"]), tmp_path / "order")
        made(Pairs(three), tmp_path / "pairs")


WNIDS = {
    "n01440764": ("tench",),
    "n01443537": ("goldfish",),
    "n02123045": ("tabby", "tabby cat"),
    "n02504013": ("elephant",),
}


class ImageNetWithPaths(ImageNet):
    def __getitem__(self, i):
        return *super().__getitem__(i), self.samples[i][0]


@pytest.mark.parametrize("kind", [ImageNet, ImageNetWithPaths])
def test_some_classes_of_imagenet_numbered_anew(tmp_path, kind):
    paint_folder(tmp_path / "imagenet" / "train", dict.fromkeys(WNIDS, 2))
    torch.save((WNIDS, []), tmp_path / "imagenet" / "meta.bin")
    real = kind(tmp_path / "imagenet")
    with warnings.catch_warnings(action="error"):
        warnings.filterwarnings("ignore", "a batch can't hold")
        assert made(real, tmp_path / "whole").classes[2] == "tabby, tabby cat"
    real.samples = [(path, {2: 0, 3: 1}[label]) for path, label in real.samples if label > 1]
    with pytest.raises(
        ValueError, match="`samples` must label images as `class_to_idx` does, but gives 0 to images of"
    ):
        made(real, tmp_path / "set")


class Records(ImageFolder):
    """Its own lists, which aren't torchvision's pairs."""

    def __init__(self, folder):
        super().__init__(folder)
        self.samples = [{"path": path, "label": label} for path, label in self.samples]

    def __getitem__(self, i):
        return self.loader(self.samples[i]["path"]), self.samples[i]["label"]


def test_lists_of_other_things(folder, tmp_path):
    assert len(made(Records(folder), tmp_path / "set")) == 10


def test_parts_that_share_a_list_of_names(folder, tmp_path):
    with warnings.catch_warnings(action="error"):
        parts = [Subset(Files(folder), range(5)), Subset(Files(folder), range(5, 10))]
        made(ConcatDataset([Holding(Named(part)) for part in parts]), tmp_path / "set")


class Named(Holding):
    def __init__(self, inner):
        self.inner, self.classes = inner, ["cat", "dog"]


def test_16_bits_in_a_wrapper_are_those_of_the_file(tmp_path):
    folder = tmp_path / "scans" / "lung"
    folder.mkdir(parents=True)
    Image.fromarray(np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)).save(folder / "0.png")
    sources = [
        Sources.from_dataset(dataset) for dataset in (ImageFolder(folder.parent), Holding(ImageFolder(folder.parent)))
    ]
    plain, held = (np.asarray(one.image(0)) for one in sources)
    assert (plain == held).all() and 100 < held.mean() < 150


class Pictures(Dataset):
    """In memory, sorted by class."""

    def __init__(self, keep):
        self.classes, self.keep = ["ant", "bee", "cat"], keep

    def __len__(self):
        return 6 * len(self.keep)

    def __getitem__(self, i):
        return Image.new("RGB", (8, 8), (10 * i, 99, 0)), i // 6


def test_some_classes_in_memory_numbered_anew(tmp_path):
    with pytest.warns(UserWarning, match="3 classes have names, but no image has the label 2"):
        made(Subset(Pictures(["bee", "cat"]), [0, 1, 7]), tmp_path / "two")
    with warnings.catch_warnings(action="error"):
        made(Subset(Pictures(["ant", "bee", "cat"]), [0, 1, 7]), tmp_path / "three")


def test_names_of_caltech(tmp_path):
    folders = {f"caltech256/256_ObjectCategories/{name}": 2 for name in ("001.ak47", "002.american-flag")}
    for path in list(paint_folder(tmp_path, folders).rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name[:3]}_{int(path.stem) + 1:04d}.jpg"))
    with pytest.warns(UserWarning, match="class names such as '001.ak47', '002.american-flag' hold numbers"):
        assert made(Caltech256(tmp_path), tmp_path / "set").classes == ["001.ak47", "002.american-flag"]


def test_counts_with_a_default(folder, tmp_path):
    counts = defaultdict(lambda: 3, dog=1)
    synthetic = AugConditionedSynthetic(
        ImageFolder(folder), generator=FakeGenerator(), root=tmp_path / "set", num_per_class=counts
    )
    assert synthetic.targets == [0, 0, 0, 1] and dict(counts) == {"dog": 1}
    with pytest.raises(TypeError, match=r"`num_per_class` must be an int or {class: int}, but got \[1, 2\]"):
        AugConditionedSynthetic(ImageFolder(folder), generator=FakeGenerator(), num_per_class=[1, 2])


def test_a_list_that_was_exported_before_a_set_grew(folder, tmp_path):
    made(ImageFolder(folder, ToFloat()), tmp_path / "set")
    (tmp_path / "set" / "metadata.jsonl").write_text("{}")
    with warnings.catch_warnings(action="error"):
        made(ImageFolder(folder), tmp_path / "set")
    with pytest.warns(UserWarning, match="metadata.jsonl lists the images of before: run `torch-augcond export` again"):
        made(ImageFolder(folder), tmp_path / "set", num_per_image=2)
    (folder / "cat" / "0.png").unlink()
    with pytest.warns(UserWarning, match="metadata.jsonl lists the images of before: run `torch-augcond export` again"):
        made(ImageFolder(folder), tmp_path / "set")


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    with bar(10, "generating") as shown:
        shown.update(5)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("torch_augcond.progress._FIRST_SECONDS", 0)
    tee = SimpleNamespace(write=sys.stderr.write, flush=sys.stderr.flush)  # as scripts have it that keep a log
    monkeypatch.setattr("sys.stderr", tee)
    with bar(20, "generating", initial=5) as shown:
        shown.update(5)
    assert "generating:  50% 10/20 [" in capsys.readouterr().err


def test_a_part_whose_transform_is_false_has_none(folder, tmp_path):
    with pytest.raises(ValueError, match="`transform` can't be taken over .* one in only some of its parts"):
        made(ConcatDataset([Files(folder, ToFloat()), Files(folder, False)]), tmp_path / "set")


class Split(ImageFolder):
    """As torchvision's Country211: its root is above the folder of a split."""

    def __init__(self, root, split):
        super().__init__(root / split)
        self.root = root


def test_splits_have_default_roots_of_their_own(folder):
    paint_folder(folder.parent / "all" / "train", {"cat": 2, "dog": 2})
    paint_folder(folder.parent / "all" / "test", {"cat": 2, "dog": 2})
    texts = {Sources.from_dataset(Split(folder.parent / "all", split)).identity for split in ("train", "test")}
    assert len(texts) == 2 and Sources.from_dataset(ImageFolder(folder)).identity == f"ImageFolder:{folder}"


def test_files_from_a_folder_below_one_that_is_called_like_a_class(folder, tmp_path):
    real, other = ImageFolder(folder), ImageFolder(paint_folder(tmp_path / "cat" / "more", {"dog": 2, "eel": 2}))
    real.samples = real.samples + [(path, 1) for path, label in other.samples if label == 0]
    assert len(made(real, tmp_path / "set")) == 12


def test_one_synthetic_image_among_real_ones_makes_no_set_of_them(folder, tmp_path):
    synthetic = made(ImageFolder(folder), tmp_path / "set")
    shutil.copy(synthetic.samples[0][0], folder / "cat" / "!.png")
    real = ImageFolder(folder)
    assert Path(real.samples[0][0]).name == "!.png"
    MixedRealSyntheticSampler(real + synthetic)  # real images are there


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_set_read_as_a_plain_folder_is_synthetic(folder, tmp_path, is_whole):
    real, other = ImageFolder(folder), tmp_path / "b"
    made(real, other)
    if not is_whole:  # `cp other/* there` leaves them
        (other / ".augcond.json").unlink()
    train = real + made(real, tmp_path / "a") + ImageFolder(other)
    assert sum(i < len(real) for i in MixedRealSyntheticSampler(train)) == len(real) == len(train) / 3


def test_recordings_are_no_classes(tmp_path):
    recordings = {f"{name}/{name} {k}": 2 for name in ("cat", "dog") for k in range(2)}
    with warnings.catch_warnings(action="error"):
        made(ImageFolder(paint_folder(tmp_path / "real", recordings)), tmp_path / "set")


def test_a_reason_is_told_once(folder):
    class Gone(Files):
        def __getitem__(self, i):
            raise OSError("the disk is gone")

    with pytest.raises(ValueError, match=r"dataset\[4\] and 5 more \(OSError: the disk is gone\)\. Mend these"):
        Sources.from_dataset(Gone(folder))


@pytest.mark.parametrize("named", [{"classes": ["dog", "cat"]}, {"class_to_idx": {"dog": 0, "cat": 1}}])
def test_classes_in_another_order_have_one_default_root(folder, tmp_path, monkeypatch, named):
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))

    class Exchanged(Files):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image, 1 - label

    Exchanged.__name__, Exchanged.__qualname__ = Files.__name__, Files.__qualname__
    both = Files(folder, classes=["cat", "dog"]), Exchanged(folder, **named)
    assert len({made(real, None).root for real in both}) == 1


@pytest.mark.filterwarnings("ignore")
def test_what_a_dataset_draws_for_each_item_is_told_as_such(folder, tmp_path):
    class Flipped(Files):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return v2.RandomHorizontalFlip()(image), label

    for k in range(5):
        with pytest.raises(RuntimeError, match="draw nothing at random inside `__getitem__`"):
            made(Flipped(folder, v2.ToImage(), classes=["cat", "dog"]), tmp_path / f"set{k}")
