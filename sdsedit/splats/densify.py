"""More Gaussians where the picture asks for them, fewer where they are of no use.

3D Gaussian Splatting, Kerbl et al., arXiv:2308.04079, section 5: where the loss pulls hard at a Gaussian's place on the
screen, a small one is cloned (there is too little of it) and a large one is split in two (there is too much in it);
those that became transparent are pruned. A new row starts with Adam's moments at 0 and inherits every label of the row
that it came from, be it the part it belongs to, how far an edit may move it, or which row of the source it is.

Every function takes the rows and gives new ones; nothing is changed in place, so tensors that autograd still holds are
safe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

SHRINK = 1.6  # the scales of the two halves of a split Gaussian, the paper's phi


@dataclass(frozen=True, eq=False)
class Rows:
    """Gaussians before their activations, with what belongs to each."""

    parameters: dict[str, Tensor]  # means [N, 3], quats [N, 4], log_scales [N, 3], logits [N], and any others [N, ...]
    moments: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)  # Adam's first and second, by parameter
    labels: dict[str, Tensor] = field(default_factory=dict)  # [N, ...] each, inherited

    def __len__(self) -> int:
        return len(self.parameters["means"])

    def __getitem__(self, index: Tensor) -> Rows:  # [M] long or [N] bool
        """Some of the rows with their moments and labels, in the order asked for."""
        return Rows(
            {name: p.detach()[index] for name, p in self.parameters.items()},
            {name: (m[index], v[index]) for name, (m, v) in self.moments.items()},
            {name: label[index] for name, label in self.labels.items()},
        )

    def fresh(self) -> Rows:
        """The same rows with Adam's moments at 0."""
        moments = {name: (torch.zeros_like(m), torch.zeros_like(v)) for name, (m, v) in self.moments.items()}
        return Rows(self.parameters, moments, self.labels)

    def replaced(self, **parameters: Tensor) -> Rows:
        return Rows({**self.parameters, **parameters}, self.moments, self.labels)


def cat(*rows: Rows) -> Rows:
    """One after the other; all must have the same parameters, moments and labels. ValueError if they have not."""
    first = rows[0]
    for other in rows[1:]:
        for kind in ("parameters", "moments", "labels"):
            if getattr(other, kind).keys() != getattr(first, kind).keys():
                raise ValueError(f"Rows to be joined must have the same {kind}.")
    return Rows(
        {name: torch.cat([r.parameters[name].detach() for r in rows]) for name in first.parameters},
        {
            name: (torch.cat([r.moments[name][0] for r in rows]), torch.cat([r.moments[name][1] for r in rows]))
            for name in first.moments
        },
        {name: torch.cat([r.labels[name] for r in rows]) for name in first.labels},
    )


def prune(rows: Rows, dead: Tensor) -> Rows:  # [N] bool
    """Without the dead."""
    return rows[~dead]


def clone(rows: Rows, chosen: Tensor) -> Rows:  # [N] bool
    """All rows as they are, then a copy of each chosen one; the optimiser pulls the two apart.

    Deviation: the two share what they hide. With both as opaque as the one was, the pair lets through (1 - o)^2 where
    it was 1 - o, and a scene that fits well jumps at every densification. As in "Revising densification in Gaussian
    Splatting" (arXiv:2404.06109, section 4.3), each gets 1 - sqrt(1 - o).
    """
    shared = _shared(rows.parameters["logits"].detach())
    logits = torch.where(chosen, shared, rows.parameters["logits"].detach())
    rows = rows.replaced(logits=logits)
    return cat(rows, rows[chosen].fresh())


def split(rows: Rows, chosen: Tensor, generator: torch.Generator, into: int = 2) -> Rows:  # [N] bool
    """Each chosen row gives way to `into` smaller ones at the end, drawn from the Gaussian itself:

    mean' = mean + R diag(s) n,    n ~ N(0, I),    s' = s / (SHRINK into / 2)
    """
    parents = rows[chosen]
    count = len(parents)
    children = parents[torch.arange(count, device=chosen.device).repeat(into)].fresh()
    p = children.parameters
    scales = p["log_scales"].exp()
    noise = torch.randn(scales.shape, generator=generator, dtype=torch.float32).to(scales)
    offset = (rotations(p["quats"]) @ (scales * noise)[..., None])[..., 0]
    smaller = p["log_scales"] - math.log(SHRINK * into / 2)
    return cat(rows[~chosen], children.replaced(means=p["means"] + offset, log_scales=smaller))


def densify(
    rows: Rows,
    push: Tensor,  # [N] >= 0, how hard the loss pulls at each row's place
    threshold: float,  # rows with a greater push are cloned or split
    large: float,  # world units; a chosen row with a greater scale is split, others are cloned
    generator: torch.Generator,
    most: int | None = None,  # no more rows than so many: the most pushed ones come first
) -> Rows:
    """Clone the small and split the large ones among those that are pushed. New rows stand at the end."""
    chosen = push > threshold
    if most is not None:
        room = max(most - len(rows), 0)
        if int(chosen.sum()) > room:
            order = torch.argsort(push, descending=True, stable=True)[:room]
            chosen = torch.zeros_like(chosen).index_fill_(0, order, True)
    big = rows.parameters["log_scales"].detach().amax(1) > math.log(large)
    grown = clone(rows, chosen & ~big)
    apart = torch.zeros(len(grown), dtype=torch.bool, device=chosen.device)
    apart[: len(rows)] = chosen & big
    return split(grown, apart, generator)


def reset_opacity(rows: Rows, ceiling: float = 0.01) -> Rows:
    """No row more opaque than `ceiling`, and Adam's memory of opacities gone: what is needed comes back, floaters do
    not."""
    logits = rows.parameters["logits"].detach()
    moments = dict(rows.moments)
    if "logits" in moments:
        moments["logits"] = (torch.zeros_like(logits), torch.zeros_like(logits))
    lowered = logits.clamp(max=math.log(ceiling / (1 - ceiling)))
    return Rows({**rows.parameters, "logits": lowered}, moments, rows.labels)


def screen_push(
    gradient: Tensor,  # [N, 3] d loss / d means
    means: Tensor,  # [N, 3]
    viewmat: Tensor,  # [4, 4]
    K: Tensor,  # [3, 3]
    width: int,
    height: int,
) -> Tensor:  # [N]
    """The length of d loss / d (place on the screen), the screen being 2 wide and 2 high, as 3DGS measures it.

    From the gradient in the world: a point at depth z that moves by dx across the view moves by fx dx / z pixels, so

        |(z / fx  W / 2  (R g)_x,   z / fy  H / 2  (R g)_y)|
    """
    across = gradient @ viewmat[:2, :3].T
    z = (means.detach() @ viewmat[2, :3] + viewmat[2, 3]).clamp(min=0)
    size = torch.stack([0.5 * width / K[0, 0], 0.5 * height / K[1, 1]])
    return (across * size * z[:, None]).norm(dim=1)


def rotations(quats: Tensor) -> Tensor:  # [N, 4] wxyz, any length but 0 -> [N, 3, 3]
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = (
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _shared(logits: Tensor) -> Tensor:
    """logit(1 - sqrt(1 - o)) for o = sigmoid(logit), no cancellation: sqrt(1 - o) = exp(logsigmoid(-logit) / 2)."""
    through = 0.5 * torch.nn.functional.logsigmoid(-logits)
    return torch.log(-torch.expm1(through)) - through
