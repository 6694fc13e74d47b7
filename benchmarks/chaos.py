"""A batch that everything happens to: killed workers, stops, a full disk, a killed Ray actor, a lost machine.

    python -m benchmarks.chaos                 200 jobs; writes docs/benchmarks/chaos.{md,json,png}
    python -m benchmarks.chaos --jobs 60       fewer; writes nothing but what it prints

Pictures, drawings, sketches and scenes are edited, and pictures given the look of others, by the built-in model, once
undisturbed and once as follows, always through `sdsedit batch` in processes of its own:

- until the end of the local part, a worker gets SIGKILL every few seconds, as soon as a few jobs have ended since the
  last one did;
- three times the batch gets SIGTERM and is resumed;
- the output folder is a small tmpfs, which is filled to the last byte, with a worker killed meanwhile, and freed;
- the last part runs on a Ray cluster of two node processes: its actors get SIGKILL, then a whole node does, and a new
  one joins.

Then every file is opened again and hashed. What must hold (else the exit code is 1): each job is done, or failed or set
aside with a reason; each file is what the store says, whole, and opens; no job was marked as done twice; nothing is
left of what was killed; results are, to the byte, those of the undisturbed run (sidecars but for their timings).

Linux. A tmpfs needs root or user namespaces; without both, or without Ray, that part is left out, and the page says so.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdsedit.batch.local import store_path
from sdsedit.batch.store import Entry, Note, Store

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "assets" / "examples"
PAGE = ROOT / "docs" / "benchmarks" / "chaos.md"
WORKERS = 2
DRAWING = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 96 96" width="96" height="96"><rect width="96" height="96" '
    'fill="#8cf"/><circle cx="48" cy="52" r="30" fill="#f90"/><circle cx="38" cy="46" r="5" fill="#222"/>'
    '<circle cx="58" cy="46" r="5" fill="#222"/></svg>'
)


@dataclass(frozen=True)
class Event:
    at: float  # seconds since 1970
    what: str  # one of KINDS
    said: str = ""


KINDS = {
    "started": "batch started or resumed",
    "killed": "worker killed (SIGKILL)",
    "stopped": "batch told to stop (SIGTERM)",
    "full": "disk full",
    "freed": "disk freed",
    "actor": "Ray actor killed (SIGKILL)",
    "node": "Ray node killed (SIGKILL)",
    "joined": "Ray node joined",
}


@dataclass(frozen=True)
class Plan:
    """What happens, and when: shares of the jobs that are done."""

    stops: tuple[float, ...] = (0.2, 0.45, 0.7)
    fill: float | None = 0.3  # None: the disk is left alone
    ray: bool = True  # whether what is left after the last stop runs on Ray
    pause: tuple[float, float] = (2.0, 4.0)  # seconds between two kills, at least
    between: float = 0.03  # of the jobs, that end between two kills: where a start takes long there must be some work
    most: int = 1000  # kills
    full_for: float = 8.0  # seconds
    megabytes: int = 48  # of the disk


@dataclass
class Story:
    """What happened."""

    folder: Path
    began: float
    events: list[Event] = field(default_factory=list)
    stops: list[tuple[float, int]] = field(default_factory=list)  # seconds until the end after SIGTERM, exit code
    left_out: list[str] = field(default_factory=list)
    free_left: int = -1  # bytes that were free on the disk when it was full

    def note(self, what: str, said: str = "") -> None:
        self.events.append(Event(time.time(), what, said))
        print(f"  {time.time() - self.began:6.1f} s  {KINDS[what]}{': ' if said else ''}{said}", flush=True)

    def count(self, what: str) -> int:
        return sum(event.what == what for event in self.events)


# ---- what is to be done


def write_manifest(folder: Path, jobs: int, scenes: bool = True) -> Path:
    """A folder with inputs and a manifest of so many jobs of all kinds in a fixed order; one of them must fail."""
    from sdsedit.io import splats
    from tests.little_scene import little_scene

    names = sorted(path.stem for path in EXAMPLES.glob("*.png"))
    for name in names:
        shutil.copyfile(EXAMPLES / f"{name}.png", folder / f"{name}.png")
    (folder / "drawing.svg").write_text(DRAWING)
    counts = {"sketch": max(1, jobs // 50), "svg": max(1, jobs // 33), "style": max(1, jobs // 33)}
    if scenes:
        (folder / "scene.ply").write_bytes(splats.encode(little_scene(), "scene.ply"))
        counts["splats"] = max(1, jobs // 100)
    rows: list[dict[str, Any]] = [
        {"id": "wrong", "input": "cat.png", "source": "a dog", "target": "a category", "words": ["cat"]}
    ]
    for k in range(counts["sketch"]):
        rows.append({"id": f"sketch-{k}", "kind": "sketch", "prompt": f"a {names[k % len(names)]}", "strokes": 8,
                     "steps": 2, "seed": k})  # fmt: skip
    for k in range(counts["svg"]):
        rows.append({"id": f"svg-{k}", "kind": "svg", "input": "drawing.svg", "source": "an apple",
                     "target": "a red apple", "steps": 2, "seed": k})  # fmt: skip
    for k in range(counts["style"]):
        name = names[k % len(names)]
        what = ({"input": f"{name}.png"}, {"prompt": f"a {name}"}, {"texture": "96x64"})
        rows.append({"id": f"style-{k}", "kind": "style", "references": [f"{names[(k + 1) % len(names)]}.png"],
                     "steps": 12 if k % 3 == 0 else 3, "size": 64, "seed": k, **what[k % 3]})  # fmt: skip
    for k in range(counts.get("splats", 0)):
        rows.append({"id": f"scene-{k}", "kind": "splats", "input": "scene.ply", "edit_kind": "recolour",
                     "source": "a balloon on grass", "target": "a blue balloon on grass", "steps": 1, "views": 4,
                     "seed": k})  # fmt: skip
    for k in range(jobs - len(rows)):
        name = names[k % len(names)]
        thing = f"an {name}" if name[0] in "aeiou" else f"a {name}"
        rows.append({"id": f"picture-{k}", "input": f"{name}.png", "source": thing, "seed": k,
                     "target": f"{thing} wearing a crown", "steps": 2 + k % 3, "method": ("lusd", "dds")[k % 5 == 4],
                     "save_mask": k % 7 == 0, "refine": 0})  # fmt: skip
    random.Random(0).shuffle(rows)
    path = folder / "jobs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ({"schema_version": 1}, *rows)))
    return path


# ---- one run, and what happens to it


def command(manifest: Path, folder: Path, model: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "sdsedit.cli", "batch", str(manifest), "--output", str(folder), "--model", model,
            "--device", "cpu", "--workers", str(WORKERS), "--json", *more]  # fmt: skip


def environment() -> dict[str, str]:
    """One thread a worker, whoever starts it: sums of floats depend on how many threads there are."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, **threads, "PYTHONPATH": path, "RAY_worker_niceness": "0"}


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment(), cwd=ROOT)


