"""uvicorn as both programs use it: our signal handlers, our sockets, our logging."""

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from agents.tls import PEER, SERIAL, Receive, Scope, Send

SHUTDOWN_S = 2
"""How long open requests may go on after we were told to stop. Event streams never end alone."""

KEEP_ALIVE_S = 65
"""Longer than clients keep their connections: a TLS handshake costs a phone several round trips."""


class Web(uvicorn.Server):
    """uvicorn without its own signal handlers: ours also end the engine processes."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def mutual_tls(
    app: Any, *, certificate: Path, key: Path, authority: Path, need_client: bool
) -> Web:
    """A server that knows its caller; ``need_client`` refuses callers without a certificate."""
    return Web(
        configured(
            app,
            http=PeerProtocol,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            ssl_ca_certs=str(authority),
            ssl_cert_reqs=int(ssl.CERT_REQUIRED if need_client else ssl.CERT_OPTIONAL),
        )
    )


class PeerProtocol(H11Protocol):
    """uvicorn's HTTP protocol, telling the application whose certificate the connection showed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        certificate = transport.get_extra_info("peercert") or {}
        subject = dict(pair for group in certificate.get("subject", ()) for pair in group)
        name = subject.get("commonName", "")
        self.app = _with_peer(self.app, name, certificate.get("serialNumber", ""))

    def shutdown(self) -> None:
        super().shutdown()
        # A TLS close waits for the peer's answer, which an idle pooled connection never gives.
        if self.transport.is_closing() and self.transport.get_write_buffer_size() == 0:
            self.transport.abort()


def _with_peer(application: Any, name: str, serial: str) -> Any:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await application({**scope, PEER: name, SERIAL: serial}, receive, send)

    return call


def configured(app: Any, **options: Any) -> uvicorn.Config:
    """What all our servers have in common; ``options`` are uvicorn's, beside that."""
    return uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        **options,
    )
