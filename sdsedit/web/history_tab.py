"""The History tab: what was made before, found by words, taken up in another tab, made again, deleted."""

from __future__ import annotations

import asyncio
import base64
import html
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdsedit.errors import InputRefused, printable
from sdsedit.io import images, record, splats, svg
from sdsedit.io.images import Picture
from sdsedit.request import MAX_REFERENCES
from sdsedit.web import image_work, looks, sketch_work, splat_work, style_work
from sdsedit.web.events import handler, look_at, news, on_press, place_to_serve, press_saved, waiting_line
from sdsedit.web.history import History, Item
from sdsedit.web.image_work import Progress
from sdsedit.web.sessions import Sessions
from sdsedit.web.settings import Settings
from sdsedit.web.worker import Cancelled, Job

PAGE = 24  # results that are shown at first, and more at a time
EMPTY = "What you make in the other tabs will be kept here, with everything that is needed to make it again."
NOTHING = "Nothing here has these words."
CHOOSE = "Press a result to look at it."
KIND_NAMES = {"image": "Picture", "sketch": "Drawing", "splats": "Scene", "style": "Style"}
ON_CARD = (
    on_press("result")
    + """
element.addEventListener("click", (event) => {  // marked here: two hundred cards are not sent again for it
  const pressed = event.target.closest("button[data-result]");
  if (!pressed) return;
  for (const card of element.querySelectorAll("button[data-result]")) card.ariaPressed = String(card === pressed);
});
"""
)
ASKING = 0.5  # seconds in which a second press on Delete is a double click, and no answer
SAVE = press_saved("history-saved")
LOOK = look_at("history-detail")


@dataclass
class Shelf:
    """What a person looks at."""

    words: str = ""
    shown: int = PAGE
    chosen: str | None = None  # id
    asked: float | None = None  # when Delete was pressed once, by time.monotonic


