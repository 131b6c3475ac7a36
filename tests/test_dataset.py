"""AugConditionedSynthetic as a torchvision dataset, over every kind of dataset it may wrap."""

import copy
import io
import multiprocessing
import pickle
import tracemalloc
import warnings
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, ToFloat, paint_folder
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from torchvision import tv_tensors
from torchvision.datasets import DatasetFolder, FakeData, ImageFolder
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import v2

from torch_augcond import AugConditionedSynthetic
from torch_augcond.samples import Samples
from torch_augcond.sources.images import hash_bytes
from torch_augcond.store.imagefile import Corrupt


@pytest.fixture
def folder(tmp_path):
    return paint_folder(tmp_path / "real", {"cat": 4, "dog": 2, "eel": 3})


@pytest.fixture
def real(folder):
    return ImageFolder(folder)


def make(dataset, root=None, **options):
    return AugConditionedSynthetic(dataset, root=root, **{"generator": FakeGenerator(), **options})


# --- a dataset as torchvision's are -----------------------------------------------------------------------------------


def test_is_a_dataset_as_torchvisions_are(real, tmp_path):
    synthetic = make(real, tmp_path / "set", num_per_class=3)
    assert isinstance(synthetic, DatasetFolder) and synthetic.is_synthetic is True
    assert synthetic.classes == real.classes and synthetic.class_to_idx == real.class_to_idx
    assert len(synthetic) == 9 and synthetic.targets == [0] * 3 + [1] * 3 + [2] * 3
    assert [label for _, label in synthetic.samples] == synthetic.targets
    image, label = synthetic[4]
    assert isinstance(image, Image.Image) and image.mode == "RGB" and image.size == (16, 16) and label == 1
    assert isinstance(label, int)
    path, _ = synthetic.samples[4]
    assert pil_loader(path).tobytes() == image.tobytes()
    assert synthetic[-1][0].tobytes() == synthetic[8][0].tobytes()
    assert synthetic[np.int64(2)][0].tobytes() == synthetic[torch.tensor(2)][0].tobytes()
    assert synthetic.samples[1:3] == [synthetic.samples[1], synthetic.samples[2]]
    for index in (9, -10):
        with pytest.raises(IndexError):
            synthetic[index]
        with pytest.raises(IndexError):
            synthetic.provenance(index)
    with pytest.raises(TypeError):
        synthetic["0"]


def test_the_directory_is_the_same_imagefolder(real, tmp_path):
    synthetic = make(real, tmp_path / "set", num_per_class=3)
    plain = ImageFolder(tmp_path / "set")
    assert plain.classes == synthetic.classes
    assert {(p, t, i.tobytes()) for (p, t), (i, _) in zip(plain.samples, plain, strict=True)} == {
        (p, t, i.tobytes()) for (p, t), (i, _) in zip(synthetic.samples, synthetic, strict=True)
    }


def test_repr_is_indented(real, tmp_path):
    synthetic = make(real, tmp_path / "set", transform=v2.RandomCrop(4))
    assert repr(synthetic).splitlines() == [
        "Dataset AugConditionedSynthetic",
        "    Number of datapoints: 9",
        f"    Root location: {tmp_path / 'set'}",
        "    Augmentation: EmbedCutMix(alpha=1.0, span='leading') + EmbedDropout(p=0.4, rescale=False)",
        "    Checkpoint: fake-16-12",
        "    Guidance scale: 10, steps: 30, seed: 0",
        "    StandardTransform",
        *["Transform: " + repr(v2.RandomCrop(4)).splitlines()[0]],
    ]


def test_real_plus_synthetic(real, tmp_path):
    synthetic = make(real, tmp_path / "set")
    for both in (real + synthetic, synthetic + real, [(Image.new("RGB", (4, 4)), 0)] + synthetic):
        assert isinstance(both, ConcatDataset)
    assert len(real + synthetic) == 18
    assert [label for _, label in real + synthetic] == real.targets + synthetic.targets


