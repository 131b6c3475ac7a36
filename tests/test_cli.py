"""The command line: what it makes, says and returns."""

import json
import re
import subprocess
import sys
from functools import reduce

import numpy as np
import pytest
from commands import COUNTS, run
from fakes import paint, paint_folder
from PIL import Image
from torchvision.datasets import ImageFolder

from torch_augcond import VARIANTS, AugConditionedSynthetic
from torch_augcond.cli import main
from torch_augcond.job import duration

COMMANDS = ["generate", "status", "verify", "preview", "export", "demo"]


def test_generate_makes_a_set_and_says_so(fake, data, tmp_path, capsys):
    argv = ["generate", data, "--root", tmp_path / "set", "--num-per-class", 4, "--augmentation", "real"]
    code, out, err = run(capsys, *argv)
    assert (code, err) == (0, "") and COUNTS.search(out).groups() == ("8", "0", "0") and str(tmp_path / "set") in out
    assert len(ImageFolder(tmp_path / "set")) == 8
    assert fake.loaded == [("sd21-unclip", {"device": None, "dtype": None})]
    code, out, err = run(capsys, *argv)
    assert (code, COUNTS.search(out).groups()) == (0, ("0", "8", "0"))


def test_every_option_arrives(fake, data, tmp_path, capsys):
    (tmp_path / "names.json").write_text(json.dumps({"cat": "tabby"}))
    options = ["--prompt", "the {}", "--class-names", tmp_path / "names.json", "--guidance-scale", 3.5, "--seed", 9]
    options += ["--num-inference-steps", 7, "--noise-level", 5, "--fill-to", 4, "--batch-size", 3, "--dtype", "float32"]
    assert run(capsys, "generate", data, "--root", tmp_path / "set", "--generator", "x/y", *options)[0] == 0
    settings = {"guidance_scale": 3.5, "seed": 9, "num_inference_steps": 7, "noise_level": 5}
    synthetic = AugConditionedSynthetic(
        ImageFolder(data), generator=fake, root=tmp_path / "set", fill_to=4, prompt="the {}",
        class_names={"cat": "tabby"}, generate=False, **settings,
    )  # fmt: skip
    assert synthetic.targets == [0, 1, 1] and synthetic.provenance(0)["prompt"] == "the tabby"
    assert set(fake.batches) == {3} and fake.loaded[0][0] == "x/y"
    assert str(fake.loaded[0][1]["dtype"]) == "torch.float32"


def test_the_command_that_the_dataset_names_does_it(fake, data, tmp_path, capsys):
    import shlex

    want = {"num_per_class": 3, "guidance_scale": 4.0, "prompt": "the {}", "root": tmp_path / "a set"}
    with pytest.raises(FileNotFoundError, match="6 of 6 synthetic images are missing") as error:
        AugConditionedSynthetic(ImageFolder(data), generate=False, **want)
    program, *argv = shlex.split(str(error.value).partition("Make them with: ")[2])
    assert program == "torch-augcond" and run(capsys, *argv)[0] == 0
    assert len(AugConditionedSynthetic(ImageFolder(data), generate=False, **want)) == 6


def test_options_of_loading_are_compared_with_the_set(data, tmp_path, capsys):
    """Also where nothing is left to be made; and no command is named that would be refused."""
    argv = ["generate", data, "--root", tmp_path / "set", "--generator", "tiny", "--num-inference-steps", 1]
    assert run(capsys, *argv)[0] == 0 == run(capsys, *argv)[0]
    code, _, err = run(capsys, *argv, "--scheduler", "dpmpp")
    assert code == 1 and "was made with another configuration: `checkpoint`" in err
    argv[3] = tmp_path / "other"
    assert run(capsys, *argv, "--scheduler", "dpmpp")[0] == 0 == run(capsys, *argv, "--scheduler", "dpmpp")[0]
    out = run(capsys, "status", *argv[1:], "--num-per-image", 2)[1]
    assert "to make   run `torch-augcond generate` with the options that the set was made with" in out


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_closed_streams_are_no_error(data, tmp_path, closed):
    command = f"{sys.executable} -m torch_augcond verify {tmp_path} {closed}"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_the_log_tells_whether_it_compiles(data, tmp_path, capsys):
    argv = ["generate", data, "--root", tmp_path / "set", "--generator", "tiny", "--num-inference-steps", 1]
    *_, err = run(capsys, *argv)
    assert "torch-augcond generate: 5 images on cpu: compilation off (compile='auto')\n" in err


