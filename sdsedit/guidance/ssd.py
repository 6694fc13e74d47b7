"""SSD: stable score distillation (arXiv:2507.09168, ICCV 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdsedit.guidance.base import State, Step, Update, descend, predict
from sdsedit.prior.base import Prior


@dataclass(frozen=True)
class SSD:
    """One classifier anchored to the source prompt, a null-text branch that holds the source, and a stronger pull to
    the target:

        g = keep     (e(z_t, y_src) - e(z_t_src, y_0))      stay on the source's trajectory
          + edit     (e(z_t, y_tgt) - e(z_t, y_src))        from the source prompt to the target prompt
          + enhance  (e(z_t, y_tgt) - e(z_t, y_0))          more of the target prompt
          + pull exp(t) (z_t - z_t_src)                     not too far

    One forward of batch 4; the same t and eps in both latents. The weights are the authors' (their code writes them as
    2 x 0.5, 7.5 x 0.5, 5.5, 0.075). Deviation: a step size per latent element, DDS's.
    """

    steps: int = 200
    step_size: float = 0.0488
    keep: float = 1.0
    edit: float = 3.75
    enhance: float = 5.5
    pull: float = 0.075
    t_min: float = 0.02
    t_max: float = 0.98
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        draw, prompts = step.draw(), step.prompts
        z_t = prior.schedule.add_noise(step.z, draw.eps, draw.t)
        z_t_src = prior.schedule.add_noise(step.z_src, draw.eps, draw.t)
        (e_tgt, e_src, e_0, e_0_src), _ = predict(
            prior, draw.t, (z_t, prompts.target), (z_t, prompts.source), (z_t, prompts.empty), (z_t_src, prompts.empty)
        )
        growth = draw.t.exp()[:, None, None, None]
        gradient = (
            self.keep * (e_src - e_0_src)
            + self.edit * (e_tgt - e_src)
            + self.enhance * (e_tgt - e_0)
            + self.pull * growth * (z_t - z_t_src)
        )
        return descend(step, gradient, self.step_size, draw.t)
