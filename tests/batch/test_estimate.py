"""The estimate: from what was done, else from a probe that loads no weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sdsedit.batch import inputs
from sdsedit.batch.estimate import estimate, passes_of, probe, spell
from sdsedit.batch.inputs import Planned
from sdsedit.batch.manifest import read_manifest


@pytest.fixture
def jobs(write: Callable[..., Path], builtin_folder: Path) -> list[Planned]:
    path = write({"input": "a.png", "steps": 10}, {"input": "a.png", "steps": 10, "method": "dds"},
                 {"kind": "sketch", "prompt": "x", "steps": 10})  # fmt: skip
    manifest = read_manifest(path, model=str(builtin_folder))
    return inputs.examine(manifest, inputs.models_of(manifest))


def test_the_probe_reads_no_weights(builtin_folder: Path, sd_folder: Path, tmp_path: Path):
    for folder in (builtin_folder, sd_folder):
        bare = tmp_path / folder.name
        shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*.safetensors"))
        seconds = probe(str(bare), "cpu")
        assert seconds is not None and 0 < seconds < 5
    assert probe(str(tmp_path)) is None


def test_what_was_done_here_counts_more_than_the_probe(jobs: list[Planned]):
    model = jobs[0].model
    pace = {("image", model): (5, 60.0), ("sketch", model): (1, 30.0)}
    found = estimate(jobs, pace, 2, "cpu")
    assert found.seconds == 75.0 and found.because == "3 like those that this folder has done"
    found = estimate(jobs, {}, 1, "cpu")
    assert found.seconds and "a pass of" in found.because
    assert estimate([], {}, 1, "cpu").seconds == 0


def test_passes(jobs: list[Planned]):
    lusd, dds, sketch = map(passes_of, jobs)
    assert dds - lusd == 10 and sketch > lusd


@pytest.mark.parametrize(
    "seconds, said", [(0.2, "1 s"), (59.5, "60 s"), (600, "10 min"), (9000, "2 h 30 min"), (3e5, "3.5 days")]
)
def test_spell(seconds: float, said: str):
    assert spell(seconds) == said


def test_every_method_has_a_cost_and_flowedit_its_own_steps():
    from sdsedit.batch.estimate import _FLOW_STEPS, _STEP
    from sdsedit.guidance import METHODS, FlowEdit

    assert set(_STEP) == set(METHODS) and FlowEdit().steps == _FLOW_STEPS
