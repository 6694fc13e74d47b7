"""The stroke renderer on a GPU, in Triton: what reference.py computes, in float32, with gradients by hand.

One program draws one tile of 16 x 16 pixels of one picture. Torch first cuts the curves into chords and gives every
tile its chords, in paint order:

    row      what a kernel knows of one chord: ends and half-widths (ax, ay, ra, bx, by, rb), red, green, blue, opacity
    entry    one row in one tile; `slot` is the same pair counted row by row instead of tile by tile
    run      the entries of one shape in one tile; `runs` says where each begins, `tile_runs` where each tile's begin

A stroke's chord is an entry of the tiles that it touches, grown by half its width and one pixel. An edge of a filled
area is one of every tile in its rows from the edge to the right end of the shape, for its area counts there as well.

Backward walks each tile twice. With G the gradient that comes in, out_i the picture up to shape i, alpha_i its opacity
times its coverage and T_i = prod over j > i of (1 - alpha_j), what lies over shape i,

    d loss / d alpha_i = T_i  G . (colour_i - out_{i-1})

The first walk paints and keeps the dot product (one number a pixel and run, not the three of out_{i-1}); the second
goes from the top down and knows T_i. So nothing is divided by 1 - alpha, and an opaque shape is nothing special.

Every entry has its own slot of ten numbers for the sums over its pixels, and the slots of a row are then added in their
order, as torch on CUDA sorts before it adds what meets in one point: no atomics, the same bits every time. The host
waits for the device three times, for numbers that say how much memory is needed: the size of the cubics, the number of
entries and, where there will be a backward, that of runs.

With TRITON_INTERPRET=1 in the environment before this module is loaded the same kernels run on CPU tensors.
"""

# Triton need not be there where types are checked, and kernels have none.
# pyright: reportMissingImports=false, reportIndexIssue=false, reportOperatorIssue=false

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("Drawing strokes on a GPU needs Triton: pip install 'sdsedit[cuda]'.") from error

from sdsedit.render.strokes import layout
from sdsedit.render.strokes.layout import Chords, Drawing, Topology, check_size, chord_counts, vertices
from sdsedit.render.strokes.reference import SHORT

SIDE = 16  # of a tile, pixels
COLUMNS = 10  # of a row and of a slot
# Products and sums are rounded one by one, as the interpreter does; what Triton does unasked differs by version.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

TILE = tl.constexpr(SIDE)
PIXELS = tl.constexpr(SIDE * SIDE)
ROW = tl.constexpr(COLUMNS)
NONZERO = tl.constexpr(layout.NONZERO)
EVENODD = tl.constexpr(layout.EVENODD)
BUTT = tl.constexpr(3)  # a stroke's open contour with butt caps; layout.STROKE is one with round caps or none


def render(drawing: Drawing, height: int, width: int) -> Tensor:  # [B, 3, height, width] in 0..1, float32
    """Draw. Memory in backward: 1 KiB for every run, 40 bytes for every entry."""
    check_size(height, width)
    if drawing.points.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"The CUDA stroke renderer draws CUDA tensors; got {drawing.points.device.type}.")
    points, widths = drawing.points.float(), drawing.widths.float()
    colours, background = drawing.colours.float(), drawing.background.float()
    if not len(drawing.topology):
        return background[:, :, None, None].repeat(1, 1, height, width)
    pieces = layout.chords(drawing.topology, chord_counts(drawing.topology, points))
    segments = _segments(drawing.topology, pieces, points.device)
    v = vertices(pieces, points)
    half = widths[:, segments.vertex_shape] / 2  # [B, V, 2]
    radius = half[..., :1] + (half[..., 1:] - half[..., :1]) * torch.from_numpy(pieces.along).to(v)[:, None]
    ends = torch.cat([v, radius], dim=-1)[:, segments.ends].flatten(2)  # [B, S, 6]
    rows = torch.cat([ends, colours[:, segments.shape]], dim=-1)
    return _Paint.apply(rows, background, segments, height, width)


