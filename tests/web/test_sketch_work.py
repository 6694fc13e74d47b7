"""What the Sketch tab does, without a browser; the tiny model stands for the built-in one."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdsedit.errors import InputRefused
from sdsedit.io.images import read_picture
from sdsedit.io.record import read_recipe
from sdsedit.io.svg import read_svg
from sdsedit.prior import UNetPrior
from sdsedit.web import sketch_work as work
from sdsedit.web.image_work import Progress
from sdsedit.web.sketch_work import Drawing, Made, SketchDesk, SketchTable
from sdsedit.web.worker import Cancelled

MODEL = {"id": "tiny", "revision": None, "device": "cpu", "dtype": "float32"}
SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect width="64" height="64" fill="#fff"/>'
    b'<circle cx="32" cy="32" r="20" fill="#c00"/><path d="M4 4h8v8h-8z" fill="#00c"/></svg>'
)


def draw(strokes: int = 8, steps: int = 3, style: str = "ink") -> work.DrawOrder:
    return work.draw_order("a cat", strokes, style, False, 1.0, steps, 0)


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> Drawing:
    path = tmp_path_factory.mktemp("drawings") / "ball.svg"
    path.write_bytes(SVG)
    return work.read_drawing(path)


@pytest.fixture(scope="module")
def drawn(builtin_prior: UNetPrior) -> Made:
    return work.run(builtin_prior, draw(), MODEL, lambda progress: None, lambda: True)


@pytest.fixture(scope="module")
def changed(builtin_prior: UNetPrior, drawing: Drawing) -> Made:
    order = work.change_order(drawing, "a red ball", "a green ball", 1.0, 4, 3, 0)
    config = replace(order.config, edit=replace(order.config.edit, steps=4))  # the look at the picture
    order = replace(order, config=config)
    return work.run(builtin_prior, order, MODEL, lambda progress: None, lambda: True)


def test_words_become_strokes_with_their_recipe(drawn: Made, tmp_path: Path):
    (tmp_path / "a.svg").write_bytes(drawn.svg)
    recipe = read_recipe(tmp_path / "a.svg")
    assert recipe == drawn.recipe and recipe["prompt"] == "a cat" and recipe["result"]["steps_done"] == 3
    shapes = len(read_svg(drawn.svg).shapes) - 1  # paper
    assert 0 < shapes <= 8 and drawn.lines[0].startswith(f"{shapes} stroke")
    assert drawn.name == "a-cat.svg" and drawn.highlighted is None
    again = work.order_of(recipe, None)
    assert again == drawn.order


def test_progress_and_previews(builtin_prior: UNetPrior):
    told: list[Progress] = []
    work.run(builtin_prior, draw(), MODEL, told.append, lambda: True)
    assert told[0].preview is None and [each.done for each in told[1:]] in ([1, 3], [1, 2, 3])
    assert all(each.preview is not None and each.preview.shape == (384, 384, 3) for each in told[1:])


def test_stopping_keeps_what_is_there(builtin_prior: UNetPrior, drawing: Drawing):
    made = work.run(builtin_prior, draw(steps=50), MODEL, lambda progress: None, lambda: False)
    assert made.recipe["result"]["steps_done"] == 1 and "Stopped after 1 step; this is what was there." in made.lines
    order = work.change_order(drawing, "a red ball", "a green ball", 1.0, 4, 3, 0)
    with pytest.raises(Cancelled):  # in the look: no shape has been touched
        work.run(builtin_prior, order, MODEL, lambda progress: None, lambda: False)


def test_a_drawing_is_changed_and_the_change_is_marked(changed: Made, drawing: Drawing, tmp_path: Path):
    counts = changed.recipe["result"]
    total = counts["changed"] + counts["removed"] + counts["added"]
    assert changed.name == "ball-edited.svg" and changed.highlighted is not None
    marked = read_svg(changed.highlighted)
    orange = [shape for shape in marked.shapes if shape.stroke is not None and shape.stroke[0] > 0.8]
    blue = [shape for shape in marked.shapes if shape.stroke is not None and shape.stroke[2] > 0.7]
    assert len(orange) == counts["changed"] + counts["added"] and len(blue) == counts["removed"]
    assert len(marked.shapes) == 1 + counts["kept"] + total
    assert changed.lines[0].startswith(f"Kept byte for byte: {counts['kept']} of 3 shapes; ")
    assert work.order_of(changed.recipe, drawing).request.target == "a green ball"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputRefused, match="not in the history"):
        work.order_of(changed.recipe, None)


def test_what_is_given_out(drawn: Made, changed: Made, tmp_path: Path):
    (tmp_path / "a.png").write_bytes(work.png_of(drawn))
    assert read_picture(tmp_path / "a.png").size == (512, 512)
    assert read_recipe(tmp_path / "a.png") == drawn.recipe
    moving = work.animated(drawn)
    assert b"@keyframes" in moving and len(read_svg(moving).shapes) == len(read_svg(drawn.svg).shapes)
    film = Image.open(io.BytesIO(work.animated(drawn, ".gif")))
    assert film.is_animated and film.size == (512, 512)  # pyright: ignore[reportAttributeAccessIssue]
    assert work.page_of(changed.svg).shape == (512, 512, 3)


def test_it_is_shown_as_a_picture_without_scripts(tmp_path: Path):
    path = tmp_path / "odd.svg"
    path.write_bytes(SVG.replace(b"<circle", b"<script>alert(1)</script><circle onclick='alert(2)'"))
    shown = work.figure(work.read_drawing(path).document.data, "<b>", '"><img src=x onerror=alert(3)>')
    found = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', shown)
    assert found is not None and b"alert" not in base64.b64decode(found[1])
    assert "<b>" not in shown and shown.count("<img") == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"prompt": "  "}, "prompt is empty"),
        ({"prompt": "a\u202ecat"}, "control character U\\+202E"),
        ({"strokes": 2}, "strokes is 2"),
        ({"strokes": 2000}, "at most 512 are drawn"),
        ({"strokes": 8.5}, "strokes is 8.5"),
        ({"style": "oil"}, "must be one of ink"),
        ({"width": float("nan")}, "width is"),
        ({"steps": 5000}, "at most 1000 are run"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_refused(given: dict[str, object], sentence: str):
    usual = {"prompt": "a cat", "strokes": 8, "style": "ink", "background": False, "width": 1, "steps": 3, "seed": 0}
    with pytest.raises(InputRefused, match=sentence):
        work.draw_order(**{**usual, **given})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("data", [b"", b"not a drawing", b'<!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg"/>'])
def test_a_file_that_is_no_drawing(data: bytes, tmp_path: Path):
    (tmp_path / "bad.svg").write_bytes(data)
    with pytest.raises(InputRefused, match=r"bad\.svg"):
        work.read_drawing(tmp_path / "bad.svg")


def test_undo(drawing: Drawing, drawn: Made):
    desk = SketchDesk()
    desk.put(SketchTable("change", drawing))
    desk.put(SketchTable("draw", None, made=drawn))
    assert len(desk.tables) == 2  # the empty one below is gone
    desk.undo()
    assert desk.table.drawing is drawing
    with pytest.raises(InputRefused, match="nothing to undo"):
        desk.undo()
    for _ in range(40):
        desk.put(SketchTable("change", drawing))
    assert len(desk.tables) == work.UNDO + 1


def test_a_page_is_white_paper(drawn: Made):
    assert np.median(work.page_of(drawn.svg)) == 255
