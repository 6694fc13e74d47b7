"""Where the words are in a scene: attention on rendered views, lifted to a weight for every Gaussian.

GSEditPro, arXiv:2411.10033, calls it attention-based progressive localisation: labels come onto the Gaussians through
rendering. Its code is not public; what is here is ours. For views v, pixels p, Gaussian i with alpha_i(p) T_i(p) its
visible share of a pixel, and the words' attention M_v:

    w_i = sum_vp alpha_i T_i M_v(p) / sum_vp alpha_i T_i(p)

The numerator is the renderer's vector-Jacobian product, the denominator the same with ones: a Gaussian that no view
sees has none, which is not the same as background. Then the weights are smoothed over neighbours in place and colour,
and the cameras turn and zoom to what was found and look again: attention knows a shape to a cell of the network, so
the larger a thing is in the picture the better its edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.attention.localize import snap
from sdsedit.attention.probe import AttentionMaps, AttentionProbe
from sdsedit.camera import Cameras, look_at
from sdsedit.prior.base import Prior, Text
from sdsedit.render.splats import lift
from sdsedit.representations.splats import Scene, pictures

TIMES = (0.25, 0.45, 0.65)  # t at which the network looks: too little noise and it sees no words, too much no place
SEEN = 0.5  # pixels: what shows less in all views together was not seen
THRESHOLD = 0.4  # of a weight: in the edit or not; perfect masks want 0.5, attention is softer than those
VIEWS_AT_ONCE = 4  # a forward pass

OnView = Callable[[int, int], "bool | None"]
"""(views done, views in all) -> False to stop."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where words are in a scene."""

    weight: Tensor  # [N] in 0..1
    confidence: Tensor  # [N] pixels that the Gaussian covers in all views; 0: unseen
    cameras: Cameras  # of the last look
    views: Tensor  # [V, 3, H, W] in 0..1, what they saw
    maps: Tensor  # [V, 1, H, W] in 0..1, the attention there

    def chosen(self, threshold: float = THRESHOLD) -> Tensor:  # [N] bool
        return self.weight >= threshold

    def everywhere(self, threshold: float = THRESHOLD) -> bool:
        """Whether all that was seen is chosen."""
        return bool((self.chosen(threshold) | (self.confidence <= 0)).all())


def attention(
    prior: Prior,
    views: Tensor,  # [V, 3, H, W] in 0..1
    text: Text,  # one row
    tokens: Sequence[int],
    generator: torch.Generator,
    times: Sequence[float] = TIMES,
    on_view: OnView | None = None,
) -> Tensor:  # [V, 1, h, w], the share of the attention that the words have
    """The words' attention in every view: the mean over several t, the sum over the words' tokens."""
    found = []
    for start in range(0, len(views), VIEWS_AT_ONCE):
        z = prior.encode(views[start : start + VIEWS_AT_ONCE])
        total: Tensor | float = 0.0
        for time in times:
            t = torch.full((len(z),), time, device=z.device)
            eps = torch.randn(z.shape, generator=generator).to(z.device)
            probe = AttentionProbe(tokens)
            maps = prior.predict(prior.schedule.add_noise(z, eps, t), t, text, probe).maps
            assert isinstance(maps, AttentionMaps)
            chosen = maps.cross if maps.refined is None else 0.5 * (_to(maps.cross, maps.refined) + maps.refined)
            total = total + chosen.float().sum(1, keepdim=True)
        found.append(total / len(times))
        if on_view and on_view(min(start + VIEWS_AT_ONCE, len(views)), len(views)) is False:
            break
    return torch.cat(found)


def _to(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)


def sharpen(maps: Tensor, views: Tensor) -> Tensor:  # [V, 1, h, w], [V, 3, H, W] -> [V, 1, H, W] in 0..1
    """Maps at the views' size, 1 where the words are surest, drawn onto the edges of what is seen."""
    large = F.interpolate(maps, views.shape[-2:], mode="bicubic", align_corners=False)
    high = torch.quantile(large.flatten(1).amax(1), 0.75).clamp(min=1e-6)  # one scale for all views: absent is absent
    large = (large / high).clamp(0, 1)
    return torch.cat([snap(m[None], v[None]) for m, v in zip(large, views, strict=True)])


def lifted(
    scene: Scene,
    cameras: Cameras,
    maps: Tensor,  # [V, 1, H, W]
    weigh: str = "alpha T",
) -> tuple[Tensor, Tensor]:  # [N], [N] pixels
    """Numerator and denominator of w_i."""
    numerator, denominator = lift(
        *scene.shape,
        cameras.viewmats,
        cameras.Ks,
        cameras.width,
        cameras.height,
        maps.permute(0, 2, 3, 1).contiguous(),
    )
    return numerator[:, 0], denominator


