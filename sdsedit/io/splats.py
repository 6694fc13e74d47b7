"""Scenes of Gaussian splats in and out of files.

    .ply              INRIA's layout (arXiv:2308.04079, its reference code); exact: the same bytes come back
    .compressed.ply   PlayCanvas and SuperSplat; chunks of 256 Gaussians, 16 bytes each plus one a higher SH number
    .spz              Niantic's format, versions 2 and 3 (version 3 is written)
    .splat            antimatter15's viewer; written, never read: it has no SH beyond the constant one

A file is somebody's: a header ends within 64 KiB, what it announces is held against the file's size before anything is
allocated, what is packed may not unpack to more than 100 times its size, and every number that a renderer would choke
on is refused with the index of its Gaussian. Numbers stay as files have them: logarithms of scales, logits of
opacities, quaternions not normalised.

All of these are in the axes of INRIA's files (x right, y down, z forward), except for SPZ, whose y and z axes point the
other way; positions, quaternions and SH are turned on the way in and out.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import re
import secrets
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sdsedit.errors import InputRefused, printable
from sdsedit.io.bounded import read_apart

MAX_BYTES = 4 * 2**30
MAX_GAUSSIANS = 16_000_000
MAX_HEADER = 64 * 2**10  # bytes of a PLY's header
MAX_MEMORY = (
    16 * 2**30
)  # of a process that reads one; 16 million Gaussians with all SH take 4, and a packed file thrice that
MAX_RATIO = 100  # unpacked to packed bytes of an SPZ; real scenes have 1 to 5
MAX_NUMBER = 1e12  # of a position or a colour
MAX_LOG_SCALE = 30.0  # the exponential of twice as much still fits float32
KINDS = ".ply, .compressed.ply or .spz"
_BLOCK = 16_384  # Gaussians at a time: 4 MB of an INRIA file stay in the cache
_CHUNK = 256  # Gaussians of a compressed PLY that share their bounds
_SH_C0 = 0.28209479177387814  # Y_0
_SPZ_MAGIC = 0x5053474E
_SPZ_COLOUR = 0.15
_PLY_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2",
    "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4",
    "double": "f8", "float64": "f8",
}  # fmt: skip
_PLY_NAMES = {code: name for name, code in reversed(_PLY_TYPES.items())}  # the older name of each: "float", "uchar"


@dataclass(eq=False)
class Splats:
    """A scene as its file stores it."""

    means: np.ndarray  # [N, 3] float32, world units
    quats: np.ndarray  # [N, 4] float32, wxyz, as stored (not normalised)
    log_scales: np.ndarray  # [N, 3] float32
    logits: np.ndarray  # [N] float32, opacity = sigmoid
    sh: np.ndarray  # [N, K, 3] float32, K = 1, 4, 9, 16
    extra: dict[str, np.ndarray] = field(default_factory=dict)  # [N] each: normals and unknown properties, as they are
    comments: tuple[str, ...] = ()  # comment lines of a PLY's header; the recipe of an edit travels here
    order: tuple[str, ...] = ()  # a PLY's property names as the file had them; empty: INRIA's order, extras last

    def __len__(self) -> int:
        return len(self.means)


def read(path: str | Path, max_bytes: int = MAX_BYTES) -> Splats:
    """Read a scene; the content says what kind of file it is.

    Raises `InputRefused`: an address (never fetched); not there; larger than `max_bytes` (status 413); of a kind that
    is not read (415); a PLY that is a mesh or a point cloud, ASCII, cut short, or whose header does not end or does
    not announce the size that the file has; an SPZ of version 1 or 4, with extensions, or that unpacks to too much;
    properties missing, given twice or of a wrong number of SH; no Gaussian, more than `MAX_GAUSSIANS`, or one with a
    number that is not finite or with a quaternion of 0, by its index.
    """
    with _opened(path, max_bytes) as (stream, name):
        return _parse(stream, name)


def read_bounded(
    path: str | Path,
    max_bytes: int = MAX_BYTES,
    seconds: float = 20.0,  # and a second for each 4 MiB of the file
    memory: int = 2**30,  # bytes of address space, and 40 for each byte of the file, up to MAX_MEMORY; not on Windows
) -> Splats:
    """`read` for files of strangers, in a process of its own, that may be killed.

    What comes back are the arrays' bytes and a line that says which they are; here they are held to what a scene must
    be once more. A child that hangs, dies or runs out of memory is one `InputRefused`.
    """
    with _opened(path, max_bytes) as (stream, name):
        size = os.fstat(stream.fileno()).st_size
        seconds, memory = seconds + size / 2**22, min(memory + 40 * size, max(memory, MAX_MEMORY))
        said, answer = read_apart("sdsedit.io.splats:_hand_over", stream, {"name": name}, name, seconds, memory)
        with answer:
            try:
                splats = _taken(said, answer)
            except (ValueError, TypeError, LookupError, AttributeError):
                raise InputRefused(f"{name} cannot be read: its reader went wrong.") from None
    _check_numbers(splats, name)
    return splats


@contextlib.contextmanager
def _opened(path: str | Path, max_bytes: int) -> Iterator[tuple[BinaryIO, str]]:
    """The file and what to call it in a sentence; OSError and MemoryError inside are sentences."""
    from sdsedit.io.images import is_address

    if is_address(str(path)):
        raise InputRefused("Addresses are never fetched: save the scene first and give the file's name.")
    path = Path(path)
    name = printable(path.name, 100)
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is no plain file" if path.exists() else "is not there"
            raise InputRefused(f"{name} {what}: give the name of a {KINDS} file.")
        if path.suffix.lower() == ".splat":
            raise InputRefused(f"{name} is made for viewers and not read: give a {KINDS} file.", status=415)
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size > max_bytes:
                raise InputRefused(f"{name} is larger than the limit of {max_bytes / 2**20:g} MiB.", status=413)
            yield stream, name
    except OSError as error:
        raise InputRefused(f"{name} cannot be read: {error.strerror}.") from None
    except MemoryError:
        raise InputRefused(f"{name} does not fit in memory: make it smaller.") from None


def _parse(stream: BinaryIO, name: str) -> Splats:
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(4)
    stream.seek(0)
    if start[:3] == b"ply":
        splats = _read_ply(stream, size, name)
    elif start[:2] == b"\x1f\x8b":
        splats = _read_spz(stream, size, name)
    elif start == b"NGSP":
        raise InputRefused(f"{name} is an SPZ of version 4, which is not read: save it as version 3 or as .ply.")
    else:
        raise InputRefused(f"{name} is of a kind that is not read: give a {KINDS} file.", status=415)
    _check_numbers(splats, name)
    return splats


_ARRAYS = ("means", "quats", "log_scales", "logits", "sh")
_PAGE = 64  # bytes


def _hand_over(source: BinaryIO, answer: BinaryIO, name: str) -> None:
    """What `read_bounded` does in the child: a line of JSON, then the arrays, each from a multiple of _PAGE on."""
    splats = _parse(source, name)
    arrays = [getattr(splats, key) for key in _ARRAYS] + list(splats.extra.values())
    line = {
        "shapes": [list(array.shape) for array in arrays[: len(_ARRAYS)]],
        "extra": [[key, f"{column.dtype.kind}{column.dtype.itemsize}"] for key, column in splats.extra.items()],
        "comments": list(splats.comments),
        "order": list(splats.order),
    }
    del splats
    answer.write(json.dumps(line).encode() + b"\n")
    while arrays:  # each goes when it is written: a large scene is not held twice
        answer.seek(-answer.tell() % _PAGE, os.SEEK_CUR)
        answer.write(np.ascontiguousarray(arrays.pop(0)).data.cast("B"))


def _taken(said: Mapping[str, Any], answer: BinaryIO) -> Splats:
    """The scene that a child handed over, its arrays in the file's own memory; ValueError and others if it is none."""
    data = mmap.mmap(answer.fileno(), 0, access=mmap.ACCESS_COPY)
    at = answer.tell()

    def array(code: str, shape: Sequence[int]) -> np.ndarray:
        nonlocal at
        count = math.prod(shape)
        if not 0 < count <= 48 * MAX_GAUSSIANS or min(shape) < 1:
            raise ValueError(f"no array has the shape {shape}")
        start = at + -at % _PAGE
        values = np.frombuffer(data, code, count, start)
        at = start + values.nbytes
        return values.reshape(shape)

    means, quats, log_scales, logits, sh = (array("f4", shape) for shape in said["shapes"])
    count = len(means)
    codes = {key: code for key, code in said["extra"] if isinstance(key, str) and code in _PLY_NAMES}
    extra = {key: array(code, (count,)) for key, code in codes.items()}
    words = [*said["comments"], *said["order"]]
    if len(codes) != len(said["extra"]) or not all(isinstance(each, str) for each in words) or at != len(data):
        raise ValueError("it is more than a scene")
    splats = Splats(means, quats, log_scales, logits, sh, extra, tuple(said["comments"]), tuple(said["order"]))
    _check_shapes(splats)
    return splats


