"""Recipes, and files that are whole or absent."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdsedit.camera import orbit
from sdsedit.errors import InputRefused
from sdsedit.io.record import (
    cameras_record,
    check_outputs,
    dump,
    loading_options,
    model_revision,
    output_names,
    read_recipe,
    scene_names,
    splats_request,
    versions,
    with_recipe,
    write_all,
)
from sdsedit.io.splats import read, write
from tests.little_scene import little_scene


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- writing (case 28)


def test_files_are_written_in_order_and_whole(tmp_path: Path):
    files = [(tmp_path / "a.png", b"picture"), (tmp_path / "a.json", b"{}")]
    write_all(files)
    assert names_in(tmp_path) == ["a.json", "a.png"]
    assert all(path.read_bytes() == data for path, data in files)
    assert (tmp_path / "a.json").stat().st_mtime_ns >= (tmp_path / "a.png").stat().st_mtime_ns


def test_written_files_have_the_usual_permissions(tmp_path: Path):
    (tmp_path / "usual").write_bytes(b"")
    write_all([(tmp_path / "a.png", b"x")])
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "usual").stat().st_mode


@contextmanager
def size_limit() -> Iterator[None]:
    """No file of this process may grow past 1000 bytes: what a full disk does, without a disk. Kept short, for it binds
    whatever pytest writes too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_leaves_everything_as_it_was(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"before")
    with size_limit(), pytest.raises(OSError):
        write_all([(tmp_path / "a.png", b"after"), (tmp_path / "b.png", bytes(2000))])
    assert names_in(tmp_path) == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"before"


def test_a_rename_that_fails_leaves_no_temporary_file(tmp_path: Path):
    (tmp_path / "b.png").mkdir()
    with pytest.raises(OSError):
        write_all([(tmp_path / "a.png", b"a"), (tmp_path / "b.png", b"b"), (tmp_path / "c.png", b"c")])
    assert names_in(tmp_path) == ["a.png", "b.png"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(
            "mounting a tmpfs needs root; a file size limit stands in for the full disk in the tests beside this"
        )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is Linux's")
def test_a_full_disk(tiny_disk: Path):
    (tiny_disk / "a.png").write_bytes(b"before")
    with pytest.raises(OSError, match="No space left"):
        write_all([(tiny_disk / "a.png", bytes(30_000)), (tiny_disk / "a.json", bytes(60_000))])
    assert names_in(tiny_disk) == ["a.png"] and (tiny_disk / "a.png").read_bytes() == b"before"
    with pytest.raises(InputRefused, match=r"^The disk of the output folder has 0\.1 MiB left; "):
        check_outputs({"image": tiny_disk / "b.png"}, [], False, 100 * 100)
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    with pytest.raises(
        InputRefused, match=r"^The output folder disk cannot be written to \(Read-only file system\)\.$"
    ):
        check_outputs({"image": tiny_disk / "b.png"}, [], False, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold root; the read-only file system does, above")
def test_a_folder_without_write_permission(tmp_path: Path):
    tmp_path.chmod(0o555)
    with pytest.raises(InputRefused, match=r"cannot be written to \(Permission denied\)"):
        check_outputs({"image": tmp_path / "b.png"}, [], False, 1)
    tmp_path.chmod(0o755)


# ---- names


def test_names_of_the_outputs():
    names = output_names(Path("out/cat.v2.png"), True, True, True)
    assert [str(path) for path in names.values()] == [
        "out/cat.v2.png", "out/cat.v2.mask.png", "out/cat.v2.heatmap.png", "out/cat.v2.json",
    ]  # fmt: skip
    assert list(output_names(Path("cat.png"), False, False, False)) == ["image"]
    with pytest.raises(InputRefused, match=r"cat\.jpg must end in \.png"):
        output_names(Path("cat.jpg"), False, False, False)


def test_inputs_are_not_written_over(tmp_path: Path):
    source = tmp_path / "cat.mask.png"
    source.write_bytes(b"x")
    (tmp_path / "link.png").symlink_to(source)
    os.link(source, tmp_path / "hard.png")
    for name in ("cat.mask.png", "link.png", "hard.png"):
        with pytest.raises(InputRefused, match="is an input and would be written over"):
            check_outputs({"image": tmp_path / name}, [source], False, 1)
        check_outputs({"image": tmp_path / name}, [source], True, 1)
    with pytest.raises(InputRefused, match="is an input"):  # a by-product never takes an input's place
        check_outputs(output_names(tmp_path / "cat.png", True, False, False), [source], True, 1)


def test_outputs_are_not_written_over(tmp_path: Path):
    names = output_names(tmp_path / "new" / "a.png", False, False, True)
    check_outputs(names, [], False, 1)
    assert names_in(tmp_path / "new") == []  # the folder is made, and nothing is left in it
    names["recipe"].write_text("{}")
    with pytest.raises(InputRefused, match=r"^a\.json is there already"):
        check_outputs(names, [], False, 1)
    check_outputs(names, [], True, 1)
    with pytest.raises(InputRefused, match="new is a folder"):
        check_outputs({"image": tmp_path / "new"}, [], True, 1)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputRefused, match="The output folder below cannot be written to"):
        check_outputs({"image": tmp_path / "file" / "below" / "a.png"}, [], False, 1)


# ---- recipes


def test_dump_hides_no_character():
    text = dump({"target": "a cat\u202egod\x07", "steps": 3})
    assert text.isascii() and json.loads(text)["target"] == "a cat\u202egod\x07"
    with pytest.raises(ValueError):
        dump({"value": float("nan")})


@given(st.one_of(st.binary(max_size=100), st.text(max_size=100).map(str.encode), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())))  # fmt: skip
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_sidecar_of_any_bytes_is_refused(tmp_path: Path, data: bytes):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(InputRefused):
        read_recipe(tmp_path / "a.json")


