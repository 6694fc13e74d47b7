"""Scenes: .ply, .compressed.ply and .spz with anything done to them, .splat as it is written; and round trips."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsedit.io.splats import MAX_LOG_SCALE, MAX_NUMBER, Splats, encode, read, read_bounded
from tests.properties.rules import damaged, examples, read_or_refused

KINDS = ("ply", "compressed.ply", "spz")
WORDS = [
    *(b"element vertex 3\n", b"element chunk 1\n", b"element sh 9\n", b"element face 0\n", b"end_header\n", b"ply\n"),
    *(
        b"property float x\n",
        b"property list uchar int a\n",
        b"property uchar f_rest_0\n",
        b"property double opacity\n",
    ),
    *(
        b"format ascii 1.0\n",
        b"format binary_big_endian 1.0\n",
        b"comment \xff\xfe\r\n",
        b"comment a\rb\n",
        b"obj_info \n",
    ),
    *(b"\n", b"\r", b" ", b"\t", b"0", b"9", b"-", b"1e9", b"999999999999", b"float", b"uint", b"double", b"\xff\x00"),
]


def scene(count: int, degree: int, seed: int, size: float = 1.0) -> Splats:
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    quats = normal(count, 4)
    quats[np.abs(quats).max(1) < 0.1] = 1
    extra = {"nx": normal(count), "part": random.integers(0, 255, count, dtype=np.uint8)} if seed % 2 else {}
    sh = normal(count, (degree + 1) ** 2, 3) * np.float32(0.3)
    return Splats(normal(count, 3) * np.float32(size), quats, normal(count, 3) / 2 - 4, normal(count) * 3, sh, extra)


WHOLE = {
    (kind, degree): encode(scene(40 if degree else 300, degree, degree + 1), f"a.{kind}")
    for kind in KINDS
    for degree in (0, 1, 3)
}


def holds(splats: Splats) -> None:
    count = len(splats)
    assert count >= 1 and splats.sh.shape[1] in (1, 4, 9, 16)
    shapes = {"means": (count, 3), "quats": (count, 4), "log_scales": (count, 3), "logits": (count,)}
    for name, shape in {**shapes, "sh": (count, splats.sh.shape[1], 3)}.items():
        values = getattr(splats, name)
        assert values.shape == shape and values.dtype == np.float32
        assert np.isfinite(values).all() and np.abs(values).max() <= MAX_NUMBER
    assert splats.log_scales.max() <= MAX_LOG_SCALE and (np.abs(splats.quats).max(1) > 0).all()
    assert all(column.shape == (count,) for column in splats.extra.values())


def same(a: Splats, b: Splats) -> None:
    for name in ("means", "quats", "log_scales", "logits", "sh"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert a.comments == b.comments and list(a.extra) == list(b.extra)
    for name, column in a.extra.items():
        assert column.dtype.newbyteorder("=") == b.extra[name].dtype.newbyteorder("=")
        assert column.tobytes() == b.extra[name].tobytes()


def look(folder: Path, name: str, data: bytes) -> Splats | None:
    """Read or refused; and a scene that could be read can be written in every format, or that is refused."""
    (folder / name).write_bytes(data)
    splats = read_or_refused(lambda: read(folder / name), folder)
    if splats is not None:
        holds(splats)
        (folder / "again.ply").write_bytes(encode(splats, "again.ply"))
        same(read(folder / "again.ply"), splats)
        for kind in ("compressed.ply", "spz", "splat"):
            read_or_refused(lambda kind=kind: encode(splats, f"a.{kind}"), folder)
    return splats


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@examples()
def test_damaged_scenes(tmp_path: Path, kind: str, data: st.DataObject):
    whole = WHOLE[kind, data.draw(st.sampled_from([0, 1, 3]))]
    if kind == "spz":  # the sum at its end would find nearly everything: half of it happens inside
        inside = data.draw(st.booleans())
        broken = data.draw(damaged(gzip.decompress(whole) if inside else whole, head=16))
        look(tmp_path, "a.spz", gzip.compress(broken, 1) if inside else broken)
        return
    head = whole.index(b"end_header\n") + 11
    look(tmp_path, f"a.{kind}", data.draw(damaged(whole, WORDS, head=head)))


def header(random: Random) -> tuple[bytes, int]:
    """A header of any elements and properties, and how many bytes it announces."""
    sizes = {"char": 1, "uchar": 1, "short": 2, "int": 4, "uint": 4, "float": 4, "double": 8}
    usual = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"]
    usual += [f"rot_{k}" for k in range(4)] + [f"f_rest_{k}" for k in range(random.choice([0, 0, 9, 24, 45, 7]))]
    odd = random.random() < 0.3
    lines: list[str] = []
    size = 0
    for name in random.choice(
        [["vertex"]] * 5 + [["vertex", "a"], ["a", "vertex"], ["face"], ["chunk", "sh", "vertex"]]
    ):
        rows = [(each, random.choice(["float"] * 9 + ["double", "uchar"]) if odd else "float") for each in usual]
        more = random.sample(["nx", "q", "é", "red", *(usual[:1] if odd else [])], random.randrange(4))
        more = [(each, random.choice(sorted(sizes))) for each in more]
        rows = [*rows, *more] if name == "vertex" else more
        random.shuffle(rows)
        count = random.randrange(0 if odd else 1, 6)
        lines += [f"element {name} {count}", *(f"property {kind} {each}" for each, kind in rows)]
        size += count * sum(sizes[kind] for _, kind in rows)
    comments = random.sample(["a", "", "a\rb", "sdsedit {", "\x85", "é", "b\r"], random.randrange(4))
    order = random.choice(["little"] * 4 + ["big"])
    rows_ = ["ply", f"format binary_{order}_endian 1.0", *(f"comment {each}" for each in comments), *lines]
    return ("\n".join(rows_) + "\nend_header\n").encode(), size


@given(st.integers(0, 2**32 - 1))
@examples(4)
def test_any_header_with_as_many_bytes_as_it_announces(tmp_path: Path, seed: int):
    random = Random(seed)
    head, size = header(random)
    size = max(0, size + random.choice([0] * 8 + [-1, 1]))
    numbers = np.random.default_rng(seed).standard_normal(size // 4 + 1).astype("<f4").tobytes()
    look(tmp_path, "a.ply", head + numbers[:size])


@given(
    st.sampled_from([1, 2, 3, 4, 0xFFFFFFFF]) | st.integers(0, 5),
    st.integers(0, 3) | st.integers(0, 2**32 - 1),
    st.integers(0, 4) | st.integers(0, 255),
    st.integers(0, 30) | st.integers(0, 255),
    st.integers(0, 3),
    st.binary(max_size=300),
    st.booleans(),
)
@examples()
def test_any_head_of_an_spz(
    tmp_path: Path, version: int, count: int, degree: int, fraction: int, flags: int, rest: bytes, exact: bool
):
    if exact and count <= 3 and degree <= 3:
        width = 9 + 1 + 3 + 3 + (4 if version == 3 else 3) + 3 * ((degree + 1) ** 2 - 1)
        rest = (rest + bytes(800))[: count * width]
    head = struct.pack("<IIIBBBB", 0x5053474E, version, count, degree, fraction, flags, 0)
    look(tmp_path, "a.spz", gzip.compress(head + rest, 1))


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"ply", b"ply\n", b"ply\nformat binary_little_endian 1.0\n", b"\x1f\x8b\x08", b"NGSP"]),
    st.sampled_from(["a.ply", "a.spz", "a.compressed.ply", "a.splat"]),
)
@examples()
def test_bytes_that_are_no_scene(tmp_path: Path, noise: bytes, start: bytes, name: str):
    assert look(tmp_path, name, start + noise) is None


# ---- round trips


@given(
    st.integers(1, 60),
    st.integers(0, 3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-6, 1.0, 1e4]),
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=20), max_size=3),
)
@examples()
def test_a_ply_comes_back_bit_for_bit(
    tmp_path: Path, count: int, degree: int, seed: int, size: float, comments: list[str]
):
    splats = scene(count, degree, seed, size)
    splats.comments = tuple(comments)
    data = encode(splats, "a.ply")
    (tmp_path / "a.ply").write_bytes(data)
    found = read(tmp_path / "a.ply")
    same(found, splats)
    assert encode(found, "a.ply") == data


@pytest.mark.parametrize("kind", ["spz", "compressed.ply"])
@given(st.integers(1, 300), st.integers(0, 3), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e3]))
@examples(0.6)
def test_packed_scenes_come_back_within_their_steps(
    tmp_path: Path, kind: str, count: int, degree: int, seed: int, size: float
):
    splats = scene(count, degree, seed, size)
    (tmp_path / f"a.{kind}").write_bytes(encode(splats, f"a.{kind}"))
    found = read(tmp_path / f"a.{kind}")
    holds(found)
    assert len(found) == count and found.sh.shape == splats.sh.shape and not found.extra
    # Rows of a compressed PLY are sorted along a curve; the sorted coordinates are near each other all the same.
    step = 2.0**-16 if kind == "spz" else 0.0
    reach = float(np.abs(splats.means).max())
    step = max(step, 2 * reach / (2**23 - 1)) if kind == "spz" else (np.ptp(splats.means, 0).max() + 1e-6) / 1000
    assert np.abs(np.sort(found.means, 0) - np.sort(splats.means, 0)).max() <= step
    assert np.abs(np.sort(found.log_scales, 0) - np.sort(splats.log_scales, 0)).max() <= 0.04
    if kind == "spz":
        (tmp_path / "b.spz").write_bytes(encode(found, "b.spz"))
        again = read(tmp_path / "b.spz")
        assert np.array_equal(again.means, found.means) and np.array_equal(again.log_scales, found.log_scales)


@given(st.integers(1, 60), st.integers(0, 3), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e6]))
@examples(0.6)
def test_a_splat_file_is_what_its_viewers_read(count: int, degree: int, seed: int, size: float):
    splats = scene(count, degree, seed, size)
    rows = np.frombuffer(encode(splats, "a.splat"), "V32")
    assert len(rows) == count
    floats = rows.view("<f4").reshape(count, 8)[:, :6]
    assert np.array_equal(floats[:, :3], splats.means) and np.isfinite(floats).all() and (floats[:, 3:] > 0).all()
    bytes_ = rows.view(np.uint8).reshape(count, 32)[:, 24:]
    assert np.abs(bytes_[:, 3] / 255 - 1 / (1 + np.exp(-splats.logits.astype(np.float64)))).max() <= 0.5 / 255 + 1e-6
    unit = splats.quats / np.linalg.norm(splats.quats, axis=1, keepdims=True)
    assert np.abs((bytes_[:, 4:].astype(float) - 128) / 128 - unit).max() <= 1.01 / 128


@given(st.data())
@examples(0.1)
def test_the_process_apart_says_the_same(tmp_path: Path, data: st.DataObject):
    kind = data.draw(st.sampled_from(KINDS))
    whole = WHOLE[kind, data.draw(st.sampled_from([0, 1]))]
    (tmp_path / f"a.{kind}").write_bytes(data.draw(st.just(whole) | damaged(whole, WORDS, head=300)))
    said: list[str] = []
    found: list[Splats] = []
    for reader in (read, read_bounded):
        try:
            found.append(reader(tmp_path / f"a.{kind}"))
        except ValueError as refused:
            said.append(str(refused))
    assert (len(found), len(said)) in ((2, 0), (0, 2)) and said[:1] == said[1:]
    if found:
        same(*found)
