"""What a drawing is once it was read, and the limits on what is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

MAX_BYTES = 20 * 2**20
MAX_ELEMENTS = 50_000
MAX_ATTRIBUTES = 200_000
MAX_DEPTH = 200  # of elements in elements, what <use> puts there included
MAX_EXPANDED = 100_000  # elements, after every reference is replaced by what it refers to
MAX_SHAPES = 5_000  # drawn
MAX_CURVES = 100_000  # and path commands, of all drawn shapes
MAX_SIDE = 16_384  # pixels, of the page
MAX_NUMBER = 1e9
MAX_VALUE = 100_000  # characters of an attribute; 50 times that of a path's
MAX_TEXT = 1_000_000  # characters of style sheets and of the recipe
MAX_MATCHES = 300_000  # of a style rule and an element

Colour = tuple[float, float, float, float]  # red, green, blue, opacity, 0..1
Contours = tuple[tuple[np.ndarray, bool], ...]  # (points float64 [m, 2], closed)
Matrix = tuple[float, float, float, float, float, float]  # x' = a x + c y + e, y' = b x + d y + f

IDENTITY: Matrix = (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
SVG_NAMESPACE = "http://www.w3.org/2000/svg"
XHTML_NAMESPACE = "http://www.w3.org/1999/xhtml"
XLINK_NAMESPACE = "http://www.w3.org/1999/xlink"


@dataclass(frozen=True, eq=False)
class SvgShape:
    """One thing to paint: its fill first, its stroke over it.

    `contours` are chains of cubics in pixels of the page: an open one of n cubics has 3 n + 1 points, a closed one 3 n
    (its last curve ends in its first point). What follows `join` says where a shape came from; a new one has none.
    """

    contours: Contours
    fill: Colour | None = None
    stroke: Colour | None = None
    width: float = 1.0  # of the stroke, pixels of the page
    rule: Literal["nonzero", "evenodd"] = "nonzero"
    cap: Literal["round", "butt", "square"] = "round"
    join: Literal["round", "miter", "bevel"] = "round"
    id: str | None = None
    classes: tuple[str, ...] = ()
    element: int = -1  # its number in the file, the root being 0
    span: tuple[int, int] = (0, 0)  # the element's bytes
    transform: Matrix = IDENTITY  # from the element's own coordinates to pixels of the page
    opacity: float = 1.0  # of the element and the groups around it; already in `fill` and `stroke`
    fill_frozen: bool = False  # a gradient: `fill` is its mean, and may not be changed
    stroke_frozen: bool = False
    fixed: str | None = None  # why it may be neither changed nor removed, as the rest of a sentence

    @property
    def editable(self) -> bool:
        return self.fixed is None


@dataclass(frozen=True, eq=False)
class SvgDocument:
    """A drawing that was read."""

    data: bytes  # the file, without what was unsafe in it
    width: float  # of the page, pixels
    height: float
    view_box: tuple[float, float, float, float]  # x, y, width, height in the file's units: they fill the page
    shapes: tuple[SvgShape, ...]  # in the order of painting
    notes: tuple[str, ...]  # one sentence for each thing that is drawn differently here, or was taken out
    metadata: str | None = None  # the recipe
