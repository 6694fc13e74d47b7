"""How a run ends: the exit codes, the refusal of an input, and the one sentence a person reads."""

from __future__ import annotations

import re
import unicodedata

OK = 0
INTERNAL = 1
USAGE = 2  # a wrong argument, a file that cannot be used
SOME_FAILED = 3
ALL_FAILED = 4  # the job itself failed: the disk filled up, the gradient stopped being finite
MODEL_MISSING = 5
OUT_OF_MEMORY = 6
INTERRUPTED = 130  # SIGINT
TERMINATED = 143  # SIGTERM


class InputRefused(ValueError):
    """A file or value that a person gave cannot be used.

    The message is one sentence for that person: what was wrong and what is allowed, with file names and no folders.
    `status` is the HTTP status that says the same: 413 too large, 415 a kind that is not read, 422 anything else.
    """

    def __init__(self, message: str, status: int = 422):
        super().__init__(message)
        self.status = status


class OutOfMemory(MemoryError):
    """Memory ran out, and nothing that was tried against it helped; the message is one sentence for a person."""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in the machine or on its GPU. By name and words: this must not import torch, whose CPU
    and libraries have no class of their own for it."""
    if isinstance(error, MemoryError) or "OutOfMemoryError" in {cls.__name__ for cls in type(error).__mro__}:
        return True
    said = str(error)
    signs = ("DefaultCPUAllocator", "not enough memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in said for sign in signs)


def printable(text: str, limit: int = 200) -> str:
    """`text` on one line, at most `limit` characters, with control and bidirectional characters written as escapes."""
    shown = "".join(
        character if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text[:limit]
    )  # fmt: skip
    return shown + "..." if len(text) > limit else shown


_PATH = re.compile(r"(?<![\w.~\-/:])(?:[A-Za-z]:[\\/]|[\\/])(?:[^\\/\s'\":,;]+[\\/])+(?=[^\\/\s'\":,;])")


def one_sentence(error: BaseException) -> str:
    """An error as one printable line without folders: `/home/me/cat.png` becomes `cat.png`.

    For an `OSError` this is what the system said and the file's name; other errors keep their own words.
    """
    if isinstance(error, OSError) and error.strerror:
        name = re.split(r"[\\/]", str(error.filename))[-1] if error.filename else ""
        return printable(f"{error.strerror}: {name}" if name else error.strerror, 500)
    text = " ".join(str(error).split()) or type(error).__name__
    return printable(_PATH.sub("", text), 1000)
