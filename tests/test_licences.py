"""The record of licences: the first acknowledgement stays, the last revision does."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdsedit.errors import InputRefused
from sdsedit.licences import FILE, Licences, default_history

SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def test_one_file_for_the_page_and_the_command_line(tmp_path: Path):
    Licences(tmp_path / FILE).acknowledge(SD15)
    first = Licences(tmp_path / FILE).known()[SD15]
    Licences(tmp_path / FILE).acknowledge(SD15, "another", "abc")
    again = Licences(tmp_path / FILE).known()[SD15]
    assert again == {**first, "revision": "abc"} and "revision" not in first
    Licences(tmp_path / FILE).acknowledge("org/mine", "mit")
    assert set(Licences(tmp_path / FILE).known()) == {SD15, "org/mine"}


def test_without_a_licence_only_known_models():
    with pytest.raises(InputRefused, match="no such model"):
        Licences(None).acknowledge("org/mine")


def test_it_lies_where_the_page_keeps_its_history(monkeypatch, tmp_path: Path):
    from sdsedit.web import settings

    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_history() == settings.default_history() == tmp_path / "sdsedit" / "history"
