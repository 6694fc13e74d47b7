"""Views, sheets and films of scenes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdsedit.errors import InputRefused
from sdsedit.splats import files
from tests.little_scene import BALL, little_scene


def test_a_scene_is_framed_and_seen():
    scene = little_scene()
    cameras = files.around([scene], 4, side=64)
    views = files.photographs(scene, cameras)
    assert views.shape == (4, 64, 64, 3) and views.dtype == np.uint8
    assert (views[:, 0, 0] == 255).all()  # the background, white
    middle = views[:, 32, 32].astype(int)
    assert (middle[:, 0] > middle[:, 1] + 80).all()  # the ball is red from all round
    assert (files.photographs(scene, cameras, background=(0, 0, 1))[:, 0, 0] == (0, 0, 255)).all()


def test_a_thing_that_is_only_there_afterwards_is_in_the_frame():
    before, after = little_scene(), little_scene()
    after.means = after.means.copy()
    after.means[:BALL, 1] -= 2
    both, one = (files.around(scenes, 3).positions.norm(dim=1) for scenes in ([before, after], [before]))
    assert (both > one).all()


def test_the_sheet_of_weights_shows_what_is_chosen():
    scene = little_scene()
    weight = scene.extra["part"] * np.float32(0.9)
    sheet = files.weights_sheet(scene, weight, 0.5, count=5, side=64)
    assert sheet.shape == (2 * 64 + 4, 4 * 64 + 12, 3)
    assert (sheet[68:, 68:] == 255).all()  # three places of the second row are empty
    tiles = files.heat(scene, weight, 0.5, files.around([scene], 5, side=64))
    assert (sheet[:64, :64] == tiles[0]).all() and (sheet[68:, :64] == tiles[4]).all()
    hot, cold = tiles[:, 32, 32].astype(int), tiles[:, 0, 0].astype(int)
    assert (hot[:, 0] > hot[:, 2] + 60).all() and (np.ptp(cold, axis=1) < 8).all()  # yellow, and grey
    line = (tiles == files._LINE).all(-1)
    assert all(20 < each.sum() < 400 for each in line)
    assert not (files.heat(scene, weight, 0.95, files.around([scene], 1, side=64)) == files._LINE).all(-1).any()


def test_before_weights_and_after():
    scene, other = little_scene(), little_scene()
    other.sh = -other.sh
    cameras = files.around([scene], 3, side=32)
    sheet = files.before_and_after(scene, other, np.ones(len(scene.means)), 0.5, cameras, side=48)
    assert sheet.shape == (3 * 48 + 8, 3 * 48 + 8, 3)
    larger = cameras.resized(48, 48)
    assert (sheet[:48, :48] == files.photographs(scene, larger)[0]).all()
    assert (sheet[-48:, -48:] == files.photographs(other, larger)[2]).all()


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_film_goes_once_round(tmp_path: Path, suffix: str):
    scene, other = little_scene(), little_scene()
    other.sh = -other.sh
    data = files.orbit_film([scene, other], suffix, side=48, frames=8)
    if suffix == ".gif":
        with Image.open(io.BytesIO(data)) as film:
            assert film.n_frames == 8 and film.size == (96, 48)  # pyright: ignore[reportAttributeAccessIssue]
            first = np.asarray(film.convert("RGB")).astype(int)
        assert first[24, 24, 0] > first[24, 24, 2] + 60 and first[24, 72, 0] < first[24, 72, 2] - 60
    else:
        import cv2

        (tmp_path / "film.mp4").write_bytes(data)
        film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
        assert film.get(cv2.CAP_PROP_FRAME_COUNT) == 8 and film.get(cv2.CAP_PROP_FRAME_WIDTH) == 96
        film.release()


def test_a_film_of_another_kind():
    with pytest.raises(InputRefused, match=r"^The film's ending is \.avi: it must be \.mp4 or \.gif\.$"):
        files.orbit_film([little_scene()], ".avi")
