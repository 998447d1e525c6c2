"""What a near end answers itself, byte for byte as the rpc-server would; and one client of it."""

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from link_world import Wire, until
from rpc_talk import SEVEN, VERSIONS, exchange, hello_of, hello_reply_of, reply

from agents.errors import RpcFraming
from agents.link_frames import OfferedDevice, Welcome
from agents.rpc_commands import SET_TENSOR_HASH
from agents.rpc_events import Request
from agents.rpc_framing import RequestParser
from agents.rpc_protocol import Command, Triple
from supervisor.link.alloc_sizes import AllocSizes
from supervisor.link.local_client import LocalClient
from supervisor.link.questions import FREE_OF_STATE, Answers

DEVICES = [
    OfferedDevice(free_bytes=1 << 33, total_bytes=1 << 34, alignment=32, max_buffer_bytes=1 << 40),
    OfferedDevice(free_bytes=5, total_bytes=7, alignment=256, max_buffer_bytes=2**64 - 1),
]


def answers(triple: Triple = SEVEN, sizes: AllocSizes | None = None) -> Answers:
    return Answers.of(Welcome(str(triple), DEVICES), sizes)


def asked(command: int, body: bytes = b"") -> Request:
    return Request(command, body, 8)


def of_device(command: int, device: int) -> Request:
    return asked(command, struct.pack("<I", device))


def test_what_was_learned_once_is_answered_as_it_travels() -> None:
    found = answers()
    assert found.find(asked(Command.DEVICE_COUNT)) == reply(struct.pack("<I", 2))
    for index, device in enumerate(DEVICES):
        expected = {
            Command.GET_DEVICE_MEMORY: struct.pack("<QQ", device.free_bytes, device.total_bytes),
            Command.GET_ALIGNMENT: struct.pack("<Q", device.alignment),
            Command.GET_MAX_SIZE: struct.pack("<Q", device.max_buffer_bytes),
        }
        for command, body in expected.items():
            assert found.find(of_device(command, index)) == reply(body)


@pytest.mark.parametrize("device", [2, 3, 2**32 - 1])
def test_a_device_that_does_not_exist_is_left_to_the_rpc_server(device: int) -> None:
    for command in (Command.GET_DEVICE_MEMORY, Command.GET_ALIGNMENT, Command.GET_MAX_SIZE):
        assert answers().find(of_device(command, device)) is None


@pytest.mark.parametrize("triple", VERSIONS, ids=str)
def test_the_greeting_is_that_of_the_version(triple: Triple) -> None:
    found = answers(triple)
    assert found.hello() == hello_reply_of(triple)
    assert found.generation is not None


@pytest.mark.parametrize("triple", [Triple(8, 0, 0), Triple(3, 4, 0), Triple(2, 0, 0)], ids=str)
def test_a_version_that_we_do_not_know_has_no_rules(triple: Triple) -> None:
    assert answers(triple).generation is None


@pytest.mark.parametrize("triple", VERSIONS, ids=str)
def test_everything_that_changes_something_is_left_to_the_rpc_server(triple: Triple) -> None:
    found = answers(triple)
    for command in set(VERSIONS[triple]) - set(FREE_OF_STATE):
        body = exchange(triple, command).body
        assert found.find(Request(command, body, None)) is None
    assert SET_TENSOR_HASH not in FREE_OF_STATE


def test_the_size_of_a_tensor_is_asked_once(tmp_path: Path) -> None:
    body = exchange(SEVEN, Command.GET_ALLOC_SIZE).body
    question = asked(Command.GET_ALLOC_SIZE, body)
    found = answers(sizes=AllocSizes(tmp_path / "answers"))
    assert found.find(question) is None
    found.learn(question, 12345)
    assert found.find(question) == reply(struct.pack("<Q", 12345))
    later = answers(sizes=AllocSizes(tmp_path / "answers"))
    assert later.find(question) == reply(struct.pack("<Q", 12345))


