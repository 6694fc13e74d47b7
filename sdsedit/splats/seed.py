"""New Gaussians: where the attention of several views asks for something that is not there yet, and where something
was taken away."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.camera import Cameras
from sdsedit.representations.splats import Scene

_Y0 = 0.28209479177387814  # 1 / (2 sqrt(pi)), the constant spherical harmonic
_ONE_COLOUR = 0.2  # rgb distance between neighbours of one colour
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
    that see it ask for it. A view sees a cell that is in its picture and in front of what stands there; a third of the
    views, and two, must."""
    steps = (torch.arange(_SIDE, device=centre.device) + 0.5) / _SIDE * 2 - 1
    points = centre + radius * torch.cartesian_prod(steps, steps, steps)
    where, z = project(points, cameras)
    asked, inside = sampled(maps, where)
    stands, _ = sampled(depth[:, None].clamp(max=1e6), where)
    inside = inside & (z > 0)
    cell = 2 * radius / _SIDE
    sees = inside & (z <= stands[..., 0] + cell)
    views = sees.sum(0)
    says = ((asked[..., 0] >= level) & sees).sum(0) / views.clamp(min=1)
    keep = (says >= agree) & (views >= max(2, len(maps) // 3))
    return points[keep], cell


def asked(points: Tensor, maps: Tensor, cameras: Cameras, depth: Tensor, level: float) -> Tensor:  # [M] in 0..1
    """The share of the views that see a point (in the picture, not behind what stands there) whose maps ask for it; 0
    if less than a third of the views see it."""
    where, z = project(points, cameras)
    values, inside = sampled(maps, where)
    stands, _ = sampled(depth[:, None].clamp(max=1e6), where)
    sees = inside & (z > 0) & (z <= stands[..., 0] * 1.01)
    share = ((values[..., 0] >= level) & sees).sum(0) / sees.sum(0).clamp(min=1)
    return torch.where(sees.sum(0) >= max(1, len(maps) // 3), share, 0.0)


def largest(points: Tensor, cell: float) -> Tensor:  # [M, 3] -> [K, 3]
    """The largest piece of the cells; two that share a side or an edge hang together."""
    piece = _pieces(points.cpu(), 1.5 * cell)
    return points[torch.from_numpy(piece == np.bincount(piece).argmax()).to(points.device)]


def shell(points: Tensor, cell: float) -> Tensor:  # [M, 3] -> [K, 3]
    """The cells on the surface: those that lack one of their six neighbours."""
    place = ((points - points.min(0).values) / cell).round().long() + 1
    full = torch.zeros((*(place.max(0).values + 2).tolist(),), dtype=torch.bool, device=points.device)
    full[tuple(place.T)] = True
    inner = torch.ones(len(points), dtype=torch.bool, device=points.device)
    for axis in range(3):
        for side in (-1, 1):
            beside = place.clone()
            beside[:, axis] += side
            inner &= full[tuple(beside.T)]
    return points[~inner]


def seeds(
    points: Tensor,  # [M, 3] cells
    cell: float,
    count: int,
    coefficients: int,  # K of the scene's spherical harmonics
    generator: torch.Generator,
    opacity: float = 0.3,
) -> Scene:
    """`count` round Gaussians spread over the cells, grey and mostly clear."""
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
        torch.full((count, 3), math.log(max(0.7 * fill, 1e-9))).to(means),
        torch.full((count,), math.log(opacity / (1 - opacity))).to(means),
        torch.zeros(count, coefficients, 3).to(means),
    )


def facing(
    points: Tensor,  # [M, 3], cells of a thing
    maps: Tensor,  # [V, 1, H, W] in 0..1, where each view shows it
    cameras: Cameras,
    depth: Tensor,  # [V, H, W] mean depth of what else stands there
    up: Sequence[float] = (0.0, -1.0, 0.0),
    most: int = 4,
    apart: float = 60.0,  # degrees
) -> Tensor:  # [M], the camera that each cell is told by
    """A few views that see the thing best, all round it, and for each cell the one of them that it faces.

    Views that were drawn apart agree on the outline and not on what is inside it: their mean is mud. So each side of
    the thing is taken from one view. A view's score is the share of the cells that it sees and shows; the best comes
    first, then others that stand at least `apart` round the thing from those.
    """
    where, z = project(points, cameras)
    shows, inside = sampled(maps, where)
    sees = inside & (z > 0) & (z <= sampled(depth[:, None].clamp(max=1e6), where)[0][..., 0] * 1.01)
    score = ((shows[..., 0] >= 0.5) & sees).float().mean(1)
    upwards = torch.tensor(tuple(up)).to(points)
    upwards = upwards / upwards.norm()
    middle = points.mean(0)

    def round_it(towards: Tensor) -> Tensor:  # [K, 3] -> [K, 3], level and of length 1
        level = towards - (towards @ upwards)[:, None] * upwards
        return F.normalize(level, dim=1)

    eyes = round_it(cameras.positions - middle)
    chosen: list[int] = []
    for view in score.argsort(descending=True).tolist():
        close = any(float(eyes[view] @ eyes[other]) > math.cos(math.radians(apart)) for other in chosen)
        if len(chosen) < most and not close and (score[view] > 0.5 * score.max() or not chosen):
            chosen.append(view)
    faces = round_it(points - middle) @ eyes[chosen].T
    return torch.tensor(chosen, device=points.device)[faces.argmax(1)]


def told(values: Tensor, points: Tensor, cameras: Cameras, view: Tensor) -> Tensor:  # [V, C, H, W], [M] -> [M, C]
    """What of the views' pixels falls on each point, from the one view that it has."""
    found, _ = sampled(values, project(points, cameras)[0])
    return found.gather(0, view[None, :, None].expand(1, -1, found.shape[2]))[0]


def fill(
    kept: Scene,
    gone: Scene,
    generator: torch.Generator,
    up: Sequence[float] = (0.0, -1.0, 0.0),
    reach: float = 0.12,  # of the removed part's size: how far from it lies what it touched
    shadow: float = 0.7,  # of that size: how far its shadow falls
) -> tuple[Scene, Tensor, Tensor, Tensor]:
    # The new Gaussians; [N] bool, the kept ones that lay in its shadow; their sh; [N] bool, what is left of its foot.
    """Close the hole under something that was taken away with copies of what lies around it, and take its shadow away.

    What it stood on (kept Gaussians within `reach` of its lowest ones) gives a plane, by their principal axes; one that
    is steeper than 35 degrees, or small, is no ground, and there is no hole. The footprint
    is where removed Gaussians fall on it and few kept ones do: every cell there gets a copy of a Gaussian from beyond
    the shadow, moved within the plane, so that grain and flatness are the surroundings'. Then the mean colour around
    each Gaussian in the footprint and the shadow is replaced by what the ring beyond it says,

        c_i <- c_i + f_i (ring_i - mean_i)

    with mean_i over its neighbours (48, then 12), ring_i over the ring with weights 1 / distance^2, and f_i from 1
    in the footprint to 0 where the shadow ends; what is finer than a neighbourhood stays.
    """
    from scipy.spatial import KDTree

    no = torch.zeros(len(kept), dtype=torch.bool)
    nothing = kept[:0], no, kept.sh[:0], no
    where, removed = kept.means.detach().cpu(), gone.means.detach().cpu()
    solid = kept.logits.detach().cpu() > 0  # opacity above one half
    size = float((removed - removed.median(0).values).norm(dim=1).quantile(0.9))
    near = max(reach * size, 3 * _spacing(where))  # a sparse floor is near too
    upwards = torch.tensor(tuple(up), dtype=where.dtype)
    upwards = upwards / upwards.norm()
    foot = removed[removed @ upwards <= (removed @ upwards).quantile(0.15)]
    away, _ = KDTree(foot.numpy()).query(where.numpy(), distance_upper_bound=near)
    touching = torch.from_numpy(away < near) & solid & (where @ upwards <= (removed @ upwards).quantile(0.15))
    if int(touching.sum()) < 12:
        return nothing
    middle, axes, off = _plane(where[touching])
    for _ in range(2):  # without what else it touched
        middle, axes, off = _plane(where[touching][off <= 2.5 * off.median().clamp(min=1e-6)])
        off = ((where[touching] - middle) @ axes[2]).abs()
    ring = (where[touching] - middle) @ axes[:2].T
    if (axes[2] @ upwards).abs() < math.cos(math.radians(35)) or ring.norm(dim=1).median() < 0.15 * size:
        return nothing  # a wall that it leant on, a string that it hung on: no ground
    flat, across = axes[:2], axes[2]
    thickness = max(float(off.median()) * 2, 0.02 * size)

    def on_plane(means: Tensor) -> Tensor:  # [M, 3] -> [M, 2]
        return (means - middle) @ flat.T

    level = (((where - middle) @ across).abs() <= 2.5 * thickness) & solid
    rgb = (0.5 + _Y0 * kept.sh.detach().cpu()[:, 0]).clamp(min=0.02)
    hue = rgb / rgb.sum(1, keepdim=True)  # other things stand there too; a shadow changes the brightness alone
    off = (hue - hue[touching & level].median(0).values).abs().amax(1)
    level &= off <= (5 * off[touching & level].median()).clamp(0.06, 0.1)
    height = (where - middle) @ (across * torch.sign(across @ upwards))
    low_down = (height > -2.5 * thickness) & (height < 0.25 * size) & ~level
    under = KDTree(on_plane(removed).numpy())
    distance = torch.full((len(where),), torch.inf)
    distance[level] = torch.from_numpy(under.query(on_plane(where[level]).numpy())[0]).float()
    debris = no.clone()
    debris[low_down] = torch.from_numpy(under.query(on_plane(where[low_down]).numpy())[0] < 0.1 * size)
    shaded = distance < shadow * size
    beyond = (distance >= shadow * size) & (distance < 2 * shadow * size)
    donors = (beyond if int(beyond.sum()) >= 12 else level).nonzero()[:, 0]
    if len(donors) < 12:
        return nothing
    ground = on_plane(where[level])
    gap = _spacing(ground)
    low, high = on_plane(removed).min(0).values, on_plane(removed).max(0).values
    count = ((high - low) / gap).ceil().long().clamp(min=1, max=400)
    places = low + (torch.cartesian_prod(*(torch.arange(int(n)) for n in count)).view(-1, 2) + 0.5) * gap
    taken = torch.from_numpy(KDTree(ground.numpy()).query(places.numpy())[0])
    below = torch.from_numpy(under.query(places.numpy())[0])
    # A hole has ground all round it: under what stood out over an edge there was none.
    _, around = KDTree(ground.numpy()).query(places.numpy(), k=min(600, len(ground)))
    offset = ground[torch.from_numpy(around).reshape(len(places), -1)] - places[:, None]
    quarter = (offset[..., 0] > 0).long() * 2 + (offset[..., 1] > 0).long()
    enclosed = torch.stack([(quarter == k).any(1) for k in range(4)]).sum(0) >= 4
    places = places[(taken > 0.9 * gap) & (below < 3 * gap) & enclosed]
    source = donors[torch.randint(len(donors), (len(places),), generator=generator)]
    copies = kept[source.to(kept.means.device)]
    offset = ((where[source] - middle) @ across)[:, None] * across
    means = (middle + places @ flat + offset).to(kept.means)
    new = Scene(means, copies.quats, copies.log_scales, copies.logits, copies.sh.clone())
    if not shaded.any() and not len(new):
        return nothing

    here = torch.cat([on_plane(where[shaded]), places])
    sh = torch.cat([kept.sh.detach().cpu()[shaded], copies.sh.detach().cpu()]).clone()
    far, index = KDTree(on_plane(where[donors]).numpy()).query(here.numpy(), k=min(64, len(donors)))
    weight = 1 / torch.from_numpy(far).float().reshape(len(here), -1).clamp(min=gap).square()
    colours = kept.sh.detach().cpu()[donors, 0][torch.from_numpy(index).reshape(len(here), -1)]
    wanted = (weight[..., None] * colours).sum(1) / weight.sum(1, keepdim=True)
    depth = torch.cat([distance[shaded], torch.zeros(len(places))]) / (shadow * size)
    fade = (1 - depth.clamp(0, 1)).sqrt()[:, None]
    count = int(shaded.sum())
    sh[count:, 0] = wanted[count:] + 0.25 * (sh[count:, 0] - wanted[count:])  # from anywhere in the ring: less grain
    for neighbours in (48, 12):
        _, index = KDTree(here.numpy()).query(here.numpy(), k=min(neighbours, len(here)))
        sh[:, 0] += fade * (wanted - sh[:, 0][torch.from_numpy(index).reshape(len(here), -1)].mean(1))
    sh = sh.to(kept.sh)
    new = Scene(new.means, new.quats, new.log_scales, new.logits, sh[count:])
    return new, shaded.to(kept.means.device), sh[:count], debris.to(kept.means.device)


def whole(scene: Scene, chosen: Tensor, neighbours: int = 24, rounds: int = 4) -> Tensor:  # [N] bool -> [N] bool
    """With what is left over inside: Gaussians more than half of whose nearest neighbours are chosen, several times."""
    from scipy.spatial import KDTree

    where = scene.means.detach().cpu().numpy()
    _, index = KDTree(where).query(where, k=min(neighbours, len(where)))
    index = torch.from_numpy(index).reshape(len(where), -1)
    closed = chosen.cpu()
    for _ in range(rounds):
        closed = closed | (closed[index].float().mean(1) > 0.5)
    return closed.to(chosen.device)


def orphans(scene: Scene, chosen: Tensor, up: Sequence[float] = (0.0, -1.0, 0.0)) -> Tensor:  # [N] bool -> [N] bool
    """What would hang in the air or stand about without the chosen part: the others in pieces that touch it and nothing
    else, each smaller than a quarter of it, and those in smaller pieces of one colour that hang from it, as a
    balloon's string does. Two Gaussians touch that are nearer than three times the usual gap."""
    from scipy.spatial import KDTree

    rest = (~chosen & (scene.logits > -2)).nonzero()[:, 0].cpu()
    if not len(rest) or not chosen.any():
        return torch.zeros_like(chosen)
    where = scene.means.detach().cpu()
    gap = 3 * _spacing(where)
    piece = _pieces(where[rest], gap)
    count = int(piece.max()) + 1
    size = np.bincount(piece, minlength=count)
    near = KDTree(where[chosen.cpu()].numpy()).query(where[rest].numpy(), distance_upper_bound=2 * gap)[0] < 2 * gap
    touches = np.bincount(piece, weights=near, minlength=count) > 0
    loose = (touches & (size < 0.25 * int(chosen.sum())))[piece]
    found = torch.zeros(len(scene), dtype=torch.bool)
    found[rest[torch.from_numpy(loose)]] = True
    # Pieces of one colour: a thin upright one between the part and the ground.
    rgb = (0.5 + _Y0 * scene.sh[:, 0].detach().cpu()).clamp(0, 1)
    piece = _pieces(torch.cat([where[rest], rgb[rest] * (gap / _ONE_COLOUR)], dim=1), 1.5 * gap)
    upwards = torch.tensor(tuple(up), dtype=where.dtype)
    height = (where @ (upwards / upwards.norm())).numpy()
    part = height[chosen.cpu().numpy()]
    tall, count = float(np.quantile(part, 0.95) - np.quantile(part, 0.05)), int(piece.max()) + 1
    top, bottom = np.full(count, -np.inf), np.full(count, np.inf)
    np.maximum.at(top, piece, height[rest.numpy()])
    np.minimum.at(bottom, piece, height[rest.numpy()])
    touches = np.bincount(piece, weights=near, minlength=count) > 0
    thin = np.bincount(piece, minlength=count) < 0.1 * int(chosen.sum())
    below = top < np.quantile(part, 0.3)  # it hangs from the part: an eye beside a hat does not
    string = touches & thin & below & (top - bottom > 0.2 * tall)
    found[rest[torch.from_numpy(string[piece])]] = True
    faint = (~chosen & (scene.logits <= -2)).nonzero()[:, 0].cpu()  # what is hardly there goes with what it clung to
    if len(faint):
        part = where[chosen.cpu() | found]
        found[faint[torch.from_numpy(KDTree(part.numpy()).query(where[faint].numpy())[0] < gap)]] = True
    return found.to(chosen.device)


def reached(scene: Scene, weight: Tensor, high: float, low: float) -> Tensor:  # [N] -> [N] bool
    """Hysteresis (Canny, IEEE PAMI 1986): Gaussians of at least `high`, and those of at least `low` that hang together
    with them, neighbour by neighbour, each step shorter than five times the usual gap: a balloon's string."""
    chosen = weight >= high
    weak = (weight >= low).nonzero()[:, 0].cpu()
    if not len(weak):
        return chosen
    where = scene.means.detach().cpu()
    piece = _pieces(where[weak], 5 * _spacing(where))
    strong = np.bincount(piece, weights=chosen.cpu()[weak].numpy()) > 0
    found = torch.zeros(len(scene), dtype=torch.bool)
    found[weak[torch.from_numpy(strong[piece])]] = True
    return found.to(chosen.device) | chosen


def _pieces(where: Tensor, gap: float) -> np.ndarray:  # [M, 3] -> [M] number of the piece that each belongs to
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import KDTree

    pairs = KDTree(where.numpy()).query_pairs(gap, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(where), len(where)))
    return connected_components(graph, directed=False)[1]


def _plane(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [M, 3] -> [3], [3, 3], [M]
    """Median, principal axes (rows: along, along, across), and how far each point is off the plane."""
    middle = points.median(0).values
    axes = torch.linalg.svd(points - middle, full_matrices=False).Vh
    return middle, axes, ((points - middle) @ axes[2]).abs()


def _spacing(points: Tensor) -> float:  # [M, D] -> the usual distance to the nearest other
    from scipy.spatial import KDTree

    near, _ = KDTree(points.cpu().numpy()).query(points.cpu().numpy(), k=2)
    return max(float(torch.from_numpy(near[:, 1]).median()), 1e-6)