def undisturbed(manifest: Path, folder: Path, model: str, log: Path) -> float:
    began = time.monotonic()
    code = start(command(manifest, folder, model), log).wait()
    if code != 3:  # some failed: the one that must
        raise RuntimeError(f"The undisturbed run ended with exit code {code}: {log.read_text()[-2000:]}")
    return time.monotonic() - began


def rough(manifest: Path, folder: Path, model: str, plan: Plan, story: Story, log: Path, rng: random.Random) -> int:
    """Run the batch to its end through everything that the plan says; its last exit code."""
    parent = None
    code = 143
    with contextlib.ExitStack() as stack:
        try:
            for k in range(len(plan.stops) + 1):
                last = k == len(plan.stops)
                more = ["--resume"] if k else []
                killer = Killer(folder, plan, story, rng, None)
                if last and plan.ray:
                    cluster, address = stack.enter_context(two_nodes())
                    more += ["--engine", "ray", "--address", address]
                    killer = Killer(folder, plan, story, rng, cluster)
                parent = start(command(manifest, folder, model, *more), log)
                story.note("started", f"{'Ray' if '--engine' in more else 'local'} engine")
                while parent.poll() is None:
                    share = done_share(folder)
                    if not last and share >= plan.stops[k]:
                        break
                    killer.tend(parent.pid, share)
                    time.sleep(0.15)
                if parent.poll() is None:
                    story.note("stopped")
                    asked = time.monotonic()
                    parent.send_signal(signal.SIGTERM)
                    code = parent.wait(120)
                    story.stops.append((time.monotonic() - asked, code))
                else:
                    code = parent.returncode
                    if not last:
                        raise RuntimeError(f"It ended by itself, with exit code {code}: {log.read_text()[-3000:]}")
        finally:
            if parent is not None and parent.poll() is None:
                end(parent.pid)
    return code


