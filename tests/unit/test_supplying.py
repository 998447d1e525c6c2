"""Who gets an engine when, with agents that are made up and a real registry."""

import asyncio
from collections.abc import AsyncIterator
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
    Heartbeat,
    InstallState,
    RpcServerStatus,
    WorkerState,
)
from supervisor.adapters.store import Store
from supervisor.core.entities import AgentId, Device
from supervisor.errors import AgentRefused, AgentUnreachable, ReleaseUnknown
from supervisor.ports import AgentPort, IssuerPort, Shelf
from supervisor.service import device_engines
from supervisor.service.device_engines import DeviceEngines
from supervisor.service.engine_supply import EngineSupply
from supervisor.service.events import EventBus
from supervisor.service.registry import Registry
from supervisor.service.tools import MainHost
from supervisor.settings import Settings

MAIN = EngineFacts("/m", "PATH", build="0c1e570", rpc_protocol="7.0.0", has_rpc=True)
OTHER = replace(MAIN, build="2222222", source="engines folder")
IDS = [AgentId(f"id-{n}") for n in range(6)]


class Shop:
    """A shelf with an archive for linux, packed from the main host's own programs."""

    def __init__(self) -> None:
        self.platforms = {"linux"}
        self.packed: list[str] = []

    def builds(self) -> tuple[str, ...]:
        return (MAIN.build,)

    def offer(self, build: str, facts: DeviceFacts) -> EngineOffer:
        if facts.platform not in self.platforms:
            raise ReleaseUnknown(f"nothing for {facts.platform}; supervisor engine install")
        return EngineOffer(build, f"llama-{build}.tar.gz", "0" * 64, 100)

    def folder(self, build: str) -> Path | None:
        return None

    def pack(self, engine: EngineFacts) -> str:
        self.packed.append(engine.build)
        return engine.build


@dataclass
class Agent:
    """An agent that has fetched when ``goes_on`` is set, unless it is told to fail."""

    install: EngineInstall | None = None
    failure: str = ""
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[str] = field(default_factory=list)
    used: EngineFacts | None = None
    busy: int = 0
    silent: int = 0

    async def offer_engine(self, offer: EngineOffer) -> EngineInstall:
        self.calls.append(f"offer {offer.archive}".strip())
        if not offer.archive:
            state, detail = InstallState.FAILED, "it is not here"
        else:
            state, detail = InstallState.FETCHING, ""
        self.install = EngineInstall(offer.build, state, 50, 100, "", "x" * bool(detail), detail)
        return self.install

    async def engine_install(self) -> EngineInstall | None:
        if self.silent:
            self.silent -= 1
            raise AgentUnreachable("no answer")
        if self.install is not None and self.install.state is InstallState.FETCHING:
            if self.failure:
                failed = replace(self.install, state=InstallState.FAILED, detail=self.failure)
                self.install = failed
            elif self.goes_on.is_set():
                self.install = replace(self.install, state=InstallState.READY)
        return self.install

    async def use_engine(self, build: str) -> EngineFacts:
        self.calls.append(f"use {build}")
        if self.busy:
            self.busy -= 1
            raise AgentRefused("it serves", "engine_in_use")
        self.used = MAIN
        return MAIN

    async def rpc_server(self, *, wait_s: float = 0.0) -> RpcServerStatus:
        return RpcServerStatus(WorkerState.READY, 41)

    async def stop_rpc_server(self, generation: int) -> RpcServerStatus:
        self.calls.append(f"stop {generation}")
        return RpcServerStatus(WorkerState.STOPPED, generation)

    async def close(self) -> None: ...


class World:
    """A registry of devices, and the supply for them."""

    def __init__(self, folder: Path) -> None:
        store = Store(folder / "s.db")
        self.agents = {agent_id: Agent() for agent_id in IDS}
        for agent_id in IDS:
            store.save_agent(agent_id, agent_id, "AB", "2026-10-01")
        self.registry = Registry(
            Settings(data_folder=folder),
            store,
            cast(IssuerPort, None),  # nobody joins here
            lambda agent_id, *_: cast(AgentPort, self.agents[AgentId(agent_id)]),
            EventBus(),
        )
        self.registry.engine_build, self.registry.rpc_protocol = MAIN.build, MAIN.rpc_protocol
        self.shop = Shop()
        self.host = SimpleNamespace(engine=MAIN)
        self.now_s = 1000.0
        self.is_changing = False
        engines = DeviceEngines(self.registry, cast(Shelf, self.shop))
        self.supply = EngineSupply(
            self.registry,
            engines,
            cast(MainHost, self.host),
            lambda: self.is_changing,
            lambda: self.now_s,
        )

    async def hear(
        self, agent_id: AgentId, engine: EngineFacts | None, platform: str = "linux"
    ) -> None:
        facts = DeviceFacts(agent_id, agent_id, platform, engine=engine)
        status = RpcServerStatus(WorkerState.STOPPED)
        message = Heartbeat(
            facts, status, rest_port=1, engine_install=self.agents[agent_id].install
        )
        await self.registry.heard(agent_id, message, "10.0.0.1")

    def device(self, agent_id: AgentId) -> Device:
        return self.registry.device(agent_id)

    async def rest(self) -> None:
        """Let the tasks come to where they wait."""
        for _ in range(3):
            await asyncio.sleep(0.01)

    async def until(self, agent_id: AgentId, call: str) -> None:
        async with asyncio.timeout(10):
            while call not in self.agents[agent_id].calls:
                await asyncio.sleep(0.01)

    def offered(self) -> list[AgentId]:
        return [i for i in IDS if any(c.startswith("offer l") for c in self.agents[i].calls)]


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(device_engines, "_LOOK_EVERY_S", 0.01)
    made = World(tmp_path)
    yield made
    made.is_changing = True
    await made.supply.look()  # which ends what is under way


