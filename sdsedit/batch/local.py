"""One machine: worker processes, each with its model loaded, that take jobs from the store until there are none.

The parent starts them, hears their end, and has the store take back what a dead one was doing. Its word to a worker
goes through the worker's standard input; the end of that pipe is the end of the parent, and the worker stops too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sdsedit.batch.places import OWN_FOLDER
from sdsedit.batch.store import Claimed, Store
from sdsedit.errors import InputRefused, OutOfMemory, one_sentence, out_of_memory, printable
from sdsedit.model_options import Kernel, ModelOptions

if TYPE_CHECKING:
    from sdsedit.batch.work import Made
    from sdsedit.prior.base import Prior

GRACE = 20.0  # seconds that a job may take to end by itself after SIGTERM
_DEADLINE = 24.0  # seconds after which a worker that was told to stop is killed: the rest of 30 is for the report
_BEAT = 2.0  # seconds between two beats
_STILLBORN = 3  # workers in a row that died before they took a job
_ROOM = 60.0  # seconds that a finished job waits for room on a full disk before it is given back
_NO_STORE = 75  # exit code of a worker that could not write to the store: no fault of its job


KEEP_MEMORY = {
    "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TOP_PAD_": str(2**26),
}
"""For the environment of a process that edits on a CPU: glibc keeps what is freed for what comes next, instead of
giving it back to the system. Pages that come back must be cleared, which is a twentieth of an edit's time."""


@dataclass(frozen=True)
class Options:
    """What the workers of a run have in common."""

    folder: str  # of the output, absolute
    root: str  # the manifest's folder, absolute
    device: str | None = None  # None: a GPU for each worker if there are any, else the CPU
    together: int = 1  # pictures of one size that go through the network together, at most
    checkpoints: bool = True
    offload: bool | Literal["sequential"] = False
    attention: Kernel | None = None
    compile: bool = False
    tiling: bool = False

    def loading(self, model: str, device: str | None) -> ModelOptions:
        """How a worker loads the model of a job."""
        names = ("offload", "attention", "compile", "tiling")
        run: Any = {name: getattr(self, name) for name in names}
        return replace(ModelOptions.parse(model), device=device, **run)


class WorkersFail(RuntimeError):
    """Workers die before they take a job; the message says how."""


def store_path(folder: Path) -> Path:
    return folder / OWN_FOLDER / "store.sqlite"


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """InputRefused while another batch works in `folder`. The system gives the lock back when its holder dies."""
    (folder / OWN_FOLDER).mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(folder / OWN_FOLDER / "lock.sqlite", timeout=0, isolation_level=None)
    try:  # a lock of the system's: nothing is written, so that it holds on a full disk too
        try:
            db.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise InputRefused("Another batch works in this output folder: wait for it, or stop it first.") from None
        yield
    finally:
        db.close()


# ---- the parent


