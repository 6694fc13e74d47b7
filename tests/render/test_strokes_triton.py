"""The strokes of the CUDA face against the reference: its kernels run by Triton's interpreter, compiled for a GPU that
need not be there, and run on one that is.

The interpreter must be asked for before Triton is loaded, so it has a process of its own, which is this file:
TRITON_INTERPRET=1 python tests/render/test_strokes_triton.py results.npz
"""

from __future__ import annotations

import importlib
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sdsedit.render.strokes import reference
from sdsedit.render.strokes.layout import EVENODD, NONZERO, STROKE, Drawing, Topology

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("picture", "points", "widths", "colours", "background")

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (sdsedit[cuda])")
needs_cuda = pytest.mark.skipif(
    find_spec("triton") is None or not torch.cuda.is_available(), reason="no CUDA GPU: the kernels run interpreted only"
)


class Scene(NamedTuple):
    drawing: Drawing  # float32
    grad: Tensor  # [B, 3, H, W], what the loss sends back


def scene(
    topology: Topology, points: Tensor, widths: Tensor, seed: int, height=20, width=24, opaque: bool = False
) -> Scene:
    """Random colours and a random loss for these points [B, P, 2] and widths [B, N, 2]."""
    draw = torch.Generator().manual_seed(seed)
    batch = points.shape[0]
    colours = torch.rand(batch, len(topology), 4, generator=draw)
    if opaque:
        colours[..., 3] = 1
    drawing = Drawing(topology, points, widths, colours, torch.rand(batch, 3, generator=draw))
    return Scene(drawing, torch.randn(batch, 3, height, width, generator=draw))


def wander(topology: Topology, batch: int, seed: int, step: float, height: float = 20, width: float = 24) -> Tensor:
    """[B, P, 2]: each contour begins anywhere and goes on in random steps."""
    draw = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    each = []
    for begin, end in pairwise(topology.contour_points.tolist()):
        steps = (torch.rand(batch, end - begin, 2, generator=draw) - 0.5) * step
        steps[:, 0] = torch.rand(batch, 2, generator=draw) * size
        each.append(steps.cumsum(1))
    return torch.cat(each, dim=1)


def line(*corners: tuple[float, float]) -> Tensor:
    """[1, 3 n + 1, 2]: straight cubics through n + 1 corners."""
    c = torch.tensor(corners)
    t = torch.arange(3)[:, None] / 3
    pieces = [a + t * (b - a) for a, b in pairwise(c)]
    return torch.cat([*pieces, c[-1:]])[None]


def ring(*corners: tuple[float, float]) -> Tensor:
    """[1, 3 n, 2]: the same, closed."""
    return line(*corners, corners[0])[:, :-1]


def constant(*widths: float | tuple[float, float]) -> Tensor:
    return torch.tensor([w if isinstance(w, tuple) else (w, w) for w in widths], dtype=torch.float32)[None]


def strokes_scene() -> Scene:
    """Several cubics, tapering, both caps, overlaps, two pictures."""
    topology = Topology((STROKE,) * 3, (((2, False),), ((2, False),), ((1, False),)), (True, False, False))
    widths = torch.tensor([[[1.0, 6.0], [5.0, 2.0], [3.0, 3.0]], [[0.2, 0.2], [0.7, 4.0], [8.0, 1.0]]])
    return scene(topology, wander(topology, 2, 1, 9), widths, 1)


def caps_scene() -> Scene:
    """Dots with both caps, a butt cap whose first cubic is a point, a sharp bend near a cap, closed and open contours
    in one shape with butt caps."""
    contours = (((1, False),), ((1, False),), ((2, False),), ((2, False),), ((3, True), (1, False)))
    topology = Topology((STROKE,) * 5, contours, (True, False, False, False, False))
    points = [
        line((4.3, 4.2), (4.3, 4.2)),
        line((9.1, 3.7), (9.1, 3.7)),
        line((3.2, 14.1), (3.2, 14.1), (10.7, 16.4)),
        line((13.3, 3.1), (15.2, 4.9), (20.4, 3.3)),
        ring((14.2, 9.3), (19.1, 10.2), (16.6, 14.4)),
        line((12.1, 17.3), (20.9, 16.2)),
    ]
    return scene(topology, torch.cat(points, dim=1), constant(5, 5, 3, 6, (1.4, 1.8)), 2)


def widths_scene() -> Scene:
    """64 px and 0.2 px, beside the page and half on it."""
    topology = Topology((STROKE,) * 5, (((1, False),),) * 5, (True, True, True, False, True))
    points = [
        line((2.3, 25.2), (21.1, 30.7)),
        line((1.7, 2.2), (22.6, 11.3)),
        line((-90.2, 5.1), (-40.6, 9.3)),
        line((-6.4, 15.8), (9.2, 18.1)),
        line((19.7, -30.1), (17.2, 60.4)),
    ]
    return scene(topology, torch.cat(points, dim=1), constant(64, 0.2, 9, (2, 5), (0.4, 30)), 3)


