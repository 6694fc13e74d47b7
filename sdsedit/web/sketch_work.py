"""What the Sketch tab does, as plain functions: words to strokes, and a drawing changed by words.

A drawing is shown as an <img> of a data: address, in which a browser runs no script and loads nothing; one that
somebody uploaded has been read by io.svg first, which takes out what is unsafe.
"""

from __future__ import annotations

import base64
import hashlib
import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdsedit.errors import InputRefused, printable
from sdsedit.io import images, record, svg
from sdsedit.io.images import Picture
from sdsedit.io.svg import SvgDocument, SvgShape
from sdsedit.prior.base import Prior
from sdsedit.request import Edit, EditConfig
from sdsedit.sketch.change import SvgConfig, SvgResult, SvgStep, change, check_change
from sdsedit.sketch.draw import SketchConfig, SketchStep, check_sketch, sketch
from sdsedit.sketch.files import animation, draw_page, sketch_svg
from sdsedit.web.image_work import PREVIEW_EVERY, Progress, whole
from sdsedit.web.worker import Cancelled

UNDO = 12  # steps back
PREVIEW = 384  # pixels, the longer side of a preview
MAX_BYTES = 4 * 2**20  # of a drawing: it is sent to the page whole
MAX_STROKES, MAX_STEPS = 512, 1000  # what one person may ask of a machine that others share
_CHANGED = (0.85, 0.33, 0.1, 1.0)
_GONE = (0.15, 0.35, 0.75, 1.0)


@dataclass(frozen=True)
class Drawing:
    """An SVG as it was read."""

    name: str
    sha256: str
    raw: bytes  # the file
    document: SvgDocument


@dataclass(frozen=True)
class DrawOrder:
    """A sketch that somebody wants."""

    prompt: str
    config: SketchConfig
    references: tuple[Picture, ...] = ()  # whose look is taken


@dataclass(frozen=True)
class ChangeOrder:
    """A change of a drawing that somebody wants."""

    drawing: Drawing
    request: Edit
    config: SvgConfig


@dataclass(frozen=True)
class Made:
    """A finished or stopped drawing."""

    order: DrawOrder | ChangeOrder
    svg: bytes  # with its recipe inside
    recipe: dict[str, Any]
    highlighted: bytes | None  # what changed, as an SVG; None: it was drawn from words
    lines: tuple[str, ...]  # what is to be said, a sentence each

    @property
    def name(self) -> str:
        """The name of a download."""
        order = self.order
        stem = order.prompt if isinstance(order, DrawOrder) else Path(order.drawing.name).stem.removesuffix("-edited")
        safe = "".join(c if c.isalnum() or c in "-_ " else "_" for c in stem)[:60].strip().replace(" ", "-")
        return f"{safe or 'drawing'}{'' if isinstance(order, DrawOrder) else '-edited'}.svg"


@dataclass(frozen=True)
class SketchTable:
    """What a person has in front of them."""

    mode: str = "draw"  # or "change"
    drawing: Drawing | None = None  # to be changed
    source: str = ""
    target: str = ""
    made: Made | None = None


@dataclass
class SketchDesk:
    """A person's tables, the newest last."""

    tables: list[SketchTable] = field(default_factory=lambda: [SketchTable()])

    @property
    def table(self) -> SketchTable:
        return self.tables[-1]

    def put(self, table: SketchTable) -> None:
        """A new table on top; the oldest go, and so does an empty one below it."""
        top = self.table
        below = self.tables if top.made is not None or top.drawing is not None else self.tables[:-1]
        self.tables = [*below, table][-UNDO - 1 :]

    def turn(self, table: SketchTable) -> None:
        """The same table, seen otherwise: no step that undo takes back."""
        self.tables[-1] = table

    def undo(self) -> None:
        if len(self.tables) < 2:
            raise InputRefused("There is nothing to undo.")
        self.tables = self.tables[:-1]


# ---- what goes in


def read_drawing(path: str | Path, max_bytes: int = MAX_BYTES) -> Drawing:
    """A drawing that somebody gave. InputRefused: it cannot be used."""
    path = Path(path)
    document = svg.read_svg_bounded(path, min(max_bytes, MAX_BYTES))
    raw = path.read_bytes()
    return Drawing(printable(path.name, 200), hashlib.sha256(raw).hexdigest(), raw, document)


