"""prior.single: a checkpoint in one file is the model that it was written from, or a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdsedit.errors import InputRefused
from sdsedit.prior import ModelNotFound, load_prior
from sdsedit.prior.single import Checkpoint

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}  # fmt: skip


def original_unet(unet):
    """The weights of a UNet by the names in which Stable Diffusion 1.5 was published."""
    layers = unet.config.layers_per_block + 1
    whole = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip

    def renamed(name):
        for new, old in whole.items():
            if name.startswith(new + "."):
                return name.replace(new, old, 1)
        name = name.replace("mid_block.attentions.0", "middle_block.1")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}", name)
        if m := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name):
            side, block, kind, j, rest = m[1], int(m[2]), m[3], int(m[4]), m[5]
            place = 0 if kind in ("resnets", "downsamplers") else 1
            if kind.endswith("samplers"):
                j = layers - 1
                rest = rest.replace("conv.", "op.") if side == "down" else rest
                place += side == "up" and hasattr(unet.up_blocks[block], "attentions")
            first = block * layers + (1 if side == "down" else 0)
            name = f"{'input' if side == 'down' else 'output'}_blocks.{first + j}.{place}.{rest}"
        for new, old in RESNET.items():
            name = re.sub(rf"\.{new}\.(weight|bias)$", rf".{old}.\1", name) if "transformer" not in name else name
        return name

    return {"model.diffusion_model." + renamed(name): value for name, value in unet.state_dict().items()}


def original_vae(vae):
    levels = len(vae.config.block_out_channels)
    tensors = {}
    for name, value in vae.state_dict().items():
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out")
            name = re.sub(r"to_(q|k|v)", r"\1", name)
            value = value[..., None, None] if value.ndim == 2 else value  # it was a 1 x 1 convolution
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        tensors["first_stage_model." + name] = value
    return tensors


def original_text(encoder):
    prefix = "cond_stage_model.transformer."
    names = {name: name if name.startswith("text_model.") else "text_model." + name for name in encoder.state_dict()}
    return {prefix + names[name]: value for name, value in encoder.state_dict().items()}


@pytest.fixture(scope="module")
def parts(tiny_pipeline):
    pipe = tiny_pipeline("sd15")
    return original_unet(pipe.unet), original_vae(pipe.vae), original_text(pipe.text_encoder)


def write(path: Path, *tensors):
    save_file({name: value.contiguous() for part in tensors for name, value in part.items()}, path)
    return str(path)


@torch.inference_mode()
def predict(prior):
    z_t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    return prior.predict(z_t, torch.tensor([0.3, 0.8]), prior.encode_text(["a cat", ""])).eps


def test_a_single_file_is_the_model_that_it_was_written_from(parts, sd_folder, sd15_prior, tmp_path):
    prior = load_prior(write(tmp_path / "model.safetensors", *parts), device="cpu", settings=str(sd_folder))
    assert prior.name == "model.safetensors" and prior.dtype == torch.float32
    torch.testing.assert_close(predict(prior), predict(sd15_prior))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(prior.encode(image), sd15_prior.encode(image))
        torch.testing.assert_close(prior.decode(prior.encode(image)), sd15_prior.decode(sd15_prior.encode(image)))
    half = load_prior(str(tmp_path / "model.safetensors"), device="cpu", settings=str(sd_folder), dtype=torch.bfloat16)
    assert half.dtype == half.text_encoders[0].dtype == torch.bfloat16 and half.vae.dtype == torch.float32


def test_what_the_file_lacks_comes_from_the_settings_folder(parts, sd_folder, sd15_prior, tmp_path):
    network = {name: value * 1.5 for name, value in parts[0].items()}
    prior = load_prior(write(tmp_path / "unet.safetensors", network), device="cpu", settings=str(sd_folder))
    torch.testing.assert_close(prior.unet.conv_in.weight, sd15_prior.unet.conv_in.weight * 1.5)
    z = torch.zeros(1, 4, 8, 8)
    assert torch.equal(prior.decode(z), sd15_prior.decode(z))


def test_a_part_that_is_incomplete_or_of_another_shape_is_refused(parts, sd_folder, tmp_path):
    short = dict(parts[0])
    short.pop("model.diffusion_model.out.2.bias")
    with pytest.raises(InputRefused, match=r"The unet (in|of) short.safetensors"):
        load_prior(write(tmp_path / "short.safetensors", short), device="cpu", settings=str(sd_folder))
    wide = {name: torch.cat([value, value]) if value.ndim == 4 else value for name, value in parts[0].items()}
    with pytest.raises(InputRefused, match="does not fit the settings in tiny-sd15"):
        load_prior(write(tmp_path / "wide.safetensors", wide), device="cpu", settings=str(sd_folder))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputRefused, match=r"There is no file missing\.safetensors") as error:
        load_prior(str(tmp_path / "missing.safetensors"), device="cpu")
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "torn.safetensors").write_bytes(b"\x08\x00")
    with pytest.raises(InputRefused, match="damaged or of another kind"):
        load_prior(str(tmp_path / "torn.safetensors"), device="cpu")
    with pytest.raises(InputRefused, match="no checkpoint of a model that can be used"):
        load_prior(write(tmp_path / "lora.safetensors", {"lora.up.weight": torch.zeros(2, 2)}), device="cpu")


def test_without_a_settings_folder_the_publishers_is_asked_for(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    file = write(tmp_path / "model.safetensors", parts[0])
    assert Checkpoint(Path(file)).publisher == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    with pytest.raises(ModelNotFound, match="stable-diffusion-v1-5/stable-diffusion-v1-5"):
        load_prior(file, device="cpu")


@pytest.mark.parametrize(
    ("names", "publisher"),
    [
        (["double_blocks.0.img_attn.norm.key_norm.scale", "guidance_in.in_layer.bias"], "black-forest-labs/FLUX.1-dev"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "black-forest-labs/FLUX.1-schnell"),
    ],
)
def test_families_are_told_by_their_names(names, publisher, tmp_path):
    tensors = {name: torch.zeros(1) for name in names} | {"img_in.weight": torch.zeros(8, 64)}
    file = write(tmp_path / "flux.safetensors", tensors, {"double_blocks.0.img_attn.qkv.bias": torch.zeros(1)})
    assert Checkpoint(Path(file)).publisher == publisher
