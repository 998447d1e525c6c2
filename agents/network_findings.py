"""What is wrong or special about a host's networks, from what was read of them. Does no I/O.

Nothing of this is changed by us: each finding says the one thing to do.
"""

import ipaddress
import itertools
from collections.abc import Iterator

from agents.contract import Finding, Verdict
from agents.interfaces import ACTIVE, Interface, Networks, every_address, is_self_assigned

_CABLE_PREFIX = 30
"""A network with room for two hosts is a cable between two."""


def findings(networks: Networks) -> list[Finding]:
    """All that there is to say; nothing where nothing could be read."""
    checks = (_bridge, _overlaps, _self_assigned, _default_route, _rdma)
    return [finding for check in checks for finding in check(networks)]


def rdma_state(networks: Networks) -> str:
    """``active``, ``down``, or empty if there is no RDMA device."""
    if any(port.state == ACTIVE for port in networks.rdma_ports):
        return ACTIVE
    return "down" if networks.rdma_ports else ""


def _bridge(networks: Networks) -> Iterator[Finding]:
    ports = set(networks.thunderbolt_ports)
    for interface in networks.interfaces:
        inside = [member for member in interface.members if member in ports]
        if not inside:
            continue
        names, commands = (
            ", ".join(inside),
            " && ".join(f"sudo ifconfig {interface.name} deletem {member}" for member in inside),
        )
        yield Finding(
            "thunderbolt_bridge",
            "Thunderbolt ports in a bridge",
            Verdict.WARNING,
            f"{names} {'is' if len(inside) == 1 else 'are'} inside {interface.name}, which has no "
            "protection against loops: a ring of cables floods every network of these Macs, and "
            "RDMA does not work through a bridge",
            f"take them out ({commands}; for good: System Settings, Network, Manage Virtual "
            "Interfaces) and give each port an address in a subnet of its own",
        )


def _overlaps(networks: Networks) -> Iterator[Finding]:
    """One subnet on Wi-Fi and on a cable: the system may send through either."""
    for (one, a, of_a), (two, b, of_b) in itertools.combinations(every_address(networks), 2):
        if one.name == two.name or "wifi" not in (one.kind, two.kind):
            continue
        if is_self_assigned(a) or not _overlap((a, of_a), (b, of_b)):
            continue
        wifi, other = (one, two) if one.kind == "wifi" else (two, one)
        yield Finding(
            "subnet_overlap",
            "Wi-Fi and another network share a subnet",
            Verdict.WARNING,
            f"{one.name} ({a}/{of_a}) and {two.name} ({b}/{of_b}) overlap, so what is meant for "
            f"{other.name} may leave through {wifi.name}",
            f"give {other.name} an address in another subnet, such as 10.77.1.x with netmask "
            "255.255.255.0, on both ends of it; or turn Wi-Fi off",
        )


def _overlap(one: tuple[str, int | None], two: tuple[str, int | None]) -> bool:
    a, b = _network(*one), _network(*two)
    return a is not None and b is not None and a.version == b.version and a.overlaps(b)


def _network(
    address: str, prefix: int | None
) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    return None if prefix is None else ipaddress.ip_network(f"{address}/{prefix}", strict=False)


def _self_assigned(networks: Networks) -> Iterator[Finding]:
    for interface, address, _ in every_address(networks):
        if is_self_assigned(address):
            yield Finding(
                "self_assigned",
                "Self-assigned address",
                Verdict.WARNING,
                f"{interface.name} has {address}, which it gave itself; such an address may change "
                "whenever a cable is plugged in, and is missing for minutes after that",
                f"give {interface.name} a fixed address in a subnet of its own, on both ends",
            )


def _default_route(networks: Networks) -> Iterator[Finding]:
    for interface in networks.interfaces:
        if interface.name == networks.default_route and _is_cable(interface, networks):
            yield Finding(
                "default_route",
                "Default route through a direct cable",
                Verdict.WARNING,
                f"what leaves this device for other networks leaves through {interface.name}, a "
                "cable to another device, which leads nowhere else",
                f"remove the router's address from the settings of {interface.name}, or put that "
                "network last in the order of services",
            )


def _is_cable(interface: Interface, networks: Networks) -> bool:
    is_thunderbolt = interface.kind == "thunderbolt" or interface.name in networks.thunderbolt_ports
    small = [prefix for _, prefix in interface.addresses if prefix in (_CABLE_PREFIX, 31)]
    return is_thunderbolt or (bool(small) and interface.kind in ("ethernet", "usb", "bridge"))


def _rdma(networks: Networks) -> Iterator[Finding]:
    ports = networks.rdma_ports
    if not ports:
        if networks.rdma_enabled:
            yield _rdma_finding(
                Verdict.OK,
                "RDMA is enabled but there is no RDMA device: the ports are Thunderbolt 4 or "
                "older, which cannot do it; TCP over the same cable is used",
            )
        return
    active = [port.device for port in ports if port.state == ACTIVE]
    down = [port for port in ports if port.state != ACTIVE]
    if active:
        idle = f"; without a peer: {', '.join(port.device for port in down)}" if down else ""
        yield _rdma_finding(Verdict.OK, f"active: {', '.join(active)}{idle}")
        return
    states = ", ".join(f"{port.device} is {port.state.upper() or 'unknown'}" for port in down)
    yield _rdma_finding(Verdict.WARNING, f"no RDMA port is active: {states}", _why_down(networks))


def _why_down(networks: Networks) -> str:
    bridged = [
        f"{port.interface} out of {interface.name}"
        for port in networks.rdma_ports
        for interface in networks.interfaces
        if port.interface in interface.members
    ]
    if bridged:
        return f"take {' and '.join(bridged)}, and give it an IPv4 address of its own"
    if networks.platform == "macos":
        return (
            "connect both Macs with a Thunderbolt 5 cable, have RDMA enabled on both (rdma_ctl "
            "enable, in Recovery), and give the port an IPv4 address on both"
        )
    return "connect the port to its peer, and bring its network interface up on both ends"


def _rdma_finding(verdict: Verdict, found: str, remedy: str = "") -> Finding:
    return Finding("rdma", "RDMA", verdict, found, remedy)
