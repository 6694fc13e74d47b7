"""Train the built-in model's UNet and text encoder on cached latents, with its words' attention supervised.

    python -m training.denoiser --cache runs/cache --vae runs/autoencoder/vae --out runs/denoiser --minutes 90

Loss: v-prediction with min-SNR weighting (arXiv:2303.09556, gamma 5), heavier on what is worn (it is small, and edits
need it), plus a per-pixel cross-entropy between the head-averaged cross-attention and the words that the pixel shows.
A share of every batch shows the *bare* scene under the caption of the *dressed* one and trains the attention alone:
where would the crown go?  That is the question an edit asks.

Resumable; bf16 autocast on the CPU, EMA, seeded; a sample grid every few minutes.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .art import ACCESSORIES, NOUNS
from .cache import GRID, PLACE, Cache, load
from .run import EMA, Progress, load_checkpoint, save_checkpoint
from .scenes import BACKGROUNDS, COLOURS

if TYPE_CHECKING:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 32
TEXT_WIDTH = 128
GAMMA = 5.0

# --- the networks -----------------------------------------------------------------------------------------------------


def build_unet() -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # changes nothing here; StableDiffusionPipeline warns of any other
        timestep_spacing="trailing",
    )


def vocabulary_text() -> list[str]:
    """What the BPE learns its merges from: the world's words, and common English so that others still split well."""
    words = [*NOUNS, *ACCESSORIES, *COLOURS, *BACKGROUNDS.values(), "wearing", "a", "an", "the", "with", "and", "of"]
    extra = [
        "picture",
        "photo",
        "drawing",
        "two",
        "three",
        "cats",
        "dogs",
        "hat",
        "hats",
        "glasses",
        "beside",
        "under",
        "over",
        "big",
        "small",
        "house",
        "tree",
        "car",
        "bird",
        "fish",
    ]
    return words * 50 + extra * 3


