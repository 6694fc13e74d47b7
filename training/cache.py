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

from .art import ACCESSORIES, NOUNS
from .autoencoder import to_input
from .scenes import BACKGROUNDS, COLOURS, SIZE, Scene, random_drawing, random_scene, render

GRID = 16  # cells a side of the masks that supervise attention


@dataclass
class Cache:
    """Columns of equal length; `words` holds index + 1 of noun, colour, accessory, background (0: none), and 1 where
    the scene is a line drawing."""

    latents: np.ndarray  # [N, 4, 32, 32] float16, as the autoencoder gives them (not yet scaled)
    bare: np.ndarray  # [N, 4, 32, 32] float16, the same scene without its accessory
    subject: np.ndarray  # [N, 16, 16] uint8, share 0..255
    accessory: np.ndarray  # [N, 16, 16] uint8
    words: np.ndarray  # [N, 5] uint8

    def __len__(self) -> int:
        return len(self.latents)


def load(folder: Path) -> Cache:
    shards = [np.load(path) for path in sorted(folder.glob("shard-*.npz"))]
    if not shards:
        raise FileNotFoundError(f"no shard-*.npz in {folder}: run training.cache first")
    names = ("latents", "bare", "subject", "accessory", "words")
    return Cache(*(np.concatenate([shard[name] for shard in shards]) for name in names))


def indices(scene: Scene) -> list[int]:
    return [
        list(NOUNS).index(scene.noun) + 1,
        list(COLOURS).index(scene.colour) + 1 if scene.colour else 0,
        list(ACCESSORIES).index(scene.accessory) + 1 if scene.accessory else 0,
        list(BACKGROUNDS).index(scene.background) + 1,
        int(scene.pen > 0),
    ]


def _cells(mask: np.ndarray) -> np.ndarray:
    k = SIZE // GRID
    return np.round(mask.reshape(GRID, k, GRID, k).mean((1, 3)) * 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=20000)
    parser.add_argument("--drawings", type=float, default=0.2, help="share of the scenes that are line drawings")
    parser.add_argument("--shard", type=int, default=0, help="number of this file, and its seed")
    parser.add_argument("--draw-only", action="store_true", help="keep the drawings; encode them in a later call")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    drawn = args.out / f"drawn-{args.shard}.npz"
    if not drawn.exists():
        rng = np.random.default_rng(1000 + args.shard)
        images = np.empty((args.scenes, SIZE, SIZE, 3), np.uint8)
        bare = np.empty_like(images)
        subject, accessory = (np.empty((args.scenes, GRID, GRID), np.uint8) for _ in range(2))
        words = np.empty((args.scenes, 5), np.uint8)
        for k in range(args.scenes):
            scene = random_drawing(rng) if rng.random() < args.drawings else random_scene(rng)
            drawing = render(scene)
            images[k] = drawing.image
            bare[k] = render(replace(scene, accessory=None)).image if scene.accessory else drawing.image
            subject[k], accessory[k], words[k] = _cells(drawing.subject), _cells(drawing.accessory), indices(scene)
            if k % 2000 == 0:
                print(f"drawn {k}/{args.scenes}", flush=True)
        np.savez(drawn, images=images, bare=bare, subject=subject, accessory=accessory, words=words)
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
    rows = np.flatnonzero(data["words"][:, 2])
    bare = latents.copy()
    bare[rows] = encode(data["bare"][rows])
    rest = {name: data[name] for name in ("subject", "accessory", "words")}
    np.savez(args.out / f"shard-{args.shard}.npz", latents=latents, bare=bare, **rest)
    drawn.unlink()
    values = latents.astype(np.float32)
    print(f"{len(latents)} scenes; latent mean {values.mean():.4f} std {values.std():.4f}")


if __name__ == "__main__":
    main()
