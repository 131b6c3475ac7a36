"""What is changed in a generator's pipeline afterwards: refused where its fingerprint doesn't tell it, else named."""

import copy
import pickle
import time
from functools import partial
from types import MethodType

import diffusers
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, PAGIdentitySelfAttnProcessor2_0
from fakes import paint_folder
from PIL import Image
from pipelines import make_pipeline
from tokenizers import normalizers
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic, StableUnCLIPGenerator
from torch_augcond.generators.trial import check_scheduler
from torch_augcond.generators.weights import content

KEYS = torch.tensor([3, 5, -2])
SECONDS = 0.002  # of a check in each batch
NUMBERS = {"guidance_scale": 2.0, "num_inference_steps": 3}


def make_generator(scheduler="ddim", **options):
    return StableUnCLIPGenerator(make_pipeline(scheduler), fingerprint="test@0", **options)


def inputs(generator):
    return torch.linspace(-1, 1, 96).view(3, 32), generator.encode_prompts(["a", "b", "c"]), KEYS


def set_item(pipe):
    pipe.feature_extractor.size["shortest_edge"] = 64


def freeze_less(pipe):
    pipe.vae.config.scaling_factor = 0.5


def tile(pipe):
    pipe.vae.enable_tiling()
    pipe.vae.tile_latent_min_size = 4  # smaller than what is decoded: it comes out otherwise


SETTINGS = {
    "feature_extractor": [
        lambda pipe: setattr(pipe.feature_extractor, "image_mean", [0, 0, 0]),
        lambda pipe: setattr(pipe.feature_extractor, "do_resize", False),
        set_item,
    ],
    "vae": [lambda pipe: pipe.vae.register_to_config(scaling_factor=0.5), freeze_less, tile],
    "image_noising_scheduler": [
        lambda pipe: pipe.image_noising_scheduler.alphas_cumprod.mul_(0.5),
        lambda pipe: setattr(pipe.image_noising_scheduler, "alphas_cumprod", torch.ones(1000)),
    ],
    "tokenizer": [
        lambda pipe: setattr(pipe.tokenizer, "model_max_length", 5),
        lambda pipe: setattr(pipe.tokenizer, "pad_token", "a"),
    ],
    "text_encoder": [lambda pipe: setattr(pipe.text_encoder.config, "eos_token_id", 2)],
}


@pytest.mark.parametrize("part, change", [(part, change) for part, changes in SETTINGS.items() for change in changes])
def test_a_part_that_was_set_otherwise_is_refused(part, change):
    generator = make_generator()
    given = inputs(generator)
    change(generator.pipe)
    match = f"`pipe` must keep the parts .* but '{part}' was set otherwise. Make another generator"
    calls = [lambda: generator.encode_images([Image.new("RGB", (8, 8))]), lambda: generator.encode_prompts(["a"])]
    for call in [*calls, lambda: generator.generate(*given, **NUMBERS)]:
        with pytest.raises(ValueError, match=match):
            call()
    StableUnCLIPGenerator(generator.pipe, fingerprint="other@0").check_numbers(2.0, 3, 0)


def load_others(pipe):
    pipe.unet.load_state_dict(make_pipeline(seed=1).unet.state_dict())


def train_in_place(pipe):
    next(pipe.text_encoder.parameters()).data[0] += 1e-3


def add_adapter(pipe):
    pipe.unet.up_blocks[0].add_module("lora", torch.nn.Linear(2, 2))


class Scaled(AttnProcessor):
    def __init__(self, scale):
        self.scale = scale


def test_numbers_of_a_processor_count():
    pipe = make_pipeline("ddim")
    pipe.unet.set_attn_processor(Scaled(1.0))
    generator = StableUnCLIPGenerator(pipe, fingerprint="test@0")
    generator.prepare(1)
    pipe.unet.set_attn_processor(Scaled(0.5))
    with pytest.raises(ValueError, match="must keep the weights and layers"):
        generator.prepare(1)


class Quantized(torch.Tensor):
    """As other formats of weights are."""


def quantize(pipe):
    weight = pipe.unet.conv_in.weight.data.neg().as_subclass(Quantized)
    pipe.unet.conv_in.weight = torch.nn.Parameter(weight, requires_grad=False)


