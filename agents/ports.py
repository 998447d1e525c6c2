"""Listening ports and the addresses of this host."""

import contextlib
import fcntl
import ipaddress
import os
import socket
import sys
import tempfile
from pathlib import Path

from agents.contract import RPC_PORTS
from agents.errors import BadMessage, NoFreePort, PortInUse, PublicAddressRefused


def is_free(host: str, port: int) -> bool:
    """Whether ``port`` can be listened on now. Connects to nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


_ESTABLISHED = "01"
"""State of a connection in ``/proc/net/tcp``."""


class Reservation:
    """A port that no other program of ours on this host will choose while we hold it.

    Engines take a port number, not a socket, so between choosing a port and listening on it
    another agent or supervisor could choose the same one. A locked file prevents that.
    """

    def __init__(self, port: int, lock: int) -> None:
        self.port = port
        self._lock = lock

    def release(self) -> None:
        """Let others choose the port again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def reserve(host: str, wanted: int = 0, *, from_top: bool = False) -> Reservation:
    """Reserve ``wanted``, or any free port of our range, the lowest or the highest first.

    Links take the highest ones: they are made while rpc-servers start, and programs with different
    temporary folders do not see each other's reservations.

    Raises:
        PortInUse: ``wanted`` is taken, or ``host`` is no address of this host.
        NoFreePort: All ports of the range are taken.
    """
    candidates = reversed(RPC_PORTS) if from_top else RPC_PORTS
    for port in [wanted] if wanted else candidates:
        lock = _try_lock(port)
        if lock is None:
            continue
        if is_free(host, port):
            return Reservation(port, lock)
        os.close(lock)
    if wanted:
        raise PortInUse(
            f"{host}:{wanted} is in use or not an address of this device; "
            "stop the other program, or let us choose a port"
        )
    raise NoFreePort(f"ports {RPC_PORTS[0]}-{RPC_PORTS[-1]} on {host} are all in use; free one")


def hold(port: int) -> Reservation:
    """A reservation of a port that a program of ours uses already.

    Raises:
        PortInUse: Another program of ours holds it.
    """
    if (lock := _try_lock(port)) is None:
        raise PortInUse(f"port {port} is reserved by another program of ours; stop that")
    return Reservation(port, lock)


def _lock_folder() -> Path:
    """One that all programs of this user share; phones have no ``/tmp``."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:
        return Path.home()


def _try_lock(port: int) -> int | None:
    user = os.getuid()
    path = _lock_folder() / f"llama-rpc-supervisor-{user}-port-{port}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def listen(host: str, port: int, purpose: str) -> socket.socket:
    """A listening socket; port 0 takes any free one.

    Raises:
        PortInUse: The port is taken, or the address is not one of this host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sets TCP_NODELAY only on sockets that do; without it
    # every answer waits 40 ms for the other side's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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


def clients_of(port: int) -> list[str]:
    """Addresses that are connected to a listening port of this host; empty where unknown."""
    try:
        rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return []  # Android hides it, macOS has none
    found = []
    for row in rows:
        local, remote, state = row.split()[1:4]
        if state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port:
            address, remote_port = remote.split(":")
            found.append(f"{_dotted(address)}:{int(remote_port, 16)}")
    return found


def _dotted(hexadecimal: str) -> str:
    """IPv4 address from the kernel's little-endian hexadecimal."""
    return socket.inet_ntoa(bytes.fromhex(hexadecimal)[:: -1 if sys.byteorder == "little" else 1])


def is_own(address: str) -> bool:
    """Whether this host has that IPv4 address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError:
            return False
    return True


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
        BadMessage: It is a name; rpc-server takes only addresses.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError as exc:
        raise BadMessage(
            f"rpc-server cannot listen on {host!r}, only on an IPv4 address; give one with --host"
        ) from exc
    if address.is_unspecified or address.is_global or address.is_multicast:
        raise PublicAddressRefused(
            f"rpc-server has no authentication and may not listen on {host}; "
            "use a private, VPN or loopback address"
        )
