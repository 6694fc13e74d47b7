"""SVG drawings in and out: read what a stranger drew, touch only what is to change, write what is new.

Reading is bounded and closed. The file's size, its elements, their depth and what they expand to have limits; nothing
that it refers to is ever opened; scripts, event attributes and foreign content are cut out of its bytes. `read_svg`
gives plain numpy curves in the pixels of the page, each with the place in the file that it came from. `write_svg`
splices the bytes: an element that was not changed comes back as it was, byte for byte.

References: SVG 2 (W3C Candidate Recommendation, 2018), chapters 7 to 13 and appendix B.2 (arcs); CSS 2.1, chapter 6
(the cascade). Of CSS only rules for a tag, a class, an id and their joins (`path.ink#a`) are understood.
"""

from __future__ import annotations

import cmath
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from xml.parsers import expat

import numpy as np

from sdsedit.errors import InputRefused, printable

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
_SVG = "http://www.w3.org/2000/svg"
_XHTML = "http://www.w3.org/1999/xhtml"
_XLINK = "http://www.w3.org/1999/xlink"


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


def read_svg(source: Path | bytes, max_bytes: int = MAX_BYTES, max_shapes: int = MAX_SHAPES) -> SvgDocument:
    """Read a drawing: SVG, or SVGZ, from a file or from bytes.

    Raises `InputRefused`: an address, a missing, empty or too large file, one that is not UTF-8 or not well-formed; a
    DOCTYPE; a reference to anything outside the file; more elements, shapes, curves or depth than the limits above, or
    references that multiply to more, or run in circles; numbers that are none, not finite or beyond `MAX_NUMBER`; no
    size, or one that is not above 0; nothing to draw, or nothing of it on the page.
    """
    data, name = _load(source, max_bytes)
    return _read(data, name, max_shapes)


def read_svg_bounded(
    source: Path | bytes,
    max_bytes: int = MAX_BYTES,
    max_shapes: int = MAX_SHAPES,
    seconds: float = 20.0,
    memory: int = 2**30,  # bytes of address space; not held on Windows
) -> SvgDocument:
    """`read_svg` for files of strangers: first in a process of its own, that may be killed.

    Reading depends on the bytes alone. What a child process could read within `seconds` and `memory` is then read again
    here, so no data of the child's is trusted. A child that hangs, dies or runs out of memory is one `InputRefused`.
    """
    data, name = _load(source, max_bytes)
    code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sdsedit.io import svg; svg._child()"
    task = json.dumps({"name": name, "max_shapes": max_shapes, "seconds": math.ceil(seconds) + 1, "memory": memory})
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    paths = json.dumps([path or os.getcwd() for path in sys.path])
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", code, paths, task],
            input=data,
            capture_output=True,
            timeout=seconds,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise InputRefused(f"{name} takes longer than {seconds:g} seconds to read: simplify it.") from None
    answer = child.stdout.decode("utf-8", "replace")
    if child.returncode or not answer:
        raise InputRefused(f"{name} cannot be read: reading it fails or needs over {memory / 2**20:g} MiB of memory.")
    if said := json.loads(answer):
        raise InputRefused(said["refused"], said["status"])
    return _read(data, name, max_shapes)


def _child() -> None:
    """The other side of `read_svg_bounded`: bytes from standard input, {} or a refusal to standard output."""
    task = json.loads(sys.argv[2])
    if sys.platform != "win32":
        import resource

        for kind, most in ((resource.RLIMIT_AS, task["memory"]), (resource.RLIMIT_CPU, task["seconds"])):
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with contextlib.suppress(ValueError, OSError):  # macOS knows the names, and refuses some of them
                resource.setrlimit(kind, (most, most))
    try:
        _read(sys.stdin.buffer.read(), task["name"], task["max_shapes"])
    except InputRefused as refusal:
        print(json.dumps({"refused": str(refusal), "status": refusal.status}))
    else:
        print("{}")


def read_recipe(source: Path | bytes) -> str | None:
    """The recipe that `write_svg` or `new_svg` put into a file, or None. Refuses what `read_svg` refuses unseen."""
    data, name = _load(source, MAX_BYTES)
    return _recipe(_scan(data, name))


def _load(source: Path | bytes, max_bytes: int) -> tuple[bytes, str]:
    """The bytes of an SVG, unpacked, and what to call it in a sentence."""
    if isinstance(source, bytes):
        name, data = "The drawing", source[: max_bytes + 1]
    else:
        from sdsedit.io.images import is_address

        if is_address(str(source)):
            raise InputRefused("Addresses are never fetched: save the drawing first and give the file's name.")
        name = printable(Path(source).name, 100)
        try:
            if not Path(source).is_file():
                what = "is a folder" if Path(source).is_dir() else "is not there"
                raise InputRefused(f"{name} {what}: give the name of an SVG file.")
            with Path(source).open("rb") as file:
                data = file.read(max_bytes + 1)
        except OSError as error:
            raise InputRefused(f"{name} cannot be opened: {error.strerror}.") from None
    if data[:2] == b"\x1f\x8b" and len(data) <= max_bytes:
        try:
            unpacking = zlib.decompressobj(wbits=31)
            data = unpacking.decompress(data, max_bytes + 1)
            if len(data) <= max_bytes and not unpacking.eof:
                raise zlib.error
        except zlib.error:
            raise InputRefused(f"{name} is a damaged SVGZ file: it cannot be unpacked.") from None
    if len(data) > max_bytes:
        raise InputRefused(f"{name} is larger than the limit of {max_bytes / 2**20:g} MiB.", status=413)
    if not data.strip():
        raise InputRefused(f"{name} is empty: give an SVG file.")
    return data, name


def _read(data: bytes, name: str, max_shapes: int) -> SvgDocument:
    tree = _scan(data, name)
    taken_out = tuple(f"Taken out of the file for safety: {what}." for what in tree.unsafe)
    if tree.cuts:
        data = _splice(data, [(start, end, b"") for start, end in tree.cuts])
        tree = _scan(data, name)
        if tree.cuts:
            raise InputRefused(f"{name} holds scripts that cannot be taken out: save it as plain SVG.")
    page = _Page(tree, name, max_shapes)
    page.draw()
    return SvgDocument(
        data=data,
        width=page.width,
        height=page.height,
        view_box=page.view_box,
        shapes=tuple(page.shapes),
        notes=taken_out + tuple(page.notes),
        metadata=_recipe(tree),
    )


