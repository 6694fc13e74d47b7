"""Drawings as files: a clean SVG of a sketch, and a picture or an animation of any drawing.

Pictures and animations are made of the SVG itself, so that they show what is in the file and nothing else.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
from PIL import Image

from sdsedit.errors import InputRefused
from sdsedit.io.images import to_array
from sdsedit.io.svg import SvgDocument, SvgShape, animate_svg, new_svg, read_svg
from sdsedit.render.strokes import EVENODD, STROKE
from sdsedit.sketch.change import SvgResult, _parts
from sdsedit.sketch.draw import SketchResult

SIDE = 512  # pixels, the longer side of a sketch's page
MAX_PICTURE = 2048  # pixels, the longer side of a picture of a drawing, which has at least SIDE
_RATE = 20  # frames a second: a GIF counts in hundredths of a second, and most players are slow below 5 of them
_HOLD = 1.5  # seconds that the finished drawing stands at the end
_CODECS = ("vp09", "mp4v")  # VP9 plays in browsers, and the free builds of OpenCV write no H.264


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
    frames = list(_frames(document, round(seconds * _RATE)))
    return _gif(frames) if suffix == ".gif" else _mp4(frames)


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
        # MP4 wants even sides.
        yield _even(_page(replace(document, shapes=tuple(shown)), 1.0))


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


def _even(frame: np.ndarray) -> np.ndarray:
    return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]


def _gif(frames: list[np.ndarray]) -> bytes:
    """All frames in the colours of the finished drawing, so that none of them flickers."""
    chosen = Image.fromarray(frames[-1]).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette()
    assert chosen is not None
    palette = np.array(chosen, np.int64).reshape(-1, 3)

    def indexed(frame: np.ndarray) -> Image.Image:
        """Pillow's own mapping takes white for 252, 252, 252."""
        packed, where = np.unique(frame.astype(np.int64) @ (65536, 256, 1), return_inverse=True)
        colours = np.stack([packed >> 16, (packed >> 8) & 255, packed & 255], axis=1)
        nearest = np.square(colours[:, None] - palette).sum(-1).argmin(1).astype(np.uint8)
        image = Image.fromarray(nearest[where.reshape(frame.shape[:2])], "P")
        image.putpalette(chosen)
        return image

    first, *others = map(indexed, frames)
    buffer = io.BytesIO()
    times = [1000 // _RATE] * len(others) + [round(1000 * _HOLD)]
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=times, loop=0)
    return buffer.getvalue()


def _mp4(frames: list[np.ndarray]) -> bytes:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its own words on codecs that are not there
    import cv2

    height, width = frames[0].shape[:2]
    with tempfile.TemporaryDirectory() as folder:  # OpenCV writes to files only
        path = Path(folder) / "drawing.mp4"
        for codec in _CODECS:
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), _RATE, (width, height))
            if writer.isOpened():
                break
        else:
            raise InputRefused("OpenCV cannot write MP4 on this machine: name the animation .gif or .svg.")
        for frame in [*frames, *frames[-1:] * round(_HOLD * _RATE)]:
            writer.write(np.ascontiguousarray(frame[..., ::-1]))  # blue, green, red
        writer.release()
        return path.read_bytes()
