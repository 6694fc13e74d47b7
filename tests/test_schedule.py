"""schedule: every kind of output is the same noise, noising is diffusers' own, draws depend on the seed alone."""

from __future__ import annotations

import diffusers
import pytest
import torch

from sdsedit.schedule import Schedule

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
VP = ("epsilon", "v_prediction", "sample")
SHAPE = (5, 4, 6, 8)
TIMES = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98])


def noise(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def schedule(prediction: str) -> Schedule:
    if prediction == "flow":
        return Schedule.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    return Schedule.from_scheduler(diffusers.DDIMScheduler(prediction_type=prediction, **SCALED))


def output(
    prediction: str, z: torch.Tensor, eps: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """What a perfect network of each kind says."""
    return {"epsilon": eps, "v_prediction": alpha * eps - sigma * z, "sample": z, "flow": eps - z}[prediction]


@pytest.mark.parametrize("prediction", [*VP, "flow"])
def test_every_kind_of_output_means_the_noise_that_was_added(prediction):
    z, eps, s = noise(0), noise(1), schedule(prediction)
    alpha, sigma = s.alpha_sigma(TIMES)
    z_t = s.add_noise(z, eps, TIMES)
    found = s.to_eps(output(prediction, z, eps, alpha, sigma), z_t, TIMES)
    torch.testing.assert_close(found, eps, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(s.to_sample(found, z_t, TIMES), z, atol=1e-4, rtol=1e-4)


def test_epsilon_v_and_sample_agree_for_an_imperfect_network():
    # A wrong z_0 is one wrong eps, whichever way it is said; z_t stays what it was.
    z, eps, guess = noise(0), noise(1), noise(2)
    z_t = schedule("epsilon").add_noise(z, eps, TIMES)
    alpha, sigma = schedule("epsilon").alpha_sigma(TIMES)
    guess_eps = (z_t - alpha * guess) / sigma
    for prediction in VP:
        s = schedule(prediction)
        found = s.to_eps(output(prediction, guess, guess_eps, alpha, sigma), z_t, TIMES)
        torch.testing.assert_close(found, guess_eps, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(s.to_sample(found, z_t, TIMES), guess, atol=1e-4, rtol=1e-4)


def test_half_precision_output_is_computed_in_float32():
    z, eps, s = noise(0), noise(1), schedule("v_prediction")
    v = noise(2).half()
    z_t = s.add_noise(z, eps, TIMES)
    found = s.to_eps(v, z_t, TIMES)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, s.to_eps(v.float(), z_t, TIMES), atol=0, rtol=0)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(**SCALED),
        diffusers.DDPMScheduler(beta_schedule="linear"),
        diffusers.PNDMScheduler(**SCALED),
        diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2"),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_noising_is_the_schedulers_own(scheduler):
    s = Schedule.from_scheduler(scheduler)
    z, eps = noise(0), noise(1)
    if hasattr(scheduler, "set_timesteps") and not isinstance(scheduler, diffusers.DDPMScheduler):
        scheduler.set_timesteps(1000)
    expected = scheduler.add_noise(z, eps, s.timestep(TIMES))
    torch.testing.assert_close(s.add_noise(z, eps, TIMES), expected, atol=1e-5, rtol=1e-5)


def test_flow_noising_is_the_schedulers_own():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    s = Schedule.from_scheduler(scheduler)
    z, eps = noise(0), noise(1)
    times = torch.tensor([0.1, 0.25, 0.5, 0.75, 1.0])
    torch.testing.assert_close(s.add_noise(z, eps, times), scheduler.scale_noise(z, s.timestep(times), eps))


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler",
                                  "UniPCMultistepScheduler", "HeunDiscreteScheduler", "LCMScheduler"])  # fmt: skip
def test_any_solver_of_a_model_gives_the_same_schedule(name):
    ours = Schedule.from_scheduler(getattr(diffusers, name)(prediction_type="v_prediction", **SCALED))
    reference = schedule("v_prediction")
    assert ours.prediction == "v_prediction" and ours.num_train_timesteps == 1000
    torch.testing.assert_close(ours.alphas_cumprod, reference.alphas_cumprod)


def test_variance_preserving_and_flow_weights():
    alpha, sigma = schedule("epsilon").alpha_sigma(TIMES)
    assert alpha.shape == sigma.shape == (5, 1, 1, 1)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert (alpha.diff(dim=0) < 0).all()
    alpha, sigma = schedule("flow").alpha_sigma(TIMES)
    torch.testing.assert_close(alpha + sigma, torch.ones_like(alpha))
    torch.testing.assert_close(sigma.flatten(), TIMES)


def test_timesteps_are_indices_for_tables_and_floats_for_flow():
    ends = torch.tensor([0.0, 0.0004, 0.5, 0.9994, 1.0])
    assert schedule("epsilon").timestep(ends).tolist() == [0, 0, 500, 999, 999]
    assert schedule("epsilon").timestep(ends).dtype == torch.int64
    torch.testing.assert_close(schedule("flow").timestep(ends), ends * 1000)


def test_flow_solvers_are_flow_and_keep_the_shift():
    assert schedule("flow").shift == 3.0 and schedule("flow").alphas_cumprod is None
    solver = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0
    )
    assert Schedule.from_scheduler(solver).prediction == "flow" and Schedule.from_scheduler(solver).shift == 2.0