# --- The file: its elements, and what must not be in it --------------------------------------------------------------


@dataclass(slots=True)
class _Element:
    name: str  # without a prefix, if it is SVG's; "" if it is not
    tag: str  # as it stands in the file
    attributes: dict[str, str]  # as they stand in the file
    href: str | None  # what it refers to, without the #
    parent: int
    start: int  # bytes: <g ...> is [start, inner), </g> is [outer, end)
    inner: int
    outer: int = 0
    end: int = 0
    children: list[int] = field(default_factory=list)
    text: str = ""  # of <style> and of the recipe


@dataclass
class _Tree:
    elements: list[_Element]  # in the order of the file, the root first
    ids: dict[str, int]
    cuts: list[tuple[int, int]]  # spans of bytes that are not safe
    unsafe: list[str]  # what they are, in words


_UNSAFE = re.compile(
    "script|foreignobject|handler|listener|iframe|embed|object|applet|audio|video|canvas|source|track|link|meta|base|"
    "html|body|form|input|button",
    re.IGNORECASE,
)
_ANIMATIONS = frozenset(("animate", "animateMotion", "animateTransform", "animateColor", "set"))
_TAG_REST = re.compile(rb"""[^"'>]*(?:(?:"[^"]*"|'[^']*')[^"'>]*)*>""")
_ATTRIBUTE = re.compile(rb"""\s*([^\s=/>"']+)\s*=\s*("[^"]*"|'[^']*')""")
_RASTER = re.compile(r"data:image/(?:png|jpeg|jpg|gif|webp)[;,]", re.IGNORECASE)
_CSS_ESCAPE = re.compile(r"\\(?:([0-9a-fA-F]{1,6})\s?|([\s\S]))")
_UTF_8 = re.compile("utf-?8|(?:us-)?ascii", re.IGNORECASE)
_ASCII_LIKE = re.compile(rf"{_UTF_8.pattern}|iso-8859-\d+|latin-?1|windows-125\d", re.IGNORECASE)
_CSS_OUTSIDE = re.compile(
    r"url\(\s*(?:[\"']\s*)?[^#\s\"')]|@import|javascript:|expression\s*\(|(?<![\w-])behavior\s*:|-moz-binding|"
    r"\b(?:image-set|image|src|cross-fade|element)\s*\(",
    re.IGNORECASE,
)


