"""Manifests: which edits a batch makes. Every fault of every row is found before any model is loaded.

A manifest is JSONL, its first line the version and the settings that hold for every row, a row a line after that:

    {"schema_version": 1, "defaults": {"method": "lusd", "seed": 7}}
    {"input": "cat.png", "source": "a cat", "target": "a cat wearing a crown"}
    {"input": "photos/*.jpg", "target": "... at night", "grid": {"seed": [0, 1], "method": ["lusd", "dds"]}}
    {"kind": "sketch", "prompt": "a fox"}

YAML has the same under `schema_version`, `defaults` and `jobs`; CSV has a column a field. A glob is one job for each
file that it names, a grid one for each combination; {stem} stands for the file's name, in prompts too. What a row may
give, by its kind, is in fields.FIELDS, from which the published JSON Schema is made (docs/batch-manifest.schema.json).

Files are named relative to the manifest, results relative to the output folder, and neither leads out of its folder.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from sdsedit.batch.fields import (
    FIELDS,
    FILES,
    KINDS,
    MAX_TEXTURE,
    NAMES,
    NOT_SETTINGS,
    READS,
    SCHEMA_VERSION,
    SUFFIXES,
    Cell,
    Field,
    fault_in,
    normal,
    read_cell,
)
from sdsedit.batch.places import ADDRESS, Places
from sdsedit.errors import InputRefused, printable
from sdsedit.model_options import DECIDING, ModelOptions, is_single_file, parse_lora

MAX_BYTES = 512 * 2**20  # of a JSONL manifest, which is read line by line
MAX_TABLE = 64 * 2**20  # of a CSV or YAML one, which is read whole
MAX_LINE = 2**20  # characters
MAX_JOBS = 1_000_000
MAX_EXPANDED = 100_000  # jobs of one row
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True)
class Job:
    """One edit. Its settings are whole: what the row and the defaults leave out stands there with its default."""

    line: int  # of the manifest, from 1
    id: str
    kind: str  # one of KINDS
    output: str  # relative to the output folder, with /
    model: str
    settings: dict[str, Any]  # by the names of FIELDS; None: the method's or the model's own
    input: str | None = None  # relative to the manifest's folder, with /
    mask: str | None = None
    cameras: str | None = None
    references: tuple[str, ...] = ()
    content_regions: str | None = None
    reference_regions: tuple[str, ...] = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the model, those of DECIDING that are given

    def dump(self) -> str:
        """One line of JSON, in ASCII."""
        return json.dumps(asdict(self), ensure_ascii=True, allow_nan=False)

    @classmethod
    def load(cls, text: str) -> Job:
        job = cls(**json.loads(text))
        settings, options = (
            {name: tuple(value) if isinstance(value, list) else value for name, value in each.items()}
            for each in (job.settings, job.options)
        )
        files = {name: tuple(getattr(job, name)) for name in ("references", "reference_regions")}
        return replace(job, settings=settings, options=options, **files)

    @property
    def files(self) -> dict[str, str]:
        """What it reads, by what it is: "input", "mask", "cameras", "regions", "reference 1", "lora 1" ..."""
        named = {"input": self.input, "mask": self.mask, "cameras": self.cameras, "regions": self.content_regions}
        several = {
            "reference": self.references, "reference regions": self.reference_regions,
            "lora": [parse_lora(given)[0] for given in self.options.get("lora", ())],
            "embedding": self.options.get("embedding", ()),
        }  # fmt: skip
        named |= {f"{what} {k}": name for what, names in several.items() for k, name in enumerate(names, 1)}
        return {what: name for what, name in named.items() if name}

    def loading(self, root: Path, spec: str, settings: str | None = None) -> ModelOptions:
        """Its model as the loader wants it: `spec` and `settings` are what its names stand for, files are below
        `root`."""
        options = ModelOptions(spec, **self.options).moved(root)
        return replace(options, settings=settings or options.settings)

    def row(self) -> dict[str, Any]:
        """The job as a row of a manifest: what an expanded manifest holds."""
        given = {"id": self.id, "kind": self.kind, "output": self.output, "model": self.model}
        files = {name: getattr(self, name) for name in FILES}
        every = {**given, **files, **self.options, **self.settings}
        return {name: value for name, value in every.items() if value not in (None, "", ())}


@dataclass(frozen=True)
class Fault:
    line: int  # of the manifest; 0: of the whole
    sentence: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.sentence}" if self.line else self.sentence


class ManifestRefused(InputRefused):
    """A manifest with faults; all of them, in the order of their lines."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(sorted(dict.fromkeys(faults), key=lambda fault: fault.line))
        rest = f" (and {len(self.faults) - 1} more faults)" if len(self.faults) > 1 else ""
        first = self.faults[0] if self.faults else "it has faults."
        super().__init__(f"The manifest cannot be used: {first}{rest}")


