"""An image file is exactly what was written, or it is found out."""

import json
import os
import pickle
import random

import pytest
import torch
from PIL import Image

from torch_augcond.store.imagefile import (
    MAX_BYTES,
    Corrupt,
    check,
    encode,
    extension,
    load_image,
    read_image,
    read_provenance,
)

KEY, OTHER = "0123456789abcdef" * 2, "f" * 32
PROVENANCE = {"key": KEY, "class_name": "päony \udc80 🌸", "ordinal": 3, "lam": 0.1 + 0.2, "digests": ["a", "b"]}


def noise(size: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["png", "jpg"])
def file(request, tmp_path):
    path = tmp_path / f"{KEY}.{request.param}"
    path.write_bytes(encode(noise(), PROVENANCE, request.param))
    return path


def test_record_comes_back_as_it_was(file):
    assert {k: v for k, v in check(file, KEY).items() if k != "digest"} == PROVENANCE
    assert read_provenance(file) == check(file, KEY)


def test_pixels_are_those_of_a_plain_file(tmp_path):
    image = noise()
    for ext, options in (("png", {}), ("jpg", {"quality": 95})):
        ours, plain = tmp_path / f"{KEY}.{ext}", tmp_path / f"plain.{ext}"
        ours.write_bytes(encode(image, PROVENANCE, ext))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(plain, **options)
        assert Image.open(ours).tobytes() == read_image(ours, KEY).tobytes() == Image.open(plain).tobytes()
    assert read_image(tmp_path / f"{KEY}.png", KEY).tobytes() == image.permute(1, 2, 0).numpy().tobytes()


def test_other_programs_can_read_the_record(file):
    with Image.open(file) as image:
        image.load()
        text = image.text["augcond"] if file.suffix == ".png" else image.info["comment"]
    assert json.loads(text)["lam"] == PROVENANCE["lam"]


def test_every_bit_flip_is_found(file):
    whole = file.read_bytes()
    draw = random.Random(0)
    flips = [8 * byte + draw.randrange(8) for byte in range(400)]  # headers, the record and its frame
    for bit in flips + draw.sample(range(8 * len(whole)), 100):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        for read in (lambda: check(file, KEY), lambda: load_image(str(file))):
            with pytest.raises(Corrupt):
                read()


def test_every_truncation_and_anything_appended_is_found(file):
    whole = file.read_bytes()
    cut = [whole[:length] for length in [*range(0, len(whole), 19), len(whole) - 1]]
    for damaged in [*cut, whole + b"\0", whole + whole]:
        file.write_bytes(damaged)
        with pytest.raises(Corrupt):
            read_image(file, KEY)


def test_swapped_file_is_found(file):
    with pytest.raises(Corrupt, match=f"it holds image {KEY}, not {OTHER}"):
        check(file.rename(file.with_stem(OTHER)), OTHER)


def test_renamed_type_is_found(file):
    other = file.rename(file.with_suffix(".jpg" if file.suffix == ".png" else ".png"))
    with pytest.raises(Corrupt):
        check(other, KEY)


@pytest.mark.parametrize("content", [b"", b"<html>", b"\x89PNG\r\n\x1a\n" + b"[" * 60_000, b"\xff\xd8" * 9])
def test_what_is_no_image_is_found(file, content):
    file.write_bytes(content)
    with pytest.raises(Corrupt, match="is damaged"):
        check(file, KEY)


def test_record_of_something_else_is_found(file):
    for record in ({"key": KEY}, PROVENANCE | {"class_name": None}, PROVENANCE | {"ordinal": "3"}):
        file.write_bytes(encode(noise(), record, file.suffix[1:]))
        with pytest.raises(Corrupt, match="names no class or no ordinal"):
            check(file, KEY)


def test_links_and_giants_are_not_read(file, tmp_path):
    link = tmp_path / "links" / file.name
    link.parent.mkdir()
    link.symlink_to(file)
    readers = (lambda path: check(path, KEY), load_image)
    for read in readers:
        with pytest.raises(Corrupt, match="not a regular file"):
            read(link)
    with open(file, "r+b") as giant:
        giant.truncate(MAX_BYTES + 1)
    for read in readers:
        with pytest.raises(Corrupt, match="more than the"):
            read(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    pipe = tmp_path / f"{KEY}.png"
    os.mkfifo(pipe)
    for read in (lambda path: check(path, KEY), load_image):
        with pytest.raises(Corrupt, match="not a regular file"):
            read(pipe)


def test_missing_file_is_not_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "none.png", KEY)


def test_corrupt_survives_pickling(tmp_path):
    error = pickle.loads(pickle.dumps(Corrupt(tmp_path, "why")))
    assert (error.path, error.reason, str(error)) == (tmp_path, "why", str(Corrupt(tmp_path, "why")))


def test_extension_by_size():
    assert [extension(size) for size in (32, 255, 256, 768)] == ["png", "png", "jpg", "jpg"]


@pytest.mark.parametrize(
    "image, ext, error, match",
    [
        (noise().float(), "png", TypeError, "`image` must be a uint8 tensor, but got torch.float32"),
        ("cat", "png", TypeError, "`image` must be a uint8 tensor, but got str"),
        (noise()[:1], "png", ValueError, r"`image` must have shape \(3, H, W\), but got \(1, 16, 16\)"),
        (noise()[:, :0], "png", ValueError, "`image` must have shape"),
        (noise(), "webp", ValueError, "`ext` must be 'png' or 'jpg', but got 'webp'"),
    ],
)
def test_bad_arguments(image, ext, error, match):
    with pytest.raises(error, match=match):
        encode(image, {}, ext)


def test_bad_provenance():
    with pytest.raises(ValueError, match="`provenance` must fit in 65,533 bytes as JSON, but has"):
        encode(noise(), {"prompt": "a" * 70_000}, "png")
    with pytest.raises(ValueError, match="JSON compliant"):
        encode(noise(), {"lam": float("nan")}, "png")
