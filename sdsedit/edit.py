"""The editing loop: render, ask the method for a direction, step, report; and `edit`, which runs it on a picture."""

from __future__ import annotations

import math
import time
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.attention.localize import snap
from sdsedit.attention.words import Words, changed_words, find_words, removed_words
from sdsedit.errors import InputRefused, printable
from sdsedit.guidance import configured
from sdsedit.guidance.base import Guidance, Prompts, State, Step
from sdsedit.guidance.refine import Refine
from sdsedit.prior.base import Prior
from sdsedit.representations.base import Representation
from sdsedit.representations.image import ImageLatent, resize

MAX_STEPS = 10_000
MAX_SIZE = 4096  # working side, pixels
MAX_FEATHER = 256  # pixels
MAX_PROMPT = 2_000  # characters
_PLACE = 0.35  # the edit's place: where the heatmap reaches this share of its maximum
_WIDE = 0.5  # a place of more than this share of the picture is a background
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Edit:
    """What to change."""

    target: str  # describes the edited picture
    source: str | None = None  # describes the picture as it is
    words: tuple[str, ...] | None = (
        None  # of the target or source prompt, whose place is edited; None: the changed words
    )
    mask: Tensor | None = (
        None  # [1, 1, H, W] in 0..1, 1 = may change, of the picture's own size; words then play no part
    )
    negative: str = ""  # what NFSD, CSD and SBP move away from; the other methods do not read it


@dataclass(frozen=True)
class EditConfig:
    """How to change it."""

    method: str | Guidance = "lusd"  # a name means the settings that suit the model; see guidance.configured
    steps: int | None = None  # 1 .. MAX_STEPS; None: the method's own
    seed: int = 0  # 0 .. 2^63 - 1
    feather: float = 3.0  # pixels of the picture, 0 .. MAX_FEATHER: the mask's soft edge, inside it
    strength: float = 1.0  # 0.1 .. 10, multiplies the method's step size
    refine: float | None = None  # 0 .. 1, the noise from which the place is redrawn, 0: not; None: what suits the model
    size: int | None = None  # working side in pixels, up to MAX_SIZE; None: the model's native side


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
            return self.prior.decode(self.z)


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
    as it does when a gradient is not finite (see EditResult.stopped). One seed is one result. Raises InputRefused (a
    ValueError) with one sentence for the person where a value cannot be used.
    """
    started = time.perf_counter()
    config = config or EditConfig()
    check_request(request, config)
    _check_picture(image, request.mask, config.size, prior)
    method = configured(config.method, config.strength, prior.editing)
    steps = config.steps or method.steps
    notes: list[str] = []
    with torch.no_grad():
        words, mask_from = _words(prior, request, method, notes)
        prompts = _prompts(prior, request, words.tokens, mask_from, notes)
        if words.tokens and mask_from == "target" and not request.words:
            replaced = removed_words(prior.tokenize, request.source or "", request.target)
            prompts = replace(prompts, replaced=replaced.tokens)
        picture = ImageLatent.from_image(image, prior, config.size, request.mask)
        refine = _refine(prior, config, (method.localizes and bool(words.tokens)) or request.mask is not None)
        total = steps + (refine.steps if refine else 0)
        run = distill(picture, prior, prompts, method, steps, config.seed, on_step, total)
        goes = mask_from == "source" and not request.words
        heatmap, place, wide = _place(picture, run.state, notes, goes)
        if refine and wide and refine.wide_start and config.refine is None:
            refine = replace(refine, start=refine.wide_start)
        if refine and place is not None and place.any() and not run.stopped:
            run = _redraw(refine, picture, place, wide, prior, prompts, config.seed, run, on_step, total)
        radius = min(round(config.feather), 1) if wide else round(config.feather)
        edited, weight, kept = picture.finish(prior, picture.z, place, radius)
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
    if not healthy:
        history = history[: int(good)]
        stopped = f"non-finite gradient at step {len(history) + 1}, t={bad_t.item():.2f}"
    return Run(len(history), stopped, state, _floats(history))


def _refine(prior: Prior, config: EditConfig, has_place: bool) -> Refine | None:
    """The redrawing to be done at the end, if any: only where there is a place to keep it in."""
    refine = Refine(**{"start": 0.0, **prior.editing.get("refine", {})})
    if config.refine is not None:
        refine = replace(refine, start=config.refine)
    return refine if has_place and refine.start > 0 else None


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


def _words(
    prior: Prior, request: Edit, method: Guidance, notes: list[str]
) -> tuple[Words, Literal["target", "source"]]:
    """The words whose place is looked for, and the prompt that holds them."""
    nothing = Words((), (), (), "")
    if request.mask is not None:
        if request.words:
            notes.append("A mask was given, so the named words are not looked for.")
        return nothing, "target"
    if not method.localizes:
        if request.words:
            notes.append(f"{type(method).__name__} looks for no words; give a mask to say where, or use LUSD.")
        return nothing, "target"
    target, source = request.target, request.source or ""
    if request.words:
        try:
            return find_words(prior.tokenize, target, request.words), "target"
        except ValueError as error:
            try:
                return find_words(prior.tokenize, source, request.words), "source"
            except ValueError:
                raise InputRefused(printable(str(error), 500)) from None
    words = changed_words(prior.tokenize, source, target)
    removed = nothing if words.tokens else removed_words(prior.tokenize, source, target)
    if removed.tokens:
        gone = ", ".join(removed.text)
        notes.append(f"Words were only taken out, so the edit is looked for where the source has: {gone}.")
        return removed, "source"
    if words.note:
        notes.append(words.note)
    if not words.tokens:
        notes.append("Without a word to look for there is no mask: the whole picture may change.")
    return words, "target"


def _prompts(
    prior: Prior, request: Edit, tokens: tuple[int, ...], mask_from: Literal["target", "source"], notes: list[str]
) -> Prompts:
    source = request.source or ""
    for name, prompt in (("target", request.target), ("source", source), ("negative", request.negative)):
        cut = prior.tokenize(prompt).cut
        if cut:
            notes.append(
                f"The {name} prompt is longer than the model reads; these words were cut: {printable(cut, 500)}"
            )
    if not source.strip():
        notes.append("There is no source prompt, so the empty prompt stands for it.")
    elif source == request.target:
        notes.append("The source and the target prompt are the same, so there is nothing to change.")
    text = prior.encode_text([request.target, source, "", request.negative])
    return Prompts(text[0], text[1], text[2], text[3], tokens, mask_from)


def _place(
    picture: ImageLatent, state: State | None, notes: list[str], goes: bool
) -> tuple[Tensor, Tensor | None, bool]:
    """The heatmap [1, 1, H, W] at the picture's size, where the composite may show the edit (None: anywhere), and
    whether that is a background.

    What goes must go whole, tips and all: its place is wider by a latent cell.
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
        across = F.max_pool2d(place, (1, 2 * cell + 1), stride=1, padding=(0, cell))
        place = F.max_pool2d(across, (2 * cell + 1, 1), stride=1, padding=(cell, 0))
    return heatmap, place, wide


