"""The look of references on a scene: how far it pulls, where, and that it really brings a scene nearer to the look."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdsedit.camera import orbit
from sdsedit.guidance.attention_distillation import observe, style_loss
from sdsedit.prior import UNetPrior
from sdsedit.representations.splats import Rates, Scene, SceneViews, pictures
from sdsedit.splats.style import SceneStyle
from tests.little_scene import little_scene

WHITE = torch.ones(3)


def random(seed: int, *shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def styled(prior: UNetPrior, weight: float = 1.0, count: int = 1, match: bool = False) -> SceneStyle:
    """Stripes of 4 pixels, each reference with its own colours."""
    stripes = (torch.arange(64) // 4 % 2).float().expand(1, 3, 64, 64)
    references = [(stripes * random(k, 1, 3, 1, 1)).contiguous() for k in range(count)]
    return SceneStyle.of(prior, references, prior.encode_text([""]), weight, match, size=64)


def rms(values: Tensor) -> Tensor:
    return values.square().mean((1, 2, 3)).sqrt()


@pytest.fixture(scope="module")
def step(builtin_prior: UNetPrior) -> tuple[Tensor, Tensor, Tensor]:
    """(views before a step of their drawing, after it, the masks): the first view's left half, nothing of the second,
    all of the third."""
    before = 2 * random(1, 3, builtin_prior.channels, 16, 16) - 1
    masks = torch.ones(3, 1, 16, 16)
    masks[0, ..., 8:], masks[1] = 0, 0
    return before, before + 0.3 * random(2, *before.shape), masks


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_the_pull_is_so_many_times_the_step_and_only_in_the_place(builtin_prior: UNetPrior, step, weight: float):
    before, drawn, masks = step
    style = styled(builtin_prior, weight)
    pulled = style.pull(before, drawn, masks, 0.5) - drawn
    torch.testing.assert_close(rms(pulled), weight * rms(masks * (drawn - before)), rtol=1e-4, atol=1e-7)
    assert not (pulled * (1 - masks)).any() and not pulled[1].any()
    same = style.pull(drawn, drawn, masks, 0.5)
    torch.testing.assert_close(same, drawn, rtol=0, atol=0)  # no step, no pull


def test_places_are_given_the_references_means_and_deviations(builtin_prior: UNetPrior, step):
    """Of all views together; outside nothing moves, and the pull comes after."""
    before, drawn, masks = step
    style = styled(builtin_prior, 0.0, count=2, match=True)
    matched = style.pull(before, drawn, masks, 0.5)
    theirs = torch.cat([each.z.flatten(2)[0] for each in style.look.references], 1).double()  # [C, n]
    inside = matched.transpose(0, 1)[:, masks[:, 0] > 0].double()  # [C, n]
    torch.testing.assert_close(inside.mean(1), theirs.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inside.var(1, correction=0), theirs.var(1, correction=0), rtol=1e-4, atol=1e-5)
    assert torch.equal(torch.where(masks > 0, 0.0, matched), torch.where(masks > 0, 0.0, drawn))
    assert not torch.equal(styled(builtin_prior, 1.0, count=2, match=True).pull(before, drawn, masks, 0.5), matched)


def test_the_pull_goes_down_the_loss(builtin_prior: UNetPrior, step):
    before, drawn, masks = step
    style, t = styled(builtin_prior, 0.05, count=2), torch.zeros(1)
    seen = [observe(builtin_prior, each.z, t, style.empty) for each in style.look.references]

    def loss(z: Tensor) -> float:
        return float(style_loss(observe(builtin_prior, z, t, style.empty), seen))

    pulled = style.pull(before, drawn, masks, 1.0)  # the network is told t = 0
    assert loss(pulled[2:]) < loss(drawn[2:]) and loss(pulled[:1]) < loss(drawn[:1])


def test_of_a_view_only_its_place_has_a_gradient(builtin_prior: UNetPrior):
    """The loss is that of the whole view; its gradient is the plain one times the mask."""
    image = torch.cat([random(3, 1, 3, 64, 64), torch.ones(1, 1, 64, 64)], 1).requires_grad_()
    masks = torch.zeros(2, 1, 64, 64)
    masks[1, ..., 16:40, 16:40] = 1
    masks[1, ..., 40:44, 16:40] = 0.5
    style = styled(builtin_prior)
    everywhere = style.term(torch.ones_like(masks))(image, 1)
    here = style.term(masks)(image, 1)
    torch.testing.assert_close(here, everywhere, rtol=1e-5, atol=0)
    assert here > 0
    (plain,), (g,) = torch.autograd.grad(everywhere, image), torch.autograd.grad(here, image)
    torch.testing.assert_close(g, masks[1:] * plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))
    (nothing,) = torch.autograd.grad(style.term(masks)(image, 0), image)
    assert not nothing.any() and not g[:, 3].any()


def test_a_scene_comes_nearer_to_the_look(builtin_prior: UNetPrior):
    """Only the look pulls, at nothing but colours of the ball."""
    splats = little_scene()
    scene, ball = Scene.of(splats), torch.from_numpy(splats.extra["part"] == 1)
    cameras = orbit((0.0, 0.0, 0.0), 2.0, 20.0, 2, 64, 64)
    before, style = pictures(scene, cameras, WHITE), styled(builtin_prior, 1.0)
    term = style.term(torch.ones(2, 1, 64, 64))
    rates = Rates(means=0, quats=0, log_scales=0, logits=0, sh=0.1)
    views = SceneViews(
        scene[~ball], scene[ball], torch.ones(int(ball.sum())), ball.nonzero()[:, 0], cameras, before, WHITE,
        builtin_prior, 12, rates, 0.5, torch.Generator().manual_seed(0), distillation=0.0, style=(1.0, term),
    )  # fmt: skip

    def loss() -> float:
        with torch.no_grad():
            return sum(float(term(pictures(views.whole(), cameras[k], WHITE), k)) for k in range(2))

    first = loss()
    for index in range(12):
        z = views.render(index).z
        views.step(torch.zeros_like(z))
    assert loss() < 0.98 * first and views.shares == {"style": 1.0}
    assert torch.equal(views.whole().sh[: int((~ball).sum())], scene[~ball].sh)
