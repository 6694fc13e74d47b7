"""Drawings: any bytes, any elements in any others, damaged files; what is read is safe and comes back."""

from __future__ import annotations

import contextlib
import gzip
import re
import time
from random import Random
from xml.etree import ElementTree

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sdsedit.errors import InputRefused
from sdsedit.io import svg
from sdsedit.io.svg import SvgDocument, SvgShape, animate_svg, new_svg, read_recipe, read_svg, write_svg
from tests.properties.rules import damaged, examples, is_a_sentence, read_or_refused

HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 64 64">'
WHOLE = [
    f"""<?xml version="1.0"?>{HEAD}<style>.a {{fill: red; stroke: #00f}} path#p {{opacity: .5}}</style>
    <defs><linearGradient id="g"><stop stop-color="red"/><stop offset="1"/></linearGradient>
    <symbol id="s"><circle r="4"/></symbol><clipPath id="c"><rect width="9" height="9"/></clipPath></defs>
    <g transform="translate(1 2) rotate(30)">
    <path id="p" class="a" d="M1 1C2 3 4 5 6 7S9 9 20 20Q1 2 3 4T9 1A4 5 6 0 1 9 9z"/>
    <use href="#s" x="9"/><use xlink:href="#p"/></g><rect x="1" y="2" width="30" height="20" rx="3" fill="url(#g)"/>
    <polygon points="1,2 30,4 5,60" style="fill-rule:evenodd;stroke-width:2%"/><ellipse cx="9" cy="9" rx="3" ry="2"/>
    <text>words</text><metadata><sdsedit-recipe>{{"schema": 1}}</sdsedit-recipe></metadata></svg>""".encode(),
    new_svg(
        40,
        30,
        (1, 1, 1),
        [("a", [SvgShape(((np.array([[0.0, 0], [9, 1], [2, 9], [30, 20]]), False),), stroke=(1, 0, 0, 1), width=2)])],
        recipe='{"schema": 1}',
    ),
    f'{HEAD}<script>1</script><path onclick="x" d="M0 0h9v9z"/><foreignObject><a href="javascript:x"/></foreignObject>'
    "</svg>".encode(),
]
WORDS = [
    *(
        b"<g>",
        b"</g>",
        b"<path ",
        b"/>",
        b"<",
        b">",
        b'"',
        b"'",
        b"=",
        b"&",
        b"&#10;",
        b"&#x0;",
        b"]]>",
        b"<!--",
        b"-->",
    ),
    *(b"<![CDATA[", b"<?x ", b"?>", b"<!DOCTYPE svg>", b"<!ENTITY a 'b'>", b"&a;", b"xmlns:a='b' ", b"NaN", b"1e999"),
    *(
        b"-",
        b".",
        b"e9",
        b"%",
        b"url(#g)",
        b"url(http://x)",
        b"@import 'x';",
        b"#s",
        b"\xc3",
        b"\x00",
        b"{",
        b"}",
        b"/*",
    ),
    *(b" id='p'", b" href='#c'", b" href='http://x'", b" onload='x'", b" style='fill:red'", b" transform='scale(0)'"),
]
VALUES = [
    *(
        "",
        "0",
        "1",
        "-1",
        "9",
        "1e9",
        "1e999",
        "-0",
        "NaN",
        "inf",
        "1%",
        "2em",
        "3mm",
        "#f00",
        "red",
        "none",
        "inherit",
    ),
    *("currentColor", "rgb(1,2,3)", "rgba(1%,2%,3%,.4)", "url(#a)", "url(#b) red", "#a", "#b", "#c", "0 0 9 9"),
    *("M0 0L9 9", "M1 1h9v9H1z", "M0 0C1 2 3 4 5 6", "A1 2 3 1 1 4 5", "translate(3)", "rotate(30 1 2)", "skewX(90)"),
    *(
        "matrix(1 0 0 0 0 0)",
        "scale(1e9)",
        "evenodd",
        "round",
        "fill:red;stroke:blue",
        "display:none",
        "x{",
        "!important",
    ),
    *("1,2 3,4 5", "xMidYMid slice", "userSpaceOnUse", "é", "\u202e", "a b", "data:image/png;base64,AAAA"),
]
TAGS = [
    "g",
    "path",
    "rect",
    "circle",
    "ellipse",
    "line",
    "polyline",
    "polygon",
    "use",
    "symbol",
    "defs",
    "svg",
    "a",
    "text",
    "style",
    "image",
    "clipPath",
    "mask",
    "linearGradient",
    "radialGradient",
    "stop",
    "pattern",
    "marker",
    "switch",
    "filter",
    "script",
    "foreignObject",
    "animate",
    "set",
    "metadata",
    "title",
    "x",
]
NAMES = [
    "id",
    "class",
    "style",
    "d",
    "points",
    "x",
    "y",
    "x1",
    "y2",
    "cx",
    "cy",
    "r",
    "rx",
    "ry",
    "width",
    "height",
    "transform",
    "viewBox",
    "preserveAspectRatio",
    "href",
    "xlink:href",
    "fill",
    "stroke",
    "stroke-width",
    "opacity",
    "fill-opacity",
    "fill-rule",
    "stroke-linecap",
    "stroke-linejoin",
    "stroke-dasharray",
    "display",
    "visibility",
    "clip-path",
    "mask",
    "filter",
    "marker-end",
    "gradientUnits",
    "gradientTransform",
    "offset",
    "stop-color",
    "onload",
    "font-size",
    "color",
    "vector-effect",
    "paint-order",
]


