"""The store loses nothing: leases, retries, jobs set aside, other writers, kills, full disks."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sdsedit.batch.inputs import Planned
from sdsedit.batch.store import ATTEMPTS, CRASHES, Store
from sdsedit.errors import InputRefused

Plan = Callable[..., list[Planned]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def states(store: Store) -> dict[str, str]:
    return {each.id: each.state for each in store.entries()}


def now(store: Store) -> None:
    """What waits for its turn to come again waits no longer."""
    store._db.execute("UPDATE jobs SET not_before = 0")


def test_a_job_goes_from_waiting_to_done_and_stays_so(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(2))
        (claimed,) = store.claim("w")
        assert claimed.job.id == "job-0" and claimed.inputs == {"input": "0"} and claimed.attempts == 1
        assert states(store) == {"job-0": "running", "job-1": "waiting"} and store.open() == 2
        assert store.done(claimed.n, "w", {"a.png": "f"}, {"kept": 0.5}, 1.5)
    with Store(path) as store:  # another process, another day
        assert store.plan(planned(2)) == 0
        assert states(store) == {"job-0": "done", "job-1": "waiting"}
        (entry,) = store.entries("done")
        assert entry.files == {"a.png": "f"} and entry.facts == {"kept": 0.5} and entry.seconds == 1.5
        assert [(note.id, note.what) for _, note in store.journal()] == [("job-0", "began"), ("job-0", "done")]
        assert store.pace() == {("image", "builtin"): (1, 1.5)}


def test_a_plan_redoes_what_has_changed_and_forgets_what_is_gone(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(3))
        for _ in range(3):
            (claimed,) = store.claim("w")
            store.done(claimed.n, "w", {}, {}, 1)
        assert store.plan(planned(2, key="other")[:1] + planned(2)[1:], missing=["job-1"]) == 2
        assert states(store) == {"job-0": "waiting", "job-1": "waiting"}
        assert store.counts()["waiting"] == 2


def test_failed_jobs_are_tried_again_only_when_asked_for(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(2))
        (claimed,) = store.claim("w")
        store.failed(claimed.n, "w", "It cannot be.")
        store.plan(planned(2))
        assert states(store)["job-0"] == "failed"
        store.plan(planned(2), again=True)
        assert states(store)["job-0"] == "waiting"
        (claimed,) = store.claim("w")
        assert claimed.attempts == 1
        store.done(claimed.n, "w", {}, {}, 1)
        store.plan(planned(2), afresh=True)
        assert states(store) == {"job-0": "waiting", "job-1": "waiting"}


def test_two_workers_never_have_one_job(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(40))
    taken: list[list[int]] = [[], [], []]

    def work(k: int) -> None:
        with Store(path) as own:
            while claimed := own.claim(f"w{k}"):
                taken[k].append(claimed[0].n)
                own.done(claimed[0].n, f"w{k}", {}, {}, 0)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(n for each in taken for n in each) == list(range(1, 41))


def test_whoever_lost_the_lease_has_no_say(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(1))
        (claimed,) = store.claim("slow", lease=0.0)
        store.beat("slow", {claimed.n: (3, 9)}, lease=0.0)
        assert next(store.entries("running")).steps_done == 3
        store.expire()
        assert states(store)["job-0"] == "waiting"
        now(store)
        (again,) = store.claim("quick")
        assert not store.done(claimed.n, "slow", {}, {}, 1) and not store.failed(claimed.n, "slow", "x")
        assert store.done(again.n, "quick", {}, {}, 1)


def test_a_job_that_kills_its_workers_is_set_aside_and_the_others_go_on(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(2))
        for crash in range(CRASHES):
            now(store)
            store.claim("w")
            assert store.died("w", "by SIGKILL") == (["job-0"] if crash == CRASHES - 1 else [])
            if crash < CRASHES - 1:
                (other,) = store.claim("w")  # while it waits for its turn
                assert other.job.id == "job-1"
                store.released(other.n, "w")
        entry = next(store.entries("aside"))
        assert entry.id == "job-0" and f"died {CRASHES} times, the last one by SIGKILL" in str(entry.reason)
        assert states(store)["job-1"] == "waiting"


def test_what_is_lacking_is_waited_for_longer_and_longer_and_then_not(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(1))
        waits = []
        for _ in range(ATTEMPTS):
            now(store)
            (claimed,) = store.claim("w")
            store.again(claimed.n, "w", "No space left.")
            waits.append(store._db.execute("SELECT not_before FROM jobs").fetchone()[0] - time.time())
        assert waits[:-1] == sorted(waits[:-1]) and waits[-2] > 10 * waits[0]
        entry = next(store.entries("failed"))
        assert entry.reason == f"No space left. That was attempt {ATTEMPTS}."


def test_an_attempt_that_was_told_to_stop_does_not_count(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(1))
        (claimed,) = store.claim("w")
        store.released(claimed.n, "w", (3, 9))
        assert store.claim("w")[0].attempts == 1
        assert "stopped after step 3 of 9" in [note.said for _, note in store.journal()]


def test_jobs_of_the_loaded_model_come_first_and_those_of_one_shape_together(path: Path, planned: Plan):
    shapes, models = ((9, 9), (8, 8)) * 3, "aaaabb"
    every = [
        Planned(each.job, each.inputs, shape, model, each.key)
        for each, shape, model in zip(planned(6), shapes, models, strict=True)
    ]
    with Store(path) as store:
        store.plan(every)
        assert [each.job.id for each in store.claim("w", "b", most=4)] == ["job-4"]
        assert [each.job.id for each in store.claim("w", "a", most=4)] == ["job-0", "job-2"]
        assert [each.job.id for each in store.claim("w", "a")] == ["job-1"]


def test_a_writer_that_is_killed_leaves_the_store_whole(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(300))
    code = """
