"""One job, from its files to the bytes of its results; where it runs and who writes them is the engines' affair."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sdsedit.batch.manifest import Job, outputs_of, texture_size
from sdsedit.errors import InputRefused, printable
from sdsedit.io import images, record

if TYPE_CHECKING:
    from sdsedit.batch.checkpoint import KeptRun
    from sdsedit.prior.base import Prior

THUMB = 224  # pixels, the longer side of a picture on the sheet

OnProgress = Callable[[int, int], bool]  # steps done, steps in all -> whether to go on


@dataclass(frozen=True)
class Made:
    """What a job made."""

    files: tuple[tuple[str, bytes], ...]  # relative to the output folder, in the order of writing
    thumbs: dict[str, bytes]  # "before", "mask", "after": JPEG
    facts: dict[str, Any]  # numbers and sentences for the report
    stopped: str  # "", "cancelled", or why the engine gave up; the files then hold what there was


def perform(
    job: Job, root: Path, inputs: Mapping[str, str], prior: Prior, model: dict[str, Any], on_progress: OnProgress,
    kept: KeptRun | None = None,
) -> Made:  # fmt: skip
    """Do a job. `model` is what the recipe says of it; `inputs` are the SHA-256 that the files had when the job was
    planned; `kept` is where a style's run is kept. InputRefused: a file has changed since, or something that only the
    model can tell is wrong."""
    for what in ("lora", "embedding"):
        for k, each in enumerate(model.get("options", {}).get(what, ()), 1):
            _same(inputs, **{f"{what} {k}": (each["name"], each["sha256"])})
    if job.kind == "style":
        return _style(job, root, inputs, prior, model, on_progress, kept)
    return {"image": _image, "sketch": _sketch, "svg": _svg, "splats": _splats}[job.kind](
        job, root, inputs, prior, model, on_progress
    )


# ---- one function a kind


def _image(
    job: Job, root: Path, inputs: Mapping[str, str], prior: Prior, model: dict[str, Any], on_progress: OnProgress
) -> Made:
    from sdsedit.edit import edit
    from sdsedit.request import Edit, EditConfig

    given = job.settings
    picture = images.read_picture(root / str(job.input))
    mask = images.read_mask(root / job.mask, picture.size) if job.mask else None
    _same(inputs, input=(picture.name, picture.sha256), **({"mask": (mask.name, mask.sha256)} if mask else {}))
    references = _pictures(job.references, root, inputs, "reference")
    request = Edit(
        target=given["target"],
        source=given["source"],
        words=given["words"],
        mask=None if mask is None else mask.tensor(),
        negative=given["negative"],
        references=tuple(each.tensor() for each in references),
    )
    names = ("method", "steps", "seed", "strength", "size", "feather", "refine", "style_weight")
    config = EditConfig(**{name: given[name] for name in names})
    result = edit(
        picture.tensor(), prior, request, config, lambda step: on_progress(step.index + 1, step.total)
    )  # fmt: skip
    recipe = record.image_recipe(picture, mask, request, config, result, model, {}, references)
    del recipe["seconds"]  # the same edit again is the same file; the sidecar has them
    after = images.to_array(result.image)
    weight = images.to_array(result.mask)[..., 0]
    data = images.encode_png(after, picture.alpha, picture.icc, record.dump(recipe))
    heat = images.overlay(picture.rgb, weight.astype(np.float32) / 255)
    pictures = {}
    if given["save_mask"]:
        pictures["mask"] = images.encode_png(weight)
    if given["save_heatmap"]:
        pictures["heatmap"] = images.encode_png(images.overlay(picture.rgb, result.heatmap[0, 0].float().cpu().numpy()))
    facts = _facts(recipe) | {
        "kept": round(result.kept_pixels / result.total_pixels, 4),
        "largest_change": int(np.abs(after.astype(np.int16) - picture.rgb).max()),
        "seconds": round(result.seconds, 3),
    }
    files = _files(job, data, pictures, recipe, {"editing": result.seconds})
    thumbs = {"before": thumbnail(picture.rgb), "mask": thumbnail(heat), "after": thumbnail(after)}
    return Made(files if result.steps_done else (), thumbs, facts, result.stopped)


def _sketch(
    job: Job, root: Path, inputs: Mapping[str, str], prior: Prior, model: dict[str, Any], on_progress: OnProgress
) -> Made:
    from sdsedit.io.svg import read_svg
    from sdsedit.sketch.draw import SketchConfig, sketch
    from sdsedit.sketch.files import draw_page, sketch_svg

    given = dict(job.settings)
    prompt = given.pop("prompt")
    config = SketchConfig(**given)
    references = _pictures(job.references, root, inputs, "reference")
    looks = tuple(each.tensor() for each in references)
    result = sketch(prompt, prior, config, lambda step: on_progress(step.index + 1, step.total), references=looks)
    recipe = record.sketch_recipe(prompt, config, result, model, references)
    data = sketch_svg(result, record.dump(recipe)) if result.steps_done else b""
    facts = _facts(recipe) | {"strokes": len(result.topology), "seconds": round(result.seconds, 3)}
    thumbs = {"before": thumbnail(images.to_array(result.guide))}
    if data:
        thumbs["after"] = thumbnail(draw_page(read_svg(data)))
    files = _files(job, data, {}, recipe, {"drawing": result.seconds}) if data else ()
    return Made(files, thumbs, facts, result.stopped)


def _svg(
    job: Job, root: Path, inputs: Mapping[str, str], prior: Prior, model: dict[str, Any], on_progress: OnProgress
) -> Made:
    from sdsedit.io.svg import read_svg_bounded
    from sdsedit.request import Edit, EditConfig
    from sdsedit.sketch.change import SvgConfig, change
    from sdsedit.sketch.files import draw_page, edited_document

    given = job.settings
    path = root / str(job.input)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    document = read_svg_bounded(path)
    _same(inputs, input=(path.name, sha256))
    request = Edit(target=given["target"], source=given["source"], words=given["words"])
    look = EditConfig(given["method"], given["steps"], given["seed"], strength=given["strength"])
    usual = SvgConfig()
    config = SvgConfig(look, given["share"], given["added"], given["steps"] or usual.steps)
    result = change(document, prior, request, config, lambda step: on_progress(step.index + 1, step.total))
    recipe = record.svg_recipe(printable(path.name, 200), sha256, request, config, result, model)
    reached = not result.stopped or result.steps_done > result.look.steps_done  # else no shape has been touched
    data = result.written(record.dump(recipe)) if reached else b""
    page = draw_page(document)
    weight = _fitted(images.to_array(result.look.mask)[..., 0], page)
    pictures = {}
    if given["save_mask"]:
        pictures["mask"] = images.encode_png(weight)
    if given["save_heatmap"]:
        heat = _fitted(images.to_array(result.look.heatmap)[..., 0], page)
        pictures["heatmap"] = images.encode_png(images.overlay(page, heat.astype(np.float32) / 255))
    facts = _facts(recipe) | {
        "kept": round(result.kept / max(len(document.shapes), 1), 4),
        "changed": len(result.changed), "removed": len(result.removed), "added": len(result.added),
        "seconds": round(result.seconds, 3),
    }  # fmt: skip
    thumbs = {"before": thumbnail(page), "mask": thumbnail(images.overlay(page, weight.astype(np.float32) / 255))}
    if data:
        thumbs["after"] = thumbnail(draw_page(edited_document(result)))
    files = _files(job, data, pictures, recipe, {"editing": result.seconds}) if data else ()
    return Made(files, thumbs, facts, result.stopped)


def _splats(
    job: Job, root: Path, inputs: Mapping[str, str], prior: Prior, model: dict[str, Any], on_progress: OnProgress
) -> Made:
    from sdsedit.camera import read_cameras
    from sdsedit.io import splats
    from sdsedit.model_options import file_sha256
    from sdsedit.request import Edit
    from sdsedit.splats.change import SplatConfig, change
    from sdsedit.splats.files import before_and_after

    given = dict(job.settings)
    path = root / str(job.input)
    sha256 = file_sha256(path)
    cameras = read_cameras(root / job.cameras) if job.cameras else None
    about = None if cameras is None else record.cameras_record(cameras, printable(Path(str(job.cameras)).name, 200))
    more = {} if about is None else {"cameras": (about["name"], about["sha256"])}
    _same(inputs, input=(path.name, sha256), **more)
    scene = splats.read(path)  # which was read in a process of its own when the job was planned
    asked = {name: given.pop(name) for name in ("target", "source", "words", "negative")}
    references = _pictures(job.references, root, inputs, "reference")
    request = Edit(**asked, references=tuple(each.tensor() for each in references))
    config = SplatConfig(kind=given.pop("edit_kind"), **given)
    result = change(scene, prior, request, config, cameras, lambda step: on_progress(step.index + 1, step.total))
    name = printable(path.name, 200)
    recipe = record.splats_recipe(name, sha256, about, request, config, result, model, references)
    data = b""
    if result.steps_done or not result.stopped:
        data, _ = record.scene_file(result.splats, recipe, PurePosixPath(job.output).name)
    facts = _facts(recipe) | {
        "kept": round(result.kept / max(len(scene), 1), 4),
        "changed": result.changed, "removed": result.removed, "added": result.added, "edit": result.kind,
        "seconds": round(result.seconds["all"], 3),
    }  # fmt: skip
    thumbs: dict[str, bytes] = {}
    if data:
        view = result.cameras[list(result.measured[:1])]
        strip = before_and_after(
            scene, result.splats, result.weight, config.threshold, view, config.background, THUMB, prior.device
        )
        parts = np.array_split(strip, 3)
        thumbs = {name: thumbnail(part) for name, part in zip(("before", "mask", "after"), parts, strict=True)}
    return Made(_files(job, data, {}, recipe, result.seconds) if data else (), thumbs, facts, result.stopped)


def _style(
    job: Job, root: Path, inputs: Mapping[str, str], prior: Prior, model: dict[str, Any], on_progress: OnProgress,
    kept: KeptRun | None,
) -> Made:  # fmt: skip
    from sdsedit.io.record_style import style_recipe
    from sdsedit.style import StyleConfig, StyleRequest, StyleStep, style

    given = dict(job.settings)
    content, regions = (
        None if name is None else images.read_picture(root / name) for name in (job.input, job.content_regions)
    )
    found = {"input": content, "regions": regions}
    _same(inputs, **{what: (each.name, each.sha256) for what, each in found.items() if each is not None})
    references = _pictures(job.references, root, inputs, "reference")
    reference_regions = _pictures(job.reference_regions, root, inputs, "reference regions")
    prompt, texture = given.pop("prompt"), given.pop("texture")
    request = StyleRequest(
        references=tuple(picture.tensor() for picture in references),
        content=None if content is None else content.tensor(),
        prompt=prompt,
        texture=None if texture is None else texture_size(texture),
        regions=None if regions is None else regions.numbers(),
        reference_regions=tuple(each.numbers() for each in reference_regions),
    )
    config = StyleConfig(**given)

    def on_step(step: StyleStep) -> bool:
        go_on = on_progress(step.index + 1, step.total)
        if kept is not None:
            kept.step(step.begun, last=not go_on)
        return go_on

    result = style(prior, request, config, on_step, None if kept is None else kept.read())
    recipe = style_recipe(content, references, regions, reference_regions, request, config, result, model, {})
    del recipe["seconds"]
    after = images.to_array(result.image)
    alpha, icc = (None, None) if content is None else (content.alpha, content.icc)
    data = images.encode_png(after, alpha, icc, record.dump(recipe)) if result.steps_done else b""
    losses = [step["style"] for step in (*result.history[:1], *result.history[-1:])]
    facts = {
        "steps": result.steps_done, "notes": list(result.notes), "seconds": round(result.seconds, 3),
        "unlike the references": " → ".join(f"{loss:.3f}" for loss in losses if math.isfinite(loss)),
    }  # fmt: skip
    thumbs = {"before": thumbnail(content.rgb)} if content else {}
    thumbs |= {"mask": thumbnail(references[0].rgb)} | ({"after": thumbnail(after)} if data else {})
    files = _files(job, data, {}, recipe, {"making": result.seconds}) if data else ()
    return Made(files, thumbs, facts, result.stopped)


# ---- what they share


def _pictures(names: Sequence[str], root: Path, inputs: Mapping[str, str], what: str) -> list[images.Picture]:
    """Several pictures of one sort."""
    pictures = [images.read_picture(root / name) for name in names]
    _same(inputs, **{f"{what} {k}": (each.name, each.sha256) for k, each in enumerate(pictures, 1)})
    return pictures


def _same(inputs: Mapping[str, str], **found: tuple[str, str]) -> None:
    """A file must be what it was when the job was planned: its key says so."""
    for what, (name, sha256) in found.items():
        if inputs.get(what) != sha256:
            shown = printable(name, 100)
            raise InputRefused(f"{shown} has changed since the batch was begun: run it again with --resume.")


def _files(
    job: Job, data: bytes, pictures: Mapping[str, bytes], recipe: dict[str, Any], seconds: dict[str, float]
) -> tuple[tuple[str, bytes], ...]:
    """The result, its pictures, and the sidecar with the result's SHA-256 and the time that it took."""
    files = []
    for name in outputs_of(job):
        if name == job.output:
            files.append((name, data))
        elif name.endswith(".json"):
            files.append((name, record.sidecar(recipe, PurePosixPath(job.output).name, data, seconds)))
        else:
            files.append((name, pictures[PurePosixPath(name).stem.rpartition(".")[2]]))
    return tuple(files)


def _facts(recipe: Mapping[str, Any]) -> dict[str, Any]:
    result = recipe["result"]
    facts = {"steps": result["steps_done"], "words": result["words"], "notes": result["notes"]}
    psnr = result.get("background_psnr")
    return facts | ({"background_psnr": psnr} if psnr is not None and math.isfinite(psnr) else {})


def _fitted(values: np.ndarray, page: np.ndarray) -> np.ndarray:  # [h, w] uint8 -> [H, W] uint8
    size = (page.shape[1], page.shape[0])
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def thumbnail(pixels: np.ndarray) -> bytes:  # [H, W, 3] uint8
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
