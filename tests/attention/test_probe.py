"""probe: recording changes no output, and the maps are the network's own attention, computed here in float64.

The reference listens in on the queries and keys that the network's own attention processors hand to
scaled_dot_product_attention, and builds every N x N matrix.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch.utils._python_dispatch import TorchDispatchMode

from sdsedit.attention.probe import AttentionMaps, AttentionProbe, SeveralProbes, _spread

TEXT_LENGTH, TEXT_WIDTH = 7, 12


def build(down, mid="UNetMidBlock2DCrossAttn", up=None, **config) -> UNet2DConditionModel:
    torch.manual_seed(0)
    up = up or tuple(kind.replace("Down", "Up") for kind in reversed(down))
    unet = UNet2DConditionModel(
        sample_size=config.pop("sample_size", 16),
        in_channels=4,
        out_channels=4,
        block_out_channels=tuple([16, 32, 32, 32][: len(down)]),
        down_block_types=down,
        mid_block_type=mid,
        up_block_types=up,
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=config.pop("attention_head_dim", 2),
        **config,
    )
    for module in unet.modules():  # the initial attention is almost uniform, which would hide mistakes
        if isinstance(module, Attention):
            torch.nn.init.normal_(module.to_q.weight, std=0.6)
            torch.nn.init.normal_(module.to_k.weight, std=0.6)
    return unet.eval().requires_grad_(False)


# Attention at levels 1, 1/2 and, in the middle block, 1/4.
SD = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")


@pytest.fixture(scope="module")
def unet():
    return build(SD)


def inputs(batch=2, size=(16, 16), length=TEXT_LENGTH):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 4, *size, generator=generator)
    text = torch.randn(batch, length, TEXT_WIDTH, generator=generator)
    return {"sample": z, "timestep": torch.tensor(500), "encoder_hidden_states": text}


@torch.no_grad()
def record(probe, network, given):
    z = given["sample"]
    with probe.attach(network, z.shape[0], tuple(z.shape[-2:])):
        output = network(**given).sample
    return output, probe.collect()


@torch.no_grad()
def own_attention(network, given):
    """(is cross-attention, softmax [B, heads, N, keys] float64) of every attention layer, in the order of the calls."""
    matrices, fused = [], F.scaled_dot_product_attention

    def listening(q, k, v, attn_mask=None, **options):
        scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
        matrices.append((scores if attn_mask is None else scores + attn_mask.double()).softmax(-1))
        return fused(q, k, v, attn_mask=attn_mask, **options)

    F.scaled_dot_product_attention = listening
    try:
        network(**given)
    finally:
        F.scaled_dot_product_attention = fused
    length = given["encoder_hidden_states"].shape[1]
    return [(matrix.shape[-1] == length, matrix) for matrix in matrices]


def resize(maps, size):
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


def expected_cross(layers, tokens, rows, grid):
    cells = grid[0] * grid[1]
    # [R, N, K] a layer
    chosen = [m[rows][..., list(tokens)].mean(1) for cross, m in layers if cross and m.shape[-2] == cells]
    assert chosen
    return torch.stack(chosen).mean(0).transpose(1, 2).unflatten(-1, grid)


def expected_refined(layers, c, rows, grid):
    cells = grid[0] * grid[1]
    chosen = [m[rows].mean(1) for cross, m in layers if not cross and m.shape[-2] == cells]  # [R, N, N] a layer
    assert chosen
    flat = resize(c, grid).flatten(2)  # [R, K, N]
    return (flat @ torch.stack(chosen).mean(0).transpose(1, 2)).unflatten(-1, grid)


def check_against_own(network, given, probe, cross_grid, self_grid):
    layers = own_attention(network, given)
    _, maps = record(probe, network, given)
    c = expected_cross(layers, probe.tokens, probe.rows, cross_grid)
    assert maps.cross.dtype == torch.float32
    torch.testing.assert_close(maps.cross.double(), c, atol=1e-6, rtol=1e-5)
    if self_grid is None:
        assert maps.refined is None
    else:
        refined = expected_refined(layers, c, probe.rows, self_grid)
        torch.testing.assert_close(maps.refined.double(), refined, atol=1e-6, rtol=1e-5)


# Laws


@pytest.mark.parametrize("rows", [slice(None), slice(1, 2), slice(0, 3, 2)])
def test_recording_changes_no_output(unet, rows):
    given = inputs(3)
    with torch.no_grad():
        plain = unet(**given).sample
    output, maps = record(AttentionProbe((2, 5), rows, (1, 0.5), (1, 0.5)), unet, given)
    assert torch.equal(output, plain)
    assert maps.cross.shape == (len(range(3)[rows]), 2, 16, 16) == maps.refined.shape


def test_processors_come_back(unet):
    before = dict(unet.attn_processors)
    probe = AttentionProbe((1,))
    with probe.attach(unet, 2, (16, 16)):
        assert any(unet.attn_processors[name] is not processor for name, processor in before.items())
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())


def test_processors_come_back_after_an_exception(unet):
    before = dict(unet.attn_processors)
    for size in ((16, 16), (12, 16)):  # raised by the caller; raised inside the forward pass
        with pytest.raises((ZeroDivisionError, ValueError)), AttentionProbe((1,)).attach(unet, 2, (16, 16)):
            unet(**inputs(2, size))
            raise ZeroDivisionError
        assert all(unet.attn_processors[name] is processor for name, processor in before.items())


def test_all_tokens_together_hold_all_attention(unet):
    _, maps = record(AttentionProbe(range(TEXT_LENGTH)), unet, inputs())
    torch.testing.assert_close(maps.cross.sum(1), torch.ones(2, *maps.cross.shape[-2:]))
    torch.testing.assert_close(maps.refined.sum(1), torch.ones(2, *maps.refined.shape[-2:]))


def test_each_row_is_recorded_as_if_alone(unet):
    given = inputs(3)
    _, together = record(AttentionProbe((3,)), unet, given)
    for row in range(3):
        _, alone = record(AttentionProbe((3,), slice(row, row + 1)), unet, given)
        torch.testing.assert_close(alone.cross, together.cross[row : row + 1])
        torch.testing.assert_close(alone.refined, together.refined[row : row + 1])


# The maps are the network's own attention


@pytest.mark.parametrize(
    ("cross_levels", "self_levels", "cross_grid", "self_grid"),
    [
        ((0.25,), (0.5,), (4, 4), (8, 8)),
        ((0.5,), (1,), (8, 8), (16, 16)),
        ((1,), (0.25,), (16, 16), (4, 4)),
        ((0.01,), (0.6,), (4, 4), (8, 8)),  # the nearest there is
        ((0.5,), (), (8, 8), None),
    ],
)
def test_maps_at_each_level(unet, cross_levels, self_levels, cross_grid, self_grid):
    probe = AttentionProbe((1, 4), slice(1, 3), cross_levels, self_levels)
    check_against_own(unet, inputs(3), probe, cross_grid, self_grid)


def test_pictures_need_not_be_square(unet):
    check_against_own(unet, inputs(2, (8, 20)), AttentionProbe((1, 4), slice(1, 2), (0.5,), (0.5,)), (4, 10), (4, 10))


def test_odd_sides_round_up(unet):
    check_against_own(unet, inputs(1, (10, 14)), AttentionProbe((2,), slice(None), (0.25,), (0.5,)), (3, 4), (5, 7))


def test_several_levels_are_averaged_on_the_finest_grid(unet):
    given = inputs(1)
    both = AttentionProbe((2,), slice(None), (0.5, 0.25), (1, 0.5))
    layers = own_attention(unet, given)
    _, maps = record(both, unet, given)
    at_8, at_4 = ([m for cross, m in layers if cross and m.shape[-2] == n] for n in (64, 16))
    every = [m[..., [2]].mean(1).transpose(1, 2).unflatten(-1, (8, 8)) for m in at_8]
    every += [resize(m[..., [2]].mean(1).transpose(1, 2).unflatten(-1, (4, 4)), (8, 8)) for m in at_4]
    c = torch.stack(every).mean(0)
    torch.testing.assert_close(maps.cross.double(), c, atol=1e-6, rtol=1e-5)
    counts = [sum(not cross and m.shape[-2] == n for cross, m in layers) for n in (256, 64)]
    spread = [counts[0] * expected_refined(layers, c, slice(None), (16, 16))]
    spread += [counts[1] * resize(expected_refined(layers, c, slice(None), (8, 8)), (16, 16))]
    torch.testing.assert_close(maps.refined.double(), sum(spread) / sum(counts), atol=1e-6, rtol=1e-5)


def test_more_tokens_than_a_head_is_wide():
    network = build(SD, attention_head_dim=(8, 16, 16))  # heads: 16 channels / 8 heads = 2 wide
    check_against_own(network, inputs(1), AttentionProbe((1, 2, 3, 4, 5), slice(None), (1,), (1,)), (16, 16), (16, 16))


class LargestOutput(TorchDispatchMode):
    """Notes the most elements that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tensors = [
            t for t in (output if isinstance(output, (tuple, list)) else [output]) if isinstance(t, torch.Tensor)
        ]
        self.elements = max([self.elements, *(t.numel() for t in tensors)])
        return output


