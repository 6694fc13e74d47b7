"""Many machines: a Ray actor for each worker, its model loaded, that does what this process takes from the store.

The store and the output folder belong to this process alone. A task carries the bytes of its inputs and brings back
those of its results, so the machines need no common disk (they need the model: a folder of the same name, or the hub's
cache). Ray retries at least once too often rather than once too few; a result is the same each time and is written by
replacing, so that a second one changes nothing.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

from sdsedit.batch.local import GRACE, Options, fail, finish, quiet, told
from sdsedit.batch.manifest import Job
from sdsedit.batch.store import CRASHES, Claimed, Store
from sdsedit.errors import InputRefused, one_sentence

RESTARTS = 2  # of an actor, and as many retries of its task: Ray's own default is none
_BEAT = 5.0  # seconds
_DEADLINE = 28.0  # seconds for jobs to end after SIGTERM


class Hands:
    """What an actor is: a loaded model, and jobs one after the other."""

    def __init__(self, device: str | None) -> None:
        quiet()
        self._device = device
        self._model: str | None = None
        self._prior: Any = None
        self._about: dict[str, Any] = {}
        self._stop: float | None = None
        self._at = (0, 0)

    def do(self, spec: str, inputs: dict[str, str], model: str, files: dict[str, bytes]) -> dict[str, Any]:
        """Do a job in a folder of its own. Errors come back as words: Ray would take an exception for the end."""
        from sdsedit.batch.work import model_record, perform
        from sdsedit.prior.load import load_prior

        began = time.perf_counter()
        self._at = (0, 0)

        def go_on(done: int, total: int) -> bool:
            self._at = (done, total)
            return self._stop is None or time.monotonic() < self._stop

        try:
            if self._model != model:
                self._prior = self._model = None
                self._prior = load_prior(model, device=self._device)
                self._model, self._about = model, model_record(model, self._prior)
            with tempfile.TemporaryDirectory() as folder:
                for name, data in files.items():
                    path = Path(folder) / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)
                made = perform(Job.load(spec), Path(folder), inputs, self._prior, self._about, go_on)
        except Exception as error:
            passes, sentence = told(error)
            return {"passes": passes, "sentence": sentence}
        return {"made": made, "seconds": time.perf_counter() - began, "at": self._at}

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
    try:
        ray.init(address=address, **about)
    except Exception as error:  # whatever the cluster says
        raise InputRefused(f"The Ray cluster cannot be reached: {one_sentence(error)}") from None
    try:
        _drive(ray, store, options, workers, stop, tell)
    finally:
        ray.shutdown()


def _drive(
    ray: Any, store: Store, options: Options, workers: int, stop: Callable[[], int], tell: Callable[[Store], None]
) -> None:
    gpu = ray.cluster_resources().get("GPU", 0) > 0 and options.device in (None, "cuda")
    # Ray gives an actor as many threads as it has processors.
    share = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
    needs = {"num_gpus": 1} if gpu else {"num_cpus": share}
    made = ray.remote(Hands).options(
        max_restarts=RESTARTS, max_task_retries=RESTARTS, max_concurrency=2, **needs
    )  # fmt: skip
    hands: list[_Busy] = []

    def hire() -> _Busy:
        name = f"{socket.gethostname()}:{os.getpid()}.ray:{secrets.token_hex(4)}"
        return _Busy(made.remote(options.device or ("cuda" if gpu else None)), name)

    stopping, beaten = 0.0, 0.0
    from sdsedit.batch.local import gone

    store.expire(gone)
    try:
        while store.open():
            number = stop()
            if number and not stopping:
                grace = GRACE if number == signal.SIGTERM else 0.0
                stopping = time.monotonic() + (_DEADLINE if grace else 10.0)
                for hand in hands:
                    hand.actor.stop.remote(grace)
            idle = [hand for hand in hands if hand.claimed is None]
            if stopping and (len(idle) == len(hands) or time.monotonic() > stopping):
                break
            if not stopping:
                while len(hands) < min(workers, store.open()):
                    hands.append(hire())
                    idle.append(hands[-1])
                for hand in idle:
                    _give(hand, store, Path(options.root))
            ended = _ended(ray, [hand for hand in hands if hand.claimed is not None])
            for hand in ended:
                if not _take(ray, hand, store, Path(options.folder)):
                    hands.remove(hand)
            if time.monotonic() - beaten > _BEAT:
                beaten = time.monotonic()
                for hand in hands:
                    _ask_steps(ray, hand)
                    store.beat(hand.name, hand.at)
                store.expire(gone)
            tell(store)
    finally:
        for hand in hands:
            ray.kill(hand.actor)
            if hand.claimed is not None:
                store.released(hand.claimed.n, hand.name)
        tell(store)


def _give(hand: _Busy, store: Store, root: Path) -> None:
    """The next job, with the bytes of what it reads."""
    claimed = next(iter(store.claim(hand.name, hand.model)), None)
    if claimed is None:
        return
    job = claimed.job
    files: dict[str, bytes] = {}
    try:
        for name in (job.input, job.mask, job.cameras):
            if name is None:
                continue
            path = root / name
            if not path.resolve().is_relative_to(root.resolve()):
                raise InputRefused(f"{PurePosixPath(name).name} is a link that leads out of the manifest's folder.")
            every = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
            files |= {each.relative_to(root).as_posix(): each.read_bytes() for each in every}
    except (OSError, InputRefused) as error:
        fail(store, hand.name, claimed, *told(error))
        return
    hand.claimed, hand.model = claimed, claimed.model
    hand.task = hand.actor.do.remote(job.dump(), claimed.inputs, claimed.model, files)


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
    try:
        found = ray.get(task)
    except ray.exceptions.RayError as error:
        store.died(hand.name, f"on Ray ({type(error).__name__}), restarts included", CRASHES)
        return False
    if "made" in found:
        finish(store, hand.name, claimed, found["made"], folder, found["seconds"], found["at"])
    else:
        fail(store, hand.name, claimed, found["passes"], found["sentence"])
    return True


def _ask_steps(ray: Any, hand: _Busy) -> None:
    """How far it is, as of the last time that it was asked: a dead actor must not hold up the others."""
    if hand.claimed is None:
        return
    if hand.asked is not None and ray.wait([hand.asked], timeout=0)[0]:
        try:
            hand.at = {hand.claimed.n: ray.get(hand.asked)}
        except ray.exceptions.RayError:
            hand.at = {}
        hand.asked = None
    if hand.asked is None:
        hand.asked = hand.actor.steps.remote()
