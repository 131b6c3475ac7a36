"""Raw images, labels and names out of every kind of dataset."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ChainDataset, ConcatDataset, Dataset, Subset, random_split
from torchvision.datasets import CIFAR10, DatasetFolder, FakeData, ImageFolder, VisionDataset
from torchvision.transforms import v2

from torch_augcond.sources import Sources, UnreadableImage
from torch_augcond.sources.takeover import Takeover


def picture(k, size=(8, 6)):
    pixels = np.random.default_rng(k).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def pixels_of(image):
    return np.asarray(image).tolist()


@pytest.fixture
def folder(tmp_path):
    """Six files of three classes."""
    for k in range(6):
        path = tmp_path / "set" / ["ant", "bee", "cow"][k // 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(k).save(path)
    return tmp_path / "set"


class Items(Dataset):
    """A user's dataset, which transforms whether there is a transform or not."""

    def __init__(self, images, returned, transform=None, **attributes):
        self.images, self.returned, self.transform = images, returned, transform
        self.__dict__.update(attributes)
        self.read = np.zeros(len(images), int)  # shared by copies, as no list is

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        self.read[i] += 1
        return self.transform(self.images[i]) if self.transform else self.images[i], self.returned[i]


def of_labels(labels, **attributes):
    return Sources.from_dataset(Items([picture(k) for k in range(len(labels))], labels, **attributes))


TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


class TestFolders:
    def test_image_folder(self, folder):
        dataset = ImageFolder(folder, transform=TENSOR, target_transform=str)
        sources = Sources.from_dataset(dataset)
        assert (len(sources), sources.classes) == (6, ["ant", "bee", "cow"])
        assert sources.class_to_idx == dataset.class_to_idx
        assert (sources.labels.dtype, sources.labels.tolist()) == (np.int64, [0, 0, 1, 1, 2, 2])
        assert pixels_of(sources.image(-1)) == pixels_of(picture(5))
        assert sources.name(5) == str(folder / "cow" / "5.png")
        assert Takeover(sources).transform is TENSOR
        assert Takeover(sources).target_transform is str
        with pytest.raises(IndexError):
            sources.image(6)

    def test_the_transform_is_read_when_asked_for(self, folder):
        dataset = ImageFolder(folder)
        sources = Sources.from_dataset(Subset(dataset, [0]))
        assert Takeover(sources).transform is None
        dataset.transform = TENSOR
        assert Takeover(sources).transform is TENSOR

    def test_the_users_loader_reads(self, folder):
        for path in folder.glob("*/*.png"):
            np.save(path.with_suffix(".npy"), np.asarray(Image.open(path))[:2])
        dataset = DatasetFolder(folder, loader=np.load, extensions=(".npy",), transform=TENSOR)
        sources = Sources.from_dataset(dataset)
        assert pixels_of(sources.image(2)) == pixels_of(picture(2))[:2]

    def test_a_loader_that_returns_none_could_not_read(self, folder):
        sources = Sources.from_dataset(ImageFolder(folder, loader=lambda path: None))
        with pytest.raises(UnreadableImage, match=r"0\.png could not be read: ValueError: its loader returned None"):
            sources.image(0)

    def test_files_that_only_the_loader_can_find(self, folder):
        class Archive(ImageFolder):
            @staticmethod
            def make_dataset(directory, class_to_idx, **_):
                return [("in the archive/0", 0), ("in the archive/1", 2)]

        sources = Sources.from_dataset(Archive(folder, loader=lambda path: picture(int(path[-1]))))
        assert pixels_of(sources.image(1)) == pixels_of(picture(1))
        assert sources.digest(0) == of_labels([0]).digest(0)

    def test_a_subclass_that_returns_more_is_read_item_by_item(self, folder):
        class WithPath(ImageFolder):
            def __getitem__(self, i):
                return *super().__getitem__(i), self.samples[i][0]

        sources = Sources.from_dataset(WithPath(folder, transform=TENSOR))
        assert sources.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert pixels_of(sources.image(3)) == pixels_of(picture(3))


