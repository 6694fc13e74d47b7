"""What every request must pass before Gradio sees it, whom it comes from, and the headers of every answer.

Gradio fetches an address that stands where a file is expected, and passes on what `/file=http://...` names; and when it
is mounted in another application it takes any file of the machine for an upload (it checks only what `launch()`
started). Here none of it happens: a file that a request names was uploaded here, or made here.
"""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sdsedit.errors import InputRefused
from sdsedit.io.images import is_address
from sdsedit.web.settings import Settings, headers

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_FETCHED = "Addresses are never fetched: save the file first, then give the file."
_FOREIGN = "Only a file that was uploaded here can be used."
_QUEUED = ("/queue/join", "/call/")  # where events that may wait come in; "Stop" does not
_RETRY = 10  # seconds, for who hears that the line is full
_MOST_WASTE = 8  # times the limit that is read and thrown away, so that the sender hears why


class Guard:
    """ASGI middleware: size limits, no addresses, limits on failed logins and on events, and the headers.

    crowded: why a job of this person would be refused just now, if it would be. refused: told the status of every
    answer that is a refusal.
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        crowded: Callable[[str], InputRefused | None] = lambda person: None,
        clock: Callable[[], float] = time.monotonic,
        refused: Callable[[int], None] = lambda status: None,
    ) -> None:
        self.app, self.settings, self.crowded, self.clock, self.refused = app, settings, crowded, clock, refused
        self.headers = [(name.encode(), value.encode()) for name, value in headers(settings).items()]
        self._events: dict[str, deque[float]] = {}  # address -> times of its newest events
        self._failed: dict[str, deque[float]] = {}  # address -> times of failed logins

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        path = unquote(scope["path"])

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400 and path != "/readyz":  # what a probe is told is no refusal
                    self.refused(message["status"])
                given = {name.lower() for name, _ in message.get("headers", ())}
                more = list(self.headers)
                if message["status"] in (429, 503):
                    more.append((b"retry-after", str(_RETRY).encode()))
                message = {**message, "headers": [*message["headers"], *(h for h in more if h[0] not in given)]}
            await send(message)

        if _names_an_address(path):
            return await _refuse(with_headers, 422, _FETCHED)
        who = (scope.get("client") or ("", 0))[0]
        if path.endswith("/login") and (wait := self._locked_out(who)):
            return await _refuse(with_headers, 429, "Too many failed logins; try again in a minute.", wait)
        tools = self.settings.mcp and path == "/mcp"
        programs = tools or (self.settings.metrics and path == "/metrics")
        if programs and self.settings.login is not None:
            if wait := self._locked_out(who):
                return await _refuse(with_headers, 429, "Too many failed logins; try again in a minute.", wait)
            if not _basic(scope, self.settings.login):
                self._failed.setdefault(who, deque(maxlen=self.settings.logins)).append(self.clock())
                return await _refuse(with_headers, 401, "This needs the page's name and password (HTTP Basic).")
        if scope["method"] in ("POST", "PUT", "PATCH"):
            upload = _header(scope, b"content-type").startswith(b"multipart/")
            limit = self.settings.max_upload + 2**16 if upload else self.settings.max_message
            if tools:
                limit += 3 * self.settings.max_upload  # a picture and a mask as base64
            body = await _read(receive, limit, _header(scope, b"content-length"))
            if body is None:
                what = f"The file is larger than the limit of {self.settings.max_upload / 2**20:g} MiB."
                return await _refuse(with_headers, 413, what if upload else "The request is too large.")
            if not upload and (sentence := self._wrong_file(body)):
                return await _refuse(with_headers, 422, sentence)
            if any(part in path for part in _QUEUED):
                if wait := self._too_fast(who):
                    return await _refuse(with_headers, 429, "That was too much at once; try again in a moment.", wait)
                if (refused := self.crowded(_person(body))) is not None:
                    return await _refuse(with_headers, refused.status, str(refused), _RETRY)
            receive = _again(body, receive)
        if not path.endswith("/login"):
            return await self.app(scope, receive, with_headers)

        async def watching(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._failed.setdefault(who, deque(maxlen=self.settings.logins)).append(self.clock())
            await with_headers(message)

        await self.app(scope, receive, watching)

    def _wrong_file(self, body: bytes) -> str:
        """Why a file that the JSON of a request names cannot be used; "" if all can, or there is none."""
        try:
            waiting = [json.loads(body)]
        except (ValueError, RecursionError):
            return ""  # it is for the app to refuse what is no JSON
        folder = self.settings.folder.resolve()
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                path = value.get("path")
                if isinstance(path, str) and is_address(path):
                    return _FETCHED
                try:
                    if isinstance(path, str) and path and not Path(path).resolve().is_relative_to(folder):
                        return _FOREIGN
                except (OSError, ValueError, RuntimeError):  # a null character, a loop of links
                    return _FOREIGN
                waiting.extend(value.values())
            elif isinstance(value, list):
                waiting.extend(value)
        return ""

    def _too_fast(self, who: str) -> int:
        """Seconds until this address may send a further event."""
        now = self.clock()
        for address in [each for each, times in self._events.items() if now - times[-1] > 60]:
            del self._events[address]
        times = self._events.setdefault(who, deque(maxlen=self.settings.events))
        if len(times) == self.settings.events and now - times[0] < 60:
            return max(1, round(60 - (now - times[0])))
        times.append(now)
        return 0

    def _locked_out(self, who: str) -> int:
        """Seconds until this address may try to log in again."""
        times = self._failed.get(who, deque())
        while times and self.clock() - times[0] > 60:
            times.popleft()
        if not times:
            self._failed.pop(who, None)
        return max(1, round(60 - (self.clock() - times[0]))) if len(times) >= self.settings.logins else 0


def behind_proxies(app: App, trusted: str) -> App:
    """`app` behind proxies: what X-Forwarded-* say of who asks, and under which address, counts if it comes from one of
    `trusted` (addresses and networks between commas, "*" for all), and is taken out otherwise."""
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    believing = ProxyHeadersMiddleware(app, trusted)  # pyright: ignore[reportArgumentType]

    async def answer(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (scope.get("client") or ("",))[0] not in believing.trusted_hosts:
            # Gradio believes the forwarded host of anybody, and builds addresses of it.
            named = (b"forwarded", b"x-real-ip")
            own = [
                each for each in scope["headers"] if not each[0].startswith(b"x-forwarded-") and each[0] not in named
            ]
            scope = {**scope, "headers": own}
        await believing(scope, receive, send)  # pyright: ignore[reportArgumentType]

    return answer


def _basic(scope: MutableMapping[str, Any], login: tuple[str, str]) -> bool:
    """Whether a request brings this name and password."""
    wanted = b"Basic " + base64.b64encode(":".join(login).encode())
    return secrets.compare_digest(_header(scope, b"authorization"), wanted)


def _person(body: bytes) -> str:
    """The session that an event belongs to."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return str(said.get("session_hash") or "") if isinstance(said, dict) else ""


