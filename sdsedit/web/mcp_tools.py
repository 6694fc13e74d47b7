"""Tools for language models at /mcp (`python app.py --mcp`), over the Model Context Protocol's streamable HTTP.

Gradio has an MCP server of its own; it takes files as addresses and fetches them, and this page fetches nothing. So
pictures come in as base64 here, and the tools are the functions of the API.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdsedit._version import __version__
from sdsedit.errors import InputRefused
from sdsedit.web.settings import Settings

if TYPE_CHECKING:
    from mcp.server import MCPServer

    from sdsedit.web.image_tab import ImageTab

PATH = "/mcp"
PERSON = "mcp"  # all of them share one place in the line


def tools(image: ImageTab, settings: Settings) -> MCPServer:
    """The server; `streamable_http_app(streamable_http_path=PATH)` gives its route."""
    from mcp.server import MCPServer
    from mcp.server.mcpserver import Image
    from mcp.server.mcpserver.exceptions import ToolError

    server: MCPServer = MCPServer("sdsedit", version=__version__, log_level="ERROR")

    # What a model is told of a tool is its docstring; what it may give is its signature.

    @server.tool(structured_output=False)
    async def edit_picture(
        picture: str, target: str, source: str = "", words: str = "", mask: str = "", method: str = "lusd",
        strength: float = 1.0, seed: int = 0,
    ) -> list[Any]:  # fmt: skip
        """Edit a picture with words; what should not change stays, bit for bit.

        picture: a PNG, JPEG, WebP, BMP, TIFF or GIF file as base64. target: what it should show, such as "a cat wearing
        a crown on grass". source: what it shows now, such as "a cat on grass". words: whose place is edited, between
        commas; empty: those that only target has. mask: a picture of the same size as base64, white where it may
        change. method: lusd, dds, pds, ssd, sds, sbp, nfsd or csd. strength: 0.1 to 10.
        Gives the edited picture as PNG and its recipe as JSON.
        """
        try:
            given = _file(settings, "picture", picture)
            drawn = _file(settings, "mask", mask) if mask else None
            path, recipe = await image.edit_picture(PERSON, given, source, target, words, drawn, method, strength, seed)
        except InputRefused as error:
            raise ToolError(str(error)) from None
        return [Image(data=Path(path).read_bytes(), format="png"), json.dumps(recipe)]

    @server.tool(structured_output=False)
    async def heat_map(picture: str, prompt: str, words: str) -> Any:
        """Where the model sees words in a picture: a PNG of the heat-map over it.

        picture: a picture file as base64. prompt: a description that holds the words. words: of the prompt, between
        commas.
        """
        try:
            path = await image.heat_map(PERSON, _file(settings, "picture", picture), prompt, words)
        except InputRefused as error:
            raise ToolError(str(error)) from None
        return Image(data=Path(path).read_bytes(), format="png")

    return server


def _file(settings: Settings, name: str, data: str) -> str:
    """What was given as base64, as a file of ours. InputRefused: it is no base64, or too large."""
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InputRefused(f"The {name} is not a file as base64; addresses and paths are never read.") from None
    if len(content) > settings.max_upload:
        raise InputRefused(f"The {name} is larger than the limit of {settings.max_upload / 2**20:g} MiB.", status=413)
    kinds = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"RIFF": "webp", b"BM": "bmp", b"GIF8": "gif"}
    ending = next((kind for start, kind in kinds.items() if content.startswith(start)), "tif")
    folder = settings.folder / secrets.token_hex(16)
    folder.mkdir(parents=True)
    path = folder / f"{name}.{ending}"
    path.write_bytes(content)
    return str(path)
