"""What every view of an edit should become, drawn for all views at once so that one scene can show them all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.camera import Cameras
from sdsedit.guidance.base import Prompts, predict
from sdsedit.prior.base import Prior, cfg
from sdsedit.render.splats import lift
from sdsedit.representations.splats import Scene, pictures

_Y0 = 0.28209479177387814  # 1 / (2 sqrt(pi)), the constant spherical harmonic
VIEWS_AT_ONCE = 4  # a forward pass

Steer = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Latents of all views before a step and after it [V, C, h, w], the masks there [V, 1, h, w], the share of the steps
that are done -> the latents after it, steered."""

Agree = Callable[[Tensor, float], Tensor]
"""Pictures of all views [V, 3, H, W] in 0..1 and the noise level t that they were told at -> what a scene shows of
them, the same shape."""


def imagine(
    prior: Prior,
    prompts: Prompts,
    before: Tensor,  # [V, 3, H, W] in 0..1, from which the drawing starts
    outside: Tensor,  # [V, 3, H, W], what stays outside the masks
    masks: Tensor,  # [V, 1, H, W] in 0..1
    agree: Agree,
    generator: torch.Generator,
    start: float = 0.98,
    steps: int = 16,
    scale: float = 4.0,
    on_step: Callable[[int, Tensor], bool | None] | None = None,  # step and the views as they are; False stops
    steer: Steer | None = None,
) -> Tensor:  # [V, 3, H, W] in 0..1
    """Sampling all views together, and bringing them to agreement at every step through the scene itself, as MVEdit
    (arXiv:2403.12032) does with a radiance field and SyncMVD (arXiv:2311.12891) with a texture.

        z0_v  = (z_t - s e_hat(z_t, y_tgt)) / a                   each view; CFG: e_hat = e_0 + scale (e_y - e_0)
        z0_v <- encode(render(agree(decode(z0)))_v)               one scene for all of them
        z_t'  = a' z0_v + s' eps'                                 new noise: the old one remembers the disagreement

    Outside the masks each view stays at its own noising of `outside`. `steer` may move z0_v before it is decoded.
    """
    schedule = prior.schedule
    with torch.no_grad():
        z_out = torch.cat([prior.encode(x[None]) for x in outside])
        z = torch.cat([prior.encode(x[None]) for x in before])
        cells = F.adaptive_avg_pool2d(masks, (z.shape[-2], z.shape[-1]))
        times = torch.linspace(start, 0, steps + 1, device=z.device)
        shown = before
        for k in range(steps):
            t, after = times[k : k + 1], times[k + 1]
            eps = torch.randn(z.shape, generator=generator).to(z)
            z_t = schedule.add_noise(torch.lerp(z_out, z, cells), eps, t.expand(len(z)))
            z0 = []
            for first in range(0, len(z), VIEWS_AT_ONCE):
                some = z_t[first : first + VIEWS_AT_ONCE]
                rows = t.expand(len(some))
                (e_0, e_y), _ = predict(prior, rows, (some, prompts.empty), (some, prompts.target))
                z0.append(schedule.to_sample(cfg(e_0, e_y, scale), some, rows))
            towards = torch.cat(z0)
            if steer:
                towards = steer(z, towards, cells, k / steps)
            drawn = torch.cat([prior.decode(x[None]) for x in towards]).clamp(0, 1)
            drawn = torch.lerp(outside, drawn, masks)
            shown = agree(drawn, float(after))
            if on_step and on_step(k, shown) is False:
                return shown
            z = torch.cat([prior.encode(x[None]) for x in shown])
    return shown


def repainted(
    kept: Scene,
    own: Scene,
    views: Tensor,  # [V, 3, H, W] in 0..1
    where: Tensor,  # [V, 1, H, W] in 0..1, what of the views is to be believed
    cameras: Cameras,
    background: Tensor,  # [3]
    rounds: int = 3,
    best: float = 0.0,  # how much more a view is believed that sees a Gaussian better; 0: every pixel alike
) -> tuple[Scene, Tensor]:  # and what the cameras see then, [V, 3, H, W]
    """`own` in the colours of the views. Shape and opacity stay.

        c_i <- c_i + sum_vp w_i(v, p) M_v(p) (x_v - render_v)(p) / sum_vp w_i(v, p) M_v(p)          w = alpha T

    Landweber's iteration on the rendering equation, each Gaussian with the step that its own share of the pixels
    allows. Those of which no view tells anything follow their neighbours.

    With `best`, a view counts (n_iv / max_v n_iv)^best times, n_iv = sum_p w_i M_v: where views have drawn different
    things, their mean would be a blur, and who sees it from the front has the say.
    """
    from scipy.spatial import KDTree

    count, first = len(kept), own.sh[:, 0]
    weights = where.permute(0, 2, 3, 1)
    told = torch.zeros(len(own), dtype=torch.bool, device=first.device)
    for _ in range(rounds):
        both = Scene.cat(kept, own)
        residual = (views - pictures(both, cameras, background)).permute(0, 2, 3, 1) * weights
        maps = torch.cat([residual, weights], dim=-1).contiguous()
        told_by = [cameras[k] for k in range(len(cameras))] if best else [cameras]
        each = [
            lift(*both.shape, some.viewmats, some.Ks, some.width, some.height, part)[0][count:]
            for some, part in zip(told_by, maps.split(len(maps) // len(told_by)), strict=True)
        ]
        numerator = torch.stack(each)  # [1 or V, M, 4]
        if best:
            pixels = numerator[..., 3:]
            numerator = numerator * (pixels / pixels.amax(0).clamp(min=1e-6)) ** best
        numerator = numerator.sum(0)
        move = numerator[:, :3] / numerator[:, 3:].clamp(min=0.05)
        told = numerator[:, 3] > 0.05
        sh = own.sh.clone()
        sh[:, 0] = (sh[:, 0] + move / _Y0).clamp(-0.5 / _Y0, 0.5 / _Y0)
        own = replace(own, sh=sh)
    if told.any() and not told.all():
        place = own.means.cpu().numpy()
        known = told.cpu().numpy()
        _, near = KDTree(place[known]).query(place[~known], k=min(8, int(known.sum())))
        change = (own.sh[:, 0] - first)[told][torch.from_numpy(near).reshape(int((~known).sum()), -1)]
        sh = own.sh.clone()
        sh[~told, 0] = (first[~told] + change.mean(1)).clamp(-0.5 / _Y0, 0.5 / _Y0)
        own = replace(own, sh=sh)
    return own, pictures(Scene.cat(kept, own), cameras, background)
