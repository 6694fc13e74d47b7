"""The stroke renderers: laws of what is drawn, the CPU face against the readable one, and resvg as a third opinion."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sdsedit.render import strokes as front
from sdsedit.render.strokes import EVENODD, NONZERO, STROKE, Drawing, Topology, cpu, layout, reference, strokes

Contours = tuple[tuple[int, bool], ...]
OPEN, CLOSED, LONG = ((1, False),), ((3, True),), ((3, False),)
FACES = [pytest.param(reference.render, id="reference"), pytest.param(cpu.render, id="cpu")]
Face = Callable[[Drawing, int, int], Tensor]


def uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """float64, but numbers that float32 has too."""
    return (low + (high - low) * torch.rand(*shape, generator=generator)).double()


def scene(
    shapes: tuple[tuple[int, Contours, bool], ...],  # kind, contours, round caps
    size: tuple[int, int],
    seed: int,
    batch: int = 1,
    widths: tuple[float, float] = (0.2, 8.0),
    opaque: bool = False,
) -> Drawing:
    """Random points in and a little outside a picture of a size (height, width)."""
    kinds, contours, rounds = zip(*shapes, strict=True)
    topology = Topology(kinds, contours, rounds)
    generator = torch.Generator().manual_seed(seed)
    points = uniform(generator, batch, topology.points, 2, low=-0.1, high=1.1) * torch.tensor([size[1], size[0]])
    colours = uniform(generator, batch, len(kinds), 4)
    if opaque:
        colours[..., 3] = 1
    return single(
        Drawing(
            topology,
            points,
            uniform(generator, batch, len(kinds), 2, low=widths[0], high=widths[1]),
            colours,
            uniform(generator, batch, 3),
        )
    )


def single(drawing: Drawing, dtype: torch.dtype = torch.float64) -> Drawing:
    """The drawing with its numbers rounded to float32."""
    return Drawing(drawing.topology, *(x.float().to(dtype) for x in tensors(drawing)))


def tensors(drawing: Drawing) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return drawing.points, drawing.widths, drawing.colours, drawing.background


def line(
    points: list[list[float]], width: float, dtype: torch.dtype = torch.float64, round_caps: bool = True
) -> Drawing:
    """One black stroke on white."""
    return strokes(
        torch.tensor([[points]], dtype=dtype),
        torch.full((1, 1, 2), width, dtype=dtype),
        torch.tensor([[[0, 0, 0, 1.0]]], dtype=dtype),
        torch.ones(1, 3, dtype=dtype),
        round_caps,
    )


def polygon(corners: list[list[float]]) -> Tensor:
    """[3 n, 2], control points of a closed contour of n straight edges."""
    a = torch.tensor(corners, dtype=torch.float64)
    b = a.roll(-1, 0)
    return torch.stack([a, (2 * a + b) / 3, (a + 2 * b) / 3], dim=1).flatten(0, 1)


def area(kind: int, *contours: Tensor) -> Drawing:
    """One black filled shape on white."""
    topology = Topology((kind,), (tuple((len(c) // 3, True) for c in contours),), (True,))
    black = torch.tensor([[[0, 0, 0, 1.0]]], dtype=torch.float64)
    ones = torch.ones(1, 3, dtype=torch.float64)
    return Drawing(topology, torch.cat(contours)[None], torch.ones(1, 1, 2, dtype=torch.float64), black, ones)


def as_face(face: Face, drawing: Drawing) -> Drawing:
    return single(drawing, torch.float32) if face is cpu.render else drawing


def picture_and_gradients(face: Face, drawing: Drawing, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The gradients of sum(weight picture); weight [B, 3, H, W]."""
    leaves = [x.clone().requires_grad_() for x in tensors(drawing)]
    picture = face(Drawing(drawing.topology, *leaves), *weight.shape[2:])
    picture.backward(weight.to(picture))
    return picture.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]


def compare(drawing: Drawing, height: int, width: int, values: float = 1e-5, gradients: float = 1e-4) -> None:
    """The CPU face in float32 against the reference in float64; gradients relative to the largest of their kind."""
    batch = len(drawing.points)
    weight = uniform(torch.Generator().manual_seed(9), batch, 3, height, width, low=-1)
    expected, expected_gradients = picture_and_gradients(reference.render, drawing, weight)
    found, found_gradients = picture_and_gradients(cpu.render, single(drawing, torch.float32), weight)
    assert (found - expected).abs().max() < values
    for name, a, b in zip(
        ("points", "widths", "colours", "background"), found_gradients, expected_gradients, strict=True
    ):
        assert (a - b).abs().max() <= gradients * b.abs().max() + 1e-6, name


