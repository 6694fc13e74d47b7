"""The loop and `edit`: what stops it, what it keeps, what it refuses, and whole edits with tiny random models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdsedit.edit import _suited, distill, edit
from sdsedit.errors import InputRefused
from sdsedit.guidance import CSD, DDS, ISM, LUSD, METHODS, PDS, SDS, FastLUSD
from sdsedit.guidance.base import Update
from sdsedit.guidance.refine import Refine
from sdsedit.prior.unet import UNetPrior
from sdsedit.representations.base import View
from sdsedit.request import MAX_PROMPT, Edit, EditConfig
from tests import tiny
from tests.guidance.gaussian import GaussianPrior, prompts

SOURCE, TARGET = "a cat on grass", "a cat on grass with a crown"
COLOUR = torch.tensor([1.0, 0.5, -0.5])[:, None, None]  # what the crown does to the mean latent


def picture(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)) * 0.5


@pytest.fixture
def prior():
    place = torch.zeros(8, 8)
    place[:4, :4] = 1
    return GaussianPrior({TARGET: COLOUR}, places=[place])


REQUEST = Edit(target=TARGET, source=SOURCE)
SHORT = EditConfig(steps=20, feather=0)


def test_an_edit_happens_where_the_words_are_and_nowhere_else(prior):
    source = picture()
    result = edit(source, prior, REQUEST, SHORT)
    assert result.words == ("crown",) and result.steps_done == 20 and result.stopped == ""
    assert prior.recorded[0] == ((7,), slice(0, 1))  # "crown" is the seventh word, after the start token
    assert result.image.shape == source.shape and result.heatmap.shape == result.mask.shape == (1, 1, 16, 16)
    outside = result.mask == 0
    assert outside[..., 10:, :].all() and outside[..., 10:].all() and not outside[..., :7, :7].any()
    assert torch.equal(result.image[outside.expand_as(source)], source[outside.expand_as(source)])
    changed = (result.image - source)[..., :7, :7].mean((0, 2, 3))
    assert changed[0] > 0.05 and changed[2] < -0.05
    assert result.kept_pixels == outside.sum() and result.total_pixels == 256
    assert result.heatmap[..., 1, 1] == 1 and result.heatmap[..., 14, 14] == 0
    assert len(result.history) == 20 and {"t", "grad_norm", "distance", "rejected", "mask_area"} == set(
        result.history[0]
    )
    assert result.seconds > 0 and not torch.equal(result.z, result.z_src)


def test_what_is_replaced_goes_whole_and_what_is_coloured_keeps_its_edge():
    place = torch.zeros(8, 8)
    place[2:6, 2:6] = 1

    def changed(source: str, target: str) -> torch.Tensor:
        prior = GaussianPrior({target: COLOUR}, places=[place])
        return edit(picture(), prior, Edit(target=target, source=source), SHORT).mask[0, 0] > 0

    coloured = changed("a red cat on grass", "a blue cat on grass")
    replaced = changed("a cat on grass", "a dog on grass")
    put_on = changed("a cat on grass", "a cat on grass with a crown")
    assert torch.equal(coloured, put_on) and not replaced.all()
    wider = torch.nn.functional.max_pool2d(coloured.float()[None, None], 5, 1, 2)[0, 0] > 0  # a latent cell is 2 pixels
    assert torch.equal(replaced, wider)


def test_one_seed_is_one_result_and_another_is_another(prior):
    first, again = (edit(picture(), prior, REQUEST, replace(SHORT, method=SDS(), seed=3)) for _ in range(2))
    assert torch.equal(first.image, again.image) and first.history == again.history
    other = edit(picture(), prior, REQUEST, replace(SHORT, method=SDS(), seed=4))
    assert not torch.equal(first.z, other.z)


def test_the_result_can_be_used_with_autograd(prior):
    result = edit(picture(), prior, REQUEST, SHORT)
    weights = torch.ones_like(result.z, requires_grad=True)
    for tensor in (result.z, result.image, result.mask, result.heatmap):
        weights.sum().mul(tensor).sum().backward()


@pytest.mark.parametrize("size", [(16, 16), (7, 40), (33, 17), (3, 3)])
def test_any_size_in_is_the_same_size_out(prior, size):
    assert edit(picture(*size), prior, REQUEST, replace(SHORT, steps=2, method=DDS())).image.shape[-2:] == size


# What stops a run


def test_a_callback_sees_every_step_and_false_stops_within_one(prior):
    seen = []

    def on_step(report):
        seen.append(report)
        return report.index < 6

    result = edit(picture(), prior, REQUEST, SHORT, on_step)
    assert [report.index for report in seen] == list(range(7)) and seen[0].total == 20
    assert result.stopped == "cancelled" and result.steps_done == len(result.history) == 7
    assert torch.equal(result.z, seen[-1].z) and not torch.equal(seen[0].z, seen[1].z)
    assert seen[0].mask.shape == (1, 1, 8, 8)
    assert seen[0].preview().shape == (1, 3, 16, 16)
    whole = []
    edit(picture(), prior, REQUEST, SHORT, lambda report: whole.append(report.z))  # None goes on
    assert len(whole) == 20 and torch.equal(whole[6], result.z)


@pytest.mark.parametrize("method", [DDS(), LUSD(), SDS()], ids=["dds", "lusd", "sds"])
def test_a_gradient_that_is_not_finite_stops_with_the_last_good_state(prior, method):
    config, zs = replace(SHORT, method=method), []
    prior.poisoned_at = 5
    result = edit(picture(), prior, REQUEST, config, lambda report: zs.append(report.z))
    assert result.stopped.startswith("non-finite gradient at step 6, t=0.")
    assert result.steps_done == len(zs) == len(result.history) == 5
    assert torch.equal(result.z, zs[-1]) and result.image.isfinite().all() and result.heatmap.isfinite().all()


def test_bad_from_the_first_step_gives_the_source_back(prior):
    prior.poisoned_at = 0
    result = edit(picture(), prior, REQUEST, SHORT)
    assert result.steps_done == 0 and result.history == () and torch.equal(result.image, picture())
    assert result.stopped.startswith("non-finite gradient at step 1, ")


def test_a_device_polled_every_ten_steps_names_the_same_step_and_keeps_the_same_state(prior, monkeypatch):
    """A device other than a CPU, as far as the loop can tell: the flag is read at steps 10 and 20 only."""

    class Scene:
        z, arrived = torch.zeros(1, 3, 8, 8), 0

        def render(self, index):
            return View(self.z, torch.zeros_like(self.z))

        def step(self, direction):
            self.z, self.arrived = self.z - direction, self.arrived + 1

    def run(every, on_step=None):
        monkeypatch.setattr("sdsedit.edit._poll_interval", lambda device: every)
        scene, prior.batches, prior.poisoned_at = Scene(), [], 13
        return scene, distill(scene, prior, prompts(prior, TARGET, SOURCE), DDS(), 40, on_step=on_step)

    often, seldom = run(1), run(10)
    assert often[1] == seldom[1] and often[1].steps_done == 13
    assert torch.equal(often[0].z, seldom[0].z)
    assert (often[0].arrived, seldom[0].arrived) == (13, 19)
    cancelled = run(10, on_step=lambda report: report.index < 15)  # between two looks
    assert cancelled[1] == seldom[1]


def test_a_representation_with_parameters_follows_by_autograd(prior):
    """z is a function of parameters: the direction goes through z.backward, as sketches and splats need it."""

    class Painted:
        def __init__(self):
            self.colour = torch.zeros(3, requires_grad=True)
            self.optimizer = torch.optim.SGD([self.colour], lr=1 / 64)

        def render(self, index):
            self.z = self.colour[None, :, None, None].expand(1, 3, 8, 8) ** 1
            return View(self.z, torch.zeros(1, 3, 8, 8))

        def step(self, direction):
            self.optimizer.zero_grad()
            self.z.backward(gradient=direction)
            self.optimizer.step()

    painted = Painted()
    run = distill(painted, prior, prompts(prior, TARGET, SOURCE), DDS(scale=1.0, step_size=0.5), 200)
    assert run.steps_done == 200
    assert torch.allclose(painted.colour, COLOUR.flatten(), atol=1e-3)


# Where


def test_a_persons_mask_takes_the_place_of_words(prior):
    source, mask = picture(), torch.zeros(1, 1, 16, 16)
    mask[..., 9:13, 3:8] = 1
    result = edit(source, prior, replace(REQUEST, mask=mask, words=("crown",)), SHORT)
    assert not prior.recorded and result.words == () and any("mask was given" in note for note in result.notes)
    outside = (mask == 0).expand_as(source)
    assert torch.equal(result.image[outside], source[outside]) and torch.equal(result.heatmap, mask)
    assert result.kept_pixels == 256 - 20
    latent = torch.zeros(1, 1, 8, 8)
    latent[..., 4:7, 1:4] = 1  # every cell that the mask touches
    assert torch.equal((result.z != result.z_src).any(1, keepdim=True).float(), latent)


def test_named_words_are_looked_for_in_the_target_then_in_the_source(prior):
    assert edit(picture(), prior, replace(REQUEST, words=("grass",)), SHORT).words == ("grass",)
    assert prior.recorded[-1] == ((4,), slice(0, 1))
    request = Edit(target="a cat", source="a cat with a hat", words=("hat",))
    prior.means["a cat"] = COLOUR
    edit(picture(), prior, request, SHORT)
    assert prior.recorded[-1] == ((5,), slice(1, 2))
    with pytest.raises(InputRefused, match="'sofa' is not in the prompt"):
        edit(picture(), prior, replace(REQUEST, words=("sofa",)), SHORT)


def test_words_only_taken_out_are_found_in_the_source(prior):
    prior.means["a cat"] = COLOUR
    result = edit(picture(), prior, Edit(target="a cat", source="a cat with a hat"), SHORT)
    assert result.words == ("hat",) and prior.recorded[-1] == ((5,), slice(1, 2))
    assert any("only taken out" in note and "hat" in note for note in result.notes)


def test_no_changed_word_is_no_mask_and_is_said(prior):
    prior.means["a cat on the grass"] = COLOUR
    result = edit(picture(), prior, Edit(target="a cat on the grass", source=SOURCE), SHORT)
    assert result.words == () and not prior.recorded
    assert any("the whole picture may change" in note for note in result.notes)
    assert not result.heatmap.any() and result.kept_pixels < 128


def test_without_a_source_prompt_the_empty_one_stands_in_and_is_said(prior):
    result = edit(picture(), prior, Edit(target=TARGET), SHORT)
    assert any("no source prompt" in note for note in result.notes)
    assert result.words == ("cat", "grass", "crown")


def test_a_map_that_names_no_place_changes_nothing_and_is_said(prior):
    prior.places = [torch.full((8, 8), 0.3)]
    result = edit(picture(), prior, REQUEST, SHORT)
    assert torch.equal(result.image, picture()) and any("found no place" in note for note in result.notes)


@pytest.mark.parametrize("method", [DDS(), PDS(), LUSD(retries=2)], ids=["dds", "pds", "lusd"])
def test_equal_prompts_give_the_picture_back(prior, method):
    result = edit(picture(), prior, Edit(target=TARGET, source=TARGET), replace(SHORT, steps=3, method=method))
    assert torch.equal(result.image, picture()) and torch.equal(result.z, result.z_src)
    assert result.kept_pixels == result.total_pixels
    assert any("the same" in note for note in result.notes) and any(
        "nothing that can be seen" in n for n in result.notes
    )


def test_words_that_a_method_cannot_use_and_words_that_were_cut_are_said(prior):
    result = edit(picture(), prior, replace(REQUEST, words=("crown",)), replace(SHORT, method=DDS()))
    assert any("DDS looks for no words" in note for note in result.notes)
    long = " ".join(["cat"] * 10 + ["and", "zebra"])
    result = edit(picture(), prior, Edit(target=long, source=SOURCE), replace(SHORT, method=DDS()))
    assert any("target prompt is longer" in note and note.endswith("and zebra") for note in result.notes)


# Bad input


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Edit(target=""), "target prompt is empty"),
        (Edit(target=" \u3000 "), "target prompt is empty"),
        (Edit(target="a" * 100_000), f"100000 characters; at most {MAX_PROMPT}"),
        (Edit(target="a\x00b"), r"U\+0000"),
        (Edit(target="a cat", source="a\ncat"), r"source prompt has the control character U\+000A"),
        (Edit(target="a \u202ecat"), r"U\+202E"),
        (Edit(target="a \ud800"), r"U\+D800"),
        (Edit(target="a cat", negative="\x1b[2J"), "negative prompt has"),
        (Edit(target="a cat", words=()), "one or more words"),
        (Edit(target="a cat", words="cat"), "one or more words"),
        (Edit(target=None), "must be text"),
        (Edit(target="a cat", mask=torch.zeros(1, 1, 16, 16)), "mask is empty"),
        (Edit(target="a cat", mask=torch.ones(1, 1, 16, 16)), "covers the whole picture"),
        (Edit(target="a cat", mask=torch.eye(8)[None, None]), "mask is 8x8 and the picture 16x16"),
        (Edit(target="a cat", mask=torch.eye(16)), "mask is 16x16"),
        (Edit(target="a cat", mask=torch.eye(16)[None, None] * 2), "from 0 to 1"),
        (Edit(target="a cat", mask=torch.eye(16)[None, None] * torch.nan), "from 0 to 1"),
        (Edit(target="a cat", mask=torch.eye(16)[None, None].bool()), "float32"),
    ],
)
def test_requests_that_are_refused(prior, request_, message):
    with pytest.raises(InputRefused, match=message):
        edit(picture(), prior, request_, SHORT)
    assert not prior.batches


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EditConfig(steps=0), "steps is 0; it must be a whole number from 1 to 10000"),
        (EditConfig(steps=10_001), "steps is 10001"),
        (EditConfig(steps=-5), "steps is -5"),
        (EditConfig(steps=float("nan")), "steps is nan"),
        (EditConfig(steps=True), "steps is True"),
        (EditConfig(method=LUSD(steps=0)), "steps is 0"),
        (EditConfig(seed=-1), "seed is -1"),
        (
            EditConfig(seed=2**63),
            "seed is 9223372036854775808; it must be a whole number from 0 to 9223372036854775807",
        ),
        (EditConfig(size=0), "size is 0; it must be a whole number from 1 to 4096"),
        (EditConfig(size=1_000_000), "size is 1000000"),
        (EditConfig(feather=float("inf")), "feather is inf"),
        (EditConfig(feather=-1), "feather is -1"),
        (EditConfig(method=DDS(scale=float("nan"))), "scale is nan; it must be a number of 0 or more"),
        (EditConfig(method=SDS(step_size=-0.1)), "step_size is -0.1"),
        (EditConfig(method=PDS(stride=0)), "stride is 0"),
        (EditConfig(method=ISM(inversion=0)), "inversion is 0"),
        (EditConfig(method=CSD(t_min=0.9, t_max=0.2)), "t_min"),
        (EditConfig(method=CSD(t_max=2.0)), "t_max"),
    ],
)
def test_settings_that_are_refused(prior, config, message):
    with pytest.raises(InputRefused, match=message):
        edit(picture(), prior, REQUEST, config)
    assert not prior.batches


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(3, 16, 16),
        torch.rand(1, 1, 16, 16),
        torch.rand(2, 3, 16, 16),
        torch.rand(1, 3, 16, 0),
        torch.rand(1, 3, 16, 16).half(),
        torch.randint(0, 255, (1, 3, 16, 16), dtype=torch.uint8),
        torch.full((1, 3, 16, 16), torch.nan),
        torch.full((1, 3, 16, 16), 1.5),
        None,
    ],
)
def test_pictures_that_are_refused(prior, image):
    with pytest.raises(InputRefused, match="The picture"):
        edit(image, prior, REQUEST, SHORT)


def test_the_extremes_that_are_allowed(prior):
    for config in (EditConfig(steps=1, seed=2**63 - 1), EditConfig(steps=1, size=4), EditConfig(steps=1, feather=256)):
        assert edit(picture(), prior, REQUEST, config).steps_done == 1


# Whole edits with real networks


@pytest.fixture(scope="module")
def builtin_like(tmp_path_factory):
    return UNetPrior.from_pipeline(tiny.builtin_like(tmp_path_factory.mktemp("tokenizer")), "tiny")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_edits_with_a_real_network(builtin_like, method):
    source = picture(90, 60)
    result = edit(source, builtin_like, REQUEST, EditConfig(method(), steps=2, size=32))
    assert result.stopped == "" and result.steps_done == 2 and result.image.shape == source.shape
    assert result.image.isfinite().all() and not torch.equal(result.z, result.z_src)
    kept = (result.mask == 0).expand_as(source)
    assert torch.equal(result.image[kept], source[kept])
    again = edit(source, builtin_like, REQUEST, EditConfig(method(), steps=2, size=32))
    assert torch.equal(result.image, again.image)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_lusd_edits_with_every_family_of_models(tmp_path, family):
    prior = UNetPrior.from_pipeline(tiny.FAMILIES[family](tmp_path), family)
    result = edit(picture(64, 96), prior, REQUEST, EditConfig(steps=2, size=4 * prior.multiple))
    assert result.stopped == "" and result.words == ("crown",)
    assert result.heatmap.isfinite().all() and result.image.shape == (1, 3, 64, 96)


def test_a_fast_run_ends_where_it_stops_moving_and_redraws_in_fewer_steps(builtin_like):
    request, ends = Edit(target="a cat wearing a crown", source="a cat"), []
    method = FastLUSD(steps=30, step_size=0.01, plateau=0.9, redraw=5)
    result = edit(picture(), builtin_like, request, EditConfig(method=method, refine=0.5), ends.append)
    assert 15 + 5 <= result.steps_done < 30 + 5 and not result.stopped
    assert len(ends) == result.steps_done == len(result.history)
    whole = edit(picture(), builtin_like, request, EditConfig(method=replace(method, plateau=0.0), refine=0.5))
    assert whole.steps_done == 30 + 5


def test_a_fast_run_is_redrawn_from_its_own_start_at_its_own_scale(builtin_like, monkeypatch):
    """As if these settings were the model's; a start that was asked for goes before it, the scale stays."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 16:48] = 1
    request = Edit(target="a cat wearing a crown", source="a cat", mask=mask)
    method = FastLUSD(steps=2, redraw=3)
    own = replace(method, redraw_start=0.7, redraw_scale=5.0)

    def made(method: FastLUSD, start: float, scale: float, refine: float | None = None):
        monkeypatch.setattr(builtin_like, "editing", {"refine": {"start": start, "wide_start": 0.9, "scale": scale}})
        return edit(picture(64, 64), builtin_like, request, EditConfig(method=method, refine=refine))

    result = made(own, 0.4, 2.0)
    assert result.refine == 0.7 and made(method, 0.4, 2.0).refine == 0.4
    assert torch.equal(made(method, 0.7, 5.0).image, result.image)
    assert not torch.equal(made(method, 0.7, 2.0).image, result.image)
    assert torch.equal(made(own, 0.4, 2.0, refine=0.7).image, result.image)  # as a recipe is replayed
    assert made(own, 0.4, 2.0, refine=0.5).refine == 0.5


