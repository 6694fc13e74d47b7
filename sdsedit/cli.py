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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from sdsedit import cli_batch, cli_evaluate, cli_models, cli_style, errors
from sdsedit._version import __version__
from sdsedit.errors import InputRefused, one_sentence, printable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sdsedit.camera import Cameras
    from sdsedit.edit import EditResult, StepReport
    from sdsedit.io.images import Mask, Picture
    from sdsedit.io.splats import Splats
    from sdsedit.io.svg import SvgDocument
    from sdsedit.prior.mmdit import MMDiTPrior
    from sdsedit.prior.unet import UNetPrior
    from sdsedit.request import Edit, EditConfig
    from sdsedit.sketch.change import SvgConfig, SvgResult, SvgStep
    from sdsedit.sketch.draw import SketchConfig, SketchResult, SketchStep
    from sdsedit.splats.change import Progress, SplatConfig, SplatResult

# Named here too: `sdsedit --help` must not wait for torch. A test holds them to what the engine has.
METHOD_NAMES = ("lusd", "dds", "flowedit", "cds", "ids", "pds", "ssd", "ism", "sds", "sbp", "nfsd", "csd", "vsd")
METHOD_NAMES += ("lusd-fast",)
STYLE_NAMES = ("ink", "colour", "icon")
MAX_STEPS, MAX_SIZE, MAX_SEED, MAX_FEATHER = 10_000, 4096, 2**63 - 1, 256
MIN_STRENGTH, MAX_STRENGTH = 0.1, 10.0
MIN_STROKES, MAX_STROKES = 4, 2048
MIN_WIDTH, MAX_WIDTH = 0.1, 20.0
MAX_ADDED = 512
SKETCH_STEPS, SKETCH_DISTILLATION = 120, 0.5  # defaults, as --help says
SVG_SHARE, SVG_ADDED, SVG_STEPS = 0.5, 24, 60
KIND_NAMES = ("recolour", "restyle", "replace", "add", "delete")
DIRECTION_NAMES = ("x", "-x", "y", "-y", "z", "-z")
MIN_VIEWS, MAX_VIEWS = 4, 256
MIN_THRESHOLD, MAX_THRESHOLD = 0.05, 0.95
MAX_SEEDED = 200_000
SPLAT_VIEWS, SPLAT_THRESHOLD, SPLAT_SEEDED, SPLAT_DISTILLATION = 16, 0.4, 6000, 0.1  # defaults
SPLAT_BACKGROUND = (0.62, 0.79, 0.95)
MAX_STYLE_WEIGHT, IMAGE_STYLE_WEIGHT, SKETCH_STYLE_WEIGHT = 10.0, 2.0, 0.5
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
    if isinstance(error, errors.OutOfMemory):
        return str(error), errors.OUT_OF_MEMORY
    if errors.out_of_memory(error):
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


def _direction(text: str) -> tuple[float, float, float]:
    """--up: the name of an axis, or three numbers."""
    name = text.strip().lower().removeprefix("+")
    if name in DIRECTION_NAMES:
        axis, sign = "xyz".index(name[-1]), -1.0 if name[0] == "-" else 1.0
        return tuple(sign * (k == axis) for k in range(3))  # pyright: ignore[reportReturnType]  # three
    values = _numbers_of(text)
    length = sum(value * value for value in values) ** 0.5
    if len(values) != 3 or not 0 < length < float("inf"):
        raise argparse.ArgumentTypeError(
            f"up is {printable(text, 40)}; it must be one of {', '.join(DIRECTION_NAMES)}, or three numbers such as "
            "0,-1,0."
        )
    return tuple(value / length for value in values)  # pyright: ignore[reportReturnType]  # three


def _colour(text: str) -> tuple[float, float, float]:
    """--background: a colour's name, #rrggbb, or three numbers from 0 to 1."""
    values = _numbers_of(text)
    if not values:
        from PIL import ImageColor

        with contextlib.suppress(ValueError):
            values = [channel / 255 for channel in ImageColor.getrgb(text.strip()[:100])[:3]]
    if len(values) != 3 or not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(
            f"background is {printable(text, 40)}; it must be a colour's name, #rrggbb, or three numbers from 0 to 1."
        )
    return values[0], values[1], values[2]


