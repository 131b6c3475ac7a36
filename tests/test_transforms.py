"""The modules: what they draw, whom they mix, what they refuse, and the eleven variants."""

import copy
import json
import pickle

import pytest
import torch
from torchvision import tv_tensors

from torch_augcond import VARIANTS, Compose, EmbedCutMix, EmbedDropout, EmbedMixup, PixelCutMix, PixelMixup
from torch_augcond import functional as F
from torch_augcond.transforms import resolve

EMBED = [
    EmbedCutMix(),
    EmbedCutMix(0.3, "random"),
    EmbedMixup(),
    EmbedDropout(),
    Compose([EmbedMixup(), EmbedDropout()]),
]
PIXEL = [PixelCutMix(), PixelMixup(0.5), PixelCutMix(crop="random-resized"), PixelMixup(crop="random-resized")]
LABELS = torch.tensor([3, 1, 3, 1, 7])


def inputs(transform, n=5):
    return torch.rand(n, 16) if resolve(transform).stage == "embed" else torch.rand(n, 3, 12, 10)


def each(transforms):
    return pytest.mark.parametrize("transform", transforms, ids=repr)


# ------------------------------------------------------------------------------------------------------ calling


@each(EMBED + PIXEL)
def test_labels_come_back_and_inputs_stay(transform):
    x = inputs(transform)
    before = copy.deepcopy([x, LABELS])
    out, labels = transform(x, LABELS)
    assert labels is LABELS
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert not torch.equal(out, x)
    out.zero_()
    assert torch.equal(x, before[0])
    assert torch.equal(labels, before[1])


@each(EMBED + PIXEL)
def test_the_global_seed_decides_and_keys_overrule_it(transform):
    x, keys = inputs(transform), torch.arange(5)
    runs = []
    for seed, given in ((0, None), (0, None), (1, None), (0, keys), (1, keys)):
        torch.manual_seed(seed)
        runs.append(transform(x, LABELS, keys=given)[0])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(runs[3], runs[4])


@each(EMBED + PIXEL)
def test_keyed_rows_are_bitwise_the_same_in_any_batch(transform):
    x, partners, keys = inputs(transform, 9), inputs(transform, 9), torch.arange(9) - 4
    whole = transform(x, partners=partners, keys=keys)
    order = torch.randperm(9)
    for size in (1, 2, 4):
        parts = [transform(x[i], partners=partners[i], keys=keys[i]) for i in order.split(size)]
        assert torch.equal(torch.cat(parts), whole[order])


@each(EMBED + PIXEL)
def test_make_params_then_transform_is_the_call(transform):
    x, partners, keys = inputs(transform), inputs(transform), torch.arange(5)
    params = transform.make_params(x, keys=keys)
    assert all(len(value) == 5 for value in params.values())
    out = transform.transform(x, partners, params)
    assert torch.equal(out, transform(x, partners=partners, keys=keys))
    assert torch.equal(out, transform.transform(x, partners, params))


@each([EmbedCutMix(), EmbedMixup(), PixelCutMix(), PixelMixup()])
def test_partners_have_the_same_label_and_a_row_alone_stays(transform):
    """Rows are plain colours: what a row holds tells where it came from."""
    x = inputs(transform, 40)
    labels = torch.arange(40) % 13
    labels[-1] = 99
    x[:] = torch.arange(40.0).view(-1, *[1] * (x.ndim - 1))
    out, _ = transform(x, labels, keys=torch.arange(40))
    assert torch.equal(out[-1], x[-1])
    assert not torch.equal(out, x)
    for row, label in zip(out.flatten(1), labels):
        own = torch.arange(40.0)[labels == label]
        assert own.min() <= row.min()
        assert row.max() <= own.max()
        assert "Mixup" in repr(transform) or set(row.tolist()) <= set(own.tolist())


def test_parameters_are_drawn_per_sample():
    x, images = torch.rand(64, 32), torch.rand(64, 3, 32, 32)
    assert len(EmbedMixup().make_params(x)["lam"].unique()) == 64
    params = EmbedCutMix(span="random").make_params(x)
    assert len(params["lam"].unique()) == 64
    assert len(params["start"].unique()) > 5
    assert len(EmbedDropout().make_params(x)["mask"].unique(dim=0)) == 64
    params = PixelCutMix(crop="random-resized").make_params(images)
    for name in ("boxes", "crops", "partner_crops"):
        assert len(params[name].unique(dim=0)) > 50
    assert not torch.equal(params["crops"], params["partner_crops"])


