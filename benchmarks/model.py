"""What the built-in model can do, in numbers and in a grid of pictures.

    python -m benchmarks.model

- autoencoder: PSNR on held-out scenes of the trained family and of a family that no training saw;
- attention: does the map of the subject's (and of the worn thing's) word point at it, and how well does it cover it
  (IoU at half of its range), on held-out combinations noised to t = 0.3;
- samples: the judge reads the named subject, and the other words, in pictures drawn from captions.

Writes docs/benchmarks/model.md and docs/benchmarks/samples.png (40 prompts, DDIM 30 steps, guidance 4).
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sdsedit.attention.localize import localize
from sdsedit.attention.probe import AttentionProbe
from sdsedit.attention.words import find_words
from sdsedit.metrics import iou, pointing, psnr
from sdsedit.prior import load_prior
from sdsedit.prior.base import Text, cfg
from training.art import ACCESSORIES, NOUNS
from training.autoencoder import scene_pool_v1
from training.judge import Judge, answers, load_judge
from training.scenes import BACKGROUNDS, COLOURS, SIZE, Scene, caption, random_scene, render

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "docs" / "benchmarks"
GUIDANCE = 4.0
T = 0.3  # where attention is measured


def pictures(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] -> float32 [N, 3, H, W] in 0..1."""
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255


def held_out_scenes(count: int, seed: int) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [random_scene(rng, held_out=True) for _ in range(count)]


def autoencoder(prior) -> dict[str, float]:
    """Mean PSNR in dB of decode(encode(x)) rounded to 8 bits."""
    sets = {
        "Fluent flat, held-out combinations": np.stack([render(s).image for s in held_out_scenes(100, 5)]),
        "Noto v1, a family not trained on": scene_pool_v1(100),
    }
    scores = {}
    for name, images in sets.items():
        x = pictures(images)
        y = torch.cat([prior.decode(prior.encode(part)) for part in x.split(20)])
        scores[name] = float(psnr((y * 255).round() / 255, x).mean())
    return scores


def attention(prior, count: int = 100) -> dict[str, dict[str, float]]:
    """Pointing accuracy and IoU of the word's map, cross-attention alone and refined by self-attention."""
    scores: dict[str, dict[str, list[float]]] = {}
    generator = torch.Generator().manual_seed(3)
    for scene in held_out_scenes(count, 6):
        drawing = render(scene)
        prompt = caption(scene)
        z = prior.encode(pictures(drawing.image[None]))
        t = torch.tensor([T])
        z_t = prior.schedule.add_noise(z, torch.randn(z.shape, generator=generator), t)
        for what, word, truth in (
            ("subject", scene.noun, drawing.subject),
            ("worn", scene.accessory, drawing.accessory),
        ):
            probe = AttentionProbe(find_words(prior.tokenize, prompt, [word]).tokens)
            maps = prior.predict(z_t, t, prior.encode_text([prompt]), probe).maps
            mask = torch.from_numpy(truth)[None, None]
            for kind, chosen in (("cross", type(maps)(maps.cross, None)), ("refined", maps)):
                heat = localize(chosen, (SIZE, SIZE))
                row = scores.setdefault(f"{what}, {kind}", {"pointing": [], "IoU": []})
                row["pointing"].append(float(pointing(heat, mask)))
                row["IoU"].append(float(iou(heat, mask)))
    return {name: {key: statistics.fmean(values) for key, values in row.items()} for name, row in scores.items()}


@torch.inference_mode()
def draw(prior, prompts: list[str], seed: int, steps: int = 30) -> Tensor:
    """DDIM (arXiv:2010.02502, eta 0) with guidance GUIDANCE; [N, 3, 128, 128] in 0..1."""
    side = prior.native // prior.factor
    generator = torch.Generator().manual_seed(seed)
    out = []
    for k in range(0, len(prompts), 10):
        part = prompts[k : k + 10]
        text = Text.cat(prior.encode_text(part), prior.encode_text([""] * len(part)))
        z = torch.randn(len(part), prior.channels, side, side, generator=generator)
        times = torch.linspace(0.999, 0, steps + 1)
        for t, after in pairwise(times):
            now = t.expand(len(part))
            cond, uncond = prior.predict(torch.cat([z, z]), torch.cat([now, now]), text).eps.chunk(2)
            eps = cfg(uncond, cond, GUIDANCE)
            z0 = prior.schedule.to_sample(eps, z, now)
            z = prior.schedule.add_noise(z0, eps, after.expand(len(part))) if after > 0 else z0
        out.append(prior.decode(z))
    return torch.cat(out)


def samples(prior, judge: Judge, count: int) -> dict[str, float]:
    """Share of pictures, drawn from captions of random scenes, in which the judge reads each thing that was named."""
    rng = np.random.default_rng(8)
    scenes = [random_scene(rng) for _ in range(count)]
    images = draw(prior, [caption(s) for s in scenes], seed=9)
    read = [judge.read(image[None])[0] for image in images]
    right = [answers(s) for s in scenes]
    return {
        name: statistics.fmean(float(r[name] == a[name]) for r, a in zip(read, right, strict=True)) for name in right[0]
    }


def grid_prompts() -> list[str]:
    """Forty captions that go through every subject, background, colour and worn thing."""
    nouns, worn, colours, places = list(NOUNS), list(ACCESSORIES), list(COLOURS), list(BACKGROUNDS)
    scenes = [
        Scene(
            noun=nouns[k % len(nouns)],
            colour=colours[k % len(colours)] if k % 3 == 2 else None,
            accessory=worn[k % len(worn)] if k % 3 != 0 else None,
            background=places[(3 * k) % len(places)],
            x=64, y=76, side=94, flip=False, background_seed=0,
        )
        for k in range(40)
    ]  # fmt: skip
    return [caption(scene) for scene in scenes]


def grid(prior, path: Path) -> None:
    prompts = grid_prompts()
    images = draw(prior, prompts, seed=1)
    columns, cell, line = 8, SIZE + 8, 44
    page = Image.new("RGB", (columns * cell, -(-len(prompts) // columns) * (cell + line)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(10)
    for k, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        x, y = k % columns * cell + 4, k // columns * (cell + line) + 4
        page.paste(Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()), (x, y))
        pen.text((x, y + SIZE + 2), fill(prompt, 23), fill="black", font=font, spacing=1)
    page.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--samples", type=int, default=120)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    prior, judge = load_prior(args.model), load_judge(HERE / "judge.safetensors")
    lines = [
        "# The built-in model in numbers",
        "",
        "`python -m benchmarks.model`",
        "",
        "| autoencoder | PSNR (dB) |",
        "|---|---|",
    ]
    lines += [f"| {name} | {score:.2f} |" for name, score in autoencoder(prior).items()]
    lines += ["", f"| attention at t = {T}, held-out combinations | pointing | IoU |", "|---|---|---|"]
    lines += [f"| {name} | {s['pointing']:.3f} | {s['IoU']:.3f} |" for name, s in attention(prior).items()]
    lines += ["", f"| {args.samples} samples, guidance {GUIDANCE:g}: the judge reads | share |", "|---|---|"]
    lines += [f"| {name} | {share:.3f} |" for name, share in samples(prior, judge, args.samples).items()]
    grid(prior, args.out / "samples.png")
    lines += ["", f"{(time.perf_counter() - started) / 60:.1f} minutes.", "", "![forty captions](samples.png)", ""]
    (args.out / "model.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
