"""Gaussian splats to pixels, with gradients. `render` picks a face; reference.py says what every face computes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Rendered", "colours", "lift", "render"]

Backend = Literal["auto", "reference", "cpu", "cuda"]


@dataclass(frozen=True)
class Rendered:
    """What V cameras see; w_i = alpha_i T_i is the share of a pixel that Gaussian i has."""

    image: Tensor  # [V, H, W, C]  sum_i w_i f_i + T background
    alpha: Tensor  # [V, H, W]  sum_i w_i, in 0..1
    depth: Tensor  # [V, H, W]  sum_i w_i z_i, world units along the camera's axis; divide by alpha for the mean


def render(
    means: Tensor,  # [N, 3] world units
    quats: Tensor,  # [N, 4] wxyz, of any length but 0
    scales: Tensor,  # [N, 3] world units
    opacities: Tensor,  # [N] in 0..1
    features: Tensor,  # [N, C] or [V, N, C], colours or whatever else is to be seen
    viewmats: Tensor,  # [V, 4, 4] world to camera, x right, y down, z forward
    Ks: Tensor,  # [V, 3, 3] pixels; no skew
    width: int,
    height: int,
    background: Tensor | None = None,  # [C] or [V, C]; zeros if None
    backend: Backend = "auto",
) -> Rendered:
    """Draw; differentiable in all but the cameras.

    auto: "cuda" (gsplat) for CUDA tensors, or, with one warning, the CPU's face on copies where gsplat cannot run;
    "cpu" (Numba) for float32 tensors on the CPU; "reference" (plain PyTorch, slow) for float64. A Gaussian with a
    number that is not finite or with a quaternion of zeros is not drawn.

    ValueError for shapes, dtypes or devices that do not fit together, and for a size outside 1..16384.
    """
    features, background = _check(
        means, quats, scales, opacities, features, viewmats, Ks, width, height, background, backend
    )
    viewmats, Ks = viewmats.detach(), Ks.detach()
    if features.dim() == 3 and features.stride(0) == 0:  # the same colours from everywhere, as `colours` says it
        features = features[0]
    if backend == "auto":
        backend = _face(means)
        if backend == "cpu" and means.is_cuda:
            m, q, s, o, f, w, k, b = (
                x.cpu() for x in (means, quats, scales, opacities, features, viewmats, Ks, background)
            )
            there = render(m, q, s, o, f, w, k, width, height, b, "cpu")
            return Rendered(*(x.to(means.device) for x in (there.image, there.alpha, there.depth)))
    if backend == "cpu":
        from sdsedit.render.splats import cpu as face
    elif backend == "cuda":
        from sdsedit.render.splats import cuda as face
    else:
        from sdsedit.render.splats import reference as face
    drawn = face.render(means, quats, scales, opacities, features, viewmats, Ks, width, height, background)
    return Rendered(*drawn)


def lift(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    viewmats: Tensor,  # [V, 4, 4]
    Ks: Tensor,  # [V, 3, 3]
    width: int,
    height: int,
    maps: Tensor,  # [V, H, W, M]
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:  # [N, M] and [N], without gradient
    """Give maps over pictures to the Gaussians that are seen there: the sums over views and pixels of

        numerator_i   = sum_v sum_p w_i(v, p) maps(v, p)        denominator_i = sum_v sum_p w_i(v, p)

    A Gaussian's mean is numerator / denominator; one with a denominator near 0 is unseen. The numerator is the
    vector-Jacobian product of `render` with respect to features, so every face has it.

    ValueError as `render`, and for maps that are not pictures of this size.
    """
    views = viewmats.shape[0]
    if maps.dim() != 4 or maps.shape[:3] != (views, height, width):
        raise ValueError(f"maps must have the shape [{views}, {height}, {width}, M]; got {list(maps.shape)}.")
    if maps.dtype != means.dtype or maps.device != means.device:
        raise ValueError("maps must have the dtype and the device of means.")
    m, q, s, o = (x.detach() for x in (means, quats, scales, opacities))
    total = means.new_zeros(len(means), maps.shape[3] + 1)
    for view in range(views):  # one at a time: memory is that of one picture
        with torch.enable_grad():
            features = torch.zeros_like(total, requires_grad=True)
            one = slice(view, view + 1)
            seen = render(m, q, s, o, features, viewmats[one], Ks[one], width, height, None, backend)
            ones = torch.ones_like(maps[one, ..., :1])
            (of_view,) = torch.autograd.grad(seen.image, features, torch.cat([maps[one].detach(), ones], dim=-1))
        total += of_view
    return total[:, :-1], total[:, -1]


def colours(
    sh: Tensor,  # [N, K, 3], K = 1, 4, 9, 16
    means: Tensor,  # [N, 3]
    viewmats: Tensor,  # [V, 4, 4]
) -> Tensor:  # [V, N, 3], at least 0
    """The colours that the cameras see: max(0, 1/2 + sum_k Y_k(d) sh_k), d the direction from the camera to the mean,
    Y the real spherical harmonics in the order and with the signs of Kerbl et al. 2023 (arXiv:2308.04079).

    Differentiable in sh and means. ValueError for shapes that do not fit.
    """
    count, bands = sh.shape[0], sh.shape[1] if sh.dim() == 3 else 0
    if sh.dim() != 3 or bands not in (1, 4, 9, 16) or sh.shape[2] != 3:
        raise ValueError(f"sh must have the shape [N, 1, 4, 9 or 16, 3]; got {list(sh.shape)}.")
    if means.shape != (count, 3):
        raise ValueError(f"means must have the shape {[count, 3]}; got {list(means.shape)}.")
    if viewmats.dim() != 3 or viewmats.shape[1:] != (4, 4):
        raise ValueError(f"viewmats must have the shape [V, 4, 4]; got {list(viewmats.shape)}.")
    if bands == 1:
        return (0.5 + 0.28209479177387814 * sh[:, 0]).clamp(min=0).expand(len(viewmats), -1, -1)
    eyes = torch.linalg.inv(viewmats.detach())[:, None, :3, 3]
    x, y, z = torch.nn.functional.normalize(means - eyes, dim=-1).unbind(-1)  # [V, N]
    basis = [torch.full_like(x, 0.28209479177387814)]
    basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if bands > 4:
        xx, yy, zz = x * x, y * y, z * z
        basis += [
            1.0925484305920792 * x * y,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (2 * zz - xx - yy),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * (xx - yy),
        ]
        if bands > 9:
            basis += [
                -0.5900435899266435 * y * (3 * xx - yy),
                2.890611442640554 * x * y * z,
                -0.4570457994644658 * y * (4 * zz - xx - yy),
                0.3731763325901154 * z * (2 * zz - 3 * xx - 3 * yy),
                -0.4570457994644658 * x * (4 * zz - xx - yy),
                1.445305721320277 * z * (xx - yy),
                -0.5900435899266435 * x * (xx - 3 * yy),
            ]
    return (0.5 + torch.einsum("vnk,nkc->vnc", torch.stack(basis, dim=-1), sh)).clamp(min=0)


_warned = False


def _face(means: Tensor) -> Literal["reference", "cpu", "cuda"]:
    global _warned
    if means.dtype != torch.float32:
        return "reference"
    if means.is_cuda:
        from sdsedit.render.splats import cuda

        fault = cuda.available()
        if not fault:
            return "cuda"
        if not _warned:
            warnings.warn(f"{fault} Splats are drawn on the CPU.", stacklevel=3)
            _warned = True
        return "cpu"
    return "cpu" if means.device.type == "cpu" else "reference"


def _check(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    features: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    background: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """features, and background as [V, C]."""
    if not (1 <= height <= 16384 and 1 <= width <= 16384):
        raise ValueError(f"height and width must be from 1 to 16384 pixels; got {height} and {width}.")
    if backend not in ("auto", "reference", "cpu", "cuda"):
        raise ValueError(f'backend must be "auto", "reference", "cpu" or "cuda"; got {backend!r}.')
    if means.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"Splats must be float32 or float64; got {means.dtype}.")
    if backend == "cpu" and (means.device.type != "cpu" or means.dtype != torch.float32):
        raise ValueError(
            f"The CPU splat renderer draws float32 tensors on the CPU; got {means.dtype} on {means.device}."
        )
    if backend == "cuda" and (not means.is_cuda or means.dtype != torch.float32):
        raise ValueError(
            f"The CUDA splat renderer draws float32 tensors on a GPU; got {means.dtype} on {means.device}."
        )
    count, views = len(means) if means.dim() else 0, len(viewmats) if viewmats.dim() else 0
    channels = features.shape[-1] if features.dim() else 0
    if views < 1 or channels < 1:
        raise ValueError(f"There must be a camera and a feature at least; got {views} and {channels}.")
    if background is None:
        background = means.new_zeros(views, channels)
    elif background.dim() == 1:
        background = background.expand(views, -1)
    of_features = (views, count, channels) if features.dim() == 3 else (count, channels)
    expected: tuple[tuple[str, Tensor, tuple[int, ...]], ...] = (
        ("means", means, (count, 3)),
        ("quats", quats, (count, 4)),
        ("scales", scales, (count, 3)),
        ("opacities", opacities, (count,)),
        ("features", features, of_features),
        ("viewmats", viewmats, (views, 4, 4)),
        ("Ks", Ks, (views, 3, 3)),
        ("background", background, (views, channels)),
    )
    for name, tensor, shape in expected:
        if tensor.shape != shape:
            raise ValueError(f"{name} must have the shape {list(shape)}; got {list(tensor.shape)}.")
        if tensor.dtype != means.dtype or tensor.device != means.device:
            raise ValueError(
                f"{name} must have the dtype and the device of means ({means.dtype}, {means.device}); "
                f"got {tensor.dtype}, {tensor.device}."
            )
    return features, background
