"""What may be asked of a generator beyond its checkpoint: shortcuts that change images, and compilation."""

import hashlib
import json
from numbers import Real
from typing import TYPE_CHECKING, Any

from ..checks import as_int
from .networks import COMPILE

if TYPE_CHECKING:
    from diffusers import StableUnCLIPImg2ImgPipeline as Pipeline

__all__ = ["SCHEDULERS", "check_compile", "check_interval", "check_reuse", "exact", "make_scheduler", "scheduler_id"]

# Name → diffusers' class and what it is given besides the checkpoint's noise schedule.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpmpp": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "timestep_spacing": "trailing"}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
}


def make_scheduler(name: str, config: dict[str, Any]) -> Any:
    """One of diffusers' schedulers, for the noise schedule and the prediction of the checkpoint's own."""
    import diffusers

    if not isinstance(name, str) or name not in SCHEDULERS:
        raise ValueError(f"`scheduler` must be None or one of {', '.join(SCHEDULERS)}, but got {name!r}.")
    kind, options = SCHEDULERS[name]
    return getattr(diffusers, kind).from_config(config, **options)


def keep_own_scheduler(pipe: "Pipeline") -> None:
    """Notes which scheduler a checkpoint came with, so that it needn't be named."""
    pipe._own_scheduler = scheduler_id(pipe)


def own_scheduler_id(pipe: "Pipeline") -> str | None:
    """Of the scheduler that its checkpoint came with; None where nobody has noted it."""
    return getattr(pipe, "_own_scheduler", None)


def scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """Its configuration, less what diffusers notes about itself; of entries set as attributes later, what is used."""
    config = scheduler.config
    return {name: value for name, value in {**config, **vars(config)}.items() if not name.startswith("_")}


def scheduler_id(pipe: "Pipeline") -> str:
    """Class and configuration; where a class has the name of one of diffusers', its module as well."""
    import diffusers

    kind = type(pipe.scheduler)
    name = kind.__name__ if getattr(diffusers, kind.__name__, kind) is kind else f"{kind.__module__}.{kind.__name__}"
    text = json.dumps(scheduler_settings(pipe.scheduler), sort_keys=True, default=_whole)
    return f"{name}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def _whole(value: Any) -> Any:
    """As text, except for arrays, of which that shows a few digits."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def check_compile(compile: Any) -> bool | str:
    if not any(compile is choice or (isinstance(compile, str) and compile == choice) for choice in COMPILE):
        raise ValueError(f'`compile` must be "auto", True, False or "regional", but got {compile!r}.')
    return compile


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def check_interval(interval: Any) -> tuple[float, float]:
    pair = isinstance(interval, tuple | list) and len(interval) == 2 and all(map(_is_number, interval))
    if not pair or not 0 <= interval[0] < interval[1] <= 1:  # NaN is refused too
        raise ValueError(
            "`guidance_interval` must be two numbers (lo, hi) with 0 <= lo < hi <= 1, the part of the steps that is "
            f"guided, but got {interval!r}. For none, pass guidance_scale=1."
        )
    return float(interval[0]), float(interval[1])


def exact(number: float) -> str:
    """As short as ``:g`` where that loses nothing, so that different numbers never look alike.

    Example:
        >>> exact(0.0), exact(0.6), exact(0.5 / 31)
        ('0', '0.6', '0.016129032258064516')
    """
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def check_reuse(cache_interval: Any, unet: Any) -> int:
    cache_interval = as_int("cache_interval", cache_interval, low=1)
    if cache_interval > 1 and len(unet.up_blocks[-1].resnets) < 2:
        raise ValueError(
            f"`cache_interval` must be 1 for a UNet with a single layer in its last block, but got {cache_interval}."
        )
    return cache_interval
