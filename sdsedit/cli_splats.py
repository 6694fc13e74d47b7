"""`sdsedit splats`, `sdsedit splats info`, and the replay of an edited scene."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdsedit import cli_style, errors
from sdsedit.cli_shared import (
    MAX_SIZE,
    MAX_STEPS,
    METHOD_NAMES,
    Interrupts,
    add_model_arguments,
    add_seed,
    add_strength,
    check_same_file,
    exit_code,
    found_file,
    load,
    named_words,
    number,
    peak_memory,
    progress,
    recipe_model,
    recipe_part,
    stopped_after,
    tell,
    tell_differences,
    tell_written,
    wanted_model,
    whole,
)
from sdsedit.errors import InputRefused, one_sentence, printable
from sdsedit.model_options import ModelOptions, file_sha256

if TYPE_CHECKING:
    from torch import Tensor

    from sdsedit.camera import Cameras
    from sdsedit.io.images import Picture
    from sdsedit.io.splats import Splats
    from sdsedit.request import Edit
    from sdsedit.splats.change import Progress, SplatConfig, SplatResult

# Named here too: `sdsedit --help` must not wait for torch. A test holds them to what the engine has.
KIND_NAMES = ("recolour", "restyle", "replace", "add", "delete")
DIRECTION_NAMES = ("x", "-x", "y", "-y", "z", "-z")
MIN_VIEWS, MAX_VIEWS = 4, 256
MIN_THRESHOLD, MAX_THRESHOLD = 0.05, 0.95
MAX_ADDED = 200_000
VIEWS, THRESHOLD, ADDED, DISTILLATION, STYLE_WEIGHT = 16, 0.4, 6000, 0.1, 1.0  # defaults, as --help says
BACKGROUND = (0.62, 0.79, 0.95)


def add_to(command: Callable[[str, Callable[..., int], str], argparse.ArgumentParser]) -> None:
    """Add both commands; `command` makes one of a name, what runs it, and a sentence."""
    splats = command("splats", run, "Edit a scene of Gaussian splats; rows outside the edit keep their bits.")
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
        "--steps", type=whole("steps", 1, MAX_STEPS), metavar="N", help=f"1 to {MAX_STEPS} (default: the kind's own)"
    )
    add_seed(splats)
    add_strength(splats)
    splats.add_argument(
        "--distillation", type=number("distillation", 0, 1), default=DISTILLATION, metavar="S",
        help="score distillation's share of the gradient, 0 to 1 (default: %(default)s); likeness to edited views has "
        "the rest",
    )  # fmt: skip
    splats.add_argument(
        "--threshold", type=number("threshold", MIN_THRESHOLD, MAX_THRESHOLD), default=THRESHOLD, metavar="W",
        help=f"weight from which a Gaussian is in the edit, {MIN_THRESHOLD:g} to {MAX_THRESHOLD:g} "
        "(default: %(default)s)",
    )  # fmt: skip
    splats.add_argument(
        "--added", type=whole("added", 1, MAX_ADDED), default=ADDED, metavar="N",
        help=f"new Gaussians to begin a new thing with, 1 to {MAX_ADDED} (default: %(default)s)",
    )  # fmt: skip
    splats.add_argument(
        "--cameras", metavar="PATH",
        help="a COLMAP folder, transforms.json or cameras.json (default: an orbit that frames the scene)",
    )  # fmt: skip
    splats.add_argument(
        "--views", type=whole("views", MIN_VIEWS, MAX_VIEWS), default=VIEWS, metavar="N",
        help=f"cameras of the orbit, or how many of --cameras, {MIN_VIEWS} to {MAX_VIEWS} (default: %(default)s); "
        "every fourth is only measured with",
    )  # fmt: skip
    splats.add_argument(
        "--up", type=_direction, default=(0.0, -1.0, 0.0), metavar="AXIS",
        help="of the scene's world: -y, z ..., or three numbers (default: -y, as COLMAP has it)",
    )  # fmt: skip
    splats.add_argument(
        "--background", type=_colour, default=BACKGROUND, metavar="COLOUR",
        help="behind the scene: a name, #rrggbb or three numbers from 0 to 1 (default: a light blue)",
    )  # fmt: skip
    splats.add_argument(
        "--size", type=whole("size", 1, MAX_SIZE), metavar="N",
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
        "--preview-every", type=whole("preview-every", 1, MAX_STEPS), metavar="N",
        help="every N steps write a view of the scene so far to OUT.ply.preview.png",
    )  # fmt: skip
    splats.add_argument("--json", action="store_true", help="report as JSON on standard output")
    splats.add_argument(
        "--no-metadata", action="store_true", help="write no recipe, neither into a .ply nor beside the scene"
    )
    cli_style.add_reference_arguments(splats, STYLE_WEIGHT)
    add_model_arguments(splats, "builtin")
    splats.add_argument(
        "--overwrite", action="store_true", help="replace what is there already under the output's names"
    )

    info = command("splats info", _info, "Say what a file of Gaussian splats holds.")
    info.add_argument("input", metavar="FILE", help="a .ply, .compressed.ply or .spz file")
    info.add_argument("--json", action="store_true", help="as JSON")


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


# ---- sdsedit splats


@dataclass(frozen=True)
class Job:
    """An edit of one scene, read, its cameras too, and its outputs known to be writable."""

    splats: Splats
    input: Path
    sha256: str
    cameras: Cameras | None
    cameras_name: str
    names: dict[str, Path]
    model: ModelOptions
    metadata: bool
    references: tuple[Picture, ...] = ()  # whose look is taken
    notes: tuple[str, ...] = ()  # what can be told before anything is done
    preview_every: int = 0  # steps; 0: no preview
    mask_only: bool = False
    stop_after: int | None = None  # replay of an edit that was cancelled
    json: bool = False


def run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
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
    job = _job(
        arguments, arguments.input, arguments.cameras, None if arguments.mask_only else arguments.output,
        arguments.model, pictures, arguments.up, arguments.views, arguments.reference,
    )  # fmt: skip

    from sdsedit.request import Edit
    from sdsedit.splats.change import SplatConfig

    request = Edit(
        target=arguments.target,
        source=arguments.source,
        words=named_words(arguments.words),
        negative=arguments.negative,
        references=tuple(picture.tensor() for picture in job.references),
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
        style_weight=arguments.style_weight,
    )
    job = replace(
        job,
        metadata=not arguments.no_metadata,
        preview_every=arguments.preview_every or 0,
        mask_only=arguments.mask_only,
        json=arguments.json,
    )
    result, _, data = _run(job, request, config, interrupts, started)
    if job.mask_only:
        return interrupts.exit_code if interrupts.received else errors.OK
    return exit_code(result.stopped, result.steps_done, bool(data), interrupts)


def _job(
    arguments: argparse.Namespace, input: str, cameras: str | None, output: str | None, model: str,
    pictures: dict[str, Path], up: tuple[float, float, float], views: int, references: Sequence[str],
    stop_after: int | None = None,
) -> Job:  # fmt: skip
    """Read the scene, the cameras and the references and check where the results go, before a model is loaded."""
    from sdsedit.io import film, images, record

    wanted = wanted_model(arguments, model)
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
    looks = cli_style.read_references(references)
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
    inputs = [Path(each) for each in (input, cameras, *references) if each is not None]
    record.check_outputs(names, inputs, arguments.overwrite, len(scene))
    ending = "" if output is None else Path(output).suffix.lower()
    if ending == ".splat":
        notes.append(
            "A .splat keeps one colour of each Gaussian and rounds it: higher SH and other properties are lost."
        )
    elif ending == ".spz" or str(output).lower().endswith(".compressed.ply"):
        notes.append("This format rounds every number, what is outside the edit too; a .ply keeps it bit for bit.")
    return Job(
        scene, Path(input), file_sha256(Path(input)), found, "" if cameras is None else Path(cameras).name, names,
        wanted, True, looks, tuple(notes), stop_after=stop_after,
    )  # fmt: skip


def _apart(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two directions of length 1 are more than 45 degrees apart."""
    return sum(x * y for x, y in zip(a, b, strict=True)) < 0.7


