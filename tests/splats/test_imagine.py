"""Views drawn at once: one scene in their colours, and a sampler that ends where the model wants to be."""

from __future__ import annotations

import torch

from sdsedit.camera import orbit
from sdsedit.guidance.base import Prompts
from sdsedit.representations.splats import Scene, pictures, with_colour
from sdsedit.splats.imagine import imagine, repainted
from tests.little_scene import little_scene
from tests.sketch.painter import Painter

WHITE = torch.ones(3)


def ball() -> tuple[Scene, Scene]:
    """Ground, and a ball on it."""
    splats = little_scene()
    scene = Scene.of(splats)
    part = torch.from_numpy(splats.extra["part"].astype("int64"))
    return scene[part == 0], scene[part == 1]


def cameras(count: int = 8):
    return orbit((0.0, 0.0, 0.0), 3.0, 25.0, count, 48, 48)


def test_a_scene_takes_the_colours_of_its_views():
    ground, thing = ball()
    blue = with_colour(thing, torch.tensor([0.1, 0.2, 0.8]).expand(len(thing), 3))
    views = pictures(Scene.cat(ground, blue), cameras(), WHITE)
    first = (pictures(Scene.cat(ground, thing), cameras(), WHITE) - views).abs().mean()
    where = torch.ones_like(views[:, :1])
    made, seen = repainted(ground, thing, views, where, cameras(), WHITE, rounds=10)
    assert (seen - views).abs().mean() < 0.1 * first
    torch.testing.assert_close(seen, pictures(Scene.cat(ground, made), cameras(), WHITE))
    assert torch.equal(made.means, thing.means) and torch.equal(made.logits, thing.logits)


def test_views_that_are_right_already_move_nothing():
    ground, thing = ball()
    views = pictures(Scene.cat(ground, thing), cameras(), WHITE)
    made, _ = repainted(ground, thing, views, torch.ones_like(views[:, :1]), cameras(), WHITE)
    torch.testing.assert_close(made.sh[:, 0], thing.sh[:, 0], rtol=0, atol=2e-3)


def test_where_views_disagree_the_one_in_front_has_the_say():
    """Each of six views shows the ball in a colour of its own."""
    ground, thing = ball()
    palette = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]) * 0.6 + 0.2
    painted = [with_colour(thing, each.expand(len(thing), 3)) for each in palette]
    six = cameras(6)
    views = torch.cat([pictures(Scene.cat(ground, each), six[k], WHITE) for k, each in enumerate(painted)])
    where, off = torch.ones_like(views[:, :1]), []
    for best in (0.0, 4.0):
        made, _ = repainted(ground, thing, views, where, six, WHITE, rounds=8, best=best)
        rgb = 0.5 + 0.28209479177387814 * made.sh[:, 0]
        off.append(torch.cdist(rgb, palette).amin(1).mean())
    assert off[1] < 0.95 * off[0]
    same = pictures(Scene.cat(ground, thing), six, WHITE)
    made, _ = repainted(ground, thing, same, where, six, WHITE, best=4.0)
    torch.testing.assert_close(made.sh[:, 0], thing.sh[:, 0], rtol=0, atol=2e-3)


def test_what_no_view_tells_follows_its_neighbours():
    """Only the left half of each view is believed."""
    ground, thing = ball()
    change = torch.tensor([-0.3, 0.1, 0.2])
    rgb = 0.5 + 0.28209479177387814 * thing.sh[:, 0]
    views = pictures(Scene.cat(ground, with_colour(thing, rgb + change)), cameras(1), WHITE)
    where = torch.ones_like(views[:, :1])
    where[..., 24:] = 0
    made, _ = repainted(ground, thing, views, where, cameras(1), WHITE, rounds=20)
    moved = 0.28209479177387814 * (made.sh[:, 0] - thing.sh[:, 0])
    assert (moved - change).abs().median() < 0.1
    nothing, _ = repainted(ground, thing, views, torch.zeros_like(where), cameras(1), WHITE)
    assert torch.equal(nothing.sh, thing.sh)


def test_sampling_ends_at_what_the_model_wants_and_the_rest_stays():
    wanted = torch.zeros(1, 3, 32, 32)
    wanted[:, 2] = 0.9
    prior = Painter({"a blue thing": wanted}, variance=0.01)
    prompts = Prompts(
        prior.encode_text(["a blue thing"]), prior.encode_text([""]), prior.encode_text([""]), (), "target"
    )
    before = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(3, 1, 32, 32)
    masks[..., 8:24, 8:24] = 1
    told: list[int] = []

    def agree(drawn: torch.Tensor, t: float) -> torch.Tensor:
        assert drawn.shape == before.shape and 0 <= t < 0.98
        assert torch.equal(torch.where(masks > 0, 0.0, drawn), torch.where(masks > 0, 0.0, before))
        return drawn

    def run(seed: int, stop: int = 99) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return imagine(
            prior, prompts, before, before, masks, agree, generator, steps=6, scale=1.0,
            on_step=lambda step, shown: told.append(step) or step < stop,
        )  # fmt: skip

    shown = run(0)
    assert told == [0, 1, 2, 3, 4, 5]
    assert (shown - wanted)[..., 8:24, 8:24].abs().mean() < 0.1
    assert torch.equal(shown, run(0)) and not torch.equal(shown, run(1))
    told.clear()
    run(0, stop=2)
    assert told == [0, 1, 2]

    progress: list[float] = []

    def steered(towards: float) -> torch.Tensor:
        def steer(was: torch.Tensor, z: torch.Tensor, cells: torch.Tensor, done: float) -> torch.Tensor:
            assert was.shape == z.shape == (3, 3, 16, 16) and cells.shape == (3, 1, 16, 16)
            progress.append(done)
            return z + towards * cells

        generator = torch.Generator().manual_seed(0)
        return imagine(prior, prompts, before, before, masks, agree, generator, steps=6, scale=1.0, steer=steer)

    assert torch.equal(steered(0.0), shown) and progress == [k / 6 for k in range(6)]
    brighter = steered(0.1) - shown
    assert brighter[..., 9:23, 9:23].mean() > 0.04 and not torch.where(masks > 0, 0.0, brighter).any()
