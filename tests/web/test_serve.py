"""`python app.py`: how soon it answers, its health, and how it ends. Real processes and real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest

from sdsedit.prior.base import Prior
from sdsedit.web import serve
from sdsedit.web.history import History
from sdsedit.web.settings import Settings
from sdsedit.web.worker import Worker
from tests.web.conftest import ROOT, answers, free_port, start, until

if find_spec("gradio") is None:
    pytest.skip("the page needs gradio: pip install -c constraints.txt -e '.[web]'", allow_module_level=True)

EDIT = """
import sys, time
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False, download_files=sys.argv[2])
job = client.submit(handle_file(sys.argv[3]), "a cat on grass", "a cat wearing a crown on grass", "", None, "lusd", 1.0,
                    0, "", int(sys.argv[4]), api_name="/edit_picture")
while job.status().code.name not in ("PROCESSING", "ITERATING") and not job.done():
    time.sleep(0.05)
print("asked", flush=True)
print(job.result(timeout=300)[1]["result"]["steps_done"], flush=True)
"""


def edit(url: str, folder: Path, steps: int = 0) -> subprocess.Popen[str]:
    """A person who asks for an edit, which has begun; they print how many steps of it there are in what they got."""
    asking = subprocess.Popen(
        [sys.executable, "-c", EDIT, url, str(folder), str(ROOT / "assets/examples/cat.png"), str(steps)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert asking.stdout is not None and asking.stdout.readline() == "asked\n"
    until_running(url)
    return asking


def until_running(url: str) -> None:
    import httpx

    for _ in range(1200):
        if "sdsedit_jobs_running 1.0" in httpx.get(f"{url}/metrics").text:
            return
        time.sleep(0.1)
    raise AssertionError("no job began")


def kept(history: Path) -> list[dict[str, Any]]:
    """The results in the history that a page left."""
    return [item.recipe["result"] for item in History(history).search()]


def test_29_sigterm_lets_the_running_job_finish(tmp_path: Path):
    """The intake stops, /readyz says 503 while /healthz still answers, the running edit is given out and kept, and it
    ends. The lines of its log are JSON, and hold nothing of what was asked for."""
    import httpx

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    history, log = tmp_path / "history", tmp_path / "log"
    with log.open("wb") as stderr:
        server = start(port, "--history", str(history), "--metrics", "--log-format", "json", "--drain", "120",
                       stderr=stderr)  # fmt: skip
    try:
        up = until(f"{url}/healthz", 200, 300)
        assert answers(f"{url}/readyz") in (200, 503)
        until(f"{url}/readyz", 200, 300)
        print(f"page up after {up:.1f} s")
        asking = edit(url, tmp_path)
        server.send_signal(signal.SIGTERM)
        began = time.monotonic()
        until(f"{url}/readyz", 503, 60)
        assert answers(f"{url}/healthz") == 200
        late = httpx.post(f"{url}/gradio_api/call/heat_map", json={"data": []})
        assert late.status_code == 503 and int(late.headers["retry-after"]) > 0
        assert asking.stdout is not None
        steps = int(asking.stdout.readline())
        assert asking.wait(120) == 0
        assert server.wait(240) == 0
        print(f"ended {time.monotonic() - began:.1f} s after the signal")
    finally:
        server.kill()
        server.wait()
    (result,) = kept(history)
    assert result["complete"] and result["steps_done"] == steps > 10
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    said = {line["message"]: line for line in lines}
    assert said["job"]["kind"] == "image" and said["job"]["outcome"] == "done" and said["job"]["seconds"] > 0
    assert said["closing"]["running"] is True and lines[-1]["message"] == "end"
    assert "crown" not in log.read_text("utf-8") and "cat.png" not in log.read_text("utf-8")


def test_29_a_job_that_takes_too_long_is_stopped_and_what_there_is_of_it_is_kept(tmp_path: Path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    history = tmp_path / "history"
    server = start(port, "--history", str(history), "--metrics", "--drain", "16")
    try:
        until(f"{url}/readyz", 200, 300)
        asking = edit(url, tmp_path, steps=10_000)
        server.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert server.wait(240) == 0
        took = time.monotonic() - began
        assert asking.stdout is not None
        steps = int(asking.stdout.readline())
        assert asking.wait(120) == 0
    finally:
        server.kill()
        server.wait()
    (result,) = kept(history)
    assert not result["complete"] and 0 < result["steps_done"] == steps < 10_000
    print(f"ended {took:.1f} s after the signal, allowed were 16")
    assert 5 < took < 5 * 16, "it waited for the job, and did not wait for its 10,000 steps"


def test_29_a_second_signal_ends_it_at_once(tmp_path: Path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = start(port, "--no-history", "--metrics", "--drain", "600")
    try:
        until(f"{url}/readyz", 200, 300)
        asking = edit(url, tmp_path, steps=10_000)
        server.send_signal(signal.SIGTERM)
        until(f"{url}/readyz", 503, 60)
        time.sleep(1)
        assert server.poll() is None, "the first signal waits for the job"
        server.send_signal(signal.SIGTERM)
        assert server.wait(120) == 0
        asking.kill()
        asking.wait()
    finally:
        server.kill()
        server.wait()


def test_30_a_flood_and_a_full_line_in_front_of_gradio(tmp_path: Path):
    """The whole application: too many events, and too many jobs of everybody, get 429 and 503 and a time to come back;
    both are counted."""
    from starlette.testclient import TestClient

    worker = Worker(lambda: cast(Prior, None), waiting=1)  # not started: what is in line stays there
    settings = Settings(events=4, metrics=True, folder=tmp_path / "page")
    client = TestClient(serve.create_app(settings, worker))
    event = {"data": [], "fn_index": 0, "session_hash": "me"}
    join = "/gradio_api/queue/join"
    assert client.post(join, json=event).status_code == 200
    worker.submit("somebody", lambda prior, job: None)
    full = client.post(join, json=event)
    assert full.status_code == 503 and "line is full" in full.json()["detail"] and int(full.headers["retry-after"]) > 0
    codes = [client.post(join, json=event) for _ in range(3)]
    assert [each.status_code for each in codes] == [503, 503, 429] and int(codes[-1].headers["retry-after"]) > 0
    counts = client.get("/metrics").text
    assert 'sdsedit_refused_total{code="429"} 1.0' in counts and 'sdsedit_refused_total{code="503"} 3.0' in counts
    assert "sdsedit_jobs_waiting 1.0" in counts


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--root-path", "studio/"], "--root-path must be a path like /sdsedit, without a slash at its end."),
        (["--framed-by", "https://a.b; script-src *"],
         "--framed-by must be a site like https://huggingface.co, without a path."),
        (["--framed-by", "http://a.b"], "--framed-by must be a site like https://huggingface.co, without a path."),
        (["--lora", "none.safetensors:0.5"], "There is no LoRA file none.safetensors: give a .safetensors file."),
        (["--lora", "x.safetensors:a"], "The scale of a LoRA is a number from -10 to 10; got a."),
        (["--embedding", "x.pt"], "There is no textual inversion file x.pt: give a .safetensors file."),
        (["--drain", "10"], "--drain must be more than 10 seconds."),
    ],
)  # fmt: skip
def test_arguments_are_checked_before_anything_is_loaded(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(serve, "create_app", not_now)
    assert serve.main(arguments) == 2 and capsys.readouterr().err == f"app.py: {sentence}\n"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("SDSEDIT_LOGIN", "me", "SDSEDIT_LOGIN must be name:password."),
        ("SDSEDIT_LOGIN", "me:", "SDSEDIT_LOGIN must be name:password."),
        ("SDSEDIT_LOGIN", ":secret", "SDSEDIT_LOGIN must be name:password."),
        ("SDSEDIT_LOG", "xml", "SDSEDIT_LOG must be text or json."),
    ],
)
def test_the_environment_is_checked_too(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Half a login does not serve a page without one."""
    monkeypatch.setattr(serve, "create_app", not_now)
    monkeypatch.setenv(name, value)
    assert serve.main([]) == 2 and capsys.readouterr().err == f"app.py: {sentence}\n"