class TestWrapping:
    def test_nested_subsets(self, folder):
        dataset = Subset(Subset(ImageFolder(folder, transform=TENSOR), torch.tensor([5, 3, 0, -2])), [3, 0])
        sources = Sources.from_dataset(dataset)
        assert sources.labels.tolist() == [2, 2]
        assert [sources.name(i)[-5:] for i in range(2)] == ["4.png", "5.png"]
        assert sources.classes == ["ant", "bee", "cow"]
        assert Takeover(sources).transform is TENSOR

    def test_random_split_of_a_concatenation(self, folder):
        both = ConcatDataset([ImageFolder(folder, TENSOR), Items([picture(9)], [1], classes=["ant", "bee", "cow"])])
        part, rest = (Sources.from_dataset(p) for p in random_split(both, [4, 3]))
        assert sorted([*part.labels, *rest.labels]) == [0, 0, 1, 1, 1, 2, 2]
        whole = Sources.from_dataset(both)
        assert pixels_of(whole.image(6)) == pixels_of(picture(9))
        with pytest.raises(ValueError, match="`transform` can't be taken over .* one in only some of its parts"):
            assert Takeover(whole).transform
        assert whole.name(6) == "dataset[6]"

    def test_parts_must_agree_on_names(self):
        both = ConcatDataset([Items([picture(0)], [0], classes=["ant"]), Items([picture(1)], [0], classes=["bee"])])
        with pytest.raises(ValueError, match="must agree on label 0, but got 'ant' and 'bee'"):
            Sources.from_dataset(both)

    def test_a_subset_that_transforms_is_switched_off_throughout(self, folder):
        class Transformed(Subset):
            transform = staticmethod(TENSOR)

            def __getitem__(self, i):
                image, label = super().__getitem__(i)
                return self.transform(image), label

            def __getitems__(self, indices):
                return [self[i] for i in indices]

        crop = v2.RandomCrop(2)
        sources = Sources.from_dataset(Transformed(ImageFolder(folder, crop), [4]))
        assert pixels_of(sources.image(0)) == pixels_of(picture(4))
        with pytest.raises(ValueError, match="`transform` can't be taken over .* 2 different ones.* Pass `transform="):
            assert Takeover(sources).transform

    def test_a_joint_transform_is_switched_off_but_not_taken_over(self):
        class Joint(VisionDataset):
            def __len__(self):
                return 1

            def __getitem__(self, i):
                return self.transforms(picture(i), 3)

        sources = Sources.from_dataset(Joint("", transforms=lambda image, label: (None, None)))
        assert (pixels_of(sources.image(0)), sources.labels.tolist()) == (pixels_of(picture(0)), [3])
        with pytest.raises(ValueError, match="`transform` can't be taken over from a dataset with a joint"):
            assert Takeover(sources).transform

    def test_keyword_transforms(self):
        class Album(Items):
            def __getitem__(self, i):
                return self.transform(image=np.asarray(self.images[i]))["image"], 0

        sources = Sources.from_dataset(Album([picture(7)], [0], transform=lambda image: {"image": None}))
        assert pixels_of(sources.image(0)) == pixels_of(picture(7))

    def test_torchvisions_own(self, tmp_path, monkeypatch):
        base = tmp_path / CIFAR10.base_folder
        base.mkdir()
        data = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
        batch = {"data": data, "labels": [3, 1, 1, 9]}
        for name, content in [("test_batch", batch), ("batches.meta", {"label_names": list("abcdefghij")})]:
            (base / name).write_bytes(pickle.dumps(content))
        monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
        dataset = CIFAR10(tmp_path, train=False, transform=TENSOR, target_transform=str)
        sources = Sources.from_dataset(dataset)
        assert sources.labels.tolist() == [3, 1, 1, 9]
        assert sources.classes == list("abcdefghij")
        assert pixels_of(sources.image(2)) == np.moveaxis(data[2].reshape(3, 32, 32), 0, -1).tolist()

    def test_without_targets_it_is_read(self):
        sources = Sources.from_dataset(FakeData(5, (3, 8, 8), 4, transform=TENSOR))
        assert sources.labels.tolist() == [FakeData(5, (3, 8, 8), 4)[i][1] for i in range(5)]

    def test_a_plain_list(self):
        sources = Sources.from_dataset([(picture(0), 2), (picture(1), np.int16(7))])
        assert (sources.labels.tolist(), Takeover(sources).transform) == ([2, 7], None)

    def test_the_dataset_itself_is_left_alone(self):
        dataset = Items([picture(0)], [0], transform=TENSOR)
        Sources.from_dataset(dataset).image(0)
        assert dataset[0][0].dtype == torch.float32


