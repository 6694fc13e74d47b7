"""The tools at /mcp through the real client of the protocol, against the served page."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.web.conftest import ROOT, free_port, start, until

CAT = base64.b64encode((ROOT / "assets/examples/cat.png").read_bytes()).decode()


def test_without_its_extra_the_option_says_what_to_install():
    if find_spec("mcp") is not None:
        pytest.skip("the mcp package is here, so nothing is missing")
    done = subprocess.run([sys.executable, "app.py", "--mcp"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "app.py: --mcp needs its extra: pip install -c constraints.txt -e '.[mcp]'.\n"


@pytest.mark.skipif(find_spec("mcp") is None, reason="the tools need: pip install -c constraints.txt -e '.[mcp]'")
def test_edit_look_and_be_refused(tmp_path: Path):
    from mcp import Client

    port = free_port()
    server = start(port, "--mcp", "--history", str(tmp_path))
    url = f"http://127.0.0.1:{port}/mcp"

    async def talk() -> tuple[list[str], list[Any]]:
        async with Client(url) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            said: list[Any] = []
            for tool, values in [
                ("edit_picture", {"picture": CAT, "source": "a cat on grass", "target": "a cat wearing a crown"}),
                ("heat_map", {"picture": CAT, "prompt": "a cat on grass", "words": "grass"}),
                ("edit_picture", {"picture": "http://127.0.0.1:9/cat.png", "target": "a cat"}),
                ("edit_picture", {"picture": CAT, "target": ""}),
            ]:
                said.append(await client.call_tool(tool, values))
            return names, said

    try:
        until(f"http://127.0.0.1:{port}/readyz", 200, 180)
        names, (edited, heat, address, empty) = asyncio.run(talk())
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(45)
    assert names == ["edit_picture", "heat_map"]
    picture, recipe = edited.content
    assert Image.open(io.BytesIO(base64.b64decode(picture.data))).size == (128, 128)
    assert json.loads(recipe.text)["target"] == "a cat wearing a crown"
    assert Image.open(io.BytesIO(base64.b64decode(heat.content[0].data))).size == (128, 128)
    assert address.is_error and "never read" in address.content[0].text
    assert empty.is_error and "The target prompt is empty" in empty.content[0].text
    assert os.listdir(tmp_path)  # what was made is in the history