class HistoryTab:
    """One page's History tab. `tab` is the gr.Tab that it stands in, `tabs` the row of them all; `image`, `sketch`,
    `splats` and `style` are the others."""

    def __init__(
        self,
        settings: Settings,
        history: History,
        tab: Any,
        tabs: Any,
        image: Any,
        sketch: Any,
        splats: Any,
        style: Any = None,
    ) -> None:
        self.worker, self.settings, self.model, self.history = image.worker, settings, image.model, history
        self.tab, self.tabs, self.image, self.sketch, self.splats, self.style = tab, tabs, image, sketch, splats, style
        self.shelves: Sessions[Shelf] = Sessions(Shelf, settings.idle, settings.sessions)
        self._lay_out()
        self._wire()

    # ---- widgets

    def _lay_out(self) -> None:
        import gradio as gr

        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=5, min_width=300):
                self.words = gr.Textbox(
                    label="Search", placeholder="crown", max_lines=1, elem_id="history-words",
                    info="Words of what was asked for, the kind or the method.",
                )  # fmt: skip
                self.cards = gr.HTML(js_on_load=ON_CARD, elem_id="history-cards")
                self.more = gr.Button("Show more", visible=False, elem_id="history-more")
            with gr.Column(scale=5, min_width=320):
                self.detail = gr.HTML(image_work.message(CHOOSE), elem_id="history-detail")
                self.stage = gr.HTML(visible=False, elem_id="history-stage")
                self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="history-stop")
                with gr.Row(visible=False, elem_id="history-acts") as self.acts:
                    self.save = gr.Button("Download", variant="primary", elem_id="history-save", min_width=90)
                    self.again = gr.Button("Make it again", elem_id="history-again", min_width=110)
                    self.delete = gr.Button("Delete", elem_id="history-delete", min_width=80)
                    self.keep = gr.Button("Keep it", elem_id="history-keep", min_width=80, visible=False)
                with gr.Row(visible=False, elem_id="history-sends") as self.sends:
                    self.to_image = gr.Button("Open in Image", elem_id="history-to-image", min_width=120)
                    self.to_sketch = gr.Button("Open in Sketch", elem_id="history-to-sketch", min_width=120)
                    self.to_splats = gr.Button("Open in Splats", elem_id="history-to-splats", min_width=120)
                    self.to_style = gr.Button("Restyle", elem_id="history-to-style", min_width=90)
                with gr.Accordion("Recipe", open=False, visible=False, elem_id="history-recipe") as self.recipe_box:
                    self.recipe = gr.JSON(show_label=False, elem_id="history-json", buttons=["copy"])
                self.saved = gr.DownloadButton("Download", visible="hidden", elem_id="history-saved")

    # ---- wiring

    def _wire(self) -> None:
        self.table = table = [
            self.cards, self.more, self.detail, self.stage, self.stop, self.acts, self.again, self.delete, self.keep,
            self.sends, self.to_image, self.to_sketch, self.to_splats, self.to_style, self.recipe_box, self.recipe,
        ]  # fmt: skip
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        model: dict[str, Any] = {**quiet, "concurrency_id": "model", "concurrency_limit": None}
        self.tab.select(handler(self.show_again), None, table, **quiet)
        self.words.change(handler(self.search), self.words, table, trigger_mode="always_last", **quiet)
        self.more.click(handler(self.show_more), None, table, **quiet)
        chosen = self.cards.select(handler(self.choose, event=True), None, table, **quiet)
        chosen.success(None, None, None, js=LOOK, **quiet)
        self.delete.click(handler(self.forget), None, table, **quiet)
        self.keep.click(handler(self.show_again), None, table, **quiet)
        event = self.again.click(handler(self.repeat), None, table, trigger_mode="once", **model)
        event.failure(handler(self.show_again), None, table, **quiet)
        self.stop.click(handler(self.stop_running), None, self.stop, queue=False, **quiet)
        written = self.save.click(handler(self.write), None, self.saved, **quiet)
        written.success(None, None, None, js=SAVE, **quiet)
        for button, tab, send in (
            (self.to_image, self.image, self.send_to_image),
            (self.to_sketch, self.sketch, self.send_to_sketch),
            (self.to_splats, self.splats, self.send_to_splats),
            (self.to_style, self.style, self.send_to_style),
        ):
            if tab is not None:
                button.click(handler(send), None, [*tab.table, self.tabs], **quiet)

    # ---- what a person did

    def search(self, person: str, words: str) -> dict[Any, Any]:
        shelf = self.shelves.of(person)
        shelf.words, shelf.shown, shelf.asked = (words or "")[:500], PAGE, None
        return self._show(shelf)

    def show_more(self, person: str) -> dict[Any, Any]:
        shelf = self.shelves.of(person)
        shelf.shown += PAGE
        return self._show(shelf)

    def choose(self, person: str, said: dict[str, Any]) -> dict[Any, Any]:
        shelf = self.shelves.of(person)
        id = said.get("result")
        self.history.get(id if isinstance(id, str) else "")
        shelf.chosen, shelf.asked = str(id), None
        return self._show(shelf, {self.cards, self.more})

    def forget(self, person: str) -> dict[Any, Any]:
        """The first press asks, a second one deletes; both at once are a double click, which only asks."""
        shelf = self.shelves.of(person)
        if shelf.asked is not None and time.monotonic() - shelf.asked > ASKING:
            id, shelf.chosen, shelf.asked = shelf.chosen, None, None
            self.history.delete(id or "")
            return self._show(shelf)
        self._item(person)
        shelf.asked = time.monotonic()
        return self._show(shelf, {self.cards, self.more})

    def write(self, person: str) -> str:
        """The file itself, which carries its recipe."""
        return str(self._copy(self._item(person).output))

    def send_to_image(self, person: str) -> dict[Any, Any]:
        item = self._item(person)
        shows = str(item.recipe.get("target") or item.recipe.get("prompt") or "")
        return {**self.image.take(person, str(self._picture(item)), shows, shows), self.tabs: self._tab("image")}

    def send_to_style(self, person: str) -> dict[Any, Any]:
        item = self._item(person)
        return {**self.style.take(person, str(self._picture(item))), self.tabs: self._tab("style")}

    def _picture(self, item: Item) -> Path:
        """A result as a picture."""
        if item.kind in ("image", "style"):
            path = self._copy(item.output)
        elif item.kind == "sketch":
            page = sketch_work.page_of(item.output.read_bytes())
            path = self._file(f"{item.output.stem}.png", images.encode_png(page))
        else:
            scene = splat_work.read_scene(item.output, self.settings.max_upload)
            path = self._file(
                f"{item.output.stem}.png", images.encode_png(splat_work.picture(scene.splats, scene, 512))
            )
        return path

    def send_to_sketch(self, person: str) -> dict[Any, Any]:
        item = self._item(person)
        if item.kind != "sketch":
            raise InputRefused("Only a drawing can be sent there.")
        shows = str(item.recipe.get("target") or item.recipe.get("prompt") or "")
        taken = self.sketch.take(person, str(self._copy(item.output)), shows, shows)
        return {**taken, self.tabs: self._tab("sketch")}

    def send_to_splats(self, person: str) -> dict[Any, Any]:
        item = self._item(person)
        if item.kind != "splats":
            raise InputRefused("Only a scene can be sent there.")
        shows = str(item.recipe.get("target") or "")
        taken = self.splats.take(person, str(self._copy(item.output)), shows, shows)
        return {**taken, self.tabs: self._tab("splats")}

    async def repeat(self, person: str) -> AsyncIterator[dict[Any, Any]]:
        async with aclosing(self._repeat(person)) as updates:
            async for update in updates:
                yield update

    def stop_running(self, person: str) -> Any:
        import gradio as gr

        self.worker.cancel_all(person)
        return gr.update(value="Stopping after this step", interactive=False)

    def show_again(self, person: str) -> dict[Any, Any]:
        """What there is now, with nothing running and nothing asked: when the tab is opened, and after a refusal."""
        shelf = self.shelves.of(person)
        shelf.asked = None
        return self._show(shelf)

    # ---- inside

    def _item(self, person: str) -> Item:
        chosen = self.shelves.of(person).chosen
        if chosen is None:
            raise InputRefused("No result is chosen: press one of them.")
        return self.history.get(chosen)

    async def _repeat(self, person: str) -> AsyncGenerator[dict[Any, Any], None]:
        import gradio as gr

        item = self._item(person)
        prepared = await asyncio.to_thread(again, item, self.settings)

        def run(prior: Any, job: Job) -> tuple[str, bytes, np.ndarray, dict[str, Any]]:
            def tell(report: Any) -> None:
                job.report = report if isinstance(report, Progress) else report[1]

            def go_on() -> bool:
                job.between_steps()
                return not job.cancelled

            return prepared(prior, self.model(prior), tell, go_on)

        job = self.worker.submit(person, run, kind=item.kind)
        first = {
            self.acts: gr.update(visible=False),
            self.sends: gr.update(visible=False),
            self.stop: gr.update(visible=True, value="Stop", interactive=True),
        }
        async with aclosing(news(self.worker, job)) as reports:
            async for report in reports:
                if not isinstance(report, Progress):
                    shown = image_work.message(waiting_line(report[1], self.worker.state))
                elif report.preview is None:
                    shown = image_work.message("It begins.")
                else:
                    caption = image_work.progress_line(report)
                    shown = image_work.figure(report.preview, caption, "What is made again", report.done / report.total)
                yield {**first, self.stage: gr.update(visible=True, value=shown)}
                first = {}
        name, data, picture, recipe = job.result(0)
        shelf = self.shelves.of(person)

        def compare() -> str:
            said, same = compared(item, data)
            if not same:
                names = [each.name for each in (item.folder / "inputs").iterdir()]
                inputs = {what: path for what in names if (path := item.input(what)) is not None}
                before = None if item.before is None else images.read_picture(item.before).rgb
                shelf.chosen = self.history.add(item.kind, self._file(name, data), before, picture, recipe, inputs)
            return said

        said = await asyncio.to_thread(compare)
        updates = self._show(shelf)
        updates[self.stage] = gr.update(visible=True, value=f'<p class="verdict" role="status">{html.escape(said)}</p>')
        yield updates

    def _show(self, shelf: Shelf, but: set[Any] | None = None) -> dict[Any, Any]:
        """Every widget as it should be, `but` for those that are right already."""
        import gradio as gr

        items = self.history.search(shelf.words, shelf.shown + 1)
        item = None
        if shelf.chosen is not None:
            try:
                item = self.history.get(shelf.chosen)
            except InputRefused:  # deleted by somebody else
                shelf.chosen, shelf.asked = None, None
        empty = NOTHING if shelf.words.strip() else EMPTY
        there, asked = item is not None, shelf.asked is not None
        left = self.history.count(shelf.words) - shelf.shown
        updates: dict[Any, Any] = {
            self.cards: cards(items[: shelf.shown], shelf.chosen) if items else image_work.message(empty),
            self.more: gr.update(visible=len(items) > shelf.shown, value=f"Show more ({left} left)"),
            self.detail: image_work.message(CHOOSE) if item is None else detail(item),
            self.stage: gr.update(visible=False, value=""),
            self.stop: gr.update(visible=False),
            self.acts: gr.update(visible=there),
            self.again: gr.update(visible=not asked),
            self.delete: gr.update(
                value="Really delete?" if asked else "Delete", variant="stop" if asked else "secondary"
            ),
            self.keep: gr.update(visible=asked),
            self.sends: gr.update(visible=there),
            self.to_image: gr.update(visible=self.image is not None),
            self.to_sketch: gr.update(visible=item is not None and item.kind == "sketch" and self.sketch is not None),
            self.to_splats: gr.update(visible=item is not None and item.kind == "splats" and self.splats is not None),
            self.to_style: gr.update(visible=self.style is not None),
            self.recipe_box: gr.update(visible=there),
            self.recipe: None if item is None else item.recipe,
        }
        return {widget: update for widget, update in updates.items() if widget not in (but or ())}

    def _tab(self, id: str) -> Any:
        import gradio as gr

        return gr.Tabs(selected=id)

    def _copy(self, path: Path) -> Path:
        """A file of the history where Gradio may serve it."""
        return Path(shutil.copyfile(path, place_to_serve(self.settings.folder, path.name)))

    def _file(self, name: str, data: bytes) -> Path:
        path = place_to_serve(self.settings.folder, name)
        path.write_bytes(data)
        return path


