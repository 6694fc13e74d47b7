"""Scenes: what is drawn is what is said, masks are exact, and an edit's two scenes differ in one thing only."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from training import scenes
from training.art import ACCESSORIES, ART, NOUNS
from training.cache import NAMED
from training.scenes import (
    BACKGROUNDS,
    COLOURS,
    EDIT_KINDS,
    PENS,
    SIZE,
    EditKind,
    Rendered,
    Scene,
    caption,
    edit_pair,
    edit_truth,
    is_held_out,
    random_drawing,
    random_scene,
    render,
)

TRAINED = ("fluent-flat", "noto")
CHANGED = {"add": "accessory", "remove": "accessory", "replace": "noun", "colour": "colour", "background": "background"}
PLAIN = Scene("cat", None, None, "white", x=64, y=76, side=96, flip=False, background_seed=3)


def some(count: int, seed: int = 0, held_out: bool = False) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng, held_out=held_out) for _ in range(count)]


def different(a: Scene, b: Scene) -> list[str]:
    return [name for name, value in asdict(a).items() if value != asdict(b)[name]]


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_a_seed_is_a_scene():
    assert some(20, seed=5) == some(20, seed=5)
    assert some(20, seed=5) != some(20, seed=6)


def test_the_same_scene_is_drawn_the_same_without_the_caches_too():
    for scene in some(4):
        first = render(scene)
        for cached in (scenes._art, scenes._anchor, scenes._background, scenes._tint_cached):
            cached.cache_clear()
        second = render(scene)
        for name in ("image", "subject", "accessory"):
            assert np.array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("family", TRAINED)
def test_masks_are_shares_of_a_pixel(family: str):
    for scene in some(20):
        drawn = render(scene, family)
        assert drawn.image.shape == (SIZE, SIZE, 3) and drawn.image.dtype == np.uint8
        for mask in (drawn.subject, drawn.accessory):
            assert mask.shape == (SIZE, SIZE) and mask.dtype == np.float32
            assert mask.min() >= 0 and mask.max() <= 1
        assert (drawn.subject + drawn.accessory).max() <= 1 + 1e-6
        assert (drawn.accessory.max() > 0) == (scene.accessory is not None)


@pytest.mark.parametrize("family", TRAINED)
def test_every_thing_is_drawn_where_it_can_be_seen(family: str):
    """A subject fills a tenth of the picture or more, what it wears shows at least 60 pixels, whoever wears it."""
    for noun in NOUNS:
        for accessory in ACCESSORIES:
            drawn = render(replace(PLAIN, noun=noun, accessory=accessory), family)
            assert drawn.subject.sum() > SIZE * SIZE / 10, noun
            assert drawn.accessory.sum() > 60, (noun, accessory)


def test_every_background_and_colour_is_drawn_and_none_looks_like_another():
    for changed in ("background", "colour"):
        options = list(BACKGROUNDS if changed == "background" else COLOURS)
        drawn = {name: render(replace(PLAIN, **{changed: name})).image.astype(float) for name in options}
        for a in options:
            for b in options:
                assert a == b or np.abs(drawn[a] - drawn[b]).mean() > 1, (a, b)


def test_a_tint_is_of_the_colour_that_was_asked_for():
    for name, rgb in COLOURS.items():
        drawn = render(replace(PLAIN, colour=name))
        inside = drawn.image[drawn.subject > 0.99].astype(float)
        hue = np.median(inside, axis=0)
        assert np.corrcoef(hue, rgb)[0, 1] > 0.9, name


def test_the_family_that_no_training_sees_lacks_only_what_is_known():
    missing = {word for word, icon in (NOUNS | ACCESSORIES).items() if not (ART / "noto-v1" / f"{icon}.svg").exists()}
    assert missing == {"cup", "cap"}


def test_an_unknown_background_is_refused():
    with pytest.raises(ValueError, match="background 'moon': choose one of grass"):
        render(replace(PLAIN, background="moon"))


def mirrored(scene: Scene) -> tuple[Rendered, Rendered]:
    return render(scene), render(replace(scene, flip=True))


def test_a_flip_mirrors_the_subject_and_what_it_wears():
    for accessory in (None, "flower", "cap"):
        plain, flipped = mirrored(replace(PLAIN, accessory=accessory))
        for name in ("subject", "accessory"):
            a, b = getattr(plain, name), getattr(flipped, name)[:, ::-1]
            assert np.abs(a - b).max() < 0.1 and np.abs(a - b).mean() < 0.002, (accessory, name)


@pytest.mark.parametrize("family", TRAINED)
def test_a_crown_sits_above_the_eyes_and_sunglasses_on_them(family: str):
    rows = np.arange(SIZE) + 0.5
    for noun in NOUNS:
        scene = replace(PLAIN, noun=noun)
        eyes = scene.y - scene.side / 2 + scenes._anchor(family, noun).eyes * scene.side
        heights = {}
        for accessory in ("crown", "sunglasses"):
            worn = render(replace(scene, accessory=accessory), family).accessory
            heights[accessory] = float((worn.sum(1) * rows).sum() / worn.sum())
        assert heights["crown"] < eyes - (2 if noun != "frog" else 0), noun  # whose eyes are at its top
        assert abs(heights["sunglasses"] - eyes) < 6, noun


# --- captions ---------------------------------------------------------------------------------------------------------


def test_captions():
    assert caption(PLAIN) == "a cat on a white background"
    assert caption(PLAIN, background=False) == "a cat"
    assert caption(replace(PLAIN, noun="owl", background="night")) == "an owl at night"
    dressed = replace(PLAIN, colour="orange", accessory="crown", background="grass")
    assert caption(dressed) == "an orange cat wearing a crown on grass"
    shaded = replace(PLAIN, noun="apple", colour="blue", accessory="sunglasses", background="table")
    assert caption(shaded) == "a blue apple wearing sunglasses on a wooden table"
    hat = replace(PLAIN, accessory="top hat", background="sea")
    assert caption(hat) == "a cat wearing a top hat in the sea"


def test_a_caption_says_all_that_is_drawn_and_nothing_else():
    for scene in some(200):
        text = caption(scene)
        assert text.startswith(("a ", "an ")) and f" {scene.noun} " in text
        assert text.endswith(BACKGROUNDS[scene.background])
        assert ("wearing" in text) == (scene.accessory is not None)
        assert scene.accessory is None or scene.accessory in text
        for colour in COLOURS:
            assert (f" {colour} " in text) == (colour == scene.colour)


def test_the_words_of_a_background_that_show_are_in_its_phrase():
    said = {word for phrase in BACKGROUNDS.values() for word in phrase.split()}
    assert said >= NAMED and said - NAMED == {"on", "at", "in", "the", "a"}
    for phrase in BACKGROUNDS.values():
        assert NAMED & set(phrase.split())


# --- what training never sees -----------------------------------------------------------------------------------------


def test_held_out_combinations_come_only_when_asked_for():
    for held_out in (False, True):
        for scene in some(300, held_out=held_out):
            assert is_held_out(scene.noun, scene.accessory, scene.background) == held_out


def test_about_one_in_eight_combinations_is_held_out_and_none_without_a_thing_worn():
    combinations = [(n, a, b) for n in NOUNS for a in ACCESSORIES for b in BACKGROUNDS]
    share = sum(is_held_out(*each) for each in combinations) / len(combinations)
    assert 0.10 < share < 0.15
    assert not any(is_held_out(noun, None, background) for noun in NOUNS for background in BACKGROUNDS)


def test_each_thing_is_held_out_somewhere_and_trained_somewhere():
    for noun in NOUNS:
        assert {is_held_out(noun, a, b) for a in ACCESSORIES for b in BACKGROUNDS} == {False, True}
    for accessory in ACCESSORIES:
        assert {is_held_out(n, accessory, b) for n in NOUNS for b in BACKGROUNDS} == {False, True}


# --- edits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_the_two_scenes_of_an_edit_differ_in_one_thing(kind: EditKind, held_out: bool):
    rng = np.random.default_rng(4)
    for _ in range(25):
        source, target = edit_pair(kind, rng, held_out)
        assert different(source, target) == [CHANGED[kind]]
        assert caption(source) != caption(target)
        if kind == "add":
            assert source.accessory is None
        if kind == "remove":
            assert target.accessory is None
        if kind == "colour":
            assert source.colour is None
        if kind in ("add", "remove"):
            richer = target if kind == "add" else source
            assert is_held_out(richer.noun, richer.accessory, richer.background) == held_out


def test_no_edit_has_no_truth():
    for scene in some(5):
        assert not edit_truth(render(scene), render(scene)).any()


@pytest.mark.parametrize("kind", ["add", "remove"])
def test_the_truth_of_an_addition_is_where_the_new_thing_is(kind: EditKind):
    rng = np.random.default_rng(8)
    for _ in range(12):
        source, target = (render(scene) for scene in edit_pair(kind, rng))
        worn = (target if kind == "add" else source).accessory
        truth = edit_truth(source, target)
        assert not truth[worn == 0].any()
        # A blue bow over the blue sky changes little: nearly all of the thing, not all.
        assert truth[worn > 0.5].mean() > 0.8


def test_the_truth_of_a_new_background_is_around_the_subject_and_of_a_colour_inside_it():
    rng = np.random.default_rng(9)
    for _ in range(8):
        source, target = (render(scene) for scene in edit_pair("background", rng))
        assert not edit_truth(source, target)[source.subject + source.accessory > 0.999].any()
        source, target = (render(scene) for scene in edit_pair("colour", rng))
        assert not edit_truth(source, target)[source.subject == 0].any()


# --- line drawings ----------------------------------------------------------------------------------------------------


def test_a_line_drawing_is_ink_on_white_paper_and_says_so():
    rng = np.random.default_rng(3)
    for _ in range(6):
        scene = random_drawing(rng)
        drawn = render(scene)
        assert scene.colour is None and scene.pen in PENS and caption(scene).startswith("a drawing of a")
        grey = drawn.image.astype(int)
        assert np.ptp(grey, axis=-1).max() <= 8  # no colour
        assert (grey.min(-1) > 250).mean() > 0.4 and (grey.max(-1) < 90).mean() > 0.01
        assert (drawn.subject > 0.5).mean() > 0.1  # paper inside the outline belongs to the subject


def test_a_thinner_pen_leaves_less_ink_and_the_same_shape():
    thick = render(SCENE_OF_A_CAT)
    thin = render(replace(SCENE_OF_A_CAT, pen=PENS[0]))
    assert thin.image.astype(int).sum() > thick.image.astype(int).sum()
    a, b = thin.subject > 0.5, thick.subject > 0.5
    assert (a & b).sum() > 0.9 * (a | b).sum()


SCENE_OF_A_CAT = Scene("cat", None, None, "white", 64, 76, 96, False, 0, PENS[-1])
