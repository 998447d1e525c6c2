"""Over which wire each worker of one launch is reached, whether with RDMA, and why."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from agents.interfaces import is_reachable
from supervisor.core.entities import AgentId, Device, Plan, Wire
from supervisor.core.rdma import RdmaDecision, RdmaEnd, decide, far_end_of, rdma_wire
from supervisor.core.wires import direct_host, in_use, way, why
from supervisor.errors import RdmaUnavailable
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)


_NO_RDMA: Final = RdmaDecision(is_used=False)


@dataclass(frozen=True, slots=True)
class WorkerWire:
    """What was decided for one worker. ``host`` is where its rpc-server listens without a link."""

    host: str
    why: str = ""
    rdma: RdmaDecision = _NO_RDMA


class LaunchWires:
    """Decides once, before the workers start."""

    def __init__(self, tools: Tools, plan: Plan, *, direct: bool) -> None:
        self._tools = tools
        self._plan = plan
        self._direct = direct
        self._decided: dict[AgentId, WorkerWire] = {}

    async def decide(self) -> None:
        """Look at every worker.

        Raises:
            RdmaUnavailable: The setting wants RDMA, and one of them cannot have it.
        """
        devices = [self._tools.registry.device(agent_id) for agent_id in self._plan.agent_ids]
        found = await asyncio.gather(*(self._decide(device) for device in devices))
        self._decided = {d.id: wire for d, wire in zip(devices, found, strict=True)}

    def of(self, agent_id: AgentId) -> WorkerWire:
        """What was decided for a worker."""
        known = self._decided.get(agent_id)
        return known or WorkerWire(direct_host(self._tools.registry.device(agent_id)))

    @property
    def uses_rdma(self) -> bool:
        """llama-server may agree on it with one of them at least."""
        return any(wire.rdma.is_used for wire in self._decided.values())

    async def _decide(self, device: Device) -> WorkerWire:
        rdma, meeting = await self._rdma(device)
        wire = meeting if rdma.is_used else in_use(device)
        if not self._direct:
            return WorkerWire(direct_host(device), why(device), rdma)
        host = way(device, wire).far if wire is not None else device.address
        if wire is None or host == device.address or await self._reaches(device, wire):
            return WorkerWire(host, why(device), rdma)
        said = f"{host} did not answer before the launch, so {device.address} is used"
        self._tools.registry.wire_failed(device.id, wire.far, said)
        rdma = RdmaDecision(is_used=False, why=f"TCP instead of RDMA: {said}" if rdma.why else "")
        self._refuse_without(rdma, device)
        return WorkerWire(device.address, f"{device.name}: {said}.", rdma)

    async def _reaches(self, device: Device, wire: Wire) -> bool:
        """Whether its far end answers there; nobody asks the rpc-server more than once."""
        if self._tools.reaches is None:
            return True
        over = way(device, wire)
        seen = device.model_copy(update={"link_address": over.far, "link_port": over.port})
        return await self._tools.reaches(seen)

    async def _rdma(self, device: Device) -> tuple[RdmaDecision, Wire | None]:
        setting, networks = self._tools.settings.rdma, self._tools.own_networks
        if networks is None or setting == "off" or not is_reachable(device.address):
            return _NO_RDMA, None
        host = self._tools.main_host
        has_it = host.engine.has_rdma if host.engine else None
        near = RdmaEnd("the main host", await networks.rdma(), has_it)
        ours = frozenset(each.address for each in await networks.addresses() if each.has_rdma)
        meeting = rdma_wire(device, ours)
        decision = decide(
            setting,
            is_direct=self._direct,
            near=near,
            far=far_end_of(device),
            ports_meet=meeting is not None,
        )
        self._refuse_without(decision, device)
        return decision, meeting

    def _refuse_without(self, decision: RdmaDecision, device: Device) -> None:
        if self._tools.settings.rdma != "require" or decision.is_used:
            return
        reason = decision.why.removeprefix("TCP instead of RDMA: ") or "it has no RDMA"
        raise RdmaUnavailable(
            f"{device.name} cannot be used with RDMA, which the setting rdma requires: {reason}; "
            'change that, or set rdma = "auto"'
        )
