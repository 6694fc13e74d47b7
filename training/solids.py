"""Solids of the built-in model's world in three dimensions: things on a round slab, seen from anywhere.

An apple, a pear, a cup, a balloon and a snowman look alike from all round and like their flat namesakes of
`training.art`; each may wear a crown or a top hat and may be of another colour.  `render` draws a world from a camera
by sphere tracing (Hart, Sphere tracing, The Visual Computer 1996): a ray walks by the distance d(p) to the nearest
surface, which no step can overshoot,

    t <- t + d(o + t v)    until d is small        normal = grad d

The light comes from straight above and the shade is a function of the place alone, so that a thing has the same colours
in every picture of it: what is drawn is what a scene of Gaussians without view-dependent colour can hold.

The world is OpenCV's: up is -y, the ground is y = 0, a thing is about one unit tall.  Shapes are written below with y
up and their feet at 0.  Everything is drawn from a `numpy.random.Generator` or from a seed: a seed is a world.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np

from .scenes import COLOURS, SIZE

SOLIDS = ("apple", "pear", "cup", "balloon", "snowman")
WORN = ("crown", "top hat")
GROUNDS = ("grass", "sand", "snow", "table", "white")
THICKNESS = 0.16  # of the slab, world units

RGB = tuple[int, int, int]

_KINDS = (*SOLIDS, *WORN)
_APPLE, _PEAR, _CUP, _BALLOON, _SNOWMAN, _CROWN, _HAT = range(7)
_GRASS, _SAND, _SNOW, _TABLE, _WHITE = range(5)
_BARE, _CROWNED, _HATTED = range(3)

# Colours of a solid's materials, in the order of the indices that its distance function returns; the first is its body.
_PALETTE: dict[str, tuple[RGB, ...]] = {
    "apple": ((249, 47, 46), (104, 62, 44), (30, 190, 92)),
    "pear": ((196, 230, 56), (122, 84, 58), (30, 178, 92)),
    "cup": ((222, 216, 232), (232, 48, 84), (242, 240, 248), (206, 22, 62)),
    "balloon": ((249, 47, 46), (190, 16, 60), (64, 98, 255)),
    "snowman": ((236, 242, 252), (255, 138, 20), (255, 116, 10), (42, 40, 52), (112, 74, 48)),
    "crown": ((255, 184, 38), (255, 206, 74), (240, 40, 50), (20, 150, 240)),
    "top hat": ((52, 42, 66), (240, 44, 48)),
}
_TINTED = {"apple": 1, "pear": 1, "cup": 4, "balloon": 2, "snowman": 1}  # so many materials take a thing's colour
# Heights of a bounding sphere's centre and its radius, and (radius, height) of rings that enclose the solid closely.
_BOUNDS = {
    "apple": (0.56, 0.66),
    "pear": (0.54, 0.58),
    "cup": (0.50, 0.58),
    "balloon": (0.50, 0.54),
    "snowman": (0.52, 0.58),
    "crown": (0.17, 0.38),
    "top hat": (0.19, 0.40),
}
_RINGS = {
    "apple": ((0.36, 0.0), (0.46, 0.25), (0.46, 0.55), (0.36, 1.0)),
    "pear": ((0.25, 0.0), (0.35, 0.2), (0.35, 0.45), (0.20, 0.75), (0.26, 1.02)),
    "cup": ((0.24, 0.0), (0.37, 0.66), (0.37, 0.73), (0.26, 1.03)),
    "balloon": ((0.06, 0.0), (0.29, 0.66), (0.29, 0.78), (0.17, 0.95), (0.05, 1.0)),
    "snowman": ((0.2, 0.0), (0.3, 0.25), (0.42, 0.8), (0.42, 0.85), (0.12, 1.04)),
    "crown": ((0.25, 0.0), (0.34, 0.36)),
    "top hat": ((0.32, 0.0), (0.32, 0.04), (0.23, 0.42)),
}
# Where a worn thing's foot sits on a solid, and its size.
_SEAT = {
    ("apple", "crown"): (0.715, 0.90),
    ("apple", "top hat"): (0.735, 1.0),
    ("pear", "crown"): (0.755, 0.70),
    ("pear", "top hat"): (0.825, 0.82),
    ("cup", "crown"): (0.725, 1.05),
    ("cup", "top hat"): (0.80, 0.95),
    ("balloon", "crown"): (0.905, 0.80),
    ("balloon", "top hat"): (0.955, 0.84),
    ("snowman", "crown"): (0.955, 0.60),
    ("snowman", "top hat"): (0.98, 0.80),
}


@dataclass(frozen=True)
class Thing:
    """A solid on the ground at (x, z), world units.  `turn` is in radians about the vertical."""

    noun: str  # of SOLIDS
    colour: str | None = None  # of COLOURS
    worn: str | None = None  # of WORN
    x: float = 0.0
    z: float = 0.0
    scale: float = 1.0
    turn: float = 0.0


@dataclass(frozen=True)
class World:
    """Things on a round slab of `radius` about the origin.  The backdrop is a gradient over the picture, 0..255."""

    things: tuple[Thing, ...]
    ground: str  # of GROUNDS
    radius: float
    backdrop: tuple[RGB, RGB]  # top, bottom
    seed: int  # of the ground's texture


class Picture(NamedTuple):
    """A drawn world.  A part's share is what it covers of a pixel; what the shares lack of 1 is the backdrop's."""

    image: np.ndarray  # [H, W, 3] uint8
    parts: np.ndarray  # [H, W, P] float32, in 0..1, the order of `parts`
    depth: np.ndarray  # [H, W] float32, camera z of what covers most of the pixel; inf where that is the backdrop


def parts(world: World) -> tuple[str, ...]:
    """Names of what can be told apart: `("ground", "apple", "crown on apple", "pear")`.  Twins are numbered."""
    names = ["ground"]
    for k, thing in enumerate(world.things):
        before = sum(other.noun == thing.noun for other in world.things[:k])
        name = f"{thing.noun} {before + 1}" if before else thing.noun
        names.append(name)
        if thing.worn:
            names.append(f"{thing.worn} on {name}")
    return tuple(names)


def height(thing: Thing) -> float:
    """Of a thing with what it wears, world units."""
    return max(tall for _, tall in _rings(thing))


def render(
    world: World,
    viewmat: np.ndarray,  # [4, 4] world to camera, OpenCV axes
    K: np.ndarray,  # [3, 3] pixels
    width: int,
    height: int,
    supersample: int = 2,  # rays along each side of a pixel
) -> Picture:
    """Draw a world.  Raises ValueError for names that are not of this module's lists and for a camera in a solid."""
    pieces = _pieces(world)
    view = np.asarray(viewmat, np.float64)
    pinhole = np.asarray(K, np.float64)
    eye = -view[:3, :3].T @ view[:3, 3]
    if nearest_part(world, eye[None])[1][0] <= 0:
        raise ValueError("The camera is inside a solid: put it outside.")
    backdrop = np.array(world.backdrop, np.float64)
    return Picture(
        *_draw(
            *pieces, GROUNDS.index(world.ground), world.radius, world.seed & 0x7FFFFFFF, backdrop,
            view[:3, :3].copy(), eye, pinhole[0, 0], pinhole[1, 1], pinhole[0, 2], pinhole[1, 2],
            width, height, supersample,
        )
    )  # fmt: skip


