"""Launches through links on the real engine: connections, round trips, bytes, output."""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Program, eventually
from cryptography import x509
from lab.capture import (
    CHUNK_BYTES,
    PROMPT,
    Recorder,
    llama_server,
    our_flags,
    read,
    recorder,
    rpc_server,
    serving,
)
from lab.linked import Lab, Served
from lab.links import Link, Traffic, emulated_link

from agents import ports
from agents.contract import EngineFacts
from agents.errors import LinkRefused, ProjectError
from agents.rpc_commands import SET_TENSOR_HASH, Limits
from agents.rpc_protocol import Command
from supervisor.adapters.gguf import read_header
from supervisor.adapters.link_process import LinkProcesses
from supervisor.core.model_shape import BLOCK
from supervisor.demo_model import SENTENCE, write_demo_model
from supervisor.link.job import LinkJob, WorkerJob

MIB = 1 << 20
ONE_WAY_S = 0.05
LATE_SHARE = 0.02
"""Of the first launch's bytes: what a launch sends that has nothing to send."""


@pytest.fixture(scope="session")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """28 MB, all of it in tensors that are stored, none of which is asked for by hash."""
    path = tmp_path_factory.mktemp("models") / "large.gguf"
    write_demo_model(path, feed_forward=1536, recite=False)
    return path


# -- launches --------------------------------------------------------------------------------------


async def launched(cluster: Cluster, model: Path, **spec: Any) -> dict[str, Any]:
    """A launch that is ready."""
    answer = await cluster.launch(model, **spec)
    assert answer.status_code == 201, answer.text
    deployment = await cluster.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    return deployment


async def stop(cluster: Cluster) -> None:
    assert (await cluster.http.post("/api/deployments/test/stop")).status_code == 200


async def record_of(cluster: Cluster, deployment: dict[str, Any]) -> dict[str, Any]:
    path = f"/api/launches/{deployment['launch_id']}"
    found: dict[str, Any] = (await cluster.http.get(path)).json()
    return found


@dataclass
class Wired:
    """Agents whose links the main host reaches through emulated ones."""

    cluster: Cluster
    stack: contextlib.AsyncExitStack
    links: dict[str, Link] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)
    agents: dict[str, Program] = field(default_factory=dict)

    async def join(self, name: str, **shape: Any) -> None:
        reservation = ports.reserve("127.0.0.1")
        self.stack.callback(reservation.release)
        link = await self.stack.enter_async_context(emulated_link(reservation.port, **shape))
        self.links[name] = link
        self.places[name] = [
            *("--link-port", str(reservation.port)),
            *("--link-address", f"127.0.0.1:{link.port}"),
        ]
        await self.start(name)

    async def start(self, name: str) -> None:
        self.agents[name] = await self.cluster.agent(name, *self.places[name])

        async def is_heard() -> bool:
            device = await self.cluster.device(name)
            return bool(device and device["rpc_server"]["generation"] == 0)

        await eventually(is_heard, within_s=10, what=f"{name}, which has served nothing yet")

    async def restart(self, name: str) -> None:
        await asyncio.to_thread(self.agents[name].stop)
        await self.start(name)

    async def traffic(self) -> dict[str, Traffic]:
        return {name: await link.traffic() for name, link in self.links.items()}

    async def given(self, model: Path, **spec: Any) -> dict[str, int]:
        """What one launch, which is stopped then, sends to each: bytes on the wire."""
        before = await self.traffic()
        await launched(self.cluster, model, **spec)
        await stop(self.cluster)
        after = await self.traffic()
        return {name: after[name].up_bytes - before[name].up_bytes for name in self.links}


@pytest.fixture
async def wired(cluster: Cluster) -> AsyncIterator[Wired]:
    """A supervisor, and agents to come."""
    await cluster.supervisor(heartbeat_s=0.5, retry_first_s=0.2)
    async with contextlib.AsyncExitStack() as stack:
        yield Wired(cluster, stack)


