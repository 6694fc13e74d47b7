"""What has been made on this machine: an SQLite index and a folder of files for each result.

    FOLDER/index.sqlite            one row a result: what it is, its words, its recipe
    FOLDER/<id>/<the output>       the file itself, as it is downloaded
    FOLDER/<id>/before.webp        small pictures for the gallery; no `before` if it began with words alone
    FOLDER/<id>/after.webp
    FOLDER/<id>/inputs/...         what it was made of, for the same again

A result is in the index if and only if its folder is whole: the folder is made under another name, forced to the disk
and renamed, and only then is the row written; a row goes before its folder does. Several processes may use one history
at a time: SQLite's write-ahead log keeps their rows apart, and no two results share a folder.
"""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from sdsedit.errors import InputRefused, one_sentence, printable
from sdsedit.io import record

Kind = Literal["image", "sketch", "splats", "style"]
KINDS: tuple[Kind, ...] = ("image", "sketch", "splats", "style")
THUMBNAIL = 320  # pixels, the longer side
_ABANDONED = 3600.0  # seconds after which a folder without a row is what a crash left
_VERSION = 1  # of the index
_TABLE = """
CREATE TABLE IF NOT EXISTS results (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    made REAL NOT NULL,
    title TEXT NOT NULL,
    output TEXT NOT NULL,
    words TEXT NOT NULL,
    recipe TEXT NOT NULL
)
"""


@dataclass(frozen=True)
class Item:
    """One result."""

    id: str
    kind: Kind
    made: float  # seconds since 1970
    title: str  # what was asked for
    folder: Path
    output: Path
    recipe: dict[str, Any]

    @property
    def after(self) -> Path:
        return self.folder / "after.webp"

    @property
    def before(self) -> Path | None:
        path = self.folder / "before.webp"
        return path if path.is_file() else None

    def input(self, what: str) -> Path | None:
        """What it was made of: "input", "mask", "cameras", "reference 1"; None: it was made of nothing such, or that is
        not here."""
        return next(iter(sorted((self.folder / "inputs" / what).glob("*"))), None)


