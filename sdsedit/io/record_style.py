"""The recipe of a style: what repeats `sdsedit style`, and how it went. As io/record has it for the other kinds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdsedit.errors import InputRefused, printable
from sdsedit.io import record

if TYPE_CHECKING:
    import numpy as np

    from sdsedit.io.images import Picture
    from sdsedit.style import StyleConfig, StyleRequest, StyleResult


@dataclass(frozen=True)
class Asked:
    """What a recipe asks for; files as {"name", "sha256"}."""

    content: dict[str, str] | None
    references: tuple[dict[str, str], ...]
    regions: dict[str, str] | None
    reference_regions: tuple[dict[str, str], ...]
    prompt: str | None
    texture: tuple[int, int] | None  # (H, W)
    config: StyleConfig


def style_recipe(
    content: Picture | None,
    references: Sequence[Picture],
    regions: Picture | None,
    reference_regions: Sequence[Picture],
    request: StyleRequest,
    config: StyleConfig,
    result: StyleResult,
    model: dict[str, Any],  # id, revision, device, dtype
    seconds: dict[str, float],
) -> dict[str, Any]:
    """What repeats a style, and how it went. Numbers that are not finite are left out: JSON has none."""

    def named(picture: Picture | None) -> dict[str, Any] | None:
        return None if picture is None else {"name": picture.name, "sha256": picture.sha256}

    last = result.history[-1] if result.history else {}
    return {
        "schema": record.SCHEMA,
        "kind": "style",
        "prompt": request.prompt,
        "texture": None if request.texture is None else [request.texture[1], request.texture[0]],
        "input": named(content),
        "references": [named(picture) for picture in references],
        "regions": named(regions),
        "reference_regions": [named(picture) for picture in reference_regions],
        "settings": {**asdict(result.way), "size": config.size, "low_memory": config.low_memory},
        "seed": config.seed,
        "model": model,
        "versions": record.versions(),
        "result": {
            "kind": result.kind,
            "steps_done": result.steps_done,
            "stopped": result.stopped,
            "complete": not result.stopped,
            "notes": list(result.notes),
            "last_step": {name: value for name, value in last.items() if math.isfinite(value)},
        },
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def style_request(recipe: Mapping[str, Any]) -> Asked:
    """What is asked for in a recipe, for the same again.

    A recipe is somebody's file: InputRefused names the field that is missing or wrong. Ranges are checked by `style`.
    """
    from sdsedit.style import StyleConfig, Way

    settings = record.recipe_field(recipe, "settings", dict)
    size, low_memory = settings.get("size"), settings.get("low_memory", False)
    given = {name: value for name, value in settings.items() if name not in ("size", "low_memory")}
    known = {each.name: each for each in fields(Way)}
    for name, value in given.items():
        if name not in known:
            raise InputRefused(f"The recipe gives a style a setting that it does not have: {printable(str(name), 40)}.")
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        kinds = str(known[name].type).split(" | ")
        good = {"bool": isinstance(value, bool), "int": number and value == int(value), "float": number}.get(
            kinds[0], False
        )  # fmt: skip
        if not good and not (value is None and "None" in kinds):
            raise InputRefused(f"The recipe's setting {name} of a style is of the wrong type.")
    if missing := {"sampled", "steps", "step_size"} - set(given):
        raise InputRefused(f"The recipe of a style lacks the setting {min(missing)}.")
    texture = record.recipe_field(recipe, "texture", (list, type(None)))
    if texture is not None and not (len(texture) == 2 and all(type(side) is int for side in texture)):
        raise InputRefused("The recipe's texture must be a width and a height.")
    if not isinstance(low_memory, bool):
        raise InputRefused("The recipe's setting low_memory of a style is of the wrong type.")
    return Asked(
        content=_named(recipe.get("input"), "input"),
        references=named_files(recipe, "references"),
        regions=_named(recipe.get("regions"), "regions"),
        reference_regions=named_files(recipe, "reference_regions"),
        prompt=record.recipe_field(recipe, "prompt", (str, type(None))),
        texture=None if texture is None else (texture[1], texture[0]),
        config=StyleConfig(
            way=Way(**given), seed=record.recipe_field(recipe, "seed", int), size=size, low_memory=low_memory
        ),
    )  # fmt: skip


def write_picture(
    names: Mapping[str, Path],  # as record.output_names gives them
    pixels: np.ndarray,  # [H, W, 3] uint8
    alpha: np.ndarray | None,  # [H, W] uint8
    icc: bytes | None,
    recipe: Mapping[str, Any],
) -> None:
    """Write a picture with its recipe inside, and beside it, where `names` has a place for it."""
    from sdsedit.io import images

    data = images.encode_png(pixels, alpha, icc, record.dump(recipe) if "recipe" in names else None)
    files = [(names["image"], data)]
    if "recipe" in names:
        files.append((names["recipe"], record.sidecar(recipe, names["image"].name, data)))
    record.write_all(files)


def named_files(recipe: Mapping[str, Any], name: str) -> tuple[dict[str, str], ...]:
    """Files that a recipe names under `name`. InputRefused: they are not named as they should be."""
    found = tuple(_named(each, name) for each in record.recipe_field(recipe, name, list))
    if any(each is None for each in found):
        raise InputRefused(f"The recipe's {name} must name files.")
    return tuple(each for each in found if each is not None)


def _named(part: Any, what: str) -> dict[str, str] | None:
    """A file of a recipe; its name has no folder."""
    if part is None:
        return None
    name, sha256 = (part.get("name"), part.get("sha256")) if isinstance(part, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(sha256, str) or not name or Path(name).name != name:
        raise InputRefused(f"The recipe does not name its {what}.")
    return {"name": name, "sha256": sha256}
