"""Splat scenes edited by words, on the two scenes that are shipped: does attention find the named part, and is the edit
what was asked, where it was asked, and nowhere else?

    python -m benchmarks.splat_edits             # docs/benchmarks/splat_edits.md, docs/gallery/splats
    python -m benchmarks.splat_edits --only localisation
    python -m benchmarks.splat_edits --only edits --names crown-on-apple

Localisation: the weights at 0.4 against the labels that the scenes carry (their Gaussians are labelled by the distance
to the solids that they were fitted to), seen from cameras that the search did not have. Baselines: one look without the
closer one, no smoothing over neighbours, and hits counted instead of alpha T, as GaussianEditor's code does.

Edits: views from cameras that the edit never worked with, read by a judge (training.judge --solids) that learnt from
drawn solids and never from splats.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdsedit.camera import Cameras, orbit
from sdsedit.guidance.lusd import LUSD
from sdsedit.io.splats import Splats, read
from sdsedit.prior import load_prior
from sdsedit.prior.base import Prior
from sdsedit.render.splats.reference import END, LEAST, project
from sdsedit.representations.splats import Scene, pictures
from sdsedit.request import Edit, encode_prompts, words_to_find
from sdsedit.splats.change import SplatConfig, SplatResult, change, views_of
from sdsedit.splats.files import before_and_after, orbit_film
from sdsedit.splats.locate import THRESHOLD, bounds, closer, locate, smooth
from training.judge import SOLID_QUESTIONS, Judge, load_judge

ROOT = Path(__file__).resolve().parents[1]
SCENES = ROOT / "assets" / "splats"
DOCS = ROOT / "docs" / "benchmarks"
GALLERY = ROOT / "docs" / "gallery" / "splats"
WORDS = {
    "still-life": "an apple, a pear and a cup on a wooden table",
    "snowman": "a snowman wearing a top hat and a balloon on snow",
}
PARTS = (
    ("still-life", "apple"),
    ("still-life", "pear"),
    ("still-life", "cup"),
    ("snowman", "snowman"),
    ("snowman", "top hat"),
    ("snowman", "balloon"),
)


@dataclass(frozen=True)
class Case:
    """An edit, and what the judge should read where it happened."""

    name: str
    scene: str
    target: str
    part: str  # whose middle the judge looks at
    reads: dict[str, str]
    kind: str | None = None


CASES = (
    Case("crown-on-apple", "still-life", "an apple wearing a crown, a pear and a cup on a wooden table", "apple",
         {"noun": "apple", "accessory": "crown"}),
    Case("purple-apple", "still-life", "a purple apple, a pear and a cup on a wooden table", "apple",
         {"noun": "apple", "colour": "purple"}),
    Case("no-cup", "still-life", "an apple and a pear on a wooden table", "cup", {"noun": "no cup"}),
    Case("table-to-grass", "still-life", "an apple, a pear and a cup on grass", "apple",
         {"background": "grass"}, "restyle"),
    Case("balloon-to-pear", "snowman", "a snowman wearing a top hat and a pear on snow", "balloon", {"noun": "pear"}),
    Case("blue-balloon", "snowman", "a snowman wearing a top hat and a blue balloon on snow", "balloon",
         {"noun": "balloon", "colour": "blue"}),
    Case("no-balloon", "snowman", "a snowman wearing a top hat on snow", "balloon", {"noun": "no balloon"}),
    Case("snow-to-sand", "snowman", "a snowman wearing a top hat and a balloon on sand", "snowman",
         {"background": "sand"}, "restyle"),
)  # fmt: skip

BACKGROUND = torch.tensor(SplatConfig.background)
STRIP = ("purple-apple", "table-to-grass", "no-cup", "crown-on-apple")


def load(name: str) -> tuple[Splats, dict[str, int]]:
    """A shipped scene, and the numbers of its parts by name; `top hat on snowman` is the top hat."""
    splats = read(SCENES / f"{name}.ply")
    line = next(comment for comment in splats.comments if comment.startswith("part 0"))
    names = dict(re.findall(r"(\d+) ([^,]+)", line.removeprefix("part ")))
    return splats, {name.split(" on ")[0]: int(number) for number, name in names.items()}


def held_out_cameras(scene: Scene, size: int, count: int = 8) -> Cameras:
    """An orbit between the ones that an edit works with: other angles, other elevations."""
    middle = scene.means.median(0).values
    reach = float((scene.means - middle).norm(dim=1).quantile(0.98))
    return orbit(middle, 2.6 * reach, (5.0, 20.0, 45.0), count, size, size, fov=45.0, start=11.0)


# --- localisation -----------------------------------------------------------------------------------------------------


@numba.njit(cache=True)
def _hits(means, inverses, opacities, order, mask, found, total):
    """For every Gaussian the pixels that it reaches (alpha at least 1/255, light left), and those in the mask."""
    height, width = mask.shape
    through = np.ones((height, width), np.float32)
    for n in range(len(order)):
        i = order[n]
        a, b, c = inverses[i, 0, 0], inverses[i, 0, 1], inverses[i, 1, 1]
        det = a * c - b * b
        if det <= 0 or opacities[i] < LEAST:
            continue
        most = 2 * math.log(opacities[i] / LEAST)
        rx, ry = math.sqrt(most * c / det), math.sqrt(most * a / det)
        for y in range(max(0, int(means[i, 1] - ry)), min(height, int(means[i, 1] + ry) + 2)):
            for x in range(max(0, int(means[i, 0] - rx)), min(width, int(means[i, 0] + rx) + 2)):
                u, v = x + 0.5 - means[i, 0], y + 0.5 - means[i, 1]
                alpha = min(0.999, opacities[i] * math.exp(-0.5 * (a * u * u + 2 * b * u * v + c * v * v)))
                if alpha < LEAST or through[y, x] <= END:
                    continue
                total[i] += 1
                found[i] += mask[y, x]
                through[y, x] *= 1 - alpha


def counted(scene: Scene, cameras: Cameras, maps: Tensor) -> Tensor:  # [V, 1, H, W] -> [N]
    """The share of a Gaussian's hits that fall on the mask, every pixel that it reaches being one hit."""
    found, total = np.zeros(len(scene)), np.zeros(len(scene))
    for k in range(len(cameras)):
        m, sigma, z = project(*scene.shape[:3], cameras.viewmats[k], cameras.Ks[k], cameras.width, cameras.height)
        order = z.argsort()
        order = order[z[order] > 0.01]
        inverse = torch.linalg.inv(sigma)
        arrays = (each.double().numpy() for each in (m, inverse, scene.shape[3]))
        _hits(*arrays, order.numpy(), (maps[k, 0] >= 0.5).double().numpy(), found, total)
    return torch.from_numpy(found / np.maximum(total, 1)).float()


