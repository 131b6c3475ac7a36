"""Does the bundled model follow its condition on digits, which it has never seen? `benchmarks/measure_tiny_unclip.py`.

A classifier of real digits looks at the images that each variant makes of other real digits; agreement is the share it
assigns to the class of their source. Also writes the sheets of the model card.
"""

import argparse
import csv
import datetime
import platform
import time
from pathlib import Path

import glyphs
import numpy as np
import torch
import torch.nn.functional as F
from arguments import run_main
from torch.utils.data import TensorDataset
from torchvision.utils import make_grid, save_image

from torch_augcond import VARIANTS, load_generator
from torch_augcond.cli.demo import NAMES, accuracy, digits, train_classifier
from torch_augcond.transforms import resolve

SOURCES = 100  # digits of each class to condition on; the classifier learns from the others


def real_digits():
    """Pixels (N, 1, 32, 32) in [0, 1] and labels, in two parts: to condition on, to train the classifier with."""
    images, labels = digits()
    rng, parts = np.random.default_rng(0), ([], [])
    for label in range(10):
        members = rng.permutation(np.flatnonzero(labels == label))
        for part, chosen in zip(parts, (members[:SOURCES], members[SOURCES:]), strict=True):
            part.append(chosen)
    for part in parts:
        index = np.concatenate(part)
        pixels = torch.from_numpy(images[index])[:, None].float() / 255
        yield pixels, torch.from_numpy(labels[index]).long()


def make(generator, pixels, labels, augmentation, count, guidance_scale, prompts, batch=100, steps=30):
    """`count` images (uint8) conditioned on random sources, each with a partner of its class; and their labels."""
    rng, transform = torch.Generator().manual_seed(1), resolve(augmentation)
    index = torch.randint(len(labels), (count,), generator=rng)
    mates = [torch.nonzero(labels == label).flatten() for label in labels[index].tolist()]
    partner = torch.stack([m[torch.randint(len(m), (), generator=rng)] for m in mates])
    keys, images = torch.arange(count) * 7919 + 1, []
    for rows in torch.arange(count).split(batch):
        first, second = ((pixels[i[rows]] * 255).to(torch.uint8).expand(-1, 3, -1, -1) for i in (index, partner))
        if transform.num_sources == 2 and transform.pixel.transforms:
            first = transform.pixel(first, partners=second, keys=keys[rows])
        embeds, partners = generator.encode_images(list(first)), generator.encode_images(list(second))
        images.append(generator.generate(
            embeds, prompts[labels[index[rows]]], keys[rows], partner_embeds=partners, augmentation=transform.embed,
            guidance_scale=guidance_scale, num_inference_steps=steps,
        ))  # fmt: skip
    return torch.cat(images), labels[index]


def held_out_sheet(generator, omniglot, characters=12):
    """A character of Omniglot a column; below each other what `real` makes of it, as six drawers held out drew it."""
    drawings = glyphs.load(omniglot, split="test")
    chosen = torch.arange(0, len(drawings.names), len(drawings.names) // characters)[:characters]
    index = torch.stack([drawings.members[label][:6] for label in chosen.tolist()], 1).flatten()
    sources = ((drawings.canonical(index) + 1) * 127.5).to(torch.uint8)
    prompts = generator.encode_prompts([f"a photo of a {name}" for name in drawings.captions(index)])
    embeds = generator.encode_images(list(sources))
    made = generator.generate(embeds, prompts, torch.arange(len(index)), guidance_scale=2.0, num_inference_steps=30)
    return make_grid(made.float() / 255, characters)


def gray(images, side=28):
    return F.interpolate(images.float().mean(1, keepdim=True) / 255, (side, side), mode="area")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", default="tiny", help="name or folder (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="default: all")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0, 10.0], help="default: %(default)s")
    parser.add_argument("--count", type=int, default=300, help="images of each row (default: %(default)s)")
    parser.add_argument("--csv", default="benchmarks/results/tiny_unclip.csv", help="default: %(default)s")
    parser.add_argument("--sheets", help="folder for PNG sheets (default: none)")
    parser.add_argument("--omniglot", help="zip of Omniglot drawings, for a sheet of drawers held out (default: none)")
    args = parser.parse_args()
    generator = load_generator(args.generator)
    (sources, source_labels), (others, other_labels) = real_digits()
    judge = train_classifier(TensorDataset(others, other_labels), None, 600, 0)
    resized = F.interpolate(sources, (32, 32), mode="bilinear", antialias=True)
    prompts = generator.encode_prompts([f"a photo of a {name}" for name in NAMES])
    world = {"date": datetime.date.today().isoformat(), "device": platform.processor() or platform.machine(),
             "torch": torch.__version__, "threads": torch.get_num_threads()}  # fmt: skip
    rows = [{"variant": "(real digits)", "guidance": "", "agreement": accuracy(judge, sources, source_labels)}]
    for guidance in args.guidance:
        for variant in args.variants:
            start = time.monotonic()
            images, labels = make(generator, resized, source_labels, variant, args.count, guidance, prompts)
            agreement = accuracy(judge, gray(images), labels)
            rows.append(
                {
                    "variant": variant,
                    "guidance": guidance,
                    "agreement": round(agreement, 4),
                    "images": len(images),
                    "ms_per_image": round(1e3 * (time.monotonic() - start) / len(images)),
                }
            )
            print(rows[-1], flush=True)
            if args.sheets:
                Path(args.sheets).mkdir(parents=True, exist_ok=True)
                save_image(make_grid(images[:60].float() / 255, 12), Path(args.sheets) / f"{variant}-{guidance:g}.png")
    if args.sheets and args.omniglot:
        save_image(held_out_sheet(generator, args.omniglot), Path(args.sheets) / "held-out-drawers.png")
    with open(args.csv, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[-1], *world])
        writer.writeheader()
        writer.writerows(row | world for row in rows)


if __name__ == "__main__":
    run_main(main)
