"""A tree of elements to the shapes that it paints, in pixels of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sdsedit.errors import InputRefused, printable
from sdsedit.io.svg.drawing import MAX_CURVES, MAX_DEPTH, MAX_NUMBER, MAX_SIDE, Colour, Matrix, SvgShape
from sdsedit.io.svg.elements import ANIMATIONS, REFERENCE, Element, Tree
from sdsedit.io.svg.matrices import applied, fitted, inverse_of, parse_transform, scale_of, times
from sdsedit.io.svg.outlines import SHAPES, TooLong, outline_of, path_data
from sdsedit.io.svg.styles import CSS_GEOMETRY, INHERITED, INITIAL, NOT_INHERITED, UNDRAWN, Sheet
from sdsedit.io.svg.values import SPACE, Malformed, parse_colour, parse_length, parse_numbers, parse_share


class Page:
    """Draws the elements of a file into `shapes`."""

    def __init__(self, tree: Tree, name: str, max_shapes: int) -> None:
        self.tree = tree
        self.name = name
        self.max_shapes = max_shapes
        self.sheet = Sheet(tree, name)
        self.shapes: list[SvgShape] = []
        self.notes: dict[str, None] = {}
        self.undrawn: set[str] = set()  # words for what there was besides shapes
        self.curves = 0
        self.shared = {element.href for element in tree.elements if element.name == "use" and element.href}
        self.gradients: dict[int, Colour | None] = {}
        self.unknown_colour = ""
        self.width, self.height, self.view_box = self._size()

    def _refuse(self, index: int, what: object) -> InputRefused:
        element = self.tree.elements[index]
        key = element.attributes.get("id")
        where = f'<{element.tag} id="{key}">' if key else f"<{element.tag}> (element {index})"
        return InputRefused(f"{self.name} is malformed at {printable(where, 80)}: {what}.")

    def _size(self) -> tuple[float, float, tuple[float, float, float, float]]:
        """Width and height of the page in pixels, and its viewBox."""
        root = self.tree.elements[0].attributes
        try:
            box = parse_numbers(root["viewBox"]) if "viewBox" in root else None
            if box is not None and len(box) != 4:
                raise Malformed("its viewBox must have four numbers")
            sides: list[float | None] = []
            for key in ("width", "height"):
                text = root.get(key, "auto").strip(SPACE)
                sides.append(None if text == "auto" or text.endswith("%") else parse_length(text, 0))
        except Malformed as error:
            raise self._refuse(0, error) from None
        if box is not None and not min(box[2:]) > 0:
            raise InputRefused(
                f"{self.name} has a viewBox of {box[2]:g} x {box[3]:g}: its width and height must be above 0."
            )
        width, height = sides
        if box is None:
            if width is None or height is None:
                raise InputRefused(
                    f"{self.name} does not say how large it is: give it a viewBox or a width and height."
                )
            box = [0.0, 0.0, width, height]
        else:
            if width is None:
                width = height * box[2] / box[3] if height is not None else box[2]
            if height is None:
                height = width * box[3] / box[2]
        if not (min(width, height) >= 1e-3 and max(width, height) <= MAX_SIDE):
            raise InputRefused(
                f"{self.name} is {width:g} x {height:g} pixels: its sides must be above 0 and at most {MAX_SIDE:,}."
            )
        return width, height, (box[0], box[1], box[2], box[3])

    def draw(self) -> None:
        root = self.tree.elements[0]
        try:
            matrix = fitted(self.view_box, self.width, self.height, root.attributes.get("preserveAspectRatio", ""))
            matrix = times(parse_transform(root.attributes.get("transform", "")), matrix)
        except Malformed as error:
            raise self._refuse(0, error) from None
        self._visit(0, INITIAL, matrix, 1.0, self.view_box[2:], 0, None)
        if self.sheet.ignored:
            self.notes["Style rules of other kinds than for a tag, a class or an id are not applied."] = None
        if self.unknown_colour:
            self.notes[f"Colours that are not understood, such as {self.unknown_colour}, are not applied."] = None
        if not self.shapes:
            only = " and ".join(sorted(self.undrawn))
            what = f"holds only {only}, which cannot be edited: turn" if only else "has no shapes that are drawn: turn"
            raise InputRefused(f"{self.name} {what} what should change into paths first.")
        if not any(self._on_page(shape) for shape in self.shapes):
            raise InputRefused(f"{self.name} has nothing on its page: every shape lies outside its viewBox.")

    def _on_page(self, shape: SvgShape) -> bool:
        points = np.concatenate([points for points, _ in shape.contours])
        reach = shape.width / 2 if shape.stroke else 0.0
        low, high = points.min(0) - reach, points.max(0) + reach
        return bool((high > 0).all() and low[0] < self.width and low[1] < self.height)

    def _visit(
        self,
        index: int,
        above: Mapping[str, str],
        matrix: Matrix,
        opacity: float,
        view: tuple[float, float],
        depth: int,
        fixed: str | None,
    ) -> None:
        """Draw an element and what is in it."""
        element = self.tree.elements[index]
        name = element.name
        if name == "text":
            self.undrawn.add("text")
            self.notes["Text in the file is kept but not drawn."] = None
        elif name == "image":
            self.undrawn.add("pictures")
            self.notes["Pictures in the file are kept but not drawn."] = None
        if name not in SHAPES and name not in ("svg", "g", "a", "switch", "use", "symbol"):
            return
        if depth > MAX_DEPTH:
            raise InputRefused(f"{self.name} has references more than {MAX_DEPTH} deep in each other: flatten it.")
        style = self._style(element, above)
        if style["display"].lower() == "none":
            return
        try:
            opacity *= parse_share(style["opacity"])
            if depth and name != "symbol":
                matrix = times(matrix, parse_transform(element.attributes.get("transform", "")))
            if element.attributes.get("id") in self.shared:
                fixed = fixed or "other places of the file draw it too"
            if name in SHAPES:
                self._shape(index, style, matrix, opacity, view, fixed)
                return
            if parse_share(style["opacity"]) < 1:
                self.notes["The opacity of groups is drawn as that of each of their shapes."] = None
            inside: list[int] = element.children
            if name == "use":
                x, y = (parse_length(element.attributes.get(key, "0"), view[k]) for k, key in enumerate("xy"))
                matrix = times(matrix, (1.0, 0.0, 0.0, 1.0, x, y))
                target = self.tree.ids.get(element.href or "", -1)
                inside = [target] if target >= 0 else []
                fixed = "it is drawn through <use>"
                if inside and self.tree.elements[target].name in ("symbol", "svg"):
                    matrix, view = self._viewport(self.tree.elements[target], element, matrix, view)
                    style = self._style(self.tree.elements[target], style)
                    opacity *= parse_share(style["opacity"])
                    inside = self.tree.elements[target].children
            elif name == "symbol":
                return  # drawn only through <use>
            elif name == "svg" and depth:
                matrix, view = self._viewport(element, element, matrix, view)
            elif name == "switch":
                tests = {"requiredExtensions", "requiredFeatures", "systemLanguage"}
                inside = [k for k in inside if not tests & set(self.tree.elements[k].attributes)][:1]
        except Malformed as error:
            raise self._refuse(index, error) from None
        for child in inside:
            self._visit(child, style, matrix, opacity, view, depth + 1, fixed)

    def _viewport(
        self, element: Element, placed: Element, matrix: Matrix, view: tuple[float, float]
    ) -> tuple[Matrix, tuple[float, float]]:
        """The coordinates inside a nested <svg>, or inside the <symbol> that <use> `placed`."""
        self.notes["What reaches out of an <svg> or <symbol> in the file is drawn, not clipped."] = None
        get = element.attributes.get
        x, y = (parse_length(get(key, "0"), view[k]) for k, key in enumerate("xy"))
        width, height = (
            parse_length(value, view[k])
            if (value := placed.attributes.get(key, get(key, "auto"))) != "auto"
            else view[k]
            for k, key in enumerate(("width", "height"))
        )
        matrix = times(matrix, (1.0, 0.0, 0.0, 1.0, x, y))
        if "viewBox" not in element.attributes:
            return matrix, (width, height)
        box = parse_numbers(element.attributes["viewBox"])
        if len(box) != 4 or not min(*box[2:], width, height) > 0:
            raise Malformed("its viewBox, width and height must be above 0")
        fit = fitted((box[0], box[1], box[2], box[3]), width, height, get("preserveAspectRatio", ""))
        return times(matrix, fit), (box[2], box[3])

    def _style(self, element: Element, above: Mapping[str, str]) -> dict[str, str]:
        """The computed values: an element's own, else those inherited."""
        style = {name: above[name] for name in INHERITED} | NOT_INHERITED
        declared, by_css = self.sheet.declared(element)
        if by_css.keys() & CSS_GEOMETRY and element.name != "svg":
            self.notes["Places and transforms that a style gives are not applied."] = None
        for name, value in declared.items():
            if name not in INITIAL:
                continue
            word = value.lower()
            if word == "inherit" or (name == "color" and word == "currentcolor"):
                value = above[name]
            elif word in ("initial", "unset", "revert"):
                value = above[name] if word == "unset" and name in INHERITED else INITIAL[name]
            elif name in ("fill", "stroke", "color", "stop-color"):
                if not word.startswith("url(") and word not in ("none", "currentcolor") and parse_colour(value) is None:
                    self.unknown_colour = self.unknown_colour or printable(value, 40)
                    continue
            elif name in UNDRAWN and word not in ("none", "normal", "0", INITIAL[name]):
                self.notes[f"{UNDRAWN[name]} in the file are kept but not drawn."] = None
            style[name] = value
        return style

    def _shape(
        self,
        index: int,
        style: dict[str, str],
        matrix: Matrix,
        opacity: float,
        view: tuple[float, float],
        fixed: str | None,
    ) -> None:
        element = self.tree.elements[index]
        scale = scale_of(matrix)
        diagonal = math.hypot(*view) / math.sqrt(2)
        fill, fill_frozen = self._paint(style, "fill", opacity)
        stroke, stroke_frozen = self._paint(style, "stroke", opacity)
        width = parse_length(style["stroke-width"], diagonal)
        if width < 0:
            raise Malformed("its stroke-width is below 0")
        try:
            outline, count = outline_of(path_data(element, *view), MAX_CURVES - self.curves)
        except TooLong:
            raise InputRefused(f"{self.name} has more than {MAX_CURVES:,} curves: simplify it.") from None
        except (OverflowError, ZeroDivisionError):
            raise Malformed("its numbers are too large or too small") from None
        self.curves += count
        fill = None if element.name == "line" else fill
        stroke = None if width == 0 else stroke
        hidden = style["visibility"].lower() in ("hidden", "collapse")
        if hidden or not (fill or stroke) or not outline or not scale > 0:
            return
        if len(self.shapes) == self.max_shapes:
            raise InputRefused(f"{self.name} has more than {self.max_shapes:,} shapes: simplify it.")
        if fill and stroke and opacity < 1:
            self.notes["The opacity of groups is drawn as that of each of their shapes."] = None
        if stroke and not math.isclose(math.hypot(*matrix[:2]), math.hypot(*matrix[2:4]), rel_tol=0.05):
            self.notes["Strokes that are stretched more one way than the other are drawn evenly."] = None
        contours = tuple((applied(matrix, points), closed) for points, closed in outline)
        if not all(np.isfinite(points).all() and np.abs(points).max() <= MAX_NUMBER for points, _ in contours):
            raise Malformed(f"it reaches beyond {MAX_NUMBER:g} pixels")
        if any(self.tree.elements[child].name in ANIMATIONS for child in element.children):
            fixed = fixed or "it is animated"
        if element.name != "path" and self.sheet.tags & {element.name, "path"}:
            fixed = fixed or "a style rule is made for its tag"
        far = max(np.abs(points).max() for points, _ in (*contours, *outline))
        if far > 0.1 * MAX_NUMBER or max(map(abs, inverse_of(matrix)[:4])) > 3e4:  # new numbers might be refused
            fixed = fixed or "its numbers are too large to be written again"
        cap, join = style["stroke-linecap"].lower(), style["stroke-linejoin"].lower()
        self.shapes.append(
            SvgShape(
                contours=contours,
                fill=fill,
                stroke=stroke,
                width=width * scale,
                rule="evenodd" if style["fill-rule"].lower() == "evenodd" else "nonzero",
                cap="round" if cap == "round" else "square" if cap == "square" else "butt",
                join="round" if join == "round" else "bevel" if join == "bevel" else "miter",
                id=element.attributes.get("id"),
                classes=tuple(element.attributes.get("class", "").split()),
                element=index,
                span=(element.start, element.end),
                transform=matrix,
                opacity=opacity,
                fill_frozen=fill_frozen,
                stroke_frozen=stroke_frozen,
                fixed=fixed,
            )
        )

    def _paint(self, style: Mapping[str, str], name: str, opacity: float) -> tuple[Colour | None, bool]:
        """The colour of a fill or a stroke with all opacities in it, None where nothing shows; whether it is frozen."""
        colour, frozen = self._resolve(style[name], style)
        if colour is None:
            return None, frozen
        alpha = colour[3] * parse_share(style[f"{name}-opacity"]) * opacity
        return (*colour[:3], alpha) if alpha > 0 else None, frozen

    def _resolve(self, value: str, style: Mapping[str, str]) -> tuple[Colour | None, bool]:
        if reference := REFERENCE.match(value):
            target = self.tree.ids.get(reference[1].strip(), -1)
            if target >= 0 and self.tree.elements[target].name in ("linearGradient", "radialGradient"):
                self.notes["Gradients are drawn in their mean colour, and keep their colours."] = None
                if target not in self.gradients:
                    self.gradients[target] = self._gradient(target)
                return self.gradients[target], True
            rest = value[reference.end() :].strip()
            if target >= 0:
                self.notes["Patterns in the file are kept but not drawn."] = None
            colour = self._resolve(rest, style)[0] if rest and not REFERENCE.match(rest) else None
            return colour, target >= 0
        if value.lower() == "none":
            return None, False
        return parse_colour(style["color"] if value.lower() == "currentcolor" else value), False

    def _gradient(self, index: int) -> Colour | None:
        """The mean colour along a gradient, premultiplied: the integral of its ramp from offset 0 to 1."""
        elements = self.tree.elements
        stops: list[int] = []
        for _ in range(MAX_DEPTH):  # a gradient without stops has those of the one that it refers to
            stops = [k for k in elements[index].children if elements[k].name == "stop"]
            further = self.tree.ids.get(elements[index].href or "", -1)
            if stops or further < 0:
                break
            index = further
        if not stops:
            return None
        above = self._style(elements[index], INITIAL)
        offsets, colours = [0.0], []
        for k in stops:
            try:
                style = self._style(elements[k], above)
                offset = max(parse_share(elements[k].attributes.get("offset", "0")), offsets[-1])
                text = style["color"] if style["stop-color"].lower() == "currentcolor" else style["stop-color"]
                colour = parse_colour(text) or (0.0, 0.0, 0.0, 0.0)
                alpha = colour[3] * parse_share(style["stop-opacity"])
            except Malformed as error:
                raise self._refuse(k, error) from None
            offsets.append(offset)
            colours.append((*(alpha * channel for channel in colour[:3]), alpha))
        x = np.array([*offsets, 1.0])
        y = np.array([colours[0], *colours, colours[-1]])
        r, g, b, a = ((x[1:] - x[:-1])[:, None] * (y[1:] + y[:-1]) / 2).sum(0).tolist()
        return (r / a, g / a, b / a, a) if a > 0 else None
