"""Pictures and masks in and out of files.

A file is refused before its pixels are decoded when it is too large, of a kind that is not read, or would decode to
more than `MAX_PIXELS`; what is accepted is normalised to 8-bit RGB (plus alpha), and every normalisation is noted.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo

from sdsedit.errors import InputRefused, printable

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 64_000_000
FORMATS = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
KINDS = "PNG, JPEG, WebP, BMP, TIFF or GIF"
_OTHER_KINDS = (b"SIMPLE  =", b"8BPS", b"%PDF", b"%!PS", b"\xc5\xd0\xd3\xc6", b"<svg", b"<?xml")
_ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.\-]+:[\\/]{1,2}|data:|file:|mailto:)", re.IGNORECASE)

# For the whole process, for threads read pictures at once. Pillow only warns up to twice this, so _open counts too; its
# warnings of damaged files name folders of this machine, and what they say becomes a sentence here.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True)
class Picture:
    """A decoded picture, and what is needed to write it back."""

    name: str  # the file's name, without its folder
    sha256: str  # of the file's bytes
    kind: str  # "PNG", "JPEG", ...
    rgb: np.ndarray  # [H, W, 3] uint8
    alpha: np.ndarray | None  # [H, W] uint8
    icc: bytes | None  # the colour profile of an RGB picture
    notes: tuple[str, ...]  # one sentence for each normalisation

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]

    def tensor(self) -> Tensor:
        """The picture as the engine wants it: [1, 3, H, W] float32 in 0..1."""
        import torch

        return torch.from_numpy(self.rgb).permute(2, 0, 1)[None].float().div_(255)

    def numbers(self) -> Tensor:
        """A picture of regions: [1, 1, H, W], a whole number for each colour; float32 holds 24 bits exactly."""
        import torch

        red, green, blue = torch.from_numpy(self.rgb).float().unbind(-1)
        return (red * 65536 + green * 256 + blue)[None, None]


@dataclass(frozen=True)
class Mask:
    """A decoded mask: where a picture may change."""

    name: str  # the file's name, without its folder
    sha256: str  # of the file's bytes
    values: np.ndarray  # [H, W] uint8, 255 may change, 0 may not
    notes: tuple[str, ...]  # one sentence for each normalisation of the file

    def tensor(self) -> Tensor:
        """The mask as the engine wants it: [1, 1, H, W] float32 in 0..1."""
        import torch

        return torch.from_numpy(self.values)[None, None].float().div_(255)


def is_address(text: str) -> bool:
    """Whether `text` is an address (`http:`, `file:`, `data:` ...) and not the name of a file."""
    return _ADDRESS.match(text) is not None


def read_picture(path: str | Path, max_bytes: int = MAX_BYTES) -> Picture:
    """Read a picture file.

    Raises `InputRefused`: an address (never fetched), a file that is missing, larger than `max_bytes` (status 413), of
    a kind that is not read (415), cut short or named as another kind, or of more than `MAX_PIXELS` pixels (422, before
    any pixel is decoded).
    """
    data, name = _read_bytes(path, max_bytes)
    image, kind = _open(data, name)
    try:
        rgb, alpha, icc, notes = _normalise(image, name)
    except InputRefused:
        raise
    except MemoryError:
        raise InputRefused(f"{name} does not fit in memory: make it smaller.") from None
    except Exception:  # Pillow's decoders raise OSError, SyntaxError, struct.error, zlib.error, IndexError, ...
        raise InputRefused(f"{name} is damaged or cut short: its pixels cannot be read.") from None
    return Picture(name, hashlib.sha256(data).hexdigest(), kind, rgb, alpha, icc, notes)


def read_mask(path: str | Path, size: tuple[int, int], max_bytes: int = MAX_BYTES) -> Mask:
    """Read a mask drawn by a person: white may change, black may not, grey counts in between, transparent is black.

    `size` is the (width, height) of the picture that it belongs to. Raises `InputRefused` as `read_picture` does, and
    for a mask of another size (it is never resized), a mask with nothing to change and one with nothing to keep.
    """
    picture = read_picture(path, max_bytes)
    if picture.size != size:
        raise InputRefused(
            f"The mask {picture.name} is {picture.size[0]}x{picture.size[1]} pixels and the picture is "
            f"{size[0]}x{size[1]}: a mask must be exactly as large as its picture."
        )
    grey = np.array(Image.fromarray(picture.rgb).convert("L"))
    if picture.alpha is not None:
        grey = ((grey.astype(np.uint16) * picture.alpha + 127) // 255).astype(np.uint8)
    if not grey.any():
        raise InputRefused(f"The mask {picture.name} is empty: paint what may change in white on black.")
    if grey.min() == 255:
        raise InputRefused(f"The mask {picture.name} is full: leave what must stay black, or give no mask.")
    return Mask(picture.name, picture.sha256, grey, picture.notes)


def to_array(image: Tensor) -> np.ndarray:
    """[1, C, H, W] floats in 0..1 to [H, W, C] uint8; exact for values that came from 8 bits."""
    return image[0].detach().clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).cpu().numpy()


def encode_png(
    pixels: np.ndarray,  # [H, W, 3] or [H, W] uint8
    alpha: np.ndarray | None = None,  # [H, W] uint8
    icc: bytes | None = None,
    recipe: str | None = None,
) -> bytes:
    """PNG bytes; `recipe` goes in as international text (iTXt) under the key "sdsedit"."""
    image = Image.fromarray(pixels)
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    info = PngInfo()
    if recipe is not None:
        info.add_itxt("sdsedit", recipe)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, icc_profile=icc, compress_level=4)
    return buffer.getvalue()


_HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float32)


def overlay(rgb: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A heat-map over a picture, dark where cold: rgb [H, W, 3] uint8, heat [H, W] in 0..1 -> [H, W, 3] uint8."""
    share = np.linspace(0, 1, 256, dtype=np.float32)
    colour = np.stack([np.interp(share, np.linspace(0, 1, len(_HEAT)), channel) for channel in _HEAT.T], axis=-1)
    weight = 0.35 + 0.5 * share
    level = (np.clip(heat, 0, 1) * 255).round().astype(np.uint8)
    grey = np.asarray(Image.fromarray(rgb).convert("L")) * (1 - weight)[level]
    return (grey[..., None] + (colour * weight[:, None]).astype(np.float32)[level]).round().astype(np.uint8)


