"""What a generator returns, checked before anything is made of it, as a copy of its own.

A generator may return the same memory each time (the static buffers of CUDA graphs, say), while a batch is still being
written as the next is made.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import brief
from ..generators.protocol import Generator

__all__ = ["check_fingerprint", "embeds_of", "images_of", "prompts_of"]


def check_fingerprint(generator: Generator, expected: str) -> None:
    """Refuses what a generator has returned if it isn't, or isn't any more, the one that a set is made with.

    Raises:
        ValueError: It says what has changed.
    """
    if (found := generator.fingerprint) != expected:
        raise ValueError(
            f"`generator.fingerprint` must stay as it is while a set is made, but {brief(expected)!r} has become "
            f"{brief(str(found))!r} (another scheduler, say). What it made since is not kept. Undo that, or choose "
            "another `root`."
        )


def images_of(returned: Any, n: int, image_size: int) -> Tensor:
    """Uint8 (n, 3, H, W) of the set's ``image_size``, as ``generate`` must return.

    Raises:
        TypeError, ValueError: naming the method, what it must return and what it did.
    """
    return _copy("generate", returned, (n, 3, image_size, image_size), "uint8")


def embeds_of(returned: Any, n: int, generator: Generator) -> Tensor:
    """Floating-point (n, embed_dim), as ``encode_images`` must return; whether they are finite is for each row."""
    return _copy("encode_images", returned, (n, generator.embed_dim), "floating-point")


def prompts_of(returned: Any, prompts: Sequence[str]) -> Tensor:
    """Finite floating-point (n, L, C), as ``encode_prompts`` must return."""
    copy = _copy("encode_prompts", returned, (len(prompts), "L", "C"), "floating-point")
    for prompt, row in zip(prompts, copy, strict=True):
        if not row.isfinite().all():
            raise ValueError(
                "`generator.encode_prompts` must return finite numbers, but got NaN or infinity for "
                f"{brief(prompt)!r}. "
                "Mend the generator, or choose another `prompt`."
            )
    return copy


def _copy(method: str, x: Any, shape: tuple[int | str, ...], kind: str) -> Tensor:
    fits = isinstance(x, Tensor) and (x.dtype == torch.uint8 if kind == "uint8" else x.is_floating_point())
    if fits and len(shape) == x.ndim and all(isinstance(n, str) or n == m for n, m in zip(shape, x.shape, strict=True)):
        # Copied by numpy, since torch starts threads for large tensors, for which processes forked later would wait.
        plain = x.detach().cpu().contiguous()
        return torch.from_numpy(plain.view(torch.uint8).numpy().copy()).view(plain.dtype)
    got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
    raise (ValueError if fits else TypeError)(
        f"`generator.{method}` must return a {kind} tensor of shape ({', '.join(map(str, shape))}), but got {got}. "
        "Mend the generator."
    )