# ---- the same again

Repeat = Callable[
    [Any, dict[str, Any], Callable[[Any], None], Callable[[], bool]], tuple[str, bytes, np.ndarray, dict[str, Any]]
]


def again(item: Item, settings: Settings) -> Repeat:
    """How to make a result again from its recipe: gives (name, file, picture, recipe). A run that was stopped is
    stopped at the same step. InputRefused: what it was made of is not here."""
    recipe, given = item.recipe, item.input("input")
    ended = recipe.get("result")
    stop = ended.get("steps_done") if isinstance(ended, Mapping) and ended.get("stopped") == "cancelled" else None
    if item.kind == "image":
        if given is None:
            raise InputRefused("The picture that this one was made from is not in the history: it cannot be repeated.")
        order = _image_order(item, given, settings)

        def image(prior: Any, model: dict[str, Any], tell: Any, go_on: Any) -> Any:
            until = _until(go_on, stop)
            result = image_work.run_edit(prior, order, model, tell, until)
            state = image_work.last_state(result)
            name = image_work.file_name(order.picture)
            return name, image_work.png_of(result, state), state.rgb, image_work.recipe_of(result, state)

        return image
    if item.kind == "sketch":
        drawing = None if given is None else sketch_work.read_drawing(given, settings.max_upload)
        asked = sketch_work.order_of(recipe, drawing, _references(item, settings))

        def sketch(prior: Any, model: dict[str, Any], tell: Any, go_on: Any) -> Any:
            made = sketch_work.run(prior, asked, model, tell, _until(go_on, stop))
            return made.name, made.svg, sketch_work.page_of(made.svg), made.recipe

        return sketch
    if item.kind == "style":
        content, regions = (
            None if path is None else image_work.read_input(str(path), settings.max_pixels)
            for path in (given, item.input("regions"))
        )
        references, of_each = (_numbered(item, what, settings) for what in ("reference", "regions"))
        styled = style_work.order_of(recipe, content, references, regions, of_each)

        def style(prior: Any, model: dict[str, Any], tell: Any, go_on: Any) -> Any:
            made = style_work.run(prior, styled, model, tell, _until(go_on, stop))
            return made.name, style_work.png_of(made), made.rgb, made.recipe

        return style
    scene = None if given is None else splat_work.read_scene(given, settings.max_upload)
    wanted = splat_work.order_of(recipe, scene, _references(item, settings))

    def scenes(prior: Any, model: dict[str, Any], tell: Any, go_on: Any) -> Any:
        edited = splat_work.run(prior, wanted, model, tell, _until(go_on, None), stop)
        picture = splat_work.picture(edited.result.splats, wanted.scene)
        return edited.name(".ply"), splat_work.scene_bytes(edited, ".ply"), picture, edited.recipe

    return scenes


