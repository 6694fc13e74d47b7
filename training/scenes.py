"""Scenes of the built-in model's world: one subject, perhaps a colour, perhaps something that it wears, a background.

A scene is a few words and a pose; `render` draws it with exact masks and `caption` says it.  Two scenes that differ in
one thing are an edit whose truth is known: `edit_pair` draws them and `edit_truth` says which pixels may change.  A
scene may also be a *drawing*: the same art as ink lines on white paper, which is what sketches are distilled from.

Everything is drawn from a `numpy.random.Generator`, so a seed is a scene.
"""

from __future__ import annotations

import io
import re
import zlib
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from .art import ACCESSORIES, ART, NOUNS

SIZE = 128  # pixels, side of a scene
COLOURS = {
    "red": (226, 42, 42),
    "orange": (245, 140, 26),
    "yellow": (250, 212, 40),
    "green": (52, 172, 70),
    "blue": (38, 110, 228),
    "purple": (138, 66, 200),
    "pink": (248, 118, 178),
}
BACKGROUNDS = {
    "grass": "on grass",
    "sand": "on sand",
    "snow": "on snow",
    "night": "at night",
    "sky": "in the sky",
    "sea": "in the sea",
    "table": "on a wooden table",
    "white": "on a white background",
}
PENS = (64, 45, 32)  # widths of a drawing's lines: the art's width divided by these
EditKind = Literal["add", "remove", "replace", "colour", "background"]
EDIT_KINDS: tuple[EditKind, ...] = ("add", "remove", "replace", "colour", "background")


@dataclass(frozen=True)
class Scene:
    """What is in the picture, and where.  `x`, `y` are the subject's centre and `side` its size, in pixels."""

    noun: str
    colour: str | None
    accessory: str | None
    background: str
    x: float
    y: float
    side: float
    flip: bool
    background_seed: int
    pen: int = 0  # 0: the art in its colours; else a line drawing, with so many lines in the art's width


@dataclass(frozen=True)
class Rendered:
    """A drawn scene: image uint8 [H, W, 3] and the visible share of subject and accessory, float32 [H, W] in 0..1."""

    image: np.ndarray
    subject: np.ndarray
    accessory: np.ndarray


def is_held_out(noun: str, accessory: str | None, background: str) -> bool:
    """One in eight combinations of subject, accessory and background is never trained on."""
    return accessory is not None and zlib.crc32(f"{noun}|{accessory}|{background}".encode()) % 8 == 0


def random_scene(rng: np.random.Generator, held_out: bool = False, accessory_share: float = 0.55) -> Scene:
    """A scene from the training combinations, or (`held_out`) from those that training never saw."""
    while True:
        noun = str(rng.choice(list(NOUNS)))
        accessory = str(rng.choice(list(ACCESSORIES))) if held_out or rng.random() < accessory_share else None
        background = str(rng.choice(list(BACKGROUNDS)))
        if is_held_out(noun, accessory, background) == held_out:
            break
    colour = str(rng.choice(list(COLOURS))) if rng.random() < 0.35 else None
    return Scene(
        noun=noun,
        colour=colour,
        accessory=accessory,
        background=background,
        x=SIZE / 2 + float(rng.uniform(-6, 6)),
        y=SIZE * 0.59 + float(rng.uniform(-4, 4)),
        side=float(rng.uniform(88, 100)),
        flip=bool(rng.random() < 0.5),
        background_seed=int(rng.integers(2**31)),
    )


def random_drawing(rng: np.random.Generator) -> Scene:
    """A line drawing of a random scene: no colour, white paper, one of PENS."""
    scene = random_scene(rng)
    return replace(scene, colour=None, background="white", pen=int(rng.choice(PENS)))


def drawable(scene: Scene, family: str) -> bool:
    """Whether a family has the drawings of a scene: Noto v1 lacks the cup and the cap."""
    return family != "noto-v1" or (scene.noun != "cup" and scene.accessory != "cap")


def caption(scene: Scene, background: bool = True) -> str:
    """`a blue cat wearing a crown on grass`, `a drawing of a cat wearing a crown`."""
    first = scene.colour or scene.noun
    words = ["a", "drawing", "of"] if scene.pen else []
    words.append("an" if first[0] in "aeio" else "a")
    if scene.colour:
        words.append(scene.colour)
    words.append(scene.noun)
    if scene.accessory:
        words += ["wearing", scene.accessory if scene.accessory == "sunglasses" else f"a {scene.accessory}"]
    if background and not scene.pen:
        words.append(BACKGROUNDS[scene.background])
    return " ".join(words)


