"""Splat scenes edited with words for people who live in diffusers, over any Stable Diffusion 1.x, 2.x, SDXL or KOALA.

    import torch
    from diffusers import DiffusionPipeline

    from sdsedit import write_splats

    pipe = DiffusionPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        custom_pipeline="pipelines/splat_edit.py",  # this file, or a folder that holds it as pipeline.py
        trust_remote_code=True,  # diffusers asks for it before it runs any file of ours, local ones too
    ).to("cuda")
    out = pipe("garden.ply", "a stone vase on a table", source_prompt="a plant on a table", cameras="garden/sparse/0")
    write_splats("edited.ply", out.splats)
    out.images[0].save("edited.png")

`sdsedit` must be installed: diffusers copies this one file into its own cache and runs it from there. All the work is
done by `sdsedit.splats.change`; what is here translates between it and diffusers' habits.
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

from sdsedit.camera import Cameras, read_cameras
from sdsedit.guidance.base import Guidance
from sdsedit.io.splats import Splats, read
from sdsedit.prior.load import editing_settings
from sdsedit.prior.unet import UNetPrior
from sdsedit.request import Edit
from sdsedit.splats.change import Kind, Progress, SplatConfig, SplatResult, change
from sdsedit.splats.files import photographs

Pictures = Image.Image | np.ndarray | torch.Tensor


@dataclass
class SplatEditOutput(BaseOutput):
    """An edited scene. V views are those that were held out: the edit did not see them."""

    splats: Splats  # rows of the input in their order, without what was deleted; new ones at the end
    images: Any  # the views after the edit: V RGB pictures, or [V, H, W, 3], or [V, 3, H, W], in 0..1
    before: Any  # the same views before it
    weight: np.ndarray  # [N] in 0..1, of the input's rows: where the words were found
    parent: np.ndarray  # [M], the row of the input that each row is, or came from; -1: new
    kind: str  # "recolour", "restyle", "replace", "add" or "delete"
    kept: int  # rows that are the input's, bit for bit
    changed: int
    added: int
    removed: int
    max_change_outside: float
    background_psnr: float  # dB, of the held-out views outside the edit
    stopped: str  # "" for a run that came to its end, else why not
    notes: tuple[str, ...]  # what a person should know: words cut off, nothing changed ...


class SplatEditPipeline(DiffusionPipeline):
    """Edits scenes of Gaussian splats with words: GSEditPro (arXiv:2411.10033) on LUSD (arXiv:2503.11054)."""

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
        splats: Splats | str | Path,
        prompt: str,
        source_prompt: str | None = None,
        negative_prompt: str = "",
        cameras: Cameras | str | Path | None = None,
        kind: Kind | None = None,
        method: str | Guidance = "lusd",
        num_inference_steps: int | None = None,
        strength: float = 1.0,
        words: list[str] | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        num_views: int = SplatConfig.views,
        threshold: float = SplatConfig.threshold,
        distillation: float = SplatConfig.distillation,
        num_added: int = SplatConfig.added,
        background: tuple[float, float, float] = SplatConfig.background,
        up: tuple[float, float, float] = SplatConfig.up,
        size: int | None = None,
        reference: Pictures | list[Pictures] | None = None,
        style_weight: float = SplatConfig.style_weight,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict[str, torch.Tensor]], Any] | None = None,
        callback_on_step_end_tensor_inputs: list[str] | None = None,
    ) -> SplatEditOutput | tuple[Any, ...]:
        """Edit one scene; Gaussians outside the edit come back bit for bit.

        splats: a scene, or the name of a .ply, .compressed.ply or .spz file.
        prompt: describes the scene as it should become; source_prompt: as it is.
        negative_prompt: what nfsd, csd and sbp move away from.
        cameras: at least four, or a COLMAP folder, a transforms.json, a cameras.json; None is an orbit that frames the
            scene. num_views: of the orbit, or how many of the cameras are used, 4 to 256.
        kind: "recolour", "restyle", "replace", "add" or "delete"; None is what the prompts say.
        method: a name of `sdsedit.METHODS`, or one of its classes with settings of your own.
        num_inference_steps: of distillation, 1 to 10000; None is the kind's own. strength: multiplies the step size.
        words: words of the prompts whose place is edited; None is the words that changed.
        generator: draws the seed, if given; else `seed`. One seed is one result.
        threshold: weight from which a Gaussian is in the edit. distillation: its share of the gradient, 0 to 1.
        num_added: Gaussians that a new thing begins with. background: colour behind the scene. up: of its world.
        size: side of the views in pixels; None is the model's own.
        reference: whose look the edit takes, one picture or a list; PIL, an array [H, W, 3] (uint8, or 0..1), a tensor
            [3, H, W] or [1, 3, H, W] in 0..1. style_weight: how hard it pulls, 0 to 10.
        output_type: "pil", "np" or "pt", of the views. return_dict: False gives (splats, images).
        callback_on_step_end: called as (pipe, piece, 0, {"image": view}) after each piece of work (a look, an edited
            view, a step), to look on; a step has many timesteps, so 0 stands for them. Set `pipe._interrupt = True` in
            it to stop with what there is. What it returns is not taken up.
        ValueError, with one sentence: a value or a file that cannot be used.
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type is {output_type!r}; it must be "pil", "np" or "pt".')
        if callback_on_step_end_tensor_inputs not in (None, [], ["image"]):
            raise ValueError('callback_on_step_end_tensor_inputs can only hold "image".')
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        scene = splats if isinstance(splats, Splats) else read(splats)
        given = read_cameras(cameras) if isinstance(cameras, str | Path) else cameras
        references = reference if isinstance(reference, list) else [] if reference is None else [reference]
        request = Edit(
            prompt,
            source_prompt,
            None if words is None else tuple(words),
            negative=negative_prompt,
            references=tuple(map(_tensor, references)),
        )
        config = SplatConfig(
            kind, method, num_inference_steps, seed, strength, num_views, threshold, distillation, num_added,
            background, up, size, style_weight,
        )  # fmt: skip
        shown = callback_on_step_end_tensor_inputs is None or bool(callback_on_step_end_tensor_inputs)

        self._interrupt = False
        prior = self._prior()
        with self.progress_bar(total=100) as bar:

            def on_step(step: Progress) -> bool:
                if bar.total != step.total:
                    bar.reset(step.total)
                bar.update(step.index + 1 - bar.n)
                if callback_on_step_end is not None:
                    callback_on_step_end(self, step.index, 0, {"image": step.preview()} if shown else {})
                return not self._interrupt

            result = change(scene, prior, request, config, given, on_step)

        after = _views(result, result.splats, background, prior, output_type)
        if not return_dict:
            return result.splats, after
        return SplatEditOutput(
            splats=result.splats,
            images=after,
            before=_views(result, scene, background, prior, output_type),
            weight=result.weight,
            parent=result.parent,
            kind=result.kind,
            kept=result.kept,
            changed=result.changed,
            added=result.added,
            removed=result.removed,
            max_change_outside=result.max_change_outside,
            background_psnr=result.background_psnr,
            stopped=result.stopped,
            notes=result.notes,
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


def _views(
    result: SplatResult, splats: Splats, background: tuple[float, float, float], prior: UNetPrior, output_type: str
) -> Any:
    """The held-out views of a scene, as asked for."""
    pictures = photographs(splats, result.cameras[list(result.measured)], background, prior.device)
    if output_type == "pil":
        return [Image.fromarray(picture) for picture in pictures]
    array = pictures.astype(np.float32) / 255
    return array if output_type == "np" else torch.from_numpy(array).permute(0, 3, 1, 2)
