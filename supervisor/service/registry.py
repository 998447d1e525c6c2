"""The devices that have joined, their last word, and who may join."""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from agents import tls
from agents.contract import DeviceFacts, Heartbeat, JoinReply, JoinRequest, RpcServerStatus
from supervisor.core.entities import AgentId, DeploymentId, Device
from supervisor.core.membership import DeviceCondition, assess
from supervisor.errors import BadRequest, BadToken, DeviceUnknown, WorkerBusy
from supervisor.ports import AgentPort, IssuerPort
from supervisor.service.events import EventBus
from supervisor.settings import Settings

log = logging.getLogger(__name__)

WATCH_EVERY_S = 1.0
PAUSED_S = 3.0
"""A watch that comes so long after the last one shows that we did not run ourselves."""

_DEVICE_ID = re.compile(r"[0-9A-Za-z-]{1,56}")


class RegistryStore(Protocol):
    """What the registry keeps."""

    def agents(self) -> list[tuple[AgentId, str, str, str, int]]: ...

    def save_agent(self, agent_id: AgentId, name: str, serial: str, joined_at: str) -> None: ...

    def save_agent_address(self, agent_id: AgentId, address: str, rest_port: int) -> None: ...

    def delete_agent(self, agent_id: AgentId) -> None: ...

    def forget_measurements(self, agent_id: AgentId) -> None: ...

    def forget_lesson(self, agent_id: AgentId) -> None: ...

    def save_token(
        self, token_hash: str, expires_at_s: float, uses: int | None, *, now_s: float
    ) -> None: ...

    def spend_token(self, token_hash: str, now_s: float) -> str: ...


@dataclass(slots=True)
class _Entry:
    name: str
    serial: str
    address: str = ""
    rest_port: int = 0
    link_address: str = ""
    link_port: int = 0
    facts: DeviceFacts | None = None
    rpc_server: RpcServerStatus | None = None
    heard_at_s: float = float("-inf")
    used_by: DeploymentId | None = None
    round_trip_ms: float | None = None
    client: AgentPort | None = None
    condition: DeviceCondition = DeviceCondition.LOST
    doubt: str = ""
    doubted_at_s: float = float("-inf")


