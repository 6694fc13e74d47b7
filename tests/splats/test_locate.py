"""From maps on views to weights on Gaussians, by laws that can be told without a model; then once with the model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdsedit.camera import Cameras, intrinsics, look_at, orbit
from sdsedit.representations.splats import Scene, pictures
from sdsedit.splats.locate import attention, bounds, closer, lifted, sharpen, smooth
from sdsedit.splats.seed import project

SIZE = 32


def blob(centre: tuple[float, float, float], rgb: tuple[float, float, float], count: int = 60, seed: int = 0) -> Scene:
    """A ball of small, nearly opaque Gaussians in one colour."""
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(count, 3, generator=generator)
    offset = 0.25 * offset / offset.norm(dim=1, keepdim=True)
    quats = torch.zeros(count, 4)
    quats[:, 0] = 1
    sh = ((torch.tensor(rgb) - 0.5) / 0.28209479177387814).expand(count, 1, 3).clone()
    return Scene(torch.tensor(centre) + offset, quats, torch.full((count, 3), -2.8), torch.full((count,), 3.0), sh)


@pytest.fixture
def two() -> Scene:
    """A red ball on the left and a blue one on the right."""
    return Scene.cat(blob((-0.5, 0, 0), (0.9, 0.1, 0.1)), blob((0.5, 0, 0), (0.1, 0.1, 0.9), seed=1))


@pytest.fixture
def round_it() -> Cameras:
    return orbit((0.0, 0.0, 0.0), 3.0, (5.0, 30.0), 6, SIZE, SIZE)


def masks_of(scene: Scene, rows: slice, cameras: Cameras) -> Tensor:
    flags = torch.zeros(len(scene), 1)
    flags[rows] = 1
    return scene.paint(flags, cameras).permute(0, 3, 1, 2)


def test_a_perfect_map_comes_back_as_the_labels(two: Scene, round_it: Cameras):
    numerator, denominator = lifted(two, round_it, masks_of(two, slice(0, 60), round_it))
    weight = numerator / denominator.clamp(min=1e-6)
    shown = denominator > 0.5
    assert shown.float().mean() > 0.8
    assert ((weight > 0.5) == (torch.arange(120) < 60))[shown].float().mean() > 0.97


def test_what_no_view_sees_has_no_denominator_and_is_not_background(two: Scene, round_it: Cameras):
    hidden = blob((0.0, 0.0, 40.0), (0.5, 0.5, 0.5))  # far behind: too small to show, or out of the picture
    away = Cameras(
        look_at(torch.tensor([[0.0, 0.0, 3.0]]), torch.zeros(3)), intrinsics(40, SIZE, SIZE)[None], SIZE, SIZE
    )
    numerator, denominator = lifted(Scene.cat(two, hidden), away, torch.ones(1, 1, SIZE, SIZE))
    assert (denominator[120:] == 0).all() and (numerator[120:] == 0).all()
    assert denominator[:120].max() > 1
    assert torch.allclose(numerator, denominator)  # a map of ones


def test_neighbours_in_place_and_colour_decide_together(two: Scene):
    weight = (torch.arange(120) < 60).float()
    weight[7], weight[70] = 0, 1  # two that are wrong
    steady = smooth(two, weight, torch.full((120,), 4.0))
    assert ((steady > 0.5) == (torch.arange(120) < 60)).all()


def test_one_that_was_not_seen_takes_what_its_neighbours_have(two: Scene):
    weight, confidence = (torch.arange(120) < 60).float(), torch.full((120,), 4.0)
    weight[3], confidence[3] = 0, 0
    weight[63], confidence[63] = 1, 0
    steady = smooth(two, weight, confidence)
    assert steady[3] > 0.9 and steady[63] < 0.1


def test_smoothing_stops_at_a_change_of_colour():
    """Two halves of one ball, red and blue, that touch: their weights stay apart."""
    ball = blob((0, 0, 0), (0.9, 0.1, 0.1), count=200)
    right = ball.means[:, 0] > 0
    ball.sh[right] = ((torch.tensor([0.1, 0.1, 0.9]) - 0.5) / 0.28209479177387814).view(1, 1, 3)
    steady = smooth(ball, right.float(), torch.full((200,), 4.0))
    assert steady[right].min() > 0.8 and steady[~right].max() < 0.2


def test_a_closer_look_stands_where_it_stood_and_fills_the_picture(round_it: Cameras):
    centre, radius = torch.tensor([0.5, 0.0, 0.1]), 0.3
    near = closer(round_it, centre, radius, fill=0.75)
    torch.testing.assert_close(near.positions, round_it.positions, rtol=0, atol=1e-5)
    middle, depth = project(centre[None], near)
    torch.testing.assert_close(middle[:, 0], torch.full((6, 2), SIZE / 2), rtol=0, atol=1e-3)
    across = 2 * near.Ks[:, 0, 0] * radius / depth[:, 0]
    torch.testing.assert_close(across, torch.full((6,), 0.75 * SIZE), rtol=1e-4, atol=0)


def test_a_closer_look_is_never_a_farther_one(round_it: Cameras):
    wide = closer(round_it, torch.zeros(3), 50.0)
    assert torch.equal(wide.Ks[:, 0, 0], round_it.Ks[:, 0, 0])


def test_bounds_hold_the_weight_and_forget_a_few_far_away(two: Scene):
    weight = (torch.arange(120) < 60).float()
    weight[119] = 1.0  # one of the other ball
    centre, radius = bounds(two.means, weight)
    assert (centre - torch.tensor([-0.5, 0, 0])).norm() < 0.12
    assert 0.2 < radius < 0.4


def test_maps_share_one_scale_so_that_absent_stays_absent():
    views = torch.full((4, 3, SIZE, SIZE), 0.2)
    views[:, 0, 8:24, 8:24] = 0.9  # what the word means, with an edge
    maps = torch.zeros(4, 1, 8, 8)
    maps[:3, :, 2:6, 2:6] = 0.8
    maps[3] = 0.02  # the word's thing is not in this view
    sharp = sharpen(maps, views)
    assert sharp.shape == (4, 1, SIZE, SIZE) and sharp.min() >= 0 and sharp.max() <= 1
    assert sharp[3].max() < 0.1 and sharp[:3, :, 12:20, 12:20].min() > 0.6


def test_attention_of_the_model_is_a_share_and_repeats_itself(builtin_prior, two: Scene):
    cameras = orbit((0.0, 0.0, 0.0), 3.0, 15.0, 5, 128, 128)
    views = pictures(two, cameras, torch.ones(3))
    text = builtin_prior.encode_text(["a red apple on a white background"])
    looked: list[tuple[int, int]] = []

    def look(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return attention(
            builtin_prior, views, text, (2, 3), generator, on_view=lambda done, total: looked.append((done, total))
        )

    with torch.no_grad():
        first, again = look(0), look(0)
    assert first.shape[:2] == (5, 1) and first.min() >= 0 and first.max() <= 1.001
    assert torch.equal(first, again)
    assert looked[:2] == [(4, 5), (5, 5)]
