"""doctor: a model's report is Markdown without folders, says what is wrong, and finds a wrong setting."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch

from sdsedit import errors
from sdsedit.doctor import check_model
from sdsedit.prior import load_prior
from tests import tiny, tiny_mmdit


def rows(printed: str) -> dict[str, tuple[str, str]]:
    """check -> (verdict, what was found)."""
    found = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    return {name: (verdict, said) for name, verdict, said in found[1:]}


def test_the_builtin_model_is_in_order(capsys):
    assert check_model("builtin") == errors.OK
    printed = capsys.readouterr().out
    assert printed.startswith("### sdsedit doctor: builtin\n")
    assert [verdict for verdict, _ in rows(printed).values()] == ["ok"] * 7
    assert "predicts v_prediction over 1000 times" in printed and "128 px, 4 px a cell" in printed
    assert "16x16" in rows(printed)["attention maps"][1] and "looked for: cat" in rows(printed)["three-step edit"][1]
    assert re.search(r"Memory: \d+ MiB", printed)


@pytest.mark.parametrize("family", ["sd35_medium", "flux_dev"])
def test_a_transformer_is_examined_too_and_a_random_one_is_told(family, tmp_path, capsys):
    folder = tiny.saved(tiny_mmdit.FAMILIES[family](tmp_path / "tokens"), tmp_path / "models" / family)
    assert check_model(str(folder)) == errors.OK
    printed = capsys.readouterr().out
    found = rows(printed)
    assert "of joint blocks" in found["attention maps"][1] and "predicts flow" in printed
    assert found["noise is predicted"][0] == "**look**", "random weights find no noise"
    assert found["a batch is its rows"][0] == found["three-step edit"][0] == "ok"
    assert str(tmp_path) not in printed and f"### sdsedit doctor: {family}\n" in printed
    assert ("distilled guidance 1" in printed) == (family == "flux_dev")


def test_a_wrong_setting_of_a_good_model_is_found(tmp_path, capsys):
    from sdsedit.prior import builtin_path

    folder = tmp_path / "wrong"
    shutil.copytree(builtin_path(), folder)
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "epsilon"}))
    check_model(str(folder))
    assert rows(capsys.readouterr().out)["noise is predicted"][0] == "**look**"
    file = folder / "vae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "scaling_factor": 12.0}))
    check_model(str(folder))
    assert rows(capsys.readouterr().out)["latent scale"][0] == "**look**"


def test_a_model_that_fails_says_where_and_the_rest_is_still_checked(builtin_folder, tmp_path, capsys):
    folder = tmp_path / "broken"
    shutil.copytree(builtin_folder, folder)
    prior = load_prior(str(folder), device="cpu")
    with torch.no_grad():
        prior.unet.conv_out.bias.fill_(float("nan"))
    prior.unet.save_pretrained(folder / "unet")
    assert check_model(str(folder)) != errors.OK
    found = rows(capsys.readouterr().out)
    assert found["noise is predicted"] == ("**failed**", "not finite at t = 0.3")
    assert found["three-step edit"][0] == "**failed**" and "non-finite" in found["three-step edit"][1]
    assert found["latent scale"][0] != "**failed**" and len(found) == 7


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        ("nobody/nothing", errors.MODEL_MISSING, "It does not load: nobody/nothing"),
        ("/no/such/folder", errors.MODEL_MISSING, "no model folder folder"),
        ("model.ckpt", errors.USAGE, "safetensors only"),
    ],
)
def test_a_model_that_does_not_load_is_one_sentence(model, code, says, capsys):
    assert check_model(model) == code
    assert says in capsys.readouterr().out
