"""Real workers on a tiny model: results, kills, stops; what is done is whole and done once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sdsedit import errors
from sdsedit.batch import inputs, local
from sdsedit.batch.inputs import file_sha256
from sdsedit.batch.manifest import outputs_of, read_manifest
from sdsedit.batch.store import CRASHES, Store
from sdsedit.cli import main
from sdsedit.errors import InputRefused
from sdsedit.io import splats
from tests.little_scene import little_scene

Write = Callable[..., Path]


@pytest.fixture
def begin(tmp_path: Path, builtin_folder: Path) -> Callable[..., tuple[Store, local.Options]]:
    """begin(manifest, "out"): its store, planned, and the options of a run."""

    def make(path: Path, name: str = "out", **options: Any) -> tuple[Store, local.Options]:
        manifest = read_manifest(path, tmp_path / name, str(builtin_folder))
        planned = inputs.examine(manifest, inputs.models_of(manifest))
        store = Store(local.store_path(tmp_path / name))
        store.plan(planned)
        store.remember("root", str(manifest.root))
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


def test_every_kind_is_done_and_a_replay_of_each_is_the_same(
    write: Write, begin: Callable[..., Any], here: Path, tmp_path: Path, builtin_folder: Path,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    (here / "s.ply").write_bytes(splats.encode(little_scene(), "s.ply"))
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
        {
            "id": "scene",
            "kind": "splats",
            "input": "s.ply",
            "source": "a cat on grass",
            "target": "a blue cat on grass",
            "views": 4,
            "added": 20,
            "steps": 1,
            "threshold": 0.05,
        },
        {"id": "look", "kind": "style", "input": "a.png", "references": ["b.png"], "steps": 2},
        {"id": "wrong", "input": "b.png", "words": ["cat"], "target": "a category", "source": "a dog"},
    )
    store, options = begin(path)
    local.run(store, options, 1)
    states = {entry.id: entry for entry in store.entries()}
    assert {id: entry.state for id, entry in states.items()} == {
        "masked": "done", "drawn": "done", "svg": "done", "scene": "done", "look": "done",
        "wrong": "failed",
    }  # fmt: skip
    assert "cat" in str(states["wrong"].reason)
    whole(store, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "x").iterdir()} == {
        "y.png", "y.mask.png", "y.heatmap.png", "y.json",
    }  # fmt: skip
    sidecar = json.loads((tmp_path / "out" / "x" / "y.json").read_text())
    assert sidecar["output"]["sha256"] == states["masked"].files["x/y.png"] and sidecar["seconds"]["editing"] > 0
    for name in ("drawn.svg", "svg.svg", "scene.ply"):
        beside = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert beside["output"]["sha256"] == file_sha256(tmp_path / "out" / name) and beside["seconds"]
    thumbs = {path.name for path in (tmp_path / "out" / "_batch" / "thumbs").iterdir()}
    shown = {f"{id}.{what}.jpg" for id in ("masked", "svg", "scene", "look") for what in ("before", "mask", "after")}
    assert shown | {"drawn.after.jpg"} <= thumbs
    assert not list((tmp_path / "out" / "_batch" / "checkpoints").iterdir())
    store.close()

    # The batch's record knows where the inputs are, and the model's folder.
    for name in ("x/y.png", "drawn.svg", "svg.svg", "scene.ply", "look.png"):
        assert main(["replay", str(tmp_path / "out" / name), "--device", "cpu"]) == errors.OK
        said = capsys.readouterr().out
        assert "Compared: the same, " in said and "Differs" not in said, said
    recipe = json.loads((tmp_path / "out" / "x" / "y.json").read_text())
    recipe["versions"]["torch"] = "0.1"
    (tmp_path / "out" / "x" / "z.json").write_text(json.dumps(recipe))
    assert main(["replay", str(tmp_path / "out" / "x" / "z.json"), "--input", str(here / "a.png"), "--mask",
                 str(here / "m.png"), "--model", str(builtin_folder)]) == errors.OK  # fmt: skip
    assert "Differs: versions torch was 0.1, is " in capsys.readouterr().out


def test_killed_workers_cost_nothing_but_time(
    write: Write, begin: Callable[..., Any], tmp_path: Path, one_thread: None
):
    rows = [{"id": f"{name}{seed}", "input": f"{name}.png", "seed": seed} for name in "ab" for seed in range(2)]
    path = write(*rows, steps=50)
    calm, options = begin(path, "calm")
    here_and_now(calm, options)
    store, options = begin(path, "rough")
    killed = 0

    def kill(store: Store) -> None:
        nonlocal killed
        if killed < 2 and store.counts()["done"] > killed and any(each.steps_done for each in store.entries("running")):
            killed += 1
            os.kill(_worker_of(tmp_path / "rough"), signal.SIGKILL)

    local.run(store, options, 1, tell=kill)
    assert killed and store.counts()["done"] == 4  # twice, but where the last jobs were done between two looks
    assert any("SIGKILL" in note.said for _, note in store.journal())
    whole(store, tmp_path / "rough")
    assert hashes(tmp_path / "rough") == hashes(tmp_path / "calm")


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread in this process and in workers, so that sums of floats are rounded alike."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def here_and_now(store: Store, options: local.Options) -> None:
    """What a worker process does, in this one."""
    local.Worker(store, local.worker_name("0"), options, "cpu", local.Stop(), {}).work()


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
    path = write(*({"id": name, "input": f"{name}.png", "steps": 60} for name in "abc"))
    store, options = begin(path)
    told = 0

    def stop() -> int:
        nonlocal told, began
        if not told and store.counts()["done"] and store.counts()["running"]:
            told, began = number, time.monotonic()
        return told

    began = 0.0
    local.run(store, options, 1, stop=stop)
    assert told and time.monotonic() - began < 60  # 24 s, and what a slow machine adds
    counts = store.counts()
    assert counts["running"] == 0 and counts["done"] + counts["waiting"] == 3 and counts["waiting"] >= 1
    whole(store, tmp_path / "out")
    here_and_now(store, options)
    assert store.counts()["done"] == 3
    assert all(entry.attempts == 1 for entry in store.entries())
    whole(store, tmp_path / "out")


def test_how_a_model_is_loaded_and_looks_reach_the_result_and_its_replay(
    write: Write, begin: Callable[..., Any], toys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(
        {"id": "plain", "input": "a.png"}, {"id": "half", "input": "a.png", "lora": "toy.safetensors:0.5"},
        {"id": "whole", "input": "a.png", "lora": "toy.safetensors"}, {"id": "again", "input": "a.png"},
        {"id": "word", "input": "a.png", "embedding": "zog.safetensors", "target": "a zog"},
        {"id": "look", "input": "a.png", "references": "b.png"},
        {"id": "regions", "kind": "style", "input": "a.png", "references": "b.png", "content_regions": "halves.png",
         "reference_regions": "halves.png", "steps": 2, "lora": "toy.safetensors:0.5"},
    )  # fmt: skip
    store, options = begin(path, attention="math")
    here_and_now(store, options)
    states = {entry.id: entry for entry in store.entries()}
    assert all(entry.state == "done" for entry in states.values()), [entry.reason for entry in states.values()]
    order = [note.id for _, note in store.journal() if note.what == "began"]
    assert order == ["plain", "again", "look", "half", "regions", "whole", "word"]  # jobs of one loaded model, together
    made = {name: file_sha256(tmp_path / "out" / f"{name}.png") for name in states}
    assert made["plain"] == made["again"] and len(set(made.values())) == 6
    recipe = json.loads((tmp_path / "out" / "half.json").read_text())
    toy = {"name": "toy.safetensors", "sha256": file_sha256(toys / "toy.safetensors"), "scale": 0.5}
    assert recipe["model"]["options"] == {"lora": [toy], "attention": "math"}
    assert recipe["model"]["adapted"] == ["lora toy.safetensors:0.5"]
    store.close()
    for name in ("half", "word", "look", "regions"):
        assert main(["replay", str(tmp_path / "out" / f"{name}.png"), "--device", "cpu"]) == errors.OK
        said = capsys.readouterr().out
        assert "Compared: the same, " in said and "Differs" not in said, said
    data = (toys / "toy.safetensors").read_bytes()
    (toys / "toy.safetensors").write_bytes(data[:-4] + bytes(4))
    command = ["replay", str(tmp_path / "out" / "half.png"), "--device", "cpu", "--overwrite"]
    assert main(command) == errors.USAGE
    assert "toy.safetensors is not the file that the recipe names" in capsys.readouterr().err
    (toys / "toy.safetensors").unlink()
    assert main(command) == errors.USAGE
    assert "toy.safetensors, which the recipe's model was loaded with, is not here: add --lora FILE." in (
        capsys.readouterr().err
    )


def test_drawings_and_scenes_take_looks_and_are_replayed(
    write: Write, begin: Callable[..., Any], here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (here / "s.ply").write_bytes(splats.encode(little_scene(), "s.ply"))
    drawn = {"kind": "sketch", "prompt": "a cat", "strokes": 4, "steps": 4, "style": "colour"}
    scene = {"kind": "splats", "input": "s.ply", "source": "a cat on grass", "target": "a blue cat on grass",
             "views": 4, "added": 20, "steps": 2, "threshold": 0.05, "edit_kind": "restyle"}  # fmt: skip
    look = {"references": "b.png", "style_weight": 3}
    path = write({"id": "drawn", **drawn}, {"id": "drawn-so", **drawn, **look}, {"id": "scene", **scene},
                 {"id": "scene-so", **scene, **look})  # fmt: skip
    store, options = begin(path)
    here_and_now(store, options)
    states = {entry.id: entry for entry in store.entries()}
    assert all(entry.state == "done" for entry in states.values()), [entry.reason for entry in states.values()]
    whole(store, tmp_path / "out")
    for name, suffix in (("drawn", "svg"), ("scene", "ply")):
        plain, so = (tmp_path / "out" / f"{each}.{suffix}" for each in (name, f"{name}-so"))
        assert plain.read_bytes() != so.read_bytes()
        recipe = json.loads(so.with_suffix(f".{suffix}.json").read_text())
        assert [each["name"] for each in recipe["references"]] == ["b.png"]
        assert main(["replay", str(so), "--device", "cpu"]) == errors.OK
        said = capsys.readouterr().out
        assert "Compared: the same, " in said and "Differs" not in said, said


def test_a_lora_that_changed_is_not_used(write: Write, begin: Callable[..., Any], toys: Path):
    store, options = begin(write({"id": "x", "input": "a.png", "lora": "toy.safetensors"}))
    data = (toys / "toy.safetensors").read_bytes()
    (toys / "toy.safetensors").write_bytes(data[:-4] + bytes(4))
    here_and_now(store, options)
    (entry,) = store.entries()
    assert entry.state == "failed" and "toy.safetensors has changed since the batch was begun" in str(entry.reason)


def test_a_stopped_style_goes_on_where_it_was(
    write: Write, begin: Callable[..., Any], tmp_path: Path, one_thread: None
):
    class Steps(dict[int, tuple[int, int]]):
        """What a worker tells of its steps, all of them; with the third one, `stop` is wanted if there is one."""

        def __init__(self, stop: local.Stop | None = None) -> None:
            super().__init__()
            self.stop, self.seen = stop, []

        def __setitem__(self, n: int, at: tuple[int, int]) -> None:
            super().__setitem__(n, at)
            self.seen.append(at[0])
            if self.stop is not None and at[0] == 3:
                self.stop.after(0)

    path = write({"id": "look", "kind": "style", "input": "a.png", "references": ["b.png"], "steps": 6, "size": 32})
    calm, options = begin(path, "calm")
    here_and_now(calm, options)
    store, options = begin(path, "rough")
    stop = local.Stop()
    local.Worker(store, local.worker_name("0"), options, "cpu", stop, Steps(stop)).work()
    assert store.counts()["waiting"] == 1
    kept = tmp_path / "rough" / "_batch" / "checkpoints" / "look" / "run.safetensors"
    assert kept.is_file()
    steps = Steps()
    local.Worker(store, local.worker_name("0"), options, "cpu", local.Stop(), steps).work()
    assert steps.seen == [4, 5, 6] and not kept.parent.exists()
    assert hashes(tmp_path / "rough") == hashes(tmp_path / "calm")


def test_pictures_of_one_size_go_together(write: Write, begin: Callable[..., Any], tmp_path: Path):
    path = write(*({"id": name, "input": f"{name}.png"} for name in "abcde"))
    store, options = begin(path, "together", together=4)
    here_and_now(store, options)
    journal = [(note.id, note.what) for _, note in store.journal()]
    assert [id for id, what in journal[:4]] == ["a", "b", "c", "d"] and {what for _, what in journal[:4]} == {"began"}
    alone, options = begin(path, "alone")
    here_and_now(alone, options)
    import numpy as np
    from PIL import Image

    for name in "abcde":
        with (
            Image.open(tmp_path / "together" / f"{name}.png") as a,
            Image.open(tmp_path / "alone" / f"{name}.png") as b,
        ):
            assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).max() <= 1


def test_a_folder_that_takes_no_files_is_waited_for_and_then_the_reason(
    write: Write, begin: Callable[..., Any], tmp_path: Path
):
    """Where a file lies in the way of a folder: it is said, tried again later, and done when it can be."""
    (tmp_path / "out").mkdir()
    store, options = begin(write({"id": "a", "input": "a.png", "output": "sub/a.png"}, {"id": "b", "input": "b.png"}))
    (tmp_path / "out" / "sub").write_text("a file where the folder should be")

    class Freed(local.Stop):
        @property
        def wanted(self) -> bool:  # asked before each job
            if any(note.what == "waiting" for _, note in store.journal()):
                (tmp_path / "out" / "sub").unlink(missing_ok=True) if (tmp_path / "out" / "sub").is_file() else None
            return False

    local.Worker(store, local.worker_name("0"), options, "cpu", Freed(), {}).work()
    assert store.counts()["done"] == 2
    assert any("The system refused" in note.said for _, note in store.journal())


def test_a_full_disk_keeps_a_result_until_there_is_room(
    write: Write, begin: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A real one, of one megabyte, full to the last byte when the job ends."""
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "full", str(out)], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    try:
        store, options = begin(write({"id": "a", "input": "a.png"}), checkpoints=False)
        worker = local.Worker(store, local.worker_name("0"), options, "cpu", local.Stop(), {})
        (claimed,) = store.claim(worker.name)
        made = worker._made(claimed, worker._loaded(claimed.model))
        with open(out / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(bytes(512)):
                pass
        waits = []

        def may_wait() -> bool:
            waits.append(sorted(path.name for path in out.iterdir()))
            if len(waits) == 3:
                (out / "ballast").unlink()
            return True

        assert local.finish(store, worker.name, claimed, made, out, 1.0, may_wait=may_wait)
        assert len(waits) == 3 and all("a.png" not in names for names in waits)  # nothing half written
        whole(store, out)
        assert store.counts()["done"] == 1
        store.close()
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def test_what_killed_workers_left_is_swept_up(write: Write, begin: Callable[..., Any], tmp_path: Path):
    store, _ = begin(write({"id": "a", "input": "a.png", "output": "sub/a.png"}, {"id": "b", "input": "b.png"}))
    (claimed,) = store.claim("w")
    store.done(claimed.n, "w", {}, {}, 1)
    out = tmp_path / "out"
    left = [out / ".b.png.0123456789ab.tmp", out / "sub" / ".a.png.0123456789ab.tmp"]
    left += [out / "_batch" / "checkpoints" / name / ".0.safetensors.0123456789ab.tmp" for name in "ab"]
    kept = [out / ".mine.tmp", out / "b.png.tmp", out / "_batch" / "checkpoints" / "b" / "00000.safetensors"]
    for path in (*left, *kept, out / "_batch" / "checkpoints" / "a" / "00000.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    local.sweep(store, out)
    assert not any(path.exists() for path in left) and all(path.exists() for path in kept)
    assert [path.name for path in (out / "_batch" / "checkpoints").iterdir()] == ["b"]


def test_a_job_that_takes_the_machine_down_starts_the_queue_paused(write: Write, begin: Callable[..., Any]):
    store, options = begin(write({"id": "poison", "input": "a.png"}))
    for k in range(CRASHES):
        local.begin_run(store)
        store._db.execute("UPDATE jobs SET not_before = 0")
        store.claim(f"{socket.gethostname()}:4194304.0:{k}.x")  # no process has so high a number: it is gone
    with pytest.raises(InputRefused, match="paused: its last runs ended without a word, each while poison was being"):
        local.run(store, options, 1)
    local.run(store, options, 1)  # told once, it goes on: there is nothing left to do
    assert store.counts()["aside"] == 1


def test_an_input_that_changed_is_not_edited(write: Write, begin: Callable[..., Any], here: Path):
    store, options = begin(write({"id": "a", "input": "a.png"}))
    (here / "a.png").write_bytes((here / "b.png").read_bytes())
    here_and_now(store, options)
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
    store, _ = begin(write({"id": "a", "input": "a.png"}))
    store.claim(f"{socket.gethostname()}:4194304.0:x")  # no process has so high a number
    assert local.gone(f"{socket.gethostname()}:4194304.0:x") and not local.gone("elsewhere:4194304.0:x")
    local.begin_run(store)
    assert store.counts()["waiting"] == 1 and [note.what for _, note in store.journal()] == ["began", "waiting"]
