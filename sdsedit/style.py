"""The look of reference pictures on another picture, on a texture of any size, or on a picture drawn from words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sdsedit.errors import InputRefused
from sdsedit.guidance.attention_distillation import Look, Reference, Walk, optimise, sample_in_style, tiles
from sdsedit.prior.base import Prior
from sdsedit.representations.image import encoded, resize, working_size
from sdsedit.request import MAX_REFERENCES, MAX_SIZE, MAX_STEPS, check_number, check_picture, check_prompt, check_whole

Kind = Literal["transfer", "texture", "words"]
MAX_TEXTURE = 8192  # pixels a side
MAX_REGIONS = 16  # in a picture of regions
MAX_CONTENT_WEIGHT = 10.0
MAX_LAYERS = 128
MAX_DRAWS = 16


@dataclass(frozen=True)
class StyleRequest:
    """What to make: exactly one of `content`, `prompt` and `texture`."""

    references: tuple[Tensor, ...]  # [1, 3, H, W] fp32 in 0..1 each, any size: whose look is wanted
    content: Tensor | None = None  # [1, 3, H, W] fp32 in 0..1, what keeps its layout
    prompt: str | None = None  # what is to be drawn
    texture: tuple[int, int] | None = None  # (H, W) pixels
    regions: Tensor | None = None  # [1, 1, H, W] whole numbers, of the content
    reference_regions: tuple[Tensor, ...] = ()  # of the references: what has one number takes its look from there

    @property
    def kind(self) -> Kind:
        return "transfer" if self.content is not None else "words" if self.prompt is not None else "texture"


@dataclass(frozen=True)
class Way:
    """The settings of one kind; the defaults are the paper's, and a model's editing.json may know better."""

    sampled: bool  # guided sampling; else the latent is optimised
    steps: int
    step_size: float
    start: float = 1.0  # t at the first step
    end: float = 0.0  # t at the last one; sampling ends at 0
    content_weight: float = 0.0
    inner: int = 1  # sampling: steps of distillation after each step
    scale: float = 1.0  # sampling: CFG
    match: bool = False  # sampling: AdaIN
    draws: int = 1  # sampling: with so many noises each reference is seen at every step
    borrow: float = 0.0  # sampling: how far predictions go towards those made with the references' keys and values
    until: float = 0.0  # sampling: t below which nothing is distilled any more
    finest: bool = False  # only the layers of the finest grid are compared
    noise: float = 1.0  # optimising a texture: the deviation of what it begins from, as a share of the references'
    layers: int | None = None


@dataclass(frozen=True)
class StyleConfig:
    """How to make it; None is what suits the kind and the model, see Way."""

    steps: int | None = None  # 1 .. MAX_STEPS
    step_size: float | None = None  # above 0 .. 1, of Adam, in latent units
    content_weight: float | None = None  # 0 .. MAX_CONTENT_WEIGHT: how firmly the content's layout is kept
    scale: float | None = None  # 1 .. 30, CFG of the prompt
    layers: int | None = None  # 1 .. MAX_LAYERS, counted from the network's end
    seed: int = 0  # 0 .. 2^63 - 1
    size: int | None = None  # working side in pixels, up to MAX_SIZE; None: the model's native side
    low_memory: bool = False  # gradient checkpointing: the same result in more time
    way: Way | None = None  # taken whole, in the place of what suits the model; the settings above go over it


WAYS: dict[Kind, Way] = {
    "transfer": Way(sampled=False, steps=200, step_size=0.05, content_weight=0.25),
    "texture": Way(sampled=False, steps=300, step_size=0.05),
    "words": Way(sampled=True, steps=50, step_size=0.015, start=0.98, inner=3, scale=7.5, match=True),
}


@dataclass
class Begun:
    """A run after some of its steps: given to `style` again, with all else as it was, it goes on to the same bits."""

    walk: Walk = field(default_factory=Walk)
    z: Tensor | None = None  # [1, C, h, w], the picture that it is heading for
    history: list[dict[str, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class StyleStep:
    """One finished step, as `on_step` sees it."""

    index: int  # 0 .. total - 1
    total: int
    losses: dict[str, Tensor]  # 0-dim: "style", "content"
    z: Tensor  # [1, C, h, w], the picture that the run is heading for
    prior: Prior = field(repr=False)
    begun: Begun = field(repr=False)  # for whoever wants to go on from here; as it is now

    def preview(self) -> Tensor:
        """It, decoded at the working size, [1, 3, h factor, w factor] in 0..1; of a large texture a part."""
        cells = 2 * self.prior.native // self.prior.factor
        with torch.inference_mode():
            return self.prior.decode(self.z[..., :cells, :cells])


OnStyleStep = Callable[[StyleStep], "bool | None"]


@dataclass(frozen=True)
class StyleResult:
    """A finished or stopped picture, and what is known about it."""

    image: Tensor  # [1, 3, H, W] fp32 in 0..1: of the content's size, the texture's, or the model's own
    kind: Kind
    way: Way  # the settings that were used
    steps_done: int
    stopped: str  # "" at the end of the run, "cancelled", or "non-finite gradient at step 12, t=0.53"
    notes: tuple[str, ...]
    history: tuple[dict[str, float], ...]  # t and the losses, of each step
    seconds: float
    z: Tensor  # [1, C, h, w]


def style(
    prior: Prior, request: StyleRequest, config: StyleConfig | None = None, on_step: OnStyleStep | None = None,
    begun: Begun | None = None,
) -> StyleResult:  # fmt: skip
    """Make a picture with the look of the references; Attention Distillation, arXiv:2502.20235.

    on_step is called after every step and stops the run by returning False; the result then holds what there is so
    far. begun: go on from there, as a StyleStep had it. One seed is one result. Raises InputRefused with one sentence
    where a value cannot be used.
    """
    started = time.perf_counter()
    config = config or StyleConfig()
    check_style(request, config)
    _check_pictures(prior, request, config)
    way = way_of(prior, request.kind, config)
    _check_way(way)
    if way.borrow and (request.regions is not None or not hasattr(prior, "unet")):
        raise InputRefused("A look can be borrowed without regions only, and by models with a UNet: set borrow to 0.")
    notes: list[str] = []
    with torch.inference_mode(False), torch.no_grad():
        look = _look(prior, request, config, way)
        begun = Begun() if begun is None else begun
        latents = _run(prior, request, config, way, look, notes, begun.walk)
        z = _begin(prior, request, config, look, way) if begun.z is None else begun.z.to(prior.device)
        done, stopped, history = begun.walk.done, "", begun.history
        for t, latest, losses in latents:
            if not latest.isfinite().all():
                stopped = f"non-finite gradient at step {done + 1}, t={t.item():.2f}"
                break
            z, done = latest, done + 1
            history.append({"t": t, **losses})
            begun.z = z
            if on_step and on_step(StyleStep(done - 1, way.steps, losses, z, prior, begun)) is False:
                stopped = "" if done == way.steps else "cancelled"
                break
        image = _finish(prior, request, config, z)
    return StyleResult(
        image=image,
        kind=request.kind,
        way=way,
        steps_done=done,
        stopped=stopped,
        notes=tuple(notes),
        history=tuple({name: float(value) for name, value in each.items()} for each in history),
        seconds=time.perf_counter() - started,
        z=z,
    )


def way_of(prior: Prior, kind: Kind, config: StyleConfig) -> Way:
    """The settings of a run: the paper's, over them the model's, over those a person's. InputRefused: the model's
    editing.json has what a way lacks."""
    known = {each.name for each in fields(Way)}
    suited: Any = prior.editing.get("style", {}).get(kind, {})
    if not isinstance(suited, dict) or not set(suited) <= known:
        raise InputRefused(f"The model's editing.json has settings of a style ({kind}) that are not known.")
    chosen = {name: getattr(config, name) for name in ("steps", "step_size", "content_weight", "scale", "layers")}
    own = {name: value for name, value in chosen.items() if value is not None}
    return replace(WAYS[kind], **{**suited, **own}) if config.way is None else replace(config.way, **own)


def check_style(request: StyleRequest, config: StyleConfig) -> None:
    """Refuse, with one sentence (InputRefused), what no model could make right; needs none."""
    wanted = [request.content is not None, request.prompt is not None, request.texture is not None]
    if sum(wanted) != 1:
        raise InputRefused("Say one of: a content picture, a prompt, or the size of a texture.")
    if not 1 <= len(request.references) <= MAX_REFERENCES:
        raise InputRefused(f"A style needs 1 to {MAX_REFERENCES} reference pictures; {len(request.references)} given.")
    if request.prompt is not None:
        check_prompt("prompt", request.prompt)
        if not request.prompt.strip():
            raise InputRefused("The prompt is empty; say what to draw.")
    if request.texture is not None:
        for name, side in zip(("height", "width"), request.texture, strict=True):
            check_whole(f"the texture's {name}", side, 8, MAX_TEXTURE)
    if (request.regions is not None) != bool(request.reference_regions):
        raise InputRefused("Regions are of the content and of every reference: give them for both.")
    if request.regions is not None and len(request.reference_regions) != len(request.references):
        raise InputRefused(
            f"Each of the {len(request.references)} references needs its own picture of regions; "
            f"{len(request.reference_regions)} given."
        )
    if request.regions is not None and request.content is None:
        raise InputRefused("Regions belong to a content picture: give one.")
    for name, low, high in (
        ("content_weight", 0, MAX_CONTENT_WEIGHT), ("scale", 1, 30), ("step_size", 1e-6, 1),
    ):  # fmt: skip
        if (value := getattr(config, name)) is not None:
            check_number(name, value, low, high)
    for name, high in (("steps", MAX_STEPS), ("layers", MAX_LAYERS), ("size", MAX_SIZE)):
        if (value := getattr(config, name)) is not None:
            check_whole(name, value, 1, high)
    check_whole("seed", config.seed, 0, 2**63 - 1)


def _check_way(way: Way) -> None:
    """A model's file or somebody's recipe may hold anything. InputRefused."""
    for name, low, high in (("steps", 1, MAX_STEPS), ("inner", 0, 1000), ("draws", 1, MAX_DRAWS)):
        check_whole(name, getattr(way, name), low, high)
    for name, low, high in (
        ("step_size", 1e-6, 1), ("start", 0, 1), ("end", 0, 1), ("content_weight", 0, MAX_CONTENT_WEIGHT),
        ("scale", 1, 30), ("noise", 0, 10), ("borrow", 0, 3), ("until", 0, 1),
    ):  # fmt: skip
        check_number(name, getattr(way, name), low, high)
    if way.layers is not None:
        check_whole("layers", way.layers, 1, MAX_LAYERS)


def _check_pictures(prior: Prior, request: StyleRequest, config: StyleConfig) -> None:
    pictures = [*request.references] + ([] if request.content is None else [request.content])
    for picture in pictures:
        check_picture(picture, None, config.size, prior)
    if request.regions is None or request.content is None:
        return
    every = [("content", request.content, request.regions)]
    every += [("reference", *each) for each in zip(request.references, request.reference_regions, strict=True)]
    for name, picture, regions in every:
        if regions.shape != (1, 1, *picture.shape[-2:]):
            raise InputRefused(f"The regions of the {name} must be exactly as large as its picture.")
        if (count := len(regions.unique())) > MAX_REGIONS:
            raise InputRefused(f"The regions of the {name} have {count} colours; at most {MAX_REGIONS} are allowed.")
    theirs = set().union(*(set(each.unique().tolist()) for each in request.reference_regions))
    if lost := set(request.regions.unique().tolist()) - theirs:
        raise InputRefused(
            f"{len(lost)} of the content's regions have a colour that no reference's regions have: use the same "
            "colours."
        )


def _look(prior: Prior, request: StyleRequest, config: StyleConfig, way: Way) -> Look:
    regions = request.reference_regions or (None,) * len(request.references)
    references = tuple(
        Reference(encoded(prior, picture, config.size), each)
        for picture, each in zip(request.references, regions, strict=True)
    )
    content = None if request.content is None else encoded(prior, request.content, config.size)
    return Look(
        references, content, way.content_weight, request.regions, way.layers, config.low_memory, way.draws,
        way.finest,
    )  # fmt: skip


def _begin(prior: Prior, request: StyleRequest, config: StyleConfig, look: Look, way: Way) -> Tensor:
    """Where a run begins. Drawn on the CPU: one seed is one result on every device."""
    if look.content is not None and not way.sampled:
        return look.content
    side = _side(prior, config)
    if look.content is not None:
        size = (look.content.shape[-2], look.content.shape[-1])
    elif request.texture is not None:
        size = (-(-request.texture[0] // prior.factor), -(-request.texture[1] // prior.factor))
    else:
        size = (side, side)
    generator = torch.Generator().manual_seed(config.seed)
    noise = torch.randn(1, prior.channels, *size, generator=generator).to(prior.device)
    if look.content is not None:
        return prior.schedule.add_noise(look.content, noise, torch.tensor([way.start], device=noise.device))
    if way.sampled:
        return noise
    theirs = torch.cat([each.z.flatten(2) for each in look.references], dim=2)
    mean, deviation = theirs.mean(2)[..., None, None], theirs.std(2)[..., None, None]
    return noise if way.noise == 1 else mean + way.noise * deviation * noise


def _side(prior: Prior, config: StyleConfig) -> int:
    """Of a square picture or a tile, cells."""
    size = working_size((1, 1), config.size or prior.native, prior.multiple)
    return size[0] // prior.factor


def _run(
    prior: Prior, request: StyleRequest, config: StyleConfig, way: Way, look: Look, notes: list[str], walk: Walk
) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:  # after each step: t, the picture it heads for, the losses
    z = _begin(prior, request, config, look, way)
    generator = torch.Generator().manual_seed(config.seed + 1)
    tile = None if request.texture is None else _side(prior, config)
    if not way.sampled:
        return optimise(prior, z, look, way.steps, way.step_size, (way.start, way.end), tile, generator, walk)
    prompt = request.prompt or ""
    if cut := prior.tokenize(prompt).cut:
        notes.append(f"The prompt is longer than the model reads; these words were cut: {cut}")
    text = prior.encode_text([prompt])
    steps = sample_in_style(
        prior, z, text, look, generator, way.steps, way.inner, way.step_size, way.scale if prompt else 1.0, way.match,
        way.borrow, way.until, tile, way.start, walk,
    )  # fmt: skip
    return ((t, z_t if t == 0 else z_0, losses) for t, z_t, z_0, losses in steps)


def _finish(prior: Prior, request: StyleRequest, config: StyleConfig, z: Tensor) -> Tensor:
    if request.texture is not None:
        height, width = request.texture
        return decode_torus(prior, z, _side(prior, config))[..., :height, :width]
    image = prior.decode(z)
    if request.content is None:
        return image
    return resize(image, (request.content.shape[-2], request.content.shape[-1]))


def decode_torus(prior: Prior, z: Tensor, side: int) -> Tensor:  # [1, C, h, w] -> [1, 3, h factor, w factor]
    """The picture of a latent that goes on at its other end, in the memory of one tile of `side` cells with its
    surroundings, faded into each other where they overlap."""
    h, w = z.shape[-2:]
    factor, halo = prior.factor, max(side // 4, 1)
    total = torch.zeros(1, 3, h * factor, w * factor, device=z.device)
    weight = torch.zeros(1, 1, h * factor, w * factor, device=z.device)
    ramp = (torch.arange(factor * (side + 2 * halo), device=z.device) + 0.5) / (2 * halo * factor)
    fade = torch.minimum(ramp, ramp.flip(0)).clamp(max=1)
    fade = fade[:, None] * fade
    for rows, columns in tiles((h, w), side):
        around = [(each[0] - halo + torch.arange(side + 2 * halo)) % n for each, n in ((rows, h), (columns, w))]
        picture = prior.decode(z[..., around[0][:, None], around[1]])
        pixels = [(each[:, None] * factor + torch.arange(factor)).flatten() for each in around]
        at = (pixels[0][:, None] * w * factor + pixels[1]).flatten().to(z.device)
        total.view(1, 3, -1).index_add_(2, at, (picture * fade).flatten(2))
        weight.view(1, 1, -1).index_add_(2, at, fade.flatten()[None, None])
    return total / weight
