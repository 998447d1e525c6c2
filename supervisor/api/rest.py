"""REST API: state, events, plans and launches."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from agents.cli import CODE_VARIABLE
from agents.contract import EngineFacts
from agents.join import JoinCode
from supervisor import __version__
from supervisor.adapters.hub_search import HubSearch
from supervisor.api.join_lines import join_lines
from supervisor.api.metrics_api import Metrics
from supervisor.api.views import (
    JoinCodeView,
    MostHours,
    PlanView,
    RowNumber,
    ShellCommand,
    Snapshot,
)
from supervisor.core.commands import planned_commands, shell_command, shell_script
from supervisor.core.entities import (
    DeploymentSpec,
    LaunchId,
    LaunchRecord,
    Plan,
)
from supervisor.service.attempt import SET_BY_US
from supervisor.service.clock import timestamp
from supervisor.service.doctoring import Doctoring
from supervisor.service.engine_change import EngineChanger
from supervisor.service.engine_installing import EngineInstaller
from supervisor.service.events import EventBus
from supervisor.service.gateway import Gateway
from supervisor.service.holdings import Holdings
from supervisor.service.journal import Journal
from supervisor.service.keyring import KeyRing
from supervisor.service.library import Library
from supervisor.service.measuring import Measurer
from supervisor.service.model_upkeep import ModelUpkeep
from supervisor.service.pulls import Pulls
from supervisor.service.pushing import Pusher
from supervisor.service.reconciler import Reconciler
from supervisor.service.registry import Registry
from supervisor.service.reporting import Reporter
from supervisor.service.request_log import RequestLog
from supervisor.service.sessions import Sessions
from supervisor.service.suggesting import Suggester
from supervisor.service.tools import MainHost
from supervisor.settings import Settings

_JOIN_SCRIPT = "~/.llama-join.sh"
"""Where the line for computers puts ``agents/join.sh``, which knows this name, too."""


class LaunchReader(Protocol):
    """Reads launch records."""

    def launches(self, limit: int = 100) -> list[LaunchRecord]: ...

    def launch(self, launch_id: LaunchId) -> LaunchRecord: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes work with."""

    settings: Settings
    registry: Registry
    reconciler: Reconciler
    measurer: Measurer
    pusher: Pusher
    holdings: Holdings
    pulls: Pulls
    launches: LaunchReader
    bus: EventBus
    main_host: MainHost
    engines: tuple[EngineFacts, ...]
    library: Library
    upkeep: ModelUpkeep
    join_endpoints: tuple[str, ...]
    fingerprint: str
    server_pin: str
    url: str
    keyring: KeyRing
    sessions: Sessions
    hub: HubSearch
    journal: Journal
    reporter: Reporter
    request_log: RequestLog
    gateway: Gateway
    metrics: Metrics
    suggester: Suggester
    doctoring: Doctoring
    engine_installer: EngineInstaller
    engine_changer: EngineChanger

    def join_command(self, code: JoinCode) -> str:
        """The line for a Mac or a Linux host that has nothing of ours yet.

        The code goes through the environment, since every user of a host can read arguments.
        The script goes through a file, which is run only when it is whole and leaves the keyboard
        to questions, as a pipe into the shell would not. It is a hidden one in the home folder,
        where nobody's own has that name and others cannot put theirs; the script removes it.
        """
        fetch = f"{self._fetch('join.sh')} -o {_JOIN_SCRIPT}"
        return f"{fetch} && {CODE_VARIABLE}={code} sh {_JOIN_SCRIPT} - '{self.server_pin}'"

    def termux_command(self, code: JoinCode) -> str:
        """The line for a phone under Termux: installs what is missing, and starts at boot."""
        run = f"{CODE_VARIABLE}={code} sh install.sh - '{self.server_pin}'"
        return f"{self._fetch('install.sh')} -o install.sh && {run}"

    def plan_commands(self, plan: Plan, spec: DeploymentSpec) -> tuple[ShellCommand, ...]:
        """The commands that a launch of this plan would run, workers first."""
        facts = {device.id: device.facts for device in self.registry.devices()}
        commands = planned_commands(
            plan,
            {agent_id: found for agent_id, found in facts.items() if found is not None},
            self.main_host.engine.llama_server if self.main_host.engine else "llama-server",
            known=self.main_host.known_flags,
            alias=spec.name or plan.model.name,
            key_file=str(self.main_host.key_file),
            direct=spec.transport == "direct",
        )
        named = [(where or self.main_host.name, shell_command(argv)) for where, argv in commands]
        return tuple(ShellCommand(host=where, command=command) for where, command in named)

    def _fetch(self, name: str) -> str:
        # -k only skips the name check of the certificate; the pinned key is checked all the same.
        url = f"https://{self.join_endpoints[0]}/files/{name}"
        return f"curl -fsSk --noproxy '*' --pinnedpubkey '{self.server_pin}' {url}"


