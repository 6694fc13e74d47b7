"""The stroke renderer on a CPU, in Numba: what reference.py computes, in float32, with gradients by hand.

`_prepare` cuts the curves into pieces and gives every tile of 16 x 16 pixels the ordered list of what it needs:

    piece    a chord of a stroke, or an edge of a filled area; in float64, of which a tile takes what it needs from its
             own origin, so that float32 is enough for its pixels however large the picture is
    entry    one piece in one tile, or one backdrop: what the edges left of the tile add to each of its rows
    run      the entries of one shape in one tile

`_paint` draws tiles. `_unpaint` walks every tile twice: with G the gradient that comes in, out_i the picture up to run
i, alpha_i its opacity times its coverage, T_i = prod over j > i of (1 - alpha_j) what lies over it,

    d loss / d alpha_i = T_i  G . (colour_i - out_{i-1})

The first walk paints and keeps the dot product, the second goes from the top down and knows T_i: nothing is divided by
1 - alpha. Every entry and every run has gradients of its own, and `_gather` adds them up in their order: the same bits
every time, with any number of threads.

The area of a filled shape inside a pixel changes only with the part of its outline inside the pixel. Where an edge from
a to b runs through the pixel for u in u0..u1, at a + u (b - a), and its place there moves by delta(u),

    d A = int_{u0}^{u1} (delta_y (b - a)_x - delta_x (b - a)_y) du        delta(u) = (1 - u) delta_a + u delta_b

The kernels let go of the GIL; tiles are shared out to as many threads as torch uses. Compiled code is kept beside this
file, or in the user's cache directory where that cannot be written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdsedit.render.strokes.layout import (
    EVENODD,
    MAX_CHORDS,
    MIN_CHORDS,
    STROKE,
    TOLERANCE,
    Drawing,
    Topology,
    check_size,
)
from sdsedit.render.strokes.reference import SHORT

SIDE = 16  # of a tile, pixels
ROUND, BUTT, EDGE = 0, 1, 2  # kinds of piece; a closed contour of a stroke has no ends and is ROUND
AX, AY, BX, BY, RA, RB, TX, TY, LENGTH, BEFORE_X, BEFORE_Y, AFTER_X, AFTER_Y = range(13)  # columns of Plan.geometry
COLUMNS = 13
FAR = 1e9  # pixels, stands for infinity along a chord
NEVER = np.float32(1e30)  # more than any distance
HALF, ZERO, ONE, TWO = np.float32(0.5), np.float32(0), np.float32(1), np.float32(2)
CENTRES = np.arange(SIDE, dtype=np.float32) + HALF
PARALLEL = 2000  # entries and tiles; with fewer, other threads cost more than they save
CHUNKS = 4  # of tiles for each thread


def render(drawing: Drawing, height: int, width: int) -> Tensor:  # [B, 3, height, width] in 0..1, float32
    """Draw. The numbers must be finite. Memory in backward: 3 KiB for each shape of the busiest tile and thread."""
    check_size(height, width)
    if drawing.points.device.type != "cpu" or drawing.points.dtype != torch.float32:
        raise ValueError(
            "The CPU stroke renderer draws float32 tensors on the CPU; "
            f"got {drawing.points.dtype} on {drawing.points.device}."
        )
    return _Render.apply(
        drawing.points, drawing.widths, drawing.colours, drawing.background, drawing.topology, height, width
    )


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,  # [B, P, 2]
        widths: Tensor,  # [B, N, 2]
        colours: Tensor,  # [B, N, 4]
        background: Tensor,  # [B, 3]
        topology: Topology,
        height: int,
        width: int,
    ) -> Tensor:
        tiles_y, tiles_x = -(-height // SIDE), -(-width // SIDE)
        plan = _prepare(
            _array(points), _array(widths), topology.shape_kinds, topology.shape_round, topology.contour_shape,
            topology.contour_cubics, topology.contour_closed, topology.cubic_points, tiles_y, tiles_x,
            (TOLERANCE, MIN_CHORDS, MAX_CHORDS, SHORT),
        )  # fmt: skip
        picture = torch.empty(points.shape[0], 3, height, width)
        inks, paper, out = _array(colours).reshape(-1, 4), _array(background), _array(picture)
        _share_out(plan, lambda start, stop: _paint(plan, start, stop, tiles_y, tiles_x, inks, paper, out))
        ctx.save_for_backward(colours, background)
        ctx.topology, ctx.plan = topology, plan
        return picture

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]  # [B, 3, H, W]
        topology, plan = ctx.topology, ctx.plan
        batch, _, height, width = grad.shape
        tiles_y, tiles_x = -(-height // SIDE), -(-width // SIDE)
        colours, background = ctx.saved_tensors
        inks, paper, g = _array(colours).reshape(-1, 4), _array(background), _array(grad)
        of_entries = np.zeros((len(plan.entries), 6))
        of_runs = np.empty((len(plan.run_shape), 4))
        of_tiles = np.empty((batch * tiles_y * tiles_x, 3))
        _share_out(
            plan,
            lambda start, stop: _unpaint(
                plan, start, stop, tiles_y, tiles_x, inks, paper, g, of_entries, of_runs, of_tiles
            ),
        )
        gradients = _gather(
            plan, batch, topology.points, len(topology), topology.contour_shape, topology.cubic_points,
            of_entries, of_runs, of_tiles,
        )  # fmt: skip
        return *(torch.from_numpy(each).float() for each in gradients), None, None, None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _share_out(plan: Plan, kernel: Callable[[int, int], None]) -> None:
    """Call kernel(start, stop) for ranges of tiles of about equal work, on as many threads as torch uses."""
    tiles = len(plan.tile_runs) - 1
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    if threads == 1 or len(plan.entries) + tiles < PARALLEL:
        kernel(0, tiles)
        return
    work = np.arange(tiles + 1) + 2 * plan.tile_runs + plan.run_first[plan.tile_runs]
    bounds = np.searchsorted(work, np.linspace(0, work[-1], CHUNKS * threads + 1)).tolist()
    bounds[0], bounds[-1] = 0, tiles
    chunks = iter(list(pairwise(bounds)))

    def run() -> None:
        for start, stop in chunks:  # a list's iterator gives each chunk to one thread only
            kernel(start, stop)

    others = [_threads(threads - 1).submit(run) for _ in range(threads - 1)]
    try:
        run()
    finally:
        wait(others)  # they write into our arrays
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="sdsedit-strokes")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_threads.cache_clear)  # a child has none of its parent's threads


def _compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        options.update(nogil=True, error_model="numpy")
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:  # no folder to be found that can be written: compile in every process
            return numba.njit(**options)(function)

    return compiled


class Plan(NamedTuple):
    """The pieces of all drawings of a batch and what each tile needs of them; tiles and shapes of drawing b come after
    those of drawing b - 1."""

    contour_first: np.ndarray  # int64 [C + 1], where each contour's vertices begin, in every drawing
    vertex_cubic: np.ndarray  # int32 [V]
    vertex_basis: np.ndarray  # float64 [V, 4], Bernstein weights
    vertex_along: np.ndarray  # float64 [V], place on the contour
    geometry: np.ndarray  # float64 [S, COLUMNS] of each piece: ends, half-widths; for chords unit tangent, length, and
    #                       the unit tangents of its neighbours in a butt stroke, 0 where there is none
    pieces: np.ndarray  # int32 [S, 4]: first vertex, last vertex, shape, kind
    backdrops: np.ndarray  # float32 [D, SIDE]
    entries: np.ndarray  # int32 [E], piece, or -1 - backdrop
    run_first: np.ndarray  # int64 [R + 1], first entry of each run
    run_shape: np.ndarray  # int32 [R]
    tile_runs: np.ndarray  # int64 [tiles + 1], first run of each tile
    kinds: np.ndarray  # int32 [N]
    rounds: np.ndarray  # bool [N]


# --- preparation, in float64 and by IEEE's rules: the numbers of chords must be those of layout.chord_counts ----------


@_compiled()
def _prepare(
    points, widths, kinds, rounds, contour_shape, contour_cubics, contour_closed, cubic_points, tiles_y, tiles_x, rules
):
    # The rules are an argument because compiled code is kept, with its constants, until this very file changes.
    tolerance, least, most, short = rules
    batch, shapes, contours = points.shape[0], len(kinds), len(contour_shape)
    first, cubic, basis, along = _vertices(points, contour_cubics, cubic_points, tolerance, least, most)
    count = len(along)
    v = np.zeros((batch * count, 2))
    for b in range(batch):
        for i in range(count):
            for j in range(4):
                at = cubic_points[cubic[i], j]
                v[b * count + i, 0] += basis[i, j] * points[b, at, 0]
                v[b * count + i, 1] += basis[i, j] * points[b, at, 1]

    geometry = np.zeros((batch * (count + contours), COLUMNS))
    pieces = np.empty((len(geometry), 4), np.int32)
    pairs = np.empty((2 * len(geometry) + 64, 3), np.int32)  # of tile, entry and shape, shape by shape
    backdrops = np.empty((0, SIDE), np.float32)
    s, n, d = 0, 0, 0  # pieces, pairs and backdrops so far
    for b in range(batch):
        tile = b * tiles_y * tiles_x
        contour = 0
        for k in range(shapes):
            piece, shape = s, b * shapes + k
            while contour < contours and contour_shape[contour] == k:
                start, stop = b * count + first[contour], b * count + first[contour + 1]
                if kinds[k] == STROKE:
                    butt = not (rounds[k] or contour_closed[contour])
                    half = widths[b, k, 0] / 2.0, widths[b, k, 1] / 2.0
                    s = _chords(v, along, start, stop, b * count, half, butt, short, shape, geometry, pieces, s)
                else:
                    s = _edges(v, start, stop, shape, geometry, pieces, s)
                contour += 1
            if kinds[k] == STROKE:
                for p in range(piece, s):
                    pairs, n = _touch_chord(geometry[p], pieces[p, 3], p, shape, tile, tiles_y, tiles_x, pairs, n)
            else:
                pairs, n, backdrops, d = _touch_area(
                    geometry, piece, s, shape, tile, tiles_y, tiles_x, pairs, n, backdrops, d
                )
    entries, run_first, run_shape, tile_runs = _sorted(pairs, n, batch * tiles_y * tiles_x)
    return Plan(
        first, cubic, basis, along, geometry, pieces, backdrops, entries, run_first, run_shape, tile_runs, kinds, rounds
    )


@_compiled()
def _vertices(points, contour_cubics, cubic_points, tolerance, least, most):
    """layout.chord_counts and layout.chords."""
    cubics = len(cubic_points)
    counts = np.empty(cubics, np.int64)
    total = 0
    for k in range(cubics):
        reach = 0.0
        for b in range(points.shape[0]):
            for j in range(2):
                square = 0.0
                for axis in range(2):
                    p = np.float64(points[b, cubic_points[k, j], axis])
                    q = np.float64(points[b, cubic_points[k, j + 1], axis])
                    r = np.float64(points[b, cubic_points[k, j + 2], axis])
                    bend = p - 2 * q + r
                    square += bend * bend
                reach = max(reach, math.sqrt(square))
        counts[k] = int(min(max(np.ceil(math.sqrt(0.75 * reach / tolerance)), least), most))
        total += counts[k]
    total += len(contour_cubics)
    first = np.zeros(len(contour_cubics) + 1, np.int64)
    cubic, basis, along = np.empty(total, np.int32), np.empty((total, 4)), np.empty(total)
    k, i = 0, 0
    for c in range(len(contour_cubics)):
        for nth in range(contour_cubics[c]):
            for step in range(0 if nth == 0 else 1, counts[k] + 1):
                t = step / counts[k]
                s = 1 - t
                basis[i, 0], basis[i, 1], basis[i, 2], basis[i, 3] = s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t
                cubic[i] = k
                along[i] = (nth + t) / contour_cubics[c]
                i += 1
            k += 1
        first[c + 1] = i
    return first, cubic, basis, along


@_compiled()
def _chords(v, along, start, stop, origin, half, butt, short, shape, geometry, pieces, s):
    """Pieces of one contour of a stroke, from number s on; returns the next number."""
    begin = s
    for i in range(start, stop - 1):
        x, y = v[i + 1, 0] - v[i, 0], v[i + 1, 1] - v[i, 1]
        length = math.hypot(x, y)
        if butt and length < short:
            continue
        g = geometry[s]
        g[AX], g[AY], g[BX], g[BY] = v[i, 0], v[i, 1], v[i + 1, 0], v[i + 1, 1]
        g[RA] = half[0] + (half[1] - half[0]) * along[i - origin]
        g[RB] = half[0] + (half[1] - half[0]) * along[i + 1 - origin]
        if length > 0:
            g[TX], g[TY], g[LENGTH] = x / length, y / length, length
        if butt and s > begin:
            g[BEFORE_X], g[BEFORE_Y] = geometry[s - 1, TX], geometry[s - 1, TY]
            geometry[s - 1, AFTER_X], geometry[s - 1, AFTER_Y] = g[TX], g[TY]
        pieces[s, 0], pieces[s, 1], pieces[s, 2], pieces[s, 3] = i, i + 1, shape, BUTT if butt else ROUND
        s += 1
    return s


@_compiled()
def _edges(v, start, stop, shape, geometry, pieces, s):
    """Pieces of one contour of a filled area, the edge that closes it included."""
    for i in range(start, stop):
        j = i + 1 if i + 1 < stop else start
        g = geometry[s]
        g[AX], g[AY], g[BX], g[BY] = v[i, 0], v[i, 1], v[j, 0], v[j, 1]
        pieces[s, 0], pieces[s, 1], pieces[s, 2], pieces[s, 3] = i, j, shape, EDGE
        s += 1
    return s


@_compiled()
def _room(rows, used, more):
    """rows with room for `more` after the first `used`."""
    if used + more <= len(rows):
        return rows
    longer = np.empty((max(2 * len(rows), used + more), rows.shape[1]), rows.dtype)
    for i in range(used):
        for j in range(rows.shape[1]):
            longer[i, j] = rows[i, j]
    return longer


@_compiled()
def _within(x, low, high):
    """x as an integer; clamped before, for a float may be larger than any integer. NaN gives low."""
    return high if x >= high else (int(x) if x > low else low)


@_compiled()
def _touch_chord(g, kind, piece, shape, tile, tiles_y, tiles_x, pairs, n):
    """Add the tiles with a pixel's middle in reach of a chord."""
    reach = max(g[RA], g[RB]) + (1.0 if kind == BUTT else 0.5)
    last = SIDE - 0.5  # middle of a tile's last pixel
    ty0 = _within(np.ceil((min(g[AY], g[BY]) - reach - last) / SIDE), 0, tiles_y)
    ty1 = _within(np.floor((max(g[AY], g[BY]) + reach - 0.5) / SIDE), -1, tiles_y - 1)
    left, right = min(g[AX], g[BX]), max(g[AX], g[BX])
    for ty in range(ty0, ty1 + 1):
        if ty1 > ty0 and g[TY] != 0:  # the part of the chord in reach of this row of tiles
            s0 = (SIDE * ty + 0.5 - reach - g[AY]) / g[TY]
            s1 = (SIDE * ty + last + reach - g[AY]) / g[TY]
            s0, s1 = max(min(s0, s1), 0.0), min(max(s0, s1), g[LENGTH])
            x0, x1 = g[AX] + s0 * g[TX], g[AX] + s1 * g[TX]
            left, right = min(x0, x1), max(x0, x1)
        tx0 = _within(np.ceil((left - reach - last) / SIDE), 0, tiles_x)
        tx1 = _within(np.floor((right + reach - 0.5) / SIDE), -1, tiles_x - 1)
        pairs = _room(pairs, n, max(tx1 - tx0 + 1, 0))
        for tx in range(tx0, tx1 + 1):
            pairs[n, 0], pairs[n, 1], pairs[n, 2] = tile + ty * tiles_x + tx, piece, shape
            n += 1
    return pairs, n


