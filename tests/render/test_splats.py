"""Splats: laws of the pictures, and that the faces agree, in values and gradients."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsedit.render.splats import Rendered, colours, lift, reference, render
from sdsedit.render.splats.reference import BLUR, END, LEAST, MOST

FACES = ["reference", "cpu"]


class Scene(NamedTuple):
    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int
    background: Tensor

    def to(self, dtype: torch.dtype) -> Scene:
        return Scene(*(x.to(dtype) if isinstance(x, Tensor) else x for x in self))


def random_scene(count: int = 150, views: int = 1, channels: int = 3, seed: int = 0, width=40, height=35) -> Scene:
    """A cloud before cameras that stand side by side; numbers that float32 can hold, in float64."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 3, generator=g) + torch.tensor([0.0, 0.0, 4.0])
    scales = torch.exp(0.7 * torch.randn(count, 3, generator=g) - 2)
    viewmats = torch.eye(4).repeat(views, 1, 1)
    for view in range(views):
        turn = 0.1 + 0.3 * view
        viewmats[view, 0, 0] = viewmats[view, 2, 2] = math.cos(turn)
        viewmats[view, 0, 2], viewmats[view, 2, 0] = math.sin(turn), -math.sin(turn)
        viewmats[view, :3, 3] = torch.tensor([-1.2 * view, 0.1, 0.3 * view])
    K = torch.tensor([[1.1 * width, 0, 0.47 * width], [0, 1.2 * width, 0.52 * height], [0, 0, 1]])
    return Scene(
        means,
        torch.randn(count, 4, generator=g),
        scales,
        torch.rand(count, generator=g),
        torch.rand(count, channels, generator=g),
        viewmats,
        K.repeat(views, 1, 1),
        width,
        height,
        torch.rand(views, channels, generator=g),
    ).to(torch.float64)


def draw(scene: Scene, face: str, **changes) -> Rendered:
    scene = scene._replace(**changes).to(torch.float32 if face == "cpu" else torch.float64)
    return render(*scene, backend=face)  # pyright: ignore[reportArgumentType]


def rounded(x: Tensor) -> Tensor:
    return x.float().double()


