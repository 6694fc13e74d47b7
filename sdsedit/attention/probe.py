"""Attention maps of chosen words, recorded during one ordinary forward pass of a diffusers UNet or joint transformer.

LUSD, arXiv:2503.11054, localises an edit with two kinds of attention. For image cells i, text tokens k, layers l,
heads h:

    cross    c_k[i]  = mean_lh softmax_j(q_i . k_j * scale)[k]              at the cross level
    self     A[i, n] = mean_lh softmax_n(q_i . k_n * scale)                 at the self level
    refined  r_k     = A c_k

`A` is N x N and is never built: refinement is linear in c, so r = mean_lh SDPA(Q_lh, K_lh, V = c), with memory linear
in N. Each row of `A` sums to one, so A (a c + b) = a (A c) + b: every map is stretched to 0..1 before the product and
unstretched after it, which spends a half-precision network's few digits on the map's contrast, not on its offset.

Deviations from LUSD: layers are chosen by level (a fraction of the latent side) rather than by a number of queries,
so that pictures of any size and shape work; the map belongs to the forward pass that made the gradient, not to the
one before.

Transformers with joint attention (SD3, FLUX.1) have neither cross- nor self-attention layers; attention/joint.py says
what takes their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.attention.joint import JointListener, is_joint, joint_layers, patch_of, word_share

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
    from diffusers.models.attention_processor import Attention

# LUSD's cross maps are 16 x 16. Coarser grids no longer separate one object from its neighbour.
_CELLS = 16


@dataclass(frozen=True)
class AttentionMaps:
    """What one forward pass attended to, for R recorded batch rows and K asked tokens, detached from autograd."""

    cross: Tensor  # [R, K, h, w] fp32 in 0..1: share of the attention over all text tokens, on the finest recorded grid
    refined: Tensor | None  # [R, K, H, W] fp32 in 0..1: cross, spread by self-attention; None if none was recorded


class AttentionProbe:
    """Records the attention of some text tokens; the network's output does not change.

        with probe.attach(unet, batch=2, latent_size=(64, 64)):
            unet(z_t, t, encoder_hidden_states=text)
        maps = probe.collect()

    tokens: positions in the text sequence, 0 is the start token.
    rows: the rows of the network's batch to record (the target branch), as a slice.
    cross_levels, self_levels: the layers to record, as grid side / latent side, each in (0, 1]; a level that the
        network lacks means the nearest one that it has (by ratio, the finer of two equally near). Several levels are
        averaged on the finest one's grid. LUSD on Stable Diffusion 1.5 is cross 1/4 (16 x 16 of 64), self 1/2.
        cross_levels=None is the coarsest level that has 16 cells a side at the network's native size: 1/4 for SD 1.5,
        2.1, SDXL and KOALA, 1/2 for a network with 32 x 32 latents. self_levels=() records no self-attention.
        A joint transformer has one grid, so one level: any means that one.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        rows: slice = slice(None),
        cross_levels: Sequence[float] | None = None,
        self_levels: Sequence[float] = (0.5,),
    ) -> None:
        if not tokens or min(tokens) < 0:
            raise ValueError(f"A probe needs one or more token positions, each 0 or more; got {tuple(tokens)}.")
        if cross_levels is not None and not cross_levels:
            raise ValueError("cross_levels is empty; name a level such as 0.25, or None for the network's default.")
        for level in (*(cross_levels or ()), *self_levels):
            if not 0 < level <= 1:
                raise ValueError(f"A level is a fraction of the latent side, above 0 and at most 1; got {level}.")
        self.tokens = tuple(tokens)
        self.rows = rows
        self.cross_levels = cross_levels if cross_levels is None else tuple(cross_levels)
        self.self_levels = tuple(self_levels)
        self._cross: list[Tensor] = []  # a layer each: [R, K, h, w] fp32
        # a layer each: q [R, heads, N, d], k [R, heads, N, d], scale, grid
        self._self: list[tuple[Tensor, Tensor, float, tuple[int, int]]] = []

    @contextmanager
    def attach(
        self,
        network: UNet2DConditionModel | SD3Transformer2DModel | FluxTransformer2DModel,
        batch: int,
        latent_size: tuple[int, int],
    ) -> Iterator[None]:
        """Record the forward pass made inside the `with`; the layers' own processors always come back afterwards.

        batch: rows of the network's input. latent_size: (height, width) of its latent.
        Raises ValueError if no row would be recorded, if the network has no cross-attention, or, from inside the
        forward pass, if the input has another size or the text fewer tokens than announced.
        """
        if not range(batch)[self.rows]:
            raise ValueError(f"The probe records no row: {self.rows} selects nothing from a batch of {batch}.")
        self._cross, self._self = [], []
        with _listening(self._listeners(network, batch, latent_size)):
            yield

    def _listeners(self, network: Any, batch: int, latent_size: tuple[int, int]) -> list[tuple[Any, Any]]:
        """(layer, the processor that it gets) of every layer to record."""
        if is_joint(network):
            side = patch_of(network)
            grid = (latent_size[0] // side, latent_size[1] // side)
            return [
                (attn, JointListener(attn.processor, self._record_joint, self.rows, batch, grid))
                for attn in joint_layers(network)
            ]
        layers = _attention_layers(network)
        cross_depths = {depth for attn, depth in layers if attn.is_cross_attention}
        self_depths = {depth for attn, depth in layers if not attn.is_cross_attention}
        if not cross_depths:
            raise ValueError(
                f"{type(network).__name__} has no cross-attention, so its attention to words cannot be read."
            )
        if self.cross_levels is None:
            wanted = {_default_depth(cross_depths, _native_side(network, latent_size))}
        else:
            wanted = _nearest_depths(cross_depths, self.cross_levels)
        wanted_self = _nearest_depths(self_depths, self.self_levels) if self_depths else set()

        listeners = []
        for attn, depth in layers:
            if depth in (wanted if attn.is_cross_attention else wanted_self):
                record = self._record_cross if attn.is_cross_attention else self._record_self
                grid = _grid(latent_size, depth)
                listeners.append((attn, _Listener(attn.processor, record, self.rows, batch, grid)))
        return listeners

    @torch.no_grad()
    def collect(self) -> AttentionMaps:
        """The maps of the attached forward pass; the recording is dropped. Raises RuntimeError if there was none."""
        cross_layers, self_layers = self._cross, self._self
        self._cross, self._self = [], []
        if not cross_layers:
            raise RuntimeError("Nothing was recorded: run the network inside `with probe.attach(...)` first.")
        finest = max(cross_layers, key=lambda c: c.shape[-2:].numel())
        cross = torch.stack([_resize(c, finest.shape[-2:]) for c in cross_layers]).mean(0)
        if not self_layers:
            return AttentionMaps(cross, None)
        grid = max((size for *_, size in self_layers), key=math.prod)
        refined = [_resize(_spread(_resize(cross, size), q, k, scale), grid) for q, k, scale, size in self_layers]
        return AttentionMaps(cross, torch.stack(refined).mean(0))

    def _record_cross(self, q: Tensor, k: Tensor, bias: Tensor | None, scale: float, grid: tuple[int, int]) -> None:
        length = k.shape[2]
        if max(self.tokens) >= length:
            raise ValueError(
                f"Token position {max(self.tokens)} was asked for; the text has positions 0 to {length - 1}."
            )
        scores = q.float() @ k.float().transpose(-1, -2) * scale  # [R, heads, N, L]
        attention = (scores if bias is None else scores + bias.float()).softmax(-1)
        columns = torch.stack([attention[..., token].mean(1) for token in self.tokens], 1)  # [R, K, N]
        self._cross.append(columns.unflatten(-1, grid))

    def _record_self(self, q: Tensor, k: Tensor, bias: Tensor | None, scale: float, grid: tuple[int, int]) -> None:
        if bias is not None:
            raise ValueError("Masked self-attention is not supported by the attention probe.")
        self._self.append((q, k, scale, grid))

    def _record_joint(self, q: Tensor, k: Tensor, length: int, grid: tuple[int, int]) -> None:
        if max(self.tokens) >= length:
            raise ValueError(
                f"Token position {max(self.tokens)} was asked for; the text has positions 0 to {length - 1}."
            )
        self._cross.append(word_share(q, k, self.tokens).unflatten(-1, grid))
        if self.self_levels:
            self._self.append((q, k[:, :, length:], q.shape[-1] ** -0.5, grid))


@contextmanager
def _listening(listeners: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """The layers with these processors; their own always come back."""
    own = [(attn, attn.processor) for attn, _ in listeners]
    try:
        for attn, listener in listeners:
            attn.set_processor(listener)
        yield
    finally:
        for attn, processor in own:
            attn.set_processor(processor)


class _Listener:
    """An attention processor that hands queries and keys to `record`, then runs the layer's own processor."""

    def __init__(self, own: Callable, record: Callable, rows: slice, batch: int, grid: tuple[int, int]) -> None:
        self.own, self.record, self.rows, self.batch, self.grid = own, record, rows, batch, grid

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [B, N, D] or [B, D, h, w]
        encoder_hidden_states: Tensor | None = None,  # [B, L, E]
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        self.listen(attn, hidden_states, encoder_hidden_states, attention_mask)
        # As diffusers calls it. cross_attention_kwargs (IP-Adapter, GLIGEN) do not reach a recorded layer.
        return self.own(attn, hidden_states, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask)

    @torch.no_grad()
    def listen(self, attn: Attention, hidden: Tensor, text: Tensor | None, mask: Tensor | None) -> None:
        # The same steps as diffusers' attention processors, for the recorded rows only.
        rows = self.rows
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)
        if hidden.shape[0] != self.batch or hidden.shape[1] != math.prod(self.grid):
            raise ValueError(
                f"The probe was attached for a batch of {self.batch} and {self.grid[0]} x {self.grid[1]} cells in this "
                f"layer, but the network got a batch of {hidden.shape[0]} and {hidden.shape[1]} cells."
            )
        bias = None
        if mask is not None:
            length = (hidden if text is None else text).shape[1]
            bias = attn.prepare_attention_mask(mask, length, self.batch)  # [B * heads, 1 or N, L], added to the scores
            bias = bias.unflatten(0, (self.batch, attn.heads))[rows]
        hidden = hidden[rows]
        if attn.group_norm is not None:
            hidden = attn.group_norm(hidden.transpose(1, 2)).transpose(1, 2)
        if text is None:
            text = hidden
        else:
            text = text[rows]
            if attn.norm_cross:
                text = attn.norm_encoder_hidden_states(text)
        q, k = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # [R, heads, N or L, d]
            for projected in (attn.to_q(hidden), attn.to_k(text))  # pyright: ignore[reportOptionalCall]
        )
        if attn.norm_q is not None:
            q = attn.norm_q(q)
        if attn.norm_k is not None:
            k = attn.norm_k(k)
        self.record(q, k, bias, attn.scale, self.grid)


