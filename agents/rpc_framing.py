"""Reads both directions of one RPC connection from pieces of any size. Does no I/O itself.

Feed what a socket gave, get events. Small messages come whole; tensor data, graphs and answers from
``Limits.stream_from_bytes`` on come as a begin, pieces and an end. Pieces are views of what was
fed, never copies: use them before that memory is used again. ``wire_bytes`` of every event in order
is what was fed.

Guaranteed while ``passthrough`` is ``None``: the first request is HELLO, and the only one of that
kind; every length is one that the command, or the request that it answers, allows, and is checked
before anything of the body is kept; answers come in the order of their requests, and none unasked;
no more than one small message (``stream_from_bytes`` and some 300 bytes, or 3260) is kept, whatever
a peer claims. What breaks this raises ``RpcFraming``: nothing of that call is returned, the parser
takes nothing any more, and the connection should be cut. A graph whose number of tensors is wrong
is found out after its node ids were handed on.

With ``passthrough``, which says why, a direction has given up reading: ``Raw`` pieces hold every
byte from there on, in order, nothing is kept, and nothing is checked or limited. It begins

* with a HELLO, or an answer to it, of a length that we do not know (up to ``MAX_HELLO_BYTES``);
* after an answer to HELLO with a version that we do not know, or with capabilities on both sides:
  what follows may belong to another transport (RDMA);
* with the first byte of a command that the version does not have.

It holds for both directions and never ends. Answers to requests that were read before it are still
matched and checked; nobody may answer a request in a server's place after it. An rpc-server that
does not know the version or command either closes the connection.
"""

import struct
from collections import deque
from dataclasses import dataclass
from typing import Final

from agents.rpc_commands import (
    COUNT_BYTES,
    DEFAULT_LIMITS,
    GRAPH_HEAD_BYTES,
    HELLO_REPLY_OF,
    MAX_HELLO_BYTES,
    NODE_BYTES,
    Generation,
    GraphSize,
    Limits,
    Rule,
    TensorData,
    asked_bytes,
    command_name,
    generation_of,
    out_of_turn,
    wrong_length,
)
from agents.rpc_events import (
    Piece,
    Request,
    RequestBegin,
    RequestEvent,
    Response,
    ResponseBegin,
    ResponseEvent,
)
from agents.rpc_intake import Parser
from agents.rpc_protocol import CAPABILITIES_BYTES, Command, Triple, decode_hello_reply
from agents.rpc_tensors import TENSOR_BYTES

_HEADER: Final = struct.Struct("<BQ")
_LENGTH: Final = struct.Struct("<Q")


