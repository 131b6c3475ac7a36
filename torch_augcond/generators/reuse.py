"""Deep features of a UNet, kept from one denoising step to the next, in which they hardly change.

Of a step that reuses them, only the UNet's first convolution and the last layer of its last block are computed. Nothing
of the UNet is forked or changed: both functions are shallow copies of it that share its layers and run its ``forward``.

Source: Ma et al. 2024, "DeepCache: Accelerating Diffusion Models for Free", with its branch 0.
"""

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["Reusing", "split"]


class Reusing:
    """A UNet that is run whole in every ``interval``-th call, and when the number of rows changes."""

    def __init__(self, whole: Callable[..., Tensor], shallow: Callable[..., Tensor], interval: int) -> None:
        self._whole, self._shallow, self._interval = whole, shallow, interval
        self._calls, self._rows = 0, -1

    def __call__(self, x: Tensor, *inputs: Any, **conditions: Any) -> Tensor:
        if self._calls % self._interval == 0 or len(x) != self._rows:
            self._calls, unet = 0, self._whole
        else:
            unet = self._shallow
        self._calls, self._rows = self._calls + 1, len(x)
        return unet(x, *inputs, **conditions)


def split(unet: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Two UNets: the first runs whole and keeps its deep features, the second starts from them.

    Raises:
        ValueError: A copy of it would run the original, since somebody has bound its ``forward`` to that.
    """
    block = unet.up_blocks[-1]
    if "up_blocks" not in unet._modules or any("forward" in vars(module) for module in (unet, block)):
        raise ValueError(
            "`cache_interval` must be 1 for a UNet that is wrapped, or whose `forward` was replaced, as offloading, "
            "mixed precision and adapters do. Load the pipeline without them."
        )
    kind = "attentions" if getattr(block, "has_cross_attention", False) else "resnets"
    layers = getattr(block, kind)
    kept = _Keeping(layers[-2])
    keeping = _with(block, **{kind: nn.ModuleList([*layers[:-2], kept, layers[-1]])})
    last = _with(block, **{name: layers[-1:] for name, layers in block.named_children() if name in _LAYERS})
    whole = _with(unet, up_blocks=nn.ModuleList([*unet.up_blocks[:-1], keeping]))
    starting = nn.ModuleList([_Starting(last, kept)])
    return whole, _with(unet, down_blocks=nn.ModuleList(), mid_block=None, up_blocks=starting)


_LAYERS = ("resnets", "attentions")


def _with(module: nn.Module, **parts: nn.Module | None) -> nn.Module:
    """A copy that shares all parts but these."""
    other = copy.copy(module)
    other._modules = {**module._modules, **parts}
    return other


class _Keeping(nn.Module):
    """A layer that remembers what it gave out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.kept = layer, None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        output = self.layer(*inputs, **options)
        self.kept = output[0] if isinstance(output, tuple) else output
        return output


class _Starting(nn.Module):
    """The end of a block, given what was kept instead of what comes from the blocks before."""

    def __init__(self, block: nn.Module, source: _Keeping) -> None:
        super().__init__()
        self.block, self.source, self.resnets = block, source, block.resnets
        self.has_cross_attention = getattr(block, "has_cross_attention", False)

    def forward(self, hidden_states: Tensor, **inputs: Any) -> Tensor:
        return self.block(hidden_states=self.source.kept, **inputs)
