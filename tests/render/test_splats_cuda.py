"""The gsplat face: what it says without its GPU or package, that gsplat takes what it is given, and, on a GPU, parity.

Tolerances on a GPU (gsplat: fast exponentials, float32 sums in any order): mean difference of a picture 1e-4 and of its
largest 0.02 (a Gaussian at the limit of 1/255 may be in one and not in the other), gradients relative 1e-2 (2-norm).
"""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdsedit.camera import orbit
from sdsedit.render.splats import cuda, lift, render

ROOT = Path(__file__).resolve().parent.parent.parent
needs_gpu = pytest.mark.skipif(
    bool(cuda.available()), reason=f"parity of gsplat with the CPU face needs a GPU: {cuda.available()}"
)


def scene(count: int = 300, channels: int = 3, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """means, quats, scales, opacities, features: a ball of Gaussians of many sizes."""
    g = torch.Generator().manual_seed(7)
    means = torch.randn(count, 3, generator=g) * 0.5
    quats = torch.randn(count, 4, generator=g)
    scales = torch.exp(torch.randn(count, 3, generator=g) * 0.6 - 3)
    opacities = torch.rand(count, generator=g) * 0.9 + 0.05
    features = torch.rand(count, channels, generator=g)
    return [x.to(dtype) for x in (means, quats, scales, opacities, features)]


def cameras(views: int = 2, width: int = 70, height: int = 50) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    seen = orbit((0, 0, 0), 3.0, (5.0, 40.0), views, width, height)
    return seen.viewmats, seen.Ks, width, height


# --- without a GPU ---------------------------------------------------------------------------------------------------


def test_what_is_missing_is_said_in_one_sentence() -> None:
    said = cuda.available()
    if said:
        assert said.endswith(".") and "\n" not in said and len(said) < 200
        assert "gsplat" in said
        with pytest.raises(RuntimeError) as caught:
            cuda.render(*scene(), *cameras(), background=torch.zeros(2, 3))
        assert str(caught.value) == said
    else:
        assert torch.cuda.is_available()


def test_without_gsplat_the_sentence_names_the_extra() -> None:
    """In a Python that sees no gsplat, whatever this one has."""
    code = (
        "import sys; sys.modules['gsplat'] = None\n"  # how Python itself says that a module cannot be had
        "from sdsedit.render.splats import cuda; print(cuda.available())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    assert 'pip install "sdsedit[splats]"' in done.stdout and done.stdout.count("\n") == 1


def test_the_front_door_draws_on_the_cpu_without_it() -> None:
    """auto takes the CPU for the CPU's tensors, and says nothing of gsplat; asked for by name, gsplat needs its own."""
    drawn = render(*scene(20), *cameras(), backend="auto")
    assert drawn.image.shape == (2, 50, 70, 3)
    with pytest.raises(ValueError, match="GPU"):
        render(*scene(20), *cameras(), backend="cuda")


def test_the_file_is_light() -> None:
    """Neither gsplat nor PyTorch's compiler tools are imported before they are wanted."""
    code = (
        "import sys; import sdsedit.render.splats.cuda\n"
        "print([m for m in ('gsplat', 'torch.utils.cpp_extension') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_gsplat_takes_what_it_is_given() -> None:
    """Every argument that the face passes is one of the installed gsplat's, and none that it needs is left out."""
    gsplat = pytest.importorskip("gsplat", reason="gsplat is not installed: its signature is not checked")
    calls = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(cuda)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "rasterization"
    ]
    assert len(calls) == 1 and not calls[0].args
    signature = inspect.signature(gsplat.rasterization)
    signature.bind(**{str(keyword.arg): None for keyword in calls[0].keywords})
    defaults = {name: each.default for name, each in signature.parameters.items()}
    assert defaults["eps2d"] == pytest.approx(0.3) and defaults["near_plane"] == pytest.approx(0.01)
    assert defaults["channel_chunk"] == 32 and defaults["camera_model"] == "pinhole"


# --- with one --------------------------------------------------------------------------------------------------------


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    difference = (found.cpu() - wanted).abs() / wanted.abs().max().clamp(min=1)
    assert difference.mean() < 1e-4 and difference.max() < 0.02, (difference.mean(), difference.max())


@needs_gpu
@pytest.mark.parametrize("channels", [1, 3, 4, 31, 32, 45])
@pytest.mark.parametrize("per_view", [False, True])
def test_pictures_agree_with_the_cpu(channels: int, per_view: bool) -> None:
    *gaussians, features = scene(channels=channels)
    if per_view:
        features = torch.stack([features, 1 - features])
    background = torch.linspace(0, 1, channels)
    here = render(*gaussians, features, *cameras(), background, backend="cpu")
    viewmats, Ks, *size = cameras()
    there = [x.cuda() for x in (*gaussians, features, viewmats, Ks)]
    drawn = render(*there, *size, background.cuda(), backend="cuda")
    close(drawn.image, here.image)
    close(drawn.alpha, here.alpha)
    close(drawn.depth, here.depth)
    assert torch.equal(render(*there, *size, background.cuda()).image, drawn.image)  # auto


@needs_gpu
def test_gradients_agree_with_the_cpu() -> None:
    viewmats, Ks, *size = cameras()
    results = []
    for device, backend in (("cpu", "cpu"), ("cuda", "cuda")):
        leaves = [
            x.to(device).requires_grad_() for x in (*scene(), torch.rand(3, generator=torch.Generator().manual_seed(1)))
        ]
        drawn = render(*leaves[:5], viewmats.to(device), Ks.to(device), *size, leaves[5], backend=backend)
        weight = torch.linspace(-1, 1, drawn.image.numel()).reshape(drawn.image.shape).to(device)
        loss = (weight * drawn.image).sum() + drawn.alpha.square().sum() + 0.1 * drawn.depth.sum()
        results.append([x.cpu() for x in torch.autograd.grad(loss, leaves)])
    for here, there in zip(*results, strict=True):
        assert (here - there).norm() <= 1e-2 * here.norm()


@needs_gpu
def test_lifting_agrees_with_the_cpu() -> None:
    *gaussians, _ = scene()
    viewmats, Ks, *size = cameras()
    maps = torch.rand(2, size[1], size[0], 2, generator=torch.Generator().manual_seed(3))
    wanted = lift(*gaussians, viewmats, Ks, *size, maps, backend="cpu")
    found = lift(*(x.cuda() for x in (*gaussians, viewmats, Ks)), *size, maps.cuda(), backend="cuda")
    for here, there in zip(wanted, found, strict=True):
        assert (here - there.cpu()).norm() <= 1e-2 * here.norm()


@needs_gpu
def test_bad_gaussians_and_none_are_not_drawn() -> None:
    gaussians = scene(50)
    viewmats, Ks, *size = cameras()
    bad = [x.clone() for x in gaussians]
    bad[0][3] = torch.nan
    bad[1][4] = 0
    bad[2][5, 0] = torch.inf
    bad[3][6] = torch.nan
    rest = [x[[i for i in range(50) if i not in (3, 4, 5, 6)]] for x in gaussians]
    with_bad, without, nothing = (
        render(*(x.cuda() for x in (*some, viewmats, Ks)), *size, backend="cuda")
        for some in (bad, rest, [x[:0] for x in gaussians])
    )
    torch.testing.assert_close(with_bad.image, without.image)
    assert not nothing.image.any() and not nothing.alpha.any()
