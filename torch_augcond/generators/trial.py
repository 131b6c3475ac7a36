"""Whether a scheduler's steps are functions of what a row is given: tried out, since no class says it of itself."""

import copy
import hashlib
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from .options import scheduler_id, scheduler_settings
from .quiet import without_messages
from .weights import functions_of

if TYPE_CHECKING:
    from diffusers import StableUnCLIPImg2ImgPipeline as Pipeline

__all__ = ["check_scheduler", "scheduler_state"]

_STEPS = 4
_STEPPED = {"sigmas", "timesteps"}
_SHAPE = (4, 4, 4)  # of latents
_NEAR = {"rtol": 1e-3, "atol": 1e-3, "equal_nan": True}


def scheduler_state(pipe: "Pipeline") -> str:
    """A digest of all that is set in the scheduler: as long as it stays, so does what `check_scheduler` found."""
    digest = hashlib.blake2b(f"{scheduler_id(pipe)} {functions_of(pipe.scheduler)}".encode(), digest_size=16)
    for name, value in sorted(vars(pipe.scheduler).items()):
        if isinstance(value, Tensor):
            digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
        elif isinstance(value, int | float | str | list | tuple | None):
            digest.update(f"{name}={value!r}".encode())
    return digest.hexdigest()


def check_scheduler(pipe: "Pipeline") -> None:
    """Refuses a scheduler that draws noise by itself, mixes rows, or isn't what its class and configuration say.

    A row is denoised by a new scheduler of that class and configuration, and again beside another row by a copy of this
    one: both must come to the same.

    Raises:
        ValueError: It says which schedulers can be used.
    """
    scheduler, reason = pipe.scheduler, "which doesn't"
    try:
        with without_messages(), catch_warnings(), torch.device("cpu"), torch.random.fork_rng(devices=[]):
            simplefilter("ignore")
            fresh = type(scheduler).from_config(scheduler_settings(scheduler))
            fits = _has_tables_of(scheduler, fresh) and not functions_of(scheduler)
            alone = _run(pipe, fresh, [7])
            beside = _run(pipe, copy.deepcopy(scheduler), [8, 7])[1:]
        fits = fits and torch.allclose(alone, beside, **_NEAR)
    except Exception as error:  # whatever one of them raises that was made for something else than latents
        fits, reason = False, f"which fails ({type(error).__name__}: {str(error).strip().partition(chr(10))[0]})"
    if not fits:
        raise ValueError(
            "`pipe.scheduler` must take its noise from the `generator` given to its step, and be what its "
            f"configuration says, but got {type(scheduler).__name__}, {reason}. Use one such as "
            "DPMSolverMultistepScheduler or EulerAncestralDiscreteScheduler, or load_generator's `scheduler`."
        )


def _has_tables_of(scheduler: Any, fresh: Any) -> bool:
    """Whether its numbers are those of a new one, but for what it was set to for a number of steps."""
    tables = {name: value for name, value in vars(fresh).items() if isinstance(value, Tensor) and name not in _STEPPED}
    found = {name: getattr(scheduler, name, None) for name in tables}
    return all(
        not isinstance(x, Tensor) or x.shape != tables[name].shape or torch.allclose(x.cpu(), tables[name].cpu())
        for name, x in found.items()
    )


def _run(pipe: "Pipeline", scheduler: Any, keys: list[int]) -> Tensor:
    """As `denoise` does, with a function in the UNet's place; on the CPU, wherever the scheduler was made."""
    for name, value in list(vars(scheduler).items()):
        if isinstance(value, Tensor):
            setattr(scheduler, name, value.cpu())
    generators = [torch.Generator().manual_seed(key) for key in keys]
    latents = torch.stack([torch.randn(_SHAPE, generator=generator) for generator in generators])
    scheduler.set_timesteps(min(_STEPS, scheduler.config.num_train_timesteps))
    extra = pipe.prepare_extra_step_kwargs(generators, 0.0)
    latents = latents * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        noise = scheduler.scale_model_input(latents, t).sin()
        latents = scheduler.step(noise, t, latents, **extra, return_dict=False)[0]
    return latents
