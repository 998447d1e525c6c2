"""Links without supervisor and agents: both ends in this process, between programs of ours."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

from agents import ports, tls
from agents.chunk_store import ChunkStore
from agents.contract import RpcServerStatus, WorkerState
from agents.far_end import FarEnd, server_context
from agents.link_session import Stock
from agents.rpc_protocol import DeviceMemory, Outcome, probe
from agents.rpc_server import RpcServer
from supervisor.adapters.authority import Authority
from supervisor.link.alloc_sizes import AllocSizes
from supervisor.link.job import LinkJob, PlannedTensor, WorkerJob
from supervisor.link.model_chunks import ModelChunks
from supervisor.link.near_end import NearEnd

LOOPBACK: Final = "127.0.0.1"
MUCH_BYTES: Final = 1 << 50
"""Available memory, so that a device is offered as its rpc-server describes it."""


@dataclass
class Served:
    """What a far end sees of its agent's rpc-server: one that is up already, of that launch."""

    port: int
    rpc_protocol: str
    devices: tuple[DeviceMemory, ...]
    launch: int = 1

    @classmethod
    async def proven(cls, port: int, *, asked_at: int | None = None) -> "Served":
        """The rpc-server on ``port``; it is asked at ``asked_at`` if a relay is before it."""
        found = await probe(LOOPBACK, asked_at or port, deadline_s=5, asks_sizes=True)
        assert found.outcome is Outcome.READY, found
        return cls(port, str(found.triple), found.devices)

    async def wait_for(self, generation: int, timeout_s: float) -> RpcServerStatus:
        """Never the moment before it is ready."""
        return RpcServerStatus(
            WorkerState.READY,
            generation=self.launch,
            main_host="lab",
            host=LOOPBACK,
            port=self.port,
            rpc_protocol=self.rpc_protocol,
        )

    def offered(self) -> list[tuple[DeviceMemory, bool]]:
        return [(device, True) for device in self.devices]


@dataclass(frozen=True)
class FarSide:
    """The far end of one device, as a near end is told of it."""

    worker: WorkerJob
    served: Served

    def behind(self, port: int) -> "FarSide":
        """The same, reached through a relay that listens on ``port``."""
        return replace(self, worker=replace(self.worker, link_port=port))


class Lab:
    """A main host and devices of one cluster; what is kept between launches is in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "authority")
        self._launches = 0

    @contextlib.asynccontextmanager
    async def far_side(self, name: str, served: Served) -> AsyncIterator[FarSide]:
        """A far end that listens; its store outlives it."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        issued = self.authority.issue(tls.agent_name(name))
        certificate, key = folder / "agent.crt", folder / "agent.key"
        certificate.write_text(issued.certificate_pem)
        key.write_text(issued.key_pem)
        context = server_context(certificate, key, self.authority.certificate_path)
        listener = ports.listen(LOOPBACK, 0, "a link")
        threads = ThreadPoolExecutor(2)
        stock = Stock(ChunkStore(folder / "chunks"), (), threads)
        far_end = FarEnd(listener, context, cast(RpcServer, served), stock, lambda: MUCH_BYTES)
        serving = asyncio.create_task(far_end.serve())
        worker = WorkerJob(
            agent_id=name,
            name=name,
            address=LOOPBACK,
            link_port=far_end.port,
            serial=issued.serial,
            answers_file=str(self.folder / f"answers-{name}"),
        )
        try:
            yield FarSide(worker, served)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            threads.shutdown()

    @contextlib.asynccontextmanager
    async def near_ends(
        self,
        *sides: FarSide,
        tensors: Sequence[Sequence[PlannedTensor]] = (),
        silence_s: float = 5.0,
    ) -> AsyncIterator[list[NearEnd]]:
        """The links of the next launch, made; ``tensors`` are sent ahead, those of each side."""
        self._launches += 1
        planned = [list(each) for each in tensors] or [[] for _ in sides]
        workers = [
            replace(side.worker, tensors=own) for side, own in zip(sides, planned, strict=True)
        ]
        for side in sides:
            side.served.launch = self._launches
        job = LinkJob(
            launch=self._launches,
            main_host="lab",
            silence_s=silence_s,
            connect_s=10.0,
            window_bytes=64 << 20,
            certificate=str(self.authority.supervisor_certificate),
            key=str(self.authority.supervisor_key),
            authority=str(self.authority.certificate_path),
            folder=str(self.folder / "link"),
            workers=workers,
        )
        context = tls.client_context(
            self.authority.certificate_pem,
            self.authority.supervisor_certificate,
            self.authority.supervisor_key,
        )
        files = {Path(tensor.file) for own in planned for tensor in own}
        chunks = ModelChunks(self.folder / "link" / "models", files) if files else None
        sizes = {w.answers_file: AllocSizes(Path(w.answers_file)) for w in workers}
        made = [
            NearEnd(job, worker, context, chunks, sizes[worker.answers_file], lambda: None)
            for worker in workers
        ]
        try:
            await asyncio.gather(*(near_end.start() for near_end in made))
            yield made
        finally:
            for near_end in made:
                near_end.close()
