"""What a scene holds, which way is up in it, and whether cameras see it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdsedit.camera import Cameras, orbit
from sdsedit.errors import InputRefused
from sdsedit.io.splats import Splats, read, write
from sdsedit.splats.survey import DIRECTIONS, check_cameras, lines, seen, spread, suggested_up, survey
from tests.little_scene import little_scene

SCENES = sorted((Path(__file__).resolve().parents[2] / "assets" / "splats").glob("*.ply"))


def test_numbers_of_a_scene(tmp_path: Path):
    scene = little_scene(degree=2)
    scene.logits[:30] = -20
    write(tmp_path / "ball.ply", scene)
    found = survey(read(tmp_path / "ball.ply"), tmp_path / "ball.ply")
    assert (found.kind, found.count, found.degree, found.extra) == ("PLY", 330, 2, {"part": "uint8"})
    assert found.bytes == (tmp_path / "ball.ply").stat().st_size
    assert found.memory == 330 * (4 * (3 + 4 + 3 + 1 + 27) + 1)
    assert found.low == pytest.approx(scene.means.min(0)) and found.high == pytest.approx(scene.means.max(0))
    assert all(a <= b for a, b in zip(found.low, found.core_low, strict=True))
    assert found.clear == pytest.approx(60 / 330) and found.opacity[1] == pytest.approx(1 / (1 + math.exp(-2)))
    assert found.scale[1] == pytest.approx(0.08) and found.widest == pytest.approx(0.08)
    told = lines(found, "ball.ply")
    assert told[0].startswith("File: ball.ply, PLY, ") and "Comment: a ball on grass" in told
    assert "18.2 % hardly show" in told[4]


@pytest.mark.parametrize(("name", "kind"), [("a.compressed.ply", "compressed PLY"), ("a.spz", "SPZ"), ("a.ply", "PLY")])
def test_kinds_of_files(tmp_path: Path, name: str, kind: str):
    write(tmp_path / name, little_scene())
    assert survey(read(tmp_path / name), tmp_path / name).kind == kind


def turned(scene: Splats, axes: list[int], signs: tuple[int, int, int]) -> Splats:
    """The scene with other axes; its Gaussians are not rotated, so their scales go with the axes."""
    means = (scene.means[:, axes] * np.array(signs, np.float32)).astype(np.float32)
    return replace(scene, means=means, log_scales=scene.log_scales[:, axes])


@pytest.mark.parametrize("name", list(DIRECTIONS))
def test_up_is_away_from_the_ground(name: str):
    """The little scene's up is -y; its y axis is put where `name` is."""
    axis = "xyz".index(name[-1])
    sign = 1 if name.startswith("-") else -1
    axes = {0: [1, 0, 2], 1: [0, 1, 2], 2: [0, 2, 1]}[axis]
    scene = turned(little_scene(), axes, tuple(sign if k == axis else 1 for k in range(3)))  # pyright: ignore[reportArgumentType]
    assert suggested_up(scene) == (name, "away from the flat ground")


def test_up_without_a_ground_and_in_words():
    scene = little_scene()
    ball = replace(
        scene, **{name: getattr(scene, name)[:200] for name in ("means", "quats", "log_scales", "logits", "sh")}
    )
    assert suggested_up(ball)[0] == "-y" and "no clear ground" in suggested_up(ball)[1]
    assert suggested_up(replace(ball, comments=("made by hand", "up is +z"))) == ("z", "as a comment in the file says")


@pytest.mark.parametrize("path", SCENES, ids=[path.stem for path in SCENES])
def test_up_of_the_shipped_scenes(path: Path):
    scene = read(path)
    assert suggested_up(scene)[0] == suggested_up(replace(scene, comments=()))[0] == "-y"


# ---- cameras


def test_cameras_that_see_the_scene():
    cameras = orbit((0, 0, 0), 3.0, 15.0, 8, 64, 48)
    share = seen(little_scene(), cameras)
    assert share.shape == (8,) and (share > 0.9).all()
    check_cameras(little_scene(), cameras)
    assert len(spread(cameras, 99)) == 8
    assert (spread(cameras, 4).viewmats == cameras.viewmats[::2]).all()


def test_cameras_that_see_nothing():
    cameras = orbit((0, 0, 0), 3.0, 15.0, 8, 64, 48)
    away = Cameras(cameras.viewmats.clone(), cameras.Ks, 64, 48)
    away.viewmats[:, :3] *= torch.tensor([[-1.0], [1.0], [-1.0]])  # they look the other way
    with pytest.raises(InputRefused, match=r"^The cameras see nothing of the scene"):
        check_cameras(little_scene(), away)
    away.viewmats[:3] = cameras.viewmats[:3]
    with pytest.raises(InputRefused, match=r"^Only 3 of the cameras see the scene"):
        check_cameras(little_scene(), away)
    away.viewmats[:4] = cameras.viewmats[:4]
    check_cameras(little_scene(), away)
    with pytest.raises(InputRefused, match=r"^There is 1 camera: at least 4"):
        check_cameras(little_scene(), cameras[0])
