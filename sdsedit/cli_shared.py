"""What the commands share: arguments, the model and how it is loaded, progress, the last words of a run, and what a
recipe says of the run that is repeated."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sdsedit import errors
from sdsedit.errors import InputRefused, one_sentence, printable
from sdsedit.model_options import (
    KERNELS,
    MAX_DISTILLED_GUIDANCE,
    PRECISIONS,
    ModelOptions,
    file_sha256,
    is_single_file,
    parse_lora,
)

if TYPE_CHECKING:
    from sdsedit.prior.mmdit import MMDiTPrior
    from sdsedit.prior.unet import UNetPrior

# Named here too: `sdsedit --help` must not wait for torch. A test holds them to what the engine has.
METHOD_NAMES = ("lusd", "dds", "flowedit", "cds", "ids", "pds", "ssd", "ism", "sds", "sbp", "nfsd", "csd", "vsd")
METHOD_NAMES += ("lusd-fast",)
MAX_STEPS, MAX_SIZE, MAX_SEED = 10_000, 4096, 2**63 - 1
MIN_STRENGTH, MAX_STRENGTH = 0.1, 10.0


class Interrupts(Protocol):
    """As `sdsedit.cli` has them: while `gentle`, the first signal only sets `received`."""

    received: int
    gentle: bool

    @property
    def exit_code(self) -> int: ...


# ---- arguments


def whole(name: str, low: int, high: int) -> Callable[[str], int]:
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


def number(name: str, low: float, high: float) -> Callable[[str], float]:
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


def named_words(given: str | None) -> tuple[str, ...] | None:
    """What --words names; None: nothing, the new words are meant."""
    if given is None:
        return None
    words = tuple(word.strip() for word in given.split(",") if word.strip())
    if not words:
        raise InputRefused('words names no word: give some of the prompt\'s, such as "crown,top hat".')
    return words


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=whole("seed", 0, MAX_SEED), default=0, metavar="N", help="one seed, one result")


def add_strength(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strength", type=number("strength", MIN_STRENGTH, MAX_STRENGTH), default=1.0, metavar="X",
        help=f"multiplies the method's step, {MIN_STRENGTH:g} to {MAX_STRENGTH:g} (default: 1)",
    )  # fmt: skip


def add_model_arguments(parser: argparse.ArgumentParser, default: str | None) -> None:
    shown = "default: %(default)s" if default else "default: the recipe's"
    parser.add_argument(
        "--model",
        default=default,
        metavar="MODEL",
        help=f"builtin, a diffusers folder, an id, ID@REVISION, or one .safetensors file ({shown})",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read .bin weights where there are no safetensors: they can run code",
    )
    more = add_option_arguments(parser)
    more.add_argument("--previews", metavar="FOLDER", help="a tiny autoencoder (TAESD) that draws the previews")


def add_option_arguments(parser: argparse.ArgumentParser) -> Any:
    """How a model is loaded, for a batch and the page too; gives the group that they stand in."""
    more = parser.add_argument_group("models from elsewhere", "docs/models.md says more of each")
    more.add_argument("--lora", action="append", default=[], metavar="FILE[:SCALE]", help="add a LoRA to the weights")
    more.add_argument(
        "--embedding", action="append", default=[], metavar="FILE", help="teach words of a textual inversion file"
    )
    more.add_argument(
        "--settings", metavar="MODEL", help="where a single file's settings and vocabulary are from: a folder or an id"
    )
    more.add_argument("--precision", choices=PRECISIONS, help="of the network (default: what suits it)")
    more.add_argument(
        "--attention-kernel", choices=KERNELS,
        help="how this model's attention is computed (default: torch chooses)",
    )  # fmt: skip
    more.add_argument("--compile", action="store_true", help="torch.compile: the first steps are slow")
    more.add_argument("--offload", action="store_true", help="keep one network at a time on the GPU")
    more.add_argument(
        "--offload-layers", action="store_true", help="keep only the layer that runs on the GPU: least memory, slow"
    )
    more.add_argument("--tiling", action="store_true", help="encode and decode large pictures in tiles")
    more.add_argument(
        "--distilled-guidance", type=number("distilled-guidance", 0, MAX_DISTILLED_GUIDANCE), default=1.0,
        metavar="NUMBER", help="what FLUX.1 dev is told; no CFG scale (default: %(default)s)",
    )  # fmt: skip
    return more


def options_of(arguments: argparse.Namespace, name: str) -> ModelOptions:
    """What the arguments of `add_option_arguments`, and those beside them, say of a model."""
    return ModelOptions(
        name, tuple(arguments.lora), tuple(arguments.embedding), arguments.settings, arguments.precision,
        arguments.distilled_guidance, arguments.device, "sequential" if arguments.offload_layers else arguments.offload,
        arguments.attention_kernel, arguments.compile, arguments.tiling, getattr(arguments, "previews", None),
        getattr(arguments, "allow_pickle", False),
    )  # fmt: skip


def check_files(model: ModelOptions) -> None:
    """InputRefused: a file that is to be added to the model is not there."""
    for what, names in (("LoRA", [parse_lora(each)[0] for each in model.lora]), ("textual inversion", model.embedding)):
        for name in names:
            if not is_single_file(name) or not Path(name).expanduser().is_file():
                raise InputRefused(
                    f"There is no {what} file {printable(Path(name).name, 100)}: give a .safetensors file."
                )


# ---- the model


def wanted_model(arguments: argparse.Namespace, name: str) -> ModelOptions:
    """The model that is asked for, if it is none on the network. So much for the output."""
    from sdsedit.io.images import is_address

    for what, given in (("The output", str(arguments.output or "")), ("The model", name)):
        if is_address(given):
            raise InputRefused(
                f"{what} is an address; give a file's, a folder's or a model's name: nothing is fetched."
            )
    return options_of(arguments, name)


def load(model: ModelOptions) -> tuple[UNetPrior | MMDiTPrior, list[str]]:
    """The model, and what its loader warned of."""
    from sdsedit.prior.load import load_model

    quiet()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            prior = load_model(model)
        except InputRefused:
            raise
        except ValueError as error:
            raise InputRefused(one_sentence(error)) from error
    return prior, [one_sentence(each.message) for each in caught if isinstance(each.message, UserWarning)]


def quiet() -> None:
    """No bars and no chatter of the libraries: what matters to a person is said here."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


