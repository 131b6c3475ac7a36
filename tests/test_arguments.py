"""Wrong arguments of the dataset and the sampler: one line that says what to type instead, before anything is made."""

import warnings

import numpy as np
import pytest
from fakes import FakeGenerator, paint_folder
from PIL import Image
from torch.utils.data import Subset
from torchvision.datasets import ImageFolder

from torch_augcond import VARIANTS, AugConditionedSynthetic, MixedRealSyntheticSampler, load_generator
from torch_augcond.job import Job
from torch_augcond.request import Request


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return ImageFolder(paint_folder(tmp_path_factory.mktemp("real"), {"cat": 2, "dog": 2}))


def make(dataset, root, **options):
    return AugConditionedSynthetic(dataset, **{"root": root, "generator": FakeGenerator(), **options})


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"root": ""}, ValueError, "`root` must be None or a path, but got ''"),
        ({"batch_size": "x"}, TypeError, "`batch_size` must be an int, but got 'x'"),
        ({"batch_size": 1.5}, TypeError, "`batch_size` must be an int, but got 1.5"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an int of 1 or more, but got 0"),
        (
            {"num_per_class": {"cat": 2**40}},
            ValueError,
            r"`num_per_class\['cat'\]` must be at most 100,000,000, but got 10",
        ),
        ({"fill_to": 0}, ValueError, "`fill_to` must be an int of 1 or more, but got 0"),
        ({"prompt": 3}, TypeError, "`prompt` must be a template .* but got 3"),
        ({"class_names": 3}, TypeError, "`class_names` must be a list of 2 names or a dict, but got 3"),
        ({"guidance_scale": "2"}, TypeError, r"`guidance_scale` must be 1 \(no guidance\) or more, but got '2'"),
        ({"guidance_scale": 0}, ValueError, r"`guidance_scale` must be 1 \(no guidance\) or more, but got 0"),
        ({"augmentation": ["dropout"]}, TypeError, "`augmentation` must be a list of .* but got 'dropout'"),
        ({"dataset": "flowers"}, TypeError, r"but got 'flowers'\. Did you mean ImageFolder\('flowers'\)\?"),
        ({"dataset": [1, 2]}, TypeError, r"`dataset\[0\]` must be \(image, label\), but got int"),
        ({"dataset": [(Image.new("RGB", (4, 4)), 0), 7]}, TypeError, r"`dataset\[1\]` must be \(image, label\)"),
    ],
)
def test_what_is_refused(real, tmp_path, options, error, match):
    with pytest.raises(error, match=match) as caught:
        make(**{"dataset": real, "root": tmp_path / "set", **options})
    assert "\n" not in str(caught.value) and not (tmp_path / "set").exists()


@pytest.mark.parametrize("options", [{"num_inference_steps": 1001}, {"noise_level": 1000}])
def test_a_schedule_is_looked_at_before_the_root_is_claimed(real, tmp_path, options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"`{name}` must be "):
        make(real, tmp_path / "set", generator=load_generator("tiny", device="cpu"), **options)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("count", [{"num_per_image": 0}, {"num_per_class": 0}, {"num_per_class": {}}])
def test_a_set_may_be_empty(real, tmp_path, count):
    assert len(make(real, tmp_path / "set", **count)) == 0


def test_wrapping_what_is_synthetic_is_a_warning(real, tmp_path):
    synthetic = make(real, tmp_path / "set")
    for dataset in (synthetic, real + synthetic, Subset(real + synthetic, [0, 1, 5])):
        with pytest.warns(UserWarning, match="`dataset` holds synthetic images.* Wrap the real ones alone"):
            Request(dataset=dataset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Request(dataset=real)


def test_past_the_end_is_an_index_error(real, tmp_path):
    synthetic = make(real, tmp_path / "set")
    for look in (synthetic.__getitem__, synthetic.provenance):
        with pytest.raises(IndexError, match="^index 4 is out of range for 4 images$"):
            look(4)
    assert len(list(synthetic)) == 4 and synthetic[-1][1] == 1


def test_reprs_say_what_tells_sets_apart(real, tmp_path):
    synthetic = make(real, tmp_path / "set", augmentation="embed-cutmix-dropout")
    assert "Augmentation: EmbedCutMix(alpha=1.0, span='leading') + EmbedDropout(p=0.4, rescale=False)" in repr(
        synthetic
    )
    assert "Checkpoint: fake-16-12\n" in repr(synthetic)
    tiny = load_generator("tiny", device="cpu")
    made = make(real, tmp_path / "tiny", generator=tiny, num_per_image=0)
    assert f"Checkpoint: {tiny.fingerprint} (tiny)\n" in repr(made)
    sampler = MixedRealSyntheticSampler(real + synthetic, seed=3)
    assert repr(sampler).startswith("MixedRealSyntheticSampler(4 real, 4 synthetic, synthetic_fraction=1/2, num_rep")
    assert "seed=3" in repr(sampler) and "epoch_length='real'" in repr(sampler)


def test_a_conflict_says_what_to_type(real, tmp_path):
    make(real, tmp_path / "set", generator=load_generator("tiny", device="cpu"), num_per_image=0, augmentation="real")
    with pytest.raises(ValueError, match=r'Its checkpoint is generator="tiny"\.$') as caught:
        make(real, tmp_path / "set", augmentation=VARIANTS["embed-mixup"])
    assert "`augmentation` is none there, but EmbedMixup(alpha=1.0) here" in str(caught.value)


def test_the_command_that_makes_a_set_has_absolute_paths(real, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "tiny").mkdir()  # which isn't meant
    monkeypatch.chdir(tmp_path)
    command = Request(dataset=real, root="set", generator="model").command()
    assert f"--root {tmp_path / 'set'}" in command and f"--generator {tmp_path / 'model'}" in command
    assert "--generator tiny" in Request(dataset=real, root="set", generator="tiny").command()
    assert "'--prompt=--{}'" in Request(dataset=real, root="set", prompt="--{}").command()


def test_a_root_that_cannot_be_is_not_about_room(real, tmp_path):
    (tmp_path / "file").write_text("")
    request = Request(dataset=real, root=tmp_path / "file" / "set", generator=FakeGenerator())
    with pytest.raises(OSError, match=r"Not a directory\. Allow writing, or choose another one") as caught:
        Job(request, write=True, load=None)
    assert "bytes" not in str(caught.value)


def test_a_batch_is_no_larger_than_64_or_the_set(real, tmp_path):
    generator = FakeGenerator()
    assert len(make(real, tmp_path / "set", generator=generator, batch_size=np.int64(10**6))) == 4
    assert generator.batches == [64]


def test_warnings_point_at_the_line_of_the_user(tmp_path):
    """However deep in the package what they are about is found."""
    paint_folder(tmp_path / "real", {"n01440764": 2, "lonely": 1})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        make(ImageFolder(tmp_path / "real"), tmp_path / "set")
    found = [str(warning.message) for warning in seen]
    for part in ("hold numbers that mean nothing in a prompt", "nothing to mix it with"):
        assert any(part in text for text in found), found
    assert {warning.filename for warning in seen} == {__file__}