@_compiled()
def _clamp(x, low, high):
    return min(max(x, low), high)


@_compiled()
def _touch_area(geometry, begin, end, shape, tile, tiles_y, tiles_x, pairs, n, backdrops, d):
    """Add the tiles that edges of an area pass through, and backdrops right of them."""
    left, top, right, bottom = math.inf, math.inf, -math.inf, -math.inf
    for p in range(begin, end):
        left, right = min(left, geometry[p, AX]), max(right, geometry[p, AX])
        top, bottom = min(top, geometry[p, AY]), max(bottom, geometry[p, AY])
    ty0, ty1 = _within(np.floor(top / SIDE), 0, tiles_y), _within(np.floor(bottom / SIDE), -1, tiles_y - 1)
    tx0, tx1 = _within(np.floor(left / SIDE), 0, tiles_x), _within(np.floor(right / SIDE), -1, tiles_x - 1)
    if ty1 < ty0 or tx1 < tx0:
        return pairs, n, backdrops, d

    steps = np.zeros((ty1 - ty0 + 1, tx1 - tx0 + 1, SIDE))  # by how much a backdrop differs from the one to its left
    for p in range(begin, end):
        ax, ay, bx, by = geometry[p, AX], geometry[p, AY], geometry[p, BX], geometry[p, BY]
        lean = (bx - ax) / (by - ay) if by != ay else 0.0
        begin_y = _within(np.floor(min(ay, by) / SIDE), ty0, ty1 + 1)
        for ty in range(begin_y, _within(np.floor(max(ay, by) / SIDE), ty0 - 1, ty1) + 1):
            y0, y1 = _clamp(ay, SIDE * ty, SIDE * ty + SIDE), _clamp(by, SIDE * ty, SIDE * ty + SIDE)
            # A part that is the whole edge must keep its ends also where it is level.
            x0 = ax if y0 == ay else ax + (y0 - ay) * lean
            x1 = bx if y1 == by else ax + (y1 - ay) * lean
            column = np.floor(max(x0, x1) / SIDE)
            pairs = _room(pairs, n, tiles_x)
            begin_x = _within(np.floor(min(x0, x1) / SIDE), 0, tiles_x)
            for tx in range(begin_x, _within(column, -1, tiles_x - 1) + 1):
                pairs[n, 0], pairs[n, 1], pairs[n, 2] = tile + ty * tiles_x + tx, p, shape
                n += 1
            right_of = _within(column + 1, tx0, tx1 + 1)
            if right_of <= tx1:
                for row in range(SIDE):
                    y = SIDE * ty + row
                    steps[ty - ty0, right_of - tx0, row] += _clamp(y1, y, y + 1) - _clamp(y0, y, y + 1)

    pairs = _room(pairs, n, steps.shape[0] * steps.shape[1])
    for ty in range(ty0, ty1 + 1):
        for tx in range(tx0, tx1 + 1):
            largest = 0.0
            for row in range(SIDE):
                if tx > tx0:
                    steps[ty - ty0, tx - tx0, row] += steps[ty - ty0, tx - tx0 - 1, row]
                largest = max(largest, abs(steps[ty - ty0, tx - tx0, row]))
            if largest > 1e-7:
                backdrops = _room(backdrops, d, 1)
                for row in range(SIDE):
                    backdrops[d, row] = steps[ty - ty0, tx - tx0, row]
                pairs[n, 0], pairs[n, 1], pairs[n, 2] = tile + ty * tiles_x + tx, -1 - d, shape
                n += 1
                d += 1
    return pairs, n, backdrops, d


