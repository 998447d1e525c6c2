"""Commands of the RPC protocol by generation: which lengths are allowed, and how long answers are.

Nothing is read or kept here; ``rpc_framing`` applies these tables to the bytes of a connection.

Source:
    llama.cpp ``ggml/src/ggml-rpc/ggml-rpc.cpp`` (structs, ``rpc_serve_client``) of RPC 3.6 and
    7.0.0; its history for what lies between.
"""

import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Final, Self

from agents.errors import RpcFraming
from agents.rpc_protocol import (
    CAPABILITIES_BYTES,
    HELLO_REPLY_BYTES,
    OLD_HELLO_REPLY_BYTES,
    Command,
    DeviceMemory,
    Triple,
)
from agents.rpc_tensors import MAX_SOURCES, TENSOR_BYTES

# Commands that we only pass on; those that we send ourselves are in ``Command``.
SET_TENSOR_HASH: Final = 7
INIT_TENSOR: Final = 12
MEMSET_TENSOR: Final = 17

HELLO_REPLY_OF: Final = {0: OLD_HELLO_REPLY_BYTES, CAPABILITIES_BYTES: HELLO_REPLY_BYTES}
"""Length of the answer by length of the HELLO: until 3.x, and since 4.0."""

MAX_HELLO_BYTES: Final = 256
"""Of a HELLO or its answer in a form that we do not know; such a connection is passed through."""

