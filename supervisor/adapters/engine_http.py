"""Passes requests on to llama-servers and brings their answers back as they come."""

import contextlib
from collections.abc import AsyncIterator, Mapping

import httpx

from supervisor.ports import EngineCut, UpstreamAnswer

_CONNECT_S = 5.0
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "date", "server"}
)
_NOT_OURS = "access-control-"
"""Who may read an answer in a browser is for the gateway to say."""


class EngineHttp:
    """HTTP to the llama-servers of this host."""

    def __init__(self, key: str) -> None:
        # A slow phone may think for minutes before its first byte: no read time-out. Connections
        # are not kept: llama-server closes idle ones after 5 s, and the one that is used just then
        # would look like an engine that died.
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            headers={"authorization": f"Bearer {key}"} if key else {},
            trust_env=False,
            verify=False,  # noqa: S501  plain HTTP on loopback; loading authorities takes 13 ms
        )

    async def close(self) -> None:
        await self._http.aclose()

    @contextlib.asynccontextmanager
    async def opened(
        self, port: int, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[UpstreamAnswer]:
        """Send a request; leaving the block hangs up, which frees its slot.

        Raises:
            EngineCut: The engine is not there, or its answer ends before it should.
        """
        request = self._http.build_request(
            method, f"http://127.0.0.1:{port}{target}", headers=headers, content=body
        )
        try:
            answer = await self._http.send(request, stream=True)
        except httpx.TransportError as exc:
            raise EngineCut(str(exc) or type(exc).__name__) from exc
        try:
            yield UpstreamAnswer(answer.status_code, _passed_on(answer.headers), _chunks(answer))
        finally:
            await answer.aclose()


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.TransportError as exc:
        raise EngineCut(str(exc) or type(exc).__name__) from exc


def _passed_on(headers: httpx.Headers) -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, value in headers.multi_items()
        if name not in _HOP_BY_HOP and not name.startswith(_NOT_OURS)
    ]
