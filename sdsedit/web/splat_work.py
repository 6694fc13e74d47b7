"""What the Splats tab does, as plain functions: scenes in and out, where words are in one, and its change by words."""

from __future__ import annotations

import hashlib
import html
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdsedit.errors import InputRefused, printable
from sdsedit.io import images, record, splats
from sdsedit.io.images import Picture
from sdsedit.io.splats import Splats
from sdsedit.prior.base import Prior
from sdsedit.request import Edit
from sdsedit.splats.change import Progress as Step
from sdsedit.splats.change import SplatConfig, SplatResult, change, check
from sdsedit.splats.files import around, orbit_film, photographs
from sdsedit.splats.survey import DIRECTIONS, suggested_up
from sdsedit.web.image_work import PREVIEW_EVERY, Progress, whole
from sdsedit.web.worker import Cancelled

UNDO = 4  # steps back; a scene may be large
MAX_GAUSSIANS = 500_000  # that a browser orbits smoothly
MAX_STEPS = 600  # what one person may ask of a machine that others share
FOV = 40.0  # degrees, of the viewer and of the pictures for the history
_ELEVATION = 20.0  # degrees
_DOING = {
    "looking": "Looking for the words in every view",
    "found": "The place is found",
    "imagining": "Drawing what each view should become",
    "changing": "Changing the scene",
}


@dataclass(frozen=True)
class SceneFile:
    """A scene as it was read."""

    name: str
    sha256: str
    path: Path
    splats: Splats
    up: tuple[float, float, float]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SceneOrder:
    """A change of a scene that somebody wants."""

    scene: SceneFile
    request: Edit
    config: SplatConfig
    references: tuple[Picture, ...] = ()  # the request's, whose look is taken


@dataclass(frozen=True)
class Place:
    """Where words are in a scene."""

    weight: np.ndarray  # [N] in 0..1
    words: tuple[str, ...]
    threshold: float


@dataclass(frozen=True)
class Edited:
    """A finished or stopped change."""

    order: SceneOrder
    result: SplatResult
    recipe: dict[str, Any]
    lines: tuple[str, ...]  # what is to be said, a sentence each

    def name(self, ending: str) -> str:
        """The name of a download."""
        return f"{_stem(self.order.scene.name)}-edited{ending}"


@dataclass(frozen=True)
class SceneTable:
    """What a person has in front of them."""

    scene: SceneFile | None = None
    source: str = ""
    target: str = ""
    place: Place | None = None
    edited: Edited | None = None


@dataclass
class SceneDesk:
    """A person's tables, the newest last, and the words they chose."""

    tables: list[SceneTable] = field(default_factory=lambda: [SceneTable()])
    words: tuple[Any, ...] = ()  # image_work.Word
    chosen: set[int] = field(default_factory=set)  # of `words`

    @property
    def table(self) -> SceneTable:
        return self.tables[-1]

    def put(self, table: SceneTable) -> None:
        """A new table on top; the oldest go, and so does an empty one below it."""
        below = self.tables if self.table.scene is not None else self.tables[:-1]
        self.tables = [*below, table][-UNDO - 1 :]

    def turn(self, table: SceneTable) -> None:
        """The same table, seen otherwise: no step that undo takes back."""
        self.tables[-1] = table

    def undo(self) -> None:
        if len(self.tables) < 2:
            raise InputRefused("There is nothing to undo.")
        self.tables = self.tables[:-1]


# ---- what goes in


def read_scene(path: str | Path, max_bytes: int) -> SceneFile:
    """A scene that somebody gave. InputRefused: it cannot be used."""
    if not path:
        raise InputRefused("There is no scene yet: drop a .ply or .spz file, or take an example.")
    path = Path(path)
    scene = splats.read_bounded(path, max_bytes)
    name = printable(path.name, 200)
    if len(scene) > MAX_GAUSSIANS:
        raise InputRefused(
            f"{name} holds {len(scene):,} Gaussians, more than the {MAX_GAUSSIANS:,} that this page takes: the command "
            "line, sdsedit splats, takes larger ones.",
            status=413,
        )
    data = path.read_bytes()
    up, because = suggested_up(scene)
    direction = DIRECTIONS[up]
    notes = () if up == "-y" else (f"Up is {up} in this scene, {because}.",)
    return SceneFile(name, hashlib.sha256(data).hexdigest(), path, scene, direction, notes)


