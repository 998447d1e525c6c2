"""What happened, from the command line: the past as a table, and what comes as it comes."""

import contextlib
import json
import time
from collections import deque
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from supervisor.cli import output
from supervisor.cli.client import Client
from supervisor.cli.options import AsJson, Key, Url
from supervisor.errors import SupervisorUnreachable

_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 5.0
_REMEMBERED: Final = 10_000
"""More than can be told twice: what waits in the memory of a supervisor that cannot store."""


def show_events(
    name: Annotated[str | None, typer.Argument(help="deployment or device; else all")] = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="go on until Ctrl-C")] = False,
    number: Annotated[int, typer.Option("-n", min=0, max=1000, help="newest to show")] = 50,
    launch: Annotated[int | None, typer.Option(help="only of this launch")] = None,
    url: Url = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show what happened: every change of state, with time and reason."""
    wanted = {"subject": name, "launch": launch, "limit": number}
    params = {field: value for field, value in wanted.items() if value is not None}
    if follow:
        with contextlib.suppress(KeyboardInterrupt):  # the usual end
            _Follower(url, key, params, as_json).run()
        return
    found = Client(url, key).get("/api/history", **params)
    if as_json:
        output.print_json(found)
        return
    output.console.print(events_table(found))


def events_table(events: list[dict[str, Any]]) -> Table:
    """Events in their order."""
    made = output.table("Events", "time", "what", "change", "reason")
    for event in events:
        made.add_row(local_time(event["at"]), *(escape(text) for text in _said(event)))
    return made


def local_time(at: str) -> str:
    """An ISO time as the clock on the wall has it."""
    return datetime.fromisoformat(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _said(event: dict[str, Any]) -> tuple[str, str, str]:
    """What changed, how, and why."""
    launch = f" (launch {event['launch_id']})" if event["launch_id"] else ""
    code = f"{event['code']}: " if event["code"] else ""
    return f"{event['subject']}{launch}", event["change"], f"{code}{event['text']}"


class _Follower:
    """Prints events once each, and finds the supervisor again after a restart."""

    def __init__(
        self, url: str | None, key: str | None, params: dict[str, Any], as_json: bool
    ) -> None:
        self._url, self._key = url, key
        self._params = params
        self._as_json = as_json
        self._shown: deque[tuple[int, str]] = deque(maxlen=_REMEMBERED)
        self._is_connected = False
        self._was_lost = False

    def run(self) -> None:
        """Until the user ends it.

        Raises:
            SupervisorUnreachable: Nobody answered at the very beginning.
            SupervisorRefused: It answers, and refuses.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                # Made anew each time, since the supervisor may come back at another address.
                self._follow(Client(self._url, self._key))
                reason = "the supervisor ended"
            except SupervisorUnreachable as exc:
                if not self._is_connected and not self._was_lost:
                    raise
                reason = str(exc)
            if self._is_connected:
                self._is_connected, self._was_lost, pause_s = False, True, _FIRST_PAUSE_S
                output.errors.print(f"[yellow]waiting:[/] {escape(reason)}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _follow(self, client: Client) -> None:
        """One connection, from where the last one ended."""
        for event in client.sent("GET", "/api/history/stream", **self._params):
            if not self._is_connected:
                self._is_connected = True
                if self._was_lost:
                    output.errors.print("connected again")
            if event.id:
                self._params["after"] = int(event.id)
            if event.name == "event":
                self._show(event.body)

    def _show(self, event: dict[str, Any]) -> None:
        mark = (event["id"], event["at"])
        if mark in self._shown:
            return
        self._shown.append(mark)
        if self._as_json:
            print(json.dumps(event, ensure_ascii=False), flush=True)  # noqa: T201 - for programs
            return
        what, change, reason = _said(event)
        line = (
            f"{local_time(event['at'])}  {escape(what):<24}  {escape(change):<24}  {escape(reason)}"
        )
        output.console.print(line.rstrip())
