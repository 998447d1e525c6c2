"""Listening ports and the addresses of this host."""

import contextlib
import ipaddress
import socket

from agents.contract import RPC_PORTS
from agents.errors import NoFreePort, PortInUse, PublicAddressRefused


def is_free(host: str, port: int) -> bool:
    """Whether ``port`` can be listened on now. Connects to nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str) -> int:
    """A port of ours that is free now.

    Raises:
        NoFreePort: All are taken.
    """
    for port in RPC_PORTS:
        if is_free(host, port):
            return port
    raise NoFreePort(f"ports {RPC_PORTS[0]}-{RPC_PORTS[-1]} on {host} are all in use; free one")


def listen(host: str, port: int, purpose: str) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        PortInUse: The port is taken, or the address is not one of this host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as exc:
        listener.close()
        raise PortInUse(
            f"cannot listen on {host}:{port} for {purpose}: {exc.strerror}; "
            "stop the other program or choose another port or address"
        ) from exc
    return listener


def local_address_towards(host: str) -> str:
    """Our own address on the way to ``host``. Sends nothing (a connected UDP socket)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect((host, 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def refuse_public(host: str) -> None:
    """Refuse to expose an unauthenticated rpc-server.

    Raises:
        PublicAddressRefused: ``host`` is public, or means every address.
    """
    address = ipaddress.ip_address(host)
    if address.is_unspecified or address.is_global or address.is_multicast:
        raise PublicAddressRefused(
            f"rpc-server has no authentication and may not listen on {host}; "
            "use a private, VPN or loopback address"
        )