def smooth(
    scene: Scene,
    weight: Tensor,  # [N] in 0..1
    confidence: Tensor,  # [N], 0: unseen
    neighbours: int = 16,
    colour: float = 0.15,  # rgb distance at which a neighbour counts little
) -> Tensor:  # [N]
    """w_i <- sum_j c_j K_ij w_j / sum_j c_j K_ij over the nearest in place and colour, c_j = min(confidence, 4 pixels).

    K_ij = exp(-d_ij^2 / 2), with d the distance in a space where one unit is the usual gap between neighbours in place
    and `colour` in rgb. Unseen Gaussians (c = 0) take what their neighbours have.
    """
    from scipy.spatial import KDTree

    place = scene.means.detach().double().cpu()
    near, _ = KDTree(place.numpy()).query(place.numpy(), k=min(5, len(place)))
    gap = float(torch.from_numpy(near[:, -1]).median()) if len(place) > 1 else 1.0
    rgb = 0.5 + 0.28209479177387814 * scene.sh[:, 0].detach().double().cpu()
    space = torch.cat([place / max(2 * gap, 1e-12), rgb.clamp(0, 1) / colour], dim=1).numpy()
    distance, index = KDTree(space).query(space, k=min(neighbours, len(space)))
    kernel = torch.from_numpy(distance).float().square().mul(-0.5).exp().reshape(len(space), -1)
    index = torch.from_numpy(index).reshape(len(space), -1)
    kernel = kernel * confidence.cpu().clamp(max=4.0)[index]
    total = (kernel * weight.cpu()[index]).sum(1)
    return (total / kernel.sum(1).clamp(min=1e-9)).to(weight)


def closer(
    cameras: Cameras,
    centre: Tensor,  # [3]
    radius: float,  # world units
    fill: float = 0.5,  # of the picture's shorter side that the sphere takes
    up: Sequence[float] = (0.0, -1.0, 0.0),
) -> Cameras:
    """The same places to stand, turned to a sphere and zoomed until it fills the picture; never zoomed out."""
    eyes = cameras.positions
    distance = (eyes - centre).norm(dim=1)
    focal = 0.5 * fill * min(cameras.width, cameras.height) * distance / max(radius, 1e-9)
    focal = torch.maximum(focal, cameras.Ks[:, 0, 0])
    Ks = torch.zeros_like(cameras.Ks)
    Ks[:, 0, 0] = Ks[:, 1, 1] = focal
    Ks[:, 0, 2], Ks[:, 1, 2], Ks[:, 2, 2] = cameras.width / 2, cameras.height / 2, 1
    return replace(cameras, viewmats=look_at(eyes, centre, up).to(eyes), Ks=Ks)


def bounds(means: Tensor, weight: Tensor, share: float = 0.95) -> tuple[Tensor, float]:  # [N, 3], [N] -> [3], world
    """Centre and radius of what carries the weight: the weighted median, and the distance within which `share` of it
    lies."""
    order = means.sort(0)
    spread = weight[order.indices].cumsum(0)
    middle = torch.stack([order.values[:, k][int((spread[:, k] < 0.5 * spread[-1, k]).sum())] for k in range(3)])
    distance = (means - middle).norm(dim=1)
    by = distance.sort()
    inside = weight[by.indices].cumsum(0)
    return middle, float(by.values[int((inside < share * inside[-1]).sum().clamp(max=len(means) - 1))])


def locate(
    scene: Scene,
    cameras: Cameras,  # of the working size
    background: Tensor,  # [3]
    prior: Prior,
    text: Text,  # the prompt that has the words, one row
    tokens: Sequence[int],
    generator: torch.Generator,
    looks: int = 2,
    smoothing: bool = True,
    up: Sequence[float] = (0.0, -1.0, 0.0),
    on_view: OnView | None = None,
) -> Place:
    """Look from all cameras; turn to what was found and look again, `looks` times in all."""
    whole = bounds(scene.means, scene.logits.sigmoid())[1]
    place: Place | None = None
    stopped = False

    def told(done: int, total: int) -> bool:
        nonlocal stopped
        stopped = on_view is not None and on_view(done, total) is False
        return not stopped

    for look in range(looks):
        views = pictures(scene, cameras, background)
        maps = attention(prior, views, text, tokens, generator, on_view=told)
        cameras, views = cameras[: len(maps)], views[: len(maps)]
        maps = sharpen(maps, views)
        numerator, denominator = lifted(scene, cameras, maps)
        if place is not None:  # what the closer look did not see keeps what the first one said
            share = 0.5
            numerator = numerator + share * place.weight * place.confidence
            denominator = denominator + share * place.confidence
        weight = torch.where(denominator > SEEN, numerator / denominator.clamp(min=1e-6), 0.0)
        confidence = torch.where(denominator > SEEN, denominator, 0.0)
        if smoothing:
            weight = smooth(scene, weight, confidence)
        place = Place(weight, confidence, cameras, views, maps)
        heavy = torch.where(weight >= THRESHOLD, weight, 0.0) * confidence.clamp(max=4.0)
        if stopped or not heavy.any() or look + 1 == looks:
            break
        centre, radius = bounds(scene.means, heavy)
        if radius > 0.6 * whole or math.isnan(radius):
            break  # it is the place itself: there is no closer look
        cameras = closer(cameras, centre, radius, up=up)
    assert place is not None
    return place
