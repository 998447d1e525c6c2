"""Requests and answers of every version of the RPC protocol, and ways to cut them in pieces.

The lengths are typed in from the reference, not taken from the code under test.
"""

import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import pytest

from agents.rpc_commands import Limits
from agents.rpc_events import RequestEvent, ResponseEvent, wire_bytes
from agents.rpc_framing import Conversation
from agents.rpc_protocol import Triple, hello_request, old_hello_request
from agents.rpc_tensors import LAYOUTS, RemoteTensor, pack_graph, pack_tensor

SEVEN = Triple(7, 0, 0)
TENSOR = RemoteTensor(5, 8, (64, 3, 2), 68, 34, buffer=7, address=1 << 40, operation=29)
T = pack_tensor(TENSOR, LAYOUTS[SEVEN])
HUGE = 2**64 - 1
HASH, INIT, MEMSET = 7, 12, 17
ASKED = -1

# Request and answer bytes as in the reference; None: no answer. SET_TENSOR: its head.
THREE = {
    0: (12, 16),
    1: (4, 8),
    2: (4, 8),
    3: (8, 8),
    4: (8, 0),
    5: (9, 0),
    6: (304, None),
    HASH: (312, 1),
    8: (312, ASKED),
    9: (592, 1),
    10: (12, 1),
    11: (4, 16),
    INIT: (296, 0),
    13: (300, 8),
    15: (0, 4),
}
THREE_FIVE = THREE | {10: (12, None), 16: (4, None)}
THREE_SIX = THREE_FIVE | {13: (3260, 8)}
FIVE = THREE_SIX | {MEMSET: (313, 0)}
SIX = FIVE | {4: (8, None), 5: (9, None), INIT: (296, None), MEMSET: (313, None)}
SEVENTH = SIX | {6: (305, None)}
VERSIONS = {
    Triple(3, 0, 0): THREE,
    Triple(3, 5, 0): THREE_FIVE,
    Triple(3, 6, 0): THREE_SIX,
    Triple(3, 6, 1): THREE_SIX,
    Triple(4, 0, 0): THREE_SIX,
    Triple(4, 0, 3): THREE_SIX,
    Triple(5, 0, 0): FIVE,
    Triple(5, 1, 0): FIVE,
    Triple(6, 0, 0): SIX,
    Triple(7, 0, 0): SEVENTH,
    Triple(7, 0, 9): SEVENTH,
}
every_version = pytest.mark.parametrize("triple", VERSIONS, ids=str)

Cut = Callable[[bytes], Iterable[bytes]]


class Exchange(NamedTuple):
    command: int
    body: bytes
    reply: bytes | None


def framed(command: int, body: bytes) -> bytes:
    return struct.pack("<BQ", command, len(body)) + body


def reply(body: bytes) -> bytes:
    return struct.pack("<Q", len(body)) + body


def pattern(size: int, seed: int = 1) -> bytes:
    return bytes((seed * 31 + i) & 0xFF for i in range(size))


def hello_of(triple: Triple) -> bytes:
    return hello_request() if triple.major >= 4 else old_hello_request()


def hello_reply_of(triple: Triple, capabilities: bytes = bytes(24)) -> bytes:
    numbers = bytes([triple.major, triple.minor, triple.patch])
    return reply(numbers + b"\0" + capabilities if triple.major >= 4 else numbers)


def graph(nodes: int, tensors: int) -> bytes:
    return pack_graph(2, range(1, nodes + 1), [TENSOR] * tensors, LAYOUTS[SEVEN])


def get_tensor(size: int) -> bytes:
    return T + struct.pack("<QQ", 3, size)


def exchange(triple: Triple, command: int, size: int = 100) -> Exchange:
    """A valid request and its answer; ``size`` is that of what may be of any size."""
    body_bytes, reply_bytes = VERSIONS[triple][command]
    body = pattern(body_bytes, command)
    if command == 6:
        flag = b"\1" if triple.major >= 7 else b""
        body = T + flag + struct.pack("<Q", 11) + pattern(size)
    elif command == 8:
        return Exchange(command, get_tensor(size), pattern(size, 8))
    elif command == 10:
        body = graph(size % 7, size // 296)
    return Exchange(command, body, None if reply_bytes is None else pattern(reply_bytes, 3))


def greeted(triple: Triple = SEVEN, limits: Limits | None = None) -> Conversation:
    made = Conversation(limits) if limits else Conversation()
    made.feed_requests(hello_of(triple))
    made.feed_responses(hello_reply_of(triple))
    assert made.passthrough is None
    return made


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def single_bytes(data: bytes) -> Iterator[bytes]:
    yield from (data[i : i + 1] for i in range(len(data)))


def pieces_of(sizes: Sequence[int]) -> Cut:
    def cut(data: bytes) -> Iterator[bytes]:
        start = 0
        for size in itertools.cycle(sizes):
            if start >= len(data):
                return
            yield data[start : start + size]
            start += size

    return cut


def joined(events: Iterable[RequestEvent | ResponseEvent]) -> bytes:
    return b"".join(wire_bytes(event) for event in events)
