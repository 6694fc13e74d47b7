"""Every limit and every security setting of the page, in one place.

What Gradio leaves open by default is closed here: no analytics, no outbound call, an upload limit, no folder that is
served, headers that keep the page to itself, and bounded queues.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from sdsedit.errors import printable
from sdsedit.licences import default_history as default_history  # where the page keeps things
from sdsedit.model_options import ModelOptions


@dataclass(frozen=True)
class Settings:
    """How a page is served."""

    host: str = "127.0.0.1"  # this machine only
    port: int = 7860
    model: str = "builtin"  # or a diffusers folder, or the id of a model that is in the local cache
    more_models: tuple[str, ...] = ()  # others that may be chosen; one of them is in memory at a time
    loading: ModelOptions = field(default_factory=ModelOptions)  # of `model`; the others are loaded as usual
    device: str | None = None  # None: a GPU if there is one
    login: tuple[str, str] | None = None  # (name, password); None: whoever reaches the port may use the page
    max_upload: int = 32 * 2**20  # bytes of one file
    max_message: int = 2**20  # bytes of one request that is no file
    max_pixels: int = 16_000_000  # of a picture; several copies of it are held while it is edited
    waiting: int = 64  # jobs in line for the model, of everybody
    waiting_each: int = 8  # jobs in line of one person
    events: int = 900  # from one address within a minute; dragging a slider is some of them a second
    logins: int = 10  # failed ones from one address within a minute
    idle: float = 3600.0  # seconds after which what a silent person made is forgotten
    sessions: int = 200  # people remembered at a time; the one silent longest goes first
    root_path: str = ""  # where a proxy shows the page, if not at the root: "/sdsedit"
    framed_by: str = ""  # a site that may show the page in a frame of its own: "https://huggingface.co"
    mcp: bool = False  # tools for language models at /mcp
    metrics: bool = False  # counts for Prometheus at /metrics
    drain: int = 30  # seconds from SIGTERM to the end; a job that runs has these but the last `keeping`
    keeping: int = 10  # seconds for a job that was stopped to reach its next step, and for what there is to be kept
    history: Path | None = None  # folder of finished results, kept when the page ends; None: nothing is kept
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="sdsedit-page-")))  # uploads and results


# Gradio's page needs inline scripts and `eval` (its components compile their templates); all of it comes from here.
CONTENT_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
}


def headers(settings: Settings) -> dict[str, str]:
    """The headers of every answer: HEADERS, but for the site that may frame the page."""
    if not settings.framed_by:
        return HEADERS
    policy = CONTENT_POLICY.replace("frame-ancestors 'none'", f"frame-ancestors {settings.framed_by}")
    # X-Frame-Options cannot name a site.
    kept = {name: value for name, value in HEADERS.items() if name != "x-frame-options"}
    return kept | {"content-security-policy": policy}


def shown_name(spec: str) -> str:
    """What a person reads for a model: no folders."""
    return "built-in model" if spec == "builtin" else printable(Path(spec).name if Path(spec).is_dir() else spec, 60)


def environment(settings: Settings) -> None:
    """What Gradio and the hub's client read from the environment when they are imported, so before that."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"  # the page never downloads a model
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(settings.folder)
    os.environ["GRADIO_MCP_SERVER"] = "False"
    os.environ.pop("GRADIO_SHARE", None)


def mounting(settings: Settings) -> dict[str, object]:
    """Arguments for `gradio.mount_gradio_app`."""
    return {
        "server_name": settings.host,
        "server_port": settings.port,
        "auth": settings.login,
        "root_path": settings.root_path or None,
        "allowed_paths": [],
        "max_file_size": settings.max_upload,
        "show_error": False,  # refusals are shown all the same; what went wrong inside is nobody's business
        "run_history": False,
        "enable_monitoring": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "footer_links": [],
    }
