"""What is written: recipes that repeat an edit, and files that are either whole or not there at all.

The recipe is a JSON object, schema 1: the prompts, every setting, the model and its revision, versions, device, SHA-256
of the input and the mask, what was normalised, and how the run ended. A picture's lies beside the output (OUT.json) and
inside it (PNG international text, key "sdsedit") and has timings. A drawing's lies in the SVG's <metadata> alone, and
has none: the same drawing again is the same file, byte for byte. A scene's lies in a comment of a .ply, without timings
for the same reason, and beside every scene (OUT.ply.json), with them. Files are named without folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdsedit._version import __version__
from sdsedit.errors import InputRefused, printable
from sdsedit.model_options import KERNELS, MAX_DISTILLED_GUIDANCE, MAX_SCALE, PRECISIONS, is_single_file

if TYPE_CHECKING:
    from torch import Tensor

    from sdsedit.camera import Cameras
    from sdsedit.edit import EditResult
    from sdsedit.guidance.base import Guidance
    from sdsedit.io.images import Mask, Picture
    from sdsedit.io.splats import Splats
    from sdsedit.prior.base import Prior
    from sdsedit.request import Edit, EditConfig
    from sdsedit.sketch.change import SvgConfig, SvgResult
    from sdsedit.sketch.draw import SketchConfig, SketchResult
    from sdsedit.splats.change import SplatConfig, SplatResult

SCHEMA = 1
ANIMATIONS = (".gif", ".mp4", ".svg")
SCENES = (".ply", ".spz", ".splat")  # and .compressed.ply, which ends in the first
_PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "numba", "pillow")
_SMALL_FILE = 64 * 2**20
_MAX_RECIPE = 16 * 2**20  # bytes of a sidecar
_IN_A_PLY = "sdsedit {"  # how the comment with a recipe begins
# Bytes that an output may need for each of its pixels, or of a scene for each Gaussian; by-products that are pictures
# need 3.
_BYTES = {"image": 4, "mask": 1, "drawing": 10, "animation": 10, "scene": 256, "recipe": 0}


def output_names(output: Path, mask: bool, heatmap: bool, sidecar: bool) -> dict[str, Path]:
    """What a run writes, in the order of writing: the picture first, the sidecar (the mark that it is done) last.

    InputRefused: `output` is not the name of a PNG file.
    """
    if output.suffix.lower() != ".png":
        name = printable(output.name, 100)
        raise InputRefused(f"{name} must end in .png: the output is lossless and carries its recipe.")
    names = {"image": output}
    if mask:
        names["mask"] = output.with_name(f"{output.stem}.mask.png")
    if heatmap:
        names["heatmap"] = output.with_name(f"{output.stem}.heatmap.png")
    if sidecar:
        names["recipe"] = output.with_suffix(".json")
    return names


def drawing_names(output: Path, pictures: Sequence[str], animation: Path | None = None) -> dict[str, Path]:
    """What a run that makes a drawing writes: the SVG, which carries its recipe, then OUT.png for "png" and
    OUT.guide.png for "guide" of `pictures`, then the animation.

    InputRefused: `output` is not the name of an SVG file, `animation` of none of ANIMATIONS, or is another output.
    """
    if output.suffix.lower() != ".svg":
        raise InputRefused(f"{printable(output.name, 100)} must end in .svg: the output is a drawing, and an SVG file.")
    names = {"drawing": output}
    for what in pictures:
        names[what] = output.with_name(f"{output.stem}.png" if what == "png" else f"{output.stem}.{what}.png")
    if animation is not None:
        name = printable(animation.name, 100)
        if animation.suffix.lower() not in ANIMATIONS:
            raise InputRefused(f"The animation {name} must end in {', '.join(ANIMATIONS[:-1])} or {ANIMATIONS[-1]}.")
        if any(animation.resolve() == path.resolve() for path in names.values()):
            raise InputRefused(f"The animation would be written over {name}: give it another name.")
        names["animation"] = animation
    return names


def scene_names(
    output: Path, sidecar: bool, preview: bool = False, pictures: Mapping[str, Path] | None = None
) -> dict[str, Path]:
    """What a run that edits a scene writes: the scene first; the sidecar, OUT.ply.json or OUT.spz.json; if there is a
    preview, OUT.ply.preview.png; and the `pictures`, by what they are: "orbit", a film, and others, PNG files.

    InputRefused: `output` is not the name of a scene's file, one of `pictures` not that of its kind, or is another
    output.
    """
    if output.suffix.lower() not in SCENES:
        raise InputRefused(
            f"{printable(output.name, 100)} must end in .ply, .compressed.ply, .spz or .splat: the output is a scene."
        )
    names = {"scene": output}
    if sidecar:
        names["recipe"] = output.with_name(f"{output.name}.json")
    if preview:
        names["preview"] = output.with_name(f"{output.name}.preview.png")
    for what, path in (pictures or {}).items():
        if any(path.resolve() == other.resolve() for other in names.values()):
            raise InputRefused(f"The {what} would be written over {printable(path.name, 100)}: name it otherwise.")
        names[what] = picture_name(what, path)
    return names


def picture_name(what: str, path: Path) -> Path:
    """The name of a picture of a scene, or of a film if `what` is "orbit"; InputRefused: the ending is another."""
    from sdsedit.io.film import SUFFIXES

    endings = SUFFIXES if what == "orbit" else (".png",)
    if path.suffix.lower() not in endings:
        raise InputRefused(f"The {what} {printable(path.name, 100)} must end in {' or '.join(endings)}.")
    return path


def check_outputs(names: Mapping[str, Path], inputs: Sequence[Path], overwrite: bool, pixels: int) -> None:
    """Find out before a long run whether its results can be written; makes the output folders if they are missing.

    names: as `output_names`, `drawing_names` and `scene_names` give them, the result itself first.
    inputs: files that are read. The result may be one of them only with `overwrite`, other outputs never.
    pixels: of the picture, or Gaussians of the scene, for the room that it may take on the disk.
    InputRefused: an output is there already, is a folder, or is an input; a folder takes no files; the disk is full.
    """
    result = next(iter(names))
    for what, path in names.items():
        name = printable(path.name, 100)
        try:
            if path.is_dir():
                raise InputRefused(f"{name} is a folder: give the name of a file.")
            same = any(path.exists() and other.exists() and path.samefile(other) for other in inputs)
            there = path.exists()
        except OSError as error:  # a name that is too long
            raise InputRefused(f"{name} cannot be written ({error.strerror}): give another output name.") from None
        if same and (what != result or not overwrite):
            allowed = "; add --overwrite if that is meant" if what == result else ""
            raise InputRefused(f"{name} is an input and would be written over: give another output name{allowed}.")
        if there and not overwrite:
            raise InputRefused(f"{name} is there already: give another output name, or add --overwrite.")
    needed = 2**16 + pixels * sum(_BYTES.get(what, 3) for what in names)
    for folder in dict.fromkeys(path.parent for path in names.values()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = _temporary(folder / "probe")
            with open(probe, "xb"):
                pass
            probe.unlink()
        except OSError as error:
            raise InputRefused(
                f"The output folder {printable(folder.resolve().name, 100)} cannot be written to ({error.strerror})."
            ) from None
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise InputRefused(
                f"The disk of the output folder has {free / 2**20:.1f} MiB left; "
                f"{needed / 2**20:.1f} MiB may be needed."
            )


def write_all(files: Sequence[tuple[Path, bytes]]) -> None:
    """Write several files so that each is whole or absent, whatever happens. On an OSError (a full disk) nothing has
    been renamed and no temporary file is left."""
    with staged(files) as put:
        put()


@contextlib.contextmanager
def staged(files: Sequence[tuple[Path, bytes]]) -> Iterator[Callable[[], None]]:
    """Several files written under temporary names in their own folders and forced to the disk; what is given renames
    them, in their order (called again it goes on where it was). Those that have not been renamed are removed."""
    waiting: list[tuple[Path, Path]] = []
    try:
        for path, data in files:
            temporary = _temporary(path)
            waiting.append((temporary, path))
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

        def put() -> None:
            while waiting:
                temporary, path = waiting[0]
                os.replace(temporary, path)
                waiting.pop(0)
            for folder in {path.parent for path, _ in files}:
                _sync_folder(folder)

        yield put
    finally:
        for temporary, _ in waiting:
            with contextlib.suppress(OSError):
                temporary.unlink()


def image_recipe(
    picture: Picture,
    mask: Mask | None,
    request: Edit,
    config: EditConfig,
    result: EditResult,
    model: dict[str, Any],  # id, revision, device, dtype
    seconds: dict[str, float],
    references: Sequence[Picture] = (),  # the request's
) -> dict[str, Any]:
    """What repeats an edit of a picture, and how it went. Numbers that are not finite are left out: JSON has none."""
    method = result.method
    last = result.history[-1] if result.history else {}
    return {
        "schema": SCHEMA,
        "kind": "image",
        "target": request.target,
        "source": request.source,
        "negative": request.negative,
        "words": list(request.words) if request.words else None,
        "input": {"name": picture.name, "sha256": picture.sha256, "size": list(picture.size), "format": picture.kind},
        "mask": {"name": mask.name, "sha256": mask.sha256} if mask else None,
        "normalised": list(picture.notes),
        "method": {"name": _method_name(method), **asdict(method)},  # pyright: ignore[reportArgumentType]  # all are dataclasses
        "steps": config.steps or method.steps,
        "seed": config.seed,
        "feather": config.feather,
        "size": config.size,
        "refine": result.refine,
        **_references(references, {"style_weight": config.style_weight}),
        "model": model,
        "versions": versions(),
        "result": {
            "steps_done": result.steps_done,
            "stopped": result.stopped,
            "complete": not result.stopped,
            "words": list(result.words),
            "notes": list(result.notes),
            "kept_pixels": result.kept_pixels,
            "total_pixels": result.total_pixels,
            "last_step": {name: value for name, value in last.items() if math.isfinite(value)},
        },
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def image_request(recipe: Mapping[str, Any], mask: Tensor | None) -> tuple[Edit, EditConfig]:
    """The request and the settings in a recipe, for the same edit again.

    A recipe is somebody's file: InputRefused names the field that is missing or wrong. Ranges are checked by `edit`.
    """
    from sdsedit.request import EditConfig

    request, method = _request_and_method(recipe)
    config = EditConfig(
        method=method,
        steps=recipe_field(recipe, "steps", int),
        seed=recipe_field(recipe, "seed", int),
        feather=recipe_field(recipe, "feather", (int, float)),
        size=recipe_field(recipe, "size", (int, type(None))),
        refine=recipe_field(recipe, "refine", (int, float)),
    )
    if "style_weight" in recipe:
        config = replace(config, style_weight=recipe_field(recipe, "style_weight", (int, float)))
    return replace(request, mask=mask), config


def _references(pictures: Sequence[Picture], more: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of the pictures whose look was taken; nothing where there are none."""
    if not pictures:
        return {}
    return {"references": [{"name": each.name, "sha256": each.sha256} for each in pictures], **more}


