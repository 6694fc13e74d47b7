"""Models that people ask for: what they are, what their pages say of licences, how to get them.

Facts of 2026; a person is told them before anything is fetched. No import of this file touches torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class KnownModel(NamedTuple):
    what: str
    licence: str
    how: str


KNOWN_MODELS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": KnownModel(
        "Stable Diffusion 1.5, 512 px, the mirror of the removed runwayml repository",
        "CreativeML Open RAIL-M",
        "hf download stable-diffusion-v1-5/stable-diffusion-v1-5",
    ),
    "stabilityai/stable-diffusion-2-1": KnownModel(
        "Stable Diffusion 2.1, 768 px",
        "CreativeML Open RAIL++-M",
        "removed from the hub by its makers; a folder that you already have works: --model FOLDER",
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": KnownModel(
        "SDXL, 1024 px",
        "CreativeML Open RAIL++-M",
        "hf download stabilityai/stable-diffusion-xl-base-1.0",
    ),
    "etri-vilab/koala-700m-llava-cap": KnownModel(
        "KOALA 700M, a smaller SDXL, 1024 px",
        "none stated on its page: ask its makers before you rely on it",
        "hf download etri-vilab/koala-700m-llava-cap",
    ),
    "etri-vilab/koala-1b-llava-cap": KnownModel(
        "KOALA 1B, a smaller SDXL, 1024 px",
        "none stated on its page: ask its makers before you rely on it",
        "hf download etri-vilab/koala-1b-llava-cap",
    ),
    "stabilityai/stable-diffusion-3-medium-diffusers": KnownModel(
        "Stable Diffusion 3 medium, 1024 px",
        "Stability AI Community License: free below a yearly revenue, and gated",
        "hf download stabilityai/stable-diffusion-3-medium-diffusers",
    ),
    "stabilityai/stable-diffusion-3.5-medium": KnownModel(
        "Stable Diffusion 3.5 medium, 1024 px",
        "Stability AI Community License: free below a yearly revenue, and gated",
        "hf download stabilityai/stable-diffusion-3.5-medium",
    ),
    "stabilityai/stable-diffusion-3.5-large": KnownModel(
        "Stable Diffusion 3.5 large, 1024 px",
        "Stability AI Community License: free below a yearly revenue, and gated",
        "hf download stabilityai/stable-diffusion-3.5-large",
    ),
    "black-forest-labs/FLUX.1-dev": KnownModel(
        "FLUX.1 dev, 1024 px",
        "FLUX.1 [dev] Non-Commercial License, and gated",
        "hf download black-forest-labs/FLUX.1-dev",
    ),
    "black-forest-labs/FLUX.1-schnell": KnownModel(
        "FLUX.1 schnell, 1024 px, distilled to few steps: edits may be weak",
        "Apache 2.0",
        "hf download black-forest-labs/FLUX.1-schnell",
    ),
}

MOVED = {
    "runwayml/stable-diffusion-v1-5": "it was removed from the hub and its mirror is "
    "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stabilityai/stable-diffusion-2-1": "it was removed from the hub",
    "stabilityai/stable-diffusion-2-1-base": "it was removed from the hub",
}
"""Ids that the hub no longer has, and what became of them."""


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def bytes_told(count: int) -> str:
    """1234000000 as "1.2 GB"; never less than 1 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(round(count / 1e6), 1)} MB"
