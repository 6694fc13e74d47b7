"""Readers in a process of their own, that may be killed: for files of strangers.

A reader that hangs, dies or grows does so there; here it is one sentence. The child gets the opened file as its
standard input and no name of any file, a deadline, and caps on its memory and processor time (on Windows the deadline
alone; macOS holds only some of them). Its answer is a line of JSON and then bytes: nothing that runs when it is read.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from typing import Any, BinaryIO

from sdsedit.errors import InputRefused

_MAX_LINE = 16 * 2**20  # bytes of JSON that are believed


def read_apart(
    reader: str,  # "package.module:function", called as function(source, answer, **given)
    source: BinaryIO | bytes,  # an open file at its beginning, or what the child reads instead
    given: Mapping[str, Any],  # as JSON has it
    name: str,  # of the file, for people
    seconds: float,
    memory: int,  # bytes of address space
    advice: str = "make it smaller",
) -> tuple[dict[str, Any], BinaryIO]:
    """The line of JSON that `reader` wrote, and a file at the first of the bytes after it, to be closed.

    Raises `InputRefused`: the reader did, or it did not end in time, or it ended in another way than by returning.
    """
    code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from sdsedit.io import bounded; bounded._child()"
    task = {"reader": reader, "given": dict(given), "seconds": math.ceil(seconds) + 1, "memory": memory}
    paths = json.dumps([path or os.getcwd() for path in sys.path])
    answer = _scratch()
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-c", code, paths, json.dumps(task)],
            stdout=answer,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # each thread maps memory
            input=source if isinstance(source, bytes) else None,
            stdin=None if isinstance(source, bytes) else source,
        )
        answer.seek(0)
        line = answer.readline(_MAX_LINE)
        if child.returncode or not line.endswith(b"\n"):
            most = f"{memory / 2**20:.0f} MiB of memory"
            raise InputRefused(f"{name} cannot be read: reading it fails or needs over {most}.")
        said = json.loads(line)
        if "refused" in said:
            raise InputRefused(said["refused"], said["status"])
    except subprocess.TimeoutExpired:
        answer.close()
        raise InputRefused(f"{name} takes longer than {seconds:g} seconds to read: {advice}.") from None
    except BaseException:
        answer.close()
        raise
    return said, answer


def _scratch() -> BinaryIO:
    """A file without a name: in memory where the system has such files."""
    if sys.platform == "linux":
        return open(os.memfd_create("sdsedit"), "w+b")
    return tempfile.TemporaryFile()  # pyright: ignore[reportReturnType]  # it is a wrapped BinaryIO on Windows


def _child() -> None:
    """The other side of `read_apart`."""
    task = json.loads(sys.argv[2])
    if sys.platform != "win32":
        import resource

        for kind, most in ((resource.RLIMIT_AS, task["memory"]), (resource.RLIMIT_CPU, task["seconds"])):
            hard = resource.getrlimit(kind)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with contextlib.suppress(ValueError, OSError):  # macOS knows the names, and refuses some of them
                resource.setrlimit(kind, (most, most))
    module, _, function = task["reader"].partition(":")
    with open(0, "rb", closefd=False) as source, open(1, "wb", closefd=False) as answer:
        try:
            getattr(import_module(module), function)(source, answer, **task["given"])
        except InputRefused as refusal:
            answer.write(json.dumps({"refused": str(refusal), "status": refusal.status}).encode() + b"\n")