@dataclass(frozen=True)
class _Segments:
    """The S chords and edges of a topology, in paint order."""

    shapes: int
    butt: bool  # whether there are any butt caps
    vertex_shape: Tensor  # int64 [V]
    ends: Tensor  # int64 [S, 2], vertices
    shape: Tensor  # int64 [S]
    contour: Tensor  # int64 [S, 2], the first and the last segment of the same contour
    kind: Tensor  # int32 [S]: layout.STROKE, NONZERO, EVENODD, BUTT


def _segments(topology: Topology, pieces: Chords, device: torch.device) -> _Segments:
    first, shape = pieces.first.astype(np.int64), topology.contour_shape.astype(np.int64)
    butt = (topology.shape_kinds == layout.STROKE) & ~topology.shape_round
    kind = np.where(butt[shape] & ~topology.contour_closed, BUTT.value, topology.shape_kinds[shape])
    filled = (kind == layout.NONZERO) | (kind == layout.EVENODD)
    counts = np.diff(first) - ~filled  # a filled contour has one more edge, which closes it
    contour = np.repeat(np.arange(len(counts)), counts)
    last = np.cumsum(counts) - 1
    start = first[contour] + np.arange(len(contour)) - (last - counts + 1)[contour]
    end = np.where(start + 1 < first[contour + 1], start + 1, first[contour])

    def tensor(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).to(device)

    return _Segments(
        len(topology),
        bool((kind == BUTT.value).any()),
        tensor(np.repeat(shape, np.diff(first))),
        tensor(np.stack([start, end], axis=-1)),
        tensor(shape[contour]),
        tensor(np.stack([last - counts + 1, last], axis=-1)[contour]),
        tensor(kind[contour].astype(np.int32)),
    )


def _bends(rows: Tensor, segments: _Segments) -> tuple[Tensor, Tensor]:  # [B, S, 4], bool [B, S]
    """What butt caps ask for: (bx - ax, by - ay) of the chord before each in its contour and of the one after, 0 where
    there is none, and which chords are there at all: those that are not too short to have a direction."""
    ab = rows[..., 3:5] - rows[..., :2]
    seen = ab.norm(dim=-1) >= SHORT
    count = rows.shape[1]
    at = torch.arange(count, device=rows.device)
    newest = torch.where(seen, at, -1).cummax(1).values  # seen chord up to each one
    soonest = torch.where(seen, at, count).flip(1).cummin(1).values.flip(1)
    before = torch.nn.functional.pad(newest[:, :-1], (1, 0), value=-1)
    after = torch.nn.functional.pad(soonest[:, 1:], (0, 1), value=count)
    bends = []
    for other, none in (
        (before, before < segments.contour[:, 0]),
        (after, after > segments.contour[:, 1]),
    ):
        index = other.clamp(0, count - 1)[..., None].expand(-1, -1, 2)
        bends.append(ab.gather(1, index).masked_fill(none[..., None], 0))
    return torch.cat(bends, dim=-1), seen


@dataclass(frozen=True)
class _Lists:
    """Which chords each tile needs."""

    entries: Tensor  # int32 [E], row of each entry: tile by tile, in paint order inside one
    slots: Tensor  # int64 [E], slot of each entry
    runs: Tensor  # int32 [E + 1], first entry of each run, and where the last one ends
    tile_runs: Tensor  # int32 [B tiles + 1], first run of each tile; the last is the number of runs
    row_slots: Tensor  # int64 [B S + 1], first slot of each row


