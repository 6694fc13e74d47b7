"""The Sketch tab: widgets and their wiring. What they do is in sketch_work; what needs the model goes to the worker."""

from __future__ import annotations

import asyncio
import base64
import html
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sdsedit.errors import InputRefused
from sdsedit.guidance import MIN_STRENGTH
from sdsedit.io import svg
from sdsedit.prior.load import builtin_path
from sdsedit.request import MAX_STYLE_WEIGHT
from sdsedit.sketch.draw import SketchConfig
from sdsedit.web import image_work, looks, sketch_work
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
from sdsedit.web.image_work import Progress
from sdsedit.web.sessions import Sessions
from sdsedit.web.settings import Settings
from sdsedit.web.sketch_work import ChangeOrder, Drawing, DrawOrder, Made, SketchDesk, SketchTable
from sdsedit.web.worker import Job, Worker

# Drawings that ship with sdsedit, and a change of each that the built-in model does well.
EXAMPLES = {
    "cat-face": ("a cat", "a cat wearing a crown"),
    "owl": ("an owl", "an owl wearing a top hat"),
    "dog-face": ("a dog", "a blue dog"),
    "rabbit-face": ("a rabbit", "a rabbit wearing a bow"),
    "frog": ("a frog", "a pink frog"),
    "panda": ("a panda", "a panda wearing sunglasses"),
}
STYLES = [("Ink", "ink"), ("Colour", "colour"), ("Icon: filled areas", "icon")]
MODES = [("Draw from words", "draw"), ("Change a drawing", "change")]
EMPTY = "Say what to draw, and it will appear here, stroke by stroke."
LOOKS = "The drawing takes colours and lines of these pictures. Not needed. An ink drawing can take lines only."
BLANK = "Drop an SVG, or take an example."
READY = "Say what the drawing should show, then press Change."
BEGINNING = "The model draws a picture of the words first; the strokes follow it."
ON_EXAMPLE = on_press("example", number=True)
SAVE = press_saved("sketch-saved")
LOOK = look_at("sketch-views")


def examples() -> list[Drawing]:
    """The example drawings that are here: art on a page with room around it."""
    folder = builtin_path().parent / "art" / "fluent-flat"
    found = []
    for name in EXAMPLES:
        path = folder / f"{name}.svg"
        if path.is_file():
            body = re.sub(r"^<svg[^>]*>|</svg>\s*$", "", path.read_text("utf-8").strip())
            page = f'<rect width="128" height="128" fill="#fff"/><g transform="translate(18 30) scale(2.9)">{body}</g>'
            data = (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128" width="512" height="512">{page}</svg>'
            )
            found.append(sketch_work.drawing_of(data.encode(), f"{name}.svg"))
    return found


