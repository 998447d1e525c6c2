"""Measuring on the real engine: figures, who goes first, and that nothing is left running."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from cluster import RUN_MARK, Cluster, engine_pids, eventually
from lab.links import Link, emulated_link

from agents import engine as engines
from agents.contract import (
    EngineFacts,
    MeasurementProblem,
    MeasurementSpec,
    RpcServerSpec,
    RpcServerStatus,
    WorkerState,
)
from agents.current_engine import CurrentEngine
from agents.errors import MeasurementRefused
from agents.rpc_server import RpcServer

TYPES = {"Q4_0", "Q4_K", "Q6_K", "Q8_0", "F16"}
MEASURE_S = 60.0
DEVICE = "127.0.0.2"
Event = tuple[str, dict[str, Any]]


@pytest.fixture
async def one(cluster: Cluster) -> Cluster:
    """A supervisor and one ready device."""
    await cluster.supervisor()
    await cluster.agent("one")
    return cluster


@contextlib.asynccontextmanager
async def measuring(cluster: Cluster, device: str = "one") -> AsyncIterator[AsyncIterator[Event]]:
    """A measurement that was asked for; leaving the block hangs up."""
    path = f"/api/devices/{device}/measure"
    async with cluster.http.stream("POST", path, timeout=MEASURE_S) as answer:
        assert answer.status_code == 200, await answer.aread()
        yield _events(answer)


async def _events(answer: httpx.Response) -> AsyncIterator[Event]:
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event:"):
            name = line[6:].strip()
        elif line.startswith("data:"):
            yield name, json.loads(line[5:])


async def until_step(events: AsyncIterator[Event], step: str) -> None:
    async with asyncio.timeout(MEASURE_S):
        async for name, body in events:
            assert name == "progress", body
            if body["step"] == step:
                return
    raise AssertionError(f"{step} never came")


async def last_of(events: AsyncIterator[Event]) -> Event:
    async with asyncio.timeout(MEASURE_S):
        return [event async for event in events][-1]


async def kept(cluster: Cluster) -> dict[str, Any]:
    found: dict[str, Any] = (await cluster.http.get("/api/measurements")).json()
    return found


async def nothing_runs(within_s: float = 10.0) -> None:
    async def none_left() -> bool:
        return not engine_pids()

    await eventually(none_left, within_s=within_s, what="no engine process is left")


@contextlib.asynccontextmanager
async def behind_a_relay(cluster: Cluster) -> AsyncIterator[Link]:
    """A device with an address of its own, whose link leads through an emulated one."""
    with socket.create_server((DEVICE, 0)) as found:
        port = found.getsockname()[1]
    async with emulated_link(port, target_host=DEVICE) as relay:
        where = ("--link-port", str(port), "--link-address", f"127.0.0.1:{relay.port}")
        await cluster.agent("one", "--host", DEVICE, *where)
        yield relay


async def has_sent(relay: Link, least_bytes: int) -> bool:
    return (await relay.traffic()).up_bytes > least_bytes


async def engines_listen_at(addresses: set[str]) -> None:
    """Collect where engine programs listen, until cancelled."""
    while True:
        for pid in engine_pids():
            with contextlib.suppress(psutil.Error):
                found = psutil.Process(pid).net_connections("inet")
                addresses |= {c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}
        await asyncio.sleep(0.02)


async def link_processes(count: int = 1) -> None:
    """Wait until so many are left: one is kept for the next launch."""

    def is_ours(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            is_link = "supervisor.link" in process.cmdline()
            return is_link and RUN_MARK in process.environ().values()
        return False

    async def are_left() -> bool:
        return len([p for p in psutil.process_iter() if is_ours(p)]) == count

    await eventually(are_left, within_s=10, what=f"link processes left: {count}")


async def test_a_measurement_streams_progress_and_keeps_plausible_figures(one: Cluster) -> None:
    before = await kept(one)
    assert (before["devices"], before["links"]) == ([], [])
    assert list(before["needed"].values()) == ["CPU was never measured"]
    async with measuring(one) as stream, asyncio.timeout(MEASURE_S):
        events = [event async for event in stream]
    *progress, (name, result) = events
    assert name == "result", result
    assert {name for name, _ in progress} == {"progress"}
    parts = [body["part"] for _, body in progress]
    assert parts == sorted(parts)
    assert 0 <= parts[0] <= parts[-1] <= 1
    assert {body["step"] for _, body in progress} > TYPES
    assert progress[-1][1]["step"] == "link"
    [device], link = result["devices"], result["link"]
    assert (device["ggml_device"], device["rpc_protocol"]) == ("CPU", "7.0.0")
    assert set(device["decode_bytes_per_s"]) == set(device["prefill_flop_per_s"]) == TYPES
    assert all(2e8 < speed < 1e12 for speed in device["decode_bytes_per_s"].values())
    assert all(5e8 < speed < 1e14 for speed in device["prefill_flop_per_s"].values())
    assert 0 < device["op_overhead_s"] < 1e-3
    assert 0 < device["hop_overhead_s"] < 0.1
    for figure in ("attention_flop_per_s", "cache_bytes_per_s", "prefill_attention_flop_per_s"):
        assert 1e8 < device[figure] < 1e14, figure
    assert device["sustained_factor"] == 1, "only phones are kept busy for a minute"
    assert 0 < link["rtt_p50_s"] <= link["rtt_p90_s"] < 0.1
    assert min(link["up_bytes_per_s"], link["down_bytes_per_s"]) > 2e7
    assert await kept(one) == {"devices": [device], "links": [link], "needed": {}}
    await nothing_runs()
    found = await one.device("one")
    assert found is not None
    assert found["rpc_server"]["state"] == "stopped"
    assert found["round_trip_ms"] == round(link["rtt_p50_s"] * 1e3, 2)


async def test_a_link_is_measured_through_the_link_and_nothing_else_can_be_reached(
    cluster: Cluster,
) -> None:
    await cluster.supervisor()
    async with behind_a_relay(cluster) as relay:
        await relay.set(one_way_delay_s=0.01, rate_bytes_per_s=(2e7, 4e7))
        heard_at: set[str] = set()
        async with measuring(cluster) as events:
            watching = asyncio.create_task(engines_listen_at(heard_at))
            name, result = await last_of(events)
            watching.cancel()
        assert name == "result", result
    assert heard_at == {"127.0.0.1"}, "its agent and its link are at 127.0.0.2"
    link = result["link"]
    assert 0.02 < link["rtt_p50_s"] < 0.04
    assert 1e7 < link["up_bytes_per_s"] < 2.2e7
    assert 2e7 < link["down_bytes_per_s"] < 4.4e7
    await nothing_runs()
    await link_processes()


async def test_a_launch_during_the_measurement_of_a_link_goes_first(
    cluster: Cluster, demo_model: Path
) -> None:
    """Over a link on which the measurement has much on its way when it is interrupted."""
    await cluster.supervisor()
    async with behind_a_relay(cluster) as relay:
        await relay.set(one_way_delay_s=0.005, rate_bytes_per_s=4e6)
        async with measuring(cluster) as events:
            await until_step(events, "link")
            await eventually(lambda: has_sent(relay, 2 << 20), within_s=15, what="much is sent")
            assert (await cluster.launch(demo_model)).status_code == 201
            name, body = await last_of(events)
        deployment = await cluster.settled()
        assert (deployment["state"], deployment["failures"]) == ("ready", 0), deployment
        assert (name, body["code"]) == ("problem", "measurement_interrupted")
        assert "one: the measurement was interrupted by" in body["detail"]
        assert await cluster.complete()
        assert len(engine_pids()) == 2, "llama-server and its worker"
        found = await kept(cluster)
        assert (found["devices"], found["links"]) == ([], [])
        await cluster.http.post("/api/deployments/test/stop")
        await nothing_runs()
        await link_processes()


async def test_a_link_that_is_lost_while_it_is_measured_says_so(cluster: Cluster) -> None:
    await cluster.supervisor(link_silence_s=1.0)
    async with behind_a_relay(cluster) as relay:
        await relay.set(rate_bytes_per_s=1e6)
        async with measuring(cluster) as events:
            await until_step(events, "link")
            await eventually(lambda: has_sent(relay, 1 << 20), within_s=15, what="much is sent")
            await relay.black_hole()
            name, body = await last_of(events)
        assert (name, body["code"]) == ("problem", "link_lost")
        assert "the link to one was lost in phase load: silent for" in body["detail"]
        await nothing_runs()
        await link_processes()


async def test_a_launch_during_a_measurement_goes_first(one: Cluster, demo_model: Path) -> None:
    async with measuring(one) as events:
        await until_step(events, "Q4_0")
        assert len(engine_pids()) == 1
        device = await one.device("one")
        assert device is not None
        assert device["rpc_server"]["state"] == "stopped", "it is free for launches"
        assert (await one.launch(demo_model)).status_code == 201
        name, body = await last_of(events)
    deployment = await one.settled()
    assert deployment["state"] == "ready", deployment["reason"]
    assert name == "problem"
    assert body["code"] == "measurement_interrupted"
    assert body["status"] == 409
    assert "one: the measurement was interrupted by" in body["detail"]
    found = await kept(one)
    assert (found["devices"], found["links"]) == ([], [])
    assert len(engine_pids()) == 2, "llama-server and its worker"


async def test_a_launch_gets_the_memory_of_a_measurement_at_once(
    engine: EngineFacts, tmp_path: Path
) -> None:
    server = RpcServer(CurrentEngine(engine), tmp_path, engines.inherited(), threads=1)
    measurement = await server.measure(MeasurementSpec(["Q8_0"]), ["CPU"])

    async def has_weights() -> bool:
        return server.reclaimable_bytes() > 224 << 20

    try:
        await eventually(has_weights, within_s=20, what="the measurement takes memory")
        assert server.status() == RpcServerStatus(WorkerState.STOPPED, is_measuring=True)
        with pytest.raises(MeasurementRefused, match="being measured already"):
            await server.measure(MeasurementSpec(["Q8_0"]), ["CPU"])
        [private] = engine_pids()
        await server.apply(RpcServerSpec(7, "127.0.0.1"))
        assert private not in engine_pids()
        assert server.reclaimable_bytes() == 0
        status = await server.wait_while_starting(20)
        assert (status.state, status.generation) == (WorkerState.READY, 7)
        assert not status.is_measuring
        with pytest.raises(MeasurementRefused, match="rpc-server of launch 7 is ready"):
            await server.measure(MeasurementSpec(["Q8_0"]), ["CPU"])
        last = [update async for update in measurement.updates(60)][-1]
        assert isinstance(last, MeasurementProblem)
        assert "interrupted by launch 7" in last.detail
    finally:
        await server.close()
    assert not engine_pids()


async def test_a_caller_who_leaves_ends_the_measurement(one: Cluster) -> None:
    async with measuring(one) as events:
        await until_step(events, "Q4_0")
        assert len(engine_pids()) == 1

        async def is_told() -> bool:
            device = await one.device("one")
            return device is not None and device["rpc_server"]["is_measuring"]

        await eventually(is_told, within_s=10, what="the heartbeat says that it is measured")
    await nothing_runs()

    async def is_over() -> bool:
        device = await one.device("one")
        return device is not None and not device["rpc_server"]["is_measuring"]

    await eventually(is_over, within_s=10, what="the heartbeat says that it is over")
    assert (await kept(one))["devices"] == []
    async with measuring(one) as events:
        await until_step(events, "Q4_0")  # nothing is in the way of the next one


async def test_a_device_that_serves_is_refused_before_anything_is_streamed(
    one: Cluster, demo_model: Path
) -> None:
    await one.launch(demo_model)
    assert (await one.settled())["state"] == "ready"
    refused = await one.http.post("/api/devices/one/measure")
    assert refused.status_code == 409
    assert refused.json()["code"] == "worker_busy"
    assert "one is in use by deployment test; stop that first" in refused.json()["detail"]
    unknown = await one.http.post("/api/devices/nokia/measure")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "device_unknown")


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGTERM, "measurement_interrupted", "interrupted by the end of the agent"),
        (signal.SIGKILL, "agent_unreachable", "the agent of one"),
    ],
)
async def test_an_agent_that_ends_takes_the_measurement_along(
    one: Cluster, number: signal.Signals, code: str, says: str
) -> None:
    agent = next(program for program in one.programs if program.name == "one")
    async with measuring(one) as events:
        await until_step(events, "Q4_0")
        await asyncio.to_thread(agent.stop, number)
        name, body = await last_of(events)
    assert (name, body["code"]) == ("problem", code)
    assert says in body["detail"]
    await nothing_runs()


async def test_a_private_rpc_server_that_is_killed_is_a_problem_and_not_a_stop(
    one: Cluster,
) -> None:
    async with measuring(one) as events:
        await until_step(events, "Q4_0")
        [pid] = engine_pids()
        os.kill(pid, signal.SIGKILL)
        name, body = await last_of(events)
    assert (name, body["code"]) == ("problem", "measurement_failed")
    assert "connection lost" in body["detail"]
    await nothing_runs()
    device = await one.device_state("one", "ready")
    assert device["rpc_server"]["state"] == "stopped"


@pytest.mark.parametrize("step", ["Q4_0", "link"])
async def test_a_supervisor_that_stops_leaves_nothing(cluster: Cluster, step: str) -> None:
    supervisor = await cluster.supervisor()
    async with behind_a_relay(cluster) as relay:
        await relay.set(rate_bytes_per_s=1e6)
        async with measuring(cluster) as events:
            await until_step(events, step)
            status = await asyncio.to_thread(supervisor.stop)
            with contextlib.suppress(httpx.TransportError):
                await last_of(events)
        assert status == 0, supervisor.said()
        assert "Traceback" not in supervisor.said()
        await nothing_runs()
        await link_processes(0)


async def test_an_idle_device_is_measured_by_itself_and_not_again(cluster: Cluster) -> None:
    await cluster.supervisor(measure_idle="true", measure_idle_after_s=0.5, measure_idle_load=1e6)
    await cluster.agent("one")

    async def is_known() -> bool:
        return (await kept(cluster))["needed"] == {} and await cluster.device("one") is not None

    await eventually(is_known, within_s=MEASURE_S, what="the device is measured")
    before = await kept(cluster)
    await asyncio.sleep(2.0)  # several looks
    assert not engine_pids()
    assert await kept(cluster) == before


async def test_the_command_measures_all_idle_devices_and_prints_a_table(one: Cluster) -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "supervisor", "measure", *arguments, "--url", one.url],
            capture_output=True, text=True, timeout=MEASURE_S, check=False,
        )  # fmt: skip

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stderr
    head, columns, row = done.stdout.splitlines()[:3]
    assert head.startswith("Measurements")
    assert columns.split()[:2] == ["device", "on"]
    assert row.split()[:2] == ["one", "CPU"]
    assert len(row.split()) == len(columns.split()) == 2 + len(TYPES) + 5
    refused = await asyncio.to_thread(run, "nokia", "--json")
    assert refused.returncode == 1
    assert json.loads(refused.stdout) == []
    assert "no device 'nokia'" in refused.stderr


async def test_a_run_corrects_what_was_measured_and_a_plan_no_longer_guesses(
    one: Cluster, demo_model: Path
) -> None:
    spec = {"model": str(demo_model), "devices": ["one"], "pin_output": "one"}
    guessed = (await one.http.post("/api/plan", json=spec)).json()["plan"]
    assert guessed["prediction"]["is_guess"]
    async with measuring(one) as events:
        assert (await last_of(events))[0] == "result"
    planned = (await one.http.post("/api/plan", json=spec)).json()["plan"]
    assert not planned["prediction"]["is_guess"]
    await one.launch(demo_model, devices=["one"], pin_output="one")
    await one.settled()
    await one.complete(tokens=200, ignore_eos=True)
    before = (await kept(one))["devices"][0]
    await one.http.post("/api/deployments/test/stop")
    after = (await kept(one))["devices"][0]
    assert before["correction"] == 1
    assert after["correction"] != 1, "no run takes exactly what was predicted"
    assert after | {"correction": 1} == before | {"correction": 1}, "nothing else changed"
    again = (await one.http.post("/api/plan", json=spec)).json()["plan"]
    faster = after["correction"] < 1
    rates = [p["prediction"]["decode_tokens_per_s"] for p in (planned, again)]
    assert (rates[1] > rates[0]) is faster
