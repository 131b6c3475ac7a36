"""How fast images are made, side by side on one set of weights, and whether they are the same images.

    python benchmarks/bench_generate.py                                   # the bundled model
    python benchmarks/bench_generate.py --model sd21 --device cuda        # full size, random weights
    python benchmarks/bench_generate.py --model sd21-narrow --sides 64 --batches 1 2 --images 4 --steps 2  # a trial

Compared are diffusers' pipeline called once for each image, eagerly, as in most published scripts; the same pipeline in
batches, compiled and channels_last; and this package, from the source images to the stored files. All are given the
same noise and write files of the same format. Each round runs all of them; the first is for warming up and compiling,
and the rows are medians of the others. The floor is the arithmetic at the speed of a large matrix product on the same
device.
"""

import copy
import gc
import statistics
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from arguments import at_least, make_parser, parse, run_main
from contenders import LOOP, OURS, OURS_COMPILED, STOCK, contenders, is_shortcut
from full_size import build
from PIL import Image
from report import PROFILE
from rows import write_rows
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import ImageFolder

from torch_augcond import StableUnCLIPGenerator, load_generator
from torch_augcond.cli.demo import NAMES, digits

MODELS = ("tiny", "sd21", "sd21-narrow")


def load(args, side):
    """A generator of the asked kind, on the asked device."""
    if args.model == "tiny":
        return load_generator("tiny", device=args.device, dtype=args.dtype, compile=False)
    pipe = build(side, small=args.model == "sd21-narrow", device=args.device, dtype=args.dtype)
    return StableUnCLIPGenerator(pipe.to(args.device), fingerprint=f"{args.model}-random@0", compile=False)


def write_sources(folder, args, side):
    """Real images to start from: digits for the bundled model, else noise as large as the images that are made."""
    torch.manual_seed(0)
    pixels = digits()[0] if args.model == "tiny" else None
    for i in range(args.images):
        name = NAMES[i % len(NAMES)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        if pixels is None:
            noise = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8)
            Image.fromarray(noise.numpy()).save(folder / name / f"{i:05d}.png", compress_level=1)
        else:
            Image.fromarray(pixels[i * len(pixels) // args.images]).save(folder / name / f"{i:05d}.png")
    return ImageFolder(folder)


def clock(work, args):
    """Seconds, and what was made."""
    now = time.process_time if args.cpu_time else time.perf_counter
    start = now()
    made = work()
    if torch.device(args.device).type == "cuda":
        torch.cuda.synchronize()
    return now() - start, made


def race(cases, args):
    """{case: (first round, median of an image in the others, images)} in seconds; what fails is left out and said."""
    seconds, images = {name: [] for name in cases}, {}
    for _ in range(1 + args.rounds):
        for name in list(seconds):
            try:
                took, images[name] = clock(cases[name], args)
            except (RuntimeError, MemoryError, UserWarning) as error:  # out of memory, or what can't be compiled
                print(f"{name} failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}", flush=True)
                del seconds[name]
            else:
                seconds[name].append(took)
                continue
            torch.cuda.empty_cache()  # only here is the error gone, and what its traceback held
    medians = {name: statistics.median(took[1:]) / len(images[name]) for name, took in seconds.items()}
    return {name: (took[0], medians[name], images[name]) for name, took in seconds.items()}


def peak_flops(args):
    """Operations a second in a large matrix product."""
    side = 8192 if torch.device(args.device).type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=args.device, dtype=args.dtype) for _ in range(2))
    seconds = [clock(lambda: a @ b, args)[0] for _ in range(10)]
    return 2 * side**3 / statistics.median(seconds)


@torch.no_grad()
def flops(generator, args):
    """Operations of one image: guided steps and decoding."""
    pipe, config = generator.pipe, generator.pipe.unet.config
    x = generator.latents(torch.arange(1)).to(args.device, args.dtype)
    text = generator.encode_prompts(["a photo of a cat"]).to(x)
    condition = torch.randn(1, config.projection_class_embeddings_input_dim).to(x)
    with FlopCounterMode(display=False) as step:
        pipe.unet(x, torch.tensor(1, device=x.device), encoder_hidden_states=text, class_labels=condition)
    with FlopCounterMode(display=False) as decoding:
        pipe.vae.decode(x)
    scheduler = copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(args.steps)  # PNDM calls the UNet once more
    return 2 * len(scheduler.timesteps) * step.get_total_flops() + decoding.get_total_flops()


