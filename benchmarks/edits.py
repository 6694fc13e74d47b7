"""Edits whose truth is known: was it done, in the right place, with all else left alone, and how long did it take?

    python -m benchmarks.edits                       # every method, 12 cases of each kind of edit, one seed
    python -m benchmarks.edits --methods lusd dds --cases 4 --seeds 0 1 2

Source, target and the pixels that may change come from training/scenes.py; additions and removals use combinations of
subject, accessory and background that the model never saw.  The judge (training/judge.py) says what a result shows:

- done: the word that should change reads as the target's;
- exact: subject, colour, accessory and background all read as the target's;
- IoU: of the pixels that changed by more than 8 of 255 with those that should have;
- PSNR outside: of result against source where nothing should change, 99 dB for an exact copy;
- kept: share of those pixels that came back bit for bit.

Writes docs/benchmarks/edits.{json,md,png}.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdsedit.edit import Edit, EditConfig, edit
from sdsedit.guidance import METHODS, configured
from sdsedit.metrics import iou, psnr
from sdsedit.prior import load_prior
from training.judge import Judge, answers, load_judge
from training.scenes import EDIT_KINDS, EditKind, Scene, caption, drawable, edit_pair, edit_truth, render

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "docs" / "benchmarks"
CHANGED = {"add": "accessory", "remove": "accessory", "replace": "noun", "colour": "colour", "background": "background"}
FIELDS = ("done", "exact", "iou", "psnr_outside", "kept", "seconds")


def cases(kind: EditKind, count: int, judge: Judge, family: str = "fluent-flat") -> list[tuple[Scene, Scene]]:
    """The first `count` edits of a kind whose true source and target the judge itself reads right; always the same ones
    for one judge."""
    rng = np.random.default_rng([77, EDIT_KINDS.index(kind)])
    found: list[tuple[Scene, Scene]] = []
    while len(found) < count:
        pair = edit_pair(kind, rng)
        if all(drawable(scene, family) for scene in pair):
            pictures = torch.cat([as_tensor(render(scene, family).image) for scene in pair])
            if judge.read(pictures) == [answers(scene) for scene in pair]:
                found.append(pair)
    return found


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, 3] -> float32 [1, 3, H, W] in 0..1."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def score(kind: EditKind, source: Scene, target: Scene, result, judge, family: str) -> dict[str, float]:
    """The numbers of one result; see the module's docstring."""
    before, after = render(source, family), render(target, family)
    truth = torch.from_numpy(edit_truth(before, after))[None, None].float()
    original = as_tensor(before.image)
    edited = (result.image * 255).round() / 255
    read, right = judge.read(edited)[0], answers(target)
    changed = (edited - original).abs().amax(1, keepdim=True) > 8.5 / 255
    same = (edited == original).all(1, keepdim=True)
    return {
        "done": float(read[CHANGED[kind]] == right[CHANGED[kind]]),
        "exact": float(read == right),
        "iou": float(iou(changed.float(), truth)),
        "psnr_outside": float(psnr(edited, original, truth).clamp(max=99.0)),
        "kept": float(same[truth == 0].float().mean()),
        "seconds": result.seconds,
    }


def settings(name: str, seed: int, editing: Mapping[str, Mapping[str, Any]]) -> EditConfig:
    """A method with what suits the model; `lusd-plain` is LUSD without the redrawing at the end, `lusd-300` with the
    published number of steps, each so much smaller that the way is as long."""
    if name == "lusd-300":
        usual = configured("lusd", editing=editing)
        finer = replace(usual, steps=300, step_size=usual.step_size * usual.steps / 300)
        return EditConfig(method=finer, seed=seed)
    return EditConfig(method=name.removesuffix("-plain"), seed=seed, refine=0.0 if name.endswith("-plain") else None)


_loaded: list = []  # a worker's prior and judge, loaded once


def one_case(task: tuple[EditKind, int, Scene, Scene, tuple[str, ...], tuple[int, ...], str]) -> list[dict]:
    """Every method and seed on one case; runs in a worker with one thread."""
    kind, number, source, target, methods, seeds, family = task
    if not _loaded:
        torch.set_num_threads(1)
        _loaded.extend((load_prior("builtin"), load_judge(HERE / "judge.safetensors")))
    prior, judge = _loaded
    image = as_tensor(render(source, family).image)
    request, rows = Edit(target=caption(target), source=caption(source)), []
    for name in methods:
        for seed in seeds:
            result = edit(image, prior, request, settings(name, seed, prior.editing))
            row = {"kind": kind, "case": number, "method": name, "seed": seed, "target": request.target}
            rows.append(row | score(kind, source, target, result, judge, family))
    return rows


