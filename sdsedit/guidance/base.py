"""What every method of score distillation shares: what a step is given, what it returns, and one batched forward pass.

A method is a frozen dataclass of hyperparameters. Calling it with a prior, a `Step` and its own state gives an
`Update`, whose `step` is subtracted from the latent: z <- z - step. It never asks which model it has, and draws no
noise of its own. Most need no autograd; CDS, IDS and VSD go through the network with it (`through_network`).

Notation, here and in every method: z_t = a z + s eps with a, s from the prior's schedule at t in 0..1; e(z_t, y) is the
predicted noise in fp32; CFG is e_hat = e_0 + scale (e_y - e_0), so scale 1 is the conditional prediction; w = s^2. Step
sizes act per latent element, so they mean the same at every resolution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from sdsedit.prior.base import Prior, Probe, Text
from sdsedit.schedule import Draw


@dataclass(frozen=True)
class Prompts:
    """The encoded prompts of one edit, a row each, and the words whose place is looked for."""

    target: Text
    source: Text  # the empty prompt where the person gave none
    empty: Text
    negative: Text  # the empty prompt where the person gave none
    tokens: tuple[int, ...] = ()  # text positions of the words to localise; empty: the whole picture may change
    mask_from: Literal["target", "source"] = "target"  # the prompt that `tokens` are positions in
    replaced: tuple[int, ...] = ()  # positions in the source of words that new ones replace; their place may change too


@dataclass(frozen=True)
class Step:
    """One step of one edit."""

    index: int  # 0 .. total - 1
    total: int
    z: Tensor  # [B, C, h, w] fp32, the edited latent
    z_src: Tensor  # [B, C, h, w] fp32, the source's latent
    prompts: Prompts
    draw: Callable[[], Draw]  # each call is a new (t, eps), t between the method's t_min and t_max
    mask: Tensor | None = None  # [1, 1, h, w], a person's mask: only there may z change

    @property
    def progress(self) -> float:
        """0 at the first step, 1 at the last one; 0 if there is only one."""
        return self.index / max(self.total - 1, 1)


@dataclass(frozen=True)
class State:
    """What a method remembers from step to step: where a localising one has seen the edit so far, what VSD learned."""

    mask: Tensor | None = None  # [1, 1, h, w] in 0..1, moving average of the maps; None before the first
    map: Tensor | None = None  # [1, 1, h, w] in 0..1, the last step's map
    learned: Any = None  # the method's own


@dataclass(frozen=True)
class Update:
    """What a method answers."""

    step: Tensor  # [B, C, h, w] fp32, subtracted from z
    state: State | None
    stats: dict[str, Tensor]  # 0-dim tensors on z's device: t, grad_norm, distance, and a method's own
    last: bool = False  # whether the method is done: more steps would change little


class Guidance(Protocol):
    """A method; see METHODS. `localizes`: it finds the place of the edit itself and keeps it in a State, which starts
    as None."""

    localizes: ClassVar[bool]

    @property
    def t_min(self) -> float: ...
    @property
    def t_max(self) -> float: ...
    @property
    def steps(self) -> int: ...
    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update: ...


def predict(
    prior: Prior,
    t: Tensor,  # [B] in 0..1
    *branches: tuple[Tensor, Text],  # (z_t [B, C, h, w], text of 1 or B rows) each
    probe: Probe | None = None,  # sees the branches' rows in their order, B rows each
) -> tuple[tuple[Tensor, ...], object | None]:  # eps [B, C, h, w] fp32 for each branch, what the probe saw
    """All branches of a method in one forward pass."""
    rows = t.shape[0]
    z_t = torch.cat([z for z, _ in branches])
    text = Text.cat(*(y if len(y.prompts) == rows else y.repeat(rows) for _, y in branches))
    prediction = prior.predict(z_t, t.repeat(len(branches)), text, probe)
    return prediction.eps.chunk(len(branches)), prediction.maps


@contextmanager
def through_network(step: Step) -> Iterator[Step]:
    """Inside, autograd passes through the network, though the loop runs under inference mode; gives the same step made
    of tensors that autograd may save. What leaves must be detached."""
    with torch.inference_mode(False), torch.enable_grad():
        given = step.prompts
        prompts = replace(
            given,
            target=_saved(given.target),
            source=_saved(given.source),
            empty=_saved(given.empty),
            negative=_saved(given.negative),
        )
        yield replace(step, z=step.z.detach().clone(), z_src=step.z_src.detach().clone(), prompts=prompts)


def _saved(text: Text) -> Text:
    return replace(text, embeds=text.embeds.clone(), pooled=None if text.pooled is None else text.pooled.clone())


def descend(
    step: Step,
    gradient: Tensor,  # [B, C, h, w]
    step_size: float,
    t: Tensor,  # [B]
) -> Update:
    """A plain gradient step, kept inside a person's mask: z <- z - step_size * gradient."""
    move = step_size * gradient
    if step.mask is not None:
        move = step.mask * move
    return Update(move, None, measures(step, gradient, t))


def measures(step: Step, gradient: Tensor, t: Tensor) -> dict[str, Tensor]:
    """What is worth watching (the value of a distillation loss is not): t, and per element the gradient's and z -
    z_src's rms."""
    return {
        "t": t.float().mean(),
        "grad_norm": gradient.square().mean().sqrt(),
        "distance": (step.z - step.z_src).square().mean().sqrt(),
    }
