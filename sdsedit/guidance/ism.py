"""ISM: interval score matching (LucidDreamer, arXiv:2311.11284)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdsedit.guidance.base import State, Step, Update, descend, predict
from sdsedit.prior.base import Prior, Text, cfg
from sdsedit.schedule import Draw


@dataclass(frozen=True)
class ISM:
    """z is carried up the prior's own path instead of being noised at random, and two neighbours on it are compared:

        x_s: DDIM inversion of z from t = 0 in `inversion` even steps, under y_src
        x_t: one more such step, of length t - s = `interval`
        g   = s_t / a_t (e_hat(x_t, y_tgt) - e(x_s, y_src))          eq. 17
        e_hat = e_src + scale (e_tgt - e_src)                        CFG

    s_t / a_t makes it a difference of two pictures, z0_hat of the inverted path minus z0_hat with the prompt.
    Forward passes: `inversion` + 1 of batch 1, one of batch 2.

    Deviations: the paper, which knows no source, has the empty prompt in y_src's place, as is done here too where no
    source prompt is given; with one, equal prompts leave only what the interval itself adds. Even steps instead of
    strides of 0.2, a constant interval, plain gradient descent instead of Adam.
    """

    steps: int = 200
    step_size: float = 0.02
    scale: float = 7.5  # CFG
    interval: float = 0.05
    inversion: int = 4  # steps from 0 to s, 1 or more
    t_min: float = 0.1
    t_max: float = 0.95
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        draw, prompts, schedule = step.draw(), step.prompts, prior.schedule
        s = (draw.t - self.interval).clamp(min=0)
        x_s = invert(prior, step.z, prompts.source, Draw(s, draw.eps), self.inversion)
        (e_s,), _ = predict(prior, s, (x_s, prompts.source))
        x_t = schedule.add_noise(schedule.to_sample(e_s, x_s, s), e_s, draw.t)
        (e_src, e_tgt), _ = predict(prior, draw.t, (x_t, prompts.source), (x_t, prompts.target))
        alpha, sigma = schedule.alpha_sigma(draw.t)
        gradient = sigma / alpha * (cfg(e_src, e_tgt, self.scale) - e_s)
        return descend(step, gradient, self.step_size, draw.t)


def invert(
    prior: Prior,
    z: Tensor,  # [B, C, h, w]
    text: Text,
    end: Draw,  # the time to reach, and the noise that a model has in its picture at t = 0 already
    steps: int,
) -> Tensor:  # [B, C, h, w] at end.t
    """DDIM inversion, arXiv:2105.05233, appendix F: x_t' = a' z0_hat + s' e(x_t, y), from t = 0 up in even steps."""
    schedule = prior.schedule
    x = schedule.add_noise(z, end.eps, end.t * 0)
    for k in range(steps):
        t, after = end.t * (k / steps), end.t * ((k + 1) / steps)
        (e,), _ = predict(prior, t, (x, text))
        x = schedule.add_noise(schedule.to_sample(e, x, t), e, after)
    return x