@_compiled()
def _sorted(pairs, n, tiles):
    """Entries tile by tile, in the order of shapes inside one, and their runs."""
    first = np.zeros(tiles + 1, np.int64)
    for i in range(n):
        first[pairs[i, 0] + 1] += 1
    for tile in range(tiles):
        first[tile + 1] += first[tile]
    entries, shapes, filled = np.empty(n, np.int32), np.empty(n, np.int32), np.zeros(tiles, np.int64)
    for i in range(n):
        at = first[pairs[i, 0]] + filled[pairs[i, 0]]
        entries[at], shapes[at] = pairs[i, 1], pairs[i, 2]
        filled[pairs[i, 0]] += 1
    run_first, run_shape, tile_runs = np.empty(n + 1, np.int64), np.empty(n, np.int32), np.empty(tiles + 1, np.int64)
    runs = 0
    for tile in range(tiles):
        tile_runs[tile] = runs
        for i in range(first[tile], first[tile + 1]):
            if i == first[tile] or shapes[i] != shapes[i - 1]:
                run_first[runs], run_shape[runs] = i, shapes[i]
                runs += 1
    tile_runs[tiles], run_first[runs] = runs, n
    return entries, run_first[: runs + 1], run_shape[:runs], tile_runs


# --- the coverage of one shape in one tile ----------------------------------------------------------------------------


