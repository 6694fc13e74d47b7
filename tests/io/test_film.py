"""Films: what is written is what is read back, within what the formats hold."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdsedit.io.film import RATE, gif, mp4


def frames(count: int = 6, height: int = 33, width: int = 47) -> list[np.ndarray]:
    """A white square that walks over a colourful ground."""
    ramp = np.linspace(0, 200, width).astype(np.uint8)
    made = []
    for k in range(count):
        frame = np.stack(
            [np.tile(ramp, (height, 1)), np.full((height, width), 30 * k), np.tile(ramp[::-1], (height, 1))]
        )
        frame[:, 4:20, 4 + 3 * k : 20 + 3 * k] = 255
        made.append(np.ascontiguousarray(frame.transpose(1, 2, 0).astype(np.uint8)))
    return made


def test_a_gif_has_every_frame_near_its_colours():
    wanted = frames()
    with Image.open(io.BytesIO(gif(wanted, hold=1.5))) as film:
        assert film.n_frames == len(wanted) and film.size == (47, 33)  # pyright: ignore[reportAttributeAccessIssue]
        for k, frame in enumerate(wanted):
            film.seek(k)
            seen = np.asarray(film.convert("RGB")).astype(int)
            assert np.abs(seen - frame).mean() < 12
            assert (seen[8, 10 + 3 * k] == 255).all()  # white is white
            assert film.info["duration"] == (1500 if k + 1 == len(wanted) else 1000 // RATE)


def test_an_mp4_plays(tmp_path: Path):
    import cv2

    wanted = frames(height=64, width=65)
    (tmp_path / "film.mp4").write_bytes(mp4(wanted, hold=0.5))
    film = cv2.VideoCapture(str(tmp_path / "film.mp4"))
    assert film.get(cv2.CAP_PROP_FRAME_COUNT) == len(wanted) + 0.5 * RATE
    assert (film.get(cv2.CAP_PROP_FRAME_WIDTH), film.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (64, 64)
    good, first = film.read()
    film.release()
    assert good and np.abs(first[..., ::-1].astype(int) - wanted[0][:, :64]).mean() < 12


@pytest.mark.parametrize("write", [gif, mp4])
def test_a_film_of_nothing(write):
    with pytest.raises(ValueError, match="at least one frame"):
        write([])
