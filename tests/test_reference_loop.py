"""What the speed is measured against is LUSD: two steps of benchmarks.reference_loop are two of this project's."""

from __future__ import annotations

import torch

from benchmarks import reference_loop
from sdsedit.guidance import LUSD
from sdsedit.guidance.base import Prompts, State, Step
from sdsedit.prior import UNetPrior
from sdsedit.schedule import Draw


@torch.inference_mode()
def test_the_reference_loop_is_lusd(builtin_prior: UNetPrior):
    prior, tokens = builtin_prior, [2, 5]
    z_src = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(9))
    target, source = prior.encode_text(["a cat wearing a crown"]), prior.encode_text(["a cat"])
    abar = prior.schedule.alphas_cumprod
    assert abar is not None
    own = dict(prior.unet.attn_processors)
    with torch.inference_mode(False):
        clones = [each.clone() for each in (z_src, target.embeds, source.embeds)]
        expected, seconds, rejected = reference_loop.lusd(
            prior.unet, abar, *clones, tokens, steps=2, total=2, seed=4, predicts_v=True
        )
    assert len(seconds) == 2
    assert all(prior.unet.attn_processors[name] is processor for name, processor in own.items())

    generator = torch.Generator().manual_seed(4)

    def draw() -> Draw:
        t = torch.randint(50, 949, (1,), generator=generator)
        return Draw(t / 1000, torch.randn(z_src.shape, generator=generator))

    z, state = z_src, State()
    method, redrawn = LUSD(std_floor=0.0), 0.0
    for index in range(2):
        prompts = Prompts(target, source, source, source, tuple(tokens))
        update = method(prior, Step(index, 2, z, z_src, prompts, draw), state)
        z, state = z - update.step, update.state
        redrawn += float(update.stats["rejected"])
    assert redrawn == rejected
    moved = (z - z_src).square().mean().sqrt()
    assert (z - expected).square().mean().sqrt() < 1e-3 * moved
