"""Stable Diffusion 3 and 3.5 and FLUX.1 as a Prior: a transformer over picture and text, trained by flow matching.

    z_t = (1 - sigma) z + sigma eps,   v = eps - z,   eps = z_t + (1 - sigma) v

so eps leaves this file as it leaves every prior: fp32, without CFG. Two prompts' predictions differ by (1 - sigma)
times their velocities' difference: a weight that suits one convention does not suit the other.

What differs between the two families, and stays in here:

                       Stable Diffusion 3 (arXiv:2403.03206)             FLUX.1
    latent             as it is; the network cuts its 2 x 2 patches      packed here, 2 x 2 cells into one token
    places             a table, at most pos_embed_max_size patches       RoPE over the ids (0, row, column)
    time               1000 sigma                                        sigma
    text tokens        CLIP L | CLIP bigG side by side, then T5          T5 alone
    pooled text        both CLIPs'                                       CLIP's
    missing encoders   any but one; zeros stand for it                   none
    distilled CFG      none                                              dev: a guidance of its own; schnell: none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdsedit.prior import autoencoder
from sdsedit.prior.base import Prediction, Probe, Text, Tokens
from sdsedit.prior.running import bring, start_offload, twin_of
from sdsedit.prior.text import blank, encoded, read
from sdsedit.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        AutoencoderTiny,
        FluxPipeline,
        FluxTransformer2DModel,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

_CLIP_TOKENS = 77  # the context of every CLIP text encoder; for where none is there to ask
_T5_TOKENS = 256  # what SD3 and FLUX.1 schnell were trained with; FLUX.1 dev with twice as many
_PACK = 2  # FLUX.1: cells a token, along a side


class MMDiTPrior:
    """A Prior over diffusers and transformers modules, which become frozen: eval mode, no gradients to the weights.

    name: what people call the model, for records.
    tokenizers, text_encoders: SD3: CLIP L, CLIP bigG and T5, each pair None or there, one at least; FLUX.1: CLIP L, T5.
        Fast tokenizers.
    scheduler: any flow-matching diffusers scheduler; only its config is read.
    device: where predictions run, and where tensors that are passed in must be.
    distilled_guidance: what FLUX.1 dev, which was distilled from its own CFG, is told of the scale that it should act
        like. No CFG scale: it takes no second forward pass and no method sets it. 1 is the plain conditional
        prediction, which every method here assumes; FlowEdit has its own for each branch (Text.guided).
    offload: at most one of the text encoders, the transformer and the autoencoder is on the device, the rest in main
        memory.
    ValueError: a network that is not a plain text-to-image one, or text encoders that do not fit it.
    """

    def __init__(
        self,
        name: str,
        transformer: SD3Transformer2DModel | FluxTransformer2DModel,
        vae: AutoencoderKL | AutoencoderTiny,
        tokenizers: Sequence[Any],
        text_encoders: Sequence[Any],
        scheduler: Any,
        device: torch.device | str,
        distilled_guidance: float = 1.0,
        offload: bool = False,
        editing: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        net: Any = transformer.config
        code: Any = vae.config
        self._packs = type(transformer).__name__ == "FluxTransformer2DModel"
        taken = net.in_channels // _PACK**2 if self._packs else net.in_channels
        given = transformer.out_channels // _PACK**2 if self._packs else transformer.out_channels
        if not taken == given == code.latent_channels:
            raise ValueError(
                f"{name} takes {taken} channels for latents of {code.latent_channels}: "
                "inpainting and other conditioned networks cannot be used, only plain text-to-image ones."
            )
        _check_encoders(name, tokenizers, text_encoders, 2 if self._packs else 3)
        self.name = name
        self.editing = editing or {}
        self.device = torch.device(device)
        self.dtype = transformer.dtype
        self.schedule = Schedule.from_scheduler(scheduler)
        if self.schedule.prediction != "flow":
            raise ValueError(f"{name} needs a flow-matching scheduler; it has a {type(scheduler).__name__}.")
        self.distilled_guidance = float(distilled_guidance) if net.get("guidance_embeds") else None
        self.tokenizers = tuple(tokenizers)
        self.text_encoders = nn.ModuleList([each for each in text_encoders if each is not None])
        self._encoders: tuple[Any, ...] = tuple(text_encoders)
        self.transformer = transformer
        self.vae = autoencoder.upcast(vae)
        networks = nn.ModuleList([self.text_encoders, self.transformer, self.vae])
        networks.eval().requires_grad_(False).to("cpu" if offload else self.device)
        self.offload: bool | str = offload  # "sequential": layer by layer (prior.running), nothing is moved here
        self.previewer: Any = None  # a tiny autoencoder that draws the previews; None: the model's own does
        self.options: dict[str, Any] = {}  # what else was asked for in loading it, as a recipe has it
        self.adapted: tuple[str, ...] = ()  # what was added when it was loaded, for records: "lora toy.safetensors:0.8"
        self.resident: nn.Module | None = None  # under offload, the one network that is on the device

        self.channels = int(code.latent_channels)
        self.factor = autoencoder.factor(vae)
        self._patch = _PACK if self._packs else int(net.patch_size)
        self.multiple = self.factor * self._patch
        self.native = int(code.sample_size) if self._packs else int(net.sample_size) * self.factor
        self._lengths = self._places()
        self.max_tokens = self._lengths[-1] if self._packs else _CLIP_TOKENS + self._lengths[-1]
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}

    @classmethod
    def from_pipeline(cls, pipe: StableDiffusion3Pipeline | FluxPipeline, name: str = "") -> MMDiTPrior:
        """The prior of a loaded pipeline, on its device and in its precision; the modules are shared, not copied."""
        endings = ("", "_2", "_3") if hasattr(pipe, "text_encoder_3") else ("", "_2")
        source = str(pipe.config.get("_name_or_path") or type(pipe).__name__)
        return cls(
            name or (Path(source).name if Path(source).is_dir() else source),
            pipe.transformer,
            pipe.vae,
            [getattr(pipe, "tokenizer" + ending) for ending in endings],
            [getattr(pipe, "text_encoder" + ending) for ending in endings],
            pipe.scheduler,
            pipe.transformer.device,
        )

    def twin(self) -> MMDiTPrior:
        """The same model for another thread: weights and remembered prompts are shared, but what is hung on a network
        while it runs (a probe, hooks) is each one's own."""
        return twin_of(self, ("transformer", "vae"))

    def start_offload(self) -> bool:
        """From here on at most one network is on the device (see `offload`); False if that was so already."""
        return start_offload(self, (self.text_encoders, self.transformer, self.vae))

    def _places(self) -> tuple[int, ...]:
        """How many tokens each text encoder reads."""
        most = 2 * _T5_TOKENS if self._packs and self.distilled_guidance is not None else _T5_TOKENS
        lengths = []
        for i, (tokenizer, encoder) in enumerate(zip(self.tokenizers, self._encoders, strict=True)):
            last = i == len(self.tokenizers) - 1
            length = most if last else _CLIP_TOKENS
            if tokenizer is not None:
                length = min(length, int(tokenizer.model_max_length))
                length = min(length, int(getattr(encoder.config, "max_position_embeddings", length)))
            lengths.append(length)
        return tuple(lengths)

    def tokenize(self, prompt: str) -> Tokens:
        """The prompt as the network's text tokens hold it, with the characters that each token stands for.

        SD3 reads a prompt twice, with CLIP and with T5: a word has places in both parts. What is too long for CLIP
        alone has been read.
        """
        parts = [
            read(tokenizer, prompt, length) if tokenizer is not None else blank(length)
            for tokenizer, length in zip(self.tokenizers, self._lengths, strict=True)
        ]
        if self._packs:
            return parts[-1]
        clip = parts[0] if self.tokenizers[0] is not None else parts[1]
        t5, pad = parts[2], _CLIP_TOKENS - len(clip.ids)
        cut = clip.cut if self.tokenizers[2] is None else t5.cut
        return Tokens(clip.ids + blank(pad).ids + t5.ids, clip.offsets + blank(pad).offsets + t5.offsets, cut)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """A row for each prompt, in the network's precision, never with autograd; recent prompts are remembered."""
        rows = encoded(self._texts, prompts, self._encode_prompt)
        guidance = None
        if self.distilled_guidance is not None:
            guidance = torch.full((len(rows),), self.distilled_guidance, device=self.device)
        embeds, pooled = (torch.cat(part) for part in zip(*rows, strict=True))
        return Text(tuple(prompts), embeds, pooled, guidance)

    def _encode_prompt(self, prompt: str) -> tuple[Tensor, Tensor]:  # [1, L, D], [1, P]
        self._move(self.text_encoders)
        config: Any = self.transformer.config
        *clips, t5 = range(len(self.tokenizers))
        if self._packs:
            return self._t5(t5, prompt, config.joint_attention_dim), self._clip(0, prompt)[1].to(self.dtype)
        widths = self._clip_widths(config.pooled_projection_dim)
        told = [self._clip(i, prompt) if self._encoders[i] is not None else None for i in clips]
        side = [
            torch.zeros(1, _CLIP_TOKENS, width, device=self.device)
            if each is None
            else F.pad(each[0], (0, 0, 0, _CLIP_TOKENS - each[0].shape[1]))
            for each, width in zip(told, widths, strict=True)
        ]
        pooled = [
            torch.zeros(1, width, device=self.device) if each is None else each[1]
            for each, width in zip(told, widths, strict=True)
        ]
        clip = torch.cat([part.to(self.dtype) for part in side], -1)
        clip = F.pad(clip, (0, config.joint_attention_dim - clip.shape[-1]))
        text = torch.cat([clip, self._t5(t5, prompt, config.joint_attention_dim)], 1)
        return text, torch.cat([part.to(self.dtype) for part in pooled], -1)

    def _clip_widths(self, pooled: int) -> list[int]:
        """How wide CLIP L and CLIP bigG speak, in every token and pooled; of a missing one, what the other leaves of
        the pooled text."""
        known = [None if each is None else int(each.config.projection_dim) for each in self._encoders[:2]]
        if known == [None, None]:
            return [pooled // 2, pooled - pooled // 2]  # both are zeros
        return [pooled - sum(width for width in known if width) if width is None else width for width in known]

    def _clip(self, i: int, prompt: str) -> tuple[Tensor, Tensor]:  # [1, 77, D], [1, P]
        ids = self._ids(i, prompt)
        if self._packs:
            return (out := self._encoders[i](ids)).last_hidden_state, out.pooler_output
        out = self._encoders[i](ids, output_hidden_states=True)
        return out.hidden_states[-2], out[0]  # SD3 reads the last layer but one, as SDXL does, and the projection

    def _t5(self, i: int, prompt: str, width: int) -> Tensor:  # [1, L, D]
        if self._encoders[i] is None:
            return torch.zeros(1, self._lengths[i], width, device=self.device, dtype=self.dtype)
        # No mask: both families were trained with the padding in sight.
        return self._encoders[i](self._ids(i, prompt))[0].to(self.dtype)

    def _ids(self, i: int, prompt: str) -> Tensor:  # [1, L]
        options: dict[str, Any] = {"truncation": True, "max_length": self._lengths[i], "return_tensors": "pt"}
        return self.tokenizers[i](prompt, padding="max_length", **options)["input_ids"].to(self.device)

    def encode(self, image: Tensor) -> Tensor:  # [B, 3, H, W] fp32 in 0..1 -> [B, C, H / factor, W / factor] fp32
        """The autoencoder's mean latent, scaled. ValueError: another shape, or sides that `factor` does not divide."""
        self._move(self.vae)
        return autoencoder.encode(self.vae, image)

    def encoder_features(self, image: Tensor) -> tuple[Tensor, ...]:  # [B, 3, H, W] -> [B, C_l, H_l, W_l] each
        """What the autoencoder's encoder sees on its way down: the activations before each halving of the sides."""
        self._move(self.vae)
        return autoencoder.encoder_features(self.vae, image)

    def network_features(self, z_t: Tensor, t: Tensor, text: Text) -> tuple[Tensor, ...]:  # [B, D, h_l, w_l] each
        """The picture tokens after a half and three quarters of the joint blocks, on their grid: such a network has one
        scale, so what is coarse in it is what comes late."""
        blocks: Any = self.transformer.transformer_blocks
        chosen = sorted({len(blocks) * 3 // 4, len(blocks) // 2}, reverse=True)
        seen: dict[int, Tensor] = {}
        hooks = [
            blocks[i].register_forward_hook(lambda _, __, output, i=i: seen.__setitem__(i, output[1].float()))
            for i in chosen
        ]
        try:
            self.predict(z_t, t, text)
        finally:
            for hook in hooks:
                hook.remove()
        grid = (z_t.shape[-2] // self._patch, z_t.shape[-1] // self._patch)
        return tuple(seen[i].transpose(1, 2).unflatten(-1, grid) for i in chosen)

    def decode(self, z: Tensor) -> Tensor:  # [B, C, h, w] -> [B, 3, h factor, w factor] fp32 in 0..1
        """The picture of a scaled latent. ValueError: another number of dimensions or channels."""
        self._check_latent(z)
        self._move(self.vae)
        return autoencoder.decode(self.vae, z)

    def predict(
        self,
        z_t: Tensor,  # [B, C, h, w] fp32
        t: Tensor,  # [B] or [1] in 0..1, sigma
        text: Text,  # B rows, or one row for all
        probe: Probe | None = None,
    ) -> Prediction:
        """The noise that the network sees in z_t. ValueError: shapes or batch sizes that do not fit."""
        self._check_latent(z_t)
        batch, _, h, w = z_t.shape
        if h % self._patch or w % self._patch:
            raise ValueError(f"{self.name} needs latents with sides in multiples of {self._patch}; got {h} x {w}.")
        if t.shape not in ((batch,), (1,)) or len(text) not in (batch, 1):
            given = f"t {list(t.shape)} and {len(text)} texts"
            raise ValueError(f"A batch of {batch} needs {batch} times and texts, or one for all; got {given}.")
        if text.pooled is None or (text.guidance is None) != (self.distilled_guidance is None):
            raise ValueError(f"{self.name} needs its own text: encode the prompts with this model.")
        t = t.expand(batch)
        self._move(self.transformer)
        with nullcontext() if probe is None else probe.attach(self.transformer, batch, (h, w)):
            velocity = (self._flux if self._packs else self._sd3)(z_t, t, text)
        return Prediction(self.schedule.to_eps(velocity, z_t, t), None if probe is None else probe.collect())

    def _sd3(self, z_t: Tensor, t: Tensor, text: Text) -> Tensor:
        net: Any = self.transformer
        most = net.config.pos_embed_max_size * self._patch
        if max(z_t.shape[-2:]) > most:
            raise ValueError(f"{self.name} reads pictures of at most {most * self.factor} pixels a side.")
        assert text.pooled is not None
        return net(
            hidden_states=z_t.to(self.dtype),
            timestep=self.schedule.timestep(t),
            encoder_hidden_states=text.embeds.expand(len(z_t), -1, -1),
            pooled_projections=text.pooled.expand(len(z_t), -1),
            return_dict=False,
        )[0]

    def _flux(self, z_t: Tensor, t: Tensor, text: Text) -> Tensor:
        h, w = z_t.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(h // _PACK), torch.arange(w // _PACK), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)  # [N, 3]
        net: Any = self.transformer
        assert text.pooled is not None
        out = net(
            hidden_states=pack(z_t).to(self.dtype),
            timestep=t.float(),  # the network itself multiplies it by 1000
            guidance=None if text.guidance is None else text.guidance.expand(len(z_t)),
            encoder_hidden_states=text.embeds.expand(len(z_t), -1, -1),
            pooled_projections=text.pooled.expand(len(z_t), -1),
            img_ids=places.to(z_t.device, torch.float32),
            txt_ids=torch.zeros(text.embeds.shape[1], 3, device=z_t.device),
            return_dict=False,
        )[0]
        return unpack(out, (h, w))

    def _check_latent(self, z: Tensor) -> None:
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(f"A latent of {self.name} is [B, {self.channels}, h, w]; got {list(z.shape)}.")

    def _move(self, network: nn.Module) -> None:
        bring(self, network)


def pack(z: Tensor) -> Tensor:  # [B, C, h, w] -> [B, h w / 4, 4 C]
    """FLUX.1: every 2 x 2 cells of a latent as one token, its channels slowest."""
    batch, channels, h, w = z.shape
    cells = z.reshape(batch, channels, h // _PACK, _PACK, w // _PACK, _PACK)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, h * w // _PACK**2, channels * _PACK**2)


def unpack(tokens: Tensor, size: tuple[int, int]) -> Tensor:  # [B, h w / 4, 4 C], (h, w) -> [B, C, h, w]
    """The latent that `pack` made these tokens of."""
    h, w = size
    cells = tokens.unflatten(1, (h // _PACK, w // _PACK)).unflatten(-1, (-1, _PACK, _PACK))
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, h, w)


def _check_encoders(name: str, tokenizers: Sequence[Any], encoders: Sequence[Any], count: int) -> None:
    pairs = list(zip(tokenizers, encoders, strict=True)) if len(tokenizers) == len(encoders) else []
    halves = any((tokenizer is None) != (encoder is None) for tokenizer, encoder in pairs)
    there = [tokenizer for tokenizer, _ in pairs if tokenizer is not None]
    if len(pairs) != count or halves or len(there) < (count if count == 2 else 1):
        needs = "a CLIP and a T5 text encoder" if count == 2 else "at least one of its three text encoders"
        raise ValueError(f"{name} needs {needs}, each with its own tokenizer.")
    if not all(tokenizer.is_fast for tokenizer in there):
        raise ValueError(f"{name} needs fast tokenizers, which tell the characters of each token.")
