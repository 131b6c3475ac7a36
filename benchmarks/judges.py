"""Small classifiers of photographs, which look at images and never take part in making them.

`resnet` is the backbone for few-shot studies; `convnext`, another architecture trained on other views, measures: its
features are what Fréchet distances, nearest class means and perceptual distances are taken in.
"""

import json

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from stages import Stage, compiled
from torch import nn

JUDGES = {
    "classifier": {"kind": "resnet", "widths": (64, 112, 176, 248), "depths": (2, 2, 2, 2)},
    "measure": {"kind": "convnext", "widths": (40, 80, 160, 264), "depths": (1, 2, 2, 3)},
}
VIEWS = {"classifier": {"crop": (0.25, 1.0), "jitter": 0.4}, "measure": {"crop": (0.5, 1.0), "jitter": 0.2}}


class ResNetBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x):
        return F.relu(x + self.layers(x))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width), nn.GroupNorm(1, width),
            nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1),
        )  # fmt: skip

    def forward(self, x):
        return x + self.layers(x)


BLOCKS = {"resnet": ResNetBlock, "convnext": ConvNeXtBlock}


class Judge(nn.Module):
    """Pixels (N, 3, H, W) in [-1, 1] → logits; each stage halves the resolution, first that of the pixels."""

    def __init__(self, kind, widths, depths, classes):
        super().__init__()
        block, before = BLOCKS[kind], (3, *widths)
        self.stages = nn.ModuleList()
        for old, width, depth in zip(before, widths, depths):
            down = nn.Conv2d(old, width, 3, stride=2, padding=1), nn.GroupNorm(1, width)
            self.stages.append(nn.Sequential(*down, *(block(width) for _ in range(depth))))
        self.head = nn.Linear(widths[-1], classes)

    def maps(self, pixels):
        """The output of each stage."""
        maps = [pixels]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]

    def features(self, pixels):
        """(N, D): the means of the last stage's channels."""
        return self.maps(pixels)[-1].mean((2, 3))

    def forward(self, pixels):
        return self.head(self.features(pixels))


def train_judge(name, data, config, work, *, batch, seed=7, **stage):
    """A classifier: cross-entropy with smoothed labels."""
    device = data.labels.device
    net = Judge(**config, classes=len(data.texts)).to(memory_format=torch.channels_last)
    stage = Stage(name, {"net": net}, work, seed=seed, ema=0.999, weight_decay=0.05, device=device, **stage)
    look, rng = compiled(stage.modules["net"], device), stage.rng

    def loss_of(step):
        index = torch.randint(len(data), (batch,), generator=rng, device=device)
        pixels = data.views(index, rng).contiguous(memory_format=torch.channels_last)
        return {"class": F.cross_entropy(look(pixels), data.labels[index], label_smoothing=0.1)}

    return stage.run(loss_of, batch)["net"]


def save_judge(judge, config, classes, path):
    """Half precision, with all that it takes to build it again."""
    metadata = {"config": json.dumps(config), "classes": json.dumps(classes)}
    save_model(judge.to("cpu", torch.float16, memory_format=torch.contiguous_format), path, metadata)
    path.chmod(0o644)  # safetensors writes 0600 whatever the umask is


def load_judge(path, device="cpu"):
    """A classifier for evaluation in float32, and the names of its classes."""
    with safe_open(path, "pt") as file:
        config, classes = (json.loads(file.metadata()[key]) for key in ("config", "classes"))
    judge = Judge(**config, classes=len(classes))
    load_model(judge, path)
    return judge.float().to(device).eval().requires_grad_(False), classes


@torch.no_grad()
def looked_at(function, pixels, batch=256):
    """A judge's `function` of pixels (N, 3, H, W), uint8, in batches; the result on the CPU."""
    device = next(function.__self__.parameters()).device
    return torch.cat([function(part.to(device).float() / 127.5 - 1).cpu() for part in pixels.split(batch)])