def _numbers_of(text: str) -> list[float]:
    """Numbers between commas; none if one of them is no number."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return []


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
    _add_reference_arguments(image, IMAGE_STYLE_WEIGHT)
    _add_model_arguments(image, "builtin")
    image.add_argument(
        "--overwrite", action="store_true", help="replace what is there already under the output's names"
    )

    sketch = command("sketch", _sketch, "Draw words as an SVG.")
    sketch.add_argument("prompt", metavar="TEXT", help='what to draw: "a cat wearing a crown"')
    sketch.add_argument("--output", required=True, metavar="OUT.svg", help="where the drawing goes")
    sketch.add_argument(
        "--strokes", type=_whole("strokes", MIN_STROKES, MAX_STROKES), default=64, metavar="N",
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
        "--width", type=_number("width", MIN_WIDTH, MAX_WIDTH), default=1.0, metavar="X",
        help=f"multiplies the width of strokes, {MIN_WIDTH:g} to {MAX_WIDTH:g} (default: 1)",
    )  # fmt: skip
    sketch.add_argument(
        "--steps", type=_whole("steps", 1, MAX_STEPS), default=SKETCH_STEPS, metavar="N",
        help=f"1 to {MAX_STEPS} (default: %(default)s)",
    )  # fmt: skip
    sketch.add_argument("--seed", type=_whole("seed", 0, MAX_SEED), default=0, metavar="N", help="one seed, one result")
    sketch.add_argument(
        "--distillation", type=_number("distillation", 0, 1), default=SKETCH_DISTILLATION, metavar="S",
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
        "--preview-every", type=_whole("preview-every", 1, MAX_STEPS), metavar="N",
        help="every N steps write the page so far to OUT.preview.png",
    )  # fmt: skip
    sketch.add_argument("--no-metadata", action="store_true", help="write no recipe into the drawing")
    _add_reference_arguments(sketch, SKETCH_STYLE_WEIGHT)
    _add_model_arguments(sketch, "builtin")
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
        "--share", type=_number("share", 0, 1), default=SVG_SHARE, metavar="S",
        help="a shape may change if this much of what is seen of it lies in the place, 0 to 1 (default: %(default)s)",
    )  # fmt: skip
    svg.add_argument(
        "--added", type=_whole("added", 0, MAX_ADDED), default=SVG_ADDED, metavar="N",
        help=f"new shapes at most, 0 to {MAX_ADDED} (default: %(default)s)",
    )  # fmt: skip
    svg.add_argument(
        "--steps", type=_whole("steps", 1, MAX_STEPS), metavar="N",
        help=f"of the look at the drawing as a picture, and again of its shapes, 1 to {MAX_STEPS} "
        f"(default: the method's own, and {SVG_STEPS})",
    )  # fmt: skip
    svg.add_argument("--seed", type=_whole("seed", 0, MAX_SEED), default=0, metavar="N", help="one seed, one result")
    svg.add_argument(
        "--strength", type=_number("strength", MIN_STRENGTH, MAX_STRENGTH), default=1.0, metavar="X",
        help=f"multiplies the method's step, {MIN_STRENGTH:g} to {MAX_STRENGTH:g} (default: 1)",
    )  # fmt: skip
    svg.add_argument("--png", action="store_true", help="also write OUT.png, a picture of the result")
    svg.add_argument("--save-mask", action="store_true", help="also write OUT.mask.png, where shapes may change")
    svg.add_argument(
        "--save-heatmap", action="store_true", help="also write OUT.heatmap.png, where the words were found"
    )
    svg.add_argument("--no-metadata", action="store_true", help="write no recipe into the drawing")
    _add_model_arguments(svg, "builtin")
    svg.add_argument("--overwrite", action="store_true", help="replace what is there already under the output's names")

    splats = command("splats", _splats, "Edit a scene of Gaussian splats; rows outside the edit keep their bits.")
    splats.add_argument("input", metavar="SCENE", help="a .ply, .compressed.ply or .spz file")
    splats.add_argument("--target", required=True, metavar="TEXT", help="describes the scene as it should become")
    splats.add_argument("--source", metavar="TEXT", help="describes the scene as it is")
    splats.add_argument(
        "--output", metavar="OUT.ply", help="where the result goes: .ply, .compressed.ply, .spz or .splat"
    )
    splats.add_argument(
        "--kind", choices=KIND_NAMES, help="what the edit is (default: told from the words of the prompts)"
    )
    splats.add_argument(
        "--words",
        metavar="WORDS",
        help='words of the prompt whose place is edited: "crown,top hat" (default: the new ones)',
    )
    splats.add_argument("--method", choices=METHOD_NAMES, default="lusd", help="how to edit (default: %(default)s)")
    splats.add_argument(
        "--negative", default="", metavar="TEXT", help="what to move away from (nfsd, csd and sbp read it)"
    )
    splats.add_argument(
        "--steps", type=_whole("steps", 1, MAX_STEPS), metavar="N", help=f"1 to {MAX_STEPS} (default: the kind's own)"
    )
    splats.add_argument("--seed", type=_whole("seed", 0, MAX_SEED), default=0, metavar="N", help="one seed, one result")
    splats.add_argument(
        "--strength", type=_number("strength", MIN_STRENGTH, MAX_STRENGTH), default=1.0, metavar="X",
        help=f"multiplies the method's step, {MIN_STRENGTH:g} to {MAX_STRENGTH:g} (default: 1)",
    )  # fmt: skip
    splats.add_argument(
        "--distillation", type=_number("distillation", 0, 1), default=SPLAT_DISTILLATION, metavar="S",
        help="score distillation's share of the gradient, 0 to 1 (default: %(default)s); likeness to edited views has "
        "the rest",
    )  # fmt: skip
    splats.add_argument(
        "--threshold", type=_number("threshold", MIN_THRESHOLD, MAX_THRESHOLD), default=SPLAT_THRESHOLD, metavar="W",
        help=f"weight from which a Gaussian is in the edit, {MIN_THRESHOLD:g} to {MAX_THRESHOLD:g} "
        "(default: %(default)s)",
    )  # fmt: skip
    splats.add_argument(
        "--added", type=_whole("added", 1, MAX_SEEDED), default=SPLAT_SEEDED, metavar="N",
        help=f"new Gaussians to begin a new thing with, 1 to {MAX_SEEDED} (default: %(default)s)",
    )  # fmt: skip
    splats.add_argument(
        "--cameras", metavar="PATH",
        help="a COLMAP folder, transforms.json or cameras.json (default: an orbit that frames the scene)",
    )  # fmt: skip
    splats.add_argument(
        "--views", type=_whole("views", MIN_VIEWS, MAX_VIEWS), default=SPLAT_VIEWS, metavar="N",
        help=f"cameras of the orbit, or how many of --cameras, {MIN_VIEWS} to {MAX_VIEWS} (default: %(default)s); "
        "every fourth is only measured with",
    )  # fmt: skip
    splats.add_argument(
        "--up", type=_direction, default=(0.0, -1.0, 0.0), metavar="AXIS",
        help="of the scene's world: -y, z ..., or three numbers (default: -y, as COLMAP has it)",
    )  # fmt: skip
    splats.add_argument(
        "--background", type=_colour, default=SPLAT_BACKGROUND, metavar="COLOUR",
        help="behind the scene: a name, #rrggbb or three numbers from 0 to 1 (default: a light blue)",
    )  # fmt: skip
    splats.add_argument(
        "--size", type=_whole("size", 1, MAX_SIZE), metavar="N",
        help="side of the views in pixels (default: the model's own)",
    )  # fmt: skip
    splats.add_argument(
        "--show-mask", metavar="FILE.png",
        help="write where the words were found, seen from all round, before time is spent on the edit",
    )  # fmt: skip
    splats.add_argument("--mask-only", action="store_true", help="stop after --show-mask")
    splats.add_argument("--png", metavar="FILE.png", help="also write held-out views: before, weights, after")
    splats.add_argument("--orbit", metavar="FILE.mp4", help="also write a film round both scenes, .mp4 or .gif")
    splats.add_argument(
        "--preview-every", type=_whole("preview-every", 1, MAX_STEPS), metavar="N",
        help="every N steps write a view of the scene so far to OUT.ply.preview.png",
    )  # fmt: skip
    splats.add_argument("--json", action="store_true", help="report as JSON on standard output")
    splats.add_argument(
        "--no-metadata", action="store_true", help="write no recipe, neither into a .ply nor beside the scene"
    )
    _add_model_arguments(splats, "builtin")
    splats.add_argument(
        "--overwrite", action="store_true", help="replace what is there already under the output's names"
    )

    info = command("splats info", _splats_info, "Say what a file of Gaussian splats holds.")
    info.add_argument("input", metavar="FILE", help="a .ply, .compressed.ply or .spz file")
    info.add_argument("--json", action="store_true", help="as JSON")

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
    _add_model_arguments(again, None)
    again.add_argument(
        "--overwrite", action="store_true", help="replace what is there already under the output's names"
    )

    doctor = command("doctor", _doctor, "Say what is installed and what works, and try a three-step edit.")
    doctor.add_argument("--model", metavar="MODEL", help="check this one, and print a report to paste into an issue")
    cli_batch.add_to(command)
    cli_models.add_to(command)
    cli_style.add_to(command, _shared())
    cli_evaluate.add_to(command)
    return parser


def _add_reference_arguments(parser: argparse.ArgumentParser, weight: float) -> None:
    parser.add_argument(
        "--reference", action="append", default=[], metavar="B.png",
        help=f"a picture whose look is taken too; up to {cli_style.MAX_REFERENCES}, each with its own --reference",
    )  # fmt: skip
    parser.add_argument(
        "--style-weight", type=_number("style-weight", 0, MAX_STYLE_WEIGHT), default=weight, metavar="X",
        help=f"how hard that look pulls, 0 to {MAX_STYLE_WEIGHT:g} (default: %(default)s)",
    )  # fmt: skip


def _pictures(names: Sequence[str]) -> tuple[Picture, ...]:
    """References, read. InputRefused."""
    from sdsedit.io import images

    cli_style.check_count(names)
    return tuple(map(images.read_picture, names))


def _shared() -> cli_style.Shared:
    return cli_style.Shared(
        _add_model_arguments, _whole, _number, _model, _load, _progress, _tell, _tell_written, _peak_memory,
        _exit_code,
    )  # fmt: skip


def _add_model_arguments(parser: argparse.ArgumentParser, default: str | None) -> None:
    shown = "default: %(default)s" if default else "default: the recipe's"
    parser.add_argument(
        "--model",
        default=default,
        metavar="MODEL",
        help=f"builtin, a diffusers folder, an id, ID@REVISION, or one .safetensors file ({shown})",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    parser.add_argument("--offload", action="store_true", help="keep one network at a time on the GPU")
    parser.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read .bin weights where there are no safetensors: they can run code",
    )
    more = parser.add_argument_group("models from elsewhere", "docs/models.md says more of each")
    more.add_argument("--lora", action="append", default=[], metavar="FILE[:SCALE]", help="add a LoRA to the weights")
    more.add_argument(
        "--embedding", action="append", default=[], metavar="FILE", help="teach words of a textual inversion file"
    )
    more.add_argument(
        "--settings", metavar="MODEL", help="where a single file's settings and vocabulary are from: a folder or an id"
    )
    more.add_argument("--precision", choices=("fp32", "fp16", "bf16"), help="of the network (default: what suits it)")
    more.add_argument(
        "--attention-kernel", choices=("sdpa", "flash", "efficient", "cudnn", "math", "xformers"),
        help="how this model's attention is computed (default: torch chooses)",
    )  # fmt: skip
    more.add_argument("--compile", action="store_true", help="torch.compile: the first steps are slow")
    more.add_argument(
        "--offload-layers", action="store_true", help="keep only the layer that runs on the GPU: least memory, slow"
    )
    more.add_argument("--tiling", action="store_true", help="encode and decode large pictures in tiles")
    more.add_argument("--previews", metavar="FOLDER", help="a tiny autoencoder (TAESD) that draws the previews")
    more.add_argument(
        "--distilled-guidance", type=_number("distilled-guidance", 0, 100), default=1.0, metavar="NUMBER",
        help="what FLUX.1 dev is told; no CFG scale (default: %(default)s)",
    )  # fmt: skip


# ---- sdsedit image


@dataclass(frozen=True)
class _Model:
    """Which model, and how to load it."""

    name: str
    device: str | None
    offload: Any  # a bool, or "sequential"
    allow_pickle: bool
    lora: tuple[str, ...]
    words: tuple[str, ...]  # files of textual inversion
    settings: str | None
    precision: str | None
    attention: Any  # the name of a kernel
    compile: bool
    tiling: bool
    previews: str | None
    distilled_guidance: float


@dataclass(frozen=True)
class _Job:
    """An edit of one picture, its files read and its outputs known to be writable."""

    picture: Picture
    mask: Mask | None
    names: dict[str, Path]  # what is written where
    model: _Model
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
        words=_words(arguments.words),
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
    return _exit_code(result.stopped, result.steps_done, bool(result.steps_done), interrupts)


def _words(given: str | None) -> tuple[str, ...] | None:
    """What --words names; None: nothing, the new words are meant."""
    if given is None:
        return None
    words = tuple(word.strip() for word in given.split(",") if word.strip())
    if not words:
        raise InputRefused('words names no word: give some of the prompt\'s, such as "crown,top hat".')
    return words


def _model(arguments: argparse.Namespace, name: str) -> _Model:
    """The model that is asked for, if it is none on the network. So much for the output."""
    from sdsedit.io.images import is_address

    for what, given in (("The output", str(arguments.output or "")), ("The model", name)):
        if is_address(given):
            raise InputRefused(
                f"{what} is an address; give a file's, a folder's or a model's name: nothing is fetched."
            )
    return _Model(
        name, arguments.device, "sequential" if arguments.offload_layers else arguments.offload,
        arguments.allow_pickle, tuple(arguments.lora),
        tuple(arguments.embedding), arguments.settings, arguments.precision, arguments.attention_kernel,
        arguments.compile, arguments.tiling, arguments.previews, arguments.distilled_guidance,
    )  # fmt: skip


def _job(
    arguments: argparse.Namespace, input: str, mask: str | None, output: Path, model: str,
    save_mask: bool, save_heatmap: bool, metadata: bool, stop_after: int | None = None,
    references: Sequence[str] = (),
) -> _Job:  # fmt: skip
    """Read the files and check where the results go, before anything heavy is imported."""
    from sdsedit.io import images, record

    wanted = _model(arguments, model)
    picture = images.read_picture(input)
    drawn = None if mask is None else images.read_mask(mask, picture.size)
    names = record.output_names(output, save_mask, save_heatmap, metadata)
    looks = _pictures(references)
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
    with _progress("Editing") as advance:
        began = time.perf_counter()
        prior, warned = _load(job.model)
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

    _tell(result.words, notes)
    if not result.steps_done:
        print("Written: nothing, for no step was finished.")
        return result, recipe
    kept, total = result.kept_pixels, result.total_pixels
    print(f"Kept bit for bit: {kept} of {total} pixels ({100 * kept / total:.1f} %)")
    print(f"Time: {result.seconds:.1f} s for {result.steps_done} steps, {time.perf_counter() - started:.1f} s in all")
    _tell_written(job.names.values())
    return result, recipe


def _tell(words: Sequence[str], notes: Sequence[str]) -> None:
    if words:
        print(f"Words looked for: {', '.join(printable(word) for word in words)}")
    for note in notes:
        print(f"Note: {printable(note, 1000)}")


def _tell_written(paths: Iterable[Path]) -> None:
    print(f"Written: {', '.join(printable(str(path), 500) for path in paths)}")


def _load(model: _Model) -> tuple[UNetPrior | MMDiTPrior, list[str]]:
    """The model, and what its loader warned of."""
    import torch

    from sdsedit.prior.load import load_prior

    precisions = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    _quiet()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        try:
            prior = load_prior(
                model.name,
                dtype=None if model.precision is None else precisions[model.precision],
                device=model.device,
                attention=model.attention,
                offload=model.offload,
                allow_pickle=model.allow_pickle,
                settings=model.settings,
                lora=model.lora,
                words=model.words,
                distilled_guidance=model.distilled_guidance,
                compile=model.compile,
                tiling=model.tiling,
                previews=model.previews,
            )
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


def _exit_code(stopped: str, steps_done: int, written: bool, interrupts: Interrupts) -> int:
    """What a stopped run is called; what there was of it has been written."""
    if not stopped:
        return errors.OK
    kept = "the result so far is written, marked as incomplete." if written else "nothing was written."
    if stopped == "cancelled":
        code = interrupts.exit_code if interrupts.received else errors.OK
        return _refuse(f"Cancelled after step {steps_done}; {kept}", code)
    return _refuse(f"Stopped: {printable(stopped)}; {kept}", errors.ALL_FAILED)


@contextlib.contextmanager
def _progress(doing: str, timed: str = "") -> Iterator[Callable[..., None]]:
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


# ---- sdsedit sketch


@dataclass(frozen=True)
class _SketchJob:
    """A sketch whose outputs are known to be writable."""

    prompt: str
    config: SketchConfig
    names: dict[str, Path]
    model: _Model
    metadata: bool
    preview_every: int = 0  # steps; 0: no preview
    stop_after: int | None = None  # replay of a sketch that was cancelled
    references: tuple[Picture, ...] = ()  # whose look is taken


def _sketch(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    started = time.perf_counter()
    from sdsedit.io import record

    model = _model(arguments, arguments.model)
    pictures = [what for what in ("png", "guide", "attention") if getattr(arguments, what)]
    if arguments.preview_every:
        pictures.append("preview")
    animation = None if arguments.animation is None else Path(arguments.animation)
    names = record.drawing_names(Path(arguments.output), pictures, animation)
    references = _pictures(arguments.reference)
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
    return _exit_code(result.stopped, result.steps_done, bool(data), interrupts)


def _run_sketch(job: _SketchJob, interrupts: Interrupts, started: float) -> tuple[SketchResult, dict[str, Any], bytes]:
    """Load the model, draw, write, and tell; gives the result, its recipe, and the SVG (empty: nothing was written)."""
    from sdsedit.io import images, record
    from sdsedit.sketch.draw import check_sketch, sketch
    from sdsedit.sketch.files import sketch_svg

    check_sketch(job.prompt, job.config)  # before a model is loaded, or fetched
    notes: list[str] = []
    with _progress("Drawing") as advance:
        prior, warned = _load(job.model)

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

    _tell(result.words, [*warned, *result.notes, *notes])
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
    _tell_written(path for what, path in job.names.items() if what != "preview" or path.exists())
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
    model: _Model
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

    request = Edit(target=arguments.target, source=arguments.source, words=_words(arguments.words))
    look = EditConfig(
        method=arguments.method, steps=arguments.steps, seed=arguments.seed, strength=arguments.strength
    )  # fmt: skip
    config = SvgConfig(look, arguments.share, arguments.added, arguments.steps or SVG_STEPS)
    result, _, data = _run_svg(job, request, config, interrupts, started)
    return _exit_code(result.stopped, result.steps_done, bool(data), interrupts)


def _svg_job(
    arguments: argparse.Namespace, input: str, output: Path, model: str, pictures: Sequence[str], metadata: bool,
    stop_after: int | None = None,
) -> _SvgJob:  # fmt: skip
    """Read the drawing and check where the results go, before anything heavy is imported."""
    import hashlib

    from sdsedit.io import record, svg

    wanted = _model(arguments, model)
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
    with _progress("Editing") as advance:
        prior, warned = _load(job.model)

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

    _tell(result.look.words, [*job.document.notes, *warned, *result.notes])
    if not data:
        print("Written: nothing, for no shape was reached.")
        return result, recipe, data
    print(
        f"Kept byte for byte: {result.kept} of {len(result.document.shapes)} shapes; {len(result.changed)} changed, "
        f"{len(result.removed)} removed, {len(result.added)} added"
    )
    print(f"Time: {result.seconds:.1f} s for {result.steps_done} steps, {time.perf_counter() - started:.1f} s in all")
    _tell_written(job.names.values())
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


# ---- sdsedit splats


@dataclass(frozen=True)
class _SplatsJob:
    """An edit of one scene, read, its cameras too, and its outputs known to be writable."""

    splats: Splats
    input: Path
    sha256: str
    cameras: Cameras | None
    cameras_name: str
    names: dict[str, Path]
    model: _Model
    metadata: bool
    notes: tuple[str, ...] = ()  # what can be told before anything is done
    preview_every: int = 0  # steps; 0: no preview
    mask_only: bool = False
    stop_after: int | None = None  # replay of an edit that was cancelled
    json: bool = False


def _splats(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    started = time.perf_counter()
    if arguments.mask_only and not arguments.show_mask:
        raise InputRefused("--mask-only stops after the weights are written: say where with --show-mask FILE.png.")
    if not arguments.mask_only and not arguments.output:
        raise InputRefused("Say where the result goes with --output OUT.ply, or stop early with --mask-only.")
    pictures = {
        what: Path(given)
        for what, given in (("mask", arguments.show_mask), ("png", arguments.png), ("orbit", arguments.orbit))
        if given
    }
    job = _splats_job(
        arguments, arguments.input, arguments.cameras, None if arguments.mask_only else arguments.output,
        arguments.model, pictures, arguments.up, arguments.views,
    )  # fmt: skip

    from sdsedit.request import Edit
    from sdsedit.splats.change import SplatConfig

    request = Edit(
        target=arguments.target,
        source=arguments.source,
        words=_words(arguments.words),
        negative=arguments.negative,
    )
    config = SplatConfig(
        kind=arguments.kind,
        method=arguments.method,
        steps=arguments.steps,
        seed=arguments.seed,
        strength=arguments.strength,
        views=arguments.views,
        threshold=arguments.threshold,
        distillation=arguments.distillation,
        added=arguments.added,
        background=arguments.background,
        up=arguments.up,
        size=arguments.size,
    )
    job = replace(
        job,
        metadata=not arguments.no_metadata,
        preview_every=arguments.preview_every or 0,
        mask_only=arguments.mask_only,
        json=arguments.json,
    )
    result, _, data = _run_splats(job, request, config, interrupts, started)
    if job.mask_only:
        return interrupts.exit_code if interrupts.received else errors.OK
    return _exit_code(result.stopped, result.steps_done, bool(data), interrupts)


def _splats_job(
    arguments: argparse.Namespace, input: str, cameras: str | None, output: str | None, model: str,
    pictures: dict[str, Path], up: tuple[float, float, float], views: int, stop_after: int | None = None,
) -> _SplatsJob:  # fmt: skip
    """Read the scene and the cameras and check where the results go, before a model is loaded."""
    from sdsedit.io import film, images, record

    wanted = _model(arguments, model)
    if cameras is not None and images.is_address(cameras):
        raise InputRefused("Addresses are never fetched: save the cameras first and give the file's name.")
    metadata = not getattr(arguments, "no_metadata", False)
    if output is None:  # only the weights are wanted
        names = {what: record.picture_name(what, path) for what, path in pictures.items() if what == "mask"}
    else:
        preview = bool(getattr(arguments, "preview_every", None))
        names = record.scene_names(Path(output), metadata, preview, pictures)
    if "orbit" in names and names["orbit"].suffix.lower() == ".mp4":
        import numpy as np

        film.mp4([np.zeros((16, 16, 3), np.uint8)])  # is there an encoder? Not after an hour of work

    from sdsedit.camera import read_cameras
    from sdsedit.io import splats
    from sdsedit.splats.survey import DIRECTIONS, check_cameras, suggested_up

    scene = splats.read_bounded(input)
    found = None
    notes: list[str] = []
    if cameras is not None:
        found = read_cameras(cameras)
        check_cameras(scene, found)
        if len(found) > views:
            notes.append(f"Of {len(found)} cameras {views} are used; --views says how many.")
    else:
        better, because = suggested_up(scene)
        if because != "the usual one: the scene has no clear ground" and _apart(DIRECTIONS[better], up):
            notes.append(f"This scene's up seems to be {better}, {because}; if so, add --up {better}.")
    inputs = [Path(input)] + ([] if cameras is None else [Path(cameras)])
    record.check_outputs(names, inputs, arguments.overwrite, len(scene))
    ending = "" if output is None else Path(output).suffix.lower()
    if ending == ".splat":
        notes.append(
            "A .splat keeps one colour of each Gaussian and rounds it: higher SH and other properties are lost."
        )
    elif ending == ".spz" or str(output).lower().endswith(".compressed.ply"):
        notes.append("This format rounds every number, what is outside the edit too; a .ply keeps it bit for bit.")
    return _SplatsJob(
        scene, Path(input), _file_sha256(Path(input)), found, "" if cameras is None else Path(cameras).name, names,
        wanted, True, tuple(notes), stop_after=stop_after,
    )  # fmt: skip


def _apart(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two directions of length 1 are more than 45 degrees apart."""
    return sum(x * y for x, y in zip(a, b, strict=True)) < 0.7


