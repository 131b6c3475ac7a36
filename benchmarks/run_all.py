"""All benchmarks and then docs/performance.md: `python benchmarks/run_all.py`, on a GPU with `--device cuda`.

Each benchmark is a process of its own. Whatever ends a run leaves what it had beside the older rows, which are replaced
once all are there; `--resume` leaves out the benchmarks that have come to their end.
"""

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from arguments import at_least, run_main
from report import refresh
from rows import PART

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"
SCRIPTS = {
    "kernel": "bench_kernel.py",
    "generate": "bench_generate.py",
    "data": "bench_data.py",
    "shortcuts": "measure_shortcuts.py",
}
FULL_SIZE = ["--model", "sd21", "--rounds", "1"]
SMALL_BATCHES = [*FULL_SIZE, "--batches", "16", "4", "1", "--images", "16", "--loop-images", "4"]
WAYS = ["unipc, 10 steps", "dpmpp, 15 steps", "guided in 0.0-0.6", "cache_interval 2", "cache_interval 3"]
SHORTCUTS = ["--cpu-time", "--rounds", "1", "--ways", *WAYS]
GPU_MINUTES = 40


def commands(device, quick):
    """{name: arguments}; data and shortcuts have nothing to do with a GPU."""
    if quick:
        return {name: [script, "--quick"] for name, script in SCRIPTS.items()}
    generate = SCRIPTS["generate"]
    if device == "cpu":
        batches = [generate, "--batches", "4", "16", "--no-compile", "--rounds", "1", "--cpu-time", "--profile"]
        bfloat16 = [generate, "--dtype", "bfloat16", "--rounds", "1", "--cpu-time"]
        known = {name: [script] for name, script in SCRIPTS.items()} | {"batches": batches, "bfloat16": bfloat16}
        return known | {"shortcuts": [SCRIPTS["shortcuts"], *SHORTCUTS]}
    full_size = {f"generate{side}": [generate, *FULL_SIZE, "--profile", "--sides", side] for side in ("768", "512")}
    ways = {"ways": [generate, *FULL_SIZE, "--shortcuts", "--sides", "512"]}
    return {"kernel": [SCRIPTS["kernel"]], **full_size, **ways, "batches": [generate, *SMALL_BATCHES]}


def run(name, arguments, device, path, deadline):
    """Whether the benchmark came to its end in time; none of its processes is left."""
    print(f"== {name}", flush=True)
    command = [sys.executable, str(HERE / arguments[0]), *arguments[1:], "--device", device, "--csv", str(path)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        left = deadline - time.monotonic()
        return process.wait(None if left == math.inf else left) == 0
    except subprocess.TimeoutExpired:
        rows = f"the rows so far are in {path}{PART}" if Path(f"{path}{PART}").exists() else "there are no rows yet"
        print(f"{name}: out of time; {rows}", flush=True)
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--quick", action="store_true", help="small, to see that all run; nothing is kept")
    parser.add_argument("--resume", action="store_true", help="leave out what has rows already")
    parser.add_argument("--minutes", type=at_least(1), help=f"at most, for all (default: {GPU_MINUTES} on a GPU)")
    args = parser.parse_args()
    known = commands(args.device, args.quick)
    if unknown := set(args.only or ()) - known.keys():
        parser.error(f"{', '.join(sorted(unknown))} is none of the benchmarks of {args.device}: {', '.join(known)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use here: leave out --device, or run it on a machine with one")
    minutes = args.minutes or (GPU_MINUTES if args.device == "cuda" else math.inf)
    deadline = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as scratch:
        results, done = Path(scratch) if args.quick else HERE / "results", []
        for name, arguments in known.items():
            path = results / f"{name}-{args.device}.csv"
            if name not in (args.only or [name]) or (args.resume and path.exists()):
                continue
            if time.monotonic() > deadline:
                print(f"{name}: no time left for it; add --resume for the rest", flush=True)
            done.append(time.monotonic() <= deadline and run(name, arguments, args.device, path, deadline))
        text = refresh(PAGE.read_text("utf-8"), results)
    if not args.quick:
        PAGE.write_text(text, "utf-8")
    return 0 if all(done) else 1


if __name__ == "__main__":
    run_main(main)
