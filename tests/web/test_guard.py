"""What a request must pass: sizes, addresses, logins, headers. The app behind the guard says what it was given."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from sdsedit.errors import InputRefused
from sdsedit.web.guard import Guard, behind_proxies
from sdsedit.web.settings import HEADERS, Settings, environment


async def behind(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    status = 401 if body == b"wrong" else 200
    await send({"type": "http.response.start", "status": status, "headers": [(b"x-own", b"1")]})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


def ask(
    guard: Guard,
    path: str = "/",
    body: bytes = b"",
    kind: str = "application/json",
    pieces: int = 1,
    told: bool = True,
    more: tuple[bytes, bytes] = (b"x-more", b"1"),
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer; the request's body arrives in `pieces`, its length `told` before."""
    headers = [more, (b"content-type", kind.encode())] + (
        [(b"content-length", str(len(body)).encode())] if told else []
    )
    scope = {
        "type": "http", "method": "POST" if body else "GET", "path": path, "headers": headers, "client": ("1.2.3.4", 5)
    }  # fmt: skip
    size = -(-len(body) // pieces) or 1
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    start = sent[0]
    return start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, sent[1]["body"]


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    return Guard(behind, Settings(max_upload=10_000, max_message=1_000, logins=3, folder=tmp_path))


def test_every_answer_has_the_headers(guard: Guard):
    for status, headers, _ in (ask(guard), ask(guard, "/gradio_api/file=http://a.b/c")):
        assert HEADERS.items() <= headers.items(), status
    policy = HEADERS["content-security-policy"]
    assert "http:" not in policy and "https:" not in policy and "frame-ancestors 'none'" in policy


def test_one_site_may_frame_the_page_if_it_is_named(tmp_path: Path):
    _, headers, _ = ask(Guard(behind, Settings(framed_by="https://huggingface.co", folder=tmp_path)))
    assert "frame-ancestors https://huggingface.co" in headers["content-security-policy"]
    assert "x-frame-options" not in headers and headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("pieces", [1, 7])
def test_1_a_body_over_the_limit(guard: Guard, told: bool, pieces: int):
    upload = "multipart/form-data; boundary=x"
    assert ask(guard, "/gradio_api/upload", b"x" * 9_000, upload, pieces, told)[::2] == (200, b"9000")
    status, _, said = ask(guard, "/gradio_api/upload", b"x" * 80_000, upload, pieces, told)
    assert status == 413 and "larger than the limit" in json.loads(said)["error"]
    assert ask(guard, "/gradio_api/queue/join", b"x" * 2_000, pieces=pieces, told=told)[0] == 413


@pytest.mark.parametrize(
    "address", ["http://10.0.0.1/a.png", "HTTPS://a.b/c", "file:///etc/passwd", "data:,x", "ftp://a/b"]
)
def test_20_an_address_where_a_file_is_expected(guard: Guard, address: str):
    for body in ({"data": [{"path": address, "meta": {}}]}, {"data": [{"background": {"path": address}}]}):
        status, _, said = ask(guard, "/gradio_api/queue/join", json.dumps(body).encode())
        assert status == 422 and "never fetched" in json.loads(said)["error"]
    assert ask(guard, f"/gradio_api/file={address}")[0] == 422
    assert ask(guard, f"/gradio_api/proxy={address}")[0] == 422


def test_a_file_of_ones_own_passes(guard: Guard, tmp_path: Path):
    own = f"{tmp_path}/abc/cat.png"
    data = [{"path": own, "url": f"http://127.0.0.1:7860/gradio_api/file={own}"}, "http://a text", {"path": None}]
    assert ask(guard, "/gradio_api/queue/join", json.dumps({"data": data}).encode())[0] == 200
    assert ask(guard, f"/gradio_api/file={own}")[0] == 200


def test_a_file_of_the_machine_is_refused(guard: Guard, tmp_path: Path):
    """Gradio would take it: mounted, it does not check what an upload is."""
    (tmp_path / "link").symlink_to("/etc")
    for path in (
        "/etc/passwd",
        f"{tmp_path}/../x",
        "README.md",
        f"{tmp_path}/link/passwd",
        "\0",
        f"{tmp_path}-other/x",
    ):
        body = {"data": [[{"layers": [{"path": path}]}]]}
        status, _, said = ask(guard, "/gradio_api/queue/join", json.dumps(body).encode())
        assert status == 422 and "uploaded here" in json.loads(said)["error"], path


def test_failed_logins_are_counted(guard: Guard):
    now = [0.0]
    guard.clock = lambda: now[0]
    form = "application/x-www-form-urlencoded"
    assert [ask(guard, "/login", b"wrong", form)[0] for _ in range(4)] == [401, 401, 401, 429]
    assert ask(guard, "/login", b"right", form)[1]["retry-after"] == "60"
    now[0] = 61
    assert ask(guard, "/login", b"right", form)[0] == 200


def test_30_a_flood_and_a_full_line(guard: Guard, tmp_path: Path):
    now = [0.0]
    settings = Settings(events=3, folder=tmp_path)
    full: list[InputRefused | None] = [None]
    asked: list[str] = []

    def crowded(person: str) -> InputRefused | None:
        asked.append(person)
        return full[0]

    guard = Guard(behind, settings, crowded, lambda: now[0])
    event = json.dumps({"data": [], "session_hash": "me"}).encode()
    join = "/gradio_api/queue/join"
    assert [ask(guard, join, event)[0] for _ in range(4)] == [200, 200, 200, 429]
    status, headers, said = ask(guard, "/gradio_api/call/heat_map", event)
    assert status == 429 and headers["retry-after"] == "60" and "too much at once" in json.loads(said)["error"]
    assert ask(guard, "/gradio_api/run/predict", event)[0] == 200  # "Stop" always goes through
    now[0] = 61
    assert ask(guard, join, event)[0] == 200 and asked[-1] == "me"
    full[0] = InputRefused("The line is full; try again in a minute.", status=503)
    status, headers, said = ask(guard, join, event)
    assert status == 503 and headers["retry-after"] == "10" and "line is full" in json.loads(said)["error"]


def test_the_tools_ask_for_the_name_and_password(tmp_path: Path):
    guard = Guard(behind, Settings(mcp=True, login=("me", "secret"), logins=2, folder=tmp_path))
    assert ask(guard, "/mcp", b"{}")[0] == 401
    right = (b"authorization", b"Basic " + base64.b64encode(b"me:secret"))
    assert ask(guard, "/mcp", b"{}", more=right)[0] == 200
    assert ask(guard, "/mcp", b"{}", more=(b"authorization", b"Basic eA=="))[0] == 401
    assert ask(guard, "/mcp", b"{}", more=right)[0] == 429  # guessing, from this address


def test_the_environment_keeps_gradio_quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    for name in (
        "GRADIO_ANALYTICS_ENABLED",
        "HF_HUB_OFFLINE",
        "HF_HUB_DISABLE_TELEMETRY",
        "GRADIO_TEMP_DIR",
        "GRADIO_MCP_SERVER",
    ):
        monkeypatch.setenv(name, "x")  # so that it is put back
    environment(Settings(folder=tmp_path))
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)


