"""A scene of Gaussian splats as tensors, and some of its Gaussians following a direction in latent space through a
renderer and an autoencoder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from sdsedit.camera import Cameras
from sdsedit.io.splats import Splats
from sdsedit.prior.base import Prior
from sdsedit.render.splats import Rendered, colours, render
from sdsedit.representations.base import View

Term = Callable[[Tensor, int], Tensor]
"""A rendered view [1, 4, H, W], RGB over the background and alpha, with autograd, and the camera's number -> a loss."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Gaussians before their activations, as files store them."""

    means: Tensor  # [N, 3] world units
    quats: Tensor  # [N, 4] wxyz, of any length but 0
    log_scales: Tensor  # [N, 3]
    logits: Tensor  # [N], opacity = sigmoid
    sh: Tensor  # [N, K, 3], K = 1, 4, 9 or 16

    @staticmethod
    def of(splats: Splats, device: torch.device | str = "cpu") -> Scene:
        columns = (splats.means, splats.quats, splats.log_scales, splats.logits, splats.sh)
        return Scene(*(torch.from_numpy(np.ascontiguousarray(column)).to(device) for column in columns))

    @staticmethod
    def cat(*scenes: Scene) -> Scene:
        return Scene(*(torch.cat([getattr(scene, each.name) for scene in scenes]) for each in fields(Scene)))

    def splats(self, extra: Mapping[str, np.ndarray] | None = None, comments: tuple[str, ...] = ()) -> Splats:
        columns = (getattr(self, each.name).detach().cpu().numpy() for each in fields(self))
        return Splats(*columns, extra=dict(extra or {}), comments=comments)

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, rows: Tensor | slice) -> Scene:  # [M] long or [N] bool
        return Scene(*(getattr(self, each.name)[rows] for each in fields(self)))

    @property
    def shape(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means, quaternions, scales and opacities, as the renderer takes them."""
        return self.means, self.quats, self.log_scales.exp(), self.logits.sigmoid()

    def render(self, cameras: Cameras, background: Tensor | None = None) -> Rendered:  # [3] in 0..1
        seen = colours(self.sh, self.means, cameras.viewmats)
        return render(*self.shape, seen, cameras.viewmats, cameras.Ks, cameras.width, cameras.height, background)

    def paint(self, features: Tensor, cameras: Cameras) -> Tensor:  # [N, C] -> [V, H, W, C], black where nothing is
        return render(*self.shape, features, cameras.viewmats, cameras.Ks, cameras.width, cameras.height).image


def pictures(scene: Scene, cameras: Cameras, background: Tensor) -> Tensor:  # [V, 3, H, W] in 0..1
    """What the cameras see, one after the other, without autograd."""
    with torch.no_grad():
        seen = [scene.render(cameras[k], background).image[0] for k in range(len(cameras))]
    return torch.stack(seen).permute(0, 3, 1, 2).clamp(0, 1).contiguous()


@dataclass(frozen=True)
class Rates:
    """Adam's step sizes; 0 keeps a parameter as it is. 3D Gaussian Splatting's (arXiv:2308.04079) are made for 30,000
    steps and an edit has some hundreds, so these are larger."""

    means: float = 0.004  # of the edit's radius
    quats: float = 0.004
    log_scales: float = 0.01
    logits: float = 0.05
    sh: float = 0.06  # of the constant term; higher ones a twentieth
    last: float = 0.1  # the rate at the end, as a share of the first; cosine between


@dataclass(frozen=True)
class Anchor:
    """lam w (theta - theta_0)^2 towards the scene as it was, GaussianEditor, arXiv:2311.14521; theta_0 is always the
    original, never the state after a densification. In units of Adam's steps: a share of each step's gradient."""

    colour: float = 0.0
    shape: float = 0.0


NAMES = tuple(each.name for each in fields(Scene))


class SceneViews:
    """Renders of a scene whose `rows` follow the edit; all other Gaussians (`kept`) are drawn and never touched.

    A step looks at one camera. As on a page of strokes, each term's gradient of the picture is scaled to its weight:

        g = sum_k weight_k g_k / |g_k|            g_k = d term_k / d picture

    then goes through the renderer once, is multiplied by each row's weight, and moves the rows by Adam.
    """

    def __init__(
        self,
        kept: Scene,
        rows: Scene,
        weight: Tensor,  # [M] in 0..1, scales the gradient
        parent: Tensor,  # [M] long, the row of the source scene that each is; -1: new
        cameras: Cameras,
        before: Tensor,  # [V, 3, H, W], what the cameras saw before the edit
        background: Tensor,  # [3] in 0..1
        prior: Prior,
        steps: int,
        rates: Rates,
        radius: float,  # of the edit, world units
        generator: torch.Generator,
        distillation: float = 1.0,  # weight of the direction that the method gives
        terms: Mapping[str, tuple[float, Term]] | None = None,  # name -> (weight, term)
        anchor: Anchor | None = None,
        masks: Tensor | None = None,  # [V, 1, H, W], where each view may change
        between: int = 0,  # steps on the terms alone after each step of the method, each from another camera
        style: tuple[float, Term] | None = None,  # one more term, dear as the method, so only at the method's own steps
        tend: Callable[[SceneViews], None] | None = None,  # called after every step
    ) -> None:
        self.kept, self.cameras, self.background, self.prior = kept, cameras, background, prior
        self.steps, self.rates, self.radius = steps, rates, radius
        self.distillation, self.terms, self.anchor = distillation, dict(terms or {}), anchor or Anchor()
        self.masks, self.between, self.style, self.tend = masks, between, style, tend
        self.generator = generator
        self.own = {name: getattr(rows, name).detach().clone().requires_grad_() for name in NAMES}
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.own.items()}
        # What clones and halves inherit: how far a row may move, which row of the source it is, and as what it began.
        self.labels = {"weight": weight.to(rows.means), "parent": parent}
        self.labels |= {f"{name} 0": getattr(rows, name).detach().clone() for name in NAMES}
        self.taken = 0  # steps that Adam made
        self.index, self.view = 0, 0
        self.push = torch.zeros(len(rows), device=weight.device)  # [M], mean gradients since the last densification
        self.rendering_seconds, self.moving_seconds = 0.0, 0.0
        self.shares: dict[str, float] = {}
        with torch.no_grad():
            self._z_src = torch.cat([prior.encode(before[k : k + 1]) for k in range(len(before))])
        self._order: list[int] = []

    # --- the state ---

    def rows(self) -> Scene:
        return Scene(*(self.own[name] for name in NAMES))

    def whole(self) -> Scene:
        return Scene.cat(self.kept, self.rows())

    def picture(self, view: int) -> Tensor:  # [1, 3, H, W] in 0..1, without autograd
        return pictures(self.whole(), self.cameras[view], self.background)

    def replace_rows(
        self,
        parameters: Mapping[str, Tensor],
        moments: Mapping[str, tuple[Tensor, Tensor]],
        labels: Mapping[str, Tensor],
    ) -> None:
        """Other rows from now on, as densification makes them."""
        self.own = {name: parameters[name].detach().clone().requires_grad_() for name in NAMES}
        self.moments, self.labels = dict(moments), dict(labels)
        self.push = torch.zeros(len(self.own["means"]), device=self.push.device)

    # --- the loop's side ---

    def render(self, index: int) -> View:
        self.index = index
        self._look()
        with torch.enable_grad():
            self._z = self.prior.encode(self._leaf[:, :3])
        mask = None if self.masks is None else self._cells(self.masks[self.view : self.view + 1])
        return View(self._z, self._z_src[self.view : self.view + 1], mask)

    def _look(self) -> None:
        """Draw the next camera's view: all once, in a new order each time round."""
        if not self._order:
            self._order = torch.randperm(len(self.cameras), generator=self.generator).tolist()
        self.view = self._order.pop()
        with torch.enable_grad():
            started = time.perf_counter()
            drawn = self.whole().render(self.cameras[self.view], self.background)
            self._image = torch.cat([drawn.image, drawn.alpha[..., None]], dim=-1).permute(0, 3, 1, 2)
            self.rendering_seconds += time.perf_counter() - started
            self._leaf = self._image.detach().requires_grad_()

    def _cells(self, mask: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_max_pool2d(mask, (self._z.shape[-2], self._z.shape[-1]))

    def step(self, direction: Tensor) -> None:
        self._follow(direction)
        for _ in range(self.between if self.terms else 0):
            self._look()
            self._follow(None)
        if self.tend:
            self.tend(self)

    def _follow(self, direction: Tensor | None) -> None:
        """One step of the optimiser: the method's direction, if it is its turn, and every term."""
        with torch.enable_grad():
            gradients: dict[str, tuple[float, Tensor]] = {}
            if direction is not None and self.distillation > 0:
                (g,) = torch.autograd.grad(self._z, self._leaf, direction)
                # It says what there is to be, in a noise that never settles: the terms have the last word.
                fade = 1 - 0.8 * self.index / max(self.steps - 1, 1) if self.terms else 1.0
                gradients["distillation"] = (self.distillation * fade, g)
            terms = dict(self.terms)
            if direction is not None and self.style is not None:
                terms["style"] = self.style
            for name, (weight, term) in terms.items():
                loss = term(self._leaf, self.view)
                if loss.requires_grad:
                    (g,) = torch.autograd.grad(loss, self._leaf)
                    gradients[name] = (weight, g)
            total, weights = torch.zeros_like(self._leaf), {}
            for name, (weight, g) in gradients.items():
                norm = g.norm()
                sound = norm.isfinite() & (norm > 0)
                weights[name] = weight * sound
                total = total + torch.where(sound, weight * g / norm.clamp(min=1e-12), 0.0)
            if direction is not None:
                whole = max(float(sum(weights.values())), 1e-12)
                self.shares = {name: float(weight) / whole for name, weight in weights.items()}
            started = time.perf_counter()
            found = torch.autograd.grad(self._image, list(self.own.values()), total, allow_unused=True)
            self.rendering_seconds += time.perf_counter() - started
        self._descend({n: g for n, g in zip(self.own, found, strict=True) if g is not None})

    @torch.no_grad()
    def _descend(self, gradients: Mapping[str, Tensor], betas: tuple[float, float] = (0.9, 0.99)) -> None:
        """Adam, arXiv:1412.6980, with rates that sink by a cosine."""
        began = time.perf_counter()
        self.taken += 1
        progress = self.index / max(self.steps - 1, 1)
        rate = self.rates.last + (1 - self.rates.last) * 0.5 * (1 + math.cos(math.pi * progress))
        if "means" in gradients:
            self.push += gradients["means"].norm(dim=1)
        for name, p in self.own.items():
            first = getattr(self.rates, name) * (self.radius if name == "means" else 1.0)
            if first <= 0 or name not in gradients:
                continue
            weight = self.labels["weight"].view(-1, *[1] * (p.ndim - 1))
            g = torch.nan_to_num(gradients[name], 0.0, 0.0, 0.0) * weight
            m, v = self.moments[name]
            m.mul_(betas[0]).add_(g, alpha=1 - betas[0])
            v.mul_(betas[1]).add_(g * g, alpha=1 - betas[1])
            m_hat, v_hat = m / (1 - betas[0] ** self.taken), v / (1 - betas[1] ** self.taken)
            move = m_hat / (v_hat.sqrt() + 1e-15)
            pull = self.anchor.colour if name == "sh" else self.anchor.shape
            if pull > 0:
                move = move + pull * ((p - self.labels[f"{name} 0"]) / first).clamp(-1, 1)
            size = torch.full_like(p, first * rate) if name != "sh" else first * rate * _sh_rates(p)
            p -= size * move * weight.sqrt()
        self.moving_seconds += time.perf_counter() - began


def _sh_rates(sh: Tensor) -> Tensor:  # [M, K, 3]
    rates = torch.full_like(sh, 1 / 20)
    rates[:, 0] = 1
    return rates


def with_colour(scene: Scene, rgb: Tensor) -> Scene:  # [N, 3] in 0..1
    """The same Gaussians in one colour each, from every side."""
    sh = torch.zeros_like(scene.sh)
    sh[:, 0] = (rgb - 0.5) / 0.28209479177387814  # Y_0 = 1 / (2 sqrt(pi))
    return replace(scene, sh=sh)


def held_out(cameras: Cameras, every: int = 4) -> tuple[Sequence[int], Sequence[int]]:
    """Numbers of the cameras to work with, and of those to measure with: every fourth is held out."""
    rows = range(len(cameras))
    return [k for k in rows if k % every != every - 1], [k for k in rows if k % every == every - 1]
