"""The editing loop: render, ask the method for a direction, step, report; and `edit`, which runs it on a picture."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.attention.localize import snap
from sdsedit.attention.words import names_a_thing, removed_words
from sdsedit.guidance import configured
from sdsedit.guidance.attention_distillation import Styled
from sdsedit.guidance.base import Guidance, Prompts, State, Step
from sdsedit.guidance.lusd import FastLUSD
from sdsedit.guidance.refine import Refine
from sdsedit.memory import Sparing
from sdsedit.prior.autoencoder import preview
from sdsedit.prior.base import Prior
from sdsedit.representations.base import Representation
from sdsedit.representations.image import ImageLatent, in_strips, look_of, resize
from sdsedit.request import (
    Edit,
    EditConfig,
    check_picture,
    check_references,
    check_request,
    encode_prompts,
    words_to_find,
)

_PLACE = 0.35  # the edit's place: where the heatmap reaches this share of its maximum
_WIDE = 0.5  # a place of more than this share of the picture is a background


@dataclass(frozen=True)
class StepReport:
    """One finished step, as `on_step` sees it; reading a number from `stats` waits for the device."""

    index: int  # 0 .. total - 1
    total: int
    stats: dict[str, Tensor]  # 0-dim tensors
    z: Tensor  # [B, C, h, w], where the step sent the latent; later steps leave this tensor as it is
    mask: Tensor | None  # [1, 1, h, w] in 0..1, a person's mask or the localisation so far
    prior: Prior = field(repr=False)

    def preview(self) -> Tensor:
        """The latent decoded at the working size, [B, 3, h factor, w factor] in 0..1, without the composite."""
        with torch.inference_mode():
            return preview(self.prior, self.z)


OnStep = Callable[[StepReport], "bool | None"]


@dataclass(frozen=True)
class Run:
    """How a run of the loop ended."""

    steps_done: int  # steps that took effect
    stopped: str  # "" at the end of the run, "cancelled", or "non-finite gradient at step 12, t=0.53", counted from 1
    state: State | None
    history: tuple[dict[str, float], ...]  # the stats of each finished step


@dataclass(frozen=True)
class EditResult:
    """An edited picture and what is known about it. H, W are the source picture's own."""

    image: Tensor  # [1, 3, H, W] fp32 in 0..1
    mask: Tensor  # [1, 1, H, W] in 0..1, the weight of the edit; 0 = the source's pixel, bit for bit
    heatmap: Tensor  # [1, 1, H, W] in 0..1, where the words were found or the person's mask; zeros if neither
    kept_pixels: int  # of weight 0
    total_pixels: int
    steps_done: int
    stopped: str  # see Run
    method: Guidance  # with the settings that were used
    refine: float  # the noise from which the place is redrawn after the last step of the method; 0: it is not
    words: tuple[str, ...]  # whose place was looked for
    notes: tuple[str, ...]  # one sentence each, for the person
    history: tuple[dict[str, float], ...]
    seconds: float
    z_src: Tensor  # [1, C, h, w]
    z: Tensor  # [1, C, h, w]


