"""REST client of the command line. Finds the supervisor, and keeps its error texts."""

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from socket import gethostname
from typing import Any, NamedTuple

import httpx
import platformdirs

from supervisor.errors import SupervisorRefused, SupervisorUnreachable

DEFAULT_URL = "http://127.0.0.1:8100"
# Planning asks every device for fresh facts; a lost one costs its time-outs.
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_PATIENT = httpx.Timeout(3600.0, connect=5.0)
# Running requests may end first, for as long as the main host's setting drain_s says.


def default_folder() -> Path:
    """Data folder of the supervisor on this platform."""
    return Path(platformdirs.user_data_dir("llama-rpc-supervisor", appauthor=False)) / "supervisor"


class Sent(NamedTuple):
    """An event of a stream. ``id`` is the last that was given: where to go on after it."""

    name: str
    body: Any
    id: str


class Client:
    """Calls one supervisor."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        url = url or os.environ.get("SUPERVISOR_URL")
        key = key or os.environ.get("SUPERVISOR_KEY")
        if not url:
            url, own_key = _running()
            key = key or own_key
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # A proxy of the environment would not reach this host itself.
        is_remote = httpx.URL(self.url).host not in ("127.0.0.1", "localhost", "::1")
        self._http = httpx.Client(
            base_url=self.url, headers=headers, timeout=_TIMEOUT, trust_env=is_remote
        )

    def get(self, path: str, **params: Any) -> Any:
        return self._call("GET", path, params=params)

    def post(self, path: str, body: Any = None, **params: Any) -> Any:
        return self._call("POST", path, json=body, params=params)

    def patch(self, path: str, body: Any) -> Any:
        return self._call("PATCH", path, json=body)

    def put(self, path: str, body: Any) -> Any:
        return self._call("PUT", path, json=body)

    def relaunch(self, method: str, path: str, body: Any = None) -> Any:
        """What ends a launch; its running requests may end first."""
        return self._call(method, path, json=body, timeout=_PATIENT)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path)

    def events(self) -> Iterator[tuple[str, Any]]:
        """Name and body of every event, the snapshot first."""
        with contextlib.closing(self.sent("GET", "/api/events")) as events:
            for event in events:
                yield event.name, event.body

    def sent(
        self, method: str, path: str, body: Any = None, **params: Any
    ) -> Generator[Sent, None, None]:
        """Every event of an answer; leaving early hangs up.

        Raises:
            SupervisorRefused: There is no stream; says why.
            SupervisorUnreachable: Nobody answers, or no longer.
        """
        try:
            # The supervisor sends a comment every 15 s, so silence means that it is gone.
            # An empty set of parameters would take those away that are in the path.
            with self._http.stream(method, path, json=body, params=params or None) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                yield from _events_of(response.iter_lines())
        except httpx.TransportError as exc:
            raise self._unreachable(exc) from exc

    def worked(
        self,
        method: str,
        path: str,
        show: Callable[[Any], None],
        *,
        ended: str,
        body: Any = None,
        **params: Any,
    ) -> Any:
        """What a stream of work results in; leaving early ends the work.

        Args:
            method: Of HTTP.
            path: Of the stream.
            show: Takes what the stream tells of its progress.
            ended: What to say if the supervisor ends before the work does.
            body: As JSON.
            params: Of the query.

        Raises:
            SupervisorRefused: It was refused, or failed; says why.
            SupervisorUnreachable: Nobody answers, or no longer.
        """
        with contextlib.closing(self.sent(method, path, body, **params)) as events:
            for event in events:
                if event.name == "progress":
                    show(event.body)
                elif event.name == "problem":
                    raise SupervisorRefused(event.body["detail"], event.body["code"])
                elif event.name == "result":
                    return event.body
        raise SupervisorUnreachable(ended)

    def download(self, path: str) -> tuple[str, bytes]:
        """A file: the name that it should have, and what is in it."""
        response = self._answer("GET", path)
        _, _, name = response.headers.get("content-disposition", "").partition("filename=")
        return name.strip('"'), response.content

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        response = self._answer(method, path, **arguments)
        return response.json() if response.content else None

    def _answer(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as exc:
            raise self._unreachable(exc) from exc
        if response.is_error:
            raise _refusal(response)
        return response

    def _unreachable(self, exc: httpx.TransportError) -> SupervisorUnreachable:
        reason = str(exc) or type(exc).__name__
        return SupervisorUnreachable(
            f"no supervisor answers at {self.url} ({reason}); start one with 'supervisor up', "
            "or name its address with --url"
        )


def _events_of(lines: Iterable[str]) -> Iterator[Sent]:
    name, data, event_id = "", "", ""
    for line in lines:
        field, _, value = line.partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            data = value
        elif field == "id":
            event_id = value.strip()
        elif not line and data:
            yield Sent(name, json.loads(data), event_id)
            name = data = ""


def _refusal(response: httpx.Response) -> SupervisorRefused:
    try:
        body = response.json()
        return SupervisorRefused(str(body["detail"]), str(body["code"]))
    except (ValueError, KeyError, TypeError):
        return SupervisorRefused(f"HTTP {response.status_code} from {response.url}", "error")


def _running() -> tuple[str, str]:
    """Address and key of the supervisor that runs on this host with the default folder.

    It may want a key from this host too, and who may read its folder has it. The key is empty
    unless that supervisor still lives: somebody else may listen where one was that was killed.
    """
    folder = default_folder()
    try:
        run = json.loads((folder / "run.json").read_text())
        url, pid, host = str(run["url"]), int(run["pid"]), run["host"]
    except (OSError, ValueError, KeyError, TypeError):
        return DEFAULT_URL, ""
    try:
        os.kill(pid, 0)
        return url, (folder / "api.key").read_text().strip() if host == gethostname() else ""
    except (OSError, ValueError):
        return url, ""
