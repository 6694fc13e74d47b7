"""What a scene holds, in numbers, and whether cameras belong to it: what can be told before a model is loaded."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdsedit.camera import Cameras
from sdsedit.errors import InputRefused, printable
from sdsedit.io.splats import Splats

DIRECTIONS: dict[str, tuple[float, float, float]] = {
    "x": (1.0, 0.0, 0.0), "-x": (-1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "-y": (0.0, -1.0, 0.0),
    "z": (0.0, 0.0, 1.0), "-z": (0.0, 0.0, -1.0),
}  # fmt: skip
MIN_CAMERAS = 4  # every fourth is only measured with
SEEN = 1e-3  # share of a scene's opacity that lies in a camera's picture; less is nothing
_SAMPLE = 50_000  # Gaussians that cameras are tried on
_LOW = 0.15  # of a scene's height: there a ground lies
_GROUND = 0.15  # share of a scene's surface that makes a ground
_CLEAR = 0.05  # opacity below which a Gaussian is hardly seen


@dataclass(frozen=True)
class Survey:
    """A scene in numbers. Lengths are world units, quantiles are those of 1, 50 and 99 %."""

    kind: str  # of the file
    bytes: int  # of the file
    memory: int  # bytes of its arrays
    count: int
    degree: int  # of the SH
    low: tuple[float, ...]  # corners of the box round all means
    high: tuple[float, ...]
    core_low: tuple[float, ...]  # the box without the farthest 1 % of the opacity at each side
    core_high: tuple[float, ...]
    opacity: tuple[float, ...]  # quantiles
    clear: float  # share of Gaussians below an opacity of 0.05
    scale: tuple[float, ...]  # quantiles of all axes
    widest: float  # the largest scale of all
    extra: dict[str, str]  # properties beyond those of every scene, and their types
    comments: tuple[str, ...]
    up: str  # a name of DIRECTIONS
    up_because: str


def survey(splats: Splats, path: Path) -> Survey:
    """Describe a scene that was read from `path`."""
    opacity = _opacities(splats)
    scales = np.exp(splats.log_scales.astype(np.float64))
    core = np.array([_quantiles(axis, opacity, (0.01, 0.99)) for axis in splats.means.T])
    columns = [splats.means, splats.quats, splats.log_scales, splats.logits, splats.sh, *splats.extra.values()]
    up, because = suggested_up(splats)
    return Survey(
        kind=_kind(path),
        bytes=path.stat().st_size,
        memory=sum(column.nbytes for column in columns),
        count=len(splats),
        degree=math.isqrt(splats.sh.shape[1]) - 1,
        low=_numbers(splats.means.min(0)),
        high=_numbers(splats.means.max(0)),
        core_low=_numbers(core[:, 0]),
        core_high=_numbers(core[:, 1]),
        opacity=_numbers(np.quantile(opacity, (0.01, 0.5, 0.99))),
        clear=float((opacity < _CLEAR).mean()),
        scale=_numbers(np.quantile(scales, (0.01, 0.5, 0.99))),
        widest=float(scales.max()),
        extra={name: str(column.dtype) for name, column in splats.extra.items()},
        comments=splats.comments,
        up=up,
        up_because=because,
    )


def suggested_up(splats: Splats) -> tuple[str, str]:
    """(a name of DIRECTIONS, why): what a comment of the file says, else away from the ground, else -y.

    A ground is flat Gaussians that lie level at one end of the scene: for each of the six directions, the share that
    those with their thin axis along it, in the lowest 15 % of the scene, have of the whole surface (opacity times the
    two larger scales). The best one is taken if it is ground enough, and twice as much so as what is opposite.
    """
    for comment in splats.comments:
        said = re.search(r"\bup is ([+-]?)([xyz])\b", comment)
        if said:
            return said[1].replace("+", "") + said[2], "as a comment in the file says"
    opacity, scales = _opacities(splats), np.exp(splats.log_scales.astype(np.float64))
    ordered = np.sort(scales, axis=1)
    area = opacity * ordered[:, 1] * ordered[:, 2]
    thin = _axes(splats.quats, scales.argmin(1))
    flat = ordered[:, 0] < 0.5 * ordered[:, 1]
    found: dict[str, float] = {}
    for name, direction in DIRECTIONS.items():
        height = splats.means.astype(np.float64) @ np.array(direction)
        low, high = _quantiles(height, opacity, (0.01, 0.99))
        level = flat & (np.abs(thin @ np.array(direction)) > 0.8) & (height < low + _LOW * (high - low))
        found[name] = float(area[level].sum() / max(area.sum(), 1e-300))
    best = max(found, key=lambda name: found[name])
    opposite = best[1:] if best.startswith("-") else f"-{best}"
    if found[best] >= _GROUND and found[best] >= 2 * found[opposite]:
        return best, "away from the flat ground"
    return "-y", "the usual one: the scene has no clear ground"


def check_cameras(splats: Splats, cameras: Cameras) -> None:
    """InputRefused: fewer than MIN_CAMERAS cameras, or fewer than that see anything of the scene."""
    if len(cameras) < MIN_CAMERAS:
        raise InputRefused(
            f"There {'is 1 camera' if len(cameras) == 1 else f'are {len(cameras)} cameras'}: at least {MIN_CAMERAS} "
            "are needed, for every fourth is only measured with."
        )
    seeing = int((seen(splats, cameras) >= SEEN).sum())
    if seeing < MIN_CAMERAS:
        what = "The cameras see nothing of the scene" if not seeing else f"Only {seeing} of the cameras see the scene"
        raise InputRefused(f"{what}: they are of another scene, or in other axes or units.")


def seen(splats: Splats, cameras: Cameras) -> np.ndarray:  # [V] in 0..1
    """The share of the scene's opacity whose Gaussians have their middle in each camera's picture."""
    step = -(-len(splats) // _SAMPLE)
    means, opacity = splats.means[::step].astype(np.float64), _opacities(splats)[::step]
    found = []
    for viewmat, K in zip(cameras.viewmats.double().cpu().numpy(), cameras.Ks.double().cpu().numpy(), strict=True):
        x, y, z = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).T
        depth = np.where(z > 0.01, z, np.inf)
        u, v = K[0, 0] * x / depth + K[0, 2], K[1, 1] * y / depth + K[1, 2]
        inside = (z > 0.01) & (u >= 0) & (u < cameras.width) & (v >= 0) & (v < cameras.height)
        found.append(opacity[inside].sum() / max(opacity.sum(), 1e-300))
    return np.array(found)


def spread(cameras: Cameras, count: int) -> Cameras:
    """At most `count` of the cameras, at even distances in their order."""
    if len(cameras) <= count:
        return cameras
    return cameras[[k * len(cameras) // count for k in range(count)]]


def _kind(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(2**16)
    if start[:3] != b"ply":
        return "SPZ"
    return "compressed PLY" if b"\nelement chunk " in start else "PLY"


def _opacities(splats: Splats) -> np.ndarray:  # [N] in 0..1
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-splats.logits.astype(np.float64)))


def _axes(quats: np.ndarray, which: np.ndarray) -> np.ndarray:  # [N, 4] wxyz, [N] -> [N, 3]
    """Column `which` of each rotation: where in the world that axis of the Gaussian points."""
    w, x, y, z = (quats / np.linalg.norm(quats.astype(np.float64), axis=1, keepdims=True)).T
    columns = np.stack(
        [
            np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], 1),
            np.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], 1),
            np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], 1),
        ]
    )
    return columns[which, np.arange(len(which))]


def _quantiles(values: np.ndarray, weights: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    order = np.argsort(values, kind="stable")
    total = np.cumsum(weights[order])
    rows = np.minimum(np.searchsorted(total, np.array(shares) * total[-1]), len(order) - 1)
    return [float(value) for value in values[order[rows]]]


def _numbers(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def lines(found: Survey, name: str) -> list[str]:
    """A survey as a person reads it; `name` is the file's."""

    def box(low: tuple[float, ...], high: tuple[float, ...]) -> str:
        return ", ".join(f"{axis} {a:.4g} to {b:.4g}" for axis, a, b in zip("xyz", low, high, strict=True))

    extra = ", ".join(f"{printable(key, 60)} ({kind})" for key, kind in found.extra.items()) or "none"
    return [
        f"File: {name}, {found.kind}, {found.bytes / 1e6:.1f} MB",
        f"Gaussians: {found.count}, SH of degree {found.degree}, {found.memory / 1e6:.1f} MB in memory",
        f"Extent: {box(found.low, found.high)}",
        f"Without the farthest 1 %: {box(found.core_low, found.core_high)}",
        f"Opacity: median {found.opacity[1]:.2f}, 1 % to 99 % are {found.opacity[0]:.2f} to {found.opacity[2]:.2f}, "
        f"{100 * found.clear:.1f} % hardly show",
        f"Scale: median {found.scale[1]:.3g}, 1 % to 99 % are {found.scale[0]:.3g} to {found.scale[2]:.3g}, the "
        f"largest {found.widest:.3g}",
        f"Extra properties: {extra}",
        *(f"Comment: {printable(comment, 300)}" for comment in found.comments),
        f"Up: {found.up}, {found.up_because}",
    ]
