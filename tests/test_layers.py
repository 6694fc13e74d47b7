"""The order of the rooms: who may import whom, read from the source and never by running it.

Rows go from the bottom up. A room imports itself and rooms in rows below its own, wherever in a file the import stands;
rooms of one row do not know each other. docs/design.md says why.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ROWS: tuple[tuple[str, ...], ...] = (
    ("sdsedit._version", "sdsedit.errors", "sdsedit.known_models"),
    # Files and numbers, and what is asked for in loading a model: they know none.
    ("sdsedit.schedule", "sdsedit.camera", "sdsedit.metrics", "sdsedit.io", "sdsedit.model_options"),
    ("sdsedit.prior",),
    ("sdsedit.attention",),
    ("sdsedit.guidance",),
    ("sdsedit.render",),
    ("sdsedit.representations", "sdsedit.request", "sdsedit.memory"),
    ("sdsedit.edit",),
    ("sdsedit.sketch", "sdsedit.splats", "sdsedit.style"),
    ("sdsedit.io.record",),  # a recipe is made of an edit or a sketch as a whole: record stands above the rest of io
    ("sdsedit.io.record_style",),
    ("sdsedit.batch", "sdsedit.doctor", "sdsedit.licences"),
    ("sdsedit.cli_shared",),
    ("sdsedit.cli_batch", "sdsedit.cli_models", "sdsedit.cli_style", "sdsedit.evaluate"),
    # A batch that is scored; scenes that take a style.
    ("sdsedit.cli_evaluate", "sdsedit.cli_splats"),
    ("sdsedit.web", "sdsedit.cli"),
    ("sdsedit",),  # the front door, `sdsedit/__init__.py`: names of all rooms, loaded when used
    ("app", "pipelines", "training"),
    ("benchmarks",),  # they draw their truth with training.scenes
)
ROW = {room: row for row, rooms in enumerate(ROWS) for room in rooms}

# What a module may import at its top: the base dependencies. Everything else waits inside the function that needs it.
BASE = {"torch", "diffusers", "transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "PIL", "rich"}
BASE |= {"numba"}
# A file that is nothing without its package may name it at its top; the front door loads the file when it is asked for.
OWN = {"sdsedit.render.strokes.cuda": "triton"}


def sources(root: Path) -> Iterator[tuple[str, Path]]:
    """(module name, file) of everything outside tests/."""
    for room in ("sdsedit", "pipelines", "training", "benchmarks"):
        for file in sorted((root / room).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file
    if (root / "app.py").is_file():
        yield "app", root / "app.py"


def imports(module: str, file: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of every import, relative ones resolved; `from a import b` gives a.b."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def room_of(name: str) -> str | None:
    """The longest name in the table that `name` is or lies in; `from sdsedit import Edit` is the front door's."""
    parts = name.split(".")
    return next((room for n in range(len(parts), 0, -1) if (room := ".".join(parts[:n])) in ROW), None)


def violations(root: Path) -> list[str]:
    found = []
    for module, file in sources(root):
        home = room_of(module)
        where = file.relative_to(root).as_posix()
        if home == "sdsedit" and module != "sdsedit":
            found.append(f"{where}: no place in the order; give its room one in ROWS")
            continue
        for line, name in imports(module, file):
            room = room_of(name)
            if room is None or room == home:
                continue
            assert home is not None
            if ROW[room] >= ROW[home]:
                found.append(f"{where}:{line}: {home} imports {room}, which is not below it")
    return found


def top_imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of absolute imports that run when the module is loaded."""
    waiting: list[ast.AST] = [ast.parse(file.read_text("utf-8"))]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield node.lineno, node.module.split(".")[0]
            elif isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                waiting.extend(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting.append(node)


def test_arrows_go_down():
    assert not (found := violations(ROOT)), "\n".join(found)


def test_optional_packages_wait_until_they_are_used():
    allowed = sys.stdlib_module_names | BASE | {"sdsedit"}
    found = [
        f"{file.relative_to(ROOT).as_posix()}:{line}: {package} at the top"
        for module, file in sources(ROOT)
        if module.startswith("sdsedit")
        for line, package in top_imports(file)
        if package not in allowed and OWN.get(module) != package
    ]
    assert not found, "\n".join(found)


def test_nothing_imports_torchvision():
    files = sources(ROOT)
    found = [
        f"{file}:{n}" for module, file in files for n, name in imports(module, file) if name.startswith("torchvision")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["sdsedit", "pipelines", "training", "benchmarks", "tests"])
def test_sources_are_python_3_10(folder: str):
    for file in (ROOT / folder).rglob("*.py"):
        ast.parse(file.read_text("utf-8"), filename=str(file), feature_version=(3, 10))


@pytest.mark.parametrize(
    ("file", "line", "fault"),
    [
        ("sdsedit/schedule.py", "from sdsedit.prior.base import Prior", "sdsedit.schedule imports sdsedit.prior"),
        ("sdsedit/guidance/sds.py", "def f():\n    from ..edit import edit", "sdsedit.guidance imports sdsedit.edit"),
        ("sdsedit/io/images.py", "import sdsedit.io.record", "sdsedit.io imports sdsedit.io.record"),
        ("sdsedit/sketch.py", "from sdsedit import Edit", "sdsedit.sketch imports sdsedit, which"),
        ("sdsedit/sketch.py", "from sdsedit.splats import lift", "sdsedit.sketch imports sdsedit.splats"),
        ("sdsedit/cli.py", "from app import demo", "sdsedit.cli imports app"),
        ("sdsedit/prior/load.py", "import training.run", "sdsedit.prior imports training"),
        ("sdsedit/utils.py", "import torch", "no place in the order"),
        ("sdsedit/edit.py", "from sdsedit.guidance.base import Step\nfrom sdsedit import schedule", ""),
        ("pipelines/image_edit.py", "from sdsedit import Edit", ""),
    ],
)
def test_the_order_is_really_held(tmp_path: Path, file: str, line: str, fault: str):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line)
    found = violations(tmp_path)
    assert len(found) == bool(fault), found
    assert fault in "".join(found)
