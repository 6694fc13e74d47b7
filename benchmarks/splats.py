"""How long drawing Gaussian splats takes, forward and backward, in time, in memory, and beside what it must cost.

    python -m benchmarks.splats

Scenes, drawn through the front door (`sdsedit.render.splats.render`) by one camera with a view of 50 degrees, in three
colours (SH degree 0), and sent a random gradient for the image:

- cloud: Gaussians anywhere in the view at distances of 2 to 6, opacities from 0 to 1, and log-normal standard
  deviations of 1.5 pixels in the median: nine of ten are visible over 6 to 17 pixels, edge to edge;
- filling: the same, but of the size that every pixel sees as many of them as in the cloud of 100,000 on 512 x 512;
- fitted: near-opaque flat discs on a ground and on a ball that stands on it, as a scene fitted to photographs has them.

Medians and least times of many repeats. The reference (plain PyTorch) keeps every pixel and Gaussian for its backward:
it draws only the first few Gaussians, and its time is scaled up to all. gsplat appears where a GPU is.

The floor of a scene is what its arithmetic and its traffic cost at the rates that this machine reaches in a loop of
fused multiply-adds in the first cache, and in copying a large array, on as many threads: OPERATIONS for every 8 pixels
to which a Gaussian adds, and every number of the scene, the picture and the gradients once. All else counts as waste:
other pixels, projection, sorting, what stands between vector instructions.

How time grows with Gaussians and with pixels is told by processor time on one thread, which a busy machine changes
less. Memory is how much a fresh process grows at most while it draws the scene and finds its gradients, the gradients
themselves included.

First picture: in fresh processes, after `import torch`, from `import sdsedit.render.splats` to the first gradients,
with and without the compiled code of an earlier process.

Nothing else should run meanwhile: the load average is written down with the numbers.
Writes docs/benchmarks/splats.{md,json,png}. Linux (memory is read in /proc).
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from benchmarks.speed import ROOT, machine
from sdsedit.render.splats import render
from sdsedit.render.splats.reference import END, LEAST, MOST, project

OUT = ROOT / "docs" / "benchmarks"
PIXELS = 1.5  # standard deviation on the picture, the median
SCENES = (  # Gaussians, side of the picture, most milliseconds for a picture and for it and its gradients
    ("cloud", 10_000, 256, 6, 25),
    ("cloud", 10_000, 512, 15, 65),
    ("cloud", 100_000, 256, 40, 130),
    ("cloud", 100_000, 512, 75, 250),
    ("filling", 10_000, 256, 6, 25),
    ("filling", 10_000, 512, 15, 65),
    ("filling", 100_000, 256, 40, 130),
    ("fitted", 100_000, 256, 40, 130),
    ("fitted", 100_000, 512, 75, 250),
)
COUNTS = (3_000, 10_000, 30_000, 100_000, 300_000)  # Gaussians on 512 x 512
SIDES = (128, 256, 512, 1024, 2048)  # pixels, with 30,000 Gaussians
# Vector instructions that 8 pixels of one Gaussian take at the least, counted in the formulas of cpu.py with three
# colours and the depth (only forward); a division as the four that it keeps a unit busy for.
OPERATIONS = {"forward": 26, "backward": 42}
FIRST = """
import time, torch
start, processor = time.perf_counter(), time.process_time()
from sdsedit.render.splats import render
numbers = [x.requires_grad_() for x in (torch.rand(8, 3), torch.rand(8, 4), torch.rand(8, 3), torch.rand(8))]
K = torch.tensor([[[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]])
render(*numbers, torch.rand(8, 3), torch.eye(4)[None], K, 64, 64).image.sum().backward()
print(time.perf_counter() - start, time.process_time() - processor)
"""
MEMORY = """
import sys
from benchmarks.splats import draw, scene
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
draw(scene("cloud", 10, 16))
this = scene(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = kilobytes("VmRSS:")
draw(this)
print(1024 * (kilobytes("VmHWM:") - before))
"""


class Scene(NamedTuple):
    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    features: Tensor
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int


def scene(kind: str, count: int, side: int) -> Scene:
    """See the module's text; always the same one."""
    g = torch.Generator().manual_seed(count)
    focal = side / (2 * math.tan(math.radians(25)))
    K = torch.tensor([[[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]]])
    if kind == "fitted":
        means, quats, scales = _surfaces(count, g)
        opacities = torch.sigmoid(3 + torch.randn(count, generator=g))
    else:
        z = 2 + 4 * torch.rand(count, generator=g)
        means = torch.cat([(torch.rand(count, 2, generator=g) - 0.5) * (z * side / focal)[:, None], z[:, None]], dim=-1)
        pixels = PIXELS * (side / 512 * math.sqrt(100_000 / count) if kind == "filling" else 1)
        scales = pixels * torch.exp(0.5 * torch.randn(count, 3, generator=g)) * z[:, None] / focal
        quats, opacities = torch.randn(count, 4, generator=g), torch.rand(count, generator=g)
    return Scene(
        means, quats, scales, opacities, torch.rand(count, 3, generator=g), torch.eye(4)[None], K, side, side
    )  # fmt: skip


def _surfaces(count: int, g: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Discs, twice as wide as their distance: half of them on a square of 6 x 6 seen from above, half on a ball."""
    half = count // 2
    flat = 6 * torch.rand(half, 2, generator=g) - 3
    ground = torch.stack([flat[:, 0], torch.ones(half), flat[:, 1] + 5], dim=-1)
    normal = torch.nn.functional.normalize(torch.randn(count - half, 3, generator=g), dim=-1)
    ball = normal + torch.tensor([0.0, 0.0, 4.5])
    up = torch.cat([torch.tensor([[0.0, -1.0, 0.0]]).expand(half, -1), normal])
    # The turn from z to the normal, (1 + z . n, z x n), has the disc's thin axis for its third.
    quats = torch.stack([1 + up[:, 2], -up[:, 1], up[:, 0], torch.zeros(count)], dim=-1) + 1e-4
    apart = torch.cat([torch.full((half,), 6 / math.sqrt(half)), torch.full((count - half,), math.sqrt(12.6 / half))])
    scales = apart[:, None] * torch.exp(0.3 * torch.randn(count, 3, generator=g)) * torch.tensor([1.0, 1.0, 0.1])
    return torch.cat([ground, ball]), quats, scales


def draw(
    this: Scene, backend: Literal["reference", "cpu", "cuda"] = "cpu", watch: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Milliseconds forward and backward."""
    device = "cuda" if backend == "cuda" else "cpu"

    def clock() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return 1000 * watch()

    leaves = [x.to(device, copy=True).requires_grad_() for x in this[:5]]
    weight = torch.rand(1, this.height, this.width, 3, generator=torch.Generator().manual_seed(0)).to(device)
    before = clock()
    seen = render(
        leaves[0], leaves[1], leaves[2], leaves[3], leaves[4], this.viewmats.to(device), this.Ks.to(device),
        this.width, this.height, None, backend,
    )  # fmt: skip
    between = clock()
    seen.image.backward(weight)
    return between - before, clock() - between


def timed(
    this: Scene,
    backend: Literal["reference", "cpu", "cuda"],
    seconds: float,
    watch: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:
    """Again and again for about so many seconds, three times at least."""
    found = [draw(this, backend, watch) for _ in range(2)]  # compiled, and memory was asked for
    found.clear()
    end = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < end:
        found.append(draw(this, backend, watch))
    return found


def cpu_face() -> str:
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def row(kind: str, count: int, side: int, face: str, times: list[tuple[float, float]], scale: float = 1) -> dict:
    total = [scale * (forward + backward) for forward, backward in times]
    return {
        "kind": kind,
        "gaussians": count,
        "side": side,
        "face": face,
        "forward": scale * statistics.median(forward for forward, _ in times),
        "median": statistics.median(total),
        "least": min(total),
        "repeats": len(times),
        "scaled": scale,
    }


def faces(seconds: float) -> list[dict]:
    rows = []
    threads = torch.get_num_threads()
    for kind, count, side, _, _ in SCENES:
        this = scene(kind, count, side)
        for used in dict.fromkeys((threads, 1)):
            torch.set_num_threads(used)
            rows.append(row(kind, count, side, cpu_face(), timed(this, "cpu", seconds)))
        torch.set_num_threads(threads)
        if side == 256:
            few = 100
            part = Scene(*(x[:few] if isinstance(x, Tensor) and len(x) == count else x for x in this))  # pyright: ignore[reportArgumentType]
            rows.append(row(kind, count, side, "reference", timed(part, "reference", 0), count / few))
        if torch.cuda.is_available():
            rows.append(row(kind, count, side, "gsplat", timed(this, "cuda", seconds)))
    return rows


def sweep(seconds: float) -> list[dict]:
    """More Gaussians, and more pixels: processor time on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    jobs = [(kind, count, 512) for kind in ("cloud", "fitted") for count in COUNTS]
    jobs += [(kind, 30_000, side) for kind in ("cloud", "fitted") for side in SIDES if side != 512]
    rows = [row(*job, cpu_face(), timed(scene(*job), "cpu", seconds, time.process_time)) for job in jobs]
    torch.set_num_threads(threads)
    return rows


# --- the floor --------------------------------------------------------------------------------------------------------


def contributions(this: Scene) -> int:
    """In how many pixels a Gaussian adds to the picture, over all Gaussians."""
    m, sigma2, z = project(
        this.means.double(), this.quats.double(), this.scales.double(), this.viewmats[0].double(), this.Ks[0].double(),
        this.width, this.height,
    )  # fmt: skip
    order = z.float().argsort(stable=True)
    arrays = m[order].numpy(), sigma2[order].numpy(), this.opacities[order].double().numpy()
    return _count(*arrays, this.width, this.height, LEAST, MOST, END)


@numba.njit(cache=True)
def _count(m, sigma2, opacities, width, height, least, most, end):
    through, total = np.ones((height, width)), 0
    for i in range(len(m)):
        if opacities[i] < least:
            continue
        a, b, c = sigma2[i, 0, 0], sigma2[i, 0, 1], sigma2[i, 1, 1]
        reach, over = 2 * np.log(opacities[i] / least), 1 / (a * c - b * b)
        wide, high = np.sqrt(reach * a), np.sqrt(reach * c)
        for y in range(int(max(0, m[i, 1] - high)), int(min(height, max(0, m[i, 1] + high + 1)))):
            for x in range(int(max(0, m[i, 0] - wide)), int(min(width, max(0, m[i, 0] + wide + 1)))):
                dx, dy = x + 0.5 - m[i, 0], y + 0.5 - m[i, 1]
                square = (c * dx * dx - 2 * b * dx * dy + a * dy * dy) * over
                if square <= reach and through[y, x] > 0:
                    after = through[y, x] * (1 - min(most, opacities[i] * np.exp(-square / 2)))
                    if after > end:
                        through[y, x] = after
                        total += 1
                    else:
                        through[y, x] = 0
    return total


@numba.njit(nogil=True, fastmath={"contract"})
def _multiply_add(repeats, factor, more):
    x = np.full(512, more, np.float32)
    for _ in range(repeats):
        for i in range(512):
            y = x[i]
            for _ in range(32):
                y = y * factor + more
            x[i] = y
    return x[0]


def rates() -> tuple[float, float]:
    """Vector instructions and bytes a second, on all threads."""
    threads = torch.get_num_threads()
    repeats, vectors = 20_000, 512 // 8 * 32
    numbers = np.float32(0.5), np.float32(0.25)
    _multiply_add(1, *numbers)
    best = math.inf
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            for done in [pool.submit(_multiply_add, repeats, *numbers) for _ in range(threads)]:
                done.result()
            best = min(best, time.perf_counter() - start)
    one, other = torch.rand(32 * 2**20), torch.empty(32 * 2**20)
    copying = math.inf
    for _ in range(5):
        start = time.perf_counter()
        other.copy_(one)
        copying = min(copying, time.perf_counter() - start)
    return threads * repeats * vectors / best, 2 * 4 * len(one) / copying


def floor(this: Scene, vectors: float, bandwidth: float) -> dict[str, float]:
    """Milliseconds."""
    count, gaussians, pixels = contributions(this), len(this.means), this.width * this.height
    numbers = 4 * (14 * gaussians + 5 * pixels)  # the scene; image, alpha, depth
    forward = OPERATIONS["forward"] * count / 8 / vectors + numbers / bandwidth
    both = forward + OPERATIONS["backward"] * count / 8 / vectors + 2 * numbers / bandwidth
    return {"contributions": count, "forward": 1000 * forward, "both": 1000 * both}


# --- in processes of their own ----------------------------------------------------------------------------------------


def _run(code: str, *words: str, cache: str | None = None) -> list[float]:
    environment = {**os.environ, **({"NUMBA_CACHE_DIR": cache} if cache else {})}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return [float(word) for word in done.stdout.split()]


def first_picture(runs: int) -> dict[str, float]:
    """Median seconds, and processor seconds, with compiled code at hand, and once without."""
    with tempfile.TemporaryDirectory() as cache:
        compiling = _run(FIRST, cache=cache)
        kept = [statistics.median(each) for each in zip(*(_run(FIRST, cache=cache) for _ in range(runs)), strict=True)]
    return {
        "kept": kept[0],
        "kept, processor": kept[1],
        "compiling": compiling[0],
        "compiling, processor": compiling[1],
    }


# --- the report -------------------------------------------------------------------------------------------------------


def slope(rows: list[dict], kind: str, axis: str) -> float:
    """Of log time against log count (or pixels) between the two largest; 1 is linear."""
    last = sorted((r for r in rows if r["kind"] == kind), key=lambda r: r[axis])[-2:]
    power = 2 if axis == "side" else 1
    return math.log(last[1]["median"] / last[0]["median"]) / math.log(last[1][axis] / last[0][axis]) / power


def curves(rows: list[dict]) -> tuple[list[dict], list[dict]]:
    """Those of more Gaussians, and those of more pixels."""
    return [r for r in rows if r["side"] == 512], [r for r in rows if r["gaussians"] == 30_000]


def report(found: dict) -> str:
    first, swept = found["first picture"], found["sweep"]
    lines = ["# Splats", "", f"`python -m benchmarks.splats`: {', '.join(found['machine'])}.", ""]
    lines += [
        "Milliseconds to draw a picture, and to draw it and find the gradients of all numbers of all Gaussians. "
        "*Cloud*: anywhere in the view, nine of ten visible over 6 to 17 pixels, edge to edge. *Filling*: so large "
        "that every pixel sees as many as in the cloud of 100,000 on 512x512. *Fitted*: near-opaque discs on surfaces.",
        "",
        "| Gaussians | picture | renderer | forward | both, median | both, least | allowed | met |",
        "|---|---|---|---|---|---|---|---|",
    ]
    gates = {(kind, count, side): (forward, both) for kind, count, side, forward, both in SCENES}
    own = cpu_face()
    for r in found["scenes"]:
        allowed = met = ""
        if r["face"] == own:
            forward, both = gates[r["kind"], r["gaussians"], r["side"]]
            allowed = f"{forward} / {both}"
            met = "yes" if r["forward"] <= forward and r["median"] <= both else "**no**"
        face = r["face"] + (" (a few Gaussians, scaled)" if r["scaled"] != 1 else "")
        times = " | ".join(f"{r[name]:.{1 if r[name] < 100 else 0}f}" for name in ("forward", "median", "least"))
        lines.append(
            f"| {r['gaussians']:,} {r['kind']} | {r['side']}x{r['side']} | {face} | {times} | {allowed} | {met} |"
        )
    lines += [
        "",
        f"The floor: {OPERATIONS['forward']} vector instructions forward and {OPERATIONS['backward']} backward for "
        "every 8 pixels to which a Gaussian adds, and every number once, at the "
        f"{found['vectors'] / 1e9:.1f} thousand million instructions and {found['bandwidth'] / 1e9:.1f} GB a second "
        f"that {own.removeprefix('CPU, ')} of this machine reach. All else is above it: projection, sorting, pixels of "
        "a row that a Gaussian does not reach.",
        "",
        "| scene | picture | Gaussians in a pixel | floor, forward | share | floor, both | share | memory, both |",
        "|---|---|---|---|---|---|---|---|",
    ]
    mine = {(r["kind"], r["gaussians"], r["side"]): r for r in found["scenes"] if r["face"] == own}
    for each in found["floors"]:
        r = mine[each["kind"], each["gaussians"], each["side"]]
        lines.append(
            f"| {each['gaussians']:,} {each['kind']} | {each['side']}x{each['side']} "
            f"| {each['contributions'] / each['side'] ** 2:.1f} | {each['forward']:.1f} | "
            f"{each['forward'] / r['forward']:.0%} | {each['both']:.1f} | {each['both'] / r['median']:.0%} | "
            f"{each['memory'] / 2**20:.0f} MiB |"
        )
    by_count, by_side = curves(swept)
    lines += [
        "",
        "![time against Gaussians and against pixels](splats.png)",
        "",
        "Processor time on one thread, forward and backward, grows as a power of the number of Gaussians (on 512x512, "
        "from 100,000 to 300,000) and of pixels (30,000 Gaussians, from 1024x1024 to 2048x2048; those of the cloud "
        "keep their size in pixels, those of the fitted scene grow with the picture). 1 is linear:",
        "",
        "| | Gaussians | pixels |",
        "|---|---|---|",
        *(
            f"| {kind} | {slope(by_count, kind, 'gaussians'):.2f} | {slope(by_side, kind, 'side'):.2f} |"
            for kind in ("cloud", "fitted")
        ),
        "",
        "First picture and gradients of a process that has imported torch:",
        "",
        "| | seconds | processor seconds |",
        "|---|---|---|",
        f"| compiled code kept by an earlier process | {first['kept']:.2f} | {first['kept, processor']:.2f} |",
        f"| nothing kept: all is compiled | {first['compiling']:.1f} | {first['compiling, processor']:.1f} |",
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
        (left, by_count, "gaussians", "Gaussians on 512 x 512"),
        (right, by_side, "side", "pixels, 30,000 Gaussians"),
    ):
        for k, kind in enumerate(("cloud", "fitted")):
            mine = sorted((r for r in rows if r["kind"] == kind), key=lambda r: r[axis])
            x = [r[axis] ** 2 if axis == "side" else r[axis] for r in mine]
            y = [r["median"] for r in mine]
            axes.plot(x, y, "o-", color=f"C{k}", label=f"{kind}, forward and backward")
            axes.plot(x, [r["forward"] for r in mine], "o--", color=f"C{k}", linewidth=1, markersize=3)
            axes.plot(x, [y[-1] * each / x[-1] for each in x], ":", color=f"C{k}", linewidth=1)
        axes.plot([], [], "--", color="grey", linewidth=1, label="forward alone")
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
    facts = [*machine(), f"torch {torch.__version__}", f"Numba {numba.__version__}"]
    if torch.cuda.is_available():
        facts.append(torch.cuda.get_device_name())
    found = {"machine": facts, "first picture": first_picture(args.runs)}
    print(f"compiled in {found['first picture']['compiling']:.1f} s", flush=True)
    found["scenes"], found["sweep"] = faces(args.seconds), sweep(args.seconds / 2)
    found["vectors"], found["bandwidth"] = rates()
    found["floors"] = [
        {
            "kind": kind, "gaussians": count, "side": side,
            **floor(scene(kind, count, side), found["vectors"], found["bandwidth"]),
            "memory": _run(MEMORY, kind, str(count), str(side))[0],
        }
        for kind, count, side, _, _ in SCENES
    ]  # fmt: skip
    text = report(found)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "splats.json").write_text(json.dumps(found, indent=1) + "\n")
    (args.out / "splats.md").write_text(text)
    plot(found["sweep"], args.out / "splats.png")
    print(text)


if __name__ == "__main__":
    main()
