"""LUSD, DDS and SDS as their papers write them, in plain torch over a diffusers UNet, for comparison only.

Nothing of sdsedit is used: the schedule is computed from its betas, every branch is a forward pass of its own, and
attention is read from explicit softmax matrices. Latents are [1, C, h, w]; t is an index 0..999.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ABAR = (1 - BETAS).cumprod(0)


def noised(z, eps, t):
    return (ABAR[t].sqrt() * z.double() + (1 - ABAR[t]).sqrt() * eps.double()).float()


def said(unet, z_t, t, text):
    """eps(z_t, y) of one branch."""
    return unet(z_t, torch.tensor([t]), encoder_hidden_states=text).sample


def guided(unet, z_t, t, text, empty, scale):
    """Classifier-free guidance: e_0 + scale (e_y - e_0)."""
    e_0 = said(unet, z_t, t, empty)
    return e_0 + scale * (said(unet, z_t, t, text) - e_0)


def sds(unet, z, t, eps, target, empty):
    """DreamFusion, equation 3: w (e_hat - eps), w = 1 - abar; CFG 100, step 0.01."""
    e_hat = guided(unet, noised(z, eps, t), t, target, empty, 100)
    return 0.01 * (1 - ABAR[t]).float() * (e_hat - eps)


def dds(unet, z, z_src, t, eps, target, source, empty):
    """Delta denoising score: the difference of two guided predictions, CFG 7.5, step 2000 / 64^2 x 0.1."""
    edited = guided(unet, noised(z, eps, t), t, target, empty, 7.5)
    return 0.0488 * (edited - guided(unet, noised(z_src, eps, t), t, source, empty, 7.5))


def attention(unet, z_t, t, text):
    """(eps, the softmax [heads, N, keys] of every layer but the finest, which LUSD does not read) of one branch."""
    matrices, fused, finest = [], F.scaled_dot_product_attention, z_t.shape[-2] * z_t.shape[-1]

    def explicit(query, key, value, **_):
        weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
        if weights.shape[-2] < finest:
            matrices.append(weights[0])
        return weights @ value

    F.scaled_dot_product_attention = explicit
    try:
        return said(unet, z_t, t, text), matrices
    finally:
        F.scaled_dot_product_attention = fused


def place(matrices, tokens, length, size):
    """LUSD's map: cross-attention at a quarter of the latent, spread by self-attention at half of it."""
    h, w = size
    cross = [m for m in matrices if m.shape[-1] == length and m.shape[-2] == (h // 4) * (w // 4)]
    own = [m for m in matrices if m.shape[-1] == m.shape[-2] == (h // 2) * (w // 2)]
    c = torch.stack([m.mean(0)[:, tokens] for m in cross]).mean(0).mean(-1).reshape(1, 1, h // 4, w // 4)
    c = F.interpolate(c, (h // 2, w // 2), mode="bilinear").flatten()
    refined = (torch.stack([m.mean(0) for m in own]).mean(0) @ c).reshape(1, 1, h // 2, w // 2)
    refined = F.interpolate(refined, size, mode="bilinear")
    return (refined - refined.min()) / (refined.max() - refined.min())


def lusd(unet, z, z_src, draws, target, source, tokens, progress, average):
    """One step of LUSD: (what is subtracted from z, the new moving average, rejected draws).

    draws: (t, eps) in turn; progress: 0 at the first step, 1 at the last; average: the mask so far, or None.
    """
    for rejected, (t, eps) in enumerate(draws):
        z_t = noised(z, eps, t)
        e_target, matrices = attention(unet, z_t, t, target)
        e = e_target - said(unet, z_t, t, source)
        if e.std(correction=0) >= 0.01 * 0.99**rejected:
            break
    current = place(matrices, tokens, target.shape[1], z.shape[-2:])
    average = current if average is None else 0.9 * average + 0.1 * current
    mask = progress * average + (1 - progress)
    d = 0.98 * mask * e + 0.02 * (z - z_src)
    delta = 0.01 + 0.14 * (1 - torch.sigmoid(torch.tensor(10 * progress - 5)))
    spread = max(d.std(correction=0), 0.25 * e.std(correction=0))  # the floor is this project's deviation
    return 0.488 * delta * d / spread, average, rejected
