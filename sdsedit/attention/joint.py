"""Which words a picture token looks at in a transformer whose picture and text tokens share one attention (MMDiT).

For picture tokens i, text tokens k, layers l, heads h, with keys over text and picture together:

    c_k[i]  = mean_lh softmax_j(q_i . k_j / sqrt(d))[k]  = mean_lh SDPA(Q_picture, K_joint, V = 1 at token k)

A value that is 1 at one key and 0 elsewhere comes out as the attention that the key got. So the fused attention of any
backend gives the exact softmax mass, with memory linear in the number of tokens; queries and keys are the layer's own,
after its QK-norm and its rotary places. The order of the two (SD3 has the picture first, FLUX.1 the text) plays no
part, for the keys are taken from their projections. Picture-to-picture attention is SDPA(Q_picture, K_picture): the
joint attention without the text, each row divided by what the picture got of it, so that rows sum to one as they do in
a UNet's self-attention.

All layers have one grid, so they cannot be chosen by level. Recorded are four blocks spread over the second half of the
joint ones, but for the last tenth: ConceptAttention (arXiv:2502.04320) found FLUX.1's late joint blocks to tell words
apart best. Blocks whose text has been merged into the picture's sequence (FLUX.1's single ones) and the picture-only
attention of Stable Diffusion 3.5 medium (`attn2`) are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_FROM, _TO = 0.5, 0.9  # of the joint blocks
_LAYERS = 4


def is_joint(network: Any) -> bool:
    """Whether this is a transformer with joint blocks, and no UNet."""
    return hasattr(network, "transformer_blocks") and not hasattr(network, "down_blocks")


def joint_layers(network: Any) -> list[Any]:
    """The attention layers to record, in the order of their calls."""
    blocks = network.transformer_blocks
    chosen = joint_blocks(len(blocks))
    return [blocks[i].attn for i in chosen]


def joint_blocks(count: int) -> list[int]:
    """Which of `count` joint blocks are recorded."""
    first, last = int(count * _FROM), max(int(count * _TO) - 1, int(count * _FROM))
    return sorted({round(first + (last - first) * k / (_LAYERS - 1)) for k in range(_LAYERS)})


def patch_of(network: Any) -> int:
    """Latent cells along a picture token's side: SD3 says so itself, FLUX.1's latents are packed 2 x 2."""
    return 2 if hasattr(network, "x_embedder") else int(network.config.patch_size)


def word_share(
    q: Tensor,  # [R, heads, N, d], picture tokens
    k: Tensor,  # [R, heads, L + N, d], text tokens, then picture tokens
    tokens: Sequence[int],  # K of the L
) -> Tensor:  # [R, K, N] fp32 in 0..1: mean over heads of the attention that each token gets
    rows, heads, length, d = k.shape
    parts = []
    for start in range(0, len(tokens), d):
        part = list(tokens[start : start + d])
        # Fused attention wants values as wide as the queries; else it falls back to an N x N matrix.
        v = k.new_zeros(length, d)
        v[part, range(len(part))] = 1
        out = F.scaled_dot_product_attention(q, k, v.expand(rows, heads, -1, -1))  # [R, heads, N, d]
        parts.append(out[..., : len(part)].float().mean(1).transpose(1, 2))
    return torch.cat(parts, 1)


class JointListener:
    """An attention processor that hands the picture's queries and all keys to `record`, then runs the layer's own."""

    def __init__(self, own: Callable, record: Callable, rows: slice, batch: int, grid: tuple[int, int]) -> None:
        self.own, self.record, self.rows, self.batch, self.grid = own, record, rows, batch, grid

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,  # [B, N, D]
        encoder_hidden_states: Tensor,  # [B, L, D]
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,  # cosines and sines [L + N, d]
    ) -> tuple[Tensor, Tensor]:
        if attention_mask is not None:
            raise ValueError("Masked joint attention is not supported by the attention probe.")
        self.listen(attn, hidden_states, encoder_hidden_states, image_rotary_emb)
        if image_rotary_emb is None:
            return self.own(attn, hidden_states, encoder_hidden_states=encoder_hidden_states)
        places = {"image_rotary_emb": image_rotary_emb}
        return self.own(attn, hidden_states, encoder_hidden_states=encoder_hidden_states, **places)

    @torch.no_grad()
    def listen(self, attn: Any, picture: Tensor, text: Tensor, places: tuple[Tensor, Tensor] | None) -> None:
        cells = self.grid[0] * self.grid[1]
        if picture.shape[:2] != (self.batch, cells):
            raise ValueError(
                f"The probe was attached for a batch of {self.batch} and {self.grid[0]} x {self.grid[1]} tokens, but "
                f"the network got a batch of {picture.shape[0]} and {picture.shape[1]} tokens."
            )
        picture, text = picture[self.rows], text[self.rows]

        def heads(projected: Tensor, norm: Callable | None) -> Tensor:  # [R, n, D] -> [R, n, heads, d]
            split = projected.unflatten(-1, (attn.heads, -1))
            return split if norm is None else norm(split)

        q = heads(attn.to_q(picture), attn.norm_q)
        words = heads(attn.add_k_proj(text), attn.norm_added_k)
        k = torch.cat([words, heads(attn.to_k(picture), attn.norm_k)], 1)
        if places is not None:
            from diffusers.models.embeddings import apply_rotary_emb

            rotate: Any = apply_rotary_emb
            own = tuple(part[text.shape[1] :] for part in places)  # the picture's
            q, k = rotate(q, own, sequence_dim=1), rotate(k, places, sequence_dim=1)
        self.record(q.transpose(1, 2), k.transpose(1, 2), text.shape[1], self.grid)
