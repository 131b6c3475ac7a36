"""How fast conditioning vectors are made, `benchmarks/bench_kernel.py`: by a chain of torch functions, by the graph.

Four cases take turns: the chain with torch's random numbers, the same with keyed ones, the compiled graph, and a copy
of as many bytes (two embeddings read, two written), which nothing can beat. The variant is embed-cutmix-dropout.
"""

import statistics
import time

import torch
from arguments import at_least, make_parser, parse, run_main
from rows import write_rows
from torch._dynamo.utils import counters

from torch_augcond import VARIANTS, fused
from torch_augcond import functional as F

OPS, P = VARIANTS["embed-cutmix-dropout"], 0.4
SIGNAL, SIGMA = 0.99998, 0.0064  # of noise level 0
TABLE = 1 << 16  # rows to gather from, at most
EAGER_ARRAYS = 12  # of float32, as large as half the result, that an eager chain holds at once
SHARE = 0.4  # of the memory, for an eager chain
SETS = 3
LONG = 1 << 14  # rows whose embeddings no cache holds


def inputs(batch, dim, dtype, device, seed):
    draw = torch.Generator().manual_seed(seed)
    length = min(TABLE, max(2, batch))
    embeds = torch.randn(length, dim, generator=draw).to(device, dtype)
    index, partners = torch.randint(length, (2, batch), generator=draw).to(device)
    keys = torch.randint(-(2**62), 2**62, (batch,), generator=draw).to(device)
    mean, std = torch.randn(dim, generator=draw).to(device) / 10, torch.rand(dim, generator=draw).to(device) / 4 + 0.3
    return {"embeds": embeds, "index": index, "partner_index": partners, "keys": keys, "mean": mean, "std": std}


def chain(embeds, index, partner_index, keys, mean, std):
    """What one writes without this package: the same formulas, random numbers from torch's generator."""
    first, second = embeds[index], embeds[partner_index]
    noise = torch.randn(first.shape, device=first.device)
    first, second = (F.add_noise(x, noise, mean, std, SIGNAL, SIGMA) for x in (first, second))
    mixed = F.embed_cutmix(first, second, torch.rand(len(first), device=first.device))
    level = F.level_embedding(torch.zeros(1, device=first.device), first.shape[1])
    whole = torch.cat([mixed, level.to(mixed.dtype).expand_as(mixed)], 1)
    return F.embed_dropout(whole, torch.rand(whole.shape, device=whole.device) < P)


def condition(given, **options):
    return fused.condition(**given, ops=OPS, signal=SIGNAL, sigma=SIGMA, **options)


def cases(batch, dim, dtype, device):
    out = torch.empty(batch, 2 * dim, dtype=dtype, device=device)
    source = torch.randn(dim, device=device).to(dtype).repeat(batch, 2)
    found = {"fused": lambda given: condition(given, out=out), "copy": lambda given: out.copy_(source)}
    if EAGER_ARRAYS * batch * dim * 4 < SHARE * memory(device):
        found["eager, torch's numbers"] = lambda given: chain(**given)
        found["eager, keyed"] = lambda given: condition(given, compile=False)
    return found


def memory(device):
    if device == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    with open("/proc/meminfo") as file:
        return int(file.readline().split()[1]) * 1024


def elapsed(run, sets, device):
    """Milliseconds of a call, on average over one with each of `sets`."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(10_000_000)  # meanwhile the calls line up: what is timed is the GPU, not who calls it
        start.record()
        for given in sets:
            run(given)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / len(sets)
    # On one thread its own time, in which a busy machine's other work doesn't count.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for given in sets:
        run(given)
    return 1e3 * (clock() - start) / len(sets)


def measure(batch, dim, dtype, device, seconds):
    """Medians of each case; they take turns for about `seconds`, at least four times after one to warm up."""
    sets = [inputs(batch, dim, dtype, device, seed) for seed in range(SETS)]
    # Short calls one after another, else they'd be timed with cold caches; long ones have cold caches anyway.
    turns = [sets * max(1, 256 // batch)] if batch < LONG else [[given] for given in sets]
    runs, times = cases(batch, dim, dtype, device), {}
    for run in runs.values():
        elapsed(run, turns[0], device)
    started, rounds = time.monotonic(), 0
    while rounds < 4 or time.monotonic() - started < seconds:
        for name, run in runs.items():
            times.setdefault(name, []).append(elapsed(run, turns[rounds % len(turns)], device))
        rounds += 1
    shape = {"dtype": str(dtype).removeprefix("torch."), "dim": dim, "batch": batch}
    for name, took in times.items():
        yield {"case": name, "measure": "time", "value": statistics.median(took), "unit": "ms", "n": rounds, **shape}


def differing(dim, dtype, device, batch=64):
    """How many rows of a batch come out otherwise in smaller ones."""
    given = inputs(batch, dim, dtype, device, 0)
    whole, count = condition(given), 0
    for size in (1, 7):
        for rows in torch.arange(batch, device=device).split(size):
            part = given | {name: given[name][rows] for name in ("index", "partner_index", "keys")}
            count += int((condition(part) != whole[rows]).any(1).sum())
    return count


def measured(grid, device, seconds):
    for dtype, dim, batches in grid:
        before = counters["stats"]["unique_graphs"]
        for batch in batches:
            yield from measure(batch, dim, dtype, device, seconds)
        shape = {"n": 1, "dtype": str(dtype).removeprefix("torch."), "dim": dim, "batch": ""}
        graphs, rows = counters["stats"]["unique_graphs"] - before, differing(dim, dtype, device)
        yield {"case": "fused", "measure": "graphs", "value": graphs, "unit": "", **shape}
        yield {"case": "fused", "measure": "differing rows", "value": rows, "unit": "", **shape}


def grid(quick):
    """(dtype, D, batch sizes)."""
    if quick:
        return [(torch.float32, 64, (1, 32))]
    batches = (1, 16, 256, 4096, 16384, 65536, 262144)
    return [
        (dtype, dim, batches) for dtype in (torch.float32, torch.bfloat16, torch.float16) for dim in (1024, 768, 1280)
    ]


def main():
    parser = make_parser(__doc__, "kernel")
    parser.add_argument("--seconds", type=at_least(0), default=2, help="of each batch size (default: %(default)s)")
    args = parse(parser)
    rows = measured(grid(args.quick), args.device, args.seconds * (not args.quick))
    write_rows(args.csv, "kernel", rows, "", args.device)


if __name__ == "__main__":
    run_main(main)
