"""Pictures and latents: what every latent model does with its autoencoder.

Latents are in the model's scaled space, z = (E(2 x - 1) - shift) scale, with E the mean of the autoencoder's posterior.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, AutoencoderTiny

    Autoencoder = AutoencoderKL | AutoencoderTiny


def factor(vae: Autoencoder) -> int:
    """Pixels a latent cell, along a side."""
    config: Any = vae.config
    return 2 ** (len(config.block_out_channels) - 1)


def encode(vae: Autoencoder, image: Tensor) -> Tensor:  # [B, 3, H, W] fp32 in 0..1 -> [B, C, H / factor, W / factor]
    """The mean latent, scaled, fp32. ValueError: another shape, or sides that the factor does not divide."""
    cell = factor(vae)
    if image.ndim != 4 or image.shape[1] != 3 or any(side < 1 or side % cell for side in image.shape[2:]):
        sides = f"sides in multiples of {cell}"
        raise ValueError(f"A picture to encode is [B, 3, H, W] with {sides}; got {list(image.shape)}.")
    scale, shift = _scale(vae)
    out: Any = vae.encode((image * 2 - 1).to(vae.dtype))
    mean = out.latent_dist.mean if hasattr(out, "latent_dist") else out.latents  # AutoencoderKL, AutoencoderTiny
    return (mean.float() - shift) * scale


def decode(vae: Autoencoder, z: Tensor) -> Tensor:  # [B, C, h, w] -> [B, 3, h factor, w factor] fp32 in 0..1
    """The picture of a scaled latent."""
    scale, shift = _scale(vae)
    latent = (z.float() / scale + shift).to(vae.dtype)
    out: Any = vae.decode(latent)  # pyright: ignore[reportArgumentType]  # a tensor, whatever one of the two calls it
    return (out.sample.float() / 2 + 0.5).clamp(0, 1)


def preview(prior: Any, z: Tensor) -> Tensor:  # [B, C, h, w] -> [B, 3, h factor, w factor] fp32 in 0..1
    """A prior's picture of a latent, good enough to watch: by its tiny autoencoder (TAESD) if it was given one."""
    tiny = getattr(prior, "previewer", None)
    return prior.decode(z) if tiny is None else decode(tiny, z)


def encoder_features(vae: Autoencoder, image: Tensor) -> tuple[Tensor, ...]:  # [B, 3, H, W] -> [B, C_l, H_l, W_l] each
    """What the encoder sees on its way down: the activations before each halving of the sides."""
    seen: list[Tensor] = []
    halving = [m for m in vae.encoder.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    hooks = [m.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float())) for m in halving]
    try:
        encode(vae, image)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(seen)


def upcast(vae: Autoencoder) -> Autoencoder:
    """The same autoencoder in fp32 where its config says that half precision overflows, as a copy: a pipeline that
    shares its modules keeps its own."""
    import copy

    config: Any = vae.config
    return copy.deepcopy(vae).float() if config.force_upcast and vae.dtype != torch.float32 else vae


def _scale(vae: Autoencoder) -> tuple[float, float]:
    config: Any = vae.config
    return float(config.scaling_factor), float(config.get("shift_factor") or 0)