# -- connections -----------------------------------------------------------------------------------


async def accepted(cluster: Cluster, name: str) -> int:
    """How many clients the rpc-server of a device has had, by its own log."""
    params = {"process": name}
    log = (await cluster.http.get("/api/deployments/test/logs", params=params)).json()
    return str(log["text"]).count("Accepted client connection")


async def test_a_launch_connects_to_each_rpc_server_once(pair: Cluster, demo_model: Path) -> None:
    await launched(pair, demo_model)
    await pair.complete(tokens=24)
    await pair.complete("The river is " * 40, tokens=8)
    for name in ("one", "two"):
        assert await accepted(pair, name) == 1 + 1, "its agent's own probe, and the launch"


@pytest.mark.parametrize("is_ours", [True, False], ids=["our flags", "default flags"])
async def test_however_often_llama_server_connects_the_rpc_server_sees_one_connection(
    engine: EngineFacts, random_model: Path, tmp_path: Path, is_ours: bool
) -> None:
    lab = Lab(tmp_path)
    flags = our_flags(engine) if is_ours else []
    async with contextlib.AsyncExitStack() as stack:
        upstream, sides = [], []
        for name in ("one", "two"):
            port = await stack.enter_async_context(rpc_server(engine, tmp_path / f"{name}.log"))
            upstream.append(await stack.enter_async_context(recorder(port)))
            served = await Served.proven(upstream[-1].port, asked_at=port)
            sides.append(await stack.enter_async_context(lab.far_side(name, served)))
        async with lab.near_ends(*sides) as near_ends, contextlib.AsyncExitStack() as local:
            before = [
                await local.enter_async_context(recorder(near.stats().port)) for near in near_ends
            ]
            rpc_ports = [each.port for each in before]
            log = tmp_path / "llama-server.log"
            async with llama_server(engine, random_model, rpc_ports, flags, log) as server:
                for prompt in (PROMPT, "and now"):
                    await server.complete(prompt, 12)
    storm = [len(each.connections) for each in before]
    print(f"llama-server connected {storm} times")
    assert min(storm) > 3
    assert [len(each.connections) for each in upstream] == [1, 1]


# -- round trips -----------------------------------------------------------------------------------


async def test_a_far_worker_is_ready_in_half_of_the_direct_time_and_then_in_a_quarter(
    wired: Wired, engine: EngineFacts, demo_model: Path, tmp_path: Path
) -> None:
    await asyncio.gather(*(wired.join(n, one_way_delay_s=ONE_WAY_S) for n in ("one", "two")))
    took_s = []
    for _ in range(3):
        asked_s = time.monotonic()
        deployment = await launched(wired.cluster, demo_model)
        in_all_s = time.monotonic() - asked_s
        record = await record_of(wired.cluster, deployment)
        steps = {step["name"]: step["took_s"] for step in record["timeline"]}
        took_s.append(sum(steps[name] for name in ("connected", "loaded", "first token")))
        print(f"link: {in_all_s:.2f} s from the request, {took_s[-1]:.2f} s from the start")
        await stop(wired.cluster)
    direct_s = await direct_seconds(engine, record["argv"], tmp_path)
    print(f"direct: {direct_s:.2f} s; shares {[round(each / direct_s, 3) for each in took_s]}")
    # A busy machine only adds to any of them.
    assert min(took_s[1:]) <= direct_s / 4
    assert took_s[0] <= direct_s / 2


async def direct_seconds(engine: EngineFacts, argv: list[str], folder: Path) -> float:
    """From the start of llama-server to its first token, the same command without links."""
    async with contextlib.AsyncExitStack() as stack:
        endpoints = []
        for name in ("a", "b"):
            log = folder / f"direct-{name}.log"
            port = await stack.enter_async_context(rpc_server(engine, log))
            relay = await stack.enter_async_context(emulated_link(port, one_way_delay_s=ONE_WAY_S))
            endpoints.append(f"127.0.0.1:{relay.port}")
        reservation = ports.reserve("127.0.0.1")
        stack.callback(reservation.release)
        own = list(argv)
        own[own.index("--rpc") + 1] = ",".join(endpoints)
        own[own.index("--port") + 1] = str(reservation.port)
        async with serving(own, reservation.port, folder / "direct.log") as server:
            await server.complete("Hello", 1)
            return time.monotonic() - server.started_s


