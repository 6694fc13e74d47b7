"""What a manifest's jobs read, looked at before any model is loaded; and the key that says when two jobs are one."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdsedit.batch.manifest import Fault, Job, Manifest, ManifestRefused
from sdsedit.batch.places import ADDRESS
from sdsedit.errors import InputRefused, printable
from sdsedit.known_models import KNOWN_MODELS
from sdsedit.model_options import file_sha256, is_single_file, parse_lora

MAX_REGIONS = 16  # as the engine has it, which is too heavy to be asked here


@dataclass(frozen=True)
class Planned:
    """A job that is known to be possible."""

    job: Job
    inputs: dict[str, str]  # "input", "mask", "cameras" -> SHA-256
    size: tuple[int, int] | None  # of the picture, pixels
    model: str  # ModelOptions.dump(): jobs of one line are done by one loaded model
    key: str

    @property
    def shape(self) -> str:
        """Jobs of one shape have latents of one size, so that the network can take them together; "": alone."""
        if not self.size or self.job.references:  # a look is taken backwards through the network, by each for itself
            return ""
        return f"{self.size[0]}x{self.size[1]}@{self.job.settings['size']}"


@dataclass(frozen=True)
class Model:
    """What is known of a model without loading it."""

    spec: str
    revision: str
    licence: str


class ModelMissing(Exception):
    """A model that is not on this machine; the message is one sentence that says how to get it."""


Seen = dict[str, tuple[str, str, Any]]  # what a file was looked at for -> its stamp then, its SHA-256, its size


def examine(
    manifest: Manifest, models: dict[str, Model], tell: Callable[[int, int], None] = lambda done, total: None,
    seen: Seen | None = None,
) -> list[Planned]:  # fmt: skip
    """Read every file that the manifest names, once each. ManifestRefused: all faults of all rows.

    seen: what was found before, which is added to; a file whose size and time are as they were is not read again.
    (Ten thousand photographs take minutes. Whoever edits one looks at its bytes again: see work.py.)
    """
    seen = {} if seen is None else seen
    root = manifest.root
    masks = {(job.mask, job.input) for job in manifest.jobs if job.mask}
    cameras = {(job.cameras, job.input) for job in manifest.jobs if job.cameras}

    def pairs_of(job: Job) -> dict[str, tuple[str, str | None]]:
        return {what: (name, _look_for(job, what)) for what, name in job.files.items()}

    every = dict.fromkeys(pair for job in manifest.jobs for pair in pairs_of(job).values())
    wanted = [pair for pair in every if pair[1] in _LOOKS]
    faults: dict[tuple[str | None, str | None], str] = {}
    found: dict[tuple[str | None, str | None], tuple[str, Any]] = {}
    done, total = 0, len(wanted) + len(masks) + len(cameras)

    def looked(pair: tuple[str | None, str | None], look: Callable[[], tuple[str, Any]]) -> None:
        nonlocal done
        key, stamp = json.dumps(pair), _stamp(root, pair[:1] if pair[1] in _LOOKS else pair)
        try:
            then, sha256, size = seen.get(key, ("", "", None))
            if not stamp or then != stamp:
                sha256, size = look()
                seen[key] = (stamp, sha256, size)
            found[pair] = sha256, tuple(size) if isinstance(size, list) else size
        except InputRefused as error:
            faults[pair] = str(error)
        except MemoryError:
            faults[pair] = f"{printable(Path(str(pair[0])).name, 100)} does not fit in memory."
        done += 1
        tell(done, total)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # decoders let other threads run
        list(pool.map(lambda pair: looked(pair, lambda: _LOOKS[str(pair[1])](root / str(pair[0]))), wanted))
        sizes = {name: found[name, kind][1] for name, kind in wanted if kind == "image" and (name, kind) in found}
        fit = [pair for pair in sorted(masks, key=str) if pair[1] in sizes]  # other pictures have faults of their own
        list(pool.map(lambda pair: looked(pair, lambda: _mask(root / str(pair[0]), sizes[pair[1]])), fit))
        for pair in sorted(cameras, key=str):
            if (pair[1], "splats") in found:
                looked(pair, functools.partial(_cameras, root / str(pair[0]), root / str(pair[1])))
    planned: list[Planned] = []
    report: list[Fault] = []
    for job in manifest.jobs:
        pairs = pairs_of(job)
        bad = [faults[pair] for pair in pairs.values() if pair in faults]
        if not bad and job.content_regions:
            bad = _bad_regions({what: found[pair][1] for what, pair in pairs.items()})
        report += [Fault(job.line, sentence) for sentence in bad]
        if not bad:
            shas = {name: found[pair][0] for name, pair in pairs.items()}
            size = found[job.input, job.kind][1] if job.kind == "image" else None
            model, settings = models[job.model], models.get(job.options.get("settings", ""))
            loading = job.loading(root.resolve(), model.spec, None if settings is None else settings.spec).dump()
            planned.append(Planned(job, shas, size, loading, key_of(job, shas, model, settings)))
    if report:
        raise ManifestRefused(report)
    return planned


def _look_for(job: Job, what: str) -> str | None:
    """What a file of a job is looked at as, one of _LOOKS; a mask and cameras are looked at with the job's input."""
    if what in ("mask", "cameras"):
        return job.input
    what = what.rstrip(" 0123456789")
    if what in ("regions", "reference regions"):
        return "regions"
    if what in ("lora", "embedding"):
        return what
    return "image" if what == "reference" or job.kind == "style" else job.kind


