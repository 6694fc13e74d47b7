"""The splat renderer on a CPU, in Numba: what reference.py computes, with gradients by hand.

Numbers of Gaussians are float64, numbers of pixels float32. The inverse of a Gaussian's 2D covariance is kept as a
triangle, scaled so that the logarithm of alpha to the base of 2 is

    e = l - u^2 - v^2        u = A dx + B dy        v = C dy        l = log2 o        (dx, dy) = x - m

which float32 can carry however thin the Gaussian is, once u and v in the middle of a tile are found in float64. A tile
is 16 x 16 pixels:

    pair     a Gaussian in a tile where alpha may reach LEAST. Its *home* is its place in the order of Gaussians, its
             *slot* that in the order of tiles, in each of which the nearest Gaussian comes first
    strip    8 columns of a tile: a row of it fills a vector register, and a Gaussian takes the rows that it reaches

`_painter` draws tiles. `_unpainter` walks each of them from the last Gaussian to the first: with G the gradient that
comes in, a pixel's T_i follows from the T behind it by a division, and with R_i the sum of w_j G . f_j over all j
behind i, the background included,

    d loss / d alpha_i = T_i G . f_i - R_i / (1 - alpha_i)

Every pair has gradients of its own, and `_unproject` adds them up in the order of homes: the same bits every time, with
any number of threads. The kernels let go of the GIL and are shared out to as many threads as torch uses. Compiled code
is kept beside this file, or in the user's cache directory where that cannot be written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdsedit.render.splats.reference import BLUR, END, FAR, LEAST, MARGIN, MOST, NEAR

SIDE, STRIP = 16, 8  # of a tile and of a strip, pixels
STRIPS, AREA = SIDE // STRIP, SIDE * SIDE
BATCH = 64  # pairs of a tile that are fetched together: their Gaussians lie anywhere in memory
CHUNKS = 4  # of work for each thread
SCALARS = 5  # channels that the innermost loops take; those beyond have loops of their own
GEOMETRY = 6  # gradients of a pair before those of its features: of m, A, B, C, and the sum of d loss / d ln alpha
MX, MY, A, B, C, L, EX, EY = range(8)  # columns of Plan.records; EX, EY: half the width and height of what can be seen
LOW = math.log2(LEAST)
SLACK = 1e-3  # of e, by which bounds are wider than need be
UNIT = math.sqrt(0.5 / math.log(2))  # u and v for a standard deviation

# Where in a tile's scratch each number of its pixels lies, strip by strip and row by row. It is one array, so that the
# compiler sees that they do not overlap, and places are unsigned, so that it need not think of negative ones.
PLANE = np.uint64(AREA + 16)  # not a power of 2: places 4 KiB apart hinder each other
PX, PY, T, LAST, R, W, DOT, CHANNELS = (np.uint64(k) * PLANE for k in range(8))
SECOND, THIRD, FOURTH, FIFTH = (CHANNELS + np.uint64(k) * PLANE for k in range(1, 5))
ZERO, ONE = np.float32(0), np.float32(1)
LOW32, MOST32, END32 = np.float32(LOW), np.float32(MOST), np.float32(END)


def render(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    features: Tensor,  # [N, C] or [V, N, C]
    viewmats: Tensor,  # [V, 4, 4]
    Ks: Tensor,  # [V, 3, 3]
    width: int,
    height: int,
    background: Tensor,  # [V, C]
) -> tuple[Tensor, Tensor, Tensor]:  # [V, H, W, C], [V, H, W], [V, H, W]
    """Draw float32 tensors. Bytes: 100 for each Gaussian and view, 12 for each pair (32 + 4 C more while gradients are
    found), 8 for each pixel. MemoryError for more than 2^31 pairs, or 2^24 in one tile."""
    return _Render.apply(means, quats, scales, opacities, features, background, viewmats, Ks, width, height)


class Plan(NamedTuple):
    """The Gaussians as the cameras see them, and which of them each tile needs. A row is a Gaussian in a view; rows and
    tiles of view v come after those of view v - 1."""

    records: np.ndarray  # float64 [V N, 8], anything where the Gaussian is not seen
    depths: np.ndarray  # float32 [V N], t_z
    first: np.ndarray  # int64 [V N + 1], home of the first pair of each row
    tiles: np.ndarray  # int64 [tiles + 1], slot of the first pair of each tile
    row: np.ndarray  # int32 [P] of each slot
    home: np.ndarray  # int32 [P] of each slot


class _Render(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        features: Tensor,
        background: Tensor,
        viewmats: Tensor,
        Ks: Tensor,
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        views, channels = background.shape
        scene = tuple(_array(x) for x in (means, quats, scales, opacities))
        cameras = _array(viewmats).astype(np.float64), _array(Ks).astype(np.float64)
        plan = _plan(scene, cameras, width, height)
        f = _array(features).reshape(-1, channels)
        image = torch.empty(views, height, width, channels)
        alpha, depth = torch.empty(views, height, width), torch.empty(views, height, width)
        through = np.empty((len(plan.tiles) - 1, AREA), np.float32)
        last = np.empty((len(plan.tiles) - 1, AREA), np.float32)
        paint = _painter(min(channels + 1, SCALARS), channels + 1 > SCALARS)
        out = _array(background), image.numpy(), alpha.numpy(), depth.numpy(), through, last
        _share_out(_work(plan), lambda start, stop: paint(plan, start, stop, f, *out))
        ctx.save_for_backward(means, quats, scales, opacities, features, background)
        ctx.cameras, ctx.plan, ctx.through, ctx.last = cameras, plan, through, last
        ctx.set_materialize_grads(False)
        ctx.size = width, height
        return image, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, of_image: Tensor | None, of_alpha: Tensor | None, of_depth: Tensor | None
    ):
        means, quats, scales, opacities, features, background = ctx.saved_tensors
        plan, (width, height) = ctx.plan, ctx.size
        views, channels = background.shape
        geometry, deep = any(ctx.needs_input_grad[:4]), of_depth is not None
        if of_image is None:
            of_image = means.new_zeros(views, height, width, channels)
        nothing = means.new_empty(0, 0, 0)
        incoming = [_array(nothing if of is None else of) for of in (of_image, of_alpha, of_depth)]
        f = _array(features).reshape(-1, channels)
        of_pairs = np.empty((len(plan.row), geometry * GEOMETRY + channels + deep), np.float32)
        of_tiles = np.empty((len(plan.tiles) - 1, channels), np.float32)
        unpaint = _unpainter(min(channels + deep, SCALARS), channels + deep > SCALARS, geometry)
        known = _array(background), *incoming, ctx.through, ctx.last
        _share_out(_work(plan), lambda start, stop: unpaint(plan, start, stop, f, *known, of_pairs, of_tiles))
        leaves = (means, quats, scales, opacities, features)
        gradients = [torch.empty(x.shape) for x in leaves]
        scene, size = tuple(_array(x) for x in leaves[:4]), (width, height)
        arrays = *(x.numpy() for x in gradients[:4]), gradients[4].numpy().reshape(-1, channels)
        _share_out(
            np.arange(len(means) + 1),
            lambda start, stop: _unproject(plan, start, stop, scene, *ctx.cameras, size, of_pairs, geometry, arrays),
        )
        of_background = torch.from_numpy(of_tiles.reshape(views, -1, channels).sum(1, dtype=np.float64)).float()
        of_geometry = gradients[:4] if geometry else [None] * 4
        return *of_geometry, gradients[4], of_background, None, None, None, None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _work(plan: Plan) -> np.ndarray:
    return plan.tiles + 4 * np.arange(len(plan.tiles))


def _share_out(work: np.ndarray, kernel: Callable[[int, int], None]) -> None:
    """Call kernel(start, stop) for ranges of about equal work, on as many threads as torch uses.

    work: [items + 1], what the items before each one cost."""
    items, threads = len(work) - 1, min(torch.get_num_threads(), os.cpu_count() or 1)
    if threads == 1 or items < 2:
        kernel(0, items)
        return
    bounds = np.searchsorted(work, np.linspace(0, work[-1], CHUNKS * threads + 1)).tolist()
    bounds[0], bounds[-1] = 0, items
    chunks = iter([(start, stop) for start, stop in pairwise(bounds) if start < stop])

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
    return ThreadPoolExecutor(count, thread_name_prefix="sdsedit-splats")


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


# All that vector code needs of "fast mathematics", but not the promise that every number is finite.
FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}


# --- what the cameras see, by IEEE's rules: bounds are found twice and must come out the same -------------------------


def _plan(scene: tuple[np.ndarray, ...], cameras: tuple[np.ndarray, np.ndarray], width: int, height: int) -> Plan:
    views, count = len(cameras[0]), len(scene[0])
    tiles = -(-height // SIDE) * -(-width // SIDE)
    each_row, each_view = np.arange(views * count + 1), np.arange(views + 1)
    records, depths = np.empty((views * count, 8)), np.empty(views * count, np.float32)
    first = np.zeros(views * count + 1, np.int64)
    size = (width, height)
    _share_out(each_row, lambda start, stop: _project(start, stop, scene, *cameras, size, records, depths, first))
    np.cumsum(first, out=first)
    pairs = int(first[-1])
    if max(pairs, views * count) >= 2**31:
        raise MemoryError(f"{pairs} pairs of Gaussians and tiles are more than the CPU splat renderer takes.")
    tile = np.empty(pairs, np.int32)  # of each home, in its view
    _share_out(each_row, lambda start, stop: _spread(start, stop, first, records, size, tile))
    starts = np.zeros(views * tiles + 1, np.int64)
    row, home = np.empty(pairs, np.int32), np.empty(pairs, np.int32)
    _share_out(each_view, lambda start, stop: _sort(start, stop, count, tiles, depths, first, tile, starts, row, home))
    if np.diff(starts).max() >= 2**24:  # their numbers are kept in float32
        raise MemoryError("More than 16 million Gaussians in one place are more than the CPU splat renderer takes.")
    return Plan(records, depths, first, starts, row, home)


@_compiled()
def _held(x, low, high):
    return min(max(x, low), high)


@_compiled()
def _seen(i, scene, m, k, size):
    """reference.project of Gaussian i for the camera m, k: t_x/t_z, t_y/t_z, t_z, c_x, c_y, the rows of J W, the
    quaternion's length and the unit quaternion, its rotation, the three numbers of Sigma2."""
    means, quats, scales, _ = scene
    x, y, z = np.float64(means[i, 0]), np.float64(means[i, 1]), np.float64(means[i, 2])
    tz = m[2, 0] * x + m[2, 1] * y + m[2, 2] * z + m[2, 3]
    tx = (m[0, 0] * x + m[0, 1] * y + m[0, 2] * z + m[0, 3]) / tz
    ty = (m[1, 0] * x + m[1, 1] * y + m[1, 2] * z + m[1, 3]) / tz
    fx, fy, cx, cy = k[0, 0], k[1, 1], k[0, 2], k[1, 2]
    more_x, more_y = MARGIN * size[0] / (2 * fx), MARGIN * size[1] / (2 * fy)
    hx = _held(tx, -cx / fx - more_x, (size[0] - cx) / fx + more_x)
    hy = _held(ty, -cy / fy - more_y, (size[1] - cy) / fy + more_y)
    jx, jy = fx / tz, fy / tz
    p = jx * (m[0, 0] - hx * m[2, 0]), jx * (m[0, 1] - hx * m[2, 1]), jx * (m[0, 2] - hx * m[2, 2])
    q = jy * (m[1, 0] - hy * m[2, 0]), jy * (m[1, 1] - hy * m[2, 1]), jy * (m[1, 2] - hy * m[2, 2])
    w, x, y, z = np.float64(quats[i, 0]), np.float64(quats[i, 1]), np.float64(quats[i, 2]), np.float64(quats[i, 3])
    length = math.sqrt(w * w + x * x + y * y + z * z)
    over = 1 / length
    w, x, y, z = w * over, x * over, y * over, z * over
    r = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    a, b, c = BLUR, 0.0, BLUR
    for axis in range(3):
        s = np.float64(scales[i, axis])
        right = (p[0] * r[axis] + p[1] * r[3 + axis] + p[2] * r[6 + axis]) * s
        down = (q[0] * r[axis] + q[1] * r[3 + axis] + q[2] * r[6 + axis]) * s
        a += right * right
        b += right * down
        c += down * down
    return tx, ty, tz, hx, hy, p, q, length, (w, x, y, z), r, a, b, c


