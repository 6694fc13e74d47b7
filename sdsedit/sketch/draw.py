"""A vector sketch from words: DiffSketcher (arXiv:2306.14685) with its score distillation switched on.

    1. guide      a picture that the model draws of the words, and where it looked for each word meanwhile
    2. start      strokes where attention and edges are (sketch/start.py), or areas traced from the guide (icon)
    3. optimise   one loop (edit.distill): score distillation of augmented views, and likeness to the guide in features
    4. tidy       strokes that do not show, or that say what another says, go; the rest is grouped by word

Deviations from DiffSketcher are in docs/how-to-sketch.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sdsedit.attention.localize import average, localize
from sdsedit.attention.probe import AttentionMaps
from sdsedit.attention.words import MODIFIERS, NUMBERS, changed_words, find_words
from sdsedit.edit import StepReport, distill
from sdsedit.errors import InputRefused, printable
from sdsedit.guidance import configured
from sdsedit.guidance.base import Prompts
from sdsedit.guidance.sample import likelihood, mean_maps, sample
from sdsedit.prior.base import Prior
from sdsedit.render.strokes import NONZERO, STROKE, Drawing, Topology, render
from sdsedit.representations.sketch import Augment, Page, Rates, Term, ink
from sdsedit.request import MAX_STYLE_WEIGHT, check_number, check_prompt, check_references, check_whole
from sdsedit.sketch.start import blur, directions, first_strokes, lines, probabilities, start_points, xdog
from sdsedit.sketch.terms import clip_terms, own_terms, style_term
from sdsedit.sketch.trace import trace

Style = Literal["ink", "colour", "icon"]
STYLES: tuple[Style, ...] = ("ink", "colour", "icon")
METHODS = ("sds", "csd", "nfsd", "sbp", "ism", "vsd")  # those of guidance.METHODS that know no source
MIN_STROKES, MAX_STROKES = 4, 2048
_CONTRAST = 2.2  # of the guide of an ink drawing
WORDS = {"drawing": "a minimal black ink line drawing of {}, on white paper", "colour": "{}, on a white background"}
"""How a model is asked for a drawing, unless its folder's editing.json says better ("sketch": {"drawing": ...})."""


@dataclass(frozen=True)
class SketchConfig:
    """How to draw."""

    strokes: int = 64  # 4 .. 2048: the level of abstraction
    style: Style = "ink"  # ink: black strokes; colour: strokes with colours; icon: filled areas
    background: bool = False  # draw the words' surroundings too, or leave the paper white
    width: float = 1.0  # 0.1 .. 20, multiplies the strokes' width
    steps: int = 120  # 1 .. 10000
    seed: int = 0
    distillation: float = 0.5  # 0 .. 1, its share of the gradient; the rest is likeness to the guide
    method: str = "sds"  # which distillation, one of METHODS
    guide_steps: int = 20
    guides: int = 2  # pictures that are drawn first, 1 .. 16; the one that says the words best is the guide
    style_weight: float = 0.5  # 0 .. 10, of the references' look, beside the 1 that the other terms share


@dataclass(frozen=True)
class SketchStep:
    """One finished step, as `on_step` sees it."""

    index: int
    total: int
    shares: dict[str, float]  # of the gradient, by term
    page: Page = field(repr=False)

    def preview(self, side: int | None = None) -> Tensor:
        """The page as it is, [1, 3, H, W] in 0..1."""
        height, width = self.page.size
        return self.page.picture(None if side is None else (round(side * height / width), side))


@dataclass(frozen=True)
class SketchResult:
    """A finished drawing: shapes on a page of `size` pixels, and what is known about them."""

    topology: Topology
    points: Tensor  # [P, 2] pixels
    widths: Tensor  # [N, 2] pixels
    colours: Tensor  # [N, 4] RGBA
    background: Tensor  # [3]
    groups: tuple[str, ...]  # [N], the word of the prompt that a shape belongs to, or "background"
    size: tuple[int, int]  # (H, W)
    guide: Tensor  # [1, 3, H, W]
    attention: Tensor  # [1, 1, H, W] in 0..1, of all the words together
    words: tuple[str, ...]
    prompt: str  # as the model was asked
    shares: dict[str, float]  # of the gradient, by term, mean over the run
    dropped: int  # strokes that did not matter
    steps_done: int
    stopped: str  # "", "cancelled" or what went wrong
    notes: tuple[str, ...]
    history: tuple[dict[str, float], ...]
    seconds: float
    drawing_seconds: float  # of them, in the renderer

    def picture(self, side: int = 512) -> Tensor:  # [1, 3, H, W] in 0..1
        height, width = self.size
        page = Shapes(self.topology, self.points, self.widths, self.colours, self.background)
        return page.picture((height, width), (round(side * height / width), side))