def _lists(rows: Tensor, seen: Tensor, segments: _Segments, height: int, width: int) -> _Lists:
    batch, count, _ = rows.shape
    tiles_x, tiles_y = triton.cdiv(width, SIDE), triton.cdiv(height, SIDE)
    ax, ay, ra, bx, by, rb = rows[..., :6].unbind(-1)  # [B, S]
    filled = (segments.kind == NONZERO.value) | (segments.kind == EVENODD.value)
    grown = torch.where(filled, 0.5, torch.maximum(ra, rb) + 1)
    left, right = torch.minimum(ax, bx) - grown, torch.maximum(ax, bx) + grown
    top, bottom = torch.minimum(ay, by) - grown, torch.maximum(ay, by) + grown
    index = segments.shape.expand(batch, -1)
    reach = right.new_full((batch, segments.shapes), -torch.inf).scatter_reduce(1, index, right, "amax")
    right = torch.where(filled, reach.gather(1, index), right)

    def tile(x: Tensor, low: int, high: int) -> Tensor:  # a NaN lands in no tile
        return (x / SIDE).floor().nan_to_num(nan=-1).clamp(low, high).long()

    x0, y0 = tile(left, 0, tiles_x), tile(top, 0, tiles_y)
    wide = (tile(right, -1, tiles_x - 1) - x0 + 1).clamp(min=0)
    high = (tile(bottom, -1, tiles_y - 1) - y0 + 1).clamp(min=0)
    here = seen | (segments.kind != BUTT.value)
    row_slots = torch.zeros(batch * count + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum((wide * high * here).flatten(), 0, out=row_slots[1:])
    total = int(row_slots[-1])  # waits for the device

    slot = torch.arange(total, device=rows.device)
    row = torch.repeat_interleave(row_slots.diff(), output_size=total)
    nth, wide = slot - row_slots[row], wide.flatten()[row]
    tile_x, tile_y = x0.flatten()[row] + nth % wide, y0.flatten()[row] + nth // wide
    # A long chord touches few of the tiles in its box. What is too far from a tile goes behind the last one.
    tiles = tiles_x * tiles_y
    far = ~filled[row % count] & _beyond(rows.view(-1, COLUMNS)[row], tile_x, tile_y)
    tile_of = torch.where(far, batch * tiles, row // count * tiles + tile_y * tiles_x + tile_x).int()
    tile_of, slots = tile_of.sort(stable=True)
    entries = row[slots]
    # A run begins where the tile or the shape differs from the entry before, and one more after the last entry.
    shape = segments.shape[entries % count]
    begins = torch.ones(total + 1, dtype=torch.bool, device=rows.device)
    begins[1:-1] = (tile_of[1:] != tile_of[:-1]) | (shape[1:] != shape[:-1])
    run = begins.cumsum(0) - 1
    first = torch.searchsorted(tile_of, torch.arange(batch * tiles + 1, device=rows.device, dtype=torch.int32))
    return _Lists(
        entries.int(),
        slots,
        torch.searchsorted(run, torch.arange(total + 1, device=rows.device), out_int32=True),
        run[first].int(),
        row_slots,
    )


def _beyond(rows: Tensor, tile_x: Tensor, tile_y: Tensor) -> Tensor:  # [E, 10], [E], [E] -> bool [E]
    """Whether a chord, grown by half its width and one pixel, stays outside the circle round its tile."""
    a, b = rows[:, 0:2], rows[:, 3:5]
    centre = (torch.stack([tile_x, tile_y], dim=-1) + 0.5) * SIDE
    ab = b - a
    u = ((centre - a) * ab).sum(-1) / (ab * ab).sum(-1).clamp(min=torch.finfo(torch.float32).tiny)
    away = (centre - a - u.clamp(0, 1)[:, None] * ab).norm(dim=-1)
    return away > torch.maximum(rows[:, 2], rows[:, 5]) + 1 + SIDE / 2**0.5


class _Paint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, background: Tensor, segments: _Segments, height: int, width: int):
        batch, count, _ = rows.shape
        tiles_x, tiles_y = triton.cdiv(width, SIDE), triton.cdiv(height, SIDE)
        rows, background = rows.contiguous(), background.contiguous()
        bends, seen = _bends(rows, segments) if segments.butt else (rows.new_empty(0), segments.kind >= 0)
        lists = _lists(rows, seen, segments, height, width)
        picture = rows.new_empty(batch, 3, height, width)
        with torch.cuda.device_of(rows):
            _forward[(batch * tiles_x * tiles_y,)](
                rows, bends, segments.kind, lists.entries, lists.runs, lists.tile_runs, background, picture,
                count, height, width, tiles_x, tiles_y, **OPTIONS,
            )  # fmt: skip
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(rows, bends, background)
            ctx.rest = segments, lists, int(lists.tile_runs[-1]), tiles_x, tiles_y  # waits for the device
        return picture

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # [B, 3, H, W]  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, bends, background = ctx.saved_tensors
        segments, lists, runs, tiles_x, tiles_y = ctx.rest
        batch, count, _ = rows.shape
        above = rows.new_empty(runs, SIDE * SIDE)
        slots = rows.new_zeros(len(lists.slots), COLUMNS)
        tile_background = rows.new_empty(batch, tiles_x * tiles_y, 3)
        grad_rows = torch.empty_like(rows)
        with torch.cuda.device_of(rows):
            _backward[(batch * tiles_x * tiles_y,)](
                rows, bends, segments.kind, lists.entries, lists.runs, lists.tile_runs, background, grad.contiguous(),
                lists.slots, above, slots, tile_background,
                count, grad.shape[2], grad.shape[3], tiles_x, tiles_y, **OPTIONS,
            )  # fmt: skip
            _sum_slots[(batch * count,)](slots, lists.row_slots, grad_rows, **OPTIONS)
        return grad_rows, tile_background.sum(1), None, None, None


# What follows runs on the device. Names without a comment are numbers; [PIXELS] is one number a pixel of the tile.


@triton.jit
def _chord(rows, bends, row, kind, px, py):
    """One chord as the pixels see it: its ends (six numbers), and [PIXELS] each: the place on it that is nearest,
    before it is clamped, after, and where q lies; p - q; |p - q|; r; e; the factor of the butt caps."""
    at = rows + row.to(tl.int64) * ROW
    ax, ay, ra = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    bx, by, rb = tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)
    ab_x, ab_y = bx - ax, by - ay
    square = ab_x * ab_x + ab_y * ab_y
    ap_x, ap_y = px - ax, py - ay
    free = (ap_x * ab_x + ap_y * ab_y) * (1.0 / tl.where(square > 0.0, square, 1.0))
    u = tl.clamp(free, 0.0, 1.0)
    r = ra + u * (rb - ra)
    q = u
    least = tl.full([PIXELS], -float("inf"), tl.float32)
    cut = tl.full([PIXELS], 1.0, tl.float32)
    if kind == BUTT:
        bend = bends + row.to(tl.int64) * 4
        before_x, before_y, after_x, after_y = tl.load(bend), tl.load(bend + 1), tl.load(bend + 2), tl.load(bend + 3)
        length = tl.sqrt_rn(square)
        start, end = free * length, (free - 1.0) * length
        if (before_x == 0.0) & (before_y == 0.0):
            q = tl.where(free < 0.0, free, q)
            cut = tl.clamp(start + 0.5, 0.0, 1.0)
            least = -start
        if (after_x == 0.0) & (after_y == 0.0):
            q = tl.where(free > 1.0, free, q)
            cut -= tl.clamp(end + 0.5, 0.0, 1.0)
            least = tl.maximum(least, end)
        inside = (free < 0.0) & (ap_x * before_x + ap_y * before_y < 0.0)
        inside |= (free > 1.0) & ((px - bx) * after_x + (py - by) * after_y > 0.0)
        least = tl.where(inside, float("inf"), least)
    x, y = ap_x - q * ab_x, ap_y - q * ab_y
    d = tl.sqrt_rn(x * x + y * y)
    return ax, ay, ra, bx, by, rb, free, u, q, x, y, d, r, tl.maximum(d - r, least), cut