def write(path: str | Path, splats: Splats) -> None:
    """Write a scene; the name's ending says how. The file is whole or, on an OSError, as it was before.

    Raises as `encode` does.
    """
    path = Path(path)
    data = encode(splats, path.name)
    temporary = path.with_name(f".{path.name[:64]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def encode(splats: Splats, name: str) -> bytes:
    """The bytes of a scene in the format that the ending of `name` asks for.

    Raises `InputRefused` for another ending, for a Gaussian that `read` would refuse, and for positions that do not fit
    an SPZ; ValueError for arrays of wrong shapes, no Gaussian, and what a PLY cannot hold: a property's name or type, a
    comment of several lines, comments of more than 64 KiB.
    """
    _check_shapes(splats)
    _check_numbers(splats, printable(name, 100))
    ending = name.lower()
    if ending.endswith(".compressed.ply"):
        return _compressed_bytes(splats)
    if ending.endswith(".ply"):
        return _ply_bytes(splats)
    if ending.endswith(".spz"):
        return _spz_bytes(splats)
    if ending.endswith(".splat"):
        return _splat_bytes(splats)
    raise InputRefused(f"{printable(name, 100)} must end in .ply, .compressed.ply, .spz or .splat.")


# --- what every scene must be ----------------------------------------------------------------------------------------


def _check_shapes(splats: Splats) -> None:
    count = len(splats.means)
    if count == 0:
        raise ValueError("A scene has at least one Gaussian.")
    shapes = {"means": (count, 3), "quats": (count, 4), "log_scales": (count, 3), "logits": (count,)}
    shapes["sh"] = (count, splats.sh.shape[1] if splats.sh.ndim == 3 and splats.sh.shape[1] in (1, 4, 9, 16) else 1, 3)
    for key, shape in shapes.items():
        if getattr(splats, key).shape != shape:
            raise ValueError(
                f"{key} of a scene of {count} must have the shape {shape}; got {getattr(splats, key).shape}."
            )
    for key, column in splats.extra.items():
        if column.shape != (count,):
            raise ValueError(f"The property {key} of a scene of {count} must have the shape ({count},).")


def _check_numbers(splats: Splats, name: str) -> None:
    count = len(splats)
    found: list[tuple[int, str]] = []
    for what, values, limit in (
        ("position", splats.means, MAX_NUMBER),
        ("rotation", splats.quats, MAX_NUMBER),
        ("scale", splats.log_scales, MAX_NUMBER),
        ("opacity", splats.logits, MAX_NUMBER),
        ("colour", splats.sh, MAX_NUMBER),
    ):
        flat = values.reshape(count, -1)
        # The largest and the smallest tell a good scene at once; a NaN makes both NaN.
        if not (flat.max() <= limit and flat.min() >= -limit):
            found.append((int(np.argmin((np.abs(flat) <= limit).all(1))), f"a {what} that is not finite or too large"))
    if splats.log_scales.max() > MAX_LOG_SCALE:
        wide = (splats.log_scales > MAX_LOG_SCALE).any(1)
        found.append((int(np.argmax(wide)), f"a logarithm of a scale above {MAX_LOG_SCALE:g}"))
    zero = np.abs(splats.quats).max(1) < 1e-12
    if zero.any():
        found.append((int(np.argmax(zero)), "a quaternion of 0"))
    if found:
        index, what = min(found)
        raise InputRefused(f"Gaussian {index} of {name} has {what}: no scene can be drawn with it.")


# --- PLY -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: tuple[tuple[str, str], ...]  # (name, numpy type without byte order)
    lists: bool  # whether it has a property of many values: then its size is not known

    def dtype(self, order: str) -> np.dtype:
        return np.dtype([(name, order + code) for name, code in self.properties])


@dataclass(frozen=True)
class _Header:
    size: int  # bytes, up to the first of the data
    order: str  # "<" or ">"
    comments: tuple[str, ...]
    elements: tuple[_Element, ...]


def _read_ply(stream: BinaryIO, size: int, name: str) -> Splats:
    header = _ply_header(stream.read(MAX_HEADER), name)
    names = [element.name for element in header.elements]
    if "vertex" not in names or any(element.lists for element in header.elements) or "face" in names:
        raise InputRefused(f"{name} is a mesh / point cloud, not a splat scene.")
    vertex = header.elements[names.index("vertex")]
    if not vertex.count:
        raise InputRefused(f"{name} holds no Gaussian: at least one is needed.")
    own = {prop for prop, _ in vertex.properties}
    packed = "chunk" in names and "packed_position" in own
    if not packed and not {"f_dc_0", "opacity", "scale_0", "rot_0"} & own:
        raise InputRefused(f"{name} is a mesh / point cloud, not a splat scene.")
    announced = sum(element.count * element.dtype("<").itemsize for element in header.elements)
    if announced != size - header.size:
        raise InputRefused(
            f"{name} is cut short or damaged: its header announces {announced} bytes and {size - header.size} follow."
        )
    if vertex.count > MAX_GAUSSIANS:
        raise InputRefused(
            f"{name} holds {vertex.count} Gaussians, more than the limit of {MAX_GAUSSIANS}.", status=413
        )
    starts: dict[str, int] = {}
    offset = header.size
    for element in header.elements:
        starts[element.name] = offset
        offset += element.count * element.dtype("<").itemsize
    if packed:
        return _read_compressed(stream, header, starts, name)
    return _read_vertices(stream, header, vertex, starts["vertex"], name)


def _ply_header(data: bytes, name: str) -> _Header:
    end = re.search(rb"\nend_header\r?\n", data)
    if end is None:
        raise InputRefused(f"{name} is damaged: its header does not end within {MAX_HEADER // 2**10} KiB.")
    lines = data[: end.start()].decode("utf-8", "surrogateescape").split("\n")
    if lines[0].removesuffix("\r") != "ply":
        raise InputRefused(f"{name} is damaged: its first line must be ply.")
    order, comments = None, []
    elements: list[tuple[str, int, list[tuple[str, str]], bool]] = []
    for row, line in enumerate(lines[1:], start=2):
        line = line.removesuffix("\r")
        word, *rest = line.split() or [""]
        good = True
        if word == "format":
            order = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "ascii"}.get((rest or [""])[0])
            good = order is not None
        elif word == "comment":
            comments.append(line[len("comment ") :].replace("\r", " "))
        elif word == "element":
            good = len(rest) == 2 and rest[1].isdecimal() and rest[1].isascii() and len(rest[1]) <= 18
            good = good and rest[0] not in (element[0] for element in elements)
            if good:
                elements.append((rest[0], int(rest[1]), [], False))
        elif word == "property" and elements and rest[:1] == ["list"]:
            elements[-1] = (*elements[-1][:3], True)
        elif word == "property":
            good = len(rest) == 2 and rest[0] in _PLY_TYPES and bool(elements)
            if good:
                elements[-1][2].append((rest[1], _PLY_TYPES[rest[0]]))
        elif word not in ("obj_info", ""):
            good = False
        if not good:
            raise InputRefused(f"{name} is damaged: line {row} of its header is {printable(line, 60)}.")
    if order == "ascii":
        raise InputRefused(f"{name} is an ASCII PLY, which is not read: save it as a binary one.")
    if order is None:
        raise InputRefused(f"{name} is damaged: its header gives no format.")
    for element, _, properties, _ in elements:
        if len({prop for prop, _ in properties}) != len(properties):
            raise InputRefused(f"{name} is damaged: its element {printable(element, 40)} has a property twice.")
    found = tuple(_Element(element, count, tuple(props), lists) for element, count, props, lists in elements)
    return _Header(end.end(), order, tuple(comments), found)


