"""`sdsedit evaluate DATASET --kind magicbrush|pie --output DIR`: a dataset edited as a batch, then scored."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdsedit import cli_batch, errors
from sdsedit.batch.fields import METHODS, SCHEMA_VERSION
from sdsedit.cli_shared import add_option_arguments, options_of
from sdsedit.errors import InputRefused, printable

if TYPE_CHECKING:
    from sdsedit.evaluate.datasets import Case

_KINDS = ("magicbrush", "pie")
_CLIP = "openai/clip-vit-base-patch32"
_STORE = "results"  # the batch's folder in DIR


def add_to(command: Callable[[str, Callable[..., int], str], argparse.ArgumentParser]) -> None:
    """Add the command to the command line; `command` makes one of a name, what runs it, and a sentence."""
    evaluate = command("evaluate", run, "Edit a dataset and score it: MagicBrush, PIE-Bench.")
    evaluate.add_argument("dataset", metavar="DATASET", help="its folder, as it is unpacked")
    evaluate.add_argument("--kind", choices=_KINDS, required=True, help="which dataset it is")
    evaluate.add_argument("--output", required=True, metavar="DIR", help="for the results, the scores, the table")
    evaluate.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["lusd"], metavar="METHOD", help="a row each (default: lusd)"
    )
    evaluate.add_argument("--limit", type=_count, metavar="N", help="only the first N edits")
    evaluate.add_argument("--prompts", metavar="FILE.csv", help="MagicBrush: idx, source_prompt, target_prompt")
    evaluate.add_argument("--seed", type=_count, default=0, metavar="N", help="of every edit (default: 0)")
    evaluate.add_argument("--steps", type=_count, metavar="N", help="of every edit (default: the method's own)")
    evaluate.add_argument(
        "--clip", default=_CLIP, metavar="MODEL", help="a folder, or an id in the cache (default: %(default)s)"
    )
    evaluate.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read CLIP's .bin weights where it has no safetensors: they can run code",
    )
    evaluate.add_argument("--model", default="builtin", metavar="MODEL", help="that edits (default: builtin)")
    evaluate.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 or mps")
    evaluate.add_argument("--workers", metavar="N", help="as in `sdsedit batch`")
    evaluate.add_argument("--together", metavar="N", help="as in `sdsedit batch`")
    evaluate.add_argument("--engine", choices=("local", "ray"), help="as in `sdsedit batch`")
    add_option_arguments(evaluate)
    how = evaluate.add_mutually_exclusive_group()
    how.add_argument("--retry-failed", action="store_true", help="try the edits again that failed")
    how.add_argument("--score-only", action="store_true", help="make no edits: score those that are there")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{printable(text, 40)} is no whole number of 0 or more.")
    return int(text[:18])


def run(arguments: argparse.Namespace, interrupts: cli_batch.Interrupts) -> int:
    from sdsedit.batch import local
    from sdsedit.batch.inputs import is_address
    from sdsedit.evaluate.datasets import read_dataset

    for name in (arguments.dataset, arguments.output, arguments.clip):
        if is_address(name):
            raise InputRefused("Addresses are never fetched: give the names of folders.")
    if arguments.limit == 0:
        raise InputRefused("limit is 0; it must be a whole number of 1 or more.")
    dataset, folder = Path(arguments.dataset).expanduser(), Path(arguments.output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise InputRefused(f"{printable(folder.name, 100)} is a file: give the name of a folder for the results.")
    if folder.resolve() == dataset.resolve():
        raise InputRefused("The results cannot go into the dataset's own folder: give another one.")
    prompts = None if arguments.prompts is None else Path(arguments.prompts).expanduser()
    cases = read_dataset(dataset, arguments.kind, arguments.limit, prompts)
    code = errors.OK
    if not arguments.score_only:
        manifest = _write_manifest(arguments, folder, cases)
        print(f"{len(cases)} edits of {printable(dataset.name)}, {len(arguments.methods)} methods", file=sys.stderr)
        code = cli_batch.run(_batch_arguments(arguments, manifest, folder / _STORE), interrupts)
        if interrupts.received or code not in (errors.OK, errors.SOME_FAILED):
            return code
    if not local.store_path(folder / _STORE).is_file():
        raise InputRefused(f"There are no results in {printable(folder.name, 100)} yet: leave out --score-only.")
    return _score(arguments, interrupts, dataset, folder, cases) or code


# ---- the batch


def _write_manifest(arguments: argparse.Namespace, folder: Path, cases: Sequence[Case]) -> Path:
    """manifest.jsonl and the pictures that it names: links to the same bytes, or copies where there can be none.

    What an earlier run has done stays in it, whatever is asked for now: a batch forgets what its manifest lacks.
    InputRefused: the folder belongs to another dataset or model.
    """
    from sdsedit.io.record import write_all

    inputs, manifest, about = folder / "inputs", folder / "manifest.jsonl", folder / "evaluate.json"
    own = {"kind": arguments.kind, "dataset": Path(arguments.dataset).name, "model": _shown(arguments.model)}
    if deciding := options_of(arguments, arguments.model).deciding:
        own["options"] = json.dumps(deciding)
    if about.is_file() and about.read_text("utf-8", errors="replace") != json.dumps(own):
        raise InputRefused(
            f"{printable(folder.name, 100)} holds the evaluation of another dataset or model: give another --output."
        )
    inputs.mkdir(parents=True, exist_ok=True)
    settings = {"seed": arguments.seed, **({} if arguments.steps is None else {"steps": arguments.steps})}
    rows = _done_before(folder, manifest)
    for case in cases:
        name = f"{case.id}{case.image.suffix.lower()}"
        if not (inputs / name).is_file() or (inputs / name).stat().st_size != case.image.stat().st_size:
            (inputs / name).unlink(missing_ok=True)
            try:
                os.link(case.image, inputs / name)
            except OSError:
                shutil.copyfile(case.image, inputs / name)
        for method in arguments.methods:
            row = {"id": f"{method}-{case.id}", "input": f"inputs/{name}", "output": f"{method}/{case.id}.png"}
            rows[row["id"]] = {**row, "source": case.source, "target": case.target, "method": method, **settings}
    lines = [json.dumps(each) for each in ({"schema_version": SCHEMA_VERSION}, *rows.values())]
    write_all([(about, json.dumps(own).encode("ascii")), (manifest, ("\n".join(lines) + "\n").encode("ascii"))])
    return manifest


def _done_before(folder: Path, manifest: Path) -> dict[str, dict[str, Any]]:
    """The rows of the manifest that is there whose jobs are done, by id."""
    from sdsedit.batch.local import store_path
    from sdsedit.batch.store import Store

    path = store_path(folder / _STORE)
    if not manifest.is_file() or not path.is_file():
        return {}
    with Store(path) as store:
        done = {each.id for each in store.entries("done")}
    try:
        rows = [json.loads(line) for line in manifest.read_text("ascii").splitlines()[1:]]
        return {row["id"]: row for row in rows if row["id"] in done}
    except (ValueError, KeyError, TypeError):
        raise InputRefused(f"The manifest.jsonl in {printable(folder.name, 100)} is damaged: remove it.") from None


def _batch_arguments(arguments: argparse.Namespace, manifest: Path, results: Path) -> argparse.Namespace:
    """What `sdsedit batch` would be given: through its own parser, so that it checks what is passed on."""
    from sdsedit.batch.local import store_path

    parser = argparse.ArgumentParser(prog="sdsedit evaluate", allow_abbrev=False)
    commands = parser.add_subparsers()
    cli_batch.add_to(lambda name, run, text: commands.add_parser(name, allow_abbrev=False))
    given = ["batch", str(manifest), "--output", str(results), "--model", arguments.model]
    for name in ("device", "workers", "together", "engine"):
        value = getattr(arguments, name)
        given += [] if value is None else [f"--{name}", str(value)]
    for name in ("settings", "precision", "attention-kernel", "distilled-guidance"):
        value = getattr(arguments, name.replace("-", "_"))
        given += [] if value is None else [f"--{name}={value}"]
    given += [f"--{name}={value}" for name in ("lora", "embedding") for value in getattr(arguments, name)]
    given += [f"--{name}" for name in ("offload", "offload-layers", "compile", "tiling")
              if getattr(arguments, name.replace("-", "_"))]  # fmt: skip
    if arguments.retry_failed:
        given.append("--retry-failed")
    elif store_path(results).is_file():
        given.append("--resume")
    try:
        return parser.parse_args(given)
    except SystemExit:  # it has said why
        raise InputRefused("The batch cannot be begun with these arguments.") from None


# ---- the scores


def _score(
    arguments: argparse.Namespace, interrupts: cli_batch.Interrupts, dataset: Path, folder: Path, cases: Sequence[Case]
) -> int:
    from sdsedit.batch.local import store_path
    from sdsedit.batch.store import Store
    from sdsedit.evaluate import report
    from sdsedit.evaluate.scores import Clip, load_lpips, measured
    from sdsedit.io.record import write_all

    with Store(store_path(folder / _STORE)) as store:
        made = {each.id: folder / _STORE / each.job.output for each in store.entries("done")}
    asked = [(method, case) for method in arguments.methods for case in cases]
    results = [(method, case, made[f"{method}-{case.id}"]) for method, case in asked if f"{method}-{case.id}" in made]
    left = len(asked) - len(results)
    if not results:
        raise InputRefused(f"There is nothing to score in {printable(folder.name, 100)}: no edit is done.")
    notes = [f"{left} edits are not done and do not count."] if left else []
    device = _device(arguments.device)
    clip, lpips = None, load_lpips(device)
    try:
        clip = Clip(arguments.clip, device, arguments.allow_pickle)
    except InputRefused as refused:
        notes.append(f"Without CLIP there are no CLIP scores. {refused}")
    if isinstance(lpips, str):
        notes.append(f"LPIPS: {lpips} (pip install 'sdsedit[metrics]', and AlexNet's weights in torch's own cache).")
    interrupts.gentle = True
    rows: list[dict[str, Any]] = []
    said = time.monotonic()
    for row in measured(results, folder / "scores.jsonl", clip, lpips):
        rows.append(row)
        if interrupts.received:
            print("sdsedit: Stopped; what was scored is kept, and the same command goes on.", file=sys.stderr)
            return interrupts.exit_code
        if time.monotonic() - said > 10:
            said = time.monotonic()
            print(f"Scored {len(rows)} of {len(results)}", file=sys.stderr, flush=True)
    found = report.summaries(rows)
    title = f"{dataset.name}: {len(cases)} edits, model {_with_options(arguments)}, seed {arguments.seed}"
    table = report.markdown(title, arguments.kind, found, notes)
    whole = {"dataset": dataset.name, "kind": arguments.kind, "model": _with_options(arguments), "clip": arguments.clip,
             "seed": arguments.seed, "notes": notes, "summary": found, "cases": rows}  # fmt: skip
    files = [(folder / "scores.md", table.encode()), (folder / "scores.json", (json.dumps(whole) + "\n").encode())]
    write_all(files)
    print(table)
    if report.plot(rows, folder / "scores.png"):
        print(f"Plot: {printable(str(folder / 'scores.png'), 500)}", file=sys.stderr)
    else:
        print("No plot: it needs CLIP scores, and pip install 'sdsedit[train]' for matplotlib.", file=sys.stderr)
    return errors.OK


def _device(given: str | None) -> str:
    import torch

    return given or ("cuda" if torch.cuda.is_available() else "cpu")


def _with_options(arguments: argparse.Namespace) -> str:
    """The model, and what decides its results, without folders."""
    options = options_of(arguments, arguments.model)
    said = [f"{name.replace('_', ' ')} {printable(Path(str(value)).name, 100)}"
            for name, values in options.deciding.items()
            for value in (values if isinstance(values, tuple) else (values,))]  # fmt: skip
    return ", ".join([_shown(arguments.model), *said])


def _shown(model: str) -> str:
    return Path(model).name if Path(model).is_dir() else model
