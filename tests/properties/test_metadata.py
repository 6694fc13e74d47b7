"""Recipes in a PNG, an SVG and a PLY and beside them: what is in one is a request that can be checked, or refused."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsedit.cli import main
from sdsedit.io import splats
from sdsedit.io.images import encode_png
from sdsedit.io.record import (
    dump,
    image_request,
    read_recipe,
    sketch_request,
    splats_request,
    svg_request,
    with_recipe,
)
from sdsedit.io.svg import SvgShape, new_svg
from sdsedit.request import check_request
from tests.little_scene import little_scene
from tests.properties.rules import JSON, changed, damaged, examples, read_or_refused

LINE = SvgShape(((np.array([[0.0, 0], [9, 1], [2, 9], [30, 20]]), False),), stroke=(1, 0, 0, 1), width=2)
SCENE = little_scene()


def in_png(folder: Path, text: str) -> Path:
    (folder / "a.png").write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8), recipe=text))
    return folder / "a.png"


def in_svg(folder: Path, text: str) -> Path:
    (folder / "a.svg").write_bytes(new_svg(40, 30, None, [("a", [LINE])], text))
    return folder / "a.svg"


def in_ply(folder: Path, text: str) -> Path:
    scene = with_recipe(SCENE, json.loads(text.replace("NaN", "1").replace("Infinity", "2")))
    (folder / "a.ply").write_bytes(splats.encode(scene, "a.ply"))
    return folder / "a.ply"


def beside(folder: Path, text: str) -> Path:
    (folder / "b.json").write_text(text, "utf-8")
    return folder / "b.json"


PLACES: dict[str, Callable[[Path, str], Path]] = {"png": in_png, "svg": in_svg, "ply": in_ply, "sidecar": beside}
IMAGE: dict[str, Any] = {
    "schema": 1,
    "kind": "image",
    "target": "a cat wearing a crown",
    "source": "a cat",
    "negative": "",
    "words": ["crown"],
    "input": {"name": "cat.png", "sha256": "0" * 64, "size": [4, 4], "format": "PNG"},
    "mask": None,
    "method": {"name": "dds"},
    "steps": 3,
    "seed": 7,
    "feather": 3.0,
    "size": None,
    "refine": 0.0,
}
SVG = {**IMAGE, "kind": "svg", "shapes": {"share": 0.5, "added": 24, "steps": 60}}
SKETCH = {"schema": 1, "kind": "sketch", "prompt": "a fox", "settings": {"strokes": 9, "style": "ink", "seed": 3}}
SPLATS = {
    **IMAGE,
    "kind": "splats",
    "cameras": None,
    "settings": {"kind": "add", "steps": None, "seed": 3, "views": 8, "threshold": 0.4, "up": [0, 0, 1], "size": 64},
}


def requested(recipe: dict[str, Any]) -> None:
    """What the recipe asks for, checked as a person's own request is, whatever kind it says it is."""
    from sdsedit.sketch.change import check_change
    from sdsedit.sketch.draw import check_sketch
    from sdsedit.splats.change import check

    for look_at in (
        lambda: check_request(*image_request(recipe, None)),
        lambda: check_change(*svg_request(recipe)),
        lambda: check_sketch(*sketch_request(recipe)),
        lambda: check(*splats_request(recipe)),
    ):
        read_or_refused(look_at)


# ---- what comes back


@pytest.mark.parametrize("place", PLACES)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        JSON.filter(lambda value: "NaN" not in json.dumps(value) and "Infinity" not in json.dumps(value)),
        max_size=4,
    )
)
@examples(0.6)
def test_any_recipe_comes_back(tmp_path: Path, place: str, recipe: dict[str, Any]):
    recipe = {**recipe, "schema": 1}
    assert read_recipe(PLACES[place](tmp_path, dump(recipe))) == json.loads(json.dumps(recipe))


def test_recipes_are_requests_and_pass(tmp_path: Path):
    from sdsedit.sketch.change import check_change
    from sdsedit.sketch.draw import check_sketch
    from sdsedit.splats.change import check

    check_request(*image_request(IMAGE, None))
    check_change(*svg_request(SVG))
    check_sketch(*sketch_request(SKETCH))
    check(*splats_request(SPLATS))


