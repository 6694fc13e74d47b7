"""`sdsedit batch` and `sdsedit batch status`: what is said, in which form, with which exit code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdsedit import errors
from sdsedit.batch import inputs, local
from sdsedit.batch.manifest import read_manifest
from sdsedit.batch.store import CRASHES, Store
from sdsedit.cli import main
from tests.batch.conftest import here, toys, write  # noqa: F401  # fixtures

ROOT = Path(__file__).resolve().parents[1]
Write = Callable[..., Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_batch_its_status_its_sheet_and_a_replay(
    write: Write, out: Path, builtin_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    path = write(
        {"id": "cat", "input": "a.png", "target": "a <b>cat</b>"},
        {"id": "gone", "input": "b.png", "words": ["cat"], "source": "a dog", "target": "category"},
    )
    command = ["batch", str(path), "--output", str(out), "--model", str(builtin_folder), "--device", "cpu"]
    assert main(command) == errors.SOME_FAILED
    told = capsys.readouterr()
    assert "Done: 1 of 2 jobs, 1 failed, in" in told.out and "Failed: gone: " in told.err
    assert main(command) == errors.USAGE
    assert "add --resume to go on" in capsys.readouterr().err

    assert main(["batch", "status", str(out)]) == errors.OK
    status = capsys.readouterr().out
    assert (
        "2 jobs: 0 waiting, 0 running, 1 done, 1 failed, 0 set aside" in status and "Failed: gone (line 3): " in status
    )
    assert main(["batch", "status", str(out), "--json"]) == errors.OK
    (found,) = lines(capsys.readouterr().out)
    assert found["done"] == 1 and found["jobs_wrong"][0]["id"] == "gone" and found["journal"]

    sheet = (out / "sheet.html").read_text("utf-8")
    assert (
        "a &lt;b&gt;cat&lt;/b&gt;" in sheet and "<script" not in sheet and "http" not in sheet.replace("http-equiv", "")
    )
    assert sheet.index("What went wrong") < sheet.index(">Done<") and str(out) not in sheet
    expanded = (out / "_batch" / "expanded.jsonl").read_text().splitlines()
    assert len(expanded) == 3 and json.loads(expanded[1])["id"] == "cat"

    monkeypatch.chdir(tmp_path)  # where no a.png lies: the batch's own record says where it is, and which model it was
    assert main(["replay", str(out / "cat.png"), "--device", "cpu"]) == errors.OK
    said = capsys.readouterr().out
    assert "Compared: the same, pixel for pixel" in said and "Differs" not in said

    made = (out / "cat.png").stat().st_mtime_ns
    assert main([*command, "--resume", "--json"]) == errors.SOME_FAILED
    assert [line["event"] for line in lines(capsys.readouterr().out)] == ["end"]
    assert (out / "cat.png").stat().st_mtime_ns == made
    (out / "cat.png").unlink()
    assert main([*command, "--retry-failed", "--json"]) == errors.SOME_FAILED
    events = [(line["event"], line.get("id")) for line in lines(capsys.readouterr().out)]
    assert ("done", "cat") in events and ("failed", "gone") in events and events[-1] == ("end", None)


def test_a_dry_run_does_nothing_and_says_all(
    write: Write, out: Path, builtin_folder: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
):  # fmt: skip
    path = write({"id": "all", "input": "*.png", "grid": {"seed": [0, 1]}}, {"kind": "sketch", "prompt": "a cat"})
    command = ["batch", str(path), "--output", str(out), "--model", str(builtin_folder), "--dry-run"]
    assert main(command) == errors.OK
    said = capsys.readouterr().out
    for text in (
        "2 rows, 13 jobs: 12 image, 1 sketch", "Line 2: 12 jobs = 6 files x 2 of seed", "all-a-seed-1: a.png ->",
        "licence not stated in its folder, 13 jobs", "Estimate: about", "Nothing was done",
    ):  # fmt: skip
        assert text in said, said
    assert not out.exists()
    assert main([*command, "--json", "--workers", "2"]) == errors.OK
    *jobs, plan = lines(capsys.readouterr().out)
    assert len(jobs) == 13 and plan["jobs"] == 13 and plan["seconds"] > 0 and len({job["key"] for job in jobs}) == 13


def test_the_command_line_s_model_is_loaded_as_it_says(
    write: Write, out: Path, toys: Path, builtin_folder: Path, tmp_path: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """Also where its files lie elsewhere; how it runs is no part of the jobs' keys."""
    (toys / "toy.safetensors").rename(tmp_path / "far.safetensors")
    monkeypatch.chdir(tmp_path)
    path = write({"id": "x", "input": "a.png"}, {"id": "own", "input": "a.png", "lora": [], "precision": "fp32"})
    command = ["batch", str(path), "--output", str(out), "--model", str(builtin_folder), "--device", "cpu"]
    command += ["--lora", "far.safetensors:0.5", "--tiling"]
    assert main([*command, "--dry-run", "--json"]) == errors.OK
    first, own, _ = lines(capsys.readouterr().out)
    assert first["lora"] == [f"{tmp_path}/far.safetensors:0.5"] and "lora" not in own and own["precision"] == "fp32"
    assert main([*command, "--dry-run", "--json", "--offload-layers", "--attention-kernel", "math"]) == errors.OK
    assert lines(capsys.readouterr().out)[0]["key"] == first["key"]
    assert main([*command[:-2], "far.safetensors:0.6", "--dry-run", "--json"]) == errors.OK
    assert lines(capsys.readouterr().out)[0]["key"] != first["key"]
    assert main(command) == errors.OK
    capsys.readouterr()
    recipe = json.loads((out / "x.json").read_text())["model"]
    assert recipe["adapted"] == ["lora far.safetensors:0.5"] and recipe["options"]["tiling"] is True
    assert str(tmp_path) not in json.dumps(recipe)
    assert "far.safetensors:0.5" in (out / "sheet.html").read_text("utf-8")
    assert str(tmp_path) not in (out / "sheet.html").read_text("utf-8")
    assert main(["replay", str(out / "x.png"), "--device", "cpu"]) == errors.OK
    said = capsys.readouterr().out
    assert "Compared: the same, pixel for pixel" in said and "Differs" not in said


