"""The denoising loop of diffusers' ``StableUnCLIPImg2ImgPipeline.__call__``, around the pipeline's own parts.

It is written out because the pipeline takes one noise level and appends its embedding itself, where nothing can be
dropped from it any more; here the whole conditioning vector comes from outside, one a row.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..functional import Purpose, normal
from .networks import Networks

if TYPE_CHECKING:
    from diffusers import StableUnCLIPImg2ImgPipeline as Pipeline

__all__ = ["DECODE_CHUNK", "decode", "denoise", "draw_latents", "in_float32", "time_parts", "to_uint8"]

DECODE_CHUNK = 8  # rows; the decoder needs far more memory a row than the UNet


def draw_latents(keys: Tensor, channels: int, size: int) -> tuple[Tensor, list[torch.Generator]]:
    """The starting noise of each row, and a generator a row for schedulers that draw more.

    Both are drawn on the CPU from the row's key, so noise changes neither with the batch nor with the device. The
    starting noise uses all 64 bits of a key, where torch's CPU generator keeps 32: among 1.16 million images some 157
    pairs would start alike.

    Shape:
        (N,) → (N, channels, size, size), float32, on the CPU.
    """
    latents = normal(keys.cpu(), Purpose.LATENTS, channels * size**2).unflatten(1, (channels, size, size))
    return latents, [torch.Generator().manual_seed(key) for key in keys.tolist()]


def denoise(
    pipe: "Pipeline",
    networks: Networks,
    latents: Tensor,
    condition: Tensor,
    prompt_embeds: Tensor,
    empty_prompt: Tensor,
    *,
    guidance_scale: float,
    num_inference_steps: int,
    generators: Sequence[torch.Generator],
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Standard normal latents → those of the images. All tensors have the UNet's device and dtype.

    The unconditional half has an image condition of zeros and the empty prompt; outside ``guidance_interval`` it isn't
    computed. The pipeline's scheduler is copied, since it counts steps and remembers outputs.

    Shape:
        (N, C, H, W), (N, 2D), (N, L, E), (1, L, E) → (N, C, H, W).
    """
    conditional = {"encoder_hidden_states": prompt_embeds, "class_labels": condition}
    pair = {
        "encoder_hidden_states": torch.cat([empty_prompt.expand_as(prompt_embeds), prompt_embeds]),
        "class_labels": torch.cat([torch.zeros_like(condition), condition]),
    }
    scheduler = copy.deepcopy(pipe.scheduler)
    # Its own numbers lie on the CPU: looked up there, no step makes the host wait for the device.
    scheduler.set_timesteps(num_inference_steps)
    extra = pipe.prepare_extra_step_kwargs(generators, 0.0)
    latents = latents * scheduler.init_noise_sigma
    steps = scheduler.timesteps.to(latents.device)
    unet = networks.begin()
    for i, (t, step) in enumerate(zip(scheduler.timesteps, steps, strict=True)):
        x = scheduler.scale_model_input(latents, t)
        if guidance_scale > 1 and within((i + 0.5) / len(steps), guidance_interval):
            negative, positive = unet(torch.cat([x, x]), step, **pair).chunk(2)
            noise = negative + guidance_scale * (positive - negative)
        else:
            noise = unet(x, step, **conditional)
        latents = scheduler.step(noise, t, latents, **extra, return_dict=False)[0]
    return latents


def within(part: float, interval: tuple[float, float]) -> bool:
    """Whether a step, as a fraction of them all, lies in the interval."""
    return interval[0] <= part < interval[1]


def decode(pipe: "Pipeline", networks: Networks, latents: Tensor) -> Tensor:
    """(N, C, H, W) latents → (N, 3, H, W) images in [0, 1], float32; NaN stays NaN."""
    rows = len(latents)
    if rows > DECODE_CHUNK:  # every row among as many others, wherever it stands in its batch
        latents = torch.cat([latents, latents[-1:].expand(-rows % DECODE_CHUNK, -1, -1, -1)])
    chunks = (latents / pipe.vae.config.scaling_factor).split(DECODE_CHUNK)
    images = torch.cat([networks.decode(chunk) for chunk in chunks])[:rows]
    return pipe.image_processor.denormalize(images.float())


def to_uint8(images: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels on the CPU, rounded as diffusers rounds them, and which rows are NaN or one plain colour.

    It is looked for here, since a NaN is black once it is an integer.

    Shape:
        (N, 3, H, W) → (N, 3, H, W), uint8, and (N,), bool.
    """
    finite = images.isfinite().flatten(1).all(1)
    pixels = images.nan_to_num(0).mul(255).round().to(torch.uint8)
    plain = (pixels == pixels[..., :1, :1]).flatten(1).all(1)
    return pixels.cpu(), (~finite | plain).cpu()


@contextmanager
def in_float32(pipe: "Pipeline") -> Iterator[None]:
    """Halves survive the way there and back without loss, so other rows don't change."""
    modules = pipe.unet, pipe.vae
    dtypes = [(x, x.dtype) for module in modules for x in (*module.parameters(), *module.buffers())]
    try:
        for module in modules:
            module.to(torch.float32)
        yield
    finally:
        for tensor, dtype in dtypes:  # of some models, not all have the same
            tensor.data = tensor.data.to(dtype)


def time_parts(pipe: "Pipeline", latents: Tensor, condition: Tensor, prompt_embeds: Tensor) -> tuple[float, float]:
    """Seconds of one UNet call and of one decoding; what takes under a second is run a second time, warm."""

    def step() -> Tensor:
        return pipe.unet(latents, 1, encoder_hidden_states=prompt_embeds, class_labels=condition, return_dict=False)[0]

    seconds = []
    for work in (step, lambda: decode(pipe, Networks(pipe), latents[:1])):
        for _ in range(2):
            start = time.perf_counter()
            work().sum().item()  # .item() waits for a GPU
            took = time.perf_counter() - start
            if took > 1:
                break
        seconds.append(took)
    return seconds[0], seconds[1]
