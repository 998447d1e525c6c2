"""One connection of llama-server to a near end."""

import asyncio
from collections import deque
from typing import Final, Protocol

from agents.errors import RpcFraming
from agents.rpc_events import Request, RequestEvent
from agents.rpc_framing import RequestParser, ResponseParser

_READ_BYTES: Final = 256 << 10
_FIRST_READ_BYTES: Final = 4 << 10
"""Most connections say little, and whoever is on this host can make many."""
_WRITE_HIGH_BYTES: Final = 4 << 20


class Host(Protocol):
    """The near end that a client is connected to."""

    def on_client_made(self, client: "LocalClient") -> None: ...

    def on_client_data(self, client: "LocalClient", data: memoryview) -> None: ...

    def on_client_eof(self, client: "LocalClient") -> bool:
        """Whether to keep the connection open, for answers that are still to come."""
        ...

    def on_client_room(self, client: "LocalClient") -> None: ...

    def on_client_gone(self, client: "LocalClient") -> None: ...


class LocalClient(asyncio.BufferedProtocol):
    """Bytes in and out; what they mean is the near end's business."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._buffer = memoryview(bytearray(_FIRST_READ_BYTES))
        self._is_held_up = self._is_paused = False
        self.requests = RequestParser()
        self.responses = ResponseParser()
        self.asked: deque[Request | None] = deque()
        """Questions whose answers come over the link, in order; ``None``: of no interest."""
        self.held: list[RequestEvent] = []
        """What it said while another client had the rpc-server."""
        self.is_raw = False
        """Passed through unread, from its first byte."""
        self.is_full = self.is_gone = self.has_ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(_WRITE_HIGH_BYTES)
        self._host.on_client_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        data = self._buffer[:count]
        if count == len(self._buffer) < _READ_BYTES:
            self._buffer = memoryview(bytearray(_READ_BYTES))
        try:
            self._host.on_client_data(self, data)
        except RpcFraming:
            self.cut()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self.is_gone:
            self._transport.write(data)

    def pause(self) -> None:
        """Read nothing more for now."""
        self._is_held_up = True
        self._choose_reading()

    def resume(self) -> None:
        self._is_held_up = False
        self._choose_reading()

    def _choose_reading(self) -> None:
        """Who does not take its answers is not asked for more questions."""
        is_paused = self._is_held_up or self.is_full
        if self._transport is None or self.is_gone or is_paused is self._is_paused:
            return
        self._is_paused = is_paused
        if is_paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def cut(self) -> None:
        """End it at once, as a server that crashed would; the host counts it no more."""
        if self._transport is not None:
            self._transport.abort()
            self.connection_lost(None)

    def finish(self) -> None:
        """End it when it has everything that was written."""
        if self._transport is not None:
            self._transport.close()

    def pause_writing(self) -> None:
        self.is_full = True
        self._choose_reading()

    def resume_writing(self) -> None:
        self.is_full = False
        self._choose_reading()
        self._host.on_client_room(self)

    def eof_received(self) -> bool:
        """It has said everything; what it asked is still answered."""
        return self._host.on_client_eof(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._host.on_client_gone(self)
