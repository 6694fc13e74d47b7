"""`python app.py`: how soon it answers, its health, and how it ends. Real processes and real signals."""

from __future__ import annotations

import http.client
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.web.conftest import ROOT, answers, free_port, start, until

if find_spec("gradio") is None:
    pytest.skip("the page needs gradio: pip install -c constraints.txt -e '.[web]'", allow_module_level=True)

EDIT = """
import sys, time
from gradio_client import Client, handle_file
client = Client(sys.argv[1], verbose=False, download_files=sys.argv[2])
job = client.submit(handle_file(sys.argv[3]), "a cat on grass", "a cat wearing a crown on grass", "", None, "lusd", 1.0,
                    0, api_name="/edit_picture")
while job.status().code.name not in ("PROCESSING", "ITERATING") and not job.done():
    time.sleep(0.05)
print("asked", flush=True)
print(job.result(timeout=100)[1]["result"]["steps_done"], flush=True)
"""


def test_29_sigterm_lets_the_running_job_finish(tmp_path: Path):
    """The intake stops, /readyz says 503 while /healthz still answers, the running edit is given out, and it ends."""
    import httpx

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = start(port)
    try:
        up = until(f"{url}/healthz", 200, 120)
        assert answers(f"{url}/readyz") in (200, 503)
        until(f"{url}/readyz", 200, 180)
        print(f"page up after {up:.1f} s")
        asking = subprocess.Popen(
            [sys.executable, "-c", EDIT, url, str(tmp_path), str(ROOT / "assets/examples/cat.png")],
            stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        assert asking.stdout is not None and asking.stdout.readline() == "asked\n"
        time.sleep(1.5)  # it has begun
        server.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert answers(f"{url}/readyz") == 503 and answers(f"{url}/healthz") == 200
        late = httpx.post(f"{url}/gradio_api/call/heat_map", json={"data": []})
        assert late.status_code == 503 and int(late.headers["retry-after"]) > 0
        assert int(asking.stdout.readline()) > 0
        assert asking.wait(30) == 0
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()


def test_a_second_signal_ends_it_at_once():
    port = free_port()
    server = start(port)
    try:
        until(f"http://127.0.0.1:{port}/healthz", 200, 120)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        assert server.wait(15) is not None
    finally:
        server.kill()
        server.wait()


class Proxy(http.server.BaseHTTPRequestHandler):
    """Shows the page of `upstream` under /studio, as a proxy with one line of settings does."""

    upstream = 0

    def do_GET(self) -> None:
        if not self.path.startswith("/studio/"):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        sent = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "host")}
        host = self.headers["host"]
        sent |= {"host": host, "x-forwarded-host": host, "x-forwarded-proto": "http", "x-forwarded-for": "10.1.2.3"}
        link = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=120)
        link.request(self.command, self.path.removeprefix("/studio"), body or None, sent)
        answer = link.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        self.end_headers()  # HTTP/1.0: the end of the connection is the end of the answer
        while piece := answer.read1(65536):
            self.wfile.write(piece)
            self.wfile.flush()
        link.close()

    do_POST = do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_login_behind_a_proxy_under_a_path(tmp_path: Path):
    """The real client works there with the password; without it nothing does, and guessing is slowed down (30)."""
    import httpx
    from gradio_client import Client, handle_file

    port, outside = free_port(), free_port()
    server = start(port, "--root-path", "/studio", "--no-history", SDSEDIT_LOGIN="me:secret")
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", outside), type("Here", (Proxy,), {"upstream": port}))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{outside}/studio"
    try:
        until(f"http://127.0.0.1:{port}/readyz", 200, 180)
        assert httpx.get(f"{url}/healthz").status_code == 200  # a probe has no password
        for path in ("/config", "/gradio_api/info"):
            assert httpx.get(f"{url}{path}").status_code == 401
        event = {"data": [], "fn_index": 0, "session_hash": "me"}
        assert httpx.post(f"{url}/gradio_api/queue/join", json=event).status_code == 401
        assert httpx.post(f"{url}/gradio_api/upload", files={"files": b"x"}).status_code == 401

        client = Client(url, auth=("me", "secret"), verbose=False, download_files=str(tmp_path))
        cat = handle_file(str(ROOT / "assets/examples/cat.png"))
        assert Path(client.predict(cat, "a cat on grass", "grass", api_name="/heat_map")).stat().st_size > 1000

        guesses = [httpx.post(f"{url}/login", data={"username": "me", "password": f"{k}"}) for k in range(11)]
        assert [each.status_code for each in guesses] == [400] * 10 + [429]
        assert 0 < int(guesses[-1].headers["retry-after"]) <= 60
        assert httpx.post(f"{url}/login", data={"username": "me", "password": "secret"}).status_code == 429
    finally:
        proxy.shutdown()
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["--root-path", "studio/"], "--root-path must be a path like /sdsedit, without a slash at its end.")],
)
def test_arguments_are_checked_before_anything_is_loaded(arguments: list[str], sentence: str):
    done = subprocess.run([sys.executable, "app.py", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == f"app.py: {sentence}\n"


def test_a_login_without_a_password_is_refused():
    done = subprocess.run(
        [sys.executable, "app.py"], cwd=ROOT, env={**os.environ, "SDSEDIT_LOGIN": "me"}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr == "app.py: SDSEDIT_LOGIN must be name:password.\n"