@_compiled()
def _project(start, stop, scene, viewmats, Ks, size, records, depths, first):
    """Write the rows start..stop - 1 of records and depths, and to first[row + 1] how many tiles each row reaches."""
    count = len(scene[0])
    for row in range(start, stop):
        view, i = row // count, row % count
        depths[row] = 0
        first[row + 1] = 0
        m, k = viewmats[view], Ks[view]
        o = np.float64(scene[3][i])
        tx, ty, tz, _, _, _, _, _, _, _, a, b, c = _seen(i, scene, m, k, size)
        mx, my = k[0, 0] * tx + k[0, 2], k[1, 1] * ty + k[1, 2]
        det = a * c - b * b
        # Written so that what is not a number, or is lost in rounding, is not seen.
        if not (o >= LEAST and o < math.inf and tz >= NEAR and tz <= FAR and det > 0 and a * c < 1e60):
            continue
        l = math.log2(o)
        reach = math.sqrt(l - LOW + SLACK) / UNIT
        ex, ey = reach * math.sqrt(a), reach * math.sqrt(c)
        if not (mx - ex < size[0] and mx + ex > 0 and my - ey < size[1] and my + ey > 0):
            continue
        root, over = math.sqrt(c), 1 / math.sqrt(det)
        r = records[row]
        r[MX], r[MY], r[A], r[B], r[C] = mx, my, UNIT * root * over, -UNIT * b / root * over, UNIT / root
        r[L], r[EX], r[EY] = l, ex, ey
        depths[row] = tz
        j0, j1 = _rows(r, size)
        for j in range(j0, j1):
            i0, i1 = _columns(r, j, size)
            first[row + 1] += i1 - i0