def edit(
    image: Tensor,  # [1, 3, H, W] fp32 in 0..1, any size
    prior: Prior,
    request: Edit,
    config: EditConfig | None = None,
    on_step: OnStep | None = None,
) -> EditResult:
    """Edit a picture with words; what comes back has its size, on the prior's device.

    on_step is called after every step and stops the run by returning False; the result then holds what there is so far,
    as it does when a gradient is not finite (see EditResult.stopped). One seed is one result. Where memory runs out, it
    goes on with less at a time (see memory.Sparing) and the notes say so. Raises InputRefused (a ValueError) with one
    sentence for the person where a value cannot be used, and OutOfMemory where nothing helps.
    """
    started = time.perf_counter()
    config = config or EditConfig()
    check_request(request, config)
    check_picture(image, request.mask, config.size, prior)
    check_references(request.references, prior)
    method = configured(config.method, config.strength, prior.editing)
    steps = config.steps or method.steps
    notes: list[str] = []
    with torch.no_grad(), Sparing(prior) as sparing:
        prior = cast(Prior, sparing)
        words, mask_from = words_to_find(prior, request, method, notes)
        prompts = encode_prompts(prior, request, words.tokens, mask_from, notes)
        goes = mask_from == "source" and not request.words
        if words.tokens and mask_from == "target" and not request.words:
            replaced = removed_words(prior.tokenize, request.source or "", request.target)
            prompts = replace(prompts, replaced=replaced.tokens)
            goes = names_a_thing([word for word in replaced.text if word not in words.text])  # a red cat stays a cat
        picture = ImageLatent.from_image(image, prior, config.size, request.mask)
        guide = _styled(prior, method, request, config)
        refine = _refine(prior, method, config, (method.localizes and bool(words.tokens)) or request.mask is not None)
        if request.references and config.refine is None:
            refine = None  # redrawing by the words alone would take the style away again
        total = steps + (refine.steps if refine else 0)
        run = distill(picture, prior, prompts, guide, steps, config.seed, on_step, total)
        heatmap, place, wide = _place(picture, run.state, notes, goes)
        if refine:
            refine = _suited(refine, method, wide, config)
        if refine and place is not None and place.any() and not run.stopped:
            run = _redraw(refine, picture, place, wide, prior, prompts, config.seed, run, on_step, total)
        radius = min(round(config.feather), 1) if wide else round(config.feather)
        edited, weight, kept = picture.finish(prior, picture.z, place, radius)
    notes += sparing.notes
    if run.steps_done and kept == weight.numel():
        notes.append("The edit changed nothing that can be seen.")
    seconds = time.perf_counter() - started
    return EditResult(
        image=edited,
        mask=weight,
        heatmap=heatmap,
        kept_pixels=kept,
        total_pixels=weight.numel(),
        steps_done=run.steps_done,
        stopped=run.stopped,
        method=method,
        refine=refine.start if refine else 0.0,
        words=words.text,
        notes=tuple(notes),
        history=run.history,
        seconds=seconds,
        z_src=picture.z_src,
        z=picture.z,
    )


def distill(
    representation: Representation,
    prior: Prior,
    prompts: Prompts,
    method: Guidance,
    steps: int,
    seed: int = 0,
    on_step: OnStep | None = None,
    total: int | None = None,  # steps in all, where others follow these; None: no others do
    anneal: float | None = None,  # the method's t_max sinks to this value over the run; None: it stays
) -> Run:
    """The loop, for anything that renders: z -> method -> direction -> representation.step.

    A direction that is not finite never reaches the representation: it arrives as zeros, and so does every later one.
    The flag lives on the device and is read every 10 steps (every step on a CPU), so the run stops at most 10 steps
    later, naming the first bad step.
    """
    total = total or steps
    generator = torch.Generator().manual_seed(seed)
    every = _poll_interval(prior.device)
    healthy = torch.ones((), dtype=torch.bool, device=prior.device)
    good = torch.zeros((), device=prior.device)  # steps before the first bad one
    bad_t = torch.zeros((), device=prior.device)
    state: State | None = None
    history: list[dict[str, Tensor]] = []
    stopped = ""
    for index in range(steps):
        view = representation.render(index)
        z = view.z.detach()
        t_max = method.t_max
        if anneal is not None:
            t_max += (max(anneal, method.t_min) - t_max) * index / max(steps - 1, 1)
            t_max = max(t_max, method.t_min)  # rounding
        draw = partial(prior.schedule.draw, z, generator, method.t_min, t_max)
        step = Step(index, steps, z, view.z_src, prompts, draw, view.mask)
        with torch.inference_mode():
            update = method(prior, step, state)
            finite = update.step.isfinite().all()
            bad_t = torch.where(healthy & ~finite, update.stats["t"], bad_t)
            healthy = healthy & finite
            good = good + healthy
            direction = torch.where(healthy, update.step, 0.0)
        if (index + 1) % every == 0 and not healthy:
            break
        direction = direction.clone()  # outside inference mode, so an ordinary tensor, which autograd may save
        representation.step(direction)
        state = update.state
        history.append(update.stats)
        if on_step is not None:
            mask = view.mask if view.mask is not None or state is None else state.mask
            if on_step(StepReport(index, total, update.stats, z - direction, mask, prior)) is False:
                stopped = "" if index + 1 == total else "cancelled"
                break
        if update.last:
            break
    if not healthy:
        history = history[: int(good)]
        stopped = f"non-finite gradient at step {len(history) + 1}, t={bad_t.item():.2f}"
    return Run(len(history), stopped, state, _floats(history))


def _styled(prior: Prior, method: Guidance, request: Edit, config: EditConfig) -> Guidance:
    """The method, with the references' pull beside it if there are any."""
    if not request.references or not config.style_weight:
        return method
    return Styled(method, look_of(prior, request.references, config.size), config.style_weight)


