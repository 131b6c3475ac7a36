"""The measures of generated images, against slow twins and known values, and the program that takes them."""

import csv
import io
import math
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from pipelines import make_pipeline

pytest.importorskip("scipy")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import judges
import measure_natural_unclip as measuring
import metrics

RNG = np.random.default_rng(0)
CONFIG = {"kind": "convnext", "widths": (8, 8, 8, 16), "depths": (1, 1, 1, 1)}


def test_psnr_of_known_errors():
    images = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    targets = images.clone()
    targets[0] += 10
    targets[1] -= 1
    expected = (20 * math.log10(255 / 10) + 20 * math.log10(255)) / 2
    assert metrics.psnr(images, targets) == pytest.approx(expected)


def test_frechet_distance_of_normals_with_known_moments():
    """Rows whose sample moments are exact: |m1 - m2|² + Σ (s1 - s2)² on the diagonal."""
    white = RNG.normal(size=(500, 4))
    white -= white.mean(0)
    white = white @ np.linalg.inv(np.linalg.cholesky(np.cov(white, rowvar=False))).T
    a, b = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 1.5, 0.0])
    assert metrics.frechet_distance(white * a, white * b + [0, 3, 0, 4]) == pytest.approx(25 + 1 + 0 + 1 + 9)
    assert metrics.frechet_distance(white, white) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_is_that_of_the_matrix_square_root():
    x, y = RNG.normal(size=(60, 5)) @ RNG.normal(size=(5, 5)), RNG.normal(size=(40, 5)) ** 2
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(a @ b).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    assert metrics.frechet_distance(torch.from_numpy(x), y) == pytest.approx(expected)


def test_recall_is_that_of_its_definition():
    real, made = RNG.normal(size=(50, 3)), RNG.normal(size=(30, 3)) * 0.5
    reached = 0
    for row in real:
        for i, other in enumerate(made):
            near = sorted(np.linalg.norm(made - other, axis=1)[np.arange(30) != i])
            if np.linalg.norm(row - other) <= near[2]:
                reached += 1
                break
    assert 0 < reached < 50
    assert metrics.recall(real, made, k=3) == reached / 50
    assert metrics.recall(made, made) == 1 and metrics.recall(real + 100, made) == 0


def test_vendi_counts_what_differs():
    rows = np.repeat(np.eye(5), 4, axis=0)
    assert metrics.vendi(rows) == pytest.approx(5)
    assert metrics.vendi(np.ones((7, 3))) == pytest.approx(1)
    features = RNG.normal(size=(9, 4))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    shares = scipy.linalg.eigvalsh(unit @ unit.T / 9).clip(1e-15)
    assert metrics.vendi(features) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))


def test_vendi_within_is_the_mean_over_classes_of_several():
    rows, labels = np.eye(6), np.array([0, 0, 0, 1, 1, 2])
    assert metrics.vendi_within(rows, labels) == pytest.approx((3 + 2) / 2)


def test_nearest_mean_finds_the_class_by_its_direction_from_the_middle():
    features = torch.tensor([[3.0, 1.0], [5.0, 1.0], [1.0, 3.0], [1.0, 4.0], [2.0, 2.0]])
    means = metrics.class_means(features, torch.tensor([0, 0, 1, 1, 2]))
    torch.testing.assert_close(means, torch.tensor([[4.0, 1.0], [1.0, 3.5], [2.0, 2.0]]))
    assert metrics.nearest_mean(features[:4], means).tolist() == [0, 0, 1, 1]


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("judge") / "measure.safetensors"
    judges.save_judge(judges.Judge(**CONFIG, classes=2), CONFIG, ["a thing", "red"], path)
    return path


