"""A page that is really served: `python app.py` in a process of its own, with the built-in model."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def answers(url: str) -> int:
    """The HTTP status of a page, 0 if nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def start(port: int, *arguments: str, stderr: Any = None, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port), *(arguments or ["--no-history"])],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )


def until(url: str, status: int, seconds: float) -> float:
    """Wait for a status; how long it took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if answers(url) == status:
            return time.monotonic() - began
        time.sleep(0.1)
    raise AssertionError(f"{url} did not answer {status} within {seconds} s")


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page whose model is ready."""
    if find_spec("gradio") is None:
        pytest.skip("the page needs gradio: pip install -c constraints.txt -e '.[web]'")
    if os.environ.get("DEVPAGE"):
        yield os.environ["DEVPAGE"]
        return
    port = free_port()
    server = start(port, "--history", str(tmp_path_factory.mktemp("history")))
    try:
        until(f"http://127.0.0.1:{port}/readyz", 200, 180)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(45)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
