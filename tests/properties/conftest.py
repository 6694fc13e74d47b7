"""Memory is watched while parsers read what is damaged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

MOST = 768 * 2**20  # bytes that this process may grow by in a test of small files; a picture may be of 64 megapixels
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """The peak of the resident memory, which Linux can be asked to forget."""
    try:
        _RESET.write_text("5")
    except OSError:  # no Linux, or one that does not allow it
        yield
        return
    before = _memory("VmRSS")
    yield
    assert _memory("VmHWM") - before < MOST, "a parser took more memory than any of these files is worth"
