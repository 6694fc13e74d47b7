"""Between Gradio's events and ours: who asks, what the browser said, and refusals as one sentence."""

from __future__ import annotations

import asyncio
import html
import inspect
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

from sdsedit.errors import InputRefused, OutOfMemory, out_of_memory
from sdsedit.web.worker import Cancelled, Job, Worker

LOG = logging.getLogger("sdsedit.web")
in_flight = 0  # events that are being answered
_POLL = 0.05  # seconds between two looks at a job


def _uncounted(status: int) -> None: ...


refused: Callable[[int], None] = _uncounted  # told of every refusal that a person reads on the page


def handler(act: Callable[..., Any], event: bool = False) -> Callable[..., Any]:
    """`act(person, *values)`, or `act(person, said, *values)` with what the browser's event said, as Gradio calls it.

    act may be a function (it runs in a thread), a coroutine or an async generator. InputRefused becomes the sentence on
    the page and in the API; what went wrong inside is logged and told without its words.
    """
    import gradio as gr

    names = ["request", "said"] if event else ["request"]

    def split(given: tuple[Any, ...]) -> tuple[Any, ...]:
        person = given[0].session_hash or "nobody"
        return (person, given[1]._data or {}, *given[2:]) if event else (person, *given[1:])

    if inspect.isasyncgenfunction(act):

        async def stream(*given: Any) -> AsyncIterator[Any]:
            with refusals():
                async with aclosing(act(*split(given))) as updates:
                    async for update in updates:
                        yield update

        call: Callable[..., Any] = stream
    elif inspect.iscoroutinefunction(act):

        async def answer(*given: Any) -> Any:
            with refusals():
                return await act(*split(given))

        call = answer
    else:

        def plain(*given: Any) -> Any:
            with refusals():
                return act(*split(given))

        call = plain
    kinds = {"request": gr.Request, "said": gr.EventData}
    own = list(inspect.signature(act).parameters.values())[len(names) :]
    first = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kinds[name]) for name in names]
    call.__signature__ = inspect.Signature([*first, *own])  # pyright: ignore[reportFunctionMemberAccess]
    call.__annotations__ = {name: kinds[name] for name in names}  # Gradio looks here for what to put in
    call.__name__, call.__doc__ = getattr(act, "__name__", "act"), act.__doc__
    return call


@contextmanager
def refusals() -> Iterator[None]:
    """Errors as Gradio shows them: a refusal with its sentence, anything else without what it said."""
    import gradio as gr

    global in_flight
    in_flight += 1
    try:
        yield
    except (gr.Error, GeneratorExit, asyncio.CancelledError):
        raise
    except InputRefused as error:
        refused(error.status)
        title = "Please wait" if error.status in (429, 503) else "This cannot be used"
        raise gr.Error(html.escape(str(error)), duration=None, title=title, print_exception=False) from None
    except Cancelled:
        raise gr.Error("Stopped before it began.", title="Stopped", print_exception=False) from None
    except Exception as error:
        if out_of_memory(error):
            sentence = str(error) if isinstance(error, OutOfMemory) else "Out of memory: try a smaller picture."
        else:
            LOG.exception("Something went wrong inside.")  # the log says where
            sentence = "Something went wrong inside; nothing of yours is lost. Try again."
        raise gr.Error(sentence, duration=None, print_exception=False) from None
    finally:
        in_flight -= 1


async def news(worker: Worker, job: Job) -> AsyncGenerator[Any, None]:
    """What there is to tell of a job until it is done: ("waiting", jobs ahead), then its reports as they come.

    Whoever stops listening (a closed tab) cancels it.
    """
    told: Any = None
    try:
        while not job.done.is_set():
            now: Any = job.report if job.started else ("waiting", worker.ahead(job))
            if now is not None and now is not told and (not isinstance(now, tuple) or now != told):
                told = now
                yield now
            await asyncio.sleep(_POLL)
    finally:
        if not job.done.is_set():
            job.cancel()


async def done(worker: Worker, job: Job) -> Any:
    """The result of a job whose reports nobody reads."""
    async with aclosing(news(worker, job)) as reports:
        async for _ in reports:
            pass
    return job.result(0)


def waiting_line(ahead: int, state: str) -> str:
    """What a person reads while their job is in line."""
    if state == "loading":
        return "The model is loading; your job comes next."
    jobs = "1 job is" if ahead == 1 else f"{ahead} jobs are"
    return f"{jobs} ahead of yours." if ahead else "Yours is next."


# ---- what a tab's widgets run in the browser, and files on their way there and back


def on_press(name: str, number: bool = False) -> str:
    """Script of a gr.HTML: a press of one of its `button[data-NAME]` is its select event, which says {NAME: ...}."""
    value = f"button.dataset.{name}"
    return f"""
element.addEventListener("click", (event) => {{
  const button = event.target.closest("button[data-{name}]");
  if (button) trigger("select", {{{name}: {f"Number({value})" if number else value}}});
}});
"""


def press_saved(id: str) -> str:
    """Script of an event: press the download button of this id, once it has its file."""
    return f"() => setTimeout(() => document.querySelector('#{id} a, a#{id}, #{id}')?.click(), 150)"


def look_at(id: str) -> str:
    """Script of an event: on a phone what is made stands below the fold; go there when it begins."""
    return f"() => {{ if (innerWidth < 760) document.querySelector('#{id}').scrollIntoView({{behavior: 'smooth'}}); }}"


def path_of(payload: Any) -> str | None:
    """A widget's preprocess: the uploaded file itself, unopened; ours are read by sdsedit.io, in its limits."""
    return None if payload is None else payload.path


def place_to_serve(folder: Path, name: str) -> Path:
    """Where a file of this name may be written for Gradio to serve, in a new folder that nobody can guess."""
    place = folder / secrets.token_hex(16)
    place.mkdir(parents=True)
    return place / name
