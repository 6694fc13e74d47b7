"""The Image tab in a real browser: what a person does, with the built-in model.

No console error and no request to another host is allowed in any of it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from PIL import Image

from sdsedit.io.record import read_recipe

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
STEPPING = "() => (document.querySelector('#stage figcaption')?.innerText ?? '').startsWith('Step')"
SLOW = 60_000  # ms, for what waits for the model on a busy machine

pytestmark = [
    pytest.mark.skipif(find_spec("playwright") is None, reason="browser tests need `pip install playwright`"),
    pytest.mark.skipif(CHROMIUM is None, reason="browser tests need Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@contextlib.contextmanager
def person(
    browser: Browser, page: str, width: int = 1280, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Page]:
    """The page in a fresh window with every other host out of reach; at the end nothing may have gone wrong, and no
    other host have been asked."""
    faults: list[str] = []
    context = browser.new_context(
        viewport={"width": width, "height": 1500 if width > 500 else 844}, color_scheme=scheme, accept_downloads=True
    )

    def only_here(route: Route) -> None:
        if route.request.url.startswith(page):
            route.continue_()
        else:
            faults.append(f"asked {route.request.url}")
            route.abort()

    context.route(lambda url: url.startswith(("http:", "https:", "ws:", "wss:")), only_here)
    window = context.new_page()
    window.set_default_timeout(SLOW)
    window.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    window.on("pageerror", lambda error: faults.append(str(error)))
    window.goto(page)
    window.wait_for_selector("#run")
    yield window
    context.close()
    assert not faults, faults


@pytest.fixture
def tab(browser: Browser, page: str) -> Iterator[Page]:
    with person(browser, page) as window:
        yield window


def take_cat(tab: Page) -> None:
    tab.locator("#examples button").first.click()
    tab.locator("#chips button", has_text="crown").wait_for()
    tab.locator("#stage img").wait_for()


def source_of(tab: Page, selector: str) -> str:
    return tab.locator(selector).first.get_attribute("src") or ""


def stop_after(tab: Page, step: int) -> None:
    """Press Stop once so many steps are done: a whole edit takes a while on a busy machine."""
    tab.wait_for_function(
        "(step) => { const line = document.querySelector('#stage figcaption')?.innerText ?? '';"
        " return Number(line.match(/^Step (\\d+)/)?.[1]) >= step; }",
        arg=step,
        timeout=4 * SLOW,
    )
    tab.locator("#stop").click()


def wait_for_result(tab: Page) -> None:
    tab.locator("#scrub input[type=range]").wait_for(state="visible")
    tab.locator("#slider img").first.wait_for()


def test_an_example_its_words_and_a_heat_map(tab: Page):
    take_cat(tab)
    assert tab.locator("#source textarea").input_value() == "a cat on grass"
    assert tab.locator("#target textarea").input_value() == "a cat wearing a crown on grass"
    assert tab.locator("#chips button").all_inner_texts() == ["cat", "crown\nNEW", "grass"]
    tab.locator("#chips button", has_text="crown").click()
    tab.locator("#heat img").wait_for()
    crown = source_of(tab, "#heat img")
    assert crown.startswith("data:image/png") and "crown" in tab.locator("#heat figcaption").inner_text()
    tab.locator("#chips button", has_text="grass").press("Enter")  # by the keyboard too
    tab.wait_for_function("(before) => document.querySelector('#heat img').src !== before", arg=crown)


def test_words_are_escaped(tab: Page):
    tab.locator("#target textarea").fill("a hat <img src=x onerror=alert(1)> ${alert(2)}")
    tab.locator("#chips button", has_text="hat").wait_for()
    assert not tab.locator("#chips img").count()


def test_edit_watch_scrub_continue_undo_download(tab: Page, tmp_path: Path):
    take_cat(tab)
    tab.locator("#run").click()
    tab.locator("#stage progress").wait_for()
    previews = set()
    while tab.locator("#stop").is_visible() or not previews:
        if tab.locator("#stage progress").count():
            previews.add(source_of(tab, "#stage img"))
        tab.wait_for_timeout(100)
    assert len(previews) >= 3, "the preview did not change"
    wait_for_result(tab)
    assert "pixels are the picture's own, bit for bit" in tab.locator("#notes").inner_text()

    shown = source_of(tab, "#slider img >> nth=1")
    tab.locator("#scrub input[type=range]").fill("40")
    tab.wait_for_function(
        "(before) => [...document.querySelectorAll('#slider img')].every((each) => each.src !== before)", arg=shown
    )
    with tab.expect_download() as saving:
        tab.locator("#save").click()
    saving.value.save_as(tmp_path / "cat-edited.png")
    recipe = read_recipe(tmp_path / "cat-edited.png")
    assert saving.value.suggested_filename == "cat-edited.png"
    assert recipe["target"] == "a cat wearing a crown on grass" and 0 < recipe["result"]["steps_done"] < recipe["steps"]
    edited, before = (
        np.asarray(Image.open(path).convert("RGB"))
        for path in (tmp_path / "cat-edited.png", ROOT / "assets/examples/cat.png")
    )
    assert edited.shape == before.shape and 0 < (edited != before).any(-1).mean() < 0.5

    tab.locator("#scrub input[type=range]").fill("100")
    tab.locator("#continue").click()
    tab.locator("#stage img").wait_for()
    tab.wait_for_function("() => document.querySelector('#source textarea').value.includes('crown')")
    tab.locator("#undo").click()
    wait_for_result(tab)
    assert tab.locator("#source textarea").input_value() == "a cat on grass"


def test_stop_keeps_what_is_there(tab: Page):
    take_cat(tab)
    tab.locator("#run").click()
    tab.locator("#stage progress").wait_for()
    tab.wait_for_function(STEPPING)
    tab.locator("#stop").click()
    wait_for_result(tab)
    assert "Stopped after" in tab.locator("#notes").inner_text()


def test_a_painted_mask(tab: Page):
    """Two strokes, of which one is erased: only under the other one the picture changes."""
    take_cat(tab)
    tab.get_by_label("Where I paint").check()
    canvas = tab.locator("#paint canvas").first
    canvas.wait_for()
    tab.locator("#paint button[aria-label=Erase]").wait_for()
    tab.wait_for_timeout(1500)
    box = canvas.bounding_box()
    assert box is not None
    x, upper, lower = box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.3, box["y"] + box["height"] * 0.75

    def stroke(y: float, half: float) -> None:
        tab.mouse.move(x - half, y)
        tab.mouse.down()
        tab.mouse.move(x + half, y, steps=2)
        tab.mouse.up()
        tab.wait_for_timeout(200)

    stroke(upper, 40)
    stroke(lower, 20)
    tab.locator("#paint button[aria-label=Erase]").click()
    for y in (lower - 6, lower + 6):
        stroke(y, 50)
    tab.wait_for_timeout(500)
    tab.locator("#run").click()
    stop_after(tab, 12)
    wait_for_result(tab)
    tab.get_by_role("tab", name="What changed").click()
    tab.locator("#changed img").wait_for()
    changed = tab.evaluate(
        """() => { const img = document.querySelector('#changed img'), c = document.createElement('canvas');
        c.width = img.naturalWidth; c.height = img.naturalHeight; const g = c.getContext('2d'); g.drawImage(img, 0, 0);
        const d = g.getImageData(0, 0, c.width, c.height).data; const rows = [];
        for (let i = 0; i < d.length; i += 4) if (d[i] > 0) rows.push(Math.floor(i / 4 / c.width) / c.height);
        return [rows.length / (d.length / 4), Math.min(...rows), Math.max(...rows)]; }"""
    )
    assert 0 < changed[0] < 0.15 and changed[1] > 0.1 and changed[2] < 0.5, changed


def test_a_bad_file_is_refused_with_its_sentence(tab: Page, tmp_path: Path):
    (tmp_path / "notes.png").write_text("these are notes, and no picture at all")
    tab.locator("#picture input[type=file]").set_input_files(tmp_path / "notes.png")
    tab.get_by_text("notes.png is damaged or no picture at all").first.wait_for()
    tab.locator("#picture input[type=file]").first.wait_for(state="attached")  # and can be tried again


def test_a_picture_of_ones_own(tab: Page, tmp_path: Path):
    Image.open(ROOT / "assets/examples/dog.png").resize((200, 120)).save(tmp_path / "mine.png")
    tab.locator("#picture input[type=file]").set_input_files(tmp_path / "mine.png")
    tab.locator("#stage img").wait_for()
    tab.locator("#run").click()
    tab.get_by_text("The target prompt is empty").first.wait_for()
    assert json.loads(tab.evaluate("() => JSON.stringify([document.querySelector('#run').disabled])")) == [False]
    tab.locator("#target textarea").fill("a blue dog")
    tab.locator("#chips button", has_text="dog").wait_for()


def test_two_people_at_once(browser: Browser, page: str):
    """Each gets their own picture back, the one who waits is told so and looks at words meanwhile."""
    with person(browser, page) as first, person(browser, page) as second:
        take_cat(first)
        second.locator("#examples button").nth(1).click()
        second.locator("#chips button", has_text="fox").wait_for()
        first.locator("#run").click()
        first.wait_for_function(STEPPING)
        second.locator("#run").click()
        waiting = "() => (document.querySelector('#stage figcaption')?.innerText ?? '').includes('1 job is ahead')"
        second.wait_for_function(waiting)
        second.locator("#chips button", has_text="fox").click()
        second.locator("#heat img").wait_for()
        assert first.locator("#stop").is_visible(), "the heat-map waited for the edit"
        wait_for_result(first)
        second.wait_for_function(STEPPING)
        second.locator("#stop").click()
        wait_for_result(second)
        assert "crown" in first.locator("#notes").inner_text() and "Stopped" not in first.locator("#notes").inner_text()
        assert "Stopped after" in second.locator("#notes").inner_text()


def test_on_a_phone_in_the_dark(browser: Browser, page: str):
    """Nothing is wider than the screen, text stands out from its ground, and the edit goes by touch-sized buttons."""
    with person(browser, page, 390, "dark") as phone:
        take_cat(phone)
        phone.locator("#chips button", has_text="cat").click()
        phone.locator("#heat img").wait_for()
        phone.locator("#run").click()
        phone.wait_for_function(STEPPING)
        phone.locator("#stop").click()
        wait_for_result(phone)
        wide = phone.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide[0] <= wide[1], "the page is wider than the screen"
        assert phone.evaluate("document.body.classList.contains('dark')")
        for name in ("#run", "#save", "#continue"):
            box = phone.locator(name).bounding_box()
            assert box is not None and box["height"] >= 36 and box["x"] >= 0 and box["x"] + box["width"] <= 390, name


def test_everything_is_reached_by_the_keyboard(tab: Page):
    take_cat(tab)
    tab.locator("#source textarea").focus()
    reached = set()
    for _ in range(30):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate("document.activeElement.dataset.word ?? document.activeElement.closest('[id]')?.id ?? ''")
        )
    assert {"0", "1", "2", "run", "four"} <= reached, reached


def test_a_mask_file(tab: Page, tmp_path: Path):
    take_cat(tab)
    tab.get_by_label("Where a mask file is white").check()
    Image.new("L", (64, 64), 255).save(tmp_path / "small.png")
    tab.locator("#mask input[type=file]").set_input_files(tmp_path / "small.png")
    tab.locator("#mask img").wait_for()
    tab.locator("#run").click()
    tab.get_by_text("small.png is 64x64 pixels and the picture is 128x128").first.wait_for()


def test_chosen_words(tab: Page):
    take_cat(tab)
    tab.get_by_label("At words I choose").check()
    tab.locator("#run").click()
    tab.get_by_text("No word is chosen").first.wait_for()
    tab.locator("#chips button", has_text="grass").click()
    tab.locator("#chips button[aria-pressed=true]", has_text="grass").wait_for()
    tab.locator("#run").click()
    tab.wait_for_function(STEPPING)
    tab.locator("#stop").click()
    wait_for_result(tab)
    assert "found by: grass" in tab.locator("#notes").inner_text()


def test_several_seeds(tab: Page):
    """Stopped within the second of them: the grid has what is there, and each can be taken."""
    take_cat(tab)
    tab.locator("#four").click()
    tab.wait_for_function("() => /of 208/.test(document.querySelector('#stage figcaption')?.innerText ?? '')")
    stop_after(tab, 60)
    wait_for_result(tab)
    cells = tab.locator("#choices button")
    cells.nth(1).wait_for()
    assert [text.strip() for text in tab.locator("#choices .caption-label").all_inner_texts()] == ["Seed 0", "Seed 1"]
    shown = source_of(tab, "#slider img >> nth=1")
    cells.nth(1).click()
    tab.wait_for_function(
        "(before) => [...document.querySelectorAll('#slider img')].every((each) => each.src !== before)", arg=shown
    )
