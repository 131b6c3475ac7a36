"""Each benchmark runs in small, and docs/performance.md holds what the rows give."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "performance.md"
sys.path.insert(0, str(BENCHMARKS))

import report  # noqa: E402


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
    assert {"reading", "loading", "sampling", "planning", "opening"} <= {row["measure"] for row in rows}
    assert all(float(row["value"]) >= 0 for row in rows)