class TestLabels:
    @pytest.mark.parametrize(
        "labels", [[0, 4, 4], np.array([0, 4, 4], np.uint8), torch.tensor([0, 4, 4]), [np.int32(0), 4, torch.tensor(4)]]
    )
    def test_kinds_of_ints_that_need_not_be_contiguous(self, labels):
        for sources in (of_labels(labels), of_labels(labels, targets=labels)):
            assert sources.labels.tolist() == [0, 4, 4]
            assert sources.class_of == {0: "0", 4: "4"}
            assert (sources.classes, sources.class_to_idx) == (["0", "4"], {"0": 0, "4": 4})

    @pytest.mark.parametrize("name", ["targets", "labels", "_labels"])
    def test_targets_save_reading(self, name):
        dataset = Items([picture(k) for k in range(9)], [1] * 9, **{name: [1] * 9})
        assert Sources.from_dataset(dataset).labels.tolist() == [1] * 9
        assert dataset.read.sum() == 3

    @pytest.mark.parametrize("wrong", [["ant", "bee"], [5, 5], [1.0, 2.0], {0: 1, 1: 2}, [1]])
    def test_targets_that_are_not_what_the_dataset_returns_are_not_believed(self, wrong):
        assert of_labels([1, 2], targets=wrong).labels.tolist() == [1, 2]

    @pytest.mark.parametrize(
        "labels, error, match",
        [
            (["ant", 1, None], TypeError, r"got 'ant' \(str\) at dataset\[0\], None \(NoneType\) at dataset\[2\]. Map"),
            ([1.0], TypeError, r"labels must be ints, but got 1.0 \(float\)"),
            ([True], TypeError, r"labels must be ints, but got True \(bool\)"),
            ([torch.tensor([1, 0])], TypeError, r"labels must be ints, but got tensor\(\[1, 0\]\)"),
            (["x"] * 7, TypeError, r"at dataset\[4\] and 2 more"),
            ([0, -1, -1], ValueError, r"0 or more .* but got -1 at dataset\[1\], -1 at dataset\[2\]. Leave unlabelled"),
        ],
    )
    def test_errors_list_all_offenders(self, labels, error, match):
        with pytest.raises(error, match=match):
            of_labels(labels)
        with pytest.raises(error, match=match):
            of_labels(labels, targets=labels)

    @pytest.mark.parametrize(
        "dataset, error, match",
        [
            ([], ValueError, "`dataset` must hold at least one image, but got an empty one"),
            (Subset([(picture(0), 0)], []), ValueError, "`dataset` must hold at least one image"),
            (Subset([(picture(0), 0)], [0.7]), TypeError, r"`Subset.indices` must be an int, but got 0\.7 \(float\)"),
            (Subset([(picture(0), 0)], [-1, 1]), ValueError, "`Subset.indices` must lie in .* of 1 items, but got 1"),
            (Subset([(picture(0), 0)], [10**20]), ValueError, r"lie in its dataset of 1 items, but got 10{20}\."),
            (ChainDataset([]), TypeError, "`dataset` must be map-style, but got ChainDataset, an IterableDataset"),
            (3, TypeError, "`dataset` must have `__getitem__` and `__len__`, but got int"),
            ([picture(0)], TypeError, r"`dataset\[0\]` must be \(image, label\), but got Image"),
            ([{"image": picture(0)}], TypeError, r"`dataset\[0\]` must be \(image, label\), but got dict"),
        ],
    )
    def test_datasets_that_are_none(self, dataset, error, match):
        with pytest.raises(error, match=match):
            Sources.from_dataset(dataset)


