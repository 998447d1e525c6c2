"""What the supervisor makes of an agent's answer to a measurement, line by line."""

import json
import ssl
from collections.abc import Callable
from dataclasses import asdict

import httpx
import pytest

from agents.contract import (
    MeasuredGgmlDevice,
    MeasurementProblem,
    MeasurementProgress,
    MeasurementResult,
    MeasurementSpec,
    MeasurementUpdate,
)
from agents.requests import problem
from supervisor.adapters.agent_client import AgentClient
from supervisor.errors import AgentRefused, AgentUnreachable

SPEC = MeasurementSpec(["Q8_0", "F16"], 2048, 8192, 45.0)
PROGRESS = MeasurementProgress("Q8_0", 0.5, "CPU")
RESULT = MeasurementResult(
    [MeasuredGgmlDevice("CPU", "7.0.0", 1e-4, 1e-6, 2e-3, 1, 4.5, {"F16": 1e10}, {"F16": 1e11})]
)
Handler = Callable[[httpx.Request], httpx.Response]


def lines(*updates: MeasurementUpdate) -> bytes:
    return b"".join(json.dumps(asdict(update)).encode() + b"\n" for update in updates)


async def measured(handler: Handler) -> list[MeasurementProgress | MeasurementResult]:
    client = AgentClient("id", "pixel", "10.0.0.2", 8102, ssl.create_default_context())
    await client._http.aclose()
    client._http = httpx.AsyncClient(
        base_url="https://10.0.0.2:8102", transport=httpx.MockTransport(handler)
    )
    try:
        return [update async for update in client.measure(SPEC)]
    finally:
        await client.close()


def answers(body: bytes, status: int = 200) -> Handler:
    return lambda _: httpx.Response(status, content=body)


async def test_updates_are_passed_on_up_to_the_result() -> None:
    asked: list[tuple[str, str, object]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append((request.method, request.url.path, json.loads(request.content)))
        return httpx.Response(200, content=lines(PROGRESS, PROGRESS, RESULT, PROGRESS))

    assert await measured(handler) == [PROGRESS, PROGRESS, RESULT]
    assert asked == [("POST", "/measurement", asdict(SPEC))]


async def test_a_problem_is_the_agents_own_error() -> None:
    body = lines(PROGRESS, MeasurementProblem("measurement_interrupted", "by launch 7"))
    with pytest.raises(AgentRefused, match="pixel: by launch 7") as caught:
        await measured(answers(body))
    assert caught.value.code == "measurement_interrupted"


async def test_a_refusal_keeps_its_code() -> None:
    refusal = problem(409, "measurement_refused", "the rpc-server of launch 7 is ready")
    with pytest.raises(AgentRefused, match="pixel: the rpc-server of launch 7 is ready") as caught:
        await measured(answers(bytes(refusal.body), 409))
    assert caught.value.code == "measurement_refused"


async def test_an_agent_that_is_too_old_is_told_from_one_that_refuses() -> None:
    with pytest.raises(AgentRefused, match="the agent of pixel is too old to measure; update it"):
        await measured(answers(b"Not Found", 404))


@pytest.mark.parametrize("body", [b"", lines(PROGRESS)])
async def test_an_answer_without_an_end_is_no_measurement(body: bytes) -> None:
    with pytest.raises(AgentUnreachable, match="ended its answer before the measurement was done"):
        await measured(answers(body))


@pytest.mark.parametrize("line", [b"hello", b'{"step": 5, "part": 0}', b"[]", b'{"devices": [1]}'])
async def test_a_line_that_cannot_be_read_is_an_error_of_the_agent(line: bytes) -> None:
    with pytest.raises(AgentRefused, match="pixel sent what we cannot read") as caught:
        await measured(answers(lines(PROGRESS) + line + b"\n"))
    assert caught.value.code == "bad_message"


async def test_a_connection_that_is_lost_is_told_with_the_address() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset")

    with pytest.raises(AgentUnreachable, match=r"pixel does not answer at 10\.0\.0\.2:8102"):
        await measured(handler)
