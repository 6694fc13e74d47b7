"""Real workers on a tiny model: results, kills, stops; what is done is whole and done once."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdsedit.batch import inputs, local
from sdsedit.batch.inputs import file_sha256
from sdsedit.batch.manifest import outputs_of, read_manifest
from sdsedit.batch.store import CRASHES, Store
from sdsedit.errors import InputRefused

Write = Callable[..., Path]


@pytest.fixture
def begin(tmp_path: Path, builtin_folder: Path) -> Callable[..., tuple[Store, local.Options]]:
    """begin(manifest, "out"): its store, planned, and the options of a run."""

    def make(path: Path, name: str = "out", **options: Any) -> tuple[Store, local.Options]:
        manifest = read_manifest(path, tmp_path / name, str(builtin_folder))
        planned = inputs.examine(manifest, inputs.models_of(manifest))
        store = Store(local.store_path(tmp_path / name))
        store.plan(planned)
        return store, local.Options(str(tmp_path / name), str(manifest.root), "cpu", **options)

    return make


def hashes(folder: Path) -> dict[str, str]:
    """Of the results; a sidecar also says how long it took."""
    return {path.name: file_sha256(path) for path in folder.iterdir() if path.suffix in (".png", ".svg")}


def whole(store: Store, folder: Path) -> None:
    for entry in store.entries("done"):
        assert set(entry.files) == set(outputs_of(entry.job))
        assert all(file_sha256(folder / name) == sha256 for name, sha256 in entry.files.items()), entry.id
    assert not list(folder.rglob("*.tmp"))
    ends = [note.id for _, note in store.journal() if note.what == "done"]
    assert len(ends) == len(set(ends))


def test_every_kind_is_done_and_the_store_says_what_was_written(
    write: Write, begin: Callable[..., Any], here: Path, tmp_path: Path
):
    (here / "d.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64" width="64" height="64">'
        '<rect width="64" height="64" fill="#88ccff"/><circle cx="32" cy="32" r="20" fill="#f80"/></svg>'
    )
    path = write(
        {
            "id": "masked",
            "input": "a.png",
            "mask": "m.png",
            "save_mask": True,
            "save_heatmap": True,
            "output": "x/y.png",
        },
        {"id": "drawn", "kind": "sketch", "prompt": "a cat", "strokes": 4},
        {"id": "svg", "kind": "svg", "input": "d.svg", "save_mask": True},
        {"id": "wrong", "input": "b.png", "words": ["cat"], "target": "a category", "source": "a dog"},
    )
    store, options = begin(path)
    local.run(store, options, 1)
    states = {entry.id: entry for entry in store.entries()}
    assert {id: entry.state for id, entry in states.items()} == {
        "masked": "done", "drawn": "done", "svg": "done", "wrong": "failed",
    }  # fmt: skip
    assert "cat" in str(states["wrong"].reason)
    whole(store, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "x").iterdir()} == {
        "y.png", "y.mask.png", "y.heatmap.png", "y.json",
    }  # fmt: skip
    sidecar = json.loads((tmp_path / "out" / "x" / "y.json").read_text())
    assert sidecar["output"]["sha256"] == states["masked"].files["x/y.png"] and sidecar["seconds"]["editing"] > 0
    thumbs = {path.name for path in (tmp_path / "out" / "_batch" / "thumbs").iterdir()}
    assert {"masked.before.jpg", "masked.mask.jpg", "masked.after.jpg", "drawn.after.jpg", "svg.after.jpg"} <= thumbs
    assert not list((tmp_path / "out" / "_batch" / "checkpoints").rglob("*.safetensors"))


def test_killed_workers_cost_nothing_but_time(write: Write, begin: Callable[..., Any], tmp_path: Path):
    rows = [{"id": f"{name}{seed}", "input": f"{name}.png", "seed": seed} for name in "ab" for seed in range(3)]
    path = write(*rows, steps=30)
    calm, options = begin(path, "calm")
    local.run(calm, options, 1)
    store, options = begin(path, "rough")
    killed = 0

    def kill(store: Store) -> None:
        nonlocal killed
        done = store.counts()["done"]
        if killed < 2 and done >= 2 * killed + 1 and store.counts()["running"]:
            killed += 1
            os.kill(_worker_of(tmp_path / "rough"), signal.SIGKILL)

    local.run(store, options, 1, tell=kill)
    assert killed == 2 and store.counts()["done"] == 6
    assert any("SIGKILL" in note.said for _, note in store.journal())
    whole(store, tmp_path / "rough")
    assert hashes(tmp_path / "rough") == hashes(tmp_path / "calm")


def _worker_of(folder: Path) -> int:
    """The process that works for the batch of this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if any("sdsedit.batch.local" in word for word in words) and any(f'"{folder}"' in word for word in words):
            return int(process.name)
    raise AssertionError("no worker")


