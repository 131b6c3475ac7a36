"""Files that somebody crafted: refused, never run, never followed, and every scan ends."""

import json
import os
import pickle
import time
import warnings
from pathlib import Path

import pytest
import torch
from faults import contents, job_of, paint_sources, problems
from safetensors.torch import save
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic
from torch_augcond.cli.export import export_metadata
from torch_augcond.progress import silent
from torch_augcond.store import Store
from torch_augcond.store.embedding_cache import DigestCache, EmbeddingCache


def safetensors(header, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(dtype="U8", shape=(2, 16), offsets=(0, 32)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = {"keys": entry(), "digests": entry(offsets=(32, 64)), "values": entry("F32", (2, 4), (64, 96))}
ROWS = torch.zeros(2, 16, dtype=torch.uint8)
CRAFTED = {
    "empty": b"",
    "eight zeros": bytes(8),
    "header of 2**63 bytes": safetensors(GOOD, bytes(96), 2**63),
    "header of 90 MB": safetensors(b"{" + b" " * 90_000_000 + b"}"),
    "header beyond the end": safetensors(GOOD, b"", 10_000),
    "header is no JSON": safetensors(b"{" * 100, bytes(96)),
    "header is no UTF-8": safetensors(b'{"\xff\xfe": 1}', bytes(96)),
    "header of 100,000 brackets": safetensors(b"[" * 100_000, bytes(96)),
    "overlapping offsets": safetensors(GOOD | {"values": entry("F32", (2, 4), (32, 64))}, bytes(64)),
    "offsets backwards": safetensors(GOOD | {"values": entry("F32", (2, 4), (96, 64))}, bytes(96)),
    "negative offsets": safetensors(GOOD | {"values": entry("F32", (2, 4), (-32, 0))}, bytes(96)),
    "offsets beyond the end": safetensors(GOOD, bytes(80)),
    "bytes that belong to nothing": safetensors(GOOD, bytes(200)),
    "negative shape": safetensors(GOOD | {"values": entry("F32", (-2, -4), (64, 96))}, bytes(96)),
    "shape of 2**64 elements": safetensors(GOOD | {"values": entry("F32", (2**32, 2**32), (64, 96))}, bytes(96)),
    "unknown dtype": safetensors(GOOD | {"values": entry("PICKLE", (2, 4), (64, 96))}, bytes(96)),
    "no values": save({"keys": ROWS, "digests": ROWS.clone()}),
    "keys of another form": save({"keys": ROWS.float(), "digests": ROWS.clone(), "values": torch.zeros(2, 4)}),
    "fewer values than keys": save({"keys": ROWS, "digests": ROWS.clone(), "values": torch.zeros(1, 4)}),
    "values that are one number": save({"keys": ROWS, "digests": ROWS.clone(), "values": torch.tensor(1.0)}),
    "wrong digests": save({"keys": ROWS, "digests": ROWS.clone(), "values": torch.zeros(2, 4)}),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_safetensors_are_refused(tmp_path, name):
    paint_sources(tmp_path / "real")
    job = job_of(tmp_path / "real", tmp_path / "set", num_per_class=1)
    cache = EmbeddingCache(job.store.root, job.generator.fingerprint)
    crafted = [f"{prefix}0.safetensors" for prefix in (cache.prefix, DigestCache.prefix)]
    for file in crafted:
        (job.store.root / file).write_bytes(CRAFTED[name])
    started = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cache.get(["a"]) == {} and len(DigestCache(job.store.root)) == 0
        assert job_of(tmp_path / "real", tmp_path / "set", num_per_class=1).make().made == 2
    if name != "wrong digests":  # of rows that nobody asks for
        assert sum("is damaged" in str(warning.message) for warning in caught) >= 2
    assert sorted(problems(job.store.root)) == sorted(crafted)
    assert time.process_time() - started < 5


def test_a_cache_file_of_a_terabyte_is_not_read(tmp_path):
    """A sparse one costs nobody a disk."""
    path = tmp_path / f"{EmbeddingCache(tmp_path, 'x').prefix}0.safetensors"
    rows = 1 << 30
    ends = [(16 * rows * i, 16 * rows * (i + 1)) for i in range(3)]
    header = {n: entry("U8", (rows, 16), end) for n, end in zip(("keys", "digests", "values"), ends, strict=True)}
    path.write_bytes(safetensors(header))
    os.truncate(path, path.stat().st_size + 48 * rows)
    with pytest.warns(UserWarning, match="more than the"):
        assert EmbeddingCache(tmp_path, "x").get(["a"]) == {}


class Canary:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickles_are_never_loaded(tmp_path):
    paint_sources(tmp_path / "real")
    job = job_of(tmp_path / "real", tmp_path / "set")
    job.make()
    whole, canary = contents(job.store.root), tmp_path / "sung"
    song = pickle.dumps(Canary(canary))
    pickle.loads(song)
    assert canary.exists()  # that it can sing
    canary.unlink()
    torch.save(Canary(canary), tmp_path / "torch")
    names = [".augcond-embeds-0.safetensors", ".augcond-digests-0.safetensors", ".augcond-failures-0.jsonl"]
    names += [".augcond-stock-0", f"{EmbeddingCache(job.store.root, job.generator.fingerprint).prefix}0.safetensors"]
    names += ["cat/weights.pt", "cat/" + "0" * 32 + ".png", "dog/" + "1" * 32 + ".jpg", ".augcond-tmp-x-turn-0"]
    for turn, name in enumerate(names):
        (job.store.root / name).write_bytes([song, (tmp_path / "torch").read_bytes()][turn % 2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = job_of(tmp_path / "real", tmp_path / "set")
        assert again.make().made == 0 and len(again.store.failures()) == 0
    assert len(problems(job.store.root)) >= 5
    export_metadata(Store(job.store.root), silent)
    assert not canary.exists()
    (job.store.root / "metadata.jsonl").unlink()
    left = [path.unlink() for path in job.store.root.glob(".augcond-tmp-*")]
    assert contents(job.store.root).keys() == whole.keys() and len(left) == 1


def test_links_are_not_followed_and_loops_end(tmp_path):
    """Out of the root, onto itself, in circles: of folders, images and every kind of metadata."""
    paint_sources(tmp_path / "real")
    root, outside = tmp_path / "set", tmp_path / "outside"
    job = job_of(tmp_path / "real", root)
    job.make()
    whole = contents(root)
    outside.mkdir()
    (outside / "secret").write_text("not yours")
    image = min((root / "cat").iterdir())
    image.rename(outside / image.name)
    image.symlink_to(outside / image.name)
    links = {
        root / "loop": "loop", root / "up": "..", root / "all": "/", root / "cat" / "in": "../cat",
        root / "cat" / ("0" * 32 + ".png"): str(outside / "secret"), root / ".hidden": "/",
        root / ".augcond-failures-0.jsonl": str(outside / "secret"),
        root / ".augcond-digests-0.safetensors": "/dev/zero",
        root / ".augcond-tmp-elsewhere-1-turn-0": "/dev/zero", root / "metadata.jsonl": str(outside / "secret"),
    }  # fmt: skip
    for link, target in links.items():
        link.symlink_to(target)
    min(root.glob(".augcond-stock-*")).unlink()
    (root / ".augcond-stock-0").symlink_to(outside / "secret")
    os.mkfifo(root / "cat" / ("2" * 32 + ".png"))
    os.mkfifo(root / ".augcond-digests-1.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert job_of(tmp_path / "real", root).make().made == 1
        options = {"num_per_class": 6, "generator": job.generator, "root": root, "generate": False}
        assert len(AugConditionedSynthetic(ImageFolder(tmp_path / "real"), **options)) == 12
    export_metadata(Store(root), silent)
    problems(root)
    assert (outside / "secret").read_text() == "not yours" and len(list(outside.iterdir())) == 2
    assert [path for path in root.rglob("*") if path.is_symlink() and "tmp" not in path.name] == []
    (root / "metadata.jsonl").unlink()
    after = {name: data for name, data in contents(root).items() if not name.startswith(".augcond-tmp-")}
    assert after == whole


def test_a_settings_file_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / ".augcond.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"\.augcond\.json is damaged: it is not a regular file"):
        Store(tmp_path / "set").recorded()


@pytest.mark.parametrize("settings", [{}, {"seed": 0}, None, [], "text", {"__class__": "os.system"}])
def test_settings_that_are_none_are_refused(tmp_path, settings):
    from torch_augcond.store.disk import seal

    paint_sources(tmp_path / "real")
    (tmp_path / "set").mkdir()
    record = seal({"format": 1, "settings": settings}, indent=2)
    (tmp_path / "set" / ".augcond.json").write_bytes(record)
    with pytest.raises(ValueError, match="is not|is damaged"):
        job_of(tmp_path / "real", tmp_path / "set")
