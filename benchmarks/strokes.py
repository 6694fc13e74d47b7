"""How long drawing strokes takes, forward and backward, and what the first picture of a process costs.

    python -m benchmarks.strokes

Strokes are single cubics 1.5 pixels wide, of random colours and opacities, drawn through the front door
(`sdsedit.render.strokes.render`) and sent a random gradient for their points, widths, colours and background:

- short: as DiffSketcher starts them, a random point, then three steps of at most 1/40 of the picture either way;
- long: four random points of the picture, so that a stroke crosses all of it.

Medians and least times of many repeats. The reference (plain PyTorch) keeps every pixel and chord for its backward: it
draws only the first few strokes, and its time is scaled up to all. CUDA appears where a GPU is.

How time grows with strokes and with pixels is told by processor time on one thread, which a busy machine changes less.

First picture: in fresh processes, after `import torch`, from `import sdsedit.render.strokes` to the first gradients,
with and without the compiled code of an earlier process.

Nothing else should run meanwhile: the load average is written down with the numbers.
Writes docs/benchmarks/strokes.{md,json,png}.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch

from benchmarks.speed import ROOT, machine
from sdsedit.render.strokes import Drawing, render, strokes

OUT = ROOT / "docs" / "benchmarks"
WIDTH = 1.5  # pixels
SCENES = (  # strokes, side of the picture, most milliseconds for a picture and its gradients
    ("short", 96, 224, 3.0),
    ("short", 512, 512, 45.0),
    ("short", 2000, 512, None),
    ("long", 96, 224, None),
    ("long", 512, 512, None),
    ("long", 2000, 512, None),
)
COUNTS = (125, 250, 500, 1000, 2000, 4000)  # strokes on 512 x 512
SIDES = (128, 256, 512, 1024, 2048)  # pixels, with 500 strokes
FIRST = """
import time, torch
start, processor = time.perf_counter(), time.process_time()
from sdsedit.render.strokes import render, strokes
points = torch.rand(1, 8, 4, 2).mul(64).requires_grad_()
render(strokes(points, torch.ones(1, 8, 2), torch.rand(1, 8, 4), torch.ones(1, 3)), 64, 64).sum().backward()
print(time.perf_counter() - start, time.process_time() - processor)
"""


def scene(kind: str, count: int, side: int) -> Drawing:
    """See the module's text; always the same one."""
    generator = torch.Generator().manual_seed(count)
    if kind == "long":
        points = torch.rand(1, count, 4, 2, generator=generator)
    else:
        start = torch.rand(1, count, 1, 2, generator=generator)
        steps = 0.05 * (torch.rand(1, count, 3, 2, generator=generator) - 0.5)
        points = torch.cat([start, start + steps.cumsum(2)], dim=2)
    colours = torch.rand(1, count, 4, generator=generator)
    return strokes(points * side, torch.full((1, count, 2), WIDTH), colours, torch.ones(1, 3))


