"""Bad input and faults on the command line, each for real: one sentence, the right exit code, nothing lost.

The numbers are those of the table of cases: 1-5 pictures, 11-13 scenes, 14 masks, 15 prompts, 16 numbers, 20 addresses,
21 pickles, 22 missing models, 24 a gradient that is not finite, 27 cancelling, 28 full and read-only disks.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdsedit import errors
from sdsedit.cli import Interrupted, Interrupts, main
from sdsedit.errors import InputRefused, one_sentence, printable
from sdsedit.io.images import MAX_BYTES, read_picture

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture in it, the current one."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("cat.png")
    return tmp_path


@pytest.fixture
def refused(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(code, arguments ...): run `sdsedit image`, hold it to the rules of a refusal, and give its sentence."""

    def run(code: int, *arguments: str, input: str = "cat.png", target: str = "a cat") -> str:
        before = sorted(path.name for path in here.rglob("*"))
        given = main(["image", input, "--target", target, "--output", "out.png", *arguments])
        said = capsys.readouterr().err.removeprefix("Loading the model.\n")
        assert given == code, said
        assert said.count("\n") == 1 and said.startswith("sdsedit") and said.rstrip().endswith((".", ")"))
        assert "Traceback" not in said and str(here) not in said and "/home" not in said and len(said) < 600
        assert sorted(path.name for path in here.rglob("*")) == before, "something was written"
        return said.split(": ", 1)[1].strip()

    return run


# ---- 1-5: pictures


