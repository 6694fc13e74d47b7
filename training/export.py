"""Draw samples while training, and write the finished model as a diffusers folder in fp16 safetensors.

python -m training.export --denoiser runs/denoiser --vae runs/autoencoder/vae --out assets/builtin
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn


@torch.inference_mode()
def sample(
    unet: nn.Module,
    text_encoder: nn.Module,
    tokenizer,
    vae_folder: Path,
    scale: float,
    prompts: Sequence[str],
    steps: int,
    guidance: float,
    seed: int,
) -> np.ndarray:
    """DDIM with guidance uncond + guidance (cond - uncond); uint8 [N, 128, 128, 3]."""
    from diffusers import AutoencoderTiny

    from .denoiser import build_scheduler

    device = next(unet.parameters()).device
    vae = AutoencoderTiny.from_pretrained(vae_folder).to(device).eval()
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    ids = tokenizer(
        [*prompts, *[""] * len(prompts)], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids.to(device)
    z = torch.randn(len(prompts), 4, 32, 32, generator=torch.Generator().manual_seed(seed)).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        text = text_encoder(input_ids=ids).last_hidden_state
        for t in scheduler.timesteps:
            cond, uncond = unet(torch.cat([z, z]), t, text, return_dict=False)[0].float().chunk(2)
            z = scheduler.step(uncond + guidance * (cond - uncond), t, z).prev_sample
        images = vae.decoder(z / scale).float()
    return images.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def _rewrite(config: Path, change: Callable[[dict], object]) -> None:
    settings = json.loads(config.read_text())
    change(settings)
    config.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--denoiser", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--last", action="store_true", help="the last weights, not their average: after a short run with --final"
    )
    args = parser.parse_args()
    from diffusers import AutoencoderTiny, StableDiffusionPipeline
    from diffusers.models.attention_processor import AttnProcessor2_0
    from transformers import CLIPTokenizer

    from .denoiser import MAX_TOKENS, build_scheduler, build_text_encoder, build_unet
    from .run import EMA, load_checkpoint

    tokenizer = CLIPTokenizer.from_pretrained(args.denoiser / "tokenizer", model_max_length=MAX_TOKENS)
    both = nn.ModuleDict({"unet": build_unet(), "text_encoder": build_text_encoder(tokenizer)})
    state = load_checkpoint(args.denoiser / "denoiser.pt")
    both.load_state_dict(state["model"])
    ema = EMA(both)
    ema.load_state_dict(state["ema"])
    if not args.last:
        ema.swap()
    both["unet"].set_attn_processor(AttnProcessor2_0())
    vae = AutoencoderTiny.from_pretrained(args.vae)
    vae.register_to_config(scaling_factor=state["scale"])
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=both["text_encoder"],
        tokenizer=tokenizer,
        unet=both["unet"],
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    ours = [args.out / name for name in ("README.md", "LICENSE", "editing.json")]
    keep = {path.name: path.read_bytes() for path in ours if path.exists()}
    if args.out.exists():
        shutil.rmtree(args.out)
    pipe.to(torch.float16).save_pretrained(args.out, safe_serialization=True)
    # diffusers writes a key that it warns of when reading; transformers would keep float16 on reading, diffusers not.
    # Nor does anybody need to know where the autoencoder lay.
    _rewrite(
        args.out / "vae" / "config.json",
        lambda c: [c.pop(key, None) for key in ("block_out_channels", "_name_or_path")],
    )
    _rewrite(args.out / "text_encoder" / "config.json", lambda c: c.update(dtype="float32"))
    for name, data in keep.items():
        (args.out / name).write_bytes(data)
    index = json.loads((args.out / "model_index.json").read_text())
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{index['_class_name']} after {state['ema']['step']} steps, {size / 1e6:.1f} MB in {args.out.name}")


if __name__ == "__main__":
    main()