def check_request(request: Edit, config: EditConfig) -> None:
    """Refuse, with one sentence (InputRefused), what no model and no picture could make right; needs neither."""
    _check_prompt("target prompt", request.target)
    if not request.target.strip():
        raise InputRefused("The target prompt is empty; describe the picture as it should become.")
    _check_prompt("source prompt", request.source or "")
    _check_prompt("negative prompt", request.negative)
    if request.words is not None:
        if isinstance(request.words, str) or not request.words:
            raise InputRefused("words must be one or more words of the prompt, or None for the words that changed.")
        for word in request.words:
            _check_prompt("list of words", word)
    method = configured(config.method, config.strength)
    for each in fields(method):
        value = getattr(method, each.name)
        if not isinstance(value, str):
            _check_number(each.name, value, 1 if each.name == "stride" else 0, math.inf)
    if not 0 <= method.t_min < method.t_max <= 1:
        raise InputRefused(f"t_min and t_max must be 0 <= t_min < t_max <= 1; got {method.t_min} and {method.t_max}.")
    _check_whole("steps", method.steps if config.steps is None else config.steps, 1, MAX_STEPS)
    _check_whole("seed", config.seed, 0, 2**63 - 1)
    _check_number("feather", config.feather, 0, MAX_FEATHER)
    if config.refine is not None:
        _check_number("refine", config.refine, 0, 1)
    if config.size is not None:
        _check_whole("size", config.size, 1, MAX_SIZE)


def _check_picture(image: Tensor, mask: Tensor | None, size: int | None, prior: Prior) -> None:
    if not isinstance(image, Tensor):
        raise InputRefused(f"The picture must be a float32 tensor [1, 3, H, W]; got {type(image).__name__}.")
    if image.dtype != torch.float32 or image.ndim != 4 or image.shape[:2] != (1, 3) or not image.numel():
        raise InputRefused(f"The picture must be a float32 tensor [1, 3, H, W]; got {image.dtype} {list(image.shape)}.")
    if not _within_unit(image):
        raise InputRefused("The picture's values must be numbers from 0 to 1.")
    if mask is not None:
        _check_mask(mask, image)
    if size is not None:
        _check_whole("size", size, prior.multiple, MAX_SIZE)


def _check_prompt(name: str, text: str) -> None:
    if not isinstance(text, str):
        raise InputRefused(f"The {name} must be text; got {type(text).__name__}.")
    if len(text) > MAX_PROMPT:
        raise InputRefused(f"The {name} has {len(text)} characters; at most {MAX_PROMPT} are allowed.")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI:
            code = f"U+{ord(character):04X}"
            raise InputRefused(f"The {name} has the control character {code}; write plain text on one line.")


def _check_mask(mask: Tensor, image: Tensor) -> None:
    height, width = image.shape[-2:]
    if not isinstance(mask, Tensor) or mask.dtype != torch.float32:
        raise InputRefused("The mask must be a float32 tensor [1, 1, H, W], 1 where the picture may change.")
    if tuple(mask.shape) != (1, 1, height, width):
        size = f"{mask.shape[-1]}x{mask.shape[-2]}" if mask.ndim >= 2 else str(list(mask.shape))
        raise InputRefused(f"The mask is {size} and the picture {width}x{height}; give a mask of the picture's size.")
    if not _within_unit(mask):
        raise InputRefused("The mask's values must be numbers from 0 to 1.")
    if not mask.any():
        raise InputRefused("The mask is empty, so nothing may change; paint the place to edit.")
    if mask.min() == 1:
        raise InputRefused("The mask covers the whole picture; paint only the place to edit, or give no mask.")


def _within_unit(values: Tensor) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())  # not a number is neither


def _check_number(name: str, value: float, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        allowed = f"from {low} to {high}" if high < math.inf else f"of {low} or more"
        raise InputRefused(f"{name} is {printable(str(value), 40)}; it must be a number {allowed}.")


def _check_whole(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputRefused(f"{name} is {printable(str(value), 40)}; it must be a whole number from {low} to {high}.")
