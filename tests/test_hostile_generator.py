"""What surrounds a generator, and what is done to it afterwards, changes neither its images nor what it's called."""

import copy
import math
import pickle
import re
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image
from pipelines import make_pipeline, save_pipeline

from torch_augcond import EmbedDropout, StableUnCLIPGenerator, generators, load_generator
from torch_augcond.generators.denoise import in_float32

KEYS = torch.tensor([3, 5])


def make_generator(**options):
    return StableUnCLIPGenerator(make_pipeline("ddim"), fingerprint="test@0", **options)


def everything(generator):
    embeds = generator.encode_images([Image.new("RGB", (40, 30), color) for color in ("red", "blue")])
    prompts = generator.encode_prompts(["a cat", "a dog"])
    condition = generator.condition(embeds, KEYS, augmentation=EmbedDropout())
    numbers = {"guidance_scale": 2.0, "num_inference_steps": 3}
    return embeds, prompts, condition, generator.sample(condition, prompts, KEYS, **numbers)


@pytest.mark.parametrize(
    "mode",
    [torch.autocast("cpu", dtype=torch.bfloat16), torch.device("meta"), torch.inference_mode()],
    ids=["autocast", "default device", "inference mode"],
)
def test_modes_that_surround_a_generator_change_nothing(mode):
    generator = make_generator()
    expected = everything(generator)
    other = make_generator()  # which has kept nothing of an earlier call
    with mode:
        found = everything(other)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype == torch.float32 and torch.equal(x, y)


@pytest.mark.parametrize(
    "name, value", [("cache_interval", 2), ("guidance_interval", (0.0, 0.5)), ("compile", True), ("fingerprint", "x")]
)
def test_what_a_generator_was_made_with_stays(name, value):
    generator = make_generator()
    with pytest.raises(AttributeError, match=f"property '{name}' .* has no setter"):
        setattr(generator, name, value)
    assert generator.fingerprint == "test@0"


def test_no_two_guidance_intervals_have_one_fingerprint():
    bounds = [0.0, 1e-300, 1e-7, 0.016129, 0.016129032, 0.5 / 31, math.nextafter(0.6, 0), 0.6, math.nextafter(0.6, 1)]
    intervals = [(0.0, hi) for hi in bounds[1:]] + [(lo, 1.0) for lo in bounds[1:]]
    fingerprints = [make_generator(guidance_interval=interval).fingerprint for interval in intervals]
    assert len(set(fingerprints)) == len(intervals)
    assert fingerprints[bounds.index(0.6) - 1] == "test@0+guidance-0-0.6", "ordinary ones are as they were"
    for interval, fingerprint in zip(intervals, fingerprints, strict=True):
        lo, hi = re.fullmatch(r"test@0\+guidance-([\d.]+(?:e-\d+)?)-([\d.]+(?:e-\d+)?)", fingerprint).groups()
        assert (float(lo), float(hi)) == interval