def test_the_public_codes_cutmix_leaves_embeddings_unmixed():
    x = torch.rand(4, 8)
    out = EmbedCutMix(span="batch")(x)
    assert torch.equal(out, x)
    assert out is not x


def test_images_keep_their_type():
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    for transform in PIXEL:
        out, _ = transform(tv_tensors.Image(images), torch.zeros(4, dtype=torch.int64))
        assert type(out) is tv_tensors.Image
        assert out.dtype == torch.uint8


def test_transforms_act_in_evaluation_mode_and_in_half_precision():
    x = torch.ones(4, 64, dtype=torch.bfloat16)
    out = EmbedDropout().eval()(x)
    assert out.dtype == torch.bfloat16
    assert 0 < (out == 0).sum() < out.numel()


# ------------------------------------------------------------------------------------------------- composition


def test_the_second_of_a_kind_draws_numbers_of_its_own():
    x, keys = torch.rand(5, 64), torch.arange(5)
    params = Compose([EmbedCutMix(), EmbedMixup(), EmbedDropout(), EmbedDropout()]).make_params(x, keys=keys)
    assert set(params) == {"lam", "start", "lam_1", "mask", "mask_1"}
    assert not torch.equal(params["lam"], params["lam_1"])
    assert not torch.equal(params["mask"], params["mask_1"])


def test_variants_share_their_random_numbers():
    x, keys = torch.rand(5, 64), torch.arange(5)
    both = VARIANTS["embed-cutmix-dropout"].make_params(x, keys=keys)
    assert torch.equal(both["lam"], VARIANTS["embed-mixup"].make_params(x, keys=keys)["lam"])
    assert torch.equal(both["mask"], VARIANTS["dropout"].make_params(x, keys=keys)["mask"])


def test_compose_splits_into_stages():
    compose = Compose([PixelMixup(), Compose([EmbedCutMix(), EmbedDropout()])])
    assert [type(t) for t in compose] == [PixelMixup, EmbedCutMix, EmbedDropout]
    assert [type(t) for t in compose.pixel] == [PixelMixup]
    assert [type(t) for t in compose.embed] == [EmbedCutMix, EmbedDropout]
    assert compose.stage == "both"
    assert not VARIANTS["real"].pixel
    # An embedding's λ isn't the one that its pixels were mixed with.
    assert compose.embed.ops == (("cutmix", 1.0, "leading", 1), ("dropout", 0.4, False, 0))
    x = torch.rand(3, 8)
    mixed = compose.embed(x, partners=x.flip(0), keys=torch.arange(3))
    assert mixed.shape == x.shape
    with pytest.raises(ValueError, match=r"`ops` must be made of transforms of embeddings"):
        _ = compose.ops


@pytest.mark.parametrize(
    "transforms, sources",
    [
        ([], 1),
        ([EmbedDropout()], 1),
        ([EmbedDropout(1.0)], 0),
        ([EmbedCutMix()], 2),
        ([PixelCutMix(), EmbedDropout()], 2),
        ([EmbedMixup(), EmbedDropout(1)], 0),
        ([EmbedDropout(1), EmbedMixup()], 2),
        ([EmbedCutMix(span="batch"), EmbedDropout()], 1),
    ],
)
def test_how_many_real_images_stand_behind_one(transforms, sources):
    assert Compose(transforms).num_sources == sources


# ---------------------------------------------------------------------------------------------------- variants


def test_the_eleven_variants():
    assert list(VARIANTS) == [
        "text-only", "real", "dropout", "cutmix", "cutmix-dropout", "mixup", "mixup-dropout",
        "embed-cutmix", "embed-cutmix-dropout", "embed-mixup", "embed-mixup-dropout",
    ]  # fmt: skip
    with pytest.raises(TypeError, match="does not support item assignment"):
        VARIANTS["real"] = EmbedDropout()
    drop = {"name": "EmbedDropout", "p": 0.4, "rescale": False}
    for name in VARIANTS:
        described = resolve(name).describe()
        assert json.loads(json.dumps(described)) == described
        if name.endswith("-dropout"):
            assert described == [*resolve(name.removesuffix("-dropout")).describe(), drop]
    assert resolve("text-only").describe() == [{**drop, "p": 1.0}]
    assert resolve("cutmix").describe() == [{"name": "PixelCutMix", "alpha": 1.0, "crop": None}]
    assert resolve("embed-cutmix").describe() == [{"name": "EmbedCutMix", "alpha": 1.0, "span": "leading"}]