# --- the CPU face is the reference ------------------------------------------------------------------------------------

MIXED = (
    (STROKE, ((2, False),), True),
    (NONZERO, ((3, True), (2, True)), True),
    (STROKE, ((1, False), (2, True)), False),
    (EVENODD, ((4, True), (1, False)), True),
    (STROKE, LONG, False),
    (STROKE, CLOSED, True),
)
SCENES = {
    "strokes": ((STROKE, OPEN, True),) * 6,
    "long butt strokes": ((STROKE, LONG, False),) * 3,
    "closed strokes, round or not": ((STROKE, CLOSED, True), (STROKE, CLOSED, False)),
    "areas with holes and crossings": (
        (NONZERO, ((4, True), (3, True)), True),
        (EVENODD, ((4, True), (3, True)), True),
    ),
    "areas of open contours": ((NONZERO, LONG, True), (EVENODD, LONG, True)),
    "all together": MIXED,
}


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (21, 37)], ids=str)
@pytest.mark.parametrize("name", SCENES)
def test_cpu_is_the_reference(name: str, size: tuple[int, int]):
    compare(scene(SCENES[name], size, seed=len(name)), *size)


@pytest.mark.parametrize("seed", range(4))
def test_cpu_is_the_reference_for_batches_of_opaque_shapes(seed: int):
    compare(scene(MIXED, (20, 26), seed, batch=3, opaque=seed % 2 == 0), 20, 26)


@pytest.mark.parametrize("widths", [(0.0, 0.0), (0.2, 0.2), (0.2, 6.0), (64.0, 64.0)], ids=str)
@pytest.mark.parametrize("round_caps", [True, False])
def test_cpu_is_the_reference_at_any_width(widths: tuple[float, float], round_caps: bool):
    drawing = scene(((STROKE, OPEN, round_caps), (STROKE, ((2, False),), round_caps)), (24, 24), 3, widths=widths)
    compare(drawing, 24, 24)


def test_cpu_is_the_reference_for_long_straight_and_distant_strokes():
    """They cross many tiles, start and end far outside, or are not to be seen at all."""
    ends = [[(-60, 3), (100, 38)], [(7.3, -900), (7.9, 900)], [(-5, 20.2), (60, 20.2)], [(-50, -9), (60, -8)]]
    points = torch.tensor(ends, dtype=torch.float64)[None]
    a, b = points[:, :, :1], points[:, :, 1:]
    points = torch.cat([a, (2 * a + b) / 3, (a + 2 * b) / 3, b], dim=2)
    generator = torch.Generator().manual_seed(1)
    widths, colours = uniform(generator, 1, 4, 2, low=1, high=3), uniform(generator, 1, 4, 4)
    for round_caps in (True, False):
        compare(single(strokes(points, widths, colours, uniform(generator, 1, 3), round_caps)), 40, 44)


def test_a_far_away_picture_of_the_same_is_the_same():
    """Tiles see chords from their own corner: 16,000 pixels from the origin float32 still has what it had."""
    drawing = single(scene(MIXED, (20, 20), 5))
    near = cpu.render(single(drawing, torch.float32), 20, 20)
    moved = (drawing.points * 64).round() / 64  # numbers that survive the move
    near = cpu.render(single(Drawing(drawing.topology, moved, *tensors(drawing)[1:]), torch.float32), 20, 20)
    far_points = moved + torch.tensor([4096.0, 0])
    far = cpu.render(single(Drawing(drawing.topology, far_points, *tensors(drawing)[1:]), torch.float32), 20, 4116)
    assert (far[..., 4096:] - near).abs().max() < 1e-5


