"""Parsers of an RPC connection against hostile peers, and where they give up reading."""

import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rpc_talk import (
    ASKED,
    HUGE,
    SEVEN,
    SEVENTH,
    VERSIONS,
    Cut,
    T,
    every_version,
    exchange,
    framed,
    get_tensor,
    graph,
    greeted,
    hello_reply_of,
    joined,
    pattern,
    pieces_of,
    reply,
    single_bytes,
    whole,
)

from agents.errors import RpcFraming
from agents.rpc_commands import GENERATIONS, Limits
from agents.rpc_events import Raw, Request, Response
from agents.rpc_framing import Conversation, ResponseParser
from agents.rpc_protocol import Triple, hello_request, old_hello_request

# -- lengths ---------------------------------------------------------------------------------------


def off_lengths(triple: Triple, command: int) -> list[int]:
    body_bytes, _ = VERSIONS[triple][command]
    limit = {6: body_bytes + 5000, 10: 4004}.get(command, body_bytes)
    wrong = {0, 1, body_bytes - 1, limit + 1, limit + 8, 2**32, 2**63, HUGE - 7, HUGE}
    between = {13, 16, 19} if command == 10 else set()  # nodes and tensors are multiples of 8
    return sorted(between | {size for size in wrong if not body_bytes <= size <= limit} - {-1})


@every_version
def test_a_wrong_length_is_refused_at_the_header(triple: Triple) -> None:
    limits = Limits(stream_from_bytes=100, max_data_bytes=5000, max_graph_bytes=4004)
    for command in VERSIONS[triple]:
        for size in off_lengths(triple, command):
            made = greeted(triple, limits)
            header = struct.pack("<BQ", command, size)
            assert made.feed_requests(header[:8]) == []
            with pytest.raises(RpcFraming) as caught:
                made.feed_requests(header[8:])
            name = GENERATIONS[triple.major, triple.minor].rules[command].name
            assert (caught.value.command, caught.value.claimed_bytes) == (name, size)
            assert f"{name} claims {size} bytes" in str(caught.value)
            assert caught.value.allowed.startswith(str(VERSIONS[triple][command][0]))
            assert made.requests.kept_bytes == 0


@pytest.mark.parametrize("size", [4004 - 8, 4004, 12, 305 + 5000, 305])
def test_the_longest_and_the_shortest_are_allowed(size: int) -> None:
    limits = Limits(stream_from_bytes=10_000, max_data_bytes=5000, max_graph_bytes=4004)
    made = greeted(limits=limits)
    command = 6 if size in (305, 5305) else 10
    assert made.feed_requests(struct.pack("<BQ", command, size)) == []


def test_the_default_limits_are_64_gib_of_data() -> None:
    made = greeted()
    made.feed_requests(struct.pack("<BQ", 6, 305 + (64 << 30)))
    with pytest.raises(RpcFraming, match=r"305 to 68719477041"):
        greeted().feed_requests(struct.pack("<BQ", 6, 306 + (64 << 30)))
    with pytest.raises(ValueError, match="must be positive"):
        Limits(max_data_bytes=0)


@pytest.mark.parametrize("size", [257, HUGE])
def test_a_hello_of_absurd_length_is_refused(size: int) -> None:
    with pytest.raises(RpcFraming, match=f"HELLO claims {size} bytes") as caught:
        Conversation().feed_requests(struct.pack("<BQ", 14, size))
    assert caught.value.allowed == "0 or 24"


@pytest.mark.parametrize("size", [257, HUGE])
def test_an_answer_to_hello_of_absurd_length_is_refused(size: int) -> None:
    made = Conversation()
    made.feed_requests(hello_request())
    with pytest.raises(RpcFraming, match=f"answer to HELLO claims {size} bytes"):
        made.feed_responses(struct.pack("<Q", size))


@every_version
def test_an_answer_of_another_length_is_refused_at_its_prefix(triple: Triple) -> None:
    for command, (_, reply_bytes) in VERSIONS[triple].items():
        if reply_bytes is None:
            continue
        right = 100 if reply_bytes == ASKED else reply_bytes
        for size in {0, right - 1, right + 1, HUGE} - {right, -1}:
            made = greeted(triple)
            made.feed_requests(framed(command, exchange(triple, command).body))
            with pytest.raises(RpcFraming) as caught:
                made.feed_responses(struct.pack("<Q", size))
            assert (caught.value.claimed_bytes, caught.value.allowed) == (size, str(right))
            assert made.responses.kept_bytes == 0