def _file_sha256(path: Path) -> str:
    import hashlib

    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _run_splats(
    job: _SplatsJob, request: Edit, config: SplatConfig, interrupts: Interrupts, started: float
) -> tuple[SplatResult, dict[str, Any], bytes]:
    """Load the model, edit, write, and tell; gives the result, its recipe, and the scene (empty: none was written)."""
    from sdsedit.io import images, record
    from sdsedit.splats.change import change, check
    from sdsedit.splats.files import weights_sheet

    check(request, config)  # before a model is loaded, or fetched
    if not job.json:  # now: some say how to ask better
        _tell((), job.notes)
        sys.stdout.flush()
    notes: list[str] = []
    pictures: list[Path] = []  # that are written on the way
    steps = 0
    with _progress("Editing", timed="changing") as advance:
        prior, warned = _load(job.model)

        def show_mask(weight: Tensor) -> None:
            sheet = weights_sheet(
                job.splats, weight.float().cpu().numpy(), config.threshold, config.background, config.up,
                device=prior.device,
            )  # fmt: skip
            record.write_all([(job.names["mask"], images.encode_png(sheet))])

        def on_step(step: Progress) -> bool:
            nonlocal steps
            if step.stage == "changing":
                interrupts.gentle = True  # before it is told: from here on there is something to keep
            advance(step.index + 1, step.total, step.stage)
            if "mask" in job.names and not pictures and step.weight is not None and step.stage != "looking":
                show_mask(step.weight)
                pictures.append(job.names["mask"])
            if job.mask_only and pictures:
                return False
            if step.stage != "changing":
                return True
            steps += 1
            if job.preview_every and steps % job.preview_every == 0:
                try:
                    png = images.encode_png(images.to_array(step.preview()))
                    record.write_all([(job.names["preview"], png)])
                    pictures[:] = [*(path for path in pictures if path != job.names["preview"]), job.names["preview"]]
                except OSError as error:  # a preview is not worth the scene
                    notes[:] = [f"A preview could not be written: {one_sentence(error)}."]
            return not interrupts.received and steps != job.stop_after

        result = change(job.splats, prior, request, config, job.cameras, on_step)
    interrupts.gentle = True
    if job.mask_only:
        count = int((result.weight >= config.threshold).sum())
        if job.json:
            report = {"found": count, "gaussians": len(job.splats), "words": list(result.words)}
            print(record.dump({**report, "notes": [*job.notes, *warned], "written": [str(job.names["mask"])]}))
        else:
            _tell(result.words, warned)
            print(f"Found: {count} of {len(job.splats)} Gaussians have a weight of {config.threshold:g} or more")
            _tell_written([job.names["mask"]])
        return result, {}, b""
    cameras = None if job.cameras is None else record.cameras_record(job.cameras, printable(job.cameras_name, 200))
    model = record.model_record(job.model.name, prior)
    recipe = record.splats_recipe(
        printable(job.input.name, 200), job.sha256, cameras, request, config, result, model
    )  # fmt: skip
    data, written = b"", []
    wanted = [what for what in ("png", "orbit") if what in job.names]
    if result.steps_done:
        data = _write_scene(job, result, recipe, notes)
        written = [job.names[what] for what in ("scene", "recipe") if what in job.names]
        if interrupts.received:
            notes += ["Pictures of the result are left out, for the run was cancelled."] * bool(wanted)
        else:
            written += _write_pictures(job, config, result, prior.device, notes)
    written += pictures
    notes = [*warned, *result.notes, *notes]
    seconds = {**result.seconds, "total": time.perf_counter() - started}
    if job.json:
        anything = bool(result.changed or result.added or result.removed)
        peaks = dict(zip(("memory_bytes", "gpu_memory_bytes"), _peak_memory(prior.device), strict=True))
        report = {**recipe["result"], "notes": [*job.notes, *notes], "anything_changed": anything}
        report |= {"seconds": {name: round(value, 3) for name, value in seconds.items()}, **peaks}
        print(record.dump({**report, "written": [str(path) for path in written]}))
    else:
        _tell(result.words, notes)
        _tell_scene(result, seconds, _peak_memory(prior.device))
        if written:
            _tell_written(written)
        else:
            print("Written: nothing, for no step was finished.")
    return result, recipe, data


