"""The History tab: how results are listed and described, and whether one that was made again is the same."""

from __future__ import annotations

import io
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdsedit.errors import InputRefused
from sdsedit.io import images, record, splats
from sdsedit.io.images import Picture
from sdsedit.io.svg import new_svg
from sdsedit.prior import UNetPrior
from sdsedit.web import history_tab as tab
from sdsedit.web import image_work, sketch_work
from sdsedit.web.history import History, Item
from sdsedit.web.settings import Settings
from sdsedit.web.worker import Cancelled
from tests.little_scene import little_scene

MODEL = {"id": "tiny", "revision": None, "device": "cpu", "dtype": "float32"}
LOOK = Picture("dots.png", "0" * 64, "PNG", np.full((32, 40, 3), (200, 40, 90), np.uint8), None, None, ())
GREY = np.full((24, 24, 3), 128, np.uint8)


@pytest.fixture
def kept(tmp_path: Path) -> History:
    return History(tmp_path / "history")


def add(kept: History, kind: Any, name: str, data: bytes, recipe: dict[str, Any], inputs: Any = None) -> Item:
    path = kept.folder / name
    path.write_bytes(data)
    return kept.get(kept.add(kind, path, GREY, GREY, recipe, inputs))


def test_cards_and_facts_are_escaped_and_in_plain_words(kept: History):
    recipe = {
        "target": "<b>a hat</b>", "source": "a cat", "seed": 7, "model": {"id": "builtin"}, "method": {"name": "lusd"},
        "result": {"words": ["hat"], "steps_done": 12, "stopped": "cancelled", "kind": None},
        "input": {"name": "c.png"},
    }  # fmt: skip
    item = add(kept, "image", "c.png", b"x", recipe)
    shown = tab.cards([item], item.id) + tab.detail(item)
    assert "<b>" not in shown and "&lt;b&gt;a hat" in shown and 'aria-pressed="true"' in shown
    assert shown.count("data:image/webp") == 3 and "Picture, today" in shown
    facts = dict(tab.facts(item))
    assert facts["Steps"] == "12, cancelled" and facts["Model"] == "built-in model" and facts["Method"] == "LUSD"
    assert facts["Seed"] == "7" and facts["Made from"] == "c.png" and "Style" not in facts


def test_facts_of_a_recipe_that_says_nothing(kept: History):
    item = add(kept, "sketch", "a.svg", b"x", {"model": None, "result": []})
    assert {"Made", "File"} == {name for name, _ in tab.facts(item)}


def test_when():
    assert tab.when(time.time()).startswith("today ")
    assert tab.when(time.mktime((2024, 5, 3, 9, 30, 0, 0, 0, -1))) == "3 May 2024, 09:30"


def test_pictures_are_compared_pixel_for_pixel(kept: History):
    item = add(kept, "image", "a.png", images.encode_png(GREY, None, None, "{}"), {})
    assert tab.compared(item, images.encode_png(GREY, None, None, "{}")) == (
        "Made again: the same, byte for byte.", True
    )  # fmt: skip
    assert tab.compared(item, images.encode_png(GREY, None, None, '{"a": 1}')) == (
        "Made again: the same, pixel for pixel.", True
    )  # fmt: skip
    other = GREY.copy()
    other[3, 4] = 0
    said, same = tab.compared(item, images.encode_png(other))
    assert not same and "1 of 576 pixels differ" in said
    assert not tab.compared(item, images.encode_png(GREY[:9]))[1]


def test_drawings_and_scenes_are_compared_without_their_recipes(kept: History):
    drawing = add(kept, "sketch", "a.svg", new_svg(9, 9, (1, 1, 1), [], "{}"), {})
    assert tab.compared(drawing, new_svg(9, 9, (1, 1, 1), [], '{"a": 1}'))[1]
    assert not tab.compared(drawing, new_svg(9, 9, (1, 0, 1), [], "{}"))[1]
    scene = little_scene()
    item = add(kept, "splats", "a.ply", splats.encode(record.with_recipe(scene, {"schema": 1}), "a.ply"), {})
    assert tab.compared(item, splats.encode(record.with_recipe(scene, {"schema": 1, "b": 2}), "a.ply"))[1]
    scene.means[0, 0] += 1
    assert not tab.compared(item, splats.encode(scene, "a.ply"))[1]


