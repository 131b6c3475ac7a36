"""Training in stages that can be cut short: each keeps a checkpoint and a log and goes on from where it stopped."""

import copy
import csv
import math
import time
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

__all__ = ["OutOfTime", "Stage", "compiled"]


class OutOfTime(Exception):
    """The time of this call is over: the stage is saved, and the next call goes on with it."""


def compiled(function, device):
    """The function or module, compiled on a GPU, where launching kernels one by one takes longer than running them."""
    return torch.compile(function) if torch.device(device).type == "cuda" else function


class Stage:
    """A named, resumable training loop: modules, an optimizer with warm-up and cosine decay, a log.

    In `rng` is the generator that all random numbers of the stage shall come from: it goes on where it stopped, too.

    Args:
        name: Of the checkpoint, `<name>.pt`, and of the log, `<name>.csv`, in the folder `work`.
        lr: The highest learning rate.
        minutes: Of training, all calls taken together.
        steps: Of training, instead of minutes; what a stage has learned is then a function of its seed.
        until: When this call has to stop, as `time.monotonic()` counts.
        ema: Decay of the moving average of the weights; None keeps none.
        bf16: Whether to compute in bfloat16 where PyTorch holds it safe; None: on a GPU.
    """

    def __init__(
        self, name, modules, work, *, lr, minutes,
        steps=None, until=math.inf, ema=None, weight_decay=1e-3, seed=0, device="cpu", bf16=None,
    ):  # fmt: skip
        self.name, self.work, self.lr = name, Path(work), lr
        self.minutes, self.steps, self.until, self.decay = minutes, steps, until, ema
        self.device = torch.device(device)
        self.bf16 = self.device.type == "cuda" if bf16 is None else bf16
        self.modules = nn.ModuleDict(modules).to(self.device)
        self.ema = copy.deepcopy(self.modules).requires_grad_(False) if ema else None
        self.optimizer = torch.optim.AdamW(
            self.modules.parameters(), lr, betas=(0.9, 0.98), weight_decay=weight_decay,
            fused=self.device.type == "cuda" or None,
        )  # fmt: skip
        self.rng = torch.Generator(self.device)
        self.step, self.seconds, self.samples = 0, 0.0, 0
        self.file = self.work / f"{name}.pt"
        state = torch.load(self.file, map_location="cpu", weights_only=True) if self.file.exists() else {}
        if state:
            self._restore(state)
        if "rng" in state:
            self.rng.set_state(state["rng"])
        else:  # a new stage, or one that was saved before its generator was
            self.rng.manual_seed(seed + self.step)

    def _restore(self, state):
        self.modules.load_state_dict(state["modules"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        self.step, self.seconds, self.samples = state["step"], state["seconds"], state["samples"]

    def save(self):
        state = {"modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        state |= {"seconds": self.seconds, "samples": self.samples, "ema": self.ema.state_dict() if self.ema else {}}
        torch.save(state | {"rng": self.rng.get_state()}, self.file.with_suffix(".tmp"))
        self.file.with_suffix(".tmp").replace(self.file)

    def best(self):
        """The modules to use afterwards: the moving average where there is one."""
        return (self.ema or self.modules).eval().requires_grad_(False)

    @property
    def done(self):
        """The part of the stage that is over; 1 at its end, or a little more."""
        over, total = (self.seconds, self.minutes * 60) if self.steps is None else (self.step, self.steps)
        return over / total if total else 1.0

    def run(self, loss_of, batch):
        """Call `loss_of(step) -> {name: loss}` until the stage is over; the losses are summed.

        Raises:
            OutOfTime: This call's time ended before the stage.
        """
        last, means = time.monotonic(), {}
        self.modules.train()
        start, shape = min(self.done, 1.0), "{l_bar}{bar}{postfix}"
        bar = tqdm(total=1.0, initial=start, desc=self.name, bar_format=shape, disable=None)
        while self.done < 1:
            if last >= self.until:
                self.save()
                raise OutOfTime(f"{self.name} stopped at {self.done:.0%}, after {self.step} steps.")
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                losses = loss_of(self.step)
            self._learn(losses)
            for key, value in losses.items():  # on the device: reading a number there would make the host wait
                value = value.detach().double()
                means[key] = 0.98 * means.get(key, value) + 0.02 * value
            self.step, self.samples, now = self.step + 1, self.samples + batch, time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            if self.step % 100 == 0:
                self._log(means)
                bar.update(min(self.done, 1) - bar.n)
            if self.step % 500 == 0:
                self.save()
        self.save()
        return self.best()

    def _learn(self, losses):
        rate = self.lr * min(1.0, (self.step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * self.done) + 0.01)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        if self.ema:
            self._average()

    @torch.no_grad()
    def _average(self):
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.modules.parameters()), 1 - decay)
        for mean, value in zip(self.ema.buffers(), self.modules.buffers(), strict=True):
            mean.copy_(value)

    def _log(self, means):
        path = self.work / f"{self.name}.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "samples", "seconds", *means])
            losses = (f"{value.item():.5f}" for value in means.values())
            writer.writerow([self.step, self.samples, round(self.seconds), *losses])
