"""A page of Bezier shapes that follows a direction in latent space through a renderer and an autoencoder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.prior.base import Prior
from sdsedit.render.strokes import Drawing, Topology, render
from sdsedit.representations.base import View

Term = Callable[[Tensor], Tensor]
"""A rendered page [1, 3, H, W] in 0..1, with autograd -> a loss, 0-dim."""


@dataclass(frozen=True)
class Rates:
    """Adam's step sizes, for a page 224 pixels wide (DiffSketcher's canvas); 0 keeps the parameter as it is."""

    points: float = 1.0  # pixels
    widths: float = 0.1  # pixels
    colours: float = 0.0
    opacity: float = 0.01
    background: float = 0.0
    last: float = 0.1  # the rate at the end, as a share of the first; cosine between


@dataclass(frozen=True)
class Augment:
    """Views of the page that the model sees, DiffSketcher's augmentations: a random crop and a random perspective, with
    the page's own colour beyond its edge (theirs is black on a white page)."""

    views: int = 1  # a step; 0: the page itself, once
    crop: float = 0.8  # least share of the side
    perspective: float = 0.25  # how far a corner moves, share of half the side


class Page:
    """Shapes of one topology and the optimiser that moves them.

    A step adds up the image gradients of the distillation and of every other term, each scaled to its weight:

        g = sum_k weight_k g_k / |g_k|            g_k = d term_k / d page

    so that the weights *are* the shares, whatever units a term has. `shares` has those of the last step: a term
    without a gradient, or with one that is not finite, has 0.
    """

    def __init__(
        self,
        topology: Topology,
        points: Tensor,  # [P, 2] pixels; with `index`, [U, 2]
        widths: Tensor,  # [N, 2] pixels
        colours: Tensor,  # [N, 4] RGBA in 0..1
        background: Tensor,  # [3] in 0..1
        size: tuple[int, int],  # (H, W) pixels, multiples of the prior's factor
        prior: Prior,
        steps: int,
        generator: torch.Generator,
        rates: Rates,
        augment: Augment | None = None,
        distillation: float = 1.0,  # weight of the direction that the method gives
        terms: Mapping[str, tuple[float, Term]] | None = None,  # name -> (weight, term)
        in_turn: bool = False,  # one of the terms a step, for the weight of all: as many times cheaper
        free: Tensor | None = None,  # [N] bool, the shapes that may change; None: all
        source: Tensor | None = None,  # [1, 3, H, W], the page before an edit; None: nothing to compare with
        mask: Tensor | None = None,  # [1, 1, h, w], where a person allows change
        widest: float = math.inf,  # pixels
        reach: float = 0.1,  # how far beyond the page a point may lie, share of the longer side
        index: Tensor | None = None,  # [P] long: the topology's points are points[index]; None: they are `points`
        tend: Callable[[Page], None] | None = None,  # called every tenth of the run, but for the last third
    ) -> None:
        self.topology, self.size, self.prior = topology, size, prior
        self._gather = index  # a fill and the stroke around it share their points
        # The numbers live where the prior does; what is only asked on the host (topology, free) stays on the CPU.
        self.points, self.widths, self.colours, self.opacity, self.background = (
            each.detach().clone().to(prior.device).requires_grad_()
            for each in (points, widths, colours[:, :3], colours[:, 3], background)
        )
        self.generator, self.steps, self.rates = generator, steps, rates
        self.augment, self.distillation, self.terms = augment, distillation, dict(terms or {})
        self.in_turn, self.widest, self.reach, self.tend = in_turn, widest, reach, tend
        self.mask = None if mask is None else mask.to(prior.device)
        self._thinnest = self.widths.detach().clamp(max=0.3 * size[1] / 224)  # what begins as a hairline may stay one
        self.shares: dict[str, float] = {}
        self.index = 0
        self.drawing_seconds = 0.0  # in the renderer, forward and backward
        shape_of = torch.from_numpy(topology.contour_shape).repeat_interleave(
            torch.from_numpy(topology.contour_points[1:] - topology.contour_points[:-1]).long()
        )
        self._shape_of_point = shape_of.long()
        if index is not None:
            self._shape_of_point = torch.zeros(len(points), dtype=torch.long).index_put((index,), shape_of.long())
        self.free = torch.ones(len(topology), dtype=torch.bool) if free is None else free
        scale = size[1] / 224
        groups = [
            (self.points, rates.points * scale),
            (self.widths, rates.widths * scale),
            (self.colours, rates.colours),
            (self.opacity, rates.opacity),
            (self.background, rates.background),
        ]
        self.optimizer = torch.optim.Adam(
            [{"params": [p], "lr": rate, "first": rate} for p, rate in groups if rate > 0], betas=(0.9, 0.9), eps=1e-6
        )
        self._z_src = None if source is None else prior.encode(source.to(prior.device)).detach()

    def drawing(self, size: tuple[int, int] | None = None) -> Drawing:
        """The page as it is, with autograd; at another size in pixels, everything scaled with the width."""
        scale = 1.0 if size is None else size[1] / self.size[1]
        return Drawing(
            self.topology,
            ((self.points if self._gather is None else self.points[self._gather]) * scale)[None],
            (self.widths * scale)[None],
            torch.cat([self.colours, self.opacity[:, None]], dim=1)[None],
            self.background[None],
        )

    def picture(self, size: tuple[int, int] | None = None) -> Tensor:  # [1, 3, H, W] in 0..1, without autograd
        with torch.no_grad():
            return render(self.drawing(size), *(size or self.size)).clamp(0, 1)

    def render(self, index: int) -> View:
        self.index = index
        with torch.enable_grad():
            started = time.perf_counter()
            self._image = render(self.drawing(), *self.size)
            self.drawing_seconds += time.perf_counter() - started
            # A leaf of its own: every term's gradient is taken here, and the renderer's backward runs once.
            self._leaf = self._image.detach().requires_grad_()
            views = self._views(self._leaf)
            self._z = self.prior.encode(views)
        z_src = self._z.detach() if self._z_src is None else self._z_src.expand_as(self._z)
        return View(self._z, z_src, self.mask)

    def step(self, direction: Tensor) -> None:
        with torch.enable_grad():
            gradients = {}
            if self.distillation > 0:
                (g,) = torch.autograd.grad(self._z, self._leaf, direction)
                gradients["distillation"] = (self.distillation, g)
            terms = list(self.terms.items())
            if self.in_turn and terms:
                name, (_, term) = terms[self.index % len(terms)]
                terms = [(name, (sum(weight for weight, _ in self.terms.values()), term))]
            for name, (weight, term) in terms:
                (g,) = torch.autograd.grad(term(self._leaf), self._leaf)
                gradients[name] = (weight, g)
            total, weights = torch.zeros_like(self._leaf), {}
            for name, (weight, g) in gradients.items():
                norm = g.norm()
                sound = norm.isfinite() & (norm > 0)  # half precision may overflow in a network: the others go on
                weights[name] = weight * sound
                total = total + torch.where(sound, weight * g / norm.clamp(min=1e-12), 0.0)
            whole = max(float(sum(weights.values())), 1e-12)
            self.shares = {name: float(weight) / whole for name, weight in weights.items()}
            self.optimizer.zero_grad(set_to_none=True)
            started = time.perf_counter()
            self._image.backward(total)
            self.drawing_seconds += time.perf_counter() - started
        self._hold()
        progress = self.index / max(self.steps - 1, 1)
        rate = self.rates.last + (1 - self.rates.last) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = group["first"] * rate
        self.optimizer.step()
        self._project()
        if self.tend and (self.index + 1) % max(1, self.steps // 10) == 0 and progress < 0.67:
            self.tend(self)

    @torch.no_grad()
    def replace_shapes(self, rows: Tensor, points: Tensor, widths: Tensor, colours: Tensor) -> None:
        """Put new strokes in the place of others: rows [M] long; points [M, p, 2], widths [M, 2], colours [M, 4]. The
        optimiser forgets what it knew of the old ones."""
        of_points = torch.cat([(self._shape_of_point == row).nonzero()[:, 0] for row in rows.tolist()])
        for parameter, index, value in (
            (self.points, of_points, points.flatten(0, 1)),
            (self.widths, rows, widths),
            (self.colours, rows, colours[:, :3]),
            (self.opacity, rows, colours[:, 3]),
        ):
            parameter[index] = value.to(parameter)
            for moment in self.optimizer.state.get(parameter, {}).values():
                if isinstance(moment, Tensor) and moment.shape == parameter.shape:
                    moment[index] = 0

    def _hold(self) -> None:
        """No gradient for the shapes that must stay; one for both ends of a stroke, for an SVG stroke has one width."""
        if self.widths.grad is not None:
            self.widths.grad[:] = self.widths.grad.mean(1, keepdim=True)
        if self.free.all():
            return
        for parameter, keep in (
            (self.points, self.free[self._shape_of_point]),
            (self.widths, self.free),
            (self.colours, self.free),
            (self.opacity, self.free),
        ):
            if parameter.grad is not None:
                parameter.grad[~keep] = 0

    @torch.no_grad()
    def _project(self) -> None:
        """Back into what can be drawn; shapes that must stay are left alone."""
        free = self.free
        height, width = self.size
        margin = self.reach * max(height, width)
        mine = free[self._shape_of_point]
        bounds = torch.tensor([width + margin, height + margin]).to(self.points)
        self.points[mine] = torch.minimum(self.points[mine].clamp(min=-margin), bounds)
        self.widths[free] = torch.maximum(self.widths[free].clamp(max=self.widest), self._thinnest[free])
        self.colours[free] = self.colours[free].clamp(0, 1)
        self.opacity[free] = self.opacity[free].clamp(0, 1)
        self.background.clamp_(0, 1)

    def _views(self, page: Tensor) -> Tensor:  # [1, 3, H, W] -> [V, 3, H, W]
        if self.augment is None or not self.augment.views:
            return page
        grids = torch.stack([self._view_grid() for _ in range(self.augment.views)])
        # Beyond the page is the page's own colour: subtract it, pad with zeros, add it back.
        paper = self.background.detach()[None, :, None, None]
        moved = F.grid_sample(
            (page - paper).expand(len(grids), -1, -1, -1), grids.to(page), mode="bilinear", align_corners=False
        )
        return moved + paper

    def _view_grid(self) -> Tensor:  # [H, W, 2], where each pixel of the view looks, -1..1
        assert self.augment is not None
        u = torch.rand(11, generator=self.generator)
        side = self.augment.crop + (1 - self.augment.crop) * u[0]
        offset = (1 - side) * (2 * u[1:3] - 1)
        corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        # The page's corners move inwards in the view, as torchvision's RandomPerspective has it: paper shows around it.
        matrix = homography(corners * (1 - self.augment.perspective * u[3:11].view(4, 2)), corners)
        height, width = self.size
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height * 2 - 1, (torch.arange(width) + 0.5) / width * 2 - 1, indexing="ij"
        )
        q = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ matrix.T
        return q[..., :2] / q[..., 2:] * side + offset


