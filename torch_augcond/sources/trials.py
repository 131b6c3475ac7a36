"""Calling a user's own transforms on trial, so that nothing is drawn of the random numbers that training will draw."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..checks import brief
from .images import as_pil, to_rgb

__all__ = ["check_takes_images", "drawn_alike", "kind_of", "random_kept", "share_seen"]


@contextmanager
def random_kept() -> Iterator[None]:
    """Transforms that run in it draw nothing of what the user's own would draw later."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - that of the user's
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def drawn_alike(make: Callable[[], Any], seed: int = 0) -> Any:
    """What it makes with the same random numbers each time."""
    with random_kept():
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)  # that of a GPU stays as it is
        return make()


def kind_of(value: Any) -> str:
    """What must be alike in a batch, but for the size of an image."""
    if isinstance(value, torch.Tensor):
        what = f"{min(value.shape[0], value.shape[-1])} channels" if value.ndim == 3 else f"{value.ndim} dimensions"
        return f"a {value.dtype} tensor of {what}"
    if isinstance(value, Image.Image):
        return "an image of PIL"
    return "a number" if isinstance(value, Number) else type(value).__name__


def share_seen(change: Callable[[Any], Any], real: tuple[int, int], size: int) -> float:
    """How much of the width of a square image a transform shows, beside what it shows of a real one: the most of three.

    Both are pictures that get brighter from left to right.
    """

    def shown(width: int, height: int, seed: int) -> float:
        ramp = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
        return float(np.ptp(np.asarray(drawn_alike(lambda: change(Image.fromarray(ramp).convert("RGB")), seed))))

    return max(shown(size, size, seed) / max(shown(*real, seed), 1e-9) for seed in range(3))


def check_takes_images(change: Callable[[Any], Any], raw: Any) -> None:
    """That a `transform` can be called as it is for synthetic images, which are PIL's.

    Raises:
        ValueError: It can't: albumentations' take an array by its name, say.
    """
    try:
        image = to_rgb(as_pil(raw, "the dataset"))
    except Exception:  # which is told when it is read
        return
    try:
        drawn_alike(lambda: change(image))
    except Exception as error:
        raise ValueError(
            "`transform` can't be taken over from a dataset that calls it otherwise: for synthetic images it is given "
            f"an RGB image of PIL alone, which raised {type(error).__name__}: {brief(str(error))} Pass `transform=` "
            "explicitly, such as v2.Compose([v2.ToImage(), t]) for one of tensors, or lambda image: "
            't(image=np.array(image))["image"] for one of albumentations.'
        ) from error
