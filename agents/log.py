"""Logging for both programs: every line carries host, process and, where there is one, launch.

The context is added by a filter on the handler, so third-party loggers carry it too.
"""

import json
import logging
import re
import socket
import sys
import time
from contextvars import ContextVar
from typing import Any, TextIO

from agents import host_names

current_launch: ContextVar[str] = ContextVar("current_launch", default="")
"""Set by whoever works on a launch; inherited by the tasks it starts."""

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")
_CONTEXT = ("host", "process_name", "launch")


class _Context(logging.Filter):
    def __init__(self, process_name: str) -> None:
        super().__init__()
        name = socket.gethostname()
        self._host = host_names.device_name() if name == "localhost" else name  # as on all phones
        self._process_name = process_name

    def filter(self, record: logging.LogRecord) -> bool:
        record.host = self._host
        record.process_name = self._process_name
        record.launch = getattr(record, "launch", "") or current_launch.get()
        return True


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    hidden = _STANDARD.union(_CONTEXT)
    return {k: v for k, v in record.__dict__.items() if k not in hidden}


class TextFormatter(logging.Formatter):
    """One line for people: time, level, where, what, and the fields as ``name=value``."""

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.gmtime(record.created))
        where = f"{record.__dict__['host']}/{record.__dict__['process_name']}"
        if launch := record.__dict__["launch"]:
            where += f"/launch-{launch}"
        fields = " ".join(f"{k}={v}" for k, v in _extra(record).items())
        line = f"{clock}.{record.msecs:03.0f} {record.levelname:<7} {where} {record.getMessage()}"
        # One line, whatever somebody put into a name or an option.
        line = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], f"{line} {fields}".rstrip())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line, for collectors."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "host": record.__dict__["host"],
            "process": record.__dict__["process_name"],
        }
        if launch := record.__dict__["launch"]:
            line["launch"] = launch
        line.update(_extra(record))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(
    process_name: str,
    *,
    json_lines: bool = False,
    level: str = "INFO",
    stream: TextIO | None = None,
) -> None:
    """Send all logging of this process to ``stream`` (default: standard error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(_Context(process_name))
    handler.setFormatter(JsonFormatter() if json_lines else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # They say something per request, which is polling noise here; the hub's client (httpx2) also
    # the signed addresses of files.
    for name in ("httpx", "httpx2", "httpcore", "httpcore2", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
