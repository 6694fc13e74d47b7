"""The worker: fair order, quick jobs between steps, cancelling, limits, closing. No model is needed for any of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import pytest

from sdsedit.errors import InputRefused
from sdsedit.prior.base import Prior
from sdsedit.web.worker import Cancelled, Job, Worker

PRIOR = cast(Prior, object())  # handed on, never asked


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker(lambda: PRIOR, waiting=6, waiting_each=3)
    made.start()
    yield made
    made.close(1)


def blocked(worker: Worker) -> tuple[Job, threading.Event]:
    """A job that runs until the event is set, letting quick jobs in."""
    gate, running = threading.Event(), threading.Event()

    def run(prior: Prior, job: Job) -> str:
        running.set()
        while not gate.wait(0.005) and not job.cancelled:
            job.between_steps()
        return "stopped" if job.cancelled else "whole"

    job = worker.submit("first", run)
    assert running.wait(5)
    return job, gate


def test_people_take_turns(worker: Worker):
    job, gate = blocked(worker)
    order: list[str] = []

    def note(name: str) -> Callable[[Prior, Job], Any]:
        return lambda prior, job: order.append(name)

    jobs = [worker.submit(name[0], note(name)) for name in ("a1", "a2", "a3", "b1", "c1", "c2")]
    assert [worker.ahead(each) for each in jobs] == [1, 4, 6, 2, 3, 5]
    gate.set()
    for each in jobs:
        each.result(5)
    assert order == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert job.result(0) == "whole" and worker.ahead(job) == 0


def test_a_quick_job_runs_between_the_steps_of_a_long_one(worker: Worker):
    job, gate = blocked(worker)
    assert worker.submit("second", lambda prior, job: prior is PRIOR, quick=True).result(5)
    assert not job.done.is_set()
    gate.set()
    job.result(5)
    assert worker.submit("second", lambda prior, job: 7, quick=True).result(5) == 7  # and when nothing runs


def test_cancelling(worker: Worker):
    job, _ = blocked(worker)
    waiting = worker.submit("second", lambda prior, job: None)
    worker.cancel_all("second")
    worker.cancel_all("first")
    assert job.result(5) == "stopped"
    with pytest.raises(Cancelled):
        waiting.result(5)


def test_the_line_is_bounded(worker: Worker):
    _, gate = blocked(worker)
    for person in ("a", "b"):
        for _ in range(3):
            worker.submit(person, lambda prior, job: None)
        if person == "a":
            with pytest.raises(InputRefused) as mine:
                worker.submit(person, lambda prior, job: None)
            assert mine.value.status == 429
    with pytest.raises(InputRefused) as full:
        worker.submit("c", lambda prior, job: None)
    assert full.value.status == 503
    gate.set()


def test_30_crowded_says_what_submit_would(worker: Worker):
    _, gate = blocked(worker)
    assert worker.crowded("a") is None
    for _ in range(3):
        worker.submit("a", lambda prior, job: None)
    mine, others = worker.crowded("a"), worker.crowded("b")
    assert mine is not None and mine.status == 429 and others is None
    gate.set()
    worker.wait_until_idle(5)
    worker.close(1)
    closing = worker.crowded("b")
    assert closing is not None and closing.status == 503


def test_another_model_is_loaded_when_a_job_asks_for_it():
    loaded: list[str] = []
    other = object()

    def load(name: str) -> Any:
        loaded.append(name)
        if name == "broken":
            raise OSError("no such weights")
        return other

    worker = Worker(lambda: PRIOR, more={name: partial(load, name) for name in ("other", "third", "broken")})
    worker.start()
    try:
        names = ["", "other", "other", "third", "other"]
        seen = [worker.submit("a", lambda prior, job: prior, model=name).result(5) for name in names]
        assert seen == [PRIOR, other, other, other, other] and loaded == ["other", "third", "other"]
        with pytest.raises(InputRefused, match="cannot be loaded"):
            worker.submit("a", lambda prior, job: prior, model="broken").result(5)
        with pytest.raises(InputRefused, match="no model named elsewhere"):
            worker.submit("a", lambda prior, job: prior, model="elsewhere")
        assert worker.submit("a", lambda prior, job: prior).result(5) is PRIOR
    finally:
        worker.close(1)


def test_a_job_that_fails_does_not_end_the_worker(worker: Worker):
    with pytest.raises(ZeroDivisionError):
        worker.submit("a", lambda prior, job: 1 // 0).result(5)
    assert worker.submit("a", lambda prior, job: 3).result(5) == 3


def test_closing_lets_the_running_job_finish_and_takes_no_more(worker: Worker):
    job, gate = blocked(worker)
    waiting = worker.submit("second", lambda prior, job: None)
    threading.Timer(0.2, gate.set).start()
    assert worker.close(5) and worker.state == "closing"
    assert job.result(0) == "whole"
    with pytest.raises(InputRefused, match="closing"):
        waiting.result(0)
    with pytest.raises(InputRefused, match="closing"):
        worker.submit("third", lambda prior, job: None)


def test_closing_cancels_what_takes_too_long(worker: Worker):
    job, _ = blocked(worker)
    began = time.monotonic()
    assert worker.close(0.1)
    assert job.result(0) == "stopped" and time.monotonic() - began < 2


def test_a_model_that_cannot_be_loaded_is_told_to_everybody():
    gate = threading.Event()

    def load() -> Prior:
        gate.wait(5)
        raise InputRefused("The unet of x is missing; fetch the model again.")

    worker = Worker(load)
    worker.start()
    assert worker.state == "loading"
    waiting = worker.submit("a", lambda prior, job: None)
    gate.set()
    with pytest.raises(InputRefused, match="unet of x is missing"):
        waiting.result(5)
    with pytest.raises(InputRefused, match="cannot be loaded"):
        worker.submit("a", lambda prior, job: None)
