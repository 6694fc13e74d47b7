"""Edit a scene of Gaussian splats with words.

GSEditPro, arXiv:2411.10033, on this project's loop: attention on rendered views says which Gaussians (locate), score
distillation on rendered views says how they change, and pictures of the edit, made by sampling inside the rendered
place (pseudo ground truth), say it again sharply. Gaussians outside the place are never parameters: they come back bit
for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.attention.words import changed_words, clause, find_words, one_clause, removed_words
from sdsedit.camera import Cameras, frame
from sdsedit.edit import StepReport, distill
from sdsedit.errors import InputRefused
from sdsedit.guidance import configured
from sdsedit.guidance.base import Guidance, Prompts
from sdsedit.guidance.lusd import LUSD
from sdsedit.guidance.refine import Refine
from sdsedit.io.splats import Splats
from sdsedit.metrics import psnr
from sdsedit.prior.base import Prior, Text
from sdsedit.representations.splats import Anchor, Rates, Scene, SceneViews, held_out, pictures, with_colour
from sdsedit.request import (
    Edit,
    EditConfig,
    check_number,
    check_references,
    check_request,
    check_whole,
    encode_prompts,
    words_to_find,
)
from sdsedit.splats import densify
from sdsedit.splats.imagine import imagine, repainted
from sdsedit.splats.locate import (
    SEEN,
    THRESHOLD,
    VIEWS_AT_ONCE,
    Place,
    attention,
    bounds,
    closer,
    lifted,
    locate,
    sharpen,
)
from sdsedit.splats.seed import (
    asked,
    facing,
    fill,
    hull,
    largest,
    orphans,
    project,
    reached,
    seeds,
    shell,
    told,
    whole,
)
from sdsedit.splats.style import SceneStyle
from sdsedit.splats.survey import check_cameras, spread

Kind = Literal["recolour", "restyle", "replace", "add", "delete"]
KINDS: tuple[Kind, ...] = ("recolour", "restyle", "replace", "add", "delete")


@dataclass(frozen=True)
class SplatConfig:
    """How to change a scene."""

    kind: Kind | None = None  # None: told from the words
    method: str | Guidance = "lusd"
    steps: int | None = None  # of distillation; None: what suits the kind
    seed: int = 0
    strength: float = 1.0  # 0.1 .. 10, multiplies the method's step size
    views: int = 16  # of the automatic orbit, 4 .. 256; every fourth is only measured with
    threshold: float = THRESHOLD  # of a weight, 0 .. 1: which Gaussians are in the edit
    distillation: float = 0.1  # share of the picture's gradient; the edited views have the rest
    added: int = 6000  # new Gaussians for what is added, at most
    background: tuple[float, float, float] = (0.62, 0.79, 0.95)  # behind the scene, 0 .. 1; unlike what is in it
    up: tuple[float, float, float] = (0.0, -1.0, 0.0)  # of the world
    size: int | None = None  # side of a view in pixels; None: the model's native side
    style_weight: float = 1.0  # 0 .. 10, of the references' look, as a multiple of what pulls beside it


@dataclass(frozen=True)
class Progress:
    """One finished piece of work, as `on_step` sees it."""

    stage: str  # "looking", "found", "imagining", "changing"
    index: int  # 0 .. total - 1, over all stages
    total: int
    stats: dict[str, Tensor]
    weight: Tensor | None  # [N] in 0..1, of the source's rows: where the words are; None before the first look ends
    draw: Callable[[], Tensor] = field(repr=False)

    def preview(self) -> Tensor:
        """A view of the scene as it is now, [1, 3, H, W] in 0..1."""
        return self.draw()


OnStep = Callable[[Progress], "bool | None"]


@dataclass(frozen=True, eq=False)
class SplatResult:
    """An edited scene and what is known about it."""

    splats: Splats  # rows of the source in their order, without what was deleted; new ones at the end
    weight: np.ndarray  # [N] float32 in 0..1, of the source's rows: where the words were found
    parent: np.ndarray  # [M] int64, the row of the source that each row is, or came from; -1: new
    kind: Kind
    kept: int  # rows that are the source's, bit for bit
    changed: int
    added: int
    removed: int
    max_change_outside: float  # over all columns of the kept rows, compared with the source
    background_psnr: float  # dB, of held-out views outside the edit; inf if nothing differs
    cameras: Cameras  # of the views that were looked at
    measured: tuple[int, ...]  # numbers of the held-out ones
    words: tuple[str, ...]
    notes: tuple[str, ...]
    steps_done: int
    stopped: str
    method: Guidance
    history: tuple[dict[str, float], ...]
    seconds: dict[str, float]  # "renderer", "model", "rest", "all"


_FREE = Anchor()


@dataclass(frozen=True)
class _Recipe:
    """What suits a kind of edit."""

    steps: int
    rates: Rates
    starts: tuple[float, ...] = ()  # t from which each view is drawn: at first, and each time that it is renewed
    together: float | None = None  # t from which all views are drawn at once, by one scene; None: they are not
    grows: bool = False  # new Gaussians
    anchor: Anchor = _FREE


_FINDER = LUSD()  # a scene's place is found before the method begins, so that of any method
_BETWEEN = 2  # steps towards the edited views for each one of distillation
_TOO_SMALL = 0.002  # share of a view: what is smaller there is not edited in it
_CLEAR = -3.0  # logit of the opacity below which a Gaussian is dropped
_BEST = 4.0  # how much more a view of a look is believed that sees a Gaussian better
_DRAWING_STEPS = 16  # in which all views together are drawn
_SHAPE = Rates(means=0.003, quats=0.004, log_scales=0.01, logits=0.08, sh=0.04)
_COLOUR = Rates(means=0, quats=0, log_scales=0, logits=0, sh=0.06)
_RECIPES: dict[str, _Recipe] = {
    "recolour": _Recipe(60, _COLOUR, together=0.98),
    "restyle": _Recipe(
        80,
        Rates(means=0.001, quats=0.002, log_scales=0.004, logits=0, sh=0.04),
        together=0.98,
        anchor=Anchor(shape=0.3),
    ),
    # What replaces a thing is as wide as that was; each view's own drawing of it differs too much.
    "replace": _Recipe(60, replace(_SHAPE, means=0.001, logits=0.04), (0.98,), together=0.75, grows=True),
    # A crown's spikes would be averaged away by that; the views come closer to each other each time they are renewed.
    "add": _Recipe(180, _SHAPE, (0.98, 0.6, 0.5, 0.4), grows=True),
    "delete": _Recipe(0, _COLOUR),
}


def change(
    splats: Splats,
    prior: Prior,
    request: Edit,
    config: SplatConfig | None = None,
    cameras: Cameras | None = None,
    on_step: OnStep | None = None,
) -> SplatResult:
    """Edit a scene with words. Without cameras an orbit frames it. One seed is one result.

    on_step is called after every piece of work and stops the run by returning False; the result then holds what there
    is so far. Raises InputRefused with one sentence where something cannot be used.
    """
    started = time.perf_counter()
    config = config or SplatConfig()
    check(request, config)
    method = configured(config.method, config.strength, prior.editing)
    notes: list[str] = []
    check_references(request.references, prior)
    words, where = words_to_find(prior, request, _FINDER, notes)
    kind = config.kind or kind_of(prior, request)
    styled = bool(request.references) and config.style_weight > 0
    if not words.tokens and not (styled and kind == "restyle"):
        raise InputRefused("The prompts name nothing to look for in the scene; say what should change, or --words.")
    prompts = encode_prompts(prior, request, words.tokens, where, notes)
    if styled and kind == "delete":
        notes.append("What is taken out has no look: the references are not used.")
    if kind == "delete" and where != "source" and not request.words:
        raise InputRefused("Nothing can be deleted: the target prompt has no word less than the source prompt.")
    if cameras is not None:
        check_cameras(splats, cameras)
        cameras = spread(cameras, config.views)
    scene = Scene.of(splats, prior.device)
    cameras = views_of(scene, cameras, prior, config)
    work = _Work(scene, prior, request, prompts, method, config, kind, cameras, on_step, notes)
    work.look()
    if not work.stopped:
        work.prepare()
    if not work.stopped:
        work.run()
    return work.result(splats, words.text, started)


def check(request: Edit, config: SplatConfig) -> None:
    """Refuse, with one sentence (InputRefused), what no scene could make right."""
    check_request(
        request,
        EditConfig(
            config.method, config.steps, config.seed, strength=config.strength, style_weight=config.style_weight
        ),
    )
    if request.mask is not None:
        raise InputRefused("A scene takes no mask picture; name the words to look for.")
    if config.kind is not None and config.kind not in KINDS:
        raise InputRefused(f"kind is {config.kind!r}; it must be one of {', '.join(KINDS)}.")
    check_whole("views", config.views, 4, 256)
    check_number("threshold", config.threshold, 0.05, 0.95)
    check_number("distillation", config.distillation, 0, 1)
    check_whole("added", config.added, 1, 200_000)
    for value in config.background:
        check_number("background", value, 0, 1)
    for value in config.up:
        check_number("up", value, -1, 1)
    if not any(config.up):
        raise InputRefused("up is 0, 0, 0; it must be a direction.")


def kind_of(prior: Prior, request: Edit) -> Kind:
    """What an edit is, from its words: only taken out - delete; only put in - add; before a word that stayed -
    recolour; in the place of others - replace; the same - restyle."""
    source, target = request.source or "", request.target
    new, old = changed_words(prior.tokenize, source, target), removed_words(prior.tokenize, source, target)
    if not new.tokens:
        return "delete" if old.tokens else "restyle"
    if _stayed(prior, source, new.text):
        return "recolour"
    return "replace" if old.tokens and source.strip() else "add"


def _stayed(prior: Prior, source: str, words: Sequence[str]) -> tuple[str, ...]:
    """Those of the words that the source prompt has too."""
    found = []
    for word in words:
        try:
            find_words(prior.tokenize, source, [word])
        except ValueError:
            continue
        found.append(word)
    return tuple(found)


def _about(prior: Prior, request: Edit, kind: Kind) -> Edit:
    """The request for a view that shows the edit's place and little else: both prompts cut down to what they say of it.

    A model that is told of three things draws three things, wherever it is allowed to.
    """
    source, target = request.source or "", request.target
    new, old = changed_words(prior.tokenize, source, target), removed_words(prior.tokenize, source, target)
    if kind == "delete" or not new.spans or not source.strip():
        return replace(request, words=None)
    there = list(old.spans)
    for word in (*_stayed(prior, source, new.text), *([host] if (host := _host_word(prior, request)) else [])):
        there += find_words(prior.tokenize, source, [word]).spans
    return replace(request, target=clause(target, new.spans), source=clause(source, there), words=None)


def words_about(prior: Prior, request: Edit) -> tuple[tuple[int, ...], Literal["target", "source"]]:
    words, where = words_to_find(prior, request, _FINDER, [])
    return words.tokens, where


def _host_word(prior: Prior, request: Edit) -> str | None:
    """The word that the new words belong to: the last one before them, in their clause, that stayed; `apple` in `an
    apple wearing a crown`."""
    source, target = request.source or "", request.target
    new = changed_words(prior.tokenize, source, target)
    if not new.spans:
        return None
    start = new.spans[0][0]
    before = changed_words(prior.tokenize, None, target[:start])
    for word, (_, end) in zip(reversed(before.text), reversed(before.spans), strict=True):
        if not one_clause(target[end:start]):
            return None
        if _stayed(prior, source, [word]):
            return word
    return None


def views_of(scene: Scene, cameras: Cameras | None, prior: Prior, config: SplatConfig) -> Cameras:
    """The cameras to work with, at the working size."""
    side = config.size or prior.native
    if cameras is None:
        return frame(scene.means, scene.logits.sigmoid(), side, side, config.views, up=config.up).to(prior.device)
    scale = side / (cameras.width * cameras.height) ** 0.5
    width, height = (
        max(round(n * scale / prior.multiple), 1) * prior.multiple for n in (cameras.width, cameras.height)
    )
    return cameras.resized(width, height).to(prior.device)


class _Work:
    """One edit under way: what each stage leaves for the next."""

    kind: Kind

    def __init__(
        self,
        scene: Scene,
        prior: Prior,
        request: Edit,
        prompts: Prompts,
        method: Guidance,
        config: SplatConfig,
        kind: Kind,
        cameras: Cameras,
        on_step: OnStep | None,
        notes: list[str],
    ) -> None:
        self.scene, self.prior, self.prompts, self.method = scene, prior, prompts, method
        self.request = request
        self.config, self.kind, self.cameras, self.on_step, self.notes = config, kind, cameras, on_step, notes
        self.recipe = _RECIPES[kind]
        self.steps = 0 if kind == "delete" else config.steps or self.recipe.steps
        self.generator = torch.Generator().manual_seed(config.seed)
        self.background = torch.tensor(config.background, dtype=torch.float32, device=prior.device)
        self.style: SceneStyle | None = None  # the references'
        if request.references and config.style_weight > 0 and self.steps:
            self.style = SceneStyle.of(
                prior, request.references, prompts.empty, config.style_weight, kind == "restyle", config.size
            )
        self.about = _about(prior, request, kind)
        self.near_prompts = encode_prompts(prior, self.about, *words_about(prior, self.about), [])
        working, self.measured = held_out(cameras)
        self.working = cameras[list(working)]
        self.done = 0
        drawing = (len(self.working) if self.recipe.grows else 0) + (_DRAWING_STEPS if self.recipe.together else 0)
        self.total = 2 * -(-len(self.working) // VIEWS_AT_ONCE) + 1 + (drawing + self.steps if self.steps else 0)
        self.stopped = ""
        self.views: SceneViews | None = None
        self.place: Place | None = None
        self.history: tuple[dict[str, float], ...] = ()
        self.steps_done = 0
        self.model_seconds = 0.0
        self.other_seconds = 0.0

    # --- looking ---

    def look(self) -> None:
        prior, prompts, request = self.prior, self.prompts, self.request
        text = prompts.target if prompts.mask_from == "target" else prompts.source
        tokens = prompts.tokens
        source = request.source or ""
        if self.kind == "recolour" and not request.words:  # the thing is there under its name, not yet in its colour
            stayed = _stayed(prior, source, changed_words(prior.tokenize, source, request.target).text)
            if stayed:
                text, tokens = prompts.source, find_words(prior.tokenize, source, stayed).tokens
        with torch.no_grad():
            place = self._locate(text, tokens) if tokens else self._everywhere()
            if self.kind == "replace" and not request.words and not self.stopped:
                old = removed_words(prior.tokenize, source, request.target)
                if old.tokens:  # what goes is there to be seen, what comes is not
                    other = self._locate(prompts.source, old.tokens)
                    place = other if other.chosen(self.config.threshold).any() else place
            self.host = None
            if self.kind in ("add", "replace") and not request.words and not self.stopped:
                self.host = self._host()
                if self.kind == "add" and self.host is not None and not self.stopped:
                    place = _near(self.scene, place, self.host, self.config.threshold)
        self.place = place
        if self.stopped:
            return
        self.done += 1
        self._report("found", {}, lambda: pictures(self.scene, self.working[0], self.background))
        if self.stopped:
            return
        if place.everywhere(self.config.threshold):
            if self.kind == "delete":
                raise InputRefused(
                    "The words were found everywhere, so nothing would be left; name others with --words, or raise "
                    "--threshold."
                )
            if tokens:
                self.notes.append("The words were found everywhere, so the whole scene may change.")
        if not place.chosen(self.config.threshold).any():
            raise InputRefused(
                "The model's attention found none of these words in the scene; name others with --words."
            )

    def _everywhere(self) -> Place:
        """The place of a style for which no word says where: all that is seen."""
        views = pictures(self.scene, self.working, self.background)
        maps = torch.ones_like(views[:, :1])
        _, confidence = lifted(self.scene, self.working, maps)
        confidence = torch.where(confidence > SEEN, confidence, 0.0)
        self.done = -(-len(self.working) // VIEWS_AT_ONCE) * 2
        self.place = Place((confidence > 0).to(views), confidence, self.working, views, maps)
        return self.place

    def _host(self) -> Place | None:
        """Where the thing is that the new words belong to. Attention alone would crown all that can wear a crown."""
        word = _host_word(self.prior, self.request)
        if word is None:
            return None
        tokens = find_words(self.prior.tokenize, self.request.source or "", [word]).tokens
        place = self._locate(self.prompts.source, tokens)
        return place if place.chosen(self.config.threshold).any() else None

    def _locate(self, text: Text, tokens: Sequence[int]) -> Place:
        def on_view(done: int, total: int) -> bool | None:
            self.done += 1
            return self._report("looking", {}, lambda: pictures(self.scene, self.working[0], self.background))

        began = time.perf_counter()
        place = locate(
            self.scene, self.working, self.background, self.prior, text, tokens, self.generator, up=self.config.up,
            on_view=on_view,
        )  # fmt: skip
        self.model_seconds += time.perf_counter() - began
        self.done = -(-len(self.working) // VIEWS_AT_ONCE) * 2  # the second look may have been left out
        self.place = place
        return place

    def _report(self, stage: str, stats: dict[str, Tensor], draw: Callable[[], Tensor]) -> bool | None:
        if self.on_step is None:
            return None
        weight = None if self.place is None else self.place.weight
        answer = self.on_step(Progress(stage, min(self.done, self.total) - 1, self.total, stats, weight, draw))
        if answer is False and self.done < self.total:
            self.stopped = "cancelled"
        return answer

    # --- preparing ---

    @torch.no_grad()
    def prepare(self) -> None:
        """Which rows go, which move, from where they are looked at, what each view should become, and what is new."""
        scene, config, kind = self.scene, self.config, self.kind
        assert self.place is not None
        chosen = self.place.chosen(config.threshold)
        if kind != "add":
            chosen = whole(scene, chosen)
        goes = kind in ("delete", "replace")
        if goes:  # and goes whole, its rim and its straw too
            chosen = whole(scene, reached(scene, self.place.weight, config.threshold, 0.45 * config.threshold))
            chosen = chosen | orphans(scene, chosen, config.up)
        none = torch.zeros_like(chosen)
        self.removed = chosen if goes else none
        moving, still, lit = none if kind == "add" else chosen, scene[:0], scene.sh[:0]
        if goes:  # what was under it is said by its neighbours, and stands still from now on
            rest = (~chosen).nonzero()[:, 0]
            still, shaded, lit, debris = fill(scene[rest], scene[chosen], self.generator, config.up)
            moving = none.clone()
            moving[rest[shaded]] = True
            self.removed = self.removed.index_fill(0, rest[debris], True)
        self.kept_rows = ~moving & ~self.removed
        own = Scene.cat(replace(scene[moving], sh=lit) if goes else scene[moving], still)
        weight = torch.zeros_like(own.logits) if goes else self.place.weight[moving].clamp(min=0.25)
        parent = torch.full_like(own.logits, -1, dtype=torch.long)
        parent[: int(moving.sum())] = moving.nonzero()[:, 0]

        self.near, self.radius = self._closer(chosen)
        self.before = pictures(scene, self.near, self.background)
        plate = Scene.cat(scene[self.kept_rows], own)
        self.plates = pictures(plate, self.near, self.background)
        self.masks = self._masks(moving | self.removed)
        self.views = SceneViews(
            scene[self.kept_rows],
            own,
            weight,
            parent,
            self.near,
            self.before,
            self.background,
            self.prior,
            self.steps,
            self.recipe.rates,
            self.radius,
            self.generator,
            distillation=config.distillation,
            terms={"edited views": (1 - config.distillation, self._likeness)},
            anchor=self.recipe.anchor,
            masks=self.masks,
            between=_BETWEEN if config.distillation < 1 else 0,
            style=None if self.style is None else (self.style.weight, self.style.term(self.masks)),
            tend=self._tend,
        )
        if not self.steps:
            return
        self.wanted, self.shown = self.before.clone(), torch.zeros_like(self.masks)
        self.features: dict[int, tuple[Tensor, ...]] = {}
        if not self.recipe.grows:
            self._imagine_together(scene[self.kept_rows], own)
            return
        for view in range(len(self.near)):
            self._imagine(view, self.recipe.starts[0])
            self.done += 1
            if self._report("imagining", {}, lambda view=view: self.wanted[view : view + 1]) is False:
                return
        new = self._sow(plate)
        if self.recipe.together:
            new = self._imagine_together(plate, new)
        if not self.stopped:
            self._add(new)

    def _closer(self, chosen: Tensor) -> tuple[Cameras, float]:
        """Cameras on what changes and on what it belongs to, as pictures of such things are taken; its radius."""
        shown = chosen if self.host is None else chosen | self.host.chosen(self.config.threshold)
        centre, radius = bounds(self.scene.means, shown.float())
        if self.kind == "add":  # what comes stands out
            centre = centre + 0.25 * radius * torch.tensor(self.config.up).to(centre)
            radius *= 1.25 if self.host is not None else 2.0
        # What is to stay a balloon must look like one, with air round it; a look needs as many cells as there are.
        fill = 0.8 if self.recipe.grows or self.style is not None else 0.5
        return closer(self.working, centre, radius, fill=fill, up=self.config.up), radius

    def _masks(self, rows: Tensor) -> Tensor:  # [N] bool -> [V, 1, H, W], 0 or 1
        """Where each view may change: what the rows cover, somewhat wider, for a new shape is not the old one. For what
        is added, what the carved attention covers."""
        shown, mine = self.scene, rows.float()[:, None]
        if self.kind == "add":
            place = self.place
            assert place is not None
            centre, radius = bounds(shown.means, torch.where(place.chosen(self.config.threshold), place.weight, 0.0))
            points, cell = hull(place.maps, place.cameras, self._depth(shown, place.cameras), centre, 2.0 * radius)
            if not len(points):
                raise InputRefused(
                    "The views do not agree on a place for what should be added; say where it goes in the prompt."
                )
            hint = seeds(points, cell, self.config.added, shown.sh.shape[1], self.generator, opacity=0.9)
            shown = Scene.cat(shown, hint)
            mine = torch.zeros_like(shown.logits)[:, None]
            mine[len(self.scene) :] = 1
        cover = torch.cat([shown.paint(mine, self.near[k]) for k in range(len(self.near))]).permute(0, 3, 1, 2)
        reach = self.prior.factor * (3 if self.recipe.grows else 1)
        masks = F.max_pool2d((cover > 0.3).float(), 2 * reach + 1, stride=1, padding=reach)
        if self.recipe.grows:  # what stands before it stays before it
            _, z = project(shown.means[mine[:, 0] > 0], self.near)
            first, last = z.quantile(0.02, dim=1), z.quantile(0.98, dim=1)
            stands = self._depth(self.scene if self.kind == "add" else self.scene[~rows], self.near)
            masks = masks * (stands >= (first - 0.25 * (last - first))[:, None, None]).float()[:, None]
        return masks

    def _depth(self, scene: Scene, cameras: Cameras) -> Tensor:  # [V, H, W], inf where nothing stands
        drawn = [scene.render(cameras[k], self.background) for k in range(len(cameras))]
        return torch.cat([torch.where(d.alpha > 0.5, d.depth / d.alpha.clamp(min=1e-6), torch.inf) for d in drawn])

    def _sow(self, plate: Scene) -> Scene:
        """Gaussians on the surface of what the edited views agree on, each in the colour that the view in front of it
        gives it."""
        centre, radius = bounds(self.scene.means, self.place_rows())
        stands = self._depth(plate, self.near)
        agree = 0.75 if self.kind == "add" else 0.8
        points, cell = hull(self.shown, self.near, stands, centre, 2.0 * radius, level=0.5, agree=agree)
        if len(points):  # finer, now that it is known where and how large
            points = largest(points, cell)
            low, high = points.min(0).values, points.max(0).values
            box = 0.55 * float((high - low).amax()) + cell
            points, cell = hull(self.shown, self.near, stands, (low + high) / 2, box, level=0.5, agree=agree)
        if not len(points):
            raise InputRefused(
                "The edited views do not agree on what should come; try another seed, or say more about it."
            )
        points = largest(points, cell)
        view = facing(points, self.shown, self.near, stands, self.config.up)
        carved = points[told(self.shown, points, self.near, view)[:, 0] >= 0.5]
        points = shell(largest(carved, cell) if len(carved) else points, cell)
        count = min(self.config.added, len(points))
        new = seeds(points, cell, count, self.scene.sh.shape[1], self.generator, opacity=0.95)
        view = facing(new.means, self.shown, self.near, stands, self.config.up)
        return with_colour(new, told(self.wanted, new.means, self.near, view))

    def _add(self, new: Scene) -> None:
        """New rows, which the edit owns from now on."""
        views = self.views
        assert views is not None
        parameters = {name: torch.cat([p.detach(), getattr(new, name)]) for name, p in views.own.items()}
        moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in parameters.items()}
        labels = {f"{name} 0": p.clone() for name, p in parameters.items()}
        labels["weight"] = torch.cat([views.labels["weight"], torch.ones_like(new.logits)])
        fresh = torch.full_like(new.logits, -1, dtype=torch.long)
        labels["parent"] = torch.cat([views.labels["parent"], fresh])
        views.replace_rows(parameters, moments, labels)

    def place_rows(self) -> Tensor:  # [N], the rows round which new ones are sown
        assert self.place is not None
        chosen = self.removed if self.kind == "replace" else self.place.chosen(self.config.threshold)
        return chosen.float()

    def _imagine(self, view: int, start: float) -> None:
        """What a view should become: its place drawn anew under the target prompt, the rest as it was."""
        assert self.views is not None
        begun = time.perf_counter()
        was, plate = self.before[view : view + 1], self.plates[view : view + 1]
        mask = (self.masks[view : view + 1] > 0.3).float()
        if mask.mean() < _TOO_SMALL:  # hidden, in this view
            edited, mask = plate, torch.zeros_like(mask)
        else:
            # The same noise draws the same crown in every view. In a wide place each view has its own: a thing drawn
            # left of the middle would be left of it from everywhere.
            own = view if self.kind == "replace" else 0
            generator = torch.Generator().manual_seed(self.config.seed + own)
            refine = Refine(**{**self.prior.editing.get("refine", {}), "start": start})
            first = not self.views.taken  # from what stands there now, not from the hole: something is to stand there
            z = self.prior.encode(was if first else self.views.picture(view))
            z_src = self.prior.encode(was if first else plate)
            cells = F.adaptive_avg_pool2d(mask, (z.shape[-2], z.shape[-1]))
            draw = partial(self.prior.schedule.draw, z, generator, 0.0, 1.0)
            for _, made in refine(self.prior, z, z_src, cells, self.near_prompts, draw):
                z = made
            edited = self.prior.decode(z)
            mask = mask * self._shows(edited) * self._differs(edited, self.plates[view : view + 1])
        self.shown[view] = mask[0]
        soft = F.avg_pool2d(mask, 5, stride=1, padding=2, count_include_pad=False) * mask
        self.wanted[view] = torch.lerp(plate, edited, soft)[0]
        self.features[view] = self.prior.encoder_features(self.wanted[view : view + 1])
        self.model_seconds += time.perf_counter() - begun

    def _imagine_together(self, kept: Scene, new: Scene) -> Scene:
        """What the views should become, drawn at once by one scene: the colours of `new` in it follow."""
        views, first, start = self.views, new, self.recipe.together
        assert views is not None and start is not None
        begun = time.perf_counter()
        before = pictures(Scene.cat(kept, new), self.near, self.background)
        outside, masks = self.before, (self.masks > 0.3).float()
        if self.recipe.grows:
            ones = torch.zeros(len(kept) + len(new), 1).to(new.means)
            ones[len(kept) :] = 1
            both = Scene.cat(kept, new)
            cover = torch.cat([both.paint(ones, self.near[k]) for k in range(len(self.near))]).permute(0, 3, 1, 2)
            outside, masks = self.plates, F.max_pool2d((cover > 0.3).float(), 5, stride=1, padding=2)
        where, looks = masks, [0.6, 0.35, 0.1]

        def agree(drawn: Tensor, t: float) -> Tensor:
            nonlocal new, where
            if looks and t <= looks[0]:  # a sky of its own that is drawn round a thing is no colour of the thing
                looks.pop(0)
                air = (drawn - self.background.view(1, 3, 1, 1)).abs().amax(1, keepdim=True)
                where = masks * torch.cat([self._shows(x[None]) for x in drawn]) * (air / 0.2).clamp(0, 1)
                new = first
            best = 0.0 if self.style is None else _BEST
            new, shown = repainted(kept, new, drawn, where, self.near, self.background, best=best)
            return shown

        def on_step(step: int, shown: Tensor) -> bool | None:
            self.wanted = shown
            self.done += 1
            view = step % len(shown)
            return self._report("imagining", {}, lambda: shown[view : view + 1])

        imagine(
            self.prior, self.near_prompts, before, outside, masks, agree,
            torch.Generator().manual_seed(self.config.seed), start, _DRAWING_STEPS, on_step=on_step,
            steer=None if self.style is None else self.style.pull,
        )  # fmt: skip
        self.shown = where
        if not self.recipe.grows and not self.stopped:  # what was half drawn is noise
            views.own["sh"] = new.sh.clone().requires_grad_()
        self.features = {k: self.prior.encoder_features(x[None]) for k, x in enumerate(self.wanted)}
        self.model_seconds += time.perf_counter() - begun
        return new

    def _differs(self, edited: Tensor, plate: Tensor) -> Tensor:  # [1, 3, H, W] -> [1, 1, H, W] in 0..1
        """Where an edited view shows neither what stands there without the edit nor the air around it."""
        air = self.background.view(1, 3, 1, 1)
        return torch.minimum((edited - plate).abs().amax(1), (edited - air).abs().amax(1))[:, None].div(0.3).clamp(0, 1)

    def _shows(self, edited: Tensor) -> Tensor:  # [1, 3, H, W] -> [1, 1, H, W] in 0..1
        """Where the new words are in an edited view: what else was drawn there, a sky of its own, say, is not taken."""
        prompts = self.near_prompts
        if not prompts.tokens or prompts.mask_from != "target":
            return torch.ones_like(edited[:, :1])
        generator = torch.Generator().manual_seed(self.config.seed)
        maps = attention(self.prior, edited, prompts.target, prompts.tokens, generator, (0.3, 0.5))
        return ((sharpen(maps, edited) - 0.15) / 0.3).clamp(0, 1)

    # --- changing ---

    def _likeness(self, seen: Tensor, view: int) -> Tensor:
        """L1 and the encoder's features, as LPIPS compares them; and where the edited view shows the background,
        nothing should stand: |alpha - min(1, |wanted - background| / 0.15)|, lest what goes be painted over."""
        wanted, image, alpha = self.wanted[view : view + 1], seen[:, :3], seen[:, 3:]
        loss = (image - wanted).abs().mean() / 0.1
        if self.recipe.rates.logits > 0:
            away = (wanted - self.background.view(1, 3, 1, 1)).abs().amax(1, keepdim=True)
            mask = self.masks[view : view + 1] > 0.3
            loss = loss + ((alpha - (away / 0.15).clamp(max=1)).abs() * mask).mean() / 0.05
        found = self.prior.encoder_features(image)
        for f, w in zip(found, self.features[view], strict=True):
            loss = loss + (F.normalize(f, dim=1) - F.normalize(w, dim=1)).square().sum(1).mean() / len(found)
        return loss

    @torch.no_grad()
    def _tend(self, views: SceneViews) -> None:
        """Renew an edited view now and then; grow and prune."""
        later = self.recipe.starts[1:]
        step = views.index + 1
        if later and not self.stopped:
            every = max(1, int(0.8 * self.steps) // (len(later) * len(self.near)))
            turn, rest = divmod(step, every)
            if rest == 0 and turn <= len(later) * len(self.near):
                self._imagine((turn - 1) % len(self.near), later[(turn - 1) // len(self.near)])
        if self.recipe.grows and not self.stopped and self.steps >= 30:
            if step in (self.steps // 3, 2 * self.steps // 3):
                self._look_again(views, step / self.steps)
            if step % max(10, self.steps // 5) == 0 and step <= 0.75 * self.steps:
                self._grow(views)

    def _look_again(self, views: SceneViews, progress: float) -> None:
        """Lift the attention of the edit as it is now: early on the place that was found in the scene is trusted, later
        what the views show.

            w <- (1 - p) w + p w_now        p: share of the run that is done; so too the views' masks
        """
        began = time.perf_counter()
        prompts = self.near_prompts
        if prompts.mask_from != "target" or not prompts.tokens:
            return
        now = pictures(views.whole(), self.near, self.background)
        maps = attention(self.prior, now, prompts.target, prompts.tokens, self.generator)
        maps = sharpen(maps, now)
        numerator, denominator = lifted(views.whole(), self.near, maps)
        own = slice(len(views.kept), None)
        seen = denominator[own] > SEEN
        weight = (numerator[own] / denominator[own].clamp(min=1e-6)).clamp(0.25, 1)
        old = views.labels["weight"]
        views.labels["weight"] = torch.where(seen, torch.lerp(old, weight, progress), old)
        self.masks.copy_(torch.lerp(self.masks, torch.maximum(self.masks * 0.25, maps * self.masks), progress))
        self.model_seconds += time.perf_counter() - began

    def _grow(self, views: SceneViews) -> None:
        rows = densify.Rows(dict(views.own), dict(views.moments), dict(views.labels))
        push = views.push
        threshold = float(push.quantile(0.97)) if len(push) else 0.0
        scales = views.own["log_scales"].exp().amax(1)
        rows = densify.densify(rows, push, threshold, float(scales.median()), self.generator)
        clear = rows.parameters["logits"] < _CLEAR
        huge = rows.parameters["log_scales"].amax(1) > torch.log(torch.tensor(0.35 * self.radius).to(push))
        rows = densify.prune(rows, clear | huge)
        views.replace_rows(rows.parameters, rows.moments, rows.labels)

    def run(self) -> None:
        if self.stopped or not self.steps:
            return
        assert self.views is not None
        views = self.views

        def on_step(report: StepReport) -> bool | None:
            self.done = self.total - self.steps + report.index + 1
            return self._report("changing", report.stats, lambda: views.picture(0))

        began = time.perf_counter()
        inside = self.model_seconds
        run = distill(views, self.prior, self.near_prompts, self.method, self.steps, self.config.seed, on_step)
        self.history, self.steps_done = run.history, run.steps_done
        self.stopped = run.stopped
        inside = self.model_seconds - inside
        spent = time.perf_counter() - began
        self.model_seconds += spent - inside - views.rendering_seconds - views.moving_seconds

    # --- the end ---

    @torch.no_grad()
    def result(self, source: Splats, words: tuple[str, ...], started: float) -> SplatResult:
        if self.views is None:  # cancelled before anything could change
            count = len(self.scene)
            weight = torch.zeros(count) if self.place is None else self.place.weight.cpu()
            self.notes.append("The edit was stopped before it changed anything.")
            seconds = time.perf_counter() - started
            return SplatResult(
                source, weight.numpy(), np.arange(count), self.kind, count, 0, 0, 0, 0.0, math.inf, self.cameras,
                tuple(self.measured), words, tuple(self.notes), 0, self.stopped, self.method, (),
                {"renderer": 0.0, "model": self.model_seconds, "rest": seconds - self.model_seconds, "all": seconds},
            )  # fmt: skip
        views = self.views
        assert self.place is not None
        own, parent = views.rows(), views.labels["parent"]
        alive = own.logits > (_CLEAR if self.recipe.grows else -torch.inf)
        if self.recipe.grows and self.steps_done:  # what few of the edited views show is fog
            fresh = (parent < 0) & (views.labels["weight"] > 0)
            kept_now = Scene.cat(self.scene[self.kept_rows], own[~fresh])
            wide = F.max_pool2d(self.shown, 5, stride=1, padding=2)
            alive &= ~fresh | (asked(own.means, wide, self.near, self._depth(kept_now, self.near), 0.3) >= 0.5)
        own, parent = own[alive], parent[alive]
        order = torch.cat([self.kept_rows.nonzero()[:, 0], parent]).cpu()
        edited_scene = Scene.cat(self.scene[self.kept_rows], own)
        # The first child of a row stands in its place; others come at the end.
        first = torch.zeros(len(order), dtype=torch.bool)
        seen: set[int] = set()
        for k, row in enumerate(order.tolist()):
            first[k] = row >= 0 and row not in seen
            seen.add(row)
        key = torch.where(first, order, len(self.scene) + torch.arange(len(order)))
        sort = key.argsort(stable=True)
        edited_scene, order, first = edited_scene[sort.to(edited_scene.means.device)], order[sort], first[sort]
        extra = {name: _inherited(column, order.numpy()) for name, column in source.extra.items()}
        edited = replace(edited_scene.splats(extra, source.comments), order=source.order)
        same = np.ones(len(order), dtype=bool)
        outside = 0.0
        kept_rows = self.kept_rows.cpu().numpy()
        for name in ("means", "quats", "log_scales", "logits", "sh"):
            now, was = getattr(edited, name), getattr(source, name)[np.maximum(order.numpy(), 0)]
            same &= (now == was).reshape(len(now), -1).all(1)
            still = first.numpy() & kept_rows[np.maximum(order.numpy(), 0)] & (order.numpy() >= 0)
            if still.any():
                outside = max(outside, float(np.abs(now[still] - was[still]).max()))
        same &= first.numpy()
        kept = int(same.sum())
        added = int((~first).sum())
        if kept == len(source.means) and not added:
            self.notes.append("The edit changed nothing.")
        every = time.perf_counter() - started
        return SplatResult(
            splats=edited,
            weight=self.place.weight.cpu().numpy(),
            parent=order.numpy(),
            kind=self.kind,
            kept=kept,
            changed=int((first & ~torch.from_numpy(same)).sum()),
            added=added,
            removed=int(len(source.means) - first.sum()),
            max_change_outside=outside,
            background_psnr=self._background(edited_scene, own),
            cameras=self.cameras,
            measured=tuple(self.measured),
            words=words,
            notes=tuple(self.notes),
            steps_done=self.steps_done,
            stopped=self.stopped,
            method=self.method,
            history=self.history,
            seconds={
                "renderer": views.rendering_seconds,
                "model": self.model_seconds,
                "rest": every - views.rendering_seconds - self.model_seconds,
                "all": every,
            },
        )

    def _background(self, whole: Scene, own: Scene) -> float:
        """PSNR of held-out views outside what the edit covers, before or after."""
        cameras = self.cameras[list(self.measured)]
        before, after = (pictures(each, cameras, self.background) for each in (self.scene, whole))
        moved = (~self.kept_rows).float()[:, None]
        cover = torch.cat([self.scene.paint(moved, cameras[k]) for k in range(len(cameras))])
        count = int(self.kept_rows.sum())
        fresh = Scene.cat(self.scene[self.kept_rows], own)
        ones = torch.ones_like(fresh.logits)[:, None]
        ones[:count] = 0
        cover = torch.maximum(cover, torch.cat([fresh.paint(ones, cameras[k]) for k in range(len(cameras))]))
        touched = (cover >= 1 / 255).float().permute(0, 3, 1, 2)
        if touched.all():
            return math.nan
        one = (x.transpose(0, 1).flatten(1, 2)[None] for x in (before, after, touched))  # all views as one picture
        return float(psnr(*one))


def _near(scene: Scene, place: Place, host: Place, threshold: float) -> Place:
    """What of a place is on a host or within half its radius of it, from the cameras that looked at the host."""
    centre, radius = bounds(scene.means, torch.where(host.chosen(threshold), host.weight, 0.0))
    middle, depth = project(centre[None], place.cameras)
    reach = 1.5 * radius * place.cameras.Ks[:, 0, 0] / depth[:, 0].clamp(min=1e-6)
    height, width = place.maps.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x, y = x.to(middle), y.to(middle)
    away = ((x - middle[:, 0, 0, None, None]) ** 2 + (y - middle[:, 0, 1, None, None]) ** 2).sqrt()
    inside = (away <= reach[:, None, None]).float()[:, None]
    maps = place.maps * inside
    maps = maps / maps.amax().clamp(min=1e-6)
    numerator, denominator = lifted(scene, place.cameras, maps)
    near = (scene.means - centre).norm(dim=1) <= 1.5 * radius
    weight = torch.where(near & (denominator > SEEN), numerator / denominator.clamp(min=1e-6), 0.0)
    return replace(place, weight=weight, maps=maps)


def _inherited(column: np.ndarray, parent: np.ndarray) -> np.ndarray:
    values = column[np.maximum(parent, 0)]
    values[parent < 0] = 0
    return values