def test_provenance(real, tmp_path):
    synthetic = make(real, tmp_path / "set", num_per_class=2, seed=5)
    for i in range(-len(synthetic), len(synthetic)):
        record = synthetic.provenance(i)
        assert synthetic.samples[i][0].endswith(f"{record['key']}.png")
        assert record["label"] == synthetic[i][1] and record["settings"]["seed"] == 5
        assert all(f"/{record['class_name']}/" in source for source in record["sources"])
        assert {"lam", "span", "dropout_key"} == set(record["drawn"])


def test_provenance_has_the_label_that_the_dataset_has_now(folder, tmp_path):
    make(ImageFolder(folder), tmp_path / "set", num_per_class=2)
    paint_folder(folder, {"ant": 2})  # before all others
    synthetic = make(ImageFolder(folder), tmp_path / "set", num_per_class=2)
    records = [synthetic.provenance(i) for i in range(len(synthetic))]
    assert [record["label"] for record in records] == synthetic.targets
    assert [record["class_name"] for record in records] == [synthetic.classes[label] for label in synthetic.targets]


def test_provenance_stays_when_the_wrapped_list_is_edited(folder, tmp_path):
    real = ImageFolder(folder)
    synthetic = AugConditionedSynthetic(real, generator=FakeGenerator(), root=tmp_path / "set")
    records = [synthetic.provenance(i) for i in range(len(synthetic))]
    real.samples.reverse()
    assert [synthetic.provenance(i) for i in range(len(synthetic))] == records
    del real.samples[1:]
    assert [synthetic.provenance(i) for i in range(len(synthetic))] == records


def test_provenance_names_the_sources_as_they_are_called_now(folder, tmp_path):
    make(ImageFolder(folder), tmp_path / "set", augmentation="real", num_per_image=1)
    first, second = sorted((folder / "cat").iterdir())[:2]
    first.rename(folder / "cat" / "was first.png")
    second.rename(first)
    dataset = ImageFolder(folder)
    synthetic = make(dataset, tmp_path / "set", augmentation="real", num_per_image=1)
    digests = {path: hash_bytes(Path(path).read_bytes()) for path, _ in dataset.samples}
    records = [synthetic.provenance(i) for i in range(len(synthetic))]
    assert all([digests[name] for name in record["sources"]] == record["digests"] for record in records)
    assert pickle.loads(pickle.dumps(synthetic)).provenance(0)["digests"] == records[0]["digests"]


# --- transforms -------------------------------------------------------------------------------------------------------


def test_transforms_of_its_own(real, tmp_path):
    synthetic = make(real, tmp_path / "set", transform=v2.PILToTensor(), target_transform=lambda label: -label)
    image, label = synthetic[-1]
    assert image.shape == (3, 16, 16) and label == -2 and synthetic.targets[-1] == 2


def test_takes_over_the_wrapped_datasets_transforms(folder, tmp_path):
    real = ImageFolder(folder, transform=v2.PILToTensor(), target_transform=lambda label: label + 10)
    synthetic = make(real, tmp_path / "set")
    assert synthetic.transform is real.transform
    assert synthetic[0][0].shape == (3, 16, 16) and synthetic[0][1] == 10 == real[0][1]
    real.transform = v2.Compose([v2.PILToTensor(), v2.CenterCrop(4)])  # as timm does
    assert synthetic[0][0].shape == (3, 4, 4)
    synthetic.transform = None
    assert isinstance(synthetic[0][0], Image.Image)
    synthetic.transform = v2.PILToTensor()
    assert synthetic[0][0].shape == (3, 16, 16)
    assert isinstance(real[0][0], torch.Tensor)


def test_takes_over_through_subsets_and_parts(real, tmp_path):
    real.transform = v2.PILToTensor()
    nested = Subset(Subset(ConcatDataset([real]), range(8)), range(6))
    assert isinstance(make(nested, tmp_path / "set")[0][0], torch.Tensor)


