"""Both parsers of an RPC connection: every command of every version, however it is cut."""

import struct
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rpc_talk import (
    ASKED,
    HASH,
    HUGE,
    VERSIONS,
    Cut,
    Exchange,
    T,
    every_version,
    exchange,
    framed,
    get_tensor,
    graph,
    greeted,
    hello_of,
    hello_reply_of,
    joined,
    pattern,
    pieces_of,
    reply,
    single_bytes,
    whole,
)

from agents.errors import RpcFraming
from agents.rpc_commands import (
    GENERATIONS,
    GraphSize,
    Limits,
    TensorData,
    device_count_answer,
    hash_answer,
    hello_answer,
    memory_answer,
    size_answer,
)
from agents.rpc_events import (
    End,
    Piece,
    Raw,
    Request,
    RequestBegin,
    RequestEvent,
    Response,
    ResponseBegin,
    ResponseEvent,
)
from agents.rpc_framing import RequestParser
from agents.rpc_protocol import Command, DeviceMemory, Triple, decode_hello_reply, hello_request


def plain(events: Iterable[RequestEvent | ResponseEvent]) -> list[tuple[Any, ...]]:
    """Events with the pieces of a message, however many, as one."""
    found: list[tuple[Any, ...]] = []
    data = bytearray()
    begun: RequestBegin | ResponseBegin | None = None
    for event in events:
        match event:
            case Request(command, body) | Response(command, body):
                assert begun is None
                found.append(("whole", command, body))
            case RequestBegin() | ResponseBegin():
                assert begun is None
                begun = event
                data = bytearray(event.head if isinstance(event, RequestBegin) else b"")
            case Piece(view):
                assert begun is not None
                assert len(view)
                data += view
            case End(command):
                assert begun is not None
                assert (begun.command, begun.body_bytes) == (command, len(data))
                found.append(("streamed", command, bytes(data)))
                begun = None
            case Raw():
                raise AssertionError("nothing may be passed through here")
    assert begun is None
    return found


def told(triple: Triple, exchanges: Sequence[Exchange], cut: Cut, limits: Limits) -> None:
    """Play a session, all requests before the first answer, and check every event of it."""
    made = greeted(triple, limits)
    sent = b"".join(framed(e.command, e.body) for e in exchanges)
    answered = b"".join(reply(e.reply) for e in exchanges if e.reply is not None)
    requests = [event for piece in cut(sent) for event in made.feed_requests(piece)]
    waiting = sum(e.reply is not None for e in exchanges)
    assert made.responses.outstanding == waiting
    responses = [event for piece in cut(answered) for event in made.feed_responses(piece)]
    assert joined(requests) == sent
    assert joined(responses) == answered
    least = limits.stream_from_bytes
    heads = {6: VERSIONS[triple][6][0] or 0, 10: 12}

    def kind(command: int, size: int) -> str:
        return "streamed" if command in heads and size - heads[command] >= least else "whole"

    assert plain(requests) == [(kind(e.command, len(e.body)), e.command, e.body) for e in exchanges]
    assert plain(responses) == [
        ("streamed" if e.command == 8 and len(e.reply) >= least else "whole", e.command, e.reply)
        for e in exchanges
        if e.reply is not None
    ]
    assert made.responses.outstanding == 0
    assert made.requests.is_between_messages
    assert made.responses.is_between_messages


# -- what is right ---------------------------------------------------------------------------------


def test_the_versions_of_these_tests_are_those_of_the_table() -> None:
    assert {(v.major, v.minor) for v in VERSIONS} == set(GENERATIONS)
    for triple, rules in VERSIONS.items():
        assert set(GENERATIONS[triple.major, triple.minor].rules) == set(rules)


@every_version
@pytest.mark.parametrize("cut", [whole, single_bytes], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("size", [0, 63, 64, 65, 2000])
def test_every_command_is_read(triple: Triple, cut: Cut, size: int) -> None:
    exchanges = [exchange(triple, command, size) for command in VERSIONS[triple]]
    told(triple, exchanges, cut, Limits(stream_from_bytes=64))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), triple=st.sampled_from(list(VERSIONS)))
def test_any_session_is_read_in_pieces_of_any_size(data: st.DataObject, triple: Triple) -> None:
    commands = st.tuples(st.sampled_from(list(VERSIONS[triple])), st.integers(0, 3000))
    exchanges = [exchange(triple, *one) for one in data.draw(st.lists(commands, max_size=12))]
    sizes = data.draw(st.lists(st.integers(1, 4000), min_size=1, max_size=20))
    least = data.draw(st.sampled_from([1, 8, 300, 1000, 1 << 20]))
    told(triple, exchanges, pieces_of(sizes), Limits(stream_from_bytes=least))


@every_version
def test_a_request_knows_how_long_its_answer_is(triple: Triple) -> None:
    made = greeted(triple)
    for command, (_, reply_bytes) in VERSIONS[triple].items():
        one = exchange(triple, command, 77)
        [event] = made.feed_requests(framed(command, one.body))
        assert isinstance(event, Request)
        assert event.reply_bytes == (77 if reply_bytes == ASKED else reply_bytes), command


@every_version
def test_tensor_data_is_described_before_it_comes(triple: Triple) -> None:
    one = exchange(triple, 6, 1000)
    made = greeted(triple, Limits(stream_from_bytes=1000))
    [begin, piece] = made.feed_requests(framed(6, one.body)[:-1])
    assert isinstance(begin, RequestBegin)
    assert isinstance(piece, Piece)
    assert begin.about == TensorData(
        type_id=8,
        shape=(64, 3, 2, 1),
        buffer=7,
        address=1 << 40,
        offset_bytes=11,
        data_bytes=1000,
        is_cacheable=triple.major >= 7,
    )
    assert (begin.body_bytes, begin.reply_bytes) == (len(one.body), None)
    assert not made.requests.is_between_messages
    assert made.feed_requests(one.body[-1:])[-1] == End(6)