def scale_adapter(pipe):
    """As peft's layers keep it."""
    next(pipe.unet.children()).scaling = {"default": 0.5}


class Weaker(AttnProcessor2_0):
    def __call__(self, *inputs, **options):
        return 0.5 * super().__call__(*inputs, **options)


def merge_tokens(pipe):
    """As ToMe does."""

    class Merging(type(pipe.unet.mid_block)):
        pass

    pipe.unet.mid_block.__class__ = Merging


class Halved:
    def __init__(self, function):
        self.function, self.by = function, 2

    def __call__(self, *given, **named):
        return [self.function(*given, **named)[0] / self.by]


def add_token(pipe):
    pipe.text_encoder.resize_token_embeddings(515)
    pipe.text_encoder.config.vocab_size = 514


WEIGHTS = {
    "unet": [
        load_others,
        add_adapter,
        scale_adapter,
        merge_tokens,
        lambda pipe: pipe.unet.set_attn_processor(Weaker()),
        lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6),
        lambda pipe: pipe.unet.mid_block.register_forward_hook(lambda module, given, made: made / 2),
        lambda pipe: setattr(pipe.unet.mid_block, "forward", lambda x, *given, **named: x),
        lambda pipe: pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32),
        lambda pipe: setattr(pipe.unet.conv_in, "padding_mode", "circular"),
        lambda pipe: setattr(pipe.unet.conv_in, "padding", (0, 2)),
        lambda pipe: pipe.unet.set_attn_processor(PAGIdentitySelfAttnProcessor2_0()),
        lambda pipe: setattr(pipe.unet, "forward", partial(pipe.unet.forward, return_dict=False)),
        quantize,
    ],
    "text_encoder": [train_in_place, add_token],
    "image_normalizer": [lambda pipe: pipe.image_normalizer.mean.data.neg_()],
    "vae": [
        lambda pipe: setattr(pipe.vae.decoder.conv_norm_out, "eps", 0.1),
        lambda pipe: setattr(pipe.vae, "decode", lambda x, **options: [x]),
        lambda pipe: setattr(pipe.vae, "_decode", lambda x, **options: [x]),
        lambda pipe: setattr(pipe.vae, "decode", Halved(pipe.vae.decode)),
    ],
    "pipeline": [lambda pipe: setattr(pipe, "encode_prompt", lambda *given: None)],
    "tokenizer": [
        lambda pipe: setattr(pipe.tokenizer.backend_tokenizer, "normalizer", normalizers.Replace("a", "b")),
        lambda pipe: setattr(pipe.tokenizer, "_encode_plus", lambda *given: None),
    ],
    "feature_extractor": [lambda pipe: setattr(pipe.feature_extractor, "_preprocess", lambda *given: None)],
}


@pytest.mark.parametrize("part, change", [(part, change) for part, changes in WEIGHTS.items() for change in changes])
def test_weights_that_were_changed_in_place_are_refused(part, change):
    generator = make_generator()
    change(generator.pipe)
    for call in (lambda: generator.prepare(1), lambda: generator.check_numbers(2.0, 3, 0)):
        with pytest.raises(
            ValueError, match=f"must keep the weights and layers .* but '{part}' has others .* another `finger"
        ):
            call()
    StableUnCLIPGenerator(generator.pipe, fingerprint="other@0").prepare(1)


def test_a_generator_with_other_weights_is_given_no_folder(tmp_path):
    real = ImageFolder(paint_folder(tmp_path / "real", {"cat": 2}))
    generator = make_generator()
    load_others(generator.pipe)
    with pytest.raises(ValueError, match="must keep the weights"):
        AugConditionedSynthetic(real, generator=generator, root=tmp_path / "set", num_inference_steps=2)
    again = StableUnCLIPGenerator(generator.pipe, fingerprint="trained@0")
    options = {"root": tmp_path / "set", "num_inference_steps": 2}
    assert len(AugConditionedSynthetic(real, generator=again, **options)) == 2
    load_others(again.pipe)
    again.pipe.unet.conv_in.weight.data.zero_()
    AugConditionedSynthetic(real, generator=again, generate=False, **options)  # to read, nothing is made


