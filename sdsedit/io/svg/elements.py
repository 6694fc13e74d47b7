"""The file itself: its elements with their bytes, and what must not be in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from xml.parsers import expat

from sdsedit.errors import InputRefused, printable
from sdsedit.io.svg.drawing import (
    MAX_ATTRIBUTES,
    MAX_DEPTH,
    MAX_ELEMENTS,
    MAX_EXPANDED,
    MAX_TEXT,
    MAX_VALUE,
    SVG_NAMESPACE,
    XHTML_NAMESPACE,
    XLINK_NAMESPACE,
)


@dataclass(slots=True)
class Element:
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
class Tree:
    elements: list[Element]  # in the order of the file, the root first
    ids: dict[str, int]
    cuts: list[tuple[int, int]]  # spans of bytes that are not safe
    unsafe: list[str]  # what they are, in words


_UNSAFE = re.compile(
    "script|foreignobject|handler|listener|iframe|embed|object|applet|audio|video|canvas|source|track|link|meta|base|"
    "html|body|form|input|button",
    re.IGNORECASE,
)
ANIMATIONS = frozenset(("animate", "animateMotion", "animateTransform", "animateColor", "set"))
_TAG_REST = re.compile(rb"""[^"'>]*(?:(?:"[^"]*"|'[^']*')[^"'>]*)*>""")
ATTRIBUTE = re.compile(rb"""\s*([^\s=/>"']+)\s*=\s*("[^"]*"|'[^']*')""")
_RASTER = re.compile(r"data:image/(?:png|jpeg|jpg|gif|webp)[;,]", re.IGNORECASE)
_CSS_ESCAPE = re.compile(r"\\(?:([0-9a-fA-F]{1,6})\s?|([\s\S]))")
_UTF_8 = re.compile("utf-?8|(?:us-)?ascii", re.IGNORECASE)
_ASCII_LIKE = re.compile(rf"{_UTF_8.pattern}|iso-8859-\d+|latin-?1|windows-125\d", re.IGNORECASE)
_CSS_OUTSIDE = re.compile(
    r"url\(\s*(?:[\"']\s*)?[^#\s\"')]|@import|javascript:|expression\s*\(|(?<![\w-])behavior\s*:|-moz-binding|"
    r"\b(?:image-set|image|src|cross-fade|element)\s*\(",
    re.IGNORECASE,
)


def scan(data: bytes, name: str) -> Tree:
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

    tree = Tree([], {}, [], [])
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
        element = Element(
            name=local if namespace == SVG_NAMESPACE else "",
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
            raise InputRefused(f'{name} is no SVG: its first element must be <svg xmlns="{SVG_NAMESPACE}">.')
        if not cut_at:
            if _UNSAFE.fullmatch(local) or namespace == XHTML_NAMESPACE or _sets_unsafe(element):
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

    def check_attributes(element: Element, scope: dict[str, str]) -> None:
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
                if value[:1] == "#" and (
                    prefix == "" or (element.href is None and scope.get(prefix) == XLINK_NAMESPACE)
                ):
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
            for found in ATTRIBUTE.finditer(raw, len(element.tag.encode()) + 1):
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
            raise InputRefused(f'{name} is no SVG: it must hold an <svg xmlns="{SVG_NAMESPACE}"> element.') from None
        what = expat.ErrorString(error.code)
        raise InputRefused(f"{name} is not well-formed XML: {what} in line {error.lineno}.") from None
    _check_references(tree, name)
    return tree


def _sets_unsafe(element: Element) -> bool:
    """Whether an animation would put in what may not stand there."""
    target = element.attributes.get("attributeName", "").rpartition(":")[2].strip().lower()
    return target == "href" or target.startswith("on")


REFERENCE = re.compile(r"url\(\s*(?:[\"']\s*)?#([^\"')]*)[\"']?\s*\)?", re.IGNORECASE)
_DRAWS_ITS_HREF = frozenset(("use", "linearGradient", "radialGradient", "pattern", "feImage", "textPath", "mpath"))


def _check_references(tree: Tree, name: str) -> None:
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
                    drawn.extend(tree.ids.get(key.strip(), -1) for key in REFERENCE.findall(value))
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


def recipe_of(tree: Tree) -> str | None:
    return next((e.text for e in tree.elements if e.tag.rpartition(":")[2] == "sdsedit-recipe"), None)
