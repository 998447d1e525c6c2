"""Following the logs of a deployment: all of its processes, launch after launch.

Nothing is read unless somebody listens, and each listener has a reading of its own, so that a slow
one holds up nobody.
"""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from agents.errors import ProjectError
from supervisor.core.entities import AgentId, Deployment, Device, LaunchId, LaunchRecord
from supervisor.core.lifecycle import State
from supervisor.core.process_memory import LLAMA_SERVER
from supervisor.errors import DeploymentUnknown
from supervisor.ports import AgentPort
from supervisor.service.events import EventBus

Said = tuple[str, dict[str, Any]]
"""An event for a listener and its body: ``lines`` or ``silent``."""

LINK: Final = "link"
END_BYTES: Final = 64 << 10
"""So much of the end of what there is already is sent first."""
LINE_BYTES: Final = 64 << 10
"""Of a longer line the rest is left out."""

_PIECE_BYTES: Final = 64 << 10
_AT_ONCE: Final = 8
"""Events that wait for a listener who is slow; then the reading waits as well."""
_PAUSE_S: Final = 0.25
_QUIET_PAUSE_S: Final = 0.5
_AGENT_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 15.0
_RUNNING: Final = (State.STARTING, State.READY, State.DEGRADED, State.STOPPING)
"""States in which there may be processes that write."""


class Deployments(Protocol):
    """What is needed of the reconciler."""

    def get(self, name: str) -> Deployment: ...


class Launches(Protocol):
    """What is needed of the journal."""

    def launch(self, launch_id: LaunchId) -> LaunchRecord: ...


class Devices(Protocol):
    """What is needed of the registry."""

    def find(self, name_or_id: str) -> Device: ...

    def agent(self, agent_id: AgentId) -> AgentPort: ...


@dataclass(frozen=True, slots=True)
class Logs:
    """Where all logs are found."""

    deployments: Deployments
    launches: Launches
    devices: Devices
    bus: EventBus


# -- reading one log ---------------------------------------------------------------------------


class WholeLines:
    """Makes lines of what comes in pieces; one that is too long is cut, not split."""

    def __init__(self) -> None:
        self._line = bytearray()

    def feed(self, data: bytes) -> str:
        """The lines that are whole now."""
        *ends, rest = data.split(b"\n")
        whole = "".join(self._ended(end) for end in ends)
        self._grow(rest)
        return whole

    def end(self) -> str:
        """The last line, though its end is missing: nothing comes any more."""
        return self._ended(b"") if self._line else ""

    def _ended(self, end: bytes) -> str:
        self._grow(end)
        line = self._line.decode(errors="replace")
        self._line.clear()
        return f"{line}\n"

    def _grow(self, data: bytes) -> None:
        self._line += data[: LINE_BYTES - len(self._line)]


@dataclass(frozen=True, slots=True)
class _Piece:
    """What was appended to ``file``. ``has_more`` can be read at once."""

    file: str
    data: bytes = b""
    has_more: bool = False


class _HostLog:
    """A file of the main host, from near its end on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset: int | None = None

    async def read(self) -> _Piece:
        """What was appended since.

        Raises:
            OSError: It is gone, or cannot be read.
        """
        return await asyncio.to_thread(self._read)

    def _read(self) -> _Piece:
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            is_first = self._offset is None
            start = max(size - END_BYTES, 0) if self._offset is None else min(self._offset, size)
            file.seek(start)
            data = file.read(_PIECE_BYTES)
        self._offset = start + len(data)
        if is_first and start:
            data = _from_next_line(data)
        return _Piece(self._path.name, data, has_more=self._offset < size)


class _AgentLog:
    """The log of a worker's rpc-server, which its agent reads for us, at most once a second."""

    def __init__(self, agent: Callable[[], AgentPort], launch_id: LaunchId) -> None:
        self._agent = agent
        self._begins = f"rpc-server-{launch_id}."  # others are of other launches
        self._file = ""
        self._offset = -1
        self._next_at_s = 0.0

    async def read(self) -> _Piece:
        """What was appended since.

        Raises:
            AgentUnreachable, AgentRefused, DeviceUnknown: It cannot be asked.
            ValueError, KeyError: It says what we cannot read.
        """
        await asyncio.sleep(max(self._next_at_s - time.monotonic(), 0.0))
        try:
            answer = await self._agent().log(self._offset)
        finally:
            self._next_at_s = time.monotonic() + _AGENT_PAUSE_S
        file, end = str(answer["file"]), int(str(answer["offset"]))
        data = str(answer["text"]).encode(errors="replace")
        if not file.startswith(self._begins):
            return _Piece("")
        if file != self._file and self._offset >= 0:
            self._file, self._offset = "", -1  # begun anew, and this is no beginning of it
            return _Piece("")
        is_first, self._file, self._offset = not self._file, file, end
        if is_first and (len(data) > END_BYTES or end > len(data)):
            data = _from_next_line(data[-END_BYTES:])
        return _Piece(file, data)


def _from_next_line(data: bytes) -> bytes:
    """Without the first line, whose beginning may be missing."""
    return data.partition(b"\n")[2]


# -- following them ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Target:
    """Which log of a process is the present one."""

    launch_id: LaunchId | None = None
    path: str = ""
    agent_id: AgentId | None = None
    is_running: bool = False


