"""Numbers of every kind and precision: what passes the checks also comes out right."""

import math
from fractions import Fraction

import pytest
import torch

from torch_augcond import functional as F

KEYS = torch.arange(5)
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integer_images_of_any_width_survive_mixing(dtype):
    top = min(torch.iinfo(dtype).max, 2**53)
    values = torch.tensor([0, 1, top - 1, top]).to(dtype).view(4, 1, 1, 1)
    partners = values.flip(0)
    assert torch.equal(F.pixel_mixup(values, partners, torch.ones(4)), values)
    assert torch.equal(F.pixel_mixup(values, partners, torch.zeros(4)), partners)
    half = F.pixel_mixup(values, partners, torch.full((4,), 0.5)).flatten().tolist()
    assert all(abs(x - top / 2) <= 1 for x in half)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 7, 1023, 1024, 4095, 70_000])
def test_a_span_fits_its_row_in_every_precision(dtype, dim):
    lam = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=dtype)
    assert F.span_length(lam, dim).tolist() == [math.floor((1 - x) * dim + 0.5) for x in lam.tolist()]
    boxes = F.cutmix_boxes(lam, torch.full((4, 2), 0.5, dtype=dtype), 4095, dim)
    assert (boxes[:1] == torch.tensor([0, 0, 2 * (dim // 2), 4094])).all()


@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_a_partner_that_is_not_finite_has_no_part_in_a_row_left_alone(value):
    row, partner = torch.tensor([[1.0, -2.0]]), torch.tensor([[value, value]])
    assert torch.equal(F.embed_mixup(row, partner, torch.ones(1)), row)
    if value == value:
        assert torch.equal(F.embed_mixup(partner, partner, torch.tensor([0.3])), partner), "both are equal"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bits_are_mixed_as_more_are(dtype):
    row, partner = torch.tensor([[1.0, 2.0]]).to(dtype), torch.tensor([[3.0, 4.0]]).to(dtype)
    assert F.embed_mixup(row, partner, torch.tensor([0.5])).float().tolist() == [[2.0, 3.0]]


def test_numbers_of_any_kind_are_taken_by_their_value():
    half = Fraction(1, 2)
    assert torch.equal(F.beta(KEYS, half), F.beta(KEYS, 0.5))
    assert torch.equal(F.beta(KEYS, 10**300), torch.full((5,), 0.5))
    x = torch.rand(5, 9) + 1
    dropped = F.embed_dropout(x, keys=KEYS, p=half, rescale=True)
    assert torch.equal(dropped, F.embed_dropout(x, keys=KEYS, p=0.5, rescale=True)) and (dropped == 0).any()
    noising = (x, torch.rand(5, 9), torch.zeros(9), torch.ones(9))
    assert torch.equal(F.add_noise(*noising, half, Fraction(1, 4)), F.add_noise(*noising, 0.5, 0.25))
