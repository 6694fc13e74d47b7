"""Sketches from words: what is refused, what stops a run, and that what is left matters and belongs to a word."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdsedit.errors import InputRefused
from sdsedit.prior import load_prior
from sdsedit.render.strokes import NONZERO, STROKE, Topology
from sdsedit.representations.sketch import Page, ink
from sdsedit.sketch import start
from sdsedit.sketch.draw import METHODS, WORDS, Shapes, SketchConfig, _renew, _tidy, check_sketch, inked, sketch
from sdsedit.sketch.start import directions
from tests.sketch.painter import Painter, disc, painted

PROMPT = "a cat on grass"
ASKED = WORDS["drawing"].format(PROMPT)
COLOURED = WORDS["colour"].format(PROMPT)
RED, GREEN, INK = (0.9, 0.1, 0.1), (0.2, 0.7, 0.2), (0.1, 0.1, 0.1)
RING = painted(64, (disc(64, (30, 26), 16), INK), (disc(64, (30, 26), 13), (1.0, 1.0, 1.0)))
SPOTS = painted(64, (disc(64, (24, 24), 14), RED), (disc(64, (46, 48), 9), GREEN))
SHORT = SketchConfig(strokes=12, steps=12, guide_steps=3, guides=1)


def place() -> torch.Tensor:
    """Attention: the upper left."""
    return disc(8, (3.75, 3.25), 3.0) * 0.8 + 0.1


def painter(picture: torch.Tensor = RING, **settings) -> Painter:
    return Painter(dict.fromkeys((ASKED, COLOURED, PROMPT), picture), 64, 0.0, place(), **settings)


def numbers(result) -> list[torch.Tensor]:
    return [result.points, result.widths, result.colours, result.background, result.guide, result.attention]


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strokes": 3}, "strokes is 3; it must be a whole number from 4 to 2048"),
        ({"strokes": 2049}, "strokes is 2049"),
        ({"strokes": 16.0}, "strokes is 16.0"),
        ({"style": "oil"}, "style is 'oil'; it must be one of ink, colour, icon"),
        ({"style": "x" * 1000}, "style is 'xxx"),
        ({"width": 0}, "width is 0; it must be a number from 0.1 to 20"),
        ({"width": float("nan")}, "width is nan"),
        ({"width": "thick"}, "width is thick"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 to 10000"),
        ({"steps": True}, "steps is True"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"distillation": 1.5}, "distillation is 1.5; it must be a number from 0 to 1"),
        ({"distillation": -0.1}, "distillation is -0.1"),
        ({"guide_steps": 0}, "guide_steps is 0"),
        ({"guides": 0}, "guides is 0"),
        ({"guides": 17}, "guides is 17; it must be a whole number from 1 to 16"),
        ({"method": "magic"}, "method is 'magic'; .* one of sds, csd, nfsd, sbp, ism, vsd"),
        ({"method": "lusd"}, "method is 'lusd'; for a sketch, which has no source"),
    ],
)
def test_settings_that_are_refused_before_a_model_is_asked(change, message):
    prior = painter()
    with pytest.raises(InputRefused, match=message) as refusal:
        sketch(PROMPT, prior, SketchConfig(**change))
    assert not prior.batches and len(str(refusal.value)) < 200 and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "The prompt is empty"),
        ("  ", "The prompt is empty"),
        (None, "The prompt must be text; got NoneType"),
        ("a cat\x00", "The prompt has the control character U\\+0000"),
        ("cat " * 600, "The prompt has 2400 characters"),
        ("the", "names no thing to draw; write at least one noun"),
        ("red", "names no thing to draw"),
        ("two big blue", "names no thing to draw"),
        ("?!", "names no thing to draw"),
        ("of " * 34 + "cat", "too long"),  # read in the prompt alone, not in what the model is asked
    ],
)
def test_prompts_that_are_refused(prompt, message):
    prior = painter()
    with pytest.raises(InputRefused, match=message):
        sketch(prompt, prior, SHORT)
    assert not prior.batches


def test_what_is_allowed_is_allowed():
    check_sketch("a cat", SketchConfig())
    for change in (
        {"strokes": 4},
        {"strokes": 2048},
        {"style": "icon"},
        {"width": 20},
        {"distillation": 0},
        {"steps": 1},
    ):
        check_sketch("a red cat", SketchConfig(**change))
    for method in METHODS:
        prior = load_prior("builtin", device="cpu") if method == "vsd" else painter()  # which has no layers to add to
        assert sketch(PROMPT, prior, replace(SHORT, method=method, steps=2)).steps_done == 2


# A sketch


@pytest.fixture(scope="module")
def ring():
    seen = []
    return sketch(PROMPT, painter(), replace(SHORT, strokes=24, steps=60), seen.append), seen


def test_a_sketch_is_nearer_to_what_the_model_wants_than_what_it_began_with(ring):
    result, _ = ring
    assert result.guide.shape == (1, 3, 64, 64) and result.size == (64, 64)

    def far(picture: torch.Tensor) -> float:
        return float((picture - result.guide).square().mean())

    assert far(result.picture(64)) < 0.7 * far(torch.ones(1, 3, 64, 64)) and result.steps_done == 60
    anchors = result.points.view(-1, 4, 2)[:, [0, 3]].flatten(0, 1)
    distance = ((anchors - torch.tensor([30.0, 26.0])).norm(dim=1) - 14.5).abs()
    assert distance.median() < 4  # strokes lie on the ring


def test_every_step_is_reported_with_the_shares_and_a_preview(ring):
    result, seen = ring
    assert [(each.index, each.total) for each in seen] == [(k, 60) for k in range(60)]
    assert all(sum(each.shares.values()) == pytest.approx(1) for each in seen)
    assert seen[0].preview().shape == (1, 3, 64, 64) and seen[0].preview(100).shape == (1, 3, 100, 100)
    assert result.shares["distillation"] == pytest.approx(0.5) and sum(result.shares.values()) == pytest.approx(1)
    assert len(result.history) == 60 and 0 < result.drawing_seconds < result.seconds


def test_what_is_left_matters_and_has_a_word(ring):
    result, _ = ring
    count = len(result.topology)
    assert len(result.groups) == len(result.widths) == len(result.colours) == count >= 4
    assert count + result.dropped == 24 and result.words == ("cat", "grass") and result.prompt == ASKED
    assert set(result.groups) <= {"cat", "grass", "background"}
    assert result.topology.kinds == (STROKE,) * count and result.topology.points == len(result.points)
    assert torch.equal(result.colours[:, :3], torch.full((count, 3), 0.1))  # ink stays ink
    assert (result.background == 1).all() and result.attention.shape == (1, 1, 64, 64)
    shown = ink(Shapes(result.topology, *(numbers(result)[:4])).drawing(), torch.zeros(0, 64, 64))
    assert (shown[-1] > 0.5).all()


def test_one_seed_is_one_sketch_and_another_is_another():
    prior = painter()
    first, again, other = (sketch(PROMPT, prior, replace(SHORT, seed=seed)) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(numbers(first), numbers(again), strict=True))
    assert first.groups == again.groups and first.history == again.history
    assert first.points.shape != other.points.shape or not torch.equal(first.points, other.points)


def test_the_guide_is_the_one_of_several_that_says_the_words_best():
    prior = Painter({ASKED: RING}, 64, 0.3, place())  # samples differ
    config = replace(SHORT, guides=4, steps=1)
    four = [sketch(PROMPT, prior, replace(config, seed=seed)).guide for seed in range(3)]
    assert max(prior.batches) == 8 and all(guide.shape == (1, 3, 64, 64) for guide in four)
    one = [sketch(PROMPT, prior, replace(config, seed=seed, guides=1)).guide for seed in range(3)]
    assert not all(torch.equal(a, b) for a, b in zip(one, four, strict=True))  # not always the first one

    def far(guides: list[torch.Tensor]) -> float:
        return sum(float((guide - inked(RING)).square().mean()) for guide in guides)

    assert far(four) < far(one)


def test_few_strokes_are_longer_and_a_width_is_a_width():
    few, many, wide = (
        sketch(PROMPT, painter(), replace(SHORT, strokes=strokes, width=width, steps=1))
        for strokes, width in ((4, 1.0), (64, 1.0), (4, 3.0))
    )

    def length(result) -> float:
        ends = result.points.view(-1, 4, 2)
        return float((ends[:, 3] - ends[:, 0]).norm(dim=1).mean())

    assert length(few) > 1.5 * length(many)
    assert wide.widths.mean() == pytest.approx(3 * few.widths.mean().item(), rel=0.1)


def test_only_distillation_and_only_likeness():
    alone = sketch(PROMPT, painter(), replace(SHORT, distillation=1, steps=2))
    assert alone.shares == {"distillation": 1.0} and alone.notes == ()
    without = sketch(PROMPT, painter(), replace(SHORT, distillation=0, steps=4))
    assert "distillation" not in without.shares and sum(without.shares.values()) == pytest.approx(1)


def test_colour_takes_the_guides_colours_and_an_icon_its_areas():
    colour = sketch(PROMPT, painter(SPOTS), replace(SHORT, style="colour", strokes=32))
    assert colour.prompt == COLOURED and set(colour.topology.kinds) == {STROKE}
    assert colour.colours[:, 0].max() > 0.6 and colour.colours[:, 2].mean() < 0.5
    everywhere = torch.ones(8, 8)
    everywhere[0, 7] = 0
    icon = sketch(PROMPT, Painter({COLOURED: SPOTS}, 64, 0.0, everywhere), replace(SHORT, style="icon"))
    assert set(icon.topology.kinds) == {NONZERO} and len(icon.topology) >= 2
    assert (icon.colours[:, 3] == 1).all() and (icon.picture(64) - icon.guide).abs().mean() < 0.04
    found = icon.colours[:, :3]
    for wanted in (RED, GREEN):
        assert ((found - torch.tensor(wanted)).abs().amax(1) < 0.12).any()


def test_an_icon_with_a_background_is_on_the_colour_of_its_border_and_asked_as_written():
    blue = (0.3, 0.5, 0.9)
    scene = painted(64, (torch.ones(64, 64), blue), (disc(64, (32, 32), 14), RED))
    result = sketch(PROMPT, painter(scene), replace(SHORT, style="icon", background=True))
    assert result.prompt == PROMPT and torch.allclose(result.background, torch.tensor(blue), atol=0.03)
    assert torch.allclose(result.picture(64)[0, :, 2, 2], torch.tensor(blue), atol=0.05)


def test_a_picture_without_areas_is_an_empty_icon_and_that_is_said():
    result = sketch(PROMPT, painter(torch.ones(1, 3, 64, 64)), replace(SHORT, style="icon"))
    assert len(result.topology) == 0 and result.groups == () and (result.picture(32) == 1).all()
    assert any("no areas to trace" in note for note in result.notes)


def test_a_blank_guide_is_no_error():
    result = sketch(PROMPT, painter(torch.ones(1, 3, 64, 64)), SHORT)
    assert result.steps_done == 12 and result.picture(32).isfinite().all()


def test_a_prompt_that_is_cut_says_which_words():
    prior = painter()
    long = "a cat " + "and a dog " * 14
    result = sketch(long, prior, replace(SHORT, steps=1))
    assert any("these words were cut" in note for note in result.notes) and "cat" in result.words


# What stops it


def test_cancelled_after_the_first_step_there_is_a_drawing():
    seen = []

    def on_step(step):
        seen.append(step.index)
        return False

    result = sketch(PROMPT, painter(), SHORT, on_step)
    assert seen == [0] and result.stopped == "cancelled" and result.steps_done == 1
    assert len(result.topology) >= 1 and result.picture(64).min() < 0.7


def test_a_prediction_that_is_not_finite_stops_and_keeps_the_last_good_page():
    prior = painter()
    prior.poisoned_at = 3 + 1 + 5  # guide, the features of the guide, five passes of the run
    result = sketch(PROMPT, prior, replace(SHORT, distillation=1))
    assert result.stopped.startswith("non-finite gradient at step ") and 0 < result.steps_done < 12
    assert len(result.topology) >= 1 and all(each.isfinite().all() for each in numbers(result))


def test_a_likeness_that_is_not_finite_does_not_spoil_the_page():
    prior = painter()
    encoder = prior.encoder_features
    looked = 0

    def overflowing(image):
        nonlocal looked
        looked += 1
        return tuple(each * (torch.inf if looked > 2 else 1) for each in encoder(image))

    prior.encoder_features = overflowing  # as half precision may
    result = sketch(PROMPT, prior, SHORT)
    assert looked > 2 and result.steps_done == 12 and all(each.isfinite().all() for each in numbers(result))


# Shapes, and what is done with them


def lots() -> Shapes:
    """A stroke, a ring of two contours, and another stroke."""
    topology = Topology(
        (STROKE, NONZERO, STROKE), (((2, False),), ((2, True), (3, True)), ((1, False),)), (True, True, False)
    )
    points = torch.rand(topology.points, 2, generator=torch.Generator().manual_seed(0)) * 32
    return Shapes(topology, points, torch.tensor([[1.0, 2], [0, 0], [3, 3]]), torch.rand(3, 4), torch.ones(3))


def test_some_shapes_of_a_drawing_in_another_order():
    drawn = lots()
    assert drawn.spans() == [(0, 7), (7, 22), (22, 26)]
    some = drawn.keep([2, 1])
    assert some.topology.kinds == (STROKE, NONZERO) and some.topology.round_caps == (False, True)
    assert torch.equal(some.points, torch.cat([drawn.points[22:], drawn.points[7:22]]))
    assert torch.equal(some.widths, drawn.widths[[2, 1]]) and torch.equal(some.colours, drawn.colours[[2, 1]])
    assert torch.equal(drawn.keep([0, 1, 2]).picture((32, 32)), drawn.picture((32, 32)))
    assert (drawn.keep([]).picture((32, 32)) == 1).all()
    assert drawn.picture((32, 32), (64, 64)).shape == (1, 3, 64, 64)


def lines(*rows: tuple[float, float, float], opacity: float = 1.0) -> Shapes:
    """Level strokes, 2 pixels wide: y, left, right."""
    points = torch.stack(
        [torch.stack([torch.linspace(a, b, 4), torch.full((4,), y)], dim=-1) for y, a, b in rows]
    ).flatten(0, 1)
    n = len(rows)
    topology = Topology((STROKE,) * n, (((1, False),),) * n, (True,) * n)
    colours = torch.tensor([[*INK, opacity]]).expand(n, 4)
    return Shapes(topology, points, torch.full((n, 2), 2.0), colours, torch.ones(3))


def test_tidying_leaves_what_shows_what_is_wanted_and_each_thing_once():
    wanted = lines((8, 4, 28), (24, 4, 28))
    drawn = lines(
        (24, 4, 28),
        (8, 4, 28),
        (8.2, 28, 4),  # the same, the other way round
        (16, 4, 28),  # not wanted
        (-20, 4, 28),  # off the page
    )
    places = torch.zeros(3, 32, 32)
    places[0, 16:] = 1
    places[1, :10] = 0.2  # hardly at all
    tidy, groups = _tidy(drawn, wanted.picture((32, 32)), ("hat", "cat", "dog"), places, (32, 32))
    assert groups == ("background", "hat")
    assert torch.equal(tidy.points, drawn.keep([1, 0]).points) or torch.equal(tidy.points[4:], drawn.points[:4])


def test_words_come_together_where_that_changes_nothing_and_not_where_it_would():
    apart = lines((4, 4, 28), (20, 4, 28), (9, 4, 28), (26, 4, 28))
    places = torch.zeros(2, 32, 32)
    places[0, :14], places[1, 14:] = 1, 1
    arguments = (apart.picture((32, 32)), ("cat", "grass"), places, (32, 32))
    tidy, groups = _tidy(apart, *arguments)
    assert groups == ("cat", "cat", "grass", "grass") and torch.equal(tidy.points, apart.keep([0, 2, 1, 3]).points)
    # A red stroke of the grass goes over the first stroke of the cat and under the second.
    upright = torch.stack([torch.full((4,), 16.0), torch.linspace(4, 28, 4)], dim=-1)
    points = torch.cat([lines((10, 4, 28)).points, upright, lines((22, 4, 28)).points])
    colours = torch.tensor([[*INK, 1.0], [*RED, 1.0], [*INK, 1.0]])
    woven = replace(
        lines((0, 0, 1), (0, 0, 1), (0, 0, 1)), points=points, widths=torch.full((3, 2), 4.0), colours=colours
    )
    places[0], places[1] = 1, 0
    places[:, :, 14:18] = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    tidy, groups = _tidy(woven, woven.picture((32, 32)), ("cat", "grass"), places, (32, 32))
    assert groups == ("cat", "grass", "cat") and torch.equal(tidy.points, woven.points)


def test_strokes_on_each_other_are_one_also_where_the_page_would_be_lighter_for_it():
    twice = lines((8, 4, 28), (8.3, 28, 4), (24, 4, 28), opacity=0.5)
    places = torch.ones(1, 32, 32)
    wanted = lines((8, 4, 28), (24, 4, 28)).picture((32, 32))
    tidy, groups = _tidy(twice, wanted, ("cat",), places, (32, 32))
    assert torch.equal(tidy.points, twice.keep([0, 2]).points) and groups == ("cat", "cat")


def test_dead_strokes_begin_anew_where_ink_is_missing_and_living_ones_stay():
    wanted = lines((8, 4, 28), (24, 4, 28)).picture((32, 32))
    drawn = lines((8, 4, 28), (-30, 4, 28), (16, 4, 28))
    drawn = replace(drawn, colours=torch.tensor([[*INK, 1.0], [*INK, 1.0], [*INK, 0.01]]))
    page = Page(
        drawn.topology, drawn.points, drawn.widths, drawn.colours, drawn.background, (32, 32), Painter({}), 10,
        torch.Generator().manual_seed(0), _rates(),
    )  # fmt: skip
    config = SketchConfig(strokes=3)
    where = (torch.ones(32, 32), start.lines(wanted)[0, 0], directions(wanted))
    _renew(page, wanted, *where, config, torch.Generator().manual_seed(0), stroke=2.0)
    points = page.points.detach().view(3, 4, 2)
    assert torch.equal(points[0], drawn.points[:4])
    assert (points[1:].mean(1)[:, 1] - 24).abs().max() < 5  # the line that is missing
    assert torch.allclose(page.opacity.detach(), torch.tensor([1.0, 0.9, 0.9]))
    before = page.points.detach().clone()
    _renew(page, wanted, *where, config, torch.Generator().manual_seed(0), stroke=2.0)
    assert torch.equal(page.points, before)  # none is dead


def _rates():
    from sdsedit.representations.sketch import Rates

    return Rates()


# With the model that ships


@pytest.fixture(scope="module")
def builtin():
    return load_prior("builtin")


QUICK = SketchConfig(strokes=8, steps=2, guide_steps=4, guides=1)


def test_the_model_that_ships_draws_and_one_seed_is_one_drawing(builtin):
    first, again = (sketch("a cat wearing a crown", builtin, QUICK) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(numbers(first), numbers(again), strict=True))
    assert set(first.groups) <= {"cat", "crown", "background"} and first.words == ("cat", "crown")
    assert 1 <= len(first.topology) <= 8 and first.size == (128, 128)
    assert first.steps_done == 2 and first.stopped == "" and first.shares["distillation"] == pytest.approx(0.5)
    assert len(first.shares) == 3 and sum(first.shares.values()) == pytest.approx(1)


@pytest.mark.parametrize("style", ["colour", "icon"])
def test_the_other_styles_run_with_the_model_that_ships(builtin, style):
    seen = []

    def on_step(step):
        seen.append(step.preview(64).shape)
        return False

    result = sketch("a cat", builtin, replace(QUICK, style=style), on_step)
    assert seen == [(1, 3, 64, 64)] and result.stopped == "cancelled" and result.steps_done == 1
    assert len(result.topology) >= 1 and set(result.groups) <= {"cat", "background"}
    assert set(result.topology.kinds) == {NONZERO if style == "icon" else STROKE}
