"""Devices: who may join, what is heard of them, and when they are given up."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agents import tls
from agents.contract import (
    DeviceFacts,
    EngineFacts,
    Heartbeat,
    JoinRequest,
    RpcServerStatus,
    WorkerState,
)
from supervisor.adapters.agent_client import AgentClient
from supervisor.adapters.authority import Authority
from supervisor.adapters.store import Store
from supervisor.core.entities import AgentId, DeploymentId
from supervisor.core.measurements import DeviceMeasured, LinkMeasured
from supervisor.errors import BadRequest, BadToken, DeviceUnknown
from supervisor.ports import AgentPort
from supervisor.service.events import Change, EventBus
from supervisor.service.registry import Registry
from supervisor.settings import Settings

PIXEL = AgentId("id-pixel")
ENGINE = EngineFacts("/opt", "PATH", rpc_server="/opt/rpc", rpc_protocol="7.0.0", has_rpc=True)
FACTS = DeviceFacts(PIXEL, "pixel", "android", engine=ENGINE, memory_available_bytes=5)
HEARTBEAT = Heartbeat(FACTS, RpcServerStatus(WorkerState.STOPPED), rest_port=8102)
TAKEN_AT = datetime(2026, 10, 1, tzinfo=UTC)


@dataclass
class World:
    """A registry on a real store and a real authority, with a clock of ours."""

    folder: Path
    now_s: float = 1000.0
    today: datetime = TAKEN_AT

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "s.db")
        self.bus = EventBus()
        self.connections: list[tuple[str, str, int]] = []
        self.issuer = Authority(self.folder / "authority")
        self.registry = self.opened()

    def opened(self) -> Registry:
        made = Registry(
            Settings(data_folder=self.folder),
            self.store,
            self.issuer,
            self._connect,
            self.bus,
            lambda: self.now_s,
            lambda: self.today,
        )
        made.rpc_protocol = "7.0.0"
        return made

    def _connect(self, agent_id: str, name: str, address: str, port: int) -> AgentPort:
        self.connections.append((name, address, port))
        context = tls.client_context(self.issuer.certificate_pem)
        return AgentClient(agent_id, name, address, port, context)

    def join(self, agent_id: str = PIXEL, name: str = "pixel") -> None:
        token, _ = self.registry.new_token(hours=1)
        self.registry.join(JoinRequest(token, agent_id, name))

    def state(self) -> tuple[str, str]:
        device = self.registry.device(PIXEL)
        return device.state, device.reason


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def changes(world: World, heartbeat: Heartbeat) -> list[Change]:
    """What is published while one heartbeat is heard."""
    with world.bus.subscribe() as stream:
        await world.registry.heard(PIXEL, heartbeat, "10.0.0.2")
        world.bus.close()
        return [change async for change in stream]


def test_a_device_with_a_good_token_gets_an_identity(world: World) -> None:
    token, _ = world.registry.new_token(hours=1, once=True)
    reply = world.registry.join(JoinRequest(token, PIXEL, "pixel"))
    assert reply.authority_pem == world.issuer.certificate_pem
    assert reply.certificate_pem.startswith("-----BEGIN CERTIFICATE")
    assert world.state()[0] == "lost"
    [(agent_id, name, serial, _, _)] = world.store.agents()
    assert (agent_id, name) == (PIXEL, "pixel")
    assert world.registry.recognises(PIXEL, serial)
    assert world.registry.recognises(PIXEL, serial.lower())


@pytest.mark.parametrize(
    ("hours", "once", "uses", "verdict"),
    [(1.0, True, 1, "used"), (-1.0, False, 0, "expired"), (1.0, True, None, "unknown")],
)
def test_a_bad_token_is_refused_with_its_reason(
    world: World, hours: float, once: bool, uses: int | None, verdict: str
) -> None:
    token, _ = world.registry.new_token(hours=hours, once=once)
    for number in range(uses or 0):
        world.registry.join(JoinRequest(token, f"id-{number}", "x"))
    with pytest.raises(BadToken, match=f"the join token is {verdict}; print a new join code"):
        world.registry.join(JoinRequest("wrong" if uses is None else token, PIXEL, "pixel"))
    with pytest.raises(DeviceUnknown):
        world.registry.device(PIXEL)


def test_a_token_is_not_stored_as_it_is(world: World, tmp_path: Path) -> None:
    token, _ = world.registry.new_token(hours=1)
    world.store.close()
    assert token.encode() not in (tmp_path / "s.db").read_bytes()


def test_a_device_that_joins_anew_keeps_its_name_and_its_old_certificate_is_void(
    world: World,
) -> None:
    world.join()
    old = world.store.agents()[0][2]
    world.registry.reserve(PIXEL, DeploymentId("m"))
    world.join()
    assert [device.name for device in world.registry.devices()] == ["pixel"]
    assert not world.registry.recognises(PIXEL, old)
    assert world.registry.device(PIXEL).used_by == "m"


@pytest.mark.parametrize("serial", ["", "0", "ABCDEF"])
def test_a_strangers_certificate_is_not_recognised(world: World, serial: str) -> None:
    assert not world.registry.recognises(PIXEL, serial)
    world.join()
    assert not world.registry.recognises(PIXEL, serial)


def test_names_are_made_unique_and_safe(world: World) -> None:
    for number, name in enumerate(["pixel", "pixel", "pixel", "my phone/1", "", "x" * 60]):
        world.join(f"id-{number}", name)
    names = [device.name for device in world.registry.devices()]
    assert names == ["pixel", "pixel-2", "pixel-3", "my-phone-1", "device", "x" * 40]


async def test_a_heartbeat_makes_a_device_ready_and_is_published(world: World) -> None:
    world.join()
    [change] = await changes(world, HEARTBEAT)
    assert change.name == "device"
    assert (change.body["name"], change.body["state"]) == ("pixel", "ready")
    assert change.body["address"] == "10.0.0.2"
    assert change.body["facts"]["memory_available_bytes"] == 5
    assert world.state() == ("ready", "")


async def test_a_heartbeat_may_name_another_address(world: World) -> None:
    world.join()
    await world.registry.heard(PIXEL, replace(HEARTBEAT, address="100.64.0.5"), "10.0.0.2")
    assert world.registry.device(PIXEL).address == "100.64.0.5"
    assert world.store.agents()[0][3:] == ("100.64.0.5", 8102)


async def test_a_phone_that_roams_is_called_at_its_new_address(world: World) -> None:
    world.join()
    for address in ("10.0.0.2", "10.0.0.2", "10.0.0.9"):
        await world.registry.heard(PIXEL, HEARTBEAT, address)
        agent = world.registry.agent(PIXEL)
        assert agent is world.registry.agent(PIXEL)
    assert world.connections == [("pixel", "10.0.0.2", 8102), ("pixel", "10.0.0.9", 8102)]


@pytest.mark.parametrize(
    ("silent_s", "state", "reason"),
    [
        (9.9, "ready", ""),
        (10.0, "suspect", "heartbeat is 10 s old"),
        (31.0, "lost", "last heard of 31 s ago; check that its agent runs and its network"),
    ],
)
async def test_a_silent_device_is_doubted_and_then_lost(
    world: World, silent_s: float, state: str, reason: str
) -> None:
    world.join()
    await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")
    world.now_s += silent_s
    assert world.state() == (state, reason)
    assert world.registry.device(PIXEL).silent_s == silent_s
    await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")
    assert world.state() == ("ready", "")


async def test_a_device_of_another_version_is_incompatible(world: World) -> None:
    world.join()
    await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")
    world.registry.rpc_protocol = "7.0.1"
    assert world.state()[0] == "incompatible"


async def test_a_pause_of_our_own_is_nobodys_silence(world: World) -> None:
    world.join()
    await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")
    await world.registry.look_at_silence()
    world.now_s += 3600  # SIGSTOP, or a laptop that slept
    assert world.state() == ("ready", ""), "also before the next look"
    await world.registry.look_at_silence()
    assert world.state() == ("ready", "")
    for _ in range(29):
        world.now_s += 1
        await world.registry.look_at_silence()
    assert world.state()[0] == "lost", "silence counts from the end of the pause"
    assert world.registry.device(PIXEL).silent_s == 30


async def test_silence_before_a_pause_of_our_own_still_counts(world: World) -> None:
    world.join()
    await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")
    for _ in range(12):
        world.now_s += 1
        await world.registry.look_at_silence()
    world.now_s += 600
    await world.registry.look_at_silence()
    assert world.state() == ("suspect", "heartbeat is 13 s old")


async def test_who_is_heard_as_a_pause_ends_is_fresh(world: World) -> None:
    world.join()
    await world.registry.look_at_silence()
    world.now_s += 600
    await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")
    await world.registry.look_at_silence()
    assert world.registry.device(PIXEL).silent_s == 0
    world.now_s += 1
    assert world.registry.device(PIXEL).silent_s == 1


@pytest.mark.parametrize("look_every_s", [1.0, 2.0, 2.9])
async def test_looks_that_are_a_little_late_hide_no_silence(
    world: World, look_every_s: float
) -> None:
    world.join()
    await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")
    while world.state()[0] != "lost":
        await world.registry.look_at_silence()
        world.now_s += look_every_s
        assert world.now_s < 1000 + 30 + look_every_s
    assert world.now_s >= 1000 + 30


async def test_a_device_never_heard_of_stays_lost_over_a_pause(world: World) -> None:
    world.join()
    await world.registry.look_at_silence()
    world.now_s += 600
    await world.registry.look_at_silence()
    assert world.state()[0] == "lost"


async def test_devices_are_remembered_over_a_restart_as_lost(world: World) -> None:
    world.join()
    await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")
    again = world.opened().device(PIXEL)
    assert (again.name, again.address, again.rest_port) == ("pixel", "10.0.0.2", 8102)
    assert (again.state, again.facts) == ("lost", None)
    assert again.reason.startswith("not heard of since we started")


async def test_a_removed_device_is_forgotten_and_told(world: World) -> None:
    world.join()
    serial = world.store.agents()[0][2]
    with world.bus.subscribe() as stream:
        await world.registry.remove(PIXEL)
        world.bus.close()
        assert [c async for c in stream] == [Change("device_removed", {"id": PIXEL})]
    assert world.store.agents() == []
    assert not world.registry.recognises(PIXEL, serial)
    with pytest.raises(DeviceUnknown):
        await world.registry.remove(PIXEL)
    with pytest.raises(DeviceUnknown):
        await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")


def test_a_device_is_found_by_name_or_id_and_a_miss_lists_the_names(world: World) -> None:
    with pytest.raises(DeviceUnknown, match="joined devices: none has joined"):
        world.registry.find("pixel")
    world.join()
    assert world.registry.find("pixel").id == world.registry.find(PIXEL).id == PIXEL
    with pytest.raises(DeviceUnknown, match="no device 'mac'; joined devices: pixel"):
        world.registry.find("mac")


async def test_a_deployment_takes_devices_and_gives_back_all_of_them(world: World) -> None:
    for number in range(3):
        world.join(f"id-{number}", f"d{number}")
    for number, name in enumerate(["m", "m", "n"]):
        world.registry.reserve(AgentId(f"id-{number}"), DeploymentId(name))
    world.registry.release(DeploymentId("m"))
    assert [device.used_by for device in world.registry.devices()] == [None, None, "n"]


async def test_waiting_ends_with_the_time_or_with_news(world: World) -> None:
    world.join()
    await world.registry.wait_changed(0.01)


# -- what the operator decides ---------------------------------------------------------------------


async def test_an_excluded_device_stays_so_over_a_restart_and_a_new_joining(world: World) -> None:
    world.join()
    assert not world.registry.device(PIXEL).excluded
    with world.bus.subscribe() as stream:
        told = await world.registry.exclude(PIXEL, excluded=True)
        await world.registry.exclude(PIXEL, excluded=True)
        world.bus.close()
        assert [change.body["excluded"] async for change in stream] == [True], "told once"
    assert told.excluded
    assert world.registry.has_excluded([AgentId("other"), PIXEL])
    world.join()
    assert world.registry.device(PIXEL).excluded
    world.registry = world.opened()
    assert world.registry.device(PIXEL).excluded
    await world.registry.exclude(PIXEL, excluded=False)
    assert not world.opened().device(PIXEL).excluded
    assert not world.registry.has_excluded([PIXEL])


async def test_a_name_that_was_given_stays_over_a_restart_and_a_new_joining(world: World) -> None:
    world.join()
    world.join("id-mac", "mac")
    events: list[tuple[str, str]] = []
    world.registry.on_change = lambda name, change, _: events.append((name, change))
    assert (await world.registry.rename(PIXEL, "kitchen.1")).name == "kitchen.1"
    assert events == [("kitchen.1", "renamed from pixel")]
    world.join()
    assert world.registry.find("kitchen.1").id == PIXEL
    world.join("id-new", "pixel")
    assert world.registry.find("pixel").id == "id-new", "the old name is free"
    again = world.opened()
    assert {d.id: d.name for d in again.devices()} == {
        PIXEL: "kitchen.1",
        "id-mac": "mac",
        "id-new": "pixel",
    }


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "is no name for a device; take 1 to 40 letters, digits, and any of - _ ."),
        ("x" * 41, "is no name for a device"),
        ("my phone", "is no name for a device"),
        ("a/b", "is no name for a device"),
        ("a,b", "is no name for a device"),
        ("pixel\n", "is no name for a device"),
        ("mac", "another device is called 'mac' already"),
        ("id-mac", "another device is called 'id-mac' already"),
    ],
)
async def test_a_name_that_no_device_can_have_is_refused(
    world: World, name: str, says: str
) -> None:
    world.join()
    world.join("id-mac", "mac")
    with pytest.raises(BadRequest, match=says):
        await world.registry.rename(PIXEL, name)
    assert world.registry.device(PIXEL).name == "pixel"
    assert world.store.device_choices() == []


async def test_a_renamed_device_is_called_by_its_new_name(world: World) -> None:
    world.join()
    await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")
    world.registry.agent(PIXEL)
    await world.registry.rename(PIXEL, "kitchen")
    world.registry.agent(PIXEL)
    assert [name for name, _, _ in world.connections] == ["pixel", "kitchen"]


async def test_what_was_decided_is_forgotten_with_the_device(world: World) -> None:
    world.join()
    await world.registry.rename(PIXEL, "kitchen")
    await world.registry.exclude(PIXEL, excluded=True)
    await world.registry.remove(PIXEL)
    world.join()
    device = world.registry.device(PIXEL)
    assert (device.name, device.excluded) == ("pixel", False)
    for refused in (
        world.registry.exclude(AgentId("nobody"), excluded=True),
        world.registry.rename(AgentId("nobody"), "x"),
    ):
        with pytest.raises(DeviceUnknown):
            await refused


# -- what a device does, and how fast it is --------------------------------------------------------


async def test_a_device_says_what_it_does_the_launch_first(world: World) -> None:
    world.join()

    def doing() -> str:
        return world.registry.device(PIXEL).doing

    assert doing() == ""
    with world.bus.subscribe() as stream:
        with world.registry.doing([PIXEL, AgentId("gone")], "being measured"):
            world.registry.reserve(PIXEL, DeploymentId("m"))
            world.registry.note_serving(DeploymentId("other"))
            world.registry.note_serving(DeploymentId("m"))
            world.registry.release(DeploymentId("m"))
            with world.registry.doing([PIXEL], "receiving weights of x"):
                pass
        world.bus.close()
        told = [change.body["doing"] async for change in stream]
    assert told == [
        "being measured",
        "loading m",
        "serving m",
        "being measured",
        "receiving weights of x",
        "being measured",
        "",
    ]
    world.registry.reserve(PIXEL, DeploymentId("n"))
    assert doing() == "loading n", "not yet serving, though an earlier one was"


async def test_a_device_that_is_removed_while_it_does_something_stays_removed(
    world: World,
) -> None:
    world.join()
    with world.registry.doing([PIXEL], "being measured"):
        await world.registry.remove(PIXEL)
    assert world.registry.devices() == []


def measured(world: World, ggml_device: str = "CPU", **more: object) -> DeviceMeasured:
    return DeviceMeasured.model_validate(
        {
            "agent_id": PIXEL,
            "ggml_device": ggml_device,
            "taken_at": world.today.isoformat(),
            "rpc_protocol": "7.0.0",
            "engine_build": "",
            "decode_bytes_per_s": {"Q4_K": 2e10, "F16": 3e10},
            "prefill_flop_per_s": {"Q4_K": 1e12},
            "op_overhead_s": 0,
            "hop_overhead_s": 0,
            **more,
        }
    )


def link_measured(world: World) -> LinkMeasured:
    return LinkMeasured(
        agent_id=PIXEL,
        taken_at=world.today.isoformat(),
        rtt_p50_s=2.5e-3,
        rtt_p90_s=9e-3,
        up_bytes_per_s=5e7,
        down_bytes_per_s=6e7,
    )


async def test_the_speed_is_that_of_the_fastest_device_under_steady_load(world: World) -> None:
    world.join()
    slow = measured(world, sustained_factor=1.0)
    fast = measured(world, "GPU0", decode_bytes_per_s={"Q8_0": 8e10}, sustained_factor=0.5)
    world.registry.took_measurement(PIXEL, [slow, fast], link_measured(world))
    speed = world.registry.device(PIXEL).speed
    assert speed is not None
    assert speed.decode_bytes_per_s == 4e10
    assert (speed.up_bytes_per_s, speed.down_bytes_per_s) == (5e7, 6e7)
    assert (speed.round_trip_ms, speed.taken_at, speed.stale) == (2.5, TAKEN_AT.isoformat(), "")
    world.registry.took_measurement(AgentId("gone"), [slow], link_measured(world))


async def test_a_speed_says_why_it_no_longer_counts(world: World) -> None:
    world.join()
    await world.registry.heard(PIXEL, HEARTBEAT, "10.0.0.2")
    world.registry.took_measurement(PIXEL, [measured(world)], link_measured(world))

    def stale() -> str:
        speed = world.registry.device(PIXEL).speed
        assert speed is not None
        return speed.stale

    world.today += timedelta(days=30)
    assert stale() == ""
    world.today += timedelta(days=1)
    assert stale() == "it was measured 31 days ago"
    other = replace(FACTS, engine=replace(ENGINE, rpc_protocol="7.0.1"))
    await world.registry.heard(PIXEL, replace(HEARTBEAT, facts=other), "10.0.0.2")
    assert stale() == "it was measured with RPC 7.0.0, now it is 7.0.1"


async def test_the_speed_is_known_again_after_a_restart_if_it_is_whole(world: World) -> None:
    world.join()
    assert world.registry.device(PIXEL).speed is None
    world.store.save_measurement(measured(world))
    assert world.opened().device(PIXEL).speed is None, "the link was not measured"
    world.store.save_measurement(link_measured(world))
    speed = world.opened().device(PIXEL).speed
    assert speed is not None
    assert speed.decode_bytes_per_s == 3e10
    await world.registry.remove(PIXEL)
    assert world.opened().devices() == []
