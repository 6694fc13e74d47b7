"""Many machines: a Ray actor for each worker, its model loaded, that does what this process takes from the store.

The store and the output folder belong to this process alone. A task carries the bytes of its inputs and brings back
those of its results, so the machines need no common disk (they need the model: a folder or a file of the same name, or
the hub's cache; LoRAs and taught words are sent, once to each machine). Where they do see the output folder,
checkpoints are kept there. Ray retries at least once too often rather than once too few; a result is the same each time
and is written by replacing, so that a second one changes nothing.

An actor may be restarted as often as machines go, a task is sent twice, and the store counts the job's deaths: it is
the job that is set aside, and not the actor that had bad luck with several. An actor gets its first job when it has
answered once, and one that says nothing for long loses its job to another: a cluster that has become too small for all
of them goes on with fewer.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from sdsedit.batch.local import (
    GRACE,
    Options,
    WorkersFail,
    begin_run,
    checkpoints,
    end_run,
    fail,
    finish,
    gone,
    quiet,
    sweep,
    told,
    worker_name,
)
from sdsedit.batch.manifest import Job
from sdsedit.batch.places import OWN_FOLDER
from sdsedit.batch.store import Claimed, Store
from sdsedit.errors import InputRefused, one_sentence
from sdsedit.model_options import ModelOptions, parse_lora

RETRIES = 1  # of a task whose actor died. Ray counts failures to connect too, so that the store counts once more
SILENT = 120.0  # seconds without a word after which an actor's job goes to another one
_FIRST = 900.0  # seconds until the first actor must have answered: machines of a cloud take long to come
_STILLBORN = 3  # actors in a row that cannot even begin
_BEAT = 5.0  # seconds
_DEADLINE = 24.0  # seconds for jobs to end after SIGTERM


class Hands:
    """What an actor is: a loaded model, and jobs one after the other."""

    def __init__(self, device: str | None, options: Options) -> None:
        quiet()
        self._device, self._options = device, options
        self._model: str | None = None
        self._prior: Any = None
        self._about: dict[str, Any] = {}
        self._stop: float | None = None
        self._at = (0, 0)

    def do(
        self, spec: str, inputs: dict[str, str], model: str, files: dict[str, bytes], key: str, kept: str, mark: str,
        added: dict[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        """Do a job in a folder of its own. Errors come back as words: Ray would take an exception for the end.

        kept: the job's folder for checkpoints; mark: a file beside it, which is there if this machine sees that disk.
        added: files that are added to the model's weights, by the names that `model` has for them, as Ray's objects.
        """
        from sdsedit.batch.checkpoint import perform_kept
        from sdsedit.batch.work import perform

        began = time.perf_counter()
        job = Job.load(spec)
        self._at = (0, 0)

        def go_on(done: int, total: int) -> bool:
            self._at = (done, total)
            return self._stop is None or time.monotonic() < self._stop

        try:
            if self._model != model:
                self._prior = self._model = None
                self._load(self._options.loading(model, self._device), added)
                self._model = model
            with tempfile.TemporaryDirectory() as folder:
                for name, data in files.items():
                    path = Path(folder) / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                what = job, Path(folder), inputs, self._prior, self._about, go_on
                seen = bool(kept) and Path(mark).is_file()
                made = perform_kept(*what, Path(kept), key) if seen else perform(*what)
        except Exception as error:
            passes, sentence = told(error)
            return {"passes": passes, "sentence": sentence}
        return {"made": made, "seconds": time.perf_counter() - began, "at": self._at}

    def _load(self, wanted: ModelOptions, added: dict[str, Any]) -> None:
        """With the files' bytes under names of this machine's."""
        from sdsedit.io.record import model_record
        from sdsedit.prior.load import load_model

        ray: Any = import_module("ray")
        with tempfile.TemporaryDirectory() as folder:
            here: dict[str, str] = {}
            for k, (name, sent) in enumerate(added.items()):
                path = Path(folder) / str(k) / PurePosixPath(name).name
                path.parent.mkdir()
                path.write_bytes(ray.get(sent))
                here[name] = str(path)
            loras = [parse_lora(given) for given in wanted.lora]
            wanted = replace(
                wanted,
                lora=tuple(f"{here[name]}:{scale!r}" for name, scale in loras),
                embedding=tuple(here[name] for name in wanted.embedding),
            )
            self._prior = load_model(wanted)
        self._about = model_record(wanted.name, self._prior)

    def steps(self) -> tuple[int, int]:
        return self._at

    def stop(self, grace: float) -> None:
        """`ray.cancel` does not reach into a running method: this does, at its next step."""
        self._stop = time.monotonic() + grace


@dataclass
class _Busy:
    actor: Any
    name: str
    claimed: Claimed | None = None
    task: Any = None
    model: str | None = None
    asked: Any = None  # an answer about its steps that is under way
    at: dict[int, tuple[int, int]] = field(default_factory=dict)
    ready: bool = False  # it has answered once
    heard: float = field(default_factory=time.monotonic)  # when it answered last


def run(
    store: Store, options: Options, workers: int, address: str | None, stop: Callable[[], int],
    tell: Callable[[Store], None],
) -> None:  # fmt: skip
    """As `local.run`, on a Ray cluster at `address`, or on one that is started here for the time."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:  # Ray listens on every interface, even for a cluster of one
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise InputRefused("Ray is not installed here: pip install 'sdsedit[ray]', or --engine local.") from None
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([package, os.environ.get("PYTHONPATH", "")])
    about: dict[str, Any] = {"log_to_driver": False, "runtime_env": {"env_vars": {"PYTHONPATH": path}}}
    if address is None:
        about |= {"num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False}
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    begin_run(store)
    names: list[str] = []
    mark = Path(options.folder) / OWN_FOLDER / f"seen-{secrets.token_hex(8)}"
    try:
        try:
            ray.init(address=address or "local", **about)  # without it Ray would join whatever runs on this machine
        except Exception as error:  # whatever the cluster says
            raise InputRefused(f"The Ray cluster cannot be reached: {one_sentence(error)}") from None
        for number, handler in handlers.items():  # Ray's own would end this process, its jobs and all
            signal.signal(number, handler)
        sweep(store, Path(options.folder))
        with contextlib.suppress(OSError):
            mark.touch()
        _drive(ray, store, options, workers, stop, tell, mark, names)
    finally:
        ray.shutdown()
        end_run(store, names)
        with contextlib.suppress(OSError):
            mark.unlink()
        tell(store)


def _drive(
    ray: Any, store: Store, options: Options, workers: int, stop: Callable[[], int], tell: Callable[[Store], None],
    mark: Path, names: list[str],
) -> None:  # fmt: skip
    """`names`: of the actors that are hired, for whoever has to give back what they had in hand."""
    gpu = ray.cluster_resources().get("GPU", 0) > 0 and options.device in (None, "cuda")
    # Ray gives an actor as many threads as it has processors.
    share = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
    needs = {"num_gpus": 1} if gpu else {"num_cpus": share}
    made = ray.remote(Hands).options(
        max_restarts=-1, max_task_retries=RETRIES, max_concurrency=2, **needs
    )  # fmt: skip
    hands: list[_Busy] = []
    sent: dict[str, Any] = {}  # files that go to many jobs, as Ray's objects

    def hire() -> _Busy:
        names.append(worker_name("ray"))
        return _Busy(made.remote(options.device or ("cuda" if gpu else None), options), names[-1])

    began, stopping, beaten, stillborn, ever = time.monotonic(), 0.0, 0.0, 0, False
    while store.open():
        now = time.monotonic()
        number = stop()
        if number and not stopping:
            grace = GRACE if number == signal.SIGTERM else 0.0
            stopping = now + (_DEADLINE if grace else 10.0)
            store.hurry()
            for hand in hands:
                hand.actor.stop.remote(grace)
        if stopping and (all(hand.claimed is None for hand in hands) or now > stopping):
            break
        if not stopping:
            while len(hands) < min(workers, store.open()):
                hands.append(hire())
            for hand in hands:
                if hand.ready and hand.claimed is None:
                    _give(ray, hand, store, options, mark, sent)
        for hand in _ended(ray, [hand for hand in hands if hand.claimed is not None]):
            if not _take(ray, hand, store, Path(options.folder)):
                hands.remove(hand)
        for hand in list(hands):
            try:
                _listen(ray, hand)
            except ray.exceptions.ActorDiedError as error:  # for good: it could not begin
                hands.remove(hand)
                store.release(hand.name)
                stillborn = 0 if hand.ready else stillborn + 1
                if stillborn >= _STILLBORN:
                    raise WorkersFail(f"Workers die on Ray before they take a job: {one_sentence(error)}") from None
        ever = ever or any(hand.ready for hand in hands)
        if not ever and now - began > _FIRST:
            raise WorkersFail("No machine of the Ray cluster has given a worker its place: see `ray status`.")
        for hand in _silent(hands, now):
            ray.kill(hand.actor)
            hands.remove(hand)
            store.release(hand.name)
        if now - beaten > _BEAT:
            beaten = now
            for hand in hands:
                store.beat(hand.name, hand.at)
            store.expire(gone, [hand.name for hand in hands])
        tell(store)
    for hand in hands:
        ray.kill(hand.actor)


def _silent(hands: list[_Busy], now: float) -> list[_Busy]:
    """Those with a job that have said nothing for long, if others do speak: else it is the cluster that is away."""
    if not any(hand.ready and now - hand.heard < SILENT / 4 for hand in hands):
        return []
    return [hand for hand in hands if hand.claimed is not None and now - hand.heard > SILENT]


def _give(ray: Any, hand: _Busy, store: Store, options: Options, mark: Path, sent: dict[str, Any]) -> None:
    """The next job, with the bytes of what it reads."""
    claimed = next(iter(store.claim(hand.name, hand.model)), None)
    if claimed is None:
        return
    job, root = claimed.job, Path(options.root)
    files: dict[str, bytes] = {}
    added: dict[str, Any] = {}
    try:
        for what, name in job.files.items():
            path = root / name
            if what.startswith(("lora", "embedding")):  # perhaps of the command line, and then from anywhere
                if str(path) not in sent:
                    sent[str(path)] = ray.put(path.read_bytes())
                added[str(path)] = sent[str(path)]
                continue
            if not path.resolve().is_relative_to(root.resolve()):
                raise InputRefused(f"{PurePosixPath(name).name} is a link that leads out of the manifest's folder.")
            every = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
            files |= {each.relative_to(root).as_posix(): each.read_bytes() for each in every}
    except (OSError, InputRefused) as error:
        fail(store, hand.name, claimed, *told(error))
        return
    hand.claimed, hand.model = claimed, claimed.model
    kept = str(checkpoints(Path(options.folder), claimed)) if options.checkpoints else ""
    hand.task = hand.actor.do.remote(
        job.dump(), claimed.inputs, claimed.model, files, claimed.key, kept, str(mark), added
    )  # fmt: skip


def _ended(ray: Any, busy: list[_Busy]) -> list[_Busy]:
    if not busy:
        time.sleep(0.1)
        return []
    tasks = {hand.task: hand for hand in busy}
    ready, _ = ray.wait(list(tasks), num_returns=1, timeout=0.2)
    return [tasks[task] for task in ready]


def _take(ray: Any, hand: _Busy, store: Store, folder: Path) -> bool:
    """What the actor brings back; False: it is dead, restarts and all."""
    claimed = hand.claimed
    assert claimed is not None
    hand.claimed, task, hand.task = None, hand.task, None
    hand.at = {}
    exceptions = ray.exceptions
    try:
        found = ray.get(task)
    except exceptions.RayError as error:
        store.died(hand.name, f"on Ray ({type(error).__name__}), a retry of Ray's own included")
        return not isinstance(error, exceptions.ActorDiedError)
    hand.heard = time.monotonic()
    if "made" not in found:
        fail(store, hand.name, claimed, found["passes"], found["sentence"])
    elif finish(store, hand.name, claimed, found["made"], folder, found["seconds"], found["at"]):
        shutil.rmtree(checkpoints(folder, claimed), ignore_errors=True)
    return True


def _listen(ray: Any, hand: _Busy) -> None:
    """How far it is, as of the last time that it answered: a dead actor must not hold up the others."""
    if hand.asked is not None and ray.wait([hand.asked], timeout=0)[0]:
        asked, hand.asked = hand.asked, None
        try:
            at = ray.get(asked)
        except ray.exceptions.ActorDiedError:
            raise
        except ray.exceptions.RayError:  # it is being restarted
            return
        hand.ready, hand.heard = True, time.monotonic()
        hand.at = {} if hand.claimed is None else {hand.claimed.n: at}
    if hand.asked is None and (not hand.ready or time.monotonic() - hand.heard > 1):
        hand.asked = hand.actor.steps.remote()
