"""Fitting: a scene comes back from its own pictures, the same way every time, and what cannot be fitted is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from sdsedit.camera import Cameras, look_at, orbit
from sdsedit.errors import InputRefused
from sdsedit.io.splats import Splats
from sdsedit.representations.splats import Scene
from sdsedit.splats.fit import Y0, FitConfig, fit, from_points, random_start, ssim

SIDE = 32
CAMERAS = orbit((0.0, 0.0, 0.0), 3.0, (0.0, 30.0), 8, SIDE, SIDE)
SHORT = FitConfig(steps=12, points=60)


def blobs(count: int = 6, seed: int = 0) -> Splats:
    """Some coloured blobs about the origin."""
    rng = np.random.default_rng(seed)
    splats = from_points(rng.uniform(-0.5, 0.5, (count, 3)), rng.uniform(0.1, 0.9, (count, 3)), opacity=0.9)
    splats.log_scales[:] = math.log(0.2)
    return splats


def pictures(splats: Splats, cameras: Cameras = CAMERAS, background: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        seen = Scene.of(splats).render(cameras, torch.full((3,), background))
    return seen.image.clamp(0, 1), seen.alpha.clamp(0, 1)


def error(a: Splats, b: Splats) -> float:
    return float((pictures(a)[0] - pictures(b)[0]).square().mean())


def test_a_scene_comes_back_from_its_own_pictures():
    truth = blobs()
    views, alpha = pictures(truth)
    start = blobs()
    start.means[:] += np.random.default_rng(1).normal(0, 0.05, start.means.shape).astype(np.float32)
    start.sh[:] *= 0.5
    config = FitConfig(steps=150, means=0.003, sh=0.02, log_scales=0.01, densify_from=10_000)
    fitted = fit(views, CAMERAS, config, start=start, alpha=alpha)
    assert error(fitted, truth) < 0.05 * error(start, truth)
    assert len(fitted.means) == len(truth.means)


def test_random_points_become_the_scene():
    truth = blobs()
    views, alpha = pictures(truth)
    losses: list[float] = []
    config = FitConfig(
        steps=160, points=150, means=0.002, sh=0.02, log_scales=0.02, densify_from=40, densify_every=40, push=2e-5,
        largest=1.0, most=250, reset_every=0,
    )  # fmt: skip

    counts: list[int] = []

    def watch(done: int, steps: int, loss: float, count: int) -> None:
        losses.append(loss)
        counts.append(count)

    fitted = fit(views, CAMERAS, config, watch, alpha=alpha)
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])
    assert max(counts) > 150 and max(counts) <= 250
    assert error(fitted, truth) < 0.01


def test_the_same_seed_gives_the_same_scene():
    views, _ = pictures(blobs())
    a, b = (fit(views, CAMERAS, SHORT) for _ in range(2))
    c = fit(views, CAMERAS, replace(SHORT, seed=1))
    assert np.array_equal(a.means, b.means) and np.array_equal(a.sh, b.sh)
    assert not np.array_equal(a.means[:5], c.means[:5])


def test_nothing_is_fitted_where_alpha_says_that_nothing_is():
    """Black pictures over random backgrounds: without alpha they are black things, with it they are air."""
    views = torch.zeros(8, SIDE, SIDE, 3)
    config = replace(SHORT, steps=60, points=100, log_scales=0.0)
    opaque = [
        Scene.of(fit(views, CAMERAS, config, alpha=a)).render(CAMERAS).alpha.mean() for a in (None, views[..., 0])
    ]
    assert opaque[1] < 0.5 * opaque[0]


def test_views_of_one_colour_from_each_side_need_a_higher_degree():
    truth = blobs(1)
    truth.sh = np.zeros((1, 4, 3), np.float32)
    truth.sh[:, 3] = (0.5, -0.5, 0.2)
    views, alpha = pictures(truth)
    start = Splats(**{**vars(truth), "sh": np.zeros((1, 1, 3), np.float32)})
    config = FitConfig(steps=100, sh=0.05, densify_from=10_000, raise_every=1, means=0, quats=0, log_scales=0, logits=0)
    flat = fit(views, CAMERAS, config, start=start, alpha=alpha)
    turned = fit(views, CAMERAS, replace(config, degree=1, sh=0.2), start=start, alpha=alpha)
    assert flat.sh.shape == (1, 1, 3) and turned.sh.shape == (1, 4, 3)
    assert error(turned, truth) < 0.2 * error(flat, truth)


def test_progress_is_told_and_stops_the_fit():
    views, _ = pictures(blobs())
    told: list[tuple[int, int]] = []

    def stop(done: int, steps: int, loss: float, count: int) -> bool:
        told.append((done, steps))
        assert math.isfinite(loss) and count > 0
        return done < 3

    fit(views, CAMERAS, SHORT, stop)
    assert told == [(1, 12), (2, 12), (3, 12)]


def test_start_is_not_changed():
    start = blobs()
    before = start.means.copy()
    fit(pictures(blobs(seed=1))[0], CAMERAS, SHORT, start=start)
    assert np.array_equal(start.means, before)


def test_points_are_as_wide_as_the_way_to_their_neighbours():
    grid = np.stack(np.meshgrid(*[np.arange(4) * 0.25] * 3), -1).reshape(-1, 3)
    splats = from_points(grid, np.full((64, 3), 0.75))
    assert np.allclose(np.exp(splats.log_scales), 0.25, rtol=1e-4)
    assert np.allclose(0.5 + Y0 * splats.sh, 0.75)
    assert len(from_points(np.zeros((1, 3)), np.zeros((1, 3))).means) == 1


def test_random_points_lie_where_all_cameras_look():
    cameras = orbit((2.0, -1.0, 5.0), 4.0, (-10.0, 40.0), 6, SIDE, SIDE)
    points = random_start(cameras, 500, torch.Generator().manual_seed(0)).means
    assert np.allclose(points.mean(0), (2, -1, 5), atol=0.2)
    assert np.linalg.norm(points - (2, -1, 5), axis=1).max() < 4 * math.tan(math.radians(20)) * 1.01


def test_ssim_is_one_for_equal_pictures_and_less_for_others():
    a = torch.rand(20, 24, 3, generator=torch.Generator().manual_seed(0))
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, a.flip(0)) == pytest.approx(float(ssim(a.flip(0), a)))
    assert float(ssim(a, a.flip(0))) < float(ssim(a, 0.9 * a)) < 1


def test_ssim_is_the_formula_with_a_gaussian_window():
    a, b = np.random.default_rng(0).random((2, 17, 23, 3))
    weights = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    weights /= weights.sum()

    def blur(x: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(x, weights, 0, mode="constant"), weights, 1, mode="constant")

    mu_a, mu_b = blur(a), blur(b)
    va, vb, cov = blur(a * a) - mu_a**2, blur(b * b) - mu_b**2, blur(a * b) - mu_a * mu_b
    truth = (2 * mu_a * mu_b + 1e-4) * (2 * cov + 9e-4) / ((mu_a**2 + mu_b**2 + 1e-4) * (va + vb + 9e-4))
    assert float(ssim(torch.from_numpy(a).float(), torch.from_numpy(b).float())) == pytest.approx(
        truth.mean(), abs=1e-5
    )


@pytest.mark.parametrize(
    ("views", "cameras", "message"),
    [
        (torch.zeros(7, SIDE, SIDE, 3), CAMERAS, "7 pictures do not go with 8 cameras"),
        (torch.zeros(8, SIDE, 40, 3), CAMERAS, "pictures are 40x32 and the cameras' are 32x32"),
        (
            torch.full((8, SIDE, SIDE, 3), float("nan")),
            CAMERAS,
            "picture of view 1 has values that are not",
        ),
        (torch.full((8, SIDE, SIDE, 3), 255.0), CAMERAS, "picture of view 1 has values that are not"),
        (torch.zeros(1, SIDE, SIDE, 3), CAMERAS[0], "do not look at a common place from two sides"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(views: torch.Tensor, cameras: Cameras, message: str):
    with pytest.raises(InputRefused, match=message):
        fit(views, cameras, SHORT)


def test_cameras_that_look_away_are_refused():
    eye = CAMERAS.positions
    away = Cameras(look_at(eye, 2 * eye), CAMERAS.Ks, SIDE, SIDE)
    with pytest.raises(InputRefused, match="do not look at a common place"):
        fit(torch.zeros(8, SIDE, SIDE, 3), away, SHORT)
    mixed = replace(CAMERAS, viewmats=torch.cat([CAMERAS.viewmats[:7], away.viewmats[7:]]))
    with pytest.raises(InputRefused, match="Camera 8 sees nothing of the scene"):
        fit(torch.zeros(8, SIDE, SIDE, 3), mixed, SHORT, start=blobs())


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("degree", 4), ("ssim", 1.5), ("means", -1.0), ("push", float("nan")), ("most", 0)],
)
def test_settings_out_of_range_are_refused_by_name(field: str, value: float):
    with pytest.raises(InputRefused, match=f"{field} is"):
        replace(SHORT, **{field: value})


def test_shapes_that_are_a_programming_error():
    with pytest.raises(ValueError, match="Views are floats"):
        fit(torch.zeros(8, 3, SIDE, SIDE), CAMERAS, SHORT)
    with pytest.raises(ValueError, match="Alpha is"):
        fit(torch.zeros(8, SIDE, SIDE, 3), CAMERAS, SHORT, alpha=torch.zeros(8, SIDE))
