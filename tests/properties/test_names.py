"""Names of files: whatever they are, a reader says in a sentence that nothing is there, and before a run, not after."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsedit.batch.manifest import read_manifest
from sdsedit.camera import read_cameras
from sdsedit.cli import main
from sdsedit.errors import InputRefused
from sdsedit.io import record, splats, svg
from sdsedit.io.images import read_picture
from tests.properties.rules import examples, is_a_sentence, read_or_refused

NAMES = st.text(min_size=1, max_size=40) | st.sampled_from(
    [
        "\udcff",
        "a\0b",
        "x" * 300,
        "é" * 150,
        "a" * 250,
        "..",
        ".",
        "~",
        "-",
        "a\u202eb",
        "con",
        "a:b",
        "a\\b",
        "%s",
        "{}",
        " ",
        "\n",
    ]
)
ENDINGS = st.sampled_from(
    [
        "",
        ".png",
        ".jpg",
        ".svg",
        ".ply",
        ".compressed.ply",
        ".spz",
        ".splat",
        ".json",
        ".jsonl",
        ".csv",
        ".yaml",
        ".bin",
        ".txt",
        ".gif",
        ".mp4",
    ]
)
READERS: dict[str, Callable[[Path], object]] = {
    "picture": read_picture,
    "drawing": svg.read_svg,
    "scene": splats.read,
    "cameras": read_cameras,
    "recipe": record.read_recipe,
    "manifest": read_manifest,
}


@pytest.mark.parametrize("what", READERS)
@given(NAMES, ENDINGS)
@examples()
def test_what_is_not_there(tmp_path: Path, what: str, name: str, ending: str):
    path = tmp_path / "none" / f"{name}{ending}".lstrip("/")
    with pytest.raises(InputRefused) as refused:
        READERS[what](path)
    is_a_sentence(str(refused.value), tmp_path)


@given(NAMES, ENDINGS, st.sampled_from(["output_names", "drawing_names", "scene_names"]))
@examples(2)
def test_outputs_that_cannot_be_written_are_refused_before_a_run(tmp_path: Path, name: str, ending: str, names: str):
    """What passes the check can be written, and read under its name."""
    path = tmp_path / f"{name}{ending}".replace("/", "_")
    given_: dict[str, Callable[[], dict[str, Path]]] = {
        "output_names": lambda: record.output_names(path, True, True, True),
        "drawing_names": lambda: record.drawing_names(path, ("png", "guide"), None),
        "scene_names": lambda: record.scene_names(path, True, True),
    }
    outputs = read_or_refused(given_[names], tmp_path)
    if outputs is None:
        return
    with contextlib.suppress(ValueError):  # a null character: no program's argument, and no manifest's either
        if read_or_refused(lambda: record.check_outputs(outputs, [], True, 1) or True, tmp_path):
            record.write_all([(each, b"data") for each in outputs.values()])
            assert all(each.read_bytes() == b"data" and each.parent == tmp_path for each in outputs.values())


@given(
    st.sampled_from(["image", "svg", "splats", "sketch", "replay", "batch"]),
    NAMES,
    ENDINGS,
    st.lists(
        st.sampled_from(
            [
                "--seed",
                "--steps",
                "--strength",
                "--words",
                "--mask",
                "--source",
                "--method",
                "--cameras",
                "--device",
                "--x",
            ]
        )
    ),
    NAMES,
)
@examples()
def test_any_command_ends_in_a_sentence(
    tmp_path: Path, command: str, name: str, ending: str, options: list[str], value: str
):
    """Nothing is there, so nothing is done: exit code 2 or 5, never 1."""
    arguments = [command, str(tmp_path / "none" / f"{name}{ending}".lstrip("/")) if command != "sketch" else name]
    arguments += [part for option in options for part in (f"{option}={value}",)]
    if command not in ("replay", "batch", "sketch"):
        arguments += ["--target", name]
    arguments += ["--output", str(tmp_path / f"out{ending}"), "--model", "./nothing"]
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    said = err.getvalue().removeprefix("Loading the model.\n").splitlines()
    assert code in (2, 5) and len(said) == 1, (code, said)
    assert "Traceback" not in said[0] and len(said[0]) < 700
