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
    noise: Tensor,  # [1, C, h, w]
    steps: int = 25,
    scale: float = 4.0,
) -> Iterator[tuple[Tensor, AttentionMaps | None]]:
    """DDIM, arXiv:2010.02502, with eta 0, from t = 0.98 down; after each step: z0 [1, C, h, w], and the maps.

    e_hat = e_0 + scale (e_y - e_0)        CFG, scale 1 is the conditional prediction
    z0    = (z_t - s e_hat) / a
    z_t'  = a' z0 + s' e_hat
    """
    schedule, z_t = prior.schedule, noise
    text = Text.cat(prompts.empty, prompts.target)
    times = torch.linspace(_START, 0, steps + 1, device=noise.device)
    for k in range(steps):
        t, after = times[k : k + 1], times[k + 1 : k + 2]
        probe = AttentionProbe(prompts.tokens, slice(1, 2)) if prompts.tokens else None
        prediction = prior.predict(torch.cat([z_t, z_t]), t.expand(2), text, probe)
        e_0, e_y = prediction.eps.chunk(2)
        e_hat = cfg(e_0, e_y, scale)
        z0 = schedule.to_sample(e_hat, z_t, t)
        z_t = schedule.add_noise(z0, e_hat, after)
        maps = prediction.maps
        yield z0, maps if isinstance(maps, AttentionMaps) else None


def mean_maps(maps: Sequence[AttentionMaps]) -> AttentionMaps:
    """The average over the steps of one sampling run."""
    refined = [each.refined for each in maps if each.refined is not None]
    cross = torch.stack([each.cross for each in maps]).mean(0)
    return AttentionMaps(cross, torch.stack(refined).mean(0) if refined else None)
