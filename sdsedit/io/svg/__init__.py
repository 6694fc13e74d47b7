"""SVG drawings in and out: read what a stranger drew, touch only what is to change, write what is new.

Reading is bounded and closed. The file's size, its elements, their depth and what they expand to have limits; nothing
that it refers to is ever opened; scripts, event attributes and foreign content are cut out of its bytes. `read_svg`
gives plain numpy curves in the pixels of the page, each with the place in the file that it came from. `write_svg`
splices the bytes: an element that was not changed comes back as it was, byte for byte.

References: SVG 2 (W3C Candidate Recommendation, 2018), chapters 7 to 13 and appendix B.2 (arcs); CSS 2.1, chapter 6
(the cascade). Of CSS only rules for a tag, a class, an id and their joins (`path.ink#a`) are understood.
"""

from __future__ import annotations

from sdsedit.io.svg.animate import animate_svg
from sdsedit.io.svg.drawing import (
    IDENTITY,
    MAX_ATTRIBUTES,
    MAX_BYTES,
    MAX_CURVES,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_EXPANDED,
    MAX_MATCHES,
    MAX_NUMBER,
    MAX_SHAPES,
    MAX_SIDE,
    MAX_TEXT,
    MAX_VALUE,
    Colour,
    Contours,
    Matrix,
    SvgDocument,
    SvgShape,
)
from sdsedit.io.svg.read import read_recipe, read_svg, read_svg_bounded
from sdsedit.io.svg.write import new_svg, write_svg

__all__ = [
    "IDENTITY",
    "MAX_ATTRIBUTES",
    "MAX_BYTES",
    "MAX_CURVES",
    "MAX_DEPTH",
    "MAX_ELEMENTS",
    "MAX_EXPANDED",
    "MAX_MATCHES",
    "MAX_NUMBER",
    "MAX_SHAPES",
    "MAX_SIDE",
    "MAX_TEXT",
    "MAX_VALUE",
    "Colour",
    "Contours",
    "Matrix",
    "SvgDocument",
    "SvgShape",
    "animate_svg",
    "new_svg",
    "read_recipe",
    "read_svg",
    "read_svg_bounded",
    "write_svg",
]
