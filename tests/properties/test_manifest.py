"""Manifests as JSONL, CSV and YAML: every fault is a sentence at a line that is there, every job can be made again."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdsedit.batch import fields
from sdsedit.batch.manifest import Job, Manifest, ManifestRefused, outputs_of, read_manifest
from sdsedit.errors import InputRefused
from tests.properties.rules import JSON, damaged, examples, is_a_sentence

HEAD = {"schema_version": 1, "defaults": {"seed": 3, "strength": 1.5}}
EDIT = {"input": "cat.png", "source": "a cat", "target": "a cat wearing a crown"}
ROWS: list[dict[str, Any]] = [
    EDIT,
    {**EDIT, "id": "two", "output": "sub/two.png", "words": ["crown"], "method": "dds", "steps": 3, "seed": 9},
    {"input": "photos/*", "target": "a {stem} at night", "source": "a {stem}", "grid": {"seed": [0, 1]}},
    {"kind": "sketch", "prompt": "a fox", "strokes": 9},
    {"kind": "svg", "input": "icon.svg", "target": "a cat", "share": 0.25},
    {"kind": "splats", "input": "scene.ply", "target": "a red cup", "up": [0, 0, 1]},
]
WORDS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b":",
    b"\n",
    b"\r",
    b"\t",
    b"-",
    b"- ",
    b"NaN",
    b"null",
    b"1e999",
    b"9" * 5000,
    b"*",
    b"&a",
    b"*a",
    b"!!int ",
    b"!!python/object:os.system",
    b"!!binary x",
    b"!!timestamp ",
    b"---\n",
    b"...\n",
    b"<<: ",
    b"? ",
    b"|\n",
    b"\xff",
    b"\x00",
    b"\xe2\x80\xae",
    b"\xef\xbb\xbf",
    b"../",
    b"/etc/passwd",
    b"http://x/",
    b"{stem}",
    b"'",
    b"schema_version",
    b"2001-13-45",
    b"0x",
    b"0o9",
    b"1:99",
    b".inf",
    b"#",
]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("manifest") / "root"
    (root / "photos").mkdir(parents=True)
    for name in ("cat.png", "photos/a.png", "photos/b.png"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / name)
    (root / "icon.svg").write_text("<svg/>")
    (root / "scene.ply").write_text("ply")
    yield root


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row) for row in [HEAD, *rows]).encode()


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    plain = [row for row in rows if "grid" not in row]
    names = list(dict.fromkeys(name for row in plain for name in row))
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(names)
    for row in plain:
        values = (row.get(name, "") for name in names)
        table.writerow([",".join(map(str, each)) if isinstance(each, list) else each for each in values])
    return text.getvalue().encode()


def as_yaml(rows: list[dict[str, Any]]) -> bytes:
    import yaml

    return yaml.safe_dump({**HEAD, "jobs": rows}, sort_keys=False, allow_unicode=True).encode()


FORMS = {"jsonl": as_jsonl, "csv": as_csv, "yaml": as_yaml}


def look(here: Path, name: str, data: bytes) -> Manifest | None:
    """Read or refused with all faults; a job that was read lies below the folders, and is a row that says the same."""
    path = here / name
    path.write_bytes(data)
    breaks = (b"\n", b"\r", "\x85".encode(), "\u2028".encode(), "\u2029".encode())  # the last three are YAML's alone
    lines = sum(data.count(each) for each in breaks) + 1
    try:
        manifest = read_manifest(path, here / "out")
    except ManifestRefused as refused:
        is_a_sentence(str(refused)[:580] + ".", here)
        assert refused.faults and refused.status in (413, 422)
        for fault in refused.faults:
            is_a_sentence(fault.sentence, here)
            assert 0 <= fault.line <= lines
        return None
    except InputRefused as refused:
        is_a_sentence(str(refused), here)
        return None
    assert manifest.jobs
    written: set[str] = set()
    for job in manifest.jobs:
        assert Job.load(job.dump()) == job and 1 <= job.line <= lines and job.kind in fields.KINDS
        for name_ in outputs_of(job):
            assert not PurePosixPath(name_).is_absolute() and ".." not in PurePosixPath(name_).parts
            assert name_.casefold() not in written
            written.add(name_.casefold())
        for file in (job.input, job.mask):
            assert file is None or (here / file).resolve().is_relative_to(here.resolve())
        assert set(job.settings) <= set(fields.FIELDS[job.kind])
    for note in manifest.notes:
        assert "\n" not in note
    again = "\n".join(json.dumps(row) for row in [{"schema_version": 1}, *(job.row() for job in manifest.jobs)])
    (here / "again.jsonl").write_text(again)
    repeated = read_manifest(here / "again.jsonl", here / "out").jobs
    assert [(job.id, job.output, job.settings, job.input) for job in repeated] == [
        (job.id, job.output, job.settings, job.input) for job in manifest.jobs
    ]
    return manifest


@pytest.mark.parametrize("form", FORMS)
def test_the_rows_themselves_are_good(here: Path, form: str):
    manifest = look(here, f"jobs.{form}", FORMS[form](ROWS))
    assert manifest is not None and len(manifest.jobs) == (5 if form == "csv" else 9)


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
@examples(1.5)
def test_damaged_manifests(here: Path, form: str, data: st.DataObject):
    rows = data.draw(st.lists(st.sampled_from(ROWS), min_size=1, max_size=3, unique_by=lambda row: str(row)))
    look(here, f"jobs.{form}", data.draw(damaged(FORMS[form](rows), WORDS, most=3)))


NAME = st.sampled_from(
    sorted({name for kind in fields.FIELDS.values() for name in kind} | {"id", "output", "kind", "grid"})
)
VALUE = JSON | st.sampled_from(
    [
        "cat.png",
        "photos/*",
        "photos/[",
        "{stem}.png",
        "{id}.png",
        "a/../b.png",
        "dds",
        "icon.svg",
        "scene.ply",
        "image",
        "svg",
        "splats",
        "sketch",
        "builtin",
        "nul.png",
        "a .png",
        "A.PNG",
        "_batch/a.png",
        "a\\b.png",
        "C:a.png",
        [0, 0, 1],
        ["crown"],
        {"seed": [0, 1]},
        {"seed": [1, 1]},
        {"target": ["a", "b"]},
        {"method": []},
    ]
)


@pytest.mark.parametrize("form", ["jsonl", "yaml"])
@given(data=st.data())
@examples(2)
def test_rows_with_other_values(here: Path, form: str, data: st.DataObject):
    row = data.draw(st.sampled_from(ROWS)) | data.draw(st.dictionaries(NAME | st.text(max_size=6), VALUE, max_size=3))
    row = {name: value for name, value in row.items() if data.draw(st.integers(0, 9)) or name == "kind"}
    defaults = data.draw(st.just({}) | st.dictionaries(NAME, VALUE, max_size=2))
    if form == "jsonl":
        look(here, "jobs.jsonl", "\n".join(map(json.dumps, [{**HEAD, "defaults": defaults}, row])).encode())
    else:
        # Flow style is JSON, nearly: a YAML reader's own idea of numbers and text comes in here.
        head = {"schema_version": 1, "defaults": defaults, "jobs": [row]}
        look(here, "jobs.yaml", json.dumps(head, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@given(
    st.lists(
        st.lists(st.text(max_size=8) | st.sampled_from(["cat.png", "a cat", "1", "true", ""]), max_size=5), max_size=4
    ),
    st.lists(NAME, max_size=5),
)
@examples()
def test_any_table(here: Path, cells: list[list[str]], names: list[str]):
    text = io.StringIO()
    csv.writer(text).writerows([["input", "target", *names], *(["cat.png", "a cat", *row] for row in cells)])
    look(here, "jobs.csv", text.getvalue().encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("form", FORMS)
@given(
    st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([b"", b'{"schema_version": 1}\n', b"schema_version: 1\njobs:\n", b"input,target\n"]),
)
@examples()
def test_any_bytes(here: Path, form: str, noise: bytes, start: bytes):
    look(here, f"jobs.{form}", start + noise)


@given(
    st.sampled_from(
        ["int", "float", "bool", "null", "binary", "timestamp", "omap", "pairs", "set", "python/name:os.system"]
    ),
    st.sampled_from(["''", "x", "0x", "'-'", "'_'", "'.'", "[1]", "{a: 1}", "2001-13-45", "é"]),
    st.sampled_from(["- target: {}", "- {}", "- {{{}: 2}}", "- input: cat.png\n  target: a cat\n  seed: {}", "{}"]),
)
@examples(2)
def test_any_tag_of_yaml(here: Path, tag: str, value: str, row: str):
    look(here, "jobs.yaml", f"schema_version: 1\njobs:\n{row.format(f'!!{tag} {value}')}\n".encode())