def test_all_faults_at_once_and_nothing_begun(
    write: Write, out: Path, builtin_folder: Path, capsys: pytest.CaptureFixture[str], here: Path  # noqa: F811
):  # fmt: skip
    (here / "broken.png").write_bytes((here / "a.png").read_bytes()[:100])
    path = write({"input": "broken.png"}, {"input": "e.png", "mask": "m.png"}, {"input": "a.png", "output": "a.png"})
    command = ["batch", str(path), "--output", str(out), "--model", str(builtin_folder)]
    assert main(command) == errors.USAGE
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "sdsedit: jobs.jsonl has 2 faults; nothing was begun."
    assert said[1].startswith("  line 2: broken.png is damaged") and said[2].startswith(
        "  line 3: The mask m.png is 48x32"
    )
    path = write({"input": "../x.png"}, {"input": "a.png", "steps": 0})
    assert main([*command, "--json"]) == errors.USAGE
    (refused,) = lines(capsys.readouterr().out)
    assert [fault["line"] for fault in refused["faults"]] == [2, 3] and not out.exists()
    path = write({"input": "a.png", "output": "a.png"})
    assert main(["batch", str(path), "--output", str(here), "--model", str(builtin_folder)]) == errors.USAGE
    assert "a.png would be written over an input" in capsys.readouterr().err
    out.mkdir()
    (out / "a.png").write_text("somebody's")
    assert main(command) == errors.USAGE
    assert "a.png is there already" in capsys.readouterr().err and (out / "a.png").read_text() == "somebody's"