@pytest.mark.parametrize("tokens", [1, 3])
def test_no_matrix_of_all_cells_is_built(unet, tokens):
    probe, given = AttentionProbe(range(tokens), slice(0, 1), (0.5,), (1,)), inputs(2, (32, 32))
    with torch.no_grad(), probe.attach(unet, 2, (32, 32)):
        unet(**given)
    with LargestOutput() as largest:
        probe.collect()
    assert 0 < largest.elements < 1024 * 1024 / 10  # cells squared


# Networks of other shapes


@pytest.mark.parametrize("mid", [None, "UNetMidBlock2D"])
def test_a_network_without_a_middle_attention(mid):
    # The blocks of SDXL; without a middle block, those of KOALA-700M.
    down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    network = build(down, mid, transformer_layers_per_block=(1, 1, 2))
    check_against_own(network, inputs(), AttentionProbe((1, 4), slice(1, 2), (0.25,), (0.5,)), (4, 4), (8, 8))


def test_self_attention_blocks_with_pictures_as_input():
    network = build(("AttnDownBlock2D", "CrossAttnDownBlock2D"), None)  # plain Attention layers: 4-D input, group norm
    check_against_own(network, inputs(), AttentionProbe((1, 4), slice(1, 2), (0.5,), (1,)), (8, 8), (16, 16))


