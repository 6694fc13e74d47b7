"""One thread owns the model. Everybody's jobs stand in one fair line in front of it.

Jobs are taken in turn from the people who wait (round robin), first come first served within one person. A quick job (a
heat-map, an earlier state of an edit) need not wait for an edit to end: the running one lets it in between two of its
steps. Cancelling sets a flag that the running job reads at every step.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

from sdsedit.errors import InputRefused, one_sentence, out_of_memory, printable
from sdsedit.prior.base import Prior


class Cancelled(Exception):
    """The job was cancelled before it began."""


class Job:
    """Something that somebody waits for: `done`, then `result()`; `report`, the newest news of it, meanwhile."""

    def __init__(
        self, person: str, run: Callable[[Prior, Job], Any], quick: bool, model: str = "", kind: str = "look"
    ) -> None:
        self.person, self.run, self.quick, self.model, self.kind = person, run, quick, model, kind
        self.asked = time.monotonic()
        self.waited = self.worked = 0.0  # seconds in line, seconds of work
        self.cancelled = False
        self.started = False
        self.done = threading.Event()
        self.report: Any = None  # replaced whole, never changed
        self.between_steps: Callable[[], None] = lambda: None  # lets quick jobs in; the job calls it
        self.over: Callable[[Job], None] = lambda job: None  # told once it is, before whoever waits for it
        self._value: Any = None
        self._error: BaseException | None = None

    def cancel(self) -> None:
        self.cancelled = True

    def result(self, timeout: float | None = None) -> Any:
        """What the job returned. Raises what it raised, Cancelled if it never began, TimeoutError."""
        if not self.done.wait(timeout):
            raise TimeoutError("The job is still running.")
        if self._error is not None:
            raise self._error
        return self._value

    def finish(self, value: Any = None, error: BaseException | None = None) -> None:
        self._value, self._error = value, error
        self.over(self)
        self.done.set()

    @property
    def outcome(self) -> str:
        """ "done", "stopped" (by who asked for it, or by the page's end), "refused" or "failed", once it is over."""
        if isinstance(self._error, InputRefused):
            return "refused"
        if self.cancelled:
            return "stopped"
        return "done" if self._error is None else "failed"


class Worker:
    """The thread, the line, and the model once it is loaded."""

    def __init__(
        self,
        load: Callable[[], Prior],
        waiting: int = 64,
        waiting_each: int = 8,
        more: Mapping[str, Callable[[], Prior]] | None = None,
        over: Callable[[Job], None] = lambda job: None,
    ) -> None:
        """load: the usual model, which stays in memory. more: others by their name; the last one used stays too.
        over: told of every job that is over, however it ended."""
        self._load = load
        self._more = dict(more or {})
        self._other: tuple[str, Prior] | None = None
        self._limits = waiting, waiting_each
        self._over = over
        self._changed = threading.Condition()  # re-entrant
        self._lines: OrderedDict[str, deque[Job]] = OrderedDict()  # person -> jobs; the first person is next
        self._quick: deque[Job] = deque()
        self._running: Job | None = None
        self._closing = False
        self._prior: Prior | None = None
        self._failed: str = ""
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def state(self) -> str:
        """ "loading", "ready", "closing", or the sentence that says why there is no model."""
        if self._closing:
            return "closing"
        return self._failed or ("loading" if self._prior is None else "ready")

    @property
    def loaded(self) -> bool:
        return self._prior is not None

    @property
    def waiting(self) -> int:
        """Jobs in line."""
        with self._changed:
            return sum(map(len, self._lines.values())) + len(self._quick)

    @property
    def running(self) -> bool:
        return self._running is not None

    def submit(
        self,
        person: str,
        run: Callable[[Prior, Job], Any],
        quick: bool = False,
        model: str = "",
        kind: str = "look",
    ) -> Job:
        """Put a job in line; `model` is one of `more`, "" the usual one; `kind` is what it is counted as.

        InputRefused with status 429 or 503: this person's or everybody's line is full, or the page is closing.
        """
        if model and model not in self._more:
            raise InputRefused(f"There is no model named {printable(model, 60)} here.")
        job = Job(person, run, quick, model, kind)
        job.over = self._over
        with self._changed:
            if self._failed:
                raise InputRefused(self._failed, status=503)
            if (refused := self.crowded(person)) is not None:
                raise refused
            if quick:
                self._quick.append(job)
                job.between_steps = lambda: None
            else:
                self._lines.setdefault(person, deque()).append(job)
                job.between_steps = self._let_quick_jobs_in
            self._changed.notify_all()
        return job

    def crowded(self, person: str) -> InputRefused | None:
        """Why a further job would be refused just now, if it would be."""
        with self._changed:
            if self._closing:
                return InputRefused("The page is closing; try again in a minute.", status=503)
            mine = len(self._lines.get(person, ())) + sum(each.person == person for each in self._quick)
            if mine >= self._limits[1]:
                return InputRefused(
                    f"You have {mine} jobs in line already; wait until one is done, or stop one.", status=429
                )
            if self.waiting >= self._limits[0]:
                return InputRefused("The line is full; try again in a minute.", status=503)
        return None

    def ahead(self, job: Job) -> int:
        """Jobs that will be run before this one, as things stand."""
        with self._changed:
            if job.started or job.done.is_set():
                return 0
            lines = [list(line) for line in self._lines.values()]
            order = [each for turn in zip(*_padded(lines), strict=True) for each in turn if each is not None]
            before = order.index(job) if job in order else 0
            return before + (self._running is not None)

    def cancel_all(self, person: str) -> None:
        """Cancel whatever this person runs or waits for."""
        with self._changed:
            jobs = [*self._lines.get(person, ()), *(job for job in self._quick if job.person == person)]
            if self._running is not None and self._running.person == person:
                jobs.append(self._running)
        for job in jobs:
            job.cancel()

    def close(self, timeout: float = 30.0, stopping: float = 2.0) -> bool:
        """Take no more jobs, drop those that wait, let the running one finish; whether it is over.

        One that is not done after `timeout` is asked to stop, and has `stopping` seconds to do so with what there is.
        """
        with self._changed:
            self._closing = True
            waiting = [job for line in self._lines.values() for job in line] + list(self._quick)
            self._lines.clear()
            self._quick.clear()
            running = self._running
            self._changed.notify_all()
        for job in waiting:
            job.finish(error=InputRefused("The page is closing; try again in a minute.", status=503))
        if running is not None and not running.done.wait(timeout):
            running.cancel()  # it stops at its next step and keeps what there is
            running.done.wait(stopping)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(1)
        return running is None or running.done.is_set()

    def wait_until_idle(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end and (self._running or self._lines or self._quick):
            time.sleep(0.02)

    # ---- on the thread

    def _work(self) -> None:
        try:
            self._prior = self._load()
        except Exception as error:
            self._failed = f"The model cannot be loaded: {one_sentence(error)}"
            with self._changed:
                waiting = [job for line in self._lines.values() for job in line] + list(self._quick)
                self._lines.clear()
                self._quick.clear()
            for job in waiting:
                job.finish(error=InputRefused(self._failed, status=503))
            return
        while (job := self._next()) is not None:
            self._run(job)

    def _next(self) -> Job | None:
        with self._changed:
            while not self._closing:
                if self._quick:
                    job = self._quick.popleft()
                elif self._lines:
                    person, line = self._lines.popitem(last=False)
                    job = line.popleft()
                    if line:
                        self._lines[person] = line  # to the end: it is the others' turn
                else:
                    self._running = None
                    self._changed.wait()
                    continue
                self._running = job
                return job
            self._running = None
            return None

    def _run(self, job: Job) -> None:
        began = time.monotonic()
        job.waited = began - job.asked
        if job.cancelled:
            job.finish(error=Cancelled())
            return
        job.started = True
        try:
            value = job.run(self._prior_of(job), job)
        except BaseException as error:  # the worker outlives every job
            job.worked = time.monotonic() - began
            job.finish(error=error)
            _free_memory(error)
        else:
            job.worked = time.monotonic() - began
            job.finish(value)

    def _prior_of(self, job: Job) -> Prior:
        """The job's model, loaded if another one was used last. InputRefused: it cannot be."""
        if not job.model:
            assert self._prior is not None
            return self._prior
        if self._other is None or self._other[0] != job.model:
            self._other = None  # two would not fit
            try:
                self._other = job.model, self._more[job.model]()
            except Exception as error:
                raise InputRefused(f"The model cannot be loaded: {one_sentence(error)}", status=503) from None
        return self._other[1]

    def _let_quick_jobs_in(self) -> None:
        while True:
            with self._changed:
                if not self._quick or self._closing:
                    return
                job = self._quick.popleft()
            self._run(job)


def _padded(lines: list[list[Job]]) -> list[list[Job | None]]:
    longest = max(map(len, lines), default=0)
    return [[*line, *[None] * (longest - len(line))] for line in lines]


def _free_memory(error: BaseException) -> None:
    """Give an accelerator's memory back after it ran out, so that the next job has it."""
    if out_of_memory(error):
        import torch

        error.__traceback__ = None  # it holds the tensors
        torch.cuda.empty_cache()
