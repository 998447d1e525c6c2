"""Whether a worker of a launch may use RDMA, and what to say if it may not.

llama.cpp itself agrees on RDMA in the first exchange between llama-server and rpc-server, if both
were built with it and the connection is made to an address of an RDMA port. Links carry TCP only.
"""

from dataclasses import dataclass
from typing import Literal

from agents.interfaces import ACTIVE
from supervisor.core.entities import Device, Wire

RdmaSetting = Literal["auto", "off", "require"]

NO_RDMA = {"GGML_RPC_NO_RDMA": "1"}


@dataclass(frozen=True, slots=True)
class RdmaEnd:
    """One end: the state of its ports, and whether its engine was built with RDMA."""

    name: str
    state: str
    engine_has_it: bool | None


@dataclass(frozen=True, slots=True)
class RdmaDecision:
    """``why`` is told in the record; empty: nobody would have expected RDMA here."""

    is_used: bool
    why: str = ""


def decide(
    setting: RdmaSetting,
    *,
    is_direct: bool,
    near: RdmaEnd,
    far: RdmaEnd,
    ports_meet: bool,
) -> RdmaDecision:
    """Whether both ends may agree on RDMA.

    Args:
        setting: ``require`` decides nothing here: whoever asks refuses when it is not used.
        is_direct: llama-server itself connects to the rpc-server.
        near: The main host.
        far: The device.
        ports_meet: There is a wire between an active RDMA port of one and one of the other.
    """
    if setting == "off":
        return RdmaDecision(is_used=False)
    if not near.state and not far.state and setting == "auto":
        return RdmaDecision(is_used=False)
    reason = _obstacle(is_direct, near, far, ports_meet)
    if reason:
        return RdmaDecision(is_used=False, why=f"TCP instead of RDMA: {reason}")
    return RdmaDecision(
        is_used=True,
        why="both ends may use RDMA; if they cannot agree on it, llama.cpp stays on TCP",
    )


def _obstacle(is_direct: bool, near: RdmaEnd, far: RdmaEnd, ports_meet: bool) -> str:
    for end in (near, far):
        if end.state != ACTIVE:
            what = "no RDMA device" if not end.state else f"RDMA ports that are {end.state}"
            return f"{end.name} has {what}"
    for end in (near, far):
        if end.engine_has_it is None:
            return f"it is not known whether the engine of {end.name} was built with it"
        if not end.engine_has_it:
            return f"the engine of {end.name} was built without it"
    if not ports_meet:
        return "no wire connects the RDMA ports of both ends"
    return "" if is_direct else "a link carries TCP only; it needs --transport direct"


def far_end_of(device: Device) -> RdmaEnd:
    """What a device says of itself."""
    facts = device.facts
    engine = facts.engine if facts else None
    return RdmaEnd(device.name, facts.rdma if facts else "", engine.has_rdma if engine else None)


def rdma_wire(device: Device, near_addresses: frozenset[str]) -> Wire | None:
    """The wire between two active RDMA ports, that in use first; None: there is none.

    Args:
        device: With its wires, the better ones first.
        near_addresses: Those of the main host that an active RDMA port has.
    """
    far = {each.address for each in device.facts.addresses if each.has_rdma} if device.facts else ()
    meeting = (w for w in device.wires if w.near in near_addresses and w.far in far)
    return next((wire for wire in meeting if not wire.problem), None)
