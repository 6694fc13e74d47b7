"""What the Image tab does, as plain functions: no widget, no browser, no Gradio.

Whatever needs the model takes it as its first argument and is run by the worker; whatever a person has in front of them
is a `Table`, which is replaced and never changed, so that undo is a step back in a list.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdsedit.attention.localize import localize
from sdsedit.attention.probe import AttentionMaps, AttentionProbe
from sdsedit.attention.words import changed_words, find_words, removed_words
from sdsedit.edit import EditResult, StepReport, edit
from sdsedit.errors import InputRefused, printable
from sdsedit.guidance import MAX_STRENGTH, MIN_STRENGTH
from sdsedit.io import images, record
from sdsedit.io.images import Mask, Picture
from sdsedit.prior.base import Prior
from sdsedit.representations.image import ImageLatent
from sdsedit.request import Edit, EditConfig, check_number, check_prompt, check_request

if TYPE_CHECKING:
    from sdsedit.web.history import History

PREVIEW_EVERY = 0.25  # seconds between two previews, at least
TIMES = (0.3, 0.45, 0.6, 0.75)  # t at which a heat-map looks: too little noise hides words, too much hides places
DRAWS = 2  # of noise at each of them
SHOWN = 1024  # pixels, the longer side of a picture that is only looked at
UNDO = 12  # steps back
PRESS = "Press a word to see where the model sees it."
PAINTED = 0.5  # share of a pixel that the brush must cover


@dataclass(frozen=True)
class Order:
    """An edit that somebody wants."""

    picture: Picture
    mask: Mask | None
    request: Edit
    config: EditConfig
    references: tuple[Picture, ...] = ()  # the request's, whose look is taken


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    done: int
    total: int
    seconds_left: float
    preview: np.ndarray | None  # [h, w, 3] uint8, the edit so far at the working size


@dataclass(frozen=True)
class Result:
    """A finished or stopped edit, and the path that led to it."""

    order: Order
    edited: EditResult  # its pictures taken out
    rgb: np.ndarray  # [H, W, 3] uint8
    weight: np.ndarray  # [H, W] uint8, where it changed; 0 is the input's own pixel
    heat: np.ndarray  # [H, W] uint8, where the words were found
    path: tuple[Tensor, ...]  # [1, C, h, w] on the CPU, after each step
    bound: Tensor  # [1, 1, H, W] float16, the most that a state of the path may weigh
    model: dict[str, Any]  # id, revision, device, dtype
    model_spec: str = ""  # which of the page's models; "" is the usual one


@dataclass(frozen=True)
class State:
    """One state of a path, as a picture."""

    step: int  # 0: the input, len(path): the result
    rgb: np.ndarray  # [H, W, 3] uint8
    weight: np.ndarray  # [H, W] uint8
    kept: int  # pixels of weight 0


@dataclass(frozen=True)
class Table:
    """What a person has in front of them."""

    picture: Picture | None = None
    source: str = ""
    target: str = ""
    result: Result | None = None
    state: State | None = None  # what of the result is shown, and taken by download and continue
    choices: tuple[Result, ...] = ()  # a grid of seeds


@dataclass
class Desk:
    """A person's tables, the newest last, and the words they chose."""

    tables: list[Table] = field(default_factory=lambda: [Table()])
    words: tuple[Word, ...] = ()
    chosen: set[int] = field(default_factory=set)  # of `words`

    @property
    def table(self) -> Table:
        return self.tables[-1]

    def put(self, table: Table) -> None:
        """A new table on top; the oldest go, and so does an empty one below it."""
        below = self.tables if self.table.picture is not None else self.tables[:-1]
        self.tables = [*below, table][-UNDO - 1 :]

    def turn(self, table: Table) -> None:
        """The same table, seen otherwise: no step that undo takes back."""
        self.tables[-1] = table

    def undo(self) -> Table:
        """Back to the table before. InputRefused: there is none."""
        if len(self.tables) < 2:
            raise InputRefused("There is nothing to undo.")
        self.tables.pop()
        return self.table


# ---- what a person gives


def read_input(path: str | None, max_pixels: int) -> Picture:
    """The picture that was dropped or chosen; InputRefused as read_picture, and for more than `max_pixels`."""
    if not path:
        raise InputRefused("There is no picture yet: drop one, or take an example.")
    picture = images.read_picture(path)
    width, height = picture.size
    if width * height > max_pixels:
        raise InputRefused(
            f"{picture.name} is {width}x{height} pixels, more than the {max_pixels // 1_000_000} megapixels that this "
            "page takes: make it smaller."
        )
    return picture


