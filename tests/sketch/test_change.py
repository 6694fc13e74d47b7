"""Edits of SVG files: what should change does, and every other shape keeps its bytes."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from sdsedit.errors import InputRefused
from sdsedit.guidance import DDS
from sdsedit.io.svg import SvgDocument, read_svg
from sdsedit.prior import load_prior
from sdsedit.request import Edit, EditConfig
from sdsedit.sketch.change import SvgConfig, SvgResult, _parts, change, check_change
from tests.sketch.painter import Painter

SOURCE, TARGET = "a red hat", "an orange hat"
REQUEST = Edit(TARGET, SOURCE)
LOOK = EditConfig(DDS(scale=1.0, step_size=1.5), steps=20)
CONFIG = SvgConfig(LOOK, steps=4)
SKY = b'<rect id="sky" width="64" height="40" fill="#88bbff"/>'
GRASS = b'<rect y="40" width="64"   height="24" style="fill:#44aa33" data-note="mine"/>'
SUN = b"<circle id='sun' cx='52' cy='12' r='6' fill='gold'><title>the sun</title></circle>"
HAT = b'<path class="cloth" id="hat" d="M18 18H34V30H18Z" fill="#cc2222"/>'
GRADIENT = (
    b'<defs><linearGradient id="g"><stop offset="0" stop-color="#ff0000"/>'
    b'<stop offset="1" stop-color="#880000"/></linearGradient></defs>'
)


def file(*elements: bytes, size: bytes = b'width="64" height="64"') -> bytes:
    head = (
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" ' + size + b">\n  <!-- a hand wrote this -->"
    )
    return b"\n  ".join([head, *elements]) + b"\n</svg>\n"


SCENE = file(SKY, GRASS, SUN, HAT)


def drawn(data: bytes, size: int = 64) -> torch.Tensor:
    return _parts(read_svg(data), (size, size)).shapes.picture((size, size))


def painter(data: bytes, wanted: bytes | torch.Tensor) -> Painter:
    """A model that sees the drawing under the source prompt, and what is wanted under the target prompt."""
    picture = drawn(wanted) if isinstance(wanted, bytes) else wanted
    return Painter({SOURCE: drawn(data), TARGET: picture}, native=64)


def run(data: bytes, wanted: bytes | torch.Tensor, config: SvgConfig = CONFIG, on_step=None) -> SvgResult:
    return change(read_svg(data), painter(data, wanted), REQUEST, config, on_step)


def without_added(data: bytes) -> bytes:
    return re.sub(rb'<g id="sdsedit-added">.*?</g>\n', b"", data, flags=re.DOTALL)


def check_kept(result: SvgResult) -> None:
    """What was not changed or removed is in the file byte for byte, in its order, and reads as it did."""
    document, at = result.document, 0
    for k, shape in enumerate(document.shapes):
        if k not in result.changed and k not in result.removed:
            raw = document.data[slice(*shape.span)]
            assert raw in result.data[at if shape.editable else 0 :], raw  # others may stand in <defs>
            at = result.data.index(raw, at) + len(raw) if shape.editable else at
    assert result.kept == len(document.shapes) - len(result.changed) - len(result.removed)
    again = read_svg(result.data) if result.kept or result.changed or result.added else None
    if again:
        assert len(again.shapes) == result.kept + len(result.changed) + len(result.added)
        size = (result.after.shape[-2], result.after.shape[-1])
        picture = _parts(again, size).shapes.picture(size)
        assert (picture - result.after).abs().mean() < 0.01  # a hundredth of a pixel, a 255th of a colour


# What changes, and what does not


def test_a_shape_takes_the_new_colour_and_all_others_keep_their_bytes():
    wanted = SCENE.replace(b"#cc2222", b"#cc8822")
    result = run(SCENE, wanted)
    assert list(result.changed) == [3] and result.removed == () and result.kept == 3
    before, after = SCENE.splitlines(), without_added(result.data).splitlines()
    assert len(before) == len(after)
    changed = [k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert changed == [6] and b'class="cloth" id="hat"' in after[6]
    fill = result.changed[3].fill
    assert fill is not None and 0.4 < fill[1] < 0.65 and fill[3] == 1
    check_kept(result)
    assert (result.after - drawn(wanted)).abs().mean() < 0.3 * (result.before - drawn(wanted)).abs().mean()
    assert result.shares[3] > 0.9 and max(result.shares[:3]) < 0.5 and len(result.shares) == 4
    assert torch.equal(result.before, drawn(SCENE)) and result.stopped == "" and result.seconds > 0
    assert result.steps_done == 20 + 4 and result.look.steps_done == 20


def test_a_shape_that_should_not_be_there_goes():
    result = run(SCENE, file(SKY, GRASS, SUN))
    assert result.removed == (3,) and not result.changed
    assert HAT not in result.data and SCENE.startswith(without_added(result.data)[:-8].rstrip())
    check_kept(result)
    assert (result.after - drawn(file(SKY, GRASS, SUN))).abs().mean() < 0.01


def test_a_thing_that_is_missing_is_added_and_the_file_is_otherwise_the_same():
    bare = file(SKY, GRASS, SUN)
    result = run(bare, file(SKY, GRASS, SUN, HAT.replace(b"#cc2222", b"#cc8822")))
    assert not result.changed and result.removed == () and len(result.added) >= 1
    assert without_added(result.data) == bare and b'<g id="sdsedit-added">' in result.data
    check_kept(result)
    colours = torch.tensor([shape.fill for shape in result.added])[:, :3]
    assert ((colours - torch.tensor([0.8, 0.53, 0.13])).abs().amax(1) < 0.15).any()
    assert (result.after - result.before).abs()[..., :12, :].max() < 0.1  # far from it nothing is drawn


def test_nothing_to_change_is_the_same_file():
    for config in (CONFIG, SvgConfig(EditConfig(steps=4), steps=2)):
        prior = painter(SCENE, SCENE)
        prior.places = [torch.full((8, 8), 0.5)]
        result = change(read_svg(SCENE), prior, REQUEST, config)
        assert result.data == SCENE and result.kept == 4 and result.added == () and result.stopped == ""
        assert torch.equal(result.after, result.before) and result.notes


def test_one_seed_is_one_file():
    wanted = SCENE.replace(b"#cc2222", b"#cc8822").replace(b'cx="52"', b'cx="40"')
    first, again = run(SCENE, wanted), run(SCENE, wanted)
    assert first.data == again.data and torch.equal(first.after, again.after)


def test_a_gradient_keeps_its_colours():
    frozen = file(GRADIENT, SKY, GRASS, SUN, HAT.replace(b'"#cc2222"', b'"url(#g)"'))
    result = run(frozen, SCENE.replace(b"#cc2222", b"#cc8822"), replace(CONFIG, added=0))
    assert b'fill="url(#g)"' in result.data and GRADIENT in result.data
    assert result.shares[3] > 0.9 and 3 not in result.removed
    assert all(shape.fill == result.document.shapes[k].fill for k, shape in result.changed.items())
    check_kept(result)


def test_a_shape_that_may_not_be_changed_is_kept_and_drawn_over():
    used = file(SKY, GRASS, SUN, b"<defs>" + HAT + b"</defs>", b'<use href="#hat"/><use href="#hat" y="20"/>')
    document = read_svg(used)
    assert [shape.editable for shape in document.shapes[-2:]] == [False, False]
    wanted = used.replace(b'<use href="#hat"/>', HAT.replace(b"#cc2222", b"#cc8822").replace(b'id="hat"', b""))
    result = run(used, wanted)
    assert not result.changed and result.removed == () and without_added(result.data) == used
    assert len(result.added) >= 1 and (result.after - result.before).abs().amax() > 0.3
    check_kept(result)


def test_share_says_how_much_of_a_shape_must_lie_inside():
    """Half of the hat is to be orange: with a share of 1 the hat may not change, but that half may be drawn on it."""
    half = SCENE.replace(HAT, HAT + b'<path d="M18 18H26V30H18Z" fill="#cc8822"/>')
    shares = run(SCENE, half).shares
    assert 0.4 < shares[3] < 0.8
    strict = run(SCENE, half, replace(CONFIG, share=1.0))
    assert not strict.changed and strict.removed == () and strict.kept == 4 and len(strict.added) >= 1
    assert without_added(strict.data) == SCENE and strict.shares == shares
    check_kept(strict)
    nothing = run(SCENE, half, replace(CONFIG, share=1.0, added=0))
    assert nothing.data == SCENE and any("nothing new was found" in note for note in nothing.notes)
    assert torch.equal(nothing.after, nothing.before) and nothing.steps_done == 20
    for result in (run(SCENE, half, replace(CONFIG, share=0.3)), run(SCENE, half, replace(CONFIG, share=0.0))):
        check_kept(result)


def test_a_hidden_shape_has_no_share_and_its_bytes():
    hidden = file(SKY, b'<circle cx="26" cy="24" r="2" fill="lime"/>', GRASS, SUN, HAT)
    result = run(hidden, hidden.replace(b"#cc2222", b"#cc8822"))
    assert result.shares[1] == 0 and 1 not in result.changed and 1 not in result.removed
    check_kept(result)


def test_all_may_go():
    only = file(HAT)
    result = run(only, torch.ones(1, 3, 64, 64))
    assert result.removed == (0,) and result.added == () and HAT not in result.data
    assert (result.after == 1).all() and result.data.endswith(b"</svg>\n") and result.kept == 0


def test_at_most_so_many_shapes_are_added():
    bare = file(SKY, GRASS, SUN)
    many = file(SKY, GRASS, SUN, *(b'<circle cx="%d" cy="26" r="4" fill="#cc8822"/>' % x for x in (10, 22, 34, 46)))
    assert len(run(bare, many).added) >= 3
    assert len(run(bare, many, replace(CONFIG, added=2)).added) <= 2
    assert run(bare, many, replace(CONFIG, added=0)).data == bare


def test_in_a_drawing_of_lines_lines_are_added():
    lines = file(
        b'<path d="M8 52H56" stroke="#111" stroke-width="2" fill="none"/>',
        b'<path d="M8 8V56" stroke="#111" stroke-width="2" fill="none"/>',
    )
    wanted = lines.replace(b"</svg>", b'<path d="M20 16L48 40" stroke="#111" stroke-width="3" fill="none"/></svg>')
    result = run(lines, wanted)
    assert without_added(result.data) == lines and len(result.added) >= 1
    assert len(result.added) < CONFIG.added  # those without which it is no worse are not there
    for shape in result.added:
        assert shape.fill is None and shape.stroke is not None and max(shape.stroke[:3]) < 0.2 and shape.width > 0.5
    check_kept(result)
    assert (result.after - drawn(wanted)).abs().mean() < (result.before - drawn(wanted)).abs().mean()


def test_a_fill_and_its_stroke_move_as_one():
    outlined = file(SKY, GRASS, SUN, HAT.replace(b"/>", b' stroke="#220000" stroke-width="2"/>'))
    previews = []
    config, wanted = replace(CONFIG, steps=20), outlined.replace(b"M18 18H34V30H18Z", b"M18 20H34V32H18Z")
    result = run(outlined, wanted, config, lambda step: previews.append(step.preview()))
    assert (previews[-1] - result.after).abs().max() < 0.02  # what was optimised is what is in the file
    assert 3 in result.changed and result.changed[3].stroke is not None and result.changed[3].width > 0
    check_kept(result)
    assert len(re.findall(rb'id="hat"', result.data)) == 1


def test_a_stroke_has_the_points_of_its_fill_whatever_else_is_kept():
    outline = HAT.replace(b"/>", b' stroke="#220000"/>')
    parts = _parts(read_svg(file(SKY, outline, GRASS, outline.replace(b'"#cc2222"', b'"none"'))), (64, 64))
    assert parts.owner == (0, 1, 1, 2, 3) and parts.stroke == (False, False, True, False, True)
    n = 12  # points of each of them
    assert parts.index_of([0, 1, 2, 3, 4]).view(5, n)[:, 0].tolist() == [0, n, n, 3 * n, 4 * n]
    assert parts.index_of([1, 2]).tolist() == [*range(n), *range(n)]
    assert parts.index_of([2, 3]).tolist() == [*range(2 * n)]
    assert parts.index_of([]).tolist() == []


def test_distillation_alone_moves_shapes():
    wanted = SCENE.replace(b"M18 18H34V30H18Z", b"M18 20H34V32H18Z")
    config = replace(CONFIG, distillation=1.0, steps=30, added=0)
    result = run(SCENE, wanted, config)
    assert list(result.changed) == [3]
    assert (result.after - drawn(wanted)).abs().mean() < 0.7 * (result.before - drawn(wanted)).abs().mean()
    check_kept(result)


def test_on_a_page_of_another_size_shapes_stay_where_they_were():
    large = file(SKY, GRASS, SUN, HAT, size=b'width="1000" height="500" viewBox="0 0 64 64" preserveAspectRatio="none"')
    document = read_svg(large)
    size = (44, 92)
    pictures = (
        _parts(each, size).shapes.picture(size) for each in (document, read_svg(large.replace(b"#cc2222", b"#cc8822")))
    )
    result = change(document, Painter(dict(zip((SOURCE, TARGET), pictures, strict=True)), native=64), REQUEST, CONFIG)
    assert list(result.changed) == [3]
    old, new, again = (s[3].contours[0][0] for s in (document.shapes, result.changed, read_svg(result.data).shapes))
    assert abs(new - old).max() < 30 and abs(again - new).max() < 0.1
    check_kept(result)


def test_a_shape_that_reaches_beyond_the_page_keeps_its_form():
    hill = b'<ellipse id="hill" cx="32" cy="76" rx="80" ry="40" fill="#cc2222"/>'
    wide = file(SKY, hill, SUN)
    wanted = wide.replace(b"#cc2222", b"#cc8822")
    result = run(wide, wanted, replace(CONFIG, steps=2))
    assert list(result.changed) == [1]
    old, new = (shape.contours[0][0] for shape in (result.document.shapes[1], result.changed[1]))
    assert abs(old - new).max() < 1 and (result.after - drawn(wanted)).abs().mean() < 0.03


def test_a_hairline_stays_one():
    hair = b'<path d="M14 26L38 22" stroke="#cc2222" stroke-width="0.05" fill="none"/>'
    fine = file(SKY, GRASS, SUN, HAT, hair)
    result = run(fine, fine.replace(b"#cc2222", b"#cc8822"), replace(CONFIG, share=0.0, steps=8))
    assert 4 not in result.changed or result.changed[4].width < 0.06
    assert read_svg(result.data).shapes[4].width < 0.06


def test_a_persons_mask_is_the_only_place():
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 12:36, 12:40] = 1
    wanted = file(SKY.replace(b"#88bbff", b"#ff88bb"), GRASS, SUN, HAT.replace(b"#cc2222", b"#cc8822"))
    result = change(read_svg(SCENE), painter(SCENE, wanted), replace(REQUEST, mask=mask), CONFIG)
    assert list(result.changed) == [3] and result.shares[0] < 0.5
    check_kept(result)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (b'viewBox="0 0 64 64" width="0.4" height="0.4"', (64, 64)),
        (b'viewBox="0 0 64 64" width="1000" height="1000"', (64, 64)),
        (b'viewBox="0 0 128 64" width="2" height="1"', (44, 92)),
        (b'viewBox="0 0 64 256" width="64" height="256"', (128, 32)),
    ],
)
def test_pages_of_any_size_are_looked_at_in_their_own_proportions(size, expected):
    data = file(SKY, GRASS, SUN, HAT, size=size)
    document = read_svg(data)
    before = _parts(document, expected).shapes.picture(expected)
    prior = Painter({SOURCE: before, TARGET: 1 - before}, native=64)
    result = change(document, prior, REQUEST, replace(CONFIG, steps=1))
    assert result.before.shape[-2:] == result.after.shape[-2:] == expected
    check_kept(result)


def test_the_recipe_goes_into_the_file_and_changes_no_shape():
    result = run(SCENE, SCENE.replace(b"#cc2222", b"#cc8822"))
    written = result.written('{"target": "an orange hat"}')
    again = read_svg(written)
    assert again.metadata == '{"target": "an orange hat"}' and result.written(None) == result.data
    assert all(raw in written for raw in (SKY, GRASS, SUN))


# What stops it


class Stop:
    def __init__(self, at: int) -> None:
        self.at, self.seen = at, []

    def __call__(self, step) -> bool:
        self.seen.append((step.index, step.total, step.preview().shape))
        return step.index != self.at


WANTED = SCENE.replace(b"#cc2222", b"#cc8822")


@pytest.mark.parametrize("at", [0, 7, 19], ids=["first", "middle", "last"])
def test_cancelled_during_the_look_the_file_is_as_it_was(at):
    stop = Stop(at)
    result = run(SCENE, WANTED, on_step=stop)
    assert result.stopped == "cancelled" and result.data == SCENE and result.kept == 4
    assert len(stop.seen) == at + 1 and result.steps_done == at + 1


@pytest.mark.parametrize("at", [20, 22])
def test_cancelled_during_the_shapes_the_file_is_whole(at):
    stop = Stop(at)
    result = run(SCENE, WANTED, on_step=stop)
    assert result.stopped == "cancelled" and len(stop.seen) == at + 1 == result.steps_done
    assert list(result.changed) == [3]
    check_kept(result)


def test_steps_are_counted_through():
    stop = Stop(-1)
    result = run(SCENE, WANTED, on_step=stop)
    assert [(index, total) for index, total, _ in stop.seen] == [(k, 24) for k in range(24)] and result.stopped == ""
    assert {shape for *_, shape in stop.seen} == {(1, 3, 64, 64)}


def test_a_prediction_that_is_not_finite_leaves_a_whole_file():
    for poisoned, good in ((5, 5), (22, 22)):
        prior = painter(SCENE, WANTED)
        prior.poisoned_at = poisoned
        result = change(read_svg(SCENE), prior, REQUEST, CONFIG)
        assert result.stopped.startswith("non-finite gradient at step ") and result.steps_done == good
        check_kept(result)
        assert result.after.isfinite().all()


# What is refused


@pytest.mark.parametrize(
    ("change_", "message"),
    [
        ({"share": 1.5}, "share is 1.5; it must be a number from 0 to 1"),
        ({"share": -0.1}, "share is -0.1"),
        ({"share": float("nan")}, "share is nan"),
        ({"added": -1}, "added is -1; it must be a whole number from 0 to 512"),
        ({"added": 513}, "added is 513"),
        ({"added": 1.0}, "added is 1.0"),
        ({"steps": 0}, "steps is 0; it must be a whole number from 1 to 10000"),
        ({"steps": 10_001}, "steps is 10001"),
        ({"distillation": 2}, "distillation is 2; it must be a number from 0 to 1"),
        ({"edit": EditConfig(seed=-1)}, "seed is -1"),
        ({"edit": EditConfig(method="magic")}, "method is 'magic'"),
        ({"edit": EditConfig(strength=99.0)}, "strength is 99"),
    ],
)
def test_settings_that_are_refused_before_a_model_is_asked(change_, message):
    prior = painter(SCENE, SCENE)
    with pytest.raises(InputRefused, match=message) as refusal:
        change(read_svg(SCENE), prior, REQUEST, SvgConfig(**change_))
    assert not prior.batches and "\n" not in str(refusal.value)


@pytest.mark.parametrize("target", ["", " \t ".strip(), "a\nb"])
def test_prompts_that_are_refused(target):
    with pytest.raises(InputRefused, match="target prompt"):
        check_change(Edit(target, SOURCE), SvgConfig())


def test_a_mask_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(InputRefused, match="The mask is 10x10 and the picture 64x64"):
        change(read_svg(SCENE), painter(SCENE, SCENE), replace(REQUEST, mask=torch.ones(1, 1, 10, 10)), CONFIG)


def test_what_is_allowed_is_allowed():
    for config in (SvgConfig(), SvgConfig(share=0, added=0, steps=1, distillation=0), SvgConfig(share=1, added=512)):
        check_change(REQUEST, config)
    for distillation in (0, 1):
        result = run(SCENE, WANTED, replace(CONFIG, distillation=distillation))
        assert list(result.changed) == [3]


# With the model that ships


CAT = b"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128" width="256" height="256">
<rect width="128" height="128" fill="#8fd14f"/>
<g id="cat" fill="#f0a030">
  <path d="M38 60 L40 34 L56 48 Z"/><path d="M90 60 L88 34 L72 48 Z"/>
  <circle cx="64" cy="66" r="30"/>
</g>
<circle cx="54" cy="62" r="4" fill="#222"/> <circle cx="74" cy="62" r="4" fill="#222"/>
<path d="M58 76 Q64 82 70 76" fill="none" stroke="#222" stroke-width="2"/>
</svg>
"""


def test_the_model_that_ships_edits_a_drawing_and_keeps_the_bytes_of_the_rest():
    document: SvgDocument = read_svg(CAT)
    config = SvgConfig(EditConfig(steps=3, refine=0.0), steps=1)
    request = Edit("a cat wearing a crown on grass", "a cat on grass")
    result = change(document, load_prior("builtin"), request, config)
    assert result.steps_done in (3, 4) and result.stopped == "" and result.look.words == ("crown",)
    assert result.before.shape == (1, 3, 128, 128) and result.kept >= 4
    check_kept(result)
