"""pipelines/splat_edit.py as people in diffusers use it: through `DiffusionPipeline.from_pretrained`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.little_scene import little_scene

FILE = Path(__file__).resolve().parents[2] / "pipelines" / "splat_edit.py"
ASK = {
    "prompt": "a cat wearing a crown", "source_prompt": "a cat", "kind": "restyle", "num_inference_steps": 2,
    "num_views": 4,
}  # fmt: skip
ARRAYS = ("means", "quats", "log_scales", "logits", "sh")


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


def test_it_is_a_pipeline_and_edits_as_sdsedit_does(pipe: Any, builtin_folder: Path, tmp_path: Path):
    from diffusers import DiffusionPipeline

    from sdsedit import Edit, load_prior, read_splats, write_splats
    from sdsedit.splats.change import SplatConfig, change

    assert isinstance(pipe, DiffusionPipeline) and type(pipe).__name__ == "SplatEditPipeline"
    write_splats(tmp_path / "ball.ply", little_scene())
    out = pipe(str(tmp_path / "ball.ply"), **ASK, seed=9)
    prior = load_prior(str(builtin_folder), device="cpu")
    request = Edit(target="a cat wearing a crown", source="a cat")
    expected = change(
        read_splats(tmp_path / "ball.ply"), prior, request, SplatConfig(kind="restyle", steps=2, seed=9, views=4)
    )
    for name in ARRAYS:
        assert (getattr(out.splats, name) == getattr(expected.splats, name)).all(), name
    assert (out.weight == expected.weight).all() and out.kept == expected.kept and out.kind == "restyle"
    assert out.stopped == "" and out.max_change_outside == 0
    assert [image.size for image in out.images + out.before] == [(128, 128)] * 2 and out.images[0].mode == "RGB"


def test_a_reference_gives_its_look(pipe: Any, builtin_folder: Path):
    from PIL import Image

    from sdsedit import Edit, load_prior
    from sdsedit.splats.change import SplatConfig, change

    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    ask = {**ASK, "num_inference_steps": 1, "size": 64}
    out = pipe(little_scene(), **ask, reference=[Image.fromarray(pixels)], style_weight=3.0)
    look = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    request = Edit(target="a cat wearing a crown", source="a cat", references=(look,))
    config = SplatConfig(kind="restyle", steps=1, views=4, size=64, style_weight=3.0)
    expected = change(little_scene(), load_prior(str(builtin_folder), device="cpu"), request, config)
    assert (out.splats.sh == expected.splats.sh).all() and out.changed > 0 and out.max_change_outside == 0


def test_cameras_kinds_of_output_and_the_callback(pipe: Any):
    from sdsedit.camera import orbit

    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def look(pipe: Any, piece: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((piece, timestep, tuple(tensors["image"].shape)))
        pipe._interrupt = len(seen) == 3
        return tensors

    cameras = orbit((0, 0, 0), 3.0, 15.0, 4, 128, 128)
    out = pipe(little_scene(), **ASK, cameras=cameras, output_type="np", callback_on_step_end=look)
    assert len(seen) == 3 and all(timestep == 0 and shape == (1, 3, 128, 128) for _, timestep, shape in seen)
    assert [piece for piece, _, _ in seen] == sorted(piece for piece, _, _ in seen)
    assert out.stopped == "cancelled" and out.kept == 330 and out.changed == out.added == out.removed == 0
    assert out.images.shape == (1, 128, 128, 3) and (out.images == out.before).all()


def test_generator_and_tuples(pipe: Any):
    def made() -> Any:
        one = torch.Generator().manual_seed(3)
        return pipe(little_scene(), **ASK, generator=one, output_type="pt", return_dict=False)

    splats, images = made()
    assert images.shape == (1, 3, 128, 128) and np.array_equal(splats.sh, made()[0].sh)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"prompt": ""}, "The target prompt is empty"),
        ({"splats": "none.ply"}, "none.ply is not there"),
        ({"cameras": "none.json"}, "none.json is not there"),
        ({"kind": "magic"}, "kind is 'magic'; it must be one of recolour"),
        ({"num_views": 3}, "views is 3; it must be a whole number from 4 to 256"),
        ({"distillation": float("nan")}, "distillation is nan"),
        ({"num_inference_steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"style_weight": 11}, "style_weight is 11; it must be a number from 0 to 10"),
        ({"reference": torch.zeros(1, 1, 8, 8)}, "A picture must be PIL, an array"),
        ({"output_type": "ply"}, "output_type is 'ply'"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, 'can only hold "image"'),
    ],
)
def test_wrong_values_are_one_sentence(pipe: Any, wrong: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        pipe(**{"splats": little_scene(), **ASK, **wrong})
    assert sentence in str(caught.value)
