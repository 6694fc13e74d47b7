"""The stroke renderer in plain PyTorch: every pixel looks at every chord. Slow, differentiable by autograd, any dtype.

This file says what the other faces must compute.

A *stroke* covers a pixel by its distance to the nearest place of the stroke, through a box one pixel wide:

    e(p)  = min over chords of |p - q| - r(q)       q: the chord's point nearest to p, r: half the width there
    d, r  = those of the chord that won (the first of equals)
    c     = F(r - d) - F(-r - d)                    F(x) = clamp(x + 1/2, 0, 1)

so a line of any width, also far under a pixel, has its true amount of ink. Caps and joins are round. A butt cap cuts
the stroke off at its end point a with unit tangent tau (outwards):

    c    <- c clamp(1/2 - (p - a) . tau, 0, 1)      for p with |p - a| < r(a) + 1

A contour that is one point (no tangent) has a round dot with round caps and nothing with butt caps, as SVG says.

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
    p = _pixels(v, height, width)[None, None]  # [1, 1, H, W, 2]
    half = drawing.widths[:, shape] / 2  # [B, 2]
    distances, radii = [], []
    for contour in contours:
        rows = slice(int(pieces.first[contour]), int(pieces.first[contour + 1]))
        along = torch.from_numpy(pieces.along[rows]).to(v)
        r = half[:, :1] + (half[:, 1:] - half[:, :1]) * along  # [B, m + 1]
        a, b = v[:, rows][:, :-1, None, None], v[:, rows][:, 1:, None, None]  # [B, m, 1, 1, 2]
        ab = b - a
        square = (ab * ab).sum(-1)
        u = ((p - a) * ab).sum(-1) / torch.where(square > 0, square, 1)
        u = u.clamp(0, 1)[..., None]  # [B, m, H, W, 1]
        distances.append(_length(p - a - u * ab))
        radii.append(torch.lerp(r[:, :-1, None, None], r[:, 1:, None, None], u[..., 0]))
    d, r = torch.cat(distances, dim=1), torch.cat(radii, dim=1)
    nearest = (d - r).detach().argmin(1, keepdim=True)
    d, r = d.gather(1, nearest)[:, 0], r.gather(1, nearest)[:, 0]
    c = (r - d + 0.5).clamp(0, 1) - (0.5 - r - d).clamp(0, 1)
    if not drawing.topology.round_caps[shape]:
        for contour in contours:
            if not drawing.topology.contour_closed[contour]:
                rows = v[:, pieces.first[contour] : pieces.first[contour + 1]]
                c = c * _butt(p[:, 0], rows[:, 0], rows[:, 1], half[:, 0])
                c = c * _butt(p[:, 0], rows[:, -1], rows[:, -2], half[:, 1])
    return c


def _length(x: Tensor) -> Tensor:
    """|x| over the last axis, with gradient 0 at 0."""
    square = (x * x).sum(-1)
    safe = torch.where(square > 0, square, 1)
    return torch.where(square > 0, safe.sqrt(), 0)


def _butt(p: Tensor, end: Tensor, inner: Tensor, r: Tensor) -> Tensor:
    """The factor of a butt cap; p [1, H, W, 2], end and inner [B, 2], r [B] half the width at the end."""
    away = end - inner
    length = _length(away)[:, None]
    tau = away / torch.where(length > 0, length, 1)
    from_end = p - end[:, None, None]
    beyond = (from_end * tau[:, None, None]).sum(-1)
    factor = (0.5 - beyond).clamp(0, 1)
    near = _length(from_end).detach() < r.detach()[:, None, None] + 1
    factor = torch.where(near, factor, 1)
    return torch.where(length[..., None] > 0, factor, 0)


def _signed_area(ring: Tensor, height: int, width: int) -> Tensor:  # [B, m + 1, 2] -> [B, H, W]
    """Sum over edges of the signed area between the edge and the right side of each pixel's square."""
    a, b = ring[:, :-1, None, None], ring[:, 1:, None, None]  # [B, m, 1, 1, 2]
    top = torch.arange(height).to(ring)[:, None]
    right = torch.arange(width).to(ring) + 1
    (ax, ay), (bx, by) = a.unbind(-1), b.unbind(-1)
    flat = ay == by
    slope = (bx - ax) / torch.where(flat, 1, by - ay)
    y0, y1 = torch.maximum(torch.minimum(ay, top + 1), top), torch.maximum(torch.minimum(by, top + 1), top)
    v0, v1 = right - (ax + slope * (y0 - ay)), right - (ax + slope * (y1 - ay))
    near = (v1 - v0).abs() < 1e-3
    mean = (_ramp_integral(v1) - _ramp_integral(v0)) / torch.where(near, 1, v1 - v0)
    mean = torch.where(near, ((v0 + v1) / 2).clamp(0, 1), mean)
    return torch.where(flat, 0, (y1 - y0) * mean).sum(1)


def _ramp_integral(x: Tensor) -> Tensor:
    """The integral of clamp(x, 0, 1)."""
    return torch.where(x < 1, x.clamp(min=0).square() / 2, x - 0.5)