def scene_order(
    scene: SceneFile, source: str, target: str, words: Sequence[str] | None, kind: Any, strength: Any, steps: Any,
    views: Any, threshold: Any, seed: Any, references: Sequence[Picture] = (),
    style_weight: float = SplatConfig.style_weight,
) -> SceneOrder:  # fmt: skip
    """references: pictures whose look the change takes. InputRefused: a value that cannot be used."""
    request = Edit(
        target=target, source=source or None, words=tuple(words) if words else None,
        references=tuple(each.tensor() for each in references),
    )  # fmt: skip
    config = SplatConfig(
        kind=kind or None,
        steps=whole(steps) or None,
        seed=whole(seed),
        strength=strength,
        views=whole(views),
        threshold=threshold,
        up=scene.up,
        style_weight=style_weight,
    )
    check(request, config)
    _check_steps(config)
    return SceneOrder(scene, request, config, tuple(references))


def order_of(recipe: dict[str, Any], scene: SceneFile | None, references: Sequence[Picture] = ()) -> SceneOrder:
    """What a recipe asks for. InputRefused: it is of something else, or its scene or cameras are not here."""
    if scene is None:
        raise InputRefused("The scene that this one was made from is not in the history, so it cannot be repeated.")
    if recipe.get("cameras"):
        raise InputRefused("This scene was edited with cameras of its own: repeat it with sdsedit replay.")
    request, config = record.splats_request(recipe)
    request = replace(request, references=tuple(each.tensor() for each in references))
    return SceneOrder(scene, request, config, tuple(references))


def _check_steps(config: SplatConfig) -> None:
    if config.steps is not None and config.steps > MAX_STEPS:
        raise InputRefused(f"steps is {config.steps}; on this page at most {MAX_STEPS} are run.")


# ---- the work


def run(
    prior: Prior,
    order: SceneOrder,
    model: dict[str, Any],
    on_progress: Callable[[tuple[str, Progress, Place | None]], None],
    go_on: Callable[[], bool],
    stop_after: int | None = None,  # steps, as a run that was stopped had them
) -> Edited:
    """Change a scene and tell how far it is, as (what is done, Progress, where the words are once that is known).

    Raises InputRefused for what only the model could tell, and Cancelled if there is nothing yet to keep.
    """
    result = _run(prior, order, on_progress, go_on, False, stop_after)
    if not result.steps_done and result.stopped:
        raise Cancelled
    recipe = record.splats_recipe(
        order.scene.name, order.scene.sha256, None, order.request, order.config, result, model, order.references
    )
    return Edited(order, result, recipe, tuple(_said(order, result)))


def find(
    prior: Prior,
    order: SceneOrder,
    on_progress: Callable[[Any], None],
    go_on: Callable[[], bool],
) -> Place:
    """Where the words are; nothing is changed. Cancelled: it was stopped before they were found."""
    stopped = False

    def asked() -> bool:
        nonlocal stopped
        stopped = stopped or not go_on()
        return not stopped

    result = _run(prior, order, on_progress, asked, True)
    if stopped:
        raise Cancelled
    return Place(result.weight, result.words, order.config.threshold)


