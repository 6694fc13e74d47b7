"""The page behind a proxy: one of a few lines, and real ones with the files of docs/deploy.md, TLS and a sub-path.

One page, with a login, serves all of them. Every address of 127.0.0.0/8 is this machine, so that clients can have
addresses of their own.
"""

from __future__ import annotations

import base64
import http.client
import http.server
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.web.conftest import ROOT, free_port, start, until

if find_spec("gradio") is None:
    pytest.skip("the page needs gradio: pip install -c constraints.txt -e '.[web]'", allow_module_level=True)

import httpx

CAT = str(ROOT / "assets/examples/cat.png")
LOGIN = "me", "a-secret-9"


class Plain(http.server.BaseHTTPRequestHandler):
    """Shows the page of `upstream` under /sdsedit, as a proxy with one line of settings does."""

    upstream = 0

    def do_GET(self) -> None:
        if not self.path.startswith("/sdsedit/"):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        dropped = ("connection", "host", "x-forwarded-for")
        sent = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        host = self.headers["host"]
        who = self.client_address[0]
        sent |= {"host": host, "x-forwarded-host": host, "x-forwarded-proto": "http", "x-forwarded-for": who}
        link = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=120)
        link.request(self.command, self.path.removeprefix("/sdsedit"), body or None, sent)
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


@contextmanager
def plain(folder: Path, port: int, upstream: int) -> Iterator[str]:
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", port), type("Here", (Plain,), {"upstream": upstream}))
    proxy.handle_error = lambda request, client_address: None  # streams that are open at the end
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{port}/sdsedit"
    finally:
        proxy.shutdown()


def published(language: str) -> str:
    """The file for this proxy in docs/deploy.md."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs/deploy.md").read_text("utf-8"), re.M | re.S)
    return found


def certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "localhost.pem", folder / "localhost.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-out", certificate, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    return certificate, key


@contextmanager
def running(command: list[str | Path], folder: Path, url: str) -> Iterator[str]:
    log = (folder / "log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env={
        "HOME": str(folder), "PATH": "/usr/bin:/bin", "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder),
    })  # fmt: skip
    try:
        for _ in range(600):
            try:
                httpx.get(f"{url}/healthz", verify=False)
                break
            except httpx.TransportError:
                assert server.poll() is None, (folder / "log").read_text()
                threading.Event().wait(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(20)


@contextmanager
def nginx(folder: Path, port: int, upstream: int) -> Iterator[str]:
    there, key = certificate(folder)
    site = (
        published("nginx").replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
        .replace("edits.example.org;", "localhost;").replace("127.0.0.1:7860", f"127.0.0.1:{upstream}")
        .replace("/etc/ssl/edits.example.org.pem", str(there)).replace("/etc/ssl/edits.example.org.key", str(key))
    )  # fmt: skip
    kept = "".join(
        f"{each}_temp_path {folder}/{each};\n" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr warn;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{kept}{site}}}\n"
    )  # fmt: skip
    binary = str(shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"))
    # As root its workers would be another user, who cannot read a test's folder.
    user = ["-g", "user root;"] if Path("/proc/self").exists() and Path("/proc/self").stat().st_uid == 0 else []
    with running(
        [binary, "-c", folder / "nginx.conf", "-p", folder, *user], folder, f"https://localhost:{port}/sdsedit"
    ):
        yield f"https://localhost:{port}/sdsedit"


@contextmanager
def caddy(folder: Path, port: int, upstream: int) -> Iterator[str]:
    there, key = certificate(folder)
    site = published("caddyfile").replace("127.0.0.1:7860", f"127.0.0.1:{upstream}")
    site = site.replace("edits.example.org {", f"https://localhost:{port} {{\n\tbind 127.0.0.1\n\ttls {there} {key}")
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tgrace_period 1s\n\tauto_https disable_redirects\n}\n" + site)
    command: list[str | Path] = ["caddy", "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile"]
    with running(command, folder, f"https://localhost:{port}/sdsedit"):
        yield f"https://localhost:{port}/sdsedit"


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the page itself, as it is started behind a proxy."""
    port = free_port()
    folder = tmp_path_factory.mktemp("page")
    options = ["--root-path", "/sdsedit", "--no-history", "--metrics", "--log-format", "json"]
    server = start(port, *options, SDSEDIT_LOGIN=":".join(LOGIN), TMPDIR=str(folder))
    try:
        until(f"http://127.0.0.1:{port}/readyz", 200, 300)
        yield port
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=[plain, nginx, caddy], ids=lambda proxy: proxy.__name__)
def outside(request: pytest.FixtureRequest, upstream: int, tmp_path: Path) -> Iterator[str]:
    """The address under which a proxy shows the page."""
    name = request.param.__name__
    if name != "plain":
        if shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") is None:
            pytest.skip(f"{name} is not here; its package has that name")
        if shutil.which("openssl") is None:
            pytest.skip("a certificate takes openssl, which is not here")
    with request.param(tmp_path, free_port(), upstream) as url:
        yield url


def asking(tmp_path: Path, who: str = "127.0.0.1") -> httpx.Client:
    """A client on an address of its own, which takes no certificate but the proxy's."""
    there = tmp_path / "localhost.pem"
    verify = ssl.create_default_context(cafile=str(there)) if there.exists() else True
    return httpx.Client(transport=httpx.HTTPTransport(verify=verify, local_address=who), timeout=60)


