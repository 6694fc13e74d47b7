"""What loading costs: `import sdsedit` and `sdsedit --help` are quick, load nothing heavy, and ask no network."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAVY = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "numpy",
    "PIL",
    "gradio",
    "gsplat",
    "xformers",
    "triton",
    "ray",
)

# Runs before what is measured. An audit hook cannot be taken off again: any use of a socket is written down.
WATCH = """
import sys, json
asked = []
sys.addaudithook(lambda event, args: asked.append(event) if event.startswith("socket.") else None)
"""
REPORT = """
print("REPORT" + json.dumps({"asked": asked, "loaded": sorted({name.split(".")[0] for name in sys.modules})}))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_", "DIFFUSERS_"))
    }
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def watched(code: str) -> tuple[dict, str]:
    """What `code` loaded and which socket events it caused, and what it printed."""
    done = run(WATCH + code + REPORT)
    assert done.returncode == 0, done.stderr
    printed, _, report = done.stdout.rpartition("REPORT")
    return json.loads(report), printed


def test_import_loads_nothing_heavy_and_asks_no_network():
    report, _ = watched("import sdsedit")
    assert not report["asked"]
    assert "sdsedit" in report["loaded"]
    assert not set(HEAVY) & set(report["loaded"])


def test_import_is_quick():
    """Under 0.3 s: the median of five, each in a fresh process, without the start of Python itself."""
    measure = "import time; t = time.perf_counter(); import sdsedit; print(time.perf_counter() - t)"
    seconds = [float(run(measure).stdout) for _ in range(5)]
    assert statistics.median(seconds) < 0.3, seconds


def test_help_loads_no_model_library():
    report, printed = watched("""
from sdsedit.cli import main
try:
    code = main(["--help"])
except SystemExit as stop:
    code = stop.code
assert not code, code
""")
    assert "image" in printed and "doctor" in printed
    assert not report["asked"]
    assert not {"torch", "torchvision", "diffusers", "transformers", "gradio"} & set(report["loaded"])


def test_help_is_quick():
    """Under 1 s: the median of three whole runs, the start of Python included."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = run("import sys; from sdsedit.cli import main; sys.exit(main(['--help']))")
        seconds.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert statistics.median(seconds) < 1, seconds


def test_the_whole_library_loads_without_torchvision_or_network():
    """Every module of the package, and every public name, also with torchvision made impossible to import."""
    report, printed = watched("""
sys.modules["torchvision"] = None
import importlib, pkgutil, sdsedit
names = [each.name for each in pkgutil.walk_packages(sdsedit.__path__, "sdsedit.")]
for name in names:
    importlib.import_module(name)
for name in sdsedit.__all__:
    getattr(sdsedit, name)
print(len(names))
""")
    assert int(printed) > 10
    assert not report["asked"]
    assert not {"gradio", "gsplat", "xformers", "ray"} & set(report["loaded"])


def test_one_version():
    _, printed = watched("import sdsedit, sdsedit._version as v; print(sdsedit.__version__ == v.__version__)")
    assert printed.strip() == "True"


def test_an_unknown_name_says_so():
    done = run("import sdsedit; sdsedit.no_such_name")
    assert "AttributeError: module 'sdsedit' has no attribute 'no_such_name'" in done.stderr
