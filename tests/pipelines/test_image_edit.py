"""pipelines/image_edit.py as people in diffusers use it: through `DiffusionPipeline.from_pretrained`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

FILE = Path(__file__).resolve().parents[2] / "pipelines" / "image_edit.py"
ASK = {"prompt": "a cat wearing a crown", "source_prompt": "a cat", "num_inference_steps": 3}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """load(folder): the pipeline over that model. diffusers copies our file to a cache, here a folder of the test's."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import dynamic_modules_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.syspath_prepend(dynamic_modules_utils.HF_MODULES_CACHE)

        def get(folder: Path, file: Path = FILE, **settings: Any) -> Any:
            pipe = DiffusionPipeline.from_pretrained(
                folder, custom_pipeline=str(file), trust_remote_code=True, **settings
            )
            pipe.set_progress_bar_config(disable=True)
            return pipe

        yield get


@pytest.fixture(scope="module")
def pipe(load: Callable[..., Any], builtin_folder: Path) -> Any:
    return load(builtin_folder)


def picture(width: int = 70, height: int = 50) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_it_is_a_pipeline_and_gives_a_picture_of_the_same_size(pipe: Any):
    from diffusers import DiffusionPipeline

    assert isinstance(pipe, DiffusionPipeline) and type(pipe).__name__ == "ImageEditPipeline"
    out = pipe(picture(), **ASK)
    assert out.images[0].size == out.masks[0].size == out.heatmaps[0].size == (70, 50)
    assert out.images[0].mode == "RGB" and out.masks[0].mode == "L"
    assert out.stopped == [""] and len(out.kept_pixels) == len(out.notes) == 1
    assert isinstance(pipe(picture(), **ASK, return_dict=False), tuple)


def test_it_is_the_same_edit_as_sdsedit_makes(pipe: Any, builtin_folder: Path):
    from sdsedit import Edit, EditConfig, load_prior
    from sdsedit.edit import edit

    image = torch.rand(1, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    prior = load_prior(str(builtin_folder), device="cpu")
    expected = edit(image, prior, Edit("a cat wearing a crown", "a cat"), EditConfig(steps=3, seed=9))
    assert torch.equal(pipe(image, **ASK, seed=9, output_type="pt").images, expected.image)


@pytest.mark.parametrize(
    "given",
    [
        picture(),
        np.asarray(picture()),
        np.asarray(picture(), dtype=np.float32) / 255,
        torch.from_numpy(np.array(picture())).permute(2, 0, 1) / 255,
        torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 255,
    ],
    ids=["PIL", "uint8", "floats", "3HW", "13HW"],
)
def test_kinds_of_input_and_output(pipe: Any, given: Any):
    shown = np.asarray(pipe(given, **ASK).images[0])
    array = pipe(given, **ASK, output_type="np").images
    tensor = pipe(given, **ASK, output_type="pt").images
    assert array.shape == (1, 50, 70, 3) and tensor.shape == (1, 3, 50, 70)
    assert (np.round(array[0] * 255) == shown).all()
    assert torch.equal(tensor[0].permute(1, 2, 0), torch.from_numpy(array[0]))
    assert (shown == np.asarray(pipe(picture(), **ASK).images[0])).all()


def test_lists_give_one_result_each(pipe: Any):
    out = pipe([picture(), picture(40, 40)], ["a cat", "a dog"], source_prompt="a bird", num_inference_steps=2)
    assert [image.size for image in out.images] == [(70, 50), (40, 40)]
    assert pipe([picture()] * 2, "a cat", num_inference_steps=1, output_type="pt").images.shape == (2, 3, 50, 70)


def test_a_mask_holds(pipe: Any):
    allowed = np.zeros((50, 70), np.uint8)
    allowed[10:30, 20:50] = 255
    for mask in (Image.fromarray(allowed), allowed, torch.from_numpy(allowed)[None] / 255):
        out = pipe(picture(), **ASK, mask_image=mask, strength=5.0)
        same = (np.asarray(out.images[0]) == np.asarray(picture())).all(-1)
        assert same[allowed == 0].all() and not same.all()
        assert out.kept_pixels[0] >= (allowed == 0).sum()


def test_generator_and_seed(pipe: Any):
    def made(**how: Any) -> torch.Tensor:
        return pipe(picture(), **ASK, output_type="pt", **how).images

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    assert torch.equal(made(seed=3), made(seed=3)) and not torch.equal(made(seed=3), made(seed=4))
    assert torch.equal(made(generator=generator()), made(generator=generator()))
    one = generator()
    assert not torch.equal(made(generator=one), made(generator=one))  # its state moves on


def test_a_method_by_name_or_with_settings(pipe: Any):
    from sdsedit.guidance import METHODS

    named = pipe(picture(), **ASK, method="dds", output_type="pt").images
    assert torch.equal(named, pipe(picture(), **ASK, method=METHODS["dds"](), output_type="pt").images)
    assert not torch.equal(named, pipe(picture(), **ASK, method=METHODS["dds"](scale=1.0), output_type="pt").images)


def test_callback_sees_every_step_and_can_stop(pipe: Any):
    seen: list[tuple[int, int, tuple[int, ...]]] = []

    def look(pipe: Any, step: int, timestep: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((step, timestep, tuple(tensors["latents"].shape)))
        pipe._interrupt = step == 1
        return tensors

    out = pipe(picture(), "a cat", num_inference_steps=50, callback_on_step_end=look)
    assert [step for step, _, _ in seen] == [0, 1] and out.stopped == ["cancelled"]
    assert all(0 <= timestep <= 1000 and shape[:2] == (1, 4) for _, timestep, shape in seen)
    assert out.images[0].size == (70, 50)
    assert pipe(picture(), **ASK).stopped == [""]  # the next call is not stopped


def test_the_progress_bar_is_diffusers(pipe: Any, capsys: pytest.CaptureFixture[str]):
    pipe.set_progress_bar_config(desc="editing", disable=False)
    pipe(picture(), **ASK)
    assert "editing: 100%" in capsys.readouterr().err and not pipe.set_progress_bar_config(disable=True)


def test_to_and_offload(load: Callable[..., Any], builtin_folder: Path):
    """On a machine without a GPU the CPU stands for it: the same path through the code, and the same picture."""
    pipe = load(builtin_folder)
    before = pipe(picture(), **ASK, output_type="pt").images
    assert pipe.to("cpu") is pipe and pipe.device.type == "cpu"
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pipe(picture(), **ASK, output_type="pt").images, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_offload_to_a_gpu(load: Callable[..., Any], sd_folder: Path):
    pipe = load(sd_folder)
    pipe.enable_model_cpu_offload()
    assert pipe(picture(), **ASK).images[0].size == (70, 50)
    assert {each.device.type for each in (pipe.unet, pipe.vae, pipe.text_encoder)} == {"cpu"}


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "koala_700m"])
def test_every_family(load: Callable[..., Any], tiny_pipeline: Callable[[str], Any], tmp_path: Path, family: str):
    pipe = load(tiny_pipeline(family).save_pretrained(tmp_path) or tmp_path)
    assert pipe(picture(), **ASK).images[0].size == (70, 50)
    assert bool(pipe.config.force_zeros_for_empty_prompt) == (family in ("sdxl", "koala_700m"))


