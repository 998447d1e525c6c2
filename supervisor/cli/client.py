"""REST client of the command line. Finds the supervisor, and keeps its error texts."""

import json
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import platformdirs

from supervisor.errors import SupervisorRefused, SupervisorUnreachable

DEFAULT_URL = "http://127.0.0.1:8100"
# Planning asks every device for fresh facts; a lost one costs its time-outs.
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)


def default_folder() -> Path:
    """Data folder of the supervisor on this platform."""
    return Path(platformdirs.user_data_dir("llama-rpc-supervisor", appauthor=False)) / "supervisor"


class Client:
    """Calls one supervisor."""

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self.url = (url or os.environ.get("SUPERVISOR_URL") or _running_url()).rstrip("/")
        key = key or os.environ.get("SUPERVISOR_KEY")
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

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path)

    def events(self) -> Iterator[tuple[str, Any]]:
        """Name and body of every event, the snapshot first."""
        return self.stream("GET", "/api/events")

    def stream(
        self, method: str, path: str, body: Any = None
    ) -> Generator[tuple[str, Any], None, None]:
        """Name and body of every event of an answer; leaving early hangs up.

        Raises:
            SupervisorRefused: There is no stream; says why.
            SupervisorUnreachable: Nobody answers, or no longer.
        """
        try:
            # The supervisor sends a comment every 15 s, so silence means that it is gone.
            with self._http.stream(method, path, json=body) as response:
                if response.is_error:
                    response.read()
                    raise _refusal(response)
                name = ""
                for line in response.iter_lines():
                    if line.startswith("event:"):
                        name = line.removeprefix("event:").strip()
                    elif line.startswith("data:"):
                        yield name, json.loads(line.removeprefix("data:"))
        except httpx.TransportError as exc:
            raise self._unreachable(exc) from exc

    def _call(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as exc:
            raise self._unreachable(exc) from exc
        if response.is_error:
            raise _refusal(response)
        return response.json() if response.content else None

    def _unreachable(self, exc: httpx.TransportError) -> SupervisorUnreachable:
        reason = str(exc) or type(exc).__name__
        return SupervisorUnreachable(
            f"no supervisor answers at {self.url} ({reason}); start one with 'supervisor up', "
            "or name its address with --url"
        )


def _refusal(response: httpx.Response) -> SupervisorRefused:
    try:
        body = response.json()
        return SupervisorRefused(str(body["detail"]), str(body["code"]))
    except (ValueError, KeyError, TypeError):
        return SupervisorRefused(f"HTTP {response.status_code} from {response.url}", "error")


def _running_url() -> str:
    """Address of the supervisor that runs on this host with the default folder."""
    try:
        return str(json.loads((default_folder() / "run.json").read_text())["url"])
    except (OSError, ValueError, KeyError):
        return DEFAULT_URL
