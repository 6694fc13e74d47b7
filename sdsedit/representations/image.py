"""A picture as a latent: any size in, edited at the model's size, the same size out with everything else untouched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.attention.localize import feather
from sdsedit.guidance.attention_distillation import Look, Reference
from sdsedit.prior.base import Prior
from sdsedit.representations.base import View

# A pixel takes part in the edit if its decoding changed by more than _QUIET, fully from _LOUD on.
_QUIET, _LOUD = 4 / 255, 16 / 255
_STRIP = 2**20  # pixels of a strip


class ImageLatent:
    """The source picture, its latent z_src, and the latent z that the edit moves."""

    def __init__(
        self,
        picture: Tensor,  # [1, 3, H, W] fp32 in 0..1
        z_src: Tensor,  # [1, C, h, w] fp32
        mask: Tensor | None = None,  # [1, 1, H, W] in 0..1, a person's mask at the picture's size
    ) -> None:
        self.picture = picture
        self.z_src = z_src
        self.z = z_src
        self.mask = mask
        # A cell that is allowed in part may change: the composite stops at the mask's own edge.
        self._cells = None if mask is None else F.adaptive_max_pool2d(mask, z_src.shape[-2:])

    @classmethod
    def from_image(
        cls,
        image: Tensor,  # [1, 3, H, W] fp32 in 0..1
        prior: Prior,
        size: int | None = None,  # side in pixels of the square with the working picture's area; None: the native side
        mask: Tensor | None = None,  # [1, 1, H, W] in 0..1
    ) -> ImageLatent:
        """Encode a picture for a model. All of it is kept: it is resized to working_size, never cropped."""
        image = image.to(prior.device)
        work = resize(image, working_size((image.shape[-2], image.shape[-1]), size or prior.native, prior.multiple))
        return cls(image, prior.encode(work).float(), None if mask is None else mask.to(prior.device))

    def render(self, index: int) -> View:
        return View(self.z, self.z_src, self._cells)

    def step(self, direction: Tensor) -> None:
        self.z = self.z - direction

    def finish(
        self,
        prior: Prior,
        z: Tensor,  # [1, C, h, w]
        mask: Tensor | None,  # [1, 1, H, W] in 0..1 at the picture's size; None: anywhere
        radius: int = 0,  # of the mask's feather, pixels
    ) -> tuple[Tensor, Tensor, int]:  # the edited picture [1, 3, H, W], its weights [1, 1, H, W] in 0..1, pixels kept
        """Decode z at the picture's size and lay it over the source: out = source + weight (edited - source), weight =
        feathered mask times change gate.

        An autoencoder alters every pixel, so the gate lets in only those that the edit changed: it compares the decoded
        z with the decoded z_src, which has been through the same autoencoder. A pixel of weight 0 comes back bit for
        bit.

        A photo is worked through in strips: whole, its copies between these steps would take five times its memory.
        """
        height, width = self.picture.shape[-2:]
        before, after = prior.decode(self.z_src), prior.decode(z)
        weight = resize(_change(before, after, prior.factor), (height, width))
        if mask is not None:
            weight *= in_strips(lambda part: feather(part, radius), mask, radius)
        out = torch.empty_like(self.picture)
        across = _bicubic(after, (after.shape[-2], width))
        for part in _strips(height, width):
            w, picture = weight[..., part], self.picture[..., part]
            edited = _bicubic(across[..., part], (height, w.shape[-1])).clamp(0, 1)
            out[..., part] = torch.where(w > 0, torch.lerp(picture, edited, w), picture)
        return out, weight, weight.numel() - int(weight.count_nonzero())


def in_strips(
    operation: Callable[[Tensor], Tensor],  # [1, 1, H, w] -> [1, 1, H, w], for any w
    image: Tensor,  # [1, 1, H, W]
    reach: int,  # pixels: how far off what it looks at may lie
) -> Tensor:  # [1, 1, H, W]
    """`operation(image)`, bit for bit, with its copies in memory for one strip at a time."""
    out = torch.empty_like(image)
    for part in _strips(image.shape[-2], image.shape[-1]):
        start = max(part.start - reach, 0)
        done = operation(image[..., start : part.stop + reach])
        out[..., part] = done[..., part.start - start :][..., : part.stop - part.start]
    return out


def _strips(height: int, width: int) -> Iterator[slice]:
    """Columns of a picture, part by part."""
    step = max(_STRIP // height, 1)
    for start in range(0, width, step):
        yield slice(start, min(start + step, width))


def encoded(prior: Prior, image: Tensor, size: int | None = None) -> Tensor:  # [1, 3, H, W] -> [1, C, h, w] fp32
    """A picture of any size as a latent of the working size, in its own proportions."""
    image = image.to(prior.device)
    work = working_size((image.shape[-2], image.shape[-1]), size or prior.native, prior.multiple)
    return prior.encode(resize(image, work)).float()


def look_of(
    prior: Prior,
    references: Sequence[Tensor],  # [1, 3, H, W] in 0..1 each
    size: int | None = None,
) -> Look:
    """What an edit, a drawing or a scene takes of pictures beside its words, in the layers that suit the model."""
    layers = prior.editing.get("style", {}).get("transfer", {}).get("layers")
    with torch.no_grad():
        return Look(tuple(Reference(encoded(prior, picture, size)) for picture in references), layers=layers)


def working_size(
    size: tuple[int, int],  # (H, W) of the picture
    side: int,  # of the square whose area is wanted
    multiple: int,  # what both sides of the result are multiples of
) -> tuple[int, int]:
    """(h, w) of about the area side^2, in the picture's proportions as nearly as the multiple allows."""
    most = max(side * side // multiple**2, 1)  # a very long picture gets no more than one row of cells

    def cells(length: int, other: int) -> int:
        return min(max(round(side * math.sqrt(length / other) / multiple), 1), most)

    height, width = size
    return cells(height, width) * multiple, cells(width, height) * multiple


def resize(
    image: Tensor,  # [B, C, H, W] in 0..1
    size: tuple[int, int],
) -> Tensor:  # [B, C, *size] in 0..1
    """Bicubic with antialiasing for colours, bilinear for one channel (so that zeros stay zeros); the same tensor if
    nothing changes."""
    if tuple(image.shape[-2:]) == size:
        return image
    if image.shape[1] == 1:
        return F.interpolate(image, size, mode="bilinear", align_corners=False).clamp_(0, 1)
    return _bicubic(image, size).clamp_(0, 1)


def _bicubic(image: Tensor, size: tuple[int, int]) -> Tensor:  # [B, C, H, W] -> [B, C, *size]
    """Along the rows first, then along the columns: so columns may go apart, and rows before them, bit for bit."""
    if tuple(image.shape[-2:]) == size:
        return image
    if size[1] == 1 < size[0]:  # PyTorch (2.13, on a CPU) gets a single column wrong, and a single row right
        return _bicubic(image.mT.contiguous(), (1, size[0])).mT
    return F.interpolate(image, size, mode="bicubic", align_corners=False, antialias=True)


def _change(before: Tensor, after: Tensor, cell: int) -> Tensor:  # [1, 3, h, w] twice -> [1, 1, h, w] in 0..1
    """The gate: how far each pixel was changed, spread by half a latent cell so that the ring of an edit belongs to
    it."""
    difference = (after - before).abs().amax(1, keepdim=True)
    window = cell // 2 * 2 + 1
    spread = F.max_pool2d(difference, window, stride=1, padding=window // 2)
    smooth = F.avg_pool2d(spread, window, stride=1, padding=window // 2, count_include_pad=False)
    x = ((smooth - _QUIET) / (_LOUD - _QUIET)).clamp(0, 1)
    return x * x * (3 - 2 * x)
