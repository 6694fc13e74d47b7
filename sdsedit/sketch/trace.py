"""A picture as filled areas: what an icon is started from."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_FINE = 4  # the picture is enlarged so many times before its areas are traced
_COLOURS = 10


def trace(
    picture: Tensor,  # [1, 3, H, W] in 0..1
    where: Tensor | None,  # [H, W] in 0..1, areas outside it are left out; None: everywhere
    paper: Tensor,  # [3], areas of this colour are left out
    count: int,  # areas at most, the largest ones
    least: float = 6.0,  # pixels, area under which none is traced
    clip: Tensor | None = None,  # [H, W] in 0..1, areas end at its edge; None: at the picture's
) -> tuple[list[Tensor], Tensor]:  # closed rings of cubics [3 n, 2] in pixels, the largest first; colours [N, 4]
    """Colours by k-means, areas by connected components, outlines by border following, curves by Catmull-Rom splines.

    Each area is traced by its outer border only, so that a large one lies under those inside it, as in LIVE
    (arXiv:2206.04655): layers, of which the upper ones may move.
    """
    import cv2

    image = (picture[0].permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    height, width = image.shape[:2]
    large = cv2.resize(image, (width * _FINE, height * _FINE), interpolation=cv2.INTER_CUBIC)
    large = cv2.medianBlur(large, 5)
    pixels = large.reshape(-1, 3).astype(np.float32)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 1.0)
    cv2.setRNGSeed(0)
    _, labels, centres = cv2.kmeans(pixels, _COLOURS, None, criteria, 2, cv2.KMEANS_PP_CENTERS)  # pyright: ignore
    labels = labels.reshape(large.shape[:2])
    inside = None
    if where is not None:
        inside = cv2.resize(where.cpu().numpy(), (width * _FINE, height * _FINE), interpolation=cv2.INTER_LINEAR)
    allowed = np.ones(large.shape[:2], bool)
    if clip is not None:
        allowed = cv2.resize(clip.cpu().numpy(), (width * _FINE, height * _FINE), interpolation=cv2.INTER_LINEAR) > 0.5
    found: list[tuple[float, np.ndarray, np.ndarray]] = []
    for k, centre in enumerate(centres):
        if np.abs(centre / 255 - paper.cpu().numpy()).max() < 0.12:
            continue
        mask = ((labels == k) & allowed).astype(np.uint8)
        mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        number, components, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
        for c in range(1, number):
            if stats[c, cv2.CC_STAT_AREA] / _FINE**2 < least:
                continue
            one = components == c
            if inside is not None and inside[one].mean() < 0.3:
                continue
            outlines, _ = cv2.findContours(one.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            outline = max(outlines, key=len)[:, 0].astype(np.float64)
            found.append((abs(cv2.contourArea(outline.astype(np.float32))), (outline + 0.5) / _FINE, centre / 255))
    found.sort(key=lambda each: -each[0])
    found = found[:count]
    rings = [torch.from_numpy(smooth_ring(outline)).float() for _, outline, _ in found]
    colours = torch.tensor(np.array([[*colour, 1.0] for _, _, colour in found]).reshape(-1, 4)).float()
    return rings, colours


def smooth_ring(outline: np.ndarray, tolerance: float = 0.7, sharp: float = 0.4) -> np.ndarray:
    """A closed outline [M, 2] as cubics [3 n, 2]: corners by Douglas and Peucker, a Catmull-Rom spline through them.

    A corner that turns by more than acos(sharp) stays a corner: its handles are those of straight lines.
    """
    import cv2

    anchors = cv2.approxPolyDP(outline.astype(np.float32)[:, None], tolerance, True)[:, 0].astype(np.float64)
    if len(anchors) < 3:
        anchors = outline[np.linspace(0, len(outline), 4, endpoint=False).astype(int)]
    before, after = np.roll(anchors, 1, 0), np.roll(anchors, -1, 0)
    a, b = anchors - before, after - anchors
    la, lb = np.linalg.norm(a, axis=1, keepdims=True), np.linalg.norm(b, axis=1, keepdims=True)
    cosine = (a * b).sum(1, keepdims=True) / np.maximum(la * lb, 1e-9)
    tangent = after - before
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    smooth = cosine > sharp
    leave = np.where(smooth, tangent * lb / 3, b / 3)
    arrive = np.where(smooth, tangent * la / 3, a / 3)
    ring = np.stack([anchors, anchors + leave, np.roll(anchors - arrive, -1, 0)], axis=1)
    return ring.reshape(-1, 2)