def test_the_counts_ask_for_the_name_and_password(tmp_path: Path):
    guard = Guard(behind, Settings(metrics=True, login=("me", "secret"), logins=2, folder=tmp_path))
    assert ask(guard, "/metrics")[0] == 401
    right = (b"authorization", b"Basic " + base64.b64encode(b"me:secret"))
    assert ask(guard, "/metrics", more=right)[0] == 200 and ask(guard, "/metrics", more=right)[0] == 200
    assert ask(guard, "/metrics", more=(b"authorization", b"Basic eA=="))[0] == 401
    assert ask(guard, "/metrics", more=right)[0] == 429  # guessing, from this address


def test_refusals_are_counted_and_what_probes_are_told_is_not(tmp_path: Path):
    counted: list[int] = []

    async def closing(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(closing, Settings(max_message=10, folder=tmp_path), refused=counted.append)
    for path in ("/readyz", "/gradio_api/info", "/file=http://a.b/c"):
        ask(guard, path)
    ask(guard, "/gradio_api/queue/join", b"x" * 100)
    assert counted == [503, 422, 413]


@pytest.mark.parametrize(
    ("peer", "trusted", "client", "scheme"),
    [
        ("127.0.0.1", "127.0.0.1", "8.8.8.8", "https"),
        ("172.17.0.1", "127.0.0.1,172.16.0.0/12", "8.8.8.8", "https"),
        ("10.0.0.9", "127.0.0.1,172.16.0.0/12", "10.0.0.9", "http"),
        ("10.0.0.9", "*", "1.1.1.1", "https"),
    ],
)
def test_only_a_trusted_proxy_says_for_whom_it_asks(peer: str, trusted: str, client: str, scheme: str):
    """The client wrote "1.1.1.1" itself; the proxy added whom it really heard it from."""
    pytest.importorskip("uvicorn", reason="the page needs its extra: pip install -c constraints.txt -e '.[web]'")
    seen: list[MutableMapping[str, Any]] = []

    async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        seen.append(scope)

    told = {
        b"x-forwarded-for": b"1.1.1.1, 8.8.8.8",
        b"x-forwarded-proto": b"https",
        b"x-forwarded-host": b"evil.example",
    }
    headers = [*told.items(), (b"forwarded", b"host=evil.example"), (b"host", b"127.0.0.1:7860")]
    scope = {"type": "http", "scheme": "http", "client": (peer, 5), "headers": headers}
    asyncio.run(behind_proxies(app, trusted)(scope, None, None))  # pyright: ignore[reportArgumentType]
    (got,) = seen
    assert (got["client"][0], got["scheme"]) == (client, scheme)
    assert (b"x-forwarded-host" in dict(got["headers"])) == (client != peer)
    assert dict(got["headers"])[b"host"] == b"127.0.0.1:7860"
