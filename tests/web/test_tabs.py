"""The Sketch, Splats, History and Models tabs in a real browser, and their functions through `gradio_client`.

One page with the built-in model and small settings. No console error and no request to another host is allowed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from sdsedit.io import splats
from sdsedit.io.record import read_recipe
from sdsedit.io.svg import read_svg
from sdsedit.web.history import History
from tests.web.conftest import ROOT, free_port, start, until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SLOW = 90_000  # ms, for what waits for the model on a busy machine
BALL = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><rect width="64" height="64" fill="#fff"/>'
    b'<circle cx="32" cy="32" r="20" fill="#c00"/></svg>'
)

pytestmark = [
    pytest.mark.skipif(find_spec("gradio") is None, reason="the page needs gradio: pip install -e '.[web]'"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="browser tests need `pip install playwright`"),
    pytest.mark.skipif(CHROMIUM is None, reason="browser tests need Chromium: apt-get install chromium"),
]


class Served:
    """A page of its own, that can be started again with the same history."""

    def __init__(self, history: Path) -> None:
        self.history, self.port = history, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = start(self.port, "--history", str(self.history))
        until(f"{self.url}/readyz", 200, 180)

    def stop(self) -> None:
        for _ in range(2):  # the second ends it at once
            self.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)  # two at once would be one
        try:
            self.process.wait(20)
        except Exception:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    page = Served(tmp_path_factory.mktemp("history"))
    yield page
    page.stop()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def window(chromium: Browser, served: Served) -> Iterator[Page]:
    """The page in a fresh window; at the end nothing may have gone wrong and no other host have been asked."""
    faults: list[str] = []
    context = chromium.new_context(viewport={"width": 1280, "height": 1300}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(SLOW)
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    own = (served.url, "data:", "blob:")
    page.on("request", lambda asked: None if asked.url.startswith(own) else faults.append(f"asked {asked.url}"))
    page.goto(served.url)
    page.wait_for_selector("#tabs")
    yield page
    context.close()
    assert not faults, faults


def choose(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).first.click()


def put(page: Page, selector: str, value: object) -> None:
    """Type it, and see that it stays: a tab that is opened first lays out some fields after they can be typed in."""
    field = page.locator(f"{selector} input[type=number], {selector} textarea").first
    for _ in range(5):
        field.fill(str(value))
        field.press("Tab")
        page.wait_for_timeout(300)
        if field.input_value() == str(value):
            return
    raise AssertionError(f"{selector} does not keep {value!r} but shows {field.input_value()!r}")


def download(page: Page, button: str, folder: Path) -> Path:
    with page.expect_download() as saving:
        page.locator(button).click()
    path = folder / saving.value.suggested_filename
    saving.value.save_as(path)
    return path


def shown_while_running(page: Page, stage: str, stop: str, enough: int = 100) -> set[str]:
    """The previews that were seen until the run ended, or until there were enough of them."""
    seen: set[str] = set()
    page.locator(stop).wait_for(state="visible")
    while page.locator(stop).is_visible() and len(seen) < enough:
        # At once: the run may end, and its picture go, between two questions.
        shown = page.evaluate("(at) => document.querySelector(at + ' figure:has(progress) img')?.src ?? ''", stage)
        seen |= {shown} - {""}
        page.wait_for_timeout(80)
    return seen


# ---- sketch


def test_words_are_drawn_watched_and_downloaded(window: Page, tmp_path: Path):
    choose(window, "Sketch")
    put(window, "#sketch-prompt", "an apple")
    put(window, "#sketch-strokes", 12)
    window.get_by_role("button", name="More settings").locator("visible=true").first.click()
    put(window, "#sketch-steps", 20)
    window.locator("#sketch-run").click()
    assert len(shown_while_running(window, "#sketch-stage", "#sketch-stop")) >= 3, "the preview did not change"
    window.locator("#sketch-save").wait_for()
    assert (window.locator("#sketch-stage img").get_attribute("src") or "").startswith("data:image/svg+xml")
    assert "strokes" in window.locator("#sketch-notes").inner_text()
    path = download(window, "#sketch-save", tmp_path)
    assert path.name == "an-apple.svg" and read_recipe(path)["settings"]["strokes"] == 12
    assert 1 < len(read_svg(path).shapes) <= 13
    png = download(window, "#sketch-save-png", tmp_path)
    assert Image.open(png).size == (512, 512) and read_recipe(png)["prompt"] == "an apple"
    film = download(window, "#sketch-save-film", tmp_path)
    assert film.suffix == ".mp4" and film.read_bytes()[4:8] == b"ftyp"
    assert b"@keyframes" in download(window, "#sketch-save-moving", tmp_path).read_bytes()
    window.locator("#sketch-continue").click()
    window.locator("#sketch-source textarea").wait_for(state="visible")
    assert window.locator("#sketch-source textarea").input_value() == "an apple"
    window.locator("#sketch-undo").click()
    window.locator("#sketch-save").wait_for()


def test_stopping_a_sketch_keeps_what_is_there(window: Page):
    choose(window, "Sketch")
    put(window, "#sketch-prompt", "a cat")
    window.locator("#sketch-run").click()
    shown_while_running(window, "#sketch-stage", "#sketch-stop", enough=2)
    window.locator("#sketch-stop").click()
    window.locator("#sketch-save").wait_for()
    assert re.search(r"Stopped after \d+ steps?", window.locator("#sketch-notes").inner_text())


def test_a_drawing_is_changed_and_what_changed_is_marked(window: Page, tmp_path: Path):
    choose(window, "Sketch")
    window.get_by_text("Change a drawing").click()
    window.get_by_role("button", name="Example: a frog").click()
    window.locator("#sketch-stage img").wait_for()
    window.get_by_role("button", name="More settings").locator("visible=true").first.click()
    put(window, "#sketch-change-steps", 10)
    window.locator("#sketch-run").click()
    assert len(shown_while_running(window, "#sketch-stage", "#sketch-stop")) >= 3
    window.locator("#sketch-save").wait_for()
    window.get_by_role("tab", name="What changed", exact=True).locator("visible=true").click()
    window.locator("#sketch-changed img").wait_for(state="visible")
    window.get_by_role("tab", name="Before and after", exact=True).locator("visible=true").click()
    assert window.locator("#sketch-pair img").count() == 2
    path = download(window, "#sketch-save", tmp_path)
    assert path.name == "frog-edited.svg" and read_recipe(path)["target"] == "a pink frog"


def test_a_bad_drawing_is_refused_with_its_sentence(window: Page, tmp_path: Path):
    choose(window, "Sketch")
    window.locator("#sketch-run").click()
    window.get_by_text("prompt is empty").first.wait_for()
    window.get_by_text("Change a drawing").click()
    window.locator("#sketch-run").click()
    window.get_by_text("There is no drawing yet").first.wait_for()
    (tmp_path / "page.svg").write_text('<!DOCTYPE svg><svg xmlns="http://www.w3.org/2000/svg"/>')
    window.locator("#sketch-file input[type=file]").set_input_files(tmp_path / "page.svg")
    window.get_by_text("page.svg").first.wait_for()
    window.get_by_text("DOCTYPE").first.wait_for()
    (tmp_path / "ball.svg").write_bytes(BALL.replace(b"<circle", b"<script>document.title='bad'</script><circle"))
    window.locator("#sketch-file input[type=file]").first.wait_for(state="attached")  # and can be tried again
    window.locator("#sketch-file input[type=file]").set_input_files(tmp_path / "ball.svg")
    window.locator("#sketch-stage img").wait_for()
    assert window.title() == "sdsedit"


# ---- splats


def pixels(page: Page) -> np.ndarray:  # [H, W, 4]
    """What the viewer shows."""
    page.wait_for_timeout(300)
    found: Any = page.evaluate(
        """() => { const from = document.querySelector('#splat-viewer canvas'), to = document.createElement('canvas');
        to.width = 80; to.height = 64; const pen = to.getContext('2d'); pen.drawImage(from, 0, 0, 80, 64);
        return [...pen.getImageData(0, 0, 80, 64).data]; }"""
    )
    return np.array(found, np.uint8).reshape(64, 80, 4)


def take_scene(page: Page) -> None:
    choose(page, "Splats")
    page.get_by_role("button", name="Still life").click()
    page.wait_for_selector(".splats[data-state=ready]")
    page.locator("#splat-chips button", has_text="cup").wait_for()
    page.get_by_role("button", name="More settings").locator("visible=true").first.click()
    put(page, "#splat-views", 4)
    put(page, "#splat-steps", 10)


def test_a_scene_is_orbited_searched_changed_compared_and_downloaded(window: Page, tmp_path: Path):
    take_scene(window)
    canvas = window.locator("#splat-viewer canvas")
    assert canvas.get_attribute("data-count") == "21789"
    first = pixels(window)
    shown = first[..., 3] > 200
    red = shown & (first[..., 0] > 150) & (first[..., 1] < 80)
    assert 0.15 < shown.mean() < 0.8 and red.mean() > 0.03  # the scene, and in it the apple
    canvas.focus()
    for _ in range(3):
        window.keyboard.press("ArrowRight")
    turned = pixels(window)
    assert np.abs(turned.astype(int) - first).mean() > 2
    box = canvas.bounding_box()
    assert box is not None
    window.mouse.move(box["x"] + 200, box["y"] + 200)
    window.mouse.down()
    window.mouse.move(box["x"] + 300, box["y"] + 220, steps=4)
    window.mouse.up()
    assert np.abs(pixels(window).astype(int) - turned).mean() > 2
    window.get_by_role("button", name="Reset the view").click()
    assert np.abs(pixels(window).astype(int) - first).mean() < 0.5

    window.locator("#splat-chips button", has_text="pear").click()  # where is the pear?
    window.get_by_text(re.compile("Where the model sees .pear.")).wait_for()
    heat = pixels(window).astype(int)
    warm = (heat[..., 0] - heat[..., 2] > 60) & (heat[..., 3] > 200)
    columns = np.nonzero(warm)[1]
    assert 0.01 < warm.mean() < 0.3 and columns.mean() > 40, "the pear is on the right"

    window.locator("#splat-run").click()
    assert len(shown_while_running(window, "#splat-stage", "#splat-stop")) >= 3, "the preview did not change"
    window.locator("#splat-save").wait_for()
    window.wait_for_function(
        "() => document.querySelector('#splat-viewer canvas').dataset.count === '21789 21789'"
    )  # before and after
    after = pixels(window)
    window.locator("#splat-viewer .line").fill("100")
    assert np.abs(pixels(window).astype(int) - first).mean() < 0.5, "left of the line is before, from the same camera"
    window.locator("#splat-viewer .line").fill("0")
    difference = np.abs(pixels(window).astype(int) - first).max(-1) > 40
    assert 0.01 < difference.mean() < 0.3 and difference[:, 45:].mean() < difference[:, :45].mean()
    assert after.shape == first.shape

    path = download(window, "#splat-save", tmp_path)
    before, edited = splats.read(ROOT / "assets/splats/still-life.ply"), splats.read(path)
    same = (before.sh == edited.sh).all((1, 2))
    assert path.name == "still-life-edited.ply" and 0.3 < same.mean() < 1 and (before.means == edited.means).all()
    assert read_recipe(path)["result"]["kind"] == "recolour"
    assert len(splats.read(download(window, "#splat-save-spz", tmp_path))) == len(edited)
    film = download(window, "#splat-save-film", tmp_path)
    assert film.name == "still-life-edited.mp4" and film.read_bytes()[4:8] == b"ftyp"


def test_stopping_a_scene_and_a_bad_file(window: Page, tmp_path: Path):
    take_scene(window)
    put(window, "#splat-views", 32)  # it will look for a while
    window.locator("#splat-run").click()
    shown_while_running(window, "#splat-stage", "#splat-stop", enough=1)
    window.locator("#splat-stop").click()
    window.get_by_text("Stopped before it began.").first.wait_for()
    window.wait_for_function("() => !document.querySelector('#splat-run').disabled")  # and can be pressed again
    (tmp_path / "mesh.ply").write_bytes(
        b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty float x\nend_header\n1234"
    )
    window.locator("#splat-file input[type=file]").set_input_files(tmp_path / "mesh.ply")
    window.get_by_text("mesh.ply is a mesh / point cloud, not a splat scene.").first.wait_for()


# ---- history, after a restart


def test_history_after_a_restart(window: Page, served: Served, tmp_path: Path):
    from gradio_client import Client, handle_file

    (tmp_path / "ball.svg").write_bytes(BALL)
    client = Client(served.url, verbose=False, download_files=str(tmp_path))
    asked = (handle_file(str(tmp_path / "ball.svg")), "a red ball", "a purple ball", 1.0, 4, 2, 0)
    client.submit(*asked, api_name="/edit_drawing").result(SLOW / 500)
    client.submit("an owl", "ink", 8, False, 1.0, 2, 0, api_name="/draw_words").result(SLOW / 500)
    window.goto("about:blank")
    served.stop()
    served.start()
    window.goto(served.url)
    choose(window, "History")
    window.locator(".card").first.wait_for()
    assert window.locator(".card").count() >= 2
    search = window.locator("#history-words input, #history-words textarea").first
    search.fill("purple ball")
    window.wait_for_function("() => document.querySelectorAll('.card').length === 1")
    window.locator(".card").click()
    window.locator("#history-detail .facts").wait_for()
    assert "a purple ball" in window.locator("#history-detail").inner_text()
    assert window.locator("#history-detail img").count() == 2
    path = download(window, "#history-save", tmp_path)
    assert path.name == "ball-edited.svg" and read_recipe(path)["target"] == "a purple ball"
    window.locator("#history-again").click()  # it is made again, and is the same
    window.locator(".verdict").wait_for()
    assert "the same, byte for byte" in window.locator(".verdict").inner_text()
    window.locator("#history-to-sketch").click()
    window.locator("#sketch-source textarea").wait_for(state="visible")
    assert window.locator("#sketch-source textarea").input_value() == "a purple ball"
    choose(window, "History")
    window.locator("#history-to-image").click()
    window.locator("#target textarea").wait_for(state="visible")
    window.wait_for_function("() => document.querySelector('#target textarea').value === 'a purple ball'")
    choose(window, "History")
    window.locator("#history-delete").click()
    window.wait_for_timeout(600)  # a second press at once is a double click, which deletes nothing
    window.get_by_role("button", name="Really delete?").click()
    window.get_by_text("Nothing here has these words.").wait_for()
    search.fill("")
    window.locator(".card").first.wait_for()
    assert len([path for path in served.history.iterdir() if path.is_dir()]) == window.locator(".card").count()


def test_a_scene_from_the_history(window: Page, served: Served):
    scene = ROOT / "assets/splats/still-life.ply"
    recipe = {"schema": 1, "kind": "splats", "target": "fruit on a table"}
    History(served.history).add("splats", scene, None, np.zeros((8, 8, 3), np.uint8), recipe)  # as another page would
    choose(window, "History")
    window.locator(".card", has_text="fruit on a table").click()
    window.locator("#history-to-splats").click()
    window.wait_for_selector(".splats[data-state=ready]")
    assert window.locator("#splat-target textarea").input_value() == "fruit on a table"


# ---- models


def test_models_and_licences(window: Page, served: Served):
    choose(window, "Models")
    window.locator(".models article").first.wait_for()
    assert "in use" in window.locator(".models article").first.inner_text()
    assert "Runs on the processor" in window.locator("#models-machine").inner_text()
    window.get_by_role("button", name="I have read the licence").first.click()
    window.get_by_text("Licence acknowledged").wait_for()
    assert (served.history / "licences.json").is_file()


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(window: Page, width: int):
    window.set_viewport_size({"width": width, "height": 800})
    for name in ("Sketch", "Splats", "History", "Models"):
        if window.get_by_role("tab", name=name, exact=True).first.is_visible():
            choose(window, name)
        else:  # the row of tabs has a menu when there is no room
            window.locator(".overflow-menu > button").first.click()
            window.locator(".overflow-dropdown button", has_text=name).click()
        window.wait_for_timeout(300)
        assert window.evaluate("() => document.documentElement.scrollWidth") <= width, name


# ---- the API


def test_the_functions_through_the_client(served: Served, tmp_path: Path):
    from gradio_client import Client, handle_file

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    client = Client(served.url, verbose=False, download_files=str(tmp_path))
    path, recipe = client.submit("an owl", "ink", 8, False, 1.0, 3, 0, api_name="/draw_words").result(SLOW / 500)
    assert read_recipe(Path(path)) == recipe and recipe["prompt"] == "an owl"
    (tmp_path / "ball.svg").write_bytes(BALL)
    path, recipe = client.submit(
        handle_file(str(tmp_path / "ball.svg")), "a red ball", "a green ball", 1.0, 4, 2, 0, api_name="/edit_drawing"
    ).result(SLOW / 500)
    assert read_recipe(Path(path)) == recipe and recipe["input"]["name"] == "ball.svg"
    path, recipe = client.submit(
        handle_file(str(ROOT / "assets/splats/still-life.ply")), "an apple, a pear and a cup on a wooden table",
        "an apple and a cup on a wooden table", "", "", 1.0, 0, 4, 0.4, 0, api_name="/edit_scene",
    ).result(SLOW / 500)  # fmt: skip
    assert recipe["result"]["kind"] == "delete" and read_recipe(Path(path)) == recipe
    for wrong, sentence in (
        (("", "ink", 8, False, 1.0, 3, 0), "prompt is empty"),
        (("a cat", "ink", 1e9, False, 1.0, 3, 0), "strokes is 1000000000"),
    ):
        with pytest.raises(Exception, match=sentence):
            client.predict(*wrong, api_name="/draw_words")
    described: Any = client.view_api(return_format="dict")
    given = described["named_endpoints"]["/edit_scene"]["parameters"]
    assert [each["parameter_name"] for each in given][:4] == ["scene", "source", "target", "words"]
