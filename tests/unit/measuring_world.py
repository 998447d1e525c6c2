"""A supervisor's measuring on a real registry and a real store, with an agent that is made up."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from agents.contract import (
    DeviceFacts,
    EngineFacts,
    EngineInstall,
    EngineOffer,
    Finding,
    GgmlDevice,
    Heartbeat,
    InstallState,
    MeasuredGgmlDevice,
    MeasurementProgress,
    MeasurementResult,
    MeasurementSpec,
    RpcServerSpec,
    RpcServerStatus,
    WorkerState,
)
from agents.errors import ProjectError
from agents.measure_link import LinkMeasurement
from supervisor.adapters.store import Store
from supervisor.core.entities import AgentId, DeploymentId
from supervisor.errors import AgentRefused
from supervisor.link.job import SERVING, LinkJob, LinkStats
from supervisor.ports import IssuerPort
from supervisor.service.events import EventBus
from supervisor.service.measuring import Measurer
from supervisor.service.registry import Registry
from supervisor.service.tools import Identity, Tools
from supervisor.settings import Settings

PIXEL, MAC = AgentId("id-pixel"), AgentId("id-mac")
NAMES = {PIXEL: "pixel", MAC: "mac"}
ENGINE = EngineFacts("/opt", "PATH", "", "/opt/rpc", "1", "abc", "7.0.0", True)
FACTS = DeviceFacts(
    PIXEL, "pixel", "android", ggml_devices=[GgmlDevice("CPU")], engine=ENGINE, cores=8
)
NEAR_PORT = 40001
STOPPED = RpcServerStatus(WorkerState.STOPPED)
TAKEN_AT = datetime(2026, 10, 1, tzinfo=UTC)
MEASURED = MeasuredGgmlDevice(
    name="CPU",
    rpc_protocol="7.0.0",
    round_trip_s=1e-4,
    op_overhead_s=1e-6,
    hop_overhead_s=2e-3,
    weights_bytes=1 << 27,
    elapsed_s=4.5,
    decode_bytes_per_s={"Q4_K": 2e10},
    prefill_flop_per_s={"Q4_K": 3e11},
    temperature_before_c=40.0,
    temperature_after_c=45.5,
)
LINK = LinkMeasurement(
    round_trip_p50_s=1.5e-3,
    round_trip_p90_s=3e-3,
    up_bytes_per_s=1e8,
    down_bytes_per_s=2e8,
    transfer_bytes=1 << 20,
    elapsed_s=1.0,
)
Hook = Callable[[], None]


def nothing() -> None:
    pass


@dataclass
class MadeUpAgent:
    """An agent that measures at once, unless it is told to wait or to fail."""

    generation: int = 0
    measured: MeasuredGgmlDevice = MEASURED
    failure: ProjectError | None = None
    start_state: WorkerState = WorkerState.READY
    while_measuring: Hook = nothing
    """Called in the middle of a measurement."""
    while_starting: Hook = nothing
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)
    specs: list[MeasurementSpec] = field(default_factory=list)
    main_host: str = ""
    busy: int = 0
    most_busy: int = 0

    def __post_init__(self) -> None:
        self.goes_on.set()

    async def measure(
        self, spec: MeasurementSpec
    ) -> AsyncGenerator[MeasurementProgress | MeasurementResult, None]:
        self.calls.append(f"measure {','.join(spec.types)}")
        self.specs.append(spec)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            yield MeasurementProgress("Q4_K", 0.5, "CPU")
            await self.goes_on.wait()
            self.while_measuring()
            if self.failure is not None:
                raise self.failure
            yield MeasurementResult([self.measured])
        finally:
            self.busy -= 1
            self.calls.append("measured")

    async def start_rpc_server(self, spec: RpcServerSpec, *, wait_s: float) -> RpcServerStatus:
        self.calls.append(f"start {spec.host}")
        self.main_host = spec.main_host
        self.generation = max(self.generation, spec.generation)
        self.while_starting()
        return replace(await self.rpc_server(), state=self.start_state, port=8110)

    async def rpc_server(self, *, wait_s: float = 0.0) -> RpcServerStatus:
        return RpcServerStatus(WorkerState.READY, self.generation, detail="no memory")

    async def stop_rpc_server(self, generation: int) -> RpcServerStatus:
        for _ in range(20):  # it takes a while, and can be cut short
            await asyncio.sleep(0)
        self.calls.append("stop")
        if generation < self.generation:
            self.calls.append("refused")
            raise AgentRefused("pixel: it is older", "stale_generation")
        return STOPPED

    async def facts(self) -> DeviceFacts:
        return FACTS

    async def log(self, offset: int) -> Mapping[str, object]:
        return {}

    async def examine(self) -> list[Finding]:
        return []

    async def offer_engine(self, offer: EngineOffer) -> EngineInstall:
        return EngineInstall(offer.build, InstallState.READY)

    async def engine_install(self) -> EngineInstall | None:
        return None

    async def use_engine(self, build: str) -> EngineFacts:
        return EngineFacts("", "", build=build)

    async def close(self) -> None:
        self.calls.append("close")


@dataclass
class MadeUpLinks:
    """A link that is there at once, unless it is told to fail."""

    agent: MadeUpAgent
    job: LinkJob
    refusal: ProjectError | None = None
    """Why it is not made."""
    loss: ProjectError | None = None
    """Why it was lost while it was measured."""
    detail: str = ""
    never_ends: bool = False
    pid: int = 4711
    log_path: Path = Path("/nowhere")

    async def ready(self, agents: int, deadline_s: float) -> Mapping[AgentId, LinkStats]:
        assert agents == len(self.job.workers) == 1
        if self.refusal is not None:
            raise self.refusal
        return self.stats()

    def stats(self) -> Mapping[AgentId, LinkStats]:
        agent_id = AgentId(self.job.workers[0].agent_id)
        return {agent_id: LinkStats(agent_id, SERVING, NEAR_PORT, detail=self.detail)}

    async def changed(self) -> None:
        await asyncio.sleep(0)

    def raise_if_lost(self) -> None:
        if self.loss is not None:
            raise self.loss

    async def stop(self) -> None:
        if self.never_ends:
            await asyncio.Event().wait()
        for _ in range(20):  # it takes a while, and can be cut short
            await asyncio.sleep(0)
        self.agent.calls.append("unlink")


@dataclass
class MeasuringWorld:
    """One measurer and what it works with."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    now_s: float = 1000.0
    now: datetime = TAKEN_AT

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "s.db")
        for agent_id, name in NAMES.items():
            self.store.save_agent(agent_id, name, "AB", "2026-10-01")
        self.bus = EventBus()
        self.agents = {agent_id: MadeUpAgent() for agent_id in NAMES}
        self.chosen = Settings(data_folder=self.folder, **self.settings)
        self.registry = Registry(
            self.chosen,
            self.store,
            cast(IssuerPort, None),  # nobody joins here
            lambda agent_id, *_: self.agents[AgentId(agent_id)],
            self.bus,
            lambda: self.now_s,
        )
        tools = SimpleNamespace(
            settings=self.chosen,
            registry=self.registry,
            store=self.store,
            links=SimpleNamespace(start=self._start_links),
            identity=Identity(Path("cert"), Path("key"), Path("authority")),
            main_host=SimpleNamespace(name="desk", folder=self.folder),
        )
        self.metered: list[str] = []
        self.jobs: list[LinkJob] = []
        self.link_faults: dict[str, Any] = {}
        """Of ``MadeUpLinks``."""
        self.link_process_failure: ProjectError | None = None
        self.link_failure: ProjectError | None = None
        self.while_linking: Hook = nothing
        self.link_goes_on = asyncio.Event()
        self.link_goes_on.set()
        self.measurer = Measurer(
            cast(Tools, tools), self.bus, meter=self._meter, now=lambda: self.now
        )

    @property
    def agent(self) -> MadeUpAgent:
        return self.agents[PIXEL]

    async def _start_links(self, job: LinkJob) -> MadeUpLinks:
        self.jobs.append(job)
        if self.link_process_failure is not None:
            raise self.link_process_failure
        agent = self.agents[AgentId(job.workers[0].agent_id)]
        agent.calls.append("link")
        return MadeUpLinks(agent, job, **self.link_faults)

    async def _meter(self, host: str, port: int, *, deadline_s: float) -> LinkMeasurement:
        self.metered.append(f"{host}:{port}")
        await self.link_goes_on.wait()
        self.while_linking()
        if self.link_failure is not None:
            raise self.link_failure
        return LINK

    async def hear(
        self,
        agent_id: AgentId = PIXEL,
        rpc_server: RpcServerStatus = STOPPED,
        **facts: Any,
    ) -> None:
        """A heartbeat of a device."""
        said = replace(FACTS, agent_id=agent_id, name=NAMES[agent_id], **facts)
        message = Heartbeat(said, rpc_server, 8102, link_port=8103, link_address="10.9.9.9")
        await self.registry.heard(agent_id, message, "10.0.0.2")

    def take(self, deployment: str = "llama") -> None:
        """A launch reserves the device, as ``Attempt`` does."""
        self.registry.reserve(PIXEL, DeploymentId(deployment))

    def kept(self) -> int:
        """How many measurements are stored."""
        return len(self.store.device_measurements()) + len(self.store.link_measurements())
