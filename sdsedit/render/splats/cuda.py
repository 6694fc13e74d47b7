"""The splat renderer on a GPU: gsplat 1.5 (Ye et al. 2024, arXiv:2409.06765), given the shapes of the other faces.

reference.py says what is computed. Its constants are gsplat's own: those that gsplat takes as arguments are passed, the
others (alpha at most 0.999 and at least 1/255, the end of a pixel at 1e-4) are in its kernels. gsplat computes
exponentials in the fast way and sums gradients in any order, so its results are close to those of the other faces, not
the same bit for bit, and the last digits of a gradient differ from run to run.

gsplat builds its kernels when they are first wanted: minutes, once, with a CUDA toolkit.
"""

from __future__ import annotations

import shutil
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from sdsedit.errors import printable
from sdsedit.render.splats.reference import BLUR, NEAR

_HOW = 'pip install "sdsedit[splats]"'


@cache
def available() -> str:
    """Why gsplat cannot draw here, as one sentence; empty if it can. The first call may build its kernels."""
    if find_spec("gsplat") is None:
        return f"gsplat, which draws splats on a GPU, is not installed: {_HOW}."
    if not torch.cuda.is_available():
        return "gsplat draws splats on a GPU only, and PyTorch finds none with CUDA here."
    try:
        if find_spec("gsplat.csrc") is None and not _toolkit():
            return "gsplat builds its kernels with a CUDA toolkit, and there is no nvcc here."
        from gsplat.cuda._backend import _C  # pyright: ignore[reportMissingImports]  # an extra
    except Exception as error:  # the build raises what compilers and linkers bring
        lines = str(error).splitlines() or [type(error).__name__]
        return f"gsplat cannot be loaded ({printable(lines[0], 100)}): {_HOW} brings what it needs."
    return "" if _C is not None else "gsplat builds its kernels with a CUDA toolkit, and finds none here."


def _toolkit() -> bool:
    from torch.utils.cpp_extension import CUDA_HOME

    return CUDA_HOME is not None or shutil.which("nvcc") is not None


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
    """Draw float32 tensors on a GPU; more than 31 features take several passes.

    RuntimeError: gsplat cannot draw here.
    """
    if fault := available():
        raise RuntimeError(fault)
    if not len(means):
        image = background[:, None, None].expand(-1, height, width, -1)
        nothing = image.new_zeros(image.shape[:3])
        return image, nothing, nothing
    from gsplat import rasterization  # pyright: ignore[reportMissingImports]  # an extra

    # As in every face, a Gaussian of numbers that are not finite is not drawn: here it becomes one of opacity 0.
    numbers = torch.cat([means, quats, scales, opacities[:, None]], dim=-1)
    good = numbers.isfinite().all(-1) & (quats != 0).any(-1)
    drawn, alpha, _ = rasterization(
        means=torch.where(good[:, None], means, 0.0),
        quats=torch.where(good[:, None], quats, 1.0),
        scales=torch.where(good[:, None], scales, 1.0),
        opacities=torch.where(good, opacities, 0.0),
        colors=features,
        viewmats=viewmats.detach(),
        Ks=Ks.detach(),
        width=width,
        height=height,
        near_plane=NEAR,
        far_plane=torch.finfo(torch.float32).max,  # none
        radius_clip=0.0,
        eps2d=BLUR,
        packed=False,
        backgrounds=background,
        render_mode="RGB+D",  # the depth is one more feature, with a background of 0
        rasterize_mode="classic",
    )
    return drawn[..., :-1], alpha[..., 0], drawn[..., -1]
