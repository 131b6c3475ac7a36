"""What comes out of the caches is what went in, or nothing."""

import errno
import os
import random
import warnings

import pytest
import torch
from safetensors.torch import save_file

from torch_augcond.store import Store, embedding_cache
from torch_augcond.store.disk import TEMP_PREFIX
from torch_augcond.store.embedding_cache import DigestCache, EmbeddingCache, damage

DIGEST = "0123456789abcdef" * 2


def rows(count: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"{seed}-{i}": torch.randn(8, generator=generator) for i in range(count)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_values_come_back_bit_for_bit(tmp_path):
    values = {
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "half": torch.randn(2, 5).half(),
        "bf16": torch.randn(2, 5).bfloat16(),
        "scalar": torch.tensor(3),
        "strided": torch.arange(12).reshape(3, 4).T,
        "a prompt \udc80 🌸": torch.tensor([True, False]),
    }
    EmbeddingCache(tmp_path, "model").put(values)
    found = EmbeddingCache(tmp_path, "model").get([*values, "unknown"])
    assert found.keys() == values.keys()
    for key, value in values.items():
        assert found[key].dtype == value.dtype and found[key].shape == value.shape
        assert torch.equal(found[key].reshape(-1).view(torch.uint8), value.contiguous().reshape(-1).view(torch.uint8))


def test_fingerprints_share_nothing(tmp_path):
    EmbeddingCache(tmp_path, "model").put(rows())
    assert EmbeddingCache(tmp_path, "other").get(list(rows())) == {}


def test_what_others_put_is_found_without_opening_again(tmp_path):
    reader, writer = EmbeddingCache(tmp_path, "model"), EmbeddingCache(tmp_path, "model")
    assert reader.get(["0-0"]) == {}
    writer.put(rows())
    writer.put(rows(seed=1))
    assert equal(reader.get(list(rows() | rows(seed=1))), rows() | rows(seed=1))
    assert len(os.listdir(tmp_path)) == 2


def test_nothing_to_put_leaves_no_file(tmp_path):
    EmbeddingCache(tmp_path, "model").put({})
    assert EmbeddingCache(tmp_path / "absent", "model").get(["a"]) == {}
    assert os.listdir(tmp_path) == []


def test_every_bit_flip_and_truncation_is_found(tmp_path):
    EmbeddingCache(tmp_path, "model").put(rows())
    [path] = tmp_path.iterdir()
    whole, draw = path.read_bytes(), random.Random(0)
    bits = [8 * byte + draw.randrange(8) for byte in range(len(whole))]
    assert damage(path) is None
    for bit in bits:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert damage(path), bit
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = EmbeddingCache(tmp_path, "model").get(list(rows()))
        assert all(torch.equal(rows()[key], value) for key, value in found.items())
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert damage(path), length


def test_damaged_file_is_ignored_with_a_warning_and_made_again(tmp_path):
    cache = EmbeddingCache(tmp_path, "model")
    cache.put(rows())
    [path] = tmp_path.iterdir()
    value = rows()["0-3"].numpy().tobytes()
    path.write_bytes(path.read_bytes().replace(value, value[::-1]))
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .*values do not match.*computed again"):
        assert cache.get(list(rows())) == {}
    cache.put(rows())
    assert equal(cache.get(list(rows())), rows())


@pytest.mark.parametrize("kind", ["html", "link", "names", "dtype", "count", "loop", "folder"])
def test_hostile_files_are_ignored(tmp_path, kind):
    root = tmp_path / "root"
    root.mkdir()
    cache = EmbeddingCache(root, "model")
    path = root / f"{cache.prefix}0.safetensors"
    keys = torch.zeros(2, 16, dtype=torch.uint8)
    values = torch.zeros(2, 8)
    if kind == "html":
        path.write_text("<html>")
    elif kind == "link":
        EmbeddingCache(tmp_path, "model").put(rows())
        path.symlink_to(next(tmp_path.glob(".augcond*")))
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "names":
        save_file({"keys": keys, "values": values}, path)
    elif kind == "dtype":
        save_file({"keys": keys.float(), "digests": keys.clone(), "values": values}, path)
    else:
        save_file({"keys": keys, "digests": keys.clone(), "values": values[:1]}, path)
    with pytest.warns(UserWarning, match="is damaged"):
        assert cache.get(["0-0"]) == {}


def test_full_disk_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="bytes needed"):
        EmbeddingCache(tmp_path, "model").put(rows())
    assert not any(tmp_path.iterdir())


def test_digests_survive(tmp_path):
    with DigestCache(tmp_path) as cache:
        assert cache.get(("/a", 1, 2)) is None
        cache["/a", 1, 2] = DIGEST
        cache["/ü\udc80", 1, 2] = DIGEST[::-1]
    with DigestCache(tmp_path) as cache:
        assert cache["/a", 1, 2] == DIGEST and cache["/ü\udc80", 1, 2] == DIGEST[::-1]
        assert cache.get(("/a", 1, 3)) is None and cache.get(("/a", 12, 2)) is None
        assert len(cache) == len(list(cache)) == 2
    assert len(os.listdir(tmp_path)) == 1  # nothing new, nothing written


def test_digests_survive_an_interruption(tmp_path):
    def interrupted():
        with DigestCache(tmp_path) as cache:
            cache["/a", 1, 2] = DIGEST
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert DigestCache(tmp_path)["/a", 1, 2] == DIGEST


def test_damaged_digests_are_ignored_with_a_warning(tmp_path):
    with DigestCache(tmp_path) as cache:
        cache["/a", 1, 2] = DIGEST
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.warns(UserWarning, match=r"augcond-digests.*is damaged"):
        assert len(DigestCache(tmp_path)) == 0
    assert not path.name.startswith(TEMP_PREFIX)


def test_a_cache_that_may_not_be_read_is_not_taken_for_damaged(tmp_path, monkeypatch):
    """As another user's: safetensors itself says that there is no such file."""
    EmbeddingCache(tmp_path, "fake").put({"a": torch.ones(3)})
    (path,) = tmp_path.iterdir()

    def refuse(path, mode):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(embedding_cache, "open", refuse, raising=False)
        with pytest.raises(PermissionError, match=path.name):
            list(Store(tmp_path).verify())
    assert path.exists() and not damage(path)
