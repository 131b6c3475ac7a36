"""What the models of a pipeline compute with, as short values: so it is seen when somebody changes it in place."""

import hashlib
import json
import re
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from ..checks import listed

__all__ = ["MODELS", "check_dropout", "check_weights", "content", "functions_of", "weights_of"]

_CHOICES = {"gradient_checkpointing", "training", "use_slicing", "use_tiling"}  # of how to compute the same
_USUAL = re.compile(r"(Sliced|XFormers|XLA|Fused)?Attn(AddedKV)?Processor(2_0|NPU)?").fullmatch
_MOVING = re.compile(r".*Offload.*|AlignDevicesHook|LayerwiseCasting.*|PeftInputAutocast.*|SequentialHook").fullmatch
_HOOKS = re.compile(r"[/\\](accelerate|diffusers)[/\\]hooks\b").search
_SWITCHES = {"_active_adapter", "_disable_adapters"}  # of peft's layers
MODELS = ("image_encoder", "image_normalizer", "text_encoder", "unet", "vae")
_PROCESSORS = ("feature_extractor", "image_processor", "image_noising_scheduler")

_WORDS = 2**17
# {name: (shape, dtype, content)} of weights, {name: class and numbers} of modules.
Weights = dict[str, dict[str, Any]]


def weights_of(pipe: Any) -> Weights:
    """Of each model its parameters and buffers, its modules' classes and settings: FreeU, for one, is four numbers.

    Neither devices nor strides nor compilation count. Of the tokenizer all that it does.
    """
    models = {part: _tensors(getattr(pipe, part)) | _modules(getattr(pipe, part)) for part in MODELS}
    parts = {name: functions_of(getattr(pipe, name)) for name in _PROCESSORS} | {"pipeline": functions_of(pipe)}
    return models | parts | {"tokenizer": functions_of(pipe.tokenizer) | {"": _steps(pipe.tokenizer)}}