def done_share(folder: Path) -> float:
    if not store_path(folder).is_file():
        return 0.0
    with Store(store_path(folder), reads=True) as store:
        counts = store.counts()
    total = sum(counts.values())
    return (counts["done"] + counts["failed"] + counts["aside"]) / total if total else 0.0


class Killer:
    """What happens to one run, between two looks at it."""

    def __init__(self, folder: Path, plan: Plan, story: Story, rng: random.Random, cluster: Any) -> None:
        self.folder, self.plan, self.story, self.rng, self.cluster = folder, plan, story, rng, cluster
        self.share = 0.0  # when something was last killed
        self.next = time.monotonic() + rng.uniform(*plan.pause)
        self.begun = False
        self.lost = 0.0  # when the node was

    def tend(self, parent: int, share: float) -> None:
        now = time.monotonic()
        if not self.begun:
            self.begun, self.share = True, share
        if self.plan.fill is not None and not self.story.count("full") and share >= self.plan.fill:
            self._fill(parent)
            return
        if self.lost and not self.story.count("joined") and now > self.lost + 3:
            self.cluster.add_node(num_cpus=1)
            self.story.note("joined")
        if now < self.next or share < self.share + self.plan.between or self._kills() >= self.plan.most:
            return
        if self.cluster is None:
            done = self._kill_one(parent, b"sdsedit.batch.local", "killed")
        elif self.story.count("actor") < 2:
            done = self._kill_one(os.getpid(), b"ray::Hands", "actor")
        elif not self.story.count("node"):
            node = self.cluster.list_all_nodes()[-1]
            raylet = node.all_processes["raylet"][0].process.pid
            end(raylet)
            self.cluster.remove_node(node, allow_graceful=False)
            self.story.note("node", "its actor and agents with it")
            self.lost = now
            done = True
        else:
            return
        if done:
            self.share, self.next = share, time.monotonic() + self.rng.uniform(*self.plan.pause)

    def _kills(self) -> int:
        return self.story.count("killed") if self.cluster is None else 0

    def _kill_one(self, root: int, title: bytes, what: str) -> bool:
        found = [pid for pid in descendants(root) if title in command_line(pid)]
        if not found:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.rng.choice(found), signal.SIGKILL)
            self.story.note(what)
        return True

    def _fill(self, parent: int) -> None:
        ballast = self.folder / "ballast"
        with open(ballast, "wb", buffering=0) as file:
            for size in (2**20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))
        self.story.free_left = shutil.disk_usage(self.folder).free
        self.story.note("full", f"{self.story.free_left} bytes are free")
        time.sleep(self.plan.full_for / 2)
        self._kill_one(parent, b"sdsedit.batch.local", "killed")
        until = time.monotonic() + self.plan.full_for / 2
        while time.monotonic() < until:
            with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:  # what a dead worker gave back
                file.write(bytes(4096))
            time.sleep(0.05)
        ballast.unlink()
        self.story.note("freed")


# ---- processes, disks, nodes


def descendants(root: int) -> list[int]:
    """Of a process, by what /proc says now; the nearest first."""
    parents: dict[int, list[int]] = {}
    for each in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = each.read_text()
            parents.setdefault(int(text[text.rindex(")") + 1 :].split()[1]), []).append(int(each.parent.name))
    found, ring = [], [root]
    while ring := [child for pid in ring for child in parents.get(pid, ())]:
        found += ring
    return found


