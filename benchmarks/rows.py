"""The rows of benchmarks/results/*.csv: what was measured, on which machine, with which versions, when."""

import csv
import datetime
import importlib.metadata
import platform
from contextlib import ExitStack
from pathlib import Path

import torch

__all__ = ["PART", "machine", "write_rows"]

PART = ".part"  # what the file of a run that hasn't come to its end is called besides


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
    """Write `rows` as CSV, each as soon as it comes, and print them; `path` is replaced once all are there.

    Until then they lie beside it, in `path` + ".part", where a run that is ended leaves them. All have the same
    columns: a case, a measure, a value, its unit and n, the number of values it is the median of, or of the images it
    is the mean of; and what else sets the case apart.
    """
    world, writer, part = {"checkpoint": checkpoint} | machine(device), None, Path(f"{path}{PART}")
    with ExitStack() as stack:
        for row in rows:
            row = {"benchmark": benchmark, **row, "value": f"{row['value']:.6g}"}
            if writer is None:
                file = stack.enter_context(part.open("w", newline="", buffering=1))
                writer = csv.DictWriter(file, [*row, *world], lineterminator="\n")
                writer.writeheader()
            writer.writerow(row | world)
            print(*row.values(), sep=", ", flush=True)
    if writer:
        part.replace(path)
