"""What the page counts, in the text format that Prometheus reads (version 0.0.4).

Numbers of jobs, seconds and bytes; never who, from where, what was asked for, or what a file is called. The counters
start at zero with the process. The format is a few lines, so that the page needs no further package for it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from sdsedit._version import __version__
from sdsedit.web.settings import Settings, shown_name
from sdsedit.web.worker import Job, Worker

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)  # from a heat-map to a splat scene
OUTCOMES = ("done", "stopped", "refused", "failed")

Sample = tuple[Mapping[str, object], float]  # labels, value


class Metrics:
    """Counts of one process. Threads may tell it things at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: Counter[tuple[str, str]] = Counter()  # kind, outcome
        self._refused: Counter[int] = Counter()  # HTTP status
        self._times: dict[Literal["work", "wait"], dict[str, list[float]]] = {"work": {}, "wait": {}}
        self._started = time.time()

    def job(self, job: Job) -> None:
        """A job is over. The seconds of one that never began are not counted: there was no work."""
        with self._lock:
            self._jobs[job.kind, job.outcome] += 1
            if job.started:
                _observe(self._times["work"], job.kind, job.worked)
                _observe(self._times["wait"], job.kind, job.waited)

    def refused(self, status: int) -> None:
        """Something was refused, with the status that says why."""
        with self._lock:
            self._refused[status] += 1

    def text(self, worker: Worker, settings: Settings) -> str:
        """All of it, for a scrape."""
        with self._lock:
            kinds = sorted({kind for kind, _ in self._jobs})
            # Every outcome of a kind that was seen, so that the first failure is a rise from 0 and not a new line.
            jobs = [({"kind": k, "outcome": o}, self._jobs[k, o]) for k in kinds for o in OUTCOMES]
            refused = [({"code": code}, number) for code, number in sorted(self._refused.items())]
            work, wait = (_histogram(self._times[which]) for which in ("work", "wait"))
        name = shown_name(settings.model)
        lines = [
            *_family("sdsedit_jobs_total", "counter", "Jobs that are over.", jobs),
            *_family("sdsedit_job_seconds", "histogram", "Seconds of work of a job that began.", work),
            *_family("sdsedit_job_wait_seconds", "histogram", "Seconds that it stood in line before.", wait),
            *_family("sdsedit_jobs_waiting", "gauge", "Jobs in line.", [({}, worker.waiting)]),
            *_family("sdsedit_jobs_running", "gauge", "Jobs that run now.", [({}, worker.running)]),
            *_family("sdsedit_refused_total", "counter", "Requests and jobs refused, by HTTP status.", refused),
            *_family("sdsedit_model_loaded", "gauge", "1 once the usual model is there.",
                     [({"model": name}, worker.loaded)]),
            *_family("sdsedit_ready", "gauge", "1 while jobs are taken.", [({}, worker.state == "ready")]),
            *_family("sdsedit_gpu_memory_bytes", "gauge", "PyTorch's, on all GPUs.", _gpu_memory()),
            *_family("process_resident_memory_bytes", "gauge", "Resident memory.", _memory()),
            *_family("process_start_time_seconds", "gauge", "Since 1970.", [({}, self._started)]),
            *_family("sdsedit_info", "gauge", "The version that runs.", [({"version": __version__}, 1)]),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


def _observe(times: dict[str, list[float]], kind: str, seconds: float) -> None:
    """One more in a histogram: its buckets (not yet cumulative), the one above all of them, and the sum."""
    counts = times.setdefault(kind, [0.0] * (len(SECONDS) + 2))
    counts[next((k for k, top in enumerate(SECONDS) if seconds <= top), len(SECONDS))] += 1
    counts[-1] += seconds


def _histogram(times: Mapping[str, list[float]]) -> list[tuple[str, Mapping[str, object], float]]:
    found: list[tuple[str, Mapping[str, object], float]] = []
    for kind, (*counts, total) in sorted(times.items()):
        for k, top in enumerate([*SECONDS, "+Inf"]):
            found.append(("_bucket", {"kind": kind, "le": top}, sum(counts[: k + 1])))
        found += [("_sum", {"kind": kind}, total), ("_count", {"kind": kind}, sum(counts))]
    return found


def _family(
    name: str, kind: str, about: str, samples: Iterable[Sample | tuple[str, Mapping[str, object], float]]
) -> list[str]:
    """The lines of one metric; a histogram's samples say how their name goes on."""
    lines = []
    for sample in samples:
        ending, labels, value = sample if len(sample) == 3 else ("", *sample)
        said = ",".join(f'{key}="{_escaped(str(each))}"' for key, each in labels.items())
        lines.append(f"{name}{ending}{{{said}}} {float(value)!r}" if said else f"{name}{ending} {float(value)!r}")
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *lines] if lines else []


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _memory() -> list[Sample]:
    """Linux tells it; elsewhere it is left out, as Prometheus' own clients do."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return []
    return [({}, pages * os.sysconf("SC_PAGE_SIZE"))]


def _gpu_memory() -> list[Sample]:
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return []
    every = range(torch.cuda.device_count())
    return [
        ({"state": "allocated"}, sum(map(torch.cuda.memory_allocated, every))),
        ({"state": "reserved"}, sum(map(torch.cuda.memory_reserved, every))),
    ]
