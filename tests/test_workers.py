"""A set in the processes of a DataLoader: the same samples, little to send, and nothing but files behind it."""

import io
import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from fakes import FakeGenerator, ToFloat
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic, samples
from torch_augcond.samples import Samples
from torch_augcond.store import Store

MIB = 2**20


@pytest.fixture
def synthetic(data, tmp_path):
    real = ImageFolder(data, transform=ToFloat())
    return AugConditionedSynthetic(real, root=tmp_path / "set", num_per_class=4, generator=FakeGenerator())


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_every_kind_of_worker_sees_the_same_samples(synthetic, monkeypatch, context, persistent):
    if context not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {context}")
    monkeypatch.setattr(samples, "_INLINE", 3)  # so that this small set goes the way of a large one, too
    alone = list(DataLoader(synthetic, 4))
    count = 2 if context == "fork" or not persistent else 1
    loader = DataLoader(synthetic, 4, num_workers=count, multiprocessing_context=context, persistent_workers=persistent)
    for _ in range(2 if persistent else 1):
        for (images, labels), (other_images, other_labels) in zip(alone, loader, strict=True):
            assert torch.equal(images, other_images) and torch.equal(labels, other_labels)


def large(root, n):
    rng = np.random.default_rng(0)
    folders = {label: f"{root}/class number {label}/" for label in range(1000)}
    return Samples(rng.integers(0, 256, (n, 16), np.uint8), rng.integers(0, 1000, n), folders, ".jpg")


def pickled(value):
    """By pickle itself, and as torch sends it to workers."""
    buffer = io.BytesIO()
    ForkingPickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return pickle.dumps(value), buffer.getvalue()


@pytest.mark.parametrize("n", [9_999, 100_000, pytest.param(1_280_000, marks=pytest.mark.slow)])
def test_pickles_to_less_than_a_mebibyte_whatever_the_size(tmp_path, n):
    tmp_path = tmp_path / "set"
    tmp_path.mkdir()
    original = large(tmp_path, n)
    for data in pickled(original):
        assert len(data) < MIB
        twin = pickle.loads(data)
        assert len(twin) == n and [twin[i] for i in (0, n // 2, -1)] == [original[i] for i in (0, n // 2, -1)]
        assert np.array_equal(twin.keys, original.keys) and np.array_equal(twin.labels, original.labels)
        assert all(len(again) < MIB for again in pickled(twin)), "and from there to the next process"
    assert len(list(tmp_path.iterdir())) == (n > 10_000), "one file, however often it is pickled"
    assert not [reason for _, reason in Store(tmp_path).verify() if reason], "which verify takes for what it is"


def test_the_dataset_itself_is_small_after_it_was_used(synthetic, monkeypatch):
    monkeypatch.setattr(synthetic, "samples", large(synthetic.root, 200_000))
    assert len(synthetic.targets) == 200_000
    for data in pickled(synthetic):
        assert len(data) < MIB and b"FakeGenerator" not in data and b"ImageFolder" not in data
        twin = pickle.loads(data)
        assert twin.targets == synthetic.targets and twin.samples[-1] == synthetic.samples[-1]


def test_where_the_root_can_not_be_written_the_list_itself_is_sent(tmp_path):
    original = large(tmp_path / "gone", 20_000)
    plain, sent = pickled(original)
    assert len(plain) > 20_000 * 24 and len(sent) < MIB, "torch's workers share it even then"
    assert pickle.loads(plain)[-1] == original[-1]


def test_a_list_that_was_changed_is_never_believed(tmp_path):
    data = pickle.dumps(large(tmp_path, 20_000))
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    for changed in (b"\1" + content[1:], content[:-8], content + b"\0" * 24):
        file.write_bytes(changed)
        with pytest.raises(ValueError, match="must hold what its name says, but is damaged.*pickle the set again"):
            pickle.loads(data)
        assert [reason for _, reason in Store(tmp_path).verify(repair=False) if reason]
    file.write_bytes(content)
    assert len(pickle.loads(data)) == 20_000
    file.unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(data)


def test_one_copy_in_memory_for_all_who_read_it(tmp_path):
    twin = pickle.loads(pickle.dumps(large(tmp_path, 20_000)))
    base = twin.keys
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap) and not twin.keys.flags.writeable


@pytest.mark.parametrize("harm", ["remove", "shorten", "falsify"])
def test_an_index_that_is_gone_or_damaged_is_written_again(tmp_path, harm):
    original = large(tmp_path / "set", 20_000)
    (tmp_path / "set").mkdir()
    data = pickle.dumps(original)
    [index] = (tmp_path / "set").iterdir()
    whole = index.read_bytes()
    if harm == "remove":
        index.unlink()
    else:
        index.write_bytes(whole[:-1] if harm == "shorten" else bytes([whole[0] ^ 1]) + whole[1:])
    for again in (original, large(tmp_path / "set", 20_000)):  # known to this process, and not
        assert pickle.dumps(again) == data
        assert index.read_bytes() == whole
        assert pickle.loads(data)[5] == original[5]
