"""What the small unCLIP of photographs keeps of its condition, on classes it has seen and on classes it never saw.

    python benchmarks/measure_natural_unclip.py --base-val base_val.zip --novel novel.zip --sheets SHEETS

Two parts, two sets of images each: `sources`, of which images are made, and `references`, to which they are compared.
`base`: held-out photographs of the training's classes, half and half; agreement is the share of images whose class the
measuring network names right. `novel`: other classes, of the zip's `test` and of its `train`; agreement is the share
whose features lie nearest to the mean of the references of the source's class. Each row stands beside two limits: the
sources themselves, and what the autoencoder alone makes of them.
"""

import argparse
import time
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import metrics
import photographs
import torch
from arguments import run_main
from judges import load_judge, looked_at
from measure_tiny_unclip import make
from rows import write_rows
from torchvision.utils import make_grid, save_image

from torch_augcond import VARIANTS, load_generator


@dataclass
class Part:
    """One set of classes: sources and references (photographs), and the judge's class of each of their labels.

    A class that the judge doesn't know is found by the nearest mean of the references: `known` is None then.
    """

    name: str
    sources: photographs.Photographs
    references: photographs.Photographs
    judge: torch.nn.Module
    known: torch.Tensor | None = None

    def __post_init__(self):
        self.seen = looked_at(self.judge.features, self.references.pixels)
        self.means = metrics.class_means(self.seen, self.references.labels)

    def classes_of(self, images):
        """Which label the judge gives to images; -1 for a class of its own that is none of the part's."""
        if self.known is None:
            return metrics.nearest_mean(looked_at(self.judge.features, images), self.means)
        found = looked_at(self.judge.forward, images).argmax(1)
        match = found[:, None] == self.known
        return torch.where(match.any(1), match.int().argmax(1), -1)

    def measures(self, images, labels):
        """(measure, value, unit) of images that were made of sources with these labels."""
        features = looked_at(self.judge.features, images).numpy()
        yield "agreement", (self.classes_of(images) == labels).double().mean().item(), "share"
        yield "frechet", metrics.frechet_distance(self.seen.numpy(), features), "squared feature"
        yield "recall", metrics.recall(self.seen.numpy(), features), "share"
        yield "vendi in class", metrics.vendi_within(features, labels.numpy()), "images"


def halves(data):
    """Every second photograph, and the others: half of each class, since they lie in the order of their classes."""
    return tuple(photographs.Photographs(data.pixels[i::2], data.labels[i::2], data.texts) for i in (0, 1))


def base_part(path, judge, classes):
    """Held-out photographs of the judge's own classes, which go by the same names."""
    sources, references = halves(photographs.folders(path))
    known = [classes.index(texts[0]) for texts in sources.texts]
    return Part("base", sources, references, judge, torch.tensor(known))


def novel_part(path, judge, classes):
    """Photographs of classes that the judge must not know."""
    sources, references = (photographs.folders(path, split) for split in ("test/", "train/"))
    if shared := set(classes) & {texts[0] for texts in sources.texts}:
        raise ValueError(f"`--novel` must hold classes that nobody was trained on, but got {sorted(shared)}.")
    return Part("novel", sources, references, judge)


@torch.no_grad()
def reconstructed(generator, pixels, batch=64):
    """What the autoencoder alone makes of the images, (N, 3, H, W) uint8: the limit of what the generator can reach."""
    vae, done = generator.pipe.vae, []
    for part in pixels.split(batch):
        latents = vae.encode((part.to(generator.device, generator.dtype) / 127.5) - 1).latent_dist.mean
        images = vae.decode(latents).sample.float().clamp(-1, 1)
        done.append(((images + 1) * 127.5).round().to(torch.uint8).cpu())
    return torch.cat(done)


