"""Edit held-out scenes and lay them out as before / mask / after, LUSD beside DDS and SDS with the same seed.

    python -m benchmarks.gallery

Writes docs/gallery/NN-*.png, one a case, docs/gallery/README.md, and docs/gallery/strip.png for the front page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sdsedit import read_picture
from sdsedit.edit import Edit, EditConfig, EditResult, edit
from sdsedit.prior import load_prior
from training.judge import load_judge
from training.scenes import Scene, caption, render

from .edits import HERE, as_tensor, cases

OUT = Path(__file__).resolve().parents[1] / "docs" / "gallery"
ZOOM = 2
METHOD_NAMES = ("lusd", "dds", "sds")


def scenes() -> list[tuple[Scene, Scene]]:
    """Twenty-four edits: ten additions, and of each other kind some, none chosen for its result."""
    counts = {"add": 10, "replace": 4, "colour": 4, "background": 4, "remove": 2}
    judge = load_judge(HERE / "judge.safetensors")
    return [pair for kind, count in counts.items() for pair in cases(kind, count, judge)]  # pyright: ignore[reportArgumentType]


def to_image(picture: torch.Tensor) -> Image.Image:
    """[1, 3, H, W] in 0..1 -> a picture of ZOOM times the size."""
    array = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
    return Image.fromarray(array).resize((array.shape[1] * ZOOM, array.shape[0] * ZOOM), Image.Resampling.LANCZOS)


def heat(picture: torch.Tensor, heatmap: torch.Tensor) -> Image.Image:
    """The heatmap over a grey copy of the picture, dark blue (nothing) to yellow (everything)."""
    import matplotlib

    grey = picture.mean(1, keepdim=True)[0, 0].numpy()[..., None]
    colour = matplotlib.colormaps["inferno"](heatmap[0, 0].numpy())[..., :3]
    mixed = 0.35 * grey + 0.65 * colour
    return to_image(torch.from_numpy(mixed.astype(np.float32)).permute(2, 0, 1)[None])


def sheet(request: Edit, original: torch.Tensor, results: dict[str, EditResult]) -> Image.Image:
    """before | where LUSD looked | after LUSD | after DDS | after SDS, with captions."""
    columns = [("before", to_image(original)), ("where (LUSD)", heat(original, results["lusd"].heatmap))]
    columns += [(f"after, {name.upper()}", to_image(result.image)) for name, result in results.items()]
    side, top, gap = columns[0][1].width, 46, 6
    page = Image.new("RGB", (len(columns) * (side + gap) - gap, side + top), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(15)
    draw.text((2, 2), f"{request.source}  ->  {request.target}", fill="black", font=font)
    for k, (label, image) in enumerate(columns):
        page.paste(image, (k * (side + gap), top))
        draw.text((k * (side + gap) + 2, 24), label, fill=(90, 90, 90), font=font)
    return page


STRIP = (
    ("cat", "a cat on grass", "a cat wearing a top hat on grass"),
    ("panda", "a panda on snow", "a panda wearing a crown on snow"),
    ("owl", "an owl at night", "a pink owl at night"),
    ("dog", "a dog on sand", "a dog on snow"),
)


def strip(prior, seed: int) -> Image.Image:
    """The front page's picture: a column an edit of assets/examples; before, where, after."""
    examples, side, gap, head = OUT.parents[1] / "assets" / "examples", 128 * ZOOM, 6, 44
    page = Image.new("RGB", (len(STRIP) * (side + gap) - gap, head + 3 * (side + gap) - gap), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for column, (name, source, target) in enumerate(STRIP):
        picture = read_picture(examples / f"{name}.png").tensor()
        result = edit(picture, prior, Edit(target, source), EditConfig(seed=seed))
        x = column * (side + gap)
        draw.text((x + 2, 2), f"{source}\n-> {target}", fill="black", font=font)
        for row, image in enumerate((to_image(picture), heat(picture, result.heatmap), to_image(result.image))):
            page.paste(image, (x, head + row * (side + gap)))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the cases to make")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prior = load_prior("builtin")
    lines = [
        "# Gallery",
        "",
        f"Held-out scenes, built-in model, seed {args.seed} for every method, none chosen for its result: "
        "`python -m benchmarks.gallery`.",
        "LUSD looks for the new words and keeps the rest; DDS and SDS run as published, without a mask.",
        "",
    ]
    for number, (source, target) in enumerate(scenes(), start=1):
        if args.only and number not in args.only:
            continue
        original = as_tensor(render(source).image)
        request = Edit(target=caption(target), source=caption(source))
        results = {}
        for name in METHOD_NAMES:
            results[name] = edit(original, prior, request, EditConfig(method=name, seed=args.seed))
        file = f"{number:02d}-{request.target.replace(' ', '-')}.png"
        sheet(request, original, results).save(args.out / file, optimize=True)
        lines += [f"![{request.source} becomes {request.target}]({file})", ""]
        print(f"{number:2d}  {request.source} -> {request.target}", flush=True)
    if not args.only:
        strip(prior, args.seed).save(args.out / "strip.png", optimize=True)
        (args.out / "README.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
