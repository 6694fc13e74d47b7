"""Solids: what is drawn is what is said, shares are shares, depth lies on the surfaces, and a thing looks the same from
all round."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from training import solids
from training.scenes import COLOURS
from training.solids import GROUNDS, SOLIDS, WORN, Thing, World, nearest_part, parts, render

SIDE = 48
DUSK = ((150, 212, 250), (20, 20, 60))
STILL = World((Thing("apple", worn="crown", x=-0.5), Thing("pear", x=0.5, z=0.2, turn=1.0)), "table", 1.2, DUSK, 3)


def view(world: World, azimuth: float = 0.4, elevation: float = 20, size: int = SIDE):
    """A camera that has all things in the picture."""
    a, e = azimuth, math.radians(elevation)
    away = np.array([math.sin(a) * math.cos(e), -math.sin(e), -math.cos(a) * math.cos(e)])
    focal = 1.4 * size
    K = np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    return solids._aim(world.things, away, focal, 0.8 * size, 0.9 * size), K


def alone(thing: Thing, ground: str = "white") -> World:
    return World((thing,), ground, 0.8, ((255, 255, 255), (255, 255, 255)), 0)


def unproject(depth: np.ndarray, viewmat: np.ndarray, K: np.ndarray) -> np.ndarray:
    v, u = np.nonzero(np.isfinite(depth))
    z = depth[v, u]
    seen = np.stack([(u + 0.5 - K[0, 2]) / K[0, 0] * z, (v + 0.5 - K[1, 2]) / K[1, 1] * z, z], 1)
    return (seen - viewmat[:3, 3]) @ viewmat[:3, :3]


def test_parts_are_named_in_order_and_twins_are_numbered():
    assert parts(STILL) == ("ground", "apple", "crown on apple", "pear")
    twins = replace(STILL, things=(Thing("cup"), Thing("cup", worn="top hat", x=1)))
    assert parts(twins) == ("ground", "cup", "cup 2", "top hat on cup 2")


def test_shares_with_the_backdrop_sum_to_one():
    picture = render(STILL, *view(STILL), SIDE, SIDE)
    covered = picture.parts.sum(-1)
    assert picture.parts.shape == (SIDE, SIDE, 4) and picture.parts.min() >= 0
    assert covered.max() == 1 and (covered == 0).any()
    assert (picture.parts.reshape(-1, 4).sum(0) > 5).all()
    ramp = np.linspace(0.5 / SIDE, 1 - 0.5 / SIDE, SIDE)[:, None]
    expected = (1 - ramp) * DUSK[0] + ramp * np.array(DUSK[1])
    empty = np.abs(picture.image - expected[:, None])[covered == 0]
    assert empty.max() <= 1.01


def test_a_world_is_drawn_the_same_every_time():
    a, b = (render(STILL, *view(STILL), SIDE, SIDE) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    draws = [solids.sample_world(np.random.default_rng(5)) for _ in range(2)]
    assert draws[0] == draws[1]
    other = render(replace(STILL, seed=4), *view(STILL), SIDE, SIDE)
    assert not np.array_equal(a.image, other.image) and np.array_equal(a.parts, other.parts)


def test_depth_lies_on_the_surface_of_the_part_that_is_seen():
    viewmat, K = view(STILL)
    picture = render(STILL, viewmat, K, SIDE, SIDE, supersample=1)
    points = unproject(picture.depth, viewmat, K)
    which, distance = nearest_part(STILL, points)
    label = picture.parts.argmax(-1)[np.isfinite(picture.depth)]
    assert np.abs(distance).max() < 2e-3
    assert (which == label).mean() > 0.99  # where two parts touch, either is right


def test_nearest_part_is_negative_inside_and_far_outside_is_a_lower_bound():
    world = alone(Thing("balloon"))
    which, distance = nearest_part(world, np.array([[0, -0.715, 0], [0, -5, 0], [0, 0.05, 0.5]]))
    assert which.tolist() == [1, 1, 0]
    assert distance[0] == pytest.approx(-0.285, abs=1e-3)
    assert distance[1] == pytest.approx(4, abs=1e-3)
    assert distance[2] < 0


@pytest.mark.parametrize("noun", SOLIDS)
@pytest.mark.parametrize("worn", [None, *WORN])
def test_bounds_hold_the_solid_and_distances_do_not_overshoot(noun: str, worn: str | None):
    """Spheres and rings enclose every solid, and no distance changes faster than one walks: the tracer's conditions."""
    thing = Thing(noun, worn=worn, turn=0.7)
    kinds, floats, _ = solids._pieces(alone(thing))
    rng = np.random.default_rng(0)
    points = rng.uniform((-0.6, -1.5, -0.6), (0.6, 0.1, 0.6), (60000, 3))
    for k in range(len(kinds)):
        _, d = solids._nearest(kinds[k : k + 1], floats[k : k + 1], 1e-9, points)
        away = np.linalg.norm(points - floats[k, 6:9], axis=1) - floats[k, 9]
        inside = d < 0
        assert inside.sum() > 30
        assert away[inside].max() < 0
        shift = rng.normal(size=points.shape)
        shift *= 0.01 / np.linalg.norm(shift, axis=1, keepdims=True)
        _, moved = solids._nearest(kinds[k : k + 1], floats[k : k + 1], 1e-9, points + shift)
        near = d < 0.3
        assert np.quantile(np.abs(moved - d)[near] / 0.01, 0.995) < 1.15
        tall, wide = -points[inside, 1], np.hypot(points[inside, 0], points[inside, 2])
        assert tall.max() < solids.height(thing) + 0.06  # a leaf may poke out of a crown
        assert wide.max() < max(r for r, _ in solids._rings(thing)) + 0.03


