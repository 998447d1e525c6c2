"""The address for agents: what it takes, how much of it, and from which protocol."""

import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from agents.contract import (
    AGENT_PROTOCOL,
    DeviceFacts,
    Heartbeat,
    HeartbeatReply,
    JoinReply,
    JoinRequest,
    RpcServerStatus,
    WorkerState,
    read,
)
from supervisor.api.join_api import MAX_BODY_BYTES, create_join_app
from supervisor.service.registry import Registry

REQUEST = JoinRequest("token", "id", "pixel")


@pytest.fixture
async def joined() -> AsyncIterator[tuple[httpx.AsyncClient, list[JoinRequest]]]:
    """A client of the join address, and what the registry heard."""
    heard: list[JoinRequest] = []

    def join(request: JoinRequest) -> JoinReply:
        heard.append(request)
        return JoinReply("certificate", "key", "authority")

    async def take(*_: object) -> None:
        pass

    known = SimpleNamespace(join=join, heard=take, recognises=lambda *_: True)
    registry = cast(Registry, known)
    app = create_join_app(registry, "authority", lambda _: None, 5.0, 300.0)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://join") as client:
        yield client, heard


Joined = tuple[httpx.AsyncClient, list[JoinRequest]]


async def test_a_device_of_our_protocol_is_heard(joined: Joined) -> None:
    client, heard = joined
    answer = await client.post("/join", json=asdict(REQUEST))
    assert answer.status_code == 200
    assert heard == [REQUEST]


async def test_a_heartbeat_is_answered_with_the_next_one_and_the_lease(joined: Joined) -> None:
    client, _ = joined
    message = Heartbeat(
        DeviceFacts("id", "pixel", "android"), RpcServerStatus(WorkerState.STOPPED), 8102
    )
    answer = await client.post("/heartbeat", json=asdict(message))
    assert read(HeartbeatReply, answer.json()) == HeartbeatReply(5.0, 300.0)


@pytest.mark.parametrize("protocol", [AGENT_PROTOCOL - 1, AGENT_PROTOCOL + 1])
async def test_another_protocol_is_refused_with_both_numbers(joined: Joined, protocol: int) -> None:
    client, heard = joined
    answer = await client.post("/join", json=asdict(REQUEST) | {"protocol": protocol})
    assert answer.status_code == 422
    body: dict[str, Any] = answer.json()
    assert f"protocol {protocol}" in body["detail"]
    assert f"supervisor {AGENT_PROTOCOL}" in body["detail"]
    assert heard == []


@pytest.mark.parametrize("text", ["", "[]", '{"token": 1}', '{"token": "t"}', "\x00"])
async def test_what_is_no_message_is_refused(joined: Joined, text: str) -> None:
    client, heard = joined
    answer = await client.post("/join", content=text)
    assert answer.status_code == 422
    assert answer.json()["code"] == "bad_request"
    assert heard == []


async def test_more_than_a_message_can_be_is_not_read_to_its_end(joined: Joined) -> None:
    client, _ = joined
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 16
            yield b" " * (1 << 16)

    answer = await client.post("/join", content=endless())
    assert answer.status_code == 422
    assert str(MAX_BODY_BYTES) in answer.json()["detail"]
    assert sent <= MAX_BODY_BYTES + (2 << 16)


async def test_an_unknown_file_is_a_problem_document(joined: Joined) -> None:
    client, _ = joined
    answer = await client.get("/files/passwd")
    assert answer.status_code == 404
    assert json.loads(answer.text)["detail"] == "no such file"
