"""prior.running: attention, compiling and layer offload are one model's own, and change no number that matters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from sdsedit.attention.probe import AttentionProbe, SeveralProbes
from sdsedit.errors import InputRefused
from sdsedit.prior import UNetPrior
from sdsedit.prior.mmdit import MMDiTPrior
from sdsedit.prior.running import check_attention, compile_blocks, offload_layers, set_attention
from tests import tiny, tiny_mmdit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """make("sd3") is a fresh prior."""

    def build(family):
        with torch.inference_mode(False):
            if family in tiny.FAMILIES:
                return UNetPrior.from_pipeline(tiny.FAMILIES[family](tmp_path_factory.mktemp(family)))
            return MMDiTPrior.from_pipeline(tiny_mmdit.FAMILIES[family](tmp_path_factory.mktemp(family)))

    return build


def network(prior):
    return prior.unet if isinstance(prior, UNetPrior) else prior.transformer


@torch.inference_mode()
def said(prior, t=0.5):
    z_t = torch.randn(2, prior.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    text = prior.encode_text(["a cat", "a"])
    probe = SeveralProbes([AttentionProbe((1, 2), slice(0, 1)), AttentionProbe((1,), slice(1, 2))])
    found = prior.predict(z_t, torch.tensor([t]), text, probe)
    return found.eps, found.maps[0].refined


FAMILIES = ["sd15", "sd3", "flux_dev"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["math", "flash"])
def test_attention_is_one_models_own(family, name, make, monkeypatch):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    plain, other = make(family), make(family)
    active = _AttentionBackendRegistry.get_active_backend()[0]
    set_attention(network(other), name)
    for a, b in zip(said(plain), said(other), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert _AttentionBackendRegistry.get_active_backend()[0] == active
    assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()

    allowed = []  # whether torch may choose math, in every call of a network

    def listening(*args, **options):
        allowed.append((torch.backends.cuda.math_sdp_enabled(), torch.backends.cuda.flash_sdp_enabled()))
        return scaled_dot_product_attention(*args, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", listening)
    said(plain)
    assert set(allowed) == {(True, True)}
    allowed.clear()
    said(other)
    assert (name == "math", name == "flash") in allowed
    set_attention(network(other), "sdpa")
    allowed.clear()
    said(other)
    assert set(allowed) == {(True, True)}


def test_what_this_machine_lacks_is_refused(make):
    for name in ("math", "flash", "sdpa"):
        check_attention(name, CPU, torch.float32)
    with pytest.raises(InputRefused, match="cudnn attention does not run on cpu in float32; sdpa does"):
        check_attention("cudnn", CPU, torch.float32)
    with pytest.raises(InputRefused, match="sdpa, flash, efficient, cudnn, math, xformers; got sage"):
        check_attention("sage", CPU, torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only says so without a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_xformers_without_a_gpu_is_refused(family, make):
    with pytest.raises(InputRefused, match="xformers attention needs"):
        set_attention(network(make(family)), "xformers")


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_blocks_follow_the_probe_without_compiling_again(family, make):
    from torch._dynamo import reset
    from torch._dynamo.utils import counters

    prior = make(family)
    expected = [said(prior, t) for t in (0.2, 0.5, 0.9)]
    reset()
    counters.clear()
    compile_blocks(network(prior), backend="eager")  # what is compiled, without the wait for a C++ compiler
    found = [said(prior, 0.2)]
    first = counters["stats"]["unique_graphs"]
    found += [said(prior, t) for t in (0.5, 0.9)]
    assert first > 0 and counters["stats"]["unique_graphs"] == first and not counters["graph_break"]
    for a, b in zip(expected, found, strict=True):
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)
    reset()


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_offload_changes_nothing(family, make):
    prior = make(family)
    expected = said(prior)
    offload_layers(network(prior), CPU)
    for a, b in zip(expected, said(prior), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_layer_offload_keeps_the_weights_in_main_memory(make):
    prior = make("flux_dev")
    expected = said(prior)[0]
    moved = copy.deepcopy(prior)
    moved.device = torch.device("cuda")
    for part in (*moved.text_encoders, moved.transformer, moved.vae):
        offload_layers(part, moved.device)
    z_t = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0)).cuda()
    with torch.inference_mode():
        eps = moved.predict(z_t, torch.tensor([0.5], device="cuda"), moved.encode_text(["a cat", "a"])).eps
    assert {weight.device.type for weight in moved.transformer.parameters()} == {"cpu"}
    torch.testing.assert_close(eps.cpu(), expected, atol=1e-3, rtol=1e-3)