@pytest.mark.parametrize("compile", [False, "regional"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda generator: pickle.loads(pickle.dumps(generator))])
def test_a_copy_has_weights_of_its_own(copied, compile, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    generator = make_generator(compile=compile)
    generator.prepare(1)
    expected = everything(generator)[-1]
    twin = copied(generator) if compile is False else copy.deepcopy(generator)
    twin.prepare(1)
    assert torch.equal(everything(twin)[-1], expected)
    for weights in twin.pipe.unet.parameters():
        weights.data.zero_()
    assert torch.equal(everything(generator)[-1], expected) and not torch.equal(everything(twin)[-1], expected)


def test_a_strip_is_encoded_by_its_middle_in_little_memory():
    generator = make_generator()
    middle, strip = Image.new("RGB", (3, 48), "red"), Image.new("RGB", (3, 100_000), "blue")
    strip.paste(middle, (0, 50_000 - 24))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    embeds = generator.encode_images([strip])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
    assert torch.equal(embeds, generator.encode_images([middle]))


@pytest.mark.parametrize(
    "method, given, match",
    [
        ("encode_images", [Image.new("RGB", (0, 5))], r"`images` must be RGB .* but got RGB of \(0, 5\)"),
        ("encode_images", [Image.new("L", (4, 5))], r"`images` must be RGB .* but got L of \(4, 5\)"),
        ("encode_prompts", None, "`prompts` must be a list of str, but got None"),
    ],
)
def test_what_cannot_be_encoded(method, given, match):
    with pytest.raises(TypeError, match=match):
        getattr(make_generator(), method)(given)


def test_the_scheduler_is_always_known(monkeypatch):
    pipe = make_pipeline("ddim")
    own = StableUnCLIPGenerator(pipe, fingerprint="test@0").fingerprint
    twice = [StableUnCLIPGenerator(pipe, fingerprint="test@0", scheduler="unipc").fingerprint for _ in range(2)]
    assert own == "test@0" and twice[0] == twice[1] == StableUnCLIPGenerator(pipe, fingerprint="test@0").fingerprint
    assert re.fullmatch(r"test@0\+UniPC\w+-\w+", twice[0])
    vars(pipe).pop("_own_scheduler")  # a pipeline of the user's own
    assert StableUnCLIPGenerator(pipe, fingerprint="test@0").fingerprint == twice[0]
    with pytest.raises(ValueError, match=r"without a \+, but got .* take its `checkpoint`"):
        StableUnCLIPGenerator(pipe, fingerprint=twice[0])


@pytest.mark.parametrize("part", ["vae", "unet", "tokenizer", "image_noising_scheduler"])
def test_a_part_that_was_replaced_is_refused(part):
    generator = make_generator()
    embeds, prompts = everything(generator)[:2]
    setattr(generator.pipe, part, getattr(make_pipeline("ddim", seed=1), part))
    images = [Image.new("RGB", (8, 8))]
    calls = [lambda: generator.encode_images(images), lambda: generator.encode_prompts(["a"])]
    calls += [lambda: generator.generate(embeds, prompts, KEYS, guidance_scale=2.0, num_inference_steps=1)]
    for call in calls:
        with pytest.raises(ValueError, match=f"`pipe` must keep the parts .* but '{part}' was replaced"):
            call()
    twin = copy.deepcopy(make_generator())
    assert everything(twin)[0].shape == embeds.shape


def test_threads_share_a_generator():
    generator = make_generator(cache_interval=3)
    inputs = [(torch.randn(2, 32), generator.encode_prompts(["a", "b"]), torch.tensor([i, -i - 1])) for i in range(4)]
    run = lambda given: generator.generate(*given, guidance_scale=2.0, num_inference_steps=8)  # noqa: E731
    expected = [run(given) for given in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, image in zip(pool.map(run, inputs * 3), expected * 3, strict=True):
            assert found.equal(image)


def test_a_folder_that_changes_while_it_is_loaded(tmp_path, monkeypatch):
    folder = save_pipeline(tmp_path / "mine")
    load, weights = generators._load_pipeline, next((folder / "unet").glob("*.safetensors"))

    def training(*inputs):
        weights.write_bytes(weights.read_bytes())
        return load(*inputs)

    monkeypatch.setattr(generators, "_load_pipeline", training)
    with pytest.raises(ValueError, match="must stay as it is while it is loaded, but .*mine' has changed"):
        load_generator(folder)


@pytest.mark.parametrize("setting", [("highest", "ieee"), ("medium", "bf16")])
def test_how_exact_a_script_wants_products_to_be_is_its_own(setting):
    expected = everything(make_generator())
    torch.set_float32_matmul_precision(setting[0])
    try:
        found = everything(make_generator())
        assert torch.get_float32_matmul_precision() == setting[0]
        assert torch.backends.mkldnn.matmul.fp32_precision == setting[1]
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(map(torch.equal, found, expected))


def make_generator_of(pipe, **options):
    return StableUnCLIPGenerator(pipe, fingerprint="test@0", **options)


def test_a_subclass_is_another_generator():
    class Dark(StableUnCLIPGenerator):
        def encode_prompts(self, prompts):
            return super().encode_prompts([f"{prompt}, in a dark room" for prompt in prompts])

    assert Dark(make_pipeline("ddim"), fingerprint="test@0").fingerprint.startswith("test@0+")
    generator = make_generator()
    before, encode = generator.fingerprint, generator.encode_images
    generator.encode_images = lambda images: -encode(images)
    assert generator.fingerprint == f"{before}+encode_images"


def test_precision_is_kept_while_another_thread_works():
    generators = [make_generator() for _ in range(6)]
    expected = everything(make_generator())
    torch.set_float32_matmul_precision("medium")
    try:
        with ThreadPoolExecutor(2) as pool:
            for found in pool.map(everything, generators):
                assert all(map(torch.equal, found, expected))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_betas_that_look_alike():
    generator, names = make_generator(), set()
    kind, settings = type(generator.pipe.scheduler), generator.pipe.scheduler.config
    for change in (0, 4e-6):
        betas = torch.linspace(0.0009, 0.012, 1000) + change
        for form in (betas, betas.numpy(), betas.tolist()):
            generator.pipe.scheduler = kind.from_config(settings, trained_betas=form)
            names.add(generator.fingerprint)
    assert len(names) == 2


@pytest.mark.parametrize("replaced", [lambda unet: unet, lambda unet: unet.up_blocks[-1]])
def test_features_of_a_unet_whose_forward_is_bound_to_it_are_not_reused(replaced):
    pipe = make_pipeline("ddim")
    module = replaced(pipe.unet)
    module.forward = module.forward  # as hooks do
    make_generator_of(pipe)
    with pytest.raises(ValueError, match="`cache_interval` must be 1 for a UNet that is wrapped, or whose `forward`"):
        make_generator_of(pipe, cache_interval=2)


def test_rows_are_decoded_among_as_many_others_wherever_they_stand():
    generator, rows = make_generator(), []
    decode = generator.pipe.vae.decode
    generator.pipe.vae.decode = lambda latents, **options: rows.append(len(latents)) or decode(latents, **options)
    inputs = torch.linspace(-1, 1, 19 * 64).view(19, 64), torch.zeros(19, 77, 32), torch.arange(19)
    images = generator.sample(*inputs, guidance_scale=1.0, num_inference_steps=1)
    assert rows == [8, 8, 8] and len(images) == 19
    generator.sample(*(x[:5] for x in inputs), guidance_scale=1.0, num_inference_steps=1)
    assert rows[3:] == [5]


def test_two_generators_of_one_pipeline_wait_for_each_other():
    one, inside, most = make_generator(), [], []
    two = make_generator_of(one.pipe, cache_interval=2)
    forward = type(one.pipe.unet).forward

    def step(*args, **options):
        inside.append(None)
        most.append(len(inside))
        try:
            time.sleep(0.01)
            return forward(one.pipe.unet, *args, **options)
        finally:
            inside.pop()

    for generator in (one, two):
        generator._networks._parts = [lambda *args, **options: step(*args, **options, return_dict=False)[0]] * 2
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(everything, [one, two]))
    assert len(most) == 6 and max(most) == 1


def test_a_checkpoint_that_is_written_over_while_its_generator_works(tmp_path):
    folder = save_pipeline(tmp_path / "ckpt")
    generator = load_generator(folder, compile=False)
    expected = everything(generator)
    for file in folder.rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-400:] = bytes(400)
        with file.open("r+b") as stream:  # in place, as `cp` does
            stream.write(data)
    assert all(map(torch.equal, everything(generator), expected))
    generator.prepare(1)


