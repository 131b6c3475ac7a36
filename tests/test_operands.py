"""What the pure functions are given: types, shapes and plain numbers are checked, and a compiled graph isn't broken."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from torch_augcond import EmbedCutMix
from torch_augcond import functional as F
from torch_augcond.functional import Purpose

K, X, LAM = torch.arange(3), torch.randn(3, 8), torch.full((3,), 0.5)
MEAN, STD = torch.zeros(8), torch.ones(8)
IMAGES, BOXES = torch.rand(3, 3, 4, 4), torch.tensor([[0, 0, 2, 2]] * 3)
VECTOR = r"`lam` must be a floating-point tensor of shape \(3,\)"


@pytest.mark.parametrize(
    "call, error, match",
    [
        (
            lambda: F.uniform(K.float(), 0, 2),
            TypeError,
            r"`keys` must be an int64 tensor of shape \(N,\), but got torch.fl",
        ),
        (lambda: F.uniform([1], 0, 2), TypeError, r"`keys` must be an int64 tensor of shape \(N,\), but got list"),
        (lambda: F.uniform(K[None], 0, 2), ValueError, r"`keys` must be .* but got torch.int64 of shape \(1, 3\)"),
        (lambda: F.uniform(K, 99, 2), ValueError, "`purpose` must be one of LAM, SPAN, .*, LATENTS, but got 99"),
        (lambda: F.uniform(K, "LAM", 2), TypeError, "`purpose` must be an int, but got 'LAM'"),
        (lambda: F.uniform(K, 0, -1), ValueError, "`num` must be an int of 0 or more, but got -1"),
        (lambda: F.uniform(K, 0, 2, -1), ValueError, "`first` must be an int of 0 or more, but got -1"),
        (lambda: F.normal(K, 99, 2), ValueError, "`purpose` must be one of"),
        (lambda: F.normal(K, 0, 2.0), TypeError, "`num` must be an int, but got 2.0"),
        (lambda: F.beta(K, 0), ValueError, "`alpha` must be a positive float, but got 0"),
        (lambda: F.beta(K, "1"), TypeError, "`alpha` must be a positive float, but got '1'"),
        (lambda: F.beta(K.float(), 2), TypeError, "`keys` must be an int64 tensor"),
        (lambda: F.fold(K.float(), 1), TypeError, "`keys` must be an int64 tensor"),
        (lambda: F.fold(K, 1.5), TypeError, r"`n` must be an int, but got 1\.5 \(float\)"),
        (lambda: F.fold(K, "a"), TypeError, r"`n` must be an int, but got 'a' \(str\)"),
        (lambda: F.random_start(K, LAM[:2], 8), ValueError, VECTOR),
        (lambda: F.random_start(K, LAM, -1), ValueError, "`dim` must be an int of 0 or more"),
        (lambda: F.span_length(0.5, 8), TypeError, r"`lam` must be .* but got float"),
        (lambda: F.same_label_partners(K.float(), K), TypeError, r"`labels` must be an integer tensor of shape \(3,\)"),
        (lambda: F.same_label_partners(K[:2], K), ValueError, r"`labels` must be an integer tensor of shape \(3,\)"),
        (lambda: F.embed_cutmix(X, X, torch.tensor(0.5)), ValueError, VECTOR),
        (lambda: F.embed_cutmix(X, X, LAM, LAM), TypeError, r"`start` must be an integer tensor of shape \(3,\)"),
        (lambda: F.embed_cutmix(X[0], X[0], LAM), ValueError, r"`embeds` must be .* \(N, D\), but got .* \(8,\)"),
        (lambda: F.embed_mixup(X, X, 0.5), TypeError, f"{VECTOR}, but got float"),
        (
            lambda: F.embed_mixup(X, None, LAM),
            TypeError,
            r"`partners` must be .* \(3, 8\), but got NoneType\. Give one",
        ),
        (lambda: F.embed_mixup(X.long(), X, LAM), TypeError, "`embeds` must be a floating-point tensor"),
        (lambda: F.embed_dropout(X, keys=K, p=2), ValueError, "`p` must be a float from 0 to 1, but got 2"),
        (lambda: F.embed_dropout(X, keys=K, p="x"), TypeError, "`p` must be a float from 0 to 1, but got 'x'"),
        (lambda: F.embed_dropout(X, keys=K[:2]), ValueError, r"`keys` must be an int64 tensor of shape \(3,\)"),
        (lambda: F.embed_dropout(X, X), TypeError, r"`mask` must be a bool tensor of shape \(3, 8\)"),
        (lambda: F.embed_dropout(X, keys=K, rescale=1), TypeError, "`rescale` must be one of False, True, but got 1"),
        (
            lambda: F.add_noise(X, X[:2], LAM, LAM, 1, 0),
            ValueError,
            r"`noise` must be .* \(3, 8\), but got .* \(2, 8\)",
        ),
        (lambda: F.add_noise(X, X, LAM, X[0], 1, 1), ValueError, r"`mean` must be .* \(8,\), but got .* \(3,\)"),
        (lambda: F.add_noise(X, X, X[0], X, 1, 1), ValueError, r"`std` must be .* \(8,\), but got .* \(3, 8\)"),
        (lambda: F.add_noise(X, X, X[0], 1, 1, 1), TypeError, r"`std` must be .* \(8,\), but got int"),
        (lambda: F.add_noise(X, X, X[0], X[1], "a", 1), TypeError, r"`signal` must be a number, or .* got 'a' \(str\)"),
        (lambda: F.add_noise(X, X, X[0], X[1], 1, X[0]), ValueError, r"`sigma` must be .* \(3,\), but got .* \(8,\)"),
        (lambda: F.level_embedding(K, 1), ValueError, "`dim` must be an int of 2 or more, but got 1"),
        (
            lambda: F.level_embedding(3, 8),
            TypeError,
            r"`noise_level` must be a real tensor of shape \(N,\), but got int",
        ),
        (lambda: F.cutmix_boxes(LAM, LAM, 4, 4), ValueError, r"`centres` must be .* \(3, 2\)"),
        (lambda: F.cutmix_boxes(LAM, X[:, :2], 0, 4), ValueError, "`height` must be an int of 1 or more, but got 0"),
        (
            lambda: F.pixel_cutmix(IMAGES, IMAGES, BOXES[:2]),
            ValueError,
            r"`boxes` must be an integer tensor of shape \(3, 4\)",
        ),
        (lambda: F.pixel_mixup(IMAGES, IMAGES, 0.5), TypeError, VECTOR),
        (lambda: F.pixel_mixup(IMAGES[0], IMAGES[0], LAM), ValueError, r"`images` must be .* \(N, C, H, W\)"),
        (lambda: F.random_crops(K, 0, 0), ValueError, "`height` must be an int of 1 or more, but got 0"),
        (lambda: F.random_crops(K, 4, 0), ValueError, "`width` must be an int of 1 or more, but got 0"),
        (
            lambda: F.resized_crop(IMAGES, BOXES * 0),
            ValueError,
            r"`boxes` must be .* x1 < x2 .* but got \(0, 0, 0, 0\)",
        ),
        (lambda: F.resized_crop(IMAGES, BOXES.float()), TypeError, "`boxes` must be an integer tensor"),
        (
            lambda: EmbedCutMix().transform(X, None, EmbedCutMix().make_params(X)),
            TypeError,
            "`partners` must be .* but got NoneType",
        ),
    ],
)
def test_what_is_refused(call, error, match):
    with pytest.raises(error, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_odd_level_embedding_ends_in_zero():
    assert F.level_embedding(K, 5).shape == (3, 5) and not F.level_embedding(K, 5)[:, 4].any()


def test_a_graph_holds_no_checks():
    """One graph, without a break, and none more for another batch size."""

    def chain(embeds, partners, keys):
        lam = F.beta(keys, 0.5)
        mixed = F.embed_cutmix(embeds, partners, lam, F.random_start(F.fold(keys, 1), lam, embeds.shape[1]))
        mixed = F.add_noise(mixed, partners, MEAN, STD, lam, 0.5)
        return F.embed_dropout(F.embed_mixup(mixed, partners, lam), keys=keys) + F.normal(keys, Purpose.NOISE, 8)

    torch._dynamo.reset()
    counter = CompileCounter()
    graph = torch.compile(chain, backend=counter, fullgraph=True, dynamic=True)
    for n in (3, 5, 7):
        x = torch.randn(n, 8)
        torch.testing.assert_close(graph(x, x.flip(0), torch.arange(n)), chain(x, x.flip(0), torch.arange(n)))
    assert counter.frame_count == 1
