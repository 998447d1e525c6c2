"""Measuring wires: over a real far end, and when it is done at all."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
from lab.joined import JoinedHost
from lab.linked import FarSide, Lab, Served
from lab.links import emulated_link

from agents import tls
from agents.contract import (
    DeviceFacts,
    EngineFacts,
    GgmlDevice,
    Heartbeat,
    JoinRequest,
    NetworkAddress,
    RpcServerStatus,
    WorkerState,
)
from agents.errors import LinkRefused
from agents.far_end import FarEnd
from agents.link_frames import MEASURING, Hello
from supervisor.adapters.wire_probe import WireProbe
from supervisor.core.entities import AgentId, DeploymentId, Device
from supervisor.core.wires import Measured, Pair
from supervisor.errors import BadRequest, WorkerBusy
from supervisor.service.wire_measuring import AGAIN_S, FIRST_RETRY_S, WireMeasurer

LOOPBACK = "127.0.0.1"


# -- over a real far end --------------------------------------------------------------------------


@dataclass
class Idle(Served):
    """An agent whose rpc-server does what ``now`` says."""

    now: RpcServerStatus = field(default_factory=lambda: RpcServerStatus(WorkerState.STOPPED))

    def status(self) -> RpcServerStatus:
        return self.now


@dataclass
class Measurable:
    """A far end of an idle device, and who measures the wire to it."""

    lab: Lab
    side: FarSide
    served: Idle
    probe: WireProbe

    async def measure(self, *, port: int = 0, near: str = LOOPBACK, serial: str = "") -> Measured:
        worker = self.side.worker
        pair = Pair(near, LOOPBACK, port or worker.link_port)
        device = Device(
            id=AgentId("pixel"),
            name="pixel",
            address=LOOPBACK,
            rest_port=1,
            state="ready",
            silent_s=0,
            facts=None,
            rpc_server=None,
        )
        return await self.probe(device, pair, serial or worker.serial)


@pytest.fixture
async def measurable(tmp_path: Path) -> AsyncIterator[Measurable]:
    lab = Lab(tmp_path)
    authority = lab.authority
    context = tls.client_context(
        authority.certificate_pem, authority.supervisor_certificate, authority.supervisor_key
    )
    served = Idle(0, "7.0.0", ())
    async with lab.far_side("pixel", served) as side:
        yield Measurable(lab, side, served, WireProbe(context, "desk"))


async def test_a_wire_has_a_round_trip_and_a_rate(measurable: Measurable) -> None:
    found = await measurable.measure()
    assert found.problem == ""
    assert found.round_trip_s is not None
    assert found.up_bytes_per_s is not None
    assert 0 < found.round_trip_s < 1
    assert found.up_bytes_per_s > 1e6


async def test_delay_and_rate_of_a_wire_are_found(measurable: Measurable) -> None:
    port = measurable.side.worker.link_port
    async with emulated_link(port) as link:
        await link.set(one_way_delay_s=0.02, rate_bytes_per_s=2e6)
        found = await measurable.measure(port=link.port)
    assert found.problem == ""
    assert found.round_trip_s is not None
    assert found.up_bytes_per_s is not None
    assert found.round_trip_s >= 0.04
    assert 5e5 < found.up_bytes_per_s < 6e6


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            RpcServerStatus(WorkerState.READY, generation=12, main_host="desk"),
            "in use by launch 12",
        ),
        (RpcServerStatus(WorkerState.STARTING, generation=3), "in use by launch 3"),
        (RpcServerStatus(WorkerState.STOPPED, is_measuring=True), "speed is being measured"),
    ],
)
async def test_a_device_with_work_is_left_alone(
    measurable: Measurable, status: RpcServerStatus, reason: str
) -> None:
    measurable.served.now = status
    with pytest.raises(WorkerBusy, match=reason):
        await measurable.measure()


async def test_a_launch_ends_a_measurement(measurable: Measurable) -> None:
    port = measurable.side.worker.link_port
    async with emulated_link(port) as link:
        await link.set(one_way_delay_s=0.2)
        measuring = asyncio.create_task(measurable.measure(port=link.port))
        await asyncio.sleep(2.0)  # admitted, and in the middle of five seconds of questions
        assert not measuring.done()
        async with measurable.lab.near_ends(measurable.side):
            found = await measuring
    assert "lost" in found.problem or "closed" in found.problem, found


async def test_what_cannot_be_used_says_why(measurable: Measurable) -> None:
    assert "no link to pixel" in (await measurable.measure(port=1)).problem
    assert "no link to pixel" in (await measurable.measure(near="203.0.113.9")).problem
    assert "not the one that it got" in (await measurable.measure(serial="AB")).problem


@pytest.mark.parametrize("state", [WorkerState.STOPPED, WorkerState.READY])
def test_an_agent_that_does_not_know_how_refuses(state: WorkerState) -> None:
    """It takes the number for that of a launch, and asks what it asks of every launch."""
    hello = Hello(MEASURING, "desk", 5.0, 1 << 20)
    status = RpcServerStatus(state, generation=0 if state is WorkerState.STOPPED else 4)
    with pytest.raises(LinkRefused):
        FarEnd._refuse_unless_its(cast(FarEnd, None), hello, status)


# -- when -----------------------------------------------------------------------------------------


@dataclass
class Meter:
    """Measures nothing, and says what it is told."""

    says: dict[str, Measured | Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def __call__(self, device: Device, pair: Pair, serial: str) -> Measured:
        self.asked.append(pair.far)
        found = self.says.get(pair.far, Measured(1e-3, 1e8))
        if isinstance(found, Exception):
            raise found
        return found


@dataclass
class World:
    """A registry with one device at two cables, and the measurer of its wires."""

    host: JoinedHost
    meter: Meter = field(default_factory=Meter)
    own: list[NetworkAddress] = field(default_factory=list)
    is_busy: bool = False
    now_s: float = 0.0
    changes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = [address("192.168.1.2"), address("10.77.1.1")]
        self.measurer = WireMeasurer(
            self.host.registry,
            self.meter,
            self._addresses,
            lambda: self.is_busy,
            clock=lambda: self.now_s,
        )
        self.host.registry.on_change = lambda name, change, reason: self.changes.append(change)

    async def _addresses(self) -> list[NetworkAddress]:
        return self.own

    async def join(self) -> None:
        token, _ = self.host.registry.new_token(hours=1)
        self.host.registry.join(JoinRequest(token, "pixel", "pixel"))
        await self.hear("192.168.1.7", "10.77.1.2")

    async def hear(self, *listed: str, state: WorkerState = WorkerState.STOPPED) -> None:
        facts = DeviceFacts(
            "pixel",
            "pixel",
            "linux",
            ggml_devices=[GgmlDevice("CPU")],
            engine=EngineFacts(
                "/opt", "PATH", "/opt/s", "/opt/r", "1", "abc", "7.0.0", has_rpc=True
            ),
            addresses=[address(each) for each in listed],
        )
        beat = Heartbeat(facts, RpcServerStatus(state), 8102, link_port=8103)
        await self.host.registry.heard(AgentId("pixel"), beat, "192.168.1.7")

    @property
    def device(self) -> Device:
        return self.host.registry.find("pixel")

    async def looked(self) -> list[str]:
        """What was asked for in one look."""
        self.meter.asked.clear()
        await self.measurer.look()
        return list(self.meter.asked)

    def used(self) -> list[str]:
        return [wire.far for wire in self.device.wires if wire.in_use]


def address(text: str) -> NetworkAddress:
    return NetworkAddress(text, "eth0", "ethernet", 24, link_port=8103)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    host = JoinedHost(tmp_path)
    made = World(host)
    await made.join()
    yield made
    await host.close()


async def test_every_wire_is_measured_once_and_the_better_one_used(world: World) -> None:
    world.meter.says["10.77.1.2"] = Measured(2e-4, 1e9)
    assert await world.looked() == ["192.168.1.7", "10.77.1.2"]
    assert world.used() == ["10.77.1.2"]
    assert world.device.round_trip_ms == 0.2
    assert "tensors over 10.77.1.2" in world.changes
    assert await world.looked() == []
    world.now_s += AGAIN_S + 1
    assert len(await world.looked()) == 2


async def test_a_wire_that_does_not_work_is_tried_again_ever_more_rarely(world: World) -> None:
    world.meter.says["10.77.1.2"] = Measured(problem="no answer")
    assert len(await world.looked()) == 2
    assert (world.used(), world.device.wires[1].problem) == (["192.168.1.7"], "no answer")
    for wait_s in (FIRST_RETRY_S, FIRST_RETRY_S * 2, FIRST_RETRY_S * 4):
        world.now_s += wait_s - 1
        assert await world.looked() == []
        world.now_s += 2
        assert await world.looked() == ["10.77.1.2"]
    world.meter.says["10.77.1.2"] = Measured(2e-4, 1e9)
    world.now_s += FIRST_RETRY_S * 8 + 1
    await world.looked()
    assert world.used() == ["10.77.1.2"]


async def test_nothing_is_measured_while_something_runs(world: World) -> None:
    registry = world.host.registry
    world.is_busy = True
    assert await world.looked() == []
    world.is_busy = False
    registry.reserve(AgentId("pixel"), DeploymentId("test"))
    assert await world.looked() == []
    registry.release(DeploymentId("test"))
    with registry.doing([AgentId("pixel")], "being measured"):
        assert await world.looked() == []
    world.meter.says["192.168.1.7"] = WorkerBusy("in use")
    assert await world.looked() == ["192.168.1.7"]
    assert await world.looked() == []  # it said that it is busy
    world.now_s += 10
    world.meter.says.clear()
    assert len(await world.looked()) == 2


async def test_an_address_that_is_gone_is_done_without_even_while_it_serves(world: World) -> None:
    world.meter.says["10.77.1.2"] = Measured(2e-4, 1e9)
    await world.looked()
    world.host.registry.reserve(AgentId("pixel"), DeploymentId("test"))
    await world.hear("192.168.1.7")
    await world.looked()
    assert world.used() == ["192.168.1.7"]
    assert "tensors over 192.168.1.7" in world.changes


async def test_a_wire_that_failed_a_launch_is_looked_at_before_another_uses_it(
    world: World,
) -> None:
    world.meter.says["10.77.1.2"] = Measured(2e-4, 1e9)
    await world.looked()
    world.host.registry.wire_failed(AgentId("pixel"), "10.77.1.2", "it did not work")
    assert await world.looked() == []
    assert world.used() == ["192.168.1.7"]
    world.now_s += FIRST_RETRY_S + 1
    assert await world.looked() == ["10.77.1.2"]
    assert world.used() == ["10.77.1.2"]


async def test_the_operators_choice_is_kept_and_checked(world: World) -> None:
    registry, pixel = world.host.registry, AgentId("pixel")
    world.meter.says["10.77.1.2"] = Measured(2e-4, 1e9)
    await world.looked()
    with pytest.raises(BadRequest, match=r"10\.9\.9\.9.*192\.168\.1\.7"):
        await registry.choose_wire(pixel, "10.9.9.9")
    await registry.choose_wire(pixel, "192.168.1.7")
    assert world.used() == ["192.168.1.7"]
    await world.looked()
    assert (world.used(), world.device.wire) == (["192.168.1.7"], "192.168.1.7")
    await registry.choose_wire(pixel, "")
    assert world.used() == ["10.77.1.2"]


async def test_a_device_on_the_main_host_or_behind_a_tunnel_has_no_wires(world: World) -> None:
    await world.looked()
    world.own = [address("192.168.1.7")]
    assert await world.looked() == []
    assert world.device.wires == ()
    world.own = [address("192.168.1.2")]
    facts = world.device.facts
    assert facts is not None
    beat = Heartbeat(facts, RpcServerStatus(WorkerState.STOPPED), 8102, link_port=443)
    tunnelled = replace(beat, link_address="203.0.113.7")
    await world.host.registry.heard(AgentId("pixel"), tunnelled, "192.168.1.7")
    assert await world.looked() == []
    assert world.device.wires == ()