def homography(a: Tensor, b: Tensor) -> Tensor:  # [4, 2] each -> [3, 3], with b ~ H a
    """The projective map of four points to four others (Heckbert 1989), scaled to H[2, 2] = 1."""
    rows, right = [], []
    for (x, y), (u, v) in zip(a.tolist(), b.tolist(), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    h = torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), torch.tensor(right, dtype=torch.float64))
    return torch.cat([h, h.new_ones(1)]).view(3, 3).float()


def ink(
    drawing: Drawing,  # one drawing, B = 1
    masks: Tensor,  # [K, H, W] in 0..1
) -> Tensor:  # [K + 1, N], pixels: each shape's visible ink within each mask, and in all
    """How much of each shape shows, and where: the renderer's vector-Jacobian product.

    A rendered page is sum_i w_i colour_i + w_0 background with w_i = opacity_i c_i prod_(j > i) (1 - opacity_j c_j), so
    the gradient of sum_p M(p) page(p) by one channel of colour_i is sum_p M(p) w_i(p): three masks a backward pass.
    """
    height, width = masks.shape[-2:]
    whole = torch.cat([masks, masks.new_ones(1, height, width)])
    parts = []
    for three in whole.split(3):
        colours = drawing.colours.detach().clone().requires_grad_()
        fixed = (drawing.points.detach(), drawing.widths.detach())
        with torch.enable_grad():
            page = render(Drawing(drawing.topology, *fixed, colours, drawing.background.detach()), height, width)
            cotangent = torch.cat([three, three.new_zeros(3 - len(three), height, width)])
            (g,) = torch.autograd.grad(page, colours, cotangent[None].to(page))
        parts.append(g[0, :, : len(three)].T)
    return torch.cat(parts)