@dataclass(frozen=True)
class Shapes:
    """The numbers of a drawing, without a batch."""

    topology: Topology
    points: Tensor
    widths: Tensor
    colours: Tensor
    background: Tensor

    def picture(self, size: tuple[int, int], at: tuple[int, int] | None = None) -> Tensor:
        at = at or size
        scale = at[1] / size[1]
        with torch.no_grad():
            batch = (self.points * scale)[None], (self.widths * scale)[None], self.colours[None], self.background[None]
            return render(Drawing(self.topology, *batch), *at).clamp(0, 1)

    def drawing(self) -> Drawing:
        return Drawing(self.topology, self.points[None], self.widths[None], self.colours[None], self.background[None])

    def spans(self) -> list[tuple[int, int]]:
        """[N], where each shape's points begin and end."""
        first, contour, spans = self.topology.contour_points, 0, []
        for shape in self.topology.contours:
            spans.append((int(first[contour]), int(first[contour + len(shape)])))
            contour += len(shape)
        return spans

    def keep(self, rows: list[int]) -> Shapes:
        """Only these shapes, in this order."""
        t, spans = self.topology, self.spans()
        index = [k for row in rows for k in range(*spans[row])]
        topology = Topology(
            tuple(t.kinds[r] for r in rows), tuple(t.contours[r] for r in rows), tuple(t.round_caps[r] for r in rows)
        )
        return Shapes(topology, self.points[index], self.widths[rows], self.colours[rows], self.background)


OnSketchStep = Callable[[SketchStep], "bool | None"]


def sketch(
    prompt: str,
    prior: Prior,
    config: SketchConfig | None = None,
    on_step: OnSketchStep | None = None,
    references: Sequence[Tensor] = (),  # [1, 3, H, W] in 0..1 each: pictures whose look the drawing takes
) -> SketchResult:
    """Draw the words. on_step is called after each step and stops the run by returning False; what there is so far is
    then tidied and returned. Raises InputRefused with one sentence where a value cannot be used."""
    started = time.perf_counter()
    config = config or SketchConfig()
    check_sketch(prompt, config)
    check_references(references, prior)
    notes: list[str] = []
    generator = torch.Generator().manual_seed(config.seed)
    asked, words, prompts = _prompts(prior, prompt, config, notes)
    guide, maps = _guide(prior, prompts, config, generator)
    size = (guide.shape[-2], guide.shape[-1])
    # Starting and tidying are the host's work; the page moves to the prior's device by itself.
    seen, guide = guide, guide.cpu()
    places = torch.stack([_place(maps, k, size) for k in range(maps.cross.shape[1])]).cpu()  # [tokens, H, W]
    attention = places.amax(0)
    shapes, tend = _start(guide, attention, config, generator)
    if not len(shapes.topology):
        notes.append("The model's picture of the words has no areas to trace: try another seed, or strokes.")
    terms = _terms(prior, prompt, seen, prompts, config, generator, notes)
    if references and config.style_weight:
        terms["style"] = (config.style_weight, style_term(prior, references, prompts.empty))
        if config.style == "ink":
            notes.append("An ink drawing is black: of the references' look it can take lines, not colours.")
    rates = _rates(config)
    page = Page(
        shapes.topology, shapes.points, shapes.widths, shapes.colours, shapes.background, size, prior, config.steps,
        generator, rates, Augment(), config.distillation, terms, in_turn=True,
        widest=4 * float(shapes.widths.max()) if len(shapes.topology) else 1.0, tend=tend,
    )  # fmt: skip
    shares: list[dict[str, float]] = []

    def report(step: StepReport) -> bool | None:
        shares.append(page.shares)
        return on_step(SketchStep(step.index, step.total, page.shares, page)) if on_step else None

    method = configured(config.method, 1.0, prior.editing)
    run = distill(page, prior, prompts, method, config.steps, config.seed, report, anneal=0.5)
    with torch.no_grad():
        last = page.drawing()
        numbers = (last.points[0], last.widths[0], last.colours[0], last.background[0])
        drawn = Shapes(page.topology, *(each.detach().cpu() for each in numbers))
        tidy, groups = _tidy(drawn, guide, words, places, size)
    return SketchResult(
        *(tidy.topology, tidy.points, tidy.widths, tidy.colours, tidy.background),
        groups=groups,
        size=size,
        guide=guide,
        attention=attention[None, None],
        words=tuple(dict.fromkeys(words)),
        prompt=asked,
        shares=_mean(shares),
        dropped=len(drawn.topology) - len(tidy.topology),
        steps_done=run.steps_done,
        stopped=run.stopped,
        notes=tuple(notes),
        history=run.history,
        seconds=time.perf_counter() - started,
        drawing_seconds=page.drawing_seconds,
    )


