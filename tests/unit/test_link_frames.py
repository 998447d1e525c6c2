"""Frames of the link: what is packed is read, what nobody sends is refused, cuts do not matter."""

import asyncio
import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from link_world import Heard, Spoken, Wire, feed, framed, spoken, wired

from agents import link_frames as lf
from agents.chunks import CHUNK_BYTES, NAME_BYTES, ChunkName
from agents.contract import read
from agents.errors import BadMessage, LinkFraming
from agents.link_frames import (
    DATA_BYTES,
    HEADER_BYTES,
    MOST_FRAME_BYTES,
    OFFERED_CHUNKS,
    Hello,
    Kind,
    OfferedDevice,
    Refused,
    Welcome,
    read_frame,
)

JSON_BYTES = 64 << 10
# Typed in from the table in the module's docstring and comments, not taken from the code.
LONGEST = {
    Kind.HELLO: JSON_BYTES,
    Kind.WELCOME: JSON_BYTES,
    Kind.REFUSED: JSON_BYTES,
    Kind.BEAT: 24,
    Kind.OPEN: 5,
    Kind.SHUT: 4100,
    Kind.DATA: 256 << 10,
    Kind.ANSWER: 4 + (256 << 10),
    Kind.REF: 36,
    Kind.NEED: 4 * 1024,
    Kind.BODY: 4 + (1 << 20),
    Kind.DONE: 4,
    Kind.OFFER: 36 * 1024,
    Kind.HELD: 1024,
    Kind.SEED: 32 + (1 << 20),
    Kind.STORED: 33,
    Kind.BASE: 16,
    Kind.ECHO: 4 + (256 << 10),
    Kind.WANT: 32 * 64,
    Kind.CHUNK: 32 + (1 << 20),
    Kind.LACKS: 32,
}
NAME = ChunkName(bytes(range(NAME_BYTES)))
OTHER = ChunkName(bytes(range(1, NAME_BYTES + 1)))


def view(body: bytes) -> memoryview:
    return memoryview(body)


# -- one frame ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
def test_the_longest_body_is_taken_and_a_longer_one_refused_by_its_header(kind: Kind) -> None:
    longest = LONGEST[kind]
    whole = framed(kind, bytes(longest))
    frame = read_frame(view(whole + b"more"))
    assert frame is not None
    assert (frame.kind, len(frame.body)) == (kind, longest)
    assert read_frame(view(whole[:-1])) is None
    with pytest.raises(LinkFraming, match=f"{kind.name} claims {longest + 1} bytes"):
        read_frame(view(struct.pack("<BI", kind, longest + 1)))
    with pytest.raises(LinkFraming, match="claims"):
        read_frame(view(struct.pack("<BI", kind, 2**32 - 1)))


def test_every_kind_has_its_limit_and_the_longest_frame_is_known() -> None:
    assert set(LONGEST) == set(Kind)
    assert 5 + max(LONGEST.values()) == MOST_FRAME_BYTES


@pytest.mark.parametrize("kind", [0, 22, 127, 255])
def test_a_kind_that_nobody_sends_is_refused(kind: int) -> None:
    with pytest.raises(LinkFraming, match=f"kind {kind}"):
        read_frame(view(struct.pack("<BI", kind, 0)))


@pytest.mark.parametrize("count", range(HEADER_BYTES))
def test_too_few_bytes_for_a_header_are_no_frame_yet(count: int) -> None:
    assert read_frame(view(b"\xff" * count)) is None


@given(st.binary(max_size=200))
def test_garbage_is_a_frame_or_none_or_refused(data: bytes) -> None:
    try:
        frame = read_frame(view(data))
    except LinkFraming:
        return
    assert frame is None or len(frame.body) <= len(data) - HEADER_BYTES


