"""`sdsedit batch MANIFEST --output DIR` and `sdsedit batch status DIR`: many edits, and how they are going."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sdsedit import errors
from sdsedit.cli_shared import add_option_arguments, check_files, options_of
from sdsedit.errors import InputRefused, printable
from sdsedit.model_options import ModelOptions, is_single_file, parse_lora

if TYPE_CHECKING:
    from sdsedit.batch.estimate import Estimate
    from sdsedit.batch.inputs import Model, Planned
    from sdsedit.batch.manifest import Manifest
    from sdsedit.batch.store import Note, Store

MAX_WORKERS, MAX_TOGETHER = 256, 32
_SHOWN = 12  # jobs that a dry run lists, and lines of the journal that `status` shows
_SHEET_EVERY = 120.0  # seconds
_LITTLE = 2**20  # bytes left on a disk that is as good as full


class Interrupts(Protocol):
    """As `sdsedit.cli` has them: while `gentle`, the first signal only sets `received`."""

    received: int
    gentle: bool

    @property
    def exit_code(self) -> int: ...


def add_to(command: Callable[[str, Callable[..., int], str], argparse.ArgumentParser]) -> None:
    """Add both commands to the command line; `command` makes one of a name, what runs it, and a sentence."""
    batch = command("batch", run, "Make all the edits of a manifest; `batch status DIR` says how they are going.")
    batch.add_argument("manifest", metavar="MANIFEST", help="a .jsonl, .csv or .yaml file: a row an edit, or several")
    batch.add_argument(
        "--output", required=True, metavar="DIR", help="where the results go, and the batch's own record"
    )
    batch.add_argument("--engine", choices=("local", "ray"), default="local", help="who works (default: %(default)s)")
    batch.add_argument(
        "--workers", type=_count("workers", MAX_WORKERS), metavar="N",
        help="at once (default: one for each GPU, or one on the CPU)",
    )  # fmt: skip
    batch.add_argument(
        "--together", type=_count("together", MAX_TOGETHER), default=1, metavar="N",
        help="pictures of one size that share the network: faster, and equal but for rounding (default: 1)",
    )  # fmt: skip
    how = batch.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on: what is done stays, failed jobs stay failed")
    how.add_argument("--retry-failed", action="store_true", help="go on, and try again what failed or was set aside")
    how.add_argument("--overwrite", action="store_true", help="do everything anew, over what is there")
    batch.add_argument(
        "--dry-run", action="store_true", help="check every row, say what would be done and how long it takes"
    )
    batch.add_argument("--json", action="store_true", help="report as JSON lines on standard output")
    batch.add_argument("--model", default="builtin", metavar="MODEL", help="for rows that name none (default: builtin)")
    batch.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 or mps (default: GPUs if there are any)")
    add_option_arguments(batch)
    batch.add_argument(
        "--address", metavar="ADDRESS", help="of a running Ray cluster, with --engine ray (default: here)"
    )
    status = command("batch status", tell_status, "Say how a batch is going, or how it went.")
    status.add_argument("folder", metavar="DIR", help="the output folder of a batch")
    status.add_argument("--json", action="store_true", help="as JSON")


def _count(name: str, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= most:
            allowed = f"it must be a whole number from 1 to {most}."
            raise argparse.ArgumentTypeError(f"{name} is {printable(text, 40)}; {allowed}")
        return int(text)

    return parse


# ---- sdsedit batch


def run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    from sdsedit.batch.inputs import ModelMissing
    from sdsedit.batch.manifest import ManifestRefused

    try:
        return _run(arguments, interrupts)
    except ManifestRefused as refused:
        return _tell_faults(arguments, refused)
    except ModelMissing as missing:
        print(f"sdsedit: {missing}", file=sys.stderr)
        return errors.MODEL_MISSING
    except sqlite3.OperationalError as error:
        why = "the disk is full" if "full" in str(error) else printable(str(error), 200)
        said = f"The batch's own record cannot be written ({why}); what is done is whole, and --resume goes on."
        print(f"sdsedit: {said}", file=sys.stderr)
        return errors.ALL_FAILED


def _run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    from sdsedit.batch import inputs, local
    from sdsedit.batch.manifest import read_manifest
    from sdsedit.batch.store import Store

    folder = Path(arguments.output)
    if inputs.is_address(arguments.output) or inputs.is_address(arguments.model):
        raise InputRefused("Addresses are never fetched: give the names of a folder and of a model.")
    if folder.exists() and not folder.is_dir():
        raise InputRefused(f"{printable(folder.name, 100)} is a file: give the name of a folder for the results.")
    manifest = read_manifest(arguments.manifest, folder, _usual_model(arguments))
    models = inputs.models_of(manifest)
    path = local.store_path(folder)
    seen: inputs.Seen = {}
    if path.is_file():
        with Store(path, reads=True) as store:
            seen = store.seen() if store.remembered("root") == str(manifest.root.resolve()) else {}
    with _looking(arguments) as tell:
        planned = inputs.examine(manifest, models, tell, seen)
    inputs.check_apart(planned, manifest.root, folder)
    goes_on = arguments.resume or arguments.retry_failed
    if arguments.dry_run:
        return _dry_run(arguments, manifest, models, planned, Store(path) if path.is_file() else None)
    _check_folder(folder)
    with local.alone(folder), Store(path) as store:
        if sum(store.counts().values()) and not goes_on and not arguments.overwrite:
            raise InputRefused(
                "There is a batch in this output folder already: add --resume to go on with it, --retry-failed to try "
                "its failed jobs too, or --overwrite to do everything anew."
            )
        inputs.check_free(planned, folder, store.begun(), arguments.overwrite)
        missing = [] if arguments.overwrite else _missing(store, folder)
        renewed = store.plan(planned, arguments.retry_failed, arguments.overwrite, missing)
        if renewed:
            why = "their input, settings, model or our code has changed, or their files have"
            print(f"Done before, and to be done again, for {why}: {_plural(renewed, 'job')}.", file=sys.stderr)
        store.remember("root", str(manifest.root.resolve()))
        store.keep_seen(seen)
        _write_expanded(manifest, folder)
        return _work(arguments, interrupts, manifest, folder, store)


def _usual_model(arguments: argparse.Namespace) -> ModelOptions:
    """The model of rows that name none, its files by their whole names. InputRefused."""

    def whole(name: str) -> str:
        return str(Path(name).expanduser().resolve())

    name, settings = arguments.model, arguments.settings
    if name != "builtin" and Path(name).expanduser().exists():
        name = whole(name)
    if settings is not None and Path(settings).expanduser().is_dir():
        settings = whole(settings)
    if is_single_file(name) != (settings is not None):
        raise InputRefused(
            "--settings are for a model in one .safetensors file, and such a one needs them in a batch: a folder or an "
            "id that is on this machine."
        )
    if is_single_file(name) and not Path(name).is_file():
        raise InputRefused(f"There is no file {printable(Path(name).name, 100)}: give the name of a model.")
    loras = [parse_lora(given) for given in arguments.lora]
    model = replace(
        options_of(arguments, name),
        lora=tuple(f"{whole(file)}:{scale!r}" for file, scale in loras),
        embedding=tuple(map(whole, arguments.embedding)),
        settings=settings,
    )
    check_files(model)
    if model.attention is not None and arguments.engine == "local":
        _check_kernel(model)
    return model


def _check_kernel(model: ModelOptions) -> None:
    """InputRefused: this machine has no kernel of that name; else every job would say so."""
    import torch

    from sdsedit.prior.running import check_attention

    device = torch.device(model.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    half = torch.bfloat16 if model.precision == "bf16" else torch.float16
    full = model.precision == "fp32" or (model.precision is None and device.type != "cuda")
    check_attention(str(model.attention), device, torch.float32 if full else half)


def _work(
    arguments: argparse.Namespace, interrupts: Interrupts, manifest: Manifest, folder: Path, store: Store
) -> int:  # fmt: skip
    from sdsedit.batch import local
    from sdsedit.batch.sheet import write_sheet

    began = time.monotonic()
    before = store.counts()
    total = sum(before.values())
    title = f"Batch of {printable(manifest.path.name, 100)}"
    sheet_at = time.monotonic()
    last = max((number for number, _ in store.journal(last=1)), default=0)
    run = options_of(arguments, "")
    options = local.Options(
        str(folder.resolve()), str(manifest.root.resolve()), arguments.device, arguments.together,
        offload=run.offload, attention=run.attention, compile=run.compile, tiling=run.tiling,
    )  # fmt: skip
    devices, workers = _hands(arguments)
    interrupts.gentle = True
    with _telling(arguments, total) as told:
        if not arguments.json:
            told.line(f"{total} jobs, of which {before['done']} are done; {_plural(workers, 'worker')}.")
            for note in manifest.notes:
                told.line(f"Note: {note}")
            if arguments.address and os.environ.get("RAY_AUTH_MODE") != "token":
                told.line("Note: this Ray cluster asks for no token: whoever reaches its ports runs code on it.")

        def tell(store: Store) -> None:
            nonlocal last, sheet_at
            for number, note in store.journal(last):
                last = number
                told.note(note)
            told.counts(store, folder)
            if time.monotonic() - sheet_at > _SHEET_EVERY:
                with suppress(OSError):  # a full disk; it is written again at the end
                    write_sheet(store, folder, title)
                sheet_at = time.monotonic()

        if arguments.engine == "ray":
            from sdsedit.batch.ray import run as run_on_ray

            run_on_ray(store, options, workers, arguments.address, lambda: interrupts.received, tell)
        else:
            local.run(store, options, workers, devices, lambda: interrupts.received, tell)
    sheet = "none"
    try:
        sheet = str(write_sheet(store, folder, title))
    except OSError as error:
        print(f"sdsedit: The sheet cannot be written: {errors.one_sentence(error)}.", file=sys.stderr)
    counts = store.counts()
    seconds = time.monotonic() - began
    if arguments.json:
        _say_json({"event": "end", **counts, "seconds": round(seconds, 1), "sheet": sheet})
    else:
        rest = {"failed": "failed", "aside": "set aside", "waiting": "left"}
        said = "".join(f", {counts[state]} {word}" for state, word in rest.items() if counts[state])
        print(f"Done: {counts['done']} of {total} jobs{said}, in {_spell(seconds)}")
        print(f"Sheet: {printable(sheet, 500)}")
    if interrupts.received and counts["waiting"]:
        print("sdsedit: Stopped; what is done is whole, and --resume goes on.", file=sys.stderr)
        return interrupts.exit_code
    bad = counts["failed"] + counts["aside"]
    return errors.OK if not bad else errors.SOME_FAILED if counts["done"] else errors.ALL_FAILED


def _hands(arguments: argparse.Namespace) -> tuple[list[str], int]:
    """The devices that workers take in turn (none: as the loader chooses), and how many workers there are."""
    if arguments.device or arguments.engine == "ray":
        return [], arguments.workers or 1
    import torch

    devices = [f"cuda:{k}" for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return devices, arguments.workers or max(1, len(devices))


def _check_folder(folder: Path) -> None:
    """InputRefused: nothing can be written there."""
    from sdsedit.io import record

    record.check_outputs({"image": folder / ".probe.png"}, [], True, 0)


def _missing(store: Store, folder: Path) -> list[str]:
    """Jobs whose result is no longer what it was."""
    from sdsedit.model_options import file_sha256

    def whole(name: str, sha256: str) -> bool:
        return (folder / name).is_file() and file_sha256(folder / name) == sha256

    return [each.id for each in store.entries("done") if not all(whole(*pair) for pair in each.files.items())]


def _write_expanded(manifest: Manifest, folder: Path) -> None:
    """The manifest as it was understood: a row a job, no globs, no grids."""
    from sdsedit.batch.fields import SCHEMA_VERSION
    from sdsedit.batch.places import OWN_FOLDER
    from sdsedit.io.record import write_all

    lines = [json.dumps({"schema_version": SCHEMA_VERSION})]
    lines += [json.dumps(job.row(), ensure_ascii=True) for job in manifest.jobs]
    write_all([(folder / OWN_FOLDER / "expanded.jsonl", ("\n".join(lines) + "\n").encode("ascii"))])


def _tell_faults(arguments: argparse.Namespace, refused: Any) -> int:
    count = len(refused.faults)
    name = printable(Path(arguments.manifest).name, 100)
    if arguments.json:
        faults = [{"line": fault.line, "sentence": fault.sentence} for fault in refused.faults]
        _say_json({"event": "refused", "faults": faults})
    print(f"sdsedit: {name} has {count} {'fault' if count == 1 else 'faults'}; nothing was begun.", file=sys.stderr)
    for fault in refused.faults:
        print(f"  {fault}", file=sys.stderr)
    return errors.USAGE


def _dry_run(
    arguments: argparse.Namespace, manifest: Manifest, models: dict[str, Model], planned: list[Planned],
    store: Store | None,
) -> int:  # fmt: skip
    from sdsedit.batch.estimate import estimate

    _, workers = _hands(arguments)
    keys = {} if store is None else {each.id: (each.key, each.state) for each in store.entries()}
    states = {each.job.id: keys[each.job.id][1] for each in planned if keys.get(each.job.id, ("",))[0] == each.key}
    stays = {"done"} if arguments.retry_failed else {"done", "failed", "aside"}
    left = [each for each in planned if states.get(each.job.id) not in stays or arguments.overwrite]
    threads = max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None
    pace = {} if store is None else store.pace()
    found = estimate(left, pace, workers, arguments.device, threads)
    if store is not None:
        store.close()
    kinds = Counter(each.job.kind for each in planned)
    named = Counter(each.job.model for each in planned)
    if arguments.json:
        for each in planned:
            _say_json(
                {
                    "event": "job",
                    "line": each.job.line,
                    "key": each.key,
                    "state": states.get(each.job.id, "waiting"),
                    **each.job.row(),
                }
            )
        about = {
            name: {"revision": model.revision, "licence": model.licence, "jobs": named[name]}
            for name, model in models.items()
        }
        _say_json(
            {"event": "plan", "rows": manifest.rows, "jobs": len(planned), "kinds": dict(kinds), "models": about,
             "to_do": len(left), "workers": workers, "seconds": found.seconds, "because": found.because,
             "notes": list(manifest.notes)}
        )  # fmt: skip
        return errors.OK
    parts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    print(f"{manifest.rows} rows, {len(planned)} jobs: {parts}")
    for note in manifest.notes:
        print(f"Note: {note}")
    for each in planned[:_SHOWN]:
        words = each.job.settings.get("target") or each.job.settings.get("prompt")
        source = f"{each.job.input} -> " if each.job.input else ""
        print(
            f'  {each.job.id}: {printable(source, 200)}{printable(each.job.output, 200)}  "{printable(str(words), 80)}"'
        )
    if len(planned) > _SHOWN:
        print(f"  ... and {len(planned) - _SHOWN} more; --json lists all")
    for name, model in models.items():
        if name not in named:  # whose settings another one takes
            continue
        print(f"Model: {printable(name, 100)}, {model.revision[:19]}, licence {model.licence}, {named[name]} jobs")
    same = len(planned) - len({each.key for each in planned})
    if same:
        print(f"Note: {same} jobs ask for what another one makes too.")
    if keys:
        print(f"Done already: {sum(state == 'done' for state in states.values())}; to do: {len(left)}")
    _tell_estimate(found, workers)
    print("Nothing was done: this was a dry run.")
    return errors.OK


def _tell_estimate(found: Estimate, workers: int) -> None:
    if found.seconds is None:
        print(f"Estimate: none, for {found.because}.")
    else:
        print(f"Estimate: about {_spell(found.seconds)} with {_plural(workers, 'worker')} ({found.because})")


# ---- progress


@contextmanager
def _looking(arguments: argparse.Namespace) -> Iterator[Callable[[int, int], None]]:
    """Says how the reading of the inputs goes, where that takes long."""
    began, said = time.monotonic(), 0.0

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - max(said, began) > 5 and done < total:
            said = now
            print(f"Checked {done} of {total} files", file=sys.stderr, flush=True)

    yield tell


@dataclass
class _Told:
    """What a person sees of a running batch: lines on standard error, or JSON lines on standard output."""

    total: int
    as_json: bool
    began: float = field(default_factory=time.monotonic)
    finished: int = 0  # in this run
    shown: float = 0.0
    bar: Callable[[int, str], None] | None = None
    print: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    def line(self, text: str) -> None:
        self.print(text)

    def note(self, note: Note) -> None:
        if self.as_json:
            _say_json({"event": note.what, "id": note.id, "at": round(note.at, 3), "said": note.said})
        if note.what in ("done", "failed", "aside"):
            self.finished += 1
        if not self.as_json and note.what in ("failed", "aside"):
            what = "Failed" if note.what == "failed" else "Set aside"
            self.line(f"{what}: {printable(note.id, 120)}: {printable(note.said, 500)}")

    def counts(self, store: Store, folder: Path) -> None:
        if self.as_json:
            return
        now = time.monotonic()
        if now - self.shown < (0.5 if self.bar else 10.0):
            return
        counts = store.counts()
        ended = self.total - counts["waiting"] - counts["running"]
        rate = self.finished / (now - self.began)
        left = f", about {_spell((self.total - ended) / rate)} left" if rate and self.finished > 1 else ""
        bad = counts["failed"] + counts["aside"]
        wrong = f", {bad} went wrong" if bad else ""
        full = ", the disk is full: jobs wait for room" if shutil.disk_usage(folder).free < _LITTLE else ""
        text = f"{60 * rate:.1f} jobs/min{left}" if self.finished else f"{counts['running']} running"
        text += wrong + full
        if self.bar:
            self.bar(ended, text)
        elif self.shown:
            self.line(f"{ended} of {self.total} jobs: {text}")
        self.shown = now


@contextmanager
def _telling(arguments: argparse.Namespace, total: int) -> Iterator[_Told]:
    from rich.console import Console

    console = Console(stderr=True)
    told = _Told(total, arguments.json)
    if arguments.json or not console.is_terminal:
        yield told
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("Batch"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=total)
        told.bar = lambda done, text: progress.update(task, completed=done, description=text)
        told.print = lambda text: progress.console.print(text, markup=False, highlight=False)
        yield told


def _say_json(what: dict[str, Any]) -> None:
    print(json.dumps(what, ensure_ascii=True), flush=True)


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _spell(seconds: float) -> str:
    from sdsedit.batch.estimate import spell

    return spell(seconds)


# ---- sdsedit batch status


def tell_status(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    from sdsedit.batch.local import store_path
    from sdsedit.batch.store import Store

    folder = Path(arguments.folder)
    path = store_path(folder)
    if not path.is_file():
        raise InputRefused(f"{printable(folder.name, 100)} is not the output folder of a batch.")
    with Store(path, reads=True) as store:
        counts = store.counts()
        running = list(store.entries("running"))
        wrong = list(store.entries("failed", "aside"))
        lines = [note for _, note in store.journal(last=_SHOWN)]
    if arguments.json:
        _say_json(
            {
                **counts,
                "jobs_running": [{"id": each.id, "worker": each.worker, "step": each.steps_done, "of": each.steps_total,
                                  "attempt": each.attempts} for each in running],
                "jobs_wrong": [{"id": each.id, "line": each.line, "state": each.state, "reason": each.reason,
                                "attempts": each.attempts} for each in wrong],
                "journal": [vars(note) for note in lines],
            }
        )  # fmt: skip
        return errors.OK
    total = sum(counts.values())
    names = {"waiting": "waiting", "running": "running", "done": "done", "failed": "failed", "aside": "set aside"}
    print(f"{total} jobs: " + ", ".join(f"{counts[state]} {name}" for state, name in names.items()))
    for each in running:
        print(f"Running: {each.id}, step {each.steps_done} of {each.steps_total or '?'}, attempt {each.attempts}")
    for each in wrong[:_SHOWN]:
        print(f"{'Failed' if each.state == 'failed' else 'Set aside'}: {each.id} (line {each.line}): {each.reason}")
    if len(wrong) > _SHOWN:
        print(f"... and {len(wrong) - _SHOWN} more; --json lists all")
    if lines:
        print("Journal, the last lines:")
    for note in lines:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(note.at))
        print(f"  {at}  {printable(note.id, 60):<24} {note.what:<9} {printable(note.said, 160)}")
    return errors.OK
