"""The command line: `sdsedit image | replay | models | doctor`.

Results go to standard output, progress and refusals to standard error. A refusal is one sentence; the exit codes are in
`sdsedit.errors`. Heavy imports wait until the arguments and the files are known to be good.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from sdsedit import errors
from sdsedit._version import __version__
from sdsedit.errors import InputRefused, one_sentence, printable
from sdsedit.known_models import KNOWN_MODELS

if TYPE_CHECKING:
    from sdsedit.edit import Edit, EditConfig, EditResult, StepReport
    from sdsedit.io.images import Mask, Picture
    from sdsedit.prior.unet import UNetPrior

# Named here too: `sdsedit --help` must not wait for torch. A test holds them to sdsedit.guidance and sdsedit.edit.
METHOD_NAMES = ("lusd", "dds", "pds", "ssd", "sds", "sbp", "nfsd", "csd")
MAX_STEPS, MAX_SIZE, MAX_SEED, MAX_FEATHER = 10_000, 4096, 2**63 - 1, 256
MIN_STRENGTH, MAX_STRENGTH = 0.1, 10.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as end:  # argparse's way to say --help, --version or a usage error
        return end.code if isinstance(end.code, int) else errors.USAGE
    with Interrupts() as interrupts, warnings.catch_warnings():
        if not arguments.debug:
            warnings.simplefilter("ignore")  # what a person should know is said in notes
        try:
            code = arguments.run(arguments, interrupts)
            sys.stdout.flush()
            return code
        except Interrupted:
            return _refuse("Stopped; no half-written output is left.", interrupts.exit_code)
        except (
            BrokenPipeError
        ):  # whoever read our output has had enough (`sdsedit models | head`); files come before words
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
            return errors.OK
        except Exception as error:
            if arguments.debug:
                traceback.print_exc()
            return _refuse(*_outcome(error))


class Interrupted(BaseException):
    """SIGINT or SIGTERM while there is nothing to keep, or for the second time."""


class Interrupts:
    """SIGINT and SIGTERM: they end the run at once, but while `gentle` is set the first only sets `received`."""

    def __init__(self) -> None:
        self.received = 0
        self.gentle = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.received = bool(self.received), number
        if again or not self.gentle:
            raise Interrupted

    @property
    def exit_code(self) -> int:
        return errors.TERMINATED if self.received == signal.SIGTERM else errors.INTERRUPTED


def _outcome(error: Exception) -> tuple[str, int]:
    """The sentence and the exit code of an error."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, InputRefused):
        return str(error), errors.USAGE
    if "ModelNotFound" in names:  # by name: importing its module imports torch
        return str(error), errors.MODEL_MISSING
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return "Out of memory: try a smaller --size, or --offload on a GPU.", errors.OUT_OF_MEMORY
    if isinstance(error, OSError):
        return f"The system refused: {one_sentence(error)}.", errors.ALL_FAILED
    kind = type(error).__name__
    return f"Internal error ({kind}): {one_sentence(error)} Add --debug to see where.", errors.INTERNAL


def _refuse(sentence: str, code: int) -> int:
    print(f"sdsedit: {sentence}", file=sys.stderr)
    return code


# ---- arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(errors.USAGE, f"{self.prog}: {printable(message, 400).rstrip('.')}.\n")


def _whole(name: str, low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{name} is {printable(text, 40)}; it must be a whole number from {low} to {high}."
            )
        return value

    return parse


