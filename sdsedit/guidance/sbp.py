"""SBP: score distillation as a bridge between image distributions (McAllister et al., arXiv:2406.09417)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdsedit.guidance.base import State, Step, Update, descend, predict
from sdsedit.prior.base import Prior, Text, cfg


@dataclass(frozen=True)
class SBP:
    """Two stages, each of forward batch 2, with y+ and y- the target prompt followed by words for a good and for a bad
    picture:

        1.  g = w (e_hat(z_t, y) - eps)                 SDS, for the first `first_stage` of the steps
        2.  g = w s (e(z_t, y+) - e(z_t, y-))           the bridge from what stage 1 gives to the target,  w = s^2

    A person's negative prompt takes the place of `bad`. Deviation: plain gradient descent instead of Adam, a step size
    for each stage.
    """

    steps: int = 300
    first_stage: float = 0.5  # share of the steps, 0..1
    first_step_size: float = 0.02
    step_size: float = 0.5
    scale: float = 40.0  # CFG of stage 1
    good: str = "detailed high resolution, high quality, sharp"
    bad: str = "oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"
    t_min: float = 0.02
    t_max: float = 0.98
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        draw, prompts = step.draw(), step.prompts
        _, sigma = prior.schedule.alpha_sigma(draw.t)
        z_t = prior.schedule.add_noise(step.z, draw.eps, draw.t)
        if step.index < self.first_stage * step.total:
            (e_0, e_y), _ = predict(prior, draw.t, (z_t, prompts.empty), (z_t, prompts.target))
            gradient = sigma**2 * (cfg(e_0, e_y, self.scale) - draw.eps)
            return descend(step, gradient, self.first_step_size, draw.t)
        good = _described(prior, prompts.target, self.good)
        bad = _described(prior, prompts.target, ", ".join(filter(None, prompts.negative.prompts)) or self.bad)
        (e_good, e_bad), _ = predict(prior, draw.t, (z_t, good), (z_t, bad))
        return descend(step, sigma**3 * (e_good - e_bad), self.step_size, draw.t)


def _described(prior: Prior, text: Text, words: str) -> Text:
    return prior.encode_text([f"{prompt}, {words}" for prompt in text.prompts])