# -- bytes -----------------------------------------------------------------------------------------


def weights_by_layer(model: Path) -> Counter[int]:
    """Of the large tensors of each block; those after the last one belong to nobody here."""
    found = Counter[int]()
    for tensor in read_header(model).tensors:
        if (block := BLOCK.fullmatch(tensor.name)) and tensor.size_bytes >= 64 << 10:
            found[int(block[1])] += tensor.size_bytes
    return found


async def test_a_relaunch_sends_what_a_device_never_had_and_nothing_else(
    wired: Wired, large_model: Path
) -> None:
    await asyncio.gather(wired.join("one"), wired.join("two"))
    layers = weights_by_layer(large_model)
    first = await wired.given(large_model, split=[6, 3])
    most_bytes = LATE_SHARE * sum(first.values())
    assert sum(first.values()) > sum(layers.values())

    again = await wired.given(large_model, split=[6, 3])
    assert sum(again.values()) < most_bytes

    other = await wired.given(large_model, split=[3, 6])
    new_bytes = sum(layers[layer] for layer in (3, 4, 5))
    assert other["one"] < most_bytes
    assert new_bytes < other["two"] < new_bytes + most_bytes

    await asyncio.gather(*map(wired.restart, wired.agents))
    restarted = await wired.given(large_model, split=[3, 6])
    assert sum(restarted.values()) < most_bytes

    moved = await wired.given(large_model, split=[8, 1])
    new_bytes = sum(layers[layer] for layer in (6, 7))
    assert new_bytes < moved["one"] < new_bytes + most_bytes
    assert moved["two"] < most_bytes
    for what, sent in (
        ("again", again),
        ("other split", other),
        ("agents restarted", restarted),
        ("yet another split", moved),
    ):
        print(f"{what}: {sent} bytes, {sum(sent.values()) / sum(first.values()):.3%} of the first")


async def test_a_launch_that_repairs_itself_sends_no_weights_again(
    wired: Wired, large_model: Path
) -> None:
    cluster = wired.cluster
    await asyncio.gather(wired.join("one"), wired.join("two"))
    before = await launched(cluster, large_model)
    first = await wired.traffic()

    async def is_heard_of() -> dict[str, Any] | None:
        device = await cluster.device("two")
        return device if device and device["rpc_server"]["state"] == "ready" else None

    device = await eventually(is_heard_of, within_s=10, what="a heartbeat with the rpc-server")
    os.kill(device["rpc_server"]["pid"], signal.SIGKILL)

    async def is_repaired() -> dict[str, Any] | None:
        now: dict[str, Any] = (await cluster.http.get("/api/deployments/test")).json()
        is_new = now["launch_id"] != before["launch_id"]
        return now if now["state"] == "ready" and is_new else None

    await eventually(is_repaired, within_s=30, what="the launch is repeated")
    second = await wired.traffic()
    first_bytes = sum(each.up_bytes for each in first.values())
    more_bytes = sum(each.up_bytes for each in second.values()) - first_bytes
    print(f"repaired: {more_bytes} bytes, {more_bytes / first_bytes:.3%} of the first")
    assert more_bytes < LATE_SHARE * first_bytes


# -- output ----------------------------------------------------------------------------------------


async def test_the_output_is_that_of_a_direct_launch_the_first_time_and_the_second(
    pair: Cluster, random_model: Path
) -> None:
    answers = []
    for transport in ("direct", "link", "link"):
        await launched(pair, random_model, transport=transport)
        answers.append(
            [
                await pair.complete("The quick brown fox", tokens=48),
                await pair.complete("The river is wide and " * 30, tokens=16),
            ]
        )
        await stop(pair)
    assert answers[0] == answers[1] == answers[2]
    assert all(answers[0])


