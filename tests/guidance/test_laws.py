"""Laws that every method keeps, and where each one comes to rest with a Gaussian prior."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdsedit.guidance import CSD, DDS, IDS, ISM, LUSD, METHODS, NFSD, PDS, SBP, SDS, SSD, FastLUSD, FlowEdit
from sdsedit.guidance.base import Step, predict
from tests.guidance.gaussian import FLOW, VP, GaussianPrior, descend, draws, prompts

# CDS and VSD listen to layers, which a Gaussian has not: test_cds.py and test_vsd.py hold them to the same laws.
PLAIN = {name: method() for name, method in METHODS.items() if name not in ("cds", "vsd")}
PASSES = {
    SDS: [2], SBP: [2], CSD: [2], LUSD: [2], FastLUSD: [4], NFSD: [3], DDS: [4], PDS: [4], SSD: [4], FlowEdit: [4],
    IDS: [2, 2, 2, 4], ISM: [1, 1, 1, 1, 1, 2],
}  # fmt: skip
FLAT = 1e9  # the variance of a distribution that says nothing: its predicted noise is 0


def field(seed: int, side: int = 4) -> torch.Tensor:
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))


def rms(x):
    return x.square().mean().sqrt()


def one_step(prior, method, index=0, mask=None, encoded=None, z=None, z_src=None):
    z_src = field(9)[None] if z_src is None else z_src
    z = z_src if z is None else z
    step = Step(index, 4, z, z_src, encoded or prompts(prior), draws(prior, z, method), mask)
    return method(prior, step)


@pytest.fixture
def prior():
    means = {"target": field(1), "source": field(2), "": field(3), f"target, {SBP().good}": field(10)}
    return GaussianPrior(means, places=[field(4).abs()[0]])


@pytest.mark.parametrize("method", PLAIN.values(), ids=PLAIN)
def test_a_step_is_as_few_forward_passes_as_it_can_be(prior, method):
    update = one_step(prior, method)
    assert prior.batches == PASSES[type(method)]
    assert update.step.shape == (1, 3, 4, 4) and update.step.isfinite().all() and update.step.any()
    assert {"t", "grad_norm", "distance"} <= set(update.stats)
    assert all(value.ndim == 0 for value in update.stats.values())


@pytest.mark.parametrize("method", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_a_seed_fixes_the_run_for_both_kinds_of_model(method, schedule):
    def run():
        prior = GaussianPrior({"target": field(1), "source": field(2)}, schedule=schedule)
        return descend(prior, method, field(9)[None], 5)[-1]

    assert torch.equal(run(), run()) and run().isfinite().all()


@pytest.mark.parametrize("method", PLAIN.values(), ids=PLAIN)
def test_a_mask_of_a_person_holds_the_outside(prior, method):
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., :2, 1:3] = 1
    for index in (0, 3):
        step = one_step(prior, method, index, mask).step
        assert step[mask.expand_as(step) == 1].all()
        assert not step[mask.expand_as(step) == 0].any()


@pytest.mark.parametrize("method", PLAIN.values(), ids=PLAIN)
def test_no_host_synchronisation_but_the_filter_of_lusd(prior, method):
    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            Reads.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
            return func(*args, **(kwargs or {}))

    with Reads():
        one_step(prior, method)
    assert Reads.count == (1 if isinstance(method, LUSD) else 0)


@pytest.mark.parametrize("method", PLAIN.values(), ids=PLAIN)
def test_several_views_are_one_batch(prior, method):
    z = torch.stack([field(5), field(6)])
    update = one_step(prior, method, z=z, z_src=z)
    assert update.step.shape == z.shape and prior.batches == [2 * rows for rows in PASSES[type(method)]]


def test_branches_keep_their_order_and_their_text(prior):
    z, t = field(5)[None], torch.tensor([0.5])
    encoded = prompts(prior)
    (a, b), maps = predict(prior, t, (z, encoded.target), (2 * z, encoded.source))
    assert maps is None
    assert torch.equal(a, prior.predict(z, t, encoded.target).eps)
    assert torch.equal(b, prior.predict(2 * z, t, encoded.source).eps)


@pytest.mark.parametrize(
    "method",
    [DDS(), PDS(), LUSD(), FlowEdit(source_scale=5.5, scale=5.5)],
    ids=["dds", "pds", "lusd", "flowedit"],
)
def test_equal_prompts_and_latents_do_not_move(prior, method):
    same = prompts(prior, "target", "target")
    assert not one_step(prior, method, encoded=same).step.any()


# Where a method comes to rest. With E[eps_hat] = k (z - m), k > 0, the mean of a gradient is known at every t.


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_sds_rests_at_the_guided_mean(schedule):
    empty, target = field(3), field(1)
    prior = GaussianPrior({"target": target, "": empty}, schedule=schedule)
    for scale in (1.0, 3.0):
        path = descend(prior, SDS(scale=scale, step_size=0.05), field(9)[None], 3000)
        rest = torch.stack(path[1000:]).mean(0)[0]
        assert rms(rest - (empty + scale * (target - empty))) < 0.1


def test_dds_rests_at_the_source_moved_by_the_difference_of_the_prompts(prior):
    z_src = field(9)[None]
    rest = descend(prior, DDS(scale=2.0, step_size=0.5), z_src, 300)[-1]
    assert torch.allclose(rest, z_src + 2 * (field(1) - field(2)), atol=1e-3)


def test_pds_of_neighbouring_steps_rests_where_dds_does_and_a_stride_pulls_to_the_source(prior):
    z_src = field(9)[None]
    target = z_src + 2 * (field(1) - field(2))
    rest = descend(prior, PDS(scale=2.0, stride=1, step_size=2.0), z_src, 1500)[-1]
    assert torch.allclose(rest, target, atol=1e-2)
    held = descend(prior, PDS(scale=2.0, stride=2, step_size=2.0), z_src, 1500)[-1]
    assert (held - z_src).norm() < 0.95 * (rest - z_src).norm()


def test_ssd_without_its_pull_rests_at_the_sum_of_its_terms(prior):
    z_src, target, source, empty = field(9)[None], field(1), field(2), field(3)
    method = SSD(keep=1.0, edit=0.5, enhance=0.25, pull=0.0, step_size=0.5)
    rest = descend(prior, method, z_src, 300)[-1]
    expected = z_src + (source - empty) + 0.5 * (target - source) + 0.25 * (target - empty)
    assert torch.allclose(rest, expected, atol=1e-3)
    pulled = descend(prior, replace(method, pull=1.0), z_src, 300)[-1]
    assert (pulled - z_src).norm() < (rest - z_src).norm()


@pytest.mark.parametrize(
    ("method", "silent"),
    [
        (CSD(step_size=0.05), ""),
        (NFSD(step_size=0.05, scale=1.0, negative="silent"), "silent"),
        (SBP(step_size=0.05, first_stage=0.0, good="good", bad="bad"), "target, bad"),
    ],
    ids=["csd", "nfsd", "sbp"],
)
def test_differences_with_a_silent_distribution_rest_at_the_mean(method, silent):
    target = field(1)
    prior = GaussianPrior({"target": target, "target, good": target, "": field(3)}, {silent: FLAT})
    path = descend(prior, method, field(9)[None], 3000)
    assert rms(torch.stack(path[1000:]).mean(0)[0] - target) < 0.1


def test_differences_of_equal_widths_drift_with_the_words():
    """Where p(z) is as narrow as p(z | y) the implicit classifier has no maximum: CSD goes on towards the prompt."""
    prior = GaussianPrior({"target": field(1), "": field(3)})
    update = one_step(prior, CSD())
    cosine = torch.cosine_similarity(-update.step.flatten(), (field(1) - field(3)).flatten(), dim=0)
    assert cosine > 0.9999


def test_sbp_changes_its_stage_and_takes_a_persons_negative_words(prior):
    method = SBP(first_stage=0.5)
    first, second = one_step(prior, method, 0).step, one_step(prior, method, 3).step
    assert torch.equal(first, one_step(prior, replace(method, first_stage=1.0), 0).step)
    assert torch.equal(second, one_step(prior, replace(method, first_stage=0.0), 3).step)
    prior.means["target, grainy"] = field(7)
    assert not torch.equal(one_step(prior, method, 3, encoded=prompts(prior, negative="grainy")).step, second)


def test_nfsd_and_csd_take_a_persons_negative_prompt(prior):
    prior.means["grainy"] = field(7)
    for method in (NFSD(t_min=0.5), CSD()):
        asked = one_step(prior, method, encoded=prompts(prior, negative="grainy"))
        assert prior.batches[-1] == 3
        assert not torch.equal(asked.step, one_step(prior, method).step)


def test_pds_is_the_papers_posterior_in_float64(prior):
    """The DDPM posterior as the authors write it, with betas, at t and t - 2: c0 x0_hat + c1 x_t."""
    method, z_src, z = PDS(), field(9)[None], field(8)[None]
    draw = draws(prior, z, method)
    (t, eps), eps_p = (lambda d: (d.t, d.eps.double()))(draw()), draw().eps.double()
    i = round(t.item() * 1000)
    abar = VP.alphas_cumprod.double()
    alpha = abar[i] / abar[i - 1]
    beta, mean = 1 - alpha, {key: value.double() for key, value in prior.means.items()}
    sigma = ((1 - abar[i - 2]) / (1 - abar[i]) * beta).sqrt()

    def noise(x0, prompt):
        x_t = abar[i].sqrt() * x0 + (1 - abar[i]).sqrt() * eps
        e_0, e_y = ((1 - abar[i]).sqrt() * (x_t - abar[i].sqrt() * mean[key]) for key in ("", prompt))
        e_hat = e_0 + 100 * (e_y - e_0)
        x0_hat = (x_t - (1 - abar[i]).sqrt() * e_hat) / abar[i].sqrt()
        mu = abar[i - 2].sqrt() * beta / (1 - abar[i]) * x0_hat + alpha.sqrt() * (1 - abar[i - 2]) / (1 - abar[i]) * x_t
        return (abar[i - 2].sqrt() * x0 + (1 - abar[i - 2]).sqrt() * eps_p - mu) / sigma

    expected = 0.03 * (noise(z.double(), "target") - noise(z_src.double(), "source"))
    ours = one_step(prior, method, z=z, z_src=z_src).step.double()
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
