"""MagicBrush and PIE-Bench folders as cases: a picture, what it shows, what it should show.

MagicBrush (arXiv:2306.10012), a split as it is unpacked. Each turn is a case by itself, its input the dataset's own:

    edit_turns.json           [{"input", "mask", "output", "instruction"}, ...] with names such as 368667-output1.png
    global_descriptions.json  {"368667": {"368667-output1.png": "what the whole picture shows"}, ...}
    local_descriptions.json   {"368667": {"368667-output1.png": "what the edit is about"}, ...}
    images/368667/368667-output1.png

PIE-Bench (arXiv:2310.01506):

    mapping_file.json         {"000000000000": {"image_path", "original_prompt", "editing_prompt", "editing_type_id",
                              "mask": [start, length, start, length, ...], ...}, ...}, differences in [brackets]
    annotation_images/0_random_140/000000000000.jpg        512 x 512
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdsedit.errors import InputRefused, printable

KINDS = ("magicbrush", "pie")
PIE_SIDE = 512
PIE_TYPES = {
    "0": "random", "1": "change object", "2": "add object", "3": "delete object", "4": "change content",
    "5": "change pose", "6": "change colour", "7": "change material", "8": "change background", "9": "change style",
}  # fmt: skip
_MAX_JSON = 256 * 2**20


@dataclass(frozen=True)
class Case:
    """One edit of a dataset."""

    id: str  # of letters, digits, dots, hyphens
    image: Path  # the picture as it is
    source: str  # describes it
    target: str  # describes it as it should become
    caption: str  # what CLIP-T compares the result with
    truth: Path | None = None  # a person's result
    mask: tuple[int, ...] | None = None  # PIE-Bench's runs, see `decode_mask`
    type: str = ""


def read_dataset(folder: Path, kind: str, limit: int | None = None, prompts: Path | None = None) -> list[Case]:
    """The cases of a folder, the first `limit` of them; `prompts` is a table of others for MagicBrush, with columns idx
    (368667-input), source_prompt and target_prompt. InputRefused: the folder is not what it should be."""
    if not folder.is_dir():
        raise InputRefused(f"There is no folder {printable(folder.name)}.")
    if prompts is not None and kind != "magicbrush":
        raise InputRefused("Prompts of your own are for MagicBrush; PIE-Bench has one pair a picture.")
    try:
        cases = _magicbrush(folder, prompts) if kind == "magicbrush" else _pie(folder)
    except InputRefused:  # a ValueError too
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputRefused(
            f"The files of {printable(folder.name)} are not {_NAMES[kind]}'s: {printable(str(error), 80)} is missing "
            "or of another kind."
        ) from None
    cases = cases[:limit]
    if not cases:
        raise InputRefused(f"{printable(folder.name)} has no edits in it.")
    ids = [case.id for case in cases]
    if len(set(ids)) < len(ids) or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,90}", id) for id in ids):
        raise InputRefused(f"The edits of {printable(folder.name)} have no names that can be told apart.")
    files = [file for case in cases for file in (case.image, case.truth) if file is not None]
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise InputRefused(f"{printable(file.name)} leads out of the dataset's folder.")
    missing = [file for file in files if not file.is_file()]
    if missing:
        rest = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputRefused(f"{printable(folder.name)} lacks the picture {printable(missing[0].name)}{rest}.")
    for case in cases:
        if not case.target:
            raise InputRefused(f"The edit {case.id} says nothing of what the picture should become.")
    return cases


_NAMES = {"magicbrush": "MagicBrush", "pie": "PIE-Bench"}


def _magicbrush(folder: Path, prompts: Path | None) -> list[Case]:
    turns = _json(folder, "edit_turns.json", "MagicBrush")
    whole = _flat(_json(folder, "global_descriptions.json", "MagicBrush"))
    local = _flat(_json(folder, "local_descriptions.json", "MagicBrush"))
    own = {} if prompts is None else _table(prompts)
    cases = []
    for turn in turns:
        before, after = str(turn["input"]), str(turn["output"])
        session = folder / "images" / after.split("-")[0]
        source, target = own.get(Path(before).stem) or (whole[before], whole[after])
        cases.append(
            Case(
                Path(after).stem,
                session / before,
                _plain(source),
                _plain(target),
                _plain(local[after]),
                session / after,
            )
        )
    return cases


def _pie(folder: Path) -> list[Case]:
    cases = []
    for id, entry in _json(folder, "mapping_file.json", "PIE-Bench").items():
        source, target = (_plain(re.sub(r"[\[\]]", "", entry[name])) for name in ("original_prompt", "editing_prompt"))
        runs = tuple(int(each) for each in entry["mask"])
        type = str(entry["editing_type_id"])
        image = folder / "annotation_images" / str(entry["image_path"])
        cases.append(Case(str(id), image, source, target, target, None, runs, PIE_TYPES.get(type, type)))
    return cases


def decode_mask(runs: Sequence[int], side: int = PIE_SIDE) -> np.ndarray:  # [side, side] uint8, 1 = may change
    """PIE-Bench's mask, runs of start and length over the rows; its evaluation counts the outermost pixels as inside.

    ValueError: an odd number of values, or a start outside the picture.
    """
    mask = np.zeros(side * side, np.uint8)
    if len(runs) % 2 or any(not 0 <= start < mask.size for start in runs[::2]):
        raise ValueError(f"A mask is pairs of a start, below {mask.size}, and a length.")
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        mask[start : start + length] = 1
    mask = mask.reshape(side, side)
    mask[[0, -1], :] = 1
    mask[:, [0, -1]] = 1
    return mask


def _flat(described: Any) -> dict[str, str]:
    return {name: str(text) for session in described.values() for name, text in session.items()}


def _plain(text: Any) -> str:
    return " ".join(str(text).split())


def _json(folder: Path, name: str, dataset: str) -> Any:
    file = folder / name
    if not file.is_file():
        raise InputRefused(f"{printable(folder.name)} is no {dataset} folder: it has no {name}.")
    if file.stat().st_size > _MAX_JSON:
        raise InputRefused(f"{name} is larger than the limit of {_MAX_JSON // 2**20} MiB.", status=413)
    return _read(file, lambda text: json.loads(text))


def _table(file: Path) -> dict[str, tuple[str, str]]:
    if not file.is_file():
        raise InputRefused(f"There is no file {printable(file.name)}.")
    rows = _read(file, lambda text: list(csv.DictReader(text.splitlines())))
    try:
        return {row["idx"]: (row["source_prompt"], row["target_prompt"]) for row in rows}
    except KeyError as error:
        raise InputRefused(f"{printable(file.name)} has no column {error}.") from None


def _read(file: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(file.read_text("utf-8-sig"))
    except (ValueError, csv.Error, RecursionError):
        raise InputRefused(f"{printable(file.name)} cannot be read: it is damaged or of another kind.") from None
