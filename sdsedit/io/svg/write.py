"""Drawings to bytes: an element that was not changed comes back as it was, byte for byte."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from sdsedit.io.svg.drawing import IDENTITY, MAX_NUMBER, SVG_NAMESPACE, Colour, Contours, Matrix, SvgDocument, SvgShape
from sdsedit.io.svg.elements import ATTRIBUTE, Element, Tree, scan
from sdsedit.io.svg.matrices import applied, fitted, inverse_of, parse_transform, scale_of, times
from sdsedit.io.svg.outlines import SHAPES
from sdsedit.io.svg.styles import Sheet


def write_svg(
    document: SvgDocument,
    changed: Mapping[int, SvgShape] | None = None,  # index into document.shapes -> the shape as it should be
    removed: Collection[int] = (),  # indices into document.shapes
    added: Sequence[SvgShape] = (),  # painted last, in a group of their own
    recipe: str | None = None,  # JSON; None leaves the file's own
) -> bytes:
    """The document's bytes with some elements replaced; all others as they were, byte for byte.

    A changed element becomes a <path> and keeps its transform, id, class and every attribute that does not say where it
    is; of its paint only what differs is written. Of a new shape only what is painted counts: where it came from is
    taken from the document. An opacity is written relative to that of the groups around the element, at most 1.

    Raises ValueError for a shape that is not editable or a frozen colour that was changed.
    """
    data = document.data
    tree = scan(data, "The drawing")
    sheet = Sheet(tree, "The drawing")
    edits: list[tuple[int, int, bytes]] = []
    for index, shape in (changed or {}).items():
        if index not in removed:
            edits += _rewrite(data, tree.elements[document.shapes[index].element], sheet, document.shapes[index], shape)
    for index in removed:
        _editable(document.shapes[index])
        element = tree.elements[document.shapes[index].element]
        start = element.start
        while data[start - 1 : start].isspace():
            start -= 1
        edits.append((start, element.end, b""))
    root = tree.elements[0]
    prefix = root.tag.rpartition(":")[0]
    prefix += ":" if prefix else ""
    if added:
        matrix = fitted(
            document.view_box, document.width, document.height, root.attributes.get("preserveAspectRatio", "")
        )
        matrix = times(parse_transform(root.attributes.get("transform", "")), matrix)
        name = _unique("sdsedit-added", tree.ids)
        lines = [f'<{prefix}g id="{name}">']
        lines += [_path(shape, matrix, prefix, _style_attribute(_painted(shape, scale_of(matrix)))) for shape in added]
        edits.append((root.outer, root.outer, ("\n".join([*lines, f"</{prefix}g>"]) + "\n").encode()))
    if recipe is not None:
        edits.append(_recipe_edit(tree, prefix, recipe))
    return splice(data, edits)


def splice(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    """Replace spans of bytes that do not overlap."""
    pieces, at = [], 0
    for start, end, new in sorted(edits, key=lambda edit: edit[:2]):
        assert at <= start <= end, "edits overlap"
        pieces += [data[at:start], new]
        at = end
    return b"".join([*pieces, data[at:]])


def _editable(shape: SvgShape) -> None:
    if shape.fixed:
        raise ValueError(f"The shape {shape.id or shape.element} may not be changed: {shape.fixed}.")


def _rewrite(data: bytes, element: Element, sheet: Sheet, old: SvgShape, new: SvgShape) -> list[tuple[int, int, bytes]]:
    """The edits that make an element look as `new`."""
    attributes: dict[str, str | None] = {}
    tag = element.tag
    if not _same_contours(old.contours, new.contours):
        prefix = tag.rpartition(":")[0]
        tag = f"{prefix}:path" if prefix else "path"
        attributes |= dict.fromkeys(SHAPES[element.name])
        # Inkscape would draw the shape again from its own notes on it.
        attributes |= {key: None for key in element.attributes if key.startswith("sodipodi:")}
        attributes |= dict.fromkeys(("inkscape:original-d", "inkscape:path-effect"))
        attributes["d"] = _d(new.contours, old.transform)
    after = _painted(new, scale_of(old.transform), old.opacity)
    paint: dict[str, str] = {}
    for name in ("fill", "stroke"):
        if not _same_colour(getattr(old, name), getattr(new, name)):
            if getattr(old, f"{name}_frozen"):
                raise ValueError(
                    f"The {name} of the shape {old.id or old.element} is a gradient and may not be changed."
                )
            paint[name] = after[name]
            opaque = (colour := getattr(old, name)) is not None and colour[3] > 0.999 * old.opacity
            if after[f"{name}-opacity"] != "1" or not opaque:
                paint[f"{name}-opacity"] = after[f"{name}-opacity"]
    if new.fill and old.rule != new.rule:
        paint["fill-rule"] = new.rule
    if new.stroke:
        if old.stroke is None or not math.isclose(old.width, new.width, rel_tol=1e-6):
            paint["stroke-width"] = after["stroke-width"]
        for name, a, b in (("stroke-linecap", old.cap, new.cap), ("stroke-linejoin", old.join, new.join)):
            if a != b:
                paint[name] = b
    by_css = sheet.declared(element)[1]
    in_style = {name: value + "!important" * by_css[name] for name, value in paint.items() if name in by_css}
    attributes |= {name: value for name, value in paint.items() if name not in by_css}
    if in_style:
        attributes["style"] = _merged_style(element, in_style)
    if not attributes:
        return []
    _editable(old)
    edits = [(element.start, element.inner, retag(data[element.start : element.inner], tag, attributes))]
    if tag != element.tag and element.end > element.inner:
        edits.append((element.outer, element.end, f"</{tag}>".encode()))
    return edits


def _same_contours(a: Contours, b: Contours) -> bool:
    return len(a) == len(b) and all(
        closed == shut and np.array_equal(p, q) for (p, closed), (q, shut) in zip(a, b, strict=True)
    )


def _same_colour(a: Colour | None, b: Colour | None) -> bool:
    """Whether two colours are one when written."""
    if a is None or b is None:
        return a is b
    return _hex(a) == _hex(b) and abs(a[3] - b[3]) < 5e-4


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{min(max(round(255 * channel), 0), 255):02x}" for channel in colour[:3])


def _number(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def _decimals(scale: float) -> int:
    """How many are a hundredth of a pixel of the page."""
    return min(max(2 + math.ceil(math.log10(scale) - 1e-9), 0), 9)


def _painted(shape: SvgShape, scale: float, opacity: float = 1.0) -> dict[str, str]:
    """The properties that paint a shape, in an element's own units."""
    found = {}
    for name, colour in (("fill", shape.fill), ("stroke", shape.stroke)):
        found[name] = _hex(colour) if colour else "none"
        alpha = min(max(colour[3] / opacity, 0.0), 1.0) if colour and opacity > 0 else 1.0
        found[f"{name}-opacity"] = _number(alpha, 3)
    found["fill-rule"] = shape.rule
    found["stroke-width"] = _number(min(shape.width / scale, MAX_NUMBER), _decimals(scale))
    return found | {"stroke-linecap": shape.cap, "stroke-linejoin": shape.join}


