"""What Python, TLS and hashing each cost in a link: its parts, taken alone, in interleaved runs.

    uv run python bench/link_parts.py --pairs 15

* throughput: frames of 1 MiB from one process to another over loopback, by bare blocking sockets,
  by plain asyncio, by the link's own stream, and by that over TLS. From line to line it is clear
  what asyncio, frames and TLS add.
* trip: 4 KiB are put into a buffer of a real rpc-server and fetched back (SET_TENSOR, and
  GET_TENSOR behind it), directly, through two plain asyncio relays, and through a near end and a
  far end; also after a rest, as in decoding, where every process on the way has to wake up.
* weights: hashing, storing, reading, indexing and encrypting a MiB, in one thread.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import ssl
import statistics
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent))

from chunk_store import write_gguf
from lab.linked import FarSide, Lab, Served
from link_runs import (
    LOOPBACK,
    Bench,
    header,
    in_turn,
    machine,
    run_to_end,
    say,
    table,
    with_bench,
)

from agents import ports, tls
from agents.chunk_store import ChunkStore, PutResult
from agents.chunks import CHUNK_BYTES, chunk_name
from agents.far_end import server_context
from agents.gguf_index import GgufIndex
from agents.link_frames import Frame, Kind, pack_number
from agents.link_stream import LinkStream
from agents.rpc_protocol import Command, decode_hello_reply, encode_request, hello_request
from agents.rpc_tensors import LAYOUTS, RemoteTensor, pack_tensor
from agents.weights import I8
from supervisor.adapters.authority import Authority

Samples = dict[str, list[float]]
"""Figures by what was run, in the order of the pairs."""

MIB = 1 << 20
PLENTY_BYTES = 1 << 40
UNSENT_BYTES = 1 << 20
"""After which a plain asyncio sender waits, as the link's stream does."""

TRIP_BYTES = 4096
REST_S = 0.01
AGENT = "bench"
LINK_MBYTE_PER_S = 125.0
_CONTEXT = multiprocessing.get_context("spawn")


class Children:
    """Processes that run a function of this file with a pipe; they end when their pipe does."""

    def __init__(self) -> None:
        self._started: list[tuple[Any, Any]] = []

    def start(self, work: Callable[..., None], *arguments: object) -> "Connection[Any, Any]":
        ours, theirs = _CONTEXT.Pipe()
        child = _CONTEXT.Process(target=_run, args=(work, theirs, *arguments), daemon=True)
        child.start()
        theirs.close()
        self._started.append((child, ours))
        return ours

    def close(self) -> None:
        """End them, the last one first."""
        for child, pipe in reversed(self._started):
            pipe.close()
            child.join(5)
            if child.is_alive():
                child.kill()
                child.join()


def _run(work: Callable[..., None], pipe: "Connection[Any, Any]", *arguments: object) -> None:
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        work(pipe, *arguments)


# -- throughput ------------------------------------------------------------------------------------


class Identities:
    """Certificates of a main host and an agent; the same files for all processes."""

    def __init__(self, folder: Path) -> None:
        self._authority = Authority(folder / "authority")
        self._certificate, self._key = folder / "agent.crt", folder / "agent.key"
        if not self._key.exists():
            issued = self._authority.issue(tls.agent_name(AGENT))
            self._certificate.write_text(issued.certificate_pem)
            self._key.write_text(issued.key_pem)

    def near(self) -> ssl.SSLContext:
        own = self._authority
        return tls.client_context(
            own.certificate_pem, own.supervisor_certificate, own.supervisor_key
        )

    def far(self) -> ssl.SSLContext:
        return server_context(self._certificate, self._key, self._authority.certificate_path)


class Sink(asyncio.BufferedProtocol):
    """Plain asyncio that counts what comes, and says so when all is there."""

    def __init__(self, total_bytes: int) -> None:
        self._left_bytes = total_bytes
        self._buffer = memoryview(bytearray(MIB))
        self._transport: asyncio.Transport | None = None
        self.began_s = 0.0
        self.done = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.began_s = time.process_time()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        self._left_bytes -= count
        if not self._left_bytes:
            assert self._transport is not None
            self._transport.write(b"!")
            self.done.set()