def test_the_page_behind_a_proxy(outside: str, tmp_path: Path):
    """Under a path, with TLS and a login; without the login nothing answers but what a probe asks."""
    from gradio_client import Client, handle_file

    client = asking(tmp_path)
    assert client.get(f"{outside}/healthz").status_code == 200
    assert client.get(f"{outside}/readyz").status_code == 200
    for path in ("/config", "/gradio_api/info"):
        assert client.get(f"{outside}{path}").status_code == 401, path
    assert client.get(f"{outside}/metrics").status_code == (401 if outside.startswith("http:") else 404)
    event = {"data": [], "fn_index": 0, "session_hash": "me"}
    assert client.post(f"{outside}/gradio_api/queue/join", json=event).status_code == 401
    assert client.post(f"{outside}/gradio_api/upload", files={"files": b"x"}).status_code == 401

    inside = Client(outside, auth=LOGIN, verbose=False, download_files=str(tmp_path), ssl_verify=False)
    assert inside.config["root"] == outside, "the browser asks where the proxy is"
    made = inside.predict(handle_file(CAT), "a cat on grass", "grass", api_name="/heat_map")
    assert Path(made).stat().st_size > 1000
    if outside.startswith("https:"):
        assert "max-age" in client.get(f"{outside}/healthz").headers["strict-transport-security"]
        assert client.get(outside).headers["location"].endswith("/sdsedit/")
        big = client.post(f"{outside}/gradio_api/upload", files={"files": bytes(35 * 2**20)})
        assert big.status_code == 413


def test_30_guessing_from_one_address_is_slowed_down_whatever_it_claims(outside: str, tmp_path: Path, request):
    """The proxy says whom it hears. What a client says of itself changes nothing, and nobody else is shut out."""
    who = {"plain": "127.0.1.1", "nginx": "127.0.1.2", "caddy": "127.0.1.3"}[request.node.callspec.id]
    client = asking(tmp_path, who)

    def guess(password: str, claimed: int) -> httpx.Response:
        said = {"x-forwarded-for": f"10.9.8.{claimed}", "x-real-ip": f"10.9.8.{claimed}"}
        return client.post(f"{outside}/login", data={"username": "me", "password": password}, headers=said)

    guesses = [guess(f"{k}", k) for k in range(11)]
    assert [each.status_code for each in guesses] == [400] * 10 + [429]
    assert 0 < int(guesses[-1].headers["retry-after"]) <= 60
    assert guess(LOGIN[1], 99).status_code == 429, "the right one, too late"
    other = asking(tmp_path, "127.0.2.1")
    assert other.post(f"{outside}/login", data={"username": "me", "password": LOGIN[1]}).status_code == 200


def test_who_is_no_trusted_proxy_speaks_for_itself_alone(upstream: int, tmp_path: Path):
    """Straight to the page, from an address that is not 127.0.0.1: claims of another host and address are not heard."""
    client = asking(tmp_path, "127.0.3.1")
    url = f"http://127.0.0.1:{upstream}"
    claims = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https"}
    page = client.get(f"{url}/", headers=claims)
    assert page.status_code in (200, 401) and "evil.example" not in page.text
    for k in range(10):
        data = {"username": "me", "password": "x"}
        assert client.post(f"{url}/login", data=data, headers={"x-forwarded-for": f"10.0.0.{k}"}).status_code == 400
    assert client.post(f"{url}/login", data=data, headers={"x-forwarded-for": "10.0.0.99"}).status_code == 429


def test_the_counts_are_for_who_has_the_login(upstream: int, tmp_path: Path):
    url = f"http://127.0.0.1:{upstream}/metrics"
    client = asking(tmp_path, "127.0.4.1")
    assert client.get(url).status_code == 401
    assert client.get(url, auth=("me", "wrong")).status_code == 401
    answer = client.get(url, auth=LOGIN)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'sdsedit_model_loaded{model="built-in model"} 1.0' in answer.text
    assert re.search(r'^sdsedit_refused_total\{code="401"\} [1-9]', answer.text, re.M)
    assert LOGIN[1] not in answer.text and "127.0.4.1" not in answer.text
    header = {"authorization": "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()}
    assert client.get(f"{url}/", headers=header, follow_redirects=False).status_code != 200


def test_in_a_browser_behind_nginx(upstream: int, tmp_path: Path):
    """Logging in, and the page as it is under the path: nothing that it asks for is missing."""
    browser_path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    nginx_path = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if find_spec("playwright") is None or not browser_path or not nginx_path or not shutil.which("openssl"):
        pytest.skip("this takes playwright, Chromium, nginx and openssl")
    from playwright.sync_api import expect, sync_playwright

    with nginx(tmp_path, free_port(), upstream) as outside, sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
        flags += ["--disable-component-update", "--disable-sync", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=browser_path, args=flags)
        page = browser.new_page(ignore_https_errors=True)
        wrong: list[str] = []
        page.on(
            "response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
        )
        page.on("requestfailed", lambda asked: wrong.append(f"{asked.failure} {asked.url}"))
        page.goto(f"{outside}/")
        page.get_by_label("username").fill(LOGIN[0])
        page.get_by_label("password").fill(LOGIN[1])
        before_login = [each for each in wrong if not each.startswith("401")]
        page.get_by_role("button", name="Login").click()
        expect(page.locator("#head [role=status]")).to_have_class("ready", timeout=120_000)
        expect(page.get_by_role("tab", name="Sketch")).to_be_visible(timeout=60_000)
        page.screenshot(path=tmp_path / "behind.png")
        browser.close()
        # the page loads itself anew as soon as the login is right, and leaves what it asked for before
        own = ("401", "net::ERR_ABORTED")
        assert not before_login and not [each for each in wrong if not each.startswith(own)], wrong