def _bad_regions(found: dict[str, Any]) -> list[str]:
    """Sentences, if pictures of regions do not fit the pictures that they are of; `found` is what was seen of each."""
    pairs = {"input": "regions"} | {
        what: what.replace("reference", "reference regions") for what in found if re.fullmatch(r"reference \d+", what)
    }
    said = []
    for what, regions in pairs.items():
        if found[what] != tuple(found[regions][:2]):
            width, height = found[what]
            said.append(f"The regions of the {what} must be exactly as large as its picture, {width}x{height}.")
    theirs = {colour for what, regions in pairs.items() if what != "input" for colour in found[regions][2:]}
    if lost := {*found["regions"][2:]} - theirs:
        said.append(f"{len(lost)} of the input's regions have a colour that no reference's regions have: use the same.")
    return said


def _stamp(root: Path, names: Sequence[str | None]) -> str:
    """Another one when a file has changed; "": it cannot be told, as of a folder."""
    stamps = []
    for name in names:
        path = root / str(name)
        try:
            facts = path.stat()
        except OSError:
            return ""
        if path.is_dir():
            return ""
        stamps.append(f"{facts.st_size}.{facts.st_mtime_ns}.{facts.st_ino}")
    return " ".join(stamps)


def key_of(job: Job, inputs: dict[str, str], model: Model, settings: Model | None = None) -> str:
    """SHA-256 of what decides a result: input bytes, settings, model and revision and how it is loaded, the code."""
    options = dict(job.options)
    if "lora" in options:  # whose bytes are among the inputs
        options["lora"] = [parse_lora(given)[1] for given in options["lora"]]
    if "embedding" in options:  # a word may be called as its file is
        options["embedding"] = [Path(file).name for file in options["embedding"]]
    if settings is not None:
        options["settings"] = settings.revision
    parts = {
        "kind": job.kind, "settings": job.settings, "inputs": inputs, "options": options,
        "model": [Path(model.spec).name if Path(model.spec).exists() else model.spec, model.revision],
        "code": code_version(job.kind),
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()


_NOT_ITS = {  # folders of the package that a kind of job does not run through
    "image": ("sketch/", "splats/", "render/"),
    "sketch": ("splats/", "render/splats/"),
    "svg": ("splats/", "render/splats/"),
    "splats": ("sketch/", "render/strokes/"),
    "style": ("sketch/", "splats/", "render/"),
}


@functools.cache
def code_version(kind: str) -> str:
    """The version, and a hash of the code that makes results of this kind: no pages, batches, command lines."""
    from sdsedit._version import __version__

    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        name = file.relative_to(package).as_posix()
        if not name.startswith(("web/", "batch/", "cli", "doctor", *_NOT_ITS[kind])):
            data = file.read_bytes()
            digest.update(f"{name} {len(data)}\n".encode() + data)
    return f"{__version__}+{digest.hexdigest()[:16]}"


def models_of(manifest: Manifest) -> dict[str, Model]:
    """Every model that the jobs name, and those whose settings they take, by the name that they use. ModelMissing: one
    is not here, and is not fetched."""
    from sdsedit.io.record import model_revision
    from sdsedit.prior.load import ModelNotFound

    found: dict[str, Model] = {}
    named = dict.fromkeys(job.model for job in manifest.jobs)
    for name in named | dict.fromkeys(job.options["settings"] for job in manifest.jobs if "settings" in job.options):
        folder = manifest.root / name
        here = name != "builtin" and (folder.is_file() if is_single_file(name) else folder.is_dir())
        spec = str(folder.resolve()) if here else name  # workers begin elsewhere
        known = KNOWN_MODELS.get(name.partition("@")[0])
        try:
            revision = None if is_single_file(name) and not here else model_revision(spec)
            if revision is None or not (name == "builtin" or here or _snapshot(spec)):
                raise ModelNotFound
        except ModelNotFound:
            how = known.how if known else f"hf download {printable(name.partition('@')[0], 100)}"
            licence = f" (licence {known.licence})" if known else ""
            sentence = f"{printable(name, 100)}{licence} is not on this machine, and a batch fetches no model: {how}."
            raise ModelMissing(sentence) from None
        found[name] = Model(spec, revision, known.licence if known else licence_of(spec))
    return found


def is_address(text: str) -> bool:
    return ADDRESS.match(text) is not None


def model_folder(spec: str) -> Path | None:
    """Where a model's files are on this machine."""
    from sdsedit.prior.load import builtin_path

    if spec == "builtin":
        return builtin_path()
    if is_single_file(spec):
        return None
    return Path(spec) if Path(spec).is_dir() else _snapshot(spec)


def licence_of(spec: str) -> str:
    """What the card in a model's folder says."""
    folder = model_folder(spec)
    card = None if folder is None else folder / "README.md"
    if card is not None and card.is_file():
        for line in card.read_text("utf-8", "replace").splitlines()[:40]:
            if line.startswith("license:"):
                return printable(line.removeprefix("license:").strip().strip("'\""), 100)
    return "not stated in its folder"


def _snapshot(spec: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    model_id, _, revision = spec.partition("@")
    cached = try_to_load_from_cache(model_id, "model_index.json", revision=revision or None)
    return Path(cached).parent if isinstance(cached, str) else None


# ---- one file each: its SHA-256, and what else is to be known


def _image(path: Path) -> tuple[str, Any]:
    from sdsedit.io.images import read_picture

    picture = read_picture(path)
    return picture.sha256, picture.size


def _mask(path: Path, size: tuple[int, int]) -> tuple[str, Any]:
    from sdsedit.io.images import read_mask

    return read_mask(path, size).sha256, None


def _regions(path: Path) -> tuple[str, Any]:
    """Its size is its width, its height, and its colours."""
    import numpy as np

    from sdsedit.io.images import read_picture

    picture = read_picture(path)
    colours = np.unique(picture.rgb.reshape(-1, 3), axis=0)
    if len(colours) > MAX_REGIONS:
        shown = f"{printable(picture.name, 100)} has {len(colours)} colours"
        raise InputRefused(f"{shown}; a picture of regions may have {MAX_REGIONS}.")
    return picture.sha256, (*picture.size, *(f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours))


def _lora(path: Path) -> tuple[str, Any]:
    from sdsedit.prior.adapters import check_lora

    check_lora(str(path))
    return file_sha256(path), None


def _embedding(path: Path) -> tuple[str, Any]:
    from sdsedit.prior.adapters import check_words

    check_words(str(path))
    return file_sha256(path), None


def _svg(path: Path) -> tuple[str, Any]:
    from sdsedit.io.svg import read_svg_bounded

    read_svg_bounded(path)
    return file_sha256(path), None


def _splats(path: Path) -> tuple[str, Any]:
    from sdsedit.io.splats import read_bounded

    read_bounded(path)
    return file_sha256(path), None


def _cameras(path: Path, scene: Path) -> tuple[str, Any]:
    from sdsedit.camera import read_cameras
    from sdsedit.io import record, splats
    from sdsedit.splats.survey import check_cameras

    cameras = read_cameras(path)
    check_cameras(splats.read(scene), cameras)
    return record.cameras_record(cameras, path.name)["sha256"], None


_LOOKS = {
    "image": _image, "svg": _svg, "splats": _splats, "regions": _regions, "lora": _lora, "embedding": _embedding,
}  # fmt: skip


def check_free(planned: Sequence[Planned], folder: Path, ours: set[str], overwrite: bool) -> None:
    """ManifestRefused: an output is there already and is not this batch's own, or would be written over an input.

    ours: ids of jobs that have been begun here before, whose outputs may be there.
    """
    from sdsedit.batch.manifest import outputs_of

    report = []
    for each in planned:
        if each.job.id in ours or overwrite:
            continue
        for name in outputs_of(each.job):
            if (folder / name).exists():
                shown = printable(name, 100)
                report.append(Fault(each.job.line, f"{shown} is there already: empty the folder, or add --overwrite."))
    if report:
        raise ManifestRefused(report)


def check_apart(planned: Sequence[Planned], root: Path, folder: Path) -> None:
    """ManifestRefused: a result would be written over a file that a job reads."""
    from sdsedit.batch.manifest import outputs_of

    read = {(root / name).resolve() for each in planned for name in each.job.files.values()}
    report = []
    for each in planned:
        for name in outputs_of(each.job):
            if (folder / name).resolve() in read:
                shown = printable(name, 100)
                report.append(Fault(each.job.line, f"{shown} would be written over an input: name it otherwise."))
    if report:
        raise ManifestRefused(report)