# --- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
def test_one_gaussian_in_closed_form(face: str):
    f, s, z, o = 30.0, 0.2, 2.0, 0.75
    scene = Scene(
        torch.tensor([[0.1, -0.2, z]]), torch.tensor([[0.3, -2.0, 1.0, 0.5]]), torch.full((1, 3), s), torch.tensor([o]),
        torch.tensor([[0.2, 0.9, 0.4]]), torch.eye(4)[None], torch.tensor([[[f, 0, 10], [0, f, 8], [0, 0, 1]]]), 20, 17,
        torch.tensor([[1.0, 0.5, 0.0]]),
    )  # fmt: skip
    got = draw(scene, face)
    y, x = torch.meshgrid(torch.arange(17) + 0.5, torch.arange(20) + 0.5, indexing="ij")
    mx, my = 10 + f * 0.1 / z, 8 - f * 0.2 / z
    # A ball: J W Sigma W^T J^T = s^2 J J^T
    jx, jy, kx, ky = f / z, f / z, -f * (0.1 / z) / z, -f * (-0.2 / z) / z
    a, b, c = s * s * (jx * jx + kx * kx) + BLUR, s * s * kx * ky, s * s * (jy * jy + ky * ky) + BLUR
    dx, dy = x - mx, y - my
    alpha = o * torch.exp(-(c * dx * dx - 2 * b * dx * dy + a * dy * dy) / (2 * (a * c - b * b)))
    alpha = torch.where(alpha >= LEAST, alpha, 0)
    want = alpha[..., None] * scene.features[0] + (1 - alpha[..., None]) * scene.background[0]
    assert (alpha == 0).any() and (alpha > 0.7).any()
    torch.testing.assert_close(got.alpha[0].float(), alpha, atol=2e-6, rtol=0)
    torch.testing.assert_close(got.image[0].float(), want, atol=2e-6, rtol=0)
    torch.testing.assert_close(got.depth[0].float(), alpha * z, atol=4e-6, rtol=0)


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("depths", "share"), [((2.0, 3.0), (0.6, 0.2)), ((3.0, 2.0), (0.3, 0.5)), ((2, 2), (0.6, 0.2))]
)
def test_the_nearer_covers_the_farther_and_the_earlier_among_equals(face: str, depths, share):
    z = torch.tensor(depths)
    scene = Scene(
        torch.stack([0 * z, 0 * z, z], dim=-1), torch.tensor([[1.0, 0, 0, 0]] * 2), torch.full((2, 3), 50.0),
        torch.tensor([0.6, 0.5]), torch.eye(2), torch.eye(4)[None],
        torch.tensor([[[9.0, 0, 4.5], [0, 9, 4.5], [0, 0, 1]]]), 9, 9, torch.zeros(1, 2),
    )  # fmt: skip
    middle = draw(scene, face).image[0, 4, 4]
    torch.testing.assert_close(middle.double(), torch.tensor(share).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("face", FACES)
def test_what_is_not_covered_is_background(face: str):
    scene = random_scene()
    got = draw(scene, face, features=torch.ones_like(scene.features), background=torch.ones_like(scene.background))
    torch.testing.assert_close(got.image, torch.ones_like(got.image), atol=2e-6, rtol=0)
    assert 0 <= got.alpha.min() < 0.2 and 0.9 < got.alpha.max() <= 1


@pytest.mark.parametrize("face", FACES)
def test_pictures_are_linear_in_features_and_background(face: str):
    one, two = random_scene(), random_scene(seed=1)
    mixed = draw(
        one, face, features=2 * one.features - two.features, background=2 * one.background - two.background
    ).image
    other = draw(one, face, features=two.features, background=two.background).image
    torch.testing.assert_close(mixed, 2 * draw(one, face).image - other, atol=5e-6, rtol=0)


@pytest.mark.parametrize("face", FACES)
def test_depth_is_what_a_feature_of_depths_shows(face: str):
    scene = random_scene(views=2)
    z = (scene.means @ scene.viewmats[:, 2, :3].T + scene.viewmats[:, 2, 3]).T[..., None]
    got = draw(scene, face, features=rounded(z), background=torch.zeros(2, 1))
    torch.testing.assert_close(got.image[..., 0], got.depth, atol=1e-5, rtol=0)


@pytest.mark.parametrize("face", FACES)
def test_lifting_is_the_gradient_of_features(face: str):
    scene = random_scene(views=3)
    dtype = torch.float32 if face == "cpu" else torch.float64
    maps = torch.rand(3, scene.height, scene.width, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    inner = [*scene.to(dtype)[:4], *scene.to(dtype)[5:9]]
    numerator, denominator = lift(*inner, maps, backend=face)  # pyright: ignore[reportArgumentType]
    features = torch.zeros(len(scene.means), 2, dtype=dtype, requires_grad=True)
    seen = draw(scene, face, features=features, background=torch.zeros(3, 2))
    (want,) = torch.autograd.grad(seen.image, features, maps)
    torch.testing.assert_close(numerator, want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(denominator.sum(), seen.alpha.sum().detach(), atol=0, rtol=1e-5)
    own, same = lift(*inner, torch.ones_like(maps[..., :1]), backend=face)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(own[:, 0], same)
    assert not numerator.requires_grad and (denominator >= 0).all() and (denominator > 1).any()


@pytest.mark.parametrize("face", FACES)
def test_many_cameras_are_one_after_the_other(face: str):
    scene = random_scene(views=3)
    for features in (scene.features, torch.rand(3, *scene.features.shape, generator=torch.Generator().manual_seed(3))):
        together = draw(scene, face, features=features)
        for view in range(3):
            one = slice(view, view + 1)
            alone = draw(
                scene, face, features=features[one] if features.dim() == 3 else features,
                viewmats=scene.viewmats[one], Ks=scene.Ks[one], background=scene.background[view],
            )  # fmt: skip
            for name in ("image", "alpha", "depth"):
                assert torch.equal(getattr(together, name)[one], getattr(alone, name))


@pytest.mark.parametrize("face", FACES)
def test_one_background_for_all_cameras_or_none(face: str):
    scene = random_scene(views=2)
    same = draw(scene, face, background=scene.background[:1].expand(2, -1))
    assert torch.equal(draw(scene, face, background=scene.background[0]).image, same.image)
    dtype = same.image.dtype
    black = render(*scene.to(dtype)[:9], backend=face)  # pyright: ignore[reportArgumentType]
    assert torch.equal(black.image, draw(scene, face, background=torch.zeros(3)).image)


def test_gradients_of_the_reference_are_those_of_finite_differences():
    scene = random_scene(3, channels=2, width=6, height=5)
    # Wide ones, so that no pixel of the picture is near the least alpha.
    scales, opacities = 0.5 + scene.scales, 0.3 + 0.5 * scene.opacities

    def numbers(means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, features: Tensor, background: Tensor):
        got = render(means, quats, scales, opacities, features, *scene[5:9], background)
        return got.image, got.alpha, got.depth

    leaves = [scene.means, scene.quats, scales, opacities, scene.features, scene.background]
    assert torch.autograd.gradcheck(numbers, [x.clone().requires_grad_() for x in leaves])


# --- the faces agree --------------------------------------------------------------------------------------------------


def certain(scene: Scene) -> Tensor:  # [V, H, W]
    """Where no decision is so close that float32 may take another one."""
    pixels = []
    for viewmat, K in zip(scene.viewmats, scene.Ks, strict=True):
        falloff, _, _ = reference.seen(*scene[:4], viewmat, K, scene.width, scene.height)
        alphas = falloff.clamp(max=MOST)
        after = torch.cumprod(1 - torch.where(alphas >= LEAST, alphas, 0), dim=0)
        close = ((falloff / LEAST - 1).abs() < 1e-5) | ((falloff / MOST - 1).abs() < 1e-5)
        pixels.append(~(close | ((after / END - 1).abs() < 3e-3)).any(0))
    return torch.stack(pixels).reshape(-1, scene.height, scene.width)


def gradients(scene: Scene, face: str, device: str = "cpu", with_depth: bool = True) -> tuple[Rendered, list[Tensor]]:
    dtype = torch.float64 if face == "reference" else torch.float32
    keep = certain(scene)
    leaves = [x.detach().to(device, dtype, copy=True).requires_grad_() for x in (*scene[:5], scene.background)]
    cameras = [x.to(dtype).to(device) for x in scene[5:7]]
    got = render(*leaves[:5], *cameras, *scene[7:9], leaves[5], backend=face)  # pyright: ignore[reportArgumentType]
    g = torch.Generator().manual_seed(5)
    loss = 0.0
    for name in ("image", "alpha", "depth")[: 2 + with_depth]:
        out = getattr(got, name)
        weight = torch.randn(out.shape, generator=g) * (keep[..., None] if out.dim() == 4 else keep)
        loss = loss + (out * weight.to(dtype).to(device)).sum()
    loss.backward()
    found = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return Rendered(*(x.detach().cpu() for x in (got.image, got.alpha, got.depth))), [x.cpu() for x in found]


def check_agreement(
    scene: Scene, face: str, device: str = "cpu", with_depth: bool = True, values: float = 1e-5, slopes: float = 1e-4
) -> None:
    keep = certain(scene)
    assert keep.double().mean() > 0.9
    want, of_want = gradients(scene, "reference", with_depth=with_depth)
    got, of_got = gradients(scene, face, device, with_depth=with_depth)
    for name in ("image", "alpha", "depth"):
        one, other = getattr(want, name)[keep], getattr(got, name)[keep]
        assert ((one - other).abs() <= values * (1 + one.abs())).all(), (name, (one - other).abs().max())
    names = ("means", "quats", "scales", "opacities", "features", "background")
    for name, one, other in zip(names, of_want, of_got, strict=True):
        assert (one - other).norm() <= slopes * one.norm(), name
        assert (one - other).abs().max() <= slopes * one.abs().max(), name


def adversarial(name: str) -> Scene:
    scene = random_scene(150, views=2)
    means, quats, scales, opacities = (x.clone() for x in scene[:4])
    if name == "behind and around the camera":
        means[:, 2] -= 4
    elif name == "just before the camera":
        means[:, 2] = 0.02
    elif name == "off the picture":
        means[:, :2] *= 8
    elif name == "huge":
        scales *= 30
    elif name == "tiny":
        scales *= 1e-4
    elif name == "flat":
        scales[:, 2] = 0
    elif name == "needles":
        scales[:, 0], scales[:, 1:] = 5, 1e-3
    elif name == "coincident":
        means[:] = means[:1]
    elif name == "opaque":
        opacities[:] = 1
    elif name == "nearly opaque":
        opacities[:] = 0.99
    elif name == "some of no opacity":
        opacities[::2] = 0
        opacities[1::4] = 0.9 * LEAST
    elif name == "short quaternions":
        quats *= 1e-3
    elif name == "thousands on a few pixels":
        scene = random_scene(3000, width=9, height=17)
        means, quats, scales, opacities = scene.means, scene.quats, 0.1 * scene.scales, 0.05 * scene.opacities
    return (
        scene._replace(means=means, quats=quats, scales=scales, opacities=opacities).to(torch.float32).to(torch.float64)
    )


@pytest.mark.parametrize(
    "name",
    [
        "plain", "behind and around the camera", "just before the camera", "off the picture", "huge", "tiny", "flat",
        "needles", "coincident", "opaque", "nearly opaque", "some of no opacity", "short quaternions",
        "thousands on a few pixels",
    ],
)  # fmt: skip
def test_cpu_is_the_reference(name: str):
    check_agreement(adversarial(name), "cpu")


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
def test_cpu_is_the_reference_in_any_number_of_channels(channels: int):
    check_agreement(random_scene(channels=channels, seed=channels), "cpu", with_depth=channels != 4)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (8, 3), (16, 16), (17, 33)])
def test_cpu_is_the_reference_in_any_size(width: int, height: int):
    scene = random_scene(40, width=width, height=height)
    check_agreement(scene._replace(scales=rounded(3 * scene.scales)), "cpu")


def test_cpu_is_the_reference_with_features_of_each_view():
    scene = random_scene(views=2)
    features = torch.rand(2, *scene.features.shape, generator=torch.Generator().manual_seed(0))
    check_agreement(scene._replace(features=rounded(features)), "cpu")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.floats(-3, 2), nearer=st.floats(-1, 5), opacity=st.floats(-4, 4))
