"""FlowEdit: the published rule in float64 beside ours, and the flow between two Gaussians, whose end is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdsedit.edit import Edit, EditConfig, edit
from sdsedit.errors import InputRefused
from sdsedit.guidance import FlowEdit
from sdsedit.guidance.base import Step
from sdsedit.prior.base import Text
from sdsedit.prior.mmdit import MMDiTPrior
from sdsedit.schedule import Schedule
from tests import tiny_mmdit
from tests.guidance.gaussian import FLOW, VP, GaussianPrior, descend, draws, prompts

SCHEDULES = pytest.mark.parametrize("schedule", [VP, FLOW, replace(FLOW, shift=3.0)], ids=["vp", "flow", "shifted"])


def field(seed: int, side: int = 4) -> torch.Tensor:
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))


def flow_time(schedule: Schedule, t: torch.Tensor) -> torch.Tensor:
    a, s = schedule.alpha_sigma(t.reshape(-1))
    return (s / (a + s)).flatten().double()


def walk(prior, method, steps) -> torch.Tensor:
    z = field(9)[None]
    return method.times(prior, Step(0, steps, z, z, prompts(prior), draws(prior, z, method)))


@SCHEDULES
@pytest.mark.parametrize("variance", [1.0, 0.25])
def test_between_two_gaussians_it_ends_where_the_exact_flow_does(schedule, variance):
    """Both flows are linear with one slope, so z - z_src solves an equation of its own: begun at sigma_0 it is, with
    h(sigma) = sqrt((1 - sigma)^2 v + sigma^2), (m_tgt - m_src) (1 - sigma - (1 - sigma_0) h(sigma) / h(sigma_0))."""
    moved = field(1) - field(2)
    prior = GaussianPrior({"target": field(1), "source": field(2)}, {"target": variance, "source": variance}, schedule)
    method = FlowEdit(source_scale=1.0, scale=1.0, t_max=0.66)
    errors = []
    for steps in (50, 400):
        first, *_, last = flow_time(schedule, walk(prior, method, steps))  # a table's last is a little more than 0
        widths = [((1 - sigma) ** 2 * variance + sigma**2).sqrt() for sigma in (first, last)]
        share = 1 - last - (1 - first) * widths[1] / widths[0]
        z = descend(prior, replace(method, steps=steps), field(9)[None], steps)[-1]
        errors.append((z - field(9) - share.float() * moved).abs().max().item())
    assert errors[1] < 0.02 and errors[1] < errors[0] / 3  # Euler's error goes with the step


@SCHEDULES
def test_a_step_is_the_papers_in_float64(schedule):
    """Algorithm 1 with velocities, on the flow's own latents; a variance-preserving model is asked at (a + s) z."""
    prior = GaussianPrior({"target": field(1), "source": field(2), "": field(3)}, {"target": 0.5}, schedule)
    method, z_src, z = FlowEdit(), field(9)[None], field(8)[None]
    times = walk(prior, method, 33)
    draw = draws(prior, z, method)
    eps = draws(prior, z, method)().eps.double()
    a, s = (each.double() for each in schedule.alpha_sigma(times[5:7]))
    sigma = (s / (a + s)).flatten()

    def velocity(x, prompt, scale):  # of the flow at sigma[5], for x = (1 - sigma) z_0 + sigma eps
        z_t = x * (a + s)[0]
        e = {}
        for name in ("", prompt):
            mean, variance = prior.means[name].double(), prior.variances.get(name, 1.0)
            e[name] = s[0] * (z_t - a[0] * mean) / (a[0] ** 2 * variance + s[0] ** 2)
        e_hat = e[""] + scale * (e[prompt] - e[""])
        return e_hat - (z_t - s[0] * e_hat) / a[0]

    x_src = (1 - sigma[0]) * z_src.double() + sigma[0] * eps
    x_tar = z.double() + x_src - z_src.double()
    expected = (sigma[0] - sigma[1]) * (velocity(x_tar, "target", 13.5) - velocity(x_src, "source", 3.5))
    ours = method(prior, Step(5, 33, z, z_src, prompts(prior), draw)).step.double()
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_a_flow_model_is_walked_down_the_last_steps_of_its_own_schedule():
    prior = GaussianPrior({}, schedule=replace(FLOW, shift=3.0))
    assert torch.equal(walk(prior, FlowEdit(), 33), prior.schedule.descending(50)[-34:])
    assert torch.equal(walk(prior, FlowEdit(t_max=24 / 28), 24), prior.schedule.descending(28)[-25:])
    assert torch.equal(walk(prior, FlowEdit(t_max=0.9), 1), prior.schedule.descending(2)[-2:])
    with pytest.raises(InputRefused, match="must be below 1"):
        walk(prior, FlowEdit(t_max=1.0), 10)


def test_a_model_with_distilled_guidance_is_told_it_and_has_no_second_branch():
    class Guided(GaussianPrior):
        told: list[list[float]]

        def encode_text(self, texts):
            return replace(super().encode_text(texts), guidance=torch.full((len(texts),), 3.5))

        def predict(self, z_t, t, text: Text, probe=None):
            assert text.guidance is not None
            self.told.append(text.guidance.tolist())
            return super().predict(z_t, t, text, probe)

    prior = Guided({"target": field(1)}, schedule=FLOW)
    prior.told = []
    descend(prior, FlowEdit(source_scale=1.5, scale=5.5), field(9)[None], 2)
    assert prior.batches == [2, 2] and prior.told == [[1.5, 5.5]] * 2


def test_less_of_the_schedule_leaves_more_of_the_source():
    prior = GaussianPrior({"target": field(1), "source": field(2)})
    far = [(descend(prior, FlowEdit(t_max=t), field(9)[None], 20)[-1] - field(9)).norm() for t in (0.2, 0.5, 0.9)]
    assert far[0] < far[1] < far[2]


def test_equal_prompts_and_guidance_leave_a_picture_bit_for_bit(builtin_prior):
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    method = FlowEdit(source_scale=5.5, scale=5.5)
    result = edit(picture, builtin_prior, Edit("a cat", "a cat"), EditConfig(method, steps=4, size=32))
    assert (result.z - result.z_src).abs().max() < 1e-4  # rows of one batch may differ by rounding
    assert torch.equal(result.image, picture)


@pytest.mark.parametrize("family", ["sd3", "flux_dev"])
def test_on_a_flow_transformer_a_step_is_the_difference_of_its_velocities(family, tmp_path):
    prior = MMDiTPrior.from_pipeline(tiny_mmdit.FAMILIES[family](tmp_path), family)
    encoded = prompts(prior, "a cat", "a dog")
    z_src, z = (torch.randn(1, prior.channels, 8, 8, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    method = FlowEdit(source_scale=1.5, scale=5.5, t_max=24 / 28)
    step = Step(2, 24, z, z_src, encoded, draws(prior, z, method))
    eps, times = draws(prior, z, method)().eps, method.times(prior, step)
    sigma, after = times[2], times[3]
    x_src = (1 - sigma) * z_src + sigma * eps

    def velocity(x, text, scale):
        said = [text.guided(scale)] if text.guidance is not None else [encoded.empty, text]
        v = [(prior.predict(x, sigma[None], each).eps - x) / (1 - sigma) for each in said]
        return v[0] if len(v) == 1 else v[0] + scale * (v[1] - v[0])

    with torch.no_grad():
        v_tar, v_src = velocity(z + x_src - z_src, encoded.target, 5.5), velocity(x_src, encoded.source, 1.5)
        ours = method(prior, step).step
    expected = (sigma - after) * (v_tar - v_src)
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
