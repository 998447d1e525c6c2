"""Sends a worker its planned weights without any launch, for one that is to come."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import replace

from agents.chunks import ChunkName
from agents.errors import LinkLost, LinkRefused, ProjectError
from agents.link_frames import (
    Frame,
    Kind,
    read_stored,
)
from agents.link_stream import LinkStream
from agents.pacing import Pace
from supervisor.link.dialing import Call
from supervisor.link.job import DONE, LOST, SERVING, LinkJob, LinkStats, WorkerJob
from supervisor.link.model_chunks import ModelChunks
from supervisor.link.outbox import Outbox
from supervisor.link.seeding import Seeder

log = logging.getLogger(__name__)


class Push:
    """One worker's share of a model, on its way to the store there."""

    def __init__(
        self,
        job: LinkJob,
        worker: WorkerJob,
        context: ssl.SSLContext,
        chunks: ModelChunks,
        on_change: Callable[[], None],
        pace: Pace | None = None,
    ) -> None:
        """``pace`` is shared by all pushes of this process."""
        self._worker = worker
        self._context = context
        self._on_change = on_change
        self._link = LinkStream(self._on_frame, self._on_link_end, self._on_link_room)
        self._call = Call(self._link, job, worker)
        self._out = Outbox(self._link, job.window_bytes, chunks, lambda: None)
        self.seeder = Seeder(self._out, chunks, worker.tensors, pace)
        self.stored: list[ChunkName] = []
        """What has been stored since somebody emptied this list."""
        self._state = LinkStats(worker.agent_id)
        self._working: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Be admitted, and begin.

        Raises:
            ProjectError: Why not, after at most ``connect_s`` seconds.
        """
        welcome = await self._call.admitted(self._context)
        if not welcome.stores:
            raise LinkRefused(
                f"{self._worker.name} keeps no weights; start its agent without --store-gib 0"
            )
        self._state = replace(self._state, state=SERVING)
        self._working = asyncio.create_task(self._work())
        self._on_change()

    async def _work(self) -> None:
        try:
            await self.seeder.run()
        except ProjectError as exc:
            self._link.end(exc)
            return
        except Exception as exc:
            log.exception("push.bug")
            self._link.end(LinkLost(f"internal error: {exc!r}; please report it"))
            return
        if self._out.refuses_seeds:
            self._link.end(
                LinkRefused(
                    f"the store of {self._worker.name} is full; raise --store-gib of its agent, "
                    "or free its disk"
                )
            )
        elif self.seeder.done_bytes < self.seeder.total_bytes:
            self._link.end(
                LinkLost(
                    f"{self.seeder.done_bytes} of {self.seeder.total_bytes} bytes were there or "
                    "sent, as the model's file changed or cannot be read; push it again"
                )
            )
        elif self._state.state == SERVING:
            self._state = replace(self.stats(), state=DONE)
            self._on_change()

    def close(self, error: ProjectError | None = None) -> None:
        """End it; what has arrived stays there."""
        self._link.end(error or LinkLost("stopped"))

    @property
    def is_used(self) -> bool:
        """Nobody but the supervisor wants a push."""
        return False

    def stats(self) -> LinkStats:
        """As of now."""
        if self._state.state in (LOST, DONE):
            return self._state
        return replace(
            self._state,
            round_trip_s=self._link.round_trip_s,
            phase="push",
            seed_total_bytes=self.seeder.total_bytes,
            seed_done_bytes=self.seeder.done_bytes,
            seeded_bytes=self._out.seeded_bytes,
            peer_bytes=self.seeder.peer_bytes,
            sent_bytes=self._link.sent_bytes,
            received_bytes=self._link.received_bytes,
        )

    def _on_link_room(self) -> None:
        self._out.advance()

    def _on_link_end(self, error: ProjectError) -> None:
        if self._working is not None:
            self._working.cancel()
        self._out.close()
        self._call.end(error)
        if self._state.state != DONE:
            named = f"{self._worker.name}: {error}"
            self._state = replace(self.stats(), state=LOST, error_code=error.code, detail=named)
        self._on_change()

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.HELD:
                self._out.on_held(bytes(frame.body))
            case Kind.STORED:
                name, is_stored = read_stored(frame.body)
                self._out.on_stored(name, is_stored=is_stored)
                self.stored += [name] if is_stored else []
            case _ if self._call.hears(frame):
                pass
            case _:
                raise LinkLost(f"{frame.kind.name} is not for a push")
