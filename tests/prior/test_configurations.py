"""The published configurations, at their true sizes on the meta device: parameters, shapes, layers, and their table."""

from __future__ import annotations

import pytest

from benchmarks import backbones
from sdsedit.known_models import KNOWN_MODELS

# Of the network: exact where its makers or diffusers publish the number, else what papers and pages say, within 1 %.
EXACT = {"sd15": 859_520_964, "sd21": 865_910_724, "sdxl": 2_567_463_684, "flux1-dev": 11_901_408_320}
ROUGH = {"koala-700m": 782e6, "koala-1b": 1161e6, "sd3-medium": 2.03e9, "sd35-large": 8.06e9, "flux1-schnell": 11.9e9}


@pytest.fixture(scope="module")
def facts():
    found = {}

    def get(name):
        if name not in found:
            found[name] = backbones.examine(name)
        return found[name]

    return get


@pytest.mark.parametrize("name", backbones.NAMES)
def test_a_published_configuration_is_what_its_makers_say(name, facts):
    found = facts(name)
    if name in EXACT:
        assert found.network == EXACT[name]
    elif name in ROUGH:
        assert abs(found.network / ROUGH[name] - 1) < 0.01
    assert found.native == {"sd15": 512, "sd21": 768}.get(name, 1024)
    assert found.predicts == {"sd21": "v_prediction"}.get(name, "flow" if name[:3] in ("sd3", "flu") else "epsilon")
    assert backbones.config(name)["source"] and backbones.config(name)["id"] in KNOWN_MODELS


@pytest.mark.parametrize(
    ("name", "words", "refined", "recorded"),
    [
        ("sd15", 16, 32, "10 of 32 layers"),  # LUSD's own: 16 x 16 and 32 x 32
        ("sd21", 24, 48, "10 of 32 layers"),
        ("sdxl", 32, 64, "70 of 140 layers"),
        ("koala-700m", 32, 64, "21 of 42 layers"),  # no middle block
        ("koala-1b", 32, 64, "30 of 60 layers"),
        ("sd3-medium", 64, 64, "joint blocks 12, 15, 17, 20 of 24"),
        ("sd35-medium", 64, 64, "joint blocks 12, 15, 17, 20 of 24"),
        ("sd35-large", 64, 64, "joint blocks 19, 24, 28, 33 of 38"),
        ("flux1-dev", 64, 64, "joint blocks 9, 11, 14, 16 of 19"),
        ("flux1-schnell", 64, 64, "joint blocks 9, 11, 14, 16 of 19"),
    ],
)
def test_which_attention_is_read(name, words, refined, recorded, facts):
    found = facts(name)
    assert (found.words, found.refined, found.recorded) == ((words, words), (refined, refined), recorded)


def test_the_table_in_the_docs_is_what_the_code_says(facts):
    page = backbones.OUT.read_text("utf-8")
    for name in backbones.NAMES:
        assert backbones.row(facts(name)) in page, f"run `python -m benchmarks.backbones`: {name} has changed"


def test_configurations_are_complete():
    assert {file.stem for file in backbones.CONFIGS.glob("*.json")} == set(backbones.NAMES)
