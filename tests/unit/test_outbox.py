"""What goes to the far end: in order, within the window, and again when it is asked for."""

import asyncio
import random
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from link_world import Heard, Wire, until, wired
from made_chunks import made

from agents.chunks import ChunkName
from agents.errors import LinkLost
from agents.link_frames import (
    DATA_BYTES,
    OFFERED_CHUNKS,
    Kind,
    pack_number,
    pack_offer,
    pack_ref,
    pack_shut,
)
from agents.link_stream import LinkStream
from supervisor.link.chunk_refs import Ref, Window
from supervisor.link.outbox import ChunkReader, Outbox, Shut

KIB = 1 << 10


class Files:
    """Chunks that can be read again, until they are taken away."""

    def __init__(self, *chunks: tuple[ChunkName, bytes]) -> None:
        self.chunks = dict(chunks)
        self.read_in: set[int] = set()

    def read(self, name: ChunkName) -> bytes | None:
        self.read_in.add(threading.get_ident())
        return self.chunks.get(name)


class Way:
    """An outbox, and what has left it."""

    def __init__(self, window_bytes: int = 64 * KIB, reader: ChunkReader | None = None) -> None:
        self.heard = Heard()
        self.link: LinkStream
        self.wire: Wire
        self.link, self.wire = wired(self.heard)
        self.rooms = 0
        self.out = Outbox(self.link, window_bytes, reader, self._on_room)

    def _on_room(self) -> None:
        self.rooms += 1

    def left(self) -> list[tuple[Kind, bytes]]:
        return self.wire.spoken()

    def refs(self, count: int, size_bytes: int = 4 * KIB) -> list[Ref]:
        """Emitted, and sent as far as the window allows."""
        found = []
        for seed in range(count):
            name, data = made(seed, size_bytes)
            found.append(Ref(name, size_bytes, bytearray(data)))
            self.out.emit(found[-1])
        self.out.advance()
        return found


def ref_frame(ref: Ref) -> tuple[Kind, bytes]:
    return Kind.REF, pack_ref(ref.name, ref.size_bytes)


# -- the stream of requests ---------------------------------------------------------------------


async def test_requests_and_names_leave_in_order_and_small_ones_together() -> None:
    way = Way()
    (name, data) = made(1)
    ref = Ref(name, len(data), bytearray(data))
    for item in (b"one", b"two", ref, b"three", Shut(4)):
        way.out.emit(item)
    assert (way.out.is_waiting, way.out.has_refs, way.out.waiting_bytes) == (True, True, 11)
    assert not way.left(), "nothing leaves before it is advanced"
    way.out.advance()
    assert way.left() == [
        (Kind.DATA, b"onetwo"),
        ref_frame(ref),
        (Kind.DATA, b"three"),
        (Kind.SHUT, pack_shut(4)),
    ]
    assert not way.out.is_waiting
    assert way.rooms == 1


