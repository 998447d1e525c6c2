"""The devices that have joined, their last word, and who may join."""

import asyncio
import hashlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from agents import tls
from agents.contract import DeviceFacts, Heartbeat, JoinReply, JoinRequest
from supervisor.core.entities import AgentId, DeploymentId, Device, DeviceChoice, Wire
from supervisor.core.measurements import DeviceMeasured, LinkMeasured, measured_speed
from supervisor.core.membership import DeviceCondition, assess
from supervisor.core.wires import AUTOMATIC, why, with_choice
from supervisor.errors import BadRequest, BadToken, DeviceUnknown, WorkerBusy
from supervisor.ports import AgentPort, IssuerPort
from supervisor.service.events import EventBus
from supervisor.service.known_devices import (
    Entry,
    RegistryStore,
    doing_now,
    may_be_in_name,
    remembered,
)
from supervisor.settings import Settings

log = logging.getLogger(__name__)

WATCH_EVERY_S = 1.0
PAUSED_S = 3.0
"""A watch that comes so long after the last one shows that we did not run ourselves."""

_WITHOUT_ENGINE = (DeviceCondition.UNUSABLE, DeviceCondition.INCOMPATIBLE)
_DEVICE_ID = re.compile(r"[0-9A-Za-z-]{1,56}")
_LONGEST_NAME = 40


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
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._store = store
        self._issuer = issuer
        self._connect = connect
        self._bus = bus
        self._clock = clock
        self._now = now
        self._changed = asyncio.Condition()
        self._watched_at_s: float | None = None
        self.rpc_protocol = ""
        """Version of the main host's engine; a device with another one is incompatible."""
        self.engine_build = ""
        """The same of its build."""
        self.on_change: Callable[[str, str, str], object] = lambda name, change, reason: None
        """Told when a device joins, changes its condition, or is removed."""
        self._entries = remembered(store)

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
        known = self._entries.get(agent_id)
        given = known.choice.name if known else ""
        name = given or self._unique_name(request.name, agent_id)
        self._store.save_agent(agent_id, name, issued.serial, datetime.now(UTC).isoformat())
        new = Entry(name, issued.serial, DeviceChoice(agent_id=agent_id))
        entry = self._entries.setdefault(agent_id, new)
        entry.name, entry.serial = name, issued.serial
        log.info("device.joined", extra={"device": name, "id": agent_id})
        self.on_change(name, "joined", "")
        return JoinReply(issued.certificate_pem, issued.key_pem, self._issuer.certificate_pem)

    def _unique_name(self, wanted: str, agent_id: AgentId) -> str:
        taken = self._names_but_of(agent_id)
        safe = "".join(c if may_be_in_name(c) else "-" for c in wanted)
        base = safe[:_LONGEST_NAME] or "device"
        name, number = base, 2
        while name in taken:
            name, number = f"{base}-{number}", number + 1
        return name

    def _names_but_of(self, agent_id: AgentId) -> set[str]:
        """Names and ids of the other devices: it must not be mistaken for one of them."""
        others = [(i, entry) for i, entry in self._entries.items() if i != agent_id]
        return {name for i, entry in others for name in (str(i), entry.name)}

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
        self._store.forget_device_choice(agent_id)
        self.on_change(entry.name, "removed", "")
        self._bus.publish("device_removed", {"id": agent_id})
        await self._notify()

    # -- what the operator decides -----------------------------------------------------------

    async def exclude(self, agent_id: AgentId, *, excluded: bool) -> Device:
        """Make no plan with a device any more, or again. What runs there goes on.

        Raises:
            DeviceUnknown, StoreUnusable
        """
        entry = self._entry(agent_id)
        if excluded != entry.choice.excluded:
            self._choose(entry, excluded=excluded)
            self.on_change(entry.name, "excluded" if excluded else "included", "")
            self._publish(agent_id)
            await self._notify()
        return self.device(agent_id)

    def check_name(self, agent_id: AgentId, name: str) -> None:
        """Whether a device may be called that.

        Raises:
            BadRequest: It says why not.
        """
        if not 0 < len(name) <= _LONGEST_NAME or not all(map(may_be_in_name, name)):
            raise BadRequest(
                f"{name[:60]!r} is no name for a device; take 1 to {_LONGEST_NAME} letters, "
                "digits, and any of - _ ."
            )
        if name in self._names_but_of(agent_id):
            raise BadRequest(f"another device is called {name!r} already; choose another name")

    async def rename(self, agent_id: AgentId, name: str) -> Device:
        """Give a device another name, which it keeps. Whose plan has the old one is not asked.

        Raises:
            DeviceUnknown, BadRequest, StoreUnusable
        """
        entry, before = self._entry(agent_id), self._entry(agent_id).name
        self.check_name(agent_id, name)
        if name != before:
            self._choose(entry, name=name)
            entry.name = name
            await self._disconnect(entry)  # the client tells of its device by name
            self.on_change(name, f"renamed from {before}", "")
            self._publish(agent_id)
            await self._notify()
        return self.device(agent_id)

    def _choose(self, entry: Entry, **changes: object) -> None:
        choice = entry.choice.model_copy(update=changes)
        self._store.save_device_choice(choice)
        entry.choice = choice

    def has_excluded(self, agent_ids: Iterable[AgentId]) -> bool:
        """Whether the operator wants no plan with one of these devices."""
        found = (self._entries.get(agent_id) for agent_id in agent_ids)
        return any(entry.choice.excluded for entry in found if entry is not None)

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
        entry.engine_install = message.engine_install
        entry.link_address, entry.link_port = message.link_address, message.link_port
        entry.heard_at_s = self._clock()
        self._publish(agent_id)
        await self._notify()

    def took_engine(self, build: str, rpc_protocol: str) -> None:
        """The main host uses another engine now; devices with another one are incompatible."""
        self.engine_build, self.rpc_protocol = build, rpc_protocol
        for agent_id in self._entries:
            self._publish(agent_id)

    def note_engine(self, agent_id: AgentId, note: str) -> None:
        """What is done about an engine that cannot serve on a device; empty: nothing."""
        entry = self._entries.get(agent_id)
        if entry is not None and entry.engine_note != note:
            entry.engine_note = note
            self._publish(agent_id)

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

    def took_wires(self, agent_id: AgentId, wires: tuple[Wire, ...]) -> None:
        """What is known now of the ways to a device, the one for tensors first."""
        entry = self._entries.get(agent_id)
        if entry is not None:
            entry.wires = wires
            used = next((wire for wire in wires if wire.in_use), None)
            if used is not None and used.round_trip_ms is not None:
                entry.round_trip_ms = used.round_trip_ms
            self._publish(agent_id)

    async def choose_wire(self, agent_id: AgentId, far: str) -> Device:
        """Send tensors to that address of a device from now on; empty: the fastest one.

        Raises:
            DeviceUnknown, BadRequest, StoreUnusable
        """
        entry = self._entry(agent_id)
        known = [wire.far for wire in entry.wires]
        if far and far not in known:
            there = ", ".join(dict.fromkeys(known)) or "none but its usual one"
            raise BadRequest(f"{far!r} is no address of {entry.name} to choose; there are: {there}")
        if far != entry.choice.wire:
            self._choose(entry, wire=far)
            entry.wires = with_choice(entry.wires, far)
            said = why(self.device(agent_id))
            self.on_change(entry.name, f"wire {far or AUTOMATIC} chosen", said)
            self._publish(agent_id)
            await self._notify()
        return self.device(agent_id)

    def wire_failed(self, agent_id: AgentId, far: str, reason: str) -> None:
        """A launch could not use this wire; it is looked at before another does."""
        entry = self._entries.get(agent_id)
        if entry is not None:
            entry.wire_failures[far] = reason

    def take_wire_failures(self, agent_id: AgentId) -> dict[str, str]:
        """Those since this was asked last."""
        entry = self._entries.get(agent_id)
        if entry is None or not entry.wire_failures:
            return {}
        failures, entry.wire_failures = entry.wire_failures, {}
        return failures

    def took_measurement(
        self, agent_id: AgentId, measured: Sequence[DeviceMeasured], link: LinkMeasured
    ) -> None:
        """A new measurement of a device and of the link to it, which is stored already."""
        entry = self._entries.get(agent_id)
        if entry is not None:
            entry.measured, entry.link = tuple(measured), link
            self._publish(agent_id)

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

    def _silent_s(self, entry: Entry) -> float:
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

    async def _disconnect(self, entry: Entry) -> None:
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
            excluded=entry.choice.excluded,
            wires=entry.wires,
            wire=entry.choice.wire,
            doing=doing_now(entry),
            engine_install=entry.engine_install,
            speed=measured_speed(
                entry.measured,
                entry.link,
                entry.facts.engine if entry.facts else None,
                self._now(),
                timedelta(days=self._settings.measure_keeps_days),
                next((wire.far for wire in entry.wires if wire.in_use), ""),
            ),
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
                entry.used_by, entry.is_serving = None, False
                self._publish(agent_id)

    def note_serving(self, deployment: DeploymentId) -> None:
        """The devices of a deployment have loaded what they hold of it."""
        for agent_id, entry in self._entries.items():
            if entry.used_by == deployment and not entry.is_serving:
                entry.is_serving = True
                self._publish(agent_id)

    @contextmanager
    def doing(self, agent_ids: Iterable[AgentId], what: str) -> Iterator[None]:
        """Tell what devices do beside serving, for as long as the block takes."""
        entries = {i: self._entries[i] for i in agent_ids if i in self._entries}
        for agent_id, entry in entries.items():
            entry.tasks.append(what)
            self._publish(agent_id)
        try:
            yield
        finally:
            for agent_id, entry in entries.items():
                entry.tasks.remove(what)
                if self._entries.get(agent_id) is entry:  # it may have been removed meanwhile
                    self._publish(agent_id)

    def _entry(self, agent_id: AgentId) -> Entry:
        try:
            return self._entries[agent_id]
        except KeyError:
            raise DeviceUnknown(f"no device {agent_id}; see 'supervisor devices'") from None

    def _condition(self, entry: Entry) -> tuple[DeviceCondition, str]:
        condition, reason = self._assessed(entry)
        if entry.engine_note and condition in _WITHOUT_ENGINE:
            # It says what is done, in place of what the user would have to do.
            reason = f"{reason.partition('; ')[0]}; {entry.engine_note}"
        if condition is DeviceCondition.READY and entry.doubt:
            return DeviceCondition.SUSPECT, entry.doubt
        return condition, reason

    def _assessed(self, entry: Entry) -> tuple[DeviceCondition, str]:
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
