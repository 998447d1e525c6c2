"""Where the supervisor listens: one address for people and their tools, several for devices."""

import ipaddress
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from agents import ports
from agents.contract import NetworkAddress
from agents.errors import PortInUse
from agents.interfaces import to_listen_at
from agents.networks import first_address
from supervisor.settings import Settings

log = logging.getLogger(__name__)

_LOOPBACK = ipaddress.ip_address("127.0.0.1")


@dataclass(frozen=True, slots=True)
class Addresses:
    """Open sockets. ``url`` is for people, ``local_url`` for commands on this host."""

    web: list[socket.socket]
    agents: list[socket.socket]
    agents_endpoints: tuple[str, ...]
    """The default route's first."""
    url: str
    local_url: str


def listen(settings: Settings, own: Sequence[NetworkAddress]) -> Addresses:
    """Listen before anything else is made, so that a taken port costs nothing.

    Raises:
        PortInUse: Of the dashboard, or of the first address for agents.
    """
    purpose = "the dashboard (setting port)"
    first = ports.listen(settings.host, settings.port, purpose)
    port = first.getsockname()[1]
    bound = ipaddress.ip_address(first.getsockname()[0])
    reaches_loopback = bound.is_unspecified or bound == _LOOPBACK
    others = [] if reaches_loopback else [ports.listen(str(_LOOPBACK), port, purpose)]
    join_host = settings.join_host or first_address()
    agents = _listen_for_agents(settings, join_host, own)
    shown = join_host if bound.is_unspecified else settings.host
    return Addresses(
        web=[first, *others],
        agents=list(agents.values()),
        agents_endpoints=tuple(f"{host}:{each.getsockname()[1]}" for host, each in agents.items()),
        url=f"http://{shown}:{port}",
        local_url=f"http://{_LOOPBACK}:{port}",
    )


def _listen_for_agents(
    settings: Settings, first: str, own: Sequence[NetworkAddress]
) -> dict[str, socket.socket]:
    """At one address if one was given; else at every private one that can be had, at one port."""
    purpose = "agents (setting join_port)"
    made = {first: ports.listen(first, settings.join_port, purpose)}
    port = made[first].getsockname()[1]
    for address in [] if settings.join_host else to_listen_at(own, first)[1:]:
        try:
            made[address] = ports.listen(address, port, purpose)
        except PortInUse as exc:
            log.warning("supervisor.not_listening", extra={"reason": str(exc)})
    return made