def painted_mask(layers: Sequence[np.ndarray], size: tuple[int, int]) -> Mask:
    """What was painted, as a mask of the picture's `size` (width, height).

    layers: [h, w, 4] uint8 each, painted on a view of the picture that may be larger or smaller than it. InputRefused:
    nothing is painted, or everything.
    """
    covered = np.zeros((size[1], size[0]), dtype=bool)
    for layer in layers:
        alpha = Image.fromarray(layer[..., 3]) if layer.ndim == 3 and layer.shape[2] == 4 else None
        if alpha is not None:
            covered |= np.asarray(alpha.resize(size, Image.Resampling.BOX)) >= 255 * PAINTED
    if not covered.any():
        raise InputRefused("Nothing is painted yet: paint over the place that may change.")
    if covered.all():
        raise InputRefused("The whole picture is painted: leave out what must stay.")
    values = covered.astype(np.uint8) * 255
    return Mask("painted.png", hashlib.sha256(images.encode_png(values)).hexdigest(), values, ())


def whole(value: object) -> Any:
    """A number that came as 3.0 as 3; anything else as it is, for the check to refuse."""
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


def make_order(
    picture: Picture,
    mask: Mask | None,
    source: str,
    target: str,
    words: Sequence[str] | None,
    method: str,
    strength: float,
    seed: object,
    steps: object = None,  # None: what suits the method
    references: Sequence[Picture] = (),  # whose look is taken
    style_weight: float = EditConfig.style_weight,
) -> Order:
    """What somebody wants, checked as far as it can be without the model. InputRefused."""
    request = Edit(
        target=target,
        source=source or None,
        words=tuple(words) if words else None,
        mask=None if mask is None else mask.tensor(),
        references=tuple(each.tensor() for each in references),
    )
    check_number("strength", strength, MIN_STRENGTH, MAX_STRENGTH)
    config = EditConfig(
        method=method, seed=whole(seed), strength=strength, steps=whole(steps), style_weight=style_weight
    )
    check_request(request, config)
    return Order(picture, mask, request, config, tuple(references))


# ---- words and where the model sees them


@dataclass(frozen=True)
class Word:
    """A word of one of the prompts that can be looked for."""

    text: str
    prompt: Literal["target", "source"]
    kind: Literal["new", "kept", "gone"]


def words_of(prior: Prior, source: str, target: str) -> tuple[Word, ...]:
    """The target's words with the new ones marked, then those of the source that go; small words cannot be looked for
    and are left out. InputRefused: a prompt that cannot be used."""
    check_prompt("target prompt", target)
    check_prompt("source prompt", source)
    every = changed_words(prior.tokenize, None, target)
    new = set(changed_words(prior.tokenize, source, target).spans) if source.strip() else set(every.spans)
    found: dict[str, Word] = {}
    for text, span in zip(every.text, every.spans, strict=True):
        known = found.get(text)
        if known is None or known.kind == "kept":
            found[text] = Word(text, "target", "new" if span in new else "kept")
    gone = removed_words(prior.tokenize, source, target).text if source.strip() and target.strip() else ()
    return (*found.values(), *(Word(text, "source", "gone") for text in gone if text not in found))


def heat_map(prior: Prior, picture: Tensor, prompt: str, words: Sequence[str], seed: int = 0) -> Tensor:
    """Where `words` of `prompt` are, or would go, in a picture [1, 3, H, W]: [1, 1, H, W] in 0..1.

    The mean attention over TIMES, refined and stretched as LUSD does it. InputRefused: the words are not in the prompt.
    """
    check_prompt("prompt", prompt)
    try:
        tokens = find_words(prior.tokenize, prompt, words).tokens
    except ValueError as error:
        raise InputRefused(printable(str(error), 500)) from None
    with torch.inference_mode():
        z = ImageLatent.from_image(picture, prior).z_src.expand(len(TIMES) * DRAWS, -1, -1, -1)
        t = torch.tensor(TIMES * DRAWS, device=z.device)
        eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)).to(z.device)
        probe = AttentionProbe(tokens)
        maps = prior.predict(prior.schedule.add_noise(z, eps, t), t, prior.encode_text([prompt]), probe).maps
        assert isinstance(maps, AttentionMaps)
        return localize(maps, (picture.shape[-2], picture.shape[-1]))


# ---- the edit


