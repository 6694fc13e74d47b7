"""Numbers that say how good an edit is: did the rest stay, is the mask right, did the meaning move as asked.

Pictures are float [B, 3, H, W] in 0..1 and masks float [B, 1, H, W] in 0..1, 1 = may change. Every score is one number
a picture, [B] float32, on the device of the input. Nothing here knows a model: embeddings are given.

The part that a mask leaves alone is where it is exactly 0: a feathered edge counts as allowed to change. With no mask
the whole picture counts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(
    a: Tensor,  # [B, C, H, W] in 0..1
    b: Tensor,  # [B, C, H, W] in 0..1
    mask: Tensor | None = None,  # [B or 1, 1, H, W]
) -> Tensor:  # [B] decibels
    """Peak signal-to-noise ratio over the part that `mask` leaves alone.

    PSNR = 10 log10(1 / MSE), the peak being 1 (Huynh-Thu and Ghanbari, "Scope of validity of PSNR", 2008). Equal
    pictures give infinity. `ValueError` for shapes that differ or a mask that leaves nothing alone.
    """
    a, b, kept = _kept(a, b, mask)
    error = ((a - b).square() * kept).flatten(1).sum(1) / kept.expand_as(a).flatten(1).sum(1)
    return -10 * error.log10()


def l1(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:  # [B] in 0..1
    """Mean absolute difference, mean |a - b|, over the part that `mask` leaves alone.

    The L1 of MagicBrush's evaluation (arXiv:2306.10012), there over whole pictures. Shapes and errors as in `psnr`.
    """
    a, b, kept = _kept(a, b, mask)
    return ((a - b).abs() * kept).flatten(1).sum(1) / kept.expand_as(a).flatten(1).sum(1)


def max_change(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:  # [B] in 0..1
    """Largest absolute difference of any one value, max |a - b|, over the part that `mask` leaves alone.

    0 means the same bit for bit. Shapes and errors as in `psnr`.
    """
    a, b, kept = _kept(a, b, mask)
    return ((a - b).abs() * kept).flatten(1).amax(1)


def iou(
    a: Tensor,  # [B, 1, H, W] in 0..1
    b: Tensor,  # [B, 1, H, W] in 0..1
    threshold: float = 0.5,
) -> Tensor:  # [B] in 0..1
    """Intersection over union, |A & B| / |A | B| (Jaccard 1912), of the cells that are above `threshold`.

    Two empty masks agree: 1. `ValueError` for shapes that differ.
    """
    _same_shape(a, b)
    inside_a, inside_b = (a > threshold).flatten(1), (b > threshold).flatten(1)
    both = (inside_a & inside_b).sum(1).float()
    either = (inside_a | inside_b).sum(1).float()
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def pointing(
    heat: Tensor,  # [B, 1, H, W] any range
    mask: Tensor,  # [B, 1, H, W] in 0..1, the truth
    threshold: float = 0.5,
) -> Tensor:  # [B] in 0..1
    """The pointing game: is the hottest cell on the object? 1 if it is, 0 if not (Zhang et al. 2016, arXiv:1608.00507).

    Deviation: we use no tolerance around the object, and where several cells share the maximum the score is the share
    of them that lie on it, so that a constant map scores what a blind guess does. `ValueError` for shapes that differ.
    """
    _same_shape(heat, mask)
    flat = heat.flatten(1)
    hottest = (flat == flat.amax(1, keepdim=True)).float()
    on_object = (mask > threshold).flatten(1).float()
    return (hottest * on_object).sum(1) / hottest.sum(1).clamp(min=1)


def directional_similarity(
    image_before: Tensor,  # [B, D] embeddings in one space
    image_after: Tensor,  # [B, D]
    text_before: Tensor,  # [B, D]
    text_after: Tensor,  # [B, D]
) -> Tensor:  # [B] in -1..1
    """Did the picture move the way that the words did? cos(image_after - image_before, text_after - text_before).

    StyleGAN-NADA's CLIP direction (Gal et al. 2021, arXiv:2108.00946). Embeddings are normalised to length 1 first, as
    CLIP compares them. The sign is kept: an edit that went the other way is below 0, and one that changed nothing is 0.
    `ValueError` for shapes that differ.
    """
    _same_shape(image_before, image_after)
    _same_shape(text_before, text_after)
    _same_shape(image_before, text_before)
    unit = torch.nn.functional.normalize
    moved = unit(image_after.float(), dim=1) - unit(image_before.float(), dim=1)
    asked = unit(text_after.float(), dim=1) - unit(text_before.float(), dim=1)
    return torch.nn.functional.cosine_similarity(
        moved, asked, dim=1
    )  # 0 where either did not move: the norm is clamped


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"The two have shapes {tuple(a.shape)} and {tuple(b.shape)}; they must have the same.")


def _kept(a: Tensor, b: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both pictures as float32, and 1 where `mask` is exactly 0, [B, 1, H, W]."""
    _same_shape(a, b)
    if mask is None:
        return a.float(), b.float(), torch.ones_like(a[:, :1], dtype=torch.float32)
    if mask.shape[0] not in (1, a.shape[0]) or mask.shape[1:] != (1, *a.shape[2:]):
        raise ValueError(
            f"The mask has shape {tuple(mask.shape)}; for pictures {tuple(a.shape)} it must be [B or 1, 1, H, W] "
            "of the same size."
        )
    kept = (mask == 0).float().expand(a.shape[0], -1, -1, -1)
    if not bool(kept.flatten(1).any(1).all()):
        raise ValueError("The mask covers a whole picture; some of it must be 0 for there to be a rest to measure.")
    return a.float(), b.float(), kept
