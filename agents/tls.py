"""Mutual TLS between supervisor and agents, with the cluster's own authority as the only root.

Certificates name roles, not addresses: ``supervisor`` or ``agent-UUID``. Addresses change when
phones roam; identities do not.
"""

import base64
import hashlib
import ssl
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PEER = "peer_name"
"""Key in the ASGI scope: common name of the verified client certificate, or an empty string."""

SERIAL = "peer_serial"


def agent_name(agent_id: str) -> str:
    """Common name of an agent's certificate."""
    return f"agent-{agent_id}"


def fingerprint(certificate_pem: str) -> str:
    """SHA-256 of the certificate in DER, URL-safe base64 without padding (43 characters)."""
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate_pem)).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def unverified_context() -> ssl.SSLContext:
    """For one request only: the authority's certificate, which is then checked by fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client_context(
    authority_pem: str, certificate: Path | None = None, key: Path | None = None
) -> ssl.SSLContext:
    """Trust the cluster's authority and nobody else; show ``certificate`` when asked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authority_pem)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context
