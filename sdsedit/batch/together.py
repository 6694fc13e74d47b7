"""Several edits of pictures at once: each runs its own loop in a thread, and what they ask the network is put together.

A forward pass of eight rows takes less time than four of two rows, where a machine has more units than one small pass
keeps busy. The loops know nothing of it. Each has its own seed, steps and method; a round waits for every loop that is
still at the table, so that those that walk in step share every pass.

The threads of a CPU wait for each other at the end of every operation, which costs a small pass as much as they gain.
There the loops sit at several tables, each with the same weights and a thread of its own; and the weights are laid out
for many rows.

A result differs from that of the same edit alone by rounding: a convolution over more rows, by fewer threads or in
another layout adds up in another order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdsedit.attention.probe import AttentionProbe, SeveralProbes
from sdsedit.errors import out_of_memory
from sdsedit.prior.base import Prediction, Prior, Probe, Text, Tokens

MAX_ROWS = 64  # of one pass
_MAX_TABLES = 4  # Python runs one thread at a time: the passes of more would wait for it
T = TypeVar("T")


@dataclass
class _Question:
    kind: str  # "predict", "encode", "decode"; anything else is answered alone
    args: tuple[Any, ...]
    inference: bool  # whether it was asked under torch.inference_mode
    grad: bool = False  # whether autograd goes through the answer: then it is answered alone
    answered: threading.Event = field(default_factory=threading.Event)
    answer: Any = None
    error: BaseException | None = None


class Table:
    """A prior that several loops share; `run` gives each a seat.

    tables: on a CPU, at how many the loops sit; None: two loops or more at each, and no more than there are threads.
    """

    def __init__(self, prior: Prior, tables: int | None = None) -> None:
        self._prior = prior
        self._tables = tables
        self._alone = threading.Lock()  # held by what all tables share: tokenizers, the prompts that are remembered
        self._changed = threading.Condition()
        self._seated = 0
        self._asked: list[_Question] = []
        self._most = MAX_ROWS  # of one pass, fewer once memory ran out
        self.passes = 0  # of the network
        self.rows = 0  # in those passes

    def run(self, loops: Sequence[Callable[[Prior], T]]) -> list[T | BaseException]:
        """Run all loops, each with a prior of its own; what each returned or raised. Called in the thread that may use
        the device: all work of the network is done in it, but for a CPU's."""
        if self._prior.device.type != "cpu":
            return self._serve(loops)
        layout = getattr(self._prior, "for_many_rows", nullcontext)  # not every kind of model has one, nor twins
        with layout():
            return self._on_cpu(loops)

    def _on_cpu(self, loops: Sequence[Callable[[Prior], T]]) -> list[T | BaseException]:
        threads = torch.get_num_threads()
        tables = self._tables or min(threads, len(loops) // 2, _MAX_TABLES)
        twin = getattr(self._prior, "twin", None)
        if twin is None or tables < 2:
            return self._serve(loops)
        others = [Table(twin()) for _ in range(tables - 1)]
        for other in others:
            other._alone = self._alone
        results: list[T | BaseException] = [RuntimeError("not run")] * len(loops)

        def serve(k: int) -> None:
            torch.set_num_threads(max(threads // tables, 1))  # of the operations that this thread starts
            results[k::tables] = [self, *others][k]._serve(loops[k::tables])

        try:
            with ThreadPoolExecutor(tables) as pool:
                list(pool.map(serve, range(tables)))
        finally:
            torch.set_num_threads(threads)  # what threads that are yet to come begin with
        self.passes += sum(other.passes for other in others)
        self.rows += sum(other.rows for other in others)
        return results

    def _serve(self, loops: Sequence[Callable[[Prior], T]]) -> list[T | BaseException]:
        results: list[T | BaseException] = [RuntimeError("not run")] * len(loops)

        def sit(k: int) -> None:
            try:
                results[k] = loops[k](Seat(self, self._prior))  # pyright: ignore[reportArgumentType]  # has all of it
            except BaseException as error:
                results[k] = error
            finally:
                with self._changed:
                    self._seated -= 1
                    self._changed.notify_all()

        self._seated = len(loops)
        threads = [threading.Thread(target=sit, args=(k,), daemon=True) for k in range(len(loops))]
        for thread in threads:
            thread.start()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._seated or len(self._asked) >= self._seated)
                questions, self._asked = self._asked, []
                if not self._seated and not questions:
                    break
            self._answer(questions)
        for thread in threads:
            thread.join()
        return results

    def ask(self, kind: str, *args: Any) -> Any:
        grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        if grad and kind not in ("predict", "encode_text", "tokenize"):
            raise ValueError("Loops that go through the autoencoder with autograd cannot share it: run them alone.")
        question = _Question(kind, args, torch.is_inference_mode_enabled(), grad)
        with self._changed:
            self._asked.append(question)
            self._changed.notify_all()
        question.answered.wait()
        if question.error is not None:
            raise question.error
        return question.answer

    def _answer(self, questions: Sequence[_Question]) -> None:
        groups: dict[tuple[Any, ...], list[_Question]] = {}
        for k, question in enumerate(questions):
            shape = tuple(question.args[0].shape[1:]) if question.kind in _TOGETHER and not question.grad else (k,)
            groups.setdefault((question.kind, question.inference, question.grad, shape), []).append(question)
        for (kind, inference, grad, _), group in groups.items():
            with torch.inference_mode() if inference else torch.set_grad_enabled(grad):
                while len(group) > 1:
                    try:
                        for part in _parts([each for each in group if not each.answered.is_set()], self._most):
                            answers = _TOGETHER[kind](self, part)
                            for question, answer in zip(part, answers, strict=True):
                                question.answer = answer
                                question.answered.set()
                        break
                    except Exception as error:
                        smaller = min(sum(each.args[0].shape[0] for each in group), self._most) // 2
                        if not out_of_memory(error) or smaller < 1:
                            break  # one of them is wrong: each for itself
                    self._most = smaller  # for all that is still to come too
                    if self._prior.device.type == "cuda":
                        torch.cuda.empty_cache()
                for question in group:
                    if question.answered.is_set():
                        continue
                    try:
                        if kind == "predict":
                            self._count(question.args[0])
                        with nullcontext() if kind in _TOGETHER else self._alone:
                            question.answer = getattr(self._prior, kind)(*question.args)
                    except BaseException as error:
                        question.error = error
                    question.answered.set()

    def _count(self, z_t: Tensor) -> None:
        self.passes += 1
        self.rows += z_t.shape[0]

    def _predict(self, group: Sequence[_Question]) -> list[Prediction]:
        z_ts = [question.args[0] for question in group]
        sizes = [z_t.shape[0] for z_t in z_ts]
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        times = [question.args[1].expand(size) for question, size in zip(group, sizes, strict=True)]
        texts = [
            text if len(text) == size else text.repeat(size)
            for (_, _, text, _), size in zip((question.args for question in group), sizes, strict=True)
        ]
        probes: list[AttentionProbe] = []
        spans: list[slice] = []  # of each question's own in `probes`
        for (_, _, _, probe), start, size in zip((q.args for q in group), starts, sizes, strict=True):
            before = len(probes)
            probes += _shifted(probe, start, size)
            spans.append(slice(before, len(probes)))
        z_t = torch.cat(z_ts)
        self._count(z_t)
        said = self._prior.predict(z_t, torch.cat(times), Text.cat(*texts), SeveralProbes(probes) if probes else None)
        answers = []
        for eps, span, question in zip(said.eps.split(sizes), spans, group, strict=True):
            probe = question.args[3]
            maps = None if probe is None or said.maps is None else said.maps[span]
            answers.append(Prediction(eps, maps[0] if maps and isinstance(probe, AttentionProbe) else maps))
        return answers

    def _encode(self, group: Sequence[_Question]) -> tuple[Tensor, ...]:
        pictures = [question.args[0] for question in group]
        return self._prior.encode(torch.cat(pictures)).split([picture.shape[0] for picture in pictures])

    def _decode(self, group: Sequence[_Question]) -> tuple[Tensor, ...]:
        latents = [question.args[0] for question in group]
        return self._prior.decode(torch.cat(latents)).split([latent.shape[0] for latent in latents])


_TOGETHER: dict[str, Callable[[Table, Sequence[_Question]], Sequence[Any]]] = {
    "predict": Table._predict,
    "encode": Table._encode,
    "decode": Table._decode,
}


class Seat:
    """The prior as one loop at the table sees it."""

    def __init__(self, table: Table, prior: Prior) -> None:
        self._table, self._prior = table, prior

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def predict(self, z_t: Tensor, t: Tensor, text: Text, probe: Probe | None = None) -> Prediction:
        return self._table.ask("predict", z_t, t, text, probe)

    def encode(self, image: Tensor) -> Tensor:
        return self._table.ask("encode", image)

    def decode(self, z: Tensor) -> Tensor:
        return self._table.ask("decode", z)

    def encode_text(self, prompts: Sequence[str]) -> Text:
        return self._table.ask("encode_text", prompts)

    def tokenize(self, prompt: str) -> Tokens:
        return self._table.ask("tokenize", prompt)  # tokenizers of two threads at once fall over each other


def _parts(group: Sequence[_Question], most: int) -> list[list[_Question]]:
    """Runs of questions of at most so many rows; a question by itself may have more."""
    parts: list[list[_Question]] = [[]]
    rows = 0
    for question in group:
        size = question.args[0].shape[0]
        if parts[-1] and rows + size > most:
            parts.append([])
            rows = 0
        parts[-1].append(question)
        rows += size
    return parts


def _shifted(probe: Probe | None, start: int, size: int) -> list[AttentionProbe]:
    """What a probe of `size` rows listens to where those rows begin at `start`."""
    if probe is None:
        return []
    if isinstance(probe, SeveralProbes):
        return [moved for each in probe.probes for moved in _shifted(each, start, size)]
    if not isinstance(probe, AttentionProbe):
        raise ValueError("This probe cannot listen to a pass that others share.")
    rows = range(size)[probe.rows]
    own = slice(start + rows.start, start + rows.stop, rows.step)
    return [AttentionProbe(probe.tokens, own, probe.cross_levels, probe.self_levels)]
