"""What a person asks for: the request and its settings, checked in one place; the words and prompts made of them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from sdsedit.attention.words import Words, changed_words, find_words, removed_words
from sdsedit.errors import InputRefused, printable
from sdsedit.guidance import configured
from sdsedit.guidance.base import Guidance, Prompts
from sdsedit.prior.base import Prior

MAX_STEPS = 10_000
MAX_SIZE = 4096  # working side, pixels
MAX_FEATHER = 256  # pixels
MAX_PROMPT = 2_000  # characters
MAX_REFERENCES = 8  # pictures whose look is taken
MAX_STYLE_WEIGHT = 10.0
_ONE_OR_MORE = ("stride", "draws", "inversion", "rank", "patches")  # settings of methods; all others may be 0
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


@dataclass(frozen=True)
class Edit:
    """What to change."""

    target: str  # describes the edited picture
    source: str | None = None  # describes the picture as it is
    words: tuple[str, ...] | None = (
        None  # of the target or source prompt, whose place is edited; None: the changed words
    )
    mask: Tensor | None = (
        None  # [1, 1, H, W] in 0..1, 1 = may change, of the picture's own size; words then play no part
    )
    negative: str = ""  # what NFSD, CSD and SBP move away from; the other methods do not read it
    references: tuple[Tensor, ...] = ()  # [1, 3, H, W] fp32 in 0..1 each: pictures whose look the edit takes


@dataclass(frozen=True)
class EditConfig:
    """How to change it."""

    method: str | Guidance = "lusd"  # a name means the settings that suit the model; see guidance.configured
    steps: int | None = None  # 1 .. MAX_STEPS; None: the method's own
    seed: int = 0  # 0 .. 2^63 - 1
    feather: float = 3.0  # pixels of the picture, 0 .. MAX_FEATHER: the mask's soft edge, inside it
    strength: float = 1.0  # 0.1 .. 10, multiplies the method's step size
    refine: float | None = None  # 0 .. 1, the noise from which the place is redrawn, 0: not; None: what suits the model
    size: int | None = None  # working side in pixels, up to MAX_SIZE; None: the model's native side
    style_weight: float = 2.0  # 0 .. 10, of the references' pull, as a multiple of the method's own step


def words_to_find(
    prior: Prior, request: Edit, method: Guidance, notes: list[str]
) -> tuple[Words, Literal["target", "source"]]:
    """The words whose place is looked for, and the prompt that holds them."""
    nothing = Words((), (), (), "")
    if request.mask is not None:
        if request.words:
            notes.append("A mask was given, so the named words are not looked for.")
        return nothing, "target"
    if not method.localizes:
        if request.words:
            notes.append(f"{type(method).__name__} looks for no words; give a mask to say where, or use LUSD.")
        return nothing, "target"
    target, source = request.target, request.source or ""
    if request.words:
        try:
            return find_words(prior.tokenize, target, request.words), "target"
        except ValueError as error:
            try:
                return find_words(prior.tokenize, source, request.words), "source"
            except ValueError:
                raise InputRefused(printable(str(error), 500)) from None
    words = changed_words(prior.tokenize, source, target)
    removed = nothing if words.tokens else removed_words(prior.tokenize, source, target)
    if removed.tokens:
        gone = ", ".join(removed.text)
        notes.append(f"Words were only taken out, so the edit is looked for where the source has: {gone}.")
        return removed, "source"
    if words.note:
        notes.append(words.note)
    if not words.tokens:
        notes.append("Without a word to look for there is no mask: the whole picture may change.")
    return words, "target"


def encode_prompts(
    prior: Prior, request: Edit, tokens: tuple[int, ...], mask_from: Literal["target", "source"], notes: list[str]
) -> Prompts:
    source = request.source or ""
    for name, prompt in (("target", request.target), ("source", source), ("negative", request.negative)):
        cut = prior.tokenize(prompt).cut
        if cut:
            notes.append(
                f"The {name} prompt is longer than the model reads; these words were cut: {printable(cut, 500)}"
            )
    if not source.strip():
        notes.append("There is no source prompt, so the empty prompt stands for it.")
    elif source == request.target and not request.references:
        notes.append("The source and the target prompt are the same, so there is nothing to change.")
    text = prior.encode_text([request.target, source, "", request.negative])
    return Prompts(text[0], text[1], text[2], text[3], tokens, mask_from)


def check_request(request: Edit, config: EditConfig) -> None:
    """Refuse, with one sentence (InputRefused), what no model and no picture could make right; needs neither."""
    check_target(request.target)
    check_prompt("source prompt", request.source or "")
    check_prompt("negative prompt", request.negative)
    if request.words is not None:
        if isinstance(request.words, str) or not request.words:
            raise InputRefused("words must be one or more words of the prompt, or None for the words that changed.")
        for word in request.words:
            check_prompt("list of words", word)
    method = configured(config.method, config.strength)
    for each in fields(method):
        value = getattr(method, each.name)
        if not isinstance(value, str):
            check_number(each.name, value, 1 if each.name in _ONE_OR_MORE else 0, math.inf)
    if not 0 <= method.t_min < method.t_max <= 1:
        raise InputRefused(f"t_min and t_max must be 0 <= t_min < t_max <= 1; got {method.t_min} and {method.t_max}.")
    check_whole("steps", method.steps if config.steps is None else config.steps, 1, MAX_STEPS)
    check_whole("seed", config.seed, 0, 2**63 - 1)
    check_number("feather", config.feather, 0, MAX_FEATHER)
    check_number("style_weight", config.style_weight, 0, MAX_STYLE_WEIGHT)
    if config.refine is not None:
        check_number("refine", config.refine, 0, 1)
    if config.size is not None:
        check_whole("size", config.size, 1, MAX_SIZE)


def check_picture(image: Tensor, mask: Tensor | None, size: int | None, prior: Prior) -> None:
    if not isinstance(image, Tensor):
        raise InputRefused(f"The picture must be a float32 tensor [1, 3, H, W]; got {type(image).__name__}.")
    if image.dtype != torch.float32 or image.ndim != 4 or image.shape[:2] != (1, 3) or not image.numel():
        raise InputRefused(f"The picture must be a float32 tensor [1, 3, H, W]; got {image.dtype} {list(image.shape)}.")
    if not _within_unit(image):
        raise InputRefused("The picture's values must be numbers from 0 to 1.")
    if mask is not None:
        check_mask(mask, image)
    if size is not None:
        check_whole("size", size, prior.multiple, MAX_SIZE)


def check_references(references: Sequence[Tensor], prior: Prior) -> None:
    """Pictures whose look is taken. InputRefused."""
    if len(references) > MAX_REFERENCES:
        raise InputRefused(f"A style takes at most {MAX_REFERENCES} references; {len(references)} are given.")
    for picture in references:
        check_picture(picture, None, None, prior)


def check_target(text: str) -> None:
    check_prompt("target prompt", text)
    if not text.strip():
        raise InputRefused("The target prompt is empty; describe the picture as it should become.")


def check_prompt(name: str, text: str) -> None:
    if not isinstance(text, str):
        raise InputRefused(f"The {name} must be text; got {type(text).__name__}.")
    if len(text) > MAX_PROMPT:
        raise InputRefused(f"The {name} has {len(text)} characters; at most {MAX_PROMPT} are allowed.")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDI:
            code = f"U+{ord(character):04X}"
            raise InputRefused(f"The {name} has the control character {code}; write plain text on one line.")


def check_mask(mask: Tensor, image: Tensor) -> None:
    height, width = image.shape[-2:]
    if not isinstance(mask, Tensor) or mask.dtype != torch.float32:
        raise InputRefused("The mask must be a float32 tensor [1, 1, H, W], 1 where the picture may change.")
    if tuple(mask.shape) != (1, 1, height, width):
        size = f"{mask.shape[-1]}x{mask.shape[-2]}" if mask.ndim >= 2 else str(list(mask.shape))
        raise InputRefused(f"The mask is {size} and the picture {width}x{height}; give a mask of the picture's size.")
    if not _within_unit(mask):
        raise InputRefused("The mask's values must be numbers from 0 to 1.")
    if not mask.any():
        raise InputRefused("The mask is empty, so nothing may change; paint the place to edit.")
    if mask.min() == 1:
        raise InputRefused("The mask covers the whole picture; paint only the place to edit, or give no mask.")


def _within_unit(values: Tensor) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())  # not a number is neither


def check_number(name: str, value: float, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        allowed = f"from {low} to {high}" if high < math.inf else f"of {low} or more"
        raise InputRefused(f"{name} is {printable(str(value), 40)}; it must be a number {allowed}.")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InputRefused(f"{name} is {printable(str(value), 40)}; it must be a whole number from {low} to {high}.")
