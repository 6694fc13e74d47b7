"""Cameras: COLMAP as text and binary, transforms.json, cameras.json; damaged, of any content, and as they come back."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdsedit.camera import MAX_CAMERAS, MAX_SIDE, Cameras, intrinsics, look_at, read_cameras
from tests.properties.rules import JSON, changed, damaged, examples, read_or_refused
from tests.test_camera import as_json, colmap_binary, colmap_text, inria, transforms

WORDS = [
    b"NaN",
    b"inf",
    b"1e999",
    b"-1",
    b"0",
    b'"',
    b"\n",
    b"\r",
    b"#",
    b" ",
    b"null",
    b"true",
    b"[",
    b"]",
    b"{",
    b"}",
    b"SIMPLE_RADIAL",
    b"OPENCV_FISHEYE",
    b"9" * 400,
    b'"w"',
    b'"k1": 0.1,',
    b"\xff\xfe",
    b"\0",
    b"\xc3\xa9",
]


def scene(count: int = 3, seed: int = 0) -> Cameras:
    """Cameras anywhere, each looking somewhere, of one lens that is off the middle."""
    random = np.random.default_rng(seed)
    eyes, targets = random.normal(size=(count, 3)) * 4, random.normal(size=(count, 3)) / 3
    viewmats = look_at(torch.from_numpy(eyes), torch.from_numpy(targets), random.normal(size=3).tolist())
    width, height = int(random.integers(16, 400)), int(random.integers(16, 400))
    Ks = intrinsics(float(random.uniform(20, 120)), width, height).repeat(count, 1, 1)
    Ks[:, 0, 2] += 1.25
    return Cameras(viewmats, Ks, width, height, tuple(f"view {i}.png" for i in range(count)))


FORMS: dict[str, Callable[[Path, Cameras], list[Path]]] = {
    "text": lambda folder, cameras: sorted(colmap_text(folder / "text", cameras).iterdir()),
    "binary": lambda folder, cameras: sorted(colmap_binary(folder / "binary", cameras).iterdir()),
    "transforms": lambda folder, cameras: [as_json(folder / "transforms.json", transforms(cameras))],
    "inria": lambda folder, cameras: [as_json(folder / "cameras.json", inria(cameras))],
}


def holds(cameras: Cameras) -> None:
    count = len(cameras)
    assert 1 <= count <= MAX_CAMERAS and 1 <= cameras.width <= MAX_SIDE and 1 <= cameras.height <= MAX_SIDE
    assert torch.isfinite(cameras.viewmats).all() and torch.isfinite(cameras.Ks).all()
    turn = cameras.viewmats[:, :3, :3].double()
    assert (turn @ turn.transpose(1, 2) - torch.eye(3)).abs().max() < 1e-4 and (torch.linalg.det(turn) > 0).all()
    assert (cameras.viewmats[:, 3] == torch.tensor([0.0, 0, 0, 1])).all()
    assert (cameras.Ks[:, 0, 0] > 0).all() and (cameras.Ks[:, 1, 1] > 0).all() and len(cameras.names) == count


def look(path: Path) -> Cameras | None:
    cameras = read_or_refused(lambda: read_cameras(path), path.parent)
    if cameras is not None:
        holds(cameras)
    return cameras


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@examples()
def test_damaged_cameras(tmp_path: Path, form: str, data: st.DataObject):
    files = FORMS[form](tmp_path, scene())
    file = data.draw(st.sampled_from(files))
    file.write_bytes(data.draw(damaged(file.read_bytes(), WORDS, head=200)))
    look(file)
    look(file.parent)


@pytest.mark.parametrize("name", ["transforms.json", "cameras.json"])
@given(data=st.data())
@examples(1.5)
def test_json_of_another_content(tmp_path: Path, name: str, data: st.DataObject):
    """Well-formed, with other things in it than there should be: names taken out, values of other types and sizes."""
    content = transforms(scene(2)) if name == "transforms.json" else inria(scene(2))
    other = data.draw(changed(json.loads(json.dumps(content))) | JSON)
    (tmp_path / name).write_text(json.dumps(other), "utf-8", "surrogatepass")
    look(tmp_path / name)


@given(
    st.integers(0, 4) | st.integers(0, 2**64 - 1),
    st.integers(-1, 12),
    st.lists(st.floats() | st.floats(0.1, 1e4), max_size=12),
    st.integers(0, 2**64 - 1) | st.integers(1, 500),
    st.lists(st.floats() | st.floats(-1, 1), min_size=7, max_size=7),
    st.binary(max_size=12),
    st.integers(0, 2**64 - 1),
)
@examples(2)
def test_any_record_of_a_colmap_model(
    tmp_path: Path, count: int, model: int, params: list[float], side: int, pose: list[float], name: bytes, points: int
):
    lens = struct.pack(f"<IiQQ{len(params)}d", 1, model, side, 40, *params)
    picture = struct.pack("<I7dI", 1, *pose, 1) + name + b"\0" + struct.pack("<Q", points if points % 2 else 0)
    (tmp_path / "cameras.bin").write_bytes(struct.pack("<Q", count) + lens)
    (tmp_path / "images.bin").write_bytes(struct.pack("<Q", count) + picture)
    look(tmp_path)
    numbers = " ".join(map(str, params))
    (tmp_path / "cameras.txt").write_text(f"1 {['PINHOLE', 'OPENCV', 'x', ''][model % 4]} {side} 40 {numbers}\n")
    (tmp_path / "images.txt").write_bytes(f"1 {' '.join(map(str, pose))} 1 ".encode() + name + b"\n\n")
    look(tmp_path / "images.txt")


@given(
    st.binary(max_size=200),
    st.sampled_from(["transforms.json", "cameras.json", "cameras.bin", "cameras.txt", "a.json", "a.txt", "cameras"]),
)
@examples()
def test_bytes_that_are_no_cameras(tmp_path: Path, noise: bytes, name: str):
    for other in ("images.bin", "images.txt"):
        (tmp_path / other).write_bytes(noise[::-1])
    (tmp_path / name).write_bytes(noise)
    assert look(tmp_path / name) is None


@pytest.mark.parametrize("form", FORMS)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1))
@examples(0.6)
def test_cameras_come_back(tmp_path: Path, form: str, count: int, seed: int):
    cameras = scene(count, seed)
    found = look(FORMS[form](tmp_path, cameras)[0])
    assert found is not None and found.names == cameras.names
    assert (found.width, found.height) == (cameras.width, cameras.height)
    assert (found.viewmats - cameras.viewmats).abs().max() < 1e-4 * (1 + cameras.viewmats.abs().max())
    Ks = cameras.Ks.clone()
    if form == "inria":  # its principal point is always the middle
        Ks[:, 0, 2], Ks[:, 1, 2] = cameras.width / 2, cameras.height / 2
    assert (found.Ks - Ks).abs().max() < 1e-3 * math.ceil(float(Ks.max()))
