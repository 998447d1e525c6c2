"""The wire codec, byte for byte, and the probe against peers of every kind."""

import asyncio
import socket
import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import Talk, hang_up, peer, reset, says, script

from agents.rpc_protocol import (
    MAX_DEVICES,
    Command,
    DeviceMemory,
    NotRpcServer,
    Outcome,
    Triple,
    decode_hello_reply,
    encode_request,
    hello_request,
    old_hello_request,
    probe,
)

LONG_HELLO = bytes.fromhex("0e 1800000000000000") + bytes(24)
SHORT_HELLO = bytes.fromhex("0e 0000000000000000")
DEVICE_COUNT = bytes.fromhex("0f 0000000000000000")
DEADLINE_S = 2.0
SHORT_S = 0.05


def memory_request(index: int) -> bytes:
    return bytes.fromhex("0b 0400000000000000") + struct.pack("<I", index)


def reply(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + body


def hello_reply(*triple: int) -> bytes:
    return reply(bytes(triple) + bytes(25))


def count_reply(count: int) -> bytes:
    return reply(struct.pack("<I", count))


def memory_reply(free: int, total: int) -> bytes:
    return reply(struct.pack("<QQ", free, total))


MODERN = [hello_reply(7, 0, 0), count_reply(2), memory_reply(5, 10), memory_reply(2**40, 2**41)]
TWO_DEVICES = (DeviceMemory(5, 10), DeviceMemory(2**40, 2**41))

# -- codec -------------------------------------------------------------------------------------


def test_requests_are_the_documented_bytes() -> None:
    assert hello_request() == LONG_HELLO
    assert len(hello_request()) == 33
    assert old_hello_request() == SHORT_HELLO
    assert encode_request(Command.DEVICE_COUNT) == DEVICE_COUNT
    assert encode_request(Command.GET_DEVICE_MEMORY, struct.pack("<I", 3)) == memory_request(3)


@pytest.mark.parametrize(
    ("body", "triple"),
    [(bytes([7, 0, 1, 0]) + bytes(24), Triple(7, 0, 1)), (bytes([3, 6, 0]), Triple(3, 6, 0))],
)
def test_hello_replies_are_read(body: bytes, triple: Triple) -> None:
    assert decode_hello_reply(body) == triple


@pytest.mark.parametrize("size", [0, 1, 2, 4, 24, 27, 29, 1000])
def test_a_hello_reply_of_another_size_is_none(size: int) -> None:
    with pytest.raises(NotRpcServer, match=f"HELLO answer of {size} bytes"):
        decode_hello_reply(bytes(size))


def test_a_triple_reads_what_it_writes() -> None:
    assert Triple.parse(str(Triple(7, 0, 12))) == Triple(7, 0, 12)
    for text in ("", "7", "7.0", "7.0.0.0", "7.0.x"):
        with pytest.raises(ValueError):
            Triple.parse(text)


# -- probe: servers ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [0, 1], ids=["whole", "byte by byte"])
async def test_a_modern_server_is_asked_everything_once_and_left_in_order(chunk: int) -> None:
    async with peer(script(*MODERN, chunk=chunk)) as server:
        result = await probe("127.0.0.1", server.port, deadline_s=DEADLINE_S)
    assert (result.outcome, result.triple) == (Outcome.READY, Triple(7, 0, 0))
    assert result.devices == TWO_DEVICES
    assert 0 < result.round_trip_s < DEADLINE_S
    asked = LONG_HELLO + DEVICE_COUNT + memory_request(0) + memory_request(1)
    assert (server.received, server.ends) == ([asked], ["eof"])


@pytest.mark.parametrize("refusal", [hang_up, reset], ids=["close", "reset"])
async def test_a_3_6_server_is_asked_again_in_the_short_form(refusal: Talk) -> None:
    old = script(reply(bytes([3, 6, 0])), count_reply(1), memory_reply(5, 10), hello_bytes=9)
    async with peer(refusal, old) as server:
        result = await probe("127.0.0.1", server.port, deadline_s=DEADLINE_S)
    assert (result.outcome, result.triple) == (Outcome.READY, Triple(3, 6, 0))
    assert result.devices == (DeviceMemory(5, 10),)
    assert server.received == [LONG_HELLO, SHORT_HELLO + DEVICE_COUNT + memory_request(0)]
    assert server.ends[1] == "eof"


async def test_a_2_0_server_is_not_asked_for_a_count_nor_with_an_index() -> None:
    old = script(reply(bytes([2, 0, 0])), memory_reply(5, 10), hello_bytes=9)
    async with peer(hang_up, old) as server:
        result = await probe("127.0.0.1", server.port, deadline_s=DEADLINE_S)
    assert (result.outcome, result.triple) == (Outcome.READY, Triple(2, 0, 0))
    assert result.devices == (DeviceMemory(5, 10),)
    assert server.received[1] == SHORT_HELLO + bytes.fromhex("0b 0000000000000000")
    assert server.ends[1] == "eof"


@pytest.mark.parametrize("count", [0, 1, MAX_DEVICES])
async def test_every_device_is_asked_for_its_memory(count: int) -> None:
    replies = [hello_reply(7, 0, 0), count_reply(count), *[memory_reply(1, 2)] * count]
    async with peer(script(*replies)) as server:
        result = await probe("127.0.0.1", server.port, deadline_s=DEADLINE_S)
    assert (result.outcome, len(result.devices)) == (Outcome.READY, count)
    assert server.ends == ["eof"]


@pytest.mark.parametrize(
    ("expected", "outcome"),
    [
        (Triple(7, 0, 0), Outcome.READY),
        (Triple(7, 0, 1), Outcome.INCOMPATIBLE),  # the patch number guards the operations
        (Triple(7, 1, 0), Outcome.INCOMPATIBLE),
        (Triple(6, 0, 0), Outcome.INCOMPATIBLE),
    ],
)
async def test_another_version_is_incompatible_and_still_left_in_order(
    expected: Triple, outcome: Outcome
) -> None:
    async with peer(script(*MODERN)) as server:
        result = await probe("127.0.0.1", server.port, deadline_s=DEADLINE_S, expected=expected)
    assert (result.outcome, result.triple) == (outcome, Triple(7, 0, 0))
    assert server.ends == ["eof"]
    if outcome is Outcome.INCOMPATIBLE:
        assert result.detail == f"it speaks RPC 7.0.0, wanted {expected}"


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_server_that_does_not_close_in_order_has_answered_all_the_same(end: str) -> None:
    async def answers_and_goes(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: bytearray
    ) -> None:
        await script(*MODERN)(reader, writer, got)
        if end == "close":
            writer.close()
        else:
            await reader.read()
            await reset(reader, writer, got)

    async with peer(answers_and_goes) as server:
        result = await probe("127.0.0.1", server.port, deadline_s=DEADLINE_S)
    assert (result.outcome, result.devices) == (Outcome.READY, TWO_DEVICES)
    assert len(server.received) == 1


# -- probe: everything else ----------------------------------------------------------------------


async def test_a_peer_that_accepts_and_says_nothing_is_busy() -> None:
    # Nobody calls accept: the kernel makes the connection, as for a server with another client.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started_s = time.monotonic()
        result = await probe("127.0.0.1", listener.getsockname()[1], deadline_s=0.1)
    assert result.outcome is Outcome.BUSY
    assert 0.09 <= time.monotonic() - started_s < 1.0


async def test_a_server_that_stops_in_the_middle_is_busy() -> None:
    async with peer(says(hello_reply(7, 0, 0)[:20])) as server:
        result = await probe("127.0.0.1", server.port, deadline_s=SHORT_S)
    assert (result.outcome, server.ends) == (Outcome.BUSY, ["eof"])


async def test_a_closed_port_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert (await probe("127.0.0.1", port, deadline_s=DEADLINE_S)).outcome is Outcome.REFUSED


async def test_an_address_without_a_way_is_unreachable() -> None:
    result = await probe("255.255.255.255", 9, deadline_s=DEADLINE_S)
    assert result.outcome is Outcome.UNREACHABLE
    assert result.detail


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), id="HTTP"),
        pytest.param(says(b"SSH-2.0-OpenSSH_9.6\r\n", at_once=True), id="SSH"),
        pytest.param(hang_up, id="closes"),
        pytest.param(reset, id="resets"),
        pytest.param(says(struct.pack("<Q", 27) + bytes(27)), id="27 bytes"),
        pytest.param(says(struct.pack("<Q", 29) + bytes(29)), id="29 bytes"),
        pytest.param(says(reply(bytes([3, 6, 0]))), id="short reply to the long form"),
        pytest.param(says(struct.pack("<Q", 0)), id="no bytes"),
        pytest.param(says(struct.pack("<Q", 2**63)), id="absurd length"),
        pytest.param(script(hello_reply(7, 0, 0), reply(bytes(8))), id="count of 8 bytes"),
        pytest.param(script(hello_reply(7, 0, 0), count_reply(65)), id="65 devices"),
        pytest.param(script(hello_reply(7, 0, 0), count_reply(2**32 - 1)), id="2^32-1 devices"),
        pytest.param(script(*MODERN[:2], reply(bytes(8))), id="memory of 8 bytes"),
    ],
)
async def test_what_is_no_rpc_server_is_told_apart_at_once(talk: Talk) -> None:
    async with peer(talk) as server:
        result = await probe("127.0.0.1", server.port, deadline_s=DEADLINE_S)
    assert result.outcome is Outcome.NOT_RPC_SERVER, result
    assert result.detail
    assert result.devices == ()
    assert len(server.received) <= 2


REPLIES = [reply(bytes([3, 6, 0])), reply(bytes([2, 0, 0])), *MODERN]


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(REPLIES)), max_size=6),
    goes=st.sampled_from(["closes", "closes", "closes", "stays"]),
)
def test_any_bytes_lead_to_an_outcome_in_time(parts: list[bytes], goes: str) -> None:
    async def talk(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, got: bytearray
    ) -> None:
        writer.write(b"".join(parts))
        await writer.drain()
        if goes == "closes":
            writer.close()

    async def run() -> Outcome:
        async with peer(talk) as server:
            return (await probe("127.0.0.1", server.port, deadline_s=SHORT_S)).outcome

    started_s = time.monotonic()
    assert asyncio.run(run()) in Outcome
    assert time.monotonic() - started_s < SHORT_S + 1.0
