"""A llama-server by itself, without workers, and what it streams."""

import contextlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from agents.contract import EngineFacts
from supervisor.core.continuing.events import EventSplitter

START_S = 60.0
ANSWER_S = 60.0


@dataclass
class LoneEngine:
    """One running llama-server."""

    http: httpx.Client
    log_path: Path

    def events(self, path: str, body: Mapping[str, Any]) -> list[bytes]:
        """What it answers to a streaming request."""
        with self.http.stream("POST", path, json={**body, "stream": True}) as answer:
            if answer.status_code != 200:
                raise AssertionError(f"{path}: {answer.read().decode()}\nasked: {body}")
            splitter, events = EventSplitter(), []
            for chunk in answer.iter_raw():
                events += splitter.feed(chunk)
            assert splitter.rest == b""
            return events

    def answer(self, path: str, body: Mapping[str, Any]) -> Any:
        """What it answers as a whole."""
        answer = self.http.post(path, json={**body, "stream": False})
        assert answer.status_code == 200, answer.text
        return answer.json()


@contextlib.contextmanager
def lone_engine(engine: EngineFacts, model: Path, *flags: str) -> Iterator[LoneEngine]:
    """Start a llama-server on loopback, on the CPU alone, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [engine.llama_server, "-m", str(model), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--device", "none", "-ngl", "0", "-t", "1", "-c", "2048", "-np", "1", "--no-warmup"]
    log_path = model.with_suffix(".log")
    with log_path.open("wb") as log:
        process = subprocess.Popen([*argv, "--cache-ram", "0", *flags], stdout=log, stderr=log)
    try:
        # It closes a connection after so many requests, which a client may learn too late.
        limits = httpx.Limits(max_keepalive_connections=0)
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=ANSWER_S, limits=limits) as http:
            _await_ready(http, process, log_path)
            yield LoneEngine(http, log_path)
    finally:
        process.kill()
        process.wait()


def _await_ready(http: httpx.Client, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if http.get("/health").status_code == 200:
                return
        time.sleep(0.02)
    raise AssertionError(f"llama-server did not start:\n{log_path.read_text()[-2000:]}")


def parsed(event: bytes) -> Any:
    """The data of an event; a string if it is no JSON."""
    data = next(line for line in event.decode().split("\n") if line.startswith("data: "))[6:]
    return json.loads(data) if data.startswith("{") else data


def record(engine: LoneEngine, path: str, asked: Mapping[str, Any], follow: str = "") -> str:
    """One line of a file in ``tests/unit/answers``: a request and the events that it got.

    The times in it are made round, and the file stays short.

    Args:
        engine: That is asked.
        path: Of the route.
        asked: The body.
        follow: Whose continuation it is: number of events before the cut.
    """
    told = b"".join(engine.events(path, asked)).decode()
    told = re.sub(r'("\w+_(?:ms|second)"):[-+.\de]+', r"\1:1.5", told)
    told = re.sub(r'"(created|created_at)":\d+', r'"\1":1700000000', told)
    line = {"cut": follow, "path": path, "asked": dict(asked), "events": told}
    return json.dumps(line, ensure_ascii=False) + "\n"
