"""What SECURITY.md promises and no other test holds: that its table names real tests, that nothing here opens a pickle
or asks the network, that models come as safetensors only wherever they are named, and that secrets stay secret.

The numbers are those of the table of bad inputs: 17 paths, 20 addresses, 21 pickles.
"""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from sdsedit import errors
from sdsedit.cli import main
from sdsedit.errors import InputRefused

ROOT = Path(__file__).resolve().parent.parent
CODE = sorted([ROOT / "app.py", *(ROOT / "sdsedit").rglob("*.py"), *(ROOT / "docker").glob("*.py")])
SECRET = "correct-horse-9"

# Modules that run what a file says, or that ask other machines. Standard library and what the project's packages bring.
UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "telnetlib", "ftplib", "smtplib", "ctypes"}
ASKING = {"requests", "httpx", "aiohttp", "urllib3", "urllib.request", "http.client", "huggingface_hub"}
LOCAL = {"huggingface_hub.try_to_load_from_cache"}  # looks in a folder
CALLS = {
    "eval", "exec", "torch.load", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "shutil.unpack_archive", "pandas.read_pickle",
}  # fmt: skip


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def among(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def test_21_nothing_opens_a_pickle_or_runs_what_a_file_says():
    """torch reads pickles only in diffusers and transformers, when --allow-pickle is given, and then weights only."""
    for path in CODE:
        tree = ast.parse(path.read_text("utf-8"))
        found = {name for name in imports(tree) if among(name, UNSAFE)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                given = {each.arg: ast.unparse(each.value) for each in node.keywords}
                if name in CALLS or given.get("shell") == "True":
                    found.add(name)
                if name.endswith("np.load") and given.get("allow_pickle", "False") != "False":
                    found.add(name)
        assert not found, f"{path.relative_to(ROOT)} uses {', '.join(sorted(found))}"


def test_20_only_the_loading_of_models_can_ask_the_network():
    asking = set()
    for path in CODE:
        names = {name for name in imports(ast.parse(path.read_text("utf-8"))) if among(name, ASKING)}
        if names - {"huggingface_hub"} - LOCAL:
            asking.add(path.relative_to(ROOT).as_posix())
    # The first reads the cache of models, and fetches one that a command line names; the page is told not to.
    # The second asks this machine whether the page answers.
    assert asking == {"sdsedit/prior/load.py", "docker/health.py"}


def test_21_all_that_is_shipped_is_data():
    for path in (ROOT / "assets").rglob("*"):
        assert path.suffix not in {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".npy", ".joblib"}, path


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_21_a_pickle_in_a_manifest(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    row = {"kind": "sketch", "prompt": "a fox", "model": name}
    manifest = tmp_path / "jobs.jsonl"
    manifest.write_text(f'{{"schema_version": 1}}\n{json.dumps(row)}\n')
    given = main(["batch", str(manifest), "--output", str(tmp_path / "made")])
    said = capsys.readouterr().err
    assert given == errors.USAGE and f"{name} is a pickled checkpoint" in said and "safetensors only" in said
    assert str(tmp_path) not in said
    assert not (tmp_path / "made").exists()


def test_21_never_from_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A page has no word that allows it: not for the model it starts with, not for the others."""
    if find_spec("gradio") is None:
        pytest.skip("the page needs gradio: pip install -c constraints.txt -e '.[web]'")
    from sdsedit.web import serve
    from sdsedit.web.settings import Settings

    with pytest.raises(SystemExit) as ended:
        serve.main(["--allow-pickle"])
    assert ended.value.code == errors.USAGE and "--allow-pickle" in capsys.readouterr().err
    pickled = tmp_path / "model.ckpt"
    pickled.write_bytes(b"\x80\x04.")
    with pytest.raises(InputRefused, match="safetensors only"):
        serve.load(Settings(folder=tmp_path), str(pickled))


def test_secrets_of_the_environment_are_not_in_what_is_made(
    tmp_path: Path, builtin_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Not in the picture, the sidecar, the mask, or what is printed; the sidecar tells versions and settings."""
    for name in ("SDSEDIT_LOGIN", "HF_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, f"me:{SECRET}")
    made = tmp_path / "out.png"
    arguments = ["image", str(ROOT / "assets/examples/cat.png"), "--target", "a cat", "--model", str(builtin_folder)]
    assert main([*arguments, "--steps", "1", "--device", "cpu", "--save-mask", "--output", str(made)]) == errors.OK
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path.name
    assert made.is_file() and SECRET not in "".join(capfd.readouterr())


def test_the_login_is_in_no_answer_and_in_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    """Logging in, failing to, and being refused, with everything logged that can be."""
    if find_spec("gradio") is None:
        pytest.skip("the page needs gradio: pip install -c constraints.txt -e '.[web]'")
    from starlette.testclient import TestClient

    from sdsedit.web.serve import create_app
    from sdsedit.web.settings import Settings

    caplog.set_level(logging.DEBUG)
    settings = Settings(login=("me", SECRET), folder=tmp_path / "page", history=tmp_path / "history")
    client = TestClient(create_app(settings))  # without its start, so that no model is loaded
    answers = [client.get("/config"), client.get("/healthz"), client.get("/readyz")]
    answers.append(client.post("/login", data={"username": "me", "password": f"{SECRET}x"}))
    assert [each.status_code for each in answers] == [401, 200, 503, 400]
    answers.append(client.post("/login", data={"username": "me", "password": SECRET}))
    answers.append(client.get("/config"))
    assert [each.status_code for each in answers[4:]] == [200, 200]
    answers.append(client.post("/gradio_api/queue/join", json={"data": [{"path": "/etc/passwd"}], "fn_index": 0}))
    answers.append(client.get("/nowhere"))
    answers.append(client.get("/metrics"))
    assert [each.status_code for each in answers[-2:]] == [404, 404], "counts are off unless they are asked for"
    for answer in answers:
        assert SECRET not in answer.text and SECRET not in str(answer.headers), answer.url
    assert SECRET not in caplog.text and SECRET not in "".join(capfd.readouterr())
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path.name


def test_the_table_of_threats_names_tests_that_are_there():
    rows = [line for line in (ROOT / "SECURITY.md").read_text("utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", row)
        assert named or "no test" in row, f"neither a test nor a word that there is none: {row}"
        for path, test in named:
            assert f"\ndef {test}(" in (ROOT / path).read_text("utf-8"), f"{path} has no {test}"