@pytest.mark.parametrize("noun", SOLIDS)
def test_a_colour_tints_the_body(noun: str):
    plain = alone(Thing(noun))
    camera = view(plain)
    for colour in ("blue", "green", "pink"):
        picture = render(replace(plain, things=(Thing(noun, colour),)), *camera, SIDE, SIDE)
        body = picture.image[picture.parts[..., 1] == 1].astype(float)
        paint = np.array(COLOURS[colour], float)
        middle = np.median(body, axis=0)
        assert np.dot(middle, paint) / np.linalg.norm(middle) / np.linalg.norm(paint) > 0.97
    bare = render(plain, *camera, SIDE, SIDE)
    assert np.array_equal(bare.parts, picture.parts)


@pytest.mark.parametrize("noun", SOLIDS)
def test_things_look_alike_from_all_round(noun: str):
    means = []
    for azimuth in np.arange(8) * math.pi / 4:
        world = alone(Thing(noun, worn="crown"), "grass")
        picture = render(world, *view(world, azimuth), SIDE, SIDE)
        means.append([np.average(picture.image.reshape(-1, 3), 0, picture.parts[..., k].ravel()) for k in (1, 2)])
    # A snowman has his coal and his scarf's ends on one side.
    assert np.ptp(np.array(means), axis=0).max() < (36 if noun == "snowman" else 22)


@pytest.mark.parametrize("ground", GROUNDS)
def test_grounds_are_drawn(ground: str):
    world = alone(Thing("cup"), ground)
    picture = render(world, *view(world), SIDE, SIDE)
    assert picture.parts[..., 0].sum() > 100
    assert np.ptp(picture.image[picture.parts[..., 0] == 1].astype(int), axis=0).max() > 8


def test_the_slab_is_drawn_from_below():
    world = alone(Thing("apple"))
    camera = view(world, elevation=-40)
    picture = render(world, *camera, SIDE, SIDE)
    points = unproject(picture.depth, *camera)
    assert (points[:, 1] > 0.99 * solids.THICKNESS).any()


def test_sampled_worlds_stand_on_their_slab_and_cameras_frame_something():
    rng = np.random.default_rng(0)
    tall = []
    for _ in range(40):
        world = solids.sample_world(rng)
        assert 1 <= len(world.things) <= 3
        assert all(math.hypot(t.x, t.z) < world.radius for t in world.things)
        viewmat, K = solids.sample_camera(rng, world, SIDE)
        picture = render(world, viewmat, K, SIDE, SIDE, supersample=1)
        assert (picture.parts[..., 1:] > 0).any()
        focal = K[0, 0]
        spans = []
        for thing in world.things:
            low, high = solids._extent((thing,), viewmat, focal)
            if low.min() >= -SIDE / 2 and high.max() <= SIDE / 2:
                spans.append((high - low)[1] / SIDE)
        assert spans, "no thing is wholly in the picture"
        tall.append(max(spans))
        eye = -viewmat[:3, :3].T @ viewmat[:3, 3]
        assert eye[1] < 0
    assert 0.5 < np.median(tall) < 0.82 and max(tall) < 0.9


@pytest.mark.parametrize(
    ("world", "message"),
    [
        (replace(STILL, ground="lava"), "ground 'lava': choose one of grass"),
        (alone(Thing("fox")), "solid 'fox': choose one of apple"),
        (alone(Thing("cup", worn="bow")), "worn 'bow': choose one of crown"),
        (alone(Thing("cup", colour="beige")), "colour 'beige': choose one of red"),
    ],
)
def test_unknown_names_are_refused(world: World, message: str):
    with pytest.raises(ValueError, match=message):
        render(world, *view(STILL), SIDE, SIDE)


def test_a_camera_inside_a_solid_is_refused():
    viewmat = np.eye(4)
    viewmat[:3, 3] = (0, 0.7, 0)
    with pytest.raises(ValueError, match="inside a solid"):
        render(alone(Thing("balloon")), viewmat, view(STILL)[1], SIDE, SIDE)