@dataclass(frozen=True)
class Manifest:
    path: Path
    jobs: tuple[Job, ...]
    rows: int
    notes: tuple[str, ...]  # what was expanded, what a glob left out

    @property
    def root(self) -> Path:
        """The folder that inputs are relative to."""
        return self.path.parent


def read_manifest(
    path: str | Path, output: str | Path | None = None, model: str | ModelOptions = "builtin"
) -> Manifest:
    """Read and expand a manifest; `model` is for rows that name none, with its options where they do not give those.

    Checks everything that the rows say, and where their files lie, without opening those: see `inputs.examine`.
    ManifestRefused: there are faults. InputRefused: it cannot be read at all.
    """
    path = Path(path)
    usual = ModelOptions(model) if isinstance(model, str) else model
    name = printable(path.name, 100)
    if ADDRESS.match(str(path)):
        raise InputRefused("Addresses are never fetched: save the manifest first and give the file's name.")
    reader = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".yaml": _yaml, ".yml": _yaml}.get(path.suffix.lower())
    if reader is None:
        raise InputRefused(f"{name} must end in .jsonl, .csv or .yaml: those are the manifests that are read.")
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not there"
            raise InputRefused(f"{name} {what}: give the name of a manifest.")
        size = path.stat().st_size
    except OSError as error:  # a name that is too long
        raise InputRefused(f"{name} cannot be read: {error.strerror}.") from None
    limit = MAX_BYTES if reader is _jsonl else MAX_TABLE
    if size > limit:
        raise InputRefused(f"{name} is larger than the limit of {limit // 2**20} MiB for its kind.", status=413)
    faults: list[Fault] = []
    jobs: list[Job] = []
    notes: list[str] = []
    places = Places(path.parent, None if output is None else Path(output))
    rows = 0
    try:
        defaults: dict[str, Any] = {}
        for line, row, is_head in reader(path, faults):
            if is_head:
                defaults = _check_head(line, row, faults)
                continue
            rows += 1
            made = _jobs_of(line, row, defaults, usual, places, faults, notes)
            jobs += made
            if len(jobs) > MAX_JOBS:
                raise ManifestRefused([*faults, Fault(line, f"there are more than {MAX_JOBS} jobs.")])
    except OSError as error:
        raise InputRefused(f"{name} cannot be read: {error.strerror}.") from None
    if not rows and not faults:
        faults.append(Fault(0, f"{name} has no rows."))
    faults += _doubles(jobs)
    if faults:
        raise ManifestRefused(faults)
    return Manifest(path, tuple(jobs), rows, tuple(notes))


# ---- files to rows: (line, what is there, whether it is the head)

Rows = Iterator[tuple[int, dict[str, Any], bool]]


class _Bad(ValueError):
    """A row that cannot be read; the sentence says why."""


