"""Pinhole cameras: made (an orbit, an automatic frame round a bare scene) or read from what other programs wrote.

World-to-camera matrices in OpenCV axes (x right, y down, z forward); pixel (0, 0) has its middle at (0.5, 0.5). A point
p of the world falls on the picture at

    (x, y, z) = R p + t,    u = fx x / z + cx,    v = fy y / z + cy

Read are COLMAP models (text and binary: R and t are stored world to camera), transforms.json of NeRF, instant-ngp and
nerfstudio (camera to world, OpenGL axes: y up, z backward) and cameras.json of INRIA's trainer (camera to world, OpenCV
axes, principal point in the middle). Files are somebody's: their sizes, counts and numbers are bounded, nothing that
they name is opened, except for the header of one picture in the same folder where a transforms.json gives no size.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sdsedit.errors import InputRefused, printable

MAX_JSON = 32 * 2**20  # bytes of a transforms.json or cameras.json
MAX_MODEL = 8 * 2**30  # bytes of a COLMAP file; its points are skipped, never held
MAX_CAMERAS = 20_000
MAX_SIDE = 16_384  # pixels of a picture
MAX_NUMBER = 1e7  # focal lengths, principal points (pixels) and positions (world units)
MAX_NAME = 1_024  # bytes
KINDS = "a COLMAP folder, a transforms.json or a cameras.json"

# COLMAP's models: its number, its parameters, and how many of them distort. The first are f or fx, fy, then cx, cy.
# None: no parameters make a fisheye or a sphere a pinhole.
_MODELS: dict[str, tuple[int, int, int | None]] = {
    "SIMPLE_PINHOLE": (0, 3, 0),
    "PINHOLE": (1, 4, 0),
    "SIMPLE_RADIAL": (2, 4, 1),
    "RADIAL": (3, 5, 2),
    "OPENCV": (4, 8, 4),
    "OPENCV_FISHEYE": (5, 8, None),
    "FULL_OPENCV": (6, 12, 8),
    "FOV": (7, 5, 1),
    "SIMPLE_RADIAL_FISHEYE": (8, 4, None),
    "RADIAL_FISHEYE": (9, 5, None),
    "THIN_PRISM_FISHEYE": (10, 12, None),
}
_UNDISTORT = "only pinhole cameras are drawn, so undistort the pictures first (colmap image_undistorter)"


@dataclass(frozen=True, eq=False)
class Cameras:
    """V pinhole cameras of one picture size."""

    viewmats: Tensor  # [V, 4, 4] float32, world to camera, OpenCV axes
    Ks: Tensor  # [V, 3, 3] float32, pixels
    width: int
    height: int
    names: tuple[str, ...] = ()  # of the pictures they belong to; empty, or one for each camera

    def __post_init__(self) -> None:
        count = len(self.viewmats)
        if self.viewmats.shape != (count, 4, 4) or self.Ks.shape != (count, 3, 3):
            shapes = f"{tuple(self.viewmats.shape)} and {tuple(self.Ks.shape)}"
            raise ValueError(f"Cameras have viewmats [V, 4, 4] and Ks [V, 3, 3]; got {shapes}.")
        if self.names and len(self.names) != count:
            raise ValueError(f"{count} cameras need {count} names or none; got {len(self.names)}.")
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise ValueError(f"A picture has sides of 1 to {MAX_SIDE} pixels; got {self.width}x{self.height}.")

    def __len__(self) -> int:
        return len(self.viewmats)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Cameras:
        """Some of the cameras, one of them included, in the order asked for."""
        chosen = range(len(self))[index] if isinstance(index, slice) else index
        rows = [chosen] if isinstance(chosen, int) else list(chosen)
        names = tuple(self.names[row] for row in rows) if self.names else ()
        return Cameras(self.viewmats[rows], self.Ks[rows], self.width, self.height, names)

    def resized(self, width: int, height: int) -> Cameras:
        """The same views on pictures of another size; of other proportions, they are stretched and not cropped."""
        scale = self.Ks.new_tensor([width / self.width, height / self.height, 1.0])
        return Cameras(self.viewmats, self.Ks * scale[:, None], width, height, self.names)

    def to(self, device: torch.device | str) -> Cameras:
        return Cameras(self.viewmats.to(device), self.Ks.to(device), self.width, self.height, self.names)

    @property
    def positions(self) -> Tensor:  # [V, 3] world units: -R^T t
        rotation, shift = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        return -(rotation.transpose(1, 2) @ shift[..., None])[..., 0]


def look_at(
    eye: Tensor,  # [V, 3]
    target: Tensor,  # [3] or [V, 3]
    up: Tensor | Sequence[float] = (0.0, -1.0, 0.0),  # [3] or [V, 3]
) -> Tensor:  # [V, 4, 4] float32, world to camera
    """Cameras at `eye` with `target` in the middle of the picture and `up` upwards in it.

    z = target - eye, x = z × up, y = z × x, each of length 1. Looking straight along `up`, the picture's top is the
    direction in which the world's most level axis points. ValueError: an eye on its target, an `up` of length 0.
    """
    eye64, target64 = eye.double().reshape(-1, 3), torch.as_tensor(target).double()
    up64 = torch.as_tensor(up, device=eye.device).double()
    forward = target64 - eye64
    if not forward.norm(dim=-1).gt(1e-12).all() or not up64.norm(dim=-1).gt(1e-12).all():
        raise ValueError("A camera must not stand on its target, and up must not be 0.")
    forward = forward / forward.norm(dim=-1, keepdim=True)
    up64 = (up64 / up64.norm(dim=-1, keepdim=True)).expand_as(forward)
    right = torch.linalg.cross(forward, up64)
    along = right.norm(dim=-1, keepdim=True) < 1e-6
    level = torch.zeros_like(up64)
    level[torch.arange(len(level)), up64.abs().argmin(-1)] = 1.0
    right = torch.where(along, torch.linalg.cross(forward, level), right)
    right = right / right.norm(dim=-1, keepdim=True)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], dim=1)  # rows: the camera's axes
    viewmats = torch.eye(4, dtype=torch.float64, device=eye.device).repeat(len(eye64), 1, 1)
    viewmats[:, :3, :3] = rotation
    viewmats[:, :3, 3] = -(rotation @ eye64[..., None])[..., 0]
    return viewmats.float()


def intrinsics(fov_degrees: float, width: int, height: int) -> Tensor:  # [3, 3] float32
    """Square pixels, the principal point in the middle, `fov_degrees` (above 0, below 180) across the shorter side."""
    if not 0 < fov_degrees < 180:
        raise ValueError(f"A field of view is above 0 and below 180 degrees; got {fov_degrees}.")
    focal = 0.5 * min(width, height) / math.tan(math.radians(fov_degrees) / 2)
    return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float32)


def orbit(
    centre: Tensor | Sequence[float],  # [3]
    radius: float,  # world units
    elevations: float | Sequence[float],  # degrees above the plane through the centre, -90..90
    count: int,
    width: int,
    height: int,
    fov: float = 40.0,  # degrees, across the shorter side
    up: Sequence[float] = (0.0, -1.0, 0.0),
    start: float = 0.0,  # degrees; 0 is in front, 90 to the right of it
) -> Cameras:
    """`count` cameras once round `centre`, all looking at it, at evenly spaced angles that take `elevations` in turn.

    The front is where -z is (a camera with the identity's rotation), made level; for a world with z up it is -y. With
    two elevations every other camera is on the second, so that low and high views interleave.
    """
    if count < 1 or not radius > 0:
        raise ValueError(f"An orbit has at least one camera and a radius above 0; got {count} and {radius}.")
    rings = [elevations] if isinstance(elevations, (int, float)) else list(elevations)
    back, right, above = _level_axes(up)
    turns = math.radians(start) + 2 * math.pi * np.arange(count) / count
    rise = np.radians([rings[i % len(rings)] for i in range(count)])
    level = np.cos(turns)[:, None] * back + np.sin(turns)[:, None] * right
    directions = np.cos(rise)[:, None] * level + np.sin(rise)[:, None] * above  # [count, 3] from the centre outwards
    # At right angles to the view, so that a camera straight above has a top too.
    upwards = np.cos(rise)[:, None] * above - np.sin(rise)[:, None] * level
    middle = torch.as_tensor(centre).detach().double().cpu()
    viewmats = look_at(middle + radius * torch.from_numpy(directions), middle, torch.from_numpy(upwards))
    return Cameras(viewmats, intrinsics(fov, width, height).repeat(count, 1, 1), width, height)


def frame(
    means: Tensor,  # [N, 3] world units
    weights: Tensor,  # [N] how much each counts: opacity, perhaps times size
    width: int,
    height: int,
    count: int,
    elevations: float | Sequence[float] = (10.0, 35.0),  # degrees
    fov: float = 40.0,  # degrees, across the shorter side
    up: Sequence[float] = (0.0, -1.0, 0.0),
    start: float = 0.0,  # degrees
    margin: float = 1.1,  # of the distance at which all that counts just fits
) -> Cameras:
    """An orbit that frames a bare scene: what a .ply without cameras is looked at with.

    The centre is the middle of the box that holds the weighted 1 % to 99 % along each axis, floaters left out: points
    farther from the weighted median than five times the median distance. The distance is the smallest from which 99 %
    of the weight lies inside every picture; for one camera and one point (x right, y down, z away from the camera,
    from the centre) that is max(|x| / tan(fov_x / 2), |y| / tan(fov_y / 2)) - z.

    ValueError: no Gaussian with a weight above 0.
    """
    points = means.detach().double().cpu().numpy()
    mass = weights.detach().double().cpu().numpy()
    seen = np.isfinite(points).all(1) & np.isfinite(mass) & (mass > 0)
    points, mass = points[seen], mass[seen]
    if not len(points):
        raise ValueError("Nothing to frame: no Gaussian has a weight above 0.")
    step = -(-len(points) // 50_000)  # a scene of millions is framed by every k-th
    points, mass = points[::step], mass[::step]
    middle = np.array([_quantile(axis, mass, 0.5) for axis in points.T])
    distance = np.linalg.norm(points - middle, axis=1)
    near = distance <= 5 * max(_quantile(distance, mass, 0.5), 1e-9)
    points, mass = points[near], mass[near]
    low, high = (np.array([_quantile(axis, mass, q) for axis in points.T]) for q in (0.01, 0.99))
    centre = (low + high) / 2
    around = orbit(torch.from_numpy(centre), 1.0, elevations, count, width, height, fov, up, start)
    focal = float(around.Ks[0, 0, 0])
    tangent = np.array([width, height]) / (2 * focal)
    radius = 0.0
    for viewmat in around.viewmats.double().numpy():
        local = (points - centre) @ viewmat[:3, :3].T
        needed = (np.abs(local[:, :2]) / tangent).max(1) - local[:, 2]
        radius = max(radius, _quantile(needed, mass, 0.99))
    radius = max(radius, 1e-3) * margin
    return orbit(torch.from_numpy(centre), radius, elevations, count, width, height, fov, up, start)


def read_cameras(path: str | Path) -> Cameras:
    """Cameras from a COLMAP folder (or one that holds sparse/0), a transforms.json or a cameras.json.

    A COLMAP model's cameras come in the order of their pictures' names, others in that of the file. Where pictures
    differ in size, all cameras get the size of the first one and their Ks are rescaled: each still sees exactly what
    its picture shows, stretched if the proportions differ, for a batch of views has one size. nerfstudio's
    `applied_transform` is already in the matrices and is left alone.

    Raises `InputRefused`: not there or none of these; too large; damaged; a camera that distorts (coefficients of 0 are
    no distortion), fisheyes; numbers that are missing or not finite; a matrix that does not rotate; a picture or a
    camera given twice; no camera at all.
    """
    path = Path(path)
    name = printable(path.name, 100) or "The folder"
    try:
        if path.is_dir():
            for folder in (path, path / "sparse" / "0", path / "sparse", path / "colmap" / "sparse" / "0"):
                for suffix in (".bin", ".txt"):
                    files = folder / f"cameras{suffix}", folder / f"images{suffix}"
                    if all(file.is_file() for file in files):
                        return _colmap(*files)
            for file in ("transforms.json", "transforms_train.json", "cameras.json"):
                if (path / file).is_file():
                    return _json_cameras(path / file)
            raise InputRefused(f"{name} holds no cameras: give {KINDS}.")
        if not path.is_file():
            what = "is no plain file" if path.exists() else "is not there"
            raise InputRefused(f"{name} {what}: give {KINDS}.")
        if path.suffix.lower() == ".json":
            return _json_cameras(path)
        if path.suffix.lower() in (".bin", ".txt") and path.stem in ("cameras", "images"):
            files = path.with_name(f"cameras{path.suffix}"), path.with_name(f"images{path.suffix}")
            missing = next((file.name for file in files if not file.is_file()), None)
            if missing:
                raise InputRefused(f"{name} is half of a COLMAP model: {missing} must lie beside it.")
            return _colmap(*files)
    except OSError as error:
        raise InputRefused(f"{name} cannot be read: {error.strerror}.") from None
    raise InputRefused(f"{name} is of a kind that holds no cameras: give {KINDS}.", status=415)


@dataclass(frozen=True)
class _View:
    """One camera as a file says it."""

    name: str
    rotation: np.ndarray  # [3, 3] float64, world to camera
    shift: np.ndarray  # [3]
    lens: tuple[float, float, float, float]  # fx, fy, cx, cy
    size: tuple[int, int]  # width, height


def _assemble(views: Sequence[_View], name: str) -> Cameras:
    if not views:
        raise InputRefused(f"{name} holds no camera: at least one is needed.")
    width, height = views[0].size
    viewmats, Ks = np.tile(np.eye(4), (len(views), 1, 1)), np.tile(np.eye(3), (len(views), 1, 1))
    for i, view in enumerate(views):
        viewmats[i, :3, :3], viewmats[i, :3, 3] = view.rotation, view.shift
        fx, fy, cx, cy = view.lens
        scale_x, scale_y = width / view.size[0], height / view.size[1]
        Ks[i, 0, 0], Ks[i, 1, 1], Ks[i, 0, 2], Ks[i, 1, 2] = fx * scale_x, fy * scale_y, cx * scale_x, cy * scale_y
    names = tuple(view.name for view in views)
    return Cameras(torch.from_numpy(viewmats).float(), torch.from_numpy(Ks).float(), width, height, names)


def _view(
    where: str,
    name: str,
    rotation: np.ndarray,  # [3, 3] world to camera
    shift: np.ndarray,  # [3]
    lens: Sequence[float],
    size: tuple[int, int],
) -> _View:
    """Check the numbers; a rotation that is nearly one becomes the nearest (by its singular value decomposition)."""
    numbers = np.concatenate([rotation.ravel(), shift, np.array(lens)])
    if not np.isfinite(numbers).all() or np.abs(numbers).max() > MAX_NUMBER:
        raise InputRefused(f"{where} has a number that is not finite or beyond {MAX_NUMBER:g}.")
    if not (1 <= size[0] <= MAX_SIDE and 1 <= size[1] <= MAX_SIDE):
        raise InputRefused(
            f"{where} has a picture of {printable(str(size[0]), 20)}x{printable(str(size[1]), 20)} pixels: sides of "
            f"1 to {MAX_SIDE} are allowed."
        )
    if lens[0] <= 1e-3 or lens[1] <= 1e-3:
        raise InputRefused(f"{where} has the focal lengths {lens[0]:g} and {lens[1]:g}: they must be above 0 pixels.")
    left, _, right = np.linalg.svd(rotation)
    nearest = left @ right
    if np.abs(rotation - nearest).max() > 1e-2 or np.linalg.det(nearest) < 0:
        raise InputRefused(
            f"{where} has a matrix that does not rotate: its axes must be of length 1, square, unmirrored."
        )
    return _View(name, nearest, shift, (float(lens[0]), float(lens[1]), float(lens[2]), float(lens[3])), size)


def _quantile(values: np.ndarray, mass: np.ndarray, share: float) -> float:
    """The smallest value up to which at least `share` of the mass lies."""
    order = np.argsort(values, kind="stable")
    total = np.cumsum(mass[order])
    return float(values[order[min(int(np.searchsorted(total, share * total[-1])), len(order) - 1)]])


def _level_axes(up: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(backward, right, up) of somebody who stands in front and looks at the centre, each [3] and of length 1."""
    above = np.asarray(up, dtype=np.float64)
    if above.shape != (3,) or not np.linalg.norm(above) > 1e-12:
        raise ValueError(f"up must be three numbers, not all 0; got {up}.")
    above = above / np.linalg.norm(above)
    ahead = np.array([0.0, 0.0, 1.0]) if abs(above[2]) < 0.9 else np.array([0.0, 1.0, 0.0])
    right = np.cross(ahead, above)
    right = right / np.linalg.norm(right)
    return -np.cross(above, right), right, above


# --- COLMAP ----------------------------------------------------------------------------------------------------------


def _colmap(cameras: Path, images: Path) -> Cameras:
    """A sparse model; format: colmap.github.io/format.html."""
    for file in (cameras, images):
        if file.stat().st_size > MAX_MODEL:
            raise InputRefused(f"{file.name} is larger than the limit of {MAX_MODEL // 2**30} GiB.", status=413)
    lenses: dict[int, tuple[tuple[float, float, float, float], tuple[int, int]]] = {}
    binary = cameras.suffix == ".bin"
    with cameras.open("rb") as stream:
        for number, model, size, params in _binary_lenses(stream) if binary else _text_lenses(stream):
            if number in lenses:
                raise InputRefused(f"{cameras.name} gives the camera {printable(str(number), 20)} twice.")
            if len(lenses) == MAX_CAMERAS:
                raise InputRefused(f"{cameras.name} holds more than {MAX_CAMERAS} cameras, the most that are read.")
            lenses[number] = _lens(f"The camera {printable(str(number), 20)} of {cameras.name}", model, params), size
    views: dict[str, _View] = {}
    with images.open("rb") as stream:
        for name, quaternion, shift, number in _binary_poses(stream) if binary else _text_poses(stream):
            shown = printable(name, 100)
            if name in views:
                raise InputRefused(f"{images.name} gives the picture {shown} twice.")
            if len(views) == MAX_CAMERAS:
                raise InputRefused(f"{images.name} holds more than {MAX_CAMERAS} pictures, the most that are read.")
            where = f"The picture {shown} of {images.name}"
            if number not in lenses:
                raise InputRefused(f"{where} is of the camera {printable(str(number), 20)}, which is missing.")
            lens, size = lenses[number]
            views[name] = _view(where, name, _rotation(where, quaternion), np.array(shift), lens, size)
    return _assemble([views[name] for name in sorted(views)], images.name)


def _lens(where: str, model: str, params: Sequence[float]) -> tuple[float, float, float, float]:
    _, count, distorting = _MODELS[model]
    if distorting is None:
        raise InputRefused(f"{where} is of the model {model}: {_UNDISTORT}.")
    if any(value != 0 for value in params[count - distorting :]):
        raise InputRefused(f"{where} distorts ({model}): {_UNDISTORT}.")
    if count - distorting == 3:
        f, cx, cy = params[:3]
        return f, f, cx, cy
    fx, fy, cx, cy = params[:4]
    return fx, fy, cx, cy


def _rotation(where: str, quaternion: Sequence[float]) -> np.ndarray:  # [3, 3]
    norm = math.sqrt(sum(value * value for value in quaternion)) if all(abs(q) < 1e6 for q in quaternion) else math.nan
    if not norm > 1e-6:
        raise InputRefused(f"{where} has a rotation that is 0 or not finite.")
    w, x, y, z = (value / norm for value in quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _text_lenses(stream: BinaryIO) -> Iterator[tuple[int, str, tuple[int, int], list[float]]]:
    """Lines of CAMERA_ID MODEL WIDTH HEIGHT PARAMS[]."""
    for row, line in _lines(stream, "cameras.txt"):
        if not line or line.startswith("#"):
            continue
        fields = line.split()
        model = fields[1] if len(fields) > 1 else ""
        if model not in _MODELS:
            raise InputRefused(f"Line {row} of cameras.txt has no camera model that is known: {printable(line, 60)}.")
        try:
            number, width, height, *params = int(fields[0]), int(fields[2]), int(fields[3]), *map(float, fields[4:])
        except (ValueError, IndexError):
            raise InputRefused(f"Line {row} of cameras.txt is no camera: {printable(line, 60)}.") from None
        if len(params) != _MODELS[model][1]:
            raise InputRefused(f"Line {row} of cameras.txt must have {_MODELS[model][1]} parameters for {model}.")
        yield number, model, (width, height), params


def _text_poses(stream: BinaryIO) -> Iterator[tuple[str, list[float], list[float], int]]:
    """Pairs of lines: IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, and that picture's points, which are skipped."""
    lines = _lines(stream, "images.txt")
    for row, line in lines:
        if not line or line.startswith("#"):
            continue
        fields = line.split(maxsplit=9)
        try:
            numbers, camera, name = [float(field) for field in fields[1:8]], int(fields[8]), fields[9]
        except (ValueError, IndexError):
            raise InputRefused(f"Line {row} of images.txt is no picture's pose: {printable(line, 60)}.") from None
        yield name, numbers[:4], numbers[4:], camera
        next(lines, None)


def _lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line, of which only the first 4 KiB are kept: a line of points may be megabytes."""
    row = 0
    while data := stream.readline(4096):
        row += 1
        kept = data
        while not data.endswith(b"\n") and (data := stream.readline(65536)):
            pass
        try:
            yield row, kept.decode("utf-8", "strict" if len(kept) < 4096 else "ignore").strip()
        except UnicodeDecodeError:
            raise InputRefused(f"Line {row} of {name} is no UTF-8 text.") from None


def _binary_lenses(stream: BinaryIO) -> Iterator[tuple[int, str, tuple[int, int], list[float]]]:
    names = {number: name for name, (number, _, _) in _MODELS.items()}
    for _ in range(_count(stream, "cameras.bin", least=48)):
        number, model, width, height = struct.unpack("<IiQQ", _take(stream, 24, "cameras.bin"))
        if model not in names:
            raise InputRefused(f"The camera {number} of cameras.bin is of a model ({model}) that is not known.")
        count = _MODELS[names[model]][1]
        params = struct.unpack(f"<{count}d", _take(stream, 8 * count, "cameras.bin"))
        yield number, names[model], (width, height), list(params)


def _binary_poses(stream: BinaryIO) -> Iterator[tuple[str, list[float], list[float], int]]:
    size = os.fstat(stream.fileno()).st_size
    for _ in range(_count(stream, "images.bin", least=73)):
        _, *numbers, camera = struct.unpack("<I7dI", _take(stream, 64, "images.bin"))
        start = stream.tell()
        name, zero, _ = stream.read(MAX_NAME + 1).partition(b"\0")
        if not zero:
            raise InputRefused(f"images.bin is damaged: a picture's name does not end within {MAX_NAME} bytes.")
        stream.seek(start + len(name) + 1)
        (points,) = struct.unpack("<Q", _take(stream, 8, "images.bin"))
        if points * 24 > size - stream.tell():
            raise InputRefused("images.bin is cut short or damaged.")
        stream.seek(points * 24, os.SEEK_CUR)
        try:
            yield name.decode(), numbers[:4], numbers[4:], camera
        except UnicodeDecodeError:
            raise InputRefused("images.bin has a picture's name that is no UTF-8 text.") from None


def _count(stream: BinaryIO, name: str, least: int) -> int:
    """The number of entries, held to what the file can hold at `least` bytes each."""
    (count,) = struct.unpack("<Q", _take(stream, 8, name))
    if count * least > os.fstat(stream.fileno()).st_size - 8:
        raise InputRefused(f"{name} is cut short or damaged: it has no room for the {count} entries that it announces.")
    return count


def _take(stream: BinaryIO, count: int, name: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise InputRefused(f"{name} is cut short or damaged.")
    return data


# --- transforms.json and cameras.json --------------------------------------------------------------------------------


def _json_cameras(path: Path) -> Cameras:
    name = printable(path.name, 100)
    with path.open("rb") as stream:
        data = stream.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise InputRefused(f"{name} is larger than the limit of {MAX_JSON // 2**20} MiB.", status=413)
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        raise InputRefused(f"{name} is no JSON: give {KINDS}.") from None
    rows = content.get("frames") if isinstance(content, dict) else content
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputRefused(f"{name} is neither a transforms.json (with frames) nor a cameras.json (a list of cameras).")
    if len(rows) > MAX_CAMERAS:
        raise InputRefused(f"{name} holds more than {MAX_CAMERAS} cameras, the most that are read.")
    if isinstance(content, dict):
        return _assemble(_transforms(content, rows, path, name), name)
    return _assemble(_inria(rows, name), name)


_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_KEYS = ("file_path", "transform_matrix", "camera_model", "is_fisheye", "w", "h", "fl_x", "fl_y", "cx", "cy")
_KEYS += ("camera_angle_x", "camera_angle_y", *_DISTORTION)


def _transforms(content: Mapping[str, Any], frames: Sequence[Mapping[str, Any]], path: Path, name: str) -> list[_View]:
    """NeRF, instant-ngp, nerfstudio: what a frame does not say itself, the file says for all.

    The focal lengths are fl_x and fl_y, or 0.5 w / tan(camera_angle_x / 2) and the same with h and y; one of two
    stands for both. The principal point is cx, cy, or the middle.
    """
    views: list[_View] = []
    names: set[str] = set()
    picture: tuple[int, int] | None = None
    for index, frame_ in enumerate(frames):
        said = {key: source[key] for key in _KEYS for source in (content, frame_) if key in source}
        where = f"Frame {index} of {name}"
        file = said.get("file_path", f"frame {index}")
        if not isinstance(file, str) or len(file) > MAX_NAME:
            raise InputRefused(f"{where} has a file_path that is no text of at most {MAX_NAME} characters.")
        if file in names:
            raise InputRefused(f"{where} gives the picture {printable(file, 100)} a second time.")
        names.add(file)
        model = said.get("camera_model", "PINHOLE")
        if said.get("is_fisheye") or not (isinstance(model, str) and _MODELS.get(model, (0, 0, None))[2] is not None):
            raise InputRefused(f"{where} is no pinhole camera or of a model that is not known: {_UNDISTORT}.")
        if any(_number(where, said, key) for key in _DISTORTION if key in said):
            raise InputRefused(f"{where} distorts: {_UNDISTORT}.")
        if "w" in said and "h" in said:
            width, height = _side(where, said, "w"), _side(where, said, "h")
        else:  # NeRF's synthetic scenes leave it to the pictures
            picture = picture or _picture_size(path.parent, file)
            if picture is None:
                raise InputRefused(f"{where} has no w and h, and its picture is not beside {name}: add both in pixels.")
            width, height = picture
        focal = {}
        for axis, side in (("x", width), ("y", height)):
            if f"fl_{axis}" in said:
                focal[axis] = _number(where, said, f"fl_{axis}")
            elif f"camera_angle_{axis}" in said:
                angle = _number(where, said, f"camera_angle_{axis}")
                if not 0 < angle < math.pi:
                    raise InputRefused(f"{where} has a camera_angle_{axis} of {angle:g}: 0 to pi radians are allowed.")
                focal[axis] = 0.5 * side / math.tan(angle / 2)
        if not focal:
            raise InputRefused(f"{where} has no focal length: fl_x or camera_angle_x is needed.")
        fx, fy = focal.get("x", focal.get("y", 0.0)), focal.get("y", focal.get("x", 0.0))
        cx = _number(where, said, "cx") if "cx" in said else width / 2
        cy = _number(where, said, "cy") if "cy" in said else height / 2
        to_world = _matrix(where, said, "transform_matrix", ((3, 4), (4, 4)))
        if len(to_world) == 4 and np.abs(to_world[3] - (0, 0, 0, 1)).max() > 1e-6:
            raise InputRefused(f"{where} has a transform_matrix whose last row is not 0 0 0 1.")
        rotation = (to_world[:3, :3] * (1, -1, -1)).T  # OpenGL's y and z axes point the other way
        views.append(_view(where, file, rotation, -rotation @ to_world[:3, 3], (fx, fy, cx, cy), (width, height)))
    return views


def _inria(rows: Sequence[Mapping[str, Any]], name: str) -> list[_View]:
    """INRIA's trainer (graphdeco-inria/gaussian-splatting, camera_to_JSON): `rotation` is camera to world."""
    views: list[_View] = []
    numbers: set[int] = set()
    for index, row in enumerate(rows):
        where = f"Camera {index} of {name}"
        number, picture = row.get("id", index), row.get("img_name", f"camera {index}")
        if not isinstance(number, int) or not isinstance(picture, str) or len(picture) > MAX_NAME:
            raise InputRefused(f"{where} has an id that is no whole number or an img_name that is no short text.")
        if number in numbers:
            raise InputRefused(f"{where} has the id {printable(str(number), 20)}, which another one has already.")
        numbers.add(number)
        width, height = _side(where, row, "width"), _side(where, row, "height")
        rotation = _matrix(where, row, "rotation", ((3, 3),)).T
        position = _matrix(where, row, "position", ((3,),))
        lens = (_number(where, row, "fx"), _number(where, row, "fy"), width / 2, height / 2)
        views.append(_view(where, picture, rotation, -rotation @ position, lens, (width, height)))
    return views


def _number(where: str, said: Mapping[str, Any], key: str) -> float:
    value = said.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MAX_NUMBER:
        raise InputRefused(f"{where} must have a {key} that is a number of at most {MAX_NUMBER:g}.")
    return float(value)


def _side(where: str, said: Mapping[str, Any], key: str) -> int:
    value = _number(where, said, key)
    if value != round(value) or not 1 <= value <= MAX_SIDE:
        raise InputRefused(f"{where} must have a {key} of 1 to {MAX_SIDE} whole pixels; it is {value:g}.")
    return int(value)


def _matrix(where: str, said: Mapping[str, Any], key: str, shapes: tuple[tuple[int, ...], ...]) -> np.ndarray:
    value = said.get(key)
    for shape in shapes:
        if isinstance(value, list) and len(value) == shape[0]:
            rows = value if len(shape) == 2 else [value]
            if all(isinstance(row, list) and len(row) == shape[-1] for row in rows):
                numbers = [number for row in rows for number in row]
                if all(isinstance(n, (int, float)) and abs(n) <= MAX_NUMBER for n in numbers):
                    return np.array(value, dtype=np.float64)
    wanted = " or ".join("x".join(map(str, shape)) for shape in shapes)
    raise InputRefused(f"{where} must have a {key} of {wanted} finite numbers.")


def _picture_size(folder: Path, file: str) -> tuple[int, int] | None:
    """Width and height in the header of a picture inside `folder`; None if there is none. No pixel is decoded."""
    from PIL import Image

    parts = PurePosixPath(file.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in file or "\0" in file:
        return None
    for name in (file, f"{file}.png", f"{file}.jpg"):
        candidate = folder / name
        try:
            inside = candidate.is_file() and candidate.resolve().is_relative_to(folder.resolve())
            if inside:
                with Image.open(candidate, formats=["PNG", "JPEG", "WEBP"]) as image:
                    return image.size
        except Exception:  # a damaged picture: Pillow raises many kinds of error; the sentence above says what to do
            return None
    return None
