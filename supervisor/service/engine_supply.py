"""Gives joined devices that lack an engine, or have another one, the main host's build."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from agents.contract import EngineFacts
from agents.engine import name_of
from agents.errors import ProjectError
from supervisor.core.engine_change import needs_engine, progress_text
from supervisor.core.entities import AgentId, Device
from supervisor.core.membership import DeviceCondition
from supervisor.errors import ReleaseUnknown
from supervisor.service.device_engines import DeviceEngines
from supervisor.service.registry import Registry
from supervisor.service.tools import MainHost

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0
_FIRST_PAUSE_S: Final = 5.0
_LONGEST_PAUSE_S: Final = 300.0
_NOTHING: Final = (
    "the main host has none to give either: 'supervisor engine install' there fetches one for all"
)


@dataclass(slots=True)
class _Pause:
    """Before a device is tried again, unless the main host has another engine by then."""

    until_s: float
    length_s: float
    build: str
    lacks_archive: bool = False
    """It ends when there is one: somebody was told to install it."""


class EngineSupply:
    """Looks at what devices report; what it does is in their reasons."""

    def __init__(
        self,
        registry: Registry,
        engines: DeviceEngines,
        main_host: MainHost,
        is_changing: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``is_changing``: somebody else gives the devices their engines for now."""
        self._registry = registry
        self._engines = engines
        self._main_host = main_host
        self._is_changing = is_changing
        self._clock = clock
        self._tasks: dict[AgentId, asyncio.Task[None]] = {}
        self._pauses: dict[AgentId, _Pause] = {}

    async def run(self) -> None:
        """Look after all devices. Runs for ever."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(_LOOK_EVERY_S)
        finally:
            await self._end()

    async def look(self) -> None:
        """Begin with every device that needs it and whose time has come."""
        if self._is_changing():
            await self._end()
            return
        engine = self._main_host.engine
        self._tasks = {a: task for a, task in self._tasks.items() if not task.done()}
        devices = self._registry.devices()
        self._pauses = {d.id: self._pauses[d.id] for d in devices if d.id in self._pauses}
        if engine is None or engine.problem:
            for device in devices:
                lacks = device.state == DeviceCondition.UNUSABLE
                self._registry.note_engine(device.id, _NOTHING if lacks else "")
            return
        await self._end_pauses(engine)
        for device in devices:
            if not needs_engine(device, engine):
                if device.id not in self._tasks:
                    self._pauses.pop(device.id, None)
                    self._registry.note_engine(device.id, "")
            elif device.id not in self._tasks and self._is_due(device.id, engine):
                self._tasks[device.id] = asyncio.create_task(self._supply(device, engine))

    async def _end_pauses(self, engine: EngineFacts) -> None:
        for device in self._registry.devices():
            pause = self._pauses.get(device.id)
            if device.facts is None or pause is None or not pause.lacks_archive:
                continue
            if await self._engines.has_archive(engine, device.facts):
                del self._pauses[device.id]

    def _is_due(self, agent_id: AgentId, engine: EngineFacts) -> bool:
        pause = self._pauses.get(agent_id)
        return pause is None or pause.build != engine.build or self._clock() >= pause.until_s

    async def _supply(self, device: Device, engine: EngineFacts) -> None:
        build, registry = name_of(engine), self._registry

        def failed(why: str, *, lacks_archive: bool = False) -> None:
            pause = self._put_off(device.id, engine)
            pause.lacks_archive = lacks_archive
            again = f"it is tried again in {pause.length_s:.0f} s"
            again = "it is tried again when there is one" if lacks_archive else again
            registry.note_engine(device.id, f"llama.cpp {build} did not get there: {why} ({again})")
            extra = {"device": device.name, "build": build, "reason": why}
            log.warning("device.engine_not_supplied", extra={**extra, "again_in_s": pause.length_s})

        if device.id not in self._pauses:
            log.info("device.engine_supplied", extra={"device": device.name, "build": build})
            registry.note_engine(device.id, f"it gets llama.cpp {build} from the main host")
        try:
            with registry.doing([device.id], f"getting llama.cpp {build}"):
                called = await self._engines.bring(
                    device.id,
                    engine,
                    lambda i: registry.note_engine(device.id, progress_text(build, i)),
                )
                if registry.device(device.id).used_by is None:
                    await self._engines.use(device.id, called)
        except ReleaseUnknown as exc:
            failed(str(exc), lacks_archive=True)
        except ProjectError as exc:
            failed(_once(str(exc), device.name))
        except Exception as exc:
            log.exception("engine_supply.bug", extra={"device": device.name})
            failed(f"internal error {exc!r}; please report it")
        else:
            # Its next heartbeat tells; should it not be well then, it is not tried at once again.
            self._put_off(device.id, engine)

    def _put_off(self, agent_id: AgentId, engine: EngineFacts) -> _Pause:
        before = self._pauses.get(agent_id)
        length_s = _FIRST_PAUSE_S
        if before is not None and before.build == engine.build:
            length_s = min(before.length_s * 2, _LONGEST_PAUSE_S)
        pause = _Pause(self._clock() + length_s, length_s, engine.build)
        self._pauses[agent_id] = pause
        return pause

    async def _end(self) -> None:
        tasks, self._tasks = self._tasks, {}
        for agent_id, task in tasks.items():
            task.cancel()
            self._registry.note_engine(agent_id, "")
        await asyncio.gather(*tasks.values(), return_exceptions=True)


def _once(text: str, name: str) -> str:
    """The reason is shown beside the name."""
    return text.removeprefix(f"{name}: ")