class RequestParser(Parser[Request | RequestBegin]):
    """Requests of one connection, from its HELLO on.

    After the HELLO it must be told the version by ``learn`` before anything else is fed: clients
    wait for that answer, too. A parser that learns before any HELLO begins behind one.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self.generation: Generation | None = None
        self._hello_bytes: int | None = None
        self._rule = Rule("", 0)

    def learn(self, triple: Triple) -> None:
        """The server's version, from its answer to HELLO; an unknown one is passed through."""
        major_form = CAPABILITIES_BYTES if triple.major >= 4 else 0
        form = major_form if self._hello_bytes is None else self._hello_bytes
        self.generation = generation_of(triple, form)
        if self.generation is None:
            self.pass_through(unknown_version(triple))

    def pass_through(self, reason: str) -> None:
        """Stop reading. Only between messages, which is where the answer to HELLO comes."""
        self._give_up(reason, None)

    def _read_start(self) -> bool:
        header = self._intake.take(_HEADER.size)
        command = self._intake.first if header is None else header[0]
        if command is None:
            return False
        if not self._is_known(command):
            # At the first byte: whether a length follows is no longer ours to know.
            consumed = self._intake.take_kept() if header is None else header
            return self._give_up(f"unknown {command_name(command)}", consumed)
        if header is None:
            return False
        self._command, self._body_bytes = _HEADER.unpack(header)
        return self._begin_hello(header) if self.generation is None else self._begin()

    def _is_known(self, command: int) -> bool:
        if self.generation is not None:
            if command == Command.HELLO:
                raise out_of_turn("HELLO", "HELLO came a second time")
            return command in self.generation.rules
        if self._hello_bytes is None and command == Command.HELLO:
            return True
        name = command_name(command)
        is_first = self._hello_bytes is None
        when = "first, where only HELLO may" if is_first else "before HELLO was answered"
        raise out_of_turn(name, f"{name} came {when}")

    def _begin_hello(self, header: bytes | memoryview) -> bool:
        if self._body_bytes > MAX_HELLO_BYTES:
            allowed = f"0 or {CAPABILITIES_BYTES}"
            raise wrong_length("HELLO", self._body_bytes, allowed, "any known version")
        if self._body_bytes not in HELLO_REPLY_OF:
            return self._give_up(f"HELLO of {self._body_bytes} bytes", header)
        self._hello_bytes = self._body_bytes
        self._rule = Rule("HELLO", self._body_bytes, HELLO_REPLY_OF[self._body_bytes])
        self._stage = self._read_body
        return True

    def _begin(self) -> bool:
        assert self.generation is not None
        self._rule = self.generation.check_length(self._command, self._body_bytes, self.limits)
        more_bytes = self._body_bytes - self._rule.body_bytes
        if not self._rule.step_bytes or more_bytes < self.limits.stream_from_bytes:
            self._stage = self._read_body
        elif self._command == Command.SET_TENSOR:
            self._stage = self._read_tensor_head
        else:
            self._stage = self._read_graph_head
        return True

    def _read_body(self) -> bool:
        part = self._intake.take(self._body_bytes)
        if part is None:
            return False
        body = bytes(part)
        self._events.append(Request(self._command, body, self._reply_bytes(body)))
        self._stage = self._read_start
        return True

    def _reply_bytes(self, body: bytes) -> int | None:
        """Length of the answer to a small request; check what only its body shows."""
        if self._command == Command.GET_TENSOR:
            return asked_bytes(body, self.limits)
        if self._command == Command.GRAPH_COMPUTE:
            size = GraphSize.read(body, len(body))
            size.check_count(len(body), body[size.count_at : size.count_at + COUNT_BYTES])
        return self._rule.reply_bytes

    def _read_tensor_head(self) -> bool:
        part = self._intake.take(self._rule.body_bytes)
        if part is None:
            return False
        assert self.generation is not None
        about = TensorData.read(part, self._body_bytes, self.generation)
        self._begin_large(part, about)
        return self._stream(about.data_bytes, self._end)

    def _read_graph_head(self) -> bool:
        part = self._intake.take(GRAPH_HEAD_BYTES)
        if part is None:
            return False
        size = GraphSize.read(part, self._body_bytes)
        self._begin_large(part, size)
        return self._stream(NODE_BYTES * size.nodes, lambda: self._read_tensor_count(size))

    def _begin_large(self, part: bytes | memoryview, about: TensorData | GraphSize) -> None:
        reply_bytes = self._rule.reply_bytes
        begin = RequestBegin(self._command, self._body_bytes, bytes(part), about, reply_bytes)
        self._events.append(begin)

    def _read_tensor_count(self, size: GraphSize) -> bool:
        count = self._intake.take(COUNT_BYTES)
        if count is None:
            return False
        size.check_count(self._body_bytes, count)
        self._events.append(Piece(memoryview(count)))
        return self._stream(TENSOR_BYTES * size.tensors, self._end)


@dataclass(frozen=True, slots=True)
class _Expected:
    command: int
    body_bytes: int
    offers_transport: bool


