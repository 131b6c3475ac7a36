"""The generator against diffusers' own pipeline, row by row."""

import functools

import pytest
import torch
from PIL import Image
from pipelines import SCHEDULERS, make_pipeline
from torch import Tensor

from torch_augcond import StableUnCLIPGenerator, functional
from torch_augcond.generators import BadImages, stable_unclip
from torch_augcond.transforms import Compose, EmbedDropout, resolve

PROMPTS = ["a photo of a cat", "", "a photo of a night-blooming cereus, Selenicereus grandiflorus"]
KEYS = torch.tensor([5, -(2**63), 2**62 + 11])
pipeline = functools.cache(make_pipeline)


def make_generator(scheduler: str = "pndm", **arguments) -> StableUnCLIPGenerator:
    return StableUnCLIPGenerator(make_pipeline(scheduler, **arguments), fingerprint="test@0")


@functools.cache
def shared(scheduler: str = "pndm") -> StableUnCLIPGenerator:
    return StableUnCLIPGenerator(pipeline(scheduler), fingerprint="test@0")


@pytest.fixture
def embeds() -> Tensor:
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(1))


def diffusers_images(pipe, embeds: Tensor, noise: Tensor, latents: Tensor, noise_level: int, **arguments) -> Tensor:
    """`pipe.__call__` with a given noise, which it would draw itself, in the embeddings."""
    noising = functools.partial(type(pipe).noise_image_embeddings, pipe, noise=noise)
    pipe.noise_image_embeddings = lambda generator, **inputs: noising(**inputs)
    try:
        return pipe(
            prompt=PROMPTS, image_embeds=embeds, latents=latents, noise_level=noise_level, output_type="pt", **arguments
        ).images
    finally:
        del pipe.noise_image_embeddings


def embedding_noise() -> Tensor:
    return functional.normal(KEYS, functional.Purpose.NOISE, 32)


@pytest.mark.parametrize("noise_level", [0, 200])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("scheduler", ["ddim", "pndm", "dpm"])
def test_same_images_as_the_pipeline_itself(embeds, scheduler, guidance_scale, noise_level):
    generator = shared(scheduler)
    numbers = {"guidance_scale": guidance_scale, "num_inference_steps": 5}
    latents = generator.latents(KEYS)
    expected = diffusers_images(pipeline(scheduler), embeds, embedding_noise(), latents, noise_level, **numbers)

    prompts = generator.encode_prompts(PROMPTS)
    condition = generator.condition(embeds, KEYS, noise_level=noise_level)
    images = generator.sample(condition, prompts, KEYS, **numbers)
    assert (images - expected).abs().max() <= 1e-5
    assert expected.std(dim=(1, 2, 3)).min() > 0.05  # there is something to compare
    pixels = generator.generate(embeds, prompts, KEYS, noise_level=noise_level, **numbers)
    assert pixels.dtype == torch.uint8
    assert (pixels.float() - expected * 255).abs().max() <= 0.5 + 255e-5


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_row_is_what_it_is_alone(embeds, scheduler):
    generator, prompts = shared(scheduler), shared(scheduler).encode_prompts(PROMPTS)
    augmentation = resolve("embed-cutmix-dropout").embed
    numbers = {"guidance_scale": 2.0, "num_inference_steps": 4}

    def images(rows):
        condition = generator.condition(embeds[rows], KEYS[rows], embeds.flip(0)[rows], augmentation, 20)
        return generator.sample(condition, prompts[rows], KEYS[rows], **numbers)

    together, turned = images([0, 1, 2]), images([2, 0, 1])
    assert (turned - together[[2, 0, 1]]).abs().max() <= 1e-5
    for i in range(3):
        alone = generator.encode_prompts([PROMPTS[i]])
        assert (alone - prompts[i]).abs().max() <= 1e-5
        assert (images([i])[0] - together[i]).abs().max() <= 1e-5


