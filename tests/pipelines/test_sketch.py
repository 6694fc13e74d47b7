"""pipelines/sketch.py as people in diffusers use it: through `DiffusionPipeline.from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FILE = Path(__file__).resolve().parents[2] / "pipelines" / "sketch.py"
ASK = {"prompt": "a cat", "num_strokes": 6, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe(builtin_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The pipeline over the tiny model. diffusers copies our file to a cache, here a folder of the test's."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import dynamic_modules_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.syspath_prepend(dynamic_modules_utils.HF_MODULES_CACHE)
        pipe = DiffusionPipeline.from_pretrained(builtin_folder, custom_pipeline=str(FILE), trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_a_pipeline_and_draws_what_sdsedit_draws(pipe: Any, builtin_folder: Path):
    from diffusers import DiffusionPipeline

    from sdsedit import load_prior
    from sdsedit.sketch.draw import SketchConfig, sketch
    from sdsedit.sketch.files import sketch_svg

    assert isinstance(pipe, DiffusionPipeline) and type(pipe).__name__ == "SketchPipeline"
    out = pipe(**ASK, seed=9, style="colour", width=2.0)
    prior = load_prior(str(builtin_folder), device="cpu")
    expected = sketch("a cat", prior, SketchConfig(strokes=6, style="colour", width=2.0, steps=2, seed=9))
    assert out.svgs == [sketch_svg(expected).decode()]
    assert out.images[0].size == (512, 512) and out.images[0].mode == "RGB" and np.asarray(out.images[0]).std() > 0
    assert out.guides[0].size == (128, 128)
    assert out.stopped == [""] and out.dropped == [expected.dropped] and out.shares == [expected.shares]


def test_lists_kinds_of_output_and_the_callback(pipe: Any):
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def look(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((step, timestep, tuple(tensors["image"].shape)))
        pipe._interrupt = len(seen) == 3
        return tensors

    ask = {**ASK, "prompt": ["a cat", "a dog"], "num_inference_steps": 2}
    out = pipe(**ask, output_type="np", callback_on_step_end=look)
    assert seen == [(0, 0, (1, 3, 128, 128)), (1, 0, (1, 3, 128, 128)), (0, 0, (1, 3, 128, 128))]
    assert out.stopped == ["", "cancelled"] and len(out.svgs) == 2 and 'id="dog' in out.svgs[1]
    assert out.images.shape == (2, 512, 512, 3) and 0 <= out.images.min() < out.images.max() <= 1


def test_generator_and_tuples(pipe: Any):
    def made() -> tuple[torch.Tensor, list[str]]:
        one = torch.Generator().manual_seed(3)
        return pipe("a cat", 4, "icon", num_inference_steps=1, generator=one, output_type="pt", return_dict=False)

    images, svgs = made()
    assert images.shape == (1, 3, 512, 512) and svgs == made()[1]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": "the of"}, "names no thing to draw"),
        ({"num_strokes": 3}, "strokes is 3; it must be a whole number from 4 to 2048"),
        ({"style": "crayon"}, "style is 'crayon'; it must be one of ink, colour, icon"),
        ({"distillation": float("nan")}, "distillation is nan"),
        ({"num_inference_steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"output_type": "svg"}, "output_type is 'svg'"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, 'can only hold "image"'),
    ],
)
def test_wrong_values_are_one_sentence(pipe: Any, wrong: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        pipe(**{**ASK, **wrong})
    assert sentence in str(caught.value)