# -- tensors that are asked for by hash ------------------------------------------------------------


def weights_given(recorded: Recorder) -> tuple[Counter[int], int]:
    """Commands of a worker's connections, and how many bytes came with them."""
    commands, size_bytes = Counter[int](), 0
    for record in recorded.connections:
        commands += read(record, Limits(), CHUNK_BYTES).commands
        size_bytes += len(record.said(by_client=True))
    return commands, size_bytes


async def test_tensors_over_10_mib_are_not_even_given_to_the_near_end_a_second_time(
    engine: EngineFacts, tmp_path: Path
) -> None:
    model = tmp_path / "wide.gguf"
    write_demo_model(model, layers=1, embedding=1024, feed_forward=10304, recite=False)
    asked_bytes = sum(t.size_bytes for t in read_header(model).tensors if t.size_bytes > 10 * MIB)
    flags, texts, given, taken = our_flags(engine), [], [], []
    lab = Lab(tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(rpc_server(engine, tmp_path / "rpc-server.log"))
        async with llama_server(engine, model, [port], flags, tmp_path / "0.log") as server:
            texts.append(await server.complete("The quick brown fox", 32))
        for number in (1, 2, 3):
            upstream = await stack.enter_async_context(recorder(port))
            served = await Served.proven(upstream.port, asked_at=port)
            log = tmp_path / f"{number}.log"
            async with (
                lab.far_side("one", served) as side,
                lab.near_ends(side) as [near_end],
                recorder(near_end.stats().port) as local,
                llama_server(engine, model, [local.port], flags, log) as server,
            ):
                texts.append(await server.complete("The quick brown fox", 32))
            given.append(weights_given(local))
            taken.append(weights_given(upstream))
    print(f"given to the near end: {[size for _, size in given]} bytes")
    print(f"taken by the rpc-server: {[size for _, size in taken]} bytes")
    assert texts[0]
    assert texts == texts[:1] * 4
    for (asked, _), (answered, _) in zip(given, taken, strict=True):
        assert asked[SET_TENSOR_HASH] == 3
        assert answered[SET_TENSOR_HASH] == 0, "an rpc-server without -c knows nothing"
    first, *later = (size for _, size in given)
    for again in later:
        assert abs(first - again - asked_bytes) < 0.01 * first
    assert max(size for _, size in taken) - min(size for _, size in taken) < 0.01 * first
    counts = [commands[Command.SET_TENSOR] for commands, _ in taken]
    assert counts == counts[:1] * 3


# -- one launch at a time --------------------------------------------------------------------------


def second_job(cluster: Cluster, device: dict[str, Any], launch: int) -> LinkJob:
    """A link to a device with the main host's own certificates, for a launch of ours."""
    authority = cluster.folder / "supervisor" / "authority"
    certificate = (cluster.folder / device["name"] / "identity" / "agent.crt").read_bytes()
    worker = WorkerJob(
        agent_id=device["id"],
        name=device["name"],
        address="127.0.0.1",
        link_port=device["link_port"],
        serial=f"{x509.load_pem_x509_certificate(certificate).serial_number:X}",
    )
    return LinkJob(
        launch=launch,
        main_host="another",
        silence_s=5.0,
        connect_s=20.0,
        window_bytes=16 * MIB,
        certificate=str(authority / "supervisor.crt"),
        key=str(authority / "supervisor.key"),
        authority=str(authority / "authority.crt"),
        folder=str(cluster.folder / "other"),
        workers=[worker],
    )


async def test_another_launch_is_refused_at_once_and_told_who_has_the_device(
    cluster: Cluster, demo_model: Path, tmp_path: Path
) -> None:
    """Whether that launch came before or would come later, or says that it is the same."""
    await cluster.supervisor()
    await cluster.agent("one")
    await launched(cluster, demo_model)
    await stop(cluster)
    deployment = await launched(cluster, demo_model)
    device = await cluster.device_state("one", "ready")
    own, main_host = deployment["launch_id"], (await record_of(cluster, deployment))["main_host"]
    reason = f"one: in use by launch {own} of main host {main_host}"
    async with contextlib.AsyncExitStack() as stack:
        others = LinkProcesses(tmp_path / "other")
        stack.push_async_callback(others.close)
        for launch in (own - 1, own, own + 7):
            started_s = time.monotonic()
            link = await others.start(second_job(cluster, device, launch))
            stack.push_async_callback(link.stop)
            with pytest.raises(ProjectError, match=re.escape(reason)) as refused:
                await link.ready(1, 40)
            took_s = time.monotonic() - started_s
            print(f"launch {launch} is refused after {took_s:.2f} s")
            assert refused.value.code == LinkRefused.code
            assert took_s < 5
    assert await cluster.complete(tokens=8), "it is not disturbed"
    assert await accepted(cluster, "one") == 1 + 1


# -- addresses -------------------------------------------------------------------------------------


async def test_links_lead_to_ipv6_addresses_and_names(cluster: Cluster, demo_model: Path) -> None:
    """``localhost`` may stand for several addresses, of which one listens."""
    await cluster.supervisor()
    expected = {}
    with contextlib.ExitStack() as stack:
        for name, listens_on, is_reached_at in (
            ("plain", "::1", ""),
            ("mapped", "::1", "[::1]"),
            ("named", "127.0.0.1", "localhost"),
        ):
            reservation = ports.reserve("127.0.0.1")
            stack.callback(reservation.release)
            port = str(reservation.port)
            place = ["--host", listens_on, "--link-port", port]
            if is_reached_at:
                place += ["--link-address", f"{is_reached_at}:{port}"]
            await cluster.agent(name, *place)
            expected[name] = f"{is_reached_at or '[::1]'}:{port}"
        deployment = await launched(cluster, demo_model)
        workers = (await record_of(cluster, deployment))["workers"]
        assert {worker["device"]: worker["link"] for worker in workers} == expected
        assert {worker["host"] for worker in workers} == {"127.0.0.1"}, "all that llama-server sees"
        assert (await cluster.complete(tokens=64)).strip() in SENTENCE


# -- sending ahead ---------------------------------------------------------------------------------


async def test_both_workers_receive_their_weights_at_the_same_time(
    wired: Wired, large_model: Path
) -> None:
    """llama-server fills one worker after the other; what is sent ahead does not wait for that."""
    rate = 2e6
    await asyncio.gather(*(wired.join(n, rate_bytes_per_s=(rate, 0)) for n in ("one", "two")))
    cluster = wired.cluster
    answer = await cluster.launch(large_model, split=[4, 5])
    assert answer.status_code == 201, answer.text
    asked_s = time.monotonic()
    looks: list[dict[str, dict[str, Any]]] = []

    async def is_ready() -> bool:
        deployment = (await cluster.http.get("/api/deployments/test")).json()
        looks.append({link["device"]: link for link in deployment["links"]})
        assert deployment["state"] != "failed", deployment["reason"]
        return bool(deployment["state"] == "ready")

    await eventually(is_ready, within_s=60, what="the launch")
    took_s = time.monotonic() - asked_s
    traffic = await wired.traffic()
    alone_s = {name: each.up_bytes / rate for name, each in traffic.items()}
    print(f"ready after {took_s:.2f} s; what each received takes {alone_s} s")
    seeded = [[link["seeded_bytes"] for link in look.values()] for look in looks if look]
    print(seeded[:: max(len(seeded) // 8, 1)])
    assert any(0 < one < seeded[-1][0] and 0 < two < seeded[-1][1] for one, two in seeded)
    assert took_s < sum(alone_s.values())
