"""The near end of one link: an rpc-server to llama-server, on loopback."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from agents import ports
from agents.errors import LinkLost, LinkRefused, ProjectError
from agents.link_frames import (
    Frame,
    Kind,
    read_base,
    read_need,
    read_number,
    read_numbered,
    read_shut,
    read_stored,
)
from agents.link_stream import LinkStream
from supervisor.link.alloc_sizes import AllocSizes
from supervisor.link.dialing import Call
from supervisor.link.job import LOST, SERVING, LinkJob, LinkStats, WorkerJob
from supervisor.link.known_tensors import KnownTensors
from supervisor.link.meter import Meter
from supervisor.link.model_chunks import ModelChunks
from supervisor.link.outbox import Outbox
from supervisor.link.questions import Answers
from supervisor.link.reception import Reception
from supervisor.link.seeding import Seeder
from supervisor.link.weights import WeightSender

log = logging.getLogger(__name__)

LOOPBACK: Final = "127.0.0.1"
_MOST_BUFFERS: Final = 1 << 16


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
        self._reservation = ports.reserve(LOOPBACK, from_top=True)
        self._listener = ports.listen(LOOPBACK, self._reservation.port, "a near end")
        self._server: asyncio.Server | None = None
        self._chunks = chunks
        self._seeding: asyncio.Task[None] | None = None
        self.seeder: Seeder | None = None
        self._link = LinkStream(self._on_frame, self._on_link_end, self._on_room)
        self._call = Call(self._link, job, worker)
        self._out = Outbox(self._link, job.window_bytes, chunks, self._on_stream_room)
        self._weights = WeightSender(self._out, KnownTensors(Path(job.folder) / "tensors"))
        self._meter = Meter()
        self._reception = Reception(
            self._link, self._out, self._weights, self._meter, self._on_hung_up
        )
        self._state = LinkStats(worker.agent_id, port=self._reservation.port)

    # -- making the link -------------------------------------------------------------------

    async def start(self) -> None:
        """Listen for llama-server, dial the far end, be admitted.

        Raises:
            ProjectError: Why not, after at most ``connect_s`` seconds.
        """
        self._server = await self._loop.create_server(self._reception.connect, sock=self._listener)
        welcome = await self._call.admitted(self._context)
        self._reception.answers = Answers.of(welcome, self._sizes)
        self._weights.stores = self._worker.stores and welcome.stores
        if self._weights.stores and self._chunks is not None and self._worker.tensors:
            self._seeding = asyncio.create_task(self._seed(self._chunks))
        if not self._link.is_over:
            self._state = replace(
                self._state,
                state=SERVING,
                rpc_protocol=welcome.rpc_protocol,
                where=self._call.where,
                note=self._call.note,
            )
        self._on_change()

    def close(self) -> None:
        """End the link and everything that hangs on it."""
        if self._server is not None:
            self._server.close()
        else:
            self._listener.close()
        self._end_tasks()
        self._link.end(LinkLost("stopped"))
        self._reception.cut_all()
        self._reservation.release()

    def _end_tasks(self) -> None:
        if self._seeding is not None:
            self._seeding.cancel()
        self._out.close()

    async def _seed(self, chunks: ModelChunks) -> None:
        """Send ahead; whatever goes wrong with that, llama-server sends what is missing."""
        self.seeder = Seeder(self._out, chunks, self._worker.tensors)
        try:
            await self.seeder.run()
        except ProjectError as exc:
            log.warning("link.not_seeded", extra={"device": self._worker.name, "reason": str(exc)})

    def _on_link_end(self, error: ProjectError) -> None:
        """llama-server must not wait for a link that is gone: it fails at once when cut off."""
        self._end_tasks()
        is_refusal = isinstance(error, LinkRefused)
        self._call.end(error if is_refusal else LinkLost(self._sentence(error)))
        if self._state.state != LOST:
            self._state = replace(
                self.stats(), state=LOST, error_code=error.code, detail=self._sentence(error)
            )
        self._reception.cut_all()
        self._on_change()

    def _sentence(self, error: ProjectError) -> str:
        phase, last = self._phase, self._meter.last_command or "none yet"
        return (
            f"the link to {self._worker.name} was lost in phase {phase}: {error} "
            f"(last command: {last})"
        )

    def _on_hung_up(self, reason: str) -> None:
        log.warning("rpc_server.hung_up", extra={"device": self._worker.name, "reason": reason})
        self._state = replace(self._state, detail=self._sentence(LinkLost(reason)))
        self._on_change()

    def _on_room(self) -> None:
        self._out.advance()

    def _on_stream_room(self) -> None:
        self._reception.on_stream_room()

    @property
    def is_used(self) -> bool:
        """llama-server is connected."""
        return self._reception.count > 0

    # -- what the far end says -------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.ANSWER:
                self._reception.on_answer(*read_numbered(frame.body, frame.kind))
            case Kind.NEED:
                self._out.on_need(read_need(frame.body))
            case Kind.BASE:
                handle, base = read_base(frame.body)
                if len(self._reception.bases) >= _MOST_BUFFERS:
                    raise LinkLost(f"the far end tells of more than {_MOST_BUFFERS} buffers")
                self._reception.bases[handle] = base
            case Kind.DONE:
                self._out.on_done(read_number(frame.body, frame.kind))
            case Kind.HELD:
                self._out.on_held(bytes(frame.body))
            case Kind.STORED:
                name, is_stored = read_stored(frame.body)
                self._out.on_stored(name, is_stored=is_stored)
            case Kind.SHUT:
                self._reception.on_shut(*read_shut(frame.body))
            case _ if self._call.hears(frame):
                pass
            case _:
                raise LinkLost(f"{frame.kind.name} is not for a near end")

    # -- seen ------------------------------------------------------------------------------

    @property
    def _phase(self) -> str:
        reception = self._reception
        return self._meter.phase(is_open=reception.is_open, is_waiting=reception.is_waiting)

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
            clients=self._reception.count,
            last_command=self._meter.last_command,
            weight_bytes=self._weights.whole_bytes + self._out.weight_bytes,
            saved_bytes=self._out.saved_bytes,
            seeded_bytes=self._out.seeded_bytes,
            seed_done_bytes=self.seeder.done_bytes if self.seeder else 0,
            seed_total_bytes=self.seeder.total_bytes if self.seeder else 0,
            peer_bytes=self.seeder.peer_bytes if self.seeder else 0,
            answers=self._meter.answers,
            answered_s=self._meter.answered_s,
            computed_s=self._meter.computed_s,
        )