def sketch_recipe(
    prompt: str,
    config: SketchConfig,
    result: SketchResult,
    model: dict[str, Any],  # id, revision, device, dtype
    references: Sequence[Picture] = (),  # whose look was taken
) -> dict[str, Any]:
    """What repeats a sketch, and how it went."""
    return {
        "schema": SCHEMA,
        "kind": "sketch",
        "prompt": prompt,
        "settings": asdict(config),
        **_references(references, {}),
        "model": model,
        "versions": versions(),
        "result": {
            "steps_done": result.steps_done,
            "stopped": result.stopped,
            "complete": not result.stopped,
            "asked": result.prompt,
            "words": list(result.words),
            "notes": list(result.notes),
            "kept": len(result.topology),
            "dropped": result.dropped,
            "shares": {name: round(share, 4) for name, share in result.shares.items() if math.isfinite(share)},
        },
    }


def sketch_request(recipe: Mapping[str, Any]) -> tuple[str, SketchConfig]:
    """The prompt and the settings in a recipe, for the same sketch again.

    A recipe is somebody's file: InputRefused names the field that is missing or wrong. Ranges are checked by `sketch`.
    """
    from sdsedit.sketch.draw import SketchConfig

    prompt = recipe_field(recipe, "prompt", str)
    return prompt, SketchConfig(**_settings("a sketch", recipe_field(recipe, "settings", dict), SketchConfig()))