def edit_pair(kind: EditKind, rng: np.random.Generator, held_out: bool = True) -> tuple[Scene, Scene]:
    """Two scenes that differ in one thing.  The richer one of an addition or removal is held out when asked for."""
    scene = random_scene(rng, held_out=held_out and kind in ("add", "remove"))
    if kind in ("add", "remove"):
        while scene.accessory is None:
            scene = random_scene(rng)
        bare = replace(scene, accessory=None)
        return (bare, scene) if kind == "add" else (scene, bare)
    if kind == "replace":
        return scene, replace(scene, noun=_other(rng, NOUNS, scene.noun))
    if kind == "colour":
        return replace(scene, colour=None), replace(scene, colour=scene.colour or str(rng.choice(list(COLOURS))))
    return scene, replace(scene, background=_other(rng, BACKGROUNDS, scene.background))


def edit_truth(source: Rendered, target: Rendered) -> np.ndarray:
    """Pixels that the edit changes, bool [H, W]: those where the two drawings differ by more than 8 of 255."""
    return np.abs(source.image.astype(np.int16) - target.image.astype(np.int16)).max(axis=-1) > 8


def render(scene: Scene, family: str = "fluent-flat") -> Rendered:
    """Draw the scene with the art of `family`."""
    picture = _background(scene.background, scene.background_seed).astype(np.float32)
    subject = np.zeros((SIZE, SIZE), np.float32)
    accessory = np.zeros((SIZE, SIZE), np.float32)
    art = _art(family, NOUNS[scene.noun], scene.pen)
    if scene.colour:
        art = _tint(art, COLOURS[scene.colour])
    anchor = _anchor(family, scene.noun)
    if scene.flip:
        art = art[:, ::-1]
        anchor = replace(anchor, x=1 - anchor.x)
    left, top = scene.x - scene.side / 2, scene.y - scene.side / 2
    picture, subject = _paste(picture, subject, art, left, top, scene.side)
    if scene.accessory:
        # A worn thing is drawn smaller: a wider pen for it gives lines of one width.
        art = _art(family, ACCESSORIES[scene.accessory], 0.5 * scene.pen)
        x, y, side = _place(scene.accessory, anchor)
        if scene.flip:
            art = art[:, ::-1]
            x = 2 * anchor.x - x
        side *= scene.side
        x, y = left + x * scene.side, top + y * scene.side
        picture, accessory = _paste(picture, accessory, art, x - side / 2, y - side / 2, side)
        subject = subject * (1 - accessory)
    return Rendered(np.clip(picture + 0.5, 0, 255).astype(np.uint8), subject, accessory)


# --- where things sit -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Anchor:
    """Of a subject, in shares of its box: the middle of its head, the head's top and width, the eyes' height."""

    x: float
    top: float
    width: float
    eyes: float


_EYES = {
    "penguin": 0.30,
    "owl": 0.30,
    "chick": 0.32,
    "robot": 0.47,
    "frog": 0.20,
    "ghost": 0.42,
    "alien": 0.52,
    "lion": 0.46,
}
_FACELESS = {"apple": 0.5, "pear": 0.55, "balloon": 0.38, "cup": 0.5, "cactus": 0.42, "mushroom": 0.38}


@cache
def _anchor(family: str, noun: str) -> _Anchor:
    """Read off the drawing's alpha: the head's top is the first ink in the middle column, so hats sit between ears."""
    alpha = _art(family, NOUNS[noun])[..., 3] > 0.5
    n = alpha.shape[0]
    rows = np.flatnonzero(alpha.any(1))
    y0, y1 = rows[0], rows[-1] + 1
    columns = np.flatnonzero(alpha[y0 : y0 + int(0.6 * (y1 - y0))].any(0))
    x = (columns[0] + columns[-1] + 1) / 2
    band = alpha[:, max(0, int(x - 0.05 * n)) : int(x + 0.05 * n) + 1].mean(1) > 0.5
    top = np.flatnonzero(band)[0]
    row = min(n - 1, int(top + 0.22 * (y1 - top)))
    across = np.flatnonzero(alpha[row])
    width = across[-1] + 1 - across[0]
    eyes = _EYES.get(noun, _FACELESS.get(noun, 0.50))
    return _Anchor(x / n, top / n, min(width / n, 0.9), y0 / n + eyes * (y1 - y0) / n)


