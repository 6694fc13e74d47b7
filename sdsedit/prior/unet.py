"""Stable Diffusion 1.5 and 2.1, SDXL and KOALA as a Prior: a UNet, an autoencoder and one or two CLIP text encoders.

Everything that differs between models is read from their configs; nothing above this file asks which model it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdsedit.prior import autoencoder
from sdsedit.prior.base import Prediction, Probe, Text, Tokens
from sdsedit.prior.running import bring, channels_last, start_offload, twin_of
from sdsedit.prior.text import encoded, read
from sdsedit.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        AutoencoderTiny,
        StableDiffusionPipeline,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )


class UNetPrior:
    """A Prior over diffusers and transformers modules, which become frozen: eval mode, no gradients to the weights.

    name: what people call the model, for records.
    tokenizers, text_encoders: one pair (Stable Diffusion) or two (SDXL, KOALA), fast CLIP tokenizers.
    scheduler: any diffusers scheduler of the model; only its config and noise table are read.
    device: where predictions run, and where tensors that are passed in must be.
    offload: at most one of the text encoders, the UNet and the autoencoder is on the device, the rest in main memory.
    zero_empty: the empty prompt is all zeros (force_zeros_for_empty_prompt of SDXL pipelines).
    ValueError: a network that is not a plain text-to-image one.
    """

    def __init__(
        self,
        name: str,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | AutoencoderTiny,
        tokenizers: Sequence[Any],
        text_encoders: Sequence[Any],
        scheduler: Any,
        device: torch.device | str,
        zero_empty: bool = False,
        offload: bool = False,
        editing: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        net: Any = unet.config
        code: Any = vae.config
        if not net.in_channels == net.out_channels == code.latent_channels:
            raise ValueError(
                f"{name} takes {net.in_channels} channels for latents of {code.latent_channels}: "
                "inpainting and other conditioned UNets cannot be used, only plain text-to-image ones."
            )
        fast = all(tokenizer.is_fast for tokenizer in tokenizers)
        if not 1 <= len(tokenizers) == len(text_encoders) <= 2 or not fast:
            raise ValueError(f"{name} needs one or two CLIP text encoders, each with its own fast tokenizer.")
        self.name = name
        self.editing = editing or {}
        self.device = torch.device(device)
        self.dtype = unet.dtype
        self.schedule = Schedule.from_scheduler(scheduler).to(self.device)
        self.tokenizers = tuple(tokenizers)
        self.text_encoders = nn.ModuleList(text_encoders)
        self.unet = unet
        self.vae = autoencoder.upcast(vae)  # SDXL's overflows in half precision
        networks = nn.ModuleList([self.text_encoders, self.unet, self.vae])
        networks.eval().requires_grad_(False).to("cpu" if offload else self.device)
        self.offload: bool | str = offload  # "sequential": layer by layer (prior.running), nothing is moved here
        self.previewer: Any = None  # a tiny autoencoder that draws the previews; None: the model's own does
        self.options: dict[str, Any] = {}  # what else was asked for in loading it, as a recipe has it
        self.adapted: tuple[str, ...] = ()  # what was added when it was loaded, for records: "lora toy.safetensors:0.8"
        self.resident: nn.Module | None = None  # under offload, the one network that is on the device

        self.channels = int(code.latent_channels)
        self.factor = autoencoder.factor(vae)
        if hasattr(self.vae, "spatial_scale_factor"):  # of AutoencoderTiny's tiles: diffusers says 8 for all of them
            self.vae.spatial_scale_factor = self.factor  # pyright: ignore[reportArgumentType]
        self.multiple = self.factor * 2 ** (len(net.down_block_types) - 1)
        self.native = self.factor * (net.sample_size if isinstance(net.sample_size, int) else max(net.sample_size))
        self.max_tokens = min(
            min(int(tokenizer.model_max_length), int(encoder.config.max_position_embeddings))
            for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True)
        )
        self._sized = net.addition_embed_type == "text_time"  # SDXL and KOALA read pooled text and sizes
        self._zero_empty = zero_empty
        self._texts: dict[str, tuple[Tensor, Tensor | None]] = {}

    @classmethod
    def from_pipeline(cls, pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, name: str = "") -> UNetPrior:
        """The prior of a loaded pipeline, on its device and in its precision; the modules are shared, not copied."""
        tokenizers, encoders = [pipe.tokenizer], [pipe.text_encoder]
        if getattr(pipe, "text_encoder_2", None) is not None:
            tokenizers.append(pipe.tokenizer_2)  # pyright: ignore[reportAttributeAccessIssue]
            encoders.append(pipe.text_encoder_2)  # pyright: ignore[reportAttributeAccessIssue]
        source = str(pipe.config.get("_name_or_path") or type(pipe).__name__)
        return cls(
            name or (Path(source).name if Path(source).is_dir() else source),
            pipe.unet,
            pipe.vae,
            tokenizers,
            encoders,
            pipe.scheduler,
            pipe.unet.device,
            zero_empty=bool(pipe.config.get("force_zeros_for_empty_prompt", False)),
        )

    def twin(self) -> UNetPrior:
        """The same model for another thread: weights and remembered prompts are shared, but what is hung on a network
        while it runs (a probe, hooks) is each one's own."""
        return twin_of(self, ("unet", "vae"))

    def for_many_rows(self) -> AbstractContextManager[None]:
        """While it lasts, here and in every twin, passes of many rows cost a CPU less, and passes of few more; answers
        differ by rounding."""
        return channels_last((self.unet, self.vae))

    def tokenize(self, prompt: str) -> Tokens:
        """The prompt as the first text encoder reads it; SDXL's two encoders cut words in the same places."""
        return read(self.tokenizers[0], prompt, self.max_tokens)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        """A row for each prompt, in the network's precision, never with autograd; recent prompts are remembered."""
        rows = encoded(self._texts, prompts, self._encode_prompt)
        pooled = [summary for _, summary in rows if summary is not None]
        return Text(tuple(prompts), torch.cat([embeds for embeds, _ in rows]), torch.cat(pooled) if pooled else None)

    def _encode_prompt(self, prompt: str) -> tuple[Tensor, Tensor | None]:  # [1, L, D], [1, P] or None
        self._move(self.text_encoders)
        embeds, pooled = [], None
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            ids = tokenizer(
                prompt, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )["input_ids"]
            if self._sized:
                out = encoder(ids.to(self.device), output_hidden_states=True)
                embeds.append(out.hidden_states[-2])  # SDXL reads the last layer but one
                pooled = out[0]  # of the last encoder, which has a projection
            else:
                embeds.append(encoder(ids.to(self.device)).last_hidden_state)
        text = torch.cat(embeds, dim=-1).to(self.dtype)
        pooled = None if pooled is None else pooled.to(self.dtype)
        if self._zero_empty and not prompt:
            return torch.zeros_like(text), None if pooled is None else torch.zeros_like(pooled)
        return text, pooled

    def encode(self, image: Tensor) -> Tensor:  # [B, 3, H, W] fp32 in 0..1 -> [B, C, H / factor, W / factor] fp32
        """The autoencoder's mean latent, scaled. ValueError: another shape, or sides that `factor` does not divide."""
        self._move(self.vae)
        return autoencoder.encode(self.vae, image)

    def encoder_features(self, image: Tensor) -> tuple[Tensor, ...]:  # [B, 3, H, W] -> [B, C_l, H_l, W_l] each
        """What the autoencoder's encoder sees on its way down: the activations before each halving of the sides."""
        self._move(self.vae)
        return autoencoder.encoder_features(self.vae, image)

    def network_features(self, z_t: Tensor, t: Tensor, text: Text) -> tuple[Tensor, ...]:  # [B, C_l, h_l, w_l] each
        """What the UNet sees on its way up, as in DIFT (arXiv:2306.03881): its up blocks' outputs but for the last."""
        unet: Any = self.unet
        seen: list[Tensor] = []
        hooks = [
            block.register_forward_hook(lambda _, __, output: seen.append(output.float()))
            for block in unet.up_blocks[:-1]
        ]
        try:
            self.predict(z_t, t, text)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(seen)

    def decode(self, z: Tensor) -> Tensor:  # [B, C, h, w] -> [B, 3, h factor, w factor] fp32 in 0..1
        """The picture of a scaled latent. ValueError: another number of dimensions or channels."""
        self._check_latent(z)
        self._move(self.vae)
        return autoencoder.decode(self.vae, z)

    def predict(
        self,
        z_t: Tensor,  # [B, C, h, w] fp32
        t: Tensor,  # [B] or [1] in 0..1
        text: Text,  # B rows, or one row for all
        probe: Probe | None = None,
    ) -> Prediction:
        """The noise that the network sees in z_t. ValueError: shapes or batch sizes that do not fit."""
        self._check_latent(z_t)
        batch, _, h, w = z_t.shape
        if t.shape not in ((batch,), (1,)) or len(text) not in (batch, 1):
            given = f"t {list(t.shape)} and {len(text)} texts"
            raise ValueError(f"A batch of {batch} needs {batch} times and texts, or one for all; got {given}.")
        t = t.expand(batch)
        added = None
        if self._sized:
            if text.pooled is None:
                raise ValueError(f"{self.name} needs the pooled text too: encode the prompts with this model.")
            # original size, corner of the crop, target size, in pixels: SDXL, arXiv:2307.01952, section 2.2
            size = (h * self.factor, w * self.factor)
            time_ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32).to(z_t.device).expand(batch, -1)
            added = {"text_embeds": text.pooled.expand(batch, -1), "time_ids": time_ids}
        self._move(self.unet)
        with nullcontext() if probe is None else probe.attach(self.unet, batch, (h, w)):
            output = self.unet(
                z_t.to(self.dtype),
                self.schedule.timestep(t),
                encoder_hidden_states=text.embeds.expand(batch, -1, -1),
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
        return Prediction(self.schedule.to_eps(output, z_t, t), None if probe is None else probe.collect())

    def _check_latent(self, z: Tensor) -> None:
        if z.ndim != 4 or z.shape[1] != self.channels:
            raise ValueError(f"A latent of {self.name} is [B, {self.channels}, h, w]; got {list(z.shape)}.")

    def start_offload(self) -> bool:
        """From here on at most one network is on the device (see `offload`); False if that was so already."""
        return start_offload(self, (self.text_encoders, self.unet, self.vae))

    def _move(self, network: nn.Module) -> None:
        bring(self, network)
