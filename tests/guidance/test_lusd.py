"""LUSD: the published equations in float64 beside ours, and what it does at its edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sdsedit.guidance import LUSD, FastLUSD
from sdsedit.guidance.base import State, Step
from sdsedit.schedule import Draw
from tests.guidance.gaussian import FLOW, VP, GaussianPrior, descend, draws, prompts


def field(seed: int, side: int = 4) -> torch.Tensor:
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(seed))


def places(count: int) -> list[torch.Tensor]:
    return [torch.rand(4, 4, generator=torch.Generator().manual_seed(i)) * 0.1 + 0.02 for i in range(count)]


def worded(prior):
    return prompts(prior, tokens=(2, 3))


def transcription(draw, z_src, target, source, maps, steps):
    """The equations of arXiv:2503.11054 in float64 numpy, with the current step's mask and our floor on std(d)."""
    abar = VP.alphas_cumprod.double().numpy()
    z, mean_mask, path, rejected, next_map = z_src.copy(), None, [], [], 0
    for i in range(steps):
        tau, redraws = 0.01, 0
        while True:
            one = draw()
            index = int(np.clip(np.round(np.float32(one.t.item()) * 1000), 0, 999))
            a, s = np.sqrt(abar[index]), np.sqrt(1 - abar[index])
            z_t = a * z + s * one.eps[0].double().numpy()
            e = s * (z_t - a * target) / (a**2 + s**2) - s * (z_t - a * source) / (a**2 + s**2)
            current, next_map = maps[next_map], next_map + 1
            if e.std() >= tau:
                break
            tau, redraws = tau * 0.99, redraws + 1
        rejected.append(redraws)
        mask = (current - current.min()) / (current.max() - current.min())
        mean_mask = mask if mean_mask is None else 0.9 * mean_mask + 0.1 * mask
        beta = i / (steps - 1)
        narrowed = beta * mean_mask + (1 - beta)
        d = 0.98 * narrowed * e + 0.02 * (z - z_src)
        u = -5 + 10 * i / (steps - 1)
        delta = 0.01 + 0.14 * (1 - 1 / (1 + np.exp(-u)))
        d = d / max(d.std(), 0.25 * e.std()) * delta
        z = z - 0.488 * d
        path.append(z)
    return path, rejected


def test_the_update_is_the_published_one_in_float64():
    steps, method = 12, LUSD()
    # Prompts so alike that some draws fall below the threshold: std(e) = s a std(difference), and s a <= 1/2.
    target, source, z_src = field(1) * 0.027, torch.zeros(3, 4, 4), field(3)
    prior = GaussianPrior({"target": target, "source": source}, places=places(60))
    ours = descend(prior, method, z_src[None], steps, worded(prior))
    wanted, rejected = transcription(
        draws(prior, z_src[None], method),
        z_src.double().numpy(),
        target.double().numpy(),
        source.double().numpy(),
        [place.double().numpy() for place in places(60)],
        steps,
    )
    assert sum(rejected) > 0 and max(rejected) <= method.retries
    assert prior.batches == [2] * (steps + sum(rejected))
    for z, expected in zip(ours, wanted, strict=True):
        assert np.abs(z[0].double().numpy() - expected).max() < 1e-5


def run(prior, method, z_src, steps, encoded):
    z, state, updates = z_src, None, []
    draw = draws(prior, z_src, method)
    for index in range(steps):
        update = method(prior, Step(index, steps, z, z_src, encoded, draw), state)
        z, state = z - update.step, update.state
        updates.append(update)
    return z, updates


def test_equal_prompts_use_up_the_redraws_and_stay_put():
    method = LUSD(retries=5)
    prior = GaussianPrior({"target": field(1)}, places=places(1))
    z_src = field(3)[None]
    z, updates = run(prior, method, z_src, 3, prompts(prior, "target", "target", tokens=(1,)))
    assert torch.equal(z, z_src)
    assert [int(update.stats["rejected"]) for update in updates] == [6, 6, 6]
    assert len(prior.batches) == 18
    assert all(value.isfinite() for update in updates for value in update.stats.values())


def test_no_filter_and_no_difference_divides_by_nothing():
    prior = GaussianPrior({"target": field(1)})
    z_src = field(3)[None]
    z, _ = run(prior, LUSD(tau=0.0), z_src, 3, prompts(prior, "target", "target"))
    assert torch.equal(z, z_src)