def test_perceptual_distance_is_that_of_unit_vectors_at_each_place(judge_file):
    judge, _ = judges.load_judge(judge_file)
    first, second = torch.randint(256, (2, 3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert metrics.perceptual_distance(judge, first, first) == 0
    expected = 0.0
    for a, b in zip(*(judge.maps(x.float() / 127.5 - 1) for x in (first, second))):
        cosines = torch.cosine_similarity(a, b, dim=1)
        expected += (2 - 2 * cosines).mean().item()
    assert metrics.perceptual_distance(judge, first, second, batch=2) == pytest.approx(expected, rel=1e-4)


def zipped(path, folders, count):
    """A zip of folders of noisy images of one hue each."""
    with zipfile.ZipFile(path, "w") as archive:
        for hue, folder in enumerate(folders):
            for i in range(count):
                pixels = RNG.integers(0, 60, (64, 64, 3)) + (np.arange(3) == hue % 3) * 180
                file = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(file, "png")
                archive.writestr(f"{folder}/{i:03}.png", file.getvalue())
    return path


def test_base_classes_are_found_by_name_whatever_their_order(tmp_path, judge_file):
    judge, classes = judges.load_judge(judge_file)
    part = measuring.base_part(zipped(tmp_path / "val.zip", ["red", "a_thing"], 4), judge, classes)
    assert part.sources.texts == [["a thing"], ["red"]] and part.known.tolist() == [0, 1]
    turned = measuring.Part("base", part.sources, part.references, judge, torch.tensor([1, 5]))
    own, other = part.classes_of(part.sources.pixels), turned.classes_of(part.sources.pixels)
    assert ((own == 1) == (other == 0)).all() and ((own == 0) == (other == -1)).all()
    assert torch.equal(torch.cat([part.sources.labels, part.references.labels]).bincount(), torch.tensor([4, 4]))
    assert not (part.sources.pixels[:, None] == part.references.pixels).flatten(2).all(2).any()


def test_novel_classes_must_be_new(tmp_path, judge_file):
    judge, classes = judges.load_judge(judge_file)
    path = zipped(tmp_path / "novel.zip", ["train/red", "test/red"], 2)
    with pytest.raises(ValueError, match=r"`--novel` must hold classes .*, but got \['red'\]"):
        measuring.novel_part(path, judge, classes)


def test_the_program_measures_both_parts_and_draws_sheets(tmp_path, judge_file, monkeypatch, capsys):
    folder, val = tmp_path / "pipe", zipped(tmp_path / "val.zip", ["red", "a_thing"], 16)
    novel = zipped(tmp_path / "novel.zip", [f"{s}/{c}" for s in ("train", "test") for c in ("new", "newer", "x")], 8)
    make_pipeline("ddim", size=64).save_pretrained(folder)
    arguments = f"--generator {folder} --judge {judge_file} --base-val {val} --novel {novel} --variants real text-only"
    arguments += f" --count 8 --steps 1 --csv {tmp_path / 'rows.csv'} --sheets {tmp_path / 'sheets'}"
    monkeypatch.setattr(sys, "argv", ["measure", *arguments.split()])
    measuring.main()
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    cases = {row["case"] for row in rows}
    variants = ("(real)", "(reconstructed)", "real", "text-only")
    assert cases == {f"{part} {variant}" for part in ("base", "novel") for variant in variants}
    measured = {row["measure"] for row in rows if row["case"] == "novel real"}
    assert measured == {"agreement", "frechet", "recall", "vendi in class", "time"}
    assert all(math.isfinite(float(row["value"])) for row in rows)
    agreement = [float(row["value"]) for row in rows if (row["case"], row["measure"]) == ("novel (real)", "agreement")]
    assert agreement[0] > 0.9  # three hues, which a random network tells apart
    assert {p.name for p in (tmp_path / "sheets").iterdir()} == {
        "base.png", "novel.png", "base-real-2.png", "base-text-only-2.png", "novel-real-2.png", "novel-text-only-2.png",
    }  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_reconstructions_are_what_decoding_the_means_gives(tmp_path):
    from torch_augcond import load_generator

    make_pipeline(size=64).save_pretrained(tmp_path / "pipe")
    generator = load_generator(tmp_path / "pipe")
    pixels = torch.randint(256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.no_grad():
        latents = generator.pipe.vae.encode(pixels.float() / 127.5 - 1).latent_dist.mode()
        expected = generator.pipe.image_processor.denormalize(generator.pipe.vae.decode(latents).sample) * 255
    made = measuring.reconstructed(generator, pixels, batch=2)
    torch.testing.assert_close(made.float(), expected, rtol=0, atol=0.51)
