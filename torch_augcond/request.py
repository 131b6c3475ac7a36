"""A set as its user asks for it, checked before anything costs time."""

import hashlib
import inspect
import json
import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS, default_loader

from .checks import listed, warn
from .defaults import DEFAULT_GENERATOR
from .marks import CONFIG, reads_set
from .plan import Settings, build_prompts, counts_per_class
from .progress import track
from .sources import Sources
from .sources.folders import is_parent, root_of
from .sources.layers import layers
from .store.names import place_of
from .transforms import Compose, resolve

__all__ = ["FEW_SHOTS", "Request"]

FEW_SHOTS = 16  # real images a class, on average, up to which the paper's few-shot guidance is used
_GUIDANCE = {"few-shot": 10.0, "large-scale": 2.0}
_COUNTS = ("num_per_image", "num_per_class", "fill_to")
_MEMBERS = ("fingerprint", "embed_dim", "image_size", "encode_images", "encode_prompts", "generate")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `AugConditionedSynthetic` and the command line are given; see there for the arguments.

    Raises:
        TypeError, ValueError: naming the argument, what it must be and what it is.
    """

    dataset: Any
    augmentation: Any = "embed-cutmix-dropout"
    num_per_image: int | None = None
    num_per_class: int | Mapping[str, int] | None = None
    fill_to: int | None = None
    generator: Any = None
    prompt: str | Mapping[str, str] | Callable[[str], str] = "a photo of a {}"
    class_names: Sequence[str] | Mapping[str, str] | None = None
    guidance_scale: float | None = None
    num_inference_steps: int = 30
    noise_level: int = 0
    seed: int = 0
    root: str | os.PathLike | None = None

    def __post_init__(self) -> None:
        if not self.is_loaded and not isinstance(self.generator, (str, os.PathLike, type(None))):
            missing = ", ".join(name for name in _MEMBERS if not _has(self.generator, name))
            raise TypeError(
                "`generator` must be None, a name or path for load_generator, or an object with "
                f"{', '.join(_MEMBERS)}, but got {type(self.generator).__name__} without {missing}. Of a pipeline, "
                "make StableUnCLIPGenerator(pipe, fingerprint=...), or save it and give its folder."
            )
        if not isinstance(self.root, (str, os.PathLike, type(None))):
            raise TypeError(f"`root` must be None or a path, but got {type(self.root).__name__}.")
        if self.root is not None and not os.fspath(self.root):
            raise ValueError("`root` must be None or a path, but got ''. For the current folder, pass '.'.")
        if any(getattr(layer, "is_synthetic", False) or reads_set(layer) for layer in layers(self.dataset)):
            warn(
                "`dataset` holds synthetic images, which will be conditioned on as if they were real. Wrap the real "
                "ones alone, and join both afterwards: real + synthetic.",
            )
        self._check_root_is_apart()
        self._check_folders()
        self.settings("not yet known", 1)
        self.prompts  # noqa: B018 - its checks, and its warning, now rather than later

    def _check_root_is_apart(self) -> None:
        """Inside a folder of real images the set would be taken for one of its classes, as another one may be."""
        from huggingface_hub.constants import HF_ASSETS_CACHE

        text = os.fspath(self.root or HF_ASSETS_CACHE)
        if "\0" in str(text) or not Path(text).expanduser().resolve().name:
            raise ValueError(f"`root` must be a folder with a name, but got {text!r}.")
        root = place_of(text).resolve()
        roots = filter(None, map(root_of, layers(self.dataset)))
        for real in dict.fromkeys(Path(folder).resolve() for folder in roots):
            folders = [real, *(entry for entry in real.iterdir() if entry.is_dir())] if real.is_dir() else [real]
            if {root, *root.parents} & {folder.resolve() for folder in folders}:
                raise ValueError(f"`root` must lie outside of the real images, but got {self.root or root} in {real}.")
            if self.root is not None and root in real.parents:
                raise ValueError(f"`root` must not hold the real images, but got {self.root}, in which {real} lies.")
            if root.with_name(f"{root.name}.aside") in (real, *real.parents):
                raise ValueError(f"`root` must not keep things aside among the real images, but got {self.root}.")
            if sets := [folder.name for folder in folders[1:] if (folder / CONFIG).exists()]:
                raise ValueError(
                    f"`dataset` must hold real images, but {listed(sets)} in {real} is a set of synthetic ones. "
                    "Keep it elsewhere, or name the folder beside it."
                )

    def _check_folders(self) -> None:
        """Warns where folders aren't those of classes, perhaps, and where nothing is asked for."""
        for folder in filter(is_parent, layers(self.dataset)):
            warn(
                f"{os.fspath(folder.root)!r} should hold one folder of images for each class, but those in it hold "
                f"folders only ({listed(folder.classes)}): is it the parent of what was meant?"
            )
        if self.fill_to is not None and not self.total():
            warn(f"`fill_to={self.fill_to}` asks for no images: each class has as many real ones.")

    @property
    def is_loaded(self) -> bool:
        """Whether ``generator`` is an object, not the name of one."""
        return all(_has(self.generator, name) for name in _MEMBERS)

    @property
    def generator_name(self) -> str:
        """What `load_generator` is to load."""
        return DEFAULT_GENERATOR if self.generator is None else os.fspath(self.generator)

    @cached_property
    def sources(self) -> Sources:
        is_named = self.class_names is not None or isinstance(self.prompt, Mapping)
        return Sources.from_dataset(self.dataset, track("reading labels"), is_named)

    @cached_property
    def compose(self) -> Compose:
        return resolve(self.augmentation)

    @cached_property
    def prompts(self) -> dict[str, str]:
        return build_prompts(list(self.sources.class_of.values()), self.prompt, self.class_names)

    @cached_property
    def counts(self) -> dict[str, Any]:
        """The one count that is given; one image for each real one if none is."""
        given = {name: getattr(self, name) for name in _COUNTS if getattr(self, name) is not None}
        return given or {"num_per_image": 1}

    def per_class(self) -> dict[str, int]:
        """{class: how many images are asked for}."""
        return counts_per_class(self.sources.labels, self.sources.class_of, **self.counts)

    def total(self) -> int:
        """How many images are asked for."""
        return sum(self.per_class().values())

    def settings(self, checkpoint: str, image_size: int, recorded_guidance: float | None = None) -> Settings:
        """The settings of the set, given what only the generator knows.

        Args:
            recorded_guidance: What an existing set was made with: where the user leaves the choice to us, a set keeps
                it even if it grows out of the few-shot regime.
        """
        self.total()  # checks the counts
        guidance = self.guidance_scale
        if guidance is None:
            kept = isinstance(recorded_guidance, float) and 1 <= recorded_guidance < math.inf
            guidance = recorded_guidance if kept else _GUIDANCE[self._regime()]
        return Settings(
            augmentation=self.compose.describe(),
            num_sources=self.compose.num_sources,
            checkpoint=checkpoint,
            image_size=image_size,
            guidance_scale=guidance,
            num_inference_steps=self.num_inference_steps,
            noise_level=self.noise_level,
            seed=self.seed,
            scheme="per-image" if "num_per_image" in self.counts else "per-class",
            prompt=self.prompt if isinstance(self.prompt, str) else "per class",
        )

    def _regime(self) -> str:
        classes = len(set(self.sources.labels.tolist()))
        return "few-shot" if len(self.sources) <= FEW_SHOTS * classes else "large-scale"

    def folder(self) -> Path:
        """``root``, else a folder in the Hugging Face assets cache that belongs to this dataset and configuration.

        Counts are no part of its name, so that a set can grow; nor is a ``guidance_scale`` that was left open.
        """
        if self.root is not None:
            return place_of(self.root)
        from huggingface_hub.constants import HF_ASSETS_CACHE

        settings = asdict(self.settings("", 1))
        if self.guidance_scale is None:
            settings["guidance_scale"] = None
        identity = json.dumps([self.sources.identity, settings, self._checkpoint(), self.prompts], sort_keys=True)
        digest = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return Path(HF_ASSETS_CACHE) / "torch_augcond" / f"{type(self.dataset).__name__}-{digest}"

    def _checkpoint(self) -> str:
        """What a generator and its name have in common: which weights, but not which commit of them."""
        from .generators.checkpoints import MIRRORS, find_checkpoint, is_folder

        if self.is_loaded:
            name = self.generator.fingerprint
        elif self.generator_name == "tiny" or is_folder(self.generator_name):
            name = find_checkpoint(self.generator_name).fingerprint
        else:
            name = self.generator_name
        repository, rest = re.fullmatch(r"([^@]*)(?:@[^#+]*)?(.*)", name, re.DOTALL).groups()
        if repository == "local":
            return name
        return next((short for short, mirrors in MIRRORS.items() if repository in mirrors), repository) + rest

    def command(self) -> str | None:
        """The shell command that makes this set; None where no command can say the same."""
        from .generators.checkpoints import is_folder

        plain = (str, os.PathLike, int, float, type(None))
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "dataset"}
        if not _is_plain_folder(self.dataset) or not all(isinstance(value, plain) for value in options.values()):
            return None
        defaults = {name: parameter.default for name, parameter in inspect.signature(type(self)).parameters.items()}
        words = ["torch-augcond", "generate", os.path.abspath(self.dataset.root)]
        for name, value in options.items():
            if value != defaults[name]:
                is_path = name == "root" or (name == "generator" and is_folder(os.fspath(value)))
                option, text = "--" + name.replace("_", "-"), str(place_of(value) if is_path else value)
                words += [f"{option}={text}"] if text.startswith("-") else [option, text]
        return shlex.join(words)


def _has(value: Any, name: str) -> bool:
    """Also for properties, without calling them."""
    return hasattr(type(value), name) or name in getattr(value, "__dict__", {})


def _is_plain_folder(dataset: Any) -> bool:
    """Whether ``ImageFolder(dataset.root)`` is the same dataset."""
    return (
        type(dataset) is ImageFolder
        and dataset.loader is default_loader
        and dataset.extensions == IMG_EXTENSIONS
        and dataset.samples is dataset.imgs
    )
