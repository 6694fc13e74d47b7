"""Shapes and path data as chains of cubics."""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Iterator

import numpy as np

from sdsedit.errors import printable
from sdsedit.io.svg.drawing import MAX_CURVES
from sdsedit.io.svg.elements import Element
from sdsedit.io.svg.values import NUMBER, SPACE, Malformed, parse_float, parse_length, parse_numbers

_ARITY = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "A": 7, "Z": 0}
_COMMAND = re.compile(r"([MmLlHhVvCcSsQqTtAaZz])([^MmLlHhVvCcSsQqTtAaZz]*)")
_ARC_NUMBER = re.compile(rf"[\s,]*({NUMBER.pattern})")
_ARC_FLAG = re.compile(r"[\s,]*([01])")
_CLOSED = 1e-6  # an end this near to its start is the start


class TooLong(Exception):
    """More curves than there is room for."""


def _commands(d: str, room: int) -> Iterator[tuple[str, list[float]]]:
    """(letter, its numbers), as many at a time as it takes; a further pair after M comes as L."""
    d = d.strip(SPACE)
    if d and d[0] not in "Mm":
        raise Malformed("a path must begin with M")
    for command in _COMMAND.finditer(d):
        letter, text = command[1], command[2]
        arity = _ARITY[letter.upper()]
        values = _arc_numbers(text) if arity == 7 else parse_numbers(text)
        if len(values) != arity and (not values or not arity or len(values) % arity):
            raise Malformed(f"{letter} with {len(values)} numbers is no path command")
        for k in range(0, max(len(values), 1), max(arity, 1)):
            room -= 1
            if room < 0:
                raise TooLong
            yield letter, values[k : k + arity]
            letter = {"M": "L", "m": "l"}.get(letter, letter)


def _arc_numbers(text: str) -> list[float]:
    """The numbers of an arc command, whose flags may stand without a space: `a1 1 0 01.5.5`."""
    values, at, end = [], 0, len(text.rstrip(SPACE + ","))
    while at < end and len(values) <= 7 * MAX_CURVES:
        found = (_ARC_FLAG if len(values) % 7 in (3, 4) else _ARC_NUMBER).match(text, at)
        if found is None:
            raise Malformed(f"{printable(text[at:].strip(), 30)} is no part of an arc")
        values.append(parse_float(found[1]))
        at = found.end()
    return values