def _style_attribute(paint: Mapping[str, str]) -> dict[str, str]:
    """A style says it louder than any plain rule of the file, and than what is inherited."""
    names = ("fill", "fill-opacity", "fill-rule") if paint["fill"] != "none" else ("fill",)
    names += tuple(name for name in paint if name.startswith("stroke-")) if paint["stroke"] != "none" else ()
    return {"style": ";".join(f"{name}:{paint[name]}" for name in ("stroke", *names))}


def _merged_style(element: Element, properties: Mapping[str, str]) -> str:
    """The style attribute with some properties set."""
    kept = [part.strip() for part in element.attributes.get("style", "").split(";")]
    kept = [part for part in kept if part and part.partition(":")[0].strip().lower() not in properties]
    return ";".join([*kept, *(f"{name}:{value}" for name, value in properties.items())])


def _d(contours: Contours, matrix: Matrix) -> str:
    """Path data in an element's own coordinates, to a hundredth of a pixel; straight curves are written as lines."""
    back = inverse_of(matrix)
    decimals = _decimals(scale_of(matrix))
    near = 0.5 * 10.0**-decimals
    pieces: list[str] = []
    for points, closed in contours:
        p = applied(back, np.asarray(points, np.float64))
        if not np.isfinite(p).all() or len(p) < 3 or len(p) % 3 != (not closed):
            raise ValueError("A contour needs finite points, 3 n + 1 of them if it is open and 3 n if it is closed.")
        if closed:
            p = np.concatenate([p, p[:1]])
        ends = p[::3]
        third, two_thirds = (2 * ends[:-1] + ends[1:]) / 3, (ends[:-1] + 2 * ends[1:]) / 3
        bend = np.maximum(np.abs(p[1::3] - third), np.abs(p[2::3] - two_thirds)).max(1)
        straight: list[bool] = (bend <= near).tolist()
        words = [" ".join((_number(x, decimals), _number(y, decimals))) for x, y in p.tolist()]
        pieces.append(f"M{words[0]}")
        for k, is_line in enumerate(straight):
            if not is_line:
                pieces.append(f"C{' '.join(words[3 * k + 1 : 3 * k + 4])}")
            elif not (closed and k == len(straight) - 1):
                pieces.append(f"L{words[3 * k + 3]}")
        if closed:
            pieces.append("Z")
    return "".join(pieces)


