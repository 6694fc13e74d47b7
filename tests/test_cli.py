"""The command line on a tiny real model: what is written, what is said, and that a recipe repeats its edit."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdsedit import cli, errors
from sdsedit.cli import main
from sdsedit.known_models import KNOWN_MODELS

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture and a mask in it, the current one."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("cat.png")
    mask = np.zeros((90, 130), np.uint8)
    mask[20:60, 40:100] = 255
    Image.fromarray(mask).save("m.png")
    return tmp_path


@pytest.fixture
def image(here: Path, builtin_folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """image(arguments ...): a short edit of cat.png to out.png that must succeed; gives what it said."""

    def run(*arguments: str, output: str = "out.png") -> str:
        words = [
            "--source",
            "a cat",
            "--target",
            "a cat wearing a crown",
            "--steps",
            "3",
            "--model",
            str(builtin_folder),
        ]
        assert main(["image", "cat.png", *words, "--output", output, *arguments]) == errors.OK
        return capsys.readouterr().out

    return run


def pixels(name: str) -> np.ndarray:
    with Image.open(name) as opened:
        return np.asarray(opened)


def files() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"cat.png", "m.png"}


# ---- sdsedit image


def test_the_picture_comes_back_at_its_size_with_its_recipe(image: Callable[..., str]):
    said = image()
    assert files() == {"out.png", "out.json"}
    assert pixels("out.png").shape == pixels("cat.png").shape
    assert "Words looked for: crown\n" in said and "Written: out.png, out.json\n" in said and "of 11700 pixels" in said

    sidecar = json.loads(Path("out.json").read_text())
    written = sidecar.pop("output")
    assert written == {"name": "out.png", "sha256": hashlib.sha256(Path("out.png").read_bytes()).hexdigest()}
    with Image.open("out.png") as opened:
        opened.load()
        assert json.loads(opened.text["sdsedit"]) == sidecar  # pyright: ignore[reportAttributeAccessIssue]
    assert sidecar["target"] == "a cat wearing a crown" and sidecar["source"] == "a cat"
    assert sidecar["method"]["name"] == "lusd" and sidecar["steps"] == 3 and sidecar["seed"] == 0
    assert sidecar["input"]["sha256"] == hashlib.sha256(Path("cat.png").read_bytes()).hexdigest()
    assert sidecar["model"]["id"] == "tiny-builtin" and sidecar["model"]["revision"].startswith("sha256:")
    assert sidecar["model"]["device"].startswith("cpu") and sidecar["model"]["dtype"] == "float32"
    assert sidecar["result"]["complete"] and sidecar["result"]["steps_done"] == 3
    assert set(sidecar["seconds"]) == {"loading", "editing", "all"}


def test_no_folder_is_named_anywhere(image: Callable[..., str], here: Path, builtin_folder: Path):
    image("--mask", str(here / "m.png"), output=str(here / "out.png"))
    for data in (Path("out.json").read_bytes(), Path("out.png").read_bytes()):
        assert str(here).encode() not in data and str(builtin_folder.parent).encode() not in data


def test_outside_a_mask_every_pixel_is_kept(image: Callable[..., str]):
    said = image("--mask", "m.png", "--save-mask", "--save-heatmap", "--strength", "5")
    assert files() == {"out.png", "out.json", "out.mask.png", "out.heatmap.png"}
    before, after, allowed, weight = (pixels(name) for name in ("cat.png", "out.png", "m.png", "out.mask.png"))
    kept = json.loads(Path("out.json").read_text())["result"]["kept_pixels"]
    same = (before == after).all(-1)
    assert same[allowed == 0].all() and not weight[allowed == 0].any()
    assert (allowed == 0).sum() <= kept <= same.sum() < same.size
    assert f"Kept bit for bit: {kept} of 11700 pixels" in said
    assert pixels("out.heatmap.png").shape == before.shape


@pytest.mark.parametrize("method", cli.METHOD_NAMES)
def test_every_method(image: Callable[..., str], method: str):
    image("--method", method)
    assert json.loads(Path("out.json").read_text())["method"]["name"] == method


def test_fast_is_a_method(image: Callable[..., str]):
    image("--fast")
    method = json.loads(Path("out.json").read_text())["method"]
    assert method["name"] == "lusd-fast" and method["draws"] == 2


def test_named_words(image: Callable[..., str]):
    assert "Words looked for: cat, crown\n" in image("--words", "cat, crown")
    assert json.loads(Path("out.json").read_text())["words"] == ["cat", "crown"]


def test_one_seed_is_one_picture(image: Callable[..., str]):
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        image("--seed", seed, output=f"{name}.png")
    assert (pixels("a.png") == pixels("b.png")).all()
    assert (pixels("a.png") != pixels("c.png")).any()


def test_strength_multiplies_the_step(image: Callable[..., str]):
    image(output="a.png")
    image("--strength", "2", output="b.png")
    one, two = (json.loads(Path(name).read_text()) for name in ("a.json", "b.json"))
    assert two["method"]["step_size"] == 2 * one["method"]["step_size"]
    assert two["result"]["last_step"]["distance"] > 1.5 * one["result"]["last_step"]["distance"]


def test_no_metadata(image: Callable[..., str]):
    image("--no-metadata")
    assert files() == {"out.png"}
    assert b"iTXt" not in Path("out.png").read_bytes() and b"crown" not in Path("out.png").read_bytes()
    assert main(["replay", "out.png"]) == errors.USAGE


def test_nothing_is_written_over_unless_asked(image: Callable[..., str], capsys: pytest.CaptureFixture[str]):
    original = Path("cat.png").read_bytes()
    words = ["--target", "a dog", "--steps", "1"]
    assert main(["image", "cat.png", *words, "--output", "cat.png"]) == errors.USAGE
    assert "cat.png is an input and would be written over" in capsys.readouterr().err
    image(output="new/out.png")  # the folder is made
    assert main(["image", "cat.png", *words, "--output", "new/out.png"]) == errors.USAGE
    assert "out.png is there already" in capsys.readouterr().err
    image("--seed", "1", "--overwrite", output="new/out.png")
    assert json.loads(Path("new/out.json").read_text())["seed"] == 1
    assert Path("cat.png").read_bytes() == original
    image("--overwrite", output="cat.png")  # asked for
    assert Path("cat.png").read_bytes() != original


# ---- progress


def test_plain_lines_where_there_is_no_terminal(
    image: Callable[..., str], capsys: pytest.CaptureFixture[str], builtin_folder: Path
):
    capsys.readouterr()
    main(
        ["image", "cat.png", "--target", "a cat", "--steps", "40", "--output", "o.png", "--model", str(builtin_folder)]
    )
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["Loading the model.", "Step 1 of 40"] and len(lines) == 12
    assert lines[-1].startswith("Step 40 of 40, ") and lines[-1].endswith(" steps/s, 0 s left")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_bar_on_a_terminal(image: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    master, slave = os.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            shown.extend(data)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        image("--steps", "60")
    reader.join(10)
    text = shown.decode()
    assert "Loading the model" in text and "Editing" in text and "/60" in text
    assert "steps/s" in text and "0:00:0" in text  # rate and remaining time


# ---- sdsedit replay


def test_replay_makes_the_same_picture(
    image: Callable[..., str], builtin_folder: Path, capsys: pytest.CaptureFixture[str]
):
    image("--mask", "m.png", "--method", "dds", "--seed", "5", "--feather", "1", "--strength", "3", "--size", "64")
    assert main(["replay", "out.png", "--model", str(builtin_folder)]) == errors.OK
    said = capsys.readouterr().out
    assert said.endswith("Compared: the same, pixel for pixel\n") and "Differs" not in said
    assert (pixels("out.png") == pixels("out.replay.png")).all()
    a, b = (json.loads(Path(name).read_text()) for name in ("out.json", "out.replay.json"))
    assert all(a[key] == b[key] for key in a if key not in ("seconds", "output"))


def test_replay_from_the_sidecar_says_what_differs(
    image: Callable[..., str], builtin_folder: Path, capsys: pytest.CaptureFixture[str]
):
    image()
    recipe = json.loads(Path("out.json").read_text())
    recipe["versions"]["torch"], recipe["model"]["revision"] = "1.0", "sha256:0"
    Path("elsewhere").mkdir()
    Path("elsewhere/old.json").write_text(json.dumps(recipe))
    assert main(["replay", "elsewhere/old.json", "--model", str(builtin_folder)]) == errors.OK
    said = capsys.readouterr().out
    assert "Differs: versions torch was 1.0, is " in said and "Differs: model revision was sha256:0, is " in said
    assert (pixels("out.png") == pixels("elsewhere/old.replay.png")).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 2}, "is not of schema 1"),
        ({"target": None}, "The recipe's target is of the wrong type"),
        ({"seed": 1.5}, "The recipe's seed is of the wrong type"),
        ({"seed": -1}, "seed is -1; it must be a whole number"),
        ({"steps": True}, "The recipe's steps is of the wrong type"),
        ({"words": [1]}, "The recipe's words must be text"),
        ({"method": {"name": "magic"}}, "The recipe's method is magic"),
        ({"method": {"name": ["lusd"]}}, "The recipe's method is"),
        ({"method": {"name": "lusd", "colour": 1}}, "a setting that it does not have: colour"),
        ({"method": {"name": "lusd", "tau": "x"}}, "The recipe's setting tau of lusd is of the wrong type"),
        ({"method": {"name": "lusd", "tau": 1e400}}, "damaged"),  # written as Infinity, which is not JSON
        ({"input": {"name": "../cat.png"}}, "does not name its input"),
        ({"input": {"name": "dog.png"}}, "dog.png, the input of the recipe, is not here"),
        ({"input": {"name": "m.png", "sha256": "0"}}, "m.png is not the input that the recipe names"),
        ({"input": 3}, "does not name its input"),
        ({"model": {"id": "https://example.org/model"}}, "The model is an address"),
    ],
)
def test_a_recipe_is_somebodys_file(
    image: Callable[..., str], builtin_folder: Path, capsys: pytest.CaptureFixture[str], change: dict, sentence: str
):
    image()
    recipe = json.loads(Path("out.json").read_text())
    Path("bad.json").write_text(json.dumps({**recipe, **change}))
    model = [] if "model" in change else ["--model", str(builtin_folder)]
    before = files()
    assert main(["replay", "bad.json", *model]) == errors.USAGE
    said = capsys.readouterr().err.removeprefix("Loading the model.\n")
    assert sentence in said and said.count("\n") == 1
    assert files() == before


def test_replay_needs_a_recipe(here: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["replay", "cat.png"]) == errors.USAGE
    assert "cat.png carries no recipe" in capsys.readouterr().err
    assert main(["replay", "none.png"]) == errors.USAGE


# ---- the other commands


def test_models(capsys: pytest.CaptureFixture[str]):
    assert main(["models"]) == errors.OK
    said = capsys.readouterr().out
    assert said.startswith("builtin\n")
    for name, (_, licence, how) in KNOWN_MODELS.items():
        assert name in said and licence in said and how in said


def test_a_reader_that_stops_early_is_no_error():
    code = "import sys; from sdsedit.cli import main; sys.exit(main(['models']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        assert process.wait(60) == errors.OK and process.stderr.read() == b""


def test_doctor(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor"]) == errors.OK
    said = capsys.readouterr().out
    for what in ("torch", "cpu", "cuda", "triton", "xformers", "gsplat", "Memory"):
        assert what in said
    assert "Three-step edit    works on " in said and "cpu              works, " in said


def test_doctor_says_what_is_missing(capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "--model", "nobody/nothing"]) == errors.MODEL_MISSING
    assert "It does not load: nobody/nothing" in capsys.readouterr().out


def test_usage(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == errors.OK
    assert main(["image", "--help"]) == errors.OK
    assert main([]) == errors.USAGE
    assert main(["paint"]) == errors.USAGE
    assert main(["image", "cat.png"]) == errors.USAGE
    assert "--target" in capsys.readouterr().err.splitlines()[-1]


def test_what_help_says_is_what_the_engine_holds():
    from sdsedit import guidance, request

    assert tuple(guidance.METHODS) == cli.METHOD_NAMES
    assert (cli.MAX_STEPS, cli.MAX_SIZE, cli.MAX_FEATHER) == (request.MAX_STEPS, request.MAX_SIZE, request.MAX_FEATHER)


def test_errors_have_their_codes():
    import torch

    from sdsedit import InputRefused, ModelNotFound

    for error, code in (
        (InputRefused("no"), errors.USAGE),
        (ModelNotFound("no"), errors.MODEL_MISSING),
        (torch.OutOfMemoryError("no"), errors.OUT_OF_MEMORY),
        (MemoryError(), errors.OUT_OF_MEMORY),
        (OSError(28, "No space left on device"), errors.ALL_FAILED),
        (KeyError("x"), errors.INTERNAL),
    ):
        assert cli._outcome(error)[1] == code