def test_a_class_that_cannot_be_read_is_no_success(fake, data, tmp_path, capsys):
    paint_folder(data, {"rare": 1})
    (data / "rare" / "0.png").unlink()
    (data / "rare" / "0.png").symlink_to(tmp_path / "not mounted")
    argv = ["generate", data, "--root", tmp_path / "set", "--num-per-class", 2, "--max-failures", 0.5]
    code, out, _ = run(capsys, *argv)
    assert code == 3 and "None of the real images of class 'rare' can be read" in out


def test_preview_writes_nothing_into_a_folder_that_a_class_links_to(tmp_path, capsys):
    photos = paint_folder(tmp_path / "photos", {"rose": 2, "lily": 2})
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "rose").symlink_to(photos / "rose")
    (tmp_path / "train" / "lily").symlink_to(photos / "lily")
    out = photos / "rose" / "sheet.png"
    assert main(["preview", str(tmp_path / "train"), "--generator", "tiny", "--out", str(out)]) == 2
    assert "--out must lie outside of the real images" in capsys.readouterr().err
    assert not out.exists()


def test_the_parent_of_the_data_is_not_taken_in_silence(fake, data, tmp_path_factory, capsys):
    root, deep = tmp_path_factory.mktemp("sets"), tmp_path_factory.mktemp("deep")
    *_, err = run(capsys, "generate", data.parent, "--root", root / "parent", "--num-per-class", 2)
    assert "hold folders only ('real'): is it the parent of what was meant?" in err
    with pytest.warns(UserWarning, match="is it the parent of what was meant"):
        AugConditionedSynthetic(ImageFolder(data.parent), generator=fake, root=root / "parent", num_per_class=2)
    paint_folder(deep, {"cat/images": 2, "dog/images": 2})  # as in Tiny ImageNet
    assert run(capsys, "generate", deep, "--root", root / "deep")[2] == ""


@pytest.mark.parametrize("out", ["x.jpg", "folder.png"])
def test_a_sheet_is_a_png_file(fake, data, tmp_path, capsys, out):
    (tmp_path / "folder.png").mkdir()
    code, _, err = run(capsys, "preview", data, "--out", tmp_path / out)
    assert code == 2 and "--out must be a file called *.png" in err and not fake.loaded


