"""The scores of an evaluation as a table, as JSON, as a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sdsedit.metrics import CLIP_R_THRESHOLDS, clip_auc, passing_means, starred, success_rates

# name in JSON, heading, whether more is better, digits
COLUMNS = (
    ("clip_t", "CLIP-T", True, 3),
    ("clip_i", "CLIP-I", True, 3),
    ("l1", "L1", False, 3),
    ("lpips", "LPIPS", False, 3),
    ("clip_r", "CLIP-R", True, 3),
    ("clip_auc", "CLIP-AUC", True, 3),
    ("l1_star", "L1*", False, 3),
    ("clip_i_star", "CLIP-I*", True, 3),
    ("direction", "direction", True, 3),
    ("psnr_outside", "PSNR outside (dB)", True, 1),
)
_MEANT = {
    "magicbrush": "CLIP-T with the edit's own description; CLIP-I, L1 and LPIPS with the dataset's result",
    "pie": "CLIP-T with the editing prompt; CLIP-I with the source picture; L1, LPIPS and PSNR with the source picture "
    "outside the dataset's mask",
}


def summaries(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry a method and type of edit ("" is all of them): how many, and each of COLUMNS; None: cannot be said."""
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        types = [type for type in dict.fromkeys(row["type"] for row in mine) if type]
        for type in ["", *types]:
            some = [row for row in mine if type in ("", row["type"])]
            found.append({"method": method, "type": type, "cases": len(some), **_numbers(some)})
    return found


def _numbers(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in ("clip_t", "clip_i", "l1", "lpips", "clip_r", "direction", "psnr_outside"):
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = statistics.fmean(values) if values else None
    ratio, _ = _beside(rows, "clip_r")
    found["clip_auc"] = clip_auc(ratio).item() if len(ratio) else None
    for name in ("l1", "clip_i"):
        ratio, values = _beside(rows, name)
        area = starred(ratio, values).item() if len(ratio) else math.nan
        found[f"{name}_star"] = None if math.isnan(area) else area  # no edit reaches 1.22
    return found


def _beside(rows: Sequence[dict[str, Any]], name: str) -> tuple[torch.Tensor, torch.Tensor]:  # [N] float64, twice
    """CLIP-R and another score of the rows that have both."""
    kept = [(row["clip_r"], row[name]) for row in rows if row["clip_r"] is not None and row[name] is not None]
    both = torch.tensor(kept, dtype=torch.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def markdown(title: str, kind: str, found: Sequence[dict[str, Any]], notes: Sequence[str]) -> str:
    """The table; a column that nothing could be said of says why in the notes."""
    heads = [f"{head} {'↑' if more else '↓'}" for _, head, more, _ in COLUMNS]
    lines = [f"# {title}", "", f"{_MEANT[kind][0].upper()}{_MEANT[kind][1:]}. "
             "CLIP-R, CLIP-AUC, L1* and CLIP-I* as LUSD (arXiv:2503.11054) has them.", ""]  # fmt: skip
    lines += [f"- {note}" for note in notes] + ([""] if notes else [])
    lines += [f"| method | edits | cases | {' | '.join(heads)} |", "|" + "---|" * (3 + len(heads))]
    for each in found:
        cells = ["" if each[name] is None else f"{each[name]:.{digits}f}" for name, _, _, digits in COLUMNS]
        lines.append(f"| {each['method']} | {each['type'] or 'all'} | {each['cases']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Share of edits above each CLIP-R, and what those leave alone; False: matplotlib is not installed, or there is
    nothing to show."""
    try:
        import matplotlib
    except ImportError:
        return False
    if not any(row["clip_r"] is not None for row in rows):
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    for k, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        mine = [row for row in rows if row["method"] == method]
        ratio, _ = _beside(mine, "clip_r")
        if len(ratio):
            axes[0].plot(CLIP_R_THRESHOLDS, success_rates(ratio), label=method.upper(), color=f"C{k}")
        for axis, name in ((axes[1], "l1"), (axes[2], "clip_i")):
            ratio, values = _beside(mine, name)
            if len(ratio):
                axis.plot(CLIP_R_THRESHOLDS, passing_means(ratio, values), label=method.upper(), color=f"C{k}")
    titles = (
        "share of edits with a higher CLIP-R",
        "their L1, lower leaves more alone",
        "their CLIP-I, higher keeps more",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xlabel="CLIP-R: how much nearer to the words", title=title)
        axis.grid(alpha=0.3)
    axes[0].set_ylim(-0.03, 1.03)
    axes[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return True