def fills_scene() -> Scene:
    """Both rules: a hole, a star that crosses itself, an open contour, an edge beyond every side; opaque overlaps."""
    contours = (((3, True), (3, True)), ((5, True),), ((2, False),), ((4, True),), ((4, True), (3, True)))
    topology = Topology((NONZERO, NONZERO, EVENODD, EVENODD, EVENODD), contours, (True,) * 5)
    star = [(12 + 8 * math.sin(k * 0.8 * math.pi), 10.2 - 8 * math.cos(k * 0.8 * math.pi)) for k in range(5)]
    points = [
        ring((2.2, 2.7), (20.4, 4.1), (9.6, 17.3)),
        ring((6.9, 5.2), (9.8, 12.6), (14.9, 5.9)),  # the other way round: a hole by both rules
        ring(*star),
        wander(Topology((STROKE,), (((2, False),),), (True,)), 1, 4, 14),
        ring((-7.1, -5.2), (4.3, -6.6), (3.4, 30.2), (-9.3, 27.7)),
        ring((13.1, 11.7), (30.2, 12.4), (31.7, 26.1), (12.2, 25.3)),
        ring((15.4, 14.2), (21.6, 15.1), (17.8, 19.2)),
    ]
    return scene(topology, torch.cat(points, dim=1), constant(0, 0, 0, 0, 0), 4, opaque=True)


def grid_scene() -> Scene:
    """Everything on whole and half pixels, where derivatives have two sides and equals are common. Lengths of strokes
    are powers of two: no rounding decides which side it is."""
    contours = (((4, True),), ((1, False),), ((1, False),), ((4, True),))
    topology = Topology((NONZERO, STROKE, STROKE, EVENODD), contours, (True, False, True, True))
    points = [
        ring((4.0, 3.0), (16.0, 3.0), (16.0, 16.0), (4.0, 16.0)),
        line((2.0, 6.0), (18.0, 6.0)),
        line((10.5, 1.5), (10.5, 17.5)),
        ring((8.5, 8.5), (20.0, 8.5), (20.0, 14.0), (8.5, 14.0)),
    ]
    return scene(topology, torch.cat(points, dim=1), constant(0, 2, 3, 0), 5)


def wide_page_scene() -> Scene:
    """A long thin diagonal misses most tiles of its box; tiles without anything."""
    topology = Topology((STROKE, STROKE), (((1, False),),) * 2, (True, False))
    points = [line((3.2, 61.1), (66.3, 4.4)), line((60.2, 58.4), (64.9, 61.2))]
    return scene(topology, torch.cat(points, dim=1), constant((1, 2), 2), 6, 66, 70)


def mixed_scene() -> Scene:
    """Strokes and areas in turn, two pictures: what is drawn twice."""
    contours = (((1, False),), ((2, True),), ((2, True),), ((1, False),))
    topology = Topology((STROKE, NONZERO, STROKE, EVENODD), contours, (False, True, True, True))
    widths = torch.tensor([[[2.0, 4.0], [0.0, 0.0], [1.5, 1.5], [0.0, 0.0]]]).expand(2, -1, -1).contiguous()
    return scene(topology, wander(topology, 2, 7, 8), widths, 7)


def nothing_scene() -> Scene:
    """No shapes at all."""
    empty = Topology((), (), ())
    return scene(empty, torch.zeros(2, 0, 2), torch.zeros(2, 0, 2), 8)


def off_scene() -> Scene:
    """Shapes, and not one on the page."""
    topology = Topology((STROKE, NONZERO), (((1, False),), ((3, True),)), (False, True))
    points = [line((40.0, -9.0), (55.0, -3.0)), ring((-9.0, 3.0), (-3.0, 8.0), (-5.0, 12.0))]
    return scene(topology, torch.cat(points, dim=1), constant(4, 0), 9)


SCENES = {
    "strokes": strokes_scene,
    "caps": caps_scene,
    "widths": widths_scene,
    "fills": fills_scene,
    "grid": grid_scene,
    "wide page": wide_page_scene,
    "mixed": mixed_scene,
    "nothing": nothing_scene,
    "off": off_scene,
}