class SketchTab:
    """One page's Sketch tab; `desks` has what each person has in front of them."""

    def __init__(
        self, worker: Worker, settings: Settings, model: Callable[[Any], dict[str, Any]], history: History | None
    ) -> None:
        self.worker, self.settings, self.model, self.history = worker, settings, model, history
        self.desks: Sessions[SketchDesk] = Sessions(SketchDesk, settings.idle, settings.sessions)
        self._lay_out()
        self._wire()
        self._wire_api()

    # ---- widgets

    def _lay_out(self) -> None:
        import gradio as gr

        usual = SketchConfig()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=4, min_width=300):
                self.mode = gr.Radio(MODES, value="draw", show_label=False, elem_id="sketch-mode", container=False)
                with gr.Column(elem_id="sketch-draw") as self.drawing:
                    self.prompt = gr.Textbox(
                        label="What to draw", placeholder="a cat wearing a crown", elem_id="sketch-prompt", max_lines=3,
                        info="Name a thing; describing words may stand before it.",
                    )  # fmt: skip
                    self.style = gr.Radio(STYLES, value="ink", label="Drawn with", elem_id="sketch-style")
                    self.strokes = gr.Slider(
                        8, 256, value=usual.strokes, step=4, label="Number of strokes", elem_id="sketch-strokes",
                        info="Few say only what matters, many make a rendering.",
                    )  # fmt: skip
                    with gr.Accordion("Take the look of another picture", open=False, elem_id="sketch-look"):
                        gr.HTML(f'<p class="hint small">{LOOKS}</p>')
                        self.looks = looks.Looks(self.settings, "sketch-looks")
                        self.style_weight = gr.Slider(
                            0, MAX_STYLE_WEIGHT, value=usual.style_weight, step=0.1, label="How hard the look pulls",
                            elem_id="sketch-style-weight", info="0.5 is usual; 0 leaves the look out.",
                        )  # fmt: skip
                    with gr.Accordion("More settings", open=False):
                        self.background = gr.Checkbox(
                            False, label="Draw the surroundings too", elem_id="sketch-background",
                            info="Otherwise the paper stays white around the thing.",
                        )  # fmt: skip
                        self.width = gr.Slider(
                            0.3, 4, value=1.0, step=0.1, label="Width of the strokes", elem_id="sketch-width",
                            info="1 is usual, 2 is twice as wide.",
                        )  # fmt: skip
                        self.steps = gr.Slider(
                            20, 400, value=usual.steps, step=10, label="Steps", elem_id="sketch-steps",
                            info="More take longer and follow the words further.",
                        )  # fmt: skip
                        self.seed = gr.Number(
                            0, precision=0, label="Seed", elem_id="sketch-seed",
                            info="The same number gives the same drawing; another one, another.",
                        )  # fmt: skip
                with gr.Column(elem_id="sketch-change", visible=False) as self.changing:
                    self.file = gr.File(
                        label="Drawing (SVG)", file_types=[".svg", ".svgz"], file_count="single", type="filepath",
                        height=150, elem_id="sketch-file",
                    )  # fmt: skip
                    self.file.preprocess = path_of  # ours are read by io.svg
                    shown = examples()
                    self.examples = gr.HTML(
                        _example_buttons(shown), js_on_load=ON_EXAMPLE, elem_id="sketch-examples", visible=bool(shown)
                    )
                    self.source = gr.Textbox(
                        label="What the drawing shows", placeholder="a cat", max_lines=2,
                        elem_id="sketch-source", info="Not needed, but the change is better with it.",
                    )  # fmt: skip
                    self.target = gr.Textbox(
                        label="What it should show", placeholder="a cat wearing a crown",
                        max_lines=2, elem_id="sketch-target",
                    )  # fmt: skip
                    with gr.Accordion("More settings", open=False):
                        self.added = gr.Slider(
                            0, 64, value=24, step=1, label="New shapes at most", elem_id="sketch-added",
                            info="0 only changes or removes what is there.",
                        )  # fmt: skip
                        self.strength = gr.Slider(
                            MIN_STRENGTH, 3.0, value=1.0, step=0.1, label="Strength", elem_id="sketch-strength",
                            info="1 is usual; less changes less, more changes more.",
                        )  # fmt: skip
                        self.change_steps = gr.Slider(
                            10, 200, value=60, step=10, label="Steps of the shapes", elem_id="sketch-change-steps",
                            info="They follow the look at the whole picture.",
                        )  # fmt: skip
                        self.change_seed = gr.Number(
                            0, precision=0, label="Seed", elem_id="sketch-change-seed",
                            info="The same number gives the same result; another one, another.",
                        )  # fmt: skip
                self.run = gr.Button("Draw", variant="primary", elem_id="sketch-run")
            with gr.Column(scale=5, min_width=320):
                with gr.Tabs(selected="drawing", elem_id="sketch-views") as self.views:
                    with gr.Tab("Drawing", id="drawing", elem_id="sketch-view-drawing"):
                        self.stage = gr.HTML(image_work.message(EMPTY), elem_id="sketch-stage")
                    with gr.Tab("Before and after", id="pair", visible=False) as self.pair_tab:
                        self.pair = gr.HTML(elem_id="sketch-pair")
                    with gr.Tab("What changed", id="changed", visible=False) as self.changed_tab:
                        self.changed = gr.HTML(elem_id="sketch-changed")
                self.stop = gr.Button(
                    "Stop, and keep what is there", variant="stop", visible=False, elem_id="sketch-stop"
                )
                self.notes = gr.HTML(elem_id="sketch-notes", elem_classes="notes", visible=False)
                with gr.Row(elem_id="sketch-after", visible=False) as self.after:
                    self.save = gr.Button("Download SVG", variant="primary", elem_id="sketch-save", min_width=120)
                    self.save_png = gr.Button("PNG", elem_id="sketch-save-png", min_width=70)
                    self.save_film = gr.Button("Film", elem_id="sketch-save-film", min_width=80)
                    self.save_moving = gr.Button("Moving SVG", elem_id="sketch-save-moving", min_width=110)
                with gr.Row():
                    self.again = gr.Button("Watch it being drawn", elem_id="sketch-again", min_width=150, visible=False)
                    self.go_on = gr.Button(
                        "Change it by words", elem_id="sketch-continue", min_width=150, visible=False
                    )
                    self.undo = gr.Button("Undo", elem_id="sketch-undo", min_width=90, visible=False)
                self.saved = gr.DownloadButton("Download", visible="hidden", elem_id="sketch-saved")
        # What the API's functions take and give; a person sees the widgets above.
        self._api_draw = [
            gr.Textbox(label="prompt", visible=False),
            gr.Textbox("ink", label="style", visible=False),
            gr.Number(usual.strokes, label="strokes", visible=False),
            gr.Checkbox(False, label="background", visible=False),
            gr.Number(1.0, label="width", visible=False),
            gr.Number(usual.steps, label="steps", visible=False),
            gr.Number(0, label="seed", visible=False),
            gr.File(label="references", file_count="multiple", visible=False),
            gr.Number(usual.style_weight, label="style_weight", visible=False),
        ]
        self._api_change = [
            gr.File(label="drawing", visible=False),
            gr.Textbox(label="source", visible=False),
            gr.Textbox(label="target", visible=False),
            gr.Number(1.0, label="strength", visible=False),
            gr.Number(24, label="added", visible=False),
            gr.Number(60, label="steps", visible=False),
            gr.Number(0, label="seed", visible=False),
        ]
        self._api_file = gr.File(label="SVG", visible=False)
        self._api_info = gr.JSON(label="recipe", visible=False)
        self._api_button = gr.Button(visible=False)

    # ---- wiring

    def _wire(self) -> None:
        self.table = table = [
            self.mode, self.drawing, self.changing, self.file, self.source, self.target, self.views, self.stage,
            self.pair_tab, self.pair, self.changed_tab, self.changed, self.stop, self.notes, self.after, self.again,
            self.go_on, self.undo, self.run,
        ]  # fmt: skip
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        model: dict[str, Any] = {**quiet, "concurrency_id": "model", "concurrency_limit": None}
        words = [
            self.prompt, self.style, self.strokes, self.background, self.width, self.steps, self.seed,
            self.looks.gallery, self.style_weight,
        ]  # fmt: skip
        edit = [self.source, self.target, self.strength, self.added, self.change_steps, self.change_seed]

        self.mode.input(handler(self.show_mode), [self.mode, self.source, self.target], table, **quiet)
        dropped = self.file.upload(handler(self.take_file), [self.file, self.source, self.target], table, **quiet)
        dropped.failure(handler(self.show_again), None, table, **quiet)
        self.file.clear(handler(self.clear), [self.source, self.target], table, **quiet)
        self.examples.select(handler(self.take_example, event=True), None, table, **quiet)
        settings = [self.mode, *words, *edit]
        started = [self.run.click, self.prompt.submit, self.target.submit]
        for start in started:
            event = start(handler(self.start), settings, table, trigger_mode="once", **model)
            event.failure(handler(self.show_again), None, table, **quiet)
        self.run.click(None, None, None, js=LOOK, **quiet)
        self.stop.click(handler(self.stop_running), None, self.stop, queue=False, **quiet)
        self.again.click(handler(self.draw_again), None, [self.stage, self.views], **quiet)
        self.go_on.click(handler(self.continue_from), None, table, **quiet)
        self.undo.click(handler(self.take_back), None, table, **quiet)
        for button, write in (
            (self.save, self.write_svg), (self.save_png, self.write_png), (self.save_film, self.write_film),
            (self.save_moving, self.write_moving),
        ):  # fmt: skip
            written = button.click(handler(write), None, self.saved, **quiet)
            written.success(None, None, None, js=SAVE, **quiet)

    def _wire_api(self) -> None:
        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": None}
        made = [self._api_file, self._api_info]
        self._api_button.click(handler(self.draw_words), self._api_draw, made, api_name="draw_words", **model)
        self._api_button.click(handler(self.edit_drawing), self._api_change, made, api_name="edit_drawing", **model)

    # ---- what a person did

    def show_mode(self, person: str, mode: str, source: str, target: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        if mode != desk.table.mode:
            desk.turn(SketchTable("change" if mode == "change" else "draw", desk.table.drawing, source, target))
        return self._show(desk, {self.mode, self.file, self.source, self.target})

    def take_file(self, person: str, path: str | None, source: str, target: str) -> dict[Any, Any]:
        if not path:
            raise InputRefused("There is no drawing yet: drop an SVG, or take an example.")
        drawing = sketch_work.read_drawing(path, self.settings.max_upload)
        desk = self.desks.of(person)
        desk.put(SketchTable("change", drawing, source, target))
        return self._show(desk, {self.file, self.source, self.target})

    def take_example(self, person: str, said: dict[str, Any]) -> dict[Any, Any]:
        shown, index = examples(), said.get("example")
        if not isinstance(index, int) or not 0 <= index < len(shown):
            raise InputRefused("There is no such example.")
        desk = self.desks.of(person)
        desk.put(SketchTable("change", shown[index], *EXAMPLES[Path(shown[index].name).stem]))
        return self._show(desk)

    def take(self, person: str, path: str, source: str, target: str) -> dict[Any, Any]:
        """Put an SVG on the desk, to be changed."""
        drawing = sketch_work.read_drawing(path, self.settings.max_upload)
        desk = self.desks.of(person)
        desk.put(SketchTable("change", drawing, source, target))
        return self._show(desk)

    def clear(self, person: str, source: str, target: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        desk.put(SketchTable("change", None, source, target))
        return self._show(desk, {self.file, self.source, self.target})

    async def start(self, person: str, mode: str, *settings: Any) -> AsyncIterator[dict[Any, Any]]:
        async with aclosing(self._start(person, mode, settings)) as updates:
            async for update in updates:
                yield update

    def stop_running(self, person: str) -> Any:
        import gradio as gr

        self.worker.cancel_all(person)
        return gr.update(value="Stopping after this step", interactive=False)

    def draw_again(self, person: str) -> tuple[str, Any]:
        import gradio as gr

        made = self._made(person)
        moving = sketch_work.animated(made)
        # Without something new in it a browser takes the picture for the one whose animation has ended.
        moving += f"<!-- {secrets.token_hex(4)} -->".encode()
        return sketch_work.figure(moving, _caption(made), _alt(made)), gr.Tabs(selected="drawing")

    def continue_from(self, person: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        made = self._made(person)
        order = made.order
        shows = order.prompt if isinstance(order, DrawOrder) else order.request.target
        desk.put(SketchTable("change", sketch_work.drawing_of(made.svg, made.name), shows, shows))
        return self._show(desk)

    def take_back(self, person: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        desk.undo()
        return self._show(desk)

    def show_again(self, person: str) -> dict[Any, Any]:
        """After a refusal: what was there before, with nothing running."""
        return self._show(self.desks.of(person), {self.mode, self.source, self.target})

    def write_svg(self, person: str) -> str:
        made = self._made(person)
        return self._file(made.name, made.svg)

    def write_png(self, person: str) -> str:
        made = self._made(person)
        return self._file(f"{Path(made.name).stem}.png", sketch_work.png_of(made))

    def write_film(self, person: str) -> str:
        made = self._made(person)
        return self._file(f"{Path(made.name).stem}.mp4", sketch_work.animated(made, ".mp4"))

    def write_moving(self, person: str) -> str:
        made = self._made(person)
        return self._file(f"{Path(made.name).stem}-animated.svg", sketch_work.animated(made))

    def leave(self, person: str) -> None:
        """The tab was closed."""
        self.worker.cancel_all(person)
        self.desks.forget(person)

    # ---- the API

    async def draw_words(
        self,
        person: str,
        prompt: str,
        style: str = "ink",
        strokes: int = 64,
        background: bool = False,
        width: float = 1.0,
        steps: int = 120,
        seed: int = 0,
        references: list[str] | None = None,
        style_weight: float = SketchConfig.style_weight,
    ) -> tuple[str, dict[str, Any]]:
        """Draw words as an SVG.

        prompt: what to draw; it names a thing. style: ink, colour or icon. strokes: 4 to 512. background: draw what is
        around it too. width: of the strokes, 0.1 to 20. steps: 1 to 1000. seed: 0 to 2^63 - 1. references: up to 8
        pictures whose look is taken. style_weight: how hard that look pulls, 0 to 10.
        Gives an SVG with its recipe inside, and the recipe.
        """
        taken = await asyncio.to_thread(looks.read, references, self.settings.max_pixels)
        order = sketch_work.draw_order(prompt, strokes, style, background, width, steps, seed, taken, style_weight)
        return await self._answer(person, order)

    async def edit_drawing(
        self,
        person: str,
        drawing: str,
        source: str = "",
        target: str = "",
        strength: float = 1.0,
        added: int = 24,
        steps: int = 60,
        seed: int = 0,
    ) -> tuple[str, dict[str, Any]]:
        """Change an SVG with words; shapes that need not change keep their bytes.

        drawing: an SVG or SVGZ file. source: what it shows. target: what it should show. strength: 0.1 to 10. added:
        new shapes at most, 0 to 512. steps: of the shapes, 1 to 1000. seed: 0 to 2^63 - 1.
        Gives an SVG with its recipe inside, and the recipe.
        """
        if not drawing:
            raise InputRefused("There is no drawing yet: give an SVG.")
        given = await asyncio.to_thread(sketch_work.read_drawing, drawing, self.settings.max_upload)
        return await self._answer(person, sketch_work.change_order(given, source, target, strength, added, steps, seed))

    # ---- inside

    async def _answer(self, person: str, order: DrawOrder | ChangeOrder) -> tuple[str, dict[str, Any]]:
        made: Made = await done(self.worker, self._submit(person, order))
        path = self._file(made.name, made.svg)
        with suppress(InputRefused):  # the answer is there, whether the history takes it or not
            await asyncio.to_thread(self._remember, made, Path(path))
        return path, made.recipe

    def _submit(self, person: str, order: DrawOrder | ChangeOrder) -> Job:
        def run(prior: Any, job: Job) -> Made:
            def tell(progress: Progress) -> None:
                job.report = progress

            def go_on() -> bool:
                job.between_steps()
                return not job.cancelled

            return sketch_work.run(prior, order, self.model(prior), tell, go_on)

        return self.worker.submit(person, run, kind="sketch")

    async def _start(self, person: str, mode: str, settings: tuple[Any, ...]) -> AsyncGenerator[dict[Any, Any], None]:
        import gradio as gr

        desk = self.desks.of(person)
        prompt, style, strokes, background, width, steps, seed, taken, style_weight = settings[:9]
        source, target, strength, added, change_steps, change_seed = settings[9:]
        drawing = desk.table.drawing
        order: DrawOrder | ChangeOrder
        if mode == "draw":
            references = await asyncio.to_thread(self.looks.read, taken)
            order = sketch_work.draw_order(
                prompt, strokes, style, background, width, steps, seed, references, style_weight
            )
            last = np.full((256, 256, 3), 255, np.uint8)
        else:
            if drawing is None:
                raise InputRefused("There is no drawing yet: drop an SVG, or take an example.")
            order = sketch_work.change_order(drawing, source, target, strength, added, change_steps, change_seed)
            last = await asyncio.to_thread(sketch_work.page_of, svg.write_svg(drawing.document))
        job = self._submit(person, order)
        first = {
            self.views: gr.Tabs(selected="drawing"),
            self.pair_tab: gr.update(visible=False),
            self.changed_tab: gr.update(visible=False),
            self.notes: gr.update(visible=False),
            self.after: gr.update(visible=False),
            self.again: gr.update(visible=False),
            self.go_on: gr.update(visible=False),
            self.undo: gr.update(visible=False),
            self.stop: gr.update(visible=True, value="Stop, and keep what is there", interactive=True),
            self.run: gr.update(interactive=False),
        }
        async with aclosing(news(self.worker, job)) as reports:
            async for report in reports:
                share = 0.0
                if not isinstance(report, Progress):
                    caption = waiting_line(report[1], self.worker.state)
                elif report.preview is None:
                    caption = BEGINNING if mode == "draw" else "The model looks at the drawing first."
                else:
                    last, share = report.preview, report.done / report.total
                    caption = image_work.progress_line(report)
                yield {**first, self.stage: image_work.figure(last, caption, "The drawing so far", share)}
                first = {}
        made: Made = job.result(0)
        desk = self.desks.of(person)
        desk.put(SketchTable(mode, drawing, source, target, made))
        yield self._show(desk, {self.mode, self.file, self.source, self.target})
        path = await asyncio.to_thread(self._file, made.name, made.svg)
        await asyncio.to_thread(self._remember, made, Path(path))

    def _remember(self, made: Made, path: Path) -> None:
        """Put a drawing into the history."""
        if self.history is None:
            return
        order = made.order
        before, inputs = None, {}
        if isinstance(order, ChangeOrder):
            before = sketch_work.page_of(svg.write_svg(order.drawing.document))
            inputs["input"] = Path(self._file(_safe(order.drawing.name), order.drawing.raw))
        else:
            folder = self.settings.folder / secrets.token_hex(16)
            inputs |= image_work.references_kept(order.references, folder)
        self.history.add("sketch", path, before, sketch_work.page_of(made.svg), made.recipe, inputs)

    def _made(self, person: str) -> Made:
        made = self.desks.of(person).table.made
        if made is None:
            raise InputRefused("There is no drawing of yours here yet.")
        return made

    def _show(self, desk: SketchDesk, but: set[Any] | None = None) -> dict[Any, Any]:
        """Every widget as the top table has it, `but` for those that are right already."""
        import gradio as gr

        table = desk.table
        made, drawing, draws = table.made, table.drawing, table.mode == "draw"
        empty = EMPTY if draws else BLANK
        stage = image_work.message(empty)
        if made is not None:
            # What was drawn draws itself once more and then stands; what was changed is shown as it is.
            shown = sketch_work.animated(made) if made.highlighted is None else made.svg
            stage = sketch_work.figure(shown, _caption(made), _alt(made))
        elif drawing is not None and not draws:
            stage = sketch_work.figure(svg.write_svg(drawing.document), READY, f"The drawing {drawing.name}")
        compared = made is not None and made.highlighted is not None
        updates: dict[Any, Any] = {
            self.mode: table.mode,
            self.drawing: gr.update(visible=draws),
            self.changing: gr.update(visible=not draws),
            self.file: None,
            self.source: table.source,
            self.target: table.target,
            self.views: gr.Tabs(selected="drawing"),
            self.stage: stage,
            self.pair_tab: gr.update(visible=compared),
            self.pair: "",
            self.changed_tab: gr.update(visible=compared),
            self.changed: "",
            self.stop: gr.update(visible=False),
            self.notes: gr.update(visible=made is not None, value="" if made is None else sketch_work.summary(made)),
            self.after: gr.update(visible=made is not None),
            self.again: gr.update(visible=made is not None and made.highlighted is None),
            self.go_on: gr.update(visible=made is not None),
            self.undo: gr.update(visible=len(desk.tables) > 1),
            self.run: gr.update(interactive=True, value="Draw" if draws else "Change"),
        }
        if made is not None and made.highlighted is not None and isinstance(made.order, ChangeOrder):
            before = svg.write_svg(made.order.drawing.document)
            updates[self.pair] = sketch_work.pair(before, made.svg, _alt(made))
            line = "Orange is new or changed, blue is what was removed; what is pale kept its bytes."
            updates[self.changed] = sketch_work.figure(made.highlighted, line, "What changed in the drawing")
        return {widget: update for widget, update in updates.items() if widget not in (but or ())}

    def _file(self, name: str, data: bytes) -> str:
        """A file that Gradio may serve, in a folder that nobody can guess."""
        path = place_to_serve(self.settings.folder, name)
        path.write_bytes(data)
        return str(path)


def _caption(made: Made) -> str:
    order = made.order
    return f"\u201c{order.prompt if isinstance(order, DrawOrder) else order.request.target}\u201d"


def _alt(made: Made) -> str:
    order = made.order
    return f"A drawing of {order.prompt if isinstance(order, DrawOrder) else order.request.target}"


def _safe(name: str) -> str:
    """A name without folders and odd characters."""
    return "".join(c if c.isalnum() or c in "-_. " else "_" for c in Path(name).name)[:80].lstrip(".") or "drawing.svg"


def _example_buttons(shown: list[Drawing]) -> str:
    """The examples as pictures to press."""
    buttons = []
    for k, drawing in enumerate(shown):
        label = html.escape(f"Example: {EXAMPLES[Path(drawing.name).stem][0]}")
        data = base64.b64encode(drawing.raw).decode("ascii")
        buttons.append(
            f'<button type="button" data-example="{k}" aria-label="{label}" title="{label}">'
            f'<img alt="" src="data:image/svg+xml;base64,{data}"></button>'
        )
    return f'<div class="thumbs" role="group" aria-label="Examples">{"".join(buttons)}</div>'
