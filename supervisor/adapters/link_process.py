"""The process that holds a launch's near ends: started ahead, given a job, listened to, stopped."""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from agents import process
from agents.chunks import ChunkName
from agents.contract import read
from agents.errors import BadMessage, LinkLost, ProjectError
from agents.logfile import tail
from supervisor.core.entities import AgentId
from supervisor.errors import LinkProcessEnded
from supervisor.link.job import LOST, SERVING, LinkJob, LinkStats

log = logging.getLogger(__name__)

_START_S: Final = 15.0
_FIRST_PAUSE_S: Final = 0.002
_LONGEST_PAUSE_S: Final = 0.1
_GRACE_S: Final = 3.0
_FRESH_S: Final = 0.5
_FIRST_WORD_S: Final = 2.0
_NEXT_SPARE_S: Final = 3.0
_REAP_S: Final = 2.0
_LINE_BYTES: Final = 4 << 20
_LEND_S: Final = 5.0


class LinkProcess:
    """One running link process, and the last that it said."""

    def __init__(
        self, child: process.Running, socket: Path, on_stopped: Callable[[], None] = lambda: None
    ) -> None:
        self._child = child
        self._on_stopped = on_stopped
        self._socket = socket
        self._writer: asyncio.StreamWriter | None = None
        self._listening: asyncio.Task[None] | None = None
        self._stats: dict[AgentId, LinkStats] = {}
        self._news = asyncio.Event()
        self._is_over = False
        self._heard_at_s = time.monotonic()
        self._loans: dict[int, asyncio.Future[list[str]]] = {}
        self._loan = itertools.count(1)
        self._stored: dict[AgentId, list[ChunkName]] = {}

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def log_path(self) -> Path:
        return self._child.log_path

    @property
    def is_alive(self) -> bool:
        return self._child.is_alive and not self._is_over

    @property
    def silent_s(self) -> float:
        return time.monotonic() - self._heard_at_s

    async def connect(self) -> None:
        """Reach it; it makes its socket in its first moments.

        Raises:
            LinkLost: It did not start.
        """
        pause_s = _FIRST_PAUSE_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_S):
                while self._child.is_alive:
                    with contextlib.suppress(OSError):
                        reader, self._writer = await asyncio.open_unix_connection(
                            self._socket, limit=_LINE_BYTES
                        )
                        self._listening = asyncio.create_task(self._listen(reader))
                        return
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
        raise LinkLost(f"the link process did not start: {self._last_words()}")

    async def heard(self) -> None:
        """Wait for its first word.

        Raises:
            LinkLost: It says nothing.
        """
        try:
            async with asyncio.timeout(_FIRST_WORD_S):
                while not self._stats:
                    await self.changed()
                    self.raise_if_lost()
        except TimeoutError:
            raise LinkLost(f"the link process says nothing for {_FIRST_WORD_S:g} s") from None

    def give(self, job: LinkJob) -> None:
        """Tell it what to do, once."""
        assert self._writer is not None
        self._writer.write(json.dumps({"job": asdict(job)}).encode() + b"\n")

    async def ready(self, agents: int, deadline_s: float) -> Mapping[AgentId, LinkStats]:
        """Wait until every one of ``agents`` links serves.

        Raises:
            ProjectError: The first that does not, with its own code.
        """
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    self.raise_if_lost()
                    if len(self._stats) == agents and all(
                        stats.state == SERVING for stats in self._stats.values()
                    ):
                        return self._stats
                    await self.changed()
        except TimeoutError:
            raise LinkLost(
                f"the links were not made within {deadline_s:g} s; see {self.log_path}"
            ) from None

    def stats(self) -> Mapping[AgentId, LinkStats]:
        """The last word on every link."""
        return self._stats

    async def fresh(self) -> None:
        """Ask for its word now, and wait a moment for it; what is known has to do else."""
        if self._writer is None or not self.is_alive:
            return
        self._writer.write(b'{"tell": true}\n')
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FRESH_S):
                await self.changed()

    async def lend(self, agent_id: AgentId, names: Sequence[ChunkName]) -> tuple[ChunkName, ...]:
        """Have these left out of a push, as another device brings them; returns which are."""
        if self._writer is None or not self.is_alive:
            return ()
        number, texts = next(self._loan), [name.hex() for name in names]
        answer = self._loans[number] = asyncio.get_running_loop().create_future()
        self._say({"lend": {"agent_id": agent_id, "number": number, "names": texts}})
        try:
            async with asyncio.timeout(_LEND_S):
                return tuple(ChunkName(bytes.fromhex(text)) for text in await answer)
        except TimeoutError:
            self.settle(agent_id, {}, names)
            return ()
        finally:
            del self._loans[number]

    def settle(
        self, agent_id: AgentId, arrived: Mapping[ChunkName, int], back: Iterable[ChunkName]
    ) -> None:
        """Of what was lent, this has come, with its size, and that is to be sent after all."""
        there = {name.hex(): size_bytes for name, size_bytes in arrived.items()}
        texts = [name.hex() for name in back]
        self._say({"settle": {"agent_id": agent_id, "arrived": there, "back": texts}})

    def stored(self) -> Mapping[AgentId, Sequence[ChunkName]]:
        """What pushes have put into stores since this was asked last."""
        found, self._stored = self._stored, {}
        return found

    def limit(self, bytes_per_s: int) -> None:
        """Send no more than that from now on, over all links together; 0: any."""
        self._say({"limit": bytes_per_s})

    def leave(self, agent_id: AgentId, reason: str) -> None:
        """End the push to one device; what has arrived there stays."""
        self._say({"leave": {"agent_id": agent_id, "reason": reason}})

    def _say(self, message: Mapping[str, object]) -> None:
        if self._writer is not None and self.is_alive:
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def changed(self) -> None:
        """Return at its next word, or its end."""
        await self._news.wait()

    def raise_if_lost(self) -> None:
        """Look at its last word.

        Raises:
            ProjectError: A link is lost, or the process.
        """
        for stats in self._stats.values():
            if stats.state == LOST:
                raise _error(stats)
        if not self.is_alive:
            status = self._child.exit_status
            how = "hung up" if status is None else process.describe_exit(status)
            raise LinkProcessEnded(f"the link process {how}: {self._last_words()}")

    async def stop(self) -> None:
        """End it; llama-server is gone by now."""
        self._is_over = True
        if self._listening is not None:
            self._listening.cancel()
        if self._writer is not None:
            self._writer.close()
        try:
            await self._child.stop(grace_s=_GRACE_S)
        finally:
            with contextlib.suppress(OSError):
                self._socket.unlink(missing_ok=True)
                self._socket.parent.rmdir()
        self._on_stopped()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._heard_at_s = time.monotonic()
                said = json.loads(line)
                links = [read(LinkStats, item) for item in said["links"]]
                self._hear_of_chunks(said)
                self._stats = {AgentId(stats.agent_id): stats for stats in links}
                self._tell()
        except (OSError, ValueError, KeyError, BadMessage) as exc:
            log.warning("link.not_heard", extra={"reason": str(exc)})
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REAP_S):  # so that we can say how it ended
                    await self._child.wait()
            self._is_over = True
            self._tell()

    def _hear_of_chunks(self, said: dict[str, Any]) -> None:
        """Raises ``ValueError`` or ``KeyError`` for what it would never say."""
        for agent_id, texts in said.get("stored", {}).items():
            names = [ChunkName(bytes.fromhex(text)) for text in texts]
            self._stored.setdefault(AgentId(agent_id), []).extend(names)
        if (lent := said.get("lent")) is not None:
            answer = self._loans.get(lent["number"])
            if answer is not None and not answer.done():
                answer.set_result(lent["names"])

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _last_words(self) -> str:
        lines = tail(self._child.log_path, 3)
        return " / ".join(lines) or f"it said nothing; see {self._child.log_path}"