def seen(scene: Scene, chosen: Tensor, cameras: Cameras) -> Tensor:  # [N] bool -> [V, H, W] bool
    flags = chosen.float()[:, None]
    return torch.cat([scene.paint(flags, cameras[k]) for k in range(len(cameras))])[..., 0] > 0.5


def iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


@torch.no_grad()
def localisation(prior: Prior) -> list[dict[str, object]]:
    rows = []
    for name, part in PARTS:
        splats, numbers = load(name)
        scene = Scene.of(splats)
        truth = torch.from_numpy(splats.extra["part"].astype(np.int64)) == numbers[part]
        prompts = encode_prompts(prior, Edit(target=WORDS[name]), (), "target", [])
        request = Edit(target=WORDS[name], words=(part,))
        words, _ = words_to_find(prior, request, LUSD(), [])
        cameras = views_of(scene, None, prior, SplatConfig())
        working = cameras[[k for k in range(len(cameras)) if k % 4 != 3]]
        held = held_out_cameras(scene, 256)
        true = seen(scene, truth, held)

        def score(weight: Tensor, scene=scene, held=held, true=true, truth=truth) -> tuple[float, float]:
            chosen = weight >= THRESHOLD
            return iou(seen(scene, chosen, held), true), iou(chosen, truth)

        def place(looks: int, smoothing: bool, scene=scene, working=working, prompts=prompts, words=words):
            generator = torch.Generator().manual_seed(0)
            return locate(
                scene, working, BACKGROUND, prior, prompts.target, words.tokens, generator, looks, smoothing
            )  # fmt: skip

        started = time.perf_counter()
        ours = place(2, True)
        seconds = time.perf_counter() - started
        row: dict[str, object] = {"scene": name, "part": part, "seconds": seconds}
        row["ours"], row["Gaussians"] = score(ours.weight)
        row["no smoothing"] = score(place(2, False).weight)[0]
        row["one look"] = score(place(1, True).weight)[0]
        row["hits"] = score(smooth(scene, counted(scene, ours.cameras, ours.maps), ours.confidence))[0]
        row["hits, no smoothing"] = score(counted(scene, ours.cameras, ours.maps))[0]
        rows.append(row)
        print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return rows


