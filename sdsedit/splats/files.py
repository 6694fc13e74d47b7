"""What is made of an edited scene to look at: views, films once round it, where the words were found.

All are drawn from the Gaussians themselves, with the renderer that the edit used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sdsedit.camera import Cameras, frame
from sdsedit.errors import InputRefused, printable
from sdsedit.io import film
from sdsedit.io.images import overlay, to_array
from sdsedit.io.splats import Splats
from sdsedit.representations.splats import Scene, pictures

WHITE, UP = (1.0, 1.0, 1.0), (0.0, -1.0, 0.0)
FILM_SIDE = 320  # pixels, of each scene in a film
SHEET_SIDE = 256  # pixels, of each view on a sheet
ELEVATION = 20.0  # degrees from which a scene is shown
_FRAMES = 60  # of a film: once round in three seconds
_COLUMNS = 4  # of a sheet of weights
_GAP = 4  # pixels between the views of a sheet
_LINE = (86, 180, 233)  # the edge of what is in the edit: Okabe and Ito's sky blue, which everybody tells from the heat


def around(
    scenes: Sequence[Splats],
    count: int,
    side: int = SHEET_SIDE,  # pixels
    up: Sequence[float] = UP,
    elevation: float = ELEVATION,  # degrees
) -> Cameras:
    """`count` cameras once round what is in any of the scenes, the first in front."""
    means = torch.from_numpy(np.concatenate([scene.means for scene in scenes]))
    weights = torch.from_numpy(np.concatenate([scene.logits for scene in scenes])).sigmoid()
    return frame(means, weights, side, side, count, elevation, up=up)


def photographs(
    splats: Splats,
    cameras: Cameras,
    background: Sequence[float] = WHITE,  # rgb in 0..1
    device: torch.device | str = "cpu",
) -> np.ndarray:  # [V, H, W, 3] uint8
    """What the cameras see of a scene."""
    behind = torch.tensor(tuple(background), dtype=torch.float32, device=device)
    seen = pictures(Scene.of(splats, device), cameras.to(device), behind)
    return np.stack([to_array(each[None]) for each in seen])


def orbit_film(
    scenes: Sequence[Splats],  # one, or several that stand side by side: before and after
    suffix: str,  # one of io.film.SUFFIXES
    background: Sequence[float] = WHITE,
    up: Sequence[float] = UP,
    side: int = FILM_SIDE,
    frames: int = _FRAMES,
    device: torch.device | str = "cpu",
) -> bytes:
    """Once round the scenes, with the same cameras for all of them; plays on and on without a seam.

    InputRefused: another suffix; no encoder for it on this machine.
    """
    if suffix.lower() not in film.SUFFIXES:
        raise InputRefused(f"The film's ending is {printable(suffix, 20)}: it must be {' or '.join(film.SUFFIXES)}.")
    cameras = around(scenes, frames, side, up)
    shown = [photographs(scene, cameras, background, device) for scene in scenes]
    together = [np.concatenate(views, axis=1) for views in zip(*shown, strict=True)]
    return film.mp4(together) if suffix.lower() == ".mp4" else film.gif(together)


def weights_sheet(
    splats: Splats,
    weight: np.ndarray,  # [N] in 0..1
    threshold: float,  # of a weight: in the edit or not
    background: Sequence[float] = WHITE,
    up: Sequence[float] = UP,
    count: int = 8,
    side: int = SHEET_SIDE,
    device: torch.device | str = "cpu",
) -> np.ndarray:  # [H, W, 3] uint8
    """Where the words were found, from all round, four views in a row: heat over the grey scene, dark where cold, and a
    blue line round the Gaussians of the threshold and above."""
    cameras = around([splats], count, side, up)
    tiles = heat(splats, weight, threshold, cameras, background, device)
    return _mosaic([list(tiles[k : k + _COLUMNS]) for k in range(0, count, _COLUMNS)])


def heat(
    splats: Splats,
    weight: np.ndarray,  # [N] in 0..1
    threshold: float,
    cameras: Cameras,
    background: Sequence[float] = WHITE,
    device: torch.device | str = "cpu",
) -> np.ndarray:  # [V, H, W, 3] uint8
    """The weights as the cameras see them; see weights_sheet."""
    scene, cameras = Scene.of(splats, device), cameras.to(device)
    values = torch.from_numpy(np.ascontiguousarray(weight, dtype=np.float32)).to(device)
    shown = torch.stack([values, (values >= threshold).float()], dim=1)
    views = photographs(splats, cameras, background, device)
    made = []
    with torch.no_grad():
        for k, view in enumerate(views):
            painted = scene.paint(shown, cameras[k])[0].clamp(0, 1).cpu()
            tile = overlay(view, painted[..., 0].numpy())
            tile[_edge(painted[..., 1] > 0.5)] = _LINE
            made.append(tile)
    return np.stack(made)


def before_and_after(
    before: Splats,
    after: Splats,
    weight: np.ndarray,  # [N] in 0..1, of the Gaussians before
    threshold: float,
    cameras: Cameras,
    background: Sequence[float] = WHITE,
    side: int = SHEET_SIDE,
    device: torch.device | str = "cpu",
) -> np.ndarray:  # [H, W, 3] uint8
    """A row of views before, one of the weights, one after; a column for each camera. A view's longer side has `side`
    pixels."""
    scale = side / max(cameras.width, cameras.height)
    cameras = cameras.resized(max(round(cameras.width * scale), 1), max(round(cameras.height * scale), 1))
    rows = [
        photographs(before, cameras, background, device),
        heat(before, weight, threshold, cameras, background, device),
        photographs(after, cameras, background, device),
    ]
    return _mosaic([list(row) for row in rows])


def _edge(inside: Tensor) -> np.ndarray:  # [H, W] bool -> [H, W] bool
    """The pixels inside that have one outside next to them."""
    around_it = torch.nn.functional.pad(inside[None, None].float(), (1, 1, 1, 1), mode="replicate")
    smallest = -torch.nn.functional.max_pool2d(-around_it, 3, stride=1)[0, 0]
    return (inside & (smallest < 0.5)).numpy()


def _mosaic(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures of one size in rows, white between them; a last row may be shorter."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    whole = np.full((len(rows) * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, tile in enumerate(row):
            whole[i * (height + _GAP) :, j * (width + _GAP) :][:height, :width] = tile
    return whole
