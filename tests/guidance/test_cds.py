"""CDS: DDS at its edge; PatchNCE beside a plain transcription; its slope beside finite differences."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sdsedit.errors import InputRefused
from sdsedit.guidance import CDS, DDS
from sdsedit.guidance.base import Step
from sdsedit.guidance.cds import patch_nce
from sdsedit.prior.mmdit import MMDiTPrior
from tests import tiny_mmdit
from tests.guidance.gaussian import draws, prompts


def latent(prior, rows=1, seed=0):
    cells = prior.native // prior.factor
    return torch.randn(rows, prior.channels, cells, cells, generator=torch.Generator().manual_seed(seed))


def a_step(prior, method, z, z_src=None, mask=None):
    encoded = prompts(prior, "a cat", "a dog")
    return Step(0, 4, z, z if z_src is None else z_src, encoded, draws(prior, z, method), mask)


def random_features(seed, *sizes, rows=2):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 6, *size, generator=generator, dtype=torch.float64) for size in sizes]


def transcription(reference, features, lot, patches, temperature):
    """Patch by patch, as the definition reads."""
    total = 0.0
    for ref, new in zip(reference, features, strict=True):
        for side in (1, 2):
            height, width = new.shape[-2] // side, new.shape[-1] // side
            if not height or not width:
                continue
            chosen = sorted(range(height * width), key=lambda i: lot[i].item())[:patches]
            for b in range(new.shape[0]):

                def patch(x, i, b=b, side=side, width=width):
                    y, x0 = i // width * side, i % width * side
                    mean = x[b, :, y : y + side, x0 : x0 + side].mean((1, 2))
                    return mean / mean.norm()

                for i in chosen:
                    scores = [(patch(ref, i) @ patch(new, j) / temperature).exp() for j in chosen]
                    own = (patch(ref, i) @ patch(new, i) / temperature).exp()
                    total = total - (own / sum(scores)).log() / len(chosen)
    return total


def test_patch_nce_is_its_definition_with_its_gradient():
    sizes = [(4, 6), (2, 3), (1, 1)]
    reference, features = random_features(0, *sizes), random_features(1, *sizes)
    lot = torch.rand(24, generator=torch.Generator().manual_seed(2))
    ours = [each.clone().requires_grad_() for each in features]
    theirs = [each.clone().requires_grad_() for each in features]
    loss = patch_nce(reference, ours, lot, 7, 0.3)
    expected = transcription(reference, theirs, lot, 7, 0.3)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(loss, ours), torch.autograd.grad(expected, theirs), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_patch_nce_knows_the_least_and_the_most():
    """Orthogonal features in their own places: each is told from P - 1 others at once. All alike: a guess, log P."""
    own = torch.eye(16).reshape(1, 16, 4, 4)
    lot = torch.rand(16)
    least = patch_nce([own], [own], lot, 16, 0.07)
    assert least.item() == pytest.approx(16 * 0 + 0, abs=1e-4)
    alike = torch.ones(1, 16, 4, 4)
    assert patch_nce([alike], [alike], lot, 16, 0.07).item() == pytest.approx(math.log(16) + math.log(4), rel=1e-5)


def test_without_contrast_it_is_dds(any_prior):
    z, z_src = latent(any_prior, 2), latent(any_prior, 2, 1)
    method, dds = CDS(contrast=0.0, step_size=1.0), DDS(step_size=1.0)
    ours = method(any_prior, a_step(any_prior, method, z, z_src)).step
    assert torch.allclose(ours, dds(any_prior, a_step(any_prior, dds, z, z_src)).step, atol=2e-5)


def test_the_contrast_term_is_the_slope_of_the_loss(sd15_prior):
    """Differences of the reported loss along some directions, against the part of the step that contrast adds."""
    z, z_src = latent(sd15_prior), latent(sd15_prior, 1, 1)
    method = CDS(step_size=1.0, patches=64)
    area = z.shape[-2] * z.shape[-1]
    with_it = method(sd15_prior, a_step(sd15_prior, method, z, z_src)).step
    without = replace(method, contrast=0.0)
    slope = (with_it - without(sd15_prior, a_step(sd15_prior, without, z, z_src)).step) * 2000 / (3.0 * area)

    def loss(at):
        step = replace(a_step(sd15_prior, method, z, z_src), z=at)  # the draws stay those of z
        return method(sd15_prior, step).stats["contrast"].item()

    # Down its own slope the loss changes most, so that rounding matters least.
    way = slope / slope.norm()
    difference = (loss(z + 0.05 * way) - loss(z - 0.05 * way)) / 0.1
    assert difference == pytest.approx((slope * way).sum().item(), rel=0.05)
    assert slope.norm() > 0


def test_it_holds_the_structure_that_dds_lets_go(sd15_prior):
    """Where both begin far from the source, steps of CDS make the features more like it than steps of DDS."""
    z_src = latent(sd15_prior, 1, 1)
    losses = {}
    for contrast in (0.0, 300.0):
        method, z = CDS(contrast=contrast, step_size=0.02), latent(sd15_prior)
        draw = draws(sd15_prior, z, method)
        for index in range(6):
            step = replace(a_step(sd15_prior, method, z, z_src), index=index, draw=draw)
            update = method(sd15_prior, step)
            z = z - update.step
        losses[contrast] = method(sd15_prior, a_step(sd15_prior, method, z, z_src)).stats["contrast"].item()
    assert losses[300.0] < losses[0.0]


def test_it_runs_under_inference_mode_leaves_the_network_and_keeps_to_a_mask(any_prior):
    z = latent(any_prior, 2)
    mask = torch.zeros(1, 1, *z.shape[-2:])
    mask[..., :4, :4] = 1
    method = CDS()
    with torch.inference_mode():
        first = method(any_prior, a_step(any_prior, method, z, mask=mask))
        again = method(any_prior, a_step(any_prior, method, z, mask=mask))
    assert torch.equal(first.step, again.step) and first.step.isfinite().all() and not first.step.requires_grad
    assert first.step[..., :4, :4].any() and not first.step[..., 4:, :].any()
    assert not any(weight.grad is not None for weight in any_prior.unet.parameters())
    assert not any(module._forward_hooks for module in any_prior.unet.modules())


def test_a_model_without_a_decoder_is_refused_in_a_sentence(tmp_path):
    prior = MMDiTPrior.from_pipeline(tiny_mmdit.flux_schnell(tmp_path), "flux")
    with pytest.raises(InputRefused, match="CDS reads the decoder of a UNet"):
        CDS()(prior, a_step(prior, CDS(), torch.randn(1, prior.channels, 8, 8)))


def test_features_of_a_batch_do_not_know_each_other():
    one, two = random_features(0, (4, 4)), random_features(1, (4, 4))
    lot = torch.rand(16)
    rows = [patch_nce([one[0][b : b + 1]], [two[0][b : b + 1]], lot, 9, 0.07) for b in range(2)]
    assert patch_nce(one, two, lot, 9, 0.07).item() == pytest.approx(sum(rows).item(), rel=1e-5)
    assert F.normalize(one[0], dim=1).shape == one[0].shape
