"""Fit the two scenes of Gaussian splats that are shipped, assets/splats/*.ply, from pictures of solids.

    python -m training.splat_scenes                  # both, about five minutes each on one core
    python -m training.splat_scenes --scene snowman --steps 300

The worlds are those of training.solids, drawn from all round without their backdrop.  Points of the surfaces, taken
from the pictures' depth, are the start; sdsedit.splats.fit does the rest.  Each Gaussian is labelled with the part of
the world whose surface is nearest (the vertex property `part`), so that tests know what an edit should have found.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sdsedit.camera import Cameras, orbit
from sdsedit.io.splats import Splats, write
from sdsedit.metrics import psnr
from sdsedit.representations.splats import Scene
from sdsedit.splats.fit import Y0, FitConfig, fit

from . import solids
from .solids import Thing, World

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "splats"
BLACK = ((0, 0, 0), (0, 0, 0))
WORLDS = {
    "still-life": World(
        (
            Thing("apple", x=-0.52, z=-0.28, turn=0.5),
            Thing("pear", x=0.52, z=-0.20, turn=2.2),
            Thing("cup", x=0.02, z=0.44, turn=0.2),
        ),
        ground="table",
        radius=1.12,
        backdrop=BLACK,
        seed=4,
    ),
    "snowman": World(
        (Thing("snowman", worn="top hat", x=-0.28, z=0.0, turn=-0.2), Thing("balloon", x=0.48, z=0.14)),
        ground="snow",
        radius=0.92,
        backdrop=BLACK,
        seed=7,
    ),
}
SIZE = 256  # pixels, side of a view
DISTANCE = 3.3  # world units, from the middle of the things to the cameras
# Sides of the pictures that views are windows of, pixels. On the screen a splat is never less than about a pixel wide
# (the renderer's blur), so a scene is fat in smaller pictures than it was fitted to and a little soft in larger ones.
SIZES = (288, 384, 448)
FLAT = 0.12  # a Gaussian of the start is so thin, as a share of its width


@dataclass(frozen=True)
class Views:
    cameras: Cameras
    pictures: torch.Tensor  # [V, H, W, 3] in 0..1, over black
    alpha: torch.Tensor  # [V, H, W] in 0..1
    depth: torch.Tensor  # [V, H, W] of the pixels' middles, inf beyond the things


def look(
    world: World,
    count: int,
    size: int,
    start: float = 0.0,  # degrees, of the first view's azimuth
    sizes: tuple[int, ...] = (),  # of whole pictures, pixels: views are windows of them, in turn; empty: of `size`
    supersample: int = 3,
) -> Views:
    """Pictures from all round and from -5 to 70 degrees up.

    The elevations go through their range by the golden ratio, so that neighbours in azimuth differ in elevation; so do
    the places of windows that are smaller than the whole picture, and whole pictures that are smaller lie in the middle
    of their window."""
    turns = np.arange(count)[:, None] * np.array([0.6180340, 0.7548777, 0.5698403]) % 1
    elevations = (-5 + 75 * turns[:, 0] ** 1.3).tolist()  # more of them low, as people look
    cameras = orbit((0.0, -0.38, 0.0), DISTANCE, elevations, count, size, size, fov=42.0, start=start)
    Ks = cameras.Ks.clone()
    for k, whole in enumerate(sizes[k % len(sizes)] for k in range(count) if sizes):
        Ks[k, :2, :2] *= whole / size
        Ks[k, :2, 2] = size / 2 + torch.from_numpy(max(whole - size, 0) * (0.5 - turns[k, 1:]))
    cameras = Cameras(cameras.viewmats, Ks, size, size)
    pictures, alpha, depth = [], [], []
    for viewmat, K in zip(cameras.viewmats.numpy(), cameras.Ks.numpy(), strict=True):
        drawn = solids.render(world, viewmat, K, size, size, supersample)
        pictures.append(drawn.image)
        alpha.append(drawn.parts.sum(-1))
        depth.append(solids.render(world, viewmat, K, size, size, supersample=1).depth)
    return Views(
        cameras,
        torch.from_numpy(np.stack(pictures)).float() / 255,
        torch.from_numpy(np.stack(alpha)).clamp(0, 1),
        torch.from_numpy(np.stack(depth)),
    )


def surface(world: World, views: Views, count: int, rng: np.random.Generator) -> Splats:
    """About `count` flat Gaussians that lie on what the views see: one pixel's point for each cell of a grid, its
    colour the pixel's.  The ground's cells are half as wide again."""
    points, colours = [], []
    size = views.cameras.width
    v, u = np.mgrid[:size, :size] + 0.5
    for k in range(len(views.cameras)):
        viewmat, K = views.cameras.viewmats[k].double().numpy(), views.cameras.Ks[k].double().numpy()
        z = views.depth[k].double().numpy()
        inside = np.isfinite(z) & (views.alpha[k].numpy() == 1)
        z = z[inside]
        seen = np.stack([(u[inside] - K[0, 2]) / K[0, 0] * z, (v[inside] - K[1, 2]) / K[1, 1] * z, z], 1)
        points.append((seen - viewmat[:3, 3]) @ viewmat[:3, :3])
        colours.append(views.pictures[k].numpy()[inside])
    order = rng.permutation(sum(map(len, points)))
    place, rgb = np.concatenate(points)[order], np.concatenate(colours)[order]
    coarse = np.where(solids.nearest_part(world, place)[0] == 0, 1.5, 1.0)
    low, high = 0.002, 0.5
    for _ in range(18):  # the cell that leaves so many
        cell = math.sqrt(low * high)
        cells = np.floor(place / (cell * coarse)[:, None]).astype(np.int64) + (1 << 18)
        _, first = np.unique(cells @ (1, 1 << 20, 1 << 40) + (coarse > 1) * (1 << 62), return_index=True)
        low, high = (cell, high) if len(first) > count else (low, cell)
    place, rgb = place[first], rgb[first]
    normal = _normals(world, place)
    half = np.log(0.5 * cell * coarse[first]).astype(np.float32)  # a cell holds one point: spacing is about a cell
    return Splats(
        means=place.astype(np.float32),
        quats=_towards(normal),
        log_scales=np.stack([half, half, half + math.log(FLAT)], 1),
        logits=np.full(len(place), 2.0, np.float32),
        sh=((rgb.astype(np.float32) - 0.5) / Y0)[:, None],
        extra={},
    )


def _normals(world: World, points: np.ndarray) -> np.ndarray:  # [N, 3] -> [N, 3]
    def distance(shift: tuple[float, float, float]) -> np.ndarray:
        return solids.nearest_part(world, points + 0.004 * np.array(shift))[1]

    corners = ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1))
    normal = sum(distance(c)[:, None] * np.array(c) for c in corners)
    return normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)


def _towards(normal: np.ndarray) -> np.ndarray:  # [N, 3] -> [N, 4] wxyz
    """The shortest turn that brings the z axis to the normal: (1 + n_z, z x n), of length 1."""
    quats = np.stack([1 + normal[:, 2], -normal[:, 1], normal[:, 0], np.zeros(len(normal))], 1)
    quats[normal[:, 2] < -0.9999] = (0, 1, 0, 0)
    return (quats / np.linalg.norm(quats, axis=1, keepdims=True)).astype(np.float32)


def labelled(name: str, splats: Splats) -> Splats:
    """With the part of each Gaussian, and their names in the comments."""
    world = WORLDS[name]
    part, _ = solids.nearest_part(world, splats.means)
    comments = (
        f"{name}: fitted to drawn solids by training/splat_scenes.py of sdsedit, Apache-2.0",
        "up is -y",
        "part " + ", ".join(f"{k} {part_name}" for k, part_name in enumerate(solids.parts(world))),
    )
    return Splats(
        splats.means,
        splats.quats,
        splats.log_scales,
        splats.logits,
        splats.sh,
        {"part": part.astype(np.uint8)},
        comments,
    )


def measure(splats: Splats, views: Views) -> dict[str, float]:
    """PSNR where the world is (over black), mean and worst view, and how much shows where it is not."""
    scene = Scene.of(splats)
    inside, outside = [], []
    for k in range(len(views.cameras)):
        with torch.no_grad():
            seen = scene.render(views.cameras[k])
        off = views.alpha[k] == 0
        image, truth = (x.permute(2, 0, 1)[None] for x in (seen.image[0].clamp(0, 1), views.pictures[k]))
        inside.append(float(psnr(image, truth, off[None, None].float())))
        outside.append(float(seen.alpha[0][off].mean()))
    return {"psnr": float(np.mean(inside)), "worst": min(inside), "outside": float(np.mean(outside))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=list(WORLDS), nargs="*", default=list(WORLDS))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--views", type=int, default=240)
    parser.add_argument("--start", type=int, default=15000, help="Gaussians to start from")
    parser.add_argument("--most", type=int, default=30000, help="Gaussians in the end")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.scene:
        began = time.perf_counter()
        world = WORLDS[name]
        views = look(world, args.views, SIZE, sizes=SIZES)
        held_out = {size: look(world, 12, size, start=4.3) for size in (128, 320)}
        start = surface(world, views, args.start, np.random.default_rng(0))
        print(f"{name}: {args.views} views, {len(start.means)} points", flush=True)
        config = FitConfig(
            steps=args.steps, alpha=0.5, means=4e-5, means_last=4e-7, most=args.most, densify_from=300,
            densify_until=0.6, push=4e-4, large=0.004, largest=0.02, reset_every=0, least_opacity=0.02,
        )  # fmt: skip

        def report(done: int, steps: int, loss: float, count: int, began: float = began) -> None:
            if done % 250 == 0:
                print(f"  {done}/{steps} {loss:.4f} {count} {time.perf_counter() - began:.0f} s", flush=True)

        fitted = fit(views.pictures, views.cameras, config, report, start, views.alpha) if args.steps else start
        path = args.folder / f"{name}.ply"
        write(path, labelled(name, fitted))
        print(f"{path.name}: {len(fitted.means)} Gaussians, {path.stat().st_size} bytes")
        for size, unseen in held_out.items():
            print(f"  {size} pixels, 12 held-out views: {measure(fitted, unseen)}", flush=True)


if __name__ == "__main__":
    main()
