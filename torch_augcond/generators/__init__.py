"""Frozen image generators. Importing this loads neither diffusers nor transformers; ``load_generator`` does."""

import os
from pathlib import Path
from typing import Any

import torch

from ..checks import did_you_mean, one_of, warn
from .checkpoints import SHORT_NAMES, Checkpoint, find_checkpoint
from .folder import INDEX
from .memory import free_memory
from .options import keep_own_scheduler
from .protocol import BadImages, Generator
from .quiet import without_bars
from .stable_unclip import StableUnCLIPGenerator
from .weights import MODELS

__all__ = ["BadImages", "Generator", "StableUnCLIPGenerator", "load_generator"]

_SLOW_SIZE = 256  # pixels; from here on an image takes minutes on a CPU


def load_generator(
    name_or_path: str | Path = "sd21-unclip",
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> StableUnCLIPGenerator:
    """Load a frozen unCLIP model: by short name, from a folder, or from the Hugging Face Hub.

    Only safetensors are read and no code from the checkpoint is ever run. A folder, and ``"tiny"``, never touch the
    network. The commit is resolved once and is part of the generator's ``fingerprint``.

    Args:
        name_or_path: ``"sd21-unclip"`` (768 px, CLIP ViT-H), ``"sd21-unclip-small"`` (768 px, ViT-L), ``"tiny"``
            (32 px, bundled), a folder written by ``pipe.save_pretrained``, or ``owner/name`` on the Hub.
        revision: Branch, tag or commit on the Hub; default its main branch. A folder has none.
        variant: Of the weight files, such as ``"fp16"``.
        dtype: Of the weights; default bfloat16 on a GPU that has it, float16 on other GPUs, float32 elsewhere.
        device: Default the current GPU if there is one, else the CPU.
        token: For the Hub; default the one you logged in with. Without effect on a folder, as the next two.
        cache_dir: Of downloads; default the Hub's own.
        local_files_only: Never touch the network.
        compile: And the other options of `StableUnCLIPGenerator`: ``scheduler``, ``guidance_interval`` and
            ``cache_interval``.

    Raises:
        FileNotFoundError: Nothing is there: no such folder, gone from all mirrors, not cached.
        ConnectionError: The Hub can't be reached, and nothing is cached.
        TypeError, ValueError: An argument isn't as above; it is no unCLIP pipeline, has no safetensors, its parts
            don't fit each other, or a folder's files change meanwhile.
        MemoryError: The weights don't fit the device.

    Example:
        >>> generator = load_generator("tiny")
        >>> generator.image_size
        32
    """
    if not isinstance(name_or_path, (str, os.PathLike)):
        got = f"{name_or_path!r} ({type(name_or_path).__name__})"
        raise TypeError(f'`name_or_path` must be a name or a path, such as "tiny", but got {got}.')
    _check_optional("revision", revision, str, "a str")
    _check_optional("variant", variant, str, "a str")
    _check_optional("token", token, str | bool, "a str, True, False")
    _check_optional("cache_dir", cache_dir, str | os.PathLike, "a path")
    one_of("local_files_only", local_files_only, (False, True))
    known = StableUnCLIPGenerator.__init__.__kwdefaults__
    for option in options:
        if option not in known:
            hint = did_you_mean(option, [*known, *load_generator.__kwdefaults__])
            raise TypeError(f"load_generator() got an unexpected keyword argument {option!r}.{hint}")
    device = _device(device)
    dtype = dtype or _default_dtype(device)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        rule = "`dtype` must be a floating torch.dtype of 16 bits or more, such as torch.bfloat16"
        raise TypeError(f"{rule}, but got {dtype!r}.")
    name = os.fspath(name_or_path)
    if name in SHORT_NAMES and os.path.exists(os.path.join(name, INDEX)):
        warn(f"{name!r} is a short name: the folder {name!r} in this directory isn't looked at. It is './{name}'.")
    checkpoint = find_checkpoint(
        name_or_path,
        revision=revision,
        variant=variant,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
    )
    needed = checkpoint.num_parameters() * dtype.itemsize
    _check_memory(needed, device, dtype)
    try:
        pipe = _load_pipeline(checkpoint, variant, dtype).to(device, silence_dtype_warnings=True)
        if device.type == "cpu":
            _part_from_files(pipe)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_large(needed, device, dtype) from error
    checkpoint.check_whole(pipe)
    checkpoint.check_unchanged()
    keep_own_scheduler(pipe)
    generator = StableUnCLIPGenerator(pipe, fingerprint=checkpoint.fingerprint, **options)
    if device.type == "cpu" and generator.image_size >= _SLOW_SIZE:
        side = generator.image_size
        warn(
            f"{str(name_or_path)!r} makes {side}×{side} images, which takes minutes for each one on a CPU: "
            "estimate_seconds(n, num_inference_steps) says how long a set will take here, and "
            'generator="tiny" is the one to try the library with.',
        )
    return generator


def _check_optional(name: str, value: Any, kinds: Any, text: str) -> None:
    if value is not None and not isinstance(value, kinds):
        raise TypeError(f"`{name}` must be {text} or None, but got {type(value).__name__}.")  # a token is not shown


def _device(device: Any) -> torch.device:
    """The device, if torch can use it here; by default the current GPU or the CPU."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rule = f"`device` must be one that torch can use here, such as 'cpu' or 'cuda:0', but got {device!r}"
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"{rule} ({type(device).__name__}). Leave it out for the default.")
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("it holds no numbers")
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # depends on how torch was built
        raise ValueError(f"{rule}. Leave it out for the default.") from error


def _default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 before float16: Stable Diffusion 2.1 is known to overflow in float16."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _load_pipeline(checkpoint: Checkpoint, variant: str | None, dtype: torch.dtype) -> Any:
    import diffusers
    from diffusers.utils import is_accelerate_available

    renamed = tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 40)
    with without_bars():
        return diffusers.StableUnCLIPImg2ImgPipeline.from_pretrained(
            checkpoint.folder,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=is_accelerate_available(),  # True without accelerate only logs advice to install it
            **{"dtype" if renamed else "torch_dtype": dtype},
        )


def _part_from_files(pipe: Any) -> None:
    """Weights that nothing converted are still the files themselves: whoever writes these would change the images."""
    for model in MODELS:
        for tensor in (*getattr(pipe, model).parameters(), *getattr(pipe, model).buffers()):
            tensor.data = tensor.data.clone()


def _check_memory(needed: int, device: torch.device, dtype: torch.dtype) -> None:
    """Before loading: a process that outgrows the main memory is killed, and no error is ever seen."""
    free = free_memory(device)
    if free is not None and free < needed:
        raise _too_large(needed, device, dtype)


def _too_large(needed: int, device: torch.device, dtype: torch.dtype) -> MemoryError:
    free = free_memory(device)
    has = "too little" if free is None else f"{free / 2**30:.1f} GiB"
    return MemoryError(
        f"the weights need {needed / 2**30:.1f} GiB in {str(dtype).removeprefix('torch.')}, but {device} has {has} "
        'free. Use dtype=torch.bfloat16, another device, or generator="tiny".'
    )
