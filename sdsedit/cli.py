"""The command line: `sdsedit image | sketch | svg | splats | style | replay | batch | evaluate | models | doctor`.

Results go to standard output, progress and refusals to standard error. A refusal is one sentence; the exit codes are in
`sdsedit.errors`. Heavy imports wait until the arguments and the files are known to be good.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from sdsedit import cli_batch, cli_evaluate, cli_models, cli_splats, cli_style, errors
from sdsedit._version import __version__
from sdsedit.cli_shared import (
    MAX_SIZE,
    MAX_STEPS,
    METHOD_NAMES,
    add_model_arguments,
    add_seed,
    add_strength,
    as_the_recipe_says,
    check_same_file,
    exit_code,
    found_file,
    load,
    named_words,
    number,
    progress,
    quiet,
    recipe_model,
    recipe_part,
    refuse,
    stopped_after,
    tell,
    tell_differences,
    tell_written,
    wanted_model,
    whole,
)
from sdsedit.errors import InputRefused, one_sentence, printable
from sdsedit.model_options import ModelOptions

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sdsedit.edit import EditResult, StepReport
    from sdsedit.io.images import Mask, Picture
    from sdsedit.io.svg import SvgDocument
    from sdsedit.request import Edit, EditConfig
    from sdsedit.sketch.change import SvgConfig, SvgResult, SvgStep
    from sdsedit.sketch.draw import SketchConfig, SketchResult, SketchStep

# Named here too: `sdsedit --help` must not wait for torch. A test holds them to what the engine has.
STYLE_NAMES = ("ink", "colour", "icon")
MAX_FEATHER = 256
MIN_STROKES, MAX_STROKES = 4, 2048
MIN_WIDTH, MAX_WIDTH = 0.1, 20.0
MAX_ADDED = 512
SKETCH_STEPS, SKETCH_DISTILLATION = 120, 0.5  # defaults, as --help says
SVG_SHARE, SVG_ADDED, SVG_STEPS = 0.5, 24, 60
IMAGE_STYLE_WEIGHT, SKETCH_STYLE_WEIGHT = 2.0, 0.5
SKETCH_SIDE, PICTURE_SIDE = 512, 2048  # pixels: of a sketch's page, and at most of a picture of a drawing


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    try:
        arguments = _parser().parse_args(_joined(sys.argv[1:] if argv is None else argv))
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
            return refuse("Stopped; no half-written output is left.", interrupts.exit_code)
        except (
            BrokenPipeError
        ):  # whoever read our output has had enough (`sdsedit models | head`); files come before words
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
            return errors.OK
        except Exception as error:
            if arguments.debug:
                traceback.print_exc()
            return refuse(*_outcome(error))


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
            for each in (signal.SIGINT, signal.SIGTERM):
                self._before[each] = signal.signal(each, self._handle)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

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
    if isinstance(error, errors.OutOfMemory):
        return str(error), errors.OUT_OF_MEMORY
    if errors.out_of_memory(error):
        return "Out of memory: try a smaller --size, or --offload on a GPU.", errors.OUT_OF_MEMORY
    if isinstance(error, OSError):
        return f"The system refused: {one_sentence(error)}.", errors.ALL_FAILED
    kind = type(error).__name__
    return f"Internal error ({kind}): {one_sentence(error)} Add --debug to see where.", errors.INTERNAL


# ---- arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        self.exit(errors.USAGE, f"{self.prog}: {printable(message, 400).rstrip('.')}.\n")


def _joined(argv: Sequence[str]) -> list[str]:
    """The arguments as argparse understands them: `splats info`, `batch status`, `models add` as one command, and --up
    with its -y, which looks like an option, in one word."""
    given = list(argv)
    if given[:2] in (["splats", "info"], ["batch", "status"], ["models", "add"], ["models", "list"]):
        given[:2] = [" ".join(given[:2])]
    for k in range(len(given) - 2, -1, -1):
        if given[k] == "--up" and not given[k + 1].startswith("--"):
            given[k : k + 2] = [f"--up={given[k + 1]}"]
    return given


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sdsedit", allow_abbrev=False,
        description="Edit pictures, drawings and splat scenes with words: score distillation says how, attention says "
        "where.",
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
        "--fast",
        action="store_const",
        const="lusd-fast",
        dest="method",
        help="in about half of the time or less: --method lusd-fast",
    )
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
        "--steps", type=whole("steps", 1, MAX_STEPS), metavar="N", help=f"1 to {MAX_STEPS} (default: the method's own)"
    )
    add_seed(image)
    add_strength(image)
    image.add_argument(
        "--size", type=whole("size", 1, MAX_SIZE), metavar="N",
        help="working side in pixels (default: the model's own); the result keeps the input's size",
    )  # fmt: skip
    image.add_argument(
        "--feather", type=number("feather", 0, MAX_FEATHER), metavar="PX", help="the mask's soft edge in pixels"
    )
    image.add_argument(
        "--refine", type=number("refine", 0, 1), metavar="T",
        help="redraw the edit's place from this much noise at the end, 0 (do not) to 1; default: what suits the model",
    )  # fmt: skip
    image.add_argument("--save-mask", action="store_true", help="also write OUT.mask.png, the weight of the edit")
    image.add_argument(
        "--save-heatmap", action="store_true", help="also write OUT.heatmap.png, where the words were found"
    )
    image.add_argument(
        "--no-metadata", action="store_true", help="write no recipe, neither into the picture nor beside it as OUT.json"
    )
    cli_style.add_reference_arguments(image, IMAGE_STYLE_WEIGHT)
    add_model_arguments(image, "builtin")
    image.add_argument(
        "--overwrite", action="store_true", help="replace what is there already under the output's names"
    )

    sketch = command("sketch", _sketch, "Draw words as an SVG.")
    sketch.add_argument("prompt", metavar="TEXT", help='what to draw: "a cat wearing a crown"')
    sketch.add_argument("--output", required=True, metavar="OUT.svg", help="where the drawing goes")
    sketch.add_argument(
        "--strokes", type=whole("strokes", MIN_STROKES, MAX_STROKES), default=64, metavar="N",
        help=f"shapes to draw with, {MIN_STROKES} to {MAX_STROKES}: the fewer, the more abstract (default: 64)",
    )  # fmt: skip
    sketch.add_argument(
        "--style", choices=STYLE_NAMES, default="ink",
        help="black strokes, strokes with colours, or filled areas (default: %(default)s)",
    )  # fmt: skip
    sketch.add_argument(
        "--background", action="store_true", help="draw what is around the words' things too, not white paper"
    )
    sketch.add_argument(
        "--width", type=number("width", MIN_WIDTH, MAX_WIDTH), default=1.0, metavar="X",
        help=f"multiplies the width of strokes, {MIN_WIDTH:g} to {MAX_WIDTH:g} (default: 1)",
    )  # fmt: skip
    sketch.add_argument(
        "--steps", type=whole("steps", 1, MAX_STEPS), default=SKETCH_STEPS, metavar="N",
        help=f"1 to {MAX_STEPS} (default: %(default)s)",
    )  # fmt: skip
    add_seed(sketch)
    sketch.add_argument(
        "--distillation", type=number("distillation", 0, 1), default=SKETCH_DISTILLATION, metavar="S",
        help="score distillation's share of the gradient, 0 to 1 (default: %(default)s); likeness to the guide has the "
        "rest",
    )  # fmt: skip
    sketch.add_argument("--png", action="store_true", help="also write OUT.png, a picture of the drawing")
    sketch.add_argument(
        "--guide", action="store_true", help="also write OUT.guide.png, the model's own picture of the words"
    )
    sketch.add_argument(
        "--attention", action="store_true", help="also write OUT.attention.png, where the words are in the guide"
    )
    sketch.add_argument(
        "--animation", metavar="FILE", help="also write the drawing as it draws itself: a .gif, .mp4 or .svg file"
    )
    sketch.add_argument(
        "--preview-every", type=whole("preview-every", 1, MAX_STEPS), metavar="N",
        help="every N steps write the page so far to OUT.preview.png",
    )  # fmt: skip
    sketch.add_argument("--no-metadata", action="store_true", help="write no recipe into the drawing")
    cli_style.add_reference_arguments(sketch, SKETCH_STYLE_WEIGHT)
    add_model_arguments(sketch, "builtin")
    sketch.add_argument(
        "--overwrite", action="store_true", help="replace what is there already under the output's names"
    )

    svg = command("svg", _svg, "Edit an SVG: shapes that need not change keep their bytes.")
    svg.add_argument("input", metavar="INPUT", help="an SVG or SVGZ file")
    svg.add_argument("--target", required=True, metavar="TEXT", help="describes the drawing as it should become")
    svg.add_argument("--source", metavar="TEXT", help="describes the drawing as it is")
    svg.add_argument("--output", required=True, metavar="OUT.svg", help="where the result goes")
    svg.add_argument("--method", choices=METHOD_NAMES, default="lusd", help="how to edit (default: %(default)s)")
    svg.add_argument(
        "--words",
        metavar="WORDS",
        help='words of the prompt whose place is edited: "crown,top hat" (default: the new ones)',
    )
    svg.add_argument(
        "--share", type=number("share", 0, 1), default=SVG_SHARE, metavar="S",
        help="a shape may change if this much of what is seen of it lies in the place, 0 to 1 (default: %(default)s)",
    )  # fmt: skip
    svg.add_argument(
        "--added", type=whole("added", 0, MAX_ADDED), default=SVG_ADDED, metavar="N",
        help=f"new shapes at most, 0 to {MAX_ADDED} (default: %(default)s)",
    )  # fmt: skip
    svg.add_argument(
        "--steps", type=whole("steps", 1, MAX_STEPS), metavar="N",
        help=f"of the look at the drawing as a picture, and again of its shapes, 1 to {MAX_STEPS} "
        f"(default: the method's own, and {SVG_STEPS})",
    )  # fmt: skip
    add_seed(svg)
    add_strength(svg)
    svg.add_argument("--png", action="store_true", help="also write OUT.png, a picture of the result")
    svg.add_argument("--save-mask", action="store_true", help="also write OUT.mask.png, where shapes may change")
    svg.add_argument(
        "--save-heatmap", action="store_true", help="also write OUT.heatmap.png, where the words were found"
    )
    svg.add_argument("--no-metadata", action="store_true", help="write no recipe into the drawing")
    add_model_arguments(svg, "builtin")
    svg.add_argument("--overwrite", action="store_true", help="replace what is there already under the output's names")

    cli_splats.add_to(command)

    again = command("replay", _replay, "Repeat what the recipe in a picture, a drawing or a scene says, and compare.")
    again.add_argument("made", metavar="OUTPUT", help="a picture, a drawing or a scene that sdsedit made")
    again.add_argument(
        "--input", metavar="FILE", help="its input (default: the file of that name beside OUTPUT or here)"
    )
    again.add_argument(
        "--reference", action="append", metavar="FILE",
        help="a style's reference, each with its own --reference (default: the files of those names, as --input)",
    )  # fmt: skip
    again.add_argument("--mask", metavar="FILE", help="its mask (default: the file of that name beside OUTPUT or here)")
    again.add_argument(
        "--cameras", metavar="PATH", help="a scene's cameras (default: what has that name beside OUTPUT or here)"
    )
    again.add_argument(
        "--output", metavar="OUT", help="where the repeated one goes (default: OUTPUT.replay.png, .svg or .ply)"
    )
    add_model_arguments(again, None)
    again.add_argument(
        "--overwrite", action="store_true", help="replace what is there already under the output's names"
    )

    doctor = command("doctor", _doctor, "Say what is installed and what works, and try a three-step edit.")
    doctor.add_argument("--model", metavar="MODEL", help="check this one, and print a report to paste into an issue")
    cli_batch.add_to(command)
    cli_models.add_to(command)
    cli_style.add_to(command)
    cli_evaluate.add_to(command)
    return parser


# ---- sdsedit image


@dataclass(frozen=True)
class _Job:
    """An edit of one picture, its files read and its outputs known to be writable."""

    picture: Picture
    mask: Mask | None
    names: dict[str, Path]  # what is written where
    model: ModelOptions
    stop_after: int | None = None  # replay of an edit that was cancelled
    references: tuple[Picture, ...] = ()  # whose look is taken


def _image(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    started = time.perf_counter()
    job = _job(
        arguments, arguments.input, arguments.mask, Path(arguments.output), arguments.model,
        arguments.save_mask, arguments.save_heatmap, not arguments.no_metadata, references=arguments.reference,
    )  # fmt: skip

    from sdsedit.request import Edit, EditConfig

    request = Edit(
        target=arguments.target,
        source=arguments.source,
        words=named_words(arguments.words),
        mask=None if job.mask is None else job.mask.tensor(),
        negative=arguments.negative,
        references=tuple(picture.tensor() for picture in job.references),
    )
    config = EditConfig(
        method=arguments.method,
        steps=arguments.steps,
        seed=arguments.seed,
        strength=arguments.strength,
        size=arguments.size,
        refine=arguments.refine,
        style_weight=arguments.style_weight,
    )
    if arguments.feather is not None:
        config = replace(config, feather=arguments.feather)
    result, _ = _run(job, request, config, interrupts, started)
    return exit_code(result.stopped, result.steps_done, bool(result.steps_done), interrupts)


def _job(
    arguments: argparse.Namespace, input: str, mask: str | None, output: Path, model: str,
    save_mask: bool, save_heatmap: bool, metadata: bool, stop_after: int | None = None,
    references: Sequence[str] = (),
) -> _Job:  # fmt: skip
    """Read the files and check where the results go, before anything heavy is imported."""
    from sdsedit.io import images, record

    wanted = wanted_model(arguments, model)
    picture = images.read_picture(input)
    drawn = None if mask is None else images.read_mask(mask, picture.size)
    names = record.output_names(output, save_mask, save_heatmap, metadata)
    looks = cli_style.read_references(references)
    inputs = [Path(name) for name in (input, mask, *references) if name is not None]
    width, height = picture.size
    record.check_outputs(names, inputs, arguments.overwrite, width * height)
    return _Job(picture, drawn, names, wanted, stop_after, looks)


def _run(
    job: _Job, request: Edit, config: EditConfig, interrupts: Interrupts, started: float
) -> tuple[EditResult, dict[str, Any]]:
    """Load the model, edit, write, and tell; gives the result and its recipe."""
    from sdsedit.edit import edit
    from sdsedit.io import record
    from sdsedit.request import check_request

    check_request(request, config)  # before a model is loaded, or fetched
    notes = list(job.picture.notes) + [f"Mask: {note}" for note in (job.mask.notes if job.mask else ())]
    with progress("Editing") as advance:
        began = time.perf_counter()
        prior, warned = load(job.model)
        loaded = time.perf_counter()

        def on_step(report: StepReport) -> bool:
            advance(report.index + 1, report.total)
            return not interrupts.received and report.index + 1 != job.stop_after

        interrupts.gentle = True
        result = edit(job.picture.tensor(), prior, request, config, on_step)
    notes += warned + list(result.notes)
    model = record.model_record(job.model.name, prior)
    seconds = {"loading": loaded - began, "editing": result.seconds, "all": time.perf_counter() - started}
    recipe = record.image_recipe(job.picture, job.mask, request, config, result, model, seconds, job.references)
    if result.steps_done:
        record.write_all(_files(job, result, recipe))

    tell(result.words, notes)
    if not result.steps_done:
        print("Written: nothing, for no step was finished.")
        return result, recipe
    kept, total = result.kept_pixels, result.total_pixels
    print(f"Kept bit for bit: {kept} of {total} pixels ({100 * kept / total:.1f} %)")
    print(f"Time: {result.seconds:.1f} s for {result.steps_done} steps, {time.perf_counter() - started:.1f} s in all")
    tell_written(job.names.values())
    return result, recipe


def _files(job: _Job, result: EditResult, recipe: dict[str, Any]) -> list[tuple[Path, bytes]]:
    """The bytes of every output, in the order of writing."""
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
        files.append((names["recipe"], record.sidecar(recipe, names["image"].name, data)))
    return files


# ---- sdsedit sketch


@dataclass(frozen=True)
class _SketchJob:
    """A sketch whose outputs are known to be writable."""

    prompt: str
    config: SketchConfig
    names: dict[str, Path]
    model: ModelOptions
    metadata: bool
    preview_every: int = 0  # steps; 0: no preview
    stop_after: int | None = None  # replay of a sketch that was cancelled
    references: tuple[Picture, ...] = ()  # whose look is taken


def _sketch(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    started = time.perf_counter()
    from sdsedit.io import record

    model = wanted_model(arguments, arguments.model)
    pictures = [what for what in ("png", "guide", "attention") if getattr(arguments, what)]
    if arguments.preview_every:
        pictures.append("preview")
    animation = None if arguments.animation is None else Path(arguments.animation)
    names = record.drawing_names(Path(arguments.output), pictures, animation)
    references = cli_style.read_references(arguments.reference)
    record.check_outputs(names, [Path(name) for name in arguments.reference], arguments.overwrite, SKETCH_SIDE**2)

    from sdsedit.sketch.draw import SketchConfig

    config = SketchConfig(
        strokes=arguments.strokes,
        style=arguments.style,
        background=arguments.background,
        width=arguments.width,
        steps=arguments.steps,
        seed=arguments.seed,
        distillation=arguments.distillation,
        style_weight=arguments.style_weight,
    )
    job = _SketchJob(
        arguments.prompt, config, names, model, not arguments.no_metadata, arguments.preview_every or 0,
        references=references,
    )  # fmt: skip
    result, _, data = _run_sketch(job, interrupts, started)
    return exit_code(result.stopped, result.steps_done, bool(data), interrupts)


def _run_sketch(job: _SketchJob, interrupts: Interrupts, started: float) -> tuple[SketchResult, dict[str, Any], bytes]:
    """Load the model, draw, write, and tell; gives the result, its recipe, and the SVG (empty: nothing was written)."""
    from sdsedit.io import images, record
    from sdsedit.sketch.draw import check_sketch, sketch
    from sdsedit.sketch.files import sketch_svg

    check_sketch(job.prompt, job.config)  # before a model is loaded, or fetched
    notes: list[str] = []
    with progress("Drawing") as advance:
        prior, warned = load(job.model)

        def on_step(step: SketchStep) -> bool:
            interrupts.gentle = True  # from here on there is something to keep
            advance(step.index + 1, step.total)
            if job.preview_every and (step.index + 1) % job.preview_every == 0:
                try:
                    png = images.encode_png(images.to_array(step.preview(SKETCH_SIDE)))
                    record.write_all([(job.names["preview"], png)])
                except OSError as error:  # a preview is not worth the drawing
                    notes[:] = [f"A preview could not be written: {one_sentence(error)}."]
            return not interrupts.received and step.index + 1 != job.stop_after

        looks = tuple(picture.tensor() for picture in job.references)
        result = sketch(job.prompt, prior, job.config, on_step, looks)
    interrupts.gentle = True
    model = record.model_record(job.model.name, prior)
    recipe = record.sketch_recipe(job.prompt, job.config, result, model, job.references)
    data = b""
    if result.steps_done:
        data = sketch_svg(result, record.dump(recipe) if job.metadata else None)
        record.write_all(_sketch_files(job.names, result, data))

    tell(result.words, [*warned, *result.notes, *notes])
    if not data:
        print("Written: nothing, for no step was finished.")
        return result, recipe, data
    pulls = [f"{name} {100 * share:.0f} %" for name, share in result.shares.items()]
    print(f"Share of the gradient: {', '.join(pulls)}")
    dropped = f"{result.dropped} dropped that did not matter" if result.dropped else "none dropped"
    print(f"Strokes: {len(result.topology)} kept, {dropped}")
    rendering = 100 * result.drawing_seconds / max(result.seconds, 1e-9)
    print(
        f"Time: {result.seconds:.1f} s for {result.steps_done} steps ({rendering:.0f} % of it in the renderer), "
        f"{time.perf_counter() - started:.1f} s in all"
    )
    tell_written(path for what, path in job.names.items() if what != "preview" or path.exists())
    return result, recipe, data


def _sketch_files(names: dict[str, Path], result: SketchResult, data: bytes) -> list[tuple[Path, bytes]]:
    """The bytes of every output, in the order of writing."""
    from sdsedit.io import images
    from sdsedit.io.svg import read_svg
    from sdsedit.sketch.files import animation, draw_page, sketch_svg

    files = [(names["drawing"], data)]
    if "png" in names:
        files.append((names["png"], images.encode_png(draw_page(read_svg(data)))))
    guide = images.to_array(result.guide)
    if "guide" in names:
        files.append((names["guide"], images.encode_png(guide)))
    if "attention" in names:
        heat = result.attention[0, 0].float().cpu().numpy()
        files.append((names["attention"], images.encode_png(images.overlay(guide, heat))))
    if "animation" in names:
        suffix = names["animation"].suffix.lower()
        files.append((names["animation"], animation(sketch_svg(result), suffix)))
    return files


# ---- sdsedit svg


@dataclass(frozen=True)
class _SvgJob:
    """An edit of one drawing, read, and its outputs known to be writable."""

    document: SvgDocument
    input: Path
    sha256: str
    names: dict[str, Path]
    model: ModelOptions
    metadata: bool
    stop_after: int | None = None  # replay of an edit that was cancelled


def _svg(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    started = time.perf_counter()
    pictures = [
        what
        for what, wanted in (
            ("png", arguments.png), ("mask", arguments.save_mask), ("heatmap", arguments.save_heatmap)
        )
        if wanted
    ]  # fmt: skip
    job = _svg_job(
        arguments, arguments.input, Path(arguments.output), arguments.model, pictures, not arguments.no_metadata
    )

    from sdsedit.request import Edit, EditConfig
    from sdsedit.sketch.change import SvgConfig

    request = Edit(target=arguments.target, source=arguments.source, words=named_words(arguments.words))
    look = EditConfig(
        method=arguments.method, steps=arguments.steps, seed=arguments.seed, strength=arguments.strength
    )  # fmt: skip
    config = SvgConfig(look, arguments.share, arguments.added, arguments.steps or SVG_STEPS)
    result, _, data = _run_svg(job, request, config, interrupts, started)
    return exit_code(result.stopped, result.steps_done, bool(data), interrupts)


def _svg_job(
    arguments: argparse.Namespace, input: str, output: Path, model: str, pictures: Sequence[str], metadata: bool,
    stop_after: int | None = None,
) -> _SvgJob:  # fmt: skip
    """Read the drawing and check where the results go, before anything heavy is imported."""
    import hashlib

    from sdsedit.io import record, svg

    wanted = wanted_model(arguments, model)
    document = svg.read_svg_bounded(Path(input))
    sha256 = hashlib.sha256(Path(input).read_bytes()).hexdigest()
    names = record.drawing_names(output, pictures)
    width, height = (min(max(round(side), SKETCH_SIDE), PICTURE_SIDE) for side in (document.width, document.height))
    record.check_outputs(names, [Path(input)], arguments.overwrite, width * height)
    return _SvgJob(document, Path(input), sha256, names, wanted, metadata, stop_after)


def _run_svg(
    job: _SvgJob, request: Edit, config: SvgConfig, interrupts: Interrupts, started: float
) -> tuple[SvgResult, dict[str, Any], bytes]:
    """Load the model, edit, write, and tell; gives the result, its recipe, and the SVG (empty: nothing was written)."""
    from sdsedit.io import record
    from sdsedit.sketch.change import change, check_change

    check_change(request, config)  # before a model is loaded, or fetched
    with progress("Editing") as advance:
        prior, warned = load(job.model)

        def on_step(step: SvgStep) -> bool:
            advance(step.index + 1, step.total)
            return not interrupts.received and step.index + 1 != job.stop_after

        interrupts.gentle = True
        result = change(job.document, prior, request, config, on_step)
    model = record.model_record(job.model.name, prior)
    recipe = record.svg_recipe(printable(job.input.name, 200), job.sha256, request, config, result, model)
    data = b""
    if not result.stopped or result.steps_done > result.look.steps_done:  # else no shape has been touched
        data = result.written(record.dump(recipe) if job.metadata else None)
        record.write_all(_svg_files(job.names, result, data))

    tell(result.look.words, [*job.document.notes, *warned, *result.notes])
    if not data:
        print("Written: nothing, for no shape was reached.")
        return result, recipe, data
    print(
        f"Kept byte for byte: {result.kept} of {len(result.document.shapes)} shapes; {len(result.changed)} changed, "
        f"{len(result.removed)} removed, {len(result.added)} added"
    )
    print(f"Time: {result.seconds:.1f} s for {result.steps_done} steps, {time.perf_counter() - started:.1f} s in all")
    tell_written(job.names.values())
    return result, recipe, data


def _svg_files(names: dict[str, Path], result: SvgResult, data: bytes) -> list[tuple[Path, bytes]]:
    """The bytes of every output, in the order of writing; pictures have the size of the page."""
    from sdsedit.io import images
    from sdsedit.sketch.files import draw_page, edited_document

    files, page = [(names["drawing"], data)], draw_page(result.document)
    if "png" in names:
        files.append((names["png"], images.encode_png(draw_page(edited_document(result)))))
    if "mask" in names:
        files.append((names["mask"], images.encode_png(_enlarged(result.look.mask, page))))
    if "heatmap" in names:
        heat = _enlarged(result.look.heatmap, page).astype("float32") / 255
        files.append((names["heatmap"], images.encode_png(images.overlay(page, heat))))
    return files


def _enlarged(values: Tensor, page: np.ndarray) -> np.ndarray:  # [1, 1, h, w] in 0..1 -> [H, W] uint8
    from torch.nn.functional import interpolate

    from sdsedit.io.images import to_array

    return to_array(interpolate(values.float(), page.shape[:2], mode="bilinear", align_corners=False))[..., 0]


# ---- sdsedit replay


def _replay(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    started = time.perf_counter()
    from sdsedit.io import images, record

    if images.is_address(arguments.made):
        raise InputRefused("Addresses are never fetched: save the picture first and give the file's name.")
    made = Path(arguments.made)
    recipe = record.read_recipe(made)
    arguments = as_the_recipe_says(arguments, recipe)
    _as_many_threads(recipe)
    if recipe.get("kind") in ("sketch", "svg"):
        return _replay_drawing(arguments, made, recipe, interrupts, started)
    if recipe.get("kind") == "splats":
        return cli_splats.replay(arguments, made, recipe, interrupts, started)
    if recipe.get("kind") == "style":
        before = images.read_picture(made) if made.suffix.lower() == ".png" else None
        code, now, after = cli_style.replay(
            arguments, made, recipe, interrupts, recipe_model(arguments, recipe), stopped_after(recipe)
        )
        tell_differences(recipe, now)
        if before is not None and after is not None:
            _compare(before.rgb, after)
        return code
    if arguments.cameras:
        raise InputRefused(f"{printable(made.name, 100)} was made without one: leave out --cameras.")
    before = images.read_picture(made) if made.suffix.lower() == ".png" else None
    source = found_file(recipe, "input", arguments.input, made)
    mask = found_file(recipe, "mask", arguments.mask, made) if recipe.get("mask") else None
    output = Path(arguments.output) if arguments.output else made.with_name(f"{made.stem}.replay.png")
    job = _job(
        arguments, source, mask, output, recipe_model(arguments, recipe), False, False, True, stopped_after(recipe),
        cli_style.found_references(made, recipe, arguments.reference),
    )  # fmt: skip
    cli_style.check_same(recipe, job.references)
    for name, file in (("input", job.picture), ("mask", job.mask)):
        if file is not None:
            check_same_file(recipe, name, file.name, file.sha256)

    request, config = record.image_request(recipe, None if job.mask is None else job.mask.tensor())
    request = replace(request, references=tuple(picture.tensor() for picture in job.references))
    result, now = _run(job, request, config, interrupts, started)
    tell_differences(recipe, now)
    if before is not None and result.steps_done:
        _compare(before.rgb, images.to_array(result.image))
    return exit_code(result.stopped, result.steps_done, bool(result.steps_done), interrupts)


def _replay_drawing(
    arguments: argparse.Namespace, made: Path, recipe: dict[str, Any], interrupts: Interrupts, started: float
) -> int:
    """The same for a drawing, whose recipe is of the kind "sketch" or "svg"."""
    from sdsedit.io import record, svg

    before = made.read_bytes() if made.suffix.lower() == ".svg" else b""
    then = svg.read_svg_bounded(made) if before else None
    output = Path(arguments.output) if arguments.output else made.with_name(f"{made.stem}.replay.svg")
    name, stop_after = recipe_model(arguments, recipe), stopped_after(recipe)
    if arguments.reference and recipe["kind"] == "svg":
        raise InputRefused(f"{printable(made.name, 100)} was made without one: leave out --reference.")
    if arguments.mask or arguments.cameras or (arguments.input and recipe["kind"] == "sketch"):
        what = "--mask" if arguments.mask else "--cameras" if arguments.cameras else "--input"
        raise InputRefused(f"{printable(made.name, 100)} was made without one: leave out {what}.")
    if recipe["kind"] == "sketch":
        model = wanted_model(arguments, name)
        names = record.drawing_names(output, ())
        record.check_outputs(names, [made], arguments.overwrite, SKETCH_SIDE**2)
        prompt, config = record.sketch_request(recipe)
        looks = cli_style.read_references(cli_style.found_references(made, recipe, arguments.reference))
        cli_style.check_same(recipe, looks)
        job = _SketchJob(prompt, config, names, model, True, stop_after=stop_after, references=looks)
        result, now, after = _run_sketch(job, interrupts, started)
    else:
        source = found_file(recipe, "input", arguments.input, made)
        job = _svg_job(arguments, source, output, name, (), True, stop_after)
        check_same_file(recipe, "input", job.input.name, job.sha256)
        request, config = record.svg_request(recipe)
        result, now, after = _run_svg(job, request, config, interrupts, started)
    tell_differences(recipe, now)
    if then and after:
        _compare_drawings(then, svg.read_svg(after), before == after)
    return exit_code(result.stopped, result.steps_done, bool(after), interrupts)


def _as_many_threads(recipe: dict[str, Any]) -> None:
    """As then, if this machine has them: how sums of floats are rounded depends on it."""
    import torch

    then = re.fullmatch(r"cpu \((\d{1,4}) threads\)", str(recipe_part(recipe, "model").get("device")))
    if then and 1 <= int(then[1]) <= (os.cpu_count() or 1):
        torch.set_num_threads(int(then[1]))


def _compare_drawings(then: SvgDocument, now: SvgDocument, same: bool) -> None:
    from sdsedit.io.svg import write_svg
    from sdsedit.sketch.files import draw_page

    if same:
        print("Compared: the same, byte for byte")
    elif write_svg(then, recipe="") == write_svg(now, recipe=""):
        print("Compared: the drawing is the same, byte for byte; its recipe is not")
    else:
        _compare(draw_page(then), draw_page(now))


def _compare(before: np.ndarray, after: np.ndarray) -> None:  # [H, W, 3] uint8 each
    import numpy as np

    if after.shape != before.shape:
        print(f"Compared: the sizes differ, {before.shape[1]}x{before.shape[0]} was made then")
        return
    difference = np.abs(after.astype(np.int16) - before.astype(np.int16)).max(-1)
    count = int((difference > 0).sum())
    if count:
        print(f"Compared: {count} of {difference.size} pixels differ, by at most {int(difference.max())} of 255")
    else:
        print("Compared: the same, pixel for pixel")


# ---- sdsedit doctor


def _doctor(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    from sdsedit.doctor import check_model, examine

    quiet()
    return examine() if arguments.model is None else check_model(arguments.model)


if __name__ == "__main__":
    sys.exit(main())
