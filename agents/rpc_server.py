"""The one rpc-server of this device: started on request, proven ready, reaped when it ends."""

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from agents import environment, facts, logfile, ports, process
from agents.contract import EngineFacts, RpcServerSpec, RpcServerStatus, WorkerState
from agents.errors import (
    EngineMissing,
    EngineWithoutRpc,
    RpcServerExited,
    RpcServerSilent,
    StaleGeneration,
    WorkerTaken,
)
from agents.rpc_protocol import Outcome, ProbeResult, probe

log = logging.getLogger(__name__)

GRACE_S = 5.0
"""From SIGTERM to SIGKILL. rpc-server has no handler, so it normally ends at once."""

_PROBE_DEADLINE_S = 2.0
_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.25
_ACCEPTED = b"Accepted client connection"
_CLOSED = b"Client connection closed"


class RpcServer:
    """Owns the child process. ``apply`` and ``remove`` are the only ways to change it."""

    def __init__(
        self,
        engine: EngineFacts | None,
        folder: Path,
        inherited: Mapping[str, str],
        threads: int | None = None,
    ) -> None:
        self._engine = engine
        self._threads = threads
        self._logs = folder / "logs"
        self._ledger = process.ChildLedger(folder / "children.json")
        self._environment = environment.for_engine(inherited, {"GGML_NO_BACKTRACE": "1"})
        self._status = RpcServerStatus(WorkerState.STOPPED)
        self._child: process.Child | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._reservation: ports.Reservation | None = None
        self._starts = 0
        self._settled = asyncio.Event()
        self._settled.set()
        self.changed = asyncio.Event()
        """Set on every change of state; whoever waits on it clears it."""

    def sweep(self) -> None:
        """End a child that an earlier, killed agent left behind."""
        for record in self._ledger.sweep():
            log.warning("rpc_server.orphan_killed", extra={"pid": record.pid})

    def status(self) -> RpcServerStatus:
        """State as of now, with the child's memory, processor time and accepted clients."""
        child = self._child
        if child is None or child.exit_status is not None:
            return self._status
        accepted, closed = _count_clients(child.log_path)
        return replace(
            self._status,
            resident_bytes=facts.resident_bytes(child.pid),
            cpu_s=facts.cpu_seconds(child.pid),
            clients_accepted=accepted,
            clients_closed=closed,
        )

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
            is_up = self._status.state in (WorkerState.STARTING, WorkerState.READY)
            if spec.generation == self._status.generation and is_up:
                return self.status()
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
            await self._end()
            self._become(RpcServerStatus(WorkerState.STOPPED, generation=generation))
            return self.status()

    async def wait_while_starting(self, timeout_s: float) -> RpcServerStatus:
        """Status once it is no longer starting, or after ``timeout_s`` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        return self.status()

    async def close(self) -> None:
        """Stop everything, whatever its generation."""
        async with self._one_at_a_time:
            await self._end()
            self._become(replace(self._status, state=WorkerState.STOPPED, pid=None))

    # -- the child -------------------------------------------------------------------------

    async def _start(self, spec: RpcServerSpec) -> None:
        program = self._program()
        ports.refuse_public(spec.host)
        self._reservation = ports.reserve(spec.host, spec.port)
        port = self._reservation.port
        threads = spec.threads or self._threads or facts.default_threads()
        argv = [program, "-H", spec.host, "-p", str(port), "-t", str(threads)]
        if spec.devices:
            argv += ["-d", ",".join(spec.devices)]
        self._starts += 1
        log_path = self._logs / f"rpc-server-{spec.generation}.{os.getpid()}.{self._starts}.log"
        child = self._child = await self._ledger.spawn(
            "rpc-server", argv, log_path=log_path, environment=self._environment
        )
        self._become(
            RpcServerStatus(
                WorkerState.STARTING,
                generation=spec.generation,
                host=spec.host,
                port=port,
                pid=child.pid,
                argv=argv,
                environment=environment.relevant(self._environment),
            )
        )
        self._watcher = asyncio.create_task(
            self._watch(child, spec.host, port, spec.ready_deadline_s)
        )

    def _program(self) -> str:
        engine = self._engine
        if engine is None:
            raise EngineMissing(
                "no llama.cpp programs on this device; install a build with RPC, "
                "or set LLAMA_CPP_BIN to its folder"
            )
        if not engine.rpc_server or engine.problem_code == EngineWithoutRpc.code:
            raise EngineWithoutRpc(engine.problem or f"{engine.folder} holds no ggml-rpc-server")
        return engine.rpc_server

    async def _watch(self, child: process.Child, host: str, port: int, deadline_s: float) -> None:
        """Prove the fresh child ready, then wait for its end. Any end is a failure."""
        probing = asyncio.create_task(_probe_until_answer(host, port))
        exiting = asyncio.create_task(child.wait())
        try:
            await asyncio.wait(
                {probing, exiting}, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED
            )
            # The exit is looked at first: an answer could come from a stranger on that port.
            if child.exit_status is None and not probing.done():
                others = ports.clients_of(port)
                code = WorkerTaken.code if others else RpcServerSilent.code
                self._fail(code, _silence_text(child, f"{host}:{port}", deadline_s, others))
                await child.stop(grace_s=GRACE_S)
            elif child.exit_status is None:
                self._judge(probing.result(), host, port)
            await exiting
            if self._status.state is not WorkerState.FAILED:
                self._fail(RpcServerExited.code, _exit_text(child), child.exit_status)
        finally:
            probing.cancel()
            exiting.cancel()
            await asyncio.gather(probing, exiting, return_exceptions=True)

    def _judge(self, result: ProbeResult, host: str, port: int) -> None:
        if result.outcome is Outcome.READY:
            self._become(
                replace(
                    self._status, state=WorkerState.READY, rpc_protocol=str(result.triple or "")
                )
            )
        else:
            self._fail(RpcServerSilent.code, f"{host}:{port}: {result.detail}")

    def _fail(self, code: str, detail: str, exit_status: int | None = None) -> None:
        self._become(
            replace(
                self._status,
                state=WorkerState.FAILED,
                error_code=code,
                detail=detail,
                exit_status=exit_status,
            )
        )

    async def _end(self) -> None:
        """Cancel and await the watcher first, so that no late result of it can arrive."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        if self._child is not None:
            await self._child.stop(grace_s=GRACE_S)
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
        if status.state is WorkerState.STARTING:
            self._settled.clear()
        else:
            self._settled.set()


