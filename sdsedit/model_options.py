"""Which model, and how it is loaded: the same for a command, a batch and the page. Needs no torch.

Some of it decides what comes out (a LoRA, taught words, the precision): a batch puts it into a job's key, a recipe says
it, a replay takes it from there. The rest only says how the network runs (offloading, a kernel, tiles), with results
that are equal but for rounding, and at the seams of tiles.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from sdsedit.errors import InputRefused, printable

Precision = Literal["fp32", "fp16", "bf16"]
Kernel = Literal["sdpa", "flash", "efficient", "cudnn", "math", "xformers"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
KERNELS: tuple[str, ...] = get_args(Kernel)
MAX_DISTILLED_GUIDANCE = 100.0
MAX_SCALE = 10.0  # of a LoRA, either way
MAX_FILES = 16  # LoRAs, or files of words


@dataclass(frozen=True)
class ModelOptions:
    """A model and what is asked for in loading it; prior.load.load_prior says more of each."""

    name: str = "builtin"
    lora: tuple[str, ...] = ()  # "FILE" or "FILE:SCALE"
    embedding: tuple[str, ...] = ()  # files of textual inversion
    settings: str | None = None  # of a single file: a folder or an id
    precision: Precision | None = None
    distilled_guidance: float = 1.0
    device: str | None = None
    offload: bool | Literal["sequential"] = False
    attention: Kernel | None = None
    compile: bool = False
    tiling: bool = False
    previews: str | None = None
    allow_pickle: bool = False

    @property
    def deciding(self) -> dict[str, Any]:
        """What of it decides the result, where that is not the usual."""
        return {name: getattr(self, name) for name in DECIDING if getattr(self, name) != getattr(_USUAL, name)}

    def dump(self) -> str:
        """The model and what decides its results, in one line: the same model is the same line. Its name, if that is
        all there is to say."""
        return self.name if not self.deciding else json.dumps({"name": self.name, **self.deciding}, sort_keys=True)

    @classmethod
    def parse(cls, line: str) -> ModelOptions:
        """What `dump` gave."""
        if not line.startswith("{"):
            return cls(line)
        said: dict[str, Any] = json.loads(line)
        for name in ("lora", "embedding"):
            said[name] = tuple(said.get(name, ()))
        return cls(**said)

    def moved(self, folder: Path) -> ModelOptions:
        """With files' names that are not absolute taken from there."""
        scaled = [parse_lora(given) for given in self.lora]
        return replace(
            self,
            lora=tuple(f"{folder / file}:{scale!r}" for file, scale in scaled),
            embedding=tuple(str(folder / file) for file in self.embedding),
        )


DECIDING = ("lora", "embedding", "settings", "precision", "distilled_guidance")
_USUAL = ModelOptions()


def is_single_file(name: str) -> bool:
    """Whether a model's name is that of a checkpoint in one file."""
    return name.lower().endswith(".safetensors")


def parse_lora(given: str) -> tuple[str, float]:
    """ "file.safetensors:0.8" -> ("file.safetensors", 0.8); without a number it is 1. InputRefused: no such number."""
    path, colon, scale = given.rpartition(":")
    if not colon or scale.endswith(".safetensors") or "/" in scale or "\\" in scale:
        return given, 1.0
    try:
        number = float(scale)
    except ValueError:
        number = float("nan")
    if not -MAX_SCALE <= number <= MAX_SCALE:  # not a number is neither
        raise InputRefused(
            f"The scale of a LoRA is a number from -{MAX_SCALE:g} to {MAX_SCALE:g}; got {printable(scale, 40)}."
        )
    return path, number


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
