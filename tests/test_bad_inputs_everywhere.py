"""The thirty cases of bad input and faults, at every door: the command line, a batch, the API of a page that is served.

CASES is the table: what is given, and the sentence, which is the same wherever a person comes in (the page's own, lower
limits apart). ELSEWHERE names the tests of what is no sentence but a run: kills, signals, disks, memory. The page's
buttons call the functions that its API calls, which is held here too; that a browser shows their sentences is held by
tests/web/test_page.py and test_tabs.py.
"""

from __future__ import annotations

import ast
import contextlib
import html
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdsedit import errors
from sdsedit.cli import main
from tests.properties.rules import is_a_sentence
from tests.web.conftest import free_port, start, until

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20

# ---- what is given: files, by functions that write them into the current folder and give their names


def put(name: str, data: bytes) -> Callable[[], str]:
    def make() -> str:
        Path(name).write_bytes(data)
        return name

    return make


def sparse(name: str, size: int) -> Callable[[], str]:
    def make() -> str:
        with open(name, "wb") as file:
            file.truncate(size)  # no block of it is on the disk
        return name

    return make


def black_png(name: str, side: int) -> Callable[[], str]:
    """A real PNG of side x side black pixels, of a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    def make() -> str:
        row = bytes(1 + (side + 7) // 8)
        squeeze = zlib.compressobj(1)
        data = b"".join([squeeze.compress(row * 100) for _ in range(side // 100)]) + squeeze.flush()
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
        return put(name, b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b""))()

    return make


def cut(name: str, whole: str, share: float) -> Callable[[], str]:
    def make() -> str:
        data = Path(whole).read_bytes()
        return put(name, data[: int(share * len(data))])()

    return make


def copied(name: str, whole: str) -> Callable[[], str]:
    return lambda: shutil.copy(whole, name)


def grey(name: str, size: tuple[int, int], level: int) -> Callable[[], str]:
    def make() -> str:
        Image.new("L", size, level).save(name)
        return name

    return make


def svg(name: str, body: str, attributes: str = 'viewBox="0 0 64 64"', before: str = "") -> Callable[[], str]:
    return put(name, f'{before}<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{body}</svg>'.encode())


def nested_uses(name: str) -> Callable[[], str]:
    layers = "".join(f'<g id="g{k}">' + 10 * f'<use href="#g{k - 1}"/>' + "</g>" for k in range(1, 12))
    return svg(name, f'<defs><g id="g0"><path d="M0 0h9v9z"/></g>{layers}</defs><use href="#g11"/>')


def ply(name: str, header: str, data: bytes = b"") -> Callable[[], str]:
    return put(name, f"ply\nformat binary_little_endian 1.0\n{header}end_header\n".encode() + data)


NAMES = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
FLOATS = "".join(f"property float {name}\n" for name in [*NAMES, *(f"rot_{k}" for k in range(4))])


def gaussians(
    name: str, bad: dict[int, float] | None = None, rest: int = 0, zero_turn: bool = False
) -> Callable[[], str]:
    """Nine Gaussians; `bad` puts a number into a column of rows 5 and 7."""
    table = np.tile(np.array([0, 0, 0, 0, 0, 0, 2, -3, -3, -3, 1, 0, 0, 0], "<f4"), (9, 1))
    for column, value in (bad or {}).items():
        table[[5, 7], column] = value
    if zero_turn:
        table[[5, 7], 10:] = 0
    more = "".join(f"property float f_rest_{k}\n" for k in range(rest))
    table = np.concatenate([table, np.zeros((9, rest), "<f4")], 1)
    return ply(name, f"element vertex 9\n{FLOATS}{more}", table.tobytes())


# ---- the table


@dataclass(frozen=True)
class Case:
    """Something bad, given to a job of a kind, and what is said wherever it is given."""

    number: int  # of the thirty
    what: str
    kind: str  # image, svg, sketch, splats: the command, the kind of a manifest's row, the function of the API
    given: dict[str, Any]  # by the names of a manifest's fields; a function makes a file and gives its name
    said: str
    status: int = 422  # what the refusal carries
    code: int = errors.USAGE
    but: tuple[str, ...] = ()  # doors where it cannot come in, or is told otherwise by another entry
    more: dict[str, str] = field(default_factory=dict)  # door -> what it says instead

    def __str__(self) -> str:
        return f"{self.number} {self.what}"


EMPTY = "The target prompt is empty; describe the picture as it should become."
LONG = "has 100000 characters; at most 2000 are allowed."
SEED = "it must be a whole number from 0 to 9223372036854775807."
PICKLED = " is a pickled checkpoint, which can run code when opened: safetensors only, in a diffusers folder."
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
KINDS_READ = "give a PNG, JPEG, WebP, BMP, TIFF or GIF file."

CASES = [
    Case(1, "a picture over the limit", "image", {"input": sparse("huge.png", 256 * MIB + 1)},
         "huge.png is larger than the limit of 256 MiB.", 413, but=("api",)),
    Case(1, "a drawing over the limit", "svg", {"input": sparse("huge.svg", 20 * MIB + 1)},
         "huge.svg is larger than the limit of 20 MiB.", 413,
             more={"api": "huge.svg is larger than the limit of 4 MiB."}),
    Case(1, "a scene over the limit", "splats", {"input": sparse("huge.ply", 4096 * MIB + 1)},
         "huge.ply is larger than the limit of 4096 MiB.", 413, but=("api",)),
    Case(2, "66 megapixels", "image", {"input": black_png("wide.png", 8_100)},
         "wide.png is 8100x8100, more pixels than the limit of 64 megapixels: make it smaller."),
    Case(2, "144 megapixels", "image", {"input": black_png("wide.png", 12_000)},
         "than the limit of 64 megapixels: make it smaller."),
    Case(2, "400 megapixels", "image", {"input": black_png("wide.png", 20_000)},
         "wide.png has more pixels than the limit of 64 megapixels: make it smaller."),
    Case(2, "a mask of 400 megapixels", "image", {"mask": black_png("wide.png", 20_000)},
         "wide.png has more pixels than the limit of 64 megapixels: make it smaller."),
    Case(3, "a picture cut short", "image", {"input": cut("cut.png", "cat.png", 0.5)},
         "cut.png is damaged or cut short: its pixels cannot be read."),
    Case(3, "a picture of nothing", "image", {"input": put("none.png", b"")}, f"none.png is empty: {KINDS_READ}",
         but=("api",)),
    Case(3, "a picture under another name", "image", {"input": copied("cat.jpg", "cat.png")},
         "cat.jpg is a PNG picture under another name: its name must end in .png."),
    Case(3, "a drawing cut short", "svg", {"input": cut("cut.svg", "ball.svg", 0.6)}, "cut.svg is not well-formed XML"),
    Case(3, "a scene cut short", "splats", {"input": cut("cut.ply", "ball.ply", 0.9)},
        "cut.ply is cut short or damaged"),
    Case(3, "a picture for a drawing", "svg", {"input": copied("cat.svg", "cat.png")}, "cat.svg is not UTF-8 text"),
    Case(3, "a picture for a scene", "splats", {"input": copied("cat.ply", "cat.png")},
         "cat.ply is of a kind that is not read: give a .ply, .compressed.ply or .spz file.", 415),
    *(Case(4, kind, "image", {"input": put("odd.png", begin + bytes(4000))},
           f"odd.png is of a kind that is not read: {KINDS_READ}", 415)
      for kind, begin in (("FITS", b"SIMPLE  =" + b" " * 20 + b"T"), ("PSD", b"8BPS\0\1"), ("PDF", b"%PDF-1.7\n"),
                          ("EPS", b"%!PS-Adobe-3.0 EPSF"), ("SVG", b"<svg/>"))),
    Case(6, "DOCTYPE", "svg", {"input": svg("page.svg", "<path d='M0 0h9v9z'/>", before="<!DOCTYPE svg>")},
         "page.svg has a DOCTYPE, which is not read: take the <!DOCTYPE ...> line out of it."),
    Case(6, "entities that grow", "svg", {"input": svg("page.svg", "<text>&b;</text>", before=(
         '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'))},
             "page.svg has a DOCTYPE"),
    Case(6, "XXE", "svg", {"input": svg("page.svg", "<text>&x;</text>", before=(
         '<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'))}, "page.svg has a DOCTYPE"),
    *(Case(7, f"a reference to {where}", "svg", {"input": svg("page.svg", f"<path d='M0 0h9v9z'/>{body}")},
           f"page.svg {said}, which is never opened: take it out")
      for where, body, said in (
          ("a file", "<image href='file:///etc/passwd' width='9' height='9'/>",
           "refers to something outside itself (href of <image>)"),
          ("an address", "<use href='http://127.0.0.1:9/a.svg#b'/>",
           "refers to something outside itself (href of <use>)"),
          ("a style sheet", "<style>@import 'http://127.0.0.1:9/a.css';</style>",
           "has a style that refers to something outside the file"))),
    Case(8, "uses in uses", "svg", {"input": nested_uses("bomb.svg")},
         "bomb.svg has references that make more than 100,000 elements of it: simplify it."),
    Case(8, "200,000 groups in each other", "svg", {"input": svg("deep.svg", "<g>" * 200_000 + "</g>" * 200_000)},
         "deep.svg has elements more than 200 deep in each other: flatten its groups."),
    Case(8, "a million paths", "svg", {"input": svg("many.svg", "<path d='M0 0'/>" * 1_000_000)},
         "many.svg has more than 50,000 elements or 200,000 attributes: simplify it.",
         more={"api": "many.svg is larger than the limit of 4 MiB."}),
    Case(8, "a page 2 million pixels wide", "svg", {"input": svg("wide.svg", "<path d='M0 0h9v9z'/>",
         'width="2000000" height="10"')}, "pixels: its sides must be above 0 and at most 16,384."),
    Case(11, "10^12 Gaussians announced", "splats", {"input": ply("bad.ply", f"element vertex {10**12}\n{FLOATS}",
        bytes(168))},
         "bad.ply is cut short or damaged: its header announces 56000000000000 bytes and 168 follow."),
    Case(12, "a header that does not end", "splats", {"input": put("bad.ply", b"ply\nformat binary_little_endian 1.0\n"
         + b"comment on and on\n" * 200_000)}, "bad.ply is damaged: its header does not end within 64 KiB."),
    *(Case(13, f"a {what}", "splats", {"input": gaussians("bad.ply", {column: value})},
           f"Gaussian 5 of bad.ply has {said}: no scene can be drawn with it.")
      for what, column, value, said in (
          ("position that is no number", 1, np.nan, "a position that is not finite or too large"),
          ("scale that is infinite", 8, -np.inf, "a scale that is not finite or too large"),
          ("colour that is no number", 3, np.nan, "a colour that is not finite or too large"))),
    Case(13, "a quaternion of 0", "splats", {"input": gaussians("bad.ply", zero_turn=True)},
         "Gaussian 5 of bad.ply has a quaternion of 0: no scene can be drawn with it."),
    Case(13, "a wrong number of SH", "splats", {"input": gaussians("bad.ply", rest=10)},
         "bad.ply has 10 SH properties f_rest_0, f_rest_1 ...: 0, 9, 24 or 45 are allowed."),
    Case(13, "no Gaussian", "splats", {"input": ply("bad.ply", f"element vertex 0\n{FLOATS}")},
         "bad.ply holds no Gaussian: at least one is needed."),
    Case(14, "a mask of nothing", "image", {"mask": grey("m.png", (56, 40), 0)},
         "The mask m.png is empty: paint what may change in white on black."),
    Case(14, "a mask of everything", "image", {"mask": grey("m.png", (56, 40), 255)},
         "The mask m.png is full: leave what must stay black, or give no mask."),
    Case(14, "a mask of another size", "image", {"mask": grey("m.png", (40, 56), 99)},
         "The mask m.png is 40x56 pixels and the picture is 56x40: a mask must be exactly as large as its picture."),
    *(Case(15, f"{what}, {kind}", kind, {"target": text}, said)
      for kind in ("image", "svg", "splats")
      for what, text, said in (
          ("no target", " \u3000 ", EMPTY), ("100,000 characters", "cat " * 25_000, f"The target prompt {LONG}"),
          ("a control character", "a\x07cat", "The target prompt has the control character U+0007"),
          ("a bidi character", "a \u202etac", "The target prompt has the control character U+202E"))),
    Case(15, "a long source", "image", {"source": "cat " * 25_000}, f"The source prompt {LONG}"),
    Case(15, "nothing to draw", "sketch", {"prompt": " "}, "The prompt is empty; say what to draw."),
    Case(15, "100,000 characters to draw", "sketch", {"prompt": "cat " * 25_000}, f"The prompt {LONG}"),
    *(Case(16, f"{name} {value}, {kind}", kind, {name: value}, f"{name} is {value}; {allowed}")
      for kind, name, value, allowed in (
          *((kind, "seed", value, SEED) for kind in ("image", "svg", "splats", "sketch") for value in (-1,
              2**63 + 2**12)),
          *((kind, "steps", -1, "it must be a whole number from 1 to 10000.") for kind in ("image", "svg", "splats",
              "sketch")),
          *((kind, "strength", value, "it must be a number from 0.1 to 10.")
            for kind in ("image", "svg", "splats") for value in (-1, 11)),
          ("splats", "views", 3, "it must be a whole number from 4 to 256."),
          ("splats", "threshold", 1, "it must be a number from 0.05 to 0.95."),
          ("svg", "added", 513, "it must be a whole number from 0 to 512."),
          ("sketch", "strokes", 3, "it must be a whole number from 4 to 2048."),
          ("sketch", "width", 21, "it must be a number from 0.1 to 20."))),
    Case(16, "a method that is none", "image", {"method": "magic"},
        "it must be one of lusd, dds,",
         but=("command line",)),
    *(Case(20, f"an address for a {what}", kind, {name: lambda address=address: address},
           f"Addresses are never fetched: save the {called} first and give the file's name.", but=("api",),
           more={"batch": f"{name} is an address; addresses are never fetched: save the file first."})
      for what, kind, name, called, address in (
          ("picture", "image", "input", "picture", "http://127.0.0.1:9/cat.png"),
          ("mask", "image", "mask", "picture", "file:///etc/passwd"),
          ("drawing", "svg", "input", "drawing", "https://127.0.0.1:9/a.svg"),
          ("scene", "splats", "input", "scene", "data:,x"))),
    *(Case(21, f"a pickle for a model, {suffix}", "image", {"model": f"model.{suffix}"}, f"model.{suffix}{PICKLED}",
           but=("api",))
      for suffix in ("ckpt", "bin", "pt", "pth", "pkl")),
    *(Case(22, f"a model that is not here, {kind}", kind, {"model": SDXL},
           f"{SDXL} (licence CreativeML Open RAIL++-M) is not on this machine", code=errors.MODEL_MISSING, but=("api",))
      for kind in ("image", "svg", "sketch", "splats")),
    Case(22, "how to get it", "image", {"model": SDXL}, f"hf download {SDXL}", code=errors.MODEL_MISSING, but=("api",)),
    Case(22, "a model that the page does not offer", "image", {"model": "someone/something"},
         "There is no model named someone/something here", but=("command line", "batch")),
]  # fmt: skip

USUAL = {
    "image": {"input": "cat.png", "source": "a cat", "target": "a cat wearing a crown"},
    "svg": {"input": "ball.svg", "source": "a red ball", "target": "a green ball"},
    "sketch": {"prompt": "a fox"},
    "splats": {"input": "ball.ply", "source": "a red ball", "target": "a green ball"},
}
FILES = ("input", "mask")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one good file of each kind in it, the current one."""
    from sdsedit.io.splats import write
    from tests.little_scene import little_scene

    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("cat.png")
    svg("ball.svg", '<rect width="64" height="64" fill="#fff"/><circle cx="32" cy="32" r="20" fill="#c00"/>')()
    write("ball.ply", little_scene())
    return folder


