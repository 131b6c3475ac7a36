"""The compiled graph against the functions it is made of, against its slow twin, and against a missing compiler."""

import copy
import warnings

import numpy as np
import pytest
import reference
import torch
from torch._dynamo.utils import counters

from torch_augcond import Compose, EmbedCutMix, EmbedDropout, EmbedMixup, fused
from torch_augcond import functional as F

DIM = 24
FULL = Compose([EmbedCutMix(0.5, span="random"), EmbedDropout(rescale=True)])
COMPOSITIONS = {
    "none": Compose([]),
    "public code": Compose([EmbedCutMix(span="batch")]),
    "cutmix": Compose([EmbedCutMix()]),
    "mixup, dropout": Compose([EmbedMixup(0.2), EmbedDropout()]),
    "text only": Compose([EmbedDropout(1.0)]),
    "dropout, cutmix": Compose([EmbedDropout(0.1), EmbedCutMix(4.0)]),
    "all twice": Compose([EmbedCutMix(), EmbedMixup(), EmbedCutMix(2.0, "random"), EmbedDropout(), EmbedDropout(0.2)]),
}
# Half precision is rounded once, at the end, where the chain of functions rounds after each step.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}


def arguments(n, dim=DIM, dtype=torch.float32, **more):
    draw = torch.Generator().manual_seed(n)
    embeds, partners = torch.rand(2, n, dim, generator=draw).sub(0.5).to(dtype)
    mean, std = torch.rand(2, dim, generator=draw)
    rows = {"embeds": embeds, "partners": partners, "keys": torch.arange(n) * 977 - 5}
    normalizer = {"mean": mean - 0.5, "std": (std + 1) / 4}
    return {**rows, **normalizer, "ops": FULL, "noise_level": 10, "signal": 0.9, "sigma": 0.19**0.5, **more}


def chain(embeds, keys, *, partners, ops, noise_level, signal, sigma, mean, std):
    """noise → mix → level → dropout, from the public functions alone."""
    noise = F.normal(keys, F.Purpose.NOISE, embeds.shape[1])
    embeds, partners = (F.add_noise(x, noise, mean, std, signal, sigma) for x in (embeds, partners))
    levels = F.level_embedding(torch.full((len(embeds),), noise_level), embeds.shape[1])
    x = torch.cat([embeds, levels.to(embeds.dtype)], 1)
    for transform, n in zip(ops, ops._nth):
        image, own = x[:, : embeds.shape[1]], F.fold(keys, n)
        if isinstance(transform, EmbedDropout):
            x = F.embed_dropout(x, keys=own, p=transform.p, rescale=transform.rescale)
        else:
            mixed = transform.transform(image, partners, transform.make_params(image, keys=own))
            x = torch.cat([mixed, x[:, embeds.shape[1] :]], 1)
    return x


def compiles():
    return counters["stats"]["unique_graphs"]


@pytest.fixture
def fresh(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(fused, "_graphs", {})
    monkeypatch.setattr(fused, "_state", {"works": True})
    counters.clear()


@pytest.fixture
def traced(fresh, monkeypatch):
    """torch.compile that traces and guards as ever, but spares the C++ compiler."""
    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, fullgraph, options: compile(f, fullgraph=fullgraph, backend="eager")
    )


# ----------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("ops", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_the_eager_chain_is_the_functions(ops):
    given = arguments(9, ops=ops)
    torch.testing.assert_close(fused.condition(**given, compile=False), chain(**given), atol=1e-6, rtol=0)


def test_the_whole_is_the_slow_twin():
    given = arguments(9, ops=Compose([EmbedCutMix(0.2), EmbedDropout()]))
    names = ("embeds", "partners", "keys", "mean", "std", "signal", "sigma", "noise_level")
    plain = [x.numpy() if isinstance(x, torch.Tensor) else x for x in map(given.get, names)]
    np.testing.assert_allclose(
        fused.condition(**given, compile=False), reference.condition(*plain, alpha=0.2, p=0.4), atol=2e-6
    )


def test_without_ops_it_is_what_diffusers_computes():
    given = arguments(5, ops=None)
    noise = torch.randn(5, DIM)
    out = fused.condition(**given, noise=noise, compile=False)
    image = F.add_noise(*(given["embeds"], noise, given["mean"], given["std"], given["signal"], given["sigma"]))
    assert torch.equal(out[:, :DIM], image)
    assert torch.equal(out[:, DIM:], F.level_embedding(torch.full((5,), 10), DIM))


def test_dropout_reaches_the_level_half():
    out = fused.condition(**arguments(200, ops=Compose([EmbedDropout()])), compile=False)
    assert abs((out[:, DIM:] == 0).double().mean() - 0.4) < 0.04
    assert not fused.condition(**arguments(9, ops=Compose([EmbedDropout(1.0)])), compile=False).any()