@triton.jit
def _stroke(rows, bends, kinds, entries, base, first, last, px, py):
    """r - d, r, the caps' factor and the entry of the chord that wins, all [PIXELS]."""
    least = tl.full([PIXELS], float("inf"), tl.float32)
    depth = tl.full([PIXELS], 0.0, tl.float32)
    half = tl.full([PIXELS], 0.0, tl.float32)
    cut = tl.full([PIXELS], 0.0, tl.float32)
    winner = tl.full([PIXELS], -1, tl.int32)
    for k in range(first, last):
        row = tl.load(entries + k)
        kind = tl.load(kinds + row - base)
        _, _, _, _, _, _, _, _, _, _, _, d, r, e, c = _chord(rows, bends, row, kind, px, py)
        better = e < least
        least = tl.where(better, e, least)
        depth = tl.where(better, r - d, depth)
        half = tl.where(better, r, half)
        cut = tl.where(better, c, cut)
        winner = tl.where(better, k, winner)
    return depth, half, cut, winner


@triton.jit
def _stroke_back(slot, rows, bends, row, kind, px, py, grad_d, grad_r, grad_cut):
    """Write the gradient of one chord from those with respect to d, r and the caps' factor, [PIXELS]."""
    ax, ay, ra, bx, by, rb, free, u, q, x, y, d, _, _, _ = _chord(rows, bends, row, kind, px, py)
    ab_x, ab_y = bx - ax, by - ay
    square = ab_x * ab_x + ab_y * ab_y
    # d moves with q, not with the place of q on the chord: that is the nearest, or an end.
    pull = -grad_d / tl.where(d > 0.0, d, 1.0)
    b_x, b_y = q * pull * x, q * pull * y
    a_x, a_y = pull * x - b_x, pull * y - b_y
    # r moves with the place: with ap . ab and with |ab|^2.
    slide = tl.where(free == u, grad_r * (rb - ra) / tl.where(square > 0.0, square, 1.0), 0.0)
    if kind == BUTT:
        bend = bends + row.to(tl.int64) * 4
        length = tl.sqrt_rn(square)
        start, end = free * length, (free - 1.0) * length
        grad_start = tl.full([PIXELS], 0.0, tl.float32)
        grad_end = tl.full([PIXELS], 0.0, tl.float32)
        if (tl.load(bend) == 0.0) & (tl.load(bend + 1) == 0.0):
            grad_start = tl.where((start >= -0.5) & (start <= 0.5), grad_cut, 0.0)
        if (tl.load(bend + 2) == 0.0) & (tl.load(bend + 3) == 0.0):
            grad_end = tl.where((end >= -0.5) & (end <= 0.5), -grad_cut, 0.0)
        # start = ap . ab / l, end = start - l
        turn = (grad_start + grad_end) / length
        push = -grad_end / length - turn * free
        b_x += turn * (px - ax) + push * ab_x
        b_y += turn * (py - ay) + push * ab_y
        a_x -= turn * (px - ax) + (push + turn) * ab_x
        a_y -= turn * (py - ay) + (push + turn) * ab_y
    to_x, to_y = slide * (px - ax - 2.0 * u * ab_x), slide * (py - ay - 2.0 * u * ab_y)
    tl.store(slot, tl.sum(a_x - to_x - slide * ab_x, 0))
    tl.store(slot + 1, tl.sum(a_y - to_y - slide * ab_y, 0))
    tl.store(slot + 2, tl.sum((1.0 - u) * grad_r, 0))
    tl.store(slot + 3, tl.sum(b_x + to_x, 0))
    tl.store(slot + 4, tl.sum(b_y + to_y, 0))
    tl.store(slot + 5, tl.sum(u * grad_r, 0))


