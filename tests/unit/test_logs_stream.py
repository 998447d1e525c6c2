"""Following logs: whole lines, each once, launch after launch, and who is silent."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from gateway_world import deployment
from gateway_world import plan as plan_of
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.logfile import read_from
from supervisor.core.entities import (
    AgentId,
    Deployment,
    DeploymentId,
    Device,
    EngineRecord,
    LaunchId,
    LaunchRecord,
    Shard,
)
from supervisor.core.lifecycle import State
from supervisor.errors import (
    AgentUnreachable,
    DeploymentUnknown,
    DeviceUnknown,
    LaunchUnknown,
)
from supervisor.ports import AgentPort
from supervisor.service.events import EventBus
from supervisor.service.log_following import (
    END_BYTES,
    LINE_BYTES,
    LogFollower,
    Logs,
    WholeLines,
)

NAME = DeploymentId("gem")
SERVER = "llama-server"


@dataclass
class Agent:
    """Shows the log of its present rpc-server, as the real one does."""

    folder: Path
    path: Path | None = None
    is_gone: bool = False
    asked: int = 0

    async def log(self, offset: int) -> Mapping[str, object]:
        self.asked += 1
        if self.is_gone:
            raise AgentUnreachable("the agent of phone does not answer")
        if self.path is None:
            return {"file": "", "offset": 0, "text": ""}
        text, end = read_from(self.path, offset)
        return {"file": self.path.name, "offset": end, "text": text}


@dataclass
class World:
    """One deployment on one device, whose launches tests make."""

    folder: Path
    deployment: Deployment | None = None
    records: dict[LaunchId, LaunchRecord] = field(default_factory=dict)
    bus: EventBus = field(default_factory=EventBus)

    def __post_init__(self) -> None:
        shard = Shard(agent_id=AgentId("a"), device="phone", ggml_device="CPU", host="", layers=1)
        self.plan = plan_of().model_copy(update={"shards": (shard,)})
        self.phone = Agent(self.folder)
        self.deployment = deployment(NAME, State.STOPPED, plan=self.plan, launch_id=None)
        self.logs = Logs(self, self, self, self.bus)

    # -- where the logs are found

    def get(self, name: str) -> Deployment:
        if self.deployment is None or name != NAME:
            raise DeploymentUnknown(name)
        return self.deployment

    def launch(self, launch_id: LaunchId) -> LaunchRecord:
        if launch_id not in self.records:
            raise LaunchUnknown(str(launch_id))
        return self.records[launch_id]

    def find(self, name_or_id: str) -> Device:
        if name_or_id not in ("phone", "a"):
            raise DeviceUnknown(name_or_id)
        return Device(
            id=AgentId("a"),
            name="phone",
            address="",
            rest_port=0,
            state="ready",
            silent_s=0,
            facts=None,
            rpc_server=None,
        )

    def agent(self, agent_id: AgentId) -> AgentPort:
        return cast(AgentPort, self.phone)

    # -- what happens

    def log(self, process: str, launch: int) -> Path:
        return self.folder / f"{process}-{launch}.log"

    def write(self, process: str, launch: int, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        with self.log(process, launch).open("ab") as file:
            file.write(data)

    def launches(self, number: int) -> None:
        """The record is there; then the processes start, and the deployment says so."""
        launch_id = LaunchId(number)
        self.becomes(State.STARTING, launch_id=launch_id, port=None)
        for process in (SERVER, "link"):
            self.write(process, number, "")
        self.records[launch_id] = LaunchRecord(
            id=launch_id,
            deployment=NAME,
            started_at="",
            plan=self.plan,
            main_host="",
            engine=EngineRecord(path="", version="", build="", rpc_protocol=""),
            log_path=str(self.log(SERVER, number)),
            link_log_path=str(self.log("link", number)),
        )
        self.phone.path = self.folder / f"rpc-server-{number}.1.1.log"
        self.phone.path.touch()
        self.becomes(State.STARTING, port=8000 + number)
        self.becomes(State.READY)

    def becomes(self, state: State, **more: Any) -> None:
        assert self.deployment is not None
        self.deployment = self.deployment.model_copy(update={"state": state, **more})
        self.bus.publish("deployment", {"id": NAME})

    def remove(self) -> None:
        self.deployment = None
        self.bus.publish("deployment_removed", {"id": NAME})


class Listener:
    """Takes what a follower says, by process."""

    def __init__(self, world: World, *processes: str) -> None:
        self.follower = LogFollower(world.logs, NAME, processes)
        self.events: list[tuple[str, dict[str, str]]] = []
        self.taking = asyncio.create_task(self._take())

    async def _take(self) -> None:
        async for said in self.follower.events():
            self.events.append(said)

    def text(self, process: str) -> str:
        return "".join(
            b["text"] for n, b in self.events if n == "lines" and b["process"] == process
        )

    def files(self, process: str) -> list[str]:
        found = (b["file"] for n, b in self.events if n == "lines" and b["process"] == process)
        return list(dict.fromkeys(found))

    @property
    def silent(self) -> list[dict[str, str]]:
        return [body for name, body in self.events if name == "silent"]

    async def until(self, text: str, process: str = SERVER) -> None:
        async with asyncio.timeout(20):
            while self.text(process) != text:
                assert not self.taking.done(), "the stream ended"
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        await self.follower.close()
        self.taking.cancel()
        await asyncio.gather(self.taking, return_exceptions=True)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_the_end_of_what_there_is_comes_first_and_then_what_comes(world: World) -> None:
    world.launches(1)
    lines = [f"line {number:08}\n" for number in range(20_000)]
    world.write(SERVER, 1, "".join(lines))
    listener = Listener(world, SERVER)
    async with asyncio.timeout(10):
        while not listener.events:
            await asyncio.sleep(0.01)
    first = listener.text(SERVER)
    assert END_BYTES - 100 < len(first) <= END_BYTES
    assert "".join(lines).endswith(first)
    assert first.startswith("line ")
    world.write(SERVER, 1, "one more\nand a piece")
    await listener.until(first + "one more\n")
    world.write(SERVER, 1, " of a line\n")
    await listener.until(first + "one more\nand a piece of a line\n")
    assert listener.files(SERVER) == ["llama-server-1.log"]
    await listener.close()


async def test_all_processes_are_followed_unless_some_are_chosen(world: World) -> None:
    world.launches(1)
    assert world.phone.path is not None
    world.phone.path.write_text("rpc\n")
    world.write(SERVER, 1, "server\n")
    world.write("link", 1, "link\n")
    everything, some = Listener(world), Listener(world, "phone", "link")
    for process, text in ((SERVER, "server\n"), ("link", "link\n"), ("phone", "rpc\n")):
        await everything.until(text, process)
        if process != SERVER:
            await some.until(text, process)
    assert some.text(SERVER) == ""
    for each in (everything, some):
        await each.close()


async def test_a_process_that_nobody_knows_is_refused(world: World) -> None:
    with pytest.raises(DeviceUnknown):
        LogFollower(world.logs, NAME, ["nobody"])


async def test_the_next_launch_is_gone_over_to_and_nothing_of_the_last_is_left_out(
    world: World,
) -> None:
    listener = Listener(world)
    for number in (1, 2, 3):
        world.launches(number)
        assert world.phone.path is not None
        world.phone.path.write_text(f"rpc {number}\n")
        world.write(SERVER, number, f"begins {number}\n")
        said = "".join(f"rpc {n}\n" for n in range(1, number + 1))
        await listener.until(said, "phone")
        world.write(SERVER, number, f"ends {number}, without a line end")
        world.becomes(State.BACKOFF, port=None, plan=None)
        world.becomes(State.PENDING, plan=world.plan)
    ends = [f"begins {n}\nends {n}, without a line end\n" for n in (1, 2, 3)]
    await listener.until("".join(ends))
    assert listener.files(SERVER) == [f"llama-server-{n}.log" for n in (1, 2, 3)]
    assert listener.files("phone") == [f"rpc-server-{n}.1.1.log" for n in (1, 2, 3)]
    assert listener.silent == []
    await listener.close()


async def test_an_rpc_server_of_another_launch_is_not_ours(world: World) -> None:
    world.launches(1)
    other = world.folder / "rpc-server-11.1.1.log"
    other.write_text("of another deployment\n")
    own, world.phone.path = world.phone.path, other
    listener = Listener(world, "phone")
    async with asyncio.timeout(10):
        while world.phone.asked < 2:
            await asyncio.sleep(0.01)
    assert listener.events == []
    assert own is not None
    own.write_text("ours\n")
    world.phone.path = own
    await listener.until("ours\n", "phone")
    await listener.close()


async def test_an_agent_that_does_not_answer_is_silent_once_and_asked_again(world: World) -> None:
    world.launches(1)
    world.phone.is_gone = True
    listener = Listener(world)
    async with asyncio.timeout(20):
        while world.phone.asked < 3:
            await asyncio.sleep(0.01)
    said = {"process": "phone", "detail": "the agent of phone does not answer"}
    assert listener.silent == [said]
    world.phone.is_gone = False
    assert world.phone.path is not None
    world.phone.path.write_text("back\n")
    world.becomes(State.READY, launch_id=LaunchId(1))
    await listener.until("back\n", "phone")
    world.phone.is_gone = True
    async with asyncio.timeout(20):
        while len(listener.silent) < 2:
            await asyncio.sleep(0.01)
    await listener.close()


async def test_a_file_that_is_gone_is_silent(world: World) -> None:
    world.launches(1)
    world.log(SERVER, 1).unlink()
    listener = Listener(world, SERVER)
    async with asyncio.timeout(10):
        while not listener.silent:
            await asyncio.sleep(0.01)
    assert listener.silent[0]["process"] == SERVER
    assert "cannot be read" in listener.silent[0]["detail"]
    await listener.close()


async def test_a_removed_deployment_ends_the_stream(world: World) -> None:
    world.launches(1)
    world.write(SERVER, 1, "said\n")
    listener = Listener(world)
    await listener.until("said\n")
    world.remove()
    async with asyncio.timeout(10):
        await listener.taking


async def test_our_own_end_ends_the_stream(world: World) -> None:
    listener = Listener(world)
    await asyncio.sleep(0.01)
    world.bus.close()
    async with asyncio.timeout(10):
        await listener.taking


async def test_who_reads_slowly_stops_his_own_reading_and_misses_nothing(world: World) -> None:
    world.launches(1)
    world.write(SERVER, 1, "first\n")
    follower = LogFollower(world.logs, NAME, [SERVER])
    events = follower.events()

    async def taken() -> str:
        _, body = await anext(events)
        return str(body["text"])

    said = await taken()
    lines = "".join(f"{number:063}\n" for number in range(50_000))
    world.write(SERVER, 1, lines)
    async with asyncio.timeout(20):
        while follower._said.qsize() < 8:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert follower._said.qsize() == 8, "of some fifty"
        while len(said) < len("first\n" + lines):
            said += await taken()
    assert said == "first\n" + lines
    await follower.close()


async def test_nothing_is_read_while_nothing_runs(world: World) -> None:
    world.launches(1)
    listener = Listener(world)
    await asyncio.sleep(0.1)
    world.becomes(State.STOPPED, port=None)
    async with asyncio.timeout(20):
        while (before := world.phone.asked) < 2:
            await asyncio.sleep(0.05)
    await asyncio.sleep(2.2)
    assert world.phone.asked <= before + 1
    world.launches(2)
    world.write(SERVER, 2, "again\n")
    await listener.until("again\n")
    await listener.close()


# -- lines -------------------------------------------------------------------------------------

piece = st.binary(max_size=30).map(lambda data: data.replace(b"x", b"\n"))


@given(st.lists(piece, max_size=20))
def test_pieces_make_the_same_lines_however_they_are_cut(pieces: list[bytes]) -> None:
    lines = WholeLines()
    made = "".join(lines.feed(each) for each in pieces) + lines.end()
    whole = b"".join(pieces)
    *ends, rest = whole.split(b"\n")
    wanted = [*ends, rest] if rest else ends
    assert made == "".join(each.decode(errors="replace") + "\n" for each in wanted)


@settings(deadline=None)
@given(st.integers(0, 3 * LINE_BYTES), st.integers(1000, LINE_BYTES * 2))
def test_a_line_that_is_too_long_is_cut_and_the_next_one_is_whole(length: int, size: int) -> None:
    data = b"a" * length + b"\nnext\n"
    lines = WholeLines()
    made = "".join(lines.feed(data[i : i + size]) for i in range(0, len(data), size))
    assert made == "a" * min(length, LINE_BYTES) + "\nnext\n"
    assert lines.end() == ""
