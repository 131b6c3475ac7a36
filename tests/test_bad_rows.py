"""Rows that come out spoilt and batches that don't fit: one row, or one halving, is all it costs."""

import math
import weakref

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, paint_folder
from pipelines import make_pipeline
from torchvision.datasets import ImageFolder

from torch_augcond import StableUnCLIPGenerator
from torch_augcond.generate import Report
from torch_augcond.generators import BadImages
from torch_augcond.job import Job
from torch_augcond.progress import silent
from torch_augcond.request import Request
from torch_augcond.store.imagefile import load_image


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return ImageFolder(paint_folder(tmp_path_factory.mktemp("data") / "real", {"cat": 4, "dog": 3}))


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline("ddim").to(dtype=torch.bfloat16)


def job_of(real, root, generator, **options):
    options = {"num_per_class": 4, "num_inference_steps": 2, "augmentation": "real", **options}
    return Job(Request(dataset=real, generator=generator, root=root, **options), write=True, load=None, progress=silent)


def pixels(job):
    return {path.stem: load_image(str(path)).tobytes() for path in job.store.root.glob("*/*.png")}


class Spoilt(StableUnCLIPGenerator):
    """What the networks make of one key is spoilt, in the given precisions."""

    victim, value, dtypes = None, math.nan, ()

    def _sample(self, networks, condition, prompt_embeds, keys, **numbers):
        images = super()._sample(networks, condition, prompt_embeds, keys, **numbers)
        self.rows = [*getattr(self, "rows", []), (self.dtype, len(keys))]
        if self.dtype in self.dtypes:
            images[keys.to(images.device) == self.victim] = self.value
        return images


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, 1.0], ids=["NaN", "infinite", "black", "white"])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16,), (torch.bfloat16, torch.float32)], ids=["once", "always"])
@pytest.mark.filterwarnings("ignore:.*are made again in float32")
def test_a_spoilt_row_is_made_again_alone_and_then_given_up(real, pipe, tmp_path, value, dtypes):
    whole = job_of(real, tmp_path / "whole", Spoilt(pipe, fingerprint="local@1"))
    whole.make(batch_size=4)
    generator = Spoilt(pipe, fingerprint="local@1")
    job = job_of(real, tmp_path / "set", generator)
    generator.victim, generator.value, generator.dtypes = job.plan[2].seed, value, dtypes
    lost = len(dtypes) - 1
    assert job.make(batch_size=4) == Report(8 - lost, 0, lost)
    assert generator.rows == [(torch.bfloat16, 4), (torch.float32, 1), (torch.bfloat16, 4)]
    found, expected, key = pixels(job), pixels(whole), job.plan[2].key
    assert (key in found) is not lost
    again = np.frombuffer(found.pop(key, expected[key]), np.uint8).astype(int)
    assert np.abs(again - np.frombuffer(expected.pop(key), np.uint8)).mean() < 8, "the same image, more precisely"
    assert found == expected, "the other rows are as they were"
    if lost:
        (record,) = job.store.failures().values()
        assert record["reason"] == "it came out as NaN or as one plain colour, in every precision"
    assert pipe.unet.dtype == torch.bfloat16, "back in its own precision"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 64])
@pytest.mark.parametrize("limit", [1, 3])
def test_halving_makes_each_image_once_and_fails_seldom(real, tmp_path, size, limit):
    generator = FakeGenerator(limit=limit)
    job = job_of(real, tmp_path / "set", generator, num_per_class=9)
    assert job.make(batch_size=size) == Report(18, 0, 0)
    assert generator.refused <= math.log2(size) + 1
    seeds = sorted(recipe.seed for recipe in job.plan)
    padding = sum(generator.batches) - len(seeds)
    assert sorted(set(generator.keys)) == seeds and padding < 2 * max(generator.batches), (
        "only the last batch before a halving, and the last of all, are padded"
    )


def test_what_the_failed_batch_held_is_free_when_the_next_one_begins(real, tmp_path):
    class Hungry(FakeGenerator):
        held = None

        def generate(self, embeds, prompts, keys, **options):
            assert self.held is None or self.held() is None, "the exception still holds the batch that was too large"
            large = torch.empty(1000, 1000)
            self.held = weakref.ref(large)
            if len(keys) > 2:
                raise torch.OutOfMemoryError("no memory")
            return super().generate(embeds, prompts, keys, **options)

    assert job_of(real, tmp_path / "set", Hungry()).make(batch_size=8) == Report(8, 0, 0)


def test_a_source_whose_encoding_does_not_fit_fails_alone(tmp_path):
    real = ImageFolder(paint_folder(tmp_path / "real", {"cat": 3}))
    generator, encode = FakeGenerator(), FakeGenerator.encode_images
    victim = real[1][0].tobytes()

    def encode_images(images):
        if any(image.tobytes() == victim for image in images):
            raise torch.OutOfMemoryError("no memory")
        return encode(generator, images)

    generator.encode_images = encode_images
    job = job_of(real, tmp_path / "set", generator, num_per_class=None, num_per_image=1)
    assert job.make(batch_size=4) == Report(2, 0, 1)
    (record,) = job.store.failures().values()
    assert record["reason"] == "there is not enough memory to encode a single image"


@pytest.mark.parametrize("rows", [torch.tensor([0, 2]), np.array([0, 2]), [torch.tensor(0), 2], (0, 2)])
def test_bad_rows_are_taken_out_however_they_are_given(real, tmp_path, rows):
    class Bad(FakeGenerator):
        def generate(self, *inputs, **options):
            raise BadImages(rows, super().generate(*inputs, **options))

    assert job_of(real, tmp_path / "set", Bad()).make(batch_size=4) == Report(4, 0, 4)


@pytest.mark.parametrize(
    "rows, error, message",
    [
        ([-2], ValueError, r"`rows` must be indices of the 4 images, from 0, but got -2\. Of a mask"),
        (torch.tensor([1, 4]), ValueError, "but got 4"),
        (torch.tensor([True, False, False, False]), TypeError, "`rows` must be an int, but got True"),
        ([0.0], TypeError, "`rows` must be an int, but got 0.0"),
    ],
)
def test_rows_that_name_no_image_are_refused(rows, error, message):
    with pytest.raises(error, match=message):
        BadImages(rows, torch.zeros(4, 3, 2, 2, dtype=torch.uint8))