@_compiled(fastmath=True)
def _cover(plan, run, x, y, scratch, c, who):
    """Write the coverage c of one shape in the tile with the corner (x, y), and `who` it changes with: of a stroke the
    entry of the nearest chord, -1 where c is level; of an area the sign of dc / dA. Both [SIDE, SIDE]; returns the
    first row with something in it and the one behind the last, other rows are not written."""
    begin, end = plan.run_first[run], plan.run_first[run + 1]
    shape = plan.run_shape[run] % len(plan.kinds)
    if plan.kinds[shape] != STROKE:
        area = scratch[0]
        _area(plan, begin, end, x, y, area)
        for j in range(SIDE):
            for i in range(SIDE):
                size = abs(area[j, i])
                sign = 1 if area[j, i] > ZERO else (-1 if area[j, i] < ZERO else 0)
                if plan.kinds[shape] == EVENODD:
                    rest = size - TWO * np.floor(size * HALF)
                    c[j, i] = min(rest, TWO - rest)
                    who[j, i] = sign if rest < ONE else -sign
                else:
                    c[j, i] = min(size, ONE)
                    who[j, i] = sign if size <= ONE else 0
        return 0, SIDE

    e, r, gap, cut = scratch[0], scratch[1], scratch[2], scratch[3]
    butt = not plan.rounds[shape]
    for j in range(SIDE):
        for i in range(SIDE):
            e[j, i], r[j, i], gap[j, i], cut[j, i] = NEVER, ZERO, NEVER, ONE
    first, last = SIDE, 0
    for k in range(begin, end):
        piece = plan.entries[k]
        g = plan.geometry[piece]
        j0, j1 = _rows(g, max(g[RA], g[RB]) + (1.0 if butt else 0.5), x, y)
        if j0 < j1:
            first, last = min(first, j0), max(last, j1)
            if butt:
                _nearer_butt(g, plan.pieces[piece, 3] == BUTT, k, x, y, j0, j1, e, r, gap, cut, who)
            else:
                _nearer(g, k, x, y, j0, j1, e, r, who)
    for j in range(first, last):
        for i in range(SIDE):
            away = gap[j, i] if butt else e[j, i]
            outer, inner = HALF - away, HALF - away - TWO * r[j, i]  # 1/2 + r - d and 1/2 - r - d
            share = min(max(outer, ZERO), ONE) - min(max(inner, ZERO), ONE)
            c[j, i] = share * cut[j, i]
            level = ((outer < ZERO) | (outer > ONE)) & ((inner < ZERO) | (inner > ONE))
            if level & (cut[j, i] == ONE):
                who[j, i] = -1
    return first, last


