"""Print what pyproject.toml asks for: its dependencies, and those of the extras that are named. One a line, for pip.

So that an image can install the packages before it has the code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


def requirements(project: dict[str, Any], extras: Sequence[str]) -> Iterator[str]:
    """An extra may name others of the same project: "sdsedit[web]"."""
    yield from project["dependencies"]
    for extra in extras:
        yield from _of(project, extra)


def _of(project: dict[str, Any], extra: str) -> Iterator[str]:
    for each in project["optional-dependencies"][extra]:
        own = re.fullmatch(rf"{project['name']}\[(.+)\]", each)
        if own is None:
            yield each
        else:
            for inner in own[1].split(","):
                yield from _of(project, inner.strip())


if __name__ == "__main__":
    with Path("pyproject.toml").open("rb") as file:
        print(*dict.fromkeys(requirements(tomllib.load(file)["project"], sys.argv[1:])), sep="\n")