def run(
    store: Store, options: Options, workers: int, devices: Sequence[str] = (), stop: Callable[[], int] = lambda: 0,
    tell: Callable[[Store], None] = lambda store: None,
) -> None:  # fmt: skip
    """Work until no job is open. `stop` gives the number of a signal that was received, or 0; `tell` is called a few
    times a second. After SIGTERM jobs may end within GRACE seconds, after another signal they stop at their step."""
    count = os.cpu_count() or 1
    threads = 0 if workers == 1 else max(1, count // workers)
    hands: list[_Hand] = []
    stillborn, stopping, swept = 0, 0.0, 0.0
    begin_run(store)
    sweep(store, Path(options.folder))
    try:
        while True:
            for hand in [hand for hand in hands if hand.process.poll() is not None]:
                hands.remove(hand)
                code = hand.process.returncode
                took = store.took(hand.name, hand.after)
                hand.close()
                if code in (0, _NO_STORE):
                    store.release(hand.name)
                    stillborn = 0
                    continue
                store.died(hand.name, _how(code))
                stillborn = 0 if took else stillborn + 1
                if stillborn >= _STILLBORN:
                    raise WorkersFail(
                        f"Workers die before they take a job, the last one {_how(code)}. {hand.last_words()}"
                    )
            left = store.open()
            if not left and not hands:
                break
            if not stopping:
                while len(hands) < min(workers, left):
                    used = {hand.k for hand in hands}
                    k = next(k for k in range(workers) if k not in used)
                    device = devices[k % len(devices)] if devices else options.device
                    hands.append(_Hand(k, options, device, threads, store.journal_end()))
            if not stopping and (number := stop()):
                grace = GRACE if number == signal.SIGTERM else 0.0
                stopping = time.monotonic() + (_DEADLINE if grace else 10.0)
                store.hurry()
                for hand in hands:
                    hand.say(f"stop {grace}")
            if stopping and (not hands or time.monotonic() > stopping):
                break
            if time.monotonic() - swept > 2:
                swept = time.monotonic()
                store.expire(gone, [hand.name for hand in hands])
            tell(store)
            time.sleep(0.05 if left < workers or stopping else 0.2)
    finally:
        for hand in hands:
            hand.process.kill()
        for hand in hands:
            hand.process.wait()
            hand.close()
        end_run(store, [hand.name for hand in hands])  # told to stop, they could not: that is no fault of their jobs
        sweep(store, Path(options.folder))
        tell(store)


def begin_run(store: Store) -> None:
    """Enter a run in the store. InputRefused: it is paused, for the runs before took the machine down with them."""
    aside = store.begin_run(f"{socket.gethostname()}:{os.getpid()}", gone)
    if aside:
        shown = ", ".join(printable(id, 120) for id in aside[:5]) + (" and others" if len(aside) > 5 else "")
        raise InputRefused(
            f"The batch is paused: its last runs ended without a word, each while {shown} was being done. That is set "
            "aside and nothing was begun: look into it, then --resume goes on without it, and --retry-failed with it."
        )


def end_run(store: Store, names: Sequence[str]) -> None:
    """The run ends, and what these workers still had in hand waits for the next one. If the disk is full now, the
    next run finds out by itself."""
    store.hurry()
    with contextlib.suppress(sqlite3.OperationalError):
        for name in names:
            store.release(name)
        store.end_run()


def sweep(store: Store, folder: Path) -> None:
    """Remove what killed workers left behind: files on their way, and checkpoints of jobs that need none any more.
    Only while nobody works."""
    from sdsedit.io.record import TEMPORARY

    own = folder / OWN_FOLDER
    homes = {folder, own, own / "thumbs"} | {(folder / each.job.output).parent for each in store.entries()}
    for home in homes:
        for path in home.glob(".*.tmp"):
            if TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)
    waiting = {each.id for each in store.entries("waiting", "running", "failed", "aside")}
    for kept in (own / "checkpoints").glob("*"):
        if kept.name in waiting:
            for path in kept.glob(".*.tmp"):
                path.unlink(missing_ok=True)
        else:
            shutil.rmtree(kept, ignore_errors=True)


