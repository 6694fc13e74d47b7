"""Reading pictures and masks, and writing PNGs: what is normalised, what is refused, and that nothing is lost."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from sdsedit.errors import InputRefused
from sdsedit.io import images
from sdsedit.io.images import encode_png, is_address, overlay, read_mask, read_picture, to_array


def colours(width: int = 12, height: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_png_is_read_as_it_is(tmp_path: Path):
    pixels = colours()
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    picture = read_picture(tmp_path / "cat.png")
    assert (picture.rgb == pixels).all() and picture.alpha is None and picture.notes == ()
    assert picture.size == (12, 8) and picture.name == "cat.png" and picture.kind == "PNG"
    assert (to_array(picture.tensor()) == pixels).all()


def test_every_8_bit_value_survives_the_engine(tmp_path: Path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
    (tmp_path / "a.png").write_bytes(encode_png(values))
    assert (to_array(read_picture(tmp_path / "a.png").tensor()) == values).all()


# ---- case 5: what is normalised is right, and is said


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_rotation(tmp_path: Path, orientation: int):
    upright = colours()
    stored = {
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a, 3),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    picture = read_picture(tmp_path / "a.png")
    assert (picture.rgb == upright).all()
    assert f"({orientation})" in picture.notes[0]


def save_16_bit_rgb(path: Path, values: np.ndarray) -> None:  # [H, W, 3] uint16
    """Pillow cannot write this kind of PNG, so it is written by hand."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_16_bit_colour(tmp_path: Path):
    pixels = colours()
    save_16_bit_rgb(tmp_path / "a.png", pixels.astype(np.uint16) * 257)
    picture = read_picture(tmp_path / "a.png")
    assert (picture.rgb == pixels).all() and picture.notes == ("16 bits a channel reduced to 8.",)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey(tmp_path: Path, suffix: str):
    grey = np.array([[0, 1, 128, 129, 257, 32768, 65407, 65535]], dtype=np.uint16).repeat(8, 0)
    Image.fromarray(grey).save(tmp_path / f"a.{suffix}")
    picture = read_picture(tmp_path / f"a.{suffix}")
    assert picture.rgb[0, :, 0].tolist() == [0, 0, 0, 1, 1, 128, 255, 255]
    assert picture.notes == ("16 bits a channel reduced to 8.", "Grey made RGB.")


def test_32_bit_values_are_refused(tmp_path: Path):
    Image.fromarray(np.array([[-1, 70000]], dtype=np.int32)).save(tmp_path / "a.tif")
    Image.fromarray(np.array([[0.5, 2.0]], dtype=np.float32)).save(tmp_path / "b.tif")
    for name in ("a.tif", "b.tif"):
        with pytest.raises(InputRefused, match=r"^[ab]\.tif (holds 32-bit|has the colour mode F)"):
            read_picture(tmp_path / name)


@pytest.mark.parametrize(
    ("mode", "suffix", "note"),
    [
        ("CMYK", "jpg", "CMYK converted to RGB."),
        ("CMYK", "tif", "CMYK converted to RGB."),
        ("L", "png", "Grey made RGB."),
        ("1", "png", "Grey made RGB."),
        ("P", "png", "Palette colours made RGB."),
    ],
)
def test_other_modes(tmp_path: Path, mode: str, suffix: str, note: str):
    drawn = Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).convert(mode)
    drawn.save(tmp_path / f"a.{suffix}")
    picture = read_picture(tmp_path / f"a.{suffix}")
    assert picture.notes == (note,)
    assert np.abs(picture.rgb.astype(int) - np.asarray(drawn.convert("RGB"))).max() <= 2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_alpha_is_kept(tmp_path: Path, mode: str):
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 4:] = 255
    if mode in ("RGBA", "LA"):
        drawn = Image.new(mode[:-1], (8, 8), 90 if mode == "LA" else (90, 10, 20))
        drawn.putalpha(Image.fromarray(alpha))
        drawn.save(tmp_path / "a.png")
    else:  # one colour of a palette, or one RGB colour, is transparent
        drawn = Image.new("RGB", (8, 8), (255, 0, 0))
        ImageDraw.Draw(drawn).rectangle((4, 0, 7, 7), (0, 0, 255))
        drawn = drawn.convert(mode, palette=Image.Palette.ADAPTIVE)
        drawn.save(tmp_path / "a.png", transparency=drawn.getpixel((0, 0)))
    picture = read_picture(tmp_path / "a.png")
    assert picture.alpha is not None and (picture.alpha == alpha).all()
    assert picture.notes[-1] == "Alpha kept: transparency is not edited."
    (tmp_path / "b.png").write_bytes(encode_png(picture.rgb, picture.alpha))
    again = read_picture(tmp_path / "b.png")
    assert (again.rgb == picture.rgb).all() and (again.alpha == alpha).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_animated_pictures_give_the_first_frame(tmp_path: Path, suffix: str):
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    options = {"lossless": True} if suffix == "webp" else {}
    red.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[blue], **options)
    picture = read_picture(tmp_path / f"a.{suffix}")
    assert (picture.rgb == (255, 0, 0)).all()
    assert picture.notes[0] == "The file holds several pictures: the first is used."