def _jsonl(path: Path, faults: list[Fault]) -> Rows:
    headed = False
    with path.open("rb") as file:
        line = 0
        while raw := file.readline(MAX_LINE + 1):
            line += 1
            try:
                if len(raw) > MAX_LINE:
                    while raw and not raw.endswith(b"\n"):
                        raw = file.readline(MAX_LINE)
                    raise _Bad(f"the line is longer than {MAX_LINE} bytes.")
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
                if not text:
                    continue
                row = parse_json(text)
                if not isinstance(row, dict):
                    raise _Bad('a row is an object in braces, such as {"input": ..., "target": ...}.')
            except UnicodeDecodeError:
                faults.append(Fault(line, "the line is not UTF-8 text."))
                continue
            except _Bad as error:
                faults.append(Fault(line, str(error)))
                continue
            is_head = not headed and "schema_version" in row
            if not headed and not is_head:
                faults.append(Fault(line, f'the first line must say {{"schema_version": {SCHEMA_VERSION}}}.'))
            headed = True
            yield line, row, is_head


def parse_json(text: str) -> Any:
    """JSON without the freedoms that Python's reader takes: NaN, the same name twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(name for name, _ in pairs if [other for other, _ in pairs].count(name) > 1)
            raise _Bad(f"{printable(twice, 40)} is given twice.")
        return found

    def constant(name: str) -> float:
        raise _Bad(f"{name} is no JSON.")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise _Bad(f"this is no JSON: {error.msg.lower()} at column {error.colno}.") from None
    except RecursionError:
        raise _Bad("it is nested too deeply.") from None
    except ValueError as error:
        if isinstance(error, _Bad):
            raise
        raise _Bad("it has a number that is too long.") from None


def _csv(path: Path, faults: list[Fault]) -> Rows:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        faults.append(Fault(0, f"the table is not UTF-8 text (byte {error.start})."))
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    line = 1
    try:
        for cells in reader:
            first, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not names:
                names = [cell.strip() for cell in cells]
                if not all(names) or len(set(names)) != len(names):
                    faults.append(Fault(first, "each column needs a name of its own."))
                    return
                continue
            if len(cells) != len(names):
                faults.append(Fault(first, f"there are {len(cells)} cells for {len(names)} columns."))
                continue
            yield first, {name: Cell(cell) for name, cell in zip(names, cells, strict=True) if cell != ""}, False
    except csv.Error as error:
        faults.append(Fault(line, f"this is no CSV: {printable(str(error), 100)}."))


def _yaml(path: Path, faults: list[Fault]) -> Rows:
    import yaml

    # yaml marks a line; a list of rows keeps its own lines by composing nodes before values.
    def line_of(error: yaml.YAMLError) -> int:
        mark = getattr(error, "problem_mark", None)
        return mark.line + 1 if mark else 0

    try:
        text = path.read_bytes().decode("utf-8-sig")
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                faults.append(Fault(event.start_mark.line + 1, "anchors and aliases are not read: write it out."))
                return
        root = yaml.compose(text, yaml.SafeLoader)
    except UnicodeDecodeError:
        faults.append(Fault(0, "the file is not UTF-8 text."))
        return
    except yaml.YAMLError as error:
        faults.append(Fault(line_of(error), "this is no YAML."))
        return
    except RecursionError:
        faults.append(Fault(0, "it is nested too deeply."))
        return
    if not isinstance(root, yaml.MappingNode):
        faults.append(Fault(1, "a YAML manifest has schema_version, defaults and jobs."))
        return
    loader = yaml.SafeLoader("")

    def value(node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            found: dict[str, Any] = {}
            for key, inner in node.value:
                name = value(key)
                if not isinstance(name, str):
                    raise _Bad(f"the name {printable(str(name), 40)} is not text.")
                if name in found:
                    raise _Bad(f"{printable(name, 40)} is given twice.")
                found[name] = value(inner)
            return found
        if isinstance(node, yaml.SequenceNode):
            return [value(each) for each in node.value]
        try:
            return loader.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError):  # of `!!int ''`, `!!bool x`, `!!timestamp x`
            raise _Bad(f"{printable(str(node.value), 40)} cannot be read.") from None

    parts: dict[str, Any] = {}
    try:
        for key, node in root.value:
            name = str(value(key))
            if name in parts:
                raise _Bad(f"{printable(name, 40)} is given twice.")
            parts[name] = node
        head = {name: value(node) for name, node in parts.items() if name != "jobs"}
    except _Bad as error:
        faults.append(Fault(1, str(error)))
        return
    if "schema_version" not in head:
        faults.append(Fault(1, f"it must say schema_version: {SCHEMA_VERSION}."))
    else:
        yield 1, head, True
    jobs = parts.get("jobs")
    if not isinstance(jobs, yaml.SequenceNode):
        faults.append(Fault(1, "jobs must be a list of rows."))
        return
    for node in jobs.value:
        line = node.start_mark.line + 1
        try:
            row = value(node)
            if not isinstance(row, dict):
                raise _Bad("a row is a mapping of names to values.")
        except _Bad as error:
            faults.append(Fault(line, str(error)))
            continue
        yield line, row, False


def _check_head(line: int, head: Mapping[str, Any], faults: list[Fault]) -> dict[str, Any]:
    """The defaults, those that are good for something."""
    version = head["schema_version"]
    if type(version) is not int or version != SCHEMA_VERSION:
        faults.append(Fault(line, f"schema_version is {printable(str(version), 40)}; this version reads "
                                  f"{SCHEMA_VERSION}."))  # fmt: skip
    for name in head.keys() - {"schema_version", "defaults"}:
        faults.append(
            Fault(line, f"{printable(name, 40)} is not part of the head: it has schema_version and defaults.")
        )
    defaults = head.get("defaults", {})
    if not isinstance(defaults, dict):
        faults.append(Fault(line, "defaults must be an object of names and values."))
        return {}
    good: dict[str, Any] = {}
    for name, value in defaults.items():
        fields = [FIELDS[kind][name] for kind in KINDS if name in FIELDS[kind]]
        if name == "kind":
            fields = [NAMES["kind"]]
        if not fields:
            near = _near(name, {each for kind in KINDS for each in FIELDS[kind]} | {"kind"})
            faults.append(Fault(line, f"defaults has {printable(name, 40)}, which no kind of job has{near}."))
            continue
        wrong = [fault_in(name, value, field) for field in dict.fromkeys(fields)]
        if all(wrong):  # what suits one of the kinds is that kind's
            faults.append(Fault(line, f"in defaults, {wrong[0]}"))
        else:
            good[name] = value
    return good


# ---- one row to jobs


def _jobs_of(
    line: int, row: Mapping[str, Any], defaults: Mapping[str, Any], model: ModelOptions, places: Places,
    faults: list[Fault], notes: list[str],
) -> list[Job]:  # fmt: skip
    """The jobs that a row stands for; none if it has faults, which are added."""
    found: list[str] = []
    jobs = list(_expand(line, row, defaults, model, places, found, notes))
    faults += [Fault(line, sentence) for sentence in dict.fromkeys(found)]
    return [] if found else jobs


def _expand(
    line: int, row: Mapping[str, Any], defaults: Mapping[str, Any], model: ModelOptions, places: Places,
    found: list[str], notes: list[str],
) -> Iterator[Job]:  # fmt: skip
    kind = str(row.get("kind", defaults.get("kind", "image")))
    if kind not in KINDS:
        found.append(f"kind is {printable(kind, 40)}; it must be one of {', '.join(KINDS)}.")
        return
    fields = FIELDS[kind]
    allowed = {*fields, *NAMES, "grid"}
    for name in row:
        if name == "schema_version":
            found.append("schema_version belongs into the first line alone.")
        elif name not in allowed:
            near = _near(name, allowed)
            found.append(f"{printable(name, 40)} is nothing that a job of the kind {kind} has{near}.")
    values: dict[str, Any] = {}
    for name, field in fields.items():
        given, own = (row, True) if name in row else (defaults, False)
        if name not in given:
            continue
        value = read_cell(given[name], field) if isinstance(given[name], Cell) else given[name]
        wrong = fault_in(name, value, field)
        if wrong and own:
            found.append(wrong)
        elif not wrong:  # a default that does not suit this kind is another kind's
            values[name] = normal(value, field)
    grid = _grid(row.get("grid"), fields, found)
    for name, field in fields.items():
        if field.required and name not in {*values, *grid, *row}:
            found.append(f"{name} is missing: a job of the kind {kind} needs it.")
    for name in ("id", "output"):
        if name in row and (not isinstance(row[name], str) or not row[name].strip()):
            found.append(f"{name} must be text.")
    inputs = [("", values.get("input"))]
    if "input" in values:
        inputs, sentence, left = places.matching(values["input"], READS[kind])
        if sentence:
            found.append(sentence)
        elif left:
            notes.append(f"Line {line}: {left} files that {printable(values['input'], 100)} names are of other kinds.")
    if found:
        return
    count = len(inputs) * math.prod(len(each) for each in grid.values())
    if count > MAX_EXPANDED:
        found.append(f"the row stands for {count} jobs; at most {MAX_EXPANDED} are allowed.")
        return
    if count > 1:
        parts = [f"{len(inputs)} files"] if len(inputs) > 1 else []
        parts += [f"{len(each)} of {name}" for name, each in grid.items()]
        notes.append(f"Line {line}: {count} jobs = {' x '.join(parts)}")
    named = {name: _tokens(each) for name, each in grid.items()}
    for stem, file in inputs:
        for choice in itertools.product(*(range(len(each)) for each in grid.values())):
            picked = {name: grid[name][k] for name, k in zip(grid, choice, strict=True)}
            words = {name: named[name][k] for name, k in zip(grid, choice, strict=True)}
            yield from _one(
                line,
                kind,
                row,
                {**values, **picked},
                file,
                stem or _stem(file),
                bool(stem),
                words,
                model,
                places,
                found,
            )


def _one(
    line: int, kind: str, row: Mapping[str, Any], values: dict[str, Any], file: str | None, stem: str, of_glob: bool,
    words: Mapping[str, str], model: ModelOptions, places: Places, found: list[str],
) -> Iterator[Job]:  # fmt: skip
    """One job of a row, if it has no fault."""
    before = len(found)
    stands = {"stem": stem, **words}
    tail = "".join(f"-{part}" for part in ([stem.replace("/", "-")] if of_glob else [])
                   + [f"{name}-{word}" for name, word in words.items()])  # fmt: skip

    def filled(text: str, more: Mapping[str, str]) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] not in more:
                found.append(f"{{{printable(match[1], 40)}}} stands for nothing here; there are "
                             f"{', '.join(f'{{{each}}}' for each in more)}.")  # fmt: skip
            return more.get(match[1], "")

        return re.sub(r"\{([^{}]*)\}", value, text)

    given = row.get("id")
    id = filled(given, stands).replace("/", "-") if given else f"row-{line}"
    id += tail if tail and not (given and "{" in given) else ""
    if not _ID.fullmatch(id):
        found.append(f"id is {printable(id, 60)}; it must be letters, digits, and . _ - between them, 120 at most.")
    suffix = SUFFIXES[kind][0]
    output = row.get("output")
    if output is None:
        output = f"{id}{suffix}"
    elif "{" in output:
        output = filled(output, {**stands, "id": id})
    elif tail:
        cut = output.rpartition(".")
        output = f"{cut[0]}{tail.replace('/', '-')}.{cut[2]}" if cut[0] else output
    if len(found) > before:
        return
    sentence = places.bad_output(output, SUFFIXES[kind])
    if sentence:
        found.append(sentence)
    files: dict[str, str | None] = {"input": file}
    several: dict[str, tuple[str, ...]] = {}
    for names, what in (("references", "reference"), ("reference_regions", "reference_regions")):
        several[names] = tuple(filled(name, {"stem": stem}) for name in values.get(names) or ())
        for name in several[names]:
            sentence = places.bad_file(what, name)
            if sentence:
                found.append(sentence)
            elif PurePosixPath(name).suffix.lower() not in READS["image"]:
                found.append(f"{what} {printable(name, 100)} must end in {', '.join(READS['image'])}.")
    for name in ("mask", "cameras", "content_regions"):
        if values.get(name):
            files[name] = filled(values[name], {"stem": stem})
            sentence = places.bad_file(name, files[name] or "", folder=name == "cameras")
            if sentence:
                found.append(sentence)
            elif name == "content_regions" and PurePosixPath(files[name] or "").suffix.lower() not in READS[kind]:
                found.append(f"{name} {printable(files[name] or '', 100)} must end in {', '.join(READS[kind])}.")
    chosen, options = _model_of(row, values, model, places, found)
    for name in ("target", "source", "prompt"):
        if isinstance(values.get(name), str) and stem:  # "a {stem} at night", on every picture of a folder
            values[name] = values[name].replace("{stem}", PurePosixPath(stem).name)
    settings = {
        name: values.get(name, field.default) for name, field in FIELDS[kind].items() if name not in NOT_SETTINGS
    }
    if kind == "style":
        found += _style_says(file, settings, several, bool(files.get("content_regions")))
    found += [each for each in _engine_says(kind, settings) if each not in found]
    if len(found) == before:
        yield Job(line, id, kind, PurePosixPath(output).as_posix(), chosen, settings,
                  files["input"], files.get("mask"), files.get("cameras"), several["references"],
                  files.get("content_regions"), several["reference_regions"], options)  # fmt: skip


def _model_of(
    row: Mapping[str, Any], values: Mapping[str, Any], usual: ModelOptions, places: Places, found: list[str]
) -> tuple[str, dict[str, Any]]:
    """The model of a job, and what of DECIDING is asked for in loading it: its row's, else the defaults', else, if
    neither names a model, the command line's."""
    chosen = values.get("model") or usual.name
    if "model" in values and (sentence := places.bad_model(chosen)):
        found.append(sentence)
    options = {} if "model" in values else dict(usual.deciding)
    for name in DECIDING:
        if name not in values:
            continue
        options[name] = values[name]
        for given in values[name] if name in ("lora", "embedding") else ():
            try:
                file = parse_lora(given)[0] if name == "lora" else given
            except InputRefused as error:
                found.append(str(error))
                continue
            if sentence := places.bad_file(name, file):
                found.append(sentence)
            elif not is_single_file(file):
                found.append(f"{name} {printable(file, 100)} must end in .safetensors.")
    if "settings" in options and not is_single_file(chosen):
        if "settings" in row:
            found.append("settings are for a model in one .safetensors file: a folder or an id has its own.")
        del options["settings"]  # a default for others
    elif is_single_file(chosen) and not options.get("settings"):
        found.append("a model in one .safetensors file needs settings here: a folder or an id that is on this machine.")
    elif "settings" in values and (sentence := places.bad_model(values["settings"], "settings")):
        found.append(sentence)
    unusual = ModelOptions(chosen, **options).deciding
    return chosen, unusual