def drawing_of(data: bytes, name: str) -> Drawing:
    """A drawing that was made here."""
    return Drawing(name, hashlib.sha256(data).hexdigest(), data, svg.read_svg(data))


def draw_order(
    prompt: str, strokes: Any, style: Any, background: bool, width: Any, steps: Any, seed: Any,
    references: Sequence[Picture] = (), style_weight: float = SketchConfig.style_weight,
) -> DrawOrder:  # fmt: skip
    """references: pictures whose look the drawing takes. InputRefused: a value that cannot be used."""
    config = SketchConfig(
        whole(strokes), style, bool(background), width, whole(steps), whole(seed), style_weight=style_weight
    )
    check_sketch(prompt, config)
    if config.strokes > MAX_STROKES:
        raise InputRefused(f"strokes is {config.strokes}; on this page at most {MAX_STROKES} are drawn.")
    _check_steps(config.steps)
    return DrawOrder(prompt, config, tuple(references))


def change_order(
    drawing: Drawing, source: str, target: str, strength: Any, added: Any, steps: Any, seed: Any
) -> ChangeOrder:
    """InputRefused: a value that cannot be used."""
    request = Edit(target=target, source=source or None)
    config = SvgConfig(EditConfig(strength=strength, seed=whole(seed)), added=whole(added), steps=whole(steps))
    check_change(request, config)
    _check_steps(config.steps)
    return ChangeOrder(drawing, request, config)


def order_of(
    recipe: dict[str, Any], drawing: Drawing | None, references: Sequence[Picture] = ()
) -> DrawOrder | ChangeOrder:
    """What a recipe asks for. InputRefused: it is not one of a drawing, or its drawing is not here."""
    if recipe.get("kind") == "sketch":
        return DrawOrder(*record.sketch_request(recipe), tuple(references))
    if drawing is None:
        raise InputRefused("The drawing that this one was made from is not in the history, so it cannot be repeated.")
    return ChangeOrder(drawing, *record.svg_request(recipe))


def _check_steps(steps: int) -> None:
    if steps > MAX_STEPS:
        raise InputRefused(f"steps is {steps}; on this page at most {MAX_STEPS} are run.")


# ---- the work


def run(
    prior: Prior,
    order: DrawOrder | ChangeOrder,
    model: dict[str, Any],
    on_progress: Callable[[Progress], None],
    go_on: Callable[[], bool],
) -> Made:
    """Draw, or change a drawing, and tell how far it is; `go_on` is asked after every step.

    Raises InputRefused for what only the model could tell, and Cancelled if there is nothing yet to keep.
    """
    began = last = time.perf_counter()
    first = 0.0
    on_progress(Progress(0, 1, 0.0, None))

    def on_step(step: SketchStep | SvgStep) -> bool:
        nonlocal last, first
        now = time.perf_counter()
        first = first or now
        if now - last >= PREVIEW_EVERY or step.index in (0, step.total - 1):
            last = now
            left = (now - first) / max(step.index, 1) * (step.total - step.index - 1) if step.index else now - began
            page = step.preview(PREVIEW) if isinstance(step, SketchStep) else step.preview()
            on_progress(Progress(step.index + 1, step.total, left, images.to_array(page)))
        return go_on()

    if isinstance(order, DrawOrder):
        return _drawn(prior, order, model, on_step)
    return _changed(prior, order, model, on_step)


def _drawn(prior: Prior, order: DrawOrder, model: dict[str, Any], on_step: Callable[[Any], bool]) -> Made:
    result = sketch(order.prompt, prior, order.config, on_step, [each.tensor() for each in order.references])
    if not result.steps_done:
        raise Cancelled
    recipe = record.sketch_recipe(order.prompt, order.config, result, model, order.references)
    strokes = len(result.topology)
    what = ("shape" if order.config.style == "icon" else "stroke") + ("" if strokes == 1 else "s")
    gone = f"; {result.dropped} more did not matter and were left out" if result.dropped else ""
    lines = [f"{strokes} {what}{gone}."]
    if words := ", ".join(printable(word, 60) for word in result.words):
        lines.append(f"Drawn after: {words}.")
    lines += _ending(result.stopped, result.steps_done)
    lines += result.notes
    return Made(order, sketch_svg(result, record.dump(recipe)), recipe, None, tuple(lines))


