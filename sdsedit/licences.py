"""Which licences of models have been acknowledged, and which revision of a model a person took.

The page's Models tab and `sdsedit models add` write the same file, beside the page's history.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdsedit.errors import InputRefused
from sdsedit.io import record
from sdsedit.known_models import KNOWN_MODELS

FILE = "licences.json"


class Licences:
    """Which licences have been acknowledged, and when, in a file that survives a restart; None: in memory only."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._known: dict[str, dict[str, Any]] = {}

    def known(self) -> dict[str, dict[str, Any]]:
        """Model -> {"licence", "acknowledged": seconds since 1970, "revision" if it was fetched here}. A damaged file
        counts as an empty one: people are asked once more."""
        if self.file is not None:
            with suppress(OSError, ValueError):
                found = json.loads(self.file.read_text("utf-8"))
                if isinstance(found, dict):
                    self._known = {id: each for id, each in found.items() if isinstance(each, dict)}
        return dict(self._known)

    def acknowledge(self, model: str, licence: str | None = None, revision: str | None = None) -> None:
        """Without `licence` the model must be one of KNOWN_MODELS. The first time is kept, the last revision is.
        InputRefused: there is no such model, or the file cannot be written."""
        if licence is None and model not in KNOWN_MODELS:
            raise InputRefused("There is no such model here.")
        known = self.known()
        entry = known.setdefault(
            model, {"licence": licence or KNOWN_MODELS[model].licence, "acknowledged": time.time()}
        )
        if revision is not None:
            entry["revision"] = revision
        self._known = known
        if self.file is not None:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                record.write_all([(self.file, record.dump(known).encode())])
            except OSError as error:
                raise InputRefused(f"This could not be recorded: {error.strerror}.") from None


def default_history() -> Path:
    """Where finished results and acknowledged licences stay: $XDG_DATA_HOME, or what stands for it on this system."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library/Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share")
    return base / "sdsedit" / "history"