def test_shards_make_a_set_between_them(fake, data, tmp_path, capsys, monkeypatch):
    argv = ["generate", data, "--root", tmp_path / "set", "--num-per-class", 10]
    _, out, err = run(capsys, *argv, "--shard", "1/3")
    made = int(COUNTS.search(out)[1])
    assert err == "This is share 1 of 3.\n"
    assert f"{20 - made} of the set's 20 images are left to the other shares.\n" in out
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    _, out, err = run(capsys, *argv)
    made += int(COUNTS.search(out)[1])
    assert err == "This is share 0 of 3, as the environment says (--shard 0/1 makes all).\n"
    monkeypatch.delenv("RANK")
    for name, value in {"ID": 7, "MIN": 5, "COUNT": 3, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    made += int(COUNTS.search(run(capsys, *argv)[1])[1])
    assert made == len(ImageFolder(tmp_path / "set")) == 20 == len(set(fake.keys))


def test_verify_sets_damaged_files_aside(fake, data, tmp_path, capsys):
    root = tmp_path / "set"
    run(capsys, "generate", data, "--root", root)
    assert run(capsys, "verify", root)[0] == run(capsys, "verify", root, "--full")[0] == 0
    victim = next((root / "cat").iterdir())
    victim.write_bytes(victim.read_bytes()[:-30])
    code, out, _ = run(capsys, "verify", root, "--dry-run")
    assert code == 1 and f"{victim}: " in out and "1 damaged" in out and victim.exists()
    assert run(capsys, "verify", root)[0] == 1 and not victim.exists()
    assert COUNTS.search(run(capsys, "generate", data, "--root", root)[1]).groups() == ("1", "4", "0")
    assert run(capsys, "verify", root)[0] == 0


def test_preview_draws_every_variant(fake, data, tmp_path, capsys):
    code, out, _ = run(capsys, "preview", data, "--out", tmp_path / "sheets" / "preview.png", "--rows", 4)
    sheet = Image.open(tmp_path / "sheets" / "preview.png")
    assert code == 0 and "preview.png" in out and sheet.format == "PNG"
    pixels = np.asarray(sheet.convert("RGB"))
    coloured = (pixels.max(2) != pixels.min(2)).any(axis=0)
    columns = np.flatnonzero(np.diff(np.concatenate([[0], coloured.astype(int), [0]]))).reshape(-1, 2)
    assert len(columns) == 1 + len(VARIANTS), "a column for the real images and one for each variant"
    rows = (pixels.max(2) != pixels.min(2)).any(axis=1)
    assert (np.diff(np.concatenate([[0], rows.astype(int), [0]])) == 1).sum() == 4
    assert fake.prompted == 2 and len(fake.loaded) == 1


def test_a_sheet_is_no_real_image_wherever_it_lies(fake, data, tmp_path, capsys):
    (tmp_path / "more").mkdir()
    (data / "cat" / "more").symlink_to(tmp_path / "more")
    assert run(capsys, "preview", data, "--out", tmp_path / "more" / "sheet.png", "--variants", "real")[0] == 0
    assert (tmp_path / "more" / "sheet.png").exists()
    err = run(capsys, "generate", data, "--root", tmp_path / "set", "--num-per-image", 1, "--max-failures", 1)[2]
    assert "synthetic" in err and "sheet.png" in err


def test_preview_pictures_are_those_of_the_set(fake, data, tmp_path, capsys):
    """What the sheet shows for `real` is what a set made with the same options holds."""
    run(capsys, "preview", data, "--out", tmp_path / "p.png", "--rows", 1, "--variants", "real")
    pixels = np.asarray(Image.open(tmp_path / "p.png"))
    run(capsys, "generate", data, "--root", tmp_path / "set", "--augmentation", "real")
    shown = AugConditionedSynthetic(ImageFolder(data), "real", generator=fake, root=tmp_path / "set", generate=False)
    index = next(i for i in range(len(shown)) if shown.provenance(i)["sources"] == [str(data / "cat" / "0.png")])
    side = 96
    want = np.asarray(shown[index][0].resize((side, side), Image.Resampling.NEAREST))
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side, 3))[:, :, 0]
    assert (windows == want).all(axis=(2, 3, 4)).sum() == 1


def test_preview_leaves_blank_what_can_not_be_read(fake, data, tmp_path, capsys):
    (data / "cat" / "0.png").write_bytes(b"no image")
    assert run(capsys, "preview", data, "--out", tmp_path / "p.png", "--variants", "real", "cutmix")[0] == 0


