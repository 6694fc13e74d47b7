"""Text-driven image editing for people who live in diffusers, over any Stable Diffusion 1.x, 2.x, SDXL or KOALA model.

    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import load_image

    pipe = DiffusionPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        custom_pipeline="pipelines/image_edit.py",  # this file, or a folder that holds it as pipeline.py
        trust_remote_code=True,  # diffusers asks for it before it runs any file of ours, local ones too
        torch_dtype=torch.float16,
    ).to("cuda")
    out = pipe(load_image("cat.png"), "a cat wearing a crown on grass", source_prompt="a cat on grass")
    out.images[0].save("crowned.png")

`sdsedit` must be installed: diffusers copies this one file into its own cache and runs it from there. All the work is
done by `sdsedit.edit`; what is here translates between its tensors and diffusers' habits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

from sdsedit.edit import EditResult, StepReport, edit
from sdsedit.guidance import configured
from sdsedit.guidance.base import Guidance
from sdsedit.prior.load import editing_settings
from sdsedit.prior.unet import UNetPrior
from sdsedit.request import Edit, EditConfig

Pictures = Image.Image | np.ndarray | torch.Tensor


@dataclass
class ImageEditOutput(BaseOutput):
    """Every field has one entry for each picture, in the kind that `output_type` asked for."""

    images: Any  # a list of RGB pictures, or an array [B, H, W, 3], or a tensor [B, 3, H, W], in 0..1
    masks: Any  # the weight of the edit: greyscale, [B, H, W, 1] or [B, 1, H, W]; 0 = the source's pixel, bit for bit
    heatmaps: Any  # where the words were found, as `masks`
    kept_pixels: list[int]  # of weight 0
    stopped: list[str]  # "" for a run that came to its end, else why not
    notes: list[tuple[str, ...]]  # what a person should know: words cut off, no word found ...


class ImageEditPipeline(DiffusionPipeline):
    """Edits pictures with words by score distillation; LUSD (arXiv:2503.11054) unless another method is named."""

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
        self._offload_device: torch.device | None = None
        self._interrupt = False

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep one network at a time on the GPU and the others in main memory.

        gpu_id: which GPU; device: which device, "cuda" if neither is given.
        """
        self.to("cpu")
        self._offload_device = torch.device(device or (f"cuda:{gpu_id}" if gpu_id is not None else "cuda"))

    def __call__(
        self,
        image: Pictures | list[Pictures],
        prompt: str | list[str],
        source_prompt: str | list[str] | None = None,
        negative_prompt: str = "",
        method: str | Guidance = "lusd",
        num_inference_steps: int | None = None,
        strength: float = 1.0,
        mask_image: Pictures | None = None,
        words: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        feather: float | None = None,
        size: int | None = None,
        refine: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict[str, torch.Tensor]], Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> ImageEditOutput | tuple[Any, ...]:
        """Edit one picture, or several one after another; what comes back has the size of what went in.

        image: PIL, an array [H, W, 3] (uint8, or 0..1), a tensor [3, H, W] or [1, 3, H, W] in 0..1; or a list.
        prompt: describes the picture as it should become; source_prompt: as it is. A list has one for each picture.
        negative_prompt: what nfsd, csd and sbp move away from.
        method: a name of `sdsedit.METHODS`, or one of its classes with settings of your own.
        num_inference_steps: 1 to 10000; None is the method's own. strength: multiplies the method's step size.
        mask_image: where the pictures may change, white on black, of exactly their size.
        words: words of the prompt whose place is edited; None is the words that are new.
        generator: draws the seed, if given; else `seed`. One seed is one result.
        feather: the mask's soft edge in pixels. size: working side in pixels; refine: the noise from which the
            place of the edit is redrawn at the end, 0 to 1; None is what suits the model.
        output_type: "pil", "np" or "pt". return_dict: False gives (images,).
        callback_on_step_end: called as (pipe, step, timestep, {"latents": z}) after each step, to look on; set
            `pipe._interrupt = True` in it to stop with what there is. Latents that it returns are not taken up.
        ValueError, with one sentence: a value that cannot be used.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type is {output_type!r}; it must be "pil", "np" or "pt".')
        if callback_on_step_end_tensor_inputs not in (None, [], ["latents"]):
            raise ValueError('callback_on_step_end_tensor_inputs can only hold "latents".')
        images = image if isinstance(image, list) else [image]
        targets = prompt if isinstance(prompt, list) else [prompt] * len(images)
        sources = source_prompt if isinstance(source_prompt, list) else [source_prompt] * len(images)
        if not images or not len(images) == len(targets) == len(sources):
            raise ValueError(f"{len(images)} pictures need as many prompts; got {len(targets)} and {len(sources)}.")
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        config = EditConfig(method, num_inference_steps, seed, strength=strength, size=size, refine=refine)
        if feather is not None:
            config = replace(config, feather=feather)
        mask = None if mask_image is None else _tensor(mask_image, channels=1)
        shown = callback_on_step_end_tensor_inputs is None or bool(callback_on_step_end_tensor_inputs)

        prior = self._prior()
        self._interrupt = False
        results: list[EditResult] = []
        steps = config.steps or configured(method, strength, prior.editing).steps
        with self.progress_bar(total=len(images) * steps) as bar:

            def on_step(report: StepReport) -> bool:
                bar.update()
                if callback_on_step_end is not None:
                    timestep = round(float(report.stats["t"]) * prior.schedule.num_train_timesteps)
                    callback_on_step_end(self, report.index, timestep, {"latents": report.z} if shown else {})
                return not self._interrupt

            for each, target, source in zip(images, targets, sources, strict=True):
                request = Edit(target, source, None if words is None else tuple(words), mask, negative_prompt)
                results.append(edit(_tensor(each, channels=3), prior, request, config, on_step))
                if self._interrupt:
                    break
        if self._offload_device is not None:
            self.to("cpu")

        edited = _converted([result.image for result in results], output_type)
        if not return_dict:
            return (edited,)
        return ImageEditOutput(
            images=edited,
            masks=_converted([result.mask for result in results], output_type),
            heatmaps=_converted([result.heatmap for result in results], output_type),
            kept_pixels=[result.kept_pixels for result in results],
            stopped=[result.stopped for result in results],
            notes=[result.notes for result in results],
        )

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
            self._offload_device or self._execution_device,
            zero_empty=bool(self.config.get("force_zeros_for_empty_prompt")),
            offload=self._offload_device is not None,
            editing=editing_settings(Path(name)),
        )


def _tensor(image: Pictures, channels: int) -> torch.Tensor:  # [1, channels, H, W] float32
    if isinstance(image, Image.Image):
        image = np.array(image.convert("RGB" if channels == 3 else "L"))
    if isinstance(image, np.ndarray):
        whole = image.dtype == np.uint8
        image = torch.from_numpy(np.array(image if image.ndim == 3 else image[..., None])).permute(2, 0, 1)
        image = image.float() / 255 if whole else image.float()
    if not isinstance(image, torch.Tensor) or image.ndim not in (3, 4) or image.shape[-3] != channels:
        kind = "picture" if channels == 3 else "mask"
        raise ValueError(f"A {kind} must be PIL, an array [H, W, {channels}] or a tensor [{channels}, H, W].")
    return image.float() if image.ndim == 4 else image.float()[None]


def _converted(batch: list[torch.Tensor], output_type: str) -> Any:
    """A list of [1, C, H, W] in 0..1 as asked for; sizes that differ stay a list."""
    if output_type == "pil":
        arrays = [(each[0].permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8) for each in batch]
        return [Image.fromarray(array if array.shape[-1] == 3 else array[..., 0]) for array in arrays]
    together = len({each.shape for each in batch}) == 1
    if output_type == "pt":
        return torch.cat(batch) if together else batch
    arrays = [each.permute(0, 2, 3, 1).cpu().numpy() for each in batch]
    return np.concatenate(arrays) if together else arrays
