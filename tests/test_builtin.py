"""The model that ships: it loads with plain diffusers, fits, knows its words, and makes the edit of the front page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdsedit import read_picture
from sdsedit.attention.words import changed_words
from sdsedit.edit import edit
from sdsedit.guidance import METHODS, configured
from sdsedit.prior import builtin_path, load_prior
from sdsedit.request import Edit, EditConfig
from training.judge import load_judge

ROOT = Path(__file__).resolve().parents[1]
SOURCE, TARGET = "a cat on grass", "a cat wearing a crown on grass"


@pytest.fixture(scope="module")
def prior():
    return load_prior("builtin")


@pytest.fixture(scope="module")
def crowned(prior):
    picture = read_picture(ROOT / "assets" / "examples" / "cat.png").tensor()
    return picture, edit(picture, prior, Edit(TARGET, SOURCE))


def test_it_is_small_and_has_a_card_with_its_licences():
    folder = builtin_path()
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 40e6
    card = (folder / "README.md").read_text("utf-8")
    assert "MIT" in card and "Apache-2.0" in card and "supervised" in card and "@" not in card
    assert not [file for file in folder.rglob("*") if file.suffix in (".bin", ".pt", ".ckpt")]


def test_plain_diffusers_loads_and_samples_it():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(builtin_path())
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        "a cat on grass", height=128, width=128, guidance_scale=4.0, num_inference_steps=15,
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    red, green, blue = image.resize((16, 16)).getpixel((1, 14))
    assert image.size == (128, 128) and green > red and green > blue  # grass below


def test_its_shapes(prior):
    assert (prior.factor, prior.channels, prior.native, prior.max_tokens) == (4, 4, 128, 32)
    assert prior.schedule.prediction == "v_prediction"
    assert changed_words(prior.tokenize, SOURCE, TARGET).text == ("crown",)


def test_its_settings_are_settings_of_the_methods(prior):
    settings = json.loads((builtin_path() / "editing.json").read_text("utf-8"))
    assert set(settings) <= {*METHODS, "refine", "sketch", "style"} and settings == prior.editing
    for name in METHODS:
        assert configured(name, 1.0, prior.editing)


def test_the_first_edit_puts_a_crown_on_the_cat_and_leaves_the_rest(crowned):
    picture, result = crowned
    read = load_judge(ROOT / "benchmarks" / "judge.safetensors").read(torch.cat([picture, result.image]))
    assert read[0] == {"noun": "cat", "colour": "none", "accessory": "none", "background": "grass"}
    assert read[1] == {"noun": "cat", "colour": "none", "accessory": "crown", "background": "grass"}
    assert result.kept_pixels / result.total_pixels > 0.7
    rows = torch.arange(128.0)
    centre = (result.mask[0, 0].sum(1) * rows).sum() / result.mask.sum()
    assert centre < 64  # the crown is above the middle
    kept = (result.mask == 0).expand_as(picture)
    assert torch.equal(result.image[kept], picture[kept])


def test_the_same_seed_is_the_same_picture(prior, crowned):
    picture, result = crowned
    assert torch.equal(edit(picture, prior, Edit(TARGET, SOURCE)).image, result.image)


@pytest.mark.parametrize("size", [(96, 160), (200, 128), (61, 83)])
def test_any_size_comes_back_the_same_size(prior, size):
    picture = torch.full((1, 3, *size), 0.5)
    result = edit(picture, prior, Edit(TARGET, SOURCE), EditConfig(steps=2))
    assert result.image.shape == picture.shape
