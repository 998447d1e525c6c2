"""Frames of the link: what near end and far end say to each other inside TLS. Does no I/O.

A frame is ``u8 kind, u32 length, body``, little-endian; each kind has its longest body, which is
checked before anything of the body is kept.

The near end speaks first: HELLO, answered by WELCOME or REFUSED. Then one *channel* at a time, a
connection to the rpc-server, carries the bytes of one client. In it, data of weights may stand as
REF, the name of a chunk, which the far end replaces by the chunk: from its own stock, or from what
the near end sends when it is told NEED. DONE gives back the room that such data takes.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, NamedTuple

from agents.chunks import CHUNK_BYTES, NAME_BYTES, ChunkName
from agents.errors import LinkFraming

LINK_PROTOCOL: Final = 1
"""Raised when an old peer could misread a frame."""

DATA_BYTES: Final = 256 << 10
"""Of RPC bytes in one frame; more is sent as several."""
OFFERED_CHUNKS: Final = 1024
"""In one OFFER."""
WANTED_CHUNKS: Final = 64
"""In one WANT, and wanted by one peer at once."""
_JSON_BYTES: Final = 64 << 10
_HEADER: Final = struct.Struct("<BI")
HEADER_BYTES: Final = _HEADER.size
_U32: Final = struct.Struct("<I")
_REF: Final = struct.Struct(f"<I{NAME_BYTES}s")
_BEAT: Final = struct.Struct("<QQQ")
_OPEN: Final = struct.Struct("<I?")
_BASE: Final = struct.Struct("<QQ")


MEASURING: Final = -1
"""In place of a launch: only to measure the wire. An agent that does not know it refuses."""


class Kind(IntEnum):
    """What a frame is; the comment tells who sends it, and its body."""

    HELLO = 1  # near: JSON
    WELCOME = 2  # far: JSON
    REFUSED = 3  # far: JSON, then the link ends
    BEAT = 4  # both: own time, time of the peer's last one, how long ago that came
    OPEN = 5  # near: channel, whether the far end says HELLO to the rpc-server itself
    SHUT = 6  # both: channel, text why; nothing more comes in that direction
    DATA = 7  # near: bytes of requests
    ANSWER = 8  # far: microseconds that the rpc-server took, bytes of answers
    REF = 9  # near: size and name of a chunk, in place of its bytes
    NEED = 10  # far: serial numbers of the refs whose chunks it lacks
    BODY = 11  # near: serial number of a ref, the chunk
    DONE = 12  # far: how many refs were handed to the rpc-server and stored, in all
    OFFER = 13  # near: sizes and names of chunks that could be sent
    HELD = 14  # far: one byte for each offered chunk, 1 if it is here
    SEED = 15  # near: name and bytes of a chunk to store
    STORED = 16  # far: name of a chunk that was sent as a seed, and whether it is here now
    BASE = 17  # far: handle and base address of a buffer, before the ANSWER that tells the handle
    ECHO = 18  # near: a number and bytes to be thrown away; far: the number
    WANT = 19  # another device: names of chunks that it wants, see peer_chunks.py
    CHUNK = 20  # far, to another device: name and bytes of a chunk
    LACKS = 21  # far, to another device: name of a chunk that is not here


_MOST_BYTES: Final[Mapping[int, int]] = {
    Kind.HELLO: _JSON_BYTES,
    Kind.WELCOME: _JSON_BYTES,
    Kind.REFUSED: _JSON_BYTES,
    Kind.BEAT: _BEAT.size,
    Kind.OPEN: _OPEN.size,
    Kind.SHUT: _U32.size + 4096,
    Kind.DATA: DATA_BYTES,
    Kind.ANSWER: _U32.size + DATA_BYTES,
    Kind.REF: _REF.size,
    Kind.NEED: _U32.size * OFFERED_CHUNKS,
    Kind.BODY: _U32.size + CHUNK_BYTES,
    Kind.DONE: _U32.size,
    Kind.OFFER: _REF.size * OFFERED_CHUNKS,
    Kind.HELD: OFFERED_CHUNKS,
    Kind.SEED: NAME_BYTES + CHUNK_BYTES,
    Kind.STORED: NAME_BYTES + 1,
    Kind.BASE: _BASE.size,
    Kind.ECHO: _U32.size + DATA_BYTES,
    Kind.WANT: NAME_BYTES * WANTED_CHUNKS,
    Kind.CHUNK: NAME_BYTES + CHUNK_BYTES,
    Kind.LACKS: NAME_BYTES,
}
MOST_FRAME_BYTES: Final = HEADER_BYTES + max(_MOST_BYTES.values())


class Frame(NamedTuple):
    """One frame; ``body`` is a view into the receive buffer, good until the next read."""

    kind: Kind
    body: memoryview


def read_frame(data: memoryview) -> Frame | None:
    """The frame at the start of ``data``, ``None`` if it is not complete.

    Raises:
        LinkFraming: No such kind, or too long for its kind.
    """
    if len(data) < HEADER_BYTES:
        return None
    kind, size_bytes = _HEADER.unpack_from(data)
    most_bytes = _MOST_BYTES.get(kind)
    if most_bytes is None:
        raise LinkFraming(f"frame of kind {kind}, which nobody sends; update both ends of the link")
    if size_bytes > most_bytes:
        raise LinkFraming(
            f"frame {Kind(kind).name} claims {size_bytes} bytes, at most {most_bytes} are allowed"
        )
    if len(data) < HEADER_BYTES + size_bytes:
        return None
    return Frame(Kind(kind), data[HEADER_BYTES : HEADER_BYTES + size_bytes])


def header(kind: Kind, size_bytes: int) -> bytes:
    """What precedes a body of ``size_bytes``."""
    return _HEADER.pack(kind, size_bytes)


# -- bodies ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """What the near end wants. ``launch`` 0: only to fill the store; ``MEASURING``: only that."""

    launch: int
    main_host: str
    silence_s: float
    window_bytes: int
    protocol: int = LINK_PROTOCOL


@dataclass(frozen=True, slots=True)
class OfferedDevice:
    """One ggml device as the near end describes it to llama-server; memory is the agent's word."""

    free_bytes: int
    total_bytes: int
    alignment: int
    max_buffer_bytes: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the far end has. Without a launch there is no rpc-server, and no version of it."""

    rpc_protocol: str = ""
    devices: list[OfferedDevice] = field(default_factory=list)
    stored_chunks: int = 0
    stores: bool = True
    """It keeps chunks; else names of them are of no use."""
    protocol: int = LINK_PROTOCOL


@dataclass(frozen=True, slots=True)
class Refused:
    """Why not, as an error code of ours and a sentence."""

    code: str
    detail: str


def pack_json(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode()


def read_json(body: memoryview) -> dict[str, Any]:
    """The object of a HELLO, WELCOME or REFUSED.

    Raises:
        LinkFraming: It is none.
    """
    try:
        found = json.loads(bytes(body))
    except (ValueError, RecursionError) as exc:
        raise LinkFraming(f"a message that is not JSON ({exc}); update both ends") from exc
    if not isinstance(found, dict):
        raise LinkFraming(f"a message that is no JSON object but {type(found).__name__}")
    return found


def pack_beat(own_ns: int, peer_ns: int, held_ns: int) -> bytes:
    return _BEAT.pack(own_ns, peer_ns, held_ns)


def read_beat(body: memoryview) -> tuple[int, int, int]:
    return _BEAT.unpack(_exact(body, _BEAT, Kind.BEAT))


def pack_open(channel: int, *, greets: bool) -> bytes:
    return _OPEN.pack(channel, greets)


def read_open(body: memoryview) -> tuple[int, bool]:
    return _OPEN.unpack(_exact(body, _OPEN, Kind.OPEN))


def pack_shut(channel: int, reason: str = "") -> bytes:
    return _U32.pack(channel) + reason.encode()[:4000]


def read_shut(body: memoryview) -> tuple[int, str]:
    channel, rest = read_numbered(body, Kind.SHUT)
    return channel, bytes(rest).decode(errors="replace")


def pack_number(number: int) -> bytes:
    """Body of DONE; what BODY and ANSWER begin with."""
    return _U32.pack(number)


def read_number(body: memoryview, kind: Kind) -> int:
    return int(_U32.unpack(_exact(body, _U32, kind))[0])


def read_numbered(body: memoryview, kind: Kind) -> tuple[int, memoryview]:
    """Number and rest of a BODY, ANSWER or SHUT."""
    if len(body) < _U32.size:
        raise LinkFraming(f"frame {kind.name} of {len(body)} bytes is too short")
    return _U32.unpack_from(body)[0], body[_U32.size :]


def pack_ref(name: ChunkName, size_bytes: int) -> bytes:
    return _REF.pack(size_bytes, name)


def read_ref(body: memoryview) -> tuple[ChunkName, int]:
    """Name and size of a REF.

    Raises:
        LinkFraming: It is no possible chunk.
    """
    size_bytes, name = _REF.unpack(_exact(body, _REF, Kind.REF))
    if not 0 < size_bytes <= CHUNK_BYTES:
        raise LinkFraming(f"a chunk of {size_bytes} bytes; from 1 to {CHUNK_BYTES} are allowed")
    return ChunkName(name), size_bytes


def pack_offer(chunks: Iterable[tuple[ChunkName, int]]) -> bytes:
    return b"".join(_REF.pack(size_bytes, name) for name, size_bytes in chunks)


def read_offer(body: memoryview) -> list[ChunkName]:
    if len(body) % _REF.size:
        raise LinkFraming(f"an OFFER of {len(body)} bytes, no multiple of {_REF.size}")
    return [ChunkName(name) for _, name in _REF.iter_unpack(body)]


def pack_need(serials: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(serials)}I", *serials)


def read_need(body: memoryview) -> list[int]:
    if len(body) % _U32.size:
        raise LinkFraming(f"a NEED of {len(body)} bytes, no multiple of {_U32.size}")
    return [serial for (serial,) in _U32.iter_unpack(body)]


def read_seed(body: memoryview) -> tuple[ChunkName, memoryview]:
    if len(body) <= NAME_BYTES:
        raise LinkFraming(f"a SEED of {len(body)} bytes holds no chunk")
    return ChunkName(bytes(body[:NAME_BYTES])), body[NAME_BYTES:]


def read_names(body: memoryview) -> list[ChunkName]:
    """The names of a WANT or LACKS."""
    if not body or len(body) % NAME_BYTES:
        raise LinkFraming(f"{len(body)} bytes of names, no multiple of {NAME_BYTES}")
    return [ChunkName(bytes(body[at : at + NAME_BYTES])) for at in range(0, len(body), NAME_BYTES)]


def pack_stored(name: ChunkName, *, is_stored: bool) -> bytes:
    return name + bytes((is_stored,))


def read_stored(body: memoryview) -> tuple[ChunkName, bool]:
    if len(body) != NAME_BYTES + 1:
        raise LinkFraming(f"a STORED of {len(body)} bytes, {NAME_BYTES + 1} belong there")
    return ChunkName(bytes(body[:NAME_BYTES])), bool(body[NAME_BYTES])


def pack_base(handle: int, base: int) -> bytes:
    return _BASE.pack(handle, base)


def read_base(body: memoryview) -> tuple[int, int]:
    return _BASE.unpack(_exact(body, _BASE, Kind.BASE))


def _exact(body: memoryview, layout: struct.Struct, kind: Kind) -> memoryview:
    if len(body) != layout.size:
        raise LinkFraming(f"frame {kind.name} of {len(body)} bytes, {layout.size} belong there")
    return body
