"""What the Style tab does, as plain functions: the look of one picture for another, for words, or for a texture."""

from __future__ import annotations

import hashlib
import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from sdsedit.errors import InputRefused, printable
from sdsedit.io import images, record
from sdsedit.io.images import Picture
from sdsedit.io.record_style import style_recipe, style_request
from sdsedit.prior.base import Prior
from sdsedit.request import check_number, check_whole
from sdsedit.style import MAX_CONTENT_WEIGHT, StyleConfig, StyleRequest, StyleStep, check_style, style
from sdsedit.web.image_work import PREVIEW_EVERY, Progress, references_kept, whole
from sdsedit.web.worker import Cancelled

Mode = Literal["transfer", "words", "texture"]
MODES: tuple[Mode, ...] = ("transfer", "words", "texture")
UNDO = 12  # steps back
MAX_STEPS = 1000  # what one person may ask of a machine that others share
MIN_SIDE, MAX_SIDE = 64, 1024  # pixels, of a texture on this page
PARTS = (  # what a part of a picture is painted with to take the second look, the third, ...
    ("Orange", (255, 90, 54)), ("Blue", (47, 111, 237)), ("Green", (47, 158, 97)), ("Yellow", (242, 194, 48)),
    ("Violet", (142, 78, 198)), ("Turquoise", (31, 182, 201)), ("Pink", (224, 82, 156)),
)  # fmt: skip


@dataclass(frozen=True)
class StyleOrder:
    """A style that somebody wants."""

    references: tuple[Picture, ...]
    content: Picture | None
    prompt: str | None
    texture: tuple[int, int] | None  # (H, W)
    config: StyleConfig
    regions: Picture | None = None  # of the content
    reference_regions: tuple[Picture, ...] = ()

    def request(self) -> StyleRequest:
        return StyleRequest(
            tuple(picture.tensor() for picture in self.references),
            None if self.content is None else self.content.tensor(),
            self.prompt,
            self.texture,
            None if self.regions is None else self.regions.numbers(),
            tuple(picture.numbers() for picture in self.reference_regions),
        )

    @property
    def said(self) -> str:
        """What it is, in a few words."""
        *others, last = (Path(picture.name).stem for picture in self.references)
        look = f"{', '.join(others)} and {last}" if others else last
        if self.content is not None:
            return f"{Path(self.content.name).stem} in the look of {look}"
        return f"{self.prompt} in the look of {look}" if self.prompt is not None else f"a texture of {look}"


@dataclass(frozen=True)
class Styled:
    """A finished or stopped one."""

    order: StyleOrder
    rgb: np.ndarray  # [H, W, 3] uint8
    recipe: dict[str, Any]
    lines: tuple[str, ...]  # what is to be said, a sentence each

    @property
    def name(self) -> str:
        """The name of a download."""
        stem = "".join(c if c.isalnum() or c in "-_ " else "_" for c in self.order.said)[:60]
        return f"{stem.strip().replace(' ', '-') or 'style'}.png"


@dataclass(frozen=True)
class StyleTable:
    """What a person has in front of them."""

    mode: Mode = "transfer"
    reference: Picture | None = None  # the first; the others are on the page alone
    content: Picture | None = None
    prompt: str = ""
    made: Styled | None = None

    @property
    def empty(self) -> bool:
        return not any((self.reference, self.content, self.made))


@dataclass
class StyleDesk:
    """A person's tables, the newest last."""

    tables: list[StyleTable] = field(default_factory=lambda: [StyleTable()])

    @property
    def table(self) -> StyleTable:
        return self.tables[-1]

    def put(self, table: StyleTable) -> None:
        """A new table on top; the oldest go, and so does an empty one below it."""
        below = self.tables[:-1] if self.table.empty else self.tables
        self.tables = [*below, table][-UNDO - 1 :]

    def turn(self, table: StyleTable) -> None:
        """The same table, seen otherwise: no step that undo takes back."""
        self.tables[-1] = table

    def undo(self) -> None:
        if len(self.tables) < 2:
            raise InputRefused("There is nothing to undo.")
        self.tables = self.tables[:-1]


