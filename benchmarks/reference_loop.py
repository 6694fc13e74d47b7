"""LUSD's loop as a reference implementation runs it, written out plainly: what benchmarks/speed.py measures against.

Nothing of sdsedit's engine is used, only the networks themselves:

- the latent is a parameter that SGD moves: loss = sum(z * gradient), backward, step;
- weights are float32; under `autocast` the network computes in bfloat16, casting its weights in every pass;
- attention is explicit in every layer, softmax(Q K^T / sqrt(d)) V, and the maps of the target's branch are stored on
  the way and averaged afterwards, as prompt-to-prompt's attention stores do;
- the branches are one pass of two rows; a draw whose difference says too little is drawn again, after a host read;
- the losses and the spread of every step are read by the host.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAU, DECAY, PULL, AVERAGE = 0.01, 0.99, 0.02, 0.9
STEP = 0.488  # per element: 2000 / (64 64)


class Stored:
    """An attention processor without fused kernels that keeps the target's softmax, mean over heads, where asked."""

    def __init__(self, store: dict[str, list[Tensor]], kind: str | None) -> None:
        self.store, self.kind = store, kind

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: Any = None
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)))
        weights = (q @ k.transpose(-1, -2) * attn.scale).softmax(-1)
        if self.kind is not None:
            of_target = weights.unflatten(0, (hidden_states.shape[0], -1))[0]
            self.store[self.kind].append(of_target.float().mean(0))
        out = attn.batch_to_head_dim(weights @ v)
        return attn.to_out[1](attn.to_out[0](out))


def listen(unet: Any, side: int) -> dict[str, list[Tensor]]:
    """Explicit attention everywhere, stored for cross-attention on the coarser and self-attention on the finer of the
    two grids that LUSD reads: 16 x 16 and 32 x 32 of Stable Diffusion 1.5's 64 x 64."""
    store: dict[str, list[Tensor]] = {"cross": [], "self": []}
    depth_of = {}
    depth = 0
    for name, block in [*((f"down_blocks.{i}", b) for i, b in enumerate(unet.down_blocks)), ("mid_block", None)]:
        depth_of[name] = depth
        depth += getattr(block, "downsamplers", None) is not None
    depth_of["mid_block"] = depth
    for i, block in enumerate(unet.up_blocks):
        depth_of[f"up_blocks.{i}"] = depth
        depth -= getattr(block, "upsamplers", None) is not None
    cross_at = 2 if side >= 64 else 1
    processors = {}
    for name in unet.attn_processors:
        at = next(d for prefix, d in depth_of.items() if name.startswith(prefix + "."))
        cross = ".attn2." in name
        wanted = at == (cross_at if cross else 1)
        processors[name] = Stored(store, ("cross" if cross else "self") if wanted else None)
    unet.set_attn_processor(processors)
    return store


def place(store: dict[str, list[Tensor]], tokens: list[int], size: tuple[int, int]) -> Tensor:  # [1, 1, h, w] in 0..1
    """The words' cross-attention, spread by the whole matrix of self-attention, stretched to 0..1."""
    a = torch.stack(store["self"]).mean(0)  # [N, N]
    c = torch.stack([each[:, tokens].mean(-1) for each in store["cross"]]).mean(0)
    coarse, fine = (math.isqrt(x.shape[0]) for x in (c, a))
    spread = a @ F.interpolate(c.reshape(1, 1, coarse, coarse), (fine, fine), mode="bilinear").flatten()
    full = F.interpolate(spread.reshape(1, 1, fine, fine), size, mode="bilinear")
    return (full - full.min()) / (full.max() - full.min())


def lusd(
    unet: Any,
    abar: Tensor,  # [T] fp32
    z_src: Tensor,  # [1, C, h, w] fp32
    target: Tensor,  # [1, L, D]
    source: Tensor,  # [1, L, D]
    tokens: list[int],
    steps: int,
    total: int = 300,
    seed: int = 0,
    autocast: bool = False,
    predicts_v: bool = False,  # the network's output is v, as the built-in model's, not eps
) -> tuple[Tensor, list[float], int]:  # z, the seconds of each step, draws that were rejected
    """The first `steps` of `total` steps. The UNet's attention processors are put back afterwards."""
    own = unet.attn_processors
    store = listen(unet, z_src.shape[-1])
    device = z_src.device
    generator = torch.Generator(device).manual_seed(seed)
    z = nn.Parameter(z_src.clone())
    optimiser = torch.optim.SGD([z], lr=STEP)
    text = torch.cat([target, source])
    mask: Tensor | None = None
    seconds, rejected = [], 0
    try:
        for i in range(steps):
            started = time.perf_counter()
            tau = TAU
            while True:
                t = torch.randint(50, 949, (1,), generator=generator, device=device)
                eps = torch.randn(z.shape, generator=generator, device=device)
                with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                    for kept in store.values():
                        kept.clear()
                    z_t = abar[t].sqrt() * z + (1 - abar[t]).sqrt() * eps
                    said = unet(torch.cat([z_t] * 2), t.expand(2), encoder_hidden_states=text).sample.float()
                if predicts_v:
                    said = abar[t].sqrt() * said + (1 - abar[t]).sqrt() * z_t
                e = said[:1] - said[1:]
                if e.std().item() >= tau or rejected > 1000:
                    break
                tau *= DECAY
                rejected += 1
            current = place(store, tokens, (z.shape[-2], z.shape[-1]))
            mask = current if mask is None else AVERAGE * mask + (1 - AVERAGE) * current
            beta = i / (total - 1)
            d = (1 - PULL) * (beta * mask + (1 - beta)) * e + PULL * (z.detach() - z_src)
            delta = 0.01 + 0.14 * (1 - 1 / (1 + math.exp(-(10 * beta - 5))))
            gradient = d / d.std() * delta
            optimiser.zero_grad()
            loss = (z * gradient).sum()
            loss.backward()
            optimiser.step()
            loss.item()  # for its progress bar
            seconds.append(time.perf_counter() - started)
    finally:
        unet.set_attn_processor(own)
    return z.detach(), seconds, rejected