def _write_scene(job: _SplatsJob, result: SplatResult, recipe: dict[str, Any], notes: list[str]) -> bytes:
    """Write the scene and then the recipe beside it; the scene's bytes."""
    from sdsedit.io import record

    path = job.names["scene"]
    data, without = record.scene_file(result.splats, recipe if job.metadata else None, path.name)
    if without:
        notes.append(
            "The recipe does not fit the PLY's header with what is there already: it is only beside the scene."
        )
    files = [(path, data)]
    if "recipe" in job.names:
        files.append((job.names["recipe"], record.sidecar(recipe, path.name, data, result.seconds)))
    record.write_all(files)
    return data


def _write_pictures(
    job: _SplatsJob, config: SplatConfig, result: SplatResult, device: Any, notes: list[str]
) -> list[Path]:
    """Write the pictures and films that were asked for, one after the other, and give their names.

    The scene is on the disk: what goes wrong here is a note.
    """
    from sdsedit.io import images, record
    from sdsedit.splats import files

    def png() -> bytes:
        held_out = result.cameras[list(result.measured[:3])]
        return images.encode_png(
            files.before_and_after(
                job.splats, result.splats, result.weight, config.threshold, held_out, config.background, device=device
            )
        )

    def orbit() -> bytes:
        scenes, suffix = [job.splats, result.splats], job.names["orbit"].suffix
        return files.orbit_film(scenes, suffix, config.background, config.up, device=device)

    written = []
    for what, make in (("png", png), ("orbit", orbit)):
        if what in job.names:
            try:
                record.write_all([(job.names[what], make())])
                written.append(job.names[what])
            except (OSError, InputRefused) as error:
                why = one_sentence(error).rstrip(".")
                notes.append(f"{printable(job.names[what].name, 100)} could not be written: {why}.")
    return written


