"""The shipped scenes: what their README says is in them, they look like the solids they were fitted to, and parts are
where the solids are."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from sdsedit.io.splats import read
from sdsedit.metrics import psnr
from sdsedit.representations.splats import Scene
from training import solids
from training.splat_scenes import FOLDER, WORLDS, look, measure, surface


@pytest.fixture(scope="module", params=list(WORLDS))
def scene(request: pytest.FixtureRequest):
    name = request.param
    return name, read(FOLDER / f"{name}.ply"), look(WORLDS[name], 3, 320, start=31.0)


def test_the_shipped_scene_looks_like_its_solids(scene):
    name, splats, views = scene
    found = measure(splats, views)
    # What differs is a pixel along each outline; of white snow on black that weighs more than of a brown table.
    mean, worst = {"still-life": (31, 29), "snowman": (27, 23)}[name]
    assert found["psnr"] > mean and found["worst"] > worst
    assert found["outside"] < 0.004


def test_the_shipped_scene_is_small_and_without_view_dependent_colour(scene):
    name, splats, _ = scene
    assert splats.sh.shape[1] == 1
    assert 15_000 <= len(splats.means) <= 40_000
    assert (FOLDER / f"{name}.ply").stat().st_size < 3e6


def test_parts_are_the_nearest_surfaces_and_named(scene):
    name, splats, _ = scene
    world = WORLDS[name]
    which, distance = solids.nearest_part(world, splats.means)
    assert splats.extra["part"].dtype == np.uint8
    assert (splats.extra["part"] == which).mean() > 0.999
    assert np.quantile(np.abs(distance), 0.99) < 0.05  # on the surfaces: no floaters
    (named,) = [line for line in splats.comments if line.startswith("part ")]
    assert named == "part " + ", ".join(f"{k} {part}" for k, part in enumerate(solids.parts(world)))


def test_the_readme_counts_the_gaussians(scene):
    name, splats, _ = scene
    row = next(line for line in (FOLDER / "README.md").read_text().splitlines() if f"`{name}.ply`" in line)
    assert f"{len(splats.means):,}" in row
    assert re.search(r"0 ground, .*", row)


def test_points_of_the_start_lie_on_the_surfaces_and_face_outwards():
    world = WORLDS["snowman"]
    views = look(world, 6, 64, supersample=2)
    start = surface(world, views, 600, np.random.default_rng(0))
    assert 400 < len(start.means) < 800
    assert np.abs(solids.nearest_part(world, start.means)[1]).max() < 5e-3
    w, x, y, z = start.quats.astype(float).T
    normal = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], 1)
    ahead = solids.nearest_part(world, start.means + 0.01 * normal)[1]
    assert (ahead > 0.004).mean() > 0.9
    assert np.allclose(start.log_scales[:, 2] - start.log_scales[:, 0], math.log(0.12), atol=1e-5)
    with torch.no_grad():
        image = Scene.of(start).render(views.cameras).image
    assert float(psnr(image.permute(0, 3, 1, 2).clamp(0, 1), views.pictures.permute(0, 3, 1, 2)).mean()) > 14