def test_shapes_without_length():
    """A dot with round caps; nothing with butt caps, and nothing else lost: a doubled first point changes nothing."""
    dot, moving = [[5.2, 6.1]] * 4, [[5.2, 6.1], [8, 9], [12, 9], [15, 12.0]]
    weight = uniform(torch.Generator().manual_seed(0), 1, 3, 16, 20, low=-1)
    for face in (reference.render, cpu.render):
        round_dot, gradients = picture_and_gradients(face, as_face(face, line(dot, 4.0)), weight)
        assert ink(round_dot) == pytest.approx(math.pi * (2**2 + 1 / 12), abs=0.1)  # 1/12: its edge is a pixel wide
        assert gradients[0].abs().sum() > 0 and all(x.isfinite().all() for x in gradients)
        nothing, gradients = picture_and_gradients(face, as_face(face, line(dot, 4.0, round_caps=False)), weight)
        assert (1 - nothing).abs().max() < 1e-3 and all(x.isfinite().all() for x in gradients)
        doubled = face(as_face(face, line(dot[:3] + moving, 3.0, round_caps=False)), 16, 20)
        assert (doubled - face(as_face(face, line(moving, 3.0, round_caps=False)), 16, 20)).abs().max() < 1e-3
    expected, of_reference = picture_and_gradients(reference.render, line(dot, 4.0), weight)
    found, of_cpu = picture_and_gradients(cpu.render, as_face(cpu.render, line(dot, 4.0)), weight)
    assert (found - expected).abs().max() < 1e-5
    # Which of the equal points gets how much is a tie; all together they move the dot.
    assert (of_cpu[0].sum(1) - of_reference[0].sum(1)).abs().max() < 1e-3


def test_level_and_upright_edges_have_gradients():
    """Rectangles are what files are full of. An edge is where a coordinate of two ends is equal, no special case."""
    compare(area(NONZERO, polygon([[3.3, 4.4], [17.6, 4.4], [17.6, 12.7], [3.3, 12.7]])), 18, 22)


def test_numbers_of_chords_are_those_of_the_layout():
    for seed, scale in enumerate((0.01, 1, 30, 1000, 1e30)):
        drawing = scene(MIXED, (40, 50), seed, batch=2)
        points = (drawing.points * scale).float()
        t = drawing.topology
        plan = cpu._prepare(
            points.numpy(), drawing.widths.float().numpy(), t.shape_kinds, t.shape_round, t.contour_shape,
            t.contour_cubics, t.contour_closed, t.cubic_points, 3, 4,
            (layout.TOLERANCE, layout.MIN_CHORDS, layout.MAX_CHORDS, reference.SHORT),
        )  # fmt: skip
        pieces = layout.chords(t, layout.chord_counts(t, points))
        assert (plan.contour_first == pieces.first).all()
        assert (t.cubic_points[plan.vertex_cubic] == pieces.points).all()
        assert np.abs(plan.vertex_basis - pieces.basis).max() < 1e-15
        assert np.abs(plan.vertex_along - pieces.along).max() < 1e-15


def test_reference_gradients_are_finite_differences():
    for seed, shapes in enumerate(
        (((STROKE, LONG, True),), ((STROKE, OPEN, False),) * 2, ((NONZERO, CLOSED, True), (EVENODD, CLOSED, True)))
    ):
        drawing = scene(shapes, (7, 8), seed, widths=(0.4, 4))
        topology = drawing.topology
        leaves = [x.clone().requires_grad_() for x in tensors(drawing)]

        def draw(*x: Tensor, topology: Topology = topology) -> Tensor:
            return reference.render(Drawing(topology, *x), 7, 8)

        assert torch.autograd.gradcheck(draw, leaves, eps=1e-7, atol=1e-5, fast_mode=True)


# --- the same bits every time -----------------------------------------------------------------------------------------


def sketch(count: int, size: int, step: float, width: float, seed: int = 0, round_caps: bool = True) -> Drawing:
    """Black strokes as DiffSketcher starts them: a point, then three steps of `step` times the picture at most."""
    generator = torch.Generator().manual_seed(seed)
    start = uniform(generator, 1, count, 1, 2) * size
    steps = uniform(generator, 1, count, 3, 2, low=-0.5, high=0.5) * step * size
    points = torch.cat([start, start + steps.cumsum(2)], dim=2).float()
    colours = torch.zeros(1, count, 4)
    colours[..., 3] = 1
    return strokes(points, torch.full((1, count, 2), width), colours, torch.ones(1, 3), round_caps)


def test_the_same_bits_every_time_with_any_number_of_threads():
    drawing = sketch(300, 300, 0.5, 1.5)
    weight = uniform(torch.Generator().manual_seed(0), 1, 3, 300, 300)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            found.append(picture_and_gradients(cpu.render, drawing, weight))
    finally:
        torch.set_num_threads(threads)
    for picture, gradients in found[1:]:
        assert torch.equal(picture, found[0][0])
        assert all(torch.equal(a, b) for a, b in zip(gradients, found[0][1], strict=True))