def test_conditions_on_raw_images_whatever_the_transform(folder, tmp_path):
    plain = make(ImageFolder(folder), tmp_path / "set", num_per_class=2)
    calls = []  # the first is on trial
    greedy = make(ImageFolder(folder, transform=calls.append), tmp_path / "set", num_per_class=2, generate=False)
    assert [p for p, _ in plain.samples] == [p for p, _ in greedy.samples] and len(calls) < 3


def test_ambiguous_transforms_must_be_chosen(folder, tmp_path):
    parts = ConcatDataset(
        [ImageFolder(folder, transform=v2.PILToTensor()), ImageFolder(folder, transform=v2.ToImage())]
    )
    with pytest.raises(ValueError, match="`transform` can't be taken over.*Pass `transform=` explicitly"):
        make(parts, tmp_path / "set")
    assert not (tmp_path / "set").exists()  # it is said before anything is made
    assert make(parts, tmp_path / "set", transform=v2.PILToTensor())[0][0].shape == (3, 16, 16)


def test_can_be_wrapped_for_tv_tensors(folder, tmp_path):
    from torchvision.datasets import wrap_dataset_for_transforms_v2

    synthetic = make(ImageFolder(folder, transform=v2.ToImage()), tmp_path / "set")
    wrapped = wrap_dataset_for_transforms_v2(synthetic)
    assert isinstance(wrapped[0][0], tv_tensors.Image) and len(wrapped) == len(synthetic)


# --- which datasets ---------------------------------------------------------------------------------------------------


class Bare:
    """Neither a torch Dataset nor anything else but what a map-style dataset needs."""

    def __init__(self, n=5):
        self.images = [Image.new("RGB", (12, 12), (40 * i, 10, 5)) for i in range(n)]

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], 7 * (index % 2)


class Typed(Dataset, Bare):
    classes = ("frog", "newt")

    def __getitem__(self, index):
        return torch.from_numpy(np.array(self.images[index])).permute(2, 0, 1), torch.tensor(index % 2)


def test_any_map_style_dataset(real, tmp_path):
    datasets = {
        "subset": Subset(real, [0, 1, 5, 6]),
        "nested": Subset(Subset(real, [6, 5, 1, 0]), [0, 3]),
        "concat": ConcatDataset([Subset(real, [0, 1]), Subset(real, [5])]),
        "fake": FakeData(6, (3, 8, 8), 2, transform=v2.PILToTensor()),
        "typed": Typed(),
        "folder": DatasetFolder(real.root, pil_loader, (".png",)),
        "list": [(Image.new("RGB", (9, 9), (i, i, i)), i % 2) for i in range(4)],
    }
    for name, dataset in datasets.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names such as "0"
            synthetic = make(dataset, tmp_path / name, num_per_image=2)
        assert len(synthetic) == 2 * len(dataset), name
        assert Counter(synthetic.targets) == Counter(2 * [int(label) for _, label in dataset]), name


def test_labels_need_not_be_contiguous(tmp_path):
    with pytest.warns(UserWarning, match="hold numbers that mean nothing in a prompt"):
        synthetic = make(Bare(), tmp_path / "set", num_per_class=2)
    assert synthetic.targets == [0, 0, 7, 7] and synthetic[2][1] == 7
    assert synthetic.class_to_idx == {"0": 0, "7": 7}


def test_the_users_loader_is_used(folder, tmp_path):
    opened = []
    loader = lambda path: opened.append(path) or pil_loader(path).transpose(Image.Transpose.ROTATE_90)  # noqa: E731
    generator = FakeGenerator()
    make(ImageFolder(folder, loader=loader), tmp_path / "set", generator=generator, augmentation="real")
    assert opened and generator.encoded == 9


