"""Slow, obvious twins: Python integers, numpy in float64, loops. Nothing here imports the package."""

import math

import numpy as np

WORD = 2**64


def splitmix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % WORD
    return x ^ (x >> 31)


def fold(key: int, n: int) -> int:
    """A key as an unsigned number."""
    return splitmix((splitmix(key % WORD) - n) % WORD) if n else key % WORD


def word(key: int, purpose: int, position: int) -> int:
    stream = splitmix((splitmix(key % WORD) + purpose) % WORD)
    return splitmix((stream ^ position) * 0x9E3779B97F4A7C15 % WORD)


def fractions(key: int, purpose: int, position: int) -> tuple[float, float]:
    """The middle of one of 2²³ parts, from the top 23 bits and from bits 9 to 31."""
    bits = word(key, purpose, position)
    return ((bits >> 41) + 0.5) / 2**23, ((bits >> 9) % 2**23 + 0.5) / 2**23


def uniform(keys, purpose: int, num: int) -> np.ndarray:
    return np.array([[fractions(int(k), purpose, j)[0] for j in range(num)] for k in keys])


def normal(keys, purpose: int, num: int) -> np.ndarray:
    pairs = np.array([[fractions(int(k), purpose, j) for j in range(num)] for k in keys])
    return np.sqrt(-2 * np.log(pairs[..., 0])) * np.cos(2 * np.pi * pairs[..., 1])


def beta(keys, alpha: float) -> np.ndarray:
    u, v = uniform(keys, 0, 2).T
    if alpha == 1:
        return u
    t = np.sqrt(2 * alpha * (u ** (-1 / alpha) - 1)) * np.cos(2 * np.pi * v)
    return 0.5 + 0.5 * t / np.sqrt(2 * alpha + t**2)


def span(lam: float, dim: int) -> int:
    return math.floor((1 - lam) * dim + 0.5)


def random_start(key: int, lam: float, dim: int) -> int:
    return int(uniform([key], 1, 1)[0, 0] * (dim - span(lam, dim) + 1))


def embed_cutmix(embeds, partners, lam, start=None) -> np.ndarray:
    out = np.asarray(embeds).copy()
    for i, row in enumerate(out):
        first = 0 if start is None else int(start[i])
        for j in range(first, first + span(float(lam[i]), len(row))):
            row[j] = partners[i][j]
    return out


def embed_mixup(embeds, partners, lam) -> np.ndarray:
    return np.array(
        [float(w) * np.float64(a) + (1 - float(w)) * np.float64(b) for a, b, w in zip(embeds, partners, lam)]
    )


def embed_dropout(embeds, keys, p: float, rescale: bool = False) -> np.ndarray:
    out = np.asarray(embeds).astype(np.float64)
    for row, drawn in zip(out, uniform(keys, 2, out.shape[1])):
        for j, u in enumerate(drawn):
            row[j] = 0 if u < p else row[j] / (1 - p) if rescale else row[j]
    return out


def cutmix_box(lam: float, centre, height: int, width: int) -> tuple[int, int, int, int]:
    r = 0.5 * math.sqrt(1 - lam)
    x, y, w, h = int(centre[0] * width), int(centre[1] * height), int(r * width), int(r * height)
    return max(x - w, 0), max(y - h, 0), min(x + w, width), min(y + h, height)


def pixel_cutmix(images, partners, boxes) -> np.ndarray:
    out = np.asarray(images).copy()
    for image, partner, (x1, y1, x2, y2) in zip(out, partners, boxes):
        image[:, y1:y2, x1:x2] = partner[:, y1:y2, x1:x2]
    return out


def add_noise(embeds, noise, mean, std, signal, sigma) -> np.ndarray:
    return (signal * (embeds - mean) / std + sigma * noise) * std + mean


def level_embedding(level: float, dim: int) -> np.ndarray:
    angles = level * 10000.0 ** (-np.arange(dim // 2) / (dim // 2))
    return np.concatenate([np.cos(angles), np.sin(angles), np.zeros(dim % 2)])


def condition(embeds, partners, keys, mean, std, signal, sigma, level, alpha, p) -> np.ndarray:
    """embed-cutmix-dropout with a leading span."""
    noise = normal(keys, 3, len(mean))
    a, b = (add_noise(x, noise, mean, std, signal, sigma) for x in (embeds, partners))
    mixed = embed_cutmix(a, b, beta(keys, alpha))
    levels = np.tile(level_embedding(level, len(mean)), (len(mixed), 1))
    return embed_dropout(np.concatenate([mixed, levels], 1), keys, p)