def _scan(data: bytes, name: str) -> _Tree:
    """Walk through the XML once: every element with its bytes; `InputRefused` for what is refused on sight.

    Expat gives the byte at which each tag begins. It is not asked for namespaces: it would copy a name's namespace for
    each of a million elements. Without a DOCTYPE it knows no entities, so nothing can grow.
    """
    if b"<!DOCTYPE" in data:
        raise InputRefused(f"{name} has a DOCTYPE, which is not read: take the <!DOCTYPE ...> line out of it.")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        raise InputRefused(f"{name} is not UTF-8 text: save it as plain SVG in UTF-8.") from None
    too_many = InputRefused(
        f"{name} has more than {MAX_ELEMENTS:,} elements or {MAX_ATTRIBUTES:,} attributes: simplify it."
    )
    if data.count(b"=") > 2 * MAX_ATTRIBUTES:  # a single tag with millions of them would keep expat busy
        raise too_many

    tree = _Tree([], {}, [], [])
    elements = tree.elements
    opened: list[int] = []
    scopes: list[dict[str, str]] = [{"xml": "http://www.w3.org/XML/1998/namespace", "": ""}]
    cut_at = 0  # depth of the outermost element that is being cut out, 0: none
    attributes_seen = text_seen = calls_seen = 0

    def unsafe(start: int, end: int, what: str) -> None:
        tree.cuts.append((start, end))
        if what not in tree.unsafe:
            tree.unsafe.append(what)

    def undeclared(prefix: str) -> InputRefused:
        return InputRefused(f"{name} is not well-formed XML: the prefix {printable(prefix, 40)} is not declared.")

    def start_tag(tag: str, attributes: dict[str, str]) -> None:
        nonlocal cut_at, attributes_seen
        attributes_seen += len(attributes)
        if len(elements) == MAX_ELEMENTS or attributes_seen > MAX_ATTRIBUTES:
            raise too_many
        if len(opened) == MAX_DEPTH:
            raise InputRefused(f"{name} has elements more than {MAX_DEPTH} deep in each other: flatten its groups.")
        scope = scopes[-1]
        if declared := {key[6:]: value for key, value in attributes.items() if key[:5] == "xmlns" and key[5:6] in ":"}:
            scope = scope | declared
            if len(scope) > 100:
                raise InputRefused(f"{name} declares more than 100 namespaces: save it as plain SVG.")
        prefix, _, local = tag.rpartition(":")
        if prefix not in scope:
            raise undeclared(prefix)
        namespace = scope[prefix]
        start = parser.CurrentByteIndex
        rest = _TAG_REST.match(data, start)
        assert rest is not None
        element = _Element(
            name=local if namespace == _SVG else "",
            tag=tag,
            attributes=attributes,
            href=None,
            parent=opened[-1] if opened else -1,
            start=start,
            inner=rest.end(),
        )
        if element.parent >= 0:
            elements[element.parent].children.append(len(elements))
        elif element.name != "svg":
            raise InputRefused(f'{name} is no SVG: its first element must be <svg xmlns="{_SVG}">.')
        if not cut_at:
            if _UNSAFE.fullmatch(local) or namespace == _XHTML or _sets_unsafe(element):
                cut_at = len(opened) + 1
            else:
                check_attributes(element, scope)
                if (key := attributes.get("id")) is not None:
                    tree.ids.setdefault(key, len(elements))
        opened.append(len(elements))
        scopes.append(scope)
        elements.append(element)
        listens = not cut_at and (element.name == "style" or local == "sdsedit-recipe")
        parser.CharacterDataHandler = text if listens else None

    def check_attributes(element: _Element, scope: dict[str, str]) -> None:
        nonlocal calls_seen
        handlers = False
        for key, value in element.attributes.items():
            prefix, _, local = key.rpartition(":")
            if prefix not in scope and prefix != "xmlns":
                raise undeclared(prefix)
            if len(value) > MAX_VALUE and local not in ("href", "src"):
                most = 50 * MAX_VALUE if key in ("d", "points") else MAX_VALUE
                if len(value) > most:
                    what = f"{printable(key, 40)} of more than {most:,} characters in <{printable(element.tag, 40)}>"
                    raise InputRefused(f"{name} has a {what}: simplify it.")
            if key == "xml:base":
                raise InputRefused(f"{name} has an xml:base: take it out, references must stay inside the file.")
            if local in ("href", "src"):
                value = value.strip()
                if value and value[0] != "#" and not (element.name == "image" and _RASTER.match(value)):
                    where = f"<{printable(element.tag, 40)}>"
                    raise InputRefused(
                        f"{name} refers to something outside itself ({key} of {where}), which is never "
                        f"opened: take it out or embed the picture as PNG or JPEG."
                    )
                if value[:1] == "#" and (prefix == "" or (element.href is None and scope.get(prefix) == _XLINK)):
                    element.href = value[1:]
            elif prefix == "":
                handlers = handlers or key[:2].lower() == "on"
                calls_seen += value.count("(")
                if calls_seen > 2 * MAX_EXPANDED:
                    raise InputRefused(
                        f"{name} has more than {2 * MAX_EXPANDED:,} references or transforms: simplify it."
                    )
                if key not in ("d", "points", "id", "class") and not key.startswith(("aria-", "data-")):
                    check_css(value)
        if handlers:
            raw = data[element.start : element.inner]
            for found in _ATTRIBUTE.finditer(raw, len(element.tag.encode()) + 1):
                if found[1][:2].lower() == b"on" and b":" not in found[1]:
                    unsafe(element.start + found.start(), element.start + found.end(), "event attributes")

    def check_css(value: str) -> None:
        if "\\" in value:
            value = _CSS_ESCAPE.sub(lambda m: chr(min(int(m[1], 16), 0x10FFFF)) if m[1] else m[2], value)
        if ("(" in value or "@" in value or ":" in value) and _CSS_OUTSIDE.search(value):
            raise InputRefused(
                f"{name} has a style that refers to something outside the file, which is never opened: take it out."
            )

    def end_tag(tag: str) -> None:
        nonlocal cut_at
        element = elements[opened.pop()]
        scopes.pop()
        empty = data[element.inner - 2 : element.inner] == b"/>"
        element.outer = element.inner if empty else parser.CurrentByteIndex
        element.end = element.inner if empty else data.index(b">", element.outer) + 1
        parser.CharacterDataHandler = None
        if cut_at == len(opened) + 1:
            cut_at = 0
            local = tag.rpartition(":")[2].lower()
            unsafe(element.start, element.end, f"<{local}>" if _UNSAFE.fullmatch(local) else "HTML or animated links")
        elif element.name == "style":
            check_css(element.text)

    def text(more: str) -> None:
        nonlocal text_seen
        text_seen += len(more)
        if text_seen > MAX_TEXT:
            raise InputRefused(
                f"{name} has style sheets or a recipe of more than {MAX_TEXT:,} characters: simplify it."
            )
        elements[opened[-1]].text += more

    def instruction(target: str, _: str) -> None:
        if target.lower() == "xml-stylesheet":
            raise InputRefused(f"{name} refers to a style sheet outside itself, which is never opened: take it out.")

    def declaration(_version: str, encoding: str | None, _standalone: int) -> None:
        same = _ASCII_LIKE if data.isascii() else _UTF_8
        if encoding and not same.fullmatch(encoding):
            raise InputRefused(
                f"{name} says that it is {printable(encoding or '', 40)}: save it as plain SVG in UTF-8."
            )

    parser = expat.ParserCreate("utf-8")
    parser.buffer_text, parser.buffer_size = True, 2**16
    parser.StartElementHandler = start_tag
    parser.EndElementHandler = end_tag
    parser.ProcessingInstructionHandler = instruction
    parser.XmlDeclHandler = declaration
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        if not elements:
            raise InputRefused(f'{name} is no SVG: it must hold an <svg xmlns="{_SVG}"> element.') from None
        what = expat.ErrorString(error.code)
        raise InputRefused(f"{name} is not well-formed XML: {what} in line {error.lineno}.") from None
    _check_references(tree, name)
    return tree


def _sets_unsafe(element: _Element) -> bool:
    """Whether an animation would put in what may not stand there."""
    target = element.attributes.get("attributeName", "").rpartition(":")[2].strip().lower()
    return target == "href" or target.startswith("on")


_REFERENCE = re.compile(r"url\(\s*(?:[\"']\s*)?#([^\"')]*)[\"']?\s*\)?", re.IGNORECASE)
_DRAWS_ITS_HREF = frozenset(("use", "linearGradient", "radialGradient", "pattern", "feImage", "textPath", "mpath"))


def _check_references(tree: _Tree, name: str) -> None:
    """Refuse references that multiply, or that run in circles.

    size(element) = 1 + the sizes of its children and of all that it refers to, in one pass from the leaves up: a bomb
    is found without setting it off, also one that only other programs would set off (in masks and patterns). A thousand
    characters of attributes count as one more element: they take as long to read.
    """
    size = [0] * len(tree.elements)  # 0 new, -1 under way
    too_many = InputRefused(f"{name} has references that make more than {MAX_EXPANDED:,} elements of it: simplify it.")
    for root in range(len(tree.elements)):
        waiting = [] if size[root] else [root]
        while waiting:
            index = waiting[-1]
            element = tree.elements[index]
            drawn = list(element.children)
            if element.href and element.name in _DRAWS_ITS_HREF:
                drawn.append(tree.ids.get(element.href, -1))
            for value in element.attributes.values():
                if "(" in value:
                    drawn.extend(tree.ids.get(key.strip(), -1) for key in _REFERENCE.findall(value))
            drawn = [other for other in drawn if other >= 0]
            if size[index] == 0:
                size[index] = -1
                for other in drawn:
                    if size[other] == -1:
                        raise InputRefused(f"{name} has an element that refers to itself: take the reference out.")
                    if size[other] == 0:
                        waiting.append(other)
            else:
                waiting.pop()
                if size[index] == -1:
                    values = (value for key, value in element.attributes.items() if key.rpartition(":")[2] != "href")
                    size[index] = 1 + sum(map(len, values)) // 1000 + sum(size[other] for other in drawn)
                if size[index] > MAX_EXPANDED:
                    raise too_many


