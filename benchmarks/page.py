"""The web page as a person and as twenty programs see it; and its pictures in docs/page.

    python -m benchmarks.page               what follows; writes docs/benchmarks/page.{md,json}
    python -m benchmarks.page --pictures    pictures of every tab, light, dark and 390 px wide; writes docs/page/*.png
    python -m benchmarks.page --pictures style history    of these tabs only

`python app.py` is started in a process of its own with the built-in model. Then, with Chromium:

- ready: from the start of the process until the page answers, until Edit can be pressed in a browser that was open
  already, and until the model is loaded behind it; the median of three starts;
- heat-map: from the press on a word until its heat-map is on the page;
- first preview: from the press on Edit until the first state of the edit is on the page; then how many different
  pictures of it a second are shown; then from the press on Stop until the result is there;

and with `gradio_client`, on loopback:

- twenty sessions at once, of which one has put eight edits in line before the others come with one each: errors, and
  how many of its own were done before the last of the others (a fair line: the one that ran, and one turn more);
- two hundred small edits one after the other: the resident memory of the server after 50 of them and at the end.

Linux (memory is read in /proc). Chromium is found on the PATH. Nothing else should run meanwhile: the load average is
written down with the numbers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from benchmarks.speed import ROOT, machine

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OUT = ROOT / "docs" / "benchmarks"
PICTURES = ROOT / "docs" / "page"
CAT = ROOT / "assets" / "examples" / "cat.png"
SESSIONS = 20
GREEDY = 8  # edits of the session that wants the most
EDITS = 200
TABS = ("image", "sketch", "splats", "style", "history", "models")
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking"]
STEPPING = "() => (document.querySelector('#stage figcaption')?.innerText ?? '').startsWith('Step')"


class Row(NamedTuple):
    what: str
    measured: float
    unit: str
    allowed: float | None  # at most; None: nothing is promised
    at_least: bool = False  # the limit is the least, not the most

    def met(self) -> str:
        if self.allowed is None:
            return ""
        return "yes" if (self.measured >= self.allowed) == self.at_least or self.measured == self.allowed else "no"


class Served(NamedTuple):
    url: str
    process: subprocess.Popen[bytes]
    began: float


@contextlib.contextmanager
def served(history: Path) -> Iterator[Served]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "app.py", "--port", str(port), "--history", str(history)], cwd=ROOT)
    try:
        yield Served(f"http://127.0.0.1:{port}", process, began)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def wait_for(url: str, seconds: float = 180) -> None:
    end = time.perf_counter() + seconds
    while not answers(url):
        if time.perf_counter() > end:
            raise TimeoutError(f"{url} did not answer within {seconds:g} s.")
        time.sleep(0.05)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        raise SystemExit("There is no Chromium on the PATH: apt-get install chromium.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def window(browser: Browser, width: int = 1280, scheme: Literal["light", "dark"] = "light") -> Page:
    height = 1000 if width > 500 else 844
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
    page.set_default_timeout(180_000)
    return page


def take_example(page: Page, number: int = 0) -> None:
    page.locator("#examples button").nth(number).click()
    page.locator("#chips button").first.wait_for()
    page.locator("#stage img").wait_for()


# ---- a person


def starting(browser: Browser, repeats: int = 3) -> list[Row]:
    found: list[tuple[float, float, float]] = []
    for _ in range(repeats):
        page = window(browser)
        with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as server:
            wait_for(f"{server.url}/healthz")
            answered = time.perf_counter() - server.began
            page.goto(server.url)
            page.locator("#run").wait_for()
            usable = time.perf_counter() - server.began
            wait_for(f"{server.url}/readyz")
            found.append((answered, usable, time.perf_counter() - server.began))
            page.close()
    answered, usable, ready = (statistics.median(each) for each in zip(*found, strict=True))
    return [
        Row("from `python app.py` until the page answers", answered, "s", 8),
        Row("until Edit can be pressed in a browser", usable, "s", 8),
        Row("until the model behind it is loaded", ready, "s", None),
    ]


def editing(browser: Browser, url: str) -> list[Row]:
    page = window(browser)
    page.goto(url)
    take_example(page)
    heat: list[float] = []
    for word in ("cat", "crown", "grass", "cat", "crown"):
        before = page.locator("#heat img").get_attribute("src") if heat else ""
        began = time.perf_counter()
        page.locator("#chips button", has_text=word).click()
        changed = "(before) => { const e = document.querySelector('#heat img'); return e && e.src !== before; }"
        page.wait_for_function(changed, arg=before)
        heat.append(time.perf_counter() - began)
    first: list[float] = []
    rate: list[float] = []
    stop: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        page.locator("#run").click()
        page.wait_for_function(STEPPING)
        first.append(time.perf_counter() - began)
        began, seen = time.perf_counter(), set[str]()
        while time.perf_counter() - began < 2.5 and page.locator("#stage progress").count():
            seen.add(page.locator("#stage img").get_attribute("src") or "")
            page.wait_for_timeout(30)
        rate.append(len(seen) / (time.perf_counter() - began))
        if page.locator("#stop").is_visible():
            began = time.perf_counter()
            page.locator("#stop").click()
            page.locator("#scrub input[type=range]").wait_for(state="visible")
            stop.append(time.perf_counter() - began)
        page.locator("#scrub input[type=range]").wait_for(state="visible")
        page.locator("#undo").click()
        page.locator("#scrub input[type=range]").wait_for(state="hidden")
    page.close()
    return [
        Row("from the press on a word until its heat-map, the first", heat[0], "s", 2),
        Row("the median of five", statistics.median(heat), "s", 2),
        Row("from the press on Edit until the first preview, the longest of three", max(first), "s", 3),
        Row("pictures of the edit shown a second, the least of three runs", min(rate), "/s", 2, at_least=True),
        *([Row("from the press on Stop until the result is there, the longest", max(stop), "s", None)] if stop else []),
    ]


# ---- programs


def queueing(url: str) -> list[Row]:
    """One session has eight edits in line, the first a long one; while it runs the others come with one each."""
    from gradio_client import Client, handle_file

    errors: list[str] = []
    greedy_done: list[float] = []  # when
    others_done: list[float] = []
    waiting = threading.Barrier(SESSIONS)

    def session(number: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            client = Client(url, verbose=False, download_files=folder)
            waiting.wait(300)
            if number:
                time.sleep(2.5)  # the greedy one is first
            jobs = []
            for k in range(1 if number else GREEDY):
                steps = 4 if number or k else 80
                job = client.submit(handle_file(str(CAT)), "a cat on grass", "a cat wearing a crown", seed=k,
                                    steps=steps, api_name="/edit_picture")  # fmt: skip
                job.add_done_callback(lambda _: (others_done if number else greedy_done).append(time.perf_counter()))
                jobs.append(job)
                time.sleep(0 if number or k else 1)  # the long one begins before its own others are sent
            for job in jobs:
                try:
                    job.result(timeout=600)
                except Exception as error:
                    errors.append(str(error))

    threads = [threading.Thread(target=session, args=(k,)) for k in range(SESSIONS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in sorted(set(errors)):
        print(f"  error: {error}")
    before = sum(each < max(others_done) for each in greedy_done)
    return [
        Row(f"errors of {SESSIONS} sessions, one with {GREEDY} edits, the others with one each", len(errors), "", 0),
        Row(f"of those {GREEDY}, done before the last of the others (in a plain queue: {GREEDY})", before, "", 2),
        Row("until all of them were served", time.perf_counter() - began, "s", None),
    ]  # fmt: skip


def memory(url: str, pid: int) -> list[Row]:
    from gradio_client import Client, handle_file

    def resident() -> float:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("This system does not tell how much memory a process has.")

    taken: list[float] = []
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        client = Client(url, verbose=False, download_files=folder)
        for k in range(EDITS):
            client.predict(handle_file(str(CAT)), "a cat on grass", "a cat wearing a crown", seed=k, steps=1,
                           method="dds", api_name="/edit_picture")  # fmt: skip
            taken.append(resident())
    early, late = statistics.median(taken[40:60]), statistics.median(taken[-20:])
    return [
        Row(f"resident memory of the server after 50 of {EDITS} edits", early, "MB", None),
        Row("at the end", late, "MB", round(early * 1.05, 1)),
        Row("seconds for each of them", (time.perf_counter() - began) / EDITS, "s", None),
    ]


# ---- pictures


LOOKS: dict[str, tuple[int, Literal["light", "dark"]]] = {"light": (1280, "light"), "dark": (1280, "dark"),
                                                          "phone": (390, "light")}  # fmt: skip


def keep(page: Page, name: str, *looks: str) -> None:
    """The whole page as it stands, in all looks or in those."""
    for look in looks or LOOKS:
        width, scheme = LOOKS[look]
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900 if width > 500 else 844})
        page.mouse.move(2, 2)
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_timeout(1200)
        page.screenshot(path=PICTURES / f"{name}-{look}.png", full_page=True)
        print(f"docs/page/{name}-{look}.png", flush=True)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_timeout(500)


def setting(page: Page, selector: str, value: float) -> None:
    """Open the settings, write a number, close them."""
    more = page.get_by_role("button", name="More settings").locator("visible=true").first
    more.click()
    field = page.locator(f"{selector} input[type=number]")
    field.fill(str(value))
    field.press("Tab")
    more.click()


def pictures(tabs: Sequence[str]) -> None:
    """Every tab with something on it, as a stranger finds it after the obvious presses."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as server, chromium() as browser:
        wait_for(f"{server.url}/readyz")
        page = window(browser)
        page.set_default_timeout(900_000)  # whatever else this machine does: nothing is measured
        page.goto(server.url)
        page.locator("#run").wait_for()
        if "image" in tabs:
            image_pictures(page, Path(folder))
        for tab, take in (("sketch", sketch_pictures), ("splats", splat_pictures), ("style", style_pictures),
                          ("history", history_pictures), ("models", models_pictures)):  # fmt: skip
            if tab in tabs:
                page.get_by_role("tab", name=tab.capitalize(), exact=True).click()
                take(page)


