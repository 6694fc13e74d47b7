"""FlowEdit: editing with a flow between two distributions, without inversion (arXiv:2412.08629, ICCV 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdsedit.errors import InputRefused
from sdsedit.guidance.base import State, Step, Update, descend, predict
from sdsedit.prior.base import Prior, Text, cfg


@dataclass(frozen=True)
class FlowEdit:
    """One walk down the model's own schedule, t_0 > t_1 > ... > 0, forward batch 4, with a fresh eps at each step:

        z_src_t = a z_src + s eps
        z_tar_t = z_src_t + (a + s) (z - z_src)
        z      <- z - (sigma_i - sigma_(i+1)) (v_hat(z_tar_t, y_tgt) - v_hat(z_src_t, y_src)),  sigma = s / (a + s)

    v = eps - z_0 is a flow model's velocity (a + s = 1). A variance-preserving model has one too, on z_t / (a + s) at
    the time s / (a + s), so this one rule serves both kinds. With v written in eps the two noised latents cancel:

        v_tar - v_src = (e_hat_tar - e_hat_src - (z - z_src)) / (1 - sigma)

    `t_max` is where the walk begins on the model's schedule of steps / t_max steps (the paper's n_max / T); the lower,
    the more of the source stays. The defaults are the authors' for Stable Diffusion 3: 33 of 50 steps, CFG 3.5 and 13.5
    (FLUX.1 dev: 24 of 28, 1.5 and 5.5 of its distilled guidance, which needs no second branch: forward batch 2). They
    draw one eps a step, as here.
    """

    steps: int = 33
    step_size: float = 1.0  # of the whole step: 1 is the paper's
    source_scale: float = 3.5  # CFG of the source branch
    scale: float = 13.5  # CFG of the target branch
    t_max: float = 0.66
    t_min: ClassVar[float] = 0.0
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        schedule, prompts, rows = prior.schedule, step.prompts, step.z.shape[0]
        now, after = self.times(prior, step)[step.index : step.index + 2]
        a, s = schedule.alpha_sigma(now[None])
        sigma, (a_after, s_after) = s / (a + s), schedule.alpha_sigma(after[None])
        t = now.expand(rows)

        z_t_src = schedule.add_noise(step.z_src, step.draw().eps, t)
        moved = step.z - step.z_src
        z_t = z_t_src + (a + s) * moved
        source, target = (z_t_src, prompts.source, self.source_scale), (z_t, prompts.target, self.scale)
        e_src, e_tgt = _guided(prior, t, source, target, prompts.empty)
        share = (sigma - s_after / (a_after + s_after)) / (1 - sigma)
        return descend(step, share * (e_tgt - e_src - moved), self.step_size, t)

    def times(self, prior: Prior, step: Step) -> Tensor:
        """[total + 1], falling to 0, the last ones of the model's own schedule. InputRefused: it begins in pure noise,
        where no velocity can be told."""
        if not self.t_max < 1:
            raise InputRefused(f"t_max of flowedit is {self.t_max}; it must be below 1.")
        schedule = prior.schedule
        if schedule.prediction == "flow":
            whole = max(round(step.total / self.t_max), step.total + 1)  # at the first of all there is only noise
            tokens = step.z.shape[-2] * step.z.shape[-1] // 4
            times = schedule.descending(whole, tokens)[-(step.total + 1) :]
        else:
            times = torch.linspace(self.t_max, self.t_min, step.total + 1)
        return times.to(step.z.device)


def _guided(
    prior: Prior,
    t: Tensor,  # [B]
    source: tuple[Tensor, Text, float],  # z_t, prompt, guidance
    target: tuple[Tensor, Text, float],
    empty: Text,
) -> tuple[Tensor, Tensor]:  # e_hat of both
    """Both branches in one forward pass, with CFG or, where the model was distilled to it, its own guidance."""
    (z_src, y_src, scale_src), (z_tgt, y_tgt, scale_tgt) = source, target
    if y_src.guidance is not None:
        (e_src, e_tgt), _ = predict(prior, t, (z_src, y_src.guided(scale_src)), (z_tgt, y_tgt.guided(scale_tgt)))
        return e_src, e_tgt
    (e_0_src, e_src, e_0, e_tgt), _ = predict(prior, t, (z_src, empty), (z_src, y_src), (z_tgt, empty), (z_tgt, y_tgt))
    return cfg(e_0_src, e_src, scale_src), cfg(e_0, e_tgt, scale_tgt)
