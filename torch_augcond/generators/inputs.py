"""What may go into a generator: rows that match, RGB images."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import center_crop

from ..checks import as_float, as_int, brief, listed, warn

__all__ = ["check_keys", "check_level", "check_numbers", "check_prompts", "check_rows", "to_pil", "warn_if_long"]

_STRIP = 16  # times as long as it is wide


def check_prompts(prompts: Any) -> list[str]:
    if not isinstance(prompts, Sequence) or isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts):
        raise TypeError(f"`prompts` must be a list of str, but got {prompts!r}.")
    return list(prompts)


def warn_if_long(tokenizer: Any, prompts: Sequence[str]) -> None:
    limit = tokenizer.model_max_length
    lengths = [len(tokens) for tokens in tokenizer(list(prompts)).input_ids]
    if long := {prompt: length for prompt, length in zip(prompts, lengths) if length > limit}:
        shown = listed(long, lambda prompt: f"{brief(prompt)!r} with {long[prompt] - 2}")
        warn(
            f"prompts may have {limit - 2} tokens, and what comes after them is ignored, but got {shown}. "
            "Shorten the prompt or the class name.",
        )


def check_keys(keys: Any) -> None:
    if not isinstance(keys, Tensor) or keys.dtype != torch.int64 or keys.ndim != 1:
        got = f"{keys.dtype} of shape {tuple(keys.shape)}" if isinstance(keys, Tensor) else type(keys).__name__
        raise TypeError(f"`keys` must be an int64 tensor of shape (N,), but got {got}.")


def check_rows(embeds: Tensor, prompts: Tensor, keys: Tensor, partners: Tensor | None, dim: int, width: int) -> None:
    """One embedding, prompt, key and partner for each image; all offenders at once."""
    given = {"image_embeds": embeds, "prompt_embeds": prompts, "keys": keys, "partner_embeds": partners}
    rows = {name: x for name, x in given.items() if name != "partner_embeds" or x is not None}
    if wrong := [f"{type(x).__name__} as `{name}`" for name, x in rows.items() if not isinstance(x, Tensor)]:
        raise TypeError(f"rows must be tensors, but got {', '.join(wrong)}.")
    n = keys.numel()
    rules = {
        "`keys` must be int64 (N,), of one row or more": keys.ndim == 1 and n > 0 and keys.dtype == torch.int64,
        f"`image_embeds` must be (N, {dim})": embeds.shape == (n, dim),
        f"`prompt_embeds` must be (N, L, {width})": prompts.shape == (n, *prompts.shape[1:2], width),
        f"`partner_embeds` must be (N, {dim})": partners is None or partners.shape == embeds.shape,
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        shapes = [None if x is None else tuple(x.shape) for x in (keys, embeds, prompts, partners)]
        raise ValueError(f"{', '.join(broken)}, but got {shapes} with {keys.dtype} keys. Give one row for each image.")


def check_numbers(pipe: Any, guidance_scale: Any, num_inference_steps: Any, noise_level: Any) -> None:
    as_float("guidance_scale", guidance_scale, "1 (no guidance) or more", lambda w: 1 <= w < math.inf)
    steps = pipe.scheduler.config.num_train_timesteps
    if as_int("num_inference_steps", num_inference_steps, low=1) > steps:
        raise ValueError(
            f"`num_inference_steps` must be at most {steps}, the length of its schedule, but got {num_inference_steps}."
        )
    check_level(pipe, noise_level)


def check_level(pipe: Any, noise_level: Any) -> None:
    levels = pipe.image_noising_scheduler.config.num_train_timesteps
    if as_int("noise_level", noise_level, low=0) >= levels:
        raise ValueError(f"`noise_level` must be below {levels}, the length of its schedule, but got {noise_level}.")


def to_pil(image: Image.Image | Tensor) -> Image.Image:
    """One path for both kinds, so equal pixels have equal embeddings; of a strip, the middle.

    The encoders look at the largest square in the middle, but make the short side theirs first: of a strip of
    1 × 50,000 pixels that would be an image of 224 × 11,200,000.
    """
    if isinstance(image, Image.Image) and image.mode == "RGB" and min(image.size):
        longest = _STRIP * min(image.size)
        return image if max(image.size) <= longest else center_crop(image, [min(n, longest) for n in image.size[::-1]])
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
        return to_pil(Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()))
    got = (
        f"{image.mode} of {image.size}"
        if isinstance(image, Image.Image)
        else getattr(image, "dtype", type(image).__name__)
    )
    raise TypeError(f"`images` must be RGB PIL images or uint8 tensors (3, H, W), but got {got}. Convert them first.")
