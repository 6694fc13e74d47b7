"""CSD: classifier score distillation (arXiv:2310.19415)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdsedit.guidance.base import State, Step, Update, descend, predict
from sdsedit.prior.base import Prior


@dataclass(frozen=True)
class CSD:
    """g = w (e_y - e_0),  w = s^2; forward batch 2. It climbs the implicit classifier p(y | z_t) ~ p(z_t | y) / p(z_t).

    With a negative prompt, batch 3: g = w (weight e_y + (negative_weight - weight) e_0 - negative_weight e_neg). For an
    edit the authors take the words to be replaced as the negative. Deviation: plain gradient descent instead of Adam,
    constant weights.
    """

    steps: int = 300
    step_size: float = 1.0
    weight: float = 1.0
    negative_weight: float = 0.5
    t_min: float = 0.02
    t_max: float = 0.98
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        draw, prompts = step.draw(), step.prompts
        _, sigma = prior.schedule.alpha_sigma(draw.t)
        z_t = prior.schedule.add_noise(step.z, draw.eps, draw.t)
        if any(prompts.negative.prompts):
            branches = (z_t, prompts.target), (z_t, prompts.empty), (z_t, prompts.negative)
            (e_y, e_0, e_neg), _ = predict(prior, draw.t, *branches)
            direction = self.weight * (e_y - e_0) + self.negative_weight * (e_0 - e_neg)
        else:
            (e_y, e_0), _ = predict(prior, draw.t, (z_t, prompts.target), (z_t, prompts.empty))
            direction = self.weight * (e_y - e_0)
        return descend(step, sigma**2 * direction, self.step_size, draw.t)
