"""What both trainings share: an average of weights, a checkpoint that is never half written, a progress line."""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of a module's parameters; `decay` rises with the step, so the start is forgotten."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.module, self.decay, self.step = module, decay, 0
        self.shadow = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, p in self.module.named_parameters():
            self.shadow[name].lerp_(p, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averaged and live weights; call twice to come back."""
        for name, p in self.module.named_parameters():
            live = p.detach().clone()
            p.copy_(self.shadow[name])
            self.shadow[name] = live

    def state_dict(self) -> dict:
        return {"step": self.step, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        self.step, self.shadow = state["step"], state["shadow"]


def save_checkpoint(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict:
    """A checkpoint that this project wrote; only tensors and plain values are read, no pickled code."""
    return torch.load(path, map_location="cpu", weights_only=True)


class Progress:
    """`step 1200  31.4 img/s  loss 0.123`, averaged over the last hundred steps, printed every `every` seconds."""

    def __init__(self, every: float = 20.0) -> None:
        self.every, self.last, self.started = every, time.monotonic(), time.monotonic()
        self.losses: dict[str, deque[float]] = {}
        self.images = 0

    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    def __call__(self, step: int, images: int, **losses: Tensor) -> bool:
        self.images += images
        for name, value in losses.items():
            self.losses.setdefault(name, deque(maxlen=100)).append(float(value))
        now = time.monotonic()
        if now - self.last < self.every:
            return False
        terms = "  ".join(f"{name} {sum(v) / len(v):.4f}" for name, v in self.losses.items())
        print(
            f"step {step}  {self.minutes():.1f} min  {self.images / (now - self.last):.1f} img/s  {terms}", flush=True
        )
        self.last, self.images = now, 0
        return True
