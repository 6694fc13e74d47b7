"""Tiny datasets in the true formats, and a tiny CLIP of transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from tests import tiny


def picture(path: Path, seed: int, side: int = 32) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=95)
    return path


def magicbrush(folder: Path) -> Path:
    """A split with two pictures: one edited once, one edited twice."""
    sessions = {"242679": 1, "368667": 2}
    turns, whole, local, edits = [], {}, {}, {}
    for seed, (id, count) in enumerate(sessions.items()):
        names = [f"{id}-input.png", *(f"{id}-output{k}.png" for k in range(1, count + 1))]
        for k, name in enumerate(names):
            picture(folder / "images" / id / name, 10 * seed + k)
            if k:
                picture(folder / "images" / id / f"{id}-mask{k}.png", 99)
        edits[id] = [
            {"input": names[k - 1], "mask": f"{id}-mask{k}.png", "output": names[k], "instruction": "Add a hat."}
            for k in range(1, count + 1)
        ]
        turns += edits[id]
        whole[id] = {name: f"a cat on grass{' wearing a red hat' * k}" for k, name in enumerate(names)}
        local[id] = dict.fromkeys(names[1:], "a red hat")
    for name, what in (("edit_turns", turns), ("edit_sessions", edits), ("global_descriptions", whole),
                       ("local_descriptions", local)):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(what, indent=4))
    return folder


def pie(folder: Path) -> Path:
    """Two pictures of PIE-Bench, with the paths and runs that it has."""
    entries = {
        "000000000000": ("0_random_140/000000000000.jpg", "a cat on grass", "a [red] cat on grass", "0",
                         [512 * 100 + 100, 50, 512 * 101 + 100, 50]),
        "111000000002": ("1_change_object_80/1_artificial/1_animal/111000000002.jpg", "a [dog] on grass",
                         "a [cat] on grass", "1", [0, 512 * 512]),
    }  # fmt: skip
    mapping = {}
    for k, (id, (path, source, target, type, mask)) in enumerate(entries.items()):
        picture(folder / "annotation_images" / path, k, 512)
        mapping[id] = {
            "image_path": path, "original_prompt": source, "editing_prompt": target, "editing_instruction": "Do it.",
            "editing_type_id": type, "blended_word": "cat cat", "mask": mask,
        }  # fmt: skip
    (folder / "mapping_file.json").write_text(json.dumps(mapping))
    return folder


def clip(folder: Path) -> Path:
    """Random weights, saved as `hf download` leaves them."""
    torch.manual_seed(0)
    tok = tiny.tokenizer(folder)
    text = CLIPTextConfig(
        vocab_size=len(tok), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=12, max_position_embeddings=77, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
        projection_dim=12,
    )  # fmt: skip
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
