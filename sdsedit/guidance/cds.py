"""CDS: contrastive denoising score (arXiv:2311.18608, CVPR 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sdsedit.attention.features import DecoderFeatures
from sdsedit.guidance.base import State, Step, Update, descend, predict, through_network
from sdsedit.prior.base import Prior, cfg

_SIDES = (1, 2)  # cells of a patch


@dataclass(frozen=True)
class CDS:
    """g = DDS + contrast n / 2000 dL/dz,  n = h w; forward batches 3 and 1, the second with a backward pass.

        L = sum_l sum_(side 1, 2) mean_i -log softmax_j(r_i . f_j / temperature)[i]      see patch_nce

    f and r are patches of the self-attention outputs in the UNet's decoder, of the target branch and of the source's:
    what is at i in the source should find itself at i in the edited picture and nowhere else, which keeps the
    structure. With contrast = 0 it is DDS. Equal prompts do not give 0: L has a slope even at equal features.

    n / 2000 is the ratio of the two terms in the authors' code, which divides DDS by the latent's area and L not, so
    that contrast = 3 is theirs at 64 x 64, and means the same at every size.
    """

    steps: int = 200
    step_size: float = 0.0488
    scale: float = 7.5  # CFG
    contrast: float = 3.0
    patches: int = 256  # drawn of each layer's
    temperature: float = 0.07
    t_min: float = 0.05
    t_max: float = 0.95
    localizes: ClassVar[bool] = False

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        with through_network(step) as own:
            draw, lot = own.draw(), own.draw().eps
            prompts, rows = own.prompts, own.z.shape[0]
            z = own.z.requires_grad_()
            z_t, z_t_src = (prior.schedule.add_noise(each, draw.eps, draw.t) for each in (z, own.z_src))
            with torch.no_grad():
                (e_0, e_0_src, e_src), reference = predict(
                    prior,
                    draw.t,
                    (z_t, prompts.empty),
                    (z_t_src, prompts.empty),
                    (z_t_src, prompts.source),
                    probe=DecoderFeatures(slice(2 * rows, 3 * rows)),
                )
            (e_tgt,), features = predict(prior, draw.t, (z_t, prompts.target), probe=DecoderFeatures(slice(rows)))
            loss = patch_nce(
                cast("tuple[Tensor, ...]", reference),
                cast("tuple[Tensor, ...]", features),
                lot[0].flatten(),
                self.patches,
                self.temperature,
            )
            (slope,) = torch.autograd.grad(loss, z)
        dds = cfg(e_0, e_tgt.detach(), self.scale) - cfg(e_0_src, e_src, self.scale)
        area = step.z.shape[-2] * step.z.shape[-1]
        update = descend(step, dds + self.contrast * area / 2000 * slope, self.step_size, draw.t)
        update.stats["contrast"] = loss.detach() / rows
        return update


def patch_nce(
    reference: Sequence[Tensor],  # a layer each, [B, C_l, h_l, w_l]; constants
    features: Sequence[Tensor],  # the same of the edited picture
    lot: Tensor,  # [N], N at least every h_l w_l: random numbers that decide which patches are compared
    patches: int,
    temperature: float,
) -> Tensor:  # 0-dim, summed over layers, sides and the batch
    """PatchNCE (arXiv:2007.15651, eq. 3) as CDS uses it:  mean_i -log softmax_j(r_i . f_j / temperature)[i].

    r and f are patches of a layer's features, 1 x 1 and 2 x 2 cells averaged, of length 1; i and j run over the drawn
    patches of one picture and one layer. Deviation: the authors add a column for j = i at a similarity of -10, which
    is e^-143 here.
    """
    total = features[0].new_zeros((), dtype=torch.float32)
    for ref, new in zip(reference, features, strict=True):
        for side in _SIDES:
            if min(new.shape[-2:]) < side:
                continue
            r, f = (F.normalize(F.avg_pool2d(each.float(), side).flatten(2), dim=1) for each in (ref.detach(), new))
            chosen = lot[: r.shape[-1]].argsort()[:patches]
            similar = r[..., chosen].transpose(1, 2) @ f[..., chosen] / temperature  # [B, P, P], row i is r_i
            own = torch.diagonal(similar.log_softmax(-1), dim1=1, dim2=2)  # [B, P]
            total = total - own.mean(1).sum()
    return total
