"""A prior in closed form: p(z | prompt) is a Gaussian, so predicted noise and every method's fixed point are known."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.attention.probe import AttentionMaps, AttentionProbe, SeveralProbes
from sdsedit.guidance.base import Prompts, Step, Update
from sdsedit.prior.base import Prediction, Probe, Text, Tokens
from sdsedit.schedule import Draw, Schedule

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2  # Stable Diffusion's
VP = Schedule("epsilon", (1 - BETAS).cumprod(0).float(), 1000)
FLOW = Schedule("flow", None, 1000)


class GaussianPrior:
    """p(z | prompt) = N(mean, variance), so that eps = s (z_t - a mean) / (a^2 variance + s^2) for every z_t.

    means, variances: by prompt, fields that broadcast to [C, h, w]; a prompt not named has mean 0 and variance 1.
    places: what attention says, [h, w], one for each recorded prediction in turn, the last one from then on.
    Pictures are three latent channels, z = 2 mean_2x2(x) - 1: a real, blurring autoencoder.
    """

    name = "gaussian"
    device, dtype = torch.device("cpu"), torch.float32
    editing: ClassVar[dict[str, dict[str, Any]]] = {}
    channels, factor, multiple, native, max_tokens = 3, 2, 4, 16, 12

    def __init__(
        self,
        means: dict[str, Tensor | float],
        variances: dict[str, float] | None = None,
        schedule: Schedule = VP,
        places: Sequence[Tensor] = (),
    ) -> None:
        self.means, self.variances, self.schedule, self.places = means, variances or {}, schedule, list(places)
        self.batches: list[int] = []  # rows of each forward pass
        self.recorded: list[tuple[tuple[int, ...], slice]] = []  # tokens and rows of each probe
        self.poisoned_at: int | None = None  # the forward pass, from 0, that returns NaN

    def tokenize(self, prompt: str) -> Tokens:
        words = list(re.finditer(r"\w+", prompt))
        room = self.max_tokens - 2
        kept = [match.span() for match in words[:room]]
        cut = prompt[words[room].start() :] if len(words) > room else ""
        padding = ((0, 0),) * (room - len(kept) + 1)
        return Tokens(tuple(range(self.max_tokens)), ((0, 0), *kept, *padding), cut)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        return Text(tuple(prompts), torch.zeros(len(prompts), self.max_tokens, 1), None)

    def encode(self, image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 2) * 2 - 1

    def decode(self, z: Tensor) -> Tensor:
        return F.interpolate(z / 2 + 0.5, scale_factor=2.0, mode="bilinear").clamp(0, 1)

    def predict(self, z_t: Tensor, t: Tensor, text: Text, probe: Probe | None = None) -> Prediction:
        index = len(self.batches)
        self.batches.append(z_t.shape[0])
        assert len(text) == z_t.shape[0] == t.shape[0]
        alpha, sigma = self.schedule.alpha_sigma(t)
        mean = torch.stack(
            [torch.as_tensor(self.means.get(p, 0.0)).float().expand(z_t.shape[1:]) for p in text.prompts]
        )
        variance = torch.tensor([self.variances.get(p, 1.0) for p in text.prompts]).reshape(-1, 1, 1, 1)
        eps = sigma * (z_t - alpha * mean) / (alpha**2 * variance + sigma**2)
        if index == self.poisoned_at:
            eps = eps * torch.nan
        if isinstance(probe, SeveralProbes):
            return Prediction(eps, tuple(self._maps(each, z_t) for each in probe.probes))
        return Prediction(eps, None if probe is None else self._maps(cast(AttentionProbe, probe), z_t))

    def _maps(self, probe: AttentionProbe, z_t: Tensor) -> AttentionMaps:
        place = self.places[min(len(self.recorded), len(self.places) - 1)]
        self.recorded.append((probe.tokens, probe.rows))
        rows = len(range(z_t.shape[0])[probe.rows])
        return AttentionMaps(place.expand(rows, len(probe.tokens), -1, -1), None)


def prompts(prior: Any, target: str = "target", source: str = "source", negative: str = "", **words: Any) -> Prompts:
    text = prior.encode_text([target, source, "", negative])
    return Prompts(text[0], text[1], text[2], text[3], **words)


def draws(prior: Any, z: Tensor, method: Any, seed: int = 0) -> Callable[[], Draw]:
    return partial(prior.schedule.draw, z, torch.Generator().manual_seed(seed), method.t_min, method.t_max)


def descend(prior: Any, method: Any, z_src: Tensor, steps: int, encoded: Prompts | None = None) -> list[Tensor]:
    """The latents after each step of a run."""
    z, state, path = z_src, None, []
    encoded, draw = encoded or prompts(prior), draws(prior, z_src, method)
    for index in range(steps):
        update: Update = method(prior, Step(index, steps, z, z_src, encoded, draw), state)
        z, state = z - update.step, update.state
        path.append(z)
    return path
