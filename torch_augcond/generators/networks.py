"""The UNet and the decoder as functions: as they are, or compiled where the job is long enough to pay for it."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import warn
from .reuse import Reusing, split

if TYPE_CHECKING:
    from diffusers import StableUnCLIPImg2ImgPipeline as Pipeline

__all__ = ["COMPILE", "Networks", "choose"]

COMPILE = ("auto", True, False, "regional")

# From how many images on a way of compiling takes less time than it saves. On a CPU, a minute of compiling makes an
# image of the bundled model 1.4 times as fast, which is 24 ms (measured). For a GPU these are estimates: one to two
# minutes for the whole of a large UNet, a sixth of that for its transformer blocks, which are all alike.
_PAYS = {"cpu": ((3000, "whole"),), "cuda": ((1024, "whole"), (128, "regional"))}
_log = logging.getLogger(__name__)


def choose(compile: bool | str, num_images: int, device: torch.device) -> str:
    """How to compile for a job of so many images: ``"whole"``, ``"regional"`` or ``"off"``.

    Args:
        compile: ``"auto"``, or the user's choice: True for the whole UNet and decoder, ``"regional"`` for the UNet's
            transformer blocks, False for nothing.
        num_images: That the job makes.
        device: That it makes them on.

    Example:
        >>> choose("auto", 64, torch.device("cpu")), choose("auto", 5000, torch.device("cpu"))
        ('off', 'whole')
    """
    chosen = {True: "whole", False: "off"}.get(compile, compile)
    if chosen == "auto":
        steps = _PAYS.get(device.type, ())
        chosen = next((way for least, way in steps if num_images >= least), "off")
    _log.info("%d images on %s: compilation %s (compile=%r)", num_images, device, chosen, compile)
    return chosen


class Networks:
    """A pipeline's UNet and decoder.

    Compiled functions are specialised to the shapes they are given: a job of batches of one shape compiles once.

    Args:
        pipe: The pipeline; what is replaced in it later is used.
        way: From `choose`.
        cache_interval: Every n-th step runs the whole UNet, the others reuse its deep features.
    """

    def __init__(self, pipe: "Pipeline", way: str = "off", cache_interval: int = 1) -> None:
        self.cache_interval = cache_interval
        self.decode: Callable[[Tensor], Tensor] = lambda latents: pipe.vae.decode(latents, return_dict=False)[0]
        parts = [pipe.unet] if cache_interval == 1 else split(pipe.unet)
        self._parts = [_outputs(part) for part in parts]
        _uncompile(pipe.unet)
        if way == "off":
            return
        if pipe.device.type == "cuda":  # what its convolutions are fastest in
            pipe.unet.to(memory_format=torch.channels_last)
            pipe.vae.to(memory_format=torch.channels_last)
        if way == "whole":
            self.decode = _fast(self.decode)
            self._parts = [_fast(part) for part in self._parts]
        else:
            blocks = set(pipe.unet._repeated_blocks)
            for module in pipe.unet.modules():
                if type(module).__name__ in blocks:
                    replaced = vars(module).get("forward")  # by a user
                    module.forward = _fast(module.forward)
                    module.forward.replaced = replaced

    def begin(self) -> Callable[..., Tensor]:
        """The UNet, for the steps of one batch: (rows, timestep, conditions by keyword) → rows."""
        return self._parts[0] if self.cache_interval == 1 else Reusing(*self._parts, self.cache_interval)


def _uncompile(unet: torch.nn.Module) -> None:
    """Undoes what an earlier job compiled by region."""
    for module in unet.modules():
        if hasattr(compiled := vars(module).get("forward"), "plain"):
            del module.forward  # its class has the plain one; in a copy of the pipeline, `plain` is the original's
            if compiled.replaced is not None:
                module.forward = compiled.replaced


def _outputs(unet: torch.nn.Module) -> Callable[..., Tensor]:
    return lambda *inputs, **conditions: unet(*inputs, **conditions, return_dict=False)[0]


def _fast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled when first called; where the compiler fails, the function itself from then on, with a warning."""
    chosen = torch.compile(function, dynamic=False)

    def run(*inputs: Any, **conditions: Any) -> Any:
        nonlocal chosen
        if chosen is function:
            return function(*inputs, **conditions)
        try:
            return chosen(*inputs, **conditions)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the compiler raises, the function itself is the judge of its inputs
            result = function(*inputs, **conditions)
            chosen = function
            _warn(error)
            return result

    run.plain = function
    return run


def _warn(error: Exception) -> None:
    reason = str(error).strip().partition("\n")[0]
    warn(
        f"torch.compile doesn't work here ({type(error).__name__}: {reason}), so a network runs uncompiled: the same "
        "images, more slowly. Pass compile=False to choose that.",
    )