def nearest_part(
    world: World,
    points: np.ndarray,  # [N, 3] world units
) -> tuple[np.ndarray, np.ndarray]:  # [N] int64 index into `parts`, [N] float32 distance to it, negative inside
    """Which part's surface is nearest.  Distances are exact to about a tenth near a surface, lower bounds far away."""
    kinds, floats, _ = _pieces(world)
    return _nearest(kinds, floats, world.radius, np.ascontiguousarray(points, np.float64))


# --- random worlds ----------------------------------------------------------------------------------------------------

_BACKDROPS: tuple[tuple[RGB, RGB], ...] = (
    ((150, 212, 250), (206, 236, 252)),  # the skies of the flat world
    ((140, 206, 246), (176, 224, 250)),
    ((176, 196, 222), (214, 226, 240)),
    ((86, 172, 240), (170, 218, 250)),
    ((240, 226, 200), (232, 214, 184)),
    ((18, 20, 60), (46, 42, 104)),
)


def sample_world(rng: np.random.Generator, things: int | None = None) -> World:
    """One to three different things, each perhaps of a colour and perhaps wearing something, close to one another."""
    count = int(rng.choice((1, 2, 3), p=(0.45, 0.35, 0.20))) if things is None else things
    nouns = rng.permutation(SOLIDS)[:count]
    placed: list[Thing] = []
    while len(placed) < count:
        spread = 0.0 if count == 1 else 0.95
        angle, far = rng.uniform(0, 2 * math.pi), spread * math.sqrt(rng.uniform(0.1, 1))
        thing = Thing(
            noun=str(nouns[len(placed)]),
            colour=str(rng.choice(list(COLOURS))) if rng.random() < 0.3 else None,
            worn=str(rng.choice(WORN)) if rng.random() < 0.42 else None,
            x=far * math.cos(angle),
            z=far * math.sin(angle),
            scale=float(rng.uniform(0.85, 1.12)),
            turn=float(rng.uniform(0, 2 * math.pi)),
        )
        if all(math.hypot(thing.x - p.x, thing.z - p.z) > 0.47 * (thing.scale + p.scale) for p in placed):
            placed.append(thing)
    reach = max(math.hypot(p.x, p.z) + 0.48 * p.scale for p in placed)
    radius = reach + float(rng.uniform(0.08, 0.6)) if rng.random() < 0.6 else float(rng.uniform(1.6, 6.0))
    return World(tuple(placed), str(rng.choice(GROUNDS)), max(radius, reach), _backdrop(rng), int(rng.integers(2**31)))