def test_a_deep_sidecar_is_refused(tmp_path: Path):
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(InputRefused, match=r"^The recipe of a\.json is damaged\.$"):
        read_recipe(tmp_path / "a.json")


def test_a_recipe_is_not_read_from_what_is_too_large(tmp_path: Path):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(16 * 2**20 + 1)  # no block of it is on the disk
    with pytest.raises(InputRefused, match=r"^The recipe of a\.json is larger than the limit of 16 MiB\.$") as refused:
        read_recipe(tmp_path / "a.json")
    assert refused.value.status == 413
    with open(tmp_path / "b.png", "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        file.truncate(256 * 2**20 + 1)
    with pytest.raises(InputRefused, match=r"^b\.png carries no recipe"):
        read_recipe(tmp_path / "b.png")
    Image.new("1", (8_100, 8_100)).save(tmp_path / "c.png", pnginfo=_recipe_inside('{"schema": 1}'))
    with pytest.raises(InputRefused, match=r"^c\.png carries no recipe"):  # 66 megapixels are not decoded for it
        read_recipe(tmp_path / "c.png")
    Image.new("1", (8, 8)).save(tmp_path / "c.png", pnginfo=_recipe_inside('{"schema": 1}'))
    assert read_recipe(tmp_path / "c.png") == {"schema": 1}


def _recipe_inside(text: str) -> PngInfo:
    info = PngInfo()
    info.add_itxt("sdsedit", text)
    return info


def test_names_that_are_too_long_are_refused_before_a_run(tmp_path: Path):
    long = tmp_path / ("x" * 300 + ".png")
    with pytest.raises(InputRefused, match=r"^x{100}\.\.\. cannot be written \(File name too long\)"):
        check_outputs({"image": long}, [], False, 1)
    with pytest.raises(InputRefused, match=r"^x{100}\.\.\. cannot be opened: File name too long\.$"):
        read_recipe(long)


def test_versions_name_what_matters():
    assert {"sdsedit", "python", "torch", "diffusers", "transformers", "pillow", "system"} <= set(versions())


def test_the_revision_of_a_folder_is_its_content(tmp_path: Path):
    def folder(name: str, weight: bytes) -> str:
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "model_index.json").write_text("{}")
        (tmp_path / name / "unet" / "w.safetensors").write_bytes(weight)
        return str(tmp_path / name)

    a, same, other = folder("a", b"1"), folder("b", b"1"), folder("c", b"2")
    assert model_revision(a) == model_revision(same) != model_revision(other)
    assert model_revision("nobody/nothing") is None
    single = tmp_path / "one.safetensors"
    single.write_bytes(b"1")
    one = model_revision(str(single))
    assert one == model_revision(str(single.rename(tmp_path / "two.safetensors")))  # by its bytes alone
    (tmp_path / "two.safetensors").write_bytes(b"2")
    assert one != model_revision(str(tmp_path / "two.safetensors"))


FILE = {"name": "x.safetensors", "sha256": "0"}


def test_how_a_model_was_loaded_is_read_from_a_recipe():
    assert loading_options({"model": {"id": "builtin"}}) == loading_options({}) == {}
    said = {"lora": [{**FILE, "scale": -0.5}], "embedding": [FILE], "settings": "folder", "precision": "bf16",
            "distilled_guidance": 3.5, "attention": "math", "compile": True, "tiling": True}  # fmt: skip
    assert loading_options({"model": {"options": said}}) == said


@pytest.mark.parametrize(
    "said",
    [
        {"lora": [FILE]}, {"lora": [{**FILE, "scale": 11}]}, {"lora": [{**FILE, "scale": "1"}]}, {"lora": "x"},
        {"lora": [{**FILE, "name": "../x", "scale": 1}]}, {"embedding": [{"name": "x"}]}, {"embedding": [7]},
        {"settings": 7}, {"precision": "fp8"}, {"precision": ["fp32"]}, {"distilled_guidance": "3"},
        {"distilled_guidance": -1}, {"attention": "magic"}, {"compile": "yes"}, {"device": "cuda"}, ["lora"], "x", None,
    ],
)  # fmt: skip
def test_a_recipe_that_says_something_else_of_its_model_is_refused(said: object):
    with pytest.raises(InputRefused, match=r"^The recipe.*\.$"):
        loading_options({"model": {"options": said}})


# ---- scenes


