"""The look of reference pictures in the edit of a scene: Attention Distillation, as guidance/attention_distillation.py
has it, on the views of the scene.

It acts where an edit is made: on views while all of them are drawn together, and on the rendered scene while its
Gaussians follow. What is outside the edit's place has no part in either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdsedit.guidance.attention_distillation import Look, Reference, Seen, gradient, observe, see, style_loss
from sdsedit.prior.base import Prior, Text
from sdsedit.representations.image import look_of
from sdsedit.representations.splats import Term

_TOLD = 0.5  # t that the network is told at the first step of a drawing; it runs down to 0
_TERM_T = 0.25  # and of a rendered view


@dataclass(frozen=True)
class SceneStyle:
    """What is wanted, and how hard."""

    prior: Prior
    look: Look
    empty: Text
    weight: float
    match: bool  # the references' colours too: no word says which

    @staticmethod
    def of(
        prior: Prior,
        references: Sequence[Tensor],  # [1, 3, H, W] in 0..1 each
        empty: Text,
        weight: float,
        match: bool,
        size: int | None = None,  # working side in pixels; None: the model's native side
    ) -> SceneStyle:
        return SceneStyle(prior, look_of(prior, references, size), empty, weight, match)

    def pull(
        self,
        before: Tensor,  # [V, C, h, w], the views before a step of their drawing
        drawn: Tensor,  # [V, C, h, w], after it
        masks: Tensor,  # [V, 1, h, w] in 0..1
        progress: float,  # 0 at the first step .. 1
    ) -> Tensor:  # [V, C, h, w]
        """Beside each step of the drawing a pull towards the look, `weight` times as long:

        z_v <- z_v - weight rms(M_v (z_v - z_v')) M_v g_v / rms(M_v g_v)       g = d L_AD / d z,  z' before the step

        If `match`, each channel of the places, of all views together, has first been given the references' mean and
        standard deviation (AdaIN, arXiv:1703.06868, eq. 8).
        """
        if self.match:
            drawn = torch.lerp(drawn, _matched(drawn, masks, self.look.references), masks)
        t = torch.full((1,), _TOLD * (1 - progress), device=drawn.device)
        seen = see(self.prior, self.look, t, self.empty)
        moved = []
        for was, z, mask in zip(before.split(1), drawn.split(1), masks.split(1), strict=True):
            if not mask.any():
                moved.append(z)
                continue
            g = mask * gradient(self.prior, z, t, self.look, seen, self.empty)[0]
            step = _rms(mask * (z - was)) / _rms(g).clamp(min=1e-12)
            moved.append(z - self.weight * step * g)
        return torch.cat(moved)

    def term(self, masks: Tensor) -> Term:  # [V, 1, H, W], where each view may change
        """L_AD of a rendered view, of which only what is inside its mask has a gradient."""
        t = torch.full((1,), _TERM_T, device=self.prior.device)
        seen: Seen = see(self.prior, self.look, t, self.empty)

        def unlike(view: Tensor, number: int) -> Tensor:
            image, mask = view[:, :3], masks[number : number + 1]
            image = image.detach() + mask * (image - image.detach())
            layers = observe(self.prior, self.prior.encode(image), t, self.empty, self.look.layers)
            return style_loss(layers, seen.references)

        return unlike


def _matched(z: Tensor, masks: Tensor, references: Sequence[Reference]) -> Tensor:  # [V, C, h, w]
    theirs = torch.cat([each.z.flatten(2) for each in references], dim=2)  # [1, C, n]
    share = masks / masks.sum().clamp(min=1e-6)
    mean = (share * z).sum((0, 2, 3), keepdim=True)
    deviation = (share * (z - mean).square()).sum((0, 2, 3), keepdim=True).sqrt()
    unit = (z - mean) / deviation.clamp(min=1e-6)
    return unit * theirs.std(2, correction=0)[..., None, None] + theirs.mean(2)[..., None, None]


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()
