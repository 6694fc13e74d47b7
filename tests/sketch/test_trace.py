"""A picture as areas: the right ones, in the right colours and order, with outlines that keep corners and curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdsedit.render.strokes import NONZERO, Drawing, Topology, render
from sdsedit.sketch.trace import smooth_ring, trace
from tests.sketch.painter import disc, painted

RED, BLUE, GREEN = (0.9, 0.1, 0.1), (0.1, 0.2, 0.8), (0.1, 0.7, 0.2)
WHITE = torch.ones(3)
TWO = painted(64, (disc(64, (22, 24), 14), RED), (disc(64, (48, 46), 9), BLUE))


def drawn(rings: list[torch.Tensor], colours: torch.Tensor, side: int = 64) -> torch.Tensor:
    topology = Topology((NONZERO,) * len(rings), tuple(((len(r) // 3, True),) for r in rings), (True,) * len(rings))
    return render(
        Drawing(topology, torch.cat(rings)[None], torch.zeros(1, len(rings), 2), colours[None], WHITE[None]), side, side
    )


def span(ring: torch.Tensor) -> list[float]:
    """Left, top, right, bottom of the anchors."""
    return [*ring[::3].amin(0).tolist(), *ring[::3].amax(0).tolist()]


def test_two_discs_are_two_areas_the_largest_first_in_their_colours():
    rings, colours = trace(TWO, None, WHITE, 10)
    assert len(rings) == 2 and colours.shape == (2, 4)
    assert torch.allclose(colours, torch.tensor([[*RED, 1.0], [*BLUE, 1.0]]), atol=0.02)
    assert span(rings[0]) == pytest.approx([8, 10, 36, 38], abs=0.75)
    assert span(rings[1]) == pytest.approx([39, 37, 57, 55], abs=0.75)
    assert all(ring.dtype == torch.float32 and len(ring) % 3 == 0 for ring in rings)
    assert (drawn(rings, colours) - TWO).abs().mean() < 0.02


def test_it_is_the_same_every_time():
    first, again = trace(TWO, None, WHITE, 10), trace(TWO, None, WHITE, 10)
    assert all(torch.equal(a, b) for a, b in zip(first[0], again[0], strict=True))


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_nothing_is_traced_on_blank_paper_of_any_colour(value):
    rings, colours = trace(torch.full((1, 3, 32, 48), value), None, torch.full((3,), value), 10)
    assert rings == [] and colours.shape == (0, 4)


def test_paper_of_another_colour_is_an_area():
    rings, colours = trace(torch.full((1, 3, 32, 48), 0.5), None, WHITE, 10)
    assert len(rings) == 1 and torch.allclose(colours[0, :3], torch.tensor(0.5), atol=0.01)
    assert span(rings[0]) == pytest.approx([0, 0, 48, 32], abs=0.2)


def test_the_largest_ones_are_kept_and_specks_are_not_traced():
    assert torch.allclose(trace(TWO, None, WHITE, 1)[1][:, :3], torch.tensor([RED]), atol=0.02)
    speck = painted(64, (disc(64, (20, 20), 1.2), RED))
    assert trace(speck, None, WHITE, 10)[0] == []
    assert len(trace(speck, None, WHITE, 10, least=1.0)[0]) == 1


def test_areas_elsewhere_are_left_out_and_areas_end_at_the_clip():
    where = torch.zeros(64, 64)
    where[:, 38:] = 1
    rings, colours = trace(TWO, where, WHITE, 10)
    assert len(rings) == 1 and torch.allclose(colours[0, :3], torch.tensor(BLUE), atol=0.02)
    clip = torch.zeros(64, 64)
    clip[:24] = 1
    rings, colours = trace(TWO, None, WHITE, 10, clip=clip)
    assert len(rings) == 1 and torch.allclose(colours[0, :3], torch.tensor(RED), atol=0.02)
    assert span(rings[0]) == pytest.approx([8, 10, 36, 24], abs=0.75)


def test_a_large_area_lies_under_those_inside_it():
    """Layers, not a puzzle: the outer border only, so that what lies on top may move."""
    picture = painted(64, (disc(64, (32, 32), 22), GREEN), (disc(64, (32, 32), 9), RED))
    rings, colours = trace(picture, None, WHITE, 10)
    assert len(rings) == 2 and torch.allclose(colours[:, :3], torch.tensor([GREEN, RED]), atol=0.02)
    alone = drawn(rings[:1], colours[:1])
    assert torch.allclose(alone[0, :, 32, 32], torch.tensor(GREEN), atol=0.03)  # no hole
    assert (drawn(rings, colours) - picture).abs().mean() < 0.02


# Outlines


def circle(radius: float, count: int = 400) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + 50


def square(side: int = 20) -> np.ndarray:
    """Every pixel of a border, as border following gives it."""
    ramp, full = np.arange(side), np.full(side, side)
    x = np.concatenate([ramp, full, full - ramp, 0 * ramp])
    y = np.concatenate([0 * ramp, ramp, full, full - ramp])
    return np.stack([x, y], axis=1).astype(float)


def on_curve(ring: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Places of a closed chain of cubics."""
    p = np.concatenate([ring, ring[:1]])
    s = 1 - t
    weights = np.stack([s**3, 3 * s * s * t, 3 * s * t * t, t**3], axis=-1)
    return np.concatenate([weights @ p[k : k + 4] for k in range(0, len(ring), 3)])


def test_a_ring_passes_through_points_of_its_outline_and_is_closed():
    outline = circle(20)
    ring = smooth_ring(outline)
    assert ring.shape[0] % 3 == 0 and ring.shape[1] == 2
    distance = np.linalg.norm(ring[::3][:, None] - outline[None], axis=-1).min(1)
    assert distance.max() < 1e-5
    steps = np.linalg.norm(np.diff(np.concatenate([ring[::3], ring[:1]]), axis=0), axis=1)
    assert steps.max() < 3 * np.median(steps)  # the last curve goes back to the first anchor, not across the ring


@pytest.mark.parametrize("radius", [5, 20, 60])
def test_a_circle_stays_round(radius):
    places = on_curve(smooth_ring(circle(radius)), np.linspace(0, 1, 9))
    assert np.abs(np.linalg.norm(places - 50, axis=1) - radius).max() < 0.7
    ring = smooth_ring(circle(radius))
    arrive, anchor, leave = np.roll(ring[2::3], 1, axis=0), ring[::3], ring[1::3]
    a, b = anchor - arrive, leave - anchor
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.999  # smooth at every anchor


def test_a_squares_corners_stay_corners_and_its_sides_straight():
    ring = smooth_ring(square())
    anchors = sorted(map(tuple, ring[::3].round(5).tolist()))
    assert anchors == [(0, 0), (0, 20), (20, 0), (20, 20)]
    places = on_curve(ring, np.linspace(0, 1, 9))
    assert np.minimum(np.abs(places), np.abs(places - 20)).min(1).max() < 1e-6


@pytest.mark.parametrize("outline", [square(1), square(2)[:3], np.array([[0.0, 0], [9, 0]])], ids=["4", "3", "2"])
def test_an_outline_of_a_few_pixels_is_a_ring_all_the_same(outline):
    ring = smooth_ring(outline)
    assert len(ring) >= 9 and len(ring) % 3 == 0 and np.isfinite(ring).all()
