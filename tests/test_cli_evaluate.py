"""`sdsedit evaluate` on tiny folders of the true formats: a batch, scores, a table; run again it does nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sdsedit import errors
from sdsedit.cli import main
from tests.evaluate.folders import clip, magicbrush, pie


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return clip(tmp_path_factory.mktemp("models") / "tiny-clip")


def evaluate(folder: Path, kind: str, out: Path, *more: str) -> int:
    return main(["evaluate", str(folder), "--kind", kind, "--output", str(out), *more])


def test_magicbrush_from_the_folder_to_the_table(tmp_path, builtin_folder, clip_folder, capsys):
    data, out = magicbrush(tmp_path / "test"), tmp_path / "out"
    given = ("--model", str(builtin_folder), "--clip", str(clip_folder), "--steps", "1", "--seed", "3")
    assert evaluate(data, "magicbrush", out, "--limit", "2", *given) == errors.OK
    said = capsys.readouterr()
    assert (out / "scores.md").read_text() in said.out and "CLIP-AUC" in said.out
    whole = json.loads((out / "scores.json").read_text())
    (summary,) = whole["summary"]
    assert summary["cases"] == 2 and summary["clip_t"] is not None and summary["l1"] > 0
    assert [row["case"] for row in whole["cases"]] == ["242679-output1", "368667-output1"]
    assert sorted(path.name for path in (out / "results" / "lusd").glob("*.png")) == [
        "242679-output1.png", "368667-output1.png",
    ]  # fmt: skip
    recipe = json.loads((out / "results" / "lusd" / "242679-output1.json").read_text())
    assert recipe["target"] == "a cat on grass wearing a red hat" and recipe["seed"] == 3
    before = {path: path.stat().st_mtime_ns for path in (out / "results").rglob("*.png")}

    # A case and a method more: only those are made.
    more = ("--methods", "lusd", "dds", *given)
    assert evaluate(data, "magicbrush", out, *more) == errors.OK
    whole = json.loads((out / "scores.json").read_text())
    assert [(each["method"], each["cases"]) for each in whole["summary"]] == [("lusd", 3), ("dds", 3)]
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    scores = (out / "scores.jsonl").read_text()
    assert len(scores.splitlines()) == 6

    # Less is asked for: what is done stays, and counts again when it is asked for again.
    assert evaluate(data, "magicbrush", out, "--limit", "1", *given) == errors.OK
    assert [each["cases"] for each in json.loads((out / "scores.json").read_text())["summary"]] == [1]
    assert evaluate(data, "magicbrush", out, "--score-only", *more) == errors.OK
    assert (out / "scores.jsonl").read_text() == scores
    assert len(json.loads((out / "scores.json").read_text())["cases"]) == 6
    assert evaluate(data, "magicbrush", out, "--model", "builtin") == errors.USAGE
    assert "another dataset or model" in capsys.readouterr().err
    assert sorted(path.name for path in data.iterdir()) == [
        "edit_sessions.json", "edit_turns.json", "global_descriptions.json", "images", "local_descriptions.json",
    ]  # fmt: skip


def test_pie_bench_without_clip_says_what_is_missing(tmp_path, builtin_folder, capsys):
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 16), f"{layer}.lora_B.weight": torch.ones(16, 2)},
              tmp_path / "toy.safetensors")  # fmt: skip
    given = ("--model", str(builtin_folder), "--clip", "nobody/clip", "--steps", "1", "--limit", "1",
             "--lora", f"{tmp_path}/toy.safetensors:0.5", "--tiling")  # fmt: skip
    assert evaluate(pie(tmp_path / "pie"), "pie", tmp_path / "out", *given) == errors.OK
    text = (tmp_path / "out" / "scores.md").read_text()
    assert "nobody/clip is not on this machine" in text and "| lusd | random | 1 |" in text
    (summary, _) = json.loads((tmp_path / "out" / "scores.json").read_text())["summary"]
    assert summary["clip_t"] is None and summary["l1"] >= 0 and summary["psnr_outside"] is not None
    assert "No plot" in capsys.readouterr().err
    (made,) = (tmp_path / "out" / "results" / "lusd").glob("*.json")  # the model was loaded as `batch` would
    model = json.loads(made.read_text())["model"]
    assert model["adapted"] == ["lora toy.safetensors:0.5"] and model["options"]["tiling"] is True
    assert "lora toy.safetensors:0.5" in text and str(tmp_path) not in text
    assert evaluate(tmp_path / "pie", "pie", tmp_path / "out", *given[:-3]) == errors.USAGE
    assert "another dataset or model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--limit", "0"), "limit is 0"),
        (("--limit", "x"), "x is no whole number"),
        (("--methods", "magic"), "magic"),
        (("--prompts", "none.csv"), "There is no file none.csv"),
        (("--score-only",), "no results in out yet"),
        (("--workers", "0"), "cannot be begun with these arguments"),
        (("--model", "nobody/nothing"), "nobody/nothing"),
    ],
)
def test_what_is_refused(tmp_path, capsys, more, sentence):
    code = evaluate(magicbrush(tmp_path / "test"), "magicbrush", tmp_path / "out", *more)
    assert code in (errors.USAGE, errors.MODEL_MISSING)
    assert sentence in capsys.readouterr().err


def test_other_places_that_are_refused(tmp_path, capsys):
    data = magicbrush(tmp_path / "test")
    assert evaluate(data, "magicbrush", data) == errors.USAGE
    assert "cannot go into the dataset's own folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("x")
    assert evaluate(data, "magicbrush", tmp_path / "file") == errors.USAGE
    assert evaluate(tmp_path / "none", "magicbrush", tmp_path / "out") == errors.USAGE
    assert main(["evaluate", "https://x.org/data", "--kind", "pie", "--output", "out"]) == errors.USAGE
    assert "Addresses are never fetched" in capsys.readouterr().err