@_compiled()
def _rows(r, size):
    """The first row of tiles that a Gaussian reaches, and the one behind the last."""
    j0 = np.int64(math.ceil(max(r[MY] - r[EY] - 0.5, 0.0)))
    j1 = np.int64(math.floor(min(r[MY] + r[EY] + 0.5, np.float64(size[1]))))
    if j1 <= j0:  # between the middles of two rows of pixels
        return 0, 0
    return j0 // SIDE, (j1 + SIDE - 1) // SIDE


@_compiled()
def _columns(r, j, size):
    """The first tile of row j that a Gaussian reaches, and the one behind the last.

    With dx = u / A + k dy, its right end in the line of pixels at dy is k dy + sqrt(reach^2 - v^2) / A, which grows up
    to where the whole Gaussian has its right end and falls from there: in a row of tiles it is largest at the dy
    nearest to that. The left end is minus the right end of -dy."""
    low, high = SIDE * j + 0.5 - r[MY], SIDE * j + SIDE - 0.5 - r[MY]
    if low <= -r[EY] and high >= r[EY]:
        left, right = r[MX] - r[EX], r[MX] + r[EX]
    else:
        k, square = -r[B] / r[A], r[L] - LOW + SLACK
        top = k * square / (r[C] * r[C] * r[EX])  # dy of the right end
        dy = _held(top, low, high)
        right = r[MX] + k * dy + math.sqrt(max(square - r[C] * r[C] * dy * dy, 0.0)) / r[A]
        dy = _held(-top, low, high)
        left = r[MX] + k * dy - math.sqrt(max(square - r[C] * r[C] * dy * dy, 0.0)) / r[A]
    i0 = np.int64(math.ceil(min(max(left - 0.5, 0.0), np.float64(size[0]))))
    i1 = np.int64(math.floor(max(min(right + 0.5, np.float64(size[0])), 0.0)))
    if i1 <= i0:
        return 0, 0
    return i0 // SIDE, (i1 + SIDE - 1) // SIDE