def _place(accessory: str, head: _Anchor) -> tuple[float, float, float]:
    """Centre x, centre y and side of an accessory, in shares of the subject's box."""
    width = min(max(head.width, 0.5), 0.8)
    if accessory == "sunglasses":
        return head.x, head.eyes, 0.95 * width
    if accessory == "flower":
        return head.x + 0.30 * width, head.top + 0.10, 0.46
    if accessory == "bow":
        return head.x, head.top + 0.05, 0.52
    side = {"crown": 0.72, "top hat": 0.74, "cap": 0.78}[accessory] * width
    lift = {"crown": 0.26, "top hat": 0.36, "cap": 0.22}[accessory] * side
    return head.x, head.top + 0.06 - lift, side


# --- drawing ----------------------------------------------------------------------------------------------------------


@cache
def _art(family: str, name: str, pen: float = 0) -> np.ndarray:
    """A drawing as float32 RGBA [192, 192, 4], colours 0..255 premultiplied, alpha 0..1."""
    import resvg_py

    text = (ART / family / f"{name}.svg").read_text()
    if pen:
        text = _line_art(text, pen)
    png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=192, height=192))
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), np.float32)
    alpha = rgba[..., 3:] / 255
    return np.concatenate([rgba[..., :3] * alpha, alpha], axis=-1)


def _line_art(text: str, pen: float) -> str:
    """The SVG with every shape outlined in ink; dark shapes are filled with it, all others with paper, so that what
    lies behind stays hidden."""
    side = float(re.search(r'viewBox="0 0 (\d+)', text).group(1))  # type: ignore[union-attr]

    def fill(match: re.Match[str]) -> str:
        digits = match.group(1)
        wide = digits if len(digits) == 6 else "".join(2 * d for d in digits)
        light = sum(w * int(wide[k : k + 2], 16) for w, k in ((0.299, 0), (0.587, 2), (0.114, 4))) / 255
        return 'fill="#222"' if light < 0.27 else 'fill="#fff"'

    text = re.sub(r' (?:fill-|stroke-)?opacity="[^"]*"', "", text)
    text = re.sub(r' stroke(?:-\w+)?="[^"]*"', "", text)
    text = re.sub(r'fill="(?:url[^"]*|#[0-9a-f]{8}|[a-z]+)"', lambda m: m[0] if "none" in m[0] else 'fill="#fff"', text)
    text = re.sub(r'fill="#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})"', fill, text)
    ink = f'fill="#fff" stroke="#222" stroke-width="{side / pen:.3f}" stroke-linejoin="round" stroke-linecap="round"'
    return text.replace("<svg ", f"<svg {ink} ", 1)


@lru_cache(maxsize=512)
def _tint_cached(key: bytes, shape: tuple[int, ...], colour: tuple[int, int, int]) -> np.ndarray:
    art = np.frombuffer(key, np.float32).reshape(shape)
    alpha = np.maximum(art[..., 3:], 1e-6)
    light = (art[..., :3] / alpha) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    body = light[(art[..., 3] > 0.5) & (light > 0.25)]
    middle = float(np.clip(np.median(body), 0.3, 0.97)) if body.size else 0.6
    paint = np.array(colour, np.float32)
    dark = paint * (light / middle)[..., None]
    pale = paint + (255 - paint) * np.clip((light - middle) / max(1 - middle, 0.03), 0, 1)[..., None] * 0.75
    tinted = np.where((light < middle)[..., None], dark, pale)
    return np.concatenate([tinted * art[..., 3:], art[..., 3:]], axis=-1).astype(np.float32)


