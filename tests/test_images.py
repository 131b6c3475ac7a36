"""Images of every kind and condition, and the digests of their contents."""

import io
import os
import pickle
import re
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import pil_loader

from torch_augcond.sources import Sources, UnreadableImage, images, to_rgb


def in_memory(*images):
    return Sources.from_dataset([(image, 0) for image in images])


def on_disk(root, **files):
    """Sources of {name: bytes}, in the order of their names."""
    (root / "class").mkdir(exist_ok=True)
    for name, content in files.items():
        (root / "class" / f"{name}.png").write_bytes(content)
    return Sources.from_dataset(ImageFolder(root))


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8))


class TestModes:
    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
    def test_all_become_rgb(self, mode):
        image = to_rgb(RGB.convert("P").convert("PA") if mode == "PA" else RGB.convert(mode))
        assert (image.mode, image.size) == ("RGB", (7, 5))

    def test_the_transparent_grey_of_a_16_bit_png_is_white(self):
        buffer = io.BytesIO()
        Image.fromarray(np.array([[0, 999, 1000, 1001, 65535]], "<u2")).save(buffer, "PNG")
        data, end = buffer.getvalue(), 8 + 25  # of the signature and the header
        chunk = b"tRNS" + struct.pack(">H", 1000)
        chunk = struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk))
        image = Image.open(io.BytesIO(data[:end] + chunk + data[end:]))
        assert image.mode == "I;16"
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 4, 255, 4, 255]

    @pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
    def test_16_bit_is_scaled_and_not_clipped(self, mode):
        values = np.array([[0, 256, 1000, 32768, 65535]], "<u2" if mode != "I;16B" else ">u2")
        image = Image.frombytes(mode, (5, 1), values.tobytes())
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 4, 128, 255]

    @pytest.mark.parametrize(
        "values, expected",
        [
            ([0.0, 0.5, 1.0], [0, 128, 255]),
            ([0.0, 100.4, 255.0], [0, 100, 255]),
            ([0.0, 257.0, 65535.0], [0, 1, 255]),
            ([-1.0, 0.0, 1.0], [0, 128, 255]),
            ([np.nan, np.inf, 1.0], [0, 0, 255]),
            ([70000.0, 70000.0, 70000.0], [0, 0, 0]),
        ],
    )
    def test_floats_are_scaled(self, values, expected):
        image = Image.fromarray(np.array([values], np.float32))
        assert image.mode == "F"
        assert np.asarray(to_rgb(image))[0, :, 2].tolist() == expected

    def test_32_bit_ints_are_scaled(self):
        image = Image.fromarray(np.array([[-100, 0, 100]], np.int32))
        assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 128, 255]

    def test_transparent_is_white(self):
        image = Image.fromarray(np.array([[[9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8))
        assert np.asarray(to_rgb(image)).tolist() == [[[255] * 3, [9] * 3]]
        palette = Image.new("P", (1, 1))
        palette.info["transparency"] = 0
        assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_rotation_is_left_to_the_loader(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert on_disk(tmp_path, a=encoded(RGB, "JPEG", exif=exif)).image(0).size == (7, 5)

    @pytest.mark.parametrize("size", [(1, 1), (3, 2000)])
    def test_odd_sizes(self, tmp_path, size):
        assert on_disk(tmp_path, a=encoded(Image.new("L", size))).image(0).size == size

    @pytest.mark.parametrize("format", ["GIF", "WEBP", "AVIF", "TIFF", "BMP"])
    def test_formats_and_the_first_frame_of_an_animation(self, tmp_path, format):
        if format in ("WEBP", "AVIF") and not features.check(format.lower()):
            pytest.skip(f"this Pillow was built without {format}")
        frames = {} if format == "BMP" else {"save_all": True, "append_images": [Image.new("RGB", (7, 5))]}
        image = on_disk(tmp_path, a=encoded(Image.new("RGB", (7, 5), "red"), format, **frames)).image(0)
        assert np.asarray(image)[..., 0].min() > 200

    def test_a_16_bit_file_of_an_image_folder(self, tmp_path):
        content = encoded(Image.fromarray(np.array([[0, 32768]], np.uint16)))
        assert np.asarray(on_disk(tmp_path, a=content).image(0))[0, :, 0].tolist() == [0, 128]


class TestArrays:
    @pytest.mark.parametrize("channels", [None, 1, 3])
    def test_uint8_arrays_and_tensors(self, channels):
        shape = (5, 7) if channels is None else (5, 7, channels)
        array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        tensor = torch.from_numpy(array) if channels is None else torch.from_numpy(array).movedim(-1, 0)
        sources = in_memory(array, tensor)
        assert sources.image(0).size == (7, 5)
        assert sources.digest(0) == sources.digest(1)

    @pytest.mark.parametrize(
        "value, got",
        [
            (torch.rand(3, 4, 4), r"torch.float32 Tensor \(3, 4, 4\)"),
            (torch.rand(3, 4, 4).bfloat16(), "torch.bfloat16 Tensor"),
            (np.zeros((4, 4)), r"float64 ndarray \(4, 4\)"),
            (np.zeros((4, 4), np.uint16), "uint16 ndarray"),
            (np.zeros((5, 7, 4), np.uint8), r"uint8 ndarray \(5, 7, 4\)"),
            (np.zeros((3, 4, 5), np.uint8), r"uint8 ndarray \(3, 4, 5\)"),
            (np.zeros(4, np.uint8), r"uint8 ndarray \(4,\)"),
            ("a path", "str"),
        ],
    )
    def test_other_values_are_a_mistake_of_the_dataset(self, value, got):
        with pytest.raises(TypeError, match=rf"the image of dataset\[0\] must be .* but got {got}.* `transform`"):
            in_memory(value).digests(failed={})

    def test_no_pixels(self):
        with pytest.raises(
            UnreadableImage, match=r"dataset\[0\] could not be read: ValueError: an image of 4x0 pixels"
        ):
            in_memory(np.zeros((0, 4), np.uint8)).image(0)


def bomb(width, height):
    """A PNG of one bit a pixel, all zeros: a few kilobytes for gigabytes of RGB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj()
    rows = bytes(width // 8 + 1)
    data = b"".join(packer.compress(rows) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def peak_of_memory():
    """In KiB."""
    return int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


GOOD = encoded(RGB)


class TestUnreadable:
    @pytest.mark.parametrize(
        "content",
        [b"", b"<html>404</html>", *(GOOD[: len(GOOD) * k // 6] for k in range(1, 6)), GOOD[:40] + bytes(60)],
        ids=["empty", "html", "1/6", "2/6", "3/6", "4/6", "5/6", "overwritten"],
    )
    def test_one_error_with_path_and_reason_and_the_others_go_on(self, tmp_path, content):
        sources = on_disk(tmp_path, a=content, b=GOOD)
        with pytest.raises(UnreadableImage, match=r"a\.png could not be read: \w+: ") as caught:
            sources.image(0)
        assert caught.value.name == sources.name(0)
        assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
        assert sources.image(1).size == (7, 5)
        assert len(set(sources.digests())) == 2

    def test_digests_note_what_is_missing(self, tmp_path):
        sources = on_disk(tmp_path, a=GOOD, b=GOOD, c=GOOD)
        os.remove(sources.name(1))
        os.remove(sources.name(2))
        os.symlink(sources.name(2), sources.name(2))
        failed = {}
        first, *others = sources.digests(failed=failed)
        assert (len(first), others, sorted(failed)) == (32, ["", ""], [1, 2])
        assert "FileNotFoundError" in failed[1].reason
        with pytest.raises(UnreadableImage, match=r"b\.png could not be read: FileNotFoundError"):
            sources.digests()

    def test_whatever_a_dataset_raises(self):
        class Broken(list):
            def __getitem__(self, i):
                raise RuntimeError("the archive is gone")

        with pytest.raises(ValueError, match=r"reading failed for dataset\[0\] \(RuntimeError: the archive is gone\)"):
            Sources.from_dataset(Broken([0]))
        broken = Broken([0])
        broken.targets = [0]
        with pytest.raises(UnreadableImage, match=r"dataset\[0\] could not be read: RuntimeError: the archive is gone"):
            Sources.from_dataset(broken).image(0)

    @pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="reads the peak of memory from /proc")
    @pytest.mark.parametrize("size", [(20_000, 10_000), (12_000, 8_000)], ids=["Pillow refuses too", "Pillow warns"])
    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_bombs_are_refused_before_decoding(self, tmp_path, size):
        sources = on_disk(tmp_path, a=bomb(*size))
        own_loader = Sources.from_dataset(ImageFolder(tmp_path, loader=lambda path: Image.open(path).convert("RGB")))
        lazy = in_memory(Image.open(sources.name(0))) if size[0] < 20_000 else sources
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        before = peak_of_memory()
        for refusing in (sources, own_loader, lazy):
            with pytest.raises(UnreadableImage, match="DecompressionBombError"):
                refusing.image(0)
        assert peak_of_memory() - before < 64 * 1024

    def test_the_limit_is_pillows(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 34)
        with pytest.raises(UnreadableImage, match="7x5 pixels are more than PIL.Image.MAX_IMAGE_PIXELS = 34"):
            in_memory(RGB).image(0)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert in_memory(RGB).image(0).size == (7, 5)


class TestDigests:
    def test_renamed_or_touched_keeps_it_and_edited_changes_it(self, tmp_path):
        sources = on_disk(tmp_path, a=GOOD)
        before = sources.digest(0)
        os.utime(sources.name(0), (1, 1))
        assert sources.digest(0) == before
        os.rename(sources.name(0), tmp_path / "class" / "z.png")
        assert Sources.from_dataset(ImageFolder(tmp_path)).digests() == [before]
        assert on_disk(tmp_path, z=encoded(RGB.rotate(180))).digest(0) != before

    def test_of_pixels_and_their_shape(self):
        flat = np.arange(24, dtype=np.uint8)
        images = [Image.fromarray(flat.reshape(shape)) for shape in [(2, 4, 3), (4, 2, 3), (24, 1), (1, 24)]]
        sources = in_memory(*images, images[0].copy())
        assert len(set(sources.digests())) == 4
        assert sources.digest(0) == sources.digest(4)

    def test_the_cache_spares_reading_what_has_not_changed(self, tmp_path, monkeypatch):
        sources = on_disk(tmp_path, a=GOOD, b=encoded(RGB.rotate(180)))
        monkeypatch.setattr(images, "_SETTLED_NS", -1)
        cache = {}
        digests = sources.digests(cache=cache)
        assert {entry[0]: value for entry, value in cache.items()} == dict(
            zip(map(sources.name, range(2)), digests, strict=True)
        )
        monkeypatch.setattr("builtins.open", None)
        assert Sources.from_dataset(ImageFolder(tmp_path)).digests(cache=cache) == digests

    def test_an_edit_of_the_same_length_is_seen(self, tmp_path):
        cache = {}
        sources = on_disk(tmp_path, a=GOOD)
        before = sources.digest(0, cache)
        stamp = os.stat(sources.name(0)).st_mtime_ns
        with open(sources.name(0), "r+b") as file:
            file.write(b"edited")
        os.utime(sources.name(0), ns=(stamp, stamp))  # within one step of the file system's clock
        assert sources.digest(0, cache) != before

    @pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of the last change of a file's metadata")
    def test_a_file_replaced_by_one_of_its_size_and_time_is_seen(self, tmp_path, monkeypatch):
        monkeypatch.setattr(images, "_SETTLED_NS", -1)
        cache, sources = {}, on_disk(tmp_path, a=GOOD)
        before, stamp = sources.digest(0, cache), os.stat(sources.name(0)).st_mtime_ns
        time.sleep(0.05)  # a step of the kernel's clock
        on_disk(tmp_path, b=b"x" * len(GOOD))
        os.replace(tmp_path / "class" / "b.png", sources.name(0))
        os.utime(sources.name(0), ns=(stamp, stamp))
        assert len(cache) == 1 and sources.digest(0, cache) != before

    def test_the_cache_believes_what_was_read_and_not_what_was_there_before(self, tmp_path, monkeypatch):
        monkeypatch.setattr(images, "_SETTLED_NS", -1)
        cache, sources, really = {}, on_disk(tmp_path, a=GOOD), images._open_regular

        def replaced(path):
            Path(path).write_bytes(b"longer" + GOOD)
            return really(path)

        monkeypatch.setattr(images, "_open_regular", replaced)
        digest = sources.digest(0, cache)
        assert [(size, value) for (_, size, _), value in cache.items()] == [(len(GOOD) + 6, digest)]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
    def test_a_pipe_that_came_in_its_place_is_not_waited_for(self, tmp_path, monkeypatch):
        sources = on_disk(tmp_path, a=GOOD)
        os.remove(sources.name(0))
        os.mkfifo(sources.name(0))
        monkeypatch.setattr(os.path, "isfile", lambda path: True)  # as it was a moment ago
        for read in (sources.digest, sources.image):
            with pytest.raises(
                UnreadableImage, match=r"a\.png could not be read: ValueError: it is not a regular file"
            ):
                read(0)

    def test_pixels_are_those_of_the_digest(self, tmp_path, monkeypatch):
        """While it is decoded, the file is another one than before and after."""
        sources, really = on_disk(tmp_path, a=GOOD), Image.open
        digest, path = sources.digest(0), Path(sources.name(0))

        def flipped(file, **options):
            path.write_bytes(encoded(RGB.rotate(180)))
            try:
                image = really(file, **options)
                image.load()
                return image
            finally:
                path.write_bytes(GOOD)

        monkeypatch.setattr(Image, "open", flipped)
        with pytest.raises(UnreadableImage, match="it has changed since this run began"):
            sources.image(0, digest)

    def test_another_loader_sees_another_image(self, tmp_path):
        def gray(path):
            return RGB.convert("L")

        plain = on_disk(tmp_path, a=GOOD)
        other, same = (Sources.from_dataset(ImageFolder(tmp_path, loader=loader)) for loader in (gray, pil_loader))
        cache = {}
        assert plain.digest(0, cache) == same.digest(0, cache) == images.hash_bytes(GOOD) != other.digest(0, cache)
        assert other.digest(0) == other.digest(0, cache) and other.image(0, other.digest(0)).mode == "RGB"

    def test_progress_sees_every_index(self, tmp_path):
        seen = []
        on_disk(tmp_path, a=GOOD, b=GOOD).digests(progress=lambda indices: seen.append(len(indices)) or indices)
        assert seen == [2]