def _error(stats: LinkStats) -> ProjectError:
    error = LinkLost(stats.detail)
    error.code = stats.error_code or LinkLost.code
    return error


class LinkProcesses:
    """Starts link processes, one ahead of need: Python takes longer to start than a launch may."""

    def __init__(self, folder: Path, boot_id: str = "") -> None:
        self._logs = folder / "logs"
        self._ledger = process.ChildLedger(folder / "link-children.json", boot_id)
        self._spare: asyncio.Task[LinkProcess] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._is_closed = False

    def prepare(self) -> None:
        """Have one ready for the next launch."""
        if self._spare is None and not self._is_closed:
            self._spare = asyncio.create_task(self._spawn())

    async def adopt(self, pid: int) -> LinkProcess | None:
        """The one that an earlier run of us gave a job, if it still runs and answers."""
        child = self._ledger.adopt(lambda record: record.pid == pid)
        if child is None:
            return None
        found = LinkProcess(child, Path(child.argv[-1]), self.prepare)
        try:
            await found.connect()
            await found.heard()
        except ProjectError as exc:
            log.warning("link.not_adopted", extra={"pid": pid, "reason": str(exc)})
            await found.stop()
            return None
        return found

    def sweep(self) -> None:
        """End what an earlier run of us left and nobody adopted."""
        for record in self._ledger.sweep():
            log.warning("link.orphan_killed", extra={"pid": record.pid})

    async def start(self, job: LinkJob) -> LinkProcess:
        """Give a job to the spare process, or to a new one.

        Raises:
            LinkLost: It did not start.
            FolderNotWritable: Its log cannot be written.
        """
        async with self._one_at_a_time:
            found = await self._take()
        found.give(job)
        # Not at once: this launch needs the processor now, and the next one is some time away.
        asyncio.get_running_loop().call_later(_NEXT_SPARE_S, self.prepare)
        return found

    async def _take(self) -> LinkProcess:
        """The spare one. If that did not start or has ended meanwhile, a fresh one."""
        with contextlib.suppress(ProjectError):
            found = await self._spare_one()
            if found.is_alive:
                return found
            await found.stop()
        return await self._spare_one()

    async def _spare_one(self) -> LinkProcess:
        """Nobody's any more. A launch that is given up while it starts leaves it for the next."""
        self.prepare()
        if self._spare is None:
            raise LinkLost("no link process any more: the supervisor ends")
        await asyncio.wait({self._spare})
        spare, self._spare = self._spare, None
        if spare is None or spare.cancelled():
            raise LinkLost("no link process any more: the supervisor ends")
        return spare.result()

    async def close(self) -> None:
        """End the spare one, or its start."""
        self._is_closed = True
        spare, self._spare = self._spare, None
        if spare is None:
            return
        spare.cancel()
        (found,) = await asyncio.gather(spare, return_exceptions=True)
        if isinstance(found, LinkProcess):
            await found.stop()

    async def _spawn(self) -> LinkProcess:
        folder = Path(tempfile.mkdtemp(prefix="llama-rpc-link-"))
        try:
            child = await self._ledger.spawn(
                "link",
                [sys.executable, "-m", "supervisor.link", str(folder / "control")],
                log_path=self._logs / f"link-{os.getpid()}.{next(self._numbers)}.log",
                environment=os.environ,
                parent_death_signal=None,
            )
        except BaseException:
            folder.rmdir()
            raise
        found = LinkProcess(child, folder / "control", self.prepare)
        try:
            await found.connect()
        except BaseException:
            await found.stop()
            raise
        return found