def test_a_job_that_kills_its_worker_each_time_is_set_aside(
    write: Write, begin: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The first job is killed whenever it runs; what the worker then has in hand is the only thing that counts."""
    from sdsedit.batch import store as module

    store, options = begin(write({"id": "poison", "input": "a.png"}, {"id": "good", "input": "b.png"}, steps=40))
    monkeypatch.setattr(module, "CRASHES", 2)
    kills = 0

    def kill(store: Store) -> None:
        nonlocal kills
        if any(entry.id == "poison" for entry in store.entries("running")):
            kills += 1
            try:
                os.kill(_worker_of(tmp_path / "out"), signal.SIGKILL)
            except AssertionError:
                kills -= 1

    local.run(store, options, 1, tell=kill)
    states = {entry.id: (entry.state, entry.reason) for entry in store.entries()}
    assert states["good"][0] == "done" and states["poison"][0] == "aside" and "SIGKILL" in str(states["poison"][1])
    assert CRASHES == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_loses_nothing_and_a_resumed_run_ends_the_same(
    write: Write, begin: Callable[..., Any], tmp_path: Path, number: int
):
    path = write(*({"id": name, "input": f"{name}.png", "steps": 150} for name in "abc"), steps=2)
    store, options = begin(path)
    told = 0

    def stop() -> int:
        nonlocal told
        nonlocal began
        if not told and store.counts()["done"] and store.counts()["running"]:
            told, began = number, time.monotonic()
        return told

    began = 0.0
    local.run(store, options, 1, stop=stop)
    assert told and time.monotonic() - began < 30
    counts = store.counts()
    assert counts["running"] == 0 and counts["done"] + counts["waiting"] == 3 and counts["waiting"] >= 1
    whole(store, tmp_path / "out")
    local.run(store, options, 1)
    assert store.counts()["done"] == 3
    assert all(entry.attempts == 1 for entry in store.entries())
    whole(store, tmp_path / "out")


def test_pictures_of_one_size_go_together(write: Write, begin: Callable[..., Any], tmp_path: Path):
    path = write(*({"id": name, "input": f"{name}.png"} for name in "abcde"))
    store, options = begin(path, "together", together=4)
    local.run(store, options, 1)
    journal = [(note.id, note.what) for _, note in store.journal()]
    assert [id for id, what in journal[:4]] == ["a", "b", "c", "d"] and {what for _, what in journal[:4]} == {"began"}
    alone, options = begin(path, "alone")
    local.run(alone, options, 1)
    import numpy as np
    from PIL import Image

    for name in "abcde":
        with (
            Image.open(tmp_path / "together" / f"{name}.png") as a,
            Image.open(tmp_path / "alone" / f"{name}.png") as b,
        ):
            assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


def test_a_folder_that_takes_no_files_is_waited_for_and_then_the_reason(
    write: Write, begin: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "out").mkdir()
    store, options = begin(write({"id": "a", "input": "a.png", "output": "sub/a.png"}, {"id": "b", "input": "b.png"}))
    (tmp_path / "out" / "sub").write_text("a file where the folder should be")
    begun = 0

    def free(store: Store) -> None:
        nonlocal begun
        if any(note.what == "waiting" for _, note in store.journal()) and not begun:
            begun = 1
            (tmp_path / "out" / "sub").unlink()

    local.run(store, options, 1, tell=free)
    assert begun and store.counts()["done"] == 2
    assert any("The system refused" in note.said for _, note in store.journal())


def test_an_input_that_changed_is_not_edited(write: Write, begin: Callable[..., Any], here: Path):
    store, options = begin(write({"id": "a", "input": "a.png"}))
    (here / "a.png").write_bytes((here / "b.png").read_bytes())
    local.run(store, options, 1)
    (entry,) = store.entries("failed")
    assert entry.reason == "a.png has changed since the batch was begun: run it again with --resume."


def test_workers_that_cannot_start_end_the_run(
    write: Write, begin: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store, options = begin(write({"id": "a", "input": "a.png"}))
    monkeypatch.setattr(local.sys, "executable", "/bin/false")
    with pytest.raises(local.WorkersFail, match="die before they take a job, the last one with exit code 1"):
        local.run(store, options, 1)
    assert store.counts()["waiting"] == 1


def test_one_batch_at_a_time_in_a_folder(tmp_path: Path):
    refused = pytest.raises(InputRefused, match="Another batch works in this output folder")
    with local.alone(tmp_path), refused, local.alone(tmp_path):
        pass
    with local.alone(tmp_path):
        pass


def test_a_job_of_a_parent_that_is_gone_is_taken_back_at_once(write: Write, begin: Callable[..., Any]):
    import socket

    store, options = begin(write({"id": "a", "input": "a.png"}))
    store.claim(f"{socket.gethostname()}:4194304.0:x")  # no process has so high a number
    assert local.gone(f"{socket.gethostname()}:4194304.0:x") and not local.gone("elsewhere:4194304.0:x")
    local.run(store, options, 1)
    assert store.counts()["done"] == 1