def _recipe(tree: _Tree) -> str | None:
    return next((e.text for e in tree.elements if e.tag.rpartition(":")[2] == "sdsedit-recipe"), None)


# --- Style sheets ----------------------------------------------------------------------------------------------------

_INHERITED = {
    "fill": "black",
    "stroke": "none",
    "stroke-width": "1",
    "fill-opacity": "1",
    "stroke-opacity": "1",
    "fill-rule": "nonzero",
    "stroke-linecap": "butt",
    "stroke-linejoin": "miter",
    "visibility": "visible",
    "color": "black",
    "stroke-dasharray": "none",
    "paint-order": "normal",
    "marker": "none",
    "marker-start": "none",
    "marker-mid": "none",
    "marker-end": "none",
}
_NOT_INHERITED = {
    "opacity": "1",
    "display": "inline",
    "stop-color": "black",
    "stop-opacity": "1",
    "clip-path": "none",
    "mask": "none",
    "filter": "none",
    "mix-blend-mode": "normal",
    "vector-effect": "none",
    "transform-origin": "0 0",
}
_INITIAL = _INHERITED | _NOT_INHERITED
_UNDRAWN = {
    "stroke-dasharray": "Dashes",
    "paint-order": "Strokes under their fill",
    "marker": "Markers",
    "marker-start": "Markers",
    "marker-mid": "Markers",
    "marker-end": "Markers",
    "clip-path": "Clip paths",
    "mask": "Masks",
    "filter": "Filters",
    "mix-blend-mode": "Blend modes",
    "vector-effect": "Strokes that do not scale",
    "transform-origin": "Origins of transforms",
}
_CSS_GEOMETRY = frozenset(
    ("d", "transform", "rotate", "scale", "translate", "cx", "cy", "r", "rx", "ry", "x", "y", "width", "height")
)
_SELECTOR = re.compile(r"(\*|[\w-]+)?((?:[.#][\w-]+)*)")
_BRACE = re.compile(r"[{}]")


@dataclass(frozen=True)
class _Rule:
    rank: tuple[int, int, int, int]  # ids, classes, tags, order
    tag: str
    ids: frozenset[str]
    classes: frozenset[str]
    declarations: dict[str, tuple[str, bool]]  # property -> value, important


class _Sheet:
    """The style sheets of a file, as far as they are understood."""

    def __init__(self, tree: _Tree, name: str) -> None:
        self.name = name
        self.ignored = False  # whether there were rules that are not understood
        self.tags: set[str] = set()  # that rules are made for
        self.rules: dict[str, list[_Rule]] = {}  # by the one word of their selector that is tried first
        self.applied = 0
        self.known: dict[int, tuple[dict[str, str], dict[str, bool]]] = {}  # by the byte at which an element begins
        count = 0
        for element in tree.elements:
            if element.name != "style":
                continue
            if element.attributes.get("media", "all").strip().lower() not in ("all", "screen", ""):
                self.ignored = True
                continue
            for selector, body in self._blocks(element.text):
                declarations = _declarations(body)
                for alternative in selector.split(","):
                    parts = _SELECTOR.fullmatch(alternative.strip())
                    if parts is None or not alternative.strip():
                        self.ignored = True
                        continue
                    tag = "" if parts[1] in (None, "*") else parts[1]
                    words = re.findall(r"[.#][\w-]+", parts[2])
                    ids = frozenset(word[1:] for word in words if word[0] == "#")
                    classes = frozenset(word[1:] for word in words if word[0] == ".")
                    rank = (len(ids), len(classes), bool(tag), count)
                    key = next(iter(sorted(words)), tag or "*")
                    self.rules.setdefault(key, []).append(_Rule(rank, tag, ids, classes, declarations))
                    if tag:
                        self.tags.add(tag)
                    count += 1
                    if count > 10_000:
                        raise InputRefused(f"{name} has more than 10,000 style rules: simplify it.")

    def _blocks(self, text: str) -> Iterator[tuple[str, str]]:
        """(selector, body) of every rule; other blocks are skipped."""
        kept, at = [], 0
        while (comment := text.find("/*", at)) >= 0:
            kept.append(text[at:comment])
            end = text.find("*/", comment + 2)
            at = end + 2 if end >= 0 else len(text)
        text = " ".join([*kept, text[at:]]).replace("<!--", " ").replace("-->", " ")
        at = 0
        while (brace := text.find("{", at)) >= 0:
            selector = text[at:brace].rpartition(";")[2].strip()
            depth, at, nested = 1, len(text), False
            for found in _BRACE.finditer(text, brace + 1):
                depth += 1 if found[0] == "{" else -1
                nested = nested or depth > 1
                if depth == 0:
                    at = found.end()
                    break
            if selector.startswith("@") or nested:
                self.ignored = True
            else:
                yield selector, text[brace + 1 : at].rstrip("}")

    def declared(self, element: _Element) -> tuple[dict[str, str], dict[str, bool]]:
        """What is said about an element, the strongest of each property; those said by CSS, and whether `!important`.

        From weak to strong: attributes, rules by rank, the style attribute, then the same with `!important`.
        """
        if element.start in self.known:
            return self.known[element.start]
        classes = set(element.attributes.get("class", "").split())
        own = element.attributes.get("id", "")
        keys = ["*", element.name, f"#{own}", *(f".{each}" for each in classes)]
        found = [
            rule
            for key in keys
            for rule in self.rules.get(key, ())
            if rule.tag in ("", element.name) and rule.ids <= {own} and rule.classes <= classes
        ]
        self.applied += sum(len(self.rules.get(key, ())) for key in keys)
        if self.applied > MAX_MATCHES:
            raise InputRefused(f"{self.name} has style rules that apply more than {MAX_MATCHES:,} times: simplify it.")
        normal: dict[str, str] = {}
        important: dict[str, str] = {}
        said = [rule.declarations for rule in sorted(found, key=lambda rule: rule.rank)]
        for declarations in [*said, _declarations(element.attributes.get("style", ""))]:
            for name, (value, strong) in declarations.items():
                (important if strong else normal)[name] = value
        by_css = normal | important
        attributes = {key: text for key, text in element.attributes.items() if key in _INITIAL and len(text) < 1000}
        self.known[element.start] = attributes | by_css, {key: key in important for key in by_css}
        return self.known[element.start]


