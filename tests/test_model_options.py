"""model_options: what is asked for in loading a model, in one line and back; the engine's own names and limits."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from sdsedit.model_options import DECIDING, KERNELS, PRECISIONS, ModelOptions, is_single_file

FULL = ModelOptions(
    "org/name@1", ("a.safetensors:0.5", "b.safetensors"), ("zog.safetensors",), "here", "bf16", 3.5, device="cpu",
    offload="sequential", attention="math", compile=True, tiling=True, previews="taesd", allow_pickle=True,
)  # fmt: skip


def test_a_line_and_back_keeps_what_decides_the_result_and_no_more():
    again = ModelOptions.parse(FULL.dump())
    assert {name: getattr(again, name) for name in ("name", *DECIDING)} == {
        name: getattr(FULL, name) for name in ("name", *DECIDING)
    }
    assert again.device is None and not again.offload and not again.compile and again.attention is None
    assert ModelOptions("builtin", device="cpu", tiling=True).dump() == "builtin"
    assert ModelOptions.parse("/models/{x}") == ModelOptions("/models/{x}")


def test_one_model_is_one_line_however_its_files_are_written(tmp_path: Path):
    lines = {
        ModelOptions(lora=(given,)).moved(tmp_path).dump()
        for given in ("x.safetensors:0.5", "x.safetensors:.50", f"{tmp_path}/x.safetensors:5e-1")
    }
    assert len(lines) == 1 and f"{tmp_path}/x.safetensors:0.5" in lines.pop()
    assert ModelOptions(lora=("x.safetensors",)).moved(tmp_path).lora == (f"{tmp_path}/x.safetensors:1.0",)


@pytest.mark.parametrize("name", DECIDING)
def test_each_of_what_decides_makes_another_line(name: str):
    usual = ModelOptions()
    assert ModelOptions(**{name: getattr(FULL, name)}).dump() != usual.dump() == "builtin"


def test_names_are_the_engine_s():
    from sdsedit.prior.load import _DTYPES
    from sdsedit.prior.running import AttentionName

    assert get_args(AttentionName) == KERNELS and tuple(_DTYPES) == PRECISIONS
    assert is_single_file("A.SafeTensors") and not is_single_file("a.bin")