def _tell_scene(result: SplatResult, seconds: dict[str, float], peaks: tuple[int, int]) -> None:
    print(
        f"Gaussians: {result.kept} kept bit for bit, {result.changed} changed, {result.added} added, "
        f"{result.removed} removed ({result.kind})"
    )
    psnr = result.background_psnr
    background = "the same" if psnr == float("inf") else "not seen" if psnr != psnr else f"{psnr:.1f} dB PSNR"
    print(f"Outside the edit: largest change {result.max_change_outside:g}, background on held-out views {background}")
    spent = ", ".join(f"{name} {seconds[name]:.1f} s" for name in ("renderer", "model", "rest") if name in seconds)
    print(
        f"Time: {seconds['all']:.1f} s for {result.steps_done} steps and the views before them ({spent}), "
        f"{seconds['total']:.1f} s in all"
    )
    gpu = f", {peaks[1] / 1e9:.2f} GB on the GPU" if peaks[1] else ""
    if peaks[0]:
        print(f"Memory: {peaks[0] / 1e9:.2f} GB at most{gpu}")


def _peak_memory(device: Any) -> tuple[int, int]:
    """Bytes that the process had at most, in main memory (0: the system does not say) and on the GPU."""
    import torch

    gpu = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    try:
        import resource
    except ImportError:  # Windows
        return 0, gpu
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, gpu


