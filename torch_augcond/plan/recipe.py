"""What makes an image: the settings of a set, the recipe of an image, and the encoding that keys are hashed from."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ..checks import as_float, as_int

__all__ = ["Recipe", "Settings", "canonical", "canonical_end", "canonical_start", "hash64", "readable"]

_RECIPE_VERSION = 1  # part of every key: raise it if the same recipe comes to mean another image
_LOWEST = {"num_sources": 0, "image_size": 1, "num_inference_steps": 1, "noise_level": 0, "seed": None}


@dataclass(frozen=True)
class Settings:
    """What all images of a set share. Two sets with equal settings, sources and prompts have equal keys.

    Args:
        augmentation: plain descriptions of the transforms (``Compose.describe()``).
        num_sources: real images behind one synthetic image: 0 (text only), 1, or 2 (something is mixed).
        checkpoint: the generator's fingerprint.
        image_size: side of the square images, in pixels.
        scheme: "per-image" (each real image in turn, `num_per_image`) or "per-class" (`num_per_class`, `fill_to`).
        prompt: the template, or "per class"; for people only: keys hold the finished prompt.

    Raises:
        TypeError, ValueError: naming the field.
    """

    augmentation: Sequence[Mapping[str, Any]]
    num_sources: int
    checkpoint: str
    image_size: int
    guidance_scale: float
    num_inference_steps: int
    noise_level: int
    seed: int
    scheme: str
    prompt: str

    def __post_init__(self) -> None:
        for name, low in _LOWEST.items():
            object.__setattr__(self, name, as_int(name, getattr(self, name), low))
        if self.num_sources > 2:
            raise ValueError(f"`num_sources` must be 0, 1 or 2, but got {self.num_sources}.")
        if self.scheme not in ("per-image", "per-class"):
            raise ValueError(f"`scheme` must be 'per-image' or 'per-class', but got {self.scheme!r}.")
        guidance = as_float(
            "guidance_scale", self.guidance_scale, "1 (no guidance) or more", lambda w: 1 <= w < math.inf
        )
        object.__setattr__(self, "guidance_scale", guidance)  # 2 and 2.0 are one set
        # Plain JSON, so that settings read back from a file are equal to these.
        object.__setattr__(self, "augmentation", json.loads(json.dumps(list(self.augmentation), allow_nan=False)))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``Settings(**settings.as_dict()) == settings``."""
        return asdict(self)

    def differences(self, other: Self) -> list[str]:
        """One text for each field in which `other` (what is there) differs from these settings (what is wanted)."""
        pairs = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]
        return [
            f"`{name}` is {_shown(name, theirs)} there, but {_shown(name, mine)} here"
            for name, mine, theirs in pairs
            if mine != theirs
        ]


def readable(augmentation: Sequence[Mapping[str, Any]]) -> str:
    """Descriptions of transforms as a person would type them.

    Example:
        >>> readable([{"name": "EmbedMixup", "alpha": 1.0}, {"name": "EmbedDropout", "p": 0.4, "rescale": False}])
        'EmbedMixup(alpha=1.0) + EmbedDropout(p=0.4, rescale=False)'
    """
    given = [", ".join(f"{k}={v!r}" for k, v in step.items() if k != "name") for step in augmentation]
    return " + ".join(f"{step['name']}({text})" for step, text in zip(augmentation, given)) or "none"


def _shown(name: str, value: Any) -> str:
    return readable(value) if name == "augmentation" else repr(value)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One image to make. `key` is a function of everything that makes it, and its file's name.

    Args:
        key: 32 hex characters.
        seed: int64, for all random numbers of this image; the same for every augmentation.
        label, class_name, prompt: of its class.
        ordinal: counts the images of its class (or of its source image) from 0.
        sources: indices of the real images: () for text only, (e1,), or (e1, partner).
        digests: their contents, 32 hex characters each.
    """

    key: str
    seed: int
    label: int
    class_name: str
    prompt: str
    ordinal: int
    sources: tuple[int, ...]
    digests: tuple[str, ...]


def canonical(settings: Settings, class_name: str, prompt: str, digests: Sequence[str], ordinal: int) -> bytes:
    """What a key is the blake2b-16 of: JSON in ASCII, the same on every machine; ``json.loads`` gives it back."""
    return canonical_start(settings, class_name, prompt) + canonical_end(digests, ordinal)


def canonical_start(settings: Settings, class_name: str, prompt: str) -> bytes:
    """All of the encoding that the images of a class share."""
    shared = {name: value for name, value in settings.as_dict().items() if name != "prompt"}
    start = {"version": _RECIPE_VERSION, "settings": shared, "class": class_name, "prompt": prompt}
    return json.dumps(start, sort_keys=True, separators=(",", ":"))[:-1].encode()


def canonical_end(digests: Sequence[str], ordinal: int) -> bytes:
    """The rest of it, for one image."""
    quoted = ",".join([f'"{digest}"' for digest in digests])
    return f',"digests":[{quoted}],"ordinal":{ordinal}}}'.encode()


def hash64(*parts: Any) -> int:
    """A signed 64-bit number from a tuple of strings and ints."""
    text = json.dumps(parts, separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
