"""Which words of a prompt an edit is about, and which text tokens those words are.

The words of the two prompts are aligned by a sequence diff (Ratcliff and Obershelp, Python's difflib): a word is new
if the diff inserts or replaces it, at its place, so that the second "cat" of "a cat and a cat" can be new. Words are
found in the characters of the prompt and mapped to tokens by the tokenizer's character offsets, never by counting
words. LUSD, arXiv:2503.11054, asks for the nouns that only the target prompt has; we use no part-of-speech tagger,
but three rules:

1. Small words (articles, prepositions, pronouns, auxiliaries, "wearing", "with", the "top" of "on top of") and
   numbers are never looked for.
2. Every other new word is, adjectives too: "a cat" -> "a blue cat" looks for "blue".
3. A new word that describes a word that stayed brings that word in: "a cat on grass" -> "a blue cat on grass" looks
   for "blue" and "cat", because the whole cat is to change. A word describes what follows it if it is a known colour,
   material, pattern, size, age or number (MODIFIERS, NUMBERS), or if it was put directly before a word that stayed
   and replaced no more than such words ("a grumpy cat"). The described word is the first one after it that is not in
   those lists; a small word, punctuation or the prompt's end before it means that there is none ("a cat in red").

Compared are the words that the model reads: what a long prompt has past the last token plays no part.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdsedit.prior.base import Tokens

_SMALL = """
a an the this that these those some any no not every each all both either neither another other such
one i me my you your he him his she her hers it its we us our they them their who whom whose which what there here
and or but nor so yet if than then as while when where
of in on at by to from for with without within into onto out off up down over under above below beneath beside besides
between behind before after near next around across along against among through toward towards inside outside upon
about like via
is are am was were be been being isn't aren't do does did has have had having
can could will would shall should may might must
wearing wears holding holds carrying carries featuring showing containing made very too just only also
"""
_COUNTING = "two three four five six seven eight nine ten eleven twelve many several few couple pair dozen single"
_DESCRIBING = """
red orange yellow green blue purple violet pink brown black white gray grey beige cyan magenta turquoise teal indigo
maroon crimson scarlet lavender lilac olive navy gold golden silver silvery bronze copper blonde blond ginger tan cream
ivory rainbow colourful colorful multicolored multicoloured dark light bright pale deep vivid pastel neon
wood wooden stone brick metal metallic steel iron glass plastic paper leather marble concrete ceramic porcelain
velvet silk wool woolen cotton denim clay crystal rubber straw knitted
striped spotted dotted checkered chequered plaid patterned plain floral furry fluffy shiny glossy matte
rusty transparent
big small large little tiny huge giant tall short long wide narrow thick thin fat slim round square
old young new ancient modern vintage
"""
SMALL_WORDS = frozenset(_SMALL.split())
NUMBERS = frozenset(_COUNTING.split())
MODIFIERS = frozenset(_DESCRIBING.split())
PLACES = frozenset(["front", "top", "bottom", "back", "side", "middle", "left", "right"])  # small only before "of"
_CUTS = re.compile(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+", re.IGNORECASE)
_PLACE = re.compile(r"\s(?:on|in|at|under|above|against|inside|before|by)\s.*", re.IGNORECASE | re.DOTALL)
_NONE = "so there is no word to look for."
_JOINERS = "-'\u2010\u2011\u2019"  # hyphens and apostrophes: inside a word only between two of its characters


@dataclass(frozen=True)
class Words:
    """Words of one prompt, in the prompt's order."""

    text: tuple[str, ...]  # as written in the prompt; one entry a word, or a phrase that a person named
    spans: tuple[tuple[int, int], ...]  # (start, end) characters of each entry in the prompt
    tokens: tuple[int, ...]  # positions of all entries' tokens in the text sequence, ascending; 0 is the start token
    note: str  # for the person: why there are no words, or more than the new ones; "" if there is nothing to say


def changed_words(tokenize: Callable[[str], Tokens], source: str | None, target: str) -> Words:
    """The words that an edit from `source` to `target` puts in; positions are in `target`.

    Without a source prompt (None, or one without words) all of the target's words are taken, but for small ones. That
    no word is found is no error: `note` says why.
    """
    if source is None or not _split(source):
        prompt = _Prompt(tokenize, target)
        every = [i for i, small in enumerate(prompt.small) if not small]
        note = "There is no source prompt, so every word of the target prompt is looked for."
        return prompt.select(every, note if every else "The target prompt has no word to look for.")
    none = f"The target prompt has no word that the source prompt lacks, {_NONE}"
    return _difference(_Prompt(tokenize, source), _Prompt(tokenize, target), none)


