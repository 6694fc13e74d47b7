"""The Image tab: widgets and their wiring. What they do is in image_work; what needs the model goes to the worker."""

from __future__ import annotations

import asyncio
import contextlib
import html
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdsedit.errors import InputRefused
from sdsedit.guidance import MIN_STRENGTH
from sdsedit.io import images
from sdsedit.prior.load import builtin_path
from sdsedit.request import MAX_STYLE_WEIGHT, EditConfig, check_number
from sdsedit.web import image_work as work
from sdsedit.web import looks
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
from sdsedit.web.image_work import Desk, Order, Progress, Result, State, Table
from sdsedit.web.sessions import Sessions
from sdsedit.web.settings import Settings, shown_name
from sdsedit.web.worker import Job, Worker

if TYPE_CHECKING:
    from sdsedit.web.history import History

# What the shipped examples show, and an edit of each that the built-in model does well.
EXAMPLES = {
    "cat": ("a cat on grass", "a cat wearing a crown on grass"),
    "dog": ("a dog on sand", "a fox on sand"),
    "panda": ("a panda on snow", "a panda wearing a top hat on snow"),
    "owl": ("an owl at night", "a blue owl at night"),
    "apple": ("an apple on a wooden table", "a pear on a wooden table"),
    "frog": ("a frog wearing a crown on a white background", "a frog on a white background"),
}
METHOD_CHOICES = [
    ("LUSD: finds the place itself", "lusd"),
    ("LUSD, fast: in half of the time or less", "lusd-fast"),
    ("DDS: difference of two prompts", "dds"),
    ("FlowEdit: one walk from much noise to none", "flowedit"),
    ("CDS: DDS that keeps the structure", "cds"),
    ("IDS: DDS that keeps the identity", "ids"),
    ("PDS: keeps the posterior", "pds"),
    ("SSD: stable score distillation", "ssd"),
    ("ISM: compares two neighbours in noise", "ism"),
    ("SBP: bridge between two prompts", "sbp"),
    ("NFSD: without the noise's part", "nfsd"),
    ("CSD: the classifier's part only", "csd"),
    ("VSD: learns its own noise", "vsd"),
    ("SDS: the first of them", "sds"),
]
WHERE = [
    ("At the new words", "new"),
    ("At words I choose", "words"),
    ("Where I paint", "paint"),
    ("Where a mask file is white", "file"),
]
PAINTING = 640  # pixels, the longer side of the canvas
MADE_FOR = 600.0  # seconds that a file to download stays where it was written
EMPTY = "Your picture will change here. Drop one on the left, or take an example."
LOOKS = (
    "The words say what changes and where; these pictures say what it looks like there: a pattern, a material, a "
    "painting. Not needed. It takes longer."
)
READY = "Say what should be in the picture, then press Edit."
ON_CHIP = on_press("word", number=True)
LOOK = look_at("views")
SAVE = press_saved("saved")


def examples() -> list[Path]:
    """The example pictures that are here."""
    folder = builtin_path().parent / "examples"
    return [folder / f"{name}.png" for name in EXAMPLES if (folder / f"{name}.png").is_file()]