def test_an_exact_velocity_means_the_noise_and_one_step_of_it_the_picture():
    # z_t = (1 - s) z + s eps and v = eps - z, so z_t - s v = z whatever s is: a flow model's one-step sample.
    z, eps, s = noise(0), noise(1), schedule("flow")
    z_t = s.add_noise(z, eps, TIMES)
    found = s.to_eps(eps - z, z_t, TIMES)
    sigma = TIMES.view(-1, 1, 1, 1)
    torch.testing.assert_close(s.to_sample(found, z_t, TIMES), z_t - sigma * (eps - z), atol=1e-4, rtol=1e-4)


def test_a_difference_of_velocities_is_scaled_by_what_is_left_of_the_picture():
    # d_eps = (1 - sigma) d_v: a weight that was tuned on one is not one for the other.
    z_t, s = noise(0), schedule("flow")
    one, other = noise(1), noise(2)
    found = s.to_eps(one, z_t, TIMES) - s.to_eps(other, z_t, TIMES)
    torch.testing.assert_close(found, (1 - TIMES.view(-1, 1, 1, 1)) * (one - other), atol=1e-6, rtol=1e-5)


def test_an_euler_step_is_the_schedulers_own():
    # dz/dt = v, with v read back from the noise that the network's output means.
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(10)
    s, z_t, v = Schedule.from_scheduler(scheduler), noise(0), noise(1)
    for k in (1, 5, 8):
        now, after = scheduler.sigmas[k], scheduler.sigmas[k + 1]
        scheduler._step_index = None
        expected = scheduler.step(v, scheduler.timesteps[k], z_t).prev_sample
        eps = s.to_eps(v, z_t, now.expand(5))
        velocity = eps - s.to_sample(eps, z_t, now.expand(5))
        torch.testing.assert_close(z_t + (after - now) * velocity, expected, atol=1e-4, rtol=1e-4)


FLUX = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}


