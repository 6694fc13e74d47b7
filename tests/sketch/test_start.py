"""Where strokes begin: lines are found, chances are spread as asked, points are apart, first strokes follow edges."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdsedit.sketch.start import blur, directions, first_strokes, lines, otsu, probabilities, start_points, xdog
from tests.sketch.painter import disc, painted

BLACK, GREY = (0.0, 0.0, 0.0), (0.8, 0.8, 0.8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ruled(side: int = 64, row: int = 30, value: float = 0.0) -> torch.Tensor:
    """White with one line, two pixels thick, from left to right."""
    picture = torch.ones(1, 3, side, side)
    picture[..., row : row + 2, :] = value
    return picture


def bump(side: int, width: float) -> torch.Tensor:
    x = torch.linspace(-1, 1, side)
    return torch.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * width * width))


# Edges


def test_xdog_finds_a_dark_line_and_nothing_else():
    found = xdog(ruled())[0, 0]
    assert set(found.unique().tolist()) == {0.0, 1.0}
    assert found[30:32].all() and not found[:24].any() and not found[38:].any()


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_flat_picture_has_no_edges_and_no_lines(value):
    flat = torch.full((1, 3, 40, 56), value)
    assert not xdog(flat).any() and lines(flat).max() < 1e-3


def test_lines_are_as_much_for_a_faint_outline_as_for_a_black_one_and_a_dark_area_has_none_inside():
    black, faint = lines(ruled(128, 60)), lines(ruled(128, 60, 0.6))
    assert black.shape == (1, 1, 128, 128) and black.amax() <= 1
    assert black[0, 0, 60:62].min() > 0.8 and faint[0, 0, 60:62].min() > 0.7
    assert max(black[0, 0, :50].max(), black[0, 0, 72:].max()) < 0.02
    dark = lines(painted(128, (disc(128, (64, 64), 40), BLACK)))[0, 0]
    assert dark[50:78, 50:78].max() < 0.1 and dark[64, 22:27].max() > 0.5  # its border is one


def test_a_blur_keeps_a_constant_and_the_amount_of_light():
    assert torch.allclose(blur(torch.full((1, 2, 9, 30), 0.4), 3.0), torch.tensor(0.4))
    spot = torch.zeros(1, 1, 41, 41)
    spot[..., 20, 20] = 1
    soft = blur(spot, 2.0)[0, 0]
    assert soft.sum() == pytest.approx(1) and torch.allclose(soft, soft.T) and torch.allclose(soft, soft.flip(0, 1))
    y = torch.arange(41.0)[:, None] - 20
    assert (soft * y * y).sum() == pytest.approx(4.0, rel=0.02)  # the variance
    assert blur(torch.rand(1, 3, 1, 2), 5.0).shape == (1, 3, 1, 2)


# Otsu


@given(st.floats(-5, 5), st.floats(0.01, 5), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_otsu_separates_two_values(low, gap, n, m):
    values = torch.tensor([low] * n + [low + gap] * m)
    assert ((values < otsu(values)) == (values == values[0])).all()


def test_otsu_separates_two_classes_however_many_each_has():
    few, many = torch.rand(50, generator=generator()), 3 + torch.rand(5000, generator=generator(1))
    threshold = otsu(torch.cat([few, many]))
    assert few.max() < threshold < many.min()
    threshold = otsu(torch.cat([many, few]))
    assert few.max() < threshold < many.min()


def test_otsus_threshold_has_the_greatest_variance_between_the_classes():
    values = torch.cat([torch.randn(500, generator=generator()), 4 + 2 * torch.randn(900, generator=generator(2))])

    def between(threshold: float) -> float:
        a, b = values[values < threshold], values[values >= threshold]
        return len(a) * len(b) * float(a.mean() - b.mean()) ** 2

    low, high = values.min().item(), values.max().item()
    best = max(between(low + (high - low) * k / 64) for k in range(1, 64))
    assert between(otsu(values)) > 0.999 * best


def test_otsu_of_one_value_separates_nothing():
    values = torch.full((10,), 0.7)
    assert not (values < otsu(values)).any()


# Chances

MAPS = {
    "wide": bump(64, 0.6),
    "narrow": bump(64, 0.15),
    "ramp": torch.linspace(0, 1, 64).expand(64, -1),
    "weak": 0.4 + 0.05 * bump(64, 0.4),
    "noise": torch.rand(64, 64, generator=generator()),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("share", [0.02, 0.06])
def test_chances_are_spread_over_the_share_that_is_asked_for(name, share):
    p = probabilities(MAPS[name], None, share).double()
    assert p.shape == (64 * 64,) and p.min() >= 0 and p.sum() == pytest.approx(1, abs=1e-4)
    perplexity = torch.exp(-torch.special.xlogy(p, p).sum())
    assert perplexity.item() == pytest.approx(share * 64 * 64, rel=0.05)
    a = MAPS[name].flatten()
    allowed = a > 0.05
    assert not p[~allowed].any()
    order = a[allowed].argsort()
    assert (p[allowed][order].diff() >= -1e-9).all()  # more attention, no smaller a chance


def test_edges_raise_chances_and_the_spread_stays():
    edges = torch.zeros(64, 64)
    edges[:, 32:34] = 1
    with_edges, without = (probabilities(MAPS["wide"], e).double() for e in (edges, None))
    on = edges.flatten() > 0
    assert with_edges[on].sum() > 3 * without[on].sum()
    assert torch.exp(-torch.special.xlogy(with_edges, with_edges).sum()).item() == pytest.approx(245.8, rel=0.05)


def test_nothing_is_drawn_below_the_floor_also_on_an_edge():
    attention = bump(64, 0.2)
    p = probabilities(attention, torch.ones(64, 64), floor=0.3)
    assert (p > 0).any() and not p[attention.flatten() <= 0.3].any()


@pytest.mark.parametrize("attention", [torch.zeros(8, 8), torch.full((8, 8), 0.5), torch.ones(8, 8)])
def test_a_map_without_contrast_gives_all_pixels_the_same_chance(attention):
    assert torch.allclose(probabilities(attention, None), torch.tensor(1 / 64))


def test_one_allowed_pixel_has_all_the_chance():
    attention = torch.zeros(8, 8)
    attention[3, 4] = 1
    assert probabilities(attention, None)[3 * 8 + 4] == 1


# Points


def test_points_are_distinct_apart_and_one_seed_is_one_drawing():
    p = probabilities(MAPS["wide"], None, 0.2)
    points = start_points(p, 64, 40, generator(), apart=3.0)
    assert points.shape == (40, 2) and torch.equal(points, start_points(p, 64, 40, generator(), apart=3.0))
    assert not torch.equal(points, start_points(p, 64, 40, generator(1), apart=3.0))
    assert torch.equal(points % 1, torch.full((40, 2), 0.5))  # middles of pixels
    assert len(points.unique(dim=0)) == 40
    assert (p[(points[:, 1].long() * 64 + points[:, 0].long())] > 0).all()

    def nearest(points: torch.Tensor) -> float:
        return float((torch.cdist(points, points) + 1e3 * torch.eye(len(points))).amin(1).mean())

    assert nearest(points) > 1.3 * nearest(start_points(p, 64, 40, generator(), apart=0.1))


def test_points_follow_the_chances_across_and_down():
    p = torch.zeros(20, 30)
    p[4, 25] = 1
    assert start_points(p.flatten(), 30, 1, generator()).tolist() == [[25.5, 4.5]]


def test_more_points_than_places_takes_all_places_and_begins_again():
    p = torch.zeros(10, 10)
    p[1, 1], p[1, 8], p[8, 5] = 0.5, 0.3, 0.2
    points = start_points(p.flatten(), 10, 7, generator(), apart=0.3)
    assert len(points) == 7 and len(points[:3].unique(dim=0)) == len(points.unique(dim=0)) == 3
    everywhere = start_points(torch.full((6,), 1 / 6), 3, 20, generator(), apart=5.0)
    assert len(everywhere) == 20 and everywhere.amin() >= 0.5 and everywhere[:, 1].max() <= 1.5


# First strokes


@pytest.mark.parametrize("degrees", [0, 30, 90, 135])
def test_directions_follow_a_straight_edge(degrees):
    along = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    y, x = torch.meshgrid(torch.arange(48.0) - 23.5, torch.arange(48.0) - 23.5, indexing="ij")
    side = -along[1] * x + along[0] * y
    picture = (side + 0.5).clamp(0, 1).expand(1, 3, -1, -1)
    found = directions(picture).view(48, 48, 2)
    assert torch.allclose(found.norm(dim=-1), torch.ones(48, 48), atol=1e-5)
    near = (side.abs() < 1.5) & (x.abs() < 15) & (y.abs() < 15)
    assert ((found[near] @ along).abs() > math.cos(math.radians(5))).all()


def test_first_strokes_are_centred_straight_and_along_the_edge():
    along = torch.tensor([0.6, 0.8]).expand(20 * 30, 2)
    points = torch.tensor([[3.5, 7.5], [29.5, 19.5]])
    strokes = first_strokes(points, along, (20, 30), 10.0, generator(), jitter=0.0)
    assert strokes.shape == (2, 4, 2)
    assert torch.allclose(strokes.mean(1), points) and torch.allclose(strokes[:, 3] - strokes[:, 0], along[:2] * 10)
    assert torch.allclose(strokes.diff(dim=1), (along[:1] * 10 / 3).expand(2, 3, 2), atol=1e-5)


def test_first_strokes_look_up_the_direction_of_their_own_pixel_and_one_seed_is_one():
    along = torch.zeros(20, 30, 2)
    along[..., 0] = 1
    along[7, 3] = torch.tensor([0.0, 1.0])
    points = torch.tensor([[3.5, 7.5], [7.5, 3.5], [500.0, -20.0]])  # the last one is off the page
    args = (points, along.flatten(0, 1), (20, 30), 6.0)
    upright, level, off = first_strokes(*args, generator(), jitter=0.0)
    assert torch.allclose(upright[:, 0], torch.tensor(3.5)) and torch.allclose(level[:, 1], torch.tensor(3.5))
    assert torch.allclose(off.mean(0), points[2])
    assert torch.equal(first_strokes(*args, generator(5)), first_strokes(*args, generator(5)))
    many = first_strokes(points[:1].expand(4000, 2), along.flatten(0, 1), (20, 30), 6.0, generator())
    assert torch.allclose(many.mean((0, 1)), points[0], atol=0.05)  # the jitter pulls nowhere
    assert (many.std(0) - 0.9).abs().max() < 0.05