def test_export_writes_what_datasets_reads(fake, data, tmp_path, capsys):
    root = tmp_path / "set"
    run(capsys, "generate", data, "--root", root, "--num-per-class", 2)
    for _ in range(2):
        code, out, _ = run(capsys, "export", root)
        lines = [json.loads(line) for line in (root / "metadata.jsonl").read_text().splitlines()]
        assert code == 0 and "4 images" in out and len(lines) == 4
    for line in lines:
        assert (root / line["file_name"]).is_file() and line["file_name"].startswith(line["label"] + "/")
        assert line["prompt"] == f"a photo of a {line['label']}"
        assert all((data / name).is_file() for name in line["sources"]) and str(tmp_path) not in json.dumps(line)
    assert run(capsys, "verify", root)[0] == 0 and len(ImageFolder(root)) == 4


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, code, message",
    [
        (["generate"], 2, "the following arguments are required: DATA"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        ([], 2, "COMMAND"),
        (["generate", "DATA", "--shard", "4/4"], 2, "`shard` must be i/N with 0 <= i < N"),
        (["generate", "DATA", "--num-per-class", "x"], 2, "invalid int value: 'x'"),
        (["generate", "DATA", "--num-per-class", "1", "--fill-to", "2"], 2, "not allowed with argument"),
        (["generate", "DATA", "--batch-size", "0"], 2, "must be an int of 1 or more, but got '0'"),
        (["generate", "DATA", "--max-failures", "2"], 2, "must be between 0 and 1, but got '2'"),
        (["generate", "DATA", "--augmentation", "x"], 2, "`augmentation` must be one of text-only"),
        (["generate", "DATA", "--num-per-class", "-1"], 2, "`num_per_class` must be an int of 0 or more"),
        (["generate", "DATA", "--num-inference-steps", "0"], 2, "`num_inference_steps` must be an int of 1 or more"),
        (["generate", "DATA", "--class-names", "DATA/cat/0.png"], 2, "--class-names"),
        (
            ["generate", "DATA", "--variant", "cutmix"],
            2,
            "torch-augcond generate: error: unrecognized arguments: --variant",
        ),
        (["preview", "DATA", "--out", "DATA/cat/sheet.png"], 2, "--out must lie outside of the real images"),
        (["generate", "DATA", "--class-names", "TWICE"], 2, "is none: 'a' is there twice"),
        (["preview", "DATA", "--out", "SHEET"], 2, "--out must be a new file or a sheet of before"),
        (["preview", "DATA", "--variants", "x"], 2, "invalid choice: 'x'"),
        (["generate", "nowhere"], 1, "nowhere"),
        (["generate", "EMPTY"], 1, "Couldn't find any class folder"),
        (["generate", "DATA", "--root", "DATA"], 2, "`root` must lie outside of the real images"),
        (["generate", "DATA", "--root", "EMPTY/.."], 2, "`root` must not hold the real images"),
        (["generate", "DATA", "--root", "/"], 2, "`root` must be a folder with a name, but got '/'"),
        (["generate", "DATA", "--num-per-image", str(10**19)], 2, "`num_per_image` must be at most"),
        (["generate", "DATA", "--shard", f"0/{10**30}"], 2, "`shard` must be i/N"),
        (["generate", "DATA", "--device", "x"], 2, "--device must be cpu, cuda, cuda:1, ..., but got 'x'"),
        (["generate", "DATA", "--scheduler", "x"], 2, "argument --scheduler: invalid choice: 'x'"),
        (["generate", "DATA", "--guidance-interval", "0", "1.5"], 2, "must be between 0 and 1, but got '1.5'"),
        (["demo", "--synthetic-fraction", "1/0"], 2, "must be between 0 and 1, such as 1/2 or 0.25, but got '1/0'"),
        (["demo", "--synthetic-fraction", "2"], 2, "must be between 0 and 1, such as 1/2 or 0.25, but got '2'"),
        (["demo", "--guidance-scale", "0"], 2, "must be 1 or more, but got '0'"),
        (["status", "DATA", "--root", "DATA/cat/0.png"], 2, "`root` must lie outside of the real images"),
        (["verify", "EMPTY"], 1, "holds no set of images"),
        (["export", "EMPTY"], 1, "holds no set of images"),
    ],
)
def test_mistakes_are_one_line(fake, data, tmp_path, capsys, argv, code, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "twice.json").write_text('{"a": "cat", "b": "dog", "a": "horse"}')
    paint(tmp_path / "photo.png", "a photograph")
    places = {
        "DATA": data,
        "EMPTY": tmp_path / "empty",
        "TWICE": tmp_path / "twice.json",
        "SHEET": tmp_path / "photo.png",
    }
    argv = [reduce(lambda word, name: word.replace(name, str(places[name])), places, word) for word in argv]
    got, out, err = run(capsys, *argv)
    assert got == code and message in err
    assert code == 0 or (err.count("\n") == 1 and err.startswith("torch-augcond") and "error: " in err and not out)


