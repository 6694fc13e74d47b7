"""MagicBrush and PIE-Bench in their own formats, and what is said of folders that are neither."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sdsedit.errors import InputRefused
from sdsedit.evaluate.datasets import decode_mask, read_dataset
from tests.evaluate.folders import magicbrush, pie


def test_every_turn_of_magicbrush_is_a_case_that_starts_at_the_datasets_own_picture(tmp_path: Path):
    cases = read_dataset(magicbrush(tmp_path / "test"), "magicbrush")
    assert [case.id for case in cases] == ["242679-output1", "368667-output1", "368667-output2"]
    second = cases[2]
    assert second.image.name == "368667-output1.png" and second.truth is not None
    assert second.truth.name == "368667-output2.png" and second.image.is_file()
    assert second.source == "a cat on grass wearing a red hat"
    assert second.target == "a cat on grass wearing a red hat wearing a red hat"
    assert second.caption == "a red hat" and second.mask is None
    assert len(read_dataset(tmp_path / "test", "magicbrush", 2)) == 2


def test_prompts_of_a_table_take_the_place_of_the_descriptions(tmp_path: Path):
    table = tmp_path / "prompts.csv"
    table.write_text('idx,source_prompt,target_prompt,more\n368667-output1,a seat,"a cat, on a seat",x\n')
    cases = read_dataset(magicbrush(tmp_path / "test"), "magicbrush", prompts=table)
    assert (cases[2].source, cases[2].target) == ("a seat", "a cat, on a seat")
    assert cases[0].source == "a cat on grass" and cases[2].caption == "a red hat"


def test_pie_bench_without_its_brackets_and_with_its_mask(tmp_path: Path):
    first, second = read_dataset(pie(tmp_path / "pie"), "pie")
    assert (first.id, first.source, first.target) == ("000000000000", "a cat on grass", "a red cat on grass")
    assert (second.source, second.type, second.truth) == ("a dog on grass", "change object", None)
    assert first.image.is_file() and first.mask is not None
    mask = decode_mask(first.mask)
    expected = np.zeros((512, 512), np.uint8)
    expected[100:102, 100:150] = 1
    assert (mask[1:-1, 1:-1] == expected[1:-1, 1:-1]).all() and mask[0].all() and mask[:, -1].all()
    assert second.mask is not None and decode_mask(second.mask).all()


def test_runs_are_row_after_row_and_end_with_the_picture():
    mask = decode_mask([5 + 3, 2, 10, 1, 15, 99], 6)
    inner = mask[1:-1, 1:-1]
    assert inner.tolist() == [[0, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    for bad in ([1], [-1, 2], [36, 1]):
        with pytest.raises(ValueError, match="pairs of a start"):
            decode_mask(bad, 6)


def test_folders_that_are_something_else(tmp_path: Path):
    def refused(kind, sentence, folder=None):
        with pytest.raises(InputRefused, match=sentence) as error:
            read_dataset(folder or tmp_path / "test", kind)
        assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)

    refused("pie", "There is no folder test")
    folder = magicbrush(tmp_path / "test")
    refused("pie", "is no PIE-Bench folder: it has no mapping_file.json")
    (folder / "images" / "368667" / "368667-output1.png").unlink()
    refused("magicbrush", "lacks the picture 368667-output1.png, and 1 more")
    (folder / "edit_turns.json").write_text('[{"input": "../../../x-1.png", "output": "242679-output1.png"}]')
    refused("magicbrush", "missing or of another kind")
    (folder / "edit_turns.json").write_text("[")
    refused("magicbrush", "cannot be read")
    (folder / "edit_turns.json").write_text("[]")
    refused("magicbrush", "has no edits in it")
    other = pie(tmp_path / "pie")
    mapping = json.loads((other / "mapping_file.json").read_text())
    (tmp_path / "secret.jpg").write_text("x")
    mapping["000000000000"]["image_path"] = "../../secret.jpg"
    (other / "mapping_file.json").write_text(json.dumps(mapping))
    refused("pie", "secret.jpg leads out", other)
    mapping["000000000000"]["image_path"] = "0_random_140/000000000000.jpg"
    mapping["000000000000"]["editing_prompt"] = "[]"
    (other / "mapping_file.json").write_text(json.dumps(mapping))
    refused("pie", "says nothing of what", other)
    mapping["000000000000"]["mask"] = ["x"]
    (other / "mapping_file.json").write_text(json.dumps(mapping))
    refused("pie", "PIE-Bench's", other)