def test_linear_projection_norms_and_masks():
    network = build(SD, use_linear_projection=True)
    for module in network.modules():
        if isinstance(module, Attention):
            module.norm_q = torch.nn.LayerNorm(module.to_q.out_features // module.heads)
            module.norm_k = torch.nn.LayerNorm(module.to_q.out_features // module.heads)
            if module.is_cross_attention:
                module.norm_cross = torch.nn.LayerNorm(TEXT_WIDTH)
    given = inputs()
    given["encoder_attention_mask"] = torch.tensor([[1.0] * 7, [1.0] * 4 + [0.0] * 3])
    check_against_own(network, given, AttentionProbe((1, 3), slice(1, 2), (0.5,), (0.5,)), (8, 8), (8, 8))
    _, maps = record(AttentionProbe((5,), slice(1, 2)), network, given)
    assert maps.cross.abs().max() == 0  # masked


def test_each_processor_gives_the_same_maps(unet):
    given, probe = inputs(), AttentionProbe((1, 4), slice(1, 2))
    _, expected = record(probe, unet, given)
    network = build(SD)
    for prepare in (
        lambda: network.set_attn_processor(AttnProcessor()),
        lambda: network.set_attention_slice(1),
        lambda: network.set_attn_processor(AttnProcessor2_0()) or network.fuse_qkv_projections(),
    ):
        prepare()
        with torch.no_grad():
            plain = network(**given).sample
        output, maps = record(probe, network, given)
        assert torch.equal(output, plain)
        torch.testing.assert_close(maps.cross, expected.cross)
        torch.testing.assert_close(maps.refined, expected.refined)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks(dtype):
    network = build(SD).to(dtype)
    given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs().items()}
    layers = own_attention(network, given)
    _, maps = record(AttentionProbe((4,), slice(1, 2), (0.5,), (0.5,)), network, given)
    c = expected_cross(layers, (4,), slice(1, 2), (8, 8))
    assert maps.cross.dtype == maps.refined.dtype == torch.float32
    torch.testing.assert_close(maps.cross.double(), c, atol=1e-6, rtol=1e-5)
    contrast = float(c.max() - c.min())
    torch.testing.assert_close(
        maps.refined.double(), expected_refined(layers, c, slice(1, 2), (8, 8)), atol=0.01 * contrast, rtol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_contrast_of_a_faint_map(dtype):
    generator = torch.Generator().manual_seed(0)
    c = 0.5 + 1e-3 * torch.rand(1, 3, 8, 8, generator=generator)  # bfloat16 numbers near 0.5 are 0.004 apart
    q, k = (torch.randn(1, 2, 64, 16, generator=generator).to(dtype) for _ in "qk")
    attention = (q.double() @ k.double().transpose(-1, -2) / 4).softmax(-1).mean(1)  # [1, N, N]
    expected = (c.double().flatten(2) @ attention.transpose(1, 2)).unflatten(-1, (8, 8))
    torch.testing.assert_close(_spread(c, q, k, 0.25).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("down", "sample_size", "grid"),
    [
        (("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), 64, (16, 16)),  # SD 1.5: level 1/4
        (("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), 32, (16, 16)),  # 32 x 32 latents: level 1/2
        (("DownBlock2D", "CrossAttnDownBlock2D"), 8, (4, 4)),  # none has 16 cells: the finest
    ],
)
def test_default_level(down, sample_size, grid):
    network = build(down, sample_size=sample_size)
    _, maps = record(AttentionProbe((1,), slice(1, 2)), network, inputs(2, (sample_size, sample_size)))
    assert maps.cross.shape == (1, 1, *grid)
    assert maps.refined.shape[-1] == sample_size // 2
    _, larger = record(AttentionProbe((1,), slice(1, 2)), network, inputs(2, (2 * sample_size, sample_size)))
    assert larger.cross.shape == (1, 1, 2 * grid[0], grid[1])  # the same layers for a picture of another size


# Life cycle


def test_maps_carry_no_gradient(unet):
    given = inputs(1)
    given["sample"].requires_grad_()
    probe = AttentionProbe((1,))
    with probe.attach(unet, 1, (16, 16)):
        output = unet(**given).sample
    maps = probe.collect()
    assert output.requires_grad and not maps.cross.requires_grad and not maps.refined.requires_grad
    output.sum().backward()
    assert torch.isfinite(given["sample"].grad).all()


def test_a_probe_is_used_again(unet):
    probe = AttentionProbe((1,))
    with pytest.raises(RuntimeError, match="Nothing was recorded"):
        probe.collect()
    _, first = record(probe, unet, inputs())
    with pytest.raises(RuntimeError, match="Nothing was recorded"):
        probe.collect()
    _, second = record(probe, unet, inputs())
    assert torch.equal(first.cross, second.cross) and torch.equal(first.refined, second.refined)
    assert isinstance(second, AttentionMaps)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": ()}, "one or more token positions"),
        ({"tokens": (3, -1)}, "each 0 or more"),
        ({"tokens": (1,), "cross_levels": ()}, "cross_levels is empty"),
        ({"tokens": (1,), "cross_levels": (0.0,)}, "above 0 and at most 1; got 0.0"),
        ({"tokens": (1,), "self_levels": (2,)}, "above 0 and at most 1; got 2"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        AttentionProbe(**options)


def test_bad_use(unet):
    with pytest.raises(ValueError, match="records no row"), AttentionProbe((1,), slice(2, 3)).attach(unet, 2, (16, 16)):
        pass
    with pytest.raises(ValueError, match="positions 0 to 6"):
        record(AttentionProbe((7,)), unet, inputs())
    with pytest.raises(ValueError, match="got a batch of 2"), AttentionProbe((1,)).attach(unet, 4, (16, 16)):
        unet(**inputs(2))
    plain = build(("DownBlock2D", "DownBlock2D"), "UNetMidBlock2D")
    with pytest.raises(ValueError, match="no cross-attention"), AttentionProbe((1,)).attach(plain, 2, (16, 16)):
        pass


@torch.no_grad()
def test_several_probes_listen_to_one_pass_as_each_would_alone_and_leave_no_trace(unet):
    given, before = inputs(), dict(unet.attn_processors)
    size = tuple(given["sample"].shape[-2:])

    def probes():
        return [AttentionProbe((1, 2), slice(0, 1)), AttentionProbe((5,), slice(1, 2))]

    alone = []
    for probe in probes():
        with probe.attach(unet, 2, size):
            plain = unet(**given).sample
        alone.append(probe.collect())
    both = SeveralProbes(probes())
    with both.attach(unet, 2, size):
        together = unet(**given).sample
    assert torch.equal(plain, together) and unet.attn_processors == before
    for one, other in zip(alone, both.collect(), strict=True):
        assert torch.equal(one.cross, other.cross) and torch.equal(one.refined, other.refined)