# -- bodies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packed", "unpack", "expected"),
    [
        (lf.pack_beat(1, 2**63, 0), lf.read_beat, (1, 2**63, 0)),
        (lf.pack_open(2**32 - 1, greets=True), lf.read_open, (2**32 - 1, True)),
        (lf.pack_open(0, greets=False), lf.read_open, (0, False)),
        (lf.pack_shut(3, "it hung up: ä"), lf.read_shut, (3, "it hung up: ä")),
        (lf.pack_shut(3), lf.read_shut, (3, "")),
        (lf.pack_ref(NAME, CHUNK_BYTES), lf.read_ref, (NAME, CHUNK_BYTES)),
        (lf.pack_ref(NAME, 1), lf.read_ref, (NAME, 1)),
        (lf.pack_need((1, 2**32 - 1)), lf.read_need, [1, 2**32 - 1]),
        (lf.pack_need(()), lf.read_need, []),
        (lf.pack_offer([(NAME, 5), (OTHER, 6)]), lf.read_offer, [NAME, OTHER]),
        (lf.pack_stored(NAME, is_stored=True), lf.read_stored, (NAME, True)),
        (lf.pack_stored(NAME, is_stored=False), lf.read_stored, (NAME, False)),
        (lf.pack_base(2**64 - 1, 1 << 40), lf.read_base, (2**64 - 1, 1 << 40)),
    ],
)
def test_what_was_packed_is_read(
    packed: bytes, unpack: Callable[[memoryview], Any], expected: Any
) -> None:
    assert unpack(view(packed)) == expected


def test_numbers_and_seeds_are_read() -> None:
    assert lf.read_number(view(lf.pack_number(7)), Kind.DONE) == 7
    number, rest = lf.read_numbered(view(lf.pack_number(8) + b"data"), Kind.BODY)
    assert (number, bytes(rest)) == (8, b"data")
    name, data = lf.read_seed(view(NAME + b"x"))
    assert (name, bytes(data)) == (NAME, b"x")


