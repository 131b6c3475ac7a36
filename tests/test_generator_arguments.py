"""Wrong arguments of generators: one line that names the argument and what it must be."""

import functools
import logging
import re
import warnings
from pathlib import Path

import diffusers.utils.logging
import pytest
import torch
import transformers.utils.logging
from PIL import Image
from pipelines import make_pipeline

from torch_augcond import StableUnCLIPGenerator, load_generator

KEYS, EMBEDS = torch.tensor([1, 2]), torch.zeros(2, 32)


@functools.cache
def shared():
    return StableUnCLIPGenerator(make_pipeline(), fingerprint="test@0")


@functools.cache
def prompts():
    return shared().encode_prompts(["a", "b"])


def refuses(error, match, call, *args, **options):
    with pytest.raises(error, match=match) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"name_or_path": None}, TypeError, r"`name_or_path` must be a name or a path.* but got None \(NoneType\)"),
        ({"name_or_path": 3}, TypeError, r"`name_or_path` must be .* but got 3 \(int\)"),
        ({"name_or_path": ""}, FileNotFoundError, "`name_or_path` must be .* but there is no folder ''"),
        ({"name_or_path": "./x"}, FileNotFoundError, r"but there is no folder './x'\.$"),
        ({"name_or_path": "/no/folder"}, FileNotFoundError, r"but there is no folder '/no/folder'\.$"),
        ({"name_or_path": Path("/no/folder")}, FileNotFoundError, "but there is no folder '/no/folder'"),
        ({"name_or_path": "x" * 5000}, FileNotFoundError, r"but there is no folder 'x{197}\.\.\.'\.$"),
        ({"name_or_path": "/x\0y"}, FileNotFoundError, "but there is no folder '/x"),
        ({"name_or_path": "Tiny"}, FileNotFoundError, r"no folder 'Tiny'\. Did you mean 'tiny'\?"),
        ({"name_or_path": "sd21_unclip"}, FileNotFoundError, r"Did you mean 'sd21-unclip'\?"),
        ({"device": "foo"}, ValueError, r"`device` must be .* but got 'foo'\. Leave it out for the default"),
        ({"device": "cuda:99"}, ValueError, r"`device` must be .* but got 'cuda:99'\. Leave it out"),
        ({"device": "meta"}, ValueError, r"`device` must be .* but got 'meta'\. Leave it out"),
        ({"revision": 3}, TypeError, "`revision` must be a str or None, but got int"),
        ({"variant": 3}, TypeError, "`variant` must be a str or None, but got int"),
        ({"token": 3}, TypeError, "`token` must be a str, True, False or None, but got int"),
        ({"cache_dir": 3}, TypeError, "`cache_dir` must be a path or None, but got int"),
        ({"local_files_only": "x"}, TypeError, "`local_files_only` must be one of False, True, but got 'x'"),
        ({"nope": 1}, TypeError, r"^load_generator\(\) got an unexpected keyword argument 'nope'\.$"),
        ({"fingerprint": "a"}, TypeError, r"load_generator\(\) got an unexpected keyword argument 'fingerprint'"),
        ({"Scheduler": "ddim"}, TypeError, r"argument 'Scheduler'\. Did you mean 'scheduler'\?"),
        ({"devices": "cpu"}, TypeError, r"argument 'devices'\. Did you mean 'device'\?"),
        ({"device": 3}, TypeError, r"`device` must be .* but got 3 \(int\)\. Leave it out"),
        ({"revision": "main"}, ValueError, "`revision` must be None for 'tiny', which lies here, but got 'main'"),
        ({"variant": "fp16"}, ValueError, "`variant` must be None for 'tiny', which holds no other weights, but got"),
    ],
)
def test_loading(options, error, match):
    refuses(error, match, load_generator, **{"name_or_path": "tiny", **options})


def test_half_precision_on_a_cpu_is_loaded_in_silence(capfd):
    assert load_generator("tiny", device="cpu", dtype=torch.float16).dtype == torch.float16
    assert capfd.readouterr().err == ""