def _style_says(
    file: str | None, settings: Mapping[str, Any], several: Mapping[str, Sequence[str]], regions: bool
) -> list[str]:  # fmt: skip
    """What does not go together in a job of the kind style."""
    said = []
    if sum(each is not None for each in (file, settings["prompt"], settings["texture"])) != 1:
        said.append("a style job has one of input (a picture), prompt and texture.")
    if regions != bool(several["reference_regions"]):
        said.append("content_regions and reference_regions belong together: give both.")
    elif regions and file is None:
        said.append("content_regions are of an input: give one.")
    elif regions and len(several["reference_regions"]) != len(several["references"]):
        said.append(f"reference_regions must be one for each of the {len(several['references'])} references; there are "
                    f"{len(several['reference_regions'])}.")  # fmt: skip
    return said


def _engine_says(kind: str, settings: dict[str, Any]) -> list[str]:
    """What the engine would refuse whatever the model: prompts, words that no prompt has."""
    from sdsedit.request import check_prompt, check_target

    said = []
    for name in ("target", "prompt", "source", "negative"):
        text = settings.get(name)
        if text is None:
            continue
        try:
            if name == "target":
                check_target(text)
            else:
                check_prompt(name if name == "prompt" else f"{name} prompt", text)
            if name == "prompt" and not text.strip():
                raise InputRefused("The prompt is empty; say what to draw.")
        except InputRefused as error:
            said.append(str(error))
    texts = f"{settings.get('target') or ''}\n{settings.get('source') or ''}".casefold()
    for word in settings.get("words") or ():
        try:
            check_prompt("list of words", word)
        except InputRefused as error:
            said.append(str(error))
            continue
        if word.casefold().strip() not in texts:
            said.append(f"words names {printable(word, 60)}, which neither prompt has.")
    if kind == "splats" and not any(settings["up"]):
        said.append("up is 0, 0, 0; it must be a direction.")
    if kind == "style" and settings["texture"] is not None and texture_size(settings["texture"]) is None:
        said.append(f"texture is {printable(settings['texture'], 40)}; it must be a width and a height from 8 to "
                    f"{MAX_TEXTURE} pixels, such as 512x512.")  # fmt: skip
    return said


