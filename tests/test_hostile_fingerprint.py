"""A generator that becomes another one while a set is made: what it makes then is not kept."""

import copy

import diffusers
import pytest
from fakes import FakeGenerator, paint_folder
from pipelines import make_pipeline
from torchvision.datasets import ImageFolder

from torch_augcond import StableUnCLIPGenerator
from torch_augcond.job import Job
from torch_augcond.progress import silent
from torch_augcond.request import Request


class Watching:
    """A progress bar that does something after the first batch."""

    def __init__(self, act):
        self.act = act

    def __call__(self, total, desc, **options):
        self.desc = desc
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, n):
        if self.desc == "generating":
            self.act()


@pytest.mark.parametrize("kind", ["replaced", "set in place", "own"])
def test_a_generator_that_changes_while_a_set_is_made(kind, tmp_path):
    real = ImageFolder(paint_folder(tmp_path / "real", {"cat": 2, "dog": 2}))
    generator = FakeGenerator() if kind == "own" else StableUnCLIPGenerator(make_pipeline("ddim"), fingerprint="test@0")

    def change():
        if kind == "own":
            generator.fingerprint = "fake-2"
        elif kind == "replaced":
            generator.pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(generator.pipe.scheduler.config)
        else:
            generator.pipe.scheduler.register_to_config(prediction_type="sample")

    options = {"root": tmp_path / "set", "num_per_class": 8, "num_inference_steps": 2}
    whole = options | {"root": tmp_path / "whole"}
    make(real, copy.deepcopy(generator), silent, **whole)
    with pytest.raises(ValueError, match="`generator.fingerprint` must stay as it is .* has become"):
        make(real, generator, Watching(change), **options)
    made = {path.name: path.read_bytes() for path in (tmp_path / "set").glob("*/*.png")}
    assert 0 < len(made) < 16
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*/*.png")}
    assert made.items() <= expected.items(), "all were made by the generator as it was"


def make(real, generator, progress, **options):
    request = Request(dataset=real, generator=generator, **options)
    return Job(request, write=True, load=None, progress=progress).make(batch_size=2)