def _numbered(item: Item, what: str, settings: Settings) -> tuple[Picture, ...]:
    """The pictures "reference 1", "reference 2", ... that something was made of."""
    found = [path for k in range(1, MAX_REFERENCES + 1) if (path := item.input(f"{what} {k}")) is not None]
    return looks.read([str(path) for path in found], settings.max_pixels)


def _image_order(item: Item, given: Path, settings: Settings) -> image_work.Order:
    picture = image_work.read_input(str(given), settings.max_pixels)
    drawn = item.input("mask")
    mask = None if drawn is None else images.read_mask(drawn, picture.size)
    if mask is None and item.recipe.get("mask"):
        raise InputRefused("The mask that this picture was made with is not in the history: it cannot be repeated.")
    references = _references(item, settings)
    request, config = record.image_request(item.recipe, None if mask is None else mask.tensor())
    request = replace(request, references=tuple(each.tensor() for each in references))
    return image_work.Order(picture, mask, request, config, references)


def _references(item: Item, settings: Settings) -> tuple[Picture, ...]:
    """The pictures whose look a picture or a drawing took. InputRefused: they are not here."""
    found = _numbered(item, "reference", settings)
    if len(found) != len(item.recipe.get("references") or ()):
        raise InputRefused("The pictures whose look this one took are not in the history: it cannot be repeated.")
    return found


