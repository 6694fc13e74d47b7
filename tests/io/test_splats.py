"""Splat scenes in and out: the exact is exact, the packed agrees with a plain decoder, the bad is refused."""

from __future__ import annotations

import gzip
import math
import os
import struct
import time
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdsedit.errors import InputRefused
from sdsedit.io import splats as module
from sdsedit.io.splats import Splats, encode, read, read_bounded, write
from sdsedit.render.splats import colours

QUICK = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
KINDS = ("ply", "compressed.ply", "spz")


def scene(count: int = 600, degree: int = 1, seed: int = 0, normals: bool = True) -> Splats:
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    extra = {name: np.zeros(count, np.float32) for name in ("nx", "ny", "nz")} if normals else {}
    quats = normal(count, 4) + np.float32(0.01)
    sh = normal(count, (degree + 1) ** 2, 3) * np.float32(0.3)
    return Splats(normal(count, 3), quats, normal(count, 3) / 2 - 4, normal(count) * 3, sh, extra)


def inria(splats: Splats, extra: str = "", comments: str = "") -> bytes:
    """A PLY as INRIA's trainer writes it, one value after the other: what `encode` must give, byte for byte."""
    higher = splats.sh.shape[1] - 1
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *(f"f_rest_{i}" for i in range(3 * higher))]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    head = f"ply\nformat binary_little_endian 1.0\n{comments}element vertex {len(splats)}\n"
    head += "".join(f"property float {name}\n" for name in names) + extra + "end_header\n"
    rows = []
    for i in range(len(splats)):
        row = [*splats.means[i], 0, 0, 0, *splats.sh[i, 0]]
        row += [splats.sh[i, 1 + k, channel] for channel in range(3) for k in range(higher)]
        row += [splats.logits[i], *splats.log_scales[i], *splats.quats[i]]
        rows.append(struct.pack(f"<{len(row)}f", *row))
        if extra:
            rows.append(struct.pack("<iB", i - 7, i % 5))
    return head.encode() + b"".join(rows)


def same(a: Splats, b: Splats) -> None:
    for name in ("means", "quats", "log_scales", "logits", "sh"):
        one, other = getattr(a, name), getattr(b, name)
        assert one.dtype == np.float32 and np.array_equal(one, other), name
    assert a.extra.keys() == b.extra.keys() and a.comments == b.comments
    for name, column in a.extra.items():
        assert column.dtype == b.extra[name].dtype and np.array_equal(column, b.extra[name])


def refusal(path: Path, data: bytes | None = None, status: int = 422) -> str:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(InputRefused) as caught:
        read(path)
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said and len(said) < 250 and str(path.parent) not in said, said
    assert caught.value.status == status, said
    return said


