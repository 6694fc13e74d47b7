"""What a stroke renderer draws: shapes made of cubic Bezier curves, painted one over the other.

One layout for all faces. The *topology* (how many curves, what is filled) is fixed and lives on the CPU; the numbers
(points, widths, colours, background) are tensors, a batch of drawings of one topology:

    shape    one thing to paint: a stroke, or a filled area. Shapes are painted in their order.
    contour  a chain of cubics, open or closed; a shape has one or more (a filled ring has two).
    points   the control points of all contours of all shapes, one after the other. An open contour of n cubics has
             3 n + 1 points, a closed one 3 n (its last curve ends in its first point).

Units: pixels, x to the right and y down, (0, 0) the top left corner of the picture; the middle of the first pixel is
(0.5, 0.5). Colours 0..1, not premultiplied. Widths are true widths, not half-widths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

STROKE, NONZERO, EVENODD = 0, 1, 2  # kinds of shape: a stroke, areas filled by the non-zero or the even-odd rule
TOLERANCE = 0.1  # pixels, how far a curve and its chords may lie apart
MIN_CHORDS = 2  # of one cubic: its inner points move no vertex of a single chord, and a straight line could never bend
MAX_CHORDS = 64


@dataclass(frozen=True)
class Topology:
    """How many curves there are and what is done with them."""

    kinds: tuple[int, ...]  # [N] STROKE, NONZERO or EVENODD
    contours: tuple[tuple[tuple[int, bool], ...], ...]  # [N] of (number of cubics, closed) for each contour
    round_caps: tuple[bool, ...]  # [N], False: butt caps; of no meaning for fills

    def __post_init__(self) -> None:
        if not len(self.kinds) == len(self.contours) == len(self.round_caps):
            raise ValueError("kinds, contours and round_caps must have one entry a shape.")
        if any(kind not in (STROKE, NONZERO, EVENODD) for kind in self.kinds):
            raise ValueError("A shape's kind must be STROKE, NONZERO or EVENODD.")
        if any(not shape or any(count < 1 for count, _ in shape) for shape in self.contours):
            raise ValueError("A shape must have at least one contour, a contour at least one cubic.")

    def __len__(self) -> int:
        return len(self.kinds)

    @cached_property
    def shape_kinds(self) -> np.ndarray:
        """int32 [N]."""
        return np.array(self.kinds, np.int32)

    @cached_property
    def shape_round(self) -> np.ndarray:
        """bool [N]."""
        return np.array(self.round_caps, bool)

    @cached_property
    def contour_shape(self) -> np.ndarray:
        """int32 [C], the shape of each contour."""
        counts = np.array([len(shape) for shape in self.contours], np.int64)
        return np.repeat(np.arange(len(self), dtype=np.int32), counts)

    @cached_property
    def contour_cubics(self) -> np.ndarray:
        """int32 [C], the number of cubics of each contour."""
        return np.array([count for shape in self.contours for count, _ in shape], np.int32)

    @cached_property
    def contour_closed(self) -> np.ndarray:
        """bool [C]."""
        return np.array([closed for shape in self.contours for _, closed in shape], bool)

    @cached_property
    def contour_points(self) -> np.ndarray:
        """int32 [C + 1], where each contour's points begin; the last entry is the number of points."""
        counts = 3 * self.contour_cubics + ~self.contour_closed
        return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)

    @cached_property
    def cubic_points(self) -> np.ndarray:
        """int32 [K, 4], the control points of every cubic, contour by contour."""
        contour = np.repeat(np.arange(len(self.contour_cubics)), self.contour_cubics)
        last = np.cumsum(self.contour_cubics) - 1  # cubic of each contour
        nth = np.arange(len(contour)) - (last + 1 - self.contour_cubics)[contour]
        rows = (self.contour_points[contour] + 3 * nth)[:, None] + np.arange(4)
        rows[last[self.contour_closed], 3] = self.contour_points[:-1][self.contour_closed]
        return rows.astype(np.int32)

    @property
    def points(self) -> int:
        return int(self.contour_points[-1])