def run_edit(
    prior: Prior,
    order: Order,
    model: dict[str, Any],
    on_progress: Callable[[Progress], None],
    go_on: Callable[[], bool],
    run: int = 0,  # which of several that share one progress, from 0
    runs: int = 1,
    model_spec: str = "",
) -> Result:
    """Run an edit, record its path, and tell how far it is; `go_on` is asked after every step.

    Raises InputRefused for what only the model could tell.
    """
    began = last = time.perf_counter()
    path: list[Tensor] = []

    def on_step(report: StepReport) -> bool:
        nonlocal last
        path.append(report.z.detach().cpu().clone())
        now = time.perf_counter()
        total, first = report.total * runs, report.total * run
        if now - last >= PREVIEW_EVERY or len(path) in (1, report.total):
            last = now
            left = (now - began) / len(path) * (total - first - len(path))
            preview = images.to_array(report.preview())
            on_progress(Progress(first + len(path), total, left, preview))
        return go_on()

    edited = edit(order.picture.tensor(), prior, order.request, order.config, on_step)
    with torch.inference_mode():
        latent = ImageLatent(order.picture.tensor().to(prior.device), edited.z_src)
        gate = latent.finish(prior, edited.z, None)[1]  # the edit's weight where every pixel may change
        bound = torch.where(gate > 0, edited.mask / gate.clamp(min=1e-6), 0.0)
    nothing = torch.zeros(0)
    return Result(
        order=order,
        edited=replace(edited, image=nothing, mask=nothing, heatmap=nothing, z=nothing),
        rgb=images.to_array(edited.image),
        weight=images.to_array(edited.mask)[..., 0],
        heat=images.to_array(edited.heatmap)[..., 0],
        path=tuple(path[: edited.steps_done]),
        bound=bound.clamp(0, 1).half().cpu(),
        model=model,
        model_spec=model_spec,
    )


def state_at(prior: Prior, result: Result, step: int) -> State:
    """A state of the path as a picture: the source where the edit may not be, as the finished edit has it.

    out = source + bound gate(z_k) (decode(z_k) - source), with bound = weight / gate(z) of the finished edit, so that
    the last state is the result and no earlier one shows anything outside of it.
    """
    last = len(result.path)
    step = min(max(step, 0), last)
    picture = result.order.picture
    if step == last:
        return last_state(result)
    if step == 0:
        return State(0, picture.rgb, np.zeros_like(result.weight), result.weight.size)
    with torch.inference_mode():
        source = picture.tensor().to(prior.device)
        latent = ImageLatent(source, result.edited.z_src)
        out, weight, kept = latent.finish(
            prior, result.path[step - 1].to(prior.device), result.bound.float().to(source)
        )
        return State(step, images.to_array(out), images.to_array(weight)[..., 0], kept)


def last_state(result: Result) -> State:
    """The finished edit."""
    return State(len(result.path), result.rgb, result.weight, result.edited.kept_pixels)


def recipe_of(result: Result, state: State) -> dict[str, Any]:
    """The recipe of a shown state; one before the last says so, and how many steps of the edit it has."""
    edited = result.edited
    if state.step < len(result.path):
        note = f"Taken from the path of the edit, after {state.step} of {len(result.path)} steps."
        edited = replace(
            edited,
            steps_done=state.step,
            stopped="cancelled",
            kept_pixels=state.kept,
            history=edited.history[: state.step],
            notes=(*edited.notes, note),
        )
    order = result.order
    seconds = {"editing": edited.seconds}
    return record.image_recipe(
        order.picture, order.mask, order.request, order.config, edited, result.model, seconds, order.references
    )


def png_of(result: Result, state: State) -> bytes:
    """A shown state as a PNG with its recipe inside."""
    picture = result.order.picture
    recipe = record.dump(recipe_of(result, state))
    return images.encode_png(state.rgb, picture.alpha, picture.icc, recipe)


def keep(history: History, result: Result, folder: Path) -> str:
    """Put a finished edit into the history, with what a replay needs; `folder` is an empty one to write in. Its id."""
    picture, mask = result.order.picture, result.order.mask
    state = last_state(result)
    output = folder / file_name(picture)
    output.write_bytes(png_of(result, state))
    inputs = {"input": folder / "input" / f"{Path(picture.name).stem}.png"}
    inputs["input"].parent.mkdir()
    inputs["input"].write_bytes(images.encode_png(picture.rgb, picture.alpha, picture.icc))
    if mask is not None:
        inputs["mask"] = folder / "mask.png"
        inputs["mask"].write_bytes(images.encode_png(mask.values))
    inputs |= references_kept(result.order.references, folder)
    return history.add("image", output, picture.rgb, result.rgb, recipe_of(result, state), inputs)


def references_kept(references: Sequence[Picture], folder: Path) -> dict[str, Path]:
    """Pictures whose look was taken, written into `folder` for a replay, by what the history calls them."""
    paths = {}
    for k, picture in enumerate(references, 1):
        what = f"reference {k}"
        (folder / what).mkdir(parents=True)
        paths[what] = folder / what / f"{Path(picture.name).stem}.png"
        paths[what].write_bytes(images.encode_png(picture.rgb, picture.alpha, picture.icc))
    return paths


def file_name(picture: Picture) -> str:
    """The name of a download: `cat.png` becomes `cat-edited.png`, and so does `cat-edited.png`."""
    stem = "".join(c if c.isalnum() or c in "-_ " else "_" for c in Path(picture.name).stem)[:60].strip() or "picture"
    return f"{stem.removesuffix('-edited')}-edited.png"