@pytest.mark.skipif(find_spec("peft") is None, reason="diffusers loads LoRAs with peft: pip install peft")
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_lora_that_diffusers_has_loaded_counts(
    load: Callable[..., Any], tiny_pipeline: Callable[[str], Any], tmp_path: Path, family: str
):
    """Its layers are peft's, around the model's own; the edit is that of `--lora`, which adds to the weights."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    from sdsedit import Edit, EditConfig, load_prior
    from sdsedit.edit import edit
    from tests import tiny

    kind: Any = StableDiffusionPipeline if family == "sd15" else StableDiffusionXLPipeline
    folder = tiny.saved(tiny_pipeline(family), tmp_path / "model")
    layer = next(
        name for name, module in tiny_pipeline(family).unet.named_modules()
        if name.endswith("attn2.to_k") and isinstance(module, torch.nn.Linear)
    )  # fmt: skip
    rows, columns = tiny_pipeline(family).unet.get_submodule(layer).weight.shape
    generator = torch.Generator().manual_seed(0)
    halves = {f"{layer}.lora_A.weight": torch.randn(2, columns, generator=generator),
              f"{layer}.lora_B.weight": torch.randn(rows, 2, generator=generator)}  # fmt: skip
    kind.save_lora_weights(tmp_path, unet_lora_layers=halves, weight_name="toy.safetensors")
    usual = kind.from_pretrained(folder)
    usual.load_lora_weights(tmp_path, weight_name="toy.safetensors")
    pipe = load(folder, unet=usual.unet)
    image = torch.rand(1, 3, 48, 48, generator=generator)
    made = pipe(image, **ASK, seed=9, size=64, output_type="pt").images
    request, config = Edit("a cat wearing a crown", "a cat"), EditConfig(steps=3, seed=9, size=64)
    with_it, without = (
        edit(image, load_prior(str(folder), device="cpu", lora=lora), request, config).image
        for lora in ([f"{tmp_path}/toy.safetensors"], [])
    )
    torch.testing.assert_close(made, with_it, atol=2e-4, rtol=0)
    assert (made - without).abs().max() > 1e-3


def test_a_folder_with_pipeline_py(load: Callable[..., Any], builtin_folder: Path, tmp_path: Path):
    (tmp_path / "pipeline.py").write_text(FILE.read_text())
    assert type(load(builtin_folder, tmp_path)).__name__ == "ImageEditPipeline"


def test_diffusers_asks_for_trust(builtin_folder: Path):
    """What the docstring says: without trust_remote_code=True diffusers runs no file of ours."""
    from diffusers import DiffusionPipeline

    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(builtin_folder, custom_pipeline=str(FILE))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"prompt": ""}, "target prompt is empty"),
        ({"prompt": ["a", "b"]}, "1 pictures need as many prompts"),
        ({"method": "magic"}, "method is 'magic'; it must be one of lusd, "),
        ({"strength": float("nan")}, "strength is nan; it must be a number from 0.1 to 10"),
        ({"num_inference_steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, 'can only hold "latents"'),
        ({"image": np.zeros((8, 8, 4), np.uint8)}, "A picture must be PIL"),
        ({"image": torch.full((3, 8, 8), 2.0)}, "from 0 to 1"),
        ({"mask_image": np.zeros((50, 70), np.uint8)}, "mask is empty"),
        ({"mask_image": np.ones((5, 5), np.float32)}, "the picture 70x50"),
        ({"words": ["hat"]}, "hat"),
    ],
)
def test_wrong_values_are_one_sentence(pipe: Any, wrong: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        pipe(**{"image": picture(), **ASK, **wrong})
    assert sentence in str(caught.value)