def rotations(quats: np.ndarray) -> np.ndarray:  # [N, 4] wxyz -> [N, 3, 3]
    w, x, y, z = (quats / np.linalg.norm(quats.astype(np.float64), axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


# --- INRIA's PLY -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_ply_is_what_inria_writes_and_comes_back_byte_for_byte(tmp_path: Path, degree: int) -> None:
    path = tmp_path / "scene.ply"
    wanted = inria(scene(degree=degree))
    assert encode(scene(degree=degree), "a.ply") == wanted
    path.write_bytes(wanted)
    found = read(path)
    same(found, scene(degree=degree))
    write(path, found)
    assert path.read_bytes() == wanted


def test_unknown_properties_and_comments_are_kept_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "scene.ply"
    extra = "property int age\nproperty uchar part\n"
    comments = 'comment made by hand\ncomment \ncomment {"schema": 1, "target": "a cat"}\ncomment   two  spaces \n'
    wanted = inria(scene(), extra, comments)
    path.write_bytes(wanted)
    found = read(path)
    assert found.comments == ("made by hand", "", '{"schema": 1, "target": "a cat"}', "  two  spaces ")
    assert found.extra["part"].dtype == np.uint8 and found.extra["age"].tolist()[:3] == [-7, -6, -5]
    write(path, found)
    assert path.read_bytes() == wanted


@pytest.mark.parametrize("seed", range(4))
def test_any_order_and_any_types_come_back(tmp_path: Path, seed: int) -> None:
    """Properties shuffled, extra ones of every type between them: the same bytes again."""
    splats = scene(40_000 if seed == 0 else 50, normals=False)  # more than the blocks that are read at a time
    types = ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"]
    splats.extra = {f"of_{code}": np.arange(len(splats)).astype(code) for code in types}
    plain = tmp_path / "plain.ply"
    write(plain, splats)
    order = list(read(plain).order)
    np.random.default_rng(seed).shuffle(order)
    shuffled = encode(replace(splats, order=tuple(order)), "a.ply")
    plain.write_bytes(shuffled)
    found = read(plain)
    assert found.order == tuple(order)
    same(replace(found, extra={name: found.extra[name] for name in splats.extra}), splats)
    assert encode(found, "a.ply") == shuffled
    found.extra["part"] = np.zeros(len(splats), np.uint8)  # what is new goes last, the others stay where they were
    write(plain, found)
    assert read(plain).order == (*order, "part")


@pytest.mark.parametrize("bits", ["<f8", ">f4", ">f8"])
def test_doubles_and_big_endian_are_read(tmp_path: Path, bits: str) -> None:
    splats = scene(30)
    data = encode(splats, "a.ply")
    head, _, body = data.partition(b"end_header\n")
    if bits.endswith("8"):
        head = head.replace(b"property float ", b"property double ")
    if bits.startswith(">"):
        head = head.replace(b"little", b"big")
    numbers = np.frombuffer(body, "<f4").astype(bits)
    path = tmp_path / "scene.ply"
    path.write_bytes(head + b"end_header\n" + numbers.tobytes())
    found = read(path)
    for name in ("means", "quats", "log_scales", "logits", "sh"):
        assert np.array_equal(getattr(found, name), getattr(splats, name))


def test_lines_may_end_as_on_windows_and_other_elements_are_passed_over(tmp_path: Path) -> None:
    head, _, body = encode(scene(30), "a.ply").partition(b"end_header\n")
    path = tmp_path / "scene.ply"
    path.write_bytes(head.replace(b"\n", b"\r\n") + b"end_header\r\n" + body)
    same(read(path), scene(30))
    before, after = b"element eye 2\nproperty float a\nproperty uchar b\n", b"element size 1\nproperty uint w\n"
    head = head.replace(b"element vertex", before + b"element vertex") + after
    path.write_bytes(head + b"end_header\n" + bytes(10) + body + bytes(4))
    same(read(path), scene(30))


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "scene.ply"
    write(path, scene(10))
    before = path.read_bytes()
    (tmp_path / "folder.ply").mkdir()
    with pytest.raises(OSError):
        write(tmp_path / "folder.ply", scene(20))
    with pytest.raises(InputRefused, match="must end in"):
        write(tmp_path / "scene.obj", scene(20))
    bad = scene(20)
    bad.means[7, 1] = np.nan
    with pytest.raises(InputRefused, match="Gaussian 7"):
        write(path, bad)
    assert path.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["folder.ply", "scene.ply"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"means": np.zeros((0, 3), np.float32)}, "at least one"),
        ({"quats": np.zeros((9, 4), np.float32)}, "quats"),
        ({"sh": np.zeros((10, 2, 3), np.float32)}, "sh"),
        ({"sh": np.zeros((10, 3), np.float32)}, "sh"),
        ({"logits": np.zeros((10, 1), np.float32)}, "logits"),
        ({"extra": {"part": np.zeros(9)}}, "part"),
        ({"extra": {"part": np.zeros(10, np.int64)}}, "part"),
        ({"extra": {"two words": np.zeros(10, np.uint8)}}, "two words"),
        ({"extra": {"rot_0": np.zeros(10, np.uint8)}}, "extra property"),
        ({"comments": ("a\nelement face 3",)}, "one line"),
        ({"comments": ("x" * 70_000,)}, "64 KiB"),
    ],
)
def test_scenes_that_cannot_be_written(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encode(replace(scene(10), **change), "a.ply")


# --- packed formats, against plain decoders of one Gaussian at a time ------------------------------------------------


def plain_compressed(data: bytes) -> list[dict[str, list[float]]]:
    """PlayCanvas's decoder, one Gaussian after the other."""
    head, _, body = data.partition(b"end_header\n")
    lines = head.decode().splitlines()
    counts = {line.split()[1]: int(line.split()[2]) for line in lines if line.startswith("element")}
    assert list(counts)[:2] == ["chunk", "vertex"]
    rest = sum("f_rest_" in line for line in lines)
    chunks = [struct.unpack_from("<18f", body, 72 * i) for i in range(counts["chunk"])]
    found = []
    for i in range(counts["vertex"]):
        position, rotation, scale, colour = struct.unpack_from("<4I", body, 72 * len(chunks) + 16 * i)
        bound = chunks[i // 256]

        def three(word: int, low: int, bound: tuple[float, ...] = bound) -> list[float]:
            shares = (word >> 21) / 2047, (word >> 11 & 1023) / 1023, (word & 2047) / 2047
            return [bound[low + k] * (1 - s) + bound[low + 3 + k] * s for k, s in enumerate(shares)]

        others = [((rotation >> shift & 1023) / 1023 - 0.5) * math.sqrt(2) for shift in (20, 10, 0)]
        quaternion = others.copy()
        quaternion.insert(rotation >> 30, math.sqrt(max(0, 1 - sum(o * o for o in others))))
        shares = [(colour >> shift & 255) / 255 for shift in (24, 16, 8)]
        rgb = [bound[12 + k] * (1 - s) + bound[15 + k] * s for k, s in enumerate(shares)]
        offset = 72 * len(chunks) + 16 * counts["vertex"] + rest * i
        found.append(
            {
                "means": three(position, 0),
                "log_scales": three(scale, 6),
                "quats": quaternion,
                "dc": [(c - 0.5) / 0.28209479177387814 for c in rgb],
                "opacity": [(colour & 255) / 255],
                "rest": [
                    ((0 if b == 0 else 1 if b == 255 else (b + 0.5) / 256) - 0.5) * 8 for b in body[offset:][:rest]
                ],
            }
        )
    return found


def plain_spz(data: bytes) -> list[dict[str, list[float]]]:
    """Niantic's decoder, one Gaussian after the other, in the file's own axes (y up, z backward)."""
    raw = gzip.decompress(data)
    magic, version, count, degree, fraction, flags, zero = struct.unpack_from("<IIIBBBB", raw)
    assert (magic, version, flags, zero) == (0x5053474E, 3, 0, 0)
    higher = (degree + 1) ** 2 - 1
    starts = np.cumsum([16, 9 * count, count, 3 * count, 3 * count, 4 * count])
    assert len(raw) == starts[-1] + 3 * higher * count
    found = []
    for i in range(count):
        position = raw[starts[0] + 9 * i :][:9]
        (word,) = struct.unpack_from("<I", raw, starts[4] + 4 * i)
        largest, quaternion, square = word >> 30, [0.0] * 4, 0.0
        for k in (3, 2, 1, 0):  # x, y, z, w
            if k != largest:
                quaternion[k] = math.sqrt(0.5) * (word & 511) / 511 * (-1 if word & 512 else 1)
                square += quaternion[k] ** 2
                word >>= 10
        quaternion[largest] = math.sqrt(max(0, 1 - square))
        sh = [(b - 128) / 128 for b in raw[starts[5] + 3 * higher * i :][: 3 * higher]]
        found.append(
            {
                "means": [
                    int.from_bytes(position[3 * k : 3 * k + 3], "little", signed=True) / 2**fraction for k in range(3)
                ],
                "opacity": [raw[starts[1] + i] / 255],
                "dc": [(b / 255 - 0.5) / 0.15 for b in raw[starts[2] + 3 * i :][:3]],
                "log_scales": [b / 16 - 10 for b in raw[starts[3] + 3 * i :][:3]],
                "quats": [quaternion[3], *quaternion[:3]],
                "rest": [sh[3 * k + channel] for channel in range(3) for k in range(higher)],
            }
        )
    return found


def columns(rows: list[dict[str, list[float]]]) -> dict[str, np.ndarray]:
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


def as_columns(splats: Splats) -> dict[str, np.ndarray]:
    rest = splats.sh[:, 1:].transpose(0, 2, 1).reshape(len(splats), -1)
    opacity = 1 / (1 + np.exp(-splats.logits.astype(np.float64)))
    return {
        "means": splats.means, "log_scales": splats.log_scales, "quats": splats.quats, "dc": splats.sh[:, 0],
        "opacity": opacity[:, None], "rest": rest,
    }  # fmt: skip


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("count", [1, 256, 257, 600])
def test_compressed_ply(tmp_path: Path, degree: int, count: int) -> None:
    splats = replace(scene(count, degree), comments=("kept",))
    splats.sh[:, 1:] = np.clip(splats.sh[:, 1:], -3.9, 3.9)
    path = tmp_path / "scene.compressed.ply"
    write(path, splats)
    found, plain = as_columns(read(path)), columns(plain_compressed(path.read_bytes()))
    assert read(path).comments == ("kept",) and read(path).extra == {}
    for key, values in found.items():
        np.testing.assert_allclose(values, plain[key], atol=2e-3 if key == "opacity" else 2e-5, err_msg=key)
    # And it is the scene that was given: each Gaussian within a step of the nearest one, which is itself.
    wanted = as_columns(splats)
    nearest = np.argmin(np.abs(found["means"][:, None] - wanted["means"][None]).sum(2), axis=1)
    assert sorted(nearest) == list(range(count))
    step = {key: np.ptp(wanted[key], 0).max() for key in ("means", "log_scales", "dc")}
    for key, bits in (("means", 10), ("log_scales", 10), ("dc", 8)):
        assert np.abs(found[key] - wanted[key][nearest]).max() <= step[key] / (2**bits - 1) / 2 + 1e-5, key
    assert np.abs(found["opacity"] - wanted["opacity"][nearest]).max() <= 0.5 / 255 + 1e-3
    assert np.abs(found["rest"] - wanted["rest"][nearest]).max(initial=0) <= 0.5 / 32 + 1e-5
    difference = rotations(found["quats"]) - rotations(wanted["quats"][nearest])
    assert np.abs(difference).max() < 5e-3


def test_compressed_ply_of_the_older_kind_without_colour_bounds(tmp_path: Path) -> None:
    path = tmp_path / "scene.compressed.ply"
    chunk = [f"{end}_{what}{axis}" for what in ("", "scale_") for end in ("min", "max") for axis in "xyz"]
    lines = ["ply", "format binary_little_endian 1.0", "element chunk 1", *(f"property float {name}" for name in chunk)]
    lines += [
        "element vertex 1",
        *(f"property uint packed_{what}" for what in ("position", "rotation", "scale", "color")),
    ]
    body = struct.pack("<12f", 0, 0, 0, 1, 2, 4, -5, -5, -5, -1, -1, -1)
    body += struct.pack("<4I", 2047 << 21 | 1023, 0x1FF << 20 | 0x200 << 10 | 0x1FF, 0, 255 << 24 | 51 << 8 | 255)
    path.write_bytes(("\n".join(lines) + "\nend_header\n").encode() + body)
    found = read(path)
    np.testing.assert_allclose(found.means, [[1, 0, 4 * 1023 / 2047]], atol=1e-5)
    np.testing.assert_allclose(found.sh[0, 0] * 0.28209479177387814 + 0.5, [1, 0, 0.2], atol=1e-6)
    assert found.logits[0] > 5 and np.isfinite(found.logits).all()
    assert abs(found.quats[0, 0] - 1) < 1e-5


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_spz(tmp_path: Path, degree: int) -> None:
    splats = scene(300, degree)
    splats.sh[:, 1:] = np.clip(splats.sh[:, 1:], -0.9, 0.9)
    splats.sh[:, 0] = np.clip(splats.sh[:, 0], -3, 3)
    path = tmp_path / "scene.spz"
    write(path, splats)
    read_back, plain = read(path), columns(plain_spz(path.read_bytes()))
    found, wanted = as_columns(read_back), as_columns(splats)
    flip = np.array([1, -1, -1])
    np.testing.assert_allclose(found["means"], plain["means"] * flip, atol=1e-6)
    np.testing.assert_allclose(found["quats"], plain["quats"] * [1, 1, -1, -1], atol=1e-6)
    np.testing.assert_allclose(np.abs(found["rest"]), np.abs(plain["rest"]), atol=1e-6)
    for key, tolerance in (("log_scales", 1e-6), ("dc", 1e-6), ("opacity", 1.1e-3)):
        np.testing.assert_allclose(found[key], plain[key], atol=tolerance, err_msg=key)
    steps = {"means": 2.0**-17, "log_scales": 1 / 32, "dc": 0.5 / 255 / 0.15, "opacity": 0.5 / 255 + 1e-3, "rest": 0.07}
    for key, step in steps.items():
        assert np.abs(found[key] - wanted[key]).max(initial=0) <= step + 1e-5, key
    assert np.abs(rotations(found["quats"]) - rotations(wanted["quats"])).max() < 1e-2


def test_spz_axes_are_turned_with_all_that_has_a_direction(tmp_path: Path) -> None:
    """F = diag(1, -1, -1) takes the file's axes to ours: means F m, rotations F R F, and a colour seen along d in the
    file is the colour seen along F d in ours."""
    splats = scene(50, 3)
    splats.sh *= np.float32(0.5)
    path = tmp_path / "scene.spz"
    write(path, splats)
    found, raw = read(path), columns(plain_spz(path.read_bytes()))
    F = np.diag([1.0, -1.0, -1.0])
    np.testing.assert_allclose(rotations(found.quats), F @ rotations(raw["quats"]) @ F, atol=1e-5)
    sh = np.concatenate([raw["dc"][:, None], raw["rest"].reshape(50, 3, 15).transpose(0, 2, 1)], 1)
    towards = np.random.default_rng(1).standard_normal((50, 3))
    eye = torch.eye(4).double()[None]  # a camera at the origin sees a Gaussian along its mean
    ours = colours(torch.from_numpy(found.sh).double(), torch.from_numpy(towards @ F), eye)
    theirs = colours(torch.from_numpy(sh), torch.from_numpy(towards), eye)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_spz_of_version_2(tmp_path: Path) -> None:
    raw = struct.pack("<IIIBBBB", 0x5053474E, 2, 1, 0, 12, 0, 0)
    raw += b"".join(int(v * 4096).to_bytes(3, "little", signed=True) for v in (1.5, -2.25, 3))
    raw += bytes([255, 0, 128, 255, 160, 160, 160, 255, 128, 0])
    path = tmp_path / "scene.spz"
    path.write_bytes(gzip.compress(raw))
    found = read(path)
    assert found.means.tolist() == [[1.5, 2.25, -3.0]] and found.log_scales.tolist() == [[0, 0, 0]]
    x, y, z = 255 / 127.5 - 1, 128 / 127.5 - 1, -1.0
    np.testing.assert_allclose(found.quats, [[0, x, -y, -z]], atol=1e-6)
    assert np.isfinite(found.logits).all() and found.sh.shape == (1, 1, 3)


@pytest.mark.parametrize("reach", [1e-3, 1.0, 100.0, 2e6])
def test_spz_takes_the_finest_steps_that_fit(tmp_path: Path, reach: float) -> None:
    splats = scene(100, 0)
    splats.means *= np.float32(reach / np.abs(splats.means).max())
    write(tmp_path / "a.spz", splats)
    error = np.abs(read(tmp_path / "a.spz").means - splats.means).max()
    assert error <= max(reach / 2**22, 2.0**-17) * 1.01
    splats.means *= np.float32(1e7 / reach)
    with pytest.raises(InputRefused, match="holds positions up to"):
        write(tmp_path / "a.spz", splats)


def test_packing_into_spz_again_loses_nothing_more(tmp_path: Path) -> None:
    write(tmp_path / "a.spz", scene(500, 2))
    once = read(tmp_path / "a.spz")
    write(tmp_path / "b.spz", once)
    twice = read(tmp_path / "b.spz")
    for name in ("means", "log_scales", "logits", "sh"):
        np.testing.assert_array_equal(getattr(once, name), getattr(twice, name))


def test_splat_for_viewers(tmp_path: Path) -> None:
    splats = scene(20, 2)
    write(tmp_path / "a.splat", splats)
    data = (tmp_path / "a.splat").read_bytes()
    assert len(data) == 20 * 32
    for i in range(20):
        numbers = struct.unpack_from("<6f8B", data, 32 * i)
        assert numbers[:3] == tuple(splats.means[i])
        np.testing.assert_allclose(numbers[3:6], np.exp(splats.log_scales[i]), rtol=1e-6)
        wanted = np.clip((0.5 + 0.28209479177387814 * splats.sh[i, 0]) * 255, 0, 255)
        assert np.abs(np.array(numbers[6:9]) - wanted).max() <= 0.51
        assert abs(numbers[9] - 255 / (1 + math.exp(-splats.logits[i]))) <= 0.51
        unit = splats.quats[i] / np.linalg.norm(splats.quats[i])
        assert np.abs((np.array(numbers[10:]) - 128) / 128 - unit).max() <= 1 / 128
    assert "made for viewers" in refusal(tmp_path / "a.splat", status=415)


@pytest.mark.parametrize("kind", ["ply", "compressed.ply", "spz", "splat"])
def test_the_same_scene_is_the_same_file(kind: str) -> None:
    assert encode(scene(300, 1), f"a.{kind}") == encode(scene(300, 1), f"A.{kind.upper()}")


# --- refusals --------------------------------------------------------------------------------------------------------


def test_refused_paths(tmp_path: Path) -> None:
    assert "is not there" in refusal(tmp_path / "none.ply")
    assert "is a folder" in refusal(tmp_path)
    with pytest.raises(InputRefused, match="never fetched"):
        read("https://example.org/a.ply")
    for data in (b"", b"solid", b"PK\x03\x04", b"\x89PNG"):
        assert "of a kind" in refusal(tmp_path / "a.ply", data, 415)
    assert "version 4" in refusal(tmp_path / "a.spz", b"NGSP" + bytes(40))
    assert "no SPZ" in refusal(tmp_path / "a.spz", gzip.compress(b"hello world, hello world"), 415)
    write(tmp_path / "b.ply", scene(10))
    with pytest.raises(InputRefused) as caught:
        read(tmp_path / "b.ply", max_bytes=100)
    assert caught.value.status == 413


def test_meshes_and_point_clouds_are_refused(tmp_path: Path) -> None:
    mesh = b"ply\nformat binary_little_endian 1.0\nelement vertex 3\n"
    mesh += b"".join(b"property float %c\n" % axis for axis in b"xyz")
    faces = b"element face 1\nproperty list uchar int vertex_indices\n"
    body = bytes(36)
    said = "is a mesh / point cloud, not a splat scene."
    assert said in refusal(tmp_path / "a.ply", mesh + faces + b"end_header\n" + body + b"\3" + bytes(12))
    assert said in refusal(tmp_path / "a.ply", mesh + b"end_header\n" + body)
    coloured = mesh.replace(b"property float z\n", b"property float z\nproperty uchar red\n")
    assert said in refusal(tmp_path / "a.ply", coloured + b"end_header\n" + bytes(39))
    assert said in refusal(
        tmp_path / "a.ply",
        b"ply\nformat ascii 1.0\nelement face 0\nend_header\n".replace(b"ascii", b"binary_little_endian"),
    )
    assert "ASCII" in refusal(
        tmp_path / "a.ply", mesh.replace(b"binary_little_endian", b"ascii") + b"end_header\n0 0 0"
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"element vertex 20", b"element vertex 1000000000000", "announces"),
        (b"element vertex 20", b"element vertex 999999999999999999", "announces"),
        (b"element vertex 20", b"element vertex 19", "announces"),
        (b"element vertex 20", b"element vertex 0", "no Gaussian"),
        (b"element vertex 20", b"element vertex -20", "damaged"),
        (b"element vertex 20", b"element vertex 20 3", "damaged"),
        (b"element vertex 20", b"element vertex " + b"9" * 5000, "damaged"),
        (b"element vertex 20", b"element vertex 20\nelement vertex 20", "damaged"),
        (b"format binary_little_endian 1.0\n", b"", "no format"),
        (b"binary_little_endian", b"binary", "damaged"),
        (b"ply\nformat", b"plyx\nformat", "first line"),
        (b"property float opacity\n", b"", "announces"),
        (b"property float opacity", b"property float other", "no opacity"),
        (b"property float scale_2", b"property float other", "no scale_2"),
        (b"property float f_dc_1", b"property float other", "no f_dc_1"),
        (b"property float rot_3", b"property float rot_2", "twice"),
        (b"property float rot_3", b"property half rot_3", "damaged"),
        (b"property float rot_3", b"property int rot_3", "not of the type float"),
        (b"property float rot_3", b"property float", "damaged"),
        (b"property float f_rest_8", b"property float f_rest_9", "SH properties"),
        (b"property float f_rest_8", b"property float other", "SH properties"),
        (b"property float nx", b"property float f_rest_9", "SH properties"),
        (b"end_header\n", b"", "does not end"),
    ],
)
def test_refused_headers(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    data = encode(scene(20), "a.ply")
    assert data.count(old) == 1
    assert said in refusal(tmp_path / "a.ply", data.replace(old, new))


def test_a_header_that_does_not_end_is_left_at_64_kib(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    with path.open("wb") as stream:
        stream.write(b"ply\nformat binary_little_endian 1.0\n")
        stream.write(b"comment x\n" * 100_000)
        stream.truncate(2**31)  # a sparse file: 2 GiB of zeros
    start = time.monotonic()
    tracemalloc.start()
    assert "does not end within 64 KiB" in refusal(path)
    assert tracemalloc.get_traced_memory()[1] < 2**21 and time.monotonic() - start < 1
    tracemalloc.stop()


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_file_announces_is_not_allocated(tmp_path: Path, kind: str) -> None:
    data = encode(scene(20, 0), f"a.{kind}")
    if kind == "spz":
        raw = bytearray(gzip.decompress(data))
        bad = []
        for count in (16_000_000, 2**32 - 1):
            raw[8:12] = struct.pack("<I", count)
            bad.append(gzip.compress(bytes(raw)))
    else:
        bad = [data.replace(b"element vertex 20", b"element vertex %d" % count) for count in (15_000_000, 10**12)]
    for each in bad:
        tracemalloc.start()
        (tmp_path / f"a.{kind}").write_bytes(each)
        with pytest.raises(InputRefused):
            read(tmp_path / f"a.{kind}")
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
        tracemalloc.stop()


def test_spz_bombs(tmp_path: Path) -> None:
    """Much that packs into little: too many Gaussians, more than 100 times the file, more behind the scene."""

    def packed(start: bytes, zeros: int) -> bytes:
        packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        block = bytes(2**20)
        return packer.compress(start) + b"".join(packer.compress(block) for _ in range(zeros)) + packer.flush()

    def head(count: int) -> bytes:
        return struct.pack("<IIIBBBB", 0x5053474E, 3, count, 0, 12, 0, 0)

    path = tmp_path / "a.spz"
    tracemalloc.start()
    assert "more than the limit" in refusal(path, packed(head(2**30 // 20), 32), status=413)
    assert "100 times" in refusal(path, packed(head(32 * 2**20 // 20), 32))
    assert "more than the 5 Gaussians" in refusal(path, packed(gzip.decompress(encode(scene(5, 0), "a.spz")), 32))
    assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("means", np.nan, "position"),
        ("means", np.inf, "position"),
        ("means", 1e20, "position"),
        ("quats", np.nan, "rotation"),
        ("log_scales", -np.inf, "scale"),
        ("log_scales", 31.0, "scale"),
        ("logits", np.inf, "opacity"),
        ("sh", np.nan, "colour"),
    ],
)
def test_numbers_that_cannot_be_drawn(tmp_path: Path, where: str, value: float, said: str) -> None:
    splats = scene(40_000)
    good = encode(splats, "a.ply")
    getattr(splats, where)[[31_000, 39_999]] = value
    table = np.frombuffer(good.partition(b"end_header\n")[2], np.uint8).reshape(40_000, -1)
    head = good[: len(good) - table.size]
    # encode refuses such a scene itself, so the bytes are made of those of a good one
    rows = inria(Splats(*(getattr(splats, f)[31_000:31_001] for f in ("means", "quats", "log_scales", "logits", "sh"))))
    table = table.copy()
    table[[31_000, 39_999]] = np.frombuffer(rows.partition(b"end_header\n")[2], np.uint8)
    sentence = refusal(tmp_path / "a.ply", head + table.tobytes())
    assert "Gaussian 31000 " in sentence and said in sentence
    with pytest.raises(InputRefused, match="Gaussian 31000 "):
        encode(splats, "a.ply")


def test_the_first_bad_gaussian_is_named(tmp_path: Path) -> None:
    splats = scene(100)
    data = bytearray(inria(splats))
    start, stride = data.index(b"end_header\n") + 11, 26 * 4
    struct.pack_into("<f", data, start + 60 * stride, math.nan)
    struct.pack_into("<4f", data, start + 50 * stride + 22 * 4, 0, 0, 0, 0)
    sentence = refusal(tmp_path / "a.ply", bytes(data))
    assert "Gaussian 50 " in sentence and "quaternion of 0" in sentence


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"element chunk 3", b"element chunk 2", "announces"),
        (b"property float min_x", b"property int min_x", "missing or of another type"),
        (b"property float min_x", b"property float other", "missing or of another type"),
        (b"property float max_r", b"property float other", "missing or of another type"),
        (b"property uint packed_scale", b"property int packed_scale", "missing or of another type"),
        (b"property uchar f_rest_8", b"property char f_rest_8", "bytes"),
        (b"property uchar f_rest_8", b"property uchar f_rest_9", "SH properties"),
        (b"element chunk 3", b"element chunks 3", "splat scene"),
        (b"element sh 600", b"element sh 600\nelement other 600", "sh must have"),
    ],
)
def test_refused_compressed(tmp_path: Path, old: bytes, new: bytes, said: str) -> None:
    data = encode(scene(600, 1), "a.compressed.ply")
    assert data.count(old + b"\n") == 1
    sentence = refusal(tmp_path / "a.ply", data.replace(old + b"\n", new + b"\n"))
    assert said in sentence


def test_refused_bounds_of_compressed(tmp_path: Path) -> None:
    data = bytearray(encode(scene(600, 1), "a.compressed.ply"))
    start = data.index(b"end_header\n") + 11
    for value, said in ((math.nan, "bounds that are not finite"), (3e38, "not finite or too large")):
        struct.pack_into("<f", data, start + 72 + 12, value)
        sentence = refusal(tmp_path / "a.ply", bytes(data))
        assert said in sentence and "Gaussian " in sentence
        assert 256 <= int(sentence.split()[1]) < 512


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 1}, "version 1"),
        ({"version": 4}, "version 4"),
        ({"count": 0}, "no Gaussian"),
        ({"count": 51}, "cut short"),
        ({"count": 49}, "more than the 49"),
        ({"degree": 4}, "degree 4"),
        ({"fraction": 25}, "25 bits"),
        ({"flags": 2}, "extensions"),
    ],
)
def test_refused_spz(tmp_path: Path, change: dict, said: str) -> None:
    raw = gzip.decompress(encode(scene(50, 1), "a.spz"))
    head = {"version": 3, "count": 50, "degree": 1, "fraction": 12, "flags": 0} | change
    packed = gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, *head.values(), 0) + raw[16:])
    assert said in refusal(tmp_path / "a.spz", packed)


