"""Readers for test_bounded.py, which run in the child; each fails in its own real way, but for the first."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import BinaryIO

from sdsedit.errors import InputRefused


def echoes(source: BinaryIO, answer: BinaryIO, word: str) -> None:
    answer.write(b'{"word": "%s"}\n' % word.encode() + source.read())


def refuses(source: BinaryIO, answer: BinaryIO) -> None:
    raise InputRefused("a.ply is of a kind that is not read.", status=415)


def sleeps(source: BinaryIO, answer: BinaryIO) -> None:
    time.sleep(600)


def spins(source: BinaryIO, answer: BinaryIO) -> None:
    while True:
        pass


def grows(source: BinaryIO, answer: BinaryIO) -> None:
    held = []
    while True:
        held.append(bytearray(2**26))


def crashes(source: BinaryIO, answer: BinaryIO) -> None:
    ctypes.string_at(0)  # a segmentation fault


def is_killed(source: BinaryIO, answer: BinaryIO) -> None:
    answer.write(b"{}\n")
    answer.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def leaves(source: BinaryIO, answer: BinaryIO) -> None:
    os._exit(0)


def errs(source: BinaryIO, answer: BinaryIO) -> None:
    raise RuntimeError("/home/somebody/secret")


def never_ends_its_line(source: BinaryIO, answer: BinaryIO) -> None:
    answer.write(b'{"a": "' + b"x" * 2**25)


def says_nothing(source: BinaryIO, answer: BinaryIO) -> None:
    return
