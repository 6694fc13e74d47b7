"""From scores to a table: means, areas, and blanks where nothing can be said."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdsedit.evaluate.report import COLUMNS, markdown, plot, summaries


def row(method="lusd", type="", **given):
    names = ("clip_t", "clip_i", "l1", "lpips", "clip_r", "direction", "psnr_outside")
    return {"method": method, "case": "x", "type": type, **dict.fromkeys(names), **given}


def test_means_areas_and_types():
    rows = [
        row(type="add", clip_t=0.2, clip_r=2.0, l1=0.1, clip_i=0.9),
        row(type="change", clip_t=0.4, clip_r=1.0, l1=0.3, clip_i=0.5),
        row("dds", clip_t=0.1, clip_r=1.0, l1=0.0, clip_i=1.0),
    ]
    everything, add, change, dds = summaries(rows)
    assert (everything["method"], everything["type"], everything["cases"]) == ("lusd", "", 2)
    assert everything["clip_t"] == pytest.approx(0.3) and everything["clip_auc"] == pytest.approx(0.2)
    assert everything["l1"] == pytest.approx(0.2) and everything["l1_star"] == pytest.approx(0.22 * 0.1)
    assert everything["clip_i_star"] == pytest.approx(0.22 * 0.9)
    assert (add["type"], add["cases"], add["clip_auc"]) == ("add", 1, pytest.approx(0.4))
    assert change["clip_auc"] == 0 and change["l1_star"] is None
    assert dds["method"] == "dds" and dds["clip_auc"] == 0 and dds["clip_i_star"] is None and dds["lpips"] is None


def test_the_table_has_a_cell_for_each_number_and_none_for_what_cannot_be_said():
    text = markdown("A set", "magicbrush", summaries([row(clip_r=1.5, l1=0.1)]), ["LPIPS: not installed."])
    lines = text.splitlines()
    assert lines[0] == "# A set" and "- LPIPS: not installed." in lines
    head, ruler, body = lines[-3:]
    assert head.count("|") == ruler.count("|") == body.count("|") == len(COLUMNS) + 4
    assert "| lusd | all | 1 |  |  | 0.100 |  | 1.500 | 0.400 | 0.022 |" in body
    assert "outside the dataset's mask" in markdown("A set", "pie", [], [])


def test_a_plot_is_drawn_only_of_something(tmp_path: Path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install 'sdsedit[train]'")
    assert not plot([row(l1=0.1)], tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    assert plot([row(clip_r=1.1, l1=0.1), row("dds", clip_r=1.2)], tmp_path / "some.png")
    assert (tmp_path / "some.png").read_bytes().startswith(b"\x89PNG")