async def _probe_until_answer(host: str, port: int) -> ProbeResult:
    """Probe our own fresh server until it answers; the caller sets the deadline."""
    pause_s = _FIRST_PAUSE_S
    while True:
        result = await probe(host, port, deadline_s=_PROBE_DEADLINE_S)
        if result.outcome not in (Outcome.REFUSED, Outcome.BUSY, Outcome.UNREACHABLE):
            return result
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.3, _LONGEST_PAUSE_S)


def _silence_text(child: process.Child, endpoint: str, deadline_s: float, others: list[str]) -> str:
    silent = f"rpc-server (pid {child.pid}) did not answer HELLO on {endpoint} in {deadline_s:g} s"
    if not others:
        return f"{silent}; see its log"
    return (
        f"{silent}: it serves one client at a time, and {', '.join(others)} is connected to it; "
        "close that program (another llama-server, or a port probe)"
    )


def _exit_text(child: process.Child) -> str:
    last = next((line for line in reversed(logfile.tail(child.log_path)) if line.strip()), "")
    said = f"; its last line was: {last.strip()}" if last else "; it printed nothing"
    return f"rpc-server (pid {child.pid}) {process.describe_exit(child.exit_status)}{said}"


def _count_clients(path: Path) -> tuple[int, int]:
    """Clients accepted and closed so far; the server's log says so, and nothing else does."""
    try:
        text = path.read_bytes()
    except OSError:
        return 0, 0
    return text.count(_ACCEPTED), text.count(_CLOSED)
