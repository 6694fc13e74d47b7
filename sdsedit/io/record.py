"""What is written: recipes that repeat an edit, and files that are either whole or not there at all.

The recipe is a JSON object, schema 1: the prompts, every setting, the model and its revision, versions, device, SHA-256
of the input and the mask, what was normalised, and how the run ended. A picture's lies beside the output (OUT.json) and
inside it (PNG international text, key "sdsedit") and has timings. A drawing's lies in the SVG's <metadata> alone, and
has none: the same drawing again is the same file, byte for byte. Files are named without folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import platform
import secrets
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdsedit._version import __version__
from sdsedit.errors import InputRefused, printable

if TYPE_CHECKING:
    from torch import Tensor

    from sdsedit.edit import EditResult
    from sdsedit.io.images import Mask, Picture
    from sdsedit.request import Edit, EditConfig
    from sdsedit.sketch.change import SvgConfig, SvgResult
    from sdsedit.sketch.draw import SketchConfig, SketchResult

SCHEMA = 1
ANIMATIONS = (".gif", ".mp4", ".svg")
_PACKAGES = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy", "numba", "pillow")
_SMALL_FILE = 64 * 2**20
# Bytes that an output may need for each of its pixels; by-products that are pictures need 3.
_BYTES = {"image": 4, "mask": 1, "drawing": 10, "animation": 10, "recipe": 0}


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


def check_outputs(names: Mapping[str, Path], inputs: Sequence[Path], overwrite: bool, pixels: int) -> None:
    """Find out before a long run whether its results can be written; makes the output folders if they are missing.

    names: as `output_names` and `drawing_names` give them, the result itself first.
    inputs: files that are read. The result may be one of them only with `overwrite`, other outputs never.
    pixels: of the picture, for the room that it may take on the disk.
    InputRefused: an output is there already, is a folder, or is an input; a folder takes no files; the disk is full.
    """
    result = next(iter(names))
    for what, path in names.items():
        name = printable(path.name, 100)
        if path.is_dir():
            raise InputRefused(f"{name} is a folder: give the name of a file.")
        same = any(path.exists() and other.exists() and path.samefile(other) for other in inputs)
        if same and (what != result or not overwrite):
            allowed = "; add --overwrite if that is meant" if what == result else ""
            raise InputRefused(f"{name} is an input and would be written over: give another output name{allowed}.")
        if path.exists() and not overwrite:
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
    """Write several files so that each is whole or absent, whatever happens.

    All are written under temporary names in their own folders and forced to the disk, and only then renamed, in the
    order given. On an OSError (a full disk) nothing has been renamed and no temporary file is left.
    """
    waiting: list[tuple[Path, Path]] = []
    try:
        for path, data in files:
            temporary = _temporary(path)
            waiting.append((temporary, path))
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        while waiting:
            temporary, path = waiting[0]
            os.replace(temporary, path)
            waiting.pop(0)
    finally:
        for temporary, _ in waiting:
            with contextlib.suppress(OSError):
                temporary.unlink()
    for folder in {path.parent for path, _ in files}:
        _sync_folder(folder)


def image_recipe(
    picture: Picture,
    mask: Mask | None,
    request: Edit,
    config: EditConfig,
    result: EditResult,
    model: dict[str, Any],  # id, revision, device, dtype
    seconds: dict[str, float],
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
    from sdsedit.guidance import METHODS
    from sdsedit.request import Edit, EditConfig

    settings = dict(_field(recipe, "method", dict))
    name = settings.pop("name", None)
    if not isinstance(name, str) or name not in METHODS:
        known = ", ".join(METHODS)
        raise InputRefused(f"The recipe's method is {printable(str(name), 40)}: it must be one of {known}.")
    settings = _settings(name, settings, METHODS[name]())
    words = _field(recipe, "words", (list, type(None)))
    if words is not None and not all(isinstance(word, str) for word in words):
        raise InputRefused("The recipe's words must be text.")
    request = Edit(
        target=_field(recipe, "target", str),
        source=_field(recipe, "source", (str, type(None))),
        words=tuple(words) if words else None,
        mask=mask,
        negative=_field(recipe, "negative", str),
    )
    config = EditConfig(
        method=METHODS[name](**settings),
        steps=_field(recipe, "steps", int),
        seed=_field(recipe, "seed", int),
        feather=_field(recipe, "feather", (int, float)),
        size=_field(recipe, "size", (int, type(None))),
        refine=_field(recipe, "refine", (int, float)),
    )
    return request, config


def sketch_recipe(
    prompt: str,
    config: SketchConfig,
    result: SketchResult,
    model: dict[str, Any],  # id, revision, device, dtype
) -> dict[str, Any]:
    """What repeats a sketch, and how it went."""
    return {
        "schema": SCHEMA,
        "kind": "sketch",
        "prompt": prompt,
        "settings": asdict(config),
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

    prompt = _field(recipe, "prompt", str)
    return prompt, SketchConfig(**_settings("a sketch", _field(recipe, "settings", dict), SketchConfig()))


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
    settings = dict(_field(recipe, "shapes", dict))
    if "edit" in settings:
        raise InputRefused("The recipe gives shapes a setting that they do not have: edit.")
    return request, SvgConfig(edit, **_settings("shapes", settings, SvgConfig(edit)))


def dump(recipe: Mapping[str, Any]) -> str:
    """A recipe as JSON text in ASCII, so that no control or bidirectional character of a prompt is in it as such."""
    return json.dumps(recipe, indent=2, allow_nan=False, ensure_ascii=True)


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe of an output: from inside the PNG or SVG, else from the sidecar beside a picture (or `path` is it).

    InputRefused: no such file, no recipe, or one that this version does not read.
    """
    name = printable(path.name, 100)
    if not path.is_file():
        raise InputRefused(f"{name} is not there: give a picture or a drawing that sdsedit made.")
    text, drawing = None, path.suffix.lower() == ".svg"
    if drawing:
        from sdsedit.io import svg

        text = svg.read_recipe(path)
    try:
        if path.suffix.lower() == ".png":
            text = _embedded(path)
        if text is None and not drawing and path.with_suffix(".json").is_file():  # of cat.svg, cat.json says nothing
            text = path.with_suffix(".json").read_text("utf-8")
        recipe = None if text is None else json.loads(text, parse_constant=_no_constant)
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

    The commit of a hub model; for a folder or "builtin" a SHA-256 over its JSON and safetensors files, of which those
    above 64 MiB go in with their size, first and last MiB only.
    """
    from sdsedit.prior.load import builtin_path

    folder = builtin_path() if spec == "builtin" else Path(spec)
    if folder.is_dir():
        digest = hashlib.sha256()
        for file in sorted(folder.rglob("*.json")) + sorted(folder.rglob("*.safetensors")):
            size = file.stat().st_size
            digest.update(f"{file.relative_to(folder).as_posix()} {size}\n".encode())
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


def _method_name(method: object) -> str:
    from sdsedit.guidance import METHODS

    return next(name for name, cls in METHODS.items() if type(method) is cls)


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


def _field(recipe: Mapping[str, Any], name: str, kind: type | tuple[type, ...]) -> Any:
    if name not in recipe:
        raise InputRefused(f"The recipe has no {name}.")
    if not isinstance(recipe[name], kind) or isinstance(recipe[name], bool):
        raise InputRefused(f"The recipe's {name} is of the wrong type.")
    return recipe[name]


def _embedded(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(path.read_bytes()), formats=["PNG"]) as image:
            image.load()
            return getattr(image, "text", {}).get("sdsedit")
    except Exception:  # a damaged PNG: Pillow raises many kinds of error; the sidecar may still be there
        return None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


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
