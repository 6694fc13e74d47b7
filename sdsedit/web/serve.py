"""The application: the page, /healthz, /readyz and /metrics, its start, and an end that lets a running job finish.

    python app.py [--host 127.0.0.1] [--port 7860] [--model builtin] [--device cpu] [--history DIR | --no-history]
                  [--lora FILE:SCALE] [--embedding FILE] [--precision bf16] [--offload] [--tiling] ...
                  [--root-path /sdsedit] [--framed-by https://SITE] [--mcp] [--metrics] [--drain 30]
                  [--log-format text|json] [--verbose]

SDSEDIT_LOGIN="name:password" in the environment asks for them.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdsedit._version import __version__
from sdsedit.cli_shared import add_option_arguments, check_files, options_of
from sdsedit.errors import INTERNAL, OK, USAGE, InputRefused
from sdsedit.model_options import ModelOptions
from sdsedit.prior.base import Prior
from sdsedit.web import logs
from sdsedit.web.guard import Guard, behind_proxies
from sdsedit.web.history import History
from sdsedit.web.metrics import CONTENT_TYPE, Metrics
from sdsedit.web.settings import Settings, default_history, environment, mounting, shown_name
from sdsedit.web.worker import Job, Worker

if TYPE_CHECKING:
    from fastapi import FastAPI

    from sdsedit.web.image_tab import ImageTab

_HERE = Path(__file__).parent
_STATUS = {
    "loading": "The model is loading. You can choose a picture and write meanwhile.",
    "closing": "The page is closing.",
}


def create_app(settings: Settings, worker: Worker | None = None) -> FastAPI:
    """The application. `worker` is for tests; without one the settings' model is loaded when the application starts."""
    environment(settings)
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, Response

    from sdsedit.web import events

    metrics = Metrics()
    events.refused = metrics.refused

    def over(job: Job) -> None:
        metrics.job(job)
        logs.event("job", kind=job.kind, outcome=job.outcome, waited=round(job.waited, 3), seconds=round(job.worked, 3))

    if worker is None:
        more = {spec: partial(load, settings, spec) for spec in settings.more_models}
        worker = Worker(partial(load, settings, settings.model), settings.waiting, settings.waiting_each, more, over)
    settings.folder.mkdir(parents=True, exist_ok=True)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker.start()
        async with mcp.session_manager.run() if mcp is not None else contextlib.nullcontext():
            yield
        worker.close(0)  # whoever runs the server has waited for the running job by now
        shutil.rmtree(settings.folder, ignore_errors=True)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.worker = worker

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get("/readyz")
    def readyz() -> JSONResponse:
        """200 once the model is there, 503 before and while the page is closing."""
        state = worker.state
        return JSONResponse({"status": state}, 200 if state == "ready" else 503)

    if settings.metrics:

        @app.get("/metrics")
        def counts() -> Response:
            return Response(metrics.text(worker, settings), media_type=CONTENT_TYPE)

    page, image = build_page(settings, worker)
    mcp = None
    if settings.mcp:
        from sdsedit.web.mcp_tools import PATH, tools

        mcp = tools(image, settings)
        app.router.routes.extend(mcp.streamable_http_app(streamable_http_path=PATH, host=settings.host).routes)
    page.queue(max_size=4 * settings.waiting, default_concurrency_limit=8, api_open=True)
    theme = gr.themes.Default(
        primary_hue="orange", neutral_hue="stone", radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"],
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
    )  # fmt: skip
    css = "\n".join((_HERE / name).read_text("utf-8") for name in ("page.css", "tabs.css"))
    gr.mount_gradio_app(app, page, "/", theme=theme, css=css, **mounting(settings))  # pyright: ignore[reportArgumentType]
    page.has_launched = True  # mounted, not launched: without this Gradio takes any file of the machine for an upload
    app.add_middleware(
        Guard, settings=settings, crowded=worker.crowded, refused=metrics.refused  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return app


def build_page(settings: Settings, worker: Worker) -> tuple[Any, ImageTab]:
    """The page's widgets, a tab a file; and the Image tab, whose functions are tools too."""
    import gradio as gr

    from sdsedit.web.events import handler
    from sdsedit.web.history_tab import HistoryTab
    from sdsedit.web.image_tab import ImageTab
    from sdsedit.web.models_tab import ModelsTab
    from sdsedit.web.sketch_tab import SketchTab
    from sdsedit.web.splat_tab import SplatTab
    from sdsedit.web.style_tab import StyleTab

    def model(prior: Prior) -> dict[str, Any]:
        return model_record(prior)

    history = None
    if settings.history is not None:
        try:
            history = History(settings.history)
        except InputRefused as error:
            logging.getLogger("sdsedit.web").warning("%s Results are not kept.", error)
    with gr.Blocks(title="sdsedit", analytics_enabled=False, delete_cache=(600, 7200)) as page:
        head = gr.HTML(_head(worker, settings), elem_id="head")
        with gr.Tabs(selected="image", elem_id="tabs") as tabs:
            with gr.Tab("Image", id="image", elem_id="tab-image"):
                image = ImageTab(worker, settings, model, history)
            with gr.Tab("Sketch", id="sketch", elem_id="tab-sketch"):
                sketch = SketchTab(worker, settings, model, history)
            with gr.Tab("Splats", id="splats", elem_id="tab-splats"):
                splats = SplatTab(worker, settings, model, history)
            with gr.Tab("Style", id="style", elem_id="tab-style"):
                style = StyleTab(worker, settings, model, history)
                style.send_to(image, tabs)
            if history is not None:
                with gr.Tab("History", id="history", elem_id="tab-history") as tab:
                    HistoryTab(settings, history, tab, tabs, image, sketch, splats, style)
            with gr.Tab("Models", id="models", elem_id="tab-models") as tab:
                ModelsTab(worker, settings, tab)
        timer = gr.Timer(1.0)

        def look() -> tuple[Any, Any]:
            return _head(worker, settings), gr.Timer(active=worker.state == "loading")

        timer.tick(look, None, [head, timer], show_progress="hidden", api_visibility="private")

        def leave(person: str) -> None:
            for each in (image, sketch, splats, style):
                each.leave(person)

        page.unload(handler(leave))
    return page, image


def _head(worker: Worker, settings: Settings) -> str:
    import html

    state = worker.state
    name = shown_name(settings.model)
    ready = state == "ready"
    line = f"Ready: {name}" if ready else _STATUS.get(state, state)
    return (
        "<header><div><h1>sdsedit</h1><p>Say what should be in the picture. The rest of it stays.</p></div>"
        f'<p role="status" class="{"ready" if ready else "busy"}">{html.escape(line)}</p></header>'
    )


_specs: dict[str, str] = {}  # name of a loaded model -> what it was asked for as
_revisions: dict[str, str | None] = {}  # the latter -> revision: reading it hashes the weights


def load(settings: Settings, spec: str) -> Prior:
    """A model, without chatter."""
    import diffusers
    import transformers

    from sdsedit.prior.load import load_model

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        usual = settings.loading if spec == settings.model else ModelOptions()
        prior = load_model(replace(usual, name=spec, device=settings.device))
    _specs[prior.name] = spec
    return prior


def model_record(prior: Prior) -> dict[str, Any]:
    """What a recipe says of the model."""
    from sdsedit.io.record import loading_record, model_revision

    spec = _specs.get(prior.name, prior.name)
    if spec not in _revisions:
        _revisions[spec] = model_revision(spec)
    return {
        "id": prior.name,
        "revision": _revisions[spec],
        "device": prior.device.type,
        "dtype": str(prior.dtype).removeprefix("torch."),
        **loading_record(prior),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until SIGINT or SIGTERM; a job that runs then may finish, a second signal ends it at once."""
    parser = argparse.ArgumentParser(prog="app.py", description="The web page of sdsedit.", allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default: %(default)s)")
    parser.add_argument(
        "--model", action="append", help="builtin (default), a diffusers folder, or a model in the local cache; given "
        "several times, the first is the usual one and the others may be chosen",
    )  # fmt: skip
    parser.add_argument("--device", help="cpu, cuda, mps; default: a GPU if there is one")
    add_option_arguments(parser).add_argument(
        "--previews", metavar="FOLDER", help="a tiny autoencoder (TAESD) that draws the previews"
    )
    parser.add_argument("--root-path", default="", metavar="/PATH", help="where a proxy shows the page, if not at /")
    parser.add_argument(
        "--framed-by", default="", metavar="https://SITE", help="a site that may show the page in a frame"
    )
    parser.add_argument("--mcp", action="store_true", help="tools for language models at /mcp (extra: mcp)")
    parser.add_argument(
        "--metrics", action="store_true", help="counts for Prometheus at /metrics; they ask for the login"
    )
    parser.add_argument(
        "--drain", type=int, default=Settings.drain, metavar="SECONDS",
        help="from SIGTERM to the end at most; a running job is asked to stop shortly before (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--log-format", choices=("text", "json"), default=os.environ.get("SDSEDIT_LOG", "text"),
        help="json: one object a line (default: SDSEDIT_LOG, or text)",
    )  # fmt: skip
    parser.add_argument(
        "--verbose", action="store_true", help="log errors with their own words; they can hold what somebody wrote"
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument(
        "--history", type=Path, metavar="DIR", default=default_history(),
        help="folder of finished results (default: %(default)s)",
    )  # fmt: skip
    kept.add_argument("--no-history", action="store_true", help="keep no finished results")
    given = parser.parse_args(argv)
    secret = os.environ.pop("SDSEDIT_LOGIN", "")  # no process that is started from here has it
    name, _, password = secret.partition(":")
    if secret and not (name and password):
        print("app.py: SDSEDIT_LOGIN must be name:password.", file=sys.stderr)
        return USAGE
    login = (name, password) if name else None
    if find_spec("gradio") is None or find_spec("uvicorn") is None:
        print("app.py: the page needs its extra: pip install -c constraints.txt -e '.[web]'.", file=sys.stderr)
        return USAGE
    if given.mcp and find_spec("mcp") is None:
        print("app.py: --mcp needs its extra: pip install -c constraints.txt -e '.[mcp]'.", file=sys.stderr)
        return USAGE
    if given.root_path and not re.fullmatch(r"(/[\w.~-]+)+", given.root_path):
        print("app.py: --root-path must be a path like /sdsedit, without a slash at its end.", file=sys.stderr)
        return USAGE
    if given.log_format not in ("text", "json"):
        print("app.py: SDSEDIT_LOG must be text or json.", file=sys.stderr)
        return USAGE
    if given.drain <= Settings.keeping:
        print(f"app.py: --drain must be more than {Settings.keeping} seconds.", file=sys.stderr)
        return USAGE
    if given.framed_by and not re.fullmatch(r"https://[A-Za-z0-9.-]+(:\d+)?", given.framed_by):
        print("app.py: --framed-by must be a site like https://huggingface.co, without a path.", file=sys.stderr)
        return USAGE
    model, *more = given.model or ["builtin"]
    loading = options_of(given, model)
    try:
        check_files(loading)
    except InputRefused as error:
        print(f"app.py: {error}", file=sys.stderr)
        return USAGE
    settings = Settings(
        host=given.host, port=given.port, model=model, more_models=tuple(more), device=given.device, login=login,
        root_path=given.root_path, framed_by=given.framed_by, mcp=given.mcp, metrics=given.metrics, drain=given.drain,
        history=None if given.no_history else given.history, loading=loading,
    )  # fmt: skip
    with logs.logging_to(sys.stderr, given.log_format, given.verbose):
        app = create_app(settings)
        server = _server(app, settings)
        logs.event("start", version=__version__, address=f"http://{settings.host}:{settings.port}")
        server.run()
        logs.event("end")
    return OK if server.started else INTERNAL


def _server(app: FastAPI, settings: Settings) -> Any:
    """uvicorn, but SIGTERM first stops the intake and waits for the running job, answering meanwhile."""
    import threading

    import uvicorn

    from sdsedit.web import events

    worker: Worker = app.state.worker

    class Draining(uvicorn.Server):
        drained = False

        def handle_exit(self, sig: int, frame: Any) -> None:
            if self.drained:  # the second signal
                worker.close(0, 0)
                self.force_exit = self.should_exit = True
                return
            self.drained = True
            threading.Thread(target=self.drain, daemon=True).start()

        def drain(self) -> None:
            logs.event("closing", running=worker.running, seconds=settings.drain, sooner="a second signal")
            # Open tabs keep a stream open; that it is cut at the end is no error.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            end = time.monotonic() + settings.drain - last - 0.5
            if worker.close(settings.drain - settings.keeping, settings.keeping - last - 0.5):
                while events.in_flight and time.monotonic() < end:
                    time.sleep(0.05)
                time.sleep(0.5)  # the result is on its way
            self.should_exit = True

    last = 2  # seconds for the connections that are open still
    trusted = os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1")
    config = uvicorn.Config(
        behind_proxies(app, trusted), host=settings.host, port=settings.port, proxy_headers=False, log_config=None,
        server_header=False, access_log=False, timeout_graceful_shutdown=last,
    )  # fmt: skip
    return Draining(config)
