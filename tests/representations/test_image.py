"""A picture as a latent: sizes, proportions, and that whatever the edit did not touch comes back bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdsedit.attention.localize import feather
from sdsedit.representations import image
from sdsedit.representations.image import ImageLatent, resize, working_size
from tests.guidance.gaussian import GaussianPrior


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def prior():
    return GaussianPrior({})


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 1024), st.sampled_from([4, 16, 64]))
def test_the_working_size_fits_the_model_and_keeps_area_and_proportions(height, width, side, multiple):
    h, w = working_size((height, width), side, multiple)
    assert h % multiple == w % multiple == 0 and min(h, w) >= multiple
    assert h * w <= 2.5 * max(side * side, multiple * multiple)
    if 1 / 3 < height / width < 3 and side >= 8 * multiple:
        assert math.isclose(h * w, side * side, rel_tol=0.25)
        assert math.isclose(h / w, height / width, rel_tol=0.25)


def test_the_working_size_of_a_picture_of_the_native_size_is_its_own():
    assert working_size((512, 512), 512, 64) == (512, 512)
    assert working_size((1024, 1024), 512, 64) == (512, 512)
    assert working_size((300, 1200), 512, 64) == (256, 1024)


@pytest.mark.parametrize("size", [(16, 16), (7, 23), (40, 9), (1, 1), (3, 200)])
def test_any_size_comes_back_as_it_was(prior, size):
    source = picture(*size)
    latent = ImageLatent.from_image(source, prior)
    assert latent.z.shape[-1] * latent.z.shape[-2] * 4 <= 2.5 * prior.native**2
    out, weight, kept = latent.finish(prior, latent.z, None)
    assert torch.equal(out, source) and not weight.any() and kept == size[0] * size[1]
    out, weight, kept = latent.finish(prior, latent.z + 1, None)
    assert out.shape == source.shape and weight.shape == (1, 1, *size) and kept == (weight == 0).sum()
    assert out.min() >= 0 and out.max() <= 1 and weight.min() >= 0 and weight.max() <= 1


def test_the_size_asked_for_is_worked_at(prior):
    assert ImageLatent.from_image(picture(20, 20), prior, 32).z.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("side", [32, 48])
def test_what_the_edit_did_not_touch_is_bit_for_bit_the_source(prior, side):
    source = picture(side, side)
    latent = ImageLatent.from_image(source, prior, 32)
    z = latent.z.clone()
    z[..., :4, :4] += 1.5
    out, weight, kept = latent.finish(prior, z, None)
    same = (weight == 0).expand_as(out)
    assert torch.equal(out[same], source[same])
    assert torch.equal((out * 255).round().byte()[same], (source * 255).round().byte()[same])
    assert 0 < kept < side * side
    assert (weight[..., side // 2 :, :] == 0).all() and (weight[..., : side // 8, : side // 8] == 1).all()
    assert not torch.allclose(prior.decode(latent.z_src)[..., -8:, -8:], latent.picture[..., -8:, -8:])  # it does blur


def test_a_change_too_small_to_see_keeps_every_pixel(prior):
    source = picture(16, 16)
    latent = ImageLatent.from_image(source, prior)
    out, _, kept = latent.finish(prior, latent.z + 1 / 255, None)
    assert torch.equal(out, source) and kept == 256


def test_a_mask_bounds_the_edit_and_is_feathered_inwards(prior):
    source, mask = picture(32, 32) * 0.5, torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    latent = ImageLatent.from_image(source, prior, 32, mask)
    out, weight, kept = latent.finish(prior, latent.z + 1, mask, radius=3)
    assert torch.equal(out[..., :8, :], source[..., :8, :]) and torch.equal(out[..., 24:], source[..., 24:])
    assert kept == 32 * 32 - 16 * 16
    row = weight[0, 0, 16]
    assert (row[8:12].diff() > 0).all() and row[16] == 1
    assert torch.equal(out[..., 16, 16], prior.decode(latent.z + 1)[..., 16, 16])


def test_the_mask_at_the_latents_size_has_every_cell_that_may_change_in_part(prior):
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 5, 5] = 0.5
    view = ImageLatent.from_image(picture(16, 16), prior, mask=mask).render(0)
    assert view.mask.shape == (1, 1, 8, 8)
    assert view.mask[0, 0, 2, 2] == 0.5 and view.mask.sum() == 0.5


def test_a_step_is_subtracted_and_older_latents_stay(prior):
    latent = ImageLatent.from_image(picture(16, 16), prior)
    before = latent.render(0).z
    latent.step(torch.ones_like(before))
    assert torch.equal(latent.render(1).z, latent.z_src - 1) and torch.equal(before, latent.z_src)


def test_resizing_to_the_same_size_is_no_resizing():
    image = picture(5, 9)
    assert resize(image, (5, 9)) is image


def test_a_single_column_is_resized_as_a_wider_one():
    column = picture(16, 1)
    wide = resize(column.expand(-1, -1, -1, 2).contiguous(), (40, 2))
    assert torch.allclose(resize(column, (40, 1)), wide[..., :1], atol=1e-6)


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (9, 200)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_picture_in_strips_is_the_whole_picture_bit_for_bit(prior, monkeypatch, size, masked):
    """In one strip the arithmetic is the plain formula on whole tensors, which is written out here too."""
    latent = ImageLatent.from_image(picture(*size), prior)
    place = (picture(*size, seed=2)[:, :1] > 0.3).float() if masked else None
    z = latent.z + 0.3 * torch.randn(latent.z.shape, generator=torch.Generator().manual_seed(1))
    before, after = prior.decode(latent.z_src), prior.decode(z)
    gate = resize(image._change(before, after, prior.factor), size)
    weight = gate if place is None else feather(place, 4) * gate
    plain = torch.where(weight > 0, torch.lerp(latent.picture, resize(after, size), weight), latent.picture)
    for pixels in (2**20, 300, 1):  # of a strip
        monkeypatch.setattr(image, "_STRIP", pixels)
        out, found, kept = latent.finish(prior, z, place, radius=4)
        assert torch.equal(out, plain) and torch.equal(found, weight)
        assert kept == int((weight == 0).sum()) and (0 < kept < weight.numel() or not masked)