def command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def end(pid: int) -> None:
    """SIGKILL for a process and all that it has started."""
    for each in [*descendants(pid), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A tmpfs at `folder`; False: this user may mount none."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "chaos", str(folder)], capture_output=True
    )
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def two_nodes() -> Iterator[tuple[Any, str]]:
    """A Ray cluster of two node processes with a processor each, with a token of its own."""
    import secrets

    for name, value in {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_initial_delay_ms": "1000", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0",
    }.items():  # fmt: skip
        os.environ[name] = value
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster, cluster.address
    finally:
        cluster.shutdown()


# ---- what must hold


def faults_of(calm: Path, folder: Path) -> list[str]:
    """What does not hold, in sentences; none if all is well."""
    with Store(store_path(folder), reads=True) as store:
        entries, notes = list(store.entries()), [note for _, note in store.journal()]
    with Store(store_path(calm), reads=True) as store:
        before = {entry.id: entry for entry in store.entries()}
    faults = []
    if {entry.id for entry in entries} != set(before):
        faults.append("The store does not have the same jobs.")
    for entry in entries:
        if entry.state not in ("done", "failed", "aside"):
            faults.append(f"{entry.id} is {entry.state}.")
        if entry.state in ("failed", "aside") and not entry.reason:
            faults.append(f"{entry.id} is {entry.state} without a reason.")
        if entry.state == "done":
            faults += [f"{entry.id}: {fault}" for fault in unsound(folder, entry)]
            faults += [f"{entry.id}: {fault}" for fault in different(calm, folder, before[entry.id], entry)]
    ends = Counter(note.id for note in notes if note.what == "done")
    faults += [f"{id} was done {count} times." for id, count in ends.items() if count > 1]
    faults += [f"{path.name} was left behind." for path in folder.rglob("*.tmp")]
    kept = [path.name for path in (folder / "_batch" / "checkpoints").glob("*")]
    done = {entry.id for entry in entries if entry.state == "done"}
    faults += [f"The checkpoints of {name} were left behind." for name in kept if name in done]
    return faults


def unsound(folder: Path, entry: Entry) -> list[str]:
    """Files of a job that are not whole."""
    from PIL import Image

    from sdsedit.io import splats
    from sdsedit.io.record import read_recipe
    from sdsedit.io.svg import read_svg

    faults = []
    for name, sha256 in entry.files.items():
        path = folder / name
        data = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(data).hexdigest() != sha256:
            faults.append(f"{name} is not what the store says.")
            continue
        if name.endswith(".png"):
            with Image.open(path) as picture:
                picture.load()
        elif name.endswith(".svg"):
            read_svg(data)
        elif name.endswith(".ply"):
            splats.read(path)
        else:
            json.loads(data)
    if not faults and read_recipe(folder / entry.job.output)["kind"] != entry.kind:
        faults.append("its recipe is another's.")
    return faults


def different(calm: Path, folder: Path, before: Entry, entry: Entry) -> list[str]:
    """Files that are not those of the undisturbed run."""
    faults = []
    for name, sha256 in entry.files.items():
        if name.endswith(".json"):
            then, now = (json.loads((each / name).read_text()) for each in (calm, folder))
            for each in (then, now):
                del each["seconds"]
            if then != now:
                faults.append(f"{name} says something else.")
        elif before.files.get(name) != sha256:
            faults.append(f"{name} is not the undisturbed run's.")
    return faults


# ---- all of it


@dataclass(frozen=True)
class Outcome:
    jobs: int
    calm_seconds: float
    rough_seconds: float
    states: dict[str, int]
    kinds: dict[str, int]
    reasons: dict[str, str]
    faults: list[str]
    second_try: dict[str, int]  # states after --retry-failed, undisturbed
    journal: dict[str, int]
    bytes: int  # of all files at the end