def _mean(shares: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for each in shares for name in each)
    return {name: sum(each.get(name, 0.0) for each in shares) / len(shares) for name in names}


def check_sketch(prompt: str, config: SketchConfig) -> None:
    """Refuse, with one sentence (InputRefused), what no model could draw; needs none."""
    check_prompt("prompt", prompt)
    if not prompt.strip():
        raise InputRefused("The prompt is empty; say what to draw.")
    check_whole("strokes", config.strokes, MIN_STROKES, MAX_STROKES)
    check_whole("steps", config.steps, 1, 10_000)
    check_whole("seed", config.seed, 0, 2**63 - 1)
    check_whole("guide_steps", config.guide_steps, 1, 1000)
    check_whole("guides", config.guides, 1, 16)
    check_number("width", config.width, 0.1, 20)
    check_number("distillation", config.distillation, 0, 1)
    check_number("style_weight", config.style_weight, 0, MAX_STYLE_WEIGHT)
    if config.style not in STYLES:
        raise InputRefused(f"style is {printable(repr(config.style), 40)}; it must be one of {', '.join(STYLES)}.")
    if config.method not in METHODS:
        given = printable(repr(config.method), 40)
        raise InputRefused(f"method is {given}; for a sketch, which has no source, it is one of {', '.join(METHODS)}.")


def _prompts(prior: Prior, prompt: str, config: SketchConfig, notes: list[str]) -> tuple[str, tuple[str, ...], Prompts]:
    """How the model is asked, the word of each token that is looked for, and the encoded prompts."""
    content = changed_words(prior.tokenize, None, prompt)
    things = [word for word in content.text if word.lower() not in MODIFIERS | NUMBERS]
    if not things:
        raise InputRefused("The prompt names no thing to draw; write at least one noun, such as: a cat.")
    ways = {**WORDS, **prior.editing.get("sketch", {})}
    asked = prompt if config.background else ways["drawing" if config.style == "ink" else "colour"].format(prompt)
    cut = prior.tokenize(asked).cut
    if cut:
        notes.append(f"The prompt is longer than the model reads; these words were cut: {cut}")
    words, tokens = [], []
    for word in dict.fromkeys(things):
        try:
            found = find_words(prior.tokenize, asked, [word])
        except ValueError:
            continue  # cut off: said above
        words += [word] * len(found.tokens)
        tokens += found.tokens
    if not tokens:
        raise InputRefused("The prompt is too long: the model reads none of the things that it names; say them first.")
    order = sorted(range(len(tokens)), key=tokens.__getitem__)
    text = prior.encode_text([asked, ""])
    prompts = Prompts(text[0], text[1], text[1], text[1], tuple(tokens[k] for k in order))
    return asked, tuple(words[k] for k in order), prompts


def _guide(
    prior: Prior, prompts: Prompts, config: SketchConfig, generator: torch.Generator
) -> tuple[Tensor, AttentionMaps]:
    """The model's own picture of the words [1, 3, H, W] and the attention while it was made: of several, the one that
    the model itself takes for the words most of all (VectorFusion, arXiv:2211.11319, asks CLIP)."""
    cells = prior.native // prior.factor
    noise = torch.randn(config.guides, prior.channels, cells, cells, generator=generator).to(prior.device)
    eps = torch.randn(1, prior.channels, cells, cells, generator=generator).to(prior.device)
    settings = prior.editing.get("sketch", {})
    with torch.inference_mode():
        steps = list(sample(prior, prompts, noise, config.guide_steps, float(settings.get("scale", 5.0))))
        best = int(likelihood(prior, prompts, steps[-1][0], eps).argmax()) if config.guides > 1 else 0
        guide = prior.decode(steps[-1][0][best : best + 1])
        if config.style == "ink":
            guide = inked(guide.mean(1, keepdim=True)).expand(-1, 3, -1, -1)
        maps = mean_maps([m for _, m in steps if m is not None])
        cross = maps.cross[best : best + 1].clone()
        refined = None if maps.refined is None else maps.refined[best : best + 1].clone()
    return guide.clone(), AttentionMaps(cross, refined)


def inked(picture: Tensor) -> Tensor:  # [1, 3, H, W] in 0..1
    """A line drawing in ink: the pale lines that an autoencoder makes of thin ones, darkened, channel by channel."""
    return (1 - _CONTRAST * (1 - picture)).clamp(0.05, 1)


