"""The directory of images: one set, whole images, and whatever may happen to it."""

import errno
import multiprocessing
import os
import pickle
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.datasets import ImageFolder

from torch_augcond.plan import make_plan
from torch_augcond.plan.recipe import Settings
from torch_augcond.store import Store, escape_class
from torch_augcond.store.disk import TEMP_PREFIX, publish, temp_path
from torch_augcond.store.imagefile import check, encode

SETTINGS = Settings(
    augmentation=[{"name": "EmbedCutMix", "alpha": 1.0}], num_sources=2, checkpoint="fake@1", image_size=8,
    guidance_scale=2.0, num_inference_steps=3, noise_level=0, seed=0, scheme="per-class", prompt="a photo of a {}",
)  # fmt: skip
CLASSES = {0: "cat", 1: "../dog", 2: "CON"}


def plan_of(num: int = 4, contents: str = "abcdef", settings: Settings = SETTINGS):
    """Two real images a class; each letter of ``contents`` stands for what one of them holds."""
    labels = np.repeat(list(CLASSES), len(contents) // 3)
    prompts = {name: f"a photo of a {name}" for name in CLASSES.values()}
    return make_plan(settings, labels, [c * 32 for c in contents], CLASSES, prompts, num_per_class=num)


def noise(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def fill(store: Store, plan, seed: int = 0) -> None:
    store.write_many(list(plan), noise(len(plan), seed), [{"lam": 0.5}] * len(plan))


def files(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def problems(store: Store, **options) -> dict[str, str]:
    return {path.name: reason for path, reason in store.verify(**options) if reason}


@pytest.fixture
def plan():
    return plan_of()


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "set")
    store.claim(SETTINGS)
    return store


@pytest.fixture
def full(store, plan):
    fill(store, plan)
    return store


def test_root_is_a_plain_image_folder(full, plan):
    full.record_failure(plan[0], "why")
    full.embeddings("fake@1").put({"a": torch.ones(4)})
    with full.digest_cache() as cache:
        cache["/a", 1, 2] = "0" * 32
    (full.root / (TEMP_PREFIX + "x")).write_bytes(b"")
    folder = ImageFolder(full.root)
    assert folder.classes == sorted(map(escape_class, CLASSES.values()))
    assert sorted(path for path, _ in folder.samples) == sorted(str(full.path(r.class_name, r.key)) for r in plan)
    assert all(image.size == (8, 8) for image, _ in folder)


def test_record_holds_the_recipe_and_what_was_given(full, plan):
    recipe = plan[5]
    record = check(full.path(recipe.class_name, recipe.key), recipe.key)
    for name in ("key", "class_name", "prompt", "ordinal", "seed"):
        assert record[name] == getattr(recipe, name)
    assert record["digests"] == list(recipe.digests) and record["lam"] == 0.5


def test_present_tells_what_is_there(store, plan):
    assert not store.present(plan).any()
    store.write(plan[3], noise(1)[0], {})
    fill(store, [plan[7], plan[8]])
    assert np.flatnonzero(store.present(plan)).tolist() == [3, 7, 8]
    assert not Store(store.root.with_name("absent")).present(plan).any()
    assert store.present(plan_of(0)).shape == (0,)


def test_large_images_are_jpeg(tmp_path):
    store, plan = Store(tmp_path / "set"), plan_of(settings=replace(SETTINGS, image_size=768))
    store.claim(plan.settings)
    assert store.write(plan[0], noise(1)[0], {}).suffix == ".jpg"
    assert store.present(plan)[0] and not problems(store)


def test_store_pickles_small(full, plan):
    assert len(pickle.dumps(full)) < 2000
    assert pickle.loads(pickle.dumps(full)).present(plan).all()


class PlanOfNothing:
    """Keys and classes, without a source."""

    settings = SETTINGS

    def __init__(self, keys, rows):
        self.keys, self._rows = keys, rows

    def by_class(self):
        return iter(self._rows)

    def __len__(self):
        return len(self.keys)


@pytest.mark.parametrize("size", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_scanning_takes_microseconds_an_image(store, size):
    keys = np.random.default_rng(0).integers(0, 256, (size, 16), np.uint8)
    for start in range(0, size, 2000):
        (store.root / f"class {start}").mkdir()
        for key in keys[start : start + 1000]:
            (store.root / f"class {start}" / f"{key.tobytes().hex()}.png").touch()
    rows = [(f"class {start}", slice(start, start + 2000)) for start in range(0, size, 2000)]
    plan = PlanOfNothing(keys, rows)
    start = time.process_time()
    present = store.present(plan)
    assert time.process_time() - start < 0.1 + 15e-6 * size  # 1.28 million in 20 s
    assert np.array_equal(present, np.arange(size) % 2000 < 1000)


def test_claim_twice_is_one_set_and_another_is_refused(full):
    before = files(full.root)
    Store(str(full.root)).claim(SETTINGS)
    assert files(full.root) == before
    with pytest.raises(ValueError, match=r"must hold one set.*`guidance_scale` is 2.0 there, but 10.0 here") as error:
        full.claim(replace(SETTINGS, guidance_scale=10.0))
    assert "\n" not in str(error.value)


def test_claim_by_many_at_once_has_one_winner(tmp_path):
    def claim(seed):
        barrier.wait()
        try:
            Store(tmp_path / "set").claim(replace(SETTINGS, seed=seed))
            winners.append(seed)
        except ValueError as error:
            refused.append("`seed` is" in str(error))

    barrier, winners, refused = threading.Barrier(8), [], []
    threads = [threading.Thread(target=claim, args=(seed,)) for seed in range(8)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert winners == [Store(tmp_path / "set").recorded()["seed"]] and refused == [True] * 7


def test_folder_of_real_images_is_never_taken_for_a_set(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "IMG_0001.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="`root` must be an empty folder or a set made by this package.*IMG_0001.jpg"):
        Store(tmp_path).claim(SETTINGS)
    assert list(files(tmp_path)) == ["cat/IMG_0001.jpg"]


def test_damaged_record_is_refused_then_restored(full):
    path = full.root / ".augcond.json"
    path.write_text(path.read_text().replace("2.0", "3.0"))
    with pytest.raises(ValueError, match=r"\.augcond\.json is damaged: its digest.*verify` sets it aside"):
        full.claim(SETTINGS)
    assert list(problems(full)) == [path.name]
    full.claim(SETTINGS)
    assert full.recorded() == SETTINGS.as_dict()


def test_bad_roots(tmp_path):
    with pytest.raises(TypeError, match="`root` must be a path, but got int"):
        Store(3)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="`root` must be a folder, but .*file is a file"):
        Store(tmp_path / "file").claim(SETTINGS)
    with pytest.raises(FileNotFoundError, match="holds no set of images"):
        Store(tmp_path).path("cat", "0" * 32)


def test_unwritable_root_is_one_clear_error(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(PermissionError, match=r"`root` must be a folder that can be written.*set'"):
        Store(tmp_path / "set").claim(SETTINGS)


@pytest.mark.parametrize("step", ["fsync", "replace", "mkdir"])
def test_full_disk_loses_nothing_and_leaves_nothing_half(store, plan, monkeypatch, step):
    original, calls = getattr(os, step), []

    def fail_later(*args, **options):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail_later)
        with pytest.raises(OSError, match=r"bytes needed, [\d,]+ bytes and [\d,]+ files free") as error:
            fill(store, plan)
    assert error.value.errno == errno.ENOSPC
    assert not any(name.startswith(TEMP_PREFIX) for name in os.listdir(store.root))
    assert not problems(store, repair=False) and not store.present(plan).all()
    fill(store, plan)
    assert store.present(plan).all() and not problems(store)


def _write_all(root, seed):
    plan = plan_of(20)
    for _ in range(3):
        fill(Store(root), plan, seed)


def test_processes_writing_the_same_images_never_tear_one(store):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_all, args=(store.root, seed)) for seed in range(3)]
    [worker.start() for worker in workers]
    while any(worker.is_alive() for worker in workers):
        assert not problems(store, repair=True)  # and its clean-up disturbs no writer
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert store.present(plan_of(20)).all() and not problems(store)
    assert not any(name.startswith(TEMP_PREFIX) for name in os.listdir(store.root))
    assert not store.aside.exists()


def test_verify_sets_aside_what_is_damaged_and_nothing_else(full, plan):
    paths = [full.path(recipe.class_name, recipe.key) for recipe in plan]
    whole = files(full.root)
    paths[0].write_bytes(paths[0].read_bytes()[:-20])
    one, other = paths[1].read_bytes(), paths[2].read_bytes()
    paths[1].write_bytes(other), paths[2].write_bytes(one)
    paths[3].rename(paths[-1].parent / paths[3].name)
    (paths[0].parent / "cat.png").write_bytes(b"")
    assert sorted(problems(full, repair=False)) == sorted([*(path.name for path in paths[:4]), "cat.png"])
    found = problems(full)
    assert "does not match" in found[paths[0].name] and "it belongs to class" in found[paths[3].name]
    assert f"it holds image {paths[2].stem}" in found[paths[1].name]
    assert np.flatnonzero(~full.present(plan)).tolist() == [0, 1, 2, 3] and not problems(full)
    assert len(files(full.aside / "corrupt")) == 4 and len(files(full.aside / "foreign")) == 1
    fill(full, plan)
    assert files(full.root) == whole


def test_every_kind_of_file_is_verified(full, plan):
    full.record_failure(plan[0], "why")
    full.embeddings("fake@1").put({"a": torch.ones(4)})
    with full.digest_cache() as cache:
        cache["/a", 1, 2] = "0" * 32
    assert not problems(full)
    for name, whole in files(full.root).items():
        (full.root / name).write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
    assert len(problems(full, repair=False)) == len(files(full.root)) == len(plan) + 4


def test_verify_removes_what_killed_writers_left(full):
    (full.root / "empty").mkdir()
    writer = multiprocessing.get_context("fork").Process(target=_die_while_writing, args=(full.root,))
    writer.start(), writer.join()
    assert len([name for name in os.listdir(full.root) if name.startswith(TEMP_PREFIX)]) == 1
    assert not problems(full)
    assert not any(name.startswith(TEMP_PREFIX) or name == "empty" for name in os.listdir(full.root))


def _die_while_writing(root):
    os.fsync = lambda descriptor: os._exit(9)
    publish(b"half", root / "file", root)


def test_claim_removes_old_temporary_files_only(full):
    old, new = (full.root / (TEMP_PREFIX + name) for name in ("elsewhere-1-old", "elsewhere-1-new"))
    own = temp_path(full.root)
    old.touch(), new.touch(), own.touch()
    os.utime(old, (0, 0))
    full.claim(SETTINGS)
    assert not old.exists() and new.exists() and own.exists()


def test_links_are_never_followed(full, plan, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    record = {"key": "0" * 32, "class_name": "linked", "ordinal": 0}
    (outside / f"{'0' * 32}.png").write_bytes(encode(noise(1)[0], record, "png"))
    (full.root / "linked").symlink_to(outside)
    (full.root / "loop").symlink_to("loop")
    image = full.path(plan[0].class_name, plan[0].key)
    image.rename(outside / image.name), image.symlink_to(outside / image.name)
    (image.parent / "up").symlink_to(full.root)
    before = files(outside)
    assert not full.present(plan)[0]
    with pytest.raises(ValueError, match="a class folder must not be a link"):
        full.write(replace(plan[0], class_name="linked"), noise(1)[0], {})
    assert sorted(problems(full)) == sorted(["linked", "loop", image.name, "up"])
    assert files(outside) == before and not any(path.is_symlink() for path in full.root.rglob("*"))


def test_growth_and_shrinking_make_nothing_stale(full):
    assert full.stale(plan_of(9)) == full.stale(plan_of(1)) == full.stale(plan_of(4)) == []


def test_changed_source_makes_its_images_stale_until_it_comes_back(full, plan):
    whole = files(full.root)
    changed = plan_of(contents="abcde1")
    stale = full.stale(changed)
    gone = set(map(bytes, plan.keys)) - set(map(bytes, changed.keys))
    assert {path.stem for path in stale} == {key.hex() for key in gone} and stale
    for path in stale:
        full.set_aside(path, "stale")
        full.set_aside(path, "stale")  # another process was faster
    assert full.stale(changed) == [] and not problems(full)
    assert full.restore(changed) == 0 and full.restore(plan) == len(stale)
    assert files(full.root) == whole and files(full.aside) == {}


def test_class_without_images_left_is_no_class(full, plan):
    for recipe in plan:
        if recipe.class_name == "cat":
            full.set_aside(full.path("cat", recipe.key), "stale")
    assert "cat" not in ImageFolder(full.root).classes
    assert full.restore(plan) == 4


def test_damaged_image_is_not_restored(full, plan):
    path = full.path(plan[0].class_name, plan[0].key)
    path.write_bytes(b"half")
    full.set_aside(path, "stale")
    assert full.restore(plan) == 0 and not full.present(plan)[0]


def test_set_aside_checks_its_arguments(full, tmp_path):
    with pytest.raises(ValueError, match="`why` must be one of 'stale', 'corrupt', 'foreign', but got '..'"):
        full.set_aside(full.root / "x", "..")
    with pytest.raises(ValueError, match="is not in the subpath"):
        full.set_aside(tmp_path / "elsewhere", "stale")


def test_failures_last_until_success(store, plan):
    store.record_failure(plan[0], "first")
    store.record_failure(plan[1], "no \n pixels \udc80")
    Store(store.root).record_failure(plan[0], "second")
    reasons = {key: failure["reason"] for key, failure in store.failures().items()}
    assert reasons == {plan[0].key: "second", plan[1].key: "no \n pixels \udc80"}
    store.write(plan[0], noise(1)[0], {})
    damaged = max(store.root.glob(".augcond-failures-*"), key=lambda path: path.stat().st_size)
    assert list(store.failures()) == [plan[1].key]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert store.failures() == {} and list(problems(store)) == [damaged.name]