def sample_camera(
    rng: np.random.Generator, world: World, size: int = SIZE
) -> tuple[np.ndarray, np.ndarray]:  # [4, 4], [3, 3]
    """A camera that mostly looks at one thing, which fills 55 to 80 % of the picture's height; sometimes at all.

    Others may stand in the way of a part of it, never of more than about a third."""
    for attempt in range(200):
        everything = len(world.things) == 1 or rng.random() < 0.25
        focus = world.things if everything else (world.things[int(rng.integers(len(world.things)))],)
        azimuth = rng.uniform(0, 2 * math.pi)
        elevation = math.radians(rng.uniform(10, 35) if rng.random() < 0.75 else rng.uniform(0, 50))
        focal = 0.5 * size / math.tan(math.radians(rng.uniform(30, 50)) / 2)
        share = rng.uniform(0.55, 0.80)
        away = np.array(
            [math.sin(azimuth) * math.cos(elevation), -math.sin(elevation), -math.cos(azimuth) * math.cos(elevation)]
        )
        view = _aim(focus, away, focal, share * size, 0.92 * size)
        low, high = _extent(focus, view, focal)
        room = np.minimum(0.5 * (0.97 * size - (high - low)), 0.06 * size)
        view[:2, 3] += rng.uniform(-1, 1, 2) * np.maximum(room, 0) * _distance(focus, view) / focal
        if attempt == 199 or _is_clear(world, focus, view, focal):
            return view, np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])
    raise AssertionError


def _backdrop(rng: np.random.Generator) -> tuple[RGB, RGB]:
    """White, pale, a sky, now and then dark."""
    kind = rng.random()
    if kind < 0.2:
        return (255, 255, 255), (255, 255, 255)
    if kind < 0.5:
        pale = rng.uniform(190, 255, 3)
        rows = pale + rng.uniform(-22, 22, (2, 1)) + rng.uniform(-6, 6, (2, 3))
    elif kind < 0.9:
        rows = np.array(_BACKDROPS[int(rng.integers(len(_BACKDROPS)))]) + rng.uniform(-14, 14, (2, 3))
    else:
        rows = rng.uniform(15, 80, 3) + rng.uniform(-12, 25, (2, 1))
    top, bottom = np.clip(rows, 0, 255).astype(int).tolist()
    return tuple(top), tuple(bottom)


def _aim(focus: tuple[Thing, ...], away: np.ndarray, focal: float, tall: float, wide: float) -> np.ndarray:
    """The view from direction `away` in which the focus is in the middle, `tall` pixels high unless it would be wider
    than `wide`."""
    back = -away
    right = np.cross(back, np.array([0.0, -1.0, 0.0]))
    right /= np.linalg.norm(right)
    view = np.eye(4)
    view[:3, :3] = np.stack([right, np.cross(back, right), back])
    points = _enclosing(focus)
    middle = points.mean(0)
    distance = 3.0
    for _ in range(12):
        view[:3, 3] = -view[:3, :3] @ (middle + away * distance)
        low, high = _extent(focus, view, focal)
        off = (low + high) / 2 * distance / focal
        middle = middle + view[:3, :3].T @ np.array([off[0], off[1], 0.0])
        distance = max(distance * max((high - low)[1] / tall, (high - low)[0] / wide), 0.8)
    view[:3, 3] = -view[:3, :3] @ (middle + away * distance)
    return view


def _enclosing(things: tuple[Thing, ...]) -> np.ndarray:  # [M, 3]
    angles = np.linspace(0, 2 * math.pi, 16, endpoint=False)
    rings = [(t.x, t.z, radius, tall) for t in things for radius, tall in _rings(t)]
    return np.array([(x + r * math.cos(a), -tall, z + r * math.sin(a)) for x, z, r, tall in rings for a in angles])