async def test_a_device_without_an_engine_gets_one_and_uses_it(world: World) -> None:
    await world.hear(IDS[0], None)
    await world.supply.look()
    await world.until(IDS[0], "offer llama-0c1e570.tar.gz")
    assert "it gets llama.cpp 0c1e570 from the main host" in world.device(IDS[0]).reason
    assert world.device(IDS[0]).doing == "getting llama.cpp 0c1e570"
    world.agents[IDS[0]].goes_on.set()
    await world.until(IDS[0], "use 0c1e570")
    await world.hear(IDS[0], MAIN)
    await world.supply.look()
    seen = world.device(IDS[0])
    assert (seen.state, seen.reason, seen.doing) == ("ready", "", "")


async def test_three_at_once_and_each_only_once(world: World) -> None:
    for agent_id in IDS:
        await world.hear(agent_id, OTHER)
    for _ in range(3):
        await world.supply.look()
        await world.rest()
    assert len(world.offered()) == 3
    assert all(len(agent.calls) <= 1 for agent in world.agents.values())
    for agent_id in world.offered():
        world.agents[agent_id].goes_on.set()
    async with asyncio.timeout(10):
        while len(world.offered()) < 6:
            await asyncio.sleep(0.01)


async def test_a_failure_is_told_and_tried_again_later_and_later(world: World) -> None:
    world.agents[IDS[0]].failure = "its disk is full"
    await world.hear(IDS[0], None)
    pauses = []
    for _ in range(4):
        await world.supply.look()
        await world.rest()
        reason = world.device(IDS[0]).reason
        assert "its disk is full" in reason
        assert reason.startswith("no llama.cpp programs there; ")
        tried = len(world.agents[IDS[0]].calls)
        before_s = world.now_s
        while len(world.agents[IDS[0]].calls) == tried:
            world.now_s += 4
            await world.supply.look()
            await world.rest()
        pauses.append(world.now_s - before_s)
    assert pauses == sorted(pauses)
    assert pauses[-1] > pauses[0] >= 4


async def test_no_archive_says_what_to_do_and_is_noticed_when_it_comes(world: World) -> None:
    await world.hear(IDS[0], None, "android")
    await world.supply.look()
    await world.until(IDS[0], "offer")
    await world.rest()
    assert "nothing for android; supervisor engine install" in world.device(IDS[0]).reason
    await world.supply.look()
    await world.rest()
    assert world.offered() == []
    world.shop.platforms.add("android")
    await world.supply.look()
    await world.until(IDS[0], "offer llama-0c1e570.tar.gz")


async def test_an_agent_that_began_anew_is_offered_it_again(world: World) -> None:
    await world.hear(IDS[0], None)
    await world.supply.look()
    agent = world.agents[IDS[0]]
    await world.until(IDS[0], "offer llama-0c1e570.tar.gz")
    agent.silent = 3
    agent.install = None
    async with asyncio.timeout(10):
        while len(agent.calls) < 2:
            await asyncio.sleep(0.01)
    assert agent.calls == ["offer llama-0c1e570.tar.gz"] * 2


async def test_an_rpc_server_that_nobody_wants_is_ended_for_it(world: World) -> None:
    agent = world.agents[IDS[0]]
    agent.busy = 1
    agent.goes_on.set()
    await world.hear(IDS[0], OTHER)
    await world.supply.look()
    async with asyncio.timeout(10):
        while agent.used is None:
            await asyncio.sleep(0.01)
    assert agent.calls[1:] == ["use 0c1e570", "stop 41", "use 0c1e570"]


async def test_a_change_of_the_cluster_ends_it(world: World) -> None:
    await world.hear(IDS[0], None)
    await world.supply.look()
    await world.until(IDS[0], "offer llama-0c1e570.tar.gz")
    world.is_changing = True
    await world.supply.look()
    assert world.device(IDS[0]).doing == ""
    await world.supply.look()
    await world.rest()
    assert len(world.agents[IDS[0]].calls) == 1


async def test_a_main_host_without_an_engine_says_so(world: World) -> None:
    world.host.engine = None
    world.registry.engine_build = world.registry.rpc_protocol = ""
    await world.hear(IDS[0], None)
    await world.hear(IDS[1], OTHER)
    await world.supply.look()
    assert "supervisor engine install" in world.device(IDS[0]).reason
    assert world.device(IDS[1]).reason == ""
    assert world.offered() == []


async def test_a_release_that_the_shelf_lacks_is_packed(world: World) -> None:
    world.host.engine = replace(MAIN, release="b1")
    offers: list[str] = []
    plain = world.shop.offer

    def offer(build: str, facts: DeviceFacts) -> EngineOffer:
        offers.append(build)
        if build == "b1":
            raise ReleaseUnknown("b1 is not here")
        return plain(build, facts)

    world.shop.offer = offer  # type: ignore[method-assign]
    await world.hear(IDS[0], None)
    await world.supply.look()
    await world.until(IDS[0], "offer llama-0c1e570.tar.gz")
    assert offers == ["b1", "0c1e570"]
    assert world.shop.packed == ["0c1e570"]
