"""Measurements of the real rpc-server: their figures, what they leave behind, how they fail."""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
from cluster import eventually

from agents import ports
from agents.contract import EngineFacts
from agents.errors import MeasurementFailed
from agents.facts import resident_bytes
from agents.measure import DeviceSpec, measure_device, measure_link
from agents.rpc_client import connected
from agents.rpc_protocol import Outcome, probe

WIDTH, FEED_FORWARD = 1024, 2816
SPEC = DeviceSpec(types=("Q8_0", "Q4_K"), n_embd=WIDTH, n_ff=FEED_FORWARD, deadline_s=30)
BUFFERS = 24 << 20
"""What an idle rpc-server may keep of a measurement."""


@contextlib.contextmanager
def child(argv: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    quiet = subprocess.DEVNULL
    # SIGPIPE stays ignored, as for the rpc-servers of agents.
    process = subprocess.Popen(argv, stdout=quiet, stderr=quiet, restore_signals=False)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def worker(engine: EngineFacts) -> AsyncIterator[tuple[int, int]]:
    """Port and pid of a ready rpc-server with one thread."""
    reservation = ports.reserve("127.0.0.1")
    port = reservation.port
    argv = [engine.rpc_server, "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
    with child(argv) as process:

        async def is_ready() -> bool:
            found = await probe("127.0.0.1", port, deadline_s=1)
            return found.outcome is Outcome.READY

        await eventually(is_ready, within_s=10, what="the rpc-server answers")
        yield port, process.pid
    reservation.release()


async def test_a_worker_is_measured_and_left_as_it_was(engine: EngineFacts) -> None:
    async with worker(engine) as (port, pid):
        before = resident_bytes(pid) or 0
        found = await measure_device("127.0.0.1", port, SPEC)
        link = await measure_link("127.0.0.1", port)

        async def is_released() -> bool:
            return (resident_bytes(pid) or 0) < before + BUFFERS

        await eventually(is_released, within_s=5, what="the measurement's memory is released")
        assert (await probe("127.0.0.1", port, deadline_s=2)).outcome is Outcome.READY
    assert found.weights_bytes >= 200 << 20
    assert found.elapsed_s < 15
    for name in SPEC.types:
        assert 2e8 < found.decode_bytes_per_s[name] < 1e12
        assert 5e8 < found.prefill_flop_per_s[name] < 1e14
    assert 0 < found.op_overhead_s < 1e-3
    assert 0 < found.hop_overhead_s < 0.1
    assert 0 < link.round_trip_p50_s <= link.round_trip_p90_s < 0.1
    assert min(link.up_bytes_per_s, link.down_bytes_per_s) > 2e7


async def test_weights_that_fit_the_caches_are_not_used_unless_memory_is_short(
    engine: EngineFacts,
) -> None:
    spec = replace(SPEC, types=("Q8_0",), memory_available_bytes=300 << 20)
    async with worker(engine) as (port, _):
        found = await measure_device("127.0.0.1", port, spec)
    assert found.weights_bytes < 100 << 20


async def test_a_worker_with_another_client_is_said_to_be_taken(engine: EngineFacts) -> None:
    async with worker(engine) as (port, _), connected("127.0.0.1", port, deadline_s=30):
        with pytest.raises(MeasurementFailed, match=r"another client|within"):
            await measure_device("127.0.0.1", port, replace(SPEC, deadline_s=0.5))


async def test_a_measurement_that_is_cut_short_leaves_the_worker_alive(engine: EngineFacts) -> None:
    async with worker(engine) as (port, _):
        task = asyncio.create_task(measure_device("127.0.0.1", port, SPEC))
        await asyncio.sleep(0.6)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        async def is_ready() -> bool:
            return (await probe("127.0.0.1", port, deadline_s=2)).outcome is Outcome.READY

        await eventually(is_ready, within_s=10, what="the worker is ready again")


async def test_a_worker_that_dies_or_freezes_meanwhile_is_an_error_in_time(
    engine: EngineFacts,
) -> None:
    for number, words in ((signal.SIGKILL, "connection lost"), (signal.SIGSTOP, "not measured")):
        async with worker(engine) as (port, pid):
            spec = replace(SPEC, deadline_s=2.5)
            task = asyncio.create_task(measure_device("127.0.0.1", port, spec))
            await asyncio.sleep(0.3)
            os.kill(pid, number)
            with pytest.raises(MeasurementFailed, match=words):
                await asyncio.wait_for(task, 10)


async def test_what_a_device_loses_under_steady_load_is_measured(engine: EngineFacts) -> None:
    """A phone slows itself down when it is hot; here somebody stops the process again and again."""
    braking: list[asyncio.Task[None]] = []

    async def brake(pid: int) -> None:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.009)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.001)

    async with worker(engine) as (port, pid):

        def progress(step: str, _part: float) -> None:
            if step == "steady load":
                braking.append(asyncio.create_task(brake(pid)))

        spec = replace(SPEC, types=("Q8_0",), sustained_s=0.5)
        try:
            found = await measure_device("127.0.0.1", port, spec, progress=progress)
        finally:
            for task in braking:
                task.cancel()
            await asyncio.gather(*braking, return_exceptions=True)
            os.kill(pid, signal.SIGCONT)
    assert len(braking) == 1
    assert 0 < found.sustained_factor < 0.8