def test_another_configuration_is_one_line(fake, data, tmp_path, capsys):
    run(capsys, "generate", data, "--root", tmp_path / "set")
    code, _, err = run(capsys, "generate", data, "--root", tmp_path / "set", "--seed", 1)
    assert code == 1 and "`seed` is 0 there, but 1 here" in err and err.count("\n") == 1


def test_debug_shows_the_traceback(fake, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no set"):
        main(["verify", str(tmp_path), "--debug"])


def test_warnings_are_one_line(fake, tmp_path, capsys):
    data = paint_folder(tmp_path / "real", {"12": 1})
    code, _, err = run(capsys, "generate", data, "--root", tmp_path / "set")
    assert code == 0 and all(line.startswith("torch-augcond generate: warning: ") for line in err.splitlines())
    assert "hold numbers that mean nothing in a prompt" in err and "nothing to mix it with" in err


def test_large_images_on_a_cpu_say_how_long_they_take(fake, data, tmp_path, capsys):
    import torch

    fake.device, fake.image_size = torch.device("cpu"), 256
    fake.estimate_seconds = lambda n, steps: n * steps * 60.0
    code, _, err = run(capsys, "generate", data, "--root", tmp_path / "set", "--num-per-class", 24)
    assert code == 0 and "48 images of 256 pixels will take about 1 days on this CPU" in err and '"tiny"' in err


@pytest.mark.parametrize(
    "seconds, text", [(1, "1 seconds"), (90, "1.5 minutes"), (9000, "2.5 hours"), (2e5, "2.3 days")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# --- as a program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_defaults_and_exit_codes(command, capsys):
    code, out, _ = run(capsys, command, "--help")
    assert code == 0 and "0 done, 1 error, 2 wrong usage, 3 over the failure budget" in " ".join(out.split())
    assert "None" not in out and (command in ("verify", "export") or "default" in out)


def test_help_tells_defaults_of_zero_too(capsys):
    assert "of the whole set (default: 0)" in " ".join(run(capsys, "generate", "--help")[1].split())


def test_help_names_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and all(re.search(rf"^ +{command} ", out, re.MULTILINE) for command in COMMANDS)
    assert run(capsys, "--version")[1].startswith("torch-augcond 0.")


@pytest.mark.parametrize("command", [[], *([command] for command in COMMANDS)], ids=" ".join)
def test_help_is_there_without_loading_torch(command):
    code = f"import sys\nfrom torch_augcond import cli\ntry: cli.main({[*command, '--help']})\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_real_pipeline_from_a_folder(data, tmp_path, capsys):
    """The whole way with diffusers' own classes; the weights are random."""
    from pipelines import save_pipeline

    folder = save_pipeline(tmp_path / "pipeline")
    options = ["--generator", folder, "--num-inference-steps", 2, "--device", "cpu"]
    argv = ["generate", data, "--root", tmp_path / "set", *options]
    code, out, err = run(capsys, *argv, "--batch-size", 2)
    assert (code, COUNTS.search(out).groups()) == (0, ("5", "0", "0")), err
    real = ImageFolder(data)
    synthetic = AugConditionedSynthetic(
        real, root=tmp_path / "set", generator=folder, num_inference_steps=2, generate=False
    )
    assert synthetic[0][0].size == (32, 32) and synthetic.provenance(0)["settings"]["checkpoint"].startswith("local@")
    assert run(capsys, "preview", data, "--out", tmp_path / "p.png", "--rows", 2, *options)[0] == 0
