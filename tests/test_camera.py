"""Cameras: where a known point falls, whatever made or wrote the camera; and files that are refused in one sentence."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdsedit.camera import Cameras, frame, intrinsics, look_at, orbit, read_cameras
from sdsedit.errors import InputRefused

QUICK = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NUMBERS = {"SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "OPENCV": 4, "OPENCV_FISHEYE": 5}
POINTS = torch.tensor([[0.3, -0.2, 0.1], [-0.4, 0.5, 0.2], [0.0, 0.1, -0.6]])


def project(cameras: Cameras, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[V, N, 2] pixels and [V, N] depths of `points` [N, 3]."""
    local = torch.einsum("vij,nj->vni", cameras.viewmats[:, :3, :3], points) + cameras.viewmats[:, None, :3, 3]
    image = torch.einsum("vij,vnj->vni", cameras.Ks, local)
    return image[..., :2] / image[..., 2:], local[..., 2]


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """wxyz of a rotation, by the eigenvector of its symmetric 4x4 matrix (Bar-Itzhack, 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = rotation
    matrix = np.array(
        [
            [a + e + i, h - f, c - g, d - b],
            [h - f, a - e - i, b + d, c + g],
            [c - g, b + d, e - a - i, f + h],
            [d - b, c + g, f + h, i - a - e],
        ]
    )
    return np.linalg.eigh(matrix)[1][:, -1]


def scene() -> Cameras:
    """Five cameras with a principal point off the middle and pixels that are not square."""
    cameras = orbit((0.1, -0.2, 0.3), 4.0, (10.0, 40.0), 5, 64, 48, fov=50.0)
    Ks = cameras.Ks.clone()
    Ks[:, 0, 0] *= 1.1
    Ks[:, 0, 2] += 1.5
    return Cameras(cameras.viewmats, Ks, 64, 48, tuple(f"view {i}.png" for i in range(5)))


# --- files as their programs write them ------------------------------------------------------------------------------


def lens(cameras: Cameras, model: str, row: int) -> list[float]:
    fx, fy, cx, cy = (float(cameras.Ks[row, i, j]) for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    return {
        "PINHOLE": [fx, fy, cx, cy],
        "SIMPLE_PINHOLE": [fx, cx, cy],
        "SIMPLE_RADIAL": [fx, cx, cy, 0.0],
        "OPENCV": [fx, fy, cx, cy, 0, 0, 0, 0],
        "OPENCV_FISHEYE": [fx, fy, cx, cy, 0, 0, 0, 0],
    }[model]


def colmap_text(folder: Path, cameras: Cameras, model: str = "PINHOLE") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["# Camera list with one line of data per camera:", "#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]"]
    images = ["# Image list with two lines of data per image:", ""]
    for i in reversed(range(len(cameras))):
        params = " ".join(map(repr, map(float, lens(cameras, model, i))))
        rows.append(f"{i + 1} {model} {cameras.width} {cameras.height} {params}")
        pose = cameras.viewmats[i].double().numpy()
        numbers = " ".join(map(repr, map(float, [*quaternion(pose[:3, :3]), *pose[:3, 3]])))
        images.append(f"{i + 1} {numbers} {i + 1} {cameras.names[i]}")
        images.append("" if i % 2 else "12.5 3.5 -1 " * 1000)
    (folder / "cameras.txt").write_text("\n".join(rows) + "\n")
    (folder / "images.txt").write_text("\n".join(images) + "\n")
    return folder


def colmap_binary(folder: Path, cameras: Cameras, model: str = "PINHOLE") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = images = struct.pack("<Q", len(cameras))
    for i in range(len(cameras)):
        params = lens(cameras, model, i)
        rows += struct.pack("<IiQQ", i + 7, NUMBERS[model], cameras.width, cameras.height)
        rows += struct.pack(f"<{len(params)}d", *params)
        pose = cameras.viewmats[i].double().numpy()
        images += struct.pack("<I7dI", i + 1, *quaternion(pose[:3, :3]), *pose[:3, 3], i + 7)
        images += cameras.names[i].encode() + b"\0" + struct.pack("<Q", i) + struct.pack("<ddq", 1.5, 2.5, -1) * i
    (folder / "cameras.bin").write_bytes(rows)
    (folder / "images.bin").write_bytes(images)
    return folder


def transforms(cameras: Cameras) -> dict:
    """Camera to world, OpenGL axes; each frame with its own lens."""
    frames = []
    for i in range(len(cameras)):
        to_world = np.linalg.inv(cameras.viewmats[i].double().numpy())
        to_world[:3, 1:3] *= -1
        fx, fy, cx, cy = lens(cameras, "PINHOLE", i)
        own = {"fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy}
        frames.append({"file_path": cameras.names[i], "transform_matrix": to_world.tolist(), **own})
    return {"w": cameras.width, "h": cameras.height, "k1": 0.0, "frames": frames}


def inria(cameras: Cameras) -> list[dict]:
    rows = []
    for i in range(len(cameras)):
        to_world = np.linalg.inv(cameras.viewmats[i].double().numpy())
        rows.append(
            {
                "id": i,
                "img_name": cameras.names[i],
                "width": cameras.width,
                "height": cameras.height,
                "position": to_world[:3, 3].tolist(),
                "rotation": to_world[:3, :3].tolist(),
                "fy": float(cameras.Ks[i, 1, 1]),
                "fx": float(cameras.Ks[i, 0, 0]),
            }
        )
    return rows


def as_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputRefused) as caught:
        read_cameras(path)
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said and len(said) < 300, said
    assert str(path.parent) not in said
    return said


# --- cameras that are made -------------------------------------------------------------------------------------------


def test_identity_is_a_camera_behind_the_origin_looking_along_z() -> None:
    viewmat = look_at(torch.tensor([[0.0, 0.0, -3.0]]), torch.zeros(3))[0]
    expected = torch.eye(4)
    expected[2, 3] = 3
    torch.testing.assert_close(viewmat, expected)


@QUICK
@given(
    st.tuples(*[st.floats(-5, 5)] * 3),
    st.tuples(*[st.floats(-5, 5)] * 3),
    st.sampled_from([(0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (0.3, -2.0, 0.5)]),
)
def test_look_at_laws(eye: tuple[float, ...], target: tuple[float, ...], up: tuple[float, ...]) -> None:
    """A rotation without a mirror; the target straight ahead; what lies upwards of it is higher in the picture."""
    e, t = torch.tensor([eye]).double(), torch.tensor(target).double()
    if (e - t).norm() < 1e-2:
        return
    viewmat = look_at(e, t, up).double()[0]
    rotation = viewmat[:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3).double(), atol=1e-5, rtol=0)
    assert torch.linalg.det(rotation) > 0
    ahead = viewmat[:3, :3] @ t + viewmat[:3, 3]
    torch.testing.assert_close(ahead, torch.tensor([0, 0, (e - t).norm()]).double(), atol=1e-4, rtol=0)
    upwards = rotation @ torch.tensor(up).double()
    assert abs(upwards[0]) < 1e-4 and upwards[1] < 1e-4  # y is down


@pytest.mark.parametrize("up", [(0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)])
def test_look_at_along_up_still_rotates(up: tuple[float, float, float]) -> None:
    rotation = look_at(3 * torch.tensor([up]), torch.zeros(3), up)[0, :3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3), atol=1e-6, rtol=0)


def test_look_at_refuses_what_has_no_direction() -> None:
    with pytest.raises(ValueError, match="must not stand on its target"):
        look_at(torch.ones(1, 3), torch.ones(3))
    with pytest.raises(ValueError, match="up must not be 0"):
        look_at(torch.zeros(1, 3), torch.ones(3), (0, 0, 0))


def test_intrinsics_put_the_field_across_the_shorter_side() -> None:
    K = intrinsics(90.0, 100, 60)
    assert K.tolist() == [[pytest.approx(30), 0, 50], [0, pytest.approx(30), 30], [0, 0, 1]]
    for bad in (0.0, 180.0, -3.0, math.nan):
        with pytest.raises(ValueError, match="field of view"):
            intrinsics(bad, 10, 10)


@pytest.mark.parametrize("up", [(0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, -2.0), (1.0, 1.0, 0.0)])
def test_orbit_laws(up: tuple[float, float, float]) -> None:
    centre = torch.tensor([1.0, 2.0, 3.0])
    cameras = orbit(centre, 2.5, (0.0, 30.0), 8, 64, 48, up=up, start=20.0)
    assert len(cameras) == 8
    torch.testing.assert_close((cameras.positions - centre).norm(dim=1), torch.full((8,), 2.5))
    pixels, depth = project(cameras, centre[None])
    torch.testing.assert_close(pixels[:, 0], torch.tensor([[32.0, 24.0]]).expand(8, 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(depth[:, 0], torch.full((8,), 2.5))
    upright = torch.tensor(up) / torch.tensor(up).norm()
    height = (cameras.positions - centre) @ upright
    torch.testing.assert_close(height, 2.5 * torch.tensor([0, 0.5] * 4), atol=1e-5, rtol=0)
    above, _ = project(cameras, centre[None] + 0.1 * upright)
    torch.testing.assert_close(above[:, 0, 0], torch.full((8,), 32.0), atol=1e-3, rtol=0)
    assert (above[:, 0, 1] < 24).all()


def test_orbit_starts_in_front_and_turns_to_the_right() -> None:
    positions = orbit((0, 0, 0), 1.0, 0.0, 4, 8, 8).positions
    expected = torch.tensor([[0, 0, -1], [1, 0, 0], [0, 0, 1], [-1, 0, 0]]).float()
    torch.testing.assert_close(positions, expected, atol=1e-6, rtol=0)
    blender = orbit((0, 0, 0), 1.0, 0.0, 4, 8, 8, up=(0, 0, 1)).positions
    torch.testing.assert_close(blender[0], torch.tensor([0.0, -1.0, 0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(orbit((0, 0, 0), 1.0, 0.0, 1, 8, 8, start=90).positions[0], expected[1])


def test_orbit_over_the_pole_turns_no_somersault() -> None:
    steep = orbit((0, 0, 0), 1.0, 89.9, 6, 8, 8).viewmats
    top = orbit((0, 0, 0), 1.0, 90.0, 6, 8, 8).viewmats
    torch.testing.assert_close(top, steep, atol=3e-3, rtol=0)


def test_orbit_refuses() -> None:
    for count, radius in ((0, 1.0), (3, 0.0), (3, math.nan)):
        with pytest.raises(ValueError, match="at least one camera"):
            orbit((0, 0, 0), radius, 0.0, count, 8, 8)
    with pytest.raises(ValueError, match="up must be"):
        orbit((0, 0, 0), 1.0, 0.0, 3, 8, 8, up=(0, 0, 0))


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (48, 96)])
def test_frame_holds_the_scene_and_not_the_floaters(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    body = torch.rand(4000, 3, generator=generator) * torch.tensor([2.0, 1.0, 2.0]) + torch.tensor([5.0, -3.0, 1.0])
    floaters = torch.randn(40, 3, generator=generator) * 500
    means = torch.cat([body, floaters])
    weights = torch.cat([torch.full((4000,), 0.9), torch.full((40,), 0.3)])
    cameras = frame(means, weights, *size, 7)
    assert (cameras.width, cameras.height) == size
    pixels, depth = project(cameras, body)
    inside = (depth > 0) & (pixels >= 0).all(-1) & (pixels <= torch.tensor(size)).all(-1)
    assert inside.float().mean(1).min() > 0.985
    reach = (pixels - torch.tensor(size) / 2).abs() / (torch.tensor(size) / 2)  # 1 at the border
    assert reach.amax(-1).max() > 0.75  # and it fills the picture
    centre = torch.tensor([6.0, -2.5, 2.0])
    looked_at, _ = project(cameras, centre[None])
    assert ((looked_at[:, 0] - torch.tensor(size) / 2).abs() < 2).all()


def test_frame_of_little() -> None:
    assert len(frame(torch.zeros(1, 3), torch.ones(1), 8, 8, 3)) == 3
    assert frame(torch.zeros(5, 3), torch.ones(5), 8, 8, 3).viewmats.isfinite().all()
    for means, weights in ((torch.zeros(0, 3), torch.zeros(0)), (torch.ones(3, 3), torch.zeros(3))):
        with pytest.raises(ValueError, match="Nothing to frame"):
            frame(means, weights, 8, 8, 3)


# --- Cameras ---------------------------------------------------------------------------------------------------------


def test_choosing_cameras() -> None:
    cameras = scene()
    assert cameras[1].names == ("view 1.png",) and len(cameras[1]) == 1
    assert cameras[-1].names == ("view 4.png",)
    assert cameras[1:4].names == ("view 1.png", "view 2.png", "view 3.png")
    assert torch.equal(cameras[[3, 0]].viewmats, cameras.viewmats[[3, 0]])
    assert cameras[[3, 0]].names == ("view 3.png", "view 0.png")
    with pytest.raises(IndexError):
        cameras[5]


def test_resized_cameras_see_the_same() -> None:
    cameras = scene()
    pixels, _ = project(cameras, POINTS)
    again, _ = project(cameras.resized(128, 24), POINTS)
    torch.testing.assert_close(again, pixels * torch.tensor([2.0, 0.5]))
    back = cameras.resized(128, 24).resized(64, 48)
    torch.testing.assert_close(back.Ks, cameras.Ks)
    assert cameras.to("cpu").names == cameras.names


def test_cameras_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\[V, 4, 4\]"):
        Cameras(torch.eye(4), torch.eye(3), 8, 8)
    with pytest.raises(ValueError, match="names"):
        Cameras(torch.eye(4)[None], torch.eye(3)[None], 8, 8, ("a", "b"))
    with pytest.raises(ValueError, match="pixels"):
        Cameras(torch.eye(4)[None], torch.eye(3)[None], 0, 8)


# --- cameras that are read -------------------------------------------------------------------------------------------


def close(cameras: Cameras, expected: Cameras) -> None:
    assert cameras.names == expected.names and (cameras.width, cameras.height) == (expected.width, expected.height)
    pixels, depth = project(cameras, POINTS)
    wanted, wanted_depth = project(expected, POINTS)
    torch.testing.assert_close(pixels, wanted, atol=1e-3, rtol=0)
    torch.testing.assert_close(depth, wanted_depth, atol=1e-5, rtol=0)


@pytest.mark.parametrize("write", [colmap_text, colmap_binary])
@pytest.mark.parametrize("model", ["PINHOLE", "OPENCV"])
@pytest.mark.parametrize("place", [".", "sparse/0", "sparse", "colmap/sparse/0"])
def test_colmap(tmp_path: Path, write: Callable, model: str, place: str) -> None:
    folder = write(tmp_path / place, scene(), model)
    close(read_cameras(tmp_path), scene())
    close(read_cameras(next(folder.glob("images.*"))), scene())


@pytest.mark.parametrize("write", [colmap_text, colmap_binary])
@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "SIMPLE_RADIAL"])
def test_colmap_with_one_focal_length(tmp_path: Path, write: Callable, model: str) -> None:
    cameras = scene()
    cameras.Ks[:, 1, 1] = cameras.Ks[:, 0, 0]
    close(read_cameras(write(tmp_path, cameras, model)), cameras)


def test_colmap_prefers_binary_and_sorts_by_name(tmp_path: Path) -> None:
    cameras = scene()
    colmap_binary(tmp_path, cameras)
    (tmp_path / "images.txt").write_text("nonsense")
    (tmp_path / "cameras.txt").write_text("nonsense")
    assert read_cameras(tmp_path).names == tuple(sorted(cameras.names))


def test_transforms(tmp_path: Path) -> None:
    path = as_json(tmp_path / "transforms.json", transforms(scene()))
    close(read_cameras(path), scene())
    close(read_cameras(tmp_path), scene())


def test_transforms_with_angles_for_all_and_three_rows(tmp_path: Path) -> None:
    cameras = orbit((0, 0, 0), 3.0, 20.0, 3, 80, 60, fov=40.0)
    content = transforms(Cameras(cameras.viewmats, cameras.Ks, 80, 60, ("a", "b", "c")))
    for each in content["frames"]:
        each["transform_matrix"] = each["transform_matrix"][:3]
        for key in ("fl_x", "fl_y", "cx", "cy"):
            del each[key]
    content["camera_angle_x"] = 2 * math.atan(40 / float(cameras.Ks[0, 0, 0]))
    found = read_cameras(as_json(tmp_path / "t.json", content))
    torch.testing.assert_close(found.Ks, cameras.Ks)
    content["camera_angle_y"] = content.pop("camera_angle_x")
    found = read_cameras(as_json(tmp_path / "t.json", content))
    assert found.Ks[0, 0, 0] == found.Ks[0, 1, 1] == pytest.approx(float(cameras.Ks[0, 0, 0]) * 60 / 80)


def test_transforms_without_a_size_look_at_the_picture_beside_them(tmp_path: Path) -> None:
    content = transforms(scene())
    del content["w"], content["h"]
    for each in content["frames"]:
        each["file_path"] = "./train/" + each["file_path"].removesuffix(".png")
    path = as_json(tmp_path / "transforms_train.json", content)
    assert "no w and h" in refusal(path)
    (tmp_path / "train").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "train" / "view 0.png")
    found = read_cameras(tmp_path)
    assert (found.width, found.height) == (64, 48)
    torch.testing.assert_close(found.viewmats, scene().viewmats, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["../secret", "/etc/secret", "C:secret", "..\\secret", "link/secret"])
def test_transforms_open_no_picture_outside_their_folder(tmp_path: Path, name: str) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "secret.png")
    (inner / "link").symlink_to(tmp_path)
    content = transforms(scene())
    del content["w"], content["h"]
    content["frames"][0]["file_path"] = name
    assert "no w and h" in refusal(as_json(inner / "transforms.json", content))


def test_inria(tmp_path: Path) -> None:
    cameras = scene()
    cameras.Ks[:, 0, 2], cameras.Ks[:, 1, 2] = 32, 24
    path = as_json(tmp_path / "cameras.json", inria(cameras))
    close(read_cameras(path), cameras)
    close(read_cameras(tmp_path), cameras)


def test_pictures_of_other_sizes_get_the_first_ones(tmp_path: Path) -> None:
    content = transforms(scene())
    other = content["frames"][2]
    other.update(w=128, h=24, fl_x=other["fl_x"] * 2, cx=other["cx"] * 2, fl_y=other["fl_y"] / 2, cy=other["cy"] / 2)
    close(read_cameras(as_json(tmp_path / "transforms.json", content)), scene())


# --- refusals --------------------------------------------------------------------------------------------------------


def test_refused_paths(tmp_path: Path) -> None:
    assert "is not there" in refusal(tmp_path / "nothing.json")
    assert "holds no cameras" in refusal(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "of a kind" in refusal(tmp_path / "notes.txt")
    (tmp_path / "cameras.txt").write_text("")
    assert "images.txt must lie beside it" in refusal(tmp_path / "cameras.txt")
    (tmp_path / "a.json").write_text("{")
    assert "no JSON" in refusal(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 100_000)
    assert "no JSON" in refusal(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00{")
    refusal(tmp_path / "a.json")
    for content in ({}, 3, [3], {"frames": [3]}, {"frames": {}}, "x"):
        assert "neither" in refusal(as_json(tmp_path / "a.json", content))
    for content in ([], {"frames": []}):
        assert "no camera" in refusal(as_json(tmp_path / "a.json", content))


def test_refused_sizes(tmp_path: Path) -> None:
    big = tmp_path / "big.json"
    with big.open("wb") as stream:
        stream.truncate(2**36)
    assert "larger than the limit" in refusal(big)
    assert "more than 20000" in refusal(as_json(big, [{}] * 20_001))
    colmap_binary(tmp_path / "model", scene())
    with (tmp_path / "model" / "images.bin").open("r+b") as stream:
        stream.truncate(2**36)
    assert "larger than the limit" in refusal(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transform_matrix": None}, "transform_matrix"),
        ({"transform_matrix": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}, "transform_matrix"),
        ({"transform_matrix": np.zeros((4, 4)).tolist()}, "last row"),
        ({"transform_matrix": np.zeros((3, 4)).tolist()}, "does not rotate"),
        ({"transform_matrix": np.diag([1.0, 1, -1, 1]).tolist()}, "does not rotate"),
        ({"transform_matrix": np.diag([2.0, 2, 2, 1]).tolist()}, "does not rotate"),
        ({"transform_matrix": [[math.nan] * 4] * 4}, "transform_matrix"),
        ({"transform_matrix": [[1, 0, 0, math.inf], [0, 1, 0, 0], [0, 0, 1, 0]]}, "transform_matrix"),
        ({"file_path": "view 0.png"}, "second time"),
        ({"file_path": 3}, "file_path"),
        ({"file_path": "x" * 2000}, "file_path"),
        ({"k1": 0.01}, "distorts"),
        ({"p2": "x"}, "p2"),
        ({"camera_model": "OPENCV_FISHEYE"}, "no pinhole"),
        ({"camera_model": ["OPENCV"]}, "no pinhole"),
        ({"camera_model": "EQUIRECTANGULAR"}, "no pinhole"),
        ({"is_fisheye": True}, "no pinhole"),
        ({"w": 0}, "w of 1"),
        ({"h": 1e6}, "h of 1"),
        ({"w": 64.5}, "w of 1"),
        ({"w": True}, "w that is a number"),
        ({"fl_x": 0}, "focal"),
        ({"fl_y": -5}, "focal"),
        ({"fl_x": math.nan}, "fl_x"),
        ({"cx": 10**400}, "cx"),
        ({"fl_x": "700"}, "fl_x"),
    ],
)
def test_refused_transforms(tmp_path: Path, change: dict, said: str) -> None:
    content = transforms(scene())
    content["frames"][3].update(change)
    sentence = refusal(as_json(tmp_path / "transforms.json", content))
    assert said in sentence and "Frame 3" in sentence


def test_refused_transforms_without_a_lens(tmp_path: Path) -> None:
    content = transforms(scene())
    for each in content["frames"]:
        del each["fl_x"], each["fl_y"]
    assert "no focal length" in refusal(as_json(tmp_path / "transforms.json", content))
    for angle in (0, 3.2, -1):
        content["camera_angle_x"] = angle
        assert "camera_angle_x" in refusal(as_json(tmp_path / "transforms.json", content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rotation": [[1, 0, 0]] * 3}, "does not rotate"),
        ({"rotation": [[1, 0, 0], [0, 1, 0], [0, 0, math.nan]]}, "rotation"),
        ({"rotation": "x"}, "rotation"),
        ({"position": [0, 0]}, "position"),
        ({"position": [0, 0, 1e300]}, "position"),
        ({"fx": 0}, "focal"),
        ({"fx": None}, "fx"),
        ({"width": None}, "width"),
        ({"height": -1}, "height"),
        ({"id": 0}, "another one has"),
        ({"id": "a"}, "id"),
        ({"img_name": None}, "img_name"),
    ],
)
def test_refused_inria(tmp_path: Path, change: dict, said: str) -> None:
    content = inria(scene())
    content[3].update(change)
    sentence = refusal(as_json(tmp_path / "cameras.json", content))
    assert said in sentence and "Camera 3" in sentence


LENS, POSE = "1 PINHOLE 64 48 50 50 32 24", "1 1 0 0 0 0 0 0 1 a.png"


@pytest.mark.parametrize(
    ("cameras", "images", "said"),
    [
        (LENS, "", "no camera"),
        ("", f"{POSE}\n\n", "missing"),
        ("hello", "", "no camera model"),
        ("1 NEW 64 48 50", "", "no camera model"),
        ("1 PINHOLE 64 48 50 50 32", "", "4 parameters"),
        ("1 PINHOLE 64 48 50 50 32 24 0", "", "4 parameters"),
        ("1 PINHOLE a 48 50 50 32 24", "", "is no camera"),
        ("1 PINHOLE 64 48 50 50 x 24", "", "is no camera"),
        (f"{LENS}\n{LENS}", "", "twice"),
        ("1 SIMPLE_RADIAL 64 48 50 32 24 0.1", "", "distorts"),
        ("1 OPENCV 64 48 50 50 32 24 0 0 0 1e-9", "", "distorts"),
        ("1 OPENCV_FISHEYE 64 48 50 50 32 24 0 0 0 0", "", "OPENCV_FISHEYE"),
        ("1 PINHOLE 64 48 nan 50 32 24", f"{POSE}\n\n", "not finite"),
        ("1 PINHOLE 64 48 0 50 32 24", f"{POSE}\n\n", "focal"),
        ("1 PINHOLE 0 48 50 50 32 24", f"{POSE}\n\n", "sides of"),
        ("1 PINHOLE " + "9" * 3000 + " 48 50 50 32 24", f"{POSE}\n\n", "sides of"),
        (LENS, f"{POSE}\n\n2{POSE[1:]}\n", "twice"),
        (LENS, "1 0 0 0 0 0 0 0 1 a.png", "rotation"),
        (LENS, "1 nan 0 0 0 0 0 0 1 a.png", "rotation"),
        (LENS, "1 1 0 0 0 0 inf 0 1 a.png", "not finite"),
        (LENS, "1 1 0 0 0 0 0 0 7 a.png", "missing"),
        (LENS, "1 1 0 0 0 0 0 0 1", "no picture's pose"),
        (LENS, "1 1 0 0 0 0 0 0 x a.png", "no picture's pose"),
        (LENS, "1 1 0 0 0 0 0 0 " + "9" * 3000 + " a.png", "missing"),
    ],
)
def test_refused_colmap_text(tmp_path: Path, cameras: str, images: str, said: str) -> None:
    (tmp_path / "cameras.txt").write_text(cameras)
    (tmp_path / "images.txt").write_text(images)
    assert said in refusal(tmp_path)


def test_colmap_binary_that_announces_too_much(tmp_path: Path) -> None:
    colmap_binary(tmp_path, scene())
    for name in ("cameras.bin", "images.bin"):
        good = (tmp_path / name).read_bytes()
        for count in (6, 10**12, 2**64 - 1):
            (tmp_path / name).write_bytes(struct.pack("<Q", count) + good[8:])
            assert "cut short" in refusal(tmp_path)
        (tmp_path / name).write_bytes(good)
    images = (tmp_path / "images.bin").read_bytes()
    where = images.index(b"\0", 72) + 1
    (tmp_path / "images.bin").write_bytes(images[:where] + struct.pack("<Q", 2**63) + images[where + 8 :])
    assert "cut short" in refusal(tmp_path)
    (tmp_path / "images.bin").write_bytes(images[:72] + b"a" * 5000)
    refusal(tmp_path)


@QUICK
@given(st.data())
def test_broken_files_are_refused_or_read(tmp_path: Path, data: st.DataObject) -> None:
    """Cut, overwritten and lengthened: never anything but cameras with finite numbers or InputRefused."""
    kind = data.draw(st.sampled_from(["text", "binary", "transforms", "inria"]))
    if kind == "text":
        files = sorted(colmap_text(tmp_path / kind, scene()).iterdir())
    elif kind == "binary":
        files = sorted(colmap_binary(tmp_path / kind, scene()).iterdir())
    else:
        content = transforms(scene()) if kind == "transforms" else inria(scene())
        files = [as_json(tmp_path / f"{kind}.json", content)]
    file = data.draw(st.sampled_from(files))
    broken = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        where = data.draw(st.integers(0, min(len(broken) - 1, 4000)))
        piece = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"NaN", b"1e999", b"-1", b'"', b"\n"]))
        broken[where : where + data.draw(st.sampled_from([0, len(piece)]))] = piece
    cut = data.draw(st.none() | st.integers(0, len(broken)))
    file.write_bytes(broken[:cut])
    try:
        found = read_cameras(file)
    except InputRefused as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    else:
        assert found.viewmats.isfinite().all() and found.Ks.isfinite().all() and len(found) >= 1