def _rest_names(names: Sequence[str] | Mapping[str, object], name: str) -> list[str]:
    """f_rest_0 .. f_rest_n-1; a scene has n = 0, 9, 24 or 45 of them."""
    count = sum(re.fullmatch(r"f_rest_\d+", each) is not None for each in names)
    rest = [f"f_rest_{i}" for i in range(count)]
    if count not in (0, 9, 24, 45) or not all(each in names for each in rest):
        raise InputRefused(f"{name} has {count} SH properties f_rest_0, f_rest_1 ...: 0, 9, 24 or 45 are allowed.")
    return rest


def _groups(rest: list[str]) -> dict[str, list[str]]:
    return {
        "means": ["x", "y", "z"],
        "dc": ["f_dc_0", "f_dc_1", "f_dc_2"],
        "rest": rest,
        "logits": ["opacity"],
        "log_scales": ["scale_0", "scale_1", "scale_2"],
        "quats": ["rot_0", "rot_1", "rot_2", "rot_3"],
    }


def _read_vertices(stream: BinaryIO, header: _Header, vertex: _Element, start: int, name: str) -> Splats:
    types = dict(vertex.properties)
    groups = _groups(_rest_names(types, name))
    missing = next((prop for props in groups.values() for prop in props if prop not in types), None)
    if missing:
        raise InputRefused(f"{name} is no splat scene that is known: its Gaussians have no {missing}.")
    core = {prop for props in groups.values() for prop in props}
    not_float = next((prop for prop in core if types[prop][0] != "f"), None)
    if not_float:
        raise InputRefused(f"{name} is no splat scene that is known: its {not_float} is not of the type float.")
    dtype, count = vertex.dtype(header.order), vertex.count
    higher = len(groups["rest"]) // 3
    values = {
        key: np.empty((count, len(props)), np.float32) for key, props in groups.items() if key not in ("dc", "rest")
    }
    sh = np.empty((count, 1 + higher, 3), np.float32)
    extra = {prop: np.empty(count, code) for prop, code in vertex.properties if prop not in core}
    stream.seek(start)
    block = bytearray(min(_BLOCK, count) * dtype.itemsize)
    with np.errstate(over="ignore"):  # a double that float32 cannot hold becomes infinite, and is refused
        for first in range(0, count, _BLOCK):
            rows = slice(first, min(first + _BLOCK, count))
            here = memoryview(block)[: (rows.stop - first) * dtype.itemsize]
            if stream.readinto(here) != len(here):  # pyright: ignore[reportAttributeAccessIssue]  # files have it
                raise InputRefused(f"{name} is cut short or damaged: it changed while it was read.")
            table = np.frombuffer(here, dtype)
            for key, array in values.items():
                array[rows] = _columns(table, groups[key])
            sh[rows, 0] = _columns(table, groups["dc"])
            if higher:  # channel after channel in the file: R of all coefficients, then G, then B
                sh[rows, 1:] = _columns(table, groups["rest"]).reshape(len(table), 3, higher).transpose(0, 2, 1)
            for prop, column in extra.items():
                column[rows] = table[prop]
    order = tuple(prop for prop, _ in vertex.properties)
    return Splats(
        values["means"],
        values["quats"],
        values["log_scales"],
        values["logits"][:, 0],
        sh,
        extra,
        header.comments,
        order,
    )


