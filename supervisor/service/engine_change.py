"""Moves the whole cluster from one build of llama.cpp to another, and back if that does not work.

First every device has the new build beside the old one, proven; until then nothing changes. Then
the deployments are held, workers and main host switch, and the deployments must become ready.
Whatever fails on that way leads back to the old build.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Final

from agents.contract import EngineFacts
from agents.engine import name_of
from agents.errors import ProjectError
from supervisor.core.engine_change import (
    ChangePhase,
    DeviceChange,
    EngineChange,
    cut_off,
    has_engine,
    has_failed,
    may_change,
    wants_to_be_ready,
)
from supervisor.core.entities import AgentId, Deployment, DeploymentId, Device, LaunchRecord
from supervisor.core.membership import is_same_build
from supervisor.errors import (
    AgentUnreachable,
    BadRequest,
    DeviceUnknown,
    EngineChangeFailed,
    EngineChangeRunning,
)
from supervisor.ports import Shelf
from supervisor.service import main_engine
from supervisor.service.clock import timestamp
from supervisor.service.device_engines import DeviceEngines
from supervisor.service.events import EventBus
from supervisor.service.reconciler import Reconciler
from supervisor.service.tools import Tools

log = logging.getLogger(__name__)

CHANGED: Final = "engine_change"
"""Name of what is published on the bus."""

_LOOK_EVERY_S: Final = 0.3
_HEARD_S: Final = 20.0
"""For a device to say with a heartbeat that it has changed."""

Tell = Callable[[EngineChange], None]


class EngineChanger:
    """One change at a time, in a task of its own: whoever asked for it may leave."""

    def __init__(
        self,
        tools: Tools,
        reconciler: Reconciler,
        shelf: Shelf,
        engines: DeviceEngines,
        bus: EventBus,
    ) -> None:
        self._tools = tools
        self._registry = tools.registry
        self._main_host = tools.main_host
        self._folder = tools.main_host.folder
        self._reconciler = reconciler
        self._shelf = shelf
        self._engines = engines
        self._bus = bus
        self._view: EngineChange | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_beginning = False
        self._error: ProjectError | None = None
        self._listeners: list[Tell] = []

    @property
    def is_running(self) -> bool:
        return self._is_beginning or (self._task is not None and not self._task.done())

    @property
    def latest(self) -> EngineChange | None:
        """The change that runs, or the last one; None: there was none since we began."""
        return self._view

    # -- asking --------------------------------------------------------------------------------

    async def begin(self, build: str) -> EngineChange:
        """Begin to move the cluster to a build that this main host has.

        Raises:
            EngineChangeRunning: One is under way.
            BadRequest: The settings say which engine the main host uses.
            ReleaseUnknown: This main host has no such build.
            EngineUnusable: It does not work here.
        """
        if self.is_running:
            now = f" to llama.cpp {self._view.build}" if self._view else ""
            raise EngineChangeRunning(f"the cluster is being moved{now} already; wait for its end")
        old = self._main_host.engine
        if old is not None and old.is_fixed:
            how = "the setting engine_folder" if old.source == "setting" else "LLAMA_CPP_BIN"
            raise BadRequest(
                f"{how} says that the main host uses {old.folder}; start the supervisor without it "
                "to change the engine"
            )
        self._is_beginning = True
        try:
            target = await main_engine.wanted(
                build, old, self._shelf, self._main_host.inherited, self._folder
            )
            self._view = EngineChange(
                build_before=_called(old), build=name_of(target), started_at=timestamp()
            )
            self._error = None
            self._task = asyncio.create_task(self._run(old, target))
        finally:
            self._is_beginning = False
        return self._view

    async def follow(self, tell: Tell) -> EngineChange:
        """Tell of the change that was begun last until it ends. Leaving does not end it.

        Raises:
            ProjectError: It failed, and the cluster is as it was.
        """
        assert self._task is not None and self._view is not None
        self._listeners.append(tell)
        try:
            tell(self._view)
            await asyncio.shield(self._task)
        finally:
            self._listeners.remove(tell)
        if self._error is not None:
            raise self._error
        return self._view

    async def close(self) -> None:
        """Leave it where it is; the next start uses the old build."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- after a start -------------------------------------------------------------------------

    def recover(self) -> Callable[[LaunchRecord], bool]:
        """Take note of a change that our end cut off: the old build is in use again.

        Returns:
            Whether what an earlier run of us has launched may go on.
        """
        cut = main_engine.cut_off(self._folder)
        if cut is None:
            return lambda record: True
        engine = self._main_host.engine
        view = self._view = cut_off(*cut, now=_called(engine), at=timestamp())
        self._tools.journal.note(
            "supervisor", "engine", "change cut off", code=view.error_code, text=view.reason
        )
        main_engine.end_change(self._folder)
        return lambda record: (
            engine is not None
            and record.engine.path == engine.llama_server
            and is_same_build(record.engine.build, engine.build)
        )

    # -- the change ----------------------------------------------------------------------------

    async def _run(self, old: EngineFacts | None, target: EngineFacts) -> None:
        """To its end, which the view tells."""
        try:
            if old is target:
                self._update(reason=f"llama.cpp {name_of(target)} is in use already")
            else:
                await self._change(old, target)
        except ProjectError as exc:
            self._fail(exc)
        except Exception as exc:
            log.exception("engine_change.bug")
            self._fail(EngineChangeFailed(f"internal error: {exc!r}; please report it"))
        else:
            self._finish(ChangePhase.DONE)

    async def _change(self, old: EngineFacts | None, target: EngineFacts) -> None:
        called = await self._bring_all(target)
        main_engine.begin_change(self._folder, _called(old), name_of(target))
        switched: dict[AgentId, str] = {}
        held: tuple[DeploymentId, ...] = ()
        try:
            self._update(phase=ChangePhase.STOPPING)
            held = await self._reconciler.hold(f"moved to llama.cpp {name_of(target)}")
            self._update(phase=ChangePhase.SWITCHING)
            await self._switch(called, switched)
            await self._take(target)
            await self._heard(switched, target)
            self._update(phase=ChangePhase.LAUNCHING)
            self._reconciler.go_on()
            await self._until_ready(held)
            before = old.folder if old is not None else ""
            await asyncio.to_thread(main_engine.remember, target, self._folder, before)
        except Exception as exc:
            try:
                await self._go_back(old, switched, held)
            finally:
                self._reconciler.go_on()
            why = exc if isinstance(exc, ProjectError) else f"internal error {exc!r}"
            raise EngineChangeFailed(
                f"llama.cpp {name_of(target)} was given up and {_called(old) or 'none'} is used "
                f"again: {why}"
            ) from exc
        main_engine.end_change(self._folder)

    async def _bring_all(self, target: EngineFacts) -> dict[AgentId, str]:
        """What each device that changes calls the build.

        Raises:
            EngineChangeFailed: One of them cannot have it; nothing was changed.
        """
        everybody = sorted(self._registry.devices(), key=lambda device: device.name)
        devices = [device for device in everybody if may_change(device)]
        changing = [device for device in devices if not has_engine(device, target)]
        rows = [DeviceChange(device=d.name) for d in changing]
        rows += [DeviceChange(device=d.name, state="changed") for d in devices if d not in changing]
        self._update(devices=tuple(rows))
        tasks = {d.id: asyncio.create_task(self._bring(d, target)) for d in changing}
        try:
            if tasks:
                await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
            return {agent_id: task.result() for agent_id, task in tasks.items() if task.done()}
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _bring(self, device: Device, target: EngineFacts) -> str:
        try:
            with self._registry.doing([device.id], f"getting llama.cpp {name_of(target)}"):
                called = await self._engines.bring(
                    device.id, target, lambda i: self._row(device.name, lambda row: row.after(i))
                )
        except ProjectError as exc:
            why = str(exc).removeprefix(f"{device.name}: ")
            raise EngineChangeFailed(
                f"nothing was changed, since {device.name} cannot have llama.cpp "
                f"{name_of(target)}: {why} ('supervisor devices drain {device.name}' leaves it out)"
            ) from exc
        self._row(device.name, lambda row: row.model_copy(update={"state": "ready"}))
        return called

    async def _switch(self, called: dict[AgentId, str], switched: dict[AgentId, str]) -> None:
        """One after another; ``switched`` gets what each had before.

        Raises:
            EngineChangeFailed: It does not work on a device.
        """
        for agent_id, build in called.items():
            try:
                device = self._registry.device(agent_id)
            except DeviceUnknown:
                continue  # removed meanwhile
            engine = device.facts.engine if device.facts else None
            switched[agent_id] = _called(engine)
            try:
                with self._registry.doing([agent_id], f"changing to llama.cpp {build}"):
                    await self._engines.use(agent_id, build)
            except AgentUnreachable as exc:
                # It gets the new build when it is back; what needs it will tell.
                del switched[agent_id]
                update = {"state": "left out", "detail": str(exc)}
                self._row(device.name, lambda row, u=update: row.model_copy(update=u))  # type: ignore[misc]
            except ProjectError as exc:
                raise EngineChangeFailed(f"it does not work on {device.name}: {exc}") from exc
            else:
                self._row(device.name, lambda row: row.model_copy(update={"state": "changed"}))

    async def _take(self, engine: EngineFacts | None) -> None:
        """Let the main host use an engine."""
        help_text = await main_engine.help_of(engine, self._main_host.inherited)
        self._main_host.take(engine, help_text)
        build, protocol = (engine.build, engine.rpc_protocol) if engine else ("", "")
        self._registry.took_engine(build, protocol)
        log.info("engine.in_use", extra={"build": _called(engine)})

    async def _heard(self, switched: Collection[AgentId], engine: EngineFacts) -> None:
        """Launches are planned with what heartbeats tell."""
        deadline_s = time.monotonic() + _HEARD_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            devices = [d for d in self._registry.devices() if d.id in switched]
            if all(has_engine(device, engine) for device in devices):
                return
            await self._registry.wait_changed(min(left_s, 1.0))

    async def _until_ready(self, held: Collection[DeploymentId]) -> None:
        """Wait for those that served before.

        Raises:
            EngineChangeFailed: One of them does not run, or does not come forward.
        """
        settings = self._tools.settings
        patience_s = settings.stall_s + settings.connect_s + settings.first_token_s
        seen, since_s = "", time.monotonic()
        while waiting := [d for d in self._there(held) if wants_to_be_ready(d)]:
            self._update(deployments={d.id: str(d.state) for d in self._there(held)})
            for deployment in waiting:
                if has_failed(deployment):
                    raise EngineChangeFailed(
                        f"deployment {deployment.id} does not run with it: {deployment.reason}"
                    )
            now = " ".join(f"{d.state} {d.phase} {d.loads} {d.links}" for d in waiting)
            if now != seen:
                seen, since_s = now, time.monotonic()
            if time.monotonic() - since_s > patience_s:
                slow = waiting[0]
                raise EngineChangeFailed(
                    f"deployment {slow.id} is {slow.state} for {patience_s:.0f} s: {slow.reason}"
                )
            await asyncio.sleep(_LOOK_EVERY_S)
        self._update(deployments={d.id: str(d.state) for d in self._there(held)})

    def _there(self, held: Collection[DeploymentId]) -> list[Deployment]:
        """Some may be removed meanwhile."""
        return [deployment for deployment in self._reconciler.all() if deployment.id in held]

    async def _go_back(
        self, old: EngineFacts | None, switched: dict[AgentId, str], held: Collection[DeploymentId]
    ) -> None:
        """The old build everywhere, and what ran is launched again. Goes as far as it can."""
        self._update(phase=ChangePhase.GOING_BACK)
        await self._reconciler.hold(f"back to llama.cpp {_called(old)}")
        try:
            await self._take(old)
        except ProjectError as exc:
            log.error("engine_change.not_back", extra={"reason": str(exc)})
        for agent_id, build in switched.items():
            await self._back(agent_id, build)
        if old is not None:
            await self._heard([a for a, build in switched.items() if build], old)
        main_engine.end_change(self._folder)
        self._reconciler.go_on()
        try:
            await self._until_ready(held)
        except EngineChangeFailed as exc:
            log.warning("engine_change.not_ready", extra={"reason": str(exc)})

    async def _back(self, agent_id: AgentId, build: str) -> None:
        try:
            name = self._registry.device(agent_id).name
            if build:
                await self._engines.use(agent_id, build)
            self._row(name, lambda row: row.model_copy(update={"state": "back"}))
        except (ProjectError, DeviceUnknown) as exc:
            # It is offered the main host's build again as soon as it is heard.
            log.warning("engine_change.device_not_back", extra={"reason": str(exc)})

    # -- telling -------------------------------------------------------------------------------

    def _row(self, name: str, change: Callable[[DeviceChange], DeviceChange]) -> None:
        assert self._view is not None
        rows = tuple(change(row) if row.device == name else row for row in self._view.devices)
        self._update(devices=rows)

    def _update(self, **changes: object) -> None:
        assert self._view is not None
        after = self._view.model_copy(update=changes)
        if after == self._view:
            return
        self._view = after
        self._bus.publish(CHANGED, after.model_dump(mode="json"))
        for tell in list(self._listeners):
            tell(after)

    def _fail(self, error: ProjectError) -> None:
        self._error = error
        self._finish(ChangePhase.FAILED, error_code=error.code, reason=str(error))

    def _finish(self, phase: ChangePhase, **changes: object) -> None:
        self._update(phase=phase, ended_at=timestamp(), **changes)
        view = self._view
        assert view is not None
        failed = " failed" if phase is ChangePhase.FAILED else ""
        change = f"{view.build_before or 'none'} -> {view.build}{failed}"
        level = logging.INFO if phase is ChangePhase.DONE else logging.WARNING
        log.log(level, "engine.change", extra={"change": change, "reason": view.reason})
        self._tools.journal.note(
            "supervisor", "engine", change, code=view.error_code, text=view.reason
        )


def _called(engine: EngineFacts | None) -> str:
    return name_of(engine) if engine is not None else ""
