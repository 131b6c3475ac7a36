"""What datasets do that nobody planned for: labels that items contradict, caches, wrappers, loaders without a name."""

import copy
import pickle
import shutil
import threading
import warnings

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, ToFloat, paint_folder
from homemade import Duck, Files, Holding, Parts, labels_of, made, plus10, times2
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder, OxfordIIITPet, VisionDataset

from torch_augcond import AugConditionedSynthetic
from torch_augcond.sources import Sources, UnreadableImage
from torch_augcond.sources.layers import layers, transforms_off
from torch_augcond.sources.takeover import Takeover


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 5, "dog": 5})


class TestLabels:
    def test_items_that_contradict_their_targets_are_all_named(self, folder, tmp_path):
        class Corrected(ImageFolder):
            def __getitem__(self, i):
                image, label = super().__getitem__(i)
                return image, {3: 1, 7: 0}.get(i, label)

        both = r"`targets` says 0 and the item 1 at dataset\[3\], `targets` says 1 and the item 0 at dataset\[7\]\."
        real = Corrected(folder)
        with pytest.raises(ValueError, match=f"labels must be those of the items, but {both} Correct the list"):
            made(real, tmp_path / "set")
        real.targets = None
        assert made(real, tmp_path / "set").targets == [0] * 5 + [1] * 5
        synthetic = made(real, tmp_path / "set")
        label_of = {synthetic.provenance(i)["sources"][0]: synthetic[i][1] for i in range(10)}
        assert (label_of["dataset[3]"], label_of["dataset[7]"]) == (1, 0)

    @pytest.mark.parametrize("kind", [lambda y: np.array([y]), float, torch.tensor, lambda y: np.eye(2)[y]])
    def test_labels_that_are_no_ints_are_compared_with_targets(self, folder, tmp_path, kind):
        class Corrected(Files):
            def __getitem__(self, i):
                image, label = super().__getitem__(i)
                return image, kind({3: 1}.get(i, label))

        with pytest.raises(ValueError, match=r"`targets` says 0 and the item 1 at dataset\[3\]"):
            made(Corrected(folder, targets=[0] * 5 + [1] * 5), tmp_path / "set")

    def test_an_item_that_raises_is_named_with_its_reason(self, folder):
        class Broken(Files):
            def __getitem__(self, i):
                if i == 3:
                    raise OSError("bad file")
                return super().__getitem__(i)

        with pytest.raises(ValueError, match=r"reading failed for dataset\[3\] \(OSError: bad file\)\. Mend these"):
            Sources.from_dataset(Broken(folder))
        sources = Sources.from_dataset(Broken(folder, targets=[0] * 5 + [1] * 5))
        failed = {}
        sources.digests(failed=failed)
        assert list(failed) == [3]

    def test_names_the_wrong_way_round_in_an_array_and_in_a_dict(self, folder):
        with pytest.raises(
            TypeError, match=r"`class_to_idx` must be \{name: label\} .* but got \{0: 'cat', 1: 'dog'\}"
        ):
            Sources.from_dataset(Files(folder, class_to_idx={0: "cat", 1: "dog"}))
        for classes in (np.array(["cat", "dog"]), {1: "dog", 0: "cat"}):
            assert Sources.from_dataset(Files(folder, classes=classes)).classes == ["cat", "dog"]

    def test_superclasses_are_called_by_all_their_names(self, folder):
        class Super(ImageFolder):
            def find_classes(self, directory):
                names, _ = super().find_classes(directory)
                return names, {name: i // 2 for i, name in enumerate(names)}

        paint_folder(folder, {"eel": 1, "fox": 1})
        with warnings.catch_warnings(action="error"):
            assert Sources.from_dataset(Super(folder)).class_of == {0: "cat, dog", 1: "eel, fox"}

    def test_two_lists_of_names_that_contradict_each_other(self, folder):
        real = Files(folder, classes=[["pet", "cat"], "cow"], class_to_idx={"cat": 0, "dog": 1})
        told = "calls label 1 'dog' and `classes` calls it 'cow'. The names of `class_to_idx` are used: correct one of"
        with pytest.warns(UserWarning, match=told) as warned:
            assert Sources.from_dataset(real).class_of == {0: "cat", 1: "dog"}
        assert len(warned) == 1
        real.class_to_idx, real.classes = {"cow": 0, "cat": 3}, ["cat", "dog"]
        with pytest.warns(UserWarning, match="label 0 'cow' and `classes` calls it 'cat'. The names of `classes` are"):
            assert Sources.from_dataset(real).classes == ["cat", "dog"]
        real.class_to_idx, real.classes = {"cow": 0, "ox": 0, "dog": 1}, ["dog", "cow"]
        with pytest.warns(UserWarning, match="label 0 'cow, ox' and `classes` calls it 'dog', and 2 labels"):
            Sources.from_dataset(real)

    def test_names_that_agree_are_no_matter(self, folder):
        to_idx = {"cat": 0, "kitten": 0, "dog": 1}
        with warnings.catch_warnings(action="error"):
            for classes in ([("cat", "kitten"), ("dog",)], [("cat",), ("dog",)], ["cat", "dog"], ("cat", "dog")):
                Sources.from_dataset(Files(folder, classes=classes, class_to_idx=to_idx))
                Sources.from_dataset(Files(folder, classes=classes, class_to_idx={"cat": 0, "dog": 1}))

    def test_names_of_labels_that_items_make_of_others(self, folder):
        class Super(ImageFolder):
            def __getitem__(self, i):
                image, label = super().__getitem__(i)
                return image, label // 2

        paint_folder(folder, {"eel": 1, "fox": 1})
        told = "`targets` says 3 and the item 1 at index 11: .* Names are still those of `class_to_idx`: give others if"
        with pytest.warns(UserWarning, match=told):
            assert set(Sources.from_dataset(Super(folder)).labels) == {0, 1}
        with warnings.catch_warnings(action="error"):
            for unlike in ({"targets": ["cat"] * 12}, {"labels": [7] * 12}, {"targets": [7] * 12, "classes": None}):
                Sources.from_dataset(Files(folder, **{"classes": list("abcd")} | unlike))

    def test_labels_that_a_folders_names_contradict(self, folder):
        real = ImageFolder(folder)
        real.samples = [(path, 1 - label) for path, label in real.samples]
        with pytest.raises(ValueError, match="as `class_to_idx` does, but gives 0 to images of 'dog', 1 to im"):
            Sources.from_dataset(real)
        real.classes, real.class_to_idx = ["pets", "others"], {"pets": 0, "others": 1}
        assert Sources.from_dataset(real).class_of == {0: "pets", 1: "others"}

    def test_a_class_is_no_dataset(self):
        with pytest.raises(TypeError, match="`dataset` must be a dataset, but got the class ImageFolder"):
            Sources.from_dataset(ImageFolder)


class TestTransforms:
    def test_each_is_taken_over_on_its_own(self, folder, tmp_path):
        real = ImageFolder(folder, target_transform=plus10) + ImageFolder(folder, ToFloat(), target_transform=plus10)
        assert labels_of(made(real, tmp_path / "set", transform=ToFloat())) == [10, 11]
        real = ImageFolder(folder, ToFloat(), target_transform=plus10) + ImageFolder(folder, target_transform=times2)
        with pytest.raises(ValueError, match="`target_transform` can't be taken over .* 2 different ones"):
            made(real, tmp_path / "set", transform=ToFloat())
        with pytest.raises(ValueError, match="`transform` can't be taken over .* one in only some of its parts"):
            made(real, tmp_path / "set", target_transform=times2)
        real.datasets[1].transform = real.datasets[0].transform
        synthetic = made(real, tmp_path / "set", target_transform=times2)
        assert labels_of(synthetic) == [0, 2] and torch.is_tensor(synthetic[0][0])

    def test_labels_that_only_some_parts_change_are_ambiguous(self, folder, tmp_path):
        real = ImageFolder(folder) + ImageFolder(folder, target_transform=plus10)
        with pytest.raises(ValueError, match="`target_transform` can't be taken over .* one in only some of its parts"):
            made(real, tmp_path / "set")
        with pytest.raises(ValueError, match=r"dataset whose item 0 has the label 0, of which it would make 10\. Pass"):
            made(Parts([*real.datasets]), tmp_path / "set")
        assert labels_of(made(real, tmp_path / "set", target_transform=plus10)) == [10, 11]
        part = Subset(ImageFolder(folder), range(10))
        part.target_transform = plus10  # which torch never looks at
        with pytest.raises(ValueError, match="`target_transform` can't be taken over .* which never applies it"):
            made(part, tmp_path / "set")

    def test_one_that_becomes_ambiguous_later_is_refused_then(self, folder, tmp_path):
        one, other = parts = [ImageFolder(folder), ImageFolder(folder)]
        synthetic = made(ConcatDataset(parts), tmp_path / "set")
        one.target_transform = plus10
        with pytest.raises(ValueError, match="one in only some of its parts"):
            labels_of(synthetic)
        other.target_transform = plus10
        assert labels_of(synthetic) == labels_of(pickle.loads(pickle.dumps(synthetic))) == [10, 11]
        other.target_transform = times2
        for read in (labels_of, copy.copy, pickle.dumps):
            with pytest.raises(ValueError, match="2 different ones in its parts. Pass `target_transform="):
                labels_of(read(synthetic))
        synthetic.target_transform = times2
        assert labels_of(synthetic) == [0, 2]
        one.transform, other.transform = ToFloat(), [ToFloat()]
        with pytest.raises(ValueError, match="`transform` can't be taken over"):
            synthetic[0]
        part = Subset(ImageFolder(folder), range(10))
        synthetic = made(part, tmp_path / "part")
        part.target_transform = plus10
        with pytest.raises(ValueError, match="one on a Subset or ConcatDataset, which never applies it"):
            synthetic[0]

    def test_that_is_a_method_is_not_checked_at_each_access(self, folder, tmp_path, monkeypatch):
        class Method(Files):
            def transform(self, image):
                return ToFloat()(image)

        real = Method(folder, target_transform=plus10)
        del real.transform
        synthetic = made(real, tmp_path / "set")
        labels_of(synthetic)
        monkeypatch.setattr("torch_augcond.sources.layers", None)
        assert torch.is_tensor(synthetic[0][0]) and labels_of(synthetic) == [10, 11]

    @pytest.mark.parametrize("kind", [list, tuple, lambda parts: dict(enumerate(parts))])
    def test_of_datasets_in_lists_and_dicts(self, folder, tmp_path, kind):
        transform = ToFloat()
        parts = [ImageFolder(folder, transform, plus10), ImageFolder(folder, transform, plus10)]
        synthetic = made(Parts(kind(parts)), tmp_path / "set")
        assert labels_of(synthetic) == [10, 11] and torch.is_tensor(synthetic[0][0])

    def test_a_wrapper_that_relabels_is_noticed(self, folder, tmp_path):
        class Relabelled(Parts):
            def __getitem__(self, i):
                image, label = super().__getitem__(i)
                return image, {0: 5, 1: 3}[label]

        real = Relabelled([ImageFolder(folder, target_transform=lambda label: 1 - label)])
        real.classes = list("abcdef")
        with pytest.raises(ValueError, match="item 0 has the label 3, of which it would make -4"):
            made(real, tmp_path / "set")

    def test_a_wrapper_that_relabels_a_few_is_noticed(self, folder, tmp_path):
        class Cleaned(Parts):
            def __getitem__(self, i):
                image, label = super().__getitem__(i)
                return image, {2: 1}.get(i, label)

        with pytest.raises(ValueError, match="item 2 has the label 1, of which it would make 2"):
            made(Cleaned([ImageFolder(folder, target_transform=times2)]), tmp_path / "set")

    def test_lists_of_transforms_and_flags_are_switched_off(self, folder):
        class Listed(Files):
            def __getitem__(self, i):
                path, label = self.files[i]
                image = Image.open(path).convert("RGB")
                for step in self.transform:
                    image = step(image, True)
                return image, label

        sources = Sources.from_dataset(Listed(folder, [lambda image, flag: None]))
        assert sources.image(0).size == (20, 20)
        with pytest.raises(ValueError, match="`transform` can't be taken over from a dataset with a list in its place"):
            assert Takeover(sources).transform

    @pytest.mark.parametrize(
        "hold",
        [lambda d: Subset(d, range(10)), lambda d: ConcatDataset([d, d]), lambda d: Parts([d, d]), Holding],
    )
    def test_of_a_dataset_that_is_no_torch_dataset(self, folder, tmp_path, hold):
        synthetic = made(hold(Duck(folder, ToFloat(), lambda label: 1 - label)), tmp_path / "set")
        assert torch.is_tensor(synthetic[0][0])
        made_as = {(synthetic[i][1], synthetic.provenance(i)["class_name"]) for i in range(len(synthetic))}
        assert made_as == {(1, "cat"), (0, "dog")}
        raw = Sources.from_dataset(hold(Duck(folder, lambda image: image.resize((4, 4)))))
        assert raw.image(0).size == (20, 20)

    def test_what_has_a_transform_and_is_no_dataset(self, folder):
        class Frame(list):
            def transform(self):
                pass

        class Steps(Duck):
            def __call__(self, image):
                return image

        for held in (Frame(), Steps(folder), Duck):
            real = Files(folder, ToFloat(), held=held, all=[held])
            assert list(layers(real)) == [real] and transforms_off(real)[0].held is held

    def test_a_transform_of_labels(self, folder, tmp_path):
        class Labels(Files):
            def __getitem__(self, i):
                return self.transform(self.files[i][1])

        class Stack(Parts):
            def __len__(self):
                return 10

            def __getitem__(self, i):
                return self.parts[0][i][0], self.parts[1][i]

        with pytest.raises(ValueError, match="calls a `transform` on 0, which is no image"):
            made(Stack([ImageFolder(folder), Labels(folder, plus10)]), tmp_path / "set", transform=ToFloat())

    def test_one_that_was_set_to_none_and_is_still_applied(self, folder, tmp_path):
        class Joint(VisionDataset):
            def __len__(self):
                return 10

            def __getitem__(self, i):
                return self.transforms(*ImageFolder(self.root)[i])

        real = Joint(folder, transform=ToFloat(), target_transform=plus10)
        real.target_transform, real.classes = None, ["cat", "dog"]
        assert labels_of(real) == [10, 11]
        with pytest.raises(ValueError, match="item 0 has the label 10, of which it would make 0"):
            made(real, tmp_path / "set")


class TestSamples:
    def test_targets_follow_samples(self, folder, tmp_path):
        synthetic = made(ImageFolder(folder), tmp_path / "set")
        assert synthetic.targets is synthetic.targets
        synthetic.samples = [sample for sample in synthetic.samples if sample[1] == 1]
        assert synthetic.targets == [1] * 5 == pickle.loads(pickle.dumps(synthetic)).targets
        del synthetic.samples[2:]
        assert synthetic.targets == [1] * 2
        synthetic.targets = [7, 7]
        assert synthetic.targets == [7, 7]

    def test_a_copy_goes_on_taking_over(self, folder, tmp_path):
        real = ImageFolder(folder)
        twin = copy.copy(made(real, tmp_path / "set"))
        real.transform = ToFloat()
        assert torch.is_tensor(twin[0][0])

    @pytest.mark.parametrize("turned", [False, True])
    @pytest.mark.parametrize("kind", [ImageFolder, Files])
    def test_a_deep_copy_goes_on_with_its_own_real_images(self, folder, tmp_path, kind, turned):
        real = kind(folder)
        synthetic = made(Subset(real, range(10)), tmp_path / "set")
        twin = copy.deepcopy(ConcatDataset([synthetic, real] if turned else [real, synthetic]))
        real_twin, synthetic_twin = reversed(twin.datasets) if turned else twin.datasets
        real_twin.target_transform = plus10
        assert labels_of(twin) == [10, 11] and labels_of(synthetic) == [0, 1]
        synthetic_twin.target_transform = times2
        assert labels_of(synthetic_twin) == [0, 2] and labels_of(synthetic) == [0, 1]
        assert synthetic_twin.provenance(0) == synthetic.provenance(0)
        assert list(synthetic_twin.samples) == list(synthetic.samples)

    def test_a_deep_copy_of_what_can_not_be_copied_fails_as_a_whole(self, folder, tmp_path):
        real = Files(folder, lock=threading.Lock())
        synthetic = made(real, tmp_path / "set")
        for both in ([real, synthetic], [synthetic, real]):
            with pytest.raises(TypeError, match="cannot pickle"):
                copy.deepcopy(both)
        assert labels_of(copy.deepcopy(synthetic)) == [0, 1]


class TestSyntheticAmongReal:
    @pytest.mark.parametrize("size", [8, 256])  # PNG and JPEG
    @pytest.mark.parametrize("kind", [ImageFolder, Files, lambda folder: ImageFolder(folder, loader=Image.open)])
    def test_is_left_out(self, folder, tmp_path, kind, size):
        synthetic = AugConditionedSynthetic(ImageFolder(folder), generator=FakeGenerator(size), root=tmp_path / "a")
        for path, _ in list(synthetic.samples)[:3]:
            shutil.copy(path, folder / "cat")
        cache, failed = {}, {}
        for _ in range(2):
            digests = Sources.from_dataset(kind(folder)).digests(cache=cache, failed=failed)
            assert len(digests) == 13 and digests.count("") == 3 == len(failed)
        with pytest.raises(RuntimeError, match="3 of 13 .*: it is a synthetic image that torch_augcond made"):
            made(kind(folder), tmp_path / "b")

    def test_is_not_believed_of_a_cache(self, folder, tmp_path):
        path, _ = made(ImageFolder(folder), tmp_path / "a").samples[0]
        shutil.copy(path, folder / "cat" / "0.png")
        with pytest.raises(UnreadableImage, match="it is a synthetic image"):
            Sources.from_dataset(ImageFolder(folder)).image(0)


def test_cats_and_dogs_of_the_pets(tmp_path):
    paint_folder(tmp_path / "oxford-iiit-pet", {"images": 4})
    names = ["Abyssinian_1 1 1 1", "Bengal_2 2 1 2", "beagle_3 3 2 1", "pug_4 4 2 2"]
    for i, name in enumerate(names):
        folder = tmp_path / "oxford-iiit-pet" / "images"
        (folder / f"{i}.png").rename(folder / f"{name.split()[0]}.jpg")
    (tmp_path / "oxford-iiit-pet" / "annotations").mkdir()
    (tmp_path / "oxford-iiit-pet" / "annotations" / "trainval.txt").write_text("\n".join(names))
    kinds = {"binary-category": ["Cat", "Dog"], "category": ["Abyssinian", "Bengal", "Beagle", "Pug"]}
    for kind, classes in kinds.items():
        assert Sources.from_dataset(OxfordIIITPet(tmp_path, target_types=kind)).classes == classes