def test_spz_whose_end_is_missing_or_wrong(tmp_path: Path) -> None:
    data = encode(scene(50, 1), "a.spz")
    for bad in (data[:-1], data[:-8], data[: len(data) // 2], data[:12], data[:3], data[:-8] + b"\0\0\0\0" + data[-4:]):
        assert "cut short" in refusal(tmp_path / "a.spz", bad)


def good(path: Path) -> Splats | None:
    """A scene of finite numbers, or None for one that was refused in a sentence; any other error is the test's."""
    try:
        found = read(path)
    except InputRefused as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        return None
    for name in ("means", "quats", "log_scales", "logits", "sh"):
        assert np.isfinite(getattr(found, name)).all()
    assert len(found) >= 1 and np.abs(found.quats).max(1).all()
    return found


@QUICK
@given(st.data())
@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_refused_or_read(tmp_path: Path, kind: str, data: st.DataObject) -> None:
    """Cut, overwritten, lengthened, in header or numbers: refused, or a scene of finite numbers; never an error."""
    whole = encode(scene(300, data.draw(st.sampled_from([0, 1]))), f"a.{kind}")
    if kind == "spz" and data.draw(st.booleans()):  # inside what is packed too, where no checksum helps
        whole, pack = gzip.decompress(whole), gzip.compress
    else:
        pack = bytes
    broken = bytearray(whole)
    header = 16 if kind == "spz" else whole.index(b"end_header") + 12
    for _ in range(data.draw(st.integers(0, 4))):
        where = data.draw(st.integers(0, header) | st.integers(0, len(broken) - 1))
        piece = data.draw(
            st.binary(min_size=1, max_size=6)
            | st.sampled_from(
                [b"\0\0\xc0\x7f", b"\xff" * 4, b"property list uchar int a\n", b"element a 9\n", b"double", b"9"]
            )
        )
        broken[where : where + data.draw(st.sampled_from([0, len(piece)]))] = piece
    cut = data.draw(st.none() | st.integers(0, len(broken)))
    path = tmp_path / f"a.{kind}"
    path.write_bytes(pack(bytes(broken[:cut])))
    start = time.monotonic()
    good(path)
    assert time.monotonic() - start < 5


@QUICK
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"ply\n", b"ply\nformat binary_little_endian 1.0\n", b"\x1f\x8b\x08"]),
)
def test_noise_is_refused(tmp_path: Path, noise: bytes, start: bytes) -> None:
    (tmp_path / "a.ply").write_bytes(start + noise)
    assert good(tmp_path / "a.ply") is None