def _number(name: str, low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{name} is {printable(text, 40)}; it must be a number from {low:g} to {high:g}."
            )
        return value

    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sdsedit", description="Edit pictures with words: score distillation says how, attention says where.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"sdsedit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.add_argument("--debug", action="store_true", help="show where an error came from")
        added.set_defaults(run=run)
        return added

    image = command("image", _image, "Edit a picture.")
    image.add_argument("input", metavar="INPUT", help="a PNG, JPEG, WebP, BMP, TIFF or GIF file")
    image.add_argument("--target", required=True, metavar="TEXT", help="describes the picture as it should become")
    image.add_argument("--source", metavar="TEXT", help="describes the picture as it is")
    image.add_argument("--output", required=True, metavar="OUT.png", help="where the result goes")
    image.add_argument("--method", choices=METHOD_NAMES, default="lusd", help="how to edit (default: %(default)s)")
    image.add_argument(
        "--words",
        metavar="WORDS",
        help='words of the prompt whose place is edited: "crown,top hat" (default: the new ones)',
    )
    image.add_argument("--mask", metavar="M.png", help="where the picture may change: white on black, of its very size")
    image.add_argument(
        "--negative", default="", metavar="TEXT", help="what to move away from (nfsd, csd and sbp read it)"
    )
    image.add_argument(
        "--steps", type=_whole("steps", 1, MAX_STEPS), metavar="N", help=f"1 to {MAX_STEPS} (default: the method's own)"
    )
    image.add_argument("--seed", type=_whole("seed", 0, MAX_SEED), default=0, metavar="N", help="one seed, one result")
    image.add_argument(
        "--strength", type=_number("strength", MIN_STRENGTH, MAX_STRENGTH), default=1.0, metavar="X",
        help=f"multiplies the method's step, {MIN_STRENGTH:g} to {MAX_STRENGTH:g} (default: 1)",
    )  # fmt: skip
    image.add_argument(
        "--size", type=_whole("size", 1, MAX_SIZE), metavar="N",
        help="working side in pixels (default: the model's own); the result keeps the input's size",
    )  # fmt: skip
    image.add_argument(
        "--feather", type=_number("feather", 0, MAX_FEATHER), metavar="PX", help="the mask's soft edge in pixels"
    )
    image.add_argument(
        "--refine", type=_number("refine", 0, 1), metavar="T",
        help="redraw the edit's place from this much noise at the end, 0 (do not) to 1; default: what suits the model",
    )  # fmt: skip
    image.add_argument("--save-mask", action="store_true", help="also write OUT.mask.png, the weight of the edit")
    image.add_argument(
        "--save-heatmap", action="store_true", help="also write OUT.heatmap.png, where the words were found"
    )
    image.add_argument(
        "--no-metadata", action="store_true", help="write no recipe, neither into the picture nor beside it as OUT.json"
    )
    _add_model_arguments(image, "builtin")
    image.add_argument(
        "--overwrite", action="store_true", help="replace what is there already under the output's names"
    )

    again = command("replay", _replay, "Repeat the edit whose recipe is in a picture, and compare.")
    again.add_argument("made", metavar="OUTPUT", help="a picture that sdsedit made")
    again.add_argument(
        "--input", metavar="FILE", help="its input (default: the file of that name beside OUTPUT or here)"
    )
    again.add_argument("--mask", metavar="FILE", help="its mask (default: the file of that name beside OUTPUT or here)")
    again.add_argument("--output", metavar="OUT.png", help="where the repeated edit goes (default: OUTPUT.replay.png)")
    _add_model_arguments(again, None)
    again.add_argument(
        "--overwrite", action="store_true", help="replace what is there already under the output's names"
    )

    command("models", _models, "List models: what is here, their licences, how to get them.")

    doctor = command("doctor", _doctor, "Say what is installed and what works, and try a three-step edit.")
    doctor.add_argument("--model", default="builtin", metavar="MODEL", help="for the edit (default: %(default)s)")
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser, default: str | None) -> None:
    shown = "default: %(default)s" if default else "default: the recipe's"
    parser.add_argument(
        "--model",
        default=default,
        metavar="MODEL",
        help=f"builtin, a diffusers folder, an id, or ID@REVISION ({shown})",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    parser.add_argument("--offload", action="store_true", help="keep one network at a time on the GPU")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read .bin weights where there are no safetensors: they can run code",
    )


# ---- sdsedit image


@dataclass(frozen=True)
class _Job:
    """An edit of one picture, its files read and its outputs known to be writable."""

    picture: Picture
    mask: Mask | None
    names: dict[str, Path]  # what is written where
    model: str
    device: str | None
    offload: bool
    allow_pickle: bool
    stop_after: int | None = None  # replay of an edit that was cancelled


