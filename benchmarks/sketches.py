"""Sketches from words, and edits of drawings: does a stranger name the thing, what does each part of the method add?

    python -m benchmarks.sketches                 # everything: docs/benchmarks/sketches.*, docs/gallery/sketches.*
    python -m benchmarks.sketches --only edits    # the edits of SVG files alone

Twelve prompts, none chosen for its result, at three levels of abstraction and as icons. The judge (training/judge.py),
which has seen line drawings with bent and broken lines but no sketch of ours, says what each shows; at chance it names
1 subject in 28. Beside the full method, at 64 strokes:

- start: strokes where attention and edges are, not optimised;
- likeness: no distillation, only likeness to the guide picture (what DiffSketcher's published settings amount to);
- distillation: no likeness, score distillation alone.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sdsedit.edit import Edit
from sdsedit.io.svg import read_svg
from sdsedit.prior import load_prior
from sdsedit.sketch.change import SvgConfig, change
from sdsedit.sketch.draw import SketchConfig, SketchResult, sketch
from sdsedit.sketch.files import sketch_svg
from training.art import ACCESSORIES, ART, NOUNS
from training.judge import load_judge

from .edits import HERE, OUT

GALLERY = OUT.parent / "gallery"
PROMPTS = (
    "a cat wearing a crown",
    "a dog wearing sunglasses",
    "an owl",
    "a pumpkin",
    "a robot wearing a bow",
    "an apple",
    "a fox wearing a cap",
    "a penguin wearing a top hat",
    "a mushroom",
    "a rabbit wearing a flower",
    "a frog",
    "a ghost wearing a crown",
)
LEVELS = (24, 64, 160)
SIDE = 192  # pixels of a picture in the gallery
VARIANTS: dict[str, SketchConfig] = {f"{count} strokes": SketchConfig(strokes=count) for count in LEVELS}
VARIANTS |= {
    "icon": SketchConfig(strokes=48, style="icon", steps=60),
    "start": SketchConfig(steps=1, distillation=0.0),
    "likeness": SketchConfig(distillation=0.0),
    "distillation": SketchConfig(distillation=1.0),
}
# (name, subject, worn, drawn as lines, source prompt, target prompt)
EDITS = (
    ("crown", "cat", None, False, "a cat", "a cat wearing a crown"),
    ("top hat", "owl", None, False, "an owl", "an owl wearing a top hat"),
    ("blue", "dog", None, False, "a dog", "a blue dog"),
    ("removed", "pear", "crown", False, "a pear wearing a crown", "a pear"),
    ("sunglasses", "panda", None, False, "a panda", "a panda wearing sunglasses"),
    ("lines", "bear", None, True, "a drawing of a bear", "a drawing of a bear wearing a crown"),
    ("bow", "rabbit", None, False, "a rabbit", "a rabbit wearing a bow"),
    ("pink", "frog", None, False, "a frog", "a pink frog"),
)


def drawing_of(noun: str, worn: str | None, lines: bool) -> bytes:
    """An SVG file of the world's art: a subject on white, perhaps with something on its head, perhaps as lines."""

    def art(name: str) -> str:
        text = (ART / "fluent-flat" / f"{name}.svg").read_text()
        return re.sub(r"^<svg[^>]*>|</svg>\s*$", "", text.strip())

    parts = [f'<g transform="translate(18 30) scale(2.9)">{art(NOUNS[noun])}</g>']
    if worn:
        parts.append(f'<g transform="translate(40 6) scale(1.5)">{art(ACCESSORIES[worn])}</g>')
    body = "".join(parts)
    if lines:
        body = re.sub(r'fill="#[0-9a-fA-F]+"', 'fill="none" stroke="#222" stroke-width=".7"', body)
        body = body.replace('<g fill="none">', "<g>")
    sides = 'viewBox="0 0 128 128" width="512" height="512"'
    paper = '<rect width="128" height="128" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {sides}>{paper}{body}</svg>'.encode()