import sys
from pathlib import Path
from sdsedit.batch.store import Store
with Store(Path(sys.argv[1])) as store:
    while claimed := store.claim("w"):
        store.done(claimed[0].n, "w", {}, {}, 0)
        print(".", flush=True)
"""
    root = Path(__file__).resolve().parents[2]
    worker = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=root, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    for _ in range(20):
        worker.stdout.readline()
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    with Store(path) as store:
        assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        counts = store.counts()
        assert 19 <= counts["done"] < 300 and counts["running"] <= 1 and sum(counts.values()) == 300
        began = [note.id for _, note in store.journal() if note.what == "began"]
        assert len(began) == len(set(began))


def test_a_full_disk_is_waited_for_and_nothing_is_half_written(
    path: Path, planned: Plan, monkeypatch: pytest.MonkeyPatch
):
    """SQLite's own limit on the size of a file says the same as a full disk."""
    with Store(path, patience=5) as store:
        store.plan(planned(1))
        (claimed,) = store.claim("w")
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages}")
        waited = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                store._db.execute("PRAGMA max_page_count = 100000")  # the disk is freed

        monkeypatch.setattr(time, "sleep", sleep)
        assert store.done(claimed.n, "w", {"x" * 100_000: "y"}, {}, 1)
        assert len(waited) == 3 and states(store) == {"job-0": "done"}


def test_a_disk_that_stays_full_is_an_error_and_the_job_is_not_lost(path: Path, planned: Plan):
    with Store(path, patience=0.3) as store:
        store.plan(planned(1))
        (claimed,) = store.claim("w")
        store._db.execute(f"PRAGMA max_page_count = {store._db.execute('PRAGMA page_count').fetchone()[0]}")
        with pytest.raises(sqlite3.OperationalError, match="full"):
            store.done(claimed.n, "w", {"x" * 100_000: "y"}, {}, 1)
        assert states(store) == {"job-0": "running"}


def test_what_is_no_store(path: Path):
    path.write_bytes(os.urandom(4096))
    with pytest.raises(InputRefused, match="damaged"):
        Store(path)


def test_a_store_of_another_version(path: Path):
    with Store(path) as store:
        store._db.execute("UPDATE meta SET value = '99'")
    with pytest.raises(InputRefused, match="another version"):
        Store(path)


def crash(store: Store, worker: str) -> list[str]:
    """A run that takes the whole machine with it while it does the first job; what the store says at its start."""
    aside = store.begin_run("run", lambda name: True)
    if not aside:
        now(store)
        store.claim(worker)
    return aside


def test_a_job_that_takes_the_machine_down_each_time_starts_the_queue_paused_and_named(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(2))
        for k in range(CRASHES):
            assert crash(store, f"w{k}") == []
        assert crash(store, "w") == ["job-0"]
        assert states(store) == {"job-0": "aside", "job-1": "waiting"}
        assert [note.id for _, note in store.journal() if note.what == "paused"] == ["job-0"]
        assert crash(store, "w") == []  # it has been said: the rest goes on
        assert states(store)["job-1"] == "running"


def test_runs_that_end_are_no_reason_to_pause(path: Path, planned: Plan):
    """The job's workers die, the runs themselves end as they should: it is set aside, and the others go on."""
    with Store(path) as store:
        store.plan(planned(2))
        for k in range(CRASHES):
            assert crash(store, f"w{k}") == []
            if k == 0:
                store.end_run()
        assert crash(store, "w") == [] and states(store) == {"job-0": "aside", "job-1": "running"}


def test_files_are_put_in_place_by_the_owner_alone_and_with_the_mark(path: Path, planned: Plan):
    put: list[str] = []

    def fails() -> None:
        raise OSError("no room")

    with Store(path) as store, Store(path, reads=True) as other:
        store.plan(planned(1))
        (claimed,) = store.claim("slow", lease=0.0)
        store.expire(alive=["slow"])
        assert states(store) == {"job-0": "running"}  # its lease has ended, but it is known to live
        store.expire()
        now(store)
        store.claim("quick")
        assert not store.done(claimed.n, "slow", {}, {}, 1, lambda: put.append("slow")) and not put
        with pytest.raises(OSError, match="no room"):
            store.done(claimed.n, "quick", {}, {}, 1, fails)
        assert states(other) == {"job-0": "running"}
        assert store.done(claimed.n, "quick", {}, {}, 1, lambda: put.append(states(other)["job-0"]))
        assert put == ["running"] and states(other) == {"job-0": "done"}


def test_who_only_reads_writes_nothing_and_sees_everything(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(2))
        store.remember("root", "/somewhere")
        with Store(path, reads=True) as other:
            assert other.counts()["waiting"] == 2 and other.remembered("root") == "/somewhere"
            assert other.remembered("nothing") is None
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                other.note("job-0", "x", "y")


def test_whether_a_worker_has_taken_a_job(path: Path, planned: Plan):
    with Store(path) as store:
        store.plan(planned(1))
        before = store.journal_end()
        assert not store.took("w", before)
        store.claim("w")
        assert store.took("w", before) and not store.took("other-w", before) and not store.took("w", before + 1)
