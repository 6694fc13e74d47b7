"""The chaos run of benchmarks/chaos.py, small: real kills, a stop and a resume, a full disk; nothing lost or twice."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from benchmarks.chaos import Plan, Story, chaos, faults_of, report
from sdsedit.batch.local import store_path
from sdsedit.batch.store import Store


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


def test_everything_happens_and_nothing_is_lost(home: Path, builtin_folder: Path):
    plan = Plan(stops=(0.45,), fill=0.2, ray=False, pause=(0.2, 0.5), most=1, full_for=1.5, megabytes=16)
    story, outcome = chaos(home / "run", 20, str(builtin_folder), plan, scenes=False)
    assert not outcome.faults, outcome.faults
    assert outcome.jobs == 20 and set(outcome.kinds) == {"image", "sketch", "svg", "style"}
    assert outcome.second_try == {"done": 19, "failed": 1} and "wrong" in outcome.reasons
    assert story.count("killed") >= 1 and story.count("stopped") == 1 and story.stops[0][1] == 143
    assert (story.count("full") == 1 and story.free_left == 0) or story.left_out
    text = report(story, outcome, plan)
    assert "must hold did not" not in text and "| done |" in text and str(home) not in text


def test_what_must_hold_is_looked_at(home: Path):
    """The checks themselves: each kind of damage is found."""
    kept, calm = home / "run" / "kept", home / "run" / "calm"
    assert faults_of(calm, kept) == []

    def after(spoil, name: str) -> list[str]:
        copy = shutil.copytree(kept, home / name)
        with Store(store_path(copy)) as store:
            entry = next(each for each in store.entries("done") if each.kind == "image")
            spoil(copy, store, entry)
        return faults_of(calm, copy)

    def damage(folder: Path, store: Store, entry) -> None:
        data = (folder / entry.job.output).read_bytes()
        (folder / entry.job.output).write_bytes(data[:-20])

    def twice(folder: Path, store: Store, entry) -> None:
        store.note(entry.id, "done", "1.0 s")

    def another(folder: Path, store: Store, entry) -> None:
        other = next(each for each in store.entries("done") if each.kind == "image" and each.id != entry.id)
        data = (folder / other.job.output).read_bytes()
        (folder / entry.job.output).write_bytes(data)
        files = {**entry.files, entry.job.output: hashlib.sha256(data).hexdigest()}
        store._db.execute("UPDATE jobs SET files = ? WHERE n = ?", (json.dumps(files), entry.n))

    def open_still(folder: Path, store: Store, entry) -> None:
        store._db.execute("UPDATE jobs SET state = 'running' WHERE n = ?", (entry.n,))

    def left(folder: Path, store: Store, entry) -> None:
        (folder / ".x.png.0123456789ab.tmp").write_text("x")
        (folder / "_batch" / "checkpoints" / entry.id).mkdir(parents=True)

    assert "is not what the store says." in " ".join(after(damage, "damaged"))
    assert "was done 2 times." in " ".join(after(twice, "twice"))
    assert "is not the undisturbed run's." in " ".join(after(another, "another"))
    assert "is running." in " ".join(after(open_still, "open"))
    found = " ".join(after(left, "left"))
    assert ".tmp was left behind." in found and "The checkpoints of" in found


def test_a_story_counts_what_happened(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    story = Story(tmp_path, 0.0)
    story.note("killed")
    story.note("full", "0 bytes are free")
    assert story.count("killed") == 1 and story.count("node") == 0
    assert "disk full: 0 bytes are free" in capsys.readouterr().out