def test_a_key_decides_all_random_numbers(embeds):
    generator = shared()
    prompts = generator.encode_prompts(["a photo of a cat"] * 3)
    make = functools.partial(generator.generate, guidance_scale=1.0, num_inference_steps=3)
    rows = make(embeds[[0, 0, 0]], prompts, torch.tensor([7, 7, 8]))
    assert rows[0].equal(rows[1])
    assert not rows[0].equal(rows[2])
    state = torch.random.get_rng_state()
    assert make(embeds[[0, 0, 0]], prompts, torch.tensor([7, 7, 8])).equal(rows)
    assert torch.random.get_rng_state().equal(state)


def test_the_pipelines_scheduler_is_never_stepped(embeds):
    generator = make_generator()
    before = repr(sorted(vars(generator.pipe.scheduler).items()))
    prompts = generator.encode_prompts(PROMPTS)
    generator.generate(embeds, prompts, KEYS, guidance_scale=1.0, num_inference_steps=3)
    generator.estimate_seconds(1, 3)
    assert repr(sorted(vars(generator.pipe.scheduler).items())) == before


def test_condition_is_the_pipelines(embeds):
    pipe = pipeline()
    for level in (0, 1, 200, 999):
        expected = pipe.noise_image_embeddings(embeds, torch.tensor([level]), noise=embedding_noise())
        assert (shared().condition(embeds, KEYS, noise_level=level) - expected).abs().max() <= 2e-6
    moved = (shared().condition(embeds, KEYS)[:, :32] - embeds) / pipe.image_normalizer.std
    assert 0.003 < moved.std() < 0.012  # noise is drawn at level 0 as well


def test_augmentation_acts_on_the_whole_condition(embeds):
    generator = shared()
    plain = generator.condition(embeds, KEYS)
    dropped = generator.condition(embeds, KEYS, None, Compose([EmbedDropout(0.4)]))
    kept = dropped != 0
    assert dropped[kept].equal(plain[kept])
    assert (~kept[:, :32]).any() and (~kept[:, 32:] & (plain[:, 32:] != 0)).any()
    assert not generator.condition(embeds, KEYS, None, resolve("text-only").embed).any()
    mixed = generator.condition(embeds, KEYS, embeds.flip(0), resolve("embed-mixup").embed)
    assert not mixed[:, :32].equal(plain[:, :32])
    assert mixed[:, 32:].equal(plain[:, 32:])


def record_unet(generator, monkeypatch) -> list[dict]:
    calls, forward = [], generator.pipe.unet.forward

    def spy(sample, timestep, **inputs):
        calls.append(inputs)
        return forward(sample, timestep, **inputs)

    monkeypatch.setattr(generator.pipe.unet, "forward", spy)
    return calls


def test_unconditional_half_is_zeros_and_the_empty_prompt(embeds, monkeypatch):
    generator = make_generator()
    calls = record_unet(generator, monkeypatch)
    prompts = generator.encode_prompts(PROMPTS)
    dropout = Compose([EmbedDropout(0.4)])
    numbers = {"num_inference_steps": 3, "augmentation": dropout}
    generator.generate(embeds, prompts, KEYS, guidance_scale=2.0, **numbers)
    empty = generator.encode_prompts([""])[0]
    condition = generator.condition(embeds, KEYS, None, dropout)
    for call in calls:
        assert call["class_labels"].shape == (6, 64)
        assert not call["class_labels"][:3].any()
        assert call["class_labels"][3:].equal(condition)  # one mask an image, the same at each step
        assert (call["encoder_hidden_states"][:3] - empty).abs().max() <= 1e-6
        assert call["encoder_hidden_states"][3:].equal(prompts)
    calls.clear()
    generator.generate(embeds, prompts, KEYS, guidance_scale=1.0, **numbers)
    assert {len(call["class_labels"]) for call in calls} == {3}


