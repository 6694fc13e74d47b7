"""Style sheets: which value a property has on an element."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sdsedit.errors import InputRefused
from sdsedit.io.svg.drawing import MAX_MATCHES
from sdsedit.io.svg.elements import Element, Tree

INHERITED = {
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
NOT_INHERITED = {
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
INITIAL = INHERITED | NOT_INHERITED
UNDRAWN = {
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
CSS_GEOMETRY = frozenset(
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


class Sheet:
    """The style sheets of a file, as far as they are understood."""

    def __init__(self, tree: Tree, name: str) -> None:
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

    def declared(self, element: Element) -> tuple[dict[str, str], dict[str, bool]]:
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
        attributes = {key: text for key, text in element.attributes.items() if key in INITIAL and len(text) < 1000}
        self.known[element.start] = attributes | by_css, {key: key in important for key in by_css}
        return self.known[element.start]


def _declarations(text: str) -> dict[str, tuple[str, bool]]:
    """Property -> value, important; of the properties that are read, and with values of a sensible length."""
    found: dict[str, tuple[str, bool]] = {}
    for part in text.split(";"):
        name, _, value = part.partition(":")
        name = name.strip().lower()
        if (name in INITIAL or name in CSS_GEOMETRY) and len(value) < 1000:
            value, important, _ = value.partition("!")
            found[name] = (value.strip(), bool(important))
    return found
