"""Recognises that macOS keeps a program from its own network, which looks like a lost route.

macOS 15 and newer let connections to the same subnet fail at once with EHOSTUNREACH until somebody
allows them; a host that is merely gone is EHOSTDOWN or silence there.
"""

import asyncio
import errno
import ipaddress
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from agents.contract import NetworkAddress
from agents.errors import LocalNetworkDenied

NO_ROUTE: Final = {"macos": 65}
"""EHOSTUNREACH by platform; elsewhere it is what this Python says."""


def no_route(platform: str) -> int:
    """The number of "No route to host"."""
    return NO_ROUTE.get(platform, errno.EHOSTUNREACH)


async def denial(
    error: BaseException,
    endpoint: str,
    *,
    platform: str = "",
    own: Callable[[], Sequence[NetworkAddress]] | None = None,
) -> LocalNetworkDenied | None:
    """The real reason of a failed connection, if it is that one.

    Args:
        error: Of the connection, as a library wrapped it.
        endpoint: ``HOST:PORT``.
        platform: ``macos`` or another; the default is this host's.
        own: Reads the addresses of this host, which may take seconds; without it, every private
            address counts as near.
    """
    platform = platform or ("macos" if sys.platform == "darwin" else "")
    if platform != "macos" or no_route(platform) not in _numbers(error):
        return None
    known = await asyncio.to_thread(own) if own is not None else ()
    host = endpoint.rpartition(":")[0].strip("[]")
    return LocalNetworkDenied(sentence(endpoint)) if is_near(host, known) else None


def sentence(endpoint: str) -> str:
    """What happened and what to do."""
    return (
        f"macOS keeps this program from {endpoint} in its own network (No route to host, errno "
        f"{NO_ROUTE['macos']}); allow it in System Settings > Privacy & Security > Local Network, "
        "start it from Terminal, or run it as a service, which needs no permission: 'service "
        "install'"
    )


def is_near(host: str, own: Sequence[NetworkAddress]) -> bool:
    """Whether a host is in a network of ours; a guess where those could not be read."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.endswith(".local")
    if address.is_loopback:
        return False
    known = [each for each in own if each.prefix_length is not None]
    if not known:
        return address.is_private
    return any(address in _network(each) for each in known) or address.is_link_local


def _network(own: NetworkAddress) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    bare = own.address.partition("%")[0]
    return ipaddress.ip_network(f"{bare}/{own.prefix_length}", strict=False)


def _numbers(error: BaseException) -> Iterator[int]:
    """The ``errno`` of an error, its causes, and the members of groups, each once."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, OSError) and each.errno is not None:
            yield each.errno
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions
        waiting += [e for e in (each.__cause__, each.__context__) if e is not None]
