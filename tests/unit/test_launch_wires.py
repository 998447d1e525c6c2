"""What is decided of the wires of one launch, with the devices and networks of a moment."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import cast

import pytest

from agents.contract import DeviceFacts, EngineFacts, NetworkAddress
from supervisor.core.entities import AgentId, Device, Plan, Wire
from supervisor.errors import RdmaUnavailable
from supervisor.service.launch_wires import LaunchWires
from supervisor.service.tools import Tools

MAC = AgentId("mac")
CABLE, STEADY = "10.77.1.2", "192.168.1.7"
ENGINE = EngineFacts("/e", "PATH", "/s", "/r", "1", "abc", "7.0.0", has_rpc=True, has_rdma=True)


def mac(rdma: str = "active", engine: EngineFacts = ENGINE) -> Device:
    cable = NetworkAddress(CABLE, "en2", "thunderbolt", 30, link_port=8103, has_rdma=True)
    wifi = NetworkAddress(STEADY, "en0", "wifi", 24, link_port=8103)
    facts = DeviceFacts("mac", "mac", "macos", engine=engine, addresses=[wifi, cable], rdma=rdma)
    over_cable = Wire(near="10.77.1.1", far=CABLE, round_trip_ms=0.4, up_bytes_per_s=1e9)
    over_wifi = Wire(near="192.168.1.2", far=STEADY, round_trip_ms=4.0, up_bytes_per_s=5e7)
    return Device(
        id=MAC,
        name="mac",
        address=STEADY,
        rest_port=8102,
        link_address=STEADY,
        link_port=8103,
        state="ready",
        silent_s=0.0,
        facts=facts,
        rpc_server=None,
        wires=(over_cable.model_copy(update={"in_use": True}), over_wifi),
    )


@dataclass
class World:
    """A main host with two networks and one device."""

    device: Device = field(default_factory=mac)
    setting: str = "auto"
    near_rdma: str = "active"
    near_engine: EngineFacts = ENGINE
    is_reached: bool = True
    reached: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    async def addresses(self) -> list[NetworkAddress]:
        cable = NetworkAddress("10.77.1.1", "en2", "thunderbolt", 30, has_rdma=True)
        return [NetworkAddress("192.168.1.2", "en0", "wifi", 24), cable]

    async def rdma(self) -> str:
        return self.near_rdma

    async def _reaches(self, device: Device) -> bool:
        self.reached.append(f"{device.link_address}:{device.link_port}")
        return self.is_reached

    async def decide(self, *, direct: bool = True) -> LaunchWires:
        registry = SimpleNamespace(
            device=lambda _: self.device,
            wire_failed=lambda agent_id, far, reason: self.failed.append(far),
        )
        tools = SimpleNamespace(
            registry=registry,
            settings=SimpleNamespace(rdma=self.setting),
            main_host=SimpleNamespace(engine=self.near_engine),
            own_networks=self,
            reaches=self._reaches,
        )
        plan = SimpleNamespace(agent_ids=(MAC,))
        made = LaunchWires(cast(Tools, tools), cast(Plan, plan), direct=direct)
        await made.decide()
        return made


async def test_rdma_is_used_where_both_ends_prove_it() -> None:
    world = World()
    wires = await world.decide()
    found = wires.of(MAC)
    assert (found.host, found.rdma.is_used, wires.uses_rdma) == (CABLE, True, True)
    assert world.reached == [f"{CABLE}:8103"]


async def test_rdma_goes_over_its_own_ports_whatever_carries_tcp() -> None:
    first, second = mac().wires
    wires = (second.model_copy(update={"in_use": True}), first.model_copy(update={"in_use": False}))
    world = World(device=mac().model_copy(update={"wires": wires}))
    assert (await world.decide()).of(MAC).host == CABLE
    world.setting = "off"
    assert (await world.decide()).of(MAC).host == STEADY


async def test_through_a_link_it_is_tcp_over_the_same_wire() -> None:
    world = World()
    found = (await world.decide(direct=False)).of(MAC)
    assert (found.host, found.rdma.is_used) == (CABLE, False)
    assert "--transport direct" in found.rdma.why
    assert world.reached == []


@pytest.mark.parametrize(
    ("world", "reason"),
    [
        (World(device=mac("down")), "mac has RDMA ports that are down"),
        (World(near_rdma="down"), "the main host has RDMA ports that are down"),
        (World(device=mac(engine=replace(ENGINE, has_rdma=False))), "mac was built without it"),
        (World(near_engine=replace(ENGINE, has_rdma=None)), "not known whether the engine of the"),
    ],
)
async def test_what_is_missing_is_said_and_refused_only_if_rdma_is_required(
    world: World, reason: str
) -> None:
    wires = await world.decide()
    assert not wires.uses_rdma
    assert reason in wires.of(MAC).rdma.why
    assert wires.of(MAC).host == CABLE
    world.setting = "require"
    with pytest.raises(RdmaUnavailable, match=reason):
        await world.decide()
    world.setting = "off"
    assert (await world.decide()).of(MAC).rdma.why == ""


async def test_a_wire_that_does_not_answer_is_left_for_the_steady_address() -> None:
    world = World(is_reached=False)
    found = (await world.decide()).of(MAC)
    assert (found.host, found.rdma.is_used, world.failed) == (STEADY, False, [CABLE])
    assert f"{CABLE} did not answer" in found.why
    assert "TCP instead of RDMA" in found.rdma.why
    world.setting = "require"
    with pytest.raises(RdmaUnavailable, match="did not answer"):
        await world.decide()


async def test_a_device_without_wires_is_reached_as_ever() -> None:
    plain = mac("").model_copy(update={"wires": ()})
    world = World(device=plain, near_rdma="")
    found = (await world.decide()).of(MAC)
    assert (found.host, found.why, found.rdma.why, world.reached) == (STEADY, "", "", [])
