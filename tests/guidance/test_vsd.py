"""VSD: CSD while its LoRA has learned nothing; a LoRA that learns, beside a network that stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from sdsedit.errors import InputRefused
from sdsedit.guidance import CSD, VSD
from sdsedit.guidance.base import State, Step
from sdsedit.guidance.vsd import LoRA
from sdsedit.prior.mmdit import MMDiTPrior
from tests import tiny_mmdit
from tests.guidance.gaussian import draws, prompts


def latent(prior, rows=1, seed=0):
    cells = prior.native // prior.factor
    return torch.randn(rows, prior.channels, cells, cells, generator=torch.Generator().manual_seed(seed))


def a_step(prior, method, z=None, index=0, seed=0, mask=None, draw=None):
    z = latent(prior) if z is None else z
    return Step(index, 8, z, z, prompts(prior, "a cat", "a dog"), draw or draws(prior, z, method, seed), mask)


def run(prior, method, steps=3, z=None):
    z = latent(prior) if z is None else z
    draw, state, errors = draws(prior, z, method), None, []
    for index in range(steps):
        with torch.inference_mode():
            update = method(prior, a_step(prior, method, z, index, draw=draw), state)
        z, state = z - update.step.clone(), update.state
        errors.append(update.stats["lora_error"].item())
    return z, state, errors


def test_while_the_lora_is_the_network_it_is_csd(any_prior):
    z = latent(any_prior, 2)
    method = VSD(scale=7.5, step_size=1.0)
    ours = method(any_prior, a_step(any_prior, method, z))
    theirs = CSD(weight=6.5, step_size=1.0)
    assert torch.allclose(ours.step, theirs(any_prior, a_step(any_prior, theirs, z)).step, atol=2e-5)
    nothing = replace(method, scale=1.0)
    assert nothing(any_prior, a_step(any_prior, nothing, z)).step.abs().max() < 1e-5


def test_a_lora_that_may_not_learn_stays_the_network(sd15_prior):
    method = VSD(scale=1.0, rate=0.0, step_size=1.0)
    z, state, _ = run(sd15_prior, method)
    assert (z - latent(sd15_prior)).abs().max() < 1e-4 and state is not None
    assert not any(up.any() for _, up in state.learned.parameters.values())


def test_the_lora_learns_what_noise_is_in_the_latent(sd15_prior):
    learned, frozen = (run(sd15_prior, VSD(rate=rate, step_size=0.0), 16)[2] for rate in (0.05, 0.0))
    assert learned[0] == frozen[0] and sum(learned[-6:]) < 0.95 * sum(frozen[-6:])  # the same draws in both


def test_the_network_is_never_touched(builtin_prior):
    before = {name: weight.clone() for name, weight in builtin_prior.unet.state_dict().items()}
    encoded = prompts(builtin_prior, "a cat")
    z, t = latent(builtin_prior), torch.tensor([0.5])
    said = builtin_prior.predict(z, t, encoded.target).eps
    run(builtin_prior, VSD(rate=0.1))
    assert all(torch.equal(weight, before[name]) for name, weight in builtin_prior.unet.state_dict().items())
    assert not any(weight.requires_grad or weight.grad is not None for weight in builtin_prior.unet.parameters())
    assert not any(module._forward_hooks for module in builtin_prior.unet.modules())
    assert torch.equal(builtin_prior.predict(z, t, encoded.target).eps, said)


def test_hooks_go_also_after_an_error(builtin_prior):
    lora = LoRA(2, 0.1)
    with pytest.raises(KeyError), lora.on(slice(0, 1)).attach(builtin_prior.unet, 2, (8, 8)):
        raise KeyError
    assert not any(module._forward_hooks for module in builtin_prior.unet.modules())


def test_additions_are_low_rank_and_of_the_named_rows_only():
    layer = nn.ModuleDict({"to_q": nn.Linear(6, 5), "other": nn.Linear(6, 5)})
    lora, x = LoRA(2, 0.1), torch.randn(3, 4, 6)
    with lora.on(slice(1, 2)).attach(layer, 3, (1, 1)):
        assert torch.equal(layer["to_q"](x), nn.functional.linear(x, layer["to_q"].weight, layer["to_q"].bias))
    assert set(lora.parameters) == {"to_q"}
    down, up = lora.parameters["to_q"]
    with torch.no_grad():
        up.normal_()
    plain = layer["to_q"](x)
    with lora.on(slice(1, 2)).attach(layer, 3, (1, 1)):
        changed = layer["to_q"](x)
    assert torch.equal(changed[0], plain[0]) and torch.equal(changed[2], plain[2])
    assert torch.allclose(changed[1] - plain[1], x[1] @ (up @ down).T, atol=1e-5)
    assert torch.linalg.matrix_rank(up @ down) == 2


def test_a_transformer_takes_additions_too(tmp_path):
    prior = MMDiTPrior.from_pipeline(tiny_mmdit.flux_schnell(tmp_path), "flux")
    method, z = VSD(rate=0.05), torch.randn(1, prior.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    first = method(prior, a_step(prior, method, z))
    assert first.step.isfinite().all() and first.state is not None
    assert any(up.any() for _, up in first.state.learned.parameters.values())  # learned through all its blocks


def test_a_model_without_attention_is_refused_in_a_sentence():
    with pytest.raises(InputRefused, match="no attention that VSD could add to: use CSD"):
        LoRA(2, 0.1).layers(nn.Sequential(nn.Conv2d(3, 3, 1)))


def test_a_seed_fixes_the_run_and_a_mask_holds_the_outside(sd15_prior):
    (a, *_), (b, *_) = run(sd15_prior, VSD()), run(sd15_prior, VSD())
    assert torch.equal(a, b)
    z, mask = latent(sd15_prior), torch.zeros(1, 1, *latent(sd15_prior).shape[-2:])
    mask[..., :4, :4] = 1
    update = VSD()(sd15_prior, a_step(sd15_prior, VSD(), z, mask=mask))
    assert update.step[..., :4, :4].all() and not update.step[..., 4:, :].any()
    assert update.state is not None and update.state.mask is None and State().learned is None
