"""The splat renderer in plain PyTorch: every pixel looks at every Gaussian. Slow, differentiable by autograd.

This file says what the other faces must compute: 3D Gaussian splatting (Kerbl et al. 2023, arXiv:2308.04079), which is
EWA splatting (Zwicker et al. 2001) sorted and alpha-blended, with the constants of gsplat (Ye et al. 2024,
arXiv:2409.06765). A Gaussian of mean mu, rotation R(q), scales s and opacity o is seen by a camera with world-to-camera
rotation W and translation p:

    Sigma  = R diag(s)^2 R^T                               its covariance, world
    t      = W mu + p                                      its mean, camera; drawn if NEAR <= t_z <= FAR
    m      = (fx t_x / t_z + cx, fy t_y / t_z + cy)        its mean, picture
    J      = [fx/t_z, 0, -fx c_x/t_z; 0, fy/t_z, -fy c_y/t_z]
    Sigma2 = J W Sigma W^T J^T + BLUR I                    its covariance, picture

J is the derivative of the projection at t, but with c_x = t_x / t_z (and c_y) held to what the camera can see and 0.3
of half a view more on either side: far outside the view the linear approximation would be wrong without bound. In a
pixel with the middle x, with d = x - m,

    alpha  = min(MOST, o exp(-d^T Sigma2^-1 d / 2))        nothing if below LEAST
    w_i    = alpha_i T_i      T_i = prod over j before i of (1 - alpha_j)

in the order of t_z, rounded to float32, and of their numbers among equals. A pixel is finished before the Gaussian that
would bring T to END or less. image = sum_i w_i f_i + T background; alpha = sum_i w_i; depth = sum_i w_i t_z,i.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR, FAR = 0.01, 1e10  # world units
BLUR = 0.3  # pixels^2, as if every pixel saw a little of its neighbours
MOST = 0.999  # of alpha, so that what lies behind has gradients
LEAST = 1 / 255  # of alpha
END = 1e-4  # of transmittance
MARGIN = 0.3  # of half a view


def render(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    features: Tensor,  # [N, C] or [V, N, C]
    viewmats: Tensor,  # [V, 4, 4]
    Ks: Tensor,  # [V, 3, 3]
    width: int,
    height: int,
    background: Tensor,  # [V, C]
) -> tuple[Tensor, Tensor, Tensor]:  # [V, H, W, C], [V, H, W], [V, H, W]
    """Draw with autograd. Memory: some V x N x H x W numbers."""
    drawn = []
    for view in range(len(viewmats)):
        f = features[view] if features.dim() == 3 else features
        falloff, z, chosen = seen(means, quats, scales, opacities, viewmats[view], Ks[view], width, height)
        w, through = shares(falloff)
        image = w.T @ f[chosen] + through[:, None] * background[view]
        drawn.append(torch.cat([image, w.sum(0)[:, None], (w.T @ z)[:, None]], dim=1).reshape(height, width, -1))
    whole = torch.stack(drawn)
    return whole[..., :-2], whole[..., -2], whole[..., -1]


def rotation(quats: Tensor) -> Tensor:  # [N, 4] wxyz -> [N, 3, 3]
    """R(q / |q|)."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def project(
    means: Tensor, quats: Tensor, scales: Tensor, viewmat: Tensor, K: Tensor, width: int, height: int
) -> tuple[Tensor, Tensor, Tensor]:  # [N, 2], [N, 2, 2], [N]
    """m, Sigma2 and t_z of Gaussians in front of one camera."""
    W = viewmat[:3, :3]
    t = means @ W.T + viewmat[:3, 3]
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    z = t[:, 2]
    x, y = t[:, 0] / z, t[:, 1] / z
    more_x, more_y = MARGIN * width / (2 * fx), MARGIN * height / (2 * fy)
    held_x = torch.clamp(x, -cx / fx - more_x, (width - cx) / fx + more_x)
    held_y = torch.clamp(y, -cy / fy - more_y, (height - cy) / fy + more_y)
    zero = torch.zeros_like(z)
    rows = torch.stack([fx / z, zero, -fx * held_x / z, zero, fy / z, -fy * held_y / z], dim=-1)
    half = rows.unflatten(-1, (2, 3)) @ W @ rotation(quats) * scales[:, None]  # J W R diag(s)
    sigma2 = half @ half.mT + BLUR * torch.eye(2).to(z)
    return torch.stack([fx * x + cx, fy * y + cy], dim=-1), sigma2, z


def seen(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmat: Tensor,
    K: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor, Tensor]:  # [n, H W], [n], [n]
    """o exp(-d^T Sigma2^-1 d / 2) in every pixel of the n Gaussians before the camera, from the nearest to the
    farthest; their t_z; which they are."""
    numbers = torch.cat([means, quats, scales, opacities[:, None]], dim=-1)
    good = numbers.isfinite().all(-1) & (quats != 0).any(-1)
    z = torch.where(good[:, None], means, 0) @ viewmat[2, :3] + viewmat[2, 3]
    chosen = (good & (z >= NEAR) & (z <= FAR)).nonzero()[:, 0]
    chosen = chosen[z[chosen].float().argsort(stable=True)]
    m, sigma2, z = project(means[chosen], quats[chosen], scales[chosen], viewmat, K, width, height)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    d = torch.stack([x, y], dim=-1).reshape(-1, 2).to(m) + 0.5 - m[:, None]  # [n, H W, 2]
    (a, b), c = sigma2[:, 0].unbind(-1), sigma2[:, 1, 1]
    dx, dy = d.unbind(-1)
    square = (c[:, None] * dx * dx - 2 * b[:, None] * dx * dy + a[:, None] * dy * dy) / (a * c - b * b)[:, None]
    return opacities[chosen, None] * torch.exp(-square / 2), z, chosen


def shares(falloff: Tensor) -> tuple[Tensor, Tensor]:  # [n, P] -> [n, P], [P]
    """w_i of each Gaussian in each pixel, and the T behind all of them."""
    alphas = falloff.clamp(max=MOST)
    alphas = torch.where(alphas >= LEAST, alphas, 0)
    after = torch.cumprod(1 - alphas, dim=0)
    reached = (after > END) & (alphas > 0)  # after never grows: behind the first that is too much, all are
    before = torch.cat([torch.ones_like(alphas[:1]), after[:-1]])
    w = torch.where(reached, alphas * before, 0)
    return w, torch.where(reached, 1 - alphas, 1).prod(0)