class LogFollower:
    """One listener: reads while somebody takes what is read, and goes over to new launches."""

    def __init__(self, logs: Logs, name: str, processes: Collection[str]) -> None:
        """``processes``: names that :meth:`Devices.find` knows, or of main host's; none: all."""
        self._logs = logs
        self._name = name
        self._wanted = frozenset(processes)
        self._devices: dict[str, AgentId] = {}
        for process in self._wanted - {LLAMA_SERVER, LINK}:
            self._devices[process] = logs.devices.find(process).id
        self._record: LaunchRecord | None = None
        self._recorded: tuple[LaunchId | None, int | None] = (None, None)
        self._targets: dict[str, _Target] = {}
        self._changed = asyncio.Event()
        self._said: asyncio.Queue[Said | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._failures: Counter[str] = Counter()
        """Of each process, one after the other."""
        self._following = asyncio.create_task(self._follow())

    async def events(self) -> AsyncGenerator[Said, None]:
        """``lines`` and ``silent``, until the deployment is removed or we are stopped."""
        while (event := await self._said.get()) is not None:
            self._room.release()
            yield event
        await self._following

    async def close(self) -> None:
        """Read nothing more."""
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    async def _follow(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._hear(tasks)
                for reader in self._readers.values():
                    reader.cancel()
        finally:
            self._said.put_nowait(None)

    async def _hear(self, tasks: asyncio.TaskGroup) -> None:
        """Which processes there are, until there will be none any more."""
        with self._logs.bus.subscribe() as changes, contextlib.suppress(DeploymentUnknown):
            await self._look(tasks)
            async for change in changes:
                if change.body.get("id") != self._name:
                    continue
                if change.name == "deployment_removed":
                    return
                if change.name == "deployment":
                    await self._look(tasks)

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        deployment = self._logs.deployments.get(self._name)
        plan, is_running = deployment.plan, deployment.state in _RUNNING
        working: Mapping[str, AgentId] = {s.device: s.agent_id for s in plan.shards} if plan else {}
        if not self._wanted:
            self._devices.update(working)
        await self._read_record(deployment)
        launch_id, record = deployment.launch_id, self._record
        paths = {LLAMA_SERVER: record.log_path, LINK: record.link_log_path} if record else {}
        targets = {p: _Target(launch_id, path, None, is_running) for p, path in paths.items()}
        for process, agent_id in self._devices.items():
            works = is_running and agent_id in working.values()
            targets[process] = _Target(launch_id, "", agent_id, works)
        if targets == self._targets:
            return
        self._targets = targets
        self._changed.set()
        self._changed = asyncio.Event()
        for process in targets.keys() - self._readers.keys():
            if not self._wanted or process in self._wanted:
                self._readers[process] = tasks.create_task(self._read(process))

    async def _read_record(self, deployment: Deployment) -> None:
        """It tells where the logs are, from when llama-server was started on."""
        now = deployment.launch_id, deployment.port
        if deployment.launch_id is None or now == self._recorded:
            return
        try:
            launch = self._logs.launches.launch
            self._record = await asyncio.to_thread(launch, deployment.launch_id)
        except ProjectError:
            return  # at the next change; that nothing can be read is told elsewhere
        self._recorded = now

    async def _read(self, process: str) -> None:
        """One process, launch after launch."""
        while True:
            changed, target = self._changed, self._targets[process]
            log: _HostLog | _AgentLog | None = None
            if target.path:
                log = _HostLog(Path(target.path))
            elif target.agent_id is not None and target.launch_id is not None:
                log = _AgentLog(self._agent(target.agent_id), target.launch_id)
            if log is None:
                await changed.wait()
            else:
                await self._read_log(process, target, log)

    def _agent(self, agent_id: AgentId) -> Callable[[], AgentPort]:
        return lambda: self._logs.devices.agent(agent_id)

    async def _read_log(self, process: str, target: _Target, log: _HostLog | _AgentLog) -> None:
        """One log until another one takes its place; then what is left of it."""
        lines, file = WholeLines(), ""
        while True:
            changed, now = self._changed, self._targets[process]
            is_over = (now.launch_id, now.path) != (target.launch_id, target.path)
            if is_over and isinstance(log, _AgentLog):
                return  # it has no more of the old one
            try:
                piece = await log.read()
            except (ProjectError, OSError, ValueError, KeyError) as exc:
                if is_over:
                    return
                await self._failed(process, exc, changed)
                continue
            self._failures[process] = 0
            if piece.file not in ("", file):
                lines, file = WholeLines(), piece.file
            text = lines.feed(piece.data)
            has_ended = not piece.data and (is_over or not now.is_running)
            text += lines.end() if has_ended else ""
            if text:
                await self._say("lines", process=process, file=file, text=text)
            if is_over and not piece.data:
                return
            if has_ended:
                await changed.wait()
            elif not piece.has_more and not is_over:
                await asyncio.sleep(_PAUSE_S if text else _QUIET_PAUSE_S)

    async def _failed(self, process: str, error: Exception, changed: asyncio.Event) -> None:
        """Say it once; then wait longer and longer, or until there is another launch."""
        failures = self._failures[process]
        self._failures[process] += 1
        if not failures:
            await self._say("silent", process=process, detail=_why(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(2.0 ** min(failures, 9), _LONGEST_PAUSE_S)):
                await changed.wait()

    async def _say(self, event: str, **body: Any) -> None:
        await self._room.acquire()
        self._said.put_nowait((event, body))


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the log cannot be read: {error.strerror or error}"
    return str(error) if isinstance(error, ProjectError) else "its agent sent what we cannot read"
