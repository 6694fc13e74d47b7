"""PDS: posterior distillation sampling (arXiv:2311.13831)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdsedit.guidance.base import State, Step, Update, descend, predict
from sdsedit.prior.base import Prior, cfg


@dataclass(frozen=True)
class PDS:
    """g = n_tgt - n_src,  n = (z_p - mu(z_t, e_hat(z_t, y))) / sigma_t; forward batch 4.

    n is the noise that would take z_t to z_p, the same latent noised to the earlier time p, through the DDPM posterior;
    eps_t and eps_p are shared by the two branches. With u the training step before t, a_tu = a_t / a_u and v = s_t^2 -
    a_tu^2 s_u^2 (beta_t for DDPM):

        mu = a_p v / s_t^2 z0_hat + a_tu s_p^2 / s_t^2 z_t
        z0_hat = (z_t - s_t e_hat) / a_t
        sigma_t^2 = v s_p^2 / s_t^2

    `stride` is t - p in training steps. For stride 1 (u = p) the terms in z - z_src cancel and g is DDS times v a_p /
    (a_t s_t sigma_t). The authors run 500 inference steps of 1000 with beta_t of one training step, stride 2: what does
    not cancel is the pull towards the source that keeps its identity. Written with a and s, it holds for flow models
    too. Deviation: a step size per latent element.
    """

    steps: int = 200
    step_size: float = 0.03
    scale: float = 100.0  # CFG
    stride: int = 2  # training steps, 1 or more
    t_min: float = 0.02
    t_max: float = 0.98
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        schedule, prompts = prior.schedule, step.prompts
        draw, eps_p = step.draw(), step.draw().eps
        count = schedule.num_train_timesteps
        t = (draw.t * count).round().clamp(min=self.stride + 1) / count  # whole training steps, so that p and u are too
        p, u = t - self.stride / count, t - 1 / count
        (a_t, s_t), (a_p, s_p), (a_u, s_u) = (schedule.alpha_sigma(time) for time in (t, p, u))
        variance = s_t**2 - (a_t / a_u) ** 2 * s_u**2
        sigma = s_p / s_t * variance.sqrt()

        z_t, z_t_src = (schedule.add_noise(z, draw.eps, t) for z in (step.z, step.z_src))
        (e_0, e_tgt, e_0_src, e_src), _ = predict(
            prior, t, (z_t, prompts.empty), (z_t, prompts.target), (z_t_src, prompts.empty), (z_t_src, prompts.source)
        )
        e_hat, e_hat_src = cfg(e_0, e_tgt, self.scale), cfg(e_0_src, e_src, self.scale)

        def noise(z: Tensor, z_t: Tensor, eps: Tensor) -> Tensor:
            z0 = schedule.to_sample(eps, z_t, t)
            mean = a_p * variance / s_t**2 * z0 + a_t / a_u * s_p**2 / s_t**2 * z_t
            return (schedule.add_noise(z, eps_p, p) - mean) / sigma

        gradient = noise(step.z, z_t, e_hat) - noise(step.z_src, z_t_src, e_hat_src)
        return descend(step, gradient, self.step_size, t)
