"""Reading, sampling, opening, planning and a large image's files, `benchmarks/bench_data.py`: time and memory.

Each section runs in a process of its own, whose largest resident set is what it needs.
"""

import ctypes
import hashlib
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from arguments import make_parser, parse, run_main
from PIL import Image
from rows import write_rows
from torch.utils.data import DataLoader, Dataset, RandomSampler, WeightedRandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import PILToTensor
from transformers import CLIPImageProcessor

from torch_augcond import AugConditionedSynthetic, MixedRealSyntheticSampler
from torch_augcond.job import Job
from torch_augcond.plan import Settings, make_plan
from torch_augcond.request import Request
from torch_augcond.sources import Sources

CLASSES = 1000


class Painter:
    """A generator of smooth pictures, which compress and decode about as photographs do."""

    fingerprint, embed_dim = "painter", 4

    def __init__(self, image_size):
        self.image_size = image_size

    def encode_images(self, images):
        return torch.zeros(len(images), self.embed_dim)

    def encode_prompts(self, prompts):
        return torch.zeros(len(prompts), 1, 4)

    def generate(self, image_embeds, prompt_embeds, keys, **numbers):
        coarse = torch.rand(len(keys), 3, 16, 16, generator=torch.Generator().manual_seed(int(keys[0]) % 2**62))
        size = (self.image_size, self.image_size)
        return (F.interpolate(coarse, size, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)


class Pictures(Dataset):
    """Real images, `each` of every class, that need no file."""

    def __init__(self, classes, each):
        self.classes = [f"class {i:04}" for i in range(classes)]
        self.targets = [i // each for i in range(classes * each)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        return Image.fromarray(np.full((4, 4, 3), (i >> 16, i >> 8 & 255, i & 255), np.uint8)), self.targets[i]


class Part(Dataset):
    """A part of a training set, as far as a sampler looks at it."""

    def __init__(self, length, is_synthetic):
        self.length, self.is_synthetic = length, is_synthetic

    def __len__(self):
        return self.length


def row(case, measure, value, unit, n=1):
    return {"case": case, "measure": measure, "value": value, "unit": unit, "n": n}


def seconds(run, clock=time.process_time):
    """What `run` takes, and its result; on the processor's clock, other work of the machine doesn't count."""
    start = clock()
    result = run()
    return clock() - start, result


def resident(field="VmRSS"):
    """Bytes of this process in memory now, or (VmHWM) at most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak(run):
    """(seconds, result, bytes of memory that `run` needed at its most, bytes that its result keeps)."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the largest size begins anew
    before = resident()
    took, result = seconds(run)
    most = resident("VmHWM") - before
    ctypes.CDLL(None).malloc_trim(0)
    return took, result, most, resident() - before


def turns(runs, rounds, clock=time.process_time):
    """The median of the seconds that each of `runs` takes; they take turns, after one round to warm up."""
    took = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            took[name].append(seconds(run, clock)[0])
    return {name: statistics.median(times[1:]) for name, times in took.items()}


def reading(number, rounds=9):
    """`synthetic[i]` and `ImageFolder[i]` on the same files; loaders of both."""
    for size in (64, 512):
        with tempfile.TemporaryDirectory() as root:
            given = {"num_per_class": number // 8, "generator": Painter(size), "root": root}
            ours = AugConditionedSynthetic(Pictures(8, 4), transform=PILToTensor(), **given)
            datasets = {"ours": ours, "ImageFolder": ImageFolder(root, PILToTensor())}
            order = random.Random(0).sample(range(len(ours)), len(ours))
            runs = {name: lambda data=data, order=order: [data[i] for i in order] for name, data in datasets.items()}
            for name, took in turns(runs, rounds).items():
                yield row(f"{name}, {size} px", "reading", 1e6 * took / number, "µs/image", rounds)
            for name, run in runs.items():
                yield row(f"{name}, {size} px", "memory of reading, at most", peak(run)[2] / 2**20, "MiB")
            for workers in (0, 2):
                for name, data in datasets.items():
                    needed = _memory(_loader(data, workers)) / 2**20
                    yield row(f"{name}, {size} px, {workers} workers", "memory of loading", needed, "MiB")
                loaders = {name: _loader(data, workers) for name, data in datasets.items()}
                runs = {name: lambda loader=loader: sum(1 for _ in loader) for name, loader in loaders.items()}
                for name, took in turns(runs, rounds, time.perf_counter).items():
                    yield row(f"{name}, {size} px, {workers} workers", "loading", number / took, "images/s", rounds)


def _memory(loader):
    """Bytes that a pass needs at its most in this process, and those of its workers that they share with no other."""
    most = peak(lambda: sum(1 for _ in loader))[2]
    private = 0
    for worker in multiprocessing.active_children():
        lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
        private += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))
    return most + private


def _loader(data, workers):
    fork = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
    return DataLoader(data, 32, num_workers=workers, **fork)


def sampling(number, rounds=5):
    """A pass over as many indices, the drawing of the order included."""
    data = Part(number // 2, False) + Part(number // 2, True)
    samplers = {
        "RandomSampler": RandomSampler(data),
        "WeightedRandomSampler": WeightedRandomSampler(torch.ones(number), number),
        "ours": MixedRealSyntheticSampler(data, epoch_length=number),
    }
    runs = {name: lambda sampler=sampler: sum(1 for _ in sampler) for name, sampler in samplers.items()}
    for name, took in turns(runs, rounds).items():
        yield row(name, "sampling", 1e9 * took / number, "ns/index", rounds)
    for name, run in runs.items():
        yield row(name, "memory of sampling", peak(run)[2] / number, "bytes/index")


def opening(number):
    """A finished set, of which nothing is read but the names of its files."""
    each = min(16, number // CLASSES)
    given = {"num_per_class": number // CLASSES, "generator": Painter(64)}
    with tempfile.TemporaryDirectory() as folder:
        given["root"] = os.path.join(folder, "set")
        job = Job(Request(dataset=Pictures(CLASSES, each), **given), write=True, load=Painter)
        names = {label: job.store.path(name, "") for label, name in job.sources.class_of.items()}
        for key, label in zip(job.plan.keys, job.plan.labels.tolist()):
            path = names[label].with_name(key.tobytes().hex() + names[label].name)
            path.parent.mkdir(exist_ok=True)
            path.touch()
        del job
        real = Pictures(CLASSES, each)
        took, opened, most, kept = peak(lambda: AugConditionedSynthetic(real, generate=False, **given))
        number = len(opened)
    yield row(f"{number} entries", "opening", took, "s")
    yield row(f"{number} entries", "memory of opening, at most", most / 2**20, "MiB")
    yield row(f"{number} entries", "memory of an open set", kept / number, "bytes/entry")


def planning(number):
    """A long tail of real images, as ImageNet-LT's, filled up; on one core."""
    real = np.linspace(1280 ** (1 / 6), 5 ** (1 / 6), CLASSES) ** 6  # from 1280 images a class to 5
    labels = np.repeat(np.arange(CLASSES), np.maximum(1, (real * number / 1_160_000).astype(int)))
    digests = [hashlib.blake2b(b"%d" % i, digest_size=16).hexdigest() for i in range(len(labels))]
    names = {i: f"class {i:04}" for i in range(CLASSES)}
    fill_to = round((number + len(labels)) / CLASSES)
    settings = Settings([{"name": "EmbedCutMix"}], 2, "painter", 512, 2.0, 30, 0, 0, "per-class", "a photo of a {}")
    given = settings, labels, digests, names, {name: f"a photo of a {name}" for name in names.values()}
    took, plan, most, kept = peak(lambda: make_plan(*given, fill_to=fill_to))
    yield row(f"{len(plan)} recipes from {len(labels)} images", "planning", took, "s")
    yield row(f"{len(plan)} recipes from {len(labels)} images", "memory of planning, at most", most / 1e6, "MB")
    yield row(f"{len(plan)} recipes from {len(labels)} images", "memory of a plan", kept / len(plan), "bytes/recipe")


def files(number, rounds=5):
    """What the processor does for a large image, while or before a GPU works: reading a source, writing the image."""
    draw = torch.arange(number)
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder) / "real" / "class"
        photographs.mkdir(parents=True)
        for i, image in enumerate(Painter(512).generate(None, None, draw)):
            Image.fromarray(image.permute(1, 2, 0).numpy()[:384]).save(photographs / f"{i}.jpg", quality=90)
        real, generator, prepare = ImageFolder(photographs.parent), Painter(768), CLIPImageProcessor()
        request = Request(dataset=real, generator=generator, num_per_class=number, root=Path(folder) / "set")
        job = Job(request, write=True, load=Painter)
        sources = Sources.from_dataset(real)
        digests, images = sources.digests(), generator.generate(None, None, draw)
        runs = {
            "a source, 512 × 384, read, decoded and prepared": lambda: [
                prepare(images=[sources.image(i, digests[i])]) for i in range(number)
            ],
            "an image, 768 × 768, encoded and written": lambda: job.store.write_many(
                list(job.plan), images, [{}] * number
            ),
        }
        for name, took in turns(runs, rounds, time.perf_counter).items():
            yield row(name, "files", 1e3 * took / number, "ms/image", rounds)


SECTIONS = {reading: 256, files: 64, sampling: 1_280_000, planning: 1_160_000, opening: 1_280_000}
QUICK = {reading: 16, files: 2, sampling: 1000, planning: 3000, opening: 2000}


def _rows(section, number):
    warnings.simplefilter("ignore")  # classes with one image only, meant here
    torch.set_num_threads(1)
    return list(section(number))


def measured(numbers, names):
    for section, number in numbers.items():
        if section.__name__ not in names:
            continue
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            yield from pool.submit(_rows, section, number).result()


def main():
    parser = make_parser(__doc__, "data", devices=["cpu"])
    names = [section.__name__ for section in SECTIONS]
    parser.add_argument("--sections", nargs="+", choices=names, default=names, help="default: all")
    args = parse(parser)
    torch.set_num_threads(1)
    write_rows(args.csv, "data", measured(QUICK if args.quick else SECTIONS, args.sections), "")


if __name__ == "__main__":
    run_main(main)