@pytest.mark.parametrize("looks", [(), (LOOK,)], ids=["plain", "with a look"])
def test_a_picture_is_made_again(kept: History, builtin_prior: UNetPrior, tmp_path: Path, looks: tuple[Picture, ...]):
    path, settings = tmp_path / "cat.png", Settings(folder=tmp_path / "page")
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)).save(path)
    order = image_work.make_order(
        image_work.read_input(str(path), 10**6), None, "a cat", "a cat wearing a crown", None, "dds", 1.0, 3, None,
        looks, 3.0,
    )  # fmt: skip
    steps = iter(range(100))
    result = image_work.run_edit(builtin_prior, order, MODEL, lambda report: None, lambda: next(steps) < 2)
    state = image_work.last_state(result)
    assert len(result.path) == 3  # it was stopped
    data, recipe = image_work.png_of(result, state), image_work.recipe_of(result, state)
    assert ("references" in recipe) == bool(looks) and recipe.get("style_weight", 3.0) == 3.0
    inputs = {"input": path, **image_work.references_kept(looks, tmp_path / "looks")}
    item = add(kept, "image", "cat-edited.png", data, recipe, inputs)
    name, again, picture, told = tab.again(item, settings)(builtin_prior, MODEL, lambda report: None, lambda: True)
    assert name == "cat-edited.png" and tab.compared(item, again)[1]
    assert np.array_equal(picture, state.rgb) and told["result"]["steps_done"] == 3
    assert Image.open(io.BytesIO(again)).size == (128, 128)
    with pytest.raises(Cancelled):
        tab.again(item, settings)(builtin_prior, MODEL, lambda report: None, lambda: False)
    if looks:
        item = add(kept, "image", "cat-edited.png", data, recipe, {"input": path})
        with pytest.raises(InputRefused, match="whose look this one took are not in the history"):
            tab.again(item, settings)


@pytest.mark.parametrize("looks", [(), (LOOK,)], ids=["plain", "with a look"])
def test_a_sketch_is_made_again(kept: History, builtin_prior: UNetPrior, tmp_path: Path, looks: tuple[Picture, ...]):
    order = sketch_work.draw_order("a cat", 8, "colour", False, 1.0, 2, 0, looks, 1.5)
    made = sketch_work.run(builtin_prior, order, MODEL, lambda report: None, lambda: True)
    assert [each["name"] for each in made.recipe.get("references", [])] == [look.name for look in looks]
    inputs = image_work.references_kept(looks, tmp_path / "looks")
    item = add(kept, "sketch", made.name, made.svg, made.recipe, inputs)
    run = tab.again(item, Settings(folder=tmp_path / "page"))
    assert tab.compared(item, run(builtin_prior, MODEL, lambda report: None, lambda: True)[1])[1]


@pytest.mark.parametrize("kind", ["image", "splats", "sketch"])
def test_without_what_it_was_made_of_it_cannot_be(kept: History, tmp_path: Path, kind: str):
    recipe = {"schema": 1, "kind": "svg" if kind == "sketch" else kind, "target": "a cat"}
    item = add(kept, kind, "x.bin", b"x", recipe)
    with pytest.raises(InputRefused, match="not in the history"):
        tab.again(item, Settings(folder=tmp_path / "page"))


@pytest.mark.skipif(find_spec("gradio") is None, reason="the page needs gradio: pip install -e '.[web]'")
def test_nothing_is_deleted_by_a_wrong_click(kept: History, monkeypatch: pytest.MonkeyPatch):
    """Delete asks; a double click, another result, a search or the tab opened again are no answer."""
    import gradio as gr

    now = 100.0
    monkeypatch.setattr(tab.time, "monotonic", lambda: now)
    first, second = (add(kept, "image", f"{name}.png", b"x", {"target": name}).id for name in "ab")
    with gr.Blocks(), gr.Tabs() as tabs, gr.Tab("History") as own:
        image = SimpleNamespace(worker=None, model=None, table=[], take=None)
        shown = tab.HistoryTab(Settings(), kept, own, tabs, image, None, None)
    with pytest.raises(InputRefused, match="No result is chosen"):
        shown.forget("me")
    shown.choose("me", {"result": first})
    told = shown.forget("me")
    assert told[shown.delete]["value"] == "Really delete?" and told[shown.keep]["visible"] and shown.cards not in told
    now += 0.2
    shown.forget("me")
    assert kept.count() == 2, "a double click deleted it"
    shown.show_again("me")
    for other in (
        lambda: shown.choose("me", {"result": first}),
        lambda: shown.search("me", "a"),
        lambda: shown.show_again("me"),
    ):
        now += 5
        shown.forget("me")
        told = other()
        assert told[shown.delete]["value"] == "Delete" and not told[shown.keep]["visible"]
    now += 5
    shown.forget("me")
    now += 1
    shown.forget("me")
    assert [item.id for item in kept.search()] == [second]
