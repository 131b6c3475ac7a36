"""Ways to make images faster: compiled, in an interval guided, by other schedulers, with reused features."""

import functools
import logging
import re

import pytest
import torch
from commands import COUNTS, run
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st
from pipelines import make_pipeline
from test_stable_unclip import KEYS, PROMPTS, diffusers_images, embedding_noise

from torch_augcond import StableUnCLIPGenerator, load_generator
from torch_augcond.generators.denoise import DECODE_CHUNK
from torch_augcond.generators.memory import fit
from torch_augcond.generators.networks import Networks, choose
from torch_augcond.generators.reuse import split

NUMBERS = {"guidance_scale": 2.0, "num_inference_steps": 4}
EMBEDS = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))


def make_generator(own_scheduler="ddim", **options):
    return StableUnCLIPGenerator(make_pipeline(own_scheduler), fingerprint="test@0", **options)


def images(generator, rows=slice(None), **numbers):
    prompts = generator.encode_prompts(PROMPTS)
    condition = generator.condition(EMBEDS, KEYS)
    return generator.sample(condition[rows], prompts[rows], KEYS[rows], **NUMBERS | numbers)


def spy(generator, monkeypatch):
    """The rows of each call of the UNet."""
    rows, forward = [], generator.pipe.unet.forward

    def recorded(sample, *inputs, **conditions):
        rows.append(len(sample))
        return forward(sample, *inputs, **conditions)

    monkeypatch.setattr(generator.pipe.unet, "forward", recorded)
    return rows


# --- Compilation


@pytest.fixture
def graphs(monkeypatch):
    """For each graph that torch.compile makes, and that here runs as it is, the dtypes of what goes in."""
    found = []

    def backend(graph, inputs):
        found.append({x.dtype for x in inputs if isinstance(x, torch.Tensor)})
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    yield found
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "way, options", [(True, {"guidance_interval": (0.0, 0.5)}), (True, {"cache_interval": 2}), ("regional", {})]
)
def test_batches_of_one_shape_compile_once(graphs, way, options):
    plain, generator = make_generator("pndm", **options), make_generator("pndm", compile=way, **options)
    expected = images(plain)
    assert graphs == []
    generator.prepare(1)
    assert (images(generator) - expected).abs().max() <= 1e-5
    count = len(graphs)
    assert count > 0
    for steps in (4, 6):
        images(generator, num_inference_steps=steps)
        generator.prepare(100)
    assert len(graphs) == count


