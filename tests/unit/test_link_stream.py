"""One end of a link: silence, round trips, backpressure, and how it ends."""

import asyncio
import contextlib
import random
import ssl
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from lab.links import emulated_link
from link_world import Heard, Wire, feed, frames_in, plain_peer, spoken, until, wired

from agents import tls
from agents.errors import LinkFraming, LinkLost, LinkRefused
from agents.far_end import server_context
from agents.link_frames import DATA_BYTES, Kind, pack_beat, read_beat
from agents.link_stream import BEATS_PER_SILENCE, LinkStream
from supervisor.adapters.authority import Authority

SILENCE_S = 0.25
PAUSE_S = SILENCE_S / BEATS_PER_SILENCE
SLACK_S = 0.4
"""For a busy machine."""

Ends = tuple[LinkStream, Heard]


@contextlib.asynccontextmanager
async def linked(
    server: ssl.SSLContext | None = None, client: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Ends, Ends]]:
    """Two streams over loopback."""
    loop, near, far = asyncio.get_running_loop(), Heard(), Heard()
    made: list[LinkStream] = []

    def accept() -> LinkStream:
        made.append(far.stream())
        return made[-1]

    listening = await loop.create_server(accept, "127.0.0.1", 0, ssl=server)
    port = listening.sockets[0].getsockname()[1]
    name = tls.agent_name("one") if client else None
    _, stream = await loop.create_connection(
        near.stream, "127.0.0.1", port, ssl=client, server_hostname=name
    )
    await until(lambda: far.is_made)  # TLS 1.3: the caller is ready before the one who checks it
    try:
        yield (stream, near), (made[0], far)
    finally:
        stream.end(LinkLost("over"))
        made[0].end(LinkLost("over"))
        listening.close()
        await asyncio.sleep(0)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a far end, and of a near end."""
    folder = tmp_path_factory.mktemp("authority")
    authority = Authority(folder)
    issued = authority.issue(tls.agent_name("one"))
    certificate, key = Path(folder / "one.crt"), Path(folder / "one.key")
    certificate.write_text(issued.certificate_pem)
    key.write_text(issued.key_pem)
    far = server_context(certificate, key, authority.certificate_path)
    near = tls.client_context(
        authority.certificate_pem, authority.supervisor_certificate, authority.supervisor_key
    )
    return far, near


# -- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "tls"])
async def test_frames_of_all_sizes_arrive_in_order_in_both_directions(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext], is_secure: bool
) -> None:
    rng = random.Random(1)
    sent = [
        (Kind.BODY, rng.randbytes(rng.choice([0, 1, 500, 16_383, 16_384, 70_000, 1 << 20])))
        for _ in range(30)
    ]
    async with linked(*(contexts if is_secure else (None, None))) as (near, far):
        near[0].start_beating(5)
        far[0].start_beating(5)
        for kind, body in sent:
            near[0].send(kind, memoryview(body))
            far[0].send(kind, bytearray(body)[4:], head=body[:4])
        await until(lambda: len(far[1].frames) == len(near[1].frames) == 30, 20)
        assert far[1].frames == sent
        assert near[1].frames == sent
        assert near[0].sent_bytes >= sum(len(body) + 5 for _, body in sent)
        assert not near[1].ends


async def test_what_was_sent_may_be_overwritten_at_once() -> None:
    """asyncio keeps views of what it cannot send yet (since Python 3.12)."""
    async with linked() as (near, far):
        far[0].pause_reading()
        buffer, count = bytearray(DATA_BYTES), 40
        for number in range(count):
            buffer[:] = bytes([number]) * DATA_BYTES
            near[0].send(Kind.DATA, memoryview(buffer))
        buffer[:] = b"\xff" * DATA_BYTES
        assert near[0].is_full
        far[0].resume_reading()
        await until(lambda: len(far[1].frames) == count)
        assert [body[0] for _, body in far[1].frames] == list(range(count))
        assert all(body == body[:1] * DATA_BYTES for _, body in far[1].frames)


async def test_a_full_link_says_so_and_when_there_is_room_again() -> None:
    async with linked() as (near, far):
        far[0].pause_reading()
        sent = 0
        while not near[0].is_full:
            near[0].send(Kind.DATA, bytes(DATA_BYTES))
            sent += 1
            await asyncio.sleep(0)
        assert near[1].rooms == 0
        far[0].resume_reading()
        await until(lambda: near[1].rooms and not near[0].is_full)
        await until(lambda: len(far[1].frames) == sent)


async def test_a_stream_without_a_connection_holds_no_buffer() -> None:
    """A far end makes one for every caller, before it knows who that is."""
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    before_bytes, _ = tracemalloc.get_traced_memory()
    made = [Heard().stream() for _ in range(20)]
    held_bytes, _ = tracemalloc.get_traced_memory()
    if not was_tracing:
        tracemalloc.stop()
    assert (held_bytes - before_bytes) / len(made) < 10_000


# -- silence ------------------------------------------------------------------------------------


async def test_silence_ends_a_link_after_the_limit_and_not_before() -> None:
    async with plain_peer() as (stream, heard, _):
        started_s = time.monotonic()
        stream.start_beating(SILENCE_S)
        await asyncio.wait_for(heard.ended.wait(), 5)
        took_s = time.monotonic() - started_s
    assert SILENCE_S - 0.01 <= took_s < SILENCE_S + PAUSE_S + SLACK_S
    (error,) = heard.ends
    assert isinstance(error, LinkLost)
    assert str(error).startswith("silent for 0.")


async def test_two_ends_that_have_nothing_to_say_keep_the_link() -> None:
    async with linked() as (near, far):
        near[0].start_beating(SILENCE_S)
        far[0].start_beating(SILENCE_S)
        await asyncio.sleep(4 * SILENCE_S)
        assert not near[1].ends
        assert not far[1].ends
        assert near[0].silent_s < SILENCE_S


async def test_whatever_is_heard_is_a_sign_of_life_half_a_frame_too() -> None:
    loop = asyncio.get_running_loop()
    async with plain_peer() as (stream, heard, other):
        stream.start_beating(SILENCE_S)
        for byte in spoken(Kind.HELD, b"slow")[:8]:
            await loop.sock_sendall(other, bytes([byte]))
            await asyncio.sleep(SILENCE_S / 3)
        assert not heard.ends


async def test_a_reader_that_pauses_is_not_a_peer_that_is_silent() -> None:
    async with linked() as (near, far):
        near[0].start_beating(SILENCE_S)
        far[0].start_beating(SILENCE_S)
        near[0].pause_reading()
        far[0].send(Kind.DATA, b"unread")
        await asyncio.sleep(3 * SILENCE_S)
        assert not near[1].ends, "it is we who do not listen"
        assert not far[1].ends, "who pauses goes on beating"
        assert not near[1].frames
        near[0].resume_reading()
        await until(lambda: near[1].frames)


async def test_silence_counts_again_when_a_pause_is_over() -> None:
    async with plain_peer() as (stream, heard, _):
        stream.start_beating(SILENCE_S)
        stream.pause_reading()
        await asyncio.sleep(2 * SILENCE_S)
        resumed_s = time.monotonic()
        stream.resume_reading()
        await asyncio.wait_for(heard.ended.wait(), 5)
        assert SILENCE_S - 0.01 <= time.monotonic() - resumed_s < SILENCE_S + PAUSE_S + SLACK_S


@pytest.mark.parametrize("stopped_s", [0.3, 0.9])
async def test_while_we_do_not_run_ourselves_nobody_is_silent(stopped_s: float) -> None:
    """As after SIGSTOP, or a second in which the machine swapped: what came is still unread."""
    heard = Heard()
    stream, wire = wired(heard)
    stream.start_beating(SILENCE_S)
    feed(stream, [spoken(Kind.BEAT, pack_beat(1, 0, 0))])
    time.sleep(stopped_s)
    await asyncio.sleep(0.01)  # the timers run before anything is read
    assert not heard.ends
    started_s = time.monotonic()
    await asyncio.wait_for(heard.ended.wait(), 5)
    assert SILENCE_S / 2 <= time.monotonic() - started_s < SILENCE_S + PAUSE_S + SLACK_S
    assert wire.is_aborted


async def test_a_far_peer_may_be_silent_for_three_round_trips() -> None:
    heard = Heard()
    stream, _ = wired(heard)
    assert stream.limit_s == 0
    stream.start_beating(SILENCE_S)
    assert stream.limit_s == SILENCE_S
    sent_ns = time.monotonic_ns() - 300_000_000
    feed(stream, [spoken(Kind.BEAT, pack_beat(1, sent_ns, 0))])
    assert 0.9 <= stream.limit_s < 1.2
    await asyncio.sleep(0.8)
    assert not heard.ends
    await asyncio.wait_for(heard.ended.wait(), 2)


# -- round trips --------------------------------------------------------------------------------


async def test_the_round_trip_is_that_of_the_wire() -> None:
    loop, near, far = asyncio.get_running_loop(), Heard(), Heard()
    made: list[LinkStream] = []

    def accept() -> LinkStream:
        made.append(far.stream())
        return made[-1]

    listening = await loop.create_server(accept, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with emulated_link(port, one_way_delay_s=0.03) as link:
        _, stream = await loop.create_connection(near.stream, "127.0.0.1", link.port)
        await until(lambda: made)
        stream.start_beating(0.5)
        made[0].start_beating(2.5)  # the other end's own timer plays no part
        await until(lambda: stream.round_trip_s and made[0].round_trip_s)
        for end in (stream, made[0]):
            assert end.round_trip_s is not None
            assert 0.06 <= end.round_trip_s < 0.06 + 0.1
        stream.end(LinkLost("over"))
        made[0].end(LinkLost("over"))
    listening.close()


async def test_a_beat_carries_back_the_time_of_the_last_one() -> None:
    heard = Heard()
    stream, wire = wired(heard)
    stream.start_beating(5.0)
    ((_, first),) = frames_in(bytes(wire.written))
    own_ns, peer_ns, held_ns = read_beat(memoryview(first))
    assert (peer_ns, held_ns) == (0, 0), "nothing was heard yet"
    feed(stream, [spoken(Kind.BEAT, pack_beat(77, own_ns, 1_000))])
    assert stream.round_trip_s is not None
    assert 0 <= stream.round_trip_s < 0.5
    stream.end(LinkLost("over"))


async def test_a_beat_that_queued_behind_weights_makes_nobody_wait_longer() -> None:
    """What waits in our own buffers is no part of the link's round trip."""
    stream, _ = wired(Heard())
    stream.start_beating(SILENCE_S)
    for taken_s in (2.0, 0.01, 5.0):
        sent_ns = time.monotonic_ns() - int(taken_s * 1e9)
        feed(stream, [spoken(Kind.BEAT, pack_beat(1, sent_ns, 0))])
        assert stream.round_trip_s is not None
        assert taken_s <= stream.round_trip_s < taken_s + 1
    assert stream.limit_s == SILENCE_S
    stream.end(LinkLost("over"))


