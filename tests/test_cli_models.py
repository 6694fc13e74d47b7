"""`sdsedit models add` against a hub on this machine: what is said before, what is fetched, what is recorded."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from sdsedit import errors
from sdsedit.cli import main
from sdsedit.known_models import KNOWN_MODELS
from tests.hub import COMMIT, served

EXTRA = ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
         "safety_checker/model.safetensors", "v1-5-pruned.ckpt", "vae_decoder/model.onnx")  # fmt: skip


@pytest.fixture
def hub(monkeypatch, sd_folder, tmp_path):
    """org/tiny, with files beside that no prior reads; an empty cache; the page's folder in tmp_path."""
    shelf = tmp_path / "shelf"
    shutil.copytree(sd_folder, shelf)
    for extra in EXTRA:
        (shelf / extra).parent.mkdir(exist_ok=True)
        shutil.copy(shelf / "unet" / "diffusion_pytorch_model.safetensors", shelf / extra)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "platform", "linux")
    with served(shelf, monkeypatch) as hub:
        yield hub


def licences(tmp_path: Path) -> dict:
    file = tmp_path / "data" / "sdsedit" / "history" / "licences.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def add(*more: str) -> int:
    return main(["models", "add", "org/tiny", *more])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_model_is_shown_recorded_and_fetched_and_nothing_else(hub, tmp_path, capsys):
    assert add("--yes") == errors.OK
    said = capsys.readouterr().out
    wanted = [name for name in hub.fetched if name.endswith((".safetensors", ".bin", ".ckpt", ".onnx"))]
    assert sorted(wanted) == [
        "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]  # fmt: skip
    counts = 0
    for name in wanted:
        with safe_open(hub.shelf / name, "pt") as opened:
            counts += sum(opened.get_tensor(key).numel() for key in opened.keys())  # noqa: SIM118
    assert f"Memory:   {max(round(4 * counts / 1e6), 1)} MB for its weights on a CPU" in said
    assert "Licence:  mit" in said and f"Revision: {COMMIT}" in said and "Download: 1 MB in " in said
    assert "sdsedit doctor --model org/tiny" in said
    entry = licences(tmp_path)["org/tiny"]
    assert entry["licence"] == "mit" and entry["revision"] == COMMIT and entry["acknowledged"] > 1e9

    capsys.readouterr()
    assert main(["models", "list"]) == errors.OK
    listed = capsys.readouterr().out
    assert f"Licence: mit (acknowledged)\n  State:   here, revision {COMMIT}, pinned" in listed
    assert main(["models"]) == errors.OK and capsys.readouterr().out == listed

    hub.fetched.clear()
    assert main(["doctor", "--model", "org/tiny"]) == errors.OK  # loads and edits, from the cache alone
    assert not hub.fetched


def test_nothing_is_fetched_before_somebody_says_yes(hub, tmp_path, capsys, monkeypatch):
    assert add() == errors.USAGE
    assert "nobody could be asked: read the licence, then add --yes" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", Terminal("no\n"))
    assert add() == errors.USAGE
    assert "the licence was not acknowledged" in capsys.readouterr().err
    assert not licences(tmp_path) and not [name for name in hub.fetched if name.endswith(".safetensors")]
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert add() == errors.OK
    assert licences(tmp_path)["org/tiny"]["revision"] == COMMIT


def test_a_model_without_a_licence_says_what_that_means(hub, capsys):
    hub.licence = None
    assert add("--yes") == errors.OK
    assert "without one there is no permission" in capsys.readouterr().out


def test_a_gated_model_says_what_to_do_and_records_nothing(hub, tmp_path, capsys):
    hub.gated = True
    assert add("--yes") == errors.MODEL_MISSING
    said = capsys.readouterr().err
    assert "org/tiny (licence mit) is gated: accept its terms" in said and "hf auth login" in said
    assert not licences(tmp_path)


def test_a_model_that_moves_on_is_told_from_the_one_that_was_taken(hub, capsys, monkeypatch):
    assert add("--yes") == errors.OK
    hub.commit = "f" * 40
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    import torch

    from sdsedit.prior.load import fetch, look_up

    fetch(look_up("org/tiny", None, torch.float32))
    capsys.readouterr()
    assert main(["models"]) == errors.OK
    said = capsys.readouterr().out
    assert f"here, revision {'f' * 40}; the one that was taken is {COMMIT}" in said


@pytest.mark.parametrize(
    ("name", "code", "sentence"),
    [
        ("org/other", errors.MODEL_MISSING, "The hub has no public model org/other"),
        ("a b", errors.USAGE, "is not a model"),
        ("builtin", errors.USAGE, "is here already"),
        ("./nowhere", errors.MODEL_MISSING, "no model folder nowhere"),
    ],
)
def test_what_cannot_be_added(hub, capsys, name, code, sentence):
    assert main(["models", "add", name, "--yes"]) == code
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1


def test_offline_is_said_before_anything_is_asked(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert add("--yes") == errors.MODEL_MISSING
    assert "while HF_HUB_OFFLINE is set" in capsys.readouterr().err


def test_a_folder_is_listed_and_not_copied(sd_folder, tmp_path, capsys):
    folder, history = tmp_path / "mine", tmp_path / "page"
    shutil.copytree(sd_folder, folder)
    (folder / "README.md").write_text('---\ntags: [x]\nlicense: "cc0-1.0"\n---\n# Mine\n')
    assert main(["models", "add", str(folder), "--yes", "--history", str(history)]) == errors.OK
    assert "Licence:  cc0-1.0" in capsys.readouterr().out
    assert [file.name for file in history.iterdir()] == ["licences.json"]
    assert main(["models", "--history", str(history)]) == errors.OK
    said = capsys.readouterr().out
    assert "Licence: cc0-1.0 (acknowledged)" in said and "pinned" in said
    (folder / "unet" / "config.json").write_text("{}")
    assert main(["models", "--history", str(history)]) == errors.OK
    assert "the one that was taken is sha256:" in capsys.readouterr().out
    shutil.rmtree(folder)
    assert main(["models", "--history", str(history)]) == errors.OK
    assert "not here; its folder is gone" in capsys.readouterr().out


def test_a_folder_that_is_no_model_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["models", "add", str(tmp_path / "empty"), "--yes"]) == errors.USAGE
    assert "empty is not a diffusers folder" in capsys.readouterr().err


def test_the_known_models_are_listed_with_how_to_get_them(tmp_path, capsys):
    assert main(["models", "--history", str(tmp_path)]) == errors.OK
    said = capsys.readouterr().out
    for name, known in KNOWN_MODELS.items():
        assert name in said and known.licence in said
