"""Attention Distillation: a picture takes the look of reference pictures through the model's own self-attention.

Attention Distillation, arXiv:2502.20235 (CVPR 2025). With Q, K, V of a self-attention layer l, SA(Q, K, V) =
softmax(Q K^T / sqrt(d)) V, and sg[.] a constant:

    L_AD      = sum_l mean |SA(Q, K, V) - sg[SA(Q, K_ref, V_ref)]|   eq. 4: what each cell would see in the references
    L_content = sum_l mean |Q - sg[Q_content]|                       eq. 6: where things are
    L         = L_AD + w L_content

The queries ask "what does a cell like me look like?", the references' keys and values answer, and the picture moves
until its own answer is the same. All networks read the empty prompt. Several references: their K and V one after the
other, along tokens. Regions: a cell may only ask cells with its own region number.

Layers are counted from the end of call order: late ones hold looks, early ones hold things. The recorded tensors carry
autograd; the network's output is not needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdsedit.attention.joint import is_joint, patch_of
from sdsedit.guidance.base import Guidance, State, Step, Update
from sdsedit.prior.base import Prior, Text, cfg


@dataclass(frozen=True)
class Layer:
    """What one self-attention layer did in one forward pass."""

    q: Tensor  # [B, heads, N, d]
    k: Tensor  # [B, heads, N, d]
    v: Tensor  # [B, heads, N, d]
    out: Tensor  # [B, heads, N, d], SA(q, k, v)
    scale: float  # of q k^T
    grid: tuple[int, int]  # (h, w) with h w = N


@dataclass(frozen=True)
class Reference:
    """A picture whose look is wanted."""

    z: Tensor  # [1, C, h, w] fp32, its latent
    regions: Tensor | None = None  # [1, 1, h', w'] of whole numbers, any size; None: one region


class SelfAttention:
    """A Probe that records the last `count` self-attention layers of a forward pass, in call order.

    A joint transformer (SD3, FLUX.1) has no self-attention of the picture alone: recorded is what its picture tokens
    would see of each other, SA(Q, K, V) over them without the text, after QK-norm and rotary places.

    count: None is the paper's: 6 of a UNet, 7 of a transformer.
    checkpoint: keep activations only between blocks and compute them again on the way back: less memory, a third more
    time, the same gradient.
    """

    def __init__(self, count: int | None = None, checkpoint: bool = False) -> None:
        if count is not None and count < 1:
            raise ValueError(f"At least one layer must be recorded; got {count}.")
        self.count, self.checkpoint = count, checkpoint
        self._seen: deque[_Heard] = deque()
        self._grid: Callable[[int], tuple[int, int]] = lambda cells: (1, cells)

    @contextmanager
    def attach(self, network: Any, batch: int, latent_size: tuple[int, int]) -> Iterator[None]:
        joint = is_joint(network)
        self._seen = deque(maxlen=self.count or (7 if joint else 6))
        if joint:
            side = patch_of(network)
            grid = (latent_size[0] // side, latent_size[1] // side)
            self._grid = lambda cells: grid
        else:
            self._grid = partial(_halved, latent_size)
        hooks: list[Any] = []
        begin = self.checkpoint and not network.is_gradient_checkpointing
        try:
            if begin:
                network.enable_gradient_checkpointing()
            for attn in _self_attentions(network):
                hooks += self._listen(attn, joint)
            yield
        finally:  # before the way back, which may run parts of the network again: what they do is not recorded
            for hook in hooks:
                hook.remove()
            if begin:
                network.disable_gradient_checkpointing()

    def collect(self) -> tuple[Layer, ...]:
        seen, self._seen = tuple(self._seen), deque()
        if not seen:
            raise RuntimeError("Nothing was recorded: run the network inside `with probe.attach(...)` first.")
        return tuple(heard.layer(self._grid) for heard in seen)

    def _listen(self, attn: Any, joint: bool) -> list[Any]:
        """Hooks that keep what passes and compute nothing: checkpointing must find the same operations again."""
        passed: dict[str, Any] = {}

        def begun(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            passed["places"] = named.get("image_rotary_emb")

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                passed[name] = output

            return hook

        def put_together(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            passed["out"] = inputs[0]  # SA(Q, K, V), whatever computed it, its heads side by side

        def ended(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            places, out = passed.get("places"), None if joint else passed["out"]
            self._seen.append(_Heard(attn, passed["q"], passed["k"], passed["v"], out, places))
            passed.clear()

        hooks = [
            attn.register_forward_pre_hook(begun, with_kwargs=True),
            attn.register_forward_hook(ended),
            attn.to_q.register_forward_hook(keep("q")),
            attn.to_k.register_forward_hook(keep("k")),
            attn.to_v.register_forward_hook(keep("v")),
        ]
        if not joint:
            hooks.append(attn.to_out[0].register_forward_pre_hook(put_together))
        return hooks


class Borrowed:
    """A Probe under which the last layers ask the references in the place of the picture itself,

        SA(Q, K, V)  ->  SA(Q, K_ref, V_ref)        Cross-Image Attention, arXiv:2311.03335, section 4.1

    so that the network draws with what the references hold: the target of L_AD, as it would be if it were reached.
    """

    def __init__(self, references: Sequence[Sequence[Layer]]) -> None:  # as in Seen, of batch 1
        self._lent = [
            {
                name: torch.cat([getattr(each, name) for each in layer], dim=2).transpose(1, 2).flatten(2)
                for name in ("k", "v")
            }
            for layer in zip(*references, strict=True)
        ]  # [1, M, heads d] each, of the last layers in call order

    @contextmanager
    def attach(self, network: Any, batch: int, latent_size: tuple[int, int]) -> Iterator[None]:
        if is_joint(network):
            raise ValueError("A joint transformer's keys and values hold the text too: nothing can be borrowed there.")
        attentions = list(_self_attentions(network))
        own = len(attentions) - len(self._lent)  # the first layers, in call order, that borrow nothing
        begun = 0

        def begin(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal begun
            begun += 1

        def lend(name: str) -> Callable[..., Tensor]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                return output if begun <= own else self._lent[begun - own - 1][name].expand(batch, -1, -1)

            return hook

        with ExitStack() as hooks:
            for attn in attentions:
                hooks.enter_context(attn.register_forward_pre_hook(begin))
                hooks.enter_context(attn.to_k.register_forward_hook(lend("k")))
                hooks.enter_context(attn.to_v.register_forward_hook(lend("v")))
            yield

    def collect(self) -> None:
        return None


def observe(
    prior: Prior,
    z_t: Tensor,  # [B, C, h, w] fp32
    t: Tensor,  # [1]
    empty: Text,
    count: int | None = None,
    checkpoint: bool = False,
) -> tuple[Layer, ...]:
    """The last `count` self-attention layers on z_t. Autograd passes where it is on."""
    layers = prior.predict(z_t, t, empty, SelfAttention(count, checkpoint)).maps
    assert isinstance(layers, tuple)
    return layers


def style_loss(
    layers: Sequence[Layer],  # of the picture, with autograd
    references: Sequence[Sequence[Layer]],  # a reference each, of batch 1
    regions: Tensor | None = None,  # [B or 1, 1, h, w] whole numbers, of the picture
    reference_regions: Sequence[Tensor | None] = (),  # [1, 1, h, w] each
) -> Tensor:  # 0-dim fp32
    """L_AD = sum_l mean |SA(Q, K, V) - sg[SA(Q, K_ref, V_ref)]|.

    With regions, a cell asks only reference cells of its own number; a cell whose number the references lack on this
    layer's coarse grid asks all of them.
    """
    total = layers[0].out.new_zeros((), dtype=torch.float32)
    for n, layer in enumerate(layers):
        theirs = [each[n] for each in references]
        with torch.no_grad():
            rows = layer.q.shape[0]
            k = torch.cat([each.k for each in theirs], dim=2).expand(rows, -1, -1, -1)
            v = torch.cat([each.v for each in theirs], dim=2).expand(rows, -1, -1, -1)
            allowed = None
            if regions is not None:
                asked = [
                    _on_grid(torch.zeros(1, 1, 1, 1) if numbers is None else numbers, each.grid)
                    for numbers, each in zip(reference_regions, theirs, strict=True)
                ]
                allowed = _same_region(_on_grid(regions, layer.grid), torch.cat(asked, dim=1)).to(k.device)
            target = F.scaled_dot_product_attention(layer.q, k, v, attn_mask=allowed, scale=layer.scale)
        total = total + (layer.out.float() - target.float()).abs().mean()
    return total


def content_loss(layers: Sequence[Layer], wanted: Sequence[Layer]) -> Tensor:  # 0-dim fp32
    """L_content = sum_l mean |Q - sg[Q_content]|."""
    terms = [
        (layer.q.float() - other.q.detach().float()).abs().mean() for layer, other in zip(layers, wanted, strict=True)
    ]
    return torch.stack(terms).sum()


def adain(z: Tensor, references: Sequence[Tensor]) -> Tensor:  # [B, C, h, w], [1, C, h_i, w_i] each -> [B, C, h, w]
    """AdaIN, arXiv:1703.06868, eq. 8: each channel gets the references' mean and standard deviation.

    sigma(y) (z - mu(z)) / sigma(z) + mu(y), over the cells of a picture and of all references together.
    """
    theirs = torch.cat([each.flatten(2) for each in references], dim=2)  # [1, C, sum h_i w_i]
    mean, deviation = theirs.mean(2)[..., None, None], theirs.std(2)[..., None, None]
    own = z - z.mean((2, 3), keepdim=True)
    return own / z.std((2, 3), keepdim=True).clamp_min(1e-6) * deviation + mean


# ---- the two modes


@dataclass(frozen=True)
class Look:
    """What is wanted: the look of some pictures, and perhaps the layout of another."""

    references: tuple[Reference, ...]
    content: Tensor | None = None  # [1, C, h, w] fp32, a latent of the size that is made
    content_weight: float = 0.25
    regions: Tensor | None = None  # [1, 1, h', w'] of whole numbers, of what is made; None: one region
    layers: int | None = None  # how many; None: as SelfAttention has it
    checkpoint: bool = False
    draws: int = 1  # sampling: with so many noises each reference is seen, as if it were so many references
    finest: bool = False  # L_AD over the layers of the finest grid only


@dataclass(frozen=True)
class Seen:
    """What the pictures of a Look do to the network at one t."""

    references: tuple[tuple[Layer, ...], ...]  # all of them once, then all again with the next noise, and so on
    content: tuple[Layer, ...] | None


def see(prior: Prior, look: Look, t: Tensor, empty: Text, generator: torch.Generator | None = None) -> Seen:
    """One forward pass for all pictures of one size. With a generator they are noised to t first, else read as they
    are."""
    draws = 1 if generator is None else look.draws
    latents = [each.z for each in look.references] * draws + ([] if look.content is None else [look.content])
    if generator is not None:
        latents = [_noised(prior, z, t, generator) for z in latents]
    found: list[tuple[Layer, ...]] = [()] * len(latents)
    with torch.no_grad():
        for size in dict.fromkeys(z.shape for z in latents):
            of_size = [k for k, z in enumerate(latents) if z.shape == size]
            batch = torch.cat([latents[k] for k in of_size])
            layers = observe(prior, batch, t, empty, look.layers)
            for row, k in enumerate(of_size):
                found[k] = tuple(_row(layer, row) for layer in layers)
    count = len(look.references) * draws
    return Seen(tuple(found[:count]), found[count] if look.content is not None else None)


def gradient(
    prior: Prior, z: Tensor, t: Tensor, look: Look, seen: Seen, empty: Text
) -> tuple[Tensor, dict[str, Tensor]]:  # d L / d z [B, C, h, w] fp32; the losses, 0-dim
    """The gradient of L = L_AD + w L_content with respect to z, through the network. It may be called under inference
    mode."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        layers = observe(prior, leaf, t.clone(), _ordinary(empty), look.layers, look.checkpoint)
        regions = [each.regions for each in look.references] * (len(seen.references) // len(look.references))
        compared: Sequence[Layer] = layers
        theirs: Sequence[Sequence[Layer]] = seen.references
        if look.finest:
            most = max(layer.q.shape[2] for layer in layers)
            chosen = [n for n, layer in enumerate(layers) if layer.q.shape[2] == most]
            compared = [layers[n] for n in chosen]
            theirs = [[each[n] for n in chosen] for each in seen.references]
        style = style_loss(compared, theirs, look.regions, regions)
        losses, total = {"style": style.detach()}, style
        if seen.content is not None:
            kept = content_loss(layers, seen.content)
            losses["content"] = kept.detach()
            total = total + look.content_weight * kept
        (g,) = torch.autograd.grad(total, leaf)
    return g.detach(), losses


@dataclass
class Walk:
    """How far a run of `optimise` or `sample_in_style` has come. The run keeps it up to date; given to it again, with
    all else as it was, it goes on to the same bits. The tensors are the run's own: copy what should last."""

    done: int = 0  # steps
    z: Tensor | None = None  # [1, C, h, w] fp32
    adam: dict[str, Tensor] = field(default_factory=dict)  # of `optimise`: step, exp_avg, exp_avg_sq
    generator: Tensor | None = None  # its state


def optimise(
    prior: Prior,
    z: Tensor,  # [1, C, h, w] fp32, where to begin: the content's latent, or noise
    look: Look,
    steps: int,
    step_size: float = 0.05,
    span: tuple[float, float] = (1.0, 0.0),  # the network's t runs down from the first to the second
    tile: int | None = None,  # cells a side; None: all of z at once
    generator: torch.Generator | None = None,  # of the tiles' places
    walk: Walk | None = None,  # where to go on; None: at the beginning
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:  # after each step: t [1], z, the losses
    """Optimisation of the latent, section 3.2 of the paper: Adam on z in fp32, one step at each t of a descending walk.

    The network is told t, but no noise is added: its late layers say more of looks when they expect little noise, more
    of layout when they expect much.

    With `tile`, z is a torus that is cut anew at every step into tiles at random places, so that no seam can stay: of
    any size, in the memory of a few tiles, and what comes out can be laid side by side without end.
    """
    empty = prior.encode_text([""])
    walk = Walk() if walk is None else walk
    _go_on(walk, generator)
    with torch.inference_mode(False):
        leaf = (z if walk.z is None else walk.z.to(z.device)).detach().clone()
        adam = torch.optim.Adam([leaf], lr=step_size)
        adam.state[leaf] = {  # the count of steps stays where it was
            name: each.clone() if name == "step" else each.to(z.device, copy=True) for name, each in walk.adam.items()
        }
    for t in torch.linspace(*span, steps + 1, device=z.device)[1 + walk.done :, None]:
        seen = see(prior, look, t, empty)
        if tile is None:
            g, losses = gradient(prior, leaf, t, look, seen, empty)
        else:
            g, losses = _tiled_gradient(prior, leaf, t, look, seen, empty, tile, generator)
        with torch.inference_mode(False):
            leaf.grad = g.clone()
            adam.step()
        walk.done, walk.z, walk.adam = walk.done + 1, leaf.clone(), adam.state[leaf]
        walk.generator = None if generator is None else generator.get_state()
        yield t, walk.z, losses


def sample_in_style(
    prior: Prior,
    noise: Tensor,  # [1, C, h, w] fp32: noise, or a latent noised to `start`
    text: Text,  # what to draw; the empty prompt: a texture
    look: Look,
    generator: torch.Generator,
    steps: int = 50,
    inner: int = 3,
    step_size: float = 0.015,
    scale: float = 7.5,
    match: bool = True,
    borrow: float = 0.0,  # 0 .. 3; not of joint transformers, nor with regions
    until: float = 0.0,  # t below which nothing is distilled
    tile: int | None = None,  # cells a side; None: all of z at once
    start: float = 0.98,  # t of `noise`; models whose alpha is 0 at t = 1 cannot tell z_0 there
    walk: Walk | None = None,  # where to go on; None: at the beginning
) -> Iterator[tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]]:  # after each step: t [1], z_t, z_0, the losses
    """Sampling with guidance by attention distillation, section 3.3 of the paper. From t to t' < t:

        z_t' = one DDIM step (arXiv:2010.02502) with CFG, e_hat = e_0 + scale (e_y - e_0)
        z_t' = AdaIN(z_t', z_t'_ref)                           if `match`
        z_t' = `inner` steps of a new Adam down L(z_t', t')    the references noised to t', where t' >= `until`

    With `borrow`, each prediction goes on towards, and above 1 beyond, the one that the network makes with the keys and
    values of the references noised to t (see Borrowed; its equation 5, "appearance guidance"):

        e(z_t, y) = e_own + borrow (e_borrowed - e_own)

    so that what is distilled is not lost in the next step, for the network by itself draws what it was trained on.

    Deviations: the last t' is 0 and is not skipped, but by `until`. With `tile`, as `optimise`; predictions of tiles
    that overlap are averaged (MultiDiffusion, arXiv:2302.08113).
    """
    if borrow and look.regions is not None:
        raise ValueError("Nothing can be borrowed with regions.")
    walk = Walk() if walk is None else walk
    _go_on(walk, generator)
    schedule, empty = prior.schedule, prior.encode_text([""])
    z_t = noise if walk.z is None else walk.z.to(noise.device)
    times = torch.linspace(start, 0, steps + 1, device=noise.device)
    for k in range(walk.done, steps):
        t, after = times[k : k + 1], times[k + 1 : k + 2]
        with torch.no_grad():
            lent = Borrowed(see(prior, look, t, empty, generator).references) if borrow else None
            cut = [None] if tile is None else tiles((z_t.shape[-2], z_t.shape[-1]), tile, generator)
            e_hat, weight = torch.zeros_like(z_t), torch.zeros_like(z_t)
            for at in cut:
                part = z_t if at is None else z_t[..., at[0][:, None], at[1]]
                e_y = _predicted(prior, part, t, text, empty, scale)
                if lent is not None:
                    e_y = torch.lerp(e_y, _predicted(prior, part, t, text, empty, scale, lent), borrow)
                if at is None:
                    e_hat, weight = e_y, torch.ones_like(e_y)
                else:
                    _add(e_hat, *at, e_y)
                    _add(weight, *at, torch.ones_like(e_y))
            e_hat = e_hat / weight
            z_0 = schedule.to_sample(e_hat, z_t, t)
            z_t = schedule.add_noise(z_0, e_hat, after)
            if match:
                z_t = adain(z_t, [_noised(prior, each.z, after, generator) for each in look.references])
            seen = see(prior, look, after, empty, generator)
        losses: dict[str, Tensor] = {}
        with torch.inference_mode(False):
            leaf = z_t.detach().clone()
            adam = torch.optim.Adam([leaf], lr=step_size)
        distilled = bool(after >= until)
        for _ in range(inner if distilled else min(inner, 1)):
            if tile is None:
                g, losses = gradient(prior, leaf, after, look, seen, empty)
            else:
                g, losses = _tiled_gradient(prior, leaf, after, look, seen, empty, tile, generator)
            if not distilled:
                break  # the losses are told all the same
            with torch.inference_mode(False):
                leaf.grad = g.clone()
                adam.step()
        z_t = leaf.clone()
        walk.done, walk.z, walk.generator = k + 1, z_t, generator.get_state()
        yield after, z_t, z_0, losses


def tiles(
    size: tuple[int, int],  # (h, w) of a torus, cells
    side: int,
    generator: torch.Generator | None = None,  # moves them all; None: the first begins at the corner
) -> list[tuple[Tensor, Tensor]]:  # (rows [side], columns [side]) each
    """Squares that cover a torus, evenly placed and as few as they can be; z[..., rows[:, None], columns] is one."""
    places = []
    for length in size:
        count = -(-length // side)
        shift = 0 if generator is None else int(torch.randint(length, (), generator=generator))
        starts = [(shift + k * length // count) % length for k in range(count)]
        places.append([(start + torch.arange(side)) % length for start in starts])
    return [(rows, columns) for rows in places[0] for columns in places[1]]


# ---- beside another method


class Styled:
    """A method of score distillation, and at every step a pull towards the references' look:

        step = step_method + weight rms(step_method) M g / rms(M g)        g = d L_AD / d z

    so that `weight` is how hard the style pulls, as a multiple of the method's own step, whatever the method's units.
    As in `optimise` the network is told a t that runs down, and no noise is added. M is the person's mask, or the place
    of the edit as the method has found it so far.
    """

    localizes: ClassVar[bool] = False  # asked of the method itself, before it is wrapped

    def __init__(self, method: Guidance, look: Look, weight: float) -> None:
        self.method, self.look, self.weight = method, look, weight
        self.t_min, self.t_max, self.steps = method.t_min, method.t_max, method.steps

    def __call__(self, prior: Prior, step: Step, state: State | None = None) -> Update:
        update = self.method(prior, step, state)
        t = torch.full((1,), _TOLD * (1 - step.progress), device=step.z.device)
        empty = step.prompts.empty
        g, losses = gradient(prior, step.z, t, self.look, see(prior, self.look, t, empty), empty)
        mask = step.mask
        if mask is None and update.state is not None:
            mask = update.state.mask
        if mask is not None:
            g = mask * g
        size = update.step.square().mean().sqrt() / g.square().mean().sqrt().clamp_min(1e-12)
        return Update(update.step + self.weight * size * g, update.state, {**update.stats, "style": losses["style"]})


# ---- inside

_TOLD = 0.5  # t that the network is told at the first step beside another method
_TOGETHER = 4  # tiles in one forward pass


def _go_on(walk: Walk, generator: torch.Generator | None) -> None:
    if generator is not None and walk.generator is not None:
        generator.set_state(walk.generator)


def _predicted(
    prior: Prior, z_t: Tensor, t: Tensor, text: Text, empty: Text, scale: float, lent: Borrowed | None = None
) -> Tensor:
    if scale == 1:
        return prior.predict(z_t, t, text, lent).eps
    e_0, e_y = prior.predict(torch.cat([z_t, z_t]), t, Text.cat(empty, text), lent).eps.chunk(2)
    return cfg(e_0, e_y, scale)


def _tiled_gradient(
    prior: Prior, z: Tensor, t: Tensor, look: Look, seen: Seen, empty: Text, side: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The gradient of the tiles' mean loss: the tiles' own, added up where they lie."""
    cut = tiles((z.shape[-2], z.shape[-1]), side, generator)
    total, losses = torch.zeros_like(z), {}
    for first in range(0, len(cut), _TOGETHER):
        batch = cut[first : first + _TOGETHER]
        parts = torch.cat([z[..., rows[:, None], columns] for rows, columns in batch])
        g, found = gradient(prior, parts, t, look, seen, empty)
        share = len(batch) / len(cut)
        for k, (rows, columns) in enumerate(batch):
            _add(total, rows, columns, share * g[k : k + 1])
        losses = {name: losses.get(name, 0.0) + share * loss for name, loss in found.items()}
    return total, losses


def _add(total: Tensor, rows: Tensor, columns: Tensor, part: Tensor) -> None:
    """Add a tile where it lies; on a torus smaller than the tile a cell gets several."""
    at = (rows[:, None] * total.shape[-1] + columns).flatten().to(total.device)
    total.view(*total.shape[:2], -1).index_add_(2, at, part.flatten(2))


def _noised(prior: Prior, z: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
    return prior.schedule.add_noise(z, torch.randn(z.shape, generator=generator).to(z.device), t)


def _row(layer: Layer, row: int) -> Layer:
    q, k, v, out = (each[row : row + 1] for each in (layer.q, layer.k, layer.v, layer.out))
    return replace(layer, q=q, k=k, v=v, out=out)


def _ordinary(text: Text) -> Text:
    """The same text in tensors that autograd may save, though it was put together under inference mode."""
    return replace(text, embeds=text.embeds.clone(), pooled=None if text.pooled is None else text.pooled.clone())


@dataclass(frozen=True)
class _Heard:
    """What a layer's projections gave, before norms and places."""

    attn: Any
    q: Tensor  # [B, N or L + N, heads d]
    k: Tensor
    v: Tensor
    out: Tensor | None  # [B, N, heads d]; None: to be computed, for the network saw the text too
    places: tuple[Tensor, Tensor] | None  # cosines and sines [L + N, d]

    def layer(self, grid: Callable[[int], tuple[int, int]]) -> Layer:
        attn = self.attn
        q, k, v = (each.unflatten(-1, (attn.heads, -1)) for each in (self.q, self.k, self.v))  # [B, n, heads, d]
        size = grid(q.shape[1])
        if self.out is not None:
            q, k, v, out = (each.transpose(1, 2) for each in (q, k, v, self.out.unflatten(-1, (attn.heads, -1))))
            q, k = _normed(attn.norm_q, q), _normed(attn.norm_k, k)
            return Layer(q, k, v, out, attn.scale, size)
        q, k = _normed(attn.norm_q, q), _normed(attn.norm_k, k)
        cells = size[0] * size[1]  # the picture's tokens are the last ones
        q, k, v = q[:, -cells:], k[:, -cells:], v[:, -cells:]
        if self.places is not None:
            from diffusers.models.embeddings import apply_rotary_emb

            rotate: Any = apply_rotary_emb
            own = tuple(part[-cells:] for part in self.places)
            q, k = rotate(q, own, sequence_dim=1), rotate(k, own, sequence_dim=1)
        q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        scale = q.shape[-1] ** -0.5
        return Layer(q, k, v, F.scaled_dot_product_attention(q, k, v, scale=scale), scale, size)


def _normed(norm: nn.Module | None, projected: Tensor) -> Tensor:
    return projected if norm is None else norm(projected)


def _self_attentions(network: nn.Module) -> Iterator[Any]:
    """Layers in which picture cells look at picture cells, with three projections of their own."""
    for module in network.modules():
        attends = all(hasattr(module, name) for name in ("to_q", "to_k", "to_v", "heads"))
        if attends and not getattr(module, "is_cross_attention", False):
            yield module


def _halved(latent_size: tuple[int, int], cells: int) -> tuple[int, int]:
    """The grid of a layer with that many cells: the latent's sides halved, rounded up, so many times."""
    height, width = latent_size
    while height * width > cells:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != cells:
        raise ValueError(
            f"A layer of {cells} cells fits no halving of a latent of {latent_size[0]} x {latent_size[1]}."
        )
    return height, width


def _on_grid(regions: Tensor, grid: tuple[int, int]) -> Tensor:  # [B, 1, h, w] -> [B, N]
    return F.interpolate(regions.float(), grid, mode="nearest-exact").flatten(1).round().long()


def _same_region(own: Tensor, theirs: Tensor) -> Tensor:  # [B, N], [1, M] -> [B, 1, N, M] bool
    same = own[:, :, None] == theirs[:, None, :]
    lost = ~same.any(-1, keepdim=True)  # softmax over nothing is not a number
    return (same | lost)[:, None]