GRAPH_HEAD_BYTES: Final = 8
NODE_BYTES: Final = 8
COUNT_BYTES: Final = 4
_GRAPH_BYTES: Final = GRAPH_HEAD_BYTES + COUNT_BYTES

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_PAIR = struct.Struct("<QQ")
_GRAPH_HEAD = struct.Struct("<II")
_TENSOR_START = struct.Struct("<8xIQ4I")
_ADDRESS_AT: Final = 220
_ASKED_SIZE_AT: Final = TENSOR_BYTES + _U64.size


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection may ask of us. None of it is ever kept."""

    stream_from_bytes: int = 64 << 10
    """Data, graphs and answers from this size on are handed on in pieces; smaller ones whole."""
    max_data_bytes: int = 64 << 30
    """Of one SET_TENSOR or GET_TENSOR."""
    max_graph_bytes: int = 256 << 20
    """Of the body of one GRAPH_COMPUTE; a node takes about 300 bytes."""
    max_outstanding: int = 1024
    """Requests whose answers have not come; llama-server waits for each one."""

    def __post_init__(self) -> None:
        if min(astuple(self)) < 1:
            raise ValueError(f"{self}: every limit must be positive")


DEFAULT_LIMITS: Final = Limits()


@dataclass(frozen=True, slots=True)
class Rule:
    """One command of one generation."""

    name: str
    body_bytes: int
    """Of the request; the least if ``step_bytes``."""
    reply_bytes: int | None = None
    """Of the answer; ``None``: there is none, or GET_TENSOR, which names the size itself."""
    step_bytes: int = 0
    """The body may be longer by any multiple of this; 0: it may not."""


@dataclass(frozen=True, slots=True)
class Generation:
    """Versions that share one set of rules; HELLO is none of them, since it may come only once."""

    name: str
    hello_bytes: int
    rules: Mapping[int, Rule]

    @property
    def has_cache_flag(self) -> bool:
        """SET_TENSOR carries a byte that allows the server to cache the data."""
        return self.rules[Command.SET_TENSOR].body_bytes > TENSOR_BYTES + _U64.size

    def check_length(self, command: int, claimed_bytes: int, limits: Limits) -> Rule:
        """Rule of a known command, if a request of it may be that long.

        Raises:
            RpcFraming: It may not.
        """
        rule = self.rules[command]
        if claimed_bytes == rule.body_bytes:
            return rule
        most_bytes = _most_bytes(command, rule, limits)
        if (
            not rule.body_bytes < claimed_bytes <= most_bytes
            or (claimed_bytes - rule.body_bytes) % rule.step_bytes
        ):
            allowed = _allowed_text(rule, most_bytes)
            raise wrong_length(rule.name, claimed_bytes, allowed, f"RPC {self.name}")
        return rule


def _most_bytes(command: int, rule: Rule, limits: Limits) -> int:
    if not rule.step_bytes:
        return rule.body_bytes
    if command == Command.SET_TENSOR:
        return rule.body_bytes + limits.max_data_bytes
    return limits.max_graph_bytes


def _allowed_text(rule: Rule, most_bytes: int) -> str:
    if not rule.step_bytes:
        return str(rule.body_bytes)
    steps = f" in steps of {rule.step_bytes}" if rule.step_bytes > 1 else ""
    return f"{rule.body_bytes} to {most_bytes}{steps}"


_3_0: Final[Mapping[int, Rule]] = {
    Command.ALLOC_BUFFER: Rule("ALLOC_BUFFER", 12, 16),
    Command.GET_ALIGNMENT: Rule("GET_ALIGNMENT", 4, 8),
    Command.GET_MAX_SIZE: Rule("GET_MAX_SIZE", 4, 8),
    Command.BUFFER_GET_BASE: Rule("BUFFER_GET_BASE", 8, 8),
    Command.FREE_BUFFER: Rule("FREE_BUFFER", 8, 0),
    Command.BUFFER_CLEAR: Rule("BUFFER_CLEAR", 9, 0),
    Command.SET_TENSOR: Rule("SET_TENSOR", TENSOR_BYTES + 8, step_bytes=1),
    SET_TENSOR_HASH: Rule("SET_TENSOR_HASH", TENSOR_BYTES + 16, 1),
    Command.GET_TENSOR: Rule("GET_TENSOR", TENSOR_BYTES + 16),
    Command.COPY_TENSOR: Rule("COPY_TENSOR", 2 * TENSOR_BYTES, 1),
    # Nodes and tensors are multiples of 8 bytes; their numbers are checked once they are read.
    Command.GRAPH_COMPUTE: Rule("GRAPH_COMPUTE", _GRAPH_BYTES, 1, step_bytes=8),
    Command.GET_DEVICE_MEMORY: Rule("GET_DEVICE_MEMORY", 4, 16),
    INIT_TENSOR: Rule("INIT_TENSOR", TENSOR_BYTES, 0),
    Command.GET_ALLOC_SIZE: Rule("GET_ALLOC_SIZE", 4 + TENSOR_BYTES, 8),
    Command.DEVICE_COUNT: Rule("DEVICE_COUNT", 0, 4),
}
_3_5: Final = {
    **_3_0,
    Command.GRAPH_COMPUTE: Rule("GRAPH_COMPUTE", _GRAPH_BYTES, step_bytes=8),
    Command.GRAPH_RECOMPUTE: Rule("GRAPH_RECOMPUTE", 4),
}
_3_6: Final = {
    **_3_5,
    Command.GET_ALLOC_SIZE: Rule("GET_ALLOC_SIZE", 4 + (1 + MAX_SOURCES) * TENSOR_BYTES, 8),
}
_5_0: Final = {**_3_6, MEMSET_TENSOR: Rule("MEMSET_TENSOR", TENSOR_BYTES + 17, 0)}
_6_0: Final = {
    **_5_0,
    Command.FREE_BUFFER: Rule("FREE_BUFFER", 8),
    Command.BUFFER_CLEAR: Rule("BUFFER_CLEAR", 9),
    INIT_TENSOR: Rule("INIT_TENSOR", TENSOR_BYTES),
    MEMSET_TENSOR: Rule("MEMSET_TENSOR", TENSOR_BYTES + 17),
}
_7_0: Final = {**_6_0, Command.SET_TENSOR: Rule("SET_TENSOR", TENSOR_BYTES + 9, step_bytes=1)}

GENERATIONS: Final[Mapping[tuple[int, int], Generation]] = {
    (3, 0): Generation("3.0", 0, _3_0),
    (3, 5): Generation("3.5", 0, _3_5),
    (3, 6): Generation("3.6", 0, _3_6),
    (4, 0): Generation("4.0", CAPABILITIES_BYTES, _3_6),
    (5, 0): Generation("5.0", CAPABILITIES_BYTES, _5_0),
    # As 5.0: only the meaning of the last four bytes of a tensor differs.
    (5, 1): Generation("5.1", CAPABILITIES_BYTES, _5_0),
    (6, 0): Generation("6.0", CAPABILITIES_BYTES, _6_0),
    (7, 0): Generation("7.0", CAPABILITIES_BYTES, _7_0),
}
"""By major and minor version. 3.1 to 3.4 were never published."""

_NAMES: Final = {number: rule.name for number, rule in _7_0.items()} | {
    int(Command.HELLO): Command.HELLO.name
}


def command_name(command: int) -> str:
    """``GET_TENSOR``, or ``command 99`` if we know no such number."""
    return _NAMES.get(command, f"command {command}")


def wrong_length(command: str, claimed_bytes: int, allowed: str, what: str) -> RpcFraming:
    """Error of a length that ``what`` cannot have."""
    return RpcFraming(
        f"{command} claims {claimed_bytes} bytes, {what} has {allowed}; the connection is cut: "
        "install one build of llama.cpp on all devices",
        command,
        claimed_bytes=claimed_bytes,
        allowed=allowed,
    )


def out_of_turn(command: str, what: str) -> RpcFraming:
    """Error of a message that may not come now."""
    return RpcFraming(f"{what}; the connection is cut: see who connects to this rpc port", command)


def generation_of(triple: Triple, hello_bytes: int) -> Generation | None:
    """Rules of a version that was agreed on with a HELLO of that length, ``None`` if unknown.

    Any patch number will do: it counts changes of operations, and llama.cpp's own clients accept
    every patch (``negotiate_hello``).
    """
    generation = GENERATIONS.get((triple.major, triple.minor))
    return generation if generation and generation.hello_bytes == hello_bytes else None


@dataclass(frozen=True, slots=True)
class TensorData:
    """What a SET_TENSOR says before its data."""

    type_id: int
    shape: tuple[int, int, int, int]
    buffer: int
    address: int
    """Where the tensor begins, in the server's own terms; its data goes ``offset_bytes`` on."""
    offset_bytes: int
    data_bytes: int
    is_cacheable: bool
    """The client asked by hash before and allows the server to keep the data; always false before
    7.0."""

    @classmethod
    def read(cls, body: bytes | memoryview, body_bytes: int, generation: Generation) -> Self:
        """Read the head of a body of ``body_bytes``, of which at least the head is given."""
        type_id, buffer, *shape = _TENSOR_START.unpack_from(body)
        head_bytes = generation.rules[Command.SET_TENSOR].body_bytes
        return cls(
            type_id=type_id,
            shape=(shape[0], shape[1], shape[2], shape[3]),
            buffer=buffer,
            address=_U64.unpack_from(body, _ADDRESS_AT)[0],
            offset_bytes=_U64.unpack_from(body, head_bytes - _U64.size)[0],
            data_bytes=body_bytes - head_bytes,
            is_cacheable=generation.has_cache_flag and bool(body[TENSOR_BYTES]),
        )