@triton.jit
def _edge(rows, row, top, right):
    """One edge as the pixels see it: its ends (four numbers), and [PIXELS] each: y0, y1 where its piece in the pixel's
    row begins and ends; t0, t1 their places on the edge; v0, v1 how far they lie left of the pixel's right side; the
    mean of clamp(v, 0, 1) along the piece."""
    at = rows + row.to(tl.int64) * ROW
    ax, ay, bx, by = tl.load(at), tl.load(at + 1), tl.load(at + 3), tl.load(at + 4)
    level = tl.abs(by - ay) < 1e-30  # a quotient of smaller numbers may not be one
    rise = tl.where(level, 1.0, by - ay)
    y0, y1 = tl.clamp(ay, top, top + 1.0), tl.clamp(by, top, top + 1.0)
    t0 = tl.where(level, 0.0, tl.clamp((y0 - ay) / rise, 0.0, 1.0))
    t1 = tl.where(level, 1.0, tl.clamp((y1 - ay) / rise, 0.0, 1.0))
    v0, v1 = right - (ax + (bx - ax) * t0), right - (ax + (bx - ax) * t1)
    low, high = tl.minimum(v0, v1), tl.maximum(v0, v1)
    # The integral of clamp from low to high in differences that stay exact far from 0.
    inner_low, inner_high = tl.clamp(low, 0.0, 1.0), tl.clamp(high, 0.0, 1.0)
    area = (inner_high - inner_low) * (inner_high + inner_low) / 2
    area += tl.maximum(high, 1.0) - tl.maximum(low, 1.0)
    upright = high - low < 1e-3
    mean = tl.where(upright, tl.clamp((v0 + v1) / 2, 0.0, 1.0), area / tl.where(upright, 1.0, high - low))
    return ax, ay, bx, by, y0, y1, t0, t1, v0, v1, mean


