"""Redraw the edit's place from partial noise, with the rest of the picture held: what distillation moved becomes sharp.

Score distillation averages over noise, so its edits are soft and, where they overshoot, too strong. A few steps of
ordinary sampling from a half-noised latent bring them back to what the model would draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sdsedit.guidance.base import Prompts, predict
from sdsedit.prior.base import Prior, cfg
from sdsedit.schedule import Draw


@dataclass(frozen=True)
class Refine:
    """SDEdit, arXiv:2108.01073, kept inside a mask as in Blended Latent Diffusion, arXiv:2206.02779:

        z_t  = a z + s eps                                at t = start
        z0   = (z_t - s e_hat(z_t, y_tgt)) / a            CFG: e_hat = e_0 + scale (e_y - e_0)
        z_t' = M (a' z0 + s' e_hat) + (1 - M) (a' z_src + s' eps)    DDIM step to t' < t, the outside from the source

    Deviation: one eps for all of the outside, so that it is the source's own noising at every t.

    A background, with nothing in it to keep, may start from `wide_start`, near pure noise: noise drowns the mean of a
    wide place last, so that from an ordinary start a day stays a day. The caller says which places are wide.
    """

    start: float = 0.5  # t in 0..1; 0: no redrawing
    wide_start: float | None = None  # t for a background; None: as any other place
    steps: int = 12
    scale: float = 4.0

    def __call__(
        self,
        prior: Prior,
        z: Tensor,  # [1, C, h, w] fp32, the edited latent
        z_src: Tensor,  # [1, C, h, w]
        mask: Tensor,  # [1, 1, h, w] in 0..1, where to redraw
        prompts: Prompts,
        draw: Callable[[], Draw],  # only its eps is used
    ) -> Iterator[tuple[Tensor, Tensor]]:  # after each step: t [1], and the picture it is heading for [1, C, h, w]
        schedule, eps = prior.schedule, draw().eps
        times = torch.linspace(self.start, 0, self.steps + 1, device=z.device)
        z_t = schedule.add_noise(z, eps, times[:1])
        z_t = torch.lerp(schedule.add_noise(z_src, eps, times[:1]), z_t, mask)
        for k in range(self.steps):
            t, after = times[k : k + 1], times[k + 1 : k + 2]
            (e_0, e_y), _ = predict(prior, t, (z_t, prompts.empty), (z_t, prompts.target))
            e_hat = cfg(e_0, e_y, self.scale)
            z0 = schedule.to_sample(e_hat, z_t, t)
            z_t = torch.lerp(schedule.add_noise(z_src, eps, after), schedule.add_noise(z0, e_hat, after), mask)
            yield t, torch.lerp(z_src, z0, mask)
