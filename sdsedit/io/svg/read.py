"""A file or bytes to a drawing: unpacked, looked through, and drawn as curves."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

from sdsedit.errors import InputRefused, printable
from sdsedit.io.bounded import read_apart
from sdsedit.io.svg.drawing import MAX_BYTES, MAX_SHAPES, SvgDocument
from sdsedit.io.svg.elements import recipe_of, scan
from sdsedit.io.svg.page import Page
from sdsedit.io.svg.write import splice


def read_svg(source: Path | bytes, max_bytes: int = MAX_BYTES, max_shapes: int = MAX_SHAPES) -> SvgDocument:
    """Read a drawing: SVG, or SVGZ, from a file or from bytes.

    Raises `InputRefused`: an address, a missing, empty or too large file, one that is not UTF-8 or not well-formed; a
    DOCTYPE; a reference to anything outside the file; more elements, shapes, curves or depth than the limits of
    `svg.drawing`, or references that multiply to more, or run in circles; numbers that are none, not finite or beyond
    `MAX_NUMBER`; no size, or one that is not above 0; nothing to draw, or nothing of it on the page.
    """
    data, name = _load(source, max_bytes)
    return _read(data, name, max_shapes)


def read_svg_bounded(
    source: Path | bytes,
    max_bytes: int = MAX_BYTES,
    max_shapes: int = MAX_SHAPES,
    seconds: float = 20.0,
    memory: int = 2**30,  # bytes of address space; not held on Windows
) -> SvgDocument:
    """`read_svg` for files of strangers: first in a process of its own, that may be killed.

    Reading depends on the bytes alone. What a child process could read within `seconds` and `memory` is then read again
    here, so no data of the child's is trusted. A child that hangs, dies or runs out of memory is one `InputRefused`.
    """
    data, name = _load(source, max_bytes)
    given = {"name": name, "max_shapes": max_shapes}
    read_apart("sdsedit.io.svg.read:_try", data, given, name, seconds, memory, "simplify it")[1].close()
    return _read(data, name, max_shapes)


def _try(source: BinaryIO, answer: BinaryIO, name: str, max_shapes: int) -> None:
    """What `read_svg_bounded` does in the child."""
    _read(source.read(), name, max_shapes)
    answer.write(b"{}\n")


def read_recipe(source: Path | bytes) -> str | None:
    """The recipe that `write_svg` or `new_svg` put into a file, or None. Refuses what `read_svg` refuses unseen."""
    data, name = _load(source, MAX_BYTES)
    return recipe_of(scan(data, name))


def _load(source: Path | bytes, max_bytes: int) -> tuple[bytes, str]:
    """The bytes of an SVG, unpacked, and what to call it in a sentence."""
    if isinstance(source, bytes):
        name, data = "The drawing", source[: max_bytes + 1]
    else:
        from sdsedit.io.images import is_address

        if is_address(str(source)):
            raise InputRefused("Addresses are never fetched: save the drawing first and give the file's name.")
        name = printable(Path(source).name, 100)
        try:
            if not Path(source).is_file():
                what = "is a folder" if Path(source).is_dir() else "is not there"
                raise InputRefused(f"{name} {what}: give the name of an SVG file.")
            with Path(source).open("rb") as file:
                data = file.read(max_bytes + 1)
        except OSError as error:
            raise InputRefused(f"{name} cannot be opened: {error.strerror}.") from None
    if data[:2] == b"\x1f\x8b" and len(data) <= max_bytes:
        try:
            unpacking = zlib.decompressobj(wbits=31)
            data = unpacking.decompress(data, max_bytes + 1)
            if len(data) <= max_bytes and not unpacking.eof:
                raise zlib.error
        except zlib.error:
            raise InputRefused(f"{name} is a damaged SVGZ file: it cannot be unpacked.") from None
    if len(data) > max_bytes:
        raise InputRefused(f"{name} is larger than the limit of {max_bytes / 2**20:g} MiB.", status=413)
    if not data.strip():
        raise InputRefused(f"{name} is empty: give an SVG file.")
    return data, name


def _read(data: bytes, name: str, max_shapes: int) -> SvgDocument:
    tree = scan(data, name)
    taken_out = tuple(f"Taken out of the file for safety: {what}." for what in tree.unsafe)
    if tree.cuts:
        data = splice(data, [(start, end, b"") for start, end in tree.cuts])
        tree = scan(data, name)
        if tree.cuts:
            raise InputRefused(f"{name} holds scripts that cannot be taken out: save it as plain SVG.")
    page = Page(tree, name, max_shapes)
    page.draw()
    return SvgDocument(
        data=data,
        width=page.width,
        height=page.height,
        view_box=page.view_box,
        shapes=tuple(page.shapes),
        notes=taken_out + tuple(page.notes),
        metadata=recipe_of(tree),
    )