def safe(data: bytes) -> bool:
    tags = re.sub(rb"(?s)<!--.*?-->|<!\[CDATA\[.*?\]\]>|<\?.*?\?>", b"", data)
    tags = re.sub(rb"(?s)\"[^\"<]*\"|'[^'<]*'(?=[^<]*>)", b'""', tags)
    return not re.search(rb"(?i)<([^<>]*:)?(script|foreignObject|iframe)|<[^<>]*\son\w*\s*=", tags)


def holds(document: SvgDocument) -> None:
    assert 0 < document.width <= svg.MAX_SIDE and 0 < document.height <= svg.MAX_SIDE
    assert 1 <= len(document.shapes) <= svg.MAX_SHAPES and safe(document.data)
    for note in document.notes:
        is_a_sentence(note)
    for shape in document.shapes:
        assert 0 <= shape.span[0] < shape.span[1] <= len(document.data)
        assert shape.fill or shape.stroke or not shape.editable
        for colour in (shape.fill, shape.stroke):
            assert colour is None or all(0 <= channel <= 1 for channel in colour)
        assert np.isfinite(shape.width) and shape.width >= 0 and np.isfinite(shape.transform).all()
        for points, closed in shape.contours:
            assert np.isfinite(points).all() and len(points) % 3 == (0 if closed else 1) and len(points) > 1


def look(data: bytes) -> SvgDocument | None:
    """Read or refused, within a second; what is read is safe, comes back as it is, and can be written changed."""
    before = time.process_time()
    document = read_or_refused(lambda: read_svg(data))
    assert time.process_time() - before < 1
    if document is not None:
        holds(document)
        assert write_svg(document) == document.data
        again = read_svg(document.data)
        assert len(again.shapes) == len(document.shapes) and again.metadata == document.metadata
        changed = {k: _moved(shape) for k, shape in enumerate(document.shapes) if shape.editable}
        out = write_svg(document, changed, added=list(changed.values())[:1], recipe='{"schema": 1}')
        ElementTree.fromstring(out)
        assert read_recipe(out) == '{"schema": 1}' and safe(out)
        read_or_refused(lambda: read_svg(out))  # it may have moved off a very small page
        with contextlib.suppress(InputRefused):
            ElementTree.fromstring(animate_svg(document.data, 2.0))
    return document


