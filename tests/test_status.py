"""What `status` says of a set, and what the failure budget does to a run."""

import os
import re
import time

import numpy as np
import pytest
from commands import COUNTS, run
from fakes import FakeGenerator, paint
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic
from torch_augcond.cli.status import rate


def row(out, name):
    """The numbers of a class: wanted, made, failed, corrupt, missing."""
    return [int(cell) for cell in re.search(rf"^  {name} +(.*)$", out, re.MULTILINE)[1].split()]


def test_status_of_nothing_of_a_part_and_of_everything(fake, data, tmp_path, capsys):
    argv = [data, "--root", tmp_path / "a set", "--num-per-class", 5, "--augmentation", "real"]
    code, out, _ = run(capsys, "status", *argv)
    assert code == 0 and "10 wanted, 0 complete, 0 failed, 0 set aside as corrupt, 10 missing" in out
    assert row(out, "cat") == [5, 0, 0, 0, 5] and not (tmp_path / "a set").exists() and "time left" not in out
    run(capsys, "generate", *argv, "--shard", "0/2")
    code, out, _ = run(capsys, "status", *argv)
    made = len(ImageFolder(tmp_path / "a set"))
    assert 0 < made < 10 and f"10 wanted, {made} complete" in out and f"{10 - made} missing" in out
    assert row(out, "cat")[1] + row(out, "dog")[1] == made
    assert f"torch-augcond generate {data} --augmentation real" in out.replace(" --num-per-class 5", "")
    assert "guidance scale 10, 30 steps, seed 0" in out and fake.fingerprint in out
    run(capsys, "generate", *argv)
    out = run(capsys, "status", *argv)[1]
    assert "10 wanted, 10 complete" in out and row(out, "dog") == [5, 5, 0, 0, 0] and "to make" not in out
    (data / "cat" / "0.png").unlink()
    assert re.search(r"stale +\d+ images", run(capsys, "status", *argv)[1])


def test_status_counts_failed_and_corrupt(fake, data, tmp_path, capsys):
    argv = [data, "--root", tmp_path / "set", "--augmentation", "real"]
    (data / "dog" / "1.png").write_bytes(b"no image")
    run(capsys, "generate", *argv, "--max-failures", 1)
    victim = next((tmp_path / "set" / "cat").iterdir())
    victim.write_bytes(victim.read_bytes()[:-30])
    run(capsys, "verify", tmp_path / "set")
    out = run(capsys, "status", *argv)[1]
    assert "5 wanted, 3 complete, 1 failed, 1 set aside as corrupt, 0 missing" in out
    assert row(out, "cat") == [3, 2, 0, 1, 0] and row(out, "dog") == [2, 1, 1, 0, 0]
    assert re.search(r"^failed +.*dog/1.png could not be read", out, re.MULTILINE)
    run(capsys, "generate", *argv, "--max-failures", 1)
    assert row(run(capsys, "status", *argv)[1], "cat") == [3, 3, 0, 0, 0]


def test_status_changes_nothing_and_loads_nothing(fake, data, tmp_path, capsys):
    argv = [data, "--root", tmp_path / "set"]
    run(capsys, "generate", *argv, "--shard", "0/2")
    loaded, before = len(fake.loaded), sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "set").rglob("*"))
    assert run(capsys, "status", *argv)[0] == 0
    after = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "set").rglob("*"))
    assert len(fake.loaded) == loaded and [item for item in after if "digests" not in item[0].name] == before


@pytest.mark.parametrize(
    "times, expected",
    [
        ([], None),
        ([5.0], None),
        ([7.0] * 9, None),
        (np.arange(100) * 0.5, 2.0),  # one by one, two a second
        (np.repeat(np.arange(10) * 60.0, 16), 16 / 60),  # batches of 16, one a minute
        (np.concatenate([np.arange(50.0), 1e6 + np.arange(50) * 10]), 0.1),  # an earlier run was faster
        (np.concatenate([np.repeat(np.arange(3) * 60.0, 4) - 1e5, np.repeat(np.arange(3) * 60.0, 8)]), 8 / 60),
    ],
)
def test_rate(times, expected):
    found = rate(np.asarray(times))
    assert found == (expected if expected is None else pytest.approx(expected, rel=0.03))