def _refine(prior: Prior, method: Guidance, config: EditConfig, has_place: bool) -> Refine | None:
    """The redrawing to be done at the end, if any: only where there is a place to keep it in."""
    refine = Refine(**{"start": 0.0, **prior.editing.get("refine", {})})
    if isinstance(method, FastLUSD):
        refine = replace(refine, steps=min(refine.steps, method.redraw))
    if config.refine is not None:
        refine = replace(refine, start=config.refine)
    return refine if has_place and refine.start > 0 else None


def _suited(refine: Refine, method: Guidance, wide: bool, config: EditConfig) -> Refine:
    """The redrawing as the place and the method want it; a start that was asked for stays."""
    start, scale = refine.wide_start if wide else None, 0.0
    if isinstance(method, FastLUSD) and not wide:
        start, scale = method.redraw_start, method.redraw_scale
    if config.refine is not None:
        start = None
    return replace(refine, start=start or refine.start, scale=scale or refine.scale)


def _redraw(
    refine: Refine,
    picture: ImageLatent,
    place: Tensor,  # [1, 1, H, W]
    wide: bool,
    prior: Prior,
    prompts: Prompts,
    seed: int,
    run: Run,
    on_step: OnStep | None,
    total: int,
) -> Run:
    """Redraw `place` and put the result into `picture`; stops as the loop does, with the last good latent."""
    # A wide place ends where the kept subject begins, at a known edge: its cells belong to it by their share.
    pool = F.adaptive_avg_pool2d if wide else F.adaptive_max_pool2d
    mask = pool(place, (picture.z.shape[-2], picture.z.shape[-1]))
    draw = partial(prior.schedule.draw, picture.z, torch.Generator().manual_seed(seed))
    done, stopped, history = run.steps_done, "", list(run.history)
    with torch.inference_mode():
        for t, z in refine(prior, picture.z.clone(), picture.z_src, mask, prompts, draw):
            if not z.isfinite().all():
                stopped = f"non-finite gradient at step {done + 1}, t={t.item():.2f}"
                break
            picture.z = z
            history.append({"t": t.item(), "distance": (z - picture.z_src).square().mean().sqrt().item()})
            done += 1
            if on_step and on_step(StepReport(done - 1, total, {"t": t[0]}, z, mask, prior)) is False:
                stopped = "" if done == total else "cancelled"
                break
    return replace(run, steps_done=done, stopped=stopped, history=tuple(history))


def _poll_interval(device: torch.device) -> int:
    """Steps between two reads of the finite flag: reading it waits for an accelerator and costs a CPU nothing."""
    return 1 if device.type == "cpu" else 10


def _floats(history: list[dict[str, Tensor]]) -> tuple[dict[str, float], ...]:
    """All the numbers of a run in one transfer."""
    if not history:
        return ()
    names = list(history[0])
    rows = torch.stack([torch.stack([stats[name].float() for name in names]) for stats in history]).tolist()
    return tuple(dict(zip(names, row, strict=True)) for row in rows)


def _place(
    picture: ImageLatent, state: State | None, notes: list[str], goes: bool
) -> tuple[Tensor, Tensor | None, bool]:
    """The heatmap [1, 1, H, W] at the picture's size, where the composite may show the edit (None: anywhere), and
    whether that is a background.

    What goes must go whole, tips and all, also where something else comes: its place is wider by a latent cell.
    """
    if picture.mask is not None:
        return picture.mask, picture.mask, False
    size = (picture.picture.shape[-2], picture.picture.shape[-1])
    if state is None or state.mask is None:
        return torch.zeros((1, 1, *size), device=picture.z.device), None, False
    heatmap = resize(state.mask.clone(), size)
    highest = heatmap.amax()
    if not highest > 0:
        notes.append("The model's attention found no place for these words, so nothing was changed; give a mask.")
        return heatmap, torch.zeros_like(heatmap), False
    place = (heatmap >= _PLACE * highest).float()
    wide = bool(place.mean() > _WIDE)
    if wide:
        place = (snap(heatmap / highest, picture.picture) >= 0.5).float()
        place = F.max_pool2d(place, 3, stride=1, padding=1)  # the pixels of the edge itself hold some of the old
    elif goes:
        cell = round(max(size[0] / picture.z.shape[-2], size[1] / picture.z.shape[-1]))

        def widen(part: Tensor) -> Tensor:
            across = F.max_pool2d(part, (1, 2 * cell + 1), stride=1, padding=(0, cell))
            return F.max_pool2d(across, (2 * cell + 1, 1), stride=1, padding=(cell, 0))

        place = in_strips(widen, place, cell)
    return heatmap, place, wide