class _Hand:
    """A worker process as its parent holds it."""

    def __init__(self, k: int, options: Options, device: str | None, threads: int, after: int) -> None:
        self.k, self.after = k, after  # the line of the journal after which it began
        self.name = worker_name(str(k))
        package = Path(__file__).resolve().parents[2]
        path = os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])
        environment = {**KEEP_MEMORY, **os.environ, "PYTHONPATH": path}
        if threads:
            environment |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")}
        order = json.dumps({"name": self.name, "device": device, "options": asdict(options)})
        self.log = Path(options.folder) / OWN_FOLDER / f"worker-{k}.log"
        with contextlib.ExitStack() as stack:
            log: Any = subprocess.DEVNULL
            with contextlib.suppress(OSError):  # a full disk: it does without
                log = stack.enter_context(open(self.log, "wb"))
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from sdsedit.batch.local import worker; worker()", order],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=package,
                start_new_session=True,
            )  # fmt: skip

    def say(self, word: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            assert self.process.stdin is not None
            self.process.stdin.write(word.encode() + b"\n")
            self.process.stdin.flush()

    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log.read_text("utf-8", "replace").strip().splitlines()
            return printable(lines[-1], 300) if lines else ""
        return ""

    def close(self) -> None:
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()


_SELF = secrets.token_hex(4)  # of this process: its number comes again, in a container even at each start


def worker_name(k: str) -> str:
    return f"{socket.gethostname()}:{os.getpid()}.{k}:{_SELF}.{secrets.token_hex(4)}"


def gone(worker: str) -> bool:
    """Whether the parent of a worker, which the name tells, is no longer there; False if it was on another machine."""
    host, _, rest = worker.partition(":")
    number = rest.partition(".")[0]
    if host != socket.gethostname() or not number.isdigit() or os.name == "nt":
        return False
    if int(number) == os.getpid():
        return f":{_SELF}." not in rest
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"with exit code {code}"


# ---- a worker


class Stop:
    """Whether, and until when, this worker should stop."""

    def __init__(self) -> None:
        self.at: float | None = None  # monotonic time after which nothing more is done

    def after(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self.at = until if self.at is None else min(self.at, until)

    @property
    def wanted(self) -> bool:
        return self.at is not None

    @property
    def now(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at


def worker() -> None:
    """What a worker process runs; its order is its argument."""
    order = json.loads(sys.argv[1])
    name, options = order["name"], Options(**order["options"])
    stop = Stop()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.after(GRACE))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    steps: dict[int, tuple[int, int]] = {}
    threading.Thread(target=_listen, args=(stop,), daemon=True).start()
    threading.Thread(target=_beat, args=(store_path(Path(options.folder)), name, steps), daemon=True).start()
    try:
        with Store(store_path(Path(options.folder))) as store:
            Worker(store, name, options, order["device"], stop, steps).work()
    except sqlite3.OperationalError as error:  # the disk has been full for longer than the store waits
        with contextlib.suppress(OSError):
            print(f"The batch's record cannot be written: {error}", flush=True)
        os._exit(_NO_STORE)


def _listen(stop: Stop) -> None:
    for line in sys.stdin:
        word, _, seconds = line.strip().partition(" ")
        if word == "stop":
            stop.after(float(seconds))
    stop.after(0)  # the parent is gone
    time.sleep(_DEADLINE)
    os._exit(1)


def _beat(path: Path, name: str, steps: dict[int, tuple[int, int]]) -> None:
    while True:
        with contextlib.suppress(sqlite3.Error), Store(path) as store:  # a full disk: the next beat may come through
            while True:
                time.sleep(_BEAT)
                store.beat(name, dict(steps))
        time.sleep(_BEAT)


class Worker:
    """Takes jobs, does them, writes their files, and says so to the store."""

    def __init__(
        self, store: Store, name: str, options: Options, device: str | None, stop: Stop,
        steps: dict[int, tuple[int, int]],
    ) -> None:  # fmt: skip
        self.store, self.name, self.options, self.device = store, name, options, device
        self.folder, self.root = Path(options.folder), Path(options.root)
        self.stop, self.steps = stop, steps
        self.model: str | None = None  # what is loaded
        self.prior: Prior | None = None
        self.about: dict[str, Any] = {}

    def work(self) -> None:
        while not self.stop.wanted:
            claimed = self.store.claim(self.name, self.model, self.options.together)
            if not claimed:
                if not self.store.open():
                    return
                time.sleep(0.1)
                continue
            if len(claimed) == 1:
                self.one(claimed[0])
            else:
                self.several(claimed)

    def one(self, claimed: Claimed) -> None:
        began = time.perf_counter()
        try:
            made = self._made(claimed, self._loaded(claimed.model))
        except Exception as error:
            self._failed(claimed, error)
        else:
            self._finish(claimed, made, time.perf_counter() - began)
        finally:
            self.steps.pop(claimed.n, None)

    def several(self, claimed: Sequence[Claimed]) -> None:
        """Pictures of one size, together."""
        from sdsedit.batch.together import Table

        began = time.perf_counter()
        try:
            table = Table(self._loaded(claimed[0].model))
        except Exception as error:
            for each in claimed:
                self._failed(each, error)
            return
        results = table.run([lambda prior, each=each: self._made(each, prior) for each in claimed])
        seconds = (time.perf_counter() - began) / len(claimed)
        for each, made in zip(claimed, results, strict=True):
            if isinstance(made, Exception):
                self._failed(each, made)
            elif isinstance(made, BaseException):
                raise made
            else:
                self._finish(each, made, seconds)
            self.steps.pop(each.n, None)

    def _made(self, claimed: Claimed, prior: Prior) -> Made:
        from sdsedit.batch.checkpoint import perform_kept
        from sdsedit.batch.work import perform

        def go_on(done: int, total: int) -> bool:
            self.steps[claimed.n] = (done, total)
            return not self.stop.now

        what = claimed.job, self.root, claimed.inputs, prior, self.about, go_on
        if not self.options.checkpoints:
            return perform(*what)
        return perform_kept(*what, checkpoints(self.folder, claimed), claimed.key)

    def _loaded(self, model: str) -> Prior:
        if self.prior is None or self.model != model:
            self.prior, self.model = None, None  # room for the next one
            _free()
            from sdsedit.io.record import model_record
            from sdsedit.prior.load import load_model

            quiet()
            wanted = self.options.loading(model, self.device)
            self.prior = load_model(wanted)
            self.model, self.about = model, model_record(wanted.name, self.prior)
        return self.prior

    def _finish(self, claimed: Claimed, made: Made, seconds: float) -> None:
        at = self.steps.get(claimed.n, (0, 0))
        ended = finish(self.store, self.name, claimed, made, self.folder, seconds, at, lambda: not self.stop.wanted)
        if ended and self.options.checkpoints:
            from sdsedit.batch.checkpoint import forget

            forget(checkpoints(self.folder, claimed))

    def _failed(self, claimed: Claimed, error: Exception) -> None:
        _free()
        passes, sentence = told(error)
        if sentence.startswith("Internal"):
            with contextlib.suppress(OSError):  # a full disk takes no log
                traceback.print_exception(error)
        fail(self.store, self.name, claimed, passes, sentence)


def checkpoints(folder: Path, claimed: Claimed) -> Path:
    """The job's own folder for them, in the output folder."""
    return folder / OWN_FOLDER / "checkpoints" / claimed.job.id


def finish(
    store: Store, worker: str, claimed: Claimed, made: Made, folder: Path, seconds: float,
    steps: tuple[int, int] = (0, 0), may_wait: Callable[[], bool] = lambda: False,
) -> bool:  # fmt: skip
    """Write what a job made, then mark it as done: in this order, so that what is marked is there. False: it was not
    to be, and the job may come again. While the disk is full the result is kept, as long as one `may_wait`."""
    if made.stopped == "cancelled":
        store.released(claimed.n, worker, steps)
        return False
    until = time.monotonic() + _ROOM
    while True:
        try:
            return _put(store, worker, claimed, made, folder, seconds)
        except (OSError, InputRefused) as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            if not full or not may_wait() or time.monotonic() > until:
                fail(store, worker, claimed, *told(error))
                return False
        time.sleep(0.5)


def fail(store: Store, worker: str, claimed: Claimed, passes: bool, sentence: str) -> None:
    if passes:
        store.again(claimed.n, worker, sentence)
    else:
        store.failed(claimed.n, worker, sentence)


def told(error: Exception) -> tuple[bool, str]:
    """Whether it may pass, being the machine's fault and not the job's own; and one sentence."""
    names = {each.__name__ for each in type(error).__mro__}
    if isinstance(error, InputRefused) or "ModelNotFound" in names:
        return False, str(error)
    if out_of_memory(error):
        return True, str(error) if isinstance(error, OutOfMemory) else "Out of memory."
    if isinstance(error, OSError):
        return True, f"The system refused: {one_sentence(error)}."
    return False, f"Internal error ({type(error).__name__}): {one_sentence(error)}"


def _put(store: Store, worker: str, claimed: Claimed, made: Made, folder: Path, seconds: float) -> bool:
    """A job's files on the disk, each whole or not at all, and the store's mark. OSError: neither."""
    from sdsedit.io.record import staged

    home = folder.resolve()
    for name, _ in made.files:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        if not (home / name).parent.resolve().is_relative_to(home):
            raise InputRefused("The output goes through a link that leads out of the output folder.")
    files = {name: hashlib.sha256(data).hexdigest() for name, data in made.files}
    with staged([(home / name, data) for name, data in made.files]) as put:
        if made.stopped:
            reason = f"{printable(made.stopped, 200).capitalize()}; what there was of it is written, marked incomplete."
            ended = store.failed(claimed.n, worker, reason, made.facts, files, put)
        else:
            ended = store.done(claimed.n, worker, files, made.facts, seconds, put)
    if ended:
        with contextlib.suppress(OSError):  # they are not worth a job
            (home / OWN_FOLDER / "thumbs").mkdir(exist_ok=True)
            for what, data in made.thumbs.items():
                with staged([(home / OWN_FOLDER / "thumbs" / f"{claimed.job.id}.{what}.jpg", data)]) as put:
                    put()
    return ended


def quiet() -> None:
    """No bars and no chatter of the libraries."""
    import warnings

    import diffusers
    import transformers

    warnings.simplefilter("ignore")
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _free() -> None:
    import gc

    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()
