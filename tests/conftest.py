"""Fixtures for every test: a tiny pipeline of each family, and its prior. No test touches the network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # Processes side by side with all cores' threads each would wait for one another at the end of every operation.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    from sdsedit.prior import UNetPrior

    Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline

FAMILIES = ("sd15", "sd21", "sdxl", "koala_1b", "koala_700m", "builtin_like")


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pipeline]:
    """tiny_pipeline("sd15"): the tiny diffusers pipeline of a family, built once a session. See tests/tiny.py."""
    import torch

    from tests import tiny

    torch.set_num_threads(min(2, torch.get_num_threads()))
    built: dict[str, Pipeline] = {}

    def get(family: str) -> Pipeline:
        if family not in built:
            with torch.inference_mode(False):  # a test that runs under it must not make the weights unfit for autograd
                built[family] = tiny.FAMILIES[family](tmp_path_factory.mktemp(family))
        return built[family]

    return get


@pytest.fixture(scope="session")
def tiny_prior(tiny_pipeline: Callable[[str], Pipeline]) -> Callable[[str], UNetPrior]:
    """tiny_prior("sd15"): the prior that shares the modules of that pipeline, fp32 on the CPU, built once."""
    from sdsedit.prior import UNetPrior

    built: dict[str, UNetPrior] = {}

    def get(family: str) -> UNetPrior:
        if family not in built:
            built[family] = UNetPrior.from_pipeline(tiny_pipeline(family), f"tiny {family}")
        return built[family]

    return get


@pytest.fixture(params=FAMILIES)
def any_prior(request: pytest.FixtureRequest, tiny_prior: Callable[[str], UNetPrior]) -> UNetPrior:
    """Each family in turn."""
    return tiny_prior(request.param)


@pytest.fixture(scope="session")
def sd15_prior(tiny_prior: Callable[[str], UNetPrior]) -> UNetPrior:
    """Stable Diffusion 1.5: epsilon, 8 pixels a latent cell, native 128, 77 tokens."""
    return tiny_prior("sd15")


@pytest.fixture(scope="session")
def sdxl_prior(tiny_prior: Callable[[str], UNetPrior]) -> UNetPrior:
    """SDXL: two text encoders, pooled text."""
    return tiny_prior("sdxl")


@pytest.fixture(scope="session")
def builtin_prior(tiny_prior: Callable[[str], UNetPrior]) -> UNetPrior:
    """The shape of the built-in model with random weights: v, 4 pixels a latent cell, native 128, 32 tokens."""
    return tiny_prior("builtin_like")


@pytest.fixture(scope="session")
def builtin_folder(tiny_pipeline: Callable[[str], Pipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of that model, for load_prior(str(folder)), the command line and the page."""
    from tests import tiny

    return tiny.saved(tiny_pipeline("builtin_like"), tmp_path_factory.mktemp("models") / "tiny-builtin")


@pytest.fixture(scope="session")
def sd_folder(tiny_pipeline: Callable[[str], Pipeline], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of Stable Diffusion 1.5's shape."""
    from tests import tiny

    return tiny.saved(tiny_pipeline("sd15"), tmp_path_factory.mktemp("models") / "tiny-sd15")
