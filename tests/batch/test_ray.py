"""Ray, the real one: an actor's jobs come out as a local worker's, and killed ones cost nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.chaos import command_line, descendants, end, two_nodes
from sdsedit import errors
from sdsedit.batch import inputs, local
from sdsedit.batch import ray as engine
from sdsedit.batch.manifest import read_manifest
from sdsedit.batch.store import Store
from sdsedit.errors import InputRefused
from tests.batch.test_local import hashes, here_and_now, one_thread, whole  # noqa: F401  # a fixture

ROOT = Path(__file__).resolve().parents[2]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'sdsedit[ray]'")


def begin(path: Path, folder: Path, model: Path) -> tuple[Store, local.Options]:
    manifest = read_manifest(path, folder, str(model))
    store = Store(local.store_path(folder))
    store.plan(inputs.examine(manifest, inputs.models_of(manifest)))
    return store, local.Options(str(folder), str(manifest.root), "cpu")


@needs_ray
def test_a_killed_actor_and_a_killed_node_cost_nothing_but_time(
    write: Callable[..., Path], toys: Path, tmp_path: Path, builtin_folder: Path, monkeypatch: pytest.MonkeyPatch,
    one_thread: None,  # noqa: F811
):  # fmt: skip
    """Two node processes with an actor each; what is left of the cluster does the work of both. Two of the jobs have a
    LoRA, which the actors are sent; one is a style."""
    rows = [{"id": f"{name}{seed}", "input": f"{name}.png", "seed": seed} for name in "abcd" for seed in range(2)]
    rows[1] |= {"lora": "toy.safetensors:0.5"}
    rows[2] = {"id": "look", "kind": "style", "input": "a.png", "references": ["b.png"], "steps": 12, "size": 32,
               "lora": "toy.safetensors:0.5"}  # fmt: skip
    wrong = {"id": "wrong", "input": "a.png", "words": ["cat"], "source": "a dog", "target": "category"}
    path = write(*rows, wrong, steps=80)  # long enough to be killed in the middle of it on a quick machine too
    store, options = begin(path, tmp_path / "ray", builtin_folder)
    monkeypatch.setattr(engine, "SILENT", 10.0)
    killed: list[str] = []
    with two_nodes() as (cluster, address):

        def kill(store: Store) -> None:
            done = store.counts()["done"]
            if not killed and done and store.entries("running"):
                actors = [pid for pid in descendants(os.getpid()) if command_line(pid).startswith(b"ray::Hands")]
                os.kill(actors[0], signal.SIGKILL)
                killed.append("actor")
            elif killed == ["actor"] and done >= 3:
                node = cluster.list_all_nodes()[-1]
                end(node.all_processes["raylet"][0].process.pid)
                cluster.remove_node(node, allow_graceful=False)
                killed.append("node")

        engine.run(store, options, 2, address, lambda: 0, kill)
    assert killed == ["actor", "node"]
    assert store.counts() == {"waiting": 0, "running": 0, "done": 8, "failed": 1, "aside": 0}
    whole(store, tmp_path / "ray")
    adapted = [json.loads((tmp_path / "ray" / f"{id}.json").read_text())["model"].get("adapted") for id in ("a1", "a0")]
    assert adapted == [["lora toy.safetensors:0.5"], None]
    assert not list((tmp_path / "ray" / "_batch").glob("seen-*"))
    calm, options = begin(path, tmp_path / "local", builtin_folder)
    here_and_now(calm, options)
    assert hashes(tmp_path / "ray") == hashes(tmp_path / "local")


@needs_ray
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_sigterm_to_the_real_process_reaches_into_a_running_job(
    write: Callable[..., Path], tmp_path: Path, builtin_folder: Path
):
    """Ray puts a handler of its own over ours when it starts a cluster: it must not be it that hears the signal."""
    path = write(*({"id": name, "input": f"{name}.png"} for name in "ab"), steps=5000)
    command = [sys.executable, "-m", "sdsedit.cli", "batch", str(path), "--output", str(tmp_path / "out"), "--json"]
    command += ["--model", str(builtin_folder), "--device", "cpu", "--engine", "ray", "--workers", "1"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "RAY_worker_niceness": "0"},
    )  # fmt: skip
    assert process.stdout is not None
    while '"began"' not in process.stdout.readline():
        assert process.poll() is None
    with Store(local.store_path(tmp_path / "out"), reads=True) as store:
        while not any(each.steps_done for each in store.entries("running")):
            time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, wrong = process.communicate(timeout=120)
    assert process.returncode == errors.TERMINATED and "--resume goes on" in wrong
    last = json.loads(said.splitlines()[-1])
    assert last["event"] == "end" and last["waiting"] == 2
    with Store(local.store_path(tmp_path / "out"), reads=True) as store:
        assert all(entry.attempts == 0 for entry in store.entries())
        assert any("stopped after step" in note.said for _, note in store.journal())
    kept = tmp_path / "out" / "_batch" / "checkpoints" / "a"
    assert list(kept.glob("*.safetensors"))  # this machine sees the output folder


@needs_ray
def test_the_clusters_file_in_the_how_to_is_one_that_ray_up_reads():
    import jsonschema
    import ray
    import yaml

    text = (ROOT / "docs" / "how-to-run-on-a-cluster.md").read_text("utf-8")
    (config,) = [
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S) if "cluster_name" in block
    ]
    jsonschema.validate(config, json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text()))
    assert config["head_node_type"] in config["available_node_types"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert commands[-1].startswith("RAY_AUTH_MODE=token ray start ")


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_one_sentence_says_what_to_do(write: Callable[..., Path], tmp_path: Path, builtin_folder: Path):
    store, options = begin(write({"input": "a.png"}), tmp_path / "out", builtin_folder)
    with pytest.raises(InputRefused, match=r"pip install 'sdsedit\[ray\]'"):
        engine.run(store, options, 1, None, lambda: 0, lambda store: None)
