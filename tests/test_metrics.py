"""Metrics on cases whose answers are known by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdsedit.metrics import directional_similarity, iou, l1, max_change, pointing, psnr


def flat(*values: float, size: int = 4) -> torch.Tensor:
    """One grey picture a value."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, size, size).clone()


def square(top: int, left: int, side: int, size: int = 8) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., top : top + side, left : left + side] = 1
    return mask


def test_a_tenth_off_everywhere():
    a, b = flat(0.5, 0.2), flat(0.6, 0.3)
    torch.testing.assert_close(psnr(a, b), torch.tensor([20.0, 20.0]), atol=1e-4, rtol=0)  # MSE 0.01
    torch.testing.assert_close(l1(a, b), torch.tensor([0.1, 0.1]))
    torch.testing.assert_close(max_change(a, b), torch.tensor([0.1, 0.1]))


def test_equal_pictures():
    a = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    assert psnr(a, a).tolist() == [math.inf, math.inf]
    assert l1(a, a).tolist() == max_change(a, a).tolist() == [0, 0]


def test_black_against_white_is_zero_decibels():
    assert psnr(flat(0.0), flat(1.0)).item() == 0


@given(d=st.floats(0.001, 1), n=st.integers(1, 16))
def test_psnr_of_n_changed_pixels(d: float, n: int):
    a, b = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    b.view(1, 3, 16)[..., :n] = d
    assert psnr(a, b).item() == pytest.approx(-10 * math.log10(d * d * n / 16), abs=1e-3)


def test_what_a_mask_allows_does_not_count():
    a, b = flat(0.5, size=8), flat(0.5, size=8)
    mask = square(2, 2, 3)
    b[..., 2:5, 2:5] = 1.0
    assert psnr(a, b, mask).item() == math.inf
    assert max_change(a, b, mask).item() == l1(a, b, mask).item() == 0
    b[0, 1, 0, 0] = 0.75  # one value of 3 * (64 - 9) outside
    assert max_change(a, b, mask).item() == 0.25
    assert l1(a, b, mask).item() == pytest.approx(0.25 / 165)
    assert psnr(a, b, mask).item() == pytest.approx(-10 * math.log10(0.0625 / 165), abs=1e-3)


def test_a_feathered_edge_may_change():
    a, b = flat(0.5), flat(0.5)
    b[..., 0, 0] = 1.0
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0, 0] = 0.01
    assert max_change(a, b, mask).item() == 0


def test_one_mask_serves_a_batch_and_a_mask_each_serves_its_own():
    a, b = flat(0.0, 0.0), flat(0.0, 0.0)
    b[1, :, 0, 0] = 0.5
    corner, other = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    corner[..., 0, 0], other[..., 3, 3] = 1, 1
    assert max_change(a, b, corner).tolist() == [0, 0]
    assert max_change(a, b, torch.cat([corner, other])).tolist() == [0, 0.5]


@pytest.mark.parametrize("score", [psnr, l1, max_change])
def test_shapes_that_do_not_fit_are_refused(score):
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 4\) and \(1, 3, 8, 8\)"):
        score(flat(0.0), flat(0.0, size=8))
    with pytest.raises(ValueError, match="same size"):
        score(flat(0.0), flat(0.0), square(0, 0, 1))
    with pytest.raises(ValueError, match="whole picture"):
        score(flat(0.0), flat(0.0), torch.ones(1, 1, 4, 4))


def test_half_precision_is_measured_in_float32():
    assert psnr(flat(0.5).half(), flat(0.5).half() + 2**-11).dtype == torch.float32


def test_iou():
    a = square(0, 0, 4)
    assert iou(a, a).item() == 1
    assert iou(a, square(4, 4, 4)).item() == 0
    assert iou(a, square(0, 2, 4)).item() == pytest.approx(8 / 24)
    assert iou(torch.zeros_like(a), torch.zeros_like(a)).item() == 1
    assert iou(a, torch.zeros_like(a)).item() == 0
    assert iou(0.3 * a, a, threshold=0.2).item() == 1
    assert iou(0.3 * a, a).item() == 0
    with pytest.raises(ValueError, match="must have the same"):
        iou(a, square(0, 0, 4, size=16))


def test_pointing():
    mask = square(2, 2, 4)
    heat = torch.zeros(1, 1, 8, 8)
    heat[..., 3, 3] = 1
    assert pointing(heat, mask).item() == 1
    heat[..., 0, 0] = 2
    assert pointing(heat, mask).item() == 0
    heat[..., 3, 3] = 2  # two equal peaks, one on the object
    assert pointing(heat, mask).item() == 0.5
    assert pointing(torch.zeros(1, 1, 8, 8), mask).item() == 16 / 64  # a constant map is a blind guess
    with pytest.raises(ValueError, match="must have the same"):
        pointing(heat, square(0, 0, 4, size=16))


def test_directional_similarity_keeps_the_sign():
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(directional_similarity(east, north, east, north), torch.ones(1))
    torch.testing.assert_close(directional_similarity(north, east, east, north), -torch.ones(1))
    assert directional_similarity(east, east, east, north).item() == 0  # nothing moved
    # lengths do not matter
    torch.testing.assert_close(directional_similarity(5 * east, 0.1 * north, east, 3 * north), torch.ones(1))
    # east -> north is (-1, 1), east -> west is (-2, 0): 45 degrees
    torch.testing.assert_close(directional_similarity(east, north, east, -east), torch.full((1,), math.sqrt(0.5)))
    with pytest.raises(ValueError, match="must have the same"):
        directional_similarity(east, north, torch.zeros(1, 3), torch.zeros(1, 3))
