"""A scene of Gaussians from pictures and their cameras.

3D Gaussian Splatting, Kerbl et al., arXiv:2308.04079: one picture a step,

    loss = (1 - lam) |I - I*|_1 + lam (1 - SSIM(I, I*)) / 2          lam = 0.2

Adam with a rate for each kind of parameter, densification (densify.py), opacities reset now and then, spherical
harmonics of a higher degree as it goes on.  Deviations: where a view has an alpha channel, what is transparent is shown
over a new random colour every step and |A - A*|_1 is part of the loss, so that the scene holds the things and not the
air around them; a clone and its original share their opacity; nothing is pruned for its size on the screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.camera import Cameras
from sdsedit.errors import InputRefused
from sdsedit.io.splats import Splats
from sdsedit.representations.splats import Scene
from sdsedit.splats.densify import Rows, densify, prune, reset_opacity, screen_push

OnStep = Callable[[int, int, float, int], "bool | None"]
"""(steps done, steps in all, loss of this step, Gaussians) -> False to stop; what there is then is the result."""

Y0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
NEAR = 0.01  # world units, the renderer's near plane


@dataclass(frozen=True)
class FitConfig:
    """Rates are Adam's step sizes; lengths are shares of the extent, 1.1 times the cameras' greatest distance from
    their middle.  Steps are counted from the start.  3DGS takes 30,000 of them; some thousands are enough for small
    scenes, and its rates and intervals are kept."""

    steps: int = 3000
    seed: int = 0
    degree: int = 0  # of the spherical harmonics, 0..3; one degree more every `raise_every` steps
    raise_every: int = 1000
    points: int = 5000  # random ones to start from, if none are given
    background: tuple[float, float, float] | None = None  # behind the scene, 0..1; None: a random one every step
    ssim: float = 0.2  # lam
    alpha: float = 0.2  # weight of |A - A*|_1, for views with an alpha channel
    means: float = 1.6e-4  # of the extent
    means_last: float = 1.6e-6  # of the extent, at the end
    quats: float = 0.001
    log_scales: float = 0.005
    logits: float = 0.05
    sh: float = 0.0025  # higher degrees a twentieth
    densify_from: int = 500
    densify_until: float = 0.5  # share of the steps
    densify_every: int = 100
    push: float = 0.0002  # mean gradient on a screen 2 wide, above which a Gaussian is cloned or split
    large: float = 0.01  # of the extent: split, not cloned
    most: int = 200_000  # Gaussians
    least_opacity: float = 0.005  # pruned below
    largest: float = 0.1  # of the extent: pruned above
    reset_every: int = 3000  # steps between resets of the opacity while densifying; 0: never

    def __post_init__(self) -> None:
        for name, low, high in (
            ("steps", 1, 1_000_000), ("degree", 0, 3), ("raise_every", 1, None), ("points", 1, 10_000_000),
            ("ssim", 0, 1), ("alpha", 0, None), ("means", 0, None), ("means_last", 0, None), ("quats", 0, None),
            ("log_scales", 0, None), ("logits", 0, None), ("sh", 0, None), ("densify_until", 0, 1),
            ("densify_every", 1, None), ("push", 0, None), ("large", 0, None), ("most", 1, None),
            ("least_opacity", 0, 1), ("largest", 0, None), ("reset_every", 0, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= low and (high is None or value <= high)):
                span = f"from {low} to {high:,}" if high is not None else f"{low} or more"
                raise InputRefused(f"{name} is {value}: it must be {span}.")
        if self.background is not None and not all(0 <= c <= 1 for c in self.background):
            raise InputRefused("The background's colour has values from 0 to 1.")


def fit(
    views: Tensor,  # [V, H, W, 3] in 0..1; with `alpha`, premultiplied by it (what is seen over black)
    cameras: Cameras,  # of the views
    config: FitConfig | None = None,
    on_step: OnStep | None = None,
    start: Splats | None = None,  # None: random points where the cameras look
    alpha: Tensor | None = None,  # [V, H, W] in 0..1; None: the views show a background that belongs to the scene
) -> Splats:
    """Fit Gaussians to pictures.  The same seed gives the same scene.  A gradient that is not finite ends the fit with
    the last good state.

    Raises `InputRefused`: pictures that do not match the cameras in number or size, values that are not finite or
    not in 0..1, cameras that see nothing of the start or, without one, do not look at a common place.
    """
    config = config or FitConfig()
    _check(views, cameras, alpha)
    generator = torch.Generator().manual_seed(config.seed)
    device, count = views.device, (config.degree + 1) ** 2
    cameras = cameras.to(device)
    given = start if start is not None else random_start(cameras, config.points, generator)
    scene = Scene.of(given, device)
    sees = _in_view(scene.means, cameras)
    if not sees.all():
        blind = int((~sees).nonzero()[0])
        name = cameras.names[blind] if cameras.names else f"Camera {blind + 1}"
        raise InputRefused(f"{name} sees nothing of the scene: check that the cameras belong to these pictures.")
    sh = F.pad(scene.sh, (0, 0, 0, max(count - scene.sh.shape[1], 0)))[:, :count]
    rows = Rows({each.name: getattr(scene, each.name).clone() for each in fields(Scene)}).replaced(sh=sh.clone())
    rows = Rows(rows.parameters, {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in rows.parameters.items()})
    extent = _extent(cameras)
    push, seen = torch.zeros(len(rows), device=device), torch.zeros(len(rows), device=device)
    blur = window(cameras.height, device), window(cameras.width, device)
    order: list[int] = []
    for step in range(config.steps):
        if not order:  # every picture once, in a new order each time round
            order = torch.randperm(len(views), generator=generator).tolist()
        k = order.pop()
        leaves = {name: p.detach().requires_grad_() for name, p in rows.parameters.items()}
        degree = min(config.degree, step // config.raise_every)
        drawn = Scene(**{**leaves, "sh": leaves["sh"][:, : (degree + 1) ** 2]})
        if config.background is not None:
            behind = torch.tensor(config.background)
        else:
            behind = torch.rand(3, generator=generator)
        behind = behind.to(device)
        seen_now = drawn.render(cameras[k], behind)
        target = views[k] if alpha is None else views[k] + (1 - alpha[k])[..., None] * behind
        image = seen_now.image[0]
        loss = (1 - config.ssim) * (image - target).abs().mean()
        if config.ssim > 0:
            loss = loss + config.ssim * (1 - ssim(image, target, blur)) / 2
        if alpha is not None:
            loss = loss + config.alpha * (seen_now.alpha[0] - alpha[k]).abs().mean()
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        if not all(bool(g.isfinite().all()) for g in gradients.values()):
            break
        pushed = screen_push(
            gradients["means"],
            leaves["means"],
            cameras.viewmats[k],
            cameras.Ks[k],
            cameras.width,
            cameras.height,
        )
        push += pushed
        seen += pushed > 0
        rows = _adam(rows, gradients, _rates(config, extent, step), step + 1)
        done = step + 1
        if done % config.densify_every == 0 and config.densify_from <= done <= config.densify_until * config.steps:
            mean_push = push / seen.clamp(min=1)
            rows = densify(rows, mean_push, config.push, config.large * extent, generator, config.most)
            if config.reset_every and done % config.reset_every == 0:
                rows = reset_opacity(rows)
            else:
                rows = prune(rows, _useless(rows, config, extent))
            push, seen = torch.zeros(len(rows), device=device), torch.zeros(len(rows), device=device)
        if on_step and on_step(done, config.steps, float(loss.detach()), len(rows)) is False:
            break
    useless = _useless(rows, config, extent)
    if not useless.all():
        rows = prune(rows, useless)
    return Scene(**rows.parameters).splats()


def random_start(cameras: Cameras, count: int, generator: torch.Generator) -> Splats:
    """Grey points at random where the cameras look.

    The middle c is nearest to all optical axes, for positions p_i and directions d_i (least squares):

        sum_i (I - d_i d_i^T) c = sum_i (I - d_i d_i^T) p_i

    and the points fill a ball around it that a camera at the median distance just sees.  Raises `InputRefused` for
    fewer than two cameras, for axes that are parallel, and for a middle that lies behind a camera.
    """
    positions, directions = cameras.positions.double().cpu(), cameras.viewmats[:, 2, :3].double().cpu()
    off_axis = torch.eye(3, dtype=torch.float64) - directions[:, :, None] * directions[:, None, :]
    matrix = off_axis.sum(0)
    if len(cameras) < 2 or torch.linalg.eigvalsh(matrix)[0] < 1e-6 * len(cameras):
        raise InputRefused("The cameras do not look at a common place from two sides: give points to start from.")
    middle = torch.linalg.solve(matrix, (off_axis @ positions[..., None]).sum(0)[:, 0])
    depth = ((middle - positions) * directions).sum(1)
    if (depth <= NEAR).any():
        raise InputRefused("The cameras do not look at a common place: check that they belong to these pictures.")
    focal = cameras.Ks[:, 0, 0].double().cpu()
    radius = float((depth * 0.5 * min(cameras.width, cameras.height) / focal).median())
    direction = F.normalize(torch.randn(count, 3, generator=generator), dim=1)
    points = middle + radius * direction * torch.rand(count, 1, generator=generator) ** (1 / 3)
    return from_points(points.float().numpy(), np.full((count, 3), 0.5, np.float32))


def from_points(
    points: np.ndarray,  # [N, 3] world units
    rgb: np.ndarray,  # [N, 3] in 0..1
    opacity: float = 0.1,
) -> Splats:
    """Round Gaussians of degree 0 on points, each as wide as the way to its three nearest neighbours (3DGS' start)."""
    from scipy.spatial import KDTree

    count = len(points)
    points = np.ascontiguousarray(points, np.float32)
    if count > 1:
        apart, _ = KDTree(points).query(points, min(4, count))
        spacing = np.sqrt(np.maximum(np.square(apart[:, 1:]).mean(1), 1e-12))
    else:
        spacing = np.full(1, 0.1)
    return Splats(
        means=points,
        quats=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        log_scales=np.repeat(np.log(spacing)[:, None], 3, 1).astype(np.float32),
        logits=np.full(count, math.log(opacity / (1 - opacity)), np.float32),
        sh=((np.asarray(rgb, np.float32) - 0.5) / Y0)[:, None],
        extra={},
    )


def ssim(
    a: Tensor,  # [H, W, 3] in 0..1
    b: Tensor,  # [H, W, 3] in 0..1
    blur: tuple[Tensor, Tensor] | None = None,  # [H, H] and [W, W], `window`s of the sides
) -> Tensor:  # 0-dim
    """Structural similarity, Wang et al., IEEE Trans. Image Processing 2004, with its 11 x 11 Gaussian window of 1.5
    pixels and zeros beyond the edge, as 3DGS uses it:

        (2 mu_a mu_b + C1) (2 cov_ab + C2) / ((mu_a^2 + mu_b^2 + C1) (var_a + var_b + C2))    C1 = .01^2, C2 = .03^2

    The means are products with banded matrices, which on a CPU take a tenth of the time of a convolution.
    """
    down, across = (window(side, a.device) for side in a.shape[:2]) if blur is None else blur
    x, y = a.permute(2, 0, 1), b.permute(2, 0, 1)
    stack = torch.cat([x, y, x * x + y * y, x * y])  # [12, H, W]
    mu_a, mu_b, squares, product = (down @ (stack @ across)).unflatten(0, (4, 3))
    both = mu_a * mu_b
    sizes = mu_a * mu_a + mu_b * mu_b
    return ((2 * both + 1e-4) * (2 * (product - both) + 9e-4) / ((sizes + 1e-4) * (squares - sizes + 9e-4))).mean()


def window(side: int, device: torch.device) -> Tensor:  # [side, side], symmetric
    """Row i holds SSIM's weights of the pixels around pixel i."""
    x = torch.arange(side, device=device)
    apart = (x[:, None] - x[None]).abs()
    weights = (-(torch.arange(-5, 6) ** 2) / (2 * 1.5**2)).exp().sum()
    return torch.where(apart <= 5, (-(apart**2) / (2 * 1.5**2)).exp() / weights, 0)


def _adam(rows: Rows, gradients: dict[str, Tensor], rates: dict[str, Tensor | float], step: int) -> Rows:
    """One step of Adam, arXiv:1412.6980, with 3DGS' epsilon of 1e-15."""
    parameters, moments = {}, {}
    for name, p in rows.parameters.items():
        g, (m, v) = gradients[name], rows.moments[name]
        m, v = torch.lerp(m, g, 0.1), torch.lerp(v, g * g, 0.001)
        move = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-15)
        parameters[name] = p - rates[name] * move
        moments[name] = (m, v)
    return Rows(parameters, moments, rows.labels)


