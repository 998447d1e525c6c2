"""Which of several networks carries the tensors between the main host and a device.

The rule. A generated token sends some tens of KB to a device and back, so what a wire costs per
token is its round trip plus the time that ``TOKEN_BYTES`` take at its rate. The wire that costs
least carries the tensors. Among those that cost at most ``CLEARLY`` more, the one with the highest
rate does, because weights load faster over it. The wire in use is only left for one that is better
by ``CLEARLY`` in the figure that decides; who chooses an address himself gets it, as long as it
works.
"""

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from agents.contract import NetworkAddress
from agents.interfaces import SHARED, is_reachable, is_self_assigned
from supervisor.core.entities import Device, Wire
from supervisor.core.explain_words import duration

TOKEN_BYTES: Final = 64 << 10
"""Of a token, both ways: 8192 numbers of four bytes to a device and back."""
CLEARLY: Final = 0.2
MOST_PAIRS: Final = 12
_MOST_TOLD: Final = 16
"""Addresses of a device that are looked at."""

_ALONE: Final = 32
"""Length of the prefix of an address that has no neighbours."""

AUTOMATIC: Final = "auto"

_SLOWEST_FIRST: Final = ("cellular", "vpn", "wifi", "usb", "bridge", "ethernet", "thunderbolt")


