"""What is to be done, what is being done, what is done: one SQLite file, which survives what its writers do not.

A job is `waiting`, `running`, `done`, `failed` (it said why; it is not tried again unless asked for) or `aside` (it
killed its worker again and again). A running job belongs to one worker until its lease ends; whoever lost the lease can
no longer say anything about the job, nor put its files in place: `done` renames them while it holds the store, so that
no two workers' files of one job are ever mixed. Writing order of a result: its files whole, then this store's mark.

Runs are counted too. A job that takes the whole machine with it leaves runs behind that never ended: see `begin_run`.

The write-ahead log is not forced to the disk at every mark (synchronous=NORMAL): after a power cut the last marks may
be missing, never wrong, and their jobs are done again.
"""

from __future__ import annotations

import functools
import json
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sdsedit.batch.inputs import Planned, Seen
from sdsedit.batch.manifest import Job
from sdsedit.errors import InputRefused, printable

STATES = ("waiting", "running", "done", "failed", "aside")
LEASE = 30.0  # seconds; a worker renews it many times in that
CRASHES = 3  # a job's workers that died: the first one's and two retries'
ATTEMPTS = 6  # of a job that fails for want of something: disk, memory
_VERSION = 1
_PATIENCE = 120.0  # seconds that a write waits for a full disk
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS jobs (
    n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, line INTEGER, kind TEXT, model TEXT, shape TEXT,
    key TEXT NOT NULL, spec TEXT NOT NULL, inputs TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER DEFAULT 0, crashes INTEGER DEFAULT 0,
    not_before REAL DEFAULT 0, worker TEXT, lease_until REAL, steps_done INTEGER DEFAULT 0,
    steps_total INTEGER DEFAULT 0, started REAL, finished REAL, seconds REAL, reason TEXT, files TEXT, facts TEXT);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, model, n);
CREATE INDEX IF NOT EXISTS by_shape ON jobs (state, model, shape, n);
CREATE TABLE IF NOT EXISTS journal (at REAL, id TEXT, what TEXT, said TEXT);
CREATE TABLE IF NOT EXISTS seen (what TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT, size TEXT);
CREATE TABLE IF NOT EXISTS runs (began REAL, who TEXT, ended REAL);
"""
T = TypeVar("T")
P = ParamSpec("P")


def _transaction(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
    """All that the method writes, or nothing. A full disk may be freed, and what is done must not be lost for it: the
    whole method is tried again, until the store's patience ends."""

    @functools.wraps(method)
    def run(store: Store, *args: P.args, **kwargs: P.kwargs) -> T:
        db = store._db
        if db.in_transaction:  # part of another one
            return method(store, *args, **kwargs)
        until = time.monotonic() + store._patience
        while True:
            try:
                db.execute("BEGIN IMMEDIATE")
                result = method(store, *args, **kwargs)
                db.execute("COMMIT")
                return result
            except BaseException as error:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                passes = isinstance(error, sqlite3.OperationalError) and re.search("full|locked|busy|I/O", str(error))
                if not passes or time.monotonic() > until:
                    raise
                time.sleep(0.2)

    return run


@dataclass(frozen=True)
class Claimed:
    """A job that this worker does now."""

    n: int
    job: Job
    key: str
    inputs: dict[str, str]
    model: str  # ModelOptions.dump()
    attempts: int  # this one included


@dataclass(frozen=True)
class Entry:
    """A job as a report shows it."""

    n: int
    id: str
    line: int
    kind: str
    state: str
    attempts: int
    crashes: int
    worker: str | None
    steps_done: int
    steps_total: int
    seconds: float | None
    finished: float | None
    reason: str | None
    files: dict[str, str]
    facts: dict[str, Any]
    job: Job
    model: str
    key: str


@dataclass(frozen=True)
class Note:
    """A line of the journal."""

    at: float  # seconds since 1970
    id: str
    what: str
    said: str


