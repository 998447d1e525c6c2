"""``python -m supervisor.fetching JOB``: fetches what a file of JSON says, and says how far it is.

A line of JSON (``Step``) on standard output for each piece of news. SIGTERM and SIGINT end it, and
so does anything else: what came is kept.
"""

import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from threading import Event

# Before huggingface_hub is read. Why no xet: see ``blob.py``.
os.environ["HF_HUB_DISABLE_XET"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from agents.errors import ProjectError
from supervisor.adapters.hub_http import Patience, RemotePart
from supervisor.core.pulling import Job, Step
from supervisor.fetching.blob import check_room
from supervisor.fetching.fetch import Progress, Stopped, fetch
from supervisor.fetching.line import Line, cache_folder

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 900.0
"""A hub that limits us may ask for minutes."""


def main() -> int:
    """Do the job; 0 if the model is there, 1 if it is not, 143 if we were told to end."""
    job = Job.model_validate_json(Path(sys.argv[1]).read_bytes())
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _end(143))
    parts = [RemotePart(**part.model_dump()) for part in job.parts]
    line = Line(Patience(tries=job.tries, longest_pause_s=LONGEST_PAUSE_S))
    try:
        cache = cache_folder(job.cache)
        check_room(parts, cache, job.promised_bytes)
        path = fetch(parts, cache, line, _tell_progress, stop, at_once=job.at_once)
    except ProjectError as exc:
        _tell(Step(event="failed", code=exc.code, detail=str(exc)))
        return 1
    except Stopped:
        return 143
    except Exception as exc:
        log.exception("fetching.bug")
        _tell(Step(event="failed", code="error", detail=f"internal error: {exc!r}; report it"))
        return 1
    _tell(Step(event="done", path=str(path)))
    return 0


def _tell_progress(progress: Progress) -> None:
    _tell(
        Step(
            event="progress",
            done=progress.done,
            is_checking=progress.is_checking,
            detail=progress.detail,
        )
    )


def _tell(step: Step) -> None:
    text = json.dumps(step.model_dump(mode="json", exclude_defaults=True))
    try:
        print(text, flush=True)  # noqa: T201 - it is what we are for
    except BrokenPipeError:
        _end(143)
    except OSError:
        pass  # a full disk: the model itself may be on another one


def _end(status: int) -> None:
    """At once: threads may wait for the hub, and all they took is in the file."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # it may be in the midst of that
        sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    _end(main())