def continued(table: Table) -> Table:
    """The shown state as the picture to edit next; what was the target describes it."""
    if table.result is None or table.state is None:
        raise InputRefused("There is no result yet to continue from.")
    before, state = table.result.order.picture, table.state
    data = png_of(table.result, state)  # what a download of it is, so that a chain of recipes can be followed
    sha256 = hashlib.sha256(data).hexdigest()
    picture = replace(before, name=file_name(before), sha256=sha256, kind="PNG", rgb=state.rgb, notes=())
    reached = 2 * state.step > len(table.result.path)
    request = table.result.order.request
    return Table(picture, request.target if reached else request.source or "", request.target)


def seeds(order: Order, count: int = 4) -> list[Order]:
    """The same edit with the seeds that follow."""
    last = 2**63 - 1
    return [
        replace(order, config=replace(order.config, seed=(order.config.seed + k) % (last + 1))) for k in range(count)
    ]


# ---- what is shown


def view(rgb: np.ndarray, side: int = SHOWN) -> np.ndarray:
    """A picture [H, W, C] uint8 made smaller to be looked at, if it is larger than `side`."""
    height, width = rgb.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return rgb
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))


def canvas(rgb: np.ndarray, side: int) -> np.ndarray:
    """A picture to paint on, its longer side exactly `side` pixels: a brush on 128 pixels would be a brick."""
    height, width = rgb.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS))


def heat_over(rgb: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A heat-map [H, W] uint8 or 0..1 over a picture, made smaller to be looked at."""
    share = heat.astype(np.float32) / 255 if heat.dtype == np.uint8 else heat
    small = view(rgb)
    level = Image.fromarray(share).resize((small.shape[1], small.shape[0]), Image.Resampling.BILINEAR)
    return images.overlay(small, np.asarray(level))


def figure(pixels: np.ndarray, caption: str, alt: str, progress: float | None = None) -> str:
    """A picture with a line under it as HTML that asks no server for anything."""
    buffer = io.BytesIO()
    Image.fromarray(view(pixels)).save(buffer, "PNG", compress_level=1)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    bar = "" if progress is None else f'<progress max="1" value="{progress:.3f}" aria-label="Progress"></progress>'
    return (
        f'<figure class="stage"><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
        f'{bar}<figcaption role="status">{html.escape(caption)}</figcaption></figure>'
    )


def message(text: str) -> str:
    """A line where a picture will be."""
    return f'<div class="stage empty" role="status"><p>{html.escape(text)}</p></div>'


def chips(words: Sequence[Word], chosen: set[int], looked: int | None = None) -> str:
    """The words as buttons; `looked` is the one whose heat-map is shown."""
    if not words:
        return '<p class="hint">The words of your text will stand here. Press one to see where the model looks.</p>'
    says = {"new": "new", "gone": "goes", "kept": ""}
    buttons = []
    for k, word in enumerate(words):
        classes = " ".join(["chip", word.kind, *(["looked"] if k == looked else [])])
        tag = f"<small>{says[word.kind]}</small>" if says[word.kind] else ""
        tick = '<span aria-hidden="true">&#10003;</span>' if k in chosen else ""
        buttons.append(
            f'<button type="button" class="{classes}" data-word="{k}" aria-pressed="{str(k in chosen).lower()}" '
            f'title="Show where the model sees this word">{tick}{html.escape(printable(word.text, 60))}{tag}</button>'
        )
    return (
        f'<p class="hint small">{html.escape(PRESS)}</p>'
        f'<div class="chips" role="group" aria-label="Words of the text">{"".join(buttons)}</div>'
    )


def summary(result: Result, state: State) -> str:
    """What is to be said about a shown state, as one HTML line for each sentence."""
    total = state.weight.size
    steps = len(result.path)
    lines = []
    if state.step == 0:
        lines.append("The picture as it was.")
    else:
        share = 100 * state.kept / total
        words = ", ".join(printable(word, 60) for word in result.edited.words)
        where = f" The place was found by: {words}." if words else ""
        lines.append(f"{share:.1f} % of the pixels are the picture's own, bit for bit.{where}")
    if result.edited.stopped == "cancelled":
        lines.append(f"Stopped after {steps} {'step' if steps == 1 else 'steps'}; this is what was there.")
    elif result.edited.stopped:
        lines.append(f"The run ended early: {result.edited.stopped}.")
    lines += [*result.order.picture.notes, *result.edited.notes]
    return "".join(f"<p>{html.escape(printable(line, 1000))}</p>" for line in lines)


def progress_line(progress: Progress) -> str:
    """ "Step 12 of 52, about 4 s left"."""
    left = progress.seconds_left
    say = f"about {left:.0f} s left" if left >= 1 else "nearly done"
    return f"Step {progress.done} of {progress.total}, {say}"