@_compiled(fastmath=True)
def _rows(g, reach, x, y):
    """The first row of a tile that a chord reaches, and the one behind the last."""
    ay, by = g[AY] - y, g[BY] - y
    if g[LENGTH] > SIDE and abs(g[TX]) > 1e-6:  # only the part in reach of the tile's columns
        s0, s1 = (x - reach - g[AX]) / g[TX], (x + SIDE + reach - g[AX]) / g[TX]
        s0, s1 = max(min(s0, s1), 0.0), min(max(s0, s1), g[LENGTH])
        ay, by = g[AY] - y + s0 * g[TY], g[AY] - y + s1 * g[TY]
    return _within(np.ceil(min(ay, by) - reach - 0.5), 0, SIDE), _within(np.floor(max(ay, by) + reach + 0.5), 0, SIDE)


@_compiled(fastmath=True)
def _local(g, x, y):
    """A chord as a tile sees it: its place nearest to the tile's middle, from the tile's corner; how far from there its
    start and its end are along it; half its width there and the change of that a pixel."""
    middle_x, middle_y = x + SIDE / 2, y + SIDE / 2
    s = _clamp((middle_x - g[AX]) * g[TX] + (middle_y - g[AY]) * g[TY], 0.0, g[LENGTH])
    taper = (g[RB] - g[RA]) / g[LENGTH] if g[LENGTH] > 0 else 0.0
    return (
        np.float32(_clamp(g[AX] + s * g[TX] - x, -FAR, FAR)),
        np.float32(_clamp(g[AY] + s * g[TY] - y, -FAR, FAR)),
        np.float32(max(-s, -FAR)),
        np.float32(min(g[LENGTH] - s, FAR)),
        np.float32(g[RA] + s * taper),
        np.float32(taper),
    )


@_compiled(fastmath=True)
def _nearer(g, k, x, y, j0, j1, e, r, who):
    """Where the chord of entry k is nearer than those before, put it down."""
    ox, oy, start, end, half, taper = _local(g, x, y)
    tx, ty = np.float32(g[TX]), np.float32(g[TY])
    name = np.int32(k)
    for j in range(j0, j1):
        py = CENTRES[j] - oy
        for i in range(SIDE):
            px = CENTRES[i] - ox
            s = min(max(px * tx + py * ty, start), end)
            dx, dy = px - s * tx, py - s * ty
            radius = half + s * taper
            value = np.sqrt(dx * dx + dy * dy) - radius
            better = value < e[j, i]
            e[j, i] = value if better else e[j, i]
            r[j, i] = radius if better else r[j, i]
            who[j, i] = name if better else who[j, i]


@_compiled(fastmath=True)
def _nearer_butt(g, open_, k, x, y, j0, j1, e, r, gap, cut, who):
    """The same for a stroke with butt caps; open_: this contour has ends."""
    ox, oy, start, end, half, taper = _local(g, x, y)
    tx, ty = np.float32(g[TX]), np.float32(g[TY])
    before_x, before_y = np.float32(g[BEFORE_X]), np.float32(g[BEFORE_Y])
    after_x, after_y = np.float32(g[AFTER_X]), np.float32(g[AFTER_Y])
    first = open_ and before_x == ZERO and before_y == ZERO
    last = open_ and after_x == ZERO and after_y == ZERO
    from_a = -start * (tx * before_x + ty * before_y)  # (o - a) . before
    from_b = -end * (tx * after_x + ty * after_y)
    name = np.int32(k)
    for j in range(j0, j1):
        py = CENTRES[j] - oy
        for i in range(SIDE):
            px = CENTRES[i] - ox
            free = px * tx + py * ty
            s = min(max(free, start), end)
            radius = half + s * taper
            if (first and free < start) or (last and free > end):
                s = free
            dx, dy = px - s * tx, py - s * ty
            distance = np.sqrt(dx * dx + dy * dy) - radius
            value, share = distance, ONE
            if first:
                value = max(value, start - free)
                share = min(max(free - start + HALF, ZERO), ONE)
            if last:
                value = max(value, free - end)
                share -= min(max(free - end + HALF, ZERO), ONE)
            inside = (free < start and px * before_x + py * before_y + from_a < ZERO) or (
                free > end and px * after_x + py * after_y + from_b > ZERO
            )
            if value < e[j, i] and not inside:
                e[j, i], r[j, i], gap[j, i], cut[j, i], who[j, i] = value, radius, distance, share, name