def svg_recipe(
    name: str,  # of the input, without its folder
    sha256: str,  # of its bytes
    request: Edit,
    config: SvgConfig,
    result: SvgResult,
    model: dict[str, Any],  # id, revision, device, dtype
) -> dict[str, Any]:
    """What repeats the edit of a drawing, and how it went."""
    document, look = result.document, result.look
    return {
        "schema": SCHEMA,
        "kind": "svg",
        "target": request.target,
        "source": request.source,
        "negative": request.negative,
        "words": list(request.words) if request.words else None,
        "input": {"name": name, "sha256": sha256, "size": [document.width, document.height]},
        "normalised": list(document.notes),
        "method": {"name": _method_name(look.method), **asdict(look.method)},  # pyright: ignore[reportArgumentType]  # all are dataclasses
        "steps": config.edit.steps or look.method.steps,
        "seed": config.edit.seed,
        "feather": config.edit.feather,
        "size": config.edit.size,
        "refine": look.refine,
        "shapes": {key: value for key, value in asdict(config).items() if key != "edit"},
        "model": model,
        "versions": versions(),
        "result": {
            "steps_done": result.steps_done,
            "stopped": result.stopped,
            "complete": not result.stopped,
            "words": list(look.words),
            "notes": list(result.notes),
            "kept": result.kept,
            "changed": len(result.changed),
            "removed": len(result.removed),
            "added": len(result.added),
        },
    }


