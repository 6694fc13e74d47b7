"""What the editing loop needs of the thing that it edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class View:
    """What one step looks at: the whole picture, or one camera's render of a scene."""

    z: Tensor  # [B, C, h, w] fp32, the latent of what is being edited
    z_src: Tensor  # [B, C, h, w] fp32, the same view before the edit
    mask: Tensor | None = None  # [1, 1, h, w], where a person allows change, 1 = may change


class Representation(Protocol):
    """Something that renders to a latent and can follow a direction in it.

    Called in turn, once a step: render(index), then step(direction), with the direction that the view's z should move
    against. Where z is the parameter itself (ImageLatent) that is z - direction. Where z is a function of parameters,
    render keeps autograd's graph and step calls `z.backward(gradient=direction)` and its optimizer; the direction is an
    ordinary tensor that autograd may save. A step whose gradient was not finite arrives as zeros, and the loop stops
    soon after: keep state that zeros do not move (Adam's momentum does).
    """

    def render(self, index: int) -> View: ...

    def step(self, direction: Tensor) -> None: ...  # [B, C, h, w]