def _columns(table: np.ndarray, names: Sequence[str]) -> np.ndarray:  # [n, len(names)]
    """Fields side by side: a view, where they lie side by side in the record and have one type, which is the rule."""
    fields_ = table.dtype.fields
    assert fields_ is not None
    kind, first = fields_[names[0]][:2]
    if all(fields_[each][:2] == (kind, first + i * kind.itemsize) for i, each in enumerate(names)):
        return np.ndarray((len(table), len(names)), kind, table, first, (table.dtype.itemsize, kind.itemsize))
    return np.stack([table[each] for each in names], axis=1)


def _ply_bytes(splats: Splats) -> bytes:
    higher = splats.sh.shape[1] - 1
    groups = _groups([f"f_rest_{i}" for i in range(3 * higher)])
    if not higher:
        del groups["rest"]
    core = [prop for props in groups.values() for prop in props]
    normals = [prop for prop in ("nx", "ny", "nz") if prop in splats.extra]
    usual = core[:3] + normals + core[3:] + [prop for prop in splats.extra if prop not in normals]
    names = [prop for prop in dict.fromkeys(splats.order) if prop in usual]
    names += [prop for prop in usual if prop not in names]
    if len(set(usual)) != len(usual):
        raise ValueError("An extra property must not have the name of one that every scene has.")
    codes = dict.fromkeys(core, "f4") | {prop: f"{c.dtype.kind}{c.dtype.itemsize}" for prop, c in splats.extra.items()}
    unknown = next((prop for prop in names if codes[prop] not in _PLY_NAMES or not re.fullmatch(r"\S+", prop)), None)
    if unknown is not None:
        raise ValueError(f"A PLY cannot hold the property {unknown!r} of the type {codes[unknown]}.")
    dtype = np.dtype([(prop, "<" + codes[prop]) for prop in names])
    lines = [f"element vertex {len(splats)}", *(f"property {_PLY_NAMES[codes[prop]]} {prop}" for prop in names)]
    head = _ply_head(splats.comments, lines)
    data = bytearray(len(head) + len(splats) * dtype.itemsize)
    data[: len(head)] = head
    table = np.frombuffer(data, dtype, offset=len(head))
    for first in range(0, len(splats), _BLOCK):
        rows = slice(first, first + _BLOCK)
        here = table[rows]
        _fill(here, groups["means"], splats.means[rows])
        _fill(here, groups["dc"], splats.sh[rows, 0])
        if higher:
            _fill(here, groups["rest"], splats.sh[rows, 1:].transpose(0, 2, 1).reshape(len(here), 3 * higher))
        _fill(here, groups["logits"], splats.logits[rows, None])
        _fill(here, groups["log_scales"], splats.log_scales[rows])
        _fill(here, groups["quats"], splats.quats[rows])
        for prop, column in splats.extra.items():
            here[prop] = column[rows]
    return bytes(data)


