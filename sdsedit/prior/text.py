"""Prompts as tokens, whichever tokenizer reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from sdsedit.prior.base import Tokens

_KEPT = 64  # encoded prompts
T = TypeVar("T")


def encoded(texts: dict[str, T], prompts: Sequence[str], encode: Callable[[str], T]) -> list[T]:
    """A row for each prompt, never with autograd; `texts` remembers the recent ones. ValueError: no list of prompts."""
    if isinstance(prompts, str) or not prompts:
        raise ValueError("encode_text needs a list of one or more prompts.")
    for prompt in prompts:
        # A prompt that was encoded under inference mode must also serve a caller that uses autograd.
        with torch.inference_mode(False), torch.no_grad():
            row = texts.pop(prompt, None) or encode(prompt)
        texts[prompt] = row  # the most recent is last
    rows = [texts[prompt] for prompt in prompts]
    while len(texts) > _KEPT:
        del texts[next(iter(texts))]
    return rows


def read(tokenizer: Any, prompt: str, length: int) -> Tokens:
    """A prompt as a fast tokenizer reads it into `length` places, with the characters that each token stands for.

    Tokens of one character (the bytes of an emoji) share it.
    """
    padded = tokenizer(prompt, padding="max_length", truncation=True, max_length=length, return_offsets_mapping=True)
    every = tokenizer(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    cut = ""
    if len(every) > length:
        first = every[length - 1][0]  # where reading stopped: the last place is the end token's
        head = re.split(r"\s", prompt[:first])[-1]  # a word that is read in part has not been read
        cut = prompt[first - len(head) :].strip()
    return Tokens(tuple(padded["input_ids"]), tuple((int(a), int(b)) for a, b in padded["offset_mapping"]), cut)


def blank(length: int) -> Tokens:
    """The places of a text encoder that is not there."""
    return Tokens((0,) * length, ((0, 0),) * length, "")
