"""Manifests: what is read, what is expanded, and that every fault of every row is said, by line, in one report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdsedit.batch import fields, inputs
from sdsedit.batch.manifest import Job, ManifestRefused, outputs_of, read_manifest
from sdsedit.errors import InputRefused
from sdsedit.model_options import DECIDING, ModelOptions

ROOT = Path(__file__).resolve().parents[2]
HEAD = '{"schema_version": 1}'
EDIT = {"input": "cat.png", "source": "a cat", "target": "a cat wearing a crown"}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with pictures, a drawing and a scene in it (of the last two only their names matter here)."""
    root = tmp_path / "root"
    (root / "photos" / "sub").mkdir(parents=True)
    for name in ("cat.png", "dog.png", "photos/a.png", "photos/b.png", "photos/sub/a.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / name)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "photos" / "c.jpg")
    (root / "photos" / "notes.txt").write_text("no picture")
    (root / "icon.svg").write_text("<svg/>")
    (root / "scene.ply").write_text("ply")
    return root


def jsonl(here: Path, *rows: Any, head: str = HEAD) -> Path:
    path = here / "jobs.jsonl"
    lines = [head, *(row if isinstance(row, str) else json.dumps(row) for row in rows)]
    path.write_text("\n".join(lines), "utf-8")
    return path


def faults(path: Path, output: Path | None = None) -> list[str]:
    with pytest.raises(ManifestRefused) as refused:
        read_manifest(path, output)
    return [str(fault) for fault in refused.value.faults]


# ---- what is read


def test_every_kind_with_its_defaults(here: Path):
    manifest = read_manifest(
        jsonl(
            here, EDIT, {"kind": "sketch", "prompt": "a fox"},
            {"kind": "svg", "input": "icon.svg", "target": "a cat"},
            {"kind": "splats", "input": "scene.ply", "target": "a red cup", "background": [0, 0, 0]},
            {"kind": "style", "input": "cat.png", "references": "dog.png"},
            {"kind": "style", "prompt": "a fox", "references": ["dog.png", "photos/a.png"]},
        )
    )  # fmt: skip
    image, sketch, svg, splats, style, drawn = manifest.jobs
    assert (image.id, image.line, image.output) == ("row-2", 2, "row-2.png")
    assert image.settings["method"] == "lusd" and image.settings["feather"] == 3.0 and image.settings["steps"] is None
    assert sketch.output == "row-3.svg" and sketch.settings["steps"] == 120 and sketch.input is None
    assert svg.settings["share"] == 0.5 and splats.settings["background"] == (0.0, 0.0, 0.0)
    assert style.files == {"input": "cat.png", "reference 1": "dog.png"} and style.settings["content_weight"] is None
    assert drawn.files == {"reference 1": "dog.png", "reference 2": "photos/a.png"}
    assert outputs_of(drawn) == ("row-7.png", "row-7.json")
    assert all(Job.load(job.dump()) == job for job in manifest.jobs)
    again = read_manifest(jsonl(here, *[job.row() for job in manifest.jobs])).jobs
    assert [(job.files, job.settings) for job in again] == [(job.files, job.settings) for job in manifest.jobs]


def test_what_a_style_job_needs(here: Path):
    style = {"kind": "style", "references": ["dog.png"]}
    said = faults(
        jsonl(
            here, {"kind": "style", "input": "cat.png"}, style, {**style, "input": "cat.png", "prompt": "a fox"},
            {**style, "texture": "4x9"}, {**style, "texture": "64x32", "references": ["../dog.png"]},
            {**style, "prompt": "a fox", "references": ["scene.ply"]}, {**style, "prompt": " "},
            {**style, "prompt": "a", "references": ["dog.png"] * 9},
        )
    )  # fmt: skip
    assert [each.partition(": ")[2] for each in said] == [
        "references is missing: a job of the kind style needs it.",
        "a style job has one of input (a picture), prompt and texture.",
        "a style job has one of input (a picture), prompt and texture.",
        "texture is 4x9; it must be a width and a height from 8 to 8192 pixels, such as 512x512.",
        "reference dog.png leads out of the folder with ..: put the file below it.",
        "reference scene.ply must end in .png, .apng, .jpg, .jpeg, .jpe, .jfif, .webp, .bmp, .dib, .tif, .tiff, .gif.",
        "The prompt is empty; say what to draw.",
        "references must be 1 to 8 names of files.",
    ]


def test_a_model_s_options_are_the_row_s_then_the_defaults_then_those_of_the_command_line(here: Path):
    (here / "loras").mkdir()
    for name in ("loras/a.safetensors", "b.safetensors", "one.safetensors"):
        (here / name).write_bytes(b"")
    (here / "vocabulary").mkdir()
    usual = ModelOptions("org/usual", lora=("/far/x.safetensors:2",), precision="fp16")
    head = '{"schema_version": 1, "defaults": {"distilled_guidance": 3, "settings": "vocabulary"}}'
    manifest = read_manifest(
        jsonl(
            here, EDIT, {**EDIT, "lora": ["loras/a.safetensors:0.5", "b.safetensors"], "precision": "bf16"},
            {**EDIT, "lora": []}, {**EDIT, "model": "builtin"}, {**EDIT, "model": "one.safetensors"},
            {"kind": "sketch", "prompt": "a fox", "embedding": "b.safetensors", "model": "builtin",
             "distilled_guidance": 1}, head=head,
        ), model=usual,
    )  # fmt: skip
    three = {"distilled_guidance": 3.0}
    assert [job.options for job in manifest.jobs] == [
        {**three, "lora": ("/far/x.safetensors:2",), "precision": "fp16"},
        {**three, "lora": ("loras/a.safetensors:0.5", "b.safetensors"), "precision": "bf16"},
        {**three, "precision": "fp16"},
        three,
        {**three, "settings": "vocabulary"},
        {"embedding": ("b.safetensors",)},
    ]
    assert manifest.jobs[1].files == {"input": "cat.png", "lora 1": "loras/a.safetensors", "lora 2": "b.safetensors"}
    assert all(Job.load(job.dump()) == job for job in manifest.jobs)
    again = read_manifest(jsonl(here, manifest.jobs[1].row(), manifest.jobs[4].row())).jobs
    assert [job.options for job in again] == [manifest.jobs[1].options, manifest.jobs[4].options]
    row = {**EDIT, "id": "x", "grid": {"lora": ["b.safetensors:0.5", ["b.safetensors:1"], []]}}
    assert [(job.id, job.options) for job in read_manifest(jsonl(here, row)).jobs] == [
        ("x-lora-1", {"lora": ("b.safetensors:0.5",)}), ("x-lora-2", {"lora": ("b.safetensors:1",)}), ("x-lora-3", {}),
    ]  # fmt: skip


def test_faults_of_a_model_s_options(here: Path, tmp_path: Path):
    (tmp_path / "out.safetensors").write_bytes(b"")
    (here / "link.safetensors").symlink_to(tmp_path / "out.safetensors")
    (here / "one.safetensors").write_bytes(b"")
    wrong = [
        ({"lora": "cat.png"}, "lora cat.png must end in .safetensors."),
        ({"lora": "no.safetensors:1"}, "lora no.safetensors is not there."),
        ({"lora": "one.safetensors:11"}, "The scale of a LoRA is a number from -10 to 10; got 11."),
        ({"lora": 7}, "lora must be 0 to 16 names of files."),
        ({"lora": "/x.safetensors"}, "lora x.safetensors is an absolute path, out of the folder: name it relative to "
                                     "that."),
        ({"lora": "https://x.org/a.safetensors"}, "lora is an address; addresses are never fetched: save the file "
                                                  "first."),
        ({"embedding": "link.safetensors"}, "embedding link.safetensors is a link that leads out of the manifest's "
                                            "folder: put the file itself there."),
        ({"embedding": "../x.safetensors"}, "embedding x.safetensors leads out of the folder with ..: put the file "
                                            "below it."),
        ({"precision": "int8"}, "precision is int8; it must be one of fp32, fp16, bf16."),
        ({"distilled_guidance": -1}, "distilled_guidance is -1; it must be a number from 0 to 100."),
        ({"settings": "photos"}, "settings are for a model in one .safetensors file: a folder or an id has its own."),
        ({"model": "one.safetensors"}, "a model in one .safetensors file needs settings here: a folder or an id that "
                                       "is on this machine."),
        ({"model": "one.safetensors", "settings": "http://x.org/m"}, "settings is an address; give a folder's name or "
                                                                     "an id: nothing is fetched."),
        ({"model": "two.safetensors"}, "model two.safetensors is not there."),
    ]  # fmt: skip
    said = faults(jsonl(here, *({**EDIT, **row} for row, _ in wrong)))
    assert [each for each in said if "needs settings" not in each or "line 13" in each] == [
        f"line {line}: {sentence}" for line, (_, sentence) in enumerate(wrong, 2)
    ]


def test_looks_of_edits_and_regions_of_styles(here: Path):
    style = {"kind": "style", "input": "cat.png", "references": ["dog.png"], "content_regions": "photos/a.png",
             "reference_regions": "photos/b.png"}  # fmt: skip
    edit, styled = read_manifest(jsonl(here, {**EDIT, "references": ["dog.png"], "style_weight": 3}, style)).jobs
    assert edit.files == {"input": "cat.png", "reference 1": "dog.png"} and edit.settings["style_weight"] == 3.0
    assert styled.files == {
        "input": "cat.png", "reference 1": "dog.png", "regions": "photos/a.png",
        "reference regions 1": "photos/b.png",
    }  # fmt: skip
    assert [Job.load(job.dump()) for job in (edit, styled)] == [edit, styled]
    assert read_manifest(jsonl(here, edit.row(), styled.row())).jobs[1].files == styled.files
    drawn = {name: value for name, value in style.items() if name != "input"}
    said = faults(
        jsonl(
            here, {**EDIT, "references": [], "style_weight": 11}, {**EDIT, "references": "../dog.png"},
            {**style, "reference_regions": ["photos/a.png", "photos/b.png"]}, {**drawn, "prompt": "a fox"},
            {**style, "content_regions": "icon.svg"}, {k: v for k, v in style.items() if k != "content_regions"},
            {**style, "reference_regions": "scene.ply"},
        )
    )  # fmt: skip
    assert said == [
        "line 2: references must be 1 to 8 names of files.",
        "line 2: style_weight is 11; it must be a number from 0 to 10.",
        "line 3: reference dog.png leads out of the folder with ..: put the file below it.",
        "line 4: reference_regions must be one for each of the 1 references; there are 2.",
        "line 5: content_regions are of an input: give one.",
        f"line 6: content_regions icon.svg must end in {', '.join(fields.READS['image'])}.",
        "line 7: content_regions and reference_regions belong together: give both.",
        f"line 8: reference_regions scene.ply must end in {', '.join(fields.READS['image'])}.",
    ]


def test_a_row_wins_over_the_defaults_and_a_default_goes_to_the_kinds_that_have_it(here: Path):
    head = '{"schema_version": 1, "defaults": {"seed": 7, "strokes": 9, "method": "dds", "model": "builtin"}}'
    manifest = read_manifest(
        jsonl(here, EDIT, {**EDIT, "seed": 8}, {"kind": "sketch", "prompt": "a fox"}, head=head), model="other"
    )
    one, two, sketch = manifest.jobs
    assert one.settings["seed"] == 7 and one.settings["method"] == "dds" and "strokes" not in one.settings
    assert two.settings["seed"] == 8 and sketch.settings["strokes"] == 9
    assert {job.model for job in manifest.jobs} == {"builtin"}


def test_csv_and_yaml_say_the_same_as_jsonl(here: Path):
    rows = [{**EDIT, "seed": 3, "strength": 2, "save_mask": True, "words": "crown"}, {"kind": "sketch", "prompt": "x"}]
    jobs = read_manifest(jsonl(here, *rows)).jobs
    (here / "jobs.csv").write_text(
        "kind,input,source,target,seed,strength,save_mask,words,prompt\n"
        "image,cat.png,a cat,a cat wearing a crown,3,2,true,crown,\nsketch,,,,,,,,x\n"
    )
    (here / "jobs.yaml").write_text(
        "schema_version: 1\njobs:\n- input: cat.png\n  source: a cat\n  target: a cat wearing a crown\n  seed: 3\n"
        "  strength: 2\n  save_mask: true\n  words: crown\n- kind: sketch\n  prompt: x\n"
    )
    for name, lines in (("jobs.csv", [2, 3]), ("jobs.yaml", [3, 10])):
        found = read_manifest(here / name).jobs
        assert [job.settings for job in found] == [job.settings for job in jobs]
        assert [job.line for job in found] == lines


def test_a_csv_cell_may_hold_commas_and_lines(here: Path):
    (here / "jobs.csv").write_text('input,target,words\ncat.png,"a cat, a crown","cat,crown"\n\ndog.png,"a\ndog",\n')
    assert faults(here / "jobs.csv") == [
        "line 4: The target prompt has the control character U+000A; write plain text on one line."
    ]


# ---- what is expanded


def test_a_glob_is_one_job_for_each_picture(here: Path):
    manifest = read_manifest(jsonl(here, {"input": "photos/*", "target": "night", "id": "night"}))
    assert [(job.id, job.input, job.output) for job in manifest.jobs] == [
        ("night-a", "photos/a.png", "night-a.png"),
        ("night-b", "photos/b.png", "night-b.png"),
        ("night-c", "photos/c.jpg", "night-c.png"),
    ]
    assert any("1 files" in note and "other kinds" in note for note in manifest.notes)


def test_a_glob_through_folders_keeps_them_apart(here: Path):
    manifest = read_manifest(jsonl(here, {"input": "photos/**/*.png", "target": "x", "output": "out/{stem}.png"}))
    assert [job.output for job in manifest.jobs] == ["out/a.png", "out/b.png", "out/sub/a.png"]
    assert len({job.id for job in manifest.jobs}) == 3


def test_two_pictures_of_one_name_keep_their_endings(here: Path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(here / "photos" / "a.jpg")
    manifest = read_manifest(jsonl(here, {"input": "photos/*", "target": "x"}))
    assert {job.output for job in manifest.jobs} >= {"row-2-a-png.png", "row-2-a-jpg.png"}


def test_a_grid_is_every_combination_and_says_so(here: Path):
    row = {**EDIT, "id": "crown", "grid": {"method": ["lusd", "dds"], "seed": [0, 1, 2]}}
    manifest = read_manifest(jsonl(here, row))
    assert [job.id for job in manifest.jobs][:2] == ["crown-method-lusd-seed-0", "crown-method-lusd-seed-1"]
    assert [(job.settings["method"], job.settings["seed"]) for job in manifest.jobs][3:] == [
        ("dds", 0), ("dds", 1), ("dds", 2),
    ]  # fmt: skip
    assert manifest.notes == ("Line 2: 6 jobs = 2 of method x 3 of seed",)


def test_a_grid_of_prompts_is_numbered(here: Path):
    row = {"input": "cat.png", "grid": {"target": ["a red cat", "a blue cat"]}, "output": "{target}/{stem}.png"}
    assert [job.output for job in read_manifest(jsonl(here, row)).jobs] == ["1/cat.png", "2/cat.png"]


def test_an_expanded_job_is_a_row_that_reads_back(here: Path):
    jobs = read_manifest(jsonl(here, {**EDIT, "words": "crown", "grid": {"seed": [0, 1]}})).jobs
    again = read_manifest(jsonl(here, *[job.row() for job in jobs])).jobs
    assert [(job.id, job.output, job.settings) for job in again] == [(j.id, j.output, j.settings) for j in jobs]


# ---- faults


def test_every_fault_of_every_row_in_one_report(here: Path):
    rows: list[Any] = [EDIT] * 55 + [
        '{"input": "cat.png", "target": ',
        {"input": "cat.png", "target": "", "steps": 0, "seed": -1, "method": "magic", "size": True},
        "[1, 2]",
        {"kind": "style", "input": "cat.png"},
    ]
    rows = [{**row, "id": f"job{k}"} if row is EDIT else row for k, row in enumerate(rows)]
    said = faults(jsonl(here, *rows))
    assert [each.split(":")[0] for each in said] == ["line 57"] + ["line 58"] * 4 + ["line 59", "line 60"]
    text = "\n".join(said)
    assert "line 57: this is no JSON" in text and "line 60: references is missing" in text
    for name in (
        "steps is 0; it must be a whole number from 1 to 10000.",
        "seed is -1",
        "method is magic",
        "size is True",
    ):
        assert name in text


@pytest.mark.parametrize(
    "row, sentence",
    [
        ({**EDIT, "stpes": 3}, "stpes is nothing that a job of the kind image has; do you mean steps?"),
        ('{"input": "cat.png", "target": "x", "strength": 1e400}', "strength is inf"),
        ('{"input": "cat.png", "target": "x", "strength": NaN}', "NaN is no JSON"),
        ('{"input": "cat.png", "input": "dog.png", "target": "x"}', "input is given twice"),
        ({"input": "cat.png"}, "target is missing"),
        ({**EDIT, "target": "a\u202ecat"}, "control character U+202E"),
        ({**EDIT, "target": "x" * 100_000}, "100000 characters; at most 2000"),
        ({**EDIT, "words": ["hat"]}, "words names hat, which neither prompt has"),
        ({**EDIT, "input": "../cat.png"}, "leads out of the folder with .."),
        ({**EDIT, "input": "/etc/passwd"}, "passwd is an absolute path"),
        ({**EDIT, "input": "C:/cat.png"}, "is an absolute path"),
        ({**EDIT, "input": "sub\\cat.png"}, "has a backslash"),
        ({**EDIT, "input": "https://example.com/cat.png"}, "addresses are never fetched"),
        ({**EDIT, "input": "file:///etc/passwd"}, "addresses are never fetched"),
        ({**EDIT, "input": "no.png"}, "input no.png is not there"),
        ({**EDIT, "input": "photos"}, "input photos is no plain file"),
        ({**EDIT, "input": "none/*.png"}, "names no file ending in"),
        ({**EDIT, "input": "../*"}, "leads out of the folder with .."),
        ({**EDIT, "output": "../x.png"}, "leads out of the folder with .."),
        ({**EDIT, "output": "x.jpg"}, "x.jpg must end in .png"),
        ({**EDIT, "output": "_batch/x.png"}, "_batch, where the batch keeps its own files"),
        ({**EDIT, "output": "a?b.png"}, "a name that not every system takes"),
        ({**EDIT, "output": "{seed}.png"}, "{seed} stands for nothing here"),
        ({**EDIT, "id": "a b"}, "id is a b; it must be letters"),
        ({**EDIT, "mask": "../m.png"}, "mask m.png leads out"),
        ({**EDIT, "model": "https://example.com/m"}, "model is an address"),
        ({**EDIT, "model": "/models/x"}, "model x is an absolute path"),
        ({**EDIT, "grid": {"input": ["a"]}}, "grid has input, which cannot be varied"),
        ({**EDIT, "grid": {"seed": []}}, "grid's seed must be a list of one or more values"),
        ({**EDIT, "grid": {"seed": [1, 1]}}, "grid's seed has a value twice"),
        ({**EDIT, "grid": {"seed": list(range(400)), "steps": list(range(1, 400))}}, "159600 jobs; at most 100000"),
        ({"kind": "sketch", "prompt": "x", "input": "cat.png"}, "input is nothing that a job of the kind sketch has"),
        ({"kind": "splats", "input": "scene.ply", "target": "x", "up": [0, 0, 0]}, "up is 0, 0, 0"),
        ("[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence_at_its_line(here: Path, row: Any, sentence: str):
    (said,) = faults(jsonl(here, {**EDIT, "id": "good"}, row))
    assert said.startswith("line 3: ") and sentence in said, said
    assert str(here) not in said


def test_ids_and_outputs_are_there_once_on_any_file_system(here: Path):
    said = faults(
        jsonl(
            here, {**EDIT, "id": "One"}, {**EDIT, "id": "one", "output": "b.png"}, {**EDIT, "output": "X.png"},
            {**EDIT, "output": "x.PNG"}, {**EDIT, "output": "y.png", "save_mask": True},
            {**EDIT, "output": "y.mask.png"},
        )
    )  # fmt: skip
    assert [each.split(":")[0] for each in said] == ["line 3", "line 5", "line 7"]
    assert "the id one is line 2's already" in said[0] and "x.PNG is written by line 4" in said[1]


def test_links_that_lead_out_are_refused_and_those_that_stay_are_not(here: Path, tmp_path: Path):
    secret = tmp_path / "secret.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(secret)
    (here / "out.png").symlink_to(secret)
    (here / "stays.png").symlink_to(here / "cat.png")
    (here / "folder").symlink_to(tmp_path)
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "away").symlink_to(tmp_path)
    path = jsonl(
        here, {**EDIT, "input": "stays.png"}, {**EDIT, "input": "out.png"}, {**EDIT, "input": "folder/secret.png"},
        {**EDIT, "input": "fol*/*.png"}, {**EDIT, "output": "away/x.png"}, {**EDIT, "output": "sub/x.png"},
    )  # fmt: skip
    said = faults(path, made)
    assert [each.split(":")[0] for each in said] == ["line 3", "line 4", "line 5", "line 6"]
    assert all("a link that leads out" in each for each in said[:3]) and "through a link that leads out" in said[3]


@pytest.mark.parametrize(
    "head, sentence",
    [
        ('{"schema_version": 2}', "schema_version is 2; this version reads 1"),
        ('{"schema_version": true}', "schema_version is True"),
        ('{"schema_version": 1, "defualts": {}}', "defualts is not part of the head"),
        (
            '{"schema_version": 1, "defaults": {"sed": 1}}',
            "defaults has sed, which no kind of job has; do you mean seed?",
        ),
        ('{"schema_version": 1, "defaults": {"seed": -1}}', "in defaults, seed is -1"),
        ('{"schema_version": 1, "defaults": []}', "defaults must be an object"),
        (json.dumps(EDIT), 'the first line must say {"schema_version": 1}'),
    ],
)
def test_heads(here: Path, head: str, sentence: str):
    said = faults(jsonl(here, EDIT, head=head))
    assert said[0].startswith("line 1: ") and sentence in said[0]


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("jobs.csv", "input,input\ncat.png,dog.png\n", "line 1: each column needs a name of its own"),
        ("jobs.csv", "input,target\ncat.png\n", "line 2: there are 1 cells for 2 columns"),
        ("jobs.csv", 'input,target\ncat.png,"x\n', "this is no CSV"),
        ("jobs.csv", "input,target,seed\ncat.png,x,three\n", "line 2: seed is three; it must be a whole number"),
        ("jobs.yaml", "schema_version: 1\njobs: [{target: x, input: &a cat.png}, {input: *a}]", "line 2: anchors"),
        ("jobs.yaml", "schema_version: 1\njobs:\n- !!python/object:os.system x", "line 3: x cannot be read"),
        ("jobs.yaml", "schema_version: 1\njobs:\n- {", "this is no YAML"),
        ("jobs.yaml", "jobs: []", "line 1: it must say schema_version: 1"),
        ("jobs.yaml", "- a\n- b", "line 1: a YAML manifest has"),
        ("jobs.yaml", "schema_version: 1\njobs:\n- a\n- {input: cat.png}", "line 3: a row is a mapping"),
    ],
)  # fmt: skip
def test_faults_of_tables(here: Path, name: str, text: str, sentence: str):
    (here / name).write_text(text)
    assert any(sentence in each for each in faults(here / name))


@pytest.mark.parametrize("name", ["jobs.txt", "jobs.json", "none.jsonl", "https://example.com/jobs.jsonl"])
def test_what_is_no_manifest(here: Path, name: str):
    with pytest.raises(InputRefused):
        read_manifest(name if "//" in name else here / name)


def test_bytes_that_are_no_text(here: Path):
    (here / "jobs.jsonl").write_bytes(
        HEAD.encode() + b"\n\xff\xfe\n" + b'{"prompt": "x", "kind": "sketch"}\n' + b"y" * 2**21
    )
    said = faults(here / "jobs.jsonl")
    assert said == ["line 2: the line is not UTF-8 text.", "line 4: the line is longer than 1048576 bytes."]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from([*fields.FIELDS["image"], *fields.FIELDS["splats"], "id", "output", "kind", "grid", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=20)
            | st.sampled_from(["cat.png", "photos/*", "{stem}.png", "dds", "../x", "image", "svg"]),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["seed", "method", "a"]), inner, max_size=2),
            max_leaves=5,
        ),
        max_size=6,
    )
)  # fmt: skip
def test_any_row_is_read_or_refused_with_sentences(here: Path, row: dict[str, Any]):
    path = jsonl(here, row)
    try:
        jobs = read_manifest(path).jobs
    except ManifestRefused as refused:
        assert refused.faults and all(fault.sentence.endswith(".") for fault in refused.faults), refused.faults
        assert all("\n" not in str(fault) and len(str(fault)) < 1000 for fault in refused.faults)
    else:
        for job in jobs:
            for name in outputs_of(job):
                assert not name.startswith("/") and ".." not in Path(name).parts


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace")),
       st.sampled_from(["jobs.jsonl", "jobs.csv", "jobs.yaml"]))  # fmt: skip
