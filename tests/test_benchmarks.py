"""Each benchmark runs in small, and docs/performance.md holds what the rows give."""

import argparse
import csv
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "performance.md"
sys.path.insert(0, str(BENCHMARKS))

import bench_generate  # noqa: E402
import report  # noqa: E402
import rows  # noqa: E402
import run_all  # noqa: E402


def rows_of(script, folder):
    path = folder / "rows.csv"
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--csv", str(path)]
    subprocess.run(command, check=True, capture_output=True, cwd=BENCHMARKS.parent)
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_holds_what_the_rows_give():
    text = PAGE.read_text("utf-8")
    assert text == report.refresh(text, BENCHMARKS / "results")


def test_rows_become_a_table_and_missing_ones_are_said_to_be_missing(tmp_path):
    text = "Text.\n<!-- rows: data-cpu -->\nold\n<!-- end -->\nMore.\n"
    assert "**Not measured yet**" in report.refresh(text, tmp_path)
    world = dict.fromkeys(report.WORLD, "x")
    rows = [
        {"benchmark": "data", "case": c, "measure": "time", "value": v, "unit": "s", "n": 1} for c, v in ("a1", "b2")
    ]
    with (tmp_path / "data-cpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *world])
        writer.writeheader()
        writer.writerows(row | world for row in rows)
    made = report.refresh(text, tmp_path)
    assert made.startswith("Text.\n") and made.endswith("More.\n")
    assert "| a | time | 1 s |\n| b | time | 2 s |\n" in made
    assert "old" not in made and "Not measured" not in made


def test_cases_with_the_same_measures_share_a_line(tmp_path):
    world = dict.fromkeys(report.WORLD, "x")
    rows = [
        {"case": case, "measure": measure, "value": value, "unit": unit, "n": 1, "side": side} | world
        for case, measure, value, unit, side in (
            ("loop", "time", 1.5, "s", 512),
            ("loop", "rate", 2, "", 512),
            ("loop", "time", 9, "s", 768),
        )
    ]
    path = tmp_path / "generate-cpu.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    made = report.refresh("<!-- rows: generate-cpu -->\n<!-- end -->\n", tmp_path)
    assert "| case | side | time (s) | rate |\n" in made
    assert "| loop | 512 | 1.5 | 2 |\n| loop | 768 | 9 | – |\n" in made


def test_what_a_profile_shows_has_a_table_of_its_own(tmp_path):
    found = [{"case": "ours", "measure": "time", "value": 3, "unit": "s", "n": 1}]
    found += [{"case": "conv", "measure": report.PROFILE, "value": 60, "unit": "%", "n": 1}]
    rows.write_rows(tmp_path / "generate-cpu.csv", "generate", found, "")
    made = report.refresh("<!-- rows: generate-cpu -->\n<!-- end -->\n", tmp_path)
    assert "| case | time (s) |\n" in made and "| conv | share of the time | 60 % |\n" in made


def test_a_benchmark_that_is_cut_off_leaves_the_older_rows(tmp_path):
    path = tmp_path / "data-cpu.csv"

    def ended():
        yield {"case": "b", "measure": "time", "value": 2, "unit": "s", "n": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows.write_rows(path, "data", ended(), "")
    block = "<!-- rows: data-cpu -->\n<!-- end -->\n"
    made = report.refresh(block, tmp_path)
    assert not path.exists() and "**The run was ended early**" in made and "| b | time | 2 s |" in made
    rows.write_rows(path, "data", [{"case": "a", "measure": "time", "value": 1, "unit": "s", "n": 1}], "")
    with pytest.raises(KeyboardInterrupt):
        rows.write_rows(path, "data", ended(), "")
    made = report.refresh(block, tmp_path)
    assert "| a | time | 1 s |" in made and "ended early" not in made


def test_a_benchmark_out_of_time_leaves_no_process(tmp_path, monkeypatch):
    child = "import time; time.sleep(600)"
    (tmp_path / "slow.py").write_text(
        "import subprocess, sys, pathlib\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    assert not run_all.run("slow", ["slow.py"], "cpu", tmp_path / "rows.csv", time.monotonic() + 15)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):  # a killed process takes a moment to end
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.1)
    pytest.fail("a process of the benchmark is still at work")


def test_a_case_that_runs_out_of_memory_costs_only_its_own_rows(capsys):
    def full():
        raise torch.OutOfMemoryError("no room\nat all")

    args = argparse.Namespace(rounds=1, cpu_time=False, device="cpu")
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    found = bench_generate.race({bench_generate.LOOP: full, bench_generate.OURS: lambda: images}, args)
    assert list(found) == [bench_generate.OURS]
    assert f"{bench_generate.LOOP} failed: OutOfMemoryError: no room\n" in capsys.readouterr().out
    values = bench_generate.ratios(found, floor=0.5, args=args)
    assert {row["measure"] for row in values} == {
        "time an image", "first round, with compiling", "fraction of the floor",
    }  # fmt: skip


@pytest.mark.parametrize(
    "module, given, message",
    [
        ("bench_kernel", ["--device", "cuda"], "there is no GPU that torch can use here"),
        ("bench_generate", ["--device", "cuda"], "there is no GPU that torch can use here"),
        ("bench_data", ["--device", "cuda"], "invalid choice: 'cuda'"),
        ("bench_kernel", ["--csv", "/nowhere/rows.csv"], "--csv must be a file in a folder that is there"),
        ("bench_kernel", ["--csv", "/"], "--csv must be a file in a folder that is there"),
        ("bench_kernel", ["--seconds", "-1"], "must be a whole number, 0 or more, but got '-1'"),
        ("bench_generate", ["--rounds", "0"], "must be a whole number, 1 or more, but got '0'"),
        ("bench_generate", ["--dtype", "foo"], "invalid choice: 'foo'"),
        ("measure_shortcuts", ["--seeds", "1"], "must be a whole number, 2 or more, but got '1'"),
        ("run_all", ["--minutes", "0"], "must be a whole number, 1 or more, but got '0'"),
        ("run_all", ["--only", "nothing"], "nothing is none of the benchmarks of cpu"),
    ],
)
def test_what_a_benchmark_cannot_do_is_refused_at_once(module, given, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, *given])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(module).main()
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_ctrl_c_ends_a_benchmark_in_one_line(tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells take it from background jobs
        "from arguments import run_main\n"
        "def main():\n"
        "    print('measuring', flush=True)\n"
        "    time.sleep(60)\n"
        "run_main(main)\n"
    )
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": os.environ | {"PYTHONPATH": str(BENCHMARKS)},
    }
    with subprocess.Popen([sys.executable, str(script)], text=True, **options) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.strip() == "slow.py: stopped"


@pytest.mark.slow
def test_the_kernel_is_one_graph_and_rows_stay_in_any_batch(tmp_path):
    rows = {
        (row["case"], row["measure"], row["batch"]): float(row["value"]) for row in rows_of("bench_kernel.py", tmp_path)
    }
    assert rows["fused", "graphs", ""] == 1
    assert rows["fused", "differing rows", ""] == 0
    assert {"fused", "copy", "eager, keyed", "eager, torch's numbers"} == {
        case for case, _, batch in rows if batch == "32"
    }


@pytest.mark.slow
def test_reading_sampling_planning_and_opening_in_small(tmp_path):
    rows = rows_of("bench_data.py", tmp_path)
    assert {"reading", "loading", "files", "sampling", "planning", "opening"} <= {row["measure"] for row in rows}
    assert all(float(row["value"]) >= 0 for row in rows)
