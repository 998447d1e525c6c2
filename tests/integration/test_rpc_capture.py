"""All that a real llama-server and real rpc-servers say to each other, read by our parsers."""

from collections import Counter
from pathlib import Path

import pytest
from lab.capture import CHUNK_BYTES, Reading, Recorded, captured, our_flags, read

from agents.contract import EngineFacts
from agents.rpc_commands import INIT_TENSOR, SET_TENSOR_HASH, Limits, TensorData, command_name
from agents.rpc_events import RequestBegin, RequestEvent, ResponseEvent, wire_bytes
from agents.rpc_protocol import Command
from supervisor.demo_model import write_demo_model

MIB = 1 << 20
QUESTIONS = {
    Command.HELLO,
    Command.DEVICE_COUNT,
    Command.GET_DEVICE_MEMORY,
    Command.GET_ALIGNMENT,
    Command.GET_MAX_SIZE,
    Command.GET_ALLOC_SIZE,
}
"""What the near end of a link can answer itself."""


def joined(events: list[RequestEvent] | list[ResponseEvent]) -> bytes:
    return b"".join(wire_bytes(event) for event in events)


def assert_read_completely(recorded: Recorded, engine: EngineFacts) -> Reading:
    """Every byte, whatever is streamed and however it is cut; the last reading is returned."""
    for limits, piece_bytes in (
        (Limits(stream_from_bytes=1), 4093),
        (Limits(stream_from_bytes=1 << 40), 65_536),
        (Limits(), CHUNK_BYTES),
    ):
        reading = read(recorded, limits, piece_bytes)
        made = reading.conversation
        assert made.passthrough is None
        assert str(made.responses.triple) == engine.rpc_protocol
        assert made.responses.outstanding == 0
        assert made.requests.is_between_messages
        assert made.responses.is_between_messages
        assert joined(reading.requests) == recorded.said(by_client=True)
        assert joined(reading.responses) == recorded.said(by_client=False)
    return reading


def described(readings: list[Reading]) -> str:
    """For people who run this with ``-s``."""
    lines = [
        "  " + ", ".join(f"{command_name(c)} {n}" for c, n in sorted(reading.commands.items()))
        for reading in readings
    ]
    return f"{len(readings)} connections\n" + "\n".join(lines)


@pytest.mark.parametrize("is_ours", [True, False], ids=["our flags", "default flags"])
async def test_a_real_session_with_two_workers_is_read_completely(
    engine: EngineFacts, demo_model: Path, tmp_path: Path, is_ours: bool
) -> None:
    flags = our_flags(engine) if is_ours else []
    for worker in await captured(engine, demo_model, tmp_path, workers=2, flags=flags):
        readings = [assert_read_completely(record, engine) for record in worker.connections]
        print(described(readings))
        working = [reading for reading in readings if set(reading.commands) - QUESTIONS]
        assert len(working) == 1, "only one connection of a launch needs the worker itself"
        commands = working[0].commands
        assert commands[Command.SET_TENSOR] > 4 * 9
        assert commands[Command.GRAPH_COMPUTE] >= 2
        assert commands[Command.GRAPH_RECOMPUTE] + commands[Command.GRAPH_COMPUTE] >= 2 * 12
        begun = {e.command for e in working[0].requests if isinstance(e, RequestBegin)}
        assert Command.SET_TENSOR in begun


async def test_a_session_with_large_and_odd_tensors_is_read_completely(
    engine: EngineFacts, tmp_path: Path
) -> None:
    """Weights over 10 MiB are asked for by hash; rows that are no multiple of 512 are padded."""
    model = tmp_path / "large.gguf"
    write_demo_model(model, layers=1, embedding=2048, feed_forward=8224, heads=16)
    [worker] = await captured(engine, model, tmp_path, workers=1, flags=our_flags(engine))
    readings = [assert_read_completely(record, engine) for record in worker.connections]
    print(described(readings))
    commands = sum((reading.commands for reading in readings), Counter[int]())
    assert commands[SET_TENSOR_HASH] == 3
    assert commands[INIT_TENSOR] >= 1
    assert commands[Command.GET_ALLOC_SIZE] >= 1
    written = [
        event.about
        for reading in readings
        for event in reading.requests
        if isinstance(event, RequestBegin) and isinstance(event.about, TensorData)
    ]
    cacheable = [data for data in written if data.is_cacheable]
    assert len(cacheable) == 3
    assert all(data.data_bytes > 10 * MIB for data in cacheable)
    assert {data.shape for data in cacheable} == {(2048, 8224, 1, 1), (8224, 2048, 1, 1)}