def test_without_a_place_for_answers_nothing_is_remembered() -> None:
    question = asked(Command.GET_ALLOC_SIZE, exchange(SEVEN, Command.GET_ALLOC_SIZE).body)
    found = answers()
    found.learn(question, 12345)
    assert found.find(question) is None


# -- one client ---------------------------------------------------------------------------------


class Host:
    """A near end that answers every byte with as many as it likes."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer
        self.clients: list[LocalClient] = []
        self.gone: list[LocalClient] = []
        self.rooms = 0
        self.parser = RequestParser()
        self.taken = 0

    def on_client_made(self, client: LocalClient) -> None:
        self.clients.append(client)

    def on_client_data(self, client: LocalClient, data: memoryview) -> None:
        self.taken += len(data)
        if self.answer:
            for _ in range(len(data)):
                client.write(self.answer)
        else:
            self.parser.feed(data)

    def on_client_eof(self, client: LocalClient) -> bool:
        return False

    def on_client_room(self, client: LocalClient) -> None:
        self.rooms += 1

    def on_client_gone(self, client: LocalClient) -> None:
        self.gone.append(client)


async def test_a_client_that_reads_nothing_is_not_answered_without_end() -> None:
    loop, host = asyncio.get_running_loop(), Host(bytes(16))
    server = await loop.create_server(lambda: LocalClient(host), "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as caller:
        caller.setblocking(False)
        asking = asyncio.create_task(loop.sock_sendall(caller, b"?" * (64 << 20)))
        await until(lambda: host.clients and host.clients[0].is_full)
        await asyncio.sleep(0.2)
        transport = host.clients[0]._transport
        assert transport is not None
        held_bytes = transport.get_write_buffer_size()
        assert held_bytes < (4 << 20) + (256 << 10) * 16, "and what one read more asks for"
        taken = host.taken
        await asyncio.sleep(0.1)
        assert host.taken == taken, "no further question is read"
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: host.gone)
    server.close()


async def test_a_client_is_read_again_when_it_has_room_and_nobody_holds_it_up() -> None:
    host, wire = Host(), Wire()
    client = LocalClient(host)
    client.connection_made(wire)
    client.pause()
    client.pause_writing()
    assert not wire.reads()
    client.resume()
    assert not wire.reads(), "it has not taken its answers"
    client.resume_writing()
    assert wire.reads()
    assert host.rooms == 1
    client.pause_writing()
    client.pause()
    client.resume_writing()
    assert not wire.reads(), "it is still held up"
    client.resume()
    assert wire.reads()


async def test_a_client_that_is_cut_is_gone_at_once_and_once() -> None:
    """Who makes room by cutting the oldest must not find it there again."""
    host, wire = Host(), Wire()
    client = LocalClient(host)
    client.connection_made(wire)
    client.cut()
    assert wire.is_aborted
    assert host.gone == [client]
    client.connection_lost(None)
    client.write(b"too late")
    assert host.gone == [client]
    assert not wire.written


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(9),
        b"\xff" * 9,
        struct.pack("<BQ", 14, 2**64 - 1),
        struct.pack("<BQ", 14, 1 << 40),
        hello_of(SEVEN) + struct.pack("<BQ", 6, 2**64 - 1),
    ],
)
async def test_a_client_that_speaks_nonsense_is_cut(said: bytes) -> None:
    host, wire = Host(), Wire()
    client = LocalClient(host)
    client.connection_made(wire)
    with pytest.raises(RpcFraming):
        RequestParser().feed(said)
    client.get_buffer(-1)[: len(said)] = said
    client.buffer_updated(len(said))
    assert wire.is_aborted
    assert host.gone == [client]


async def test_a_client_that_says_much_is_read_in_large_pieces() -> None:
    host, wire = Host(b""), Wire()
    client = LocalClient(host)
    client.connection_made(wire)
    assert len(client.get_buffer(-1)) <= 4096, "most say little"
    host.answer = b"x"
    client.get_buffer(-1)[:] = bytes(len(client.get_buffer(-1)))
    client.buffer_updated(len(client.get_buffer(-1)))
    assert len(client.get_buffer(-1)) == 256 << 10
