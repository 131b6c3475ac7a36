"""Whatever happens to a file of a set is found, never shown to a user, and mended by generating again."""

import random
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from commands import start
from faults import contents, job_of, note_digest, paint_sources, problems
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic
from torch_augcond.store import Store
from torch_augcond.store.imagefile import Corrupt, load_image, read_image
from torch_augcond.store.scan import key_of

KINDS = {
    "png": "*/*.png",
    "jpg": "*/*.jpg",
    "embeddings": ".augcond-embeds-*",
    "digests": ".augcond-digests-*",
    "failures": ".augcond-failures-*",
    "settings": ".augcond.json",
    "stock": ".augcond-stock-*",
}


@pytest.fixture(params=KINDS)
def damageable(request, tmp_path):
    """A set with a file of each kind, its whole contents, and the file to damage."""
    paint_sources(tmp_path / "real")
    job = job_of(tmp_path / "real", tmp_path / "set", num_per_class=1)
    job.make()
    if request.param == "jpg":  # its images are larger; what they hold is no matter
        job.store = Store(tmp_path / "jpg")
        settings = replace(job.settings, image_size=768)
        job.store.claim(settings)
        pixels = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
        recipe = replace(job.plan[0], key=key_of(asdict(job.plan[0]), settings))
        job.store.write(recipe, pixels[0], {"drawn": {"lam": 0.25}})
    job.store.record_failure(job.plan[0], "it was made later")
    note_digest(job.store)
    assert not problems(job.store.root)
    return job.store.root, min(job.store.root.glob(KINDS[request.param]))


def shown(path: Path) -> bool:
    """Whether a user gets to see an image of this file; if not, why is one line."""
    for read in (lambda: load_image(str(path)), lambda: read_image(path, path.stem)):
        with suppress(Corrupt):
            read()
            return True
    with pytest.raises(Corrupt, match=f"{path} is damaged: [^\n]*sets it aside"):
        load_image(str(path))
    return False


def damages(whole: bytes):
    draw = random.Random(0)
    for bit in draw.sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)
    for length in (0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        yield whole[:length]


def test_every_damage_is_found_and_none_is_shown(damageable):
    root, path = damageable
    whole, found = path.read_bytes(), 0
    for damaged in damages(whole):
        path.unlink()  # overwriting would wait for the disk
        path.write_bytes(damaged)
        found += path.name in problems(root, repair=False)
        assert path.parent == root or not shown(path)
    assert found == 206
    path.write_bytes(whole)
    assert not problems(root) and (path.parent == root or shown(path))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "jpg"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_generating_again_mends_it(tmp_path, kind, damage):
    paint_sources(tmp_path / "real")
    job = job_of(tmp_path / "real", tmp_path / "set")
    job.make(batch_size=4)
    root, whole = tmp_path / "set", contents(tmp_path / "set")
    job.store.record_failure(job.plan[0], "made later")
    note_digest(job.store)
    path = min(root.glob(KINDS[kind]))
    data = path.read_bytes()
    path.unlink() if damage == "remove" else path.write_bytes(data[:-9] + data[-8:] if damage == "cut" else data[::-1])
    found = problems(root)
    # What only saves time is not missed.
    assert list(found) == ([] if damage == "remove" and kind != "png" else [path.name])
    assert not path.exists() and not problems(root).keys() - {path.name}
    job_of(tmp_path / "real", root).make(batch_size=4)
    assert contents(root) == whole and not problems(root)


def test_a_dataset_never_shows_a_damaged_image(tmp_path):
    paint_sources(tmp_path / "real")
    job = job_of(tmp_path / "real", tmp_path / "set")
    job.make()
    real = ImageFolder(tmp_path / "real")
    options = {"num_per_class": 6, "generator": job.generator, "root": tmp_path / "set", "generate": False}
    synthetic = AugConditionedSynthetic(real, **options)
    paths = [Path(path) for path, _ in synthetic.samples]
    flipped = bytearray(paths[0].read_bytes())
    flipped[-40] ^= 1
    paths[0].write_bytes(flipped)
    paths[2].write_bytes(paths[1].read_bytes())
    paths[3].unlink()
    for index, error in ((0, Corrupt), (2, Corrupt), (3, FileNotFoundError)):
        with pytest.raises(error, match=str(paths[index])):
            synthetic[index]
    assert synthetic[1][1] == 0
    with pytest.raises(FileNotFoundError, match="1 of 12 synthetic images are missing"):
        AugConditionedSynthetic(real, **options)
    problems(tmp_path / "set")
    assert len(AugConditionedSynthetic(real, **options | {"generate": True})) == 12


def test_an_image_in_another_class_is_made_again_and_taken_out(tmp_path):
    """Moved by hand, it would be shown with a wrong label."""
    paint_sources(tmp_path / "real")
    job_of(tmp_path / "real", tmp_path / "set").make()
    whole = contents(tmp_path / "set")
    victim = min((tmp_path / "set" / "cat").iterdir())
    victim.rename(tmp_path / "set" / "dog" / victim.name)
    assert job_of(tmp_path / "real", tmp_path / "set").make().made == 1
    assert contents(tmp_path / "set") == whole


def test_a_set_without_its_record_is_not_taken_over_by_another(tmp_path):
    paint_sources(tmp_path / "real")
    job_of(tmp_path / "real", tmp_path / "set").make()
    whole = contents(tmp_path / "set")
    (tmp_path / "set" / ".augcond.json").unlink()
    with pytest.raises(ValueError, match="made with another configuration: `seed` is 0 there, but 1 here"):
        job_of(tmp_path / "real", tmp_path / "set", seed=1)
    job_of(tmp_path / "real", tmp_path / "set").make()
    assert contents(tmp_path / "set") == whole


def test_the_real_commands_find_set_aside_and_mend(tmp_path):
    """One file of each kind is damaged, one image is gone, one is no image, one hides."""
    paint_sources(tmp_path / "real")
    root = tmp_path / "set"
    job = job_of(tmp_path / "real", root)
    job.make()
    whole = contents(root)
    job.store.record_failure(job.plan[0], "it was made later")
    note_digest(job.store)
    for kind in sorted(KINDS.keys() - {"jpg", "stock"}):
        path = min(root.glob(KINDS[kind]))
        path.write_bytes(path.read_bytes()[:-5])
    max((root / "dog").iterdir()).unlink()
    (root / "dog" / "notes.txt").write_text("mine")
    (root / "dog" / "._0.png").write_bytes(b"as macOS leaves them")
    verify = start("verify", root, "--full")
    out, err = verify.communicate(timeout=120)
    reports = [line for line in out.splitlines() if line.startswith(str(root) + "/")]
    assert verify.returncode == 1 and not err and len(reports) == 8, out + err
    assert "6 damaged or gone, 2 foreign" in out and str(tmp_path / "set.aside" / "foreign") in out
    aside = [path for path in (tmp_path / "set.aside" / "corrupt").rglob("*") if path.is_file()]
    foreign = sorted((tmp_path / "set.aside" / "foreign" / "dog").iterdir())
    assert len(aside) == 5 and [path.name for path in foreign] == ["._0.png", "notes.txt"]
    assert foreign[1].read_text() == "mine"
    generate = start("generate", tmp_path / "real", "--root", root, "--num-per-class", 6, "--generator", "fake-16-12")
    out, err = generate.communicate(timeout=120)
    assert generate.returncode == 0 and "2 images made, 10 already there, 0 failed" in out, out + err
    assert contents(root) == whole and not problems(root)