def _spread(
    c: Tensor,  # [R, K, h, w] fp32, already on the layer's grid
    q: Tensor,  # [R, heads, h * w, d]
    k: Tensor,  # [R, heads, h * w, d]
    scale: float,
) -> Tensor:  # [R, K, h, w] fp32: mean over heads of softmax(q k^T scale) c
    flat = c.flatten(2)  # [R, K, N]
    low = flat.amin(-1, keepdim=True)
    extent = flat.amax(-1, keepdim=True) - low
    stretched = (flat - low) / extent.clamp_min(torch.finfo(flat.dtype).tiny)
    heads, d = q.shape[1], q.shape[3]
    parts = []
    for part in stretched.split(d, dim=1):
        # Fused attention wants values as wide as the queries, channels last; else it falls back to an N x N matrix.
        v = F.pad(part.transpose(1, 2), (0, d - part.shape[1])).to(q.dtype).contiguous()  # [R, N, d]
        v = v[:, None].expand(-1, heads, -1, -1)
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)  # [R, heads, N, d]
        parts.append(out[..., : part.shape[1]].float().mean(1).transpose(1, 2))
    return (torch.cat(parts, 1) * extent + low).unflatten(-1, c.shape[-2:])


def _attention_layers(network: UNet2DConditionModel) -> list[tuple[Attention, int]]:
    """Every attention layer with its depth, the number of times that the latent's side was halved before it."""
    from diffusers.models.attention_processor import Attention

    layers, depth = [], 0
    for block in (*network.down_blocks, network.mid_block, *network.up_blocks):
        if block is None:  # KOALA-700M has no middle block
            continue
        layers += [(module, depth) for module in block.modules() if isinstance(module, Attention)]
        depth += getattr(block, "downsamplers", None) is not None
        depth -= getattr(block, "upsamplers", None) is not None
    return layers


