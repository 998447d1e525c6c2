"""REST API: deployments, devices, launches, logs and events."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Query, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent

from agents.cli import CODE_VARIABLE
from agents.contract import EngineFacts
from agents.join import JoinCode
from agents.logfile import read_from
from supervisor import __version__
from supervisor.api.auth import COOKIE
from supervisor.api.metrics_api import Metrics
from supervisor.api.views import (
    JoinCodeView,
    LogChunk,
    MostHours,
    PlanView,
    RowNumber,
    SessionRequest,
    ShellCommand,
    Snapshot,
)
from supervisor.core.callers import Scope
from supervisor.core.commands import planned_commands, shell_command, shell_script
from supervisor.core.entities import (
    Deployment,
    DeploymentSpec,
    Device,
    LaunchId,
    LaunchRecord,
    Plan,
)
from supervisor.errors import DeploymentUnknown, KeyRequired, ScopeMissing
from supervisor.service.attempt import SET_BY_US
from supervisor.service.clock import timestamp
from supervisor.service.events import EventBus
from supervisor.service.gateway import Gateway
from supervisor.service.journal import Journal
from supervisor.service.keyring import KeyRing
from supervisor.service.measuring import Measurer
from supervisor.service.pushing import Pusher
from supervisor.service.reconciler import Reconciler
from supervisor.service.registry import Registry
from supervisor.service.reporting import Reporter
from supervisor.service.request_log import RequestLog
from supervisor.service.tools import MainHost
from supervisor.settings import Settings

LLAMA_SERVER = "llama-server"
LINK = "link"


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
    launches: LaunchReader
    bus: EventBus
    main_host: MainHost
    engines: tuple[EngineFacts, ...]
    list_models: Callable[[], list[dict[str, object]]]
    join_endpoints: tuple[str, ...]
    fingerprint: str
    server_pin: str
    url: str
    keyring: KeyRing
    journal: Journal
    reporter: Reporter
    request_log: RequestLog
    gateway: Gateway
    metrics: Metrics

    def join_command(self, code: JoinCode) -> str:
        """The line for a device that has nothing of ours yet.

        The code goes through the environment, since every user of a host can read arguments.
        """
        fetch = f"{self._fetch('agent.pyz')} -o agent.pyz"
        return f"{fetch} && {CODE_VARIABLE}={code} python3 agent.pyz join -"

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
        )

    @router.post("/session", status_code=204)
    async def sign_in(request: SessionRequest) -> Response:
        caller = services.keyring.caller(request.key)
        if caller is None:
            raise KeyRequired("that is not the key; 'supervisor key' on the main host prints it")
        if not caller.may(Scope.READ):
            raise ScopeMissing(f"key {caller.name} is good for the gateway only, not for this page")
        response = Response(status_code=204)
        response.set_cookie(COOKIE, request.key, httponly=True, samesite="strict")
        return response

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

    @router.get("/devices")
    async def devices() -> list[Device]:
        return registry.devices()

    @router.delete("/devices/{device}", status_code=204)
    async def remove_device(device: str) -> Response:
        await registry.remove(registry.find(device).id)
        return Response(status_code=204)

    @router.post("/join-code")
    async def join_code(*, once: bool = False, hours: MostHours | None = None) -> JoinCodeView:
        hours = services.settings.join_hours if hours is None else hours
        token, expires_at = registry.new_token(hours=hours, once=once)
        code = JoinCode(services.join_endpoints, token, services.fingerprint)
        return JoinCodeView(
            code=str(code),
            command=services.join_command(code),
            termux_command=services.termux_command(code),
            expires_at=expires_at.isoformat(),
        )

    @router.get("/models")
    async def models() -> list[dict[str, object]]:
        return await asyncio.to_thread(services.list_models)

    @router.get("/engines")
    async def engines() -> list[dict[str, Any]]:
        return [asdict(engine) for engine in services.engines]

    @router.post("/plan")
    async def plan(spec: DeploymentSpec) -> PlanView:
        answer = await reconciler.planner.answer(spec)
        commands = services.plan_commands(answer.plan, spec)
        return PlanView(plan=answer.plan, what_ifs=answer.what_ifs, commands=commands)

    @router.get("/deployments")
    async def deployments() -> list[Deployment]:
        return reconciler.all()

    @router.post("/deployments", status_code=201)
    async def launch(spec: DeploymentSpec) -> Deployment:
        return await reconciler.create(spec)

    @router.get("/deployments/{name}")
    async def deployment(name: str) -> Deployment:
        return reconciler.get(name)

    @router.delete("/deployments/{name}", status_code=204)
    async def remove_deployment(name: str) -> Response:
        await reconciler.remove(name)
        return Response(status_code=204)

    @router.post("/deployments/{name}/stop")
    async def stop(name: str, now: bool = False) -> Deployment:
        return await reconciler.stop(name, now=now)

    @router.post("/deployments/{name}/start")
    async def start(name: str) -> Deployment:
        return await reconciler.start(name)

    @router.get("/deployments/{name}/logs")
    async def logs(name: str, process: str = LLAMA_SERVER, offset: int = -1) -> LogChunk:
        return await _log(services, name, process, offset)

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


async def _log(services: Services, name: str, process: str, offset: int) -> LogChunk:
    """Log of llama-server, of the links or of a worker, of the newest launch of a deployment."""
    deployment = services.reconciler.get(name)
    if process not in (LLAMA_SERVER, LINK):
        device = services.registry.find(process)
        chunk = await services.registry.agent(device.id).log(offset)
        return LogChunk(process=process, **dict(chunk))
    launch_id = deployment.launch_id
    if launch_id is None:
        raise DeploymentUnknown(f"deployment {name} was not launched since the supervisor started")
    record = await asyncio.to_thread(services.launches.launch, launch_id)
    path = Path(record.log_path if process == LLAMA_SERVER else record.link_log_path)
    text, end = await asyncio.to_thread(read_from, path, offset)
    return LogChunk(process=process, file=path.name, offset=end, text=text)
