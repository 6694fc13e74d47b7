"""The Splats tab: widgets and their wiring. What they do is in splat_work; what needs the model goes to the worker.

The scene is drawn in the browser by viewer/splats.js, whose text is in the page itself.
"""

from __future__ import annotations

import asyncio
import html
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdsedit.errors import InputRefused
from sdsedit.guidance import MIN_STRENGTH
from sdsedit.prior.load import builtin_path
from sdsedit.request import MAX_STYLE_WEIGHT
from sdsedit.splats.change import SplatConfig
from sdsedit.web import image_work, looks, splat_work
from sdsedit.web.events import (
    done,
    handler,
    look_at,
    news,
    on_press,
    path_of,
    place_to_serve,
    press_saved,
    waiting_line,
)
from sdsedit.web.history import History
from sdsedit.web.sessions import Sessions
from sdsedit.web.settings import Settings
from sdsedit.web.splat_work import Edited, Place, SceneDesk, SceneOrder, SceneTable
from sdsedit.web.worker import Job, Worker

# Scenes that ship with sdsedit, and a change of each that the built-in model does well.
EXAMPLES = {
    "still-life": (
        "Still life",
        "an apple, a pear and a cup on a wooden table",
        "a green apple, a pear and a cup on a wooden table",
    ),
    "snowman": (
        "Snowman",
        "a snowman wearing a top hat, and a balloon, on snow",
        "a snowman wearing a top hat, and a blue balloon, on snow",
    ),
}
KINDS = [
    ("Tell it from the words", ""),
    ("Recolour: shapes stay", "recolour"),
    ("Restyle", "restyle"),
    ("Replace one thing by another", "replace"),
    ("Add a thing", "add"),
    ("Take a thing away", "delete"),
]
WHERE = [("At the new words", "new"), ("At words I choose", "words")]
QUICK_VIEWS = 8  # from which a word that was pressed is looked for
EMPTY = "Drop a scene, or take an example."
LOOKS = (
    "The words say what changes and where; these pictures say what it looks like there. Not needed. With Restyle as "
    "the kind of change and no new words the whole scene takes the look."
)
READY = "Drag to look around. Press a word to see where it is in the scene."
ON_CHIP = on_press("word", number=True)
ON_EXAMPLE = on_press("example")
VIEWER = """
<div class="splats" data-state="empty">
  <div class="picture">
    <canvas tabindex="0" role="img" aria-label="The scene"></canvas>
    <div class="edge" hidden></div>
    <p class="said" role="status"></p>
  </div>
  <label class="compare" hidden><span>Before</span>
    <input class="line" type="range" min="0" max="100" value="100" aria-label="Line between before and after">
    <span>After</span></label>
  <div class="tools">
    <label class="heat" hidden><input type="checkbox"> Show where the words are</label>
    <button type="button" class="turn" aria-pressed="false">Turn</button>
    <button type="button" class="home">Reset the view</button>
  </div>
  <p class="keys">Drag or press the arrow keys to look around; pinch, + and - come nearer and go back.</p>
</div>
"""
SAVE = press_saved("splat-saved")
LOOK = look_at("splat-viewer")
_SCRIPT = Path(__file__).parent / "viewer" / "splats.js"


def examples() -> dict[str, Path]:
    """The example scenes that are here."""
    folder = builtin_path().parent / "splats"
    return {name: folder / f"{name}.ply" for name in EXAMPLES if (folder / f"{name}.ply").is_file()}


