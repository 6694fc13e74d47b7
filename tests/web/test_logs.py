"""Lines of the log: one record a line, whole as JSON, without what a person wrote."""

from __future__ import annotations

import io
import json
import logging
import sys
import traceback
import warnings
from typing import Any, Literal

import pytest

from sdsedit.web import logs

PROMPT = "a cat wearing a crown"


def logged(form: Literal["text", "json"], words: bool = False) -> list[str]:
    """What is written when something goes wrong in our code, in a library that logs, and in one that prints."""
    stream = io.StringIO()
    before = sys.stdout, sys.stderr, logging.getLogger().handlers[:]
    with logs.logging_to(stream, form, words):
        logs.event("job", kind="image", outcome="done", seconds=1.5)
        try:
            raise ValueError(f"unexpected {PROMPT!r}")
        except ValueError:
            logs.LOG.exception("Something went wrong inside.")
            traceback.print_exc()  # as Gradio does
        print(f"  Input should be a string [type=string_type, input_value={PROMPT!r}]", file=sys.stderr)
        logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: ValueError(%r)", PROMPT)
        logging.getLogger("httpx").info("GET http://127.0.0.1/?q=%s", PROMPT)
        warnings.warn(f"{PROMPT} is deprecated", stacklevel=1)
        print("half a line, ", end="")
        print("and the rest")
    assert (sys.stdout, sys.stderr, logging.getLogger().handlers) == before, "put back, whatever happened"
    return stream.getvalue().splitlines()


def test_json_is_one_object_a_line():
    lines = [json.loads(line) for line in logged("json")]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys() and line["time"].endswith("Z")
    job, wrong = lines[:2]
    assert job["message"] == "job" and job["level"] == "info" and job["kind"] == "image" and job["seconds"] == 1.5
    assert wrong["level"] == "error" and wrong["error"][-1] == "ValueError"
    assert "test_logs.py" in wrong["error"][-2] and "in logged" in wrong["error"][-2]
    printed = [line["message"] for line in lines if line["logger"] == "printed"]
    assert printed[-1] == "ValueError" and 'test_logs.py", line' in printed[0]


def test_text_is_for_a_person():
    lines = logged("text")
    assert lines[0].endswith("INFO sdsedit.web: job (kind=image outcome=done seconds=1.5)")
    assert "ERROR sdsedit.web: Something went wrong inside." in lines[1] and "ValueError" in lines


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_person_wrote_is_logged_only_if_it_is_asked_for(form: Any):
    assert PROMPT not in "\n".join(logged(form))
    told = "\n".join(logged(form, words=True))
    assert told.count(PROMPT) >= 3 and "half a line, and the rest" in told


def test_an_error_that_ends_everything_is_told_as_python_does(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ZeroDivisionError), logs.logging_to(io.StringIO(), "json"):
        raise ZeroDivisionError
    print("still here", file=sys.stderr)
    assert capsys.readouterr().err == "still here\n"
