"""Strokes and filled areas to pixels, with gradients. `render` picks a face; layout.py says what a drawing is,
reference.py what every face computes."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from sdsedit.render.strokes.layout import EVENODD, NONZERO, STROKE, Drawing, Topology, check_size, strokes

__all__ = ["EVENODD", "NONZERO", "STROKE", "Drawing", "Topology", "render", "strokes"]


def render(
    drawing: Drawing, height: int, width: int, backend: Literal["auto", "reference", "cpu", "triton"] = "auto"
) -> Tensor:  # [B, 3, height, width] in 0..1
    """Draw; differentiable in points, widths, colours and background.

    auto: "triton" for CUDA tensors if Triton is installed, "cpu" (Numba) for float32 tensors on the CPU, and
    "reference" (plain PyTorch, any dtype, slow) for all others. ValueError for a size outside 1..16384, for numbers
    that are not finite, naming the first shape with one, and for widths of strokes below 0.
    """
    check_size(height, width)
    _check_numbers(drawing)
    if backend == "auto":
        if drawing.points.is_cuda:
            backend = "triton" if find_spec("triton") else "reference"
        else:
            backend = "cpu" if drawing.points.dtype == torch.float32 else "reference"
    if backend == "cpu":
        from sdsedit.render.strokes import cpu as face
    elif backend == "triton":
        from sdsedit.render.strokes import cuda as face
    elif backend == "reference":
        from sdsedit.render.strokes import reference as face
    else:
        raise ValueError(f'backend must be "auto", "reference", "cpu" or "triton"; got {backend!r}.')
    return face.render(drawing, height, width)


@torch.no_grad()
def _check_numbers(drawing: Drawing) -> None:
    points, widths = drawing.points, drawing.widths
    # One look is enough for a good drawing: a sum is finite only if all its numbers are.
    total = points.sum() + widths.sum() + drawing.colours.sum() + drawing.background.sum()
    low = widths.amin() if widths.numel() else total
    total, low = torch.stack([total, low]).tolist()
    if math.isfinite(total) and (low >= 0 or not widths.numel()):
        return
    topology = drawing.topology
    each_point = torch.repeat_interleave(
        torch.from_numpy(topology.contour_shape).long(), torch.from_numpy(topology.contour_points).long().diff()
    )
    bad = torch.zeros(len(topology), dtype=torch.bool)
    bad.index_add_(0, each_point, ~points.isfinite().all(-1).all(0).cpu())
    bad |= ~(widths.isfinite().all(-1) & drawing.colours.isfinite().all(-1)).all(0).cpu()
    if bad.any():
        raise ValueError(f"The numbers of a drawing must be finite; shape {int(bad.nonzero()[0])} has one that is not.")
    if not drawing.background.isfinite().all():
        raise ValueError("The background of a drawing must be finite.")
    negative = (widths < 0).any(-1).any(0).cpu() & torch.tensor([kind == STROKE for kind in topology.kinds])
    if negative.any():
        raise ValueError(f"A stroke's width must not be negative; that of shape {int(negative.nonzero()[0])} is.")
