"""New Gaussians: carved where views agree, and put where something was taken away."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdsedit.camera import orbit
from sdsedit.representations.splats import Scene, pictures
from sdsedit.splats.seed import facing, fill, hull, largest, orphans, project, reached, seeds, shell, told

SIZE = 64
Y0 = 0.28209479177387814


def gaussians(means: Tensor, rgb: Tensor, size: float = 0.05, flat: bool = False) -> Scene:
    quats = torch.zeros(len(means), 4)
    quats[:, 0] = 1
    scales = torch.full((len(means), 3), math.log(size))
    if flat:
        scales[:, 1] = math.log(0.1 * size)
    sh = ((rgb.expand(len(means), 3) - 0.5) / Y0)[:, None].clone()
    return Scene(means, quats, scales, torch.full((len(means),), 3.0), sh)


def floor(side: int = 25, hole: float = 0.0) -> Scene:
    """A level sheet of flat brown Gaussians at y = 0, perhaps with a round hole."""
    steps = torch.linspace(-1, 1, side)
    x, z = (each.flatten() for each in torch.meshgrid(steps, steps, indexing="ij"))
    means = torch.stack([x, torch.zeros_like(x), z], dim=1)
    means = means[means.norm(dim=1) >= hole]
    return gaussians(means, torch.tensor([0.5, 0.3, 0.2]), 0.05, flat=True)


def discs(points: Tensor, cameras, radius: float) -> Tensor:  # [V, 1, H, W]: where a ball at `points` is seen
    where, depth = project(points, cameras)
    y, x = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    across = cameras.Ks[:, 0, 0] * radius / depth[:, 0]
    distance = ((x - where[:, 0, 0, None, None]) ** 2 + (y - where[:, 0, 1, None, None]) ** 2).sqrt()
    return (distance <= across[:, None, None]).float()[:, None]


def test_what_all_views_ask_for_is_carved_and_nothing_else():
    cameras = orbit((0.0, 0.0, 0.0), 4.0, (0.0, 40.0), 10, SIZE, SIZE)
    ball = torch.tensor([[0.2, -0.1, 0.15]])
    nothing = torch.full((10, SIZE, SIZE), torch.inf)
    points, cell = hull(discs(ball, cameras, 0.4), cameras, nothing, torch.zeros(3), 1.0)
    distance = (points - ball).norm(dim=1)
    assert distance.max() < 0.4 * 1.25 + cell  # carving by ten views leaves a hull a little larger than the ball
    volume = len(points) * cell**3
    assert 0.9 < volume / (4 / 3 * math.pi * 0.4**3) < 1.5


def test_views_that_do_not_agree_carve_nothing():
    cameras = orbit((0.0, 0.0, 0.0), 4.0, 10.0, 8, SIZE, SIZE)
    maps = torch.zeros(8, 1, SIZE, SIZE)
    maps[:4, :, :10, :10] = 1  # four ask for something in a corner, the others for nothing
    points, _ = hull(maps, cameras, torch.full((8, SIZE, SIZE), torch.inf), torch.zeros(3), 1.0)
    assert not len(points)


def test_inside_of_what_stands_there_nothing_is_carved():
    cameras = orbit((0.0, 0.0, 0.0), 4.0, (0.0, 30.0), 8, SIZE, SIZE)
    maps = torch.ones(8, 1, SIZE, SIZE)
    _, depth = project(torch.zeros(1, 3), cameras)
    stands = (depth[:, 0] - 0.5)[:, None, None].expand(8, SIZE, SIZE)  # a wall half a unit before the middle
    points, _ = hull(maps, cameras, stands, torch.zeros(3), 0.3)
    assert not len(points)


def test_seeds_lie_in_the_cells_are_mostly_clear_and_repeat():
    points = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    for count in (100, 2000):
        made = seeds(points, 0.05, count, 4, torch.Generator().manual_seed(3))
        again = seeds(points, 0.05, count, 4, torch.Generator().manual_seed(3))
        assert len(made) == count and made.sh.shape == (count, 4, 3)
        assert torch.equal(made.means, again.means)
        assert torch.cdist(made.means, points).min(1).values.max() <= 0.05 * math.sqrt(3) / 2 + 1e-6
        torch.testing.assert_close(made.logits.sigmoid(), torch.full((count,), 0.3))


def test_each_side_is_told_by_a_view_that_faces_it():
    """A ball red from the right and green from the left: no Gaussian is the mean of both. A view that something stands
    before tells nothing."""
    cameras = orbit((0.0, 0.0, 0.0), 3.0, 10.0, 8, SIZE, SIZE)
    steps = torch.linspace(-0.3, 0.3, 13)
    points = torch.cartesian_prod(steps, steps, steps)
    points = points[points.norm(dim=1) <= 0.3]
    maps = discs(torch.zeros(1, 3), cameras, 0.3)
    right = cameras.positions[:, 0] > 0
    red, green = (torch.tensor(rgb).view(1, 3, 1, 1) for rgb in ([0.9, 0.1, 0.1], [0.1, 0.8, 0.2]))
    views = torch.where(right.view(-1, 1, 1, 1), red, green).expand(8, 3, SIZE, SIZE)
    air = torch.full((8, SIZE, SIZE), torch.inf)
    view = facing(points, maps, cameras, air)
    assert 2 <= len(view.unique()) <= 4
    toward = (torch.nn.functional.normalize(cameras.positions[view], dim=1) * points).sum(1)
    outer = points[:, [0, 2]].norm(dim=1) > 0.15
    assert (toward[outer] > 0).all()
    colours = told(views, points, cameras, view)
    away = (colours[:, :, None] - torch.stack([red.flatten(), green.flatten()], 1)).abs().amax(1).amin(1)
    assert away.max() < 1e-5
    hidden = int(view[0])
    walled = air.clone()
    walled[hidden] = 0.5
    assert hidden not in facing(points, maps, cameras, walled).tolist()


def test_of_several_pieces_the_largest_stays():
    few = torch.tensor([[0.0, 0, 0], [0.1, 0, 0]])
    many = torch.tensor([[1.0 + 0.1 * k, 0, 0] for k in range(5)])
    assert torch.equal(largest(torch.cat([few, many]), 0.1), many)


def test_a_hole_in_a_floor_is_closed_with_copies_of_the_floor():
    kept = floor(hole=0.35)
    angles = torch.linspace(0, 2 * math.pi, 40)
    rim = [
        torch.stack([r * angles.cos(), torch.full((40,), y), r * angles.sin()], 1)
        for r, y in ((0.34, -0.02), (0.2, -0.02), (0.3, -0.3))
    ]
    gone = gaussians(torch.cat(rim), torch.tensor([0.9, 0.1, 0.1]), 0.1)
    new, shaded, *_ = fill(kept, gone, torch.Generator().manual_seed(0))
    assert len(new) > 20 and shaded.any()
    flat = new.means[:, [0, 2]].norm(dim=1)
    assert flat.max() < 0.5  # only where the hole is
    assert new.means[:, 1].abs().max() < 0.02  # level with the floor
    colours = 0.5 + Y0 * new.sh[:, 0]
    torch.testing.assert_close(colours, torch.tensor([0.5, 0.3, 0.2]).expand_as(colours), rtol=0, atol=1e-5)
    again, *_ = fill(kept, gone, torch.Generator().manual_seed(0))
    assert torch.equal(new.means, again.means)
    above = orbit((0.0, 0.0, 0.0), 3.0, 80.0, 1, SIZE, SIZE)
    before, after = (
        pictures(scene, above, torch.ones(3))[0, :, 28:36, 28:36].mean() for scene in (kept, Scene.cat(kept, new))
    )
    assert before > 0.9 and after < 0.6  # the middle was white and is floor


def test_what_touches_nothing_leaves_no_hole():
    kept = floor()
    gone = gaussians(
        torch.randn(100, 3, generator=torch.Generator().manual_seed(0)) * 0.1 - torch.tensor([0, 3.0, 0]), torch.ones(3)
    )
    new, shaded, lit, _ = fill(kept, gone, torch.Generator().manual_seed(0))
    assert not len(new) and not shaded.any() and not len(lit)


def test_a_shadow_goes_with_what_cast_it_and_the_grain_stays():
    kept = floor(side=41)
    away = kept.means[:, [0, 2]].norm(dim=1)
    dark = 0.6 * (1 - away / 0.6).clamp(min=0)[:, None]
    grain = 0.03 * torch.randn(len(kept), 1, generator=torch.Generator().manual_seed(1))
    rgb = (0.5 + Y0 * kept.sh[:, 0]) * (1 - dark) * (1 + grain)
    kept.sh[:, 0] = (rgb - 0.5) / Y0
    low = torch.randn(200, 3, generator=torch.Generator().manual_seed(2))
    low = 0.3 * low / low.norm(dim=1, keepdim=True)
    gone = gaussians(low - torch.tensor([0, 0.32, 0]), torch.tensor([0.9, 0.1, 0.1]), 0.1)
    _, shaded, lit, debris = fill(kept, gone, torch.Generator().manual_seed(0))
    inner = (away < 0.25) & shaded
    sh = kept.sh.clone()
    sh[shaded] = lit
    level = 0.5 + Y0 * sh[:, 0]
    outer = level[away > 0.8].mean(0)
    assert (0.5 + Y0 * kept.sh[inner, 0]).mean(0).sub(outer).abs().max() > 0.1
    torch.testing.assert_close(level[inner].mean(0), outer, rtol=0, atol=0.04)
    assert level[inner].std(0).min() > 0.003
    assert torch.equal(sh[~shaded], kept.sh[~shaded])
    assert not debris.any()


def test_the_shell_of_a_box_is_its_surface():
    points = torch.cartesian_prod(*(torch.arange(n) * 0.1 for n in (5, 6, 7)))
    assert len(shell(points, 0.1)) == 5 * 6 * 7 - 3 * 4 * 5


def test_what_would_hang_in_the_air_goes_along():
    ground = floor()
    body = gaussians(
        0.02 * torch.cartesian_prod(*(torch.arange(8.0),) * 3) - torch.tensor([0, 0.3, 0]), torch.ones(3), 0.02
    )
    leaf = gaussians(
        0.02 * torch.cartesian_prod(*(torch.arange(3.0),) * 3) - torch.tensor([0, 0.38, 0]), torch.ones(3), 0.02
    )
    far = gaussians(leaf.means + torch.tensor([0.8, 0, 0]), torch.ones(3), 0.02)
    scene = Scene.cat(ground, body, leaf, far)
    chosen = torch.zeros(len(scene), dtype=torch.bool)
    chosen[len(ground) : len(ground) + len(body)] = True
    loose = orphans(scene, chosen)
    assert loose[len(ground) + len(body) : -len(far)].all()
    assert not loose[: len(ground) + len(body)].any() and not loose[-len(far) :].any()


def test_a_string_that_attention_did_not_find_goes_too_by_its_colour():
    ground = floor(side=60)
    string = gaussians(torch.tensor([[0.0, -0.02 * k, 0.0] for k in range(20)]), torch.tensor([0.1, 0.2, 0.9]), 0.02)
    balloon = gaussians(
        0.02 * torch.cartesian_prod(*(torch.arange(7.0),) * 3) - torch.tensor([0.06, 0.52, 0.06]),
        torch.tensor([0.9, 0.1, 0.1]),
        0.02,
    )
    scene = Scene.cat(ground, string, balloon)
    chosen = torch.zeros(len(scene), dtype=torch.bool)
    chosen[-len(balloon) :] = True
    loose = orphans(scene, chosen)
    assert not loose[: len(ground)].any() and loose[len(ground) : -len(balloon)].float().mean() > 0.9
    standing = torch.zeros(len(scene), dtype=torch.bool)  # what stands on the ground takes nothing of it along
    standing[len(ground) :] = True
    assert not orphans(scene, standing).any()


def test_a_string_goes_with_its_balloon_and_the_table_stays():
    ground = floor(hole=0.05)
    string = gaussians(torch.tensor([[0.0, -0.02 * k, 0.0] for k in range(15)]), torch.ones(3), 0.02)
    balloon = gaussians(
        0.02 * torch.cartesian_prod(*(torch.arange(6.0),) * 3) - torch.tensor([0, 0.4, 0]), torch.ones(3), 0.02
    )
    scene = Scene.cat(ground, string, balloon)
    weight = torch.cat([torch.full((len(ground),), 0.1), torch.full((15,), 0.3), torch.full((len(balloon),), 0.9)])
    chosen = reached(scene, weight, 0.4, 0.2)
    assert not chosen[: len(ground)].any() and chosen[len(ground) :].all()
    assert torch.equal(reached(scene, weight, 0.4, 0.35), weight >= 0.4)