def elsewhere(pipe):
    pipe.text_encoder.to("meta")
    pipe.unet.conv_in.to("meta")


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.unet.to(memory_format=torch.channels_last),
        lambda pipe: pipe.enable_attention_slicing(1),
        lambda pipe: (pipe.vae.enable_slicing(), pipe.vae.enable_tiling()),
        lambda pipe: (pipe.unet.train(), pipe.unet.enable_gradient_checkpointing()),
        lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
        lambda pipe: pipe.text_encoder.set_attn_implementation("eager"),
        lambda pipe: pipe.unet.compile(),
        lambda pipe: setattr(pipe.vae, "decoder", torch.compile(pipe.vae.decoder)),
        lambda pipe: (pipe.enable_freeu(0.9, 0.2, 1.4, 1.6), pipe.disable_freeu()),
        lambda pipe: pipe(prompt="a", image=Image.new("RGB", (8, 8)), num_inference_steps=2),
        elsewhere,
    ],
)
def test_what_may_be_changed(change):
    generator = make_generator()
    change(generator.pipe)
    generator.prepare(1)
    generator.check_numbers(2.0, 3, 0)


def test_dropout_is_refused_while_it_is_trained():
    pipe = make_pipeline("ddim")
    config = {name: value for name, value in pipe.unet.config.items() if not name.startswith("_")}
    pipe.unet = diffusers.UNet2DConditionModel(**config | {"dropout": 0.2}).eval()
    generator = StableUnCLIPGenerator(pipe, fingerprint="test@0")
    given = inputs(generator)
    expected = generator.generate(*given, **NUMBERS)
    pipe.unet.train()
    for call in (lambda: generator.generate(*given, **NUMBERS), lambda: StableUnCLIPGenerator(pipe, fingerprint="x")):
        with pytest.raises(ValueError, match="same images each time, but 'unet' is in training mode and has dropout"):
            call()
    pipe.unet.eval()
    assert generator.generate(*given, **NUMBERS).equal(expected)


def test_another_dtype_is_no_other_weights():
    generator = make_generator()
    for dtype in (torch.float16, torch.float32):
        generator.pipe.to(dtype)
        generator.prepare(1)
        assert generator.generate(*inputs(generator), **NUMBERS).shape == (3, 3, 32, 32)
    generator.pipe.unet.conv_in.weight.data.add_(1)
    with pytest.raises(ValueError, match="must keep the weights"):
        generator.prepare(1)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda generator: pickle.loads(pickle.dumps(generator))])
def test_a_copy_knows_its_own_weights(copied):
    generator = make_generator()
    load_others(generator.pipe)
    twin = copied(generator)
    with pytest.raises(ValueError, match="must keep the weights"):
        twin.prepare(1)
    whole = copied(make_generator())
    whole.prepare(1)
    set_item(whole.pipe)
    with pytest.raises(ValueError, match="'feature_extractor' was set otherwise"):
        whole.encode_prompts(["a"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.int8])
def test_a_content_is_that_of_all_bits(dtype):
    x = torch.arange(3 * 5 * 7).view(1, 3, 5, 7).sin().mul(100).to(dtype)
    assert content(x) == content(x.to(memory_format=torch.channels_last)) == content(torch.cat([x, x])[1:])
    assert content(x[0, 0, 0, 0])[0] == 1 and content(x[:0])[0] == 0
    for place in (0, 50, 104):
        other = x.clone().flatten()
        other[place] = ~other[place] if dtype is torch.bool else other[place] + 2
        assert content(other) != content(x)
    x = torch.arange(300_000 * 8).view(300_000, 8).to(dtype)
    assert dtype is torch.bool or content(x[[*range(1, 300_000), 0]]) != content(x)


def test_a_check_costs_next_to_nothing():
    generator = make_generator()
    took = []
    for _ in range(20):
        start = time.perf_counter()
        generator._steady.check(generator.pipe)
        took.append(time.perf_counter() - start)
    assert min(took) < SECONDS