def drawn(render, made: Scene, dtype: torch.dtype, device: str = "cpu") -> dict[str, np.ndarray]:
    """The picture, and the gradients of all that has one."""
    drawing, grad = made
    leaves = [getattr(drawing, name).to(device, dtype, copy=True).requires_grad_() for name in NAMES[1:]]
    picture = render(Drawing(drawing.topology, *leaves), *grad.shape[2:])
    picture.backward(grad.to(picture))
    found = [picture.detach(), *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]
    return {name: x.cpu().numpy() for name, x in zip(NAMES, found, strict=True)}


def assert_close(got: dict[str, np.ndarray], made: Scene, device: str = "cpu") -> None:
    expected = drawn(reference.render, made, torch.float64, device)
    assert np.abs(got["picture"] - expected["picture"]).max() < 2e-5
    for name in NAMES[1:]:
        scale = max(np.abs(expected[name]).max(initial=0), 1e-3)
        assert np.abs(got[name] - expected[name]).max(initial=0) < 1e-4 * scale, name


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory):
    """What the interpreter drew: "scene/name" -> array."""
    file = tmp_path_factory.mktemp("triton") / "results.npz"
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, str(file)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(file))


@needs_triton
@pytest.mark.parametrize("name", SCENES)
def test_interpreted_kernels_agree_with_the_reference(interpreted: dict[str, np.ndarray], name: str):
    assert_close({what: interpreted[f"{name}/{what}"] for what in NAMES}, SCENES[name]())


@needs_triton
def test_interpreted_kernels_repeat_bit_for_bit(interpreted: dict[str, np.ndarray]):
    for what in NAMES:
        assert interpreted[f"mixed/{what}"].tobytes() == interpreted[f"again/{what}"].tobytes()


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing compiles")
def test_kernels_compile_for_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """To the machine code of a Hopper GPU, by the assembler that comes with Triton."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sdsedit.render.strokes import cuda

    drawing = dict.fromkeys(("rows", "bends", "background", "picture", "grad"), "*fp32")
    sums = dict.fromkeys(("above", "slots", "tile_background", "grad_rows"), "*fp32")
    lists = dict.fromkeys(("kinds", "entries", "runs", "tile_runs"), "*i32")
    sizes = dict.fromkeys(("count", "height", "width", "tiles_x", "tiles_y"), "i32")
    types = drawing | sums | lists | sizes | {"places": "*i64", "row_slots": "*i64"}
    for kernel in (cuda._forward, cuda._backward, cuda._sum_slots):
        source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names})
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=cuda.OPTIONS)
        assert len(compiled.asm["cubin"]) > 1000


@needs_cuda
@pytest.mark.parametrize("name", SCENES)
def test_compiled_kernels_agree_with_the_reference(name: str):
    from sdsedit.render.strokes import cuda

    made = SCENES[name]()
    assert_close(drawn(cuda.render, made, torch.float32, "cuda"), made)


@needs_cuda
def test_compiled_kernels_on_a_full_page_agree_and_repeat_bit_for_bit():
    """200 strokes and 20 areas on 200 x 250 pixels, three times."""
    from sdsedit.render.strokes import cuda

    topology = Topology(
        (STROKE,) * 200 + (EVENODD,) * 20, (((2, False),),) * 200 + (((4, True),),) * 20, (True, False) * 110
    )
    widths = torch.rand(2, 220, 2, generator=torch.Generator().manual_seed(10)) * 6
    made = scene(topology, wander(topology, 2, 10, 40, 200, 250), widths, 10, 200, 250)
    first, *others = (drawn(cuda.render, made, torch.float32, "cuda") for _ in range(3))
    assert_close(first, made, "cuda")
    for other in others:
        assert all(first[what].tobytes() == other[what].tobytes() for what in NAMES)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: CPU tensors are welcome")
def test_cpu_tensors_are_refused():
    from sdsedit.render.strokes import cuda

    with pytest.raises(ValueError, match="draws CUDA tensors; got cpu"):
        cuda.render(mixed_scene().drawing, 20, 24)


def test_without_triton_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # what Python itself does to refuse an import
    monkeypatch.delitem(sys.modules, "sdsedit.render.strokes.cuda", raising=False)
    with pytest.raises(ImportError, match=r"needs Triton: pip install 'sdsedit\[cuda\]'\."):
        importlib.import_module("sdsedit.render.strokes.cuda")


def main(file: str) -> None:
    from sdsedit.render.strokes import cuda

    torch.set_num_threads(1)  # torch adds up gradients of shared points on the CPU in the order that its threads come
    results = {}
    for key, name in [*zip(SCENES, SCENES, strict=True), ("again", "mixed")]:
        for what, x in drawn(cuda.render, SCENES[name](), torch.float32).items():
            results[f"{key}/{what}"] = x
    np.savez(file, **results)


if __name__ == "__main__":
    main(sys.argv[1])