def run(
    methods: Sequence[str],
    first: int,
    count: int,
    seeds: Sequence[int],
    kinds: Sequence[EditKind],
    family: str,
    workers: int,
) -> list[dict]:
    """Cases first .. count - 1 of each kind."""
    judge = load_judge(HERE / "judge.safetensors")
    tasks = [
        (kind, number, source, target, tuple(methods), tuple(seeds), family)
        for kind in kinds
        for number, (source, target) in list(enumerate(cases(kind, count, judge, family)))[first:]
    ]
    rows: list[dict] = []
    with torch.multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, part in enumerate(pool.imap(one_case, tasks), start=1):
            rows += part
            print(f"{done}/{len(tasks)}  {part[0]['kind']}: {part[0]['target']}", flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: one line a method and kind of edit, means over cases and seeds."""
    lines = [
        "| method | edit | done | exact | IoU | PSNR outside (dB) | kept exactly | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        for kind in [*dict.fromkeys(row["kind"] for row in rows), "all"]:
            mine = [r for r in rows if r["method"] == method and kind in (r["kind"], "all")]
            mean = {name: statistics.fmean(r[name] for r in mine) for name in FIELDS}
            lines.append(
                f"| {method} | {kind} | {mean['done']:.2f} | {mean['exact']:.2f} | {mean['iou']:.2f} | "
                f"{mean['psnr_outside']:.1f} | {mean['kept']:.2f} | {mean['seconds']:.1f} |"
            )
    return "\n".join(lines)


def spread(rows: list[dict]) -> str:
    """Standard deviation over seeds of each method's mean over cases, where there were several seeds."""
    lines = ["| method | done | exact | PSNR outside (dB) |", "|---|---|---|---|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for name in ("done", "exact", "psnr_outside"):
            means = [
                statistics.fmean(r[name] for r in rows if r["method"] == method and r["seed"] == seed)
                for seed in dict.fromkeys(row["seed"] for row in rows)
            ]
            cells.append(f"{statistics.fmean(means):.3f} ± {statistics.stdev(means):.3f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(rows: list[dict], path: Path) -> None:
    """Success against what was left alone, a point a method, and success by kind of edit."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    methods = list(dict.fromkeys(row["method"] for row in rows))
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True)
    means = {
        method: tuple(
            statistics.fmean(r[name] for r in rows if r["method"] == method) for name in ("psnr_outside", "exact")
        )
        for method in methods
    }
    for rank, method in enumerate(sorted(methods, key=lambda method: means[method])):
        color = f"C{methods.index(method)}"
        left.scatter(*means[method], s=110 if method == "lusd" else 60, color=color, zorder=3)
        above = (0, 8) if rank % 2 else (0, -17)  # neighbours do not cover each other's names
        left.annotate(method.upper(), means[method], xytext=above, textcoords="offset points", color=color, ha="center")
    for k, method in enumerate(methods):
        mine = [r for r in rows if r["method"] == method]
        shares = [statistics.fmean(r["done"] for r in mine if r["kind"] == kind) for kind in kinds]
        right.bar(
            np.arange(len(kinds)) + (k - len(methods) / 2 + 0.5) * 0.8 / len(methods),
            shares,
            0.8 / len(methods),
            label=method.upper(),
        )
    left.set(
        xlabel="PSNR outside the edit (dB), higher leaves more alone",
        ylabel="share of edits that read exactly as asked",
        ylim=(-0.03, 1.1),
    )
    left.margins(x=0.2)
    left.grid(alpha=0.3)
    right.set_xticks(np.arange(len(kinds)), kinds)
    right.set(ylabel="share of edits done", ylim=(0, 1.2))
    right.legend(ncols=5, fontsize=8, loc="upper center")
    right.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", nargs="+", default=["lusd", "lusd-plain", *(name for name in METHODS if name != "lusd")]
    )
    parser.add_argument("--kinds", nargs="+", default=list(EDIT_KINDS), choices=EDIT_KINDS)
    parser.add_argument("--cases", type=int, default=12, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="leave out the cases before this one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--family", default="fluent-flat", help="fluent-flat, or noto-v1 for art that no training saw")
    parser.add_argument("--name", default="edits")
    args = parser.parse_args()
    started = time.perf_counter()
    rows = run(args.methods, args.first, args.cases, args.seeds, args.kinds, args.family, args.workers)
    OUT.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks.edits", *sys.argv[1:]])
    text = (
        f"# Edits with a known truth\n\n`{command}`, built-in model, {args.family} art, "
        f"cases {args.first} to {args.cases - 1} of each kind, seeds {', '.join(map(str, args.seeds))}; "
        f"{args.workers} workers of one thread on {platform.processor() or platform.machine()}, "
        f"torch {torch.__version__}, {(time.perf_counter() - started) / 60:.0f} minutes in all.\n\n"
        f"![success against background PSNR]({args.name}.png)\n\n{table(rows)}\n"
    )
    if len(args.seeds) > 1:
        text += f"\nOver seeds (mean ± standard deviation of the means over cases):\n\n{spread(rows)}\n"
    (OUT / f"{args.name}.json").write_text(json.dumps(rows, indent=0) + "\n")
    (OUT / f"{args.name}.md").write_text(text)
    plot(rows, OUT / f"{args.name}.png")
    print(text)


if __name__ == "__main__":
    main()
