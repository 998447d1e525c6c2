"""What is read of this host's networks, and what of it others may use. Does no I/O."""

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from agents.contract import NetworkAddress

CLAT: Final = ipaddress.ip_network("192.0.0.0/24")
"""Phones give themselves one of these where the mobile network has IPv6 only; nobody reaches it."""
SELF_ASSIGNED: Final = ipaddress.ip_network("169.254.0.0/16")
SHARED: Final = ipaddress.ip_network("100.64.0.0/10")
"""Of carriers, and of VPNs such as Tailscale: no private network, and not public either."""

MOST_LISTENERS: Final = 6
"""Addresses that one program listens at; a host with more has them for other things."""

ACTIVE: Final = "active"


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface that is up. ``kind`` is as in ``NetworkAddress``; empty: unknown."""

    name: str
    kind: str = ""
    speed_mbit_per_s: int | None = None
    members: tuple[str, ...] = ()
    """Of a bridge."""
    addresses: tuple[tuple[str, int | None], ...] = ()
    """Each with the length of its prefix."""
    is_virtual: bool = False
    """Leads to nothing outside this host: containers, virtual machines."""


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """One port of an RDMA device. ``state`` is ``active``, ``down``, or what the system calls it.

    ``interface`` is the network interface of that port, empty where it is not known.
    """

    device: str
    state: str
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Networks:
    """What was read of this host's networks at one moment."""

    platform: str
    interfaces: tuple[Interface, ...] = ()
    default_route: str = ""
    """Interface through which other networks are reached; empty: none, or not known."""
    thunderbolt_ports: tuple[str, ...] = ()
    rdma_enabled: bool | None = None
    """What macOS says of itself; None: it was not asked, or has no such thing."""
    rdma_ports: tuple[RdmaPort, ...] = ()
    was_read: bool = True
    """False: this platform lets nobody look."""


def addresses(networks: Networks) -> list[NetworkAddress]:
    """The addresses at which others may find this host, the default route's first."""
    active = {port.interface for port in networks.rdma_ports if port.state == ACTIVE}
    found = [
        NetworkAddress(
            address=address,
            interface=interface.name,
            kind=interface.kind,
            prefix_length=prefix,
            speed_mbit_per_s=interface.speed_mbit_per_s,
            is_default_route=interface.name == networks.default_route,
            has_rdma=interface.name in active,
        )
        for interface, address, prefix in every_address(networks)
    ]
    return sorted(found, key=lambda each: not each.is_default_route)


def every_address(networks: Networks) -> Iterator[tuple[Interface, str, int | None]]:
    """Interface, address and length of the prefix, of what leads out of this host."""
    for interface in networks.interfaces:
        if interface.is_virtual or interface.kind == "loopback":
            continue
        for address, prefix in interface.addresses:
            if is_reachable(address):
                yield interface, address, prefix


def is_reachable(address: str) -> bool:
    """Whether another host could reach this address, as far as the address alone tells."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if found.is_loopback or found.is_unspecified or found.is_multicast or found in CLAT:
        return False
    return not (found.version == 6 and found.is_link_local)


def may_listen(address: str) -> bool:
    """Whether we may listen there without being told to: a private IPv4 address, or a VPN's."""
    if not is_reachable(address):
        return False
    found = ipaddress.ip_address(address)
    return found.version == 4 and (found.is_private or found in SHARED)


def is_self_assigned(address: str) -> bool:
    """Whether a host gave itself this address because nobody gave it one."""
    return ipaddress.ip_address(address.partition("%")[0]) in SELF_ASSIGNED


def to_listen_at(found: Sequence[NetworkAddress], first: str) -> list[str]:
    """Where to listen: ``first``, then every other private address, ``MOST_LISTENERS`` in all.

    With a first one at loopback, or a public one, there is nothing more.
    """
    if not may_listen(first):
        return [first]
    others = [each.address for each in found if may_listen(each.address)]
    return list(dict.fromkeys([first, *others]))[:MOST_LISTENERS]