def _moved(shape: SvgShape) -> SvgShape:
    from dataclasses import replace

    return replace(shape, contours=tuple((points + 0.5, closed) for points, closed in shape.contours))


@given(data=st.data())
@examples(2)
def test_damaged_drawings(data: st.DataObject):
    look(data.draw(damaged(data.draw(st.sampled_from(WHOLE)), WORDS, most=6)))


@given(data=st.data())
@examples(0.5)
def test_damaged_packed_drawings(data: st.DataObject):
    """SVGZ: what gzip packs is as any other; what does not unpack is refused."""
    packed = gzip.compress(WHOLE[1], mtime=0)
    assert look(packed) is not None
    look(data.draw(damaged(packed)))


def _drawing(random: Random) -> bytes:
    """Elements in elements with attributes, of values that suit them or do not."""

    def element(depth: int) -> str:
        tag = random.choice(TAGS if random.random() < 0.5 else TAGS[:12])
        names = random.sample(NAMES, random.randrange(6))
        if random.random() < 0.7:  # enough to be drawn
            own = {
                "path": {"d": "M1 1L30 9L9 30z"},
                "rect": {"width": "9", "height": "20"},
                "circle": {"r": "5"},
                "use": {"href": random.choice(["#a", "#b", "#c"])},
                "polygon": {"points": "1,2 30,4 5,60"},
            }.get(tag, {})
        else:
            own = {}
        said = {name: random.choice(VALUES) for name in names} | own
        if random.random() < 0.4:
            said["id"] = random.choice("abc")
        words = "".join(f' {name}="{value}"' for name, value in said.items())
        inside = "".join(element(depth + 1) for _ in range(random.randrange(4 if depth < 4 else 1)))
        if tag == "style":
            inside = random.choice(
                [".a{fill:red}", "path,rect{stroke:blue;stroke-width:1e9}", "#a{", "@media x{a{}}", "*{}"]
            )
        return f"<{tag}{words}>{inside}</{tag}>"

    body = "".join(element(0) for _ in range(random.randrange(1, 5)))
    head = HEAD if random.random() < 0.8 else HEAD.replace("0 0 64 64", random.choice(VALUES))
    return f"{head}{body}</svg>".encode()


@given(st.integers(0, 2**32 - 1))
@examples(6)
def test_any_drawing(seed: int):
    look(_drawing(Random(seed)))


@given(
    st.text("MmLlHhVvCcSsQqTtAaZz0123456789.,-+e \n", max_size=80),
    st.sampled_from(
        ["d", "points", "transform", "style", "stroke-dasharray", "fill", "viewBox", "width", "class", "href"]
    ),
)
@examples(2)
def test_any_value(text: str, name: str):
    given = f'<path d="M1 1h20v20z{text}"/>' if name == "d" else f'<path d="M1 1h20v20z" {name}="{text}"/>'
    look(f"{HEAD}{given}<polygon points='1 1 20 1 9 9{text if name == 'points' else ''}'/></svg>".encode())


@given(
    st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"", HEAD.encode(), b"<svg>", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b\x08"]),
)
@examples()
def test_bytes_that_are_no_drawing(noise: bytes, start: bytes):
    assert look(start + noise) is None or start == HEAD.encode()


@given(st.text(max_size=80) | st.sampled_from(["]]>", "</sdsedit-recipe>", "&amp;", "\r\n\t", "\x00\ufffe", "<!--"]))
@examples()
def test_any_recipe_comes_back(text: str):
    import json

    recipe = json.dumps({"schema": 1, "target": text}, ensure_ascii=False)
    document = read_svg(WHOLE[1])
    for data in (write_svg(document, recipe=recipe), new_svg(9, 9, None, [("a", document.shapes)], recipe)):
        ElementTree.fromstring(data)
        assert json.loads(read_recipe(data) or "") == {"schema": 1, "target": text}
        assert json.loads(read_svg(data).metadata or "") == {"schema": 1, "target": text}
