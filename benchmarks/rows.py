"""The rows of benchmarks/results/*.csv: what was measured, on which machine, with which versions, when."""

import csv
import datetime
import importlib.metadata
import platform
from pathlib import Path

import torch

__all__ = ["machine", "write_rows"]


def machine(device="cpu"):
    """What the numbers depend on besides the code."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else cpu_name()
    versions = {package: importlib.metadata.version(package) for package in ("diffusers", "transformers")}
    world = {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, **versions}
    return world | {"python": platform.python_version(), "date": datetime.date.today().isoformat()}


def cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def write_rows(path, benchmark, rows, checkpoint, device="cpu"):
    """One CSV of `rows`, which have a case, a measure, a value, its unit and n, the number of its repetitions."""
    world = machine(device)
    full = [{"benchmark": benchmark, "checkpoint": checkpoint, **row, "value": f"{row['value']:.6g}"} for row in rows]
    columns = list(dict.fromkeys(name for row in full for name in row))
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *world], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | world for row in full)
    for row in full:
        print(", ".join(str(value) for name, value in row.items() if name not in ("benchmark", "checkpoint")))
