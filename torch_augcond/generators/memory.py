"""How much memory is free, and how many images it holds on their way."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .denoise import DECODE_CHUNK

if TYPE_CHECKING:
    from diffusers import StableUnCLIPImg2ImgPipeline as Pipeline

__all__ = ["batch_size_for", "bytes_per_image", "fit", "free_memory"]

_MOST = 64  # images; a device is busy with fewer
_CPU_AREA = 16 * 768**2  # pixels; a CPU gains nothing from more, and less is lost when a run is cut short
_SHARE = 0.8  # of the free memory; the rest is for fragments, and for what others begin to use


def free_memory(device: torch.device) -> int | None:
    """Bytes that may still be allocated; None where nobody can tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def batch_size_for(pipe: "Pipeline", image_size: int) -> int:
    """As many guided images as the free memory holds, by `bytes_per_image`.

    Up to 64, and on a CPU up to 16 images of 768 pixels or as many pixels in smaller ones.
    """
    most = _MOST if pipe.device.type == "cuda" else min(_MOST, max(1, _CPU_AREA // image_size**2))
    return fit(free_memory(pipe.device), *bytes_per_image(pipe), most)


def fit(free: int | None, denoised: int, decoded: int, most: int) -> int:
    """From 1 to ``most`` images; above 8, a multiple of 8, in which they are decoded.

    Args:
        free: Bytes; None if nobody knows.
        denoised: Bytes for each image of the batch.
        decoded: Bytes for each image that is decoded at once, which are 8 at most.

    Example:
        >>> fit(10_000, 100, 20, 64), fit(4000, 100, 20, 64), fit(10, 100, 20, 64)
        (64, 24, 1)
    """
    if free is None:
        return most
    usable = _SHARE * free
    count = max((usable - DECODE_CHUNK * decoded) / denoised, min(usable / (denoised + decoded), DECODE_CHUNK))
    count = min(most, int(count))
    return max(1, count - count % DECODE_CHUNK if count > DECODE_CHUNK else count)


def bytes_per_image(pipe: "Pipeline") -> tuple[int, int]:
    """Upper estimates of what a guided image takes while it is denoised and while it is decoded.

    They are those of the widest places. In the UNet's first level, the feed-forward layers hold twelve times as many
    numbers as there are channels, next to the skip connections; in the decoder's last level, three tensors are alive.
    """
    unet, vae, itemsize = pipe.unet.config, pipe.vae.config, pipe.unet.dtype.itemsize
    area = unet.sample_size**2
    denoised = 2 * area * unet.block_out_channels[0] * (12 + 4 * (_layers(unet) + 2))
    decoded = 3 * area * pipe.vae_scale_factor**2 * 2 * vae.block_out_channels[0]
    return itemsize * denoised, itemsize * decoded


def _layers(unet: Any) -> int:
    layers = unet.layers_per_block
    return layers if isinstance(layers, int) else max(layers)