def svg_request(recipe: Mapping[str, Any]) -> tuple[Edit, SvgConfig]:
    """The request and the settings in a recipe, for the same edit of a drawing again; InputRefused as image_request."""
    from sdsedit.sketch.change import SvgConfig

    request, edit = image_request(recipe, None)
    settings = dict(recipe_field(recipe, "shapes", dict))
    if "edit" in settings:
        raise InputRefused("The recipe gives shapes a setting that they do not have: edit.")
    return request, SvgConfig(edit, **_settings("shapes", settings, SvgConfig(edit)))


def splats_recipe(
    name: str,  # of the input, without its folder
    sha256: str,  # of its bytes
    cameras: dict[str, Any] | None,  # name, sha256, count; None: the automatic orbit
    request: Edit,
    config: SplatConfig,
    result: SplatResult,
    model: dict[str, Any],  # id, revision, device, dtype
    references: Sequence[Picture] = (),  # the request's
) -> dict[str, Any]:
    """What repeats the edit of a scene, and how it went. Numbers that are not finite are left out: JSON has none."""
    settings = {each.name: getattr(config, each.name) for each in fields(config)}
    # The method's settings, as they were used, say the first two; without references there is nothing to weigh.
    for each in ("method", "strength", *(() if references else ("style_weight",))):
        del settings[each]
    return {
        "schema": SCHEMA,
        "kind": "splats",
        "target": request.target,
        "source": request.source,
        "negative": request.negative,
        "words": list(request.words) if request.words else None,
        "input": {"name": name, "sha256": sha256},
        "cameras": cameras,
        "method": {"name": _method_name(result.method), **asdict(result.method)},  # pyright: ignore[reportArgumentType]  # all are dataclasses
        "settings": {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()},
        **_references(references, {}),
        "model": model,
        "versions": versions(),
        "result": {
            "steps_done": result.steps_done,
            "stopped": result.stopped,
            "complete": not result.stopped,
            "kind": result.kind,
            "words": list(result.words),
            "notes": list(result.notes),
            "kept": result.kept,
            "changed": result.changed,
            "added": result.added,
            "removed": result.removed,
            "max_change_outside": result.max_change_outside,
        }
        | ({"background_psnr": round(result.background_psnr, 3)} if math.isfinite(result.background_psnr) else {}),
    }


