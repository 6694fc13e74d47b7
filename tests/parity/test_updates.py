"""One update of LUSD, DDS and SDS equals an independent, plain transcription, to 1e-4 in float32.

The layout of Stable Diffusion 1.5 with an eighth of its channels runs always. The true configuration (860 million
parameters, 3.4 GB) runs where SDSEDIT_TRUE_SIZES is set, at 32 x 32 latents, or at the side that it names:

    SDSEDIT_TRUE_SIZES=64 python -m pytest tests/parity -q
"""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks.backbones import blank_text, build, config
from sdsedit.guidance import DDS, LUSD, SDS
from sdsedit.guidance.base import Prompts, State, Step
from sdsedit.schedule import Draw
from tests.parity import transcription

TRUE = os.environ.get("SDSEDIT_TRUE_SIZES", "")
TOKENS = (2, 5)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def sharpened(prior):
    """Random attention is almost even and would place nothing; three times the queries and keys make it choose."""
    for name, weight in prior.unet.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight")):
            weight.mul_(3)
    return prior


@pytest.fixture(scope="module", params=["an eighth as wide", "true"])
def case(request):
    """(prior, side of the latent) of Stable Diffusion 1.5 with fixed random weights."""
    torch.manual_seed(0)
    if request.param == "true":
        if not TRUE:
            pytest.skip("the true sizes of Stable Diffusion 1.5 take 6 GB; set SDSEDIT_TRUE_SIZES=32 (or 64) to run")
        with torch.inference_mode(False):
            return sharpened(build("sd15", "cpu", text=False)), int(TRUE) if int(TRUE) > 8 else 32
    own = config("sd15")
    network = {**own["network"], "block_out_channels": [40, 80, 160, 160], "norm_num_groups": 8}
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode(False):
        patch.setattr("benchmarks.backbones.config", lambda name: {**own, "network": network})
        return sharpened(build("sd15", "cpu", text=False)), 32


@pytest.fixture(scope="module")
def given(case):
    """Latents, texts and draws."""
    prior, side = case
    generator = torch.Generator().manual_seed(1)

    def normal():
        return torch.randn(1, 4, side, side, generator=generator)

    texts = [blank_text(prior, 1, seed=seed) for seed in (10, 11, 12)]
    draws = [(t, normal()) for t in (310, 700, 520)]
    return normal(), normal(), texts, draws


def step(given, index=0, total=300, tokens=()):
    z, z_src, (target, source, empty), draws = given
    waiting = iter(draws)

    def draw():
        t, eps = next(waiting)
        return Draw(torch.tensor([t / 1000]), eps)

    return Step(index, total, z, z_src, Prompts(target, source, empty, empty, tokens), draw)


@torch.inference_mode()
def test_sds(case, given):
    z, _, (target, _, empty), ((t, eps), *_) = given
    expected = transcription.sds(case[0].unet, z, t, eps, target.embeds, empty.embeds)
    assert relative(SDS()(case[0], step(given)).step, expected) < 1e-4


@torch.inference_mode()
def test_dds(case, given):
    z, z_src, (target, source, empty), ((t, eps), *_) = given
    texts = (target.embeds, source.embeds, empty.embeds)
    expected = transcription.dds(case[0].unet, z, z_src, t, eps, *texts)
    assert relative(DDS()(case[0], step(given)).step, expected) < 1e-4


@torch.inference_mode()
def test_lusd_at_its_first_step_and_in_the_middle_of_its_run(case, given):
    z, z_src, (target, source, _), draws = given
    prior = case[0]
    state, average = None, None
    for index in (0, 150):
        expected, average, rejected = transcription.lusd(
            prior.unet,
            z,
            z_src,
            draws[index // 150 :],
            target.embeds,
            source.embeds,
            list(TOKENS),
            index / 299,
            average,
        )
        now = step((z, z_src, given[2], draws[index // 150 :]), index, tokens=TOKENS)
        update = LUSD()(prior, now, state)
        state = update.state
        assert isinstance(state, State) and float(update.stats["rejected"]) == rejected
        assert relative(update.step, expected) < 1e-4
        assert relative(state.mask, average) < 1e-4
        assert float(average.std()) > 0.05, "a flat map would compare nothing"
