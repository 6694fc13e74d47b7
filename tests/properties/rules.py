"""What every parser of somebody's file is held to: it reads, or it refuses with one sentence; in bounded memory.

CI runs EXAMPLES of each property, always the same ones. For a longer look, with examples that differ every time:

    PROPERTY_EXAMPLES=5000 python -m pytest tests/properties
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from sdsedit.errors import InputRefused

Read = TypeVar("Read")

_ASKED = os.environ.get("PROPERTY_EXAMPLES")
EXAMPLES = int(_ASKED or 50)


def examples(share: float = 1.0) -> settings:
    """A share of EXAMPLES; without a deadline, for machines differ."""
    return settings(
        max_examples=max(5, round(share * EXAMPLES)),
        deadline=None,
        derandomize=_ASKED is None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def is_a_sentence(said: str, folder: Path | None = None) -> None:
    """One line for a person: no control characters, no folders, no traceback, not endless."""
    assert 10 <= len(said) <= 600, said
    assert said.rstrip().endswith((".", ")", "?")), said
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in said), repr(said)
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", said), repr(said)
    assert "Traceback" not in said and "object at 0x" not in said and "<class" not in said, said
    assert folder is None or str(folder) not in said, said


def read_or_refused(read: Callable[[], Read], folder: Path | None = None) -> Read | None:
    """What was read; None if it was refused as it should be. Any other exception is a fault of the parser."""
    try:
        return read()
    except InputRefused as refused:
        is_a_sentence(str(refused), folder)
        assert refused.status in (413, 415, 422)
        return None


_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)
_WIDE = [number.to_bytes(width, order) for number in _NUMBERS for width in (4, 8) for order in ("little", "big")]
_FLOATS = [bytes.fromhex(word) for word in ("0000c07f", "0000807f", "000080ff", "ffff7f7f", "000000000000f87f")]


@st.composite
def damaged(draw: st.DrawFn, whole: bytes, words: Sequence[bytes] = (), most: int = 4, head: int = 0) -> bytes:
    """A file with up to `most` things done to it: pieces written over, put in, taken out, doubled; its end cut off.

    words: what its kind of file is sensitive to. head: the first bytes, where half of it happens.
    """
    data = bytearray(whole)
    pieces = st.binary(min_size=1, max_size=6) | st.sampled_from(_WIDE + _FLOATS)
    pieces = pieces | st.sampled_from(list(words)) if words else pieces
    for _ in range(draw(st.integers(0, most))):
        if not data:
            break
        reach = min(head, len(data)) if head and draw(st.booleans()) else len(data)
        at, how = draw(st.integers(0, reach - 1)), draw(st.integers(0, 4))
        if how == 0:
            piece = draw(pieces)
            data[at : at + len(piece)] = piece
        elif how == 1:
            data[at:at] = draw(pieces)
        elif how == 2:
            del data[at : at + draw(st.integers(1, 64))]
        elif how == 3:
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            data[at] ^= draw(st.integers(1, 255))
    end = draw(st.none() | st.integers(0, len(data)))
    return bytes(data[:end])


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["", "\x00", "\u202e", "../x", "a" * 300, 1e308, -1, 2**63, 2**64]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def changed(draw: st.DrawFn, value: object) -> object:
    """JSON with one to three places in it changed, added, or taken out."""
    for _ in range(draw(st.integers(1, 3))):
        value = _with_one_change(draw, value)
    return value


def _with_one_change(draw: st.DrawFn, value: object) -> object:
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value)))
        what = draw(st.integers(0, 7))
        if what == 0:
            return {name: each for name, each in value.items() if name != key}
        if what == 1:
            return {**value, draw(st.text(max_size=8)): draw(JSON)}
        return {**value, key: _with_one_change(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(value) - 1))
        what = draw(st.integers(0, 7))
        if what == 0:
            return value[:at] + value[at + 1 :]
        if what == 1:
            return [*value[:at], value[at], *value[at:]]
        return [*value[:at], _with_one_change(draw, value[at]), *value[at + 1 :]]
    return draw(JSON)
