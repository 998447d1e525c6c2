"""The gateway before engines that fail in every way: who is answered, by whom, and what is said."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_world import (
    STREAM_END,
    STREAM_HEAD,
    Answering,
    Client,
    World,
    call,
    chunk,
    deployment,
    engine,
    plan,
    whole,
)

from supervisor.core.entities import Cause, Deployment, DeploymentSpec, LaunchId
from supervisor.core.lifecycle import State
from supervisor.errors import DeploymentUnknown

MESSAGES = [{"role": "user", "content": "Hi"}]
ANSWER = {"usage": {"prompt_tokens": 7, "completion_tokens": 3}, "choices": []}


def said(text: str, done: int) -> bytes:
    """A token of a chat, as llama-server streams it when it is asked for timings."""
    choice = {"finish_reason": None, "index": 0, "delta": {"content": text}}
    timings = {"cache_n": 0, "prompt_n": 5, "predicted_n": done}
    body = {"choices": [choice], "id": "chatcmpl-1", "object": "chat.completion.chunk"}
    return (
        b"data: "
        + json.dumps({**body, "timings": timings}, separators=(",", ":")).encode()
        + (b"\n\n")
    )


def ended(done: int) -> bytes:
    """The last events of a chat."""
    choice = {"finish_reason": "stop", "index": 0, "delta": {}}
    last: dict[str, Any] = {"choices": [choice], "id": "chatcmpl-1"}
    last["timings"] = {"cache_n": 0, "prompt_n": 5, "predicted_n": done}
    return b"data: " + json.dumps(last).encode() + b"\n\ndata: [DONE]\n\n"


def texts(body: bytes) -> str:
    """The content of a streamed chat."""
    events = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: {")]
    deltas = [choice["delta"] for event in events for choice in json.loads(event)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., World]:
    return lambda **given: World(tmp_path, **given)


async def answers_whole(body: bytes, writer: Any) -> None:
    writer.write(whole(ANSWER))
    await writer.drain()


def streams(*tokens: str, cut_after: int | None = None) -> Answering:
    """An engine that streams an answer and may die in the middle of it."""

    async def answering(body: bytes, writer: Any) -> None:
        writer.write(STREAM_HEAD)
        for number, token in enumerate(tokens[:cut_after], start=1):
            writer.write(chunk(said(token, number)))
            await writer.drain()
        if cut_after is None:
            writer.write(chunk(ended(len(tokens))) + STREAM_END)
        await writer.drain()

    return answering


async def test_an_answer_goes_through_as_it_is(world: World) -> None:
    async with engine(answers_whole) as server:
        world.put(deployment(port=server.port))
        asked = call({"input": "Hi"}, path="/v1/embeddings")
        client = await world.ask(asked)
    assert client.status == 200
    assert json.loads(client.body) == ANSWER
    assert server.requests == [asked.body]
    (record,) = world.records
    assert (record.status, record.prompt_tokens, record.generated_tokens) == (200, 7, 3)
    assert world.accounts.used == [("local", 7, 3)]


async def test_a_stream_goes_through_without_what_only_we_asked_for(world: World) -> None:
    async with engine(streams("a", "b", "c")) as server:
        world.put(deployment(port=server.port))
        client = await world.ask(call({"messages": MESSAGES, "stream": True}))
    assert texts(client.body) == "abc"
    assert client.body.count(b"timings") == 1  # of the last event, as always
    assert b"timings_per_token" in server.requests[0]
    (record,) = world.records
    assert record.generated_tokens == 3
    assert record.first_token_s is not None


async def test_an_error_of_the_engine_goes_through_as_it_is(world: World) -> None:
    error = {"error": {"code": 400, "message": "no", "type": "invalid_request_error"}}

    async def refuses(body: bytes, writer: Any) -> None:
        writer.write(whole(error, 400))

    async with engine(refuses) as server:
        world.put(deployment(port=server.port))
        client = await world.ask(call({"messages": MESSAGES, "stream": True}))
    assert (client.status, json.loads(client.body)) == (400, error)


async def test_a_request_waits_for_the_load_and_is_answered_then(world: World) -> None:
    async with engine(answers_whole) as server:
        world.put(deployment(state=State.STARTING))
        asking = asyncio.create_task(world.ask(call()))
        await asyncio.sleep(0.05)
        assert not server.requests
        world.put(deployment(port=server.port))
        client = await asking
    assert client.status == 200
    assert world.records[0].queue_s >= 0.05


async def test_beyond_its_time_it_hears_how_far_the_load_is(world: World) -> None:
    cause = Cause(code="worker_lost", sentence="phone was lost", remedy="wake it")
    world.put(deployment(state=State.STARTING, plan=plan(load_s=33), cause=cause))
    client = await world.ask(call(wait_s=0.05))
    assert client.code == "waited_too_long"
    assert client.is_complete
    assert "33 s left" in json.loads(client.body)["error"]["message"]
    assert world.records[0].code == "waited_too_long"


async def test_a_request_that_may_not_wait_is_answered_if_it_need_not(world: World) -> None:
    async with engine(answers_whole) as server:
        world.put(deployment(port=server.port))
        client = await world.ask(call(wait_s=0))
    assert client.status == 200


async def test_the_queue_has_an_end(make: Callable[..., World]) -> None:
    world = make(settings={"queue_limit": 2})
    world.put(deployment(state=State.STARTING))
    waiting = [asyncio.create_task(world.ask(call(wait_s=0.3))) for _ in range(2)]
    await asyncio.sleep(0)
    client = await world.ask(call())
    assert client.code == "queue_full"
    assert [(await each).code for each in waiting] == ["waited_too_long"] * 2


async def test_who_streams_hears_meanwhile_why_it_waits(make: Callable[..., World]) -> None:
    world = make(settings={"keep_alive_s": 0.05})
    async with engine(streams("a", "b")) as server:
        world.put(deployment(state=State.STARTING, phase="weights"))
        client = Client()
        asking = asyncio.create_task(
            world.ask(call({"messages": MESSAGES, "stream": True}), client)
        )
        await asyncio.sleep(0.3)
        assert client.status == 200
        assert client.headers["content-type"] == "text/event-stream"
        assert client.body.count(b": gem is starting (weights)") >= 2
        world.put(deployment(port=server.port))
        await asking
    assert texts(client.body) == "ab"


async def test_who_heard_already_that_events_come_gets_the_refusal_as_one(
    make: Callable[..., World],
) -> None:
    async def refuses(body: bytes, writer: Any) -> None:
        writer.write(whole({"error": {"code": 400, "message": "too long"}}, 400))

    world = make(settings={"keep_alive_s": 0.02})
    async with engine(refuses) as server:
        world.put(deployment(state=State.STARTING))
        client = Client()
        asking = asyncio.create_task(
            world.ask(call({"messages": MESSAGES, "stream": True}), client)
        )
        await asyncio.sleep(0.1)
        world.put(deployment(port=server.port))
        await asking
    assert b'data: {"error": {"code": 400, "message": "too long"}}\n\n' in client.body
    assert client.is_complete


async def test_an_answer_whose_engine_dies_begins_again_with_the_next(world: World) -> None:
    async def dies(body: bytes, writer: Any) -> None:
        writer.write(whole(ANSWER)[:-5])

    async with engine(dies) as first, engine(answers_whole) as second:
        world.put(deployment(port=first.port))
        asking = asyncio.create_task(world.ask(call()))
        while not first.requests:
            await asyncio.sleep(0.01)
        world.put(deployment(state=State.BACKOFF))
        await asyncio.sleep(0.05)
        world.put(deployment(port=second.port, launch_id=LaunchId(2)))
        client = await asking
    assert json.loads(client.body) == ANSWER
    assert world.records[0].retries == 1


async def test_a_stream_goes_on_where_it_stopped(world: World) -> None:
    cut = streams("a", "b", "c", cut_after=2)
    async with engine(cut) as first, engine(streams("c", "d")) as second:
        world.put(deployment(port=first.port))
        asked = call({"messages": MESSAGES, "stream": True, "max_tokens": 9})
        asking = asyncio.create_task(world.ask(asked))
        while not first.requests:
            await asyncio.sleep(0.01)
        world.put(deployment(state=State.BACKOFF))
        await asyncio.sleep(0.05)
        world.put(deployment(port=second.port, launch_id=LaunchId(2)))
        client = await asking
    assert texts(client.body) == "abcd"
    again = json.loads(second.requests[0])
    assert again["messages"][-1] == {"role": "assistant", "content": "ab"}
    assert again["max_tokens"] == 7
    assert client.body.count(b"[DONE]") == 1
    assert world.records[0].resumed == 1


async def test_a_stream_that_cannot_go_on_says_so(world: World) -> None:
    async with engine(streams("a", "b", cut_after=2)) as server:
        world.put(deployment(port=server.port))
        asked = {"messages": MESSAGES, "stream": True, "grammar": 'root ::= "a"+'}
        client = await world.ask(call(asked))
    assert texts(client.body.partition(b'data: {"error"')[0]) == "ab"
    assert b"answer_lost" in client.body
    assert client.is_complete
    assert world.records[0].code == "answer_lost"


async def test_a_request_that_ends_every_engine_is_given_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.service.lanes._GONE_FOR_S", 0.02)

    async def dies(body: bytes, writer: Any) -> None:
        pass

    async with engine(dies) as server:
        world.put(deployment(port=server.port))
        client = await world.ask(call())
    assert client.code == "engine_unreachable"
    assert len(server.requests) == 4


async def test_a_client_that_leaves_hangs_up_at_the_engine_too(world: World) -> None:
    async def thinks(body: bytes, writer: Any) -> None:
        await asyncio.sleep(60)

    async with engine(thinks) as server:
        world.put(deployment(port=server.port))
        asking = asyncio.create_task(world.ask(call()))
        while not server.requests:
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(2):
            while not server.hung_up:
                await asyncio.sleep(0.01)
    assert world.records[0].status == 499
    assert world.gateway.lanes.all()[0].active == 0


async def test_a_client_that_leaves_the_queue_leaves_no_trace(world: World) -> None:
    world.put(deployment(state=State.STARTING))
    asking = asyncio.create_task(world.ask(call()))
    await asyncio.sleep(0.02)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert world.gateway.lanes.all()[0].waiting == 0


async def test_a_client_that_reads_nothing_holds_no_slot(world: World) -> None:
    async with engine(streams(*"abcdefgh")) as server:
        world.put(deployment(port=server.port))
        slow = Client()
        slow.gate.clear()
        asked = call({"messages": MESSAGES, "stream": True})
        asking = asyncio.create_task(world.ask(asked, slow))
        client = await asyncio.wait_for(world.ask(asked), 5)
        assert texts(client.body) == "abcdefgh"
        assert not slow.body
        slow.gate.set()
        await asking
    assert texts(slow.body) == "abcdefgh"


async def test_a_stopped_deployment_says_so(world: World) -> None:
    world.put(deployment(state=State.STOPPED))
    client = await world.ask(call({"model": "gem", "messages": MESSAGES}))
    assert client.code == "deployment_not_ready"


async def test_who_waits_for_what_fails_hears_why(world: World) -> None:
    world.put(deployment(state=State.STARTING))
    asking = asyncio.create_task(world.ask(call()))
    await asyncio.sleep(0.02)
    world.put(deployment(state=State.FAILED, reason="the model is broken"))
    client = await asking
    assert client.code in ("deployment_not_ready", "deployment_unknown")
    assert "gem" in client.body.decode()


async def test_a_request_launches_what_may_be_launched_by_one(world: World) -> None:
    spec = DeploymentSpec(model="/m/gem-Q4.gguf", on_demand=True)
    async with engine(answers_whole) as server:
        world.put(deployment(state=State.STOPPED, spec=spec))
        asking = asyncio.create_task(world.ask(call({"model": "gem", "messages": MESSAGES})))
        await asyncio.sleep(0.05)
        assert world.started == ["gem"]
        world.put(deployment(port=server.port, spec=spec))
        assert (await asking).status == 200


async def test_a_request_launches_a_model_of_the_folders_if_that_is_allowed(
    make: Callable[..., World],
) -> None:
    files = ["/models/tiny-Q8.gguf"]
    asked = call({"model": "Tiny-Q8", "messages": MESSAGES}, wait_s=0.1)
    refused = await make(files=files).ask(asked)
    assert refused.code == "deployment_unknown"
    world = make(files=files, settings={"on_demand_models": True, "on_demand_ttl_s": 60})
    await asyncio.gather(*(world.ask(asked) for _ in range(3)))
    (spec,) = world.created
    assert (spec.model, spec.on_demand, spec.ttl_s) == (files[0], True, 60)


@pytest.mark.parametrize(
    ("kept", "ttl_s"), [({}, 60), ({"ttl_s": 5}, 5), ({"aliases": ["own"], "slots": 2}, 60)]
)
async def test_what_is_kept_for_a_model_wins_over_the_general_settings(
    make: Callable[..., World], kept: dict[str, Any], ttl_s: float
) -> None:
    world = make(
        files=["/models/gem-Q4.gguf"],
        settings={"on_demand_models": True, "on_demand_ttl_s": 60},
        kept=kept,
    )
    await world.on_demand.started("GEM-q4.gguf", ())
    (spec,) = world.created
    assert spec.ttl_s == ttl_s
    assert spec.aliases == (*kept.get("aliases", ()), "GEM-q4.gguf")
    assert spec.slots == kept.get("slots", 1)


async def test_what_nobody_used_for_its_time_is_stopped(world: World) -> None:
    spec = DeploymentSpec(model="/m/gem-Q4.gguf", on_demand=True, ttl_s=1.2)
    world.put(deployment(spec=spec, port=1))
    world.put(deployment("other", port=2))
    looking = asyncio.create_task(world.on_demand.run(world.gateway.lanes))
    try:
        async with asyncio.timeout(10):
            while not world.stopped:
                await asyncio.sleep(0.05)
    finally:
        looking.cancel()
    assert world.stopped == ["gem"]


async def test_what_cannot_be_stopped_keeps_nothing_else_from_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = DeploymentSpec(model="/m/gem-Q4.gguf", ttl_s=0.5)
    world.put(deployment("removed", spec=spec, port=1))
    world.put(deployment("gem", spec=spec, port=2))
    stop = world.stop

    async def stop_some(name: str) -> Deployment:
        if name == "removed":
            raise DeploymentUnknown("no deployment 'removed'")
        return await stop(name)

    monkeypatch.setattr(world, "stop", stop_some)
    looking = asyncio.create_task(world.on_demand.run(world.gateway.lanes))
    try:
        async with asyncio.timeout(10):
            while not world.stopped:
                await asyncio.sleep(0.05)
        assert not looking.done()
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def test_what_is_used_is_not_stopped(world: World) -> None:
    async def thinks(body: bytes, writer: Any) -> None:
        await asyncio.sleep(60)

    spec = DeploymentSpec(model="/m/gem-Q4.gguf", ttl_s=0.5)
    async with engine(thinks) as server:
        world.put(deployment(spec=spec, port=server.port))
        asking = asyncio.create_task(world.ask(call()))
        looking = asyncio.create_task(world.on_demand.run(world.gateway.lanes))
        await asyncio.sleep(3.5)
        asking.cancel()
        looking.cancel()
        await asyncio.gather(asking, looking, return_exceptions=True)
    assert world.stopped == []


async def test_the_less_busy_of_two_answers(world: World) -> None:
    release = asyncio.Event()

    async def holds(body: bytes, writer: Any) -> None:
        await release.wait()
        await answers_whole(body, writer)

    spec = DeploymentSpec(model="/m/x.gguf")
    async with engine(holds) as first, engine(holds) as second:
        world.put(deployment("a", spec=spec, port=first.port))
        world.put(deployment("b", spec=spec, port=second.port))
        asked = call({"model": "x", "messages": MESSAGES})
        asking = [asyncio.create_task(world.ask(asked)) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert len(first.requests) == len(second.requests) == 1
        assert sorted(lane.waiting for lane in world.gateway.lanes.all()) == [1, 1]
        release.set()
        assert [(await each).status for each in asking] == [200] * 4


async def test_a_supervisor_that_stops_sends_away_who_waits_and_takes_no_more(
    world: World,
) -> None:
    world.put(deployment(state=State.STARTING))
    asking = asyncio.create_task(world.ask(call()))
    await asyncio.sleep(0.02)
    world.gateway.begin_to_end()
    assert (await asking).code == "deployment_not_ready"
    assert "stopping" in (await world.ask(call())).body.decode()


def test_the_list_of_models_has_what_can_be_asked_for(world: World) -> None:
    world.put(deployment("gem"))
    world.put(deployment("gone", State.STOPPED))
    willing = DeploymentSpec(model="/m/willing.gguf", on_demand=True)
    world.put(deployment("willing", State.STOPPED, spec=willing))
    listed = world.gateway.models("")
    assert [each["id"] for each in listed["data"]] == ["gem", "willing"]
    assert (listed["first_id"], listed["last_id"]) == ("gem", "willing")
    assert world.gateway.models("Willing")["state"] == "stopped"