def test_cpu_is_the_reference_in_any_scene(seed: int, size: float, nearer: float, opacity: float):
    scene = random_scene(60, seed=seed, width=24, height=20)
    means = scene.means - torch.tensor([0, 0, nearer])
    opacities = torch.sigmoid(opacity + torch.logit(scene.opacities))
    scene = scene._replace(
        means=rounded(means), scales=rounded(scene.scales * math.exp(size)), opacities=rounded(opacities)
    )
    keep = certain(scene)
    if keep.double().mean() > 0.9:
        check_agreement(scene, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", ["plain", "behind and around the camera", "opaque", "flat", "some of no opacity"])
def test_cuda_is_the_reference(name: str):
    cuda = pytest.importorskip("sdsedit.render.splats.cuda")
    if fault := cuda.available():
        pytest.skip(fault)
    # gsplat's exponentials are the fast ones, and nothing but float32 carries its projection.
    check_agreement(adversarial(name), "cuda", "cuda", values=2e-3, slopes=2e-2)


def test_same_bits_every_time_with_any_number_of_threads():
    scene = random_scene(3000, views=2, width=150, height=130)
    threads = torch.get_num_threads()
    try:
        found = []
        for used in (1, 1, 2, 3, 7):
            torch.set_num_threads(used)
            got, of = _plain_gradients(scene)
            found.append([*got, *of])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_pictures_can_be_drawn_at_the_same_time():
    scene = random_scene(500, width=70, height=60)
    with ThreadPoolExecutor(4) as pool:
        found = [[*got, *of] for got, of in pool.map(_plain_gradients, [scene] * 8)]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def _plain_gradients(scene: Scene) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [x.detach().float().requires_grad_() for x in (*scene[:5], scene.background)]
    got = render(*leaves[:5], *scene.to(torch.float32)[5:9], leaves[5])
    (got.image.square().sum() + got.depth.sum()).backward()
    return [x.detach() for x in (got.image, got.alpha, got.depth)], [x.grad for x in leaves if x.grad is not None]


# --- what is odd ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("face", FACES)
def test_what_is_not_finite_is_not_drawn(face: str):
    good = random_scene(40)
    many = Scene(*(torch.cat([x, x]) if k < 5 else x for k, x in enumerate(good)))  # pyright: ignore[reportArgumentType]
    many.means[40:50, 1], many.means[50:55, 2] = math.nan, math.inf
    many.quats[55:60], many.quats[60:65, 3] = 0, math.nan
    many.scales[65:70, 0], many.scales[70:73, 2] = math.nan, math.inf
    many.opacities[73:77], many.opacities[77:] = math.nan, math.inf
    want, (got, of) = draw(good, face), _face_gradients(many, face)
    for name in ("image", "alpha", "depth"):
        assert torch.equal(getattr(want, name), getattr(got, name))
    for gradient in of:
        assert gradient.isfinite().all() and (gradient[40:] == 0).all()


def _face_gradients(scene: Scene, face: str) -> tuple[Rendered, list[Tensor]]:
    dtype = torch.float32 if face == "cpu" else torch.float64
    leaves = [x.detach().to(dtype, copy=True).requires_grad_() for x in scene[:5]]
    got = render(*leaves, *scene.to(dtype)[5:], backend=face)  # pyright: ignore[reportArgumentType]
    (got.image.sum() + got.depth.sum()).backward()
    return got, [x.grad for x in leaves if x.grad is not None]


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.floats(width=32), min_size=11 * 4, max_size=11 * 4),
    camera=st.lists(st.one_of(st.floats(-2, 2), st.floats(width=32)), min_size=16, max_size=16),
)
def test_any_numbers_at_all_make_a_picture(numbers: list[float], camera: list[float]):
    """No crash, no loop without an end, and where nothing odd is near, the picture is what it was."""
    x = torch.tensor(numbers).reshape(4, 11)
    viewmat = torch.tensor(camera).reshape(1, 4, 4)
    good = random_scene(4).to(torch.float32)
    leaves = [y.clone().requires_grad_() for y in (x[:, :3], x[:, 3:7], x[:, 7:10], x[:, 10], good.features)]
    for viewmats, Ks in ((viewmat, good.Ks), (good.viewmats, viewmat[:, :3, :3].contiguous())):
        got = render(*leaves, viewmats, Ks, 40, 35)
        got.image.sum().backward()
        assert got.image.shape == (1, 35, 40, 3)
        assert got.alpha.isfinite().all() and got.alpha.min() >= 0 and got.alpha.max() <= 1