@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_the_size_of_a_step_follows_delta_whatever_the_prompts_and_the_resolution(schedule):
    method = LUSD()
    for strength in (0.2, 20.0):
        for index, delta in ((0, 0.15 - 0.14 / (1 + np.exp(5))), (5, 0.08), (10, 0.01 + 0.14 / (1 + np.exp(5)))):
            steps = []
            for tiles in (1, 3):
                target = (strength * field(1)).repeat(1, tiles, tiles)
                prior = GaussianPrior({"target": target}, schedule=schedule)
                z = field(3).repeat(1, tiles, tiles)[None]
                draw = Draw(torch.tensor([0.5]), torch.zeros_like(z))
                step = Step(index, 11, z, z, prompts(prior), lambda draw=draw: draw)
                steps.append(method(prior, step).step)
                assert steps[-1].std(correction=0) == pytest.approx(0.488 * delta, rel=1e-4)
            assert torch.allclose(steps[0].repeat(1, 1, 3, 3), steps[1], rtol=1e-4, atol=1e-7)


def test_a_direction_constant_over_the_picture_moves_every_cell_alike_at_every_resolution():
    per_channel = torch.tensor([1.0, -0.5, 0.25])[:, None, None]
    moved = []
    for side in (4, 32):
        prior = GaussianPrior({"target": per_channel})
        z = torch.zeros(1, 3, side, side)
        moved.append(run(prior, LUSD(), z, 5, prompts(prior))[0])
        assert torch.allclose(moved[-1], moved[-1][..., :1, :1].expand_as(moved[-1]), atol=1e-6)
    assert torch.allclose(moved[0][..., 0, 0], moved[1][..., 0, 0], atol=1e-5)


def test_the_mask_narrows_from_everywhere_to_the_moving_average():
    place = torch.zeros(4, 4)
    place[1, 1] = 1
    prior = GaussianPrior({"target": field(1)}, places=[place])
    _, updates = run(prior, LUSD(), field(3)[None], 5, worded(prior))
    areas = [update.stats["mask_area"].item() for update in updates]
    assert areas == pytest.approx([1 - (15 / 16) * i / 4 for i in range(5)])
    assert updates[-1].state is not None and torch.equal(updates[-1].state.mask[0, 0], place)


def test_the_average_is_nine_tenths_of_the_past():
    first, second = torch.eye(4), 1 - torch.eye(4)
    prior = GaussianPrior({"target": field(1)}, places=[first, second])
    _, updates = run(prior, LUSD(), field(3)[None], 2, worded(prior))
    assert torch.allclose(updates[1].state.mask[0, 0], 0.9 * first + 0.1 * second)
    assert torch.equal(updates[1].state.map[0, 0], second)


def test_the_step_inside_a_shrinking_mask_is_bounded():
    """Normalised by std(d) alone, a mask of one cell in 1024 would take the whole picture's step: 32 times as much."""
    place = torch.zeros(32, 32)
    place[7, 7] = 1
    prior = GaussianPrior({"target": field(1, 32)}, places=[place])
    z = field(3, 32)[None]
    step = Step(9, 10, z, z, worded(prior), draws(prior, z, LUSD()))
    update = LUSD()(prior, step)
    e_scale = field(1, 32).std()
    bound = LUSD().step_size * LUSD()._delta(step) / LUSD().std_floor * field(1, 32).abs().max() / e_scale
    assert 0 < update.step.abs().max() <= bound * 1.01


def test_the_pull_brings_back_what_is_outside_the_mask():
    place = torch.zeros(4, 4)
    place[:2] = 1
    prior = GaussianPrior({"target": field(1)}, places=[place])
    z_src = field(3)[None]
    z = z_src + 1
    step = Step(3, 4, z, z_src, worded(prior), draws(prior, z, LUSD()))
    moved = LUSD()(prior, step, State(mask=place[None, None])).step[..., 2:, :]
    assert (moved > 0).all() and torch.allclose(moved, moved.mean().expand_as(moved))  # only lambda (z - z_src)


def test_the_words_tokens_are_recorded_on_the_branch_of_their_prompt():
    for origin, rows in (("target", slice(0, 1)), ("source", slice(1, 2))):
        prior = GaussianPrior({"target": field(1)}, places=places(1))
        run(prior, LUSD(), field(3)[None], 1, replace(worded(prior), mask_from=origin))
        assert prior.recorded == [((2, 3), rows)]


def test_without_words_or_with_a_persons_mask_nothing_is_recorded_and_nothing_narrows():
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1:3, 1:3] = 1
    for encoded, person in ((prompts, None), (worded, mask)):
        prior = GaussianPrior({"target": field(1)}, places=places(1))
        z = field(3)[None]
        step = Step(9, 10, z, z, encoded(prior), draws(prior, z, LUSD()), person)
        update = LUSD()(prior, step)
        assert not prior.recorded and update.state.mask is None
        assert update.stats["mask_area"] == (1 if person is None else 0.25)


def test_a_prediction_that_is_not_finite_gives_such_a_step_and_leaves_the_state():
    prior = GaussianPrior({"target": field(1)}, places=places(3))
    prior.poisoned_at = 1
    _, updates = run(prior, LUSD(), field(3)[None], 2, worded(prior))
    assert updates[0].step.isfinite().all() and not updates[1].step.isfinite().any()
    assert updates[1].state is updates[0].state


