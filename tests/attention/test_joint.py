"""joint: the attention that words get in a joint transformer, against explicit softmax matrices in float64.

The reference listens in on the queries and keys that the network's own processors hand to the fused attention, and
builds every matrix.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch.utils._python_dispatch import TorchDispatchMode

from sdsedit.attention.joint import is_joint, joint_blocks, joint_layers, word_share
from sdsedit.attention.localize import localize
from sdsedit.attention.probe import AttentionProbe, SeveralProbes
from tests.tiny_mmdit import _sharpen

LENGTH = 9  # text tokens


def sd3(dual=(), qk_norm=None, layers=4):
    return SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_layers=layers, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=6,
        pos_embed_max_size=24, dual_attention_layers=dual, qk_norm=qk_norm,
    )  # fmt: skip


def flux():
    return FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=4, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=6, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip


NETWORKS = {
    "sd3": sd3,
    "sd35_large": lambda: sd3(qk_norm="rms_norm"),
    "sd35_medium": lambda: sd3((0, 1, 2), "rms_norm"),
    "flux": flux,
}


@pytest.fixture(scope="module")
def networks():
    built = {}
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        with torch.inference_mode(False):
            built[name] = build()
            _sharpen(built[name])
            for part, weight in built[name].named_parameters():
                if ".norm_" in part or "norm_added" in part:  # norms that do something
                    torch.nn.init.uniform_(weight, 0.5, 2.0)
        built[name].eval().requires_grad_(False)
    return built


@pytest.fixture(params=NETWORKS)
def network(request, networks):
    return networks[request.param]


def inputs(network, batch=2, size=(8, 12), dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    given = {
        "encoder_hidden_states": normal(batch, LENGTH, 12),
        "pooled_projections": normal(batch, 6),
        "timestep": torch.full((batch,), 0.4 if hasattr(network, "x_embedder") else 400.0),
    }
    if not hasattr(network, "x_embedder"):
        return {**given, "hidden_states": normal(batch, 4, *size)}
    rows, columns = torch.meshgrid(torch.arange(size[0] // 2), torch.arange(size[1] // 2), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
    packed = normal(batch, len(places), 16)
    return {**given, "hidden_states": packed, "img_ids": places.float(), "txt_ids": torch.zeros(LENGTH, 3)}


@torch.no_grad()
def record(probe, network, given, size=(8, 12)):
    with probe.attach(network, len(given["hidden_states"]), size):
        output = network(**given).sample
    return output, probe.collect()


@torch.no_grad()
def own_attention(network, given, cells):
    """(scores [B, heads, N, text tokens + N]) of the picture's queries in every joint block: text first, float64."""
    scores, fused = [], F.scaled_dot_product_attention
    picture_first = not hasattr(network, "x_embedder")

    def listening(query, key, value, *more, **options):
        q, k = query, key
        if k.shape[2] == cells + LENGTH:
            text, picture = (
                (slice(cells, None), slice(0, cells)) if picture_first else (slice(0, LENGTH), slice(LENGTH, None))
            )
            keys = torch.cat([k[:, :, text], k[:, :, picture]], 2).double()
            scores.append(q[:, :, picture].double() @ keys.transpose(-1, -2) / q.shape[-1] ** 0.5)
        return fused(query, key, value, *more, **options)

    F.scaled_dot_product_attention = listening
    try:
        network(**given)
    finally:
        F.scaled_dot_product_attention = fused
    return [scores[i] for i in joint_blocks(len(network.transformer_blocks))]


def expected(scores, tokens, rows, grid):
    """(cross, refined) from matrices."""
    cross = torch.stack([s[rows].softmax(-1)[..., list(tokens)].mean(1) for s in scores]).mean(0)  # [R, N, K]
    spread = torch.stack([s[rows][..., LENGTH:].softmax(-1).mean(1) for s in scores]).mean(0)  # [R, N, N]
    maps = (each.transpose(1, 2).unflatten(-1, grid) for each in (cross, spread @ cross))
    return tuple(maps)


# The maps are the network's own attention


