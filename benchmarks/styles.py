"""Styles: a gallery to look at, and textures measured against two older losses.

    python -m benchmarks.styles [--only gallery | textures] [--steps N] [--inner N] [--draws N] [--seed N]
                                [--output docs]

Textures: of ten pictures from assets/styles one texture each, by Attention Distillation as the model has it and, in the
very same run with the same model, noise, steps and optimiser, by two other losses on the features F = V of all recorded
layers:

    AdaIN's statistics    sum_l |mu(F) - mu(F_ref)| + |sigma(F) - sigma(F_ref)|      arXiv:1703.06868, eq. 13
    Gram matrices         sum_l |G(F) - G(F_ref)|, G = F^T F / N                     arXiv:1505.07376, eq. 2 and 3

The others borrow no keys and values, which is attention's own way, and compare all layers, which suits them better than
the finest alone (docs/experiments.md).

Distance: of each 16 x 16 patch of the texture to the nearest one of the reference (is what is there the reference's?),
and the other way round (is all of the reference there?), as rms over the values, at the model's 128 pixels. A mean of
many patches is near to all of them, so the distance rewards softness; beside it stands how sharp a texture is, the mean
difference of neighbouring pixels as a share of the reference's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdsedit.guidance import attention_distillation
from sdsedit.guidance.attention_distillation import Layer
from sdsedit.io.images import to_array
from sdsedit.prior.base import Prior
from sdsedit.prior.load import load_prior
from sdsedit.representations.image import resize
from sdsedit.style import StyleConfig, StyleRequest, Way, style, way_of
from training.textures import TEXTURES, draw

ROOT = Path(__file__).resolve().parent.parent
PATCH, EVERY = 16, 4  # pixels
SHOWN = 256  # pixels, a picture's side in the gallery
TEN = ("mosaic", "brushwork", "dots", "pebbles", "stained_glass", "leaves", "scales", "checks", "marble", "stripes")


# ---- the gallery


@dataclass(frozen=True)
class Case:
    """One picture of the gallery."""

    name: str
    references: tuple[str, ...]
    content: str = ""
    prompt: str = ""
    regions: bool = False  # the sky from the first reference, the rest from the second


CASES = (
    Case("a-cat-of-mosaic", ("mosaic",), content="cat"),
    Case("an-owl-of-stained-glass", ("stained_glass",), content="owl"),
    Case("an-apple-in-brushwork", ("brushwork",), content="apple"),
    Case("a-frog-of-leaves", ("leaves",), content="frog"),
    Case("a-dog-of-pebbles", ("pebbles",), content="dog"),
    Case("a-panda-in-watercolour", ("watercolour",), content="panda"),
    Case("a-cat-of-wood", ("wood",), content="cat"),
    Case("an-owl-of-scales", ("scales",), content="owl"),
    Case("an-apple-of-two-styles", ("mosaic", "stained_glass"), content="apple"),
    Case("a-cat-with-a-painted-sky", ("brushwork", "leaves"), content="cat", regions=True),
    Case("a-fox-drawn-in-dots", ("dots",), prompt="a fox on grass"),
    Case("a-penguin-drawn-in-glass", ("stained_glass",), prompt="a penguin on snow"),
)


def gallery(prior: Prior, folder: Path, only: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Styles",
        "",
        "Made by `python -m benchmarks.styles` with the built-in model. None is chosen; the first found the settings.",
        "",
    ]
    lines += ["Left to right: what gives its look, what keeps its layout, what was made of them.", ""]
    for number, case in enumerate(CASES, 1):
        path = folder / f"{number:02}-{case.name}.png"
        said = case.prompt or case.content
        lines += [f"`{' + '.join(case.references)}`, {said}", "", f"![{case.name}]({path.name})", ""]
        if only and only not in case.name:
            continue
        began = time.perf_counter()
        pictures, request = asked(case)
        result = style(prior, request, StyleConfig())
        _strip([*pictures, to_array(result.image)], path)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s, {result.history[-1]}", flush=True)
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def asked(case: Case) -> tuple[list[np.ndarray], StyleRequest]:
    """The pictures that go in, and the request."""
    given = [draw(name) for name in case.references]
    references = tuple(map(_tensor, given))
    if not case.content:
        return given, StyleRequest(references, prompt=case.prompt)
    content = np.asarray(Image.open(ROOT / "assets" / "examples" / f"{case.content}.png").convert("RGB"))
    request = StyleRequest(references, _tensor(content))
    if case.regions:
        sky = torch.from_numpy((content[..., 2] > 200) & (content[..., 0] < 200)).float()[None, None]
        where = tuple(torch.full((1, 1, *each.shape[:2]), float(k == 0)) for k, each in enumerate(given))
        request = StyleRequest(references, _tensor(content), regions=sky, reference_regions=where)
    return [*given, content], request


def _tensor(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def _strip(pictures: Sequence[np.ndarray], path: Path, side: int = SHOWN) -> None:
    shown = []
    for picture in pictures:
        image = Image.fromarray(picture)
        width = round(side * image.width / image.height)
        shown.append(image.resize((width, side), Image.Resampling.LANCZOS))
    page = Image.new("RGB", (sum(each.width + 8 for each in shown) - 8, side), "white")
    x = 0
    for each in shown:
        page.paste(each, (x, 0))
        x += each.width + 8
    page.save(path, optimize=True)


# ---- textures, measured


def gram_loss(
    layers: Sequence[Layer], references: Sequence[Sequence[Layer]], *regions: object
) -> Tensor:  # fmt: skip
    def gram(features: Tensor) -> Tensor:  # [1, N, D] -> [1, D, D]
        return features.mT @ features / features.shape[1]

    return _features_loss(layers, references, gram)


def statistics_loss(layers: Sequence[Layer], references: Sequence[Sequence[Layer]], *regions: object) -> Tensor:
    def moments(features: Tensor) -> Tensor:  # [1, N, D] -> [1, 2, D]
        return torch.stack([features.mean(1), features.std(1)], dim=1)

    return _features_loss(layers, references, moments)


def _features_loss(
    layers: Sequence[Layer], references: Sequence[Sequence[Layer]], summary: Callable[[Tensor], Tensor]
) -> Tensor:
    total = torch.zeros(())
    for n, layer in enumerate(layers):
        own = layer.v.transpose(1, 2).flatten(2)
        theirs = torch.cat([each[n].v.transpose(1, 2).flatten(2) for each in references], dim=1)
        total = total + (summary(own) - summary(theirs).detach()).abs().mean()
    return total


LOSSES: dict[str, Callable[..., Tensor]] = {
    "Attention Distillation": attention_distillation.style_loss,
    "AdaIN's statistics": statistics_loss,
    "Gram matrices": gram_loss,
}


@contextmanager
def loss(chosen: Callable[..., Tensor]) -> Iterator[None]:
    """The run of attention distillation with another loss in its place."""
    own = attention_distillation.style_loss
    attention_distillation.style_loss = chosen
    try:
        yield
    finally:
        attention_distillation.style_loss = own


def nearest(of: Tensor, among: Tensor) -> float:  # [1, 3, H, W] in 0..1 each
    """The mean rms distance of the patches of one picture to the nearest of another."""
    patches = F.unfold(of, PATCH, stride=EVERY)[0].T
    known = F.unfold(among, PATCH, stride=1)[0].T
    return float(torch.cdist(patches, known).amin(1).mean() / patches.shape[1] ** 0.5)


def sharpness(picture: Tensor) -> float:  # [1, 3, H, W]
    """The mean difference of neighbouring pixels."""
    down, right = picture.diff(dim=-2).abs().mean(), picture.diff(dim=-1).abs().mean()
    return float(down + right)


def textures(prior: Prior, folder: Path, own: dict[str, int], seed: int) -> None:
    """own: settings of a Way that are not the model's own."""
    rows: dict[str, dict[str, list[float]]] = {}
    way = replace(way_of(prior, "texture", StyleConfig()), **own)
    others = replace(way, borrow=0.0, finest=False)
    strips = []
    began = time.perf_counter()
    for name in TEN:
        picture = _tensor(draw(name))
        small = resize(picture, (prior.native, prior.native))
        row = [to_array(small)]
        rows[name] = {}
        for title, chosen in LOSSES.items():
            config = StyleConfig(way=way if chosen is LOSSES["Attention Distillation"] else others, seed=seed)
            with loss(chosen):
                made = style(prior, StyleRequest((picture,), texture=(prior.native, prior.native)), config).image
            rows[name][title] = [nearest(made, small), nearest(small, made), sharpness(made) / sharpness(small)]
            row.append(to_array(made))
            print(f"{name}, {title}: {rows[name][title]}, {time.perf_counter() - began:.0f} s so far", flush=True)
        strips.append(np.concatenate([np.pad(each, ((2, 2), (2, 2), (0, 0)), constant_values=255) for each in row], 1))
        folder.mkdir(parents=True, exist_ok=True)
        half = (len(TEN) + 1) // 2
        columns = [np.concatenate(part, 0) for part in (strips[:half], strips[half:]) if part]
        height = max(each.shape[0] for each in columns)
        columns = [
            np.pad(each, ((0, height - each.shape[0]), (0, 8), (0, 0)), constant_values=255) for each in columns
        ]  # fmt: skip
        Image.fromarray(np.concatenate(columns, 1)).save(folder / "styles.png", optimize=True)
        (folder / "styles.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        (folder / "styles.md").write_text(table(rows, way, time.perf_counter() - began), encoding="utf-8")


def table(rows: dict[str, dict[str, list[float]]], way: Way, seconds: float) -> str:
    titles = list(LOSSES)
    lines = [
        "# Textures: nearest patches", "",
        "Made by `python -m benchmarks.styles --only textures`.", "", (__doc__ or "").split("\n\n", 2)[2].strip(), "",
        f"{way.steps} steps of sampling, {way.inner} of distillation after each, the reference seen with {way.draws} "
        "noises at each, for all three losses. Smaller distances are better. "
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, no GPU, a machine that others used "
        f"too: {seconds / 60:.0f} minutes for all {len(rows) * len(titles)} textures.", "",
        "| reference | " + " | ".join(f"{title}: texture to reference | back | sharp" for title in titles) + " |",
        "|---|" + "---|" * (3 * len(titles)),
    ]  # fmt: skip
    for name, row in rows.items():
        best = [min(row[title][k] for title in titles) for k in (0, 1)]
        cells = []
        for title in titles:
            cells += [
                f"**{row[title][k]:.4f}**" if row[title][k] == best[k] else f"{row[title][k]:.4f}" for k in (0, 1)
            ]
            cells.append(f"{row[title][2]:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    means = [[np.mean([row[title][k] for row in rows.values()]) for k in range(3)] for title in titles]
    lines.append("| mean | " + " | ".join(f"{one:.4f} | {back:.4f} | {sharp:.2f}" for one, back, sharp in means) + " |")
    lines.append("")
    for title in titles[1:]:
        wins = [sum(row[titles[0]][k] < row[title][k] for row in rows.values()) for k in (0, 1)]
        lines.append(
            f"{titles[0]} is nearer than {title} on {wins[0]} of {len(rows)} references, and on {wins[1]} the way back."
        )
    wins = [
        sum(row[titles[0]][k] < min(row[title][k] for title in titles[1:]) for row in rows.values()) for k in (0, 1)
    ]
    lines.append(f"It is nearer than both on {wins[0]}, and on {wins[1]} the way back.")
    shown = ", ".join(titles)
    lines += ["", f"![The references, then {shown}](styles.png)", "", f"Left to right: the reference, {shown}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("gallery", "textures"))
    parser.add_argument("--steps", type=int, help="of each measured texture (default: the model's own)")
    parser.add_argument("--inner", type=int, help="of distillation after each of them (default: the model's own)")
    parser.add_argument("--draws", type=int, help="of the noise of the reference at each (default: the model's own)")
    parser.add_argument("--seed", type=int, default=0, help="of the measured textures")
    parser.add_argument("--case", default="", help="part of the name of the gallery's cases to make")
    parser.add_argument("--output", type=Path, default=ROOT / "docs")
    given = parser.parse_args()
    assert set(TEN) <= set(TEXTURES)
    prior = load_prior("builtin", device="cpu")
    if given.only != "textures":
        gallery(prior, given.output / "gallery" / "style", given.case)
    if given.only != "gallery":
        own = {name: value for name in ("steps", "inner", "draws") if (value := getattr(given, name)) is not None}
        textures(prior, given.output / "benchmarks", own, given.seed)


if __name__ == "__main__":
    main()