def limits(part, generator, count):
    """Rows of as many of the sources themselves, since Fréchet distances depend on the number, and reconstructed."""
    index = torch.randperm(len(part.sources), generator=torch.Generator().manual_seed(0))[:count]
    pixels, labels = part.sources.pixels[index], part.sources.labels[index]
    images = reconstructed(generator, pixels)
    yield from rows_of(part, "(real)", "", pixels, labels)
    yield from rows_of(part, "(reconstructed)", "", images, labels)
    distance = metrics.perceptual_distance(part.judge, images, pixels)
    for measure, value, unit in (("psnr", metrics.psnr(images, pixels), "dB"), ("perceptual", distance, "squared")):
        yield row(part, "(reconstructed)", "", measure, value, unit, len(images))


def rows_of(part, variant, guidance, images, labels):
    for measure, value, unit in part.measures(images, labels):
        yield row(part, variant, guidance, measure, value, unit, len(images))


def row(part, variant, guidance, measure, value, unit, n):
    case = {"case": f"{part.name} {variant}", "guidance": guidance}
    return case | {"measure": measure, "value": value, "unit": unit, "n": n}


def variants(part, generator, names, guidances, count, steps, sheets):
    """Rows of what each variant makes of random sources, and a sheet of the first of its images."""
    prompts = generator.encode_prompts([f"a photo of a {texts[0]}" for texts in part.sources.texts])
    inputs = generator, part.sources.pixels / 255, part.sources.labels
    for guidance in guidances:
        for name in names:
            start = time.monotonic()
            images, labels = make(*inputs, name, count, guidance, prompts, steps=steps)
            seconds = (time.monotonic() - start) / count
            yield from rows_of(part, name, guidance, images, labels)
            yield row(part, name, guidance, "time", seconds, "s/image", count)
            if sheets:
                save_image(make_grid(images[:64] / 255, 16), sheets / f"{part.name}-{name}-{guidance:g}.png")


def side_by_side(part, generator, guidance, steps, columns=16):
    """A source in each column, of as many classes; below it its reconstruction and what is made of it alone."""
    labels = (torch.arange(columns) * len(part.sources.texts) // columns).tolist()
    pixels = torch.stack([part.sources.pixels[part.sources.labels == label][0] for label in labels])
    embeds = generator.encode_images(list(pixels))
    prompts = generator.encode_prompts([f"a photo of a {part.sources.texts[label][0]}" for label in labels])
    options = {"guidance_scale": guidance, "num_inference_steps": steps}
    lines = [pixels, reconstructed(generator, pixels)]
    for name in ("real", "dropout", "text-only"):
        keys = torch.arange(columns)
        lines.append(generator.generate(embeds, prompts, keys, augmentation=VARIANTS[name], **options))
    return make_grid(torch.cat(lines) / 255, columns)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generator", default="torch_augcond/checkpoints/tiny-natural", help="default: %(default)s")
    parser.add_argument("--judge", default="benchmarks/judges/measure.safetensors", help="default: %(default)s")
    parser.add_argument("--base-val", help="zip of CLASS/FILE, photographs held out from the training")
    parser.add_argument("--novel", help="zip of train/CLASS/FILE and test/CLASS/FILE, of other classes")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="default: all")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0], help="default: %(default)s")
    parser.add_argument("--count", type=int, default=1000, help="images of each row (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="of the scheduler (default: %(default)s)")
    parser.add_argument("--csv", default="benchmarks/results/natural_unclip.csv", help="default: %(default)s")
    parser.add_argument("--sheets", type=Path, help="folder for PNG sheets (default: none)")
    args = parser.parse_args()
    generator = load_generator(args.generator)
    judge, classes = load_judge(args.judge, generator.device)
    given = [(base_part, args.base_val), (novel_part, args.novel)]
    parts = [make_part(path, judge, classes) for make_part, path in given if path]
    work = (generator, args.variants, args.guidance, args.count, args.steps, args.sheets)
    if args.sheets:
        args.sheets.mkdir(parents=True, exist_ok=True)
        for part in parts:
            sheet = side_by_side(part, generator, args.guidance[0], args.steps)
            save_image(sheet, args.sheets / f"{part.name}.png")
    rows = (row for part in parts for row in chain(limits(part, generator, args.count), variants(part, *work)))
    write_rows(args.csv, "natural_unclip", rows, generator.fingerprint, str(generator.device))


if __name__ == "__main__":
    run_main(main)
