"""What the models of a pipeline compute with, as short values: so it is seen when somebody changes it in place."""

import re
from typing import Any

import torch
from torch import Tensor

from ..checks import listed

__all__ = ["MODELS", "check_dropout", "check_weights", "content", "weights_of"]

_SWITCHES = {"_active_adapter", "_disable_adapters"}  # of peft's layers
MODELS = ("image_encoder", "image_normalizer", "text_encoder", "unet", "vae")

# {name: (shape, dtype, content)} of weights, {name: class and numbers} of modules.
Weights = dict[str, dict[str, Any]]


def weights_of(pipe: Any) -> Weights:
    """Of each model its parameters and buffers, its modules' classes and numbers: FreeU, for one, is four numbers.

    Neither devices nor strides nor compilation count. Flags don't either: they choose how to compute, not what; but for
    those that switch a LoRA.
    """
    return {part: _tensors(getattr(pipe, part)) | _modules(getattr(pipe, part)) for part in MODELS}


def check_weights(pipe: Any, noted: Weights) -> None:
    """Refuses a pipeline whose models compute with something else than when ``noted`` was made.

    Another dtype is no other weights: what has one now is noted anew.

    Raises:
        ValueError: It names the models.
    """
    now = weights_of(pipe)
    if changed := [part for part in MODELS if not _alike(now[part], noted[part])]:
        raise ValueError(
            f"`pipe` must keep the weights and layers that its generator was made with, but {listed(changed)} has "
            "others (LoRA, FreeU, a state dict, another processor). Make another generator of it, with another "
            "`fingerprint`."
        )
    for part, values in now.items():
        noted[part] |= {name: value for name, value in values.items() if _is_known(value)}


def check_dropout(pipe: Any) -> None:
    """Refuses a model that is being trained with dropout, whose images would be others each time.

    Raises:
        ValueError: It names the models.
    """
    if noisy := [part for part in MODELS if getattr(pipe, part).training and _drops(getattr(pipe, part))]:
        raise ValueError(
            f"`pipe` must make the same images each time, but {listed(noisy)} is in training mode and has dropout. "
            "Call its `eval()` first."
        )


def _drops(model: torch.nn.Module) -> bool:
    rates = (vars(module).get(name, 0) for module in model.modules() for name in ("p", "dropout") if module.training)
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


def content(tensor: Tensor) -> tuple[int, int]:
    """Its size and a sum of its bits, whatever its device and its strides.

    They are summed by eight bytes, nearly as fast as memory is read: the 1.9 billion halves of a full-size pipeline in
    0.6 s on two cores, where adding up 16-bit integers takes 4 s.
    """
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()
    whole = data.numel() // 8 * 8
    rest = bytes(data[whole:].tolist())
    return tensor.numel(), int(data[:whole].view(torch.int64).sum()) + int.from_bytes(rest, "little")


def _tensors(model: torch.nn.Module) -> dict[str, Any]:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {_plain(name): (tuple(x.shape), x.dtype, _content_if_plain(x)) for name, x in tensors.items()}


def _content_if_plain(tensor: Tensor) -> tuple[int, int] | None:
    """None of what lies elsewhere (on ``meta``, while it is offloaded) or in a format of its own."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta
    return content(tensor) if plain else None


def _modules(model: torch.nn.Module) -> dict[str, str]:
    modules = {_plain(name): module for name, module in model.named_modules()}  # a compiled one is the one inside it
    return {f"{name}:": f"{type(module).__name__} {_numbers(module)}" for name, module in modules.items()}


def _numbers(module: torch.nn.Module) -> dict[str, Any]:
    """With the class of an attention processor of the user's own: those of diffusers all come to the same."""
    found = {
        name: value
        for name, value in vars(module).items()
        if (_is_numeric(value) and not name.startswith("_")) or name in _SWITCHES
    }
    processor = type(vars(module).get("processor"))
    own = not processor.__module__.startswith(("builtins", "diffusers."))
    return dict(sorted(found.items())) | ({"processor": processor.__qualname__} if own else {})


def _is_numeric(value: Any) -> bool:
    values = value.values() if type(value) is dict else (value,)
    return len(values) > 0 and all(type(x) in (int, float) for x in values)


def _plain(name: str) -> str:
    return re.sub(r"(^|\.)_orig_mod\b", "", name).removeprefix(".")


def _alike(now: dict[str, Any], noted: dict[str, Any]) -> bool:
    return now.keys() == noted.keys() and all(_is_same(now[name], value) for name, value in noted.items())


def _is_same(now: Any, noted: Any) -> bool:
    if not isinstance(noted, tuple):
        return now == noted
    comparable = now[1] == noted[1] and _is_known(now) and _is_known(noted)
    return now == noted if comparable else now[0] == noted[0]


def _is_known(value: Any) -> bool:
    return not isinstance(value, tuple) or value[2] is not None
