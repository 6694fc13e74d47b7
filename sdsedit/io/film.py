"""Frames to films: GIF by Pillow, MP4 by OpenCV."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sdsedit.errors import InputRefused

RATE = 20  # frames a second: a GIF counts in hundredths of a second, and most players are slow below 5 of them
SUFFIXES = (".mp4", ".gif")
_CODECS = ("vp09", "mp4v")  # VP9 plays in browsers, and the free builds of OpenCV write no H.264
_SAMPLES = 8  # frames that a GIF's colours are taken from


def gif(frames: Sequence[np.ndarray], hold: float = 0.0) -> bytes:  # [H, W, 3] uint8 each
    """A GIF that goes round for ever, the last frame standing `hold` seconds. All frames have one palette, so that none
    of them flickers. ValueError: no frame."""
    if not frames:
        raise ValueError("A film has at least one frame.")
    every = max(len(frames) // _SAMPLES, 1)
    sample = np.concatenate(frames[::-1][::every], axis=0)
    chosen = Image.fromarray(sample).quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).getpalette()
    assert chosen is not None
    palette = np.array(chosen, np.float32).reshape(-1, 3)
    squares = np.square(palette).sum(1)

    def indexed(frame: np.ndarray) -> Image.Image:
        """The nearest of the palette; Pillow's own mapping takes white for 252, 252, 252."""
        packed, where = np.unique(frame.astype(np.int64) @ (65536, 256, 1), return_inverse=True)
        colours = np.stack([packed >> 16, (packed >> 8) & 255, packed & 255], axis=1).astype(np.float32)
        nearest = (squares - 2 * colours @ palette.T).argmin(1).astype(np.uint8)  # whole numbers that float32 holds
        image = Image.fromarray(nearest[where.reshape(frame.shape[:2])], "P")
        image.putpalette(chosen)
        return image

    first, *others = map(indexed, frames)
    last = round(1000 * hold) or 1000 // RATE
    buffer = io.BytesIO()
    times = [1000 // RATE] * len(others) + [last]
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=times, loop=0)
    return buffer.getvalue()


def mp4(frames: Sequence[np.ndarray], hold: float = 0.0) -> bytes:  # [H, W, 3] uint8 each
    """An MP4 (VP9 where OpenCV has it); an odd row or column is left out, for the format wants even sides.

    InputRefused: OpenCV has no encoder for it on this machine. ValueError: no frame.
    """
    if not frames:
        raise ValueError("A film has at least one frame.")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # its own words on codecs that are not there
    import cv2

    height, width = (side // 2 * 2 for side in frames[0].shape[:2])
    with tempfile.TemporaryDirectory() as folder:  # OpenCV writes to files only
        path = Path(folder) / "film.mp4"
        for codec in _CODECS:
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), RATE, (width, height))
            if writer.isOpened():
                break
        else:
            raise InputRefused("OpenCV cannot write MP4 on this machine: give the film another ending.")
        for frame in [*frames, *[frames[-1]] * round(hold * RATE)]:
            writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))  # blue, green, red
        writer.release()
        return path.read_bytes()
