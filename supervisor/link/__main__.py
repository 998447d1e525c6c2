"""``python -m supervisor.link SOCKET``: the near ends of one launch, in a process of their own.

Whoever connects to SOCKET may give it a job, once, and hears how its links are. It goes on when
the supervisor ends, so that a launch survives a restart of it, and ends by itself when neither a
supervisor nor llama-server has been there for a while.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import ssl
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from agents import log as logs
from agents import tls
from agents.chunks import ChunkName
from agents.contract import read
from agents.errors import BadMessage, LinkLost, LinkRefused, ProjectError
from agents.pacing import Pace
from supervisor.link.alloc_sizes import AllocSizes
from supervisor.link.job import LOST, LinkJob, LinkStats, WorkerJob
from supervisor.link.model_chunks import ModelChunks
from supervisor.link.near_end import NearEnd
from supervisor.link.pushing import Push
from supervisor.link.seeding import Seeder

log = logging.getLogger(__name__)

_REPEAT_S: Final = 0.5
_ALONE_S: Final = 10.0
_LINE_BYTES: Final = 64 << 20
"""A job names every tensor for every device, with the path of its file."""
_MOST_UNHEARD_BYTES: Final = 4 << 20
"""A supervisor that leaves so much unread is stopped."""


class LinkProcess:
    """The job, its near ends, and who listens."""

    def __init__(self) -> None:
        self._near_ends: list[NearEnd | Push] = []
        self._sizes: dict[str, AllocSizes] = {}
        self._failed: list[LinkStats] = []
        self._pace = Pace()
        self._starting: asyncio.Task[None] | None = None
        self._listeners: set[asyncio.StreamWriter] = set()
        self._changed = asyncio.Event()
        self._alone_since_s = time.monotonic()
        self._has_job = self._was_heard = False
        self.over = asyncio.Event()

    async def run(self, path: Path) -> None:
        """Serve until told to stop, or alone for too long."""
        server = await asyncio.start_unix_server(self._hear, path, limit=_LINE_BYTES)
        telling = asyncio.create_task(self._tell())
        try:
            await self.over.wait()
        finally:
            telling.cancel()
            server.close()
            if self._starting is not None:
                self._starting.cancel()
            for near_end in self._near_ends:
                near_end.close()
            for writer in self._listeners:
                writer.close()
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                path.parent.rmdir()

    # -- the supervisor --------------------------------------------------------------------

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._listeners.add(writer)
        self._was_heard = True
        try:
            writer.write(self._line())
            while line := await reader.readline():
                self._obey(json.loads(line), writer)
        except (ConnectionError, ValueError, TypeError, ProjectError) as exc:
            log.warning("link.controller_lost", extra={"reason": str(exc)})
        finally:
            self._listeners.discard(writer)
            self._alone_since_s = time.monotonic()
            writer.close()

    def _obey(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if "job" in message and not self._has_job:
            self._has_job = True
            job = read(LinkJob, message["job"])
            self._pace.bytes_per_s = job.limit_bytes_per_s
            self._starting = asyncio.create_task(self._start_all(job))
        if "limit" in message:
            self._pace.bytes_per_s = message["limit"]
        if "leave" in message:
            self._leave(**message["leave"])
        if "lend" in message:
            writer.write(self._line(lent=self._lend(**message["lend"])))
        if "settle" in message:
            self._settle(**message["settle"])
        self._changed.set()  # whoever says something wants to hear how it stands

    async def _tell(self) -> None:
        """Send the state to whoever listens: when it changes, and now and then."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REPEAT_S):
                    await self._changed.wait()
            self._changed.clear()
            line = self._line(stored=self._stored())
            for writer in list(self._listeners):
                if writer.transport.get_write_buffer_size() < _MOST_UNHEARD_BYTES:
                    writer.write(line)
            if self._is_forgotten():
                log.info("link.alone", extra={"seconds": _ALONE_S})
                self.over.set()

    def _is_forgotten(self) -> bool:
        """Neither supervisor nor llama-server has been here for a while."""
        if self._listeners:
            return False
        patience_s = _ALONE_S if self._has_job or not self._was_heard else 0.0
        if any(near_end.is_used for near_end in self._near_ends):
            self._alone_since_s = time.monotonic()
        return time.monotonic() - self._alone_since_s > patience_s

    def _seeder(self, agent_id: str) -> Seeder | None:
        found = (each.seeder for each in self._near_ends if each.stats().agent_id == agent_id)
        return next(found, None)

    def _lend(self, agent_id: str, number: int, names: list[str]) -> dict[str, Any]:
        seeder = self._seeder(agent_id)
        lent = seeder.lend(_name(text) for text in names) if seeder else []
        return {"number": number, "names": [name.hex() for name in lent]}

    def _settle(self, agent_id: str, arrived: dict[str, int], back: list[str]) -> None:
        if (seeder := self._seeder(agent_id)) is not None:
            there = {_name(text): size_bytes for text, size_bytes in arrived.items()}
            seeder.settle(there, [_name(text) for text in back])

    def _leave(self, agent_id: str, reason: str) -> None:
        for each in list(self._near_ends):
            if isinstance(each, Push) and each.stats().agent_id == agent_id:
                each.close(LinkRefused(reason))

    def _stored(self) -> dict[str, list[str]]:
        """What has been stored since the last time, by device."""
        found = {}
        for each in self._near_ends:
            if isinstance(each, Push) and each.stored:
                found[each.stats().agent_id] = [name.hex() for name in each.stored]
                each.stored.clear()
        return found

    def _line(self, **more: Any) -> bytes:
        links = [asdict(near_end.stats()) for near_end in self._near_ends]
        links += [asdict(stats) for stats in self._failed]
        said = {"pid": os.getpid(), "links": links, **more}
        return json.dumps(said).encode() + b"\n"

    # -- the job ---------------------------------------------------------------------------

    async def _start_all(self, job: LinkJob) -> None:
        """Nothing that goes wrong may leave the supervisor waiting."""
        try:
            await self._start(job)
        except (OSError, ValueError) as exc:
            for worker in job.workers:
                self._fail(worker.agent_id, LinkLost(f"the links cannot be made: {exc}"))

    async def _start(self, job: LinkJob) -> None:
        context = tls.client_context(
            Path(job.authority).read_text(), Path(job.certificate), Path(job.key)
        )
        chunks = await asyncio.to_thread(_model_chunks, job)
        pairs = []
        for worker in job.workers:
            try:
                near_end = self._make(job, worker, context, chunks)
            except ProjectError as exc:
                self._fail(worker.agent_id, exc)
                continue
            self._near_ends.append(near_end)
            pairs.append((worker, near_end))
        await asyncio.gather(*(self._start_one(each.agent_id, near) for each, near in pairs))

    def _make(
        self,
        job: LinkJob,
        worker: WorkerJob,
        context: ssl.SSLContext,
        chunks: ModelChunks | None,
    ) -> NearEnd | Push:
        if job.launch:
            sizes = self._sizes_of(worker.answers_file)
            return NearEnd(job, worker, context, chunks, sizes, self._changed.set)
        if chunks is None:
            raise BadMessage(f"nothing to push to {worker.name}; name the files of the model")
        return Push(job, worker, context, chunks, self._changed.set, self._pace)

    def _sizes_of(self, file: str) -> AllocSizes | None:
        """One for all workers of a kind, so that they learn from each other."""
        if file and file not in self._sizes:
            self._sizes[file] = AllocSizes(Path(file))
        return self._sizes.get(file)

    async def _start_one(self, agent_id: str, near_end: NearEnd | Push) -> None:
        try:
            await near_end.start()
        except ProjectError as exc:
            near_end.close()
            self._near_ends.remove(near_end)
            self._fail(agent_id, exc)

    def _fail(self, agent_id: str, exc: ProjectError) -> None:
        self._failed.append(LinkStats(agent_id, state=LOST, error_code=exc.code, detail=str(exc)))
        self._changed.set()


def _name(text: str) -> ChunkName:
    return ChunkName(bytes.fromhex(text))


def _model_chunks(job: LinkJob) -> ModelChunks | None:
    files = {Path(tensor.file) for worker in job.workers for tensor in worker.tensors}
    return ModelChunks(Path(job.folder) / "models", files) if files else None


async def _main(path: Path) -> None:
    process = LinkProcess()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, process.over.set)
    await process.run(path)


if __name__ == "__main__":
    logs.configure("link", json_lines=False)
    asyncio.run(_main(Path(sys.argv[1])))