@pytest.mark.parametrize(
    "message",
    [
        Hello(12, "main", 5.0, 64 << 20),
        Welcome("7.0.0", [OfferedDevice(1, 2, 32, 2**64 - 1)], stored_chunks=9, stores=False),
        Welcome(),
        Refused("link_refused", "in use by launch 12 of main host X"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_travels_as_json(message: Hello | Welcome | Refused) -> None:
    assert read(type(message), lf.read_json(view(lf.pack_json(asdict(message))))) == message


READERS: list[tuple[Callable[[memoryview], Any], Callable[[int], bool]]] = [
    (lf.read_beat, lambda size: size == 24),
    (lf.read_open, lambda size: size == 5),
    (lf.read_shut, lambda size: size >= 4),
    (lambda body: lf.read_number(body, Kind.DONE), lambda size: size == 4),
    (lambda body: lf.read_numbered(body, Kind.ANSWER), lambda size: size >= 4),
    (lf.read_ref, lambda size: size == 36),
    (lf.read_need, lambda size: size % 4 == 0),
    (lf.read_offer, lambda size: size % 36 == 0),
    (lf.read_seed, lambda size: size > 32),
    (lf.read_stored, lambda size: size == 33),
    (lf.read_base, lambda size: size == 16),
]


@pytest.mark.parametrize(("reader", "is_right"), READERS)
def test_every_wrong_length_is_refused(
    reader: Callable[[memoryview], Any], is_right: Callable[[int], bool]
) -> None:
    for size in range(80):
        body = view(b"\1" + bytes(max(size - 1, 0)) if size else b"")
        if is_right(size):
            reader(body)
        else:
            with pytest.raises(LinkFraming):
                reader(body)


@pytest.mark.parametrize("size_bytes", [0, CHUNK_BYTES + 1, 2**32 - 1])
def test_a_chunk_of_an_impossible_size_is_refused(size_bytes: int) -> None:
    with pytest.raises(LinkFraming, match=f"a chunk of {size_bytes} bytes"):
        lf.read_ref(view(lf.pack_ref(NAME, size_bytes)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"3",
        b'"text"',
        b"null",
        b"[" * JSON_BYTES,
        b'{"a":' * 10_000,
        b"9" * 5000,
        bytes(100),
    ],
    ids=lambda body: repr(body[:8]),
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(LinkFraming):
        lf.read_json(view(body))


@given(
    st.dictionaries(
        st.sampled_from(["launch", "main_host", "silence_s", "window_bytes", "protocol", "x"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.sampled_from(["", "ä", [1], {}]),
    )
)
def test_a_hello_of_wrong_values_is_refused_in_words(values: dict[str, Any]) -> None:
    try:
        hello = read(Hello, lf.read_json(view(json.dumps(values).encode())))
    except BadMessage as exc:
        assert "Hello" in str(exc)
        return
    assert isinstance(hello.launch, int)


def test_a_long_reason_is_cut_to_fit() -> None:
    for reason in ("x" * 10_000, "ä" * 10_000):
        packed = lf.pack_shut(1, reason)
        assert len(packed) <= LONGEST[Kind.SHUT]
        channel, text = lf.read_shut(view(packed))
        assert (channel, text[:10]) == (1, reason[:10])


# -- a stream of frames -------------------------------------------------------------------------


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    marks = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    yield from (data[a:b] for a, b in pairwise(marks) if b > a)


@st.composite
def some_frames(draw: st.DrawFn) -> list[Spoken]:
    """Of any kind but heartbeats, which the stream keeps; a few of them as long as may be."""
    found: list[Spoken] = []
    for kind in draw(
        st.lists(st.sampled_from([k for k in Kind if k is not Kind.BEAT]), max_size=9)
    ):
        is_long = draw(st.integers(0, 5)) == 0
        size = draw(st.integers(0, LONGEST[kind])) if is_long else draw(st.integers(0, 60))
        seed = draw(st.integers(0, 255))
        found.append((kind, bytes([seed]) * min(size, LONGEST[kind])))
    return found


@settings(max_examples=60, deadline=None)
@given(frames=some_frames(), cuts=st.lists(st.integers(0, 1 << 24), max_size=12))
def test_however_a_stream_is_cut_the_frames_are_the_same(
    frames: list[Spoken], cuts: list[int]
) -> None:
    async def run() -> Heard:
        heard = Heard()
        stream, _ = wired(heard)
        feed(stream, pieces(b"".join(spoken(*frame) for frame in frames), cuts))
        return heard

    heard = asyncio.run(run())
    assert heard.frames == frames
    assert not heard.ends


def test_single_bytes_give_the_same_frames() -> None:
    async def run() -> None:
        heard, sent = Heard(), [(kind, bytes([kind]) * 30) for kind in (Kind.DATA, Kind.HELD)]
        stream, _ = wired(heard)
        data = b"".join(spoken(*frame) for frame in sent)
        feed(stream, (data[i : i + 1] for i in range(len(data))))
        assert heard.frames == sent

    asyncio.run(run())


def random_bytes(rng: random.Random) -> bytes:
    """Anything from noise to frames that are nearly right."""
    parts = []
    for _ in range(rng.randint(1, 20)):
        match rng.randint(0, 3):
            case 0:
                parts.append(rng.randbytes(rng.randint(0, 300)))
            case 1:
                parts.append(struct.pack("<BI", rng.randint(0, 20), rng.choice([0, 1, 2**31])))
            case _:
                kind = rng.choice(list(Kind))
                size = rng.choice([0, 1, 4, 5, 24, 33, 36, LONGEST[kind]])
                parts.append(framed(kind, bytes(min(size, LONGEST[kind]))))
    return b"".join(parts)


@pytest.mark.parametrize("seed", range(40))
async def test_garbage_ends_a_stream_for_its_framing_and_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    heard, wire = Heard(), Wire()
    stream = heard.stream()
    stream.connection_made(wire)
    data = random_bytes(rng)
    for piece in pieces(data, [rng.randrange(1 << 20) for _ in range(8)]):
        if stream.is_over:
            break
        feed(stream, [piece])
        # All that it may keep is the beginning of one frame: the rest of its buffer is free.
        assert len(stream.get_buffer(-1)) >= 256 << 10
    assert all(isinstance(error, LinkFraming) for error in heard.ends)
    assert len(heard.ends) == stream.is_over == wire.is_aborted
    assert all("internal error" not in str(error) for error in heard.ends)


def test_limits_hold_for_what_we_send_ourselves() -> None:
    """What is packed at most must be what is allowed at most."""
    assert len(lf.pack_need(range(OFFERED_CHUNKS))) == LONGEST[Kind.NEED]
    assert len(lf.pack_offer([(NAME, 1)] * OFFERED_CHUNKS)) == LONGEST[Kind.OFFER]
    assert LONGEST[Kind.DATA] == DATA_BYTES
    assert len(lf.pack_stored(NAME, is_stored=True)) == LONGEST[Kind.STORED]