class ImageTab:
    """One page's Image tab; `desks` has what each person has in front of them."""

    def __init__(
        self, worker: Worker, settings: Settings, model: Callable[[Any], dict[str, Any]], history: History | None
    ) -> None:
        self.worker, self.settings, self.model, self.history = worker, settings, model, history
        self.desks: Sessions[Desk] = Sessions(Desk, settings.idle, settings.sessions)
        self._lay_out()
        self._wire()
        self._wire_api()

    # ---- widgets

    def _lay_out(self) -> None:
        import gradio as gr

        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=4, min_width=300):
                self.picture = gr.Image(
                    label="Picture", sources=["upload", "clipboard"], type="filepath", format="png", height=300,
                    elem_id="picture", buttons=[], placeholder="Drop a picture here, or press to choose one",
                )  # fmt: skip
                self.picture.preprocess = path_of  # its own opens any kind of file; ours are read by io.images
                shown = examples()
                self.examples = gr.Gallery(
                    [str(path) for path in shown], label="Examples", show_label=False, columns=len(shown) or 1,
                    rows=1, allow_preview=False, height="auto", fit_columns=False, elem_id="examples",
                    interactive=False, buttons=[], object_fit="cover", format="png", visible=bool(shown),
                )  # fmt: skip
                self.source = gr.Textbox(
                    label="What the picture shows", placeholder="a cat on grass", elem_id="source", max_lines=2,
                    info="Not needed, but the edit is better with it.",
                )  # fmt: skip
                self.target = gr.Textbox(
                    label="What it should show", placeholder="a cat wearing a crown on grass", elem_id="target",
                    max_lines=2,
                )  # fmt: skip
                self.chips = gr.HTML(work.chips((), set()), js_on_load=ON_CHIP, elem_id="chips")
                self.where = gr.Radio(WHERE, value="new", label="Where to edit", elem_id="where")
                self.painted = gr.ImageEditor(
                    label="Paint over what may change", type="numpy", image_mode="RGBA", format="png", sources=[],
                    transforms=[], layers=False, canvas_size=(PAINTING, PAINTING), elem_id="paint", visible=False,
                    height=440, buttons=[],
                    brush=gr.Brush(default_size=40, colors=["#ff5a36"], default_color="#ff5a36", color_mode="fixed"),
                    eraser=gr.Eraser(default_size=40),
                )  # fmt: skip
                self.mask = gr.Image(
                    label="Mask: white may change, black stays; exactly as large as the picture", type="filepath",
                    sources=["upload"], format="png", height=180, elem_id="mask", visible=False, buttons=[],
                )  # fmt: skip
                self.mask.preprocess = path_of
                with gr.Accordion("Take the look of another picture", open=False, elem_id="look"):
                    gr.HTML(f'<p class="hint small">{LOOKS}</p>')
                    self.looks = looks.Looks(self.settings, "looks")
                    self.style_weight = gr.Slider(
                        0, MAX_STYLE_WEIGHT, value=EditConfig.style_weight, step=0.5, label="How hard the look pulls",
                        elem_id="style-weight", info="2 is usual; 0 leaves the look out.",
                    )  # fmt: skip
                with gr.Accordion("More settings", open=False, elem_id="more"):
                    self.method = gr.Dropdown(METHOD_CHOICES, value="lusd", label="Method", elem_id="method")
                    specs = [self.settings.model, *self.settings.more_models]
                    self.prior = gr.Dropdown(
                        [(shown_name(spec), "" if k == 0 else spec) for k, spec in enumerate(specs)], value="",
                        label="Model", elem_id="model", interactive=len(specs) > 1,
                        info="" if len(specs) > 1 else "Others can be offered when the page is started: see Models.",
                    )  # fmt: skip
                    self.strength = gr.Slider(
                        MIN_STRENGTH, 3.0, value=1.0, step=0.1, label="Strength", elem_id="strength",
                        info="1 is usual; less changes less, more changes more.",
                    )  # fmt: skip
                    self.seed = gr.Number(
                        0, precision=0, label="Seed", elem_id="seed",
                        info="The same number gives the same result; another one, another.",
                    )  # fmt: skip
                with gr.Row():
                    self.run = gr.Button("Edit", variant="primary", elem_id="run", scale=2)
                    self.four = gr.Button("Four versions", elem_id="four", scale=1, min_width=130)
            with gr.Column(scale=5, min_width=320):
                with gr.Tabs(selected="edit", elem_id="views") as self.views:
                    with gr.Tab("Edit", id="edit", elem_id="view-edit"):
                        self.stage = gr.HTML(work.message(EMPTY), elem_id="stage")
                        self.slider = gr.ImageSlider(
                            label="Before and after: drag the line", type="numpy", format="png", visible=False,
                            elem_id="slider", buttons=["fullscreen"], interactive=False, max_height=520,
                        )  # fmt: skip
                    with gr.Tab("Where it looks", id="where", elem_id="view-where"):
                        self.heat = gr.HTML(work.message(work.PRESS), elem_id="heat")
                    with gr.Tab(
                        "What changed", id="changed", elem_id="view-changed", visible=False
                    ) as self.changed_tab:
                        self.changed = gr.HTML(elem_id="changed")
                self.stop = gr.Button("Stop, and keep what is there", variant="stop", visible=False, elem_id="stop")
                self.choices = gr.Gallery(
                    label="Four versions: press one to take it", columns=4, rows=1, allow_preview=False, visible=False,
                    interactive=False, buttons=[], elem_id="choices", format="png", height=170, object_fit="cover",
                )  # fmt: skip
                self.scrub = gr.Slider(
                    0, 100, value=100, step=1, label="How much of the edit, in percent", visible=False, elem_id="scrub",
                    info="0 is the picture as it was, 100 the whole edit. Download and Continue take what is shown.",
                )  # fmt: skip
                self.notes = gr.HTML(elem_id="notes", visible=False)
                with gr.Row(elem_id="after"):
                    self.save = gr.Button(
                        "Download PNG", variant="primary", elem_id="save", min_width=120, visible=False
                    )
                    self.go_on = gr.Button("Continue", elem_id="continue", min_width=120, visible=False)
                    self.undo = gr.Button("Undo", elem_id="undo", min_width=90, visible=False)
                self.saved = gr.DownloadButton("Download", visible="hidden", elem_id="saved")
        # What the API's functions take and give; a person sees the widgets above.
        self._api = [
            gr.File(label="picture", visible=False),
            gr.Textbox("", label="source", visible=False),
            gr.Textbox(label="target", visible=False),
            gr.Textbox("", label="words", visible=False),
            gr.File(label="mask", visible=False),
            gr.Textbox("lusd", label="method", visible=False),
            gr.Number(1.0, label="strength", visible=False),
            gr.Number(0, label="seed", visible=False),
            gr.Textbox("", label="model", visible=False),
            gr.Number(0, label="steps", visible=False),
            gr.File(label="references", file_count="multiple", visible=False),
            gr.Number(EditConfig.style_weight, label="style_weight", visible=False),
        ]
        self._api_file = gr.File(label="PNG", visible=False)
        self._api_info = gr.JSON(label="recipe", visible=False)
        self._api_button = gr.Button(visible=False)

    # ---- wiring

    def _wire(self) -> None:
        self.table = table = [  # what a person has in front of them; `take` and the like give updates for these
            self.picture, self.source, self.target, self.chips, self.painted, self.views, self.stage, self.slider,
            self.heat, self.changed_tab, self.changed, self.stop, self.choices, self.scrub, self.notes, self.save,
            self.go_on, self.undo, self.run, self.four,
        ]  # fmt: skip
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        model: dict[str, Any] = {**quiet, "concurrency_id": "model", "concurrency_limit": None}
        latest: dict[str, Any] = {**model, "trigger_mode": "always_last"}
        texts = [self.source, self.target]
        settings = [
            *texts, self.where, self.painted, self.mask, self.method, self.strength, self.seed, self.looks.gallery,
            self.style_weight, self.prior,
        ]  # fmt: skip
        words = handler(self.look_at_words)

        dropped = self.picture.upload(handler(self.take_picture), [self.picture, *texts], table, **quiet)
        dropped.failure(handler(self.show_again), None, table, **quiet)
        self.picture.clear(handler(self.clear), texts, table, **quiet)
        self.examples.select(handler(self.take_example, event=True), None, table, **quiet)
        for text in texts:
            text.change(words, [*texts, self.prior], self.chips, **latest)
        self.prior.change(words, [*texts, self.prior], self.chips, **latest)
        self.where.change(handler(self.show_where), self.where, [self.painted, self.mask, self.chips], **quiet)
        pressed = [self.chips, self.heat, self.views]
        self.chips.select(None, None, None, js=LOOK, **quiet)
        self.chips.select(handler(self.press_word, event=True), [*texts, self.where, self.prior], pressed, **latest)
        for button, start in ((self.run, self.edit), (self.four, self.edit_four)):
            event = button.click(handler(start), settings, table, trigger_mode="once", **model)
            event.failure(handler(self.show_again), None, table, **quiet)
            button.click(None, None, None, js=LOOK, **quiet)
        self.stop.click(handler(self.stop_running), None, self.stop, queue=False, **quiet)
        self.scrub.input(handler(self.scrub_to), self.scrub, [self.slider, self.notes, self.changed], **latest)
        self.choices.select(handler(self.take_choice, event=True), None, table, **model)
        self.go_on.click(handler(self.continue_from), self.scrub, table, **model)
        self.undo.click(handler(self.take_back), None, table, **quiet)
        written = self.save.click(handler(self.write_png), self.scrub, self.saved, **model)
        written.success(None, None, None, js=SAVE, **quiet)

    def _wire_api(self) -> None:
        picture, _, target, words, *_ = self._api
        model: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": None}
        self._api_button.click(
            handler(self.edit_picture), self._api, [self._api_file, self._api_info], api_name="edit_picture", **model
        )
        self._api_button.click(
            handler(self.heat_map), [picture, target, words], self._api_file, api_name="heat_map", **model
        )

    # ---- what a person did

    def take_picture(self, person: str, path: str | None, source: str, target: str) -> dict[Any, Any]:
        picture = work.read_input(path, self.settings.max_pixels)
        desk = self.desks.of(person)
        desk.put(Table(picture, source, target))
        return self._show(desk, {self.picture})

    def take(self, person: str, path: str, source: str, target: str) -> dict[Any, Any]:
        """Put a picture file, and texts, on this person's desk; gives updates for `table`. For the other tabs."""
        desk = self.desks.of(person)
        desk.put(Table(work.read_input(path, self.settings.max_pixels), source, target))
        return self._show(desk)

    def take_example(self, person: str, said: dict[str, Any]) -> dict[Any, Any]:
        shown = examples()
        index = said.get("index")
        if not isinstance(index, int) or not 0 <= index < len(shown):
            raise InputRefused("There is no such example.")
        picture = work.read_input(str(shown[index]), self.settings.max_pixels)
        desk = self.desks.of(person)
        desk.put(Table(picture, *EXAMPLES[shown[index].stem]))
        return self._show(desk)

    def clear(self, person: str, source: str, target: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        desk.put(Table(None, source, target))
        return self._show(desk)

    def show_where(self, person: str, where: str) -> tuple[Any, Any, Any]:
        import gradio as gr

        desk = self.desks.of(person)
        chosen = desk.chosen if where == "words" else set()
        return gr.update(visible=where == "paint"), gr.update(visible=where == "file"), work.chips(desk.words, chosen)

    async def look_at_words(self, person: str, source: str, target: str, model: str) -> str:
        desk = self.desks.of(person)
        words = await self._model(person, lambda prior: work.words_of(prior, source, target), model)
        if words != desk.words:
            desk.words, desk.chosen = words, set()
        return work.chips(desk.words, desk.chosen)

    async def press_word(
        self, person: str, said: dict[str, Any], source: str, target: str, where: str, model: str
    ) -> tuple[str, str, Any]:
        import gradio as gr

        desk = self.desks.of(person)
        index = said.get("word")
        if not isinstance(index, int) or not 0 <= index < len(desk.words):
            raise InputRefused("That word is no longer in the text.")
        if where == "words":
            desk.chosen ^= {index}
        row = work.chips(desk.words, desk.chosen if where == "words" else set(), index)
        picture, word = desk.table.picture, desk.words[index]
        if picture is None:
            return row, work.message("Drop a picture first, to see where the model sees this word."), gr.skip()
        prompt = target if word.prompt == "target" else source
        heat = await self._model(
            person, lambda prior: work.heat_map(prior, picture.tensor(), prompt, [word.text])[0, 0].cpu().numpy(), model
        )
        over = await asyncio.to_thread(work.heat_over, picture.rgb, heat)
        caption = f"Where the model sees \u201c{word.text}\u201d: the brighter, the surer."
        return row, work.figure(over, caption, f"Heat-map of {word.text}"), gr.Tabs(selected="where")

    async def edit(self, person: str, *settings: Any) -> AsyncIterator[dict[Any, Any]]:
        async with aclosing(self._edit(person, settings, 1)) as updates:
            async for update in updates:
                yield update

    async def edit_four(self, person: str, *settings: Any) -> AsyncIterator[dict[Any, Any]]:
        async with aclosing(self._edit(person, settings, 4)) as updates:
            async for update in updates:
                yield update

    def stop_running(self, person: str) -> Any:
        import gradio as gr

        self.worker.cancel_all(person)
        return gr.update(value="Stopping after this step", interactive=False)

    async def scrub_to(self, person: str, percent: float) -> tuple[Any, Any, Any]:
        result, state = await self._turn_to(self.desks.of(person), person, percent)
        before = work.view(result.order.picture.rgb)
        return (before, work.view(state.rgb)), work.summary(result, state), _changed(state)

    def take_choice(self, person: str, said: dict[str, Any]) -> dict[Any, Any]:
        desk = self.desks.of(person)
        index = said.get("index")
        if not isinstance(index, int) or not 0 <= index < len(desk.table.choices):
            raise InputRefused("There is no such result any more.")
        result = desk.table.choices[index]
        desk.turn(replace(desk.table, result=result, state=work.last_state(result)))
        return self._show(desk, {self.choices})

    async def continue_from(self, person: str, percent: float) -> dict[Any, Any]:
        desk = self.desks.of(person)
        await self._turn_to(desk, person, percent)  # the slider may be ahead of what is shown
        desk.put(work.continued(desk.table))
        return self._show(desk)

    def take_back(self, person: str) -> dict[Any, Any]:
        desk = self.desks.of(person)
        desk.undo()
        return self._show(desk)

    def show_again(self, person: str) -> dict[Any, Any]:
        """After a refusal: what was there before, with nothing running."""
        return self._show(self.desks.of(person), {self.source, self.target, self.painted, self.chips})

    async def write_png(self, person: str, percent: float) -> str:
        result, state = await self._turn_to(self.desks.of(person), person, percent)
        data = await asyncio.to_thread(work.png_of, result, state)
        return self._file(work.file_name(result.order.picture), data)

    def leave(self, person: str) -> None:
        """The tab was closed."""
        self.worker.cancel_all(person)
        self.desks.forget(person)

    # ---- the API

    async def edit_picture(
        self,
        person: str,
        picture: str,
        source: str = "",
        target: str = "",
        words: str = "",
        mask: str | None = None,
        method: str = "lusd",
        strength: float = 1.0,
        seed: int = 0,
        model: str = "",
        steps: int = 0,
        references: list[str] | None = None,
        style_weight: float = EditConfig.style_weight,
    ) -> tuple[str, dict[str, Any]]:
        """Edit a picture with words.

        picture: a PNG, JPEG, WebP, BMP, TIFF or GIF file. source: what it shows. target: what it should show.
        words: whose place is edited, between commas; empty: the new ones. mask: a picture of the same size, white
        where it may change. method: lusd, lusd-fast, dds, flowedit, cds, ids, pds, ssd, ism,
        sds, sbp, nfsd, csd or vsd.
        strength: 0.1 to 10. seed: 0 to 2^63 - 1. model: one that the page offers; empty: its usual one.
        steps: 1 to 10,000; 0: as many as suit the method. references: up to 8 pictures whose look is taken too.
        style_weight: how hard that look pulls, 0 to 10.
        Gives a PNG with its recipe inside, and the recipe.
        """

        def prepare() -> Order:
            given = work.read_input(picture, self.settings.max_pixels)
            drawn = images.read_mask(mask, given.size) if mask else None
            named = [word.strip() for word in words.split(",") if word.strip()] if isinstance(words, str) else words
            taken = looks.read(references, self.settings.max_pixels)
            return work.make_order(
                given, drawn, source, target, named, method, strength, seed, steps or None, taken, style_weight
            )

        order = await asyncio.to_thread(prepare)
        result: Result = await done(self.worker, self._submit(person, [order], model or ""))
        await asyncio.to_thread(self._keep, [result])
        state = work.last_state(result)
        path = self._file(work.file_name(order.picture), work.png_of(result, state))
        return path, work.recipe_of(result, state)

    async def heat_map(self, person: str, picture: str, prompt: str, words: str) -> str:
        """Where the model sees words in a picture: a PNG of the heat-map over it.

        picture: a picture file. prompt: a description that holds the words. words: of the prompt, between commas.
        """
        given = await asyncio.to_thread(work.read_input, picture, self.settings.max_pixels)
        named = [word.strip() for word in (words or "").split(",") if word.strip()]
        heat = await self._model(
            person, lambda prior: work.heat_map(prior, given.tensor(), prompt, named)[0, 0].cpu().numpy()
        )
        return self._file("heat-map.png", images.encode_png(work.heat_over(given.rgb, heat)))

    # ---- inside

    async def _model(self, person: str, act: Callable[[Any], Any], model: str = "") -> Any:
        """Something quick with the model."""
        job = self.worker.submit(person, lambda prior, job: act(prior), quick=True, model=model)
        return await done(self.worker, job)

    async def _turn_to(self, desk: Desk, person: str, percent: float) -> tuple[Result, State]:
        """The state of the shown result that the scrubber stands on."""
        table = desk.table
        result, state = table.result, table.state
        if result is None or state is None:
            raise InputRefused("There is no result yet: make an edit first.")
        check_number("How much of the edit", percent, 0, 100)
        step = round(len(result.path) * percent / 100)
        if step != state.step:
            state = await self._model(person, lambda prior: work.state_at(prior, result, step), result.model_spec)
            desk.turn(replace(table, state=state))
        return result, state

    def _keep(self, results: list[Result]) -> str:
        """Put finished results into the history; a sentence if it does not take them."""
        try:
            for result in results:
                if self.history is not None:
                    with tempfile.TemporaryDirectory() as folder:
                        work.keep(self.history, result, Path(folder))
        except InputRefused as error:
            return str(error)
        return ""

    def _submit(self, person: str, orders: list[Order], spec: str) -> Job:
        """Put edits in line; the job gives the list of their results, one less for each that did not begin."""

        def run(prior: Any, job: Job) -> Any:
            def tell(progress: Progress) -> None:
                job.report = progress

            def go_on() -> bool:
                job.between_steps()
                return not job.cancelled

            found: list[Result] = []
            model = self.model(prior)
            for k, order in enumerate(orders):
                if not (k and job.cancelled):
                    found.append(work.run_edit(prior, order, model, tell, go_on, k, len(orders), spec))
            return found if len(orders) > 1 else found[0]

        return self.worker.submit(person, run, model=spec, kind="image")

    async def _edit(self, person: str, settings: tuple[Any, ...], count: int) -> AsyncGenerator[dict[Any, Any], None]:
        import gradio as gr

        desk = self.desks.of(person)
        *asked, spec = settings
        order = await asyncio.to_thread(self._order, desk, *asked)
        job = self._submit(person, work.seeds(order, count) if count > 1 else [order], spec or "")
        desk_shown = {
            self.views: gr.Tabs(selected="edit"),
            self.slider: gr.update(visible=False),
            self.choices: gr.update(visible=False),
            self.scrub: gr.update(visible=False),
            self.save: gr.update(visible=False),
            self.go_on: gr.update(visible=False),
            self.undo: gr.update(visible=False),
            self.notes: gr.update(visible=False),
            self.stop: gr.update(visible=True, value="Stop, and keep what is there", interactive=True),
            self.run: gr.update(interactive=False),
            self.four: gr.update(interactive=False),
        }
        last = work.view(order.picture.rgb)
        async with aclosing(news(self.worker, job)) as reports:
            async for report in reports:
                if isinstance(report, Progress):
                    last = last if report.preview is None else report.preview
                    caption, share = work.progress_line(report), report.done / report.total
                else:
                    caption, share = waiting_line(report[1], self.worker.state), 0.0
                stage = gr.update(visible=True, value=work.figure(last, caption, "The edit so far", share))
                yield {**desk_shown, self.stage: stage}
                desk_shown = {}
        found = job.result(0)
        results = found if isinstance(found, list) else [found]
        if not_kept := await asyncio.to_thread(self._keep, results):
            gr.Warning(html.escape(not_kept))
        desk = self.desks.of(person)
        table = Table(order.picture, settings[0], settings[1], results[0], work.last_state(results[0]))
        desk.put(replace(table, choices=tuple(results) if count > 1 else ()))
        yield self._show(desk, {self.source, self.target, self.painted, self.picture, self.chips})

    def _order(
        self, desk: Desk, source: str, target: str, where: str, painted: Any, mask: str | None, method: str,
        strength: float, seed: Any, taken: Sequence[str] | None, style_weight: float,
    ) -> Order:  # fmt: skip
        picture = desk.table.picture
        if picture is None:
            raise InputRefused("There is no picture yet: drop one, or take an example.")
        words: list[str] | None = None
        drawn = None
        if where == "words":
            words = [desk.words[k].text for k in sorted(desk.chosen) if k < len(desk.words)]
            if not words:
                raise InputRefused("No word is chosen: press the words whose place should change.")
        elif where == "paint":
            drawn = work.painted_mask((painted or {}).get("layers") or [], picture.size)
        elif where == "file":
            if not mask:
                raise InputRefused("There is no mask yet: drop a picture that is white where this one may change.")
            drawn = images.read_mask(mask, picture.size)
        references = self.looks.read(taken)
        return work.make_order(
            picture, drawn, source, target, words, method, strength, seed, None, references, style_weight
        )

    def _show(self, desk: Desk, but: set[Any] | None = None) -> dict[Any, Any]:
        """Every widget as the top table has it, `but` for those that are right already."""
        import gradio as gr

        table = desk.table
        result, state, picture = table.result, table.state, table.picture
        has = result is not None and state is not None
        text = EMPTY if picture is None else READY
        canvas = None if picture is None else work.canvas(picture.rgb, PAINTING)
        updates: dict[Any, Any] = {
            self.picture: None if picture is None else work.view(picture.rgb),
            self.source: table.source,
            self.target: table.target,
            self.chips: work.chips(desk.words, desk.chosen),
            self.painted: None if canvas is None else {"background": canvas, "layers": [], "composite": None},
            self.views: gr.Tabs(selected="edit"),
            self.stage: gr.update(visible=not has, value=work.message(text)),
            self.slider: gr.update(visible=has, value=None),
            self.heat: work.message(work.PRESS),
            self.changed_tab: gr.update(visible=has),
            self.changed: "",
            self.stop: gr.update(visible=False),
            self.choices: gr.update(visible=bool(table.choices), value=[]),
            self.scrub: gr.update(visible=has, value=100),
            self.notes: gr.update(visible=has, value=""),
            self.save: gr.update(visible=has),
            self.go_on: gr.update(visible=has),
            self.undo: gr.update(visible=len(desk.tables) > 1),
            self.run: gr.update(interactive=True),
            self.four: gr.update(interactive=True),
        }
        if picture is not None and not has:
            updates[self.stage] = gr.update(visible=True, value=work.figure(picture.rgb, text, "The picture"))
        if result is not None and state is not None:
            before = work.view(result.order.picture.rgb)
            updates[self.slider] = gr.update(visible=True, value=(before, work.view(state.rgb)))
            updates[self.notes] = gr.update(visible=True, value=work.summary(result, state))
            updates[self.changed] = _changed(state)
            percent = round(100 * state.step / max(len(result.path), 1))
            updates[self.scrub] = gr.update(visible=True, value=percent)
            if result.edited.words:
                over = work.heat_over(result.order.picture.rgb, result.heat)
                words = ", ".join(result.edited.words)
                updates[self.heat] = work.figure(over, f"Where the edit looked for: {words}.", f"Heat-map of {words}")
            if table.choices:
                cells = [(work.view(each.rgb, 256), f"Seed {each.order.config.seed}") for each in table.choices]
                updates[self.choices] = gr.update(visible=True, value=cells)
        return {widget: update for widget, update in updates.items() if widget not in (but or ())}

    def _file(self, name: str, data: bytes) -> str:
        """A file that Gradio may serve, in a folder that nobody can guess. Gradio serves a copy of its own, so what was
        made a while ago goes."""
        made = self.settings.folder / "made"
        made.mkdir(parents=True, exist_ok=True)
        for old in made.iterdir():
            with contextlib.suppress(OSError):  # another event was faster
                if time.time() - old.stat().st_mtime > MADE_FOR:
                    shutil.rmtree(old)
        path = place_to_serve(made, name)
        path.write_bytes(data)
        return str(path)


def _changed(state: State) -> str:
    caption = "White is what changed; black is the picture's own pixels, bit for bit."
    return work.figure(np.repeat(state.weight[..., None], 3, axis=2), caption, "Mask of what changed")
