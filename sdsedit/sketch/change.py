"""The editing of an SVG by words: only the shapes that should change do, all others keep their bytes.

1. look      the drawing is rendered and edited as a picture (edit.edit, LUSD): what should be there, and where
2. lift      the mask is lifted to shapes: the share of each shape's visible ink that lies inside. Shapes with more
             than `share` inside are free, the others are held
3. fit       free shapes that hide what should be there go, the others take its colours; where the drawing still
             differs, new shapes are traced from the edited picture (or drawn over it, in a drawing of strokes)
4. optimise  LUSD's localized update on the free and the new shapes through the renderer and the autoencoder, with
             likeness to the edited picture inside the mask (edit.distill)
5. write     the file's own bytes with the changed elements replaced and the new ones added
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.attention.words import changed_words
from sdsedit.edit import EditResult, StepReport, distill, edit
from sdsedit.guidance import configured
from sdsedit.io.svg import SvgDocument, SvgShape, write_svg
from sdsedit.prior.base import Prior
from sdsedit.render.strokes import EVENODD, NONZERO, STROKE, Topology
from sdsedit.representations.image import working_size
from sdsedit.representations.sketch import Page, Rates, Term, ink
from sdsedit.request import Edit, EditConfig, check_number, check_request, check_whole, encode_prompts, words_to_find
from sdsedit.sketch.draw import Shapes, inked, that_matter
from sdsedit.sketch.start import blur, directions, first_strokes, probabilities, start_points, xdog
from sdsedit.sketch.trace import trace


@dataclass(frozen=True)
class SvgConfig:
    """How to change a drawing."""

    edit: EditConfig = field(default_factory=EditConfig)  # of the look; its seed is the seed of all
    share: float = 0.5  # 0 .. 1: of a shape's visible ink inside the mask, from which on it may change
    added: int = 24  # new shapes at most, 0 .. 512
    steps: int = 60  # of the optimisation of shapes, 1 .. 10000
    distillation: float = 0.3  # 0 .. 1, LUSD's share of the gradient; the rest is likeness to the edited picture


@dataclass(frozen=True)
class SvgStep:
    """One finished step, as `on_step` sees it: first those of the picture, then those of the shapes."""

    index: int
    total: int
    preview: Callable[[], Tensor]  # [1, 3, H, W] in 0..1


@dataclass(frozen=True)
class SvgResult:
    """An edited drawing."""

    data: bytes  # the file, without a recipe: `written` puts one in
    document: SvgDocument  # the file that was edited
    changed: dict[int, SvgShape]  # index in document.shapes -> what it became
    removed: tuple[int, ...]
    added: tuple[SvgShape, ...]
    shares: tuple[float, ...]  # of each shape of the document, its ink inside the mask, 0..1
    before: Tensor  # [1, 3, H, W], the drawing
    after: Tensor  # [1, 3, H, W]
    look: EditResult  # the edit of the drawing as a picture
    steps_done: int
    stopped: str
    notes: tuple[str, ...]
    seconds: float

    @property
    def kept(self) -> int:
        """Shapes whose bytes are as they were."""
        return len(self.document.shapes) - len(self.changed) - len(self.removed)

    def written(self, recipe: str | None) -> bytes:
        return write_svg(self.document, self.changed, self.removed, self.added, recipe)


OnSvgStep = Callable[[SvgStep], "bool | None"]


def change(
    document: SvgDocument,
    prior: Prior,
    request: Edit,
    config: SvgConfig | None = None,
    on_step: OnSvgStep | None = None,
) -> SvgResult:
    """Edit a drawing. on_step is called after each step and stops the run by returning False; the file then has what
    there is so far. Raises InputRefused with one sentence where a value cannot be used."""
    started = time.perf_counter()
    config = config or SvgConfig()
    check_change(request, config)
    proportions = (max(round(64 * document.height), 1), max(round(64 * document.width), 1))  # pages may be tiny
    size = working_size(proportions, prior.native, prior.multiple)
    parts = _parts(document, size)
    before = parts.shapes.picture(size)
    look_steps, cancelled = 0, False

    def report_look(step: StepReport) -> bool | None:
        nonlocal look_steps, cancelled
        look_steps = step.total
        go_on = on_step(SvgStep(step.index, step.total + config.steps, step.preview)) if on_step else None
        cancelled = go_on is False
        return go_on

    look = edit(before, prior, request, config.edit, report_look)
    new_words = changed_words(prior.tokenize, request.source, request.target).tokens
    removal = not request.words and request.mask is None and not new_words
    wanted = look.image.cpu()
    if lines := _is_line_drawing(parts, size):
        wanted = inked(wanted)
    notes = list(look.notes)
    where = (look.mask > 0.5).float().cpu()  # which shapes, and how they begin, is the host's work
    stopped = look.stopped or ("cancelled" if cancelled else "")  # a look's last step does not call itself so
    if stopped or not where.any():
        data = write_svg(document)
        return SvgResult(
            data, document, {}, (), (), (0.0,) * len(document.shapes), before, before, look, look.steps_done,
            stopped, tuple(notes), time.perf_counter() - started,
        )  # fmt: skip
    # What is taken away must go whole, and attention knows its place to a cell or so.
    near = F.max_pool2d(where, 2 * prior.factor - 1, stride=1, padding=prior.factor - 1) if removal else where
    shares = _shares(parts, near, len(document.shapes))
    free_shape = torch.tensor(
        [share >= config.share and shape.editable for share, shape in zip(shares, document.shapes, strict=True)]
    )
    painted = _recoloured(parts, free_shape, document, wanted, where)
    gone = _gone(parts, painted, free_shape, wanted, where, size, 1.0 if removal else 0.98)
    parts = replace(parts, shapes=painted)
    kept_rows = [row for row, owner in enumerate(parts.owner) if owner not in gone]
    shapes = parts.shapes.keep(kept_rows)
    owner = [parts.owner[row] for row in kept_rows]
    index = parts.index_of(kept_rows)
    generator = torch.Generator().manual_seed(config.edit.seed)
    new = _new_shapes(shapes, document, lines, wanted, where, size, config.added, generator)
    both, index = _joined(shapes, new, index)
    free = torch.tensor([bool(free_shape[each]) for each in owner] + [True] * len(new.topology), dtype=torch.bool)
    method = configured(config.edit.method, config.edit.strength, prior.editing)
    page = Page(
        both.topology, both.points, both.widths, both.colours, both.background, size, prior, config.steps, generator,
        Rates(points=0.3, widths=0.03, colours=0.0 if lines else 0.01, opacity=0.0), None, config.distillation,
        _likeness(prior, wanted.to(prior.device), where.to(prior.device), 1 - config.distillation),
        free=free, source=before,
        mask=F.adaptive_max_pool2d(where, (size[0] // prior.factor, size[1] // prior.factor)), index=index,
        reach=_reach(both, size),
    )  # fmt: skip
    steps = 0
    if free.any():
        words, mask_from = words_to_find(prior, request, method, [])
        prompts = encode_prompts(prior, request, words.tokens, mask_from, [])

        def report(step: StepReport) -> bool | None:
            total = look_steps + step.total
            return on_step(SvgStep(look_steps + step.index, total, page.picture)) if on_step else None

        run = distill(page, prior, prompts, method, config.steps, config.edit.seed, report)
        steps, stopped = run.steps_done, run.stopped
    else:
        notes.append("No shape lies mostly inside the place of the change, and nothing new was found to draw there.")
    changed, added = _written_back(page, document, parts, kept_rows, owner, free_shape, wanted, where)
    data = write_svg(document, changed, tuple(sorted(gone)), added)
    after = _parts(replace(document, shapes=_final(document, changed, gone, added)), size).shapes.picture(size)
    return SvgResult(
        data, document, changed, tuple(sorted(gone)), tuple(added), tuple(shares), before, after, look,
        look.steps_done + steps, stopped, tuple(notes), time.perf_counter() - started,
    )  # fmt: skip


def check_change(request: Edit, config: SvgConfig) -> None:
    """Refuse, with one sentence (InputRefused), what no model could make right; needs none."""
    check_request(request, config.edit)
    check_number("share", config.share, 0, 1)
    check_whole("added", config.added, 0, 512)
    check_whole("steps", config.steps, 1, 10_000)
    check_number("distillation", config.distillation, 0, 1)


# --- from a document to the renderer's layout and back ----------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """A document as the renderer draws it: a shape with a fill and a stroke is two, on the same points."""

    shapes: Shapes  # with each part's own points
    owner: tuple[int, ...]  # [N], the document's shape that each part belongs to
    stroke: tuple[bool, ...]  # [N], whether a part is its owner's stroke
    scale: tuple[float, float]  # pixels of the working picture by pixels of the page, across and down

    def index_of(self, rows: list[int]) -> Tensor:
        """[P] long: points of these rows, in which a stroke's are those of the fill before it."""
        spans = self.shapes.spans()
        index, at, seen = [], 0, {}
        for row in rows:
            count = spans[row][1] - spans[row][0]
            if self.stroke[row] and self.owner[row] in seen:
                index += range(seen[self.owner[row]], seen[self.owner[row]] + count)
            else:
                seen[self.owner[row]] = at
                index += range(at, at + count)
            at += count
        return torch.tensor(index, dtype=torch.long)


