"""What the Style tab does, without a browser: orders, runs, files, repetition, the history's words."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdsedit.errors import InputRefused
from sdsedit.io.images import Picture
from sdsedit.prior import UNetPrior
from sdsedit.web.history import History
from sdsedit.web.history_tab import again, compared, facts
from sdsedit.web.settings import Settings
from sdsedit.web.style_work import (
    StyleDesk,
    StyleTable,
    inputs_of,
    make_order,
    order_of,
    painted_parts,
    png_of,
    run,
    summary,
)
from sdsedit.web.worker import Cancelled

MODEL = {"id": "tiny", "revision": None, "device": "cpu", "dtype": "float32"}


def picture(name: str, seed: int, size: tuple[int, int] = (40, 32)) -> Picture:
    rgb = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Picture(name, f"{seed:064x}", "PNG", rgb, None, None, ())


LOOK, CAT = picture("mosaic.png", 1), picture("cat.png", 2)


def order(mode: str = "transfer", content: Picture | None = CAT, prompt: str = "", **given):
    numbers = {"width": 64.0, "height": 80.0, "keep": None, "steps": 2.0, "seed": 0.0, "scale": None, **given}
    return make_order(mode, (LOOK, None), content, prompt, *numbers.values())


@pytest.mark.parametrize(
    ("mode", "given", "size"),
    [("transfer", {"keep": 0.3}, (32, 40)), ("words", {"prompt": "a cat"}, (128, 128)), ("texture", {}, (80, 64))],
)
def test_what_is_made(builtin_prior: UNetPrior, tmp_path: Path, mode: str, given: dict, size: tuple[int, int]):
    reports = []
    wanted = order(mode, **given)
    made = run(builtin_prior, wanted, MODEL, reports.append, lambda: True)
    assert made.rgb.shape[:2] == size
    assert [report.done for report in reports][::2] == [0, 2] and reports[-1].preview is not None
    with Image.open(io.BytesIO(png_of(made))) as opened:
        recipe = json.loads(opened.text["sdsedit"])  # pyright: ignore[reportAttributeAccessIssue]
    assert recipe == json.loads(json.dumps(made.recipe)) and recipe["references"][0]["name"] == "mosaic.png"
    assert made.name.endswith("in-the-look-of-mosaic.png") or made.name == "a-texture-of-mosaic.png"
    assert "the look of mosaic" in summary(made) or "texture of mosaic" in summary(made)
    paths = inputs_of(wanted, tmp_path)
    assert set(paths) == {"reference 1"} | ({"input"} if mode == "transfer" else set())


def test_it_is_kept_found_and_made_again(builtin_prior: UNetPrior, tmp_path: Path):
    made = run(builtin_prior, order(), MODEL, lambda _: None, lambda: True)
    path = tmp_path / made.name
    path.write_bytes(png_of(made))
    history = History(tmp_path / "history")
    history.add("style", path, CAT.rgb, made.rgb, made.recipe, inputs_of(made.order, tmp_path / "inputs"))
    (item,) = history.search("mosaic style")
    assert item.title == "cat in the look of mosaic" and item.kind == "style"
    assert ("Look of", "mosaic.png") in facts(item)
    name, data, rgb, _ = again(item, Settings())(builtin_prior, MODEL, lambda _: None, lambda: True)
    assert name == made.name and (rgb == made.rgb).all() and "pixel for pixel" in compared(item, data)[0]
    (item.folder / "inputs" / "reference 1" / "mosaic.png").unlink()
    with pytest.raises(InputRefused, match="are not in the history: it cannot be repeated"):
        again(item, Settings())


def test_a_stop_keeps_what_is_there(builtin_prior: UNetPrior):
    asked = iter((True, False))
    made = run(builtin_prior, order(steps=9), MODEL, lambda _: None, lambda: next(asked))
    assert made.recipe["result"]["stopped"] == "cancelled" and "Stopped after 2 steps" in summary(made)


@pytest.mark.parametrize(
    ("mode", "given", "sentence"),
    [
        ("transfer", {"content": None}, "There is no picture yet to restyle"),
        ("words", {"prompt": " "}, "The prompt is empty"),
        ("texture", {"width": 5}, "width is 5"),
        ("texture", {"height": 4000}, "height is 4000"),
        ("transfer", {"keep": 11}, "keep is 11"),
        ("transfer", {"steps": 5000}, "steps is 5000"),
        ("transfer", {"seed": -1}, "seed is -1"),
        ("sideways", {}, "mode is sideways"),
    ],
)
def test_what_is_refused(mode: str, given: dict, sentence: str):
    with pytest.raises(InputRefused, match=sentence):
        order(mode, **given)


def test_painted_parts_take_their_own_look(builtin_prior: UNetPrior, tmp_path: Path):
    """Orange is the second look's, blue the third's; the run, its recipe, the history and the repetition know it."""
    layer = np.zeros((80, 100, 4), np.uint8)  # 2.5 times as large as the picture, in both directions
    layer[:40, :50] = (255, 90, 54, 255)
    layer[40:, 50:] = (40, 100, 230, 200)  # as good as blue
    layer[40:, :50] = (255, 90, 54, 90)  # hardly there: not painted
    looks = [LOOK, picture("dots.png", 3), picture("leaves.png", 4, (24, 48))]
    regions, of_each = painted_parts([layer], CAT, looks)
    assert (
        regions is not None and regions.size == CAT.size and [each.size for each in of_each] == [p.size for p in looks]
    )
    numbers = regions.numbers()[0, 0]
    first, second, third = (each.numbers().unique().item() for each in of_each)
    assert (numbers[:16, :20] == second).all() and (numbers[16:, 20:] == third).all()
    assert (numbers[16:, :20] == first).all() and (numbers[:16, 20:] == first).all()
    assert painted_parts([np.zeros_like(layer)], CAT, looks) == (None, ())
    assert painted_parts([], CAT, looks) == (None, ())
    with pytest.raises(InputRefused, match="Blue is for look 3, and there are 2 looks: add one, or erase it"):
        painted_parts([layer], CAT, looks[:2])
    with pytest.raises(InputRefused, match="Orange is for look 2, and there is 1 look"):
        painted_parts([np.where(np.arange(100)[:, None] < 50, layer, 0).astype(np.uint8)[:40]], CAT, [LOOK])

    wanted = make_order("transfer", looks, CAT, "", 64, 64, None, 2, 0, None, regions, of_each)
    made = run(builtin_prior, wanted, MODEL, lambda _: None, lambda: True)
    mixed = run(builtin_prior, replace(wanted, regions=None, reference_regions=()), MODEL, lambda _: None, lambda: True)
    assert (made.rgb != mixed.rgb).any() and wanted.said == "cat in the look of mosaic, dots and leaves"
    assert made.recipe["regions"]["name"] == "parts.png" and len(made.recipe["reference_regions"]) == 3
    path = tmp_path / made.name
    path.write_bytes(png_of(made))
    history = History(tmp_path / "history")
    id = history.add("style", path, CAT.rgb, made.rgb, made.recipe, inputs_of(wanted, tmp_path / "inputs"))
    _, data, rgb, _ = again(history.get(id), Settings())(builtin_prior, MODEL, lambda _: None, lambda: True)
    assert (rgb == made.rgb).all() and compared(history.get(id), data)[1]


def test_how_firmly_the_words_are_followed():
    assert order("words", prompt="a cat", scale=4.0).config.scale == 4.0
    assert order("texture", scale=4.0).config.scale is None  # it has no words
    with pytest.raises(InputRefused, match="scale is 31"):
        order("words", prompt="a cat", scale=31.0)


def test_without_a_reference_or_its_regions_there_is_no_order():
    with pytest.raises(InputRefused, match="no picture yet whose look is wanted"):
        make_order("texture", (None, None), None, "", 64, 64, None, 0, 0)
    with pytest.raises(InputRefused, match="are not in the history"):
        recipe = {
            "kind": "style", "prompt": None, "texture": None, "input": {"name": "a.png", "sha256": "0"}, "seed": 0,
            "references": [{"name": "b.png", "sha256": "0"}], "regions": {"name": "r.png", "sha256": "0"},
            "reference_regions": [{"name": "r.png", "sha256": "0"}],
            "settings": {"sampled": False, "steps": 2, "step_size": 0.1},
        }  # fmt: skip
        order_of(recipe, CAT, [LOOK])


def test_nothing_to_keep_before_the_first_step(builtin_prior: UNetPrior, monkeypatch):
    from sdsedit.web import style_work

    own = style_work.style

    def none(*given):
        return replace(own(*given), steps_done=0)

    monkeypatch.setattr(style_work, "style", none)
    with pytest.raises(Cancelled):
        run(builtin_prior, order(steps=1), MODEL, lambda _: None, lambda: True)


def test_a_desk_undoes():
    desk = StyleDesk()
    desk.put(StyleTable(reference=LOOK))
    desk.put(StyleTable(reference=LOOK, content=CAT))
    assert len(desk.tables) == 2  # the empty one below is gone
    desk.undo()
    assert desk.table.content is None
    with pytest.raises(InputRefused, match="nothing to undo"):
        desk.undo()
