"""All benchmarks and then docs/performance.md: `python benchmarks/run_all.py`, on a GPU with `--device cuda`.

Each benchmark is a process of its own. Whatever ends a run leaves what it had beside the older rows, which are replaced
once all are there; `--resume` leaves out the benchmarks that have come to their end.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
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
QUICK = {"generate": ["--images", "2", "--batches", "2", "--rounds", "1", "--steps", "2", "--no-compile"]}
FULL_SIZE = ["--model", "sd21", "--rounds", "1", "--profile", "--shortcuts"]
SMALL_BATCHES = ["--model", "sd21", "--rounds", "1", "--batches", "16", "1", "--images", "16", "--loop-images", "4"]


def commands(device, quick):
    """{name: arguments}; data and shortcuts have nothing to do with a GPU."""
    if quick:
        return {name: [script, *QUICK.get(name, ["--quick"])] for name, script in SCRIPTS.items()}
    generate = SCRIPTS["generate"]
    if device == "cpu":
        batches = [generate, "--batches", "4", "16", "--no-compile", "--rounds", "1", "--cpu-time"]
        bfloat16 = [generate, "--dtype", "bfloat16", "--rounds", "1", "--cpu-time"]
        return {name: [script] for name, script in SCRIPTS.items()} | {"batches": batches, "bfloat16": bfloat16}
    full_size = {f"generate{side}": [generate, *FULL_SIZE, "--sides", side] for side in ("768", "512")}
    return {"kernel": [SCRIPTS["kernel"]], **full_size, "batches": [generate, *SMALL_BATCHES]}


def run(name, arguments, device, path, deadline):
    """Whether the benchmark came to its end in time; none of its processes is left."""
    print(f"== {name}", flush=True)
    command = [sys.executable, str(HERE / arguments[0]), *arguments[1:], "--device", device, "--csv", str(path)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(max(1, deadline - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        print(f"{name}: out of time; the rows so far are in {path}{PART}", flush=True)
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
    parser.add_argument("--minutes", type=float, default=25, help="at most, for all (default: %(default)s)")
    args = parser.parse_args()
    known = commands(args.device, args.quick)
    if unknown := set(args.only or ()) - known.keys():
        parser.error(f"{', '.join(sorted(unknown))} is none of the benchmarks of {args.device}: {', '.join(known)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use here: leave out --device, or run it on a machine with one")
    deadline = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as scratch:
        results, done = Path(scratch) if args.quick else HERE / "results", []
        for name, arguments in known.items():
            path = results / f"{name}-{args.device}.csv"
            if name in (args.only or [name]) and not (args.resume and path.exists()):
                done.append(run(name, arguments, args.device, path, deadline))
        text = refresh(PAGE.read_text("utf-8"), results)
    if not args.quick:
        PAGE.write_text(text, "utf-8")
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
