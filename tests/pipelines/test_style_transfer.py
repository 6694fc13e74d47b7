"""pipelines/style_transfer.py as people in diffusers use it: through `DiffusionPipeline.from_pretrained`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdsedit.style import StyleConfig, StyleRequest, style

FILE = Path(__file__).resolve().parents[2] / "pipelines" / "style_transfer.py"
FEW = {"num_inference_steps": 2, "size": 64}


@pytest.fixture(scope="module")
def pipe(builtin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from diffusers import DiffusionPipeline
    from diffusers.utils import dynamic_modules_utils

    with pytest.MonkeyPatch.context() as patch:  # diffusers copies our file to a cache, here a folder of the test's
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.syspath_prepend(dynamic_modules_utils.HF_MODULES_CACHE)
        loaded = DiffusionPipeline.from_pretrained(builtin_folder, custom_pipeline=str(FILE), trust_remote_code=True)
        loaded.set_progress_bar_config(disable=True)
        yield loaded


def picture(seed: int = 0, width: int = 40, height: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255


def test_it_does_what_the_library_does(pipe: Any):
    from sdsedit.prior import load_prior

    seen: list[tuple[int, int]] = []

    def look(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> None:
        seen.append((step, timestep))

    out = pipe([picture(1), picture(2)], image=picture(), seed=4, output_type="pt", callback_on_step_end=look, **FEW)
    request = StyleRequest((tensor(picture(1)), tensor(picture(2))), tensor(picture()))
    prior = load_prior(str(pipe.config["_name_or_path"]), device="cpu")
    expected = style(prior, request, StyleConfig(steps=2, size=64, seed=4))
    assert torch.equal(out.images, expected.image) and out.losses == list(expected.history)
    assert seen == [(0, 500), (1, 0)] and out.stopped == ""


def test_kinds_of_input_and_output(pipe: Any):
    array = np.asarray(picture(1))
    shown = np.asarray(pipe(picture(1), image=picture(), **FEW).images[0])
    assert shown.shape == (32, 40, 3)
    for given in (array, array.astype(np.float32) / 255, tensor(picture(1)), tensor(picture(1))[0]):
        (made,) = pipe(given, image=picture(), output_type="np", return_dict=False, **FEW)
        assert made.shape == (1, 32, 40, 3) and (np.round(made[0] * 255) == shown).all()


def test_words_textures_and_regions(pipe: Any):
    assert pipe(picture(1), prompt="a cat", guidance_scale=2.0, **FEW).images[0].size == (64, 64)
    assert pipe(picture(1), height=36, width=70, **FEW).images[0].size == (70, 36)
    half = np.zeros((32, 40, 3), np.uint8)
    half[:, 20:] = (255, 0, 0)
    parts = {"image_regions": half, "reference_regions": [half]}
    apart = pipe(picture(1), image=picture(), output_type="pt", **parts, **FEW).images
    assert not torch.equal(apart, pipe(picture(1), image=picture(), output_type="pt", **FEW).images)


def test_it_can_be_stopped(pipe: Any):
    def stop(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> None:
        pipe._interrupt = True

    out = pipe(picture(1), image=picture(), num_inference_steps=9, size=64, callback_on_step_end=stop)
    assert out.stopped == "cancelled" and len(out.losses) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "Say one of: a content picture"),
        ({"height": 64}, "A texture needs a height and a width"),
        ({"image": picture(), "output_type": "latent"}, 'must be "pil", "np" or "pt"'),
        ({"image": picture(), "num_inference_steps": 0}, "steps is 0"),
        ({"image": np.zeros((8, 8), np.uint8)}, "A picture must be PIL"),
    ],
)
def test_what_is_refused(pipe: Any, given: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        pipe(picture(1), **given)