def test_a_fast_run_redraws_a_background_as_the_model_has_it():
    method, refine = FastLUSD(redraw_start=0.7, redraw_scale=5.0), Refine(start=0.4, wide_start=0.9, scale=2.0)
    assert _suited(refine, method, True, EditConfig()) == replace(refine, start=0.9)
    assert _suited(refine, method, False, EditConfig()) == replace(refine, start=0.7, scale=5.0)
    assert _suited(refine, LUSD(), True, EditConfig()) == replace(refine, start=0.9)
    assert _suited(refine, LUSD(), False, EditConfig()) == refine


def test_equal_prompts_stay_put_with_a_real_network(builtin_like):
    """Two rows of one batch may differ by rounding: LUSD's filter must not let such a direction through."""
    for method in (LUSD(retries=2), DDS()):
        result = edit(picture(32, 32), builtin_like, Edit(SOURCE, SOURCE), EditConfig(method, steps=2, size=32))
        assert (result.z - result.z_src).abs().max() < 1e-4
        assert torch.equal(result.image, picture(32, 32))


# Annealing


class Watched:
    """A latent that stays at 0, and a method that remembers what it was drawn."""

    localizes, t_min, t_max, steps = False, 0.1, 0.9, 8

    def __init__(self):
        self.drawn = []

    def render(self, index):
        return View(torch.zeros(64, 3, 8, 8), torch.zeros(64, 3, 8, 8))

    def step(self, direction):
        pass

    def __call__(self, prior, step, state=None):
        draw = step.draw()
        self.drawn.append(draw.t)
        return Update(torch.zeros_like(step.z), None, {"t": draw.t.mean()})


