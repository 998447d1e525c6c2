"""Asks a far end which chunks its device holds; nothing is stored or sent there."""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Final

from agents.chunks import ChunkName
from agents.errors import LinkLost, ProjectError
from agents.link_frames import OFFERED_CHUNKS, Frame, Kind
from agents.link_stream import LinkStream
from supervisor.link.dialing import Call
from supervisor.link.job import LinkJob, WorkerJob
from supervisor.link.outbox import Outbox

_ANSWER_S: Final = 10.0
"""For one part of the question, over the slowest link."""


class HeldProbe:
    """One question over one short link; it goes to idle devices, and to serving ones too."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    async def __call__(
        self, job: LinkJob, worker: WorkerJob, chunks: Sequence[tuple[ChunkName, int]]
    ) -> set[ChunkName]:
        """Those of ``chunks``, given with their sizes, that the device holds.

        Raises:
            ProjectError: It cannot be reached, refuses, or does not answer.
        """
        question = _Question(job, worker)
        try:
            return await question.asked(self._context, chunks)
        finally:
            question.end(LinkLost("the question was answered"))


class _Question:
    def __init__(self, job: LinkJob, worker: WorkerJob) -> None:
        self._worker = worker
        self._link = LinkStream(self._on_frame, self.end)
        self._call = Call(self._link, job, worker)
        self._out = Outbox(self._link, job.window_bytes, None, lambda: None)
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def asked(
        self, context: ssl.SSLContext, chunks: Sequence[tuple[ChunkName, int]]
    ) -> set[ChunkName]:
        await self._call.admitted(context)
        for start in range(0, len(chunks), OFFERED_CHUNKS):
            await self._part(chunks[start : start + OFFERED_CHUNKS])
        return self._out.held

    async def _part(self, chunks: Sequence[tuple[ChunkName, int]]) -> None:
        asking = asyncio.ensure_future(self._out.ask(chunks))
        try:
            await asyncio.wait(
                {asking, self._lost}, timeout=_ANSWER_S, return_when=asyncio.FIRST_COMPLETED
            )
            if self._lost.done():
                self._lost.result()
            if not asking.done():
                raise LinkLost(
                    f"{self._worker.name} did not say within {_ANSWER_S:g} s which weights it has"
                )
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def _on_frame(self, frame: Frame) -> None:
        if frame.kind is Kind.HELD:
            self._out.on_held(bytes(frame.body))
        elif not self._call.hears(frame):
            raise LinkLost(f"{frame.kind.name} is no answer to a question")

    def end(self, error: ProjectError) -> None:
        """Whatever waits does not any more."""
        self._link.end(error)
        self._call.end(error)
        self._out.close()
        if not self._lost.done():
            self._lost.set_exception(error)
            self._lost.exception()  # nobody may be waiting any more