def create_router(services: Services) -> APIRouter:
    """All routes under ``/api``."""
    router = APIRouter(prefix="/api")
    registry, reconciler = services.registry, services.reconciler

    def snapshot() -> Snapshot:
        host = services.main_host
        return Snapshot(
            version=__version__,
            main_host=host.name,
            url=services.url,
            time=timestamp(),
            engine=host.engine,
            problem=services.journal.problem,
            devices=registry.devices(),
            deployments=reconciler.all(),
            pulls=services.pulls.views(),
            traffic=services.gateway.lane_counts,
            requests=services.request_log.latest(),
        )

    @router.get("/status")
    async def status() -> Snapshot:
        return snapshot()

    @router.get("/events", response_class=EventSourceResponse)
    async def events() -> AsyncIterator[ServerSentEvent]:
        with services.bus.subscribe() as changes:
            yield ServerSentEvent(event="snapshot", data=snapshot().model_dump(mode="json"))
            async for change in changes:
                # As text: FastAPI would walk what is plain JSON already.
                yield ServerSentEvent(event=change.name, raw_data=json.dumps(change.body))

    @router.post("/join-code")
    async def join_code(*, once: bool = False, hours: MostHours | None = None) -> JoinCodeView:
        hours = services.settings.join_hours if hours is None else hours
        token, expires_at = registry.new_token(hours=hours, once=once)
        code = JoinCode(services.join_endpoints, token, services.fingerprint)
        command, termux_command = services.join_command(code), services.termux_command(code)
        return JoinCodeView(
            code=str(code),
            command=command,
            termux_command=termux_command,
            expires_at=expires_at.isoformat(),
            lines=await asyncio.to_thread(join_lines, termux_command, command),
        )

    @router.get("/engines")
    async def engines() -> list[dict[str, Any]]:
        return [asdict(engine) for engine in services.engines]

    @router.post("/plan")
    async def plan(
        spec: DeploymentSpec,
        replaces: Annotated[
            str | None, Query(description="deployment whose devices and memory count as free")
        ] = None,
    ) -> PlanView:
        answer = await reconciler.answer(spec, replaces)
        commands = services.plan_commands(answer.plan, spec)
        return PlanView(plan=answer.plan, what_ifs=answer.what_ifs, commands=commands)

    @router.get("/launches")
    async def launches(limit: Annotated[int, Query(ge=0)] = 100) -> list[LaunchRecord]:
        return await asyncio.to_thread(services.launches.launches, min(limit, 1000))

    @router.get("/launches/{launch_id}")
    async def launch_record(launch_id: RowNumber) -> LaunchRecord:
        record = await asyncio.to_thread(services.launches.launch, LaunchId(launch_id))
        # Its deployment goes on to tell what became of it after its end.
        since = await services.journal.events(0, launch_id=record.id)
        return record.model_copy(update={"transitions": tuple(since) or record.transitions})

    @router.get("/launches/{launch_id}/shell")
    async def shell(launch_id: RowNumber) -> dict[str, list[ShellCommand]]:
        record = await asyncio.to_thread(services.launches.launch, LaunchId(launch_id))
        commands = shell_script(record, SET_BY_US)
        return {"commands": [ShellCommand(host=host, command=line) for host, line in commands]}

    return router
