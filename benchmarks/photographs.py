"""Photographs on the device that trains with them: decoded once, augmented there, each in its own way.

The set that this was written for is Tiny-ImageNet (http://cs231n.stanford.edu/tiny-imagenet-200.zip, on ImageNet's
terms: non-commercial research), in 64x64. The names of its classes with their synonyms, from WordNet, are in
`tiny_imagenet_names.tsv`.
"""

import io
import json
import math
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open

LUMA = (0.299, 0.587, 0.114)
SYNONYMS = Path(__file__).with_name("tiny_imagenet_names.tsv")


@dataclass
class Photographs:
    """Images of labelled classes, and how their random views are drawn.

    pixels (N, 3, H, H) uint8; labels (N,) int64 index into texts; texts: for each label its names, the first of them
    its own; crop: the least and the greatest part of the area that a view shows; jitter: how far brightness, contrast
    and saturation go from 1.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    texts: list[list[str]]
    crop: tuple[float, float] = (0.6, 1.0)
    jitter: float = 0.1

    def __post_init__(self):
        device, counts = self.labels.device, torch.bincount(self.labels, minlength=len(self.texts))
        order = torch.argsort(self.labels, stable=True)
        self.names = [name for names in self.texts for name in names]
        self._texts = torch.tensor([len(names) for names in self.texts], device=device)
        self._first_text = self._texts.cumsum(0) - self._texts
        self._order, self._counts, self._first = order, counts, counts.cumsum(0) - counts

    def __len__(self):
        return len(self.labels)

    def seen(self, crop, jitter):
        """The same photographs with other views."""
        return replace(self, crop=crop, jitter=jitter)

    def named(self, labels, rng):
        """The index into `names` of a random name of each label."""
        return self._first_text[labels] + self._below(self._texts[labels], rng)

    def another(self, index, rng):
        """A random image with the same label as each of `index` (possibly itself)."""
        label = self.labels[index]
        return self._order[self._first[label] + self._below(self._counts[label], rng)]

    def _below(self, high, rng):
        random = torch.rand(len(high), generator=rng, device=high.device, dtype=torch.float64)
        return (random * high).long()

    def canonical(self, index):
        """The whole images, (n, 3, H, H) in [-1, 1]."""
        return self.pixels[index].float() / 127.5 - 1

    def sketches(self, index, pixels):
        """What an embedding of views of photographs shall tell: each view itself, in 16x16."""
        return F.interpolate(pixels, (16, 16), mode="area")

    def views(self, index, rng):
        """Random views (n, 3, H, H) in [-1, 1]: a crop in its own shape, mirrored or not, in its own light."""
        n = len(index)
        draw = lambda low, high: torch.rand(n, generator=rng, device=index.device) * (high - low) + low  # noqa: E731
        area, shape = draw(*self.crop), draw(-math.log(4 / 3), math.log(4 / 3)).exp()
        wide, high = (area * shape).sqrt().clamp(max=1), (area / shape).sqrt().clamp(max=1)
        mirrored, images = wide * draw(-1, 1).sign(), self.canonical(index)
        side = images.shape[-1]
        # Not affine_grid: in bfloat16, as a matrix product, it would be wrong by parts of a pixel.
        place = (torch.arange(side, device=index.device) * 2 + 1) / side - 1
        x = ((draw(-1, 1) * (1 - wide))[:, None] + mirrored[:, None] * place)[:, None, :].expand(n, side, side)
        y = ((draw(-1, 1) * (1 - high))[:, None] + high[:, None] * place)[:, :, None].expand(n, side, side)
        views = F.grid_sample(images, torch.stack([x, y], -1), padding_mode="border", align_corners=False)
        light = [draw(1 - self.jitter, 1 + self.jitter).view(n, 1, 1, 1) for _ in range(3)]
        return relit((views + 1) / 2, *light) * 2 - 1


def relit(pixels, brightness, contrast, saturation):
    """Pixels (n, 3, H, W) in [0, 1] with other brightness, contrast and saturation, (n, 1, 1, 1); 1 changes none."""
    pixels = pixels * brightness
    gray = (pixels * pixels.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    mean = gray.mean((2, 3), keepdim=True)
    return (mean + contrast * (gray - mean + saturation * (pixels - gray))).clamp(0, 1)


def decode(files, threads=None):
    """Encoded images, as bytes, of one size → (N, 3, H, W) uint8."""
    with ThreadPoolExecutor(threads) as pool:
        images = list(pool.map(lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), files))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def packed(paths, device="cpu", limit=None):
    """The photographs of safetensors files that hold `bytes` (all images, one after another), `offsets` and `labels`.

    Their metadata name the `classes` and their WordNet ids, `wnids`. `limit` takes that many of each file.
    """
    pixels, labels = [], []
    for path in paths:
        with safe_open(path, "numpy") as file:
            data, offsets = memoryview(file.get_tensor("bytes")), file.get_tensor("offsets")[: limit and limit + 1]
            labels.append(file.get_tensor("labels")[:limit].astype(np.int64))
            classes, wnids = (json.loads(file.metadata()[key]) for key in ("classes", "wnids"))
        pixels.append(decode(data[start:end] for start, end in pairwise(offsets)))
    labels = torch.from_numpy(np.concatenate(labels)).to(device)
    return Photographs(torch.cat(pixels).to(device), labels, texts_of(classes, wnids))


def texts_of(classes, wnids=None):
    """For each class its own name in plain words and, where WordNet lists its id, its synonyms."""
    lines = (line.split("\t") for line in SYNONYMS.read_text().splitlines()) if wnids else ()
    synonyms = {wnid: names.split(", ") for wnid, names in lines}
    return [
        list(dict.fromkeys([own.replace("_", " "), *synonyms.get(wnid, ())]))
        for own, wnid in zip(classes, wnids or [None] * len(classes), strict=True)
    ]


def folders(path, split="", device="cpu"):
    """The photographs of a zip of `<split>/<class>/<file>`, in the order of their names."""
    with zipfile.ZipFile(path) as archive:
        entries = sorted(e for e in archive.namelist() if e.startswith(split) and e.endswith((".webp", ".png", ".jpg")))
        pixels = decode([archive.read(entry) for entry in entries])
    owners = [entry.split("/")[-2] for entry in entries]
    classes = sorted(set(owners))
    labels = torch.tensor([classes.index(owner) for owner in owners], device=device)
    return Photographs(pixels.to(device), labels, texts_of(classes))