def _changed(prior: Prior, order: ChangeOrder, model: dict[str, Any], on_step: Callable[[Any], bool]) -> Made:
    drawing = order.drawing
    result = change(drawing.document, prior, order.request, order.config, on_step)
    if result.stopped and result.steps_done <= result.look.steps_done:
        raise Cancelled  # no shape has been touched
    recipe = record.svg_recipe(drawing.name, drawing.sha256, order.request, order.config, result, model)
    count = len(drawing.document.shapes)
    parts = [("changed", len(result.changed)), ("removed", len(result.removed)), ("added", len(result.added))]
    said = ", ".join(f"{number} {what}" for what, number in parts if number) or "nothing changed"
    lines = [f"Kept byte for byte: {result.kept} of {count} shapes; {said}."]
    if words := ", ".join(printable(word, 60) for word in result.look.words):
        lines.append(f"The place was found by: {words}.")
    lines += _ending(result.stopped, result.steps_done)
    lines += [*drawing.document.notes, *result.notes]
    return Made(order, result.written(record.dump(recipe)), recipe, highlight(result), tuple(lines))


def _ending(stopped: str, steps: int) -> list[str]:
    if stopped == "cancelled":
        return [f"Stopped after {steps} {'step' if steps == 1 else 'steps'}; this is what was there."]
    return [f"The run ended early: {stopped}."] if stopped else []


# ---- what is shown and given out


def highlight(result: SvgResult) -> bytes:
    """What changed: new and changed shapes in orange, removed ones in blue, all others faint behind them."""
    document = result.document
    thin = max(document.width, document.height) / 200
    kept, gone, new = [], [], list(result.added)
    for k, shape in enumerate(document.shapes):
        if k in result.removed:
            gone.append(shape)
        elif k in result.changed:
            new.append(result.changed[k])
        else:
            kept.append(_faint(shape))
    marked = [_marked(shape, _CHANGED, thin) for shape in new], [_marked(shape, _GONE, thin) for shape in gone]
    groups = [("kept", kept), ("removed", marked[1]), ("changed", marked[0])]
    return svg.new_svg(document.width, document.height, (1.0, 1.0, 1.0), groups)


def _faint(shape: SvgShape) -> SvgShape:
    def pale(colour: svg.Colour | None) -> svg.Colour | None:
        if colour is None:
            return None
        grey = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
        level = 0.72 + 0.25 * grey
        return level, level, level, colour[3]

    return replace(shape, fill=pale(shape.fill), stroke=pale(shape.stroke), id=None)


def _marked(shape: SvgShape, colour: svg.Colour, thin: float) -> SvgShape:
    if shape.fill is None:
        return replace(shape, stroke=colour, width=max(shape.width, thin), id=None)
    return replace(shape, fill=(*colour[:3], 0.35), stroke=colour, width=thin, id=None)


def figure(data: bytes, caption: str, alt: str) -> str:
    """A drawing with a line under it, as a vector."""
    source = base64.b64encode(data).decode("ascii")
    return (
        f'<figure class="stage"><img class="drawing" alt="{html.escape(alt)}" '
        f'src="data:image/svg+xml;base64,{source}">'
        f'<figcaption role="status">{html.escape(caption)}</figcaption></figure>'
    )


def pair(before: bytes, after: bytes, alt: str) -> str:
    """Two drawings side by side, as vectors."""
    cells = "".join(
        f'<figure class="stage"><img class="drawing" alt="{html.escape(alt)}, {word.lower()}" '
        f'src="data:image/svg+xml;base64,{base64.b64encode(data).decode("ascii")}"><figcaption>{word}</figcaption></figure>'
        for word, data in (("Before", before), ("After", after))
    )
    return f'<div class="pair">{cells}</div>'


def summary(made: Made) -> str:
    """What is to be said about a drawing, as one HTML line for each sentence."""
    return "".join(f"<p>{html.escape(printable(line, 1000))}</p>" for line in made.lines)


def png_of(made: Made) -> bytes:
    """The drawing as a PNG with its recipe inside, as large as its page."""
    return images.encode_png(page_of(made.svg), None, None, record.dump(made.recipe))


def page_of(data: bytes) -> np.ndarray:  # [H, W, 3] uint8
    return draw_page(svg.read_svg(data))


def animated(made: Made, suffix: str = ".svg") -> bytes:
    """The drawing drawing itself; `suffix` is ".svg", ".gif" or ".mp4"."""
    return animation(made.svg, suffix)
