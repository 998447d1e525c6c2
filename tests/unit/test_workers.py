"""The workers of a launch through their agents: who answers, who hangs, and what counts then."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agents.contract import (
    DeviceFacts,
    EngineFacts,
    EngineInstall,
    EngineOffer,
    Finding,
    Heartbeat,
    InstallState,
    MeasurementProgress,
    MeasurementResult,
    MeasurementSpec,
    RpcServerSpec,
    RpcServerStatus,
    WorkerState,
)
from agents.rpc_protocol import Outcome, ProbeResult, Triple
from supervisor.adapters.store import Store
from supervisor.core.entities import AgentId, DeploymentId, LaunchId, ModelFacts, Plan, Shard
from supervisor.errors import (
    AgentRefused,
    AgentUnreachable,
    WorkerBusy,
    WorkerIncompatible,
    WorkerLost,
    WorkerNotRpcServer,
    WorkerUnreachable,
)
from supervisor.link.job import SERVING, LinkStats
from supervisor.ports import AgentPort, IssuerPort
from supervisor.service.events import EventBus
from supervisor.service.registry import Registry
from supervisor.service.tools import Tools
from supervisor.service.workers import Workers
from supervisor.settings import Settings

LAUNCH = LaunchId(7)
ONE, TWO = AgentId("one"), AgentId("two")
ENGINE = EngineFacts("/opt", "PATH", "/opt/llama-server", "/opt/rpc", "1", "abc", "7.0.0", True)


def said(resident: int | None, generation: int = LAUNCH) -> RpcServerStatus:
    return RpcServerStatus(WorkerState.READY, generation=generation, resident_bytes=resident)


@dataclass
class Agent:
    """An agent that answers with what it is told, or never."""

    answer: RpcServerStatus | Exception | None = None
    started: list[RpcServerSpec] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)

    async def rpc_server(self, *, wait_s: float = 0.0) -> RpcServerStatus:
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer

    async def start_rpc_server(self, spec: RpcServerSpec, *, wait_s: float) -> RpcServerStatus:
        self.started.append(spec)
        return await self.rpc_server()

    async def stop_rpc_server(self, generation: int) -> RpcServerStatus:
        self.stopped.append(generation)
        return RpcServerStatus(WorkerState.STOPPED, generation=generation)

    async def facts(self) -> DeviceFacts:
        return DeviceFacts("", "", "linux")

    async def log(self, offset: int) -> Mapping[str, object]:
        return {}

    async def measure(
        self, spec: MeasurementSpec
    ) -> AsyncGenerator[MeasurementProgress | MeasurementResult, None]:
        yield MeasurementResult([])

    async def examine(self) -> list[Finding]:
        return []

    async def offer_engine(self, offer: EngineOffer) -> EngineInstall:
        return EngineInstall(offer.build, InstallState.READY)

    async def engine_install(self) -> EngineInstall | None:
        return None

    async def use_engine(self, build: str) -> EngineFacts:
        return EngineFacts("", "", build=build)

    async def close(self) -> None: ...


class World:
    """Two devices that have joined, and a plan over both."""

    def __init__(self, folder: Path) -> None:
        store = Store(folder / "s.db")
        self.agents = {ONE: Agent(), TWO: Agent()}
        for agent_id in self.agents:
            store.save_agent(agent_id, agent_id, "01", "2026-01-01T00:00:00+00:00")
        settings = Settings(data_folder=folder)

        def connect(agent_id: str, *_: object) -> AgentPort:
            return self.agents[AgentId(agent_id)]

        issuer = cast(IssuerPort, None)  # nobody joins here
        self.registry = Registry(settings, store, issuer, connect, EventBus())
        self.probed: list[tuple[str, int]] = []
        self.found = ProbeResult(Outcome.READY, Triple(7, 0, 0), round_trip_s=0.002)
        tools = SimpleNamespace(
            settings=settings,
            registry=self.registry,
            probe=self._probe,
            main_host=SimpleNamespace(name="desk", engine=None),
            own_networks=None,
            reaches=None,
        )
        self.tools = cast(Tools, tools)

    async def _probe(
        self, host: str, port: int, *, deadline_s: float, expected: Triple | None
    ) -> ProbeResult:
        assert deadline_s > 0
        assert expected == Triple(7, 0, 0)
        self.probed.append((host, port))
        return self.found

    def workers(self, *agent_ids: AgentId, direct: bool = False) -> Workers:
        shards = tuple(
            Shard(agent_id=a, device=a, ggml_device="CPU", host="10.0.0.1", layers=1)
            for a in agent_ids
        )
        model = ModelFacts(path="/m", name="m", architecture="llama", block_count=1, size_bytes=1)
        plan = Plan(model=model, ctx_tokens=512, slots=1, shards=shards)
        return Workers(self.tools, plan, LAUNCH, direct=direct)

    async def hear(
        self, agent_id: AgentId, status: RpcServerStatus, engine: EngineFacts | None = None
    ) -> None:
        facts = DeviceFacts(agent_id, agent_id, "linux", engine=engine)
        heartbeat = Heartbeat(facts, status, 8102, link_port=8103)
        await self.registry.heard(agent_id, heartbeat, "10.0.0.1")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_an_agent_that_answers_is_believed_before_its_heartbeat(world: World) -> None:
    await world.hear(ONE, said(1))
    world.agents[ONE].answer = said(2)
    assert await world.workers(ONE).statuses_soon() == {ONE: said(2)}


@pytest.mark.parametrize("silence", [None, AgentUnreachable("gone"), AgentRefused("no", "code")])
async def test_a_lost_device_is_not_waited_for_its_last_heartbeat_counts(
    world: World, silence: Exception | None
) -> None:
    world.agents[ONE].answer, world.agents[TWO].answer = silence, said(2)
    await world.hear(ONE, said(1))
    async with asyncio.timeout(5):
        assert await world.workers(ONE, TWO).statuses_soon() == {ONE: said(1), TWO: said(2)}


async def test_what_was_said_of_another_launch_does_not_count(world: World) -> None:
    await world.hear(ONE, said(1, LAUNCH - 1))
    world.agents[TWO].answer = said(2, LAUNCH + 1)
    async with asyncio.timeout(5):
        assert await world.workers(ONE, TWO).statuses_soon() == {}


async def test_a_device_that_was_removed_is_no_error_at_the_end(world: World) -> None:
    workers = world.workers(ONE)
    await world.registry.remove(ONE)
    assert await workers.statuses_soon() == {}
    with pytest.raises(WorkerLost, match="removed"):
        workers.raise_if_lost()


async def test_a_plan_without_devices_has_no_workers(world: World) -> None:
    nobody = world.workers()
    async with asyncio.timeout(5):
        assert await nobody.start(DeploymentId("test")) == {}
        assert await nobody.statuses_soon() == {}
        nobody.raise_if_lost()
        await nobody.stop()
    assert nobody.agents == {}
    assert all(device.used_by is None for device in world.registry.devices())


async def test_only_workers_that_were_started_are_stopped(world: World) -> None:
    workers = world.workers(ONE)
    world.agents[ONE].answer = said(1)
    await workers.stop()
    assert world.agents[ONE].stopped == []
    await workers.start(DeploymentId("test"))
    await workers.stop()
    assert world.agents[ONE].stopped == [LAUNCH]
    assert world.agents[TWO].stopped == []


@pytest.mark.parametrize(("direct", "host"), [(True, "10.0.0.1"), (False, "127.0.0.1")])
async def test_only_without_links_a_rpc_server_listens_where_others_reach_it(
    world: World, direct: bool, host: str
) -> None:
    await world.hear(ONE, said(1))
    world.agents[ONE].answer = said(1)
    await world.workers(ONE, direct=direct).start(DeploymentId("test"))
    (spec,) = world.agents[ONE].started
    assert (spec.host, spec.generation, spec.main_host) == (host, LAUNCH, "desk")


def listening(host: str) -> RpcServerStatus:
    argv = ["rpc", "-H", host, "-p", "8110"]
    return replace(said(1), host=host, port=8110, argv=argv, environment={"PATH": "/bin"})


def served(protocol: str = "7.0.0") -> dict[AgentId, LinkStats]:
    return {ONE: LinkStats(ONE, SERVING, port=8120, rpc_protocol=protocol, round_trip_s=0.003)}


async def test_what_a_link_has_proven_is_the_record(world: World) -> None:
    await world.hear(ONE, said(1), ENGINE)
    workers, status = world.workers(ONE), listening("127.0.0.1")
    record = workers.linked({ONE: status}, served(), ENGINE)[ONE]
    assert (record.endpoint, record.link, record.address) == (
        "127.0.0.1:8120",
        "10.0.0.1:8103",
        "10.0.0.1",
    )
    assert (record.rpc_protocol, record.engine_build, record.round_trip_ms) == ("7.0.0", "abc", 3.0)
    assert (record.argv, record.environment) == (tuple(status.argv), status.environment)
    assert workers.before == {ONE: status}
    assert not world.probed, "nobody but its agent connects to it"
    (one, _) = world.registry.devices()
    assert one.round_trip_ms == 3.0


async def test_another_version_behind_a_link_is_named(world: World) -> None:
    await world.hear(ONE, said(1), ENGINE)
    with pytest.raises(WorkerIncompatible, match=r"one speaks RPC 6\.0\.0, the main host 7\.0\.0"):
        world.workers(ONE).linked({ONE: listening("127.0.0.1")}, served("6.0.0"), ENGINE)


async def test_what_answers_a_probe_is_the_record(world: World) -> None:
    await world.hear(ONE, said(1), ENGINE)
    workers, status = world.workers(ONE, direct=True), listening("10.0.0.1")
    record = (await workers.verify({ONE: status}, ENGINE))[ONE]
    assert world.probed == [("10.0.0.1", 8110)]
    assert (record.endpoint, record.link, record.rpc_protocol) == ("10.0.0.1:8110", "", "7.0.0")
    assert record.round_trip_ms == 2.0
    accepted = status.clients_accepted + 1, status.clients_closed + 1
    before = workers.before[ONE]
    assert (before.clients_accepted, before.clients_closed) == accepted, "the probe counts"


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (Outcome.INCOMPATIBLE, WorkerIncompatible),
        (Outcome.BUSY, WorkerBusy),
        (Outcome.NOT_RPC_SERVER, WorkerNotRpcServer),
        (Outcome.REFUSED, WorkerUnreachable),
        (Outcome.UNREACHABLE, WorkerUnreachable),
    ],
)
async def test_what_a_probe_finds_is_named(
    world: World, outcome: Outcome, error: type[Exception]
) -> None:
    await world.hear(ONE, said(1), ENGINE)
    world.found = ProbeResult(outcome, detail="as it was")
    with pytest.raises(error, match="one"):
        await world.workers(ONE, direct=True).verify({ONE: listening("10.0.0.1")}, ENGINE)


@pytest.mark.parametrize("direct", [True, False])
async def test_another_build_of_the_same_version_is_named_both_ways(
    world: World, direct: bool
) -> None:
    await world.hear(ONE, said(1), replace(ENGINE, build="def"))
    workers = world.workers(ONE, direct=direct)
    with pytest.raises(WorkerIncompatible, match=r"one runs llama\.cpp def, the main host abc"):
        if direct:
            await workers.verify({ONE: listening("10.0.0.1")}, ENGINE)
        else:
            workers.linked({ONE: listening("127.0.0.1")}, served(), ENGINE)
