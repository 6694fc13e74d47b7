"""What a batch costs: jobs a minute with one and two workers, pictures together, and the queue's own share.

    python -m benchmarks.batch                 # all of it, with the built-in model; writes docs/benchmarks/batch.md
    python -m benchmarks.batch --queue 10000   # the queue alone
    python -m benchmarks.batch --together 8    # edits together against one at a time, alone

Nothing here is random but for the machine: run it on a quiet one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sdsedit.batch import inputs, local
from sdsedit.batch.manifest import read_manifest
from sdsedit.batch.store import Store
from sdsedit.batch.together import Table
from sdsedit.edit import edit
from sdsedit.io.images import read_picture
from sdsedit.prior.load import load_prior
from sdsedit.request import Edit, EditConfig

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "assets" / "examples"
PAGE = ROOT / "docs" / "benchmarks" / "batch.md"
TOLERANCE = 1e-4  # of a picture's 0..1, a fortieth of an 8-bit level; tests/batch/test_together.py holds edits to it
ALLOWED = 1.5  # times as many jobs a minute together, at least


def manifest_of(folder: Path, jobs: int) -> Path:
    """Crowns for the example pictures, with other seeds each time round."""
    names = sorted(path.stem for path in EXAMPLES.glob("*.png"))
    for name in names:
        (folder / f"{name}.png").write_bytes((EXAMPLES / f"{name}.png").read_bytes())
    lines = [json.dumps({"schema_version": 1})]
    for k in range(jobs):
        name = names[k % len(names)]
        row = {"input": f"{name}.png", "source": f"a {name}", "target": f"a {name} wearing a crown", "seed": k}
        lines.append(json.dumps(row))
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(lines))
    return path


def throughput(jobs: int, workers: int, together: int = 1) -> float:
    """Jobs a minute of a real run, from the first result to the last: the start of a worker is not in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = read_manifest(manifest_of(folder, jobs), folder / "out")
        with Store(local.store_path(folder / "out")) as store:
            store.plan(inputs.examine(manifest, inputs.models_of(manifest)))
            local.run(store, local.Options(str(folder / "out"), str(folder), "cpu", together), workers)
            assert store.counts()["done"] == jobs, store.counts()
            ends = sorted(entry.finished or 0.0 for entry in store.entries("done"))
    first = workers * together  # what was begun while models were loading
    return 60 * (jobs - first) / (ends[-1] - ends[first - 1])


def side_by_side(jobs: int = 8, rounds: int = 3) -> dict[str, Any]:
    """The same edits one after the other and together, in this process, with all its threads; how they differ.

    Each round does both, so that whatever else the machine does hits both alike; times are medians over rounds.
    """
    prior = load_prior("builtin", device="cpu")
    paths = sorted(EXAMPLES.glob("*.png"))

    def loop(k: int) -> Any:
        image, name = read_picture(paths[k % len(paths)]).tensor(), paths[k % len(paths)].stem
        request = Edit(target=f"a {name} wearing a crown", source=f"a {name}")
        return lambda prior: edit(image, prior, request, EditConfig(seed=k))

    loops = [loop(k) for k in range(jobs)]
    Table(prior).run([loops[0]] * jobs)  # first calls allocate and choose kernels
    apart: list[float] = []
    levels: list[int] = []
    passes, times = [], {"alone": [], "together": []}
    for _ in range(rounds):
        began = time.perf_counter()
        alone = [each(prior) for each in loops]
        middle = time.perf_counter()
        table = Table(prior)
        together = table.run(loops)
        times["alone"].append(middle - began)
        times["together"].append(time.perf_counter() - middle)
        passes.append(table.passes)
        for a, b in zip(alone, together, strict=True):
            if isinstance(b, BaseException):
                raise b
            apart.append(float((a.image - b.image).abs().max()))
            levels.append(int(((255 * a.image).round() != (255 * b.image).round()).sum()))
    median = {name: statistics.median(each) for name, each in times.items()}
    return {
        "jobs": jobs,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "alone": jobs / median["alone"] * 60,  # a minute
        "together": jobs / median["together"] * 60,
        "factor": median["alone"] / median["together"],
        "factors": [a / b for a, b in zip(times["alone"], times["together"], strict=True)],
        "tolerance": TOLERANCE,
        "largest difference": max(apart),
        "8-bit values that differ": sum(levels),
        "passes": passes[-1],
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
    }