def splats_request(recipe: Mapping[str, Any]) -> tuple[Edit, SplatConfig]:
    """The request and the settings in a recipe, for the same edit of a scene again.

    A recipe is somebody's file: InputRefused names the field that is missing or wrong. Ranges are checked by `change`.
    """
    from sdsedit.splats.change import SplatConfig

    own = {each.name for each in fields(SplatConfig)} - {"method", "strength"}
    settings = dict(recipe_field(recipe, "settings", dict))
    for key, value in settings.items():
        if key not in own:
            raise InputRefused(f"The recipe gives a scene a setting that it does not have: {printable(str(key), 40)}.")
        usual = getattr(SplatConfig, key)
        if isinstance(usual, tuple):
            good = isinstance(value, list) and len(value) == len(usual) and all(map(_is_number, value))
            settings[key] = tuple(map(float, value)) if good else value
        elif usual is None:  # "kind" is a name, the others are whole numbers
            good = value is None or (isinstance(value, str if key == "kind" else int) and not isinstance(value, bool))
        else:
            good = type(value) is type(usual) or (isinstance(usual, float) and _is_number(value))
        if not good:
            raise InputRefused(f"The recipe's setting {key} of a scene is of the wrong type.")
    request, method = _request_and_method(recipe)
    return request, SplatConfig(method=method, **settings)


def cameras_record(cameras: Cameras, name: str) -> dict[str, Any]:
    """What a recipe says of cameras that were given: `name` of their file or folder, and a SHA-256 of their numbers."""
    digest = hashlib.sha256(f"{len(cameras)} {cameras.width} {cameras.height}\n".encode())
    for numbers in (cameras.viewmats, cameras.Ks):
        digest.update(numbers.cpu().numpy().astype("<f4").tobytes())
    return {"name": name, "sha256": digest.hexdigest(), "count": len(cameras)}