def chaos(home: Path, jobs: int, model: str, plan: Plan, seed: int = 0, scenes: bool = True) -> tuple[Story, Outcome]:
    """Both runs and all checks, in `home`, an empty folder."""
    home.mkdir(parents=True, exist_ok=True)
    manifest = write_manifest(home, jobs, scenes)
    calm, folder, log = home / "calm", home / "rough", home / "log"
    print(f"Undisturbed: {jobs} jobs", flush=True)
    calm_seconds = undisturbed(manifest, calm, model, log)
    print(f"  {calm_seconds:6.1f} s\nRough", flush=True)
    story = Story(folder, time.time())
    with small_disk(folder, plan.megabytes) as mounted:
        if not mounted and plan.fill is not None:
            story.left_out.append("The disk was not filled: this user may mount no tmpfs.")
            plan = Plan(**{**asdict(plan), "fill": None})
        began = time.monotonic()
        rough(manifest, folder, model, plan, story, log, random.Random(seed))
        seconds = time.monotonic() - began
        with Store(store_path(folder), reads=True) as store:
            entries, notes = list(store.entries()), [note for _, note in store.journal()]
        faults = faults_of(calm, folder)
        if sum(code != 143 for _, code in story.stops) or any(took > 30 for took, _ in story.stops):
            faults.append(f"A stop did not end as it should: {story.stops}")
        states = dict(Counter(entry.state for entry in entries))
        reasons = {entry.id: entry.reason or "" for entry in entries if entry.state != "done"}
        second = states
        if states.get("aside", 0) or states.get("failed", 0) > 1:
            print("What was set aside, once more", flush=True)
            start(command(manifest, folder, model, "--retry-failed"), log).wait()
            faults += faults_of(calm, folder)
            with Store(store_path(folder), reads=True) as store:
                second = {state: count for state, count in store.counts().items() if count}
        if second != {"done": jobs - 1, "failed": 1}:
            faults.append(f"In the end there are {second}.")
        used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.copytree(folder, home / "kept")
    timeline(story, notes, home / "chaos.png", jobs)
    outcome = Outcome(
        jobs, calm_seconds, seconds, states, dict(Counter(entry.kind for entry in entries)), reasons, faults, second,
        dict(Counter(note.what for note in notes)), used,
    )  # fmt: skip
    return story, outcome