class FrameSink:
    """The same with the link's stream."""

    def __init__(self, frames: int) -> None:
        self._left = frames
        self.link = LinkStream(self._on_frame, lambda error: None, on_made=self._on_made)
        self.began_s = 0.0
        self.done = asyncio.Event()

    def _on_made(self) -> None:
        self.began_s = time.process_time()

    def _on_frame(self, frame: Frame) -> None:
        self._left -= 1
        if not self._left:
            self.link.send(Kind.DONE, pack_number(1))
            self.done.set()


def receiver(pipe: "Connection[Any, Any]", folder: Path) -> None:
    """Process that receives: told a way and a number of frames, answers port and CPU seconds."""
    identities = Identities(folder)
    while True:
        way, frames = pipe.recv()
        with ports.listen(LOOPBACK, 0, "a bench") as listener:
            pipe.send(listener.getsockname()[1])
            if way == "bare sockets":
                pipe.send(_receive_bare(listener, frames * MIB))
            else:
                context = identities.far() if way == "link stream, TLS" else None
                pipe.send(asyncio.run(_receive(listener, way, frames, context)))


def _receive_bare(listener: socket.socket, total_bytes: int) -> float:
    caller, _ = listener.accept()
    with caller:
        began_s, left_bytes = time.process_time(), total_bytes
        buffer = bytearray(MIB)
        while left_bytes:
            left_bytes -= caller.recv_into(buffer)
        caller.sendall(b"!")
        return time.process_time() - began_s


async def _receive(
    listener: socket.socket, way: str, frames: int, context: ssl.SSLContext | None
) -> float:
    sink = Sink(frames * MIB) if way == "asyncio" else FrameSink(frames)
    protocol = sink.link if isinstance(sink, FrameSink) else sink
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol, sock=listener, ssl=context)
    async with server:
        await sink.done.wait()
        took_s = time.process_time() - sink.began_s
        await asyncio.sleep(0.05)  # what was said last leaves
        return took_s


