"""Calling a user's own transforms on trial, so that nothing is drawn of the random numbers that training will draw."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..checks import brief
from .images import as_pil, to_rgb

__all__ = ["check_takes_images", "drawn_alike", "random_kept"]


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