@pytest.mark.parametrize("steps", [1, 4, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_descending_walk_is_the_schedulers_own(steps, shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    s = Schedule.from_scheduler(scheduler)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(s.descending(steps), scheduler.sigmas, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [64, 256, 1000, 4096, 9216])
def test_a_walk_that_depends_on_the_size_is_the_pipelines_own(tokens, kind):
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(time_shift_type=kind, **FLUX)
    s = Schedule.from_scheduler(scheduler)
    even = [1 - k / 28 for k in range(28)]
    scheduler.set_timesteps(sigmas=even, mu=calculate_shift(tokens))
    torch.testing.assert_close(s.descending(28, tokens), scheduler.sigmas, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(s.warp(torch.tensor(even), tokens), scheduler.sigmas[:-1], atol=1e-6, rtol=1e-6)


def test_a_warp_keeps_both_ends_and_leans_to_the_noise():
    s = schedule("flow")
    t = torch.linspace(0, 1, 11)
    warped = s.warp(t)
    assert warped[0] == 0 and warped[-1] == 1 and (warped.diff() > 0).all() and (warped[1:-1] > t[1:-1]).all()
    assert torch.equal(schedule("epsilon").warp(t), t)


def test_a_walk_needs_a_flow_model_and_sometimes_a_size():
    with pytest.raises(ValueError, match="flow models"):
        schedule("epsilon").descending(10)
    s = Schedule.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(**FLUX))
    with pytest.raises(ValueError, match="number of tokens"):
        s.descending(10)
    assert Schedule.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler()).shift == 1.0  # FLUX.1 schnell


def test_zero_terminal_snr_still_means_a_noise():
    s = Schedule.from_scheduler(
        diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, **SCALED)
    )
    z, eps, last = noise(0), noise(1), torch.ones(5)
    assert s.alpha_sigma(last)[0].max() < 1e-3
    torch.testing.assert_close(s.to_eps(-z, s.add_noise(z, eps, last), last), eps, atol=1e-5, rtol=1e-5)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="EDMEulerScheduler is neither"):
        Schedule.from_scheduler(diffusers.EDMEulerScheduler())
    with pytest.raises(ValueError, match="'learned'"):
        Schedule("learned", torch.ones(10), 10)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="10 values"):
        Schedule("epsilon", torch.ones(9), 10)
    with pytest.raises(ValueError, match="flow"):
        Schedule("flow", torch.ones(10), 10)


def test_draws_follow_the_seed_alone():
    s, z = schedule("epsilon"), noise(0)
    first = s.draw(z, torch.Generator().manual_seed(7))
    again = s.draw(z, torch.Generator().manual_seed(7))
    other = s.draw(z, torch.Generator().manual_seed(8))
    assert torch.equal(first.t, again.t) and torch.equal(first.eps, again.eps)
    assert not torch.equal(first.eps, other.eps)
    # neither the latent's values nor its precision, nor the kind of model, nor the time range moves the noise
    elsewhere = schedule("flow").draw(z.double() * 3, torch.Generator().manual_seed(7), 0.2, 0.3)
    assert torch.equal(first.eps, elsewhere.eps) and elsewhere.eps.dtype == torch.float32
    # drawn on the CPU, then moved: on a device without storage the draw must still consume the CPU's randomness
    generator = torch.Generator().manual_seed(7)
    moved = s.draw(z.to("meta"), generator)
    assert moved.eps.device.type == moved.t.device.type == "meta"
    following = torch.Generator().manual_seed(7)
    s.draw(z, following)
    assert torch.equal(generator.get_state(), following.get_state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_draws_are_equal_on_the_gpu():
    s, z = schedule("epsilon"), noise(0)
    here = s.draw(z, torch.Generator().manual_seed(7))
    there = s.draw(z.cuda(), torch.Generator().manual_seed(7))
    assert torch.equal(here.t, there.t.cpu()) and torch.equal(here.eps, there.eps.cpu())


def test_drawn_times_fill_the_range():
    z = torch.zeros(2000, 1, 1, 1)
    t = schedule("epsilon").draw(z, torch.Generator().manual_seed(0), 0.2, 0.6).t
    assert t.min() >= 0.2 and t.max() <= 0.6 and t.dtype == torch.float32
    assert abs(float(t.mean()) - 0.4) < 0.01 and abs(float(t.std()) - 0.4 / 12**0.5) < 0.01


@pytest.mark.parametrize("span", [(-0.1, 0.5), (0.6, 0.5), (0.5, 1.1), (float("nan"), 0.5)])
def test_a_wrong_time_range_is_refused(span):
    with pytest.raises(ValueError, match="time range"):
        schedule("epsilon").draw(noise(0), torch.Generator(), *span)
