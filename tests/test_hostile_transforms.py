"""Transforms that are changed, replaced or derived from: what is recorded is always what is done."""

import json

import pytest
import torch

from torch_augcond import VARIANTS, Compose, EmbedCutMix, EmbedDropout, EmbedMixup, PixelMixup
from torch_augcond.transforms import resolve


def test_what_a_compose_is_made_of_stays():
    compose = Compose([EmbedMixup()])
    with pytest.raises(AttributeError, match="'tuple' object has no attribute 'append'"):
        compose.transforms.append(EmbedDropout())
    with pytest.raises(AttributeError, match="property 'transforms' of 'Compose' object has no setter"):
        compose.transforms = [EmbedDropout()]
    assert len(compose.ops) == len(compose.describe()) == len(compose) == 1


def test_a_variant_that_someone_changes_changes_for_nobody_else():
    changed = VARIANTS["embed-cutmix"]
    changed.alpha = 0.1
    VARIANTS["text-only"].p = 0.5
    for _, transform in VARIANTS["embed-cutmix-dropout"].named_modules():
        transform.eval()
    assert resolve(changed).describe()[0]["alpha"] == 0.1
    assert VARIANTS["embed-cutmix"].alpha == VARIANTS["embed-cutmix-dropout"].transforms[0].alpha == 1.0
    assert resolve("embed-cutmix").describe() == [{"name": "EmbedCutMix", "alpha": 1.0, "span": "leading"}]
    assert VARIANTS["text-only"].p == 1.0
    assert "real" in VARIANTS and "reel" not in VARIANTS and len(VARIANTS) == len({**VARIANTS}) == 11
    with pytest.raises(KeyError, match="reel"):
        VARIANTS["reel"]


class Sevens(EmbedDropout):
    def transform(self, x, partners, params):
        return torch.full_like(x, 7)


class Later(EmbedMixup):
    def _draw(self, x, keys):
        return super()._draw(x, keys + 1)


class Cleared(EmbedCutMix):
    def forward(self, *inputs, **options):
        return super().forward(*inputs, **options) * 0


class New(type(EmbedMixup()).__base__):
    def _draw(self, x, keys):
        return {}

    def transform(self, x, partners, params):
        return partners


class Named(EmbedDropout):
    """Only its defaults are of its own."""

    def __init__(self):
        super().__init__(p=0.2)


@pytest.mark.parametrize("kind", [Sevens, Later, Cleared, New])
def test_a_subclass_that_does_its_own_is_no_part_of_a_graph(kind):
    for transform in (kind(), Compose([EmbedMixup(), kind()])):
        with pytest.raises(TypeError, match=f"`ops` must be of transforms .* but got {kind.__name__}, which has a `"):
            _ = transform.ops


def test_a_compose_that_does_its_own_is_not_taken_apart():
    class Twice(Compose):
        def transform(self, x, partners, params):
            return 2 * super().transform(x, partners, params)

    for build in (lambda: resolve(Twice([])), lambda: Compose([Twice([])]), lambda: Twice([]).ops):
        with pytest.raises(TypeError, match="but got Twice, which has a `transform` of its own"):
            build()
    assert torch.equal(Twice([])(torch.ones(1, 2)), torch.full((1, 2), 2.0))


def test_a_subclass_runs_where_the_augmentation_is_called():
    x = torch.rand(2, 4)
    assert (Compose([Sevens()])(x) == 7).all()
    assert Named().ops == EmbedDropout(p=0.2).ops


def test_attributes_that_json_cannot_say_are_refused_by_name():
    transform = PixelMixup()
    transform.note, transform._private = "mine", object()
    assert transform.describe() == {"name": "PixelMixup", "alpha": 1.0, "crop": None, "note": "mine"}
    transform.note = object()
    with pytest.raises(TypeError, match=r"`PixelMixup.note` must be plain JSON, .* but got <object .*> \(object\)\. "):
        Compose([transform]).describe()


def test_what_the_constructor_would_refuse_is_refused_later_too():
    transform = EmbedCutMix()
    transform.span = "Random"
    with pytest.raises(ValueError, match="`span` must be"):
        resolve(transform)


def test_a_number_that_is_set_later_is_the_same_number():
    later = EmbedMixup()
    later.alpha = 2
    assert json.dumps(resolve(later).describe()) == json.dumps(resolve(EmbedMixup(alpha=2)).describe())