def _tint(art: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Paint a drawing in one colour: its median lightness takes the colour, darker parts darken, lighter parts pale."""
    return _tint_cached(np.ascontiguousarray(art).tobytes(), art.shape, colour)


def _paste(
    picture: np.ndarray, ink: np.ndarray, art: np.ndarray, left: float, top: float, side: float
) -> tuple[np.ndarray, np.ndarray]:
    """Alpha-over of `art` scaled to `side` pixels at (left, top), sub-pixel; returns the picture and its ink."""
    n = art.shape[0]
    scale = n / side
    # A pixel of the canvas looks at `scale` pixels of the art: reduce first, then sample bilinearly.
    factor = max(1, int(scale))
    if factor > 1:
        m = n // factor * factor
        art = art[:m, :m].reshape(m // factor, factor, m // factor, factor, 4).mean((1, 3))
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(art[..., c])).transform(
                (SIZE, SIZE),
                Image.Transform.AFFINE,
                (scale / factor, 0, -left * scale / factor, 0, scale / factor, -top * scale / factor),
                Image.Resampling.BILINEAR,
            )
        )
        for c in range(4)
    ]
    alpha = channels[3]
    out = picture * (1 - alpha[..., None]) + np.stack(channels[:3], axis=-1)
    return out, np.maximum(ink * (1 - alpha), alpha)


def _gradient(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    ramp = np.linspace(0, 1, 2 * SIZE, dtype=np.float32)[:, None, None]
    row = np.array(top, np.float32) * (1 - ramp) + np.array(bottom, np.float32) * ramp
    return Image.fromarray(np.broadcast_to(row, (2 * SIZE, 2 * SIZE, 3)).astype(np.uint8))


@lru_cache(maxsize=4096)
def _background(name: str, seed: int) -> np.ndarray:
    """uint8 [H, W, 3], drawn at twice the size and reduced."""
    rng = np.random.default_rng(seed)
    n = 2 * SIZE

    def u(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    if name == "white":
        image = Image.new("RGB", (n, n), (255, 255, 255))
        draw = ImageDraw.Draw(image)
    elif name == "grass":
        image = _gradient((150, 212, 250), (196, 232, 252))
        draw = ImageDraw.Draw(image)
        horizon = u(0.40, 0.55) * n
        draw.rectangle((0, horizon, n, n), fill=(104, 190, 74))
        for _ in range(26):
            x, y = u(0, n), u(horizon + 8, n)
            draw.polygon([(x, y), (x + 5, y - 14), (x + 10, y)], fill=(74, 156, 54))
    elif name == "sand":
        image = _gradient((140, 206, 246), (176, 224, 250))
        draw = ImageDraw.Draw(image)
        horizon = u(0.30, 0.42) * n
        draw.rectangle((0, horizon, n, horizon + 26), fill=(52, 150, 206))
        draw.rectangle((0, horizon + 26, n, n), fill=(240, 214, 150))
        for _ in range(22):
            x, y = u(0, n), u(horizon + 36, n)
            draw.ellipse((x, y, x + 7, y + 5), fill=(222, 190, 118))
    elif name == "snow":
        image = _gradient((176, 196, 222), (206, 220, 238))
        draw = ImageDraw.Draw(image)
        horizon = u(0.50, 0.64) * n
        draw.ellipse((-0.4 * n, horizon - 14, 1.4 * n, 1.9 * n), fill=(246, 250, 254))
        for _ in range(26):
            x, y, r = u(0, n), u(0, n), u(3, 5)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))
    elif name == "night":
        image = _gradient((18, 20, 60), (46, 42, 104))
        draw = ImageDraw.Draw(image)
        x, y = u(0.08, 0.92) * n, u(0.08, 0.18) * n
        draw.ellipse((x - 20, y - 20, x + 20, y + 20), fill=(252, 240, 190))
        for _ in range(24):
            x, y, r = u(0, n), u(0, n), u(2, 4)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 246, 214))
    elif name == "sky":
        image = _gradient((86, 172, 240), (170, 218, 250))
        draw = ImageDraw.Draw(image)
        for _ in range(5):
            x, y, r = u(0, n), u(0, n), u(14, 24)
            for dx, dy, k in ((-1.1, 0.25, 0.75), (0, 0, 1.0), (1.1, 0.25, 0.8)):
                cx, cy = x + dx * r, y + dy * r
                draw.ellipse((cx - k * r, cy - k * r, cx + k * r, cy + k * r), fill=(250, 252, 255))
    elif name == "sea":
        image = _gradient((40, 150, 206), (12, 72, 140))
        draw = ImageDraw.Draw(image)
        for _ in range(16):
            x, y, r = u(0, n), u(0, n), u(4, 9)
            draw.ellipse((x - r, y - r, x + r, y + r), outline=(150, 216, 240), width=3)
        for _ in range(4):
            x, tall = u(0, n), u(40, 80)
            draw.polygon([(x - 8, n), (x, n - tall), (x + 8, n)], fill=(18, 120, 110))
    elif name == "table":
        image = _gradient((240, 226, 200), (232, 214, 184))
        draw = ImageDraw.Draw(image)
        horizon = u(0.55, 0.68) * n
        draw.rectangle((0, horizon, n, n), fill=(166, 108, 62))
        step = u(24, 32)
        y = horizon
        while y < n:
            draw.rectangle((0, y, n, y + 3), fill=(128, 78, 42))
            y += step
    else:
        raise ValueError(f"background {name!r}: choose one of {', '.join(BACKGROUNDS)}")
    del draw
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def _other(rng: np.random.Generator, names: dict[str, str], not_this: str) -> str:
    return str(rng.choice([name for name in names if name != not_this]))