def _place(maps: AttentionMaps, token: int, size: tuple[int, int], share: float = 0.5) -> Tensor:  # [H, W] in 0..1
    """DiffSketcher's fused map, A = c A_cross + (1 - c) A_self, of one token.

    A_self is the cross map spread by self-attention (attention/probe.py): the part of self-attention that the word
    names. DiffSketcher takes the first singular vector of the self-attention, whose sign is arbitrary and which names
    no word; ours cannot have the wrong sign.
    """
    cross = localize(AttentionMaps(maps.cross[:, token : token + 1], None), size)
    if maps.refined is None:
        return cross[0, 0]
    refined = localize(AttentionMaps(maps.cross[:, token : token + 1], maps.refined[:, token : token + 1]), size)
    return average(cross, refined, share)[0, 0]


def _start(
    guide: Tensor, attention: Tensor, config: SketchConfig, generator: torch.Generator
) -> tuple[Shapes, Callable[[Page], None] | None]:
    """The first shapes, and what renews the dead ones."""
    height, width = guide.shape[-2:]
    where = torch.ones_like(attention) if config.background else attention
    if config.style == "icon":
        paper = guide.new_ones(3) if not config.background else _border_colour(guide)
        rings, colours = trace(guide, None if config.background else where, paper, config.strokes)
        topology = Topology((NONZERO,) * len(rings), tuple(((len(r) // 3, True),) for r in rings), (True,) * len(rings))
        points = torch.cat(rings) if rings else guide.new_zeros(0, 2)
        return Shapes(topology, points, guide.new_zeros(len(rings), 2), colours, paper), None
    drawn_lines = lines(guide)
    edges = torch.maximum(drawn_lines, 0.4 * xdog(guide))[0, 0]
    p = probabilities(where, edges)
    along = directions(guide)
    points = start_points(p, width, config.strokes, generator, apart=_reach(config, width))
    length = _length(config, width)
    first = first_strokes(points, along, (height, width), length, generator)
    stroke = config.width * width * (2.0 / 128 if config.strokes <= 96 else 1.4 / 128)
    widths = torch.full((config.strokes, 2), stroke)
    colours = _colours_at(guide, points, config)
    topology = Topology((STROKE,) * config.strokes, (((1, False),),) * config.strokes, (True,) * config.strokes)
    tend = partial(
        _renew, guide=guide, where=where, edges=drawn_lines[0, 0], along=along, config=config, generator=generator,
        stroke=stroke,
    )  # fmt: skip
    return Shapes(topology, first.flatten(0, 1), widths, colours, guide.new_ones(3)), tend


def _length(config: SketchConfig, width: int) -> float:
    """Pixels: fewer strokes are longer."""
    return width * min(0.30, max(0.06, 1.1 / config.strokes**0.6))


def _reach(config: SketchConfig, width: int) -> float:
    return 0.25 * _length(config, width)


def _colours_at(guide: Tensor, points: Tensor, config: SketchConfig) -> Tensor:  # [N, 4]
    if config.style == "ink":
        return torch.tensor([0.1, 0.1, 0.1, 0.9]).expand(len(points), -1).clone()
    column = points[:, 0].long().clamp(0, guide.shape[-1] - 1)
    row = points[:, 1].long().clamp(0, guide.shape[-2] - 1)
    rgb = guide[0][:, row, column].T
    return torch.cat([rgb, torch.full((len(points), 1), 0.8)], dim=1)


def _border_colour(guide: Tensor) -> Tensor:
    border = torch.cat([guide[0, :, 0], guide[0, :, -1], guide[0, :, :, 0], guide[0, :, :, -1]], dim=1)
    return border.median(1).values


def _renew(
    page: Page,
    guide: Tensor,
    where: Tensor,
    edges: Tensor,  # [H, W], the guide's lines
    along: Tensor,
    config: SketchConfig,
    generator: torch.Generator,
    stroke: float,
) -> None:
    """Strokes that hardly show are begun anew where the guide has ink and the page has not."""
    height, width = page.size
    shown = ink(page.drawing(), where[None])[1].cpu()
    dead = (shown < 0.15 * stroke * _length(config, width)) | (page.opacity.detach().cpu() < 0.05)
    rows = dead.nonzero()[:, 0]
    if not len(rows):
        return
    drawn = page.picture().cpu()
    missing = (drawn - guide).abs().amax(1, keepdim=True) if config.style != "ink" else drawn - guide
    missing = blur(missing.mean(1, keepdim=True).clamp(min=0), 1.0)[0, 0] * where * (0.1 + edges)
    p = probabilities(missing / missing.max().clamp(min=1e-6), None, share=0.02)
    points = start_points(p, width, len(rows), generator, apart=_reach(config, width))
    first = first_strokes(points, along, (height, width), _length(config, width), generator)
    page.replace_shapes(rows, first, torch.full((len(rows), 2), stroke), _colours_at(guide, points, config))


def _rates(config: SketchConfig) -> Rates:
    if config.style == "icon":
        return Rates(points=0.4, widths=0.0, colours=0.01, opacity=0.0, background=0.0)
    if config.style == "colour":
        return Rates(points=1.0, widths=0.05, colours=0.01, opacity=0.01)
    return Rates(points=1.0, widths=0.03, colours=0.0, opacity=0.01)


def _terms(
    prior: Prior,
    prompt: str,
    guide: Tensor,
    prompts: Prompts,
    config: SketchConfig,
    generator: torch.Generator,
    notes: list[str],
) -> dict[str, tuple[float, Term]]:
    """What pulls beside the distillation, with weights that add up to 1 - distillation."""
    if config.distillation >= 1:
        return {}
    terms = clip_terms(guide, prompt)
    if terms is None:
        terms = own_terms(prior, guide, prompts.target, generator)
        notes.append("CLIP is not on this machine, so the model itself judges how like the drawing is to its picture.")
    each = (1 - config.distillation) / len(terms)
    return {name: (each, term) for name, term in terms.items()}


def _tidy(
    drawn: Shapes, guide: Tensor, words: tuple[str, ...], places: Tensor, size: tuple[int, int]
) -> tuple[Shapes, tuple[str, ...]]:
    """Only shapes that matter, grouped by word: those that hardly show go, then those without which the page is as
    like the guide as with them, then doubles; strokes of one word come together where that changes nothing."""
    shown = ink(drawn.drawing(), places)  # [K + 1, N]
    rows = [row for row in range(len(drawn.topology)) if float(shown[-1, row]) >= 1.0]
    rows = that_matter(drawn, rows, rows[::-1], guide, 1.0)
    rows = _without_doubles(drawn, rows)
    names, group = [*words, "background"], {}
    for row in rows:
        inside = (shown[:-1, row] / shown[-1, row].clamp(min=1e-6)).tolist()
        best = max(range(len(inside)), key=inside.__getitem__) if inside else -1
        group[row] = names[best] if inside and inside[best] >= 0.25 else "background"
    order = ["background", *dict.fromkeys(words)]
    together = sorted(rows, key=lambda row: order.index(group[row]))
    kept, sorted_ = drawn.keep(rows), drawn.keep(together)
    difference = (kept.picture(size) - sorted_.picture(size)).square().mean()
    if difference > 1e-4:
        return kept, tuple(group[row] for row in rows)
    return sorted_, tuple(group[row] for row in together)


def that_matter(
    shapes: Shapes,
    rows: list[int],  # the shapes that are drawn
    doubtful: list[int],  # those of them that may go, in the order in which they are tried
    wanted: Tensor,  # [1, 3, H, W]
    sigma: float,  # pixels, of the blur through which pages are compared
    where: Tensor | float = 1.0,  # [1, 1, H, W], where they are compared
    worth: float = 0.0,  # summed squared difference that a shape must make good
) -> list[int]:
    """`rows` without the doubtful shapes whose absence leaves the blurred page no further from what is wanted; one
    shape always stays."""
    size, target = (wanted.shape[-2], wanted.shape[-1]), blur(wanted, sigma)

    def far(kept: list[int]) -> float:
        return float(((blur(shapes.keep(kept).picture(size), sigma) - target).square() * where).sum())

    now = far(rows)
    for row in doubtful:
        without = [each for each in rows if each != row]
        if without and (then := far(without)) <= now + worth:
            rows, now = without, then
    return rows


def _without_doubles(drawn: Shapes, rows: list[int]) -> list[int]:
    """Strokes of one curve that lie on each other (mean distance of control points under 0.7 pixels) are one."""
    if any(drawn.topology.kinds[row] != STROKE or drawn.topology.contours[row] != ((1, False),) for row in rows):
        return rows
    points = drawn.points.view(-1, 4, 2)
    kept: list[int] = []
    for row in rows:
        others = points[kept]
        near = torch.minimum(
            (others - points[row]).norm(dim=-1).mean(-1), (others - points[row].flip(0)).norm(dim=-1).mean(-1)
        )
        if not len(kept) or near.min() > 0.7:
            kept.append(row)
    return kept
