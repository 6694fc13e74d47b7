"""The autoencoder has the promised shape, and its scores mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.autoencoder import build, losses, psnr, scene_pool, scene_pool_v1, to_input
from training.scenes import SIZE


@pytest.fixture(scope="module")
def autoencoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def test_it_is_four_pixels_a_cell_and_four_channels(autoencoder):
    config = autoencoder.config
    assert config.latent_channels == 4 and config.in_channels == config.out_channels == 3
    assert 2 ** (len(config.block_out_channels) - 1) == 4  # as sdsedit.prior.unet reads the factor
    assert not config.force_upcast and not config.get("shift_factor")
    with torch.inference_mode():
        z = autoencoder.encode(torch.zeros(2, 3, SIZE, SIZE)).latents
        assert z.shape == (2, 4, SIZE // 4, SIZE // 4)
        assert autoencoder.decode(z).sample.shape == (2, 3, SIZE, SIZE)


def test_pictures_go_in_as_minus_one_to_one():
    images = np.zeros((1, 4, 6, 3), np.uint8)
    images[0, 1, 2] = (255, 0, 255)
    x = to_input(images)
    assert x.shape == (1, 3, 4, 6) and x.dtype == torch.float32
    assert x[0, :, 1, 2].tolist() == [1, -1, 1] and x.min() == -1


class Shifted(nn.Module):
    """encoder: the identity; decoder: adds a constant."""

    device = torch.device("cpu")

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def encoder(self, x: Tensor) -> Tensor:
        return x

    def decoder(self, z: Tensor) -> Tensor:
        return z + self.by


def test_psnr_is_of_values_in_zero_to_one():
    """An error of d everywhere is -20 log10 d decibels; inputs of -1..1 are twice as wide."""
    images = np.full((17, 8, 8, 3), 100, np.uint8)
    assert psnr(Shifted(2 * 0.01), images) == pytest.approx(40, abs=1e-3)
    assert psnr(Shifted(0.0), images) == pytest.approx(100, abs=1e-3)


def test_the_terms_of_the_loss_reach_every_weight_they_should(autoencoder):
    x = to_input(scene_pool(2, 0, "fluent-flat"))[..., 32:96, 32:96]
    reconstruction, likeness, size = losses(autoencoder, x, torch.zeros(2, 4, 16, 16))
    assert all(term.isfinite() and term > 0 for term in (reconstruction, likeness, size))
    (reconstruction + likeness + size).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in autoencoder.parameters())
    autoencoder.zero_grad()


def test_pools_are_the_same_for_the_same_seed():
    assert np.array_equal(scene_pool(2, 3, "noto"), scene_pool(2, 3, "noto"))
    assert np.array_equal(scene_pool_v1(2), scene_pool_v1(2))