# ---- what a person is told


@contextlib.contextmanager
def progress(doing: str, timed: str = "") -> Iterator[Callable[..., None]]:
    """A bar with rate and remaining time on a terminal, else a plain line every tenth of the way, on standard error.

    What it gives is called with (steps done, steps in all), and with the name of a stage where a run has several; only
    the stage `timed`, the long one, says how much time is left.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        print("Loading the model.", file=sys.stderr, flush=True)
        begun, first, shown = 0.0, 1, ""

        def line(done: int, steps: int, stage: str = "") -> None:
            nonlocal begun, first, shown
            now = time.perf_counter()
            fresh = not begun or stage != shown
            if fresh:
                begun, first, shown = now, done, stage
            if fresh or done * 10 // steps > (done - 1) * 10 // steps:
                rate = (done - first) / (now - begun) if done > first and stage == timed else 0.0
                left = f", {rate:.1f} steps/s, {(steps - done) / rate:.0f} s left" if rate else ""
                named = f" ({stage})" if stage else ""
                print(f"Step {done} of {steps}{named}{left}", file=sys.stderr, flush=True)

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

        shown = None

        def advance(done: int, steps: int, stage: str = "") -> None:
            nonlocal shown
            if shown is None:
                progress.reset(bar, total=steps)
            if stage != shown:
                progress.update(bar, description=stage.capitalize() or doing)
                shown = stage
            progress.update(bar, completed=done)

        yield advance


def tell(words: Sequence[str], notes: Sequence[str]) -> None:
    if words:
        print(f"Words looked for: {', '.join(printable(word) for word in words)}")
    for note in notes:
        print(f"Note: {printable(note, 1000)}")


def tell_written(paths: Iterable[Path]) -> None:
    print(f"Written: {', '.join(printable(str(path), 500) for path in paths)}")


def peak_memory(device: Any) -> tuple[int, int]:
    """Bytes that the process had at most, in main memory (0: the system does not say) and on the GPU."""
    import torch

    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    try:
        import resource
    except ImportError:  # Windows
        return 0, gpu
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, gpu


def exit_code(stopped: str, steps_done: int, written: bool, interrupts: Interrupts) -> int:
    """What a stopped run is called; what there was of it has been written."""
    if not stopped:
        return errors.OK
    kept = "the result so far is written, marked as incomplete." if written else "nothing was written."
    if stopped == "cancelled":
        code = interrupts.exit_code if interrupts.received else errors.OK
        return refuse(f"Cancelled after step {steps_done}; {kept}", code)
    return refuse(f"Stopped: {printable(stopped)}; {kept}", errors.ALL_FAILED)


def refuse(sentence: str, code: int) -> int:
    print(f"sdsedit: {sentence}", file=sys.stderr)
    return code


# ---- the same again


def recipe_model(arguments: argparse.Namespace, recipe: dict[str, Any]) -> str:
    from sdsedit.batch.origin import origin

    if arguments.model:
        return arguments.model
    of_batch = origin(Path(arguments.made))
    return of_batch.model.name if of_batch is not None else str(recipe_part(recipe, "model").get("id", "builtin"))


def as_the_recipe_says(arguments: argparse.Namespace, recipe: dict[str, Any]) -> argparse.Namespace:
    """The arguments, and where they say nothing of how the model is loaded, the recipe's: LoRAs and taught words, whose
    files are looked for beside what was made, and all else that may change a bit."""
    from sdsedit.batch.origin import origin
    from sdsedit.io.record import loading_options

    made, said = Path(arguments.made), loading_options(recipe)
    found = argparse.Namespace(**vars(arguments))
    loras, words, settings = said.pop("lora", []), said.pop("embedding", []), said.pop("settings", None)
    if not (loras or words or settings or said):
        return found
    of_batch = origin(made)
    theirs = ModelOptions() if of_batch is None else of_batch.model
    if not found.lora:
        places = [parse_lora(given)[0] for given in theirs.lora]
        found.lora = [f"{_beside(made, each, 'lora', places)}:{each['scale']!r}" for each in loras]
    if not found.embedding:
        found.embedding = [_beside(made, each, "embedding", theirs.embedding) for each in words]
    if not found.settings and settings is not None:
        folders = [str(folder / settings) for folder in (made.parent, Path()) if (folder / settings).is_dir()]
        found.settings = theirs.settings or (*folders, settings)[0]
    named = {"attention": "attention_kernel"}
    for name, value in said.items():
        name = named.get(name, name)
        if getattr(found, name) in (None, False, 1.0):  # what they are where they were not given
            setattr(found, name, value)
    return found


def _beside(made: Path, named: dict[str, Any], option: str, more: Sequence[str]) -> str:
    """A file of a recipe's model: in the folder of what was made, the current one, or where its batch had it."""
    name = printable(named["name"], 100)
    there = [path for path in (made.parent / named["name"], Path(named["name"]), *map(Path, more)) if path.is_file()]
    same = [path for path in there if path.name == named["name"] and file_sha256(path) == named["sha256"]]
    if same:
        return str(same[0])
    if any(path.name == named["name"] for path in there):
        raise InputRefused(f"{name} is not the file that the recipe names: its SHA-256 is another.")
    raise InputRefused(f"{name}, which the recipe's model was loaded with, is not here: add --{option} FILE.")