class Registry:
    """Owns the list of devices."""

    def __init__(
        self,
        settings: Settings,
        store: RegistryStore,
        issuer: IssuerPort,
        connect: Callable[[str, str, str, int], AgentPort],
        bus: EventBus,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._store = store
        self._issuer = issuer
        self._connect = connect
        self._bus = bus
        self._clock = clock
        self._changed = asyncio.Condition()
        self._watched_at_s: float | None = None
        self.rpc_protocol = ""
        """Version of the main host's engine; a device with another one is incompatible."""
        self.engine_build = ""
        """The same of its build."""
        self.on_change: Callable[[str, str, str], object] = lambda name, change, reason: None
        """Told when a device joins, changes its condition, or is removed."""
        self._entries = {
            agent_id: _Entry(name, serial, address, port)
            for agent_id, name, serial, address, port in store.agents()
        }

    # -- joining -----------------------------------------------------------------------------

    def new_token(self, *, hours: float, once: bool = False) -> tuple[str, datetime]:
        """A fresh join token and when it expires. Only its hash is kept."""
        token = secrets.token_urlsafe(12)
        now_s = time.time()
        expires_at_s = now_s + hours * 3600
        self._store.save_token(_hash(token), expires_at_s, 1 if once else None, now_s=now_s)
        return token, datetime.fromtimestamp(expires_at_s, UTC)

    def join(self, request: JoinRequest) -> JoinReply:
        """Admit a device and give it an identity; one that joined before gets a new one.

        Raises:
            BadToken: The token is wrong, used up or expired.
            BadRequest: The id cannot be the name of a certificate.
        """
        if not _DEVICE_ID.fullmatch(request.agent_id):
            raise BadRequest(f"{request.agent_id[:60]!r} is not a device id; it should be a UUID")
        verdict = self._store.spend_token(_hash(request.token), time.time())
        if verdict != "ok":
            raise BadToken(
                f"the join token is {verdict}; print a new join code with 'supervisor invite'"
            )
        agent_id = AgentId(request.agent_id)
        issued = self._issuer.issue(tls.agent_name(agent_id))
        name = self._unique_name(request.name, agent_id)
        self._store.save_agent(agent_id, name, issued.serial, datetime.now(UTC).isoformat())
        entry = self._entries.setdefault(agent_id, _Entry(name, issued.serial))
        entry.name, entry.serial = name, issued.serial
        log.info("device.joined", extra={"device": name, "id": agent_id})
        self.on_change(name, "joined", "")
        return JoinReply(issued.certificate_pem, issued.key_pem, self._issuer.certificate_pem)

    def _unique_name(self, wanted: str, agent_id: AgentId) -> str:
        taken = {entry.name for other, entry in self._entries.items() if other != agent_id}
        base = "".join(c if c.isalnum() or c in "-_." else "-" for c in wanted)[:40] or "device"
        name, number = base, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        return name

    def recognises(self, agent_id: AgentId, serial: str) -> bool:
        """Whether a certificate is the current one of a joined device."""
        entry = self._entries.get(agent_id)
        return entry is not None and int(entry.serial, 16) == int(serial or "0", 16)

    async def remove(self, agent_id: AgentId) -> None:
        """Forget a device; its certificate is refused from now on."""
        entry = self._entry(agent_id)
        await self._disconnect(entry)
        del self._entries[agent_id]
        self._store.delete_agent(agent_id)
        self._store.forget_measurements(agent_id)
        self._store.forget_lesson(agent_id)
        self.on_change(entry.name, "removed", "")
        self._bus.publish("device_removed", {"id": agent_id})
        await self._notify()

    # -- hearing -----------------------------------------------------------------------------

    async def heard(self, agent_id: AgentId, message: Heartbeat, peer_address: str) -> None:
        """Take a heartbeat. The address is the one it came from, unless it names another."""
        entry = self._entry(agent_id)
        address = message.address or peer_address
        if (address, message.rest_port) != (entry.address, entry.rest_port):
            entry.address, entry.rest_port = address, message.rest_port
            await self._disconnect(entry)
            self._store.save_agent_address(agent_id, address, message.rest_port)
        entry.facts, entry.rpc_server = message.facts, message.rpc_server
        entry.link_address, entry.link_port = message.link_address, message.link_port
        entry.heard_at_s = self._clock()
        self._publish(agent_id)
        await self._notify()

    def doubt(self, agent_id: AgentId, why: str, *, until_heard: bool) -> None:
        """Give a device no new work until :meth:`trust` is called.

        ``until_heard``: its agent did not answer either, and has to be heard first.
        """
        entry = self._entries.get(agent_id)
        if entry is not None:
            entry.doubt = why
            entry.doubted_at_s = self._clock() if until_heard else float("-inf")
            self._publish(agent_id)

    async def wait_trusted(self, limit_s: float) -> None:
        """Wait until no device is in doubt, for a moment; people who ask for it may be patient."""
        deadline_s = self._clock() + limit_s
        while any(entry.doubt for entry in self._entries.values()):
            left_s = deadline_s - self._clock()
            if left_s <= 0:
                return
            await self.wait_changed(left_s)

    def doubted(self) -> list[Device]:
        """Devices in doubt whose agents were heard again."""
        entries = self._entries.items()
        return [self.device(i) for i, e in entries if e.doubt and e.heard_at_s > e.doubted_at_s]

    async def trust(self, agent_id: AgentId) -> None:
        """End the doubt about a device."""
        if agent_id in self._entries:
            self._entries[agent_id].doubt = ""
            self._publish(agent_id)
            await self._notify()

    def took_facts(self, agent_id: AgentId, facts: DeviceFacts) -> None:
        """Fresher facts than the last heartbeat's."""
        self._entry(agent_id).facts = facts

    def took_round_trip(self, agent_id: AgentId, round_trip_ms: float) -> None:
        """A measured round trip from the main host to the worker."""
        self._entry(agent_id).round_trip_ms = round_trip_ms

    async def watch_silence(self) -> None:
        """Publish devices whose condition changes because they say nothing. Runs for ever."""
        while True:
            await self.look_at_silence()
            await asyncio.sleep(WATCH_EVERY_S)

    async def look_at_silence(self) -> None:
        """One look. Time in which we did not run (SIGSTOP, a sleeping laptop) is nobody's silence:
        what came meanwhile has not been read yet.
        """
        now_s, paused_s = self._clock(), self._paused_s()
        self._watched_at_s = now_s
        if paused_s:
            log.warning("supervisor.paused", extra={"paused_s": round(paused_s, 1)})
            for entry in self._entries.values():
                entry.heard_at_s = min(entry.heard_at_s + paused_s, now_s)
        changed = [i for i, e in self._entries.items() if self._condition(e)[0] != e.condition]
        for agent_id in changed:
            self._publish(agent_id)
        if changed:
            await self._notify()

    def _paused_s(self) -> float:
        """How long we have not run since the last look, beyond the pause between two."""
        if self._watched_at_s is None:
            return 0.0
        late_s = self._clock() - self._watched_at_s - WATCH_EVERY_S
        return late_s if late_s > PAUSED_S - WATCH_EVERY_S else 0.0

    def _silent_s(self, entry: _Entry) -> float:
        return max(self._clock() - entry.heard_at_s - self._paused_s(), 0.0)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def wait_changed(self, timeout_s: float) -> None:
        """Return at the next news of any device, or after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait()
        except TimeoutError:
            pass

    async def close(self) -> None:
        """Close the connections to all agents."""
        for entry in self._entries.values():
            await self._disconnect(entry)

    async def _disconnect(self, entry: _Entry) -> None:
        client, entry.client = entry.client, None
        if client is not None:
            await client.close()

    # -- asking ------------------------------------------------------------------------------

    def devices(self) -> list[Device]:
        """All devices with their condition now."""
        return [self.device(agent_id) for agent_id in self._entries]

    def device(self, agent_id: AgentId) -> Device:
        """One device.

        Raises:
            DeviceUnknown: It never joined, or was removed.
        """
        entry = self._entry(agent_id)
        condition, reason = self._condition(entry)
        return Device(
            id=agent_id,
            name=entry.name,
            address=entry.address,
            rest_port=entry.rest_port,
            link_address=entry.link_address or entry.address,
            link_port=entry.link_port,
            state=str(condition),
            reason=reason,
            silent_s=round(min(self._silent_s(entry), 1e9), 1),
            facts=entry.facts,
            rpc_server=entry.rpc_server,
            used_by=entry.used_by,
            round_trip_ms=entry.round_trip_ms,
        )

    def find(self, name_or_id: str) -> Device:
        """The device with this name or id.

        Raises:
            DeviceUnknown: With the names that exist.
        """
        for agent_id, entry in self._entries.items():
            if name_or_id in (agent_id, entry.name):
                return self.device(agent_id)
        names = ", ".join(sorted(e.name for e in self._entries.values())) or "none has joined"
        raise DeviceUnknown(f"no device {name_or_id!r}; joined devices: {names}")

    def agent(self, agent_id: AgentId) -> AgentPort:
        """Client of a device's agent."""
        entry = self._entry(agent_id)
        if entry.client is None:
            entry.client = self._connect(agent_id, entry.name, entry.address, entry.rest_port)
        return entry.client

    def serial(self, agent_id: AgentId) -> str:
        """Of the certificate that the device got when it joined last, hexadecimal."""
        return self._entry(agent_id).serial

    def reserve(self, agent_id: AgentId, deployment: DeploymentId) -> None:
        """Mark a device as taken by a deployment.

        Raises:
            WorkerBusy: Another deployment took it first; its rpc-server serves only one.
        """
        entry = self._entry(agent_id)
        if entry.used_by not in (None, deployment):
            raise WorkerBusy(
                f"{entry.name} is in use by deployment {entry.used_by}; stop that first"
            )
        entry.used_by = deployment
        self._publish(agent_id)

    def release(self, deployment: DeploymentId) -> None:
        """Free every device of a deployment."""
        for agent_id, entry in self._entries.items():
            if entry.used_by == deployment:
                entry.used_by = None
                self._publish(agent_id)

    def _entry(self, agent_id: AgentId) -> _Entry:
        try:
            return self._entries[agent_id]
        except KeyError:
            raise DeviceUnknown(f"no device {agent_id}; see 'supervisor devices'") from None

    def _condition(self, entry: _Entry) -> tuple[DeviceCondition, str]:
        condition, reason = self._assessed(entry)
        if condition is DeviceCondition.READY and entry.doubt:
            return DeviceCondition.SUSPECT, entry.doubt
        return condition, reason

    def _assessed(self, entry: _Entry) -> tuple[DeviceCondition, str]:
        return assess(
            entry.facts,
            silent_s=self._silent_s(entry),
            late_after_s=self._settings.late_after_s,
            stale_after_s=self._settings.stale_after_s,
            rpc_protocol=self.rpc_protocol,
            engine_build=self.engine_build,
        )

    def _publish(self, agent_id: AgentId) -> None:
        device = self.device(agent_id)
        entry = self._entries[agent_id]
        condition = DeviceCondition(device.state)
        if condition is not entry.condition:
            level = logging.INFO if condition is DeviceCondition.READY else logging.WARNING
            extra = {"device": entry.name, "from": str(entry.condition), "to": str(condition)}
            log.log(level, "device.condition_changed", extra={**extra, "reason": device.reason})
            self.on_change(entry.name, f"{entry.condition} -> {condition}", device.reason)
            entry.condition = condition
        self._bus.publish("device", device.model_dump(mode="json"))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