def removed_words(tokenize: Callable[[str], Tokens], source: str | None, target: str) -> Words:
    """The words that an edit from `source` to `target` takes out, with positions in `source`; the roles are swapped."""
    if source is None or not _split(source):
        return Words((), (), (), "There is no source prompt, so no word was taken out of it.")
    none = f"The source prompt has no word that the target prompt lacks, {_NONE}"
    return _difference(_Prompt(tokenize, target), _Prompt(tokenize, source), none)


def find_words(tokenize: Callable[[str], Tokens], prompt: str, names: Sequence[str]) -> Words:
    """The words that a person named, such as ["crown", "top hat"], wherever they stand in the prompt, in any case.

    Raises ValueError if no word is named, or a named one is not in the prompt or past the part that the model reads.
    """
    read = _Prompt(tokenize, prompt)
    found: set[tuple[int, int]] = set()
    if not names:
        raise ValueError("No word was named; name at least one word of the prompt.")
    for name in names:
        keys = [_key(name[start:end]) for start, end in _split(name)]
        if not keys:
            raise ValueError(f"{name!r} is not a word; name words of the prompt: {_examples(read)}.")
        places = [i for i in range(len(read.keys) - len(keys) + 1) if read.keys[i : i + len(keys)] == keys]
        if not places:
            all_keys = [_key(prompt[start:end]) for start, end in _split(prompt)]
            if any(all_keys[i : i + len(keys)] == keys for i in range(len(all_keys))):
                raise ValueError(f"'{name}' is past the part of the prompt that the model reads; move it forward.")
            raise ValueError(f"'{name}' is not in the prompt; its words are: {_examples(read)}.")
        found |= {(read.spans[i][0], read.spans[i + len(keys) - 1][1]) for i in places}
    return read.words(sorted(found), "")


def clause(prompt: str, spans: Sequence[tuple[int, int]]) -> str:
    """What a prompt says of the words at `spans`, and of the place: for a view that shows little else.

    The prompt is cut at commas and at "and"; of the pieces those that hold a span are kept, and from the last piece
    what begins with a preposition of place. `an apple wearing a crown, a pear and a cup on a wooden table`, asked for
    `crown`, gives `an apple wearing a crown on a wooden table`; asked for `wooden`, `a wooden table`. Without a span
    all of it is kept.
    """
    if not spans:
        return prompt
    cuts = [(0, 0), *(match.span() for match in _CUTS.finditer(prompt)), (len(prompt), len(prompt))]
    pieces = [(a[1], b[0]) for a, b in pairwise(cuts)]
    kept = [any(start < stop and end > first for start, end in spans) for first, stop in pieces]
    text = ", ".join(prompt[first:stop].strip() for (first, stop), keep in zip(pieces, kept, strict=True) if keep)
    place = _PLACE.search(prompt[slice(*pieces[-1])])
    if place and all(start >= pieces[-1][0] + place.start() for start, _ in spans):
        return place.group().split(maxsplit=1)[1]  # it is about the place itself
    if place and not kept[-1]:
        text += " " + place.group().strip()
    return text or prompt


def one_clause(between: str) -> bool:
    """Whether words with this text between them stand in one clause."""
    return _CUTS.search(between) is None