@dataclass(frozen=True, slots=True)
class GraphSize:
    """What a GRAPH_COMPUTE says before its nodes, and what follows from its length."""

    device: int
    nodes: int
    tensors: int

    @property
    def count_at(self) -> int:
        """Where in the body the number of tensors stands."""
        return GRAPH_HEAD_BYTES + NODE_BYTES * self.nodes

    @classmethod
    def read(cls, body: bytes | memoryview, body_bytes: int) -> Self:
        """Read the head of a body of ``body_bytes``, of which at least 8 are given.

        Raises:
            RpcFraming: No number of tensors makes a body of that length.
        """
        device, nodes = _GRAPH_HEAD.unpack_from(body)
        fixed_bytes = _GRAPH_BYTES + NODE_BYTES * nodes
        tensors, over = divmod(body_bytes - fixed_bytes, TENSOR_BYTES)
        if tensors < 0 or over:
            allowed = f"{fixed_bytes} plus a multiple of {TENSOR_BYTES}"
            raise wrong_length("GRAPH_COMPUTE", body_bytes, allowed, f"a graph of {nodes} nodes")
        return cls(device, nodes, tensors)

    def check_count(self, body_bytes: int, count: bytes | memoryview) -> None:
        """Compare the number of tensors that is sent with the one that fits.

        Raises:
            RpcFraming: They differ.
        """
        (tensors,) = _U32.unpack(count)
        if tensors != self.tensors:
            allowed_bytes = body_bytes + (tensors - self.tensors) * TENSOR_BYTES
            what = f"a graph of {self.nodes} nodes and {tensors} tensors"
            raise wrong_length("GRAPH_COMPUTE", body_bytes, str(allowed_bytes), what)


def asked_bytes(body: bytes, limits: Limits) -> int:
    """Length of the answer that a GET_TENSOR asks for.

    Raises:
        RpcFraming: It is over ``max_data_bytes``.
    """
    (size_bytes,) = _U64.unpack_from(body, _ASKED_SIZE_AT)
    if size_bytes > limits.max_data_bytes:
        allowed = f"0 to {limits.max_data_bytes}"
        raise wrong_length("answer to GET_TENSOR", size_bytes, allowed, "one answer")
    return int(size_bytes)


# -- answers that are given in a server's place, as they travel -----------------------------------


def encode_response(body: bytes) -> bytes:
    """One response as it travels."""
    return _U64.pack(len(body)) + body


def hello_answer(triple: Triple) -> bytes:
    """To a HELLO of the form that belongs to the version, without any capability."""
    numbers = bytes((triple.major, triple.minor, triple.patch))
    is_old = triple.major < 4
    return encode_response(numbers if is_old else numbers.ljust(HELLO_REPLY_BYTES, b"\0"))


def device_count_answer(count: int) -> bytes:
    """To DEVICE_COUNT."""
    return encode_response(_U32.pack(count))


def memory_answer(memory: DeviceMemory) -> bytes:
    """To GET_DEVICE_MEMORY."""
    return encode_response(_PAIR.pack(memory.free_bytes, memory.total_bytes))


def size_answer(size_bytes: int) -> bytes:
    """To GET_ALIGNMENT, GET_MAX_SIZE or GET_ALLOC_SIZE."""
    return encode_response(_U64.pack(size_bytes))


def hash_answer(*, is_known: bool) -> bytes:
    """To SET_TENSOR_HASH; if known, the client does not send the data."""
    return encode_response(bytes((is_known,)))