def test_gathering_and_levels_by_row():
    given = arguments(6)
    index, partner_index = torch.tensor([5, 0, 3]), torch.tensor([1, 1, 2])
    rows = {"embeds": given["embeds"][index], "partners": given["embeds"][partner_index], "keys": given["keys"][:3]}
    expected = fused.condition(**{**given, **rows}, compile=False)
    table = {**given, "partners": None, "keys": given["keys"][:3], "index": index, "partner_index": partner_index}
    assert torch.equal(fused.condition(**table, compile=False), expected)
    by_row = {name: torch.full((3,), table[name]) for name in ("noise_level", "signal", "sigma")}
    torch.testing.assert_close(fused.condition(**{**table, **by_row}, compile=False), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    given = arguments(9, dtype=dtype)
    out = fused.condition(**given, compile=False)
    assert out.dtype == dtype
    torch.testing.assert_close(out, chain(**given), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_inputs_never_change_and_out_is_written():
    given = arguments(5)
    before = copy.deepcopy({k: v for k, v in given.items() if k != "ops"})
    out = torch.empty(5, 2 * DIM)
    assert fused.condition(**given, out=out, compile=False) is out
    assert torch.equal(out, fused.condition(**given, compile=False))
    for name, value in before.items():
        assert torch.equal(torch.as_tensor(given[name]), torch.as_tensor(value)), name


def test_no_rows_give_no_rows():
    assert fused.condition(**arguments(0)).shape == (0, 2 * DIM)


# --------------------------------------------------------------------------------------------------- one graph


@pytest.mark.parametrize("ops", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_one_graph_for_all_batch_sizes(traced, ops):
    for n in (DIM, 7, 1, 2, 2 * DIM, 100, 3):
        given = arguments(n, ops=ops)
        torch.testing.assert_close(fused.condition(**given), fused.condition(**given, compile=False), atol=1e-6, rtol=0)
    assert compiles() == 1
    assert not counters["graph_break"]


def test_one_graph_for_gathering_from_tables_of_any_length(traced):
    for n, rows in ((6, 6), (4, 9), (1, 5), (8, 1)):
        index = torch.arange(n) % rows
        given = {**arguments(rows), "keys": torch.arange(n), "partners": None, "index": index, "partner_index": index}
        torch.testing.assert_close(fused.condition(**given), fused.condition(**given, compile=False), atol=1e-6, rtol=0)
    assert compiles() == 1


def test_numbers_may_change_without_a_new_graph(traced):
    for level, signal in ((0, 0.99), (1, 0.5), (999, 0.0)):
        fused.condition(**arguments(5, noise_level=level) | {"signal": signal})
    assert compiles() == 1


def test_more_compositions_than_torch_allows_recompilations(traced):
    for p in range(1, 13):
        fused.condition(**arguments(4, ops=Compose([EmbedDropout(p / 13)])))
    assert compiles() == 12
    assert fused._state["works"]


def test_the_compiled_graph(fresh):
    """The real compiler: one graph, the eager numbers to the bit, and rows that don't depend on their batch."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="torch.compile doesn't work here")
        whole = fused.condition(**arguments(DIM))
    given = arguments(DIM)
    eager = fused.condition(**given, compile=False)
    assert torch.equal(whole[:, :DIM], eager[:, :DIM])
    torch.testing.assert_close(whole, eager, atol=1e-6, rtol=0)  # the level's sines are each library's own
    order = torch.randperm(DIM)
    for size in (1, 2, 5, 17):
        for part, rows in zip(order.split(size), whole[order].split(size)):
            cut = {name: given[name][part] for name in ("embeds", "partners", "keys")}
            assert torch.equal(fused.condition(**{**given, **cut}), rows)
    assert compiles() == 1
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ops", COMPOSITIONS.values(), ids=COMPOSITIONS)
def test_every_composition_compiled(fresh, ops, dtype):
    for n, dim in ((50, DIM), (33, 37)):
        given = arguments(n, dim, dtype, ops=ops)
        out = torch.empty(n, 2 * dim, dtype=dtype)
        fused.condition(**given, out=out)
        torch.testing.assert_close(out, chain(**given), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        assert torch.equal(fused.condition(**{**given, **_flipped(given)}).flip(0), out)
    assert fused._state["works"]


def _flipped(given):
    return {name: given[name].flip(0) for name in ("embeds", "partners", "keys")}


# ------------------------------------------------------------------------------------------------ no compiler


def broken(*args, **kwargs):
    raise RuntimeError("no C++ compiler\nand a long story")


def test_without_a_compiler_it_is_eager_and_says_so_once(fresh, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: broken)
    given = arguments(4)
    expected = fused.condition(**given, compile=False)
    with pytest.warns(UserWarning, match=r"here \(RuntimeError: no C\+\+ compiler\), so .* eagerly") as seen:
        result = fused.condition(**given)
    assert torch.equal(result, expected)
    assert [warning.filename for warning in seen] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(fused.condition(**given), expected)


def test_lack_of_memory_is_not_taken_for_a_lack_of_a_compiler(fresh, monkeypatch):
    def full(*args):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda *args, **kwargs: full)
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        fused.condition(**arguments(4))
    assert fused._state["works"]


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"keys": torch.arange(5.0)}, TypeError, r"`keys` must be int64 of shape \(N,\), but got torch.float32"),
        ({"partners": None}, ValueError, r"`partners` must be given for transforms that mix, but got None"),
        ({"partners": torch.rand(4, DIM)}, ValueError, r"`partners` must come to \(5, 24\) .* got \(4, 24\)"),
        ({"embeds": torch.rand(5, 3)}, ValueError, r"`embeds` must come to \(5, 24\) .* got \(5, 3\)"),
        ({"noise": torch.rand(5)}, ValueError, r"`noise` must come to \(5, 24\) .* got \(5,\)"),
        ({"out": torch.rand(5, DIM)}, ValueError, r"`out` must come to \(5, 48\) .* got \(5, 24\)"),
        ({"index": torch.arange(2)}, ValueError, r"`embeds` must come to \(5, 24\) .* got \(2, 24\)"),
    ],
)
def test_what_does_not_fit_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        fused.condition(**arguments(5) | wrong)
