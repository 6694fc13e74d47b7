"""The stroke renderer in plain PyTorch: every pixel looks at every chord. Slow, differentiable by autograd, any dtype.

This file says what the other faces must compute.

A *stroke* covers a pixel by its distance to the nearest place of the stroke, through a box one pixel wide:

    e(p)  = min over chords of |p - q| - r(q)       q: the chord's point nearest to p, r: half the width there
    d, r  = those of the chord that won (the first of equals)
    c     = F(r - d) - F(-r - d)                    F(x) = clamp(x + 1/2, 0, 1)

so a line of any width, also far under a pixel, has its true amount of ink. Caps and joins are round.

An open contour with *butt caps* ends where its first chord begins and where its last one ends. With s(p) the place of p
along a chord of length l, which is 0 at its start and l at its end also when p lies before or behind it,

    e  = max(|p - q| - r, -s, s - l)                      -s for the first chord, s - l for the last one
    c <- c (F(s) - F(s - l))                              1 for F(s) but in the first, 0 for F(s - l) but in the last

and q, beyond such an end, is the place on the straight line through the chord. What a chord's round end adds counts
only where its neighbour is rounded too, on the outside of their bend: a disc there would stick out of a cap close by.
Chords shorter than SHORT are passed over: they have no direction. A contour that is one point has a round dot with
round caps and nothing with butt caps, as SVG says.

A *filled area* covers a pixel by the exact area of the pixel's square inside it. Every edge of the (implicitly closed)
polygon adds the signed area between itself and the square's right side; with A the sum over the edges,

    c = min(|A|, 1)                  non-zero rule
    c = |(|A| + 1) mod 2 - 1|        even-odd rule, as in A. R. Smith's and font rasterisers' accumulation

which is exact but in pixels where edges of one shape cross each other.

Shapes are painted in order, each over what is there: out <- out + opacity c (colour - out).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdsedit.render.strokes.layout import EVENODD, STROKE, Chords, Drawing, check_size, chord_counts, chords, vertices

SHORT = 1e-3  # pixels


def render(drawing: Drawing, height: int, width: int) -> Tensor:  # [B, 3, height, width] in 0..1
    """Draw with autograd. Memory: B x chords of one shape x pixels."""
    check_size(height, width)
    topology = drawing.topology
    pieces = chords(topology, chord_counts(topology, drawing.points))
    v = vertices(pieces, drawing.points)
    out = drawing.background[:, :, None, None].expand(-1, -1, height, width)
    for shape in range(len(topology)):
        c = coverage(drawing, pieces, v, shape, height, width)[:, None]  # [B, 1, H, W]
        colour, opacity = drawing.colours[:, shape, :3], drawing.colours[:, shape, 3]
        out = out + opacity[:, None, None, None] * c * (colour[:, :, None, None] - out)
    return out


def coverage(
    drawing: Drawing, pieces: Chords, v: Tensor, shape: int, height: int, width: int
) -> Tensor:  # [B, H, W] in 0..1
    """The share of each pixel that one shape covers."""
    topology = drawing.topology
    contours = (topology.contour_shape == shape).nonzero()[0].tolist()
    if topology.kinds[shape] == STROKE:
        return _stroke(drawing, pieces, v, shape, contours, height, width)
    area = v.new_zeros(v.shape[0], height, width)
    for contour in contours:
        ring = v[:, pieces.first[contour] : pieces.first[contour + 1]]
        area = area + _signed_area(torch.cat([ring, ring[:, :1]], dim=1), height, width)
    if topology.kinds[shape] == EVENODD:
        return ((area.abs() + 1) % 2 - 1).abs()
    return area.abs().clamp(max=1)


def _pixels(like: Tensor, height: int, width: int) -> Tensor:  # [H, W, 2], the middles
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], dim=-1).to(like) + 0.5


def _stroke(
    drawing: Drawing, pieces: Chords, v: Tensor, shape: int, contours: list[int], height: int, width: int
) -> Tensor:
    topology = drawing.topology
    half = drawing.widths[:, shape] / 2  # [B, 2]
    each = []
    for contour in contours:
        rows = slice(int(pieces.first[contour]), int(pieces.first[contour + 1]))
        along = torch.from_numpy(pieces.along[rows]).to(v)
        r = half[:, :1] + (half[:, 1:] - half[:, :1]) * along  # [B, m + 1]
        butt = not (topology.round_caps[shape] or topology.contour_closed[contour])
        each.append(_chords(v[:, rows], r, butt, _pixels(v, height, width)))
    e, d, r, cut = (torch.cat(parts, dim=1) for parts in zip(*each, strict=True))
    nearest = e.argmin(1, keepdim=True)
    d, r, cut = (x.gather(1, nearest)[:, 0] for x in (d, r, cut))
    return (_ramp(r - d) - _ramp(-r - d)) * cut


def _chords(v: Tensor, r: Tensor, butt: bool, p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """e (without gradient), |p - q|, r(q) and the butt caps' factor, all [B, m, H, W], of the m chords between the
    vertices v [B, m + 1, 2] with half-widths r [B, m + 1]; p [H, W, 2]."""
    a, b = v[:, :-1, None, None], v[:, 1:, None, None]  # [B, m, 1, 1, 2]
    ab, ap = b - a, p - a
    square = (ab * ab).sum(-1)
    free = (ap * ab).sum(-1) / torch.where(square > 0, square, 1)  # [B, m, H, W]
    u = free.clamp(0, 1)
    r = torch.lerp(r[:, :-1, None, None], r[:, 1:, None, None], u)
    if not butt:
        d = _length(ap - u[..., None] * ab)
        return (d - r).detach(), d, r, torch.ones_like(d)

    l = _length(ab)  # [B, m, 1, 1]
    seen = l >= SHORT
    before, after = _neighbours(torch.where(seen[..., None], ab, 0).detach())  # [B, m, 1, 1, 2]
    first, last = (before == 0).all(-1), (after == 0).all(-1)
    # Before a first and behind a last chord, the line through it.
    u = torch.where(first, free.clamp(max=1), torch.where(last, free.clamp(min=0), u))
    u = torch.where(first & last, free, u)
    d = _length(ap - u[..., None] * ab)
    start, end = free * l, (free - 1) * l
    cut = torch.where(first, _ramp(start), 1) - torch.where(last, _ramp(end), 0)
    e = (d - r).detach()
    e = torch.where(first, torch.maximum(e, -start), e)
    e = torch.where(last, torch.maximum(e, end), e).detach()
    inside = ((free < 0) & ((ap * before).sum(-1) < 0)) | ((free > 1) & (((p - b) * after).sum(-1) > 0))
    e = torch.where(~inside & seen, e, torch.inf)
    return e, d, r, torch.where(seen, cut, 0)


def _neighbours(ab: Tensor) -> tuple[Tensor, Tensor]:
    """For each chord ab [B, m, 1, 1, 2] the one before and the one after it that are not 0, else 0."""
    none = torch.zeros_like(ab[:, 0])
    before, after = [none], [none]
    for k in range(ab.shape[1] - 1):
        x, y = ab[:, k], ab[:, -1 - k]
        before.append(torch.where((x == 0).all(-1, keepdim=True), before[-1], x))
        after.append(torch.where((y == 0).all(-1, keepdim=True), after[-1], y))
    return torch.stack(before, dim=1), torch.stack(after[::-1], dim=1)


def _ramp(x: Tensor) -> Tensor:
    """F"""
    return (x + 0.5).clamp(0, 1)


def _length(x: Tensor) -> Tensor:
    """|x| over the last axis, with gradient 0 at 0."""
    square = (x * x).sum(-1)
    safe = torch.where(square > 0, square, 1)
    return torch.where(square > 0, safe.sqrt(), 0)


def _signed_area(ring: Tensor, height: int, width: int) -> Tensor:  # [B, m + 1, 2] -> [B, H, W]
    """Sum over edges of the signed area between the edge and the right side of each pixel's square."""
    a, b = ring[:, :-1, None, None], ring[:, 1:, None, None]  # [B, m, 1, 1, 2]
    top = torch.arange(height).to(ring)[:, None]
    right = torch.arange(width).to(ring) + 1
    (ax, ay), (bx, by) = a.unbind(-1), b.unbind(-1)
    level = ay == by  # of no area, but its ends may move up or down
    rise = torch.where(level, 1, by - ay)
    y0, y1 = torch.maximum(torch.minimum(ay, top + 1), top), torch.maximum(torch.minimum(by, top + 1), top)
    t0, t1 = torch.where(level, 0, (y0 - ay) / rise), torch.where(level, 1, (y1 - ay) / rise)
    v0, v1 = right - (ax + t0 * (bx - ax)), right - (ax + t1 * (bx - ax))
    near = (v1 - v0).abs() < 1e-3
    mean = (_ramp_integral(v1) - _ramp_integral(v0)) / torch.where(near, 1, v1 - v0)
    mean = torch.where(near, ((v0 + v1) / 2).clamp(0, 1), mean)
    return ((y1 - y0) * mean).sum(1)


def _ramp_integral(x: Tensor) -> Tensor:
    """The integral of clamp(x, 0, 1)."""
    return torch.where(x < 1, x.clamp(min=0).square() / 2, x - 0.5)