def test_any_bytes_are_read_or_refused(here: Path, data: bytes, name: str):
    (here / name).write_bytes(data)
    with pytest.raises(ManifestRefused):
        read_manifest(here / name)


# ---- the published schema


def test_the_published_schema_is_the_code_s():
    published = ROOT / "docs" / "batch-manifest.schema.json"
    assert json.loads(published.read_text("utf-8")) == json.loads(json.dumps(fields.json_schema())), (
        "run python -m sdsedit.batch.fields > docs/batch-manifest.schema.json"
    )


def test_fields_are_the_engine_s():
    from dataclasses import fields as of

    from sdsedit import request
    from sdsedit.guidance import MAX_STRENGTH, METHODS, MIN_STRENGTH
    from sdsedit.request import EditConfig
    from sdsedit.sketch.change import SvgConfig
    from sdsedit.sketch.draw import MAX_STROKES, MIN_STROKES, STYLES, SketchConfig
    from sdsedit.splats.change import KINDS, SplatConfig
    from sdsedit.style import (
        MAX_CONTENT_WEIGHT,
        MAX_LAYERS,
        MAX_REFERENCES,
        MAX_REGIONS,
        MAX_TEXTURE,
        StyleConfig,
    )

    assert (
        tuple(METHODS) == fields.METHODS and set(fields.STYLES) == set(STYLES) and set(fields.EDIT_KINDS) == set(KINDS)
    )
    image = fields.FIELDS["image"]
    assert image["steps"].high == request.MAX_STEPS and image["size"].high == request.MAX_SIZE
    assert image["feather"].high == request.MAX_FEATHER
    assert (image["strength"].low, image["strength"].high) == (MIN_STRENGTH, MAX_STRENGTH)
    style = fields.FIELDS["style"]
    assert (style["references"].high, fields.MAX_TEXTURE) == (MAX_REFERENCES, MAX_TEXTURE)
    assert (style["content_weight"].high, style["layers"].high) == (MAX_CONTENT_WEIGHT, MAX_LAYERS)
    assert inputs.MAX_REGIONS == MAX_REGIONS
    assert fields.MAX_STYLE_WEIGHT == image["style_weight"].high == request.MAX_STYLE_WEIGHT
    assert set(style) - {*fields.NOT_SETTINGS, "prompt", "texture"} <= {each.name for each in of(StyleConfig)}
    assert all(set(DECIDING) <= set(each) for each in fields.FIELDS.values())
    strokes = fields.FIELDS["sketch"]["strokes"]
    assert (strokes.low, strokes.high) == (MIN_STROKES, MAX_STROKES)
    for kind, config in (
        ("image", EditConfig()),
        ("sketch", SketchConfig()),
        ("svg", SvgConfig()),
        ("splats", SplatConfig()),
    ):
        for each in of(config):
            name = "edit_kind" if each.name == "kind" else each.name
            if name in fields.FIELDS[kind] and not (kind == "svg" and name == "steps"):
                assert fields.FIELDS[kind][name].default == getattr(config, each.name), (kind, name)
