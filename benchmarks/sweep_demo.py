"""Which shots, variant, guidance, steps and share should the demo start with? `python benchmarks/sweep_demo.py`.

Trains the demo's classifiers on real digits and measures them on its *validation* digits, over seeds that the demo
itself doesn't use. Every row is written as it comes; run it again to go on. `--summary` prints the means.
"""

import argparse
import csv
import itertools
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from arguments import run_main

from torch_augcond import load_generator
from torch_augcond.cli import demo

SETTING = ("shots", "variant", "guidance", "steps", "fraction", "seed")
COLUMNS = (*SETTING, "accuracy", "scheduler", "updates", "num_per_class", "torch", "threads")
FIRST_SEED = 100


def measure(setting, args, data, generator):
    """Validation accuracy of one arm: a variant of the method or, without synthetic images, one of the demo's arms."""
    shots, variant, guidance, steps, fraction, seed = setting
    folder = Path(args.work) / f"{shots}-shot" / f"seed{seed}"
    train, held_out = demo.write_split(*data, folder / "real", shots, seed, "validation")
    if variant in demo.ARMS:
        dataset = demo.ImageFolder(train, transform=demo.AFFINE if variant == demo.ARMS[1] else demo.PLAIN)
        chosen = dataset, None
    else:
        options = argparse.Namespace(
            augmentation=variant, guidance_scale=guidance, num_inference_steps=steps, num_per_class=args.num_per_class,
            synthetic_fraction=Fraction(fraction), updates=args.updates,
        )  # fmt: skip
        chosen = demo.arms(train, folder, generator, options, seed)[demo.ARMS[2]]
    return demo.accuracy(demo.train_classifier(*chosen, args.updates, seed), *held_out)


def rows(path):
    return list(csv.DictReader(path.open())) if path.exists() else []


def summary(path):
    """Print mean accuracy and, paired by seed, the mean gain over affine augmentation with its standard error."""
    table = defaultdict(dict)
    for row in rows(path):
        table[int(row["shots"]), *(row[name] for name in SETTING[1:-1])][row["seed"]] = float(row["accuracy"])
    for (shots, *arm), values in sorted(table.items()):
        base = table[shots, demo.ARMS[1], "", "", ""]
        gains = 100 * np.array([values[s] - base[s] for s in values if s in base])
        error = gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
        mean = 100 * np.mean(list(values.values()))
        print(f"{shots} {' '.join(arm):<36}{mean:6.1f}  {gains.mean():+5.1f} ± {error:.1f}  n={len(values)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 3, 5], help="default: %(default)s")
    parser.add_argument("--variants", nargs="+", help="default: %(default)s",
                        default=["real", "embed-cutmix", "embed-mixup", "dropout", "embed-cutmix-dropout"])  # fmt: skip
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0], help="default: %(default)s")
    parser.add_argument("--steps", type=int, nargs="+", default=[10], help="default: %(default)s")
    parser.add_argument("--fractions", nargs="+", default=["1/2"], metavar="F", help="synthetic share of a batch, "
                        "default: %(default)s")  # fmt: skip
    parser.add_argument("--scheduler", default="unipc", help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=4, help="draws of real images (default: %(default)s)")
    parser.add_argument("--updates", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--num-per-class", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--generator", default="tiny", help="name or folder (default: %(default)s)")
    parser.add_argument("--work", default="sweep-demo-work", help="folder of the images (default: %(default)s)")
    parser.add_argument("--csv", default="benchmarks/results/demo_sweep.csv", help="default: %(default)s")
    parser.add_argument("--summary", action="store_true", help="only print what is there")
    args = parser.parse_args()
    path = Path(args.csv)
    if args.summary:
        return summary(path)
    done = {tuple(row[name] for name in SETTING) for row in rows(path)}
    data, generator = demo.digits(), load_generator(args.generator, scheduler=args.scheduler)
    mixes = itertools.product(args.variants, args.guidance, args.steps, args.fractions)
    arms = [*((arm, "", "", "") for arm in demo.ARMS[:2]), *mixes]
    for index, shots, arm in itertools.product(range(args.seeds), args.shots, arms):
        setting = shots, *arm, FIRST_SEED + index
        if tuple(map(str, setting)) in done:
            continue
        value = measure(setting, args, data, generator)
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            rest = (args.scheduler, args.updates, args.num_per_class, torch.__version__, torch.get_num_threads())
            writer.writerow([*setting, f"{value:.4f}", *rest])
        print(*setting, f"{value:.1%}", flush=True)
    return summary(path)


if __name__ == "__main__":
    run_main(main)