@pytest.mark.parametrize("least", [1, 1 << 20], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        pytest.param(graph(3, 4)[:-8], "36 plus a multiple of 296", id="cut"),
        pytest.param(graph(3, 4) + bytes(8), "36 plus a multiple of 296", id="longer"),
        pytest.param(struct.pack("<III", 0, 1, 0), "20 plus a multiple of 296", id="no room"),
        pytest.param(struct.pack("<III", 0, 37, 0), "308 plus a multiple of 296", id="minus one"),
        pytest.param(struct.pack("<II", 0, 2**32 - 1) + bytes(4), "34359738372 plus", id="most"),
        pytest.param(
            struct.pack("<II3QI", 0, 3, 1, 2, 3, 5) + T * 4, "1516", id="one tensor too many"
        ),
        pytest.param(
            struct.pack("<II3QI", 0, 3, 1, 2, 3, 2**32 - 1) + T * 4, "1271310319356", id="all"
        ),
        pytest.param(struct.pack("<III", 0, 0, 1), "308", id="nothing but a count"),
    ],
)
@pytest.mark.parametrize("cut", [whole, single_bytes], ids=["at once", "byte by byte"])
def test_a_graph_that_contradicts_its_length_is_refused(
    least: int, body: bytes, allowed: str, cut: Cut
) -> None:
    made = greeted(limits=Limits(stream_from_bytes=least))
    with pytest.raises(RpcFraming, match="GRAPH_COMPUTE claims") as caught:
        for piece in cut(framed(10, body)):
            made.feed_requests(piece)
    assert caught.value.claimed_bytes == len(body)
    assert caught.value.allowed.startswith(allowed)


@pytest.mark.parametrize("size", [5001, HUGE])
def test_a_question_for_too_much_data_is_refused(size: int) -> None:
    made = greeted(limits=Limits(max_data_bytes=5000))
    made.feed_requests(framed(8, get_tensor(5000)))
    with pytest.raises(RpcFraming, match=f"answer to GET_TENSOR claims {size} bytes"):
        made.feed_requests(framed(8, get_tensor(size)))


def test_memory_is_bounded_whatever_is_claimed() -> None:
    made = greeted()
    chunk = bytes(1 << 18)
    tracemalloc.start()
    try:
        made.feed_requests(struct.pack("<BQ", 6, 305 + (60 << 30)) + T)
        made.feed_requests(bytes(9))
        for _ in range(200):
            made.feed_requests(chunk)
        other = greeted()
        size, count = 12 + 8 + 296 * 800_000, 800_000
        other.feed_requests(struct.pack("<BQIIQI", 10, size, 0, 1, 5, count))
        for _ in range(200):
            other.feed_requests(chunk)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000


def test_no_more_than_one_small_message_is_kept() -> None:
    limits = Limits(stream_from_bytes=5000)
    made = greeted(limits=limits)
    most = 0
    for command in VERSIONS[SEVEN]:
        for piece in single_bytes(framed(command, exchange(SEVEN, command, 4999).body)):
            made.feed_requests(piece)
            most = max(most, made.requests.kept_bytes)
    assert most == 305 + 4999 - 1
    answers = ResponseParser(limits)
    answers.expect(Request(8, b"", 4999))
    for piece in single_bytes(reply(bytes(4999))):
        answers.feed(piece)
        assert answers.kept_bytes < 4999


# -- turns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 6, 11, 15, 19, 0x16, ord("G"), 255])
def test_only_hello_may_come_first(first: int) -> None:
    with pytest.raises(RpcFraming, match="came first, where only HELLO may"):
        Conversation().feed_requests(bytes([first]))


def test_hello_comes_once() -> None:
    made = greeted()
    with pytest.raises(RpcFraming, match="HELLO came a second time"):
        made.feed_requests(b"\x0e")


def test_nothing_comes_before_the_answer_to_hello() -> None:
    made = Conversation()
    with pytest.raises(RpcFraming, match="DEVICE_COUNT came before HELLO was answered"):
        made.feed_requests(hello_request() + framed(15, b""))