def _run(
    prior: Prior,
    order: SceneOrder,
    on_progress: Callable[[Any], None],
    go_on: Callable[[], bool],
    only_find: bool,
    stop_after: int | None = None,
) -> SplatResult:
    began = last = time.perf_counter()
    place: Place | None = None
    shown = ""
    steps = 0

    def on_step(step: Step) -> bool:
        nonlocal last, place, shown, steps
        now = time.perf_counter()
        if place is None and step.weight is not None and step.stage != "looking":
            weight = step.weight.detach().float().cpu().numpy().copy()
            place = Place(weight, (), order.config.threshold)
        if only_find and step.stage != "looking":
            return False
        if now - last >= PREVIEW_EVERY or step.stage != shown or step.index == step.total - 1:
            last, shown = now, step.stage
            left = (now - began) / (step.index + 1) * (step.total - step.index - 1)
            total = max(step.total // 2, 1) if only_find else step.total
            progress = Progress(min(step.index + 1, total), total, left, images.to_array(step.preview()))
            on_progress((_DOING.get(step.stage, step.stage), progress, place))
        steps += step.stage == "changing"
        return go_on() and steps != stop_after

    return change(order.scene.splats, prior, order.request, order.config, None, on_step)


def _said(order: SceneOrder, result: SplatResult) -> list[str]:
    count = len(order.scene.splats)
    parts = [("changed", result.changed), ("removed", result.removed), ("added", result.added)]
    said = ", ".join(f"{number:,} {what}" for what, number in parts if number) or "nothing changed"
    lines = [f"{result.kept:,} of {count:,} Gaussians are the file's own, bit for bit; {said}."]
    if words := ", ".join(printable(word, 60) for word in result.words):
        lines.append(f"The place was found by: {words}.")
    psnr = result.background_psnr
    if psnr == float("inf"):
        lines.append("Seen from sides that the edit did not use, all around it looks exactly as before.")
    elif psnr == psnr:
        eye = "no eye tells it from before" if psnr >= 40 else "its rim shows a little" if psnr >= 30 else "it shows"
        lines.append(f"Seen from sides that the edit did not use, what is around it: {eye} ({psnr:.0f} dB).")
    if result.stopped == "cancelled":
        lines.append(f"Stopped after {result.steps_done} steps; this is what was there.")
    elif result.stopped:
        lines.append(f"The run ended early: {result.stopped}.")
    return [*lines, *order.scene.notes, *result.notes]


# ---- what is shown and given out


def packed(scene: Splats, weight: np.ndarray | None = None) -> bytes:  # [N] in 0..1
    """A scene for the viewer: 32 bytes a Gaussian (a .splat), then the weights, a byte each."""
    values = np.zeros(len(scene)) if weight is None else weight
    return splats.encode(scene, "scene.splat") + np.clip(np.rint(255 * values), 0, 255).astype(np.uint8).tobytes()


def weight_after(edited: Edited) -> np.ndarray:
    """[M], the weights of the Gaussians after the change: those of the ones that they came from, 1 for new ones."""
    result = edited.result
    return np.where(result.parent >= 0, result.weight[np.maximum(result.parent, 0)], 1.0)


def camera(scene: SceneFile) -> dict[str, Any]:
    """Where the viewer stands at first: in front, a little above, with everything in the picture."""
    four = around([scene.splats], 4, 256, scene.up, _ELEVATION)
    eyes = four.positions.double().cpu().numpy()  # at right angles: their middle is above the centre
    up = np.asarray(scene.up, dtype=np.float64) / np.linalg.norm(scene.up)
    middle = eyes.mean(0)
    height = np.linalg.norm(eyes[0] - middle) * np.tan(np.radians(_ELEVATION))
    centre = middle - height * up
    return {
        "scene": scene.sha256,
        "eye": (centre + 1.1 * (eyes[0] - centre)).tolist(),
        "centre": centre.tolist(),
        "up": up.tolist(),
        "fov": FOV,
    }


def picture(scene: Splats, like: SceneFile, side: int = 256) -> np.ndarray:  # [side, side, 3] uint8
    """A scene from the front, with the camera that frames `like`."""
    return photographs(scene, around([like.splats], 4, side, like.up, _ELEVATION)[[0]])[0]


def scene_bytes(edited: Edited, ending: str) -> bytes:
    """The changed scene as a file; a .ply carries its recipe."""
    scene = edited.result.splats
    if ending != ".ply":
        return splats.encode(record.with_recipe(scene, None), f"x{ending}")
    try:
        return splats.encode(record.with_recipe(scene, edited.recipe), "x.ply")
    except InputRefused:
        raise
    except ValueError:  # with what its header holds already, the recipe is too long
        return splats.encode(record.with_recipe(scene, None), "x.ply")


def film_of(edited: Edited, suffix: str = ".mp4") -> bytes:
    """Before and after side by side, once round."""
    scene = edited.order.scene
    return orbit_film([scene.splats, edited.result.splats], suffix, up=scene.up)


def summary(edited: Edited) -> str:
    """What is to be said about a change, as one HTML line for each sentence."""
    return "".join(f"<p>{html.escape(printable(line, 1000))}</p>" for line in edited.lines)


def found_line(place: Place) -> str:
    """How much of a scene the words are."""
    inside = int((place.weight >= place.threshold).sum())
    words = ", ".join(f"\u201c{printable(word, 60)}\u201d" for word in place.words) or "the words"
    share = 100 * inside / max(len(place.weight), 1)
    if not inside:
        return f"The model is not sure enough of {words} anywhere in this scene: nothing would change."
    return f"Where the model sees {words}: the brighter, the surer. That is {share:.0f} % of the scene."


def continued(edited: Edited, path: Path) -> SceneFile:
    """The changed scene, which lies at `path`, as the one to change next."""
    before, data = edited.order.scene, path.read_bytes()
    return SceneFile(path.name, hashlib.sha256(data).hexdigest(), path, edited.result.splats, before.up, before.notes)


def _stem(name: str) -> str:
    stem = name
    for ending in (".compressed.ply", ".ply", ".spz"):
        if stem.lower().endswith(ending):
            stem = stem[: -len(ending)]
            break
    return Path(_safe(stem)).name.removesuffix("-edited") or "scene"


def _safe(name: str) -> str:
    """A name without folders and odd characters."""
    return "".join(c if c.isalnum() or c in "-_. " else "_" for c in Path(name).name)[-80:].lstrip(".") or "scene.ply"
