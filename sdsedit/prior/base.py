"""What a frozen text-to-image model offers to everything above it, whichever model it is.

A prior predicts the noise eps of a noised latent, in fp32, without classifier-free guidance and without randomness.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from sdsedit.schedule import Schedule


@dataclass(frozen=True)
class Tokens:
    """A prompt as its model reads it, start, end and padding included: L tokens."""

    ids: tuple[int, ...]  # L
    offsets: tuple[tuple[int, int], ...]  # L of (start, end) characters; (0, 0): start, end, padding
    cut: str  # the words that did not fit, as the person wrote them; "" if all did


@dataclass(frozen=True)
class Text:
    """Encoded prompts, a row each."""

    prompts: tuple[str, ...]  # B
    embeds: Tensor  # [B, L, D]
    pooled: Tensor | None  # [B, P], the summary that SDXL, SD3 and FLUX read beside the tokens
    guidance: Tensor | None = None  # [B] fp32, what a guidance-distilled model (FLUX.1 dev) is told, else None

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, rows: slice | int) -> Text:
        """Some rows, always as a batch: `text[1]` has one row."""
        if isinstance(rows, int):
            rows = range(len(self))[rows]  # an IndexError, and negative numbers from the end
            rows = slice(rows, rows + 1)
        pooled, guidance = (each if each is None else each[rows] for each in (self.pooled, self.guidance))
        return Text(self.prompts[rows], self.embeds[rows], pooled, guidance)

    def guided(self, scale: float) -> Text:
        """The same rows for another distilled guidance, a setting of its own: it is no CFG scale and takes no second
        forward pass. ValueError: the model was not distilled so."""
        if self.guidance is None:
            raise ValueError("This text's model takes no distilled guidance.")
        return replace(self, guidance=torch.full_like(self.guidance, scale))

    def repeat(self, n: int) -> Text:
        """The whole batch n times over: rows 0..B-1, 0..B-1, ..."""
        return Text.cat(*[self] * n)

    @staticmethod
    def cat(*texts: Text) -> Text:
        """The rows of several texts of one model, one after the other."""
        pooled = [text.pooled for text in texts if text.pooled is not None]
        guidance = [text.guidance for text in texts if text.guidance is not None]
        if not texts or any(len(part) not in (0, len(texts)) for part in (pooled, guidance)):
            raise ValueError("Text.cat needs one or more texts of the same model.")
        return Text(
            tuple(prompt for text in texts for prompt in text.prompts),
            torch.cat([text.embeds for text in texts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(guidance) if guidance else None,
        )


@dataclass(frozen=True)
class Prediction:
    """What one forward pass said."""

    eps: Tensor  # [B, C, h, w] fp32
    maps: Any  # what the probe collected; None without a probe


class Probe(Protocol):
    """Something that takes part in one forward pass of the network. All but those that say so listen, and change
    nothing of its output."""

    def attach(self, network: Any, batch: int, latent_size: tuple[int, int]) -> AbstractContextManager[None]: ...

    def collect(self) -> Any: ...


class Prior(Protocol):
    """A frozen text-to-image model. Where autograd is on, it passes through encode, decode and predict."""

    name: str
    schedule: Schedule
    device: torch.device
    dtype: torch.dtype  # of the network's weights; what goes in and out is fp32
    channels: int  # of a latent
    factor: int  # pixels a latent cell, along a side
    multiple: int  # a picture's sides must be multiples of this many pixels
    native: int  # side in pixels of the pictures that the model was trained on
    editing: Mapping[str, Mapping[str, Any]]  # method name -> settings that suit this model; empty: the methods' own
    max_tokens: int  # L, start and end tokens included

    def tokenize(self, prompt: str) -> Tokens: ...

    def encode_text(self, prompts: Sequence[str]) -> Text: ...

    def encode(self, image: Tensor) -> Tensor: ...  # [B, 3, H, W] 0..1 -> [B, C, H / factor, W / factor] fp32

    def encoder_features(self, image: Tensor) -> tuple[Tensor, ...]: ...  # [B, C_l, H_l, W_l] each, fine to coarse

    def network_features(self, z_t: Tensor, t: Tensor, text: Text) -> tuple[Tensor, ...]: ...  # coarse to fine

    def decode(self, z: Tensor) -> Tensor: ...  # [B, C, h, w] -> [B, 3, h factor, w factor] fp32 in 0..1

    def predict(
        self,
        z_t: Tensor,  # [B, C, h, w] fp32
        t: Tensor,  # [B] or [1] in 0..1
        text: Text,  # B rows, or one row for all
        probe: Probe | None = None,
    ) -> Prediction: ...


def cfg(eps_uncond: Tensor, eps_cond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, arXiv:2207.12598: uncond + scale (cond - uncond), so scale 1 is the conditional one."""
    return eps_uncond + scale * (eps_cond - eps_uncond)
