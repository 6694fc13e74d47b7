"""What is known of the inputs before a model is loaded; what is not looked at twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sdsedit.batch import inputs
from sdsedit.batch.manifest import ManifestRefused, read_manifest
from sdsedit.batch.store import Store

Write = Callable[..., Path]


def swap(path: Path, other: Path) -> None:
    """Other bytes in a file, of one size and with one time: only who reads it can tell."""
    then, data = path.stat(), other.read_bytes()
    data += bytes(then.st_size - len(data)) if len(data) <= then.st_size else b""
    path.write_bytes(data[: then.st_size])
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))


def test_a_file_that_has_not_changed_is_not_read_again(write: Write, here: Path, tmp_path: Path, builtin_folder: Path):
    path = write({"input": "a.png", "mask": "m.png"}, {"input": "b.png"}, {"kind": "style", "input": "a.png",
                 "references": ["b.png"], "id": "s"})  # fmt: skip
    manifest = read_manifest(path, model=str(builtin_folder))
    models = inputs.models_of(manifest)
    first: inputs.Seen = {}
    planned = inputs.examine(manifest, models, seen=first)
    assert len(first) == 3  # a, b and the mask, each once
    with Store(tmp_path / "store.sqlite") as store:
        store.keep_seen(first)
        seen = store.seen()
    swap(here / "a.png", here / "b.png")
    again = inputs.examine(manifest, models, seen=seen)
    assert [each.key for each in again] == [each.key for each in planned] and again[0].size == planned[0].size
    os.utime(here / "a.png")  # its time is another now: it is read
    try:
        assert inputs.examine(manifest, models, seen=seen)[0].key != planned[0].key
    except ManifestRefused as refused:  # what was put there need not be a whole picture
        assert "a.png is damaged" in str(refused)


def test_inputs_that_cannot_be_read_are_looked_at_each_time(write: Write, here: Path, builtin_folder: Path):
    (here / "a.png").write_bytes(b"no picture")
    manifest = read_manifest(write({"input": "a.png"}), model=str(builtin_folder))
    seen: inputs.Seen = {}
    for _ in range(2):
        with pytest.raises(ManifestRefused, match=r"a\.png"):
            inputs.examine(manifest, inputs.models_of(manifest), seen=seen)
    assert not seen


def test_every_file_of_a_job_is_kept_from_being_written_over(write: Write, here: Path, builtin_folder: Path):
    path = write({"kind": "style", "input": "a.png", "references": ["b.png"], "output": "b.png"})
    manifest = read_manifest(path, model=str(builtin_folder))
    planned = inputs.examine(manifest, inputs.models_of(manifest))
    with pytest.raises(ManifestRefused, match=r"b\.png would be written over an input"):
        inputs.check_apart(planned, here, here)
