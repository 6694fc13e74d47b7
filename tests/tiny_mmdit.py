"""Tiny random pipelines of real diffusers and transformers classes with joint attention: SD3, SD3.5 and FLUX.1.

As tests/tiny.py: the shape of the real ones (kinds of blocks, text encoders, packing, shift) with few channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5TokenizerFast

from tests.tiny import WORDS, _text_config, tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-',."


def t5_tokenizer() -> T5TokenizerFast:
    """A Unigram tokenizer as T5's, that knows WORDS whole and spells the rest."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("\u2581", -6.0)]
    pieces += [("\u2581" + word, -1.0) for word in WORDS]
    pieces += [(letter, -8.0) for letter in LETTERS]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def _t5(tok: T5TokenizerFast, width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(tok),
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    return T5EncoderModel(config)


def _autoencoder(scale: float, shift: float) -> AutoencoderKL:
    """16 latent channels, no quantising convolutions, a shift: as SD3's and FLUX.1's."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        sample_size=128,
        scaling_factor=scale,
        shift_factor=shift,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=True,
    )


def _sharpen(network: nn.Module) -> None:
    """The initial attention is almost uniform, which would hide mistakes."""
    for name, weight in network.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight", "add_q_proj.weight", "add_k_proj.weight")):
            nn.init.normal_(weight, std=0.4)


def _sd3(folder: Path, layers: int, dual: tuple[int, ...] = (), qk_norm: str | None = None) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    tokens = tokenizer(folder / "1"), tokenizer(folder / "2", pad="!")
    t5 = t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=48,
        caption_projection_dim=16,
        pooled_projection_dim=16 + 24,
        pos_embed_max_size=24,
        dual_attention_layers=dual,
        qk_norm=qk_norm,
    )
    _sharpen(transformer)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(1.5305, 0.0609),
        text_encoder=CLIPTextModelWithProjection(_text_config(tokens[0], 16, 16)),
        tokenizer=tokens[0],
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokens[1], 24, 24)),
        tokenizer_2=tokens[1],
        text_encoder_3=_t5(t5, 48),
        tokenizer_3=t5,
    ).to("cpu")


def sd3(folder: Path) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 medium: 24 joint blocks, here 4."""
    return _sd3(folder, 4)


def sd35_medium(folder: Path) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3.5 medium: QK-norm, and a second, picture-only attention in the first 13 of 24 blocks."""
    return _sd3(folder, 4, dual=(0, 1, 2), qk_norm="rms_norm")


def _flux(folder: Path, guidance: bool) -> FluxPipeline:
    torch.manual_seed(0)
    tok, t5 = tokenizer(folder / "1"), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=3,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    _sharpen(transformer)
    shift = {"shift": 3.0, "use_dynamic_shifting": True} if guidance else {}
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**shift),
        vae=_autoencoder(0.3611, 0.1159),
        text_encoder=CLIPTextModel(_text_config(tok, 16, 16)),
        tokenizer=tok,
        text_encoder_2=_t5(t5, 32),
        tokenizer_2=t5,
    )


def flux_dev(folder: Path) -> FluxPipeline:
    """FLUX.1 dev: 19 joint and 38 single blocks, here 3 and 2; told of a guidance; a shift that grows with the size."""
    return _flux(folder, True)


def flux_schnell(folder: Path) -> FluxPipeline:
    """FLUX.1 schnell: no guidance, no shift, half as many text tokens."""
    return _flux(folder, False)


FAMILIES: dict[str, Callable[[Path], StableDiffusion3Pipeline | FluxPipeline]] = {
    "sd3": sd3,
    "sd35_medium": sd35_medium,
    "flux_dev": flux_dev,
    "flux_schnell": flux_schnell,
}