def _rates(config: FitConfig, extent: float, step: int) -> dict[str, Tensor | float]:
    """The means' rate sinks evenly on a logarithmic scale."""
    progress = step / max(config.steps - 1, 1)
    means = config.means
    if config.means > 0 and config.means_last > 0:
        means = math.exp((1 - progress) * math.log(config.means) + progress * math.log(config.means_last))
    sh = torch.full(((config.degree + 1) ** 2, 1), config.sh / 20)
    sh[0] = config.sh
    return {
        "means": means * extent,
        "quats": config.quats,
        "log_scales": config.log_scales,
        "logits": config.logits,
        "sh": sh,
    }


def _useless(rows: Rows, config: FitConfig, extent: float) -> Tensor:  # [N] bool
    faint = rows.parameters["logits"].sigmoid() < config.least_opacity
    return faint | (rows.parameters["log_scales"].amax(1) > math.log(max(config.largest * extent, 1e-12)))


def _extent(cameras: Cameras) -> float:
    positions = cameras.positions
    return max(1.1 * float((positions - positions.mean(0)).norm(dim=1).max()), 1e-3)


def _in_view(means: Tensor, cameras: Cameras) -> Tensor:  # [V] bool, whether any point is in the picture
    found = []
    for viewmat, K in zip(cameras.viewmats, cameras.Ks, strict=True):
        x, y, z = (means @ viewmat[:3, :3].T + viewmat[:3, 3]).unbind(1)
        u, v = K[0, 0] * x + K[0, 2] * z, K[1, 1] * y + K[1, 2] * z
        found.append(((z > NEAR) & (u > 0) & (u < cameras.width * z) & (v > 0) & (v < cameras.height * z)).any())
    return torch.stack(found)


def _check(views: Tensor, cameras: Cameras, alpha: Tensor | None) -> None:
    if views.ndim != 4 or views.shape[-1] != 3 or not views.is_floating_point():
        raise ValueError(f"Views are floats [V, H, W, 3]; got {views.dtype} {tuple(views.shape)}.")
    count, height, width = views.shape[:3]
    if count != len(cameras) or count == 0:
        raise InputRefused(f"{count} pictures do not go with {len(cameras)} cameras: give one camera for each picture.")
    if (width, height) != (cameras.width, cameras.height):
        raise InputRefused(
            f"The pictures are {width}x{height} and the cameras' are {cameras.width}x{cameras.height}: "
            "they must be of one size."
        )
    if alpha is not None and alpha.shape != views.shape[:3]:
        raise ValueError(f"Alpha is [V, H, W] like the views; got {tuple(alpha.shape)}.")
    for name, values in (("picture", views), ("alpha channel", alpha)):
        if values is None:
            continue
        sound = (values.isfinite() & (values >= 0) & (values <= 1)).flatten(1).all(1)
        if not sound.all():
            bad = int((~sound).nonzero()[0])
            raise InputRefused(f"The {name} of view {bad + 1} has values that are not from 0 to 1.")
