"""Brings an engine of the main host to a device, beside the one that it uses."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from agents.contract import DeviceFacts, EngineFacts, EngineInstall, EngineOffer, InstallState
from agents.engine import name_of
from agents.errors import EngineInUse, EngineUnusable, ProjectError
from supervisor.core.entities import AgentId
from supervisor.errors import AgentRefused, AgentUnreachable, ReleaseUnknown
from supervisor.ports import AgentPort, Shelf
from supervisor.service.registry import Registry

log = logging.getLogger(__name__)

AT_ONCE: Final = 3
_LOOK_EVERY_S: Final = 0.5
_SILENT_S: Final = 30.0
"""An agent may be restarted meanwhile; then it goes on where it was."""
_STALL_S: Final = 600.0
"""Without a byte; the agent itself gives up long before."""
_BUSY_S: Final = 45.0
"""For an rpc-server that nobody wants any more to be ended."""

Tell = Callable[[EngineInstall], None]


class DeviceEngines:
    """At most three transfers at once, so that the network stays usable."""

    def __init__(
        self, registry: Registry, shelf: Shelf, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._registry = registry
        self._shelf = shelf
        self._clock = clock
        self._transfers = asyncio.Semaphore(AT_ONCE)
        self._packing = asyncio.Lock()

    async def bring(self, agent_id: AgentId, engine: EngineFacts, tell: Tell) -> str:
        """Have an engine of the main host's build proven on a device; nothing there changes.

        Returns:
            What that device calls the build.

        Raises:
            ReleaseUnknown: There is nothing for its platform; says what to do.
            AgentUnreachable, AgentRefused: It did not get it, or it does not work there.
            EngineUnusable: The main host's own programs cannot be packed.
        """
        device = self._registry.device(agent_id)
        assert device.facts is not None
        async with self._transfers:
            agent = self._registry.agent(agent_id)
            try:
                offer = await self._offer(engine, device.facts)
            except (ReleaseUnknown, EngineUnusable) as exc:
                return await self._has_already(agent, engine, exc)
            await self._through(agent, device.name, offer, tell)
            return offer.build

    async def has_archive(self, engine: EngineFacts, facts: DeviceFacts) -> bool:
        """Whether there is one for a device by now; packs nothing."""
        try:
            await asyncio.to_thread(self._shelf.offer, name_of(engine), facts)
        except ReleaseUnknown:
            return False
        return True

    async def use(self, agent_id: AgentId, build: str) -> EngineFacts:
        """Let a device change to a build that it has.

        Raises:
            AgentUnreachable, AgentRefused: It did not.
        """
        deadline_s = self._clock() + _BUSY_S
        while True:
            try:
                return await self._registry.agent(agent_id).use_engine(build)
            except AgentRefused as exc:
                if exc.code != EngineInUse.code or self._clock() >= deadline_s:
                    raise
            await self._end_unwanted(agent_id)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _end_unwanted(self, agent_id: AgentId) -> None:
        device = self._registry.device(agent_id)
        if device.used_by is None:
            agent = self._registry.agent(agent_id)
            status = await agent.rpc_server()
            await agent.stop_rpc_server(status.generation)

    async def _offer(self, engine: EngineFacts, facts: DeviceFacts) -> EngineOffer:
        """The archive of its release; of programs without one, packed here for similar devices.

        Raises:
            ReleaseUnknown, EngineUnusable
        """
        async with self._packing:
            missing: ReleaseUnknown | None = None
            if engine.release:
                try:
                    return await asyncio.to_thread(self._shelf.offer, engine.release, facts)
                except ReleaseUnknown as exc:
                    missing = exc
            try:
                build = await asyncio.to_thread(self._shelf.pack, engine)
                return await asyncio.to_thread(self._shelf.offer, build, facts)
            except (ReleaseUnknown, EngineUnusable) as exc:
                raise (missing or exc) from exc

    async def _has_already(
        self, agent: AgentPort, engine: EngineFacts, missing: ProjectError
    ) -> str:
        """Whether the device needs no archive, since it used that build before."""
        build = name_of(engine)
        await agent.offer_engine(EngineOffer(build, "", "", 0))
        deadline_s = self._clock() + _SILENT_S
        while self._clock() < deadline_s:
            install = await agent.engine_install()
            if install is not None and install.state is InstallState.READY:
                return build
            if install is None or install.state is InstallState.FAILED:
                break
            await asyncio.sleep(_LOOK_EVERY_S)
        raise missing

    async def _through(self, agent: AgentPort, name: str, offer: EngineOffer, tell: Tell) -> None:
        """Follow an offer to its end, through restarts of the agent."""
        heard_s = moved_s = self._clock()
        done_bytes = -1
        await agent.offer_engine(offer)
        while True:
            try:
                install = await agent.engine_install()
                if install is None or install.build != offer.build:
                    install = await agent.offer_engine(offer)  # its agent began anew
                heard_s = self._clock()
            except AgentUnreachable:
                if self._clock() - heard_s > _SILENT_S:
                    raise
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            tell(install)
            if install.state is InstallState.READY:
                return
            if install.state is InstallState.FAILED:
                raise AgentRefused(f"{name}: {install.detail}", install.error_code or "error")
            if install.done_bytes != done_bytes:
                done_bytes, moved_s = install.done_bytes, self._clock()
            if self._clock() - moved_s > _STALL_S:
                raise AgentUnreachable(
                    f"{name} got no byte of llama.cpp {offer.build} in {_STALL_S:.0f} s, "
                    f"{done_bytes} of {offer.size_bytes} so far; check the network to it"
                )
            await asyncio.sleep(_LOOK_EVERY_S)
