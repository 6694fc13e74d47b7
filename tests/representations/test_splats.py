"""Gaussians that follow a direction through the renderer and an autoencoder, beside Gaussians that never move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdsedit.camera import orbit
from sdsedit.edit import distill
from sdsedit.guidance.base import Prompts
from sdsedit.guidance.sds import SDS
from sdsedit.representations.splats import Anchor, Rates, Scene, SceneViews, held_out, pictures, with_colour
from tests.sketch.painter import Painter

SIZE = 32
WHITE = torch.ones(3)


def ball(x: float, rgb: tuple[float, float, float], count: int = 40, seed: int = 0) -> Scene:
    generator = torch.Generator().manual_seed(seed)
    offset = torch.randn(count, 3, generator=generator)
    offset = 0.3 * offset / offset.norm(dim=1, keepdim=True)
    quats = torch.zeros(count, 4)
    quats[:, 0] = 1
    bare = Scene(
        offset + torch.tensor([x, 0.0, 0.0]),
        quats,
        torch.full((count, 3), -2.0),
        torch.full((count,), 2.0),
        torch.zeros(count, 1, 3),
    )
    return with_colour(bare, torch.tensor(rgb).expand(count, 3))


@pytest.fixture
def cameras():
    return orbit((0.0, 0.0, 0.0), 3.0, (10.0, 30.0), 4, SIZE, SIZE)


def views_of(kept: Scene, own: Scene, cameras, prior, weight: torch.Tensor | None = None, **options) -> SceneViews:
    before = pictures(Scene.cat(kept, own), cameras, WHITE)
    settings = {"steps": 40, "rates": Rates(sh=0.2), "radius": 0.5, "generator": torch.Generator().manual_seed(0)}
    weight = torch.ones(len(own)) if weight is None else weight
    parent = torch.arange(len(own))
    return SceneViews(kept, own, weight, parent, cameras, before, WHITE, prior, **{**settings, **options})


@pytest.fixture
def wish(cameras) -> tuple[Scene, Scene, Painter, Prompts]:
    """A red and a grey ball, and a model that wants the grey one green, seen from the first camera."""
    kept, own = ball(-0.5, (0.9, 0.1, 0.1)), ball(0.5, (0.5, 0.5, 0.5), seed=1)
    wanted = pictures(Scene.cat(kept, with_colour(own, torch.tensor([0.1, 0.8, 0.2]).expand(40, 3))), cameras[0], WHITE)
    prior = Painter({"green": wanted}, variance=1e-3)
    text = prior.encode_text(["green", "", "", ""])
    return kept, own, prior, Prompts(text[0], text[1], text[2], text[3], (), "target")


def test_a_scene_comes_back_from_its_tensors_bit_for_bit():
    scene = ball(0.0, (0.2, 0.4, 0.6))
    splats = scene.splats({"part": np.arange(40, dtype=np.uint8)}, ("a comment",))
    again = Scene.of(splats)
    for name in ("means", "quats", "log_scales", "logits", "sh"):
        assert torch.equal(getattr(scene, name), getattr(again, name))
    assert splats.comments == ("a comment",) and splats.extra["part"][7] == 7


def test_distillation_moves_its_own_rows_towards_what_the_model_wants_and_no_other(wish, cameras):
    kept, own, prior, prompts = wish
    start = kept.means.clone(), kept.sh.clone()
    views = views_of(kept, own, cameras[0], prior)
    green = 0.5 + 0.2821 * own.sh[:, 0, 1].mean()
    run = distill(views, prior, prompts, SDS(scale=1.0, step_size=1.0), 40, 0)
    assert run.stopped == "" and run.steps_done == 40
    now = 0.5 + 0.2821 * views.rows().sh[:, 0].mean(0)
    assert now[1] > green + 0.1 and now[1] > now[0] and now[1] > now[2]
    assert torch.equal(kept.means, start[0]) and torch.equal(kept.sh, start[1])
    assert torch.equal(views.whole().sh[:40], start[1])


def test_a_rate_of_zero_keeps_a_parameter_bit_for_bit(wish, cameras):
    kept, own, prior, prompts = wish
    rates = Rates(means=0, quats=0, log_scales=0, logits=0, sh=0.1)
    views = views_of(kept, own, cameras, prior, rates=rates)
    distill(views, prior, prompts, SDS(), 5, 0)
    now = views.rows()
    for name in ("means", "quats", "log_scales", "logits"):
        assert torch.equal(getattr(now, name), getattr(own, name)), name
    assert not torch.equal(now.sh, own.sh)


def test_a_row_of_weight_zero_stays_where_it_is(wish, cameras):
    kept, own, prior, prompts = wish
    weight = torch.ones(40)
    weight[:20] = 0
    views = views_of(kept, own, cameras, prior, weight)
    distill(views, prior, prompts, SDS(), 5, 0)
    moved = (views.rows().means - own.means).abs().amax(1)
    assert (moved[:20] == 0).all() and (moved[20:] > 0).any()


def test_the_shares_of_the_terms_are_their_weights(wish, cameras):
    kept, own, prior, prompts = wish
    terms = {"dark": (3.0, lambda image, view: image.mean()), "nothing": (5.0, lambda image, view: 0 * image.mean())}
    views = views_of(kept, own, cameras, prior, terms=terms)
    distill(views, prior, prompts, SDS(), 1, 0)
    assert views.shares["nothing"] == 0
    assert views.shares["distillation"] == pytest.approx(0.25) and views.shares["dark"] == pytest.approx(0.75)


def test_a_style_weighs_beside_all_the_rest_and_pulls_at_the_methods_own_steps_only(wish, cameras):
    kept, own, prior, prompts = wish
    asked = {"dark": 0, "style": 0}

    def term(name: str):
        def loss(image: torch.Tensor, view: int) -> torch.Tensor:
            asked[name] += 1
            return image.mean()

        return loss

    terms = {"dark": (0.75, term("dark"))}
    views = views_of(kept, own, cameras, prior, terms=terms, style=(2.0, term("style")), between=2, distillation=0.25)
    distill(views, prior, prompts, SDS(), 1, 0)
    assert asked == {"dark": 3, "style": 1}
    assert views.shares == pytest.approx({"distillation": 0.25 / 3, "dark": 0.75 / 3, "style": 2 / 3})


def test_an_anchor_pulls_back_to_the_scene_as_it_was(wish, cameras):
    kept, own, prior, prompts = wish
    far = {}
    for pull in (0.0, 5.0):
        views = views_of(kept, own, cameras, prior, anchor=Anchor(colour=pull, shape=pull))
        distill(views, prior, prompts, SDS(), 20, 0)
        far[pull] = float((views.rows().means.detach() - own.means).norm())
    assert far[5.0] < 0.5 * far[0.0]


def test_every_camera_is_looked_through_before_one_comes_again(wish, cameras):
    kept, own, prior, _ = wish
    views = views_of(kept, own, cameras, prior)
    seen = []
    for index in range(8):
        views.render(index)
        seen.append(views.view)
    assert sorted(seen[:4]) == sorted(seen[4:]) == [0, 1, 2, 3]


def test_one_seed_is_one_scene(wish, cameras):
    kept, own, prior, prompts = wish
    results = []
    for _ in range(2):
        views = views_of(kept, own, cameras, prior)
        distill(views, prior, prompts, SDS(), 6, 3)
        results.append(views.rows())
    assert torch.equal(results[0].means, results[1].means) and torch.equal(results[0].sh, results[1].sh)


def test_every_fourth_camera_is_held_out(cameras):
    many = orbit((0.0, 0.0, 0.0), 3.0, 10.0, 10, SIZE, SIZE)
    working, measured = held_out(many)
    assert list(measured) == [3, 7] and sorted([*working, *measured]) == list(range(10))
