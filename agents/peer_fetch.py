"""Gets chunks from another device of the cluster, as the supervisor orders.

Every chunk is checked against its name before it is kept, so a device that lies costs time and
nothing else: its fetch ends, and the supervisor gets the rest elsewhere. What has come stays.
"""

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Final

from agents import tls
from agents.chunk_store import PutResult
from agents.chunks import CHUNK_BYTES, NAME_BYTES, ChunkName
from agents.contract import read
from agents.errors import (
    BadMessage,
    FetchUnknown,
    LinkFraming,
    LinkLost,
    LinkRefused,
    PeerFailed,
    PeerUnsupported,
    ProjectError,
)
from agents.link_frames import (
    LINK_PROTOCOL,
    Frame,
    Kind,
    Welcome,
    read_json,
    read_names,
    read_seed,
)
from agents.link_session import Stock
from agents.link_stream import LinkStream
from agents.pacing import Pace
from agents.peer_chunks import PEER_SILENCE_S
from agents.peer_messages import FetchOrder, FetchStatus

log = logging.getLogger(__name__)

MOST_FETCHES: Final = 16
MOST_WAITING: Final = 16384
"""Names of one fetch that are not settled: half a MiB."""
MOST_PLACES: Final = 6
WINDOW_CHUNKS: Final = 4
"""On their way or in memory, per fetch."""
_PLACE_S: Final = 4.0
_WELCOME_S: Final = 5.0
_CONNECT_S: Final = 12.0
"""For all places together: who waits for the chunks gets them elsewhere."""
STALL_S: Final = 20.0
"""Without a chunk, and hardly anything of one, for so long, the other device is left."""
_PROGRESS_BYTES: Final = 16 << 10
_IDLE_S: Final = 30.0
"""Nothing was ordered for so long."""
KEPT_OVER: Final = 32
"""Fetches that are over and can still be asked about."""


class Fetches:
    """All that this device gets from others."""

    def __init__(self, stock: Stock, context: Callable[[], ssl.SSLContext]) -> None:
        """``context`` shows our own certificate, and trusts the cluster's authority alone."""
        self._stock = stock
        self._context = context
        self._fetches: dict[str, _Fetch] = {}

    def order(self, order: FetchOrder) -> FetchStatus:
        """Begin a fetch, or add to one; must be called in the event loop.

        Raises:
            BadMessage: It cannot be read, or is too much.
            FetchUnknown: It goes on with a fetch that is not here, as after a restart.
        """
        names = [_name(text) for text in order.names]
        fetch = self._fetches.get(order.id)
        if fetch is None:
            if order.start:
                raise FetchUnknown(f"no fetch {order.id!r} here any more; begin another one")
            fetch = self._begin(order)
        fetch.add(order.start, names)
        return fetch.status()

    def status(self, fetch_id: str) -> FetchStatus:
        """How far it is.

        Raises:
            FetchUnknown: It is not here, or was over long ago.
        """
        if fetch_id not in self._fetches:
            raise FetchUnknown(f"no fetch {fetch_id!r} here; it was over long ago or never begun")
        return self._fetches[fetch_id].status()

    async def end(self, fetch_id: str) -> FetchStatus:
        """Stop it; what has come stays.

        Raises:
            FetchUnknown: As for ``status``.
        """
        self.status(fetch_id)
        await self._fetches[fetch_id].stop("the supervisor ended it")
        return self.status(fetch_id)

    async def close(self) -> None:
        """End all of them."""
        await asyncio.gather(*(each.stop("the agent ends") for each in self._fetches.values()))

    def _begin(self, order: FetchOrder) -> "_Fetch":
        running = sum(not each.has_ended() for each in self._fetches.values())
        if running >= MOST_FETCHES:
            raise BadMessage(f"{running} fetches run here already; end one of them first")
        over = [key for key, each in self._fetches.items() if each.has_ended()]
        for key in over[: max(0, len(over) - KEPT_OVER)]:
            del self._fetches[key]
        if not 0 < len(order.places) <= MOST_PLACES or not order.id:
            raise BadMessage(f"a fetch has an id and from 1 to {MOST_PLACES} places")
        if order.limit_bytes_per_s < 0:
            raise BadMessage("limit_bytes_per_s is negative; 0 means none")
        fetch = _Fetch(order, [_place(each) for each in order.places], self._stock, self._context)
        self._fetches[order.id] = fetch
        return fetch