def test_text_only_leaves_nothing_and_real_everything():
    x = torch.rand(3, 8) + 1
    assert not VARIANTS["text-only"](x).any()
    assert torch.equal(VARIANTS["real"](x), x)


def test_resolve_takes_names_transforms_and_sequences():
    described = Compose([EmbedMixup(), EmbedDropout()]).describe()
    for given in ("embed-mixup-dropout", [EmbedMixup(), EmbedDropout()], (Compose([EmbedMixup()]), EmbedDropout())):
        resolved = resolve(given)
        assert type(resolved) is Compose
        assert resolved.describe() == described
    assert resolve(EmbedMixup()).describe() == described[:1]


# ------------------------------------------------------------------------------------------- repr, pickle, errors


def test_what_a_subclass_does_is_in_no_recipe():
    class Mine(PixelMixup):
        def transform(self, x, partners, params):
            return x

    with pytest.raises(TypeError, match="`augmentation` must be made of the package's own transforms, but got 'Mine'"):
        resolve([Mine(), EmbedDropout()])


def test_repr_shows_the_plain_attributes():
    assert repr(EmbedCutMix(0.5, "random")) == "EmbedCutMix(alpha=0.5, span='random')"
    assert repr(PixelMixup()) == "PixelMixup(alpha=1.0, crop=None)"
    assert repr(VARIANTS["embed-mixup-dropout"]) == (
        "Compose(\n  EmbedMixup(alpha=1.0)\n  EmbedDropout(p=0.4, rescale=False)\n)"
    )


