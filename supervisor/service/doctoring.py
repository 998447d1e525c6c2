"""``supervisor doctor``: what every device finds of itself, and what the main host sees of it."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from agents.contract import Finding
from agents.doctor.examination import Doctor
from agents.doctor.subject import Subject
from agents.errors import ProjectError
from supervisor.core import doctor
from supervisor.core.doctor import DeviceFindings, Greeting
from supervisor.core.entities import Deployment, Device
from supervisor.core.offers import host_held_bytes
from supervisor.core.planning import HOST
from supervisor.errors import AgentRefused, StoreUnusable
from supervisor.service import model_memory
from supervisor.service.model_memory import HOLDING, AskPlanner, MemoryAnswer, Question
from supervisor.service.tools import Tools

DEVICE_LIMIT_S: Final = 25.0
"""A device has 20 s for its own checks."""
_STORE_LIMIT_S: Final = 5.0


class Greet(Protocol):
    """A handshake with one port of a device; what goes wrong is told in the answer."""

    def __call__(self, agent_id: str, address: str, port: int) -> Awaitable[Greeting]: ...


@dataclass(frozen=True, slots=True)
class Greetings:
    """What became of the handshakes with one device; None: it has no link."""

    rest: Greeting
    link: Greeting | None

    @property
    def of_tensors(self) -> Greeting:
        """That tells the round trip of tensors, if any does."""
        return self.link if self.link is not None and not self.link.problem else self.rest


class Doctoring:
    """Examines the main host and every device, all at once, each with its own deadline."""

    def __init__(
        self,
        tools: Tools,
        greet: Greet,
        ask_planner: AskPlanner,
        deployments: Callable[[], Sequence[Deployment]],
        *,
        url: str,
        join_endpoints: tuple[str, ...],
    ) -> None:
        self._tools = tools
        self._greet = greet
        self._ask_planner = ask_planner
        self._deployments = deployments
        self._url = url
        self._join_endpoints = join_endpoints
        self._own = Doctor(self._own_subject)

    async def report(
        self, names: Sequence[str] = (), question: Question | None = None
    ) -> list[DeviceFindings]:
        """Findings of the main host first, then of every device by name; or only of those named.

        Raises:
            DeviceUnknown: One of the names; nothing was examined.
        """
        devices = self._chosen(names)
        wants_host = not names or HOST in names or self._tools.main_host.name in names
        # Before anything else, which would make their round trips look longer.
        greetings = await asyncio.gather(*(self._greeted(device) for device in devices))
        host, asked, said = await asyncio.gather(
            self._host(wanted=wants_host),
            self._asked(question),
            asyncio.gather(*map(self._own_findings, devices, greetings)),
        )
        groups = [(HOST, host)] if host or asked else []
        groups += [
            (device.name, self._of_device(device, greeted, own, error))
            for device, greeted, (own, error) in zip(devices, greetings, said, strict=True)
        ]
        if asked is not None:
            groups = _with_shares(groups, asked)
        return [DeviceFindings(device=name, findings=tuple(found)) for name, found in groups]

    def _chosen(self, names: Sequence[str]) -> list[Device]:
        registry = self._tools.registry
        if not names:
            return sorted(registry.devices(), key=lambda device: device.name)
        own = (HOST, self._tools.main_host.name)
        joined = {device.name for device in registry.devices()}
        # A device of ours may have the name of its host.
        found = [registry.find(name) for name in names if name not in own or name in joined]
        return list({device.id: device for device in found}.values())

    async def close(self) -> None:
        await self._own.close()

    # -- the main host -------------------------------------------------------------------------

    async def _host(self, *, wanted: bool) -> list[Finding]:
        if not wanted:
            return []
        settings, engine = self._tools.settings, self._tools.main_host.engine
        store, join, own = await asyncio.gather(
            self._store_problem(), self._join_problem(), self._own.findings()
        )
        return [
            doctor.supervisor_runs(self._url),
            doctor.store(store),
            doctor.dashboard(settings.host, self._url, settings.keyless_loopback),
            doctor.join_port(self._join_endpoints, join),
            doctor.release(engine),
            *own,
        ]

    async def _own_subject(self) -> Subject:
        host = self._tools.main_host
        ports = (int(each.rpartition(":")[2]) for each in self._join_endpoints)
        return Subject.here(
            host.folder,
            dict(os.environ),
            is_main_host=True,
            engine=host.engine,
            engine_is_known=True,
            agent_ports=tuple(ports),
            serving_bytes=self._serving_bytes(),
        )

    def _serving_bytes(self) -> int:
        """Memory of this host that is in use for deployments."""
        plans = [d.plan for d in self._deployments() if d.plan and d.state in HOLDING]
        held = sum(host_held_bytes(plan) for plan in plans)
        for device in self._tools.registry.devices():
            is_here = device.facts and device.facts.boot_id == self._tools.main_host.boot_id
            if is_here and device.rpc_server is not None:
                held += device.rpc_server.resident_bytes or 0
        return held

    async def _store_problem(self) -> str:
        if problem := self._tools.journal.problem:
            return problem
        try:
            async with asyncio.timeout(_STORE_LIMIT_S):
                await asyncio.to_thread(self._tools.store.last_event_id)
        except StoreUnusable as exc:
            return str(exc)
        except TimeoutError:
            return f"it did not answer within {_STORE_LIMIT_S:g} s"
        return ""

    async def _join_problem(self) -> str:
        """Whether somebody listens there. A connection alone costs the listener nothing."""
        for endpoint in self._join_endpoints:
            host, _, port = endpoint.rpartition(":")
            try:
                async with asyncio.timeout(_STORE_LIMIT_S):
                    _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            except (OSError, TimeoutError) as exc:
                return f"nobody answers there ({str(exc) or type(exc).__name__})"
            writer.transport.abort()
        return ""

    # -- a device ------------------------------------------------------------------------------

    async def _own_findings(
        self, device: Device, greeted: Greetings
    ) -> tuple[tuple[Finding, ...], str]:
        """What it says of itself, or why it says nothing."""
        if greeted.rest.problem:
            return (doctor.examination(greeted.rest.problem),), ""
        try:
            async with asyncio.timeout(DEVICE_LIMIT_S):
                return tuple(await self._tools.registry.agent(device.id).examine()), ""
        except AgentRefused as exc:
            is_old = "404" in str(exc)
            return (doctor.examination(str(exc), is_old=is_old),), "" if is_old else str(exc)
        except ProjectError as exc:
            return (doctor.examination(str(exc)),), str(exc)
        except TimeoutError:
            why = f"it did not answer within {DEVICE_LIMIT_S:g} s"
            return (doctor.examination(why),), why

    async def _greeted(self, device: Device) -> Greetings:
        rest, link = await asyncio.gather(self._greeted_rest(device), self._greeted_link(device))
        return Greetings(rest, link)

    async def _greeted_rest(self, device: Device) -> Greeting:
        if not device.rest_port:
            return Greeting(device.name, "its address is not known yet")
        return await self._greet(device.id, device.address, device.rest_port)

    async def _greeted_link(self, device: Device) -> Greeting | None:
        if not device.link_port:
            return None
        return await self._greet(device.id, device.link_address, device.link_port)

    def _of_device(
        self, device: Device, greeted: Greetings, own: tuple[Finding, ...], error: str
    ) -> list[Finding]:
        return [
            doctor.membership(device),
            doctor.rest_api(greeted.rest, error),
            doctor.link(greeted.link),
            doctor.link_speed(device, greeted.of_tensors),
            doctor.same_engine(device, self._tools.main_host.engine),
            doctor.certificate(greeted.rest, time.time()),
            *own,
        ]

    # -- the question --------------------------------------------------------------------------

    async def _asked(self, question: Question | None) -> MemoryAnswer | None:
        if question is None:
            return None
        return await model_memory.answer(question, self._ask_planner, self._deployments())


def _with_shares(
    groups: Iterable[tuple[str, list[Finding]]], asked: MemoryAnswer
) -> list[tuple[str, list[Finding]]]:
    """Each device's part of the model at its own place, before what else was found of it."""
    told = [(name, [*_shares_of(name, asked.by_device), *found]) for name, found in groups]
    return [(name, [asked.overall, *found] if name == HOST else found) for name, found in told]


def _shares_of(name: str, by_device: Mapping[str, Finding]) -> list[Finding]:
    """A device with several GPUs has a part for each."""
    return [finding for place, finding in by_device.items() if place.partition("/")[0] == name]