def _declarations(text: str) -> dict[str, tuple[str, bool]]:
    """Property -> value, important; of the properties that are read, and with values of a sensible length."""
    found: dict[str, tuple[str, bool]] = {}
    for part in text.split(";"):
        name, _, value = part.partition(":")
        name = name.strip().lower()
        if (name in _INITIAL or name in _CSS_GEOMETRY) and len(value) < 1000:
            value, important, _ = value.partition("!")
            found[name] = (value.strip(), bool(important))
    return found


# --- Numbers, lengths, colours, transforms ---------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPACE = " \t\r\n\f"
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


class _Malformed(ValueError):
    """A number or a list of them that cannot be read; where it stood is added when it is refused."""


def _float(text: str) -> float:
    value = float(text)
    if not abs(value) <= MAX_NUMBER:
        raise _Malformed(f"{printable(text, 30)} is beyond {MAX_NUMBER:g}")
    return value


def _numbers(text: str) -> list[float]:
    """All numbers of a list, separated by anything from nothing (`1-2`) to spaces and commas."""
    found = _NUMBER.findall(text)
    if len(found) > 7 * MAX_CURVES:
        raise _Malformed(f"it has more than {7 * MAX_CURVES:,} numbers")
    if rest := _NUMBER.sub(" ", text).strip(_SPACE + ","):
        raise _Malformed(f"{printable(rest.split(None, 1)[0], 30)} is no number")
    values = list(map(float, found))
    if values and not max(map(abs, values)) <= MAX_NUMBER:
        raise _Malformed(f"it has a number beyond {MAX_NUMBER:g}")
    return values


def _length(text: str, whole: float) -> float:
    """A length in pixels or the file's units; a percentage is of `whole`."""
    text = text.strip(_SPACE)
    number = _NUMBER.match(text)
    unit = text[number.end() :].strip(_SPACE).lower() if number else ""
    if number is None or (unit != "%" and unit not in _PIXELS):
        raise _Malformed(f"{printable(text, 30) or 'nothing'} is no length")
    return _float(number[0]) * (whole / 100 if unit == "%" else _PIXELS[unit])


def _share(text: str) -> float:
    """An opacity or an offset: a number or a percentage, held to 0..1."""
    text = text.strip(_SPACE)
    values = _numbers(text.removesuffix("%"))
    if len(values) != 1:
        raise _Malformed(f"{printable(text, 30) or 'nothing'} is no number")
    return min(max(values[0] / (100 if text.endswith("%") else 1), 0.0), 1.0)


def _colour(text: str) -> Colour | None:
    """A CSS colour, or None if it is not understood."""
    text = text.strip(_SPACE).lower()
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
            alpha = _share(parts[3]) if len(parts) == 4 else 1.0
            if function[1] == "rgb":
                r, g, b = (_share(part if part.endswith("%") else repr(_float(part) / 255)) for part in parts[:3])
                return r, g, b, alpha
            import colorsys

            hue = _float(parts[0].removesuffix("deg")) / 360 % 1
            r, g, b = colorsys.hls_to_rgb(hue, _share(parts[2]), _share(parts[1]))
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


def _times(m: Matrix, n: Matrix) -> Matrix:
    """m n: first n, then m."""
    a, b, c, d, e, f = m
    p, q, r, s, t, u = n
    return a * p + c * q, b * p + d * q, a * r + c * s, b * r + d * s, a * t + c * u + e, b * t + d * u + f


def _inverse(m: Matrix) -> Matrix:
    a, b, c, d, e, f = m
    det = a * d - b * c
    return d / det, -b / det, -c / det, a / det, (c * f - d * e) / det, (b * e - a * f) / det


def _apply(m: Matrix, points: np.ndarray) -> np.ndarray:  # [n, 2] -> [n, 2]
    a, b, c, d, e, f = m
    return points @ np.array([[a, b], [c, d]]) + np.array([e, f])


def _scale(m: Matrix) -> float:
    """The geometric mean of how much it stretches."""
    return math.sqrt(abs(m[0] * m[3] - m[1] * m[2]))


_TRANSFORM = re.compile(r"[\s,]*(matrix|translate|scale|rotate|skewX|skewY)\s*\(([^()]*)\)[\s,]*")


def _transform(text: str) -> Matrix:
    """The value of a `transform` attribute."""
    result, at, text = IDENTITY, 0, text.strip(_SPACE)
    while at < len(text):
        step = _TRANSFORM.match(text, at)
        if step is None or len(text) > 10_000:
            raise _Malformed(f"{printable(text[at:], 30)} is no transform")
        at = step.end()
        v = _numbers(step[2])
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
                raise _Malformed(f"{step[1]} with {len(v)} numbers is no transform")
        result = _times(result, m)
        if not max(map(abs, result)) <= 1e3 * MAX_NUMBER:
            raise _Malformed(f"its transform is beyond {1e3 * MAX_NUMBER:g}")
    return result


def _fit(view_box: tuple[float, float, float, float], width: float, height: float, aspect: str) -> Matrix:
    """From the units of a viewBox to a place of width x height, as preserveAspectRatio says."""
    x, y, w, h = view_box
    words = [word for word in aspect.split() if word != "defer"] or ["xMidYMid"]
    if words[0] == "none":
        return width / w, 0.0, 0.0, height / h, -x * width / w, -y * height / h
    place = re.fullmatch(r"x(Min|Mid|Max)Y(Min|Mid|Max)", words[0])
    if place is None or words[1:] not in ([], ["meet"], ["slice"]):
        raise _Malformed(f"{printable(aspect, 30)} is no preserveAspectRatio")
    s = (max if words[1:] == ["slice"] else min)(width / w, height / h)
    share = {"Min": 0.0, "Mid": 0.5, "Max": 1.0}
    return s, 0.0, 0.0, s, share[place[1]] * (width - s * w) - s * x, share[place[2]] * (height - s * h) - s * y