def test_a_failing_compiler_is_worked_around(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler\nfor a long time")

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    generator = make_generator(compile=True)
    generator.prepare(1)
    with pytest.warns(UserWarning, match=r"torch.compile doesn't work here .*so a network runs uncompiled") as warned:
        made = images(generator)
    assert 1 <= len(warned) <= 2  # the UNet, the decoder
    assert made.equal(images(make_generator()))


def test_a_row_made_again_in_float32_runs_uncompiled(graphs, monkeypatch):
    generator = make_generator(compile=True)
    generator.pipe.to(torch.bfloat16)
    generator.prepare(1)
    rows = spy(generator, monkeypatch)
    bad = EMBEDS.clone()
    bad[1] = torch.nan
    with pytest.warns(UserWarning, match="made again in float32"), pytest.raises(RuntimeError, match=r"rows \[1\]"):
        generator.generate(bad, generator.encode_prompts(PROMPTS), KEYS, **NUMBERS)
    assert rows[-4:] == [2] * 4
    assert graphs and torch.float32 not in set().union(*graphs)


def test_the_next_job_undoes_what_was_compiled_by_region(graphs):
    pipe = make_generator(compile=False).pipe
    wrapped = lambda: [module.forward for module in pipe.unet.modules() if hasattr(module.forward, "plain")]  # noqa: E731
    for _ in range(2):
        Networks(pipe, "regional")
        assert wrapped() and not any(hasattr(forward.plain, "plain") for forward in wrapped())
    Networks(pipe)
    assert not wrapped()
    block = next(module for module in pipe.unet.modules() if type(module).__name__ in pipe.unet._repeated_blocks)
    block.forward = replaced = lambda *inputs, **options: inputs[0]
    for way in ("regional", "regional", "off"):
        Networks(pipe, way)
        assert (block.forward.plain if way == "regional" else block.forward) is replaced


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_images_are_the_same_within_a_tolerance():
    generator, prompts = load_generator("tiny", compile=True), ["a photo of a cat", "a photo of a three"]
    embeds = torch.randn(2, generator.embed_dim, generator=torch.Generator().manual_seed(0))
    condition, prompts = generator.condition(embeds, KEYS[:2]), generator.encode_prompts(prompts)
    sample = functools.partial(generator.sample, condition, prompts, KEYS[:2], guidance_scale=2.0)
    expected = sample(num_inference_steps=30)
    generator.prepare(1)
    assert (sample(num_inference_steps=30) - expected).abs().max() <= 1e-3
    assert expected.std() > 0.05


@pytest.mark.parametrize(
    "compile, images, device, way",
    [
        ("auto", 1, "cpu", "off"),
        ("auto", 10**6, "cpu", "whole"),
        ("auto", 100, "cuda", "off"),
        ("auto", 500, "cuda", "regional"),
        ("auto", 10**4, "cuda", "whole"),
        ("auto", 10**6, "mps", "off"),
        (True, 1, "cpu", "whole"),
        (False, 10**6, "cuda", "off"),
        ("regional", 1, "cpu", "regional"),
    ],
)
def test_the_number_of_images_decides_and_the_log_tells(compile, images, device, way, caplog):
    with caplog.at_level(logging.INFO, "torch_augcond"):
        assert choose(compile, images, torch.device(device)) == way
    assert f"{images} images on {device}: compilation {way} (compile={compile!r})" in caplog.text


# --- Guidance in an interval


@pytest.mark.parametrize(
    "interval, steps", [((0.0, 1.0), "gggg"), ((0.25, 0.75), "cggc"), ((0.5, 1.0), "ccgg"), ((0.0, 0.1), "cccc")]
)
def test_steps_outside_the_interval_have_one_row_an_image(monkeypatch, interval, steps):
    generator = make_generator(guidance_interval=interval)
    rows = spy(generator, monkeypatch)
    images(generator)
    assert rows == [{"g": 6, "c": 3}[step] for step in steps]


@pytest.mark.parametrize("scheduler", ["ddim", "pndm"])
def test_guidance_in_an_interval_is_the_pipelines_with_equal_halves_outside(scheduler):
    """Where the unconditional half is the conditional one, guidance does nothing."""
    generator, pipe = make_generator(scheduler, guidance_interval=(0.2, 0.6)), make_pipeline(scheduler)
    forward, parts = pipe.unet.forward, []
    total = 4 if scheduler == "ddim" else 5

    def unguided(*inputs, **conditions):
        out = forward(*inputs, **conditions)[0]
        parts.append((len(parts) + 0.5) / total)
        return (out if 0.2 <= parts[-1] < 0.6 else out[3:].repeat(2, 1, 1, 1),)

    pipe.unet.forward = unguided
    expected = diffusers_images(pipe, EMBEDS, embedding_noise(), generator.latents(KEYS), 0, **NUMBERS)
    assert len(parts) == total
    assert (images(generator) - expected).abs().max() <= 1e-5
    assert (images(make_generator(scheduler)) - expected).abs().max() > 1e-3


# --- Schedulers


@pytest.mark.parametrize(
    "name, own",
    [("dpmpp", DPMSolverMultistepScheduler), ("unipc", UniPCMultistepScheduler)],
)
def test_named_schedulers_are_those_of_diffusers(name, own):
    pipe = make_pipeline("pndm")
    pipe.scheduler = own.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    generator = make_generator("pndm", scheduler=name)
    expected = diffusers_images(pipe, EMBEDS, embedding_noise(), generator.latents(KEYS), 0, **NUMBERS)
    assert (images(generator) - expected).abs().max() <= 1e-5
    assert generator.pipe.scheduler.config.prediction_type == "v_prediction"


# --- Reuse of deep features


@pytest.mark.parametrize("checkpoint", ["random", "tiny"])
@torch.no_grad()
def test_features_of_the_same_step_give_the_same_output(checkpoint):
    unet = make_pipeline().unet if checkpoint == "random" else load_generator("tiny").pipe.unet
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    dim = unet.config.projection_class_embeddings_input_dim
    inputs = torch.randn(2, 4, size, size), torch.tensor(400)
    conditions = {"encoder_hidden_states": torch.randn(2, 77, width), "class_labels": torch.randn(2, dim)}
    whole, shallow = (functools.partial(part, return_dict=False) for part in split(unet))
    expected = unet(*inputs, **conditions).sample
    assert whole(*inputs, **conditions)[0].equal(expected)
    assert (shallow(*inputs, **conditions)[0] - expected).abs().max() <= 1e-6
    other = shallow(inputs[0] + 1, inputs[1] - 100, **conditions)[0]
    assert (other - expected).abs().max() > 1e-3
    assert state.keys() == unet.state_dict().keys()
    assert all(value.equal(state[name]) for name, value in unet.state_dict().items())


def test_features_are_reused_until_their_time_is_up_or_the_rows_change(monkeypatch):
    generator = make_generator(cache_interval=3, guidance_interval=(0.0, 0.5))
    whole, shallow = generator._networks._parts
    calls = []
    generator._networks._parts = [
        lambda x, *rest, **conditions: calls.append(f"w{len(x)}") or whole(x, *rest, **conditions),
        lambda x, *rest, **conditions: calls.append(f"s{len(x)}") or shallow(x, *rest, **conditions),
    ]
    changed = images(generator, num_inference_steps=8)
    assert calls == ["w6", "s6", "s6", "w6", "w3", "s3", "s3", "w3"]
    assert (changed - images(make_generator(guidance_interval=(0.0, 0.5)), num_inference_steps=8)).abs().max() > 1e-4
    calls.clear()
    assert images(generator, num_inference_steps=8).equal(changed)  # nothing is left over from the batch before


# --- Options


def test_what_changes_images_changes_the_fingerprint():
    options = [{}, {"guidance_interval": (0.2, 0.6)}, {"guidance_interval": (0.2, 0.8)}, {"cache_interval": 2}]
    options += [{"scheduler": name} for name in ("dpmpp", "unipc", "euler", "pndm")]
    options += [{"scheduler": "dpmpp", "cache_interval": 2, "guidance_interval": [0, 0.5]}]
    fingerprints = [make_generator(**chosen).fingerprint for chosen in options]
    assert len({*fingerprints}) == len(options)
    assert fingerprints[0] == make_generator(compile=True).fingerprint == "test@0"
    assert fingerprints[1] == "test@0+guidance-0.2-0.6"
    assert fingerprints[-1].startswith("test@0+DPMSolverMultistepScheduler-")
    assert fingerprints[-1].endswith("+guidance-0-0.5+cache-2")


@pytest.mark.parametrize(
    "option, error, match",
    [
        ({"compile": "fast"}, ValueError, '`compile` must be "auto", True, False or "regional", but got \'fast\''),
        ({"compile": 1}, ValueError, "`compile` must be .* but got 1"),
        ({"scheduler": "dpm"}, ValueError, "`scheduler` must be None or one of ddim, dpmpp, .* but got 'dpm'"),
        ({"guidance_interval": 0.5}, ValueError, "`guidance_interval` must be two numbers .* but got 0.5"),
        ({"guidance_interval": (0.6, 0.2)}, ValueError, r"0 <= lo < hi <= 1.*got \(0.6, 0.2\).*guidance_scale=1"),
        ({"guidance_interval": (0, float("nan"))}, ValueError, "`guidance_interval` must be two numbers"),
        ({"scheduler": ["dpm"]}, ValueError, "`scheduler` must be None or one of"),
        ({"guidance_interval": (0, True)}, ValueError, "`guidance_interval` must be two numbers"),
        ({"guidance_interval": ("0", "1")}, ValueError, "`guidance_interval` must be two numbers"),
        ({"cache_interval": 0}, ValueError, "`cache_interval` must be an int of 1 or more, but got 0"),
        ({"cache_interval": 1.5}, TypeError, "`cache_interval` must be an int, but got 1.5"),
    ],
)
def test_options_are_checked(option, error, match):
    with pytest.raises(error, match=match):
        make_generator(**option)


def test_load_generator_passes_options_on():
    generator = load_generator("tiny", scheduler="unipc", guidance_interval=(0.1, 0.9), compile=False)
    assert type(generator.pipe.scheduler) is UniPCMultistepScheduler
    assert generator.guidance_interval == (0.1, 0.9) and generator.compile is False
    with pytest.raises(TypeError, match="steps"):
        load_generator("tiny", steps=3)


def test_the_command_line_passes_options_on(data, tmp_path, capsys):
    argv = [data, "--root", tmp_path / "set", "--generator", "tiny", "--num-inference-steps", 2]
    options = ["--scheduler", "unipc", "--guidance-interval", 0.2, 0.6, "--cache-interval", 2, "--compile", "no"]
    for made in ("5", "0"):
        code, out, err = run(capsys, "generate", *argv, *options)
        assert code == 0, err
        assert COUNTS.search(out)[1] == made
    code, out, _ = run(capsys, "status", *argv)
    assert code == 0 and re.search(r"UniPCMultistepScheduler-\w+\+guidance-0.2-0.6\+cache-2", out)
    path = next((tmp_path / "set").glob("*/*"))
    path.unlink()
    code, _, err = run(capsys, "generate", *argv)
    assert code == 1 and "guidance-0.2-0.6" in err and err.count("\n") == 1
    code, _, err = run(capsys, "generate", *argv, "--scheduler", "dpm")
    assert code == 2 and "argument --scheduler: invalid choice: 'dpm'" in err and err.count("\n") == 1
    code, _, err = run(capsys, "generate", *argv, "--guidance-interval", 0.6, 0.2)
    assert code == 2 and "--guidance-interval must be LO below HI, but got 0.6 0.2" in err and err.count("\n") == 1


# --- Batch size


@given(st.integers(1, 10**12), st.integers(1, 10**10), st.integers(1, 10**10), st.integers(1, 256))
def test_a_batch_fits_the_memory_and_no_larger_one_does(free, denoised, decoded, most):
    def needs(count):
        return count * denoised + min(count, DECODE_CHUNK) * decoded

    count = fit(free, denoised, decoded, most)
    assert 1 <= count <= most
    assert count == 1 or needs(count) <= 0.8 * free * (1 + 1e-9)
    larger = count + (DECODE_CHUNK if count >= DECODE_CHUNK else 1)
    assert larger > most or needs(larger) > 0.8 * free * (1 - 1e-9)
    assert count <= DECODE_CHUNK or count % DECODE_CHUNK == 0


def test_the_bundled_model_is_run_in_batches_of_64():
    assert load_generator("tiny").batch_size == fit(None, 1, 1, 64) == 64
