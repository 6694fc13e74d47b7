"""Vector sketches from words for people who live in diffusers, over any Stable Diffusion 1.x, 2.x, SDXL or KOALA model.

    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        custom_pipeline="pipelines/sketch.py",  # this file, or a folder that holds it as pipeline.py
        trust_remote_code=True,  # diffusers asks for it before it runs any file of ours, local ones too
    )
    out = pipe("a cat wearing a crown", num_strokes=64)
    open("cat.svg", "w", encoding="utf-8").write(out.svgs[0])
    out.images[0].save("cat.png")

`sdsedit` must be installed: diffusers copies this one file into its own cache and runs it from there. All the work is
done by `sdsedit.sketch`; what is here translates between it and diffusers' habits.
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

from sdsedit.io.svg import read_svg
from sdsedit.prior.load import editing_settings
from sdsedit.prior.unet import UNetPrior
from sdsedit.sketch.draw import SketchConfig, SketchResult, SketchStep, Style, sketch
from sdsedit.sketch.files import SIDE, draw_page, sketch_svg


@dataclass
class SketchOutput(BaseOutput):
    """Every field has one entry for each prompt."""

    images: Any  # the drawings, 512 pixels on the longer side: RGB pictures, or [B, H, W, 3], or [B, 3, H, W], in 0..1
    svgs: list[str]
    guides: Any  # the model's own pictures of the words, as `images`
    shares: list[dict[str, float]]  # of the gradient, by term
    dropped: list[int]  # strokes that did not matter
    stopped: list[str]  # "" for a run that came to its end, else why not
    notes: list[tuple[str, ...]]  # what a person should know: words cut off, terms that are not at hand ...


class SketchPipeline(DiffusionPipeline):
    """Draws words as an SVG: DiffSketcher (arXiv:2306.14685) with its score distillation switched on."""

    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ["text_encoder_2", "tokenizer_2"]  # noqa: RUF012  # as diffusers declares it
    _callback_tensor_inputs = ["image"]  # noqa: RUF012

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
        prompt: str | list[str],
        num_strokes: int = 64,
        style: Style = "ink",
        background: bool = False,
        width: float = 1.0,
        num_inference_steps: int = 200,
        distillation: float = 0.5,
        generator: torch.Generator | None = None,
        seed: int = 0,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict[str, torch.Tensor]], Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> SketchOutput | tuple[Any, ...]:
        """Draw one prompt, or several one after another.

        num_strokes: 4 to 2048, the level of abstraction. style: "ink", "colour" or "icon" (filled areas).
        background: draw what is around the words' things too. width: multiplies the strokes' width, 0.1 to 20.
        num_inference_steps: 1 to 10000. distillation: its share of the gradient, 0 to 1.
        generator: draws the seed, if given; else `seed`. One seed is one result.
        output_type: "pil", "np" or "pt"; `svgs` are always text. return_dict: False gives (images, svgs).
        callback_on_step_end: called as (pipe, step, 0, {"image": page}) after each step, to look on; a step has several
            views with a random timestep each, so 0 stands for it. Set `pipe._interrupt = True` in it to stop with what
            there is. What it returns is not taken up.
        ValueError, with one sentence: a value that cannot be used.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type is {output_type!r}; it must be "pil", "np" or "pt".')
        if callback_on_step_end_tensor_inputs not in (None, [], ["image"]):
            raise ValueError('callback_on_step_end_tensor_inputs can only hold "image".')
        prompts = prompt if isinstance(prompt, list) else [prompt]
        if not prompts:
            raise ValueError("prompt is an empty list; give at least one.")
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        config = SketchConfig(
            num_strokes, style, background, width, num_inference_steps, seed, distillation=distillation
        )  # fmt: skip
        shown = callback_on_step_end_tensor_inputs is None or bool(callback_on_step_end_tensor_inputs)

        prior = self._prior()
        self._interrupt = False
        results: list[SketchResult] = []
        with self.progress_bar(total=len(prompts) * num_inference_steps) as bar:

            def on_step(step: SketchStep) -> bool:
                bar.update()
                if callback_on_step_end is not None:
                    callback_on_step_end(self, step.index, 0, {"image": step.preview()} if shown else {})
                return not self._interrupt

            for each in prompts:
                results.append(sketch(each, prior, config, on_step))
                if self._interrupt:
                    break

        svgs = [sketch_svg(result, side=SIDE) for result in results]
        pages = _converted([draw_page(read_svg(svg)) for svg in svgs], output_type)
        if not return_dict:
            return pages, [svg.decode() for svg in svgs]
        guides = [result.guide[0].permute(1, 2, 0).mul(255).round().byte().cpu().numpy() for result in results]
        return SketchOutput(
            images=pages,
            svgs=[svg.decode() for svg in svgs],
            guides=_converted(guides, output_type),
            shares=[result.shares for result in results],
            dropped=[result.dropped for result in results],
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
            self._execution_device,
            zero_empty=bool(self.config.get("force_zeros_for_empty_prompt")),
            editing=editing_settings(Path(name)),
        )


def _converted(pictures: list[np.ndarray], output_type: str) -> Any:
    """A list of [H, W, 3] uint8, all of one size, as asked for."""
    if output_type == "pil":
        return [Image.fromarray(picture) for picture in pictures]
    array = np.stack(pictures).astype(np.float32) / 255
    return array if output_type == "np" else torch.from_numpy(array).permute(0, 3, 1, 2)
