"""Redrawing a place: what is inside goes to the model's picture, what is outside stays, and it stops when asked."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from sdsedit.edit import edit
from sdsedit.errors import InputRefused
from sdsedit.guidance import LUSD
from sdsedit.guidance.refine import Refine
from sdsedit.request import Edit, EditConfig
from tests.guidance.gaussian import FLOW, VP, GaussianPrior, prompts

TARGET, SOURCE = "a cat wearing a crown on grass", "a cat on grass"


def redraw(prior, refine, z, z_src, mask, seed=0):
    draw = partial(prior.schedule.draw, z, torch.Generator().manual_seed(seed))
    return list(refine(prior, z, z_src, mask, prompts(prior, TARGET, SOURCE), draw))


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_a_certain_prior_redraws_its_mean_inside_and_leaves_the_outside(schedule):
    """With variance 0 the posterior mean is the mean at every t, so DDIM arrives at it from anywhere."""
    mean = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    prior = GaussianPrior({TARGET: mean, "": mean}, variances={TARGET: 0.0, "": 0.0}, schedule=schedule)
    z_src = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4, :4] = 1
    steps = redraw(prior, Refine(start=0.6, steps=5), z_src + 0.3, z_src, mask)
    assert [len(t) for t, _ in steps] == [1] * 5 and steps[0][0].item() == pytest.approx(0.6)
    final = steps[-1][1]
    inside = mask.bool().expand_as(final)
    assert torch.equal(final[~inside], z_src[~inside])
    assert torch.allclose(final[inside], mean[None][inside], atol=1e-4)


def test_nearly_no_noise_redraws_nearly_nothing():
    prior = GaussianPrior({TARGET: 0.5})
    z = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    final = redraw(prior, Refine(start=0.002, steps=3), z, z, torch.ones(1, 1, 8, 8))[-1][1]
    _, sigma = VP.alpha_sigma(torch.tensor([0.002]))
    assert (final - z).abs().max() < 5 * sigma.item() < 0.3


@pytest.fixture
def prior():
    place = torch.zeros(8, 8)
    place[1:4, 1:4] = 1
    return GaussianPrior({TARGET: torch.tensor([1.5, 0.0, -1.5]).view(3, 1, 1)}, places=[place])


def picture():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


REQUEST = Edit(TARGET, SOURCE)
CONFIG = EditConfig(method=LUSD(steps=10), feather=0, refine=0.5)


def test_a_model_may_ask_for_it_and_a_person_may_refuse(prior):
    prior.editing = {"refine": {"start": 0.5, "steps": 4}}
    assert edit(picture(), prior, REQUEST, replace(CONFIG, refine=None)).refine == 0.5
    without = edit(picture(), prior, REQUEST, replace(CONFIG, refine=0.0))
    assert without.refine == 0 and without.steps_done == 10
    with pytest.raises(InputRefused, match="refine is 2; it must be a number from 0 to 1"):
        edit(picture(), prior, REQUEST, replace(CONFIG, refine=2))


def test_a_background_starts_from_more_noise_unless_a_person_says_otherwise():
    place = torch.ones(8, 8)
    place[3:6, 3:6] = 0
    prior = GaussianPrior({TARGET: torch.tensor([1.5, 0.0, -1.5]).view(3, 1, 1)}, places=[place])
    prior.editing = {"refine": {"start": 0.5, "steps": 4, "wide_start": 0.9}}
    subject = torch.full((1, 3, 16, 16), 0.2)
    subject[..., 6:12, 6:12] = 0.9
    result = edit(subject, prior, REQUEST, replace(CONFIG, refine=None))
    assert result.refine == 0.9 and (result.mask[..., 7:11, 7:11] == 0).all() and result.mask[..., 0, 0] > 0
    assert edit(picture(), prior, REQUEST, CONFIG).refine == 0.5


def test_its_steps_are_counted_and_reported_and_the_outside_is_kept_bit_for_bit(prior):
    seen = []
    result = edit(picture(), prior, REQUEST, CONFIG, lambda report: seen.append((report.index, report.total)))
    assert seen == [(k, 22) for k in range(22)] and result.steps_done == 22 == len(result.history)
    kept = (result.mask == 0).expand_as(picture())
    assert kept.any() and torch.equal(result.image[kept], picture()[kept])


@pytest.mark.parametrize("last", [9, 14], ids=["before the redrawing", "in it"])
def test_cancelled(prior, last):
    zs = []

    def on_step(report):
        zs.append(report.z)
        return report.index < last

    result = edit(picture(), prior, REQUEST, CONFIG, on_step)
    assert result.stopped == "cancelled" and result.steps_done == last + 1 and torch.equal(result.z, zs[-1])


def test_not_finite(prior):
    prior.poisoned_at, zs = 13, []
    result = edit(picture(), prior, REQUEST, CONFIG, lambda report: zs.append(report.z))
    assert result.stopped.startswith("non-finite gradient at step 14, t=0.") and result.steps_done == 13
    assert torch.equal(result.z, zs[-1]) and result.image.isfinite().all()
