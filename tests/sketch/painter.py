"""The closed-form prior, with the features that a sketch looks at: what the model wants to see is a picture we name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.prior.base import Text
from tests.guidance.gaussian import GaussianPrior


class Painter(GaussianPrior):
    """p(z | prompt) is around the latent of the picture that `wants` names; of any other prompt around 0.

    An autoencoder of 2 x 2 pixels a cell; its features are the picture and its halves, those of the network z_t.
    """

    max_tokens = 40

    def __init__(
        self,
        wants: dict[str, Tensor],  # prompt -> [1, 3, H, W] in 0..1
        native: int = 32,
        variance: float = 1.0,
        place: Tensor | None = None,  # [h, w], what attention says; None: everywhere the same
    ) -> None:
        means = {prompt: self.encode(picture)[0] for prompt, picture in wants.items()}
        variances = dict.fromkeys(wants, variance)
        places = [torch.full((8, 8), 0.5) if place is None else place]
        super().__init__(means, variances, places=places)  # pyright: ignore[reportArgumentType]
        self.native = native
        self.editing = {"sketch": {"scale": 1.0}}  # CFG goes beyond the picture; see tests/guidance/test_sample.py

    def encoder_features(self, image: Tensor) -> tuple[Tensor, ...]:
        return image, F.avg_pool2d(image, 2)

    def network_features(self, z_t: Tensor, t: Tensor, text: Text) -> tuple[Tensor, ...]:
        return (self.predict(z_t, t, text).eps,)


def disc(size: int, middle: tuple[float, float], radius: float) -> Tensor:  # [size, size] in 0..1
    """A round spot, its edge a pixel wide; `middle` is x, y."""
    y, x = torch.meshgrid(torch.arange(size) + 0.5, torch.arange(size) + 0.5, indexing="ij")
    return (radius - ((x - middle[0]) ** 2 + (y - middle[1]) ** 2).sqrt() + 0.5).clamp(0, 1)


def painted(size: int, *spots: tuple[Tensor, tuple[float, float, float]]) -> Tensor:  # [1, 3, size, size]
    """Spots of colours on white paper, one over the other."""
    page = torch.ones(1, 3, size, size)
    for cover, colour in spots:
        page = page + cover * (torch.tensor(colour).view(1, 3, 1, 1) - page)
    return page