def _splats_info(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    from dataclasses import asdict

    from sdsedit.io import record, splats
    from sdsedit.splats.survey import lines, survey

    path = Path(arguments.input)
    scene = splats.read_bounded(arguments.input)
    recipe = None
    with contextlib.suppress(InputRefused):
        recipe = record.read_recipe(path)
    found = survey(record.with_recipe(scene, None), path)
    if arguments.json:
        print(record.dump({"file": path.name, **asdict(found), "recipe": recipe}))
        return errors.OK
    for line in lines(found, printable(path.name, 200)):
        print(line)
    if recipe is not None:
        source, target = (printable(str(recipe.get(name) or ""), 200) for name in ("source", "target"))
        print(f'Recipe: "{source}" -> "{target}"; sdsedit replay repeats it')
    return errors.OK


# ---- sdsedit replay


def _replay(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    started = time.perf_counter()
    from sdsedit.io import images, record

    if images.is_address(arguments.made):
        raise InputRefused("Addresses are never fetched: save the picture first and give the file's name.")
    made = Path(arguments.made)
    recipe = record.read_recipe(made)
    _as_many_threads(recipe)
    if recipe.get("kind") in ("sketch", "svg"):
        return _replay_drawing(arguments, made, recipe, interrupts, started)
    if recipe.get("kind") == "splats":
        return _replay_splats(arguments, made, recipe, interrupts, started)
    if recipe.get("kind") == "style":
        before = images.read_picture(made) if made.suffix.lower() == ".png" else None
        code, now, after = cli_style.replay(
            arguments, made, recipe, interrupts, _shared(), _recipe_model(arguments, recipe), _stop_after(recipe)
        )
        _tell_differences(recipe, now)
        if before is not None and after is not None:
            _compare(before.rgb, after)
        return code
    if arguments.cameras:
        raise InputRefused(f"{printable(made.name, 100)} was made without one: leave out --cameras.")
    before = images.read_picture(made) if made.suffix.lower() == ".png" else None
    source = _found(recipe, "input", arguments.input, made)
    mask = _found(recipe, "mask", arguments.mask, made) if recipe.get("mask") else None
    output = Path(arguments.output) if arguments.output else made.with_name(f"{made.stem}.replay.png")
    job = _job(
        arguments, source, mask, output, _recipe_model(arguments, recipe), False, False, True, _stop_after(recipe),
        cli_style.found_references(made, recipe, arguments.reference),
    )  # fmt: skip
    cli_style.check_same(recipe, job.references)
    for name, file in (("input", job.picture), ("mask", job.mask)):
        if file is not None:
            _check_same(recipe, name, file.name, file.sha256)

    request, config = record.image_request(recipe, None if job.mask is None else job.mask.tensor())
    request = replace(request, references=tuple(picture.tensor() for picture in job.references))
    result, now = _run(job, request, config, interrupts, started)
    _tell_differences(recipe, now)
    if before is not None and result.steps_done:
        _compare(before.rgb, images.to_array(result.image))
    return _exit_code(result.stopped, result.steps_done, bool(result.steps_done), interrupts)


def _replay_drawing(
    arguments: argparse.Namespace, made: Path, recipe: dict[str, Any], interrupts: Interrupts, started: float
) -> int:
    """The same for a drawing, whose recipe is of the kind "sketch" or "svg"."""
    from sdsedit.io import record, svg

    before = made.read_bytes() if made.suffix.lower() == ".svg" else b""
    then = svg.read_svg_bounded(made) if before else None
    output = Path(arguments.output) if arguments.output else made.with_name(f"{made.stem}.replay.svg")
    name, stop_after = _recipe_model(arguments, recipe), _stop_after(recipe)
    if arguments.reference and recipe["kind"] == "svg":
        raise InputRefused(f"{printable(made.name, 100)} was made without one: leave out --reference.")
    if arguments.mask or arguments.cameras or (arguments.input and recipe["kind"] == "sketch"):
        what = "--mask" if arguments.mask else "--cameras" if arguments.cameras else "--input"
        raise InputRefused(f"{printable(made.name, 100)} was made without one: leave out {what}.")
    if recipe["kind"] == "sketch":
        model = _model(arguments, name)
        names = record.drawing_names(output, ())
        record.check_outputs(names, [made], arguments.overwrite, SKETCH_SIDE**2)
        prompt, config = record.sketch_request(recipe)
        looks = _pictures(cli_style.found_references(made, recipe, arguments.reference))
        cli_style.check_same(recipe, looks)
        job = _SketchJob(prompt, config, names, model, True, stop_after=stop_after, references=looks)
        result, now, after = _run_sketch(job, interrupts, started)
    else:
        source = _found(recipe, "input", arguments.input, made)
        job = _svg_job(arguments, source, output, name, (), True, stop_after)
        _check_same(recipe, "input", job.input.name, job.sha256)
        request, config = record.svg_request(recipe)
        result, now, after = _run_svg(job, request, config, interrupts, started)
    _tell_differences(recipe, now)
    if then and after:
        _compare_drawings(then, svg.read_svg(after), before == after)
    return _exit_code(result.stopped, result.steps_done, bool(after), interrupts)


def _replay_splats(
    arguments: argparse.Namespace, made: Path, recipe: dict[str, Any], interrupts: Interrupts, started: float
) -> int:
    """The same for a scene."""
    from sdsedit.io import record, splats

    if arguments.mask or arguments.reference:
        what = "--mask" if arguments.mask else "--reference"
        raise InputRefused(f"{printable(made.name, 100)} was made without one: leave out {what}.")
    if arguments.cameras and not recipe.get("cameras"):
        raise InputRefused(f"{printable(made.name, 100)} was made without cameras: leave out --cameras.")
    scene = made.with_suffix("") if made.suffix.lower() == ".json" else made
    if scene.suffix.lower() not in record.SCENES:
        scene = scene.with_name(f"{scene.name}.ply")
    output = arguments.output or str(_replayed(scene))
    source = _found(recipe, "input", arguments.input, made)
    cameras = _found(recipe, "cameras", arguments.cameras, made) if recipe.get("cameras") else None
    request, config = record.splats_request(recipe)
    job = _splats_job(
        arguments, source, cameras, output, _recipe_model(arguments, recipe), {}, config.up, config.views,
        _stop_after(recipe),
    )  # fmt: skip
    _check_same(recipe, "input", job.input.name, job.sha256)
    before = made.read_bytes() if scene == made else b""
    result, now, after = _run_splats(job, request, config, interrupts, started)
    _tell_differences(recipe, now)
    if job.cameras is not None and now["cameras"]["sha256"] != _part(recipe, "cameras").get("sha256"):
        print("Differs: the cameras are not those that the recipe names")
    if before and after:
        if before == after:
            print("Compared: the same, byte for byte")
        elif made.suffix.lower() == ".splat":
            print("Compared: not the same")
        else:
            _compare_scenes(splats.read_bounded(made), splats.read(job.names["scene"]))
    return _exit_code(result.stopped, result.steps_done, bool(after), interrupts)


def _replayed(scene: Path) -> Path:
    """edited.compressed.ply -> edited.replay.compressed.ply"""
    inner = ".compressed" if scene.name.lower().endswith(".compressed.ply") else ""
    stem = scene.stem[: len(scene.stem) - len(inner)]
    return scene.with_name(f"{stem}.replay{scene.name[len(stem) :]}")


def _compare_scenes(then: Splats, now: Splats) -> None:
    import numpy as np

    if len(then) != len(now):
        print(f"Compared: {len(then)} Gaussians were made then, {len(now)} now")
        return
    different, largest = np.zeros(len(now), dtype=bool), 0.0
    for name in ("means", "quats", "log_scales", "logits", "sh"):
        a, b = (getattr(each, name).reshape(len(now), -1) for each in (then, now))
        if a.shape != b.shape:
            print("Compared: the SH differ in degree")
            return
        different |= (a != b).any(1)
        largest = max(largest, float(np.abs(a.astype(np.float64) - b).max()))
    if different.any():
        print(f"Compared: {int(different.sum())} of {len(now)} Gaussians differ, a number by at most {largest:g}")
    else:
        print("Compared: the Gaussians are the same, bit for bit; what is written beside them is not")


def _recipe_model(arguments: argparse.Namespace, recipe: dict[str, Any]) -> str:
    from sdsedit.batch.origin import origin

    if arguments.model:
        return arguments.model
    of_batch = origin(Path(arguments.made))
    return of_batch.model if of_batch is not None else str(_part(recipe, "model").get("id", "builtin"))


def _as_many_threads(recipe: dict[str, Any]) -> None:
    """As then, if this machine has them: how sums of floats are rounded depends on it."""
    import torch

    then = re.fullmatch(r"cpu \((\d{1,4}) threads\)", str(_part(recipe, "model").get("device")))
    if then and 1 <= int(then[1]) <= (os.cpu_count() or 1):
        torch.set_num_threads(int(then[1]))


def _stop_after(recipe: dict[str, Any]) -> int | None:
    """The step after which the run was cancelled; None: it was not."""
    ended = _part(recipe, "result")
    return ended.get("steps_done") if ended.get("stopped") == "cancelled" else None


def _check_same(recipe: dict[str, Any], what: str, name: str, sha256: str) -> None:
    if sha256 != _part(recipe, what).get("sha256"):
        raise InputRefused(
            f"{printable(name, 100)} is not the {what} that the recipe names: its SHA-256 is another."
        )  # fmt: skip


def _tell_differences(recipe: dict[str, Any], now: dict[str, Any]) -> None:
    for what in ("model", "versions"):
        was = _part(recipe, what)
        for key in {**was, **now[what]}:
            before, after = (printable(str(each.get(key)), 100) for each in (was, now[what]))
            if was.get(key) != now[what].get(key):
                print(f"Differs: {what} {key} was {before}, is {after}")


def _found(recipe: dict[str, Any], what: str, given: str | None, made: Path) -> str:
    """The input or mask of a recipe: as given, or of its name in the folder of the output or the current one."""
    if given:
        return given
    name = _part(recipe, what).get("name")
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


def _part(recipe: dict[str, Any], what: str) -> dict[str, Any]:
    part = recipe.get(what)
    return part if isinstance(part, dict) else {}


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

    _quiet()
    return examine() if arguments.model is None else check_model(arguments.model)


if __name__ == "__main__":
    sys.exit(main())