def compare(args, side, batch):
    """Rows of one size and batch: time, the images' difference to those of the loop, the fraction of the floor."""
    torch._dynamo.reset()
    gc.collect()  # the generators of the case before
    torch.cuda.empty_cache()
    generator = load(args, side)
    floor, size = flops(generator, args) / peak_flops(args), generator.image_size
    del generator
    with tempfile.TemporaryDirectory() as folder:
        real = write_sources(Path(folder) / "real", args, size)
        cases = contenders(partial(load, args, side), real, Path(folder), batch, args)
        results = race(cases, args)
        yield from ratios(results, floor, args)
        if args.profile and (ours := [name for name in (OURS_COMPILED, OURS) if name in results]):
            yield from where_time_goes(cases[ours[0]], args)


def ratios(results, floor, args):
    """The rows of `race`'s results; those relative to a case that failed are left out."""
    loop, looped = results.get(LOOP, (None,) * 3)[1:]
    tuned = min((results[name][1] for name in STOCK if name in results), default=None)
    for name, (first, seconds, images) in results.items():
        values = {
            "time an image": (1e3 * seconds, "ms of the cores" if args.cpu_time else "ms"),
            "first round, with compiling": (first, "s"),
        }
        if not is_shortcut(name):  # which does less than the floor counts
            values["fraction of the floor"] = 100 * floor / seconds, "%"
        if loop:
            change = (images[: len(looped)].float() - looped[: len(images)].float()).abs()
            values |= {
                "times as fast as the loop": (loop / seconds, "ratio"),
                "largest change of a pixel": (change.max().item(), "of 255"),
                "mean change of a pixel": (change.mean().item(), "of 255"),
            }
        if tuned:
            values["times as fast as the best stock"] = tuned / seconds, "ratio"
        for measure, (value, unit) in values.items():
            yield {"case": name, "measure": measure, "value": value, "unit": unit, "n": args.rounds}


def where_time_goes(work, args, most=12):
    """Rows of what takes longest in a round after the warm-up: kernels on a GPU, torch's operations on a CPU."""
    cuda = torch.device(args.device).type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiled:
        took, _ = clock(work, args)
    kind, time_of = (DeviceType.CUDA, "self_device_time_total") if cuda else (DeviceType.CPU, "self_cpu_time_total")
    events = [e for e in profiled.key_averages() if e.device_type == kind and not e.is_user_annotation]
    spent = {e.key: getattr(e, time_of) for e in events}
    total = sum(spent.values())
    shares = {key[:80]: spent[key] / total for key in sorted(spent, key=spent.get, reverse=True)[:most]}
    if cuda:
        shares["(of the clock's time, the GPU was busy)"] = total / 1e6 / took
    for key, share in shares.items():
        yield {"case": key, "measure": PROFILE, "value": 100 * share, "unit": "%", "n": 1}


def main():
    parser = make_parser(__doc__, "generate")
    parser.add_argument("--model", choices=MODELS, default="tiny", help="default: %(default)s")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: bfloat16 on a GPU")
    some = at_least(1)
    parser.add_argument("--sides", type=some, nargs="+", default=[768, 512], help="pixels, of sd21 (default: 768 512)")
    parser.add_argument("--batches", type=some, nargs="+", default=[64], help="default: 64")
    parser.add_argument("--images", type=some, default=64, help="made by each case in a round (default: %(default)s)")
    parser.add_argument("--loop-images", type=some, default=16, help="of them made by the loop (default: %(default)s)")
    parser.add_argument("--rounds", type=some, default=3, help="after the warm-up (default: %(default)s)")
    parser.add_argument("--steps", type=some, default=30, help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=10.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave out what is compiled")
    parser.add_argument("--cpu-time", action="store_true", help="time of the process, for a machine that is shared")
    parser.add_argument("--shortcuts", action="store_true", help="the options that change images, instead of stock")
    parser.add_argument("--profile", action="store_true", help="also where the time goes")
    args = parse(parser)
    if args.quick:
        args.images, args.batches, args.rounds, args.steps, args.compile = 2, [2], 1, 2, False
    args.dtype = getattr(torch, args.dtype or ("bfloat16" if args.device == "cuda" else "float32"))
    warnings.filterwarnings("error", "torch.compile doesn't work here")  # or it would be timed under its name
    sides = [32] if args.model == "tiny" else args.sides
    rows = (
        {"side": side, "batch": batch, "dtype": str(args.dtype)[6:], "steps": args.steps, **row}
        for side in sides
        for batch in args.batches
        for row in compare(args, side, batch)
    )
    write_rows(args.csv, "generate", rows, load(args, sides[0]).checkpoint, args.device)


if __name__ == "__main__":
    run_main(main)
