"""Draw many scenes once, encode them once: what the denoiser trains on.

Of every scene that wears something, the bare version is drawn too: the denoiser is shown where the thing *would* go.

    python -m training.cache --vae runs/autoencoder/vae --out runs/cache --scenes 20000 --shard 0
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from . import solids
from .autoencoder import to_input
from .scenes import BACKGROUNDS, SIZE, Scene, caption, random_drawing, random_scene, render

GRID = 16  # cells a side of the masks that supervise attention
THINGS = 3  # at most, in a picture
PLACE = 2 * THINGS + 1  # the group of the words that name the place
NAMED = {"grass", "sand", "snow", "night", "sky", "sea", "wooden", "table", "white", "background"}


@dataclass
class Cache:
    """Columns of equal length. A caption is tagged: every word is followed by its group, `a:0 blue:1 cat:1`. Group
    2 k + 1 is thing k, 2 k + 2 what it wears, PLACE the place; mask g - 1 is where group g is seen."""

    latents: np.ndarray  # [N, 4, 32, 32] float16, as the autoencoder gives them (not yet scaled)
    bare: np.ndarray  # [N, 4, 32, 32] float16, the same scene without what is worn
    masks: np.ndarray  # [N, PLACE, 16, 16] uint8, share 0..255
    captions: np.ndarray  # [N] str
    short: np.ndarray  # [N] str, the caption without the place

    def __len__(self) -> int:
        return len(self.latents)


COLUMNS = ("latents", "bare", "masks", "captions", "short")


def load(folder: Path) -> Cache:
    shards = [np.load(path) for path in sorted(folder.glob("shard-*.npz"))]
    if not shards:
        raise FileNotFoundError(f"no shard-*.npz in {folder}: run training.cache first")
    return Cache(*(np.concatenate([shard[name] for shard in shards]) for name in COLUMNS))


def tagged(scene: Scene, place: bool = True) -> str:
    """The caption of a scene with the group of every word."""
    subject = {scene.noun, scene.colour}
    worn = set((scene.accessory or "").split())
    named = NAMED & set(BACKGROUNDS[scene.background].split())
    groups = []
    for word in caption(scene, place).split():
        group = 1 if word in subject else 2 if word in worn else PLACE if word in named and not scene.pen else 0
        groups.append(f"{word}:{group}")
    return " ".join(groups)


def tagged_world(world: solids.World, said: list[int], place: bool = True) -> str:
    """`a red apple wearing a crown, a pear and a cup on a wooden table`, of the things in `said`, in that order."""
    phrases = []
    for k in said:
        thing = world.things[k]
        words = [thing.colour, thing.noun] if thing.colour else [thing.noun]
        phrase = ["an:0" if words[0][0] in "aeio" else "a:0", *(f"{word}:{2 * k + 1}" for word in words)]
        if thing.worn:
            phrase += ["wearing:0", "a:0", *(f"{word}:{2 * k + 2}" for word in thing.worn.split())]
        phrases.append(" ".join(phrase))
    text = " and:0 ".join([" ,:0 ".join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases)
    if place:
        where = BACKGROUNDS[world.ground].split()
        text += " " + " ".join(f"{word}:{PLACE if word in NAMED else 0}" for word in where)
    return text


def _cells(mask: np.ndarray) -> np.ndarray:
    k = SIZE // GRID
    return np.round(mask.reshape(GRID, k, GRID, k).mean((1, 3)) * 255).astype(np.uint8)


def draw_scene(rng: np.random.Generator, drawings: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, str, str]:
    """Picture, bare picture, masks, caption, short caption."""
    scene = random_drawing(rng) if rng.random() < drawings else random_scene(rng)
    drawing = render(scene)
    bare = render(replace(scene, accessory=None)).image if scene.accessory else drawing.image
    masks = np.zeros((PLACE, GRID, GRID), np.uint8)
    masks[0], masks[1] = _cells(drawing.subject), _cells(drawing.accessory)
    masks[PLACE - 1] = _cells((1 - drawing.subject - drawing.accessory).clip(0))
    return drawing.image, bare, masks, tagged(scene), tagged(scene, place=False)


def draw_world(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, str, str]:
    """The same of solids seen from somewhere. Only what can be seen is said, and now and then less."""
    world = solids.sample_world(rng)
    viewmat, K = solids.sample_camera(rng, world, SIZE)
    image, shares, _ = solids.render(world, viewmat, K, SIZE, SIZE)
    masks = np.zeros((PLACE, GRID, GRID), np.uint8)
    seen, visible = [], 0
    for name, share in zip(solids.parts(world), shares.transpose(2, 0, 1), strict=True):
        if name == "ground":
            masks[PLACE - 1] = _cells(share)
            continue
        k = next(k for k, thing in enumerate(world.things) if name.split(" on ")[-1] == thing.noun)
        masks[2 * k + (" on " in name)] = _cells(share)
        if " on " not in name and share.sum() > 60:  # pixels
            seen.append(k)
            visible += 1
    said = [k for k in rng.permutation(seen).tolist() if len(seen) == 1 or rng.random() > 0.12] or seen[:1]
    undressed = solids.World(
        tuple(replace(thing, worn=None) for thing in world.things),
        world.ground,
        world.radius,
        world.backdrop,
        world.seed,
    )
    bare = image
    if any(thing.worn for thing in world.things):
        bare = solids.render(undressed, viewmat, K, SIZE, SIZE)[0]
    return image, bare, masks, tagged_world(world, said), tagged_world(world, said, place=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=20000)
    parser.add_argument("--drawings", type=float, default=0.2, help="share of the scenes that are line drawings")
    parser.add_argument("--solids", action="store_true", help="solids seen from all round instead of flat art")
    parser.add_argument("--shard", type=int, default=0, help="number of this file, and its seed")
    parser.add_argument("--draw-only", action="store_true", help="keep the drawings; encode them in a later call")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = args.out / f"drawn-{args.shard}.npz"
    if not drawn.exists():
        rng = np.random.default_rng(1000 + args.shard)
        images = np.empty((args.scenes, SIZE, SIZE, 3), np.uint8)
        bare = np.empty_like(images)
        masks = np.empty((args.scenes, PLACE, GRID, GRID), np.uint8)
        texts: list[tuple[str, str]] = []
        for k in range(args.scenes):
            images[k], bare[k], masks[k], *text = draw_world(rng) if args.solids else draw_scene(rng, args.drawings)
            texts.append((text[0], text[1]))
            if k % 1000 == 0:
                print(f"drawn {k}/{args.scenes}", flush=True)
        captions, short = (np.array(column) for column in zip(*texts, strict=True))
        np.savez(drawn, images=images, bare=bare, masks=masks, captions=captions, short=short)
    if args.draw_only:
        return
    from diffusers import AutoencoderTiny

    vae = AutoencoderTiny.from_pretrained(args.vae).eval().to(memory_format=torch.channels_last)
    data = np.load(drawn)

    @torch.inference_mode()
    def encode(images: np.ndarray) -> np.ndarray:
        out = np.empty((len(images), 4, SIZE // 4, SIZE // 4), np.float16)
        for k in range(0, len(images), 64):
            x = to_input(images[k : k + 64]).to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                out[k : k + 64] = vae.encoder(x).float().numpy()
        return out

    latents = encode(data["images"])
    rows = np.flatnonzero((data["images"] != data["bare"]).any((1, 2, 3)))
    bare = latents.copy()
    bare[rows] = encode(data["bare"][rows])
    rest = {name: data[name] for name in ("masks", "captions", "short")}
    np.savez(args.out / f"shard-{args.shard}.npz", latents=latents, bare=bare, **rest)
    drawn.unlink()
    values = latents.astype(np.float32)
    print(f"{len(latents)} scenes; latent mean {values.mean():.4f} std {values.std():.4f}")


if __name__ == "__main__":
    main()