def test_the_first_model_is_loaded_as_the_arguments_say_and_recipes_say_so(
    builtin_folder: Path, sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch
    from safetensors.torch import save_file

    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{layer}.lora_A.weight": torch.ones(2, 16), f"{layer}.lora_B.weight": torch.ones(16, 2)},
              tmp_path / "toy.safetensors")  # fmt: skip
    found: list[Settings] = []
    monkeypatch.setattr(serve, "create_app", lambda settings: found.append(settings) or not_now(settings))
    with pytest.raises(AssertionError, match="would be served"):
        serve.main(["--model", str(builtin_folder), "--model", str(sd_folder), "--device", "cpu", "--no-history",
                    "--lora", f"{tmp_path}/toy.safetensors:0.5", "--precision", "bf16", "--tiling"])  # fmt: skip
    (settings,) = found
    first = serve.load(settings, settings.model)
    said = serve.model_record(first)
    assert said["dtype"] == "bfloat16" and said["adapted"] == ["lora toy.safetensors:0.5"]
    assert said["options"]["precision"] == "bf16" and said["options"]["tiling"] is True
    assert str(tmp_path) not in json.dumps(said)
    second = serve.model_record(serve.load(settings, settings.more_models[0]))
    assert second["dtype"] == "float32" and not {"adapted", "options"} & set(second)


def not_now(settings: Any) -> None:
    raise AssertionError("a page would be served")