class _Fetch:
    """Chunks from one device, over one link."""

    def __init__(
        self,
        order: FetchOrder,
        places: list[tuple[str, int]],
        stock: Stock,
        context: Callable[[], ssl.SSLContext],
    ) -> None:
        self._order = order
        self._places = places
        self._stock = stock
        self._context = context
        self._pace = Pace(order.limit_bytes_per_s)
        self._waiting: deque[ChunkName] = deque()
        self._given = self._done = self._bytes = 0
        self._lacking: list[int] = []
        self._answers: deque[tuple[ChunkName, bytes | None]] = deque()
        self._asked: deque[ChunkName] = deque()
        self._news = asyncio.Event()
        self._welcome = asyncio.Event()
        self._error: ProjectError | None = None
        self._link: LinkStream | None = None
        self._task = asyncio.create_task(self._run())

    def has_ended(self) -> bool:
        return self._error is not None

    def add(self, start: int, names: list[ChunkName]) -> None:
        """More names; those before ``start`` are here already, and some of these perhaps too."""
        if start > self._given:
            raise FetchUnknown(
                f"fetch {self._order.id!r} has {self._given} names, not {start}; begin another one"
            )
        new = names[self._given - start :]
        if len(self._waiting) + len(new) > MOST_WAITING:
            raise BadMessage(f"more than {MOST_WAITING} chunks at once; order fewer")
        self._waiting.extend(new)
        self._given += len(new)
        self._news.set()

    def status(self) -> FetchStatus:
        error = self._error
        return FetchStatus(
            id=self._order.id,
            is_over=error is not None,
            done_chunks=self._done,
            done_bytes=self._bytes,
            lacking=list(self._lacking),
            error_code=error.code if error else "",
            detail=str(error) if error else "",
        )

    async def stop(self, reason: str) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._end(LinkLost(reason))

    # -- the work --------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._connect()
            await self._work()
        except (ProjectError, OSError) as exc:
            self._end(exc if isinstance(exc, ProjectError) else LinkLost(str(exc)))
        except Exception as exc:
            log.exception("peer_fetch.bug")
            self._end(PeerFailed(f"internal error: {exc!r}; please report it"))

    async def _connect(self) -> None:
        problems = []
        loop = asyncio.get_running_loop()
        until_s = loop.time() + _CONNECT_S
        for host, port in self._places:
            if loop.time() >= until_s:
                break
            try:
                async with asyncio.timeout(_PLACE_S):
                    await self._dial(host, port)
                async with asyncio.timeout(_WELCOME_S):
                    await self._welcome.wait()
                    if self._error is not None:
                        raise self._error
                return
            except TimeoutError:
                problems.append(f"{host}:{port}: no answer")
            except (OSError, LinkRefused, LinkLost) as exc:
                problems.append(f"{host}:{port}: {exc}")
            self._drop_link()
            self._error = None
            self._welcome.clear()
        raise LinkLost(f"the other device cannot be reached ({'; '.join(problems)})")

    async def _dial(self, host: str, port: int) -> None:
        link = self._link = LinkStream(self._on_frame, self._on_end, self._news.set)
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: link,
            host,
            port,
            ssl=self._context(),
            server_hostname=tls.agent_name(self._order.agent_id),
        )
        certificate = transport.get_extra_info("peercert") or {}
        seen = str(certificate.get("serialNumber", ""))
        if int(seen or "0", 16) != int(self._order.serial or "0", 16):
            raise LinkRefused(f"it shows certificate {seen}, not the one that was told")
        link.start_beating(PEER_SILENCE_S)

    def _on_frame(self, frame: Frame) -> None:
        match frame.kind:
            case Kind.WELCOME:
                self._hear_welcome(read(Welcome, read_json(frame.body)))
            case Kind.CHUNK:
                name, data = read_seed(frame.body)
                self._on_answer(name, bytes(data))
            case Kind.LACKS:
                (name,) = read_names(frame.body)
                self._on_answer(name, None)
            case _:
                raise LinkFraming(f"{frame.kind.name} is not for a device that fetches")
        self._news.set()

    def _hear_welcome(self, welcome: Welcome) -> None:
        if welcome.protocol != LINK_PROTOCOL:
            raise PeerUnsupported(
                f"the agent of the other device speaks link protocol {welcome.protocol}, this one "
                f"{LINK_PROTOCOL}; update the older one"
            )
        self._welcome.set()

    def _on_answer(self, name: ChunkName, data: bytes | None) -> None:
        if not self._asked or self._asked[0] != name:
            raise LinkFraming("a chunk that was not asked for")
        self._asked.popleft()
        self._answers.append((name, data))

    def _on_end(self, error: ProjectError) -> None:
        if self._error is None:
            self._error = error
        self._welcome.set()
        self._news.set()

    async def _work(self) -> None:
        """Ask ahead, keep what comes, in order; ends by an error, be it that nothing is wanted."""
        assert self._link is not None
        idle_s, stalled_s, seen_bytes = 0.0, 0.0, 0
        patience_s = STALL_S
        if self._order.limit_bytes_per_s:
            patience_s += 8 * CHUNK_BYTES / self._order.limit_bytes_per_s
        while not self.has_ended():
            await self._ask()
            while self._answers:
                name, data = self._answers.popleft()
                await self._keep(name, data)
                stalled_s = 0.0
                await self._ask()
            if self.has_ended():
                break
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._news.wait()
                    continue
            idle_s = 0.0 if self._asked or self._waiting else idle_s + 1.0
            moved_bytes = self._link.received_bytes - seen_bytes
            seen_bytes = self._link.received_bytes
            is_stalled = bool(self._asked) and moved_bytes < _PROGRESS_BYTES
            stalled_s = stalled_s + 1.0 if is_stalled else 0.0
            if stalled_s >= patience_s:
                raise PeerFailed(f"it gave nothing for {stalled_s:.0f} s")
            if idle_s >= _IDLE_S:
                raise LinkLost(f"nothing was ordered for {idle_s:.0f} s")
        raise self._error or LinkLost("ended")

    async def _ask(self) -> None:
        """Want as much as the window allows; what is here by now is settled without asking."""
        assert self._link is not None
        while self._waiting and len(self._asked) + len(self._answers) < WINDOW_CHUNKS:
            name = self._waiting[0]
            if self._is_here(name):
                if self._asked or self._answers:
                    return  # settled in order
                self._waiting.popleft()
                self._done += 1
                continue
            if wait_s := self._pace.wait_s(CHUNK_BYTES):
                await asyncio.sleep(wait_s)
            if self.has_ended():
                return
            self._asked.append(self._waiting.popleft())
            self._link.send(Kind.WANT, name)

    def _is_here(self, name: ChunkName) -> bool:
        return bool(self._stock.store.has((name,))) or self._stock.is_held(name)

    async def _keep(self, name: ChunkName, data: bytes | None) -> None:
        if data is None:
            self._lacking.append(self._done)
            self._done += 1
            return
        loop = asyncio.get_running_loop()
        result = await loop.run_in_executor(self._stock.threads, self._stock.store.put, name, data)
        if result is PutResult.DAMAGED:
            raise PeerFailed("it gave bytes that are not those of their name")
        if result is PutResult.NO_ROOM:
            raise LinkRefused("the store of this device is full; raise --store-gib of its agent")
        self._bytes += len(data)
        self._done += 1

    def _end(self, error: ProjectError) -> None:
        if self._error is None or not isinstance(error, LinkLost):
            self._error = error
        self._drop_link()
        for each in (self._waiting, self._asked, self._answers):
            each.clear()
        log.info(
            "peer_fetch.ended",
            extra={"device": self._order.agent_id, "bytes": self._bytes, "reason": str(error)},
        )

    def _drop_link(self) -> None:
        if self._link is not None:
            self._link.end(LinkLost("the fetch is over"))


def _name(text: str) -> ChunkName:
    try:
        name = bytes.fromhex(text)
    except ValueError as exc:
        raise BadMessage(f"{text[:80]!r} is no name of a chunk") from exc
    if len(name) != NAME_BYTES:
        raise BadMessage(f"a name of {len(name)} bytes; it has {NAME_BYTES}")
    return ChunkName(name)


def _place(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise BadMessage(f"{text[:80]!r} is no ADDRESS:PORT")
    return host.strip("[]"), int(port)
