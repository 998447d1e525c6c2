"""Passes requests on to llama-servers and brings their answers back as they come.

h11 on asyncio's streams: each token of each answer passes here, and each request waits for what
happens here before its first one. httpx took 1.6 times as long for a token (bench/gateway.py).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Final

import h11

from supervisor.ports import EngineCut, UpstreamAnswer

_HOST: Final = "127.0.0.1"
_CONNECT_S: Final = 5.0
_READ_BYTES: Final = 64 * 1024
_HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "date", "server"}
)
_NOT_OURS: Final = "access-control-"
"""Who may read an answer in a browser is for the gateway to say."""


class EngineHttp:
    """HTTP to the llama-servers of this host."""

    def __init__(self, key: str) -> None:
        self._key = key

    @contextlib.asynccontextmanager
    async def opened(
        self, port: int, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[UpstreamAnswer]:
        """Send a request; leaving the block hangs up, which frees its slot.

        Each request has a connection of its own: llama-server closes idle ones after 5 s, and the
        one that is used just then would look like an engine that died. There is no time-out for
        the answer: a slow phone may think for minutes before its first byte.

        Raises:
            EngineCut: The engine is not there, or its answer ends before it should.
        """
        async with _connected(port) as talk:
            await talk.send(method, target, {**self._own_headers(port, body), **headers}, body)
            head = await talk.head()
            yield UpstreamAnswer(head.status_code, _passed_on(head.headers), talk.chunks())

    def _own_headers(self, port: int, body: bytes) -> dict[str, str]:
        own = {"host": f"{_HOST}:{port}", "content-length": str(len(body)), "connection": "close"}
        return {**own, "authorization": f"Bearer {self._key}"} if self._key else own


class _Talk:
    """One request and its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)

    async def send(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> None:
        request = h11.Request(method=method, target=target, headers=list(headers.items()))
        data = self._http.send(request) or b""
        data += self._http.send(h11.Data(data=body)) or b""
        data += self._http.send(h11.EndOfMessage()) or b""
        self._writer.write(data)
        with _translated():
            await self._writer.drain()

    async def head(self) -> h11.Response:
        while not isinstance(event := await self._next(), h11.Response):
            pass  # such as "100 Continue"
        return event

    async def chunks(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._next(), h11.Data):
            yield bytes(event.data)

    async def _next(self) -> h11.Event:
        """The next event.

        Raises:
            EngineCut: There is none.
        """
        with _translated():
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(_READ_BYTES))
        if not isinstance(event, h11.Event) or isinstance(event, h11.ConnectionClosed):
            raise EngineCut("it hung up")
        return event


@contextlib.asynccontextmanager
async def _connected(port: int) -> AsyncIterator[_Talk]:
    with _translated():
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(_HOST, port)
    try:
        yield _Talk(reader, writer)
    finally:
        # At once: what the engine still had to say is for nobody.
        writer.transport.abort()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, TimeoutError, h11.RemoteProtocolError) as exc:
        raise EngineCut(str(exc) or type(exc).__name__) from exc


def _passed_on(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Names in small letters."""
    named = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return [
        (name, value)
        for name, value in named
        if name not in _HOP_BY_HOP and not name.startswith(_NOT_OURS)
    ]