def _grid(latent_size: tuple[int, int], depth: int) -> tuple[int, int]:
    height, width = latent_size
    return -(-height // 2**depth), -(-width // 2**depth)  # a strided convolution rounds odd sides up


def _nearest_depths(present: set[int], levels: Sequence[float]) -> set[int]:
    return {min(present, key=lambda depth: (abs(depth + math.log2(level)), depth)) for level in levels}


def _native_side(network: UNet2DConditionModel, latent_size: tuple[int, int]) -> int:
    side = network.config["sample_size"]
    if side is None:
        side = latent_size
    return side if isinstance(side, int) else min(side)


def _default_depth(present: set[int], native_side: int) -> int:
    return max((depth for depth in present if native_side / 2**depth >= _CELLS), default=min(present))


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:  # [R, K, h, w] -> [R, K, *size]
    return maps if maps.shape[-2:] == size else F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)


class SeveralProbes:
    """Probes with words and rows of their own, listening to one forward pass; collects their maps in order."""

    def __init__(self, probes: Sequence[AttentionProbe]) -> None:
        self.probes = tuple(probes)

    @contextmanager
    def attach(self, network: Any, batch: int, latent_size: tuple[int, int]) -> Iterator[None]:
        with ExitStack() as stack:
            for probe in self.probes:
                stack.enter_context(probe.attach(network, batch, latent_size))
            yield

    def collect(self) -> tuple[AttentionMaps, ...]:
        return tuple(probe.collect() for probe in self.probes)
