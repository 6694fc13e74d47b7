"""Checkpoints of a job, kept on the disk: what the network has answered so far; of a style, where its run is.

A run is decided by its seed and by the network's answers, and nearly all of its time goes into those. So they are what
is kept: a job that is begun again is given the answers that it had, to the bit, until it comes to the first new one. It
needs nothing of the loops that ask, and serves all kinds of jobs alike; what is done beside the network (a renderer's
strokes and splats, the autoencoder) is done again. Answers that autograd has to go through are not kept, and neither
is what only such an answer is compared with: attention that a look is taken from.

A style is nothing but such answers. Its run is decided by a few small tensors, of which the last ones are kept.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdsedit.attention.probe import AttentionMaps, AttentionProbe, SeveralProbes
from sdsedit.batch.manifest import Job
from sdsedit.batch.work import Made, OnProgress, perform
from sdsedit.io.record import write_all
from sdsedit.prior.base import Prediction, Prior, Probe, Text

if TYPE_CHECKING:
    from sdsedit.style import Begun

EVERY = 20  # answers between two writings
EVERY_STEPS = 10  # of a style, likewise
MAX_BYTES = 2**30  # of one job; a larger one starts again from its beginning


class Remembering:
    """A prior that keeps its answers in `folder` and gives those that are there already.

    key: of the job; answers of another one are thrown away. All else is the prior's own.
    """

    def __init__(self, prior: Prior, folder: Path, key: str, every: int = EVERY, max_bytes: int = MAX_BYTES) -> None:
        self._prior, self._folder, self._key = prior, folder, key
        self._every, self._room = every, max_bytes
        self._past = self._read()
        self.given = 0  # answers that came from the disk
        self._parts = 0  # files read or written
        self._new: list[tuple[Tensor, Prediction]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def predict(self, z_t: Tensor, t: Tensor, text: Text, probe: Probe | None = None) -> Prediction:
        backwards = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if backwards or not (probe is None or isinstance(probe, AttentionProbe | SeveralProbes)):
            return self._prior.predict(z_t, t, text, probe)
        asked = t.float().cpu()
        for then, prediction in self._past:
            if (
                torch.equal(then, asked)
                and prediction.eps.shape == z_t.shape
                and (prediction.maps is None) == (probe is None)
            ):
                self.given += 1
                maps = _moved(prediction.maps, z_t.device)
                return Prediction(prediction.eps.to(z_t.device), maps)
            self._past = iter(())  # another run's: from here on nothing of it can be right
        prediction = self._prior.predict(z_t, t, text, probe)
        if self._room > 0 and _kept(prediction.maps):
            self._new.append((asked, Prediction(prediction.eps.detach().cpu(), _moved(prediction.maps, "cpu"))))
            if len(self._new) >= self._every:
                self.write()
        else:
            self._room = 0
        return prediction

    def write(self) -> None:
        """Keep what is new. A disk that takes no more ends the keeping, not the job."""
        if not self._new or self._room <= 0:
            return
        from safetensors.torch import save

        tensors, kinds = {}, []
        for k, (t, prediction) in enumerate(self._new):
            tensors |= {f"{k}.t": t, f"{k}.eps": prediction.eps}
            maps = prediction.maps if isinstance(prediction.maps, tuple) else (prediction.maps,)
            kinds.append(len(maps) if isinstance(prediction.maps, tuple) else -1 if prediction.maps is None else 0)
            for m, each in enumerate(maps):
                if each is not None:
                    tensors[f"{k}.{m}.cross"] = each.cross
                    if each.refined is not None:
                        tensors[f"{k}.{m}.refined"] = each.refined
        about = {"key": self._key, "kinds": json.dumps(kinds)}
        data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, about)
        self._room -= len(data)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_all([(self._folder / f"{self._parts:05d}.safetensors", data)])
        except OSError:
            self._room = 0
        self._parts += 1
        self._new = []

    def _read(self) -> Iterator[tuple[Tensor, Prediction]]:
        from safetensors import SafetensorError, safe_open

        while (file := self._folder / f"{self._parts:05d}.safetensors").is_file():
            try:
                with safe_open(file, "pt") as opened:
                    about = opened.metadata() or {}
                    if about.get("key") != self._key:
                        raise ValueError("another job's")
                    names = set(opened.keys())
                    found = {name: opened.get_tensor(name) for name in names}
                    kinds = json.loads(about["kinds"])
                self._room -= file.stat().st_size
            except (OSError, ValueError, KeyError, SafetensorError):
                with contextlib.suppress(OSError):  # it and what follows it are of no use
                    for later in sorted(self._folder.glob("*.safetensors"))[self._parts :]:
                        later.unlink()
                return
            self._parts += 1
            for k, count in enumerate(kinds):
                named = [f"{k}.{m}" for m in range(max(count, 1)) if f"{k}.{m}.cross" in found]
                every = [AttentionMaps(found[f"{name}.cross"], found.get(f"{name}.refined")) for name in named]
                maps = None if count < 0 else every[0] if count == 0 else tuple(every)
                yield found[f"{k}.t"], Prediction(found[f"{k}.eps"], maps)


class KeptRun:
    """Where the run of a style is, in `folder`, every few steps.

    key: of the job; another one's is not read.
    """

    def __init__(self, folder: Path, key: str, every: int = EVERY_STEPS) -> None:
        self._file, self._key, self._every = folder / "run.safetensors", key, every

    def step(self, begun: Begun, last: bool) -> None:
        """After a step; `last`: the run is about to stop. A disk that takes no more ends nothing."""
        walk = begun.walk
        if (walk.done % self._every and not last) or begun.z is None or walk.z is None:
            return
        from safetensors.torch import save

        names = [*begun.history[0]]
        table = [[float(step[name]) for name in names] for step in begun.history]
        tensors = {"z": begun.z, "walk": walk.z, "history": torch.tensor(table, dtype=torch.float64)}
        tensors |= {f"adam.{name}": each for name, each in walk.adam.items()}
        tensors |= {} if walk.generator is None else {"generator": walk.generator}
        about = {"key": self._key, "done": str(walk.done), "history": json.dumps(names)}
        data = save({name: each.detach().cpu().contiguous().clone() for name, each in tensors.items()}, about)
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_all([(self._file, data)])

    def read(self) -> Begun | None:
        """Where to go on; None: at the beginning."""
        from safetensors import SafetensorError, safe_open

        from sdsedit.guidance.attention_distillation import Walk
        from sdsedit.style import Begun

        try:
            with safe_open(self._file, "pt") as opened:
                about = opened.metadata() or {}
                if about.get("key") != self._key:
                    return None
                found = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
            adam = {name.removeprefix("adam."): each for name, each in found.items() if name.startswith("adam.")}
            walk = Walk(int(about["done"]), found["walk"], adam, found.get("generator"))
            names = json.loads(about["history"])
            history = [dict(zip(names, row.unbind(), strict=True)) for row in found["history"]]
        except (OSError, ValueError, KeyError, SafetensorError):
            return None
        return Begun(walk, found["z"], history)


def perform_kept(
    job: Job, root: Path, inputs: Mapping[str, str], prior: Prior, model: dict[str, Any], on_progress: OnProgress,
    folder: Path, key: str,
) -> Made:  # fmt: skip
    """`work.perform`, going on from the checkpoints in `folder` and keeping new ones there; `key` is the job's."""
    if job.kind == "style":
        return perform(job, root, inputs, prior, model, on_progress, KeptRun(folder, key))
    remembering: Any = Remembering(prior, folder, key)  # has all of a prior
    made = perform(job, root, inputs, remembering, model, on_progress)
    if made.stopped == "cancelled":
        remembering.write()
    return made


def forget(folder: Path) -> None:
    """The job is done."""
    shutil.rmtree(folder, ignore_errors=True)


def _kept(maps: Any) -> bool:
    """Whether these are maps that can be written."""
    each = maps if isinstance(maps, tuple) else (maps,)
    return all(one is None or isinstance(one, AttentionMaps) for one in each)


def _moved(maps: Any, device: torch.device | str) -> Any:
    if maps is None:
        return None
    if isinstance(maps, tuple):
        return tuple(_moved(each, device) for each in maps)
    return AttentionMaps(maps.cross.to(device), None if maps.refined is None else maps.refined.to(device))