def with_recipe(splats: Splats, recipe: Mapping[str, Any] | None) -> Splats:
    """A scene whose comments hold this recipe on one line, and no older one; None: none at all."""
    comments = tuple(comment for comment in splats.comments if not comment.startswith(_IN_A_PLY))
    if recipe is not None:
        line = json.dumps(recipe, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
        comments = (*comments, _IN_A_PLY[:-1] + line)
    return replace(splats, comments=comments)


def dump(recipe: Mapping[str, Any]) -> str:
    """A recipe as JSON text in ASCII, so that no control or bidirectional character of a prompt is in it as such."""
    return json.dumps(recipe, indent=2, allow_nan=False, ensure_ascii=True)


def sidecar(recipe: Mapping[str, Any], name: str, data: bytes, seconds: Mapping[str, float] | None = None) -> bytes:
    """What lies beside an output: its recipe, its name and SHA-256, and timings where the recipe inside has none."""
    timed = {"seconds": {what: round(value, 3) for what, value in seconds.items()}} if seconds is not None else {}
    output = {"name": name, "sha256": hashlib.sha256(data).hexdigest()}
    return (dump({**recipe, **timed, "output": output}) + "\n").encode("ascii")


def scene_file(splats: Splats, recipe: Mapping[str, Any] | None, name: str) -> tuple[bytes, bool]:
    """A scene as the file of this name, with its recipe inside if the kind takes one; whether one that should be there
    is not, because a PLY's header has no room for it beside the comments that are there already."""
    from sdsedit.io.splats import encode

    inside = recipe is not None and name.lower().endswith(".ply") and not name.lower().endswith(".compressed.ply")
    try:
        return encode(with_recipe(splats, recipe if inside else None), name), False
    except ValueError as error:
        if not inside or isinstance(error, InputRefused):
            raise
        return encode(with_recipe(splats, None), name), True


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe of an output: from inside the PNG, SVG or PLY, else from the sidecar beside a picture or a scene (or
    `path` is it).

    InputRefused: no such file, no recipe, or one that this version does not read.
    """
    name = printable(path.name, 100)
    try:
        there = path.is_file()
    except OSError as error:  # a name that is too long
        raise InputRefused(f"{name} cannot be opened: {error.strerror}.") from None
    if not there:
        raise InputRefused(f"{name} is not there: give a picture, a drawing or a scene that sdsedit made.")
    text, drawing = None, path.suffix.lower() == ".svg"
    sidecar = path.with_suffix(".json")
    if drawing:
        from sdsedit.io import svg

        text = svg.read_recipe(path)
    try:
        if path.suffix.lower() == ".png":
            text = _embedded(path)
        if path.suffix.lower() in SCENES:
            text, sidecar = _commented(path), path.with_name(f"{path.name}.json")
        if text is None and not drawing and sidecar.is_file():  # of cat.svg, cat.json says nothing
            with sidecar.open("rb") as file:
                data = file.read(_MAX_RECIPE + 1)
            if len(data) > _MAX_RECIPE:
                raise InputRefused(f"The recipe of {name} is larger than the limit of {_MAX_RECIPE // 2**20} MiB.", 413)
            text = data.decode("utf-8")
        recipe = None if text is None else json.loads(text, parse_constant=_no_constant)
    except InputRefused:
        raise
    except (ValueError, RecursionError, OSError):
        raise InputRefused(f"The recipe of {name} is damaged.") from None
    if recipe is None:
        raise InputRefused(f"{name} carries no recipe: it was not made by sdsedit, or with --no-metadata.")
    if not isinstance(recipe, dict) or recipe.get("schema") != SCHEMA:
        raise InputRefused(f"The recipe of {name} is not of schema {SCHEMA}, the one that sdsedit {__version__} reads.")
    return recipe


def versions() -> dict[str, str]:
    """What may change a result: sdsedit, Python, the libraries and the system."""
    found = {"sdsedit": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found | {"system": f"{platform.system()} {platform.machine()}"}


def model_revision(spec: str) -> str | None:
    """What exactly `spec` is on this machine; None if it cannot be told.

    The commit of a hub model; for a folder, a single file or "builtin" a SHA-256 over its JSON and safetensors files,
    of which those above 64 MiB go in with their size, first and last MiB only.
    """
    from sdsedit.prior.load import builtin_path

    folder = builtin_path() if spec == "builtin" else Path(spec).expanduser()
    single = is_single_file(spec) and folder.is_file()
    if single or folder.is_dir():
        digest = hashlib.sha256()
        for file in [folder] if single else sorted(folder.rglob("*.json")) + sorted(folder.rglob("*.safetensors")):
            size = file.stat().st_size
            name = "" if single else file.relative_to(folder).as_posix()
            digest.update(f"{name} {size}\n".encode())
            with file.open("rb") as stream:
                if size <= _SMALL_FILE:
                    digest.update(stream.read())
                else:
                    digest.update(stream.read(2**20))
                    stream.seek(-(2**20), os.SEEK_END)
                    digest.update(stream.read())
        return "sha256:" + digest.hexdigest()
    from huggingface_hub import try_to_load_from_cache

    model_id, _, revision = spec.partition("@")
    cached = try_to_load_from_cache(model_id, "model_index.json", revision=revision or None)
    return Path(cached).parent.name if isinstance(cached, str) else revision or None


def model_record(spec: str, prior: Prior) -> dict[str, Any]:
    """What a recipe says of a loaded model; `spec` as the loader was given it."""
    import torch

    device = str(prior.device)
    if prior.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(prior.device)})"
    elif prior.device.type == "cpu":
        device += f" ({torch.get_num_threads()} threads)"
    dtype = str(prior.dtype).removeprefix("torch.")
    found = {"id": prior.name, "revision": model_revision(spec), "device": device, "dtype": dtype}
    return {**found, **loading_record(prior)}


def loading_record(prior: Prior) -> dict[str, Any]:
    """What a recipe says of how a model was loaded, where that is not the usual: in words, and for the same again."""
    adapted, options = list(getattr(prior, "adapted", ())), getattr(prior, "options", {})
    return {**({"adapted": adapted} if adapted else {}), **({"options": options} if options else {})}


def loading_options(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says of how its model was loaded: "lora" and "embedding" as lists of {"name", "sha256"}, LoRAs with
    their "scale"; all else by the names of ModelOptions; nothing that is the usual.

    A recipe is somebody's file: InputRefused names what is wrong.
    """
    model = recipe.get("model")
    found = model.get("options", {}) if isinstance(model, dict) else {}
    choices = {"precision": PRECISIONS, "attention": KERNELS, "compile": (True, False), "tiling": (True, False)}
    good = isinstance(found, dict)
    for name, value in found.items() if good else ():
        if name in ("lora", "embedding"):
            good = isinstance(value, list) and all(_is_file(each, name == "lora") for each in value)
        elif name == "settings":
            good = isinstance(value, str)
        elif name == "distilled_guidance":
            good = _is_number(value) and 0 <= value <= MAX_DISTILLED_GUIDANCE
        else:
            good = name in choices and value in choices[name]
        if not good:
            raise InputRefused(f"The recipe says of its model a {printable(str(name), 40)} that cannot be used.")
    if not good:
        raise InputRefused("The recipe's model has options that are of the wrong type.")
    return dict(found)


def _is_file(part: Any, scaled: bool) -> bool:
    """Whether this is a file as a recipe names it, without a folder."""
    if not isinstance(part, dict) or not isinstance(part.get("sha256"), str):
        return False
    name, scale = part.get("name"), part.get("scale")
    if not isinstance(name, str) or Path(name).name != name:
        return False
    return not scaled or (isinstance(scale, int | float) and _is_number(scale) and abs(scale) <= MAX_SCALE)


def _method_name(method: object) -> str:
    from sdsedit.guidance import METHODS

    return next(name for name, cls in METHODS.items() if type(method) is cls)


def _request_and_method(recipe: Mapping[str, Any]) -> tuple[Edit, Guidance]:
    """What was asked for, without a mask, and how it was looked for."""
    from sdsedit.guidance import METHODS
    from sdsedit.request import Edit

    settings = dict(recipe_field(recipe, "method", dict))
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in METHODS:
        known = ", ".join(METHODS)
        raise InputRefused(f"The recipe's method is {printable(str(name), 40)}: it must be one of {known}.")
    settings = _settings(name, settings, METHODS[name]())
    words = recipe_field(recipe, "words", (list, type(None)))
    if words is not None and not all(isinstance(word, str) for word in words):
        raise InputRefused("The recipe's words must be text.")
    request = Edit(
        target=recipe_field(recipe, "target", str),
        source=recipe_field(recipe, "source", (str, type(None))),
        words=tuple(words) if words else None,
        negative=recipe_field(recipe, "negative", str),
    )
    return request, METHODS[name](**settings)


def _settings(name: str, given: Mapping[str, Any], defaults: Any) -> dict[str, Any]:
    """Settings out of a recipe that the dataclass of `defaults` has, each of the type that it has there."""
    own = {each.name: getattr(defaults, each.name) for each in fields(defaults)}
    for key, value in given.items():
        if key not in own:
            raise InputRefused(f"The recipe gives {name} a setting that it does not have: {printable(str(key), 40)}.")
        kind = type(own[key])
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (type(value) is kind or (kind is float and whole)):
            raise InputRefused(f"The recipe's setting {key} of {name} is of the wrong type.")
    return dict(given)


def recipe_field(recipe: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    """What a recipe has under `name`. InputRefused: nothing, or another kind of thing."""
    if name not in recipe:
        raise InputRefused(f"The recipe has no {name}.")
    if not isinstance(recipe[name], kind) or isinstance(recipe[name], bool):
        raise InputRefused(f"The recipe's {name} is of the wrong type.")
    return recipe[name]


def _embedded(path: Path) -> str | None:
    from PIL import Image

    from sdsedit.io.images import MAX_BYTES, MAX_PIXELS

    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return None
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            image.load()
            return getattr(image, "text", {}).get("sdsedit")
    except Exception:  # a damaged PNG: Pillow raises many kinds of error; the sidecar may still be there
        return None


def _commented(path: Path) -> str | None:
    """The recipe in the header of a PLY."""
    with path.open("rb") as file:
        head, end, _ = file.read(2**16).partition(b"\nend_header")
    if not head.startswith(b"ply") or not end:
        return None
    start = f"comment {_IN_A_PLY}".encode()
    lines = [line for line in head.splitlines() if line.startswith(start)]
    return lines[-1].removeprefix(start[:-1]).decode("utf-8") if lines else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


TEMPORARY = re.compile(r"\..{1,64}\.[0-9a-f]{12}\.tmp")  # the name of a file on its way; a kill can leave one


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:64]}.{secrets.token_hex(6)}.tmp")


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