def _fill(table: np.ndarray, names: Sequence[str], values: np.ndarray) -> None:
    columns = _columns(table, names)
    if columns.base is None:  # a copy: the fields lie apart
        for i, each in enumerate(names):
            table[each] = values[:, i]
    else:
        columns[...] = values


def _ply_head(comments: Sequence[str], lines: Sequence[str]) -> bytes:
    if any("\n" in comment or "\r" in comment for comment in comments):
        raise ValueError("A comment of a PLY is one line.")
    rows = ["ply", "format binary_little_endian 1.0", *(f"comment {comment}" for comment in comments), *lines]
    head = ("\n".join(rows) + "\nend_header\n").encode("utf-8", "surrogateescape")
    if len(head) > MAX_HEADER:
        raise ValueError(f"The comments and properties of a PLY must fit {MAX_HEADER // 2**10} KiB.")
    return head


# --- compressed PLY (github.com/playcanvas/splat-transform, decompress-ply.ts and compressed-chunk.ts, MIT) ----------

_BOUNDS = [f"{end}_{axis}" for end in ("min", "max") for axis in "xyz"]
_BOUNDS += [f"{end}_scale_{axis}" for end in ("min", "max") for axis in "xyz"]
_COLOUR_BOUNDS = [f"{end}_{axis}" for end in ("min", "max") for axis in "rgb"]
_PACKED = ["packed_position", "packed_rotation", "packed_scale", "packed_color"]