@pytest.mark.parametrize("data", [b"\0", reply(b""), reply(bytes(28))])
def test_a_server_does_not_speak_unasked(data: bytes) -> None:
    with pytest.raises(RpcFraming, match="nobody asked"):
        Conversation().feed_responses(data)
    with pytest.raises(RpcFraming, match="nobody asked"):
        greeted().feed_responses(data)
    made = greeted()
    made.feed_requests(framed(15, b""))
    with pytest.raises(RpcFraming, match="nobody asked"):
        made.feed_responses(reply(bytes(4)) + data)


def test_answers_come_in_the_order_of_the_requests() -> None:
    made = greeted()
    made.feed_requests(framed(15, b"") + framed(8, get_tensor(9)) + framed(15, b""))
    assert made.responses.outstanding == 3
    events = made.feed_responses(reply(b"four") + reply(b"nine bytes"[:9]))
    assert events == [Response(15, b"four"), Response(8, b"nine byte")]
    with pytest.raises(RpcFraming, match="answer to DEVICE_COUNT claims 9 bytes"):
        made.feed_responses(reply(b"nine bytes"[:9]))


def test_requests_without_an_answer_in_sight_are_limited() -> None:
    made = greeted(limits=Limits(max_outstanding=3))
    made.feed_requests(framed(15, b"") * 3 + framed(4, bytes(8)))
    with pytest.raises(RpcFraming, match="DEVICE_COUNT came while 3 answers are outstanding"):
        made.feed_requests(framed(15, b""))


def test_a_broken_connection_stays_broken() -> None:
    made = greeted()
    with pytest.raises(RpcFraming):
        made.feed_requests(struct.pack("<BQ", 15, 1))
    with pytest.raises(RpcFraming, match="DEVICE_COUNT claims 1 bytes"):
        made.feed_requests(framed(15, b""))


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from([framed(c, exchange(SEVEN, c).body) for c in SEVENTH]),
            st.sampled_from([framed(c, exchange(SEVEN, c).body)[:-1] for c in SEVENTH]),
            st.builds(struct.Struct("<BQ").pack, st.integers(0, 20), st.integers(0, HUGE)),
        ),
        max_size=6,
    ),
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5),
    is_greeted=st.booleans(),
)
def test_any_bytes_are_passed_on_as_they_came_or_refused(
    parts: list[bytes], sizes: list[int], is_greeted: bool
) -> None:
    made = greeted(limits=Limits(stream_from_bytes=64)) if is_greeted else Conversation()
    sent, passed = b"".join(parts), b""
    try:
        for piece in pieces_of(sizes)(sent):
            passed += joined(made.feed_requests(piece))
    except RpcFraming as exc:
        assert exc.command
        assert sent.startswith(passed)
    else:
        waiting = len(sent) - len(passed)
        assert sent.startswith(passed)
        # A header whose body is not there yet is kept in two numbers.
        assert waiting in (made.requests.kept_bytes, made.requests.kept_bytes + 9)


# -- passthrough -----------------------------------------------------------------------------------


def assert_passes_everything(made: Conversation) -> None:
    for data in (b"x", struct.pack("<BQ", 6, HUGE), framed(14, b""), bytes(100_000)):
        assert made.feed_requests(data) == [Raw(memoryview(data))]
        assert made.feed_responses(data) == [Raw(memoryview(data))]
        assert made.requests.kept_bytes == made.responses.kept_bytes == 0
    assert made.feed_requests(b"") == []
    assert made.requests.is_between_messages


@pytest.mark.parametrize("triple", [Triple(8, 0, 0), Triple(7, 1, 0), Triple(4, 1, 2)], ids=str)
@pytest.mark.parametrize("cut", [whole, single_bytes], ids=["whole", "byte by byte"])
def test_an_unknown_version_is_passed_through(triple: Triple, cut: Cut) -> None:
    made = Conversation()
    made.feed_requests(hello_request())
    answer = hello_reply_of(triple)
    events = [event for piece in cut(answer) for event in made.feed_responses(piece)]
    assert events == [Response(14, answer[8:])]
    assert made.passthrough == f"unknown RPC {triple}"
    assert made.responses.outstanding == 0
    assert_passes_everything(made)