# --- Outlines --------------------------------------------------------------------------------------------------------

_ARITY = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "A": 7, "Z": 0}
_COMMAND = re.compile(r"([MmLlHhVvCcSsQqTtAaZz])([^MmLlHhVvCcSsQqTtAaZz]*)")
_ARC_NUMBER = re.compile(rf"[\s,]*({_NUMBER.pattern})")
_ARC_FLAG = re.compile(r"[\s,]*([01])")
_CLOSED = 1e-6  # an end this near to its start is the start


class _TooLong(Exception):
    """More curves than there is room for."""


def _commands(d: str, room: int) -> Iterator[tuple[str, list[float]]]:
    """(letter, its numbers), as many at a time as it takes; a further pair after M comes as L."""
    d = d.strip(_SPACE)
    if d and d[0] not in "Mm":
        raise _Malformed("a path must begin with M")
    for command in _COMMAND.finditer(d):
        letter, text = command[1], command[2]
        arity = _ARITY[letter.upper()]
        values = _arc_numbers(text) if arity == 7 else _numbers(text)
        if len(values) != arity and (not values or not arity or len(values) % arity):
            raise _Malformed(f"{letter} with {len(values)} numbers is no path command")
        for k in range(0, max(len(values), 1), max(arity, 1)):
            room -= 1
            if room < 0:
                raise _TooLong
            yield letter, values[k : k + arity]
            letter = {"M": "L", "m": "l"}.get(letter, letter)


def _arc_numbers(text: str) -> list[float]:
    """The numbers of an arc command, whose flags may stand without a space: `a1 1 0 01.5.5`."""
    values, at, end = [], 0, len(text.rstrip(_SPACE + ","))
    while at < end and len(values) <= 7 * MAX_CURVES:
        found = (_ARC_FLAG if len(values) % 7 in (3, 4) else _ARC_NUMBER).match(text, at)
        if found is None:
            raise _Malformed(f"{printable(text[at:].strip(), 30)} is no part of an arc")
        values.append(_float(found[1]))
        at = found.end()
    return values


