"""When memory runs out in the middle of a run: give back what is unused, go on with less at a time, and say so.

What ran out is asked again with the same values, so a run goes on from where it was with the same random numbers.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdsedit.attention.probe import AttentionMaps, SeveralProbes
from sdsedit.errors import OutOfMemory, out_of_memory
from sdsedit.prior.base import Prediction, Prior, Probe, Text

_SMALLEST_TILE = 16  # latent cells a side: diffusers' seams need two of them
T = TypeVar("T")


class Sparing:
    """A prior that does not give up when memory runs out, for one run; all else is the prior's own.

        with Sparing(prior) as prior: ...

    What is asked of it is tried again after each of these, in this order, until it fits:

    - what is unused is given back to the device;
    - a batch is taken in two halves, then in four parts, ..., down to a row at a time: the same but for rounding;
    - the autoencoder works in tiles of half the side, then of a quarter, ... (diffusers' own, whose seams are blended);
    - one of the model's networks at a time is on the device.

    What helped stays for the rest of the run; `notes` has a sentence for each. Afterwards the autoencoder is as it was,
    and networks that were sent to main memory stay there and come when they are needed. OutOfMemory: nothing helped.
    """

    def __init__(self, prior: Prior) -> None:
        self._prior = prior
        self._rows: dict[str, int] = {}  # of one batch at most, for each of predict, encode, decode
        self._tile: int | None = None  # latent cells
        self._whole: tuple[Any, ...] | None = None  # how the autoencoder was
        self._tried: list[str] = []
        self._freed = self._offloaded = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def __enter__(self) -> Sparing:
        return self

    def __exit__(self, *_: object) -> None:
        if self._whole is not None:
            vae: Any = self._prior.vae  # pyright: ignore[reportAttributeAccessIssue]
            vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = self._whole

    @property
    def notes(self) -> tuple[str, ...]:
        found = []
        if self._tile is not None:
            side = self._tile * self._prior.factor
            found.append(
                f"Memory ran short: the autoencoder worked in tiles of {side} pixels, whose seams are blended."
            )
        if self._rows:
            found.append(f"Memory ran short: batches went through the model in parts of {min(self._rows.values())}.")
        if self._offloaded:
            found.append("Memory ran short: the model's networks took turns on the device.")
        if self._freed and not found:
            found.append("Memory ran short once: what was unused was given back, and the run went on.")
        return tuple(found)

    def encode(self, image: Tensor) -> Tensor:
        def ask(rows: int) -> Tensor:
            return torch.cat([self._prior.encode(part) for part in image.split(rows)])

        return self._fitting("encode", image.shape[0], ask, tile=max(image.shape[-2:]) // self._prior.factor)

    def decode(self, z: Tensor) -> Tensor:
        def ask(rows: int) -> Tensor:
            return torch.cat([self._prior.decode(part) for part in z.split(rows)])

        return self._fitting("decode", z.shape[0], ask, tile=max(z.shape[-2:]))

    def predict(self, z_t: Tensor, t: Tensor, text: Text, probe: Probe | None = None) -> Prediction:
        batch = z_t.shape[0]

        def ask(rows: int) -> Prediction:
            if rows >= batch:
                return self._prior.predict(z_t, t, text, probe)
            said, maps = [], []
            for start in range(0, batch, rows):
                part = slice(start, min(start + rows, batch))
                times = t[part] if t.shape[0] == batch else t
                words = text[part] if len(text) == batch else text
                listener = None if probe is None else _of_rows(probe, batch, part)
                prediction = self._prior.predict(z_t[part], times, words, listener)
                said.append(prediction.eps)
                maps.append(prediction.maps)
            return Prediction(torch.cat(said), None if probe is None else _joined(probe, iter(maps), batch, rows))

        return self._fitting("predict", batch, ask)

    def _fitting(self, kind: str, batch: int, ask: Callable[[int], T], tile: int | None = None) -> T:
        """ask(rows of a part) as soon as it fits."""
        freed = False
        while True:
            rows = min(self._rows.get(kind, batch), batch)
            try:
                return ask(max(rows, 1))
            except Exception as error:
                if not out_of_memory(error) or isinstance(error, OutOfMemory):
                    raise
            # Here the error is gone, and with it the frames that held what it could not hold.
            self._free()
            if not freed:
                freed = self._freed = True
                self._say("giving back what was unused")
            elif rows > 1:
                self._rows[kind] = (rows + 1) // 2
                self._say("smaller batches")
            elif tile is not None and self._smaller_tiles(tile):
                self._say("an autoencoder in tiles")
            elif self._offload():
                self._say("one network at a time on the device")
            else:
                raise OutOfMemory(
                    f"Out of memory: {', '.join(self._tried)} did not help; try a smaller size, or another device."
                )

    def _say(self, tried: str) -> None:
        if tried not in self._tried:
            self._tried.append(tried)

    def _free(self) -> None:
        gc.collect()
        if self._prior.device.type == "cuda" and torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif self._prior.device.type == "mps":
            torch.mps.empty_cache()

    def _smaller_tiles(self, side: int) -> bool:
        vae: Any = getattr(self._prior, "vae", None)
        tile = (min(self._tile or side, side) + 1) // 2
        if tile < _SMALLEST_TILE or not hasattr(vae, "tile_latent_min_size"):
            return False
        if self._whole is None:
            self._whole = (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size)
        vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size = True, tile * self._prior.factor, tile
        self._tile = tile
        return True

    def _offload(self) -> bool:
        """False where it is so already, where the model cannot, and on a CPU, whose memory it would not spare."""
        start = getattr(self._prior, "start_offload", None)
        if self._offloaded or start is None or self._prior.device.type == "cpu":
            return False
        self._offloaded = bool(start())
        return self._offloaded


def _of_rows(probe: Any, batch: int, part: slice) -> Any:
    """What of a probe listens to rows `part` of the batch; None: nothing."""
    if isinstance(probe, SeveralProbes):
        parts = [of for each in probe.probes if (of := _of_rows(each, batch, part)) is not None]
        return SeveralProbes(parts) if parts else None
    rows = [row - part.start for row in range(batch)[probe.rows] if part.start <= row < part.stop]
    if not rows:
        return None
    moved = copy.copy(probe)
    moved.rows = slice(rows[0], rows[-1] + 1, rows[1] - rows[0] if len(rows) > 1 else 1)
    return moved


def _joined(probe: Any, maps: Iterator[Any], batch: int, rows: int) -> Any:
    """The maps of the whole batch from those of its parts, in the order in which the probe itself gives them."""
    every = probe.probes if isinstance(probe, SeveralProbes) else (probe,)
    found: list[list[AttentionMaps]] = [[] for _ in every]
    for start, said in zip(range(0, batch, rows), maps, strict=True):
        part = slice(start, min(start + rows, batch))
        listening = [k for k, each in enumerate(every) if _of_rows(each, batch, part) is not None]
        for k, one in zip(listening, said if isinstance(said, tuple) else (said,), strict=False):
            found[k].append(one)
    joined = tuple(
        AttentionMaps(
            torch.cat([one.cross for one in parts]),
            None if parts[0].refined is None else torch.cat([one.refined for one in parts if one.refined is not None]),
        )
        for parts in found
    )
    return joined if isinstance(probe, SeveralProbes) else joined[0]