@each([*EMBED, *PIXEL, Compose([PixelCutMix(), EmbedCutMix()]).embed])
def test_a_pickled_copy_does_the_same(transform):
    twin = pickle.loads(pickle.dumps(transform))
    assert twin.describe() == transform.describe()
    x, keys = inputs(transform), torch.arange(5)
    assert torch.equal(twin(x, LABELS, keys=keys)[0], transform(x, LABELS, keys=keys)[0])


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: EmbedCutMix(-1.0), ValueError, r"`alpha` must be a positive float, but got -1.0\."),
        (lambda: EmbedMixup(0), ValueError, r"`alpha` must be a positive float, but got 0\."),
        (lambda: EmbedCutMix(10**400), ValueError, r"`alpha` must be a positive float, but got inf\."),
        (lambda: PixelMixup(-(10**400)), ValueError, r"`alpha` must be a positive float, but got -inf\."),
        (lambda: PixelMixup(float("nan")), ValueError, r"`alpha` must be a positive float, but got nan\."),
        (lambda: PixelCutMix("1"), TypeError, r"`alpha` must be a positive float, but got '1' \(str\)\."),
        (lambda: EmbedMixup(True), TypeError, r"`alpha` must be a positive float, but got True \(bool\)\."),
        (lambda: EmbedCutMix(span="middle"), ValueError, r"`span` must be one of 'leading', 'random', 'batch', but"),
        (
            lambda: PixelCutMix(crop="centre"),
            ValueError,
            r"`crop` must be one of None, 'random-resized', but got 'centre'",
        ),
        (lambda: EmbedDropout(1.5), ValueError, r"`p` must be a float from 0 to 1, but got 1.5\."),
        (lambda: EmbedDropout(None), TypeError, r"`p` must be a float from 0 to 1, but got None \(NoneType\)\."),
        (
            lambda: EmbedDropout(rescale="yes"),
            TypeError,
            r"`rescale` must be one of False, True, but got 'yes' \(str\)",
        ),
        (lambda: EmbedCutMix(span=None), TypeError, r"`span` must be one of 'leading', .* but got None \(NoneType\)"),
        (lambda: EmbedCutMix(span="Random"), ValueError, r"but got 'Random'\. Did you mean 'random'\?"),
        (lambda: EmbedDropout(rescale=1), TypeError, r"`rescale` must be one of False, True, but got 1 "),
        (
            lambda: Compose([torch.nn.Identity()]),
            TypeError,
            r"`transforms` must be a list of Embed and Pixel .* got Identity\(\)",
        ),
        (lambda: Compose([EmbedMixup(), PixelMixup()]), ValueError, r"`transforms` must be of pixels first"),
        (lambda: resolve("embed-cutmixx"), ValueError, r"must be one of text-only, real, .* got 'embed-cutmixx'\."),
        (lambda: resolve("embed_cutmix"), ValueError, r"got 'embed_cutmix'\. Did you mean 'embed-cutmix'\?"),
        (lambda: resolve("Embed-CutMix"), ValueError, r"Did you mean 'embed-cutmix'\?"),
        (lambda: resolve("nonsense"), ValueError, r"got 'nonsense'\.$"),
        (lambda: resolve(EmbedCutMix), TypeError, r"`augmentation` must be .* instance of it: EmbedCutMix\(\)\."),
        (lambda: Compose(EmbedCutMix()), TypeError, r"`transforms` must be a list of .* but got EmbedCutMix\(alpha"),
        (
            lambda: Compose("embed-cutmix"),
            TypeError,
            r"`transforms` must be a list of .* but got 'embed-cutmix' \(str\)",
        ),
        (lambda: Compose([EmbedCutMix]), TypeError, r"instance of it: EmbedCutMix\(\)\."),
        (lambda: resolve(3), TypeError, r"`augmentation` must be a variant's name, a transform .* got 3 \(int\)\."),
        (
            lambda: resolve(VARIANTS),
            TypeError,
            r"`augmentation` must be a variant's name, .* got VARIANTS\(.*\.\.\. \(_Variants\)\.$",
        ),
        (lambda: Compose([torch.nn.Sequential(torch.nn.Identity())]), TypeError, r"but got Sequential\( \(0\): Iden"),
        (lambda: Compose([PixelMixup()] * 2).ops, ValueError, r"but got Compose\( PixelMixup\(.*\. Take `\.embed`"),
        (
            lambda: resolve(["dropout"]),
            TypeError,
            r"`augmentation` must be a list of Embed and Pixel transforms, but got 'dropout' .* Take VARIANTS",
        ),
    ],
)
def test_what_cannot_be_built(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    "transform, args, error, message",
    [
        (EmbedMixup(), {}, ValueError, r"`labels` or `partners` must be given to EmbedMixup, which mixes rows, but"),
        (EmbedMixup(), {"x": torch.rand(5, 3, 8, 8)}, ValueError, r"embeddings \(N, D\), but EmbedMixup got the shape"),
        (
            EmbedMixup(),
            {"x": [1.0]},
            TypeError,
            r"`x` must be a tensor of embeddings \(N, D\), but EmbedMixup got list",
        ),
        (EmbedMixup(), {"x": torch.ones(5, 4, dtype=torch.int32)}, TypeError, r"floating-point .* got torch.int32"),
        (PixelMixup(), {}, ValueError, r"`x` must be a tensor of images \(N, C, H, W\), but PixelMixup got the shape"),
        (VARIANTS["cutmix-dropout"], {}, ValueError, r"Compose has two: call `.pixel`, encode, `.embed`"),
        (EmbedMixup(), {"labels": [0] * 5}, TypeError, r"`labels` must be an integer tensor, but got list"),
        (
            EmbedMixup(),
            {"labels": torch.rand(5)},
            TypeError,
            r"`labels` must be an integer tensor, but got torch.float32",
        ),
        (EmbedMixup(), {"labels": LABELS[:4]}, ValueError, r"one a row, shape \(5,\), but got the shape \(4,\)"),
        (EmbedMixup(), {"partners": torch.rand(4, 16)}, ValueError, r"`partners` must be .* of shape \(5, 16\)"),
        (EmbedDropout(), {"keys": torch.rand(5)}, TypeError, r"`keys` must be an int64 tensor, but got torch.float32"),
        (
            EmbedDropout(),
            {"keys": LABELS[:2]},
            ValueError,
            r"`keys` must be one a row, shape \(5,\), but got the shape",
        ),
    ],
)
def test_what_cannot_be_transformed(transform, args, error, message):
    with pytest.raises(error, match=message):
        transform(**{"x": torch.rand(5, 16), **args})


def test_class_and_function_agree():
    x, partners, keys = torch.rand(5, 16), torch.rand(5, 16), torch.arange(5)
    lam = F.beta(keys, 0.5)
    start = F.random_start(keys, lam, 16)
    expected = F.embed_cutmix(x, partners, lam, start)
    assert torch.equal(EmbedCutMix(0.5, "random")(x, partners=partners, keys=keys), expected)
    assert torch.equal(EmbedDropout(0.3)(x, keys=keys), F.embed_dropout(x, keys=keys, p=0.3))


def test_a_single_transform_is_as_good_as_a_chain_of_one():
    assert EmbedDropout(p=0.3).ops == Compose([EmbedDropout(p=0.3)]).ops
    with pytest.raises(ValueError, match=r"`ops` must be made of transforms of embeddings, but got PixelMixup\("):
        PixelMixup().ops  # noqa: B018