def _outline(d: str, room: int) -> tuple[list[tuple[np.ndarray, bool]], int]:
    """Path data as chains of cubics, (points [m, 2], closed), and how much of the room it takes: commands or curves.

    Complex arithmetic. `_TooLong`: there is not room enough.
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
        raise _TooLong
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
    count = max(math.ceil(abs(angle) / (math.pi / 2) - 1e-6), 1)
    k = 4 / 3 * math.tan(angle / count / 4)
    points = []
    for i in range(count):
        a, b = (cmath.rect(1, first + angle * j / count) for j in (i, i + 1))
        for z in (centre + a + 1j * k * a, centre + b - 1j * k * b, centre + b):
            points.append(complex(z.real * rx, z.imag * ry) * turn)
    points[-1] = q
    return points


_SHAPES = {  # the attributes that say where it is; a changed shape becomes a path, and loses them
    "path": ("d",),
    "rect": ("x", "y", "width", "height", "rx", "ry"),
    "circle": ("cx", "cy", "r"),
    "ellipse": ("cx", "cy", "rx", "ry"),
    "line": ("x1", "y1", "x2", "y2"),
    "polyline": ("points",),
    "polygon": ("points",),
}


def _path_data(element: _Element, width: float, height: float) -> str:
    """The path that SVG says a basic shape is (SVG 2, chapter 10); "" if it is not drawn. width, height: what
    percentages are of."""
    diagonal = math.hypot(width, height) / math.sqrt(2)

    def get(key: str, whole: float, otherwise: float = 0.0) -> float:
        text = element.attributes.get(key, "auto").strip(_SPACE)
        return otherwise if text == "auto" else _length(text, whole)

    if element.name == "path":
        d = element.attributes.get("d", "")
        return "" if d.strip(_SPACE) == "none" else d
    if element.name == "line":
        x1, y1, x2, y2 = (get(key, height if key[0] == "y" else width) for key in _SHAPES["line"])
        return f"M{x1!r} {y1!r}L{x2!r} {y2!r}"
    if element.name in ("polyline", "polygon"):
        points = _numbers(element.attributes.get("points", ""))
        if len(points) % 2:
            raise _Malformed(f"{len(points)} numbers are no points")
        return f"M{' '.join(map(repr, points))}{'Z' if element.name == 'polygon' else ''}" if points else ""
    if element.name == "rect":
        x, y, w, h = get("x", width), get("y", height), get("width", width), get("height", height)
        rx, ry = get("rx", width, -1.0), get("ry", height, -1.0)
        rx, ry = max(ry if rx < 0 else rx, 0.0), max(rx if ry < 0 else ry, 0.0)
        if min(w, h) < 0:
            raise _Malformed("its width or height is below 0")
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
        raise _Malformed("its radius is below 0")
    half = f"A{rx!r} {ry!r} 0 0 1 "
    return f"M{cx + rx!r} {cy!r}{half}{cx - rx!r} {cy!r}{half}{cx + rx!r} {cy!r}Z" if min(rx, ry) > 0 else ""


# --- The page --------------------------------------------------------------------------------------------------------


class _Page:
    """Draws the elements of a file into `shapes`."""

    def __init__(self, tree: _Tree, name: str, max_shapes: int) -> None:
        self.tree = tree
        self.name = name
        self.max_shapes = max_shapes
        self.sheet = _Sheet(tree, name)
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
            box = _numbers(root["viewBox"]) if "viewBox" in root else None
            if box is not None and len(box) != 4:
                raise _Malformed("its viewBox must have four numbers")
            sides: list[float | None] = []
            for key in ("width", "height"):
                text = root.get(key, "auto").strip(_SPACE)
                sides.append(None if text == "auto" or text.endswith("%") else _length(text, 0))
        except _Malformed as error:
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
            matrix = _fit(self.view_box, self.width, self.height, root.attributes.get("preserveAspectRatio", ""))
            matrix = _times(_transform(root.attributes.get("transform", "")), matrix)
        except _Malformed as error:
            raise self._refuse(0, error) from None
        self._visit(0, _INITIAL, matrix, 1.0, self.view_box[2:], 0, None)
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
        if name not in _SHAPES and name not in ("svg", "g", "a", "switch", "use", "symbol"):
            return
        if depth > MAX_DEPTH:
            raise InputRefused(f"{self.name} has references more than {MAX_DEPTH} deep in each other: flatten it.")
        style = self._style(element, above)
        if style["display"].lower() == "none":
            return
        try:
            opacity *= _share(style["opacity"])
            if depth and name != "symbol":
                matrix = _times(matrix, _transform(element.attributes.get("transform", "")))
            if element.attributes.get("id") in self.shared:
                fixed = fixed or "other places of the file draw it too"
            if name in _SHAPES:
                self._shape(index, style, matrix, opacity, view, fixed)
                return
            if _share(style["opacity"]) < 1:
                self.notes["The opacity of groups is drawn as that of each of their shapes."] = None
            inside: list[int] = element.children
            if name == "use":
                x, y = (_length(element.attributes.get(key, "0"), view[k]) for k, key in enumerate("xy"))
                matrix = _times(matrix, (1.0, 0.0, 0.0, 1.0, x, y))
                target = self.tree.ids.get(element.href or "", -1)
                inside = [target] if target >= 0 else []
                fixed = "it is drawn through <use>"
                if inside and self.tree.elements[target].name in ("symbol", "svg"):
                    matrix, view = self._viewport(self.tree.elements[target], element, matrix, view)
                    style = self._style(self.tree.elements[target], style)
                    opacity *= _share(style["opacity"])
                    inside = self.tree.elements[target].children
            elif name == "symbol":
                return  # drawn only through <use>
            elif name == "svg" and depth:
                matrix, view = self._viewport(element, element, matrix, view)
            elif name == "switch":
                tests = {"requiredExtensions", "requiredFeatures", "systemLanguage"}
                inside = [k for k in inside if not tests & set(self.tree.elements[k].attributes)][:1]
        except _Malformed as error:
            raise self._refuse(index, error) from None
        for child in inside:
            self._visit(child, style, matrix, opacity, view, depth + 1, fixed)

    def _viewport(
        self, element: _Element, placed: _Element, matrix: Matrix, view: tuple[float, float]
    ) -> tuple[Matrix, tuple[float, float]]:
        """The coordinates inside a nested <svg>, or inside the <symbol> that <use> `placed`."""
        self.notes["What reaches out of an <svg> or <symbol> in the file is drawn, not clipped."] = None
        get = element.attributes.get
        x, y = (_length(get(key, "0"), view[k]) for k, key in enumerate("xy"))
        width, height = (
            _length(value, view[k]) if (value := placed.attributes.get(key, get(key, "auto"))) != "auto" else view[k]
            for k, key in enumerate(("width", "height"))
        )
        matrix = _times(matrix, (1.0, 0.0, 0.0, 1.0, x, y))
        if "viewBox" not in element.attributes:
            return matrix, (width, height)
        box = _numbers(element.attributes["viewBox"])
        if len(box) != 4 or not min(*box[2:], width, height) > 0:
            raise _Malformed("its viewBox, width and height must be above 0")
        fit = _fit((box[0], box[1], box[2], box[3]), width, height, get("preserveAspectRatio", ""))
        return _times(matrix, fit), (box[2], box[3])

    def _style(self, element: _Element, above: Mapping[str, str]) -> dict[str, str]:
        """The computed values: an element's own, else those inherited."""
        style = {name: above[name] for name in _INHERITED} | _NOT_INHERITED
        declared, by_css = self.sheet.declared(element)
        if by_css.keys() & _CSS_GEOMETRY and element.name != "svg":
            self.notes["Places and transforms that a style gives are not applied."] = None
        for name, value in declared.items():
            if name not in _INITIAL:
                continue
            word = value.lower()
            if word == "inherit" or (name == "color" and word == "currentcolor"):
                value = above[name]
            elif word in ("initial", "unset", "revert"):
                value = above[name] if word == "unset" and name in _INHERITED else _INITIAL[name]
            elif name in ("fill", "stroke", "color", "stop-color"):
                if not word.startswith("url(") and word not in ("none", "currentcolor") and _colour(value) is None:
                    self.unknown_colour = self.unknown_colour or printable(value, 40)
                    continue
            elif name in _UNDRAWN and word not in ("none", "normal", "0", _INITIAL[name]):
                self.notes[f"{_UNDRAWN[name]} in the file are kept but not drawn."] = None
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
        scale = _scale(matrix)
        diagonal = math.hypot(*view) / math.sqrt(2)
        fill, fill_frozen = self._paint(style, "fill", opacity)
        stroke, stroke_frozen = self._paint(style, "stroke", opacity)
        width = _length(style["stroke-width"], diagonal)
        if width < 0:
            raise _Malformed("its stroke-width is below 0")
        try:
            outline, count = _outline(_path_data(element, *view), MAX_CURVES - self.curves)
        except _TooLong:
            raise InputRefused(f"{self.name} has more than {MAX_CURVES:,} curves: simplify it.") from None
        except (OverflowError, ZeroDivisionError):
            raise _Malformed("its numbers are too large or too small") from None
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
        contours = tuple((_apply(matrix, points), closed) for points, closed in outline)
        if not all(np.isfinite(points).all() and np.abs(points).max() <= MAX_NUMBER for points, _ in contours):
            raise _Malformed(f"it reaches beyond {MAX_NUMBER:g} pixels")
        if any(self.tree.elements[child].name in _ANIMATIONS for child in element.children):
            fixed = fixed or "it is animated"
        if element.name != "path" and self.sheet.tags & {element.name, "path"}:
            fixed = fixed or "a style rule is made for its tag"
        far = max(np.abs(points).max() for points, _ in (*contours, *outline))
        if far > 0.1 * MAX_NUMBER or max(map(abs, _inverse(matrix)[:4])) > 3e4:  # new numbers might be refused
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
        alpha = colour[3] * _share(style[f"{name}-opacity"]) * opacity
        return (*colour[:3], alpha) if alpha > 0 else None, frozen

    def _resolve(self, value: str, style: Mapping[str, str]) -> tuple[Colour | None, bool]:
        if reference := _REFERENCE.match(value):
            target = self.tree.ids.get(reference[1].strip(), -1)
            if target >= 0 and self.tree.elements[target].name in ("linearGradient", "radialGradient"):
                self.notes["Gradients are drawn in their mean colour, and keep their colours."] = None
                if target not in self.gradients:
                    self.gradients[target] = self._gradient(target)
                return self.gradients[target], True
            rest = value[reference.end() :].strip()
            if target >= 0:
                self.notes["Patterns in the file are kept but not drawn."] = None
            colour = self._resolve(rest, style)[0] if rest and not _REFERENCE.match(rest) else None
            return colour, target >= 0
        if value.lower() == "none":
            return None, False
        return _colour(style["color"] if value.lower() == "currentcolor" else value), False

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
        above = self._style(elements[index], _INITIAL)
        offsets, colours = [0.0], []
        for k in stops:
            try:
                style = self._style(elements[k], above)
                offset = max(_share(elements[k].attributes.get("offset", "0")), offsets[-1])
                text = style["color"] if style["stop-color"].lower() == "currentcolor" else style["stop-color"]
                colour = _colour(text) or (0.0, 0.0, 0.0, 0.0)
                alpha = colour[3] * _share(style["stop-opacity"])
            except _Malformed as error:
                raise self._refuse(k, error) from None
            offsets.append(offset)
            colours.append((*(alpha * channel for channel in colour[:3]), alpha))
        x = np.array([*offsets, 1.0])
        y = np.array([colours[0], *colours, colours[-1]])
        r, g, b, a = ((x[1:] - x[:-1])[:, None] * (y[1:] + y[:-1]) / 2).sum(0).tolist()
        return (r / a, g / a, b / a, a) if a > 0 else None


