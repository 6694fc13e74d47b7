"""Where a manifest's files may lie, and its results."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from sdsedit.errors import printable
from sdsedit.model_options import is_single_file

OWN_FOLDER = "_batch"  # in the output folder: the store and what it shows
ADDRESS = re.compile(r"(?:[a-z][a-z0-9+.\-]+:[\\/]{1,2}|data:|file:|mailto:)", re.IGNORECASE)
_PICKLED = (".ckpt", ".bin", ".pt", ".pth", ".pkl")  # as prior.load has them, which is too heavy for a manifest
_MODEL_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", re.ASCII)


class Places:
    """Where a manifest's files may lie: under its folder; and its results: under the output folder. Symbolic links that
    lead out are refused like any other way out."""

    def __init__(self, root: Path, output: Path | None) -> None:
        self.root = root.resolve()
        self.output = None if output is None else output.resolve()

    def matching(self, text: str, suffixes: Sequence[str]) -> tuple[list[tuple[str, str | None]], str | None, int]:
        """The files that `input` names, each with its name below the glob's fixed part (empty: it was no glob); a
        sentence if there are none; and how many files of other kinds were left out."""
        sentence = _bad_path("input", text)
        if sentence:
            return [], sentence, 0
        if not re.search(r"[*?]|\[.*\]", text) or (self.root / text).exists():
            return [("", PurePosixPath(text).as_posix())], self.bad_file("input", text), 0
        fixed = PurePosixPath(
            *itertools.takewhile(lambda part: not re.search(r"[*?\[]", part), PurePosixPath(text).parts)
        )
        try:
            found = sorted(path for path in self.root.glob(text) if path.is_file() and not path.name.startswith("."))
        except (ValueError, OSError, NotImplementedError):
            return [], f"input {printable(text, 100)} is no pattern that can be read.", 0
        kept = [path for path in found if path.suffix.lower() in suffixes]
        if not kept:
            return [], f"input {printable(text, 100)} names no file ending in {', '.join(suffixes)}.", 0
        names = [path.relative_to(self.root).as_posix() for path in kept]
        for name in names:
            sentence = self.bad_file("input", name)
            if sentence:
                return [], sentence, 0
        below = [PurePosixPath(name).relative_to(fixed) for name in names]
        stems = [path.with_suffix("").as_posix() for path in below]
        if len({stem.replace("/", "-").casefold() for stem in stems}) < len(stems):  # cat.png and cat.jpg
            stems = [f"{stem}-{path.suffix[1:]}" for stem, path in zip(stems, below, strict=True)]
        stems = [re.sub(r"[^A-Za-z0-9._/-]+", "_", stem) for stem in stems]
        return list(zip(stems, names, strict=True)), None, len(found) - len(kept)

    def bad_file(self, what: str, text: str, folder: bool = False) -> str | None:
        sentence = _bad_path(what, text)
        if sentence:
            return sentence
        path = self.root / text
        name = printable(PurePosixPath(text).name, 100)
        try:
            real = path.resolve()
        except (OSError, RuntimeError):
            return f"{what} {name} is a link that leads nowhere."
        if not real.is_relative_to(self.root):
            return f"{what} {name} is a link that leads out of the manifest's folder: put the file itself there."
        if not (path.is_file() or (folder and path.is_dir())):
            return f"{what} {name} {'is no plain file' if path.exists() else 'is not there'}."
        return None

    def bad_output(self, text: str, suffixes: Sequence[str]) -> str | None:
        sentence = _bad_path("output", text)
        if sentence:
            return sentence
        path = PurePosixPath(text)
        name = printable(path.name, 100)
        if path.suffix.lower() not in suffixes:
            return f"output {name} must end in {' or '.join(suffixes)}."
        if path.parts[0].casefold() == OWN_FOLDER:
            return f"output may not lie in {OWN_FOLDER}, where the batch keeps its own files."
        if any(len(part.encode()) > 200 or part != part.strip(" .") or re.search(r'[<>:"|?*]', part)
               for part in path.parts):  # fmt: skip
            return f"output {printable(text, 100)} is a name that not every system takes."
        if self.output is not None:
            real = (self.output / path).parent.resolve()
            if not real.is_relative_to(self.output) or (self.output / path).is_symlink():
                return f"output {name} goes through a link that leads out of the output folder."
            if (self.output / path).is_dir():
                return f"output {name} is a folder."
        return None

    def bad_model(self, spec: str, what: str = "model") -> str | None:
        if ADDRESS.match(spec):
            return f"{what} is an address; give a folder's name or an id: nothing is fetched."
        if PurePosixPath(spec).suffix.lower() in _PICKLED and not (self.root / spec).is_dir():
            return (
                f"{printable(PurePosixPath(spec).name, 100)} is a pickled checkpoint, which can run code when opened: "
                "safetensors only, in a diffusers folder."
            )
        if what == "model" and is_single_file(spec):
            return self.bad_file(what, spec)
        if spec == "builtin" and what == "model":
            return None
        if _MODEL_ID.fullmatch(spec) and ".." not in spec and not (self.root / spec).is_dir():
            return None
        sentence = _bad_path(what, spec)
        if sentence:
            return sentence + f" A folder elsewhere can be given with --{what}." if "out of" in sentence else sentence
        if not (self.root / spec).resolve().is_relative_to(self.root):
            return f"{what} {printable(spec, 60)} is a link that leads out of the manifest's folder."
        return None if (self.root / spec).is_dir() else f"there is no model folder {printable(spec, 60)}."


def _bad_path(what: str, text: str) -> str | None:
    """A sentence if `text` is no path below some folder, on any system."""
    if ADDRESS.match(text):
        return f"{what} is an address; addresses are never fetched: save the file first."
    if not text.strip() or len(text) > 1000:
        return f"{what} must be the name of a file."
    if any(ord(character) < 32 or ord(character) == 127 for character in text) or printable(text, 1000) != text:
        return f"{what} has a control character in its name: {printable(text, 100)}."
    if "\\" in text:
        return f"{what} {printable(text, 100)} has a backslash: write folders with /."
    windows = PureWindowsPath(text)
    if text.startswith(("/", "~")) or windows.drive or windows.root:
        name = printable(PurePosixPath(text).name, 100)
        return f"{what} {name} is an absolute path, out of the folder: name it relative to that."
    if ".." in PurePosixPath(text).parts:
        return (
            f"{what} {printable(PurePosixPath(text).name, 100)} leads out of the folder with ..: put the file below it."
        )
    return None
