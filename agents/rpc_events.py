"""What the parsers of an RPC connection give, and how each of it travels."""

import struct
from dataclasses import dataclass
from typing import Final

from agents.rpc_commands import GraphSize, TensorData

_HEADER: Final = struct.Struct("<BQ")
_LENGTH: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Request:
    """A small request, whole."""

    command: int
    body: bytes
    reply_bytes: int | None
    """Length of its answer; ``None``: it is never answered."""


@dataclass(frozen=True, slots=True)
class RequestBegin:
    """A large request; ``Piece`` events with the rest of its body and an ``End`` follow."""

    command: int
    body_bytes: int
    head: bytes
    """The first bytes of the body, as they travel; ``about`` is what they say."""
    about: TensorData | GraphSize
    reply_bytes: int | None


@dataclass(frozen=True, slots=True)
class Response:
    """A small answer, whole, and the command that it answers."""

    command: int
    body: bytes


@dataclass(frozen=True, slots=True)
class ResponseBegin:
    """A large answer to GET_TENSOR; ``Piece`` events and an ``End`` follow."""

    command: int
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the large message that has begun; never empty."""

    data: memoryview


@dataclass(frozen=True, slots=True)
class End:
    """The large message is complete."""

    command: int


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes that nobody read; never empty."""

    data: memoryview


RequestEvent = Request | RequestBegin | Piece | End | Raw
ResponseEvent = Response | ResponseBegin | Piece | End | Raw


def wire_bytes(event: RequestEvent | ResponseEvent) -> bytes | memoryview:
    """The event as it travels; of large data the very view that the event has."""
    match event:
        case Piece(data) | Raw(data):
            return data
        case Request(command, body):
            return _HEADER.pack(command, len(body)) + body
        case RequestBegin(command, body_bytes, head):
            return _HEADER.pack(command, body_bytes) + head
        case Response(_, body):
            return _LENGTH.pack(len(body)) + body
        case ResponseBegin(_, body_bytes):
            return _LENGTH.pack(body_bytes)
        case End():
            return b""
