"""ISM: DDIM inversion that stays on the prior's path, the published update in float64, intervals that go to 0."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdsedit.guidance import ISM
from sdsedit.guidance.base import Step
from sdsedit.guidance.ism import invert
from sdsedit.schedule import Draw
from tests.guidance.gaussian import FLOW, VP, GaussianPrior, draws, prompts

SCHEDULES = pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])


def field(seed: int, side: int = 4) -> torch.Tensor:
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))


def a_step(prior, method, z, encoded=None, z_src=None):
    return Step(0, 4, z, z if z_src is None else z_src, encoded or prompts(prior), draws(prior, z, method))


@SCHEDULES
def test_inversion_stays_at_its_place_in_the_noised_gaussian(schedule):
    """On the exact path (z_t - a m) / sqrt(a^2 v + s^2) is constant; DDIM comes to it with its number of steps."""
    prior = GaussianPrior({"source": field(2)}, {"source": 0.4}, schedule)
    text, z = prompts(prior).source, field(9)[None]
    end = Draw(torch.tensor([0.7]), field(5)[None])

    def place(x, t):
        a, s = schedule.alpha_sigma(t)
        return (x - a * field(2)) / (0.4 * a**2 + s**2).sqrt()

    start = place(schedule.add_noise(z, end.eps, torch.zeros(1)), torch.zeros(1))
    errors = [(place(invert(prior, z, text, end, steps), end.t) - start).abs().max().item() for steps in (4, 40, 400)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[2] < 0.05


@SCHEDULES
def test_inverted_and_sampled_back_it_is_the_same_latent(schedule):
    prior = GaussianPrior({"source": field(2)}, {"source": 0.4}, schedule)
    text, z, steps = prompts(prior).source, field(9)[None], 500
    end = Draw(torch.tensor([0.6]), field(5)[None])
    x = invert(prior, z, text, end, steps)
    for k in range(steps, 0, -1):
        t, after = end.t * (k / steps), end.t * ((k - 1) / steps)
        e = prior.predict(x, t, text).eps
        x = schedule.add_noise(schedule.to_sample(e, x, t), e, after)
    assert torch.allclose(x, schedule.add_noise(z, end.eps, torch.zeros(1)), atol=0.05)


@SCHEDULES
def test_equal_prompts_leave_what_the_interval_adds_and_no_interval_nothing(schedule):
    prior = GaussianPrior({"target": field(1)}, {"target": 0.4}, schedule)
    same = prompts(prior, "target", "target")
    sizes = []
    for interval in (0.1, 0.05, 0.01, 0.0):
        method = ISM(interval=interval)
        sizes.append(method(prior, a_step(prior, method, field(9)[None], same)).step.abs().max().item())
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    assert sizes[3] < 1e-5  # x_t is x_s but for rounding


def test_a_step_is_the_papers_in_float64():
    prior = GaussianPrior({"target": field(1), "source": field(2)}, {"target": 0.5})
    method, z = ISM(inversion=3), field(8)[None]
    draw = draws(prior, z, method)()
    times = [k / 3 * (draw.t - 0.05) for k in range(4)]
    marks = [*(VP.timestep(t).item() for t in times), VP.timestep(draw.t).item()]
    abar = VP.alphas_cumprod.double()
    a, s = [abar[i].sqrt() for i in marks], [(1 - abar[i]).sqrt() for i in marks]

    def e(x, k, prompt):
        mean, variance = prior.means[prompt].double(), prior.variances.get(prompt, 1.0)
        return s[k] * (x - a[k] * mean) / (a[k] ** 2 * variance + s[k] ** 2)

    x = a[0] * z.double() + s[0] * draw.eps.double()
    for k in range(4):  # three steps of inversion, one of the interval
        e_k = e(x, k, "source")
        x = a[k + 1] * (x - s[k] * e_k) / a[k] + s[k + 1] * e_k
    e_src, e_tgt = e(x, 4, "source"), e(x, 4, "target")
    expected = method.step_size * s[4] / a[4] * (e_src + 7.5 * (e_tgt - e_src) - e_k)
    ours = method(prior, a_step(prior, method, z)).step.double()
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_without_a_source_prompt_the_empty_one_inverts_as_in_the_paper():
    prior = GaussianPrior({"target": field(1), "": field(3), "source": field(2)})
    method, z = ISM(), field(8)[None]
    silent = prompts(prior, "target", "")
    ours = method(prior, a_step(prior, method, z, silent)).step
    assert torch.equal(ours, method(prior, a_step(prior, method, z, replace(silent, source=silent.empty))).step)
    assert not torch.equal(ours, method(prior, a_step(prior, method, z)).step)


def test_between_gaussians_of_one_width_it_goes_from_source_to_target_wherever_z_is():
    """The path keeps z's place in the source's Gaussian, so what is left is the difference of the means."""
    prior = GaussianPrior({"target": field(1), "source": field(2)}, {"target": 0.2, "source": 0.2})
    method = ISM(scale=1.0, step_size=1.0, interval=0.001, t_min=0.9, t_max=0.9)
    for z in (field(2)[None], field(1)[None], field(7)[None]):
        step = method(prior, a_step(prior, method, z)).step
        assert torch.allclose(-step[0], field(1) - field(2), atol=0.15)
