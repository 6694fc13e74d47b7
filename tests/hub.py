"""A model hub on this machine: a small server that speaks the hub's protocol for one model, org/tiny."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server shows; a test may change it while it runs."""

    shelf: Path  # the files of org/tiny
    licence: str | None = "mit"
    gated: bool = False
    commit: str = COMMIT
    fetched: list[str] = field(default_factory=list)  # files that were fetched whole


@contextmanager
def served(shelf: Path, monkeypatch: Any) -> Iterator[Hub]:
    """Serve a folder as org/tiny, and point huggingface_hub at it."""
    hub = Hub(shelf)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path, _, query = self.path.partition("?")
            kind, content, status = "application/json", b"{}", 200
            headers = {"X-Repo-Commit": hub.commit, "ETag": '"' + path.replace("/", "-") + '"'}
            files = {
                file.relative_to(shelf).as_posix(): file.stat().st_size for file in shelf.rglob("*") if file.is_file()
            }
            if path.startswith("/api/models/org/tiny/tree/"):
                rows = [{"type": "file", "path": f, "size": s, "oid": "0" * 40} for f, s in files.items()]
                content = json.dumps(rows).encode()
            elif path.startswith("/api/models/org/tiny"):
                with_sizes = "blobs" in query
                siblings = [{"rfilename": f, **({"size": s} if with_sizes else {})} for f, s in files.items()]
                card = {} if hub.licence is None else {"license": hub.licence}
                info = {"id": "org/tiny", "sha": hub.commit, "siblings": siblings, "cardData": card, "tags": []}
                content = json.dumps(info).encode()
            elif path.startswith("/org/tiny/resolve/") and hub.gated:
                status, headers = 403, {**headers, "X-Error-Code": "GatedRepo"}
            elif path.startswith("/org/tiny/resolve/"):
                file = path.split("/", 5)[5]
                kind, content = "application/octet-stream", (shelf / file).read_bytes()
                wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                if wanted:
                    status, content = 206, content[int(wanted[1]) : int(wanted[2]) + 1]
                elif body:
                    hub.fetched.append(file)
            else:
                status, headers = 404, {"X-Error-Code": "RepoNotFound"}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
