"""Style, appearance and texture transfer for people who live in diffusers, over any Stable Diffusion 1.x, 2.x, SDXL or
KOALA model.

    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import load_image

    pipe = DiffusionPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        custom_pipeline="pipelines/style_transfer.py",  # this file, or a folder that holds it as pipeline.py
        trust_remote_code=True,  # diffusers asks for it before it runs any file of ours, local ones too
        torch_dtype=torch.float16,
    ).to("cuda")
    out = pipe(load_image("mosaic.png"), image=load_image("cat.png"))       # the cat keeps its layout
    out = pipe(load_image("mosaic.png"), prompt="a fox on grass")           # drawn from words
    out = pipe(load_image("mosaic.png"), width=2048, height=1024)           # a texture without a seam
    out.images[0].save("styled.png")

`sdsedit` must be installed: diffusers copies this one file into its own cache and runs it from there. All the work is
done by `sdsedit.style`; what is here translates between its tensors and diffusers' habits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from sdsedit.prior.load import editing_settings
from sdsedit.prior.unet import UNetPrior
from sdsedit.style import StyleConfig, StyleRequest, StyleStep, style, way_of

Pictures = Image.Image | np.ndarray | torch.Tensor


@dataclass
class StyleTransferOutput(BaseOutput):
    """What was made, in the kind that `output_type` asked for."""

    images: Any  # a list of one RGB picture, or an array [1, H, W, 3], or a tensor [1, 3, H, W], in 0..1
    losses: list[dict[str, float]]  # t, "style" and "content" after each step
    stopped: str  # "" for a run that came to its end, else why not
    notes: tuple[str, ...]  # what a person should know: words cut off ...


class StyleTransferPipeline(DiffusionPipeline):
    """Attention Distillation, arXiv:2502.20235: pictures with the look of reference pictures."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ["text_encoder_2", "tokenizer_2"]  # noqa: RUF012  # as diffusers declares it
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self, vae, text_encoder, tokenizer, unet, scheduler, text_encoder_2=None, tokenizer_2=None,
        force_zeros_for_empty_prompt: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
            text_encoder_2=text_encoder_2, tokenizer_2=tokenizer_2,
        )  # fmt: skip
        self.register_to_config(force_zeros_for_empty_prompt=force_zeros_for_empty_prompt)
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def __call__(
        self,
        reference: Pictures | list[Pictures],
        image: Pictures | None = None,
        prompt: str | None = None,
        height: int | None = None,
        width: int | None = None,
        content_weight: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        learning_rate: float | None = None,
        layers: int | None = None,
        image_regions: Pictures | None = None,
        reference_regions: list[Pictures] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        size: int | None = None,
        gradient_checkpointing: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict[str, torch.Tensor]], Any] | None = None,
    ) -> StyleTransferOutput | tuple[Any, ...]:
        """Make one picture. Exactly one of: `image` (it keeps its layout), `prompt`, or `height` with `width` (a
        texture that goes on without a seam).

        reference: whose look is wanted, one picture or a list; PIL, an array [H, W, 3] (uint8, or 0..1), a tensor
            [3, H, W] or [1, 3, H, W] in 0..1. image: the same kinds; what comes back has its size.
        content_weight: how firmly the layout is kept, 0 to 10. num_inference_steps: 1 to 10000. guidance_scale: of the
            prompt, 1 to 30. learning_rate: of Adam, in latent units. layers: how many self-attention layers are
            compared, from the network's end. None is what suits the model.
        image_regions, reference_regions: pictures in a few flat colours; a colour takes its look from where a
            reference has that colour.
        generator: draws the seed, if given; else `seed`. size: working side in pixels, None is the model's own.
        gradient_checkpointing: less memory, more time, the same result.
        output_type: "pil", "np" or "pt". return_dict: False gives (images,).
        callback_on_step_end: called as (pipe, step, timestep, {"latents": z}) after each step, to look on; set
            `pipe._interrupt = True` in it to stop with what there is.
        ValueError, with one sentence: a value that cannot be used.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type is {output_type!r}; it must be "pil", "np" or "pt".')
        if (height is None) != (width is None):
            raise ValueError("A texture needs a height and a width.")
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        references = reference if isinstance(reference, list) else [reference]
        request = StyleRequest(
            references=tuple(map(_tensor, references)),
            content=None if image is None else _tensor(image),
            prompt=prompt,
            texture=None if height is None or width is None else (height, width),
            regions=None if image_regions is None else _numbered(image_regions),
            reference_regions=tuple(map(_numbered, reference_regions or [])),
        )
        config = StyleConfig(
            steps=num_inference_steps, step_size=learning_rate, content_weight=content_weight, scale=guidance_scale,
            layers=layers, seed=seed, size=size, low_memory=gradient_checkpointing,
        )  # fmt: skip
        prior = self._prior()
        self._interrupt = False
        with self.progress_bar(total=way_of(prior, request.kind, config).steps) as bar:

            def on_step(step: StyleStep) -> bool:
                bar.update()
                if callback_on_step_end is not None:
                    left = 1 - (step.index + 1) / step.total
                    timestep = round(left * prior.schedule.num_train_timesteps)
                    callback_on_step_end(self, step.index, timestep, {"latents": step.z})
                return not self._interrupt

            result = style(prior, request, config, on_step)
        made: Any = result.image
        if output_type != "pt":
            made = made.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            made = [Image.fromarray((each * 255).round().astype(np.uint8)) for each in made]
        if not return_dict:
            return (made,)
        return StyleTransferOutput(images=made, losses=list(result.history), stopped=result.stopped, notes=result.notes)

    def _prior(self) -> UNetPrior:
        pairs = [(self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)]
        present = [(tokenizer, encoder) for tokenizer, encoder in pairs if encoder is not None]
        name = str(self.config.get("_name_or_path") or type(self).__name__)
        return UNetPrior(
            Path(name).name if Path(name).is_dir() else name,
            self.unet,
            self.vae,
            [tokenizer for tokenizer, _ in present],
            [encoder for _, encoder in present],
            self.scheduler,
            self._execution_device,
            zero_empty=bool(self.config.get("force_zeros_for_empty_prompt")),
            editing=editing_settings(Path(name)),
        )


def _tensor(image: Pictures) -> torch.Tensor:  # [1, 3, H, W] float32
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.ndim == 3:
        whole = image.dtype == np.uint8
        image = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
        image = image / 255 if whole else image
    if not isinstance(image, torch.Tensor) or image.ndim not in (3, 4) or image.shape[-3] != 3:
        raise ValueError("A picture must be PIL, an array [H, W, 3] or a tensor [3, H, W].")
    return image.float() if image.ndim == 4 else image.float()[None]


def _numbered(image: Pictures) -> torch.Tensor:  # [1, 1, H, W], a whole number for each colour
    red, green, blue = (_tensor(image)[0] * 255).round().unbind(0)
    return (red * 65536 + green * 256 + blue)[None, None]