def test_loading_shows_no_bars_where_somebody_watches_and_keeps_the_users_switches(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    load_generator("tiny", device="cpu")
    assert not re.search(r"\d+/\d+|it/s", capsys.readouterr().err)
    for switch in (diffusers.utils.logging, transformers.utils.logging):
        assert switch.is_progress_bar_enabled()


@pytest.mark.parametrize("steps, noise_level", [(1001, 0), (3, 1000)])
def test_schedules_end(steps, noise_level):
    numbers = {"guidance_scale": 2.0, "num_inference_steps": steps, "noise_level": noise_level}
    match = "`num_inference_steps` must be at most 1000" if steps > 3 else "`noise_level` must be below 1000"
    refuses(ValueError, match, shared().generate, EMBEDS, prompts(), KEYS, **numbers)
    refuses(ValueError, match, shared().check_numbers, **numbers)


@pytest.mark.parametrize("guidance, error", [("2", TypeError), (None, TypeError), (0, ValueError), (-1, ValueError)])
def test_guidance_is_one_or_more(guidance, error):
    match = rf"`guidance_scale` must be 1 \(no guidance\) or more, but got {guidance!r}"
    refuses(error, match, shared().check_numbers, guidance, 3, 0)


def test_rows_must_be_tensors():
    make = functools.partial(shared().generate, guidance_scale=2.0, num_inference_steps=3)
    refuses(TypeError, "but got list as `image_embeds`, int as `keys`", make, [0.0], prompts(), 3)
    refuses(TypeError, "but got str as `partner_embeds`", make, EMBEDS, prompts(), KEYS, partner_embeds="x")
    match = r"`augmentation` must be None or Embed transforms, but got 'embed-mixup' \(str\)"
    refuses(TypeError, match, make, EMBEDS, prompts(), KEYS, augmentation="embed-mixup")


def test_the_other_methods():
    generator = shared()
    refuses(TypeError, "`keys` must be an int64 tensor .* but got torch.float32", generator.latents, KEYS.float())
    refuses(TypeError, "`keys` must be an int64 tensor .* but got list", generator.condition, EMBEDS, [1, 2])
    refuses(ValueError, "`noise_level` must be below 1000", generator.condition, EMBEDS, KEYS, noise_level=5000)
    refuses(
        TypeError, "`images` must be a list of images, but got Image", generator.encode_images, Image.new("RGB", (8, 8))
    )
    refuses(TypeError, "`prompts` must be a list of str, but got 'a cat'", generator.encode_prompts, "a cat")
    refuses(TypeError, r"`prompts` must be a list of str, but got \[3\]", generator.encode_prompts, [3])
    refuses(TypeError, "`num_images` must be an int, but got 'x'", generator.prepare, "x")
    refuses(ValueError, "`num_images` must be an int of 0 or more, but got -1", generator.prepare, -1)
    refuses(TypeError, "`n` must be an int", generator.estimate_seconds, "x", 3)
    refuses(ValueError, "`num_inference_steps` must be an int of 1 or more", generator.estimate_seconds, 1, 0)


def test_what_is_no_pipeline():
    match = "`pipe` must be a StableUnCLIPImg2ImgPipeline, but got NoneType"
    refuses(TypeError, match, StableUnCLIPGenerator, None, fingerprint="a")


def test_a_prompt_that_is_too_long_is_one_warning_of_ours(caplog):
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).addHandler(caplog.handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        whole = shared().encode_prompts(["a cat", "x " * 200, "y" * 3000])
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).removeHandler(caplog.handler)
    [warning] = [str(w.message) for w in caught if "tokens" in str(w.message)]
    assert re.match(
        r"prompts may have 75 tokens, .* but got 'x x .*\.\.\.' with 200, 'y{57}\.\.\.' with \d+\. Shorten", warning
    )
    assert len(warning) < 350 and not caplog.records and whole.shape == (3, 77, 32)
    assert diffusers.utils.logging.get_verbosity() == logging.WARNING