def queue(jobs: int) -> dict[str, Any]:
    """Jobs that take no time, through the store as a worker takes them: claim, mark; and the memory of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        manifest = read_manifest(manifest_of(folder, jobs), folder / "out")
        planned = inputs.examine(manifest, inputs.models_of(manifest))
        read = time.perf_counter() - began
        with Store(local.store_path(folder / "out")) as store:
            began = time.perf_counter()
            store.plan(planned)
            plan = time.perf_counter() - began
            memory, times = [], []
            while True:
                began = time.perf_counter()
                claimed = store.claim("w", "builtin")
                if not claimed:
                    break
                files = {claimed[0].job.output: "0" * 64}
                store.done(claimed[0].n, "w", files, {"kept": 0.9, "steps": 52}, 1.0)
                times.append(time.perf_counter() - began)
                if len(times) % max(1, jobs // 20) == 0:
                    memory.append(_memory())
            assert store.counts()["done"] == jobs
    return {
        "jobs": jobs,
        "read": 1000 * read / jobs,  # milliseconds a job, here and below
        "plan": 1000 * plan / jobs,
        "claim and mark": 1000 * statistics.mean(times),
        "worst": 1000 * max(times),
        "memory first": memory[0] / 2**20,
        "memory last": memory[-1] / 2**20,
    }


def _memory() -> int:
    """Bytes of this process in main memory now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queue", type=int, metavar="JOBS", help="the queue alone, with this many jobs")
    parser.add_argument("--together", type=int, metavar="JOBS", help="pictures together alone, with this many jobs")
    parser.add_argument("--rounds", type=int, default=3, help="of pictures together (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=24, help="of each run with workers (default: %(default)s)")
    arguments = parser.parse_args()
    if not local.KEEP_MEMORY.keys() <= os.environ.keys():  # as a worker has it; read when a process begins
        command = [sys.executable, "-m", "benchmarks.batch", *sys.argv[1:]]
        os.execve(sys.executable, command, {**local.KEEP_MEMORY, **os.environ})
    if arguments.queue:
        print(json.dumps(queue(arguments.queue), indent=2))
        return
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of a lone worker; two share them
    if arguments.together:
        found = side_by_side(arguments.together, arguments.rounds)
        print(json.dumps(found, indent=2))
        print(_verdict(found))
        return
    line = queue(10_000)
    print(json.dumps(line, indent=2), flush=True)
    both = side_by_side(rounds=arguments.rounds)
    print(json.dumps(both, indent=2), flush=True)
    rates = {}
    for workers, together in ((1, 1), (2, 1), (1, 8)):
        rates[workers, together] = throughput(arguments.jobs, workers, together)
        print(f"{workers} workers, {together} together: {rates[workers, together]:.1f} jobs/min", flush=True)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    PAGE.write_text(_page(line, both, rates, arguments.jobs, load), "utf-8")
    print(f"Written: {PAGE.relative_to(ROOT)}")


def _verdict(found: dict[str, Any]) -> str:
    many = "met" if found["factor"] >= ALLOWED else "NOT MET"
    near = "met" if found["largest difference"] <= found["tolerance"] else "NOT MET"
    return (
        f"{found['factor']:.2f} times as many together (at least {ALLOWED}: {many}), largest difference of a pixel "
        f"{found['largest difference']:.1e} of its 0..1 (at most {found['tolerance']:.0e}: {near})"
    )


def _page(
    line: dict[str, Any], both: dict[str, Any], rates: dict[tuple[int, int], float], jobs: int, load: float
) -> str:  # fmt: skip
    of = {key: rate / rates[1, 1] for key, rate in rates.items()}
    return f"""# Batches

Made by `python -m benchmarks.batch` with the built-in model (128 px, LUSD, 52 steps) on {os.cpu_count()} processors
({platform.machine()}, PyTorch {torch.__version__}; load after the runs {load:.1f}).

## Jobs a minute

{jobs} edits of the example pictures by `sdsedit batch`'s own workers, the time of their start left out.

| | jobs a minute | |
|---|---|---|
| 1 worker, threads {both["threads"]} | {rates[1, 1]:.1f} | 1 |
| 2 workers, threads {max(1, both["threads"] // 2)} each | {rates[2, 1]:.1f} | {of[2, 1]:.2f} |
| 1 worker, `--together 8` | {rates[1, 8]:.1f} | {of[1, 8]:.2f} |

## Together, against one at a time

In one process with {both["threads"]} threads, {both["jobs"]} edits one after the other and the same ones together, in
turns, {both["rounds"]} rounds, medians (load {both["load"]:.1f}): {both["alone"]:.1f} a minute and
{both["together"]:.1f} a minute.

{_verdict(both)}; {both["8-bit values that differ"]} of the values of the
8-bit pictures differ. By rounds: {", ".join(f"{each:.2f}" for each in both["factors"])}. `--together N` made
{both["passes"]} passes of the network.

On a CPU the threads of one small pass mostly wait for each other, at the end of every operation. Several workers with
fewer threads each do not, and give results equal to the bit to those of one worker with as many threads; `--together`
has tables of one thread each over one copy of the model, whose convolutions it lays out channels last meanwhile, and on
a GPU fills it where a second worker would need a second copy.

## The queue's own share

{line["jobs"]} jobs that take no time: reading and checking a row {line["read"]:.2f} ms, planning it {line["plan"]:.2f}
ms, claiming it and marking it done {line["claim and mark"]:.2f} ms (the worst {line["worst"]:.0f} ms). Memory after a
twentieth of the jobs {line["memory first"]:.0f} MiB, after all {line["memory last"]:.0f} MiB.
"""


if __name__ == "__main__":
    main()
