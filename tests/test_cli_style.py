"""`sdsedit style`, styles beside other commands, and their replay on a tiny real model."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdsedit import cli, cli_style, errors, request, style
from sdsedit.cli import main


def run(*arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def paint(path: Path, seed: int, size: tuple[int, int] = (40, 32)) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("style")
    paint(folder / "cat.png", 0)
    paint(folder / "look.png", 1)
    paint(folder / "second.png", 2)
    half = np.zeros((32, 40, 3), np.uint8)
    half[:, 20:] = (255, 0, 0)
    Image.fromarray(half).save(folder / "regions.png")
    return folder


@pytest.fixture(scope="module")
def made(folder: Path, builtin_folder: Path) -> tuple[Path, str]:
    """(the picture, what was said) of a short run with everything that can be given."""
    code, said, err = run(
        "style", "--content", str(folder / "cat.png"), "--reference", str(folder / "look.png"), "--reference",
        str(folder / "second.png"), "--content-regions", str(folder / "regions.png"), "--reference-regions",
        str(folder / "regions.png"), "--reference-regions", str(folder / "regions.png"), "--output",
        str(folder / "out.png"), "--steps", "2", "--size", "64", "--layers", "3", "--content-weight", "0.4",
        "--step-size", "0.1", "--seed", "7", "--preview-every", "1", "--low-memory", "--model", str(builtin_folder),
    )  # fmt: skip
    assert code == errors.OK, err
    return folder / "out.png", said


def test_a_style_is_written_with_its_recipe(made: tuple[Path, str], builtin_folder: Path):
    path, said = made
    assert pixels(path).shape == (32, 40, 3) and (path.parent / "out.preview.png").is_file()
    for line in ("Unlike the references' attention: ", "Memory: ", "Time: ", "Written: "):
        assert line in said
    recipe = json.loads((path.parent / "out.json").read_text())
    assert recipe["kind"] == "style" and recipe["seed"] == 7 and recipe["input"]["name"] == "cat.png"
    assert [each["name"] for each in recipe["references"]] == ["look.png", "second.png"]
    wanted = {"steps": 2, "layers": 3, "content_weight": 0.4, "step_size": 0.1, "size": 64, "low_memory": True}
    assert wanted.items() <= recipe["settings"].items()
    assert recipe["result"]["complete"] and recipe["result"]["steps_done"] == 2
    with Image.open(path) as opened:
        inside = json.loads(opened.text["sdsedit"])  # pyright: ignore[reportAttributeAccessIssue]
    assert inside == {key: value for key, value in recipe.items() if key != "output"}
    assert str(path.parent) not in json.dumps(recipe)


def test_a_style_is_replayed_pixel_for_pixel(made: tuple[Path, str], builtin_folder: Path, tmp_path: Path):
    path, _ = made
    code, said, err = run("replay", str(path), "--model", str(builtin_folder), "--output", str(tmp_path / "again.png"))
    assert code == errors.OK, err
    assert "Compared: the same, pixel for pixel" in said
    shutil.copy(path, tmp_path / "moved.png")
    given = ["--model", str(builtin_folder), "--input", str(path.parent / "cat.png")]
    code, _, err = run("replay", str(tmp_path / "moved.png"), *given)
    assert code == errors.USAGE and "look.png, which the recipe names, is not here: add --reference FILE." in err
    code, _, err = run("replay", str(path), "--reference", str(path.parent / "cat.png"))
    assert code == errors.USAGE and "names 2 references; give as many, or none" in err
    other = str(path.parent / "cat.png")
    code, _, err = run("replay", str(path), *given, "--reference", other, "--reference", other, "--overwrite")
    assert code == errors.USAGE and "its SHA-256 is another" in err


@pytest.mark.parametrize(
    ("what", "size"), [(["--prompt", "a cat"], (64, 64)), (["--texture", "70x36"], (36, 70))], ids=["words", "texture"]
)
def test_words_and_textures(folder: Path, builtin_folder: Path, tmp_path: Path, what: list[str], size: tuple[int, int]):
    code, _, err = run(
        "style", *what, "--reference", str(folder / "look.png"), "--output", str(tmp_path / "o.png"), "--steps", "1",
        "--size", "64", "--no-metadata", "--model", str(builtin_folder),
    )  # fmt: skip
    assert code == errors.OK, err
    assert pixels(tmp_path / "o.png").shape[:2] == size and not (tmp_path / "o.json").exists()


def test_an_interrupt_keeps_what_is_there(folder: Path, builtin_folder: Path, tmp_path: Path, monkeypatch):
    """The second step is the last one; the recipe says so, and the replay stops there too."""
    own = cli.Interrupts

    class Pressed(own):
        @property
        def gentle(self) -> bool:
            return True

        @gentle.setter
        def gentle(self, value: bool) -> None:
            self.count = getattr(self, "count", -1) + value
            if self.count == 1:
                self.received = 2

    monkeypatch.setattr(cli, "Interrupts", Pressed)
    output = tmp_path / "o.png"
    arguments = ["style", "--content", str(folder / "cat.png"), "--reference", str(folder / "look.png")]
    more = ["--steps", "30", "--size", "64", "--model", str(builtin_folder), "--output", str(output)]
    code, _, err = run(*arguments, *more)
    assert code == errors.INTERRUPTED and "Cancelled after step 2; the result so far is written" in err
    assert json.loads((tmp_path / "o.json").read_text())["result"]["stopped"] == "cancelled"


def test_an_image_edit_takes_a_look_and_is_replayed(folder: Path, builtin_folder: Path, tmp_path: Path):
    for name in ("cat.png", "look.png"):
        shutil.copy(folder / name, tmp_path / name)
    output = tmp_path / "edited.png"
    common = ["--output", str(output), "--steps", "2", "--size", "64", "--model", str(builtin_folder)]
    code, _, err = run(
        "image", str(tmp_path / "cat.png"), "--target", "a cat wearing a crown", "--source", "a cat", "--reference",
        str(tmp_path / "look.png"), "--style-weight", "3", *common,
    )  # fmt: skip
    assert code == errors.OK, err
    recipe = json.loads((tmp_path / "edited.json").read_text())
    assert recipe["style_weight"] == 3 and [each["name"] for each in recipe["references"]] == ["look.png"]
    code, said, err = run("replay", str(output), "--model", str(builtin_folder))
    assert code == errors.OK and "Compared: the same, pixel for pixel" in said, err


def test_a_sketch_takes_a_look_and_is_replayed(folder: Path, builtin_folder: Path, tmp_path: Path):
    shutil.copy(folder / "look.png", tmp_path / "look.png")
    code, said, err = run(
        "sketch", "a cat", "--output", str(tmp_path / "cat.svg"), "--steps", "3", "--strokes", "4", "--style", "colour",
        "--reference", str(tmp_path / "look.png"), "--style-weight", "1.5", "--model", str(builtin_folder),
    )  # fmt: skip
    assert code == errors.OK, err
    assert "style" in said.split("Share of the gradient: ")[1].splitlines()[0]
    code, said, err = run("replay", str(tmp_path / "cat.svg"), "--model", str(builtin_folder))
    assert code == errors.OK and "Compared: the same, byte for byte" in said, err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "one of the arguments --content --prompt --texture is required"),
        (["--content", "cat.png", "--prompt", "a cat"], "not allowed with argument"),
        (["--texture", "12"], "texture is 12; it must be a width and a height"),
        (["--texture", "4x9000"], "texture is 4x9000"),
        (["--content", "missing.png"], "missing.png is not there"),
        (["--content", "http://a.b/c.png"], "Addresses are never fetched"),
        (["--content", "cat.png", "--content-regions", "regions.png"], "give them for both"),
        (["--content", "cat.png", "--layers", "0"], "layers is 0"),
        (["--content", "cat.png", *["--reference", "look.png"] * 8], "at most 8 references; 9 are given"),
        (["--prompt", " "], "The prompt is empty"),
        (["--content", "cat.png", "--output", "o.jpg"], "must end in .png"),
        (["--content", "cat.png", "--output", "look.png"], "look.png is an input and would be written over"),
    ],
)
def test_what_is_refused(folder: Path, monkeypatch, arguments: list[str], sentence: str):
    monkeypatch.chdir(folder)
    given = [] if "--output" in arguments else ["--output", "new.png"]
    code, _, err = run("style", "--reference", "look.png", *given, *arguments)
    assert code == errors.USAGE and sentence in err and not (folder / "new.png").exists()


def test_limits_named_here_are_the_engines():
    for name in ("MAX_TEXTURE", "MAX_CONTENT_WEIGHT", "MAX_LAYERS"):
        assert getattr(cli_style, name) == getattr(style, name)
    assert cli_style.MAX_REFERENCES == request.MAX_REFERENCES
    assert cli_style.MAX_STYLE_WEIGHT == request.MAX_STYLE_WEIGHT
    assert request.EditConfig().style_weight == cli.IMAGE_STYLE_WEIGHT
    from sdsedit.sketch.draw import SketchConfig

    assert SketchConfig().style_weight == cli.SKETCH_STYLE_WEIGHT