def test_images_are_encoded_as_the_pipeline_does():
    generator, pipe = shared(), pipeline()
    noise = torch.randint(0, 256, (3, 48, 70), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    images = [Image.fromarray(noise.permute(1, 2, 0).numpy()), Image.new("RGB", (32, 32), "red"), noise]
    embeds = generator.encode_images(images)
    pixels = pipe.feature_extractor(images=images[:2], return_tensors="pt").pixel_values
    with torch.no_grad():
        assert (pipe.image_encoder(pixels).image_embeds - embeds[:2]).abs().max() <= 1e-6
    assert embeds.dtype == torch.float32 and embeds.shape == (3, generator.embed_dim)
    assert embeds[2].equal(embeds[0])  # a tensor or PIL, it's the same
    assert generator.encode_images([]).shape == (0, 32)


@pytest.mark.parametrize("size", [1, 3])
def test_embeddings_are_the_same_in_every_batch(size, monkeypatch):
    monkeypatch.setitem(stable_unclip._ENCODED, "cpu", size)
    generator = shared()
    images = list(torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)))
    for encode, rows in (generator.encode_images, images), (generator.encode_prompts, [*PROMPTS, "a", "b"]):
        whole = encode(rows)
        assert all(encode(rows[i:j]).equal(whole[i:j]) for i, j in [(0, 1), (0, 4), (3, 5)][: 3 if size == 1 else 2])


def test_prompts_have_one_length():
    generator = shared()
    prompts = generator.encode_prompts([*PROMPTS, "cats " * 100])
    assert prompts.shape == (4, 77, 32) and prompts.dtype == torch.float32
    expected = pipeline().encode_prompt(PROMPTS, "cpu", 1, False)[0]
    assert (prompts[:3] - expected).abs().max() <= 1e-5
    assert generator.encode_prompts([]).shape == (0, 77, 32)


def test_properties():
    generator = make_generator()
    assert (generator.embed_dim, generator.image_size) == (32, 32)
    assert (generator.device.type, generator.dtype) == ("cpu", torch.float32)
    assert repr(generator) == "StableUnCLIPGenerator('test@0', 32 px, torch.float32, cpu)"


def test_fingerprint_names_a_replaced_scheduler():
    generator = make_generator()
    own = generator.pipe.scheduler
    assert generator.fingerprint == "test@0"
    generator.pipe.scheduler = SCHEDULERS["ddim"]()
    ddim = generator.fingerprint
    assert ddim.startswith("test@0+DDIMScheduler-")
    generator.pipe.scheduler = type(own).from_config({**own.config, "prediction_type": "epsilon"})
    assert generator.fingerprint.startswith("test@0+PNDMScheduler-")
    generator.pipe.scheduler = type(own).from_config(own.config)
    assert generator.fingerprint == "test@0"


def test_bad_rows_are_named_and_the_good_ones_kept(embeds):
    generator = shared()
    prompts = generator.encode_prompts(PROMPTS)
    numbers = {"guidance_scale": 2.0, "num_inference_steps": 3}
    good = generator.generate(embeds, prompts, KEYS, **numbers)
    embeds[1, 4] = torch.nan
    with pytest.raises(BadImages, match=r"rows \[1\] of 3 images came out as NaN or one plain colour.*Check") as caught:
        generator.generate(embeds, prompts, KEYS, **numbers)
    assert caught.value.rows == [1]
    assert (caught.value.images[[0, 2]].int() - good[[0, 2]].int()).abs().max() <= 1


