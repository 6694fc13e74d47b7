"""DDS: delta denoising score (arXiv:2304.07090)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdsedit.guidance.base import State, Step, Update, descend, predict
from sdsedit.prior.base import Prior, cfg


@dataclass(frozen=True)
class DDS:
    """g = e_hat(z_t, y_tgt) - e_hat(z_t_src, y_src), the same t and eps in both; forward batch 4.

    The source branch removes what SDS would do to the picture without any edit: equal prompts at equal latents give
    exactly the difference of two equal predictions. z <- z - 0.0488 g per element is the authors' step at 64 x 64, here
    at every size.
    """

    steps: int = 200
    step_size: float = 0.0488
    scale: float = 7.5  # CFG
    t_min: float = 0.05
    t_max: float = 0.95
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        draw, prompts = step.draw(), step.prompts
        z_t = prior.schedule.add_noise(step.z, draw.eps, draw.t)
        z_t_src = prior.schedule.add_noise(step.z_src, draw.eps, draw.t)
        (e_0, e_tgt, e_0_src, e_src), _ = predict(
            prior,
            draw.t,
            (z_t, prompts.empty),
            (z_t, prompts.target),
            (z_t_src, prompts.empty),
            (z_t_src, prompts.source),
        )
        gradient = cfg(e_0, e_tgt, self.scale) - cfg(e_0_src, e_src, self.scale)
        return descend(step, gradient, self.step_size, draw.t)