@pytest.mark.parametrize("face", FACES)
def test_no_gaussians_at_all(face: str):
    scene = random_scene(0, views=2)
    got, of = _face_gradients(scene, face)
    assert torch.equal(got.image, scene.background[:, None, None].expand(2, 35, 40, 3).to(got.image))
    assert got.alpha.max() == 0 and got.depth.max() == 0
    assert [len(x) for x in of] == [0] * 5


def test_gradients_of_features_alone_are_the_same():
    scene = random_scene(views=2).to(torch.float32)
    features, whole = scene.features.requires_grad_(), scene.means.requires_grad_()
    (alone,) = torch.autograd.grad(render(*scene._replace(means=whole.detach())).image.sum(), features)
    (among, _) = torch.autograd.grad(render(*scene).image.sum(), (features, whole))
    torch.testing.assert_close(alone, among, atol=1e-5, rtol=1e-6)


def test_cameras_have_no_gradient():
    scene = random_scene()
    for face in FACES:
        dtype = torch.float32 if face == "cpu" else torch.float64
        ours = scene.to(dtype)
        ours = ours._replace(viewmats=ours.viewmats.requires_grad_(), Ks=ours.Ks.requires_grad_())
        assert not render(*ours).image.requires_grad


def test_strides_and_parts_of_tensors_are_no_matter():
    scene = random_scene(views=2).to(torch.float32)
    odd = scene._replace(
        means=torch.cat([scene.means, scene.means], dim=1)[:, :3], quats=scene.quats.T.contiguous().T,
        features=scene.features.expand(2, -1, -1),
    )  # fmt: skip
    assert torch.equal(render(*scene).image, render(*odd).image)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"means": torch.zeros(150, 2)}, r"means must have the shape \[150, 3\]; got \[150, 2\]"),
        ({"quats": torch.zeros(150, 3)}, r"quats must have the shape \[150, 4\]"),
        ({"scales": torch.zeros(149, 3)}, r"scales must have the shape \[150, 3\]"),
        ({"opacities": torch.zeros(150, 1)}, r"opacities must have the shape \[150\]"),
        ({"features": torch.zeros(2, 150, 3)}, r"features must have the shape \[1, 150, 3\]"),
        ({"features": torch.zeros(150, 0)}, "a feature at least"),
        ({"viewmats": torch.zeros(0, 4, 4)}, "a camera"),
        ({"viewmats": torch.eye(4)}, "viewmats must have the shape"),
        ({"Ks": torch.eye(3)}, r"Ks must have the shape \[1, 3, 3\]"),
        ({"background": torch.zeros(4)}, r"background must have the shape \[1, 3\]"),
        ({"means": torch.zeros(150, 3, dtype=torch.float16)}, "must be float32 or float64; got torch.float16"),
        ({"scales": torch.zeros(150, 3, dtype=torch.float64)}, "scales must have the dtype and the device of means"),
        ({"Ks": torch.zeros(1, 3, 3, device="meta")}, "Ks must have the dtype and the device of means"),
        ({"width": 0}, "from 1 to 16384 pixels; got 35 and 0"),
        ({"height": 16385}, "from 1 to 16384"),
    ],
)
def test_refusals(changes: dict, sentence: str):
    scene = random_scene().to(torch.float32)
    with pytest.raises(ValueError, match=sentence):
        render(*scene._replace(**changes))