def _image(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    started = time.perf_counter()
    job = _job(
        arguments, arguments.input, arguments.mask, Path(arguments.output), arguments.model,
        arguments.save_mask, arguments.save_heatmap, not arguments.no_metadata,
    )  # fmt: skip

    from sdsedit.edit import Edit, EditConfig

    words = None
    if arguments.words is not None:
        words = tuple(word.strip() for word in arguments.words.split(",") if word.strip())
        if not words:
            raise InputRefused('words names no word: give some of the prompt\'s, such as "crown,top hat".')
    request = Edit(
        target=arguments.target,
        source=arguments.source,
        words=words,
        mask=None if job.mask is None else job.mask.tensor(),
        negative=arguments.negative,
    )
    config = EditConfig(
        method=arguments.method,
        steps=arguments.steps,
        seed=arguments.seed,
        strength=arguments.strength,
        size=arguments.size,
        refine=arguments.refine,
    )
    if arguments.feather is not None:
        config = replace(config, feather=arguments.feather)
    result, _ = _run(job, request, config, interrupts, started)
    return _exit_code(result, interrupts)


def _job(
    arguments: argparse.Namespace, input: str, mask: str | None, output: Path, model: str,
    save_mask: bool, save_heatmap: bool, metadata: bool, stop_after: int | None = None,
) -> _Job:  # fmt: skip
    """Read the files and check where the results go, before anything heavy is imported."""
    from sdsedit.io import images, record

    for what, name in (("The output", str(output)), ("The model", model)):
        if images.is_address(name):
            raise InputRefused(
                f"{what} is an address; give a file's, a folder's or a model's name: nothing is fetched."
            )
    picture = images.read_picture(input)
    drawn = None if mask is None else images.read_mask(mask, picture.size)
    names = record.output_names(output, save_mask, save_heatmap, metadata)
    inputs = [Path(input)] + ([] if mask is None else [Path(mask)])
    width, height = picture.size
    record.check_outputs(names, inputs, arguments.overwrite, width * height)
    return _Job(
        picture, drawn, names, model, arguments.device, arguments.offload, arguments.allow_pickle, stop_after
    )  # fmt: skip


def _run(
    job: _Job, request: Edit, config: EditConfig, interrupts: Interrupts, started: float
) -> tuple[EditResult, dict[str, Any]]:
    """Load the model, edit, write, and tell; gives the result and its recipe."""
    from sdsedit.edit import check_request, edit
    from sdsedit.io import record

    check_request(request, config)  # before a model is loaded, or fetched
    notes = list(job.picture.notes) + [f"Mask: {note}" for note in (job.mask.notes if job.mask else ())]
    with _progress() as advance:
        began = time.perf_counter()
        prior, warned = _load(job)
        loaded = time.perf_counter()

        def on_step(report: StepReport) -> bool:
            advance(report.index + 1, report.total)
            return not interrupts.received and report.index + 1 != job.stop_after

        interrupts.gentle = True
        result = edit(job.picture.tensor(), prior, request, config, on_step)
    notes += warned + list(result.notes)
    model = {
        "id": prior.name,
        "revision": record.model_revision(job.model),
        "device": _device_name(prior),
        "dtype": str(prior.dtype).removeprefix("torch."),
    }
    seconds = {"loading": loaded - began, "editing": result.seconds, "all": time.perf_counter() - started}
    recipe = record.image_recipe(job.picture, job.mask, request, config, result, model, seconds)
    if result.steps_done:
        record.write_all(_files(job, result, recipe))

    if result.words:
        print(f"Words looked for: {', '.join(printable(word) for word in result.words)}")
    for note in notes:
        print(f"Note: {printable(note, 1000)}")
    if not result.steps_done:
        print("Written: nothing, for no step was finished.")
        return result, recipe
    kept, total = result.kept_pixels, result.total_pixels
    print(f"Kept bit for bit: {kept} of {total} pixels ({100 * kept / total:.1f} %)")
    print(f"Time: {result.seconds:.1f} s for {result.steps_done} steps, {time.perf_counter() - started:.1f} s in all")
    print(f"Written: {', '.join(printable(str(path), 500) for path in job.names.values())}")
    return result, recipe


def _load(job: _Job) -> tuple[UNetPrior, list[str]]:
    """The model, and what its loader warned of."""
    from sdsedit.prior.load import load_prior

    _quiet()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            prior = load_prior(job.model, device=job.device, offload=job.offload, allow_pickle=job.allow_pickle)
        except InputRefused:
            raise
        except ValueError as error:
            raise InputRefused(one_sentence(error)) from error
    return prior, [one_sentence(each.message) for each in caught if isinstance(each.message, UserWarning)]


def _quiet() -> None:
    """No bars and no chatter of the libraries: what matters to a person is said here."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _files(job: _Job, result: EditResult, recipe: dict[str, Any]) -> list[tuple[Path, bytes]]:
    """The bytes of every output, in the order of writing."""
    import hashlib

    from sdsedit.io import images, record

    picture, names = job.picture, job.names
    text = record.dump(recipe) if "recipe" in names else None
    data = images.encode_png(images.to_array(result.image), picture.alpha, picture.icc, text)
    files = [(names["image"], data)]
    if "mask" in names:
        files.append((names["mask"], images.encode_png(images.to_array(result.mask)[..., 0])))
    if "heatmap" in names:
        heat = result.heatmap[0, 0].float().cpu().numpy()
        files.append((names["heatmap"], images.encode_png(images.overlay(picture.rgb, heat))))
    if "recipe" in names:
        output = {"name": names["image"].name, "sha256": hashlib.sha256(data).hexdigest()}
        files.append((names["recipe"], (record.dump({**recipe, "output": output}) + "\n").encode("ascii")))
    return files


def _device_name(prior: UNetPrior) -> str:
    import torch

    if prior.device.type == "cuda":
        return f"{prior.device} ({torch.cuda.get_device_name(prior.device)})"
    return f"{prior.device} ({torch.get_num_threads()} threads)" if prior.device.type == "cpu" else str(prior.device)


def _exit_code(result: EditResult, interrupts: Interrupts) -> int:
    """What a stopped run is called; what there was of it has been written."""
    if not result.stopped:
        return errors.OK
    kept = "the result so far is written, marked as incomplete." if result.steps_done else "nothing was written."
    if result.stopped == "cancelled":
        code = interrupts.exit_code if interrupts.received else errors.OK
        return _refuse(f"Cancelled after step {result.steps_done}; {kept}", code)
    return _refuse(f"Stopped: {printable(result.stopped)}; {kept}", errors.ALL_FAILED)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and remaining time on a terminal, else a plain line every tenth of the way, on standard error."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        print("Loading the model.", file=sys.stderr, flush=True)
        begun = 0.0

        def line(done: int, steps: int) -> None:
            nonlocal begun
            now = time.perf_counter()
            begun = begun or now
            if done == 1 or done * 10 // steps > (done - 1) * 10 // steps:
                rate = (done - 1) / (now - begun) if done > 1 else 0.0
                left = f", {rate:.1f} steps/s, {(steps - done) / rate:.0f} s left" if rate else ""
                print(f"Step {done} of {steps}{left}", file=sys.stderr, flush=True)

        yield line
        return

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Task as BarTask
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: BarTask) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f} steps/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("Loading the model", total=None)

        def advance(done: int, steps: int) -> None:
            if done == 1:
                progress.reset(bar, total=steps, description="Editing")
            progress.update(bar, completed=done)

        yield advance


# ---- sdsedit replay


def _replay(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    started = time.perf_counter()
    from sdsedit.io import images, record

    if images.is_address(arguments.made):
        raise InputRefused("Addresses are never fetched: save the picture first and give the file's name.")
    made = Path(arguments.made)
    recipe = record.read_recipe(made)
    before = images.read_picture(made) if made.suffix.lower() == ".png" else None
    source = _found(recipe, "input", arguments.input, made)
    mask = _found(recipe, "mask", arguments.mask, made) if recipe.get("mask") else None
    model = arguments.model or str(_part(recipe, "model").get("id", "builtin"))
    ended = _part(recipe, "result")
    stop_after = ended.get("steps_done") if ended.get("stopped") == "cancelled" else None
    output = Path(arguments.output) if arguments.output else made.with_name(f"{made.stem}.replay.png")
    job = _job(arguments, source, mask, output, model, False, False, True, stop_after)
    for name, file in (("input", job.picture), ("mask", job.mask)):
        if file is not None and file.sha256 != _part(recipe, name).get("sha256"):
            raise InputRefused(f"{file.name} is not the {name} that the recipe names: its SHA-256 is another.")

    request, config = record.image_request(recipe, None if job.mask is None else job.mask.tensor())
    result, now = _run(job, request, config, interrupts, started)
    for what in ("model", "versions"):
        was = _part(recipe, what)
        for key, value in now[what].items():
            if was.get(key) != value:
                print(f"Differs: {what} {key} was {printable(str(was.get(key)), 100)}, is {printable(str(value), 100)}")
    if before is not None and result.steps_done:
        _compare(before, result)
    return _exit_code(result, interrupts)


def _found(recipe: dict[str, Any], what: str, given: str | None, made: Path) -> str:
    """The input or mask of a recipe: as given, or of its name in the folder of the output or the current one."""
    if given:
        return given
    name = _part(recipe, what).get("name")
    if not isinstance(name, str) or Path(name).name != name:
        raise InputRefused(f"The recipe does not name its {what}: add --{what} FILE.")
    for folder in (made.parent, Path()):
        if (folder / name).is_file():
            return str(folder / name)
    raise InputRefused(f"{printable(name, 100)}, the {what} of the recipe, is not here: add --{what} FILE.")


def _part(recipe: dict[str, Any], what: str) -> dict[str, Any]:
    part = recipe.get(what)
    return part if isinstance(part, dict) else {}


def _compare(before: Picture, result: EditResult) -> None:
    import numpy as np

    from sdsedit.io import images

    after = images.to_array(result.image)
    if after.shape != before.rgb.shape:
        print(f"Compared: the sizes differ, {before.size[0]}x{before.size[1]} was made then")
        return
    difference = np.abs(after.astype(np.int16) - before.rgb.astype(np.int16)).max(-1)
    count = int((difference > 0).sum())
    if count:
        print(f"Compared: {count} of {difference.size} pixels differ, by at most {int(difference.max())} of 255")
    else:
        print("Compared: the same, pixel for pixel")


# ---- sdsedit models, sdsedit doctor


# (id, what it is, licence, how to get it) as of this version's release; the hub's own pages are what counts.
def _models(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    from sdsedit.io.record import model_revision
    from sdsedit.prior.load import ModelNotFound, builtin_path

    try:
        size = sum(file.stat().st_size for file in builtin_path().rglob("*") if file.is_file())
        state = f"here, {size / 1e6:.0f} MB"
    except ModelNotFound:
        state = "missing from this copy of sdsedit: reinstall it"
    print("builtin\n  What:    a small model of emoji scenes, 128 px, ships with sdsedit")
    print(f"  Licence: see its model card\n  State:   {state}")
    for name, known in KNOWN_MODELS.items():
        here = model_revision(name)
        print(f"{name}\n  What:    {known.what}\n  Licence: {known.licence}")
        print(f"  State:   {f'here, revision {here}' if here else f'not here; {known.how}'}")
    print("Any other Stable Diffusion 1.x, 2.x, SDXL or KOALA in diffusers format: --model FOLDER, ID or ID@REVISION.")
    return errors.OK


def _doctor(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    from sdsedit.doctor import examine

    _quiet()
    return examine(arguments.model)


if __name__ == "__main__":
    sys.exit(main())
