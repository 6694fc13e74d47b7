"""What the Image tab does, without a browser and without Gradio; the tiny model stands for the built-in one."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdsedit.edit import edit
from sdsedit.errors import InputRefused
from sdsedit.io.images import Picture, read_picture, to_array
from sdsedit.io.record import image_request, read_recipe
from sdsedit.prior import UNetPrior
from sdsedit.web import image_work as work
from sdsedit.web.image_work import Desk, Result, Table, Word

MODEL = {"id": "tiny", "revision": None, "device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Picture:
    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    pixels = np.random.default_rng(1).integers(0, 256, (96, 128, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return read_picture(path)


def order(picture: Picture, **given: object) -> work.Order:
    settings = {"mask": None, "source": "a cat", "target": "a cat wearing a crown", "words": None} | given
    made = work.make_order(picture, method="lusd", strength=1.0, seed=3, **settings)  # pyright: ignore[reportArgumentType]
    return replace(made, config=replace(made.config, steps=4))


@pytest.fixture(scope="module")
def result(builtin_prior: UNetPrior, picture: Picture) -> Result:
    return work.run_edit(builtin_prior, order(picture), MODEL, lambda progress: None, lambda: True)


# ---- words


def test_words_with_the_new_ones_marked(builtin_prior: UNetPrior):
    assert work.words_of(builtin_prior, "a cat on grass", "a cat wearing a crown on grass") == (
        Word("cat", "target", "kept"),
        Word("crown", "target", "new"),
        Word("grass", "target", "kept"),
    )
    assert work.words_of(builtin_prior, "", "a red hat") == (Word("red", "target", "new"), Word("hat", "target", "new"))
    gone = work.words_of(builtin_prior, "a cat wearing a crown", "a cat")
    assert gone == (Word("cat", "target", "kept"), Word("crown", "source", "gone"))
    assert work.words_of(builtin_prior, "a cat", "") == ()
    with pytest.raises(InputRefused, match="control character"):
        work.words_of(builtin_prior, "a cat", "a \u202ecat")


def test_a_heat_map_is_of_the_pictures_size_and_the_same_again(builtin_prior: UNetPrior, picture: Picture):
    first = work.heat_map(builtin_prior, picture.tensor(), "a cat wearing a crown", ["crown"])
    again = work.heat_map(builtin_prior, picture.tensor(), "a cat wearing a crown", ["crown"])
    assert first.shape == (1, 1, 96, 128) and first.min() >= 0 and first.max() <= 1 and first.max() > first.min()
    assert first.equal(again)
    assert not first.equal(work.heat_map(builtin_prior, picture.tensor(), "a cat wearing a crown", ["cat"]))
    with pytest.raises(InputRefused, match="'dog' is not in the prompt"):
        work.heat_map(builtin_prior, picture.tensor(), "a cat", ["dog"])
    with pytest.raises(InputRefused, match="No word was named"):
        work.heat_map(builtin_prior, picture.tensor(), "a cat", [])


# ---- the edit and its path


def test_the_result_is_the_engines(builtin_prior: UNetPrior, picture: Picture, result: Result):
    asked = order(picture)
    same = edit(picture.tensor(), builtin_prior, asked.request, asked.config)
    assert np.array_equal(result.rgb, to_array(same.image)) and result.edited.kept_pixels == same.kept_pixels
    assert len(result.path) == same.steps_done == 4


def test_progress_previews_and_stopping(builtin_prior: UNetPrior, picture: Picture):
    told: list[work.Progress] = []
    stopped = work.run_edit(builtin_prior, order(picture), MODEL, told.append, lambda: len(told) < 1, 1, 2)
    assert len(stopped.path) == 1 and stopped.edited.stopped == "cancelled"
    assert (told[0].done, told[0].total) == (5, 8) and told[0].seconds_left > 0
    assert told[0].preview is not None and told[0].preview.shape[2] == 3
    assert "Stopped after 1 step;" in work.summary(stopped, work.last_state(stopped))


def test_the_path_leads_from_the_picture_to_the_result(builtin_prior: UNetPrior, picture: Picture, result: Result):
    states = [work.state_at(builtin_prior, result, step) for step in range(-1, 6)]
    assert np.array_equal(states[0].rgb, picture.rgb) and states[1].step == 0
    assert np.array_equal(states[-1].rgb, result.rgb) and states[-1].step == 4
    for state in states:
        outside = state.weight == 0
        assert np.array_equal(state.rgb[result.weight == 0], picture.rgb[result.weight == 0])
        assert np.array_equal(state.rgb[outside & (result.weight == 0)], picture.rgb[outside & (result.weight == 0)])
    # The rule for earlier states, applied to the last one, gives the result.
    import torch

    from sdsedit.representations.image import ImageLatent

    with torch.inference_mode():
        latent = ImageLatent(picture.tensor(), result.edited.z_src)
        out, _, _ = latent.finish(builtin_prior, result.path[-1], result.bound.float())
    assert np.abs(to_array(out).astype(int) - result.rgb).max() <= 1


def test_a_download_opens_again_with_its_recipe(
    builtin_prior: UNetPrior, picture: Picture, result: Result, tmp_path: Path
):
    state = work.state_at(builtin_prior, result, 2)
    (tmp_path / "out.png").write_bytes(work.png_of(result, state))
    again = read_picture(tmp_path / "out.png")
    assert np.array_equal(again.rgb, state.rgb) and again.alpha is not None
    assert np.array_equal(again.alpha, picture.alpha)
    recipe = read_recipe(tmp_path / "out.png")
    assert recipe["result"]["steps_done"] == 2 and not recipe["result"]["complete"] and recipe["steps"] == 4
    assert "after 2 of 4 steps" in " ".join(recipe["result"]["notes"]) and recipe["model"] == MODEL
    assert image_request(recipe, None)[0] == result.order.request
    whole = json.loads(json.dumps(work.recipe_of(result, work.last_state(result))))
    assert whole["result"]["complete"] and whole["input"]["sha256"] == picture.sha256


def test_continue_and_undo(result: Result, picture: Picture):
    desk = Desk()
    desk.put(Table(picture, "a cat", "a cat wearing a crown"))
    assert len(desk.tables) == 1  # there is nothing to go back to
    desk.put(Table(picture, "a cat", "a cat wearing a crown", result, work.last_state(result)))
    following = work.continued(desk.table)
    desk.put(following)
    assert following.picture is not None and following.source == "a cat wearing a crown"
    assert following.picture.name == "cat-edited.png" and np.array_equal(following.picture.rgb, result.rgb)
    data = work.png_of(result, work.last_state(result))
    assert following.picture.sha256 == hashlib.sha256(data).hexdigest()  # a download of it is this very input
    assert desk.undo().result is result and desk.undo().picture is picture
    with pytest.raises(InputRefused, match="nothing to undo"):
        desk.undo()
    with pytest.raises(InputRefused, match="no result"):
        work.continued(desk.table)
    for _ in range(30):
        desk.put(following)
    assert len(desk.tables) == work.UNDO + 1


def test_four_seeds(picture: Picture):
    asked = order(picture)
    assert [each.config.seed for each in work.seeds(asked)] == [3, 4, 5, 6]
    last = replace(asked, config=replace(asked.config, seed=2**63 - 1))
    assert [each.config.seed for each in work.seeds(last, 2)] == [2**63 - 1, 0]


# ---- what a person gives


def layer(width: int, height: int) -> np.ndarray:
    return np.zeros((height, width, 4), dtype=np.uint8)


def test_a_painted_mask_is_of_the_pictures_size():
    painted = layer(512, 384)
    painted[96:192, 128:256] = 255
    mask = work.painted_mask([layer(512, 384), painted], (128, 96))
    assert mask.values.shape == (96, 128) and set(np.unique(mask.values)) == {0, 255}
    assert mask.values[24:48, 32:64].all() and mask.values.sum() == 255 * 24 * 32


def test_14_a_painted_mask_that_says_nothing():
    for layers in ([], [layer(64, 64)]):
        with pytest.raises(InputRefused, match="Nothing is painted"):
            work.painted_mask(layers, (128, 96))
    with pytest.raises(InputRefused, match="whole picture is painted"):
        work.painted_mask([np.full((64, 64, 4), 255, dtype=np.uint8)], (128, 96))


def test_too_many_pixels_for_the_page(picture: Picture, tmp_path: Path):
    Image.new("RGB", (200, 100)).save(tmp_path / "wide.png")
    with pytest.raises(InputRefused, match="200x100"):
        work.read_input(str(tmp_path / "wide.png"), 10_000)
    with pytest.raises(InputRefused, match="no picture yet"):
        work.read_input(None, 10_000)


def test_numbers_from_a_browser(picture: Picture):
    assert work.make_order(picture, None, "", "a cat", None, "lusd", 1.0, 3.0).config.seed == 3
    for seed in (1.5, -1, float("nan"), None, 2**63, "7"):
        with pytest.raises(InputRefused, match="seed is"):
            work.make_order(picture, None, "", "a cat", None, "lusd", 1.0, seed)
    for strength in (0, float("nan"), 99, float("inf")):
        with pytest.raises(InputRefused, match="strength is"):
            work.make_order(picture, None, "", "a cat", None, "lusd", strength, 0)


# ---- what is shown


def test_chips_are_escaped_and_say_what_they_are():
    words = (Word("<b>&", "target", "new"), Word("crown", "source", "gone"))
    shown = work.chips(words, {0}, 1)
    assert "&lt;b&gt;&amp;" in shown and "<b>" not in shown
    assert shown.count("<button") == 2 and 'aria-pressed="true"' in shown and "looked" in shown
    assert "button" not in work.chips((), set())


def test_figures_need_no_server():
    shown = work.figure(np.zeros((2000, 1000, 3), dtype=np.uint8), "<i>", '"alt"', 0.5)
    assert shown.count("data:image/png;base64,") == 1 and "http" not in shown
    assert "&lt;i&gt;" in shown and "&quot;alt&quot;" in shown and 'value="0.500"' in shown


def test_names_of_downloads(picture: Picture):
    for name, wanted in (
        ("cat.png", "cat-edited.png"),
        ("cat-edited.png", "cat-edited.png"),
        ("a/b:c.jpg", "b_c-edited.png"),
    ):
        assert work.file_name(replace(picture, name=name)) == wanted


def test_a_heat_map_over_a_large_picture_is_made_smaller():
    over = work.heat_over(np.zeros((3000, 1500, 3), dtype=np.uint8), np.full((3000, 1500), 255, dtype=np.uint8))
    assert over.shape == (1024, 512, 3) and over.any()
    buffer = io.BytesIO()
    Image.fromarray(work.canvas(np.zeros((10, 20, 3), dtype=np.uint8), 640)).save(buffer, "PNG")
    assert Image.open(buffer).size == (640, 320)
