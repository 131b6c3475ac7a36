"""What a generator of one's own returns is checked, and is its own memory: a wrong image is never stored."""

import numpy as np
import pytest
import torch
from fakes import FakeGenerator
from faults import contents, job_of, paint_sources


@pytest.fixture
def real(tmp_path):
    paint_sources(tmp_path / "real")
    return tmp_path / "real"


class Static(FakeGenerator):
    """Returns the same memory each time, as CUDA graphs do."""

    def __init__(self):
        super().__init__()
        self.buffers = {}

    def _in_place(self, name, values):
        buffer = self.buffers.setdefault(name, torch.zeros(64, *values.shape[1:], dtype=values.dtype))
        buffer[: len(values)] = values
        return buffer[: len(values)]

    def encode_images(self, images):
        return self._in_place("embeds", super().encode_images(images))

    def encode_prompts(self, prompts):
        return self._in_place("prompts", super().encode_prompts(prompts))

    def generate(self, *inputs, **options):
        return self._in_place("images", super().generate(*inputs, **options))


def images(root):
    return {name: data for name, data in contents(root).items() if name.endswith(".png")}


@pytest.mark.parametrize("augmentation", ["embed-cutmix", "cutmix"])
def test_a_generator_may_return_the_same_memory_each_time(real, tmp_path, augmentation):
    job_of(real, tmp_path / "static", Static(), augmentation=augmentation).make(batch_size=2)
    job_of(real, tmp_path / "plain", FakeGenerator(), augmentation=augmentation).make(batch_size=2)
    assert images(tmp_path / "static") == images(tmp_path / "plain")


class Odd(FakeGenerator):
    """Passes what one of its methods returns through a function."""

    def __init__(self, method, change):
        super().__init__()
        whole = getattr(self, method)
        setattr(self, method, lambda *inputs, **options: change(whole(*inputs, **options)))


@pytest.mark.parametrize(
    "method, change, error, match",
    [
        ("generate", lambda x: torch.cat([x, x[:1]]), ValueError, r"of shape \(4, 3, 16, 16\), but got .*\(5, 3, 16"),
        ("generate", lambda x: x[:-1], ValueError, r"of shape \(4, 3, 16, 16\), but got .*\(3, 3, 16, 16\)"),
        ("generate", lambda x: x[..., :8], ValueError, r"but got torch.uint8 of shape \(4, 3, 16, 8\)"),
        ("generate", lambda x: x / 255, TypeError, "a uint8 tensor .* but got torch.float32"),
        ("generate", lambda x: x.numpy(), TypeError, "a uint8 tensor .* but got ndarray"),
        ("encode_images", lambda x: None, TypeError, r"floating-point tensor of shape \(\d, 12\), but got NoneType"),
        ("encode_images", lambda x: x[:-1], ValueError, r"of shape \(\d, 12\), but got torch.float32 of shape"),
        (
            "encode_images",
            lambda x: x[:, 1:],
            ValueError,
            r"of shape \(\d, 12\), but got torch.float32 of shape \(\d, 11\)",
        ),
        ("encode_images", np.asarray, TypeError, "but got ndarray"),
        ("encode_prompts", lambda x: x[:-1], ValueError, r"of shape \(1, L, C\), but got"),
        ("encode_prompts", lambda x: x * torch.nan, ValueError, "finite numbers, but got NaN or infinity for 'a photo"),
        ("encode_prompts", list, TypeError, "but got list"),
    ],
)
def test_what_it_returns_is_checked_by_name(real, tmp_path, method, change, error, match):
    job = job_of(real, tmp_path / "set", Odd(method, change), augmentation="real", num_per_class=2)
    with pytest.raises(error, match=f"`generator.{method}` must return .*{match}"):
        job.make(batch_size=4)
    assert not images(tmp_path / "set")


@pytest.mark.parametrize("own, rows", [(np.int64(3), [3, 3, 3, 3]), (5000, [64])])
def test_its_own_batch_size_is_any_int_and_no_more_rows_than_needed(real, tmp_path, own, rows):
    generator = FakeGenerator()
    generator.batch_size = own
    assert job_of(real, tmp_path / "set", generator).make().made == 12
    assert generator.batches == rows


class Padding(FakeGenerator):
    """Pads prompts to the longest of a call."""

    def encode_prompts(self, prompts):
        longest = max(len(prompt.split()) for prompt in prompts)
        rows = super().encode_prompts(prompts)
        return rows.repeat(1, longest, 1)


def test_prompts_are_encoded_alone_and_have_one_length(real, tmp_path):
    prompt, found = {"cat": "a cat", "dog": "a great dane"}, []
    for counts in ({"cat": 6}, {"dog": 6}, {"cat": 6, "dog": 6}):
        job = job_of(real, tmp_path / "set", Padding(), num_per_class=counts, prompt=prompt)
        job.make(batch_size=6)
        found.append(images(tmp_path / "set"))
    job_of(real, tmp_path / "other", Padding(), prompt=prompt).make(batch_size=6)
    assert images(tmp_path / "other") == found[-1]
    with pytest.raises(
        ValueError, match="must return one length L for all prompts, but got 8 and 12. Let its tokenizer"
    ):
        job_of(real, tmp_path / "mixed", Padding(), prompt=prompt).make(batch_size=4)