def check_weights(pipe: Any, noted: Weights) -> None:
    """Refuses a pipeline whose models compute with something else than when ``noted`` was made.

    Another dtype is no other weights: what has one now is noted anew.

    Raises:
        ValueError: It names the models.
    """
    now = weights_of(pipe)
    if changed := [part for part in now if not _alike(now[part], noted[part])]:
        raise ValueError(
            f"`pipe` must keep the weights and layers that its generator was made with, but {listed(changed)} has "
            "others (LoRA, FreeU, a hook, 8-bit floats, a state dict, a processor). Make another generator of it, "
            "with another `fingerprint`."
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


def content(tensor: Tensor) -> tuple[int, str]:
    """Its size and a sum of its bits, whatever its device and its strides.

    They are summed by eight bytes, each with a weight of its own within its megabyte: the 1.9 billion halves of a
    full-size pipeline in some 1.2 s on one core.
    """
    data = tensor.detach().contiguous().flatten().view(torch.uint8)
    if data.storage_offset() % 8:
        data = data.clone()
    whole = data.numel() // 8 * 8
    words = data[:whole].view(torch.int64)
    weights = torch.arange(1, 2 * min(len(words), _WORDS) + 1, 2, device=words.device)
    sums = torch.stack([(part * weights[: len(part)]).sum() for part in words.split(_WORDS)])
    parts = [*sums.tolist(), *data[whole:].tolist()]
    return tensor.numel(), hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _steps(tokenizer: Any) -> str:
    """All that it does with a text, but for the lengths that each call sets; nothing of one written in Python."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    steps = json.loads(backend.to_str()) if backend else {}
    steps = {name: value for name, value in steps.items() if name not in ("padding", "truncation")}
    return hashlib.blake2b(json.dumps(steps).encode(), digest_size=16).hexdigest()


def _tensors(model: torch.nn.Module) -> dict[str, Any]:
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return {_uncompiled(name): (tuple(x.shape), x.dtype, _content_if_plain(x)) for name, x in tensors.items()}


def _content_if_plain(tensor: Tensor) -> tuple[int, str] | str | None:
    """None of what lies elsewhere (on ``meta``, while it is offloaded), a name of what has a format of its own."""
    if tensor.is_meta:
        return None
    return content(tensor) if type(tensor) in (Tensor, torch.nn.Parameter) else type(tensor).__qualname__


def _modules(model: torch.nn.Module) -> dict[str, list[Any]]:
    """Of each module what it is and computes with; a compiled one is the one inside it."""
    modules = {_uncompiled(name): module for name, module in model.named_modules()}
    return {f"{name}:": [_name(type(module)), _numbers(module)] for name, module in modules.items()}


def _numbers(module: torch.nn.Module) -> dict[str, Any]:
    """What else a module computes with; an attention processor too, but for diffusers' that all come to the same."""
    processor = vars(module).get("processor")
    own = {} if _is_usual(type(processor)) else {"processor": [type(processor).__qualname__, _plain_of(processor)]}
    return functions_of(module) | _plain_of(module) | own


def _is_usual(kind: type) -> bool:
    return kind is type(None) or (kind.__module__.startswith("diffusers.") and bool(_USUAL(kind.__name__)))


class _Function:
    """A function, or an object in the place of one: it stays as it is as long as nobody sets anything in it."""

    def __init__(self, function: Any) -> None:
        self.function, self.settings = function, _plain_of(function)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return getattr(self.function, "__qualname__", type(self.function).__qualname__)


def functions_of(thing: Any) -> dict[str, list[_Function]]:
    """What was put into the place of its methods, and its hooks, by name; compilers and offloading compute the same."""
    own = vars(thing)
    hooks = [*getattr(own.get("_diffusers_hook"), "hooks", {}).values()]
    hooks += [own["_hf_hook"]] if "_hf_hook" in own else []
    kinds = [type(hook).__name__ for hook in hooks]
    found = {name: [own[name]] for name in _replaced(thing) if not (hooks and _is_of_hooks(own[name]))}
    found |= {name: [*own[name].values()] for name in ("_forward_hooks", "_forward_pre_hooks") if own.get(name)}
    found |= {kind: [kind] for kind in kinds if not _MOVING(kind)}
    ours = {name for name, (first, *_) in found.items() if hasattr(first, "plain")}
    return {name: list(map(_Function, found[name])) for name in found.keys() - ours}


def _replaced(thing: Any) -> list[str]:
    """Its attributes that are functions, or are called in the place of a method."""
    values = {name: value for name, value in vars(thing).items() if not isinstance(value, type | torch.nn.Module)}
    functions = {name for name, x in values.items() if isinstance(x, FunctionType | MethodType) and name[0] != "_"}
    return [*functions, *(n for n in values.keys() - functions if _is_method(thing, n) and callable(values[n]))]


def _is_method(thing: Any, name: str) -> bool:
    return callable(getattr(type(thing), name, None))


def _is_of_hooks(function: Any) -> bool:
    """Whether it is the `forward` that moves a module's weights, or casts them, around its own."""
    code = getattr(getattr(function, "func", function), "__code__", None)
    return code is not None and _HOOKS(code.co_filename) is not None


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _plain_of(thing: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in getattr(thing, "__dict__", {}).items()
        if (_is_plain(value) and not name.startswith("_") and name not in _CHOICES) or name in _SWITCHES
    }


def _is_plain(value: Any) -> bool:
    values = value.values() if type(value) is dict else value if type(value) in (tuple, list) else (value,)
    return len(values) > 0 and all(type(x) in (int, float, bool, str) for x in values)


def _uncompiled(name: str) -> str:
    return re.sub(r"(^|\.)_orig_mod\b", "", name).removeprefix(".")


def _alike(now: dict[str, Any], noted: dict[str, Any]) -> bool:
    return now.keys() == noted.keys() and all(_is_same(now[name], value) for name, value in noted.items())


def _is_same(now: Any, noted: Any) -> bool:
    if not isinstance(noted, tuple):
        return now == noted
    if now[1] != noted[1] and now[1].itemsize < 2:  # which loses more than rounding
        return False
    comparable = now[1] == noted[1] and _is_known(now) and _is_known(noted)
    return now == noted if comparable else now[0] == noted[0]


def _is_known(value: Any) -> bool:
    return not isinstance(value, tuple) or value[2] is not None