def test_a_flag_of_zero_forbids_to_keep_the_data() -> None:
    body = T + b"\0" + struct.pack("<Q", 11) + b"data"
    generation = GENERATIONS[7, 0]
    assert not TensorData.read(body, len(body), generation).is_cacheable


def test_a_connection_may_end_between_messages_only() -> None:
    made = greeted()
    request, answer = framed(11, bytes(4)), reply(bytes(16))
    for end in range(len(request)):
        made.feed_requests(request[end : end + 1])
        assert made.requests.is_between_messages == (end == len(request) - 1)
    for end in range(len(answer)):
        made.feed_responses(answer[end : end + 1])
        assert made.responses.is_between_messages == (end == len(answer) - 1)


def test_a_graph_is_described_before_it_comes() -> None:
    body = graph(nodes=6, tensors=9)
    made = greeted(Triple(3, 0, 0), Limits(stream_from_bytes=100))
    [begin, *pieces] = made.feed_requests(framed(10, body))
    assert isinstance(begin, RequestBegin)
    assert begin.about == GraphSize(device=2, nodes=6, tensors=9)
    assert begin.reply_bytes == 1
    assert pieces[-1] == End(10)
    assert made.responses.outstanding == 1


def test_large_data_is_neither_copied_nor_kept() -> None:
    made = greeted()
    chunk = pattern(1 << 16)
    made.feed_requests(struct.pack("<BQ", 6, 305 + 4 * len(chunk)) + T + bytes(9))
    for _ in range(3):
        [piece] = made.feed_requests(chunk)
        assert isinstance(piece, Piece)
        assert piece.data.obj is chunk
        assert made.requests.kept_bytes == 0
    assert isinstance(made.feed_requests(memoryview(chunk))[-1], End)


def test_a_large_answer_is_neither_copied_nor_kept() -> None:
    made = greeted()
    chunk = pattern(1 << 16)
    made.feed_requests(framed(8, get_tensor(2 * len(chunk))))
    assert made.feed_responses(struct.pack("<Q", 2 * len(chunk))) == [
        ResponseBegin(8, 2 * len(chunk))
    ]
    [piece] = made.feed_responses(chunk)
    assert isinstance(piece, Piece)
    assert piece.data.obj is chunk
    assert (made.responses.outstanding, made.responses.kept_bytes) == (1, 0)
    assert made.feed_responses(chunk)[-1] == End(8)
    assert made.responses.outstanding == 0


def test_what_was_fed_is_let_go() -> None:
    made = greeted()
    reused = bytearray(framed(Command.DEVICE_COUNT, b"") * 3)
    assert len(made.feed_requests(memoryview(reused))) == 3
    reused.append(0)  # raises BufferError while a view of it lives


# -- one end alone ---------------------------------------------------------------------------------


def test_an_end_that_answers_hello_itself_tells_the_version() -> None:
    parser = RequestParser()
    assert parser.feed(hello_request()) == [Request(14, bytes(24), 28)]
    parser.learn(Triple(6, 0, 0))
    assert parser.feed(framed(15, b"")) == [Request(15, b"", 4)]
    assert parser.generation is GENERATIONS[6, 0]


def test_a_parser_can_begin_behind_the_hello() -> None:
    for triple in VERSIONS:
        parser = RequestParser()
        parser.learn(triple)
        assert parser.feed(framed(15, b"")) == [Request(15, b"", 4)]
        with pytest.raises(RpcFraming, match="a second time"):
            parser.feed(hello_of(triple))


def test_an_end_passes_a_version_through_that_it_was_told_and_does_not_know() -> None:
    parser = RequestParser()
    parser.feed(hello_request())
    parser.learn(Triple(9, 0, 0))
    assert parser.passthrough == "unknown RPC 9.0.0"
    assert parser.feed(b"\0") == [Raw(memoryview(b"\0"))]


ANSWERS = [
    (11, bytes(4), memory_answer(DeviceMemory(5, 2**40))),
    (1, bytes(4), size_answer(64)),
    (2, bytes(4), size_answer(HUGE)),
    (13, bytes(3260), size_answer(0)),
    (15, b"", device_count_answer(2)),
    (HASH, bytes(312), hash_answer(is_known=True)),
    (HASH, bytes(312), hash_answer(is_known=False)),
]


@pytest.mark.parametrize(("command", "body", "answer"), ANSWERS)
def test_our_own_answers_are_those_of_a_server(command: int, body: bytes, answer: bytes) -> None:
    made = greeted()
    made.feed_requests(framed(command, body))
    assert joined(made.feed_responses(answer)) == answer
    assert made.responses.outstanding == 0


def test_our_own_answers_are_the_documented_bytes() -> None:
    bodies = [answer[8:] for _, _, answer in ANSWERS]
    assert bodies == [
        struct.pack("<QQ", 5, 2**40),
        struct.pack("<Q", 64),
        bytes([255] * 8),
        bytes(8),
        struct.pack("<I", 2),
        b"\1",
        b"\0",
    ]


@every_version
def test_our_own_hello_is_that_of_a_server(triple: Triple) -> None:
    assert hello_answer(triple) == hello_reply_of(triple)
    assert decode_hello_reply(hello_answer(triple)[8:]) == triple
