"""uvicorn as both programs use it: our signal handlers, our sockets, our logging."""

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from agents import tls

SHUTDOWN_S = 2
"""How long open requests may go on after we were told to stop. Event streams never end alone."""

KEEP_ALIVE_S = 65
"""Longer than clients keep their connections: a TLS handshake costs a phone several round trips."""


class Web(uvicorn.Server):
    """uvicorn without its own signal handlers: ours also end the engine processes."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def plain(app: Any) -> Web:
    """A server without TLS, for loopback or behind a key."""
    return Web(_config(app))


def mutual_tls(
    app: Any, *, certificate: Path, key: Path, authority: Path, need_client: bool
) -> Web:
    """A server that knows its caller; ``need_client`` refuses callers without a certificate."""
    return Web(
        _config(
            app,
            http=tls.PeerProtocol,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            ssl_ca_certs=str(authority),
            ssl_cert_reqs=int(ssl.CERT_REQUIRED if need_client else ssl.CERT_OPTIONAL),
        )
    )


def _config(app: Any, **options: Any) -> uvicorn.Config:
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
