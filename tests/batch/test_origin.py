"""What a result of a batch was made from, found by where it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sdsedit.batch.inputs import Planned
from sdsedit.batch.local import store_path
from sdsedit.batch.manifest import read_manifest
from sdsedit.batch.origin import origin
from sdsedit.batch.store import Store
from sdsedit.model_options import ModelOptions


def test_a_result_knows_its_inputs_and_its_model(write: Callable[..., Path], here: Path, tmp_path: Path):
    out = tmp_path / "out"
    path = write(
        {"input": "a.png", "mask": "m.png", "output": "deep/er/x.png"},
        {"kind": "style", "input": "b.png", "references": ["c.png", "d.png"], "id": "look"},
    )
    jobs = read_manifest(path).jobs
    with Store(store_path(out)) as store:
        store.plan([Planned(job, {}, None, "/models/mine", f"key {job.id}") for job in jobs])
        assert origin(out / "deep" / "er" / "x.png") is None  # it is not said where the inputs are
        store.remember("root", str(here))
    for name in ("x.png", "x.json"):
        found = origin(out / "deep" / "er" / name)
        assert found is not None and found.model == ModelOptions("/models/mine")
        assert found.files == {"input": here / "a.png", "mask": here / "m.png"}
    found = origin(out / "look.png")
    assert found and sorted(found.files) == ["input", "reference 1", "reference 2"]
    (here / "d.png").unlink()
    found = origin(out / "look.png")
    assert found and sorted(found.files) == ["input", "reference 1"]  # what has gone is not named


def test_a_result_knows_what_its_model_was_loaded_with(write: Callable[..., Path], here: Path, tmp_path: Path):
    out, model = tmp_path / "out", ModelOptions("/models/mine", lora=("/far/x.safetensors:0.5",), precision="bf16")
    (here / "w.safetensors").write_bytes(b"")
    (job,) = read_manifest(write({"id": "x", "input": "a.png", "embedding": "w.safetensors"})).jobs
    with Store(store_path(out)) as store:
        store.plan([Planned(job, {}, None, model.dump(), "key")])
        store.remember("root", str(here))
    found = origin(out / "x.png")
    assert found is not None and found.model == model
    assert found.files == {"input": here / "a.png", "embedding 1": here / "w.safetensors"}


def test_what_is_in_no_batch_or_not_of_it(tmp_path: Path):
    assert origin(tmp_path / "x.png") is None
    with Store(store_path(tmp_path)):
        pass
    assert origin(tmp_path / "x.png") is None
    store_path(tmp_path).write_bytes(b"no database at all, but long enough to be read as one" * 40)
    assert origin(tmp_path / "x.png") is None