# --- laws -------------------------------------------------------------------------------------------------------------


def ink(picture: Tensor) -> float:
    """Pixels' worth of black on white."""
    return float((1 - picture).mean(1).sum())


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("width", [0.2, 0.7, 1.0, 1.5, 7.3])
def test_a_line_has_its_width_times_its_length_of_ink(face: Face, width: float):
    for length in (2.5, 4.0, 11.7):
        points = [[5.4 + length * x, 8.3] for x in (0, 1 / 3, 2 / 3, 1)]
        picture = face(as_face(face, line(points, width, round_caps=False)), 16, 24)
        assert ink(picture) == pytest.approx(width * length, abs=1e-4)


@pytest.mark.parametrize("face", FACES)
def test_a_rectangle_has_its_area(face: Face):
    corners = [[3.3, 4.4], [19.6, 4.4], [19.6, 12.7], [3.3, 12.7]]
    picture = face(as_face(face, area(NONZERO, polygon(corners))), 18, 40)
    assert ink(picture) == pytest.approx((19.6 - 3.3) * (12.7 - 4.4), abs=1e-3)
    assert float(1 - picture[0, 0, 4, 3]) == pytest.approx(0.7 * 0.6, abs=1e-5)  # its corner's pixel
    assert (picture[0, :, :, 20:] == 1).all()


@pytest.mark.parametrize("face", FACES)
def test_the_rules_of_filling(face: Face):
    outer, inner = (polygon([[a, a], [b, a], [b, b], [a, b]]) for a, b in ((2.25, 21.75), (8.0, 16.0)))
    backwards = polygon([[8.0, 8.0], [8.0, 16.0], [16.0, 16.0], [16.0, 8.0]])
    full, hole = 19.5**2, 64
    for kind, second, expected in (
        (EVENODD, inner, full - hole),
        (EVENODD, backwards, full - hole),
        (NONZERO, inner, full),
        (NONZERO, backwards, full - hole),
    ):
        picture = face(as_face(face, area(kind, outer, second)), 24, 24)
        assert ink(picture) == pytest.approx(expected, abs=1e-3)
        assert float(picture[0, 0, 12, 12]) == pytest.approx(float(expected < full), abs=1e-6)


@pytest.mark.parametrize("face", FACES)
def test_moving_everything_by_whole_pixels_moves_the_picture(face: Face):
    drawing = scene(MIXED, (14, 15), 2)
    drawing = Drawing(drawing.topology, (drawing.points * 64).round() / 64, *tensors(drawing)[1:])
    here = face(as_face(face, drawing), 24, 24)
    moved = Drawing(drawing.topology, drawing.points + torch.tensor([5.0, 3.0]), *tensors(drawing)[1:])
    assert (face(as_face(face, moved), 27, 29)[..., 3:, 5:] - here).abs().max() < 1e-5


@pytest.mark.parametrize("face", FACES)
def test_what_is_painted_last_is_on_top(face: Face):
    points = torch.tensor([[[[2, 8], [6, 8], [10, 8], [14, 8]], [[8, 2], [8, 6], [8, 10], [8, 14]]]]).double()
    colours = torch.tensor([[[1, 0, 0, 1], [0, 0, 1, 1]]]).double()
    drawing = strokes(points, torch.full((1, 2, 2), 4.0).double(), colours, torch.ones(1, 3).double())
    picture = face(as_face(face, drawing), 16, 16)
    assert picture[0, :, 8, 8].tolist() == [0, 0, 1] and picture[0, :, 8, 3].tolist() == [1, 0, 0]


@pytest.mark.parametrize("face", FACES)
def test_the_gradient_of_the_background_is_what_shines_through(face: Face):
    drawing = scene(MIXED, (18, 20), 8)
    weight = torch.zeros(1, 3, 18, 20)
    weight[0, 1] = 1
    _, gradients = picture_and_gradients(face, as_face(face, drawing), weight)
    black = Drawing(
        drawing.topology, *tensors(drawing)[:2], drawing.colours * torch.tensor([0, 0, 0, 1]), torch.ones(1, 3).double()
    )
    through = face(as_face(face, black), 18, 20)[0, 1].sum()
    assert gradients[3][0].tolist() == pytest.approx([0, float(through), 0], rel=1e-5)