def test_the_colour_profile_of_rgb_comes_back(tmp_path: Path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(colours()).save(tmp_path / "a.png", icc_profile=profile)
    picture = read_picture(tmp_path / "a.png")
    assert picture.icc == profile
    with Image.open(io.BytesIO(encode_png(picture.rgb, icc=picture.icc))) as written:
        assert written.info["icc_profile"] == profile


# ---- what is refused: any bytes at all give a picture or one sentence


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(colours(24, 24)).save(buffer, kind)
    return buffer.getvalue()


GOOD = {kind: encoded(kind) for kind in images.FORMATS}


@given(
    kind=st.sampled_from(sorted(GOOD)),
    cut=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=4),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_files_are_read_or_refused(tmp_path: Path, kind: str, cut: float, flips: list[tuple[float, int]]):
    data = bytearray(GOOD[kind][: round(cut * len(GOOD[kind]))])
    for place, bits in flips:
        if data:
            data[min(int(place * len(data)), len(data) - 1)] ^= bits
    path = tmp_path / f"a{images.FORMATS[kind][0]}"
    path.write_bytes(data)
    try:
        picture = read_picture(path)
    except InputRefused as refused:
        assert str(refused).endswith((".", "png", "jpg", "webp", "bmp", "tif", "gif")) and "\n" not in str(refused)
        assert str(tmp_path) not in str(refused)
    else:
        assert picture.rgb.dtype == np.uint8 and picture.rgb.ndim == 3


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(tmp_path: Path, data: bytes):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputRefused):
        read_picture(tmp_path / "a.png")


def test_what_pillow_warns_of_is_not_printed(tmp_path: Path):
    """Its warnings of damaged tags and of many pixels name a folder of this machine."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a picture"
    Image.fromarray(colours()).save(buffer, "JPEG", exif=exif)
    at = buffer.getvalue().index(b"Exif\0\0") + 14  # where it says how many tags it has
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue()[:at] + b"\xff\xff" + buffer.getvalue()[at + 2 :])
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    (tmp_path / "b.png").write_bytes(
        header + struct.pack(">I", zlib.crc32(header[12:])) + bytes(4) + b"IDAT5\xaf\x06\x1e"
    )
    code = "import sys; from sdsedit.io.images import read_picture\n"
    code += "for name in sys.argv[1:]:\n  try: read_picture(name)\n  except ValueError as error: print(error)"
    names = [str(tmp_path / name) for name in ("a.jpg", "b.png")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert done.stderr == "" and done.stdout.splitlines() == [
        "b.png is 9000x9000, more pixels than the limit of 64 megapixels: make it smaller.",
    ]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://example.org/a.png", True),
        ("HTTPS://example.org/a.png", True),
        ("file:///etc/passwd", True),
        ("file:a.png", True),
        ("data:image/png;base64,AAAA", True),
        ("s3://bucket/a.png", True),
        ("cat.png", False),
        ("a folder/cat.png", False),
        (r"C:\pictures\cat.png", False),
        ("c:/pictures/cat.png", False),
    ],
)
def test_addresses_are_told_from_files(text: str, address: bool):
    assert is_address(text) is address


# ---- masks


def test_a_mask_is_read_as_it_is_drawn(tmp_path: Path):
    drawn = np.zeros((8, 12), np.uint8)
    drawn[2:5, 3:9] = 255
    drawn[5, 3] = 128
    Image.fromarray(drawn).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", (12, 8))
    assert (mask.values == drawn).all()
    assert tuple(mask.tensor().shape) == (1, 1, 8, 12) and mask.tensor().max() == 1


def test_the_transparent_part_of_a_mask_is_black(tmp_path: Path):
    drawn = np.full((8, 12, 4), 255, np.uint8)
    drawn[:, :6, 3] = 0
    Image.fromarray(drawn).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", (12, 8))
    assert not mask.values[:, :6].any() and (mask.values[:, 6:] == 255).all()


# ---- writing


def test_the_recipe_in_the_png_is_international_text(tmp_path: Path):
    data = encode_png(colours(), recipe='{"target": "a cat"}')
    assert b"iTXtsdsedit\0" in data
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.text["sdsedit"] == '{"target": "a cat"}'  # pyright: ignore[reportAttributeAccessIssue]


def test_the_overlay_is_hotter_where_the_map_is():
    rgb = np.full((4, 4, 3), 100, np.uint8)
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 1
    shown = overlay(rgb, heat)
    assert shown.shape == rgb.shape and shown.dtype == np.uint8
    assert shown.sum(-1).argmax() == 1 * 4 + 2