def _extent(things: tuple[Thing, ...], view: np.ndarray, focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest (x, y) in the picture, pixels from its middle."""
    seen = _enclosing(things) @ view[:3, :3].T + view[:3, 3]
    flat = seen[:, :2] / np.maximum(seen[:, 2:], 0.05) * focal
    return flat.min(0), flat.max(0)


def _distance(things: tuple[Thing, ...], view: np.ndarray) -> float:
    return float((_enclosing(things) @ view[2, :3] + view[2, 3]).mean())


def _is_clear(world: World, focus: tuple[Thing, ...], view: np.ndarray, focal: float) -> bool:
    """Whether the eye is off every thing, and nothing nearer hides more than a third of the focus: with all things in
    focus, more than .6 of any of them."""
    eye = -view[:3, :3].T @ view[:3, 3]
    if eye[1] > -0.05 or any(math.hypot(eye[0] - t.x, eye[2] - t.z) < 0.9 * t.scale for t in world.things):
        return False
    for thing in focus:
        low, high = _extent((thing,), view, focal)
        for other in world.things:
            if other != thing and _distance((other,), view) < _distance((thing,), view):
                a, b = _extent((other,), view, focal)
                covered = np.minimum(high, b) - np.maximum(low, a)
                if min(covered / (high - low)) > (0.33 if len(focus) < len(world.things) else 0.6):
                    return False
    return True


# --- from words to numbers --------------------------------------------------------------------------------------------


def _rings(thing: Thing) -> list[tuple[float, float]]:
    """(radius, height) of rings around a thing and what it wears, world units."""
    rings = list(_RINGS[thing.noun])
    if thing.worn:
        foot, size = _SEAT[thing.noun, thing.worn]
        rings = [(r, min(tall, foot + 0.3)) for r, tall in rings]
        rings += [(size * r, foot + size * tall) for r, tall in _RINGS[thing.worn]]
    return [(thing.scale * r, thing.scale * tall) for r, tall in rings]


def _tint(colour: RGB, body: RGB, paint: RGB) -> RGB:
    """`scenes._tint` for one flat colour: the body's lightness becomes the paint, darker is darker, lighter paler."""

    def light(c: RGB) -> float:
        return (0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2]) / 255

    middle = min(max(light(body), 0.3), 0.97)
    share = light(colour) / middle
    if share < 1:
        return tuple(round(p * share) for p in paint)
    pale = 0.75 * min((light(colour) - middle) / max(1 - middle, 0.03), 1)
    return tuple(round(p + (255 - p) * pale) for p in paint)


# Columns of a piece: where its foot is, size, cosine and sine of its turn, bounding sphere; what the thing wears.
_X, _Y, _Z, _SCALE, _COS, _SIN, _BX, _BY, _BZ, _BR, _MODE = range(11)


def _pieces(world: World) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """kind [P], numbers [P, 11], colours [P, 5, 3] of every solid; a worn thing is a piece of its own."""
    if world.ground not in GROUNDS:
        raise ValueError(f"ground {world.ground!r}: choose one of {', '.join(GROUNDS)}")
    kinds, floats = [], []
    colours = np.zeros((2 * len(world.things), 5, 3))
    for thing in world.things:
        if thing.noun not in SOLIDS:
            raise ValueError(f"solid {thing.noun!r}: choose one of {', '.join(SOLIDS)}")
        if thing.worn is not None and thing.worn not in WORN:
            raise ValueError(f"worn {thing.worn!r}: choose one of {', '.join(WORN)}, or None")
        if thing.colour is not None and thing.colour not in COLOURS:
            raise ValueError(f"colour {thing.colour!r}: choose one of {', '.join(COLOURS)}, or None")
        mode = WORN.index(thing.worn) + 1 if thing.worn else _BARE
        wears = [(thing.noun, 0.0, 1.0)] + ([(thing.worn, *_SEAT[thing.noun, thing.worn])] if thing.worn else [])
        for name, foot, size in wears:
            palette = _PALETTE[name]
            if thing.colour and name in SOLIDS:
                tinted = [_tint(c, palette[0], COLOURS[thing.colour]) for c in palette[: _TINTED[name]]]
                palette = (*tinted, *palette[_TINTED[name] :])
            colours[len(kinds), : len(palette)] = palette
            scale = thing.scale * size
            middle, reach = _BOUNDS[name]
            foot *= -thing.scale
            kinds.append(_KINDS.index(name))
            floats.append(
                (
                    thing.x, foot, thing.z, scale, math.cos(thing.turn), math.sin(thing.turn),
                    thing.x, foot - middle * scale, thing.z, reach * scale, mode,
                )
            )  # fmt: skip
    return np.array(kinds, np.int64), np.array(floats, np.float64).reshape(-1, 11), colours[: len(kinds)].copy()


# --- distances: y is up, a solid stands on 0 --------------------------------------------------------------------------

_jit = numba.njit(cache=True, fastmath=True, nogil=True, error_model="numpy")


@_jit
def _clamp(x, low, high):
    return min(max(x, low), high)


@_jit
def _ball(x, y, z, r):
    return math.sqrt(x * x + y * y + z * z) - r


@_jit
def _rod(x, y, z, ax, ay, az, bx, by, bz, ra, rb):
    """A cone with round ends, from a to b."""
    dx, dy, dz = bx - ax, by - ay, bz - az
    h = _clamp(((x - ax) * dx + (y - ay) * dy + (z - az) * dz) / (dx * dx + dy * dy + dz * dz), 0.0, 1.0)
    return _ball(x - ax - h * dx, y - ay - h * dy, z - az - h * dz, ra + h * (rb - ra))


