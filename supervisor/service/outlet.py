"""The way to one client: takes what an engine says at once, and the client at its own pace."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from agents.errors import ProjectError
from supervisor.core.api_errors import error_event
from supervisor.core.gateway_routes import Api

_MOST_BYTES: Final = 1024 * 1024
"""Kept for a client that reads slowly; then the engine has to wait, too."""

EVENTS: Final = "text/event-stream"
_EVENT_HEADERS: Final = (("content-type", EVENTS), ("x-accel-buffering", "no"))


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as a client is told it."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: Mapping[str, Any]


class ClientPort(Protocol):
    """Sends to a client; both wait until there is room."""

    async def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None: ...

    async def send(self, data: bytes, *, more: bool) -> None: ...

    def failure(self, error: ProjectError) -> Failure:
        """In the shape of the API that was called."""
        ...


class AnswerBroken(Exception):
    """An answer that has begun has no end."""


class Outlet:
    """One answer on its way.

    A slow client must not hold a slot of the engine longer than its answer takes: everything is
    taken from the engine as it comes, and a task of its own sends it on.
    """

    def __init__(self, client: ClientPort, api: Api) -> None:
        self._client = client
        self._api = api
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._is_ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._sending: asyncio.Task[None] | None = None
        self.status = 0
        """Of HTTP; 0 until the answer has begun."""
        self.is_events = False
        self._is_broken = False

    @property
    def has_begun(self) -> bool:
        """Whether the client has a status, which cannot be taken back."""
        return self.status != 0

    def begin(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Send status and headers, once."""
        self.status = status
        self.is_events = any(
            name == "content-type" and value.startswith(EVENTS) for name, value in headers
        )
        self._sending = asyncio.create_task(self._send(status, headers))

    def begin_events(self) -> None:
        """Begin a stream of events, unless it has begun."""
        if not self.has_begun:
            self.begin(200, _EVENT_HEADERS)

    def put(self, data: bytes) -> None:
        """Send more of the body."""
        if data:
            self._kept.append(data)
            self._kept_bytes += len(data)
            self._news.set()

    def fail(self, error: ProjectError) -> None:
        """Say that there is no answer, or no rest of it."""
        failure = self._client.failure(error)
        if not self.has_begun:
            self.begin(failure.status, failure.headers)
            self.put(json.dumps(failure.body).encode())
        elif self.is_events:
            self.put(error_event(self._api, failure.body))
        else:
            self._is_broken = True

    @property
    def is_full(self) -> bool:
        """Whether the client is too far behind."""
        return self._kept_bytes > _MOST_BYTES

    async def room(self) -> None:
        """Wait while it is full. The client's connection has a deadline of its own."""
        while self.is_full:
            self._room.clear()
            await self._room.wait()

    async def end(self) -> None:
        """Wait until the client has everything.

        Raises:
            AnswerBroken: It has begun and cannot be completed; only the end of the connection
                tells the client.
        """
        self._is_ended = True
        self._news.set()
        if self._is_broken:
            await self.abandon()
            raise AnswerBroken
        if self._sending is not None:
            await self._sending

    async def abandon(self) -> None:
        """Send nothing any more: the client left, or nothing that fits can follow."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    async def _send(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        await self._client.start(status, headers)
        while True:
            await self._news.wait()
            self._news.clear()
            # What came meanwhile goes together: the more there is to do, the cheaper it gets.
            data, self._kept, self._kept_bytes = b"".join(self._kept), [], 0
            self._room.set()
            if data:
                await self._client.send(data, more=True)
            if self._is_ended and not self._kept:
                await self._client.send(b"", more=False)
                return
