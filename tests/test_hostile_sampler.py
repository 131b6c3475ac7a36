"""Labels and lengths that no sampler can draw from are refused in one line, before a pass begins."""

import numpy as np
import pytest
from test_sampler import Part, mix

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
