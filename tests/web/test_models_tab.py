"""The Models tab: what is here, and licences that are acknowledged once. No model is asked for from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdsedit.errors import InputRefused
from sdsedit.known_models import KNOWN_MODELS
from sdsedit.prior import UNetPrior

pytest.importorskip("gradio", reason="the page needs gradio: pip install -c constraints.txt -e '.[web]'")

from sdsedit.web import models_tab
from sdsedit.web.models_tab import Licences, cards, machine_line, models

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_the_models_that_are_known():
    found = {model.id: model for model in models("builtin")}
    assert found["builtin"].size > 1e6 and set(KNOWN_MODELS) < set(found)
    shown = cards(list(found.values()), "builtin", {})
    assert shown.index("Built-in model") < shown.index("stable-diffusion-v1-5") and "in use" in shown
    assert shown.count("data-model=") == len(KNOWN_MODELS) and "hf download" not in shown


def test_a_model_of_ones_own_stands_first(tmp_path: Path):
    folder = tmp_path / "<b>mine"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}" * 700_000)
    shown = cards(models(str(folder)), str(folder), {})
    assert shown.index("&lt;b&gt;mine") < shown.index("Built-in model") and "here, 1 MB" in shown
    assert "<b>" not in shown and str(tmp_path) not in shown


def test_a_licence_is_acknowledged_once_and_for_all(tmp_path: Path):
    file = tmp_path / "data" / "licences.json"
    Licences(file).acknowledge(SD15)
    first = Licences(file).known()
    assert first[SD15]["licence"] == KNOWN_MODELS[SD15].licence
    Licences(file).acknowledge(SD15)
    assert Licences(file).known() == first
    shown = cards(models("builtin"), "builtin", first)
    assert "Licence acknowledged" in shown and f"hf download {SD15}" in shown and f'data-model="{SD15}"' not in shown


def test_what_cannot_be_acknowledged(tmp_path: Path):
    for name in ("builtin", "../x", "None"):
        with pytest.raises(InputRefused, match="no such model"):
            Licences(None).acknowledge(name)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputRefused, match="could not be recorded"):
        Licences(tmp_path / "file" / "licences.json").acknowledge(SD15)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 3}'])
def test_a_damaged_record_is_asked_for_again(tmp_path: Path, text: str):
    (tmp_path / "licences.json").write_text(text)
    assert Licences(tmp_path / "licences.json").known() == {}


def test_without_a_folder_it_is_remembered_while_the_page_runs():
    licences = Licences(None)
    licences.acknowledge(SD15)
    assert SD15 in licences.known()


def test_device_and_memory_in_plain_words(builtin_prior: UNetPrior):
    line = machine_line("ready", models_tab._about(builtin_prior))
    assert "Runs on the processor (" in line and "The model takes 1 MB of memory." in line
    assert "This page has used" in line and "GPU it" not in line
    assert "The model is loading." in machine_line("loading", None)
    assert "&lt;b&gt;" in machine_line("The model <b> is missing.", None)