@triton.jit
def _area(rows, entries, first, last, top, right):
    """[PIXELS], the signed area of a filled shape in every pixel."""
    area = tl.full([PIXELS], 0.0, tl.float32)
    for k in range(first, last):
        _, _, _, _, y0, y1, _, _, _, _, mean = _edge(rows, tl.load(entries + k), top, right)
        area += (y1 - y0) * mean
    return area


@triton.jit
def _even_odd(area):
    """(|A| + 1) mod 2 - 1"""
    x = tl.abs(area) + 1.0
    return x - 2.0 * tl.floor(x / 2) - 1.0


@triton.jit
def _inside(y, top):
    """[PIXELS], the derivative of clamp(y, top, top + 1), shared between equals as torch does."""
    return tl.where((y > top) & (y < top + 1.0), 1.0, tl.where((y == top) | (y == top + 1.0), 0.5, 0.0))


@triton.jit
def _area_back(slot, rows, row, top, right, grad):
    """Write the gradient of one edge from that with respect to the area, [PIXELS]."""
    ax, ay, bx, by, y0, y1, t0, t1, v0, v1, mean = _edge(rows, row, top, right)
    height = y1 - y0
    level = tl.abs(by - ay) < 1e-30
    lean = tl.where(level, 0.0, (bx - ax) * height / tl.where(level, 1.0, by - ay))
    # d mean / d v0 and d v1
    upright = tl.abs(v1 - v0) < 1e-3
    span = tl.where(upright, 1.0, v1 - v0)
    both = tl.where((v0 + v1 >= 0.0) & (v0 + v1 <= 2.0), 0.5, 0.0)
    m0 = tl.where(upright, both, (mean - tl.clamp(v0, 0.0, 1.0)) / span)
    m1 = tl.where(upright, both, (tl.clamp(v1, 0.0, 1.0) - mean) / span)
    w0, w1 = _inside(ay, top), _inside(by, top)
    tl.store(slot, tl.sum(-grad * height * (m0 * (1.0 - t0) + m1 * (1.0 - t1)), 0))
    tl.store(slot + 1, tl.sum(grad * (lean * (m0 * (1.0 - w0 - t0) + m1 * (1.0 - t1)) - mean * w0), 0))
    tl.store(slot + 3, tl.sum(-grad * height * (m0 * t0 + m1 * t1), 0))
    tl.store(slot + 4, tl.sum(grad * (lean * (m0 * t0 + m1 * (t1 - w1)) + mean * w1), 0))


@triton.jit
def _sign(x):
    return tl.where(x > 0.0, 1.0, 0.0) - tl.where(x < 0.0, 1.0, 0.0)


@triton.jit
def _coverage(rows, bends, kinds, entries, base, first, last, kind, x, y):
    """[PIXELS], the share of each pixel that one shape covers; x, y the pixels' left upper corners."""
    c = tl.full([PIXELS], 0.0, tl.float32)
    if (kind == NONZERO) | (kind == EVENODD):
        area = _area(rows, entries, first, last, y, x + 1.0)
        if kind == EVENODD:
            c = tl.abs(_even_odd(area))
        else:
            c = tl.minimum(tl.abs(area), 1.0)
    else:
        depth, r, cut, _ = _stroke(rows, bends, kinds, entries, base, first, last, x + 0.5, y + 0.5)
        c = (tl.clamp(depth + 0.5, 0.0, 1.0) - tl.clamp(depth + 0.5 - 2.0 * r, 0.0, 1.0)) * cut
    return c


@triton.jit
def _colour(rows, row):
    """(red, green, blue, opacity)"""
    at = rows + row.to(tl.int64) * ROW
    return tl.load(at + 6), tl.load(at + 7), tl.load(at + 8), tl.load(at + 9)