def stopped_after(recipe: dict[str, Any]) -> int | None:
    """The step after which the run was cancelled; None: it was not."""
    ended = recipe_part(recipe, "result")
    return ended.get("steps_done") if ended.get("stopped") == "cancelled" else None


def found_file(recipe: dict[str, Any], what: str, given: str | None, made: Path) -> str:
    """The input or mask of a recipe: as given, or of its name in the folder of the output or the current one."""
    if given:
        return given
    name = recipe_part(recipe, what).get("name")
    if not isinstance(name, str) or Path(name).name != name:
        raise InputRefused(f"The recipe does not name its {what}: add --{what} FILE.")
    for folder in (made.parent, Path()):
        if (folder / name).is_file() or (what == "cameras" and (folder / name).is_dir()):
            return str(folder / name)
    from sdsedit.batch.origin import origin

    of_batch = origin(made)
    if of_batch is not None and what in of_batch.files:
        return str(of_batch.files[what])
    raise InputRefused(f"{printable(name, 100)}, the {what} of the recipe, is not here: add --{what} FILE.")


def check_same_file(recipe: dict[str, Any], what: str, name: str, sha256: str) -> None:
    if sha256 != recipe_part(recipe, what).get("sha256"):
        raise InputRefused(
            f"{printable(name, 100)} is not the {what} that the recipe names: its SHA-256 is another."
        )  # fmt: skip


def tell_differences(recipe: dict[str, Any], now: dict[str, Any]) -> None:
    for what in ("model", "versions"):
        was = recipe_part(recipe, what)
        for key in {**was, **now[what]}:
            before, after = (printable(str(each.get(key)), 100) for each in (was, now[what]))
            if was.get(key) != now[what].get(key):
                print(f"Differs: {what} {key} was {before}, is {after}")


def recipe_part(recipe: dict[str, Any], what: str) -> dict[str, Any]:
    part = recipe.get(what)
    return part if isinstance(part, dict) else {}
