"""The tables of docs/performance.md, made from benchmarks/results/*.csv; the text between them is written by hand."""

import csv
import re
from pathlib import Path

from rows import PART

__all__ = ["PROFILE", "refresh"]

BLOCK = re.compile(r"(<!-- rows: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
WORLD = ("device", "threads", "torch", "python", "date")
KERNEL = ("eager, torch's numbers", "eager, keyed", "fused", "copy")
PROFILE = "share of the time"  # rows of it get a table of their own
PLAIN = ("case", "measure", "value", "unit", "n")


def refresh(text, results):
    """`text` with every block `<!-- rows: NAME -->` … `<!-- end -->` filled from `results`/NAME.csv."""
    return BLOCK.sub(lambda block: block[1] + _block(block[2], Path(results)) + block[3], text)


def _block(name, results):
    path, part = results / f"{name}.csv", results / f"{name}.csv{PART}"
    if not path.exists() and not part.exists():
        device = name.rpartition("-")[2]
        command = f"python benchmarks/run_all.py --device {device}"
        return f"**Not measured yet**: there are no rows of `{name}`. They come from `{command}`.\n"
    with (path if path.exists() else part).open(newline="") as file:
        rows = list(csv.DictReader(file))
    profiled = [row for row in rows if row["measure"] == PROFILE]
    tables = {"kernel": _kernel, "data": _plain}
    table = tables.get(name.partition("-")[0], _wide)([row for row in rows if row not in profiled])
    ended = "" if path.exists() else "**The run was ended early**: these are the rows it had.\n\n"
    return f"{ended}{table}\n{_plain(profiled) + chr(10) if profiled else ''}{_world(rows[0])}\n"


def _world(row):
    return ", ".join(f"{name} {row[name]}" for name in WORLD) + "\n"


def _table(head, lines):
    lines = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _plain(rows):
    own = _own(rows)
    lines = [[*(row[name] for name in PLAIN[:2]), *(row[name] for name in own), _value(row)] for row in rows]
    return _table([*PLAIN[:2], *own, "value"], lines)


def _wide(rows):
    """A line for each case, a column for each measure."""
    own, lines = _own(rows), {}
    for row in rows:
        lines.setdefault((row["case"], *(row[name] for name in own)), {})[row["measure"], row["unit"]] = row["value"]
    measures = list(dict.fromkeys((row["measure"], row["unit"]) for row in rows))
    head = ["case", *own, *(f"{measure} ({unit})" if unit else measure for measure, unit in measures)]
    return _table(head, [[*case, *(_short(found.get(key)) for key in measures)] for case, found in lines.items()])


def _own(rows):
    """What else sets cases apart."""
    names = [name for name in (rows or [{}])[0] if name not in (*PLAIN, *WORLD, "benchmark")]
    return [name for name in names if len({row[name] for row in rows}) > 1]


def _short(value):
    return "–" if value is None else f"{float(value):.4g}"


def _value(row):
    return f"{_short(row['value'])} {row['unit']}".strip()


def _kernel(rows):
    """A line for each shape, with the ratios that the targets are about."""
    shapes = {}
    for row in rows:
        shapes.setdefault((row["dtype"], row["dim"], row["batch"]), {})[row["case"], row["measure"]] = float(
            row["value"]
        )
    lines = []
    for (*kind, batch), values in shapes.items():
        if batch:
            took = [values.get((name, "time")) for name in KERNEL]
            lines.append([*kind, batch, *map(_number, took), _ratio(took[0], took[2], "×"), _share(took[3], took[2])])
    head = ["dtype", "D", "B", *(f"{name} (ms)" for name in KERNEL), "torch's eager / fused", "share of a copy's speed"]
    return _table(head, lines) + "\n" + _checks(shapes)


def _checks(shapes):
    found = [values for (*_, batch), values in shapes.items() if not batch]
    graphs, rows = ([values["fused", name] for values in found] for name in ("graphs", "differing rows"))
    if not found:
        return "The run was ended before graphs and rows were compared.\n"
    total = f"{len(found)} kinds of tensors: {sum(graphs):.0f} graphs compiled for all their batch sizes"
    return f"{total}; {sum(rows):.0f} rows that differ between batch sizes.\n"


def _number(value):
    return "–" if value is None else f"{value:.3g}"


def _ratio(a, b, unit):
    return "–" if a is None or b is None else f"{a / b:.1f}{unit}"


def _share(a, b):
    return "–" if a is None or b is None else f"{100 * a / b:.0f} %"