def _parts(document: SvgDocument, size: tuple[int, int]) -> _Parts:
    across, down = size[1] / document.width, size[0] / document.height
    kinds, contours, caps, points, widths, colours, owner, stroke = [], [], [], [], [], [], [], []
    for number, shape in enumerate(document.shapes):
        of_shape = tuple((len(p) // 3, closed) for p, closed in shape.contours)
        where = [torch.from_numpy(np.asarray(p)).float() * torch.tensor([across, down]) for p, _ in shape.contours]
        for is_stroke, colour in ((False, shape.fill), (True, shape.stroke)):
            if colour is None:
                continue
            kinds.append(STROKE if is_stroke else EVENODD if shape.rule == "evenodd" else NONZERO)
            contours.append(of_shape)
            caps.append(shape.cap == "round")
            points += where
            width = shape.width * (across * down) ** 0.5 if is_stroke else 0.0
            widths.append([width, width])
            colours.append(colour)
            owner.append(number)
            stroke.append(is_stroke)
    topology = Topology(tuple(kinds), tuple(contours), tuple(caps))
    shapes = Shapes(
        topology,
        torch.cat([torch.zeros(0, 2), *points]),  # of none if all shapes are gone
        torch.tensor(widths).view(-1, 2),
        torch.tensor(colours).view(-1, 4).float(),
        torch.ones(3),
    )
    return _Parts(shapes, tuple(owner), tuple(stroke), (across, down))


def _shares(parts: _Parts, where: Tensor, count: int) -> list[float]:
    """Of each shape of the document, the share of its visible ink inside; a hidden shape has 0."""
    inside, whole = _ink_by_owner(parts, where, count)
    return [float(a / b) if b > 0.5 else 0.0 for a, b in zip(inside, whole, strict=True)]


def _ink_by_owner(parts: _Parts, where: Tensor, count: int) -> tuple[list[float], list[float]]:
    shown = ink(parts.shapes.drawing(), where[0])
    inside, whole = [0.0] * count, [0.0] * count
    for row, owner in enumerate(parts.owner):
        inside[owner] += float(shown[0, row])
        whole[owner] += float(shown[1, row])
    return inside, whole


def _is_line_drawing(parts: _Parts, size: tuple[int, int]) -> bool:
    """Whether strokes show more ink than areas do; an area of nearly the whole page is paper."""
    height, width = size
    shown = ink(parts.shapes.drawing(), torch.ones(1, height, width))[0].tolist()
    whole = float(height * width)
    strokes = sum(amount for amount, is_stroke in zip(shown, parts.stroke, strict=True) if is_stroke)
    areas = sum(a for a, is_stroke in zip(shown, parts.stroke, strict=True) if not is_stroke and a < 0.5 * whole)
    return strokes > areas


def _gone(
    parts: _Parts,
    painted: Shapes,  # the parts in the colours that the edited picture has there
    free: Tensor,
    wanted: Tensor,
    where: Tensor,
    size: tuple[int, int],
    enough: float,
) -> set[int]:
    """The free shapes without which the drawing's distance from the edited picture is at most `enough` times as large,
    and that new paint would not help either; from the top down."""
    rows, target = list(range(len(parts.owner))), blur(wanted, 0.7)

    def far(kept: list[int], repainted: int = -1) -> float:
        mine = torch.tensor([owner == repainted for owner in parts.owner])[:, None]
        shapes = replace(parts.shapes, colours=torch.where(mine, painted.colours, parts.shapes.colours))
        page = shapes.keep(kept).picture(size) if kept else torch.ones_like(wanted)
        return float(((blur(page, 0.7) - target).square() * where).sum())

    gone: set[int] = set()
    now = far(rows)
    for owner in reversed(range(len(free))):
        if free[owner]:
            without = [row for row in rows if parts.owner[row] != owner]
            then = far(without)
            # Painted like what lies behind it, a shape that should go would hide: that is no help.
            if then <= enough * now and then <= 1.05 * far(rows, owner) + 0.05:
                rows, now = without, then
                gone.add(owner)
    return gone


def _recoloured(parts: _Parts, free: Tensor, document: SvgDocument, wanted: Tensor, where: Tensor) -> Shapes:
    """All parts; free and opaque ones take the mean colour of the edited picture under their visible ink. (What shows
    under a transparent one is not its own colour: the optimisation finds that.)"""
    colours = parts.shapes.colours.clone()
    weights = ink(parts.shapes.drawing(), torch.cat([wanted[0] * where[0], where[0]]))  # red, green, blue, inside, all
    for row, owner in enumerate(parts.owner):
        shape = document.shapes[owner]
        frozen = shape.stroke_frozen if parts.stroke[row] else shape.fill_frozen
        if free[owner] and not frozen and colours[row, 3] > 0.9 and weights[3, row] > 1.0:
            mean = (weights[:3, row] / weights[3, row]).clamp(0, 1)
            if (mean - colours[row, :3]).abs().max() > 0.08:  # less is the autoencoder's own error
                colours[row, :3] = mean
    return replace(parts.shapes, colours=colours)


def _new_shapes(
    shapes: Shapes,
    document: SvgDocument,
    lines: bool,
    wanted: Tensor,
    where: Tensor,
    size: tuple[int, int],
    count: int,
    generator: torch.Generator,
) -> Shapes:
    """What the edited picture has and the drawing has not, as areas, or as strokes if the drawing is all strokes."""
    page = shapes.picture(size) if len(shapes.topology) else torch.ones_like(wanted)
    different = (blur(page, 0.7) - blur(wanted, 0.7)).abs().amax(1, keepdim=True) * where
    place = ((different - 0.15) / 0.1).clamp(0, 1)  # less is the autoencoder's own error
    empty = Shapes(Topology((), (), ()), torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0, 4), torch.ones(3))
    if not count or place.sum() < 12:
        return empty
    if lines:
        edges = xdog(wanted)
        p = probabilities(place[0, 0], blur(edges, 0.7)[0, 0], share=0.03)
        points = start_points(p, size[1], count, generator, apart=2.0)
        first = first_strokes(points, directions(wanted), size, 0.08 * size[1], generator)
        drawn = [shape for shape in document.shapes if shape.stroke is not None]
        width = torch.tensor([shape.width for shape in drawn]).median() * size[1] / document.width
        colour = torch.tensor([shape.stroke for shape in drawn]).float().median(0).values
        topology = Topology((STROKE,) * count, (((1, False),),) * count, (True,) * count)
        widths, colours = width.expand(count, 2).clone(), colour.expand(count, 4).clone()
        return Shapes(topology, first.flatten(0, 1), widths, colours, torch.ones(3))
    # Areas are traced as far as the mask goes, so that a gold crown on an orange cat is a whole one.
    near = F.max_pool2d(place, 5, stride=1, padding=2)[0, 0]
    rings, colours = trace(wanted, near, torch.full((3,), -1.0), count, least=10.0, clip=where[0, 0])
    if not rings:
        return empty
    topology = Topology((NONZERO,) * len(rings), tuple(((len(r) // 3, True),) for r in rings), (True,) * len(rings))
    return Shapes(topology, torch.cat(rings), torch.zeros(len(rings), 2), colours, torch.ones(3))


def _joined(shapes: Shapes, new: Shapes, index: Tensor) -> tuple[Shapes, Tensor]:
    a, b = shapes.topology, new.topology
    topology = Topology(a.kinds + b.kinds, a.contours + b.contours, a.round_caps + b.round_caps)
    both = Shapes(
        topology,
        torch.cat([shapes.points, new.points]),
        torch.cat([shapes.widths, new.widths]),
        torch.cat([shapes.colours, new.colours]),
        shapes.background,
    )
    return both, torch.cat([index, torch.arange(len(new.points)) + len(shapes.points)])


def _reach(shapes: Shapes, size: tuple[int, int]) -> float:
    """How far beyond the page shapes reach, as a share of its longer side: a hill may go on outside."""
    beyond = torch.cat([-shapes.points, shapes.points - torch.tensor([size[1], size[0]])])
    return max(0.1, float(beyond.max()) / max(size)) if len(beyond) else 0.1


def _likeness(prior: Prior, wanted: Tensor, where: Tensor, weight: float) -> dict[str, tuple[float, Term]]:
    """The mean absolute difference to the edited picture inside the mask, and that of the encoder's features."""
    if weight <= 0:
        return {}
    with torch.no_grad():
        features = prior.encoder_features(wanted)

    def pixels(page: Tensor) -> Tensor:
        return ((page - wanted).abs() * where).sum() / (3 * where.sum())

    def encoder(page: Tensor) -> Tensor:
        pairs = zip(prior.encoder_features(page), features, strict=True)
        return torch.stack([(f - w).abs().mean() for f, w in pairs]).mean()

    return {"pixels": (0.7 * weight, pixels), "encoder features": (0.3 * weight, encoder)}


def _written_back(
    page: Page, document: SvgDocument, parts: _Parts, rows: list[int], owner: list[int], free: Tensor, wanted: Tensor,
    where: Tensor,
) -> tuple[dict[int, SvgShape], list[SvgShape]]:  # fmt: skip
    """The free shapes that did change, and the new ones that matter, in pixels of the document's page."""
    with torch.no_grad():
        drawing = page.drawing()
        numbers = (drawing.points[0], drawing.widths[0], drawing.colours[0], drawing.background[0])
        final = Shapes(page.topology, *(each.cpu() for each in numbers))
    new = list(range(len(rows), len(final.topology)))
    kept = set(that_matter(final, list(range(len(final.topology))), new, wanted, 0.7, where, 0.01)) if new else set()
    new = [row for row in new if row in kept]
    back = torch.tensor([1 / parts.scale[0], 1 / parts.scale[1]])
    spans, changed = final.spans(), {}
    for number in range(len(document.shapes)):
        if not free[number]:
            continue
        mine = [k for k, each in enumerate(owner) if each == number]
        if not mine:
            continue
        old = document.shapes[number]
        contours = _contours(final, mine[0], spans, back)
        fill, stroke, width = old.fill, old.stroke, old.width
        for k in mine:
            rgba: Any = tuple(final.colours[k].tolist())
            if parts.stroke[rows[k]]:
                stroke = old.stroke if old.stroke_frozen else rgba
                width = float(final.widths[k].mean()) / (parts.scale[0] * parts.scale[1]) ** 0.5
            else:
                fill = old.fill if old.fill_frozen else rgba
        shape = replace(old, contours=contours, fill=fill, stroke=stroke, width=width)
        if _differs(old, shape, parts.scale):
            changed[number] = shape
    shapes = []
    for k in new:
        rgba = tuple(final.colours[k].tolist())
        contours = _contours(final, k, spans, back)
        if final.topology.kinds[k] == STROKE:
            width = float(final.widths[k].mean()) / (parts.scale[0] * parts.scale[1]) ** 0.5
            shapes.append(SvgShape(contours, None, rgba, width))
        else:
            shapes.append(SvgShape(contours, rgba))
    return changed, shapes


def _contours(
    final: Shapes, row: int, spans: list[tuple[int, int]], back: Tensor
) -> tuple[tuple[np.ndarray, bool], ...]:
    at, found = spans[row][0], []
    for count, closed in final.topology.contours[row]:
        length = 3 * count + (not closed)
        found.append(((final.points[at : at + length] * back).double().numpy(), closed))
        at += length
    return tuple(found)


def _differs(old: SvgShape, new: SvgShape, scale: tuple[float, float]) -> bool:
    """By more than a tenth of a pixel of the working picture, or 2 of 255."""
    pairs = zip(old.contours, new.contours, strict=True)
    moved = max(float(np.abs((a - b) * np.array(scale)).max()) for (a, _), (b, _) in pairs)
    painted = [
        max(abs(x - y) for x, y in zip(a, b, strict=True)) if a and b else float(a is not b)
        for a, b in ((old.fill, new.fill), (old.stroke, new.stroke))
    ]
    return moved > 0.1 or max(painted) > 2 / 255 or abs(old.width - new.width) * scale[0] > 0.1


def _final(
    document: SvgDocument, changed: dict[int, SvgShape], gone: set[int], added: list[SvgShape]
) -> tuple[SvgShape, ...]:
    kept = [changed.get(k, shape) for k, shape in enumerate(document.shapes) if k not in gone]
    return (*kept, *added)
