"""The README keeps its promises: exactly two commands, links that lead somewhere, and a file tree that is the tree.

That the commands work word for word is what .ci/run tests, in a copy of the tree with a fresh virtual environment.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
LISTED_ONE_BY_ONE = ("sdsedit/", "training/", "pipelines/", "benchmarks/")  # their Python files have a line each


def commands() -> list[str]:
    """The content of every ```bash block, as .ci/run reads it too."""
    return [block.strip() for block in re.findall(r"^```bash\n(.*?)^```$", README, re.M | re.S)]


def tree() -> dict[str, str]:
    """path -> description from the README's tree; folders end in a slash. Two spaces a level."""
    block = re.search(r"^## The tree\n.*?^```text\n(.*?)^```$", README, re.M | re.S)
    assert block, "README.md has no tree under '## The tree'"
    listed: dict[str, str] = {}
    folders: list[str] = []
    for line in block[1].splitlines():
        match = re.fullmatch(r"((?:  )*)(\S+)(?:\s+(\S.*))?", line)
        assert match, f"not 'name  description': {line!r}"
        depth, name, description = len(match[1]) // 2, match[2], match[3] or ""
        assert description or name.endswith("/"), f"a file without a word about it: {line!r}"
        assert depth <= len(folders), f"indented under nothing: {line!r}"
        path = "".join(folders[:depth]) + name
        assert path not in listed, f"twice: {path}"
        listed[path] = description
        folders[depth:] = [name] if name.endswith("/") else []
    return listed


def files() -> Iterator[str]:
    """Every file of the project: what .gitignore does not name."""
    patterns = [
        line.rstrip("/") for line in (ROOT / ".gitignore").read_text("utf-8").splitlines() if line and line[0] != "#"
    ]

    def ignored(name: str) -> bool:
        return name == ".git" or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)

    for folder, below, names in os.walk(ROOT):
        below[:] = [name for name in below if not ignored(name)]
        for name in names:
            if not ignored(name):
                yield (Path(folder) / name).relative_to(ROOT).as_posix()


def test_there_are_exactly_two_commands_of_one_line_each():
    edit, tests = commands()
    for command in (edit, tests):
        assert "\n" not in command
        steps = command.split(" && ")
        assert steps[0] == "python3 -m venv .venv"
        assert steps[1].startswith(".venv/bin/pip install -c constraints.txt -e ")
        assert len(steps) == 3
    assert edit.split(" && ")[2].startswith(".venv/bin/sdsedit image ")
    assert tests.split(" && ")[2].startswith(".venv/bin/python -m pytest")


def test_the_main_job_reads_a_shipped_picture_and_writes_to_an_ignored_folder():
    words = shlex.split(commands()[0].split(" && ")[2])
    assert (ROOT / words[2]).is_file(), f"{words[2]} is not in the repository"
    output = words[words.index("--output") + 1]
    assert output.startswith("out/") and output.endswith(".png")
    assert "out/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert {"--source", "--target"} <= set(words)


def test_the_tree_lists_nothing_that_is_not_there():
    missing = [
        path for path in tree() if not ((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file())
    ]
    assert not missing, f"in README.md and not in the tree: {missing}"


def test_every_file_is_in_the_tree():
    """By its own line, or by the line of a folder that lists nothing below it."""
    listed = tree()
    whole = {
        path for path in listed if path.endswith("/") and not any(p != path and p.startswith(path) for p in listed)
    }
    absent = []
    for file in files():
        one_by_one = file.startswith(LISTED_ONE_BY_ONE) and file.endswith(".py")
        covered = file in listed or (not one_by_one and any(file.startswith(folder) for folder in whole))
        if not covered and not file.endswith("/__init__.py"):
            absent.append(file)
    assert not absent, f"not in README.md's tree: {absent}"


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_links_between_pages_lead_somewhere(page: str):
    text = re.sub(r"<!--.*?-->", "", (ROOT / page).read_text("utf-8"), flags=re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, heading = link.partition("#")
        there = (ROOT / page).parent / target if target else ROOT / page
        assert there.exists(), f"{page}: {link} leads nowhere"
        if heading and there.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", there.read_text("utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page}: {link} has no such heading"
