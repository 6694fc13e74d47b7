"""Pictures whose look something takes, as the tabs ask for them: dropped, or taken of examples."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sdsedit.errors import InputRefused
from sdsedit.io.images import Picture
from sdsedit.prior.load import builtin_path
from sdsedit.request import MAX_REFERENCES
from sdsedit.web.events import handler, on_press
from sdsedit.web.image_work import read_input
from sdsedit.web.settings import Settings

THUMBNAIL = 112  # pixels
ORDER = ("mosaic", "stained_glass", "brushwork", "pebbles", "leaves", "watercolour", "scales", "dots")
ON_EXAMPLE = on_press("example", number=True)


def examples() -> list[Path]:
    """The example looks that are here."""
    folder = builtin_path().parent / "styles"
    return [folder / f"{name}.png" for name in ORDER if (folder / f"{name}.png").is_file()]


def read(paths: Sequence[str] | None, max_pixels: int, most: int = MAX_REFERENCES) -> tuple[Picture, ...]:
    """The pictures of these files, in their order. InputRefused: one of them cannot be used, or they are too many."""
    if len(paths or ()) > most:
        raise InputRefused(f"At most {most} looks can be mixed here; {len(paths or ())} are given.")
    return tuple(read_input(path, max_pixels) for path in paths or ())


class Looks:
    """A row of pictures on the page, with examples to add. Nothing of it is on anybody's desk: whoever starts a run
    gives `gallery`, which comes as a list of paths, to `read`."""

    def __init__(self, settings: Settings, id: str, most: int = MAX_REFERENCES) -> None:
        import gradio as gr

        self.settings, self.most = settings, most
        self.gallery: Any = gr.Gallery(
            label="Looks", show_label=False, columns=4, height=150, format="png", file_types=["image"],
            interactive=True, allow_preview=False, fit_columns=False, object_fit="cover", buttons=[],
            sources=["upload", "clipboard"], elem_id=id,
        )  # fmt: skip
        self.gallery.preprocess = _paths  # its own opens any kind of file; ours are read by io.images
        shown = examples()
        self.examples = gr.HTML(
            thumbnails(shown, "Example looks"), js_on_load=ON_EXAMPLE, elem_id=f"{id}-examples", visible=bool(shown)
        )
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        dropped = self.gallery.upload(handler(self.check), self.gallery, None, **quiet)
        dropped.failure(handler(self.keep_good), self.gallery, self.gallery, **quiet)
        self.examples.select(handler(self.add, event=True), self.gallery, self.gallery, **quiet)

    def read(self, paths: Sequence[str] | None) -> tuple[Picture, ...]:
        return read(paths, self.settings.max_pixels, self.most)

    def check(self, person: str, paths: Sequence[str] | None) -> None:
        """Refuse at once what could not be used later."""
        self.read(paths)

    def keep_good(self, person: str, paths: Sequence[str] | None) -> list[str]:
        """After a refusal: those that can be used."""
        good: list[str] = []
        for path in paths or ():
            try:
                self.read([path])
            except InputRefused:  # the page has its sentence
                continue
            good.append(path)
        return good[: self.most]

    def add(self, person: str, said: dict[str, Any], paths: Sequence[str] | None) -> list[str]:
        """An example, beside those that are there."""
        shown, index = examples(), said.get("example")
        if not isinstance(index, int) or not 0 <= index < len(shown):
            raise InputRefused("There is no such example.")
        more = [*(paths or ()), str(shown[index])]
        if len(more) > self.most:
            raise InputRefused(f"At most {self.most} looks can be mixed here: take one away first.")
        return more


def thumbnails(paths: Sequence[Path], label: str) -> str:
    """Pictures to press; what a press says is on_press("example", number=True)."""
    made = []
    for k, path in enumerate(paths):
        buffer = io.BytesIO()
        with Image.open(path) as opened:
            small = opened.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
            small.save(buffer, "WEBP", quality=85)
        data, name = base64.b64encode(buffer.getvalue()).decode("ascii"), html.escape(path.stem.replace("_", " "))
        made.append(
            f'<button type="button" data-example="{k}" aria-label="Example: {name}" title="{name}">'
            f'<img alt="" src="data:image/webp;base64,{data}"></button>'
        )
    return f'<div class="thumbs" role="group" aria-label="{html.escape(label)}">{"".join(made)}</div>'


def _paths(payload: Any) -> list[str]:
    """A gallery's preprocess: the files themselves, unopened; a film is refused where it is read."""
    every = [] if payload is None else payload.root
    return [(each.image if hasattr(each, "image") else each.video).path for each in every]
