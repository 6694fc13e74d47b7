"""A folder with pictures, a mask and a manifest over them, and planned jobs that need no model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdsedit.batch.inputs import Planned
from sdsedit.batch.manifest import read_manifest

EDIT = {"source": "a cat", "target": "a cat wearing a crown", "steps": 2, "refine": 0}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The manifest's folder: a.png to d.png of one size, e.png of another, a mask."""
    root = tmp_path / "root"
    root.mkdir()
    for k, name in enumerate("abcde"):
        size = (40, 40, 3) if name == "e" else (32, 48, 3)
        pixels = np.random.default_rng(k).integers(0, 256, size, dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")
    mask = np.zeros((32, 48), np.uint8)
    mask[8:24, 8:40] = 255
    Image.fromarray(mask).save(root / "m.png")
    return root


@pytest.fixture
def write(here: Path) -> Callable[..., Path]:
    """write(row, row ...): a manifest whose rows have short edits for defaults."""

    def to(*rows: dict[str, Any], name: str = "jobs.jsonl", **defaults: Any) -> Path:
        head = {"schema_version": 1, "defaults": {**EDIT, **defaults}}
        (here / name).write_text("\n".join(json.dumps(row) for row in (head, *rows)))
        return here / name

    return to


@pytest.fixture
def toys(here: Path, tiny_pipeline: Callable[[str], Any]) -> Path:
    """The same folder, with what is added to a tiny model: toy.safetensors, a LoRA, and zog.safetensors, a word; and
    halves.png, a picture of two regions for a.png to d.png."""
    import torch
    from safetensors.torch import save_file

    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    rows, columns = tiny_pipeline("builtin_like").unet.get_submodule(layer).weight.shape
    generator = torch.Generator().manual_seed(0)
    halves = {f"unet.{layer}.lora_A.weight": (2, columns), f"unet.{layer}.lora_B.weight": (rows, 2)}
    save_file({name: torch.randn(*size, generator=generator) for name, size in halves.items()},
              here / "toy.safetensors")  # fmt: skip
    save_file({"zog": torch.randn(2, 16, generator=generator)}, here / "zog.safetensors")
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, 24:] = 255
    Image.fromarray(pixels).save(here / "halves.png")
    return here


@pytest.fixture
def planned(here: Path, write: Callable[..., Path]) -> Callable[..., list[Planned]]:
    """planned(3, key="x"): jobs job-0 to job-2 of one model, as if their files had been read."""

    def make(count: int, key: str = "k") -> list[Planned]:
        jobs = read_manifest(write(*({"id": f"job-{k}", "input": "a.png"} for k in range(count)))).jobs
        return [Planned(job, {"input": "0"}, (8, 8), "builtin", f"{key}-{job.id}") for job in jobs]

    return make
