"""Checkpoints of a job: what the network has answered so far, kept on the disk.

A run is decided by its seed and by the network's answers, and nearly all of its time goes into those. So they are what
is kept: a job that is begun again is given the answers that it had, to the bit, until it comes to the first new one. It
needs nothing of the loops that ask, and serves all kinds of jobs alike; what is done beside the network (a renderer's
strokes and splats, the autoencoder) is done again. Answers that autograd has to go through are not kept.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdsedit.attention.probe import AttentionMaps
from sdsedit.io.record import write_all
from sdsedit.prior.base import Prediction, Prior, Probe, Text

EVERY = 20  # answers between two writings
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
        if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
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

    def forget(self) -> None:
        """The job is done."""
        self._past, self._new = iter(()), []
        with contextlib.suppress(OSError):
            shutil.rmtree(self._folder)

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
