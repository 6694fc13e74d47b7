"""`sdsedit splats`, `sdsedit splats info` and their replay on a tiny real model: what is written, said, and refused."""

from __future__ import annotations

import contextlib
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

from sdsedit import cli, cli_splats, errors
from sdsedit.cli import main
from sdsedit.io.record import read_recipe
from sdsedit.io.splats import Splats, read, write
from tests.little_scene import BALL, GRASS, HIDDEN, little_scene

ROOT = Path(__file__).resolve().parent.parent
ASK = ("--source", "a cat", "--target", "a cat wearing a crown", "--kind", "restyle", "--views", "4", "--steps", "2")
ARRAYS = ("means", "quats", "log_scales", "logits", "sh")


def run(*arguments: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def same_rows(a: Splats, b: Splats) -> np.ndarray:  # [N] bool
    pairs = ((getattr(a, name).reshape(len(a), -1), getattr(b, name).reshape(len(b), -1)) for name in ARRAYS)
    return np.all([(x == y).all(1) for x, y in pairs], axis=0)


@pytest.fixture(scope="module")
def edited(builtin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(folder, what was said) of a short edit of the little scene with everything that can be written beside it."""
    folder = tmp_path_factory.mktemp("edited")
    write(folder / "ball.ply", little_scene(degree=1))
    code, said, err = run(
        "splats", str(folder / "ball.ply"), *ASK, "--output", str(folder / "o.ply"), "--seed", "7",
        "--threshold", "0.4", "--show-mask", str(folder / "mask.png"), "--png", str(folder / "views.png"),
        "--orbit", str(folder / "o.gif"), "--preview-every", "2", "--model", str(builtin_folder),
    )  # fmt: skip
    assert code == errors.OK, err
    assert err.splitlines()[0] == "Loading the model." and "(looking)" in err and "(changing)" in err
    return folder, said


# ---- the edit


def test_rows_outside_keep_their_bits(edited: tuple[Path, str]):
    folder, said = edited
    before, after = read(folder / "ball.ply"), read(folder / "o.ply")
    result = json.loads((folder / "o.ply.json").read_text())["result"]
    counts = tuple(result[name] for name in ("kept", "changed", "added", "removed"))
    told = "Gaussians: {} kept bit for bit, {} changed, {} added, {} removed (restyle)\n".format(*counts)
    assert told in said and counts[0] >= HIDDEN and counts[1] > 0 and not counts[3]
    first = Splats(*(getattr(after, name)[: len(before)] for name in ARRAYS))
    assert same_rows(before, first).sum() == result["kept"]
    assert len(after) == len(before) + result["added"] and after.extra["part"].dtype == np.uint8
    assert "Outside the edit: largest change 0, background on held-out views" in said
    assert re.search(r"^Time: .* s for 2 steps .* \(renderer .*, model .*, rest .*\), .* s in all$", said, re.M)
    assert re.search(r"^Memory: \d+\.\d\d GB at most", said, re.M)


def test_a_scene_carries_its_recipe(edited: tuple[Path, str], builtin_folder: Path):
    folder, said = edited
    scene = read(folder / "o.ply")
    assert scene.comments[0] == "a ball on grass" and len(scene.comments) == 2
    recipe = json.loads(scene.comments[1].removeprefix("sdsedit "))
    assert recipe == read_recipe(folder / "o.ply") and "seconds" not in recipe
    assert recipe["kind"] == "splats" and recipe["target"] == "a cat wearing a crown" and recipe["cameras"] is None
    sha256 = hashlib.sha256((folder / "ball.ply").read_bytes()).hexdigest()
    assert recipe["input"] == {"name": "ball.ply", "sha256": sha256}
    wanted = {"kind": "restyle", "steps": 2, "seed": 7, "views": 4, "threshold": 0.4, "up": [0, -1, 0]}
    assert wanted.items() <= recipe["settings"].items()
    assert recipe["model"]["id"] == "tiny-builtin" and recipe["result"]["complete"]
    beside = json.loads((folder / "o.ply.json").read_text())
    digest = hashlib.sha256((folder / "o.ply").read_bytes()).hexdigest()
    assert beside.pop("output") == {"name": "o.ply", "sha256": digest} and "all" in beside.pop("seconds")
    assert beside == recipe and "Words looked for: crown\n" in said
    for data in (path.read_bytes() for path in folder.iterdir()):
        assert str(folder).encode() not in data and str(builtin_folder.parent).encode() not in data


def test_pictures_beside_a_scene(edited: tuple[Path, str]):
    folder, said = edited
    pictures = {"mask.png", "views.png", "o.gif", "o.ply.preview.png"}
    assert names(folder) == {"ball.ply", "o.ply", "o.ply.json", *pictures}
    assert all(name in said.splitlines()[-1] for name in pictures)
    assert pixels(folder / "mask.png").shape == (2 * 256 + 4, 4 * 256 + 12, 3)
    assert pixels(folder / "views.png").shape == (3 * 256 + 8, 256, 3)  # one of four views is held out
    assert pixels(folder / "o.ply.preview.png").std() > 1
    with Image.open(folder / "o.gif") as film:
        assert film.size == (640, 320) and film.n_frames == 60  # pyright: ignore[reportAttributeAccessIssue]


def test_a_scene_is_replayed_byte_for_byte(edited: tuple[Path, str], builtin_folder: Path, tmp_path: Path):
    folder, _ = edited
    output = tmp_path / "again.ply"
    code, said, err = run("replay", str(folder / "o.ply"), "--output", str(output), "--model", str(builtin_folder))
    assert code == errors.OK, err
    assert said.endswith("Compared: the same, byte for byte\n") and "Differs" not in said
    assert output.read_bytes() == (folder / "o.ply").read_bytes()
    assert names(tmp_path) == {"again.ply", "again.ply.json"}


def test_a_scene_takes_a_look_and_is_replayed(builtin_folder: Path, tmp_path: Path):
    """The words say nothing new: all that is seen takes the look, and what nobody sees keeps its bits."""
    write(tmp_path / "ball.ply", little_scene())
    look, other = (np.random.default_rng(k).integers(0, 256, (40, 32, 3), dtype=np.uint8) for k in range(2))
    Image.fromarray(look).save(tmp_path / "look.png")
    Image.fromarray(other).save(tmp_path / "other.png")
    asked = ["--source", "a cat", "--target", "a cat", "--views", "4", "--steps", "1", "--size", "64"]
    model, reference = ["--model", str(builtin_folder)], ["--reference", str(tmp_path / "look.png")]
    ball, made = str(tmp_path / "ball.ply"), str(tmp_path / "o.ply")
    code, said, err = run("splats", ball, *asked, *reference, "--style-weight", "3", "--output", made, *model)
    assert code == errors.OK, err
    recipe = read_recipe(tmp_path / "o.ply")
    assert recipe["settings"]["style_weight"] == 3 and recipe["result"]["kind"] == "restyle"
    sha256 = hashlib.sha256((tmp_path / "look.png").read_bytes()).hexdigest()
    assert recipe["references"] == [{"name": "look.png", "sha256": sha256}]
    assert str(tmp_path) not in json.dumps(recipe)
    before, after = read(tmp_path / "ball.ply"), read(tmp_path / "o.ply")
    assert same_rows(before, after)[-HIDDEN:].all() and not same_rows(before, after).all()
    again = ["replay", made, "--output", str(tmp_path / "again.ply"), *model]
    code, said, err = run(*again)
    assert code == errors.OK and said.endswith("Compared: the same, byte for byte\n"), err
    said = run(*again, "--overwrite", "--reference", str(tmp_path / "other.png"))[2]
    assert "other.png is not the reference that the recipe names: its SHA-256 is another." in said
    said = run(*again, "--overwrite", *reference, *reference)[2]
    assert "The recipe names 1 references; give as many, or none." in said
    (tmp_path / "look.png").unlink()
    said = run(*again, "--overwrite")[2]
    assert said == "sdsedit: look.png, which the recipe names, is not here: add --reference FILE.\n"


def test_a_deletion_is_written_though_it_has_no_steps(builtin_folder: Path, tmp_path: Path):
    write(tmp_path / "ball.ply", little_scene())
    asked = ["--source", "a cat wearing a crown", "--target", "a cat", "--views", "4", "--size", "64"]
    asked += ["--threshold", "0.89"]  # a network of random weights finds about the same everywhere
    made = str(tmp_path / "o.ply")
    code, said, err = run(
        "splats", str(tmp_path / "ball.ply"), *asked, "--output", made, "--model", str(builtin_folder), "--seed", "7"
    )
    assert code == errors.OK, err
    assert "(delete)" in said and f"Written: {made}, {made}.json\n" in said
    assert len(read(tmp_path / "o.ply")) < 330 + 6000 and read_recipe(tmp_path / "o.ply")["result"]["steps_done"] == 0
    code, said, err = run("replay", made, "--output", str(tmp_path / "p.ply"), "--model", str(builtin_folder))
    assert code == errors.OK and said.endswith("Compared: the same, byte for byte\n"), err


def test_only_the_weights(edited: tuple[Path, str], builtin_folder: Path, tmp_path: Path):
    """The sheet is that of the whole edit, and nothing else is written."""
    folder, _ = edited
    arguments = [*ASK, "--seed", "7", "--threshold", "0.4", "--show-mask", str(tmp_path / "m.png"), "--mask-only"]
    code, said, err = run("splats", str(folder / "ball.ply"), *arguments, "--model", str(builtin_folder))
    assert code == errors.OK and "(changing)" not in err
    assert (pixels(tmp_path / "m.png") == pixels(folder / "mask.png")).all() and names(tmp_path) == {"m.png"}
    found = re.search(r"^Found: (\d+) of 330 Gaussians have a weight of 0\.\d+ or more$", said, re.M)
    assert found and 0 < int(found[1]) <= BALL + GRASS


def test_a_report_as_json(builtin_folder: Path, tmp_path: Path):
    write(tmp_path / "ball.ply", little_scene())
    arguments = [*ASK, "--output", str(tmp_path / "o.splat"), "--json", "--no-metadata", "--model", str(builtin_folder)]
    code, said, _ = run("splats", str(tmp_path / "ball.ply"), *arguments)
    report = json.loads(said)
    assert code == errors.OK and report["kept"] + report["changed"] + report["removed"] == 330
    assert report["anything_changed"] is True and report["max_change_outside"] == 0 and report["memory_bytes"] > 2**20
    assert report["seconds"]["total"] >= report["seconds"]["all"] and len(report["written"]) == 1
    assert any("keeps one colour of each Gaussian" in note for note in report["notes"])
    assert names(tmp_path) == {"ball.ply", "o.splat"}
    assert (tmp_path / "o.splat").stat().st_size % 32 == 0


def test_packed_formats_and_cameras(builtin_folder: Path, tmp_path: Path):
    """An edit with cameras of a file, written as SPZ: the recipe lies beside it, and repeats it."""
    write(tmp_path / "ball.compressed.ply", little_scene())
    cameras_file(tmp_path / "transforms.json", count=9)
    code, said, err = run(
        "splats", str(tmp_path / "ball.compressed.ply"), *ASK, "--output", str(tmp_path / "o.spz"), "--cameras",
        str(tmp_path / "transforms.json"), "--model", str(builtin_folder),
    )  # fmt: skip
    assert code == errors.OK, err
    assert "Note: Of 9 cameras 4 are used; --views says how many.\n" in said
    assert "Note: This format rounds every number" in said
    recipe = read_recipe(tmp_path / "o.spz")
    assert recipe["cameras"]["name"] == "transforms.json" and recipe["cameras"]["count"] == 9
    code, said, err = run("replay", str(tmp_path / "o.spz"), "--model", str(builtin_folder))
    assert code == errors.OK and said.endswith("Compared: the same, byte for byte\n"), err
    assert (tmp_path / "o.replay.spz").read_bytes() == (tmp_path / "o.spz").read_bytes()
    (tmp_path / "transforms.json").unlink()
    said = run("replay", str(tmp_path / "o.spz"), "--output", str(tmp_path / "p.spz"))[2]
    assert said == "sdsedit: transforms.json, the cameras of the recipe, is not here: add --cameras FILE.\n"


def cameras_file(path: Path, count: int, turned: bool = False) -> None:
    """A transforms.json of an orbit; `turned`: every camera looks the other way."""
    from sdsedit.camera import orbit

    cameras = orbit((0, 0, 0), 3.0, 15.0, count, 64, 48)
    flip = np.diag([1, -1, -1, 1]) if not turned else np.diag([-1, -1, 1, 1])
    frames = [
        {"file_path": f"{k}.png", "transform_matrix": (np.linalg.inv(viewmat) @ flip).tolist()}
        for k, viewmat in enumerate(cameras.viewmats.double().numpy())
    ]
    focal = float(cameras.Ks[0, 0, 0])
    path.write_text(json.dumps({"w": 64, "h": 48, "fl_x": focal, "fl_y": focal, "frames": frames}))


def test_a_signal_keeps_the_scene_so_far(builtin_folder: Path, tmp_path: Path):
    """A real process and a real signal; then `replay` repeats what was kept, byte for byte."""
    import torch

    write(tmp_path / "ball.ply", little_scene())
    arguments = [*ASK[:-1], "10000", "--output", "o.ply", "--png", "views.png", "--model", str(builtin_folder)]
    threads = str(torch.get_num_threads())
    process = subprocess.Popen(
        [sys.executable, "-m", "sdsedit.cli", "splats", "ball.ply", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while "(changing)" not in (line := process.stderr.readline()):
            assert line, process.communicate()
        process.send_signal(signal.SIGINT)
        said, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == errors.INTERRUPTED, err
    assert "Cancelled after step" in err and "marked as incomplete" in err and "Traceback" not in err
    assert "Pictures of the result are left out" in said
    assert names(tmp_path) == {"ball.ply", "o.ply", "o.ply.json"}
    result = read_recipe(tmp_path / "o.ply")["result"]
    assert result["stopped"] == "cancelled" and not result["complete"] and 1 <= result["steps_done"] < 10_000
    code, said, _ = run("replay", str(tmp_path / "o.ply"), "--model", str(builtin_folder))
    assert code == errors.OK and said.endswith("Compared: the same, byte for byte\n"), said
    assert (tmp_path / "o.replay.ply").read_bytes() == (tmp_path / "o.ply").read_bytes()


# ---- sdsedit splats info


def test_info(edited: tuple[Path, str]):
    folder, _ = edited
    code, said, _ = run("splats", "info", str(folder / "o.ply"))
    told = said.splitlines()
    assert code == errors.OK and told[0].startswith("File: o.ply, PLY, ")
    assert "SH of degree 1" in told[1] and "Extra properties: part (uint8)" in told
    assert "Comment: a ball on grass" in told and "Up: -y, away from the flat ground" in told
    assert told[-1] == 'Recipe: "a cat" -> "a cat wearing a crown"; sdsedit replay repeats it'


def test_info_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "ball.spz", little_scene(degree=2))
    code, said, _ = run("splats", "info", str(tmp_path / "ball.spz"), "--json")
    report = json.loads(said)
    assert code == errors.OK and report["count"] == 330 and report["degree"] == 2 and report["kind"] == "SPZ"
    assert report["file"] == "ball.spz" and report["recipe"] is None and report["up"] == "-y"
    assert report["low"][0] == pytest.approx(-1, abs=0.1) and report["opacity"][1] == pytest.approx(0.88, abs=0.01)
    monkeypatch.chdir(tmp_path)  # a scene may be called info
    (tmp_path / "info").write_bytes((tmp_path / "ball.spz").read_bytes())
    assert run("splats", "info", "info")[0] == errors.OK
    assert "Say where the result goes" in run("splats", "./info", "--target", "a cat")[2]


# ---- replay: a recipe is somebody's file


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"settings": []}, "The recipe's settings is of the wrong type"),
        ({"settings": {"views": 4.5}}, "The recipe's setting views of a scene is of the wrong type"),
        ({"settings": {"views": True}}, "The recipe's setting views of a scene is of the wrong type"),
        ({"settings": {"steps": "9"}}, "The recipe's setting steps of a scene is of the wrong type"),
        ({"settings": {"kind": 3}}, "The recipe's setting kind of a scene is of the wrong type"),
        ({"settings": {"up": [0, 1]}}, "The recipe's setting up of a scene is of the wrong type"),
        ({"settings": {"up": [0, "x", 1]}}, "The recipe's setting up of a scene is of the wrong type"),
        ({"settings": {"method": "sds"}}, "The recipe gives a scene a setting that it does not have: method"),
        ({"settings": {"views": 999}}, "views is 999; it must be a whole number from 4 to 256"),
        ({"settings": {"kind": "magic"}}, "kind is 'magic'; it must be one of recolour"),
        ({"settings": {"up": [0, 0, 0]}}, "up is 0, 0, 0"),
        ({"method": {"name": "magic"}}, "The recipe's method is magic"),
        ({"input": {"name": "../ball.ply"}}, "does not name its input"),
        ({"input": {"name": "cube.ply"}}, "cube.ply, the input of the recipe, is not here"),
        ({"input": {"name": "ball.ply", "sha256": "0"}}, "ball.ply is not the input that the recipe names"),
        ({"cameras": {"name": "../cams.json"}}, "does not name its cameras"),
        ({"cameras": {"name": "cams.json"}}, "cams.json, the cameras of the recipe, is not here"),
        ({"schema": 7}, "is not of schema 1"),
    ],
)
def test_the_recipe_of_a_scene(edited: tuple[Path, str], tmp_path: Path, change: dict, sentence: str):
    recipe = read_recipe(edited[0] / "o.ply")
    (tmp_path / "ball.ply").write_bytes((edited[0] / "ball.ply").read_bytes())
    (tmp_path / "bad.ply.json").write_text(json.dumps({**recipe, **change}))
    code, _, said = run("replay", str(tmp_path / "bad.ply.json"))
    assert code == errors.USAGE and sentence in said and said.count("\n") == 1
    assert names(tmp_path) == {"ball.ply", "bad.ply.json"}


def test_replay_of_scenes_that_tell_nothing(edited: tuple[Path, str], tmp_path: Path):
    said = run("replay", str(edited[0] / "ball.ply"))[2]
    assert "ball.ply carries no recipe" in said
    (tmp_path / "ball.ply").write_bytes((edited[0] / "ball.ply").read_bytes())
    (tmp_path / "ball.json").write_text('{"schema": 1, "kind": "image"}')  # of a ball.png
    assert "ball.ply carries no recipe" in run("replay", str(tmp_path / "ball.ply"))[2]
    said = run("replay", str(edited[0] / "o.ply"), "--reference", "x.png")[2]
    assert said == "sdsedit: The recipe names no reference; give none.\n"
    for option in ("--mask", "--cameras"):
        said = run("replay", str(edited[0] / "o.ply"), option, "x")[2]
        assert said.startswith("sdsedit: o.ply was made without ") and said.endswith(f"leave out {option}.\n")


# ---- bad input: one sentence, no path, nothing written


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """refused(code, arguments ...): run a command, hold it to the rules of a refusal, and give its sentence."""
    monkeypatch.chdir(tmp_path)
    write("ball.ply", little_scene())

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
    ("arguments", "sentence"),
    [
        (["--output", "o.obj"], "o.obj must end in .ply, .compressed.ply, .spz or .splat"),
        (["--output", "ball.ply"], "ball.ply is an input and would be written over"),
        (["--output", "there.ply"], "there.ply is there already"),
        (["--output", "file/below/o.ply"], "cannot be written to"),
        (["--output", "https://example.org/o.ply"], "The output is an address"),
        (["--orbit", "film.avi"], "The orbit film.avi must end in .mp4 or .gif."),
        (["--show-mask", "m.jpg"], "The mask m.jpg must end in .png."),
        (["--png", "o.ply.preview.png", "--preview-every", "1"], "The png would be written over o.ply.preview.png"),
        (["--mask-only"], "--mask-only stops after the weights are written"),
        (["--model", "m.ckpt"], "safetensors only"),
        (["--words", " , "], "words names no word"),
        (["--reference", "none.png"], "none.png is not there"),
        (["--reference", "look.png"] * 9, "A style takes at most 8 references; 9 are given."),
        (["--reference", "there.ply"], "there.ply"),
        (["--style-weight", "11"], "style-weight is 11; it must be a number from 0 to 10."),
        (["--kind", "magic"], "'magic'"),
        (["--method", "magic"], "'magic'"),
        (["--up", "w"], "up is w; it must be one of x, -x, y, -y, z, -z, or three numbers such as 0,-1,0."),
        (["--up", "0,0,0"], "up is 0,0,0; it must be"),
        (["--up", "nan,0,0"], "up is nan,0,0; it must be"),
        (["--background", "soup"], "background is soup; it must be a colour's name"),
        (["--background", "0,0,2"], "background is 0,0,2; it must be"),
        (["--cameras", "ball.ply"], "ball.ply is of a kind that holds no cameras"),
        (["--cameras", "none.json"], "none.json is not there"),
        (["--cameras", "few.json"], "There are 3 cameras: at least 4 are needed"),
        (["--cameras", "away.json"], "The cameras see nothing of the scene"),
    ],
)
def test_values_of_a_scene_edit(refused: Callable[..., str], tmp_path: Path, arguments: list[str], sentence: str):
    (tmp_path / "m.ckpt").write_bytes(b"\x80\x04.")
    (tmp_path / "there.ply").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    cameras_file(tmp_path / "few.json", count=3)
    cameras_file(tmp_path / "away.json", count=8, turned=True)
    assert sentence in refused(2, "splats", "ball.ply", "--target", "a cat", "--output", "o.ply", *arguments)


def test_no_output(refused: Callable[..., str]):
    assert refused(2, "splats", "ball.ply", "--target", "a cat").startswith("Say where the result goes with --output")


def test_a_hint_at_the_right_up(refused: Callable[..., str], tmp_path: Path):
    """The note is there at once, before the model is looked for."""
    turned = little_scene()
    turned.means = turned.means[:, [0, 2, 1]] * np.array([1, 1, -1], np.float32)  # up is z
    turned.log_scales = turned.log_scales[:, [0, 2, 1]]
    write(tmp_path / "z.ply", turned)
    ask = ("splats", "z.ply", "--target", "a cat", "--output", "o.ply", "--model", "./nothing")
    code, said, _ = run(*ask)
    assert code == errors.MODEL_MISSING
    assert said == "Note: This scene's up seems to be z, away from the flat ground; if so, add --up z.\n"
    assert run(*ask, "--up", "z")[1] == ""


# ---- arguments


def test_directions_and_colours():
    assert cli._joined(["splats", "info", "a.ply"]) == ["splats info", "a.ply"]
    assert cli._joined(["splats", "a.ply", "--up", "-y", "--up", "--x"]) == [
        "splats",
        "a.ply",
        "--up=-y",
        "--up",
        "--x",
    ]
    assert cli_splats._direction("-y") == (0, -1, 0) and cli_splats._direction("+Z") == (0, 0, 1)
    assert cli_splats._direction("0,3,-4") == (0, 0.6, -0.8)
    assert (
        cli_splats._colour("white") == (1, 1, 1)
        and cli_splats._colour("0,0.5,1") == (0, 0.5, 1)
        and cli_splats._colour("#ff0000")[1] == 0
    )
    splats = cli._parser().parse_args(["splats", "a.ply", "--target", "x", "--up=-z", "--background", "black"])
    assert splats.up == (0, 0, -1) and splats.background == (0, 0, 0)


def test_what_help_says_is_what_the_engine_holds():
    from sdsedit.splats import change, survey

    config = change.SplatConfig()
    assert change.KINDS == cli_splats.KIND_NAMES and tuple(survey.DIRECTIONS) == cli_splats.DIRECTION_NAMES
    parsed = cli._parser().parse_args(["splats", "a.ply", "--target", "x"])
    same = ("kind", "method", "steps", "seed", "strength", "views", "threshold", "distillation", "added", "size")
    for name in (*same, "style_weight"):
        assert getattr(parsed, name) == getattr(config, name), name
    assert parsed.background == config.background and parsed.up == config.up
    from sdsedit.request import Edit

    for name, low, high in (
        ("views", cli_splats.MIN_VIEWS, cli_splats.MAX_VIEWS),
        ("threshold", cli_splats.MIN_THRESHOLD, cli_splats.MAX_THRESHOLD),
        ("added", 1, cli_splats.MAX_ADDED),
    ):
        for value, good in ((low, True), (high, True), (low - 0.01 if low < 1 else low - 1, False)):
            try:
                change.check(Edit(target="x"), change.SplatConfig(**{name: value}))
                assert good, (name, value)
            except errors.InputRefused:
                assert not good, (name, value)