def rasterised(svg: bytes, side: int = SIDE) -> Image.Image:
    """The file as resvg draws it: the file is what counts, not what our renderer makes of it."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg.decode(), width=side, height=side))
    return Image.open(io.BytesIO(png)).convert("RGB")


_loaded: list = []


def _tools() -> tuple:
    if not _loaded:
        torch.set_num_threads(1)
        _loaded.extend((load_prior("builtin"), load_judge(HERE / "judge.safetensors")))
    return tuple(_loaded)


def one_sketch(task: tuple[str, str]) -> dict:
    """A prompt drawn in one way, as a row of the table, with its pictures."""
    prompt, variant = task
    prior, judge = _tools()
    result: SketchResult = sketch(prompt, prior, VARIANTS[variant])
    svg = sketch_svg(result)
    picture = rasterised(svg, 128)
    read = judge.read(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 255)[0]
    noun = next(word for word in prompt.split() if word in NOUNS)
    worn = prompt.split(" wearing ")[-1].removeprefix("a ") if " wearing " in prompt else "none"
    return {
        "prompt": prompt,
        "variant": variant,
        "noun": float(read["noun"] == noun),
        "worn": float(read["accessory"] == worn) if worn != "none" else None,
        "read": f"{read['noun']} wearing {read['accessory']}",
        "strokes": len(result.topology),
        "dropped": result.dropped,
        "seconds": result.seconds,
        "renderer": result.drawing_seconds / result.seconds,
        "shares": result.shares,
        "svg": svg,
        "guide": (result.guide[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8),
        "attention": (result.attention[0, 0].numpy() * 255).round().astype(np.uint8),
    }


def one_edit(task: tuple[str, str, str | None, bool, str, str]) -> dict:
    name, noun, worn, lines, source, target = task
    prior, _ = _tools()
    white = " on a white background"
    document = read_svg(drawing_of(noun, worn, lines))
    result = change(document, prior, Edit(target=target + white, source=source + white), SvgConfig())
    return {
        "name": name,
        "source": source,
        "target": target,
        "shapes": len(document.shapes),
        "kept": result.kept,
        "changed": len(result.changed),
        "removed": len(result.removed),
        "added": len(result.added),
        "seconds": result.seconds,
        "before": document.data,
        "svg": result.written(None),
        "mask": (result.look.mask[0, 0].numpy() * 255).round().astype(np.uint8),
    }


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], titles: Sequence[str], side: int) -> Image.Image:
    """Pictures in a grid with a line of titles above and the prompt before each row."""
    font = ImageFont.load_default(size=13)
    left, top = 170, 26
    page = Image.new("RGB", (left + side * len(titles), top + side * len(rows)), "white")
    ink = ImageDraw.Draw(page)
    for k, title in enumerate(titles):
        ink.text((left + k * side + 6, 6), title, fill="black", font=font)
    for r, (label, pictures) in enumerate(rows):
        for line, words in enumerate(_lines(label)):
            ink.text((6, top + r * side + side // 2 - 20 + 17 * line), words, fill="black", font=font)
        for k, picture in enumerate(pictures):
            page.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (left + k * side, top + r * side))
    return page


def _lines(label: str, most: int = 22) -> list[str]:
    lines = [""]
    for word in label.split():
        if len(lines[-1]) + len(word) > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def sketches(workers: int) -> None:
    tasks = [(prompt, variant) for prompt in PROMPTS for variant in VARIANTS]
    rows, started = [], time.perf_counter()
    with torch.multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, row in enumerate(pool.imap(one_sketch, tasks), start=1):
            rows.append(row)
            print(f"{done}/{len(tasks)}  {row['prompt']}, {row['variant']}: {row['read']}", flush=True)
    minutes = (time.perf_counter() - started) / 60
    lines = [
        "# Sketches: are they recognised?",
        "",
        f"`python -m benchmarks.sketches`, built-in model, {len(PROMPTS)} prompts, seed 0, {workers} workers of one "
        f"thread on {platform.machine()}, torch {torch.__version__}, {minutes:.0f} minutes in all.",
        "",
        "| way | subject named | worn thing named | strokes kept | seconds | of them in the renderer |",
        "|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        mine = [row for row in rows if row["variant"] == variant]
        worn = [row["worn"] for row in mine if row["worn"] is not None]
        mean = {key: statistics.mean(row[key] for row in mine) for key in ("noun", "strokes", "seconds", "renderer")}
        lines.append(
            f"| {variant} | {mean['noun']:.2f} | {statistics.mean(worn):.2f} | {mean['strokes']:.0f} | "
            f"{mean['seconds']:.1f} | {100 * mean['renderer']:.1f} % |"
        )
    lines += ["", "`start`, `likeness` and `distillation` have 64 strokes; benchmarks/sketches.py says what they are."]
    lines += ["", "![sketches](../gallery/sketches.png)", ""]
    (OUT / "sketches.md").write_text("\n".join(lines))
    plain = [{k: v for k, v in row.items() if k not in ("svg", "guide", "attention")} for row in rows]
    (OUT / "sketches.json").write_text(json.dumps(plain, indent=1) + "\n")
    print("\n".join(lines))
    pages = []
    shown = [f"{count} strokes" for count in LEVELS] + ["icon"]
    folder = GALLERY / "sketches"
    folder.mkdir(parents=True, exist_ok=True)
    for prompt in PROMPTS:
        mine = {row["variant"]: row for row in rows if row["prompt"] == prompt}
        first = mine[shown[0]]
        pictures = [Image.fromarray(first["guide"]), Image.fromarray(first["attention"]).convert("RGB")]
        pages.append((prompt, [*pictures, *(rasterised(mine[variant]["svg"]) for variant in shown)]))
        for variant in shown:
            (folder / f"{prompt.replace(' ', '-')}.{variant.replace(' ', '-')}.svg").write_bytes(mine[variant]["svg"])
    sheet(pages, ["guide", "attention", *shown], SIDE).save(GALLERY / "sketches.png", optimize=True)
    svgs = {(row["prompt"], row["variant"]): row["svg"] for row in rows}
    wanted = ("start", "likeness", "distillation", "64 strokes")
    base = [(prompt, [rasterised(svgs[prompt, variant]) for variant in wanted]) for prompt in PROMPTS]
    titles = ("start alone", "likeness alone", "distillation alone", "all")
    sheet(base, titles, 128).save(OUT / "sketches.png", optimize=True)


def edits(workers: int) -> None:
    with torch.multiprocessing.get_context("spawn").Pool(workers) as pool:
        rows = pool.map(one_edit, EDITS, chunksize=1)
    folder = GALLERY / "svg"
    folder.mkdir(parents=True, exist_ok=True)
    pages = []
    lines = ["| edit | shapes | kept byte for byte | changed | removed | added | seconds |", "|---" * 7 + "|"]
    for row in rows:
        name = row["name"].replace(" ", "-")
        (folder / f"{name}.before.svg").write_bytes(row["before"])
        (folder / f"{name}.after.svg").write_bytes(row["svg"])
        pictures = [rasterised(row["before"]), Image.fromarray(row["mask"]).convert("RGB"), rasterised(row["svg"])]
        label = f"{row['source']} -> {row['target']} (kept {row['kept']} of {row['shapes']} shapes)"
        pages.append((label, pictures))
        numbers = " | ".join(str(row[key]) for key in ("shapes", "kept", "changed", "removed", "added"))
        lines.append(f"| {row['source']} -> {row['target']} | {numbers} | {row['seconds']:.1f} |")
    sheet(pages, ("before", "mask", "after"), SIDE).save(GALLERY / "svg.png", optimize=True)
    head = "# Edits of SVG files\n\n`python -m benchmarks.sketches --only edits`, built-in model, seed 0.\n\n"
    (OUT / "svg.md").write_text(head + "\n".join(lines) + "\n\n![edits](../gallery/svg.png)\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("sketches", "edits"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, help="fewer steps, for a look")
    args = parser.parse_args()
    if args.steps:
        for name, config in VARIANTS.items():
            VARIANTS[name] = replace(config, steps=min(args.steps, config.steps))
    if args.only != "edits":
        sketches(args.workers)
    if args.only != "sketches":
        edits(args.workers)


if __name__ == "__main__":
    main()