@triton.jit(do_not_specialize=["count", "height", "width", "tiles_x", "tiles_y"])
def _forward(
    rows,  # fp32 [B S, 10]
    bends,  # fp32 [B S, 4]
    kinds,  # int32 [S]
    entries,  # int32 [E]
    runs,  # int32 [E + 1]
    tile_runs,  # int32 [B tiles + 1]
    background,  # fp32 [B, 3]
    picture,  # fp32 [B, 3, H, W], written
    count,  # S
    height,
    width,
    tiles_x,
    tiles_y,
):
    tile = tl.program_id(0)
    item = tile // (tiles_x * tiles_y)
    pixel = tl.arange(0, PIXELS)
    column = tile % tiles_x * TILE + pixel % TILE
    line = tile // tiles_x % tiles_y * TILE + pixel // TILE
    x, y = column.to(tl.float32), line.to(tl.float32)
    none = tl.full([PIXELS], 0.0, tl.float32)
    red = none + tl.load(background + 3 * item)
    green = none + tl.load(background + 3 * item + 1)
    blue = none + tl.load(background + 3 * item + 2)
    for run in range(tl.load(tile_runs + tile), tl.load(tile_runs + tile + 1)):
        first, last = tl.load(runs + run), tl.load(runs + run + 1)
        row = tl.load(entries + first)
        kind = tl.load(kinds + row - item * count)
        c = _coverage(rows, bends, kinds, entries, item * count, first, last, kind, x, y)
        own_red, own_green, own_blue, opacity = _colour(rows, row)
        alpha = opacity * c
        red += alpha * (own_red - red)
        green += alpha * (own_green - green)
        blue += alpha * (own_blue - blue)
    plane = height.to(tl.int64) * width
    at = picture + item * 3 * plane + line.to(tl.int64) * width + column
    here = (column < width) & (line < height)
    tl.store(at, red, mask=here)
    tl.store(at + plane, green, mask=here)
    tl.store(at + 2 * plane, blue, mask=here)


