"""The history: what is added is found again, by words, by another process, after a crash; what is deleted is gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdsedit.errors import InputRefused
from sdsedit.web import history
from sdsedit.web.history import History

RED = np.full((40, 800, 3), (200, 0, 0), np.uint8)


def recipe(target: str, **more: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": "image",
        "target": target,
        "source": "a cat on grass",
        "model": {"id": "builtin"},
        **more,
    }


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "cat-edited.png"
    path.write_bytes(b"the bytes of the picture")
    return path


@pytest.fixture
def kept(tmp_path: Path) -> History:
    return History(tmp_path / "history")


def test_what_is_added_is_there_again(kept: History, output: Path):
    given = recipe("a cat wearing a crown", method={"name": "lusd"})
    id = kept.add("image", output, RED, Image.fromarray(RED[:, :40]), given, {"input": output})
    item = History(kept.folder).get(id)  # as after a restart
    assert item.recipe == given and item.kind == "image" and item.title == "a cat wearing a crown"
    assert item.output.name == "cat-edited.png" and item.output.read_bytes() == output.read_bytes()
    assert abs(item.made - time.time()) < 60
    assert item.before is not None and Image.open(item.before).size == (320, 16)
    assert np.abs(np.asarray(Image.open(item.after)).astype(int) - RED[:, :40]).max() < 8
    found = item.input("input")
    assert found is not None and found.read_bytes() == output.read_bytes() and item.input("mask") is None


def test_a_sketch_has_no_before(kept: History, output: Path):
    id = kept.add("sketch", output, None, RED, {"kind": "sketch", "prompt": "an owl"})
    assert kept.get(id).before is None and kept.get(id).title == "an owl"


def test_search_by_words(kept: History, output: Path):
    first = kept.add("image", output, None, RED, recipe("a cat wearing a Crown", method={"name": "dds"}))
    second = kept.add("image", output, None, RED, recipe("ein Käfer 100%"))
    third = kept.add("splats", output, None, RED, recipe("a snowman", result={"kind": "delete"}))

    def found(words: str) -> list[str]:
        assert kept.count(words) == len(kept.search(words))
        return [item.id for item in kept.search(words)]

    assert found("") == [third, second, first]
    assert found("crown") == found("CROWN cat") == found("dds") == found("cro wearing") == [first]
    assert found("käfer") == found("100%") == [second] and found("%") == [second] and found("_") == []
    assert found("splats") == found("delete") == [third] and found("' OR 1 --") == []
    assert [item.id for item in kept.search("", 1, 1)] == [second]


def test_deleting_removes_the_files(kept: History, output: Path):
    id, other = (kept.add("image", output, RED, RED, recipe("a cat")) for _ in range(2))
    kept.delete(id)
    assert not (kept.folder / id).exists() and [item.id for item in kept.search()] == [other]
    for act in (kept.get, kept.delete):
        for name in (id, "../history", "", "%"):
            with pytest.raises(InputRefused, match="no longer in the history"):
                act(name)
    assert kept.get(other).output.is_file()


def test_a_disk_that_takes_nothing_leaves_nothing(kept: History, output: Path, tmp_path: Path):
    with pytest.raises(InputRefused, match="could not be put into the history"):
        kept.add("image", output, RED, RED, recipe("a cat"), {"input": tmp_path / "gone.png"})
    assert kept.search() == [] and [path.name for path in kept.folder.iterdir() if path.is_dir()] == []


def test_what_a_crash_left_is_swept_later(kept: History, output: Path):
    id = kept.add("image", output, RED, RED, recipe("a cat"))
    old, fresh, others = kept.folder / f".new-{'a' * 24}", kept.folder / f".new-{'b' * 24}", kept.folder / "notes"
    for folder in (old, fresh, others, kept.folder / ("c" * 24)):
        folder.mkdir()
    ago = time.time() - 2 * history._ABANDONED
    for folder in (old, others, kept.folder / id, kept.folder / ("c" * 24)):
        os.utime(folder, (ago, ago))
    History(kept.folder)
    assert not old.exists() and not (kept.folder / ("c" * 24)).exists()
    assert fresh.exists() and others.exists() and kept.get(id).output.is_file()


def test_a_row_whose_files_somebody_removed_is_not_shown(kept: History, output: Path):
    id = kept.add("image", output, RED, RED, recipe("a cat"))
    kept.get(id).output.unlink()
    assert kept.search() == []
    with pytest.raises(InputRefused, match="no longer"):
        kept.get(id)


MANY = """
import sys
from pathlib import Path
import numpy as np
from sdsedit.web.history import History
kept = History(Path(sys.argv[1]))
for k in range(15):
    id = kept.add("image", Path(sys.argv[2]), None, np.zeros((4, 4, 3), np.uint8), {"target": f"cat {k}"})
    if k % 3 == 0:
        kept.delete(id)
"""


def test_two_processes_at_once(kept: History, output: Path):
    both = [subprocess.Popen([sys.executable, "-c", MANY, str(kept.folder), str(output)]) for _ in range(2)]
    assert [each.wait(100) for each in both] == [0, 0]
    items = kept.search(limit=100)
    assert len(items) == kept.count() == 20 and all(item.output.is_file() for item in items)
    assert len([path for path in kept.folder.iterdir() if path.is_dir()]) == 20


def test_a_folder_that_is_none(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputRefused, match="folder cannot be used"):
        History(tmp_path / "file")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/index.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(InputRefused, match="index cannot be used"):
        History(tmp_path / "odd")