def _run(
    job: Job, request: Edit, config: SplatConfig, interrupts: Interrupts, started: float
) -> tuple[SplatResult, dict[str, Any], bytes]:
    """Load the model, edit, write, and tell; gives the result, its recipe, and the scene (empty: none was written)."""
    from sdsedit.io import images, record
    from sdsedit.splats.change import change, check
    from sdsedit.splats.files import weights_sheet

    check(request, config)  # before a model is loaded, or fetched
    if not job.json:  # now: some say how to ask better
        tell((), job.notes)
        sys.stdout.flush()
    notes: list[str] = []
    pictures: list[Path] = []  # that are written on the way
    steps = 0
    with progress("Editing", timed="changing") as advance:
        prior, warned = load(job.model)

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
            tell(result.words, warned)
            print(f"Found: {count} of {len(job.splats)} Gaussians have a weight of {config.threshold:g} or more")
            tell_written([job.names["mask"]])
        return result, {}, b""
    cameras = None if job.cameras is None else record.cameras_record(job.cameras, printable(job.cameras_name, 200))
    model = record.model_record(job.model.name, prior)
    recipe = record.splats_recipe(
        printable(job.input.name, 200), job.sha256, cameras, request, config, result, model, job.references
    )  # fmt: skip
    data, written = b"", []
    wanted = [what for what in ("png", "orbit") if what in job.names]
    if result.steps_done or not result.stopped:  # a deletion has no steps
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
        peaks = dict(zip(("memory_bytes", "gpu_memory_bytes"), peak_memory(prior.device), strict=True))
        report = {**recipe["result"], "notes": [*job.notes, *notes], "anything_changed": anything}
        report |= {"seconds": {name: round(value, 3) for name, value in seconds.items()}, **peaks}
        print(record.dump({**report, "written": [str(path) for path in written]}))
    else:
        tell(result.words, notes)
        _tell_scene(result, seconds, peak_memory(prior.device))
        if written:
            tell_written(written)
        else:
            print("Written: nothing, for no step was finished.")
    return result, recipe, data


