"""Plain sampling: a closed-form prior's own picture, DDIM's exact map, the maps on the way, which sample is best."""

from __future__ import annotations

import pytest
import torch

from sdsedit.attention.probe import AttentionMaps
from sdsedit.guidance.sample import likelihood, mean_maps, sample
from tests.guidance.gaussian import FLOW, VP, GaussianPrior, prompts


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


MEAN = normal(3, 8, 8, seed=1)
SCHEDULES = pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])


@SCHEDULES
@pytest.mark.parametrize("steps", [1, 7])
def test_a_certain_prior_is_sampled_at_its_mean_from_any_noise_by_any_number_of_steps(schedule, steps):
    prior = GaussianPrior({"target": MEAN}, {"target": 0.0}, schedule)
    z0 = [z for z, _ in sample(prior, prompts(prior), normal(2, 3, 8, 8), steps, scale=1.0)]
    assert len(z0) == steps and prior.batches == [4] * steps  # one pass a step for both branches of both pictures
    assert torch.allclose(z0[-1], MEAN.expand(2, -1, -1, -1), atol=1e-3)


@SCHEDULES
def test_ddim_carries_a_gaussian_onto_the_prior(schedule):
    """In the limit of many steps z_t stays at its place in p(z_t): (z_t - a mean) / sqrt(a^2 v + s^2) is constant."""
    prior = GaussianPrior({"target": MEAN}, {"target": 0.25}, schedule)
    noise = normal(1, 3, 8, 8)
    *_, (z0, _) = sample(prior, prompts(prior), noise, 400, scale=1.0)
    a, s = schedule.alpha_sigma(torch.tensor([0.98]))
    expected = MEAN + 0.5 * (noise - a * MEAN) / (0.25 * a**2 + s**2).sqrt()
    assert (z0 - expected).abs().max() < 0.05


def test_guidance_goes_beyond_the_mean_and_scale_0_knows_no_prompt():
    prior = GaussianPrior({"target": MEAN})
    at = {scale: list(sample(prior, prompts(prior), normal(1, 3, 8, 8), 30, scale))[-1][0] for scale in (0.0, 1.0, 3.0)}
    one, three = at[1.0] - at[0.0], at[3.0] - at[0.0]
    share = (one * MEAN).sum() / MEAN.square().sum()  # all of it, but for what the start at t = 0.98 leaves out
    assert 0.85 < share < 1.0 and torch.allclose(one[0], share * MEAN, atol=1e-3)
    assert torch.allclose(three, 3 * one, atol=1e-3)  # a Gaussian's is linear
    assert torch.equal(at[0.0], list(sample(prior, prompts(prior, "other"), normal(1, 3, 8, 8), 30, 0.0))[-1][0])


def test_pictures_of_one_batch_do_not_know_each_other():
    prior = GaussianPrior({"target": MEAN})
    noise = normal(3, 3, 8, 8)
    together = list(sample(prior, prompts(prior), noise, 5))[-1][0]
    for row in range(3):
        alone = list(sample(prior, prompts(prior), noise[row : row + 1], 5))[-1][0]
        assert torch.allclose(together[row : row + 1], alone, atol=1e-5)


def test_the_words_are_listened_to_on_the_rows_of_the_target():
    prior = GaussianPrior({}, places=[torch.full((8, 8), k / 10) for k in range(4)])
    steps = list(sample(prior, prompts(prior, tokens=(3, 5)), normal(2, 3, 8, 8), 4))
    assert prior.recorded == [((3, 5), slice(2, 4))] * 4
    maps = [m for _, m in steps if m is not None]
    assert [m.cross.shape for m in maps] == [(2, 2, 8, 8)] * 4
    assert torch.allclose(mean_maps(maps).cross, torch.tensor(0.15))
    assert [m for _, m in sample(prior, prompts(prior), normal(1, 3, 8, 8), 2)] == [None, None]  # no words, no probe


def test_mean_maps_is_the_mean_of_each_kind():
    a, b = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4)
    plain = mean_maps([AttentionMaps(a, None), AttentionMaps(b, None)])
    assert torch.allclose(plain.cross, (a + b) / 2) and plain.refined is None
    both = mean_maps([AttentionMaps(a, b), AttentionMaps(b, 3 * b), AttentionMaps(b, None)])
    assert torch.allclose(both.cross, (a + 2 * b) / 3)
    assert both.refined is not None and torch.allclose(both.refined, 2 * b)


@torch.inference_mode()
def test_a_real_network_is_sampled_and_its_maps_come_along(any_prior):
    text = prompts(any_prior, "a cat", "", tokens=(2,))
    cells = any_prior.native // any_prior.factor
    steps = list(sample(any_prior, text, normal(2, any_prior.channels, cells, cells), 2))
    z0, maps = steps[-1]
    assert z0.shape == (2, any_prior.channels, cells, cells) and z0.isfinite().all()
    assert maps is not None and maps.cross.shape[:2] == (2, 1) and maps.refined is not None


def test_likelihood_puts_the_picture_that_the_words_say_first():
    """For a Gaussian: the nearer z is to the prompt's mean, the better; in the middle between both means it is 0."""
    prior = GaussianPrior({"target": MEAN})
    z = torch.stack([MEAN, 0.8 * MEAN, 0.5 * MEAN, 0 * MEAN, -MEAN])
    found = likelihood(prior, prompts(prior), z, normal(1, 3, 8, 8))
    assert found.shape == (5,) and (found.diff() < 0).all() and prior.batches == [10, 10, 10]
    z_only = likelihood(prior, prompts(prior), z, torch.zeros(1, 3, 8, 8))
    assert z_only[2].abs() < 1e-5 and z_only[0] == pytest.approx(-z_only[3].item(), rel=1e-4)
    assert torch.equal(found, likelihood(prior, prompts(prior), z, normal(1, 3, 8, 8)))
    nothing = likelihood(prior, prompts(prior, ""), z, normal(1, 3, 8, 8))
    assert not nothing.any()