def drawn_times(prior, steps=9, **settings):
    """[steps, 64], the times of one run."""
    watched = Watched()
    distill(watched, prior, prompts(prior, TARGET, SOURCE), watched, steps, **settings)
    return torch.stack(watched.drawn)


def test_annealing_lets_the_noise_sink_to_a_value_over_the_run(prior):
    times, plain = drawn_times(prior, anneal=0.5), drawn_times(prior)
    ends = torch.linspace(0.9, 0.5, 9)[:, None]
    assert times.min() >= 0.1 and (times <= ends + 1e-6).all() and (times.amax(1) > ends[:, 0] - 0.05).all()
    assert (plain[-4:].amax(1) > 0.8).all()  # without it the range stays
    assert torch.equal(times[0], plain[0])
    shares = (times - 0.1) / (ends - 0.1)
    assert torch.allclose(shares, (plain - 0.1) / 0.8, atol=1e-5)  # the same draws, in a narrower range


def test_annealing_never_goes_below_the_least_noise_and_needs_no_second_step(prior):
    assert torch.allclose(drawn_times(prior, anneal=0.0)[-1], torch.tensor(0.1))
    assert torch.equal(drawn_times(prior, 1, anneal=0.2), drawn_times(prior, 1))


def test_an_annealed_run_is_the_same_every_time_and_another_seed_another(prior):
    first, again, other = (drawn_times(prior, seed=seed, anneal=0.3) for seed in (2, 2, 3))
    assert torch.equal(first, again) and not torch.equal(first, other)
