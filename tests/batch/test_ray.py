"""Ray, the real one: an actor's jobs come out as a local worker's, and a killed one costs nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from sdsedit.batch import inputs, local
from sdsedit.batch import ray as engine
from sdsedit.batch.manifest import read_manifest
from sdsedit.batch.store import Store
from sdsedit.errors import InputRefused
from tests.batch.test_local import hashes, whole

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'sdsedit[ray]'")


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's workers give way to everything else on the machine


def begin(path: Path, folder: Path, model: Path) -> tuple[Store, local.Options]:
    manifest = read_manifest(path, folder, str(model))
    store = Store(local.store_path(folder))
    store.plan(inputs.examine(manifest, inputs.models_of(manifest)))
    return store, local.Options(str(folder), str(manifest.root), "cpu")


@needs_ray
def test_jobs_on_ray_with_a_killed_worker(write: Callable[..., Path], tmp_path: Path, builtin_folder: Path):
    rows = [{"id": f"{name}", "input": f"{name}.png", "mask": "m.png"} for name in "abcd"]
    path = write(
        *rows, {"id": "wrong", "input": "a.png", "words": ["cat"], "source": "a dog", "target": "category"}, steps=20
    )
    store, options = begin(path, tmp_path / "ray", builtin_folder)
    killed = []

    def kill(store: Store) -> None:
        if not killed and store.counts()["done"] == 1:
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    title = (process / "cmdline").read_bytes()
                except OSError:
                    continue
                if title.startswith(b"ray::Hands"):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(process.name)

    engine.run(store, options, 1, None, lambda: 0, kill)
    assert killed and store.counts() == {"waiting": 0, "running": 0, "done": 4, "failed": 1, "aside": 0}
    whole(store, tmp_path / "ray")
    calm, options = begin(path, tmp_path / "local", builtin_folder)
    local.run(calm, options, 1)
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "local")


@needs_ray
def test_a_stop_reaches_into_a_running_job(write: Callable[..., Path], tmp_path: Path, builtin_folder: Path):
    path = write(*({"id": name, "input": f"{name}.png"} for name in "ab"), steps=2000)
    store, options = begin(path, tmp_path / "out", builtin_folder)
    engine.run(store, options, 1, None, lambda: signal.SIGINT if store.counts()["running"] else 0, lambda store: None)
    assert store.counts()["waiting"] == 2 and all(entry.attempts == 0 for entry in store.entries())


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_one_sentence_says_what_to_do(write: Callable[..., Path], tmp_path: Path, builtin_folder: Path):
    store, options = begin(write({"input": "a.png"}), tmp_path / "out", builtin_folder)
    with pytest.raises(InputRefused, match=r"pip install 'sdsedit\[ray\]'"):
        engine.run(store, options, 1, None, lambda: 0, lambda store: None)
