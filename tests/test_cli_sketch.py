"""`sdsedit sketch`, `sdsedit svg` and their replay on a tiny real model: what is written, said, and refused."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdsedit import cli, errors
from sdsedit.cli import main
from sdsedit.io.svg import read_recipe, read_svg

ROOT = Path(__file__).resolve().parent.parent
DRAWING = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="256" height="256">
<!-- a face -->
<g id="head" stroke="#222"><circle cx="32" cy="36" r="20" fill="#e8b04a"  stroke-width="2"/>
  <path d='M24 32 l2 3' fill="none"/><path d='M40 32 l-2 3' fill="none"/></g>
<rect x="2" y="58" width="60" height="4" fill="green"/>
</svg>
"""


def run(*arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def drawn(builtin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(folder, what was said) of a short sketch with everything that can be written beside it."""
    folder = tmp_path_factory.mktemp("drawn")
    code, said, err = run(
        "sketch", "a cat and a dog", "--output", str(folder / "cat.svg"), "--steps", "3", "--strokes", "8", "--width",
        "1.5", "--seed", "7", "--style", "colour", "--background", "--png", "--guide", "--attention", "--animation",
        str(folder / "cat.gif"), "--preview-every", "2", "--model", str(builtin_folder),
    )  # fmt: skip
    assert code == errors.OK, err
    assert err.splitlines()[:2] == ["Loading the model.", "Step 1 of 3"]
    return folder, said


@pytest.fixture(scope="module")
def edited(builtin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(folder, what was said) of a short edit of DRAWING with everything that can be written beside it."""
    folder = tmp_path_factory.mktemp("edited")
    (folder / "cat.svg").write_bytes(DRAWING)
    code, said, err = run(
        "svg", str(folder / "cat.svg"), "--source", "a cat", "--target", "a cat wearing a crown", "--output",
        str(folder / "crown.svg"), "--steps", "2", "--added", "3", "--share", "0.4", "--png", "--save-mask",
        "--save-heatmap", "--model", str(builtin_folder),
    )  # fmt: skip
    assert code == errors.OK, err
    return folder, said


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


# ---- sdsedit sketch


def test_a_sketch_is_a_clean_file(drawn: tuple[Path, str]):
    folder, said = drawn
    assert names(folder) == {
        "cat.svg", "cat.png", "cat.guide.png", "cat.attention.png", "cat.preview.png", "cat.gif",
    }  # fmt: skip
    text = (folder / "cat.svg").read_text("utf-8")
    assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg" width="512" height="512" viewBox="0 0 512 512"')
    assert '<rect id="background" width="512" height="512" fill="#' in text
    document = read_svg(folder / "cat.svg")
    assert not document.notes and document.width == document.height == 512
    strokes = [shape for shape in document.shapes if shape.id != "background"]
    assert 1 <= len(strokes) <= 8 and all(shape.stroke and not shape.fill and shape.width > 0 for shape in strokes)
    assert all(shape.cap == shape.join == "round" for shape in strokes)
    groups = re.findall(r'<g id="([^"]+)"', text)
    assert groups and {group.split("-")[0] for group in groups} <= {"cat", "dog", "background"}
    dropped = f"{8 - len(strokes)} dropped" if len(strokes) < 8 else "none dropped"
    assert f"Strokes: {len(strokes)} kept, {dropped}" in said


def test_a_sketch_carries_its_recipe(drawn: tuple[Path, str], builtin_folder: Path):
    folder, said = drawn
    recipe = json.loads(read_recipe(folder / "cat.svg") or "")
    assert recipe["kind"] == "sketch" and recipe["prompt"] == "a cat and a dog" and "seconds" not in recipe
    wanted = {"strokes": 8, "style": "colour", "background": True, "width": 1.5, "steps": 3, "seed": 7}
    assert wanted.items() <= recipe["settings"].items()
    assert recipe["model"]["id"] == "tiny-builtin" and recipe["model"]["revision"].startswith("sha256:")
    assert recipe["result"]["complete"] and recipe["result"]["steps_done"] == 3
    shares = recipe["result"]["shares"]
    assert shares["distillation"] > 0 and sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert "Share of the gradient: distillation " in said and "Words looked for: cat, dog\n" in said
    assert re.search(r"^Time: .* s for 3 steps \(\d+ % of it in the renderer\)", said, re.M)
    assert re.search(r"^Written: .*cat\.svg, .*cat\.png", said, re.M)
    for data in (path.read_bytes() for path in folder.iterdir()):
        assert str(folder).encode() not in data and str(builtin_folder.parent).encode() not in data


def test_pictures_beside_a_sketch_show_the_file(drawn: tuple[Path, str]):
    from sdsedit.sketch.files import draw_page

    folder, _ = drawn
    page = pixels(folder / "cat.png")
    assert page.shape == (512, 512, 3) and page.std() > 1
    assert (draw_page(read_svg(folder / "cat.svg")) == page).all()
    assert pixels(folder / "cat.preview.png").shape == page.shape
    assert pixels(folder / "cat.guide.png").shape == pixels(folder / "cat.attention.png").shape == (128, 128, 3)
    with Image.open(folder / "cat.gif") as film:
        assert film.size == (512, 512) and film.n_frames >= 40  # pyright: ignore[reportAttributeAccessIssue]
        first = np.asarray(film.convert("RGB")).astype(int)
        film.seek(film.n_frames - 1)  # pyright: ignore[reportAttributeAccessIssue]
        last = np.asarray(film.convert("RGB")).astype(int)
    assert np.abs(last - page).mean() < 1 < np.abs(first - page).mean()


def test_a_sketch_is_replayed_byte_for_byte(drawn: tuple[Path, str], builtin_folder: Path, tmp_path: Path):
    folder, _ = drawn
    output = tmp_path / "again.svg"
    code, said, err = run(
        "replay", str(folder / "cat.svg"), "--output", str(output), "--model", str(builtin_folder)
    )  # fmt: skip
    assert code == errors.OK, err
    assert said.endswith("Compared: the same, byte for byte\n") and "Differs" not in said
    assert output.read_bytes() == (folder / "cat.svg").read_bytes() and names(tmp_path) == {"again.svg"}


@pytest.mark.parametrize(("style", "suffix"), [("ink", ".svg"), ("icon", ".mp4")])
def test_styles_films_and_no_metadata(builtin_folder: Path, tmp_path: Path, style: str, suffix: str):
    code, _, err = run(
        "sketch", "a cat", "--output", str(tmp_path / "new" / "cat.svg"), "--steps", "1", "--strokes", "4", "--style",
        style, "--animation", str(tmp_path / f"film{suffix}"), "--no-metadata", "--distillation", "1", "--model",
        str(builtin_folder),
    )  # fmt: skip
    assert code == errors.OK, err
    drawing = (tmp_path / "new" / "cat.svg").read_bytes()
    assert b"metadata" not in drawing and names(tmp_path) == {"new", f"film{suffix}"}
    assert "carries no recipe" in run("replay", str(tmp_path / "new" / "cat.svg"))[2]
    document = read_svg(drawing)
    if style == "ink":
        assert all(shape.stroke for shape in document.shapes[1:])
        assert b"@keyframes" in (film := (tmp_path / "film.svg").read_bytes()) and b"<script" not in film
        assert len(read_svg(film).shapes) == len(document.shapes)
    else:
        import cv2

        assert all(shape.fill and not shape.stroke for shape in document.shapes[1:])
        film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
        assert film.get(cv2.CAP_PROP_FRAME_COUNT) >= 60 and film.get(cv2.CAP_PROP_FRAME_WIDTH) == 512
        film.release()


def test_a_signal_keeps_the_drawing_so_far(builtin_folder: Path, tmp_path: Path):
    """A real process and a real signal; then `replay` repeats what was kept, byte for byte."""
    import torch

    arguments = ["a cat", "--output", "o.svg", "--steps", "10000", "--strokes", "4", "--model", str(builtin_folder)]
    threads = str(torch.get_num_threads())
    process = subprocess.Popen(
        [sys.executable, "-m", "sdsedit.cli", "sketch", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while "Step 1 of" not in (line := process.stderr.readline()):
            assert line, process.communicate()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == errors.INTERRUPTED, err
    assert "Cancelled after step" in err and "marked as incomplete" in err and "Traceback" not in err
    assert names(tmp_path) == {"o.svg"}
    result = json.loads(read_recipe(tmp_path / "o.svg") or "")["result"]
    assert result["stopped"] == "cancelled" and not result["complete"] and 1 <= result["steps_done"] < 10_000
    code, said, _ = run("replay", str(tmp_path / "o.svg"), "--model", str(builtin_folder))
    assert code == errors.OK and said.endswith("Compared: the same, byte for byte\n"), said
    assert (tmp_path / "o.replay.svg").read_bytes() == (tmp_path / "o.svg").read_bytes()


# ---- sdsedit svg


def test_what_does_not_change_keeps_its_bytes(edited: tuple[Path, str]):
    folder, said = edited
    assert names(folder) == {"cat.svg", "crown.svg", "crown.png", "crown.mask.png", "crown.heatmap.png"}
    after = (folder / "crown.svg").read_bytes()
    recipe = json.loads(read_recipe(folder / "crown.svg") or "")
    result = recipe["result"]
    counts = tuple(result[name] for name in ("kept", "changed", "removed", "added"))
    assert "Kept byte for byte: {} of 4 shapes; {} changed, {} removed, {} added\n".format(*counts) in said
    assert sum(counts[:3]) == 4 and counts[3] <= 3
    elements = [rb"<circle [^>]+>", rb"<path d='M24[^>]+>", rb"<path d='M40[^>]+>", rb"<rect [^>]+>"]
    kept = [re.search(element, DRAWING)[0] in after for element in elements]  # pyright: ignore[reportOptionalSubscript]
    assert sum(kept) == result["kept"] and b"<!-- a face -->" in after
    assert len(read_svg(after).shapes) == result["kept"] + result["changed"] + result["added"]


def test_an_edited_drawing_carries_its_recipe(edited: tuple[Path, str]):
    folder, said = edited
    recipe = json.loads(read_recipe(folder / "crown.svg") or "")
    assert recipe["kind"] == "svg" and recipe["target"] == "a cat wearing a crown" and recipe["source"] == "a cat"
    assert recipe["input"] == {"name": "cat.svg", "sha256": hashlib.sha256(DRAWING).hexdigest(), "size": [256, 256]}
    assert recipe["method"]["name"] == "lusd" and recipe["steps"] == 2
    assert {"share": 0.4, "added": 3, "steps": 2}.items() <= recipe["shapes"].items()
    assert "Words looked for: crown\n" in said
    assert str(folder).encode() not in (folder / "crown.svg").read_bytes()


def test_pictures_beside_an_edited_drawing(edited: tuple[Path, str]):
    folder, _ = edited
    sizes = {pixels(folder / f"crown.{what}").shape for what in ("png", "mask.png", "heatmap.png")}
    assert sizes == {(512, 512, 3)}  # the page's 256 are few to look at
    corner = pixels(folder / "crown.png")[505, 20]
    assert (corner == (0, 128, 0)).all() or json.loads(read_recipe(folder / "crown.svg") or "")["result"]["kept"] < 4


def test_an_edit_of_a_drawing_is_replayed_byte_for_byte(edited: tuple[Path, str], builtin_folder: Path, tmp_path: Path):
    folder, _ = edited
    code, said, err = run(
        "replay", str(folder / "crown.svg"), "--output", str(tmp_path / "again.svg"), "--model", str(builtin_folder)
    )
    assert code == errors.OK, err
    assert said.endswith("Compared: the same, byte for byte\n") and "Differs" not in said
    assert (tmp_path / "again.svg").read_bytes() == (folder / "crown.svg").read_bytes()


# ---- replay: a recipe is somebody's file


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompt": None}, "The recipe's prompt is of the wrong type"),
        ({"prompt": " "}, "The prompt is empty"),
        ({"settings": []}, "The recipe's settings is of the wrong type"),
        ({"settings": {"strokes": 8.0}}, "The recipe's setting strokes of a sketch is of the wrong type"),
        ({"settings": {"background": 1}}, "The recipe's setting background of a sketch is of the wrong type"),
        ({"settings": {"strokes": True}}, "The recipe's setting strokes of a sketch is of the wrong type"),
        ({"settings": {"strokes": 10**9}}, "strokes is 1000000000; it must be a whole number from 4 to 2048"),
        ({"settings": {"style": "crayon"}}, "style is 'crayon'; it must be one of ink, colour, icon"),
        ({"settings": {"ink": 1}}, "The recipe gives a sketch a setting that it does not have: ink"),
        ({"schema": 7}, "is not of schema 1"),
        ({"model": {"id": "http://example.org/m"}}, "The model is an address"),
    ],
)
def test_the_recipe_of_a_sketch(drawn: tuple[Path, str], tmp_path: Path, change: dict, sentence: str):
    recipe = json.loads(read_recipe(drawn[0] / "cat.svg") or "")
    (tmp_path / "bad.json").write_text(json.dumps({**recipe, **change}))
    code, _, said = run("replay", str(tmp_path / "bad.json"))
    assert code == errors.USAGE and sentence in said and said.count("\n") == 1 and names(tmp_path) == {"bad.json"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shapes": {"share": "x"}}, "The recipe's setting share of shapes is of the wrong type"),
        ({"shapes": {"edit": {}}}, "The recipe gives shapes a setting that they do not have: edit"),
        ({"shapes": {"added": 9999}}, "added is 9999; it must be a whole number from 0 to 512"),
        ({"method": {"name": "magic"}}, "The recipe's method is magic"),
        ({"input": {"name": "../cat.svg"}}, "does not name its input"),
        ({"input": {"name": "dog.svg"}}, "dog.svg, the input of the recipe, is not here"),
        ({"input": {"name": "cat.svg", "sha256": "0"}}, "cat.svg is not the input that the recipe names"),
    ],
)
def test_the_recipe_of_an_edited_drawing(edited: tuple[Path, str], tmp_path: Path, change: dict, sentence: str):
    recipe = json.loads(read_recipe(edited[0] / "crown.svg") or "")
    (tmp_path / "cat.svg").write_bytes(DRAWING)
    (tmp_path / "bad.json").write_text(json.dumps({**recipe, **change}))
    code, _, said = run("replay", str(tmp_path / "bad.json"))
    assert code == errors.USAGE and sentence in said and said.count("\n") == 1
    assert names(tmp_path) == {"cat.svg", "bad.json"}


def test_replay_of_drawings_that_tell_nothing(drawn: tuple[Path, str], tmp_path: Path):
    (tmp_path / "cat.svg").write_bytes(DRAWING)
    (tmp_path / "cat.json").write_text('{"schema": 1, "kind": "image"}')  # of a cat.png
    assert "cat.svg carries no recipe" in run("replay", str(tmp_path / "cat.svg"))[2]
    said = run("replay", str(drawn[0] / "cat.svg"), "--input", str(tmp_path / "cat.svg"))[2]
    assert said == "sdsedit: cat.svg was made without one: leave out --input.\n"


# ---- bad input: one sentence, no path, nothing written


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """refused(code, arguments ...): run a command, hold it to the rules of a refusal, and give its sentence."""
    monkeypatch.chdir(tmp_path)

    def check(code: int, *arguments: str) -> str:
        before = sorted(path.name for path in tmp_path.rglob("*"))
        given, _, said = run(*arguments)
        said = said.removeprefix("Loading the model.\n")
        assert given == code, said
        assert said.count("\n") == 1 and said.startswith("sdsedit") and said.rstrip().endswith((".", ")"))
        assert "Traceback" not in said and str(tmp_path) not in said and "/home" not in said and len(said) < 600
        assert sorted(path.name for path in tmp_path.rglob("*")) == before, "something was written"
        return said.split(": ", 1)[1].strip()

    return check


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ("", "The prompt is empty"),
        (" \u3000 ", "The prompt is empty"),
        ("a cat\nHost: x", "U+000A"),
        ("a \u202etac", "U+202E"),
        ("cat " * 25_000, "100000 characters"),
        ("a red", "The prompt names no thing to draw"),
        ("the of", "The prompt names no thing to draw"),
    ],
)
def test_prompts(refused: Callable[..., str], builtin_folder: Path, prompt: str, sentence: str):
    assert sentence in refused(2, "sketch", prompt, "--output", "o.svg", "--model", str(builtin_folder))


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--strokes", "3", "strokes is 3; it must be a whole number from 4 to 2048."),
        ("--strokes", "1e9", "strokes is 1e9; it must be a whole number from 4 to 2048."),
        ("--steps", "0", "steps is 0; it must be a whole number from 1 to 10000."),
        ("--seed", "-1", "seed is -1; it must be a whole number from 0 to 9223372036854775807."),
        ("--width", "nan", "width is nan; it must be a number from 0.1 to 20."),
        ("--distillation", "1.1", "distillation is 1.1; it must be a number from 0 to 1."),
        ("--preview-every", "0", "preview-every is 0; it must be a whole number from 1 to 10000."),
        ("--style", "crayon", "'crayon'"),
        ("--animation", "cat.avi", "The animation cat.avi must end in .gif, .mp4 or .svg."),
        ("--animation", "o.svg", "The animation would be written over o.svg: give it another name."),
        ("--animation", "none/o.exe", "The animation o.exe must end in"),
        ("--output", "cat.png", "cat.png must end in .svg"),
        ("--output", "cat", "cat must end in .svg"),
        ("--output", "https://example.org/o.svg", "The output is an address"),
        ("--model", "https://example.org/model", "The model is an address"),
        ("--output", "there.svg", "there.svg is there already: give another output name, or add --overwrite."),
        ("--output", "folder.svg", "folder.svg is a folder: give the name of a file."),
    ],
)
def test_values_of_a_sketch(refused: Callable[..., str], tmp_path: Path, option: str, value: str, sentence: str):
    (tmp_path / "there.svg").write_bytes(DRAWING)
    (tmp_path / "folder.svg").mkdir()
    assert sentence in refused(2, "sketch", "a cat", "--output", "o.svg", f"{option}={value}")