def learn_merges(words: list[str], alphabet: dict[int, str]) -> list[tuple[str, str]]:
    """Byte-pair encoding, Sennrich et al. 2016, arXiv:1508.07909: join the commonest neighbours until words are whole.

    Ties go to the first pair in order of text, so that the same words always give the same merges (the trainer of the
    tokenizers library does not promise that).
    """
    counts = Counter(words)
    pieces = {word: [*(alphabet[byte] for byte in word.encode())] for word in counts}
    for parts in pieces.values():
        parts[-1] += "</w>"
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        common = [pair for pair, count in pairs.items() if count > 1]
        if not common:
            return merges
        best = min(common, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for parts in pieces.values():
            k = 0
            while k < len(parts) - 1:
                if (parts[k], parts[k + 1]) == best:
                    parts[k : k + 2] = ["".join(best)]
                k += 1


def build_tokenizer(folder: Path) -> Any:
    """A byte-level BPE in CLIP's own format, learnt from the world's words; written to `folder`."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain = {byte: letters.pre_tokenize_str(chr(byte))[0][0] for byte in range(128)}  # the world's words are ASCII
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges([word for text in vocabulary_text() for word in text.split()], plain)
    tokens = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{letter}</w>" for letter in alphabet)]
    tokens += dict.fromkeys("".join(pair) for pair in merges)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            projection_dim=TEXT_WIDTH,
        )
    )


# --- cross-attention, in the open -------------------------------------------------------------------------------------


class RecordedCrossAttention:
    """A diffusers attention processor that computes softmax(Q K^T / sqrt(d)) in the open and keeps its head mean."""

    def __init__(self) -> None:
        self.probabilities: Tensor | None = None  # [B, queries, tokens]

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        batch, queries, _ = hidden_states.shape
        heads = attn.heads
        q = attn.to_q(hidden_states).view(batch, queries, heads, -1).transpose(1, 2)
        k = attn.to_k(encoder_hidden_states).view(batch, -1, heads, q.shape[-1]).transpose(1, 2)
        v = attn.to_v(encoder_hidden_states).view(batch, -1, heads, q.shape[-1]).transpose(1, 2)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).float().softmax(-1)
        self.probabilities = weights.mean(1)
        out = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(batch, queries, -1)
        return attn.to_out[1](attn.to_out[0](out))


def record_cross_attention(unet: UNet2DConditionModel) -> list[RecordedCrossAttention]:
    recorders = []
    processors = dict(unet.attn_processors)
    for name in processors:
        if ".attn2." in name:
            processors[name] = RecordedCrossAttention()
            recorders.append(processors[name])
    unet.set_attn_processor(processors)
    return recorders


# --- captions ---------------------------------------------------------------------------------------------------------


class Captions:
    """Token ids of tagged captions, and each token's group, as in Cache."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, tuple[list[int], list[int]]] = {}

    def __call__(self, caption: str) -> tuple[list[int], list[int]]:
        """`a:0 blue:1 cat:1` -> ids and groups, MAX_TOKENS each; "" is the empty caption."""
        if caption not in self.known:
            self.known[caption] = self._build(caption)
        return self.known[caption]

    def _build(self, caption: str) -> tuple[list[int], list[int]]:
        ids, groups = [self.tokenizer.bos_token_id], [0]
        for part in caption.split():
            word, group = part.rsplit(":", 1)
            pieces = self.tokenizer(word, add_special_tokens=False).input_ids
            ids += pieces
            groups += [int(group)] * len(pieces)
        ids = [*ids[: MAX_TOKENS - 1], self.tokenizer.eos_token_id]
        groups = [*groups[: MAX_TOKENS - 1], 0]
        pad = MAX_TOKENS - len(ids)
        return ids + [self.tokenizer.pad_token_id] * pad, groups + [0] * pad


def attention_target(masks: Tensor, groups: Tensor) -> Tensor:
    """What a pixel's attention should be: its share of each thing, spread evenly over the words that name the thing.

    masks: [B, G, h, w] in 0..1, of groups 1 .. G, at most 1 in all; groups: [B, L] long. Returns [B, h w, L]; rows sum
    to 1. What no word of the caption names goes to the start token.
    """
    shares = masks.flatten(2).transpose(1, 2)  # [B, hw, G]
    shares = shares / shares.sum(-1, keepdim=True).clamp_min(1)  # rounding may say more than all
    member = torch.stack([groups == g for g in range(1, masks.shape[1] + 1)], dim=1).float()  # [B, G, L]
    target = shares @ (member / member.sum(-1, keepdim=True).clamp_min(1))
    target[..., 0] += 1 - target.sum(-1)
    return target


def attention_loss(recorders: list[RecordedCrossAttention], masks: Tensor, groups: Tensor) -> Tensor:
    """Per-pixel cross-entropy -sum_token target log attention, mean over pixels and layers."""
    total = masks.new_zeros(())
    for recorder in recorders:
        p = recorder.probabilities
        assert p is not None
        k = GRID // int(p.shape[1] ** 0.5)
        target = attention_target(F.avg_pool2d(masks, k) if k > 1 else masks, groups)
        total = total - (target * (p + 1e-6).log()).sum(-1).mean()
    return total / len(recorders)


# --- training ---------------------------------------------------------------------------------------------------------


WORN = tuple(f":{group}" for group in range(2, PLACE, 2))


class Batches:
    """Random rows of the cache as tensors, captions with dropped parts, the bare scenes of the attention-only share."""

    def __init__(
        self, cache: Cache, captions: Captions, scale: float, rng: np.random.Generator, bare_share: float
    ) -> None:
        self.cache, self.captions, self.scale, self.rng, self.bare_share = cache, captions, scale, rng, bare_share

    def __call__(self, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """z [B, 4, 32, 32], ids [B, L], groups [B, L], masks [B, PLACE, 16, 16], bare [B]."""
        rng, cache = self.rng, self.cache
        rows = rng.integers(len(cache), size=count)
        dressed = np.array([any(tag in cache.captions[row] for tag in WORN) for row in rows])
        bare = dressed & (rng.random(count) < self.bare_share)
        ids, groups = [], []
        for row, is_bare in zip(rows, bare, strict=True):
            text = cache.captions[row]
            if not is_bare and rng.random() < 0.10:
                text = ""
            elif rng.random() < 0.12:
                text = cache.short[row]
            i, g = self.captions(str(text))
            ids.append(i)
            groups.append(g)
        latents = np.where(bare[:, None, None, None], cache.bare[rows], cache.latents[rows]).astype(np.float32)
        masks = torch.from_numpy(cache.masks[rows].astype(np.float32) / 255)
        z = torch.from_numpy(latents) * self.scale
        return z, torch.tensor(ids), torch.tensor(groups), masks, torch.from_numpy(bare)


def losses(
    unet: nn.Module,
    text_encoder: nn.Module,
    recorders: list[RecordedCrossAttention],
    alphas_cumprod: Tensor,
    batch: tuple[Tensor, ...],
    t: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """The denoising and the attention term of one batch."""
    z, ids, groups, masks, bare = batch
    a = alphas_cumprod[t].sqrt().view(-1, 1, 1, 1)
    s = (1 - alphas_cumprod[t]).sqrt().view(-1, 1, 1, 1)
    z_t, v = a * z + s * noise, a * noise - s * z
    text = text_encoder(input_ids=ids).last_hidden_state
    out = unet(z_t.contiguous(memory_format=torch.channels_last), t, text, return_dict=False)[0].float()
    snr = (a / s).square().flatten()
    weight = torch.minimum(snr, torch.full_like(snr, GAMMA)) / (snr + 1)
    weight = (weight / 0.5) * (~bare).float()
    things, worn = masks[:, 0 : PLACE - 1 : 2].sum(1), masks[:, 1 : PLACE - 1 : 2].sum(1)
    where = F.interpolate((1 + 2.5 * worn + 0.5 * things)[:, None], scale_factor=2, mode="bilinear")
    denoising = (weight.view(-1, 1, 1, 1) * where * (out - v).square()).mean()
    return denoising, attention_loss(recorders, masks, groups)


def stratified_t(count: int, generator: torch.Generator) -> Tensor:
    """One timestep from each of `count` equal slices of 0..999, shuffled."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (u * 1000).long().clamp(max=999)[torch.randperm(count, generator=generator)]


def build(tokenizer: CLIPTokenizer) -> nn.ModuleDict:
    return nn.ModuleDict(
        {"unet": build_unet().to(memory_format=torch.channels_last), "text_encoder": build_text_encoder(tokenizer)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--batch", type=int, default=12, help="pictures a step and worker")
    parser.add_argument(
        "--workers", type=int, default=1, help="processes on the CPU, one thread each, on shared weights"
    )
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--final", action="store_true", help="decay the learning rate to zero over --minutes")
    parser.add_argument("--attention", type=float, default=0.05, help="weight of the attention term")
    parser.add_argument("--bare", type=float, default=0.2, help="share of dressed scenes shown bare, attention only")
    parser.add_argument("--grid-minutes", type=float, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    both = build(build_tokenizer(args.out / "tokenizer"))
    checkpoint = args.out / "denoiser.pt"
    if checkpoint.exists():
        both.load_state_dict(load_checkpoint(checkpoint)["model"])
    weights = {name: value.share_memory_() for name, value in both.state_dict().items()}
    if args.workers == 1:
        train(0, args, weights)
    else:
        torch.multiprocessing.spawn(train, (args, weights), nprocs=args.workers)


def train(worker: int, args: argparse.Namespace, weights: dict[str, Tensor]) -> None:
    """One worker: its own data, optimiser and thread, on weights that all workers write (Hogwild, arXiv:1106.5730).

    Updates race without locks, so a run with several workers is not bit-reproducible; with one it is.
    """
    if args.workers > 1:
        torch.set_num_threads(1)
    cache = load(args.cache)
    tokenizer = build_tokenizer(args.out / f"tokenizer-{worker}") if worker else build_tokenizer(args.out / "tokenizer")
    both = build(tokenizer).to(args.device)
    both.load_state_dict(weights, assign=args.device == "cpu")
    both.train().requires_grad_(True)
    unet, text_encoder = both["unet"], both["text_encoder"]
    recorders = record_cross_attention(unet)
    alphas_cumprod = build_scheduler().alphas_cumprod.to(args.device)
    scale = float(1 / cache.latents[:2000].astype(np.float32).std())
    optimizer = torch.optim.AdamW(both.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
    ema, steps_before = EMA(both, 0.9995), 0
    checkpoint, own = args.out / "denoiser.pt", args.out / f"optimizer-{worker}.pt"
    if checkpoint.exists():
        state = load_checkpoint(checkpoint)
        ema.load_state_dict(state["ema"])
        scale, steps_before = state["scale"], state["ema"]["step"]
        if own.exists():
            optimizer.load_state_dict(load_checkpoint(own))
    if worker == 0:
        count = sum(p.numel() for p in both.parameters())
        print(
            f"{count / 1e6:.2f} M parameters, {len(cache)} scenes, latent scale {scale:.4f}, from step {steps_before}",
            flush=True,
        )
    seed = args.seed + steps_before + 1009 * worker
    generator = torch.Generator().manual_seed(seed)
    batches = Batches(cache, Captions(tokenizer), scale, np.random.default_rng(seed), args.bare)
    progress, last_grid = Progress(), 0.0
    while progress.minutes() < args.minutes:
        share = progress.minutes() / args.minutes
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (ema.step + 1) / 200) * (max(0.01, 1 - share) if args.final else 1.0)
        batch = tuple(x.to(args.device) for x in batches(args.batch))
        t = stratified_t(args.batch, generator).to(args.device)
        noise = torch.randn(batch[0].shape, generator=generator).to(args.device)
        with torch.autocast(args.device, torch.bfloat16):
            denoising, attention = losses(unet, text_encoder, recorders, alphas_cumprod, batch, t, noise)
        loss = denoising + args.attention * attention
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        ema.update()  # every worker counts its own steps; the first one's average is kept
        if worker == 0:
            progress(ema.step, args.batch, denoising=denoising.detach(), attention=attention.detach())
        if progress.minutes() - last_grid > args.grid_minutes:
            last_grid = progress.minutes()
            save_checkpoint(own, optimizer.state_dict())
            if worker == 0:
                _save(args, both, ema, scale, tokenizer)
    save_checkpoint(own, optimizer.state_dict())
    if worker == 0:
        _save(args, both, ema, scale, tokenizer)


GRID_PROMPTS = (
    "a cat on grass",
    "a cat wearing a crown on grass",
    "a dog wearing a top hat on snow",
    "a blue bear at night",
    "a panda wearing sunglasses on sand",
    "a red frog in the sky",
    "an apple on a wooden table",
    "a pear wearing a bow on a white background",
    "a ghost wearing a cap at night",
    "a green owl wearing a flower in the sea",
    "a pumpkin wearing a crown on a wooden table",
    "a fox wearing a bow on snow",
    "a penguin wearing a top hat in the sea",
    "a robot wearing a crown in the sky",
    "a purple rabbit wearing sunglasses on grass",
    "a balloon in the sky",
    "a drawing of a cat",
    "a drawing of a cat wearing a crown",
    "a drawing of a dog wearing sunglasses",
    "a drawing of a pumpkin",
    "a drawing of an owl wearing a top hat",
    "a drawing of a robot wearing a bow",
    "a drawing of an apple",
    "a drawing of a fox wearing a cap",
    "a snowman wearing a top hat on snow",
    "a snowman on snow",
    "an apple wearing a crown on a wooden table",
    "an apple , a pear and a cup on a wooden table",
    "a red balloon on grass",
    "a cup wearing a top hat on sand",
    "a pear wearing a crown on a white background",
    "a purple apple and a blue cup on snow",
)


def _save(args: argparse.Namespace, both: nn.ModuleDict, ema: EMA, scale: float, tokenizer) -> None:
    """Checkpoint, and a grid of samples from the averaged weights."""
    from PIL import Image

    from .export import sample

    state = {"model": both.state_dict(), "ema": ema.state_dict(), "scale": scale}
    save_checkpoint(args.out / "denoiser.pt", state)
    ema.swap()
    images = sample(
        both["unet"], both["text_encoder"], tokenizer, args.vae, scale, GRID_PROMPTS, steps=20, guidance=4.0, seed=1
    )
    rows = [np.concatenate(list(images[k : k + 8]), axis=1) for k in range(0, len(images), 8)]
    Image.fromarray(np.concatenate(rows, axis=0)).save(args.out / f"samples-{ema.step:06d}.png")
    ema.swap()
    print(f"step {ema.step}  saved", flush=True)


if __name__ == "__main__":
    main()