def made(case: Case) -> dict[str, Any]:
    return {name: value() if callable(value) else value for name, value in {**USUAL[case.kind], **case.given}.items()}


def said_by(arguments: list[str], code: int, folder: Path) -> str:
    """What the command line says, held to the rules: the code, no traceback, no folder, nothing written."""
    before = sorted(path.name for path in folder.parent.rglob("*"))
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        given = main(arguments)
    said = err.getvalue().removeprefix("Loading the model.\n")
    assert given == code, said
    assert "Traceback" not in said and str(folder.parent) not in said and not out.getvalue()
    assert sorted(path.name for path in folder.parent.rglob("*")) == before, "something was written"
    return said


def at(door: str) -> list[Case]:
    return [case for case in CASES if door not in case.but]


# ---- the command line


@pytest.mark.parametrize("case", at("command line"), ids=str)
def test_on_the_command_line(here: Path, case: Case, builtin_folder: Path):
    given = {"model": str(builtin_folder), **made(case)}
    first = [given.pop("prompt" if case.kind == "sketch" else "input")]
    options = [f"--{name}={value}" for name, value in given.items()]
    suffix = {"image": "png", "svg": "svg", "sketch": "svg", "splats": "ply"}[case.kind]
    said = said_by([case.kind, *first, *options, "--output", f"out.{suffix}"], case.code, here)
    assert case.more.get("command line", case.said) in said and said.count("\n") == 1, said
    is_a_sentence(said.strip())


