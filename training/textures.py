"""Draws assets/styles: pictures to take a look from, each from a seed and a few lines of arithmetic; Apache-2.0 as the
code is.

    python -m training.textures [--output assets/styles]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import KDTree

SIDE = 256  # pixels
_FINE = 2  # drawn so many times larger, then made small
_SEEN = 0.6  # share of the page's side that is kept: the built-in model reads 128 pixels, and sees no small things

Colour = tuple[float, float, float]
Texture = Callable[[np.random.Generator, int], np.ndarray]


def draw(name: str, seed: int = 0, side: int = SIDE) -> np.ndarray:  # [side, side, 3] uint8
    """One of TEXTURES, always the same for the same seed."""
    generator = np.random.default_rng([seed, *name.encode()])
    seen = side * _FINE
    large = np.clip(TEXTURES[name](generator, round(seen / _SEEN))[:seen, :seen], 0, 1)
    picture = Image.fromarray((large * 255).round().astype(np.uint8))
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))


def marble(generator: np.random.Generator, side: int) -> np.ndarray:
    y, x = _axes(side)
    bent = 0.42 * _clouds(generator, side, 4) + 0.1 * _clouds(generator, side, 13)
    vein = np.abs(np.sin(np.pi * (3 * x + 2 * y + bent)))
    return _ramp(vein**0.45, [(0.16, 0.22, 0.28), (0.55, 0.63, 0.66), (0.9, 0.92, 0.9), (0.98, 0.98, 0.96)])


def wood(generator: np.random.Generator, side: int) -> np.ndarray:
    y, x = _axes(side)
    bent = 0.9 * _clouds(generator, side, 2) + 0.12 * _clouds(generator, side, 9)
    rings = (6 * (x + 0.25 * bent) + 1.2 * np.sin(2 * np.pi * (0.6 * y + bent * 0.4))) % 1
    fibre = gaussian_filter(generator.standard_normal((side, side)), (side / 12, side / 600))
    grain = rings + 0.1 * fibre / fibre.std()
    return _ramp(grain, [(0.78, 0.52, 0.27), (0.7, 0.43, 0.2), (0.52, 0.29, 0.12), (0.35, 0.18, 0.07)])


def checks(generator: np.random.Generator, side: int) -> np.ndarray:
    y, x = _axes(side)
    warp_x, warp_y = (0.012 * _clouds(generator, side, 4) for _ in range(2))
    u, v = 8 * (x + warp_x), 8 * (y + warp_y)
    odd = (np.floor(u) + np.floor(v)) % 2
    cloth = 0.03 * _clouds(generator, side, 40)[..., None]
    return np.where(odd[..., None] > 0, np.array([0.83, 0.16, 0.16]), np.array([0.97, 0.95, 0.88])) + cloth


def dots(generator: np.random.Generator, side: int) -> np.ndarray:
    page = _page(side, (0.99, 0.85, 0.25))
    inks = [(0.15, 0.35, 0.75), (0.88, 0.25, 0.3), (0.98, 0.98, 0.95)]
    for k, (x, y) in enumerate(_apart(generator, 0.098)):
        radius = side * (0.034 + 0.01 * generator.random())
        _disc(page, x * side, y * side, radius, inks[k % len(inks)])
    return _array(page)


def brushwork(generator: np.random.Generator, side: int) -> np.ndarray:
    """Short thick strokes along a swirling field."""
    field = _clouds(generator, side, 3)
    smooth = gaussian_filter(field, side / 30)
    dy, dx = np.gradient(smooth, axis=0), np.gradient(smooth, axis=1)
    page = _page(side, (0.1, 0.16, 0.4))
    inks = [(0.11, 0.2, 0.5), (0.16, 0.36, 0.68), (0.35, 0.58, 0.8), (0.07, 0.1, 0.3), (0.93, 0.8, 0.35)]
    weights = [0.3, 0.28, 0.2, 0.12, 0.1]
    for _ in range(2600):
        x, y = generator.random(2) * side
        points = [(x, y)]
        for _ in range(7):
            row, column = int(y) % side, int(x) % side
            along = np.array([dy[row, column], -dx[row, column]])
            along = along / max(np.hypot(*along), 1e-9) * side * 0.013
            x, y = x + along[0], y + along[1]
            points.append((x, y))
        ink = np.array(inks[generator.choice(len(inks), p=weights)]) + 0.06 * generator.standard_normal(3)
        _line(page, points, side * (0.012 + 0.006 * generator.random()), tuple(ink))
    return _array(page)


def mosaic(generator: np.random.Generator, side: int) -> np.ndarray:
    inks = [(0.1, 0.45, 0.55), (0.15, 0.62, 0.62), (0.85, 0.72, 0.4), (0.75, 0.35, 0.2), (0.93, 0.9, 0.8)]
    return _tiles(generator, side, 0.085, inks, grout=(0.25, 0.23, 0.22), gap=0.008)


def stained_glass(generator: np.random.Generator, side: int) -> np.ndarray:
    inks = [(0.75, 0.08, 0.15), (0.1, 0.25, 0.7), (0.95, 0.7, 0.1), (0.1, 0.5, 0.3), (0.5, 0.15, 0.55)]
    glass = _tiles(generator, side, 0.14, inks, grout=(0.04, 0.04, 0.05), gap=0.013)
    return glass * (1 + 0.16 * _clouds(generator, side, 8)[..., None])


def watercolour(generator: np.random.Generator, side: int) -> np.ndarray:
    page = np.ones((side, side, 3)) * np.array([0.98, 0.97, 0.94])
    y, x = _axes(side)
    inks = [(0.25, 0.5, 0.78), (0.3, 0.66, 0.62), (0.72, 0.4, 0.66), (0.95, 0.62, 0.42)]
    for k in range(26):
        centre, radius = generator.random(2), 0.1 + 0.13 * generator.random()
        distance = np.hypot(x - centre[0], y - centre[1]) + 0.045 * _clouds(generator, side, 6)
        inside = 1 / (1 + np.exp((distance - radius) * 160))
        rim = np.exp(-(((distance - radius * 0.97) / 0.012) ** 2)) * inside
        strength = 0.34 * inside * (0.85 + 0.25 * _clouds(generator, side, 5)) + 0.25 * rim
        page = page * (1 - strength[..., None] * (1 - np.array(inks[k % len(inks)])))
    return page * (1 + 0.012 * generator.standard_normal((side, side, 1)))


def stripes(generator: np.random.Generator, side: int) -> np.ndarray:
    y, x = _axes(side)
    wave = y + 0.03 * np.sin(2 * np.pi * 3 * x) + 0.012 * _clouds(generator, side, 3)
    inks = np.array([(0.93, 0.4, 0.3), (0.98, 0.93, 0.82), (0.2, 0.55, 0.6), (0.98, 0.93, 0.82), (0.98, 0.75, 0.3)])
    at = np.floor(wave * 15).astype(int) % len(inks)
    return inks[at]


def bricks(generator: np.random.Generator, side: int) -> np.ndarray:
    y, x = _axes(side)
    rows, columns = 9, 5
    row = np.floor(y * rows).astype(int)
    u = x * columns + 0.5 * (row % 2)
    column = np.floor(u).astype(int)
    shade = generator.uniform(-0.13, 0.13, (rows + 1, columns + 2))[row, column]
    red = np.array([0.66, 0.27, 0.2]) * (1 + shade[..., None]) + 0.03 * _clouds(generator, side, 30)[..., None]
    joint = (np.minimum(y * rows % 1, 1 - y * rows % 1) < 0.07) | (np.minimum(u % 1, 1 - u % 1) < 0.035)
    return np.where(joint[..., None], np.array([0.82, 0.79, 0.73]), red)


def pebbles(generator: np.random.Generator, side: int) -> np.ndarray:
    inks = [(0.62, 0.58, 0.53), (0.45, 0.44, 0.45), (0.78, 0.73, 0.66), (0.55, 0.42, 0.34), (0.36, 0.38, 0.42)]
    first, second, nearest = _cells(generator, side, 0.1)
    round_off = np.clip((second - first) / 0.05, 0, 1)
    stone = np.array(inks)[nearest % len(inks)] * (0.35 + 0.75 * np.sqrt(round_off))[..., None]
    return np.where(round_off[..., None] < 0.16, np.array([0.13, 0.12, 0.12]), stone)


def leaves(generator: np.random.Generator, side: int) -> np.ndarray:
    page = _page(side, (0.06, 0.18, 0.12))
    inks = [(0.13, 0.4, 0.2), (0.25, 0.55, 0.25), (0.45, 0.68, 0.3), (0.1, 0.3, 0.2), (0.62, 0.75, 0.35)]
    for _ in range(420):
        (x, y), turn = generator.random(2) * side, generator.random() * 2 * np.pi
        length, width = side * 0.075, side * 0.024
        t = np.linspace(-1, 1, 15)
        outline = np.concatenate([np.stack([t, 1 - t * t], 1), np.stack([t, t * t - 1], 1)[::-1]])
        spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        points = (outline * [length, width]) @ spin + [x, y]
        ink = np.array(inks[generator.integers(len(inks))]) + 0.03 * generator.standard_normal(3)
        for shift in _wrapped(side):
            ImageDraw.Draw(page).polygon([tuple(p + shift) for p in points], fill=_byte(ink))
            rib = [tuple(p + shift) for p in np.array([[-length, 0], [length, 0]]) @ spin + [x, y]]
            ImageDraw.Draw(page).line(rib, fill=_byte(ink * 0.6), width=max(round(side * 0.004), 1))
    return _array(page)


def scales(generator: np.random.Generator, side: int) -> np.ndarray:
    page = _page(side, (0.1, 0.3, 0.35))
    rows, columns = 13, 8
    for row in range(-1, rows + 2):
        for column in range(-1, columns + 2):
            x = (column + 0.5 * (row % 2)) * side / columns
            y = row * side / rows
            blend = 0.5 + 0.5 * np.sin(2 * np.pi * (column / columns + row / rows))
            ink = (1 - blend) * np.array([0.12, 0.5, 0.52]) + blend * np.array([0.55, 0.8, 0.6])
            radius = side / columns * 0.56
            for share, colour in ((1.0, ink * 0.45), (0.88, ink), (0.5, ink * 1.18)):
                _disc(page, x, y, radius * share, tuple(colour), wrap=False)
    return _array(page)


TEXTURES: dict[str, Texture] = {
    each.__name__: each
    for each in (
        marble, wood, checks, dots, brushwork, mosaic, stained_glass, watercolour, stripes, bricks, pebbles, leaves,
        scales,
    )
}  # fmt: skip


# ---- what they are drawn with


def _axes(side: int) -> tuple[np.ndarray, np.ndarray]:  # y, x in 0..1, [side, side] each
    y, x = np.mgrid[0:side, 0:side] / side
    return y, x


def _clouds(generator: np.random.Generator, side: int, cells: int) -> np.ndarray:  # [side, side], deviation 1
    """Smooth noise with about `cells` hills a side, the same at its two ends."""
    values = np.pad(generator.standard_normal((cells, cells)), 3, mode="wrap")
    at = np.arange(side) / side * cells + 3
    smooth = map_coordinates(values, np.meshgrid(at, at, indexing="ij"), order=3)
    return smooth / max(smooth.std(), 1e-6)


def _ramp(values: np.ndarray, colours: list[Colour]) -> np.ndarray:  # [h, w] in 0..1 -> [h, w, 3]
    at = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(values, at, channel) for channel in np.array(colours).T], axis=-1)


def _apart(generator: np.random.Generator, distance: float) -> np.ndarray:  # [n, 2] in 0..1
    """Random points, none nearer to another than `distance` on the torus."""
    points = np.empty((0, 2))
    for _ in range(6000):
        point = generator.random(2)
        gap = np.abs(points - point)
        if not len(points) or np.hypot(*np.minimum(gap, 1 - gap).T).min() >= distance:
            points = np.concatenate([points, point[None]])
    return points


def _cells(generator: np.random.Generator, side: int, distance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pixel: the distance to its nearest point and to the next, and the number of the nearest."""
    points = _apart(generator, distance)
    every = np.concatenate([points + np.array([dx, dy]) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
    y, x = _axes(side)
    distances, nearest = KDTree(every).query(np.stack([x, y], -1), k=2)
    return distances[..., 0], distances[..., 1], np.asarray(nearest)[..., 0] % len(points)


def _tiles(
    generator: np.random.Generator, side: int, distance: float, inks: list[Colour], grout: Colour, gap: float
) -> np.ndarray:
    first, second, nearest = _cells(generator, side, distance)
    colours = np.array(inks)[generator.integers(len(inks), size=4000)] * generator.uniform(0.88, 1.08, (4000, 1))
    return np.where((second - first)[..., None] < gap * 2, np.array(grout), colours[nearest])


def _page(side: int, colour: Colour) -> Image.Image:
    return Image.new("RGB", (side, side), _byte(colour))


def _array(page: Image.Image) -> np.ndarray:
    return np.asarray(page.filter(ImageFilter.GaussianBlur(0.6))) / 255


def _byte(colour: np.ndarray | Colour) -> tuple[int, int, int]:
    r, g, b = (round(255 * min(max(float(each), 0), 1)) for each in colour)
    return r, g, b


def _wrapped(side: int) -> list[np.ndarray]:
    return [np.array([dx, dy]) * side for dy in (-1, 0, 1) for dx in (-1, 0, 1)]


def _disc(page: Image.Image, x: float, y: float, radius: float, colour: Colour, wrap: bool = True) -> None:
    for dx, dy in _wrapped(page.width) if wrap else [np.zeros(2)]:
        box = (x + dx - radius, y + dy - radius, x + dx + radius, y + dy + radius)
        ImageDraw.Draw(page).ellipse(box, fill=_byte(colour))


def _line(page: Image.Image, points: list[tuple[float, float]], width: float, colour: Colour) -> None:
    for shift in _wrapped(page.width):
        moved = [(x + shift[0], y + shift[1]) for x, y in points]
        if any(-width < x < page.width + width and -width < y < page.width + width for x, y in moved):
            ImageDraw.Draw(page).line(moved, fill=_byte(colour), width=max(round(width), 1), joint="curve")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("assets/styles"))
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for name in TEXTURES:
        Image.fromarray(draw(name)).save(folder / f"{name}.png", optimize=True)
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