def _until(go_on: Callable[[], bool], stop: int | None) -> Callable[[], bool]:
    """`go_on`, and False after `stop` steps; a person's Stop ends a repetition without a result."""
    steps = 0

    def ask() -> bool:
        nonlocal steps
        steps += 1
        if not go_on():
            raise Cancelled
        return steps != stop

    return ask


def compared(item: Item, data: bytes) -> tuple[str, bool]:
    """Whether a result that was made again is the one of the history: (a sentence, yes or no)."""
    before = item.output.read_bytes()
    if before == data:
        return "Made again: the same, byte for byte.", True
    if item.kind in ("image", "style"):
        then, now = images.read_picture(item.output).rgb, _read_rgb(data)
        if then.shape == now.shape:
            count = int((then != now).any(-1).sum())
            if not count:
                return "Made again: the same, pixel for pixel.", True
            return f"Made again: {count:,} of {then[..., 0].size:,} pixels differ. Both are kept.", False
    elif item.kind == "sketch":
        then, now = (svg.write_svg(svg.read_svg(each), recipe="") for each in (before, data))
        if then == now:
            return "Made again: the drawing is the same, byte for byte.", True
    elif item.output.suffix.lower() == ".ply":
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "again.ply"
            path.write_bytes(data)
            a, b = (record.with_recipe(splats.read(each), None) for each in (item.output, path))
        if splats.encode(a, "a.ply") == splats.encode(b, "b.ply"):
            return "Made again: the scene is the same, bit for bit.", True
    return (
        "Made again, and not the same: another model, version or machine made the first. It is kept beside it.",
        False,
    )


