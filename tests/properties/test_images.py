"""Pictures and masks: any bytes, damaged files of every kind, PNG chunks that are whole but wrong; and round trips."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sdsedit.errors import InputRefused
from sdsedit.io import images
from sdsedit.io.images import Mask, Picture, encode_png, read_mask, read_picture
from tests.properties.rules import damaged, examples, read_or_refused

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning"
)  # Pillow's; outside of tests sdsedit.io.images hides them


def _encoded(kind: str, mode: str, size: tuple[int, int] = (20, 14), **more: object) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (*size[::-1], 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **more)
    return buffer.getvalue()


def _animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "green", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


_EXIF = Image.Exif()
_EXIF[0x0112] = 6
WHOLE: list[tuple[str, bytes]] = [
    (".png", _encoded("PNG", "RGB")),
    (".png", _encoded("PNG", "RGBA")),
    (".png", _encoded("PNG", "P")),
    (".png", _encoded("PNG", "1")),
    (".png", _encoded("PNG", "I;16")),
    (".png", _animated("PNG")),
    (".png", _encoded("PNG", "RGB", exif=_EXIF)),
    (".jpg", _encoded("JPEG", "RGB")),
    (".jpg", _encoded("JPEG", "CMYK")),
    (".jpg", _encoded("JPEG", "L", exif=_EXIF)),
    (".jpg", _encoded("JPEG", "RGB", progressive=True)),
    (".webp", _encoded("WEBP", "RGB")),
    (".webp", _encoded("WEBP", "RGBA", lossless=True)),
    (".webp", _animated("WEBP")),
    (".bmp", _encoded("BMP", "RGB")),
    (".bmp", _encoded("BMP", "P")),
    (".bmp", _encoded("BMP", "1")),
    (".tif", _encoded("TIFF", "RGB")),
    (".tif", _encoded("TIFF", "CMYK")),
    (".tif", _encoded("TIFF", "I;16")),
    (".tif", _encoded("TIFF", "RGB", compression="tiff_lzw")),
    (".tif", _encoded("TIFF", "F")),
    (".tif", _encoded("TIFF", "L", compression="tiff_deflate")),
    (".gif", _encoded("GIF", "P")),
    (".gif", _animated("GIF")),
]
SUFFIXES = sorted({suffix for suffix, _ in WHOLE})


def holds(picture: Picture, data: bytes) -> None:
    height, width = picture.rgb.shape[:2]
    assert picture.rgb.dtype == np.uint8 and picture.rgb.shape == (height, width, 3)
    assert 1 <= width * height <= images.MAX_PIXELS and picture.size == (width, height)
    assert picture.alpha is None or (picture.alpha.dtype == np.uint8 and picture.alpha.shape == (height, width))
    assert picture.kind in images.FORMATS and picture.sha256 == hashlib.sha256(data).hexdigest()
    assert all(note.endswith(".") and "\n" not in note for note in picture.notes)


def read(folder: Path, name: str, data: bytes) -> Picture | None:
    (folder / name).write_bytes(data)
    picture = read_or_refused(lambda: read_picture(folder / name), folder)
    if picture is not None:
        holds(picture, data)
    return picture


@given(data=st.data())
@examples(3)
def test_damaged_pictures(tmp_path: Path, data: st.DataObject):
    suffix, whole = data.draw(st.sampled_from(WHOLE))
    read(tmp_path, f"a{suffix}", data.draw(damaged(whole, head=200)))


@given(st.binary(max_size=400), st.sampled_from(WHOLE), st.integers(0, 40))
@examples()
def test_any_bytes_behind_a_good_start(tmp_path: Path, noise: bytes, like: tuple[str, bytes], kept: int):
    suffix, whole = like
    read(tmp_path, f"a{suffix}", whole[:kept] + noise)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_SIDES = st.integers(0, 40) | st.sampled_from([0, 1, 8_000, 65_535, 2**31 - 1, 2**31, 2**32 - 1])
_OTHER = st.sampled_from(
    [
        b"PLTE",
        b"tRNS",
        b"iCCP",
        b"eXIf",
        b"gAMA",
        b"cHRM",
        b"acTL",
        b"fcTL",
        b"fdAT",
        b"iTXt",
        b"zTXt",
        b"tEXt",
        b"pHYs",
        b"sBIT",
        b"bKGD",
        b"IDAT",
        b"IHDR",
        b"abcd",
    ]
)


@given(
    _SIDES,
    _SIDES,
    st.sampled_from([1, 2, 4, 8, 16]) | st.integers(0, 255),
    st.sampled_from([0, 2, 3, 4, 6, 1, 9]),
    st.sampled_from([0, 0, 1, 7]),
    st.lists(st.tuples(_OTHER, st.binary(max_size=40)), max_size=3),
    st.integers(0, 4000),
)
@examples(2)
def test_png_of_whole_chunks_that_are_wrong(
    tmp_path: Path,
    width: int,
    height: int,
    bits: int,
    colour: int,
    interlaced: int,
    chunks: list[tuple[bytes, bytes]],
    size: int,
):
    """Sums of chunks are right here, so that what is in them is looked at."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced))
    middle = b"".join(_chunk(*each) for each in chunks)
    pixels = _chunk(b"IDAT", zlib.compress(bytes(size)))
    picture = read(tmp_path, "a.png", b"\x89PNG\r\n\x1a\n" + head + middle + pixels + _chunk(b"IEND", b""))
    if picture is not None:
        assert picture.size == (width, height)


