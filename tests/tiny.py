"""Tiny random pipelines of real diffusers and transformers classes, one for each family of models.

They have the shape of the real ones (levels of attention, layers a block, kind of prediction, text encoders) with few
channels, and are built in memory in under a second.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

# One token each; every other word is spelled in letters or shorter pieces.
WORDS = [
    "a", "an", "the", "of", "in", "on", "with", "and", "photo", "picture", "cat", "dog", "bird", "hat", "crown",
    "top", "bear", "teddy", "red", "blue", "green", "wearing", "grass", "sky", "tree", "house", "car", "bicycle",
    "well", "known",
]  # fmt: skip
START, END = "<|startoftext|>", "<|endoftext|>"


def tokenizer(folder: Path, max_tokens: int = 77, pad: str = END) -> CLIPTokenizer:
    """A byte-level CLIP tokenizer that knows WORDS, read from a vocab.json and merges.txt written to `folder`."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    letters = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    pieces = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in sorted(WORDS, key=len, reverse=True):  # the merges of short words would break long ones up
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            left, right, *rest = parts
            if (left, right) not in merges:
                merges.append((left, right))
                pieces.append(left + right)
            parts = [left + right, *rest]
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {piece: i for i, piece in enumerate([*pieces, START, END])}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"model_max_length": max_tokens, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder)


def _text_config(tok: CLIPTokenizer, width: int, projection: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tok),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tok.model_max_length,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )


def autoencoder(factor: int = 8, force_upcast: bool = True, scaling_factor: float = 0.18215) -> AutoencoderKL:
    """An AutoencoderKL with 4 latent channels and `factor` pixels a latent cell."""
    levels = factor.bit_length()
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(8,) * levels,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16 * factor,
        scaling_factor=scaling_factor,
        force_upcast=force_upcast,
    )


def _scheduled(prediction: str) -> dict[str, object]:
    return {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "steps_offset": 1,
    }


def _stable_diffusion(folder: Path, linear: bool, scheduler: PNDMScheduler | DDIMScheduler) -> StableDiffusionPipeline:
    """Attention on 1, 1/2, 1/4 and, in the middle, 1/8 of the latent side, as in all of Stable Diffusion 1 and 2."""
    torch.manual_seed(0)
    tok = tokenizer(folder)
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(1, 1, 2, 2) if linear else 2,  # a number of heads, in spite of its name
        use_linear_projection=linear,
        cross_attention_dim=16,
    )
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(_text_config(tok, 16, 16)),
        tokenizer=tok,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sd15(folder: Path) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5: predicts epsilon."""
    return _stable_diffusion(folder, False, PNDMScheduler(skip_prk_steps=True, **_scheduled("epsilon")))


def sd21(folder: Path) -> StableDiffusionPipeline:
    """Stable Diffusion 2.1: predicts v, linear projections, heads of one width."""
    return _stable_diffusion(folder, True, DDIMScheduler(clip_sample=False, **_scheduled("v_prediction")))


def _xl(folder: Path, layers: int, depth: tuple[int, int, int], mid: bool) -> StableDiffusionXLPipeline:
    """No attention on the finest level, `depth` layers of it on each other; two text encoders, sizes as conditions."""
    torch.manual_seed(0)
    tokens = tokenizer(folder / "1"), tokenizer(folder / "2", pad="!")
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn" if mid else None,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=layers,
        transformer_layers_per_block=depth,
        norm_num_groups=4,
        attention_head_dim=(1, 2, 2),
        use_linear_projection=True,
        cross_attention_dim=16 + 24,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
    )
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(_text_config(tokens[0], 16, 16)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokens[1], 24, 12)),
        tokenizer=tokens[0],
        tokenizer_2=tokens[1],
        unet=unet,
        scheduler=EulerDiscreteScheduler(**_scheduled("epsilon")),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def sdxl(folder: Path) -> StableDiffusionXLPipeline:
    """SDXL, whose transformers are 2 and 10 layers deep; here 1 and 2."""
    return _xl(folder, layers=2, depth=(1, 1, 2), mid=True)


def koala_1b(folder: Path) -> StableDiffusionXLPipeline:
    """KOALA 1B: one layer pair a block, depths 0, 2, 6; here 0, 1, 3."""
    return _xl(folder, layers=1, depth=(0, 1, 3), mid=True)


def koala_700m(folder: Path) -> StableDiffusionXLPipeline:
    """KOALA 700M: depths 0, 2, 5, and no middle block; here 0, 1, 2."""
    return _xl(folder, layers=1, depth=(0, 1, 2), mid=False)


def builtin_like(folder: Path) -> StableDiffusionPipeline:
    """The built-in model: 128 x 128 pictures, 4 pixels a cell, attention on 1/2 and 1/4, 32 tokens, predicts v."""
    torch.manual_seed(0)
    tok = tokenizer(folder, max_tokens=32)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    return StableDiffusionPipeline(
        vae=autoencoder(factor=4, force_upcast=False, scaling_factor=0.5),
        text_encoder=CLIPTextModel(_text_config(tok, 16, 16)),
        tokenizer=tok,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, **_scheduled("v_prediction")),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


FAMILIES: dict[str, Callable[[Path], StableDiffusionPipeline | StableDiffusionXLPipeline]] = {
    "sd15": sd15,
    "sd21": sd21,
    "sdxl": sdxl,
    "koala_1b": koala_1b,
    "koala_700m": koala_700m,
    "builtin_like": builtin_like,
}


def saved(pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, folder: Path, safe: bool = True) -> Path:
    """The pipeline as a diffusers folder, in safetensors or (safe=False) pickled."""
    pipe.save_pretrained(folder, safe_serialization=safe)
    return folder
