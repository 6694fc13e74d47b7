"""IDS: identity-preserving distillation sampling by a fixed-point iterator (arXiv:2502.19930, CVPR 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdsedit.guidance.base import State, Step, Update, descend, predict, through_network
from sdsedit.prior.base import Prior, cfg
from sdsedit.schedule import Draw


@dataclass(frozen=True)
class IDS:
    """DDS with a noise that the source's own score agrees with; FPR is the inner loop, `inner` times:

        z0_hat  = (z_t_src - s e_hat(z_t_src, y_src)) / a            posterior mean, eq. 5
        z_t_src <- z_t_src - rate grad |z_src - z0_hat|              eq. 6 and 7
        eps*    = (z_t_src - a z_src) / s                            eq. 8
        g       = e_hat(a z + s eps*, y_tgt) - e_hat(z_t_src, y_src) eq. 9

    Each inner step is a forward and a backward pass of batch 2, then comes one forward pass of batch 4. With inner = 0
    it is DDS. The norm is over a whole latent, a picture each. Deviation: `rate` counts per latent element, times
    sqrt(n) for n of them, so that it means the same at every size; the authors' lambda = 1 at 4 x 64 x 64 is 1 / 128.
    """

    steps: int = 200
    step_size: float = 0.0488
    scale: float = 7.5  # CFG
    inner: int = 3
    rate: float = 1 / 128
    t_min: float = 0.05
    t_max: float = 0.95
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        with through_network(step) as own:
            draw = own.draw()
            z_t_src, residual = self.fixed_point(prior, own, draw)
        schedule, prompts = prior.schedule, step.prompts
        a, s = schedule.alpha_sigma(draw.t)
        z_t = schedule.add_noise(step.z, (z_t_src - a * step.z_src) / s, draw.t)
        (e_0, e_tgt, e_0_src, e_src), _ = predict(
            prior,
            draw.t,
            (z_t, prompts.empty),
            (z_t, prompts.target),
            (z_t_src, prompts.empty),
            (z_t_src, prompts.source),
        )
        update = descend(step, cfg(e_0, e_tgt, self.scale) - cfg(e_0_src, e_src, self.scale), self.step_size, draw.t)
        update.stats["residual"] = residual
        return update

    def fixed_point(self, prior: Prior, step: Step, draw: Draw) -> tuple[Tensor, Tensor]:
        """The source's noised latent after the inner loop, [B, C, h, w], and the rms of z_src - z0_hat before its last
        step. Needs autograd."""
        schedule, prompts = prior.schedule, step.prompts
        z_t = schedule.add_noise(step.z_src, draw.eps, draw.t)
        residual = z_t.new_zeros(())
        size = math.sqrt(z_t[0].numel())
        for _ in range(self.inner):
            z_t = z_t.detach().requires_grad_()
            (e_0, e_src), _ = predict(prior, draw.t, (z_t, prompts.empty), (z_t, prompts.source))
            z0 = schedule.to_sample(cfg(e_0, e_src, self.scale), z_t, draw.t)
            distance = (step.z_src - z0).flatten(1).norm(dim=1)
            (gradient,) = torch.autograd.grad(distance.sum(), z_t)
            z_t = z_t - self.rate * size * gradient
            residual = distance.detach().square().mean().sqrt() / size
        return z_t.detach(), residual
