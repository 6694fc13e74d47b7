"""IDS: DDS at its edge, the published inner loop in float64, and an inner loop that does what it is for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from sdsedit.guidance import DDS, IDS
from sdsedit.guidance.base import Step, through_network
from tests.guidance.gaussian import FLOW, VP, GaussianPrior, descend, draws, prompts


def field(seed: int, side: int = 4) -> torch.Tensor:
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))


def gaussians(schedule=VP):
    return GaussianPrior({"target": field(1), "source": field(2), "": field(3)}, {"source": 0.3}, schedule)


def a_step(prior, method, z, z_src, seed=0):
    return Step(3, 10, z, z_src, prompts(prior), draws(prior, z, method, seed))


def test_without_inner_steps_it_is_dds():
    ours = descend(gaussians(), IDS(inner=0), field(9)[None], 5)
    theirs = descend(gaussians(), DDS(), field(9)[None], 5)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_equal_prompts_and_latents_do_not_move():
    prior, method, z = gaussians(), IDS(rate=0.02), field(9)[None]
    same = prompts(prior, "target", "target")
    update = method(prior, Step(0, 4, z, z, same, draws(prior, z, method)))
    assert update.step.abs().max() < 1e-6  # the noise is taken out of z_t again, which rounds


def test_a_step_is_the_papers_in_float64():
    prior, method, z, z_src = gaussians(), IDS(scale=2.0, rate=0.02), field(8)[None], field(9)[None]
    draw = draws(prior, z, method)()
    a, s = (each.double() for each in prior.schedule.alpha_sigma(draw.t))
    mean = {key: torch.as_tensor(value).double() for key, value in prior.means.items()}

    def e_hat(z_t, prompt):
        e = [s * (z_t - a * mean[key]) / (a**2 * prior.variances.get(key, 1.0) + s**2) for key in ("", prompt)]
        return e[0] + 2.0 * (e[1] - e[0])

    source = z_src.double()
    z_t = a * source + s * draw.eps.double()
    for _ in range(3):
        z_t = z_t.detach().requires_grad_()
        distance = (source - (z_t - s * e_hat(z_t, "source")) / a).norm()
        z_t = z_t - 0.02 * 48**0.5 * torch.autograd.grad(distance, z_t)[0]
    z_t = z_t.detach()
    noise = (z_t - a * source) / s
    gradient = e_hat(a * z.double() + s * noise, "target") - e_hat(z_t, "source")
    ours = method(prior, a_step(prior, method, z, z_src)).step.double()
    expected = method.step_size * gradient
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_inner_steps_bring_the_posterior_mean_to_the_source(schedule):
    prior, z = gaussians(schedule), field(9)[None]
    residuals = []
    for inner in range(1, 8):
        method = IDS(inner=inner, rate=0.1, scale=1.0)
        with through_network(a_step(prior, method, z, z)) as own:
            residuals.append(method.fixed_point(prior, own, own.draw())[1].item())
    assert all(later < earlier for earlier, later in pairwise(residuals)), residuals
    assert residuals[-1] < residuals[0] - 0.01


def test_inner_steps_do_so_with_a_real_network_under_inference_mode(any_prior):
    text, cells = prompts(any_prior, "a cat", "a dog"), any_prior.native // any_prior.factor
    z = torch.randn(2, any_prior.channels, cells, cells, generator=torch.Generator().manual_seed(0))
    method = IDS(inner=1, scale=1.0, rate=0.002)
    found = []
    for inner in (1, 4):
        with torch.inference_mode():
            each = replace(method, inner=inner)
            update = each(any_prior, Step(0, 4, z, z, text, draws(any_prior, z, each)))
        assert update.step.isfinite().all() and not update.step.requires_grad
        found.append(update.stats["residual"].item())
    assert found[1] < found[0]
    assert all(weight.grad is None for weight in any_prior.unet.parameters())


def test_pictures_of_one_batch_do_not_know_each_other():
    prior, z = gaussians(), torch.stack([field(5), field(6)])
    method = IDS(rate=0.02)
    whole = a_step(prior, method, z, z)
    draw = whole.draw()
    with through_network(whole) as own:
        together, _ = method.fixed_point(prior, own, draw)
        for row in range(2):
            one = replace(own, z=own.z[row : row + 1], z_src=own.z_src[row : row + 1])
            alone, _ = method.fixed_point(prior, one, type(draw)(draw.t[row : row + 1], draw.eps[row : row + 1]))
            assert torch.allclose(together[row : row + 1], alone, atol=1e-5)