@_jit
def _drum(r, y, low, high, radius, edge):
    """A cylinder with edges rounded by `edge`."""
    u, v = r - radius + edge, abs(y - 0.5 * (low + high)) - 0.5 * (high - low) + edge
    outside = math.sqrt(max(u, 0.0) ** 2 + max(v, 0.0) ** 2)
    return min(max(u, v), 0.0) + outside - edge


@_jit
def _leaf(x, y, z, size, slope):
    """A pointed leaf that starts at the origin and points along x, rising by `slope` radians, rolled a little."""
    c, s = math.cos(slope), math.sin(slope)
    u, v = x * c + y * s, -x * s + y * c
    v, w = 0.80 * v + 0.60 * z, abs(-0.60 * v + 0.80 * z)
    u, v, w = u / size - 0.2, v / size, w / size
    blade = math.sqrt(u * u + (w + 0.12) ** 2) - 0.2332  # vesica: 0.2 long, 0.113 wide, from its middle
    flat = abs(v + 0.5 * u * u) - 0.008
    return 0.9 * size * (max(blade, flat) - 0.014)


@_jit
def _nearer(d, m, other, material):
    return (other, material) if other < d else (d, m)


@_jit
def _apple(x, y, z, mode):
    r, up = math.sqrt(x * x + z * z), y - 0.385
    across = r / (1 + 0.34 * _clamp(up, -0.6, 0.6)) - 0.19
    d, m = 0.85 * (math.sqrt(across * across + (up / 1.44) ** 2) - 0.268), 0
    d, m = _nearer(d, m, _rod(x, y, z, 0.0, 0.60, 0.0, 0.035, 0.91, 0.0, 0.026, 0.036), 1)
    if mode == _BARE:
        leaf = _leaf(x - 0.01, y - 0.76, z, 1.05, 0.42)
    elif mode == _CROWNED:
        leaf = _leaf(x - 0.02, y - 0.80, z, 0.9, 1.0)
    else:
        leaf = _leaf(x - 0.08, y - 0.80, z, 1.0, -0.28)
    return _nearer(d, m, leaf, 2)


@_jit
def _pear(x, y, z, mode):
    a, b = _ball(x, y - 0.345, z, 0.345), _ball(x, y - 0.70, z, 0.168)
    h = _clamp(0.5 + 0.5 * (b - a) / 0.26, 0.0, 1.0)
    d, m = b + (a - b) * h - 0.26 * h * (1 - h), 0
    d, m = _nearer(d, m, _rod(x, y, z, 0.0, 0.84, 0.0, 0.025, 0.99, 0.0, 0.024, 0.032), 1)
    if mode == _BARE:
        leaf = _leaf(x - 0.01, y - 0.88, z, 0.8, 0.35)
    elif mode == _CROWNED:
        leaf = _leaf(x - 0.02, y - 0.87, z, 0.5, 1.0)
    else:
        leaf = _leaf(x - 0.04, y - 0.84, z, 0.8, -0.5)
    return _nearer(d, m, leaf, 2)


@_jit
def _cup(x, y, z, mode):
    r = math.sqrt(x * x + z * z)
    d = max(0.985 * (r - 0.235 - 0.145 * y), abs(y - 0.34) - 0.34)
    m = 1 if y > 0.36 else 0
    d, m = _nearer(d, m, _drum(r, y, 0.65, 0.73, 0.372, 0.025), 2)
    d, m = _nearer(d, m, _drum(r, y, 0.70, 0.80, 0.27 - 0.35 * (y - 0.73), 0.02), 2)
    d, m = _nearer(d, m, _rod(x, y, z, 0.07, 0.75, 0.0, 0.09, 0.985, 0.0, 0.031, 0.031), 3)
    if mode != _HATTED:
        d, m = _nearer(d, m, _rod(x, y, z, 0.09, 0.985, 0.0, 0.235, 1.0, 0.0, 0.031, 0.031), 3)
    return d, m


@_jit
def _balloon(x, y, z, mode):
    up = y - 0.715
    d, m = _ball(x, up if up > 0 else 0.82 * up, z, 0.285), 0
    d, m = _nearer(d, m, _rod(x, y, z, 0.0, 0.385, 0.0, 0.0, 0.335, 0.0, 0.014, 0.048), 1)
    bend = x - 0.045 * math.sin(19 * y)
    string = max(0.75 * (math.sqrt(bend * bend + z * z) - 0.017), abs(y - 0.165) - 0.165)
    return _nearer(d, m, string, 2)


