"""A picture from words: plain sampling, for the guide that a sketch is started from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sdsedit.attention.probe import AttentionMaps, AttentionProbe
from sdsedit.guidance.base import Prompts
from sdsedit.prior.base import Prior, Text, cfg

# Pure noise, but for models whose alpha is 0 at t = 1, where z0 cannot be told from a predicted noise.
_START = 0.98


def sample(
    prior: Prior,
    prompts: Prompts,  # target, empty; the attention of `tokens` is recorded on the target branch
    noise: Tensor,  # [B, C, h, w], a picture each
    steps: int = 25,
    scale: float = 4.0,
) -> Iterator[tuple[Tensor, AttentionMaps | None]]:
    """DDIM, arXiv:2010.02502, with eta 0, from t = 0.98 down; after each step: z0 [B, C, h, w], and the maps.

    e_hat = e_0 + scale (e_y - e_0)        CFG, scale 1 is the conditional prediction
    z0    = (z_t - s e_hat) / a
    z_t'  = a' z0 + s' e_hat
    """
    schedule, z_t = prior.schedule, noise
    rows = len(noise)
    text = Text.cat(prompts.empty.repeat(rows), prompts.target.repeat(rows))
    times = torch.linspace(_START, 0, steps + 1, device=noise.device)
    for k in range(steps):
        t, after = times[k : k + 1], times[k + 1 : k + 2]
        probe = AttentionProbe(prompts.tokens, slice(rows, 2 * rows)) if prompts.tokens else None
        prediction = prior.predict(torch.cat([z_t, z_t]), t.expand(2 * rows), text, probe)
        e_0, e_y = prediction.eps.chunk(2)
        e_hat = cfg(e_0, e_y, scale)
        z0 = schedule.to_sample(e_hat, z_t, t)
        z_t = schedule.add_noise(z0, e_hat, after)
        maps = prediction.maps
        yield z0, maps if isinstance(maps, AttentionMaps) else None


def likelihood(
    prior: Prior, prompts: Prompts, z: Tensor, noise: Tensor, times: Sequence[float] = (0.3, 0.5, 0.7)
) -> Tensor:
    """How much better the prompt explains each latent z [B, C, h, w] than no prompt does; [B], higher is better.

    The diffusion classifier, arXiv:2303.16203: mean over t of |e(z_t, empty) - eps|^2 - |e(z_t, y) - eps|^2, with one
    eps for all.
    """
    rows, total = len(z), z.new_zeros(len(z))
    text = Text.cat(prompts.empty.repeat(rows), prompts.target.repeat(rows))
    for time in times:
        t = torch.full((1,), time, device=z.device)
        z_t = prior.schedule.add_noise(z, noise.expand_as(z), t)
        error = prior.predict(torch.cat([z_t, z_t]), t.expand(2 * rows), text).eps - noise
        e_0, e_y = error.square().mean((1, 2, 3)).chunk(2)
        total = total + (e_0 - e_y)
    return total / len(times)


def mean_maps(maps: Sequence[AttentionMaps]) -> AttentionMaps:
    """The average over the steps of one sampling run."""
    refined = [each.refined for each in maps if each.refined is not None]
    cross = torch.stack([each.cross for each in maps]).mean(0)
    return AttentionMaps(cross, torch.stack(refined).mean(0) if refined else None)
