"""What the folder of an unCLIP pipeline must hold, and which of its files loading reads."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from .weights import MODELS, content

__all__ = ["INDEX", "check_folder", "check_index", "choose_files", "num_missing", "num_parameters_in"]

INDEX = "model_index.json"
_COMPONENTS = (*MODELS, "feature_extractor", "image_noising_scheduler", "scheduler", "tokenizer")
_NEEDED = {  # any of these files; without them a library fails late, or makes up something of its own
    "feature_extractor": {"feature_extractor/preprocessor_config.json"},
    "image_noising_scheduler": {"image_noising_scheduler/scheduler_config.json"},
    "scheduler": {"scheduler/scheduler_config.json"},
    "tokenizer": {"tokenizer/tokenizer.json", "tokenizer/vocab.json"},  # and see `_WORDS`
    **{part: {f"{part}/config.json"} for part in MODELS},
}
# A tokenizer of several files; without the last, prompts are padded with another token.
_WORDS = {"tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/special_tokens_map.json"}
_LIBRARIES = {"diffusers", "transformers", "stable_diffusion", "stable_unclip"}


def check_folder(folder: Path, name: str, variant: str | None) -> tuple[str, ...]:
    check_index(folder, name)
    return choose_files([path.relative_to(folder).as_posix() for path in folder.glob("*/*")], name, variant)


def check_index(folder: Path, name: str) -> None:
    """Refuse what is no unCLIP pipeline, and what names classes outside the two libraries: no code comes from data."""
    if not (folder / INDEX).is_file():
        raise FileNotFoundError(
            f"`name_or_path` must be a folder that holds a StableUnCLIPImg2ImgPipeline, but {name!r} has no {INDEX}. "
            'Write one with pipe.save_pretrained(folder), or use generator="tiny".'
        )
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / INDEX} must be JSON, but {error}. Fetch the checkpoint again.") from error
    if not isinstance(index, dict):
        raise ValueError(f"{folder / INDEX} must be a JSON object. Fetch the checkpoint again.")
    if index.get("_class_name") != "StableUnCLIPImg2ImgPipeline":
        raise ValueError(
            f"`name_or_path` must hold a StableUnCLIPImg2ImgPipeline, but {name!r} holds a {index.get('_class_name')}. "
            "Only an image-conditioned unCLIP model can be conditioned on your images."
        )
    listed = {part: index.get(part) for part in _COMPONENTS}
    sources = {part: value[0] if isinstance(value, list) and value else None for part, value in listed.items()}
    foreign = [f"{part} from {source}" for part, source in sources.items() if source not in _LIBRARIES]
    if foreign:
        raise ValueError(
            f"`name_or_path` must name classes of diffusers and transformers only, but {name!r} wants "
            f"{', '.join(foreign)}. Code that comes with a checkpoint is never run."
        )


def choose_files(names: Sequence[str], name: str, variant: str | None) -> tuple[str, ...]:
    """Of a pipeline's files: configurations and, for each model, the safetensors of the variant, or the plain ones."""
    chosen, lacking, variants = [INDEX], [], set()
    for part in _COMPONENTS:
        inside = [file for file in names if PurePosixPath(file).parent == PurePosixPath(part)]
        weights: dict[str, list[str]] = {}
        for file in inside:
            if file.endswith(".safetensors"):
                weights.setdefault(_variant_of(file), []).append(file)
        chosen += [file for file in inside if file.endswith((".json", ".txt"))]
        chosen += weights.get(variant or "", weights.get("", []))
        variants |= set(weights)
        if part in MODELS and not weights.get(variant or "", weights.get("")):
            lacking.append(part)
    absent = [part for part, files in _NEEDED.items() if not files & {*names}]
    if not absent and "tokenizer/tokenizer.json" not in names and not {*names} >= _WORDS:
        absent = ["tokenizer"]
    if absent:
        raise ValueError(
            f"`name_or_path` must hold all parts of a pipeline, but {name!r} has no file of {', '.join(absent)}. "
            "Fetch the checkpoint again."
        )
    if lacking:
        others = f" It has variant={' or '.join(map(repr, sorted(variants - {''})))}." if variants - {""} else ""
        raise ValueError(
            f"`name_or_path` must hold safetensors weights, but {name!r} has none for {', '.join(lacking)}.{others} "
            "Convert it with pipe.save_pretrained(folder, safe_serialization=True)."
        )
    if variant and variant not in variants:
        rule = " or ".join(["None", *map(repr, sorted(variants - {""}))])
        raise ValueError(f"`variant` must be {rule} for {name!r}, which holds no other weights, but got {variant!r}.")
    return tuple(sorted(chosen))


def _variant_of(file: str) -> str:
    """``model.fp16-00001-of-00002.safetensors`` → ``fp16``; plain weights → the empty string."""
    return PurePosixPath(file).name.removesuffix(".safetensors").partition(".")[2].partition("-")[0]


def num_parameters_in(file: Path) -> int:
    """Weights in a file, from its header.

    Raises:
        ValueError: If it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            parts = [tensors.get_slice(key) for key in tensors.keys()]  # noqa: SIM118, not a dict
            return sum(math.prod(part.get_shape()) for part in parts if "F" in part.get_dtype())
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}). Fetch the checkpoint again.") from error


def num_missing(model: torch.nn.Module, files: Sequence[Path]) -> int:
    """How many of a model's weights are not those of its files.

    Where names differ, contents are compared: the libraries rename what older checkpoints hold, and draw at random what
    they don't recognise.
    """
    from safetensors.torch import load_file

    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    given = {name: tensor for file in files for name, tensor in load_file(file).items()}
    if state.keys() <= given.keys():
        return 0
    dtypes = {tensor.dtype for tensor in state.values()}
    known = Counter(content(tensor.to(dtype)) for tensor in given.values() for dtype in dtypes)
    return sum(numel for numel, _ in (Counter(map(content, state.values())) - known).elements())
