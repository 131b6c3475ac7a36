"""The trainer of the bundled model, in small: every stage, resumed, exported, loaded by the library's own code."""

import sys
from pathlib import Path

import pytest
import torch

from torch_augcond import load_generator

pytest.importorskip("tqdm")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import glyphs
import unclip_joint as joint
import unclip_parts as parts
import unclip_trainer as trainer

SIZES = {
    "image": 32, "patch": 8, "vision": 32, "vision_layers": 1, "embed": 32, "text": 32, "text_layers": 1,
    "vae": (8, 8, 16), "unet": (16, 32), "time": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def drawings(data_dir):
    full = glyphs.load(data_dir / "omniglot_small_105.zip")
    keep = torch.arange(56)  # four characters by fourteen drawers
    return glyphs.Glyphs(full.fields[keep], full.labels[keep], full.names[:4])


def test_views_differ_and_canonical_ones_do_not(drawings):
    index, rng = torch.arange(8), torch.Generator().manual_seed(0)
    first, second = drawings.views(index, rng), drawings.views(index, rng)
    assert first.shape == (8, 3, 32, 32) and first.min() >= -1 and first.max() <= 1
    assert (first - second).abs().mean() > 0.05
    assert torch.equal(drawings.canonical(index), drawings.canonical(index))
    assert (drawings.labels[drawings.another(index, rng)] == drawings.labels[index]).all()


def test_no_character_that_stands_for_a_number_is_a_letter():
    assert all(map(glyphs.is_letter, "aZñЖ字あ"))
    assert not any(map(glyphs.is_letter, "059²½Ⅳ٣五〇"))


def test_standardised_latents_decode_to_the_same_pixels(drawings):
    torch.manual_seed(0)
    vae = parts.autoencoder(SIZES).eval()
    pixels = drawings.canonical(torch.arange(16))
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        parts.standardise(vae, pixels)
        latents = vae.encode(pixels).latent_dist.mean
        after = vae.decode(latents).sample
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_the_pixels_of_the_pool_are_those_that_were_encoded(drawings):
    torch.manual_seed(0)
    image, vae = parts.image_encoder(SIZES).eval(), parts.autoencoder(SIZES).eval()
    embeds, latents = trainer.make_pool(drawings, image, vae, 3)
    pixels = joint.pool_pixels(drawings, latents)
    with torch.no_grad():
        again = image(pixels[:, 2].float().div(127.5).sub(1)[:, None].expand(-1, 3, -1, -1)).image_embeds
        other = image(pixels[:, 1].float().div(127.5).sub(1)[:, None].expand(-1, 3, -1, -1)).image_embeds
    torch.testing.assert_close(again, embeds[:, 2].float(), atol=0.02, rtol=0.02)
    assert (other - embeds[:, 2].float()).abs().mean() > 10 * (again - embeds[:, 2].float()).abs().mean()


@pytest.mark.slow
def test_trains_resumes_and_exports_a_pipeline_that_loads(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    tokenizer = parts.make_tokenizer(drawings.names, tmp_path / "tokenizer", 600, 16)
    short = {"work": tmp_path, "minutes": 0.05, "batch": 16, "lr": 1e-3}
    clip = trainer.train_clip(drawings, tokenizer, SIZES, **short)
    vae = parts.standardise(trainer.train_vae(drawings, SIZES, **short)["vae"], drawings.canonical(torch.arange(16)))
    pool = trainer.cached_pool(tmp_path, drawings, clip["image"], vae, 2)
    text = trainer.hidden_states(clip["text"], tokenizer, drawings.names)
    unet = trainer.train_unet(drawings, pool, text, torch.ones(56), SIZES, **short)["unet"]
    step = torch.load(tmp_path / "unet.pt", weights_only=True)["step"]
    again = trainer.train_unet(drawings, pool, text, torch.ones(56), SIZES, **short)["unet"]
    assert step > 0 and torch.load(tmp_path / "unet.pt", weights_only=True)["step"] == step
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), again.parameters(), strict=True))
    pixels = joint.pool_pixels(drawings, pool[1])
    before = {"image": clip["image"], "denoiser": unet}
    both = joint.train_joint(drawings, pool, pixels, text, torch.ones(56), SIZES, **short, **before)
    assert not torch.equal(both["image"].visual_projection.weight, clip["image"].visual_projection.weight)
    embeds = joint.embeddings(both["image"], pixels, 64)
    parts.export(both["image"], clip["text"], tokenizer, vae, both["unet"], embeds, SIZES, tmp_path / "out")
    generator = load_generator(tmp_path / "out")
    embeds = generator.encode_images(list(drawings.canonical(torch.arange(2)).add(1).mul(127).to(torch.uint8)))
    prompts = generator.encode_prompts(["a photo of a greek character01"] * 2)
    images = generator.generate(embeds, prompts, torch.arange(2), guidance_scale=2.0, num_inference_steps=2)
    assert images.shape == (2, 3, 32, 32)