# ---- what is wrong in them


@given(data=st.data(), which=st.sampled_from([IMAGE, SVG, SKETCH, SPLATS]))
@examples(4)
def test_recipes_of_another_content(tmp_path: Path, data: st.DataObject, which: dict[str, Any]):
    other = data.draw(changed(which))
    text = json.dumps(other)
    (tmp_path / "b.json").write_text(text)
    recipe = read_or_refused(lambda: read_recipe(tmp_path / "b.json"), tmp_path)
    if recipe is not None:
        assert recipe["schema"] == 1
        requested(recipe)
    if isinstance(other, dict):
        requested(other)


@pytest.mark.parametrize("place", PLACES)
@given(data=st.data())
@examples()
def test_damaged_files_with_recipes(tmp_path: Path, place: str, data: st.DataObject):
    path = PLACES[place](tmp_path, dump(IMAGE))
    words = [
        b"sdsedit",
        b"sdsedit {",
        b"}",
        b"{",
        b'"',
        b"\n",
        b"\\ud800",
        b"NaN",
        b"[" * 3000,
        b"9" * 5000,
        b"\xff",
        b"\0",
    ]
    path.write_bytes(data.draw(damaged(path.read_bytes(), words, head=900)))
    recipe = read_or_refused(lambda: read_recipe(path), tmp_path)
    assert recipe is None or (isinstance(recipe, dict) and recipe["schema"] == 1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@given(
    st.sampled_from([b"iTXt", b"tEXt", b"zTXt"]),
    st.sampled_from([b"sdsedit", b"Sdsedit", b"", b"x" * 90]),
    st.binary(max_size=6),
    st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()),
    st.booleans(),
)
@examples()
def test_any_text_of_a_png(tmp_path: Path, kind: bytes, key: bytes, flags: bytes, text: bytes, packed: bool):
    whole = encode_png(np.zeros((4, 4, 3), np.uint8))
    chunk = _chunk(kind, key + b"\0" + flags + (zlib.compress(text) if packed else text))
    (tmp_path / "a.png").write_bytes(whole[:33] + chunk + whole[33:])
    recipe = read_or_refused(lambda: read_recipe(tmp_path / "a.png"), tmp_path)
    assert recipe is None or recipe["schema"] == 1


@given(
    st.binary(max_size=200), st.sampled_from(["a.png", "a.svg", "a.ply", "a.spz", "a.splat", "a.json", "a", "a.txt"])
)
@examples()
def test_any_bytes_carry_no_recipe(tmp_path: Path, noise: bytes, name: str):
    (tmp_path / name).write_bytes(noise)
    assert read_or_refused(lambda: read_recipe(tmp_path / name), tmp_path) is None


@given(data=st.data(), which=st.sampled_from([IMAGE, SVG, SKETCH, SPLATS]))
@examples(0.4)
def test_any_recipe_replayed_ends_in_a_sentence(tmp_path: Path, data: st.DataObject, which: dict[str, Any]):
    """As far as the model, which is not there: exit code 2 or 5, never 1, and nothing is written."""
    made = {"image": in_png, "svg": in_svg, "sketch": in_svg, "splats": in_ply}[which["kind"]]
    recipe = data.draw(changed(which))
    path = made(
        tmp_path, json.dumps({**recipe, "schema": 1} if isinstance(recipe, dict) else {"schema": 1, "x": recipe})
    )
    before = sorted(tmp_path.iterdir())
    arguments = ["replay", str(path), "--input", str(path), "--output", str(tmp_path / f"o{path.suffix}")]
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = main([*arguments, "--model", "./nothing"])
    said = err.getvalue().removeprefix("Loading the model.\n").splitlines()
    assert code in (2, 5) and len(said) == 1, (code, said)
    assert "Traceback" not in said[0] and str(tmp_path) not in said[0] and sorted(tmp_path.iterdir()) == before
