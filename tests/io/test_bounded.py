"""A reader in a process of its own: what it says comes back, and however it ends, here it is one sentence in time."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from sdsedit.errors import InputRefused
from sdsedit.io.bounded import read_apart
from tests.properties.rules import is_a_sentence

MEMORY = 2**30


def reading(reader: str, seconds: float = 60.0, memory: int = MEMORY) -> str:
    """The sentence that it ends in."""
    with pytest.raises(InputRefused) as refused:
        read_apart(f"tests.io.readers_that_fail:{reader}", b"data", {}, "a.ply", seconds, memory)
    is_a_sentence(str(refused.value))
    return str(refused.value)


@pytest.mark.parametrize("as_a_file", [False, True])
def test_a_line_and_then_bytes(tmp_path: Path, as_a_file: bool):
    (tmp_path / "a.bin").write_bytes(b"\x00\nbytes\xff" * 1000)
    with (tmp_path / "a.bin").open("rb") as file:
        source = file if as_a_file else file.read()
        said, answer = read_apart(
            "tests.io.readers_that_fail:echoes", source, {"word": "cat"}, "a.bin", 60, MEMORY, "simplify it"
        )
    with answer:
        assert said == {"word": "cat"} and answer.read() == b"\x00\nbytes\xff" * 1000


def test_a_refusal_is_passed_on_with_its_status():
    with pytest.raises(InputRefused) as refused:
        read_apart("tests.io.readers_that_fail:refuses", b"", {}, "a.ply", 60, MEMORY)
    assert str(refused.value) == "a.ply is of a kind that is not read." and refused.value.status == 415


@pytest.mark.parametrize("reader", ["crashes", "is_killed", "leaves", "errs", "never_ends_its_line", "says_nothing"])
def test_10_a_reader_that_dies(reader: str):
    if reader in ("crashes", "is_killed") and sys.platform == "win32":
        pytest.skip("Windows has no such signals")
    said = reading(reader)
    assert said == "a.ply cannot be read: reading it fails or needs over 1024 MiB of memory."


@pytest.mark.parametrize("reader", ["sleeps", "spins"])
def test_10_a_reader_that_hangs(reader: str):
    began = time.monotonic()
    assert reading(reader, seconds=1.5) == "a.ply takes longer than 1.5 seconds to read: make it smaller."
    assert time.monotonic() - began < 30


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to its memory")
def test_10_a_reader_that_grows():
    assert "needs over 512 MiB of memory" in reading("grows", memory=2**29)


@pytest.mark.skipif(sys.platform != "linux", reason="children are looked for in /proc")
def test_nothing_is_left_running():
    for reader in ("sleeps", "crashes"):
        reading(reader, seconds=1.5)
    tasks = Path("/proc/self/task")
    children = " ".join((task / "children").read_text() for task in tasks.iterdir()).split()
    lines = [Path(f"/proc/{child}/cmdline") for child in children]
    assert not [line for line in lines if line.exists() and b"readers_that_fail" in line.read_bytes()]