@given(st.binary(max_size=200), st.sampled_from(SUFFIXES))
@examples(0.5)
def test_bytes_that_are_no_picture(tmp_path: Path, noise: bytes, suffix: str):
    assert read(tmp_path, f"a{suffix}", noise) is None


@given(st.text(min_size=1, max_size=60).filter(lambda name: not set("/\0") & set(name) and name.strip(".")))
@examples()
def test_any_name_is_said_so_that_it_can_be_printed(tmp_path: Path, name: str):
    path = tmp_path / name
    assert read_or_refused(lambda: read_picture(path), tmp_path) is None  # it is not there, or no name at all


# ---- masks


@given(data=st.data(), width=st.integers(1, 30), height=st.integers(1, 30))
@examples()
def test_masks(tmp_path: Path, data: st.DataObject, width: int, height: int):
    """A mask is of its picture's size, keeps something and changes something, whatever the file; or it is refused."""
    level = data.draw(st.sampled_from([0, 1, 128, 254, 255]))
    pixels = np.full((height, width), level, np.uint8)
    for _ in range(data.draw(st.integers(0, 3))):
        pixels[data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = data.draw(
            st.integers(0, 255)
        )
    alpha = data.draw(st.none() | st.sampled_from([0, 1, 200, 255]))
    whole = encode_png(pixels, None if alpha is None else np.full_like(pixels, alpha))
    file = data.draw(st.just(whole) | damaged(whole, most=2))
    size = data.draw(st.just((width, height)) | st.tuples(st.integers(1, 30), st.integers(1, 30)))
    (tmp_path / "m.png").write_bytes(file)
    mask = read_or_refused(lambda: read_mask(tmp_path / "m.png", size), tmp_path)
    if mask is not None:
        assert isinstance(mask, Mask) and mask.values.dtype == np.uint8 and mask.values.shape == size[::-1]
        assert mask.values.any() and mask.values.min() < 255
    if file == whole:
        seen = pixels if alpha is None else (pixels.astype(int) * alpha + 127) // 255
        good = size == (width, height) and seen.any() and seen.min() < 255
        assert (mask is not None) == good
        if mask is not None:
            assert (mask.values == seen).all()


# ---- round trips


@given(
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80),
)
@examples()
def test_a_written_png_comes_back_bit_for_bit(
    tmp_path: Path, width: int, height: int, seed: int, clear: bool, recipe: str | None
):
    random = np.random.default_rng(seed)
    rgb = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    alpha = random.integers(0, 255, (height, width), dtype=np.uint8) if clear else None
    (tmp_path / "a.png").write_bytes(encode_png(rgb, alpha, None, recipe))
    picture = read_picture(tmp_path / "a.png")
    assert (picture.rgb == rgb).all() and picture.kind == "PNG"
    assert (picture.alpha is None) if alpha is None else (picture.alpha == alpha).all()
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert getattr(image, "text", {}).get("sdsedit") == recipe
    tensor = picture.tensor()
    assert (images.to_array(tensor) == rgb).all()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_normalised_once_is_so_for_good(tmp_path: Path, suffix: str):
    """Read, written and read again: the same pixels, and nothing more to say than where alpha stays."""
    for k, (kind, whole) in enumerate(WHOLE):
        if kind == suffix:
            (tmp_path / f"a{suffix}").write_bytes(whole)
            try:
                first = read_picture(tmp_path / f"a{suffix}")
            except InputRefused as refused:
                assert "32-bit" in str(refused) or "colour mode" in str(refused), k
                continue
            (tmp_path / "b.png").write_bytes(encode_png(first.rgb, first.alpha, first.icc))
            again = read_picture(tmp_path / "b.png")
            assert (again.rgb == first.rgb).all() and again.notes in ((), ("Alpha kept: transparency is not edited.",))