def test_time_left_comes_from_the_files_of_the_last_run(fake, data, tmp_path, capsys):
    argv = [data, "--root", tmp_path / "set", "--num-per-class", 50]
    run(capsys, "generate", *argv, "--shard", "0/2")
    files = list((tmp_path / "set").glob("*/*.png"))
    for age, when in [(0, "counted since the last pause of ten minutes"), (7200, "as before it stopped 2 hours ago")]:
        for i, file in enumerate(files):
            os.utime(file, (0, time.time() - age - 36 * i))
        left = re.search(r"time left about (\S+) (\w+) at 0.028 images a second, (.*)", run(capsys, "status", *argv)[1])
        assert left[3] == when and left[2] == "minutes"
        assert float(left[1]) == pytest.approx((100 - len(files)) * 0.6, rel=0.06)


# --- the failure budget -----------------------------------------------------------------------------------------------


def test_past_the_budget_a_run_stops_and_says_why(fake, data, tmp_path, capsys):
    (data / "dog" / "1.png").write_bytes(b"no image")
    argv = ["generate", data, "--root", tmp_path / "set", "--augmentation", "real"]
    code, out, _ = run(capsys, *argv)
    assert code == 3 and COUNTS.search(out).groups() == ("0", "0", "1") and "dog/1.png could not be read" in out
    assert "More than 0.01 of the images failed, so 4 others were not tried" in out
    assert len(fake.batches) <= 1  # the one that was made while the failure was recorded
    code, out, _ = run(capsys, *argv, "--max-failures", 0.2)
    assert code == 0 and COUNTS.search(out).groups() == ("4", "0", "1") and "More than" not in out
    paint(data / "dog" / "1.png", "mended")
    assert run(capsys, *argv)[0] == 0 and len(ImageFolder(tmp_path / "set")) == 5


def test_the_batch_at_hand_is_kept(data, tmp_path, capsys, fake):
    argv = ["generate", data, "--root", tmp_path / "set", "--num-per-class", 20, "--batch-size", 4]
    probe = AugConditionedSynthetic(
        ImageFolder(data), root=tmp_path / "probe", generator=FakeGenerator(), num_per_class=20
    )
    fake.bad = {probe.provenance(i)["seed"] for i in range(9, 40)}
    code, out, _ = run(capsys, *argv, "--max-failures", 0.1)
    assert code == 3 and COUNTS.search(out).groups() == ("9", "0", "7") and "so 24 others were not tried" in out
    assert len(ImageFolder(tmp_path / "set")) == 9
    assert len(fake.batches) <= 5  # one was made while the fourth was stored


def test_what_can_not_even_be_hashed_counts_as_well(fake, data, tmp_path, capsys):
    os.symlink("nowhere", data / "cat" / "7.png")
    argv = ["generate", data, "--root", tmp_path / "set", "--augmentation", "real"]
    for _ in range(2):
        code, _, err = run(capsys, *argv)
        assert code == 3 and "1 of 6 real images can't be read" in err
    assert len(ImageFolder(tmp_path / "set")) == 5
    records = [path.read_text() for path in (tmp_path / "set").glob(".augcond-failures-*")]
    assert len(records) == 1 and "cat/7.png could not be read: FileNotFoundError" in records[0]
    assert run(capsys, *argv, "--max-failures", 0.5)[0] == 0


@pytest.mark.parametrize("name", [b"c\xffat", b"c\x1b[2Jt\n", "猫".encode()])
def test_names_that_no_terminal_can_show(fake, tmp_path, capsys, name):
    folder = os.path.join(os.fsencode(tmp_path / "real"), name)
    os.makedirs(folder)
    paint(tmp_path / "a.png", "a").rename(os.fsdecode(os.path.join(folder, b"a\xff.png")))
    with open(os.path.join(folder, b"b\x1b.png"), "wb") as file:
        file.write(b"no image")
    argv = [tmp_path / "real", "--root", tmp_path / "set", "--augmentation", "real"]
    code, out, err = run(capsys, "generate", *argv)
    assert code == 3 and "could not be read" in out
    assert run(capsys, "generate", *argv, "--max-failures", 1)[0] == run(capsys, "verify", tmp_path / "set")[0] == 0
    code, shown, _ = run(capsys, "status", *argv)
    assert code == 0 and "\x1b" not in out + err + shown and len(ImageFolder(tmp_path / "set")) == 1