@dataclass(frozen=True, slots=True)
class Pair:
    """An address of the main host and one of a device that may reach each other."""

    near: str
    far: str
    port: int
    """Of the link at the device's address."""
    kind: str = ""
    interface: str = ""
    has_rdma: bool = False
    """At both ends."""

    @property
    def ends(self) -> tuple[str, str]:
        return self.near, self.far


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out about one pair; ``problem`` says why it cannot be used, or is empty."""

    round_trip_s: float | None = None
    up_bytes_per_s: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Way:
    """How to reach the far end of a device; ``near`` empty: from whatever address fits."""

    near: str
    far: str
    port: int


# -- what there is --------------------------------------------------------------------------------


def pairs(near: Sequence[NetworkAddress], far: Sequence[NetworkAddress]) -> tuple[Pair, ...]:
    """The pairs that can work: those of one subnet, then those that a router may connect.

    Args:
        near: Addresses of the main host, the default route's first.
        far: Those of the device; it is not on the main host.
    """
    ours = [each for each in near if _is_usable(each.address)]
    own = {each.address for each in ours}
    direct: list[Pair] = []
    routed: list[Pair] = []
    for other in far[:_MOST_TOLD]:
        is_there = 0 < other.link_port < 1 << 16 and _is_usable(other.address)
        if not is_there or other.address in own:
            continue
        beside = [each for each in ours if _is_beside(each, other)]
        direct += [_pair(each, other) for each in beside]
        if not beside and not is_self_assigned(other.address):
            through = [each for each in ours if not is_self_assigned(each.address)][:1]
            routed += [_pair(each, other) for each in through]
    return tuple((direct + routed)[:MOST_PAIRS])


def _is_usable(address: str) -> bool:
    """rpc-server knows IPv4 alone, and the far end listens nowhere else."""
    return is_reachable(address) and not set(address) & set(":%")


def _is_beside(near: NetworkAddress, far: NetworkAddress) -> bool:
    here, there = ipaddress.ip_address(near.address), ipaddress.ip_address(far.address)
    if here in SHARED and there in SHARED:
        return True  # one VPN, in which every address is a subnet of its own
    known = (near.prefix_length, far.prefix_length)
    prefix = next((each for each in known if each is not None and 0 < each < _ALONE), None)
    if prefix is None:
        return False
    network = ipaddress.ip_network(f"{near.address}/{prefix}", strict=False)
    return there in network


def _pair(near: NetworkAddress, far: NetworkAddress) -> Pair:
    kinds = [kind for kind in (near.kind, far.kind) if kind in _SLOWEST_FIRST]
    return Pair(
        near=near.address,
        far=far.address,
        port=far.link_port,
        kind=min(kinds, key=_SLOWEST_FIRST.index, default=""),
        interface=far.interface,
        has_rdma=near.has_rdma and far.has_rdma,
    )


# -- which one ------------------------------------------------------------------------------------


def wires(
    found: Iterable[Pair],
    measured: Mapping[tuple[str, str], Measured],
    wanted: str,
    before: Sequence[Wire] = (),
) -> tuple[Wire, ...]:
    """Every pair with what is known of it, the one that carries tensors first.

    Args:
        found: The pairs that there are now.
        measured: What was found out, by both addresses.
        wanted: The far address that the operator chose; empty: none.
        before: The same as it was, for the wire in use.
    """
    in_use = next(((w.near, w.far) for w in before if w.in_use), None)
    made = [_wire(pair, measured.get(pair.ends, Measured()), in_use) for pair in found]
    return with_choice(made, wanted)


def _wire(pair: Pair, known: Measured, in_use: tuple[str, str] | None) -> Wire:
    trip_s, rate = known.round_trip_s, known.up_bytes_per_s
    return Wire(
        near=pair.near,
        far=pair.far,
        kind=pair.kind,
        interface=pair.interface,
        round_trip_ms=None if trip_s is None else round(trip_s * 1e3, 3),
        up_bytes_per_s=None if rate is None else round(rate, 1),
        in_use=pair.ends == in_use,
        problem=known.problem,
    )


def with_choice(found: Sequence[Wire], wanted: str) -> tuple[Wire, ...]:
    """The same wires with the one in use chosen anew, which comes first; then the better ones."""
    chosen = _chosen(found, wanted)
    marked = [wire.model_copy(update={"in_use": wire is chosen}) for wire in found]
    return tuple(sorted(marked, key=lambda w: (not w.in_use, bool(w.problem), cost_s(w))))


def _chosen(found: Sequence[Wire], wanted: str) -> Wire | None:
    usable = [wire for wire in found if not wire.problem]
    mine = [wire for wire in usable if wire.far == wanted]
    measured = [wire for wire in mine or usable if wire.round_trip_ms is not None]
    if not measured:
        return next(iter(mine), None)
    best = min(measured, key=cost_s)
    close = [wire for wire in measured if cost_s(wire) * (1 - CLEARLY) <= cost_s(best)]
    fastest = max(close, key=_rate)
    in_use = next((wire for wire in close if wire.in_use), None)
    if in_use is not None and _rate(fastest) * (1 - CLEARLY) <= _rate(in_use):
        return in_use
    return fastest


def cost_s(wire: Wire) -> float:
    """What this wire takes of a generated token; endless if it was not measured."""
    if wire.round_trip_ms is None or not wire.up_bytes_per_s:
        return float("inf")
    return wire.round_trip_ms / 1e3 + TOKEN_BYTES / wire.up_bytes_per_s


def _rate(wire: Wire) -> float:
    return wire.up_bytes_per_s or 0.0


def in_use(device: Device) -> Wire | None:
    """The wire that carries its tensors; None: there is no choice, and its usual address does."""
    return next((wire for wire in device.wires if wire.in_use), None)


def way(device: Device, wire: Wire | None = None) -> Way:
    """Where the link to a device goes: over its wire in use, or another, if that still stands."""
    wanted = wire or in_use(device)
    listed = device.facts.addresses if device.facts else []
    for each in listed:
        if wanted is not None and each.address == wanted.far and each.link_port:
            return Way(wanted.near, wanted.far, each.link_port)
    return control_way(device)


def chosen_far(device: Device) -> str:
    """The address that its tensors go to, if wires to it are known at all; else empty."""
    return way(device).far if in_use(device) is not None else ""


def direct_host(device: Device) -> str:
    """Where its rpc-server listens when llama-server connects to it without a link."""
    used = in_use(device)
    return device.address if used is None else way(device, used).far


def control_way(device: Device) -> Way:
    """The steady way, by which its agent is reached too."""
    return Way("", device.link_address or device.address, device.link_port)


# -- in words -------------------------------------------------------------------------------------


def why(device: Device) -> str:
    """Why tensors go the way they go, as a sentence; empty where there was nothing to choose."""
    used = in_use(device)
    others = [wire for wire in device.wires if wire is not used]
    if device.wire and (used is None or used.far != device.wire):
        problem = next((w.problem for w in others if w.far == device.wire and w.problem), "")
        gone = f"{device.wire}, which you chose, cannot be used now"
        said = f"{gone} ({problem})" if problem else gone
        instead = used.far if used is not None else device.address
        return f"{device.name}: {said}; tensors go to {instead}."
    if used is None or not others:
        return ""
    because = "you chose it" if device.wire else "the best of those that work"
    rest = "; ".join(f"{figures(wire)}" for wire in others)
    return f"{device.name}: tensors go over {figures(used)}, {because} (others: {rest})."


def figures(wire: Wire) -> str:
    """``10.0.0.2 (thunderbolt, en5: 0.4 ms, 1.2 GB/s)``."""
    carried = ", ".join(part for part in (wire.kind, wire.interface) if part)
    if wire.problem:
        known = wire.problem
    elif wire.round_trip_ms is None:
        known = "not measured"
    else:
        known = f"{duration(wire.round_trip_ms / 1e3)}, {_rate(wire) / 1e6:.0f} MB/s"
    return f"{wire.far} ({carried}: {known})" if carried else f"{wire.far} ({known})"