@_compiled(fastmath=True)
def _area(plan, begin, end, x, y, area):
    """Write the signed area of a filled shape in each pixel of a tile."""
    steps = np.zeros((SIDE, SIDE + 1), np.float32)  # by how much a pixel differs from the one to its left
    for k in range(begin, end):
        piece = plan.entries[k]
        if piece < 0:
            for j in range(SIDE):
                steps[j, 0] += plan.backdrops[-1 - piece, j]
        else:
            _edge(plan.geometry[piece], x, y, steps)
    for j in range(SIDE):
        total = ZERO
        for i in range(SIDE):
            total += steps[j, i]
            area[j, i] = total


@_compiled(fastmath=True)
def _edge(g, x, y, steps):
    ax, ay, bx, by = g[AX] - x, g[AY] - y, g[BX] - x, g[BY] - y
    if abs(by - ay) < 1e-12:
        return
    lean = (bx - ax) / (by - ay)
    for j in range(_within(np.floor(min(ay, by)), 0, SIDE), _within(np.ceil(max(ay, by)), 0, SIDE)):
        y0, y1 = _clamp(ay, j, j + 1), _clamp(by, j, j + 1)
        x0, x1 = ax + (y0 - ay) * lean, ax + (y1 - ay) * lean
        x0, x1 = min(x0, x1), max(x0, x1)
        if x1 <= 0:
            steps[j, 0] += np.float32(y1 - y0)
        elif x0 < SIDE:
            density = (y1 - y0) / (x1 - x0) if x1 - x0 > 1e-9 else 0.0  # height for each pixel to the right
            if x0 < 0:
                steps[j, 0] += np.float32(-x0 * density)
            column = int(max(x0, 0.0))
            for i in range(column, max(column + 1, _within(np.ceil(x1), 1, SIDE))):
                low, high = max(x0, np.float64(i)), min(x1, i + 1.0)
                height = (high - low) * density if density != 0 else y1 - y0
                left = (low + high) / 2 - i  # this share of the pixel lies left of the edge
                steps[j, i] += np.float32(height * (1 - left))
                steps[j, i + 1] += np.float32(height * left)


# --- pictures and gradients -------------------------------------------------------------------------------------------


@_compiled(fastmath=True)
def _paint(plan, start, stop, tiles_y, tiles_x, inks, paper, picture):
    """Draw the tiles start..stop - 1; inks [B N, 4], paper [B, 3], picture [B, 3, H, W]."""
    scratch, c = np.empty((4, SIDE, SIDE), np.float32), np.empty((SIDE, SIDE), np.float32)
    who, out = np.empty((SIDE, SIDE), np.int32), np.empty((3, SIDE, SIDE), np.float32)
    for tile in range(start, stop):
        b, ty, tx = tile // (tiles_y * tiles_x), tile // tiles_x % tiles_y, tile % tiles_x
        high, wide = min(SIDE, picture.shape[2] - SIDE * ty), min(SIDE, picture.shape[3] - SIDE * tx)
        part = picture[b, :, SIDE * ty : SIDE * ty + high, SIDE * tx : SIDE * tx + wide]
        if plan.tile_runs[tile] == plan.tile_runs[tile + 1]:
            for channel in range(3):
                for j in range(high):
                    for i in range(wide):
                        part[channel, j, i] = paper[b, channel]
            continue
        for channel in range(3):
            for j in range(SIDE):
                for i in range(SIDE):
                    out[channel, j, i] = paper[b, channel]
        for run in range(plan.tile_runs[tile], plan.tile_runs[tile + 1]):
            j0, j1 = _cover(plan, run, np.float64(SIDE * tx), np.float64(SIDE * ty), scratch, c, who)
            ink = inks[plan.run_shape[run]]
            opacity = ink[3]
            for channel in range(3):
                colour = ink[channel]
                for j in range(j0, j1):
                    for i in range(SIDE):
                        out[channel, j, i] += opacity * c[j, i] * (colour - out[channel, j, i])
        for channel in range(3):
            for j in range(high):
                for i in range(wide):
                    part[channel, j, i] = out[channel, j, i]


