"""Train the built-in model's autoencoder, a diffusers AutoencoderTiny: 128 x 128 pictures -> 32 x 32 x 4 latents.

The loss is L1 on pixels and on their differences, with three aids for what comes after:

- noise of `NOISE` on the latent before decoding, so that a slightly wrong latent, as the denoiser makes, decodes well;
- a weak pull of the first three channels to the 4 x 4 average of the picture, so that latents look like small pictures,
  which a small denoiser learns faster, and previews need no decoder;
- a small penalty on the latents' size.

    python -m training.autoencoder --out runs/autoencoder --minutes 10 [--icons FOLDER ...]

`--icons` adds collages of any folder of SVG icons (see training/art.py --all), so that the decoder knows more than
scenes.  Resumes from `--out` when it holds a checkpoint.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .run import EMA, Progress, load_checkpoint, save_checkpoint
from .scenes import SIZE, drawable, random_scene, render

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

NOISE = 0.06
CROP = 64


def build() -> AutoencoderTiny:
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(
        in_channels=3,
        out_channels=3,
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 3),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=4,
        scaling_factor=1.0,
        force_upcast=False,
    )


def scene_pool(count: int, seed: int, family: str) -> np.ndarray:
    """uint8 [count, H, W, 3] of random scenes."""
    rng = np.random.default_rng(seed)
    return np.stack([render(random_scene(rng), family).image for _ in range(count)])


def collage_pool(count: int, seed: int, folders: list[Path]) -> np.ndarray:
    """uint8 [count, H, W, 3]: a few random icons of random sizes over a random ramp of colour."""
    import resvg_py

    rng = np.random.default_rng(seed)
    files = sorted(path for folder in folders for path in folder.glob("*.svg"))
    out = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for k in range(count):
        a, b = rng.uniform(0, 255, (2, 3))
        ramp = np.linspace(0, 1, SIZE)[:, None, None]
        canvas = np.broadcast_to(a * (1 - ramp) + b * ramp, (SIZE, SIZE, 3)).astype(np.uint8)
        image = Image.fromarray(canvas if rng.random() < 0.5 else canvas.transpose(1, 0, 2).copy())
        for _ in range(int(rng.integers(1, 5))):
            side = int(rng.integers(28, 120))
            text = files[int(rng.integers(len(files)))].read_text()
            icon = Image.open(
                io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=text, width=side, height=side)))
            ).convert("RGBA")
            image.paste(
                icon,
                (int(rng.integers(-side // 3, SIZE - side // 2)), int(rng.integers(-side // 3, SIZE - side // 2))),
                icon,
            )
        out[k] = np.asarray(image)
    return out


def to_input(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def losses(model: AutoencoderTiny, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction, picture-likeness and size terms on a batch x [B, 3, H, W] in -1..1."""
    z = model.encoder(x)
    y = model.decoder(z + noise).float()
    z = z.float()
    pixel = (y - x).abs().mean() + 0.5 * F.mse_loss(y, x) * 4
    edge = ((y - x).diff(dim=-1).abs().mean() + (y - x).diff(dim=-2).abs().mean()) * 0.5
    likeness = F.mse_loss(z[:, :3], 1.4 * F.avg_pool2d(x, 4))
    size = z.square().mean()
    return pixel + edge, likeness, size


