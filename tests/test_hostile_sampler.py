"""Labels and lengths that no sampler can draw from are refused in one line, before a pass begins."""

import random
from collections import Counter

import numpy as np
import pytest
from fakes import paint_folder
from test_sampler import Part, mix
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import ImageFolder

from torch_augcond.sampler import MixedRealSyntheticSampler


@pytest.mark.parametrize("targets", [[0, None] * 5, [0.0, float("nan")] * 5, [[1], [1, 2]] * 5, [{}] * 10])
def test_class_balanced_needs_labels_that_can_be_told_apart(targets):
    rule = r"`class_balanced` must find a list of numbers or of names as the labels of Part, but got \["
    with pytest.raises(ValueError, match=rule):
        MixedRealSyntheticSampler(Part(10, False, targets) + Part(5, True, [0] * 5), class_balanced=True)


def test_a_column_of_names_is_as_good_as_a_list():
    names = ["a", "b"] * 5
    drawn = [
        list(MixedRealSyntheticSampler(Part(10, False, targets) + Part(5, True, ["a"] * 5), class_balanced=True))
        for targets in (names, np.array(names, object))
    ]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    "kwargs, got",
    [
        ({"epoch_length": 2**62}, "4,611,686,018,427,387,904 of 4611686018427387904 with synthetic_fraction=1/2"),
        ({"synthetic_fraction": 1 - 1e-9}, "10,000,000,000 of 'real' with synthetic_fraction=999999999/1000000000"),
    ],
)
def test_an_epoch_that_no_memory_holds_is_refused(kwargs, got):
    rule = f"`epoch_length` must come to at most 1,000,000,000 indices a rank, but got {got}. Make either smaller"
    with pytest.raises(ValueError, match=rule):
        MixedRealSyntheticSampler(mix(), **kwargs)


@pytest.mark.parametrize("shuffle", [False, True])
def test_classes_take_turns_through_all_epochs(shuffle):
    train = Part(5, False, [0] * 3 + [1] * 2) + Part(12, True, [0] * 6 + [1] * 6)
    sampler = MixedRealSyntheticSampler(train, shuffle=shuffle, class_balanced=True)
    seen = Counter(i for _ in range(60) for i in sampler if i >= 5)
    assert len(seen) == 12 and max(seen.values()) - min(seen.values()) <= (12 if shuffle else 0)


def test_labels_of_a_folder_are_those_of_its_samples(tmp_path):
    real = ImageFolder(paint_folder(tmp_path, {"cat": 40, "dog": 4}))
    random.Random(0).shuffle(real.samples)
    train = real + Part(20, True, [0, 1] * 10)
    drawn = [i for i in MixedRealSyntheticSampler(train, class_balanced=True) if i < 44]
    assert Counter(real.samples[i][1] for i in drawn) == {0: 22, 1: 22}


@pytest.mark.parametrize("name, value", [("synthetic_fraction", 0.1), ("class_balanced", True), ("num_replicas", 4)])
def test_what_it_was_given_stays(name, value):
    sampler = MixedRealSyntheticSampler(mix())
    with pytest.raises(
        AttributeError, match=f"`{name}` must stay as it was given, but got {value}. Make another sampler"
    ):
        setattr(sampler, name, value)
    assert len(list(sampler)) == len(sampler)


def test_a_list_needs_a_list_of_labels():
    with pytest.raises(ValueError, match="`class_balanced` must find one label for each of the 3 items of list"):
        MixedRealSyntheticSampler(ConcatDataset([[(0, 0)] * 3, Part(5, True, [0] * 5)]), class_balanced=True)


class Coarse(Subset):
    """Labels of its own, by which it would relabel."""

    def __init__(self, dataset, targets):
        super().__init__(dataset, range(len(dataset)))
        self.targets = targets


class Passing(Subset):
    """Shows what it holds as its own."""

    def __getattr__(self, name):
        return getattr(self.__dict__["dataset"], name)


class Repeated(Subset):
    def __len__(self):
        return 2 * len(self.indices)


def drawn(train, **options):
    return np.array(list(MixedRealSyntheticSampler(train, class_balanced=True, **options)))


def test_class_balanced_by_the_labels_of_a_subset_that_relabels():
    fine, synthetic = Part(40, False, list(range(4)) * 10), Part(20, True, [0, 1] * 10)
    real = drawn(Coarse(fine, [0, 1, 1, 1] * 10) + synthetic, synthetic_fraction=0)
    assert sum(real % 4 == 0) == 20  # of two classes, not of four
    for short in (None, [0] * 3):
        assert sum(drawn(Coarse(fine, short) + synthetic, synthetic_fraction=0) % 4 == 0) == 10
    whole = ConcatDataset([fine, synthetic])
    whole.targets = [0] * 20 + [1] * 20 + [0] * 20
    assert sum(drawn(whole, synthetic_fraction=0) < 20) == 20


def test_class_balanced_looks_past_a_subset_that_passes_on_what_it_holds():
    order = [i for k in range(2) for i in range(k, 20, 2)]
    real = drawn(Passing(Part(20, False, [0, 1] * 10), order) + Part(5, True, [0] * 5), shuffle=False)
    assert sum(real[real < 20] < 10) == 10


def test_a_subset_of_a_length_of_its_own_is_a_part():
    train = Repeated(Part(10), range(10)) + Part(20, True)
    assert sorted(i for i in MixedRealSyntheticSampler(train) if i < 20) == list(range(20))


@pytest.mark.filterwarnings("error")
def test_a_class_that_one_stream_lacks_is_told():
    lacking = Part(10, False, [0, 1] * 5) + Part(5, True, [0] * 5)
    with pytest.warns(UserWarning, match="labels 1 have images in one stream only, .* less often"):
        MixedRealSyntheticSampler(lacking, class_balanced=True)
    MixedRealSyntheticSampler(lacking, class_balanced=True, synthetic_fraction=0)
    MixedRealSyntheticSampler(lacking)
