"""Numbers that say how good an edit is: did the rest stay, is the mask right, did the meaning move as asked.

Pictures are float [B, 3, H, W] in 0..1 and masks float [B, 1, H, W] in 0..1, 1 = may change. Scores are one number a
picture, [B] float32, on the device of the input; those of a whole test set (CLIP-AUC, L1*, CLIP-I*) say so. Nothing
here knows a model: embeddings are given.

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


def similarity(a: Tensor, b: Tensor) -> Tensor:  # [B, D] embeddings, twice -> [B] in -1..1
    """cos(a, b): of a picture and its caption CLIP-T, of two pictures CLIP-I (MagicBrush, arXiv:2306.10012).

    `ValueError` for shapes that differ.
    """
    _same_shape(a, b)
    return torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=1)


def clip_ratio(
    image_before: Tensor,  # [B, D] embeddings in one space
    image_after: Tensor,  # [B, D]
    text_after: Tensor,  # [B, D], of what the picture should become
) -> Tensor:  # [B]
    """CLIP-R of LUSD (arXiv:2503.11054): cos(after, text) / cos(before, text). Above 1 the edit came nearer to the
    words, at 1 it did nothing. `ValueError` for shapes that differ."""
    return similarity(image_after, text_after) / similarity(image_before, text_after)


CLIP_R_THRESHOLDS = tuple(1 + 0.01 * k for k in range(41))  # 1.00 .. 1.40, LUSD's
CLIP_R_STARRED = 23  # of them, 1.00 .. 1.22, for L1* and CLIP-I*


def success_rates(ratio: Tensor) -> Tensor:  # [N] CLIP-R of a whole test set -> [41] in 0..1, float64
    """The share of edits whose CLIP-R is above each of CLIP_R_THRESHOLDS. `ValueError`: no edits."""
    return _passing(ratio).double().mean(1)


def clip_auc(ratio: Tensor) -> Tensor:  # [N] -> 0-dim, 0..0.4
    """LUSD's CLIP-AUC: the area under `success_rates` over the thresholds 1.00 .. 1.40, by Simpson's rule. It needs no
    decision on what a success is. `ValueError`: no edits."""
    return _simpson(success_rates(ratio))


def passing_means(ratio: Tensor, value: Tensor) -> Tensor:  # [N], [N] -> [41] float64, NaN where none passes
    """The mean of a score over the edits whose CLIP-R is above each of CLIP_R_THRESHOLDS. `ValueError` for shapes that
    differ."""
    _same_shape(ratio, value)
    passing = _passing(ratio).double()
    return (passing * value.double()).sum(1) / passing.sum(1)


def starred(ratio: Tensor, value: Tensor) -> Tensor:  # [N], [N] -> 0-dim, NaN where no edit reaches 1.22
    """LUSD's L1* and CLIP-I*: the area under `passing_means` over 1.00 .. 1.22, by Simpson's rule. What is left alone
    counts only of edits that happened: an editor that does nothing would else be the best at it."""
    return _simpson(passing_means(ratio, value)[:CLIP_R_STARRED])


def _passing(ratio: Tensor) -> Tensor:  # [N] -> [41, N] bool
    if ratio.ndim != 1 or not ratio.numel():
        raise ValueError(f"CLIP-R must be one number an edit, of one edit or more; got shape {tuple(ratio.shape)}.")
    return ratio.double()[None] > torch.tensor(CLIP_R_THRESHOLDS, dtype=torch.float64, device=ratio.device)[:, None]


def _simpson(values: Tensor) -> Tensor:  # [odd number] at steps of 0.01 -> 0-dim
    ends, odd, even = values[0] + values[-1], values[1:-1:2].sum(), values[2:-1:2].sum()
    return 0.01 / 3 * (ends + 4 * odd + 2 * even)


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
