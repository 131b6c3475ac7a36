"""How good generated images are, from their pixels or from the features of a network; everything in float64."""

import math

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist


def psnr(images, targets):
    """Peak signal-to-noise ratio of uint8 images, dB: the mean over the images."""
    errors = (images.double() - targets.double()).pow(2).flatten(1).mean(1)
    return (10 * torch.log10(255**2 / errors.clamp(min=1e-9))).mean().item()


def perceptual_distance(judge, images, targets, batch=256):
    """Squared distance of the unit vectors at each place of each stage of a judge, as in LPIPS without its weights.

    The mean over places and images, the sum over stages: 0 for equal images, at most 4 a stage.
    """
    total, device = 0.0, next(judge.parameters()).device
    for pair in zip(images.split(batch), targets.split(batch), strict=True):
        with torch.no_grad():
            maps = [[F.normalize(m) for m in judge.maps(x.to(device).float() / 127.5 - 1)] for x in pair]
        total += sum((a - b).pow(2).sum(1).mean((1, 2)).sum().item() for a, b in zip(*maps))
    return total / len(images)


def frechet_distance(x, y):
    """Between the Gaussians with the means and covariances of the rows of x and of y (Heusel et al. 2017)."""
    x, y = (np.asarray(part, np.float64) for part in (x, y))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = _root(a)  # tr sqrt(ab) = tr sqrt(sqrt(a) b sqrt(a)), which stays symmetric
    shared = np.sqrt(scipy.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * shared)


def _root(matrix):
    values, vectors = scipy.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def recall(real, made, k=3):
    """The share of real rows that lie as near to some made row as its k-th neighbour does (Kynkäänniemi 2019)."""
    radii = np.partition(cdist(made, made), k, axis=1)[:, k]  # the nearest row, at place 0, is the row itself
    return float((cdist(real, made) <= radii).any(1).mean())


def vendi(features):
    """The effective number of different rows, by their cosines: 1 if all are alike (Friedman and Dieng 2023)."""
    rows = np.asarray(features, np.float64)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    shares = scipy.linalg.svdvals(rows) ** 2 / len(rows)  # the eigenvalues of the cosines' matrix over its size
    shares = shares[shares > 1e-12]
    return math.exp(-(shares * np.log(shares)).sum())


def vendi_within(features, labels):
    """The mean of each class's Vendi score, over the classes with two images or more."""
    groups = [np.asarray(features)[np.asarray(labels) == label] for label in np.unique(labels)]
    return float(np.mean([vendi(group) for group in groups if len(group) > 1]))


def nearest_mean(features, means):
    """For each row the class whose mean has the greatest cosine with it; both are centred at the mean of the means."""
    centre = means.mean(0)
    return (F.normalize(features - centre) @ F.normalize(means - centre).T).argmax(1)


def class_means(features, labels):
    """(C, D): the mean of the rows of each class."""
    sums = torch.zeros(int(labels.max()) + 1, features.shape[1]).index_add_(0, labels, features)
    return sums / torch.bincount(labels).unsqueeze(1)
