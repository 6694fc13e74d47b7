"""What attributes say: numbers, lengths, shares, colours."""

from __future__ import annotations

import re

from sdsedit.errors import printable
from sdsedit.io.svg.drawing import MAX_CURVES, MAX_NUMBER, Colour

NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
SPACE = " \t\r\n\f"
_PIXELS = {  # CSS: 96 to the inch; text is 16 high unless it says otherwise, and what it says is not read
    "": 1.0,
    "px": 1.0,
    "pt": 4 / 3,
    "pc": 16.0,
    "in": 96.0,
    "cm": 96 / 2.54,
    "mm": 9.6 / 2.54,
    "q": 2.4 / 2.54,
    "em": 16.0,
    "rem": 16.0,
    "ex": 8.0,
}


class Malformed(ValueError):
    """A number or a list of them that cannot be read; where it stood is added when it is refused."""


def parse_float(text: str) -> float:
    value = float(text)
    if not abs(value) <= MAX_NUMBER:
        raise Malformed(f"{printable(text, 30)} is beyond {MAX_NUMBER:g}")
    return value


def parse_numbers(text: str) -> list[float]:
    """All numbers of a list, separated by anything from nothing (`1-2`) to spaces and commas."""
    found = NUMBER.findall(text)
    if len(found) > 7 * MAX_CURVES:
        raise Malformed(f"it has more than {7 * MAX_CURVES:,} numbers")
    if rest := NUMBER.sub(" ", text).strip(SPACE + ","):
        raise Malformed(f"{printable(rest.split(None, 1)[0], 30)} is no number")
    values = list(map(float, found))
    if values and not max(map(abs, values)) <= MAX_NUMBER:
        raise Malformed(f"it has a number beyond {MAX_NUMBER:g}")
    return values


def parse_length(text: str, whole: float) -> float:
    """A length in pixels or the file's units; a percentage is of `whole`."""
    text = text.strip(SPACE)
    number = NUMBER.match(text)
    unit = text[number.end() :].strip(SPACE).lower() if number else ""
    if number is None or (unit != "%" and unit not in _PIXELS):
        raise Malformed(f"{printable(text, 30) or 'nothing'} is no length")
    return parse_float(number[0]) * (whole / 100 if unit == "%" else _PIXELS[unit])


def parse_share(text: str) -> float:
    """An opacity or an offset: a number or a percentage, held to 0..1."""
    text = text.strip(SPACE)
    values = parse_numbers(text.removesuffix("%"))
    if len(values) != 1:
        raise Malformed(f"{printable(text, 30) or 'nothing'} is no number")
    return min(max(values[0] / (100 if text.endswith("%") else 1), 0.0), 1.0)


def parse_colour(text: str) -> Colour | None:
    """A CSS colour, or None if it is not understood."""
    text = text.strip(SPACE).lower()
    if text.startswith("#"):
        digits = text[1:]
        if not re.fullmatch(r"[0-9a-f]+", digits) or len(digits) not in (3, 4, 6, 8):
            return None
        if len(digits) < 6:
            digits = "".join(2 * digit for digit in digits)
        r, g, b, a = (int((digits + "ff")[k : k + 2], 16) / 255 for k in (0, 2, 4, 6))
        return r, g, b, a
    if function := re.fullmatch(r"(rgb|hsl)a?\(([^()]*)\)", text):
        parts = [part for part in re.split(r"[\s,/]+", function[2]) if part]
        if len(parts) not in (3, 4):
            return None
        try:
            alpha = parse_share(parts[3]) if len(parts) == 4 else 1.0
            if function[1] == "rgb":
                r, g, b = (
                    parse_share(part if part.endswith("%") else repr(parse_float(part) / 255)) for part in parts[:3]
                )
                return r, g, b, alpha
            import colorsys

            hue = parse_float(parts[0].removesuffix("deg")) / 360 % 1
            r, g, b = colorsys.hls_to_rgb(hue, parse_share(parts[2]), parse_share(parts[1]))
            return r, g, b, alpha
        except ValueError:
            return None
    if text == "transparent":
        return 0.0, 0.0, 0.0, 0.0
    from PIL import ImageColor

    if text not in ImageColor.colormap:
        return None
    red, green, blue = ImageColor.getrgb(text)[:3]
    return red / 255, green / 255, blue / 255, 1.0