# --- edits ------------------------------------------------------------------------------------------------------------


def close_ups(scene: Scene, rows: Tensor, size: int = 128, count: int = 8) -> Cameras:
    """Held-out cameras that look at the middle of some rows, these half as high as the picture."""
    middle, reach = bounds(scene.means, rows.float())
    far = held_out_cameras(scene, size, count)
    return closer(far, middle, 1.25 * reach, fill=0.6)


@torch.no_grad()
def reading(judge: Judge, scene: Scene, cameras: Cameras, wanted: dict[str, str]) -> dict[str, float]:
    """The share of the views in which the judge reads each answer, and all of them; "no cup" is any but a cup."""
    views = pictures(scene, cameras, torch.ones(3))

    def fits(answer: str, value: str) -> bool:
        return answer != value.removeprefix("no ") if value.startswith("no ") else answer == value

    read = [{name: fits(answer[name], value) for name, value in wanted.items()} for answer in judge.read(views)]
    shares = {name: float(np.mean([each[name] for each in read])) for name in wanted}
    shares["all"] = float(np.mean([all(each.values()) for each in read]))
    return shares


def run_case(case: Case, prior: Prior, judge: Judge, seed: int = 0) -> tuple[dict[str, object], Splats, SplatResult]:
    splats, numbers = load(case.scene)
    request = Edit(target=case.target, source=WORDS[case.scene])
    result = change(splats, prior, request, SplatConfig(kind=case.kind, seed=seed))
    before, after = Scene.of(splats), Scene.of(result.splats)
    rows = torch.from_numpy(splats.extra["part"].astype(np.int64)) == numbers[case.part]
    cameras = close_ups(before, rows)
    row: dict[str, object] = {
        "name": case.name,
        "scene": case.scene,
        "target": case.target,
        "kind": result.kind,
        "kept": result.kept,
        "changed": result.changed,
        "added": result.added,
        "removed": result.removed,
        "max_change_outside": result.max_change_outside,
        "background_psnr": result.background_psnr,
        "before": reading(judge, before, cameras, case.reads)["all"],
        "after": reading(judge, after, cameras, case.reads)["all"],
        "seconds": result.seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    return row, splats, result


def show(case: Case, splats: Splats, result: SplatResult) -> None:
    """Before, weights and after from three held-out views; an orbit of both as a film."""
    GALLERY.mkdir(parents=True, exist_ok=True)
    cameras = held_out_cameras(Scene.of(splats), 288, 6)[[0, 2, 4]]
    sheet = before_and_after(splats, result.splats, result.weight, THRESHOLD, cameras)
    Image.fromarray(sheet).save(GALLERY / f"{case.name}.png", optimize=True)
    (GALLERY / f"{case.name}.mp4").write_bytes(orbit_film([splats, result.splats], ".mp4", side=256, frames=72))


def strip() -> None:
    """The first column of some sheets side by side: before, weights, after; for the front page."""
    sheets = [Image.open(GALLERY / f"{name}.png") for name in STRIP]
    side = sheets[0].width // 3
    page = Image.new("RGB", (side * len(sheets), sheets[0].height), "white")
    for k, sheet in enumerate(sheets):
        page.paste(sheet.crop((0, 0, side, sheet.height)), (side * k, 0))
    page.save(GALLERY / "strip.png", optimize=True)


# --- the page ---------------------------------------------------------------------------------------------------------


def write_page(parts: list[dict], edits: list[dict]) -> None:
    lines = [
        "# Editing splat scenes",
        "",
        "`python -m benchmarks.splat_edits`, built-in model, two CPU cores, seed 0.",
        "",
    ]
    if parts:
        columns = ("ours", "no smoothing", "one look", "hits", "hits, no smoothing")
        lines += [
            "## Does attention find the part?",
            "",
            "Intersection over union with the labels, on eight held-out views at 256 pixels, weights at 0.4; in the",
            "last column of the Gaussians themselves. *Hits*: pixels counted, not alpha T, as public code does.",
            "",
            "| Scene | Words | " + " | ".join(columns) + " | ours, Gaussians | seconds |",
            "|---|---|" + "---|" * (len(columns) + 2),
        ]
        for row in parts:
            cells = " | ".join(f"{row[name]:.2f}" for name in columns)
            lines.append(
                f"| {row['scene']} | {row['part']} | {cells} | {row['Gaussians']:.2f} | {row['seconds']:.0f} |"
            )
        means = " | ".join(f"{np.mean([row[name] for row in parts]):.2f}" for name in columns)
        lines += [f"| | *mean* | {means} | {np.mean([row['Gaussians'] for row in parts]):.2f} | |", ""]
    if edits:
        lines += [
            "## Is the edit what was asked, and nowhere else?",
            "",
            "*Reads*: share of eight held-out close-ups in which the judge reads all that was asked, before and",
            "after. *Outside*: the largest change of any number of a Gaussian that the edit does not own, and the",
            "PSNR of held-out views where no such Gaussian is seen. Seconds: in the renderer, in the model, the rest.",
            "",
            "| Edit | kind | reads before | reads after | kept | changed | new | gone | outside | dB | seconds | MB |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in edits:
            s = row["seconds"]
            lines.append(
                f"| [{row['name']}](../gallery/splats/{row['name']}.png): {row['target']} | {row['kind']} "
                f"| {row['before']:.2f} | {row['after']:.2f} | {row['kept']} | {row['changed']} | {row['added']} "
                f"| {row['removed']} | {row['max_change_outside']:g} | {min(row['background_psnr'], 99):.0f} "
                f"| {s['all']:.0f} = {s['renderer']:.0f} + {s['model']:.0f} + {s['rest']:.0f} | {row['peak_mb']:.0f} |"
            )
        lines.append("")
    (DOCS / "splat_edits.md").write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("localisation", "edits"))
    parser.add_argument("--names", nargs="*", choices=[case.name for case in CASES], help="of the edits")
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    prior = load_prior(args.model)
    path = DOCS / "splat_edits.json"

    def note(**news: list[dict]) -> None:
        """Into the file at once, beside what other runs put there; rows of one name are the last run's."""
        known = json.loads(path.read_text()) if path.exists() else {"localisation": [], "edits": []}
        for table, rows in news.items():
            fresh = {(row.get("name"), row.get("part")) for row in rows}
            known[table] = [row for row in known[table] if (row.get("name"), row.get("part")) not in fresh] + rows
        order = [case.name for case in CASES]
        known["edits"] = sorted(
            (row for row in known["edits"] if row["name"] in order), key=lambda row: order.index(row["name"])
        )
        path.write_text(json.dumps(known, indent=1) + "\n")
        write_page(known["localisation"], known["edits"])

    if args.only != "edits":
        note(localisation=localisation(prior))
    if args.only != "localisation":
        judge = load_judge(ROOT / "benchmarks" / "solids_judge.safetensors", SOLID_QUESTIONS)
        for case in CASES:
            if args.names and case.name not in args.names:
                continue
            row, splats, result = run_case(case, prior, judge, args.seed)
            show(case, splats, result)
            print(row, flush=True)
            note(edits=[row])
        if not args.names:
            strip()


if __name__ == "__main__":
    main()