@_jit
def _snowman(x, y, z, mode):
    d, m = _ball(x, y - 0.265, z, 0.29), 0
    d, m = _nearer(d, m, _ball(x, y - 0.60, z, 0.215), 0)
    d, m = _nearer(d, m, _ball(x, y - 0.86, z, 0.18), 0)
    r, side = math.sqrt(x * x + z * z), abs(x)
    d, m = _nearer(d, m, math.sqrt((r - 0.135) ** 2 + (y - 0.735) ** 2) - 0.052, 1)
    d, m = _nearer(d, m, _rod(x, y, z, 0.09, 0.73, -0.15, 0.12, 0.54, -0.22, 0.045, 0.05), 1)
    d, m = _nearer(d, m, _rod(x, y, z, 0.0, 0.845, -0.15, 0.0, 0.83, -0.35, 0.042, 0.010), 2)
    d, m = _nearer(d, m, _ball(side - 0.065, y - 0.895, z + 0.163, 0.028), 3)
    d, m = _nearer(d, m, _ball(x, y - 0.62, z + 0.212, 0.030), 3)
    d, m = _nearer(d, m, _ball(x, y - 0.50, z + 0.195, 0.030), 3)
    d, m = _nearer(d, m, _ball(x, y - 0.33, z + 0.28, 0.030), 3)
    d, m = _nearer(d, m, _rod(side, y, z, 0.18, 0.62, 0.0, 0.43, 0.80, 0.0, 0.024, 0.020), 4)
    return _nearer(d, m, _rod(side, y, z, 0.33, 0.728, 0.0, 0.345, 0.85, 0.0, 0.018, 0.016), 4)


@_jit
def _crown(x, y, z):
    """Eight points; the angle is folded into one of them."""
    r, sector = math.sqrt(x * x + z * z), math.pi / 8
    turn = math.atan2(z, x) + math.pi
    number = math.floor(turn / (2 * sector))
    angle = turn - (2 * number + 1) * sector
    wall = abs(r - 0.25 - 0.16 * _clamp(y, 0.0, 0.33)) - 0.014
    top = y - 0.13 - 0.17 * (1 - min(r / 0.25, 1.0) * abs(angle) / sector)
    d, m = max(0.97 * wall, max(0.5 * top, -y)) - 0.010, 0
    d, m = _nearer(d, m, max(abs(r - 0.255) - 0.024, abs(y - 0.02) - 0.02) - 0.008, 1)
    u, v = r * math.cos(angle), r * math.sin(angle)
    d, m = _nearer(d, m, _ball(u - 0.302, y - 0.325, v, 0.036), 1)
    return _nearer(d, m, _ball(u - 0.264, y - 0.10, v, 0.040), 2 if number % 2 == 0 else 3)


@_jit
def _hat(x, y, z):
    r = math.sqrt(x * x + z * z)
    curl = 0.55 * max(r - 0.2, 0.0) ** 2
    d, m = 0.97 * _drum(r, y - curl, 0.0, 0.045, 0.32, 0.02), 0
    wall = 0.205 + 0.05 * _clamp(y, 0.0, 0.42)
    d, m = _nearer(d, m, 0.97 * _drum(r, y, 0.0, 0.42, wall, 0.02), 0)
    return _nearer(d, m, 0.97 * _drum(r, y, 0.04, 0.14, wall + 0.008, 0.008), 1)


@_jit
def _solid(kind, row, px, py, pz):
    """Distance in world units and material of one piece."""
    size = row[_SCALE]
    dx, dz = (px - row[_X]) / size, (pz - row[_Z]) / size
    x, y, z = row[_COS] * dx + row[_SIN] * dz, (row[_Y] - py) / size, row[_COS] * dz - row[_SIN] * dx
    mode = int(row[_MODE])
    if kind == _APPLE:
        d, m = _apple(x, y, z, mode)
    elif kind == _PEAR:
        d, m = _pear(x, y, z, mode)
    elif kind == _CUP:
        d, m = _cup(x, y, z, mode)
    elif kind == _BALLOON:
        d, m = _balloon(x, y, z, mode)
    elif kind == _SNOWMAN:
        d, m = _snowman(x, y, z, mode)
    elif kind == _CROWN:
        d, m = _crown(x, y, z)
    else:
        d, m = _hat(x, y, z)
    return d * size, m


@_jit
def _slab(px, py, pz, radius):
    return _drum(math.sqrt(px * px + pz * pz), -py, -THICKNESS, 0.0, radius, 0.0)


@_jit
def _nearest(kinds, floats, radius, points):
    which, distance = np.zeros(len(points), np.int64), np.empty(len(points), np.float32)
    for i in range(len(points)):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        best = _slab(x, y, z, radius)
        for k in range(len(kinds)):
            d, _ = _solid(kinds[k], floats[k], x, y, z)
            if d < best:
                best = d
                which[i] = k + 1
        distance[i] = best
    return which, distance


# --- drawing ----------------------------------------------------------------------------------------------------------


@_jit
def _hash(i, j, seed):
    """A number in [0, 1) of a cell of the ground."""
    h = (i * 374761393 + j * 668265263 + seed * 2246822519) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 2654435761) & 0xFFFFFFFF
    return ((h ^ (h >> 15)) & 0xFFFFFF) / 16777216.0


