"""Checkpoints in one .safetensors file, as their makers or people who train on write them.

Such a file has weights under their original names and nothing else: no settings, no vocabulary, sometimes only the
network (FLUX.1). diffusers knows the names; the rest comes from a diffusers folder of the same family.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sdsedit.errors import InputRefused, printable

# diffusers' word for a family -> who publishes its settings
_FAMILIES = {
    "v1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "v2": "stabilityai/stable-diffusion-2-1",
    "xl_base": "stabilityai/stable-diffusion-xl-base-1.0",
    "sd3": "stabilityai/stable-diffusion-3-medium-diffusers",
    "sd35_large": "stabilityai/stable-diffusion-3.5-large",
    "sd35_medium": "stabilityai/stable-diffusion-3.5-medium",
    "flux-dev": "black-forest-labs/FLUX.1-dev",
    "flux-schnell": "black-forest-labs/FLUX.1-schnell",
}
_NETWORKS = ("input_blocks.0.0.weight", "joint_blocks.0.", "double_blocks.0.")  # UNets, SD3, FLUX.1


class Checkpoint:
    """The weights of one file, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        """InputRefused: no such file, damaged, or of a family that is not known here."""
        from diffusers.loaders.single_file_utils import infer_diffusers_model_type
        from safetensors.torch import load_file

        self.path, self.name = path, printable(path.name)
        if not path.is_file():
            raise InputRefused(f"There is no file {self.name}: give a checkpoint, a diffusers folder or a model id.")
        if find_spec("accelerate") is None:  # without it a weight that the file lacks would be random, unnoticed
            raise InputRefused(f"{self.name} is a single file, which needs `pip install accelerate`.")
        try:
            self.weights = load_file(path)
            family = infer_diffusers_model_type(self.weights)
        except Exception as error:  # a file that is not safetensors raises the reader's own kinds
            raise InputRefused(f"{self.name} cannot be read: it is damaged or of another kind.") from error
        if family not in _FAMILIES or not any(key in name for name in self.weights for key in _NETWORKS):
            raise InputRefused(f"{self.name} is no checkpoint of a model that can be used.")
        self.publisher = _FAMILIES[family]

    def has(self, part: str, cls: Any) -> bool:
        """Whether a part of a pipeline is in the file."""
        from diffusers.loaders import single_file_utils

        if part in ("unet", "transformer"):
            return True
        if part == "vae":
            return any(name.startswith(("first_stage_model.", "vae.")) for name in self.weights)
        if cls.__name__ == "T5EncoderModel":
            return single_file_utils.is_t5_in_single_file(self.weights)
        return single_file_utils.is_clip_model_in_single_file(cls, self.weights)

    def read(self, part: str, cls: Any, settings: Path, dtype: torch.dtype) -> Any:
        """A part of a pipeline, with the settings of a diffusers folder. InputRefused: they do not belong together."""
        from diffusers.loaders import single_file_utils

        where: dict[str, Any] = {"subfolder": part, "torch_dtype": dtype, "local_files_only": True}
        weights = dict(self.weights)  # the converters take it apart
        try:
            if hasattr(cls, "from_single_file"):
                found = cls.from_single_file(weights, config=str(settings), **where)
            elif cls.__name__ == "T5EncoderModel":
                found = single_file_utils.create_diffusers_t5_model_from_checkpoint(
                    cls, weights, config=str(settings), **where
                )
            else:
                found = single_file_utils.create_diffusers_clip_model_from_ldm(
                    cls, weights, config=str(settings), **where
                )
        except Exception as error:  # the libraries raise a dozen kinds for weights of another shape
            raise InputRefused(
                f"The {part} of {self.name} does not fit the settings in {printable(settings.name)}."
            ) from error
        missing = sum(weight.is_meta for weight in found.state_dict().values())
        if missing:
            raise InputRefused(f"The {part} in {self.name} lacks {missing} of its weights.")
        return found
