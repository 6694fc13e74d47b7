"""What grows with what: time and memory of each part of an edit, beside one pass of the network.

    python -m benchmarks.curves

- resolution: one pass of the network (two rows, one of them listened to) on latents of more and more cells, and the
  autoencoder there and back;
- words: the same pass on the native latent while it listens for 1 to 16 words;
- strokes, Gaussians, views: a picture of so many and its gradients, 128 x 128 pixels, the built-in model's own size.

A part and the pass of the network on the native latent take turns, part, pass, part, pass, ..., and what is told is
the ratio of their medians: whatever else the machine does hits both alike. Memory is how much a fresh process grows at
most while it does the part twice, what it had imported and loaded not counted.

The order of growth is the slope between the last two points, both axes logarithmic: 1 is in proportion, 2 with the
square. Writes docs/benchmarks/curves.{md,json,png}. Linux (memory is read in /proc).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.speed import OUT, ROOT, TARGET, WORD, machine

if TYPE_CHECKING:
    from sdsedit.prior import UNetPrior

SIDE = 128  # pixels
CURVES: dict[str, tuple[str, tuple[int, ...]]] = {
    "network": ("latent cells", (256, 576, 1024, 2304, 4096)),
    "autoencoder": ("latent cells", (256, 576, 1024, 2304, 4096)),
    "words": ("words listened for", (1, 2, 4, 8, 16)),
    "strokes": ("strokes", (16, 64, 256, 1024, 4096)),
    "Gaussians": ("Gaussians", (1_000, 5_000, 20_000, 100_000)),
    "views": ("views of 20,000 Gaussians", (1, 2, 4, 8, 16)),
}
MEMORY = """
import sys
from benchmarks.curves import part
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
run = part(sys.argv[1], int(sys.argv[2]))
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kilobytes("VmRSS:")
run(), run()
print(1024 * (kilobytes("VmHWM:") - before))
"""


def part(name: str, count: int) -> Callable[[], object]:
    """What is timed; loading, encoding the words and placing the strokes is done before."""
    import torch

    g = torch.Generator().manual_seed(count)
    if name in ("network", "words", "autoencoder"):
        from sdsedit.prior import load_prior

        prior = load_prior("builtin", device="cpu")
        if name == "autoencoder":
            side = prior.factor * math.isqrt(count)
            picture = torch.rand(1, 3, side, side, generator=g)
            return torch.inference_mode()(lambda: prior.decode(prior.encode(picture)))
        cells, words = (count, 1) if name == "network" else ((prior.native // prior.factor) ** 2, count)
        return network_pass(prior, math.isqrt(cells), words)
    if name == "strokes":
        from benchmarks.strokes import scene
        from sdsedit.render.strokes import Drawing, render

        drawing = scene("short", count, SIDE)
        numbers = [drawing.points, drawing.widths, drawing.colours, drawing.background]
        weight = torch.rand(1, 3, SIDE, SIDE, generator=g)

        def draw_strokes() -> None:
            leaves = [x.clone().requires_grad_() for x in numbers]
            render(Drawing(drawing.topology, *leaves), SIDE, SIDE, "cpu").backward(weight)

        return draw_strokes
    from benchmarks.splats import Scene, draw
    from benchmarks.splats import scene as splat_scene

    views, gaussians = (count, 20_000) if name == "views" else (1, count)
    this = splat_scene("cloud", gaussians, SIDE)
    one = Scene(*this[:5], this.viewmats, this.Ks, SIDE, SIDE)
    return lambda: [draw(one) for _ in range(views)]  # as the engine draws them: a view a step, and of a sheet in turn


def network_pass(prior: UNetPrior, side: int, words: int) -> Callable[[], object]:
    """Two rows on side x side latent cells, the first listened to for so many words, as a step of LUSD does."""
    import torch

    from sdsedit.attention.probe import AttentionProbe
    from sdsedit.attention.words import find_words

    z = torch.randn(2, prior.channels, side, side, generator=torch.Generator().manual_seed(side)).to(prior.device)
    t = torch.full((2,), 0.5, device=prior.device)
    text = prior.encode_text([TARGET, "a cat on grass"])
    first = find_words(prior.tokenize, TARGET, [WORD]).tokens
    # More words than the prompt has: neighbouring positions stand for them; the probe asks only where, not what.
    tokens = first if words == 1 else tuple(range(1, 1 + words))
    probe = AttentionProbe(tokens, slice(0, 1))
    return torch.inference_mode()(lambda: prior.predict(z, t, text, probe))


def milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - start)


def measure(name: str, count: int, unit: Callable[[], object], repeats: int) -> dict[str, Any]:
    run = part(name, count)
    run(), unit()  # compiled, and memory was asked for
    pairs = [(milliseconds(run), milliseconds(unit)) for _ in range(repeats)]
    mine, its = (statistics.median(each) for each in zip(*pairs, strict=True))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, name, str(count)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = {"part": name, "count": count, "ms": mine, "passes": mine / its, "bytes": float(done.stdout)}
    print(f"{name} {count}: {mine:.1f} ms, {found['passes']:.2f} passes, {found['bytes'] / 1e6:.0f} MB", flush=True)
    return found


def slope(rows: list[dict[str, Any]], what: str) -> float:
    a, b = rows[-2:]
    return math.log(max(b[what], 1) / max(a[what], 1)) / math.log(b["count"] / a["count"])


def table(rows: list[dict[str, Any]], facts: list[str], unit: float) -> str:
    lines = ["# What grows with what", ""]
    lines += [f"`python -m benchmarks.curves`, the built-in model: {', '.join(facts)}.", ""]
    lines += [
        "One *pass* is the network on its native latent of 32 x 32 cells, two rows, one listened to for one word: "
    ]
    lines[-1] += (
        f"{unit:.0f} ms in the median here. A step of LUSD is one pass. Times are ratios of medians taken in turns."
    )
    lines += ["", "![Time and memory against size](curves.png)", ""]
    lines += ["| part | of | passes | milliseconds | memory (MB) |", "|---|---|---|---|---|"]
    for row in rows:
        of = f"{row['count']:,} {CURVES[row['part']][0]}"
        lines.append(f"| {row['part']} | {of} | {row['passes']:.2f} | {row['ms']:.1f} | {row['bytes'] / 1e6:.0f} |")
    lines += ["", "Order of growth at the upper end (1: in proportion, 2: with the square):", ""]
    lines += ["| part | time | memory |", "|---|---|---|"]
    orders = {}
    for name in CURVES:
        mine = [row for row in rows if row["part"] == name]
        orders[name] = math.log(mine[-1]["ms"] / mine[-2]["ms"]) / math.log(mine[-1]["count"] / mine[-2]["count"])
        lines.append(f"| {name} | {orders[name]:.2f} | {slope(mine, 'bytes'):.2f} |")
    steepest = max((name for name in orders if name != "network"), key=lambda name: orders[name])
    lines += [
        "",
        f"The steepest beside the network ({orders['network']:.2f}) is the {steepest} ({orders[steepest]:.2f}).",
        "A step of a picture's edit is one pass and no autoencoder, of a sketch one pass, the strokes and the encoder",
        "with its gradients, of a scene one pass, one view and the encoder. Most of the memory of strokes and of",
        "Gaussians is Numba and what it loads.",
    ]
    return "\n".join([*lines, ""])


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = plt.subplots(2, len(CURVES), figsize=(3.1 * len(CURVES), 5.6), sharey="row")
    for column, (name, (unit, _)) in enumerate(CURVES.items()):
        mine = [row for row in rows if row["part"] == name]
        counts = [row["count"] for row in mine]
        for line, values, label in (
            (0, [row["passes"] for row in mine], "time, passes of the network"),
            (1, [max(row["bytes"] / 1e6, 0.1) for row in mine], "memory, MB"),
        ):
            ax = axes[line][column]
            ax.loglog(counts, values, "o-", color="#c2410c" if line == 0 else "#1d4ed8")
            ax.grid(alpha=0.3)
            ax.set_xticks(counts, [f"{n // 1000}k" if n >= 1000 and n % 1000 == 0 else str(n) for n in counts])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_locator(NullLocator())
            ax.tick_params(axis="x", labelsize=8)
            if line == 0:
                ax.axhline(1, color="#666", lw=1, ls="--")
                ax.set_title(name)
            else:
                ax.set_xlabel(unit)
            if column == 0:
                ax.set_ylabel(label)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="of each part, in turns with a pass of the network")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    facts = machine()

    import torch

    from sdsedit.prior import load_prior

    facts += [f"torch {torch.__version__}", f"{torch.get_num_threads()} threads"]
    prior = load_prior("builtin", device="cpu")
    unit = network_pass(prior, prior.native // prior.factor, 1)
    rows = [measure(name, count, unit, args.repeats) for name, (_, counts) in CURVES.items() for count in counts]
    unit_ms = statistics.median(row["ms"] / row["passes"] for row in rows)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "curves.json").write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")
    (args.out / "curves.md").write_text(table(rows, facts, unit_ms))
    plot(rows, args.out / "curves.png")
    print(table(rows, facts, unit_ms))


if __name__ == "__main__":
    main()
