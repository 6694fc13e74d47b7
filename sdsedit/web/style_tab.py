"""The Style tab: widgets and their wiring. What they do is in style_work; what needs the model goes to the worker."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdsedit.errors import InputRefused
from sdsedit.io import images
from sdsedit.io.images import Picture
from sdsedit.request import MAX_REFERENCES
from sdsedit.web import image_tab, image_work, looks, style_work
from sdsedit.web.events import (
    done,
    handler,
    look_at,
    news,
    path_of,
    place_to_serve,
    press_saved,
    waiting_line,
)
from sdsedit.web.history import History
from sdsedit.web.image_work import Progress
from sdsedit.web.sessions import Sessions
from sdsedit.web.settings import Settings
from sdsedit.web.style_work import MAX_SIDE, MIN_SIDE, PARTS, Styled, StyleDesk, StyleOrder
from sdsedit.web.worker import Job, Worker

MODES = [("Restyle a picture", "transfer"), ("Draw words", "words"), ("Make a texture", "texture")]
RUN = {"transfer": "Restyle", "words": "Draw", "texture": "Make"}
EMPTY = "Choose a picture whose look you want, and what should get it."
PAINTING = (
    "To restyle a picture: paint a part of it orange to give it the first of these looks, blue for the second, then "
    "green, yellow, violet, turquoise and pink. What is not painted takes the look above. Nothing painted: all are "
    "mixed everywhere."
)
READY = {
    "transfer": "Press Restyle: the picture keeps its layout and takes the look.",
    "words": "Say what to draw, then press Draw.",
    "texture": "Press Make: the texture goes on without a seam when laid side by side.",
}
ON_EXAMPLE = looks.ON_EXAMPLE
SAVE = press_saved("style-saved")
LOOK = look_at("style-stage")


class StyleTab:
    """One page's Style tab; `desks` has what each person has in front of them."""

    def __init__(
        self, worker: Worker, settings: Settings, model: Callable[[Any], dict[str, Any]], history: History | None
    ) -> None:
        self.worker, self.settings, self.model, self.history = worker, settings, model, history
        self.desks: Sessions[StyleDesk] = Sessions(StyleDesk, settings.idle, settings.sessions)
        self._lay_out()
        self._wire()
        self._wire_api()

    # ---- widgets

    def _lay_out(self) -> None:
        import gradio as gr

        def picture(label: str, id: str, height: int) -> Any:
            widget = gr.Image(
                label=label, sources=["upload", "clipboard"], type="filepath", format="png", height=height,
                elem_id=id, buttons=[], placeholder="Drop a picture here, or press to choose one",
            )  # fmt: skip
            widget.preprocess = path_of  # its own opens any kind of file; ours are read by io.images
            return widget

        def thumbnails(paths: list[Path], label: str, id: str) -> Any:
            return gr.HTML(looks.thumbnails(paths, label), js_on_load=ON_EXAMPLE, elem_id=id,
                           visible=bool(paths))  # fmt: skip

        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=4, min_width=300):
                self.mode = gr.Radio(MODES, value="transfer", show_label=False, elem_id="style-mode", container=False)
                with gr.Row():
                    with gr.Column(min_width=180):
                        self.reference = picture("The look", "style-reference", 200)
                        self.looks = thumbnails(looks.examples(), "Example looks", "style-looks")
                    with gr.Column(min_width=180, elem_id="style-transfer") as self.transfer:
                        self.content = picture("The picture that gets it", "style-content", 200)
                        self.contents = thumbnails(image_tab.examples(), "Example pictures", "style-contents")
                with gr.Column(elem_id="style-words", visible=False) as self.wording:
                    self.prompt = gr.Textbox(
                        label="What to draw", placeholder="a fox on grass", elem_id="style-prompt", max_lines=3
                    )
                with gr.Column(elem_id="style-texture", visible=False) as self.texture:
                    self.width = gr.Slider(
                        MIN_SIDE, MAX_SIDE, value=256, step=16, label="Width in pixels", elem_id="style-width"
                    )
                    self.height = gr.Slider(
                        MIN_SIDE, MAX_SIDE, value=256, step=16, label="Height in pixels", elem_id="style-height"
                    )
                with gr.Accordion("More looks, mixed with the first", open=False, elem_id="style-mix"):
                    self.more = looks.Looks(self.settings, "style-more-looks", MAX_REFERENCES - 1)
                    with gr.Column(visible=False) as self.parting:
                        gr.HTML(f'<p class="hint small">{PAINTING}</p>')
                        colours: list[str | tuple[str, float]] = [
                            "#{:02x}{:02x}{:02x}".format(*colour) for _, colour in PARTS
                        ]
                        self.parts = gr.ImageEditor(
                            label="Which part takes which look (not needed)", type="numpy", image_mode="RGBA",
                            format="png", sources=[], transforms=[], layers=False, height=400, buttons=[],
                            canvas_size=(image_tab.PAINTING, image_tab.PAINTING), elem_id="style-parts",
                            brush=gr.Brush(
                                default_size=60, colors=colours, default_color=colours[0], color_mode="fixed"
                            ),
                            eraser=gr.Eraser(default_size=60),
                        )  # fmt: skip
                with gr.Accordion("More settings", open=False, elem_id="style-more"):
                    self.keep = gr.Slider(
                        0, 1, value=0, step=0.05, label="How firmly the layout is kept", elem_id="style-keep",
                        info="0 is what suits the model; small values let the look rule.",
                    )  # fmt: skip
                    self.scale = gr.Slider(
                        0, 30, value=0, step=0.5, label="How firmly the words are followed", elem_id="style-scale",
                        info="0 is what suits the model; from 1 on, the more the firmer.", visible=False,
                    )  # fmt: skip
                    self.steps = gr.Slider(
                        0, 200, value=0, step=5, label="Steps", elem_id="style-steps",
                        info="0 is what suits the model; more take longer and come closer to the look.",
                    )  # fmt: skip
                    self.seed = gr.Number(
                        0, precision=0, label="Seed", elem_id="style-seed",
                        info="The same number gives the same result; another one, another.",
                    )  # fmt: skip
                self.run = gr.Button("Restyle", variant="primary", elem_id="style-run")
            with gr.Column(scale=5, min_width=320):
                self.stage = gr.HTML(image_work.message(EMPTY), elem_id="style-stage")
                self.slider = gr.ImageSlider(
                    label="Before and after: drag the line", type="numpy", format="png", visible=False,
                    elem_id="style-slider", buttons=["fullscreen"], interactive=False, max_height=520,
                )  # fmt: skip
                self.stop = gr.Button(
                    "Stop, and keep what is there", variant="stop", visible=False, elem_id="style-stop"
                )
                self.notes = gr.HTML(elem_id="style-notes", elem_classes="notes", visible=False)
                with gr.Row(elem_id="style-after"):
                    self.save = gr.Button(
                        "Download PNG", variant="primary", elem_id="style-save", min_width=120, visible=False
                    )
                    self.go_on = gr.Button("Restyle again", elem_id="style-continue", min_width=130, visible=False)
                    self.to_image = gr.Button("Open in Image", elem_id="style-to-image", min_width=120, visible=False)
                    self.undo = gr.Button("Undo", elem_id="style-undo", min_width=90, visible=False)
                self.saved = gr.DownloadButton("Download", visible="hidden", elem_id="style-saved")
        # What the API's function takes and gives; a person sees the widgets above.
        self._api = [
            gr.File(label="reference", visible=False),
            gr.File(label="content", visible=False),
            gr.Textbox("", label="prompt", visible=False),
            gr.Textbox("", label="texture", visible=False),
            gr.File(label="second_reference", visible=False),
            gr.Number(-1, label="keep", visible=False),
            gr.Number(0, label="steps", visible=False),
            gr.Number(0, label="seed", visible=False),
            gr.Number(0, label="scale", visible=False),
            gr.File(label="more_references", file_count="multiple", visible=False),
            gr.File(label="regions", visible=False),
            gr.File(label="reference_regions", file_count="multiple", visible=False),
        ]
        self._api_file = gr.File(label="PNG", visible=False)
        self._api_info = gr.JSON(label="recipe", visible=False)
        self._api_button = gr.Button(visible=False)

    # ---- wiring

    def _wire(self) -> None:
        self.table = table = [
            self.mode, self.reference, self.content, self.transfer, self.wording, self.texture, self.prompt,
            self.parting, self.parts, self.keep, self.scale, self.stage, self.slider, self.stop, self.notes, self.save,
            self.go_on, self.to_image, self.undo, self.run,
        ]  # fmt: skip
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        model: dict[str, Any] = {**quiet, "concurrency_id": "model", "concurrency_limit": None}
        self.mode.input(handler(self.show_mode), [self.mode, self.prompt], table, **quiet)
        for widget, take in ((self.reference, self.take_reference), (self.content, self.take_content)):
            dropped = widget.upload(handler(take), [widget, self.prompt], table, **quiet)
            dropped.failure(handler(self.show_again), None, table, **quiet)
        for widget, clear in ((self.reference, self.clear_reference), (self.content, self.clear_content)):
            widget.clear(handler(clear), self.prompt, table, **quiet)
        self.looks.select(handler(self.take_look, event=True), self.prompt, table, **quiet)
        self.contents.select(handler(self.take_example, event=True), self.prompt, table, **quiet)
        settings = [
            self.mode, self.prompt, self.width, self.height, self.keep, self.steps, self.seed, self.scale,
            self.more.gallery, self.parts,
        ]  # fmt: skip
        for start in (self.run.click, self.prompt.submit):
            event = start(handler(self.start), settings, table, trigger_mode="once", **model)
            event.failure(handler(self.show_again), None, table, **quiet)
        self.run.click(None, None, None, js=LOOK, **quiet)
        self.stop.click(handler(self.stop_running), None, self.stop, queue=False, **quiet)
        self.go_on.click(handler(self.continue_from), None, table, **quiet)
        self.undo.click(handler(self.take_back), None, table, **quiet)
        written = self.save.click(handler(self.write_png), None, self.saved, **quiet)
        written.success(None, None, None, js=SAVE, **quiet)

    def send_to(self, image: image_tab.ImageTab, tabs: Any) -> None:
        """Wire the button that opens the result in the Image tab."""

        def send(person: str) -> dict[Any, Any]:
            import gradio as gr

            made = self._made(person)
            path = self._file(made.name, style_work.png_of(made))
            shows = made.order.prompt or ""
            return {**image.take(person, path, shows, shows), tabs: gr.Tabs(selected="image")}

        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        self.to_image.click(handler(send), None, [*image.table, tabs], **quiet)

    def _wire_api(self) -> None:
        self._api_button.click(
            handler(self.style_picture), self._api, [self._api_file, self._api_info], api_name="style_picture",
            concurrency_id="model", concurrency_limit=None,
        )  # fmt: skip

    # ---- what a person did

    def show_mode(self, person: str, mode: str, prompt: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        if mode in style_work.MODES and mode != desk.table.mode:
            desk.turn(replace(desk.table, mode=mode, prompt=prompt, made=None))
        return self._show(desk, {self.mode, self.prompt, self.parts})

    def take_reference(self, person: str, path: str | None, prompt: str) -> dict[Any, Any]:
        return self._take(person, "reference", path, prompt)

    def take_content(self, person: str, path: str | None, prompt: str) -> dict[Any, Any]:
        return self._take(person, "content", path, prompt)

    def clear_reference(self, person: str, prompt: str) -> dict[Any, Any]:
        return self._lay(person, "reference", None, prompt)

    def clear_content(self, person: str, prompt: str) -> dict[Any, Any]:
        return self._lay(person, "content", None, prompt)

    def take_look(self, person: str, said: dict[str, Any], prompt: str) -> dict[Any, Any]:
        return self._lay(person, "reference", self._example(looks.examples(), said), prompt, but=False)

    def take_example(self, person: str, said: dict[str, Any], prompt: str) -> dict[Any, Any]:
        return self._lay(person, "content", self._example(image_tab.examples(), said), prompt, but=False)

    def take(self, person: str, path: str) -> dict[Any, Any]:
        """Put a picture on the desk, to be restyled. For the other tabs."""
        desk = self.desks.of(person)
        picture = image_work.read_input(path, self.settings.max_pixels)
        desk.put(replace(desk.table, mode="transfer", content=picture, made=None))
        return self._show(desk)

    async def start(self, person: str, *settings: Any) -> AsyncIterator[dict[Any, Any]]:
        async with aclosing(self._start(person, settings)) as updates:
            async for update in updates:
                yield update

    def stop_running(self, person: str) -> Any:
        import gradio as gr

        self.worker.cancel_all(person)
        return gr.update(value="Stopping after this step", interactive=False)

    def continue_from(self, person: str) -> dict[Any, Any]:
        desk, made = self.desks.of(person), self._made(person)
        data = style_work.png_of(made)
        path = self._file(made.name, data)
        desk.put(replace(desk.table, mode="transfer", content=images.read_picture(path), made=None))
        return self._show(desk)

    def take_back(self, person: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        desk.undo()
        return self._show(desk)

    def show_again(self, person: str) -> dict[Any, Any]:
        """After a refusal: what was there before, with nothing running."""
        return self._show(self.desks.of(person), {self.mode, self.prompt, self.parts})

    def write_png(self, person: str) -> str:
        made = self._made(person)
        return self._file(made.name, style_work.png_of(made))

    def leave(self, person: str) -> None:
        """The tab was closed."""
        self.worker.cancel_all(person)
        self.desks.forget(person)

    # ---- the API

    async def style_picture(
        self,
        person: str,
        reference: str,
        content: str | None = None,
        prompt: str = "",
        texture: str = "",
        second_reference: str | None = None,
        keep: float = -1,
        steps: int = 0,
        seed: int = 0,
        scale: float = 0,
        more_references: list[str] | None = None,
        regions: str | None = None,
        reference_regions: list[str] | None = None,
    ) -> tuple[str, dict[str, Any]]:
        """Give a picture, words or a texture the look of another picture.

        reference: whose look is wanted. Then one of: content, a picture that keeps its layout; prompt, what to draw;
        texture, a width and a height in pixels such as 256x256. second_reference, more_references: looks mixed with the
        first, 8 in all. keep: how firmly the layout is kept, 0 to 10; -1 is what suits the model. steps: 1 to 1000; 0
        is what suits the model. seed: 0 to 2^63 - 1. scale: how firmly the prompt is followed, 1 to 30; 0 is what suits
        the model. regions: the content painted in flat colours; reference_regions: the same of every reference, in
        their order; a colour takes its look from where a reference has it. Gives a PNG with its recipe inside, and the
        recipe.
        """
        if sum(map(bool, (content, prompt, texture))) != 1:
            raise InputRefused("Say one of: a content picture, a prompt, or the size of a texture.")
        sides = texture.lower().split("x") if texture else ["0", "0"]
        if len(sides) != 2 or not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides):
            raise InputRefused("The texture must be a width and a height in pixels, such as 256x256.")
        mode = "transfer" if content else "words" if prompt else "texture"
        every = [path for path in (reference, second_reference, *(more_references or ())) if path]

        def prepare() -> StyleOrder:
            most = self.settings.max_pixels
            parts = looks.read(reference_regions, most)
            return style_work.make_order(
                mode, looks.read(every, most), image_work.read_input(content, most) if content else None, prompt,
                int(sides[0]), int(sides[1]), None if keep == -1 else keep, steps, seed, scale or None,
                image_work.read_input(regions, most) if regions else None, parts,
            )  # fmt: skip

        order = await asyncio.to_thread(prepare)
        made: Styled = await done(self.worker, self._submit(person, order))
        path = self._file(made.name, style_work.png_of(made))
        with suppress(InputRefused):  # the answer is there, whether the history takes it or not
            await asyncio.to_thread(self._remember, made, Path(path))
        return path, made.recipe

    # ---- inside

    def _example(self, shown: list[Path], said: dict[str, Any]) -> Picture:
        index = said.get("example")
        if not isinstance(index, int) or not 0 <= index < len(shown):
            raise InputRefused("There is no such example.")
        return image_work.read_input(str(shown[index]), self.settings.max_pixels)

    def _take(self, person: str, what: str, path: str | None, prompt: str) -> dict[Any, Any]:
        return self._lay(person, what, image_work.read_input(path, self.settings.max_pixels), prompt)

    def _lay(self, person: str, what: str, picture: Picture | None, prompt: str, but: bool = True) -> dict[Any, Any]:
        """Lay a picture on the table; the widget that it came by shows it already."""
        desk = self.desks.of(person)
        table = replace(desk.table, prompt=prompt, made=None)
        is_content = what == "content"
        desk.put(replace(table, content=picture) if is_content else replace(table, reference=picture))
        same = {self.prompt} if is_content else {self.prompt, self.parts}
        return self._show(desk, {getattr(self, what), *same} if but else same)

    def _submit(self, person: str, order: StyleOrder) -> Job:
        def run(prior: Any, job: Job) -> Styled:
            def tell(progress: Progress) -> None:
                job.report = progress

            def go_on() -> bool:
                job.between_steps()
                return not job.cancelled

            return style_work.run(prior, order, self.model(prior), tell, go_on)

        return self.worker.submit(person, run, kind="style")

    async def _start(self, person: str, settings: tuple[Any, ...]) -> AsyncGenerator[dict[Any, Any], None]:
        import gradio as gr

        desk = self.desks.of(person)
        mode, prompt, width, height, keep, steps, seed, scale, more, painted = settings
        table = replace(desk.table, mode=mode, prompt=prompt, made=None)

        def prepare() -> StyleOrder:
            references = () if table.reference is None else (table.reference, *self.more.read(more))
            regions, of_each = None, ()
            if mode == "transfer" and table.content is not None and references:
                layers = (painted or {}).get("layers") or []
                regions, of_each = style_work.painted_parts(layers, table.content, references)
            return style_work.make_order(
                mode, references, table.content, prompt, width, height, keep or None, steps, seed, scale or None,
                regions, of_each,
            )  # fmt: skip

        order = await asyncio.to_thread(prepare)
        last = (order.references[0] if order.content is None else order.content).rgb
        job = self._submit(person, order)
        first = {
            self.slider: gr.update(visible=False),
            self.notes: gr.update(visible=False),
            self.save: gr.update(visible=False),
            self.go_on: gr.update(visible=False),
            self.to_image: gr.update(visible=False),
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
                    caption = "The model looks at the pictures first."
                else:
                    last, share = report.preview, report.done / report.total
                    caption = image_work.progress_line(report)
                stage = image_work.figure(last, caption, "The picture so far", share)
                yield {**first, self.stage: gr.update(visible=True, value=stage)}
                first = {}
        made: Styled = job.result(0)
        desk.put(replace(table, made=made))
        yield self._show(desk, {self.mode, self.prompt, self.reference, self.content, self.parts})
        path = await asyncio.to_thread(self._file, made.name, style_work.png_of(made))
        await asyncio.to_thread(self._remember, made, Path(path))

    def _remember(self, made: Styled, path: Path) -> None:
        """Put a result into the history."""
        if self.history is None:
            return
        order = made.order
        before = (order.references[0] if order.content is None else order.content).rgb
        folder = self.settings.folder / secrets.token_hex(16)
        self.history.add("style", path, before, made.rgb, made.recipe, style_work.inputs_of(order, folder))

    def _made(self, person: str) -> Styled:
        made = self.desks.of(person).table.made
        if made is None:
            raise InputRefused("There is no styled picture of yours here yet.")
        return made

    def _show(self, desk: StyleDesk, but: set[Any] | None = None) -> dict[Any, Any]:
        """Every widget as the top table has it, `but` for those that are right already."""
        import gradio as gr

        table = desk.table
        made, mode = table.made, table.mode
        complete = table.reference is not None and (mode != "transfer" or table.content is not None)
        stage = gr.update(visible=True, value=image_work.message(READY[mode] if complete else EMPTY))
        pair = None
        if made is not None and made.order.content is not None:
            stage, pair = gr.update(visible=False), (image_work.view(made.order.content.rgb), image_work.view(made.rgb))
        elif made is not None:
            stage = gr.update(visible=True, value=image_work.figure(made.rgb, made.order.said, made.order.said))
        there = made is not None
        updates: dict[Any, Any] = {
            self.mode: mode,
            self.reference: _shown(table.reference),
            self.content: _shown(table.content),
            self.transfer: gr.update(visible=mode == "transfer"),
            self.wording: gr.update(visible=mode == "words"),
            self.texture: gr.update(visible=mode == "texture"),
            self.prompt: table.prompt,
            self.parting: gr.update(visible=table.content is not None),  # sent with `parts` alone: it bears no hiding
            self.parts: _canvas(table.content),
            self.keep: gr.update(visible=mode == "transfer"),
            self.scale: gr.update(visible=mode == "words"),
            self.stage: stage,
            self.slider: gr.update(visible=pair is not None, value=pair),
            self.stop: gr.update(visible=False),
            self.notes: gr.update(visible=there, value="" if made is None else style_work.summary(made)),
            self.save: gr.update(visible=there),
            self.go_on: gr.update(visible=there),
            self.to_image: gr.update(visible=there),
            self.undo: gr.update(visible=len(desk.tables) > 1),
            self.run: gr.update(interactive=True, value=RUN[mode]),
        }
        left = {*(but or ()), *({self.parting} if self.parts in (but or ()) else ())}
        return {widget: update for widget, update in updates.items() if widget not in left}

    def _file(self, name: str, data: bytes) -> str:
        """A file that Gradio may serve, in a folder that nobody can guess."""
        path = place_to_serve(self.settings.folder, name)
        path.write_bytes(data)
        return str(path)


def _shown(picture: Picture | None) -> Any:
    return None if picture is None else image_work.view(picture.rgb)


def _canvas(content: Picture | None) -> Any:
    """A picture to paint parts on."""
    if content is None:
        return None
    return {"background": image_work.canvas(content.rgb, image_tab.PAINTING), "layers": [], "composite": None}
