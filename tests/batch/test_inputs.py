"""What is known of the inputs before a model is loaded; what is not looked at twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdsedit.batch import inputs
from sdsedit.batch.manifest import ManifestRefused, read_manifest
from sdsedit.batch.store import Store
from sdsedit.model_options import ModelOptions

Write = Callable[..., Path]


def swap(path: Path, other: Path) -> None:
    """Other bytes in a file, of one size and with one time: only who reads it can tell."""
    then, data = path.stat(), other.read_bytes()
    data += bytes(then.st_size - len(data)) if len(data) <= then.st_size else b""
    path.write_bytes(data[: then.st_size])
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))


def test_a_file_that_has_not_changed_is_not_read_again(write: Write, here: Path, tmp_path: Path, builtin_folder: Path):
    path = write({"input": "a.png", "mask": "m.png"}, {"input": "b.png"}, {"kind": "style", "input": "a.png",
                 "references": ["b.png"], "id": "s"})  # fmt: skip
    manifest = read_manifest(path, model=str(builtin_folder))
    models = inputs.models_of(manifest)
    first: inputs.Seen = {}
    planned = inputs.examine(manifest, models, seen=first)
    assert len(first) == 3  # a, b and the mask, each once
    with Store(tmp_path / "store.sqlite") as store:
        store.keep_seen(first)
        seen = store.seen()
    swap(here / "a.png", here / "b.png")
    again = inputs.examine(manifest, models, seen=seen)
    assert [each.key for each in again] == [each.key for each in planned] and again[0].size == planned[0].size
    os.utime(here / "a.png")  # its time is another now: it is read
    try:
        assert inputs.examine(manifest, models, seen=seen)[0].key != planned[0].key
    except ManifestRefused as refused:  # what was put there need not be a whole picture
        assert "a.png is damaged" in str(refused)


def test_inputs_that_cannot_be_read_are_looked_at_each_time(write: Write, here: Path, builtin_folder: Path):
    (here / "a.png").write_bytes(b"no picture")
    manifest = read_manifest(write({"input": "a.png"}), model=str(builtin_folder))
    seen: inputs.Seen = {}
    for _ in range(2):
        with pytest.raises(ManifestRefused, match=r"a\.png"):
            inputs.examine(manifest, inputs.models_of(manifest), seen=seen)
    assert not seen


def test_every_file_of_a_job_is_kept_from_being_written_over(write: Write, here: Path, builtin_folder: Path):
    path = write({"kind": "style", "input": "a.png", "references": ["b.png"], "output": "b.png"})
    manifest = read_manifest(path, model=str(builtin_folder))
    planned = inputs.examine(manifest, inputs.models_of(manifest))
    with pytest.raises(ManifestRefused, match=r"b\.png would be written over an input"):
        inputs.check_apart(planned, here, here)


# ---- how a model is loaded, and looks


def keys(path: Path, folder: Path) -> dict[str, tuple[str, str]]:
    """id -> (key, what is loaded)."""
    manifest = read_manifest(path, model=str(folder))
    planned = inputs.examine(manifest, inputs.models_of(manifest))
    return {each.job.id: (each.key, each.model) for each in planned}


def test_the_key_is_of_the_bytes_and_the_scale_of_what_is_added_to_a_model(
    write: Write, toys: Path, builtin_folder: Path
):
    (toys / "other.safetensors").write_bytes((toys / "toy.safetensors").read_bytes())
    rows = {
        "plain": {}, "half": {"lora": "toy.safetensors:0.5"}, "again": {"lora": ["toy.safetensors:.50"]},
        "named otherwise": {"lora": "other.safetensors:0.5"}, "whole": {"lora": "toy.safetensors"},
        "twice": {"lora": ["toy.safetensors:0.5", "toy.safetensors:0.5"]}, "word": {"embedding": "zog.safetensors"},
        "precise": {"precision": "fp32"}, "half precise": {"precision": "fp16"}, "told": {"distilled_guidance": 2},
        "usual": {"distilled_guidance": 1},
        "look": {"references": "b.png"}, "other look": {"references": "c.png"},
        "hard": {"references": "b.png", "style_weight": 3},
    }  # fmt: skip
    path = write(*({"id": name.replace(" ", "-"), "input": "a.png", **row} for name, row in rows.items()))
    found = dict(zip(rows, keys(path, builtin_folder).values(), strict=True))
    assert found["half"] == found["again"] and found["plain"] == found["usual"]
    assert found["half"][0] == found["named otherwise"][0]  # the same bytes
    distinct = [name for name in rows if name not in ("again", "named otherwise", "usual")]
    assert len({found[name][0] for name in distinct}) == len(distinct)
    loaded = ModelOptions.parse(found["twice"][1])  # whole names, as the loader wants them
    assert loaded == ModelOptions(str(builtin_folder), lora=(f"{toys / 'toy.safetensors'}:0.5",) * 2)
    assert found["plain"][1] == found["look"][1] == str(builtin_folder)
    data = (toys / "toy.safetensors").read_bytes()
    (toys / "toy.safetensors").write_bytes(data[:-4] + bytes(4))
    assert keys(path, builtin_folder)["half"][0] != found["half"][0]


def test_a_single_file_and_its_settings_are_hashed(write: Write, toys: Path, builtin_folder: Path):
    settings = toys / "vocabulary"
    settings.mkdir()
    (settings / "model_index.json").write_text("{}")
    path = write({"id": "one", "input": "a.png", "model": "toy.safetensors", "settings": "vocabulary"})
    (before,) = keys(path, builtin_folder).values()
    assert ModelOptions.parse(before[1]) == ModelOptions(str(toys / "toy.safetensors"), settings=str(settings))
    (settings / "model_index.json").write_text("[]")
    (another,) = keys(path, builtin_folder).values()
    (toys / "toy.safetensors").write_bytes((toys / "zog.safetensors").read_bytes())
    (third,) = keys(path, builtin_folder).values()
    assert len({before[0], another[0], third[0]}) == 3 and before[1] == third[1]
    path = write({"input": "a.png", "model": "toy.safetensors", "settings": "nobody/nothing"})
    with pytest.raises(inputs.ModelMissing, match="nobody/nothing is not on this machine"):
        keys(path, builtin_folder)


def test_what_is_loaded_has_whole_names_wherever_the_manifest_was_named_from(
    write: Write, toys: Path, builtin_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(builtin_folder, toys / "model")
    write({"id": "x", "input": "a.png", "model": "model", "lora": "toy.safetensors:2"})
    monkeypatch.chdir(toys)
    manifest = read_manifest("jobs.jsonl")
    (planned,) = inputs.examine(manifest, inputs.models_of(manifest))
    assert ModelOptions.parse(planned.model) == ModelOptions(f"{toys}/model", lora=(f"{toys}/toy.safetensors:2.0",))


def test_what_is_no_lora_no_word_and_no_picture_of_regions_is_told_by_line(
    write: Write, toys: Path, builtin_folder: Path
):
    (toys / "bad.safetensors").write_bytes(b"no tensors")
    noise = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(toys / "noise.png")
    Image.fromarray(np.full((32, 48, 3), 7, np.uint8)).save(toys / "seven.png")
    styled = {"kind": "style", "input": "a.png", "references": "b.png", "content_regions": "halves.png",
              "reference_regions": "halves.png"}  # fmt: skip
    path = write(
        {"input": "a.png", "lora": "zog.safetensors"}, {"input": "a.png", "lora": "bad.safetensors"},
        {"input": "a.png", "embedding": "bad.safetensors"}, {"input": "a.png", "lora": "toy.safetensors"},
        styled, {**styled, "input": "e.png"}, {**styled, "content_regions": "noise.png"},
        {**styled, "reference_regions": "seven.png"},
    )  # fmt: skip
    with pytest.raises(ManifestRefused) as refused:
        keys(path, builtin_folder)
    assert [str(fault) for fault in refused.value.faults] == [
        "line 2: zog.safetensors is no LoRA: none of its 1 tensors is half of one.",
        "line 3: bad.safetensors cannot be read: it is damaged or of another kind.",
        "line 4: bad.safetensors cannot be read: it is damaged or of another kind.",
        "line 7: The regions of the input must be exactly as large as its picture, 40x40.",
        "line 8: noise.png has 1536 colours; a picture of regions may have 16.",
        "line 9: 2 of the input's regions have a colour that no reference's regions have: use the same.",
    ]


def test_an_edit_with_a_look_goes_alone(write: Write, here: Path, builtin_folder: Path):
    manifest = read_manifest(write({"input": "a.png"}, {"input": "b.png", "references": "c.png"}),
                             model=str(builtin_folder))  # fmt: skip
    assert [bool(each.shape) for each in inputs.examine(manifest, inputs.models_of(manifest))] == [True, False]
