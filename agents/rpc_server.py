"""The one rpc-server of this device: started on request, proven ready, reaped when it ends."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agents import environment, facts, ports, process
from agents.awake import Awake
from agents.child_watch import ChildWatch
from agents.command import rpc_server_argv
from agents.contract import (
    GgmlDevice,
    MeasurementSpec,
    RpcServerSpec,
    RpcServerStatus,
    WorkerState,
)
from agents.current_engine import CurrentEngine
from agents.errors import (
    EngineInUse,
    EngineMissing,
    EngineWithoutRpc,
    MeasurementRefused,
    RpcServerExited,
    StaleGeneration,
)
from agents.measuring import LOOPBACK, Measurement
from agents.power import BatteryReader
from agents.readiness import exit_text, prove
from agents.rpc_protocol import DeviceMemory
from agents.worker_threads import WorkerThreads

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""From SIGTERM to SIGKILL. rpc-server has no handler, so it normally ends at once."""

_ACCEPTED = b"Accepted client connection"
_CLOSED = b"Client connection closed"


class RpcServer:
    """Owns the child process. ``apply`` and ``remove`` are the only ways to change it.

    While there is none, the device may be measured; whatever is applied then goes first.
    """

    def __init__(
        self,
        current: CurrentEngine,
        folder: Path,
        inherited: Mapping[str, str],
        threads: int | None = None,
        battery: BatteryReader | None = None,
    ) -> None:
        """``threads``: of every rpc-server, unless a launch asks for others; None: as many as
        suit the cores that may be used when it starts.
        """
        self._current = current
        self._threads = WorkerThreads(threads, is_phone=facts.is_phone())
        self._logs = folder / "logs"
        self._ledger = process.ChildLedger(folder / "children.json")
        self._environment = environment.for_engine(inherited, {"GGML_NO_BACKTRACE": "1"})
        self._status = RpcServerStatus(WorkerState.STOPPED)
        self._child: process.Child | None = None
        self._child_watch: ChildWatch | None = None
        self._awake = Awake()
        self._watcher: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._reservation: ports.Reservation | None = None
        self._measurement: Measurement | None = None
        self._spec: RpcServerSpec | None = None
        self._devices: tuple[DeviceMemory, ...] = ()
        self._starts = 0
        self._battery = battery or facts.battery_reader()
        self._over = -1
        self._news = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self.changed = asyncio.Event()
        """Set on every change of state, also of the child's; whoever waits on it clears it."""

    def sweep(self) -> None:
        """End a child that an earlier, killed agent left behind."""
        for record in self._ledger.sweep():
            log.warning("rpc_server.orphan_killed", extra={"pid": record.pid})

    def status(self) -> RpcServerStatus:
        """State as of now, with the child's memory, processor time and accepted clients."""
        child, watch = self._child, self._child_watch
        status = replace(self._status, is_measuring=self._is_measuring)
        if child is None or watch is None or child.exit_status is not None:
            return status
        accepted, closed = _count_clients(child.log_path)
        return replace(
            status,
            resident_bytes=facts.resident_bytes(child.pid),
            peak_bytes=facts.peak_resident_bytes(child.pid),
            cpu_s=facts.cpu_seconds(child.pid),
            clients_accepted=accepted,
            clients_closed=closed,
            oom_kills=watch.oom_kills(),
            process_state=watch.state(),
        )

    @property
    def threads(self) -> int:
        """Of the rpc-server that runs; else those that the next one would get."""
        is_up = self._child is not None and self._child.exit_status is None
        return self._threads.latest if is_up else self._threads.next()

    def log_path(self) -> Path | None:
        """Log of the present or the last rpc-server."""
        return self._child.log_path if self._child else None

    async def apply(self, spec: RpcServerSpec) -> RpcServerStatus:
        """Make ``spec`` true. The same generation again changes nothing; a higher one replaces.

        Raises:
            StaleGeneration: ``spec`` is older than what runs.
            EngineMissing, EngineWithoutRpc, EngineUnusable: No program to start.
            PortInUse, NoFreePort, PublicAddressRefused: It could not listen there.
            FolderNotWritable: No log could be written.
        """
        async with self._one_at_a_time:
            if spec.generation < self._status.generation:
                raise StaleGeneration(
                    f"generation {spec.generation} is older than {self._status.generation}"
                )
            if spec.generation <= self._over:
                # A request that waited while we were stopped, and whose sender gave up long ago.
                raise StaleGeneration(f"generation {spec.generation} was stopped before")
            if spec.generation == self._status.generation and self._is_up:
                return self.status()
            await self._end_measurement(f"launch {spec.generation}")
            await self._end()
            # What ran is gone, whether or not the new one can be started.
            self._become(RpcServerStatus(WorkerState.STOPPED, generation=spec.generation))
            await self._start(spec)
            return self.status()

    async def remove(self, generation: int) -> RpcServerStatus:
        """Stop the rpc-server, unless it belongs to a newer generation."""
        async with self._one_at_a_time:
            if generation < self._status.generation:
                raise StaleGeneration(
                    f"generation {generation} is older than {self._status.generation}"
                )
            self._over = generation
            await self._end()
            self._become(RpcServerStatus(WorkerState.STOPPED, generation=generation))
            return self.status()

    async def expire(self, reason: str) -> bool:
        """Stop what runs, as whoever asked for it is gone; whether anything ran."""
        async with self._one_at_a_time:
            await self._end_measurement("the silence of the main host")
            if not self._is_up:
                return False
            self._over = self._status.generation
            await self._end()
            self._become(replace(self._status, state=WorkerState.STOPPED, pid=None, detail=reason))
            return True

    @contextlib.asynccontextmanager
    async def idle(self) -> AsyncIterator[None]:
        """Start nothing for as long as the block takes; a measurement is ended first.

        Raises:
            EngineInUse: Something runs.
        """
        async with self._one_at_a_time:
            if self._is_up:
                raise EngineInUse(
                    f"the rpc-server of launch {self._status.generation} is {self._status.state}; "
                    "the engine is changed when it has ended"
                )
            await self._end_measurement("a change of the engine")
            yield

    async def wait_while_starting(self, timeout_s: float) -> RpcServerStatus:
        """Status once it is no longer starting, or after ``timeout_s`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        return self.status()

    async def wait_for(self, generation: int, timeout_s: float) -> RpcServerStatus:
        """Status once that generation, or a later one, was asked for and has settled.

        After ``timeout_s`` seconds it is whatever it is.
        """

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not await self._has_settled(generation):
                    await self._news.wait()
        return self.status()

    async def _has_settled(self, generation: int) -> bool:
        if self._status.generation >= generation:
            async with self._one_at_a_time:  # between the end of the last one and the next start
                pass
        has_come = self._status.generation >= generation
        return has_come and self._status.state is not WorkerState.STARTING

    def offered(self) -> list[tuple[DeviceMemory, bool]]:
        """What the proven rpc-server said of each of its devices, and whether it is a CPU."""
        names = self._spec.devices if self._spec else []
        is_cpu = [GgmlDevice(name).is_cpu for name in names] or [True] * len(self._devices)
        return list(zip(self._devices, is_cpu, strict=False))

    async def close(self) -> None:
        """Stop everything, whatever its generation."""
        async with self._one_at_a_time:
            await self._end_measurement("the end of the agent")
            await self._end()
            self._become(replace(self._status, state=WorkerState.STOPPED, pid=None))

    def kill(self) -> None:
        """SIGKILL what runs and wait for nothing: this agent ends in the same moment."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL)
        if self._measurement is not None:
            self._measurement.cancel("the end of the agent")

    # -- measuring -------------------------------------------------------------------------

    async def measure(self, spec: MeasurementSpec, ggml_devices: Sequence[str]) -> Measurement:
        """Begin to measure this device; ``status`` changes in nothing but ``is_measuring``.

        Raises:
            MeasurementRefused: A launch uses the device, or it is being measured.
            EngineMissing, EngineWithoutRpc: No program to start.
            BadMessage: A figure of ``spec`` is impossible.
        """
        async with self._one_at_a_time:
            self._refuse_measuring()
            self._program()

            async def spawn(port: int) -> process.Child:
                return await self._spawn("measuring", LOOPBACK, port, None, ggml_devices)

            self._measurement = Measurement(
                spawn, spec, ggml_devices, self.changed.set, self._temperature_c
            )
            self.changed.set()
            return self._measurement

    async def _temperature_c(self) -> float | None:
        return (await self._battery.read()).temperature_c

    def reclaimable_bytes(self) -> int:
        """Memory that a measurement holds and a launch would get back."""
        return self._measurement.resident_bytes() if self._measurement else 0

    @property
    def _is_up(self) -> bool:
        return self._status.state in (WorkerState.STARTING, WorkerState.READY)

    @property
    def _is_measuring(self) -> bool:
        return self._measurement is not None and not self._measurement.is_over

    def _refuse_measuring(self) -> None:
        if self._is_up:
            raise MeasurementRefused(
                f"the rpc-server of launch {self._status.generation} is {self._status.state} on "
                "this device; stop that first, and measure when it is idle"
            )
        if self._is_measuring:
            raise MeasurementRefused("this device is being measured already; wait for its end")

    async def _end_measurement(self, interrupted_by: str) -> None:
        if self._measurement is not None:
            await self._measurement.end(interrupted_by)
            self._measurement = None

    # -- the child -------------------------------------------------------------------------

    async def _start(self, spec: RpcServerSpec) -> None:
        self._program()
        ports.refuse_public(spec.host)
        self._reservation = ports.reserve(spec.host, spec.port)
        port = self._reservation.port
        self._spec, self._devices = spec, ()
        name = f"rpc-server-{spec.generation}"
        child = self._child = await self._spawn(
            name, spec.host, port, spec.threads, spec.devices, rdma=spec.rdma
        )
        watch = ChildWatch(child, str(spec.generation), self.changed.set)
        self._child_watch = watch
        self._become(
            RpcServerStatus(
                WorkerState.STARTING,
                generation=spec.generation,
                main_host=spec.main_host,
                host=spec.host,
                port=port,
                pid=child.pid,
                argv=child.argv,
                environment=environment.relevant(self._environment_with(rdma=spec.rdma)),
            )
        )
        self._watcher = asyncio.create_task(
            self._watch(child, watch, spec.host, port, spec.ready_deadline_s)
        )
        await self._awake.hold(child.pid)

    def _environment_with(self, *, rdma: bool) -> dict[str, str]:
        """RDMA is negotiated by llama.cpp itself wherever it can be, unless it is told not to."""
        return self._environment if rdma else {**self._environment, "GGML_RPC_NO_RDMA": "1"}

    async def _spawn(
        self,
        log_name: str,
        host: str,
        port: int,
        threads: int | None,
        devices: Sequence[str],
        *,
        rdma: bool = False,
    ) -> process.Child:
        argv = rpc_server_argv(self._program(), host, port, self._threads.choose(threads), devices)
        self._starts += 1
        log_path = self._logs / f"{log_name}.{os.getpid()}.{self._starts}.log"
        child = await self._ledger.spawn(
            "rpc-server", argv, log_path=log_path, environment=self._environment_with(rdma=rdma)
        )
        self._threads.place(child.pid)
        return child

    def _program(self) -> str:
        engine = self._current.engine
        if engine is None:
            raise EngineMissing(
                "no llama.cpp programs on this device; install a build with RPC, "
                "or set LLAMA_CPP_BIN to its folder"
            )
        if not engine.rpc_server or engine.problem_code == EngineWithoutRpc.code:
            raise EngineWithoutRpc(engine.problem or f"{engine.folder} holds no ggml-rpc-server")
        return engine.rpc_server

    async def _watch(
        self, child: process.Child, watch: ChildWatch, host: str, port: int, deadline_s: float
    ) -> None:
        """Prove the fresh child ready, then wait for its end. Any end is a failure."""
        proof = await prove(child, host, port, deadline_s)
        if proof.error_code:
            self._fail(child, watch, proof.error_code, proof.detail)
            await _stop(child)
            return
        self._devices = proof.devices
        ready = replace(self._status, state=WorkerState.READY, rpc_protocol=proof.rpc_protocol)
        self._become(ready)
        await watch.outlast()
        self._fail(child, watch, RpcServerExited.code, exit_text(child))

    def _fail(self, child: process.Child, watch: ChildWatch, code: str, detail: str) -> None:
        """What the child did last is looked at before anybody ends it."""
        self._become(
            replace(
                self._status,
                state=WorkerState.FAILED,
                error_code=code,
                detail=detail,
                exit_status=child.exit_status,
                oom_kills=watch.oom_kills(),
                process_state=watch.state(),
            )
        )

    async def _end(self) -> None:
        """Cancel and await the watcher first, so that no late result of it can arrive."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        if self._child is not None:
            await _stop(self._child)
        await self._awake.release()
        if self._reservation is not None:
            self._reservation.release()
            self._reservation = None

    def _become(self, status: RpcServerStatus) -> None:
        if status.state is not self._status.state:
            log.info(
                "rpc_server.state_changed",
                extra={
                    "from": str(self._status.state),
                    "to": str(status.state),
                    "launch": str(status.generation or ""),
                    "pid": status.pid,
                    "reason": status.detail,
                },
            )
        self._status = status
        self.changed.set()
        self._news.set()
        self._news = asyncio.Event()
        if status.state is WorkerState.STARTING:
            self._settled.clear()
        else:
            self._settled.set()


async def _stop(child: process.Child) -> None:
    if facts.process_state(child.pid) in facts.STOPPED_STATES:
        child.signal(signal.SIGKILL)  # SIGTERM would wait until it is continued
    await child.stop(grace_s=GRACE_S)


def _count_clients(path: Path) -> tuple[int, int]:
    """Clients accepted and closed so far; the server's log says so, and nothing else does."""
    try:
        text = path.read_bytes()
    except OSError:
        return 0, 0
    return text.count(_ACCEPTED), text.count(_CLOSED)