class Store:
    """The store of one output folder. An object belongs to one thread; processes and threads each open their own."""

    def __init__(self, path: Path, patience: float = _PATIENCE, reads: bool = False) -> None:
        """patience: seconds that a write waits for a full disk; reads: nothing is written, the store must be there."""
        self.path, self._patience = path, patience
        try:
            if reads:
                self._db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", 60, isolation_level=None, uri=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
                self._db.execute("PRAGMA busy_timeout = 60000")
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = NORMAL")
                self._make()
            version = self._db.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()[0]
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "not a database" not in str(error):
                raise
            raise InputRefused(
                "The batch's own record in this folder is damaged: give another output folder."
            ) from None
        if version != str(_VERSION):
            raise InputRefused("The batch in this folder was begun by another version: finish it there, or start anew.")

    @_transaction
    def _make(self) -> None:
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('version', ?)", (str(_VERSION),))

    def close(self) -> None:
        self._db.close()

    def hurry(self) -> None:
        """From here on nothing waits for a full disk: this process is about to end."""
        self._patience = 1.0

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- plans

    @_transaction
    def plan(
        self, planned: Sequence[Planned], again: bool = False, afresh: bool = False, missing: Iterable[str] = ()
    ) -> int:
        """Take in a manifest. What is done under the same key stays done, all else waits.

        again: failed jobs and those set aside wait too. afresh: everything does. missing: ids whose files are gone.
        Jobs that are no longer in the manifest are forgotten; their files stay. Gives how many that were done are to be
        done again, because something that decides them has changed or their files are gone.
        """
        renewed = 0
        gone = set(missing)
        now = time.time()
        known = {row[0]: row[1:] for row in self._db.execute("SELECT id, key, state FROM jobs")}
        self._db.execute("UPDATE jobs SET n = -n")  # numbers follow the manifest's order
        for n, each in enumerate(planned, 1):
            job = each.job
            spec = (n, job.line, job.kind, each.model, each.shape, job.dump(), json.dumps(each.inputs))
            key, state = known.pop(job.id, (None, None))
            keep = state == "done" and key == each.key and job.id not in gone and not afresh
            keep |= state in ("failed", "aside") and key == each.key and not again and not afresh
            keep |= state in ("waiting", "running") and key == each.key and not afresh
            if state is None:
                self._db.execute(
                    "INSERT INTO jobs (n, line, kind, model, shape, spec, inputs, id, key) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*spec, job.id, each.key),
                )
                continue
            self._db.execute(
                "UPDATE jobs SET n = ?, line = ?, kind = ?, model = ?, shape = ?, spec = ?, inputs = ? WHERE id = ?",
                (*spec, job.id),
            )
            if not keep:
                self._db.execute(
                    "UPDATE jobs SET key = ?, state = 'waiting', attempts = 0, crashes = 0, not_before = 0, "
                    "worker = NULL, reason = NULL, files = NULL, facts = NULL, steps_done = 0 WHERE id = ?",
                    (each.key, job.id),
                )
                self._note(now, job.id, "again", f"it was {state}")
                renewed += state == "done" and not afresh
        for id in known:
            self._db.execute("DELETE FROM jobs WHERE id = ?", (id,))
            self._note(now, id, "forgotten", "it is no longer in the manifest")
        return renewed

    def seen(self) -> Seen:
        """What was found when the inputs were looked at."""
        try:
            rows = self._db.execute("SELECT what, stamp, sha256, size FROM seen").fetchall()
        except sqlite3.OperationalError:  # a store that is only read, from before there was this table
            return {}
        return {what: (stamp, sha256, json.loads(size)) for what, stamp, sha256, size in rows}

    @_transaction
    def keep_seen(self, seen: Seen) -> None:
        rows = ((what, stamp, sha256, json.dumps(size)) for what, (stamp, sha256, size) in seen.items())
        self._db.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", rows)

    def begun(self) -> set[str]:
        """Ids of jobs that have been tried here, whose files may be there."""
        return {row[0] for row in self._db.execute("SELECT id FROM jobs WHERE attempts > 0 OR state = 'done'")}

    # ---- runs

    @_transaction
    def begin_run(self, who: str, gone: Callable[[str], bool]) -> list[str]:
        """A run begins, unless the last CRASHES ones all ended without a word and left the same jobs running.

        Those are then set aside and their ids given, no run is entered, and the caller should begin nothing: a person
        has to be told which jobs may have taken the machine down. The next call begins.
        """
        aside = self.expire(gone)
        silent = 0
        for (ended,) in self._db.execute("SELECT ended FROM runs ORDER BY rowid DESC"):
            if ended is not None:
                break
            silent += 1
        now = time.time()
        if aside and silent >= CRASHES:
            self._db.execute("UPDATE runs SET ended = ? WHERE ended IS NULL", (now,))
            for id in aside:
                self._note(now, id, "paused", f"{silent} runs in a row ended without a word while it was being done")
            return aside
        self._db.execute("INSERT INTO runs VALUES (?, ?, NULL)", (now, who))
        return []

    @_transaction
    def end_run(self) -> None:
        self._db.execute("UPDATE runs SET ended = ? WHERE ended IS NULL", (time.time(),))

    # ---- workers

    @_transaction
    def claim(self, worker: str, model: str | None = None, most: int = 1, lease: float = LEASE) -> list[Claimed]:
        """The next job for a worker that has `model` loaded; with `most`, others of its shape too. Empty: none now."""
        now = time.time()
        free = "state = 'waiting' AND not_before <= ?"
        columns = "n, spec, key, inputs, model, attempts, shape, kind, id"
        row = None
        if model is not None:
            row = self._db.execute(
                f"SELECT {columns} FROM jobs WHERE {free} AND model = ? ORDER BY n LIMIT 1", (now, model)
            ).fetchone()
        if row is None:
            row = self._db.execute(f"SELECT {columns} FROM jobs WHERE {free} ORDER BY n LIMIT 1", (now,)).fetchone()
        if row is None:
            return []
        rows = [row]
        if most > 1 and row[6]:
            rows = self._db.execute(
                f"SELECT {columns} FROM jobs WHERE {free} AND model = ? AND shape = ? ORDER BY n LIMIT ?",
                (now, row[4], row[6], most),
            ).fetchall()
        for each in rows:
            self._db.execute(
                "UPDATE jobs SET state = 'running', worker = ?, lease_until = ?, started = ?, "
                "attempts = attempts + 1, steps_done = 0, steps_total = 0 WHERE n = ?",
                (worker, now + lease, now, each[0]),
            )
            self._note(now, each[8], "began", f"attempt {each[5] + 1}, {worker}")
        return [Claimed(r[0], Job.load(r[1]), r[2], json.loads(r[3]), r[4], r[5] + 1) for r in rows]

    @_transaction
    def beat(self, worker: str, steps: dict[int, tuple[int, int]], lease: float = LEASE) -> None:
        """The worker lives; `steps`: of its jobs, by their n, those done and all."""
        self._db.execute(
            "UPDATE jobs SET lease_until = ? WHERE worker = ? AND state = 'running'", (time.time() + lease, worker)
        )
        for n, (done, total) in steps.items():
            self._db.execute(
                "UPDATE jobs SET steps_done = ?, steps_total = ? WHERE n = ? AND worker = ?",
                (done, total, n, worker),
            )

    def done(
        self, n: int, worker: str, files: dict[str, str], facts: dict[str, Any], seconds: float,
        put: Callable[[], None] = lambda: None,
    ) -> bool:  # fmt: skip
        """The job is done. `put` puts its files in place (again does no harm), and is called only if the job is still
        the worker's. False: it is not, another worker has it."""
        said = f"{seconds:.1f} s"
        return self._ended(
            n, worker, "done", None, said, put, files=json.dumps(files), facts=json.dumps(facts), seconds=seconds
        )

    def failed(
        self, n: int, worker: str, reason: str, facts: dict[str, Any] | None = None,
        files: dict[str, str] | None = None, put: Callable[[], None] = lambda: None,
    ) -> bool:  # fmt: skip
        """The job cannot be done; nobody tries again until somebody says so. What there is of it, `put` puts there."""
        return self._ended(
            n, worker, "failed", reason, reason, put, facts=json.dumps(facts or {}), files=json.dumps(files or {})
        )

    @_transaction
    def again(self, n: int, worker: str, reason: str) -> bool:
        """Something was lacking, disk or memory: later, each time later still, and after ATTEMPTS not at all."""
        row = self._db.execute("SELECT attempts FROM jobs WHERE n = ? AND worker = ?", (n, worker)).fetchone()
        if row is None:
            return False
        if row[0] >= ATTEMPTS:
            return self.failed(n, worker, f"{reason} That was attempt {row[0]}.")
        wait = min(2.0 ** (row[0] - 1), 60.0)
        said = f"{reason} Again in {wait:g} s."
        return self._ended(n, worker, "waiting", reason, said, not_before=time.time() + wait)

    def released(self, n: int, worker: str, steps: tuple[int, int] = (0, 0)) -> bool:
        """The worker was told to stop; the job waits, and this attempt does not count."""
        said = f"stopped after step {steps[0]} of {steps[1]}" if steps[1] else "stopped"
        return self._ended(n, worker, "waiting", None, said, less=1)

    def release(self, worker: str) -> None:
        """The same for all that a worker has in hand."""
        for n in self.running(worker):
            self.released(n, worker)

    @_transaction
    def died(self, worker: str, how: str, times: int = 1) -> list[str]:
        """A worker is gone: its jobs wait, later each time, or are set aside; gives the ids of those. `times`: that it
        has died over the same jobs."""
        rows = self._db.execute(
            "SELECT n, id, crashes FROM jobs WHERE worker = ? AND state = 'running'", (worker,)
        ).fetchall()
        aside = []
        for n, id, crashes in rows:
            crashes += times
            if crashes >= CRASHES:
                reason = f"Its worker died {crashes} times, the last one {how}."
                if self._ended(n, worker, "aside", reason, reason, crashes=crashes):
                    aside.append(id)
            else:
                wait = 2.0 ** (crashes - 1)
                said = f"its worker died: {how}; again in {wait:g} s"
                self._ended(n, worker, "waiting", None, said, crashes=crashes, not_before=time.time() + wait)
        return aside

    def expire(self, gone: Callable[[str], bool] = lambda worker: False, alive: Iterable[str] = ()) -> list[str]:
        """Take back jobs whose lease has ended, or whose worker is known to be `gone`; gives the ids of those that are
        set aside for it. `alive`: workers that are known to live, whatever their lease says (a full disk keeps them
        from renewing it)."""
        now = time.time()
        rows = self._db.execute("SELECT DISTINCT worker, lease_until FROM jobs WHERE state = 'running'").fetchall()
        lost = {worker for worker, until in rows if until < now or gone(worker)} - set(alive)
        return [id for worker in sorted(lost) for id in self.died(worker, "without a word")]

    @_transaction
    def _ended(
        self, n: int, worker: str, state: str, reason: str | None, said: str,
        put: Callable[[], None] = lambda: None, less: int = 0, **columns: Any,
    ) -> bool:  # fmt: skip
        now = time.time()
        values = {"state": state, "reason": reason, "finished": now, "worker": None, **columns}
        names = ", ".join(f"{name} = ?" for name in values)
        row = self._db.execute(
            "SELECT id FROM jobs WHERE n = ? AND worker = ? AND state = 'running'", (n, worker)
        ).fetchone()
        if row is None:
            return False
        put()
        self._db.execute(f"UPDATE jobs SET {names}, attempts = attempts - {less:d} WHERE n = ?", (*values.values(), n))
        self._note(now, row[0], state, said)
        return True

    def running(self, worker: str) -> list[int]:
        """What a worker has in hand."""
        rows = self._db.execute("SELECT n FROM jobs WHERE worker = ? AND state = 'running'", (worker,))
        return [row[0] for row in rows]

    def took(self, worker: str, after: int = 0) -> bool:
        """Whether a worker has begun a job since line `after` of the journal."""
        rows = self._db.execute("SELECT said FROM journal WHERE rowid > ? AND what = 'began'", (after,))
        return any(said.endswith(f", {worker}") for (said,) in rows)

    # ---- reports

    @_transaction
    def remember(self, name: str, value: str) -> None:
        """A fact about the whole batch, such as the folder that its inputs are relative to."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def remembered(self, name: str) -> str | None:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def counts(self) -> dict[str, int]:
        found = dict(self._db.execute("SELECT state, COUNT(*) FROM jobs GROUP BY state"))
        return {state: found.get(state, 0) for state in STATES}

    def open(self) -> int:
        """Jobs that wait or run."""
        return self._db.execute("SELECT COUNT(*) FROM jobs WHERE state IN ('waiting', 'running')").fetchone()[0]

    def entries(self, *states: str) -> Iterator[Entry]:
        """Jobs in the manifest's order; of these states, or all."""
        of = f"WHERE state IN ({', '.join('?' * len(states))})" if states else ""
        columns = (
            "n, id, line, kind, state, attempts, crashes, worker, steps_done, steps_total, seconds, finished, reason"
        )
        statement = f"SELECT files, facts, spec, model, key, {columns} FROM jobs {of} ORDER BY n"
        for files, facts, spec, model, key, *rest in self._db.execute(statement, states):
            known = {"files": json.loads(files or "{}"), "facts": json.loads(facts or "{}"), "job": Job.load(spec)}
            yield Entry(*rest, **known, model=model, key=key)

    def journal(self, after: int = 0, last: int | None = None) -> Iterator[tuple[int, Note]]:
        """Lines of the journal with their numbers: those after a number, or the last few."""
        if last is not None:
            after = max(after, self.journal_end() - last)
        for row in self._db.execute(
            "SELECT rowid, at, id, what, said FROM journal WHERE rowid > ? ORDER BY rowid", (after,)
        ):
            yield row[0], Note(*row[1:])

    def journal_end(self) -> int:
        """The number of the last line."""
        return self._db.execute("SELECT MAX(rowid) FROM journal").fetchone()[0] or 0

    @_transaction
    def note(self, id: str, what: str, said: str) -> None:
        self._note(time.time(), id, what, said)

    def pace(self) -> dict[tuple[str, str], tuple[int, float]]:
        """(kind, model) -> jobs done and the seconds that one took, on average."""
        rows = self._db.execute(
            "SELECT kind, model, COUNT(*), AVG(seconds) FROM jobs WHERE state = 'done' AND seconds > 0 "
            "GROUP BY kind, model"
        )
        return {(kind, model): (count, mean) for kind, model, count, mean in rows}

    # ---- writing

    def _note(self, at: float, id: str, what: str, said: str) -> None:
        self._db.execute("INSERT INTO journal VALUES (?, ?, ?, ?)", (at, id, what, printable(said, 1000)))