def texture_size(text: str) -> tuple[int, int] | None:
    """512x256 is (256, 512), height first; None: it is no size."""
    found = re.fullmatch(r"(\d{1,5})[xX×](\d{1,5})", text.strip(), re.ASCII)
    if found is None or not all(8 <= int(side) <= MAX_TEXTURE for side in found.groups()):
        return None
    return int(found[2]), int(found[1])


def _grid(given: Any, fields: Mapping[str, Field], found: list[str]) -> dict[str, list[Any]]:
    """name -> values, in the order given."""
    if given is None:
        return {}
    if not isinstance(given, dict):
        found.append('grid must be an object of names and lists of values, such as {"seed": [0, 1, 2]}.')
        return {}
    grid: dict[str, list[Any]] = {}
    for name, each in given.items():
        if name not in fields or name in FILES:
            near = _near(name, fields.keys() - set(FILES))
            found.append(f"grid has {printable(name, 40)}, which cannot be varied{near}.")
        elif not isinstance(each, list) or not each:
            found.append(f"grid's {name} must be a list of one or more values.")
        else:
            wrong = [sentence for value in each if (sentence := fault_in(name, value, fields[name]))]
            found += [f"in grid, {sentence}" for sentence in wrong]
            if not wrong:
                plain = [normal(value, fields[name]) for value in each]
                if any(value in plain[:k] for k, value in enumerate(plain)):
                    found.append(f"grid's {name} has a value twice.")
                grid[name] = plain
    return grid