# ---- a batch: rows 2 and 3 have it, row 4 is good; one report, by line, before a model is loaded


@pytest.mark.parametrize("case", at("batch"), ids=str)
def test_in_a_batch(here: Path, case: Case, builtin_folder: Path):
    row = {"kind": case.kind, **made(case)}
    rows = [{"schema_version": 1}, {**row, "id": "one"}, {**row, "id": "two"}, {"kind": "sketch", "prompt": "a fox"}]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = said_by(
        ["batch", "jobs.jsonl", "--output", "../out", "--model", str(builtin_folder)], case.code, here
    ).splitlines()
    if case.code != errors.USAGE:  # a model is no fault of a row
        assert len(said) == 1 and case.said in said[0]
        return
    assert said[0] == f"sdsedit: jobs.jsonl has {len(said) - 1} faults; nothing was begun.", said
    assert [line.split(":")[0] for line in said[1:]] == ["  line 2", "  line 3"]
    for line in said[1:]:
        assert case.more.get("batch", case.said) in line, line
        is_a_sentence(line.split(": ", 1)[1])


# ---- the API


@dataclass
class Served:
    """A page with a tiny model, and a client of it."""

    url: str
    client: Any
    process: Any
    folder: Path


@pytest.fixture(scope="module")
def served(builtin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if find_spec("gradio") is None:
        pytest.skip("the page needs gradio: pip install -c constraints.txt -e '.[web]'")
    from gradio_client import Client

    folder, port = tmp_path_factory.mktemp("page"), free_port()
    process = start(port, "--no-history", "--model", str(builtin_folder), TMPDIR=str(folder))
    try:
        until(f"http://127.0.0.1:{port}/readyz", 200, 180)
        url = f"http://127.0.0.1:{port}"
        client = Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
        yield Served(url, client, process, folder)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(45)
        except Exception:
            process.kill()
            process.wait()


FUNCTIONS = {"image": "/edit_picture", "svg": "/edit_drawing", "sketch": "/draw_words", "splats": "/edit_scene"}
PARAMETERS = {("image", "input"): "picture", ("svg", "input"): "drawing", ("splats", "input"): "scene"}


def answer(served: Served, kind: str, given: dict[str, Any]) -> str:
    """The sentence with which the API refuses."""
    from gradio_client import handle_file

    values: dict[str, Any] = {}
    for name, value in given.items():
        if name in FILES and not re.match(r"\w+:", value):
            value = handle_file(value)
        elif name in FILES:
            value = {"path": value, "meta": {"_type": "gradio.FileData"}}
        values[PARAMETERS.get((kind, name), name)] = value
    with pytest.raises(Exception) as refused:
        served.client.submit(api_name=FUNCTIONS[kind], **values).result(timeout=120)
    return html.unescape(str(refused.value))


@pytest.mark.parametrize("case", at("api"), ids=str)
def test_through_the_api(served: Served, here: Path, case: Case):
    said = answer(served, case.kind, made(case))
    assert case.more.get("api", case.said) in said, said
    assert "Traceback" not in said and str(here) not in said and str(served.folder) not in said


def test_1_an_upload_over_the_limit_leaves_nothing(served: Served, here: Path):
    import httpx

    sparse("huge.png", 33 * MIB)()
    with open("huge.png", "rb") as file:
        given = httpx.post(f"{served.url}/gradio_api/upload", files={"files": file}, timeout=120)
    assert given.status_code == 413 and given.json()["error"] == "The file is larger than the limit of 32 MiB."
    assert not [path for path in served.folder.rglob("*") if path.is_file() and path.stat().st_size > 30 * MIB]


def test_2_the_page_takes_smaller_pictures(served: Served, here: Path):
    assert "16 megapixels" in answer(served, "image", {**USUAL["image"], "input": black_png("wide.png", 4_100)()})


def test_9_a_drawing_is_never_served_as_a_page(served: Served, here: Path):
    """Scripts are cut out of what is read; and a file that was uploaded with one comes back to be saved, not shown."""
    import httpx

    body = "<script>alert(1)</script><path onclick='x' d='M0 0h9v9z'/>"
    with open(svg("bad.svg", body)(), "rb") as file:
        (path,) = httpx.post(f"{served.url}/gradio_api/upload", files={"files": file}).json()
    given = httpx.get(f"{served.url}/gradio_api/file={path}")
    assert given.status_code == 200 and given.headers["content-disposition"].startswith("attachment")
    assert given.headers["x-content-type-options"] == "nosniff"


@pytest.mark.skipif(sys.platform != "linux", reason="children are looked for in /proc")
@pytest.mark.parametrize("kind", ["svg", "splats"])
def test_10_a_reader_that_is_killed_fails_its_job_and_the_server_lives(served: Served, here: Path, kind: str):
    import httpx

    given = dict(USUAL[kind])
    if kind == "svg":
        given["input"] = svg("large.svg", "<path d='M0 0h9v9z'/>" * 4_900)()
    killed: list[int] = []

    def kill() -> None:
        until_ = time.monotonic() + 60
        tasks = Path(f"/proc/{served.process.pid}/task")
        while not killed and time.monotonic() < until_:
            with contextlib.suppress(OSError):  # a thread or a child that has just ended
                for child in " ".join((task / "children").read_text() for task in tasks.iterdir()).split():
                    if b"bounded._child" in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(int(child), signal.SIGKILL)
                        killed.append(int(child))
            time.sleep(0.002)

    hunter = threading.Thread(target=kill)
    hunter.start()
    said = answer(served, kind, given)
    hunter.join()
    assert killed and " cannot be read: reading it fails or needs over " in said
    assert httpx.get(f"{served.url}/healthz").status_code == httpx.get(f"{served.url}/readyz").status_code == 200
    if kind == "splats":  # the next job works
        path, recipe = served.client.submit(api_name="/draw_words", prompt="a fox", strokes=4, steps=1).result(
            timeout=300
        )
        assert Path(path).suffix == ".svg" and recipe["result"]["steps_done"] == 1


WAITS = """
import sys, time
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False)
long = {"source": "a cat", "target": "a hat", "steps": 10000, "api_name": "/edit_picture"}
jobs = [client.submit(handle_file("cat.png"), **long) for _ in range(5)]
while not any(job.status().code.name == "PROCESSING" for job in jobs):
    time.sleep(0.05)
print("begun", flush=True)
jobs[0].result()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_27_who_leaves_stops_their_job(served: Served, here: Path):
    """A program that is killed, as a tab that is closed: fifty thousand steps are not made for nobody."""
    left = subprocess.Popen([sys.executable, "-c", WAITS, served.url], stdout=subprocess.PIPE, text=True)
    try:
        assert left.stdout is not None and left.stdout.readline() == "begun\n"
        time.sleep(1)  # some steps are made
        assert left.poll() is None
    finally:
        left.kill()
        left.wait()
    began = time.monotonic()
    asked = served.client.submit(api_name="/draw_words", prompt="a fox", strokes=4, steps=1)
    assert asked.result(timeout=300)[1]["result"]["steps_done"] == 1
    assert time.monotonic() - began < 200  # the steps take half an hour on a machine that does nothing else


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", str(ROOT / "README.md")])
def test_17_files_of_the_machine_are_no_uploads(served: Served, path: str):
    import httpx

    data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "a cat", "cat"]}
    given = httpx.post(f"{served.url}/gradio_api/call/heat_map", json=data)
    assert given.status_code == 422 and given.json()["error"] == "Only a file that was uploaded here can be used."


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/cat.png", "file:///etc/passwd", "data:,x"])
def test_20_addresses_have_their_code(served: Served, address: str):
    import httpx

    data = {"data": [{"path": address, "meta": {"_type": "gradio.FileData"}}, "a cat", "cat"]}
    given = httpx.post(f"{served.url}/gradio_api/call/heat_map", json=data)
    assert given.status_code == 422 and "never fetched" in given.json()["error"]


# ---- what a refusal carries, for who builds on the library


@pytest.mark.parametrize(
    "case", [case for case in CASES if set(case.given) == {"input"} and case.number != 20], ids=str
)
def test_the_status_of_a_refusal(here: Path, case: Case):
    from sdsedit.io import splats, svg
    from sdsedit.io.images import read_picture

    reader: Callable[[Path], object] = {"image": read_picture, "svg": svg.read_svg, "splats": splats.read}[case.kind]
    name = Path(made(case)["input"])
    began = time.perf_counter()
    with pytest.raises(errors.InputRefused) as refused:
        reader(name)
    assert refused.value.status == case.status and case.said in str(refused.value)
    assert time.perf_counter() - began < 10  # a second on a machine that has nothing else to do


# ---- manifests: what only they can have


def refused_rows(here: Path, rows: list[Any], builtin_folder: Path) -> list[str]:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in [{"schema_version": 1}, *rows])
    Path("jobs.jsonl").write_text(text)
    arguments = ["batch", "jobs.jsonl", "--output", "../out", "--model", str(builtin_folder)]
    return said_by(arguments, errors.USAGE, here).splitlines()[1:]


def test_17_ways_out_of_a_manifests_folder(here: Path, builtin_folder: Path):
    (here.parent / "secret.png").write_bytes((here / "cat.png").read_bytes())
    (here / "link.png").symlink_to(here.parent / "secret.png")
    (here / "up").symlink_to(here.parent)
    image = USUAL["image"]
    ways: list[tuple[dict[str, Any], str]] = [
        ({**image, "input": "../secret.png"}, "input secret.png leads out of the folder with .."),
        (
            {**image, "input": str(here.parent / "secret.png")},
            "input secret.png is an absolute path, out of the folder",
        ),
        ({**image, "input": "link.png"}, "input link.png is a link that leads out of the manifest's folder"),
        ({**image, "input": "up/secret.png"}, "input secret.png is a link that leads out of the manifest's folder"),
        ({**image, "output": "../a.png"}, "output a.png leads out of the folder with .."),
        ({**image, "output": "/tmp/a.png"}, "output a.png is an absolute path, out of the folder"),
        ({**image, "mask": "link.png"}, "mask link.png is a link that leads out of the manifest's folder"),
        ({**image, "input": "..\\secret.png"}, "has a backslash: write folders with /."),
        ({**image, "input": "cat.png", "model": "../model"}, "model model leads out of the folder with .."),
    ]
    said = refused_rows(here, [row for row, _ in ways], builtin_folder)
    assert len(said) == len(ways)
    for k, (line, (_, sentence)) in enumerate(zip(said, ways, strict=True), start=2):
        assert line.startswith(f"  line {k}: ") and sentence in line, line


def test_18_row_57_among_many(here: Path, builtin_folder: Path):
    rows: list[Any] = [USUAL["image"]] * 60
    rows[55], rows[56], rows[58] = '{"input": "cat.png", ', '["cat.png"]', {**USUAL["image"], "steps": "many"}
    said = refused_rows(here, rows, builtin_folder)
    assert [line.split(":")[0] for line in said] == ["  line 57", "  line 58", "  line 60"]
    assert "this is no JSON" in said[0] and "a row is an object" in said[1] and "steps is many" in said[2]


def test_19_what_is_there_twice(here: Path, builtin_folder: Path):
    image = USUAL["image"]
    rows = [{**image, "id": "a"}, {**image, "id": "A"}, {**image, "id": "b", "output": "x.png"},
            {**image, "id": "c", "output": "X.png"}, {**image, "id": "d", "output": "x.PNG"}]  # fmt: skip
    said = refused_rows(here, rows, builtin_folder)
    assert "line 3: the id A is line 2's already." in said[0]
    assert all("is written by line" in line for line in said[1:]) and len(said) >= 3


# ---- the page's buttons are the API's functions


def called(module: str, cls: str, method: str) -> set[str]:
    """The names that a method calls, or hands on to be called."""
    tree = ast.parse((ROOT / module).read_text("utf-8"))
    (owner,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls)
    found = [node for node in owner.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    (act,) = (node for node in found if node.name == method)
    return {node.attr for node in ast.walk(act) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize(
    ("module", "cls", "api", "page", "work"),
    [
        ("image_tab", "ImageTab", "edit_picture", "take_picture", "read_input"),
        ("image_tab", "ImageTab", "edit_picture", "_order", "make_order"),
        ("image_tab", "ImageTab", "edit_picture", "_order", "read_mask"),
        ("sketch_tab", "SketchTab", "edit_drawing", "take", "read_drawing"),
        ("sketch_tab", "SketchTab", "edit_drawing", "_start", "change_order"),
        ("sketch_tab", "SketchTab", "draw_words", "_start", "draw_order"),
        ("splat_tab", "SplatTab", "edit_scene", "take_file", "read_scene"),
        ("splat_tab", "SplatTab", "edit_scene", "_order", "scene_order"),
    ],
)
def test_buttons_and_api_check_with_the_same_function(module: str, cls: str, api: str, page: str, work: str):
    for method in (api, page):
        assert work in called(f"sdsedit/web/{module}.py", cls, method), f"{method} does not call {work}"


def test_only_one_place_tells_a_refusal_on_the_page():
    """Every event goes through events.handler: nothing else makes an error of Gradio's, and no method is wired bare."""
    events = "click|upload|change|select|input|clear|submit|load|failure|success|tick"
    wired = 0
    for path in sorted((ROOT / "sdsedit" / "web").glob("*.py")):
        text = path.read_text("utf-8")
        assert path.name == "events.py" or "gr.Error(" not in text, path.name
        assert not re.search(rf"\.(?:{events})\(\s*self\.", text), path.name
        wired += len(re.findall(rf"\.(?:{events})\(\s*handler\(self\.", text))
    assert wired > 40


# ---- what is no sentence but a run

ELSEWHERE: dict[int, list[str]] = {
    1: ["tests/web/test_guard.py::test_1_a_body_over_the_limit"],
    5: ["tests/test_bad_inputs.py::test_5_normalised_noted_and_alpha_kept",
        "tests/web/test_api.py::test_5_normalised_and_noted",
        "tests/io/test_images.py::test_exif_rotation"],
    7: ["tests/io/test_svg.py::test_nothing_is_opened_and_loading_is_light"],
    8: ["tests/io/test_svg.py::test_bombs_are_refused_within_one_second"],
    9: ["tests/io/test_svg.py::test_scripts_events_and_foreign_content_are_cut_out_of_the_bytes",
        "tests/web/test_sketch_work.py::test_it_is_shown_as_a_picture_without_scripts",
        "tests/web/test_tabs.py::test_a_bad_drawing_is_refused_with_its_sentence"],
    10: ["tests/io/test_bounded.py::test_10_a_reader_that_dies",
        "tests/io/test_bounded.py::test_10_a_reader_that_hangs",
         "tests/io/test_bounded.py::test_10_a_reader_that_grows"],
    14: ["tests/web/test_image_work.py::test_14_a_painted_mask_that_says_nothing"],
    15: ["tests/test_bad_inputs.py::test_15_what_is_cut_off_is_said_aloud"],
    21: ["tests/prior/test_load.py::test_a_pickle_is_never_opened_by_default",
        "tests/test_security.py::test_21_never_from_the_page"],
    22: ["tests/prior/test_load.py::test_a_gated_model_says_its_licence_and_what_to_do"],
    23: ["tests/test_memory.py::test_a_batch_that_does_not_fit_goes_in_parts_with_the_same_result",
         "tests/test_memory.py::test_an_autoencoder_that_does_not_fit_works_in_tiles",
         "tests/test_memory.py::test_where_nothing_helps_one_sentence_says_what_was_tried",
         "tests/test_memory.py::test_a_gpu_that_is_really_full",
         "tests/batch/test_together.py::test_a_pass_that_does_not_fit_in_memory_is_made_in_parts",
         "tests/web/test_worker.py::test_a_job_that_fails_does_not_end_the_worker"],
    24: ["tests/test_bad_inputs.py::test_24_the_last_good_state_is_written_and_flagged",
         "tests/test_edit.py::test_a_gradient_that_is_not_finite_stops_with_the_last_good_state"],
    25: ["tests/batch/test_local.py::test_killed_workers_cost_nothing_but_time",
         "tests/batch/test_local.py::test_a_job_that_kills_its_worker_each_time_is_set_aside",
         "tests/batch/test_ray.py::test_a_killed_actor_and_a_killed_node_cost_nothing_but_time"],
    26: ["tests/test_cli_batch.py::test_a_queue_that_took_the_machine_down_starts_paused",
         "tests/batch/test_local.py::test_a_job_that_takes_the_machine_down_starts_the_queue_paused",
         "tests/batch/test_store.py::test_a_job_that_kills_its_workers_is_set_aside_and_the_others_go_on"],
    27: ["tests/test_bad_inputs.py::test_27_a_signal_keeps_the_partial_result",
         "tests/test_cli_sketch.py::test_a_signal_keeps_the_drawing_so_far",
         "tests/test_cli_splats.py::test_a_signal_keeps_the_scene_so_far", "tests/web/test_worker.py::test_cancelling",
         "tests/web/test_page.py::test_stop_keeps_what_is_there"],
    28: ["tests/io/test_record.py::test_a_full_disk", "tests/test_bad_inputs.py::test_28_a_write_that_fails_at_the_end",
         "tests/batch/test_store.py::test_a_full_disk_is_waited_for_and_nothing_is_half_written",
         "tests/batch/test_local.py::test_a_full_disk_keeps_a_result_until_there_is_room"],
    29: ["tests/web/test_serve.py::test_29_sigterm_lets_the_running_job_finish",
         "tests/web/test_serve.py::test_29_a_second_signal_ends_it_at_once",
         "tests/test_cli_batch.py::test_sigterm_to_the_real_process_loses_nothing"],
    30: ["tests/web/test_guard.py::test_30_a_flood_and_a_full_line",
        "tests/web/test_guard.py::test_failed_logins_are_counted",
         "tests/web/test_worker.py::test_30_crowded_says_what_submit_would"],
}  # fmt: skip


def test_every_case_has_a_test():
    own = {case.number for case in CASES} | {17, 18, 19}
    assert sorted(own | set(ELSEWHERE)) == list(range(1, 31))


@pytest.mark.parametrize("name", [name for names in ELSEWHERE.values() for name in names])
def test_the_named_tests_are_there(name: str):
    file, _, test = name.partition("::")
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name == test for node in tree.body), name


def test_the_page_of_refusals_says_what_is_said():
    """docs/bad-inputs.md quotes the table above, with its exit codes."""
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| (\d+) \|$", (ROOT / "docs" / "bad-inputs.md").read_text("utf-8"), re.M
    )
    known = {(case.said, case.code) for case in CASES}
    assert len(rows) >= 20
    for _, said, code in rows:
        assert (said, int(code)) in known, said
