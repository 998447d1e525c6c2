"""Who may be connected to the page's server, for how long, and who had to go."""

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Final, Protocol

log = logging.getLogger(__name__)

_TOLD_EVERY_S: Final = 60.0


class Wait(StrEnum):
    """What a client owes us."""

    HEAD = "head"
    BODY = "body"
    READING = "reading"
    """The answer waits until it reads."""
    LEAVING = "leaving"
    """It has its answer, and still sends."""
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one server bears."""

    connections: int
    per_address: int
    """Connections of one address, except for those of this host."""
    stall_s: float
    """Without progress of a client that reads."""
    head_s: float = 10.0
    """For the whole head of a request."""
    body_s: float = 30.0
    """Without progress of a body."""
    leaving_s: float = 5.0
    """A client may go on to send what was refused. Before that, a reset of the connection could
    take the answer from it."""
    silent_s: float = 1.0
    """Whoever has asked nothing for this long may have to make room."""

    def of(self, wait: Wait) -> float:
        """The deadline, in seconds."""
        return {
            Wait.HEAD: self.head_s,
            Wait.BODY: self.body_s,
            Wait.READING: self.stall_s,
            Wait.LEAVING: self.leaving_s,
            Wait.NOTHING: float("inf"),
        }[wait]


class Connection(Protocol):
    """One that was let in."""

    @property
    def transport(self) -> asyncio.Transport: ...


class Door:
    """Who is connected, who may be, and how many had to go."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.connections = 0
        self.silent: dict[Connection, float] = {}
        """Those that may have to make room, since when, the oldest first."""
        self._by_address: Counter[str] = Counter()
        self._sent_away: Counter[str] = Counter()
        self._told_at_s = float("-inf")
        allowed = f"{limits.connections} connections, {limits.per_address} of one address"
        self.full = whole_answer(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"there is room for {allowed} (setting connections_limit); try again",
            "retry-after: 1\r\n",
        )

    def entered(self, connection: Connection, address: str) -> bool:
        """Whether there is room for one more; then it is in."""
        is_full = self.connections >= self.limits.connections
        too_many = self._by_address[address] >= self.limits.per_address
        if (too_many and not _is_loopback(address)) or (is_full and not self._made_room()):
            self.note("refused")
            return False
        self.connections += 1
        self._by_address[address] += 1
        self.fell_silent(connection)
        return True

    def left(self, connection: Connection, address: str) -> None:
        self.silent.pop(connection, None)
        self.connections -= 1
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]

    def fell_silent(self, connection: Connection) -> None:
        self.silent[connection] = time.monotonic()

    def _made_room(self) -> bool:
        longest = next(iter(self.silent), None)
        if longest is None or time.monotonic() - self.silent[longest] < self.limits.silent_s:
            return False
        del self.silent[longest]
        longest.transport.close()
        self.note("made room")
        return True

    def note(self, what: str) -> None:
        self._sent_away[what] += 1

    def tell(self, now_s: float) -> None:
        """Say who had to go, in one line a minute: a flood must not fill the disk."""
        if self._sent_away and now_s - self._told_at_s >= _TOLD_EVERY_S:
            self._told_at_s = now_s
            log.warning("http.clients_sent_away", extra={"how_many": dict(self._sent_away)})
            self._sent_away.clear()

    def unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Without descriptors asyncio tells of each attempt to accept, with a traceback."""
        if str(context.get("message", "")).startswith("socket.accept()"):
            self.note("no descriptors")
        else:
            loop.default_exception_handler(context)


def whole_answer(status: HTTPStatus, text: str, headers: str = "") -> bytes:
    """A whole answer, for requests that no application can see."""
    body = text.encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n{headers}\r\n"
    )
    return head.encode() + body


def _is_loopback(address: str) -> bool:
    return address.startswith(("127.", "::ffff:127.")) or address == "::1"
