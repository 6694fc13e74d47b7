"""SDS: score distillation sampling (DreamFusion, arXiv:2209.14988)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdsedit.guidance.base import State, Step, Update, descend, predict
from sdsedit.prior.base import Prior, cfg


@dataclass(frozen=True)
class SDS:
    """g = w (e_hat(z_t, y) - eps),  w = s^2,  equation 3 of the paper; forward batch 2.

    It pulls towards the prompt's mean and knows no source: an edit drifts and smooths. Deviation: the paper optimises
    with Adam; here it is plain gradient descent, z <- z - step_size g, with a step size for g at CFG 100 (rms of one
    step about 0.02 to 0.05).
    """

    steps: int = 300
    step_size: float = 0.01
    scale: float = 100.0  # CFG
    t_min: float = 0.02
    t_max: float = 0.98
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        draw = step.draw()
        _, sigma = prior.schedule.alpha_sigma(draw.t)
        z_t = prior.schedule.add_noise(step.z, draw.eps, draw.t)
        (e_0, e_y), _ = predict(prior, draw.t, (z_t, step.prompts.empty), (z_t, step.prompts.target))
        gradient = sigma**2 * (cfg(e_0, e_y, self.scale) - draw.eps)
        return descend(step, gradient, self.step_size, draw.t)