class History:
    """The results in one folder, the newest first."""

    def __init__(self, folder: Path) -> None:
        """InputRefused: the folder cannot be written to, or its index is no index of ours."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._index() as index:
                index.execute("PRAGMA journal_mode=WAL")
                found = index.execute("PRAGMA user_version").fetchone()[0]
                if found > _VERSION:
                    raise InputRefused("The history was written by a newer sdsedit; update this one, or use another.")
                index.execute(_TABLE)
                index.execute(f"PRAGMA user_version = {_VERSION}")
            self._sweep()
        except OSError as error:
            raise InputRefused(f"The history's folder cannot be used ({one_sentence(error)}).") from None

    def add(
        self,
        kind: Kind,
        output: Path,
        before: np.ndarray | Image.Image | None,
        after: np.ndarray | Image.Image,
        recipe: Mapping[str, Any],
        inputs: Mapping[str, Path] | None = None,
    ) -> str:
        """Keep a result; its id. The files are copied.

        output: a file to download. before, after: pictures of it, of any size. inputs: files that a replay needs, by
        what the recipe calls them: "input", "mask".
        InputRefused: the disk does not take it.
        """
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
        made, name = time.time(), secrets.token_hex(12)
        building, final = self.folder / f".new-{name}", self.folder / name
        try:
            (building / "inputs").mkdir(parents=True)
            for what, path in (inputs or {}).items():
                (building / "inputs" / what).mkdir()
                shutil.copyfile(path, building / "inputs" / what / path.name)
            shutil.copyfile(output, building / output.name)
            pictures = [(building / "after.webp", _thumbnail(after))]
            if before is not None:
                pictures.append((building / "before.webp", _thumbnail(before)))
            record.write_all(pictures)
            building.rename(final)
            with self._index() as index:
                index.execute(
                    "INSERT INTO results (id, kind, made, title, output, words, recipe) VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (name, kind, made, _title(recipe), output.name, _words(kind, output.name, recipe),
                     record.dump(recipe)),
                )  # fmt: skip
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
            raise InputRefused(f"The result could not be put into the history: {one_sentence(error)}.") from None
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            shutil.rmtree(final, ignore_errors=True)
            raise
        return name

    def search(self, words: str = "", limit: int = 24, offset: int = 0) -> list[Item]:
        """The newest results that have all of these words, or the beginnings or ends of them, in what was asked for, in
        the file's name, or in the kind, method or model; all of them if there is no word."""
        asked = words.casefold().split()[:20]
        where = " AND ".join(["instr(words, ?)"] * len(asked)) or "1"
        with self._index() as index:
            rows = index.execute(
                f"SELECT id, kind, made, title, output, recipe FROM results WHERE {where} "
                "ORDER BY number DESC LIMIT ? OFFSET ?",
                (*asked, limit, offset),
            ).fetchall()
        return [item for item in map(self._item, rows) if item.output.is_file()]

    def count(self, words: str = "") -> int:
        """How many `search` would find without a limit."""
        asked = words.casefold().split()[:20]
        where = " AND ".join(["instr(words, ?)"] * len(asked)) or "1"
        with self._index() as index:
            return index.execute(f"SELECT count(*) FROM results WHERE {where}", asked).fetchone()[0]

    def get(self, id: str) -> Item:
        """InputRefused: it is not there, or no more."""
        with self._index() as index:
            row = index.execute(
                "SELECT id, kind, made, title, output, recipe FROM results WHERE id = ?", (id,)
            ).fetchone()
        item = None if row is None else self._item(row)
        if item is None or not item.output.is_file():
            raise InputRefused("This result is no longer in the history.")
        return item

    def delete(self, id: str) -> None:
        """Forget a result and its files. InputRefused: it is not there, or no more."""
        with self._index() as index:
            if not index.execute("DELETE FROM results WHERE id = ?", (id,)).rowcount:
                raise InputRefused("This result is no longer in the history.")
        shutil.rmtree(self.folder / id, ignore_errors=True)  # `id` was in the index: it is one of ours

    # ---- inside

    @contextlib.contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction: SQLite's are cheap, and threads do not share them."""
        try:
            connection = sqlite3.connect(self.folder / "index.sqlite", timeout=20)
            try:
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise InputRefused(f"The history's index cannot be used ({one_sentence(error)}).") from None

    def _item(self, row: tuple[Any, ...]) -> Item:
        id, kind, made, title, output, recipe = row
        return Item(id, kind, made, title, self.folder / id, self.folder / id / output, json.loads(recipe))

    def _sweep(self) -> None:
        """Remove what a crash left: folders that were not finished, and those whose row was deleted."""
        with self._index() as index:
            known = {row[0] for row in index.execute("SELECT id FROM results")}
        for path in self.folder.iterdir():
            name = path.name.removeprefix(".new-")
            ours = path.is_dir() and len(name) == 24 and set(name) <= set("0123456789abcdef")
            if ours and path.name not in known and time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def _thumbnail(picture: np.ndarray | Image.Image) -> bytes:
    small = picture.convert("RGB") if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if max(small.size) > THUMBNAIL:
        small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=88)
    return buffer.getvalue()


def _title(recipe: Mapping[str, Any]) -> str:
    """What was asked for, on one line."""
    asked = recipe.get("target") or recipe.get("prompt")
    if recipe.get("kind") == "style":
        given, made_of = " and ".join(_looks(recipe)), recipe.get("input")
        thing = asked or (Path(str(made_of.get("name"))).stem if isinstance(made_of, Mapping) else "a texture")
        asked = f"{thing} in the look of {given}" if given else thing
    return printable(str(asked or "untitled"), 300)


def _looks(recipe: Mapping[str, Any]) -> list[str]:
    """The names of a style's references, without their endings."""
    references = recipe.get("references")
    named = references if isinstance(references, list) else []
    return [Path(str(each.get("name"))).stem for each in named if isinstance(each, Mapping) and each.get("name")]


def _words(kind: str, name: str, recipe: Mapping[str, Any]) -> str:
    """Everything that a person may look for, on one line."""
    method, model, result = (recipe.get(part) for part in ("method", "model", "result"))
    said = [kind, name, *(recipe.get(part) for part in ("target", "source", "prompt", "negative"))]
    for part, key in ((method, "name"), (model, "id"), (result, "kind")):
        said.append(part.get(key) if isinstance(part, Mapping) else part)
    said += [recipe.get("kind"), *_looks(recipe)]
    return printable(" ".join(str(each) for each in said if each), 10_000).casefold()
