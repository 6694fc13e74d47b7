"""New Gaussians: where the attention of several views asks for something that is not there yet, and where something
was taken away."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.camera import Cameras
from sdsedit.representations.splats import Scene

_Y0 = 0.28209479177387814  # 1 / (2 sqrt(pi)), the constant spherical harmonic
_SIDE = 56  # cells a side of the grid that is carved


def project(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor]:  # [M, 3] -> [V, M, 2] pixels, [V, M] depth
    """u = K (R p + t) / z."""
    there = points @ cameras.viewmats[:, :3, :3].transpose(1, 2) + cameras.viewmats[:, None, :3, 3]
    depth = there[..., 2]
    image = there @ cameras.Ks.transpose(1, 2)
    return image[..., :2] / depth.clamp(min=1e-6)[..., None], depth


def sampled(maps: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:  # [V, C, H, W], [V, M, 2] -> [V, M, C], [V, M] bool
    """The maps at pixels `where`, bilinear, and which of them are in the picture."""
    height, width = maps.shape[-2:]
    grid = where / where.new_tensor([width, height]) * 2 - 1
    inside = (grid.abs() <= 1).all(-1)
    values = F.grid_sample(maps, grid[:, None], align_corners=False, padding_mode="border")
    return values[:, :, 0].transpose(1, 2), inside


def hull(
    maps: Tensor,  # [V, 1, H, W] in 0..1, where each view asks for something
    cameras: Cameras,
    depth: Tensor,  # [V, H, W] mean depth of what stands there; inf where nothing does
    centre: Tensor,  # [3]
    radius: float,  # world units: of the box that is carved
    level: float = 0.35,  # of a map: asked for or not
    agree: float = 0.85,  # share of the views that must ask
) -> tuple[Tensor, float]:  # [M, 3] middles of the cells, and their side in world units
    """Space carving (Kutulakos and Seitz, IJCV 2000) on soft maps: a cell of the grid stays if `agree` of the views
    that have it in their picture ask for it, and if at least a seventh of them see it, that is, it is in front of what
    stands there."""
    steps = (torch.arange(_SIDE, device=centre.device) + 0.5) / _SIDE * 2 - 1
    points = centre + radius * torch.cartesian_prod(steps, steps, steps)
    where, z = project(points, cameras)
    asked, inside = sampled(maps, where)
    stands, _ = sampled(depth[:, None].clamp(max=1e6), where)
    inside = inside & (z > 0)
    views = inside.sum(0).clamp(min=1)
    says = ((asked[..., 0] >= level) & inside).sum(0) / views
    cell = 2 * radius / _SIDE
    sees = ((z <= stands[..., 0] + cell) & inside).sum(0) / views
    keep = (says >= agree) & (sees >= 1 / 7) & (inside.sum(0) >= max(2, len(maps) // 3))
    return points[keep], cell


def seeds(
    points: Tensor,  # [M, 3] cells
    cell: float,
    count: int,
    coefficients: int,  # K of the scene's spherical harmonics
    generator: torch.Generator,
    opacity: float = 0.1,
) -> Scene:
    """`count` round Gaussians spread over the cells, grey and nearly clear."""
    rows = (
        torch.arange(count) * len(points) // count
        if count >= len(points)
        else torch.randperm(len(points), generator=generator)[:count]
    )
    jitter = cell * (torch.rand(count, 3, generator=generator) - 0.5)
    means = points[rows.to(points.device)] + jitter.to(points.device)
    fill = (len(points) * cell**3 / count) ** (1 / 3)  # the side of a cube that each has for itself
    quats = torch.zeros(count, 4).to(means)
    quats[:, 0] = 1
    return Scene(
        means,
        quats,
        torch.full((count, 3), math.log(max(0.5 * fill, 1e-9))).to(means),
        torch.full((count,), math.log(opacity / (1 - opacity))).to(means),
        torch.zeros(count, coefficients, 3).to(means),
    )


def coloured(scene: Scene, views: Tensor, cameras: Cameras, depth: Tensor | None = None) -> Scene:
    """The Gaussians in the mean colour of the pixels [V, 3, H, W] that they fall on, where nothing hides them."""
    where, z = project(scene.means, cameras)
    colours, inside = sampled(views, where)
    shown = inside & (z > 0)
    if depth is not None:
        shown &= z <= sampled(depth[:, None].clamp(max=1e6), where)[0][..., 0] * 1.01
    weight = shown.float()[..., None]
    mean = (weight * colours).sum(0) / weight.sum(0).clamp(min=1)
    mean = torch.where(weight.sum(0) > 0, mean, colours.mean(0))
    sh = scene.sh.clone()
    sh[:, 0], sh[:, 1:] = (mean - 0.5) / _Y0, 0
    return Scene(scene.means, scene.quats, scene.log_scales, scene.logits, sh)


def fill(
    kept: Scene,
    gone: Scene,
    generator: torch.Generator,
    reach: float = 0.12,  # of the removed part's size: how far from it its neighbours lie
) -> tuple[Scene, Tensor]:  # the new Gaussians, and [N] bool: the neighbours they are copies of
    """Close the hole under something that was taken away, with copies of what lies around it.

    What touched it (kept Gaussians within `reach` of removed ones) gives a plane, by its principal axes. Its footprint
    is where removed Gaussians near the plane fall on it and few kept ones do; every cell of the footprint gets a copy
    of a neighbour, moved within the plane, so that colour, grain and flatness are the surroundings'.
    """
    from scipy.spatial import cKDTree

    size = float((gone.means - gone.means.median(0).values).norm(dim=1).quantile(0.9))
    reach = max(reach * size, 3 * _spacing(kept.means))  # a sparse floor is near too
    away, _ = cKDTree(gone.means.cpu().numpy()).query(kept.means.cpu().numpy(), distance_upper_bound=reach)
    solid = kept.logits > 0  # opacity above one half
    touching = torch.from_numpy(away < reach).to(kept.means.device) & solid
    none = Scene(*(getattr(kept, name)[:0] for name in ("means", "quats", "log_scales", "logits", "sh")))
    if int(touching.sum()) < 12:
        return none, torch.zeros_like(touching)
    ring = kept.means[touching]
    middle = ring.median(0).values
    axes = torch.linalg.svd(ring - middle, full_matrices=False).Vh  # rows: along, along, across
    across = axes[2]
    thickness = max(float(((ring - middle) @ across).abs().quantile(0.8)), 1e-6)
    flat = axes[:2]

    def on_plane(means: Tensor) -> Tensor:
        return (means - middle) @ flat.T

    near = ((kept.means - middle) @ across).abs() <= 3 * thickness
    span = on_plane(ring)
    low, high = span.min(0).values, span.max(0).values
    around = near & solid & ((on_plane(kept.means) >= low) & (on_plane(kept.means) <= high)).all(1)
    donors = around.nonzero()[:, 0]
    if len(donors) < 12:
        return none, torch.zeros_like(touching)
    gap = _spacing(on_plane(kept.means[donors]))
    count = ((high - low) / gap).ceil().long().clamp(min=1, max=400)
    cells = torch.cartesian_prod(*(torch.arange(int(n), device=low.device) for n in count)).view(-1, 2)
    places = low + (cells + 0.5) * gap
    taken, _ = cKDTree(on_plane(kept.means[donors]).cpu().numpy()).query(places.cpu().numpy(), k=1)
    under, _ = cKDTree(on_plane(gone.means).cpu().numpy()).query(places.cpu().numpy(), k=1)
    empty = torch.from_numpy((taken > 0.9 * gap) & (under < 4 * gap)).to(low.device)
    places = places[empty]
    if not len(places):
        return none, torch.zeros_like(touching)
    _, nearest = cKDTree(on_plane(kept.means[donors]).cpu().numpy()).query(places.cpu().numpy(), k=min(24, len(donors)))
    nearest = torch.from_numpy(nearest).reshape(len(places), -1)
    pick = torch.randint(nearest.shape[1], (len(places), 1), generator=generator)
    source = donors[nearest.gather(1, pick)[:, 0].to(donors.device)]
    copies = kept[source]
    offset = (copies.means - middle) @ across
    means = middle + places @ flat + offset[:, None] * across
    ring_rows = torch.zeros_like(touching)
    ring_rows[donors] = True
    return Scene(means, copies.quats, copies.log_scales, copies.logits, copies.sh), ring_rows


def _spacing(points: Tensor) -> float:  # [M, D] -> the usual distance to the nearest other
    from scipy.spatial import cKDTree

    near, _ = cKDTree(points.cpu().numpy()).query(points.cpu().numpy(), k=2)
    return max(float(torch.from_numpy(near[:, 1]).median()), 1e-6)