@pytest.mark.parametrize("triple", [Triple(1, 0, 0), Triple(2, 0, 0), Triple(3, 7, 0)], ids=str)
def test_an_old_version_that_we_have_no_rules_for_is_passed_through(triple: Triple) -> None:
    made = Conversation()
    made.feed_requests(old_hello_request())
    made.feed_responses(hello_reply_of(triple))
    assert made.passthrough == f"unknown RPC {triple}"
    assert_passes_everything(made)


def test_a_version_that_does_not_go_with_its_hello_is_passed_through() -> None:
    made = Conversation()
    made.feed_requests(old_hello_request())
    made.feed_responses(reply(bytes([7, 0, 0])))
    assert made.passthrough == "unknown RPC 7.0.0"


def test_what_follows_the_answer_in_the_same_piece_is_passed_through() -> None:
    made = Conversation()
    made.feed_requests(hello_request())
    answer = hello_reply_of(Triple(8, 0, 0))
    events = made.feed_responses(answer + b"ready")
    assert joined(events) == answer + b"ready"
    assert events[1:] == [Raw(memoryview(b"ready"))]


@pytest.mark.parametrize("size", [1, 23, 25, 40, 256])
@pytest.mark.parametrize("cut", [whole, single_bytes], ids=["whole", "byte by byte"])
def test_a_hello_of_another_form_is_passed_through(size: int, cut: Cut) -> None:
    made = Conversation()
    sent = framed(14, pattern(size))
    events = [event for piece in cut(sent) for event in made.feed_requests(piece)]
    assert all(isinstance(event, Raw) for event in events)
    assert joined(events) == sent
    assert made.passthrough == f"HELLO of {size} bytes"
    assert_passes_everything(made)


@pytest.mark.parametrize("size", [0, 3, 27, 29, 256])
def test_an_answer_to_hello_of_another_form_is_passed_through(size: int) -> None:
    made = Conversation()
    made.feed_requests(hello_request())
    answer = reply(pattern(size))
    assert joined(made.feed_responses(answer)) == answer
    assert made.passthrough == f"answer to HELLO of {size} bytes"
    assert made.responses.outstanding == 0
    assert_passes_everything(made)


@pytest.mark.parametrize("unknown", [17, 18, 19, 99, 255])
@pytest.mark.parametrize("cut", [whole, single_bytes], ids=["whole", "byte by byte"])
def test_an_unknown_command_is_passed_through_from_its_first_byte(unknown: int, cut: Cut) -> None:
    made = greeted(Triple(4, 0, 3))
    known = framed(15, b"") + framed(8, get_tensor(200))
    tail = bytes([unknown]) + b"whatever"
    events = [event for piece in cut(known + tail[:1]) for event in made.feed_requests(piece)]
    assert joined(events) == known + tail[:1]
    assert events[-1] == Raw(memoryview(tail[:1]))
    assert joined(made.feed_requests(tail[1:])) == tail[1:]
    # The answers to what was read before are matched all the same.
    assert made.responses.outstanding == 2
    answers = reply(bytes(4)) + reply(pattern(200))
    found = [event for piece in cut(answers) for event in made.feed_responses(piece)]
    assert [(e.command, len(e.body)) for e in found if isinstance(e, Response)] == [
        (15, 4),
        (8, 200),
    ]
    assert_passes_everything(made)


def test_answers_before_an_unknown_command_are_checked_all_the_same() -> None:
    made = greeted()
    made.feed_requests(framed(15, b"") + b"\x63")
    with pytest.raises(RpcFraming, match="answer to DEVICE_COUNT claims 5 bytes"):
        made.feed_responses(reply(bytes(5)))


@pytest.mark.parametrize(
    ("asks", "answers", "is_passed"),
    [(b"\1", b"\2", True), (b"\0", b"\2", False), (b"\1", b"\0", False)],
)
def test_only_what_both_ends_can_do_leads_to_another_transport(
    asks: bytes, answers: bytes, is_passed: bool
) -> None:
    made = Conversation()
    made.feed_requests(framed(14, bytes(23) + asks))
    made.feed_responses(hello_reply_of(SEVEN, answers + bytes(23)))
    assert (made.passthrough is not None) == is_passed
    if is_passed:
        assert_passes_everything(made)
