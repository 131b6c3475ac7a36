"""Labelled synthetic training images from a frozen image-conditioned diffusion model, as a torch Dataset.

Public names are loaded when they are first used (PEP 562), so importing this package costs no more than importing
torch, and loads neither diffusers nor transformers.

Example:
    >>> import torch_augcond
    >>> "EmbedCutMix" in dir(torch_augcond)
    True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import functional
    from .dataset import AugConditionedSynthetic
    from .generators import StableUnCLIPGenerator, load_generator
    from .sampler import MixedRealSyntheticSampler
    from .transforms import VARIANTS, Compose, EmbedCutMix, EmbedDropout, EmbedMixup, PixelCutMix, PixelMixup

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "AugConditionedSynthetic",
    "Compose",
    "EmbedCutMix",
    "EmbedDropout",
    "EmbedMixup",
    "MixedRealSyntheticSampler",
    "PixelCutMix",
    "PixelMixup",
    "StableUnCLIPGenerator",
    "functional",
    "load_generator",
]

# Every public name that doesn't come from `transforms`.
_HOMES = {
    "AugConditionedSynthetic": "dataset",
    "MixedRealSyntheticSampler": "sampler",
    "StableUnCLIPGenerator": "generators",
    "load_generator": "generators",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "functional":
        return import_module(f"{__name__}.functional")
    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'transforms')}"), name)
    globals()[name] = value  # the next look-up no longer comes here
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