@dataclass(frozen=True)
class Drawing:
    """B drawings of one topology."""

    topology: Topology
    points: Tensor  # [B, P, 2] pixels
    widths: Tensor  # [B, N, 2] pixels, >= 0, at a stroke's start and end; linear between; of no meaning for fills
    colours: Tensor  # [B, N, 4] red, green, blue, opacity, 0..1
    background: Tensor  # [B, 3] 0..1

    def __post_init__(self) -> None:
        shapes, batch = len(self.topology), self.points.shape[0]
        for name, expected in (
            ("points", (batch, self.topology.points, 2)),
            ("widths", (batch, shapes, 2)),
            ("colours", (batch, shapes, 4)),
            ("background", (batch, 3)),
        ):
            tensor = getattr(self, name)
            if tuple(tensor.shape) != expected:
                raise ValueError(f"{name} must have the shape {list(expected)}; got {list(tensor.shape)}.")
            if tensor.dtype != self.points.dtype or tensor.device != self.points.device:
                raise ValueError(f"{name} must have the dtype and the device of points.")


@dataclass(frozen=True)
class Chords:
    """The straight pieces that stand for the curves: row k of `basis` times the four points `cubic[k]` is a vertex."""

    points: np.ndarray  # int32 [V, 4], control points of each vertex's cubic
    basis: np.ndarray  # float64 [V, 4], Bernstein weights
    along: np.ndarray  # float64 [V], place on the contour, 0 at its start, 1 at its end
    first: np.ndarray  # int32 [C + 1], where each contour's vertices begin


def chord_counts(topology: Topology, points: Tensor) -> np.ndarray:
    """int32 [K], how many chords each cubic needs: Wang's bound n = sqrt(3/4 max |second difference| / tolerance).

    One number for the whole batch, and not differentiated: it changes where the chords lie by less than TOLERANCE.
    """
    p = points.detach().cpu().double().numpy()[:, topology.cubic_points]  # [B, K, 4, 2]
    bend = np.abs(p[..., :-2, :] - 2 * p[..., 1:-1, :] + p[..., 2:, :])
    reach = np.sqrt((bend**2).sum(-1)).max(-1).max(0, initial=0)
    return np.clip(np.ceil(np.sqrt(0.75 * reach / TOLERANCE)), MIN_CHORDS, MAX_CHORDS).astype(np.int32)


def chords(topology: Topology, counts: np.ndarray) -> Chords:
    """Cut every cubic into its number of chords. Vertices of a contour follow each other, its last one included: a
    contour with m chords has m + 1 vertices, the last of a closed one being its first again."""
    points, basis, along, first = [], [], [], [0]
    cubic = 0
    for count in topology.contour_cubics.tolist():
        for k in range(count):
            n = int(counts[cubic])
            t = np.arange(0 if k == 0 else 1, n + 1) / n
            s = 1 - t
            basis.append(np.stack([s**3, 3 * s * s * t, 3 * s * t * t, t**3], axis=-1))
            points.append(np.broadcast_to(topology.cubic_points[cubic], (len(t), 4)))
            along.append((k + t) / count)
            cubic += 1
        first.append(first[-1] + sum(len(a) for a in along[-count:]))
    if not points:
        return Chords(np.zeros((0, 4), np.int32), np.zeros((0, 4)), np.zeros(0), np.zeros(1, np.int32))
    return Chords(
        np.ascontiguousarray(np.concatenate(points)),
        np.concatenate(basis),
        np.concatenate(along),
        np.array(first, np.int32),
    )


def strokes(
    points: Tensor,  # [B, N, 3 S + 1, 2]: N open strokes of S cubics each
    widths: Tensor,  # [B, N, 2]
    colours: Tensor,  # [B, N, 4]
    background: Tensor,  # [B, 3]
    round_caps: bool = True,
) -> Drawing:
    """The commonest drawing: strokes of equal length in curves."""
    batch, count, each, _ = points.shape
    cubics = (each - 1) // 3
    if each != 3 * cubics + 1 or cubics < 1:
        raise ValueError(f"A stroke of S cubics has 3 S + 1 points; got {each}.")
    topology = Topology((STROKE,) * count, (((cubics, False),),) * count, (round_caps,) * count)
    return Drawing(topology, points.reshape(batch, count * each, 2), widths, colours, background)


def check_size(height: int, width: int) -> None:
    """ValueError for a picture that cannot be drawn."""
    if not (1 <= height <= 16384 and 1 <= width <= 16384) or not math.isfinite(height * width):
        raise ValueError(f"height and width must be from 1 to 16384 pixels; got {height} and {width}.")


def vertices(chords: Chords, points: Tensor) -> Tensor:  # [B, P, 2] -> [B, V, 2]
    """V = B P, differentiable."""
    index = torch.from_numpy(chords.points).to(points.device).long()
    weight = torch.from_numpy(chords.basis).to(points)
    return (points[:, index] * weight[..., None]).sum(-2)