def test_normalised_over_the_mask_the_inside_moves_alike_whatever_the_masks_size():
    method = LUSD(normalise="mask", pull=0.0, std_floor=0.0)
    prior = GaussianPrior({"target": field(1, 32)})
    z = field(3, 32)[None]
    for side in (2, 8, 32):
        mask = torch.zeros(1, 1, 32, 32)
        mask[..., :side, :side] = 1
        step = Step(4, 10, z, z, prompts(prior), draws(prior, z, method), mask)
        inside = method(prior, step).step[..., :side, :side]
        assert inside.square().mean().sqrt().item() == pytest.approx(method.step_size * method._delta(step), rel=1e-4)


def test_the_place_of_replaced_words_may_change_too():
    """A fox where a dog was: the larger of the two maps, each recorded on its own branch."""
    fox, dog = torch.zeros(4, 4), torch.zeros(4, 4)
    fox[1:3, 1:3] = 1
    dog[0] = 1
    prior = GaussianPrior({"target": field(1)}, places=[fox, dog])
    z = field(3)[None]
    encoded = replace(prompts(prior, tokens=(2,)), replaced=(3,))
    update = LUSD()(prior, Step(9, 10, z, z, encoded, draws(prior, z, LUSD())))
    assert prior.recorded == [((2,), slice(0, 1)), ((3,), slice(1, 2))]
    assert torch.equal(update.state.mask[0, 0], torch.maximum(fox, dog))


# Fast


def asked(method: FastLUSD, steps: int) -> list[torch.Tensor]:
    """The times of each step's draws."""
    seen = []

    class Listening(GaussianPrior):
        def predict(self, z_t, t, text, probe=None):
            seen.append(t[: len(t) // 2])
            return super().predict(z_t, t, text, probe)

    prior = Listening({"target": field(1)})
    run(prior, method, field(3)[None], steps, prompts(prior))
    assert prior.batches == [2 * method.draws] * steps
    return seen


def test_fast_takes_one_draw_of_each_part_of_the_range():
    stratified = asked(FastLUSD(draws=3, t_min=0.2, t_max=0.8), 20)
    for j in range(3):
        low = 0.2 + 0.2 * j
        assert all(low - 1e-6 <= t[j] <= low + 0.2 + 1e-6 for t in stratified)
        assert len({float(t[j]) for t in stratified}) == 20
    falling = torch.cat(asked(FastLUSD(draws=2, times="descending"), 10))
    assert (falling.diff() < 0).all() and falling[0] > 0.9 and falling[-1] < 0.1
    edges = torch.linspace(0.95, 0.05, 21)
    assert ((falling <= edges[:-1] + 1e-6) & (falling >= edges[1:] - 1e-6)).all()


def test_fast_moves_along_the_mean_of_its_draws():
    method = FastLUSD(draws=2, times="uniform", plateau=0.0)
    prior = GaussianPrior({"target": field(1), "source": field(2)})
    z_src = field(3)[None]
    ready = [Draw(torch.tensor([t]), field(k)[None]) for k, t in ((7, 0.3), (8, 0.8))]
    waiting = iter(ready)
    step = Step(0, 11, z_src, z_src, prompts(prior), lambda: next(waiting))
    found = method(prior, step).step
    e = []
    for draw in ready:
        z_t = prior.schedule.add_noise(z_src, draw.eps, draw.t)
        target, source = (prior.predict(z_t, draw.t, text).eps for text in (step.prompts.target, step.prompts.source))
        e.append((target - source).double())
    mean = sum(e) / 2
    delta = 0.15 - 0.14 / (1 + np.exp(5))
    assert torch.allclose(
        found.double(), method.step_size * delta * mean / mean.std(correction=0), rtol=1e-4, atol=1e-6
    )


def test_fast_is_done_when_nothing_moves_any_more():
    prior = GaussianPrior({"target": field(1)})
    z_src = field(3)[None]
    _, still = run(prior, FastLUSD(plateau=0.5, step_size=1e-3), z_src, 20, prompts(prior))
    assert not any(update.last for update in still[:10]), "not in the first half"
    assert still[-1].last
    _, endless = run(prior, FastLUSD(plateau=0.0, step_size=1e-3), z_src, 20, prompts(prior))
    assert not any(update.last for update in endless)
    assert not any(update.last for update in run(prior, LUSD(), z_src, 20, prompts(prior))[1])


def test_fast_has_nothing_to_say_where_the_prompts_are_the_same():
    prior = GaussianPrior({"target": field(1)}, places=places(1))
    z_src = field(3)[None]
    z, updates = run(prior, FastLUSD(), z_src, 3, prompts(prior, "target", "target", tokens=(1,)))
    assert torch.equal(z, z_src) and len(prior.batches) == len(updates) == 3
