"""The page's server: uvicorn, and what it lacks against clients that take more than their share.

uvicorn itself waits for ever for the rest of a request and for a client that reads nothing, and
takes any number of connections. All deadlines are looked at once a second, so that they cost the
connections nothing.
"""

import asyncio
import contextlib
import logging
import resource
import socket
import struct
import sys
import time
from functools import partial
from http import HTTPStatus
from typing import Any, Final

import h11
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from agents.web import Web, configured
from supervisor.api.bounded import Bounded
from supervisor.api.door import Door, Limits, Wait, whole_answer
from supervisor.settings import Settings

log = logging.getLogger(__name__)

_LEAST_BYTES: Final = 1024
"""Less than this within a deadline is no progress."""

_READ_BYTES: Final = 32 * 1024
"""Read at once. h11 may need 20 ms for so much, if it comes in chunks of one byte each."""

_UNSENT_BYTES: Final = 128 * 1024
"""Kept by the kernel for a client that does not read; by itself it would keep megabytes."""

_ACCEPTED_AT_ONCE: Final = 16
"""asyncio accepts so many before it looks at the first of them."""

_WAITING_IN_KERNEL: Final = 1024

_SPARE_DESCRIPTORS: Final = 256 + _ACCEPTED_AT_ONCE
"""For files, pipes, engines, devices, and connections that are accepted only to be refused."""

_QUOTED: Final = 200

_MOST_DESCRIPTORS: Final = (65536, 10240)
"""Some systems allow far more than anybody should have, and macOS less than it says."""

_protocol_log = logging.getLogger(f"{__name__}.protocol")
_protocol_log.setLevel(logging.ERROR)  # it warns of every malformed request


def page_server(app: ASGIApp, settings: Settings) -> Web:
    """The server of page, REST and /v1. Allows this process as many descriptors as it may have."""
    descriptors = allow_descriptors()
    # An answer of the gateway has a connection on either side.
    possible = max((descriptors - _SPARE_DESCRIPTORS) // 2, 1)
    if possible < settings.connections_limit:
        extra = {"connections": possible, "descriptors": descriptors}
        log.warning("http.fewer_connections", extra=extra)
    connections = min(settings.connections_limit, possible)
    limits = Limits(connections, max(connections // 2, 1), settings.client_stall_s)
    return GuardedWeb(app, limits)


def allow_descriptors() -> int:
    """Raise the soft limit of open files to the hard one; returns what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in _MOST_DESCRIPTORS:
        wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            continue
        return wanted
    return _MOST_DESCRIPTORS[0] if soft == resource.RLIM_INFINITY else soft


class GuardedWeb(Web):
    """A server without TLS that bears abuse."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.door = Door(limits)
        protocol = partial(GuardedProtocol, self.door)
        super().__init__(configured(Bounded(app), http=protocol, backlog=_ACCEPTED_AT_ONCE))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        asyncio.get_running_loop().set_exception_handler(self.door.unhandled)
        for listener in sockets or ():
            listener.listen(_WAITING_IN_KERNEL)

    async def on_tick(self, counter: int) -> bool:
        """uvicorn calls it ten times a second."""
        if counter % 10 == 0:
            self.look_around()
        return await super().on_tick(counter)

    def look_around(self) -> None:
        """Look at all deadlines."""
        now_s = time.monotonic()
        for connection in list(self.server_state.connections):
            if isinstance(connection, GuardedProtocol):
                connection.look(now_s)
        self.door.tell(now_s)


class GuardedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, door: Door, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _protocol_log
        self._door = door
        self._is_in = False
        self._is_leaving = False
        self._received_bytes = 0
        self._wait = Wait.NOTHING
        self._done_bytes = 0
        self._since_s = 0.0

    # -- as the transport calls it -----------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_in = self._door.entered(self, self._address)
        if not self._is_in:
            self.connections.discard(self)
            transport.write(self._door.full)
            transport.close()
            return
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        if option := getattr(socket, "TCP_NOTSENT_LOWAT", None):
            self._set(socket.IPPROTO_TCP, option, _UNSENT_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_in:
            self._door.left(self, self._address)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_leaving:
            return
        self._received_bytes += len(data)
        self._door.silent.pop(self, None)
        super().data_received(data)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait = Wait.NOTHING  # it did read

    # -- as uvicorn calls it -----------------------------------------------------------------

    def on_response_complete(self) -> None:
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._leave()
            return
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self._door.fell_silent(self)

    def send_400_response(self, msg: str) -> None:
        error = sys.exception()
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        # h11 quotes what it does not understand, all of it.
        self._refuse(HTTPStatus(hint), f"{msg} {error or ''}"[:_QUOTED])

    def shutdown(self) -> None:
        if self._is_leaving:
            self.transport.abort()
        else:
            super().shutdown()

    # -- deadlines ---------------------------------------------------------------------------

    def look(self, now_s: float) -> None:
        """Send the client away if it made us wait too long."""
        wait, done_bytes = self._awaited()
        if wait is not self._wait or done_bytes >= self._done_bytes + _LEAST_BYTES:
            self._wait, self._done_bytes, self._since_s = wait, done_bytes, now_s
        elif now_s - self._since_s >= self._door.limits.of(wait):
            self._wait = Wait.NOTHING
            self._give_up(wait)

    def _awaited(self) -> tuple[Wait, int]:
        """For what we wait, and how far that has come."""
        unsent_bytes = self.transport.get_write_buffer_size()
        is_over = self._is_leaving or self.transport.is_closing()
        if self.flow.write_paused or (is_over and unsent_bytes):
            return Wait.READING, -unsent_bytes
        if is_over:
            return Wait.LEAVING, 0
        if self.conn.their_state is h11.IDLE:
            is_kept_alive = self.cycle is not None and self in self._door.silent
            return (Wait.NOTHING if is_kept_alive else Wait.HEAD), 0
        if self.conn.their_state is h11.SEND_BODY:
            it_waits = self.flow.read_paused or self.cycle.waiting_for_100_continue
            return (Wait.NOTHING if it_waits else Wait.BODY), self._received_bytes
        return Wait.NOTHING, 0

    def _give_up(self, wait: Wait) -> None:
        self._door.note(f"late {wait}")
        if wait is Wait.HEAD and not self.conn.trailing_data[0]:
            self.transport.close()  # an idle connection ends without a word
        elif wait in (Wait.HEAD, Wait.BODY):
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"the {wait} of the request came too slowly")
        else:
            self._abort()

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        """Answer in place of the application, unless it has begun to."""
        if status is not HTTPStatus.REQUEST_TIMEOUT:
            self._door.note("malformed")
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.waiting_for_100_continue = False
            cycle.message_event.set()
            if cycle.response_started:
                self._abort()
                return
        self.transport.write(whole_answer(status, text))
        self._leave()

    def _leave(self) -> None:
        """The answer is sent; take no notice of the rest of the request."""
        self._is_leaving = True
        self._unset_keepalive_if_required()
        self.flow.resume_reading()
        self._door.fell_silent(self)
        try:
            self.transport.write_eof()
        except OSError:  # it is gone
            self.transport.abort()

    def _abort(self) -> None:
        """End it now; the kernel would go on for minutes to send what nobody reads."""
        self._set(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _set(self, level: int, option: int, value: int | bytes) -> None:
        with contextlib.suppress(OSError):  # the client may be gone
            self.transport.get_extra_info("socket").setsockopt(level, option, value)

    @property
    def _address(self) -> str:
        return self.client[0] if self.client else ""
