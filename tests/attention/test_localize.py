"""localize: laws of the mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sdsedit.attention.localize import average, feather, localize, snap, threshold
from sdsedit.attention.probe import AttentionMaps


def blob(h=8, w=8, row=2, column=5):
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / 4.0)


def test_the_mask_spans_0_to_1_and_peaks_at_the_map():
    refined = 0.01 + 1e-3 * blob()[None, None]
    mask = localize(AttentionMaps(torch.rand(1, 1, 4, 4), refined), (8, 8))
    assert mask.shape == (1, 1, 8, 8) and mask.dtype == torch.float32
    assert mask.min() == 0 and mask.max() == 1
    assert mask[0, 0, 2, 5] == 1
    torch.testing.assert_close(mask[0, 0], (blob() - blob().min()) / (1 - blob().min()), atol=1e-4, rtol=0)


def test_brightness_and_offset_of_a_map_do_not_matter():
    m = blob()[None, None]
    torch.testing.assert_close(
        localize(AttentionMaps(m, None), (16, 12)), localize(AttentionMaps(m, 3 * m + 0.5), (16, 12)), atol=1e-5, rtol=0
    )


def test_tokens_and_rows_are_averaged():
    maps = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    assert localize(AttentionMaps(maps, None), (6, 5)).shape == (1, 1, 6, 5)
    torch.testing.assert_close(
        localize(AttentionMaps(maps, None), (6, 5)),
        localize(AttentionMaps(maps.mean((0, 1), keepdim=True), None), (6, 5)),
    )


@pytest.mark.parametrize("value", [0.0, 1 / 77, 1.0])
def test_a_flat_map_gives_zeros(value):
    flat = torch.full((1, 2, 8, 8), value)
    for noise in (0.0, 1e-6):
        mask = localize(AttentionMaps(flat + noise * value * torch.rand(1, 2, 8, 8), None), (20, 12))
        assert torch.equal(mask, torch.zeros(1, 1, 20, 12))


def test_a_broken_map_is_not_hidden():
    broken = torch.ones(1, 1, 8, 8)
    broken[0, 0, 3, 3] = float("nan")
    assert localize(AttentionMaps(broken, None), (8, 8)).isnan().any()


def test_average():
    first, second = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert torch.equal(average(None, second), second)
    torch.testing.assert_close(average(first, second), torch.full((1, 1, 2, 2), 0.1))
    torch.testing.assert_close(average(first, second, decay=0.5), torch.full((1, 1, 2, 2), 0.5))
    torch.testing.assert_close(average(second, second), second)


def test_threshold():
    mask = torch.tensor([0.0, 0.49, 0.5, 1.0]).view(1, 1, 2, 2)
    assert threshold(mask).flatten().tolist() == [0, 0, 1, 1]
    assert threshold(mask, 1).flatten().tolist() == [0, 0, 0, 1]
    for level in (0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="above 0 and at most 1"):
            threshold(mask, level)


@pytest.mark.parametrize("radius", [0, 1, 2, 5])
def test_feather_stays_inside(radius):
    mask = torch.zeros(1, 1, 24, 30)
    mask[..., 6:18, 8:25] = 1
    mask[..., 20, 3:28] = 1  # a line one cell thick
    soft = feather(mask, radius)
    assert torch.equal(soft[mask == 0], torch.zeros_like(soft[mask == 0]))
    assert (soft[mask == 1] > 0).all() and soft.max() == 1  # thin parts fade without vanishing
    assert torch.equal(soft[..., 12, 16], torch.ones(1, 1))
    row = soft[0, 0, 12, 8:17]  # inwards from the left edge
    expected = torch.minimum(torch.arange(1, 10) / (radius + 1), torch.tensor(1.0))
    torch.testing.assert_close(row, expected)


def test_feather_of_full_empty_and_soft_masks():
    assert torch.equal(feather(torch.ones(2, 1, 7, 5), 4), torch.ones(2, 1, 7, 5))  # the picture's border is no edge
    assert torch.equal(feather(torch.zeros(1, 1, 7, 5), 4), torch.zeros(1, 1, 7, 5))
    soft = torch.rand(1, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    assert (feather(soft, 2) <= soft).all()
    assert torch.equal(feather(soft, 0), soft)


def test_feather_is_nearly_round():
    outside = torch.zeros(1, 1, 61, 61)
    outside[..., 30, 30] = 1
    distance = 21 * feather(1 - outside, 20)[0, 0]  # from one cell that may not change: the distance to it, up to 21
    y, x = torch.meshgrid(torch.arange(61) - 30.0, torch.arange(61) - 30.0, indexing="ij")
    true = (y**2 + x**2).sqrt()
    near = (true > 3) & (true < 17)
    assert ((distance / true)[near] - 1).abs().max() < 0.2


def test_feather_refuses_a_negative_radius():
    with pytest.raises(ValueError, match="0 or more; got -1"):
        feather(torch.ones(1, 1, 4, 4), -1)


def disc(side: int = 96) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return ((y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 3) ** 2).float()[None, None]


def test_snap_draws_a_blurred_mask_onto_the_pictures_edges():
    truth = disc()
    picture = torch.lerp(torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0.9, 0.4, 0.1]), truth[0].permute(1, 2, 0))
    picture = picture.permute(2, 0, 1)[None]
    coarse = F.interpolate(F.adaptive_avg_pool2d(truth, 12), (96, 96), mode="bilinear")
    wrong_before = ((coarse >= 0.5).float() != truth).sum()
    wrong_after = ((snap(coarse, picture) >= 0.5).float() != truth).sum()
    assert wrong_before > 40 and wrong_after < wrong_before / 10


def test_snap_leaves_a_constant_mask_and_follows_nothing_on_a_flat_picture():
    generator = torch.Generator().manual_seed(0)
    picture, flat = torch.rand(1, 3, 40, 60, generator=generator), torch.full((1, 3, 40, 60), 0.3)
    assert torch.allclose(snap(torch.full((1, 1, 40, 60), 0.7), picture), torch.tensor(0.7), atol=1e-4)
    mask = torch.rand(1, 1, 40, 60, generator=generator)
    smooth = snap(mask, flat)
    assert smooth.std() < 0.3 * mask.std() and (smooth.mean() - mask.mean()).abs() < 0.03


def test_snap_works_on_a_large_and_on_a_tiny_picture():
    truth = disc(400)
    large = snap(F.avg_pool2d(truth, 41, 1, 20), truth.expand(-1, 3, -1, -1).contiguous())
    assert large.shape == (1, 1, 400, 400) and ((large >= 0.5).float() != truth).float().mean() < 0.01
    assert snap(torch.ones(1, 1, 1, 3), torch.rand(1, 3, 1, 3)).shape == (1, 1, 1, 3)