def outline_of(d: str, room: int) -> tuple[list[tuple[np.ndarray, bool]], int]:
    """Path data as chains of cubics, (points [m, 2], closed), and how much of the room it takes: commands or curves.

    Complex arithmetic. `TooLong`: there is not room enough.
    """
    contours: list[tuple[np.ndarray, bool]] = []
    points: list[complex] = []
    here = start = control = 0j
    before = ""
    count = 0

    def line(end: complex) -> None:
        points.extend((here + (end - here) / 3, here + (end - here) * 2 / 3, end))

    def finish(closed: bool) -> None:
        if closed and len(points) > 1 and abs(points[-1] - points[0]) > _CLOSED:
            line(points[0])
        if closed and len(points) == 1:
            points.extend(2 * points)  # a dot
        elif closed and points:
            points.pop()
        if len(points) > 1:
            contours.append((np.array(points).view(np.float64).reshape(-1, 2), closed))
        points.clear()

    for letter, v in _commands(d, room):
        count += 1
        kind = letter.upper()
        origin = here if letter.islower() else 0j
        pairs = [origin + complex(x, y) for x, y in zip(v[0::2], v[1::2], strict=False)]
        if kind == "M":
            finish(False)
            here = start = pairs[0]
            points.append(here)
        elif kind == "Z":
            finish(True)
            here = start
        else:
            if not points:
                points.append(here)
            if kind == "L":
                line(end := pairs[0])
            elif kind == "H":
                line(end := complex(origin.real + v[0], here.imag))
            elif kind == "V":
                line(end := complex(here.real, origin.imag + v[0]))
            elif kind == "A":
                end = origin + complex(v[5], v[6])
                points.extend(_arc(here, abs(v[0]), abs(v[1]), v[2], v[3] > 0, v[4] > 0, end))
            elif kind in "CS":
                first = pairs[0] if kind == "C" else 2 * here - control if before in "CS" and before else here
                control, end = pairs[-2:]
                points.extend((first, control, end))
            else:  # a quadratic curve is the cubic with its control point two thirds of the way from both ends
                control = pairs[0] if kind == "Q" else 2 * here - control if before in "QT" and before else here
                end = pairs[-1]
                points.extend((here + (control - here) * 2 / 3, end + (control - end) * 2 / 3, end))
            here = end
        before = kind
    finish(False)
    count = max(count, sum(len(points) // 3 for points, _ in contours))
    if count > room:
        raise TooLong
    return contours, count


def _arc(p: complex, rx: float, ry: float, degrees: float, large: bool, sweep: bool, q: complex) -> list[complex]:
    """An elliptical arc from p to q as cubics of at most a quarter turn (SVG 2, B.2.4), without p.

    In coordinates where the ellipse is the unit circle, with u = (p - q) / 2 and m = (p + q) / 2, the centre is
    m +- i u sqrt(1 / |u|^2 - 1); radii that do not reach are scaled until they do.
    """
    if p == q:
        return []
    if min(rx, ry) < 1e-9 or abs(p - q) < 1e-9:
        return [p + (q - p) / 3, p + (q - p) * 2 / 3, q]
    turn = cmath.rect(1, math.radians(degrees))

    def unit(z: complex) -> complex:
        z *= turn.conjugate()
        return complex(z.real / rx, z.imag / ry)

    reach = abs(unit(p - q)) / 2
    if reach > 1:
        rx, ry = rx * reach, ry * reach
    u = unit(p - q) / 2
    centre = unit((p + q) / 2) + 1j * u * math.sqrt(max(1 / abs(u) ** 2 - 1, 0)) * (1 if sweep == large else -1)
    first = cmath.phase(unit(p) - centre)
    angle = cmath.phase(unit(q) - centre) - first
    angle += 2 * math.pi * ((sweep and angle < 0) - (not sweep and angle > 0))
    # A quarter turn is 2.7e-4 of the radius off, and that falls with the sixth power of the angle: a tenth of a unit.
    finer = min(max((2.7e-3 * max(rx, ry)) ** (1 / 6), 1.0), 2.0)
    count = max(math.ceil(abs(angle) / (math.pi / 2) * finer - 1e-6), 1)
    k = 4 / 3 * math.tan(angle / count / 4)
    points = []
    for i in range(count):
        a, b = (cmath.rect(1, first + angle * j / count) for j in (i, i + 1))
        for z in (centre + a + 1j * k * a, centre + b - 1j * k * b, centre + b):
            points.append(complex(z.real * rx, z.imag * ry) * turn)
    points[-1] = q
    return points


SHAPES = {  # the attributes that say where it is; a changed shape becomes a path, and loses them
    "path": ("d",),
    "rect": ("x", "y", "width", "height", "rx", "ry"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
    "line": ("x1", "y1", "x2", "y2"),
    "polyline": ("points",),
    "polygon": ("points",),
}


def path_data(element: Element, width: float, height: float) -> str:
    """The path that SVG says a basic shape is (SVG 2, chapter 10); "" if it is not drawn. width, height: what
    percentages are of."""
    diagonal = math.hypot(width, height) / math.sqrt(2)

    def get(key: str, whole: float, otherwise: float = 0.0) -> float:
        text = element.attributes.get(key, "auto").strip(SPACE)
        return otherwise if text == "auto" else parse_length(text, whole)

    if element.name == "path":
        d = element.attributes.get("d", "")
        return "" if d.strip(SPACE) == "none" else d
    if element.name == "line":
        x1, y1, x2, y2 = (get(key, height if key[0] == "y" else width) for key in SHAPES["line"])
        return f"M{x1!r} {y1!r}L{x2!r} {y2!r}"
    if element.name in ("polyline", "polygon"):
        points = parse_numbers(element.attributes.get("points", ""))
        if len(points) % 2:
            raise Malformed(f"{len(points)} numbers are no points")
        return f"M{' '.join(map(repr, points))}{'Z' if element.name == 'polygon' else ''}" if points else ""
    if element.name == "rect":
        x, y, w, h = get("x", width), get("y", height), get("width", width), get("height", height)
        rx, ry = get("rx", width, -1.0), get("ry", height, -1.0)
        rx, ry = max(ry if rx < 0 else rx, 0.0), max(rx if ry < 0 else ry, 0.0)
        if min(w, h) < 0:
            raise Malformed("its width or height is below 0")
        if min(w, h) == 0:
            return ""
        rx, ry = min(rx, w / 2), min(ry, h / 2)
        if min(rx, ry) == 0:
            return f"M{x!r} {y!r}H{x + w!r}V{y + h!r}H{x!r}Z"
        corner = f"A{rx!r} {ry!r} 0 0 1 "
        return (
            f"M{x + rx!r} {y!r}H{x + w - rx!r}{corner}{x + w!r} {y + ry!r}V{y + h - ry!r}{corner}{x + w - rx!r} "
            f"{y + h!r}H{x + rx!r}{corner}{x!r} {y + h - ry!r}V{y + ry!r}{corner}{x + rx!r} {y!r}Z"
        )
    cx, cy = get("cx", width), get("cy", height)
    if element.name == "circle":
        rx = ry = get("r", diagonal)
    else:
        rx, ry = get("rx", width, -1.0), get("ry", height, -1.0)
        rx, ry = max(ry if rx < 0 else rx, 0.0), max(rx if ry < 0 else ry, 0.0)
    if min(rx, ry) < 0:
        raise Malformed("its radius is below 0")
    half = f"A{rx!r} {ry!r} 0 0 1 "
    return f"M{cx + rx!r} {cy!r}{half}{cx - rx!r} {cy!r}{half}{cx + rx!r} {cy!r}Z" if min(rx, ry) > 0 else ""