def svg(inside: str, attributes: str = 'viewBox="0 0 64 64"') -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg" {attributes}>{inside}</svg>'.encode()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "bad.svg is empty"),
        (svg(""), "bad.svg"),
        (svg("<text x='3' y='9'>cat</text>"), "bad.svg"),
        (svg("<path d='M0 0L9 9' stroke='red'/>" * 6000), "bad.svg has more than 5,000 shapes"),
        (svg("<rect width='1O' height='4'/>"), "bad.svg"),
        (svg("<circle cx='NaN' cy='3' r='9'/>"), "bad.svg"),
        (svg("<rect width='9' height='9'/>", 'viewBox="0 0 0 64"'), "bad.svg"),
        (svg("<rect x='900' width='9' height='9'/>"), "bad.svg"),
        (b'<!DOCTYPE svg [<!ENTITY a "b">]>' + DRAWING, "bad.svg has a DOCTYPE"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "bad.svg"),
        (b"these are notes, and no drawing", "bad.svg"),
        (gzip.compress(DRAWING)[:60], "bad.svg is a damaged SVGZ file"),
    ],
    ids=[
        "empty file", "empty", "only text", "6000 paths", "no number", "NaN", "zero viewBox", "off the page", "entity",
        "PNG", "notes", "cut off",
    ],
)  # fmt: skip
def test_drawings_that_are_refused(refused: Callable[..., str], tmp_path: Path, data: bytes, sentence: str):
    (tmp_path / "bad.svg").write_bytes(data)
    assert sentence in refused(2, "svg", "bad.svg", "--target", "a cat", "--output", "o.svg")


