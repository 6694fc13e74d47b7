"""What the page logs: a line for its start and its end, for every job, and for what went wrong; as text or as JSON.

No request is logged, and so no address, no name of a file and no password is; a proxy has a log of requests. What a
person wrote can only be in the words of an error ("unexpected token 'a cat'"): an error is logged as its type and the
lines of code that it went through, without its words, unless `words` asks for them. So is what libraries print.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, TextIO

Format = Literal["text", "json"]
LOG = logging.getLogger("sdsedit.web")

_FRAME = re.compile(r'\s+File "(?P<file>[^"]+)", line \d+, in \S+$')
_ERROR = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Warning|Interrupt|Exit)(?=:|$)")
_WARNING = re.compile(r".*?:\d+: \w+(?=:)")


@contextmanager
def logging_to(stream: TextIO, form: Format, words: bool = False) -> Iterator[None]:
    """Every log line and every line that a library prints goes to `stream`, one record a line."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter((_Json if form == "json" else _Text)(words))
    root = logging.getLogger()
    before = root.handlers[:], root.level, LOG.level, sys.stdout, sys.stderr
    root.handlers[:], root.level = [handler], logging.WARNING
    LOG.setLevel(logging.INFO)
    logging.captureWarnings(True)
    sys.stdout = sys.stderr = _Printed(words)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:], root.level, level, sys.stdout, sys.stderr = before
        LOG.setLevel(level)


def event(message: str, **fields: object) -> None:
    """A line about what the page does. The fields stand beside the message, for a program to read."""
    LOG.info(message, extra={"fields": fields})


class _Text(logging.Formatter):
    """2026-11-23 14:00:00 INFO sdsedit.web: job (kind=image outcome=done)"""

    def __init__(self, words: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%d %H:%M:%S")
        self.words = words

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _message(record, self.words)
        said = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        return super().formatMessage(record) + (f" ({said})" if said else "")

    def formatException(self, ei: Any) -> str:
        return "\n".join(_error(ei, self.words))


class _Json(logging.Formatter):
    """One object a line: time, level, logger, message, the fields of an event, and of an error its type and frames."""

    def __init__(self, words: bool) -> None:
        super().__init__()
        self.words = words

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        said: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record, self.words),
            **_fields(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            said["error"] = _error(record.exc_info, self.words)
        return json.dumps(said, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    return getattr(record, "fields", {})


def _message(record: logging.LogRecord, words: bool) -> str:
    """A library's message ends with its first line, for an object with everything in it follows; of a warning only the
    kind and the place are told."""
    said = record.getMessage()
    if words or record.name.startswith("sdsedit"):
        return said
    said = said.partition("\n")[0]
    found = _WARNING.match(said) if record.name == "py.warnings" else None
    return found[0] if found else said


def _error(
    found: tuple[type[BaseException] | None, BaseException | None, TracebackType | None], words: bool
) -> list[str]:
    """The frames, the innermost last, and the error's type; its own words, and those it came from, only if asked."""
    kind, error, trace = found
    if words:
        return [line for part in traceback.format_exception(kind, error, trace) for line in part.splitlines()]
    frames = [f'File "{each.filename}", line {each.lineno}, in {each.name}' for each in traceback.extract_tb(trace)]
    return [*frames, "" if kind is None else kind.__name__]


class _Printed(io.TextIOBase):
    """Standing for stdout and stderr: what a library prints becomes lines of the log, without the words of errors."""

    def __init__(self, words: bool) -> None:
        self.words = words
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if self.words:
                shown = line
            elif frame := _FRAME.match(line):
                shown = frame[0].strip()
            else:
                error = _ERROR.match(line)
                shown = error[0] if error else ""
            if shown.strip():
                logging.getLogger("printed").warning("%s", shown)
        return len(text)