def _read_rgb(png: bytes) -> np.ndarray:
    import io

    from PIL import Image

    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


# ---- what is shown


def cards(items: list[Item], chosen: str | None) -> str:
    """The results as pictures to press."""
    made = []
    for item in items:
        label = f"{KIND_NAMES[item.kind]}: {item.title}, {when(item.made)}"
        pressed = str(item.id == chosen).lower()
        made.append(
            f'<button type="button" class="card" data-result="{item.id}" aria-pressed="{pressed}" '
            f'aria-label="{html.escape(label)}"><img alt="" src="{_source(item.after)}">'
            f"<span>{html.escape(item.title)}</span>"
            f"<small>{KIND_NAMES[item.kind]}, {html.escape(when(item.made))}</small></button>"
        )
    return f'<div class="cards" role="group" aria-label="Results">{"".join(made)}</div>'


def detail(item: Item) -> str:
    """One result: its pictures, and how it was made in plain words."""
    pictures = [("After", item.after)] if item.before is None else [("Before", item.before), ("After", item.after)]
    figures = "".join(
        f'<figure class="stage"><img alt="{word}: {html.escape(item.title)}" src="{_source(path)}">'
        f"<figcaption>{word if len(pictures) > 1 else html.escape(when(item.made))}</figcaption></figure>"
        for word, path in pictures
    )
    rows = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(printable(value, 400))}</dd>" for name, value in facts(item)
    )
    return f'<div class="pair">{figures}</div><dl class="facts">{rows}</dl>'


def facts(item: Item) -> list[tuple[str, str]]:
    """What a recipe says, for people."""
    recipe = item.recipe

    def part(name: str) -> Mapping[str, Any]:
        found = recipe.get(name)
        return found if isinstance(found, Mapping) else {}

    def text(value: object) -> str:
        return "" if value is None else str(value)

    method, model, result, settings = part("method"), part("model"), part("result"), part("settings")
    steps = result.get("steps_done")
    ended = "" if not result.get("stopped") else f", {result['stopped']}"
    named = {"builtin": "built-in model"}.get(text(model.get("id")), text(model.get("id")))
    found = [
        ("Asked for", text(recipe.get("target") or recipe.get("prompt"))),
        ("It showed", text(recipe.get("source"))),
        ("Place found by", ", ".join(map(str, result.get("words") or []))),
        ("Kind of change", "" if recipe.get("kind") == "style" else text(result.get("kind"))),
        ("Style", text(settings.get("style"))),
        ("Look of", ", ".join(_names(recipe.get("references")))),
        ("Strokes asked for", text(settings.get("strokes"))),
        ("Method", text(method.get("name")).upper()),
        ("Steps", "" if steps is None else f"{steps}{ended}"),
        ("Seed", text(recipe.get("seed", settings.get("seed")))),
        ("Made from", text(part("input").get("name"))),
        ("Model", named),
        ("Made", when(item.made)),
        ("File", item.output.name),
    ]
    return [(name, value) for name, value in found if value]


def _names(files: object) -> list[str]:
    named = files if isinstance(files, list) else []
    return [str(each.get("name")) for each in named if isinstance(each, Mapping)]


def when(made: float) -> str:
    """A time as people say it: "today 14:05", "3 May 2026, 09:30"."""
    then, now = time.localtime(made), time.localtime()
    clock = f"{then.tm_hour:02}:{then.tm_min:02}"
    if then[:3] == now[:3]:
        return f"today {clock}"
    return f"{then.tm_mday} {time.strftime('%b %Y', then)}, {clock}"


def _source(path: Path) -> str:
    return "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