@pytest.mark.parametrize(
    "dataset, error, message",
    [
        ([], ValueError, "`dataset` must hold at least one image"),
        (iter([1]), TypeError, "`dataset` must have `__getitem__` and `__len__`"),
        ([(Image.new("RGB", (4, 4)), "cat")], TypeError, "label"),
        ([Image.new("RGB", (4, 4))], TypeError, "label"),
        ([(Image.new("RGB", (4, 4)), 1.5)], TypeError, "label"),
        ([(Image.new("RGB", (4, 4)), -1)], ValueError, "label"),
        ([(torch.rand(3, 4, 4), 0)], TypeError, "must be a PIL image, a uint8"),
    ],
)
def test_datasets_that_are_none(dataset, error, message, tmp_path):
    with pytest.raises(error, match=message):
        make(dataset, tmp_path / "set", class_names=["cat"])


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_workers_see_the_same_samples(folder, tmp_path, context):
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {context}")
    synthetic = make(ImageFolder(folder, transform=ToFloat()), tmp_path / "set")
    alone = list(DataLoader(synthetic, batch_size=4))
    loader = DataLoader(synthetic, 4, num_workers=2, multiprocessing_context=context, persistent_workers=True)
    for _ in range(2):
        for (images, labels), (other_images, other_labels) in zip(alone, loader, strict=True):
            assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


def test_pickles_small_and_without_a_pipeline(folder, tmp_path):
    class Unpicklable(ImageFolder):
        def __reduce__(self):
            raise RuntimeError("the wrapped dataset was pickled")

    generator = FakeGenerator()
    generator.pipe = lambda: None  # can't be pickled
    synthetic = make(Unpicklable(folder, transform=ToFloat()), tmp_path / "set", generator=generator)
    data = pickle.dumps(synthetic)
    assert len(data) < 10_000
    for twin in (pickle.loads(data), copy.deepcopy(synthetic)):
        assert torch.equal(twin[3][0], synthetic[3][0]) and twin.targets == synthetic.targets
        assert list(twin.samples) == list(synthetic.samples) and repr(twin) == repr(synthetic)
        own, full = twin.provenance(0), synthetic.provenance(0)
        assert [str(folder / name) for name in own.pop("sources")] == full.pop("sources") and own == full


def test_a_sample_takes_few_bytes(tmp_path):
    """Opening a million images must not cost a gigabyte; what worker processes share isn't pickled for each of them."""
    n = 200_000
    rng = np.random.default_rng(0)
    tracemalloc.start()
    keys, labels = rng.integers(0, 256, (n, 16), np.uint8), rng.integers(0, 1000, n)
    samples = Samples(keys, labels, {label: f"/set/{label}/" for label in range(1000)}, ".png")
    targets = samples.labels.tolist()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert used < 64 * n and len(targets) == n
    assert samples[-1] == (f"/set/{labels[-1]}/{keys[-1].tobytes().hex()}.png", labels[-1])
    buffer = io.BytesIO()
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(samples)
    assert buffer.tell() < 2**20


def test_flipped_bits_never_change_an_image(real, tmp_path):
    """Wherever the bit lies: either the same picture comes back, or an error that names the file."""
    synthetic = make(real, tmp_path / "set", num_per_class=1)
    path, _ = synthetic.samples[0]
    data, good = bytearray(Path(path).read_bytes()), synthetic[0][0].tobytes()
    caught = 0
    for position in np.random.default_rng(0).integers(0, 8 * len(data), 200).tolist():
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        Path(path).write_bytes(flipped)
        try:
            assert synthetic[0][0].tobytes() == good
        except Corrupt as error:
            caught += str(path) in str(error)
    assert caught > 150
    for cut in (0, 1, 40, len(data) // 2, len(data) - 1):
        Path(path).write_bytes(data[:cut])
        with pytest.raises(Corrupt, match="is damaged"):
            synthetic[0]


def test_swapped_files_are_noticed(real, tmp_path):
    synthetic = make(real, tmp_path / "set", num_per_class=1)
    (first, _), (second, _) = synthetic.samples[:2]
    Path(first).write_bytes(Path(second).read_bytes())
    with pytest.raises(Corrupt, match="it holds image"):
        synthetic[0]