def _write_scene(job: Job, result: SplatResult, recipe: dict[str, Any], notes: list[str]) -> bytes:
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


def _write_pictures(job: Job, config: SplatConfig, result: SplatResult, device: Any, notes: list[str]) -> list[Path]:
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


# ---- sdsedit splats info


def _info(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
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


def replay(
    arguments: argparse.Namespace, made: Path, recipe: dict[str, Any], interrupts: Interrupts, started: float
) -> int:
    """The same for a scene."""
    from sdsedit.io import record, splats

    if arguments.mask:
        raise InputRefused(f"{printable(made.name, 100)} was made without one: leave out --mask.")
    if arguments.cameras and not recipe.get("cameras"):
        raise InputRefused(f"{printable(made.name, 100)} was made without cameras: leave out --cameras.")
    scene = made.with_suffix("") if made.suffix.lower() == ".json" else made
    if scene.suffix.lower() not in record.SCENES:
        scene = scene.with_name(f"{scene.name}.ply")
    output = arguments.output or str(_replayed(scene))
    source = found_file(recipe, "input", arguments.input, made)
    cameras = found_file(recipe, "cameras", arguments.cameras, made) if recipe.get("cameras") else None
    request, config = record.splats_request(recipe)
    job = _job(
        arguments, source, cameras, output, recipe_model(arguments, recipe), {}, config.up, config.views,
        cli_style.found_references(made, recipe, arguments.reference), stopped_after(recipe),
    )  # fmt: skip
    cli_style.check_same(recipe, job.references)
    request = replace(request, references=tuple(picture.tensor() for picture in job.references))
    check_same_file(recipe, "input", job.input.name, job.sha256)
    before = made.read_bytes() if scene == made else b""
    result, now, after = _run(job, request, config, interrupts, started)
    tell_differences(recipe, now)
    if job.cameras is not None and now["cameras"]["sha256"] != recipe_part(recipe, "cameras").get("sha256"):
        print("Differs: the cameras are not those that the recipe names")
    if before and after:
        if before == after:
            print("Compared: the same, byte for byte")
        elif made.suffix.lower() == ".splat":
            print("Compared: not the same")
        else:
            _compare_scenes(splats.read_bounded(made), splats.read(job.names["scene"]))
    return exit_code(result.stopped, result.steps_done, bool(after), interrupts)


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
