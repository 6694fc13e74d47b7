"""Where a result of a batch comes from, so that `sdsedit replay` needs to be told nothing."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from sdsedit.batch.local import store_path
from sdsedit.batch.manifest import outputs_of
from sdsedit.batch.store import Store
from sdsedit.errors import InputRefused
from sdsedit.model_options import ModelOptions

_DEEP = 8  # folders that an output may lie below its batch's


@dataclass(frozen=True)
class Origin:
    files: dict[str, Path]  # what the job reads, as `Job.files` names it, and is there
    model: ModelOptions  # what decides its results


def origin(made: Path) -> Origin | None:
    """The job that made this file, if it lies in the output folder of a batch; None: in none, or not known there."""
    path = made.resolve()
    for folder in path.parents[:_DEEP]:
        if store_path(folder).is_file():
            break
    else:
        return None
    name = path.relative_to(folder).as_posix()
    try:
        with Store(store_path(folder), reads=True) as store:
            root = store.remembered("root")
            entry = next((each for each in store.entries() if name in outputs_of(each.job)), None)
    except (InputRefused, sqlite3.Error):  # damaged, or of another version: it was only a hint
        return None
    if root is None or entry is None:
        return None
    files = {what: Path(root) / each for what, each in entry.job.files.items()}
    return Origin({what: file for what, file in files.items() if file.exists()}, ModelOptions.parse(entry.model))