@_compiled()
def _spread(start, stop, first, records, size, tile):
    """Write the tiles that the rows start..stop - 1 reach at their homes."""
    across = (size[0] + SIDE - 1) // SIDE
    for row in range(start, stop):
        home = first[row]
        if home < first[row + 1]:
            r = records[row]
            j0, j1 = _rows(r, size)
            for j in range(j0, j1):
                i0, i1 = _columns(r, j, size)
                for i in range(i0, i1):
                    tile[home] = j * across + i
                    home += 1


@_compiled()
def _sort(start, stop, count, tiles, depths, first, tile, starts, rows, homes):
    """Give the pairs of the views start..stop - 1 their slots: a radix sort of the Gaussians by depth, then a counting
    sort of their pairs by tile. Both keep the order of equals."""
    digits = 1 << 11
    key, other_key = np.empty(count, np.uint32), np.empty(count, np.uint32)
    index, other_index = np.empty(count, np.int32), np.empty(count, np.int32)
    for view in range(start, stop):
        bits = depths[view * count : (view + 1) * count].view(np.uint32)  # numbers above 0 sort as their bits do
        n = 0
        for i in range(count):
            if first[view * count + i] < first[view * count + i + 1]:
                key[n], index[n] = bits[i], i
                n += 1
        for shift in (np.uint32(0), np.uint32(11), np.uint32(22)):
            at = np.zeros(digits, np.int64)
            for k in range(n):
                at[(key[k] >> shift) & np.uint32(digits - 1)] += 1
            total = 0
            for k in range(digits):
                at[k], total = total, total + at[k]
            for k in range(n):
                digit = (key[k] >> shift) & np.uint32(digits - 1)
                other_key[at[digit]], other_index[at[digit]] = key[k], index[k]
                at[digit] += 1
            key, other_key = other_key, key
            index, other_index = other_index, index
        begin, end = first[view * count], first[(view + 1) * count]
        at = np.zeros(tiles, np.int64)
        for home in range(begin, end):
            at[tile[home]] += 1
        total = begin
        for k in range(tiles):
            at[k], total = total, total + at[k]
            starts[view * tiles + k + 1] = total
        for k in range(n):
            row = view * count + index[k]
            for home in range(first[row], first[row + 1]):
                slot = at[tile[home]]
                rows[slot], homes[slot] = row, home
                at[tile[home]] += 1


# --- pictures ---------------------------------------------------------------------------------------------------------


