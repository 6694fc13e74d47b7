"""Strokes and filled areas to pixels, with gradients. `render` picks a face; layout.py says what a drawing is,
reference.py what every face computes."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from sdsedit.render.strokes.layout import EVENODD, NONZERO, STROKE, Drawing, Topology, check_size, strokes

__all__ = ["EVENODD", "NONZERO", "STROKE", "Drawing", "Topology", "render", "strokes"]

Backend = Literal["auto", "reference", "cpu", "triton"]


def render(drawing: Drawing, height: int, width: int, backend: Backend = "auto") -> Tensor:  # [B, 3, height, width]
    """Draw, differentiably in points, widths, colours and background; float32 in 0..1 (float64 if the drawing is).

    auto: "triton" for CUDA tensors where Triton is installed, "cpu" (Numba) for float32 on the CPU, "reference" (plain
    PyTorch, slow) for everything else. ValueError for numbers that are not finite or widths below 0, naming the shape.
    """
    check_size(height, width)
    _check(drawing)
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
def _check(drawing: Drawing) -> None:
    """ValueError naming the first shape with a number that cannot be drawn."""
    topology, tensors = drawing.topology, (drawing.points, drawing.widths, drawing.colours, drawing.background)
    # One number to look at, for a device that must be waited for. A sum overflows only where something is wrong or huge.
    if drawing.points.is_floating_point() is False:
        raise ValueError("x")
    fine = sum(each.sum() for each in tensors)