@_jit
def _spot(x, z, cell, long, wide, seed):
    """Whether the cell's one spot, an ellipse that lies anywhere in it and any way round, covers the place."""
    i, j = math.floor(x / cell), math.floor(z / cell)
    slack = cell - 2 * long
    u = x - i * cell - long - slack * _hash(i, j, seed)
    v = z - j * cell - long - slack * _hash(i, j, seed + 1)
    turn = math.pi * _hash(i, j, seed + 2)
    c, s = math.cos(turn), math.sin(turn)
    a, b = (c * u + s * v) / long, (c * v - s * u) / wide
    return a * a + b * b < 1 and _hash(i, j, seed + 3) < 0.8


@_jit
def _earth(ground, x, y, z, seed, pixel):
    """Colour 0..255 of the slab.  `pixel` is how much ground a ray stands for: what is finer fades."""
    top = y > -1e-3
    fade = _clamp(0.05 / max(pixel, 1e-6), 0.0, 1.0)
    if ground == _GRASS:
        if not top:
            return (92.0, 166.0, 66.0) if y > -0.05 else (140.0, 98.0, 62.0)
        dark = fade if _spot(x, z, 0.2, 0.075, 0.022, seed) else 0.0
        return 106 - 34 * dark, 192 - 38 * dark, 76 - 22 * dark
    if ground == _SAND:
        if not top:
            return 222.0, 190.0, 122.0
        dark = fade if _spot(x, z, 0.22, 0.045, 0.032, seed) else 0.0
        return 240 - 18 * dark, 214 - 24 * dark, 150 - 32 * dark
    if ground == _SNOW:
        if not top:
            return 200.0, 214.0, 236.0
        dark = fade if _spot(x, z, 0.3, 0.07, 0.04, seed) else 0.0
        return 234 - 16 * dark, 241 - 11 * dark, 252 - 4 * dark
    if ground == _TABLE:
        if not top:
            return 132.0, 82.0, 45.0
        across = z / 0.27 + 0.5
        plank = math.floor(across)
        shade = 1 + 0.09 * fade * (_hash(plank, 7, seed) - 0.5)
        line = fade if across - plank < 0.075 else 0.0
        return (170 - 40 * line) * shade, (112 - 32 * line) * shade, (66 - 22 * line) * shade
    return (240.0, 240.0, 242.0) if top else (214.0, 214.0, 220.0)


@_jit
def _open(kinds, floats, radius, x, y, z, nx, ny, nz):
    """Ambient occlusion (Evans, Fast approximations for global illumination on dynamic scenes, 2006): how much closer
    than free space the surfaces are along the normal.  1 in the open, less in a corner."""
    shut, weight = 0.0, 1.0
    for step in (0.04, 0.10, 0.20, 0.34):
        px, py, pz = x + step * nx, y + step * ny, z + step * nz
        d = min(step, _slab(px, py, pz, radius))
        for k in range(len(kinds)):
            row = floats[k]
            if _ball(px - row[_BX], py - row[_BY], pz - row[_BZ], row[_BR]) < d:
                d = min(d, max(_solid(kinds[k], row, px, py, pz)[0], 0.0))
        shut += weight * (step - d) / step
        weight *= 0.8
    return 1 - 0.17 * shut


@_jit
def _walk(kind, row, ox, oy, oz, vx, vy, vz, end):
    """How far along the ray a piece is met, or -1."""
    bx, by, bz = ox - row[_BX], oy - row[_BY], oz - row[_BZ]
    b = bx * vx + by * vy + bz * vz
    h = b * b - (bx * bx + by * by + bz * bz) + row[_BR] ** 2
    if h <= 0:
        return -1.0
    h = math.sqrt(h)
    t, end = max(-b - h, 0.0), min(-b + h, end)
    near = 0.0004 * row[_SCALE]
    for _ in range(96):
        if t >= end:
            return -1.0
        d, _ = _solid(kind, row, ox + t * vx, oy + t * vy, oz + t * vz)
        if d < near:
            return t
        t += d
    return t if d < 8 * near else -1.0


@_jit
def _meet_slab(ox, oy, oz, vx, vy, vz, radius):
    """How far along the ray the slab is met, or -1, and which face: 0 top, 1 side, 2 bottom."""
    best, face = -1.0, 0
    for k in range(2):
        level = 0.0 if k == 0 else THICKNESS
        if vy != 0 and (vy > 0) == (k == 0):
            t = (level - oy) / vy
            if t > 0 and (ox + t * vx) ** 2 + (oz + t * vz) ** 2 <= radius * radius:
                return t, 2 * k
    a, b, c = vx * vx + vz * vz, ox * vx + oz * vz, ox * ox + oz * oz - radius * radius
    h = b * b - a * c
    if a > 0 and h > 0:
        t = (-b - math.sqrt(h)) / a
        if t > 0 and 0 <= oy + t * vy <= THICKNESS:
            best, face = t, 1
    return best, face