class TestNames:
    def test_class_to_idx_that_is_not_contiguous(self):
        sources = of_labels([9, 5], classes=["ant", "bee"], class_to_idx={"bee": 9, "ant": 5})
        assert (sources.classes, sources.class_of) == (["ant", "bee"], {5: "ant", 9: "bee"})

    def test_synonyms_and_names_that_occur_twice(self):
        """As torchvision's ImageNet has them."""
        classes = [("crane",), ("tench", "Tinca tinca"), ("crane",)]
        to_idx = {"crane": 2, "tench": 1, "Tinca tinca": 1}
        assert of_labels([0], classes=classes, class_to_idx=to_idx).classes == [
            "crane (0)",
            "tench, Tinca tinca",
            "crane (2)",
        ]

    def test_classes_without_images_stay(self, folder):
        shutil.rmtree(folder / "bee")
        (folder / "bee").mkdir()
        sources = Sources.from_dataset(ImageFolder(folder, allow_empty=True))
        assert (sources.classes, sources.labels.tolist()) == (["ant", "bee", "cow"], [0, 0, 2, 2])

    def test_labels_without_a_name(self):
        with pytest.raises(ValueError, match="`classes` must name every label, but has no name for 3, 7"):
            of_labels([0, 3, 7], classes=["ant", "bee"])

    def test_labels_from_1_in_a_part_that_lacks_the_last_one(self, folder):
        def part(labels):
            return Subset(Items([picture(0)] * 3, labels, targets=labels, classes=["ant", "bee"]), [0, 0])

        with pytest.raises(ValueError, match="`classes` must name every label, but has no name for 2"):
            Sources.from_dataset(part([1, 1, 2]))
        with pytest.warns(UserWarning, match="have the label 2, which has no name: check that 1 means 'bee'"):
            assert Sources.from_dataset(part([1, 0, 2])).classes == ["ant", "bee"]
        assert Sources.from_dataset(part([1, 1, -1])).classes == ["ant", "bee"]  # what is left out may have none
        nameless = Items([picture(0)] * 3, [1, 1, 2], targets=[1, 1, 2])
        assert Sources.from_dataset(Subset(nameless, [0, 1])).class_of == {1: "1"}
        dataset = ImageFolder(folder)
        dataset.samples = [(f"elsewhere/{k}", 1 + k // 2) for k in range(6)]
        with pytest.raises(ValueError, match="`classes` must name every label, but has no name for 3"):
            Sources.from_dataset(Subset(dataset, [0, 2]))

    @pytest.mark.parametrize("root", ["set", "./set", Path("set")])
    def test_relabelled_by_paths_of_another_form(self, folder, monkeypatch, root):
        monkeypatch.chdir(folder.parent)
        dataset = ImageFolder(root)
        dataset.samples = [(os.path.abspath(path), label) for path, label in dataset.samples]
        assert Sources.from_dataset(dataset).classes == ["ant", "bee", "cow"]
        dataset.samples = [(path, label // 2) for path, label in dataset.samples]
        with pytest.raises(ValueError, match="but gives 0 to images of 'bee', 1 to images of 'cow'"):
            Sources.from_dataset(dataset)
        dataset.root = str(folder)
        for start in (folder.parent, folder):  # to the root, a loader of one's own may add them
            dataset.samples = [(os.path.relpath(folder.parent / path, start), label) for path, label in dataset.samples]
            with pytest.raises(ValueError, match="but gives 0 to images of 'bee', 1 to images of 'cow'"):
                Sources.from_dataset(dataset)


class TestIdentity:
    def test_a_folder_is_where_it_lies_and_a_subset_what_it_chooses(self, folder, monkeypatch):
        def identity(dataset):
            return Sources.from_dataset(dataset).identity

        whole = ImageFolder(folder)
        before = identity(whole)
        monkeypatch.chdir(folder.parent)
        assert before == identity(ImageFolder("set")) == identity(Subset(whole, [5, 4, 3, 2, 1, 0]))
        parts = [before, identity(Subset(whole, [0])), identity(Subset(whole, [1])), identity(whole + whole)]
        parts += [identity(Items([picture(k)], [k])) for k in range(2)]
        assert len(set(parts)) == 6
        picture(9).save(folder / "ant" / "new.png")
        assert identity(ImageFolder(folder)) == before

    def test_other_datasets_may_grow_and_are_told_apart(self):
        def identity(n=4, labels=(0, 1), start=0, **attributes):
            images = [picture(start + k) for k in range(n)]
            return Sources.from_dataset(Items(images, (list(labels) * n)[:n], **attributes)).identity

        grown = [identity(), identity(n=9), identity(n=9, labels=(0, 1, 2)), identity(count=7), identity(transform=str)]
        assert len(set(grown)) == 1
        others = [identity(start=1), identity(labels=(1, 0)), identity(train=True), identity(train=False)]
        others += [identity(split="val"), identity(noise=0.2), identity(classes=["ant", "bee"]), identity(root="/a")]
        assert len({grown[0], *others}) == 9
        assert identity(root=Path("a")) == identity(root=os.path.abspath("a"))

    def test_a_first_image_that_can_not_be_read_has_an_identity(self):
        assert Sources.from_dataset(Items([None, picture(1)], [0, 1])).identity


def test_survives_pickling(folder):
    sources = Sources.from_dataset(Items([picture(0)], [0], transform=str))
    assert pickle.loads(pickle.dumps(sources)).digest(0) == sources.digest(0)


def test_reads_no_image_to_find_a_folders_labels(folder):
    for path in folder.glob("*/*.png"):
        os.truncate(path, 0)
    assert len(Sources.from_dataset(ImageFolder(folder))) == 6