def timeline(story: Story, notes: list[Note], path: Path, jobs: int) -> None:
    """What happened, over time: jobs done above, kills and stops below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, figsize=(11, 6), sharex=True, height_ratios=(3, 2), constrained_layout=True
    )
    done = sorted(note.at - story.began for note in notes if note.what == "done")
    above.step([0, *done], range(len(done) + 1), where="post", color="#1a7f37", linewidth=2)
    above.axhline(jobs, color="#999", linewidth=0.8, linestyle=":")
    above.set_ylabel(f"jobs done, of {jobs}")
    above.set_ylim(0, jobs * 1.05)
    full = [event.at - story.began for event in story.events if event.what in ("full", "freed")]
    ray = [event.at - story.began for event in story.events if event.what == "started" and "Ray" in event.said]
    for axes in (above, below):
        if len(full) == 2:
            axes.axvspan(*full, color="#f3d27a", alpha=0.6)
        if ray:
            axes.axvspan(ray[0], max([*done, ray[0]]), color="#8ab4f8", alpha=0.2)
        axes.grid(axis="x", color="#ddd")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    if len(full) == 2:
        above.text(sum(full) / 2, jobs * 1.0, "disk full", ha="center", va="top", fontsize=9)
    if ray:
        above.text(ray[0], jobs * 0.03, " on Ray", fontsize=9)
    rows = [what for what in KINDS if what not in ("full", "freed") and story.count(what)]
    looks = {"started": ">", "killed": "x", "stopped": "s", "actor": "x", "node": "X", "joined": "P"}
    for k, what in enumerate(reversed(rows)):
        at = [event.at - story.began for event in story.events if event.what == what]
        colour = "#1a7f37" if what in ("started", "joined") else "#b3261e"
        below.scatter(at, [k] * len(at), marker=looks[what], color=colour, s=48)
        if what == "stopped":
            for each in at:
                above.axvline(each, color="#b3261e", linewidth=0.8, linestyle="--")
    below.set_yticks(range(len(rows)), [f"{KINDS[what]}: {story.count(what)}" for what in reversed(rows)])
    below.set_ylim(-0.6, len(rows) - 0.4)
    below.set_xlabel("seconds")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def report(story: Story, outcome: Outcome, plan: Plan) -> str:
    from benchmarks.speed import machine

    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(outcome.kinds.items()))
    rows = [
        ("workers killed with SIGKILL", story.count("killed")),
        ("SIGTERM to the batch, and resumed", story.count("stopped")),
        ("until it had ended, at most", f"{max((took for took, _ in story.stops), default=0):.1f} s"),
        ("disk filled to the last byte", f"{story.count('full')} ({plan.full_for:g} s)" if story.count("full") else 0),
        ("Ray actors killed", story.count("actor")),
        ("Ray nodes killed (and joined anew)", f"{story.count('node')} ({story.count('joined')})"),
    ]
    results = [
        ("done", outcome.states.get("done", 0)),
        ("failed, for a reason of its own", outcome.states.get("failed", 0)),
        ("set aside after three dead workers", outcome.states.get("aside", 0)),
        ("done after `--retry-failed`", outcome.second_try.get("done", 0)),
        ("attempts begun", outcome.journal.get("began", 0)),
        ("undisturbed", f"{outcome.calm_seconds:.0f} s"),
        ("like this", f"{outcome.rough_seconds:.0f} s"),
    ]
    lines = [
        "# Chaos", "",
        f"Made by `python -m benchmarks.chaos`: {machine()[0]}, {machine()[2]}, load average of the last five minutes",
        f"{os.getloadavg()[1]:.1f} (this is a test of what survives, and no measurement of speed).", "",
        f"{outcome.jobs} jobs ({kinds}) with the built-in model, two workers with one thread each, the output folder a",
        f"tmpfs of {plan.megabytes} MiB. Once undisturbed, once like this:", "",
        "![jobs done over time, and what happened meanwhile](chaos.png)", "",
        "| What happened | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows), "",
        "| What came of it | |", "|---|---|", *(f"| {what} | {value} |" for what, value in results), "",
    ]  # fmt: skip
    if outcome.faults:
        lines += ["**What must hold did not:**", "", *(f"- {fault}" for fault in outcome.faults), ""]
    else:
        lines += [
            "Held, job by job: done, or failed or set aside with a reason; every file opened again, whole, with the",
            "hash that the store has; none marked as done twice; no temporary file and no checkpoint of a done job",
            "left; every result, to the byte, that of the undisturbed run (sidecars but for their timings).", "",
        ]  # fmt: skip
    lines += ["What is not done, and why:", ""]
    lines += [f"- {id}: {reason}" for id, reason in outcome.reasons.items()]
    lines += ["", *(f"Left out: {each}" for each in story.left_out), ""] if story.left_out else [""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="DIR", help="work in this new folder and leave it there")
    arguments = parser.parse_args()
    if os.geteuid() and shutil.which("unshare"):  # a namespace of our own, where we may mount
        may = subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0
        if may:
            os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", "benchmarks.chaos", *sys.argv[1:]])
    plan, left_out = Plan(), []
    if find_spec("ray") is None:  # not imported yet: it reads its environment when it is
        plan = Plan(ray=False)
        left_out.append("Ray: it is not installed.")
    with contextlib.ExitStack() as stack:
        if arguments.keep:
            home = Path(arguments.keep).resolve()
            home.mkdir(parents=True)
        else:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        story, outcome = chaos(home, arguments.jobs, arguments.model, plan, arguments.seed)
        story.left_out += left_out
        text = report(story, outcome, plan)
        print(text)
        if arguments.jobs == 200:
            PAGE.write_text(text)
            shutil.copyfile(home / "chaos.png", PAGE.with_suffix(".png"))
            events = [{"at": round(each.at - story.began, 2), "what": each.what, "said": each.said}
                      for each in story.events]  # fmt: skip
            about = {**asdict(outcome), "events": events, "stops": story.stops}
            PAGE.with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