@triton.jit(do_not_specialize=["count", "height", "width", "tiles_x", "tiles_y"])
def _backward(
    rows,  # fp32 [B S, 10]
    bends,  # fp32 [B S, 4]
    kinds,  # int32 [S]
    entries,  # int32 [E]
    runs,  # int32 [E + 1]
    tile_runs,  # int32 [B tiles + 1]
    background,  # fp32 [B, 3]
    grad,  # fp32 [B, 3, H, W]
    places,  # int64 [E], slot of each entry
    above,  # fp32 [runs, PIXELS], scratch
    slots,  # fp32 [E, 10], written; zeros where nothing is
    tile_background,  # fp32 [B tiles, 3], written
    count,  # S
    height,
    width,
    tiles_x,
    tiles_y,
):
    tile = tl.program_id(0)
    item = tile // (tiles_x * tiles_y)
    base = item * count
    pixel = tl.arange(0, PIXELS)
    column = tile % tiles_x * TILE + pixel % TILE
    line = tile // tiles_x % tiles_y * TILE + pixel // TILE
    x, y = column.to(tl.float32), line.to(tl.float32)
    px, py = x + 0.5, y + 0.5
    plane = height.to(tl.int64) * width
    at = grad + item * 3 * plane + line.to(tl.int64) * width + column
    here = (column < width) & (line < height)
    grad_red = tl.load(at, mask=here, other=0.0)
    grad_green = tl.load(at + plane, mask=here, other=0.0)
    grad_blue = tl.load(at + 2 * plane, mask=here, other=0.0)
    none = tl.full([PIXELS], 0.0, tl.float32)
    wide = tl.full([], PIXELS, tl.int64)
    first_run, last_run = tl.load(tile_runs + tile), tl.load(tile_runs + tile + 1)

    # From the lowest shape up: G . (colour - what was there before).
    red = none + tl.load(background + 3 * item)
    green = none + tl.load(background + 3 * item + 1)
    blue = none + tl.load(background + 3 * item + 2)
    for run in range(first_run, last_run):
        first, last = tl.load(runs + run), tl.load(runs + run + 1)
        row = tl.load(entries + first)
        kind = tl.load(kinds + row - base)
        c = _coverage(rows, bends, kinds, entries, base, first, last, kind, x, y)
        own_red, own_green, own_blue, opacity = _colour(rows, row)
        more_red, more_green, more_blue = own_red - red, own_green - green, own_blue - blue
        tl.store(above + run * wide + pixel, grad_red * more_red + grad_green * more_green + grad_blue * more_blue)
        red += opacity * c * more_red
        green += opacity * c * more_green
        blue += opacity * c * more_blue
    tl.debug_barrier()  # what one thread stored, another may load

    # From the top down; `through` is how much of this depth is seen.
    through = none + 1.0
    for back in range(first_run, last_run):
        run = first_run + last_run - 1 - back
        first, last = tl.load(runs + run), tl.load(runs + run + 1)
        row = tl.load(entries + first)
        kind = tl.load(kinds + row - base)
        own_red, own_green, own_blue, opacity = _colour(rows, row)
        grad_alpha = through * tl.load(above + run * wide + pixel)
        grad_c = opacity * grad_alpha
        c = none
        if (kind == NONZERO) | (kind == EVENODD):
            area = _area(rows, entries, first, last, y, x + 1.0)
            if kind == EVENODD:
                wave = _even_odd(area)
                c = tl.abs(wave)
                grad_area = grad_c * _sign(wave) * _sign(area)
            else:
                c = tl.minimum(tl.abs(area), 1.0)
                grad_area = tl.where(tl.abs(area) <= 1.0, grad_c * _sign(area), 0.0)
            if tl.max(tl.abs(grad_area), 0) > 0.0:
                for k in range(first, last):
                    slot = slots + tl.load(places + k) * ROW
                    _area_back(slot, rows, tl.load(entries + k), y, x + 1.0, grad_area)
        else:
            depth, r, cut, winner = _stroke(rows, bends, kinds, entries, base, first, last, px, py)
            outer, inner = depth + 0.5, depth + 0.5 - 2.0 * r
            band = tl.clamp(outer, 0.0, 1.0) - tl.clamp(inner, 0.0, 1.0)
            c = band * cut
            outer = tl.where((outer >= 0.0) & (outer <= 1.0), grad_c * cut, 0.0)
            inner = tl.where((inner >= 0.0) & (inner <= 1.0), grad_c * cut, 0.0)
            grad_cut = grad_c * band
            for k in range(first, last):
                entry = tl.load(entries + k)
                own = tl.load(kinds + entry - base)
                felt = (outer != 0.0) | (inner != 0.0) | ((own == BUTT) & (grad_cut != 0.0))
                won = felt & (winner == k)
                if tl.max(won.to(tl.int32), 0) > 0:
                    _stroke_back(
                        slots + tl.load(places + k) * ROW, rows, bends, entry, own, px, py,
                        tl.where(won, inner - outer, 0.0), tl.where(won, inner + outer, 0.0),
                        tl.where(won, grad_cut, 0.0),
                    )  # fmt: skip
        # The colour is the whole run's: its sums go to the first entry.
        slot = slots + tl.load(places + first) * ROW
        seen = through * opacity * c
        tl.store(slot + 6, tl.sum(grad_red * seen, 0))
        tl.store(slot + 7, tl.sum(grad_green * seen, 0))
        tl.store(slot + 8, tl.sum(grad_blue * seen, 0))
        tl.store(slot + 9, tl.sum(grad_alpha * c, 0))
        through *= 1.0 - opacity * c
    tl.store(tile_background + 3 * tile, tl.sum(grad_red * through, 0))
    tl.store(tile_background + 3 * tile + 1, tl.sum(grad_green * through, 0))
    tl.store(tile_background + 3 * tile + 2, tl.sum(grad_blue * through, 0))


@triton.jit
def _sum_slots(
    slots,  # fp32 [E, 10]
    row_slots,  # int64 [B S + 1]
    grad_rows,  # fp32 [B S, 10], written
):
    """Add up the slots of one row, always in the same order."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, TILE)[None, :]
    line = tl.arange(0, TILE)[:, None].to(tl.int64)
    end = tl.load(row_slots + row + 1)
    total = tl.zeros([TILE, TILE], tl.float32)
    for at in range(tl.load(row_slots + row), end, TILE):
        total += tl.load(slots + (at + line) * ROW + column, mask=(at + line < end) & (column < ROW), other=0.0)
    tl.store(grad_rows + row * ROW + tl.arange(0, TILE), tl.sum(total, 0), mask=tl.arange(0, TILE) < ROW)