@torch.no_grad()
def psnr(model: AutoencoderTiny, images: np.ndarray) -> float:
    """Mean PSNR in dB over pictures uint8 [N, H, W, 3]."""
    total = 0.0
    for k in range(0, len(images), 16):
        x = to_input(images[k : k + 16]).to(model.device)
        y = model.decoder(model.encoder(x)).clamp(-1, 1)
        error = ((y - x) / 2).square().mean((1, 2, 3)).clamp_min(1e-10)
        total += float((-10 * error.log10()).sum())
    return total / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--icons", type=Path, nargs="*", default=[])
    parser.add_argument("--batch", type=int, default=32, help="crops of 64 x 64 a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--decoder-only", action="store_true", help="keep the encoder as it is (latents stay valid)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    model = build().to(args.device, memory_format=torch.channels_last)
    ema = EMA(model)
    checkpoint = args.out / "autoencoder.pt"
    if checkpoint.exists():
        state = load_checkpoint(checkpoint)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        print(f"resumed at step {ema.step}")
    if args.decoder_only:
        model.encoder.requires_grad_(False)
    pools = [scene_pool(1500, args.seed + 1, "fluent-flat"), scene_pool(500, args.seed + 2, "noto")]
    if args.icons:
        pools.append(collage_pool(1500, args.seed + 3, args.icons))
    pool = to_input(np.concatenate(pools))
    held_out = {"fluent-flat": scene_pool(64, 10**6, "fluent-flat"), "noto-v1": scene_pool_v1(64)}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4
    )
    generator = torch.Generator().manual_seed(args.seed + ema.step)
    terms = torch.compile(lambda x, noise: losses(model, x, noise))
    progress = Progress()
    last_save = 0.0
    while progress.minutes() < args.minutes:
        share = progress.minutes() / args.minutes
        for group in optimizer.param_groups:
            group["lr"] = (
                args.lr * min(1.0, (ema.step + 1) / 100) * (1.0 if share < 0.5 else max(0.02, 2 * (1 - share)))
            )
        rows = torch.randint(len(pool), (args.batch,), generator=generator)
        x = torch.stack([_crop(pool[r], generator) for r in rows.tolist()]).to(
            args.device, memory_format=torch.channels_last
        )
        noise = NOISE * torch.randn(args.batch, 4, CROP // 4, CROP // 4, generator=generator).to(args.device)
        with torch.autocast(args.device, torch.bfloat16):
            reconstruction, likeness, size = terms(x, noise)
        loss = reconstruction + 0.02 * likeness + 0.002 * size
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update()
        progress(
            ema.step, args.batch, reconstruction=reconstruction.detach(), likeness=likeness.detach(), size=size.detach()
        )
        if progress.minutes() - last_save > 2:
            last_save = progress.minutes()
            _report(model, ema, held_out, checkpoint)
    _report(model, ema, held_out, checkpoint)


def scene_pool_v1(count: int) -> np.ndarray:
    """Scenes of the family that no training sees; it lacks two of the drawings."""
    rng = np.random.default_rng(10**6 + 1)
    scenes = (random_scene(rng) for _ in iter(int, 1))
    fitting = (scene for scene in scenes if drawable(scene, "noto-v1"))
    return np.stack([render(next(fitting), "noto-v1").image for _ in range(count)])


def _crop(image: Tensor, generator: torch.Generator) -> Tensor:
    y, x = (4 * torch.randint((SIZE - CROP) // 4 + 1, (2,), generator=generator)).tolist()
    crop = image[:, y : y + CROP, x : x + CROP]
    return crop.flip(-1) if torch.rand((), generator=generator) < 0.5 else crop


def _report(model: AutoencoderTiny, ema: EMA, held_out: dict[str, np.ndarray], checkpoint: Path) -> None:
    ema.swap()
    scores = {name: round(psnr(model, images), 2) for name, images in held_out.items()}
    model.save_pretrained(checkpoint.parent / "vae")
    rows = np.concatenate([images[:4] for images in held_out.values()])
    with torch.no_grad():
        z = model.encoder(to_input(rows).to(model.device))
        decoded = model.decoder(z).clamp(-1, 1).add(1).mul(127.5).round().byte().cpu()
    grid = np.concatenate(
        [np.concatenate(list(rows), 1), np.concatenate(list(decoded.permute(0, 2, 3, 1).numpy()), 1)], 0
    )
    Image.fromarray(grid).save(checkpoint.parent / "reconstruction.png")
    ema.swap()
    save_checkpoint(checkpoint, {"model": model.state_dict(), "ema": ema.state_dict()})
    print(f"step {ema.step}  PSNR {scores}", flush=True)


if __name__ == "__main__":
    main()