@pytest.mark.parametrize(
    "more, code, sentence",
    [
        (["--workers", "0"], errors.USAGE, "workers is 0; it must be a whole number from 1 to 256"),
        (["--resume", "--overwrite"], errors.USAGE, "not allowed with"),
        (["--model", "https://example.com/x"], errors.USAGE, "Addresses are never fetched"),
        (["--lora", "none.safetensors:0.5"], errors.USAGE, "There is no LoRA file none.safetensors"),
        (["--lora", "x.safetensors:20"], errors.USAGE, "The scale of a LoRA is a number from -10 to 10; got 20."),
        (["--embedding", "x.bin"], errors.USAGE, "There is no textual inversion file x.bin"),
        (["--settings", "here"], errors.USAGE, "--settings are for a model in one .safetensors file"),
        (["--model", "one.safetensors", "--settings", "x"], errors.USAGE, "There is no file one.safetensors"),
        (["--attention-kernel", "cudnn", "--device", "cpu"], errors.USAGE, "cudnn attention does not run on cpu"),
        (["--precision", "fp8"], errors.USAGE, "invalid choice"),
        (["--model", "nobody/nothing"], errors.MODEL_MISSING, "hf download nobody/nothing"),
        (["--model", "stabilityai/stable-diffusion-xl-base-1.0"], errors.MODEL_MISSING, "CreativeML Open RAIL++-M"),
    ],
)
def test_refusals(
    write: Write, out: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, sentence: str  # noqa: F811
):  # fmt: skip
    assert main(["batch", str(write({"input": "a.png"})), "--output", str(out), *more]) == code
    assert sentence in capsys.readouterr().err and not out.exists()
    assert main(["batch", "status", str(out)]) == errors.USAGE
    assert "is not the output folder of a batch" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_sigterm_to_the_real_process_loses_nothing(write: Write, out: Path, builtin_folder: Path):  # noqa: F811
    path = write(*({"id": name, "input": f"{name}.png"} for name in "abc"), steps=300)
    command = [sys.executable, "-m", "sdsedit.cli", "batch", str(path), "--output", str(out)]
    command += ["--model", str(builtin_folder), "--device", "cpu", "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while '"began"' not in process.stdout.readline():
        pass
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said, wrong = process.communicate(timeout=120)
    assert time.monotonic() - began < 60 and process.returncode == errors.TERMINATED
    assert "--resume goes on" in wrong
    end = lines(said)[-1]
    assert end["event"] == "end" and end["running"] == 0 and end["done"] + end["waiting"] == 3
    assert not list(out.rglob("*.tmp"))


def test_a_queue_that_took_the_machine_down_starts_paused(
    write: Write, out: Path, builtin_folder: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
):  # fmt: skip
    """Runs that never ended, each with the same job in hand: the next one names it and begins nothing."""
    path = write({"id": "poison", "input": "a.png"})
    manifest = read_manifest(path, out, str(builtin_folder))
    with Store(local.store_path(out)) as store:
        store.plan(inputs.examine(manifest, inputs.models_of(manifest)))
        for k in range(CRASHES):
            local.begin_run(store)
            store._db.execute("UPDATE jobs SET not_before = 0")
            store.claim(f"{socket.gethostname()}:4194304.0:{k}.x")  # no process has so high a number: it is gone
    command = ["batch", str(path), "--output", str(out), "--model", str(builtin_folder), "--device", "cpu", "--resume"]
    assert main(command) == errors.USAGE
    assert "The batch is paused: its last runs ended without a word, each while poison" in capsys.readouterr().err
    assert main(["batch", "status", str(out)]) == errors.OK
    said = capsys.readouterr().out
    assert "Set aside: poison (line 2): Its worker died 3 times" in said and "paused" in said
    assert main(command) == errors.ALL_FAILED  # told once, it goes on, and nothing is left to do
