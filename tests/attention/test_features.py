"""The decoder's self-attention outputs: all of them, on their own grids, with autograd, and nothing left behind."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sdsedit.attention.features import DecoderFeatures, _grid
from sdsedit.errors import InputRefused


def test_every_layer_of_the_decoder_is_recorded_on_its_grid(any_prior):
    layers = [name for name, _ in any_prior.unet.named_modules() if name.startswith("up_") and name.endswith("attn1")]
    cells = any_prior.multiple // any_prior.factor
    z = torch.randn(2, any_prior.channels, cells, 2 * cells, requires_grad=True)
    t, text = torch.tensor([0.5]), any_prior.encode_text(["a cat", "a dog"])
    plain = any_prior.predict(z, t, text)
    heard = any_prior.predict(z, t, text, DecoderFeatures(slice(1, 2)))
    assert torch.equal(plain.eps, heard.eps)
    assert len(heard.maps) == len(layers) > 0
    for each in heard.maps:
        assert each.shape[0] == 1 and each.shape[3] == 2 * each.shape[2]
    (slope,) = torch.autograd.grad(heard.maps[-1].square().sum(), z)
    assert slope[1].any() and not slope[0].any()
    assert not any(module._forward_hooks for module in any_prior.unet.modules())


def test_what_is_recorded_is_the_layers_own_output():
    class Layer(nn.Module):
        def forward(self, x):
            return 2 * x

    network = nn.Module()
    network.up_blocks = nn.ModuleList([nn.ModuleDict({"attn1": Layer()})])
    probe, x = DecoderFeatures(), torch.randn(1, 6, 4)
    with probe.attach(network, 1, (2, 3)):
        network.up_blocks[0]["attn1"](x)
    (seen,) = probe.collect()
    assert torch.equal(seen, 2 * x.transpose(1, 2).reshape(1, 4, 2, 3)) and probe.collect() == ()


def test_grids_are_halvings_rounded_up():
    assert _grid(15, (3, 5)) == (3, 5) and _grid(6, (3, 5)) == (2, 3) and _grid(1, (64, 64)) == (1, 1)
    with pytest.raises(ValueError, match="no halving"):
        _grid(7, (3, 5))


def test_another_kind_of_network_is_refused():
    with (
        pytest.raises(InputRefused, match="decoder of a UNet"),
        DecoderFeatures().attach(SimpleNamespace(named_modules=dict), 1, (2, 2)),
    ):
        pass