class Source(asyncio.Protocol):
    """Plain asyncio that waits when too much is unsent."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.room.set()
        self.done = asyncio.Event()

    def pause_writing(self) -> None:
        self.room.clear()

    def resume_writing(self) -> None:
        self.room.set()

    def data_received(self, data: bytes) -> None:
        self.done.set()


def _send_bare(port: int, frames: int, data: bytes) -> tuple[float, float]:
    with socket.create_connection((LOOPBACK, port)) as line:
        began_s, cpu_s = time.perf_counter(), time.process_time()
        for _ in range(frames):
            line.sendall(data)
        line.recv(1)
        return time.perf_counter() - began_s, time.process_time() - cpu_s


async def _send_plain(port: int, frames: int, data: bytes) -> tuple[float, float]:
    source = Source()
    transport, _ = await asyncio.get_running_loop().create_connection(
        lambda: source, LOOPBACK, port
    )
    transport.set_write_buffer_limits(UNSENT_BYTES)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(frames):
        transport.write(data)
        await source.room.wait()
    await source.done.wait()
    took_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    transport.abort()
    return took_s


async def _send_frames(
    port: int, frames: int, data: bytes, context: ssl.SSLContext | None
) -> tuple[float, float]:
    room, done = asyncio.Event(), asyncio.Event()
    link = LinkStream(lambda frame: done.set(), lambda error: None, on_room=room.set)
    name = tls.agent_name(AGENT) if context else None
    transport, _ = await asyncio.get_running_loop().create_connection(
        lambda: link, LOOPBACK, port, ssl=context, server_hostname=name
    )
    began_s, cpu_s = time.perf_counter(), time.process_time()
    for number in range(frames):
        link.send(Kind.BODY, data, head=pack_number(number))
        while link.is_full:
            room.clear()
            await room.wait()
    await done.wait()
    took_s = time.perf_counter() - began_s, time.process_time() - cpu_s
    transport.abort()
    return took_s


async def throughput(bench: Bench, options: argparse.Namespace) -> tuple[str, Any]:
    folder = bench.folder()
    near = Identities(folder).near()
    frames, data = options.mib, os.urandom(MIB)
    ways: dict[str, Callable[[int], Awaitable[tuple[float, float]]]] = {
        "bare sockets": lambda port: asyncio.to_thread(_send_bare, port, frames, data),
        "asyncio": lambda port: _send_plain(port, frames, data),
        "link stream": lambda port: _send_frames(port, frames, data, None),
        "link stream, TLS": lambda port: _send_frames(port, frames, data, near),
    }
    rates, cpu_near, cpu_far = (defaultdict[str, list[float]](list) for _ in range(3))
    mbyte = frames * MIB / 1e6
    with contextlib.closing(Children()) as children:
        pipe = children.start(receiver, folder)
        for number in range(-1, options.pairs):
            for way in in_turn(list(ways), number):
                pipe.send((way, frames))
                took_s, near_s = await ways[way](pipe.recv())
                far_s = pipe.recv()
                if number >= 0:  # the first round warms both processes
                    rates[way].append(mbyte / took_s)
                    cpu_near[way].append(1e3 * near_s / mbyte)
                    cpu_far[way].append(1e3 * far_s / mbyte)
            say(f"throughput, pair {number + 1} of {options.pairs}")
    found = {"mbyte_per_s": rates, "near_cpu_ms_per_mb": cpu_near, "far_cpu_ms_per_mb": cpu_far}
    rows = [
        [
            way,
            f"{statistics.median(rates[way]):.0f}",
            f"{_of_pairs(rates[way], rates['bare sockets']):.2f}",
            f"{statistics.median(cpu_near[way]):.2f}",
            f"{statistics.median(cpu_far[way]):.2f}",
        ]
        for way in ways
    ]
    head = ["frames of 1 MiB", "MB/s, median", "÷ bare, of the pairs", "CPU of the sender, ms/MB"]
    return table([*head, "of the receiver"], rows), found


def _of_pairs(upper: Sequence[float], lower: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(upper, lower, strict=True))


# -- round trips -----------------------------------------------------------------------------------


class Client:
    """A client of an rpc-server on a bare blocking socket, as llama-server is one."""

    def __init__(self, port: int) -> None:
        self._line = socket.create_connection((LOOPBACK, port))
        self._line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        layout = LAYOUTS[decode_hello_reply(self._ask(hello_request()))]
        made = self._ask(encode_request(Command.ALLOC_BUFFER, struct.pack("<IQ", 0, MIB)))
        buffer, _ = struct.unpack("<QQ", made)
        where = self._ask(encode_request(Command.BUFFER_GET_BASE, struct.pack("<Q", buffer)))
        tensor = RemoteTensor(
            id=1,
            type_id=I8.type_id,
            shape=(TRIP_BYTES, 1),
            row_bytes=TRIP_BYTES,
            element_bytes=I8.block_bytes,
            buffer=buffer,
            address=struct.unpack("<Q", where)[0],
        )
        packed, flag = pack_tensor(tensor, layout), b"\0" if layout.has_cache_flag else b""
        self._data = os.urandom(TRIP_BYTES)
        put = packed + flag + struct.pack("<Q", 0) + self._data
        get = packed + struct.pack("<QQ", 0, TRIP_BYTES)
        self._trip = encode_request(Command.SET_TENSOR, put)
        self._trip += encode_request(Command.GET_TENSOR, get)

    def close(self) -> None:
        self._line.close()

    def trip_us(self, trips: int, rest_s: float) -> float:
        """Median of so many, with a rest before each."""
        times = []
        for _ in range(trips):
            time.sleep(rest_s)
            began_s = time.perf_counter()
            back = self._ask(self._trip)
            times.append(time.perf_counter() - began_s)
            assert back == self._data
        return 1e6 * statistics.median(times)

    def _ask(self, request: bytes) -> bytes:
        self._line.sendall(request)
        return self._take(struct.unpack("<Q", self._take(8))[0])

    def _take(self, size_bytes: int) -> bytes:
        found = b""
        while len(found) < size_bytes:
            piece = self._line.recv(size_bytes - len(found))
            if not piece:
                raise ConnectionError("the rpc-server, or what is before it, hung up")
            found += piece
        return found


class Hop(asyncio.Protocol):
    """One end of a connection that is relayed."""

    def __init__(self, port: int | None, other: "Hop | None" = None) -> None:
        self._port = port
        self._other = other
        self._early: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._port is not None:
            self._dialling = asyncio.create_task(self._dial(self._port))

    async def _dial(self, port: int) -> None:
        other = Hop(None, self)
        await asyncio.get_running_loop().create_connection(lambda: other, LOOPBACK, port)
        self._other = other
        for data in self._early:
            other.write(data)

    def data_received(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            self._other.write(data)

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.close()


def relay(pipe: "Connection[Any, Any]", port: int) -> None:
    """Process of a plain relay."""
    asyncio.run(_relay(pipe, port))


async def _relay(pipe: "Connection[Any, Any]", port: int) -> None:
    listener = ports.listen(LOOPBACK, 0, "a bench")
    loop = asyncio.get_running_loop()
    async with await loop.create_server(lambda: Hop(port), sock=listener):
        pipe.send(listener.getsockname()[1])
        await _until_closed(pipe)


def far_end(pipe: "Connection[Any, Any]", folder: Path, port: int) -> None:
    """Process of a far end before an rpc-server."""
    asyncio.run(_far_end(pipe, folder, port))


async def _far_end(pipe: "Connection[Any, Any]", folder: Path, port: int) -> None:
    served = await Served.proven(port)
    async with Lab(folder).far_side(AGENT, served) as side:
        pipe.send(side)
        await _until_closed(pipe)


def near_end(pipe: "Connection[Any, Any]", folder: Path, side: FarSide) -> None:
    """Process of a near end."""
    asyncio.run(_near_end(pipe, folder, side))


async def _near_end(pipe: "Connection[Any, Any]", folder: Path, side: FarSide) -> None:
    async with Lab(folder).near_ends(side) as (near,):
        pipe.send(near.stats().port)
        await _until_closed(pipe)


async def _until_closed(pipe: "Connection[Any, Any]") -> None:
    """Woken by the pipe itself, so that nothing else runs in this process."""
    closed = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), closed.set)
    await closed.wait()
    asyncio.get_running_loop().remove_reader(pipe.fileno())


async def trip(bench: Bench, options: argparse.Namespace) -> tuple[str, Any]:
    samples: dict[str, Samples] = {"no rest": defaultdict(list), "rest": defaultdict(list)}
    async with AsyncExitStack() as stack:
        routes = await _routes(bench, stack)
        for number in range(-1, options.pairs):
            for name in in_turn(list(routes), number):
                for kind, rest_s in (("no rest", 0.0), ("rest", REST_S)):
                    took_us = routes[name].trip_us(options.trips, rest_s)
                    if number >= 0:
                        samples[kind][name].append(took_us)
            say(f"round trips, pair {number + 1} of {options.pairs}")
    rows = []
    for name in routes:
        row = [name]
        for found in samples.values():
            direct = statistics.median(found["direct"])
            took_us = statistics.median(found[name])
            row += [f"{took_us:.0f}", f"{took_us - direct:+.0f}"]
        rows.append(row)
    head = ["4 KiB there and back", "µs, median", "more than direct"]
    return table([*head, f"after {1e3 * REST_S:.0f} ms of rest", "more"], rows), samples


async def _routes(bench: Bench, stack: AsyncExitStack) -> dict[str, Client]:
    """Each has an rpc-server of its own, since those have one client at a time."""
    folder = bench.folder()
    names = ("direct", "two asyncio relays", "near and far end, TLS")
    bare = {name: await bench.rpc_server(stack, folder, name) for name in names}
    children = stack.enter_context(contextlib.closing(Children()))
    behind = children.start(relay, bare[names[1]]).recv()
    relayed = children.start(relay, behind).recv()
    Lab(folder)  # makes the authority that both ends will find
    side = children.start(far_end, folder, bare[names[2]]).recv()
    linked = children.start(near_end, folder, side).recv()
    found = {}
    for name, port in zip(names, (bare[names[0]], relayed, linked), strict=True):
        client = found[name] = Client(port)
        stack.callback(client.close)
    return found


# -- weights ---------------------------------------------------------------------------------------


def _timed(step: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    step()
    return time.perf_counter() - began_s


class Tunnel:
    """Both sides of TLS in memory: encryption alone, without any socket."""

    def __init__(self, folder: Path) -> None:
        identities = Identities(folder)
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._wire = up
        self._near = identities.near().wrap_bio(down, up, server_hostname=tls.agent_name(AGENT))
        self._far = identities.far().wrap_bio(up, down, server_side=True)
        self._buffer = bytearray(MIB)
        for _ in range(3):
            for side in (self._near, self._far):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()

    def seal_and_open(self, chunks: Sequence[bytes]) -> tuple[float, float]:
        """Seconds of the sender, and of the receiver."""
        sealing_s = opening_s = 0.0
        for chunk in chunks:
            began_s = time.perf_counter()
            self._near.write(chunk)
            sealed_s = time.perf_counter()
            self._open(len(chunk))
            sealing_s += sealed_s - began_s
            opening_s += time.perf_counter() - sealed_s
        return sealing_s, opening_s

    def _open(self, size_bytes: int) -> None:
        while size_bytes:
            count: Any = self._far.read(size_bytes, self._buffer)
            size_bytes -= count


def _weight_times(folder: Path, gguf: Path, mib: int, number: int) -> Iterator[tuple[str, float]]:
    """What each step took for ``mib`` MiB of fresh data."""
    data = os.urandom(mib * MIB)
    chunks = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    names = [chunk_name(chunk) for chunk in chunks]
    store = ChunkStore(folder / f"store-{number}", PLENTY_BYTES)
    index, buffer = GgufIndex(folder / f"index-{number}"), bytearray(CHUNK_BYTES)
    tunnel = Tunnel(folder)
    yield "sha256", _timed(lambda: [chunk_name(chunk) for chunk in chunks])
    results: list[PutResult] = []
    pairs = list(zip(names, chunks, strict=True))
    yield (
        "put into the store, sha256 included",
        _timed(lambda: results.extend([store.put(name, chunk) for name, chunk in pairs])),
    )
    assert set(results) == {PutResult.STORED}, results
    yield (
        "read from the store and verify",
        _timed(lambda: [store.readinto(name, buffer) for name in names]),
    )
    yield "read and name, from a GGUF file", _timed(lambda: index.index_gguf([gguf]))
    sealing_s, opening_s = tunnel.seal_and_open(chunks)
    yield "TLS, encrypt", sealing_s
    yield "TLS, decrypt", opening_s


async def weights(bench: Bench, options: argparse.Namespace) -> tuple[str, Any]:
    folder = bench.folder()
    gguf = folder / "model.gguf"
    write_gguf(gguf, tokens=1, tensors=options.mib, tensor_bytes=MIB)
    samples: Samples = defaultdict(list)
    for number in range(-1, options.pairs):
        os.sync()
        for step, took_s in _weight_times(folder, gguf, options.mib, number):
            if number >= 0:
                samples[step].append(1e3 * took_s / options.mib)
        say(f"weights, pair {number + 1} of {options.pairs}")
    rows = []
    for step, times in samples.items():
        per_mib_ms = statistics.median(times)
        mbyte_per_s = MIB / 1e3 / per_mib_ms
        share = LINK_MBYTE_PER_S / mbyte_per_s
        rows.append([step, f"{per_mib_ms:.2f}", f"{mbyte_per_s:.0f}", f"{share:.0%}"])
    head = ["one thread", "ms per MiB, median", "MB/s", "of a processor at 125 MB/s"]
    return table(head, rows), {"ms_per_mib": samples}


# -- the command line ------------------------------------------------------------------------------

PARTS = {"throughput": throughput, "trip": trip, "weights": weights}


async def measured(options: argparse.Namespace) -> str:
    async def work(bench: Bench) -> str:
        facts = machine(bench.engine)
        found = {name: await PARTS[name](bench, options) for name in options.parts}
        if options.json:
            figures = {name: part for name, (_, part) in found.items()}
            asked = {"pairs": options.pairs, "mib": options.mib, "trips": options.trips}
            return json.dumps({"machine": facts, "options": asked, "figures": figures}, indent=2)
        tables = [text for text, _ in found.values()]
        return "\n\n".join([f"{header(facts)}; {options.pairs} pairs.", *tables])

    return await with_bench(options.folder, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--mib", type=int, default=256, help="sent or hashed in one run")
    parser.add_argument("--trips", type=int, default=100, help="in one run")
    parser.add_argument("--json", action="store_true", help="all figures, in place of tables")
    parser.add_argument("--folder", type=Path, help="where stores are made")
    print(run_to_end(measured(parser.parse_args())))


if __name__ == "__main__":
    main()
