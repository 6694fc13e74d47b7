"""Noise schedules: time to (alpha, sigma), noising, and every kind of network output turned into the predicted noise.

Two families, one equation:   z_t = alpha_t z_0 + sigma_t eps

    variance preserving   alpha = sqrt(abar), sigma = sqrt(1 - abar), abar = alphas_cumprod    arXiv:2006.11239, eq. 4
    flow matching         alpha = 1 - t, sigma = t                                             arXiv:2209.03003

The network's output becomes eps in fp32, whatever it predicts:

    epsilon        eps = output
    v_prediction   v = alpha eps - sigma z_0, so eps = alpha v + sigma z_t                 arXiv:2202.00512, appendix D
    sample         eps = (z_t - alpha output) / sigma
    flow           v = eps - z_0, so eps = z_t + (1 - sigma) v

Time t is in 0..1 everywhere above the network: 0 is the picture, 1 is noise. A flow model's time is its sigma.

A flow model's own sampler does not walk down evenly: a larger picture hides its noise better, so that more of the steps
are spent near t = 1 (Stable Diffusion 3, arXiv:2403.03206, eq. 23),

    t' = shift t / (1 + (shift - 1) t)

with a shift of the model, or one that grows with the number of the network's picture tokens (FLUX.1). Distillation
draws its times uniformly and never asks for it; descending walks (sampling, FlowEdit) do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True)
class Draw:
    """One random draw: a time and a noise for each row of a batch."""

    t: Tensor  # [B] fp32 in 0..1
    eps: Tensor  # [B, C, h, w] fp32, standard normal


@dataclass(frozen=True)
class TokenShift:
    """FLUX.1's shift: mu runs linearly from `low` at `low_tokens` picture tokens to `high` at `high_tokens`, and on
    beyond both; the shift is e^mu, or mu itself where `exponential` is off."""

    low_tokens: int
    high_tokens: int
    low: float
    high: float
    exponential: bool = True

    def __call__(self, tokens: int) -> float:
        slope = (self.high - self.low) / (self.high_tokens - self.low_tokens)
        mu = self.low + slope * (tokens - self.low_tokens)
        return math.exp(mu) if self.exponential else mu


@dataclass(frozen=True)
class Schedule:
    """How a model was noised in training and what it predicts."""

    prediction: Prediction
    alphas_cumprod: Tensor | None  # [T] fp32, falling from 1; None for flow models
    num_train_timesteps: int  # T
    shift: float | TokenShift = 1.0  # flow only, of its own sampler; draws stay uniform

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            known = ", ".join(get_args(Prediction))
            raise ValueError(f"A model that predicts {self.prediction!r} is not supported; known are {known}.")
        if (self.prediction == "flow") != (self.alphas_cumprod is None):
            raise ValueError("alphas_cumprod must be None for a flow model, and given for any other.")
        if self.alphas_cumprod is not None and self.alphas_cumprod.shape != (self.num_train_timesteps,):
            shape = tuple(self.alphas_cumprod.shape)
            raise ValueError(f"alphas_cumprod must have {self.num_train_timesteps} values; got shape {shape}.")

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> Schedule:
        """The schedule of a diffusers scheduler: FlowMatch* and flow solvers are flow, others variance preserving.

        ValueError: the scheduler has neither (EDM and variance-exploding models).
        """
        config, name = scheduler.config, type(scheduler).__name__
        steps = int(config.get("num_train_timesteps", 1000))
        prediction = config.get("prediction_type", "epsilon")
        if name.startswith("FlowMatch") or prediction == "flow_prediction" or config.get("use_flow_sigmas"):
            return cls("flow", None, steps, _shift(config))
        if not torch.is_tensor(getattr(scheduler, "alphas_cumprod", None)):
            raise ValueError(f"{name} is neither variance preserving nor flow matching, so its model cannot be used.")
        return cls(cast(Prediction, prediction), scheduler.alphas_cumprod.detach().float().cpu(), steps)

    def to(self, device: torch.device | str) -> Schedule:
        """The same schedule with its table on `device`."""
        return self if self.alphas_cumprod is None else replace(self, alphas_cumprod=self.alphas_cumprod.to(device))

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:  # t [B] in 0..1 -> two of [B, 1, 1, 1] fp32
        """The weights of picture and noise at time t; a table is read at round(t T), at most T - 1."""
        if self.alphas_cumprod is None:
            sigma = t.float()
            alpha = 1 - sigma
        else:
            abar = self.alphas_cumprod.to(t.device)[self.timestep(t)]
            alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        return alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)

    def timestep(self, t: Tensor) -> Tensor:  # [B] in 0..1 -> [B]
        """What the network is fed as its time: an index 0..T-1 (int64), or t T (fp32) for flow models."""
        scaled = t.float() * self.num_train_timesteps
        if self.alphas_cumprod is None:
            return scaled
        return scaled.round().long().clamp(0, self.num_train_timesteps - 1)

    def warp(self, t: Tensor, tokens: int | None = None) -> Tensor:  # any shape in 0..1 -> the same, fp32
        """t' = shift t / (1 + (shift - 1) t): where the model's own sampler is when an even walk is at t.

        tokens: how many tokens the network makes of the picture; ValueError if its shift depends on them and they are
        not told.
        """
        shift = self.shift
        if isinstance(shift, TokenShift):
            if tokens is None:
                raise ValueError("This model's shift depends on the picture's size; tell its number of tokens.")
            shift = shift(tokens)
        t = t.float()
        return shift * t / (1 + (shift - 1) * t)

    def descending(self, steps: int, tokens: int | None = None) -> Tensor:  # [steps + 1] fp32, from 1 to 0
        """The times at which diffusers' own pipelines ask a flow model: even from 1 to 1 / steps (FLUX.1, whose shift
        depends on the size) or to the last of training (the others), warped, and then 0. ValueError: no flow model."""
        if self.prediction != "flow":
            raise ValueError("Only flow models have a descending walk of their own.")
        if isinstance(self.shift, TokenShift):
            last = torch.tensor(1 / steps)
        else:
            last = self.warp(torch.tensor(1 / self.num_train_timesteps))  # so this one is warped twice, as theirs is
        even = torch.linspace(1, float(last), steps)
        return torch.cat([self.warp(even, tokens), torch.zeros(1)])

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:  # [B, C, h, w] x 2, [B] -> [B, C, h, w] fp32
        """z_t = alpha z + sigma eps."""
        alpha, sigma = self.alpha_sigma(t)
        return alpha * z.float() + sigma * eps.float()

    def to_eps(self, output: Tensor, z_t: Tensor, t: Tensor) -> Tensor:  # [B, C, h, w] x 2, [B] -> [B, C, h, w] fp32
        """The noise that a network's raw output means; see the table above."""
        output = output.float()
        if self.prediction == "epsilon":
            return output
        alpha, sigma = self.alpha_sigma(t)
        if self.prediction == "v_prediction":
            return alpha * output + sigma * z_t.float()
        if self.prediction == "sample":
            return (z_t.float() - alpha * output) / sigma
        return z_t.float() + (1 - sigma) * output

    def to_sample(self, eps: Tensor, z_t: Tensor, t: Tensor) -> Tensor:  # [B, C, h, w] x 2, [B] -> [B, C, h, w] fp32
        """z_0 = (z_t - sigma eps) / alpha; not finite where alpha is 0 (a schedule that ends in pure noise)."""
        alpha, sigma = self.alpha_sigma(t)
        return (z_t.float() - sigma * eps.float()) / alpha

    def draw(self, z: Tensor, generator: torch.Generator, t_min: float = 0.05, t_max: float = 0.95) -> Draw:
        """A time, uniform on [t_min, t_max], and a noise for each row of z [B, C, h, w].

        Drawn on the CPU, the times first, then moved to z's device: one seed is one edit on every device.
        ValueError: a generator of another device, or a range outside 0 <= t_min <= t_max <= 1.
        """
        if generator.device.type != "cpu":
            raise ValueError(
                f"Draws need a CPU generator, so that a seed is the same everywhere; got {generator.device}."
            )
        if not 0 <= t_min <= t_max <= 1:
            raise ValueError(f"The time range must satisfy 0 <= t_min <= t_max <= 1; got {t_min} to {t_max}.")
        t = torch.rand(z.shape[0], generator=generator, dtype=torch.float32) * (t_max - t_min) + t_min
        eps = torch.randn(z.shape, generator=generator, dtype=torch.float32)
        return Draw(t.to(z.device), eps.to(z.device))


def _shift(config: Any) -> float | TokenShift:
    """The shift in the config of a flow scheduler."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or config.get("flow_shift") or 1.0)
    return TokenShift(
        int(config["base_image_seq_len"]),
        int(config["max_image_seq_len"]),
        float(config["base_shift"]),
        float(config["max_shift"]),
        config.get("time_shift_type", "exponential") == "exponential",
    )