async def test_no_frame_is_longer_than_may_be() -> None:
    way, rng = Way(), random.Random(1)
    data = rng.randbytes(5 * DATA_BYTES // 2)
    way.out.emit_pieces(memoryview(data))
    for _ in range(20):
        piece = rng.randbytes(rng.randrange(DATA_BYTES))
        way.out.emit(piece)
        data += piece
    way.out.advance()
    left = way.left()
    assert b"".join(body for _, body in left) == data
    assert max(len(body) for _, body in left) <= DATA_BYTES


async def test_a_full_link_takes_nothing_and_then_goes_on_where_it_stopped() -> None:
    way = Way()
    way.link.pause_writing()
    [ref] = way.refs(1)
    way.out.emit(b"after")
    way.out.advance()
    assert not way.left()
    assert way.out.is_waiting
    assert way.rooms == 0
    way.link.is_full = False
    way.out.advance()
    assert [kind for kind, _ in way.left()] == [Kind.REF, Kind.DATA]
    assert way.rooms == 1
    assert ref.data is not None


async def test_the_window_bounds_what_is_named_and_done_opens_it() -> None:
    way = Way(window_bytes=32 * KIB)  # half of it is the stream's
    refs = way.refs(10)
    way.out.emit(b"behind them")
    way.out.advance()
    assert way.left() == [ref_frame(ref) for ref in refs[:4]]
    way.out.on_done(1)
    assert way.left() == [ref_frame(refs[4])]
    way.out.on_done(1)
    assert way.left() == [], "the same again changes nothing"
    way.out.on_done(5)
    way.out.on_done(10)
    left = way.left()
    assert left == [*map(ref_frame, refs[5:]), (Kind.DATA, b"behind them")]
    assert way.out.weight_bytes == 9 * 4 * KIB
    way.out.on_done(2**32 - 1)
    assert way.out.weight_bytes == way.out.saved_bytes == 10 * 4 * KIB
    assert way.out.held == {ref.name for ref in refs}
    assert not way.out.on_their_way


async def test_what_the_far_end_lacks_is_sent_ahead_of_what_waits() -> None:
    way = Way(window_bytes=32 * KIB)
    refs = way.refs(6)
    way.left()
    way.out.on_need([1, 2])
    assert refs[1].data is not None
    assert way.left() == [(Kind.BODY, pack_number(n) + bytes(refs[n].data or b"")) for n in (1, 2)]
    way.out.on_done(4)
    assert way.out.weight_bytes == 4 * 4 * KIB
    assert way.out.saved_bytes == 2 * 4 * KIB, "two of the four travelled"


async def test_bodies_go_out_while_the_window_is_full() -> None:
    """Else both ends would wait for each other."""
    way = Way(window_bytes=8 * KIB)
    refs = way.refs(3)
    assert way.left() == [ref_frame(refs[0])]
    way.out.on_need([0])
    assert [kind for kind, _ in way.left()] == [Kind.BODY]
    way.out.on_done(1)
    assert way.left() == [ref_frame(refs[1])]


async def test_a_body_waits_for_a_full_link() -> None:
    way = Way()
    way.refs(1)
    way.left()
    way.link.pause_writing()
    way.out.on_need([0])
    assert not way.left()
    way.link.is_full = False
    way.out.advance()
    assert [kind for kind, _ in way.left()] == [Kind.BODY]


@pytest.mark.parametrize("serial", [4, 100, 2**32 - 1])
async def test_asking_for_what_was_never_named_is_an_error(serial: int) -> None:
    way = Way()
    way.refs(4)
    with pytest.raises(LinkLost, match=f"asks for chunk {serial}"):
        way.out.on_need([serial])


async def test_asking_for_what_is_done_is_an_error() -> None:
    way = Way()
    way.refs(4)
    way.out.on_done(2)
    with pytest.raises(LinkLost, match="after it was done"):
        way.out.on_need([1])


async def test_nobody_may_ask_twice_which_would_fill_our_memory() -> None:
    files = Files(made(0))
    way = Way(reader=files)
    name, data = made(0)
    way.out.emit(Ref(name, len(data), None))
    way.out.advance()
    way.out.on_need([0])
    with pytest.raises(LinkLost, match="twice"):
        way.out.on_need([0] * OFFERED_CHUNKS)
    way.out.close()


async def test_a_chunk_that_was_never_given_to_us_is_read_from_its_file() -> None:
    name, data = made(0)
    files = Files((name, data))
    way = Way(reader=files)
    way.out.emit(Ref(name, len(data), None))
    way.out.advance()
    way.left()
    way.out.held.add(name)
    way.out.on_need([0])
    assert name not in way.out.held
    await until(lambda: way.wire.written)
    assert way.left() == [(Kind.BODY, pack_number(0) + data)]
    assert threading.get_ident() not in files.read_in, "reading blocks"


@pytest.mark.parametrize("reader", [None, Files()])
async def test_weights_that_are_nowhere_any_more_end_the_link(reader: ChunkReader | None) -> None:
    way = Way(reader=reader)
    name, data = made(0)
    way.out.emit(Ref(name, len(data), None))
    way.out.advance()
    way.out.on_need([0])
    await until(lambda: way.heard.ends)
    assert "lost weights" in str(way.heard.ends[0])


async def test_what_is_dropped_never_leaves_but_what_was_named_is_still_given() -> None:
    way = Way(window_bytes=16 * KIB)
    refs = way.refs(4)
    way.left()
    way.out.drop()
    way.out.on_need([0])
    assert way.left() == [(Kind.BODY, pack_number(0) + bytes(refs[0].data or b""))]
    way.out.on_done(2)
    assert not way.left()


# -- chunks ahead of the stream -----------------------------------------------------------------


async def test_many_chunks_are_asked_about_in_few_questions() -> None:
    way = Way()
    chunks = [(ChunkName(bytes([seed % 256]) * 32), seed + 1) for seed in range(2100)]
    asking = asyncio.create_task(way.out.ask(chunks))
    await until(lambda: len(way.wire.written) > 2100 * 36)
    assert way.left() == [
        (Kind.OFFER, pack_offer(chunks[a:b])) for a, b in pairwise([0, 1024, 2048, 2100])
    ]
    way.out.on_held(bytes(1024))
    way.out.on_held(b"\1" + bytes(1023))
    await asyncio.sleep(0)
    assert not asking.done()
    way.out.on_held(bytes(52))
    await asyncio.wait_for(asking, 1)
    assert way.out.held == {chunks[1024][0]}


async def test_asking_about_nothing_asks_nothing() -> None:
    way = Way()
    await asyncio.wait_for(way.out.ask([]), 1)
    assert not way.left()


@pytest.mark.parametrize("flags", [b"", b"\1", b"\1\0\1"])
async def test_an_answer_that_nobody_asked_for_is_an_error(flags: bytes) -> None:
    way = Way()
    with pytest.raises(LinkLost, match="not asked"):
        way.out.on_held(flags)
    asking = asyncio.create_task(way.out.ask([(made(1)[0], 5), (made(2)[0], 5)]))
    await asyncio.sleep(0)
    with pytest.raises(LinkLost, match="not asked"):
        way.out.on_held(flags)
    way.out.close()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_seeds_have_half_of_the_window_and_the_stream_the_other() -> None:
    way = Way(window_bytes=32 * KIB)
    names = [made(seed)[0] for seed in range(10)]

    async def seed_all() -> None:
        for seed in range(10):
            await way.out.seed(*made(seed))

    seeding = asyncio.create_task(seed_all())
    await asyncio.sleep(0.02)
    assert [body[:32] for _, body in way.left()] == names[:1], "until one was kept"
    way.out.on_stored(names[0], is_stored=True)
    await asyncio.sleep(0.02)
    assert [body[:32] for _, body in way.left()] == names[1:5]
    assert way.out.held == set(names[:5]), "what follows by name finds them"
    for seed in range(1, 5):
        way.out.on_stored(names[seed], is_stored=True)
    await asyncio.sleep(0.02)
    assert [body[:32] for _, body in way.left()] == names[5:9]
    for seed in range(5, 10):
        way.out.on_stored(names[seed], is_stored=True)
        await asyncio.sleep(0.01)
    await asyncio.wait_for(seeding, 1)
    for seed in range(10):
        way.out.on_stored(names[seed], is_stored=True)
    await asyncio.wait_for(way.out.seeds_settled(), 1)
    assert way.out.seeded_bytes == 10 * 4 * KIB


async def test_a_full_link_stops_the_seeds() -> None:
    way = Way()
    way.link.pause_writing()
    seeding = asyncio.create_task(way.out.seed(*made(1)))
    await asyncio.sleep(0.02)
    assert not way.left()
    way.link.is_full = False
    way.out.advance()
    await asyncio.wait_for(seeding, 1)
    assert [kind for kind, _ in way.left()] == [Kind.SEED]


@pytest.mark.parametrize("is_held", [True, False])
async def test_what_is_there_or_on_its_way_is_not_seeded(is_held: bool) -> None:
    way = Way()
    name, data = made(0)
    (way.out.held if is_held else way.out.on_their_way).add(name)
    await asyncio.wait_for(way.out.seed(name, data), 1)
    assert not way.left()
    await asyncio.wait_for(way.out.seeds_settled(), 1)


async def test_a_far_end_without_room_gets_no_more_seeds() -> None:
    way = Way()
    name, data = made(0)
    await way.out.seed(name, data)
    settling = asyncio.create_task(way.out.seeds_settled())
    await asyncio.sleep(0)
    assert not settling.done()
    way.out.on_stored(name, is_stored=False)
    await asyncio.wait_for(settling, 1)
    assert way.out.refuses_seeds
    assert name not in way.out.held


async def test_the_end_of_a_link_leaves_nobody_waiting() -> None:
    release = threading.Event()

    class Slow:
        def read(self, name: ChunkName) -> bytes | None:
            release.wait(5)
            return None

    way = Way(reader=Slow())
    name, data = made(0)
    way.out.emit(Ref(name, len(data), None))
    way.out.advance()
    way.out.on_need([0])
    asking = asyncio.create_task(way.out.ask([(name, 5)]))
    await asyncio.sleep(0.01)
    way.link.end(LinkLost("gone"))
    way.out.close()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asking, 1)
    await asyncio.sleep(0.02)
    assert [str(error) for error in way.heard.ends] == ["gone"]


# -- the window ---------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.integers(1, 9), st.none()), max_size=60), st.integers(1, 30))
def test_a_window_knows_what_was_sent_and_is_not_done(
    steps: list[int | None], most_bytes: int
) -> None:
    window, model, done = Window(most_bytes), list[Ref](), 0
    for step in steps:
        if step is None:
            done += 1
            over = window.done(done)
            done = min(done, len(model))
            assert over in ([model[done - 1]] if done else [], [])
        elif not window.is_full:
            ref = Ref(made(len(model), 1)[0], step, None)
            window.add(ref)
            model.append(ref)
        live = model[done:]
        assert window.held_bytes == sum(ref.size_bytes for ref in live)
        assert window.held_bytes < most_bytes + 9
        for serial, ref in enumerate(model):
            assert window.find(serial) is (ref if serial >= done else None)
        assert window.find(len(model)) is None
        assert window.find(-1) is None