@_compiled()
def _at(a, b):
    """The place of the pixel in column a and row b of a tile, within a plane of scratch."""
    return np.uint64(a // STRIP * (SIDE * STRIP) + b * STRIP + a % STRIP)


@_compiled()
def _scratch(channels):
    """Scratch for a tile, with PX and PY: where the pixels' middles are, from the middle of the tile."""
    s = np.zeros(np.int64(CHANNELS) + np.int64(PLANE) * channels, np.float32)
    for b in range(SIDE):
        for a in range(SIDE):
            s[PX + _at(a, b)], s[PY + _at(a, b)] = a + 0.5 - SIDE / 2, b + 0.5 - SIDE / 2
    return s


@_compiled(fastmath=FAST)
def _power(x):
    """2^x for x in -8..0, to 4e-7: 2^(x / 8) is a polynomial, of degree 6 with the least largest relative error. More
    than 1 for x above 0; anything for x below -8."""
    y = x * np.float32(0.125)
    p = np.float32(1.090348444e-04)
    p = p * y + np.float32(1.274780250e-03)
    p = p * y + np.float32(9.579212145e-03)
    p = p * y + np.float32(5.549077191e-02)
    p = p * y + np.float32(2.402243707e-01)
    p = p * y + np.float32(6.931470645e-01)
    p = p * y + ONE
    p = p * p
    p = p * p
    return p * p


@_compiled(fastmath=FAST)
def _fetch(plan, begin, end, x, y, f, base, plain, numbers, bounds):
    """Copy what the tile with the corner (x, y) needs of its pairs begin..end - 1.

    numbers: u and v in the tile's middle, A, B, C, l, features, depth. bounds: the first row and strip that each
    reaches, and those behind the last. Row - base is the row of its features."""
    for slot in range(begin, end):
        n, row = slot - begin, plan.row[slot]
        r = plan.records[row]
        dx, dy = x + SIDE / 2 - r[MX], y + SIDE / 2 - r[MY]
        numbers[n, 0], numbers[n, 1] = r[A] * dx + r[B] * dy, r[C] * dy
        numbers[n, 2], numbers[n, 3], numbers[n, 4], numbers[n, 5] = r[A], r[B], r[C], r[L]
        for c in range(plain):
            numbers[n, 6 + c] = f[row - base, c]
        numbers[n, 6 + plain] = plan.depths[row]
        bounds[n, 0], bounds[n, 1] = _within(r[MY] - y, r[EY])
        i0, i1 = _within(r[MX] - x, r[EX])
        bounds[n, 2], bounds[n, 3] = i0 // STRIP, (i1 + STRIP - 1) // STRIP


@_compiled(fastmath=FAST)
def _within(middle, reach):
    """The first of a tile's pixels whose middle is within reach of a place, and the one behind the last."""
    low = _held(math.ceil(middle - reach - 0.5), 0.0, np.float64(SIDE))
    return np.int64(low), np.int64(_held(math.floor(middle + reach + 0.5), low, np.float64(SIDE)))


@cache
def _painter(few: int, more: bool) -> Callable[..., None]:
    """The kernel for so many channels, the depth included, or for `more`."""

    @_compiled(fastmath=FAST)
    def paint(plan, start, stop, f, background, image, alpha, depth, through, last):
        """Draw the tiles start..stop - 1. through, last [tiles, AREA]: each pixel's T behind all Gaussians, and which
        pair of the tile was the last to add to it, -1 for none."""
        (views, height, width), channels = alpha.shape, image.shape[3] + 1
        across, down = (width + SIDE - 1) // SIDE, (height + SIDE - 1) // SIDE
        s = _scratch(channels)
        numbers, bounds = np.zeros((BATCH, 6 + channels + SCALARS), np.float32), np.empty((BATCH, 4), np.int64)
        alive = np.empty(STRIPS, np.bool_)
        for tile in range(start, stop):
            view, y, x = tile // (across * down), tile // across % down * SIDE, tile % across * SIDE
            high, wide = min(SIDE, height - y), min(SIDE, width - x)
            base = 0 if len(f) == len(plan.depths) else view * (len(plan.depths) // views)
            s[np.int64(T) :] = ZERO
            for b in range(SIDE):
                for a in range(SIDE):
                    s[T + _at(a, b)] = ONE if b < high and a < wide else -ONE  # below 0: finished
                    s[LAST + _at(a, b)] = -ONE
            alive[:] = True
            begin, end = plan.tiles[tile], plan.tiles[tile + 1]
            for slot in range(begin, end):
                n = (slot - begin) % BATCH
                if n == 0:
                    _fetch(plan, slot, min(slot + BATCH, end), x, y, f, base, channels - 1, numbers, bounds)
                v = numbers[n]
                u0, v0, ca, cb, cc, l = v[0], v[1], v[2], v[3], v[4], v[5]
                f0, f1, f2, f3, f4 = v[6], v[7], v[8], v[9], v[10]
                name = np.float32(slot - begin)
                for strip in range(bounds[n, 2], bounds[n, 3]):
                    if not alive[strip]:
                        continue
                    q0, q1 = _at(STRIP * strip, bounds[n, 0]), _at(STRIP * strip, bounds[n, 1])
                    for q in range(q0, q1):
                        py = s[PY + q]
                        u = u0 + ca * s[PX + q] + cb * py
                        v_ = v0 + cc * py
                        e = l - u * u - v_ * v_
                        t = s[T + q]
                        w = min(_power(e), MOST32) * t
                        after = t - w
                        visible = e >= LOW32
                        more_light = visible & (after > END32)
                        w = w if more_light else ZERO
                        s[T + q] = after if more_light else (-abs(t) if visible else t)
                        s[LAST + q] = name if more_light else s[LAST + q]
                        s[CHANNELS + q] += w * f0
                        if few > 1:
                            s[SECOND + q] += w * f1
                        if few > 2:
                            s[THIRD + q] += w * f2
                        if few > 3:
                            s[FOURTH + q] += w * f3
                        if few > 4:
                            s[FIFTH + q] += w * f4
                        if more:
                            s[W + q] = w
                    if more:
                        for c in range(SCALARS, channels):
                            plane, value = CHANNELS + np.uint64(c) * PLANE, v[6 + c]
                            for q in range(q0, q1):
                                s[plane + q] += s[W + q] * value
                if n % 16 == 15:
                    for strip in range(STRIPS):
                        unfinished = 0
                        for q in range(_at(STRIP * strip, 0), _at(STRIP * strip, SIDE)):
                            unfinished += np.int32(s[T + q] > ZERO)
                        alive[strip] = unfinished > 0
                    if not alive.any():
                        break
            for b in range(SIDE):
                for a in range(SIDE):
                    q = _at(a, b)
                    t = abs(s[T + q])
                    through[tile, np.int64(q)], last[tile, np.int64(q)] = t, s[LAST + q]
                    if b < high and a < wide:
                        alpha[view, y + b, x + a] = ONE - t
                        for c in range(channels - 1):
                            value = s[CHANNELS + np.uint64(c) * PLANE + q]
                            image[view, y + b, x + a, c] = value + t * background[view, c]
                        depth[view, y + b, x + a] = s[CHANNELS + np.uint64(channels - 1) * PLANE + q]

    return paint


# --- gradients --------------------------------------------------------------------------------------------------------


@cache
def _unpainter(few: int, more: bool, geometry: bool) -> Callable[..., None]:
    """The kernel for so many channels or for `more`; without `geometry`, for gradients of features and background."""
    start_of_f = GEOMETRY if geometry else 0
    to_ln = -2 * math.log(2)  # d e / d u is -2 u, e is to the base of 2

    @_compiled(fastmath=FAST)
    def unpaint(plan, start, stop, f, background, of_image, of_alpha, of_depth, through, last, of_pairs, of_tiles):
        """Gradients of the tiles start..stop - 1, written where no other tile writes: of_pairs [P, columns] at their
        homes, of_tiles [tiles, C] (background). of_alpha and of_depth may be empty: zeros."""
        views, height, width, plain = of_image.shape
        channels = of_pairs.shape[1] - start_of_f
        across, down = (width + SIDE - 1) // SIDE, (height + SIDE - 1) // SIDE
        s = _scratch(channels)
        numbers, bounds = np.zeros((BATCH, 6 + channels + SCALARS), np.float32), np.empty((BATCH, 4), np.int64)
        sums = np.zeros(channels, np.float32)
        for tile in range(start, stop):
            view, y, x = tile // (across * down), tile // across % down * SIDE, tile % across * SIDE
            high, wide = min(SIDE, height - y), min(SIDE, width - x)
            base = 0 if len(f) == len(plan.depths) else view * (len(plan.depths) // views)
            s[np.int64(T) :] = ZERO
            of_tiles[tile] = ZERO
            most = -ONE
            for b in range(SIDE):
                for a in range(SIDE):
                    q = _at(a, b)
                    t = through[tile, np.int64(q)]
                    s[T + q], s[LAST + q] = t, last[tile, np.int64(q)]
                    most = max(most, s[LAST + q])
                    if b < high and a < wide:
                        of_t = -of_alpha[view, y + b, x + a] if len(of_alpha) else ZERO
                        for c in range(plain):
                            g = of_image[view, y + b, x + a, c]
                            s[CHANNELS + np.uint64(c) * PLANE + q] = g
                            of_tiles[tile, c] += t * g
                            of_t += g * background[view, c]
                        if channels > plain:
                            s[CHANNELS + np.uint64(plain) * PLANE + q] = of_depth[view, y + b, x + a]
                        s[R + q] = t * of_t
            begin, end = plan.tiles[tile], plan.tiles[tile + 1]
            reached = begin + np.int64(most) + 1
            for slot in range(reached, end):
                of_pairs[plan.home[slot]] = ZERO
            fetched = reached
            for slot in range(reached - 1, begin - 1, -1):
                if slot < fetched:
                    fetched = max(fetched - BATCH, begin)
                    _fetch(plan, fetched, slot + 1, x, y, f, base, plain, numbers, bounds)
                n = slot - fetched
                v = numbers[n]
                u0, v0, ca, cb, cc, l = v[0], v[1], v[2], v[3], v[4], v[5]
                f0, f1, f2, f3, f4 = v[6], v[7], v[8], v[9], v[10]
                name = np.float32(slot - begin)
                sum_g, sum_u, sum_ux, sum_uy, sum_v, sum_vy = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
                sum_0, sum_1, sum_2, sum_3, sum_4 = ZERO, ZERO, ZERO, ZERO, ZERO
                if more:
                    sums[:] = ZERO
                for strip in range(bounds[n, 2], bounds[n, 3]):
                    q0, q1 = _at(STRIP * strip, bounds[n, 0]), _at(STRIP * strip, bounds[n, 1])
                    if more:
                        for q in range(q0, q1):
                            s[DOT + q] = ZERO
                        for c in range(SCALARS, channels):
                            plane, value = CHANNELS + np.uint64(c) * PLANE, v[6 + c]
                            for q in range(q0, q1):
                                s[DOT + q] += s[plane + q] * value
                    for q in range(q0, q1):
                        px, py = s[PX + q], s[PY + q]
                        u = u0 + ca * px + cb * py
                        v_ = v0 + cc * py
                        e = l - u * u - v_ * v_
                        full = _power(e)
                        alpha = min(full, MOST32) if (e >= LOW32) & (name <= s[LAST + q]) else ZERO
                        over = ONE / (ONE - alpha)
                        t = s[T + q] * over
                        s[T + q] = t
                        w = alpha * t
                        dot = s[CHANNELS + q] * f0
                        sum_0 += w * s[CHANNELS + q]
                        if few > 1:
                            dot += s[SECOND + q] * f1
                            sum_1 += w * s[SECOND + q]
                        if few > 2:
                            dot += s[THIRD + q] * f2
                            sum_2 += w * s[THIRD + q]
                        if few > 3:
                            dot += s[FOURTH + q] * f3
                            sum_3 += w * s[FOURTH + q]
                        if few > 4:
                            dot += s[FIFTH + q] * f4
                            sum_4 += w * s[FIFTH + q]
                        if more:
                            dot += s[DOT + q]
                            s[W + q] = w
                        if geometry:
                            g = w * dot - alpha * over * s[R + q]  # of ln alpha
                            g = g if full <= MOST32 else ZERO
                            s[R + q] += w * dot
                            gu, gv = g * u, g * v_
                            sum_g += g
                            sum_u += gu
                            sum_ux += gu * px
                            sum_uy += gu * py
                            sum_v += gv
                            sum_vy += gv * py
                    if more:
                        for c in range(SCALARS, channels):
                            plane, total = CHANNELS + np.uint64(c) * PLANE, ZERO
                            for q in range(q0, q1):
                                total += s[plane + q] * s[W + q]
                            sums[c] += total
                of = of_pairs[plan.home[slot]]
                if geometry:
                    r = plan.records[plan.row[slot]]
                    dx, dy = x + SIDE / 2 - r[MX], y + SIDE / 2 - r[MY]
                    of[0] = -to_ln * r[A] * sum_u
                    of[1] = -to_ln * (r[B] * sum_u + r[C] * sum_v)
                    of[2] = to_ln * (sum_ux + dx * sum_u)
                    of[3] = to_ln * (sum_uy + dy * sum_u)
                    of[4] = to_ln * (sum_vy + dy * sum_v)
                    of[5] = sum_g
                of[start_of_f] = sum_0
                if few > 1:
                    of[start_of_f + 1] = sum_1
                if few > 2:
                    of[start_of_f + 2] = sum_2
                if few > 3:
                    of[start_of_f + 3] = sum_3
                if few > 4:
                    of[start_of_f + 4] = sum_4
                if more:
                    for c in range(SCALARS, channels):
                        of[start_of_f + c] = sums[c]

    return unpaint


@_compiled()
def _unproject(plan, start, stop, scene, viewmats, Ks, size, of_pairs, geometry, gradients):
    """Write the gradients of the Gaussians start..stop - 1: those of their pairs in all views, summed in the order of
    homes and led back through reference.project."""
    of_means, of_quats, of_scales, of_opacities, of_features = gradients
    count, views = len(of_means), len(viewmats)
    channels, columns = of_features.shape[1], of_pairs.shape[1]
    start_of_f = GEOMETRY if geometry else 0
    shared = len(of_features) == count
    of = np.empty(columns)
    f = np.empty(channels)
    for i in range(start, stop):
        f[:] = 0
        m0, m1, m2, q0, q1, q2, q3, s0, s1, s2, of_o = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for view in range(views):
            row = view * count + i
            of[:] = 0
            for home in range(plan.first[row], plan.first[row + 1]):
                for c in range(columns):
                    of[c] += of_pairs[home, c]
            for c in range(channels):
                if shared:
                    f[c] += of[start_of_f + c]
                else:
                    of_features[row, c] = of[start_of_f + c]
            if not (geometry and of.any()):  # much of a scene lies behind the rest of it
                continue
            r, m, k = plan.records[row], viewmats[view], Ks[view]
            tx, ty, tz, hx, hy, p, q, length, unit, rotation, a, b, c = _seen(i, scene, m, k, size)
            of_o += of[5] / scene[3][i]
            # A = UNIT sqrt(c / det), B = -UNIT b / sqrt(c det), C = UNIT / sqrt(c), det = a c - b^2
            det = a * c - b * b
            of_lna, of_lnb, of_lnc = of[2] * r[A], of[3] * r[B], of[4] * r[C]
            of_det = -(of_lna + of_lnb) / (2 * det)
            of_a = of_det * c
            of_b = -2 * of_det * b - of[3] * UNIT / math.sqrt(c * det)
            of_c = of_det * a + (of_lna - of_lnb - of_lnc) / (2 * c)
            # Sigma2 = [M_x; M_y] [M_x; M_y]^T + BLUR I, M = J W R diag(s)
            (g00, g10, g20), (x0, y0), more0 = _axis(0, scene[2][i, 0], p, q, rotation, of_a, of_b, of_c)
            (g01, g11, g21), (x1, y1), more1 = _axis(1, scene[2][i, 1], p, q, rotation, of_a, of_b, of_c)
            (g02, g12, g22), (x2, y2), more2 = _axis(2, scene[2][i, 2], p, q, rotation, of_a, of_b, of_c)
            s0, s1, s2 = s0 + more0, s1 + more1, s2 + more2
            # R, through the unit quaternion; only what turns it counts
            w, x, y, z = unit
            of_w = 2 * (x * (g21 - g12) + y * (g02 - g20) + z * (g10 - g01))
            of_x = 2 * (y * (g01 + g10) + z * (g02 + g20) + w * (g21 - g12)) - 4 * x * (g11 + g22)
            of_y = 2 * (x * (g01 + g10) + z * (g12 + g21) + w * (g02 - g20)) - 4 * y * (g00 + g22)
            of_z = 2 * (x * (g02 + g20) + y * (g12 + g21) + w * (g10 - g01)) - 4 * z * (g00 + g11)
            along = of_w * w + of_x * x + of_y * y + of_z * z
            q0 += (of_w - along * w) / length
            q1 += (of_x - along * x) / length
            q2 += (of_y - along * y) / length
            q3 += (of_z - along * z) / length
            # J W, by the rows of R that x and y are for: first back to the axes of the world, then of the camera
            px = x0 * rotation[0] + x1 * rotation[1] + x2 * rotation[2]
            py = x0 * rotation[3] + x1 * rotation[4] + x2 * rotation[5]
            pz = x0 * rotation[6] + x1 * rotation[7] + x2 * rotation[8]
            qx = y0 * rotation[0] + y1 * rotation[1] + y2 * rotation[2]
            qy = y0 * rotation[3] + y1 * rotation[4] + y2 * rotation[5]
            qz = y0 * rotation[6] + y1 * rotation[7] + y2 * rotation[8]
            jx, jy = k[0, 0] / tz, k[1, 1] / tz
            of_jx, of_hx = (
                px * m[0, 0] + py * m[0, 1] + pz * m[0, 2],
                -jx * (px * m[2, 0] + py * m[2, 1] + pz * m[2, 2]),
            )
            of_jy, of_hy = (
                qx * m[1, 0] + qy * m[1, 1] + qz * m[1, 2],
                -jy * (qx * m[2, 0] + qy * m[2, 1] + qz * m[2, 2]),
            )
            of_tx, of_ty = k[0, 0] * of[0], k[1, 1] * of[1]
            of_tz = -(jx * of_jx + hx * of_hx + jy * of_jy + hy * of_hy) / tz
            if hx == tx:
                of_tx += of_hx
            if hy == ty:
                of_ty += of_hy
            of_tz -= (of_tx * tx + of_ty * ty) / tz
            if columns > start_of_f + channels:
                of_tz += of[start_of_f + channels]
            of_tx, of_ty = of_tx / tz, of_ty / tz
            m0 += of_tx * m[0, 0] + of_ty * m[1, 0] + of_tz * m[2, 0]
            m1 += of_tx * m[0, 1] + of_ty * m[1, 1] + of_tz * m[2, 1]
            m2 += of_tx * m[0, 2] + of_ty * m[1, 2] + of_tz * m[2, 2]
        if shared:
            of_features[i] = f
        if geometry:
            of_means[i, 0], of_means[i, 1], of_means[i, 2] = m0, m1, m2
            of_quats[i, 0], of_quats[i, 1], of_quats[i, 2], of_quats[i, 3] = q0, q1, q2, q3
            of_scales[i, 0], of_scales[i, 1], of_scales[i, 2] = s0, s1, s2
            of_opacities[i] = of_o


@_compiled()
def _axis(axis, scale, p, q, rotation, of_a, of_b, of_c):
    """The gradients of a column of R, of J W times that column, and of the scale, that Sigma2 sends to one axis."""
    s = np.float64(scale)
    r0, r1, r2 = rotation[axis], rotation[3 + axis], rotation[6 + axis]
    right, down = p[0] * r0 + p[1] * r1 + p[2] * r2, q[0] * r0 + q[1] * r1 + q[2] * r2
    x, y = (2 * of_a * right + of_b * down) * s, (2 * of_c * down + of_b * right) * s
    of_s = x * right + y * down
    x, y = x * s, y * s
    return (p[0] * x + q[0] * y, p[1] * x + q[1] * y, p[2] * x + q[2] * y), (x, y), of_s