# ---- what goes in


def make_order(
    mode: str, references: Sequence[Picture | None], content: Picture | None, prompt: str, width: Any, height: Any,
    keep: Any, steps: Any, seed: Any, scale: Any = None, regions: Picture | None = None,
    reference_regions: Sequence[Picture] = (),
) -> StyleOrder:  # fmt: skip
    """What somebody wants, checked as far as it can be without the model. keep: the content's weight; scale: how firmly
    the prompt is followed; None, and steps 0: what suits the model. InputRefused."""
    if mode not in MODES:
        raise InputRefused(f"mode is {printable(str(mode), 40)}; it must be one of {', '.join(MODES)}.")
    given = tuple(picture for picture in references if picture is not None)
    if not given:
        raise InputRefused("There is no picture yet whose look is wanted: drop one, or take an example.")
    if mode == "transfer" and content is None:
        raise InputRefused("There is no picture yet to restyle: drop one, or take an example.")
    texture = None
    if mode == "texture":
        for name, side in (("width", whole(width)), ("height", whole(height))):
            check_whole(name, side, MIN_SIDE, MAX_SIDE)
        texture = (whole(height), whole(width))
    if keep is not None:
        check_number("keep", keep, 0, MAX_CONTENT_WEIGHT)
    check_whole("steps", whole(steps), 0, MAX_STEPS)
    config = StyleConfig(
        steps=whole(steps) or None,
        content_weight=None if keep is None or mode != "transfer" else float(keep),
        scale=None if scale is None or mode != "words" else scale,
        seed=whole(seed),
    )
    content = content if mode == "transfer" else None
    order = StyleOrder(
        given, content, prompt if mode == "words" else None, texture, config, regions, tuple(reference_regions)
    )
    check_style(order.request(), config)
    return order


def painted_parts(
    layers: Sequence[np.ndarray],  # [h, w, 4] uint8 each, on a view of the content that may be larger or smaller
    content: Picture,
    references: Sequence[Picture],
) -> tuple[Picture | None, tuple[Picture, ...]]:
    """Which part of the content takes the look of which reference, as pictures of regions: of the content, and of each
    reference, which is one region all over. What is not painted is the first reference's, the k-th colour of PARTS the
    (k + 2)-th's. Nothing painted: no regions, all are mixed. InputRefused: a colour stands for no reference."""
    width, height = content.size
    part = np.zeros((height, width), np.uint8)
    palette = np.array([colour for _, colour in PARTS], np.float32)
    for layer in layers:
        if layer.ndim == 3 and layer.shape[2] == 4:
            near = ((layer[..., None, :3].astype(np.float32) - palette) ** 2).sum(-1).argmin(-1) + 1
            near = np.where(layer[..., 3] >= 128, near, 0).astype(np.uint8)
            near = np.asarray(Image.fromarray(near).resize((width, height), Image.Resampling.NEAREST))
            part = np.where(near > 0, near, part)
    if not part.any():
        return None, ()
    if (most := int(part.max())) >= len(references):
        there = "is 1 look" if len(references) == 1 else f"are {len(references)} looks"
        raise InputRefused(f"{PARTS[most - 1][0]} is for look {most + 1}, and there {there}: add one, or erase it.")
    colours = np.concatenate([np.full((1, 3), 255, np.uint8), palette.astype(np.uint8)])
    flat = [_flat(f"parts-{k}.png", np.full((p.size[1], p.size[0]), k, np.uint8), colours)
            for k, p in enumerate(references)]  # fmt: skip
    return _flat("parts.png", part, colours), tuple(flat)


def _flat(name: str, part: np.ndarray, colours: np.ndarray) -> Picture:
    """A picture of regions as it would be read from a file."""
    rgb = colours[part]
    return Picture(name, hashlib.sha256(images.encode_png(rgb)).hexdigest(), "PNG", rgb, None, None, ())