@QUICK
@given(
    st.integers(1, 40),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-6, 1.0, 1e4]),
    st.sampled_from(KINDS),
)
def test_any_scene_comes_back(tmp_path: Path, count: int, degree: int, seed: int, size: float, kind: str) -> None:
    splats = scene(count, degree, seed)
    splats.means *= np.float32(size)
    path = tmp_path / f"a.{kind}"
    write(path, splats)
    found = read(path)
    assert len(found) == count and found.sh.shape == splats.sh.shape
    if kind == "ply":
        same(found, splats)


# --- in a process of its own


@pytest.mark.parametrize("kind", KINDS)
def test_bounded_reading_is_the_same(tmp_path: Path, kind: str) -> None:
    splats = scene(700, 1)
    splats.extra["part"] = np.arange(700).astype(np.uint8)  # after it, an array begins where it may not
    splats.extra["far"] = np.linspace(0, 1, 700)
    splats.comments = ("a \udcff comment", "é")
    write(tmp_path / f"a.{kind}", splats)
    found, expected = read_bounded(tmp_path / f"a.{kind}"), read(tmp_path / f"a.{kind}")
    same(found, expected)
    assert found.order == expected.order
    found.means[0] = 7.0  # the arrays are this process's own
    assert (found.means[0] == 7).all() and (read_bounded(tmp_path / f"a.{kind}").means[0] != 7).all()