def test_refusals_of_faces_and_maps():
    scene = random_scene()
    with pytest.raises(ValueError, match='backend must be "auto"'):
        render(*scene, backend="metal")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="The CPU splat renderer draws float32"):
        render(*scene, backend="cpu")
    with pytest.raises(ValueError, match="The CUDA splat renderer draws float32 tensors on a GPU"):
        render(*scene, backend="cuda")
    inner = scene[:4] + scene[5:9]
    with pytest.raises(ValueError, match=r"maps must have the shape \[1, 35, 40, M\]"):
        lift(*inner, torch.zeros(1, 40, 35, 2).double())
    with pytest.raises(ValueError, match="maps must have the dtype"):
        lift(*inner, torch.zeros(1, 35, 40, 2))


# --- colours ----------------------------------------------------------------------------------------------------------


def test_colours_are_spherical_harmonics():
    from scipy.special import sph_harm_y

    means = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    viewmat = random_scene(1, views=3).viewmats[2:]
    eye = -viewmat[0, :3, :3].T @ viewmat[0, :3, 3]
    x, y, z = torch.nn.functional.normalize(means - eye, dim=-1).unbind(-1)
    polar, azimuth = torch.acos(z).numpy(), torch.atan2(y, x).numpy()
    k = 0
    for degree in range(4):
        for order in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(order), polar, azimuth)
            want = value.real if order == 0 else math.sqrt(2) * (value.imag if order < 0 else value.real)
            sh = torch.zeros(50, 16, 3, dtype=torch.float64)
            sh[:, k] = 0.3
            got = colours(sh, means, viewmat)[0]
            torch.testing.assert_close(got[:, 0], (0.5 + 0.3 * torch.from_numpy(want)).clamp(min=0))
            k += 1