def _tokens(values: Sequence[Any]) -> list[str]:
    """What stands for each value in names of files: the value itself where it can, else its number."""
    texts = [str(value) for value in values]
    good = all(re.fullmatch(r"[A-Za-z0-9._-]{1,24}", text) for text in texts) and len(set(texts)) == len(texts)
    return texts if good else [str(k + 1) for k in range(len(texts))]


def _stem(file: str | None) -> str:
    return "" if file is None else PurePosixPath(file).stem


def _doubles(jobs: Sequence[Job]) -> list[Fault]:
    """Two jobs of one id, or that would write the same file on any file system."""
    faults: list[Fault] = []
    seen: dict[str, Job] = {}
    for job in jobs:
        other = seen.setdefault(job.id.casefold(), job)
        if other is not job:
            faults.append(Fault(job.line, f"the id {printable(job.id, 60)} is line {other.line}'s already."))
    written: dict[str, Job] = {}
    for job in jobs:
        for path in outputs_of(job):
            other = written.setdefault(path.casefold(), job)
            if other is not job:
                faults.append(Fault(job.line, f"{printable(path, 100)} is written by line {other.line} already."))
                break
    return faults


def outputs_of(job: Job) -> tuple[str, ...]:
    """What a job writes, relative to the output folder, the result first and its mark, the recipe, last."""
    path = PurePosixPath(job.output)
    names = [job.output]
    if job.kind != "splats":
        for what in ("mask", "heatmap"):
            if job.settings.get(f"save_{what}"):
                names.append(path.with_name(f"{path.stem}.{what}.png").as_posix())
    if job.kind in ("image", "style"):
        names.append(path.with_suffix(".json").as_posix())
    else:  # beside a drawing or a scene: cat.json could be a picture's
        names.append(path.with_name(f"{path.name}.json").as_posix())
    return tuple(names)


def _near(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, sorted(known), 1)
    return f"; do you mean {near[0]}?" if near else ""
