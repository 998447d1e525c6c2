"""The near end of one link: an rpc-server to llama-server, on loopback.

It answers what was learned once, so that llama-server's many short connections end here. The first
client that wants more gets the one connection to the real rpc-server, and keeps it.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from agents import ports
from agents.contract import read
from agents.errors import LinkLost, LinkRefused, ProjectError
from agents.link_frames import (
    LINK_PROTOCOL,
    Frame,
    Kind,
    Refused,
    Welcome,
    pack_open,
    read_base,
    read_json,
    read_need,
    read_number,
    read_numbered,
    read_shut,
    read_stored,
)
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
from supervisor.link.alloc_sizes import AllocSizes
from supervisor.link.chunk_refs import HashQuestion
from supervisor.link.dialing import dial
from supervisor.link.job import LOST, SERVING, LinkJob, LinkStats, WorkerJob
from supervisor.link.known_tensors import KnownTensors
from supervisor.link.local_client import LocalClient
from supervisor.link.meter import Meter
from supervisor.link.model_chunks import ModelChunks
from supervisor.link.outbox import Outbox, Shut
from supervisor.link.questions import FREE_OF_STATE, Answers
from supervisor.link.seeding import Seeder
from supervisor.link.weights import WeightSender

log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
MOST_CLIENTS: Final = 64
"""llama-server has a few at a time; the oldest idle ones make room."""
_HELD_BYTES: Final = 64 << 10
_RETRY_S: Final = 0.25
_HOLD_S: Final = 0.0005


class NearEnd:
    """One worker as llama-server sees it."""

    def __init__(
        self,
        job: LinkJob,
        worker: WorkerJob,
        context: ssl.SSLContext,
        chunks: ModelChunks | None,
        sizes: AllocSizes | None,
        on_change: Callable[[], None],
    ) -> None:
        """``chunks`` are the model's, if it is here; workers of one kind share ``sizes``."""
        self._sizes = sizes
        self._job = job
        self._worker = worker
        self._context = context
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._reservation = ports.reserve(LOOPBACK)
        self._listener = ports.listen(LOOPBACK, self._reservation.port, "a near end")
        self._server: asyncio.Server | None = None
        self._welcomed: asyncio.Future[Welcome] = self._loop.create_future()
        self._answers: Answers | None = None
        self._chunks = chunks
        self._seeding: asyncio.Task[None] | None = None
        self._seeder: Seeder | None = None
        self._link = LinkStream(self._on_frame, self._on_link_end, self._on_link_room)
        self._out = Outbox(self._link, job.window_bytes, chunks, self._on_stream_room)
        self._weights = WeightSender(self._out, KnownTensors(Path(job.folder) / "tensors"))
        self._clients: dict[LocalClient, None] = {}
        self._owner: LocalClient | None = None
        self._channel = 0
        self._bases: dict[int, int] = {}
        """Of the rpc-server's buffers, by handle."""
        self._is_open = self._is_clean = False
        self._hash_asking: asyncio.Task[None] | None = None
        self._flushing: asyncio.TimerHandle | None = None
        self._state = LinkStats(worker.agent_id, port=self._reservation.port)
        self._meter = Meter()

    # -- making the link -------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for llama-server, dial the far end, be admitted.

        Raises:
            ProjectError: Why not, after at most ``connect_s`` seconds.
        """
        self._server = await self._loop.create_server(
            lambda: LocalClient(self), sock=self._listener
        )
        try:
            async with asyncio.timeout(self._job.connect_s):
                await dial(self._link, self._job, self._worker, self._context)
                welcome = await self._welcomed
        except TimeoutError:
            raise LinkLost(
                f"the far end of {self._worker.name} at {self._worker.where} did not admit launch "
                f"{self._job.launch} within {self._job.connect_s:g} s"
            ) from None
        self._answers = Answers.of(welcome, self._sizes)
        self._weights.stores = self._worker.stores and welcome.stores
        if self._weights.stores and self._chunks is not None and self._worker.tensors:
            self._seeding = asyncio.create_task(self._seed(self._chunks))
        self._state = replace(self._state, state=SERVING, rpc_protocol=welcome.rpc_protocol)
        self._on_change()

    def close(self) -> None:
        """End the link and everything that hangs on it."""
        if self._server is not None:
            self._server.close()
        else:
            self._listener.close()
        self._end_tasks()
        self._link.end(LinkLost("stopped"))
        for client in list(self._clients):
            client.cut()
        self._reservation.release()

    def _end_tasks(self) -> None:
        for task in (self._seeding, self._hash_asking):
            if task is not None:
                task.cancel()
        self._out.close()

    async def _seed(self, chunks: ModelChunks) -> None:
        """Send ahead; whatever goes wrong with that, llama-server sends what is missing."""
        self._seeder = Seeder(self._out, chunks, self._worker.tensors)
        try:
            await self._seeder.run()
        except ProjectError as exc:
            log.warning("link.not_seeded", extra={"device": self._worker.name, "reason": str(exc)})

    def _on_link_end(self, error: ProjectError) -> None:
        """llama-server must not wait for a link that is gone: it fails at once when cut off."""
        self._end_tasks()
        if not self._welcomed.done():
            self._welcomed.set_exception(
                error if isinstance(error, LinkRefused) else LinkLost(self._sentence(error))
            )
            self._welcomed.exception()
        if self._state.state != LOST:
            self._state = replace(
                self.stats(), state=LOST, error_code=error.code, detail=self._sentence(error)
            )
        for client in list(self._clients):
            client.cut()
        self._on_change()

    def _sentence(self, error: ProjectError) -> str:
        phase, last = self._phase, self._meter.last_command or "none yet"
        return (
            f"the link to {self._worker.name} was lost in phase {phase}: {error} "
            f"(last command: {last})"
        )

    @property
    def is_used(self) -> bool:
        """llama-server is connected."""
        return bool(self._clients)

    # -- what llama-server says ------------------------------------------------------------

    def on_client_made(self, client: LocalClient) -> None:
        """A new connection; the oldest of too many that say nothing is cut."""
        self._clients[client] = None
        if len(self._clients) > MOST_CLIENTS:
            oldest = next(c for c in self._clients if c is not self._owner)
            oldest.cut()
        if self._state.state == LOST:
            client.cut()

    def on_client_gone(self, client: LocalClient) -> None:
        """It hung up; so does the rpc-server, unless nothing of the client is left there."""
        self._clients.pop(client, None)
        if client is not self._owner:
            return
        self._owner = None
        self._meter.stop_waiting()
        self._weights.forget()
        if not (self._is_open and self._is_clean and not client.responses.outstanding):
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
        if self._answers is None:
            client.cut()  # nobody may come before the link is made
            return
        if self._answers.generation is None:
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
        assert self._answers is not None
        if request.command == Command.HELLO:
            client.requests.learn(self._answers.triple)
            client.write(self._answers.hello())
            return True
        if client.responses.outstanding:
            return False
        answer = self._answers.find(request) or self._base(client, request)
        if answer is not None:
            client.write(answer)
        return answer is not None

    def _base(self, client: LocalClient, request: Request) -> bytes | None:
        if request.command != Command.BUFFER_GET_BASE or client is not self._owner:
            return None
        base = self._bases.get(int.from_bytes(request.body, "little"))
        return None if base is None else size_answer(base)

    # -- the one connection to the rpc-server ----------------------------------------------

    def _claim(self, client: LocalClient, event: RequestEvent) -> bool:
        """Give the rpc-server to ``client``, if nobody has it."""
        if self._owner is not None or (self._is_open and not self._is_clean):
            return False
        is_greeted = not isinstance(event, Raw) or client.requests.generation is not None
        if self._is_open and not is_greeted:
            self._shut()
            return False
        self._owner = client
        if not self._is_open:
            self._is_open = True
            self._channel += 1
            self._meter.begin()
            self._bases.clear()
            self._weights.is_over = False
            self._link.send(Kind.OPEN, pack_open(self._channel, greets=is_greeted))
        self._is_clean = is_greeted
        return True

    def _shut(self) -> None:
        """The far end hangs up as well, and says so when it has; nobody wants answers any more."""
        if self._is_open:
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
            self._bases.pop(int.from_bytes(event.body, "little"), None)
        self._meter.sends(event)
        if event.reply_bytes is not None:
            client.responses.expect(event)
            client.asked.append(kept)

    # -- tensors that llama-server asks about by hash -----------------------------------------

    def _answer_hash(self, client: LocalClient, question: HashQuestion) -> None:
        """The rpc-server keeps nothing, but the far end may; then llama-server sends nothing."""
        assert self._answers is not None
        assert self._answers.generation is not None
        self._is_clean = False
        has_cache_flag = self._answers.generation.has_cache_flag
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

    def _on_link_room(self) -> None:
        self._out.advance()

    def _on_stream_room(self) -> None:
        if self._owner is not None and self._hash_asking is None:
            self._owner.resume()

    # -- what the far end says -------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.ANSWER:
                self._on_answer(*read_numbered(frame.body, frame.kind))
            case Kind.NEED:
                self._out.on_need(read_need(frame.body))
            case Kind.BASE:
                handle, base = read_base(frame.body)
                self._bases[handle] = base
            case Kind.DONE:
                self._out.on_done(read_number(frame.body, frame.kind))
            case Kind.HELD:
                self._out.on_held(bytes(frame.body))
            case Kind.STORED:
                name, is_stored = read_stored(frame.body)
                self._out.on_stored(name, is_stored=is_stored)
            case Kind.SHUT:
                self._on_shut(*read_shut(frame.body))
            case Kind.WELCOME:
                self._hear_welcome(read(Welcome, read_json(frame.body)))
            case Kind.REFUSED:
                refused = read(Refused, read_json(frame.body))
                self._link.end(LinkRefused(f"{self._worker.name}: {refused.detail}"))
            case _:
                raise LinkLost(f"{frame.kind.name} is not for a near end")

    def _hear_welcome(self, welcome: Welcome) -> None:
        if welcome.protocol != LINK_PROTOCOL:
            raise LinkRefused(
                f"{self._worker.name} speaks link protocol {welcome.protocol}, we "
                f"{LINK_PROTOCOL}; update the older one"
            )
        if not self._welcomed.done():
            self._welcomed.set_result(welcome)

    def _on_answer(self, took_us: int, data: memoryview) -> None:
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
                    assert self._answers is not None
                    self._answers.learn(question, int.from_bytes(event.body, "little"))

    def _on_shut(self, channel: int, reason: str) -> None:
        """The rpc-server hung up, by itself or because we asked."""
        if channel != self._channel:
            return
        self._is_open = False
        owner, self._owner = self._owner, None
        if owner is not None and owner.has_ended:
            owner.finish()
        elif owner is not None:
            log.warning("rpc_server.hung_up", extra={"device": self._worker.name, "reason": reason})
            self._state = replace(self._state, detail=self._sentence(LinkLost(reason)))
            owner.finish()
            self._on_change()
        self._serve_next()

    # -- seen ------------------------------------------------------------------------------

    @property
    def _phase(self) -> str:
        is_waiting = self._owner is not None and self._owner.responses.outstanding > 0
        return self._meter.phase(is_open=self._is_open, is_waiting=is_waiting)

    def stats(self) -> LinkStats:
        """As of now."""
        link = self._link
        if self._state.state == LOST:
            return self._state
        return replace(
            self._state,
            round_trip_s=link.round_trip_s,
            phase=self._phase,
            waiting_s=self._meter.waiting_s,
            sent_bytes=link.sent_bytes,
            received_bytes=link.received_bytes,
            graphs=self._meter.graphs,
            clients=len(self._clients),
            last_command=self._meter.last_command,
            weight_bytes=self._weights.whole_bytes + self._out.weight_bytes,
            saved_bytes=self._out.saved_bytes,
            seeded_bytes=self._out.seeded_bytes,
            seed_done_bytes=self._seeder.done_bytes if self._seeder else 0,
            seed_total_bytes=self._seeder.total_bytes if self._seeder else 0,
            answers=self._meter.answers,
            answered_s=self._meter.answered_s,
            computed_s=self._meter.computed_s,
        )


def _kept(event: RequestEvent) -> RequestEvent:
    """A copy that does not depend on the receive buffer."""
    match event:
        case Piece(data):
            return Piece(memoryview(bytes(data)))
        case Raw(data):
            return Raw(memoryview(bytes(data)))
        case _:
            return event