class OwnNoise(diffusers.DDIMScheduler):
    """As DPMSolverSDEScheduler: noise of its own, from one seed for a batch or from none."""

    seed = None

    def step(self, noise, t, latents, eta=0.0, return_dict=True):
        rng = None if self.seed is None else torch.Generator().manual_seed(self.seed + int(t))
        noise = noise + torch.randn(noise.shape, generator=rng)
        return super().step(noise, t, latents, eta=eta, return_dict=return_dict)


@pytest.mark.parametrize("seed", [None, 3])
def test_a_scheduler_that_draws_noise_by_itself_is_refused(seed):
    generator = make_generator()
    given, before = inputs(generator), torch.get_rng_state()
    own = generator.pipe.scheduler
    generator.pipe.scheduler = OwnNoise.from_config(own.config)
    generator.pipe.scheduler.seed = seed
    match = "`pipe.scheduler` must take its noise from the `generator` .* but got OwnNoise, which doesn't. Use one such"
    calls = [lambda: generator.generate(*given, **NUMBERS), lambda: generator.check_numbers(2.0, 3, 0)]
    for call in [*calls, lambda: StableUnCLIPGenerator(generator.pipe, fingerprint="test@0")]:
        with pytest.raises(ValueError, match=match):
            call()
    generator.pipe.scheduler = own
    generator.check_numbers(2.0, 3, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_scheduler_of_another_class_by_the_same_name():
    generator = make_generator()
    config = generator.pipe.scheduler.config
    generator.pipe.scheduler = type("DDIMScheduler", (diffusers.DDIMScheduler,), {}).from_config(config)
    assert generator.fingerprint.startswith("test@0+") and generator.fingerprint.split("+")[1].count("DDIMScheduler-")
    generator.pipe.scheduler = diffusers.DDIMScheduler.from_config(config)
    assert generator.fingerprint == "test@0"


def half_of_the_steps(scheduler, count, device=None):
    type(scheduler).set_timesteps(scheduler, max(1, count // 2), device)


def test_a_scheduler_is_what_its_configuration_says():
    generator = make_generator()
    given, name = inputs(generator), generator.fingerprint
    for change in (
        lambda scheduler: scheduler.alphas_cumprod.pow_(2),
        lambda scheduler: scheduler.alphas_cumprod[600:700].mul_(0.3),
        lambda scheduler: setattr(scheduler, "set_timesteps", MethodType(half_of_the_steps, scheduler)),
    ):
        change(generator.pipe.scheduler)
        with pytest.raises(ValueError, match="be what its configuration says, but got DDIMScheduler, which doesn't"):
            generator.generate(*given, **NUMBERS)
        generator = make_generator()
    generator.pipe.scheduler.config.prediction_type = "v_prediction"  # diffusers' frozen dict isn't
    assert generator.fingerprint != name and generator.generate(*given, **NUMBERS).shape == (3, 3, 32, 32)
    generator.pipe.scheduler.register_to_config(beta_end=0.5)  # comes too late
    with pytest.raises(ValueError, match="be what its configuration says"):
        generator.generate(*given, **NUMBERS)


@pytest.mark.filterwarnings("ignore")
def test_all_schedulers_of_diffusers_give_a_row_its_image_or_are_refused():
    generator, accepted = make_generator(), set()
    given = inputs(generator)
    embeds, config = given[0], generator.pipe.scheduler.config
    for name in [name for name in dir(diffusers) if name.endswith("Scheduler")]:
        try:
            generator.pipe.scheduler = getattr(diffusers, name).from_config(config)
            check_scheduler(generator.pipe)
        except (AttributeError, ImportError, TypeError, ValueError):
            continue
        accepted.add(name)
        images = []
        for seed, rows in ((1, [0, 1, 2]), (2, [2])):
            torch.manual_seed(seed)
            chosen = [x[rows] for x in given]
            condition = generator.condition(chosen[0], chosen[2])
            images.append(generator.sample(condition, *chosen[1:], guidance_scale=2.0, num_inference_steps=4)[-1])
        assert torch.allclose(*images, atol=1e-4, equal_nan=True), name
    assert accepted >= {"DDIMScheduler", "PNDMScheduler", "EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"}
    assert "DPMSolverSDEScheduler" not in accepted and len(embeds) == 3