def _read_compressed(stream: BinaryIO, header: _Header, starts: Mapping[str, int], name: str) -> Splats:
    """Per chunk of 256 the bounds of positions, log scales and colours; per Gaussian four words of 32 bits.

    position, scale: 11, 10, 11 bits between the bounds; rotation: 2 bits for the largest component, the others times
    sqrt(1/2) plus 1/2 in 10 bits each; colour: 8 bits a channel between the bounds, 8 bits of opacity. Higher SH, if
    any: a byte each, (byte + 1/2) / 32 - 4.
    """
    elements = {element.name: element for element in header.elements}
    chunk, vertex, count = elements["chunk"], elements["vertex"], elements["vertex"].count
    types, packed = dict(chunk.properties), dict(vertex.properties)
    coloured = "min_r" in types
    wanted = _BOUNDS + _COLOUR_BOUNDS * coloured
    if any(types.get(each) != "f4" for each in wanted) or any(packed.get(each) != "u4" for each in _PACKED):
        raise InputRefused(f"{name} is no compressed PLY that is known: a property is missing or of another type.")
    if chunk.count != -(-count // _CHUNK):
        raise InputRefused(
            f"{name} is damaged: {count} Gaussians need {-(-count // _CHUNK)} chunks, not {chunk.count}."
        )
    rest: list[str] = []
    if "sh" in elements:
        rest = _rest_names(dict(elements["sh"].properties), name)
        if not rest or elements["sh"].count != count or any(code != "u1" for _, code in elements["sh"].properties):
            raise InputRefused(
                f"{name} is damaged: its element sh must have a row of bytes for each of {count} Gaussians."
            )
    tables: dict[str, np.ndarray] = {}
    for key in ("chunk", "vertex", "sh"):
        if key in elements:
            dtype, rows = elements[key].dtype(header.order), elements[key].count
            stream.seek(starts[key])
            data = stream.read(rows * dtype.itemsize)
            if len(data) != rows * dtype.itemsize:
                raise InputRefused(f"{name} is cut short or damaged: it changed while it was read.")
            tables[key] = np.frombuffer(data, dtype)
    bounds = {each: tables["chunk"][each].astype(np.float32) for each in wanted}
    if not all(np.isfinite(column).all() for column in bounds.values()):
        bad = min(int(np.argmin(np.isfinite(column))) for column in bounds.values() if not np.isfinite(column).all())
        raise InputRefused(f"Gaussian {bad * _CHUNK} of {name} has bounds that are not finite, with all of its chunk.")
    words = {each: tables["vertex"][each].astype(np.uint32) for each in _PACKED}

    def between(low: str, high: str, share: np.ndarray) -> np.ndarray:
        lows, highs = (np.repeat(bounds[each], _CHUNK)[:count] for each in (low, high))
        return lows * (1 - share) + highs * share

    def bits(word: np.ndarray, shift: int, size: int) -> np.ndarray:  # in 0..1
        return ((word >> np.uint32(shift)) & np.uint32((1 << size) - 1)).astype(np.float32) / np.float32(
            (1 << size) - 1
        )

    with np.errstate(over="ignore", invalid="ignore"):  # bounds too far apart: refused with all other numbers
        thirds = ((21, 11), (11, 10), (0, 11))
        position, scale, colour = words["packed_position"], words["packed_scale"], words["packed_color"]
        means = np.stack(
            [between(f"min_{a}", f"max_{a}", bits(position, *t)) for a, t in zip("xyz", thirds, strict=True)], 1
        )
        log_scales = np.stack(
            [between(f"min_scale_{a}", f"max_scale_{a}", bits(scale, *t)) for a, t in zip("xyz", thirds, strict=True)],
            1,
        )
        shares = [bits(colour, shift, 8) for shift in (24, 16, 8)]
        if coloured:
            shares = [between(f"min_{a}", f"max_{a}", share) for a, share in zip("rgb", shares, strict=True)]
    sh = np.empty((count, 1 + len(rest) // 3, 3), np.float32)
    sh[:, 0] = (np.stack(shares, 1) - 0.5) / _SH_C0
    byte = np.arange(256, dtype=np.float32)
    values = (np.where(byte == 0, 0, np.where(byte == 255, 1, (byte + 0.5) / 256)) - 0.5) * 8
    for first in range(0, count if rest else 0, _BLOCK):  # channel after channel, as in INRIA's files
        rows = slice(first, first + _BLOCK)
        steps = _columns(tables["sh"][rows], rest)
        sh[rows, 1:] = values[steps].reshape(len(steps), 3, -1).transpose(0, 2, 1)
    rotation = words["packed_rotation"]
    others = np.stack([(bits(rotation, shift, 10) - 0.5) * math.sqrt(2) for shift in (20, 10, 0)], 1)
    quats = _with_largest(others, rotation >> np.uint32(30))
    logits = _logit(bits(colour, 0, 8))
    return Splats(means, quats, log_scales, logits, sh, {}, header.comments)


def _compressed_bytes(splats: Splats) -> bytes:
    """The Gaussians are sorted along a Z-curve first: those of a chunk are near each other, and its bounds close.

    Lost are the order, extra properties, and all that the bits above do not hold (log scales beyond 20 too).
    """
    order = np.argsort(_z_curve(splats.means), kind="stable")
    count = len(order)
    padded = np.concatenate([order, np.repeat(order[-1:], -count % _CHUNK)])

    def packed(values: np.ndarray, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(steps [n, 3] between the bounds, lowest [chunks, 3], highest [chunks, 3])."""
        chunks = values[padded].reshape(-1, _CHUNK, 3)
        low, high = chunks.min(1, keepdims=True), chunks.max(1, keepdims=True)
        spread = high.astype(np.float64) - low
        share = np.where(spread > 0, (chunks - low) / np.where(spread > 0, spread, 1), 0)
        steps = np.floor(share * [(1 << size) - 1 for size in sizes] + 0.5).astype(np.uint32)
        return steps.reshape(-1, 3)[:count], low[:, 0], high[:, 0]

    position, low, high = packed(splats.means, (11, 10, 11))
    scale, scale_low, scale_high = packed(np.clip(splats.log_scales, -20, 20), (11, 10, 11))
    colour, colour_low, colour_high = packed(splats.sh[:, 0] * np.float32(_SH_C0) + np.float32(0.5), (8, 8, 8))
    others, largest = _without_largest(splats.quats[order])
    turns = np.clip(np.floor((others * math.sqrt(0.5) + 0.5) * 1023 + 0.5), 0, 1023).astype(np.uint32)
    opacity = np.floor(_sigmoid(splats.logits[order]) * 255 + 0.5).astype(np.uint32)

    words = np.empty((count, 4), "<u4")
    words[:, 0] = position[:, 0] << 21 | position[:, 1] << 11 | position[:, 2]
    words[:, 1] = largest << 30 | turns[:, 0] << 20 | turns[:, 1] << 10 | turns[:, 2]
    words[:, 2] = scale[:, 0] << 21 | scale[:, 1] << 11 | scale[:, 2]
    words[:, 3] = colour[:, 0] << 24 | colour[:, 1] << 16 | colour[:, 2] << 8 | opacity
    bounds = np.concatenate([low, high, scale_low, scale_high, colour_low, colour_high], axis=1).astype("<f4")
    lines = [f"element chunk {len(bounds)}", *(f"property float {each}" for each in _BOUNDS + _COLOUR_BOUNDS)]
    lines += [f"element vertex {count}", *(f"property uint {each}" for each in _PACKED)]
    rest = b""
    if higher := splats.sh.shape[1] - 1:
        lines += [f"element sh {count}", *(f"property uchar f_rest_{i}" for i in range(3 * higher))]
        steps = np.clip((splats.sh[order, 1:].transpose(0, 2, 1) / 8 + 0.5) * 256, 0, 255)
        rest = steps.astype(np.uint8).tobytes()
    return _ply_head(splats.comments, lines) + bounds.tobytes() + words.tobytes() + rest


def _z_curve(means: np.ndarray) -> np.ndarray:  # [N] uint64
    """Each position's place on a Z-curve (Morton order) of 2^21 steps a side: the bits of x, y and z interleaved."""
    low = means.min(0).astype(np.float64)
    side = max(float((means.max(0) - low).max()), 1e-30)
    places = np.zeros(len(means), np.uint64)
    for axis in range(3):
        v = ((means[:, axis] - low[axis]) / side * (2**21 - 1)).astype(np.uint64)
        for shift, mask in (
            (32, 0x1F00000000FFFF),
            (16, 0x1F0000FF0000FF),
            (8, 0x100F00F00F00F00F),
            (4, 0x10C30C30C30C30C3),
            (2, 0x1249249249249249),
        ):
            v = (v | v << np.uint64(shift)) & np.uint64(mask)
        places |= v << np.uint64(axis)
    return places


# --- SPZ (github.com/nianticlabs/spz, load-spz.cc, MIT) --------------------------------------------------------------

# x right, y up, z backward there. A flip of y and z leaves w and x of a quaternion; of the SH it turns those whose
# polynomial (y, z, x, xy, yz, 3zz-1, xz, xx-yy, ...) is odd in y and z together.
_SPZ_FLIP = np.array([1, -1, -1], np.float32)
_SPZ_SH = np.array([-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1], np.float32)


def _read_spz(stream: BinaryIO, size: int, name: str) -> Splats:
    """gzip of a header of 16 bytes, then one attribute after the other, of all Gaussians:

    positions 3 x 24 bits, fixed point; opacities 8; colours 3 x 8, (byte / 255 - 1/2) / 0.15; log scales 3 x 8, byte /
    16 - 10; rotations 3 x 8 (version 2: x, y, z, w being at least 0) or 32 (version 3: 2 bits for the largest of x, y,
    z, w, the others with sign and 9 bits times sqrt(1/2)); SH byte / 128 - 1, coefficient by coefficient.
    """
    damaged = InputRefused(f"{name} is cut short or damaged: it does not unpack.")
    unpacker = zlib.decompressobj(wbits=31)

    def unpacked(wanted: int) -> bytearray:
        data = bytearray()
        while len(data) < wanted and not unpacker.eof:
            packed = unpacker.unconsumed_tail or stream.read(2**20)
            try:
                more = unpacker.decompress(packed, wanted - len(data))
            except zlib.error:
                raise damaged from None
            if not packed and not more:
                break
            data += more
        return data

    head = unpacked(16)
    if len(head) < 16:
        raise damaged
    magic, version, count, degree, fraction, flags, _ = struct.unpack("<IIIBBBB", head)
    if magic != _SPZ_MAGIC:
        raise InputRefused(f"{name} is packed with gzip and no SPZ: give a {KINDS} file.", status=415)
    if version not in (2, 3):
        raise InputRefused(f"{name} is an SPZ of version {version}: versions 2 and 3 are read.")
    if degree > 3:
        raise InputRefused(f"{name} has SH of degree {degree}: 0 to 3 are allowed.")
    if flags & 2:
        raise InputRefused(f"{name} carries SPZ extensions, which may change what its numbers mean: save it without.")
    if fraction > 24:
        raise InputRefused(f"{name} is damaged: {fraction} bits after the point do not fit 24 bits.")
    if not count:
        raise InputRefused(f"{name} holds no Gaussian: at least one is needed.")
    if count > MAX_GAUSSIANS:
        raise InputRefused(f"{name} holds {count} Gaussians, more than the limit of {MAX_GAUSSIANS}.", status=413)
    higher = (degree + 1) ** 2 - 1
    turns = 4 if version == 3 else 3
    widths = (9, 1, 3, 3, turns, 3 * higher)
    if count * sum(widths) > MAX_RATIO * size + 2**20:
        raise InputRefused(f"{name} would unpack to more than {MAX_RATIO} times its size, so it is damaged or a trap.")
    data = unpacked(count * sum(widths))
    if len(data) != count * sum(widths):
        raise damaged
    if unpacked(1):
        raise InputRefused(f"{name} is damaged: it holds more than the {count} Gaussians that it announces.")
    if not unpacker.eof:  # the checksum comes last: without it the file is not whole
        raise damaged
    starts = np.cumsum([0, *widths]) * count
    parts = [
        np.frombuffer(data, np.uint8, count * width, int(start)).reshape(count, width)
        for width, start in zip(widths, starts, strict=False)
    ]
    places = parts[0].reshape(count, 3, 3).astype(np.int32)
    fixed = places[..., 0] | places[..., 1] << 8 | places[..., 2] << 16
    fixed = (fixed ^ 0x800000) - 0x800000  # the sign of 24 bits
    means = fixed.astype(np.float32) * np.float32(2.0**-fraction) * _SPZ_FLIP
    logits = _logit(parts[1][:, 0].astype(np.float32) / 255)
    sh = np.empty((count, 1 + higher, 3), np.float32)
    sh[:, 0] = (parts[2].astype(np.float32) / 255 - 0.5) / _SPZ_COLOUR
    sh[:, 1:] = (parts[5].reshape(count, higher, 3).astype(np.float32) - 128) / 128 * _SPZ_SH[:higher, None]
    log_scales = parts[3].astype(np.float32) / 16 - 10
    if version == 3:
        word = np.ascontiguousarray(parts[4]).view("<u4")[:, 0]
        others = np.stack([_signed(word >> np.uint32(shift)) for shift in (20, 10, 0)], 1)
        quats = np.roll(_with_largest(others, word >> np.uint32(30)), 1, axis=1)
    else:
        quats = np.empty((count, 4), np.float32)
        quats[:, 1:] = parts[4].astype(np.float32) / 127.5 - 1
        quats[:, 0] = np.sqrt(np.maximum(0, 1 - np.square(quats[:, 1:]).sum(1)))
    quats[:, 1:] *= _SPZ_FLIP
    return Splats(means, quats, log_scales, logits, sh)


def _signed(word: np.ndarray) -> np.ndarray:  # 10 bits: a sign and 9 of magnitude, -sqrt(1/2)..sqrt(1/2)
    magnitude = (word & np.uint32(511)).astype(np.float32) * np.float32(math.sqrt(0.5) / 511)
    return np.where(word & np.uint32(512), -magnitude, magnitude)


def _spz_bytes(splats: Splats) -> bytes:
    """Version 3, quantised as Niantic's own packer does it: SH to 5 bits (degree 1) and 4 bits (above).

    Of the 24 bits of a position as many as fit lie after the point, at most 16 (Niantic: always 12). Lost are extra
    properties and comments; colours beyond 3.3, log scales outside -10..5.9 and SH outside -1..1 are clamped.
    """
    count, higher = len(splats), splats.sh.shape[1] - 1
    reach = max(float(np.abs(splats.means).max()), 1e-6)
    fraction = min(16, math.floor(math.log2((2**23 - 1) / reach)))
    if fraction < 0:
        raise InputRefused(f"The scene reaches {reach:g} units far: an SPZ holds positions up to {2**23 - 1}.")
    fixed = np.rint(splats.means.astype(np.float64) * 2**fraction).astype(np.int32) * _SPZ_FLIP.astype(np.int32)
    places = np.stack([fixed & 255, fixed >> 8 & 255, fixed >> 16 & 255], -1).astype(np.uint8)
    parts = [places.reshape(count, 9)]
    parts.append(_byte(_sigmoid(splats.logits) * 255))
    parts.append(_byte(splats.sh[:, 0] * (_SPZ_COLOUR * 255) + 127.5))
    parts.append(_byte((splats.log_scales + 10) * 16))
    quats = splats.quats.copy()
    quats[:, 1:] *= _SPZ_FLIP
    others, largest = _without_largest(np.roll(quats, -1, axis=1))
    words = (
        np.floor(511 * np.abs(others) / math.sqrt(0.5) + 0.5).astype(np.uint32) | (others < 0).astype(np.uint32) << 9
    )
    parts.append((largest << 30 | words[:, 0] << 20 | words[:, 1] << 10 | words[:, 2]).astype("<u4"))
    if higher:
        bucket = np.where(np.arange(higher) < 3, 8, 16)[:, None]
        steps = np.rint(splats.sh[:, 1:] * _SPZ_SH[:higher, None] * 128).astype(np.int64) + 128
        parts.append(np.clip((steps + bucket // 2) // bucket * bucket, 0, 255).astype(np.uint8))
    degree = math.isqrt(higher + 1) - 1
    head = struct.pack("<IIIBBBB", _SPZ_MAGIC, 3, count, degree, fraction, 0, 0)
    packer = zlib.compressobj(6, zlib.DEFLATED, 31, 9)
    return b"".join([packer.compress(head), *(packer.compress(part.tobytes()) for part in parts), packer.flush()])


# --- .splat (github.com/antimatter15/splat, MIT) ---------------------------------------------------------------------


def _splat_bytes(splats: Splats) -> bytes:
    """32 bytes a Gaussian: position and scale as float32, RGB and opacity as bytes, the unit quaternion times 128."""
    record = np.empty(len(splats), [("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])
    record["means"] = splats.means
    record["scales"] = np.exp(splats.log_scales)
    record["rgba"][:, :3] = _byte((splats.sh[:, 0] * _SH_C0 + 0.5) * 255)
    record["rgba"][:, 3] = _byte(_sigmoid(splats.logits) * 255)
    record["quats"] = _byte(splats.quats / _length(splats.quats) * 128 + 128)
    return record.tobytes()


# --- numbers that several formats share ------------------------------------------------------------------------------


def _byte(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits))


def _logit(opacity: np.ndarray) -> np.ndarray:
    """Of opacities in 255ths: 0 and 1 become a quarter of a step away from it, which rounds back to the same byte."""
    clamped = np.clip(opacity, 0.25 / 255, 1 - 0.25 / 255)
    return np.log(clamped / (1 - clamped)).astype(np.float32)


def _length(quats: np.ndarray) -> np.ndarray:  # [N, 1], of float32 numbers of any size
    return np.maximum(np.linalg.norm(quats.astype(np.float64), axis=1, keepdims=True), 1e-30)


def _without_largest(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([N, 3] the components but the largest, of the unit quaternion whose largest is positive; [N] which that is)."""
    unit = quats / _length(quats)
    largest = np.abs(unit).argmax(1)
    rows = np.arange(len(unit))
    unit = np.where(unit[rows, largest, None] < 0, -unit, unit)
    keep = np.arange(4) != largest[:, None]
    return unit[keep].reshape(-1, 3), largest.astype(np.uint32)


def _with_largest(others: np.ndarray, largest: np.ndarray) -> np.ndarray:  # [N, 3], [N] -> [N, 4] float32
    quats = np.empty((len(others), 4), np.float32)
    keep = np.arange(4) != largest[:, None]
    quats[keep] = others.ravel()
    quats[~keep] = np.sqrt(np.maximum(0, 1 - np.square(others).sum(1)))
    return quats
