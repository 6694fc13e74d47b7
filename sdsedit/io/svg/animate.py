"""A drawing that draws itself."""

from __future__ import annotations

import numpy as np

from sdsedit.errors import InputRefused
from sdsedit.io.svg.elements import scan
from sdsedit.io.svg.read import read_svg
from sdsedit.io.svg.write import retag, splice

_KEYFRAMES = (
    "@keyframes sdsedit-stroke{from{stroke-dasharray:1 2;stroke-dashoffset:1.01}"
    "to{stroke-dasharray:1 2;stroke-dashoffset:0}}"
    "@keyframes sdsedit-fill{from{fill-opacity:0}}"
    "@media (prefers-reduced-motion:reduce){[style*=sdsedit-]{animation:none!important}}"
)


def animate_svg(data: bytes, seconds: float) -> bytes:
    """The drawing draws itself: one shape after the other, each in proportion to its length, in `seconds` altogether.

    CSS keyframes and no script. Programs that do not animate show the finished drawing, as all others do at the end.
    Shapes that are drawn through <use>, or are animated already, stand there from the start.
    """
    if not 0 < seconds <= 3600:
        raise InputRefused(f"An animation must take more than 0 and at most 3600 seconds; got {seconds:g}.")
    document = read_svg(data)
    tree = scan(document.data, "The drawing")
    if any(element.attributes.get("id") == "sdsedit-animation" for element in tree.elements):
        raise InputRefused("The drawing is animated already: give the one that it was made from.")
    # Paper does not draw itself: `new_svg` calls it so.
    shapes = [shape for shape in document.shapes if shape.editable and shape.id != "background"]
    lengths = np.array([1.0 + sum(_reach(*contour) for contour in shape.contours) for shape in shapes])
    ends = seconds * np.cumsum(lengths) / lengths.sum()
    edits: list[tuple[int, int, bytes]] = []
    for shape, length, end in zip(shapes, (seconds * lengths / lengths.sum()).tolist(), ends.tolist(), strict=True):
        element = tree.elements[shape.element]
        timing = f"{length:.3f}s linear {end - length:.3f}s backwards"
        names = ["sdsedit-stroke"] * (shape.stroke is not None) + ["sdsedit-fill"] * (shape.fill is not None)
        kept = [element.attributes.get("style", "").strip().rstrip(";")]
        style = ";".join([*filter(None, kept), "animation:" + ",".join(f"{name} {timing}" for name in names)])
        attributes: dict[str, str | None] = {"style": style}
        if shape.stroke is not None:
            attributes["pathLength"] = "1"
        raw = document.data[element.start : element.inner]
        edits.append((element.start, element.inner, retag(raw, element.tag, attributes)))
    at, prefix = tree.elements[0].inner, tree.elements[0].tag.rpartition(":")[0]
    tag = f"{prefix}:style" if prefix else "style"
    edits.append((at, at, f'\n<{tag} id="sdsedit-animation">{_KEYFRAMES}</{tag}>'.encode()))
    return splice(document.data, edits)


def _reach(points: np.ndarray, closed: bool) -> float:
    """About the length of a contour: of each curve the mean of its chord and of the way over its control points."""
    p = np.concatenate([points, points[:1]]) if closed else points
    over = np.hypot(*np.diff(p, axis=0).T).sum()
    return float(over + np.hypot(*np.diff(p[::3], axis=0).T).sum()) / 2
