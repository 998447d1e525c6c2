"""llama-server's connections to one near end: who is answered here, and who has the rpc-server.

What was learned once is answered here, so that llama-server's many short connections end here. The
first client that wants more gets the one connection to the real rpc-server, and keeps it.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from agents.link_frames import Kind, pack_open
from agents.link_stream import LinkStream
from agents.rpc_commands import SET_TENSOR_HASH, TensorData, size_answer
from agents.rpc_events import (
    End,
    Piece,
    Raw,
    Request,
    RequestBegin,
    RequestEvent,
    Response,
    wire_bytes,
)
from agents.rpc_protocol import Command
from agents.rpc_tensors import TENSOR_BYTES
from supervisor.link.chunk_refs import HashQuestion
from supervisor.link.local_client import LocalClient
from supervisor.link.meter import Meter
from supervisor.link.outbox import Outbox, Shut
from supervisor.link.questions import FREE_OF_STATE, Answers
from supervisor.link.weights import WeightSender

MOST_CLIENTS: Final = 64
"""llama-server has a few at a time; the oldest idle ones make room."""
_HELD_BYTES: Final = 64 << 10
_HOLD_S: Final = 0.0005
"""A request that nobody waits for may wait this long for the question that follows it."""


class Reception:
    """The clients of one near end."""

    def __init__(
        self,
        link: LinkStream,
        out: Outbox,
        weights: WeightSender,
        meter: Meter,
        on_hung_up: Callable[[str], None],
    ) -> None:
        """``on_hung_up`` hears why the rpc-server left its client, before that client does."""
        self._link = link
        self._out = out
        self._weights = weights
        self._meter = meter
        self._on_hung_up = on_hung_up
        self._loop = asyncio.get_running_loop()
        self._clients: dict[LocalClient, None] = {}
        self._owner: LocalClient | None = None
        self._channel = 0
        self._is_clean = False
        self._hash_asking: asyncio.Task[None] | None = None
        self._flushing: asyncio.TimerHandle | None = None
        self.answers: Answers | None = None
        """``None`` until the far end has told; nobody may come before."""
        self.is_open = False
        """There is a connection to the rpc-server."""
        self.bases: dict[int, int] = {}
        """Of the rpc-server's buffers, by handle."""

    @property
    def count(self) -> int:
        """Clients that are connected."""
        return len(self._clients)

    @property
    def is_waiting(self) -> bool:
        """Whoever has the rpc-server waits for an answer of it."""
        return self._owner is not None and self._owner.responses.outstanding > 0

    def connect(self) -> LocalClient:
        """A new client, for asyncio."""
        return LocalClient(self)

    def cut_all(self) -> None:
        """End every connection at once."""
        if self._hash_asking is not None:
            self._hash_asking.cancel()
        for client in list(self._clients):
            client.cut()

    # -- what llama-server says ------------------------------------------------------------

    def on_client_made(self, client: LocalClient) -> None:
        """A new connection; the oldest of too many that say nothing is cut."""
        self._clients[client] = None
        if len(self._clients) > MOST_CLIENTS:
            oldest = next(c for c in self._clients if c is not self._owner)
            oldest.cut()
        if self._link.is_over:
            client.cut()

    def on_client_gone(self, client: LocalClient) -> None:
        """It hung up; so does the rpc-server, unless nothing of the client is left there."""
        self._clients.pop(client, None)
        if client is not self._owner:
            return
        self._owner = None
        self._meter.stop_waiting()
        self._weights.forget()
        if not (self.is_open and self._is_clean and not client.responses.outstanding):
            self._shut()
        self._serve_next()

    def on_client_eof(self, client: LocalClient) -> bool:
        """The rpc-server hears of it after everything that was said before."""
        if client is not self._owner:
            return bool(client.held)
        if self._is_clean and not client.responses.outstanding:
            return False  # nothing of it is left at the rpc-server, which the next one gets
        self._is_clean = False
        client.has_ended = True
        self._out.emit(Shut(self._channel))
        self._flush(client)
        return True

    def on_client_room(self, client: LocalClient) -> None:
        """It takes answers again."""
        if client is self._owner:
            self._link.resume_reading()

    def on_client_data(self, client: LocalClient, data: memoryview) -> None:
        """Bytes of one connection."""
        if self.answers is None:
            client.cut()  # nobody may come before the link is made
            return
        if self.answers.generation is None:
            client.is_raw = True
        if client.is_raw:
            self._on_event(client, Raw(data))
        else:
            for event in client.requests.feed(data):
                self._on_event(client, event)
        if self._is_only_preparing(client):
            self._flushing = self._flushing or self._loop.call_later(_HOLD_S, self._flush_late)
        else:
            self._flush(client)

    def _is_only_preparing(self, client: LocalClient) -> bool:
        """Nothing of it is waited for yet: the question that follows at once can travel with it.

        llama-server sends inputs, graph and question one by one; together they are one frame.
        """
        return (
            client is self._owner
            and not client.responses.outstanding
            and not client.is_raw
            and self._out.waiting_bytes < _HELD_BYTES
            and not self._out.has_refs
        )

    def _flush_late(self) -> None:
        self._flushing = None
        if self._owner is not None:
            self._flush(self._owner)

    def _on_event(self, client: LocalClient, event: RequestEvent) -> None:
        if client.held:
            client.held.append(_kept(event))
        elif isinstance(event, Request) and self._answer(client, event):
            pass
        elif client is self._owner or self._claim(client, event):
            self._forward(client, event)
        else:
            client.held.append(_kept(event))
            client.pause()

    def _answer(self, client: LocalClient, request: Request) -> bool:
        """Answer in the rpc-server's place, if no answer of it could come after ours."""
        assert self.answers is not None
        if request.command == Command.HELLO:
            client.requests.learn(self.answers.triple)
            client.write(self.answers.hello())
            return True
        if client.responses.outstanding:
            return False
        answer = self.answers.find(request) or self._base(client, request)
        if answer is not None:
            client.write(answer)
        return answer is not None

    def _base(self, client: LocalClient, request: Request) -> bytes | None:
        """Once per buffer, as llama-server asks; who asks again wants the rpc-server's word."""
        if request.command != Command.BUFFER_GET_BASE or client is not self._owner:
            return None
        base = self.bases.pop(int.from_bytes(request.body, "little"), None)
        return None if base is None else size_answer(base)

    # -- the one connection to the rpc-server ----------------------------------------------

    def _claim(self, client: LocalClient, event: RequestEvent) -> bool:
        """Give the rpc-server to ``client``, if nobody has it."""
        if self._owner is not None or (self.is_open and not self._is_clean):
            return False
        is_greeted = not isinstance(event, Raw) or client.requests.generation is not None
        if self.is_open and not is_greeted:
            self._shut()
            return False
        self._owner = client
        if not self.is_open:
            self.is_open = True
            self._channel += 1
            self._meter.begin()
            self.bases.clear()
            self._weights.is_over = False
            self._link.send(Kind.OPEN, pack_open(self._channel, greets=is_greeted))
        self._is_clean = is_greeted
        return True

    def _shut(self) -> None:
        """The far end hangs up as well, and says so when it has; nobody wants answers any more."""
        if self.is_open:
            self._is_clean = False
            self._out.drop()
            self._out.emit(Shut(self._channel))
            self._out.advance()

    def _serve_next(self) -> None:
        """Whoever waited longest for the rpc-server goes on."""
        for client in list(self._clients):
            if client.held and (self._owner in (None, client)):
                held, client.held = client.held, []
                for event in held:
                    self._on_event(client, event)
                if not client.held:
                    client.resume()
                    self._flush(client)

    def _forward(self, client: LocalClient, event: RequestEvent) -> None:
        match event:
            case Request():
                self._forward_request(client, event)
            case RequestBegin():
                self._note(client, event, None)
                self._out.emit(bytes(wire_bytes(event)))
                if isinstance(event.about, TensorData):
                    self._weights.begin(event.about)
            case Piece(data):
                self._weights.feed(data)
            case Raw(data):
                self._is_clean = False
                if client.requests.passthrough is not None:
                    client.responses.pass_through(client.requests.passthrough)
                self._out.emit_pieces(data)
            case End():
                self._weights.end()

    def _forward_request(self, client: LocalClient, request: Request) -> None:
        if request.command == SET_TENSOR_HASH and self._weights.takes_hashes:
            self._answer_hash(client, HashQuestion.read(request.body))
            return
        if request.command == Command.SET_TENSOR:
            self._weights.count_small(len(request.body) - TENSOR_BYTES)
        is_question = request.command == Command.GET_ALLOC_SIZE
        self._note(client, request, request if is_question else None)
        self._out.emit(bytes(wire_bytes(request)))

    def _note(
        self, client: LocalClient, event: Request | RequestBegin, kept: Request | None
    ) -> None:
        if event.command not in FREE_OF_STATE:
            self._is_clean = False
        self._weights.is_over |= event.command == Command.GRAPH_COMPUTE
        if event.command == Command.FREE_BUFFER and isinstance(event, Request):
            self.bases.pop(int.from_bytes(event.body, "little"), None)
        self._meter.sends(event)
        if event.reply_bytes is not None:
            client.responses.expect(event)
            client.asked.append(kept)

    # -- tensors that llama-server asks about by hash -----------------------------------------

    def _answer_hash(self, client: LocalClient, question: HashQuestion) -> None:
        """The rpc-server keeps nothing, but the far end may; then llama-server sends nothing."""
        assert self.answers is not None
        assert self.answers.generation is not None
        self._is_clean = False
        has_cache_flag = self.answers.generation.has_cache_flag
        if (is_known := self._weights.is_known(question)) is not None:
            client.write(self._weights.answer(question, has_cache_flag, is_known=is_known))
        else:
            self._hash_asking = asyncio.create_task(
                self._ask_hash(client, question, has_cache_flag)
            )

    async def _ask_hash(
        self, client: LocalClient, question: HashQuestion, has_cache_flag: bool
    ) -> None:
        """llama-server waits meanwhile; a round trip is less than what it would send."""
        try:
            is_known = await self._weights.ask(question)
        finally:
            self._hash_asking = None
        if client is self._owner:
            client.write(self._weights.answer(question, has_cache_flag, is_known=is_known))
            self._flush(client)

    # -- towards the far end ---------------------------------------------------------------

    def _flush(self, client: LocalClient) -> None:
        """Send what the client made us emit; what cannot go yet stops the client."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        self._out.advance()
        if self._out.is_waiting and client is self._owner:
            client.pause()

    def on_stream_room(self) -> None:
        """The far end takes more."""
        if self._owner is not None and self._hash_asking is None:
            self._owner.resume()

    # -- what the rpc-server says -----------------------------------------------------------

    def on_answer(self, took_us: int, data: memoryview) -> None:
        """The rpc-server answers whoever has it."""
        owner = self._owner
        if owner is None:
            return
        self._meter.hears(took_us / 1e6)
        if not owner.is_raw:
            self._learn_from(owner, data)
        owner.write(bytes(data))
        if owner.is_full:
            self._link.pause_reading()

    def _learn_from(self, owner: LocalClient, data: memoryview) -> None:
        for event in owner.responses.feed(data):
            if isinstance(event, (Response, End)):
                question = owner.asked.popleft()
                if question is not None and isinstance(event, Response):
                    assert self.answers is not None
                    self.answers.learn(question, int.from_bytes(event.body, "little"))

    def on_shut(self, channel: int, reason: str) -> None:
        """The rpc-server hung up, by itself or because we asked."""
        if channel != self._channel:
            return
        self.is_open = False
        self._out.drop()
        self._weights.forget()
        owner, self._owner = self._owner, None
        if owner is not None and owner.has_ended:
            owner.finish()
        elif owner is not None:
            self._on_hung_up(reason)
            owner.finish()
        self._serve_next()


def _kept(event: RequestEvent) -> RequestEvent:
    """A copy that does not depend on the receive buffer."""
    match event:
        case Piece(data):
            return Piece(memoryview(bytes(data)))
        case Raw(data):
            return Raw(memoryview(bytes(data)))
        case _:
            return event
