"""A folder of every kind of image, good and bad: a run goes through all of it and says what it could not use."""

import functools
import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from commands import COUNTS, run
from fakes import FakeGenerator, paint
from faults import contents, job_of, paint_sources
from PIL import EpsImagePlugin, Image, features
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic
from torch_augcond.sources import Sources, UnreadableImage
from torch_augcond.store import Store
from torch_augcond.store.imagefile import read_provenance

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
RGB = Image.fromarray(PIXELS)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def with_exif(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(RGB, "JPEG", exif=exif)


@functools.cache
def bomb(width, height):
    """A PNG of one bit a pixel, all zeros: a few kilobytes for gigabytes of RGB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj()
    data = b"".join(packer.compress(bytes(width // 8 + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def icon(png):
    """An ICO that says it's 16 pixels wide, around a PNG that isn't."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\n%%EOF\n"  # a program


def good_files():
    """{name: content} of images that must be usable, no two alike."""
    files = {f"{mode}.png": encoded(RGB.convert(mode)) for mode in ("1", "L", "LA", "P", "RGBA")}
    files["PA.tiff"] = encoded(RGB.convert("P").convert("PA").convert("RGBA"), "TIFF")
    files |= {f"{mode}.tiff": encoded(RGB.convert(mode), "TIFF") for mode in ("CMYK", "YCbCr", "F", "LAB")}
    files["CMYK.jpg"] = encoded(RGB.convert("CMYK"), "JPEG")
    files["I;16.png"] = encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257))
    files |= {f"exif{k}.jpg": with_exif(k) for k in range(1, 9)}
    frames = {"save_all": True, "append_images": [RGB.rotate(180), RGB]}
    kinds = {"GIF": "gif", "WEBP": "webp", "AVIF": "avif", "PNG": "apng.png"}
    known = {kind: end for kind, end in kinds.items() if kind in ("GIF", "PNG") or features.check(kind.lower())}
    files |= {f"animated.{end}": encoded(RGB.rotate(90), kind, **frames) for kind, end in known.items()}
    files |= {f"still.{end}": encoded(RGB.rotate(45), kind) for kind, end in known.items()}
    files["point.png"], files["line.png"] = encoded(Image.new("L", (1, 1))), encoded(Image.new("L", (3, 2000)))
    return files


