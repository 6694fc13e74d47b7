"""`sdsedit style`: the look of reference pictures on another picture, on a texture, or on a picture from words."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdsedit.cli_shared import (
    MAX_SIZE,
    MAX_STEPS,
    Interrupts,
    add_model_arguments,
    add_seed,
    exit_code,
    load,
    number,
    peak_memory,
    progress,
    tell,
    tell_written,
    wanted_model,
    whole,
)
from sdsedit.errors import InputRefused, one_sentence, printable

if TYPE_CHECKING:
    from sdsedit.io.images import Picture
    from sdsedit.model_options import ModelOptions
    from sdsedit.style import StyleConfig, StyleResult, StyleStep

# Named here too: `sdsedit --help` must not wait for torch. A test holds them to what the engine has.
MAX_REFERENCES, MAX_TEXTURE, MAX_CONTENT_WEIGHT, MAX_SCALE, MAX_LAYERS = 8, 8192, 10.0, 30.0, 128
MAX_STYLE_WEIGHT = 10.0  # beside another command


@dataclass(frozen=True)
class Job:
    """A run whose files are read and whose outputs are known to be writable."""

    content: Picture | None
    references: tuple[Picture, ...]
    prompt: str | None
    texture: tuple[int, int] | None  # (H, W)
    regions: Picture | None
    reference_regions: tuple[Picture, ...]
    names: dict[str, Path]
    model: ModelOptions
    preview: Path | None = None
    preview_every: int = 0  # steps; 0: no preview
    stop_after: int | None = None  # replay of a run that was cancelled


def add_to(command: Callable[[str, Callable[..., int], str], argparse.ArgumentParser]) -> None:
    """Add the command; `command` makes one of a name, what runs it, and a sentence."""

    def begin(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
        return run(arguments, interrupts)

    style = command("style", begin, "Give a picture, a texture or a drawn prompt the look of reference pictures.")
    what = style.add_mutually_exclusive_group(required=True)
    what.add_argument("--content", metavar="A.png", help="a picture that keeps its layout and takes the look")
    what.add_argument("--prompt", metavar="TEXT", help="what to draw in that look")
    what.add_argument(
        "--texture", type=_size, metavar="WxH", help="a texture of that look, this large in pixels, without a seam"
    )
    style.add_argument(
        "--reference", action="append", required=True, metavar="B.png",
        help=f"a picture whose look is wanted; up to {MAX_REFERENCES}, each with its own --reference",
    )  # fmt: skip
    style.add_argument("--output", required=True, metavar="OUT.png", help="where the result goes")
    style.add_argument(
        "--content-weight", type=number("content-weight", 0, MAX_CONTENT_WEIGHT), metavar="X",
        help="how firmly the content's layout is kept, 0 is not at all (default: what suits the model)",
    )  # fmt: skip
    style.add_argument(
        "--content-regions", metavar="M.png", help="the content painted in a few flat colours, a region each"
    )
    style.add_argument(
        "--reference-regions", action="append", metavar="M.png",
        help="the same for a reference: a colour takes its look from where the reference has that colour",
    )  # fmt: skip
    style.add_argument(
        "--steps", type=whole("steps", 1, MAX_STEPS), metavar="N",
        help=f"1 to {MAX_STEPS} (default: what suits the model)",
    )  # fmt: skip
    style.add_argument(
        "--step-size", type=number("step-size", 1e-6, 1), metavar="X",
        help="how far a step may move a value of the latent (default: what suits the model)",
    )  # fmt: skip
    style.add_argument(
        "--scale", type=number("scale", 1, MAX_SCALE), metavar="X",
        help=f"how firmly the prompt is followed, 1 to {MAX_SCALE:g} (default: what suits the model)",
    )  # fmt: skip
    style.add_argument(
        "--layers", type=whole("layers", 1, MAX_LAYERS), metavar="N",
        help="self-attention layers to compare, counted from the network's end (default: what suits the model)",
    )  # fmt: skip
    add_seed(style)
    style.add_argument(
        "--size", type=whole("size", 1, MAX_SIZE), metavar="N",
        help="working side in pixels (default: the model's own); a content's result keeps the content's size",
    )  # fmt: skip
    style.add_argument("--low-memory", action="store_true", help="less memory, more time, the same result")
    style.add_argument(
        "--preview-every", type=whole("preview-every", 1, MAX_STEPS), metavar="N",
        help="every N steps write the picture so far to OUT.preview.png",
    )  # fmt: skip
    style.add_argument(
        "--no-metadata", action="store_true", help="write no recipe, neither into the picture nor beside it as OUT.json"
    )
    add_model_arguments(style, "builtin")
    style.add_argument(
        "--overwrite", action="store_true", help="replace what is there already under the output's names"
    )


def _size(text: str) -> tuple[int, int]:
    """--texture: 512x256 is (256, 512), height first."""
    found = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text.strip(), re.ASCII)
    if found is None or not all(8 <= int(side) <= MAX_TEXTURE for side in found.groups()):
        raise argparse.ArgumentTypeError(
            f"texture is {printable(text, 40)}; it must be a width and a height from 8 to {MAX_TEXTURE} pixels, such "
            "as 512x512."
        )
    return int(found[2]), int(found[1])


def run(arguments: argparse.Namespace, interrupts: Interrupts) -> int:
    started = time.perf_counter()
    from sdsedit.io import record

    model = wanted_model(arguments, arguments.model)
    check_count(arguments.reference)
    job = _job(
        model, arguments.content, arguments.reference, arguments.content_regions, arguments.reference_regions or [],
        record.output_names(Path(arguments.output), False, False, not arguments.no_metadata), arguments.overwrite,
        arguments.prompt, arguments.texture,
    )  # fmt: skip
    if arguments.preview_every:
        preview = job.names["image"].with_name(f"{job.names['image'].stem}.preview.png")
        job = replace(job, preview=preview, preview_every=arguments.preview_every)

    from sdsedit.style import StyleConfig

    config = StyleConfig(
        steps=arguments.steps,
        step_size=arguments.step_size,
        content_weight=arguments.content_weight,
        scale=arguments.scale,
        layers=arguments.layers,
        seed=arguments.seed,
        size=arguments.size,
        low_memory=arguments.low_memory,
    )
    result, _ = _run(job, config, interrupts, started)
    return exit_code(result.stopped, result.steps_done, bool(result.steps_done), interrupts)


def replay(
    arguments: argparse.Namespace, made: Path, recipe: Mapping[str, Any], interrupts: Interrupts,
    model: str, stop_after: int | None,
) -> tuple[int, dict[str, Any], Any]:  # fmt: skip
    """Repeat what a recipe of the kind "style" says; (exit code, its recipe, the picture [H, W, 3] uint8 or None)."""
    started = time.perf_counter()
    from sdsedit.io import images, record
    from sdsedit.io.record_style import style_request

    if arguments.mask or arguments.cameras:
        what = "--mask" if arguments.mask else "--cameras"
        raise InputRefused(f"{printable(made.name, 100)} was made without one: leave out {what}.")
    asked = style_request(recipe)
    if arguments.input and asked.content is None:
        raise InputRefused(f"{printable(made.name, 100)} was made without one: leave out --input.")
    given = arguments.reference or [None] * len(asked.references)
    if len(given) != len(asked.references):
        raise InputRefused(f"The recipe names {len(asked.references)} references; give as many, or none.")
    output = Path(arguments.output) if arguments.output else made.with_name(f"{made.stem}.replay.png")
    content = None if asked.content is None else arguments.input or _near(made, asked.content, "--input")
    job = _job(
        wanted_model(arguments, model),
        content,
        [file or _near(made, each, "--reference") for file, each in zip(given, asked.references, strict=True)],
        None if asked.regions is None else _near(made, asked.regions, ""),
        [_near(made, each, "") for each in asked.reference_regions],
        record.output_names(output, False, False, True),
        arguments.overwrite,
        asked.prompt,
        asked.texture,
    )
    files = [(job.content, asked.content), (job.regions, asked.regions)]
    files += list(zip(job.references, asked.references, strict=True))
    files += list(zip(job.reference_regions, asked.reference_regions, strict=True))
    for picture, named in files:
        if picture is not None and named is not None and picture.sha256 != named["sha256"]:
            raise InputRefused(f"{picture.name} is not the file that the recipe names: its SHA-256 is another.")
    result, now = _run(replace(job, stop_after=stop_after), asked.config, interrupts, started)
    code = exit_code(result.stopped, result.steps_done, bool(result.steps_done), interrupts)
    return code, now, images.to_array(result.image) if result.steps_done else None


def _near(made: Path, named: Mapping[str, str], option: str) -> str:
    """A file of a recipe, in the folder of what was made of it or the current one."""
    for folder in (made.parent, Path()):
        if (folder / named["name"]).is_file():
            return str(folder / named["name"])
    from sdsedit.batch.origin import origin

    of_batch = origin(made)
    for path in () if of_batch is None else of_batch.files.values():
        if path.name == named["name"]:
            return str(path)
    how = f": add {option} FILE" if option else ": put it beside the picture"
    raise InputRefused(f"{printable(named['name'], 100)}, which the recipe names, is not here{how}.")


def add_reference_arguments(parser: argparse.ArgumentParser, weight: float) -> None:
    """The arguments of other commands that take a look too."""
    parser.add_argument(
        "--reference", action="append", default=[], metavar="B.png",
        help=f"a picture whose look is taken too; up to {MAX_REFERENCES}, each with its own --reference",
    )  # fmt: skip
    parser.add_argument(
        "--style-weight", type=number("style-weight", 0, MAX_STYLE_WEIGHT), default=weight, metavar="X",
        help=f"how hard that look pulls, 0 to {MAX_STYLE_WEIGHT:g} (default: %(default)s)",
    )  # fmt: skip


def read_references(names: Sequence[str]) -> tuple[Picture, ...]:
    """References, read. InputRefused."""
    from sdsedit.io import images

    check_count(names)
    return tuple(map(images.read_picture, names))


def found_references(made: Path, recipe: Mapping[str, Any], given: Sequence[str] | None) -> list[str]:
    """The references of an edit's or a sketch's recipe: as given, or of their names beside what was made."""
    from sdsedit.io.record_style import named_files

    named = named_files(recipe, "references") if "references" in recipe else ()
    if given and len(given) != len(named):
        what = f"names {len(named)} references; give as many, or none" if named else "names no reference; give none"
        raise InputRefused(f"The recipe {what}.")
    return [
        file or _near(made, each, "--reference") for file, each in zip(given or [None] * len(named), named, strict=True)
    ]


def check_same(recipe: Mapping[str, Any], pictures: Sequence[Picture]) -> None:
    """InputRefused: a reference is not the one that the recipe names."""
    for picture, named in zip(pictures, recipe.get("references", ()), strict=True):
        if picture.sha256 != named["sha256"]:
            raise InputRefused(f"{picture.name} is not the reference that the recipe names: its SHA-256 is another.")


def check_count(references: Sequence[str]) -> None:
    if len(references) > MAX_REFERENCES:
        raise InputRefused(f"A style takes at most {MAX_REFERENCES} references; {len(references)} are given.")


def _job(
    model: Any, content: str | None, references: Sequence[str], regions: str | None, reference_regions: Sequence[str],
    names: dict[str, Path], overwrite: bool, prompt: str | None, texture: tuple[int, int] | None,
) -> Job:  # fmt: skip
    """Read the files and check where the results go, before anything heavy is imported."""
    from sdsedit.io import images, record

    read = images.read_picture
    job = Job(
        None if content is None else read(content), tuple(map(read, references)), prompt, texture,
        None if regions is None else read(regions), tuple(map(read, reference_regions)), names, model,
    )  # fmt: skip
    inputs = [Path(each) for each in (content, *references, regions, *reference_regions) if each is not None]
    pixels = texture[0] * texture[1] if texture else 512 * 512
    if job.content is not None:
        pixels = job.content.size[0] * job.content.size[1]
    record.check_outputs(names, inputs, overwrite, pixels)
    return job


def _run(job: Job, config: StyleConfig, interrupts: Interrupts, started: float) -> tuple[StyleResult, dict[str, Any]]:
    """Load the model, make the picture, write, and tell; gives the result and its recipe."""
    from sdsedit.io import images, record
    from sdsedit.io.record_style import style_recipe, write_picture
    from sdsedit.style import StyleRequest, check_style, style

    request = StyleRequest(
        references=tuple(picture.tensor() for picture in job.references),
        content=None if job.content is None else job.content.tensor(),
        prompt=job.prompt,
        texture=job.texture,
        regions=None if job.regions is None else job.regions.numbers(),
        reference_regions=tuple(each.numbers() for each in job.reference_regions),
    )
    check_style(request, config)  # before a model is loaded, or fetched
    pictures = [job.content, *job.references]
    notes = [note for picture in pictures if picture is not None for note in picture.notes]
    lost: list[str] = []
    previewed = False
    with progress("Styling") as advance:
        prior, warned = load(job.model)

        def on_step(step: StyleStep) -> bool:
            nonlocal previewed
            interrupts.gentle = True  # from here on there is something to keep
            advance(step.index + 1, step.total)
            if job.preview is not None and (step.index + 1) % job.preview_every == 0:
                try:
                    record.write_all([(job.preview, images.encode_png(images.to_array(step.preview())))])
                    previewed = True
                except OSError as error:  # a preview is not worth the picture
                    lost[:] = [f"A preview could not be written: {one_sentence(error)}."]
            return not interrupts.received and step.index + 1 != job.stop_after

        result = style(prior, request, config, on_step)
    interrupts.gentle = True
    seconds = {"making": result.seconds, "all": time.perf_counter() - started}
    recipe = style_recipe(
        job.content, job.references, job.regions, job.reference_regions, request, config, result,
        record.model_record(job.model.name, prior), seconds,
    )  # fmt: skip
    if result.steps_done:
        alpha = None if job.content is None else job.content.alpha
        icc = None if job.content is None else job.content.icc
        write_picture(job.names, images.to_array(result.image), alpha, icc, recipe)
    tell((), [*notes, *warned, *result.notes, *lost])
    if not result.steps_done:
        print("Written: nothing, for no step was finished.")
        return result, recipe
    first, last = result.history[0], result.history[-1]
    print(f"Unlike the references' attention: {first['style']:.3f} at the first step, {last['style']:.3f} at the last")
    main, gpu = peak_memory(prior.device)
    if main:
        print(f"Memory: {main / 1e9:.2f} GB at most{f', {gpu / 1e9:.2f} GB on the GPU' if gpu else ''}")
    print(f"Time: {result.seconds:.1f} s for {result.steps_done} steps, {time.perf_counter() - started:.1f} s in all")
    tell_written([*job.names.values(), *([job.preview] if job.preview is not None and previewed else [])])
    return result, recipe
