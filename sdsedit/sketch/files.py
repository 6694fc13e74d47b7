"""Drawings as files: a clean SVG of a sketch, and a picture or an animation of any drawing.

Pictures and animations are made of the SVG itself, so that they show what is in the file and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby

import numpy as np

from sdsedit.io import film
from sdsedit.io.images import to_array
from sdsedit.io.svg import SvgDocument, SvgShape, animate_svg, new_svg, read_svg
from sdsedit.render.strokes import EVENODD, STROKE
from sdsedit.sketch.change import SvgResult, _parts
from sdsedit.sketch.draw import SketchResult

SIDE = 512  # pixels, the longer side of a sketch's page
MAX_PICTURE = 2048  # pixels, the longer side of a picture of a drawing, which has at least SIDE
_HOLD = 1.5  # seconds that the finished drawing stands at the end


def sketch_svg(result: SketchResult, recipe: str | None = None, side: int = SIDE) -> bytes:
    """A sketch as an SVG of `side` pixels on its longer side: a <g> for each run of shapes of one word, on painted
    paper, so that it looks the same in front of a dark window. SVG has no stroke that changes its width; a stroke has
    the mean of its two ends."""
    height, width = result.size
    scale = side / max(height, width)
    paper = result.background.tolist()
    runs = groupby(zip(result.groups, _sketch_shapes(result, scale), strict=True), key=lambda pair: pair[0])
    groups = [(name, [shape for _, shape in pairs]) for name, pairs in runs]
    return new_svg(width * scale, height * scale, paper, groups, recipe)


def edited_document(result: SvgResult) -> SvgDocument:
    """The drawing after the edit, as if it had been read again."""
    shapes = [result.changed.get(k, shape) for k, shape in enumerate(result.document.shapes) if k not in result.removed]
    return replace(result.document, shapes=(*shapes, *result.added))


def draw_page(document: SvgDocument, side: int | None = None) -> np.ndarray:  # [H, W, 3] uint8
    """A drawing as our renderer draws it on white, `side` pixels on the longer side; None: as many as the page has, if
    they are SIDE to MAX_PICTURE."""
    longer = max(document.width, document.height)
    return _page(document, (side or min(max(round(longer), SIDE), MAX_PICTURE)) / longer)


def animation(data: bytes, suffix: str) -> bytes:
    """A sketch that draws itself, one shape after the other, in the time that its length takes; `suffix` is one of
    io.record.ANIMATIONS. Takes 2 to 8 seconds, and the finished drawing stands a while."""
    document = read_svg(data)
    seconds = min(max(0.08 * len(document.shapes), 2.0), 8.0)
    if suffix == ".svg":
        return animate_svg(data, seconds)
    frames = list(_frames(document, round(seconds * film.RATE)))
    return film.gif(frames, _HOLD) if suffix == ".gif" else film.mp4(frames, _HOLD)


def _sketch_shapes(result: SketchResult, scale: float) -> Iterator[SvgShape]:
    """The shapes in pixels of the file's page."""
    points = result.points.detach().double().cpu().numpy() * scale
    widths, colours = (result.widths.mean(1) * scale).tolist(), result.colours.tolist()
    at = 0
    for kind, contours, caps, width, colour in zip(
        result.topology.kinds, result.topology.contours, result.topology.round_caps, widths, colours, strict=True
    ):
        chains = []
        for count, closed in contours:
            length = 3 * count + (not closed)
            chains.append((points[at : at + length], closed))
            at += length
        rgba = (colour[0], colour[1], colour[2], colour[3])
        if kind == STROKE:
            yield SvgShape(tuple(chains), stroke=rgba, width=width, cap="round" if caps else "butt")
        else:
            yield SvgShape(tuple(chains), fill=rgba, rule="evenodd" if kind == EVENODD else "nonzero")


def _page(document: SvgDocument, scale: float) -> np.ndarray:  # [H, W, 3] uint8
    size = (max(round(document.height * scale), 1), max(round(document.width * scale), 1))
    if not document.shapes:
        return np.full((*size, 3), 255, np.uint8)
    return to_array(_parts(document, size).shapes.picture(size))


# ---- animations


def _frames(document: SvgDocument, count: int) -> Iterator[np.ndarray]:
    """The drawing after 1 / count, 2 / count ... of the way, each shape taking a time in proportion to its length."""
    paper = [shape for shape in document.shapes if shape.id == "background"]
    shapes = [shape for shape in document.shapes if shape.id != "background"]
    ends = np.cumsum([1.0 + sum(_lengths(*contour)[-1] for contour in shape.contours) for shape in shapes])
    for frame in range(1, count + 1):
        now = ends[-1] * frame / count if len(ends) else 0.0
        done = int(np.searchsorted(ends, now, side="right"))
        shown = [*paper, *shapes[:done]]
        if done < len(shapes):
            begun = ends[done - 1] if done else 0.0
            shown.append(_in_part(shapes[done], (now - begun) / (ends[done] - begun)))
        yield _page(replace(document, shapes=tuple(shown)), 1.0)


def _in_part(shape: SvgShape, share: float) -> SvgShape:
    """A shape of which so much is drawn: the way along its stroke, and the strength of its fill."""
    fill = shape.fill and (*shape.fill[:3], shape.fill[3] * share)
    if shape.stroke is None:
        return replace(shape, fill=fill)
    return replace(shape, fill=fill, contours=tuple((_first_part(*each, share), False) for each in shape.contours))


def _first_part(points: np.ndarray, closed: bool, share: float) -> np.ndarray:
    """The beginning of a chain of cubics, an open one: the last cubic is cut by de Casteljau's construction."""
    ends = _lengths(points, closed)
    p = np.concatenate([points, points[:1]]) if closed else points
    now = share * ends[-1]
    last = min(int(np.searchsorted(ends, now, side="right")), len(ends) - 1)
    begun = ends[last - 1] if last else 0.0
    t = (now - begun) / max(ends[last] - begun, 1e-9)
    a, b, c, d = p[3 * last : 3 * last + 4]
    ab, bc, cd = a + t * (b - a), b + t * (c - b), c + t * (d - c)
    abc, bcd = ab + t * (bc - ab), bc + t * (cd - bc)
    return np.concatenate([p[: 3 * last + 1], [ab, abc, abc + t * (bcd - abc)]])


def _lengths(points: np.ndarray, closed: bool) -> np.ndarray:  # [cubics]
    """About the length of a chain up to the end of each cubic: the mean of its chord and its control polygon."""
    p = np.concatenate([points, points[:1]]) if closed else points
    steps = np.hypot(*np.diff(p, axis=0).T)
    polygon = steps.reshape(-1, 3).sum(1)
    return np.cumsum((polygon + np.hypot(*np.diff(p[::3], axis=0).T)) / 2)