@pytest.mark.parametrize(("rows", "size"), [(slice(None), (8, 12)), (slice(1, 2), (12, 6)), (slice(0, 3, 2), (4, 4))])
def test_maps_are_the_softmax_mass(network, rows, size):
    given = inputs(network, 3, size)
    grid = (size[0] // 2, size[1] // 2)
    scores = own_attention(network, given, grid[0] * grid[1])
    cross, refined = expected(scores, (2, 5, 7), rows, grid)
    _, maps = record(AttentionProbe((2, 5, 7), rows), network, given, size)
    assert maps.cross.dtype == maps.refined.dtype == torch.float32
    torch.testing.assert_close(maps.cross.double(), cross, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(maps.refined.double(), refined, atol=1e-6, rtol=1e-5)
    assert cross.amax() > 1.5 * cross.amin(), "the test would not see a mistake in even attention"


def test_picture_attention_is_the_joint_one_without_the_text(networks):
    given = inputs(networks["sd3"], 1)
    whole = own_attention(networks["sd3"], given, 24)[0].softmax(-1)[..., LENGTH:]
    alone = own_attention(networks["sd3"], given, 24)[0][..., LENGTH:].softmax(-1)
    torch.testing.assert_close(alone, whole / whole.sum(-1, keepdim=True))


def test_words_share_what_the_picture_leaves(networks):
    q, k = torch.randn(1, 2, 6, 8), torch.randn(1, 2, LENGTH + 6, 8)
    everything = word_share(q, k, range(LENGTH + 6))
    torch.testing.assert_close(everything.sum(1), torch.ones(1, 6))
    assert word_share(q, k, range(LENGTH)).sum(1).max() < 1


def test_more_words_than_a_head_is_wide():
    q, k = (torch.randn(2, 3, n, 4, generator=torch.Generator().manual_seed(n)) for n in (5, 40))
    expected = (q.double() @ k.double().transpose(-1, -2) / 2).softmax(-1)[..., [1, 3, 4, 5, 9, 30]].mean(1)
    found = word_share(q, k, [1, 3, 4, 5, 9, 30])
    torch.testing.assert_close(found.double(), expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sd35_medium", "flux"])
def test_half_precision_networks(name, dtype, networks):
    import copy

    network = copy.deepcopy(networks[name]).to(dtype)
    given = inputs(network, 2, dtype=dtype)
    cross, refined = expected(own_attention(network, given, 24), (3,), slice(1, 2), (4, 6))
    _, maps = record(AttentionProbe((3,), slice(1, 2)), network, given)
    contrast = float(cross.max() - cross.min())
    torch.testing.assert_close(maps.cross.double(), cross, atol=0.03 * contrast, rtol=0)
    torch.testing.assert_close(maps.refined.double(), refined, atol=0.05 * contrast, rtol=0)


# Recording changes nothing


def test_recording_changes_no_output_and_processors_come_back(network):
    given, before = inputs(network), dict(network.attn_processors)
    with torch.no_grad():
        plain = network(**given).sample
    output, maps = record(AttentionProbe((1, 4)), network, given)
    assert torch.equal(output, plain)
    assert maps.cross.shape == maps.refined.shape == (2, 2, 4, 6)
    assert all(network.attn_processors[name] is own for name, own in before.items())


def test_processors_come_back_after_an_exception(network):
    before = dict(network.attn_processors)
    for size in ((8, 12), (8, 8)):  # raised by the caller; raised inside the forward pass
        with pytest.raises((ZeroDivisionError, ValueError)), AttentionProbe((1,)).attach(network, 2, size):
            network(**inputs(network))
            raise ZeroDivisionError
        assert all(network.attn_processors[name] is own for name, own in before.items())


def test_several_probes_listen_as_each_would_alone(network):
    given = inputs(network)

    def probes():
        return [AttentionProbe((1, 2), slice(0, 1)), AttentionProbe((5,), slice(1, 2), self_levels=())]

    alone = [record(probe, network, given)[1] for probe in probes()]
    both = SeveralProbes(probes())
    with torch.no_grad(), both.attach(network, 2, (8, 12)):
        network(**given)
    for one, other in zip(alone, both.collect(), strict=True):
        assert torch.equal(one.cross, other.cross)
        assert (one.refined is None) == (other.refined is None)
    assert alone[1].refined is None and torch.equal(alone[0].refined, record(probes()[0], network, given)[1].refined)


def test_another_attention_backend_gives_the_same_maps(networks):
    # FLUX.1 asks diffusers' dispatcher, by the processor's own setting; the probe leaves that setting alone.
    network, probe = networks["flux"], AttentionProbe((1, 4))
    given = inputs(network)
    _, first = record(probe, network, given)
    for module in network.modules():
        if hasattr(module, "set_attention_backend") and module is not network:
            module.set_attention_backend("_native_math")
    output, second = record(probe, network, given)
    for block in (*network.transformer_blocks, *network.single_transformer_blocks):
        assert str(block.attn.processor._attention_backend.value) == "_native_math"
        block.attn.processor._attention_backend = None
    torch.testing.assert_close(first.cross, second.cross)
    torch.testing.assert_close(network(**given).sample, output, atol=1e-5, rtol=1e-4)


def test_maps_make_a_mask(network):
    _, maps = record(AttentionProbe((3,), slice(0, 1)), network, inputs(network))
    mask = localize(maps, (8, 12))
    assert mask.shape == (1, 1, 8, 12) and mask.min() == 0 and mask.max() == 1


def test_autograd_through_the_network_stays_whole(network):
    given = inputs(network, 1)
    given["hidden_states"].requires_grad_()
    probe = AttentionProbe((1,))
    with probe.attach(network, 1, (8, 12)):
        output = network(**given).sample
    maps = probe.collect()
    assert output.requires_grad and not maps.cross.requires_grad and not maps.refined.requires_grad
    output.sum().backward()
    assert torch.isfinite(given["hidden_states"].grad).all()


# Memory and the choice of layers


class LargestOutput(TorchDispatchMode):
    """Notes the most elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        every = output if isinstance(output, (tuple, list)) else [output]
        self.elements = max([self.elements, *(t.numel() for t in every if isinstance(t, torch.Tensor))])
        return output


def test_no_matrix_of_all_tokens_is_built():
    torch.manual_seed(0)
    q, k = torch.randn(1, 2, 1024, 16), torch.randn(1, 2, LENGTH + 1024, 16)
    with LargestOutput() as largest:
        word_share(q, k, (1, 2))
    assert 0 < largest.elements < 1024 * 1024 / 10


@pytest.mark.parametrize(
    ("count", "chosen"),
    [
        (19, [9, 11, 14, 16]),  # FLUX.1
        (24, [12, 15, 17, 20]),  # SD3 and SD3.5 medium
        (38, [19, 24, 28, 33]),  # SD3.5 large
        (4, [2]),
        (1, [0]),
    ],
)
def test_four_late_blocks_are_recorded(count, chosen):
    assert joint_blocks(count) == chosen


def test_only_joint_attention_is_recorded(networks):
    network = networks["sd35_medium"]  # its block 2 has a second, picture-only attention
    assert is_joint(network) and joint_layers(network) == [network.transformer_blocks[2].attn]
    with AttentionProbe((1,)).attach(network, 2, (8, 12)):
        changed = [name for name, each in network.attn_processors.items() if type(each).__name__ == "JointListener"]
    assert changed == ["transformer_blocks.2.attn.processor"]


# Refusals


def test_bad_use(network):
    with (
        pytest.raises(ValueError, match="records no row"),
        AttentionProbe((1,), slice(2, 3)).attach(network, 2, (8, 12)),
    ):
        pass
    with pytest.raises(ValueError, match="positions 0 to 8"):
        record(AttentionProbe((9,)), network, inputs(network))
    with pytest.raises(ValueError, match="batch of 4"), AttentionProbe((1,)).attach(network, 4, (8, 12)):
        network(**inputs(network))
    with pytest.raises(RuntimeError, match="Nothing was recorded"):
        AttentionProbe((1,)).collect()