@pytest.mark.parametrize("face", FACES)
def test_a_straight_stroke_can_be_bent(face: Face):
    weight = torch.zeros(1, 3, 16, 16)
    weight[:, :, :8] = 1  # the upper half should become darker
    drawing = line([[2, 8.2], [6, 8.2], [10, 8.2], [14, 8.2]], 2.0)
    _, gradients = picture_and_gradients(face, as_face(face, drawing), weight)
    assert (gradients[0][0, :, 1] > 0).all()  # less of it further up


@pytest.mark.parametrize("face", FACES)
def test_nothing_to_draw(face: Face):
    for batch in (0, 2):
        nothing = Drawing(
            Topology((), (), ()),
            torch.zeros(batch, 0, 2),
            torch.zeros(batch, 0, 2),
            torch.zeros(batch, 0, 4),
            torch.full((batch, 3), 0.25),
        )
        picture, gradients = picture_and_gradients(face, nothing, torch.ones(batch, 3, 5, 33))
        assert picture.shape == (batch, 3, 5, 33) and (picture == 0.25).all()
        assert (gradients[3] == 5 * 33).all()


def test_numbers_larger_than_any_picture_are_no_danger():
    drawing = scene(MIXED, (20, 20), 4)
    for scale in (1e4, 1e9, 1e20, 3e36):
        huge = Drawing(drawing.topology, drawing.points * scale, drawing.widths * scale, *tensors(drawing)[2:])
        picture, gradients = picture_and_gradients(cpu.render, single(huge, torch.float32), torch.ones(1, 3, 20, 20))
        assert picture.isfinite().all() and ((picture >= -1e-6) & (picture <= 1 + 1e-6)).all()
        assert all(x.isfinite().all() for x in gradients)


# --- the front door ---------------------------------------------------------------------------------------------------


def test_the_front_door_picks_a_face():
    drawing = scene(MIXED, (12, 12), 6)
    assert torch.equal(front.render(drawing, 12, 12), reference.render(drawing, 12, 12))
    single_drawing = single(drawing, torch.float32)
    assert torch.equal(front.render(single_drawing, 12, 12), cpu.render(single_drawing, 12, 12))
    assert torch.equal(front.render(single_drawing, 12, 12, "reference"), reference.render(single_drawing, 12, 12))
    with pytest.raises(ValueError, match=r"backend must be .* got 'gpu'"):
        front.render(drawing, 12, 12, "gpu")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"draws float32 tensors on the CPU; got torch\.float64"):
        front.render(drawing, 12, 12, "cpu")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_refused_by_the_shape_that_has_it(backend, value: float):
    drawing = single(scene(MIXED, (12, 12), 6, batch=2), torch.float32)
    for which, index in ((0, (1, 40, 1)), (1, (0, 4, 0)), (2, (1, 2, 3)), (3, (0, 1))):
        changed = [x.clone() for x in tensors(drawing)]
        changed[which][index] = value
        expected = ("shape 3 has one", "shape 4 has one", "shape 2 has one", "background of a drawing")[which]
        with pytest.raises(ValueError, match=expected):
            front.render(Drawing(drawing.topology, *changed), 12, 12, backend)


def test_widths_below_zero_are_refused_where_they_mean_something():
    drawing = single(scene(MIXED, (12, 12), 6), torch.float32)
    widths = drawing.widths.clone()
    widths[0, 1] = -1  # of an area
    front.render(Drawing(drawing.topology, drawing.points, widths, *tensors(drawing)[2:]), 12, 12)
    widths[0, 4, 1] = -0.1
    with pytest.raises(ValueError, match="width must not be negative; that of shape 4 is"):
        front.render(Drawing(drawing.topology, drawing.points, widths, *tensors(drawing)[2:]), 12, 12)


@pytest.mark.parametrize("size", [(0, 5), (5, 16385)])
def test_impossible_sizes_are_refused(size: tuple[int, int]):
    with pytest.raises(ValueError, match="from 1 to 16384 pixels"):
        front.render(line([[0, 0]] * 4, 1.0), *size)


# --- a third opinion --------------------------------------------------------------------------------------------------


