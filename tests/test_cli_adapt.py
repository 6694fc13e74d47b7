"""The options of models from elsewhere, from the command to the prior and the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sdsedit import errors
from sdsedit.cli import main

LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def edit(sd_folder: Path, tmp_path: Path):
    """edit(*options) runs a one-step edit with a tiny Stable Diffusion 1.5: its exit code."""
    Image.effect_noise((64, 64), 60).convert("RGB").save(tmp_path / "in.png")
    common = ["image", str(tmp_path / "in.png"), "--model", str(sd_folder), "--device", "cpu", "--steps", "1"]
    common += ["--source", "a cat", "--target", "a <toy> cat", "--size", "64", "--output", str(tmp_path / "out.png")]
    return lambda *options: main([*common, "--overwrite", *options])


def test_a_lora_and_a_word_reach_the_model_the_recipe_and_a_replay(edit, sd_folder, tmp_path, capsys):
    save_file({f"{LAYER}.lora_A.weight": torch.ones(2, 8), f"{LAYER}.lora_B.weight": torch.ones(8, 2)},
              tmp_path / "style.safetensors")  # fmt: skip
    save_file({"<toy>": torch.ones(1, 16)}, tmp_path / "toy.safetensors")
    options = ("--lora", f"{tmp_path}/style.safetensors:0.5", "--embedding", f"{tmp_path}/toy.safetensors")
    assert edit(*options, "--precision", "bf16", "--tiling", "--attention-kernel", "math") == errors.OK
    recipe = json.loads((tmp_path / "out.json").read_text())
    assert recipe["model"]["adapted"] == ["lora style.safetensors:0.5", "word <toy>"]
    assert recipe["model"]["dtype"] == "bfloat16" and str(tmp_path) not in json.dumps(recipe["model"])
    assert "Words looked for: toy" in capsys.readouterr().out
    options = recipe["model"]["options"]
    assert [(each["name"], each["scale"]) for each in options.pop("lora")] == [("style.safetensors", 0.5)]
    assert [each["name"] for each in options.pop("embedding")] == ["toy.safetensors"]
    assert options == {"precision": "bf16", "attention": "math", "tiling": True}
    again = ["replay", str(tmp_path / "out.png"), "--model", str(sd_folder), "--device", "cpu"]
    assert main(again) == errors.OK  # the files are found beside the picture
    said = capsys.readouterr().out
    assert "Compared: the same, pixel for pixel" in said and "Differs" not in said
    assert main([*again, "--overwrite", "--precision", "fp32"]) == errors.OK
    assert "Differs: model dtype was bfloat16, is float32" in capsys.readouterr().out


@pytest.mark.parametrize("offload", ["--offload", "--offload-layers"])
def test_offload_of_either_kind_edits_alike(edit, offload, tmp_path):
    assert edit() == errors.OK
    plain = (tmp_path / "out.png").read_bytes()
    assert "adapted" not in json.loads((tmp_path / "out.json").read_text())["model"]
    assert edit(offload) == errors.OK
    assert list(Image.open(tmp_path / "out.png").getdata()) == list(Image.open(_written(plain, tmp_path)).getdata())


def _written(data: bytes, folder: Path) -> Path:
    (folder / "plain.png").write_bytes(data)
    return folder / "plain.png"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--lora", "missing.safetensors"), "There is no LoRA file missing.safetensors"),
        (("--lora", "x.safetensors:many"), "The scale of a LoRA is a number"),
        (("--embedding", "missing.safetensors"), "no textual inversion file missing.safetensors"),
        (("--previews", "missing"), "no tiny autoencoder in missing"),
        (("--settings", "missing"), "for a single .safetensors file"),
        (("--precision", "fp8"), "invalid choice"),
        (("--distilled-guidance", "-1"), "distilled-guidance"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(edit, options, says, capsys):
    assert edit(*options) == errors.USAGE
    assert says in capsys.readouterr().err
