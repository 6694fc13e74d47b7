"""What is counted, told in the format that Prometheus reads; and that nobody can be known from it."""

from __future__ import annotations

import re
import threading
from typing import Any, cast

from sdsedit.errors import InputRefused
from sdsedit.prior.base import Prior
from sdsedit.web.metrics import SECONDS, Metrics
from sdsedit.web.settings import Settings
from sdsedit.web.worker import Job, Worker

PRIOR = cast(Prior, object())
# One line of the text format: a name, labels with escaped values, a number.
SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)(?:\{(?P<labels>[a-z]+="(?:[^"\\\n]|\\[\\"n])*"(?:,[a-z]+="(?:[^"\\\n]|\\[\\"n])*")*)\})? '
    r"(?P<value>[0-9.e+-]+)"
)


def read(text: str) -> dict[str, float]:
    """Every sample; its family was announced before it, once, by a HELP and a TYPE line."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    helped = ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped = line.split()[2]
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name == helped and name not in kinds
            kinds[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            family = match["name"] if match["name"] in kinds else re.sub("_(bucket|sum|count)$", "", match["name"])
            assert list(kinds)[-1] == family, line
            assert (kinds[family] == "counter") == match["name"].endswith("_total")
            assert line.rpartition(" ")[0] not in found
            found[line.rpartition(" ")[0]] = float(match["value"])
    return found


def run(worker: Worker, kind: str, result: Any = None, error: Exception | None = None) -> Job:
    def act(prior: Prior, job: Job) -> Any:
        if error is not None:
            raise error
        return result

    job = worker.submit("a-person", act, kind=kind)
    assert job.done.wait(5)
    return job


def test_jobs_by_kind_and_outcome():
    metrics, settings = Metrics(), Settings()
    worker = Worker(lambda: PRIOR, over=metrics.job)
    assert not read(metrics.text(worker, settings))['sdsedit_model_loaded{model="built-in model"}']
    worker.start()
    run(worker, "image")
    run(worker, "image", error=RuntimeError("no"))
    run(worker, "image", error=InputRefused("no"))
    gate, running = threading.Event(), threading.Event()

    def slow(prior: Prior, job: Job) -> None:
        running.set()
        gate.wait(5)

    held = worker.submit("a-person", slow, kind="sketch")
    assert running.wait(5)
    behind = worker.submit("a-person", slow, kind="splats")
    now = read(metrics.text(worker, settings))
    assert now["sdsedit_jobs_running"] == now["sdsedit_jobs_waiting"] == now["sdsedit_ready"] == 1
    behind.cancel()
    held.cancel()
    gate.set()
    assert held.done.wait(5) and behind.done.wait(5)
    now = read(metrics.text(worker, settings))
    jobs = {key: value for key, value in now.items() if key.startswith("sdsedit_jobs_total") and value}
    assert jobs == {
        'sdsedit_jobs_total{kind="image",outcome="done"}': 1,
        'sdsedit_jobs_total{kind="image",outcome="failed"}': 1,
        'sdsedit_jobs_total{kind="image",outcome="refused"}': 1,
        'sdsedit_jobs_total{kind="sketch",outcome="stopped"}': 1,
        'sdsedit_jobs_total{kind="splats",outcome="stopped"}': 1,
    }
    assert now['sdsedit_jobs_total{kind="sketch",outcome="failed"}'] == 0, "a rise from 0 can be seen, a new line not"
    assert now['sdsedit_job_seconds_count{kind="image"}'] == 3
    assert 'sdsedit_job_seconds_count{kind="splats"}' not in now, "it never began"
    assert now['sdsedit_model_loaded{model="built-in model"}'] == 1 and not now["sdsedit_jobs_waiting"]
    worker.close(1)
    assert not read(metrics.text(worker, settings))["sdsedit_ready"]


def test_seconds_are_in_the_buckets_they_belong_to():
    metrics, worker = Metrics(), Worker(lambda: PRIOR)
    spent = [0.05, 0.1, 0.1001, 700.0]
    for seconds in spent:
        job = Job("", lambda prior, job: None, False, kind="image")
        job.started, job.worked, job.waited = True, seconds, 2.5
        metrics.job(job)
    now = read(metrics.text(worker, Settings()))
    for top in SECONDS:
        name = f'sdsedit_job_seconds_bucket{{kind="image",le="{top}"}}'
        assert now[name] == sum(seconds <= top for seconds in spent), top
    assert now['sdsedit_job_seconds_bucket{kind="image",le="+Inf"}'] == now['sdsedit_job_seconds_count{kind="image"}']
    assert now['sdsedit_job_seconds_sum{kind="image"}'] == sum(spent)
    assert now['sdsedit_job_wait_seconds_bucket{kind="image",le="1.0"}'] == 0
    assert now['sdsedit_job_wait_seconds_bucket{kind="image",le="2.5"}'] == 4


def test_refusals_by_code_from_many_threads():
    metrics = Metrics()
    threads = [threading.Thread(target=lambda: [metrics.refused(429) for _ in range(500)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metrics.refused(422)
    now = read(metrics.text(Worker(lambda: PRIOR), Settings()))
    assert now['sdsedit_refused_total{code="429"}'] == 4000 and now['sdsedit_refused_total{code="422"}'] == 1


def test_names_are_escaped_and_nobody_is_named():
    metrics = Metrics()
    worker = Worker(lambda: PRIOR, over=metrics.job)
    worker.start()
    run(worker, "image", error=ValueError("a cat wearing a crown"))
    worker.close(1)
    text = metrics.text(worker, Settings(model='a"b\\c\nd', login=("me", "a-secret")))
    assert 'model="a\\"b\\\\c' in text and read(text)
    for private in ("a-person", "a cat", "a-secret", "127.0.0.1"):
        assert private not in text
