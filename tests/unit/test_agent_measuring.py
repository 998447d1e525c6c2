"""The agent's side of measuring: updates, the first reason to end, and what cannot be asked."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.types import Message

from agents.api import MeasurementResponse
from agents.contract import (
    EngineFacts,
    MeasurementProblem,
    MeasurementProgress,
    MeasurementSpec,
    MeasurementUpdate,
    WorkerState,
)
from agents.current_engine import CurrentEngine
from agents.errors import BadMessage, EngineMissing, EngineWithoutRpc
from agents.measuring import Measurement
from agents.process import Child
from agents.rpc_server import RpcServer

SPEC = MeasurementSpec(["Q8_0"], deadline_s=5.0)
NO_RPC = EngineFacts("/opt", "PATH", llama_server="/opt/llama-server", problem="built without RPC")


async def never(port: int) -> Child:
    await asyncio.Event().wait()
    raise AssertionError


def failing(error: Exception) -> Callable[[int], Awaitable[Child]]:
    async def spawn(port: int) -> Child:
        raise error

    return spawn


async def updates(measurement: Measurement, repeat_s: float = 60.0) -> list[MeasurementUpdate]:
    async with asyncio.timeout(5):
        return [update async for update in measurement.updates(repeat_s)]


async def test_a_program_that_cannot_be_started_is_the_last_word() -> None:
    ends: list[str] = []
    spawn = failing(EngineMissing("no such program"))
    made = Measurement(spawn, SPEC, ["CPU"], lambda: ends.append("end"))
    assert await updates(made) == [
        MeasurementProgress("start", 0.0),
        MeasurementProblem("engine_missing", "no such program"),
    ]
    assert made.is_over
    assert ends == ["end"]


async def test_a_bug_is_told_and_logged_and_ends_the_updates(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = Measurement(failing(ValueError("oops")), SPEC, ["CPU"], lambda: None)
    with caplog.at_level(logging.ERROR):
        last = (await updates(made))[-1]
    assert last == MeasurementProblem(
        "error", "internal error: ValueError('oops'); please report it"
    )
    assert [record.getMessage() for record in caplog.records] == ["measurement.bug"]


@pytest.mark.parametrize("begins", [False, True])
async def test_the_first_reason_to_end_is_told(begins: bool) -> None:
    made = Measurement(never, SPEC, ["CPU"], lambda: None)
    if begins:
        await asyncio.sleep(0)
    made.cancel("launch 7")
    made.cancel("the caller")
    await made.end("the end of the agent")
    assert made.is_over
    [_, last] = await updates(made)
    assert last == MeasurementProblem(
        "measurement_interrupted",
        "the measurement was interrupted by launch 7; measure again when the device is idle",
    )


async def test_what_is_over_stays_as_it_ended() -> None:
    made = Measurement(failing(EngineMissing("gone")), SPEC, ["CPU"], lambda: None)
    [_, before] = await updates(made)
    await made.end("launch 7")
    assert isinstance(before, MeasurementProblem)
    assert before.error_code == "engine_missing"
    assert made.resident_bytes() == 0


async def test_progress_is_repeated_while_nothing_changes() -> None:
    made = Measurement(never, SPEC, ["CPU"], lambda: None)
    seen = []
    async with asyncio.timeout(5):
        async for update in made.updates(repeat_s=0.01):
            seen.append(update)
            if len(seen) == 3:
                break
    assert seen == [MeasurementProgress("start", 0.0)] * 3
    await made.end("the test")


async def test_a_caller_who_left_before_the_first_line_ends_it() -> None:
    made = Measurement(never, SPEC, ["CPU"], lambda: None)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(5):
        await MeasurementResponse(made)({"type": "http"}, receive, send)
        await made.end("the test")
    last = (await updates(made))[-1]
    assert isinstance(last, MeasurementProblem)
    assert "interrupted by the caller, who hung up" in last.detail


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, types=[]),
        replace(SPEC, n_embd=0),
        replace(SPEC, n_ff=-1),
        replace(SPEC, n_embd=1 << 21),
        replace(SPEC, deadline_s=0.5),
        replace(SPEC, deadline_s=601.0),
        replace(SPEC, deadline_s=float("nan")),
    ],
)
async def test_what_cannot_be_measured_is_refused_before_anything_starts(
    spec: MeasurementSpec,
) -> None:
    with pytest.raises(BadMessage, match=r"cannot measure|deadline_s = .* is impossible"):
        Measurement(never, spec, ["CPU"], lambda: None)


@pytest.mark.parametrize(("engine", "error"), [(None, EngineMissing), (NO_RPC, EngineWithoutRpc)])
async def test_without_a_program_nothing_is_measured(
    tmp_path: Path, engine: EngineFacts | None, error: type[Exception]
) -> None:
    server = RpcServer(CurrentEngine(engine), tmp_path, {})
    with pytest.raises(error):
        await server.measure(SPEC, ["CPU"])
    assert not server.status().is_measuring
    assert server.status().state is WorkerState.STOPPED