def test_names_of_a_scene_and_of_what_lies_beside_it():
    pictures = {"mask": Path("out/m.png"), "orbit": Path("out/film.MP4")}
    names = scene_names(Path("out/a.compressed.ply"), True, True, pictures)
    assert {what: str(path) for what, path in names.items()} == {
        "scene": "out/a.compressed.ply", "recipe": "out/a.compressed.ply.json",
        "preview": "out/a.compressed.ply.preview.png", "mask": "out/m.png", "orbit": "out/film.MP4",
    }  # fmt: skip
    assert list(scene_names(Path("a.splat"), False)) == ["scene"]
    for name in ("a.obj", "a", "a.ply.gz"):
        with pytest.raises(InputRefused, match=r"must end in \.ply, \.compressed\.ply, \.spz or \.splat"):
            scene_names(Path(name), True)
    for what, name in (("mask", "m.jpg"), ("orbit", "film.avi")):
        with pytest.raises(InputRefused, match=f"^The {what} {name} must end in"):
            scene_names(Path("a.ply"), True, False, {what: Path(name)})
    with pytest.raises(InputRefused, match=r"^The png would be written over m\.png"):
        scene_names(Path("a.ply"), True, False, {"mask": Path("m.png"), "png": Path("m.png")})


def test_a_recipe_in_a_scene(tmp_path: Path):
    """One line, whatever is in it; an older recipe goes, other comments stay; arrays keep their bits."""
    scene = little_scene()
    recipe = {"schema": 1, "kind": "splats", "target": "two\nlines, \u202e and caf\u00e9"}
    first = with_recipe(scene, {"schema": 1, "kind": "splats", "target": "older"})
    write(tmp_path / "a.ply", with_recipe(first, recipe))
    again = read(tmp_path / "a.ply")
    assert again.comments[0] == "a ball on grass" and len(again.comments) == 2
    assert read_recipe(tmp_path / "a.ply") == recipe
    assert (tmp_path / "a.ply").read_bytes().partition(b"end_header")[0].isascii()
    assert (again.means == scene.means).all() and (again.sh == scene.sh).all()
    assert with_recipe(again, None).comments == scene.comments
    write(tmp_path / "a.ply", scene)
    (tmp_path / "a.json").write_text(dump({"schema": 1, "of": "a.png"}))
    with pytest.raises(InputRefused, match=r"^a\.ply carries no recipe"):
        read_recipe(tmp_path / "a.ply")
    (tmp_path / "a.ply.json").write_text(dump(recipe))
    assert read_recipe(tmp_path / "a.ply") == read_recipe(tmp_path / "a.ply.json") == recipe


@pytest.mark.parametrize("line", [b"{", b"{} []", b'{"a": NaN}', b"\xff", b"[" * 9000, b'"text"'])
def test_a_damaged_recipe_in_a_scene(tmp_path: Path, line: bytes):
    write(tmp_path / "a.ply", with_recipe(little_scene(), {"schema": 1}))
    whole = (tmp_path / "a.ply").read_bytes()
    (tmp_path / "a.ply").write_bytes(whole.replace(b'sdsedit {"schema":1}', b"sdsedit {" + line))
    with pytest.raises(InputRefused, match=r"^The recipe of a\.ply is damaged\.$"):
        read_recipe(tmp_path / "a.ply")


def test_what_a_recipe_says_of_cameras():
    cameras = orbit((0, 0, 0), 3.0, 15.0, 4, 64, 48)
    said = cameras_record(cameras, "cams.json")
    assert said["name"] == "cams.json" and said["count"] == 4
    assert said == cameras_record(cameras.resized(64, 48), "cams.json")
    others = (cameras[:3], cameras[[1, 0, 2, 3]], cameras.resized(32, 24))
    assert len({said["sha256"], *(cameras_record(each, "")["sha256"] for each in others)}) == 4


SETTINGS = {
    "kind": "add", "steps": None, "seed": 3, "views": 8, "threshold": 0.4, "distillation": 1, "added": 9,
    "background": [0, 0.5, 1], "up": [0, 0, 1], "size": 64,
}  # fmt: skip
SCENE = {
    "target": "a cat", "source": None, "negative": "", "words": ["cat"], "method": {"name": "dds"},
    "settings": SETTINGS,
}  # fmt: skip


def test_a_request_out_of_a_recipe():
    from sdsedit.guidance import METHODS
    from sdsedit.splats.change import SplatConfig

    request, config = splats_request(SCENE)
    assert request.target == "a cat" and request.words == ("cat",) and request.mask is None
    assert config == SplatConfig(
        kind="add", method=METHODS["dds"](), seed=3, views=8, threshold=0.4, distillation=1, added=9,
        background=(0.0, 0.5, 1.0), up=(0.0, 0.0, 1.0), size=64,
    )  # fmt: skip
    assert all(isinstance(value, float) for value in config.background + config.up)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(SETTINGS)), st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_any_setting_of_a_scene_is_taken_or_refused(name: str, value: object):
    from sdsedit.splats.change import check

    try:
        check(*splats_request({**SCENE, "settings": {**SETTINGS, name: value}}))
    except InputRefused as refusal:
        assert name in str(refusal)