def svg(drawing: Drawing, height: int, width: int, scale: int = 1) -> str:
    """The first drawing of a batch, `scale` times as large."""
    topology, points = drawing.topology, drawing.points[0].tolist()

    def rgb(colour: list[float]) -> str:
        return "rgb(" + ",".join(f"{100 * x:.4f}%" for x in colour[:3]) + ")"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{scale * width}" height="{scale * height}" '
        f'viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" fill="{rgb(drawing.background[0].tolist())}"/>',
    ]
    cubic = 0
    for shape, contours in enumerate(topology.contours):
        path = ""
        for count, closed in contours:
            for nth in range(count):
                p, q, r, s = (f"{points[i][0]:.6f} {points[i][1]:.6f}" for i in topology.cubic_points[cubic])
                path += (f"M{p}" if nth == 0 else "") + f"C{q} {r} {s}"
                cubic += 1
            path += "Z" if closed else ""
        colour = drawing.colours[0, shape].tolist()
        if topology.kinds[shape] == STROKE:
            cap = "round" if topology.round_caps[shape] else "butt"
            lines.append(
                f'<path d="{path}" fill="none" stroke="{rgb(colour)}" stroke-opacity="{colour[3]:.5f}" '
                f'stroke-width="{float(drawing.widths[0, shape, 0]):.5f}" stroke-linejoin="round" '
                f'stroke-linecap="{cap}"/>'
            )
        else:
            rule = "nonzero" if topology.kinds[shape] == NONZERO else "evenodd"
            lines.append(f'<path d="{path}" fill="{rgb(colour)}" fill-opacity="{colour[3]:.5f}" fill-rule="{rule}"/>')
    return "".join(lines) + "</svg>"


def resvg(drawing: Drawing, height: int, width: int, scale: int) -> Tensor:  # [1, 3, H, W]
    """Drawn by resvg `scale` times as large, and the mean of each pixel's square."""
    resvg_py = pytest.importorskip("resvg_py")
    png = resvg_py.svg_to_bytes(svg_string=svg(drawing, height, width, scale))
    picture = torch.from_numpy(np.array(Image.open(io.BytesIO(bytes(png))).convert("RGB"))).permute(2, 0, 1)
    return torch.nn.functional.avg_pool2d(picture[None].float() / 255, scale)


def decibels(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float(((a - b) ** 2).mean()))


@pytest.mark.parametrize("round_caps", [True, False])
@pytest.mark.parametrize(
    ("count", "step", "width"), [(96, 0.05, 1.5), (64, 0.3, 1.5), (32, 1.0, 1.5), (32, 0.3, 0.7), (24, 0.5, 5.0)]
)
def test_resvg_draws_line_sketches_alike(count: int, step: float, width: float, round_caps: bool):
    """At least 35 dB from its picture at eight times the size, made small. What it draws at the size itself is about as
    far from ours as from that: resvg counts 4 x 4 places of a pixel, and lines under a pixel are hairlines to it."""
    drawing = sketch(count, 224, step, width, seed=count, round_caps=round_caps)
    ours, fine, coarse = cpu.render(drawing, 224, 224), resvg(drawing, 224, 224, 8), resvg(drawing, 224, 224, 1)
    assert decibels(ours, fine) > 35
    assert decibels(ours, coarse) > decibels(fine, coarse) - 1.5


@pytest.mark.parametrize("kind", [NONZERO, EVENODD])
def test_resvg_draws_filled_scenes_alike(kind: int):
    """Discs with dents, some with an island or a hole, translucent, over each other."""
    generator = torch.Generator().manual_seed(kind)
    count, cubics, size = 12, 4, 160
    angle = torch.arange(3 * cubics, dtype=torch.float64) / (3 * cubics) * 2 * math.pi
    radius = uniform(generator, count, 2, 3 * cubics, low=0.6, high=1.4)
    radius = radius * uniform(generator, count, 1, 1, low=0.05, high=0.2) * size
    radius[:, 1] *= 0.4
    middle = uniform(generator, count, 1, 1, 2) * size
    points = middle + radius[..., None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
    topology = Topology((kind,) * count, (((cubics, True),) * 2,) * count, (True,) * count)
    colours = uniform(generator, 1, count, 4)
    colours[..., 3] = 0.5 + colours[..., 3] / 2
    ones = torch.ones(1, count, 2).double(), torch.ones(1, 3).double()
    drawing = single(Drawing(topology, points.reshape(1, -1, 2), ones[0], colours, ones[1]), torch.float32)
    ours = cpu.render(drawing, size, size)
    assert decibels(ours, resvg(drawing, size, size, 1)) > 40
    assert decibels(ours, resvg(drawing, size, size, 8)) > 40
