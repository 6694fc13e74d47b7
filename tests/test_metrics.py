"""Metrics on cases whose answers are known by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdsedit.metrics import (
    CLIP_R_STARRED,
    CLIP_R_THRESHOLDS,
    clip_auc,
    clip_ratio,
    directional_similarity,
    iou,
    l1,
    max_change,
    passing_means,
    pointing,
    psnr,
    similarity,
    starred,
    success_rates,
)


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


def test_clip_ratio_is_how_much_nearer_to_the_words():
    text = torch.tensor([[1.0, 0.0]])
    at = lambda degrees: torch.tensor([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]])  # noqa: E731
    assert similarity(3 * at(60), text).item() == pytest.approx(0.5)
    assert clip_ratio(at(60), at(60), text).item() == 1
    assert clip_ratio(2 * at(60), 5 * at(0), 7 * text).item() == pytest.approx(2)
    assert clip_ratio(at(0), at(60), text).item() == pytest.approx(0.5)
    both = clip_ratio(torch.cat([at(60), at(30)]), torch.cat([at(0), at(30)]), torch.cat([text, text]))
    torch.testing.assert_close(both, torch.tensor([2.0, 1.0]))


def test_thresholds_of_the_paper():
    assert len(CLIP_R_THRESHOLDS) == 41 and CLIP_R_THRESHOLDS[0] == 1 and CLIP_R_THRESHOLDS[-1] == pytest.approx(1.4)
    assert CLIP_R_THRESHOLDS[CLIP_R_STARRED - 1] == pytest.approx(1.22)


def test_an_edit_that_did_nothing_never_counts():
    """The comparison is strict: CLIP-R 1 is above no threshold."""
    assert success_rates(torch.ones(5)).sum() == 0 and clip_auc(torch.ones(5)) == 0
    assert starred(torch.ones(5), torch.zeros(5)).isnan()


def test_clip_auc_in_closed_form():
    assert clip_auc(torch.full((3,), 2.0)).item() == pytest.approx(0.4)  # all pass everywhere: the width
    assert clip_auc(torch.tensor([2.0, 0.5])).item() == pytest.approx(0.2)
    # Edits spread evenly: the share above 1 + x is 1 - x / 0.4, a line, of which Simpson's rule is exact.
    even = torch.linspace(1, 1.4, 4001)[1:]
    assert clip_auc(even).item() == pytest.approx(0.2, abs=1e-4)


def test_starred_scores_in_closed_form():
    value = torch.tensor([0.1, 0.3])
    assert starred(torch.tensor([2.0, 3.0]), value).item() == pytest.approx(0.22 * 0.2)
    assert starred(torch.tensor([2.0, 1.0]), value).item() == pytest.approx(0.22 * 0.1)  # the second did nothing
    # One drops out half way: the mean falls from 0.2 to 0.1 between two of Simpson's points.
    half = starred(torch.tensor([2.0, 1.115]), value).item()
    assert 0.22 * 0.1 < half < 0.22 * 0.2 and half == pytest.approx(0.22 * 0.1 + 0.115 * 0.1, abs=5e-4)
    assert starred(torch.tensor([1.2, 1.1]), value).isnan()  # no edit reaches 1.22
    assert passing_means(torch.tensor([1.05, 1.3]), value)[10].item() == pytest.approx(0.3)


def test_the_papers_own_row_is_of_this_size():
    """LUSD's L1* 0.015 and CLIP-I* 0.192 for L1 0.063 and CLIP-I 0.900: the width 0.22 times a mean."""
    ratio = torch.full((1,), 1.5)
    assert starred(ratio, torch.tensor([0.063])).item() == pytest.approx(0.0139, abs=1e-4)
    assert starred(ratio, torch.tensor([0.900])).item() == pytest.approx(0.198, abs=1e-4)


def test_what_a_test_set_cannot_be():
    for bad in (torch.zeros(0), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match="one number an edit"):
            success_rates(bad)
    with pytest.raises(ValueError, match="must have the same"):
        passing_means(torch.ones(2), torch.ones(3))