def timed(
    drawing: Drawing,
    side: int,
    backend: Literal["reference", "cpu", "triton"],
    seconds: float,
    watch: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:
    """Milliseconds forward and backward, again and again for about so many seconds, three times at least."""
    device = "cuda" if backend == "triton" else "cpu"
    numbers = [x.to(device) for x in (drawing.points, drawing.widths, drawing.colours, drawing.background)]
    weight = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return watch()

    found: list[tuple[float, float]] = []
    end = math.inf
    while len(found) < 5 or clock() < end:
        leaves = [x.clone().requires_grad_() for x in numbers]
        before = clock()
        picture = render(Drawing(drawing.topology, *leaves), side, side, backend)
        between = clock()
        picture.backward(weight)
        found.append((1000 * (between - before), 1000 * (clock() - between)))
        if len(found) == 2:  # compiled, and memory was asked for
            end = clock() + seconds
    return found[2:]


def cpu_face() -> str:
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def row(kind: str, count: int, side: int, face: str, times: list[tuple[float, float]], scale: float = 1) -> dict:
    total = [scale * (forward + backward) for forward, backward in times]
    return {
        "kind": kind,
        "strokes": count,
        "side": side,
        "face": face,
        "forward": scale * statistics.median(forward for forward, _ in times),
        "backward": scale * statistics.median(backward for _, backward in times),
        "median": statistics.median(total),
        "least": min(total),
        "repeats": len(times),
        "scaled": scale,
    }


def faces(seconds: float) -> list[dict]:
    rows = []
    threads = torch.get_num_threads()
    for kind, count, side, _ in SCENES:
        drawing = scene(kind, count, side)
        for used in dict.fromkeys((threads, 1)):
            torch.set_num_threads(used)
            rows.append(row(kind, count, side, cpu_face(), timed(drawing, side, "cpu", seconds)))
        torch.set_num_threads(threads)
        if count <= 512:
            few = 8 if side < 512 else 2
            part = strokes(
                drawing.points.unflatten(1, (count, 4))[:, :few], drawing.widths[:, :few], drawing.colours[:, :few],
                drawing.background,
            )  # fmt: skip
            rows.append(row(kind, count, side, "reference", timed(part, side, "reference", 0), count / few))
        if torch.cuda.is_available() and find_spec("triton"):
            rows.append(row(kind, count, side, "CUDA", timed(drawing, side, "triton", seconds)))
    return rows


def sweep(seconds: float) -> list[dict]:
    """More strokes, and more pixels: processor time on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    jobs = [(kind, count, 512) for kind in ("short", "long") for count in COUNTS]
    jobs += [(kind, 500, side) for kind in ("short", "long") for side in SIDES if side != 512]
    rows = [row(*job, cpu_face(), timed(scene(*job), job[2], "cpu", seconds, time.process_time)) for job in jobs]
    torch.set_num_threads(threads)
    return rows


def first_picture(runs: int) -> dict[str, float]:
    """Median seconds, and processor seconds, with compiled code at hand, and once without."""

    def once(cache: str) -> tuple[float, float]:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
        done = subprocess.run(
            [sys.executable, "-c", FIRST], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        seconds, processor = done.stdout.split()
        return float(seconds), float(processor)

    with tempfile.TemporaryDirectory() as cache:
        compiling = once(cache)
        kept = [statistics.median(each) for each in zip(*(once(cache) for _ in range(runs)), strict=True)]
    return {
        "kept": kept[0],
        "kept, processor": kept[1],
        "compiling": compiling[0],
        "compiling, processor": compiling[1],
    }


def slope(rows: list[dict], kind: str, axis: str) -> float:
    """Of log time against log count (or pixels) between the two largest; 1 is linear."""
    last = sorted((r for r in rows if r["kind"] == kind), key=lambda r: r[axis])[-2:]
    power = 2 if axis == "side" else 1
    return math.log(last[1]["median"] / last[0]["median"]) / math.log(last[1][axis] / last[0][axis]) / power


def curves(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Those of more strokes, and those of more pixels."""
    return [r for r in rows if r["side"] == 512], [r for r in rows if r["strokes"] == 500]


def report(facts: list[str], rows: list[dict], swept: list[dict], first: dict[str, float]) -> str:
    lines = ["# Strokes", "", f"`python -m benchmarks.strokes`: {', '.join(facts)}.", ""]
    lines += [
        f"Milliseconds for single cubics, {WIDTH} pixels wide. *Short*: as DiffSketcher starts them. "
        "*Long*: across the whole picture.",
        "",
        "| strokes | picture | renderer | forward | backward | both, median | both, least | allowed | met |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    gates = {(kind, count, side): gate for kind, count, side, gate in SCENES}
    own = cpu_face()
    for r in rows:
        gate = gates[r["kind"], r["strokes"], r["side"]] if r["face"] == own else None
        allowed = "" if gate is None else f"{gate:.0f}"
        met = "" if gate is None else ("yes" if r["median"] <= gate else "**no**")
        face = r["face"] + (" (a few strokes, scaled)" if r["scaled"] != 1 else "")
        times = " | ".join(
            f"{r[name]:.{2 if r[name] < 100 else 0}f}" for name in ("forward", "backward", "median", "least")
        )
        lines.append(f"| {r['strokes']} {r['kind']} | {r['side']}x{r['side']} | {face} | {times} | {allowed} | {met} |")
    by_count, by_side = curves(swept)
    lines += [
        "",
        "![time against strokes and against pixels](strokes.png)",
        "",
        "Processor time on one thread grows as a power of the number of strokes (on 512x512, from 2,000 to 4,000) "
        "and of pixels (500 strokes, from 1024x1024 to 2048x2048). 1 is linear; a long thin stroke touches tiles in "
        "proportion to the picture's side, which is 0.5 of pixels:",
        "",
        "| | strokes | pixels |",
        "|---|---|---|",
        *(
            f"| {kind} | {slope(by_count, kind, 'strokes'):.2f} | {slope(by_side, kind, 'side'):.2f} |"
            for kind in ("short", "long")
        ),
        "",
        "First picture and gradients of a process that has imported torch:",
        "",
        "| | seconds | processor seconds | allowed | met |",
        "|---|---|---|---|---|",
        f"| compiled code kept by an earlier process | {first['kept']:.2f} | {first['kept, processor']:.2f} | 1 s | "
        f"{'yes' if first['kept'] < 1 else '**no**'} |",
        f"| nothing kept: all is compiled | {first['compiling']:.1f} | {first['compiling, processor']:.1f} | | |",
        "",
    ]
    return "\n".join(lines)


def plot(swept: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker

    by_count, by_side = curves(swept)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), constrained_layout=True, sharey=True)
    for axes, rows, axis, label in (
        (left, by_count, "strokes", "strokes on 512 x 512"),
        (right, by_side, "side", "pixels, 500 strokes"),
    ):
        for k, kind in enumerate(("short", "long")):
            mine = sorted((r for r in rows if r["kind"] == kind), key=lambda r: r[axis])
            x = [r[axis] ** 2 if axis == "side" else r[axis] for r in mine]
            y = [r["median"] for r in mine]
            axes.plot(x, y, "o-", color=f"C{k}", label=f"{kind} strokes")
            axes.plot(x, [y[-1] * each / x[-1] for each in x], ":", color=f"C{k}", linewidth=1)
        axes.plot([], [], ":", color="grey", linewidth=1, label="proportional")
        axes.set(xlabel=label, xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    left.set_ylabel("processor time on one thread (ms)")
    left.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of repeats for each number")
    parser.add_argument("--runs", type=int, default=5, help="fresh processes")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    facts = [*machine(), f"torch {torch.__version__}"]
    if torch.cuda.is_available():
        facts.append(torch.cuda.get_device_name())
    first = first_picture(args.runs)
    rows, swept = faces(args.seconds), sweep(args.seconds / 2)
    text = report(facts, rows, swept, first)
    args.out.mkdir(parents=True, exist_ok=True)
    found = {"machine": facts, "scenes": rows, "sweep": swept, "first picture": first}
    (args.out / "strokes.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "strokes.md").write_text(text)
    plot(swept, args.out / "strokes.png")
    print(text)


if __name__ == "__main__":
    main()
