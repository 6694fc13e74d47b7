"""Transforms as matrices: said, multiplied, applied."""

from __future__ import annotations

import math
import re

import numpy as np

from sdsedit.errors import printable
from sdsedit.io.svg.drawing import IDENTITY, MAX_NUMBER, Matrix
from sdsedit.io.svg.values import SPACE, Malformed, parse_numbers


def times(m: Matrix, n: Matrix) -> Matrix:
    """m n: first n, then m."""
    a, b, c, d, e, f = m
    p, q, r, s, t, u = n
    return a * p + c * q, b * p + d * q, a * r + c * s, b * r + d * s, a * t + c * u + e, b * t + d * u + f


def inverse_of(m: Matrix) -> Matrix:
    a, b, c, d, e, f = m
    det = a * d - b * c
    return d / det, -b / det, -c / det, a / det, (c * f - d * e) / det, (b * e - a * f) / det


def applied(m: Matrix, points: np.ndarray) -> np.ndarray:  # [n, 2] -> [n, 2]
    a, b, c, d, e, f = m
    return points @ np.array([[a, b], [c, d]]) + np.array([e, f])


def scale_of(m: Matrix) -> float:
    """The geometric mean of how much it stretches."""
    return math.sqrt(abs(m[0] * m[3] - m[1] * m[2]))


_TRANSFORM = re.compile(r"[\s,]*(matrix|translate|scale|rotate|skewX|skewY)\s*\(([^()]*)\)[\s,]*")


def parse_transform(text: str) -> Matrix:
    """The value of a `transform` attribute."""
    result, at, text = IDENTITY, 0, text.strip(SPACE)
    while at < len(text):
        step = _TRANSFORM.match(text, at)
        if step is None or len(text) > 10_000:
            raise Malformed(f"{printable(text[at:], 30)} is no transform")
        at = step.end()
        v = parse_numbers(step[2])
        match step[1], len(v):
            case "matrix", 6:
                m = (v[0], v[1], v[2], v[3], v[4], v[5])
            case "translate", 1 | 2:
                m = (1.0, 0.0, 0.0, 1.0, v[0], v[-1] if len(v) == 2 else 0.0)
            case "scale", 1 | 2:
                m = (v[0], 0.0, 0.0, v[-1], 0.0, 0.0)
            case "rotate", 1 | 3:
                x, y = v[1:] or (0.0, 0.0)
                cos, sin = math.cos(math.radians(v[0])), math.sin(math.radians(v[0]))
                m = (cos, sin, -sin, cos, x - cos * x + sin * y, y - sin * x - cos * y)
            case "skewX", 1:
                m = (1.0, 0.0, math.tan(math.radians(v[0])), 1.0, 0.0, 0.0)
            case "skewY", 1:
                m = (1.0, math.tan(math.radians(v[0])), 0.0, 1.0, 0.0, 0.0)
            case _:
                raise Malformed(f"{step[1]} with {len(v)} numbers is no transform")
        result = times(result, m)
        if not max(map(abs, result)) <= 1e3 * MAX_NUMBER:
            raise Malformed(f"its transform is beyond {1e3 * MAX_NUMBER:g}")
    return result


def fitted(view_box: tuple[float, float, float, float], width: float, height: float, aspect: str) -> Matrix:
    """From the units of a viewBox to a place of width x height, as preserveAspectRatio says."""
    x, y, w, h = view_box
    words = [word for word in aspect.split() if word != "defer"] or ["xMidYMid"]
    if words[0] == "none":
        return width / w, 0.0, 0.0, height / h, -x * width / w, -y * height / h
    place = re.fullmatch(r"x(Min|Mid|Max)Y(Min|Mid|Max)", words[0])
    if place is None or words[1:] not in ([], ["meet"], ["slice"]):
        raise Malformed(f"{printable(aspect, 30)} is no preserveAspectRatio")
    s = (max if words[1:] == ["slice"] else min)(width / w, height / h)
    share = {"Min": 0.0, "Mid": 0.5, "Max": 1.0}
    return s, 0.0, 0.0, s, share[place[1]] * (width - s * w) - s * x, share[place[2]] * (height - s * h) - s * y