@pytest.mark.parametrize("colour", [-1.0, 0.25, 7.0])
def test_plain_rows_are_bad(embeds, monkeypatch, colour):
    generator = make_generator()
    decode = generator.pipe.vae.decode

    def spoil(latents, return_dict):
        images = decode(latents, return_dict=return_dict)[0]
        images[2] = colour
        return (images,)

    monkeypatch.setattr(generator.pipe.vae, "decode", spoil)
    with pytest.raises(BadImages, match=r"rows \[2\]"):
        generator.generate(embeds, generator.encode_prompts(PROMPTS), KEYS, guidance_scale=1.0, num_inference_steps=3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_row_that_overflows_in_half_precision_is_made_in_float32(embeds, monkeypatch, dtype):
    generator = make_generator()
    generator.pipe.to(dtype)
    prompts = generator.encode_prompts(PROMPTS)
    make = functools.partial(generator.generate, embeds, prompts, KEYS, guidance_scale=2.0, num_inference_steps=3)
    untouched = make()
    weights = {name: value.clone() for name, value in generator.pipe.unet.state_dict().items()}
    forward = generator.pipe.unet.forward

    def overflow(sample, *args, **kwargs):
        out = forward(sample, *args, **kwargs)[0]
        if out.dtype == dtype:
            out[1] = torch.inf
        return (out,)

    monkeypatch.setattr(generator.pipe.unet, "forward", overflow)
    with pytest.warns(UserWarning, match="1 of 3 images .* are made again in float32"):
        images = make()
    assert images[[0, 2]].equal(untouched[[0, 2]])
    assert generator.dtype == dtype
    assert all(value.equal(weights[name]) for name, value in generator.pipe.unet.state_dict().items())
    generator.pipe.unet.float(), generator.pipe.vae.float()
    condition = generator.condition(embeds, KEYS)[1:2]
    expected = generator.sample(condition, prompts[1:2], KEYS[1:2], guidance_scale=2.0, num_inference_steps=3)
    assert (images[1] - expected[0] * 255).abs().max() <= 0.6


def test_estimate_is_linear_in_images_and_steps():
    generator = make_generator("ddim")
    assert 0 < generator.estimate_seconds(1, 10) < generator.estimate_seconds(1, 20) < generator.estimate_seconds(2, 20)
    generator.__dict__["_seconds"] = (0.5, 2.0)
    assert generator.estimate_seconds(10, 30) == 10 * (30 * 0.5 + 2.0)


def test_parts_must_fit():
    with pytest.raises(ValueError, match=r"class embedding twice as wide.*must be 64, but got 48.*Use the encoders"):
        make_generator(unet_dim=24)
    with pytest.raises(TypeError, match="`fingerprint` must be a string that names the weights, but got ''"):
        StableUnCLIPGenerator(pipeline(), fingerprint="")


def test_rows_must_match(embeds):
    generator = shared()
    prompts = generator.encode_prompts(PROMPTS)
    make = functools.partial(generator.generate, guidance_scale=2.0, num_inference_steps=3)
    with pytest.raises(ValueError, match=r"`image_embeds` must be \(N, 32\), `prompt_embeds` must be \(N, L, 32\)"):
        make(embeds[:, :8], prompts[:2], KEYS)
    with pytest.raises(ValueError, match=r"`partner_embeds` must be \(N, 32\)"):
        make(embeds, prompts, KEYS, partner_embeds=embeds[:1])
    with pytest.raises(ValueError, match=r"`keys` must be int64 \(N,\).*torch.float32 keys"):
        make(embeds, prompts, KEYS.float())
    with pytest.raises(ValueError, match=r"`keys` must be int64 \(N,\), of one row or more, but got \[\(0,\)"):
        make(embeds[:0], prompts[:0], KEYS[:0])
    with pytest.raises(ValueError, match=r"`keys` must be int64 \(N,\), of one row or more, `image_embeds` must be"):
        make(embeds, prompts, KEYS[0])


@pytest.mark.parametrize(
    "numbers, error, match",
    [
        ({"guidance_scale": 0.5}, ValueError, r"`guidance_scale` must be 1 \(no guidance\) or more, but got 0.5"),
        ({"guidance_scale": float("nan")}, ValueError, "`guidance_scale` must be .* but got nan"),
        ({"num_inference_steps": 0}, ValueError, "`num_inference_steps` must be an int of 1 or more, but got 0"),
        ({"num_inference_steps": 2.5}, TypeError, "`num_inference_steps` must be an int, but got 2.5"),
        ({"noise_level": 1000}, ValueError, "`noise_level` must be below 1000"),
        ({"noise_level": -1}, ValueError, "`noise_level` must be an int of 0 or more, but got -1"),
    ],
)
def test_numbers_are_checked(embeds, numbers, error, match):
    generator = shared()
    numbers = {"guidance_scale": 2.0, "num_inference_steps": 3} | numbers
    with pytest.raises(error, match=match):
        generator.generate(embeds, generator.encode_prompts(PROMPTS), KEYS, **numbers)


def test_images_must_be_rgb():
    with pytest.raises(TypeError, match="`images` must be RGB PIL images or uint8 tensors .* but got I;16"):
        shared().encode_images([Image.new("I;16", (8, 8))])
    with pytest.raises(TypeError, match=r"but got torch.float32\. Convert"):
        shared().encode_images([torch.rand(3, 8, 8)])