class _Prompt:
    """The words of a prompt that the model reads."""

    def __init__(self, tokenize: Callable[[str], Tokens], text: str) -> None:
        self.text = text
        self.offsets = tokenize(text).offsets
        end = max((stop for _, stop in self.offsets), default=0)
        self.spans = [span for span in _split(text) if span[0] < end]
        self.keys = [_key(text[start:stop]) for start, stop in self.spans]
        self.small = [
            key in SMALL_WORDS or _is_number(key) or (key in PLACES and following == "of")
            for key, following in zip(self.keys, [*self.keys[1:], ""], strict=False)  # a prompt may have no words
        ]

    def described_by(self, i: int) -> int | None:
        """The word that word i stands before as an adjective does, None if there is none in its phrase."""
        for j in range(i + 1, len(self.keys)):
            between = self.text[self.spans[j - 1][1] : self.spans[j][0]]
            if not between.isspace() or self.keys[j] in SMALL_WORDS:
                return None
            if not _is_modifier(self.keys[j]):
                return j
        return None

    def select(self, indices: Sequence[int], note: str) -> Words:
        return self.words([self.spans[i] for i in indices], note)

    def words(self, spans: Sequence[tuple[int, int]], note: str) -> Words:
        tokens = (
            position
            for position, (start, stop) in enumerate(self.offsets)
            if any(start < span_stop and stop > span_start for span_start, span_stop in spans)
        )
        return Words(tuple(self.text[start:stop] for start, stop in spans), tuple(spans), tuple(tokens), note)


def _difference(other: _Prompt, prompt: _Prompt, none: str) -> Words:
    """The words of `prompt` that `other` lacks, by the rules above. none: the note if only `other` has new ones."""
    new: list[int] = []
    describing: list[int] = []
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, other.keys, prompt.keys, autojunk=False).get_opcodes():
        if kind not in ("insert", "replace"):
            continue
        new += range(j1, j2)
        replaced_no_noun = all(other.small[i] or _is_modifier(other.keys[i]) for i in range(i1, i2))
        for j in range(j1, j2):
            described = prompt.described_by(j)
            before_stayed = replaced_no_noun and not prompt.small[j] and described is not None and described >= j2
            if _is_modifier(prompt.keys[j]) or before_stayed:
                describing.append(j)
    chosen = {j for j in new if not prompt.small[j]}
    # A diff may take a word that only moved for a new one: "a pear" of "an apple, a pear and a cup" when the cup goes.
    here, there = Counter(prompt.keys), Counter(other.keys)
    if sorted(prompt.keys) != sorted(other.keys):
        chosen = {j for j in chosen if _is_modifier(prompt.keys[j]) or here[prompt.keys[j]] > there[prompt.keys[j]]}
    notes = []
    for j in describing:
        described = prompt.described_by(j)
        if described is not None and described not in chosen:
            chosen.add(described)
            adjective, noun = (prompt.text[slice(*prompt.spans[k])] for k in (j, described))
            notes.append(f"'{adjective}' describes '{noun}', so '{noun}' is looked for too.")
    if not chosen:
        if new:
            notes.append(f"Only small words or numbers differ between the prompts, {_NONE}")
        elif other.keys == prompt.keys:
            notes.append(f"The two prompts have the same words as far as the model reads them, {_NONE}")
        else:
            notes.append(none)
    return prompt.select(sorted(chosen), " ".join(notes))


def _split(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word: letters, digits, marks and pictographs, and hyphens and apostrophes between them."""
    inside = [unicodedata.category(c)[0] in "LMN" or unicodedata.category(c) == "So" or c == "\u200d" for c in text]
    for i in range(1, len(text) - 1):
        inside[i] = inside[i] or (text[i] in _JOINERS and inside[i - 1] and inside[i + 1])
    spans, start = [], None
    for i, within in enumerate([*inside, False]):
        if within and start is None:
            start = i
        elif not within and start is not None:
            spans.append((start, i))
            start = None
    return spans


def _key(word: str) -> str:
    """Equal for equal words: no capitals or possessive 's, accents composed, one kind of hyphen and of apostrophe."""
    plain = word.translate({0x2019: "'", 0x2010: "-", 0x2011: "-"})
    return unicodedata.normalize("NFC", plain.casefold()).removesuffix("'s")


def names_a_thing(words: Sequence[str]) -> bool:
    """Whether one of the words stands for a thing, and not for a colour, a material, a size, an age or a number."""
    return any(not _is_modifier(_key(word)) for word in words)


def _is_number(key: str) -> bool:
    return key in NUMBERS or key.isnumeric()


def _is_modifier(key: str) -> bool:
    return _is_number(key) or any(part in MODIFIERS for part in key.split("-"))  # "long-haired" too


def _examples(prompt: _Prompt) -> str:
    words = [
        prompt.text[start:stop] for (start, stop), small in zip(prompt.spans, prompt.small, strict=True) if not small
    ]
    shown = list(dict.fromkeys(words))[:20]
    return ", ".join(shown) if shown else "none"