def bad_files():
    """{name: content} of files that are no images, or no whole ones."""
    jpeg, png = encoded(RGB.resize((90, 90)), "JPEG"), encoded(RGB)
    files = {f"cut{k}.jpg": jpeg[: len(jpeg) * k // 6] for k in range(1, 6)}
    files |= {f"cut{k}.png": png[: len(png) * k // 6] for k in range(1, 6)}
    files |= {"empty.jpg": b"", "page.jpg": b"<!DOCTYPE html><html><title>404</title></html>"}
    files |= {"zeros.png": bytes(5000), "bomb.png": bomb(20_000, 10_000), "warned.png": bomb(12_000, 9_000)}
    files["eps.png"] = EPS
    files["icon.png"] = icon(bomb(13_000, 13_000))
    return files


@pytest.fixture
def folder(tmp_path):
    """(ImageFolder's extensions leave AVIF and GIF out: they get the name of one that it takes.)"""
    root = tmp_path / "real"
    for name, content in {**good_files(), **bad_files()}.items():
        taken = name if Path(name).suffix in (".png", ".jpg", ".tiff", ".webp") else name + ".png"
        path = root / "thing" / taken
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def outcomes(root):
    """(the sources of images, {source that failed: reason}) of a set."""
    store = Store(root)
    sources = {os.path.basename(read_provenance(path)["sources"][0]) for path in root.glob("*/*.png")}
    reasons = [record["reason"] for record in store.failures().values()]
    return sources, {os.path.basename(reason.partition(" could not be read: ")[0]): reason for reason in reasons}


def test_every_image_is_used_or_recorded(fake, folder, tmp_path, capsys):
    good, bad = good_files(), bad_files()
    argv = ["generate", folder, "--root", tmp_path / "set", "--augmentation", "real", "--max-failures", 1]
    code, out, _ = run(capsys, *argv)
    assert code == 0 and COUNTS.search(out).groups() == (str(len(good)), "0", str(len(bad)))
    used, failed = outcomes(tmp_path / "set")
    assert {name.removesuffix(".png") for name in used} == {name.removesuffix(".png") for name in good}
    assert set(failed) == set(bad)
    for name, reason in failed.items():
        assert re.fullmatch(rf"{re.escape(str(folder / 'thing' / name))} could not be read: \w+: .+", reason, re.DOTALL)
    assert all("DecompressionBombError" in failed[name] for name in ("bomb.png", "warned.png"))
    assert run(capsys, "verify", tmp_path / "set", "--full")[0] == 0


@pytest.mark.parametrize("augmentation", ["real", "cutmix", "embed-cutmix-dropout"])
def test_only_the_budget_decides_about_the_exit(fake, tmp_path, capsys, augmentation):
    """Whether sources are embedded, or mixed as pixels: one bad image in 200 is within it, three are past it."""
    root = tmp_path / "real" / "thing"
    root.mkdir(parents=True)
    for i in range(199):
        (root / f"{i}.png").write_bytes(encoded(Image.fromarray(PIXELS ^ np.uint8(i))))
    argv = ["generate", tmp_path / "real", "--augmentation", augmentation, "--batch-size", 32]
    (root / "bad.png").write_bytes(b"")
    mixes = augmentation != "real"  # then the bad image is a partner, too
    code, out, _ = run(capsys, *argv, "--root", tmp_path / "one", "--max-failures", 0.05 if mixes else 0.01)
    made, _, failed = map(int, COUNTS.search(out).groups())
    assert code == 0 and made + failed == 200 and (1 <= failed <= 10 if mixes else failed == 1)
    for name in ("worse.jpg", "worst.png"):
        (root / name).write_bytes(name.encode())
    code, out, _ = run(capsys, *argv, "--root", tmp_path / "three")
    assert code == 3 and "More than 0.01 of the images failed" in out
    assert run(capsys, "verify", tmp_path / "three")[0] == 0


class Pairs(ImageFolder):
    def __getitem__(self, index):
        return super().__getitem__(index)


class Wrapper(Dataset):
    def __init__(self, folder):
        self.folder, self.targets = folder, folder.targets

    def __len__(self):
        return len(self.folder)

    def __getitem__(self, index):
        return self.folder[index]


@pytest.mark.skipif(os.name == "nt", reason="its Ghostscript has another name")
@pytest.mark.parametrize("dataset", [ImageFolder, Pairs, lambda root: Wrapper(ImageFolder(root))])
def test_no_program_is_run_on_a_file(tmp_path, monkeypatch, dataset):
    """Pillow hands EPS to Ghostscript, whatever the file is called."""
    mark, gs = tmp_path / "mark", tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {mark}\nexit 1\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(gs.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # what an earlier look for it found
    path = tmp_path / "real" / "thing" / "a.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(EPS)
    sources = Sources.from_dataset(dataset(tmp_path / "real"))
    with pytest.raises(UnreadableImage, match="it is no image in one of the formats JPEG, PNG, "):
        sources.image(0)
    assert sources.identity and not mark.exists()
    with Image.open(path) as image, pytest.raises(Exception):  # noqa: B017, PT011
        image.load()
    assert mark.exists()  # so the mark tells


@pytest.mark.parametrize("augmentation", ["real", "cutmix"])
def test_sources_swapped_only_while_they_are_read_make_no_wrong_image(tmp_path, monkeypatch, augmentation):
    """Before and after, they are what was hashed when the run began."""
    paint_sources(tmp_path / "real")
    really, victim = Sources.image, tmp_path / "real" / "cat" / "0.png"
    whole = victim.read_bytes()
    paint(victim, "another cat")
    other = victim.read_bytes()
    victim.write_bytes(whole)

    def swapped(self, i, *digest):
        victim.write_bytes(other)
        try:
            return really(self, i, *digest)
        finally:
            victim.write_bytes(whole)

    job = job_of(tmp_path / "real", tmp_path / "set", augmentation=augmentation)
    with monkeypatch.context() as patch:
        patch.setattr(Sources, "image", swapped)
        assert job.make().failed and "has changed since this run began" in job.failure_text()
    job_of(tmp_path / "real", tmp_path / "set", augmentation=augmentation).make()
    job_of(tmp_path / "real", tmp_path / "undisturbed", augmentation=augmentation).make()
    assert contents(tmp_path / "set") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("augmentation", ["real", "cutmix"])
def test_a_dataset_that_draws_at_random_is_refused(tmp_path, augmentation):
    class Random(Dataset):
        classes = ("ant", "bee")

        def __len__(self):
            return 6

        def __getitem__(self, i):
            return Image.frombytes("RGB", (8, 8), os.urandom(192)), i % 2

    given = {"num_per_class": 4, "generator": FakeGenerator(), "root": tmp_path / "set"}
    with pytest.raises(RuntimeError, match=r"dataset\[\d\] could not be read: ValueError: it is another image than"):
        AugConditionedSynthetic(Random(), augmentation, **given)
    assert not list((tmp_path / "set").glob("*/*.png"))


_MEASURE = """
import re, sys
from pathlib import Path
from torchvision.datasets import ImageFolder
from torch_augcond.sources import Sources, UnreadableImage

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

sources = Sources.from_dataset(ImageFolder(sys.argv[1]))
good = next(i for i in range(len(sources)) if sources.name(i).endswith("RGBA.png"))
sources.image(good), sources.digests()
before, refused = peak(), 0
for i in range(len(sources)):
    try:
        sources.image(i)
    except UnreadableImage:
        refused += 1
print(refused, peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the peak of memory from /proc")
def test_bombs_cost_no_memory(folder, tmp_path):
    """In a process of its own, so that the peak is this test's."""
    done = subprocess.run([sys.executable, "-c", _MEASURE, folder], capture_output=True, text=True, check=True)
    refused, kilobytes = map(int, done.stdout.split())
    assert refused == len(bad_files()) and kilobytes < 64 * 1024


def test_files_that_are_no_files(fake, tmp_path, capsys):
    """A dangling link, a loop of links, a pipe that would block for ever, a file without permission."""
    root = tmp_path / "real" / "thing"
    root.mkdir(parents=True)
    (root / "good.png").write_bytes(encoded(RGB))
    os.symlink("nowhere", root / "dangling.png")
    os.symlink("loop.png", root / "loop.png")
    os.mkfifo(root / "pipe.png")
    argv = ["generate", tmp_path / "real", "--root", tmp_path / "set", "--augmentation", "real"]
    code, out, err = run(capsys, *argv)
    assert code == 3 and COUNTS.search(out).groups() == ("1", "0", "0") and "3 of 4 real images can't be read" in err
    reasons = "".join(record["reason"] for record in Store(tmp_path / "set").failures().values())
    assert all(f"{name}.png could not be read" in reasons for name in ("dangling", "loop", "pipe"))


def test_the_wrapped_folder_and_its_set_agree_on_exif(fake, tmp_path, capsys):
    """Rotation is left to the loader, as torchvision's own leaves it: what is trained on is what conditions."""
    root = tmp_path / "real" / "thing"
    root.mkdir(parents=True)
    for k in range(1, 9):
        (root / f"{k}.jpg").write_bytes(with_exif(k))
    real = ImageFolder(tmp_path / "real")
    sources = Sources.from_dataset(real)
    assert all(sources.image(i).tobytes() == real[i][0].tobytes() for i in range(8))