# -- the end ------------------------------------------------------------------------------------


async def test_who_is_hung_up_on_hears_it_at_once_and_once() -> None:
    async with linked() as (near, far):
        near[0].start_beating(5)
        far[0].end(LinkRefused("enough"))
        far[0].end(LinkLost("too late"))
        await asyncio.wait_for(near[1].ended.wait(), 1)
        await asyncio.sleep(0.05)
    assert [str(error) for error in far[1].ends] == ["enough"]
    (error,) = near[1].ends
    assert isinstance(error, LinkLost)
    assert "closed" in str(error)


async def test_what_was_sent_before_a_finish_arrives(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async with linked(*contexts) as (near, far):
        far[0].start_beating(5)
        far[0].send(Kind.DATA, bytes(DATA_BYTES))
        far[0].send(Kind.REFUSED, b"why")
        far[0].finish(LinkRefused("why"))
        await until(lambda: near[1].ends)
        assert [kind for kind, _ in near[1].frames] == [Kind.DATA, Kind.REFUSED]
        await until(lambda: far[1].ends)


async def test_a_peer_that_takes_nothing_cannot_hold_up_a_finish() -> None:
    async with plain_peer() as (stream, heard, _):
        while not stream.is_full:
            stream.send(Kind.DATA, bytes(DATA_BYTES))
            await asyncio.sleep(0)
        stream.finish(LinkRefused("enough"))
        await asyncio.wait_for(heard.ended.wait(), 3)
        assert str(heard.ends[0]) == "enough"


async def test_a_stream_that_ended_while_it_was_dialled_is_not_left_open() -> None:
    stream, wire = Heard().stream(), Wire()
    stream.end(LinkLost("stopped"))
    stream.connection_made(wire)
    assert wire.is_aborted
    stream.send(Kind.DATA, b"lost")
    assert not wire.written


async def test_a_frame_that_nobody_sends_ends_the_link() -> None:
    async with linked() as (near, far):
        near[0]._transport.write(b"\x63" * 20)  # type: ignore[union-attr]
        await asyncio.wait_for(far[1].ended.wait(), 2)
        assert isinstance(far[1].ends[0], LinkFraming)
        await asyncio.wait_for(near[1].ended.wait(), 2)


async def test_a_bug_in_the_owner_is_logged_and_ends_the_link(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def on_frame(frame: object) -> None:
        raise ZeroDivisionError("a bug")

    heard = Heard()
    stream, wire = LinkStream(on_frame, heard.on_end), Wire()
    stream.connection_made(wire)
    feed(stream, [spoken(Kind.DATA, b"x")])
    assert wire.is_aborted
    assert "a bug" in str(heard.ends[0])
    assert "link.bug" in caplog.text


async def test_frames_behind_the_one_that_ended_the_link_are_not_read() -> None:
    heard = Heard()
    made: list[LinkStream] = []
    made.append(LinkStream(lambda _: made[0].end(LinkLost("enough")), heard.on_end))
    made[0].connection_made(Wire())
    feed(made[0], [spoken(Kind.DATA, b"1") + spoken(Kind.DATA, b"2")])
    assert len(heard.ends) == 1


async def test_a_link_that_ended_beats_no_more() -> None:
    heard = Heard()
    stream, wire = wired(heard)
    stream.start_beating(0.2)
    stream.end(LinkLost("over"))
    wire.written.clear()
    await asyncio.sleep(0.15)
    assert not wire.written