@_jit
def _draw(
    kinds, floats, colours, ground, radius, seed, backdrop, R, eye, fx, fy, cx, cy, width, height, supersample
):  # fmt: skip
    count = len(kinds) + 1
    image = np.empty((height, width, 3), np.uint8)
    shares = np.zeros((height, width, count), np.float32)
    depth = np.empty((height, width), np.float32)
    rays = supersample * supersample
    sums, hits = np.empty(count), np.empty(count, np.int64)
    ox, oy, oz = eye[0], eye[1], eye[2]
    for row in range(height):
        for column in range(width):
            sums[:] = 0
            hits[:] = 0
            red, green, blue = 0.0, 0.0, 0.0
            for ray in range(rays):
                u = column + (ray % supersample + 0.5) / supersample
                v = row + (ray // supersample + 0.5) / supersample
                ax, ay = (u - cx) / fx, (v - cy) / fy
                vx = R[0, 0] * ax + R[1, 0] * ay + R[2, 0]
                vy = R[0, 1] * ax + R[1, 1] * ay + R[2, 1]
                vz = R[0, 2] * ax + R[1, 2] * ay + R[2, 2]
                norm = math.sqrt(vx * vx + vy * vy + vz * vz)
                vx, vy, vz = vx / norm, vy / norm, vz / norm
                t, face = _meet_slab(ox, oy, oz, vx, vy, vz, radius)
                which = 0 if t > 0 else -1
                if which < 0:
                    t = 1e9
                for k in range(count - 1):
                    s = _walk(kinds[k], floats[k], ox, oy, oz, vx, vy, vz, t)
                    if s >= 0:
                        t, which = s, k + 1
                if which < 0:
                    w = _clamp(v / height, 0.0, 1.0)
                    red += (1 - w) * backdrop[0, 0] + w * backdrop[1, 0]
                    green += (1 - w) * backdrop[0, 1] + w * backdrop[1, 1]
                    blue += (1 - w) * backdrop[0, 2] + w * backdrop[1, 2]
                    continue
                x, y, z = ox + t * vx, oy + t * vy, oz + t * vz
                if which == 0:
                    if face == 1:
                        nx, ny, nz = x / radius, 0.0, z / radius
                    else:
                        nx, ny, nz = 0.0, face - 1.0, 0.0
                    pixel = t / (fx * max(abs(nx * vx + ny * vy + nz * vz), 0.02))
                    r, g, b = _earth(ground, x, -y if face else 0.0, z, seed, pixel)
                else:
                    kind, piece = kinds[which - 1], floats[which - 1]
                    _, m = _solid(kind, piece, x, y, z)
                    e = 0.002 * piece[_SCALE]
                    d0, _ = _solid(kind, piece, x + e, y - e, z - e)
                    d1, _ = _solid(kind, piece, x - e, y - e, z + e)
                    d2, _ = _solid(kind, piece, x - e, y + e, z - e)
                    d3, _ = _solid(kind, piece, x + e, y + e, z + e)
                    nx, ny, nz = d0 - d1 - d2 + d3, -d0 - d1 + d2 + d3, -d0 + d1 - d2 + d3
                    norm = math.sqrt(nx * nx + ny * ny + nz * nz) + 1e-12
                    nx, ny, nz = nx / norm, ny / norm, nz / norm
                    r, g, b = colours[which - 1, m, 0], colours[which - 1, m, 1], colours[which - 1, m, 2]
                # Light from above: full on top, little less at the sides, which a small picture shows most of.
                up = math.sqrt(max(0.5 - 0.5 * ny, 0.0))
                shut = 1 - _open(kinds, floats, radius, x, y, z, nx, ny, nz)
                red += min(r * (1 - 1.10 * shut) * (0.74 + 0.30 * up), 255.0)
                green += min(g * (1 - 1.03 * shut) * (0.75 + 0.29 * up), 255.0)
                blue += min(b * (1 - 0.90 * shut) * (0.80 + 0.24 * up), 255.0)
                sums[which] += t * (R[2, 0] * vx + R[2, 1] * vy + R[2, 2] * vz)
                hits[which] += 1
            image[row, column, 0] = int(red / rays + 0.5)
            image[row, column, 1] = int(green / rays + 0.5)
            image[row, column, 2] = int(blue / rays + 0.5)
            most, covered = 0, 0
            for k in range(count):
                shares[row, column, k] = hits[k] / rays
                covered += hits[k]
                if hits[k] > hits[most]:
                    most = k
            seen = hits[most] > 0 and hits[most] >= rays - covered
            depth[row, column] = sums[most] / hits[most] if seen else np.inf
    return image, shares, depth