def test_a_model_of_two_precisions_stays_one():
    pipe = make_pipeline("ddim").to(torch.bfloat16)
    for module in pipe.unet.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.to(torch.float32)
    before = {name: x.dtype for name, x in pipe.unet.named_parameters()}
    with in_float32(pipe):
        assert {x.dtype for x in pipe.unet.parameters()} == {torch.float32}
    assert {name: x.dtype for name, x in pipe.unet.named_parameters()} == before


class Divided:
    def __init__(self, function, by):
        self.function, self.by = function, by

    def __call__(self, *given, **named):
        return [self.function(*given, **named)[0] / self.by]


def dividing(by):
    return lambda module, given, made: made / by


def test_hooks_and_functions_of_one_name():
    pipe = make_pipeline("ddim")
    pipe.unet.enable_layerwise_casting(torch.bfloat16, torch.float32)
    hook = pipe.unet.mid_block.register_forward_hook(dividing(2))
    pipe.vae.decode = Divided(pipe.vae.decode, 2)
    for change in (
        lambda: (hook.remove(), pipe.unet.mid_block.register_forward_hook(dividing(3))),
        lambda: setattr(pipe.vae.decode, "by", 3),
        lambda: setattr(pipe.unet.conv_out, "forward", lambda x, *given: x),
    ):
        generator = StableUnCLIPGenerator(pipe, fingerprint="test@0")
        generator.prepare(1)
        change()
        with pytest.raises(ValueError, match="must keep the weights and layers"):
            generator.prepare(1)