# --- Writing ---------------------------------------------------------------------------------------------------------


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
    tree = _scan(data, "The drawing")
    sheet = _Sheet(tree, "The drawing")
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
        matrix = _fit(
            document.view_box, document.width, document.height, root.attributes.get("preserveAspectRatio", "")
        )
        matrix = _times(_transform(root.attributes.get("transform", "")), matrix)
        name = _unique("sdsedit-added", tree.ids)
        lines = [f'<{prefix}g id="{name}">']
        lines += [_path(shape, matrix, prefix, _style_attribute(_painted(shape, _scale(matrix)))) for shape in added]
        edits.append((root.outer, root.outer, ("\n".join([*lines, f"</{prefix}g>"]) + "\n").encode()))
    if recipe is not None:
        edits.append(_recipe_edit(tree, prefix, recipe))
    return _splice(data, edits)


def _splice(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
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


def _rewrite(
    data: bytes, element: _Element, sheet: _Sheet, old: SvgShape, new: SvgShape
) -> list[tuple[int, int, bytes]]:
    """The edits that make an element look as `new`."""
    attributes: dict[str, str | None] = {}
    tag = element.tag
    if not _same_contours(old.contours, new.contours):
        prefix = tag.rpartition(":")[0]
        tag = f"{prefix}:path" if prefix else "path"
        attributes |= dict.fromkeys(_SHAPES[element.name])
        # Inkscape would draw the shape again from its own notes on it.
        attributes |= {key: None for key in element.attributes if key.startswith("sodipodi:")}
        attributes |= dict.fromkeys(("inkscape:original-d", "inkscape:path-effect"))
        attributes["d"] = _d(new.contours, old.transform)
    after = _painted(new, _scale(old.transform), old.opacity)
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
    edits = [(element.start, element.inner, _retag(data[element.start : element.inner], tag, attributes))]
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


def _merged_style(element: _Element, properties: Mapping[str, str]) -> str:
    """The style attribute with some properties set."""
    kept = [part.strip() for part in element.attributes.get("style", "").split(";")]
    kept = [part for part in kept if part and part.partition(":")[0].strip().lower() not in properties]
    return ";".join([*kept, *(f"{name}:{value}" for name, value in properties.items())])


def _d(contours: Contours, matrix: Matrix) -> str:
    """Path data in an element's own coordinates, to a hundredth of a pixel; straight curves are written as lines."""
    back = _inverse(matrix)
    decimals = _decimals(_scale(matrix))
    near = 0.5 * 10.0**-decimals
    pieces: list[str] = []
    for points, closed in contours:
        p = _apply(back, np.asarray(points, np.float64))
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


def _retag(raw: bytes, tag: str, attributes: Mapping[str, str | None]) -> bytes:
    """A start tag with another name and some attributes set, or taken out (None); the others keep their bytes."""
    name = re.match(rb"<[^\s/>]+", raw)
    assert name is not None
    close = b"/>" if raw.endswith(b"/>") else b">"
    waiting = dict(attributes)
    pieces, at = [f"<{tag}".encode()], name.end()
    for found in _ATTRIBUTE.finditer(raw, at, len(raw) - len(close)):
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


def _recipe_edit(tree: _Tree, prefix: str, recipe: str) -> tuple[int, int, bytes]:
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
        f'<svg xmlns="{_SVG}" {sides} viewBox="0 0 {_number(width, 2)} {_number(height, 2)}" fill="none" '
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
    tree = _scan(document.data, "The drawing")
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
        edits.append((element.start, element.inner, _retag(raw, element.tag, attributes)))
    at, prefix = tree.elements[0].inner, tree.elements[0].tag.rpartition(":")[0]
    tag = f"{prefix}:style" if prefix else "style"
    edits.append((at, at, f'\n<{tag} id="sdsedit-animation">{_KEYFRAMES}</{tag}>'.encode()))
    return _splice(document.data, edits)


def _reach(points: np.ndarray, closed: bool) -> float:
    """About the length of a contour: of each curve the mean of its chord and of the way over its control points."""
    p = np.concatenate([points, points[:1]]) if closed else points
    over = np.hypot(*np.diff(p, axis=0).T).sum()
    return float(over + np.hypot(*np.diff(p[::3], axis=0).T).sum()) / 2
