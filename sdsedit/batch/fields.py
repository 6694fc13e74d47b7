"""What a row of a manifest may give, by the kind of its job; whether a value is one; the published JSON Schema."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from sdsedit.errors import printable
from sdsedit.model_options import DECIDING, MAX_DISTILLED_GUIDANCE, MAX_FILES, PRECISIONS

SCHEMA_VERSION = 1
KINDS = ("image", "sketch", "svg", "splats", "style")

# As the engine has them; named here, for this file is read without torch. A test holds them to the engine's own.
METHODS = ("lusd", "dds", "flowedit", "cds", "ids", "pds", "ssd", "ism", "sds", "sbp", "nfsd", "csd", "vsd")
METHODS += ("lusd-fast",)
STYLES = ("ink", "colour", "icon")
EDIT_KINDS = ("recolour", "restyle", "replace", "add", "delete")
SUFFIXES = {
    "image": (".png",), "sketch": (".svg",), "svg": (".svg",), "splats": (".ply", ".spz", ".splat"),
    "style": (".png",),
}  # fmt: skip
READS = {
    "image": (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"),
    "svg": (".svg", ".svgz"),
    "splats": (".ply", ".spz"),
}
READS["style"] = READS["image"]
MAX_REFERENCES, MAX_TEXTURE, MAX_STYLE_WEIGHT = 8, 8192, 10.0

Type = Literal["text", "whole", "number", "flag", "choice", "words", "vector", "files"]


@dataclass(frozen=True)
class Field:
    """What a row may give under one name."""

    type: Type
    about: str
    default: Any = None  # None: not given
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()
    required: bool = False


_STEPS = Field("whole", "steps; without it the method's own", low=1, high=10_000)
_SEED = Field("whole", "one seed, one result", 0, low=0, high=2**63 - 1)
_STRENGTH = Field("number", "multiplies the method's step", 1.0, low=0.1, high=10)
_WORDS = Field("words", "words whose place is edited; without it the new ones")
_METHOD = Field("choice", "how to edit", "lusd", choices=METHODS)
_SIZE = Field("whole", "working side in pixels; without it the model's own", low=1, high=4096)
_SOURCE = Field("text", "describes it as it is")
_TARGET = Field("text", "describes it as it should become", required=True)
_NEGATIVE = Field("text", "what to move away from (nfsd, csd and sbp read it)", "")
_MODEL = {
    "model": Field("text", "builtin, a diffusers folder or a .safetensors file below the manifest's folder, an id, or "
                   "ID@REVISION"),
    "lora": Field("files", "LoRAs that are added to the model's weights, FILE or FILE:SCALE, relative to the manifest",
                  high=MAX_FILES),
    "embedding": Field("files", "files of textual inversion, relative to the manifest: their words can be written in "
                       "prompts", high=MAX_FILES),
    "settings": Field("text", "of a model in one .safetensors file: a folder or an id that its settings are from"),
    "precision": Field("choice", "of the network; without it what suits it", choices=PRECISIONS),
    "distilled_guidance": Field("number", "what FLUX.1 dev is told; no CFG scale", low=0, high=MAX_DISTILLED_GUIDANCE),
}  # fmt: skip
_LOOK = Field("files", "pictures whose look is taken, relative to the manifest", low=1, high=MAX_REFERENCES)
_STYLE_WEIGHT = Field("number", "how hard the references' look pulls", 2.0, low=0, high=MAX_STYLE_WEIGHT)
_PICTURES = {
    "save_mask": Field("flag", "also write OUT.mask.png, the weight of the edit", False),
    "save_heatmap": Field("flag", "also write OUT.heatmap.png, where the words were found", False),
}
_FILES = {
    "input": Field("text", "the file to edit, relative to the manifest; with * or ? one job for each", required=True),
    "mask": Field("text", "where the picture may change, white on black; {stem} stands for the input's name"),
    "cameras": Field("text", "a COLMAP folder, transforms.json or cameras.json, relative to the manifest"),
}
FIELDS: dict[str, dict[str, Field]] = {
    "image": {
        "input": _FILES["input"], "mask": _FILES["mask"], "target": _TARGET, "source": _SOURCE, "negative": _NEGATIVE,
        "words": _WORDS, "method": _METHOD, "steps": _STEPS, "seed": _SEED, "strength": _STRENGTH, "size": _SIZE,
        "feather": Field("number", "the mask's soft edge in pixels", 3.0, low=0, high=256),
        "refine": Field("number", "redraw the place from this much noise at the end, 0: do not", low=0, high=1),
        "references": _LOOK, "style_weight": _STYLE_WEIGHT, **_MODEL, **_PICTURES,
    },
    "sketch": {
        "prompt": Field("text", "what to draw", required=True),
        "strokes": Field("whole", "shapes to draw with: the fewer, the more abstract", 64, low=4, high=2048),
        "style": Field("choice", "black strokes, strokes with colours, or filled areas", "ink", choices=STYLES),
        "background": Field("flag", "draw what is around the words' things too", False),
        "width": Field("number", "multiplies the width of strokes", 1.0, low=0.1, high=20),
        "steps": replace(_STEPS, default=120, about="steps"), "seed": _SEED,
        "distillation": Field("number", "score distillation's share of the gradient", 0.5, low=0, high=1),
        "references": _LOOK, "style_weight": replace(_STYLE_WEIGHT, default=0.5), **_MODEL,
    },
    "svg": {
        "input": _FILES["input"], "target": _TARGET, "source": _SOURCE, "words": _WORDS, "method": _METHOD,
        "share": Field("number", "a shape may change if this much of it lies in the place", 0.5, low=0, high=1),
        "added": Field("whole", "new shapes at most", 24, low=0, high=512),
        "steps": _STEPS, "seed": _SEED, "strength": _STRENGTH, **_MODEL, **_PICTURES,
    },
    "splats": {
        "input": _FILES["input"], "cameras": _FILES["cameras"], "target": _TARGET, "source": _SOURCE,
        "negative": _NEGATIVE, "words": _WORDS, "method": _METHOD, "steps": _STEPS, "seed": _SEED,
        "strength": _STRENGTH, "size": _SIZE,
        "edit_kind": Field("choice", "what the edit is; without it told from the words", choices=EDIT_KINDS),
        "views": Field("whole", "cameras of the orbit, or how many of `cameras`", 16, low=4, high=256),
        "threshold": Field("number", "weight from which a Gaussian is in the edit", 0.4, low=0.05, high=0.95),
        "distillation": Field("number", "score distillation's share of the gradient", 0.1, low=0, high=1),
        "added": Field("whole", "new Gaussians to begin a new thing with", 6000, low=1, high=200_000),
        "background": Field("vector", "behind the scene, three numbers", (0.62, 0.79, 0.95), low=0, high=1),
        "up": Field("vector", "of the scene's world, three numbers", (0.0, -1.0, 0.0), low=-1, high=1),
        "references": _LOOK, "style_weight": replace(_STYLE_WEIGHT, default=1.0), **_MODEL,
    },
    "style": {
        "input": Field("text", "a picture that keeps its layout and takes the look; this, prompt or texture"),
        "references": replace(_LOOK, about="pictures whose look is wanted, relative to the manifest", required=True),
        "content_regions": Field("text", "the input painted in a few flat colours, a region each"),
        "reference_regions": replace(_LOOK, about="the same for each of the references: a colour takes its look from "
                                     "where the reference has that colour"),
        "prompt": Field("text", "what to draw in that look"),
        "texture": Field("text", f"a texture this large, such as 512x256, up to {MAX_TEXTURE} pixels a side"),
        "content_weight": Field("number", "how firmly the layout is kept; without it what suits the model", low=0,
                                high=10),
        "step_size": Field("number", "how far a step may move a value of the latent", low=1e-6, high=1),
        "scale": Field("number", "how firmly the prompt is followed", low=1, high=30),
        "layers": Field("whole", "self-attention layers to compare, from the network's end", low=1, high=128),
        "steps": replace(_STEPS, about="steps; without it what suits the model"), "seed": _SEED, "size": _SIZE,
        **_MODEL,
    },
}  # fmt: skip
NAMES = {
    "kind": Field("choice", "image without it", "image", choices=KINDS),
    "id": Field("text", "its name in every report; without it row-LINE"),
    "output": Field("text", "relative to the output folder; without it the id. {stem}, {id} and the grid's names stand "
                    "for their values"),
}  # fmt: skip
# Fields that name files, of which there is no grid.
FILES = ("input", "mask", "cameras", "references", "content_regions", "reference_regions")
NOT_SETTINGS = {*FILES, "model", *DECIDING}


class Cell(str):
    """Text of a table, to be read as what its field is."""


def fault_in(name: str, value: Any, field: Field) -> str | None:
    """One sentence if a value is not what its field holds."""
    if isinstance(value, Cell):
        value = read_cell(value, field)
    shown = printable(str(value), 40)
    if field.type == "text":
        return None if isinstance(value, str) else f"{name} is {shown}; it must be text."
    if field.type == "flag":
        return None if isinstance(value, bool) else f"{name} is {shown}; it must be true or false."
    if field.type == "choice":
        good = isinstance(value, str) and value in field.choices
        return None if good else f"{name} is {shown}; it must be one of {', '.join(field.choices)}."
    if field.type == "words":
        each = value if isinstance(value, list | tuple) else [value]
        good = bool(each) and all(isinstance(word, str) and word.strip() for word in each)
        return None if good else f'{name} must be words of the prompt, such as ["crown", "top hat"].'
    if field.type == "files":
        each = value if isinstance(value, list | tuple) else [value]
        good = field.low <= len(each) <= field.high and all(isinstance(name, str) and name.strip() for name in each)
        return None if good else f"{name} must be {field.low:g} to {_top(field)} names of files."
    if field.type == "vector":
        good = isinstance(value, list | tuple) and len(value) == 3 and all(_within(v, field) for v in value)
        return None if good else f"{name} must be three numbers from {field.low:g} to {field.high:g}."
    if field.type == "whole":
        good = isinstance(value, int) and _within(value, field)
        return None if good else f"{name} is {shown}; it must be a whole number from {field.low:g} to {_top(field)}."
    return (
        None
        if _within(value, field)
        else f"{name} is {shown}; it must be a number from {field.low:g} to {_top(field)}."
    )


def _top(field: Field) -> str:
    return str(field.high) if isinstance(field.high, int) else f"{field.high:g}"


def _within(value: Any, field: Field) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and field.low <= value <= field.high


def normal(value: Any, field: Field) -> Any:
    """The one way to write a good value, so that equal jobs are equal."""
    if isinstance(value, Cell):
        value = read_cell(value, field)
    if field.type == "number":
        return float(value)
    if field.type == "vector":
        return tuple(float(each) for each in value)
    if field.type == "files":
        return (value,) if isinstance(value, str) else tuple(value)
    if field.type == "words":
        each = [value] if isinstance(value, str) else value
        return tuple(word.strip() for entry in each for word in entry.split(",") if word.strip())
    return str(value) if isinstance(value, str) else value


def read_cell(cell: str, field: Field) -> Any:
    """Text of a table as its field's type; the text itself where it is none, for `fault_in` to say so."""
    text = str(cell)
    if field.type == "flag":
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}.get(text.lower(), text)
    if field.type == "files":
        return [part.strip() for part in text.split(";")]
    try:
        if field.type == "whole":
            return int(text)
        if field.type == "number":
            return float(text)
        if field.type == "vector":
            return [float(part) for part in text.split(",")]
    except ValueError:
        return text
    return text


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a line of a JSONL manifest: the head, or a row of one of the kinds."""

    def of(field: Field) -> dict[str, Any]:
        kinds: dict[str, Callable[[], dict[str, Any]]] = {
            "text": lambda: {"type": "string"},
            "flag": lambda: {"type": "boolean"},
            "choice": lambda: {"enum": list(field.choices)},
            "whole": lambda: {"type": "integer", "minimum": field.low, "maximum": field.high},
            "number": lambda: {"type": "number", "minimum": field.low, "maximum": field.high},
            "words": lambda: {
                "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
            },
            "files": lambda: {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array", "items": {"type": "string"},
                        "minItems": int(field.low), "maxItems": int(field.high),
                    },
                ]
            },
            "vector": lambda: {
                "type": "array", "minItems": 3, "maxItems": 3,
                "items": {"type": "number", "minimum": field.low, "maximum": field.high},
            },
        }  # fmt: skip
        schema = {"description": field.about, **kinds[field.type]()}
        if field.default is not None:
            schema["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        return schema

    rows = []
    for kind in KINDS:
        fields = FIELDS[kind]
        varied = {
            name: {"type": "array", "minItems": 1, "uniqueItems": True, "items": of(field)}
            for name, field in fields.items()
            if name not in FILES
        }
        properties = {
            "kind": {"const": kind},
            "id": of(NAMES["id"]),
            "output": of(NAMES["output"]),
            **{name: of(field) for name, field in fields.items()},
            "grid": {
                "description": "one job for each combination of these values",
                "type": "object", "properties": varied, "additionalProperties": False,
            },
        }  # fmt: skip
        rows.append({"title": kind, "type": "object", "properties": properties, "additionalProperties": False}
                    | ({} if kind == "image" else {"required": ["kind"]}))  # fmt: skip
    every: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        for name, field in FIELDS[kind].items():
            if of(field) not in every.setdefault(name, []):
                every[name].append(of(field))
    defaults = {name: each[0] if len(each) == 1 else {"anyOf": each} for name, each in every.items()}
    head = {
        "title": "head", "type": "object", "additionalProperties": False, "required": ["schema_version"],
        "properties": {
            "schema_version": {"const": SCHEMA_VERSION},
            "defaults": {
                "description": "for every row whose kind has the field and that does not give it",
                "type": "object", "additionalProperties": False,
                "properties": {"kind": of(NAMES["kind"]), **defaults},
            },
        },
    }  # fmt: skip
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of a batch manifest of sdsedit (JSONL): the first is the head, every other a row",
        "anyOf": [head, *rows],
    }


if __name__ == "__main__":
    import json

    print(json.dumps(json_schema(), indent=2))