def _header(scope: MutableMapping[str, Any], name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


async def _read(receive: Receive, limit: int, length: bytes) -> bytes | None:
    """The whole body, or None if it is larger than `limit`; then it is read to its end and thrown away."""
    parts: list[bytes] = []
    size = 0
    too_large = length.isdigit() and int(length) > limit
    while True:
        message = await receive()
        chunk = message.get("body", b"")
        size += len(chunk)
        too_large = too_large or size > limit
        if too_large:
            parts.clear()
        else:
            parts.append(chunk)
        if not message.get("more_body") or message["type"] == "http.disconnect" or size > _MOST_WASTE * limit:
            return None if too_large else b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` for an app that has yet to read the body."""
    told = False

    async def give() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give


def _names_an_address(path: str) -> bool:
    for start in ("/file=", "/proxy=", "/stream/"):
        _, found, rest = path.partition(start)
        if found and (start == "/proxy=" or is_address(rest.lstrip("/"))):
            return True
    return False


async def _refuse(send: Send, status: int, sentence: str, retry: int = 0) -> None:
    headers = [(b"content-type", b"application/json")]
    if retry:
        headers.append((b"retry-after", str(retry).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    # Gradio's page looks for "detail", its client for "error"; of a 422 the client reads the details as a list.
    listed = [{"__type__": "validate", "is_valid": False, "parameter_name": "file", "message": sentence}]
    said = {"detail": listed if status == 422 else sentence, "error": sentence}
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})