def _read_bytes(path: str | Path, max_bytes: int) -> tuple[bytes, str]:
    if is_address(str(path)):
        raise InputRefused("Addresses are never fetched: save the picture first and give the file's name.")
    path = Path(path)
    name = printable(path.name, 100)
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is no plain file" if path.exists() else "is not there"
            raise InputRefused(f"{name} {what}: give the name of a {KINDS} file.")
        with path.open("rb") as file:
            too_large = os.fstat(file.fileno()).st_size > max_bytes
            data = b"" if too_large else file.read(max_bytes + 1)
    except OSError as error:
        raise InputRefused(f"{name} cannot be opened: {error.strerror}.") from None
    if too_large or len(data) > max_bytes:  # a file may grow while it is read
        raise InputRefused(f"{name} is larger than the limit of {max_bytes / 2**20:g} MiB.", status=413)
    if not data:
        raise InputRefused(f"{name} is empty: give a {KINDS} file.")
    return data, name


def _open(data: bytes, name: str) -> tuple[ImageFile, str]:
    """Read the header only, hold the file to its kind, its name and the pixel limit."""
    suffix = Path(name).suffix.lower()
    known = {ending for endings in FORMATS.values() for ending in endings}
    too_many = f"than the limit of {MAX_PIXELS // 1_000_000} megapixels: make it smaller."
    try:
        image = Image.open(io.BytesIO(data), formats=list(FORMATS))
    except Image.DecompressionBombError:
        raise InputRefused(f"{name} has more pixels {too_many}") from None
    except Exception as error:
        if suffix not in known or data.lstrip().startswith(_OTHER_KINDS):
            raise InputRefused(f"{name} is of a kind that is not read: give a {KINDS} file.", status=415) from None
        if isinstance(error, UnidentifiedImageError):
            raise InputRefused(f"{name} is damaged or no picture at all: give a {KINDS} file.") from None
        raise InputRefused(f"{name} is damaged or cut short: its header cannot be read.") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputRefused(f"{name} is {width}x{height}, more pixels {too_many}")
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    if suffix not in FORMATS[kind]:
        raise InputRefused(f"{name} is a {kind} picture under another name: its name must end in {FORMATS[kind][0]}.")
    return image, kind


def _normalise(file: ImageFile, name: str) -> tuple[np.ndarray, np.ndarray | None, bytes | None, tuple[str, ...]]:
    notes: list[str] = []
    if getattr(file, "is_animated", False):
        notes.append("The file holds several pictures: the first is used.")
    mode, sixteen = file.mode, any(";16" in str(tile[3]) for tile in file.tile)
    icc = file.info.get("icc_profile") if mode in ("RGB", "RGBA", "P") else None
    file.load()
    image: Image.Image = file
    orientation = file.getexif().get(0x0112, 1)
    if orientation in range(2, 9):
        image = ImageOps.exif_transpose(image)
        notes.append(f"Turned upright as its EXIF orientation ({orientation}) says.")
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise InputRefused(f"{name} holds 32-bit values: give a picture of 8 or 16 bits a channel.")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        sixteen = True
    elif mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "La", "CMYK", "YCbCr", "HSV", "RGBX"):
        raise InputRefused(f"{name} has the colour mode {mode}: give an RGB, grey or CMYK picture.")
    if sixteen:
        notes.append("16 bits a channel reduced to 8.")
    if mode in ("1", "L", "LA", "La") or mode.startswith("I"):
        notes.append("Grey made RGB.")
    elif mode in ("CMYK", "YCbCr", "HSV"):
        notes.append(f"{mode} converted to RGB.")
    elif mode in ("P", "PA"):
        notes.append("Palette colours made RGB.")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = np.array(image.getchannel("A"))
        notes.append("Alpha kept: transparency is not edited.")
    return np.array(image.convert("RGB")), alpha, icc, tuple(notes)
