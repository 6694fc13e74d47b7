"""The Style tab in a real browser, and its function through `gradio_client`, on the page that other tests use too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from sdsedit.io.record import read_recipe
from tests.web.conftest import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SLOW = 120_000  # ms, for what waits for the model on a busy machine
LOOK = ROOT / "assets" / "styles" / "mosaic.png"
CAT = ROOT / "assets" / "examples" / "cat.png"

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="the page needs gradio: pip install -e '.[web]'")


@pytest.fixture
def window(page: str) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("browser tests need Chromium: apt-get install chromium")
    sync = pytest.importorskip("playwright.sync_api", reason="browser tests need `pip install playwright`")
    faults: list[str] = []
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context(viewport={"width": 1280, "height": 1100}, accept_downloads=True)
        shown = context.new_page()
        shown.set_default_timeout(SLOW)
        shown.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        shown.on("pageerror", lambda error: faults.append(str(error)))
        own = (page, "data:", "blob:")
        shown.on("request", lambda asked: None if asked.url.startswith(own) else faults.append(f"asked {asked.url}"))
        shown.goto(page)
        shown.get_by_role("tab", name="Style", exact=True).first.click()
        shown.wait_for_selector("#style-run:visible")
        yield shown
        browser.close()
    assert not faults, faults


def saved(page: Page, selector: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.locator(selector).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_picture_is_restyled_stopped_downloaded_and_kept(window: Page, tmp_path: Path):
    page = window
    page.locator("#style-run").click()
    page.wait_for_selector("text=There is no picture yet whose look is wanted")
    page.locator("#style-looks button").first.click()
    page.wait_for_selector("#style-reference img")
    page.locator("#style-mix button").first.click()
    page.locator("#style-more-looks-examples button").nth(1).click()
    page.wait_for_selector("#style-more-looks .gallery-item")
    page.locator("#style-content input[type=file]").set_input_files(str(CAT))
    page.wait_for_selector("text=Press Restyle")
    page.locator("#style-run").click()
    page.wait_for_selector("#style-stage progress")
    page.wait_for_function(
        "() => { const bar = document.querySelector('#style-stage progress'); return bar && bar.value > 0; }"
    )
    page.locator("#style-stop").click()
    page.wait_for_selector("#style-save:visible")
    assert "in the look of mosaic and stained_glass" in page.locator("#style-notes").inner_text()
    path = saved(page, "#style-save", tmp_path)
    recipe = read_recipe(path)
    assert recipe["kind"] == "style"
    assert [each["name"] for each in recipe["references"]] == ["mosaic.png", "stained_glass.png"]
    assert 1 <= recipe["result"]["steps_done"] < recipe["settings"]["steps"]
    with Image.open(path) as made, Image.open(CAT) as cat:
        assert made.size == cat.size and (np.asarray(made) != np.asarray(cat.convert("RGB"))).mean() > 0.5
    page.get_by_role("tab", name="History", exact=True).first.click()
    page.locator("#history-cards button", has_text="in the look of mosaic").first.click()
    page.locator("#history-to-style").click()
    page.wait_for_selector("#style-content img:visible")


def test_the_tab_fits_a_phone(window: Page):
    page = window
    page.set_viewport_size({"width": 390, "height": 844})
    page.get_by_text("Make a texture").click()
    page.wait_for_selector("#style-width:visible")
    assert page.locator("#style-contents").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 391
    page.get_by_role("tab", name="Models", exact=True).first.wait_for(state="visible")  # the last of them, in no menu


def test_a_program_asks_for_a_style(page: str, tmp_path: Path):
    client_module = pytest.importorskip("gradio_client", reason="needs gradio_client")
    client = client_module.Client(page, verbose=False, download_files=str(tmp_path))
    look: Any = client_module.handle_file(str(LOOK))
    path, recipe = client.predict(look, None, "", "96x64", None, -1, 1, 3, api_name="/style_picture")
    with Image.open(path) as made:
        assert made.size == (96, 64)
    assert recipe["kind"] == "style" and recipe["seed"] == 3 and recipe["result"]["steps_done"] == 1
    with pytest.raises(Exception, match="Say one of"):
        client.predict(look, None, "", "", None, -1, 1, 3, api_name="/style_picture")
    with pytest.raises(Exception, match="must be a width and a height"):
        client.predict(look, None, "", "wide", None, -1, 1, 3, api_name="/style_picture")