def image_pictures(page: Page, folder: Path) -> None:
    keep(page, "image-empty", "light")
    notes = folder / "notes.png"
    notes.write_text("these are notes, and no picture at all")
    page.locator("#picture input[type=file]").set_input_files(notes)
    page.locator(".toast-body", has_text="notes.png is").wait_for()
    keep(page, "image-refused", "light")
    page.reload()
    page.locator("#run").wait_for()
    take_example(page)
    page.locator("#chips button", has_text="crown").click()
    page.locator("#heat img").wait_for()
    keep(page, "image-heat")
    page.locator("#run").click()
    page.wait_for_function(STEPPING)
    keep(page, "image-running", "light")
    page.locator("#scrub input[type=range]").wait_for(state="visible")
    page.locator("#slider img").first.wait_for()
    keep(page, "image")
    page.get_by_label("Where I paint").check()
    paint(page, "#paint", (0.3,))
    page.get_by_role("button", name="More settings").locator("visible=true").first.click()
    keep(page, "image-paint", "light")


def paint(page: Page, editor: str, heights: Sequence[float]) -> None:
    """Strokes from left to right at these shares of the canvas."""
    page.locator(f"{editor} button[aria-label=Erase]").wait_for()
    page.wait_for_timeout(1500)
    canvas = page.locator(f"{editor} canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    for height in heights:
        page.mouse.move(box["x"] + 0.35 * box["width"], box["y"] + height * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.65 * box["width"], box["y"] + height * box["height"], steps=12)
        page.mouse.up()
        page.wait_for_timeout(300)


def sketch_pictures(page: Page) -> None:
    page.locator("#sketch-run").wait_for()
    keep(page, "sketch-empty", "light")
    page.locator("#sketch-prompt textarea").fill("a cat wearing a crown")
    page.locator("#sketch-run").click()
    page.locator("#sketch-save").wait_for()
    page.wait_for_timeout(4000)  # it draws itself once
    keep(page, "sketch")
    page.get_by_text("Change a drawing").click()
    page.get_by_role("button", name="Example: a frog").click()
    page.locator("#sketch-stage img").wait_for()
    page.locator("#sketch-run").click()
    page.locator("#sketch-stop").wait_for()
    page.locator("#sketch-save").wait_for()
    page.get_by_role("tab", name="Before and after", exact=True).locator("visible=true").click()
    page.locator("#sketch-pair img").first.wait_for()
    keep(page, "sketch-changed")


def splat_pictures(page: Page) -> None:
    page.locator("#splat-run").wait_for()
    keep(page, "splats-empty", "phone")
    page.get_by_role("button", name="Still life").click()
    page.locator(".splats[data-state=ready]").wait_for()
    page.locator("#splat-chips button", has_text="pear").wait_for()
    setting(page, "#splat-views", 8)
    setting(page, "#splat-steps", 20)
    page.locator("#splat-run").click()
    page.locator("#splat-stage img").first.wait_for()
    keep(page, "splats-running", "light")
    page.locator("#splat-save").wait_for()
    page.wait_for_timeout(3000)
    page.locator("#splat-viewer .line").fill("32")
    keep(page, "splats")


def style_pictures(page: Page) -> None:
    page.locator("#style-run").wait_for()
    keep(page, "style-empty", "light", "phone")
    page.get_by_role("button", name="Example: mosaic").click()
    page.locator("#style-reference img").wait_for()
    page.locator("#style-contents").get_by_role("button", name="Example: cat").click()
    page.locator("#style-content img").wait_for()
    page.locator("#style-run").click()
    page.locator("#style-stage figcaption", has_text="Step").wait_for()
    keep(page, "style-running", "light")
    page.locator("#style-save").wait_for()
    page.locator("#style-slider img").first.wait_for()
    keep(page, "style")
    page.locator("#style-mix button").first.click()
    page.locator("#style-more-looks-examples").get_by_role("button", name="Example: leaves").click()
    page.locator("#style-more-looks .gallery-item").wait_for()
    paint(page, "#style-parts", (0.12, 0.2, 0.28))
    page.locator("#style-run").click()
    page.locator("#style-stage figcaption", has_text="Step").wait_for()
    page.locator("#style-save").wait_for()
    page.locator("#style-slider img").first.wait_for()
    keep(page, "style-parts", "light")


def history_pictures(page: Page) -> None:
    """Of what the other tabs made before."""
    page.locator("#history-cards .card").first.click()
    page.locator("#history-detail .facts").wait_for()
    keep(page, "history")


def models_pictures(page: Page) -> None:
    page.locator("#models-cards .models").wait_for()
    keep(page, "models")


def report(rows: list[Row], facts: list[str]) -> str:
    lines = ["# The page", "", f"`python -m benchmarks.page`, built-in model: {', '.join(facts)}.", ""]
    lines += ["| what | measured | allowed | met |", "|---|---|---|---|"]
    for row in rows:
        digits = 0 if row.unit in ("", "MB") else 2
        allowed = "" if row.allowed is None else f"at {'least' if row.at_least else 'most'} {row.allowed:g} {row.unit}"
        lines.append(f"| {row.what} | {row.measured:.{digits}f} {row.unit} | {allowed.strip()} | {row.met()} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--pictures", nargs="*", choices=TABS, metavar="TAB",
        help=f"make the pictures in docs/page instead, of these tabs or of all: {', '.join(TABS)}",
    )  # fmt: skip
    chosen = parser.parse_args().pictures
    if chosen is not None:
        pictures(chosen or TABS)
        return
    facts = machine()
    rows: list[Row] = []

    def tell(more: list[Row]) -> None:
        rows.extend(more)
        for row in more:
            print(f"{row.what}: {row.measured:.2f} {row.unit} {row.met()}", flush=True)

    with chromium() as browser:
        tell(starting(browser))
        with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as server:
            wait_for(f"{server.url}/readyz")
            tell(editing(browser, server.url))
            tell(queueing(server.url))
            tell(memory(server.url, server.process.pid))
    OUT.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"machine": facts, "rows": [{**row._asdict(), "met": row.met()} for row in rows]}
    (OUT / "page.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (OUT / "page.md").write_text(report(rows, facts), "utf-8")


if __name__ == "__main__":
    main()