_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _escape(text: str) -> str:
    """Text between tags; characters that XML cannot hold are dropped."""
    text = _NOT_XML.sub("", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("\r", "&#13;")


def _quote(text: str) -> str:
    """Text between quotes."""
    return _escape(text).replace('"', "&quot;").replace("\n", "&#10;").replace("\t", "&#9;")


def retag(raw: bytes, tag: str, attributes: Mapping[str, str | None]) -> bytes:
    """A start tag with another name and some attributes set, or taken out (None); the others keep their bytes."""
    name = re.match(rb"<[^\s/>]+", raw)
    assert name is not None
    close = b"/>" if raw.endswith(b"/>") else b">"
    waiting = dict(attributes)
    pieces, at = [f"<{tag}".encode()], name.end()
    for found in ATTRIBUTE.finditer(raw, at, len(raw) - len(close)):
        key = found[1].decode()
        if key in attributes:
            pieces.append(raw[at : found.start()])
            if (value := waiting.pop(key, None)) is not None:
                pieces.append(f' {key}="{_quote(value)}"'.encode())
            at = found.end()
    rest = raw[at : len(raw) - len(close)]
    new = "".join(f' {key}="{_quote(value)}"' for key, value in waiting.items() if value is not None)
    return b"".join([*pieces, rest.rstrip() if new else rest, new.encode(), close])


def _path(shape: SvgShape, matrix: Matrix, prefix: str, paint: Mapping[str, str], name: str | None = None) -> str:
    words = [f'{key}="{_quote(value)}"' for key, value in paint.items()]
    if name:
        words.insert(0, f'id="{_quote(name)}"')
    return f'<{prefix}path {" ".join(words)} d="{_d(shape.contours, matrix)}"/>'


def _unique(name: str, taken: Collection[str]) -> str:
    """`name` as an id that no other element has."""
    name = re.sub(r"[^\w.-]+", "-", name).strip("-") or "group"
    name = name if re.match(r"[^\W\d]", name) else f"g-{name}"
    return next(each for each in (name, *(f"{name}-{k}" for k in range(2, len(taken) + 3))) if each not in taken)


def _recipe_text(recipe: str) -> str:
    """The recipe as XML. JSON may hold a lone surrogate or U+FFFF inside a string; an escape says the same."""
    return _escape(_NOT_XML.sub(lambda found: f"\\u{ord(found[0]):04x}", recipe))


def _recipe_edit(tree: Tree, prefix: str, recipe: str) -> tuple[int, int, bytes]:
    element = next((e for e in tree.elements if e.tag.rpartition(":")[2] == "sdsedit-recipe"), None)
    new = f"<sdsedit-recipe>{_recipe_text(recipe)}</sdsedit-recipe>"
    if element is not None:
        return element.start, element.end, new.encode()
    at = tree.elements[0].inner
    return at, at, f"\n<{prefix}metadata>{new}</{prefix}metadata>".encode()


def new_svg(
    width: float,  # pixels
    height: float,
    background: Sequence[float] | None,  # red, green, blue, 0..1; None: nothing is painted
    groups: Sequence[tuple[str, Sequence[SvgShape]]],  # (name, shapes), painted in this order
    recipe: str | None = None,  # JSON
) -> bytes:
    """A drawing from nothing, one <g> a group, to a hundredth of a pixel. Ends and joins are round unless a shape says
    otherwise."""
    sides = f'width="{_number(width, 2)}" height="{_number(height, 2)}"'
    lines = [
        f'<svg xmlns="{SVG_NAMESPACE}" {sides} viewBox="0 0 {_number(width, 2)} {_number(height, 2)}" fill="none" '
        f'stroke-linecap="round" stroke-linejoin="round">'
    ]
    if recipe is not None:
        lines.append(f"<metadata><sdsedit-recipe>{_recipe_text(recipe)}</sdsedit-recipe></metadata>")
    taken: set[str] = {"background"}
    if background is not None:
        lines.append(f'<rect id="background" {sides} fill="{_hex(background)}"/>')
    default = {"fill": "none", "fill-opacity": "1", "fill-rule": "nonzero", "stroke": "none", "stroke-opacity": "1"}
    default |= {"stroke-linecap": "round", "stroke-linejoin": "round"}
    for name, shapes in groups:
        taken.add(key := _unique(name, taken))
        lines.append(f'<g id="{_quote(key)}">')
        if key != name:
            lines.append(f"<title>{_escape(name)}</title>")
        for shape in shapes:
            paint = {name: value for name, value in _painted(shape, 1.0).items() if default.get(name) != value}
            if shape.stroke is None:
                paint = {name: value for name, value in paint.items() if not name.startswith("stroke")}
            own = shape.id if shape.id and shape.id not in taken else None
            taken.update(filter(None, [own]))
            lines.append(_path(shape, IDENTITY, "", paint, own))
        lines.append("</g>")
    return ("\n".join([*lines, "</svg>"]) + "\n").encode()
