"""Which devices may take part now, and the plan over them. Starts nothing."""

import asyncio
import logging

from supervisor.core.entities import (
    Candidate,
    DeploymentId,
    DeploymentSpec,
    Device,
    Plan,
)
from supervisor.core.membership import DeviceCondition
from supervisor.core.placement import place
from supervisor.errors import (
    AgentRefused,
    AgentUnreachable,
    NoDevices,
    WorkerBusy,
    WorkerIncompatible,
)
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

_FRESH_S = 1.0


class Planner:
    """Chooses devices and makes a plan from fresh facts. Starts nothing."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    async def plan(self, spec: DeploymentSpec, deployment: DeploymentId | None = None) -> Plan:
        """Plan for the devices that exist now.

        Raises:
            ProjectError: The model, the devices or the split are not usable; says which and why.
        """
        devices = self._devices(spec, deployment)
        model, fresh = await asyncio.gather(
            asyncio.to_thread(self._tools.read_model, spec.model),
            asyncio.gather(*(self._refreshed(device, bool(spec.devices)) for device in devices)),
        )
        if not devices:
            raise NoDevices(self._why_none())
        usable = [device for device in fresh if device is not None]
        candidates = [candidate for device in usable for candidate in _candidates(device)]
        return place(
            model,
            candidates,
            ctx_tokens=spec.ctx_tokens,
            slots=spec.slots,
            split=spec.split,
        )

    def _devices(self, spec: DeploymentSpec, deployment: DeploymentId | None) -> list[Device]:
        registry = self._tools.registry
        if spec.devices:
            chosen = [registry.find(name) for name in spec.devices]
            for device in chosen:
                _refuse_unusable(device, deployment)
            return chosen
        free = [
            device
            for device in registry.devices()
            if device.state == DeviceCondition.READY and device.used_by in (None, deployment)
        ]
        # The last device holds the output layer, whose logits travel with every token: the main
        # host's own device goes last.
        boot_id = self._tools.main_host.boot_id
        return sorted(free, key=lambda d: (_is_main_host(d, boot_id), d.name))

    def _why_none(self) -> str:
        devices = self._tools.registry.devices()
        if not devices:
            return (
                "no device has joined; run 'supervisor join CODE' on one (see 'supervisor invite')"
            )
        why = "; ".join(
            f"{d.name}: {d.reason or (f'used by {d.used_by}' if d.used_by else d.state)}"
            for d in devices
        )
        return f"no joined device is free and ready ({why})"

    async def _refreshed(self, device: Device, is_required: bool) -> Device | None:
        if device.silent_s < _FRESH_S:
            return device  # it spoke just now
        try:
            facts = await self._tools.registry.agent(device.id).facts()
        except (AgentUnreachable, AgentRefused) as exc:
            if is_required:
                raise
            log.warning("device.left_out", extra={"device": device.name, "reason": str(exc)})
            return None
        self._tools.registry.took_facts(device.id, facts)
        return device.model_copy(update={"facts": facts})


def _refuse_unusable(device: Device, deployment: DeploymentId | None) -> None:
    if device.state in (DeviceCondition.INCOMPATIBLE, DeviceCondition.UNUSABLE):
        raise WorkerIncompatible(f"{device.name} cannot take part: {device.reason}")
    if device.state != DeviceCondition.READY:
        raise AgentUnreachable(f"{device.name} cannot take part: {device.reason}")
    if device.used_by not in (None, deployment):
        raise WorkerBusy(f"{device.name} is in use by deployment {device.used_by}; stop that first")


def _is_main_host(device: Device, boot_id: str) -> bool:
    return bool(boot_id) and device.facts is not None and device.facts.boot_id == boot_id


def _candidates(device: Device) -> list[Candidate]:
    """One candidate per ggml device. A CPU's "free" memory is wrong; the agent's is right."""
    facts = device.facts
    if facts is None:
        return []
    return [
        Candidate(
            agent_id=device.id,
            device=device.name,
            ggml_device=ggml.name,
            host=device.address,
            available_bytes=facts.memory_available_bytes if ggml.is_cpu else ggml.free_bytes,
        )
        for ggml in facts.ggml_devices
    ]