class ResponseParser(Parser[Response | ResponseBegin]):
    """Answers of one connection, matched in order with what was asked."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(limits)
        self.triple: Triple | None = None
        self._expected: deque[_Expected] = deque()

    @property
    def outstanding(self) -> int:
        """Answers that have not come, or not completely."""
        return len(self._expected)

    def expect(self, request: Request | RequestBegin) -> None:
        """Note the answer of a request that goes to the server, if it has one.

        Raises:
            RpcFraming: ``max_outstanding`` answers are expected already.
        """
        if request.reply_bytes is None:
            return
        if self.outstanding >= self.limits.max_outstanding:
            name = command_name(request.command)
            raise out_of_turn(name, f"{name} came while {self.outstanding} answers are outstanding")
        # Capabilities are all zero unless RDMA is offered.
        offers = (
            request.command == Command.HELLO and isinstance(request, Request) and any(request.body)
        )
        self._expected.append(_Expected(request.command, request.reply_bytes, offers))

    def pass_through(self, reason: str) -> None:
        """Stop reading after the answers that are still expected."""
        self.passthrough = self.passthrough or reason

    def _read_start(self) -> bool:
        if not self._expected:
            return self._read_unasked()
        prefix = self._intake.take(_LENGTH.size)
        if prefix is None:
            return False
        (self._body_bytes,) = _LENGTH.unpack(prefix)
        self._command = self._expected[0].command
        if self._body_bytes != self._expected[0].body_bytes:
            return self._begin_other(prefix)
        if self._command == Command.GET_TENSOR and self._is_large:
            self._events.append(ResponseBegin(self._command, self._body_bytes))
            return self._stream(self._body_bytes, self._end)
        self._stage = self._read_body
        return True

    @property
    def _is_large(self) -> bool:
        return self._body_bytes >= self.limits.stream_from_bytes

    def _read_unasked(self) -> bool:
        if self.passthrough is not None:
            return self._give_up(self.passthrough, None)
        if self._intake.first is not None:
            raise out_of_turn("answer", "the server answered something that nobody asked")
        return False

    def _begin_other(self, prefix: bytes | memoryview) -> bool:
        """An answer of a length that was not asked for: a HELLO of the future, or an error."""
        name, allowed = command_name(self._command), str(self._expected[0].body_bytes)
        if self._command != Command.HELLO or self._body_bytes > MAX_HELLO_BYTES:
            raise wrong_length(f"answer to {name}", self._body_bytes, allowed, "the one asked for")
        self._expected.popleft()
        return self._give_up(f"answer to HELLO of {self._body_bytes} bytes", prefix)

    def _read_body(self) -> bool:
        part = self._intake.take(self._body_bytes)
        if part is None:
            return False
        body = bytes(part)
        self._events.append(Response(self._command, body))
        if self._command == Command.HELLO:
            self._greet(body)
        return self._finish()

    def _end(self) -> bool:
        super()._end()
        return self._finish()

    def _finish(self) -> bool:
        self._expected.popleft()
        self._stage = self._read_start
        return True

    def _greet(self, body: bytes) -> None:
        hello_bytes = 0 if len(body) == HELLO_REPLY_OF[0] else CAPABILITIES_BYTES
        self.triple = decode_hello_reply(body)
        if generation_of(self.triple, hello_bytes) is None:
            self.pass_through(unknown_version(self.triple))
        elif self._expected[0].offers_transport and any(body[-CAPABILITIES_BYTES:]):
            self.pass_through("both ends offer a transport other than TCP")


def unknown_version(triple: Triple) -> str:
    """Reason to pass a connection through."""
    return f"unknown RPC {triple}"


class Conversation:
    """Both directions of a connection that somebody else has, in the order in which bytes travel.

    An end that answers some requests itself has two conversations to follow, and uses
    ``RequestParser`` and ``ResponseParser`` apart.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.requests = RequestParser(limits)
        self.responses = ResponseParser(limits)

    @property
    def passthrough(self) -> str | None:
        """Why it is not read any more, ``None`` while it is."""
        return self.requests.passthrough

    def feed_requests(self, data: bytes | memoryview) -> list[RequestEvent]:
        """Bytes of the client, before they are passed on.

        Raises:
            RpcFraming: See the module.
        """
        events = self.requests.feed(data)
        for event in events:
            if isinstance(event, (Request, RequestBegin)):
                self.responses.expect(event)
        if self.requests.passthrough is not None:
            self.responses.pass_through(self.requests.passthrough)
        return events

    def feed_responses(self, data: bytes | memoryview) -> list[ResponseEvent]:
        """Bytes of the server, before they are passed on.

        Raises:
            RpcFraming: See the module.
        """
        events = self.responses.feed(data)
        if self.requests.generation is None and self.requests.passthrough is None:
            if self.responses.passthrough is not None:
                self.requests.pass_through(self.responses.passthrough)
            elif self.responses.triple is not None:
                self.requests.learn(self.responses.triple)
        return events