def test_bounded_reading_refuses_as_reading_does(tmp_path: Path) -> None:
    for name, data in (("a.ply", b"ply\nformat ascii 1.0\nend_header\n"), ("a.ply", b"mesh"), ("a.splat", b"x" * 32)):
        (tmp_path / name).write_bytes(data)
        refusals = []
        for reader in (read, read_bounded):
            with pytest.raises(InputRefused) as caught:
                reader(tmp_path / name)
            refusals.append((str(caught.value), caught.value.status))
        assert refusals[0] == refusals[1]
    with pytest.raises(InputRefused, match=r"^b\.ply is not there"):
        read_bounded(tmp_path / "b.ply")
    with pytest.raises(InputRefused, match="never fetched"):
        read_bounded("http://127.0.0.1:9/a.ply")
    with pytest.raises(InputRefused, match="larger than the limit of") as caught:
        read_bounded(tmp_path / "a.ply", max_bytes=1)
    assert caught.value.status == 413


def test_bounded_reading_survives_a_reader_that_dies(tmp_path: Path) -> None:
    write(tmp_path / "a.ply", scene(700, 1))
    with pytest.raises(
        InputRefused, match=r"^a\.ply cannot be read: reading it fails or needs over 19 MiB of memory\.$"
    ):
        read_bounded(tmp_path / "a.ply", memory=2**24)  # Python itself needs more
    with pytest.raises(InputRefused, match=r"^a\.ply takes longer than 0\.0\d+ seconds to read: make it smaller\.$"):
        read_bounded(tmp_path / "a.ply", seconds=0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"shapes": [[3, 3], [3, 4], [3, 3], [3], [3, 2, 3]]},
        {"shapes": [[3, 3], [3, 4], [3, 3], [3], [3, 1, 3], [3]]},
        {"shapes": [[3, 3]]},
        {"shapes": [[3, 3], [3, 4], [3, 3], [4], [3, 1, 3]]},
        {"shapes": [[10**12, 3], [3, 4], [3, 3], [3], [3, 1, 3]]},
        {"shapes": [[-3, -3], [3, 4], [3, 3], [3], [3, 1, 3]]},
        {"shapes": [["3", 3], [3, 4], [3, 3], [3], [3, 1, 3]]},
        {"shapes": None},
        {"extra": [["a", "O8"]]},
        {"extra": [["a", "u1"], ["a", "u1"]]},
        {"extra": [["a", "f8"]]},
        {"comments": [3]},
        {"comments": 3},
        {"order": None},
    ],
)
def test_a_child_is_not_believed(tmp_path: Path, change: dict) -> None:
    said = {"shapes": [[3, 3], [3, 4], [3, 3], [3], [3, 1, 3]], "extra": [], "comments": [], "order": []}
    sizes = (36, 48, 36, 12, 36)
    head = b"x" * 64
    data = head + b"".join(np.ones(size // 4, np.float32).tobytes() + bytes(-size % 64) for size in sizes)
    (tmp_path / "answer").write_bytes(data[: len(data) - (-sizes[-1] % 64)])
    with (tmp_path / "answer").open("rb") as answer:
        answer.seek(64)
        assert len(module._taken(said, answer)) == 3
        answer.seek(64)
        with pytest.raises((ValueError, TypeError, LookupError, AttributeError)):
            module._taken({**said, **change}, answer)
