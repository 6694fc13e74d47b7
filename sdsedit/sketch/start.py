"""Where the first strokes go: attention, edges, and a temperature (DiffSketcher, arXiv:2306.14685)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def xdog(
    picture: Tensor,  # [1, 3, H, W] in 0..1
    sigma: float = 0.8,  # pixels, at 224
    k: float = 10.0,
    gamma: float = 0.98,
    epsilon: float = -0.1,
    phi: float = 200.0,
) -> Tensor:  # [1, 1, H, W], 1 on dark lines, 0 elsewhere
    """Winnemoeller 2011, extended difference of Gaussians, cut by Otsu's threshold:

    D = G_sigma I - gamma G_(k sigma) I        line where 1 + tanh(phi min(D - epsilon, 0)) is low
    """
    grey = picture.mean(1, keepdim=True)
    scale = max(picture.shape[-2:]) / 224
    fine, wide = blur(grey, max(sigma * scale, 0.3)), blur(grey, max(sigma * k * scale, 1.0))
    d = fine - gamma * wide
    response = torch.where(d < epsilon, 1 + torch.tanh(phi * (d - epsilon)), 1.0)
    return (response < otsu(response)).float()


def lines(picture: Tensor, reach: int = 12) -> Tensor:  # [1, 3, H, W] in 0..1 -> [1, 1, H, W] in 0..1
    """Dark lines, a faint outline as much as a black eye: a difference of Gaussians (1.2 and 3.5 pixels at 128) where
    it is positive, divided by its maximum within `reach` pixels. The inside of a wide dark area is no line."""
    grey = picture.mean(1, keepdim=True)
    scale = max(picture.shape[-2:]) / 128
    response = (blur(grey, 3.5 * scale) - blur(grey, 1.2 * scale)).clamp(min=0)
    return response / (F.max_pool2d(response, 2 * reach + 1, stride=1, padding=reach) + 0.02)


def otsu(values: Tensor, bins: int = 64) -> float:
    """The threshold that separates the values into two classes of the greatest variance between them (Otsu 1979)."""
    low, high = values.aminmax()
    if high <= low:
        return float(low)
    counts = torch.histc(values.float().cpu(), bins, float(low), float(high))
    centres = torch.linspace(0, 1, bins)
    below = counts.cumsum(0)
    above = counts.sum() - below
    sums = (counts * centres).cumsum(0)
    m0, m1 = sums / below.clamp(min=1), (sums[-1] - sums) / above.clamp(min=1)
    best = (below * above * (m0 - m1).square()).argmax()
    return float(low + (high - low) * (best + 1) / bins)  # the upper end of the lower class's last bin


def blur(image: Tensor, sigma: float) -> Tensor:  # [B, C, H, W], pixels
    """Gaussian, separable, edges repeated."""
    radius = min(math.ceil(3 * sigma), min(image.shape[-2:]) - 1)
    x = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    weights = torch.exp(-x.square() / (2 * sigma * sigma))
    weights = weights / weights.sum()
    channels = image.shape[1]
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    across = F.conv2d(padded, weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(across, weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


def probabilities(
    attention: Tensor,  # [H, W] in 0..1
    edges: Tensor | None,  # [H, W] in 0..1
    share: float = 0.06,
    floor: float = 0.05,  # attention below it gets no stroke
) -> Tensor:  # [H W], sums to 1
    """p ~ exp(A / tau) over A > floor, A attention on edges, tau such that p is spread over `share` of the picture.

    The spread is the perplexity exp(H(p)), as many equally likely pixels; tau is found by bisection, so that a flat map
    and a sharp one give sketches of the same kind. A map without a contrast gives all pixels the same chance.
    """
    a = attention.flatten() if edges is None else (attention * (0.15 + 0.85 * edges)).flatten()
    a = a.double()
    allowed = attention.flatten() > floor
    if not allowed.any() or a.max() <= 0:
        return torch.full_like(a, 1 / a.numel()).float()
    a = (a / a.max()).masked_fill(~allowed, -math.inf)
    wanted = math.log(max(2.0, min(share * a.numel(), 0.9 * float(allowed.sum()))))
    low, high = 1e-3, 10.0
    for _ in range(50):
        tau = math.sqrt(low * high)
        p = (a / tau).softmax(0)
        entropy = -torch.special.xlogy(p, p).sum()
        low, high = (tau, high) if entropy < wanted else (low, tau)
    return (a / math.sqrt(low * high)).softmax(0).float()


def start_points(
    p: Tensor,  # [H W], sums to 1
    width: int,
    count: int,
    generator: torch.Generator,
    apart: float = 1.5,  # pixels: a point makes its surroundings less likely for the next ones
) -> Tensor:  # [count, 2], x and y in pixels
    """Draw points without replacement, and apart: each one taken damps the chance of those near it."""
    height = p.numel() // width
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xy = torch.stack([x, y], dim=-1).flatten(0, 1).float() + 0.5
    left, points = p.cpu().clone(), []
    for _ in range(count):
        if left.sum() <= 1e-12:
            left = p.cpu().clone()
        pick = xy[int(torch.multinomial(left, 1, generator=generator))]
        left = left * (1 - torch.exp(-(xy - pick).square().sum(-1) / (2 * apart * apart)))
        points.append(pick)
    return torch.stack(points)


def directions(picture: Tensor) -> Tensor:  # [1, 3, H, W] -> [H W, 2], unit vectors along the edges
    """The eigenvector of the smoothed structure tensor with the smaller eigenvalue."""
    grey = blur(picture.mean(1, keepdim=True), 1.0)
    gx = F.pad(grey[..., :, 2:] - grey[..., :, :-2], (1, 1, 0, 0))
    gy = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    xx, yy, xy = (blur(each, 1.5).flatten() for each in (gx * gx, gy * gy, gx * gy))
    angle = 0.5 * torch.atan2(2 * xy, xx - yy) + math.pi / 2  # across the gradient
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def first_strokes(
    points: Tensor,  # [N, 2] pixels, the middles
    along: Tensor,  # [H W, 2] unit vectors
    size: tuple[int, int],  # (H, W)
    length: float,  # pixels
    generator: torch.Generator,
    jitter: float = 0.15,  # of the length
) -> Tensor:  # [N, 4, 2] control points
    """A short cubic through each point, along the edge that is there; DiffSketcher takes three random steps instead."""
    height, width = size
    column = points[:, 0].long().clamp(0, width - 1)
    row = points[:, 1].long().clamp(0, height - 1)
    direction = along.cpu()[row * width + column]
    place = torch.linspace(-0.5, 0.5, 4)[None, :, None] * length
    noise = torch.randn(len(points), 4, 2, generator=generator) * jitter * length
    return points[:, None] + direction[:, None] * place + noise