def order_of(
    recipe: dict[str, Any], content: Picture | None, references: Sequence[Picture], regions: Picture | None = None,
    reference_regions: Sequence[Picture] = (),
) -> StyleOrder:  # fmt: skip
    """What a recipe asks for. InputRefused: it is not one of a style, or its pictures are not here."""
    asked = style_request(recipe)
    here = (len(references), content is None, regions is None, len(reference_regions))
    if here != (len(asked.references), asked.content is None, asked.regions is None, len(asked.reference_regions)):
        raise InputRefused("The pictures that this one was made from are not in the history: it cannot be repeated.")
    return StyleOrder(
        tuple(references), content, asked.prompt, asked.texture, asked.config, regions, tuple(reference_regions)
    )


# ---- the work


def run(
    prior: Prior,
    order: StyleOrder,
    model: dict[str, Any],
    on_progress: Callable[[Progress], None],
    go_on: Callable[[], bool],
) -> Styled:
    """Make it, and tell how far it is; `go_on` is asked after every step. Cancelled if there is nothing to keep."""
    began = last = time.perf_counter()
    on_progress(Progress(0, 1, 0.0, None))

    def on_step(step: StyleStep) -> bool:
        nonlocal last
        now = time.perf_counter()
        if now - last >= PREVIEW_EVERY or step.index in (0, step.total - 1):
            last = now
            left = (now - began) / (step.index + 1) * (step.total - step.index - 1)
            on_progress(Progress(step.index + 1, step.total, left, images.to_array(step.preview())))
        return go_on()

    result = style(prior, order.request(), order.config, on_step)
    if not result.steps_done:
        raise Cancelled
    recipe = style_recipe(
        order.content, order.references, order.regions, order.reference_regions, order.request(), order.config, result,
        model, {"making": result.seconds},
    )  # fmt: skip
    before, after = result.history[0]["style"], result.history[-1]["style"]
    closer = round(100 * (1 - after / before)) if before > 0 else 0
    lines = [f"{order.said[:1].upper()}{order.said[1:]}."]
    if closer > 0:
        lines.append(f"By the model's own measure it is {closer} % closer to the look than after the first step.")
    if result.stopped == "cancelled":
        steps = f"{result.steps_done} {'step' if result.steps_done == 1 else 'steps'}"
        lines.append(f"Stopped after {steps}; this is what was there.")
    elif result.stopped:
        lines.append(f"The run ended early: {result.stopped}.")
    lines += result.notes
    return Styled(order, images.to_array(result.image), recipe, tuple(lines))


# ---- what is shown and given out


def png_of(made: Styled) -> bytes:
    """The picture as a PNG with its recipe inside."""
    content = made.order.content
    alpha, icc = (None, None) if content is None else (content.alpha, content.icc)
    return images.encode_png(made.rgb, alpha, icc, record.dump(made.recipe))


def inputs_of(order: StyleOrder, folder: Path) -> dict[str, Path]:
    """What a replay needs, written as PNG into `folder`, by what the history calls it."""
    pictures: dict[str, Picture] = {}
    if order.content is not None:
        pictures["input"] = order.content
    if order.regions is not None:
        pictures["regions"] = order.regions
    pictures |= {f"regions {k}": picture for k, picture in enumerate(order.reference_regions, 1)}
    paths = {}
    for what, picture in pictures.items():
        (folder / what).mkdir(parents=True)
        paths[what] = folder / what / f"{Path(picture.name).stem}.png"
        paths[what].write_bytes(images.encode_png(picture.rgb, picture.alpha, picture.icc))
    return {**paths, **references_kept(order.references, folder)}


def summary(made: Styled) -> str:
    """What is to be said about a result, as one HTML line for each sentence."""
    return "".join(f"<p>{html.escape(printable(line, 1000))}</p>" for line in made.lines)