class SplatTab:
    """One page's Splats tab; `desks` has what each person has in front of them."""

    def __init__(
        self, worker: Worker, settings: Settings, model: Callable[[Any], dict[str, Any]], history: History | None
    ) -> None:
        self.worker, self.settings, self.model, self.history = worker, settings, model, history
        self.desks: Sessions[SceneDesk] = Sessions(SceneDesk, settings.idle, settings.sessions)
        self._lay_out()
        self._wire()
        self._wire_api()

    # ---- widgets

    def _lay_out(self) -> None:
        import gradio as gr

        usual = SplatConfig()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=4, min_width=300):
                self.file = gr.File(
                    label="Scene (.ply or .spz)", file_types=[".ply", ".spz"], file_count="single", type="filepath",
                    height=150, elem_id="splat-file",
                )  # fmt: skip
                self.file.preprocess = path_of  # ours are read by io.splats
                shown = examples()
                self.examples = gr.HTML(
                    _example_buttons(shown), js_on_load=ON_EXAMPLE, elem_id="splat-examples", visible=bool(shown)
                )
                self.source = gr.Textbox(
                    label="What the scene shows", placeholder=EXAMPLES["still-life"][1], elem_id="splat-source",
                    lines=2, max_lines=3, info="Name everything in it: what has a name is told apart.",
                )  # fmt: skip
                self.target = gr.Textbox(
                    label="What it should show", placeholder=EXAMPLES["still-life"][2], elem_id="splat-target",
                    lines=2, max_lines=3,
                )  # fmt: skip
                self.chips = gr.HTML(image_work.chips((), set()), js_on_load=ON_CHIP, elem_id="splat-chips")
                self.where = gr.Radio(WHERE, value="new", label="Where to edit", elem_id="splat-where")
                with gr.Accordion("Take the look of another picture", open=False, elem_id="splat-look-of"):
                    gr.HTML(f'<p class="hint small">{LOOKS}</p>')
                    self.looks = looks.Looks(self.settings, "splat-looks")
                    self.style_weight = gr.Slider(
                        0, MAX_STYLE_WEIGHT, value=usual.style_weight, step=0.5, label="How hard the look pulls",
                        elem_id="splat-style-weight", info="1 is usual; 0 leaves the look out.",
                    )  # fmt: skip
                with gr.Accordion("More settings", open=False, elem_id="splat-more"):
                    self.kind = gr.Dropdown(KINDS, value="", label="Kind of change", elem_id="splat-kind")
                    self.steps = gr.Slider(
                        0, 300, value=0, step=10, label="Steps", elem_id="splat-steps",
                        info="0 takes what suits the kind; more take longer and change more.",
                    )  # fmt: skip
                    self.views = gr.Slider(
                        4, 32, value=usual.views, step=4, label="Views", elem_id="splat-views",
                        info="From how many sides it is looked at: more are slower and surer.",
                    )  # fmt: skip
                    self.threshold = gr.Slider(
                        0.1, 0.9, value=usual.threshold, step=0.05, label="How sure the model must be",
                        elem_id="splat-threshold", info="Lower takes in more of the scene, higher less.",
                    )  # fmt: skip
                    self.strength = gr.Slider(
                        MIN_STRENGTH, 3.0, value=1.0, step=0.1, label="Strength", elem_id="splat-strength",
                        info="1 is usual; less changes less, more changes more.",
                    )  # fmt: skip
                    self.seed = gr.Number(
                        0, precision=0, label="Seed", elem_id="splat-seed",
                        info="The same number gives the same result; another one, another.",
                    )  # fmt: skip
                with gr.Row():
                    self.run = gr.Button("Change", variant="primary", elem_id="splat-run", scale=2)
                    self.look = gr.Button("Show where", elem_id="splat-look", scale=1, min_width=130)
            with gr.Column(scale=5, min_width=320):
                self.stage = gr.HTML(visible=False, elem_id="splat-stage")
                self.stop = gr.Button(
                    "Stop, and keep what is there", variant="stop", visible=False, elem_id="splat-stop"
                )
                script = _SCRIPT.read_text("utf-8") + "\nmount(element, props, watch);\n"
                self.viewer = gr.HTML(
                    {"files": [], "said": EMPTY}, html_template=VIEWER, js_on_load=script, elem_id="splat-viewer"
                )
                self.notes = gr.HTML(elem_id="splat-notes", elem_classes="notes", visible=False)
                with gr.Row(elem_id="splat-after", visible=False) as self.after:
                    self.save = gr.Button("Download PLY", variant="primary", elem_id="splat-save", min_width=120)
                    self.save_spz = gr.Button("SPZ", elem_id="splat-save-spz", min_width=70)
                    self.save_film = gr.Button("Film", elem_id="splat-save-film", min_width=80)
                with gr.Row():
                    self.go_on = gr.Button("Continue", elem_id="splat-continue", min_width=100, visible=False)
                    self.undo = gr.Button("Undo", elem_id="splat-undo", min_width=90, visible=False)
                self.saved = gr.DownloadButton("Download", visible="hidden", elem_id="splat-saved")
        # What the API's functions take and give; a person sees the widgets above.
        self._api = [
            gr.File(label="scene", visible=False),
            gr.Textbox("", label="source", visible=False),
            gr.Textbox(label="target", visible=False),
            gr.Textbox("", label="words", visible=False),
            gr.Textbox("", label="kind", visible=False),
            gr.Number(1.0, label="strength", visible=False),
            gr.Number(0, label="steps", visible=False),
            gr.Number(usual.views, label="views", visible=False),
            gr.Number(usual.threshold, label="threshold", visible=False),
            gr.Number(0, label="seed", visible=False),
            gr.File(label="references", file_count="multiple", visible=False),
            gr.Number(usual.style_weight, label="style_weight", visible=False),
        ]
        self._api_file = gr.File(label="PLY", visible=False)
        self._api_info = gr.JSON(label="recipe", visible=False)
        self._api_button = gr.Button(visible=False)

    # ---- wiring

    def _wire(self) -> None:
        self.table = table = [
            self.file, self.source, self.target, self.chips, self.stage, self.viewer, self.stop, self.notes,
            self.after, self.go_on, self.undo, self.run, self.look,
        ]  # fmt: skip
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        model: dict[str, Any] = {**quiet, "concurrency_id": "model", "concurrency_limit": None}
        latest: dict[str, Any] = {**model, "trigger_mode": "always_last"}
        texts = [self.source, self.target]
        settings = [
            *texts, self.where, self.kind, self.strength, self.steps, self.views, self.threshold, self.seed,
            self.looks.gallery, self.style_weight,
        ]  # fmt: skip

        dropped = self.file.upload(handler(self.take_file), [self.file, *texts], table, **quiet)
        dropped.failure(handler(self.show_again), None, table, **quiet)
        self.file.clear(handler(self.clear), texts, table, **quiet)
        self.examples.select(handler(self.take_example, event=True), None, table, **quiet)
        for text in texts:
            text.change(handler(self.look_at_words), texts, self.chips, **latest)
        self.where.change(handler(self.show_where), self.where, self.chips, **quiet)
        pressed = self.chips.select(handler(self.press_word, event=True), settings, table, trigger_mode="once", **model)
        pressed.failure(handler(self.show_again), None, table, **quiet)
        for button, start in ((self.run, self.change), (self.look, self.show_place)):
            event = button.click(handler(start), settings, table, trigger_mode="once", **model)
            event.failure(handler(self.show_again), None, table, **quiet)
            button.click(None, None, None, js=LOOK, **quiet)
        self.chips.select(None, None, None, js=LOOK, **quiet)
        self.stop.click(handler(self.stop_running), None, self.stop, queue=False, **quiet)
        self.go_on.click(handler(self.continue_from), None, table, **quiet)
        self.undo.click(handler(self.take_back), None, table, **quiet)
        for button, write in ((self.save, self.write_ply), (self.save_spz, self.write_spz)):
            written = button.click(handler(write), None, self.saved, **quiet)
            written.success(None, None, None, js=SAVE, **quiet)
        filmed = self.save_film.click(handler(self.write_film), None, [self.saved, self.save_film], **quiet)
        filmed.success(None, None, None, js=SAVE, **quiet)
        filmed.failure(lambda: gr_film(True), None, self.save_film, **quiet)

    def _wire_api(self) -> None:
        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": None}
        self._api_button.click(
            handler(self.edit_scene), self._api, [self._api_file, self._api_info], api_name="edit_scene", **model
        )

    # ---- what a person did

    def take_file(self, person: str, path: str | None, source: str, target: str) -> dict[Any, Any]:
        scene = splat_work.read_scene(path or "", self.settings.max_upload)
        desk = self.desks.of(person)
        desk.put(SceneTable(scene, source, target))
        return self._show(desk, {self.file, self.source, self.target})

    def take_example(self, person: str, said: dict[str, Any]) -> dict[Any, Any]:
        shown, name = examples(), said.get("example")
        if name not in shown:
            raise InputRefused("There is no such example.")
        return self.take(person, str(shown[name]), *EXAMPLES[name][1:])

    def take(self, person: str, path: str, source: str, target: str) -> dict[Any, Any]:
        """Put a scene on the desk."""
        scene = splat_work.read_scene(path, self.settings.max_upload)
        desk = self.desks.of(person)
        desk.put(SceneTable(scene, source, target))
        return self._show(desk)

    def clear(self, person: str, source: str, target: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        desk.put(SceneTable(None, source, target))
        return self._show(desk, {self.file, self.source, self.target})

    def show_where(self, person: str, where: str) -> str:
        desk = self.desks.of(person)
        return image_work.chips(desk.words, desk.chosen if where == "words" else set())

    async def look_at_words(self, person: str, source: str, target: str) -> str:
        desk = self.desks.of(person)
        job = self.worker.submit(person, lambda prior, job: image_work.words_of(prior, source, target), quick=True)
        words = await done(self.worker, job)
        if words != desk.words:
            desk.words, desk.chosen = words, set()
        return image_work.chips(desk.words, desk.chosen)

    async def press_word(self, person: str, said: dict[str, Any], *settings: Any) -> AsyncIterator[dict[Any, Any]]:
        desk = self.desks.of(person)
        index = said.get("word")
        if not isinstance(index, int) or not 0 <= index < len(desk.words):
            raise InputRefused("That word is no longer in the text.")
        if settings[2] == "words":
            desk.chosen ^= {index}
        quick = (*settings[:6], min(settings[6], QUICK_VIEWS), *settings[7:])
        row = image_work.chips(desk.words, desk.chosen if settings[2] == "words" else set(), index)
        if desk.table.scene is None:
            raise InputRefused("Drop a scene first, to see where this word is in it.")
        order = await asyncio.to_thread(self._order, desk, [desk.words[index].text], *quick)
        async with aclosing(self._find(person, order, settings, {self.chips: row})) as updates:
            async for update in updates:
                yield update

    async def show_place(self, person: str, *settings: Any) -> AsyncIterator[dict[Any, Any]]:
        order = await asyncio.to_thread(self._order, self.desks.of(person), None, *settings)
        async with aclosing(self._find(person, order, settings, {})) as updates:
            async for update in updates:
                yield update

    async def change(self, person: str, *settings: Any) -> AsyncIterator[dict[Any, Any]]:
        async with aclosing(self._change(person, settings)) as updates:
            async for update in updates:
                yield update

    def stop_running(self, person: str) -> Any:
        import gradio as gr

        self.worker.cancel_all(person)
        return gr.update(value="Stopping after this step", interactive=False)

    def continue_from(self, person: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        edited = self._edited(person)
        path = Path(self._file(edited.name(".ply"), splat_work.scene_bytes(edited, ".ply")))
        target = edited.order.request.target
        desk.put(SceneTable(splat_work.continued(edited, path), target, target))
        return self._show(desk)

    def take_back(self, person: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        desk.undo()
        return self._show(desk)

    def show_again(self, person: str) -> dict[Any, Any]:
        """After a refusal: what was there before, with nothing running."""
        return self._show(self.desks.of(person), {self.source, self.target, self.chips})

    def write_ply(self, person: str) -> str:
        edited = self._edited(person)
        return self._file(edited.name(".ply"), splat_work.scene_bytes(edited, ".ply"))

    def write_spz(self, person: str) -> str:
        edited = self._edited(person)
        return self._file(edited.name(".spz"), splat_work.scene_bytes(edited, ".spz"))

    async def write_film(self, person: str) -> AsyncIterator[tuple[Any, Any]]:
        import gradio as gr

        edited = self._edited(person)
        yield gr.skip(), gr_film(False)
        data = await asyncio.to_thread(splat_work.film_of, edited)
        yield self._file(edited.name(".mp4"), data), gr_film(True)

    def leave(self, person: str) -> None:
        """The tab was closed."""
        self.worker.cancel_all(person)
        self.desks.forget(person)

    # ---- the API

    async def edit_scene(
        self,
        person: str,
        scene: str,
        source: str = "",
        target: str = "",
        words: str = "",
        kind: str = "",
        strength: float = 1.0,
        steps: int = 0,
        views: int = 16,
        threshold: float = 0.4,
        seed: int = 0,
        references: list[str] | None = None,
        style_weight: float = SplatConfig.style_weight,
    ) -> tuple[str, dict[str, Any]]:
        """Change a scene of Gaussian splats with words; what is not edited stays bit for bit.

        scene: a .ply or .spz file. source: what it shows. target: what it should show. words: whose place is edited,
        between commas; empty: the new ones. kind: recolour, restyle, replace, add or delete; empty: told from the
        words. strength: 0.1 to 10. steps: 1 to 600; 0: what suits the kind. views: 4 to 256. threshold: 0.05 to 0.95.
        seed: 0 to 2^63 - 1. references: up to 8 pictures whose look is taken. style_weight: how hard it pulls, 0 to 10.
        Gives a PLY with its recipe inside, and the recipe.
        """
        given = await asyncio.to_thread(splat_work.read_scene, scene or "", self.settings.max_upload)
        named = [word.strip() for word in (words or "").split(",") if word.strip()]
        taken = await asyncio.to_thread(looks.read, references, self.settings.max_pixels)
        order = splat_work.scene_order(
            given, source, target, named, kind, strength, steps, views, threshold, seed, taken, style_weight
        )
        edited: Edited = await done(self.worker, self._submit(person, order))
        path = await asyncio.to_thread(lambda: self._file(edited.name(".ply"), splat_work.scene_bytes(edited, ".ply")))
        with suppress(InputRefused):  # the answer is there, whether the history takes it or not
            await asyncio.to_thread(self._remember, edited, Path(path))
        return path, edited.recipe

    # ---- inside

    def _order(
        self, desk: SceneDesk, words: list[str] | None, source: str, target: str, where: str, kind: str, strength: Any,
        steps: Any, views: Any, threshold: Any, seed: Any, taken: Sequence[str] | None, style_weight: Any,
    ) -> SceneOrder:  # fmt: skip
        scene = desk.table.scene
        if scene is None:
            raise InputRefused("There is no scene yet: drop a .ply or .spz file, or take an example.")
        if where == "words" and words is None:
            words = [desk.words[k].text for k in sorted(desk.chosen) if k < len(desk.words)]
            if not words:
                raise InputRefused("No word is chosen: press the words whose place should change.")
        return splat_work.scene_order(
            scene, source, target, words, kind, strength, steps, views, threshold, seed, self.looks.read(taken),
            style_weight,
        )  # fmt: skip

    def _submit(self, person: str, order: SceneOrder, only_find: bool = False) -> Job:
        def run(prior: Any, job: Job) -> Any:
            def tell(report: Any) -> None:
                job.report = report

            def go_on() -> bool:
                job.between_steps()
                return not job.cancelled

            if only_find:
                return splat_work.find(prior, order, tell, go_on)
            return splat_work.run(prior, order, self.model(prior), tell, go_on)

        return self.worker.submit(person, run, kind="splats")

    async def _watch(self, person: str, job: Job, first: dict[Any, Any]) -> AsyncGenerator[dict[Any, Any], None]:
        """What is shown while a job runs."""
        import gradio as gr

        scene = self.desks.of(person).table.scene
        last = None
        known = False
        first = first | {
            self.after: gr.update(visible=False),
            self.go_on: gr.update(visible=False),
            self.undo: gr.update(visible=False),
            self.notes: gr.update(visible=False),
            self.stop: gr.update(visible=True, value="Stop, and keep what is there", interactive=True),
            self.run: gr.update(interactive=False),
            self.look: gr.update(interactive=False),
        }
        async with aclosing(news(self.worker, job)) as reports:
            async for report in reports:
                share = 0.0
                if report[0] == "waiting":
                    caption = waiting_line(report[1], self.worker.state)
                else:
                    doing, progress, place = report
                    last, share = progress.preview, progress.done / progress.total
                    caption = f"{doing}. {image_work.progress_line(progress)}"
                    if place is not None and not known and scene is not None:
                        known = True
                        first[self.viewer] = await asyncio.to_thread(self._view, SceneTable(scene, place=place))
                if last is None:
                    shown = image_work.message(caption)
                else:
                    shown = image_work.figure(last, caption, "The scene so far", share)
                yield {**first, self.stage: gr.update(visible=True, value=shown)}
                first = {}

    async def _find(
        self, person: str, order: SceneOrder, settings: tuple[Any, ...], first: dict[Any, Any]
    ) -> AsyncGenerator[dict[Any, Any], None]:
        job = self._submit(person, order, only_find=True)
        async with aclosing(self._watch(person, job, first)) as updates:
            async for update in updates:
                yield update
        place: Place = job.result(0)
        desk = self.desks.of(person)
        desk.turn(replace(desk.table, source=settings[0], target=settings[1], place=place, edited=None))
        yield await asyncio.to_thread(self._show, desk, {self.source, self.target, self.chips, self.file})

    async def _change(self, person: str, settings: tuple[Any, ...]) -> AsyncGenerator[dict[Any, Any], None]:
        desk = self.desks.of(person)
        order = await asyncio.to_thread(self._order, desk, None, *settings)
        job = self._submit(person, order)
        async with aclosing(self._watch(person, job, {})) as updates:
            async for update in updates:
                yield update
        edited: Edited = job.result(0)
        desk = self.desks.of(person)
        desk.put(SceneTable(order.scene, settings[0], settings[1], None, edited))
        yield await asyncio.to_thread(self._show, desk, {self.source, self.target, self.chips, self.file})

        def keep() -> None:
            path = self._file(edited.name(".ply"), splat_work.scene_bytes(edited, ".ply"))
            self._remember(edited, Path(path))

        await asyncio.to_thread(keep)

    def _remember(self, edited: Edited, path: Path) -> None:
        """Put a scene into the history."""
        if self.history is None:
            return
        scene = edited.order.scene
        before, after = (splat_work.picture(each, scene) for each in (scene.splats, edited.result.splats))
        inputs = {"input": scene.path} if scene.path.is_file() else {}
        inputs |= image_work.references_kept(edited.order.references, self.settings.folder / secrets.token_hex(16))
        self.history.add("splats", path, before, after, edited.recipe, inputs)

    def _edited(self, person: str) -> Edited:
        edited = self.desks.of(person).table.edited
        if edited is None:
            raise InputRefused("There is no changed scene of yours here yet.")
        return edited

    def _view(self, table: SceneTable) -> dict[str, Any]:
        """What the viewer shows."""
        scene, edited, place = table.scene, table.edited, table.place
        if scene is None:
            return {"files": [], "said": EMPTY}
        if edited is not None:
            result = edited.result
            shown = [
                splat_work.packed(scene.splats, result.weight),
                splat_work.packed(result.splats, splat_work.weight_after(edited)),
            ]
            said = "Left of the line is before, right of it after; drag the slider."
        else:
            shown = [splat_work.packed(scene.splats, None if place is None else place.weight)]
            said = READY if place is None else splat_work.found_line(place)
        return {
            "files": [_served(self._file("scene.bin", data)) for data in shown],
            "weights": edited is not None or place is not None,
            "heat": edited is None and place is not None,
            "camera": splat_work.camera(scene),
            "said": said,
            "alt": f"The scene {scene.name}" + (", before and after" if edited is not None else ""),
        }

    def _show(self, desk: SceneDesk, but: set[Any] | None = None) -> dict[Any, Any]:
        """Every widget as the top table has it, `but` for those that are right already."""
        import gradio as gr

        table = desk.table
        edited = table.edited
        updates: dict[Any, Any] = {
            self.file: None,
            self.source: table.source,
            self.target: table.target,
            self.chips: image_work.chips(desk.words, desk.chosen),
            self.stage: gr.update(visible=False, value=""),
            self.viewer: self._view(table),
            self.stop: gr.update(visible=False),
            self.notes: gr.update(
                visible=edited is not None, value="" if edited is None else splat_work.summary(edited)
            ),
            self.after: gr.update(visible=edited is not None),
            self.go_on: gr.update(visible=edited is not None),
            self.undo: gr.update(visible=len(desk.tables) > 1),
            self.run: gr.update(interactive=True),
            self.look: gr.update(interactive=True),
        }
        return {widget: update for widget, update in updates.items() if widget not in (but or ())}

    def _file(self, name: str, data: bytes) -> str:
        """A file that Gradio may serve, in a folder that nobody can guess."""
        path = place_to_serve(self.settings.folder, name)
        path.write_bytes(data)
        return str(path)


def gr_film(ready: bool) -> Any:
    """The button of the film: making one takes a while."""
    import gradio as gr

    return gr.update(value="Film" if ready else "Filming ...", interactive=ready)


def _served(path: str) -> dict[str, Any]:
    """A file that the page may fetch: Gradio puts its address in."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _example_buttons(shown: dict[str, Path]) -> str:
    buttons = "".join(
        f'<button type="button" class="chip" data-example="{name}">{html.escape(EXAMPLES[name][0])}</button>'
        for name in shown
    )
    return f'<div class="chips" role="group" aria-label="Examples"><span class="hint">Examples</span>{buttons}</div>'