def test_1_a_file_over_the_limit(refused: Callable[..., str], here: Path):
    with open("huge.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # no block of it is on the disk
    assert refused(2, input="huge.png") == "huge.png is larger than the limit of 256 MiB."
    with pytest.raises(InputRefused) as caught:
        read_picture(here / "cat.png", max_bytes=10)
    assert caught.value.status == 413


def one_bit_png(path: str, side: int) -> None:
    """A real PNG of side x side black pixels, of a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = bytes(1 + (side + 7) // 8)
    squeeze = zlib.compressobj(1)
    data = b"".join([squeeze.compress(row * 100) for _ in range(side // 100)]) + squeeze.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize("side", [8_100, 12_000, 20_000])  # 66, 144 and 400 megapixels
def test_2_too_many_pixels(refused: Callable[..., str], side: int):
    one_bit_png("wide.png", side)
    start = time.perf_counter()
    assert "than the limit of 64 megapixels: make it smaller." in refused(2, input="wide.png")
    assert time.perf_counter() - start < 0.5  # decoding it takes longer


def test_3_truncated(refused: Callable[..., str]):
    whole = Path("cat.png").read_bytes()
    for kept in (len(whole) // 2, 40, 20, 8):
        Path("cut.png").write_bytes(whole[:kept])
        assert refused(2, input="cut.png").startswith("cut.png is damaged")
    Path("cut.png").write_bytes(b"")
    assert refused(2, input="cut.png") == "cut.png is empty: give a PNG, JPEG, WebP, BMP, TIFF or GIF file."


def test_3_wrong_extension(refused: Callable[..., str]):
    shutil.copy("cat.png", "cat.jpg")
    assert refused(2, input="cat.jpg") == "cat.jpg is a PNG picture under another name: its name must end in .png."
    Path("notes.png").write_text("these are notes, and no picture at all")
    assert refused(2, input="notes.png").startswith("notes.png is damaged or no picture at all")


@pytest.mark.parametrize("name", ["a.fits", "a.psd", "a.pdf", "a.eps", "a.svg", "a.png"])
@pytest.mark.parametrize(
    "start", [b"SIMPLE  =                    T", b"8BPS\0\1", b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF", b"<svg/>"]
)
def test_4_other_kinds(refused: Callable[..., str], here: Path, name: str, start: bytes):
    Path(name).write_bytes(start + bytes(4000))
    assert (
        refused(2, input=name)
        == f"{name} is of a kind that is not read: give a PNG, JPEG, WebP, BMP, TIFF or GIF file."
    )
    with pytest.raises(InputRefused) as caught:
        read_picture(here / name)
    assert caught.value.status == 415


def test_no_such_file(refused: Callable[..., str], here: Path):
    assert refused(2, input="dog.png").startswith("dog.png is not there")
    assert refused(2, input=str(here / "no" / "dog.png")).startswith("dog.png is not there")
    (here / "folder.png").mkdir()
    assert refused(2, input="folder.png").startswith("folder.png is a folder")
    assert refused(2, input="x" * 300 + ".png").startswith("xxx")
    if Path("/dev/zero").exists():
        assert refused(2, input="/dev/zero").startswith("zero is no plain file")


def test_5_normalised_noted_and_alpha_kept(here: Path, builtin_folder: Path):
    pixels = np.random.default_rng(1).integers(0, 256, (40, 56, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save("turned.png", exif=exif)
    assert (
        main(
            [
                "image",
                "turned.png",
                "--target",
                "a cat",
                "--steps",
                "1",
                "--model",
                str(builtin_folder),
                "--output",
                "o.png",
            ]
        )
        == 0
    )
    recipe = json.loads(Path("o.json").read_text())
    assert recipe["normalised"] == [
        "Turned upright as its EXIF orientation (6) says.", "Alpha kept: transparency is not edited.",
    ]  # fmt: skip
    written = np.asarray(Image.open("o.png"))
    assert written.shape == (56, 40, 4) and (written[..., 3] == np.rot90(pixels[..., 3], -1)).all()


# ---- 11-13, and 15, 16, 20 once more: scenes


@pytest.fixture
def scene_refused(here: Path) -> Callable[..., str]:
    """scene_refused(arguments ...): as `refused`, of `sdsedit splats`; the scene is ball.ply unless `input` says so.

    What is wrong with the file is wrong for `sdsedit splats info` too.
    """
    from sdsedit.io.splats import write
    from tests.little_scene import little_scene

    write("ball.ply", little_scene())

    def sentence(arguments: list[str]) -> str:
        before = sorted(path.name for path in here.rglob("*"))
        with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
            assert main(arguments) == 2
        said = err.getvalue().removeprefix("Loading the model.\n")
        assert said.count("\n") == 1 and said.startswith("sdsedit") and said.rstrip().endswith((".", ")"))
        assert "Traceback" not in said and str(here) not in said and "/home" not in said and len(said) < 600
        assert sorted(path.name for path in here.rglob("*")) == before, "something was written"
        return said.split(": ", 1)[1].strip()

    def run(*arguments: str, input: str = "ball.ply", target: str = "a cat") -> str:
        said = sentence(["splats", input, "--target", target, "--output", "o.ply", *arguments])
        if input != "ball.ply":
            assert sentence(["splats", "info", input]) == said
        return said

    return run


def ply(header: str, data: bytes = b"") -> None:
    head = f"ply\nformat binary_little_endian 1.0\n{header}end_header\n"
    Path("bad.ply").write_bytes(head.encode() + data)


FLOATS = "".join(f"property float {name}\n" for name in ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"])
FLOATS += "".join(f"property float {name}\n" for name in ["scale_0", "scale_1", "scale_2"])
FLOATS += "".join(f"property float rot_{k}\n" for k in range(4))


def test_11_a_count_that_is_not_the_files(scene_refused: Callable[..., str]):
    ply(f"element vertex {10**12}\n{FLOATS}", bytes(56 * 3))
    start = time.perf_counter()
    assert "its header announces 56000000000000 bytes and 168 follow" in scene_refused(input="bad.ply")
    assert time.perf_counter() - start < 10  # nothing was allocated
    whole = Path("ball.ply").read_bytes()
    Path("bad.ply").write_bytes(whole[:-7])
    assert scene_refused(input="bad.ply").startswith("bad.ply is cut short or damaged")
    Path("bad.spz").write_bytes(b"\x1f\x8b" + bytes(60))
    assert scene_refused(input="bad.spz").startswith("bad.spz is cut short or damaged")


def test_12_a_header_without_an_end(scene_refused: Callable[..., str]):
    Path("bad.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\n" + b"comment on and on\n" * 200_000)
    start = time.perf_counter()
    assert scene_refused(input="bad.ply") == "bad.ply is damaged: its header does not end within 64 KiB."
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("means", np.nan, "position that is not finite or too large"),
        ("log_scales", -np.inf, "scale that is not finite or too large"),
        ("logits", -np.inf, "opacity that is not finite or too large"),
        ("sh", np.nan, "colour that is not finite or too large"),
        ("quats", 0.0, "quaternion of 0"),
    ],
)
def test_13_numbers_of_a_scene(scene_refused: Callable[..., str], column: str, value: float, sentence: str):
    whole = bytearray(Path("ball.ply").read_bytes())
    first, size = {"means": (0, 3), "sh": (12, 3), "logits": (24, 1), "log_scales": (28, 3), "quats": (40, 4)}[column]
    start = whole.index(b"end_header\n") + len(b"end_header\n") + first
    for row in (7, 30):  # of 14 floats and a byte
        struct.pack_into(f"<{size}f", whole, start + 57 * row, *[value] * size)
    Path("bad.ply").write_bytes(whole)
    said = scene_refused(input="bad.ply")
    assert said.startswith("Gaussian 7 of bad.ply has a") and sentence in said


def test_13_counts_of_a_scene(scene_refused: Callable[..., str]):
    rest = "".join(f"property float f_rest_{k}\n" for k in range(10))
    ply(f"element vertex 1\n{FLOATS}{rest}", bytes(4 * 24))
    assert "10 SH properties f_rest_0, f_rest_1 ...: 0, 9, 24 or 45 are allowed" in scene_refused(input="bad.ply")
    ply(f"element vertex 0\n{FLOATS}")
    assert scene_refused(input="bad.ply") == "bad.ply holds no Gaussian: at least one is needed."


def test_other_kinds_of_scenes(scene_refused: Callable[..., str]):
    mesh = "element vertex 3\nproperty float x\nproperty float y\nproperty float z\nelement face 1\n"
    ply(mesh + "property list uchar int vertex_indices\n", bytes(36 + 13))
    assert scene_refused(input="bad.ply") == "bad.ply is a mesh / point cloud, not a splat scene."
    ply("element vertex 1\nproperty float x\nproperty float y\nproperty float z\n", bytes(12))
    assert "is a mesh / point cloud" in scene_refused(input="bad.ply")
    assert "of a kind that is not read" in scene_refused(input="cat.png")
    assert "is made for viewers and not read" in scene_refused(input=str(shutil.copy("ball.ply", "bad.splat")))
    assert scene_refused(input="none.ply").startswith("none.ply is not there")


def test_cameras_that_do_not_fit(scene_refused: Callable[..., str]):
    assert "of a kind that holds no cameras" in scene_refused("--cameras", "cat.png")
    Path("cameras.json").write_text("{}")
    assert "cameras.json" in scene_refused("--cameras", "cameras.json")
    Path("empty").mkdir()
    assert "empty holds no cameras" in scene_refused("--cameras", "empty")
    row = {"width": 64, "height": 48, "fx": 60, "fy": 60, "rotation": np.eye(3).tolist()}
    rows = [{**row, "id": k, "img_name": str(k), "position": [0, 0, 5 + k]} for k in range(6)]  # it is behind them
    Path("cameras.json").write_text(json.dumps(rows))
    assert "The cameras see nothing of the scene" in scene_refused("--cameras", "cameras.json")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [("", "empty"), (" \u3000 ", "empty"), ("cat " * 25_000, "100000 characters"), ("a \u202etac", "U+202E")],
)
def test_15_prompts_of_a_scene(scene_refused: Callable[..., str], target: str, sentence: str):
    assert sentence in (said := scene_refused(target=target)) and "\u202e" not in said


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1e99", "", "x"])
@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("steps", "a whole number from 1 to 10000"),
        ("seed", "a whole number from 0 to 9223372036854775807"),
        ("size", "a whole number from 1 to 4096"),
        ("views", "a whole number from 4 to 256"),
        ("added", "a whole number from 1 to 200000"),
        ("preview-every", "a whole number from 1 to 10000"),
        ("strength", "a number from 0.1 to 10"),
        ("threshold", "a number from 0.05 to 0.95"),
        ("distillation", "a number from 0 to 1"),
    ],
)
def test_16_numbers_of_a_scene_edit(scene_refused: Callable[..., str], name: str, allowed: str, value: str):
    assert f"{name} is {value}; it must be {allowed}." in scene_refused(f"--{name}={value}")


@pytest.mark.parametrize("address", ["http://localhost:9/a.ply", "file:///etc/hosts", "data:,x"])
def test_20_addresses_of_scenes(scene_refused: Callable[..., str], network: list[str], address: str):
    assert "never fetched" in scene_refused(input=address)
    assert "never fetched" in scene_refused("--cameras", address)
    assert "nothing is fetched" in scene_refused("--model", address)
    assert "nothing is fetched" in scene_refused("--output", address)
    assert not network


# ---- 14: masks


def test_14_masks(refused: Callable[..., str]):
    Image.new("L", (56, 40), 0).save("empty.png")
    Image.new("L", (56, 40), 255).save("full.png")
    Image.new("L", (40, 56), 128).save("turned.png")
    assert "is empty" in refused(2, "--mask", "empty.png")
    assert "is full" in refused(2, "--mask", "full.png")
    assert "40x56 pixels and the picture is 56x40: a mask must be exactly as large" in refused(
        2, "--mask", "turned.png"
    )
    assert refused(2, "--mask", "none.png").startswith("none.png is not there")


# ---- 15: prompts


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("", "empty"),
        (" \u3000 ", "empty"),
        ("cat " * 25_000, "100000 characters"),
        ("a cat\x1b[2J", "U+001B"),
        ("a cat\nHost: x", "U+000A"),
        ("a \u202etac", "U+202E"),
    ],
)
def test_15_prompts(refused: Callable[..., str], builtin_folder: Path, target: str, sentence: str):
    said = refused(2, "--model", str(builtin_folder), target=target)
    assert sentence in said and "target" in said and "\u202e" not in said


def test_15_what_is_cut_off_is_said_aloud(here: Path, builtin_folder: Path, capsys: pytest.CaptureFixture[str]):
    long = "a cat " + "and a dog " * 20 + "with a teddy-bear [red]"
    arguments = ["image", "cat.png", "--target", long, "--source", "a cat", "--steps", "1", "--output", "o.png"]
    assert main([*arguments, "--model", str(builtin_folder)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "cut" in line]
    assert len(said) == 1 and said[0].startswith("Note: ") and said[0].endswith("with a teddy-bear [red]")
    assert any("teddy-bear" in note for note in json.loads(Path("o.json").read_text())["result"]["notes"])


def test_15_words_that_are_not_in_the_prompt(refused: Callable[..., str], builtin_folder: Path):
    assert "hat" in refused(2, "--words", "hat", "--model", str(builtin_folder))
    assert "no word" in refused(2, "--words", " , ")


# ---- 16: numbers


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e99", "", "x", "9" * 5000, "1.5.2"])
@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("steps", "a whole number from 1 to 10000"),
        ("seed", "a whole number from 0 to 9223372036854775807"),
        ("size", "a whole number from 1 to 4096"),
        ("strength", "a number from 0.1 to 10"),
        ("feather", "a number from 0 to 256"),
    ],
)
def test_16_numbers(refused: Callable[..., str], name: str, allowed: str, value: str):
    assert f"{name} is {value[:40]}" in (said := refused(2, f"--{name}={value}"))
    assert said.endswith(f"it must be {allowed}.")


@pytest.mark.parametrize(
    ("name", "value"), [("steps", "0"), ("steps", "10001"), ("seed", str(2**63)), ("strength", "0")]
)
def test_16_just_outside(refused: Callable[..., str], name: str, value: str):
    assert f"{name} is {value}; it must be" in refused(2, f"--{name}", value)


def test_16_a_size_below_what_the_model_can(refused: Callable[..., str], builtin_folder: Path):
    assert "size is 1; it must be a whole number from 16 to 4096" in refused(
        2, "--size", "1", "--model", str(builtin_folder)
    )


def test_unknown_choices(refused: Callable[..., str]):
    assert "'magic'" in refused(2, "--method", "magic")
    assert "\u202e" not in refused(2, "--method", "x\u202e" * 500)


# ---- 20: addresses


asked_of_the_network: list[str] = []
_watching = False


@pytest.fixture
def network() -> Iterator[list[str]]:
    """Every use of a socket by this process; an audit hook cannot be taken off again, so there is one for all tests."""
    global _watching
    if not _watching:
        sys.addaudithook(
            lambda event, args: asked_of_the_network.append(event) if event.startswith("socket.") else None
        )
        _watching = True
    asked_of_the_network.clear()
    yield asked_of_the_network


@pytest.mark.parametrize(
    "address", ["http://localhost:9/cat.png", "https://example.org/cat.png", "file:///etc/hosts", "data:,x"]
)
def test_20_addresses_are_never_fetched(refused: Callable[..., str], network: list[str], address: str):
    assert "never fetched" in refused(2, input=address)
    assert "never fetched" in refused(2, "--mask", address)
    assert "nothing is fetched" in refused(2, "--model", address)
    assert main(["replay", address]) == 2
    assert not network


# ---- 21, 22: models


@pytest.mark.parametrize("suffix", ["ckpt", "bin", "pt", "pth"])
def test_21_pickles_are_refused(refused: Callable[..., str], suffix: str):
    Path(f"model.{suffix}").write_bytes(b"\x80\x04.")
    assert "safetensors only" in refused(2, "--model", f"model.{suffix}")


def test_21_a_folder_of_pickles_needs_a_word(
    refused: Callable[..., str], here: Path, builtin_folder: Path, tmp_path_factory: pytest.TempPathFactory
):
    import torch
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("pickled") / "old"
    shutil.copytree(builtin_folder, folder)
    for safe in list(folder.rglob("*.safetensors")):
        name = "pytorch_model.bin" if safe.stem == "model" else f"{safe.stem}.bin"
        torch.save(load_file(safe), safe.with_name(name))
        safe.unlink()
    assert "safetensors only" in refused(2, "--model", str(folder))
    arguments = ["image", "cat.png", "--target", "a cat", "--steps", "1", "--model", str(folder), "--output", "out.png"]
    assert main([*arguments, "--allow-pickle"]) == errors.OK


def test_22_a_model_that_is_not_here(refused: Callable[..., str], network: list[str]):
    """The tests run with HF_HUB_OFFLINE=1 and without this model in the cache."""
    said = refused(5, "--model", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in said and "OpenRAIL" in said.replace(" ", "")
    assert "revision" in refused(5, "--model", "someone/something@v2")
    assert "no model folder" in refused(5, "--model", "./nothing")
    assert not [event for event in network if event == "socket.connect"]


def test_no_such_device(refused: Callable[..., str], builtin_folder: Path):
    assert "is not a device" in refused(2, "--device", "toaster", "--model", str(builtin_folder))


# ---- 24: a gradient that is not finite


def model_that_breaks(folder: Path, from_step: int, to: Path) -> Path:
    """A real model whose noise table makes no sense from training step `from_step` on: there alpha_bar is negative."""
    shutil.copytree(folder, to)
    path = to / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    config["trained_betas"] = [0.001] * from_step + [2.0] + [0.001] * (999 - from_step)
    path.write_text(json.dumps(config))
    return to


def test_24_the_last_good_state_is_written_and_flagged(
    here: Path, builtin_folder: Path, capsys: pytest.CaptureFixture[str]
):
    model = model_that_breaks(builtin_folder, 800, here / "broken")
    arguments = ["image", "cat.png", "--target", "a cat", "--steps", "200", "--model", str(model), "--output", "o.png"]
    assert main([*arguments, "--seed", "1"]) == errors.ALL_FAILED
    said = capsys.readouterr().err.splitlines()[-1]
    recipe = json.loads(Path("o.json").read_text())
    done = recipe["result"]["steps_done"]
    assert done >= 1 and not recipe["result"]["complete"]
    assert f"non-finite gradient at step {done + 1}, t=0.8" in said or f"at step {done + 1}, t=0.9" in said
    assert "the result so far is written, marked as incomplete." in said
    assert np.isfinite(list(recipe["result"]["last_step"].values())).all()
    assert Image.open("o.png").size == (56, 40)


def test_24_nothing_good_to_write(refused: Callable[..., str], here: Path, builtin_folder: Path):
    model = model_that_breaks(builtin_folder, 0, here / "broken")
    said = refused(errors.ALL_FAILED, "--steps", "5", "--model", str(model))
    assert said.startswith("Stopped: non-finite gradient at step 1, t=0.") and said.endswith("nothing was written.")


# ---- 27: cancelling


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_27_a_signal_keeps_the_partial_result(
    here: Path, builtin_folder: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
):
    """A real process and a real signal; then `replay` repeats what was kept, pixel for pixel."""
    arguments = ["--target", "a cat", "--steps", "10000", "--model", str(builtin_folder), "--output", "o.png"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sdsedit.cli", "image", "cat.png", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while "Step 1 of" not in (line := process.stderr.readline()):
            assert line, process.communicate()
        process.send_signal(number)
        sent = time.perf_counter()
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert time.perf_counter() - sent < 10
    assert "Cancelled after step" in err and "marked as incomplete" in err and "Traceback" not in err
    recipe = json.loads(Path("o.json").read_text())
    assert recipe["result"]["stopped"] == "cancelled" and not recipe["result"]["complete"]
    assert 1 <= recipe["result"]["steps_done"] < 10_000
    assert sorted(path.name for path in here.iterdir()) == ["cat.png", "o.json", "o.png"]
    if number == signal.SIGINT:
        assert main(["replay", "o.png", "--model", str(builtin_folder)]) == 0
        assert "Compared: the same, pixel for pixel" in capsys.readouterr().out


def test_27_a_second_signal_does_not_wait():
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        interrupts.received, interrupts.gentle = 0, True
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.received == signal.SIGTERM and interrupts.exit_code == 143
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


# ---- 28: disks. sdsedit.io.record is tested on a real tiny file system in tests/io/test_record.py


def test_28_a_write_that_fails_at_the_end(
    here: Path, builtin_folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
):
    """The disk is good at the start and full at the end: what was there before is there still."""
    out = tmp_path_factory.mktemp("out")
    (out / "o.png").write_bytes(b"finished earlier")
    arguments = ["image", "cat.png", "--target", "a cat", "--steps", "1", "--model", str(builtin_folder)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        code = main([*arguments, "--output", str(out / "o.png"), "--overwrite"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == errors.ALL_FAILED
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("o.png", b"finished earlier")]
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "sdsedit: The system refused: File too large."


def test_28_a_folder_that_takes_no_files(refused: Callable[..., str]):
    Path("file").write_bytes(b"")
    assert "cannot be written to" in refused(2, "--output", "file/below/o.png")
    if Path("/proc/self").exists():
        assert "cannot be written to" in refused(2, "--output", "/proc/self/o.png")


# ---- sentences


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError(2, "No such file or directory", "/home/me/cat.png"), "No such file or directory: cat.png"),
        (RuntimeError("cannot read /home/me/cat.png"), "cannot read cat.png"),
        (RuntimeError(r"cannot read C:\Users\me\cat.png"), "cannot read cat.png"),
        (RuntimeError("two\nlines"), "two lines"),
        (
            RuntimeError("use stable-diffusion-v1-5/stable-diffusion-v1-5"),
            "use stable-diffusion-v1-5/stable-diffusion-v1-5",
        ),
        (RuntimeError("see https://example.org/a/b"), "see https://example.org/a/b"),
        (KeyError(), "KeyError"),
    ],
)
def test_one_sentence(error: Exception, sentence: str):
    assert one_sentence(error) == sentence


def test_printable():
    assert printable("a\u202eb\x1b\u2028c\ud800 é 猫") == "a\\u202eb\\x1b\\u2028c\\ud800 é 猫"
    assert printable("x" * 1000, 10) == "x" * 10 + "..."
