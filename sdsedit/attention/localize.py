"""From attention maps to a mask: where an edit may happen.

Masks are float32 in 0..1, `[B, 1, h, w]`, 1 = may change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.attention.probe import AttentionMaps

# A map whose contrast is below this share of its level names no place; half-precision rounding is of this order.
_FLAT = 1e-3


def localize(
    maps: AttentionMaps,
    size: tuple[int, int],  # (h, w)
) -> Tensor:  # [1, 1, h, w] fp32 in 0..1
    """LUSD, arXiv:2503.11054: M = minmax(upsample(mean_k r_k)); the unrefined maps if there are no refined ones.

    Recorded rows (several draws of one edit) are averaged too. A flat map has no place to name and gives zeros.
    """
    chosen = maps.cross if maps.refined is None else maps.refined
    mean = chosen.float().mean((0, 1), keepdim=True)
    mean = F.interpolate(mean, size, mode="bilinear", align_corners=False)
    low, high = mean.aminmax()
    return torch.where(high - low <= _FLAT * high, 0.0, (mean - low) / (high - low))  # NaN stays NaN: edit() reports it


def average(
    previous: Tensor | None,  # [1, 1, h, w], the average so far; None at the first step
    mask: Tensor,  # [1, 1, h, w]
    decay: float = 0.9,
) -> Tensor:  # [1, 1, h, w]
    """decay * previous + (1 - decay) * mask, or the first mask. As in LUSD, the average is not stretched again."""
    return mask if previous is None else decay * previous + (1 - decay) * mask


def threshold(
    mask: Tensor,  # [B, 1, h, w] in 0..1
    level: float = 0.5,
) -> Tensor:  # [B, 1, h, w] fp32, 0 or 1
    """1 where the mask reaches `level` (above 0, at most 1), else 0. Raises ValueError for another level."""
    if not 0 < level <= 1:
        raise ValueError(f"A mask's threshold is above 0 and at most 1; got {level}.")
    return (mask >= level).float()


def snap(
    mask: Tensor,  # [1, 1, H, W] in 0..1, at the picture's size
    picture: Tensor,  # [1, 3, H, W] in 0..1
    side: int = 128,  # pixels, the picture's longer side where the statistics are taken
    radius: int = 10,  # of the windows, pixels there
    eps: float = 1e-4,  # variance of colour under which a window is flat
) -> Tensor:  # [1, 1, H, W] in 0..1
    """Draw a mask's soft edge onto the picture's edges: the fast guided filter, arXiv:1505.00996.

    In every window the mask is fitted by a linear function of colour, a = (cov(I) + eps)^-1 cov(I, m) and
    b = mean(m) - a . mean(I), taken on a reduced picture; the result is mean(a) . I + mean(b) at full size. Attention
    knows a shape to a cell of 8 pixels, the picture knows it to one.
    """
    height, width = picture.shape[-2:]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small, m = F.adaptive_avg_pool2d(picture, size), F.adaptive_avg_pool2d(mask, size)
    reach = min(radius, min(size) - 1)

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2 * reach + 1, stride=1, padding=reach, count_include_pad=False)

    outer = (small[:, :, None] * small[:, None]).reshape(1, 9, *size)
    mean_i, mean_m = mean(small), mean(m)
    variance = mean(outer).reshape(1, 3, 3, *size) - mean_i[:, :, None] * mean_i[:, None]
    covariance = mean(small * m) - mean_i * mean_m
    matrix = variance.permute(0, 3, 4, 1, 2) + eps * torch.eye(3, device=mask.device)
    a = torch.linalg.solve(matrix, covariance.permute(0, 2, 3, 1)[..., None])[..., 0].permute(0, 3, 1, 2)
    b = mean_m - (a * mean_i).sum(1, keepdim=True)
    total = torch.zeros_like(mask)
    for k, x in enumerate((*mean(a).split(1, dim=1), mean(b))):  # one at a time: a photo's four would take its memory
        part = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
        total += part * picture[:, k : k + 1] if k < 3 else part
    return total.clamp_(0, 1)


def feather(
    mask: Tensor,  # [B, 1, H, W] in 0..1
    radius: int,  # cells (pixels of a picture-sized mask), 0 or more
) -> Tensor:  # [B, 1, H, W] in 0..1
    """Soften a mask's edge inwards: a linear ramp, `radius` cells long, from the edge to full weight.

    feather(m) <= m everywhere, so a cell outside the mask keeps weight exactly 0, and thin parts fade without
    vanishing. The picture's border is no edge. The ramp is the mean of the mask eroded 0..radius times, by a cross
    and a square in turn so that distance is nearly round (an octagon). Raises ValueError for a negative radius.
    """
    if radius < 0:
        raise ValueError(f"A feather radius is 0 or more; got {radius}.")
    eroded, total = mask, mask
    for step in range(radius):
        across = _erode(eroded, (1, 3))
        eroded = _erode(across, (3, 1)) if step % 2 else torch.minimum(across, _erode(eroded, (3, 1)))
        total = total + eroded
    return torch.minimum(total / (radius + 1), mask)


def _erode(mask: Tensor, window: tuple[int, int]) -> Tensor:
    padding = (window[0] // 2, window[1] // 2)
    # max_pool2d pads with -inf, so that cells outside the picture count as inside the mask.
    return -F.max_pool2d(-mask, window, stride=1, padding=padding)