@_compiled(fastmath=True)
def _unpaint(plan, start, stop, tiles_y, tiles_x, inks, paper, grad, of_entries, of_runs, of_tiles):
    """Gradients of the tiles start..stop - 1, written where no other tile writes: of_entries [E, 6] (a, b and both
    half-widths), of_runs [R, 4] (ink), of_tiles [tiles, 3] (paper); grad [B, 3, H, W]."""
    most = 0
    for tile in range(start, stop):
        most = max(most, plan.tile_runs[tile + 1] - plan.tile_runs[tile])
    covers, dots = np.empty((most, SIDE, SIDE), np.float32), np.empty((most, SIDE, SIDE), np.float32)
    whose, rows = np.empty((most, SIDE, SIDE), np.int32), np.empty((most, 2), np.int64)
    scratch, through = np.empty((4, SIDE, SIDE), np.float32), np.empty((SIDE, SIDE), np.float32)
    out, g = np.empty((3, SIDE, SIDE), np.float32), np.empty((3, SIDE, SIDE), np.float32)
    for tile in range(start, stop):
        b, ty, tx = tile // (tiles_y * tiles_x), tile // tiles_x % tiles_y, tile % tiles_x
        x, y = np.float64(SIDE * tx), np.float64(SIDE * ty)
        high, wide = min(SIDE, grad.shape[2] - SIDE * ty), min(SIDE, grad.shape[3] - SIDE * tx)
        part = grad[b, :, SIDE * ty : SIDE * ty + high, SIDE * tx : SIDE * tx + wide]
        first, last = plan.tile_runs[tile], plan.tile_runs[tile + 1]
        if first == last:
            for channel in range(3):
                total = ZERO
                for j in range(high):
                    for i in range(wide):
                        total += part[channel, j, i]
                of_tiles[tile, channel] = total
            continue
        for channel in range(3):
            for j in range(SIDE):
                for i in range(SIDE):
                    out[channel, j, i] = paper[b, channel]
                    g[channel, j, i] = ZERO
            for j in range(high):
                for i in range(wide):
                    g[channel, j, i] = part[channel, j, i]
        for run in range(first, last):
            c, dot = covers[run - first], dots[run - first]
            j0, j1 = _cover(plan, run, x, y, scratch, c, whose[run - first])
            rows[run - first, 0], rows[run - first, 1] = j0, j1
            ink = inks[plan.run_shape[run]]
            red, green, blue, opacity = ink[0], ink[1], ink[2], ink[3]
            for j in range(j0, j1):
                for i in range(SIDE):
                    more_red, more_green, more_blue = red - out[0, j, i], green - out[1, j, i], blue - out[2, j, i]
                    dot[j, i] = g[0, j, i] * more_red + g[1, j, i] * more_green + g[2, j, i] * more_blue
                    alpha = opacity * c[j, i]
                    out[0, j, i] += alpha * more_red
                    out[1, j, i] += alpha * more_green
                    out[2, j, i] += alpha * more_blue
        for j in range(SIDE):
            for i in range(SIDE):
                through[j, i] = ONE
        for run in range(last - 1, first - 1, -1):
            c, dot, who = covers[run - first], dots[run - first], whose[run - first]
            j0, j1 = rows[run - first, 0], rows[run - first, 1]
            opacity = inks[plan.run_shape[run], 3]
            of_red, of_green, of_blue, of_opacity = ZERO, ZERO, ZERO, ZERO
            for j in range(j0, j1):
                for i in range(SIDE):
                    seen = through[j, i] * c[j, i]
                    of_red += g[0, j, i] * seen
                    of_green += g[1, j, i] * seen
                    of_blue += g[2, j, i] * seen
                    of_opacity += dot[j, i] * seen
                    dot[j, i] *= through[j, i] * opacity  # now the gradient of c
                    through[j, i] -= opacity * seen
            of_runs[run, 0], of_runs[run, 1], of_runs[run, 2] = of_red * opacity, of_green * opacity, of_blue * opacity
            of_runs[run, 3] = of_opacity
            if plan.kinds[plan.run_shape[run] % len(plan.kinds)] == STROKE:
                for j in range(j0, j1):
                    for i in range(SIDE):
                        if who[j, i] >= 0 and dot[j, i] != ZERO:
                            entry = who[j, i]
                            piece = plan.entries[entry]
                            _chord_back(
                                plan.geometry[piece], plan.pieces[piece, 3] == BUTT, x + i + 0.5, y + j + 0.5,
                                np.float64(dot[j, i]), of_entries[entry],
                            )  # fmt: skip
            else:
                for j in range(SIDE):
                    for i in range(SIDE):
                        dot[j, i] *= who[j, i]
                for entry in range(plan.run_first[run], plan.run_first[run + 1]):
                    piece = plan.entries[entry]
                    if piece >= 0:
                        _edge_back(plan.geometry[piece], x, y, dot, of_entries[entry])
        for channel in range(3):
            total = ZERO
            for j in range(SIDE):
                for i in range(SIDE):
                    total += through[j, i] * g[channel, j, i]
            of_tiles[tile, channel] = total


