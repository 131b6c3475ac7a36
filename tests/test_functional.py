"""Keyed random numbers against theory and against their twins; every operation against its twin."""

import copy

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from torch_augcond import functional as F
from torch_augcond.functional import Purpose

DRAWS = 10_000_000
INT64 = st.integers(-(2**63), 2**63 - 1)
HALVES = [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)]


def keys_of(n, start=0):
    return torch.arange(start, start + n)


def near_zero(correlation, n):
    """Within five standard errors of no correlation."""
    return abs(correlation) < 5 / n**0.5


def in_pieces(draw, rows, pieces=100):
    """`draw` of keys 0 to `rows`, made in pieces that stay in the processor's cache."""
    return torch.cat([draw(keys_of(rows // pieces, start)) for start in range(0, rows, rows // pieces)])


def drawn(purpose=Purpose.NOISE, draw=F.uniform):
    """10⁷ numbers of neighbouring keys and positions."""
    return in_pieces(lambda keys: draw(keys, purpose, 1000), DRAWS // 1000)


@pytest.fixture(scope="module")
def numbers():
    return drawn()


# ---------------------------------------------------------------------------------------------- random numbers


@given(st.lists(INT64, min_size=1, max_size=5), st.sampled_from(Purpose), st.integers(1, 9))
def test_random_numbers_are_those_of_the_slow_twin(keys, purpose, num):
    tensor = torch.tensor(keys)
    np.testing.assert_array_equal(F.uniform(tensor, purpose, num), reference.uniform(keys, purpose, num))
    np.testing.assert_allclose(F.normal(tensor, purpose, num), reference.normal(keys, purpose, num), atol=2e-6)
    assert [k % 2**64 for k in F.fold(tensor, num).tolist()] == [reference.fold(k, num) for k in keys]


@pytest.mark.parametrize("alpha", [0.2, 1, 4])
def test_beta_is_that_of_the_slow_twin(alpha):
    keys = keys_of(500, -250)
    np.testing.assert_allclose(F.beta(keys, alpha), reference.beta(keys, alpha), atol=1e-6)


def test_uniform_numbers_are_uniform(numbers):
    counts = torch.histc(numbers, 4096, 0, 1).numpy()
    assert numbers.numel() == DRAWS
    assert numbers.min() > 0
    assert numbers.max() < 1
    assert stats.chisquare(counts).pvalue > 1e-4
    assert abs(numbers.double().mean() - 0.5) < 5 * (1 / 12 / DRAWS) ** 0.5


def test_every_bit_of_a_number_is_fair(numbers):
    whole = (numbers * 2**23).int()
    ones = torch.stack([(whole >> bit & 1).sum() for bit in range(23)]).double()
    assert (ones / DRAWS - 0.5).abs().max() < 5 * 0.5 / DRAWS**0.5


@pytest.mark.parametrize("lag", [1, 2, 64])
@pytest.mark.parametrize("axis", [0, 1])
def test_neighbouring_keys_and_positions_are_uncorrelated(numbers, axis, lag):
    centred = numbers - 0.5
    length = numbers.shape[axis] - lag
    a, b = centred.narrow(axis, 0, length), centred.narrow(axis, lag, length)
    assert near_zero(float((a * b).double().mean() * 12), a.numel())


@pytest.mark.parametrize("other", [Purpose.DROPOUT, Purpose.BOX])
def test_purposes_are_uncorrelated(numbers, other):
    product = (numbers - 0.5) * (drawn(other) - 0.5)
    assert near_zero(float(product.double().mean() * 12), DRAWS)


def test_pairs_of_neighbours_fill_the_square(numbers):
    cells = (numbers[:, :-1] * 64).int() * 64 + (numbers[:, 1:] * 64).int()
    assert stats.chisquare(np.bincount(cells.flatten().numpy(), minlength=4096)).pvalue > 1e-4


def test_keys_have_64_bits():
    keys = torch.tensor([1 << bit for bit in range(63)] + [-(2**63), 0])
    rows = F.uniform(keys, Purpose.LAM, 4)
    assert len(torch.unique(rows, dim=0)) == 65


def test_folded_keys_are_others():
    keys = keys_of(1000)
    folds = torch.cat([F.fold(keys, n) for n in range(-1, 5)])
    assert len(folds.unique()) == 6000
    assert torch.equal(F.fold(keys, 0), keys)


def test_normal_numbers_are_normal():
    numbers = drawn(draw=F.normal)
    assert stats.kstest(numbers.flatten().double().numpy(), "norm").pvalue > 1e-4
    for a, b in ((numbers[:, 1:], numbers[:, :-1]), (numbers[1:], numbers[:-1])):
        assert near_zero(float((a * b).double().mean()), a.numel())


@pytest.mark.parametrize("alpha", [0.2, 1, 4])
def test_beta_follows_its_distribution(alpha):
    """Kolmogorov–Smirnov, up to where float32 can tell λ from 1: with α = 0.2 a sixtieth of all λ lies beyond."""
    lam = np.sort(in_pieces(lambda keys: F.beta(keys, alpha), DRAWS).double().numpy())
    points = stats.beta.ppf(np.linspace(0.0005, 0.9995, 20_000), alpha, alpha)
    points = points[points < 1 - 2**-20]
    below = np.searchsorted(lam, points, side="right") / len(lam)
    distance = np.abs(below - stats.beta.cdf(points, alpha, alpha)).max()
    assert stats.kstwobign.sf(distance * len(lam) ** 0.5) > 1e-4


@pytest.mark.parametrize("alpha", [1e-4, 0.01, 1e3, 1e9])
def test_beta_of_extreme_alphas_is_a_fraction(alpha):
    lam = F.beta(keys_of(10_000), alpha)
    assert lam.isfinite().all()
    assert ((lam >= 0) & (lam <= 1)).all()
    assert abs(lam.mean() - 0.5) < 0.03


@given(st.permutations(range(7)), st.integers(1, 6), st.sampled_from([5, 16, 33]))
def test_a_row_is_bitwise_the_same_in_any_order_and_shard(order, cut, num):
    keys = keys_of(7, 2**40)
    order = torch.tensor(order)
    for draw in (F.uniform, F.normal):
        whole = draw(keys, Purpose.NOISE, num)
        shards = [draw(part, Purpose.NOISE, num) for part in keys[order].split(cut)]
        assert torch.equal(torch.cat(shards), whole[order])
        assert torch.equal(draw(keys, Purpose.NOISE, 3), whole[:, :3])
    lams = [F.beta(part, 0.2) for part in keys[order].split(cut)]
    assert torch.equal(torch.cat(lams), F.beta(keys, 0.2)[order])


def test_nothing_touches_the_global_generator():
    before = torch.get_rng_state()
    F.beta(keys_of(3), 0.5), F.normal(keys_of(3), Purpose.NOISE, 3), F.random_crops(keys_of(3), 8, 8)
    assert torch.equal(before, torch.get_rng_state())


# ---------------------------------------------------------------------------------------------------- partners


@given(st.lists(st.integers(-2, 3), min_size=1, max_size=12))
def test_partners_are_other_rows_of_the_same_label(labels):
    labels = torch.tensor(labels)
    partners = F.same_label_partners(labels, keys_of(len(labels)))
    assert torch.equal(labels[partners], labels)
    alone = (labels[:, None] == labels).sum(1) == 1
    assert torch.equal(partners == torch.arange(len(labels)), alone)


def test_partners_are_uniform_among_the_others():
    labels = torch.zeros(5, dtype=torch.int64)
    drawn = torch.stack([F.same_label_partners(labels, keys_of(5, start)) for start in range(0, 5_000, 5)])
    counts = torch.stack([torch.bincount(column, minlength=5) for column in drawn.T])
    assert (counts.diagonal() == 0).all()
    assert stats.chisquare(counts[~torch.eye(5, dtype=torch.bool)].numpy()).pvalue > 1e-4


# ------------------------------------------------------------------------------------------------- operations


def batch(n=6, dim=11, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    embeds, partners = torch.randn(2, n, dim, generator=draw).to(dtype)
    return embeds, partners, torch.linspace(0, 1, n)


@pytest.mark.parametrize("dim", [1, 7, 32])
@pytest.mark.parametrize("random", [False, True])
def test_embed_cutmix_is_its_twin(dim, random):
    embeds, partners, lam = batch(dim=dim)
    start = F.random_start(keys_of(6), lam, dim) if random else None
    if random:
        assert start.tolist() == [reference.random_start(k, float(w), dim) for k, w in enumerate(lam)]
    out = F.embed_cutmix(embeds, partners, lam, start)
    np.testing.assert_array_equal(out, reference.embed_cutmix(embeds, partners, lam, start))


def test_lam_is_the_share_of_the_row_itself():
    embeds, partners, _ = batch(2)
    lam = torch.tensor([1.0, 0.0])
    for mix in (F.embed_cutmix, F.embed_mixup):
        out = mix(embeds, partners, lam)
        assert torch.equal(out, torch.stack([embeds[0], partners[1]]))


def test_a_random_span_fits_and_its_place_is_uniform():
    lam = torch.full((100_000,), 0.5)
    start = F.random_start(keys_of(len(lam)), lam, 8)
    counts = torch.bincount(start)
    assert len(counts) == 5
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_embed_mixup_is_its_twin_and_exact_for_equal_rows():
    embeds, partners, lam = batch(dim=33)
    np.testing.assert_allclose(
        F.embed_mixup(embeds, partners, lam), reference.embed_mixup(embeds, partners, lam), atol=1e-6
    )
    assert torch.equal(F.embed_mixup(embeds, embeds, lam), embeds)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.4, 1.0])
def test_embed_dropout_is_its_twin(p, rescale):
    embeds, keys = batch()[0], keys_of(6)
    out = F.embed_dropout(embeds, keys=keys, p=p, rescale=rescale)
    np.testing.assert_allclose(out, reference.embed_dropout(embeds, keys, p, rescale and p < 1), rtol=1e-6)
    assert torch.equal(out, F.embed_dropout(embeds, F.uniform(keys, Purpose.DROPOUT, 11) < p, p=p, rescale=rescale))


def test_kept_entries_are_not_rescaled():
    embeds = batch(100, 100)[0]
    out = F.embed_dropout(embeds, keys=keys_of(100))
    assert torch.equal(out[out != 0], embeds[out != 0])
    assert abs((out == 0).double().mean() - 0.4) < 0.025


def test_masks_and_places_differ_between_rows():
    masks = F.embed_dropout(torch.ones(50, 64), keys=keys_of(50))
    assert len(torch.unique(masks, dim=0)) == 50
    assert len(F.beta(keys_of(50), 1).unique()) == 50


def test_pixel_operations_are_their_twins():
    images, partners = torch.randint(0, 256, (2, 5, 3, 9, 14), dtype=torch.uint8)
    keys, lam = keys_of(5), torch.linspace(0, 1, 5)
    centres = F.uniform(keys, Purpose.BOX, 2)
    boxes = F.cutmix_boxes(lam, centres, 9, 14)
    assert [tuple(b) for b in boxes.tolist()] == [
        reference.cutmix_box(float(w), c, 9, 14) for w, c in zip(lam, centres.tolist())
    ]
    np.testing.assert_array_equal(
        F.pixel_cutmix(images, partners, boxes), reference.pixel_cutmix(images, partners, boxes.tolist())
    )
    mixed = reference.embed_mixup(images.numpy(), partners.numpy(), lam)
    assert np.abs(F.pixel_mixup(images, partners, lam).numpy() - mixed).max() <= 0.5 + 1e-4
    assert F.pixel_mixup(images / 255, partners / 255, lam).sub(torch.tensor(mixed) / 255).abs().max() < 1e-6


def test_random_crops_have_the_area_and_aspect_of_torchvision():
    x1, y1, x2, y2 = F.random_crops(keys_of(20_000), 100, 100).T
    width, height = x2 - x1, y2 - y1
    assert min(x1.min(), y1.min()) == 0
    assert max(x2.max(), y2.max()) == 100
    assert (width * height / 1e4).min() > 0.07
    assert (width / height).min() > 0.73
    assert (width / height).max() < 1.37
    # A ten-tries rejection shifts the mean area a little below (0.08 + 1) / 2.
    assert 0.45 < (width * height / 1e4).mean() < 0.54


def test_crops_that_cannot_fit_become_the_whole_image():
    assert F.random_crops(keys_of(50), 2, 100).tolist().count([0, 0, 100, 2]) > 0
    assert F.resized_crop(torch.rand(2, 3, 8, 8), F.random_crops(keys_of(2), 8, 8)).shape == (2, 3, 8, 8)
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(F.resized_crop(image, torch.tensor([[0, 0, 8, 8]])), image)


def test_noise_and_level_are_those_of_diffusers():
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    embeds, noise, _ = batch()
    mean, std = embeds[0], embeds[1].abs() + 0.5
    out = F.add_noise(embeds, noise, mean, std, 0.8, 0.6)
    expected = reference.add_noise(*(x.double().numpy() for x in (embeds, noise, mean, std)), 0.8, 0.6)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    rows = F.add_noise(embeds, noise, mean, std, torch.full((6,), 0.8), torch.full((6,), 0.6))
    torch.testing.assert_close(rows, out, atol=1e-6, rtol=0)
    levels = torch.tensor([0, 3, 999])
    for dim in (7, 32):
        theirs = embeddings.get_timestep_embedding(levels, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
        assert torch.equal(F.level_embedding(levels, dim), theirs)
        np.testing.assert_allclose(F.level_embedding(levels, dim)[1], reference.level_embedding(3, dim), atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", HALVES)
def test_half_precision_is_rounded_once(dtype, tolerance):
    embeds, partners, lam = batch(dim=64, dtype=dtype)
    out = F.embed_mixup(embeds, partners, lam)
    assert out.dtype == dtype
    exact = reference.embed_mixup(embeds.double(), partners.double(), lam)
    np.testing.assert_allclose(out.double(), exact, rtol=tolerance, atol=1e-6)
    for same in (F.embed_cutmix(embeds, partners, lam), F.embed_dropout(embeds, keys=keys_of(6), rescale=True)):
        assert same.dtype == dtype


def test_inputs_never_change():
    embeds, partners, lam = batch(4, 8)
    images, keys = torch.rand(4, 3, 8, 8), keys_of(4)
    inputs = [embeds, partners, lam, images, keys]
    before = copy.deepcopy(inputs)
    F.embed_cutmix(embeds, partners, lam, F.random_start(keys, lam, 8)).zero_()
    F.embed_mixup(embeds, partners, lam).zero_()
    F.embed_dropout(embeds, keys=keys).zero_()
    F.add_noise(embeds, partners, embeds[0], embeds[1], 0.5, 0.5).zero_()
    boxes = F.cutmix_boxes(lam, F.uniform(keys, Purpose.BOX, 2), 8, 8)
    F.pixel_cutmix(images, images, boxes).zero_()
    F.pixel_mixup(images, images, lam).zero_()
    F.resized_crop(images, F.random_crops(keys, 8, 8)).zero_()
    assert all(torch.equal(a, b) for a, b in zip(inputs, before))


@pytest.mark.parametrize("mix", [F.embed_cutmix, F.embed_mixup, F.pixel_cutmix, F.pixel_mixup])
def test_partners_of_another_shape_are_refused(mix):
    shape = (3, 8, 8) if mix.__name__.startswith("pixel") else (8,)
    with pytest.raises(ValueError, match=r"`partners` must be .* of shape \(4, .*8\), but got .* of shape \(1, .*8\)"):
        mix(torch.rand(4, *shape), torch.rand(1, *shape), torch.rand(4))


def test_dropout_takes_a_mask_or_keys():
    embeds = torch.rand(2, 3)
    with pytest.raises(ValueError, match=r"`mask` or `keys` must be given, but got neither"):
        F.embed_dropout(embeds)
    with pytest.raises(ValueError, match=r"`mask` or `keys` must be given, but got both"):
        F.embed_dropout(embeds, embeds > 0, keys=keys_of(2))
