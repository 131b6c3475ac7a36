"""What faster sampling costs: time, change of the images, agreement, accuracy. `benchmarks/measure_shortcuts.py`.

For the bundled model. Each way of sampling makes the same images (sources, partners, prompts, noise) as the full run.
Agreement is the share that a classifier of real digits assigns to the class of their source; accuracy is the demo's:
a classifier trained on few real digits of each class and synthetic ones, on validation digits.
"""

import statistics
import tempfile
import time
from itertools import chain
from pathlib import Path

from arguments import at_least, make_parser, parse, run_main
from measure_tiny_unclip import gray, make, real_digits
from rows import write_rows
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder

from torch_augcond import AugConditionedSynthetic, MixedRealSyntheticSampler, load_generator
from torch_augcond.cli.demo import AFFINE, BATCH, NAMES, accuracy, digits, train_classifier, write_split

FULL = "pndm, 30 steps"
WAYS = {
    FULL: {},
    "pndm, 15 steps": {"steps": 15},
    "dpmpp, 15 steps": {"scheduler": "dpmpp", "steps": 15},
    "dpmpp, 10 steps": {"scheduler": "dpmpp", "steps": 10},
    "unipc, 15 steps": {"scheduler": "unipc", "steps": 15},
    "unipc, 10 steps": {"scheduler": "unipc", "steps": 10},
    "guided in 0.2-0.6": {"guidance_interval": (0.2, 0.6)},
    "guided in 0.0-0.6": {"guidance_interval": (0.0, 0.6)},
    "cache_interval 2": {"cache_interval": 2},
    "cache_interval 3": {"cache_interval": 3},
    "dpmpp, 15 steps, guided in 0.0-0.6": {"scheduler": "dpmpp", "steps": 15, "guidance_interval": (0.0, 0.6)},
}


def load(way, checkpoint):
    options = dict(WAYS[way])
    return options.pop("steps", 30), load_generator(checkpoint, compile=False, **options)


def sample(way, args, world):
    """Images of a way and their labels, and the seconds that an image takes in each round."""
    steps, generator = load(way, args.generator)
    prompts = generator.encode_prompts([f"a photo of a {name}" for name in NAMES])
    clock, seconds = time.process_time if args.cpu_time else time.perf_counter, []
    for _ in range(args.rounds):
        start = clock()
        made = make(generator, *world, args.augmentation, args.count, args.guidance, prompts, 64, steps)
        seconds.append((clock() - start) / args.count)
    return *made, seconds


def compare(ways, args):
    """Rows of time, change of the images and agreement."""
    (sources, labels), others = real_digits()
    judge = train_classifier(TensorDataset(*others), None, args.judge_updates, 0)
    world = F.interpolate(sources, (32, 32), mode="bilinear", antialias=True), labels
    full = None
    for way in ways:
        images, truth, seconds = sample(way, args, world)
        full = images if full is None else full
        change = (images.float() - full.float()).abs()
        values = {
            "time an image": (1e3 * statistics.median(seconds), "ms of a core" if args.cpu_time else "ms", args.rounds),
            "change of a pixel": (change.mean().item(), "of 255", len(images)),
            "agreement": (100 * accuracy(judge, gray(images), truth), "%", len(images)),
        }
        yield from ({"case": way, "measure": name, "value": v, "unit": u, "n": n} for name, (v, u, n) in values.items())


def train(ways, args):
    """Rows of the accuracy that each way's images lead to, and of its difference from the full run's, seed by seed."""
    data, full = digits(), None
    for way in ways:
        steps, generator = load(way, args.generator)
        values = [trained(seed, generator, steps, data, args) for seed in range(args.seeds)]
        full = values if full is None else full
        change = [value - before for value, before in zip(values, full, strict=True)]
        rows = {
            "accuracy": (statistics.mean(values), "%"),
            "accuracy, change": (statistics.mean(change), "points"),
            "accuracy, standard error of the change": (statistics.stdev(change) / args.seeds**0.5, "points"),
        }
        yield from ({"case": way, "measure": m, "value": v, "unit": u, "n": args.seeds} for m, (v, u) in rows.items())


def trained(seed, generator, steps, data, args):
    """Accuracy in % of a classifier that learns from a few real digits and a generator's."""
    with tempfile.TemporaryDirectory() as folder:
        real, held_out = write_split(*data, Path(folder) / "real", args.shots, seed, "validation")
        dataset = ImageFolder(real, transform=AFFINE)
        synthetic = AugConditionedSynthetic(
            dataset, args.augmentation, generator=generator, num_per_class=args.num_per_class, seed=seed,
            guidance_scale=args.guidance, num_inference_steps=steps, root=Path(folder) / "synthetic",
        )  # fmt: skip
        mixed = dataset + synthetic
        half = MixedRealSyntheticSampler(mixed, seed=seed, epoch_length=args.updates * BATCH)
        return 100 * accuracy(train_classifier(mixed, half, args.updates, seed), *held_out)


def main():
    parser, some = make_parser(__doc__, "shortcuts", devices=["cpu"]), at_least(1)
    parser.add_argument("--generator", default="tiny", help="name or folder (default: %(default)s)")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY", help="default: all")
    parser.add_argument("--augmentation", default="embed-cutmix", help="default: %(default)s")
    parser.add_argument("--guidance", type=float, default=2.0, help="guidance scale (default: %(default)s)")
    parser.add_argument("--count", type=some, default=300, help="images compared (default: %(default)s)")
    parser.add_argument("--rounds", type=some, default=3, help="timings, of which the median (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=at_least(2), default=3, help="trainings of each way, 2 or more (default: %(default)s)"
    )
    parser.add_argument("--shots", type=some, default=2, help="real images a class (default: %(default)s)")
    parser.add_argument("--num-per-class", type=some, default=64, help="synthetic images (default: %(default)s)")
    parser.add_argument("--updates", type=some, default=400, help="of each training (default: %(default)s)")
    judge = "of the classifier of real digits (default: %(default)s)"
    parser.add_argument("--judge-updates", type=some, default=600, help=judge)
    parser.add_argument("--cpu-time", action="store_true", help="time of the process, for a machine that is shared")
    args = parse(parser)
    if args.quick:
        args.ways, args.count, args.rounds = ["unipc, 10 steps"], 4, 1
        args.seeds, args.num_per_class, args.updates, args.judge_updates = 2, 1, 2, 2
    ways = [FULL, *(way for way in args.ways if way != FULL)]
    common = {"augmentation": args.augmentation, "guidance": args.guidance}
    rows = (common | row for row in chain(compare(ways, args), train(ways, args)))
    write_rows(args.csv, "shortcuts", rows, load_generator(args.generator).checkpoint)


if __name__ == "__main__":
    run_main(main)