def test_colours_of_degree_0_are_those_of_higher_degrees_without_more():
    g = torch.Generator().manual_seed(0)
    means, viewmats = torch.randn(20, 3, generator=g), random_scene(views=3).viewmats.float()
    sh = torch.randn(20, 1, 3, generator=g)
    flat = colours(sh, means, viewmats)
    assert flat.shape == (3, 20, 3) and flat.min() == 0
    for bands in (4, 9, 16):
        more = torch.cat([sh, torch.zeros(20, bands - 1, 3)], dim=1)
        torch.testing.assert_close(colours(more, means, viewmats), flat)


@pytest.mark.parametrize("bands", [1, 4, 16])
def test_gradients_of_colours(bands: int):
    g = torch.Generator().manual_seed(bands)
    sh = 0.1 * torch.randn(4, bands, 3, generator=g, dtype=torch.float64)
    means = torch.randn(4, 3, generator=g, dtype=torch.float64)
    viewmats = random_scene(views=2).viewmats
    assert torch.autograd.gradcheck(lambda a, b: colours(a, b, viewmats), (sh.requires_grad_(), means.requires_grad_()))


def test_refusals_of_colours():
    means, viewmats = torch.zeros(5, 3), torch.eye(4)[None]
    with pytest.raises(ValueError, match="1, 4, 9 or 16"):
        colours(torch.zeros(5, 5, 3), means, viewmats)
    with pytest.raises(ValueError, match="means must have the shape"):
        colours(torch.zeros(5, 4, 3), torch.zeros(4, 3), viewmats)
    with pytest.raises(ValueError, match="viewmats must have the shape"):
        colours(torch.zeros(5, 4, 3), means, torch.eye(4))