@pytest.mark.parametrize("address", ["http://localhost:9/cat.svg", "file:///etc/hosts", "data:image/svg+xml,<svg/>"])
def test_addresses_are_never_fetched(refused: Callable[..., str], address: str):
    assert "never fetched" in refused(2, "svg", address, "--target", "a cat", "--output", "o.svg")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target", ""], "The target prompt is empty"),
        (["--target", "a cat", "--words", " , "], "words names no word"),
        (["--target", "a cat", "--share", "nan"], "share is nan; it must be a number from 0 to 1."),
        (["--target", "a cat", "--added", "513"], "added is 513; it must be a whole number from 0 to 512."),
        (["--target", "a cat", "--strength", "0"], "strength is 0; it must be a number from 0.1 to 10."),
        (["--target", "a cat", "--method", "magic"], "'magic'"),
        (["--target", "a cat", "--output", "o.png"], "o.png must end in .svg"),
        (["--target", "a cat", "--output", "cat.svg"], "cat.svg is an input and would be written over"),
        (["--target", "a cat", "--model", "m.ckpt"], "safetensors only"),
    ],
)
def test_values_of_an_svg_edit(refused: Callable[..., str], tmp_path: Path, arguments: list[str], sentence: str):
    (tmp_path / "cat.svg").write_bytes(DRAWING)
    (tmp_path / "m.ckpt").write_bytes(b"\x80\x04.")
    assert sentence in refused(2, "svg", "cat.svg", "--output", "o.svg", *arguments)


def test_no_such_drawing(refused: Callable[..., str], tmp_path: Path):
    assert refused(2, "svg", str(tmp_path / "no" / "dog.svg"), "--target", "a", "--output", "o.svg").startswith(
        "dog.svg is not there"
    )


def test_what_help_says_is_what_the_engine_holds():
    from sdsedit.sketch import change, draw, files

    assert draw.STYLES == cli.STYLE_NAMES
    assert (draw.MIN_STROKES, draw.MAX_STROKES) == (cli.MIN_STROKES, cli.MAX_STROKES)
    assert (files.SIDE, files.MAX_PICTURE) == (cli.SKETCH_SIDE, cli.PICTURE_SIDE)
    sketch, svg_edit = draw.SketchConfig(), change.SvgConfig()
    assert (sketch.strokes, sketch.style, sketch.width) == (64, "ink", 1.0)
    assert (sketch.steps, sketch.distillation) == (cli.SKETCH_STEPS, cli.SKETCH_DISTILLATION)
    assert (svg_edit.share, svg_edit.added, svg_edit.steps) == (cli.SVG_SHARE, cli.SVG_ADDED, cli.SVG_STEPS)