@_compiled(fastmath=True)
def _chord_back(g, butt, x, y, grad, slot):
    """Add the gradient that one pixel, with its middle at (x, y), sends to its nearest chord."""
    px, py, tx, ty, l = x - g[AX], y - g[AY], g[TX], g[TY], g[LENGTH]
    free = px * tx + py * ty
    s = _clamp(free, 0.0, l)
    over = 1 / l if l > 0 else 0.0
    radius = g[RA] + s * over * (g[RB] - g[RA])
    first = butt and g[BEFORE_X] == 0 and g[BEFORE_Y] == 0
    last = butt and g[AFTER_X] == 0 and g[AFTER_Y] == 0
    place = free if (first and free < 0) or (last and free > l) else s
    nx, ny = px - place * tx, py - place * ty
    d = math.sqrt(nx * nx + ny * ny)
    if butt:  # c = (what a round stroke has) x cut, and cut changes with the places of a and b along the chord
        low, high = free + 0.5, free - l + 0.5
        cut = (_clamp(low, 0.0, 1.0) if first else 1.0) - (_clamp(high, 0.0, 1.0) if last else 0.0)
        band = _clamp(radius - d + 0.5, 0.0, 1.0) - _clamp(0.5 - radius - d, 0.0, 1.0)
        along_a = grad * band if first and 0 <= low <= 1 else 0.0  # of (p - a) . t
        along_b = -grad * band if last and 0 <= high <= 1 else 0.0  # of (p - b) . t
        turn = (along_a + along_b) * over
        ux, uy = px - free * tx, py - free * ty
        slot[0] -= along_a * tx + turn * ux
        slot[1] -= along_a * ty + turn * uy
        slot[2] += turn * ux - along_b * tx
        slot[3] += turn * uy - along_b * ty
        grad *= cut
    outer = grad if abs(radius - d) <= 0.5 else 0.0
    inner = grad if abs(radius + d) <= 0.5 else 0.0
    of_d, of_r = inner - outer, inner + outer
    if d > 0:
        nx, ny = nx * of_d / d, ny * of_d / d
        slot[0] -= (1 - place * over) * nx
        slot[1] -= (1 - place * over) * ny
        slot[2] -= place * over * nx
        slot[3] -= place * over * ny
    slot[4] += (1 - s * over) * of_r
    slot[5] += s * over * of_r
    if 0 < free < l and g[RA] != g[RB]:  # the place changes r, not d
        of_u = of_r * (g[RB] - g[RA]) * over
        slot[0] += of_u * ((2 * s * tx - px) * over - tx)
        slot[1] += of_u * ((2 * s * ty - py) * over - ty)
        slot[2] += of_u * (px - 2 * s * tx) * over
        slot[3] += of_u * (py - 2 * s * ty) * over


@_compiled(fastmath=True)
def _edge_back(g, x, y, grad, slot):
    """Add the gradient that the pixels of the tile with the corner (x, y) send to an edge; grad is that of A."""
    ax, ay = g[AX] - x, g[AY] - y
    dx, dy = g[BX] - g[AX], g[BY] - g[AY]
    to_a, to_b = 0.0, 0.0
    for j in range(_within(np.floor(min(ay, ay + dy)), 0, SIDE), _within(np.floor(max(ay, ay + dy)) + 1, 0, SIDE)):
        u0, u1 = _part(ay, dy, j, 0.0, 1.0)
        if u1 <= u0:
            continue
        x0, x1 = ax + u0 * dx, ax + u1 * dx
        for i in range(_within(np.floor(min(x0, x1)), 0, SIDE), _within(np.floor(max(x0, x1)) + 1, 0, SIDE)):
            low, high = _part(ax, dx, i, u0, u1)
            if high > low:
                at_b = grad[j, i] * (high - low) * (low + high) / 2
                to_b += at_b
                to_a += grad[j, i] * (high - low) - at_b
    slot[0] -= to_a * dy
    slot[1] += to_a * dx
    slot[2] -= to_b * dy
    slot[3] += to_b * dx


@_compiled(fastmath=True)
def _part(a, step, cell, low, high):
    """The part of low..high where a + u step lies in cell..cell + 1."""
    if abs(step) < 1e-12:
        return low, high
    u0, u1 = (cell - a) / step, (cell + 1 - a) / step
    return max(low, min(u0, u1)), min(high, max(u0, u1))


@_compiled()
def _gather(plan, batch, points, shapes, contour_shape, cubic_points, of_entries, of_runs, of_tiles):
    """Gradients of points, widths, colours and background, summed in a fixed order."""
    count = len(plan.vertex_along)
    of_vertices = np.zeros((batch * count, 3))  # x, y, half-width
    for k in range(len(plan.entries)):
        piece = plan.entries[k]
        if piece >= 0:
            a, b = plan.pieces[piece, 0], plan.pieces[piece, 1]
            of_vertices[a, 0] += of_entries[k, 0]
            of_vertices[a, 1] += of_entries[k, 1]
            of_vertices[a, 2] += of_entries[k, 4]
            of_vertices[b, 0] += of_entries[k, 2]
            of_vertices[b, 1] += of_entries[k, 3]
            of_vertices[b, 2] += of_entries[k, 5]
    of_points, of_widths = np.zeros((batch, points, 2)), np.zeros((batch, shapes, 2))
    for b in range(batch):
        for contour in range(len(contour_shape)):
            shape = contour_shape[contour]
            for i in range(plan.contour_first[contour], plan.contour_first[contour + 1]):
                of = of_vertices[b * count + i]
                for j in range(4):
                    at = cubic_points[plan.vertex_cubic[i], j]
                    of_points[b, at, 0] += plan.vertex_basis[i, j] * of[0]
                    of_points[b, at, 1] += plan.vertex_basis[i, j] * of[1]
                of_widths[b, shape, 0] += (1 - plan.vertex_along[i]) * of[2] / 2
                of_widths[b, shape, 1] += plan.vertex_along[i] * of[2] / 2
    of_inks, of_paper = np.zeros((batch, shapes, 4)), np.zeros((batch, 3))
    for run in range(len(plan.run_shape)):
        b, shape = plan.run_shape[run] // shapes, plan.run_shape[run] % shapes
        for j in range(4):
            of_inks[b, shape, j] += of_runs[run, j]
    tiles = len(of_tiles) // max(batch, 1)
    for tile in range(len(of_tiles)):
        for j in range(3):
            of_paper[tile // tiles, j] += of_tiles[tile, j]
    return of_points, of_widths, of_inks, of_paper
