"""NFSD: noise-free score distillation (arXiv:2310.17590)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sdsedit.guidance.base import State, Step, Update, descend, predict
from sdsedit.prior.base import Prior


@dataclass(frozen=True)
class NFSD:
    """g = w [scale (e_y - e_0) + d],  d = e_0 for t < 0.2, else e_0 - e_neg,  w = s^2; forward batch 3.

    SDS without the part of its gradient that is only the drawn noise. A person's negative prompt takes the place of
    `negative`, which is the authors' own. Deviation: plain gradient descent instead of Adam.
    """

    steps: int = 300
    step_size: float = 0.1
    scale: float = 7.5
    negative: str = (
        "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
    )
    t_min: float = 0.02
    t_max: float = 0.98
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        draw, prompts = step.draw(), step.prompts
        negative = prompts.negative if any(prompts.negative.prompts) else prior.encode_text([self.negative])
        _, sigma = prior.schedule.alpha_sigma(draw.t)
        z_t = prior.schedule.add_noise(step.z, draw.eps, draw.t)
        (e_y, e_0, e_neg), _ = predict(prior, draw.t, (z_t, prompts.target), (z_t, prompts.empty), (z_t, negative))
        late = (draw.t < 0.2)[:, None, None, None]
        domain = torch.where(late, e_0, e_0 - e_neg)
        gradient = sigma**2 * (self.scale * (e_y - e_0) + domain)
        return descend(step, gradient, self.step_size, draw.t)
