"""Settings and the canonical encoding that keys are hashed from."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_augcond.plan.recipe import Settings, canonical, hash64

SETTINGS = Settings(
    augmentation=[{"name": "EmbedCutMix", "alpha": 1.0, "span": "leading"}],
    num_sources=2,
    checkpoint="tiny@1",
    image_size=32,
    guidance_scale=2.0,
    num_inference_steps=30,
    noise_level=0,
    seed=0,
    scheme="per-class",
    prompt="a photo of a {}",
)


@given(st.text(), st.text(), st.lists(st.binary(min_size=16, max_size=16), max_size=2), st.integers(0, 2**40))
def test_the_canonical_encoding_round_trips(name, prompt, contents, ordinal):
    digests = [content.hex() for content in contents]
    found = json.loads(canonical(SETTINGS, name, prompt, digests, ordinal))
    assert (found["class"], found["prompt"], found["digests"], found["ordinal"]) == (name, prompt, digests, ordinal)
    assert Settings(**found["settings"], prompt=SETTINGS.prompt) == SETTINGS


def test_names_that_are_not_utf8_can_be_encoded():
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert json.loads(canonical(SETTINGS, name, name, [], 0))["class"] == name


def test_hash64_tells_tuples_apart_and_fits_int64():
    numbers = [hash64(*parts) for parts in [(1, 0), (0, 1), (10,), (1, "0"), ("1", 0), ("10",), ()]]
    assert len(set(numbers)) == len(numbers)
    assert all(-(2**63) <= number < 2**63 for number in numbers)


def test_settings_round_trip():
    settings = replace(SETTINGS, augmentation=({"box": (1, 2)},), guidance_scale=2)
    assert Settings(**json.loads(json.dumps(settings.as_dict()))) == settings
    assert settings.as_dict()["guidance_scale"] == 2.0


def test_differences_are_named():
    there = replace(SETTINGS, guidance_scale=10.0, seed=3)
    expected = ["`guidance_scale` is 10.0 there, but 2.0 here", "`seed` is 3 there, but 0 here"]
    assert SETTINGS.differences(there) == expected
    assert SETTINGS.differences(replace(SETTINGS)) == []


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"num_sources": 3}, ValueError, "`num_sources` must be 0, 1 or 2, but got 3"),
        ({"scheme": "all"}, ValueError, "`scheme` must be 'per-image' or 'per-class', but got 'all'"),
        (
            {"guidance_scale": float("nan")},
            ValueError,
            r"`guidance_scale` must be 1 \(no guidance\) or more, but got nan",
        ),
        ({"guidance_scale": 0}, ValueError, r"`guidance_scale` must be 1 \(no guidance\) or more, but got 0"),
        ({"guidance_scale": -1}, ValueError, r"`guidance_scale` must be 1 \(no guidance\) or more, but got -1"),
        ({"guidance_scale": "2"}, TypeError, r"`guidance_scale` must be 1 .* but got '2' \(str\)"),
        ({"seed": 1.5}, TypeError, "`seed` must be an int, but got 1.5"),
        ({"image_size": 0}, ValueError, "`image_size` must be an int of 1 or more, but got 0"),
    ],
)
def test_settings_errors(change, error, match):
    with pytest.raises(error, match=match):
        replace(SETTINGS, **change)
